"""Strategies: how the tool calls of one round are executed.

A `StrategySpec` is the value: what `--strategy` names, read once by `parse_strategy` and passed on. It
builds the `Strategy` that runs calls in one process. As text it is on disk, on screen and in labels.

A strategy is handed the round's calls as coroutine functions that note their own times and
never raise (except for cancellation), in the order the model asked for them. Each call passes
the strategy's gate by itself, on every attempt.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self

from profiler.errors import UsageError, did_you_mean
from profiler.limits import FixedLimit
from profiler.limits.gate import Clock, Gate
from profiler.limits.spec import FORMS, Rule, Scope, UnknownLimiter, parse_rules, totals
from profiler.palette import strategy_colour

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
        named = spec if spec is not None else "+".join(dict.fromkeys(rule.text for rule in self.gate.rules))
        self.spec = f"{_EAGER[eager]}+{named}" if eager != "no" else named
        self.scope = _scope(self.gate.rules)

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


_EAGER: dict[Eager, str] = {"no": "", "pure": "eager", "all": "eager:all"}


def _scope(rules: Sequence[Rule]) -> Scope:
    """Whom the narrowest of fixed limits is for."""
    fixed = [rule for rule in rules if rule.fixed_limit is not None]
    return min(fixed, key=lambda rule: rule.fixed_limit or 0).scope if fixed else "process"


@dataclass(frozen=True, slots=True)
class StrategySpec:
    """A strategy as a value. `rules` are its limiters, `text` is how it is written.

    `kind` is `unknown` for what a run recorded and this version cannot read: of a later version, or a name
    that an application gave to its own way of running calls.
    """

    text: str
    kind: Literal["sequential", "gathered", "limited", "unknown"] = "gathered"
    rules: tuple[Rule, ...] = ()
    eager: Eager = "no"

    def __str__(self) -> str:
        return self.text

    @classmethod
    def recorded(cls, text: str) -> Self:
        """The value of a name in a record or a run; never refused."""
        try:
            return parse_strategy(text)  # type: ignore[return-value]
        except UsageError:
            return cls(text, "unknown")

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(cls.recorded, core_schema.str_schema())

    @property
    def adapts(self) -> bool:
        """Its limit moves while it runs."""
        return any(rule.adapts for rule in self.rules)

    @property
    def needs_stream(self) -> bool:
        """It starts calls while a reply streams."""
        return self.eager != "no"

    @property
    def replayable(self) -> bool:
        """The durations of the calls say when each ran: a recorded schedule can be replayed."""
        if self.kind == "unknown" or self.needs_stream:
            return False
        one_semaphore = [rule.kind for rule in self.rules] == ["semaphore"] and self.scope != "tool"
        return one_semaphore or not self.rules

    @property
    def scope(self) -> Scope:
        """Whom its limit is for."""
        return "agent" if self.kind == "sequential" else _scope(self.rules)

    @property
    def limit(self) -> int | None:
        """How many calls it lets run at once within its scope, to begin with; None without a limit."""
        return 1 if self.kind == "sequential" else self.share_of_limit(1)

    def share_of_limit(self, share: int) -> int | None:
        """The same in one of `share` processes that divide it among them."""
        limits = (rule.make(share).limit for rule in self.rules)
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def colour(self) -> str:
        return strategy_colour(self.text)

    def build(self, *, share: int = 1, clock: Clock = time.monotonic_ns) -> Strategy:
        """What runs calls in one process.

        `share`: how many processes share the limits; `clock`: of rates and of what adapts. Raises
        `UsageError` for an unknown one.
        """
        if self.kind == "unknown":
            parse_strategy(self.text)
        if self.kind == "sequential":
            return Sequential()
        if not self.rules:
            return Gathered(eager=self.eager)
        named = self.text.removeprefix(f"{_EAGER[self.eager]}+") if self.needs_stream else self.text
        return Limited(self.rules, spec=named, eager=self.eager, share=share, clock=clock)


_WORDS = ("sequential", "gathered", "semaphore", "rate", "tokens", "adaptive", "eager")
"""What a part of a spec begins with."""


def parse_strategy(text: str) -> StrategySpec:
    """`sequential`, `gathered`, or limiters, joined by `+`; with `eager+` before them, or `eager` alone.

    Raises `UsageError`.
    """
    first, _, rest = text.partition("+")
    eager: Eager = {"eager": "pure", "eager:all": "all"}.get(first, "no")  # type: ignore[assignment]
    if eager != "no" and text == first:
        return StrategySpec(text, eager=eager)
    if text in ("sequential", "gathered"):
        return StrategySpec(text, text)  # type: ignore[arg-type]
    try:
        rules = parse_rules(text if eager == "no" else rest)
    except UnknownLimiter as error:
        raise UsageError(
            f"unknown strategy {text!r}{_near(error.part)}: expected sequential, gathered, or {FORMS} "
            "(N ≥ 1), joined by +; eager+ before limiters, or eager alone"
        ) from None
    for rule in rules:
        if rule.resource == "tokens":
            raise UsageError(f"strategy {text!r}: tokens are of model requests: --model-limit {rule.text}")
    return StrategySpec(text, "limited", rules, eager)


def _near(part: str) -> str:
    """A suggestion for a word that is none of ours."""
    word = part.partition(":")[0]
    return "" if word in _WORDS else did_you_mean(word, _WORDS)


def parse_strategies(value: str | Sequence[Any] | None) -> tuple[StrategySpec, ...]:
    """Strategies from text with commas, or from a list of such, or of values that are read already."""
    parts = [value] if isinstance(value, str) else list(value or ())
    found: list[StrategySpec] = []
    for part in parts:
        if isinstance(part, StrategySpec):
            found.append(part)
        else:
            found += map(parse_strategy, split_specs(str(part)))
    return tuple(found)


def split_specs(text: str) -> list[str]:
    """The strategies of a list with commas; a comma inside a spec is followed by `name=`."""
    specs: list[str] = []
    for part in text.split(","):
        if "=" in part and ":" not in part and specs:
            specs[-1] += f",{part.strip()}"
        elif part.strip():
            specs.append(part.strip())
    return specs


def effective_limits(
    specs: Iterable[StrategySpec], model: Sequence[Rule] = (), *, agents: int, processes: int, share: int = 1
) -> list[str]:
    """What strategies, and the limiters of the model, let through in all processes together, in words.

    A line for each limiter, and one for a strategy without any. `agents` are those of all processes, `share`
    of which share the limits.
    """
    lines: list[str] = []
    for spec in specs:
        rules = (Rule(spec.text, "semaphore", "agent", 1),) if spec.kind == "sequential" else spec.rules
        if len(rules) == 1:
            rules = (replace(rules[0], text=spec.text),)  # `eager+` belongs to the name
        said = totals(rules, agents=agents, share=share, processes=processes)
        lines += said or [f"{spec}: no limit on calls running at once"]
    of_model = totals(model, share=share, processes=processes, what="model requests")
    return lines + [f"the model, {line}" for line in of_model]


async def _all(runs: Iterable[Awaitable[None]]) -> None:
    """Run all at once; a cancellation reaches each and is waited for."""
    pending = list(runs)
    if len(pending) == 1:
        await pending[0]
        return
    async with asyncio.TaskGroup() as group:
        for run in pending:
            group.create_task(run)  # type: ignore[arg-type]
