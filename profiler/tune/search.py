"""Runs the experiments of a search, within a budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from profiler.errors import ProfilerError, TargetError, UsageError
from profiler.load.experiment import Experiment, run_experiment
from profiler.load.options import LoadOptions
from profiler.load.plan import scaled
from profiler.load.spending import Resource
from profiler.records import LoopRecord
from profiler.rundir import Run, RunDirectory, Spent
from profiler.statistics.objectives import parse_objective
from profiler.statistics.scalability import fit
from profiler.statistics.summary import summarise_directory
from profiler.strategies import effective_limits, parse_strategies, parse_strategy
from profiler.tune.answer import Answer, AtLoad, choose, python_snippet, toml_fragment
from profiler.tune.candidates import (
    Scored,
    affordable,
    block_seconds,
    ladder,
    on_one_scale,
    refine,
    settled,
    shape,
    survivors,
)
from profiler.tune.measured import ObjectiveName, by_level, candidates, overheads, pilot
from profiler.tune.quotas import Quota, RateAdvice, advise, demand, seen_quota

KINDS = ("semaphore", "rate", "adaptive", "eager")

PILOT_SECONDS = 4.0
SHARES = {"ladder": 0.30, "final": 0.48, "loads": 0.22}
BLOCKS = {"ladder": 3, "final": 8, "loads": 3}
FIRST_LOOK = 4
"""Blocks of the last rung before anything can be settled."""
LOWER = 0.8
"""What headroom is measured at, as a share of the best limit."""

OTHER_LOADS = (0.5, 0.75, 1.25, 1.5)
SMALLEST_BUDGET = 60.0


@dataclass(frozen=True, slots=True)
class Search:
    """What to tune: `load` says under which work (its strategies are ignored), `over` which kinds to try.

    `budget` is seconds for everything, and so are the limits of `load` on what may be spent.
    """

    load: LoadOptions
    users: int
    workers: int = 1
    objective: ObjectiveName = "goodput"
    over: tuple[str, ...] = ("semaphore", "adaptive")
    budget: float = 300.0
    quotas: tuple[Quota, ...] = ()

    def __post_init__(self) -> None:
        if self.budget < SMALLEST_BUDGET:
            raise UsageError(f"--budget must be at least {SMALLEST_BUDGET:g} seconds, not {self.budget:g}")
        unknown = [kind for kind in self.over if kind not in KINDS]
        if unknown or not self.over:
            raise UsageError(f"--over {','.join(self.over)}: expected some of {', '.join(KINDS)}")
        if "eager" in self.over and not self.load.stream:
            raise UsageError("--over eager: tools start early only while a reply streams; add --stream")


@dataclass(frozen=True, slots=True)
class Rung:
    """Candidates that were measured in the same paired blocks."""

    asked: tuple[str, ...]
    found: list[Scored]
    directory: RunDirectory

    @property
    def whole(self) -> bool:
        """Whether every candidate has a figure."""
        return {one.spec for one in self.found if one.score.value is not None} >= set(self.asked)


class LimitReachedError(ProfilerError):
    """What may be spent is spent: nothing more begins."""


class Tuner:
    """One search under way."""

    def __init__(self, search: Search, say: Callable[[str], None]) -> None:
        self._search = search
        self._say = say
        self._began = time.monotonic()
        self._slo = None if search.load.slo is None else parse_objective(search.load.slo)
        self._runs: list[RunDirectory] = []
        self._rungs: list[Rung] = []
        self._spending = Spending(search.load)
        self._failure: TargetError | None = None
        self._seed = search.load.seed
        self._left = dict(SHARES)
        self._between, self._beside = 1.0, 8.0

    def run(self) -> Answer:
        """Search, and answer. Raises what `run_experiment` raises.

        A limit on what may be spent ends it early, with what was found by then, and so does an
        experiment that fails, as when the target goes away; raises `LimitReachedError` or the
        `TargetError` when that is nothing.
        """
        try:
            return self._search_through()
        except LimitReachedError:
            return self._so_far()
        except TargetError as error:
            self._failure = error
            return self._so_far()

    @property
    def _stopped(self) -> str | None:
        """In words: what ended the search early."""
        return self._spending.stopped if self._failure is None else f"the search ended early: {self._failure}"

    def _search_through(self) -> Answer:
        search = self._search
        first = ["gathered", "adaptive"] if "adaptive" in search.over else ["gathered", "sequential"]
        directory = self._experiment("pilot", first, 1, PILOT_SECONDS)
        records = list(directory.records())
        self._scored(first, directory)
        if self._spending.limit is not None:
            raise LimitReachedError
        seen = pilot(directory.load(), records, time.monotonic() - self._began)
        others = ["gathered", *(["adaptive"] if "adaptive" in search.over else [])]
        rung = others
        if "semaphore" in search.over:
            limits = ladder(seen.peak, round(seen.mean / 2), seen.guess)
            rung = [*others, *(f"semaphore:{limit}" for limit in limits)]
        found = self._rung("ladder", rung)
        final = self._rung("final", self._finalists(found, others))
        setting, as_good = choose(final)
        try:
            loads, scalability = self._other_loads(setting)
        except (LimitReachedError, TargetError) as error:
            self._failure = error if isinstance(error, TargetError) else None
            loads, scalability = [], None
        return self._answer(setting, as_good, self._rungs[-1], loads, scalability, self._rates(records))

    def _so_far(self) -> Answer:
        """The best of the last rung in which everything was measured, else of the last with figures."""
        scored = [rung for rung in self._rungs if any(one.score.value for one in rung.found)]
        rung = next((rung for rung in reversed(scored) if rung.whole), scored[-1] if scored else None)
        if rung is None and self._failure is not None:
            raise self._failure
        if rung is None:
            paths = ", ".join(str(directory.path) for directory in self._runs)
            raise LimitReachedError(
                f"{self._spending.stopped}: too little was measured, or met the objective; see {paths}"
            )
        del self._rungs[self._rungs.index(rung) + 1 :]
        best = max(rung.found, key=lambda one: one.score.value or 0.0)
        rates = self._rates(list(self._runs[0].records()))
        return self._answer(best, False, rung, [], None, rates, proven=False)

    def _finalists(self, found: Sequence[Scored], others: Sequence[str]) -> list[str]:
        """The best limit, one on each side of it, and what else may be as good; gathering to compare with."""
        scores = {one.limit: one.score.value for one in found if one.limit is not None and one.score.value}
        kept = {one.spec for one in survivors(found, len(found))}
        limits = refine(scores, 3)
        if limits and (lower := round(LOWER * limits[0])) >= 1:
            # For the headroom, in place of the one below it that is not the best.
            limits = [limits[0], *[limit for limit in limits[1:] if limit > limits[0]], lower]
        specs = [f"semaphore:{limit}" for limit in dict.fromkeys(limits)]
        best = survivors(found, 1)
        if "rate" in self._search.over and best and best[0].calls_per_second:
            specs += [f"rate:{best[0].calls_per_second * share:.4g}/s" for share in (0.8, 1.0, 1.2)]
        if "eager" in self._search.over:
            specs += ["eager", *(f"eager+{spec}" for spec in specs[:1])]
        specs += [spec for spec in others if spec == "gathered" or spec in kept or not limits]
        return [*dict.fromkeys(specs)]

    def _rung(self, name: str, specs: Sequence[str]) -> list[Scored]:
        seconds = self._seconds(name)
        blocks = affordable(seconds, len(specs), BLOCKS[name], self._between)
        each = block_seconds(seconds, blocks * len(specs), self._between)
        directory = self._experiment(name, specs, blocks, each * blocks)
        found = self._scored(specs, directory)
        if self._spending.limit is not None:
            raise LimitReachedError
        if not found:
            raise TargetError(f"nothing was measured: see {directory.path}")
        best = survivors(found, 1)
        if best:
            self._say(f"{name}: best so far {best[0].spec}")
        return found

    def _scored(self, specs: Sequence[str], directory: RunDirectory) -> list[Scored]:
        found = candidates(directory, self._search.objective, self._slo)
        self._rungs.append(Rung(tuple(specs), found, directory))
        return found

    def _seconds(self, name: str) -> float:
        """What the trials of a rung may take, given what is left of the budget, drains included."""
        left = self._search.budget - (time.monotonic() - self._began)
        share = self._left.pop(name) / (sum(self._left.values()) + SHARES[name])
        return left * share - self._beside

    def _other_loads(self, setting: Scored) -> tuple[list[AtLoad], str | None]:
        """The setting and gathering at other loads, and what throughput does over them."""
        users = self._search.users
        levels = sorted({max(1, round(users * share)) for share in (*OTHER_LOADS, 1.0)})
        specs = [*dict.fromkeys([setting.spec, "gathered"])]
        blocks = BLOCKS["loads"]
        # What time there is goes to the setting first, then to intervals, then to gathering.
        left = self._search.budget - (time.monotonic() - self._began) - self._beside
        if blocks * len(specs) * len(levels) * (1.0 + self._between) > left:
            specs = specs[:1]
        if blocks * len(specs) * len(levels) * (1.0 + self._between) > left:
            blocks = 1
        each = block_seconds(self._seconds("loads"), blocks * len(specs) * len(levels), self._between)
        directory = self._experiment("loads", specs, blocks, each * blocks, tuple(levels))
        found = by_level(directory, self._search.objective, self._slo)
        loads = []
        for level, scored in sorted(found.items()):
            named = {one.spec: one for one in scored}
            if level != users and setting.spec in named:
                gathered = named.get("gathered") if setting.spec != "gathered" else None
                loads.append(AtLoad(level / users, level, named[setting.spec], gathered))
        fits = [
            (summary.users, [summary.throughput.value])
            for level in summarise_directory(directory).levels
            for summary in level.strategies
            if summary.strategy == setting.spec and summary.throughput.value
        ]
        fitted = fit([users for users, _ in fits], [list(filter(None, values)) for _, values in fits])
        return loads, None if fitted is None else f"over the load ladder: {fitted.sentence}"

    def _rates(self, records: Sequence[LoopRecord]) -> list[RateAdvice]:
        quotas = list(self._search.quotas)
        seen = seen_quota(records)
        if seen is not None and not quotas:
            quotas.append(seen)
        taken = demand(records)
        return (
            [] if taken is None else [a for a in (advise(quota, taken) for quota in quotas) if a is not None]
        )

    def _experiment(
        self, name: str, specs: Sequence[str], blocks: int, seconds: float, levels: tuple[int, ...] = ()
    ) -> RunDirectory:
        """One experiment of paired blocks; each has work of its own.

        Raises `LimitReachedError` when too little is left to spend on it.
        """
        search = self._search
        # Agents of one's own are made, and have a first loop, for each strategy.
        if not self._spending.allows(search.workers * (len(specs) if search.load.agent else 1)):
            raise LimitReachedError
        load = f" at {', '.join(map(str, levels))} agents" if levels else ""
        self._say(f"{name}: {', '.join(specs)}{load}, {blocks} × {seconds / blocks:.1f} s each")
        options = replace(
            self._spending.left(search.load),
            strategies=parse_strategies(specs),
            blocks=blocks,
            levels=levels,
            seed=self._seed + len(self._runs),
            calibration_seconds=search.load.calibration_seconds if name == "final" else 0.0,
            metrics=False,
        )
        most = max(levels, default=search.users)
        began = time.monotonic()
        if search.load.arrivals is not None and levels:
            # Users are sources of arrivals: more of them make more, each as many as before.
            options = replace(options, arrivals=scaled(search.load.arrivals, most / search.users))
        experiment = Experiment(options, most, seconds, search.workers)
        enough = self._enough if name == "final" else None
        try:
            directory = RunDirectory.open(run_experiment(experiment, enough=enough))
        except TargetError as error:
            if error.run_directory is not None:
                directory = RunDirectory.open(error.run_directory)
                self._runs.append(directory)
                self._spending.add(directory.load())
                self._scored(specs, directory)
            raise
        self._runs.append(directory)
        run = directory.load()
        self._between, self._beside = overheads(run, time.monotonic() - began)
        if any(incident.kind == "interrupted" for incident in run.incidents):
            raise KeyboardInterrupt
        self._spending.add(run)
        return directory

    def _enough(self, directory: RunDirectory) -> bool:
        """Whether the last rung may end: everything in it is told apart, or shown to be alike."""
        trials = directory.load().trials
        if len({trial.block for trial in trials}) < FIRST_LOOK:
            return False
        return settled(candidates(directory, self._search.objective, self._slo))

    def _answer(
        self,
        setting: Scored,
        as_good: bool,
        rung: Rung,
        loads: Sequence[AtLoad],
        scalability: str | None,
        rates: Sequence[RateAdvice],
        proven: bool = True,
    ) -> Answer:
        workers = self._search.workers
        shared = workers if self._search.load.share_limit else 1
        curve = tuple(on_one_scale([one.found for one in self._rungs]))
        model_limits = rates[0].limits if rates else None
        summary = summarise_directory(rung.directory)
        spec = parse_strategy(setting.spec)
        limits = effective_limits([spec], agents=self._search.users, processes=workers, share=shared)
        return Answer(
            setting=setting,
            objective=self._search.objective,
            final=tuple(sorted(rung.found, key=lambda one: -(one.score.value or 0.0))),
            curve=curve,
            shape=shape(curve, _best_limit(setting, curve))
            if proven and any(one.score.value for one in curve)
            else None,
            gathered_is_as_good=as_good,
            loads=tuple(loads),
            scalability=scalability,
            rates=tuple(rates),
            python=python_snippet(setting.spec, model_limits, shared),
            toml=toml_fragment(setting.spec, model_limits),
            effective="\n".join(limits),
            runs=tuple(str(directory.path) for directory in self._runs),
            seconds=time.monotonic() - self._began,
            invalid=tuple(caveat.sentence for caveat in summary.warnings if caveat.invalid),
            stopped=self._stopped,
            failed=self._failure is not None,
            proven=proven,
            spent=self._spending.described,
        )


def _best_limit(setting: Scored, curve: Sequence[Scored]) -> int:
    """That of the setting; where it has none, that of the best shared semaphore that was tried."""
    best = setting if setting.limit is not None else max(curve, key=lambda one: one.score.value or 0.0)
    return best.limit or 0


def tune(search: Search, say: Callable[[str], None] = lambda text: None) -> Answer:
    """Find the setting. `say` gets a line at each step. Raises what `run_experiment` raises."""
    return Tuner(search, say).run()


# What a search may spend, over all its experiments: each gets what those before it left. Pure.


class Spending:
    """The limits of `options`, and what is spent of them. `limit` is the one that ended the search."""

    def __init__(self, options: LoadOptions) -> None:
        self.spent = Spent()
        self.limit: Resource | None = None
        self._options = options
        self._budget = options.budget()

    def add(self, run: Run) -> None:
        """An experiment is over, and may have come to a limit."""
        self.spent += run.spent or Spent()
        self._budget = self._options.budget(run.model)
        if any(incident.kind == "limited" for incident in run.incidents):
            _, self.limit = self._budget.room(self.spent, 0)

    def allows(self, first_loops: int) -> bool:
        """Whether another experiment may begin, whose clients spend `first_loops` on getting ready."""
        if self.limit is None and self.spent.loops:
            room, which = self._budget.room(self.spent, 0)
            if room <= first_loops:
                self.limit = which
        return self.limit is None

    def left(self, options: LoadOptions) -> LoadOptions:
        """`options` with what is left as its limits."""

        def rest(limit: int | None, resource: Resource) -> int | None:
            return (
                None if limit is None else max(1, math.floor(limit - self._budget.used(self.spent, resource)))
            )

        max_cost = self._options.max_cost
        if max_cost is not None:
            max_cost = max(1e-9, max_cost - self._budget.used(self.spent, "cost"))
        return replace(
            options,
            max_loops=rest(self._options.max_loops, "loops"),
            max_requests=rest(self._options.max_requests, "requests"),
            max_tokens=rest(self._options.max_tokens, "tokens"),
            max_cost=max_cost,
        )

    @property
    def stopped(self) -> str | None:
        """In words: which limit ended the search, None when none did."""
        return None if self.limit is None else self._budget.stopped(self.limit, self.spent)

    @property
    def described(self) -> str:
        """What was spent, in words, with its cost where the price is known."""
        return self._budget.describe(self.spent)
