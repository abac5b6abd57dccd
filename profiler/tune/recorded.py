"""The experiments of a search as one recording, from which the rest can be predicted. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from profiler.records import LoopRecord
from profiler.rundir import ClientHealth, Run, Trial

APART = 1_000_000_000
"""Between the numbers of the work of two experiments: each does work of its own."""


def merged(parts: Sequence[tuple[Run, Iterable[LoopRecord]]]) -> tuple[Run, list[LoopRecord]]:
    """One run with the trials of all, numbered anew, and its records; of at least one experiment.

    They ran on one machine, so their times are of one clock.
    """
    first = parts[0][0]
    trials: list[Trial] = []
    client: list[ClientHealth] = []
    records: list[LoopRecord] = []
    strategies = {spec.text: spec for run, _ in parts for spec in run.strategies}
    for place, (run, given) in enumerate(parts):
        shift = len(trials)
        trials += [replace(one, index=one.index + shift) for one in run.trials]
        client += [
            one if one.trial is None or one.trial < 0 else replace(one, trial=one.trial + shift)
            for one in run.client
        ]
        for record in given:
            trial = record.trial if record.trial is None or record.trial < 0 else record.trial + shift
            number = None if record.number is None else record.number + place * APART
            records.append(replace(record, trial=trial, number=number))
    return replace(
        first, trials=tuple(trials), client=tuple(client), strategies=tuple(strategies.values())
    ), records


def at_the_top(run: Run, records: Iterable[LoopRecord]) -> tuple[Run, list[LoopRecord]]:
    """The trials of a run under its highest load, with their records, and those of no trial."""
    most = max((trial.users for trial in run.trials), default=0)
    below = {trial.index for trial in run.trials if trial.users < most}
    kept = tuple(trial for trial in run.trials if trial.users == most)
    return replace(run, trials=kept), [record for record in records if record.trial not in below]
