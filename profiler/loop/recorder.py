"""Hands each finished `LoopRecord` to the sinks, and keeps live counts of calls queued and running.

A sink is a function of one record. What it does is its own business: no exception of it reaches the loop, and
it cannot keep the loop waiting, since it is called by a thread of the recorder, behind a bounded queue. Only
sinks that are `waited_for` are called where the loop ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import logging
import os
import queue
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import CoroutineType
from typing import Any, TypeVar, cast

from profiler.errors import UsageError
from profiler.loop.handover import Handover
from profiler.loop.lag import LagSampler, StopSampler, lag_sampler, stop_sampler
from profiler.loop.supervision import is_left
from profiler.loop.tools import is_async
from profiler.process.lifetime import in_forked_child
from profiler.records import Clock, LoopRecord
from profiler.redaction import describe

Sink = Callable[[LoopRecord], None]
"""A sink may also have `live_calls(strategy, tool)`, `observe_lag(lag_ns)`, `count_dropped(sink)`,
`count_orphan()` and `count_watch_failure(part)`, as the Prometheus exporter has: then it also shows running
calls, event-loop lag, lost records, calls outside every loop and failures of the watching itself."""

S = TypeVar("S", bound=Callable[..., None])

_log = logging.getLogger(__name__)

_token = secrets.token_hex(4)
_counter = itertools.count()


def _renew_token() -> None:
    """In a forked child: another one may be given the same process id later."""
    global _token
    _token = secrets.token_hex(4)


in_forked_child(_renew_token)


def fresh_id() -> str:
    """An id for a record, unique across processes (forked ones too), machines and time."""
    return f"{_token}-{os.getpid():x}-{next(_counter):x}"


@dataclass(slots=True, eq=False)
class LiveCalls:
    """The numbers of calls of one tool under one strategy that are queued and running now."""

    queued: int = 0
    running: int = 0


FAILURES_WAITED_FOR = 3
"""A sink that has failed so often in turn is not waited for."""

_QUICK = {
    (list, "append"),
    (deque, "append"),
    (queue.SimpleQueue, "put"),
    (queue.Queue, "put_nowait"),
    (asyncio.Queue, "put_nowait"),
}
"""Methods that only put a record somewhere, of objects of exactly these classes."""


def waited_for(sink: S) -> S:
    """Mark a sink as one that is called where a loop ends, which waits for it: `sink.waited_for` is true.

    So are the exporters here, which take microseconds, and all of a load test: there nothing may be lost.
    """
    sink.waited_for = True  # type: ignore[attr-defined]
    return sink


def is_waited_for(sink: Any) -> bool:
    """Whether a sink is marked so, or is a method that only puts the record somewhere (`records.append`)."""
    if getattr(sink, "waited_for", False) is True:
        return True
    return (type(getattr(sink, "__self__", None)), getattr(sink, "__name__", "")) in _QUICK


def _refuse(sink: Any) -> None:
    """Raises `UsageError` for what would lose every record: calling it runs none of its code."""
    if not callable(sink):
        raise UsageError(f"a sink is called with each record, and cannot be a {type(sink).__name__}")
    called = sink
    while isinstance(called, partial):
        called = called.func
    if isinstance(called, type):  # calling it makes an object of it, whatever its `__call__` is
        return
    for one in (called, called.__call__):
        if is_async(one) or inspect.isasyncgenfunction(one) or inspect.isgeneratorfunction(one):
            raise UsageError(
                f"sink {_name_of(sink)} is an async function or a generator, which nothing would await or "
                "read: a sink is a plain function of one record"
            )


def _name_of(sink: Any) -> str:
    return str(getattr(sink, "__name__", type(sink).__name__))


listeners: list[Sink] = []
"""Sinks that get the records of every `ToolLoop` and `Profiler` of the process, whatever sinks those have."""


class Recorder:
    """The clock and the sinks of a `ToolLoop` or `Profiler`. `dropped` counts records that a sink lost.

    Sinks get their records in order. Those that are `waited_for` are called where the loop ends, before
    `emit` returns. All others are called on a thread of the recorder, in the context in which the loop ended;
    10,000 records may wait for them, and more are dropped. For these `emit` waits only if they are quick
    (`profiler.loop.handover`); `flush` waits for them in any case. `listeners` get what is
    `overheard`, too.

    Event-loop lag is sampled only on the real clock: a virtual one has none. Raises `UsageError` for sinks
    that are async or generators; a record for which a sink returns a coroutine all the same counts as lost.
    """

    def __init__(
        self, sinks: Sequence[Sink] = (), clock: Clock = time.monotonic_ns, overheard: bool = False
    ) -> None:
        self.clock = clock
        self._overheard = overheard
        self.dropped = 0
        self._handover: Handover | None = None
        self._failed_in_turn = 0
        self._sinks = tuple(sinks)
        for sink in self._sinks:
            _refuse(sink)
        self._set_up()

    def add(self, sink: Sink) -> None:
        """Hand records to one more sink from now on. Raises `UsageError` as the constructor does."""
        _refuse(sink)
        self._sinks = (*self._sinks, sink)
        self._set_up()

    def _set_up(self) -> None:
        self._here = [sink for sink in self._sinks if is_waited_for(sink)]
        self._elsewhere = [sink for sink in self._sinks if not is_waited_for(sink)]
        if self._elsewhere and self._handover is None:
            self._handover = Handover()
        self._drop_counters = self._all("count_dropped")
        self._orphan_counters = self._all("count_orphan")
        self._failure_counters = self._all("count_watch_failure")
        self._lag_observers = self._all("observe_lag")

    @property
    def sinks(self) -> Sequence[Sink]:
        """All that get its records now."""
        return (*self._sinks, *listeners) if self._overheard else self._sinks

    def _all(self, name: str) -> list[Callable[..., Any]]:
        """The methods of this name that sinks have, each to be called as its sink is."""
        here = [method for sink in self._here if callable(method := getattr(sink, name, None))]
        elsewhere = [method for sink in self._elsewhere if callable(method := getattr(sink, name, None))]
        return [*here, *(partial(self._tell, method) for method in elsewhere)]

    def _tell(self, method: Callable[..., Any], *args: Any) -> None:
        if self._handover is not None:
            self._handover.put(partial(method, *args), waits=False)

    def live_calls(self, strategy: str, tool: str) -> LiveCalls:
        """The counts that the first sink with `live_calls` keeps, or fresh ones that nobody reads."""
        for sink in self._sinks:
            keep = getattr(sink, "live_calls", None)
            if keep is not None:
                try:
                    live = keep(strategy, tool)
                except Exception:  # the loop is made without the counts of this sink
                    continue
                if isinstance(live, LiveCalls):
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
        _count(self._orphan_counters)

    def count_watch_failure(self, part: str) -> None:
        """Watching a loop, a request or a tool failed."""
        _count(self._failure_counters, part)

    def emit(self, record: LoopRecord) -> None:
        """Does not raise. Of a loop that was left (`profiler.loop.supervision`) there is a record already."""
        if is_left():
            return
        for sink in [*self._here, *listeners] if self._overheard and listeners else self._here:
            self._deliver(sink, record)
        if self._handover is not None:
            waits = self._failed_in_turn < FAILURES_WAITED_FOR
            if not self._handover.put(partial(self._deliver_all, record), waits=waits):
                for sink in self._elsewhere:
                    self._lost(sink)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the sinks have got every record so far, up to `timeout` seconds; whether they have."""
        return self._handover is None or self._handover.flush(timeout)

    def _deliver_all(self, record: LoopRecord) -> None:
        """On the recorder's own thread, where nothing that is raised is anybody's."""
        failed = False
        for sink in self._elsewhere:
            try:
                _call(sink, record)
            except BaseException as error:
                failed = True
                self._lost(sink, error)
        self._failed_in_turn = self._failed_in_turn + 1 if failed else 0

    def _deliver(self, sink: Sink, record: LoopRecord) -> None:
        try:
            _call(sink, record)
        except Exception as error:
            self._lost(sink, error)

    def _lost(self, sink: Sink, error: BaseException | None = None) -> None:
        self.dropped += 1
        name = _name_of(sink)
        _count(self._drop_counters, name)
        if self.dropped == 1:
            # Not its traceback, which would take longer to write than a sink is waited for.
            why = (
                f"failed on a record ({describe(error)})" if error is not None else "is too slow: one is lost"
            )
            _log.error("a sink %s; later failures are only counted: %s", why, name)


def _call(sink: Sink, record: LoopRecord) -> None:
    """As a lambda may, a plain function may return a coroutine of an async one: then nothing has run."""
    returned = cast(Callable[[LoopRecord], object], sink)(record)
    if type(returned) is CoroutineType:
        with contextlib.suppress(Exception):
            returned.close()
        raise TypeError("it returned a coroutine, which nothing awaits")


def _count(counters: Iterable[Callable[..., Any]], *args: Any) -> None:
    for count in counters:
        with contextlib.suppress(Exception):  # a count of a sink is not worth a failure of what is counted
            count(*args)
