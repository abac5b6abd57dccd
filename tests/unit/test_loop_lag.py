"""How late an event loop is and whose fault that was: values on clocks made by hand."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

import pytest

from profiler.loop.lag import (
    IDLE_NS,
    STEPS,
    BusyPeriod,
    Gap,
    Heartbeat,
    LagSampler,
    Lateness,
    Stall,
    StopSampler,
    lag_sampler,
    late_ns,
    lateness,
)
from profiler.testing import run_virtual

MS = 1_000_000


def test_lag_is_the_worst_since_the_loop_began():
    """A clock that runs ahead of the event loop's is what a blocked loop looks like."""
    late = 0

    async def main(clock):
        nonlocal late
        observed: list[int] = []
        sampler = LagSampler(asyncio.get_running_loop(), lambda: clock() + late)
        sampler.observers.add(observed.append)
        sampler.enter()
        await asyncio.sleep(0.1)
        late += 80 * MS
        await asyncio.sleep(0.1)
        middle = clock() + late
        first = sampler.leave(0)
        sampler.enter()
        late += 30 * MS
        await asyncio.sleep(0.1)
        return first, sampler.leave(middle), max(observed)

    first, second, worst = run_virtual(main)
    assert first == worst == 80 * MS
    assert second == 30 * MS


@pytest.mark.parametrize(
    ("run_delays", "machine"),
    [
        (lambda late: None, 0),  # the kernel does not count
        (lambda late: 7 * MS, 0),  # it has not grown
        (lambda late: late, 80 * MS),
        (lambda late: late // 4, 20 * MS),
        (lambda late: 9 * late, 80 * MS),  # never more than the stall itself
    ],
)
def test_what_the_thread_was_runnable_and_did_not_run_is_the_machines(run_delays, machine):
    late = 0

    async def main(clock):
        nonlocal late
        sampler = LagSampler(asyncio.get_running_loop(), lambda: clock() + late, lambda: run_delays(late))
        sampler.enter()
        await asyncio.sleep(0.105)
        late += 80 * MS
        await asyncio.sleep(0.1)
        found = sampler.stalls(0)
        sampler.leave(0)
        return found, sampler.stalls(found[0].ended_ns + 1)

    assert run_virtual(main) == ([Stall(110 * MS, 190 * MS, machine)], [])


def test_a_stall_under_way_is_one():
    late = 0

    async def main(clock):
        nonlocal late
        sampler = LagSampler(asyncio.get_running_loop(), lambda: clock() + late, lambda: None)
        sampler.enter()
        await asyncio.sleep(0.105)
        late += 45 * MS
        found = sampler.stalls(0)
        sampler.leave(0)
        return found

    assert run_virtual(main) == [Stall(110 * MS, 150 * MS, 0)]


class HeartbeatAtHand:
    """A heartbeat whose thread runs when the test says so, on clocks of the test's own."""

    def __init__(self) -> None:
        self.now = self.cpu = 0
        self.started = 0
        self._sleeps: list[tuple[int, int]] = []
        self._leave = True
        self.heartbeat = Heartbeat(lambda: self.now, lambda: self.cpu, self._start, self._sleep)

    def run(self, *sleeps: tuple[int, int]) -> None:
        """Let the thread sleep, each time for so many ms of wall and of CPU time; then it ends."""
        self._sleeps = list(sleeps)
        self.job()

    def _start(self, job) -> None:
        self.started += 1
        self.job = job

    def _sleep(self, seconds: float) -> None:
        wall, cpu = self._sleeps.pop(0)
        self.now += wall * MS
        self.cpu += cpu * MS
        if not self._sleeps and self._leave:
            self.heartbeat._users.clear()


def test_gap_is_a_late_sleep_without_cpu():
    at_hand = HeartbeatAtHand()
    at_hand.heartbeat.enter("loop")
    at_hand.run((20, 1), (24, 0), (60, 3), (60, 55), (20, 0))
    # 4 ms late: none. 40 ms late: one. 40 ms late and busy: its own code. Then it is on time.
    assert at_hand.heartbeat.gaps() == [Gap(44 * MS, 104 * MS, cpu_ns=3 * MS)]


def test_gap_of_now_counts_before_the_thread_had_its_turn():
    at_hand = HeartbeatAtHand()
    at_hand.heartbeat.enter("loop")
    at_hand.now += 30 * MS
    assert at_hand.heartbeat.gaps() == [Gap(0, 30 * MS, cpu_ns=0)]
    at_hand.cpu += 25 * MS
    assert at_hand.heartbeat.gaps() == []


def test_sync_code_sees_stops_of_the_process_since_the_heartbeat_was_due():
    at_hand = HeartbeatAtHand()
    sampler = StopSampler(at_hand.heartbeat)
    sampler.enter()
    at_hand.run((60, 3), (20, 0), (60, 55), (100, 35), (20, 0))
    # While it used the processor for 35 ms, of which 20 may be from before it was due, it was not stopped.
    assert sampler.stalls(0) == [Stall(20 * MS, 60 * MS, 40 * MS), Stall(175 * MS, 240 * MS, 65 * MS)]
    assert sampler.stalls(61 * MS) == [Stall(175 * MS, 240 * MS, 65 * MS)]
    assert sampler.leave(0) == 0


def test_thread_runs_while_anybody_has_entered():
    at_hand = HeartbeatAtHand()
    heartbeat = at_hand.heartbeat
    heartbeat.enter("loop")
    heartbeat.enter("another")
    assert at_hand.started == 1
    heartbeat.leave("another")
    at_hand.run((10, 0))
    heartbeat.enter("loop")
    assert at_hand.started == 2


def test_who_enters_as_the_thread_ends_gets_another():
    at_hand = HeartbeatAtHand()
    heartbeat = at_hand.heartbeat
    heartbeat.enter("loop")
    heartbeat.leave("loop")

    class Entering(set):
        def __bool__(self):
            if len(self):
                return True
            self.add("late")  # between the thread's last look and its end
            return False

    heartbeat._users = Entering()
    at_hand.job()
    assert at_hand.started == 2


def test_stop_of_the_whole_process_is_the_machines():
    late = 0
    at_hand = HeartbeatAtHand()

    async def main(clock):
        nonlocal late
        sampler = LagSampler(
            asyncio.get_running_loop(), lambda: clock() + late, lambda: None, at_hand.heartbeat
        )
        sampler.enter()
        await asyncio.sleep(0.105)
        late += 80 * MS  # the loop stands still until 190; the other thread is late from 120 to 185
        at_hand.heartbeat._gaps.append(Gap(120 * MS, 185 * MS, cpu_ns=0))
        await asyncio.sleep(0.1)
        found = sampler.stalls(0)
        sampler.leave(0)
        return found

    assert run_virtual(main) == [Stall(110 * MS, 190 * MS, 65 * MS)]


def test_what_a_process_computed_while_the_machine_ran_it_now_and_then_is_not_the_machines():
    late = 0
    at_hand = HeartbeatAtHand()

    async def main(clock):
        nonlocal late
        sampler = LagSampler(
            asyncio.get_running_loop(), lambda: clock() + late, lambda: None, at_hand.heartbeat
        )
        sampler.enter()
        await asyncio.sleep(0.105)
        late += 1000 * MS  # until 1110, of which it computed for 300
        at_hand.heartbeat._gaps.append(Gap(105 * MS, 1105 * MS, cpu_ns=300 * MS))
        await asyncio.sleep(0.1)
        found = sampler.stalls(0)
        sampler.leave(0)
        return found

    assert run_virtual(main) == [Stall(110 * MS, 1110 * MS, 700 * MS)]


def test_lateness_of_a_window_takes_the_part_of_each_stall_inside_it():
    stalls = [Stall(0, 100 * MS, 0), Stall(200 * MS, 300 * MS, 60 * MS), Stall(900 * MS, 950 * MS, 0)]
    assert lateness(stalls, (50 * MS, 250 * MS)) == Lateness(held_ns=70 * MS, machine_ns=30 * MS)
    assert lateness(stalls, (100 * MS, 200 * MS)) == Lateness(0, 0)


class Counters:
    """The clock, the process's CPU time and its thread's run delay, moved by hand, in milliseconds."""

    def __init__(self):
        self.now = self.cpu = self.delay = 0

    def busy(self) -> BusyPeriod:
        return BusyPeriod(lambda: self.now, lambda: self.delay, lambda: self.cpu)

    def run(self, ms: float) -> None:
        self.now += int(ms * MS)
        self.cpu += int(ms * MS)

    def wait_to_run(self, ms: float) -> None:
        self.now += int(ms * MS)
        self.delay += int(ms * MS)

    def idle(self, ms: float) -> None:
        self.now += int(ms * MS)


def test_loop_is_busy_since_it_last_paused():
    counters = Counters()
    busy = counters.busy()
    counters.run(3)
    assert busy.look() == 3 * MS
    counters.wait_to_run(4)
    counters.run(1)
    assert busy.look() == 8 * MS  # ready and not run is no pause
    counters.idle(20)
    counters.run(2)
    assert busy.look() == 2 * MS  # at most what it ran since the last look
    counters.idle(0.1)
    counters.run(1)
    assert busy.look() == 3.1 * MS  # too short for a pause


def test_loop_without_a_count_of_its_run_delay_goes_by_the_processor_time():
    counters = Counters()
    busy = BusyPeriod(lambda: counters.now, lambda: None, lambda: counters.cpu)
    counters.run(3)
    counters.wait_to_run(5)
    assert busy.look() == 3 * MS


def test_timer_that_is_late_says_for_how_long_at_least_and_at_most():
    counters = Counters()
    busy = counters.busy()
    counters.idle(40)  # stopped: nothing was counted
    counters.run(1)
    assert busy.was_late(35 * MS) == 41 * MS  # perhaps since the last look
    counters.run(2)
    assert busy.look() == 43 * MS
    counters.idle(60)
    assert busy.was_late(30 * MS) == 40 * MS  # not since before the timer was set
    counters.idle(3)
    counters.idle(22)
    assert busy.look() == 0
    counters.idle(20)
    assert busy.was_late(19 * MS) == 20 * MS
    counters.run(200)  # another thread, beside a loop whose timers are on time
    busy.was_late(0)
    assert busy.age_ns == IDLE_NS
    counters.run(100)
    busy.was_late(MS)
    assert busy.age_ns == STEPS * MS + IDLE_NS


def test_what_is_handled_before_the_timers_after_a_stop_is_late_too():
    late = 0

    async def main(clock):
        nonlocal late
        counters = Counters()
        sampler = LagSampler(asyncio.get_running_loop(), lambda: clock() + late, lambda: 0)
        sampler._busy = BusyPeriod(lambda: clock() + late, lambda: 0, lambda: counters.cpu)
        sampler.enter()
        await asyncio.sleep(0.104)
        on_time = sampler.late_ns()
        late += 30 * MS  # stopped: the timer was due after 6 of them
        stopped = sampler.late_ns(), sampler.late_ns()  # two replies came in it
        sampler.leave(0)
        return on_time, *stopped

    assert run_virtual(main) == (0, 30 * MS, 30 * MS)


def test_kernel_is_asked_once_in_a_turn_of_the_loop():
    """In a turn there is no pause: what is noticed later in it is late by so much more."""
    asked = late = 0

    def run_delay() -> int:
        nonlocal asked
        asked += 1
        return 0

    async def main(clock):
        nonlocal asked, late
        sampler = LagSampler(asyncio.get_running_loop(), lambda: clock() + late, run_delay)
        sampler._busy = BusyPeriod(lambda: clock() + late, run_delay, lambda: late)
        sampler.enter()
        asked = 0
        found = [sampler.late_ns()]
        late += 2 * MS  # of work
        found += [sampler.late_ns(), sampler.late_ns()]
        in_this_turn, asked = asked, 0
        await asyncio.sleep(0)
        late += MS
        found.append(sampler.late_ns())
        in_the_next, asked = asked, 0
        await asyncio.sleep(0.008)  # a pause
        found.append(sampler.late_ns())
        sampler.leave(0)
        return found, in_this_turn, in_the_next, asked

    assert run_virtual(main) == ([0, 2 * MS, 2 * MS, 3 * MS, 0], 1, 1, 1)


def test_loop_that_takes_no_callback_is_looked_at_each_time():
    """As one of another make may refuse to: what asks how late it is goes on."""
    asked = 0

    def run_delay() -> int:
        nonlocal asked
        asked += 1
        return 0

    async def main(clock):
        nonlocal asked
        loop = asyncio.get_running_loop()
        sampler = LagSampler(loop, clock, run_delay)
        asked = 0

        def refuse(*_: object) -> None:
            raise RuntimeError("no")

        loop.call_soon = refuse
        try:
            found = sampler.late_ns(), sampler.late_ns()
        finally:
            del loop.call_soon
        return found, asked

    assert run_virtual(main) == ((0, 0), 2)


def test_each_event_loop_has_its_own_sampler():
    """Also where the last look was at another one's, which may be over."""

    async def looked() -> tuple[int, int]:
        sampler = lag_sampler(time.monotonic_ns)
        sampler.late_ns = lambda: id(sampler)  # type: ignore[method-assign]
        return late_ns(), id(sampler)

    async def unsampled() -> int:
        return late_ns()

    samplers = []
    for _ in range(2):
        with asyncio.Runner() as runner:
            found, own = runner.run(looked())
            assert found == own
            samplers.append(own)
        assert asyncio.run(unsampled()) == 0
    assert late_ns() == 0


@pytest.mark.parametrize(("share", "held", "machine"), [(0, 80, 0), (4, 60, 20), (1, 0, 80)])
def test_sum_of_all_lags_tells_whose_they_were(share, held, machine):
    late = 0

    async def main(clock):
        nonlocal late
        sampler = LagSampler(
            asyncio.get_running_loop(), lambda: clock() + late, lambda: late // share if share else 0
        )
        sampler.enter()
        await asyncio.sleep(0.105)
        before = sampler.total()
        late += 80 * MS
        await asyncio.sleep(0.1)
        found = sampler.total() - before
        sampler.leave(0)
        return found

    assert run_virtual(main) == Lateness(held * MS, machine * MS)


def test_sum_of_all_lags_counts_stops_as_the_machines_once_the_heartbeat_has_seen_them():
    late = 0

    class Seen:
        def enter(self, user): ...

        def leave(self, user): ...

        def gaps(self):
            return [Gap(0, 10_000 * MS, cpu_ns=0)]

    async def main(clock):
        nonlocal late
        sampler = LagSampler(asyncio.get_running_loop(), lambda: clock() + late, lambda: 0, Seen())
        sampler.enter()
        await asyncio.sleep(0.105)
        late += 80 * MS
        await asyncio.sleep(0.02)
        early = sampler.total()
        await asyncio.sleep(0.2)
        settled = sampler.total()
        sampler.leave(0)
        return early, settled

    assert run_virtual(main) == (Lateness(80 * MS, 0), Lateness(0, 80 * MS))


def test_sampler_and_what_it_holds_open_go_with_their_event_loop():
    """An application may run each request in an event loop of its own."""
    seen = []

    async def main():
        sampler = lag_sampler(time.monotonic_ns)
        sampler.enter()
        sampler.leave(0)
        seen.append(weakref.ref(sampler))

    for _ in range(3):
        asyncio.run(main())
    gc.collect()
    assert [sampler() for sampler in seen] == [None, None, None]
