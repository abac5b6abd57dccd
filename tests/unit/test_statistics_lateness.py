"""How much of a figure is the client's own, and whose fault that was: values worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from profiler.records import LoopRecord
from profiler.rundir import ClientHealth
from profiler.statistics.caveats import Caveat
from profiler.statistics.faults import fault
from profiler.statistics.lateness import ClientPart, client_parts, worst
from profiler.statistics.summary import Summary, summarise
from profiler.statistics.table import tabulate
from tests.unit.statistics_data import loop, run, trial

MS = 1_000_000


def late(record: LoopRecord, sending: float, late: float, tool: float = 0.0) -> LoopRecord:
    """The loop with so many milliseconds of lateness at its model requests, and at the ends of its calls."""
    rounds = tuple(
        replace(
            one,
            model=replace(one.model, sending_ns=int(sending * MS), late_ns=int(late * MS)),
            tool_calls=tuple(replace(call, late_ns=int(tool * MS)) for call in one.tool_calls),
        )
        for one in record.rounds
    )
    return replace(record, rounds=rounds)


def parts(records: list[LoopRecord]) -> dict[str, ClientPart]:
    table = tabulate(records)
    return {part.figure: part for part in client_parts(table, np.arange(len(records)))}


def test_sending_counts_whole_and_what_may_have_gone_unnoticed_in_part() -> None:
    found = parts([late(loop(k * 200, 100.0), sending=4.0, late=10.0) for k in range(30)])
    assert list(found) == ["loop p50", "loop p95", "model p50", "model p95"]
    assert found["model p50"].seconds == pytest.approx(0.100)
    # 4 + (0.5 + 2 / √12 / √30) of 10, and 4 + all of 10, since 0.9 + the same is more
    assert found["model p50"].late_seconds == pytest.approx(0.010054, abs=1e-6)
    assert found["model p95"].late_seconds == pytest.approx(0.014)
    assert found["model p50"].share == pytest.approx(10.054 / 89.946, rel=1e-4)
    assert found["model p50"].excess == pytest.approx(10.054 / 89.946 / 0.05, rel=1e-4)


def test_the_more_were_observed_the_less_is_added_for_doubt() -> None:
    found = [
        parts([late(loop(k * 200, 100.0), sending=0.0, late=10.0) for k in range(count)])["model p50"]
        for count in (1, 4, 100, 10_000)
    ]
    assert [one.late_seconds for one in found] == pytest.approx(
        [0.01, 0.007887, 0.005577, 0.005058], abs=1e-6
    )


def test_lateness_of_a_few_moves_the_tail_and_not_the_median() -> None:
    records = [
        late(loop(k * 200, 100.0 + 40.0 * (k % 10 == 0)), 0.0, 40.0 * (k % 10 == 0)) for k in range(100)
    ]
    found = parts(records)
    assert found["model p50"].late_seconds == 0
    assert found["model p95"].late_seconds == pytest.approx(0.038309, abs=1e-6)  # 0.9 + 0.577 / √100 of 40


def test_each_tool_is_judged_by_its_own_median() -> None:
    records = [late(loop(k * 300, 100.0, calls=[(0.0, 20.0)]), 0.0, 1.0, tool=6.0) for k in range(30)]
    found = parts(records)
    (tool,) = [name for name in found if name.endswith("p50") and name.split()[0] not in ("loop", "model")]
    assert found[tool].late_seconds == pytest.approx(0.003632, abs=1e-6)
    assert found[tool].excess == pytest.approx(1.816, abs=1e-3)  # of 16.4 ms more than 5 %, and of 2 ms
    assert found["model p50"].excess < 1
    assert worst(list(found.values())) == found[tool.replace("p50", "p95")]


def test_what_is_small_in_milliseconds_or_in_share_is_not_off() -> None:
    assert ClientPart("tool p50", 0.006, 0.0019).excess == pytest.approx(0.95)
    assert ClientPart("model p50", 2.0, 0.09).excess == pytest.approx(0.09 / 1.91 / 0.05)
    assert ClientPart("loop p50", 0.05, 0.05).share == float("inf")


def test_where_nothing_was_observed_nothing_is_estimated() -> None:
    assert parts([loop(0, 100.0)]) == {}
    assert worst([]) is None


def test_time_of_a_loop_before_its_first_request_and_after_its_last_is_the_clients() -> None:
    one = late(loop(0, 100.0), sending=1.0, late=2.0)
    first = one.rounds[0]
    shifted = replace(one, started_ns=one.started_ns - 30 * MS, ended_ns=one.ended_ns + 5 * MS)
    table = tabulate([shifted])
    before = first.model.started_ns - shifted.started_ns
    assert table.loop_sending.tolist() == [before + 1 * MS + 5 * MS]
    assert table.loop_late.tolist() == [2 * MS]


# Whose fault it was:


def health(**counted: Any) -> ClientHealth:
    known = {"held_seconds": 0.0, "machine_seconds": 0.0, "delayed_seconds": 0.0, "cpu": 0.1, "seconds": 10.0}
    return ClientHealth("worker 0", 0, **(known | counted))


@pytest.mark.parametrize(
    ("healths", "whose"),
    [
        ([health(held_seconds=2.0, machine_seconds=0.3, delayed_seconds=0.5, cpu=0.8)], "client_saturated"),
        ([health(machine_seconds=1.6, cpu=0.25)], "machine_busy"),  # stopped
        ([health(machine_seconds=0.4, delayed_seconds=2.0, held_seconds=0.1)], "machine_busy"),  # crowded
        ([health(machine_seconds=4.0, delayed_seconds=4.5, throttled_seconds=4.2)], "container_throttled"),
        ([health(machine_seconds=4.0, delayed_seconds=4.5, throttled_seconds=0.1)], "machine_busy"),
        # Throttled now and then, and saturated all the time.
        ([health(held_seconds=5.0, machine_seconds=1.0, throttled_seconds=0.9)], "client_saturated"),
        ([ClientHealth("w0", loop_lag_p99=0.3, cpu=0.3)], "client_late"),
        ([ClientHealth("w0", loop_lag_p99=0.3, cpu=0.95)], "client_saturated"),
        ([], "client_late"),
        ([health(held_seconds=0.1), health(machine_seconds=3.0)], "machine_busy"),
    ],
)
def test_whose_fault_it_was(healths: list[ClientHealth], whose: str) -> None:
    assert fault(healths) == whose


def experiment(client: tuple[ClientHealth, ...] = (), **changes: Any) -> Summary:
    """`gathered` is late by 10 of 100 ms, `sequential` by nothing; a trial of each in three blocks."""
    trials, records = [], []
    for block in range(3):
        for place, strategy in enumerate(("gathered", "sequential")):
            index = 2 * block + place
            start = index * 10_000
            trials.append(trial(index, strategy, start, start + 9000, block=block))
            records += [
                late(loop(start + k * 200, 100.0, strategy=strategy, trial=index), 10.0 * (place == 0), 1.0)
                for k in range(40)
            ]
            # Strategies are only compared where some tool was called.
            records.append(loop(start + 8000, 50.0, [(0.0, 1.0)], strategy=strategy, trial=index))
    return summarise(run(trials, client=client, **changes), records)


def invalid(summary: Summary) -> list[Caveat]:
    return [caveat for caveat in summary.warnings if caveat.invalid]


def test_strategy_that_the_client_made_late_is_invalid_and_no_other() -> None:
    found = experiment(tuple(replace(health(held_seconds=3.0), trial=index) for index in (0, 2, 4)))
    (caveat,) = invalid(found)
    assert (caveat.kind, caveat.strategies) == ("client_saturated", ("gathered",))
    assert caveat.detail.startswith(
        "this client is saturated under gathered: 11 ms of the 100 ms of loop p95 went by in the client"
    )
    assert {one.strategy: one.valid for one in found.strategies} == {"gathered": False, "sequential": True}
    assert found.valid is False
    (verdict,) = found.verdicts
    assert (verdict.valid, verdict.sentence.startswith("invalid: ")) == (False, True)


@pytest.mark.parametrize(
    ("counted", "words", "remedy"),
    [
        (
            {"machine_seconds": 3.0, "delayed_seconds": 2.0, "waited": 0.87},
            "this machine is busy (its event loop was ready and did not run for 20 % of the time, something "
            "waited for a processor for 87 %) under gathered: ",
            "stop the other work, or use another machine",
        ),
        (
            {"machine_seconds": 3.0, "delayed_seconds": 4.0, "throttled_seconds": 3.9, "waited": 0.9},
            "this container is throttled (its event loop was ready and did not run for 40 % of the time) ",
            "raise its CPU quota, or use fewer agents",
        ),
        (
            {"held_seconds": None, "machine_seconds": None, "delayed_seconds": None},
            "cannot tell whose fault",
            "",
        ),
    ],
)
def test_remedy_fits_whose_fault_it_was(counted: dict[str, Any], words: str, remedy: str) -> None:
    client = tuple(replace(health(**counted), trial=index) for index in range(6))
    (caveat,) = invalid(experiment(client))
    assert words in caveat.detail
    assert caveat.remedy == remedy or not remedy


def test_agent_of_ones_own_is_said_to_be_in_it() -> None:
    (caveat,) = invalid(experiment((health(held_seconds=1.0),), arguments={"agent": "app:make"}))
    assert caveat.detail.endswith("went by in the client, the agent's CPU in it")


def test_counts_of_other_trials_are_not_this_strategys() -> None:
    busy = tuple(replace(health(cpu=0.99), trial=index) for index in (1, 3, 5))
    kinds = {caveat.strategies: caveat.detail for caveat in invalid(experiment(busy))}
    assert list(kinds) == [("gathered",), ("sequential",)]
    assert "kept a core 99 % busy" in kinds["sequential",]
    assert "kept a core" not in kinds["gathered",]
