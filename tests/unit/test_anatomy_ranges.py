"""Efficiency, speed-up, concurrency and what eager calls save stay in their range, whatever overlaps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.anatomy import eagerness, tool_phase
from profiler.records import LoopRecord, ModelCall, RoundRecord, ToolAttempt, ToolCall
from profiler.statistics.figures import figures
from profiler.statistics.table import tabulate
from profiler.statistics.windows import measure
from tests.unit.statistics_data import run, trial

TIME = st.integers(0, 1_000)


@st.composite
def calls(draw: st.DrawFn) -> ToolCall:
    """A call anywhere: before the reply, after the phase, never started, tried several times."""
    queued, started, ended = sorted(draw(st.tuples(TIME, TIME, TIME)))
    edges = sorted(draw(st.lists(st.integers(started, ended), max_size=6)))
    tries = tuple(ToolAttempt(*pair) for pair in zip(edges[::2], edges[1::2], strict=False))
    ran = draw(st.sampled_from([True, True, True, False]))
    return ToolCall(
        id="c",
        name=draw(st.sampled_from("ab")),
        ready_ns=draw(TIME),
        queued_ns=queued,
        started_ns=started if ran else None,
        ended_ns=ended,
        status="ok" if ran else "cancelled",
        attempts=tries if ran and len(tries) > 1 else (),
    )


@st.composite
def rounds(draw: st.DrawFn) -> RoundRecord:
    """A round whose calls keep to no order at all, as in a loop that is only watched."""
    start, replied, phase, end = sorted(draw(st.tuples(TIME, TIME, TIME, TIME)))
    return RoundRecord(
        index=0,
        started_ns=start,
        ended_ns=end,
        model=ModelCall("openai", "m", start, replied, streamed=True),
        tools_started_ns=replied,
        tools_ended_ns=phase,
        tool_calls=tuple(draw(st.lists(calls(), min_size=1, max_size=6))),
    )


@given(rounds())
def test_tool_phase_stays_in_its_range(round_: RoundRecord) -> None:
    found = tool_phase(round_)
    ran = [call for call in round_.tool_calls if call.started_ns is not None]
    if found is None:
        assert not ran
        return
    assert 0 <= found.critical_path_ns <= found.wall_ns
    assert found.critical_path_ns <= found.work_ns <= len(ran) * found.wall_ns
    tries = sum(len(call.attempts) or 1 for call in ran)
    assert 0 <= found.peak_concurrency <= min(tries, len(ran) + sum(bool(call.attempts) for call in ran))
    assert found.straggler_ratio >= 1


@given(rounds())
def test_what_eager_calls_save_stays_in_its_range(round_: RoundRecord) -> None:
    found = eagerness(round_)
    if found is None:
        return
    assert 0 <= found.overlapped_ns <= round_.model.duration_ns
    assert 0 <= found.bound_ns <= min(found.gathered_ns, found.wall_ns)
    assert found.gathered_ns - found.wall_ns <= found.gathered_ns - found.bound_ns  # saved, at most savable


@given(st.lists(st.lists(rounds(), min_size=1, max_size=3), min_size=3, max_size=9))
def test_figures_stay_in_their_range(loops: list[list[RoundRecord]]) -> None:
    records = [
        LoopRecord(
            id=str(number),
            strategy="gathered",
            provider="openai",
            model="m",
            started_ns=1_000_000_000 * (number % 3) + 1,
            ended_ns=1_000_000_000 * (number % 3) + 2_000,
            status="ok",
            rounds=tuple(made),
            trial=number % 3,
        )
        for number, made in enumerate(loops)
    ]
    table = tabulate(records)
    trials = [trial(block, "gathered", block * 1_000, block * 1_000 + 900, block=block) for block in range(3)]
    (group,) = measure(run(trials), table)
    found = figures(group, table)
    for bound in (found.efficiency.low, found.efficiency.value, found.efficiency.high):
        assert bound is None or 0 <= bound <= 1
    most = max(len(round_.tool_calls) for made in loops for round_ in made)
    assert found.speed_up.value is None or 0 <= found.speed_up.value <= most
    if found.overlap is not None:
        assert found.overlap.seconds >= 0
        assert found.overlap.saved_seconds <= found.overlap.savable_seconds + 1e-15


def test_call_that_outlives_its_round_is_in_the_wall() -> None:
    """The phase is 100 to 200; one call runs 50 to 400: 350 of 350."""
    call = ToolCall("c", "a", ready_ns=50, queued_ns=50, started_ns=50, ended_ns=400)
    model = ModelCall("openai", "m", 0, 100, streamed=True)
    found = tool_phase(RoundRecord(0, 0, 200, model, 100, 200, (call,)))
    assert found is not None
    assert (found.wall_ns, found.critical_path_ns) == (350, 350)


def test_call_between_two_tries_does_not_run() -> None:
    """A call tried at 0 to 10 and 90 to 100, another at 20 to 80: never two at once."""
    tried = ToolCall(*("c", "a", 0, 0, 0, 100), attempts=(ToolAttempt(0, 10, "error"), ToolAttempt(90, 100)))
    other = ToolCall("d", "a", 0, 0, 20, 80)
    found = tool_phase(RoundRecord(0, 0, 100, ModelCall("openai", "m", 0, 0), 0, 100, (tried, other)))
    assert found is not None
    assert (found.peak_concurrency, found.work_ns) == (1, 160)


def test_interval_of_efficiency_ends_at_one() -> None:
    """Blocks of 99, 99 and 60 %: as a ratio its interval would end above 1."""
    records = []
    for block, phase in enumerate((101, 101, 167)):
        call = ToolCall("c", "a", 0, 0, 0, 100)
        made = RoundRecord(0, 0, phase, ModelCall("openai", "m", 0, 0), 0, phase, (call,))
        start = block * 1_000_000_000 + 1
        records.append(
            LoopRecord("x", "gathered", "openai", "m", start, start + 500, "ok", (made,), trial=block)
        )
    table = tabulate(records)
    trials = [trial(block, "gathered", block * 1_000, block * 1_000 + 900, block=block) for block in range(3)]
    (group,) = measure(run(trials), table)
    found = figures(group, table).efficiency
    assert found.value == pytest.approx(300 / 369)
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < found.value < found.high <= 1
