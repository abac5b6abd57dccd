"""Agents of the user's own: their position in a load test, the strategy in their hands."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from profiler.anatomy import phases
from profiler.errors import TargetError, UsageError
from profiler.limits.gate import Gate
from profiler.load.agents import LoadedAgent, as_agent, load_agent
from profiler.load.context import AgentContext, LoopPosition
from profiler.load.runners import CustomAgent, placed
from profiler.loop.loop import ToolLoop
from profiler.loop.model import LimitedModel
from profiler.loop.tools import tool
from profiler.providers.endpoint import Endpoint
from profiler.records import LoopRecord, RoundRecord
from profiler.strategies import parse_strategy
from profiler.testing import ScriptedModel, call, run_virtual
from profiler.watch.loop import ObservedLoop
from profiler.watch.profiler import Profiler
from profiler.watch.rounds import HandedOver, handed_over
from tests.unit.statistics_data import loop

MS = 1_000_000

POSITION = LoopPosition(number=7, agent="a3", trial=2, process="worker 1", intended_ns=5)
MARKS = {"strategy": "semaphore:2", "number": 7, "agent": "a3", "trial": 2, "process": "worker 1"}
LIMITED = {**MARKS, "unlimited_calls": 0}


def frame(**changes: Any) -> LoopRecord:
    """The record of a call as a whole that saw no model request of its own."""
    return replace(loop(0), **{"id": "outer", "rounds": (), **changes})


def test_loop_that_the_profiler_watched_is_put_in_its_place() -> None:
    watched = replace(loop(0), id="outer", strategy="application")
    assert placed([watched], POSITION, "semaphore:2") == [replace(watched, **LIMITED, intended_ns=5)]


def test_loop_that_recorded_itself_is_not_counted_twice() -> None:
    own = replace(loop(0), id="own")
    assert placed([own, frame()], POSITION, "semaphore:2") == [replace(own, **LIMITED, intended_ns=5)]
    inner = replace(own, parent="outer")  # a profiler.loop of the user's inside ours
    assert placed([inner, frame()], POSITION, "semaphore:2") == [replace(own, **LIMITED, intended_ns=5)]


def test_agent_as_a_tool_stays_a_part_of_its_loop() -> None:
    nested = replace(loop(0), id="nested", parent="outer")
    whole = replace(loop(0), id="outer")
    kept = placed([nested, whole], POSITION, "semaphore:2")
    assert [(r.id, r.parent, r.intended_ns) for r in kept] == [("nested", "outer", None), ("outer", None, 5)]


def test_call_that_asked_no_model_still_counts() -> None:
    failed = frame(status="error", error_type="ValueError")
    assert placed([failed], POSITION, "gathered") == [
        replace(failed, **{**MARKS, "strategy": "gathered"}, intended_ns=5)
    ]


def factory(function: Any) -> LoadedAgent:
    return as_agent(function, "agents:make", factory=True)


def context(spec: str, sinks: Any = (), client: Any = "sdk") -> AgentContext:
    return AgentContext(
        provider="openai",
        endpoint=Endpoint.parse("http://127.0.0.1:1/v1"),
        tools_url="http://127.0.0.1:1",
        model=None,
        strategy=parse_strategy(spec).build(),
        prompt="Task {number}.",
        sinks=sinks,
        client=client,
    )


async def test_factory_has_its_model_made_with_the_client_that_was_asked_for() -> None:
    for client, kind in (("sdk", "OpenAIChat"), ("lean", "LeanModel")):
        given = context("gathered", client=client)
        models = []

        def make(ctx: AgentContext, models: list[Any] = models) -> Callable[[], None]:
            models.append(ctx.make_model())
            return lambda: None

        await factory(make).make(given)
        (model,) = models
        assert (type(model).__name__, model.model, model.provider) == (kind, "gpt-4o", "openai")
        await given.close()


async def test_client_that_an_agent_does_not_use_is_refused() -> None:
    async def agent(prompt: str) -> None: ...

    for plain in (True, False):
        loaded = as_agent(agent, "app:agent") if plain else factory(lambda ctx: agent)
        await loaded.make(context("gathered"))
        with pytest.raises(UsageError, match=r"^--client lean: (app:agent|agents:make) asks the model by"):
            await loaded.make(context("gathered", client="lean"))


def test_agent_of_one_s_own_can_heed_the_model_limit() -> None:
    model = ScriptedModel([])
    made = context("gathered")
    assert made.limited(model) is model
    gate = Gate("rate:5/s")
    made._model_gate = gate
    one, other = made.limited(model), made.limited(model)
    assert isinstance(one, LimitedModel)
    assert isinstance(other, LimitedModel)
    assert one.gate is other.gate is gate


def highest_concurrency(
    spec: str, body: Callable[[AgentContext, Callable[[], Any]], Any], agents: int
) -> int:
    """The most calls that ever ran at once when every agent makes four of 1 s."""
    running = most = 0

    async def call() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1

    async def main(clock: Callable[[], int]) -> None:
        given = context(spec)
        own = await CustomAgent.make(factory(lambda context: partial(body, context, call)), given, ())
        assert all(
            await asyncio.gather(
                *(own.run(replace(POSITION, agent=f"a{n}", number=n)) for n in range(agents))
            )
        )

    run_virtual(main)
    return most


async def through_limiter(given: AgentContext, call: Callable[[], Any]) -> None:
    async def one() -> None:
        async with given.limiter:
            await call()

    await asyncio.gather(*(one() for _ in range(4)))


async def executed(given: AgentContext, call: Callable[[], Any]) -> None:
    await given.execute(*[call] * 4)


@pytest.mark.parametrize("body", [through_limiter, executed])
@pytest.mark.parametrize(
    ("spec", "most"), [("sequential", 2), ("gathered", 8), ("semaphore:3", 3), ("semaphore:3@agent", 6)]
)
def test_strategy_holds_for_two_agents(spec: str, most: int, body: Any) -> None:
    assert highest_concurrency(spec, body, agents=2) == most


@pytest.mark.parametrize(
    ("spec", "phase_ms", "shortfall"),
    [("semaphore:1", {"queue": 300, "tools": 400}, "limiter"), ("gathered", {"tools": 200}, None)],
)
def test_callables_that_a_loop_of_one_s_own_hands_over_wait_in_the_queue(
    spec: str, phase_ms: dict[str, int], shortfall: str | None
) -> None:
    records: list[LoopRecord] = []

    async def main(clock: Callable[[], int]) -> None:
        given = context(spec)
        given.profiler = watching = Profiler([given.sink], clock=clock)

        @watching.tool
        async def inner() -> None:
            await asyncio.sleep(0.1)

        @watching.tool
        async def call() -> None:
            await asyncio.sleep(0.1)
            await inner()

        async def one_loop() -> None:
            observed = watching._loop.get()
            assert observed is not None
            observed.begin_round("openai", "m").ended_ns = clock()
            await given.execute(call, call)

        async def another_agent() -> None:
            gate = given.strategy.gate
            async with nullcontext() if gate is None else gate.slot():
                await asyncio.sleep(0.3)

        own = await CustomAgent.make(factory(lambda _: one_loop), given, [records.append])
        await asyncio.gather(another_agent(), own.run(POSITION))

    run_virtual(main)
    (round_,) = records[0].rounds
    assert {name: ns // MS for name, ns in phases(round_).items() if ns} == phase_ms
    assert round_.limit == parse_strategy(spec).limit
    assert round_.shortfall == shortfall
    assert [one.queued_ns == one.started_ns for one in round_.tool_calls if one.name == "inner"] == [True] * 2


class Tools:
    """What a callable of a loop of one's own can do: tools `a` and `b` of 0.2 s, one in a thread, a model."""

    def __init__(self, given: AgentContext, clock: Callable[[], int]) -> None:
        self.given = given
        given.profiler = watching = Profiler([given.sink], clock=clock)

        async def a() -> None:
            await asyncio.sleep(0.2)

        async def b() -> None:
            await asyncio.sleep(0.2)

        def quick() -> None: ...

        self.a, self.b, self.quick = watching.tool(a), watching.tool(b), watching.tool(quick)

    def model(self, *asked: str) -> None:
        observed = self.given.profiler._loop.get()
        assert observed is not None
        round_ = observed.begin_round("openai", "m")
        round_.ended_ns = observed.clock()
        round_.unclaimed += [(call(name), observed.clock()) for name in asked]


def handed(
    spec: str,
    *bodies: Callable[[Tools], Awaitable[Any]],
    held: float = 0.0,
    asked: Sequence[str] = (),
) -> LoopRecord:
    """The loop that hands `bodies` over at once, while another agent is in the limiter for `held` seconds."""
    records: list[LoopRecord] = []

    async def main(clock: Callable[[], int]) -> None:
        tools = Tools(context(spec), clock)

        async def one_loop() -> None:
            tools.model(*asked)
            await tools.given.execute(*(partial(body, tools) for body in bodies))
            assert handed_over.get() is None

        async def another_agent() -> None:
            gate = tools.given.strategy.gate
            async with nullcontext() if gate is None else gate.slot():
                await asyncio.sleep(held)

        own = await CustomAgent.make(factory(lambda _: one_loop), tools.given, [records.append])
        _, ended = await asyncio.gather(another_agent(), own.run(POSITION))
        assert ended

    run_virtual(main)
    return records[-1]


def waits(round_: RoundRecord) -> list[tuple[str, int, int]]:
    """(tool, queued, started), in milliseconds."""
    assert all(one.started_ns is not None for one in round_.tool_calls)
    return [(one.name, one.queued_ns // MS, (one.started_ns or 0) // MS) for one in round_.tool_calls]


def spent(round_: RoundRecord) -> dict[str, int]:
    return {name: ns // MS for name, ns in phases(round_).items() if ns}


async def pipeline(tools: Tools) -> None:
    await tools.a()
    await asyncio.sleep(0.2)
    await tools.b()


async def gathering(tools: Tools) -> None:
    await asyncio.gather(tools.a(), tools.a())
    await asyncio.sleep(0.2)
    await tools.b()


async def in_a_thread(tools: Tools) -> None:
    await asyncio.to_thread(tools.quick)
    await asyncio.sleep(0.2)
    await tools.b()


async def late(tools: Tools) -> None:
    await asyncio.sleep(0.2)
    await tools.b()


async def handing_on(tools: Tools) -> None:
    tools.given.strategy = parse_strategy("gathered").build()
    await tools.given.execute(tools.a)
    await asyncio.sleep(0.2)
    await tools.b()


async def sub_agent(tools: Tools) -> None:
    await asyncio.sleep(0.1)
    tools.model("a", "b")
    await tools.a()
    await tools.b()


async def model_then_tool(tools: Tools) -> None:
    await asyncio.sleep(0.1)
    tools.model()
    tools.quick()


@pytest.mark.parametrize("asked", [(), ("a", "b")])
def test_callable_that_nothing_held_did_not_wait(asked: Sequence[str]) -> None:
    (round_,) = handed("semaphore:2", pipeline, asked=asked).rounds
    assert waits(round_) == [("a", 0, 0), ("b", 400, 400)]
    assert spent(round_) == {"tools": 400, "unaccounted": 200}
    assert (round_.limit, round_.shortfall) == (2, None)


@pytest.mark.parametrize(
    ("body", "waited"),
    [
        (pipeline, [("a", 0, 300), ("b", 700, 700)]),
        (gathering, [("a", 0, 300), ("a", 300, 300), ("b", 700, 700)]),
        (in_a_thread, [("quick", 0, 300), ("b", 500, 500)]),
        (late, [("b", 200, 500)]),  # the 300 ms that it was held, not the 200 that it took itself
        (handing_on, [("a", 300, 300), ("b", 700, 700)]),
    ],
)
def test_callable_waits_in_the_limiter_with_its_first_call_alone(
    body: Any, waited: list[tuple[str, int, int]]
) -> None:
    (round_,) = handed("semaphore:1", body, held=0.3).rounds
    assert waits(round_) == waited


def test_callables_one_after_another_wait_from_when_both_were_handed_over() -> None:
    (round_,) = handed("sequential", pipeline, pipeline).rounds
    assert waits(round_) == [("a", 0, 0), ("b", 400, 400), ("a", 0, 600), ("b", 1000, 1000)]
    assert spent(round_) == {"tools": 800, "queue": 200, "unaccounted": 200}
    assert (round_.limit, round_.shortfall) == (1, None)  # as sequential allows


@pytest.mark.parametrize("body", [pipeline, late])
def test_limiter_prolongs_a_round_where_it_held_callables_that_it_would_have_let_run(body: Any) -> None:
    assert handed("semaphore:2", body, body).rounds[0].shortfall is None
    assert handed("gathered", body, body).rounds[0].shortfall is None
    assert handed("semaphore:2", body, body, held=0.3).rounds[0].shortfall == "limiter"
    assert handed("semaphore:1", body, body).rounds[0].shortfall is None
    assert handed("semaphore:1", body, body, held=0.1).rounds[0].shortfall == "limiter"


def test_rounds_of_an_agent_that_was_handed_over_have_no_limit() -> None:
    first, second = handed("semaphore:1", sub_agent, held=0.3).rounds
    assert (first.limit, second.limit, first.tool_calls) == (None, None, ())
    assert waits(second) == [("a", 400, 400), ("b", 400, 600)]  # as in any loop whose own code runs its calls


def test_callable_that_asks_a_model_first_has_no_tool_call_that_waited() -> None:
    first, second = handed("semaphore:1", model_then_tool, held=0.3, asked=("quick",)).rounds
    assert waits(first) == [("quick", 400, 400)]
    assert (first.limit, second.limit) == (1, None)


def test_call_that_was_not_ready_when_its_callable_was_handed_over_waits_from_when_it_was() -> None:
    observed = ObservedLoop(iter([0, 0, 12]).__next__, name="", strategy="semaphore:1", parent=None)
    observed.begin_round("openai", "m").unclaimed.append((call("a"), 5))
    token = handed_over.set(HandedOver(at_ns=4, released_ns=12, limit=1))
    try:
        begun = observed.begin_call("a", observed.match("a", {}))
    finally:
        handed_over.reset(token)
    assert (begun.ready_ns, begun.queued_ns, begun.started_ns) == (5, 5, 12)


def test_results_come_in_order_and_the_first_failure_after_all_have_ended() -> None:
    ended: list[int] = []

    async def call(n: int) -> int:
        await asyncio.sleep(4 - n)
        ended.append(n)
        if n % 2:
            raise ValueError(n)
        return n

    async def main(clock: Callable[[], int]) -> None:
        given = context("gathered")
        seen: list[Any] = []

        async def one_loop() -> None:
            seen.append((given.number, given.agent, given.prompt))
            seen.append(await given.execute(partial(call, 0), partial(call, 2)))
            await given.execute(*(partial(call, n) for n in range(4)))

        own = await CustomAgent.make(factory(lambda _: one_loop), given, ())
        assert not await own.run(POSITION)
        assert seen == [(7, "a3", "Task 7."), [0, 2]]
        assert isinstance(own.failure, ValueError)
        assert own.failure.args == (1,)
        assert sorted(ended) == [0, 0, 1, 2, 2, 3]

    run_virtual(main)


def test_loop_s_own_functions_are_refused_outside() -> None:
    with pytest.raises(UsageError, match="are of a loop"):
        _ = context("gathered").number
    assert context("gathered").base_url == "http://127.0.0.1:1"
    assert context("gathered").openai_url == "http://127.0.0.1:1/v1"


def test_first_loop_is_recorded_nowhere_and_has_to_work() -> None:
    taken: list[LoopRecord] = []

    async def main(clock: Callable[[], int]) -> None:
        async def one_loop() -> None:
            await asyncio.sleep(0)

        given = context("gathered")
        own = await CustomAgent.make(factory(lambda _: one_loop), given, [taken.append])
        await own.first(POSITION)
        assert taken == []
        await own.run(POSITION)
        assert [(r.number, r.status) for r in taken] == [(7, "ok")]

        async def fails() -> None:
            raise KeyError("x")

        broken = await CustomAgent.make(factory(lambda _: fails), given, [taken.append])
        with pytest.raises(TargetError, match="the agent's first loop failed: KeyError"):
            await broken.first(POSITION)

    run_virtual(main)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_app", "expected MODULE:FUNCTION"),
        ("no_such_module_here:make", "cannot import no_such_module_here"),
        ("json:make_agent", "json has no function make_agent"),
    ],
)
def test_factories_that_are_not_there(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_agent(spec)
    assert load_agent("json:dumps") is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("raise RuntimeError('at\\nonce')", "raises fails at import: RuntimeError: at\nonce"),
        ("raise SystemExit(3)", "raises fails at import: SystemExit: 3"),
        ("def make(:", "raises fails at import: SyntaxError: invalid syntax"),
    ],
)
def test_module_that_fails_at_import_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    (tmp_path / "raises.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=f"^--agent raises:make: {message}"):
        load_agent("raises:make")


def mixed(spec: str, body: Callable[[AgentContext, Tools], Awaitable[Any]]) -> list[LoopRecord]:
    """The records of one loop of an agent with watched tools, under a strategy."""
    records: list[LoopRecord] = []

    async def main(clock: Callable[[], int]) -> None:
        tools = Tools(context(spec), clock)

        async def one_loop() -> None:
            tools.model()
            await body(tools.given, tools)

        own = await CustomAgent.make(factory(lambda _: one_loop), tools.given, [records.append])
        assert await own.run(POSITION)

    run_virtual(main)
    return records


async def asks_nobody(given: AgentContext, tools: Tools) -> None:
    await asyncio.gather(tools.a(), tools.b(), tools.a())


async def asks_for_one(given: AgentContext, tools: Tools) -> None:
    async with given.slot("a"):
        await asyncio.create_task(tools.a())
    await asyncio.gather(tools.a(), tools.b())


async def asks_for_each(given: AgentContext, tools: Tools) -> None:
    await given.execute(tools.a, tools.b)
    async with given.limiter:
        await asyncio.to_thread(tools.quick)


async def own_loop(given: AgentContext, tools: Tools, strategy: Any = None) -> None:
    async def c() -> None:
        """A tool."""

    model = ScriptedModel([[call("c"), call("c")], "done"])
    await ToolLoop(model, [tool(c)], strategy, sinks=[given.sink], clock=given.profiler.recorder.clock).run(
        ""
    )


async def own_loop_that_asks(given: AgentContext, tools: Tools) -> None:
    await own_loop(given, tools, given.strategy)


@pytest.mark.parametrize(
    ("body", "unlimited"),
    [(asks_nobody, 3), (asks_for_one, 2), (asks_for_each, 0), (own_loop, 2), (own_loop_that_asks, 0)],
)
@pytest.mark.parametrize("spec", ["semaphore:2", "sequential", "adaptive", "rate:100/s", "gathered"])
def test_calls_that_go_around_the_strategy_are_counted(spec: str, body: Any, unlimited: int) -> None:
    records = mixed(spec, body)
    limited = spec != "gathered"
    counted = [record.unlimited_calls for record in records]
    assert sum(one or 0 for one in counted) == (unlimited if limited else 0)
    assert all((one is None) != limited for one in counted)


def test_calls_that_nobody_watched_went_around_a_strategy_that_was_not_asked() -> None:
    round_ = replace(loop(0).rounds[0], unobserved_calls=4)
    watched = replace(loop(0), id="outer", rounds=(round_,), unlimited_calls=0)
    assert placed([watched], POSITION, "adaptive", asked=False)[0].unlimited_calls == 4
    assert placed([watched], POSITION, "adaptive", asked=True)[0].unlimited_calls == 0
    # Where watched tools are held back, others went around; those of the last reply may never have run.
    several = replace(watched, rounds=(round_, round_))
    assert placed([several], POSITION, "adaptive", asked=True, held=True)[0].unlimited_calls == 4
