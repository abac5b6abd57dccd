"""A series of any length in bounded memory: exact samples at first, logarithmic bins later.

Bin k holds the values in (γ^(k-1), γ^k], γ = (1 + α) / (1 - α), and reports 2 γ^k / (γ + 1), which is
within a relative error of α of each of them (Masson et al., DDSketch, 2019).
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field

ALPHA = 0.005
EXACT_LIMIT = 1_000_000

_GAMMA = (1 + ALPHA) / (1 - ALPHA)
_LOG_GAMMA = math.log(_GAMMA)


@dataclass(slots=True)
class Histogram:
    """Nanoseconds: exact while there are at most `limit` values, then within a relative error of `ALPHA`.

    Values that are not above 0 have no logarithm; they are counted in `zeros`, as 0.
    """

    limit: int = EXACT_LIMIT
    samples: array[int] | None = field(default_factory=lambda: array("q"))
    zeros: int = 0
    bins: dict[int, int] = field(default_factory=dict)
    count: int = 0

    def add(self, value: int) -> None:
        """Record one value."""
        self.count += 1
        if self.samples is None:
            self._bin(value)
            return
        self.samples.append(value)
        if len(self.samples) > self.limit:
            self._fold()

    def quantile(self, p: float) -> float | None:
        """The p-quantile: interpolated (type 7) while exact, then the value of the bin its rank is in."""
        if not self.count:
            return None
        rank = p * (self.count - 1)
        if self.samples is not None:
            ordered = sorted(self.samples)
            low = math.floor(rank)
            high = min(low + 1, self.count - 1)
            return ordered[low] + (rank - low) * (ordered[high] - ordered[low])
        left = round(rank) - self.zeros
        if left < 0:
            return 0.0
        value = 0.0
        for index in sorted(self.bins):
            value = 2 * _GAMMA**index / (_GAMMA + 1)
            left -= self.bins[index]
            if left < 0:
                break
        return value

    def _fold(self) -> None:
        samples, self.samples = self.samples or (), None
        for value in samples:
            self._bin(value)

    def _bin(self, value: int) -> None:
        if value <= 0:
            self.zeros += 1
            return
        index = math.ceil(math.log(value) / _LOG_GAMMA)
        self.bins[index] = self.bins.get(index, 0) + 1
