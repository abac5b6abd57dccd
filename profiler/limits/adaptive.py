"""A limit that follows what the server takes: additive increase, multiplicative decrease by epochs.

AIMD after Chiu & Jain 1989, with a memory of where the server was full. Rejections come in bursts, and
a cut at each one would end at a limit of one call. So a limit L is cut at most once per epoch, which
is one mean latency: the time it takes to see what a cut did.

    success      L + 1 in slow start, L + 1/L after it; only while at least 0.9·L calls are inside
    rejection    to min(0.9·L, others inside), in slow start min(0.7·L, others); to the others alone
                 when there was no cut for 3 epochs; never below L/2
    timeouts     to 0.9·L (0.7·L in slow start), when more than 5 % of the epoch's calls timed out
    full         a call was refused with k others inside: L stays at k for 8 epochs, then one more is
                 tried; if that fails, for 16
    growth       after 4 epochs of growth without a cut, each further one doubles the step, up to L/8

Minimum latency and its gradient are not used: tool latencies are heavy-tailed. For an epoch after a
rejection no call is let in beyond the others that were inside then: otherwise the whole queue would be
refused on the one place too many, a call per round trip. The memory is there because a limit that keeps
trying its ceiling costs a failed call each time.
"""

from __future__ import annotations

from profiler.errors import UsageError
from profiler.limits.limiter import UNTIL_RELEASE, Cost, Signal, Ticket

START = 8
CUT = 0.9
CUT_IN_SLOW_START = 0.7
DEEPEST_CUT = 0.5
SATURATED = 0.9
"""The share of the limit that must be in use for a success to say that more would be taken."""

TIMEOUT_SHARE = 0.05
LATENCY_WEIGHT = 0.05
"""The weight of each new latency in the exponential moving average, which is the length of an epoch."""

PATIENT_EPOCHS = 4
FASTEST_GROWTH = 1 / 8
FIRST_PATIENCE, LAST_PATIENCE = 4, 16
ALONE_EPOCHS = 3


class AdaptiveLimit:
    """At most `limit` calls inside at once, which follows the server; never below 1 nor above `most`."""

    def __init__(self, start: int = START, *, most: int | None = None) -> None:
        if start < 1:
            raise UsageError(f"an adaptive limit must start at 1 at least, not {start}")
        self.exact = float(start)
        self.inside = 0
        self._most = float(most) if most is not None else float("inf")
        self._slow_start = True
        self._latency_ns: float | None = None
        self._no_cut_before_ns = 0
        self._ceiling = 0
        self._ceiling_until_ns = 0
        self._epoch_ends_ns = 0
        self._epoch_calls = 0
        self._epoch_timeouts = 0
        self._epochs = 0
        self._calm_epochs = 0
        self._grew = False
        self._full: int | None = None  # others inside when a call was last refused
        self._full_epochs = 0
        self._patience = FIRST_PATIENCE
        self._last_cut = 0

    @property
    def limit(self) -> int:
        return int(self.exact)

    def wait_ns(self, now_ns: int, cost: Cost) -> int:
        if self.inside >= int(self.exact):
            return UNTIL_RELEASE
        if self.inside >= self._ceiling and now_ns < self._ceiling_until_ns:
            return self._ceiling_until_ns - now_ns
        return 0

    def enter(self, now_ns: int, cost: Cost) -> Ticket:
        self.inside += 1
        return now_ns

    def leave(self, now_ns: int, ticket: Ticket, signal: Signal, used: Cost | None) -> None:
        if self.inside == 0:
            raise RuntimeError("left more often than entered")
        saturated = self.inside >= SATURATED * int(self.exact)
        self.inside -= 1
        if signal == "unknown":
            return
        if now_ns >= self._epoch_ends_ns:
            self._next_epoch(now_ns)
        self._epoch_calls += 1
        if signal == "ok":
            elapsed: int = now_ns - ticket
            mean = self._latency_ns
            self._latency_ns = elapsed if mean is None else mean + LATENCY_WEIGHT * (elapsed - mean)
            if saturated:
                self._grow()
        elif signal == "rejected":
            self._hold_at_others(now_ns)
            if self._full is None:  # a try of one more that failed
                self._patience = min(LAST_PATIENCE, 2 * self._patience)
            self._full, self._full_epochs = self.inside, 0
            self._cut(now_ns, refused=True)
        else:
            self._epoch_timeouts += 1
            if self._epoch_timeouts > max(1.0, TIMEOUT_SHARE * self._epoch_calls):
                self._cut(now_ns, refused=False)

    def _grow(self) -> None:
        self._grew = True
        if self._slow_start:
            step = 1.0
        else:
            beyond = self._calm_epochs - PATIENT_EPOCHS
            per_epoch = max(1.0, min(2.0**beyond, self.exact * FASTEST_GROWTH))
            step = per_epoch / self.exact
        most = self._most if self._full is None else min(self._most, float(self._full))
        self.exact = max(self.exact, min(most, self.exact + step))
        self._ceiling += 1

    def _cut(self, now_ns: int, *, refused: bool) -> None:
        if now_ns < self._no_cut_before_ns:
            return
        wanted = (CUT_IN_SLOW_START if self._slow_start else CUT) * self.exact
        if refused:
            alone = not self._slow_start and self._epochs - self._last_cut >= ALONE_EPOCHS
            wanted = min(self.exact if alone else wanted, float(self.inside))
        self.exact = max(1.0, DEEPEST_CUT * self.exact, wanted)
        self._slow_start = False
        self._calm_epochs = 0
        self._grew = False
        self._last_cut = self._epochs
        self._no_cut_before_ns = now_ns + self._epoch_ns
        self._epoch_calls = self._epoch_timeouts = 0

    def _hold_at_others(self, now_ns: int) -> None:
        """For an epoch, let no call in beyond those inside now."""
        others = max(1, self.inside)
        if others < self._ceiling or now_ns >= self._ceiling_until_ns:
            self._ceiling = others
        self._ceiling_until_ns = now_ns + self._epoch_ns

    def _next_epoch(self, now_ns: int) -> None:
        self._epoch_ends_ns = now_ns + self._epoch_ns
        self._epoch_calls = self._epoch_timeouts = 0
        self._epochs += 1
        if self._grew and self._full is None:
            self._calm_epochs += 1
            if self._calm_epochs > 1:  # the server takes more than it seemed to
                self._patience = FIRST_PATIENCE
        elif self._full is not None and self.exact >= self._full:
            self._full_epochs += 1
            if self._full_epochs >= self._patience:
                self._full = None
        self._grew = False

    @property
    def _epoch_ns(self) -> int:
        """One mean latency; a tenth of a second until there is one."""
        return 100_000_000 if self._latency_ns is None else max(1, int(self._latency_ns))
