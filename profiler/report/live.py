"""The live view of a load test: lines redrawn on a terminal, else a plain line every few seconds.

They show `rundir.Progress`, and a rolling p95 of the records as they are written. They go to standard error:
standard output belongs to results. It is drawn before anything else is imported, so it imports little.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from profiler.errors import RecordError
from profiler.records import LoopRecord, decode
from profiler.report.text import clean, duration, number, percent, use_color
from profiler.rundir import RECORDS, Progress, appended

PLAIN_SECONDS = 5.0
"""How often a line is written where there is no terminal."""

SETTLED_SECONDS = 2.0
"""How long a phase of the run lasts before its first line."""

ROLLING_SECONDS = 10.0
FEWEST_LOOPS = 20
"""With fewer loops in the last `ROLLING_SECONDS` no p95 is shown."""

DRAWN_PER_SECOND = 8
"""How often the terminal is drawn anew while a step is under way, which shows its time."""

MOST_BYTES = 4_000_000
"""Bytes of records read at each look; where more have come, only the last ones are read."""

_LINE_WIDTH = 2000
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
        now: Callable[[], float] = time.time,
    ) -> None:
        self._direct = direct
        self._now = now
        self._step: Progress | None = None
        self._lines: tuple[str, ...] = ()
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
        self.start()
        return self

    def start(self) -> None:
        """Begin to draw on a terminal, or again."""
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
            self._live = Live(console=console, auto_refresh=False, transient=True, get_renderable=self._drawn)
            self._live.start()
            self._over = threading.Event()
            self._ticking = threading.Thread(target=self._tick, args=(self._live, self._over), daemon=True)
            self._ticking.start()

    def _tick(self, live: Live, over: threading.Event) -> None:
        """Draw a step's time as it goes by; what is measured is drawn once a second, as it comes."""
        while not over.wait(1 / DRAWN_PER_SECOND):
            if self._step is not None:
                live.refresh()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take away what is drawn. What is said then is printed as it is."""
        with self._lock:
            live, self._live = self._live, None
        if live is not None:
            self._over.set()
            self._ticking.join()
            live.stop()

    def say(self, line: str) -> None:
        """Write a line that stays, above what is redrawn."""
        if self._quiet:
            return
        with self._lock:
            if self._live is not None:
                self._live.console.print(Text(clean(line, _LINE_WIDTH)))
            else:
                print(clean(line, _LINE_WIDTH), file=self._stream, flush=True)

    def watch(self, progress: Progress) -> None:
        """Show a moment of the run."""
        if self._quiet:
            return
        with self._lock:
            head = headline(progress, self._direct)
            if progress.step:
                self._step = progress
                if self._live is None and self._is_due(progress):
                    print(head, file=self._stream, flush=True)
            else:
                figures = self._figures(progress)
                self._lines, self._step = (head, bar(progress), " · ".join(figures)), None
                if self._live is None and self._is_due(progress):
                    print(f"{head}: {', '.join(figures)}", file=self._stream, flush=True)
            live = self._live
        if live is not None:  # not under the lock: whoever draws holds one of the terminal's
            live.refresh()

    def _figures(self, progress: Progress) -> list[str]:
        rate = self._rolling.per_second(progress)
        tail = self._rolling.p95(progress.directory)
        figures = figures_of(progress, rate, tail, "calls" if self._direct else "loops")
        if self._rolling.answered >= FEWEST_LOOPS and not self._rolling.calls:
            figures.insert(0, "no tool call was asked for")
        return figures

    def _drawn(self) -> Group:
        """What is on the terminal now. Called by the thread that draws, too."""
        step = self._step
        if step is None:
            head, *rest = self._lines or ("",)
            return Group(Text(head, style="bold"), *map(Text, rest))
        seconds = max(0.0, self._now() - step.unix)
        return Group(Text(f"{headline(step, self._direct)} · {seconds:.1f} s", style="bold"))

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
    if progress.step:
        parts.append(progress.step)
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
