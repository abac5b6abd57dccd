"""Tool capacity: rejection, queue, sharing, rates, schedules, in virtual time."""

from __future__ import annotations

from profiler.emulator.limits import Rejected, ToolCapacity
from profiler.scenarios.schema import Capacity, CapacityStep

MS = 1_000_000


def machine(scale: float = 1.0, **capacity: object) -> ToolCapacity:
    return ToolCapacity(Capacity(**capacity), scale, 0)  # type: ignore[arg-type]


def run(state: ToolCapacity, arrivals: list[tuple[int, int]], until: int = 10_000) -> dict[int, float]:
    """Arrivals (at ms, work ms) by their number → when each ended, in ms; without those rejected."""
    ended: dict[int, float] = {}
    for number, (at, work) in enumerate(arrivals):
        ended |= {key: when / MS for key, when in state.advance(at * MS)}
        state.arrive(number, work * MS, at * MS)
    ended |= {key: when / MS for key, when in state.advance(until * MS)}
    return {key: round(when, 3) for key, when in ended.items()}


def test_above_the_limit_calls_are_rejected_and_a_free_slot_is_taken() -> None:
    state = machine(concurrent=2)
    assert state.arrive(1, 100 * MS, 0) is None
    assert state.arrive(2, 200 * MS, 0) is None
    assert state.arrive(3, 100 * MS, 0) == Rejected(429, "at most 2 calls at once", None)
    assert state.in_flight == 2
    assert state.next_ns() == 100 * MS
    assert state.advance(100 * MS) == [(1, 100 * MS)]
    assert state.arrive(4, 100 * MS, 100 * MS) is None


def test_a_bounded_queue_serves_in_order_of_arrival() -> None:
    state = machine(concurrent=1, mode="queue", queue=2)
    assert run(state, [(0, 100), (10, 100), (20, 50)]) == {0: 100, 1: 200, 2: 250}
    state = machine(concurrent=1, mode="queue", queue=1)
    assert [state.arrive(n, 100 * MS, 0) for n in range(3)] == [
        None,
        None,
        Rejected(503, "queue of 1 is full", None),
    ]


def test_one_advance_over_a_long_time_starts_each_queued_call_when_the_one_before_ended() -> None:
    assert run(machine(concurrent=2, mode="queue", queue=9), [(0, 100)] * 6) == {
        0: 100,
        1: 100,
        2: 200,
        3: 200,
        4: 300,
        5: 300,
    }


def test_sharing_slows_everybody_down() -> None:
    # Alone until 50 ms, then at half speed: 0 has 50 left of its 100, which takes 100.
    assert run(machine(concurrent=1, mode="share"), [(0, 100), (50, 100)]) == {0: 150, 1: 200}
    # Two at once are full speed when two fit.
    assert run(machine(concurrent=2, mode="share"), [(0, 100), (0, 100)]) == {0: 100, 1: 100}


def test_the_schedule_changes_what_fits() -> None:
    steps = (CapacityStep(1.0, 0.4), CapacityStep(2.0, 1.0))
    state = machine(concurrent=10, schedule=steps)
    state.advance(1000 * MS)
    taken = [state.arrive(n, 5000 * MS, 1000 * MS) for n in range(5)]
    assert taken == [None] * 4 + [Rejected(429, "at most 4 calls at once", None)]
    state.advance(2000 * MS)
    assert [state.arrive(10 + n, 1, 2000 * MS) for n in range(7)] == [None] * 6 + [
        Rejected(429, "at most 10 calls at once", None)
    ]


def test_a_higher_capacity_starts_what_is_queued() -> None:
    steps = (CapacityStep(0.0, 0.5), CapacityStep(0.05, 1.0))
    state = machine(concurrent=2, mode="queue", queue=5, schedule=steps)
    assert run(state, [(0, 100), (0, 100)]) == {0: 100, 1: 150}


def test_an_outage_serves_nobody_until_it_ends() -> None:
    steps = (CapacityStep(0.0, 0.0), CapacityStep(0.5, 1.0))
    assert run(machine(concurrent=1, mode="queue", queue=5, schedule=steps), [(0, 100)]) == {0: 600}
    assert run(machine(concurrent=1, mode="share", schedule=steps), [(0, 100)]) == {0: 600}


def test_rates_announce_when_to_come_again() -> None:
    state = machine(requests_per_second=2, burst=2)
    assert [state.arrive(n, 0, 0) for n in range(3)] == [
        None,
        None,
        Rejected(429, "too many requests a second", 500_000_001),
    ]
    state.advance(500 * MS)
    assert state.arrive(4, 0, 500 * MS) is None
    assert state.arrive(5, 0, 500 * MS) is not None


def test_rates_scale_with_time() -> None:
    state = machine(scale=0.1, requests_per_second=2)
    assert state.arrive(1, 0, 0) is None
    assert state.arrive(2, 0, 0) == Rejected(429, "too many requests a second", 50_000_001)


def test_a_caller_that_leaves_frees_its_place() -> None:
    state = machine(concurrent=1, mode="queue", queue=1)
    state.arrive(1, 1000 * MS, 0)
    state.arrive(2, 100 * MS, 0)
    state.advance(10 * MS)
    state.leave(1)
    assert state.advance(200 * MS) == [(2, 110 * MS)]
    state.leave(99)
    assert state.in_flight == 0
