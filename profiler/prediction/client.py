"""What the client itself adds to loops, by how busy it is. Pure.

A client that makes many requests a second sends each later and notices its end later; one that has to wait
for a processor, since the machine is busy with other things, is later still. Neither is of the servers, and
a trial's loops have in them what their own client added. So that part is taken out, and put in again as a
calm client has it at the requests a second that the question comes to.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from profiler.prediction.simulation.work import LoopWork, RoundWork
from profiler.records import LoopRecord
from profiler.rundir import Run

CALM = 0.2
"""A client that waited for a processor for more of the time tells nothing of one on a machine of its own."""


class Added(NamedTuple):
    """The mean ns that a client adds to a model request, to a tool call, and to a round that has calls.

    What it adds to the round lies between the reply and its calls, and after them.
    """

    request: float
    call: float
    round: float


def waited_of(run: Run) -> dict[int, float]:
    """Of each trial by its index, the share of the time for which its client waited for a processor.

    Of several processes that of the one that waited longest. Trials where it is not known are left out.
    """
    waited: dict[int, float] = {}
    for health in run.client:
        if health.trial is not None and health.delayed_share is not None:
            waited[health.trial] = max(waited.get(health.trial, 0.0), health.delayed_share)
    return waited


def rates_of(run: Run, records: Iterable[LoopRecord]) -> dict[int, float]:
    """Of each trial by its index, the requests a second that one process of the client made."""
    windows = {trial.index: trial for trial in run.trials}
    tried: Counter[int] = Counter()
    processes: dict[int, set[str]] = defaultdict(set)
    for record in records:
        trial = windows.get(-1 if record.trial is None else record.trial)
        if trial is None:
            continue
        processes[trial.index].add(record.process)
        for round_ in record.rounds:
            begun = ((call.started_ns, call.attempt_count) for call in round_.tool_calls)
            for started_ns, attempts in ((round_.model.started_ns, round_.model.attempt_count), *begun):
                if started_ns is not None and trial.started_ns <= started_ns < trial.ended_ns:
                    tried[trial.index] += attempts
    return {
        index: tried[index] / len(names) / max(1, windows[index].ended_ns - windows[index].started_ns) * 1e9
        for index, names in processes.items()
    }


@dataclass(frozen=True, slots=True)
class ClientTimes:
    """What the client added in each trial, by its index (`trials`), and what a calm one adds.

    The latter at `rates` (requests a second of one process, ascending), and never less at a higher one.
    """

    trials: Mapping[int, Added] = field(default_factory=dict)
    rates: tuple[float, ...] = ()
    calm: tuple[Added, ...] = ()

    @classmethod
    def of(cls, run: Run, loops: Sequence[LoopWork], rates: Mapping[int, float]) -> ClientTimes:
        """Of recorded loops; of each level the trial counts in which its client waited least."""
        rounds: dict[int, list[RoundWork]] = defaultdict(list)
        for loop in loops:
            rounds[loop.trial] += loop.rounds
        trials = {index: _added(rounds[index]) for index in rates if rounds[index]}
        waited = waited_of(run)
        levels: dict[tuple[str, int], list[int]] = defaultdict(list)
        for trial in run.trials:
            if trial.index in trials:
                levels[trial.strategy, trial.users].append(trial.index)
        calmest = [min(of, key=lambda index: waited.get(index, 0.0)) for of in levels.values()]
        calm = [index for index in calmest if waited.get(index, 0.0) <= CALM] or calmest
        calm.sort(key=lambda index: rates[index])
        counts = [
            (len(of), sum(len(one.calls) for one in of), sum(bool(one.calls) for one in of))
            for of in (rounds[index] for index in calm)
        ]
        columns = [
            never_falling(
                [(trials[index][place], count[place]) for index, count in zip(calm, counts, strict=True)]
            )
            for place in range(3)
        ]
        return cls(trials, tuple(rates[index] for index in calm), tuple(map(Added, *columns)))

    def at(self, rate: float) -> Added:
        """Of a calm client at this rate; beyond those recorded, as at the nearest."""
        columns = zip(*self.calm, strict=True)
        return Added(*(float(np.interp(rate, self.rates, column)) for column in columns))

    def moved(self, loop: LoopWork, rate: float) -> LoopWork:
        """The loop as it would be with a calm client that makes `rate` requests a second."""
        here = self.trials.get(loop.trial)
        if here is None or not self.rates:
            return loop
        there = self.at(rate)
        request, call, around = (new / old if old else 1.0 for new, old in zip(there, here, strict=True))
        rounds = tuple(
            replace(
                one,
                client_ns=int(one.client_ns * request),
                parse_ns=int(one.parse_ns * around) if one.calls else one.parse_ns,
                collect_ns=int(one.collect_ns * around) if one.calls else one.collect_ns,
                calls=tuple(replace(of, client_ns=int(of.client_ns * call)) for of in one.calls),
            )
            for one in loop.rounds
        )
        return replace(loop, rounds=rounds)


def _added(rounds: Sequence[RoundWork]) -> Added:
    calls = [call.client_ns for one in rounds for call in one.calls]
    around = [one.parse_ns + one.collect_ns for one in rounds if one.calls]
    requests = [one.client_ns for one in rounds]
    return Added(*(float(np.mean(of)) if of else 0.0 for of in (requests, calls, around)))


def never_falling(means: Sequence[tuple[float, int]]) -> tuple[float, ...]:
    """The sequence that never falls and is nearest to means of so many: pool adjacent violators.

    Ayer et al., 1955: neighbours that fall are replaced by their common mean.
    """
    pools: list[tuple[float, int, int]] = []  # mean, weight, how many
    for mean, weight in means:
        pools.append((float(mean), weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (one, its, many), (other, mine, more) = pools.pop(-2), pools.pop()
            total = its + mine
            pools.append(((one * its + other * mine) / total if total else one, total, many + more))
    return tuple(mean for mean, _, count in pools for _ in range(count))
