"""When loops start: the arrivals of an open load; the starts and pauses of the agents of a closed one. Pure.

Arrivals are computed from the start of the trial and a count, never from "now": so a timer that is late
delays one arrival, and none after it.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from profiler.errors import UsageError

_ARRIVALS = re.compile(r"(?:(constant|poisson):)?(\d+(?:\.\d+)?)(?:/(s|m|min))?")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds that an agent waits after a loop that failed: doubled with every further one in a row."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """`rate` loops a second from `sources` sources together; Poisson, or evenly spaced when `constant`.

    Each Locust user is one source with a rate of rate / sources. N Poisson sources together are one Poisson
    source of N times the rate (and N evenly spaced ones with spread phases are evenly spaced), so whatever
    scales the users scales the load: ramps, shapes, workers.
    """

    rate: float
    sources: int
    constant: bool = False

    @classmethod
    def parse(cls, spec: str, sources: int = 1) -> Arrivals:
        """`5/s`, `90/m`, `constant:5/s`. Raises `UsageError`."""
        match = _ARRIVALS.fullmatch(spec.strip())
        if match is None or not float(match[2]):
            raise UsageError(f"--arrivals {spec}: expected a rate such as 5/s or constant:5/s")
        rate = float(match[2]) / (60 if match[3] in ("m", "min") else 1)
        return cls(rate, sources, match[1] == "constant")

    def of_source(self, number: int, seed: str) -> Iterator[float]:
        """When the arrivals of source `number` are due, in seconds from the start of the trial; without end.

        `seed` decides the draws: it is the same for every strategy of a block.
        """
        own = self.rate / self.sources
        if self.constant:
            phase = (number % self.sources) / self.rate
            return (phase + k / own for k in itertools.count())
        draw = random.Random(f"{seed}/{number}")
        return itertools.accumulate(draw.expovariate(own) for _ in itertools.count())

    def expected(self, users: int, seconds: float) -> float:
        """Arrivals that `users` sources make on average in that time."""
        return self.rate / self.sources * users * seconds


def scaled(spec: str, factor: float) -> str:
    """The spec for `factor` times as many arrivals."""
    arrivals = Arrivals.parse(spec)
    kind = "constant:" if arrivals.constant else ""
    return f"{kind}{arrivals.rate * factor:.6f}/s"


GOLDEN = 0.618033988749895
"""The golden ratio less one: its multiples, modulo 1, are spread evenly however many there are."""


def start_offset(source: int, spread_seconds: float) -> float:
    """Seconds after the start of a trial at which agent number `source` of a closed load begins."""
    return source * GOLDEN % 1 * spread_seconds


def pause_after(failures: int, elapsed: float) -> float:
    """Seconds an agent waits after its `failures`-th failed loop in a row, which took `elapsed`.

    Agents that are refused at once would otherwise ask again as fast as they can: a load that nobody asked
    for, on a server that is in trouble. A loop that took longer than the pause needs none.
    """
    if failures < 1:
        return 0.0
    return max(0.0, min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 1, 16)) - elapsed)


def share(total: int, worker: int, workers: int) -> int:
    """Worker `worker`'s part of a limit for all of them; at least 1."""
    return max(1, total // workers + (worker < total % workers))
