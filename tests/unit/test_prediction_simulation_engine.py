"""The engine against production, run in virtual time on the same work, and against queueing theory."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from profiler import ToolLoop, tool
from profiler.arrivals import Arrivals
from profiler.limits.retries import RetryRule, RetryTimes
from profiler.load.context import LoopPosition
from profiler.load.messages import Begin
from profiler.load.runners import BuiltInAgent
from profiler.load.trial import RunningTrial, TrialAgent
from profiler.loop.model import CallRequest, Reply
from profiler.prediction.quotas.finding import Announced, Limit, QuotaFinding
from profiler.prediction.servers.calls import Rule
from profiler.prediction.simulation.engine import Simulated, simulate, simulate_recorded
from profiler.prediction.simulation.load import Chain, RecordedTrial, SimulatedLoad, Trials
from profiler.prediction.simulation.work import CallWork, LoopWork, RoundWork, Server, System
from profiler.records import LoopRecord
from profiler.strategies import parse_strategy
from profiler.testing import run_virtual

TOOLS = ("alpha", "beta")
REFUSAL_NS = 5_000_000


def tape(seed: int, loops: int = 400, *, rounds: int = 2, fan_out: int = 4) -> list[LoopWork]:
    """Loops with durations that never tie."""
    draw = random.Random(seed)

    def nanoseconds(median: float, sigma: float) -> int:
        return int(median * math.exp(draw.gauss(0, sigma)) * 1e9) + 1

    def calls() -> tuple[CallWork, ...]:
        return tuple(
            CallWork(draw.randrange(len(TOOLS)), nanoseconds(0.4, 0.8))
            for _ in range(draw.randint(1, fan_out))
        )

    return [
        LoopWork((*(RoundWork(nanoseconds(0.3, 0.3), calls()) for _ in range(rounds)), RoundWork(10**8)))
        for _ in range(loops)
    ]


def in_order(work: Sequence[LoopWork]) -> Callable[[int, int], LoopWork]:
    """The loops one after another, whoever begins them."""
    loops = iter(work)
    return lambda now_ns, agent: next(loops)


def system(rule: Rule, retry_after_ns: int | None = None, mcp: str = "") -> System:
    """`mcp`: the name of the MCP server that runs the first tool."""
    servers = tuple(Server(name, rule, REFUSAL_NS, retry_after_ns) for name in TOOLS)
    return System(TOOLS, servers, (0, 1), Server("the model", Rule("none")), (mcp, ""))


class Refused(Exception):
    status = 429

    def __init__(self, retry_after: float | None) -> None:
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}


class RealServer:
    """A server of one tool, in plain asyncio: shares nothing with the engine."""

    def __init__(self, rule: Rule, retry_after_ns: int | None) -> None:
        self.rule = rule
        self.inside = 0
        self.room = asyncio.Semaphore(rule.capacity or 1)
        self.retry_after = None if retry_after_ns is None else retry_after_ns / 1e9

    async def serve(self, seconds: float) -> None:
        if self.rule.kind == "refuse" and self.inside >= (self.rule.capacity or 1):
            await asyncio.sleep(REFUSAL_NS / 1e9)
            raise Refused(self.retry_after)
        self.inside += 1
        try:
            if self.rule.kind == "queue":
                async with self.room:
                    await asyncio.sleep(seconds)
            else:
                await asyncio.sleep(seconds)
        finally:
            self.inside -= 1


class TapeModel:
    """A model that asks for the calls of one loop's work."""

    provider = model = "m"

    def __init__(self, work: LoopWork) -> None:
        self.rounds = iter(work.rounds)

    def conversation(self, prompt: Any) -> list[Any]:
        return [prompt]

    def render_tools(self, tools: Any) -> list[Any]:
        return list(tools)

    def results(self, results: Any) -> list[Any]:
        return [one.content for one in results]

    async def request(self, messages: Any, tools: Any, options: Any, probe: Any) -> Reply:
        work = next(self.rounds)
        await asyncio.sleep(work.service_ns / 1e9)
        calls = tuple(
            CallRequest(f"c{place}", TOOLS[one.tool], json.dumps({"nanoseconds": one.service_ns}))
            for place, one in enumerate(work.calls)
        )
        return Reply("" if calls else "done", calls, [{}], "tool_calls" if calls else "stop", "r", 1, 1)


class Runner:
    """Runs the loops of a tape with the production loop, under one strategy."""

    def __init__(
        self,
        spec: str,
        rule: Rule,
        retry_after_ns: int | None,
        work: Sequence[LoopWork],
        clock: Any,
        seed: str,
        mcp: str = "",
    ) -> None:
        self.work, self.clock = work, clock
        self.begun: list[int] = []
        self.records: list[LoopRecord] = []
        self.strategy = parse_strategy(spec).build(clock=clock)
        gate = self.strategy.gate
        if gate is not None:
            gate._random = random.Random(seed)
        self.tools = [
            self._tool(name, RealServer(rule, retry_after_ns), mcp if name == TOOLS[0] else "")
            for name in TOOLS
        ]

    def _tool(self, name: str, server: RealServer, mcp: str) -> Any:
        async def call(nanoseconds: int) -> str:
            """A tool."""
            await server.serve(nanoseconds / 1e9)
            return "r"

        call.__name__ = name
        made = tool(call)
        made.server = mcp
        return made

    async def run(self, position: LoopPosition) -> bool:
        work = self.work[len(self.begun)]  # in the order in which loops begin, as the engine takes them
        self.begun.append(position.number)
        loop = ToolLoop(
            TapeModel(work), self.tools, self.strategy, clock=self.clock, sinks=[self.records.append]
        )
        return await BuiltInAgent(loop, "go").run(position)

    async def close(self) -> None:
        pass


def really(
    spec: str,
    rule: Rule,
    work: Sequence[LoopWork],
    *,
    users: int,
    seconds: float,
    retry_after_ns: int | None = None,
    arrivals: Arrivals | None = None,
    max_in_flight: int | None = None,
    seed: str = "1",
    spread: float = 1.0,
    mcp: str = "",
) -> list[tuple[int, int, bool]]:
    """(due, ended, good) of every loop, in the order of their ends."""

    async def main(clock: Callable[[], int]) -> list[LoopRecord]:
        plan = Begin(
            1, 0, 0, spec, 0, 1, 1, arrivals=arrivals, max_in_flight=max_in_flight, spread_seconds=spread
        )
        trial = RunningTrial(plan, clock=clock)
        runner = Runner(spec, rule, retry_after_ns, work, clock, seed, mcp)
        agents = [TrialAgent(f"a{n}", n, lambda: False) for n in range(users)]
        tasks = [asyncio.ensure_future(trial.run_agent(runner, agent)) for agent in agents]
        await asyncio.sleep(seconds + (spread if arrivals is None else 0.0))
        trial.close()
        await asyncio.gather(*tasks)
        return runner.records

    records = run_virtual(main)
    return sorted(((one.due_ns, one.ended_ns, one.good) for one in records), key=lambda one: one[1])


def simulated(
    spec: str,
    rule: Rule,
    work: Sequence[LoopWork],
    *,
    users: int,
    seconds: float,
    retry_after_ns: int | None = None,
    arrivals: Arrivals | None = None,
    max_in_flight: int | None = None,
    seed: str = "1",
    spread: float = 1.0,
    mcp: str = "",
) -> Simulated:
    load = SimulatedLoad(users, arrivals, max_in_flight, spread_seconds=spread)
    return simulate(
        system(rule, retry_after_ns, mcp),
        parse_strategy(spec),
        load,
        in_order(work),
        Trials(seconds, drain_seconds=300.0),
        seed=seed,
    )


def loops_of(run: Simulated) -> list[tuple[int, int, bool]]:
    one = run.trials[0]
    return sorted(zip(one.due, one.ended, one.good, strict=True), key=lambda loop: loop[1])


NONE, REFUSES, QUEUES = Rule("none"), Rule("refuse", 6), Rule("queue", 6)


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ("sequential", NONE),
        ("gathered", NONE),
        ("semaphore:5", NONE),
        ("semaphore:2@agent", NONE),
        ("semaphore:4@tool", NONE),
        ("semaphore:alpha=3", NONE),
        ("semaphore:2@agent+semaphore:9+semaphore:5@tool", NONE),
        ("rate:8/s", NONE),
        ("rate:8/s,burst=1+semaphore:3", NONE),
        ("adaptive", NONE),
        ("gathered", REFUSES),
        ("sequential", REFUSES),
        ("semaphore:8", REFUSES),
        ("adaptive", REFUSES),
        ("adaptive:2+rate:20/s", REFUSES),
        ("gathered", QUEUES),
        ("adaptive", QUEUES),
    ],
)
def test_loops_end_when_those_of_the_production_loop_do(spec: str, rule: Rule) -> None:
    work = tape(3)
    real = really(spec, rule, work, users=8, seconds=20.0)
    found = loops_of(simulated(spec, rule, work, users=8, seconds=20.0))
    assert len(real) > 15
    assert [good for _, _, good in found] == [good for _, _, good in real]
    # The virtual event loop counts in floats of seconds, the engine in whole nanoseconds.
    assert [end / 1e9 for _, end, _ in found] == pytest.approx([end / 1e9 for _, end, _ in real], abs=2e-6)


@pytest.mark.parametrize("most", [None, 3])
def test_open_load_arrives_waits_and_ends_as_the_real_one(most: int | None) -> None:
    work, arrivals = tape(5), Arrivals(3.0, 4)
    real = really("semaphore:6", NONE, work, users=4, seconds=20.0, arrivals=arrivals, max_in_flight=most)
    # A trial's arrivals are drawn from seed/block/worker.
    run = simulated(
        "semaphore:6", NONE, work, users=4, seconds=20.0, arrivals=arrivals, max_in_flight=most, seed="1"
    )
    found = loops_of(run)
    assert len(real) > 40
    for place in (0, 1):
        mine, theirs = ([one[place] / 1e9 for one in loops] for loops in (found, real))
        assert mine == pytest.approx(theirs, abs=2e-6)


def test_limit_of_an_mcp_server_holds_its_tools_alone() -> None:
    spec, work = "semaphore:2@server+semaphore:9", tape(4)
    real = really(spec, QUEUES, work, users=8, seconds=20.0, mcp="archive")
    found = loops_of(simulated(spec, QUEUES, work, users=8, seconds=20.0, mcp="archive"))
    elsewhere = loops_of(simulated(spec, QUEUES, work, users=8, seconds=20.0))
    assert len(real) > 15
    assert [end / 1e9 for _, end, _ in found] == pytest.approx([end / 1e9 for _, end, _ in real], abs=2e-6)
    assert len(elsewhere) > len(found)  # without a server the limit is nobody's


@pytest.mark.parametrize("spec", ["semaphore:8", "semaphore:3@agent+semaphore:9", "adaptive", "rate:12/s"])
def test_wait_after_a_refusal_is_the_gate_s(spec: str) -> None:
    """Retry-After holds the calls of a tool back, each for a random while more: the same draws in order."""
    work = tape(7)
    asked = {"users": 6, "seconds": 15.0, "retry_after_ns": 2 * 10**9, "seed": "the same source"}
    rule = Rule("refuse", 3)
    real = really(spec, rule, work, **asked)  # type: ignore[arg-type]
    found = loops_of(simulated(spec, rule, work, **asked))  # type: ignore[arg-type]
    assert any(not good for _, _, good in real)
    assert [good for _, _, good in found] == [good for _, _, good in real]
    assert [end / 1e9 for _, end, _ in found] == pytest.approx([end / 1e9 for _, end, _ in real], abs=2e-6)


def arriving(chains: tuple[Chain, ...], quota: QuotaFinding, retry: RetryRule) -> Simulated:
    """Loops that arrive when their chains say, at a model with a quota."""
    trial = RecordedTrial(chains, True, 0, 6.0, (-1,), period_ns=10**12)
    return simulate_recorded(
        system(NONE),
        parse_strategy("gathered"),
        SimulatedLoad(len(chains)),
        [trial],
        60.0,
        quota=quota,
        retry=retry,
    )


def test_model_s_quota_refuses_and_the_sdk_tries_again_as_its_rule_says() -> None:
    """Loops of one request, 0.25 s after each other, at a bucket of 2 that gets one a second."""
    rate, burst, lasts, gap, tried = 1.0, 2.0, 0.5, 0.25, 3
    arrivals = [0.1 + gap * place for place in range(20)]
    # The bucket, requests and retries as plain arithmetic: nothing of it is the engine's.
    level, at = burst, 0.0
    expected = []
    waiting = [(due, place, 1) for place, due in enumerate(arrivals)]
    while waiting:
        waiting.sort()
        now, place, attempt = waiting.pop(0)
        level, at = min(burst, level + (now - at) * rate), now
        if level >= 1:
            level -= 1
            expected.append((now + lasts, True))
        elif attempt == tried:
            expected.append((now + 0.002, False))
        else:
            asked = math.ceil((1 - level) / rate * 1000) / 1000
            waiting.append((now + 0.002 + asked, place, attempt + 1))
    quota = QuotaFinding((Limit("requests", 60 * rate, "given", burst=burst, met=True),), Announced("exact"))
    chains = tuple(
        Chain(0, (LoopWork((RoundWork(int(lasts * 1e9)),)),), (round(due * 1e9),), (True,))
        for due in arrivals
    )
    run = arriving(chains, quota, RetryRule("openai", retries=tried - 1))
    one = run.trials[0]
    assert run.refused > 10
    assert set(one.ok) == {False, True}
    # A wait is announced in whole milliseconds, after the bucket's own nanosecond of rounding.
    assert list(one.ok) == [ok for _, ok in sorted(expected)]
    assert [end / 1e9 for end in one.ended] == pytest.approx([end for end, _ in sorted(expected)], abs=0.004)


def test_those_told_the_same_moment_come_back_one_after_another() -> None:
    """Four requests at a bucket of one that gets one in 100 ms."""
    ms = 10**6
    quota = QuotaFinding((Limit("requests", 600.0, "given", burst=1.0, met=True),), Announced("exact"))
    chains = tuple(Chain(0, (LoopWork((RoundWork(50 * ms),)),), (place * ms,), (True,)) for place in range(4))

    times = RetryTimes(late=(3 * ms,) * 2, send_gap=(2 * ms,) * 2, refusal=(5 * ms,) * 2, notice_gap=(ms, ms))
    run = arriving(chains, quota, RetryRule("openai", retries=2, times=times))
    one = run.trials[0]
    # The first passes at 0. The others come at 1, 2 and 3, and hear at 6, 7 and 8 that they are to wait 100,
    # 99 and 98 ms (rounded up): all until 106. They are sent at 109, 111 and 113. The second passes. The last
    # two hear at 116 and 118 to wait until 215, and are sent at 218, which passes, and at 220: for the third
    # time in vain.
    ended = sorted(zip((round(end / ms) for end in one.ended), one.ok, strict=True))
    assert ended == [(50, True), (159, True), (225, False), (268, True)]


def test_client_is_late_with_a_call_that_no_longer_loads_the_server() -> None:
    """Two calls of 1 s at a server of one, each noticed half a second late."""
    calls = (CallWork(0, 10**9, client_ns=5 * 10**8),) * 2
    work = LoopWork((RoundWork(10**8, calls, client_ns=2 * 10**8), RoundWork(0)))

    def ended(spec: str) -> float:
        loops = in_order([work, *itertools.repeat(LoopWork((RoundWork(10**12),)), 9)])
        load = SimulatedLoad(1)
        run = simulate(
            system(Rule("queue", 1)), parse_strategy(spec), load, loops, Trials(10.0, drain_seconds=0.0)
        )
        return run.trials[0].ended[0] / 1e9

    assert ended("gathered") == pytest.approx(0.3 + 2.5)
    assert ended("semaphore:1") == pytest.approx(0.3 + 3.0)  # its place is free only when it was noticed
    assert ended("sequential") == pytest.approx(0.3 + 3.0)


@pytest.mark.parametrize(("kind", "capacity"), [("queue", 1), ("share", 1), ("queue", 3), ("refuse", 4)])
def test_open_load_agrees_with_queueing_theory(kind: Any, capacity: int) -> None:
    """M/M/c and M/G/1-PS mean times in the system; Erlang's B for the share that is refused."""
    rate, service = 0.6 * capacity, 1.0
    draw = random.Random(11)

    def loops(now_ns: int, agent: int) -> LoopWork:
        return LoopWork((RoundWork(0, (CallWork(0, int(draw.expovariate(1 / service) * 1e9)),)),))

    load = SimulatedLoad(1, Arrivals(rate, 1))
    run = simulate(system(Rule(kind, capacity)), parse_strategy("gathered"), load, loops, Trials(30_000.0))
    one = run.trials[0]
    offered = rate * service
    terms = [offered**k / math.factorial(k) for k in range(capacity + 1)]
    if kind == "refuse":
        assert run.refused / run.attempts == pytest.approx(terms[-1] / sum(terms) / 2, rel=0.05)
        return
    waiting = terms[-1] / (1 - offered / capacity)  # Erlang's C
    waiting /= sum(terms[:-1]) + waiting
    expected = service + waiting * service / (capacity - offered)
    mean = sum(end - due for due, end in zip(one.due, one.ended, strict=True)) / len(one.due) / 1e9
    assert mean == pytest.approx(expected, rel=0.06)


def test_sharing_server_gives_each_call_its_part() -> None:
    """Two calls at a server of one: the first has it alone for a second, then they share it."""
    calls = (CallWork(0, 2 * 10**9), CallWork(0, 10**9, after_ns=10**9))
    work = [LoopWork((RoundWork(0, calls), RoundWork(0)))]
    run = simulate(
        system(Rule("share", 1)),
        parse_strategy("gathered"),
        SimulatedLoad(1),
        in_order([*work, *itertools.repeat(LoopWork((RoundWork(10**12),)), 9)]),
        Trials(10.0, drain_seconds=0.0),
    )
    # 1 s of the first is done at 1 s; then both need one more second at half the speed: 3 s.
    assert run.trials[0].ended[0] == pytest.approx(3 * 10**9, abs=10)


def test_loops_that_do_not_end_are_cut_off_after_the_drain() -> None:
    work = in_order([LoopWork((RoundWork(100 * 10**9),))] * 9)
    run = simulate(
        system(NONE), parse_strategy("gathered"), SimulatedLoad(3), work, Trials(5.0, 2, drain_seconds=2.0)
    )
    assert [(one.interrupted, one.ok, one.ended) for one in run.trials] == [
        (3, [False] * 3, [7 * 10**9] * 3),
        (3, [False] * 3, [14 * 10**9] * 3),
    ]


def test_same_seed_gives_the_same_events() -> None:
    runs = [simulated("adaptive", REFUSES, tape(9), users=12, seconds=20.0) for _ in range(2)]
    assert runs[0] == runs[1]
