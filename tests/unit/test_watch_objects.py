"""Watched callables that are not plain functions: each is bound, looked at and changed as it is unwatched."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import pickle
import typing
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from unittest.mock import MagicMock

import pytest
from pydantic import BaseModel

from profiler import ToolLoop
from profiler.loop.model import CallRequest
from profiler.loop.tools import is_async, tool
from profiler.testing import ScriptedModel, call, run_virtual
from profiler.watch.profiler import Profiler

MS = 1_000_000


class Search:
    """Searches."""

    limit = 5

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, query: str, /, *, most: int = 3) -> str:
        """Search for it."""
        self.n += 1
        return f"{query}, {most}"

    def with_query(self, query: str) -> str:
        return self(query)

    @classmethod
    def of_class(cls, query: str) -> tuple[type, str]:
        return cls, query

    @staticmethod
    def of_nothing(query: str) -> str:
        return query


class AsyncSearch:
    def __init__(self) -> None:
        self.n = 0

    async def __call__(self, query: str) -> str:
        await asyncio.sleep(0.3)
        self.n += 1
        return query

    async def method(self, query: str) -> str:
        await asyncio.sleep(0.3)
        return query


class Streaming:
    async def __call__(self, query: str):
        yield query


def pair(*given):
    return given


def pair_of_names(one: str, other: str = "") -> tuple[str, str]:
    return one, other


async def async_pair(*given):
    return given


class Descriptor:
    """Binds in a way of its own."""

    def __call__(self, *given):
        return given

    def __get__(self, instance, owner=None):
        return self if instance is None else functools.partial(self, "bound")

    def __set_name__(self, owner, name) -> None:
        self.named = owner.__name__, name


SEARCH = Search()
NOT_BOUND = {
    "object": SEARCH,
    "partial": functools.partial(pair, 1),
    "partial of an async function": functools.partial(async_pair, 1),
    "async object": AsyncSearch(),
    "built-in": "{}".format,
    "bound method": SEARCH.with_query,
    "bound async method": AsyncSearch().method,
    "method of the class": Search.of_class,
    "static method": staticmethod(pair),
    "class": str,
    "descriptor": Descriptor(),
}
BOUND = {
    "function": pair,
    "async function": async_pair,
    "cache": functools.lru_cache(pair),
    "class method": classmethod(pair),
}


async def result_of(value):
    return await value if inspect.isawaitable(value) else value


@pytest.mark.filterwarnings("ignore:functools.partial will be a method descriptor:FutureWarning")
@pytest.mark.parametrize("kind", [*NOT_BOUND, *BOUND])
def test_an_attribute_of_a_class_is_bound_as_it_is_unwatched(kind):
    function = (NOT_BOUND | BOUND)[kind]

    async def main(clock):
        prof = Profiler([], clock=clock)

        class Agent:
            bare = function
            watched = prof.tool(function)

        agent = Agent()
        expected = await result_of(agent.bare("q"))
        assert await result_of(agent.watched("q")) == expected
        assert await result_of(Agent.watched("q")) == await result_of(Agent.bare("q"))
        if kind in BOUND:
            assert expected == (Agent if kind == "class method" else agent, "q")
        assert set(prof.failures.values()) == {0}

    run_virtual(main)


@pytest.mark.parametrize("rewrapped", [False, True])
@pytest.mark.parametrize("kind", ["object", "bound method", "class method", "cache", "descriptor", "partial"])
def test_every_way_to_get_at_it_is_watched_under_its_name_and_found_by_its_arguments(kind, rewrapped):
    """What it is bound to is no argument that a model has asked for."""

    class Agent:
        def method(self, query):
            return query

        @classmethod
        def of_class(cls, query):
            return query

        @functools.lru_cache  # noqa: B019 (it ends with the test)
        def cached(self, query):
            return query

    records = []
    prof = Profiler([records.append])
    find = functools.partial(prof.tool, name="find")
    agent = Agent()
    functions = {
        "object": lambda: find(Search()),
        "bound method": lambda: find(agent.method),
        "class method": lambda: find(Agent.of_class),
        "cache": lambda: find(Agent.cached).__get__(agent),
        "descriptor": lambda: find(Descriptor()),
        "partial": lambda: find(functools.partial(Agent.of_class)),
    }
    watched = functions[kind]()
    name = "find"
    if rewrapped:
        watched, name = prof.tool(watched, name="other"), "other"
    with prof.loop() as loop:
        round_ = loop.begin_round("openai", "m")
        for id_, query in (("a", "x"), ("b", "y")):
            round_.unclaimed.append((CallRequest(id_, name, f'{{"query": "{query}"}}'), loop.clock()))
        watched("y")
        watched("x")
    found = [(one.id, one.name, one.status) for one in records[0].tool_calls]
    if kind == "descriptor":  # its signature names no argument
        assert [one[1:] for one in found] == [(name, "ok")] * 2
    else:
        assert found == [("b", name, "ok"), ("a", name, "ok")]


def test_a_method_that_is_watched_already_keeps_its_object_under_another_name():
    prof = Profiler([])

    class Agent:
        @prof.tool
        def method(self, query):
            return self, query

    agent = Agent()
    assert prof.tool(agent.method).__func__ is Agent.method
    assert prof.tool(agent.method, name="other")("q") == (agent, "q")


def test_a_bound_method_stays_one():
    agent = AsyncSearch()
    watched = Profiler([]).tool(agent.method)
    assert inspect.ismethod(watched)
    assert watched.__self__ is agent
    assert inspect.iscoroutinefunction(watched)
    assert str(inspect.signature(watched)) == "(query: 'str') -> 'str'"
    assert copy.deepcopy(watched).__self__ is not agent


def test_the_state_of_a_watched_object_is_that_of_the_object():
    search = Search()
    watched = Profiler([]).tool(search)
    assert [watched("a"), watched("b", most=1), search("c")] == ["a, 3", "b, 1", "c, 3"]
    assert (search.n, watched.n) == (3, 3)
    watched.n = 10
    search.more = "set on the object"
    assert (search.n, watched.more) == (10, "set on the object")
    del watched.more
    assert not hasattr(search, "more")
    assert vars(watched) == {"n": 10}
    assert watched.with_query("d") == "d, 3"
    assert watched.n == 11
    Search.limit = 6
    assert watched.limit == 6
    Search.limit = 5


def test_the_state_of_a_watched_async_object_is_that_of_the_object():
    records = []

    async def main(clock):
        prof = Profiler([records.append], clock=clock)
        search = AsyncSearch()
        watched = prof.tool(search)
        with prof.loop() as loop:
            loop.begin_round("openai", "m").ended_ns = clock()
            assert await asyncio.gather(watched("a"), watched("b")) == ["a", "b"]
        assert (search.n, watched.n) == (2, 2)

    run_virtual(main)
    assert [(c.name, c.duration_ns, c.status) for c in records[0].tool_calls] == [
        ("AsyncSearch", 300 * MS, "ok")
    ] * 2


def test_it_passes_for_the_object():
    search = Search()
    watched = Profiler([]).tool(search)
    assert isinstance(watched, Search)
    assert watched.__class__ is Search
    assert (watched == search, search == watched, watched != search) == (True, True, False)
    assert watched == Profiler([]).tool(search)
    assert watched != Profiler([]).tool(Search())
    assert {search: "found"}[watched] == "found"
    assert (repr(watched), str(watched), dir(watched)) == (repr(search), str(search), dir(search))
    assert weakref.ref(watched)() is watched
    twice = Profiler([]).tool(watched)
    assert isinstance(twice, Search)
    assert twice("q") == "q, 3"
    assert (search.n, twice == search) == (1, True)


def test_it_shows_what_the_object_shows():
    watched = Profiler([]).tool(SEARCH)
    assert inspect.signature(watched) == inspect.signature(SEARCH)
    assert inspect.signature(watched.__call__) == inspect.signature(SEARCH.__call__)
    assert inspect.signature(type(watched).__call__) == inspect.signature(Search.__call__)
    assert typing.get_type_hints(type(watched).__call__) == {"query": str, "most": int, "return": str}
    assert (watched.__doc__, watched.__call__.__doc__) == ("Searches.", "Search for it.")
    assert watched.__module__ == type(watched).__module__ == __name__
    # Frameworks name a tool so, and an object has none of its own.
    assert (watched.__name__, Profiler([]).tool(functools.partial(pair)).__name__) == ("Search", "pair")
    assert watched.__wrapped__ is SEARCH
    assert inspect.getdoc(type(watched)) == "Searches."
    assert not inspect.getdoc(type(Profiler([]).tool(AsyncSearch())))


def test_it_passes_for_a_plain_object_with_a_plain_method():
    """As frameworks look at it that refuse what is wrapped, or that read the class alone."""
    watched = Profiler([]).tool(SEARCH)
    owner = next(one for one in type(watched).__mro__ if "__call__" in vars(one))
    method = vars(owner)["__call__"]
    assert inspect.isfunction(method)
    missing = object()
    for one in (watched, method):
        assert inspect.getattr_static(one, "__wrapped__", missing) is missing
        assert inspect.getattr_static(one, "__signature__", missing) is missing
    assert inspect.signature(method) == inspect.signature(Search.__call__)
    assert inspect.signature(method.__get__(watched)) == inspect.signature(SEARCH.__call__)
    assert method.__globals__ is globals()
    assert (inspect.isroutine(watched), inspect.isclass(watched)) == (False, False)


def shown(function):
    """What frameworks look at to learn whether a call is to be awaited."""
    looked_at = (function, function.__call__, type(function).__call__)
    checks = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, asyncio.iscoroutinefunction, is_async)
    return [check(one) for one in looked_at for check in checks]


@pytest.mark.filterwarnings("ignore:'asyncio.iscoroutinefunction':DeprecationWarning")
@pytest.mark.parametrize(
    ("function", "asynchronous"),
    [
        (SEARCH, False),
        (AsyncSearch(), True),
        (Streaming(), True),
        (functools.partial(async_pair), True),
        (functools.partial(pair), False),
        (len, False),
    ],
)
def test_it_says_as_the_original_whether_it_is_async(function, asynchronous):
    watched = Profiler([]).tool(function)
    assert shown(watched) == shown(function)
    assert any(shown(watched)) is asynchronous


def test_the_schema_of_a_watched_object_is_that_of_the_object():
    class Place(BaseModel):
        name: str

    class Local(Search):
        def __call__(
            self, place: Place, parts: Sequence[int] = ()
        ) -> str:  # of this function, and of the module
            return place.name

    prof = Profiler([])
    for function in (Local(), Search().with_query, functools.lru_cache(pair_of_names)):
        bare, watched = tool(name="x")(function), tool(name="x")(prof.tool(function))
        assert watched.parameters == bare.parameters
        assert list(watched.parameters["properties"]) == list(inspect.signature(function).parameters)


def test_dunder_call_is_watched():
    records = []
    prof = Profiler([records.append])
    watched = prof.tool(Search())
    with prof.loop() as loop:
        loop.begin_round("openai", "m")
        assert watched.__call__("q") == "q, 3"
    assert [one.name for one in records[0].tool_calls] == ["Search"]
    assert watched.n == 1


@dataclass
class Valued:
    value: int

    def __call__(self) -> int:
        return self.value

    def __len__(self) -> int:
        return self.value

    def __iter__(self):
        return self

    def __next__(self) -> int:
        raise StopIteration

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.value = 0

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_: object) -> None:
        self.value = 0


def test_special_methods_are_those_of_the_object_and_lead_to_no_unwatched_one():
    prof = Profiler([])
    valued = Valued(3)
    watched = prof.tool(valued)
    assert (watched == Valued(3), Valued(3) == watched, watched == prof.tool(Valued(3))) == (True, True, True)
    assert (watched == Valued(4), len(watched), list(watched)) == (False, 3, [])
    with pytest.raises(TypeError, match="unhashable"):
        hash(watched)
    assert iter(watched) is watched
    with watched as entered:
        assert entered is watched
    assert valued.value == 0

    async def entering():
        async with watched as entered:
            assert entered is watched

    asyncio.run(entering())


def test_a_descriptor_is_told_its_name():
    class Agent:
        search = Profiler([]).tool(Descriptor())

    assert Agent.search.named == ("Agent", "search")
    assert Agent().search("q") == ("bound", "q")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_has_a_state_of_its_own_and_is_watched(copied):
    records = []
    prof = Profiler([records.append])
    watched = prof.tool(Search())
    other = copied(watched)
    with prof.loop() as loop:
        loop.begin_round("openai", "m")
        other("q")
    assert (other.n, watched.n) == (1, 0)
    assert [one.name for one in records[0].tool_calls] == ["Search"]


def test_a_pickle_holds_the_object():
    watched = Profiler([]).tool(Search())
    watched.n = 4
    loaded = pickle.loads(pickle.dumps(watched))
    assert (type(loaded), loaded.n) == (Search, 4)


def test_a_class_is_no_class_any_more_but_makes_its_objects():
    watched = Profiler([]).tool(Valued)
    assert watched(3) == Valued(3)
    assert not inspect.isclass(watched)  # which frameworks would pass to `issubclass`
    assert (watched.__name__, str(inspect.signature(watched))) == ("Valued", "(value: 'int') -> None")
    assert (watched == Valued, hash(watched) == hash(Valued)) == (True, True)


def test_a_mock_counts_the_calls_of_the_watched_one():
    mock = MagicMock(return_value="r")
    watched = Profiler([]).tool(mock)
    assert watched("q", k=1) == "r"
    mock.assert_called_once_with("q", k=1)
    watched.assert_called_once_with("q", k=1)


class Odd(type):
    def __dir__(cls):
        raise RuntimeError("not for you")


def test_an_object_of_an_odd_class_can_be_watched():
    class OddSearch(Search, metaclass=Odd):
        pass

    prof = Profiler([])
    search = OddSearch()
    assert prof.tool(search)("q") == "q, 3"
    assert (search.n, prof.failures["tool"]) == (1, 1)


def test_a_tool_loop_runs_a_watched_object():
    async def main(clock):
        model = ScriptedModel([[call("AsyncSearch", query="q")], "done"], seconds=0.0)
        search = AsyncSearch()
        result = await ToolLoop(model, [Profiler([], clock=clock).tool(search)], clock=clock).run("go")
        return search.n, result.record

    n, record = run_virtual(main)
    (one,) = record.tool_calls
    assert (n, one.name, one.status, one.duration_ns) == (1, "AsyncSearch", "ok", 300 * MS)
