"""What a server refuses for: too many calls at once, too many a second, or neither.

Each rule gives every call a number that decides alone whether it is refused: the calls in flight when it
arrives, or what is used of a token bucket. So a rule is a threshold, and it explains the refusals when nearly
all refused calls are above it and nearly all accepted ones below. What a client counts is not what the
server counts: a call that the client still waits for may have left the server, and calls that start
together may arrive in another order. So of each number the lowest and the highest that may have been are
taken.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from profiler.prediction.servers.calls import Bools, Calls, Floats, Ints, in_flight

UNEVEN_NS = 3_000_000
"""How much earlier or later than the client a server may see a call come or go: network and busy client."""
EXPLAINED = 0.05
"""A rule may be wrong about this share of the refused and of the accepted calls."""
ERRORS = 0.3
"""As the client counts them, it may be wrong about more."""
FEWEST = 10
"""Refused calls from which a rule is looked for."""
_CLEAR = 0.02
"""With fewer errors than this, a number in flight explains the refusals and no rate is looked for."""
_QUANTILES = np.concatenate((np.linspace(0, 0.01, 6), np.linspace(0.02, 0.5, 25)))
_COUNTED = 10
"""Accepted calls that a rate is counted from, at least."""
_MOST = 40_000
"""Neighbouring rows that a rate is searched for in: those with the most refusals."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Calls that find `at` or more in flight are refused; `lowest` to `highest` explain as much.

    `errors` is the larger of two shares: of refused calls below it, and of accepted calls above it, as the
    client counts. `explains` marks the rows that are refused because of it.
    """

    at: int
    lowest: int
    highest: int
    errors: float
    explains: Bools


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: `per_second` calls, `burst` at once; `errors` as of a `Threshold`. Rates from `lowest`
    to `highest` explain as much."""

    per_second: float
    lowest: float
    highest: float
    burst: float
    errors: float


def bounds_in_flight(calls: Calls) -> tuple[Ints, Ints]:
    """The fewest and the most other calls that the server may have had when each row arrived."""
    taken = ~calls.refused
    sending = 0 if calls.sending is None else calls.sending
    late = 0 if calls.late is None else calls.late
    # A busy client sent a call later than it meant to, and saw its end later than that was.
    sent, left = calls.started + sending, np.maximum(calls.started, calls.ended - late)

    def under_way(begun: Ints, ended: Ints, begun_by: Ints, ended_by: Ints) -> Ints:
        before = np.searchsorted(np.sort(begun[taken]), begun_by, side="right")
        return (before - np.searchsorted(np.sort(ended[taken]), ended_by, side="right")).astype(np.int64)

    # The row itself is among those that began by now; not among those that began well before.
    fewest = under_way(sent, left, calls.started - UNEVEN_NS, sent + UNEVEN_NS)
    most = under_way(calls.started, calls.ended, sent + UNEVEN_NS, calls.started - 1) - taken
    return np.maximum(0, fewest), np.maximum(0, most)


def threshold(calls: Calls, others: Ints) -> Threshold | None:
    """The number of calls in flight above which calls are refused; None if no number explains them.

    `others`: those in flight at each row's start, as the client counts.
    """
    refused, taken = calls.refused, ~calls.refused
    if refused.sum() < FEWEST or not taken.any():
        return None
    fewest, most = bounds_in_flight(calls)
    if calls.late is not None:
        # An end comes at any time of the client's busy period: half of that is the mean.
        others = in_flight(replace(calls, ended=np.maximum(calls.started, calls.ended - calls.late // 2)))
    candidates = np.arange(1, int(most[refused].max()) + 1)
    if not candidates.size:
        return None
    unexplained = _share_below(most[refused], candidates)
    contradicting = 1 - _share_below(fewest[taken], candidates)
    # Where the client may have counted wrong, all may be right. Of those, the best by the plain counts.
    clear = np.maximum(unexplained, contradicting)
    plain = np.maximum(_share_below(others[refused], candidates), 1 - _share_below(others[taken], candidates))
    good = np.flatnonzero(clear <= clear.min() + 0.005)
    chosen = int(good[np.argmin(plain[good])])
    both = _share_below(others[refused], candidates) + 1 - _share_below(others[taken], candidates)
    if clear[chosen] > EXPLAINED or both[chosen] > 2 * ERRORS:
        return None
    at = int(candidates[chosen])
    lowest, highest = int(candidates[good[0]]), int(candidates[good[-1]])
    return Threshold(at, lowest, highest, float(plain[chosen]), refused & (most >= at))


def rate(calls: Calls, considered: Bools) -> Rate | None:
    """The token bucket that tells refused from accepted calls best, of the rows that are `considered`.

    For a given rate, what is used of a bucket after each accepted call is U = max(0, U - rate * gap) + 1,
    whatever its size; a call is refused when U + 1 is more than the size.
    """
    order: Ints = np.flatnonzero(considered).astype(np.int64)
    order = order[np.argsort(calls.started[order], kind="stable")]
    order = _busiest(order, calls.refused[order], calls.started[order])
    refused = calls.refused[order]
    if refused.sum() < FEWEST or refused.all():
        return None
    at = (calls.started[order] - calls.started[order[0]]) / 1e9
    tried = _rates(at, refused)
    best: tuple[float, float, float, float, float] | None = None
    # A rate that is a little wrong explains nothing, since errors add up over many calls.
    for width in (0.015, 0.002, 0.0):
        if not tried.size:
            return None
        found = [(*_split(at, refused, each), each) for each in tried.tolist()]
        best = min(found if best is None else [best, *found])
        tried = best[-1] + best[-1] * np.linspace(-width, width, 31)
    if best is None:
        return None
    errors, burst, unexplained, contradicting, per_second = best
    if max(unexplained, contradicting) > EXPLAINED or errors > ERRORS:
        return None
    if per_second * UNEVEN_NS / 1e9 > burst / 2:  # too fast to be seen by a client
        return None
    near = per_second * np.geomspace(0.7, 1.4, 41)
    as_good = [each for each in near.tolist() if _split(at, refused, each)[0] <= errors + 0.002]
    lowest, highest = min([per_second, *as_good]), max([per_second, *as_good])
    return Rate(per_second, lowest, highest, burst, errors)


def _rates(at: Floats, refused: Bools) -> Floats:
    """Rates that may be the server's: one or two for each number of refusals that they are counted over.

    At each refusal less than one call is left in the bucket. So between two of them as many were accepted as
    were filled in, give or take one; or fewer, when the bucket was full for a while. Of all pairs of
    refusals so many apart, those with the most accepted a second tell.
    """
    accepted = np.cumsum(~refused, dtype=np.int64)[refused]
    times = at[refused]
    rates: list[float] = []
    lag = 4
    while lag < times.size:
        between = times[lag:] - times[:-lag]
        count = accepted[lag:] - accepted[:-lag]
        enough = (between > 0) & (count >= _COUNTED)
        if enough.any():
            rates += np.quantile(count[enough] / between[enough], (0.5, 0.9, 1.0)).tolist()
        lag = max(lag + 1, lag * 7 // 5)
    return np.unique(np.array(rates))


def _used(at: Floats, taken: Bools, per_second: float) -> Floats:
    """What is used of a bucket when each call arrives, before it takes any."""
    drift = np.cumsum(taken) - taken - per_second * at
    return drift - np.minimum.accumulate(drift)


def _split(at: Floats, refused: Bools, per_second: float) -> tuple[float, float, float, float]:
    """How badly a bucket of the best size tells the two apart; that size; and the shares of errors that
    `UNEVEN_NS` cannot have made."""
    used = _used(at, ~refused, per_second)
    rejected, accepted = np.sort(used[refused]), np.sort(used[~refused])
    marks = np.concatenate((np.quantile(rejected, _QUANTILES), np.quantile(accepted, 1 - _QUANTILES)))
    marks = np.sort(marks)
    marks = (marks[1:] + marks[:-1]) / 2

    def errors(rejected: Floats, accepted: Floats, marks: Floats) -> tuple[Floats, Floats]:
        unexplained = np.searchsorted(rejected, marks, side="right") / rejected.size
        return unexplained, 1 - np.searchsorted(accepted, marks, side="right") / accepted.size

    # What was used when those had come that started a little later, and before those that started a little
    # earlier.
    uneven = UNEVEN_NS / 1e9
    later = np.searchsorted(at, at + uneven, side="right") - 1
    earlier = np.searchsorted(at, at - uneven, side="left")
    slack = min(0.5, per_second * uneven)
    most = np.sort(np.maximum(used, used[later] + ~refused[later])[refused]) + slack
    fewest = np.sort(np.minimum(used, used[earlier])[~refused]) - slack
    plain = np.maximum(*errors(rejected, accepted, marks))
    unexplained, over = errors(most, fewest, marks)
    clear = np.maximum(unexplained, over)
    chosen = int(np.argmin(np.where(clear <= clear.min() + 0.005, plain, 2.0)))
    # A call is refused when less than one is left: above size - 1.
    return float(plain[chosen]), float(marks[chosen]) + 1, float(unexplained[chosen]), float(over[chosen])


def _busiest(order: Ints, refused: Bools, started: Ints) -> Ints:
    """The neighbouring rows with the most refusals, from a pause on: the bucket is full then."""
    if order.size <= _MOST:
        return order
    sums = np.concatenate(([0], np.cumsum(refused)))
    first = int(np.argmax(sums[_MOST:] - sums[:-_MOST]))
    since = max(0, first - _MOST // 2)
    first = (
        since + int(np.argmax(np.diff(started[since : first + 1], prepend=started[since]))) if first else 0
    )
    return order[first : first + _MOST]


def _share_below(values: Ints, limits: Ints) -> Floats:
    return np.searchsorted(np.sort(values), limits, side="left") / values.size


@dataclass(frozen=True, slots=True)
class Refusing:
    threshold: Threshold | None
    rate: Rate | None
    known: bool
    words: str


def refusing(calls: Calls, others: Ints) -> Refusing:
    refused = calls.refused
    count = int(refused.sum())
    if not count:
        return Refusing(None, None, True, "")
    if count < FEWEST:
        return Refusing(None, None, False, f"{count} refusals, too few to tell what for")
    found = threshold(calls, others)
    rated = None
    if found is None or found.errors > _CLEAR:
        rated = rate(calls, np.ones(refused.size, dtype=np.bool_))
    if found is not None and (rated is None or found.errors <= rated.errors):
        return Refusing(found, None, True, "")
    if rated is not None:
        return Refusing(None, rated, True, "")
    both = _both(calls, others)
    if both is not None:
        return both
    share = count / refused.size
    words = f"{100 * share:.0f} % of the calls are refused, for neither their number in flight nor their rate"
    return Refusing(None, None, False, words)


def _both(calls: Calls, others: Ints) -> Refusing | None:
    """A capacity that no accepted call exceeds, and a rate that explains the refusals below it."""
    refused = calls.refused
    fewest, most = bounds_in_flight(calls)
    least = int(np.quantile(fewest[~refused], 0.999)) + 1
    tried = np.arange(least, max(least, int(np.quantile(others[~refused], 0.999))) + 2)
    wrong = [
        (~refused & (others >= at)).sum() + (refused & (others >= least) & (others < at)).sum()
        for at in tried
    ]
    at = int(tried[int(np.argmin(wrong))])
    above = refused & (others >= at)
    near = (others < at) & (others >= at - max(3, at // 10))
    # Near the capacity calls are accepted, at it none are.
    if above.sum() < 2 * FEWEST or not near.any() or np.mean(~refused[near]) < 0.3:
        return None
    rated = rate(calls, ~refused | (refused & (most < at)))
    if rated is None:
        return None
    return Refusing(Threshold(at, at, at, 0.0, above), rated, True, "")
