"""What limiters let through in all processes together, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from profiler.limits.adaptive import AdaptiveLimit
from profiler.limits.rate import RateLimit
from profiler.limits.spec import Rule


def totals(rules: Sequence[Rule], *, share: int = 1, processes: int = 1, what: str = "calls") -> list[str]:
    """`rate:50/s: 25 per process × 2 processes = up to 50 calls/s`: a line for each rule.

    `share` as in `Gate`: each process has 1/`share` of a limit.
    """
    return [f"{rule.spec}: {' '.join(_words(rule, share, processes, what))}" for rule in rules]


def _words(rule: Rule, share: int, processes: int, what: str) -> Iterator[str]:
    limiter = rule.make(share)
    if isinstance(limiter, AdaptiveLimit):
        yield f"adapts, from {limiter.limit} {what} at once"
        if processes > 1:
            yield f"in each of {processes} processes"
        return
    if isinstance(limiter, RateLimit):
        unit, seconds = ("min", 60) if "/min" in rule.spec else ("s", 1)
        each = limiter.rate * seconds
        thing = f"{'tokens' if limiter.resource == 'tokens' else what}/{unit}"
    else:
        each = float(limiter.limit or 0)
        of = f" of {rule.tool or 'each tool'}" if rule.scope == "tool" else ""
        thing = f"{what}{of} at once"
    if processes > 1:
        yield f"{_figure(each)} per process × {processes} processes ="
    yield f"up to {_figure(each * processes)} {thing}"


def _figure(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
