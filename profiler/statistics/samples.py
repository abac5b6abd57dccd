"""Durations of a series of any length, in bounded memory. Pure."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

FEWEST_FOR_TAIL = 100
"""Calls that a tool must have before its tail is shown."""
EXACT = 20_000
"""Samples of a series that are kept as they are."""
_RELATIVE_ERROR = 0.005
_GAMMA = (1 + _RELATIVE_ERROR) / (1 - _RELATIVE_ERROR)


class Samples:
    """Durations in nanoseconds. Quantiles are exact up to `EXACT` of them, then within 0.5 %."""

    def __init__(self) -> None:
        self.count = 0
        self._kept = array("q")
        self._bins: dict[int, int] = {}

    def add(self, value: int) -> None:
        self.count += 1
        self._kept.append(value)
        if len(self._kept) >= EXACT:
            self._fold()

    def quantile(self, share: float) -> float | None:
        """In seconds; None of none."""
        if not self.count:
            return None
        if not self._bins:
            return float(np.quantile(np.frombuffer(self._kept, dtype=np.int64), share)) / 1e9
        self._fold()
        rank = share * (self.count - 1)
        seen = 0
        for number in sorted(self._bins):
            seen += self._bins[number]
            if seen > rank:
                return 0.0 if number < 0 else float(2 * _GAMMA**number / (_GAMMA + 1)) / 1e9
        raise AssertionError("unreachable: the bins hold every sample")

    def _fold(self) -> None:
        values = np.frombuffer(self._kept, dtype=np.int64)
        numbers = np.full(values.size, -1, dtype=np.int64)
        positive = values > 0
        numbers[positive] = np.ceil(np.log(values[positive]) / np.log(_GAMMA)).astype(np.int64)
        for number, count in zip(*np.unique(numbers, return_counts=True), strict=True):
            self._bins[int(number)] = self._bins.get(int(number), 0) + int(count)
        self._kept = array("q")


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of `count` samples, in seconds; p95 and p99 are None below `FEWEST_FOR_TAIL` of them."""

    count: int
    p50: float | None
    p95: float | None
    p99: float | None

    @classmethod
    def of(cls, samples: Samples) -> Percentiles:
        tail = samples.count >= FEWEST_FOR_TAIL
        p95, p99 = (samples.quantile(share) if tail else None for share in (0.95, 0.99))
        return cls(samples.count, samples.quantile(0.5), p95, p99)
