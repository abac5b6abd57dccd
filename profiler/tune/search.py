"""The search: a first look, what is predicted from that or a ladder of limits, the stage that decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from profiler.errors import Interrupted, TargetError, UsageError, did_you_mean
from profiler.load.experiment import run_experiment
from profiler.records import LoopRecord
from profiler.rundir import RunDirectory
from profiler.statistics.summary import summarise_directory
from profiler.statistics.verdicts import TOOL_CALLS
from profiler.tune.answer import (
    HEADROOM_AT,
    Answer,
    AtLoad,
    at_other_loads,
    choose,
)
from profiler.tune.asked import Search, rates_to_try
from profiler.tune.budget import (
    BLOCKS,
    DECIDING,
    LEAST_WINDOW,
    LOADED,
    PILOT_LOOPS,
    PILOT_SHARE,
    SHARES,
    SHARES_ASSUMED,
    SHARES_PREDICTED,
    WINDOW_LOOPS,
    affordable,
    fitting,
    sufficient,
    trial_seconds,
    window_seconds,
    within,
)
from profiler.tune.candidates import (
    Candidate,
    Pilot,
    best_of,
    first_values,
    knee_of,
    pilot,
    refine,
    survivors,
)
from profiler.tune.conclusion import Ending, concluded
from profiler.tune.experiments import Experiments, LimitReachedError, Planned
from profiler.tune.predictions import Predictions, predictor_of
from profiler.tune.predictor import Predicts, Seen
from profiler.tune.recorded import at_the_top
from profiler.tune.stages import Stages

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


class Tuner:
    """One search under way."""

    def __init__(
        self,
        search: Search,
        say: Callable[[str], None],
        run: Callable[..., Path] | None = None,
        clock: Callable[[], float] | None = None,
        predictor: Predicts | None = None,
    ) -> None:
        self._search = search
        self._say = say
        self._experiments = Experiments(
            search,
            say,
            run_experiment if run is None else run,
            time.monotonic if clock is None else clock,
        )
        self._failure: TargetError | None = None
        self._ended: Interrupted | None = None
        self._untried: list[str] = []
        self._window_loops = WINDOW_LOOPS
        self._dial = search.dial
        self._seen = Pilot(1, 1.0, ())
        self._predictions = Predictions(search, predictor_of(search) if predictor is None else predictor)
        self._stages = Stages(search, self._experiments, self._predictions)

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
            self._predictions.close()

    @property
    def _ending(self) -> Ending:
        stopped = self._experiments.spending.stopped
        if self._ended is not None:
            stopped = f"the search was {self._ended.cause}"
        elif self._failure is not None:
            stopped = f"the search ended early: {self._failure}"
        short = None
        if self._window_loops < WINDOW_LOOPS:
            short = (
                f"not to be relied on: settings were measured for {self._window_loops:g} loops each, not for "
                f"{WINDOW_LOOPS:g}, since an experiment took {self._experiments.start_seconds:.0f} s to "
                "start on this machine; a longer --budget, or an idle machine, has time for more"
            )
        incident = None if self._ended is None else self._ended.incident
        return Ending(stopped, self._failure is not None, incident, short)

    def _search_through(self) -> Answer:
        baseline = self._dial.baseline
        kinds = [kind for kind in ("adaptive", "sequential") if self._search.part(kind) is not None]
        others = [baseline, *kinds]
        # Beside gathering, a strategy that gets something done where gathering only fails.
        first = [baseline, *(kinds or [self._dial.beside])]
        records = self._pilot(first)
        final = self._decided(others)
        setting, as_good = choose(final, self._dial)
        stage = self._stages.found[-1]
        loads: Sequence[AtLoad] = ()
        scalability = None
        try:
            loads, scalability = self._predictions.loads(setting, self._other_levels)
            if not loads:
                loads, scalability = self._other_loads(setting)
            loop = self._seen.loop_seconds(setting.spec, self._search.users)
            self._stages.confirm(setting, loop, *self._experiments.share("confirm", self._seen.loop))
        except (LimitReachedError, TargetError, Interrupted) as error:
            self._failure = error if isinstance(error, TargetError) else None
            self._ended = error if isinstance(error, Interrupted) else None
        return concluded(
            self._stages,
            self._stages.promised(setting, stage),
            stage,
            self._ending,
            records,
            as_good=as_good,
            loads=loads,
            scalability=scalability,
            untried=self._untried,
        )

    def _decided(self, others: Sequence[str]) -> list[Candidate]:
        """The candidates of the stage that decides: of those that are predicted to be best, else of a search.

        A ladder of limits is a recording as well: where the first look does not tell enough, it may.
        """
        found: list[Candidate] = []
        if not self._predict():
            found = self._ladder()
            if not found or not self._predict():
                return self._final(found, others)
        self._experiments.shares = dict(SHARES_PREDICTED if self._predictions.shown else SHARES_ASSUMED)
        final = self._stage("proof", self._predictions.to_measure(found))
        said = self._predictions.disagreement(final)
        if said is None:
            return final
        self._predictions.surprise = said
        self._experiments.shares = dict(SHARES)
        self._say(f"{said}: searching without it")
        loops = self._loops(self._first_specs()[:FEWEST])
        if fitting(loops, self._experiments.left - self._experiments.start_seconds) < FEWEST:
            return final
        return self._final(self._ladder(), others)

    def _predict(self) -> bool:
        """Predict from what was recorded so far; whether that tells what to measure."""
        if not self._predictions.possible:
            return False
        seen = Seen(self._loop_under_load(), self._seen.peak, self._seen.widest)
        told, line = self._predictions.predict([stage.directory for stage in self._stages.found], seen)
        self._say(line)
        return told

    def _loop_under_load(self) -> float:
        return max(self._seen.loop, *self._seen.loops.values(), 0.0)

    def _look(self, specs: Sequence[str], until: float) -> RunDirectory:
        """The first experiment: from a small load to all of it where it is to be predicted from."""
        search = self._search
        levels = sorted({max(1, round(search.users * share)) for share in LEVELS})
        predicted = self._predictions.possible and search.budget >= LEVELS_FROM and search.load.agent is None
        if not predicted or len(levels) < len(LEVELS):
            planned = Planned("pilot", tuple(specs), 1, LEAST_WINDOW, until, loops=PILOT_LOOPS)
            return self._stages.experiment(planned)
        window = min(LONGEST_LOOK, max(LEAST_WINDOW, LOOK_SHARE * search.budget))
        return self._stages.experiment(
            Planned("pilot", tuple(specs), 1, window, until, tuple(levels), loops=PILOT_LOOPS, climb=True)
        )

    def _pilot(self, specs: Sequence[str]) -> list[LoopRecord]:
        """The records of a first look; refuses where the budget is too small for what it shows."""
        budget = self._search.budget
        directory = self._look(specs, self._experiments.began + PILOT_SHARE * budget)
        run, records = at_the_top(directory.load(), directory.records())
        self._stages.measured(specs, directory)
        if self._experiments.spending.limit is not None:
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
        left = self._experiments.left - self._experiments.start_seconds
        if fitting(loops, left) < FEWEST:
            # A start slower than usual, on a busy machine, costs loops of the window rather than an answer.
            self._window_loops = PILOT_LOOPS
            if trial_seconds(loops[0], loops=PILOT_LOOPS) > left:
                raise self._too_little(max(*loops, *seen.loops.values()))
        return records

    def _too_little(self, loop: float) -> UsageError:
        """The budget is too small for loops of so many seconds."""
        enough = sufficient(loop, self._search.budget, self._experiments.start_seconds)
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
        seconds = self._experiments.left - 2 * self._experiments.start_seconds
        final = FEWEST_FINAL_BLOCKS * 3 * sum(map(trial_seconds, loops[:1]))
        if len(specs) < 2 or fitting(loops[:LADDER], seconds - final) < min(LADDER, len(specs)):
            self._experiments.shares.pop("limits")
            return []
        return self._stage("limits", specs)

    def _final(self, found: Sequence[Candidate], others: Sequence[str]) -> list[Candidate]:
        if found:
            return self._stage("final", self._final_specs(found, others))
        specs = [*self._first_specs(), *others]
        if self._search.part("rate") is not None or self._search.part("eager") is not None:
            specs += self._final_specs(self._stages.found[-1].found, others)
        return self._stage("final", [*dict.fromkeys(specs)])

    def _loops(self, specs: Sequence[str]) -> list[float]:
        """What a loop takes under each, in seconds: as predicted in a closed load, else by `Pilot`."""
        loops = []
        for spec in specs:
            predicted = self._predictions.of(spec)
            rate = None if predicted is None else predicted.throughput.value
            if rate and spec not in self._seen.loops and self._search.load.arrivals is None:
                loops.append(self._search.users / rate)
            else:
                loops.append(self._seen.loop_seconds(spec, self._search.users))
        return loops

    def _answer_so_far(self) -> Answer:
        """The best of the last stage in which everything was measured, else of the last with scores."""
        stage = self._stages.last_whole
        if stage is None and self._failure is not None:
            raise self._failure
        if stage is None and self._ended is not None:
            if self._experiments.directories:
                self._ended.outcome = f"before enough was measured; see {self._experiments.paths}"
            raise self._ended
        if stage is None:
            raise LimitReachedError(
                f"{self._experiments.spending.stopped}: too little was measured, or met the objective; "
                f"see {self._experiments.paths}"
            )
        del self._stages.found[self._stages.found.index(stage) + 1 :]
        records = list(self._experiments.directories[0].records())
        best = best_of(stage.found)
        return concluded(
            self._stages, best, stage, self._ending, records, untried=self._untried, proven=False
        )

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
        seconds, until = self._experiments.share(name, self._seen.loop)
        places = within(self._loops(specs), FILLED * seconds)
        if name in DECIDING and len(places) < min(FEWEST_TOLD_APART, len(specs)):
            # Sooner another candidate than the answer once more.
            seconds, until = self._experiments.left - self._experiments.start_seconds, self._experiments.end
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
        planned = Planned(name, tuple(specs), blocks, window, until, loops=self._window_loops)
        directory = self._stages.experiment(planned)
        found = self._stages.measured(specs, directory)
        if self._experiments.spending.limit is not None:
            raise LimitReachedError
        if not found:
            raise TargetError(f"nothing was measured: see {directory.path}")
        for best in survivors(found)[:1]:
            self._say(f"{name}: best so far {best.spec}")
        return found

    @property
    def _other_levels(self) -> list[int]:
        return sorted({max(1, round(self._search.users * share)) for share in (*OTHER_LOADS, 1.0)})

    def _other_loads(self, setting: Candidate) -> tuple[list[AtLoad], str | None]:
        """The setting and the baseline at other loads, and how goodput scales over them."""
        users = self._search.users
        levels = self._other_levels
        specs = [*dict.fromkeys([setting.spec, self._dial.baseline])]
        seconds, until = self._experiments.share("loads", self._seen.loop)
        # What time there is goes to the setting first, then to the baseline.
        loops = [loop for loop in self._loops(specs) for _ in levels]
        if fitting(loops, seconds) < len(loops):
            specs, loops = specs[:1], loops[: len(levels)]
        rest = (
            self._experiments.end - until - self._experiments.start_seconds
        )  # for the setting once more, which matters more than this
        if fitting(loops, seconds) < len(loops) or rest < trial_seconds(loops[0]):
            self._untried.append("other loads")
            self._say("loads: no time for other loads")
            return [], None
        window = window_seconds(loops, seconds, BLOCKS["loads"])
        planned = Planned("loads", tuple(specs), BLOCKS["loads"], window, until, tuple(levels))
        found = self._stages.at_loads(self._stages.experiment(planned))
        return at_other_loads(found, setting.spec, self._dial.baseline, users, "over the loads")


def tune(
    search: Search,
    say: Callable[[str], None] = lambda text: None,
    *,
    run: Callable[..., Path] | None = None,
    clock: Callable[[], float] | None = None,
    predictor: Predicts | None = None,
) -> Answer:
    """Find the setting. `say` gets a line at each step. Raises what `run_experiment` raises.

    `run` runs an experiment in place of `run_experiment`, `clock` (seconds) is the clock it goes by, and
    `predictor` predicts in place of a `SpacePredictor`.
    """
    return Tuner(search, say, run, clock, predictor).run()
