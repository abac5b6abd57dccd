"""All tools of an application in one call: registries, and the one function that runs every tool."""

from __future__ import annotations

import asyncio
import collections
import enum
import json
from types import MappingProxyType, SimpleNamespace
from typing import NamedTuple

import pytest

from profiler.errors import UsageError
from profiler.loop.model import CallRequest
from profiler.loop.tools import Tool, tool
from profiler.watch.profiler import Profiler


class Watched:
    """A profiler, and a loop whose model has asked for these calls: (id, name, arguments)."""

    def __init__(self, *requests):
        self.records = []
        self.prof = Profiler([self.records.append])
        self.requests = requests

    def __enter__(self):
        self.context = self.prof.loop("x")
        round_ = self.context.__enter__().begin_round("openai-chat", "m")
        round_.unclaimed += [(CallRequest(*request), 0) for request in self.requests]
        return self

    def __exit__(self, *error):
        self.context.__exit__(*error)

    @property
    def calls(self):
        return [(call.name, call.id) for call in self.records[-1].tool_calls]

    @property
    def unseen(self):
        return self.records[-1].unobserved_calls


SEARCH, FETCH = ("s", "search", '{"q": "x"}'), ("f", "fetch", '{"url": "y"}')


async def look(q):
    return q


def get(url):
    return url


class Entry(NamedTuple):
    function: object
    schema: dict


@pytest.mark.parametrize(
    "make",
    [
        dict,
        collections.OrderedDict,
        lambda items: collections.defaultdict(list, items),
        lambda items: MappingProxyType(dict(items)),
        lambda items: {name: (function, {"type": "object"}) for name, function in items},
        lambda items: {name: Entry(function, {"type": "object"}) for name, function in items},
        lambda items: {name: {"function": function, "parameters": {}} for name, function in items},
    ],
    ids=["dict", "ordered", "defaultdict", "proxy", "pairs", "named tuples", "dicts"],
)
def test_registry_gives_its_names_to_its_functions(make):
    registry = make([("search", look), ("fetch", get)])

    def function_of(held, name):
        entry = held[name]
        if isinstance(entry, dict):
            return entry["function"]
        return entry[0] if isinstance(entry, tuple) else entry

    with Watched(SEARCH, FETCH) as watch:
        made = watch.prof.tools(registry)
        assert asyncio.run(function_of(made, "search")(q="x")) == "x"
        assert function_of(made, "fetch")("y") == "y"
    assert (watch.calls, watch.unseen) == ([("search", "s"), ("fetch", "f")], 0)
    assert list(made) == ["search", "fetch"]
    assert type(made) is (dict if isinstance(registry, MappingProxyType) else type(registry))
    assert function_of(registry, "search") is look  # the one that was given is as it was


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_collection_of_functions_and_tools(kind):
    @tool
    def fetch(url: str) -> str:
        return url

    async def search(q):
        return q

    with Watched(SEARCH, FETCH) as watch:
        made = watch.prof.tools(kind([search, fetch]))
        assert type(made) is kind
        by_name = {getattr(one, "name", getattr(one, "__name__", "")): one for one in made}
        asyncio.run(by_name["search"](q="x"))
        by_name["fetch"].function(url="y")
    assert isinstance(by_name["fetch"], Tool)
    assert sorted(watch.calls) == [("fetch", "f"), ("search", "s")]


def test_methods_of_an_object_and_entries_of_a_list():
    class Web:
        def find(self, q):
            return self, q

    web = Web()
    schema = {"type": "function", "function": {"name": "other"}}  # the server's, passed on
    with Watched(SEARCH, FETCH) as watch:
        made = watch.prof.tools({"search": web.find})
        assert made["search"](q="x") == (web, "x")
        listed = watch.prof.tools([{"name": "fetch", "run": get}, schema])
        assert listed[0]["run"](url="y") == "y"
        assert listed[1] is schema
    assert watch.calls == [("search", "s"), ("fetch", "f")]


@pytest.mark.parametrize(
    ("registry", "message"),
    [
        (None, "no tool in a NoneType"),
        ("search", "no tool in a str"),
        (7, "no tool in an int"),
        ([], "no tool in a list"),
        ([{"type": "web_search"}], "no tool in a list"),
        ([look, 7], "a tool of the list is an int"),
        ({"search": 7}, "the tool 'search' of the registry is an int, not a function"),
        ({"search": (look, get)}, "the tool 'search' of the registry is a tuple"),
        ({look: "search"}, "the keys of a registry are the tools' names, not look"),
        (SimpleNamespace(search=look), "no tool in a SimpleNamespace"),
    ],
)
def test_what_is_no_registry_is_refused(registry, message):
    with pytest.raises(UsageError, match=message):
        Profiler([]).tools(registry)


class Name(enum.Enum):
    SEARCH = "search"


def call_of(name, arguments):
    return SimpleNamespace(id="s", function=SimpleNamespace(name=name, arguments=arguments))


def block_of(name, arguments):
    return SimpleNamespace(id="s", name=name, input=arguments)


async def by_mapping(name, arguments):
    return arguments["q"]


async def by_keywords(name, /, **arguments):
    return arguments["q"]


async def with_more(session, context, name="search", arguments=None):
    return arguments["q"]


async def by_text(name, arguments):
    return json.loads(arguments)["q"]


async def by_call(call):
    return "x"


async def in_any(**request):
    return request["arguments"]["q"]


@pytest.mark.parametrize(
    ("function", "parameter", "args", "kwargs"),
    [
        (by_mapping, "name", ("search", {"q": "x"}), {}),
        (by_mapping, "name", (), {"arguments": {"q": "x"}, "name": "search"}),
        (by_mapping, "name", (Name.SEARCH, {"q": "x"}), {}),
        (by_mapping, "name", (SimpleNamespace(name="search"), {"q": "x"}), {}),
        (by_keywords, "name", ("search",), {"q": "x"}),
        (with_more, "name", (object(), {"user": 7}), {"arguments": {"q": "x"}}),
        (by_text, "name", ("search", '{"q": "x"}'), {}),
        (by_call, "call", (call_of("search", '{"q": "x"}'),), {}),
        (by_call, "call", (block_of("search", {"q": "x"}),), {}),
        (by_call, "call", ({"name": "search", "args": {"q": "x"}, "id": "s"},), {}),
        (by_call, "call", ({"function": {"name": "search", "arguments": '{"q": "x"}'}},), {}),
        (in_any, "tool", (), {"tool": "search", "arguments": {"q": "x"}}),
    ],
)
def test_dispatcher_runs_the_tool_that_its_argument_names(function, parameter, args, kwargs):
    with Watched(("other", "search", '{"q": "y"}'), SEARCH) as watch:
        dispatcher = watch.prof.dispatcher(function, name=parameter)
        assert asyncio.run(dispatcher(*args, **kwargs)) == "x"
    assert (watch.calls, watch.unseen) == ([("search", "s")], 1)


def test_dispatcher_of_any_kind():
    def sync(name, q):
        return q

    def items(name, q):
        yield q

    async def streamed(name, q):
        yield q

    class Tools:
        def run(self, name, q):
            return self, q

        async def later(self, name, q):
            return self, q

    async def collect(stream):
        return [item async for item in stream]

    watch = Watched(*[(str(n), "search", '{"q": "x"}') for n in range(6)])
    prof, owner = watch.prof, Tools()

    class Decorated(Tools):
        @prof.dispatcher(name="name")
        def run(self, name, q):
            return self, q

    decorated = Decorated()
    with watch:
        assert prof.dispatcher(sync, name="name")("search", "x") == "x"
        assert list(prof.dispatcher(items, name="name")("search", "x")) == ["x"]
        assert asyncio.run(collect(prof.dispatcher(streamed, name="name")("search", "x"))) == ["x"]
        assert prof.dispatcher(owner.run, name="name")("search", q="x") == (owner, "x")
        assert asyncio.run(prof.dispatcher(owner.later, name="name")("search", q="x")) == (owner, "x")
        assert decorated.run("search", "x") == (decorated, "x")
    assert watch.calls == [("search", str(n)) for n in range(6)]
    again = prof.dispatcher(prof.dispatcher(sync, name="name"), name="q")
    with watch:
        again("x", "search")
    assert watch.calls == [("search", "0")]  # watched once


@pytest.mark.parametrize("named", [None, 7, object(), Name])
def test_dispatcher_whose_tool_cannot_be_told_has_its_own_name(named):
    with Watched(SEARCH) as watch:
        dispatcher = watch.prof.dispatcher(lambda tool, arguments: "done", name="tool")
        if named is Name:
            with pytest.raises(TypeError):
                dispatcher()
        else:
            assert dispatcher(named, {"q": "x"}) == "done"
    assert (watch.calls, watch.unseen) == ([("<lambda>", "")], 1)
    assert watch.prof.failures == {"loop": 0, "request": 0, "tool": 0}


class Hostile:
    def __getattr__(self, name):
        raise RuntimeError("do not look at me")


def test_dispatcher_never_raises_into_the_application():
    with Watched(SEARCH) as watch:
        dispatcher = watch.prof.dispatcher(lambda tool, arguments: arguments, name="tool")
        assert dispatcher(Hostile(), 3) == 3
    assert watch.prof.failures["tool"] == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda prof: prof.dispatcher(7, name="name"), "not a function: an int"),
        (lambda prof: prof.dispatcher(by_mapping, name="tool"), r"no parameter 'tool' \(it has: name, arg"),
        (lambda prof: prof.tool(7), "not a function: an int"),
    ],
)
def test_what_cannot_be_watched_is_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make(Profiler([]))


def test_dispatcher_over_a_watched_registry_is_one_call_each():
    """Both see the run; it is one, with its id, and takes no other request of its tool."""
    watch = Watched(SEARCH, ("other", "search", '{"q": "y"}'))
    registry = watch.prof.tools({"search": look})

    async def call_tool(name, arguments):
        return await registry[name](**arguments)

    dispatcher = watch.prof.dispatcher(call_tool, name="name")
    with watch:
        asyncio.run(dispatcher("search", {"q": "x"}))
    assert (watch.calls, watch.unseen) == ([("search", "s")], 1)


def test_tool_of_another_name_as_a_decorator():
    with Watched(SEARCH) as watch:

        @watch.prof.tool(name="search")
        def search_v2(q):
            return q

        search_v2("x")
    assert watch.calls == [("search", "s")]


def test_object_of_a_framework_that_looks_otherwise_is_refused_by_name():
    other = type("FunctionTool", (), {"__module__": "agents.tool"})()
    with pytest.raises(UsageError, match=r"a FunctionTool of agents cannot be watched \(an AttributeError\)"):
        Profiler([]).tools([other])
