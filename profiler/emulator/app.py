"""The application: routes, and the emulator's own endpoints (health, journal, stats, metrics).

A journal of 100,000 entries takes some tenths of a second to write out, in which nothing else is
answered: fetch it between trials, not during one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import orjson

from profiler.emulator.conversation import Outstanding
from profiler.emulator.http1 import Exchange, Reply
from profiler.emulator.journal import Journal
from profiler.emulator.model_service import JSON, ModelService
from profiler.emulator.scheduler import Scheduler
from profiler.emulator.tape import Tape
from profiler.emulator.tool_service import ToolService, error, query_arguments
from profiler.scenarios.schema import Scenario

_TEXT = b"content-type: text/plain; charset=utf-8\r\n"
_METRICS = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"


class Emulator:
    """One emulator; an application for `http1.Server`."""

    def __init__(
        self, scenario: Scenario, seed: int, scheduler: Scheduler, journal: Journal | None = None
    ) -> None:
        self._scenario = scenario
        self._seed = seed
        self._journal = journal if journal is not None else Journal()
        self._started_ns = time.monotonic_ns()
        outstanding = Outstanding()
        tape = Tape(scenario, seed)
        models = ModelService(tape, self._journal, outstanding)
        self._tools = ToolService(tape, self._journal, outstanding, scheduler)
        self._routes: dict[tuple[bytes, bytes], Callable[[Exchange], None]] = {
            (b"POST", b"/v1/chat/completions"): lambda exchange: models.complete(exchange, models.chat),
            (b"POST", b"/v1/responses"): lambda exchange: models.complete(exchange, models.responses),
            (b"POST", b"/v1/messages"): lambda exchange: models.complete(exchange, models.messages),
            (b"POST", b"/v1/messages/count_tokens"): models.count_tokens,
            (b"GET", b"/v1/models"): models.list_models,
            (b"GET", b"/healthz"): lambda exchange: exchange.send(Reply(200, _TEXT, b"ok\n")),
            (b"HEAD", b"/healthz"): lambda exchange: exchange.send(Reply(200, _TEXT, b"ok\n")),
            (b"GET", b"/metrics"): self._metrics,
            (b"GET", b"/emulator/journal"): self._journal_get,
            (b"DELETE", b"/emulator/journal"): self._journal_clear,
            (b"GET", b"/emulator/stats"): self._stats,
        }
        self._paths = {path for _, path in self._routes}

    def __call__(self, exchange: Exchange) -> None:
        """Answer one request; `exchange.send` is called now, or later by a timer."""
        route = self._routes.get((exchange.method, exchange.path))
        if route is not None:
            route(exchange)
        elif exchange.path.startswith(b"/tools/"):
            self._tools(exchange)
        elif exchange.path in self._paths:
            error(exchange, 405, f"{exchange.method.decode('latin-1')} is not allowed here")
        else:
            error(
                exchange, 404, f"Invalid URL ({exchange.method.decode()} {exchange.path.decode('latin-1')})"
            )

    def _journal_get(self, exchange: Exchange) -> None:
        query = query_arguments(exchange.query)
        entries = self._journal.entries(trial=query.get("trial"), kind=query.get("kind"))
        body = {"clock": "monotonic_ns", "dropped": self._journal.dropped, "entries": entries}
        exchange.send(Reply(200, JSON, orjson.dumps(body)))

    def _journal_clear(self, exchange: Exchange) -> None:
        self._journal.clear()
        exchange.send(Reply(200, JSON, b'{"cleared":true}'))

    def _stats(self, exchange: Exchange) -> None:
        stats = {
            "scenario": self._scenario.name,
            "seed": self._seed,
            "uptime_seconds": (time.monotonic_ns() - self._started_ns) / 1e9,
            "cpu_seconds": time.process_time(),
            **self._journal.stats(),
        }
        exchange.send(Reply(200, JSON, orjson.dumps(stats)))

    def _metrics(self, exchange: Exchange) -> None:
        exchange.send(Reply(200, _METRICS, exposition(self._journal)))


# The journal's counters as Prometheus text. Pure.
#
# Written by hand: the server must not carry a metrics library's locks and registry on its hot path,
# and its few metrics are not those of the profiler.


def exposition(journal: Journal) -> bytes:
    """Text format 0.0.4."""
    lines = [
        (
            "# HELP emulator_requests_total Finished requests by API (chat, responses, messages, tools) and"
            " HTTP status."
        ),
        "# TYPE emulator_requests_total counter",
    ]
    for (api, status), count in sorted(journal.requests.items()):
        lines.append(f'emulator_requests_total{{api="{api}",status="{status}"}} {count}')
    lines += [
        "# HELP emulator_requests_in_flight Requests received and not finished.",
        "# TYPE emulator_requests_in_flight gauge",
    ]
    lines += [
        f'emulator_requests_in_flight{{api="{api}"}} {count}'
        for api, count in sorted(journal.in_flight.items())
    ]
    lines += [
        "# HELP emulator_faults_total Faults injected, by kind.",
        "# TYPE emulator_faults_total counter",
    ]
    lines += [
        f'emulator_faults_total{{kind="{kind}"}} {count}' for kind, count in sorted(journal.faults.items())
    ]
    rows = journal.lateness()
    lines += [
        "# HELP emulator_lateness_seconds First byte sent minus first byte due.",
        "# TYPE emulator_lateness_seconds histogram",
    ]
    for bound, count in rows:
        label = "+Inf" if bound == float("inf") else f"{bound:g}"
        lines.append(f'emulator_lateness_seconds_bucket{{le="{label}"}} {count}')
    lines += [
        f"emulator_lateness_seconds_sum {journal.lateness_sum}",
        f"emulator_lateness_seconds_count {rows[-1][1]}",
        "# HELP emulator_journal_dropped_total Journal entries that fell out of the ring.",
        "# TYPE emulator_journal_dropped_total counter",
        f"emulator_journal_dropped_total {journal.dropped}",
    ]
    return ("\n".join(lines) + "\n").encode()
