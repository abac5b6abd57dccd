"""Leading workers by messages: who is prepared, who takes which entries, who is waited for."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from profiler.arrivals import Arrivals
from profiler.errors import ProfilerError, TargetError, UsageError
from profiler.load.messages import (
    Begin,
    Calibration,
    ClientMeasured,
    Cut,
    Drained,
    End,
    Grant,
    MeasureClient,
    Prepare,
    Pulse,
    Ready,
    Returned,
    ToWorker,
    TrialState,
)
from profiler.load.options import LoadOptions
from profiler.load.plan import PlannedTrial
from profiler.load.workers import Workers
from profiler.rundir import ClientCapacity, ClientHealth, Spent
from profiler.strategies import parse_strategies

OPTIONS = LoadOptions(drain_seconds=0.0)
ROOT = "http://127.0.0.1:1"


class Clock:
    """Time that passes only while somebody waits; `timers` are called when it comes to them, in seconds."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.timers: dict[float, Callable[[], object]] = {}

    def __call__(self) -> int:
        return self.now_ns

    def event(self) -> "VirtualEvent":
        return VirtualEvent(self)

    def tick(self, until_ns: int) -> bool:
        """Come to the next timer, or to `until_ns` if that is earlier; whether there was a timer."""
        due = min((at for at in self.timers if at * 1e9 <= until_ns), default=None)
        self.now_ns = until_ns if due is None else max(self.now_ns, int(due * 1e9))
        if due is not None:
            self.timers.pop(due)()
        return due is not None


class VirtualEvent:
    """An event of a `Clock`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        assert self._set or timeout is not None, "would wait for ever"
        until_ns = self._clock.now_ns + int((timeout or 0.0) * 1e9)
        while not self._set and self._clock.now_ns < until_ns:
            self._clock.tick(until_ns)
        return self._set


class Connected:
    """A transport whose workers answer at once; `mute` ones leave when they are told something."""

    def __init__(self, *names: str, calibration: Callable[..., object] | None = None) -> None:
        self.clock = Clock()
        self.names = list(names)
        self.sent: list[tuple[str, ToWorker]] = []
        self.answer = Ready(model="m", spent=Spent(1, 2, 30, 4))
        self.drained = Drained(0, 2, 9, 10, 1, 0, 9, Spent(0, 27))
        self.request_cpu: tuple[tuple[str, float], ...] = ()
        self.mute: set[str] = set()
        self.user_count = 0
        self.wanted = 0
        opened = {} if calibration is None else {"calibration": calibration}
        self.workers_of_test = Workers(self, self.clock.event, clock=self.clock, **opened)  # type: ignore[arg-type]

    def workers(self) -> list[str]:
        return list(self.names)

    def users(self) -> int:
        return self.user_count

    def wanted_users(self) -> int:
        return self.wanted

    def scale(self, users: int, rate: float) -> None:
        self.user_count = self.wanted = users

    def send(self, message: ToWorker, worker: str) -> None:
        self.sent.append((worker, message))
        if worker in self.mute:
            self.names.remove(worker)
        elif isinstance(message, Prepare):
            seconds = 0.1 * (1 + message.worker)
            self.workers_of_test.ready(worker, replace(self.answer, loop_seconds=seconds))
        elif isinstance(message, MeasureClient):
            self.workers_of_test.client_measured(worker, ClientMeasured(self.request_cpu))
        elif isinstance(message, Begin):
            self.drained = replace(self.drained, sequence=message.sequence)
        elif isinstance(message, End):
            health = ClientHealth(worker, 4, 0.5)
            self.workers_of_test.drained(worker, replace(self.drained, health=health))

    def told(self, kind: type[ToWorker]) -> list[str]:
        return [worker for worker, message in self.sent if isinstance(message, kind)]


def begin(workers: Workers, *names: str, options: LoadOptions = OPTIONS, strategy: str = "gathered") -> None:
    workers.begin(names, PlannedTrial(0, 0, strategy), options, sources=1)


def asking(begun: int, in_flight: int) -> Pulse:
    return Pulse(1, TrialState(in_flight), begun, asks=True)


def test_worker_is_prepared_once_for_the_same_options_and_target() -> None:
    there = Connected("a", "b")
    workers = there.workers_of_test
    assert workers.prepare(OPTIONS, ROOT) == ["a", "b"]
    assert workers.loop_seconds == pytest.approx(0.2)
    assert workers.model == "m"
    there.names.append("c")
    assert workers.prepare(OPTIONS, ROOT) == ["a", "b", "c"]
    assert there.told(Prepare) == ["a", "b", "c"]
    workers.prepare(OPTIONS, "http://127.0.0.1:2")
    assert there.told(Prepare) == ["a", "b", "c", "a", "b", "c"]


def test_trial_tells_each_worker_its_share_and_waits_for_all() -> None:
    there = Connected("a", "b")
    workers = there.workers_of_test
    options = LoadOptions(arrivals="6/s", max_in_flight=5, seed=9)
    workers.begin(["a", "b"], PlannedTrial(4, 1, "gathered"), options, sources=20, spread_seconds=0.5)
    told = Begin(
        1, 4, 1, "gathered", 0, 2, 9, arrivals=Arrivals(6.0, 20), spread_seconds=0.5, max_in_flight=3
    )
    assert there.sent == [("a", told), ("b", replace(told, worker=1, max_in_flight=2))]
    ended = workers.end(["a", "b"], 3.0)
    totals = ("interrupted", "loops", "arrived", "late", "dropped")
    assert [ended.total(count) for count in totals] == [4, 18, 20, 2, 0]
    assert [one.health for one in ended.drained] == [ClientHealth("a", 4, 0.5), ClientHealth("b", 4, 0.5)]
    assert ended.lost == ()
    assert there.sent[2:] == [("a", End(3.0)), ("b", End(3.0))]


def test_turns_of_a_block_do_the_same_work_or_each_its_own() -> None:
    for own_work, parts in ((False, [1, 1]), (True, [4, 5])):
        there = Connected("a")
        options = replace(OPTIONS, own_work=own_work)
        for index in (4, 5):
            there.workers_of_test.begin(["a"], PlannedTrial(index, 1, "gathered"), options, sources=1)
        assert [message.part for _, message in there.sent] == parts
        there.workers_of_test.begin(["a"], PlannedTrial(-1, 999, "gathered"), options, sources=1)
        assert there.sent[-1][1].part == 999


def test_entry_that_is_not_measured_has_no_index() -> None:
    there = Connected("a")
    there.workers_of_test.begin(["a"], PlannedTrial(-1, 999, "gathered"), OPTIONS, sources=1)
    ((_, message),) = there.sent
    assert isinstance(message, Begin)
    assert (message.index, message.arrivals) == (None, None)


def test_worker_that_leaves_is_counted_and_not_waited_for() -> None:
    there = Connected("a", "b")
    workers = there.workers_of_test
    workers.prepare(OPTIONS, ROOT)
    begin(workers, "a", "b")
    pulse = Pulse(1, TrialState(7, 0, 30, 1, 2, 5), 37, spent=Spent(0, 60))
    workers.pulse("b", pulse)
    workers.pulse("a", replace(pulse, state=replace(pulse.state, lag_ns=3)))
    workers.pulse("a", replace(pulse, sequence=0, state=TrialState(loops=99)))  # of an earlier trial
    assert workers.state() == TrialState(14, 0, 60, 2, 4, 5)
    there.mute = {"b"}
    ended = workers.end(["a", "b"], 60.0)
    assert ended.total("interrupted") == 2
    assert ended.lost == (
        "worker 1 left: about 7 loops it had in flight, and what it had not sent, are missing",
    )
    assert there.clock() == 0


def test_worker_that_says_nothing_is_waited_for_as_long_as_it_may_drain_and_no_longer() -> None:
    there = Connected("a")
    workers = there.workers_of_test
    begin(workers, "a")
    there.send = lambda message, worker: None  # type: ignore[method-assign]
    assert workers.end(["a"], 4.0).lost == ("worker 0 left: what it had not sent is missing",)
    assert there.clock() == 19_000_000_000


def test_answer_to_an_earlier_trial_does_not_end_this_one() -> None:
    there = Connected("a")
    workers = there.workers_of_test
    begin(workers, "a")
    begin(workers, "a", strategy="sequential")
    there.mute = {"a"}
    workers.drained("a", Drained(1, interrupted=9))  # it answers for the first
    ended = workers.end(["a"], 0.0)
    assert (ended.drained, len(ended.lost)) == ((), 1)


def test_client_is_calibrated_once_and_its_capacity_is_that_of_all_workers() -> None:
    opened: list[bool] = []

    @contextlib.contextmanager
    def calibration() -> Iterator[str]:
        opened.append(True)
        yield "http://127.0.0.1:7"
        opened.append(False)

    there = Connected("a", "b", calibration=calibration)
    workers = there.workers_of_test
    there.answer = replace(there.answer, calibration=Calibration(32, 100, 0.5, 0.005))
    workers.prepare(OPTIONS, ROOT)
    assert opened == [True, False]
    assert workers.capacity == ClientCapacity(64, 400.0, 2000.0, 0.005)
    workers.prepare(OPTIONS, "http://127.0.0.1:2")  # prepared again, for another target
    assert opened == [True, False]
    servers = [message.calibration for _, message in there.sent if isinstance(message, Prepare)]
    assert servers == ["http://127.0.0.1:7"] * 2 + [None] * 2


@contextlib.contextmanager
def emulator() -> Iterator[str]:
    yield "http://127.0.0.1:7"


def test_clients_are_measured_by_one_worker() -> None:
    there = Connected("a", "b", calibration=emulator)
    workers = there.workers_of_test
    there.answer = replace(there.answer, calibration=Calibration(32, 100, 0.5, 0.005))
    workers.prepare(OPTIONS, ROOT)
    assert workers.capacity == ClientCapacity(64, 400.0, 2000.0, 0.005, {})
    there.request_cpu = (("lean", 0.0001), ("sdk", 0.002))
    workers.measure_clients(("lean", "sdk"))
    assert workers.capacity == ClientCapacity(64, 400.0, 2000.0, 0.005, {"lean": 0.0001, "sdk": 0.002})
    assert [(w, m) for w, m in there.sent if isinstance(m, MeasureClient)] == [
        ("a", MeasureClient("http://127.0.0.1:7", ("lean", "sdk")))
    ]


@pytest.mark.parametrize("answer", ["none", "leaves", "not calibrated"])
def test_client_that_cannot_be_measured_is_left_out(answer: str) -> None:
    """The loops are an agent's own, or no SDK is there; the worker leaves; nobody was calibrated."""
    there = Connected("a", calibration=emulator)
    workers = there.workers_of_test
    if answer != "not calibrated":
        there.answer = replace(there.answer, calibration=Calibration(32, 100, 0.5, 0.005))
    workers.prepare(OPTIONS, ROOT)
    there.mute = {"a"} if answer == "leaves" else set()
    workers.measure_clients(("sdk",))
    assert workers.capacity == (None if answer == "not calibrated" else ClientCapacity(32, 200, 1000, 0.005))
    assert there.told(MeasureClient) == ([] if answer == "not calibrated" else ["a"])


@pytest.mark.parametrize(("exit_code", "kind"), [(3, TargetError), (2, UsageError), (1, ProfilerError)])
def test_worker_that_cannot_ends_the_test_with_its_reason(exit_code: int, kind: type[Exception]) -> None:
    there = Connected("a")
    there.answer = Ready("openai: http_401", exit_code)
    with pytest.raises(kind, match="openai: http_401") as caught:
        there.workers_of_test.prepare(OPTIONS, ROOT)
    assert caught.type is kind


def test_test_without_workers_is_none() -> None:
    there = Connected()
    with pytest.raises(TargetError, match="no worker is left"):
        there.workers_of_test.prepare(OPTIONS, ROOT, patience=2.0)
    assert there.clock() == pytest.approx(2e9, abs=2e8)


def test_cutting_reaches_every_worker() -> None:
    there = Connected("a", "b")
    there.workers_of_test.cut()
    assert there.told(Cut) == ["a", "b"]


def test_limited_worker_asks_and_is_granted_and_what_it_spent_is_counted() -> None:
    there = Connected("a", "b")
    workers = there.workers_of_test
    options = LoadOptions(drain_seconds=0.0, max_requests=16)
    workers.prepare(options, ROOT)
    assert workers.grants.total == Spent(2, 4, 60, 8)  # the first loops
    begin(workers, "a", "b", options=options)
    assert [message.limited for _, message in there.sent if isinstance(message, Begin)] == [True, True]
    workers.pulse("a", asking(0, 0))
    workers.pulse("a", asking(1, 1))
    workers.pulse("b", Pulse(1, TrialState()))
    assert [message for _, message in there.sent if isinstance(message, Grant)] == [Grant(1, 1), Grant(1, 2)]
    assert workers.grants.exhausted() is None
    workers.end(["a", "b"], 0.0)
    assert workers.grants.total == Spent(20, 58, 60, 8)
    assert workers.grants.exhausted() == "requests"


def test_limit_that_cannot_be_kept_is_refused() -> None:
    """The first loops of an agent of the user's own are paid for; the built-in loop only asks once."""
    options = LoadOptions(max_loops=1, agent="my_app:agent", strategies=parse_strategies("gathered"))
    with pytest.raises(UsageError, match="--max-loops 1: the first loops of 2 workers alone need 2"):
        Connected("a", "b").workers_of_test.prepare(options, ROOT)
    there = Connected("a", "b")
    there.answer = Ready(spent=Spent(0, 1))
    there.workers_of_test.prepare(LoadOptions(max_loops=1), ROOT)
    assert there.workers_of_test.grants.total == Spent(0, 2)


def test_tokens_that_the_target_does_not_name_cannot_be_limited() -> None:
    there = Connected("a")
    there.answer = Ready(spent=Spent(1, 2))
    with pytest.raises(UsageError, match="--max-tokens: the target's first reply names no tokens, so"):
        there.workers_of_test.prepare(LoadOptions(max_tokens=1000), ROOT)


def test_tokens_that_only_some_replies_name_can_be_limited() -> None:
    there = Connected("a")
    there.answer = Ready(spent=Spent(1, 2, 30, 4, replies=2, unknown_replies=1))
    there.workers_of_test.prepare(LoadOptions(max_tokens=1000), ROOT)
    there = Connected("a")
    there.answer = Ready(spent=Spent(1, 2, 30, 4, replies=2, unknown_replies=2))  # each names but a part
    with pytest.raises(UsageError, match="names no tokens"):
        there.workers_of_test.prepare(LoadOptions(max_tokens=1000), ROOT)


def test_first_loop_that_failed_does_not_show_whether_the_target_names_tokens() -> None:
    there = Connected("a")
    there.answer = Ready(spent=Spent(1, 2), first_failure="http_503")
    with pytest.raises(TargetError, match=r"--max-cost: the first request failed \(http_503\), so whether"):
        there.workers_of_test.prepare(LoadOptions(max_cost=1.0, price="1/1"), ROOT)


def test_worker_that_has_left_does_not_keep_a_limit_from_ending_the_test() -> None:
    there = Connected("a", "b")
    workers = there.workers_of_test
    options = LoadOptions(drain_seconds=0.0, max_loops=4)
    workers.prepare(options, ROOT)
    begin(workers, "a", "b", options=options)
    workers.pulse("a", asking(0, 0))
    workers.pulse("b", asking(0, 0))
    workers.pulse("b", asking(1, 0))
    assert workers.exhausted() is None  # a was granted a loop and may still begin it
    there.names.remove("a")
    assert workers.exhausted() == "loops"
    assert workers.grants.total.loops == 4


def pulsed(agents: int) -> Pulse:
    return Pulse(1, TrialState(in_flight=agents, agents=agents))


def test_it_is_said_how_many_agents_were_left_until_others_had_the_place_of_a_lost_worker() -> None:
    there = Connected("a", "b", "c")
    workers = there.workers_of_test
    workers.prepare(OPTIONS, ROOT)
    begin(workers, "a", "b", "c")
    for second in range(12):  # c says nothing after 3 s; from 8 s on the others have its agents
        there.clock.now_ns = second * 1_000_000_000
        for name, agents in (("a", 4), ("b", 4), ("c", 4)):
            if name != "c" or second <= 3:
                workers.pulse(name, pulsed(agents + 2 * (second >= 8)))
        workers.look(12)
    there.mute = {"c"}
    ended = workers.end(["a", "b", "c"], 0.0)
    assert ended.lost == (
        "worker 2 left: about 4 loops it had in flight, and what it had not sent, are missing; "
        "8 of 12 agents were left for 5 s, until others had taken their place",
    )


def test_agents_that_nobody_replaces_are_left_out_to_the_end_of_the_trial() -> None:
    there = Connected("a", "b")
    workers = there.workers_of_test
    begin(workers, "a", "b")
    workers.pulse("a", pulsed(3))
    workers.pulse("b", pulsed(3))
    workers.look(6)
    there.clock.now_ns = 3_000_000_000
    workers.pulse("a", pulsed(3))
    workers.look(6)
    there.mute = {"b"}
    (lost,) = workers.end(["a", "b"], 0.0).lost
    assert lost.endswith("; 3 of 6 agents were left for 3 s, to the end of the trial")


def test_worker_that_is_lost_as_a_trial_ends_leaves_as_many_agents_as_the_others_had_then() -> None:
    there = Connected("a", "b")
    workers = there.workers_of_test
    begin(workers, "a", "b")
    there.drained = replace(there.drained, sequence=1, agents=3)
    workers.pulse("b", pulsed(2))
    there.mute = {"b"}
    (lost,) = workers.end(["a", "b"], 0.0).lost
    assert lost.endswith("are missing; 3 of 5 agents were left at the end of the trial")


def test_worker_that_did_not_say_that_it_has_drained_may_still_have_agents_that_run() -> None:
    there = Connected("a", "b")
    workers = there.workers_of_test
    assert not workers.has_agents("a")
    begin(workers, "a", "b")
    assert [workers.has_agents(name) for name in "ab"] == [True, True]
    there.mute = {"b"}
    workers.end(["a", "b"], 0.0)
    assert [workers.has_agents(name) for name in "ab"] == [False, True]
    begin(workers, "a")
    workers.end(["a"], 0.0)
    assert [workers.has_agents(name) for name in "ab"] == [False, True]


def test_workers_that_are_all_heard_leave_no_shortage_to_speak_of() -> None:
    there = Connected("a", "b")
    workers = there.workers_of_test
    begin(workers, "a", "b")
    workers.pulse("a", pulsed(3))
    workers.look(6)  # b has not said anything yet
    there.mute = {"b"}
    assert workers.end(["a", "b"], 0.0).lost == ("worker 0 left: what it had not sent is missing",)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            Returned(3, 20.4),
            "worker 1 stood still for 20 s and came back when others had its agents: it began nothing more "
            "and left; 3 loops that it had in flight are in no figure",
        ),
        (
            Returned(1),
            "worker 1 had lost its connection and came back when others had its agents: it began nothing "
            "more and left; 1 loop that it had in flight are in no figure",
        ),
    ],
)
def test_worker_that_returns_is_told_of_in_words(message: Returned, said: str) -> None:
    there = Connected("a", "b")
    there.workers_of_test.prepare(OPTIONS, ROOT)
    assert there.workers_of_test.describe_returned("b", message) == said
