"""The ground truth: what was asked, when it was due, when it happened. Server-side monotonic times.

A ring: beyond `size` entries the oldest fall out and are counted. Counters by API and status, and
the lateness of responses, cover everything since the start (or the last clearing).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Mapping
from itertools import accumulate
from operator import attrgetter
from typing import Any, Literal

import msgspec

from profiler.redaction.keys import hide_keys

Kind = Literal["model", "tool"]

_BOTH = ("kind", "api", "loop", "round", "trial", "status", "outcome", "fault")
_TIMES = ("received_ns", "due_ns", "sent_ns", "finished_ns")
_TOKENS = ("input_tokens", "cached_tokens", "cache_written_tokens", "output_tokens", "reasoning_tokens")
_SHOWN: dict[Kind, tuple[str, ...]] = {
    "model": (*_BOTH, *_TIMES, "attempt", "request_id", "streamed", *_TOKENS),
    "tool": (*_BOTH, *_TIMES, "tool", "call", "call_id", "duration_ns", "actual_ns", "in_flight"),
}
_VALUES = {kind: attrgetter(*names) for kind, names in _SHOWN.items()}


class Entry(msgspec.Struct, eq=False, gc=False):
    """One request. Times are monotonic ns, 0 for what did not happen (yet).

    `received_ns`: the request was complete; `due_ns`: when its first byte was due (0: never, a
    hang); `sent_ns`: when the first byte was written; `finished_ns`: when the last was, or when the
    client went. For tools: `duration_ns` is what the tape asked for, `in_flight` the other calls of
    the same tool at arrival. `on_finished` is called once, when the response has ended. `fault`: the kinds
    of all that it met, joined by `+`.

    Tokens of a model request that was answered, as `profiler.records.ModelCall` counts them, None of others.

    The garbage collector need not look at the hundred thousand of a ring: an entry that has finished knows
    neither its journal nor anything else that could lead back to it.
    """

    _journal: Journal | None
    kind: Kind
    api: str
    received_ns: int
    due_ns: int
    sent_ns: int = 0
    finished_ns: int = 0
    status: int = 0
    outcome: str = ""
    loop: int | None = None
    round: int | None = None
    call: int | None = None
    trial: str | None = None
    attempt: int = 0
    request_id: str = ""
    streamed: bool = False
    fault: str | None = None
    tool: str | None = None
    call_id: str | None = None
    duration_ns: int = 0
    in_flight: int = 0
    input_tokens: int | None = None
    cached_tokens: int | None = None
    cache_written_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    on_finished: Callable[[], None] | None = None

    @property
    def actual_ns(self) -> int:
        """How long a tool's response took to begin."""
        return self.sent_ns - self.received_ns if self.sent_ns else 0

    def first_byte(self, ns: int) -> None:
        self.sent_ns = ns

    def finished(self, ns: int, outcome: str) -> None:
        journal = self._journal
        if journal is None:
            return  # a client that cancels a call and then goes ends it once
        self._journal = None
        self.finished_ns = ns
        self.outcome = outcome
        if self.on_finished is not None:
            self.on_finished()
            self.on_finished = None
        journal.close(self)

    def as_dict(self) -> dict[str, Any]:
        """The entry as JSON, with the keys of its kind."""
        return dict(zip(_SHOWN[self.kind], _VALUES[self.kind](self), strict=True))


_LATENESS_BOUNDS_NS = (100_000, 250_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000)

_MOST_WORDS = 400
"""Characters of a reason in the log."""


class Journal:
    """The ring, and the counters: by API, `faults` by kind.

    `log` takes a line for every refusal, `kept` every entry when it has ended.
    """

    def __init__(
        self,
        size: int = 100_000,
        log: Callable[[str], None] | None = None,
        kept: Callable[[Entry], None] | None = None,
    ) -> None:
        self._log = log
        self._kept = kept
        self._ring: deque[Entry] = deque(maxlen=size)
        self.in_flight: Counter[str] = Counter()
        self.clear()

    def open(self, kind: Kind, api: str, received_ns: int) -> Entry:
        """A new entry, in the ring from now on."""
        ring = self._ring
        if len(ring) == ring.maxlen:
            self.dropped += 1
        entry = Entry(self, kind, api, received_ns, received_ns)
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
            self.faults.update(entry.fault.split("+"))
        if entry.sent_ns:
            late = max(0, entry.sent_ns - entry.due_ns)
            self._lateness_sum_ns += late
            self._lateness[bisect_left(_LATENESS_BOUNDS_NS, late)] += 1
        if self._kept is not None:
            self._kept(entry)

    def refused(self, method: bytes, path: bytes, status: int, reason: str) -> None:
        """Log a request that was not served, with the reason in the server's words."""
        if self._log is None:
            return
        shown = path.decode("latin-1")
        if shown.startswith("/tools/"):
            shown = "/".join(shown.split("/")[:3])  # what follows the tool's name is an argument
        words = hide_keys(" ".join(reason[: 4 * _MOST_WORDS].split()))[:_MOST_WORDS]
        self._log(f"{method.decode('latin-1')} {hide_keys(shown)} {status} {words}")

    def clear(self) -> None:
        """Forget entries and counts; what is in flight stays counted as such."""
        self._ring.clear()
        self.dropped = 0
        self.requests: Counter[tuple[str, int]] = Counter()  # by API and status
        self.faults: Counter[str] = Counter()
        self.peak_in_flight: dict[str, int] = {}
        self._lateness = [0] * (len(_LATENESS_BOUNDS_NS) + 1)
        self._lateness_sum_ns = 0

    def entries(self, trial: str | None = None, kind: str | None = None) -> list[dict[str, Any]]:
        """The entries still held, oldest first, optionally of one trial or kind only."""
        return [
            entry.as_dict()
            for entry in self._ring
            if (trial is None or entry.trial == trial) and (kind is None or entry.kind == kind)
        ]

    def lateness(self) -> dict[str, float]:
        """First byte sent minus first byte due, as the samples of a Prometheus histogram in seconds."""
        bounds = [*(f"{bound / 1e9:g}" for bound in _LATENESS_BOUNDS_NS), "+Inf"]
        counts = list(accumulate(self._lateness))
        buckets = {f'_bucket{{le="{bound}"}}': n for bound, n in zip(bounds, counts, strict=True)}
        return {**buckets, "_sum": self._lateness_sum_ns / 1e9, "_count": counts[-1]}

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
    requests = {
        f'{{api="{api}",status="{status}"}}': n for (api, status), n in sorted(journal.requests.items())
    }
    in_flight = {f'{{api="{api}"}}': n for api, n in sorted(journal.in_flight.items())}
    faults = {f'{{kind="{kind}"}}': n for kind, n in sorted(journal.faults.items())}
    finished = "Finished requests by API (chat, responses, messages, tools, mcp) and HTTP status."
    dropped = "Journal entries that fell out of the ring."
    text = (
        _family("requests_total", "counter", finished, requests)
        + _family("requests_in_flight", "gauge", "Requests received and not finished.", in_flight)
        + _family("faults_total", "counter", "Faults injected, by kind.", faults)
        + _family(
            "lateness_seconds", "histogram", "First byte sent minus first byte due.", journal.lateness()
        )
        + _family("journal_dropped_total", "counter", dropped, {"": journal.dropped})
    )
    return text.encode()


def _family(name: str, kind: str, meaning: str, samples: Mapping[str, float]) -> str:
    """A metric `emulator_{name}`; `samples`: what follows the name (suffix and labels) → value."""
    head = f"# HELP emulator_{name} {meaning}\n# TYPE emulator_{name} {kind}\n"
    return head + "".join(f"emulator_{name}{rest} {value}\n" for rest, value in samples.items())
