"""When a failed call is tried again, and after how long."""

from __future__ import annotations

from random import Random

from profiler.limits.holdback import spread_ns
from profiler.limits.limiter import Outcome
from profiler.limits.signals import outcome_of, status_of

BASE_NS = 500_000_000
CAP_NS = 8_000_000_000

TRANSIENT = frozenset((408, 429, 500, 502, 503, 504, 529))


def is_transient(error: BaseException) -> bool:
    """Whether another try may do better: after 429, 5xx of the usual kinds, and timeouts."""
    return status_of(error) in TRANSIENT or outcome_of(error) == "timeout"


def delay_ns(attempt: int, outcome: Outcome, asked_ns: int | None, random: Random) -> int:
    """Nanoseconds between attempt number `attempt` (from 1) and the next.

    What the server asked for (Retry-After) and U(0, max(1 s, 0.2·that)) more; else full jitter,
    U(0, min(8 s, 0.5·2ⁿ⁻¹ s)).
    """
    if asked_ns is not None and outcome == "rejected":
        return asked_ns + int(random.random() * spread_ns(asked_ns))
    return int(random.random() * min(CAP_NS, BASE_NS << (attempt - 1)))
