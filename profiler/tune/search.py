"""Runs the experiments of a search, within a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from profiler.arrivals import scaled
from profiler.errors import Interrupted, ProfilerError, TargetError, Terminated, UsageError, did_you_mean
from profiler.limits.known import seen_quota
from profiler.load.experiment import Experiment, run_experiment
from profiler.process.signals import signals
from profiler.records import INTERNAL, LoopRecord
from profiler.rundir import RunDirectory
from profiler.statistics.gates import Outcome, nothing_measured, objective_outcome
from profiler.statistics.objectives import Objective, parse_objective
from profiler.statistics.quantiles import Estimate
from profiler.statistics.summary import fit, summarise_directory
from profiler.statistics.table import tabulate
from profiler.statistics.verdicts import TOOL_CALLS
from profiler.strategies import effective_limits, parse_strategies, parse_strategy
from profiler.tune.answer import (
    HEADROOM_AT,
    Answer,
    AtLoad,
    choose,
    per_second,
    python_snippet,
    toml_fragment,
)
from profiler.tune.asked import Search, rates_to_try
from profiler.tune.budget import (
    END,
    LEAST_WINDOW,
    LOADED,
    PILOT_LOOPS,
    PILOT_SHARE,
    START,
    WINDOW_LOOPS,
    Spending,
    affordable,
    fitting,
    sufficient,
    trial_seconds,
    window_seconds,
    within,
)
from profiler.tune.candidates import (
    SEMAPHORE,
    Candidate,
    ObjectiveName,
    Pilot,
    best_of,
    by_level,
    first_values,
    knee_of,
    on_one_scale,
    pilot,
    promised,
    refine,
    settled,
    shape,
    survivors,
)
from profiler.tune.dial import Dial
from profiler.tune.predicted import APART, Agreement, agreement
from profiler.tune.quotas import RateAdvice, advise, demand, refused, unsaid
from profiler.tune.recorded import at_the_top
from profiler.tune.thinking import Seen, Thinker, Thinking, Thought

SHARES = {"limits": 0.3, "final": 0.45, "loads": 0.15, "confirm": 0.1}
"""Shares of the time after the pilot, by stage; what one leaves over is for those after it."""
SHARES_PREDICTED = {"proof": 0.75, "loads": 0.0, "confirm": 0.25}
"""The same where everything was predicted, other loads as well, and only the best is measured."""
SHARES_ASSUMED = {"proof": 0.65, "loads": 0.15, "confirm": 0.2}
"""The same where that was predicted from what is likely."""
BLOCKS = {"limits": 2, "final": 8, "loads": 1, "proof": 5}
"""Blocks of each stage, at most."""
DECIDING = ("final", "proof")
"""Stages that decide: they may end as soon as their candidates are told apart."""
THINKING = 0.1
"""The share of the budget for predicting."""
LEVELS_FROM = 90.0
"""The budget, in seconds, from which on the first look is long enough to be predicted from."""
LEVELS = (1 / 3, 0.6, 1.0)
"""Shares of the load, from few calls at once to all: what a server does under load shows between them."""
LOOK_SHARE, LONGEST_LOOK = 0.04, 8.0
"""How long each of them is looked at, as a share of the budget, and in seconds at most."""
FEWEST_SURPRISING = 2
"""Blocks after which a prediction may be found to be wrong."""
FIRST_LOOK = 4
"""Blocks of the final stage before it may end early."""
LADDER = 4
"""Limits for whose trials there must be time before those of the final stage: else there is but one stage."""
FILLED = 0.85
"""The share of a stage's time that is planned: a trial that takes longer must not cost the next one."""
FEWEST_FINAL_BLOCKS = 3
FEWEST_TOLD_APART = 3
"""Candidates that the final stage measures before there is time for anything after it."""
FEWEST = 1
"""Candidates without which there is no search."""
OTHER_LOADS = (0.5, 0.75, 1.25, 1.5)
"""Shares of the load that is tuned for."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Candidates that were measured in the same paired blocks."""

    asked: tuple[str, ...]
    found: list[Candidate]
    directory: RunDirectory

    @property
    def whole(self) -> bool:
        """Whether every candidate has a score."""
        return {one.spec for one in self.found if one.score.value is not None} >= set(self.asked)


def thinker(search: Search) -> Thinking | None:
    """What predicts for a search; None where nothing can be predicted, as of a setting of the agent's own."""
    return None if search.dial.setting is not None else Thinker(search)


class LimitReachedError(ProfilerError):
    """A limit on what may be spent is reached: no more experiments begin."""


def candidates(
    directory: RunDirectory, objective: ObjectiveName, slo: Objective | None, dial: Dial = SEMAPHORE
) -> list[Candidate]:
    """Every strategy of an experiment of one load, each compared with the best in paired blocks."""
    levels = by_level(directory.load(), tabulate(directory.records()), objective, slo, dial)
    return levels[max(levels)] if levels else []


class Tuner:
    """One search under way."""

    def __init__(
        self,
        search: Search,
        say: Callable[[str], None],
        run: Callable[..., Path] | None = None,
        clock: Callable[[], float] | None = None,
        think: Thinking | None = None,
    ) -> None:
        self._search = search
        self._say = say
        self._run_experiment = run_experiment if run is None else run
        self._clock = time.monotonic if clock is None else clock  # in seconds
        self._began = self._clock()
        self._slo = None if search.load.slo is None else parse_objective(search.load.slo)
        self._runs: list[RunDirectory] = []
        self._stages: list[Stage] = []
        self._spending = Spending(search.load)
        self._failure: TargetError | None = None
        self._ended: Interrupted | None = None
        self._shares = dict(SHARES)
        self._start = START  # seconds of an experiment beside its trials, as the last one had them
        self._untried: list[str] = []
        self._confirmation: RunDirectory | None = None
        self._moved: str | None = None
        self._window_loops = WINDOW_LOOPS
        self._dial = search.dial
        self._seen = Pilot(1, 1.0, ())
        self._thinker = thinker(search) if think is None else think
        self._thought: Thought | None = None
        self._surprise: str | None = None

    def run(self) -> Answer:
        """Search, and answer. Raises what `run_experiment` raises.

        A limit on what may be spent ends the search early, with what was found by then, and so does an
        experiment that fails, for instance because the target has gone away, and an interrupt. Raises
        `LimitReachedError`, the `TargetError` or `Interrupted` when nothing was found by then.
        """
        try:
            return self._search_through()
        except LimitReachedError:
            return self._answer_so_far()
        except TargetError as error:
            self._failure = error
            return self._answer_so_far()
        except KeyboardInterrupt as error:
            self._ended = error if isinstance(error, Interrupted) else Interrupted()
            return self._answer_so_far()
        finally:
            if self._thinker is not None:
                self._thinker.close()

    @property
    def _stopped(self) -> str | None:
        """Why the search ended early, in words; None if it did not."""
        if self._ended is not None:
            return f"the search was {self._ended.cause}"
        return self._spending.stopped if self._failure is None else f"the search ended early: {self._failure}"

    @property
    def _short_windows(self) -> str | None:
        """What was measured for fewer loops than it ought to be, and why, in words; None if nothing was."""
        if self._window_loops >= WINDOW_LOOPS:
            return None
        return (
            f"not to be relied on: settings were measured for {self._window_loops:g} loops each, not for "
            f"{WINDOW_LOOPS:g}, since an experiment took {self._start:.0f} s to start on this machine; a "
            "longer --budget, or an idle machine, has time for more"
        )

    def _search_through(self) -> Answer:
        baseline = self._dial.baseline
        kinds = [kind for kind in ("adaptive", "sequential") if self._search.part(kind) is not None]
        others = [baseline, *kinds]
        # Beside gathering, a strategy that gets something done where gathering only fails.
        first = [baseline, *(kinds or [self._dial.beside])]
        records = self._pilot(first)
        final = self._decided(others)
        setting, as_good = choose(final, self._dial)
        stage = self._stages[-1]
        loads: Sequence[AtLoad] = ()
        scalability = None
        try:
            loads, scalability = self._predicted_loads(setting)
            if not loads:
                loads, scalability = self._other_loads(setting)
            self._confirm(setting)
        except (LimitReachedError, TargetError, Interrupted) as error:
            self._failure = error if isinstance(error, TargetError) else None
            self._ended = error if isinstance(error, Interrupted) else None
        setting = self._promised(setting, stage)
        return self._answer(setting, as_good, stage, loads, scalability, records)

    def _decided(self, others: Sequence[str]) -> list[Candidate]:
        """The candidates of the stage that decides: of those that are predicted to be best, else of a search.

        A ladder of limits is a recording as well: where the first look does not tell enough, it may.
        """
        found: list[Candidate] = []
        if not self._think():
            found = self._ladder()
            if not found or not self._think():
                return self._final(found, others)
        self._shares = dict(SHARES_PREDICTED if self._shows_predictions else SHARES_ASSUMED)
        final = self._stage("proof", self._proof_specs(found))
        said = self._disagreement(final)
        if said is None:
            return final
        self._surprise = said
        self._shares = dict(SHARES)
        self._say(f"{said}: searching without it")
        loops = self._loops(self._first_specs()[:FEWEST])
        if fitting(loops, self._left() - self._start) < FEWEST:
            return final
        return self._final(self._ladder(), others)

    def _think(self) -> bool:
        """Predict from what was recorded so far; whether that tells what to measure."""
        if self._thinker is None:
            return False
        seen = Seen(self._loop_under_load(), self._seen.peak, self._seen.widest)
        directories = [stage.directory for stage in self._stages]
        self._thought = thought = self._thinker.think(directories, seen, THINKING * self._search.budget)
        if thought.refused is not None:
            self._say(f"not predicted: {thought.refused}")
            return False
        best = thought.candidate(thought.finalists[0])
        said = "" if best is None else f": best {best.spec}, {per_second(best.goodput)}"
        self._say(f"predicted: {thought.known} settings from {thought.loops} loops{said}")
        return True

    def _loop_under_load(self) -> float:
        return max(self._seen.loop, *self._seen.loops.values(), 0.0)

    def _proof_specs(self, found: Sequence[Candidate]) -> list[str]:
        """What to measure after predicting: the best, what may be as good, and the baseline to compare with.

        A limit that was the best of those measured so far is among them: it may know better.
        """
        assert self._thought is not None
        specs = [*self._thought.finalists]
        measured = best_of(found) if found else None
        if measured is not None and measured.points:
            predicted = self._thought.candidate(measured.spec)
            if predicted is None or measured.points > (predicted.score.high or predicted.points):
                specs.append(measured.spec)
        if self._search.part("eager") is not None:
            specs += ["eager", *(f"eager+{spec}" for spec in specs[:1] if spec.startswith("semaphore"))]
        return [*dict.fromkeys([*specs[:2], self._dial.baseline, *specs[2:]])]

    def _disagreement(self, measured: Sequence[Candidate]) -> str | None:
        """That the best was measured to be another than predicted, in words; None where it was not."""
        best = best_of(measured)
        found = self._agreement(best)
        if found is None or found.holds:
            return None
        return f"the prediction was wrong: {best.spec} was {found.words}"

    def _agreement(self, measured: Candidate) -> Agreement | None:
        predicted = None if self._thought is None else self._thought.candidate(measured.spec)
        return None if predicted is None else agreement(predicted, measured, self._search.objective)

    @property
    def _shows_predictions(self) -> bool:
        """Whether what was predicted is part of the answer: else it only chose the settings to measure."""
        thought = self._thought
        good = thought is not None and thought.refused is None and not thought.assumed
        return good and self._surprise is None

    def _predicted_loads(self, setting: Candidate) -> tuple[list[AtLoad], str | None]:
        """The setting and the baseline at other loads as predicted; nothing where that was not so."""
        if self._thinker is None or not self._shows_predictions:
            return [], None
        users = self._search.users
        levels = sorted({max(1, round(users * share)) for share in (*OTHER_LOADS, 1.0)})
        specs = [*dict.fromkeys([setting.spec, self._dial.baseline])]
        found = self._thinker.at_loads(specs, levels)
        loads, rates = [], []
        for level in levels:
            named = {one.spec: one.candidate for one in found.get(level, [])}
            at, gathered = named.get(setting.spec), named.get(self._dial.baseline)
            if at is None:
                continue
            if level != users:
                loads.append(AtLoad(level / users, level, at, None if gathered is at else gathered))
            if at.goodput.value:
                rates.append((level, [at.goodput.value]))
        fitted = fit([level for level, _ in rates], [rate for _, rate in rates])
        return loads, None if fitted is None else f"over the loads, as predicted: {fitted.sentence}"

    def _look(self, specs: Sequence[str], until: float) -> RunDirectory:
        """The first experiment: from a small load to all of it where it is to be predicted from."""
        search = self._search
        levels = sorted({max(1, round(search.users * share)) for share in LEVELS})
        predicted = self._thinker is not None and search.budget >= LEVELS_FROM and search.load.agent is None
        if not predicted or len(levels) < len(LEVELS):
            return self._experiment("pilot", specs, 1, LEAST_WINDOW, until=until, loops=PILOT_LOOPS)
        window = min(LONGEST_LOOK, max(LEAST_WINDOW, LOOK_SHARE * search.budget))
        return self._experiment(
            "pilot", specs, 1, window, tuple(levels), until=until, loops=PILOT_LOOPS, climb=True
        )

    def _pilot(self, specs: Sequence[str]) -> list[LoopRecord]:
        """The records of a first look; refuses where the budget is too small for what it shows."""
        budget = self._search.budget
        directory = self._look(specs, self._began + PILOT_SHARE * budget)
        run, records = at_the_top(directory.load(), directory.records())
        self._measured(specs, directory)
        if self._spending.limit is not None:
            raise LimitReachedError
        summary = summarise_directory(directory)
        for warning in summary.warnings:
            if warning.kind == "strategy_ignored":
                raise UsageError(
                    f"nothing to tune: {warning.detail}; {warning.remedy}. Where the agent has a setting of "
                    "its own for that: --over NAME=1..32"
                )
        for verdict in summary.verdicts:
            if verdict.metric == TOOL_CALLS:
                raise UsageError(f"nothing to tune: {verdict.sentence}")
        tool = self._dial.knob.tool
        tools = {call.name for record in records for call in record.tool_calls}
        if tool is not None and tools and tool not in tools:
            raise UsageError(
                f"--over {self._search.part('semaphore')}: nothing to tune: no call of {tool} was seen"
                f"{did_you_mean(tool, tools)}; known: {', '.join(sorted(tools))}"
            )
        self._seen = seen = pilot(run, records, self._dial)
        if not run.trials or not seen.loops:
            # No loop ended: each takes longer than the first one, alone, or than there was time.
            waited = [(trial.drained_ns - trial.started_ns) / 1e9 for trial in run.trials]
            raise self._too_little(LOADED * max(run.loop_seconds or 0.0, *waited, 0.0))
        loops = self._loops(self._first_specs()[:FEWEST])
        left = self._left() - self._start
        if fitting(loops, left) < FEWEST:
            # A start slower than usual, on a busy machine, costs loops of the window rather than an answer.
            self._window_loops = PILOT_LOOPS
            if trial_seconds(loops[0], loops=PILOT_LOOPS) > left:
                raise self._too_little(max(*loops, *seen.loops.values()))
        return records

    def _too_little(self, loop: float) -> UsageError:
        """The budget is too small for loops of so many seconds."""
        enough = sufficient(loop, self._search.budget, self._start)
        return UsageError(
            f"--budget {self._search.budget:g}s is too little: a loop takes some {loop:.1f} s under this "
            f"load, and each setting has to be measured for {WINDOW_LOOPS:g} of them; "
            f"--budget {enough:.0f}s is enough"
        )

    def _first_specs(self) -> list[str]:
        """What to try first, the most telling first."""
        seen = self._seen
        limited: list[str] = []
        if any(part.knob is not None for part in self._search.over):
            limited = [*map(self._dial.spec, first_values(self._dial, seen))]
        # Where calls fail under gathering, a limit and a lower one tell more than gathering once more.
        ahead = 2 if seen.failing else 0
        return [*dict.fromkeys([*limited[:ahead], self._dial.baseline, *limited[ahead:]])]

    def _ladder(self) -> list[Candidate]:
        """Limits far apart, where there is time for a stage of them before the final one; else nothing."""
        specs = [spec for spec in self._first_specs() if self._dial.value(spec) is not None]
        loops = self._loops(specs)
        seconds = self._left() - 2 * self._start
        final = FEWEST_FINAL_BLOCKS * 3 * sum(map(trial_seconds, loops[:1]))
        if len(specs) < 2 or fitting(loops[:LADDER], seconds - final) < min(LADDER, len(specs)):
            self._shares.pop("limits")
            return []
        return self._stage("limits", specs)

    def _final(self, found: Sequence[Candidate], others: Sequence[str]) -> list[Candidate]:
        if found:
            return self._stage("final", self._final_specs(found, others))
        specs = [*self._first_specs(), *others]
        if self._search.part("rate") is not None or self._search.part("eager") is not None:
            specs += self._final_specs(self._stages[-1].found, others)
        return self._stage("final", [*dict.fromkeys(specs)])

    def _loops(self, specs: Sequence[str]) -> list[float]:
        """What a loop takes under each, in seconds: as predicted in a closed load, else by `Pilot`."""
        loops = []
        for spec in specs:
            predicted = None if self._thought is None else self._thought.candidate(spec)
            rate = None if predicted is None else predicted.throughput.value
            if rate and spec not in self._seen.loops and self._search.load.arrivals is None:
                loops.append(self._search.users / rate)
            else:
                loops.append(self._seen.loop_seconds(spec, self._search.users))
        return loops

    def _answer_so_far(self) -> Answer:
        """The best of the last stage in which everything was measured, else of the last with scores."""
        scored = [stage for stage in self._stages if any(one.points for one in stage.found)]
        stage = next((stage for stage in reversed(scored) if stage.whole), scored[-1] if scored else None)
        if stage is None and self._failure is not None:
            raise self._failure
        if stage is None and self._ended is not None:
            if self._runs:
                self._ended.outcome = f"before enough was measured; see {self._paths}"
            raise self._ended
        if stage is None:
            raise LimitReachedError(
                f"{self._spending.stopped}: too little was measured, or met the objective; see {self._paths}"
            )
        del self._stages[self._stages.index(stage) + 1 :]
        records = list(self._runs[0].records())
        return self._answer(best_of(stage.found), False, stage, [], None, records, proven=False)

    @property
    def _paths(self) -> str:
        return ", ".join(str(directory.path) for directory in self._runs)

    def _final_specs(self, found: Sequence[Candidate], others: Sequence[str]) -> list[str]:
        """The best limit, one on each side of it, and what else may be as good; gathering to compare with."""
        scores = {one.limit: one.points for one in found if one.limit is not None and one.points}
        kept = survivors(found)
        # Of a setting the smallest value that is as good is what is asked for.
        middle = knee_of(scores) if scores and self._dial.setting is not None else None
        limits = self._dial.distinct(refine(scores, 3, middle))
        if limits:
            # The one below the best is there for the headroom, so it is put at `HEADROOM_AT` of the best.
            lower = self._dial.nearest(HEADROOM_AT * limits[0])
            below = lower if lower < limits[0] else self._dial.below(limits[0])
            above = [limit for limit in limits[1:] if limit > limits[0]]
            limits = [limits[0], *above, *([] if below is None else [below])]
            limits += [] if middle is None else [best_of(kept or found).limit or middle]
        specs = [*map(self._dial.spec, limits)]
        rate = self._search.part("rate")
        if rate is not None:
            specs += rate.specs(rates_to_try(rate, kept[0].calls_per_second if kept else 0.0))
        if self._search.part("eager") is not None:
            specs += ["eager", *(f"eager+{spec}" for spec in specs[:1])]
        as_good = {one.spec for one in kept}
        kinds = [spec for spec in others if spec == self._dial.baseline or spec in as_good or not limits]
        return [*dict.fromkeys([*specs[:1], *kinds, *specs[1:]])]

    def _stage(self, name: str, specs: Sequence[str]) -> list[Candidate]:
        """Measure as many of the candidates as fit into the stage's share, the first ones before others."""
        seconds, until = self._share(name)
        places = within(self._loops(specs), FILLED * seconds)
        if name in DECIDING and len(places) < min(FEWEST_TOLD_APART, len(specs)):
            # Sooner another candidate than the answer once more.
            seconds, until = self._left() - self._start, self._end
            places = within(self._loops(specs), FILLED * seconds)
        places = places or [0]
        if len(places) < len(specs):
            left_out = [spec for place, spec in enumerate(specs) if place not in places]
            self._untried += left_out
            self._say(f"{name}: no time for {', '.join(left_out)}")
            specs = [specs[place] for place in places]
        loops = self._loops(specs)
        blocks = affordable(loops, seconds, BLOCKS[name])
        window = window_seconds(loops, FILLED * seconds, blocks)
        directory = self._experiment(name, specs, blocks, window, until=until, loops=self._window_loops)
        found = self._measured(specs, directory)
        if self._spending.limit is not None:
            raise LimitReachedError
        if not found:
            raise TargetError(f"nothing was measured: see {directory.path}")
        for best in survivors(found)[:1]:
            self._say(f"{name}: best so far {best.spec}")
        return found

    def _confirm(self, setting: Candidate) -> None:
        """Measure the setting once more, alone and last, where there is time.

        The best of several owes part of its score to luck, and in a window of its own it has none. Last,
        since what it serves may drift: what is promised is what comes after the search.
        """
        loop = self._seen.loop_seconds(setting.spec, self._search.users)
        seconds, until = self._share("confirm")
        if seconds >= trial_seconds(loop):
            window = window_seconds([loop], seconds, 1)
            self._confirmation = self._experiment("confirm", [setting.spec], 1, window, until=until)

    def _promised(self, setting: Candidate, stage: Stage) -> Candidate:
        """The setting with the goodput that it promises: of its own window, else of the final stage."""
        found = Estimate(None)
        for directory in (self._confirmation, stage.directory):
            if directory is None or found.value is not None:
                continue
            found = promised(directory.load(), tabulate(directory.records()), setting.spec, self._slo)
            if directory is self._confirmation:
                found = self._with_drift(setting, found)
        score = found if self._search.objective == "goodput" else setting.score
        return replace(setting, goodput=found, score=score)

    def _with_drift(self, setting: Candidate, found: Estimate) -> Estimate:
        """The promise, allowing for another change like that since the final stage, where there was one."""
        before, when = setting.goodput.value, "in the final stage"
        if found.value is None or found.low is None or found.high is None:
            return found
        predicted = None if self._thought is None else self._thought.candidate(setting.spec)
        foreseen = None if predicted is None or self._surprise is not None else predicted.goodput.value
        if foreseen is not None and abs(foreseen / max(found.value, 1e-9) - 1) > APART:
            # From the first look: what has changed since then shows before it shows in the final stage.
            before, when = foreseen, "as predicted from the first look"
        elif before is None or found.low <= before <= found.high:
            return found
        change = found.value - before
        self._moved = (
            f"{setting.spec} gave {before:.3g}/s {when} and {found.value:.3g}/s at the end: "
            "its interval allows for as large a change again"
        )
        low, high = found.low + min(0.0, change), found.high + max(0.0, change)
        return Estimate(found.value, max(0.0, low), high)

    def _measured(self, specs: Sequence[str], directory: RunDirectory) -> list[Candidate]:
        found = candidates(directory, self._search.objective, self._slo, self._dial)
        self._stages.append(Stage(tuple(specs), found, directory))
        return found

    @property
    def _end(self) -> float:
        """When the last experiment has to be over, on the monotonic clock."""
        return self._began + self._search.budget - END

    def _left(self) -> float:
        return self._end - self._clock()

    def _share(self, name: str) -> tuple[float, float]:
        """(seconds for the trials of a stage, when they end at the latest); those after it get their own."""
        left = self._left()
        share = left * self._shares[name] / sum(self._shares.values())
        del self._shares[name]
        least = trial_seconds(self._seen.loop)
        if name in DECIDING and (left - share < self._start + least or share < self._start + 3 * least):
            share = left  # no stage after it could begin, or not even it
        return share - self._start, min(self._end, self._clock() + share)

    def _other_loads(self, setting: Candidate) -> tuple[list[AtLoad], str | None]:
        """The setting and the baseline at other loads, and how goodput scales over them."""
        users = self._search.users
        levels = sorted({max(1, round(users * share)) for share in (*OTHER_LOADS, 1.0)})
        specs = [*dict.fromkeys([setting.spec, self._dial.baseline])]
        seconds, until = self._share("loads")
        # What time there is goes to the setting first, then to the baseline.
        loops = [loop for loop in self._loops(specs) for _ in levels]
        if fitting(loops, seconds) < len(loops):
            specs, loops = specs[:1], loops[: len(levels)]
        rest = self._end - until - self._start  # for the setting once more, which matters more than this
        if fitting(loops, seconds) < len(loops) or rest < trial_seconds(loops[0]):
            self._untried.append("other loads")
            self._say("loads: no time for other loads")
            return [], None
        window = window_seconds(loops, seconds, BLOCKS["loads"])
        directory = self._experiment("loads", specs, BLOCKS["loads"], window, tuple(levels), until=until)
        table = tabulate(directory.records())
        found = by_level(directory.load(), table, self._search.objective, self._slo, self._dial)
        loads, rates = [], []
        for level, measured in sorted(found.items()):
            named = {one.spec: one for one in measured}
            if setting.spec not in named:
                continue
            at, gathered = named[setting.spec], named.get(self._dial.baseline)
            if level != users:
                loads.append(AtLoad(level / users, level, at, None if gathered is at else gathered))
            if at.goodput.value:
                rates.append((level, [at.goodput.value]))
        fitted = fit([level for level, _ in rates], [rate for _, rate in rates])
        return loads, None if fitted is None else f"over the loads: {fitted.sentence}"

    def _rates(self, records: Sequence[LoopRecord]) -> tuple[list[RateAdvice], list[str]]:
        """The advice for each quota, and what it leaves out."""
        seen = seen_quota(records)
        quotas = self._search.quotas or ([] if seen is None else [seen])
        taken = demand(records)
        if taken is None:
            return [], []
        rates = [advice for quota in quotas if (advice := advise(quota, taken)) is not None]
        return rates, [sentence for quota in quotas for sentence in unsaid(quota, taken)]

    def _experiment(
        self,
        name: str,
        specs: Sequence[str],
        blocks: int,
        window: float,
        levels: tuple[int, ...] = (),
        *,
        until: float,
        loops: float = WINDOW_LOOPS,
        climb: bool = False,
    ) -> RunDirectory:
        """One experiment of paired blocks: each trial measures `window` seconds, and `loops` loops, at least.

        It is over at `until` on the monotonic clock, with fewer trials if need be.
        The work is new in each. Raises `LimitReachedError` when too little is left to spend on it.
        """
        search = self._search
        # The user's own agents are made anew for each strategy, and each has a first loop.
        if not self._spending.allows(search.workers * (len(specs) if search.load.agent else 1)):
            raise LimitReachedError
        load = f" at {', '.join(map(str, levels))} agents" if levels else ""
        self._say(f"{name}: {', '.join(specs)}{load}, {blocks} × {window:.1f} s each")
        options = replace(
            self._spending.left(),
            strategies=parse_strategies(specs),
            blocks=blocks,
            levels=levels,
            seed=search.load.seed + len(self._runs),
            calibration_seconds=search.load.calibration_seconds if name in DECIDING else 0.0,
            metrics=False,
            window_loops=loops,
            until_seconds=until,
            climb=climb,
        )
        most = max(levels, default=search.users)
        began = self._clock()
        if search.load.arrivals is not None and levels:
            # Each agent is a source of arrivals: more agents make more of them, each as many as before.
            options = replace(options, arrivals=scaled(search.load.arrivals, most / search.users))
        experiment = Experiment(options, most, window * blocks, search.workers)
        enough = {"final": self._enough, "proof": self._proven}.get(name)
        try:
            directory = RunDirectory.open(self._run_experiment(experiment, enough=enough))
        except TargetError as error:
            if error.run_directory is not None:
                directory = RunDirectory.open(error.run_directory)
                self._runs.append(directory)
                self._spending.add(directory.load())
                self._measured(specs, directory)
            raise
        self._runs.append(directory)
        signals.outcome = f"before the search had come to its end; see {self._paths}"
        run = directory.load()
        if run.trials:
            measured = (run.trials[-1].drained_ns - run.trials[0].started_ns) / 1e9
            self._start = max(0.0, self._clock() - began - measured)
        self._spending.add(run)
        for ended in (Terminated, Interrupted):
            if any(incident.kind == ended.incident for incident in run.incidents):
                self._measured(specs, directory)
                raise ended()
        return directory

    def _enough(self, directory: RunDirectory) -> bool:
        """Whether the final stage may end: its candidates are told apart, or shown to be as good."""
        trials = directory.load().trials
        if len({trial.block for trial in trials}) < FIRST_LOOK:
            return False
        return settled(candidates(directory, self._search.objective, self._slo, self._dial))

    def _proven(self, directory: RunDirectory) -> bool:
        """Whether the measuring of what was predicted may end: as `_enough`, or since that was wrong."""
        if self._enough(directory):
            return True
        if len({trial.block for trial in directory.load().trials}) < FEWEST_SURPRISING:
            return False
        found = candidates(directory, self._search.objective, self._slo, self._dial)
        return self._disagreement(found) is not None

    def _answer(
        self,
        setting: Candidate,
        as_good: bool,
        stage: Stage,
        loads: Sequence[AtLoad],
        scalability: str | None,
        records: Sequence[LoopRecord],
        proven: bool = True,
    ) -> Answer:
        """The answer; `records` are those of the first look, which tell of quotas."""
        workers = self._search.workers
        shared = workers if self._search.load.share_limit else 1
        measured = on_one_scale([one.found for one in self._stages], self._dial)
        found = None
        curve = self._with_predicted(measured)
        if proven and any(one.points for one in measured):
            best = setting if setting.limit is not None else best_of(measured)
            found = shape(curve, best.limit or 0)
            shown = shape(measured, best.limit or 0)
            found = replace(found, low=shown.low, high=shown.high)
        rates, left_out = self._rates(records)
        model_limits = rates[0].limits if rates else None
        held = self._search.load.model_limit is not None
        limits = effective_limits(
            [parse_strategy(setting.spec)], agents=self._search.users, processes=workers, share=shared
        )
        # Of its own window, too, where it was measured once more.
        summary = summarise_directory(stage.directory)
        nothing = nothing_measured(summary.every_strategy)
        warnings = list(summary.warnings)
        if self._confirmation is not None:
            warnings += summarise_directory(self._confirmation).warnings
        invalid = [caveat for caveat in warnings if caveat.invalid]
        return Answer(
            setting=setting,
            objective=self._search.objective,
            final=tuple(sorted(stage.found, key=lambda one: -one.points)),
            curve=tuple(curve),
            shape=found,
            gathered_is_as_good=as_good,
            loads=tuple(loads),
            scalability=scalability,
            rates=tuple(rates),
            rates_leave_out=tuple(left_out),
            refused=refused(stage.directory.records(), model_limits, held=held),
            baseline=self._dial.baseline,
            dial=self._dial.setting,
            edge=None if setting.limit is None else self._dial.edge(setting.limit),
            python=python_snippet(setting.spec, model_limits, shared, self._search.load.agent),
            toml=toml_fragment(setting.spec, model_limits),
            effective="\n".join(limits),
            runs=tuple(str(directory.path) for directory in self._runs),
            seconds=self._clock() - self._began,
            invalid=tuple(dict.fromkeys(caveat.sentence for caveat in invalid)),
            valid=not any(not one.strategies or setting.spec in one.strategies for one in invalid),
            stopped=self._stopped,
            failed=self._failure is not None,
            ended=None if self._ended is None else self._ended.incident,
            proven=proven,
            spent=self._spending.described,
            untried=tuple(dict.fromkeys(self._untried)),
            short_windows=self._short_windows,
            moved=self._moved,
            prediction=self._prediction(setting, stage),
            servers=() if self._thought is None else self._thought.servers,
            surprise=self._surprise,
            slo=self._judged_objective(),
            nothing=None if nothing is None else nothing.sentence,
            unanswered=summary.unanswered,
            internal=sum(directory.ended_by(INTERNAL) for directory in self._runs),
        )

    def _with_predicted(self, measured: Sequence[Candidate]) -> list[Candidate]:
        """The curve, with what was only predicted beside what was measured; not where it was wrong."""
        if self._thought is None or not self._shows_predictions:
            return [*measured]
        known = {one.limit for one in measured}
        others = [one.candidate for one in self._thought.found.values() if one.candidate is not None]
        added = [one for one in others if one.limit is not None and one.limit not in known]
        return sorted([*measured, *added], key=lambda one: one.limit or 0)

    def _prediction(self, setting: Candidate, stage: Stage) -> str | None:
        """What was predicted, and how well that agreed with what was then measured, in words."""
        thought = self._thought
        if thought is None:
            return None
        if thought.refused is not None:
            return f"not predicted, but searched: {thought.refused}"
        same = next((one for one in stage.found if one.spec == setting.spec), setting)
        found = self._agreement(same)
        said = "" if found is None else f"; {setting.spec} was {found.words}"
        if thought.assumed:
            said = f"; what was measured was chosen as if this were known: {'; '.join(thought.assumed)}{said}"
        took = f"{thought.seconds:.0f} s"
        return f"{thought.known} settings were predicted from {thought.loops} loops in {took}{said}"

    def _judged_objective(self) -> Outcome | None:
        """Whether any setting meets `--slo`, each as it was measured last; None without one."""
        spec = self._search.load.slo
        if spec is None:
            return None
        last = {one.spec: one for stage in self._stages for one in stage.found}
        best_first = sorted(last.values(), key=lambda one: -one.points)
        return objective_outcome(
            spec, [(one.spec, one.objective_met, one.objective_missed) for one in best_first]
        )


def tune(
    search: Search,
    say: Callable[[str], None] = lambda text: None,
    *,
    run: Callable[..., Path] | None = None,
    clock: Callable[[], float] | None = None,
    think: Thinking | None = None,
) -> Answer:
    """Find the setting. `say` gets a line at each step. Raises what `run_experiment` raises.

    `run` runs an experiment in place of `run_experiment`, `clock` (seconds) is the clock it goes by, and
    `think` predicts in place of a `Thinker`.
    """
    return Tuner(search, say, run, clock, think).run()
