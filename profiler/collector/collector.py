"""Spans in, records out: which traces are open, their journal, and where the records of their loops go.

Everything here happens on the event loop's thread, in steps of some milliseconds; what is written to disk is
written by the threads of `Journal` and `KeptRuns`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from profiler import metrics
from profiler.collector.figures import Figures
from profiler.collector.journal import Journal, line_of, span_of_line
from profiler.collector.traces import Ended, OpenTraces
from profiler.metrics import Metric
from profiler.recordings.drafts import LoopDraft, Tally, record_of
from profiler.recordings.formats import Skipped
from profiler.recordings.inner import inner_of, with_inner
from profiler.recordings.keeping import KeptRuns
from profiler.recordings.span import Span
from profiler.recordings.spans import loops_of
from profiler.records import LoopRecord

SOURCE = "otel"

OF_NO_AGENT = "spans of traces without an agent, a model request or a tool"
REPEATED = "spans that came before"
LATE = "spans that came after their loop had been written"
TOO_FAST = "spans come in faster than they can be written down"
UNREADABLE = "spans without ids, or without a start"

_log = logging.getLogger(__name__)


class Collector:
    """Takes spans (`receiver.Taker`), writes the records of their loops to `runs`, shows them to `sink`.

    `origin_ns` is the zero of the records' times (Unix). `say` tells the user something.
    """

    def __init__(
        self,
        traces: OpenTraces,
        journal: Journal,
        runs: KeptRuns,
        sink: Callable[[LoopRecord], None],
        origin_ns: int,
        *,
        say: Callable[[str], None] = lambda words: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.figures = Figures()
        self.loops = 0
        self._traces = traces
        self._journal = journal
        self._runs = runs
        self._sink = sink
        self._origin_ns = origin_ns
        self._say = say
        self._said: set[str] = set()
        self._written: frozenset[str] = frozenset()
        self._clock = clock
        self._began = 0

    @property
    def behind(self) -> str:
        """Why whoever has more should wait, in words: more waits to be written to disk than should."""
        if hindered := self._journal.hindered or self._runs.hindered:
            return hindered
        return TOO_FAST if self._journal.behind or self._runs.behind else ""

    def take(
        self, spans: Sequence[Span], unreadable: int = 0, remote: Collection[tuple[str, str]] = ()
    ) -> None:
        """Spans came, beside so many that could not be read. `remote`: those (trace, id) whose parent is in
        another process."""
        now = self._clock()
        add = self._traces.add
        new: list[bytes] = []
        began: set[str] = set()
        repeated = late = 0
        for span in spans:
            line = line_of(span)
            came = add(span, line, now, bool(remote) and (span.trace, span.id) in remote)
            if came == "new":
                new.append(line)
                began.add(span.trace)
            elif came == "late":
                late += 1
            else:
                repeated += 1
        if new:
            self._journal.append(began, b"".join(new))
            self._began += len(began)
        total = len(spans) + unreadable
        self.figures.count(metrics.COLLECTOR_SPANS, by=total)
        self._runs.count_read(SOURCE, total)
        for reason, words, count in (
            ("repeated", REPEATED, repeated),
            ("late", LATE, late),
            ("unreadable", UNREADABLE, unreadable),
        ):
            self._drop(reason, words, count)
        for ended in self._traces.excess():
            self._end(ended)

    def replay(self, written: Callable[[], frozenset[str]]) -> int:
        """Take what was open when the process before this one ended; returns how many spans that is.

        `written` finds the ids of loops that it may have written without having come to note it: none of them
        is written again.
        """
        now = self._clock()
        count = 0
        for span, line in self._journal.replay(lambda trace, ids: self._traces.remember([(trace, ids)])):
            count += self._traces.add(span, line, now) == "new"
        if count:
            self._written = written()
        return count

    def end_due(self, most: int = 20) -> bool:
        """End what is due, but no more at once than so many and as many as began since; returns whether there
        is more.

        So what is open does not grow where the machine is too slow: who sends is answered later instead.
        """
        most += self._began
        self._began = 0
        for number, ended in enumerate(self._traces.due(self._clock()), start=1):
            self._end(ended)
            if number == most:
                return True
        held = self._journal.held
        if held:
            self._journal.move(self._traces.texts(held))
        return False

    def end_all(self) -> None:
        """End everything that is open: no more will come."""
        for ended in self._traces.all():
            self._end(ended)

    def close(self) -> None:
        """End everything, and write it."""
        self.end_all()
        self._runs.close()
        self._journal.close()

    def count_request(self, signal: str, status: int) -> None:
        self.figures.count(metrics.COLLECTOR_REQUESTS, signal, str(status))

    def say_once(self, words: str) -> None:
        if words not in self._said:
            self._said.add(words)
            self._say(words)

    def gauges(self) -> dict[Metric, float]:
        """Traces, spans and bytes that are open now."""
        return {
            metrics.COLLECTOR_OPEN_TRACES: len(self._traces),
            metrics.COLLECTOR_OPEN_SPANS: self._traces.spans,
            metrics.COLLECTOR_OPEN_BYTES: self._traces.size,
            metrics.COLLECTOR_JOURNAL_BYTES: self._journal.size,
        }

    def _end(self, ended: Ended) -> None:
        """Write the records of loops that have ended."""
        spans = [span_of_line(line) for line in ended.spans]
        traces = list(ended.traces)
        drafts = self._drafts(spans)
        inner = inner_of(drafts)
        records = [
            (*self._record(one, inner.get(one.id, ())), one.sampled)
            for one in drafts
            if one.id not in self._written
        ]
        if drafts:
            self._traces.remember(ended.traces.items())
        if not records:
            self._journal.ended(traces)
        last = len(records) - 1
        for number, (record, tally, clocks, sampled) in enumerate(records):
            self.loops += 1
            self.figures.count(metrics.COLLECTOR_LOOPS, ended.why)
            self._sink(record)
            self._runs(record, tally, traces if number == last else None, clocks, sampled)

    def _drafts(self, spans: Sequence[Span]) -> list[LoopDraft]:
        drafts = []
        told = False
        try:
            for one in loops_of(spans, SOURCE):
                if isinstance(one, Skipped):
                    told = True
                    self._runs.count_skipped(one.reason, one.count)
                else:
                    drafts.append(one)
        except Exception:
            # A defect of ours, which must cost this trace alone.
            _log.exception("the %d spans of trace %s were not understood", len(spans), spans[0].trace)
            self._runs.count_skipped("not understood", len(spans))
            return []
        if not drafts:
            self.figures.count(metrics.COLLECTOR_SPANS_DROPPED, "of no agent", by=len(spans))
            if not told:
                self._runs.count_skipped(OF_NO_AGENT, len(spans))
        return drafts

    def _record(
        self, draft: LoopDraft, inner: Iterable[tuple[int, str]]
    ) -> tuple[LoopRecord, Tally, Collection[str]]:
        """The record of a loop, the tally of its calls, its clocks. `inner`: the loops in it (`inner_of`)."""
        tally = Tally()
        return with_inner(record_of(draft, tally, self._origin_ns), inner), tally, draft.clocks

    def _drop(self, reason: str, words: str, count: int) -> None:
        if count:
            self.figures.count(metrics.COLLECTOR_SPANS_DROPPED, reason, by=count)
            self._runs.count_skipped(words, count)


def flattened(tokens: Iterable[object]) -> list[str]:
    """The traces that tokens of `KeptRuns` name."""
    return [trace for token in tokens if isinstance(token, list) for trace in token]
