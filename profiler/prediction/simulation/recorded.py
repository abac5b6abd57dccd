"""The trials of a recording as the engine runs them again: the same loops in the same order. Pure.

A trial that is too long is cut: its loops that started before some time, measured until then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from profiler.arrivals import share, start_offset
from profiler.prediction.simulation.load import Chain, RecordedTrial
from profiler.prediction.simulation.work import LoopWork
from profiler.records import LoopRecord
from profiler.rundir import Run, Trial
from profiler.statistics.table import Ints

WAIT_SHARE = 0.05
"""A loop waited for a place when it started later than due by more than this share of the median latency."""
WAITED_SHARE = 0.01
"""Arrivals waited where more than this share of the loops did."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A trial, or the beginning of one, with what was measured in it.

    Of each answered loop that was due in the window: when it was `due`, in ns from the start, and its latency
    in ns. `loops` counts all that were due, `good` those that ended well.
    """

    trial: RecordedTrial
    due: Ints
    latencies: Ints
    loops: int
    good: int


def stretch_of(
    run: Run,
    trial: Trial,
    records: Sequence[LoopRecord],
    works: Mapping[int, LoopWork],
    most_calls: int,
) -> Stretch | None:
    """The stretch of a trial with `most_calls` tool calls at most. `works`: of `records`, by their place.

    None where nothing that was due in the window is left.
    """
    is_open = run.load.model == "open"
    order = sorted(range(len(records)), key=lambda place: records[place].started_ns)
    ends_ns = min(trial.ended_ns, max(record.ended_ns for record in records))
    calls = 0
    for place in order:
        calls += sum(1 for _ in records[place].tool_calls)
        if calls > most_calls and records[place].started_ns < ends_ns:
            ends_ns = records[place].started_ns
            break
    # Of an open load an arrival that waits starts late, but is due before the cut all the same.
    used = [place for place in order if records[place].due_ns < ends_ns and not records[place].nested]
    inside = [records[place] for place in used if records[place].due_ns >= trial.started_ns]
    answered = [record for record in inside if record.answered]
    kept = [(records[place], works[place]) for place in used if place in works]
    if not answered or not kept:
        return None
    begun = min(trial.started_ns, *(record.due_ns for record, _ in kept))
    processes = sorted({record.process for record, _ in kept})
    chains = _open_chains(kept, processes, begun) if is_open else _closed_chains(kept, processes, begun)
    slots = (-1,) * len(processes)
    if is_open:
        slots = _slots(run, [record for record, _ in kept], processes)
    pauses = [ns for chain in chains for ns in chain.times_ns[1:]]
    return Stretch(
        RecordedTrial(
            chains=tuple(chains),
            is_open=is_open,
            warm_up_ns=trial.started_ns - begun,
            seconds=(ends_ns - trial.started_ns) / 1e9,
            slots=slots,
            again_ns=int(np.median(pauses)) if pauses else int(run.load.think_seconds * 1e9),
            period_ns=ends_ns - begun,
        ),
        due=np.array([record.due_ns - begun for record in answered], np.int64),
        latencies=np.array([record.latency_ns for record in answered], np.int64),
        loops=len(inside),
        good=sum(record.good for record in inside),
    )


_Kept = Sequence[tuple[LoopRecord, LoopWork]]


def _closed_chains(kept: _Kept, processes: Sequence[str], begun: int) -> list[Chain]:
    """The loops of each agent, one after another; one that began before the last had ended is another's."""
    made: dict[tuple[str, str, int], list[tuple[LoopRecord, LoopWork]]] = {}
    for record, work in kept:
        number = 0
        while True:
            mine = made.setdefault((record.process, record.agent or record.id, number), [])
            if not mine or record.started_ns >= mine[-1][0].ended_ns:
                mine.append((record, work))
                break
            number += 1
    chains = []
    for (process, _, _), mine in made.items():
        before = [begun, *(record.ended_ns for record, _ in mine)]
        times = tuple(record.started_ns - at for (record, _), at in zip(mine, before, strict=False))
        chains.append(_chain(process, mine, times, processes))
    return chains


def _open_chains(kept: _Kept, processes: Sequence[str], begun: int) -> list[Chain]:
    """The arrivals of each source in the order in which they were due."""
    made: dict[tuple[str, str], list[tuple[LoopRecord, LoopWork]]] = {}
    for record, work in sorted(kept, key=lambda one: one[0].due_ns):
        made.setdefault((record.process, record.agent or record.id), []).append((record, work))
    return [
        _chain(process, mine, tuple(record.due_ns - begun for record, _ in mine), processes)
        for (process, _), mine in made.items()
    ]


def _chain(process: str, mine: _Kept, times: tuple[int, ...], processes: Sequence[str]) -> Chain:
    loops = tuple(work for _, work in mine)
    return Chain(processes.index(process), loops, times, tuple(record.status == "ok" for record, _ in mine))


def _slots(run: Run, records: Sequence[LoopRecord], processes: Sequence[str]) -> tuple[int, ...]:
    """How many loops each process may have under way: as was told, or where arrivals waited, as was seen."""
    most = run.arguments.get("max_in_flight")
    slots = []
    for number, process in enumerate(processes):
        mine = [record for record in records if record.process == process]
        waits = np.array([record.started_ns - record.due_ns for record in mine], np.int64)
        latencies = np.array([record.latency_ns for record in mine], np.int64)
        if waited_for_a_place(waits, latencies):
            slots.append(_peak(mine))
        elif isinstance(most, int):
            slots.append(share(most, number, max(run.workers, len(processes))))
        else:
            slots.append(-1)
    return tuple(slots)


def waited_for_a_place(waits: Ints, latencies: Ints) -> bool:
    """Whether arrivals of an open load waited before they started: nanoseconds per loop, in any order."""
    if not latencies.size:
        return False
    return float(np.mean(waits > WAIT_SHARE * float(np.median(latencies)))) > WAITED_SHARE


def _peak(records: Sequence[LoopRecord]) -> int:
    """The most loops under way at once; one that starts when another ends takes its place."""
    started = np.sort(np.array([record.started_ns for record in records]))
    ended = np.sort(np.array([record.ended_ns for record in records]))
    return int(np.max(np.arange(1, started.size + 1) - np.searchsorted(ended, started, side="right")))


def with_load(trial: RecordedTrial, factor: float) -> RecordedTrial:
    """The trial under `factor` times the load: arrivals that much closer, or that many more agents.

    Another agent does what one of the recording's did, but begins in the middle of it.
    """
    if trial.is_open:
        nearer = [tuple(int(ns / factor) for ns in chain.times_ns) for chain in trial.chains]
        chains = tuple(replace(one, times_ns=ns) for one, ns in zip(trial.chains, nearer, strict=True))
        return replace(trial, chains=chains, period_ns=int(trial.period_ns / factor))
    count = len(trial.chains)
    added = round(count * factor) - count
    chosen = np.linspace(0, count, added, endpoint=False).astype(int).tolist()
    spread = max(chain.times_ns[0] for chain in trial.chains) / 1e9
    more = tuple(
        _from_the_middle(trial.chains[place], trial.again_ns, int(start_offset(number, spread) * 1e9))
        for number, place in enumerate(chosen, start=1)
    )
    return replace(trial, chains=(*trial.chains, *more))


def _from_the_middle(chain: Chain, again_ns: int, first: int) -> Chain:
    at = len(chain.loops) // 2
    pauses = list(chain.times_ns[1:])
    if at:
        pauses = [*pauses[at:], again_ns, *pauses[: at - 1]]
    return Chain(
        chain.process,
        chain.loops[at:] + chain.loops[:at],
        (first, *pauses),
        chain.well[at:] + chain.well[:at],
    )
