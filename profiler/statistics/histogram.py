"""A series of any length in bounded memory: exact samples first, logarithmic bins after.

Bin k holds the values in (γ^(k-1), γ^k], γ = (1 + α) / (1 - α), and reports 2 γ^k / (γ + 1), which is
within a relative error of α of each of them (Masson et al., DDSketch, 2019). Merging is adding,
so the error does not grow with the number of workers.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

ALPHA = 0.005
EXACT_LIMIT = 1_000_000

_GAMMA = (1 + ALPHA) / (1 - ALPHA)
_LOG_GAMMA = math.log(_GAMMA)


@dataclass(slots=True)
class Histogram:
    """Non-negative integers (nanoseconds). Exact while there are at most `limit`, then within `ALPHA`.

    Below and at 0 there are no logarithms: those are counted in `zeros`.
    """

    limit: int = EXACT_LIMIT
    samples: array[int] | None = field(default_factory=lambda: array("q"))
    zeros: int = 0
    bins: dict[int, int] = field(default_factory=dict)
    count: int = 0
    total: int = 0

    @property
    def exact(self) -> bool:
        """Whether every sample is still there."""
        return self.samples is not None

    def add(self, value: int) -> None:
        """Record one value."""
        self.count += 1
        self.total += value
        if self.samples is None:
            self._bin(value, 1)
            return
        self.samples.append(value)
        if len(self.samples) > self.limit:
            self._fold()

    def extend(self, values: Iterable[int]) -> None:
        """Record several values."""
        for value in values:
            self.add(value)

    def merge(self, other: Histogram) -> None:
        """Add what another histogram holds; `other` is left as it is."""
        if other.samples is not None:
            self.extend(other.samples)
            return
        self._fold()
        self.count += other.count
        self.total += other.total
        self.zeros += other.zeros
        for index, count in other.bins.items():
            self.bins[index] = self.bins.get(index, 0) + count

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

    def mean(self) -> float | None:
        """The exact mean."""
        return self.total / self.count if self.count else None

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads, for sending to another process."""
        return {
            "count": self.count,
            "total": self.total,
            "samples": None if self.samples is None else self.samples.tolist(),
            "zeros": self.zeros,
            "bins": {str(index): count for index, count in self.bins.items()},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], limit: int = EXACT_LIMIT) -> Self:
        """Inverse of `to_json`."""
        return cls(
            limit=limit,
            samples=None if data["samples"] is None else array("q", data["samples"]),
            zeros=data["zeros"],
            bins={int(index): count for index, count in data["bins"].items()},
            count=data["count"],
            total=data["total"],
        )

    def _fold(self) -> None:
        samples, self.samples = self.samples or (), None
        for value in samples:
            self._bin(value, 1)

    def _bin(self, value: int, count: int) -> None:
        if value <= 0:
            self.zeros += count
            return
        index = math.ceil(math.log(value) / _LOG_GAMMA)
        self.bins[index] = self.bins.get(index, 0) + count
