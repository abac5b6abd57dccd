"""Estimates a load test before it begins: how long, how much, at which cost. Pure.

Loops are those of the scenario's tape; a real model answers at its own speed and length. So the figures are
good for the order of magnitude alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from profiler.arrivals import Arrivals
from profiler.emulator.draws import Place
from profiler.emulator.tape import Tape
from profiler.load.options import LoadOptions
from profiler.load.spending import RESOURCES, extrapolated, option_of
from profiler.providers.endpoint import shown_url
from profiler.rundir import Spent
from profiler.scenarios import Scenario

SAMPLE = 50
"""Entries of the tape that are looked at."""

CLIENT_RATE = 200.0
"""Loops a second that one process can run at most, roughly, where the target takes no time."""

CHARACTERS_PER_TOKEN = 4
CALL_TOKENS, RESULT_TOKENS, ANSWER_TOKENS = 20, 40, 60
"""Tokens of a call that the model writes, of its result that goes back, of an answer."""


@dataclass(frozen=True, slots=True)
class LoadEstimate:
    """The estimate for a load test of `users` agents.

    `seconds` of measuring in all; a `search` (`profiler tune`) takes up to that long, and measures less.
    `spent` is what it is about to spend, None where an agent of the user's own decides that.
    """

    options: LoadOptions
    users: int
    seconds: float
    spent: Spent | None
    scenario: str
    remote: bool
    search: bool

    @property
    def cost(self) -> float | None:
        """In USD; None where it is unknown."""
        price = self.options.model_price()
        return None if self.spent is None or price is None else price.cost(self.spent)

    def lines(self) -> list[str]:
        """For a reader: one line, several where it may cost something."""
        url = self.options.base_url
        what = f"{self._head()} on {'the embedded emulator' if url is None else shown_url(url)}"
        if self.spent is None:
            amount = "how much the agent asks for is not known"
        else:
            about = "up to about" if self.search else "about"
            amount = f"{about} {rounded(self.spent.loops)} loops, {rounded(self.spent.requests)} requests"
        if not self.remote:
            return [f"{what}: {amount}"]
        model = self.options.asked_model
        lines = [f"{what} ({model})" if model else what, f"  {amount}{self._tokens_and_cost()}"]
        if self.spent is not None:
            lines.append(f"  an estimate, as if loops were those of the scenario {self.scenario}")
        return [*lines, f"  {self._limits()}"]

    def _head(self) -> str:
        levels, strategies = self.options.levels, len(self.options.strategies)
        agents = f"{', '.join(map(str, levels))} agents" if levels else f"{self.users} agents"
        if self.search:
            return f"plan: a search of up to {self.seconds:.0f} s with {agents}"
        turns = "1 strategy" if strategies == 1 else f"{strategies} strategies"
        return f"plan: {turns}, {self.seconds:.0f} s of measuring with {agents}"

    def _tokens_and_cost(self) -> str:
        if self.spent is None:
            return ""
        tokens = f", {rounded(self.spent.input_tokens)} tokens in, {rounded(self.spent.output_tokens)} out"
        if self.cost is None:
            return f"{tokens}; the price is unknown (--price IN/OUT)"
        return f"{tokens}: some ${self.cost:.2g} at {self.options.model_price()}"

    def _limits(self) -> str:
        """Which limit on spending will end the test first, else which limits there are."""
        budget = self.options.budget()
        shares = [
            (limit / used, budget.limit(resource))
            for resource, limit in budget.limits.items()
            if self.spent is not None and (used := budget.used(self.spent, resource)) > limit
        ]
        if shares:
            share, first = min(shares)
            return f"{first} will end it after about {share:.0%} of that"
        if budget.limits:
            return f"limits: {', '.join(map(budget.limit, budget.limits))}"
        return f"no limit on what is spent: {', '.join(map(option_of, RESOURCES))}"


def estimate_load(
    options: LoadOptions,
    users: int,
    seconds: float,
    workers: int,
    scenario: Scenario,
    remote: bool,
    search: bool = False,
) -> LoadEstimate:
    """An estimate for `seconds` of measuring per strategy and level, as `profiler compare` counts them.

    For a search they are all the time it has, and its one strategy is gathering, which asks for most.
    """
    levels = options.levels or (users,)
    loops = 0.0
    tape = Tape(scenario, options.seed)
    for strategy in options.strategies:
        each = loop_seconds(tape, at_once=strategy.kind != "sequential") + options.think_seconds
        for level in levels:
            if options.arrivals is not None:
                loops += Arrivals.parse(options.arrivals, users).expected(level, seconds)
            else:
                loops += seconds * min(level / each if each else math.inf, CLIENT_RATE * workers)
    return LoadEstimate(
        options,
        users,
        seconds=seconds * len(options.strategies) * len(levels),
        spent=(
            None if options.agent else extrapolated(sample_spent(tape, not remote), round(loops) + workers)
        ),
        scenario=scenario.name,
        remote=remote,
        search=search,
    )


def loop_seconds(tape: Tape, at_once: bool) -> float:
    """Mean seconds of a loop whose calls of a round run at once, or one after another."""
    total = 0.0
    for loop in range(SAMPLE):
        for round_, calls in enumerate(_rounds(tape, loop)):
            pace = tape.pace(loop, round_, 0)
            total += pace.first_token + pace.per_token * (CALL_TOKENS * calls if calls else ANSWER_TOKENS)
    return total / SAMPLE + tool_seconds(tape, at_once)


def loop_seconds_after(request_seconds: float, tape: Tape, at_once: bool) -> float:
    """Seconds of a loop whose first request took so long: its rounds and tools are the scenario's."""
    rounds = sum(len(_rounds(tape, loop)) for loop in range(SAMPLE)) / SAMPLE
    return rounds * request_seconds + tool_seconds(tape, at_once)


def tool_seconds(tape: Tape, at_once: bool) -> float:
    """Mean seconds that a loop's tools take, those of a round at once or one after another."""
    tools = tape.scenario.tools
    total = 0.0
    for loop in range(SAMPLE):
        for round_, calls in enumerate(_rounds(tape, loop)):
            durations = [
                tape.duration(Place(loop, round_, call), tools[call % len(tools)].name)
                for call in range(calls if tools else 0)
            ]
            if durations:
                total += max(durations) if at_once else sum(durations)
    return total / SAMPLE


def sample_spent(tape: Tape, emulated: bool) -> Spent:
    """The spending of the first `SAMPLE` loops. Every request of a loop repeats what was said before it.

    `emulated`: the scenario's context, cache and reasoning count too. A real model draws none of them.
    """
    scenario = tape.scenario
    tools = [{"d": tool.description, "n": tool.name, "p": tool.parameters} for tool in scenario.tools]
    first = (len(scenario.prompt) + len(json.dumps(tools))) / CHARACTERS_PER_TOKEN
    requests = taken = reasoning = 0
    given = cached = written = 0.0
    for loop in range(SAMPLE):
        said = first
        for round_, calls in enumerate(_rounds(tape, loop)):
            asked = said
            if emulated:
                drawn = tape.tokens(Place(loop, round_, 0), default_reasoning=0)
                asked += drawn.context
                cached += (read := asked * drawn.cached_share)
                written += (asked - read) * drawn.written_share
                reasoning += drawn.reasoning
            requests += 1
            given += asked
            taken += CALL_TOKENS * calls if calls else ANSWER_TOKENS
            said += (CALL_TOKENS + RESULT_TOKENS) * calls
    return Spent(
        SAMPLE,
        requests,
        round(given),
        taken + reasoning,
        cached_tokens=round(cached),
        cache_written_tokens=round(written),
        reasoning_tokens=reasoning,
        cache_written_1h_tokens=round(written) if scenario.model.cache_ttl == "1h" else 0,
    )


def _rounds(tape: Tape, loop: int) -> Sequence[int]:
    """How many calls each reply of a loop makes; 0 for the last one, the answer."""
    return [*(tape.fan_out(loop, round_) for round_ in range(tape.rounds(loop))), 0]


def rounded(count: float) -> str:
    """Two significant digits: 1,200 of 1,234."""
    if count < 100:
        return f"{count:.0f}"
    digits = len(str(int(count))) - 2
    return f"{round(count, -digits):,.0f}"
