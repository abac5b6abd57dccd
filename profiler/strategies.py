"""Strategies: how the tool calls of one round are executed.

A strategy is handed the round's calls as coroutine functions that note their own times and
never raise (except for cancellation), in the order the model asked for them. Each call passes
the strategy's gate by itself, on every attempt.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Literal, Protocol

from profiler.errors import UsageError, did_you_mean
from profiler.limits import FixedLimit
from profiler.limits.gate import Clock, Gate
from profiler.limits.spec import FORMS, Rule, Scope, parse_rules

Run = Callable[[], Coroutine[Any, Any, None]]

Eager = Literal["no", "pure", "all"]
"""Which calls start while the model still streams: none, those of tools declared pure, all."""


class Strategy(Protocol):
    """Executes the calls of a round; returns when every one has ended.

    `limit` is the number of calls it lets run at once within its `scope` now, None if it sets none.
    """

    @property
    def spec(self) -> str:
        """Its name in records, metrics and on the command line."""

    @property
    def limit(self) -> int | None: ...

    @property
    def scope(self) -> Scope: ...

    @property
    def gate(self) -> Gate | None:
        """What every attempt of a call has to pass."""

    @property
    def eager(self) -> Eager: ...

    async def execute(self, runs: Sequence[Run]) -> None: ...


class Sequential:
    """One call after another, in the order the model asked for them."""

    spec = "sequential"
    limit = 1
    scope: Scope = "agent"
    gate: Gate | None = None
    eager: Eager = "no"

    async def execute(self, runs: Sequence[Run]) -> None:
        for run in runs:
            await run()


class Gathered:
    """All calls of the round at once."""

    limit: int | None = None
    scope: Scope = "process"
    gate: Gate | None = None

    def __init__(self, *, eager: Eager = "no") -> None:
        self.eager: Eager = eager
        self.spec = _EAGER[eager] or "gathered"

    async def execute(self, runs: Sequence[Run]) -> None:
        await _all(run() for run in runs)


class Limited:
    """All calls of the round at once, each through the gate when the limiters let it.

    `limits` is a spec as `Gate` takes it, or rules of one's own under a `spec` of one's own. Limits
    are of this process unless their scope says otherwise: W processes allow W times as much, unless
    each takes its part (`share`). A limiter is ours; what the server allows is its quota.
    """

    def __init__(
        self,
        limits: str | Sequence[Rule],
        *,
        spec: str | None = None,
        eager: Eager = "no",
        share: int = 1,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self.gate = Gate(limits, share=share, clock=clock)
        self.eager: Eager = eager
        named = spec if spec is not None else "+".join(dict.fromkeys(rule.spec for rule in self.gate.rules))
        self.spec = f"{_EAGER[eager]}+{named}" if eager != "no" else named
        limiting = [rule for rule in self.gate.rules if rule.limit is not None]
        self.scope: Scope = min(limiting, key=lambda rule: rule.limit or 0).scope if limiting else "process"

    @property
    def limit(self) -> int | None:
        return self.gate.limit

    async def execute(self, runs: Sequence[Run]) -> None:
        await _all(run() for run in runs)


class SemaphoreLimited(Limited):
    """All calls of the round at once, at most `limit` of them running.

    With scope `process` (the module-level semaphore of the field's tutorials) the limit is one
    for all agents of this process; with scope `agent` each agent has its own, with scope `tool`
    each tool.
    """

    def __init__(self, limit: int, *, scope: Scope = "process") -> None:
        if scope not in ("process", "agent", "tool"):
            raise UsageError(f"scope must be 'process', 'agent' or 'tool', not {scope!r}")
        FixedLimit(limit)
        super().__init__(f"semaphore:{limit}" + ("" if scope == "process" else f"@{scope}"))


_WORDS = ("sequential", "gathered", "semaphore", "rate", "tokens", "adaptive", "eager")
"""What a part of a spec begins with."""

_EAGER: dict[Eager, str] = {"no": "", "pure": "eager", "all": "eager:all"}


def parse_strategy(spec: str, *, share: int = 1, clock: Clock = time.monotonic_ns) -> Strategy:
    """`sequential`, `gathered`, or limiters, joined by `+`; with `eager+` before them, or `eager` alone.

    `share`: how many processes share the limits; `clock`: of rates and of what adapts. Raises `UsageError`.
    """
    parts = spec.split("+")
    eager: Eager = "no"
    if parts[0] in ("eager", "eager:all"):
        eager = "pure" if parts.pop(0) == "eager" else "all"
    if parts == ["sequential"] and eager == "no":
        return Sequential()
    if not parts or (parts == ["gathered"] and eager == "no"):
        return Gathered(eager=eager)
    rules: list[Rule] = []
    for part in parts:
        if part.startswith("tokens:"):
            raise UsageError(f"strategy {spec!r}: tokens are of model requests: --model-limit {part}")
        found = parse_rules(part)
        if found is None:
            raise UsageError(
                f"unknown strategy {spec!r}{_near(part)}: expected sequential, gathered, or {FORMS} (N ≥ 1), "
                "joined by +; eager+ before limiters, or eager alone"
            )
        rules += found
    return Limited(rules, spec="+".join(parts), eager=eager, share=share, clock=clock)


def _near(part: str) -> str:
    """A suggestion for a word that is none of ours."""
    word = part.partition(":")[0]
    return "" if word in _WORDS else did_you_mean(word, _WORDS)


def split_specs(text: str) -> list[str]:
    """The strategies of a list with commas; a comma inside a spec is followed by `name=`."""
    specs: list[str] = []
    for part in text.split(","):
        if "=" in part and ":" not in part and specs:
            specs[-1] += f",{part.strip()}"
        elif part.strip():
            specs.append(part.strip())
    return specs


async def _all(runs: Iterable[Awaitable[None]]) -> None:
    """Run all at once; a cancellation reaches each and is waited for."""
    pending = list(runs)
    if len(pending) == 1:
        await pending[0]
        return
    async with asyncio.TaskGroup() as group:
        for run in pending:
            group.create_task(run)  # type: ignore[arg-type]
