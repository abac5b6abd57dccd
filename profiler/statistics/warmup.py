"""Where a series settles, so that what came before can be left out.

MSER-5 (White 1997; White, Cobb & Spratt 2000): of the means z of batches of five, drop the first
d that minimise the squared standard error of the mean of the rest,

    sum((z_i - mean(z_d...))^2, i >= d) / (n - d)^2,    d <= n / 2.

When the minimum sits at the end of the search, the series has shown no steady state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from profiler.statistics.quantiles import Floats

BATCH = 5
FEWEST_BATCHES = 20


@dataclass(frozen=True, slots=True)
class WarmUp:
    """`skip` samples of the series belong to the warm-up; `steady` is None when it is too short to tell."""

    skip: int
    steady: bool | None


def mser5(series: Floats) -> WarmUp:
    """The warm-up of a series in the order in which it was made.

    Fewer than `FEWEST_BATCHES` whole batches: nothing is skipped and nothing is claimed (of stationary
    series of 10 batches, one in six would be called unsteady; of 20, one in twenty). Without a
    steady state nothing is skipped either: no part of the series stands for the system.
    """
    count = series.size // BATCH
    if count < FEWEST_BATCHES:
        return WarmUp(0, None)
    z = series[: count * BATCH].reshape(count, BATCH).mean(axis=1)
    # Sums over the tail z[d:] for every d at once, about the overall mean for numerical accuracy.
    centred = z - z.mean()
    left = count - np.arange(count)
    total = np.cumsum(centred[::-1])[::-1]
    squares = np.cumsum((centred**2)[::-1])[::-1]
    statistic = (squares - total**2 / left) / left**2
    last = count // 2
    best = int(np.argmin(statistic[: last + 1]))
    if best >= last - max(1, count // 50):  # "at the end" within the resolution of the batches
        return WarmUp(0, False)
    return WarmUp(best * BATCH, True)


def of_blocks(blocks: Sequence[Floats]) -> WarmUp:
    """One warm-up for the blocks of a strategy, from positive series aligned at their starts.

    The k-th logarithms of all blocks are averaged first (Welch's method), so that one slow loop
    in one block is not taken for a warm-up. Blocks shorter than half the median are not asked.
    """
    sizes = [block.size for block in blocks if block.size]
    if not sizes:
        return WarmUp(0, None)
    enough = [block for block in blocks if block.size * 2 >= float(np.median(sizes))]
    shortest = min(block.size for block in enough)
    logs = np.log(np.maximum(np.stack([block[:shortest] for block in enough]), 1.0))
    return mser5(logs.mean(axis=0))
