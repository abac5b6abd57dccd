"""Whether services depend on what they should not: the load, or the time.

Under a server's own rule they are draws from one distribution, whatever the load.
"""

from __future__ import annotations

import numpy as np

from profiler.prediction.servers.calls import Floats, Ints
from profiler.prediction.servers.likelihood import Evidence, Explained

_LOADS = 5
_ERRORS = 2.0
"""Standard errors that two loads may differ by."""
_ERRORS_OF_PARTS = 2.5
"""The same of parts of the recording: the largest of six differences exceeds it in one of twenty."""


def dependence(evidence: Evidence, explained: Explained) -> tuple[float, int, int]:
    """The factor by which services differ with the number in flight at their start, as far as it is no
    chance; and the numbers between which they do (each call itself counted)."""
    others = evidence.others
    logs = evidence.scaled(explained.services)
    if evidence.view != "stretch":  # most of what the load does, it does from stretch to stretch
        logs = logs - evidence.centre(logs, evidence.view, np.ones(logs.size, dtype=np.bool_))
    edges = np.unique(np.quantile(others, np.linspace(0, 1, _LOADS + 1)[1:-1]))
    if explained.capacity is not None:
        # Calls that found room are one of the loads.
        edges = np.unique(np.append(edges[edges >= explained.capacity], explained.capacity))
    load = np.searchsorted(edges, others, side="right")
    factor, low, high = _differ(logs, load, evidence, _ERRORS)
    at = [float(np.median(others[load == each])) + 1 if (load == each).any() else 1.0 for each in (low, high)]
    return factor, round(min(at)), round(max(at))


def changes(evidence: Evidence, explained: Explained) -> float:
    """The factor by which services differ between the parts of the recording, as far as it is no chance.

    Parts are its blocks where levels were repeated, which are compared beside the effect of the levels; else
    quarters of its time.
    """
    logs = evidence.scaled(explained.services)
    if evidence.repeated is not None:
        part = evidence.repeated.block
        logs = logs - evidence.repeated.of_level(logs)
    else:
        since = evidence.started - evidence.started[0]
        part = np.minimum(3, since * 4 // max(1, int(since[-1]))).astype(np.int64)
    factor, _, _ = _differ(logs, part, evidence, _ERRORS_OF_PARTS)
    return factor


def _differ(logs: Floats, part: Ints, evidence: Evidence, errors: float) -> tuple[float, int, int]:
    """The factor by which the lowest and the highest mean of parts differ, less so many errors; and which."""
    means, spreads, known = [], [], []
    for each in np.unique(part):
        rows = part == each
        found = [_error(logs[rows], cluster[rows]) for cluster in evidence.clusters]
        if rows.sum() < 40 or found[0] is None:
            continue
        means.append(float(logs[rows].mean()))
        spreads.append(max(one for one in found if one is not None))
        known.append(int(each))
    if len(means) < 2:
        return 1.0, 0, 0
    low, high = int(np.argmin(means)), int(np.argmax(means))
    error = float(np.hypot(spreads[low], spreads[high]))
    factor = float(np.exp(max(0.0, means[high] - means[low] - errors * error)))
    return factor, known[low], known[high]


def _error(logs: Floats, cluster: Ints) -> float | None:
    """The standard error of the mean of calls that are alike within clusters; None of fewer than three."""
    count = np.bincount(cluster)
    sums = np.bincount(cluster, weights=logs)
    count, sums = count[count > 0], sums[count > 0]
    if count.size < 3:
        return None
    mean = sums.sum() / count.sum()
    return float(np.sqrt(((sums - mean * count) ** 2).sum()) / count.sum())
