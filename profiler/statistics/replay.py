"""Replays a finished run with one thing changed. The results are estimates, and labelled so.

The loops of each trial are replayed from their recorded intervals: the model request, the tool phase
under the strategy's rule, and what lies between them; an agent pauses between two loops for as long as
it did. Limiters are replayed first come, first served, over all agents that share one, so that a faster
tool also shortens the waits of others. Durations are assumed not to change with the load that the change
causes, so estimates against a server at its quota are too good.

An estimate is the measured quantile times (replay with the change / replay without it), so that the
errors of the replay itself cancel; `replay_error` says how large they were.

Loops of an open load that waited for a place (`--max-in-flight`) would have started sooner, had those
before them been faster; here they start when they were recorded to. So where arrivals waited nothing is
estimated.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from profiler.records import LoopRecord, RoundRecord
from profiler.rundir import Run, Trial
from profiler.statistics.table import Ints
from profiler.strategies import StrategySpec

CALLS_PER_TRIAL = 10_000
"""Tool calls of a trial that are replayed; later loops are left out, which bounds time and memory."""

REPLAY_TOLERANCE = 0.10
"""Where the replay without a change misses the measured median by a larger share, nothing is estimated."""

WAIT_SHARE = 0.05
"""A loop waited for a place when it started later than due by more than this share of the median latency."""
WAITED_SHARE = 0.01
"""Nothing is estimated where more than this share of the loops waited for a place."""

ChangeKind = Literal["tool", "first_token", "limiter"]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to be different: a tool or the first token twice as fast, or the limiter gone."""

    kind: ChangeKind
    tool: str | None = None

    @property
    def words(self) -> str:
        """`with get_weather twice as fast`."""
        if self.kind == "tool":
            return f"with {self.tool} twice as fast"
        return "with the first token twice as fast" if self.kind == "first_token" else "without the limiter"


@dataclass(frozen=True, slots=True)
class Estimated:
    """A quantile of the loop in seconds: as measured, and as estimated under the change."""

    measured: float
    estimated: float


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """One change to one strategy under one load. `replay_error` is |replay / measured - 1| at p50."""

    strategy: str
    users: int
    change: Change
    p50: Estimated
    p95: Estimated
    loops: int
    replay_error: float


# What is replayed. All times are nanoseconds.


@dataclass(frozen=True, slots=True)
class _Call:
    tool: str
    release: int  # from the start of the tool phase; negative for a call that started eagerly
    wait: int
    duration: int
    after_previous: int  # from the end of the call before it (the first: from its release)


@dataclass(frozen=True, slots=True)
class _Round:
    before: int  # from the start of the round to the tool phase (or the end of a round without one)
    token: int  # the part of it until the first token of the last attempt; 0 if not observed
    calls: tuple[_Call, ...]
    after: int  # from the end of the last call


@dataclass(frozen=True, slots=True)
class _Loop:
    start: int
    due: int
    rounds: tuple[_Round, ...]
    outside: int  # time outside every round
    wall: int  # from when it was due
    counts: bool  # it was due inside the window, and was answered


@dataclass(frozen=True, slots=True)
class _Chain:
    """Successive loops of one agent, and the pause before each; None: it starts when it was recorded to."""

    process: str
    loops: list[_Loop]
    pauses: list[int | None]


def counterfactuals(
    run: Run, records: Iterable[LoopRecord], tools: Sequence[str] = ()
) -> tuple[Counterfactual, ...]:
    """Every change that applies to every strategy of the run.

    `tools` names the tools to try. Records are streamed with one trial in memory at a time (trials do
    not overlap, so that records of one trial are neighbours), of each its first `CALLS_PER_TRIAL` calls.
    Left out are strategies that this version cannot replay, whose replay is off by more than
    `REPLAY_TOLERANCE` or whose arrivals `waited_for_a_place`, and changes without effect (no first token
    was observed, there is no limiter).
    """
    trials = {trial.index: trial for trial in run.trials}
    changes = [*(Change("tool", tool) for tool in tools), Change("first_token"), Change("limiter")]
    # Per strategy and load, the wall times as measured, replayed, and replayed under each change.
    walls: dict[tuple[str, int], list[list[int]]] = {}
    waits: dict[tuple[str, int], list[int]] = {}
    for index, group in groupby(records, key=lambda record: record.trial):
        trial = None if index is None else trials.get(index)
        if trial is None or not run.strategy(trial.strategy).replayable:
            continue
        spec = run.strategy(trial.strategy)
        chains = _chains(trial, group, open_load=run.load.model == "open")
        measured = [loop.wall for chain in chains for loop in chain.loops if loop.counts]
        replayed = (_replay(chains, spec, change) for change in (None, *changes))
        key = (trial.strategy, trial.users)
        waits.setdefault(key, []).extend(
            loop.start - loop.due for chain in chains for loop in chain.loops if loop.counts
        )
        series = walls.setdefault(key, [[] for _ in range(2 + len(changes))])
        for total, part in zip(series, (measured, *replayed), strict=True):
            total.extend(part)
    made = []
    for (strategy, users), series in walls.items():
        found, same, *changed = (np.sort(np.array(each, dtype=np.int64)) for each in series)
        if not found.size or waited_for_a_place(np.array(waits[strategy, users]), found):
            continue
        error = abs(float(np.quantile(same, 0.5)) / max(1.0, float(np.quantile(found, 0.5))) - 1)
        if error > REPLAY_TOLERANCE:
            continue
        for change, under_it in zip(changes, changed, strict=True):
            if not np.array_equal(under_it, same):
                p50, p95 = (_estimate(found, same, under_it, p) for p in (0.5, 0.95))
                made.append(Counterfactual(strategy, users, change, p50, p95, found.size, error))
    return tuple(made)


def waited_for_a_place(waits: Ints, latencies: Ints) -> bool:
    """Whether arrivals of an open load waited before they started: nanoseconds per loop, in any order."""
    if not latencies.size:
        return False
    return float(np.mean(waits > WAIT_SHARE * float(np.median(latencies)))) > WAITED_SHARE


def _estimate(measured: Ints, same: Ints, changed: Ints, p: float) -> Estimated:
    value, base, other = (float(np.quantile(walls, p)) for walls in (measured, same, changed))
    return Estimated(value / 1e9, value / 1e9 * other / base if base else value / 1e9)


def _chains(trial: Trial, records: Iterable[LoopRecord], open_load: bool) -> list[_Chain]:
    """The loops of each agent in order; loops that overlap, or name no agent, are chains of their own."""
    grouped: dict[tuple[str, str], list[_Loop]] = {}
    calls = 0
    for record in records:
        if calls < CALLS_PER_TRIAL:
            calls += sum(len(round_.tool_calls) for round_ in record.rounds)
            grouped.setdefault((record.process, record.agent or record.id), []).append(_loop(record, trial))
    result: list[_Chain] = []
    for (process, _), loops in grouped.items():
        loops.sort(key=lambda loop: loop.start)
        chain = _Chain(process, [loops[0]], [None])
        for loop in loops[1:]:
            previous = chain.loops[-1]
            pause = loop.start - (previous.due + previous.wall)
            if pause < 0:
                result.append(chain)
                chain = _Chain(process, [], [])
            chain.loops.append(loop)
            chain.pauses.append(None if open_load or pause < 0 else pause)
        result.append(chain)
    return result


def _loop(record: LoopRecord, trial: Trial) -> _Loop:
    due = record.due_ns
    inside = sum(round_.duration_ns for round_ in record.rounds)
    return _Loop(
        start=record.started_ns,
        due=due,
        rounds=tuple(_round(round_) for round_ in record.rounds),
        outside=record.wall_ns - inside,
        wall=record.latency_ns,
        counts=record.answered and trial.started_ns <= due < trial.ended_ns,
    )


def _round(round_: RoundRecord) -> _Round:
    model = round_.model
    begun = model.attempts[-1].started_ns if model.attempts else model.started_ns
    token = 0 if model.first_token_ns is None else max(0, model.first_token_ns - begun)
    origin = round_.tools_started_ns
    if origin is None or not round_.tool_calls:
        return _Round(round_.duration_ns, token, (), 0)
    calls = []
    previous: int | None = None
    for call in round_.tool_calls:
        started = call.waited_until_ns
        calls.append(
            _Call(
                tool=call.name,
                release=call.queued_ns - origin,
                wait=call.waited_ns or 0,
                duration=call.ended_ns - started,
                after_previous=max(0, started - (call.queued_ns if previous is None else previous)),
            )
        )
        previous = call.ended_ns
    last = max(call.ended_ns for call in round_.tool_calls)
    return _Round(origin - round_.started_ns, token, tuple(calls), max(0, round_.ended_ns - last))


def _replay(chains: list[_Chain], spec: StrategySpec, change: Change | None) -> list[int]:
    """Wall times of the loops that count, under the change; how a `replayable` strategy schedules calls."""
    counted = [loop for chain in chains for loop in chain.loops if loop.counts]
    unlimited = change is not None and change.kind == "limiter"
    if unlimited or not spec.rules or spec.limit is None:
        one_by_one = spec.kind == "sequential" and not unlimited
        # Gathered calls waited for something else than a limiter, and would wait all the same.
        keeps_waits = spec.kind == "gathered"
        return [_alone(loop, one_by_one, keeps_waits, change) for loop in counted]
    together = [[_Chain(chain.process, [loop], [None])] for chain in chains for loop in chain.loops]
    if spec.scope == "process":
        processes = dict.fromkeys(chain.process for chain in chains)
        together = [[chain for chain in chains if chain.process == process] for process in processes]
    walls: dict[int, int] = {}
    for sharing in together:
        walls.update(_limited(sharing, spec.limit, change))
    return [walls[id(loop)] for loop in counted]


def _alone(loop: _Loop, one_by_one: bool, keeps_waits: bool, change: Change | None) -> int:
    """Wall time of a loop without a limiter: its calls one by one, or all at once."""
    wall = loop.start - loop.due + loop.outside
    for round_ in loop.rounds:
        wall += _before(round_, change) + round_.after
        if round_.calls and one_by_one:
            wall += round_.calls[0].release
            wall += sum(call.after_previous + _duration(call, change) for call in round_.calls)
        elif round_.calls:
            wall += max(
                call.release + (call.wait if keeps_waits else 0) + _duration(call, change)
                for call in round_.calls
            )
    return wall


def _before(round_: _Round, change: Change | None) -> int:
    faster = change is not None and change.kind == "first_token"
    return round_.before - (round_.token // 2 if faster else 0)


def _duration(call: _Call, change: Change | None) -> int:
    faster = change is not None and change.kind == "tool" and call.tool == change.tool
    return call.duration // 2 if faster else call.duration


@dataclass(slots=True)
class _Agent:
    """How far an agent has come in the replay; `begun` is when its loop did."""

    chain: _Chain
    number: int = 0
    round: int = 0
    begun: int = 0
    open_calls: int = 0

    @property
    def loop(self) -> _Loop:
        return self.chain.loops[self.number]


_START, _ARRIVE, _END = 0, 1, 2


def _limited(sharing: Sequence[_Chain], limit: int, change: Change | None) -> dict[int, int]:
    """Wall time of each loop, by its `id`, of agents that share a limiter: first come, first served."""
    walls: dict[int, int] = {}
    # (time, number, what, agent, duration): events of the same time happen in the order of their numbers.
    events: list[tuple[int, int, int, _Agent, int]] = []
    waiting: deque[tuple[_Agent, int]] = deque()
    running = made = 0

    def push(time: int, what: int, agent: _Agent, duration: int = 0) -> None:
        nonlocal made
        made += 1
        heapq.heappush(events, (time, made, what, agent, duration))

    def next_round(agent: _Agent, now: int) -> None:
        loop = agent.loop
        while agent.round < len(loop.rounds):
            round_ = loop.rounds[agent.round]
            origin = now + _before(round_, change)
            if round_.calls:
                agent.open_calls = len(round_.calls)
                for call in round_.calls:
                    push(max(now, origin + call.release), _ARRIVE, agent, _duration(call, change))
                return
            agent.round += 1
            now = origin + round_.after
        end = now + loop.outside
        walls[id(loop)] = end - agent.begun + (loop.start - loop.due)
        agent.number += 1
        if agent.number < len(agent.chain.loops):
            pause = agent.chain.pauses[agent.number]
            push(max(end, agent.loop.start) if pause is None else end + pause, _START, agent)

    for chain in sharing:
        push(chain.loops[0].start, _START, _Agent(chain))
    while events:
        now, _, what, agent, duration = heapq.heappop(events)
        if what == _START:
            agent.begun, agent.round = now, 0
            next_round(agent, now)
        elif what == _ARRIVE:
            if running < limit:
                running += 1
                push(now + duration, _END, agent)
            else:
                waiting.append((agent, duration))
        else:
            if waiting:
                follower, its_duration = waiting.popleft()
                push(now + its_duration, _END, follower)
            else:
                running -= 1
            agent.open_calls -= 1
            if not agent.open_calls:
                after = agent.loop.rounds[agent.round].after
                agent.round += 1
                next_round(agent, now + after)
    return walls
