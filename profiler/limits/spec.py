"""Limiters by name: `semaphore:8`, `rate:500/min,burst=20`, `adaptive`.

semaphore:N                      one for the process
semaphore:N@agent                one for each agent
semaphore:N@tool                 one for each tool
semaphore:search=2,lookup=4      one for each of these tools
rate:R/s  rate:R/min,burst=B     over the calls of the process
adaptive                         one for the process, starting at 8; adaptive:N at N
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from profiler.errors import UsageError
from profiler.limits.adaptive import START, AdaptiveLimit
from profiler.limits.limiter import FixedLimit, Limiter
from profiler.limits.rate import RateLimit

Scope = Literal["process", "agent", "tool"]

FORMS = "semaphore:N, semaphore:N@agent, semaphore:N@tool, semaphore:TOOL=N,…, rate:R/s[,burst=B], adaptive"

_SEMAPHORE = re.compile(r"semaphore:([1-9]\d{0,8})(?:@(agent|tool))?")
_BY_TOOL = re.compile(r"semaphore:([\w-]+=[1-9]\d{0,8}(?:,[\w-]+=[1-9]\d{0,8})*)")
_RATE = re.compile(r"(rate|tokens):(\d{1,9}(?:\.\d+)?)/(s|min)(?:,burst=(\d+(?:\.\d+)?))?")
_ADAPTIVE = re.compile(r"adaptive(?::([1-9]\d{0,8}))?")


@dataclass(frozen=True, slots=True)
class Rule:
    """One limiter for each process, agent or tool; with `tool`, for that tool alone.

    `make(share)` gives it 1/`share` of the limit, where that many processes share one; a semaphore
    keeps at least one place. `limit` is the whole of it, None of a rate and of one that `moves`.
    """

    spec: str
    scope: Scope
    make: Callable[[int], Limiter]
    limit: int | None = None
    tool: str | None = None
    moves: bool = False


def parse_rules(spec: str) -> tuple[Rule, ...] | None:
    """The rules of one limiter's spec, None for what is none. Raises `UsageError`."""
    if match := _SEMAPHORE.fullmatch(spec):
        scope: Scope = match[2] if match[2] else "process"  # type: ignore[assignment]
        return (_semaphore(spec, int(match[1]), scope),)
    if match := _BY_TOOL.fullmatch(spec):
        pairs = [part.split("=") for part in match[1].split(",")]
        if len({name for name, _ in pairs}) < len(pairs):
            raise UsageError(f"{spec}: a tool has two limits")
        return tuple(_semaphore(spec, int(limit), "tool", name) for name, limit in pairs)
    match = _RATE.fullmatch(spec)
    if match and float(match[2]) > 0:
        resource = "tokens" if match[1] == "tokens" else "requests"
        rate = float(match[2]) / (60 if match[3] == "min" else 1)
        burst = float(match[4]) if match[4] else None
        RateLimit(rate, burst)  # refuses a bad one here, not at the first call

        def make(share: int) -> RateLimit:
            return RateLimit(rate / share, None if burst is None else max(1.0, burst / share), resource)

        return (Rule(spec, "process", make),)
    if match := _ADAPTIVE.fullmatch(spec):
        start = int(match[1]) if match[1] else START
        return (Rule(spec, "process", lambda share: AdaptiveLimit(max(1, start // share)), moves=True),)
    return None


def _semaphore(spec: str, limit: int, scope: Scope, tool: str | None = None) -> Rule:
    if scope == "agent":  # an agent lives in one process: nothing to share
        return Rule(spec, scope, lambda share: FixedLimit(limit), limit, tool)
    return Rule(spec, scope, lambda share: FixedLimit(max(1, limit // share)), limit, tool)


# What limiters let through in all processes together, in words.


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
