"""The text of a scrape, and the thread that serves it.

prometheus-client builds an object and a dictionary per line, which at 50 tools and six strategies
takes a quarter of a second of the interpreter that the event loop needs too. Here every line but
its number is made once and kept, so that a scrape is mostly joining strings. The text is the same
as prometheus-client's `generate_latest` of the sink (a test compares them), which is what an
application's own registry uses.
"""

from __future__ import annotations

import gzip
import logging
import threading
import time
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from profiler import metrics
from profiler.hosts import exposed
from profiler.metrics import Metric

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

    from profiler.exporters.prometheus import Histogram, PrometheusSink

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_AT_ONCE = 20
"""Histograms rendered before the event loop gets its turn: some 0.2 ms of work."""

_PAUSE_SECONDS = 5e-5
"""Longer than nothing, else the interpreter's lock is taken back before the other thread wakes."""

_NS = 1_000_000_000

_log = logging.getLogger(__name__)


class Exposition:
    """Renders a sink. OpenMetrics alone has exemplars; each is shown until a newer one replaces it."""

    def __init__(self, sink: PrometheusSink) -> None:
        self._sink = sink
        self._heads: dict[tuple[Metric, tuple[str, ...]], list[str]] = {}

    def render(self, openmetrics: bool = False) -> bytes:
        """All metrics as text. Reads the sink while its thread goes on writing."""
        lines: list[str] = []
        for metric in metrics.TABLE:
            family = metric.name
            if openmetrics and metric.kind == "counter":
                family = family.removesuffix("_total")
            lines.append(f"# HELP {family} {metric.help}\n# TYPE {family} {metric.kind}\n")
            if metric.kind == "histogram":
                for number, (labels, child) in enumerate(self._sink.children(metric)):
                    if number % _AT_ONCE == _AT_ONCE - 1:
                        time.sleep(_PAUSE_SECONDS)
                    self._histogram(lines, metric, labels, child, openmetrics)
            else:
                for labels, value in self._sink.values(metric):
                    lines.append(f"{self._plain(metric, labels)}{value!r}\n")
        if openmetrics:
            lines.append("# EOF\n")
        return "".join(lines).encode()

    def _histogram(
        self, lines: list[str], metric: Metric, labels: tuple[str, ...], child: Histogram, openmetrics: bool
    ) -> None:
        heads = self._heads.get((metric, labels))
        if heads is None:
            heads = self._heads[metric, labels] = self._histogram_heads(metric, labels)
        counts, total = child.counts[:], child.sum
        cumulated = list(accumulate(counts))
        if openmetrics and child.exemplars:
            scale = _NS if metric.is_time else 1
            exemplars = child.take_exemplars()
            for index, count in enumerate(cumulated):
                exemplar = exemplars.get(index)
                lines.append(f"{heads[index]}{count}")
                if exemplar is not None:
                    trace, value, at = exemplar
                    lines.append(f' # {{trace_id="{_escaped(trace)}"}} {value / scale!r} {at:.3f}')
                lines.append("\n")
        else:
            lines += [f"{head}{count}\n" for head, count in zip(heads, cumulated, strict=False)]
        lines.append(f"{heads[-2]}{cumulated[-1]}\n{heads[-1]}{total / _NS if metric.is_time else total!r}\n")

    def _plain(self, metric: Metric, labels: tuple[str, ...]) -> str:
        heads = self._heads.get((metric, labels))
        if heads is None:
            heads = self._heads[metric, labels] = [f"{metric.name}{_braced(self._pairs(metric, labels))} "]
        return heads[0]

    def _histogram_heads(self, metric: Metric, labels: tuple[str, ...]) -> list[str]:
        """The lines without their numbers: buckets, count, sum."""
        pairs = self._pairs(metric, labels)
        buckets = [_braced([*pairs, f'le="{bound}"']) for bound in bounds(metric)]
        return [
            *(f"{metric.name}_bucket{inside} " for inside in buckets),
            f"{metric.name}_count{_braced(pairs)} ",
            f"{metric.name}_sum{_braced(pairs)} ",
        ]

    def _pairs(self, metric: Metric, labels: tuple[str, ...]) -> list[str]:
        names = (*metric.labels, *self._sink.labels)
        values = (*labels, *self._sink.labels.values())
        return [f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True)]


def bounds(metric: Metric) -> list[str]:
    """A histogram's bucket bounds as the label `le` shows them."""
    return [*(str(float(f"{bound:.10g}")) for bound in metric.buckets), "+Inf"]


def serve(render: Callable[[bool], bytes], port: int, host: str) -> int:
    """Answer GET /metrics from a thread of its own; returns the port. Raises OSError when it is taken.

    Where other machines can reach it, a warning is logged.
    """

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] not in ("/metrics", "/"):
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"this serves /metrics\n"]
        openmetrics = "application/openmetrics-text" in environ.get("HTTP_ACCEPT", "")
        body = render(openmetrics)
        headers = [("Content-Type", OPENMETRICS if openmetrics else TEXT)]
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            body = gzip.compress(body, 1)  # without the interpreter's lock
            headers.append(("Content-Encoding", "gzip"))
        start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
        return [body]

    server = make_server(host, port, application, WSGIServer, _Quiet)
    warning = exposed("/metrics", host, server.server_port)
    if warning is not None:
        _log.warning("%s", warning)
    threading.Thread(target=server.serve_forever, daemon=True).start()  # a greenlet where gevent patched
    return server.server_port


class _Quiet(WSGIRequestHandler):
    timeout = 5.0  # seconds, for a peer that connects and says nothing

    def log_message(self, format: str, *args: object) -> None:
        """No line per scrape."""


def _braced(pairs: list[str]) -> str:
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
