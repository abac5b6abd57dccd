"""A load test while it runs: its live view, and the running totals that Locust's page shows.

The live view is three lines redrawn on a terminal, else a plain line every few seconds: `rundir.Progress`,
and a rolling p95 of the records as they are written. It goes to standard error: standard output belongs to
results.
"""

from __future__ import annotations

import contextlib
import math
import threading
from array import array
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from profiler import palette
from profiler.anatomy import PHASES, loop_phases, server_tool_runs
from profiler.errors import RecordError
from profiler.records import LoopRecord, decode
from profiler.report.terminal import use_color
from profiler.report.text import clean, duration, number, percent
from profiler.rundir import RECORDS, Follower, Progress, appended
from profiler.statistics.caveats import replied
from profiler.statistics.verdicts import no_tool_calls

PLAIN_SECONDS = 5.0
"""How often a line is written where there is no terminal."""

SETTLED_SECONDS = 2.0
"""How long a phase of the run lasts before its first line."""

ROLLING_SECONDS = 10.0
FEWEST_LOOPS = 20
"""With fewer loops in the last `ROLLING_SECONDS` no p95 is shown."""

MOST_BYTES = 4_000_000
"""Bytes of records read at each look; where more have come, only the last ones are read."""

_NAME_WIDTH = 40
_BAR_WIDTH = 40


class Rolling:
    """Rate and p95 of the trial under way over the last `ROLLING_SECONDS`.

    `answered` loops of the run came to an answer, and all its loops asked for `calls` of tools, as far as was
    read.
    """

    def __init__(self) -> None:
        self.answered = 0
        self.calls = 0
        self._counts: deque[tuple[float, int]] = deque()
        self._trial = 0
        self._offset = 0
        self._loops: deque[tuple[int, int]] = deque()  # (ended, wall) in nanoseconds

    def per_second(self, progress: Progress) -> float | None:
        """Loops per second, from how their count grew; None before the second look at a trial."""
        # The count starts again when the window of a trial opens, after its ramp.
        if progress.trial != self._trial or (self._counts and progress.loops < self._counts[-1][1]):
            self._trial = progress.trial
            self._counts.clear()
            self._loops.clear()
        self._counts.append((progress.unix, progress.loops))
        while len(self._counts) > 2 and self._counts[0][0] < progress.unix - ROLLING_SECONDS:
            self._counts.popleft()
        (first, before), (last, now) = self._counts[0], self._counts[-1]
        return (now - before) / (last - first) if last > first else None

    def p95(self, directory: Path | str | None) -> float | None:
        """Seconds at p95 of the loops that completed lately, by nearest rank; None if there are too few."""
        if directory is None:
            return None
        for record in self._new(Path(directory) / RECORDS):
            self.answered += record.answered and not record.nested
            self.calls += sum(len(one.tool_calls) + one.unobserved_calls for one in record.rounds)
            if record.answered and not record.nested and (record.trial or 0) + 1 == self._trial:
                self._loops.append((record.ended_ns, record.latency_ns))
        if not self._loops:
            return None
        since = self._loops[-1][0] - ROLLING_SECONDS * 1e9
        while self._loops[0][0] < since:
            self._loops.popleft()
        walls = sorted(wall for _, wall in self._loops)
        if len(walls) < FEWEST_LOOPS:
            return None
        return walls[math.ceil(0.95 * len(walls)) - 1] / 1e9

    def _new(self, path: Path) -> Iterator[LoopRecord]:
        first = 0
        with contextlib.suppress(OSError):  # no records yet
            first = path.stat().st_size - MOST_BYTES
        skips = first > self._offset
        lines, self._offset = appended(path, max(first, self._offset))
        for line in lines[1:] if skips else lines:  # after a skip the first line has lost its beginning
            with contextlib.suppress(RecordError):  # the report complains about it
                yield decode(line)


class LiveView:
    """Shows a run's progress on a stream. `watch` and `say` may be called from any thread.

    `direct`: of calls without a model, which are not spoken of as loops of a strategy.
    """

    def __init__(
        self,
        stream: IO[str],
        environment: Mapping[str, str],
        quiet: bool = False,
        width: int | None = None,
        *,
        direct: bool = False,
    ) -> None:
        self._direct = direct
        self._stream = stream
        self._quiet = quiet
        self._color = use_color(stream, environment)
        # NO_COLOR takes away colours alone; only a dumb terminal cannot move its cursor.
        self._redraws = not quiet and stream.isatty() and environment.get("TERM") != "dumb"
        self._environment = environment
        self._width = width
        self._rolling = Rolling()
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._said = 0.0
        self._shown: tuple[str, int] = ("", 0)

    def __enter__(self) -> Self:
        if self._redraws:
            console = Console(
                file=self._stream,
                force_terminal=True,
                no_color=not self._color,
                highlight=False,
                markup=False,
                emoji=False,
                width=self._width,
                _environ=self._environment,
            )
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            live, self._live = self._live, None
            if live is not None:
                live.stop()

    def say(self, line: str) -> None:
        """Write a line that stays, above what is redrawn."""
        if self._quiet:
            return
        with self._lock:
            if self._live is not None:
                self._live.console.print(Text(clean(line, 400)))
            else:
                print(clean(line, 400), file=self._stream, flush=True)

    def watch(self, progress: Progress) -> None:
        """Show a moment of the run."""
        if self._quiet:
            return
        with self._lock:
            rate = self._rolling.per_second(progress)
            tail = self._rolling.p95(progress.directory)
            figures = figures_of(progress, rate, tail, "calls" if self._direct else "loops")
            if self._rolling.answered >= FEWEST_LOOPS and not self._rolling.calls:
                figures.insert(0, "no tool call was asked for")
            if self._live is not None:
                head, said = headline(progress, self._direct), " · ".join(figures)
                self._live.update(
                    Group(Text(head, style="bold"), Text(bar(progress)), Text(said)), refresh=True
                )
            elif self._is_due(progress):
                line = f"{headline(progress, self._direct)}: {', '.join(figures)}"
                print(line, file=self._stream, flush=True)

    def _is_due(self, progress: Progress) -> bool:
        """Whether a plain line is due: a phase has lasted a little, or the last line is some seconds old."""
        now = (progress.state, progress.trial)
        if now != self._shown:  # a phase begins: its first line comes after `SETTLED_SECONDS`
            self._shown, self._said = now, progress.unix - PLAIN_SECONDS + SETTLED_SECONDS
        if progress.unix - self._said < PLAIN_SECONDS:
            return False
        self._said = progress.unix
        return True


def headline(progress: Progress, direct: bool = False) -> str:
    """`block 2 of 3 · gathered · measuring · 0:34 left`; `direct`: without the strategy."""
    parts = []
    if progress.block and not (direct and progress.blocks == 1):
        parts.append(f"block {progress.block}" + (f" of {progress.blocks}" if progress.blocks else ""))
    if progress.strategy and not direct:
        parts.append(clean(progress.strategy, _NAME_WIDTH))
    parts.append(progress.state)
    if progress.seconds_left is not None and progress.state != "finished":
        left = math.ceil(progress.seconds_left)
        parts.append(f"{left // 60}:{left % 60:02d} left")
    return " · ".join(parts)


def bar(progress: Progress) -> str:
    """The share of the run's time that is over, as a bar; empty when the run has no end."""
    left = progress.seconds_left
    if left is None:
        return ""
    whole = progress.elapsed_seconds + left
    done = round(_BAR_WIDTH * progress.elapsed_seconds / whole) if whole > 0 else 0
    return "━" * done + "─" * (_BAR_WIDTH - done)


def figures_of(progress: Progress, rate: float | None, tail: float | None, what: str = "loops") -> list[str]:
    """The figures of the trial under way, each with its name or unit."""
    failed = progress.failures / progress.loops if progress.loops else None
    return [
        f"{number(rate)} {what}/s",
        f"p95 {duration(tail)}",
        f"{percent(failed)} fail",
        f"{progress.rate_limited} × 429",
        f"{progress.in_flight} in flight",
        f"lag {duration(progress.lag_seconds)}",
    ]


# The totals of a run that is still going on, read from its directory as it grows.
#
# They are of all loops that have ended, warm-up and draining included, as in Locust's own statistics and
# in Prometheus; which loops count is left to the report.


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
