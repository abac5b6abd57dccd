"""Searches what an MCP server can take (`profiler mcp tune`): a few load tests, each decided by the last."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from profiler.errors import UsageError
from profiler.load.experiment import Experiment, run_experiment
from profiler.load.options import LoadOptions
from profiler.report.direct import ours
from profiler.rundir import RunDirectory
from profiler.statistics.direct import DirectLoad, direct_loads
from profiler.statistics.objectives import parse_objective
from profiler.statistics.summary import summarise_table
from profiler.statistics.table import tabulate
from profiler.tune.capacity import (
    Capacity,
    Rates,
    best_rate,
    judge_capacity,
    known,
    ladder,
    rate_sentence,
    to_try,
    within,
)

START_SECONDS = 6.0
"""What an experiment takes beside its trials, until one has been seen."""
LEAST_SECONDS = 1.5
CALLS_EACH = 8
"""How many calls of each agent a trial lasts, where the budget allows."""
FEWEST_EACH = 3
LEAST_BUDGET = 20.0
MOST_LOOKS = 3
"""Experiments after the ladder that look for the limit of a server that refuses."""
CLOSER_BLOCKS = 3
"""Of the loads that tell the capacity of a server that queues, measured once more."""
MOST_CLOSER_SECONDS = 9.0
SHARES = (30, 50, 65, 80, 90, 100)
"""Rates that are tried, in hundredths of the capacity: sources of an open load."""
FEW_SHARES = (50, 80, 100)
"""The same where there is little time."""
BASE = 100
RATE_SECONDS = 4.0
"""How long each rate is measured where the budget allows, and `LEAST_RATE_SECONDS` in any case."""
LEAST_RATE_SECONDS = 2.0
MOST_RATE_SECONDS = 12.0
TRIAL_MORE = 0.4
"""What a trial takes beside its window and a call, until some have been seen."""


@dataclass(frozen=True, slots=True)
class DirectSearch:
    """The search: `load` says which server and calls, `most` how many at once at most; `alone` seconds a lone
    call takes, by a first look, which took `spent` seconds of the budget."""

    load: LoadOptions
    most: int
    alone: float
    workers: int = 1
    budget: float = 120.0
    spent: float = 0.0

    def __post_init__(self) -> None:
        if self.budget < LEAST_BUDGET:
            raise UsageError(f"--budget must be at least {LEAST_BUDGET:g} seconds, not {self.budget:g}")


@dataclass(frozen=True, slots=True)
class Measurement:
    """An experiment's figures, its run directory, what is `invalid` in it in sentences, and for how many
    seconds its trials ran, drains included."""

    loads: tuple[DirectLoad, ...]
    path: str = ""
    invalid: tuple[str, ...] = ()
    seconds: float = 0.0


def measured(experiment: Experiment) -> Measurement:
    """Run an experiment. Raises what `run_experiment` raises."""
    path = run_experiment(experiment)
    directory = RunDirectory.open(path)
    run, table = directory.load(), tabulate(directory.records())
    invalid = tuple(one.sentence for one in summarise_table(run, table).warnings if one.invalid)
    seconds = sum((trial.drained_ns - trial.started_ns) / 1e9 for trial in run.trials)
    loads = tuple(direct_loads(run, directory.records(), table))
    return Measurement(loads, str(path), (*invalid, *ours(loads)), seconds)


class DirectTuner:
    """One search under way. `measure` runs an experiment."""

    def __init__(
        self,
        search: DirectSearch,
        say: Callable[[str], None],
        measure: Callable[[Experiment], Measurement] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._search = search
        self._say = say
        self._measure = measured if measure is None else measure
        self._clock = clock
        self._began = clock() - search.spent
        self._trial_more = search.alone + TRIAL_MORE
        self._start = START_SECONDS
        self._runs: list[str] = []
        self._invalid: list[str] = []
        self._slo = None if search.load.slo is None else parse_objective(search.load.slo)

    def run(self) -> Capacity:
        """Search, and answer. Raises what `run_experiment` raises, `UsageError` for too small a budget."""
        search = self._search
        server = search.load.server.name
        levels = ladder(search.most)
        try:
            each = self._each(len(levels))
        except UsageError:  # fewer loads may do, since the limit is looked for between two of them
            levels = sorted({levels[0], *levels[::-2]})
            each = self._each(len(levels))
        found = self._closed(levels, each)
        looks = 0
        reserve = self._cost(len(FEW_SHARES), LEAST_RATE_SECONDS) if self._slo is not None else 0.0
        while not known(found) and looks < MOST_LOOKS:
            wanted = to_try(found)
            if not wanted or self._left() - reserve < self._cost(len(wanted), each):
                break
            looks += 1
            found = _merged(found, self._closed(wanted, each))
        answer = judge_capacity(server, found)
        if answer.kind == "queues" and answer.parallel is not None:
            closer = sorted({max(1, round(answer.parallel / 2)), found[-1].users})
            room = (self._left() * (0.4 if self._slo else 0.9) - self._start) / len(closer)
            room -= CLOSER_BLOCKS * self._trial_more
            if room >= CLOSER_BLOCKS * LEAST_SECONDS:
                more = self._closed(closer, min(room, MOST_CLOSER_SECONDS), CLOSER_BLOCKS)
                answer = judge_capacity(server, _merged(more, found))
        rates = self._rates(answer)
        notes = [] if known(found) else ["the budget was too short to find the limit more closely"]
        if rates is None and self._slo is not None and answer.rate.value:
            notes.append(f"no time was left to look for a rate within {search.load.slo}: raise --budget")
        return replace(
            answer,
            rates=rates,
            notes=tuple(notes),
            runs=tuple(self._runs),
            seconds=self._clock() - self._began,
            invalid=tuple(dict.fromkeys(self._invalid)),
        )

    def _each(self, levels: int) -> float:
        """Seconds of each trial of the ladder. Raises `UsageError` where there is no time for it."""
        search = self._search
        wanted = max(LEAST_SECONDS, CALLS_EACH * search.alone)
        share = 0.4 if self._slo is not None else 0.5
        room = (share * self._left() - self._start) / levels - self._trial_more
        least = max(LEAST_SECONDS / 2, FEWEST_EACH * search.alone)
        if room < least:
            enough = ((least + self._trial_more) * levels + self._start) / share + search.spent
            raise UsageError(
                f"--budget {search.budget:g}s is too little: a lone call takes {search.alone:.1f} s, and "
                f"{levels} loads have to be tried; --budget {enough:.0f}s is enough, or a lower --users"
            )
        return min(wanted, room)

    def _left(self) -> float:
        return self._search.budget - (self._clock() - self._began)

    def _cost(self, trials: int, each: float) -> float:
        """Seconds that an experiment of so many trials takes, as those before it did."""
        return self._start + trials * (each + self._trial_more)

    def _closed(self, levels: list[int], each: float, blocks: int = 1) -> list[DirectLoad]:
        self._say(f"{', '.join(map(str, levels))} at once, {each:.1f} s each")
        options = replace(self._search.load, levels=tuple(levels), arrivals=None, slo=None)
        return self._experiment(options, levels[0], each, blocks)

    def _open(self, base: float, shares: list[int], each: float, at_once: int | None) -> list[DirectLoad]:
        rates = ", ".join(f"{base * share / BASE:.3g}" for share in shares)
        self._say(f"arrivals of {rates}/s, {each:.1f} s each")
        options = replace(
            self._search.load,
            levels=tuple(shares),
            arrivals=f"{base:.6f}/s",
            max_in_flight=at_once,
            slo=None,
        )
        return self._experiment(options, BASE, each, 1)

    def _experiment(self, options: LoadOptions, users: int, each: float, blocks: int) -> list[DirectLoad]:
        began = self._clock()
        calibration = options.calibration_seconds if not self._runs else 0.0
        options = replace(options, blocks=blocks, calibration_seconds=calibration)
        found = self._measure(Experiment(options, users, each, self._search.workers))
        self._runs.append(found.path)
        self._invalid += found.invalid
        self._start = max(1.0, self._clock() - began - found.seconds)
        self._trial_more = max(0.2, found.seconds / (len(options.levels) * blocks) - each / blocks)
        return list(found.loads)

    def _rates(self, answer: Capacity) -> Rates | None:
        """The largest rate within the objective, where one was asked for and there is time."""
        slo, text = self._slo, self._search.load.slo
        if slo is None or text is None or not answer.rate.value:
            return None
        held = [one.users for one in answer.loads if not within(one, slo)]
        base = answer.rate.value
        if answer.kind == "enough":
            base *= 1.25  # what is above its rate with so many at once was not seen
        limit = answer.limit
        left = self._left()
        shares = [*SHARES]
        if self._cost(len(shares), LEAST_RATE_SECONDS) > left:
            shares = [*FEW_SHARES]
        if self._cost(len(shares), LEAST_RATE_SECONDS) > left:
            return None
        # Half of the time is for a closer look, where half is enough.
        each = (left - self._start) / len(shares) - self._trial_more
        half = (left / 2 - self._start) / len(shares) - self._trial_more
        each = min(MOST_RATE_SECONDS, max(half, min(each, RATE_SECONDS)))
        found = best_rate(self._open(base, shares, each, limit), slo, text)
        low = 0 if found.met is None else found.met.users
        high = None if found.missed is None else found.missed.users
        if high is not None and high - low > 2 and self._left() > self._cost(3, LEAST_RATE_SECONDS):
            step = (high - low) / 4
            between = sorted({round(low + step * k) for k in (1, 2, 3)} - {0, low, high})
            room = (self._left() - self._start) / len(between) - self._trial_more
            closer = best_rate(self._open(base, between, min(MOST_RATE_SECONDS, room), limit), slo, text)
            found = Rates(
                text,
                closer.met or found.met,
                closer.missed or found.missed,
                closer.why or found.why,
            )
        return replace(found, concurrency=max(held, default=None))


def _merged(before: list[DirectLoad], more: list[DirectLoad]) -> list[DirectLoad]:
    """The loads of two experiments; of one that both have, the first counts."""
    seen = {one.users for one in before}
    return sorted([*before, *(one for one in more if one.users not in seen)], key=lambda one: one.users)


def render_capacity(answer: Capacity) -> str:
    """The answer as text: what makes it invalid, the sentence, the loads that it rests on."""
    from profiler.report.direct import in_calls
    from profiler.report.text import clean, duration, number, percent

    lines = [*map(in_calls, answer.invalid), answer.sentence]
    if answer.rates is not None:
        lines.append(rate_sentence(answer.server, answer.rates))
    lines += [*answer.notes, "", "at once  calls/s      p50      p95  failed"]
    for load in answer.loads:
        cells = (
            number(load.served.value),
            duration(load.seconds.p50.value),
            duration(load.seconds.p95.value),
        )
        lines.append(
            f"{load.users:7d}  {cells[0]:>7}  {cells[1]:>7}  {cells[2]:>7}  {percent(load.failure_share):>6}"
        )
    lines += ["", f"{answer.seconds:.0f} s; runs: {', '.join(answer.runs)}"]
    return "\n".join(clean(line, 500) for line in lines) + "\n"
