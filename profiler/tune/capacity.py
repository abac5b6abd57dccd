"""What a server can take, from its figures under several loads: pure decisions of `profiler mcp tune`.

A closed load of N calls at once tells three kinds of server apart. One that refuses has a largest N at which
it takes all calls. One that queues answers no more calls a second from some N on, and each takes longer in
proportion. One that neither refuses nor queues at the largest N that was tried needs no limit there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from profiler.report.text import counted, duration, number
from profiler.statistics.direct import DirectLoad
from profiler.statistics.objectives import Objective
from profiler.statistics.quantiles import LEVELS, Estimate

Kind = Literal["refuses", "queues", "degrades", "enough", "fails"]

FLAT = 1.15
"""A load twice as high that is answered less than so many times as fast is not answered faster."""
SLOWER = 1.5
"""Calls that take so many times as long as alone have waited for each other."""
AS_ALONE = 1.25
"""Calls that take less than so many times as long as alone are served at once."""
WORSE = 0.85
"""A server that answers less than this share of the most that it did is slowed down by the load."""
HALF = 0.55
"""The share of the highest rate below which calls are taken not to wait for each other."""
NEAR = 0.95
"""The share of the highest rate that counts as reached."""
SURE = 3.0
"""Standard deviations by which failures must exceed those of the lowest load."""
FEWEST_FAILURES = 2
AROUND = 0.1
"""How far around an estimated limit is looked."""


def ladder(most: int) -> list[int]:
    """1, 2, 4, … up to `most`."""
    steps = [1]
    while steps[-1] * 2 < most:
        steps.append(steps[-1] * 2)
    return [*steps, most] if most > 1 else steps


def failing(load: DirectLoad, alone: DirectLoad) -> bool:
    """Whether more calls fail under a load than chance would let, where they fail as often as alone."""
    usual = (alone.failed + alone.cut) / max(1, alone.calls)
    expected = usual * load.calls
    return load.failed + load.cut - expected >= FEWEST_FAILURES + SURE * math.sqrt(expected)


@dataclass(frozen=True, slots=True)
class Bracket:
    """The largest load that was taken whole, and the smallest above it that was not (None: none was)."""

    taken: int
    refused: int | None


def bracket(loads: Sequence[DirectLoad]) -> Bracket:
    """Of loads in any order, the lowest the one to hold the others against."""
    ordered = sorted(loads, key=lambda one: one.users)
    alone = ordered[0]
    refused = next((one.users for one in ordered[1:] if failing(one, alone)), None)
    below = [one.users for one in ordered if refused is None or one.users < refused]
    return Bracket(max(below), refused)


def guess(loads: Sequence[DirectLoad], found: Bracket) -> int | None:
    """The limit of a server that refuses, by how many calls it had when it refused others."""
    assert found.refused is not None
    above = sorted((one for one in loads if one.users >= found.refused), key=lambda one: one.users)
    told = [one.beside_failures for one in above if one.beside_failures is not None]
    if not told:
        return None
    return min(max(round(told[0]), found.taken), found.refused - 1)


def to_try(loads: Sequence[DirectLoad], most: int = 6) -> list[int]:
    """The loads that would tell a refusing server's limit best; none where it is known."""
    found = bracket(loads)
    if found.refused is None or found.refused - found.taken <= 1:
        return []
    between = range(found.taken + 1, found.refused)
    if len(between) <= most:
        return [*between]
    middle = guess(loads, found)
    if middle is None or not found.taken <= middle < found.refused:
        step = (found.refused - found.taken) / (most + 1)
        return sorted({round(found.taken + step * k) for k in range(1, most + 1)} & {*between})
    around = max(1, round(AROUND * middle / 2))
    wanted = {middle + k * around for k in (-2, -1, 0, 1, 2)} | {middle + 1}
    return sorted(wanted & {*between})


def known(loads: Sequence[DirectLoad]) -> bool:
    """Whether a refusing server's limit is known within 10 %, or 1."""
    found = bracket(loads)
    return found.refused is None or found.refused - found.taken <= max(1, int(AROUND * found.taken))


@dataclass(frozen=True, slots=True)
class Rates:
    """The largest rate within an objective: the load that `met` it (None: none did), the lowest that `missed`
    it, and why. `concurrency`: how many calls at once did, of a closed load."""

    objective: str
    met: DirectLoad | None
    missed: DirectLoad | None
    why: str = ""
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a server can take.

    `limit` is the largest number of calls at once that it should be given, None where a limit gains nothing.
    `rate` is the most calls a second that it answered, `parallel` how many calls it works on at once for that
    (None where that was not reached). `at`: the load that the sentence speaks of, `beyond` one above it.
    """

    server: str
    kind: Kind
    limit: int | None
    rate: Estimate
    parallel: float | None
    tried: int
    sentence: str
    loads: tuple[DirectLoad, ...]
    rates: Rates | None = None
    notes: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    seconds: float = 0.0
    invalid: tuple[str, ...] = field(default=())


def judge_capacity(server: str, loads: Sequence[DirectLoad]) -> Capacity:
    """The answer from closed loads, of which the lowest is of few calls at once."""
    ordered = sorted(loads, key=lambda one: one.users)
    alone, top = ordered[0], ordered[-1]
    found = bracket(ordered)
    taken = [one for one in ordered if one.users <= found.taken]
    best = max(taken, key=lambda one: one.served.value or 0.0)
    rate = best.served
    parallel = in_parallel(ordered, best)

    def answer(kind: Kind, limit: int | None, words: str) -> Capacity:
        return Capacity(server, kind, limit, rate, parallel, top.users, words, tuple(ordered))

    if not alone.served.value:
        why = ", ".join(f"{name} {count}" for name, count in alone.failures.items()) or "no call ended"
        return answer("fails", None, f"{server} answers not even {_calls(alone.users)}: {why}")
    if found.refused is not None:
        above = next(one for one in ordered if one.users == found.refused)
        at = taken[-1]
        why = ", ".join(f"{name} {count}" for name, count in above.failures.items())
        words = (
            f"limit the calls to {server} to {found.taken} at once, in all processes together "
            f"(semaphore:{found.taken}@server): with {above.users} at once it refuses "
            f"({why} of {above.calls}); with {found.taken} it takes all, and answers {_rate(at.served)}"
        )
        # A rate that a start or a slow client held down is no queue: its calls take longer, too.
        longer = (at.seconds.p50.value or 0.0) > 1.25 * (alone.seconds.p50.value or math.inf)
        if parallel is not None and parallel < 0.8 * found.taken and longer:
            words += f"; it works on {parallel:.0f} of them at once, the others wait there"
        return answer("refuses", found.taken, words)
    fastest = max(ordered, key=lambda one: one.served.value or 0.0)
    if len(ordered) > 2 and _much_less(top, fastest):
        lowest = next(one for one in ordered if _value(one) >= NEAR * _value(fastest))
        words = (
            f"limit the calls to {server} to {lowest.users} at once, in all processes together "
            f"(semaphore:{lowest.users}@server): with them it answers {_rate(lowest.served)}, with "
            f"{top.users} at once only {_rate(top.served)}"
        )
        return answer("degrades", lowest.users, words)
    if parallel is not None and top.users > parallel * AS_ALONE:
        rate = top.served  # not the highest of several: that would be the luckiest
        words = (
            f"a limit gains nothing: {server} takes all calls, and those above {parallel:.0f} at once wait "
            f"there as they would here. Its capacity is {_rate(rate)}, {parallel:.0f} in parallel; with "
            f"{top.users} at once a call takes {duration(top.seconds.p50.value)}, alone "
            f"{duration(alone.seconds.p50.value)}"
        )
        return answer("queues", None, words)
    words = (
        f"no limit is needed: with {_calls(top.users)} {server} refuses nothing, and they take "
        f"{duration(top.seconds.p50.value)} against {duration(alone.seconds.p50.value)} alone (p50); it "
        f"answers {_rate(top.served)} then, and its capacity is above that"
    )
    return answer("enough", None, words)


def in_parallel(ordered: Sequence[DirectLoad], best: DirectLoad) -> float | None:
    """How many calls a server works on at once: its highest rate times what a call takes that does not wait.

    None where calls did not wait for each other, or the rate still rose.
    """
    alone = ordered[0]
    if not alone.mean or not best.served.value:
        return None
    top = ordered[-1]
    # A few calls alone tell little of what takes a different time each; those below half of the rate do not
    # wait for each other either.
    undisturbed = [one for one in ordered if one.mean and (one is alone or _value(one) < HALF * _value(best))]
    calls = sum(one.calls for one in undisturbed)
    usual = sum((one.mean or 0.0) * one.calls for one in undisturbed) / calls
    # Of it what is the client's and the network's is no work of the server's.
    service = sum((one.service or one.mean or 0.0) * one.calls for one in undisturbed) / calls
    waited = [one for one in ordered if one.mean and one.mean > SLOWER * usual]
    if not waited:
        return None
    # Of two loads in which calls wait, the higher is not answered faster.
    lower = [one for one in ordered if one.users <= waited[0].users]
    if _value(top) > FLAT * max(map(_value, lower)) and len(waited) == 1:
        return None
    plateau = sum(_value(one) * one.calls for one in waited) / sum(one.calls for one in waited)
    return max(1.0, plateau * service)


def within(load: DirectLoad, objective: Objective) -> list[str]:
    """What of an objective a load misses, in words; empty where it meets it."""
    if load.unserved:
        return [f"it cannot serve that: the backlog grew to {counted(load.waiting, 'call')}"]
    values = {name: load.seconds[name].value for name in LEVELS}
    return list(objective.missed(values, load.failure_share))


def best_rate(loads: Sequence[DirectLoad], objective: Objective, text: str) -> Rates:
    """The largest of the open loads below which all meet the objective."""
    met: DirectLoad | None = None
    for load in sorted(loads, key=lambda one: one.rate or 0.0):
        missed = within(load, objective)
        if missed:
            return Rates(text, met, load, ", ".join(missed))
        met = load
    return Rates(text, met, None)


def rate_sentence(server: str, rates: Rates) -> str:
    """The largest rate within the objective, in words."""
    if rates.met is None:
        lowest = rates.missed
        at = f" at {number(lowest.rate)}/s, the lowest that was tried: {rates.why}" if lowest else ""
        return f"no rate meets {rates.objective}{at}"
    p95 = duration(rates.met.seconds.p95.value)
    words = f"the largest rate within {rates.objective}: {number(rates.met.rate)}/s (p95 {p95})"
    if rates.missed is not None:
        words += f"; {number(rates.missed.rate)}/s missed it: {rates.why}"
    else:
        words += ", the highest that was tried"
    if rates.concurrency is not None:
        words += f"; of calls that wait for each other, {rates.concurrency} at once"
    return words


def _much_less(top: DirectLoad, fastest: DirectLoad) -> bool:
    """Whether the highest load is answered more slowly than another one, beyond doubt."""
    return top.users > fastest.users and _value(top) < WORSE * _value(fastest)


def _value(load: DirectLoad) -> float:
    return load.served.value or 0.0


def _calls(count: int) -> str:
    return f"{counted(count, 'call')} at once"


def _rate(found: Estimate) -> str:
    text = f"{number(found.value)}/s"
    if found.low is None or found.high is None:
        return text
    return f"{text} [{number(found.low)}, {number(found.high)}]"
