"""The collector as a server: it listens until it is told to stop, then writes what is open, and says so."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from profiler import metrics
from profiler.collector.bodies import PROTOBUF_MISSING, protobuf_reader
from profiler.collector.collector import Collector, flattened
from profiler.collector.journal import Journal
from profiler.collector.receiver import GRPC, CollectorConnection, Receiver
from profiler.collector.traces import OpenTraces, Patience
from profiler.emulator.access import allowed_host
from profiler.emulator.http1 import Exchange, HttpReply, Server
from profiler.emulator.scheduler import Scheduler
from profiler.errors import Interrupted, Terminated, UsageError
from profiler.exporters.prometheus import OPENMETRICS, TEXT, Exposition, PrometheusSink
from profiler.metrics import Metric
from profiler.process.signals import ENDING
from profiler.providers.endpoint import exposed
from profiler.recordings.keeping import Keep, KeptRuns, recent_ids
from profiler.rundir import Anchor

JOURNAL = ".collect"
"""The folder of the journal, in that of the run directories."""

_TICK_SECONDS = 0.25
_SWEEP_SECONDS = 15.0

_EOF = b"# EOF\n"


@dataclass(frozen=True, slots=True)
class Options:
    """The options of `profiler collect`."""

    host: str = "127.0.0.1"
    port: int = 4318
    out: Path = Path("runs")
    keep: Keep = field(default_factory=Keep)
    patience: Patience = field(default_factory=Patience)
    allowed: Collection[str] = ()


Say = Callable[[str], None]


def run(options: Options, show: Say, complain: Say) -> NoReturn:
    """Collect until told to stop. Raises `UsageError` before, `Interrupted` after.

    `show` gets lines for standard output, `complain` those for the log.
    """
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):  # where uvloop does not exist, asyncio serves, slower
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        told = runner.run(_serve(options, show, complain))
    raise told


async def _serve(options: Options, show: Say, complain: Say) -> Interrupted:
    loop = asyncio.get_running_loop()
    allowed = [allowed_host(name) for name in options.allowed]
    anchor = Anchor(time.time_ns(), 0)
    journal = Journal(options.out / JOURNAL)
    runs = KeptRuns(
        options.out,
        "collect",
        options.keep,
        "spans of OpenTelemetry",
        anchor,
        options={"keep": str(options.keep), "grace": options.patience.grace, "idle": options.patience.idle},
        written=lambda tokens: journal.ended(flattened(tokens)),
    )
    sink = PrometheusSink()
    collector = Collector(OpenTraces(options.patience), journal, runs, sink, anchor.unix_ns, say=complain)
    scheduler = Scheduler(loop)
    receiver = Receiver(collector, _Scrape(loop, collector, sink), allowed)
    server = Server(receiver, scheduler, receiver.unread)

    def on_http2() -> None:
        collector.say_once(GRPC)

    try:
        listener = await loop.create_server(
            lambda: CollectorConnection(server, on_http2), options.host, options.port, backlog=1024
        )
    except OSError as error:
        journal.close()
        # asyncio wraps the system's words in some of its own.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise UsageError(f"cannot listen on {options.host}:{options.port}: {reason}") from error
    told: asyncio.Future[Interrupted] = loop.create_future()
    _Ending(loop, told).install()
    replayed = collector.replay(lambda: recent_ids(options.out, "collect"))
    port = listener.sockets[0].getsockname()[1]
    for line in _greeting(options, port, replayed):
        show(line)
    for warning in (_unread(), exposed("the collector", options.host, port)):
        if warning is not None:
            complain(warning)
    # The objects of now stay alive: full collections would only walk over them.
    gc.collect()
    gc.freeze()
    tasks = [asyncio.create_task(_end_due(collector)), asyncio.create_task(_sweep(server))]
    interrupted = await told
    listener.close()
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.sleep(0)
    journal.flush()
    left = int(collector.gauges()[metrics.COLLECTOR_OPEN_TRACES])
    if left:
        words = f"{_counted(left, 'open trace')} to write (a second signal leaves them to the next collector)"
        show(f"ending: {words}")
    collector.close()
    for line in _report(collector, runs):
        show(line)
    interrupted.outcome = f"after {_counted(collector.loops, 'loop')}"
    return interrupted


class _Ending:
    """SIGINT, SIGTERM and SIGHUP: the first lets everything be written, the next ends the process at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, told: asyncio.Future[Interrupted]) -> None:
        self._loop, self._told = loop, told

    def install(self) -> None:
        for number in (signal.SIGINT, *ENDING):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                self._loop.add_signal_handler(number, self._first, number)

    def _first(self, number: int) -> None:
        if self._told.done():
            return
        ended = Interrupted() if number == signal.SIGINT else Terminated(signal.Signals(number))
        for one in (signal.SIGINT, *ENDING):
            self._loop.remove_signal_handler(one)
            # What is open stays in the journal, and is taken up by the next collector.
            signal.signal(one, lambda *_: os._exit(ended.exit_code))
        self._told.set_result(ended)


class _Scrape:
    """Answers `/metrics` from a thread, since the text of many tools takes some milliseconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, collector: Collector, sink: PrometheusSink) -> None:
        self._loop = loop
        self._collector = collector
        self._exposition = Exposition(sink)

    def __call__(self, exchange: Exchange) -> None:
        openmetrics = b"application/openmetrics-text" in exchange.headers.get(b"accept", b"")
        packed = b"gzip" in exchange.headers.get(b"accept-encoding", b"")
        rendered = self._loop.run_in_executor(
            None, self._render, openmetrics, packed, self._collector.gauges()
        )
        rendered.add_done_callback(lambda done: exchange.send(self._reply(done, openmetrics, packed)))

    def _render(self, openmetrics: bool, packed: bool, gauges: dict[Metric, float]) -> bytes:
        text = self._exposition.render(openmetrics).removesuffix(_EOF)
        text += self._collector.figures.render(gauges, openmetrics) + (_EOF if openmetrics else b"")
        return gzip.compress(text, 1) if packed else text

    @staticmethod
    def _reply(done: asyncio.Future[bytes], openmetrics: bool, packed: bool) -> HttpReply:
        kind = OPENMETRICS if openmetrics else TEXT
        headers = f"content-type: {kind}\r\n" + ("content-encoding: gzip\r\n" if packed else "")
        return HttpReply(200, headers.encode(), done.result())


async def _end_due(collector: Collector) -> None:
    more = False
    while True:
        await asyncio.sleep(0 if more else _TICK_SECONDS)  # 0: what comes in has its turn
        more = collector.end_due()


async def _sweep(server: Server) -> None:
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        server.sweep()


def _greeting(options: Options, port: int, replayed: int) -> Iterator[str]:
    shown = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{shown}:{port}"
    yield f"collector listening on {url}"
    yield f"send spans:  OTEL_EXPORTER_OTLP_ENDPOINT={url} OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"
    yield f"records:     {options.out} (kept: {options.keep}); metrics: {url}/metrics"
    if replayed:
        yield f"going on:    {_counted(replayed, 'span')} of traces that were open when the last one ended"


def _unread() -> str | None:
    if protobuf_reader() is not None:
        return None
    return f"only JSON is read (OTEL_EXPORTER_OTLP_PROTOCOL=http/json); {PROTOBUF_MISSING}"


def _report(collector: Collector, runs: KeptRuns) -> Iterator[str]:
    """A summary: how much was collected, and where it is."""
    total = collector.figures.total(metrics.COLLECTOR_SPANS)
    yield f"{_counted(collector.loops, 'loop')} of {_counted(total, 'span')}"
    for (reason,), count in collector.figures.counts(metrics.COLLECTOR_SPANS_DROPPED):
        if count:
            yield f"  in none: {count:,} {reason}"
    if runs.lost:
        yield f"  {_counted(runs.lost, 'loop')} could not be written"
    if runs.path is not None:
        yield f"records:  {runs.path}"
        yield f"report:   profiler report {runs.path}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
