"""Strategies: how the tool calls of one round are executed.

A `StrategySpec` is the value that `--strategy` names: parsed once by `parse_strategy`, then passed on;
as text it is on disk, on screen and in labels. It builds the `Strategy` that runs calls in one process.

A strategy is handed the round's calls as coroutine functions, in the order the model asked for them.
They record their own times and raise nothing but a cancellation. Each call passes the strategy's
gate by itself, on every attempt.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self

from profiler.errors import UsageError, did_you_mean
from profiler.limits.gate import Gate
from profiler.limits.limiter import FixedLimit
from profiler.limits.spec import FORMS, Rule, Scope, UnknownLimiter, parse_rules, totals
from profiler.records import Clock

Run = Callable[[], Coroutine[Any, Any, None]]
"""Runs one call to its end."""

Eager = Literal["no", "pure", "all"]
"""Which calls start while the model still streams: none, those of tools declared pure, all."""

_EAGER: dict[Eager, str] = {"no": "", "pure": "eager", "all": "eager:all"}


class Strategy(Protocol):
    """Executes the calls of a round; returns when every one has ended."""

    @property
    def spec(self) -> str:
        """Its name in records, metrics and on the command line."""

    @property
    def limit(self) -> int | None:
        """How many calls it now lets run at once, None if it sets no limit."""

    @property
    def gate(self) -> Gate | None:
        """The gate that every attempt of a call has to pass, None without one."""

    @property
    def eager(self) -> Eager: ...

    async def execute(self, runs: Sequence[Run]) -> None: ...


class Sequential:
    """One call after another, in the order the model asked for them."""

    spec = "sequential"
    limit = 1
    gate: Gate | None = None
    eager: Eager = "no"

    async def execute(self, runs: Sequence[Run]) -> None:
        for run in runs:
            await run()


class Gathered:
    """All calls of the round at once."""

    limit: int | None = None
    gate: Gate | None = None

    def __init__(self, *, eager: Eager = "no") -> None:
        self.eager: Eager = eager
        self.spec = _EAGER[eager] or "gathered"

    async def execute(self, runs: Sequence[Run]) -> None:
        await _run_all(runs)


class Limited:
    """All calls of the round at once, each through the gate as soon as the limiters let it.

    `limits` is a spec as `Gate` takes it, or rules. A limit holds for this process unless its scope says
    otherwise: W processes allow W times as much, unless each takes its part (`share`).
    """

    def __init__(
        self,
        limits: str | Sequence[Rule],
        *,
        eager: Eager = "no",
        share: int = 1,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self.gate = Gate(limits, share=share, clock=clock)
        self.eager: Eager = eager
        parts = dict.fromkeys(rule.text for rule in self.gate.rules)  # one text may stand for several rules
        self.spec = "+".join(parts if eager == "no" else (_EAGER[eager], *parts))

    @property
    def limit(self) -> int | None:
        return self.gate.limit

    async def execute(self, runs: Sequence[Run]) -> None:
        await _run_all(runs)


class SemaphoreLimited(Limited):
    """All calls of the round at once, at most `limit` of them running.

    With scope `process` (like the module-level semaphore of many tutorials) all agents of this process
    share one limit; with scope `agent` each agent has its own, with scope `tool` each tool.
    """

    def __init__(self, limit: int, *, scope: Scope = "process") -> None:
        if scope not in ("process", "agent", "tool"):
            raise UsageError(f"scope must be 'process', 'agent' or 'tool', not {scope!r}")
        FixedLimit(limit)  # says in plain words what is wrong with a bad one
        super().__init__(f"semaphore:{limit}" + ("" if scope == "process" else f"@{scope}"))


@dataclass(frozen=True, slots=True)
class StrategySpec:
    """A strategy as a value. `rules` are its limiters, `text` is how it is written.

    `kind` is `unknown` for a name in a record that this version cannot parse: one of a later version, or
    one that an application gave to its own way of running calls.
    """

    text: str
    kind: Literal["sequential", "gathered", "limited", "unknown"] = "gathered"
    rules: tuple[Rule, ...] = ()
    eager: Eager = "no"

    def __str__(self) -> str:
        return self.text

    @classmethod
    def recorded(cls, text: str) -> Self:
        """The strategy that a record or a run names; of kind `unknown` rather than an error."""
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
        """Its limit changes while it runs."""
        return any(rule.adapts for rule in self.rules)

    @property
    def needs_stream(self) -> bool:
        """It starts calls while a reply streams."""
        return self.eager != "no"

    @property
    def replayable(self) -> bool:
        """The durations of calls determine when each one starts, so that a recorded round can be replayed."""
        if self.kind == "unknown" or self.needs_stream:
            return False
        one_semaphore = [rule.kind for rule in self.rules] == ["semaphore"] and self.scope != "tool"
        return one_semaphore or not self.rules

    @property
    def scope(self) -> Scope:
        """The scope of its narrowest fixed limit."""
        if self.kind == "sequential":
            return "agent"
        fixed = [rule for rule in self.rules if rule.fixed_limit is not None]
        return min(fixed, key=lambda rule: rule.fixed_limit or 0).scope if fixed else "process"

    @property
    def limit(self) -> int | None:
        """How many calls it lets run at once within its scope, to begin with; None without a limit."""
        return 1 if self.kind == "sequential" else self.share_of_limit(1)

    def share_of_limit(self, share: int) -> int | None:
        """`limit` in one of `share` processes that divide it among them."""
        limits = (rule.make(share).limit for rule in self.rules)
        return min((limit for limit in limits if limit is not None), default=None)

    def build(self, *, share: int = 1, clock: Clock = time.monotonic_ns) -> Strategy:
        """The strategy that runs calls in one process.

        `share` is how many processes divide the limits among them, `clock` what rates and adaptive
        limits go by. Raises `UsageError` when the kind is `unknown`.
        """
        if self.kind == "unknown":
            parse_strategy(self.text)  # raises, and says what is wrong with it
        if self.kind == "sequential":
            return Sequential()
        if not self.rules:
            return Gathered(eager=self.eager)
        limited = Limited(self.rules, eager=self.eager, share=share, clock=clock)
        limited.spec = self.text  # as it was written, even if that names a limiter twice
        return limited


_WORDS = ("sequential", "gathered", "semaphore", "rate", "tokens", "adaptive", "eager")
"""The words that a part of a spec can begin with."""


def parse_strategy(text: str) -> StrategySpec:
    """A strategy from its spec: `sequential`, `gathered`, `eager`, limiters joined by `+`, `eager+` limiters.

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
        word = error.part.partition(":")[0]
        near = "" if word in _WORDS else did_you_mean(word, _WORDS)
        raise UsageError(
            f"unknown strategy {text!r}{near}: expected sequential, gathered, or {FORMS} "
            "(N ≥ 1), joined by +; eager+ before limiters, or eager alone"
        ) from None
    for rule in rules:
        if rule.resource == "tokens":
            raise UsageError(f"strategy {text!r}: tokens are of model requests: --model-limit {rule.text}")
    return StrategySpec(text, "limited", rules, eager)


def parse_strategies(value: str | Sequence[Any] | None) -> tuple[StrategySpec, ...]:
    """Strategies from text with commas, or from a sequence of such texts and of `StrategySpec`s."""
    found: list[StrategySpec] = []
    for part in [value] if isinstance(value, str) else value or ():
        if isinstance(part, StrategySpec):
            found.append(part)
        else:
            found += map(parse_strategy, split_specs(str(part)))
    return tuple(found)


def split_specs(text: str) -> list[str]:
    """The specs of a list with commas; a comma followed by `name=` belongs to the spec before it."""
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
    """Describe what strategies, and the limiters of the model, let through in all processes together.

    A line for each limiter, and one for a strategy without any. `agents` counts those of all processes, of
    which `share` share the limits.
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


async def _run_all(runs: Sequence[Run]) -> None:
    """Run all at once; a cancellation reaches each and is waited for."""
    if len(runs) == 1:
        await runs[0]()
        return
    async with asyncio.TaskGroup() as group:
        for run in runs:
            group.create_task(run())
