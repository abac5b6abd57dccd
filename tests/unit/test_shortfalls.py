"""Why calls overlapped less than they could have: each cause by what distinguishes it, in milliseconds."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from profiler.loop.lag import Stall
from profiler.records import Shortfall
from profiler.shortfalls import EXPLAINED, Application, Pool, Ran, schedule_wall, shortfall

MS = 1_000_000


def ran(start: int, end: int, *, ready: int = 0, name: str = "t", **more: Any) -> Ran:
    for key in ("thread_wait_ns", "exclusive_wait_ns"):
        if key in more:
            more[key] *= MS
    more["steps"] = [(a * MS, b * MS) for a, b in more.pop("steps", ())]
    more["resumed"] = [at * MS for at in more.pop("resumed", ())]
    return Ran(name, ready * MS, start * MS, end * MS, **more)


def stall(start: int, end: int, machine: int) -> Stall:
    return Stall(start * MS, end * MS, machine * MS)


def why(
    calls: list[Ran],
    *stalls: Stall,
    limit: int | None = None,
    own: bool = False,
    reply: int = 0,
    runner: Any = None,
    wall: int | None = None,
) -> Shortfall | None:
    """The reason; `own`: the calls of a watched loop, whose reply was complete at `reply`."""
    span = max(call.ended_ns for call in calls) - min(call.started_ns for call in calls)
    application = Application(reply * MS, runner) if own or runner else None
    return shortfall(calls, span if wall is None else wall * MS, limit, stalls, application)


def test_every_shortfall_is_explained_with_a_remedy() -> None:
    assert set(EXPLAINED) == set(get_args(Shortfall))
    assert all(words and remedy for words, remedy in EXPLAINED.values())


@pytest.mark.parametrize(
    ("calls", "limit", "reason"),
    [
        ([ran(0, 100), ran(0, 200)], None, None),
        ([ran(0, 100), ran(100, 200)], 1, None),  # sequential: all that it allows
        ([ran(0, 100), ran(0, 100), ran(100, 200)], 2, None),
        ([ran(0, 100), ran(100, 200)], 2, "limiter"),  # others had its places
        ([ran(0, 100, steps=[(0, 100)]), ran(100, 200, steps=[(100, 200)])], None, "blocked_loop"),
        ([ran(0, 100), ran(100, 200)], None, "blocked_loop"),  # somebody else's fault
        ([ran(0, 100), ran(0, 200, thread_wait_ns=100)], None, "threads"),
        ([ran(0, 100), ran(100, 200, exclusive_wait_ns=100)], None, "exclusive"),
        ([ran(0, 100), ran(4, 104)], None, None),  # within tolerance
        ([ran(0, 100)], 1, None),
    ],
)
def test_of_calls_that_a_strategy_ran(calls: list[Ran], limit: int | None, reason: str | None) -> None:
    assert why(calls, limit=limit) == reason


IN_TURN = [ran(0, 200), ran(200, 400), ran(400, 600)]
GATHERED = [ran(0, 200), ran(0, 200), ran(1, 201)]
HELD, STOPPED = 0, 1


@pytest.mark.parametrize("machine", [HELD, STOPPED])
@pytest.mark.parametrize("start", [-2500, -400, 700])
def test_a_stall_before_or_after_the_tool_phase_explains_nothing(machine: int, start: int) -> None:
    lag = 2000 if start < -2000 else 300
    outside = stall(start, start + lag, lag * machine)
    assert why(IN_TURN, outside, own=True) == "application"
    assert why(GATHERED, outside, own=True) is None
    assert why(GATHERED, outside) is None


@pytest.mark.parametrize("machine", [HELD, STOPPED])
def test_a_stall_within_calls_that_were_awaited_in_turn_leaves_them_in_turn(machine: int) -> None:
    stopped = [ran(0, 350), ran(350, 550), ran(550, 750)]
    assert why(stopped, stall(50, 350, 300 * machine), own=True) == "application"
    assert why(stopped, stall(20, 120, 100 * machine), own=True) == "application"


@pytest.mark.parametrize(("machine", "reason"), [(HELD, "blocked_loop"), (STOPPED, "machine")])
def test_a_stall_that_kept_gathered_calls_waiting_is_its_own_cause(machine: int, reason: str) -> None:
    late = [ran(0, 500, resumed=(301,)), ran(300, 500), ran(300, 500)]  # two of them could not start
    assert why(late, stall(2, 300, 298 * machine)) == reason
    anyway = [ran(0, 500), *late[1:]]  # the first took as long by itself
    assert why(anyway, stall(2, 300, 298 * machine)) is None
    resumed = [ran(0, 1000), ran(1, 1001), ran(1, 1002)]  # none of them could go on
    assert why(resumed, stall(100, 1000, 900 * machine), own=True) == reason
    assert why(resumed, stall(100, 1000, 900 * machine)) == reason


def test_steps_that_the_machine_did_not_run_are_no_fault_of_the_tool() -> None:
    calls = [ran(0, 300, steps=[(0, 300)]), ran(300, 600), ran(300, 620)]
    assert why(calls, stall(5, 300, 290)) == "machine"
    assert why(calls, stall(5, 300, 0)) == "blocked_loop"


def test_a_call_that_holds_the_loop_is_a_cause_where_another_waited_for_that() -> None:
    holds = ran(0, 400, steps=[(100, 300)])
    assert why([holds, ran(0, 400, resumed=(301,))], stall(108, 300, 0)) == "blocked_loop"
    assert why([holds, ran(0, 301)], stall(108, 300, 0)) == "blocked_loop"
    assert why([holds, ran(300, 400)], stall(108, 300, 0), own=True) == "blocked_loop"  # it began only then
    assert why([holds, ran(0, 400, resumed=(90, 350))], stall(108, 300, 0)) is None  # its answer came later
    assert why([holds, ran(0, 90)], stall(108, 300, 0)) is None
    assert why([holds, ran(400, 500)], stall(108, 300, 0), limit=1) is None  # its turn came only then


@pytest.mark.parametrize(("machine", "reason"), [(HELD, "blocked_loop"), (STOPPED, "machine")])
def test_a_stall_in_the_midst_of_calls_that_were_due_meanwhile_made_them_late(
    machine: int, reason: str
) -> None:
    calls = [ran(0, 420, resumed=(320,)), ran(1, 421, resumed=(320,)), ran(1, 422, resumed=(321,))]
    assert why(calls, stall(20, 319, 299 * machine)) == reason
    assert why(calls, stall(20, 319, 299 * machine), own=True) == reason
    undisturbed = [call._replace(resumed=(370 * MS,)) for call in calls]
    assert why(undisturbed, stall(20, 319, 299 * machine)) is None


def test_a_stall_while_calls_stream_in_made_those_late_that_were_read_after_it() -> None:
    calls = [ran(10, 210, ready=10), ran(251, 451, ready=250), ran(253, 453, ready=252)]
    assert why(calls, stall(20, 249, 0), own=True, reply=255) == "blocked_loop"
    assert why(calls, own=True, reply=255) is None


def test_a_place_handed_on_with_a_stall_between_is_a_limit() -> None:
    calls = [ran(0, 200), ran(0, 200), ran(300, 500), ran(301, 501)]
    assert why(calls, stall(203, 299, 0), own=True) == "application_limit"
    assert why(calls, stall(209, 299, 0), own=True) == "application_limit"  # sampled after it had begun


def test_calls_that_begin_some_time_after_others_ended_were_not_waiting_for_their_places() -> None:
    calls = [ran(0, 200), ran(0, 200), ran(212, 412), ran(213, 413)]
    assert why(calls, own=True) == "application"
    assert why(calls, stall(201, 210, 9), own=True) == "application_limit"


@pytest.mark.parametrize("held", [150, 180, 195])
def test_a_stall_while_the_threads_of_a_full_pool_run_changes_nothing(held: int) -> None:
    full = Pool(2, True)
    calls = [ran(start, start + 200, pool=full) for start in (0, 0, 200, 201)]
    assert why(calls, stall(2, held, 0), own=True) == "threads"
    stopped = [ran(0, 400, pool=full), ran(0, 400, pool=full), *(ran(400, 450, pool=full) for _ in "ab")]
    assert why(stopped, stall(20, 399, 379), own=True) == "machine"


@pytest.mark.parametrize("limit", [2, None])
def test_places_that_a_stall_set_off_one_after_another_are_no_queue_inside(limit: int | None) -> None:
    """Two at once; the second holds the loop, so that all others go on half a call apart."""
    calls = [
        ran(0, 280, resumed=(280,)),
        ran(0, 360, resumed=(80,), steps=[(80, 280)]),
        ran(281, 441, resumed=(361,)),
        ran(360, 520, resumed=(440,)),
    ]
    reason = why(calls, stall(85, 280, 0), own=limit is None, limit=limit)
    assert reason == ("blocked_loop" if limit else "application_limit")
    queued = [ran(0, 80), ran(0, 160), ran(81, 240), ran(160, 320)]  # the same places, one served
    assert why(queued, own=limit is None, limit=limit) == "inside_tools"


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        (IN_TURN, "application"),
        ([ran(0, 200), ran(0, 200), ran(201, 400), ran(202, 402)], "application_limit"),  # a semaphore
        ([ran(0, 300), ran(50, 350), ran(100, 400)], "application"),  # started late, for no call's sake
        ([ran(0, 200, steps=[(0, 200)]), ran(200, 400, steps=[(200, 400)])], "blocked_loop"),
        ([ran(0, 200), ran(0, 210), ran(2, 190)], None),
    ],
)
def test_of_calls_that_a_loop_s_own_code_started(calls: list[Ran], reason: str | None) -> None:
    assert why(calls, own=True) == reason


def test_a_full_pool_of_threads_is_named_and_one_with_free_threads_is_not() -> None:
    full, roomy = Pool(2, True), Pool(6, False)
    spans = [(0, 200), (0, 200), (200, 400), (200, 400)]
    assert why([ran(*span, pool=full) for span in spans], own=True) == "threads"
    assert why([ran(*span, pool=roomy) for span in spans], own=True) == "application_limit"
    assert why([ran(0, 200, pool=roomy), ran(200, 400, pool=roomy)], own=True) == "application"


@pytest.mark.parametrize(("late", "reason"), [(14, None), (25, "application")])
def test_threads_may_start_some_time_late_on_a_crowded_machine(late: int, reason: Shortfall | None) -> None:
    calls = [ran(0, 200), ran(4, 204), ran(late, 200 + late)]
    assert shortfall(calls, (200 + late) * MS, None, (), Application(0, None, in_threads=True)) == reason
    assert why(calls, own=True) == "application"  # of an event loop's timers, more is known


@pytest.mark.parametrize("runner", ["openai", "anthropic"])
def test_a_runner_of_an_sdk_is_named(runner: str) -> None:
    assert why(IN_TURN, runner=runner) == f"{runner}_runner"
    assert why(GATHERED, runner=runner) is None
    assert why(IN_TURN, stall(-900, -100, 0), runner=runner) == f"{runner}_runner"


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param(
            [ran(150, 450, ready=150), ran(300, 600, ready=300), ran(450, 750, ready=450)], id="at once"
        ),
        pytest.param(
            [ran(300, 600, ready=150), ran(450, 750, ready=300), ran(600, 900, ready=450)],
            id="at the next call's delta, or the end of the reply",
        ),
    ],
)
def test_calls_started_as_they_stream_in_could_not_have_started_sooner(calls: list[Ran]) -> None:
    assert why(calls, own=True, reply=600) is None


def test_calls_that_were_complete_and_not_started_while_the_reply_streamed() -> None:
    calls = [ran(150, 450, ready=150), ran(450, 750, ready=200), ran(750, 1050, ready=250)]
    assert why(calls, own=True, reply=300) == "application"


def test_a_call_that_kept_the_reply_from_being_read_hid_the_next_one() -> None:
    spans = [(150, 450), (452, 752), (754, 1054)]
    calls = [ran(start, end, ready=start - 1, reads=True) for start, end in spans]
    assert why(calls, own=True, reply=1060) == "application"
    assert why(calls, reply=1060, runner="anthropic") == "anthropic_runner"
    others = [ran(start, end, ready=start - 1) for start, end in spans]  # read on meanwhile: they came then
    assert why(others, own=True, reply=1060) is None


def test_a_runner_with_places_for_two_is_named_while_it_streams() -> None:
    calls = [
        ran(20, 320, ready=20),
        ran(40, 340, ready=40),
        ran(345, 645, ready=344),
        ran(347, 647, ready=346),
    ]
    assert why(calls, runner="openai", reply=700) == "openai_runner"
    slowly = [*calls[:2], ran(375, 675, ready=374), ran(385, 685, ready=384)]
    assert why(slowly, runner="openai", reply=700) == "openai_runner"
    assert why(slowly, own=True, reply=700) is None


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ([ran(0, 100), ran(0, 200), ran(0, 300)], "inside_tools"),
        ([ran(0, 100), ran(1, 205), ran(1, 300), ran(2, 410)], "inside_tools"),
        ([ran(0, 100), ran(0, 200), ran(100, 300), ran(200, 400)], "inside_tools"),  # two at once, one served
        ([ran(0, 100), ran(0, 200)], None),  # two durations prove nothing
        ([ran(0, 100), ran(0, 180), ran(0, 420)], None),
        ([ran(0, 300), ran(0, 200), ran(0, 100)], None),  # not in the order of their starts
        ([ran(0, 100), ran(0, 200, name="u"), ran(0, 300, name="v")], None),
        ([ran(0, 100), ran(0, 100), ran(0, 100)], None),
    ],
)
def test_calls_served_one_at_a_time_inside_a_tool(calls: list[Ran], reason: str | None) -> None:
    assert why(calls, own=True) == reason
    assert why(calls, limit=2 if len({c.started_ns for c in calls}) > 2 else None) == reason


HELD_LOCK = [
    ran(0, 100),
    ran(0, 350, steps=[(150, 300)], resumed=(150,)),  # it holds the lock, and the loop
    ran(0, 450),
    ran(0, 550),
]
HELD_AT_FIRST = [ran(0, 350), ran(250, 450), ran(251, 550), ran(251, 650)]  # two began late


@pytest.mark.parametrize(
    ("calls", "stalled"),
    [
        (HELD_LOCK, stall(150, 300, 0)),
        ([ran(0, 100), ran(0, 310), ran(0, 311), ran(0, 400)], stall(150, 309, 159)),
        (HELD_AT_FIRST, stall(5, 250, 0)),
        ([ran(0, 232), ran(4, 413), ran(4, 593), ran(4, 773)], stall(113, 231, 118)),
    ],
)
def test_calls_served_one_at_a_time_with_a_stall_between(calls: list[Ran], stalled: Stall) -> None:
    assert why(calls, stalled, own=True) == "inside_tools"
    assert why(calls, stalled) == "inside_tools"


def test_calls_that_a_stall_let_end_together_were_not_served_one_at_a_time() -> None:
    together = [ran(0, 320), ran(0, 321), ran(0, 321), ran(0, 322)]
    assert why(together, stall(50, 319, 269)) == "machine"
    one_later = [*together[:3], ran(0, 400)]
    assert why(one_later, stall(50, 319, 269)) is None


def test_tools_that_hold_the_loop_one_after_another_are_not_served_one_at_a_time() -> None:
    calls = [ran(0, end, steps=[(end - 100, end)]) for end in (110, 210, 310)]
    assert why(calls, own=True) in (None, "blocked_loop")


@pytest.mark.parametrize(
    ("durations", "limit", "wall"),
    [([3, 1, 2], None, 3), ([3, 1, 2], 1, 6), ([3, 1, 2], 2, 3), ([1, 1, 3], 2, 4), ([2], 5, 2)],
)
def test_wall_of_a_first_come_schedule(durations, limit, wall):
    assert schedule_wall(durations, limit) == wall
