"""Limiters by name: `semaphore:8`, `rate:500/min,burst=20`, `adaptive`.

semaphore:N                      one for the process
semaphore:N@agent                one for each agent
semaphore:N@tool                 one for each tool
semaphore:search=2,lookup=4      one for each of these tools
semaphore:N@server               one for each MCP server, over all its tools
semaphore:files/*=8              one for this MCP server
rate:R/s  rate:R/min,burst=B     over the calls of the process
adaptive                         one for the process, starting at 8; adaptive:N at N
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from profiler.errors import UsageError
from profiler.limits.limiter import START, AdaptiveLimit, FixedLimit, Limiter, RateLimit

Scope = Literal["process", "agent", "tool", "server"]

FORMS = (
    "semaphore:N, semaphore:N@agent, semaphore:N@tool, semaphore:N@server, semaphore:TOOL=N,…, "
    "semaphore:SERVER/*=N,…, rate:R/s[,burst=B], adaptive"
)

ALL_TOOLS = "/*"
"""Behind the name of a server: all of its tools."""

_SEMAPHORE = re.compile(r"semaphore:([1-9]\d{0,8})(?:@(agent|tool|server))?")
_NAMED = r"(?:[\w-]+|[\w.-]+/\*)=[1-9]\d{0,8}"
_BY_TOOL = re.compile(rf"semaphore:({_NAMED}(?:,{_NAMED})*)")
_RATE = re.compile(r"(rate|tokens):(\d{1,9}(?:\.\d+)?)/(s|min)(?:,burst=(\d+(?:\.\d+)?))?")
_ADAPTIVE = re.compile(r"adaptive(?::([1-9]\d{0,8}))?")


@dataclass(frozen=True, slots=True)
class Rule:
    """One limiter for each process, agent, tool or MCP server; with `tool` or `server`, for that one alone.

    `limit` is a semaphore's, or the one that an adaptive limiter starts from; `rate` (per second) and
    `burst` are those of a rate over `resource`. `text` is the part of a spec that it comes from; the
    rules of `semaphore:a=1,b=2` share one. For a limiter of your own, override `make`.
    """

    text: str
    kind: Literal["semaphore", "rate", "adaptive"]
    scope: Scope = "process"
    limit: int | None = None
    tool: str | None = None
    rate: float = 0.0
    burst: float | None = None
    resource: str = "requests"
    server: str | None = None

    @property
    def adapts(self) -> bool:
        """Its limit changes with what the server takes."""
        return self.kind == "adaptive"

    @property
    def fixed_limit(self) -> int | None:
        """How many calls it lets be inside at once; None for a rate and for a limit that changes."""
        return self.limit if self.kind == "semaphore" else None

    def make(self, share: int = 1) -> Limiter:
        """The limiter, with one process's part of the limit (1 at least) when `share` processes share it."""
        if self.kind == "rate":
            burst = None if self.burst is None else max(1.0, self.burst / share)
            return RateLimit(self.rate / share, burst, self.resource)
        limit = self.limit or 1
        if self.kind == "adaptive":
            return AdaptiveLimit(max(1, limit // share))
        # An agent lives in one process: nothing to share.
        return FixedLimit(limit if self.scope == "agent" else max(1, limit // share))


class UnknownLimiter(UsageError):
    """`part`, a part of a spec, names no limiter."""

    def __init__(self, part: str) -> None:
        super().__init__(f"unknown limiter {part!r}: expected {FORMS}")
        self.part = part


def parse_rules(text: str) -> tuple[Rule, ...]:
    """The rules of a spec: limiters joined by `+`.

    Raises `UnknownLimiter` for a part that is none, `UsageError` for a limit that cannot be.
    """
    return tuple(rule for part in text.split("+") for rule in _rules(part))


def _rules(text: str) -> tuple[Rule, ...]:
    if match := _SEMAPHORE.fullmatch(text):
        scope: Scope = match[2] if match[2] else "process"  # type: ignore[assignment]
        return (Rule(text, "semaphore", scope, int(match[1])),)
    if match := _BY_TOOL.fullmatch(text):
        pairs = [part.split("=") for part in match[1].split(",")]
        if len({name for name, _ in pairs}) < len(pairs):
            raise UsageError(f"{text}: a tool has two limits")
        return tuple(_of_name(text, name, int(limit)) for name, limit in pairs)
    match = _RATE.fullmatch(text)
    if match and float(match[2]) > 0:
        rate = float(match[2]) / (60 if match[3] == "min" else 1)
        burst = float(match[4]) if match[4] else None
        RateLimit(rate, burst)  # raises for a bad one here, not at the first call
        resource = "tokens" if match[1] == "tokens" else "requests"
        return (Rule(text, "rate", rate=rate, burst=burst, resource=resource),)
    if match := _ADAPTIVE.fullmatch(text):
        return (Rule(text, "adaptive", limit=int(match[1]) if match[1] else START),)
    raise UnknownLimiter(text)


def _of_name(text: str, name: str, limit: int) -> Rule:
    """The limit of a tool, or with `NAME/*` that of a server."""
    if name.endswith(ALL_TOOLS):
        return Rule(text, "semaphore", "server", limit, server=name.removesuffix(ALL_TOOLS))
    return Rule(text, "semaphore", "tool", limit, name)


# Which limiters a call passes.

LaneKey = tuple[Scope, str]
"""One queue in front of limiters: the scope, and the name of the agent, the tool or the MCP server."""

PROCESS: LaneKey = ("process", "")


def lanes_of(
    rules: Sequence[Rule], tool: str = "", server: str = "", agent: str = ""
) -> tuple[tuple[LaneKey, tuple[Rule, ...]], ...]:
    """The queues that a call passes, in the order in which it enters them, each with its limiters' rules.

    `server`: the MCP server that the tool is of; a call of none passes no limit of servers. Calls with the
    same key wait in the same queue, for the same limiters.
    """
    found: dict[LaneKey, list[Rule]] = {
        ("agent", agent): [rule for rule in rules if rule.scope == "agent"],
        ("tool", tool): [rule for rule in rules if rule.scope == "tool" and rule.tool in (None, tool)],
        ("server", server): [
            rule for rule in rules if rule.scope == "server" and server and rule.server in (None, server)
        ],
        PROCESS: [rule for rule in rules if rule.scope == "process"],
    }
    return tuple((key, tuple(own)) for key, own in found.items() if own)


# What limiters let through in all processes together, in words.


def totals(
    rules: Sequence[Rule], *, agents: int = 1, share: int = 1, processes: int = 1, what: str = "calls"
) -> list[str]:
    """The limits of all processes together in words, a line for each rule.

    Such as `rate:50/s: 25 per process × 2 processes = up to 50 calls/s`. `share` as in `Gate`: each process
    has 1/`share` of a limit. `agents` are those of all processes.
    """
    return [f"{rule.text}: {_total(rule, agents, share, processes, what)}" for rule in rules]


def _total(rule: Rule, agents: int, share: int, processes: int, what: str) -> str:
    limiter = rule.make(share)
    if isinstance(limiter, AdaptiveLimit):
        each = f" in each of {processes} processes" if processes > 1 else ""
        return f"adapts, from {limiter.limit} {what} at once{each}"
    if isinstance(limiter, RateLimit):
        unit, seconds = ("min", 60) if "/min" in rule.text else ("s", 1)
        let_in = limiter.rate * seconds
        counted = f"{'tokens' if limiter.resource == 'tokens' else what}/{unit}"
    else:
        let_in = float(limiter.limit or 0)
        noun = (
            what.removesuffix("s") if let_in * (agents if rule.scope == "agent" else processes) == 1 else what
        )
        of = ""
        if rule.scope == "tool":
            of = f" of {rule.tool or 'each tool'}"
        elif rule.scope == "server":
            of = f" of {f'server {rule.server}' if rule.server else 'each server'}"
        counted = f"{noun}{of} at once"
    one, several, count = "process", "processes", processes
    if rule.scope == "agent":
        one, several, count = "agent", "agents", agents
    sum_ = f"{_figure(let_in)} per {one} × {count} {several} = " if count > 1 else ""
    return f"{sum_}up to {_figure(let_in * count)} {counted}"


def _figure(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
