"""Calls and replies of a recording as columns, and what they have in common. Pure."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from profiler.prediction.fitting import Fitted
from profiler.prediction.scenario.fit import Common

Floats = NDArray[np.float64]

ENOUGH = 100
"""Rounds or calls from which a difference between rounds is looked for."""
SHOWS = 0.02
"""A correlation below this is taken for none."""


class CallColumns(NamedTuple):
    """The calls of all loops as columns; `round` numbers the rounds of all loops, `turn` those of a loop.

    `first`: it is the first of its round. Service of calls that were refused is not known: `known` is False.
    """

    tool: NDArray[np.int64]
    seconds: Floats
    known: NDArray[np.bool_]
    loop: NDArray[np.int64]
    round: NDArray[np.int64]
    turn: NDArray[np.int64]
    fan_out: NDArray[np.int64]
    first: NDArray[np.bool_]
    weight: Floats

    @classmethod
    def of(cls, fitted: Fitted) -> CallColumns:
        rows: list[tuple[float, ...]] = []
        number = 0
        for place, loop in enumerate(fitted.loops):
            turn = 0
            for one in loop.rounds:
                if not one.calls:
                    continue
                count = len(one.calls)
                rows += [
                    (
                        call.tool,
                        call.service_ns,
                        not call.filled,
                        place,
                        number,
                        turn,
                        count,
                        n == 0,
                        loop.weight,
                    )
                    for n, call in enumerate(one.calls)
                ]
                number, turn = number + 1, turn + 1
        columns = np.array(rows, dtype=np.float64).reshape(len(rows), 9).T
        whole = columns[[0, 3, 4, 5, 6]].astype(np.int64)
        return cls(
            whole[0],
            columns[1] / 1e9,
            columns[2] > 0,
            whole[1],
            whole[2],
            whole[3],
            whole[4],
            columns[7] > 0,
            columns[8],
        )


class ReplyColumns(NamedTuple):
    """The model's replies of all loops as columns; 0: not known."""

    seconds: Floats
    first: Floats
    output: Floats
    input: Floats
    loop: NDArray[np.int64]
    weight: Floats

    @classmethod
    def of(cls, fitted: Fitted) -> ReplyColumns:
        rows = [
            (
                one.service_ns,
                one.first_token_ns,
                one.output_tokens,
                one.input_tokens,
                place,
                loop.weight,
            )
            for place, loop in enumerate(fitted.loops)
            for one in loop.rounds
        ]
        columns = np.array(rows, dtype=np.float64).reshape(len(rows), 6).T
        return cls(
            columns[0] / 1e9,
            columns[1] / 1e9,
            columns[2],
            columns[3],
            columns[4].astype(np.int64),
            columns[5],
        )


def scores(values: Floats, weights: Floats | None = None) -> Floats:
    """The values' (weighted) ranks as standard normal numbers; equal values have equal ones."""
    if values.size < 2:
        return np.zeros(values.size)
    if weights is None:
        weights = np.ones(values.size)
    different, place = np.unique(values, return_inverse=True)
    heavy = np.bincount(place, weights, minlength=different.size)
    found = ndtri((np.cumsum(heavy) - heavy / 2) / heavy.sum())[place]
    middle = np.average(found, weights=weights)
    spread = float(np.sqrt(np.average((found - middle) ** 2, weights=weights)))
    scaled: Floats = (found - middle) / spread if spread > 0 else found * 0
    return scaled


def common_of(calls: CallColumns, replies: ReplyColumns) -> Common:
    """Every loop counts as much as any other: among all calls those of large loops would be most, and what
    large loops have in common differs less."""
    known = calls.known
    loops = int(max(calls.loop.max(initial=-1), replies.loop.max(initial=-1))) + 1
    each = np.maximum(1, np.bincount(calls.loop, minlength=loops))[calls.loop]
    z = np.zeros(calls.tool.size)
    for tool in np.unique(calls.tool):
        mine = known & (calls.tool == tool)
        z[mine] = scores(calls.seconds[mine], 1 / each[mine])
    within, across = _pairs(z[known], calls.loop[known], calls.round[known])
    asked = np.maximum(1, np.bincount(replies.loop, minlength=loops))
    of_reply = scores(replies.seconds, 1 / asked[replies.loop])
    _, model_loop = _pairs(of_reply, replies.loop, np.arange(replies.loop.size))
    size = 0.0
    first = np.flatnonzero(calls.first)
    number = np.bincount(calls.round[known], minlength=first.size)
    some = number > 0
    if some.sum() >= ENOUGH:
        rounds = np.maximum(1, np.bincount(calls.loop[first], minlength=loops))[calls.loop[first]]
        of_round = np.bincount(calls.round[known], z[known], minlength=first.size) / np.maximum(1, number)
        sizes = scores(calls.fan_out[first].astype(float), 1 / rounds)
        size = _shown(float(np.average((of_round * sizes)[some], weights=1 / rounds[some])))
    model_calls = 0.0
    number = np.bincount(calls.loop[known], minlength=loops)
    both = (number > 0) & (np.bincount(replies.loop, minlength=loops) > 0)
    if both.sum() >= ENOUGH // 2:
        of_calls = np.bincount(calls.loop[known], z[known], minlength=loops)[both] / number[both]
        of_model = np.bincount(replies.loop, of_reply, minlength=loops)[both] / asked[both]
        model_calls = _shown(float(np.mean(of_calls * of_model)))
    return Common(
        round=_shown(within),
        loop=_shown(across),
        size=size,
        model_loop=_shown(model_loop),
        model_calls=model_calls,
        first_token=_linked(replies.seconds, replies.first),
        output_tokens=_linked(replies.seconds, replies.output),
        input_tokens=_linked(replies.seconds, replies.input),
    )


def _pairs(z: Floats, loop: NDArray[np.int64], round_: NDArray[np.int64]) -> tuple[float, float]:
    """The mean product of two scores of a round, and of two of different rounds of a loop, of each loop
    first, and then of all that have such pairs."""
    if not z.size:
        return 0.0, 0.0
    rounds, place = np.unique(round_, return_inverse=True)
    of = np.zeros(rounds.size, dtype=np.int64)
    of[place] = loop
    sums, number = np.bincount(place, z), np.bincount(place).astype(float)
    squares = np.bincount(place, z**2)
    several = number > 1
    within = (sums[several] ** 2 - squares[several]) / (number[several] * (number[several] - 1))
    in_loop = np.bincount(of[several], minlength=int(loop.max()) + 1)
    same = np.bincount(of[several], within, minlength=in_loop.size)[in_loop > 0] / in_loop[in_loop > 0]
    total, all_of = np.bincount(loop, z), np.bincount(loop).astype(float)
    others = all_of**2 - np.bincount(of, number**2, minlength=all_of.size)
    products = total**2 - np.bincount(of, sums**2, minlength=all_of.size)
    apart = products[others > 0] / others[others > 0]
    return (
        float(np.mean(same)) if same.size >= ENOUGH // 2 else 0.0,
        float(np.mean(apart)) if apart.size >= ENOUGH // 2 else 0.0,
    )


def _linked(seconds: Floats, other: Floats) -> float:
    known = other > 0
    if known.sum() < ENOUGH or np.ptp(other[known]) == 0:
        return 0.0
    return _shown(float(np.mean(scores(seconds[known]) * scores(other[known]))))


def _shown(correlation: float) -> float:
    return 0.0 if abs(correlation) < SHOWS else round(max(-1.0, min(1.0, correlation)), 3)
