"""The ground truth: what was asked, when it was due, when it happened. Server-side monotonic times.

A ring: beyond `size` entries the oldest fall out and are counted. Counters by API and status, and
the lateness of responses, cover everything since the start (or the last clearing).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Literal

Kind = Literal["model", "tool"]


class Entry:
    """One request. Times are monotonic ns, 0 for what did not happen (yet).

    `received_ns`: the request was complete; `due_ns`: when its first byte was due (0: never, a
    hang); `sent_ns`: when the first byte was written; `finished_ns`: when the last was, or when the
    client went. For tools: `duration_ns` is what the tape asked for, `in_flight` the other calls of
    the same tool at arrival.
    """

    __slots__ = (
        "_journal",
        "api",
        "attempt",
        "call",
        "call_id",
        "due_ns",
        "duration_ns",
        "fault",
        "finished_ns",
        "in_flight",
        "kind",
        "loop",
        "on_finished",
        "outcome",
        "received_ns",
        "request_id",
        "round",
        "sent_ns",
        "status",
        "streamed",
        "tool",
        "trial",
    )

    def __init__(self, journal: Journal, kind: Kind, api: str, received_ns: int) -> None:
        self._journal = journal
        self.kind: Kind = kind
        self.api = api
        self.received_ns = received_ns
        self.due_ns = received_ns
        self.sent_ns = 0
        self.finished_ns = 0
        self.status = 0
        self.outcome = ""
        self.loop: int | None = None
        self.round: int | None = None
        self.call: int | None = None
        self.trial: str | None = None
        self.attempt = 0
        self.request_id = ""
        self.streamed = False
        self.fault: str | None = None
        self.tool: str | None = None
        self.call_id: str | None = None
        self.duration_ns = 0
        self.in_flight = 0
        self.on_finished: Callable[[], None] | None = None

    def first_byte(self, ns: int) -> None:
        self.sent_ns = ns

    def finished(self, ns: int, outcome: str) -> None:
        self.finished_ns = ns
        self.outcome = outcome
        if self.on_finished is not None:
            self.on_finished()
            self.on_finished = None
        self._journal.close(self)

    def as_dict(self) -> dict[str, Any]:
        """The entry as JSON; keys that only tools or only models have are left out for the other."""
        value: dict[str, Any] = {
            "kind": self.kind,
            "api": self.api,
            "loop": self.loop,
            "round": self.round,
            "trial": self.trial,
            "status": self.status,
            "outcome": self.outcome,
            "fault": self.fault,
            "received_ns": self.received_ns,
            "due_ns": self.due_ns,
            "sent_ns": self.sent_ns,
            "finished_ns": self.finished_ns,
        }
        if self.kind == "tool":
            value |= {
                "tool": self.tool,
                "call": self.call,
                "call_id": self.call_id,
                "duration_ns": self.duration_ns,
                "actual_ns": self.sent_ns - self.received_ns if self.sent_ns else 0,
                "in_flight": self.in_flight,
            }
        else:
            value |= {
                "attempt": self.attempt,
                "request_id": self.request_id,
                "streamed": self.streamed,
            }
        return value


_LATENESS_BOUNDS_NS = (100_000, 250_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000)


class Journal:
    """The ring and the counters."""

    def __init__(self, size: int = 100_000) -> None:
        self._ring: deque[Entry] = deque(maxlen=size)
        self.dropped = 0
        self.requests: Counter[tuple[str, int]] = Counter()
        self.faults: Counter[str] = Counter()
        self.in_flight: Counter[str] = Counter()
        self.peak_in_flight: dict[str, int] = {}
        self._lateness = [0] * (len(_LATENESS_BOUNDS_NS) + 1)
        self._lateness_sum_ns = 0

    def open(self, kind: Kind, api: str, received_ns: int) -> Entry:
        """A new entry, in the ring from now on."""
        ring = self._ring
        if len(ring) == ring.maxlen:
            self.dropped += 1
        entry = Entry(self, kind, api, received_ns)
        ring.append(entry)
        flying = self.in_flight[api] + 1
        self.in_flight[api] = flying
        if flying > self.peak_in_flight.get(api, 0):
            self.peak_in_flight[api] = flying
        return entry

    def close(self, entry: Entry) -> None:
        """Count a finished entry."""
        self.in_flight[entry.api] -= 1
        self.requests[entry.api, entry.status] += 1
        if entry.fault is not None:
            self.faults[entry.fault] += 1
        if entry.sent_ns:
            late = max(0, entry.sent_ns - entry.due_ns)
            self._lateness_sum_ns += late
            index = 0
            for bound in _LATENESS_BOUNDS_NS:
                if late <= bound:
                    break
                index += 1
            self._lateness[index] += 1

    def clear(self) -> None:
        """Forget entries and counts; what is in flight stays counted as such."""
        self._ring.clear()
        self.dropped = 0
        self.requests.clear()
        self.faults.clear()
        self.peak_in_flight.clear()
        self._lateness = [0] * (len(_LATENESS_BOUNDS_NS) + 1)
        self._lateness_sum_ns = 0

    def entries(self, trial: str | None = None, kind: str | None = None) -> list[dict[str, Any]]:
        """The entries still held, oldest first, optionally of one trial or kind only."""
        return [
            entry.as_dict()
            for entry in self._ring
            if (trial is None or entry.trial == trial) and (kind is None or entry.kind == kind)
        ]

    def lateness(self) -> list[tuple[float, int]]:
        """Cumulative counts of (first byte sent - due), by upper bound in seconds; the last is infinite."""
        total, rows = 0, []
        for bound, count in zip((*_LATENESS_BOUNDS_NS, None), self._lateness, strict=True):
            total += count
            rows.append((float("inf") if bound is None else bound / 1e9, total))
        return rows

    @property
    def lateness_sum(self) -> float:
        """Seconds."""
        return self._lateness_sum_ns / 1e9

    def stats(self) -> dict[str, Any]:
        """The counters as JSON."""
        requests: dict[str, dict[str, int]] = {}
        for (api, status), count in sorted(self.requests.items()):
            requests.setdefault(api, {})[str(status)] = count
        return {
            "requests": requests,
            "in_flight": {api: count for api, count in sorted(self.in_flight.items()) if count},
            "peak_in_flight": dict(sorted(self.peak_in_flight.items())),
            "faults": dict(sorted(self.faults.items())),
            "journal": {"entries": len(self._ring), "size": self._ring.maxlen, "dropped": self.dropped},
        }


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
