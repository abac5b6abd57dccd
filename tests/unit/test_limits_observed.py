"""A limiter learns from what is observed of a call, also where the application hides how it ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import httpx
import pytest

from profiler.limits.gate import Gate, current_slot
from profiler.load.agents import as_agent
from profiler.load.context import AgentContext, LoopPosition
from profiler.load.runners import CustomAgent
from profiler.loop.loop import ToolLoop
from profiler.loop.tools import tool
from profiler.providers.endpoint import Endpoint
from profiler.records import LoopRecord
from profiler.strategies import parse_strategy
from profiler.testing import ScriptedModel, call, run_virtual
from profiler.watch.profiler import Profiler

SERVED = 4
"""Calls that the server of these tests serves at once; it refuses those above."""

Clock = Callable[[], int]
Body = Callable[["Service"], Awaitable[Any]]


class Refused(Exception):
    def __init__(self) -> None:
        super().__init__("429 Too Many Requests")
        request = httpx.Request("GET", "http://tool")
        self.response = httpx.Response(429, request=request)


class Service:
    """A tool's server, and the ways in which applications call it."""

    def __init__(self, given: AgentContext) -> None:
        self.given = given
        self.inside = 0
        self.watched = given.profiler.tool(self.look_up)
        self.watched_response = given.profiler.tool(self.response)
        self.watched_text = given.profiler.tool(self.text)

    async def look_up(self) -> str:
        if self.inside >= SERVED:
            raise Refused
        self.inside += 1
        try:
            await asyncio.sleep(0.3)
            return "found"
        finally:
            self.inside -= 1

    async def response(self) -> httpx.Response:
        try:
            await self.look_up()
        except Refused as error:
            return error.response
        return httpx.Response(200)

    async def text(self) -> str:
        try:
            return await self.look_up()
        except Refused as error:
            return f"Error: {error}"

    async def slow_above(self) -> None:
        """The server answers late where it has too many."""
        self.inside += 1
        try:
            await asyncio.sleep(0.3 if self.inside <= SERVED else 5.0)
        finally:
            self.inside -= 1


async def swallowed(service: Service) -> Any:
    try:
        return await service.watched()
    except Refused as error:
        return {"error": repr(error)}


async def said_otherwise(service: Service) -> Any:
    try:
        return await service.watched()
    except Refused:
        raise RuntimeError("the tool failed") from None


async def returned_response(service: Service) -> Any:
    return await service.watched_response()


async def returned_text(service: Service) -> Any:
    return await service.watched_text()


async def in_a_task(service: Service) -> Any:
    return await asyncio.gather(asyncio.create_task(service.watched()), return_exceptions=True)


async def own_timeout(service: Service) -> Any:
    try:
        await asyncio.wait_for(service.given.profiler.tool(service.slow_above)(), 1.0)
    except TimeoutError:
        return {"error": "late"}


def executed(given: AgentContext, one: Callable[[], Awaitable[Any]]) -> Awaitable[Any]:
    return given.execute(*[one] * 6)


async def limited(given: AgentContext, one: Callable[[], Awaitable[Any]]) -> None:
    async def held() -> None:
        async with given.slot("look_up"):
            await one()

    await asyncio.gather(*(held() for _ in range(6)), return_exceptions=True)


def limits_over_time(body: Body, through: Any, loops: int = 30) -> tuple[list[int], list[LoopRecord]]:
    """The adaptive limit after each loop of five agents that make six calls in each, and the records."""
    limits: list[int] = []
    records: list[LoopRecord] = []

    async def main(clock: Clock) -> None:
        strategy = parse_strategy("adaptive").build(clock=clock)
        given = AgentContext(
            provider="openai",
            endpoint=Endpoint.parse("http://127.0.0.1:1"),
            tools_url="http://127.0.0.1:1",
            model=None,
            strategy=strategy,
            prompt="",
            sinks=(),
        )
        given.profiler = Profiler([given.sink], clock=clock)
        service = Service(given)

        async def one_loop() -> None:
            observed = given.profiler._loop.get()
            assert observed is not None
            observed.begin_round("openai", "m").ended_ns = clock()
            with contextlib.suppress(RuntimeError):
                await through(given, partial(body, service))
            limits.append(strategy.limit or 0)
            assert current_slot.get() is None

        own = await CustomAgent.make(
            as_agent(lambda _: one_loop, "agents:make", factory=True), given, [records.append]
        )

        async def agent(number: int) -> None:
            for _ in range(loops):
                await own.run(LoopPosition(number, f"a{number}", 0, "w"))

        await asyncio.gather(*(agent(number) for number in range(5)))

    run_virtual(main)
    return limits, records


@pytest.mark.parametrize("through", [executed, limited])
@pytest.mark.parametrize(
    "body", [swallowed, said_otherwise, returned_response, returned_text, in_a_task], ids=lambda b: b.__name__
)
def test_limit_follows_refusals_that_the_application_hides(body: Body, through: Any) -> None:
    limits, records = limits_over_time(body, through)
    late = limits[len(limits) // 2 :]
    assert max(late) <= SERVED + 1
    assert min(late) >= SERVED // 2
    calls = [call.error_type for record in records[len(records) // 2 :] for call in record.tool_calls]
    assert set(calls) <= {None, "http_429"}
    assert 0 < calls.count("http_429") < 0.15 * len(calls)  # it tries one more now and then


@pytest.mark.parametrize("through", [executed, limited])
def test_limit_follows_timeouts_of_the_application(through: Any) -> None:
    limits, records = limits_over_time(own_timeout, through, loops=60)
    assert max(limits[len(limits) // 2 :]) <= 3 * SERVED  # five agents would take 30
    assert {c.status for record in records for c in record.tool_calls} == {"ok", "cancelled"}


class Kept(Exception):
    pass


def signal_after(*outcomes: Any, leaves: BaseException | None = None) -> str:
    """The signal of a pass in which watched calls ended so, and which an exception leaves."""

    async def main(clock: Clock) -> str:
        watching = Profiler([], clock=clock)
        gate = Gate("semaphore:1", clock=clock)

        @watching.tool
        async def tried(outcome: Any) -> Any:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        slot = gate.slot()
        with pytest.raises(type(leaves)) if leaves is not None else watching.loop():
            async with slot:
                for outcome in outcomes:
                    await asyncio.gather(tried(outcome), return_exceptions=True)
                if leaves is not None:
                    raise leaves
        return slot.signal

    return run_virtual(main)


@pytest.mark.parametrize(
    ("outcomes", "leaves", "signal"),
    [
        (["found"], None, "ok"),
        ([], None, "ok"),
        ([Refused(), "found"], None, "rejected"),  # a retry of its own: the server refused all the same
        ([ValueError(), "found"], None, "unknown"),
        ([TimeoutError(), Refused(), ValueError()], None, "rejected"),
        ([Refused()], Kept(), "rejected"),
        (["found"], Kept(), "unknown"),
        ([asyncio.CancelledError()], None, "timeout"),  # cancelled from inside, and the pass went on
        ([asyncio.CancelledError()], asyncio.CancelledError(), "unknown"),  # the pass itself was cancelled
        ([{"is_error": True}], None, "unknown"),
        ([{"error": "no such city"}], None, "unknown"),
    ],
)
def test_most_telling_of_what_was_observed_counts(
    outcomes: list[Any], leaves: BaseException | None, signal: str
) -> None:
    assert signal_after(*outcomes, leaves=leaves) == signal


def test_retry_after_of_a_refusal_that_was_swallowed_holds_the_others() -> None:
    async def main(clock: Clock) -> float:
        watching, gate = Profiler([], clock=clock), Gate("semaphore:9", clock=clock, seed=1)

        @watching.tool
        async def refused() -> httpx.Response:
            return httpx.Response(429, headers={"retry-after": "5"})

        async with gate.slot():
            await refused()
        async with gate.slot():
            return clock() / 1e9

    assert 5.0 <= run_virtual(main) <= 6.0


def looped(strategy: Any, function: Any, clock: Clock, calls: int = 6) -> ToolLoop:
    model = ScriptedModel([[call(function.name) for _ in range(calls)], "done"])
    return ToolLoop(model, [function], strategy, clock=clock)


def test_own_loop_learns_from_failures_that_a_tool_returns() -> None:
    async def main(clock: Clock) -> tuple[int | None, list[tuple[str, str | None]], list[str]]:
        strategy = parse_strategy("adaptive").build(clock=clock)

        @tool
        async def look_up() -> dict[str, Any]:
            """Look it up."""
            return {"error": "429 Too Many Requests"}

        result = await looped(strategy, look_up, clock).run("go")
        calls = [(c.status, c.error_type) for c in result.record.tool_calls]
        return strategy.limit, calls, [m["content"] for m in result.messages if m["role"] == "tool"]

    limit, calls, results = run_virtual(main)
    assert limit == 4  # half of 8, the deepest cut, and no other in the same epoch
    assert calls == [("error", "http_429")] * 6
    assert results == ['{"error":"429 Too Many Requests"}'] * 6  # the model reads what the tool said


def test_limiter_around_a_whole_loop_learns_what_the_loop_turned_into_results() -> None:
    async def main(clock: Clock) -> str:
        @tool
        async def look_up() -> str:
            """Look it up."""
            raise Refused

        slot = Gate("semaphore:1", clock=clock).slot()
        async with slot:
            await looped(None, look_up, clock).run("go")
        return slot.signal

    assert run_virtual(main) == "rejected"
