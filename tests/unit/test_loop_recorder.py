"""Sinks: none of them keeps a loop waiting or breaks it, and none loses what it could have had."""

from __future__ import annotations

import asyncio
import collections
import contextvars
import functools
import gc
import os
import queue
import subprocess
import sys
import threading

import pytest

from profiler import ToolLoop
from profiler.errors import UsageError
from profiler.exporters.prometheus import PrometheusSink
from profiler.loop import handover
from profiler.loop.boundary import Boundary, within
from profiler.loop.handover import Handover
from profiler.loop.recorder import LiveCalls, Recorder, is_waited_for, waited_for
from profiler.records import LoopRecord
from profiler.testing import ScriptedModel
from profiler.watch.profiler import Profiler


def record(number: int = 0) -> LoopRecord:
    return LoopRecord(f"r{number}", "gathered", "openai", "m", 0, 1, "ok", (), number=number)


def patient(*sinks) -> Recorder:
    """A recorder on whose clock no time passes: however busy the machine, it waits for its sinks' thread."""
    recorder = Recorder(sinks)
    recorder._handover = Handover(lambda: 0)
    return recorder


class Blocking:
    """A sink that blocks until it is let go."""

    def __init__(self) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()
        self.got: list[int | None] = []

    def __call__(self, one: LoopRecord) -> None:
        self.begun.set()
        assert self.let_go.wait(60)
        self.got.append(one.number)


def test_a_quick_sink_has_its_record_when_the_loop_has_ended_and_in_order():
    got: list[int | None] = []
    recorder = patient(lambda one: got.append(one.number))
    for number in range(500):
        recorder.emit(record(number))
        assert got[-1] == number
    assert got == list(range(500))


def test_a_sink_that_blocks_keeps_no_loop_waiting_and_gets_every_record_later():
    blocking, beside = Blocking(), []
    recorder = Recorder([blocking, beside.append])
    for number in range(20):
        recorder.emit(record(number))
        assert [one.number for one in beside] == list(range(number + 1))  # it is called where the loop ends
    assert blocking.begun.wait(60)
    assert (blocking.got, recorder.flush(0)) == ([], False)
    blocking.let_go.set()
    assert recorder.flush(60)
    assert blocking.got == list(range(20))


def test_a_sink_that_waits_for_all_records_waits_for_nothing_and_says_so():
    """It is called for one of them, so they are not all there."""
    waited: list[bool] = []
    recorder = Recorder([lambda one: waited.append(recorder.flush())])
    recorder.emit(record())
    recorder.emit(record())
    assert recorder.flush(60)
    assert waited == [False, False]


def test_what_does_not_fit_into_the_queue_is_dropped_and_counted(monkeypatch, caplog):
    monkeypatch.setattr(handover, "MOST_WAITING", 3)
    blocking, metrics = Blocking(), PrometheusSink()
    recorder = Recorder([blocking, metrics])
    recorder.emit(record(0))
    assert blocking.begun.wait(60)  # so it is in no queue any more
    for number in range(1, 6):
        recorder.emit(record(number))
    assert recorder.dropped == 2
    assert "a sink is too slow: one is lost; later failures are only counted: Blocking" in caplog.text
    blocking.let_go.set()
    assert recorder.flush(60)
    assert blocking.got == [0, 1, 2, 3]
    shown = {
        s.labels.get("sink"): s.value for m in metrics.collect() for s in m.samples if "dropped" in s.name
    }
    assert shown["Blocking"] == 2.0


@pytest.mark.parametrize(
    "failure", [ValueError("no room"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()]
)
def test_whatever_a_sink_raises_stays_with_it(failure):
    got = []

    def fails(one: LoopRecord) -> None:
        raise failure

    recorder = patient(fails, lambda one: got.append(one.number))
    for number in range(5):
        recorder.emit(record(number))
        if number < 3:
            assert recorder.dropped == number + 1
    assert recorder.flush(60)
    assert (recorder.dropped, got) == (5, [0, 1, 2, 3, 4])


def test_a_sink_runs_in_the_context_in_which_the_loop_ended():
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    got = []
    recorder = patient(lambda one: got.append((variable.get(), threading.get_ident())))
    variable.set("of the loop")
    recorder.emit(record())
    assert got[0][0] == "of the loop"
    assert got[0][1] != threading.get_ident()


def test_sinks_that_only_put_a_record_somewhere_are_called_at_once():
    for sink in ([].append, collections.deque().append, queue.SimpleQueue().put, queue.Queue().put_nowait):
        assert is_waited_for(sink)
    assert is_waited_for(PrometheusSink())
    assert is_waited_for(waited_for(lambda one: None))

    class Slow(list):
        def append(self, one):
            raise AssertionError("somebody's own")

    assert not is_waited_for(Slow().append)
    assert not is_waited_for(print)
    assert not is_waited_for(lambda one: None)


def test_the_counts_of_a_sink_may_fail_too():
    class Bad:
        def __call__(self, one):
            raise ValueError

        def live_calls(self, strategy, tool):
            raise ValueError

        count_dropped = count_orphan = count_watch_failure = observe_lag = live_calls

    for bad in (Bad(), waited_for(Bad())):
        recorder = Recorder([bad])
        recorder.count_orphan()
        recorder.count_watch_failure("tool")
        assert recorder.live_calls("s", "t").queued == 0
        recorder.emit(record())
        assert recorder.flush(60)
        assert recorder.dropped == 1


def test_counts_that_are_none_are_not_kept():
    class Odd:
        def __call__(self, one): ...

        def live_calls(self, strategy, tool):
            return "many"

    assert isinstance(Recorder([Odd()]).live_calls("s", "t"), LiveCalls)


def test_without_a_thread_records_are_dropped_and_the_loop_ends(monkeypatch):
    def none(function):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(handover, "start_native_thread", none)
    recorder = Recorder([lambda one: None])
    recorder.emit(record())
    assert recorder.dropped == 1


def test_no_thread_is_started_before_there_is_a_record_nor_for_sinks_that_are_waited_for():
    before = len(handover._running)
    Recorder([lambda one: None])
    Recorder([[].append]).emit(record())
    assert len(handover._running) == before


def test_the_thread_of_a_recorder_that_nobody_has_any_more_ends():
    worker = Handover()
    assert worker.put(lambda: None)
    thread = worker._thread
    assert thread in handover._running
    ended = threading.Event()
    worker.put(ended.set)
    del worker
    assert ended.wait(60)
    while thread in handover._running:
        os.sched_yield()


class SlowLock:
    """Released after so many turns."""

    def __init__(self, turns: int) -> None:
        self.turns = turns

    def acquire(self, timeout: float) -> bool:
        assert timeout == handover.TURN_SECONDS
        self.turns -= 1
        return self.turns < 0


def test_the_end_waits_for_turns_and_not_for_time_and_for_so_many_in_all(monkeypatch):
    thread = handover._Thread()
    monkeypatch.setattr(handover, "_turns_left", 5)
    waits = []
    for turns in (3, 0, 9, 0):
        monkeypatch.setattr(handover, "_marked", lambda _, turns=turns: SlowLock(turns))
        waits.append((handover._flush_at_exit(thread), handover._turns_left))
    assert waits == [(True, 2), (True, 2), (False, 0), (True, 0)]


def test_what_is_handed_over_while_the_process_ends_is_waited_for(monkeypatch):
    monkeypatch.setattr(handover, "is_ending", lambda: True)
    done: list[int] = []
    worker = Handover()
    for number in range(3):
        worker.put(lambda number=number: done.append(number))
        assert done == [*range(number + 1)]

    def inside() -> None:  # on its own thread it would wait for itself
        worker.put(lambda: done.append(4))
        done.append(3)

    worker.put(inside)
    worker.flush(60)
    assert done == [0, 1, 2, 3, 4]


PROGRAM = """
import os, sys
from profiler.instrument import Profiler
def sink(record):
    import time
    time.sleep(0.02)
    os.write(1, f"{record.name} {os.getpid() == parent}\\n".encode())  # whole, as two processes write
parent = os.getpid()
prof = Profiler(sinks=[sink])
for number in range(5):
    with prof.loop(f"loop {number}"):
        pass
if sys.argv[1:] == ["fork"]:
    prof.recorder.flush()
    child = os.fork()
    with prof.loop("child" if child == 0 else "parent"):
        pass
    if child == 0:
        prof.recorder.flush()
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize("argument", ["", "fork"])
def test_what_ended_before_the_program_did_reaches_the_sink(argument):
    # From Python 3.12 on a fork in a process with threads warns; that it works all the same is tested here.
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", PROGRAM]
    done = subprocess.run([*command, *argument.split()], capture_output=True, text=True, timeout=60)
    lines = [f"loop {number} True" for number in range(5)]
    lines += ["child False", "parent True"] if argument else []
    assert (sorted(done.stdout.splitlines()), done.stderr) == (sorted(lines), "")


class Watcher:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.boundary = Boundary(self.told.append)

    @within("tool")
    def fails(self, error: BaseException) -> None:
        raise error


def test_a_boundary_catches_counts_and_says_once(caplog):
    watcher = Watcher()
    for _ in range(3):
        assert watcher.fails(KeyError("a secret argument")) is None
    assert watcher.boundary.call("request", int, "x") is None
    assert watcher.boundary.failures == {"loop": 0, "request": 1, "tool": 3}
    assert watcher.told == ["tool", "tool", "tool", "request"]
    (first, second) = [one.getMessage() for one in caplog.records]
    assert first.startswith("watching a tool failed, which the application does not notice: KeyError at ")
    assert second.startswith("watching a request failed")
    assert "secret" not in caplog.text


@pytest.mark.parametrize("error", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_the_applications_own_passes_through(error):
    watcher = Watcher()

    def fails() -> None:
        raise error

    with pytest.raises(error):
        watcher.fails(error())
    with pytest.raises(error):
        watcher.boundary.call("loop", fails)
    assert set(watcher.boundary.failures.values()) == {0}
    assert watcher.told == []


def test_who_is_told_of_failures_may_fail():
    def fails(part):
        raise RuntimeError

    assert Boundary(fails).call("tool", int, "x") is None


async def async_sink(one):
    raise AssertionError("runs only if it is awaited")


def generator_sink(one):
    yield one


async def async_generator_sink(one):
    yield one


class AsyncCalled:
    async def __call__(self, one):
        raise AssertionError("runs only if it is awaited")

    async def write(self, one):
        raise AssertionError("runs only if it is awaited")


class GeneratorCalled:
    def __call__(self, one):
        yield one


@pytest.mark.parametrize(
    ("sink", "name"),
    [
        (async_sink, "async_sink"),
        (functools.partial(async_sink), "partial"),
        (AsyncCalled(), "AsyncCalled"),
        (functools.partial(AsyncCalled()), "partial"),
        (AsyncCalled().write, "write"),
        (waited_for(AsyncCalled()), "AsyncCalled"),
        (generator_sink, "generator_sink"),
        (async_generator_sink, "async_generator_sink"),
        (GeneratorCalled(), "GeneratorCalled"),
    ],
)
@pytest.mark.parametrize(
    "given",
    [
        lambda sink: Recorder([print, sink]),
        lambda sink: Profiler(sinks=[sink]),
        lambda sink: ToolLoop(ScriptedModel(["done"]), sinks=[sink]),
    ],
)
def test_a_sink_of_which_nothing_would_run_is_refused_where_it_is_given(sink, name, given):
    with pytest.raises(UsageError) as raised:
        given(sink)
    assert str(raised.value) == (
        f"sink {name} is an async function or a generator, which nothing would await or read: "
        "a sink is a plain function of one record"
    )


def test_a_sink_that_cannot_be_called_is_refused_where_it_is_given():
    with pytest.raises(UsageError, match=r"^a sink is called with each record, and cannot be a list$"):
        Profiler(sinks=[[]])


def test_a_class_is_a_sink_whatever_its_objects_do_when_they_are_called():
    made = []

    class Kept(AsyncCalled):
        def __init__(self, one):
            made.append(one)

    one = record()
    recorder = patient(Kept)
    recorder.emit(one)
    assert made == [one]
    assert recorder.dropped == 0


@pytest.mark.parametrize("mark", [lambda sink: sink, waited_for])
def test_a_record_is_lost_when_its_sink_returns_a_coroutine(mark, caplog):
    """Which cannot be seen before; and Python does not warn of it in addition."""

    def sink(one):
        return async_sink(one)

    gc.collect()  # what another test left open complains before
    caplog.clear()
    recorder = patient(mark(sink))
    recorder.emit(record())
    recorder.emit(record())
    gc.collect()
    assert recorder.dropped == 2
    (line,) = caplog.messages
    assert "a sink failed on a record (TypeError: it returned a coroutine, which nothing awaits)" in line
