"""From the stages of a search to its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from profiler.limits.known import seen_quota
from profiler.records import INTERNAL, LoopRecord
from profiler.statistics.gates import nothing_measured
from profiler.statistics.summary import summarise_directory
from profiler.strategies import effective_limits, parse_strategy
from profiler.tune.answer import Answer, AtLoad, python_snippet, toml_fragment
from profiler.tune.asked import Search
from profiler.tune.candidates import Candidate, best_of, on_one_scale, shape
from profiler.tune.quotas import RateAdvice, advise, demand, refused, unsaid
from profiler.tune.stages import Stage, Stages


@dataclass(frozen=True, slots=True)
class Ending:
    """How a search ended. `stopped`: why before its end, in words; `incident`: the one that it is filed as.

    `failed`: an experiment did. `short_windows`: what was measured for too few loops, in words.
    """

    stopped: str | None = None
    failed: bool = False
    incident: Literal["interrupted", "terminated"] | None = None
    short_windows: str | None = None


def concluded(
    stages: Stages,
    setting: Candidate,
    stage: Stage,
    ending: Ending,
    records: Sequence[LoopRecord],
    *,
    as_good: bool = False,
    loads: Sequence[AtLoad] = (),
    scalability: str | None = None,
    untried: Sequence[str] = (),
    proven: bool = True,
) -> Answer:
    """The answer: `setting`, as good as others of `stage`. `records` (of the first look) tell of quotas."""
    search, experiments, predictions = stages.search, stages.experiments, stages.predictions
    dial = search.dial
    shared = search.workers if search.load.share_limit else 1
    measured = on_one_scale([one.found for one in stages.found], dial)
    found = None
    curve = predictions.added_to(measured)
    if proven and any(one.points for one in measured):
        best = setting if setting.limit is not None else best_of(measured)
        found = shape(curve, best.limit or 0)
        shown = shape(measured, best.limit or 0)
        found = replace(found, low=shown.low, high=shown.high)
    same = next((one for one in stage.found if one.spec == setting.spec), setting)
    rates, left_out = _rates(search, records)
    model_limits = rates[0].limits if rates else None
    held = search.load.model_limit is not None
    limits = effective_limits(
        [parse_strategy(setting.spec)], agents=search.users, processes=search.workers, share=shared
    )
    # Of its own window, too, where it was measured once more.
    summary = summarise_directory(stage.directory)
    nothing = nothing_measured(summary.every_strategy)
    warnings = list(summary.warnings)
    if stages.confirmation is not None:
        warnings += summarise_directory(stages.confirmation).warnings
    invalid = [caveat for caveat in warnings if caveat.invalid]
    return Answer(
        setting=setting,
        objective=search.objective,
        final=tuple(sorted(stage.found, key=lambda one: -one.points)),
        curve=tuple(curve),
        shape=found,
        gathered_is_as_good=as_good,
        loads=tuple(loads),
        scalability=scalability,
        rates=tuple(rates),
        rates_leave_out=tuple(left_out),
        refused=refused(stage.directory.records(), model_limits, held=held),
        baseline=dial.baseline,
        dial=dial.setting,
        edge=None if setting.limit is None else dial.edge(setting.limit),
        python=python_snippet(setting.spec, model_limits, shared, search.load.agent),
        toml=toml_fragment(setting.spec, model_limits),
        effective="\n".join(limits),
        runs=tuple(str(directory.path) for directory in experiments.directories),
        seconds=experiments.passed,
        invalid=tuple(dict.fromkeys(caveat.sentence for caveat in invalid)),
        valid=not any(not one.strategies or setting.spec in one.strategies for one in invalid),
        stopped=ending.stopped,
        failed=ending.failed,
        ended=ending.incident,
        proven=proven,
        spent=experiments.spending.described,
        untried=tuple(dict.fromkeys(untried)),
        short_windows=ending.short_windows,
        moved=stages.moved,
        prediction=predictions.words(same),
        servers=() if predictions.space is None else predictions.space.servers,
        surprise=predictions.surprise,
        slo=stages.objective_outcome,
        nothing=None if nothing is None else nothing.sentence,
        unanswered=summary.unanswered,
        internal=sum(directory.ended_by(INTERNAL) for directory in experiments.directories),
    )


def _rates(search: Search, records: Sequence[LoopRecord]) -> tuple[list[RateAdvice], list[str]]:
    """The advice for each quota, and what it leaves out."""
    seen = seen_quota(records)
    quotas = search.quotas or ([] if seen is None else [seen])
    taken = demand(records)
    if taken is None:
        return [], []
    rates = [advice for quota in quotas if (advice := advise(quota, taken)) is not None]
    return rates, [sentence for quota in quotas for sentence in unsaid(quota, taken)]
