"""Limiters as pure state machines.

A *limiter* is ours: it decides which calls may run now. (A *quota* is the server's.) A limiter
knows neither asyncio nor a clock; `profiler.limits.gate.Gate` drives it, first come, first served.

    FixedLimit     at most N inside: a semaphore's rule
    RateLimit      at most r·t + b: GCRA, over requests or tokens, with refunds
    AdaptiveLimit  as many as the server takes: AIMD by epochs
    Together       several of them, all or none
    Holdback       what Retry-After asks for, with jitter
"""

from profiler.limits.adaptive import AdaptiveLimit
from profiler.limits.limiter import ONE, UNTIL_RELEASE, Cost, FixedLimit, Limiter, Outcome, Ticket, Together
from profiler.limits.rate import RateLimit
from profiler.limits.refusals import Holdback

__all__ = [
    "ONE",
    "UNTIL_RELEASE",
    "AdaptiveLimit",
    "Cost",
    "FixedLimit",
    "Holdback",
    "Limiter",
    "Outcome",
    "RateLimit",
    "Ticket",
    "Together",
]
