"""How well a recording predicts itself: whole strategies or levels are left out, and predicted from the rest.

A run with one setting only has nothing else to be predicted from: then half of its blocks (of an only block,
its first half) predicts the others, and that says nothing about any other setting. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from profiler.prediction.asking import as_recorded, recorded_levels, recorded_trials
from profiler.prediction.predict import Predicted, Question
from profiler.prediction.requests import LOAD_ERRORS, LOAD_STATUSES, refused
from profiler.records import LoopRecord
from profiler.rundir import Run, Trial
from profiler.statistics.figures import figures
from profiler.statistics.objectives import Objective
from profiler.statistics.quantiles import LEVELS, Estimate
from profiler.statistics.table import tabulate
from profiler.statistics.windows import measure

SCHEMA = 1

POINTS = frozenset(("failure_rate", "refused_share"))
"""Figures that are shares: their errors are differences, those of others relative."""

HoldoutKind = Literal["level", "strategy", "blocks"]


@dataclass(frozen=True, slots=True)
class Holdout:
    """What is left out and predicted: `kind` and `name` say what, `trials` are the indices of its trials."""

    kind: HoldoutKind
    name: str
    trials: frozenset[int]


@dataclass(frozen=True, slots=True)
class CheckedFigure:
    """A figure as measured, and as predicted with its band, `low` to `high`.

    `error` is relative, or with `points` a difference; None where nothing was measured. `held`: the band
    holds what was measured.
    """

    measured: float | None
    predicted: float
    low: float
    high: float
    error: float | None
    held: bool
    points: bool


@dataclass(frozen=True, slots=True)
class CheckedCell:
    """A strategy under so many agents, predicted without `left_out`. `loops` were measured."""

    kind: HoldoutKind
    left_out: str
    strategy: str
    users: int
    loops: int
    figures: dict[str, CheckedFigure]
    refused: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Overall:
    """One figure over all cells that have it: absolute errors, and how many bands hold."""

    cells: int
    median_error: float
    largest_error: float
    held: int
    points: bool


@dataclass(frozen=True, slots=True)
class Checked:
    """The check of a run: `prediction.json`. `one_setting`: it checks this setting only."""

    cells: tuple[CheckedCell, ...]
    overall: dict[str, Overall]
    sentences: tuple[str, ...]
    one_setting: bool
    replicates: int
    seed: int
    band: float = 0.9
    schema: int = SCHEMA


def holdouts(run: Run) -> list[Holdout]:
    """Each level, then each strategy, of which there are several; else half of the blocks.

    Empty for a run without trials: nobody knows its load.
    """
    levels = recorded_levels(run) if run.trials else ()
    strategies = list(dict.fromkeys(trial.strategy for trial in run.trials))
    found = []
    if len(levels) > 1:
        for users in levels:
            held = frozenset(trial.index for trial in run.trials if trial.users == users)
            found.append(Holdout("level", f"{users} agent{'' if users == 1 else 's'}", held))
    if len(strategies) > 1:
        for name in strategies:
            held = frozenset(trial.index for trial in run.trials if trial.strategy == name)
            found.append(Holdout("strategy", name, held))
    if not found and run.trials:
        blocks = sorted({trial.block for trial in run.trials})
        later = set(blocks[len(blocks) // 2 :])
        held = frozenset(trial.index for trial in run.trials if trial.block in later)
        found.append(Holdout("blocks", "the second half", held))
    return found


def halved(run: Run, records: Iterable[LoopRecord]) -> tuple[Run, list[LoopRecord]]:
    """A run with an only trial as one with two: its halves. Any other stays as it is."""
    every = list(records)
    if len(run.trials) != 1:
        return run, every
    only = run.trials[0]
    middle = (only.started_ns + only.ended_ns) // 2
    first = replace(only, ended_ns=middle)
    second = replace(only, index=only.index + 1, block=only.block + 1, started_ns=middle)

    def trial_of(record: LoopRecord) -> LoopRecord:
        due = record.started_ns if record.intended_ns is None else record.intended_ns
        return replace(record, trial=second.index) if record.trial == only.index and due >= middle else record

    return replace(run, trials=(first, second)), [trial_of(record) for record in every]


def part_of(run: Run, records: Iterable[LoopRecord], trials: Collection[int]) -> tuple[Run, list[LoopRecord]]:
    """The run as if only these trials had been; loops of no trial are left out."""
    kept = tuple(trial for trial in run.trials if trial.index in trials)
    names = {trial.strategy for trial in kept}
    users = max((trial.users for trial in kept), default=run.load.users)
    some = replace(
        run,
        trials=kept,
        strategies=tuple(spec for spec in run.strategies if spec.text in names),
        load=replace(run.load, users=users, rate=run.load.rate_of(users)),
        client=tuple(one for one in run.client if one.trial in trials),
    )
    return some, [record for record in records if record.trial in trials]


Ask = Callable[[Run, Sequence[LoopRecord], Sequence[Question]], list[Predicted]]
"""Fits a run, and answers questions about it."""


def check_one(
    run: Run,
    records: Sequence[LoopRecord],
    holdout: Holdout,
    ask: Ask,
    objective: Objective | None = None,
) -> list[CheckedCell]:
    """What is left out, predicted from the rest, and held against what was measured."""
    held_run, held_records = part_of(run, records, holdout.trials)
    others = [trial.index for trial in run.trials if trial.index not in holdout.trials]
    fitted_run, fitted_records = part_of(run, records, others)
    questions = []
    for users in recorded_levels(held_run):
        for spec in held_run.strategies:
            trials = recorded_trials(held_run, spec.text, users)
            if trials is not None:
                questions.append(as_recorded(run, (spec,), (users,), trials).question(spec, users))
    answers = ask(fitted_run, fitted_records, questions)
    measured = measured_figures(held_run, held_records, objective)
    return [
        _cell(holdout, one, *measured.get((one.question.strategy.text, one.question.load.users), ({}, 0)))
        for one in answers
    ]


def _cell(holdout: Holdout, one: Predicted, measured: dict[str, float | None], loops: int) -> CheckedCell:
    found = {}
    if not one.refused:
        for name, estimate in one.figures.items():
            if estimate.value is not None and name in measured:
                found[name] = _figure(name, measured[name], estimate)
    question = one.question
    return CheckedCell(
        holdout.kind,
        holdout.name,
        question.strategy.text,
        question.load.users,
        loops,
        found,
        one.refused,
        one.warnings,
    )


def _figure(name: str, measured: float | None, one: Estimate) -> CheckedFigure:
    value = one.value or 0.0
    low = value if one.low is None else one.low
    high = value if one.high is None else one.high
    points = name in POINTS
    error = None
    if measured is not None and (points or measured):
        error = value - measured if points else value / measured - 1
    held = measured is not None and low - _CLOSE <= measured <= high + _CLOSE
    return CheckedFigure(measured, value, low, high, error, held, points)


_CLOSE = 1e-9


def measured_figures(
    run: Run, records: Sequence[LoopRecord], objective: Objective | None = None
) -> dict[tuple[str, int], tuple[dict[str, float | None], int]]:
    """By strategy and agents, the figures as `compare` has them, and of how many loops."""
    table = tabulate(records)
    shares = refused_shares(run.trials, records)
    found = {}
    for group in measure(run, table):
        one = figures(group, table, objective)
        mine: dict[str, float | None] = {name: one.loop_seconds[name].value for name in LEVELS}
        mine |= {
            "throughput": one.throughput.value,
            "goodput": one.goodput.value,
            "failure_rate": one.failure_rate.value,
            "refused_share": shares.get((group.strategy, group.users)),
        }
        found[group.strategy, group.users] = (mine, one.loops.due)
    return found


def refused_shares(trials: Sequence[Trial], records: Iterable[LoopRecord]) -> dict[tuple[str, int], float]:
    """Of all requests to tools and model that began in a window, those refused for the load.

    By strategy and number of agents. Those of a window's loops that began after it met a falling load.
    """
    of = {trial.index: trial for trial in trials}
    counts: dict[tuple[str, int], list[int]] = {}
    for record in records:
        trial = None if record.trial is None else of.get(record.trial)
        if trial is None:
            continue
        count = counts.setdefault((trial.strategy, trial.users), [0, 0])
        for began_ns, was_refused in _requests(record):
            if trial.started_ns <= began_ns < trial.ended_ns:
                count[0] += 1
                count[1] += was_refused
    return {key: refusals / asked for key, (asked, refusals) in counts.items() if asked}


def _requests(record: LoopRecord) -> Iterator[tuple[int, bool]]:
    """When each request to a tool or the model began, and whether it was refused for the load."""
    for round_ in record.rounds:
        model = round_.model
        if model.attempts:
            yield from ((one.started_ns, one.status in LOAD_STATUSES) for one in model.attempts)
        elif model.asked and model.latency_ns is not None:
            yield model.started_ns + model.limiter_wait_ns, False
        for call in round_.tool_calls:
            if call.attempts:
                yield from ((one.started_ns, one.error_type in LOAD_ERRORS) for one in call.attempts)
            elif call.started_ns is not None:
                yield call.started_ns, refused(call)


def checked(run: Run, cells: Iterable[CheckedCell], *, replicates: int, seed: int, band: float) -> Checked:
    """All cells, and what they say together."""
    every = tuple(cells)
    one_setting = all(cell.kind == "blocks" for cell in every)
    overall = {}
    for name in dict.fromkeys(name for cell in every for name in cell.figures):
        found = [cell.figures[name] for cell in every if name in cell.figures]
        errors = [abs(one.error) for one in found if one.error is not None]
        if errors:
            held = sum(one.held for one in found if one.error is not None)
            points = name in POINTS
            overall[name] = Overall(len(errors), float(np.median(errors)), max(errors), held, points)
    sentences = _sentences(run, every, overall, one_setting, band)
    return Checked(every, overall, tuple(sentences), one_setting, replicates, seed, band)


_NAMES = {
    "p50": "p50",
    "p95": "p95",
    "p99": "p99",
    "throughput": "loops/s",
    "goodput": "good loops/s",
    "failure_rate": "failures",
    "refused_share": "429s",
}


def _sentences(
    run: Run, cells: Sequence[CheckedCell], overall: dict[str, Overall], one_setting: bool, band: float
) -> list[str]:
    told = [cell for cell in cells if cell.figures]
    if not cells:
        return ["nothing can be left out: the recording has no trials of a known load"]
    said = []
    if one_setting:
        names = ", ".join(dict.fromkeys(cell.strategy for cell in cells))
        loads = ", ".join(dict.fromkeys(str(cell.users) for cell in cells))
        said.append(
            f"one setting was recorded ({names}, {loads} agents): its second half is predicted from its "
            "first, which checks this setting only, and says nothing about other loads, limits or strategies"
        )
    if told:
        parts = [
            f"{_NAMES.get(name, name)} {_error(one.median_error, one.points)}"
            for name, one in overall.items()
        ]
        said.append(f"median error of {len(told)} predicted cells: {', '.join(parts)}")
        bands = sum(one.cells for one in overall.values())
        held = sum(one.held for one in overall.values())
        said.append(
            f"{held} of {bands} bands hold what was measured ({_percent(held / bands)}; they are to hold "
            f"{_percent(band)})"
        )
    refusals = len(cells) - len(told)
    if refusals:
        said.append(
            f"{refusals} of {len(cells)} cells are outside of what is left of the recording, and are refused"
        )
    return said


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def _error(value: float, points: bool) -> str:
    return f"{value * 100:.1f} {'points' if points else '%'}"
