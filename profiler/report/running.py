"""The totals of a run that is still going on, read from its directory as it grows.

They are of all loops that have ended, warm-up and draining included, as in Locust's own statistics and
in Prometheus; which loops count is left to the report.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from profiler import palette
from profiler.anatomy import PHASES, loop_phases, server_tool_runs
from profiler.errors import RecordError
from profiler.records import LoopRecord, decode
from profiler.report.live import FEWEST_LOOPS
from profiler.report.text import clean
from profiler.rundir import RECORDS, Follower, Progress, appended
from profiler.statistics.caveats import replied
from profiler.statistics.verdicts import no_tool_calls

NAME = 40
"""Characters of a name that are shown."""
MOST_TOOLS = 40
"""Tools of each strategy that are shown: those with the most calls."""
SLICE_BYTES = 200_000
"""Bytes of records that are read at once, so that other greenlets get their turn in between."""
HISTORY = 300
"""Seconds of progress that are kept."""


@dataclass(slots=True)
class _Tool:
    calls: int = 0
    errors: int = 0
    seconds: array[float] = field(default_factory=lambda: array("d"))
    queue: array[float] = field(default_factory=lambda: array("d"))


@dataclass(slots=True)
class _Strategy:
    loops: int = 0
    failed: int = 0
    incomplete: int = 0
    asked: int = 0  # calls of tools, run or not
    server_tools: int = 0
    untimed_server_tools: int = 0
    unreadable: int = 0
    walls: array[float] = field(default_factory=lambda: array("d"))  # seconds, of answered loops
    phases: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))  # nanoseconds
    tools: dict[str, _Tool] = field(default_factory=dict)


class RunningTotals:
    """Totals of each strategy and tool of one run directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._offset = 0
        self._strategies: dict[str, _Strategy] = {}
        self._follower = Follower(directory)
        self._progress: list[Progress] = []

    def catch_up(self) -> Iterator[None]:
        """Count what was written since; yields between slices, so that the caller can let others run."""
        self._progress = [*self._progress, *self._follower.new()][-HISTORY:]
        while True:
            lines, self._offset = appended(self.directory / RECORDS, self._offset, SLICE_BYTES)
            if not lines:
                return
            for line in lines:
                with suppress(RecordError):  # the report complains about it
                    self.add(decode(line))
            yield

    def add(self, record: LoopRecord) -> None:
        """Count one loop that has ended."""
        one = self._strategies.setdefault(record.strategy, _Strategy())
        for round_ in record.rounds:
            one.asked += len(round_.tool_calls) + round_.unobserved_calls
            one.server_tools += len(round_.model.server_tools)
            one.untimed_server_tools += len(round_.model.server_tools) - len(server_tool_runs(round_.model))
            one.unreadable += round_.model.unreadable
        for call in record.tool_calls:
            tool = one.tools.setdefault(call.name, _Tool())
            tool.calls += 1
            tool.errors += call.failure is not None
            if (waited_ns := call.waited_ns) is not None:
                tool.queue.append(waited_ns / 1e9)
            if (latency_ns := call.latency_ns) is not None:
                tool.seconds.append(latency_ns / 1e9)
        if record.nested:
            return
        one.loops += 1
        one.failed += not record.good
        one.incomplete += record.outcome == "incomplete"
        if not record.answered:
            return
        one.walls.append(record.latency_ns / 1e9)
        for phase, ns in loop_phases(record).items():
            one.phases[phase] += ns

    def data(self) -> dict[str, Any]:
        """Plain data: `progress` (a point a second), `now` (the last of them), `strategies`, `tools`.

        Times are in seconds, phases mean seconds a loop; quantiles are defined as in the summary.
        """
        return {
            "progress": [
                {"unix": p.unix, "waiting": p.waiting, "in_flight": p.in_flight, "lag": p.lag_seconds}
                for p in self._progress
            ],
            "now": _moment(self._progress[-1]) if self._progress else None,
            "strategies": [
                {
                    "name": clean(name, NAME),
                    "colour": palette.strategy_colour(name),
                    "loops": one.loops,
                    "failed": one.failed,
                    "incomplete": one.incomplete,
                    "p50": _quantile(one.walls, 0.5),
                    "p95": _quantile(one.walls, 0.95),
                    "phases": {
                        phase: ns / 1e9 / len(one.walls) if one.walls else 0.0
                        for phase, ns in one.phases.items()
                    },
                }
                for name, one in self._strategies.items()
            ],
            "tools": [
                {
                    "name": clean(name, NAME),
                    "strategy": clean(strategy, NAME),
                    "colour": palette.strategy_colour(strategy),
                    "calls": tool.calls,
                    "errors": tool.errors,
                    "p50": _quantile(tool.seconds, 0.5),
                    "p95": _quantile(tool.seconds, 0.95),
                    "queue_p95": _quantile(tool.queue, 0.95),
                }
                for strategy, one in self._strategies.items()
                for name, tool in sorted(one.tools.items(), key=lambda item: -item[1].calls)[:MOST_TOOLS]
            ],
        }

    def notes(self) -> Iterator[str]:
        """What to know before reading the figures, in sentences."""
        every = self._strategies.values()
        loops, answered = sum(one.loops for one in every), sum(len(one.walls) for one in every)
        unreadable = sum(one.unreadable for one in every)
        if answered >= FEWEST_LOOPS and not any(one.asked for one in every):
            tools = sum(one.server_tools for one in every)
            yield no_tool_calls(loops, tools, unreadable, "there is nothing to run in parallel")
        for caveat in replied(unreadable, sum(one.untimed_server_tools for one in every)):
            yield caveat.sentence


def _moment(progress: Progress) -> dict[str, Any]:
    return {
        "state": progress.state,
        "strategy": clean(progress.strategy, NAME),
        "block": progress.block,
        "blocks": progress.blocks,
        "users": progress.users,
        "in_flight": progress.in_flight,
        "waiting": progress.waiting,
        "lag": progress.lag_seconds,
        "left": progress.seconds_left,
        "limited": progress.rate_limited,
    }


def _quantile(values: array[float], p: float) -> float | None:
    return float(np.quantile(np.frombuffer(values), p)) if values else None
