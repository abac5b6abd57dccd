"""Strategies: how the tool calls of one round are executed.

A `StrategySpec` is the value that `--strategy` names: parsed once by `parse_strategy`, then passed on;
as text it is on disk, on screen and in labels. It builds the `Strategy` that runs calls in one process.
Settings of an agent of the user's own (`--variant`) are part of it: `semaphore:8 max_concurrent_calls=2`.

A strategy is handed the round's calls as coroutine functions, in the order the model asked for them.
They record their own times and raise nothing but a cancellation. Each call passes the strategy's
gate by itself, on every attempt.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self, get_args

from profiler.errors import UsageError, did_you_mean
from profiler.limits.gate import Gate
from profiler.limits.limiter import FixedLimit
from profiler.limits.spec import ALL_TOOLS, FORMS, Rule, Scope, UnknownLimiter, parse_rules, totals
from profiler.records import Clock
from profiler.redaction.keys import hide_keys
from profiler.variants import MOST, Variant, grid, is_setting, parse_variant, variant_text

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

    spec: str = "sequential"
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
        self.spec: str = _EAGER[eager] or "gathered"

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
    share one limit; with scope `agent` each agent has its own, with scope `tool` each tool, with scope
    `server` each MCP server.
    """

    def __init__(self, limit: int, *, scope: Scope = "process") -> None:
        if scope not in get_args(Scope):
            raise UsageError(f"scope must be one of {', '.join(get_args(Scope))}, not {scope!r}")
        FixedLimit(limit)  # says in plain words what is wrong with a bad one
        super().__init__(f"semaphore:{limit}" + ("" if scope == "process" else f"@{scope}"))


@dataclass(frozen=True, slots=True)
class StrategySpec:
    """A strategy as a value. `rules` are its limiters, `text` is how it is written.

    `variant` are settings that the user's own agent is made with. `kind` is `own` where there are no others:
    the agent runs its calls in its own way, and what it hands over starts at once. It is `unknown` for a name
    in a record that this version cannot parse: one of a later version, or one that an application gave to its
    own way of running calls.
    """

    text: str
    kind: Literal["sequential", "gathered", "limited", "own", "unknown"] = "gathered"
    rules: tuple[Rule, ...] = ()
    eager: Eager = "no"
    variant: Variant = ()

    def __str__(self) -> str:
        return self.text

    @classmethod
    def recorded(cls, text: str) -> Self:
        """The strategy that a record or a run names; of kind `unknown` rather than an error."""
        return _recorded(text)  # type: ignore[return-value]

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(cls.recorded, core_schema.str_schema())

    @property
    def base(self) -> str:
        """Its text without the settings of the agent; empty where it is nothing else."""
        return self.text.removesuffix(variant_text(self.variant)).rstrip() if self.variant else self.text

    @property
    def adapts(self) -> bool:
        """Its limit changes while it runs."""
        return any(rule.adapts for rule in self.rules)

    @property
    def needs_stream(self) -> bool:
        """It starts calls while a reply streams."""
        return self.eager != "no"

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
        made: Sequential | Gathered | Limited
        if self.kind == "sequential":
            made = Sequential()
        elif not self.rules:
            made = Gathered(eager=self.eager)
        else:
            made = Limited(self.rules, eager=self.eager, share=share, clock=clock)
        made.spec = self.text  # as it was written, even if that names a limiter twice
        return made


@dataclass(frozen=True, slots=True)
class Knob:
    """What has one whole number to choose: the limit of a semaphore, or, with a `name`, that setting of an
    agent's own. By default the semaphore is one that all agents of a process share; `tool` and `server`: of
    that one alone."""

    name: str | None = None
    scope: Scope = "process"
    tool: str | None = None
    server: str | None = None

    @property
    def noun(self) -> str:
        """What its values are called."""
        return "limit" if self.name is None else "value"

    @property
    def shared(self) -> bool:
        """It is the semaphore through which all calls of a process pass."""
        return self.name is None and self.scope == "process"

    @property
    def written(self) -> str:
        """How it is named without a value: `semaphore@tool`, `semaphore:search`, `max_concurrent_calls`."""
        if self.name is not None:
            return self.name
        of = self.tool or (self.server and f"{self.server}{ALL_TOOLS}")
        return f"semaphore:{of}" if of else "semaphore" if self.shared else f"semaphore@{self.scope}"

    def spec(self, value: int) -> str:
        """The strategy with this value."""
        if self.name is not None or self.tool or self.server:
            return f"{self.written}={value}"
        return f"semaphore:{value}" if self.shared else f"semaphore:{value}@{self.scope}"

    def value(self, text: str) -> int | None:
        """The value that a strategy has of it; None for one that is about something else as well."""
        spec = StrategySpec.recorded(text)
        if self.name is not None:
            found = spec.variant[0] if spec.kind == "own" and len(spec.variant) == 1 else ("", None)
            whole = found[0] == self.name and type(found[1]) is int
            return found[1] if whole else None  # type: ignore[return-value]
        alone = spec.kind == "limited" and len(spec.rules) == 1 and not (spec.variant or spec.needs_stream)
        if not alone:
            return None
        rule = spec.rules[0]
        mine = (rule.scope, rule.tool, rule.server) == (self.scope, self.tool, self.server)
        return rule.fixed_limit if mine else None


def knob_of(specs: Iterable[StrategySpec]) -> Knob:
    """The setting of which all those that leave the calls to the agent have a value; else the semaphore."""
    own = [spec.variant for spec in specs if spec.kind == "own"]
    names = {variant[0][0] for variant in own if len(variant) == 1 and type(variant[0][1]) is int}
    return Knob(names.pop()) if len(names) == 1 and all(len(one) == 1 for one in own) else Knob()


_WORDS = ("sequential", "gathered", "semaphore", "rate", "tokens", "adaptive", "eager")
"""The words that a part of a spec can begin with."""


@functools.lru_cache(maxsize=256)  # it is asked for with every record
def _recorded(text: str) -> StrategySpec:
    try:
        return parse_strategy(text)
    except UsageError:
        return StrategySpec(text, "unknown")


def parse_strategy(text: str) -> StrategySpec:
    """A strategy from its spec: `sequential`, `gathered`, `eager`, limiters joined by `+`, `eager+` limiters.

    Settings of the agent may follow, or stand alone: `semaphore:8 a=1 b=true`, `a=1`. Raises `UsageError`.
    """
    words = text.split()
    if not any(map(is_setting, words)):
        return _parse_base(text)
    base = "" if is_setting(words[0]) else words[0]
    try:
        variant = parse_variant(words[1:] if base else words)
    except UsageError as error:
        raise UsageError(f"strategy {hide_keys(text)!r}: {error}") from None
    return with_variant(_parse_base(base) if base else None, variant)


def with_variant(spec: StrategySpec | None, variant: Variant) -> StrategySpec:
    """The strategy with these settings of the agent; without one, the agent's own way of running calls.

    Raises `UsageError` for a setting that it has already.
    """
    base = "" if spec is None else spec.base
    variant = parse_variant(variant_text((*(spec.variant if spec else ()), *variant)).split())
    text = " ".join(filter(None, (base, variant_text(variant))))
    return replace(spec or StrategySpec("", "own"), text=text, variant=variant)


def crossed(specs: Sequence[StrategySpec], settings: Sequence[str]) -> tuple[StrategySpec, ...]:
    """Every combination of settings (`variants.parse_grid`), under each of the strategies, if there are any.

    Raises `UsageError` where there are more than `variants.MOST`.
    """
    each = grid(settings)
    count = len(each) * max(1, len(specs))
    if count > MOST:
        of = f"{len(each)} of --variant" + (f" × {len(specs)} of --strategy" if specs else "")
        raise UsageError(f"--variant: {count} combinations ({of}), and {MOST} at most can be compared")
    return tuple(with_variant(spec, variant) for spec in specs or (None,) for variant in each)


def _parse_base(text: str) -> StrategySpec:
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
    """The specs of a list with commas.

    A comma followed by `name=` or `name/*=` belongs to a spec with a colon before it (`semaphore:a=1,b=2`,
    `rate:5/s,burst=2`), unless settings of an agent have ended that one.
    """
    specs: list[str] = []
    for part in map(str.strip, text.split(",")):
        if specs and ":" in specs[-1] and " " not in specs[-1] and _goes_on(part.partition(" ")[0]):
            specs[-1] += f",{part}"
        elif part:
            specs.append(part)
    return specs


def _goes_on(word: str) -> bool:
    return is_setting(word) or (f"{ALL_TOOLS}=" in word and ":" not in word)


def effective_limits(
    specs: Iterable[StrategySpec], model: Sequence[Rule] = (), *, agents: int, processes: int, share: int = 1
) -> list[str]:
    """Describe what strategies, and the limiters of the model, let through in all processes together.

    A line for each limiter, and one for a strategy without any. `agents` counts those of all processes, of
    which `share` share the limits.
    """
    lines: list[str] = []
    for spec in specs:
        if spec.kind == "own":
            lines.append(f"{spec}: no limit of the profiler's; the agent runs its calls in its own way")
            continue
        rules = (Rule(spec.text, "semaphore", "agent", 1),) if spec.kind == "sequential" else spec.rules
        if len(rules) == 1:
            rules = (replace(rules[0], text=spec.base),)  # `eager+` belongs to the name
        said = totals(rules, agents=agents, share=share, processes=processes)
        if spec.variant:
            said = [f"{spec}: {line.removeprefix(f'{spec.base}: ')}" for line in said]
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
