"""Whatever a tool is given, returns or raises, a watched one gets, returns and raises the same objects."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from profiler.loop.model import CallRequest
from profiler.watch.profiler import Profiler

SEED = 20261129


class Hostile:
    """Whatever is done with it fails, and is counted."""

    asked = 0

    def fails(self, *arguments: Any) -> Any:
        Hostile.asked += 1
        raise RuntimeError("hostile")

    __eq__ = __ne__ = __lt__ = __hash__ = __repr__ = __str__ = __bool__ = __len__ = __iter__ = fails  # type: ignore
    __contains__ = __getitem__ = __getattr__ = __format__ = __int__ = __index__ = __call__ = fails
    __class__ = property(fails)  # type: ignore


class Own(str):
    __slots__ = ()
    __eq__ = __str__ = __len__ = __repr__ = Hostile.fails  # type: ignore
    __hash__ = str.__hash__


class OwnDict(dict):
    __getitem__ = __iter__ = __contains__ = __len__ = keys = items = get = __bool__ = Hostile.fails  # type: ignore


class Slotted:
    __slots__ = ("never", "set")

    def __init__(self) -> None:
        self.set = 1


class Query(BaseModel):
    city: str = "Tokyo"


class Bad(Exception):
    """Its own text and attributes fail."""

    __str__ = __repr__ = Hostile.fails  # type: ignore

    @property
    def status_code(self) -> int:
        raise RuntimeError

    response = status_code


def array_of_objects() -> Any:
    one = numpy.empty(1, dtype=object)
    one[0] = Hostile()
    return one


def recursive() -> Any:
    one: dict[str, Any] = {}
    one.update(itself=one, listed=[one])
    return one


VALUES: list[Callable[[], Any]] = [
    *(lambda: None, lambda: True, lambda: 0, lambda: 2**5000, lambda: float("nan"), lambda: -0.0),
    *(
        lambda: "Tokyo",
        lambda: "",
        lambda: "\ud800",
        lambda: "x" * 100_000,
        lambda: b"\xff",
        lambda: "Error: 429",
    ),
    *(list, lambda: [1, [2]], lambda: {"city": "Tokyo"}, lambda: {1: {2}}, lambda: (1, 2), lambda: {1, "a"}),
    *(
        Hostile,
        lambda: [Hostile()],
        lambda: {"x": Hostile()},
        lambda: Own("Tokyo"),
        lambda: OwnDict(city="Tokyo"),
    ),
    *(lambda: numpy.zeros((2, 2)), lambda: numpy.float64(1), array_of_objects),
    *(recursive, Slotted, Query, lambda: Query, object, lambda: ...),
    *(lambda: iter([1]), lambda: {"status": "error", "error": Hostile()}, lambda: {"isError": True}),
    *(lambda: ValueError("returned"), Bad, lambda: print, lambda: sys, lambda: type("T", (), {})),
]

GIVEN: list[Callable[[], Any]] = [*VALUES, lambda: (n for n in range(3)), lambda: asyncio.sleep]
"""Arguments. A generator that is returned is watched to its end, by another one in its place."""

REQUESTED = (
    "{}",
    "",
    "null",
    '{"a": "Tokyo"}',
    '{"a": [1, [2]]}',
    '{"a": {"city": "Tokyo"}}',
    '{"a": NaN}',
    '{"b": 1}',
)

RAISED: list[Callable[[], BaseException]] = [
    *(
        ValueError,
        lambda: KeyError("k"),
        lambda: TimeoutError("t"),
        Bad,
        lambda: OSError(5, "io"),
        StopIteration,
    ),
    *(
        lambda: StopAsyncIteration(3),
        lambda: ExceptionGroup("g", [ValueError(1), Bad()]),
        RecursionError,
        MemoryError,
    ),
    *(KeyboardInterrupt, lambda: SystemExit(3), asyncio.CancelledError, GeneratorExit),
]

KINDS = ("sync", "async", "generator", "async generator", "object", "partial", "method", "coroutine of a def")


def made(kind: str, act: Callable[[Any, Any], Any], items: list[Any]) -> Any:
    """A tool of a kind that yields the items, if it is a generator, and does the act with its arguments."""

    def sync(a: Any = None, **more: Any) -> Any:
        return act(a, more)

    async def coroutine(a: Any = None, **more: Any) -> Any:
        await asyncio.sleep(0)
        return act(a, more)

    def generator(a: Any = None, **more: Any) -> Any:
        yield from items
        return act(a, more)

    async def agenerator(a: Any = None, **more: Any) -> Any:
        for item in items:
            yield item
        act(a, more)

    class Called:
        def __call__(self, a: Any = None, **more: Any) -> Any:
            return act(a, more)

        def method(self, a: Any = None, **more: Any) -> Any:
            return act(a, more)

    return {
        "sync": sync,
        "async": coroutine,
        "generator": generator,
        "async generator": agenerator,
        "object": Called(),
        "partial": functools.partial(sync),
        "method": Called().method,
        "coroutine of a def": lambda a=None, **more: coroutine(a, **more),
    }[kind]


async def used(kind: str, tool: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
    """Everything that a program is given by a tool: objects, which are compared by identity."""
    found: list[Any] = []
    try:
        value = tool(*arguments, **named)
        found.append("called")  # what raises before this has raised where it was called
        if kind in ("async", "coroutine of a def"):
            found.append(await value)
        elif kind == "generator":
            while True:
                try:
                    found.append(next(value))
                except StopIteration as done:
                    found.append(done.value)
                    break
        elif kind == "async generator":
            async for item in value:
                found += [item]
        else:
            found.append(value)
    except BaseException as error:
        found.append(error)
    return found


def same(one: Any, other: Any) -> bool:
    """The same object, or equal exceptions that Python itself made of another one on its way."""
    if one is other:
        return True
    if type(one) is RuntimeError and type(other) is RuntimeError:  # "coroutine raised StopIteration"
        return one.args == other.args and one.__cause__ is other.__cause__
    return False


async def one_call(prof: Profiler, rng: random.Random, number: int) -> tuple[str, bool]:
    """One generated call, bare and watched; asserts that they are alike. (kind, whether it raised)."""
    kind = rng.choice(KINDS)
    value, raises = rng.choice(VALUES)(), rng.random() < 1 / 3
    error = rng.choice(RAISED)()
    given_now: list[tuple[Any, Any]] = []

    def act(a: Any, more: Any) -> Any:
        given_now.append((a, more))
        if raises:
            raise error
        return value

    items = [rng.choice(VALUES)() for _ in range(rng.randint(0, 2))]
    first = rng.choice(GIVEN)()
    named = {
        name: rng.choice(GIVEN)() for name in rng.sample(["b", "name", "function", "args"], rng.randint(0, 2))
    }
    arguments: tuple[Any, ...] = (first,)
    if rng.random() < 0.5:
        arguments, named = (), {"a": first, **named}
    bare = made(kind, act, items)
    expected = await used(kind, bare, arguments, named)
    if isinstance(error, BaseException):
        error.__traceback__ = error.__context__ = None
    watched = prof.tool(bare, name="tool")
    outside = rng.random() < 0.1
    with prof.loop() as loop:
        round_ = loop.begin_round("openai", "m")
        for each in range(rng.randint(0, 3)):
            round_.unclaimed.append((CallRequest(f"c{each}", "tool", rng.choice(REQUESTED)), loop.clock()))
        if not outside:
            found = await used(kind, watched, arguments, named)
    if outside:
        found = await used(kind, watched, arguments, named)
    what = f"call {number}, {kind}, raises {raises and type(error).__name__}"
    assert len(found) == len(expected), what
    assert all(map(same, found, expected)), what
    assert len(given_now) == 2, what
    (a, more), (again, more_again) = given_now
    assert a is again, what
    assert list(more) == list(more_again), what
    assert all(more[name] is more_again[name] for name in more), what
    return kind, raises


async def many(count: int, seed: int, prof: Profiler) -> tuple[Counter[str], Counter[str]]:
    calls: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for number in range(count):
        kind, raises = await one_call(prof, random.Random(f"{seed} {number}"), number)
        calls[kind] += 1
        failed[kind] += raises
    return calls, failed


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.parametrize("record_content", [False, True])
def test_ten_thousand_tool_calls_are_as_they_are_without_watching(record_content):
    prof = Profiler(sinks=[], record_content=record_content)
    Hostile.asked = 0
    calls, failed = asyncio.run(many(5_000, SEED + record_content, prof))
    lines = [f"{kind:20} {calls[kind]:6,} calls, {failed[kind]:6,} raised" for kind in sorted(calls)]
    alike = (
        f"{sum(calls.values()):,} tool calls of seed {SEED + record_content}: {sum(failed.values()):,} raised"
    )
    sys.stdout.write("\n".join([*lines, f"{alike}, all alike; watching failed: {prof.failures}", ""]))
    assert set(prof.failures.values()) == {0}
    if not record_content:  # which asks for a text of everything
        assert Hostile.asked == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=200)
@given(arguments=st.dictionaries(st.text(max_size=6), JSON, max_size=4), asked=JSON, result=JSON)
def test_any_arguments_come_through_as_they_are(arguments, asked, result):
    prof = Profiler(sinks=[])
    given_now = []

    def tool(*args, **named):
        given_now.append((args, named))
        return result

    watched = prof.tool(tool)
    with prof.loop() as loop:
        round_ = loop.begin_round("openai", "m")
        for text in (json.dumps(asked), json.dumps(arguments)):
            round_.unclaimed.append((CallRequest("c", "tool", text), loop.clock()))
        assert watched(**arguments) is result
        assert watched(*arguments.values()) is result
    assert list(given_now[0][1]) == list(arguments)
    assert all(given_now[0][1][name] is value for name, value in arguments.items())
    assert all(one is other for one, other in zip(given_now[1][0], arguments.values(), strict=True))
    assert set(prof.failures.values()) == {0}
