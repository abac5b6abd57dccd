"""Agents in a trial, on a virtual clock."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from profiler.arrivals import Arrivals
from profiler.load.context import LoopPosition
from profiler.load.health import Meter
from profiler.load.messages import Begin
from profiler.load.trial import RunningTrial, TrialAgent
from profiler.loop.ledger import current_ledger
from profiler.rundir import Spent
from profiler.testing import run_virtual

MS = 1_000_000


class Loops:
    """Runs loops that take `seconds` and end well, unless `fails`."""

    def __init__(self, clock: Callable[[], int], seconds: float, fails: bool = False) -> None:
        self.clock = clock
        self.seconds = seconds
        self.fails = fails
        self.started: list[tuple[int, LoopPosition]] = []
        self.ended: list[tuple[int, LoopPosition]] = []

    async def run(self, position: LoopPosition) -> bool:
        self.started.append((self.clock(), position))
        await asyncio.sleep(self.seconds)
        self.ended.append((self.clock(), position))
        return not self.fails

    async def close(self) -> None:
        pass

    @property
    def latencies(self) -> list[float]:
        return [(at - (position.intended_ns or 0)) / 1e9 for at, position in self.ended]


def agent(number: int = 0, **changes: Any) -> TrialAgent:
    return TrialAgent(f"a{number}", number, lambda: False, **changes)


def trial(
    clock: Callable[[], int],
    ask: Callable[[], None] = lambda: None,
    on_start: Callable[[int], None] = lambda lag_ns: None,
    **changes: Any,
) -> RunningTrial:
    fields = {"part": 0, "worker": 0, "workers": 1, "seed": 1, **changes}
    return RunningTrial(Begin(1, 0, strategy="gathered", **fields), ask, clock, on_start=on_start)


async def for_seconds(seconds: float, one: RunningTrial, *lives: Any) -> None:
    """Let agents live through a trial that closes after that long."""
    tasks = [asyncio.ensure_future(life) for life in lives]
    await asyncio.sleep(seconds)
    one.close()
    await asyncio.gather(*tasks)


def test_agent_of_a_closed_load_thinks_between_its_loops() -> None:
    async def main(clock: Callable[[], int]) -> None:
        lags: list[int] = []
        one, loops = trial(clock, on_start=lags.append, think_seconds=0.5), Loops(clock, 0.25)
        await for_seconds(2.0, one, one.run_agent(loops, agent()))
        assert [at // MS for at, _ in loops.started] == [0, 750, 1500]
        assert [position.intended_ns for _, position in loops.started] == [None] * 3
        assert (list(one.meter.schedule.samples or ()), lags) == ([0, 0], [0, 0])

    run_virtual(main)


def test_agents_of_a_closed_load_start_one_after_another() -> None:
    async def main(clock: Callable[[], int]) -> None:
        one, loops = trial(clock, spread_seconds=1.0), Loops(clock, 1.0)
        await for_seconds(1.9, one, *(one.run_agent(loops, agent(n)) for n in range(10)))
        first = sorted(at / 1e9 for at, _ in loops.started[:10])
        assert first[0] == 0.0
        assert max(b - a for a, b in itertools.pairwise([*first, 1.0])) < 0.2
        # From then on they stay as far apart: ten loops end in every second.
        assert len([at for at, _ in loops.ended if at < 2e9]) == pytest.approx(10, abs=1)

    run_virtual(main)


def test_loop_s_spending_counts_whatever_becomes_of_its_record() -> None:
    class Asks(Loops):
        async def run(self, position: LoopPosition) -> bool:
            ledger = current_ledger.get()
            assert ledger is not None
            ledger.sent()
            ledger.responded(200)
            return await super().run(position)

    async def main(clock: Callable[[], int]) -> None:
        one = trial(clock)
        await for_seconds(3.5, one, one.run_agent(Asks(clock, 1.0), agent()))
        assert one.begun == 4
        assert one.pulse().spent == Spent(0, 4, replies=4, unknown_replies=4)

    run_virtual(main)


def test_refused_agent_backs_off() -> None:
    async def main(clock: Callable[[], int]) -> None:
        one, loops = trial(clock), Loops(clock, 0.0, fails=True)
        await for_seconds(2.0, one, one.run_agent(loops, agent()))
        assert [at // MS for at, _ in loops.started] == [0, 100, 300, 700, 1500]

    run_virtual(main)


def test_arrivals_do_not_wait_for_completions() -> None:
    async def main(clock: Callable[[], int]) -> None:
        one = trial(clock, arrivals=Arrivals(10.0, 2, constant=True))
        loops = Loops(clock, 3.0)
        await for_seconds(0.95, one, *(one.run_agent(loops, agent(n)) for n in range(2)))
        assert [at // MS for at, _ in loops.started] == [100 * k for k in range(10)]
        assert [
            position.intended_ns // MS for _, position in loops.started if position.intended_ns is not None
        ] == [100 * k for k in range(10)]
        assert loops.latencies == pytest.approx([3.0] * 10)  # drained, after the trial closed
        assert (one.arrived, one.late, one.dropped, one.in_flight) == (10, 0, 0, 0)

    run_virtual(main)


def test_latency_of_a_capped_open_load_counts_from_when_loops_were_due() -> None:
    """10/s offered, 2 at once, 0.5 s each: 4/s served, so that the k-th is late by what piled up."""

    async def main(clock: Callable[[], int]) -> None:
        one = trial(clock, arrivals=Arrivals(10.0, 1, constant=True), max_in_flight=2)
        loops = Loops(clock, 0.5)
        await for_seconds(1.95, one, one.run_agent(loops, agent()))
        served = [0.5 * (k // 2 + 1) + 0.1 * (k % 2) for k in range(20)]
        assert loops.latencies == pytest.approx([end - 0.1 * k for k, end in enumerate(served)])
        assert (one.arrived, one.late, one.dropped, one.waiting) == (20, 18, 0, 0)

    run_virtual(main)


def test_arrivals_that_never_got_a_place_are_dropped() -> None:
    async def main(clock: Callable[[], int]) -> None:
        one = trial(clock, arrivals=Arrivals(10.0, 1, constant=True), max_in_flight=2)
        loops = Loops(clock, 60.0)
        life = asyncio.ensure_future(one.run_agent(loops, agent()))
        await asyncio.sleep(0.95)
        one.close()
        await asyncio.sleep(1.0)
        assert (one.in_flight, one.waiting) == (2, 8)
        life.cancel()
        with pytest.raises(asyncio.CancelledError):
            await life
        assert (one.arrived, one.late, one.dropped) == (10, 8, 8)
        assert (one.in_flight, one.waiting) == (0, 0)

    run_virtual(main)


def test_agent_that_joins_late_does_not_make_up_for_what_was_due_before() -> None:
    async def main(clock: Callable[[], int]) -> None:
        one = trial(clock, arrivals=Arrivals(2.0, 1, constant=True))
        loops = Loops(clock, 0.1)
        await asyncio.sleep(1.2)
        await for_seconds(1.0, one, one.run_agent(loops, agent(joins_late=True)))
        assert [at // MS for at, _ in loops.started] == [1500, 2000]

    run_virtual(main)


def test_agent_that_leaves_finishes_its_loop() -> None:
    async def main(clock: Callable[[], int]) -> None:
        one, loops = trial(clock), Loops(clock, 0.4)
        await one.run_agent(loops, TrialAgent("a", 0, lambda: clock() > 600 * MS))
        assert [at // MS for at, _ in loops.ended] == [400, 800]

    run_virtual(main)


def test_agent_waits_for_a_grant_and_begins_no_more_than_that() -> None:
    async def main(clock: Callable[[], int]) -> None:
        asked: list[int] = []
        one, loops = trial(clock, ask=lambda: asked.append(clock() // MS), limited=True), Loops(clock, 0.25)
        timer = asyncio.get_running_loop().call_later
        timer(0.1, one.grant, 3)
        timer(1.0, one.grant, 4)
        await for_seconds(2.0, one, *(one.run_agent(loops, agent(n)) for n in range(2)))
        assert sorted(at // MS for at, _ in loops.started) == [100, 100, 350, 1000]
        assert asked == [0, 350, 1000]  # once, whoever waits
        assert (one.begun, one.in_flight) == (4, 0)

    run_virtual(main)


def test_arrival_that_the_limit_refuses_never_arrived() -> None:
    async def main(clock: Callable[[], int]) -> None:
        one, loops = trial(clock, arrivals=Arrivals(10.0, 1, constant=True), limited=True), Loops(clock, 0.1)
        one.grant(3)
        await for_seconds(0.95, one, one.run_agent(loops, agent()))
        assert len(loops.started) == 3
        assert (one.arrived, one.dropped, one.begun) == (3, 0, 3)

    run_virtual(main)


def test_trial_that_drains_takes_no_samples_and_shows_no_lag_for_it() -> None:
    now = 10.0
    one = trial(lambda: 0)
    one.meter = Meter(clock=lambda: now)
    one.in_flight = 1
    now = 10.5
    assert one.pulse().state.lag_ns == 0
    now = 12.0
    assert one.pulse().state.lag_ns == 1_990_000_000  # samples ought to come, and none does
    one.open = False
    now = 14.0
    assert one.pulse().state.lag_ns == 0


def test_agents_begin_nothing_while_others_may_have_their_place_and_go_on_when_they_have_not() -> None:
    async def main(clock: Callable[[], int]) -> None:
        holds = True
        one = RunningTrial(Begin(1, 0, 0, "gathered", 0, 1, 1), clock=clock, holds=lambda: holds)
        loops = Loops(clock, 0.25)
        lives = [asyncio.ensure_future(one.run_agent(loops, agent(n))) for n in range(2)]
        await asyncio.sleep(0.6)
        holds = False  # two loops each have ended by 0.75 s, and nothing begins
        await asyncio.sleep(3.4)
        assert [at // MS for at, _ in loops.started] == [0, 0, 250, 250, 500, 500]
        assert (one.begun, one.in_flight) == (6, 0)
        holds = True
        one.go_on()
        await asyncio.sleep(0.1)
        assert [at // MS for at, _ in loops.started[6:]] == [4000, 4000]
        holds = False
        await asyncio.sleep(1.0)
        one.close()
        await asyncio.gather(*lives)
        assert one.begun == 8

    run_virtual(main)


def test_arrivals_that_nobody_lets_begin_before_the_end_count_as_none() -> None:
    async def main(clock: Callable[[], int]) -> None:
        plan = Begin(1, 0, 0, "gathered", 0, 1, 1, arrivals=Arrivals(4.0, 1, constant=True))
        one = RunningTrial(plan, clock=clock, holds=lambda: False)
        loops = Loops(clock, 0.25)
        await for_seconds(2.0, one, one.run_agent(loops, agent()))
        assert (one.begun, one.arrived, loops.started) == (0, 0, [])

    run_virtual(main)
