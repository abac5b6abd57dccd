"""Whether services depend on what they should not: the load, or the time.

Under a server's own rule they are draws from one distribution, whatever the load.
"""

from __future__ import annotations

import numpy as np

from profiler.prediction.calls import Floats, Ints
from profiler.prediction.waiting import Evidence, Explained

_LOADS = 5


def dependence(evidence: Evidence, explained: Explained) -> tuple[float, int, int]:
    """The factor by which services differ with the number in flight at their start, as far as it is no
    chance; and the numbers between which they do (each call itself counted)."""
    others = evidence.others
    logs = evidence.scaled(explained.services)
    edges = np.unique(np.quantile(others, np.linspace(0, 1, _LOADS + 1)[1:-1]))
    if explained.capacity is not None:
        # Calls that found room are one of the loads.
        edges = np.unique(np.append(edges[edges >= explained.capacity], explained.capacity))
    load = np.searchsorted(edges, others, side="right")
    factor, low, high = _differ(logs, load, evidence.block)
    at = [float(np.median(others[load == each])) + 1 if (load == each).any() else 1.0 for each in (low, high)]
    return factor, round(min(at)), round(max(at))


def changes(evidence: Evidence, explained: Explained) -> float:
    """The factor by which services differ between the parts of the recording, as far as it is no chance."""
    since = evidence.started - evidence.started[0]
    part = np.minimum(3, since * 4 // max(1, int(since[-1]))).astype(np.int64)
    factor, _, _ = _differ(evidence.scaled(explained.services), part, evidence.block)
    return factor


def _differ(logs: Floats, part: Ints, block: Ints) -> tuple[float, int, int]:
    """The factor by which the parts with the lowest and highest mean differ, less two standard errors; which.

    Calls of one block and part count as one for the standard error, since calls of a loop are correlated.
    """
    means, errors, known = [], [], []
    for each in np.unique(part):
        rows = part == each
        count = np.bincount(block[rows])
        sums = np.bincount(block[rows], weights=logs[rows])
        count, sums = count[count > 0], sums[count > 0]
        if rows.sum() < 40 or count.size < 3:
            continue
        mean = sums.sum() / count.sum()
        errors.append(float(np.sqrt(((sums - mean * count) ** 2).sum()) / count.sum()))
        means.append(float(mean))
        known.append(int(each))
    if len(means) < 2:
        return 1.0, 0, 0
    low, high = int(np.argmin(means)), int(np.argmax(means))
    error = float(np.hypot(errors[low], errors[high]))
    factor = float(np.exp(max(0.0, means[high] - means[low] - 2 * error)))
    return factor, known[low], known[high]
