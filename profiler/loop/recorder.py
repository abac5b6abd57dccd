"""Hands each finished `LoopRecord` to the sinks, and keeps live counts of calls queued and running.

A sink is a function of one record, called on the loop's own thread: it must not block. An exception of
a sink is counted and never reaches the loop.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from profiler.loop.lag import LagSampler, StopSampler, lag_sampler, stop_sampler
from profiler.records import Clock, LoopRecord

Sink = Callable[[LoopRecord], None]
"""A sink may also have `live_calls(strategy, tool)`, `observe_lag(lag_ns)`, `count_dropped(sink)` and
`count_orphan()`, as the Prometheus exporter has: then it also shows running calls, event-loop lag,
lost records and calls outside every loop."""

_log = logging.getLogger(__name__)

_token = secrets.token_hex(4)
_counter = itertools.count()


def fresh_id() -> str:
    """An id for a record, unique across processes (forked ones too), machines and time."""
    return f"{_token}-{os.getpid():x}-{next(_counter):x}"


@dataclass(slots=True, eq=False)
class LiveCalls:
    """The numbers of calls of one tool under one strategy that are queued and running now."""

    queued: int = 0
    running: int = 0


class Recorder:
    """The clock and the sinks of a `ToolLoop` or `Profiler`. `dropped` counts records that a sink lost.

    Event-loop lag is sampled only on the real clock: a virtual one has none.
    """

    def __init__(self, sinks: Sequence[Sink] = (), clock: Clock = time.monotonic_ns) -> None:
        self.clock = clock
        self.dropped = 0
        self._sinks = tuple(sinks)
        self._drop_counters = [s.count_dropped for s in self._sinks if hasattr(s, "count_dropped")]
        self._orphan_counters = [s.count_orphan for s in self._sinks if hasattr(s, "count_orphan")]
        self._lag_observers = [s.observe_lag for s in self._sinks if hasattr(s, "observe_lag")]

    def live_calls(self, strategy: str, tool: str) -> LiveCalls:
        """The counts that the first sink with `live_calls` keeps, or fresh ones that nobody reads."""
        for sink in self._sinks:
            keep = getattr(sink, "live_calls", None)
            if keep is not None:
                live: LiveCalls = keep(strategy, tool)
                return live
        return LiveCalls()

    def enter(self) -> LagSampler | None:
        """A loop begins: sample the lag of its event loop until `LagSampler.leave`."""
        if self.clock is not time.monotonic_ns:
            return None
        sampler = lag_sampler(self.clock)
        sampler.observers.update(self._lag_observers)
        sampler.enter()
        return sampler

    def enter_sync(self) -> StopSampler | None:
        """As `enter`, where no event loop runs: look out for stops of the process."""
        if self.clock is not time.monotonic_ns:
            return None
        sampler = stop_sampler()
        sampler.enter()
        return sampler

    def count_orphan(self) -> None:
        """A watched tool was called outside every loop. In the caller's thread, whichever it is."""
        for count in self._orphan_counters:
            count()

    def emit(self, record: LoopRecord) -> None:
        for sink in self._sinks:
            try:
                sink(record)
            except Exception:
                self.dropped += 1
                for count_dropped in self._drop_counters:
                    count_dropped(getattr(sink, "__name__", type(sink).__name__))
                if self.dropped == 1:
                    _log.exception("a sink failed on a record; later failures are only counted")
