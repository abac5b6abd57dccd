"""What a watched tool returns decides how long its call lasts, and stays what it is to the application."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import inspect
import json
import re
import types
import warnings
import weakref
from collections.abc import Coroutine
from unittest.mock import AsyncMock

import pytest

from profiler import ToolLoop
from profiler.loop.model import CallRequest
from profiler.redaction import MOST_CHARACTERS
from profiler.testing import ScriptedModel, call, run_virtual
from profiler.watch.profiler import Profiler

MS = 1_000_000


def logged(function):
    """The decorator that everybody writes."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class Awaitable:
    """An object of one's own that can be awaited, as libraries have them."""

    def __init__(self, coroutine_function) -> None:
        self.function = coroutine_function

    def __await__(self):
        return self.function().__await__()

    def __len__(self) -> int:
        return 3


class Stream:
    """An async iterator of one's own, as SDKs have them for replies that stream."""

    def __init__(self, items) -> None:
        self.items = items
        self.closed = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        return await self.items.__anext__()

    async def close(self) -> None:
        self.closed = True


class Caller:
    def __init__(self, body) -> None:
        self.body = body

    async def __call__(self) -> str:
        return await self.body()


class Desk:
    def __init__(self, body) -> None:
        self.body = body

    async def ask(self) -> str:
        return await self.body()


def an_async_function(body):
    async def work():
        return await body()

    return work


def a_generator(body):
    async def work():
        yield "first"
        yield await body()

    return work


def a_coroutine_of_old(body):
    @types.coroutine
    def work():
        return (yield from body().__await__())

    return work


AWAITED = {
    "async function": an_async_function,
    "wrapped": lambda body: logged(an_async_function(body)),
    "wrapped twice": lambda body: logged(logged(an_async_function(body))),
    "partial": lambda body: functools.partial(an_async_function(body)),
    "callable object": Caller,
    "bound method": lambda body: Desk(body).ask,
    "wrapped method": lambda body: logged(Desk(body).ask),
    "task": lambda body: lambda: asyncio.ensure_future(body()),
    "gathered": lambda body: lambda: asyncio.gather(body()),
    "awaitable": lambda body: lambda: Awaitable(body),
    "types.coroutine": a_coroutine_of_old,
    "wrapped types.coroutine": lambda body: logged(a_coroutine_of_old(body)),
    "async function that returns a coroutine": lambda body: an_async_function(lambda: returning(body())),
}
STREAMED = {
    "async generator": a_generator,
    "wrapped async generator": lambda body: logged(a_generator(body)),
    "async function that returns one": lambda body: an_async_function(lambda: returning(a_generator(body)())),
}


async def returning(value):
    return value


async def taking(value):
    """Uses up whatever a tool gave: awaits it as often as it can be, or iterates over it."""
    while inspect.isawaitable(value):
        value = await value
    if hasattr(value, "__aiter__"):
        return [item async for item in value]
    return value


async def fine():
    await asyncio.sleep(0.3)
    return "r"


async def failing():
    await asyncio.sleep(0.3)
    raise ValueError("no")


def watched_call(make, body, use=taking, **options):
    """The record of the one call of a tool in a watched loop, and what `use` made of the tool's result."""
    records = []

    async def main(clock):
        prof = Profiler([records.append], clock=clock, **options)
        tool = prof.tool(make(body))
        with prof.loop() as loop:
            loop.begin_round("openai-chat", "m").ended_ns = clock()
            return await use(tool())

    result = run_virtual(main)
    (one,) = records[0].tool_calls
    return one, result


@pytest.mark.parametrize("kind", [*AWAITED, *STREAMED])
def test_a_call_lasts_until_what_it_returned_has_ended(kind):
    one, result = watched_call((AWAITED | STREAMED)[kind], fine)
    assert (one.duration_ns, one.status) == (300 * MS, "ok")
    assert result == (["first", "r"] if kind in STREAMED else ["r"] if kind == "gathered" else "r")


@pytest.mark.parametrize("kind", [*AWAITED, *STREAMED])
def test_what_it_raises_is_recorded_and_raised(kind):
    async def use(value):
        with pytest.raises(ValueError, match="no"):
            await taking(value)

    one, _ = watched_call((AWAITED | STREAMED)[kind], failing, use)
    assert (one.duration_ns, one.status, one.error_type) == (300 * MS, "error", "ValueError")


@pytest.mark.parametrize("kind", [*AWAITED, *STREAMED])
def test_a_cancellation_is_recorded(kind):
    async def use(value):
        task = asyncio.ensure_future(taking(value))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)  # a gathering future hears of its children one step later

    one, _ = watched_call((AWAITED | STREAMED)[kind], fine, use)
    assert (one.duration_ns, one.status, one.error_type) == (100 * MS, "cancelled", "cancelled")


def test_what_the_tool_returned_may_be_awaited_later():
    """Coroutines made at once and awaited in turn do not overlap."""
    records = []

    async def main(clock):
        prof = Profiler([records.append], clock=clock)
        tool = prof.tool(logged(an_async_function(fine)))
        with prof.loop() as loop:
            loop.begin_round("openai-chat", "m").ended_ns = clock()
            for made in [tool(), tool()]:
                await made

    run_virtual(main)
    first, second = records[0].tool_calls
    assert first.ended_ns == second.started_ns
    assert [first.duration_ns, second.duration_ns] == [300 * MS, 300 * MS]


def test_closed_early_is_ended_and_no_failure():
    async def some(stream):
        item = await anext(stream)
        await asyncio.sleep(0.2)
        await stream.aclose()
        return item

    one, first = watched_call(STREAMED["async generator"], fine, some)
    assert (first, one.duration_ns, one.status) == ("first", 200 * MS, "ok")
    one, _ = watched_call(STREAMED["wrapped async generator"], fine, some)
    assert (one.duration_ns, one.status) == (200 * MS, "ok")


def test_a_coroutine_that_is_closed_is_cancelled():
    async def use(coroutine):
        coroutine.send(None).cancel()
        coroutine.close()

    for kind in ("async function", "wrapped"):
        one, _ = watched_call(AWAITED[kind], fine, use)
        assert (one.status, one.error_type) == ("cancelled", "cancelled")


def test_a_stream_never_read_to_its_end_is_unfinished():
    async def use(stream):
        kept.append(stream)
        await anext(stream)
        await asyncio.sleep(0.1)

    kept = []
    one, _ = watched_call(STREAMED["async generator"], fine, use)
    assert (one.duration_ns, one.status, one.error_type) == (100 * MS, "cancelled", "unfinished")


# ── what the application gets ──────────────────────────────────────────────────────────────────


def checks(value):
    """What `inspect` and `asyncio` say of a value."""
    return {
        check.__name__: check(value)
        for check in (
            inspect.isawaitable,
            inspect.iscoroutine,
            inspect.isgenerator,
            inspect.isasyncgen,
            inspect.iscoroutinefunction,
            inspect.isgeneratorfunction,
            inspect.isasyncgenfunction,
            asyncio.iscoroutine,
            asyncio.isfuture,
        )
    }


def numbers():
    got = yield 1
    try:
        yield got
    except KeyError as error:
        yield str(error)
    return "end"


KINDS = {
    **AWAITED,
    **STREAMED,
    "generator": lambda _: numbers,
    "wrapped generator": lambda _: logged(numbers),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_passes_the_checks_that_it_passed(kind):
    async def main(clock):
        function = KINDS[kind](fine)
        prof = Profiler([], clock=clock)
        watched = prof.tool(function)
        assert checks(watched) == checks(function)
        bare, mine = function(), watched()
        assert checks(mine) == checks(bare)
        assert isinstance(mine, type(bare))
        if kind != "callable object":
            for name in ("__name__", "__qualname__"):
                assert getattr(mine, name, None) == getattr(bare, name, None)
        for one in (bare, mine):
            if asyncio.isfuture(one):
                await one
            elif inspect.iscoroutine(one):
                one.close()

    run_virtual(main)


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_that_it_does_not_take_are_refused_where_it_is_called(kind):
    """Models make up arguments, and programs catch the TypeError around the call, not around the await."""
    records = []

    async def main(clock):
        function = KINDS[kind](fine)
        prof = Profiler([records.append], clock=clock)
        watched = prof.tool(function, name="tool")
        with pytest.raises(TypeError) as bare:
            function(country="JP")
        with prof.loop() as loop:
            round_ = loop.begin_round("openai", "m")
            round_.unclaimed.append((CallRequest("c", "tool", '{"country": "JP"}'), clock()))
            round_.ended_ns = clock()
            with pytest.raises(TypeError) as mine:
                watched(country="JP")
        assert mine.value.args == bare.value.args
        assert (mine.value.__cause__, mine.value.__context__) == (None, None)
        assert set(prof.failures.values()) == {0}

    run_virtual(main)
    (one,) = records[0].tool_calls
    assert (one.id, one.status, one.error_type) == ("c", "error", "TypeError")


def test_what_only_says_that_it_is_a_coroutine_function_is_called_at_once():
    called = []

    async def main(clock):
        tool = AsyncMock(side_effect=lambda: called.append(1), __name__="tool")
        watched = Profiler([], clock=clock).tool(tool)
        assert inspect.iscoroutinefunction(watched)
        made = watched()
        assert (tool.call_count, tool.await_count, called) == (1, 0, [])
        await made
        assert (tool.call_count, tool.await_count, called) == (1, 1, [1])

    run_virtual(main)


def test_a_task_and_a_future_are_handed_on_as_they_are():
    async def main(clock):
        prof = Profiler([], clock=clock)
        task = asyncio.ensure_future(fine())
        pooled = concurrent.futures.Future()
        assert prof.tool(lambda: task)() is task
        assert prof.tool(lambda: pooled)() is pooled
        await task

    run_virtual(main)


def test_a_future_of_a_thread_pool_ends_its_call():
    records, pooled = [], concurrent.futures.Future()

    async def main(clock):
        prof = Profiler([records.append], clock=clock)
        tool = prof.tool(lambda: pooled)
        with prof.loop() as loop:
            loop.begin_round("openai-chat", "m").ended_ns = clock()
            tool()
            await asyncio.sleep(0.2)
            pooled.set_exception(OSError())
            await asyncio.sleep(0.2)

    run_virtual(main)
    (one,) = records[0].tool_calls
    assert (one.duration_ns, one.status, one.error_type) == (200 * MS, "error", "OSError")


def test_a_failed_future_that_nobody_looks_at_is_still_reported_by_asyncio():
    reported = []

    async def main(clock):
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: reported.append(context["message"])
        )
        tool = Profiler([], clock=clock).tool(lambda: asyncio.ensure_future(failing()))
        tool()
        await asyncio.sleep(1)
        gc.collect()

    run_virtual(main)
    assert reported == ["Task exception was never retrieved"]


@pytest.mark.parametrize("kind", ["async function", "wrapped"])
def test_a_coroutine_that_is_never_awaited_is_warned_of_once_under_its_name(kind):
    async def main(clock):
        Profiler([], clock=clock).tool(AWAITED[kind](fine))()
        gc.collect()

    gc.collect()  # what another test left open complains before
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_virtual(main)
    assert [str(warning.message) for warning in caught] == [
        "coroutine 'an_async_function.<locals>.work' was never awaited"
    ]


def test_a_call_that_is_never_awaited_has_not_run():
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")

        async def use(coroutine):
            del coroutine
            await asyncio.sleep(0.1)

        one, _ = watched_call(AWAITED["wrapped"], fine, use)
    assert (one.duration_ns, one.status, one.error_type) == (0, "cancelled", "unfinished")


def test_the_coroutine_itself_stays_usable_where_the_application_keeps_it():
    async def main(clock):
        kept = []

        def tool():
            kept.append(fine())
            return kept[0]

        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            Profiler([], clock=clock).tool(tool)()
            gc.collect()
        return await kept[0]

    assert run_virtual(main) == "r"


def test_an_awaitable_object_is_itself_in_all_else():
    async def main(clock):
        thing = Awaitable(fine)
        given = Profiler([], clock=clock).tool(lambda: thing)()
        assert isinstance(given, Awaitable)
        assert (len(given), given.function) == (3, fine)
        given.mark = 1
        assert thing.mark == 1
        assert weakref.ref(given)() is given
        assert (await given, await given) == ("r", "r")  # what can be awaited twice still can

    run_virtual(main)


class Unawaitable(Awaitable):
    __await__ = None  # type: ignore[assignment]


def test_an_object_that_says_it_cannot_be_awaited_is_handed_on_as_it_is():
    thing = Unawaitable(fine)
    assert Profiler([]).tool(lambda: thing)() is thing


class Request(Coroutine):
    """A coroutine of a library's own that can be entered too, as the requests of HTTP clients."""

    status = 200

    def __init__(self, body) -> None:
        self.coroutine = body()

    def send(self, value):
        return self.coroutine.send(value)

    def throw(self, *error):
        return self.coroutine.throw(*error)

    def close(self) -> None:
        self.coroutine.close()

    def __await__(self):
        return self.coroutine.__await__()

    async def __aenter__(self):
        return await self.coroutine

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0.1)


async def entering(value):
    async with value as entered:
        await asyncio.sleep(0.1)
    return entered


@pytest.mark.parametrize(
    ("use", "ms"),
    [
        (taking, 300),
        (asyncio.ensure_future, 300),
        (lambda value: asyncio.wait_for(value, 1.0), 300),
        (entering, 500),
    ],
)
def test_a_request_of_an_http_client_can_still_be_awaited_and_entered(use, ms):
    async def used(value):
        assert (isinstance(value, Request), value.status) == (True, 200)
        assert (asyncio.iscoroutine(value), inspect.iscoroutine(value)) == (True, False)
        return await use(value)

    one, result = watched_call(lambda body: lambda: Request(body), fine, used)
    assert (result, one.duration_ns, one.status) == ("r", ms * MS, "ok")


def test_what_fails_inside_an_entered_request_is_recorded():
    async def use(value):
        with pytest.raises(KeyError):
            async with value:
                raise KeyError

    one, _ = watched_call(lambda body: lambda: Request(body), fine, use)
    assert (one.duration_ns, one.status, one.error_type) == (400 * MS, "error", "KeyError")
    one, _ = watched_call(lambda body: lambda: Request(body), failing, raising(ValueError, entering))
    assert (one.duration_ns, one.status, one.error_type) == (300 * MS, "error", "ValueError")


def raising(kind, use):
    async def used(value):
        with pytest.raises(kind):
            await use(value)

    return used


def a_context_manager(body):
    @contextlib.asynccontextmanager
    async def work():
        value = await body()
        yield value
        await asyncio.sleep(0.1)

    return work


def test_a_call_that_returns_a_context_manager_ends_when_that_is_left():
    one, result = watched_call(a_context_manager, fine, entering)
    assert (result, one.duration_ns, one.status) == ("r", 500 * MS, "ok")
    one, _ = watched_call(a_context_manager, failing, raising(ValueError, entering))
    assert (one.duration_ns, one.status, one.error_type) == (300 * MS, "error", "ValueError")

    async def inside(value):
        with value as got:
            await asyncio.sleep(0.2)
            raise KeyError(got)

    made = contextlib.contextmanager(lambda: (yield 1))
    one, _ = watched_call(lambda _: made, fine, raising(KeyError, inside))
    assert (one.duration_ns, one.status, one.error_type) == (200 * MS, "error", "KeyError")


@pytest.mark.parametrize("kind", ["generator", "wrapped generator"])
def test_a_generator_keeps_its_protocol(kind):
    def use(make):
        got = []

        def outer():
            got.append((yield from make()))

        steps = outer()
        got += [next(steps), steps.send("sent"), steps.throw(KeyError("k"))]
        got += list(steps)
        closed = make()
        next(closed)
        closed.close()
        got.append(list(closed))
        return got

    records = []

    async def main(clock):
        function = KINDS[kind](None)
        prof = Profiler([records.append], clock=clock)
        with prof.loop() as loop:
            loop.begin_round("openai-chat", "m").ended_ns = clock()
            assert use(prof.tool(function)) == use(function) == [1, "sent", "'k'", "end", []]

    run_virtual(main)
    assert [one.status for one in records[0].tool_calls] == ["ok", "ok"]


def test_a_failing_generator_is_an_error():
    records = []

    def broken():
        yield 1
        raise ValueError

    async def main(clock):
        prof = Profiler([records.append], clock=clock)
        with prof.loop() as loop:
            loop.begin_round("openai-chat", "m").ended_ns = clock()
            with pytest.raises(ValueError):  # noqa: PT011
                list(prof.tool(broken)())

    run_virtual(main)
    assert [(one.status, one.error_type) for one in records[0].tool_calls] == [("error", "ValueError")]


def test_between_two_items_of_a_generator_the_loop_is_not_inside_the_tool():
    from profiler.loop.tools import current_call

    inside = []

    def items():
        inside.append(current_call.get().tool)
        yield 1
        inside.append(current_call.get().tool)

    async def main(clock):
        prof = Profiler([], clock=clock)
        with prof.loop() as loop:
            loop.begin_round("openai-chat", "m").ended_ns = clock()
            for _ in prof.tool(items)():
                assert current_call.get() is None

    run_virtual(main)
    assert inside == ["items", "items"]


@pytest.mark.parametrize("wrap", [classmethod, staticmethod])
def test_methods_of_a_class_may_be_wrapped_from_outside(wrap):
    prof = Profiler([])

    class Tools:
        @prof.tool
        @wrap
        def search(*args):
            return args[-1]

    assert Tools.search("x") == Tools().search("x") == "x"


def test_a_name_of_its_own_finds_the_request_of_that_name():
    records = []

    async def main(clock):
        prof = Profiler([records.append], clock=clock)
        tool = prof.tool(prof.tool(an_async_function(fine)), name="get_weather")
        with prof.loop() as loop:
            round_ = loop.begin_round("openai-chat", "m")
            round_.ended_ns = clock()
            round_.unclaimed.append((CallRequest("1", "get_weather", "{}"), clock()))
            await tool()

    run_virtual(main)
    assert [(one.id, one.name) for one in records[0].tool_calls] == [("1", "get_weather")]


def test_recorded_results_are_those_of_what_was_returned():
    for kind in ("wrapped", "task", "awaitable"):
        assert watched_call(AWAITED[kind], fine, record_content=True)[0].result == "r"
    assert watched_call(a_generator, fine, record_content=True)[0].result == '["first","r"]'


# ── nothing of the watching reaches the application ────────────────────────────────────────────


class Hostile:
    """Everything that may be asked of a value fails."""

    def __eq__(self, other):
        raise RuntimeError("no ==")

    __hash__ = None

    def __repr__(self):
        raise RuntimeError("no repr")

    @property
    def __class__(self):
        raise RuntimeError("no class")


def numpy_array():
    import numpy

    return numpy.arange(4)


@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("make", [Hostile, numpy_array, lambda: float("nan"), lambda: "\ud800", object])
def test_no_argument_or_result_disturbs_a_tool(make, content):
    records = []

    async def main(clock):
        prof = Profiler([records.append], clock=clock, record_content=content)
        tool = prof.tool(lambda x: x)
        value = make()
        with prof.loop() as loop:
            round_ = loop.begin_round("openai-chat", "m")
            round_.ended_ns = clock()
            for requested in ("[0, 1, 2, 3]", '{"x": [0, 1, 2, 3]}', '{"x": "y"}', '{"x": NaN}', "null", "{"):
                round_.unclaimed.append((CallRequest("1", "<lambda>", requested), clock()))
                assert tool(value) is value
                assert tool(x=value) is value

    run_virtual(main)
    assert [one.status for one in records[0].tool_calls] == ["ok"] * 12


def laughs():
    """Few objects, of which a text would be longer than any memory."""
    one: object = "ha"
    for _ in range(60):
        one = [one, one]
    return one


@pytest.mark.parametrize(
    ("make", "beginning"),
    [
        (
            lambda: list(range(300_000)),
            json.dumps(list(range(2_000)), separators=(",", ":"))[:MOST_CHARACTERS],
        ),
        (lambda: {"page": "<p>" * 500_000}, '{"page":"' + ("<p>" * 2_000)[: MOST_CHARACTERS - 9]),
        (lambda: {n: {"n": (n, n)} for n in range(200_000)}, '{"0":{"n":[0,0]},"1":{"n":[1,1]},'),
        (lambda: frozenset([1]), "[1]"),
        (laughs, "[" * 60 + '"ha","ha"],["ha","ha"]],'),
    ],
)
def test_a_result_of_any_size_is_recorded_as_its_beginning(make, beginning):
    result = make()
    one, got = watched_call(lambda _: lambda: result, fine, use=returning, record_content=True)
    assert got is result
    kept, _, more = one.result.partition("…")
    assert kept.startswith(beginning)
    if kept != "[1]":
        assert len(kept) == MOST_CHARACTERS
        assert re.fullmatch(r" \(at least \d+ more characters\)", more)


def test_recording_a_result_uses_up_no_iterator_in_it():
    async def use(value):
        return list(value["rows"])

    one, rows = watched_call(
        lambda body: lambda: {"rows": (n for n in (1, 2))}, fine, use, record_content=True
    )
    assert (rows, one.result) == ([1, 2], "<dict>")


@pytest.mark.parametrize("function", [len, dict, print, max, "text".upper, type])
def test_functions_written_in_c_can_be_watched(function):
    arguments = ([1],) if function in (len, max, type, dict) else ()
    if function is dict:
        arguments = ({"a": 1},)
    assert Profiler([]).tool(function)(*arguments) == function(*arguments)


# ── the same tools in a ToolLoop ───────────────────────────────────────────────────────────────


def told(function, **options):
    """The record of a tool's one call in a `ToolLoop`, and what the model was told."""

    async def main(clock):
        function.__name__ = "work"
        model = ScriptedModel([[call("work")], "done"], seconds=0.0)
        return await ToolLoop(model, [function], clock=clock, record_content=True, **options).run("go")

    result = run_virtual(main)
    (one,) = result.record.tool_calls
    return one


def function_of(kind, body):
    made = (AWAITED | STREAMED)[kind](body)

    @functools.wraps(made)
    def work():
        return made()

    return work


@pytest.mark.parametrize("kind", [kind for kind in (*AWAITED, *STREAMED) if kind not in ("task", "gathered")])
def test_tool_loop_awaits_what_a_tool_returns(kind):
    one = told(function_of(kind, fine))
    assert (one.status, one.result) == ("ok", '["first","r"]' if kind in STREAMED else "r")
    assert one.duration_ns >= 300 * MS
    one = told(function_of(kind, failing))
    assert (one.status, one.error_type, one.result) == ("error", "ValueError", "Error: ValueError: no")


def test_tool_loop_collects_the_items_of_generators():
    def work():
        yield "a"
        yield {"b": 1}

    assert told(work).result == '["a",{"b":1}]'
    assert told(logged(work)).result == '["a",{"b":1}]'


class Pages:
    async def __aiter__(self):
        yield "first"
        yield await fine()


def test_tool_loop_collects_what_can_be_iterated_over_asynchronously():
    one = told(functools.partial(Pages))
    assert (one.duration_ns, one.status, one.result) == (300 * MS, "ok", '["first","r"]')


def test_tool_loop_does_not_tell_the_model_of_a_context_manager():
    one = told(a_context_manager(fine))
    assert (one.status, one.error_type) == ("error", "TypeError")
    assert "enter it in the tool" in one.result


def test_tool_loop_awaits_a_future_of_a_thread_pool():
    def work():
        future = concurrent.futures.Future()
        future.set_result("r")
        return future

    assert told(work).result == "r"


@pytest.mark.parametrize("kind", [fine, a_generator(fine), concurrent.futures.Future])
def test_tool_loop_does_not_tell_the_model_of_what_is_still_to_be_awaited(kind):
    value = kind()

    def work():
        return {"result": [value]}

    one = told(work)
    if asyncio.iscoroutine(value):
        value.close()
    assert (one.status, one.error_type) == ("error", "TypeError")
    assert "is no result: await it" in one.result


class Counting:
    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, n: int = 1) -> str:
        self.calls += n
        return "counted"

    def reset(self) -> None:
        self.calls = 0

    @property
    def costly(self) -> str:
        raise RuntimeError("asks a server")


def test_a_callable_object_and_a_cache_keep_their_methods():
    profiler = Profiler(sinks=[])
    counting = Counting()
    watched = profiler.tool(counting)
    assert asyncio.run(watched(n=2)) == "counted"
    assert counting.calls == 2
    watched.reset()
    assert counting.calls == 0
    assert watched.__annotations__ == {}

    cached = profiler.tool(functools.lru_cache(lambda n=1: n + 1))
    assert [cached(1), cached(1)] == [2, 2]
    assert cached.cache_info().hits == 1
    cached.cache_clear()
    assert cached.cache_info().hits == 0


def test_an_async_iterator_is_handed_on_as_it_is():
    stream = Stream(a_generator(fine)())
    _, given = watched_call(lambda body: lambda: stream, fine, returning)
    assert given is stream


def begun(generator):
    next(generator)
    return generator


def test_a_generator_that_has_begun_is_handed_on_as_it_is():
    def steps():
        got = yield 1
        yield got

    async def use(generator):
        return generator.send(5)

    _, used = watched_call(lambda body: lambda: begun(steps()), fine, use)
    assert used == 5


def test_an_async_generator_that_has_begun_is_handed_on_as_it_is():
    async def steps():
        got = yield 1
        yield got

    async def started():
        generator = steps()
        await anext(generator)
        return generator

    async def use(coroutine):
        return await (await coroutine).asend(5)

    _, used = watched_call(lambda body: started, fine, use)
    assert used == 5


def test_what_a_callable_object_computes_when_asked_is_not_asked_for():
    class Asking(Caller):
        @functools.cached_property
        def connection(self):
            raise AssertionError("asked")

        def close(self):
            return "closed"

    tool = Profiler([]).tool(Asking(fine), name="ask")
    assert tool.close() == "closed"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("no"), "error"),
        (KeyboardInterrupt(), "error"),
        (SystemExit(3), "error"),
        (asyncio.CancelledError("why"), "cancelled"),
        (GeneratorExit(), "cancelled"),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_whatever_ends_a_loop_leaves_it_as_it_came(asynchronous, error, status):
    records = []
    prof = Profiler([records.append])

    async def ended():
        async with prof.loop():
            raise error

    def sync_ended():
        with prof.loop():
            raise error

    with pytest.raises(type(error)) as raised:
        ended().send(None) if asynchronous else sync_ended()
    assert raised.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    assert [one.status for one in records] == [status]


class OddFuture:
    """Says that it is a future, and fails when it is asked whether it is done."""

    _asyncio_future_blocking = False

    def done(self):
        raise ValueError


def test_a_result_that_fails_when_it_is_looked_at_is_handed_on_as_it_is():
    thing = OddFuture()
    prof = Profiler([])
    assert prof.tool(lambda: thing)() is thing
    assert prof.failures == {"loop": 0, "request": 0, "tool": 1}
