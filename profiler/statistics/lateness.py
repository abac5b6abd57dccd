"""How much of a figure is the client's own: one that is busy, or is not run, sends late and notices late.

Each model request and tool call was observed with the time that the client took to send it (`sending_ns`),
and with that for which its end may have gone unnoticed, at most (`late_ns`). How late it was between 0 and
that is not known; what happens while a client is busy happens at any time of that, one as likely as another.
A figure without the client is estimated as the quantile of the durations less the sending and a share of the
rest. The shares were found by experiment (`benchmarks/validity.py`): at the median half of it, in the tail
more, since what is in the tail is there because it was noticed late.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from profiler.statistics.quantiles import LEVELS, quantile
from profiler.statistics.table import NONE, Ints, Table
from profiler.statistics.windows import Indices, completed, latency, members

LIMIT_SHARE = 0.05
LIMIT_SECONDS = 0.002
"""A figure is off when the client's part of it is above both."""

CAUTION = 0.85
"""The share of both limits from which on an estimate counts as off: it may be too low by a seventh."""

SHARES = {"p50": 0.5, "p95": 0.9}
"""How much of the time for which an end may have gone unnoticed counts, by the quantile of the figure."""

DOUBT = 2 / math.sqrt(12)
"""Added to these shares, over √n for n that were observed: two standard deviations of the mean of n shares
that may each be any from 0 to 1."""

_NS = 1e-9


@dataclass(frozen=True, slots=True)
class ClientPart:
    """The client's own part of a figure: `late_seconds` of the `seconds` of `figure` (`loop p95`)."""

    figure: str
    seconds: float
    late_seconds: float

    @property
    def share(self) -> float:
        """Of what the figure would be without it; infinite where it is all of it."""
        left = self.seconds - self.late_seconds
        return self.late_seconds / left if left > 0 else float("inf")

    @property
    def excess(self) -> float:
        """How far it is beyond the limits; above `CAUTION` the figure counts as off."""
        return min(self.share / LIMIT_SHARE, self.late_seconds / LIMIT_SECONDS)


def client_parts(table: Table, due: Indices) -> list[ClientPart]:
    """The client's parts of p50 and p95 of loop, model and each tool, in the loops that were due.

    Empty where it was not observed: in records of old, of agents without an event loop.
    """
    answered = completed(table, due)
    rounds, calls = members(table, due, table.round_loop), members(table, due, table.call_loop)
    calls = calls[table.duration[calls] != NONE]
    # Of a load without a model the figures are those of calls that ended well: a refusal, which takes next to
    # nothing, would be all client.
    alone = table.requests[table.call_loop[calls]] == 0
    calls = calls[~(alone & (table.call_error[calls] != NONE))]
    found = list(
        _parts("loop", latency(table, answered), table.loop_sending[answered], table.loop_late[answered])
    )
    found += _parts("model", table.model_wall[rounds], table.model_sending[rounds], table.model_late[rounds])
    for code in np.unique(table.call_tool[calls]):
        rows = calls[table.call_tool[calls] == code]
        found += _parts(
            table.tools[code], table.duration[rows], table.call_sending[rows], table.call_late[rows]
        )
    return found


def worst(parts: Sequence[ClientPart]) -> ClientPart | None:
    """The figure that is the furthest off."""
    return max(parts, key=lambda part: part.excess, default=None)


def _parts(name: str, wall: Ints, sending: Ints, late: Ints) -> Iterator[ClientPart]:
    if not late.any():
        return
    for level, expected in SHARES.items():
        share = min(1.0, expected + DOUBT / math.sqrt(wall.size))
        without = np.maximum(wall - sending - share * late, 0.0)
        reported, left = (quantile(series, LEVELS[level]) or 0.0 for series in (wall, without))
        yield ClientPart(f"{name} {level}", reported * _NS, (reported - left) * _NS)
