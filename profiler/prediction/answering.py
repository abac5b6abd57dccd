"""Makes the answer that `profiler predict` prints: figures, comparisons, curves, limits in words. Pure."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterable, Sequence

from profiler.prediction.answer import (
    NOTHING,
    Answer,
    Better,
    PredictedLevel,
    PredictedStrategy,
    Recorded,
    Said,
)
from profiler.prediction.asking import Asked, recorded_levels
from profiler.prediction.capacity import Capacity
from profiler.prediction.fitting import Fitted, ServerFit
from profiler.prediction.predict import Predicted
from profiler.prediction.ranking import Pair, ranking
from profiler.prediction.support import of_question, of_recording
from profiler.rundir import Load, Run
from profiler.statistics.comparison import RELEVANT_FAILURES
from profiler.statistics.objectives import Objective
from profiler.statistics.quantiles import LEVELS, Quantiles

MOST_NAMED = 3
"""Strategies that the best is said to be better than, one by one."""

KNEE = 0.95
"""The knee of a curve is its first point with this share of the best goodput."""


def predicted_strategy(one: Predicted, objective: Objective | None = None) -> PredictedStrategy:
    """One cell in the shape of `compare`'s summary."""
    figures = {} if one.refused else one.figures
    met: bool | None = None
    missed: tuple[str, ...] = ()
    if objective is not None and "failure_rate" in figures:
        latencies = {name: figures[name].value if name in figures else None for name in LEVELS}
        # What is not predicted (a p99 of few calls) is neither met nor missed.
        if all(latencies[name] is not None for name in objective.latency):
            missed = objective.missed(latencies, figures["failure_rate"].value or 0.0)
            met = not missed
    return PredictedStrategy(
        strategy=one.question.strategy.text,
        users=one.question.load.users,
        loop_seconds=Quantiles(*(figures.get(name, NOTHING) for name in LEVELS)),
        throughput=figures.get("throughput", NOTHING),
        goodput=figures.get("goodput", NOTHING),
        failure_rate=figures.get("failure_rate", NOTHING),
        refused_share=figures.get("refused_share", NOTHING),
        objective_met=met,
        objective_missed=missed,
        refused=one.refused,
        warnings=one.warnings,
    )


def levels_of(
    asked: Asked, predicted: Sequence[Predicted], objective: Objective | None = None
) -> tuple[PredictedLevel, ...]:
    """Each load with its strategies and what is better there."""
    found = []
    for users in asked.levels:
        mine = [one for one in predicted if one.question.load.users == users]
        where = f"at {_agents(users)}: " if len(asked.levels) > 1 else ""
        verdicts = verdicts_of(mine, where)
        strategies = tuple(predicted_strategy(one, objective) for one in mine)
        found.append(PredictedLevel(users, strategies, verdicts, asked.rate(users)))
    return tuple(found)


def verdicts_of(predicted: Sequence[Predicted], where: str = "") -> tuple[Better, ...]:
    """The best strategy under one load against the others, the hardest to tell first."""
    failing = {
        one.question.strategy.text: one.figures["failure_rate"].value or 0.0
        for one in predicted
        if "failure_rate" in one.figures
    }
    return tuple(
        Better(
            one.strategy,
            one.baseline,
            one.metric,
            one.certainty,
            one.told,
            where + _sentence(one) + _failures(failing[one.strategy], failing[one.baseline]),
        )
        for one in ranking(predicted)
    )


def _failures(mine: float, others: float) -> str:
    """That more loops of the better strategy fail, where they do: goodput alone hides it."""
    if mine - others < RELEVANT_FAILURES:
        return ""
    return f", but {mine * 100:.0f} % of its loops fail, against {others * 100:.0f} %"


def _sentence(one: Pair) -> str:
    runs = f"in {_percent(max(one.certainty, 1 - one.certainty))} of the simulated runs"
    if one.metric == "goodput":
        figures = f"{one.value:.3g} against {one.against:.3g} good loops/s"
    else:
        figures = f"p95 {one.value:.3g} s against {one.against:.3g} s"
    if one.told:
        return f"{one.strategy} is better than {one.baseline} {runs} ({figures})"
    if one.certainty == 0.5:
        return f"{one.strategy} and {one.baseline} do the same ({figures})"
    return f"{one.strategy} and {one.baseline} are not told apart: one is ahead {runs} ({figures})"


def curve_words(levels: Sequence[PredictedLevel], names: Sequence[str]) -> list[str]:
    """Where goodput stops growing with the load, of each of these strategies."""
    said = []
    for name in names:
        points = [
            (level, one)
            for level in levels
            for one in level.strategies
            if one.strategy == name and one.goodput.value is not None
        ]
        if len(points) < 3:
            continue
        best = max(one.goodput.value or 0.0 for _, one in points)
        knee = next(level for level, one in points if (one.goodput.value or 0.0) >= KNEE * best)
        last = points[-1][1].goodput.value or 0.0
        if knee is points[-1][0]:
            said.append(f"{name}: goodput grows up to {_load(knee)}, the highest load predicted")
        elif last < KNEE * best:
            said.append(
                f"{name}: goodput is highest at about {_load(knee)} ({best:.3g}/s), and falls to "
                f"{last:.3g}/s at {_load(points[-1][0])}"
            )
        else:
            said.append(f"{name}: the knee is at {_load(knee)}: more bring little ({best:.3g}/s at most)")
    return said


def limit_words(level: PredictedLevel, name: str, specs: Sequence[tuple[float, str]]) -> str | None:
    """Over limits (value, strategy): the knee, the best, and from where on goodput falls."""
    found = {one.strategy: one.goodput.value for one in level.strategies if one.goodput.value is not None}
    points = [(value, found[spec]) for value, spec in specs if spec in found]
    if len(points) < 3:
        return None
    best_value, best = max(points, key=lambda one: one[1])
    knee = next(value for value, rate in points if rate >= KNEE * best)
    falls = next((value for value, rate in points if value > best_value and rate < KNEE * best), None)
    text = f"{name}: the knee is at {knee:g} (95 % of the best goodput, {best:.3g}/s at {best_value:g})"
    if falls is not None:
        text += f"; from {falls:g} on goodput falls"
    return text


def refusals(predicted: Iterable[Predicted]) -> tuple[Said, ...]:
    """Why cells are refused, each reason once with the cells that it is about."""
    every = list(predicted)
    return _said(((one, sentence) for one in every for sentence in one.refused), every)


def warnings(predicted: Iterable[Predicted]) -> tuple[Said, ...]:
    """The warnings, each once with the cells that it is about."""
    told = [one for one in predicted if not one.refused]
    return _said(((one, sentence) for one in told for sentence in (*one.warnings, *_of_a_start(one))), told)


def _of_a_start(one: Predicted) -> tuple[str, ...]:
    """That loops are too long for the blocks, as `compare` has it of a real run."""
    seconds, p50 = one.question.trials.seconds, one.figures.get("p50", NOTHING).value
    if p50 is None or seconds >= 2 * p50:
        return ()
    return (
        f"a block of {seconds:.3g} s holds less than two loops: these are the figures of a start, as a run "
        "that short has them; ask for a longer one (--duration)",
    )


def _said(found: Iterable[tuple[Predicted, str]], cells: Sequence[Predicted]) -> tuple[Said, ...]:
    """Each sentence once; with the strategies and loads that it is about, unless these are all `cells`."""
    by_sentence: dict[str, list[tuple[str, int]]] = {}
    for one, sentence in found:
        about = by_sentence.setdefault(sentence, [])
        about.append((one.question.strategy.text, one.question.load.users))
    said = []
    for sentence, about in by_sentence.items():
        if len(about) == len(cells):
            said.append(Said(sentence))
        else:
            names, users = (dict.fromkeys(part) for part in zip(*about, strict=True))
            said.append(Said(sentence, tuple(names), tuple(sorted(users))))
    return tuple(said)


MOSTLY = 0.65
"""A band is mostly of one cause where that makes this share of its variance."""


def band_words(fitted: Fitted, predicted: Sequence[Predicted]) -> str | None:
    """Whether the bands are wide for the noise of so short a run, or for what the recording leaves open.

    Both go with the number of loops: n recorded ones leave a variance in proportion to 1 / n, and a run of m
    loops has one in proportion to 1 / m.
    """
    every = [one for one in predicted if "throughput" in one.figures]
    if not every:
        return None
    trials = every[0].question.trials
    seconds = trials.seconds * trials.blocks
    loops = min((one.figures["throughput"].value or 0.0) * seconds for one in every)
    recorded = len({loop.cluster for loop in fitted.loops})
    of_recording = loops / (loops + recorded)
    of = f"a run of {seconds:.3g} s has {loops:,.0f} or more loops, {recorded:,} different ones were recorded"
    if of_recording >= MOSTLY:
        return f"the bands are mostly what the recording leaves open ({of}): record more loops"
    if of_recording <= 1 - MOSTLY:
        return f"the bands are mostly the noise of a run as short as this ({of}): --duration narrows them"
    return f"the bands are the noise of a run and what the recording leaves open ({of})"


def limits_of(fitted: Fitted, predicted: Sequence[Predicted]) -> tuple[str, ...]:
    """Which parts of the recording limit the answer: what is known of each server, how much was recorded."""
    told = [one for one in predicted if not one.refused]
    said = [_server_words(one) for one in (*fitted.servers, fitted.model) if one.calls]
    if told and not any("p99" in one.figures for one in told):
        said.append(f"no p99: {fitted.calls:,} tool calls are too few for it")
    if (bands := band_words(fitted, told)) is not None:
        said.append(bands)
    return tuple(said)


def _server_words(fit: ServerFit) -> str:
    finding = fit.finding
    calls = f"{fit.calls:,} {'call' if fit.tools else 'request'}{'' if fit.calls == 1 else 's'}"
    # The most that were seen, which may be more than what is known about: the sentence says that.
    seen = f"{max(int(finding.seen[1]), fit.busiest)} in flight at the busiest"
    if finding.identified:
        return f"{fit.name} ({calls}, {seen}): {finding.sentence}"
    return f"{fit.name} ({calls}, {seen}): NOT KNOWN: {'; '.join((finding.sentence, *finding.warnings))}"


def record_words(
    fitted: Fitted, asked: Asked, predicted: Sequence[Predicted], *, invalid: bool = False
) -> tuple[str, ...]:
    """What to record where something was refused: a ladder past what was asked, as a command.

    `invalid`: figures of this recording describe its client, so that the same again would not help.
    """
    run = fitted.run
    # No ladder tells more of what is asked in itself (a tool without calls, eager calls), nor of a recording
    # of another program without times: those reasons say what to do.
    elsewhere = run.recording is not None
    said = of_recording(fitted) if elsewhere else ()
    if all(set(one.refused) <= {*said, *of_question(fitted, one.question.strategy)} for one in predicted):
        return ()
    # Past what was recorded, too: the same ladder again would show the same.
    most = max((*asked.levels, *recorded_levels(run)))
    levels = ",".join(map(str, sorted({max(1, round(most * share)) for share in LADDER})))
    if elsewhere:  # how another program is run, nobody here knows
        return (f"the same agent, in the same way, with {levels} loops under way at once",)
    left_out = ["--levels", "--blocks"]
    if all(spec.limit is not None for spec in run.strategies):
        left_out.append("--strategy")  # none of them goes past a capacity
    kept = _without(run.repeat, left_out)
    command = shlex.join(["profiler", "compare", "--for-prediction", "--levels", levels, *kept])
    return (*((IDLE,) if invalid else ()), command)


IDLE = "on a machine that does nothing else: figures of this recording are invalid"

LADDER = (0.25, 0.5, 1.0, 2.0)
"""The loads of a ladder that is to be recorded, by the highest that was asked about or recorded."""


def _without(words: Sequence[str], flags: Collection[str]) -> list[str]:
    """The words of a command line without these options and their values."""
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and word.partition("=")[0] not in flags:
            kept.append(word)
        skip = not skip and word in flags
    return kept


def answer_of(
    run: Run,
    path: str,
    fitted: Fitted,
    asked: Asked,
    predicted: Sequence[Predicted],
    *,
    load: Load,
    replicates: int,
    seed: int,
    objective: Objective | None = None,
    over: Sequence[tuple[str, Sequence[tuple[float, str]]]] = (),
    capacities: Sequence[Capacity] = (),
    changed: Sequence[str] = (),
    warned: Sequence[str] = (),
    invalid: Sequence[str] = (),
) -> Answer:
    """The whole answer. `invalid` says which figures of the recording are, `warned` what else to know."""
    levels = levels_of(asked, predicted, objective)
    top = levels[-1]
    verdicts = [verdict for level in levels for verdict in level.verdicts[:MOST_NAMED]]
    several = len(levels) > 1
    curves = [words for name, points in over if (words := limit_words(top, name, points))]
    curves = [*curves, *(curve_words(levels, [spec.text for spec in asked.strategies]) if several else ())]
    return Answer(
        scenario=run.scenario,
        provider=run.provider,
        model=run.model,
        seed=seed,
        load=load,
        workers=asked.workers,
        recorded=Recorded(
            path,
            len(fitted.loops),
            fitted.calls,
            recorded_levels(run),
            tuple(spec.text for spec in run.strategies),
        ),
        seconds=asked.trials.seconds * asked.trials.blocks,
        blocks=asked.trials.blocks,
        replicates=replicates,
        strategies=top.strategies,
        warnings=(*map(Said, (*invalid, *warned)), *warnings(predicted)),
        refused=refusals(predicted),
        verdicts=tuple(verdicts),
        objective=None if objective is None else objective.text,
        levels=levels if several else (),
        curves=tuple(curves),
        capacities=tuple(capacities),
        limits=limits_of(fitted, predicted),
        record=record_words(fitted, asked, predicted, invalid=bool(invalid)),
        changed=tuple(changed),
    )


def _agents(users: int) -> str:
    return f"{users} agent{'' if users == 1 else 's'}"


def _load(level: PredictedLevel) -> str:
    return _agents(level.users) if level.rate is None else f"{level.rate:.3g} loops/s"


def _percent(share: float) -> str:
    """A share in whole percent, rounded down: 100 % means all of the simulated runs, not nearly all."""
    return f"{math.floor(share * 100 + 1e-9)} %"
