"""What a load test is about to do, before it begins: how long, how much, at which cost. Pure.

Loops are those of the scenario's tape; a real model answers as fast, and says as much, as it likes.
So the figures are an estimate, good for the order of magnitude.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from profiler.emulator.draws import Place
from profiler.emulator.tape import Tape
from profiler.load.options import LoadOptions
from profiler.load.plan import Arrivals
from profiler.load.spending import OPTIONS, price_of
from profiler.rundir import Spent
from profiler.scenarios.schema import Scenario

SAMPLE = 50
"""Entries of the tape that are looked at."""

CLIENT_RATE = 200.0
"""Loops a second that a process can run at most, about, where the target takes no time."""

CHARACTERS_PER_TOKEN = 4
CALL_TOKENS, RESULT_TOKENS, ANSWER_TOKENS = 20, 40, 60
"""Of a call that the model writes, of its result that goes back, of an answer."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`seconds` measured in all, what is about to be spent (None: unknown), and where.

    A `search` (`profiler tune`) takes up to so long, and measures less than that.
    """

    target: str
    model: str
    remote: bool
    strategies: int
    levels: tuple[int, ...]
    users: int
    seconds: float
    spent: Spent | None
    cost: float | None
    price: str | None
    limits: tuple[str, ...]
    first_limit: tuple[str, float] | None
    scenario: str
    search: bool = False

    def lines(self) -> list[str]:
        """For a reader: one line, several where it may cost something."""
        levels = f"{', '.join(map(str, self.levels))} agents" if self.levels else f"{self.users} agents"
        strategies = "1 strategy" if self.strategies == 1 else f"{self.strategies} strategies"
        what = f"{strategies}, {self.seconds:.0f} s of measuring"
        if self.search:
            what = f"a search of up to {self.seconds:.0f} s"
        head = f"plan: {what} with {levels} on {self.target}"
        if self.spent is None:
            amount = "how much the agent asks for is not known"
        else:
            up_to = "up to " if self.search else ""
            amount = (
                f"{up_to}about {rounded(self.spent.loops)} loops, {rounded(self.spent.requests)} requests"
            )
        if not self.remote:
            return [f"{head}: {amount}"]
        head += f" ({self.model})" if self.model else ""
        if self.spent is not None:
            amount += (
                f", {rounded(self.spent.input_tokens)} tokens in, {rounded(self.spent.output_tokens)} out"
            )
        if self.cost is not None:
            amount += f": some ${self.cost:.2g} at {self.price}"
        elif self.spent is not None:
            amount += "; the price is unknown (--price IN/OUT)"
        lines = [head, f"  {amount}"]
        if self.spent is not None:
            lines.append(f"  an estimate, as if loops were those of the scenario {self.scenario}")
        if self.first_limit is not None:
            lines.append(f"  {self.first_limit[0]} will end it after about {self.first_limit[1]:.0%} of that")
        elif self.limits:
            lines.append(f"  limits: {', '.join(self.limits)}")
        else:
            lines.append(f"  no limit on what is spent: {', '.join(OPTIONS.values())}")
        return lines


def plan(
    options: LoadOptions,
    users: int,
    seconds: float,
    workers: int,
    scenario: Scenario,
    remote: bool,
    search: bool = False,
) -> Plan:
    """`seconds` of measuring per strategy and level, as `profiler compare` has it.

    Of a search they are all the time it has, and the one strategy is gathering, which asks for most.
    """
    levels = options.levels or (users,)
    loops = 0.0
    tape = Tape(scenario, options.seed)
    for strategy in options.strategies:
        for level in levels:
            if options.arrivals is not None:
                loops += Arrivals.parse(options.arrivals, users).expected(level, seconds)
            else:
                each = loop_seconds(tape, at_once=strategy.kind != "sequential") + options.think_seconds
                loops += seconds * min(level / each if each else math.inf, CLIENT_RATE * workers)
    spent = None
    if options.agent is None:
        one = loop_spent(tape)
        count = round(loops) + workers
        spent = Spent(
            count, *(round(count * part) for part in (one.requests, one.input_tokens, one.output_tokens))
        )
    model = options.asked_model
    price = price_of(model, options.price)
    budget = options.budget()
    shares = [
        (budget.limit(name), limit / used)
        for name, limit in budget.limits.items()
        if spent is not None and (used := budget.used(spent, name)) > limit
    ]
    return Plan(
        target=options.base_url or "the embedded emulator",
        model=model,
        remote=remote,
        strategies=len(options.strategies),
        levels=options.levels,
        users=users,
        seconds=seconds * len(options.strategies) * len(levels),
        spent=spent,
        cost=None if spent is None or price is None else price.cost(spent.input_tokens, spent.output_tokens),
        price=None if price is None else str(price),
        limits=tuple(budget.limit(name) for name in budget.limits),
        first_limit=min(shares, key=lambda share: share[1], default=None),
        scenario=scenario.name,
        search=search,
    )


def loop_seconds(tape: Tape, at_once: bool) -> float:
    """Mean of a loop whose calls of a round run at once, or one after another."""
    total = 0.0
    for loop in range(SAMPLE):
        for round_, calls in enumerate(_rounds(tape, loop)):
            pace = tape.pace(loop, round_, 0)
            total += pace.first_token + pace.per_token * (CALL_TOKENS * calls if calls else ANSWER_TOKENS)
            durations = [
                tape.duration(
                    Place(loop, round_, call), tape.scenario.tools[call % len(tape.scenario.tools)].name
                )
                for call in range(calls)
                if tape.scenario.tools
            ]
            if durations:
                total += max(durations) if at_once else sum(durations)
    return total / SAMPLE


@dataclass(frozen=True, slots=True)
class LoopSpent:
    """Means of a loop."""

    requests: float
    input_tokens: float
    output_tokens: float


def loop_spent(tape: Tape) -> LoopSpent:
    """Every request of a loop says again what was said before."""
    scenario = tape.scenario
    tools = [{"d": tool.description, "n": tool.name, "p": tool.parameters} for tool in scenario.tools]
    first = (len(scenario.prompt) + len(json.dumps(tools))) / CHARACTERS_PER_TOKEN
    requests = given = taken = 0.0
    for loop in range(SAMPLE):
        said = first
        for calls in _rounds(tape, loop):
            requests += 1
            given += said
            taken += CALL_TOKENS * calls if calls else ANSWER_TOKENS
            said += (CALL_TOKENS + RESULT_TOKENS) * calls
    return LoopSpent(requests / SAMPLE, given / SAMPLE, taken / SAMPLE)


def _rounds(tape: Tape, loop: int) -> Sequence[int]:
    """Calls of each request's reply; none in the last one."""
    return [*(tape.fan_out(loop, round_) for round_ in range(tape.rounds(loop))), 0]


def rounded(count: float) -> str:
    """Two significant digits: 1,200 of 1,234."""
    if count < 100:
        return f"{count:.0f}"
    digits = len(str(int(count))) - 2
    return f"{round(count, -digits):,.0f}"
