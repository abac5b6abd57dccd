"""What a reader must know of two runs that are compared: they were made at two times, and maybe not alike."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from profiler.rundir import Recording, Run
from profiler.statistics.caveats import Caveat
from profiler.statistics.table import Table

TWO_RUNS = Caveat(
    "two_runs",
    "the runs were made at two times, so a drift of the system between them looks like a change",
    "compare both in one run, block by block, where it matters",
)
"""The caveat of every comparison of two runs."""

WORK_SHARE = 0.10
"""Calls per loop that differ by a larger share are other work."""

_MATTER = (
    *("agent", "base_url", "tools_url", "stream", "max_rounds", "tool_choice", "parallel_tool_calls"),
    *("model_limit", "max_in_flight", "share_limit"),
)
"""Arguments that change what is measured; one run against another says where they differ."""


def _of_kind(before: Run, after: Run) -> Iterator[tuple[str, object, object]]:
    """What else may differ: of load tests the machine that ran them, of recordings how they were made.

    The machine that a recording was read on says nothing.
    """
    then, now = before.recording, after.recording
    if then is None or now is None:
        if then is now:
            yield "workers", before.workers, after.workers
            yield "processor", before.machine.cpu, after.machine.cpu
            yield "cores", before.machine.cores, after.machine.cores
        return
    yield "door", then.door, now.door
    yield "formats", _formats(then), _formats(now)
    yield "ticks of the clock", f"{then.resolution_ns:,} ns", f"{now.resolution_ns:,} ns"
    yield "clocks", then.clocks, now.clocks
    yield "share of traces kept", _kept(then), _kept(now)


def _formats(recording: Recording) -> str:
    """What the proxy read are requests of several kinds, which are no formats."""
    return "requests" if recording.door == "proxy" else ", ".join(sorted(recording.read))


def _kept(recording: Recording) -> str:
    return "not known" if recording.sampled is None else f"{recording.sampled * 100:.3g} %"


def different_conditions(before: Run, after: Run, tables: tuple[Table, Table]) -> Iterator[Caveat]:
    """What differs between two runs and may be the reason of a difference, or the very thing compared."""
    pairs = [
        ("provider", before.provider, after.provider),
        ("model", before.model, after.model),
        *((name, before.arguments.get(name), after.arguments.get(name)) for name in _MATTER),
        *_of_kind(before, after),
    ]
    # What a run of an earlier version did not note is not known to differ.
    found = [
        f"{name.replace('_', ' ')} ({now or 'none'} against {then or 'none'})"
        for name, then, now in pairs
        if then != now
        and not (name in _MATTER and not (name in before.arguments and name in after.arguments))
    ]
    if found:
        yield Caveat(
            "different_conditions",
            f"the runs differ in {', '.join(found)}",
            "a difference may come from that, if that is not what is compared",
        )
    work = []
    tools = [set(table.tools) for table in tables]
    calls = [table.call_loop.size / max(1, int(np.count_nonzero(table.nested == 0))) for table in tables]
    if tools[0] != tools[1]:
        names = ", ".join(sorted(tools[0] ^ tools[1])[:4])
        work.append(f"tools that only one of them called ({names})")
    if abs(calls[1] - calls[0]) > WORK_SHARE * max(calls):
        work.append(f"{calls[1]:.2f} calls a loop against {calls[0]:.2f}")
    if work:
        yield Caveat(
            "different_work",
            f"the loops of the two runs did different work: {' and '.join(work)}",
            "a loop that does less is faster; compare runs of the same work",
        )


def unlike(before: Run, after: Run) -> list[str]:
    """What makes two runs no comparison at all: other work, or a load of another kind; in words.

    Their strategies and numbers of agents are looked at one by one: those in both are compared. Two
    recordings are compared whatever they are of: two days of the same agents have two titles.
    """
    if before.recording is not None and after.recording is not None:
        return []
    pairs = [
        ("kind", _kind(before), _kind(after)),
        ("scenario", before.scenario, after.scenario),
        ("load", before.load.model, after.load.model),
        ("arrivals", before.load.arrivals, after.load.arrivals),
        ("think time", f"{before.load.think_seconds:g} s", f"{after.load.think_seconds:g} s"),
    ]
    return [f"{name} ({now or 'none'} against {then or 'none'})" for name, then, now in pairs if then != now]


def _kind(run: Run) -> str:
    return "a load test" if run.recording is None else "a recording"


def tick_of(run: Run) -> float:
    """Seconds of a tick of a recording's clock, where that may be longer than a difference; else 0."""
    if run.recording is None or run.recording.resolution_ns < 1000:
        return 0.0
    return run.recording.resolution_ns / 1e9
