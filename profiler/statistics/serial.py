"""Does an MCP server answer parallel calls one at a time, and who holds them up: a pure function of times.

Two questions, of all calls of one server. *Its client*: were calls that started together sent one after
another, each when the one before had been answered? That is seen directly. *The server*: were calls that it
had together answered one at a time? That has to be told from servers that run a few at once, that are slow,
or whose calls differ in length. So at least one of three things must hold:

told     The server says how long each call took, and placed before its answer no two of them overlap.
even     Calls sent together were answered at even distances, in the order in which they were sent, the first
         one too, round after round. A server that runs c at once answers the first c together; random times
         are hardly ever even.
alone    While two calls or more were there, the answers came as far apart as a call takes that finds the
         server idle. Whatever the lengths, a server that runs two at once does two seconds of work in a
         second: N answers in a time of at most (N + K) / 2 such calls, where K calls were left over. The mean
         distance must exceed that by three standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from profiler.statistics.quantiles import Floats

FEWEST_ROUNDS = 3
FEWEST_CALLS = 3
"""So many rounds of so many calls sent together make a case; of two, one may simply take twice as long."""
LEAST_NS = 5_000_000
"""Calls that take less are not looked at: what a client itself needs for them is as much."""
TOGETHER = 0.25
"""Calls were sent together if within this share of the distance of their answers."""
MOST_UNEVEN = 0.28
"""The standard deviation of even distances, as a share of their mean."""
FEWEST_SURE = 20
"""With fewer distances, which may be even by chance, the order of the answers must be right as well."""
LEAST_BETWEEN = 0.7
"""The mean distance inside a round, as a share of all: a server that runs several answers some together."""
SLACK_NS = 5_000_000
"""A connection that had to be opened; a thread that started late."""
FEWEST_TOLD = 4
"""Pairs of answers that a server with times of its own must be seen with."""
MOST_OVERLAP = 0.1
"""The share of their own times in which they may seem to overlap: an answer is seen late now and then."""
FEWEST_STEADY = 12
"""Even distances that speak for themselves, given how long one call takes alone."""
FEWEST_ALONE = 5
"""Calls that found the server idle, to know from how long one takes."""
MOST_SHOWN = 8
"""Calls that stand for a backlog."""
ERRORS = 3.0
"""Standard errors."""
MOST_LATE = 1.6
"""The first answer to several calls may take this much longer than that to one alone."""
MARGIN = 0.08
"""How much more than a server that runs two at once could take."""

By = Literal["client", "server"]
Evidence = Literal["sent", "told", "even", "alone"]


class Served(NamedTuple):
    """A call that was answered, in nanoseconds. `round_` is the same for the calls of one round.

    `place` orders calls as they were asked for. Requests sent within a few milliseconds, on connections of
    their own, may overtake each other on the way.
    """

    round_: int
    tool: str
    started_ns: int
    posted_ns: int
    answered_ns: int
    server_ns: int | None = None
    place: int = 0

    @property
    def remote_ns(self) -> int:
        return self.answered_ns - self.posted_ns


@dataclass(frozen=True, slots=True)
class Serialised:
    """Parallel calls ran one at a time: held up by the session of its `client`, or by the `server` itself.

    `rounds` of the `of_rounds` with several calls at once show it. The largest stands for them: `calls` that
    came within `together_seconds` were answered one by one, `apart_seconds` apart (its median): they took
    `wall_seconds`, where together they would have taken `alone_seconds`. Both 0: many callers kept it so busy
    that no round is to be seen by itself, and the figures are of a part of the backlog. `tool`: only this
    one's calls ran one at a time, while those of others went on.
    """

    by: By
    evidence: Evidence
    rounds: int
    of_rounds: int
    calls: int
    together_seconds: float
    apart_seconds: float
    wall_seconds: float
    alone_seconds: float
    tool: str | None = None


def serialised(groups: Sequence[Sequence[Served]]) -> Serialised | None:
    """What the calls of one server show; None where they do not show it beyond doubt.

    Calls of one group could get in each other's way; a server that is a process for each worker has a group
    for each.
    """
    return _client(groups) or _server(groups) or _tool(groups)


# The client.


def _client(groups: Sequence[Sequence[Served]]) -> Serialised | None:
    """Calls had started, and were sent one by one, each when the one before had been answered.

    Nothing else may have been at the server meanwhile: two at once, and it is no lock. First within rounds,
    since each of several agents may have a session of its own; then among all calls.
    """
    rounds: dict[int, list[Served]] = {}
    for calls in groups:
        for call in calls:
            rounds.setdefault(call.round_, []).append(call)
    several = [found for found in rounds.values() if len(found) >= FEWEST_CALLS and _started_together(found)]
    shown = [found for found in several if len(_handed_on(found)) == len(found) - 1]
    if len(shown) >= FEWEST_ROUNDS and 2 * len(shown) >= len(several):
        largest = max(shown, key=len)
        return _case("client", "sent", largest, [c.started_ns for c in largest], len(shown), len(several))
    rows = [_handed_on(calls) for calls in groups]
    calls = max(rows, key=len, default=[])
    waited = sum(call.posted_ns - call.started_ns >= LEAST_NS for group in groups for call in group)
    if len(calls) < FEWEST_STEADY or sum(map(len, rows)) < 0.8 * waited:
        return None
    return _case("client", "sent", calls[:MOST_SHOWN], [c.started_ns for c in calls[:MOST_SHOWN]], 0, 0)


def _started_together(calls: Sequence[Served]) -> bool:
    started = [call.started_ns for call in calls]
    lasted = (max(call.answered_ns for call in calls) - min(started)) / len(calls)
    return lasted >= LEAST_NS and max(started) - min(started) <= TOGETHER * lasted


def _handed_on(calls: Sequence[Served]) -> list[Served]:
    """The calls that waited until the one before was answered, and were sent then. None if two overlapped."""
    ordered = sorted(calls, key=lambda call: call.posted_ns)
    found = []
    for before, after in pairwise(ordered):
        free_ns = after.posted_ns - before.answered_ns
        if free_ns < -SLACK_NS / 5:
            return []
        if after.started_ns <= before.answered_ns - LEAST_NS / 2 and free_ns <= max(
            SLACK_NS, TOGETHER * before.remote_ns
        ):
            found.append(after)
    return found


def _case(
    by: By, evidence: Evidence, calls: Sequence[Served], began: Sequence[int], rounds: int, of: int
) -> Serialised:
    answered = sorted(call.answered_ns for call in calls)
    apart = float(np.median(np.diff(answered)))
    alone = max(call.answered_ns - call.posted_ns for call in calls) if by == "client" else apart
    return Serialised(
        by=by,
        evidence=evidence,
        rounds=rounds,
        of_rounds=of,
        calls=len(calls),
        together_seconds=(max(began) - min(began)) / 1e9,
        apart_seconds=apart / 1e9,
        wall_seconds=(answered[-1] - min(began)) / 1e9,
        alone_seconds=alone / 1e9,
    )


# The server.


def _server(groups: Sequence[Sequence[Served]]) -> Serialised | None:
    ordered = [sorted(calls, key=lambda call: call.posted_ns) for calls in groups]
    batches = [batch for calls in ordered for batch in _batches(calls)]
    busy = [_Busy(calls) for calls in ordered if calls]
    evidence: Evidence | None = None
    if _told(busy):
        evidence = "told"
    elif _even(batches, busy):
        evidence = "even"
    elif _alone(batches, busy):
        evidence = "alone"
    if evidence is None:
        return None
    like = [batch for batch in batches if _one_by_one(batch)]
    if not like or (evidence == "alone" and len(like) < FEWEST_ROUNDS):
        # Many callers, whose calls hardly ever found it idle: the longest backlog.
        calls = max((one.backlog() for one in busy), key=len)
        return _case("server", evidence, calls, [call.posted_ns for call in calls], 0, 0)
    largest = max(like, key=len)
    return _case("server", evidence, largest, [c.posted_ns for c in largest], len(like), len(batches))


def _tool(groups: Sequence[Sequence[Served]]) -> Serialised | None:
    """A tool with a lock of its own: its calls run one at a time, and those of others beside them."""
    tools = {call.tool for calls in groups for call in calls}
    for tool in sorted(tools) if len(tools) > 1 else ():
        mine = [[call for call in calls if call.tool == tool] for calls in groups]
        found = _server(mine)
        if found is not None and _others_go_on(tool, groups):
            return replace(found, tool=tool)
    return None


def _others_go_on(tool: str, groups: Sequence[Sequence[Served]]) -> bool:
    """Calls of other tools, sent while several of this one were there, took what they take at other times.

    If they had waited too, it would be places of the server's that are few.
    """
    beside: dict[str, list[int]] = {}
    every: dict[str, list[int]] = {}
    for calls in groups:
        mine = [call for call in calls if call.tool == tool]
        posted, answered = np.sort([c.posted_ns for c in mine]), np.sort([c.answered_ns for c in mine])
        for call in calls:
            if call.tool == tool:
                continue
            every.setdefault(call.tool, []).append(call.remote_ns)
            there = np.searchsorted(posted, call.answered_ns) - np.searchsorted(
                answered, call.posted_ns, "right"
            )
            if there >= 2:
                beside.setdefault(call.tool, []).append(call.remote_ns)
    least = {name: min(took) for name, took in every.items()}
    shares = [took / least[name] for name, found in beside.items() for took in found]
    return len(shares) >= FEWEST_TOLD and float(np.median(shares)) <= 1 + MOST_UNEVEN


def _batches(calls: Sequence[Served]) -> list[list[Served]]:
    """Calls that found the server idle and were sent together, with no other until all were answered."""
    found: list[list[Served]] = []
    until_ns = -1
    for call in calls:
        if call.posted_ns >= until_ns:
            found.append([])
        found[-1].append(call)
        until_ns = max(until_ns, call.answered_ns)
    return [batch for batch in found if len(batch) >= FEWEST_CALLS and _together(batch)]


def _together(batch: Sequence[Served]) -> bool:
    wall = max(call.answered_ns for call in batch) - batch[0].posted_ns
    return wall >= LEAST_NS * len(batch) and (
        batch[-1].posted_ns - batch[0].posted_ns <= TOGETHER * wall / len(batch)
    )


def _distances(batch: Sequence[Served]) -> Floats:
    """From the first request to the first answer, and from each answer to the next."""
    return np.diff([batch[0].posted_ns, *sorted(call.answered_ns for call in batch)]).astype(float)


def _one_by_one(batch: Sequence[Served]) -> bool:
    distances = _distances(batch)
    return bool(distances.min() >= 0.5 * distances.mean())


def _even(batches: Sequence[Sequence[Served]], busy: Sequence[_Busy]) -> bool:
    alike = [batch for batch in batches if len({call.tool for call in batch}) == 1]
    if len(alike) < FEWEST_ROUNDS or 2 * len(alike) < len(batches):
        return False
    every = [_distances(batch) for batch in alike]
    pooled = np.concatenate(every)
    usual = float(np.median(pooled))
    kept = np.sort(pooled)[: pooled.size - pooled.size // 20]
    if usual < LEAST_NS or kept.std() > MOST_UNEVEN * kept.mean():
        return False
    between = np.concatenate([distances[1:-1] for distances in every])
    first = np.array([distances[0] for distances in every])
    last = np.array([distances[-1] for distances in every])
    if any(part.mean() < LEAST_BETWEEN * pooled.mean() for part in (between, first, last)):
        return False
    alone = [call.remote_ns for one in busy for call in one.alone]
    if len(alone) >= FEWEST_ROUNDS and abs(float(np.median(alone)) - usual) > max(0.4 * usual, SLACK_NS):
        return False
    return _order(alike) >= (0.9 if pooled.size < FEWEST_SURE else 0.6)


def _order(batches: Sequence[Sequence[Served]]) -> float:
    """How far calls were answered in the order in which they were sent, or asked for: Kendall's tau."""
    by_place = [sorted(batch, key=lambda call: call.place) for batch in batches]
    return max(_tau(batches), _tau(by_place))


def _tau(batches: Sequence[Sequence[Served]]) -> float:
    """From 1 for that order to -1 for the reverse; 0 is chance."""
    found = []
    for batch in batches:
        answers = [call.answered_ns for call in batch]
        pairs = [np.sign(b - a) for place, a in enumerate(answers) for b in answers[place + 1 :]]
        found.append(float(np.mean(pairs)))
    return float(np.mean(found))


class _Step(NamedTuple):
    """An answer, and for how long several calls had been there since the one before it.

    `whole`: they were there at that one. `ends`: after it one was left.
    """

    call: Served
    apart_ns: int
    whole: bool
    ends: bool


class _Busy:
    """The answers of a server in their order, and when several calls were there."""

    def __init__(self, calls: Sequence[Served]) -> None:
        self._calls = sorted(calls, key=lambda call: call.answered_ns)
        posted = np.array([call.posted_ns for call in calls])
        answered = np.array([call.answered_ns for call in self._calls])
        # Before each answer, and at each request: how many were there.
        self._before = np.searchsorted(posted, answered, "left") - np.arange(answered.size)
        others = np.arange(posted.size) - np.searchsorted(answered, posted, "right")
        self.idle = [call for call, other in zip(calls, others, strict=True) if other == 0]
        followed = np.append(posted[1:], np.iinfo(np.int64).max)
        self.alone = [
            call
            for call, other, after in zip(calls, others, followed, strict=True)
            if other == 0 and after >= call.answered_ns
        ]
        self._posted, self._answered = posted, answered

    def steps(self) -> list[_Step]:
        """The answers that came while two calls or more were there."""
        found = []
        for place, call in enumerate(self._calls):
            if self._before[place] < 2:
                continue
            # Two were there from the request on that was the second of those not answered before.
            second = int(self._posted[min(place + 1, self._posted.size - 1)])
            last = int(self._answered[place - 1]) if place else 0
            found.append(
                _Step(
                    call,
                    int(self._answered[place]) - max(last, second),
                    last >= second,
                    self._before[place] == 2,
                )
            )
        return found

    def queued(self) -> list[tuple[Served, Served]]:
        """Answers that follow each other, where the second call was there for a while before the first."""
        return [
            (before, after)
            for before, after in pairwise(self._calls)
            if before.answered_ns - after.posted_ns >= max(LEAST_NS, 0.2 * (after.server_ns or 0))
        ]

    def backlog(self) -> list[Served]:
        """The longest row of answers, each to a call that was there at the answer before."""
        best: list[Served] = []
        row: list[Served] = []
        for before, after in pairwise(self._calls):
            if after.posted_ns <= before.answered_ns and len(row) < MOST_SHOWN:
                row = [*(row or [before]), after]
            else:
                row = []
            best = max(best, row, key=len)
        return best or self._calls[:2]


def _told(busy: Sequence[_Busy]) -> bool:
    pairs = [pair for one in busy for pair in one.queued()]
    told = [(a, b, b.server_ns) for a, b in pairs if b.server_ns is not None]
    if len(told) < FEWEST_TOLD or 2 * len(told) < len(pairs):
        return False
    over = sum(max(0, a.answered_ns - (b.answered_ns - took)) for a, b, took in told)
    worked = sum(took for _, _, took in told)
    return over <= MOST_OVERLAP * worked and worked >= 0.5 * sum(
        b.answered_ns - a.answered_ns for a, b, _ in told
    )


def _alone(batches: Sequence[Sequence[Served]], busy: Sequence[_Busy]) -> bool:
    idle: dict[str, list[int]] = {}
    for one in busy:
        for call in one.idle:
            idle.setdefault(call.tool, []).append(call.remote_ns)
    steps = [step for one in busy for step in one.steps()]
    shown = _steady(idle, [step for step in steps if step.whole]) or _dear(idle, steps)
    return shown and _in_order(busy) and not _shared(batches, busy)


def _shared(batches: Sequence[Sequence[Served]], busy: Sequence[_Busy]) -> bool:
    """The server runs all at once, each slower for it: even the first of them is answered late."""
    alone = [call.remote_ns for one in busy for call in one.alone]
    first = [float(_distances(batch)[0]) for batch in batches]
    return bool(alone and first) and np.mean(first) > MOST_LATE * np.mean(alone)


def _steady(idle: Mapping[str, Sequence[int]], steps: Sequence[_Step]) -> bool:
    """The distances are even, and each as long as its call alone."""
    if len(steps) < FEWEST_STEADY or not idle:
        return False
    usual = {tool: float(np.median(took)) for tool, took in idle.items()}
    # A tool may never find it idle; where all take about as long, that of others will do.
    any_tool = float(np.median([one for took in idle.values() for one in took]))
    shares = np.sort([step.apart_ns / usual.get(step.call.tool, any_tool) for step in steps])
    kept = shares[shares.size // 20 : shares.size - shares.size // 20]
    return bool(
        min(usual.values()) >= LEAST_NS
        and kept.std() <= MOST_UNEVEN * kept.mean()
        and abs(float(np.median(shares)) - 1) <= MOST_UNEVEN
    )


def _dear(idle: Mapping[str, Sequence[int]], steps: Sequence[_Step]) -> bool:
    """Answers came further apart than any server could let them that runs two calls at once."""
    known = {tool: np.array(took, float) for tool, took in idle.items() if len(took) >= FEWEST_ALONE}
    mine = [step for step in steps if step.call.tool in known]
    if len(mine) < FEWEST_ROUNDS * (FEWEST_CALLS - 1) or 2 * len(mine) < len(steps):
        return False
    expected = np.array([float(known[step.call.tool].mean()) for step in mine])
    apart = np.array([float(step.apart_ns) for step in mine])
    ratio = float(apart.sum() / expected.sum())
    left = float(sum(work for work, step in zip(expected, mine, strict=True) if step.ends))
    bound = (float(expected.sum()) + left) / (2 * float(expected.sum()))
    error = math.sqrt(float(np.square(apart - ratio * expected).sum())) / float(expected.sum())
    for took in known.values():
        error = math.hypot(error, ratio * float(took.std(ddof=1)) / math.sqrt(took.size) / float(took.mean()))
    return bool(expected.mean() >= LEAST_NS) and bound + MARGIN + ERRORS * error < ratio <= 1.5


def _in_order(busy: Sequence[_Busy]) -> bool:
    """Few calls were answered before one that had been sent before them; at chance half of them were."""
    pairs = [pair for one in busy for pair in one.queued()]
    sent = sum(a.posted_ns <= b.posted_ns for a, b in pairs)
    asked = sum(a.place < b.place for a, b in pairs)
    return bool(pairs) and max(sent, asked) >= 0.85 * len(pairs)
