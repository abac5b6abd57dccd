"""What a server refuses for, as a client sees it that is busy itself."""

from __future__ import annotations

import heapq
import random
from dataclasses import replace

import numpy as np
import pytest

from profiler.prediction.servers.calls import Calls, in_flight
from profiler.prediction.servers.refusals import refusing

MS = 1_000_000


def refused_above(capacity: int, *, late_ms: float, rows: int = 4000) -> Calls:
    """Calls at a server that refuses above `capacity`; the client sees an end `late_ms` late."""
    draw = random.Random(3)
    now, running, started, ended, refused, late = 0, [], [], [], [], []
    for _ in range(rows):
        now += int(draw.expovariate(1 / 12) * MS)
        while running and running[0] <= now:
            heapq.heappop(running)
        full = len(running) >= capacity
        took = 2 * MS if full else int(draw.lognormvariate(0, 0.8) * 200 * MS)
        busy = int(draw.expovariate(1.0) * 2 * late_ms * MS)
        unseen = int(draw.random() * busy)
        if not full:
            heapq.heappush(running, now + took)
        started.append(now)
        ended.append(now + took + unseen)
        refused.append(full)
        late.append(busy)
    columns = [np.array(column, np.int64) for column in (started, ended)]
    group = np.zeros(rows, np.int64)
    return Calls(*columns, np.array(refused), group, late=np.array(late, np.int64))


@pytest.mark.parametrize("late_ms", [0.0, 10.0, 25.0])
def test_capacity_is_found_by_a_client_that_knows_how_late_it_was(late_ms: float) -> None:
    calls = refused_above(12, late_ms=late_ms)
    found = refusing(calls, in_flight(calls))
    assert found.known
    assert found.threshold is not None
    assert found.threshold.lowest <= 12 <= found.threshold.highest
    assert found.threshold.highest - found.threshold.lowest <= 1


def test_client_that_does_not_know_it_cannot_tell() -> None:
    calls = replace(refused_above(12, late_ms=25.0), late=None)
    found = refusing(calls, in_flight(calls))
    assert not found.known
    assert found.words.endswith("for neither their number in flight nor their rate")
