"""Whether *valid* means valid, against the log of a server that shares no code with ours (`other_server.py`).

Nothing here depends on how busy the machine is: where the log says that figures are off, they must be called
invalid. That figures which are not off are called valid is counted in `benchmarks/validity.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.validity import Condition, Disturbance, measure

HEADROOM = 2.0
"""How many times beyond what is off: the estimate, like the log, has an error of its own."""


def condition(**changes: object) -> Condition:
    fields: dict[str, object] = {
        "number": 1,
        "behaviour": "constant",
        "seconds": 0.05,
        "model_seconds": 0.1,
        "servers": 4,
        "calls": 3,
        "users": 4,
        "computing_seconds": 0.0,
        "disturbances": {"gathered": Disturbance()},
        "window_seconds": 3,
    }
    return Condition(**(fields | changes))  # type: ignore[arg-type]


CONDITIONS = {
    "disturbed in turn": condition(
        disturbances={
            "gathered": Disturbance("stops", 0.08, 6.0),
            "sequential": Disturbance(),
            "semaphore:4": Disturbance("burner", 2),
        }
    ),
    "too many agents that compute": condition(
        users=32, seconds=0.02, model_seconds=0.02, computing_seconds=0.01
    ),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_figures_that_the_log_contradicts_are_called_invalid(name: str, tmp_path: Path) -> None:
    judged = measure(CONDITIONS[name], tmp_path)
    assert [one.strategy for one in judged] == list(CONDITIONS[name].disturbances)
    for one in judged:
        assert one.deviations, one.line()
        assert one.called or one.worst <= HEADROOM, one.line()
    if name == "disturbed in turn":
        stopped = judged[0]
        assert stopped.worst > 1, stopped.line()  # 80 ms, six times a second
        assert stopped.called == ("machine_busy",), stopped.sentences
