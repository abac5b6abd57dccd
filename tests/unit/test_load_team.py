"""Leading workers by messages: who is prepared, who takes which entries, who is waited for."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from profiler.errors import ProfilerError, TargetError, UsageError
from profiler.load.options import LoadOptions
from profiler.load.plan import PlannedTrial
from profiler.load.team import BEGIN, CUT, DRAINED, END, GRANT, PREPARE, PULSE, READY, Pulse, Team
from profiler.rundir import Capacity, Spent

OPTIONS = LoadOptions(drain_seconds=0.0)


class Workers:
    """A roster whose workers answer at once; `mute` ones leave when they are told something."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.sent: list[tuple[str, str, dict[str, Any]]] = []
        self.refusal: dict[str, Any] = {"error": None, "exit_code": 0}
        self.mute: set[str] = set()
        self.nameless = False
        self.first_failure: str | None = None
        self.turns: dict[str, int] = {}
        self.team = Team(self)

    def workers(self) -> list[str]:
        return list(self.names)

    def users(self) -> int:
        return 0

    def send(self, kind: str, data: dict[str, Any], worker: str) -> None:
        self.sent.append((kind, worker, data))
        if worker in self.mute:
            self.names.remove(worker)
        elif kind == PREPARE:
            answer = {**self.refusal, "loop_seconds": 0.1 * (1 + data["worker"]), "model": "m"}
            tokens = {} if self.nameless else {"input_tokens": 30, "output_tokens": 4}
            answer["spent"] = {"loops": 1, "requests": 2, **tokens}
            answer["first_failure"] = self.first_failure
            self.team.answered(READY, worker, answer)
        elif kind == BEGIN:
            self.turns[worker] = data["turn"]
        elif kind == END:
            answer = {
                "turn": self.turns[worker],
                "interrupted": 2,
                "loops": 9,
                "arrived": 10,
                "late": 1,
                "dropped": 0,
                "begun": 9,
                "spent": {"requests": 27},
            }
            health = {"process": worker, "trial": 4, "loop_lag_p99": 0.5}
            self.team.answered(DRAINED, worker, {**answer, "health": health})

    def told(self, kind: str) -> list[str]:
        return [worker for sent, worker, _ in self.sent if sent == kind]


def test_a_worker_is_prepared_once_for_the_same_options_and_target() -> None:
    workers = Workers("a", "b")
    assert workers.team.enlist(OPTIONS, "http://127.0.0.1:1") == ["a", "b"]
    assert workers.team.loop_seconds == pytest.approx(0.2)
    assert workers.team.model == "m"
    workers.names.append("c")
    assert workers.team.enlist(OPTIONS, "http://127.0.0.1:1") == ["a", "b", "c"]
    assert workers.told(PREPARE) == ["a", "b", "c"]
    workers.team.enlist(OPTIONS, "http://127.0.0.1:2")
    assert workers.told(PREPARE) == ["a", "b", "c", "a", "b", "c"]


def test_a_trial_tells_each_worker_its_share_and_waits_for_all() -> None:
    workers = Workers("a", "b")
    options = LoadOptions(arrivals="6/s", max_in_flight=5, seed=9)
    workers.team.begin(["a", "b"], PlannedTrial(4, 1, "gathered"), options, sources=20, spread_seconds=0.5)
    told = {
        "index": 4,
        "block": 1,
        "strategy": "gathered",
        "turn": 1,
        "workers": 2,
        "limited": False,
        "seed": 9,
        "arrivals": {"rate": 6.0, "sources": 20, "constant": False},
        "think_seconds": 0.0,
        "spread_seconds": 0.5,
    }
    assert workers.sent == [
        (BEGIN, "a", {**told, "worker": 0, "places": 3}),
        (BEGIN, "b", {**told, "worker": 1, "places": 2}),
    ]
    ended = workers.team.end(["a", "b"], 3.0)
    assert (ended.interrupted, ended.loops, ended.arrived, ended.late, ended.dropped) == (4, 18, 20, 2, 0)
    assert [health.loop_lag_p99 for health in ended.health] == [0.5, 0.5]
    assert ended.lost == ()
    assert workers.sent[2:] == [(END, "a", {"drain_seconds": 3.0}), (END, "b", {"drain_seconds": 3.0})]


def test_what_is_not_measured_has_no_index() -> None:
    workers = Workers("a")
    workers.team.begin(["a"], PlannedTrial(-1, 999, "gathered"), OPTIONS, sources=1)
    assert (workers.sent[0][2]["index"], workers.sent[0][2]["arrivals"]) == (None, None)


def test_a_worker_that_leaves_is_counted_and_not_waited_for() -> None:
    workers = Workers("a", "b")
    workers.team.enlist(OPTIONS, "http://127.0.0.1:1")
    workers.team.begin(["a", "b"], PlannedTrial(0, 0, "gathered"), OPTIONS, sources=1)
    pulse = {
        "turn": 1,
        "asks": False,
        "begun": 37,
        "spent": {"requests": 60},
        "in_flight": 7,
        "waiting": 0,
        "loops": 30,
        "failed": 1,
        "rate_limited": 2,
        "lag_ns": 5,
    }
    workers.team.answered(PULSE, "b", dict(pulse))
    workers.team.answered(PULSE, "a", {**pulse, "lag_ns": 3})
    workers.team.answered(PULSE, "a", {**pulse, "turn": 0, "loops": 99})  # of an earlier trial
    assert workers.team.pulse() == Pulse(14, 0, 60, 2, 4, 5)
    workers.mute = {"b"}
    ended = workers.team.end(["a", "b"], 60.0)
    assert ended.interrupted == 2
    assert ended.lost == (
        "worker 1 left: about 7 loops it had in flight, and what it had not sent, are missing",
    )


def test_an_answer_to_an_earlier_trial_does_not_end_this_one() -> None:
    workers = Workers("a")
    workers.team.begin(["a"], PlannedTrial(0, 0, "gathered"), OPTIONS, sources=1)
    workers.team.begin(["a"], PlannedTrial(1, 0, "sequential"), OPTIONS, sources=1)
    workers.turns["a"] = 1  # it answers for the first
    workers.mute = {"a"}
    workers.team.answered(DRAINED, "a", {"turn": 1, "interrupted": 9})
    ended = workers.team.end(["a"], 0.0)
    assert (ended.interrupted, len(ended.lost)) == (0, 1)


def test_the_client_is_calibrated_once_and_its_capacity_is_that_of_all_workers() -> None:
    opened: list[bool] = []

    @contextlib.contextmanager
    def calibration() -> Iterator[str]:
        opened.append(True)
        yield "http://127.0.0.1:7"
        opened.append(False)

    workers = Workers("a", "b")
    workers.team = Team(workers, calibration)
    workers.refusal["calibration"] = {"loops": 100, "seconds": 0.5, "lone_seconds": 0.005, "agents": 32}
    workers.team.enlist(OPTIONS, "http://127.0.0.1:1")
    assert opened == [True, False]
    assert [data["calibration"] for kind, _, data in workers.sent] == ["http://127.0.0.1:7"] * 2
    assert workers.team.capacity == Capacity(64, 400.0, 2000.0, 0.005)
    workers.team.enlist(OPTIONS, "http://127.0.0.1:2")  # prepared again, for another target
    assert opened == [True, False]
    assert [data["calibration"] for kind, _, data in workers.sent[2:]] == [None, None]


@pytest.mark.parametrize(("exit_code", "kind"), [(3, TargetError), (2, UsageError), (1, ProfilerError)])
def test_what_a_worker_cannot_do_ends_the_test_with_its_reason(exit_code: int, kind: type[Exception]) -> None:
    workers = Workers("a")
    workers.refusal = {"error": "openai: http_401", "exit_code": exit_code}
    with pytest.raises(kind, match="openai: http_401") as caught:
        workers.team.enlist(OPTIONS, "http://127.0.0.1:1")
    assert caught.type is kind


def test_without_workers_there_is_no_test() -> None:
    with pytest.raises(TargetError, match="no worker is left"):
        Workers().team.enlist(OPTIONS, "http://127.0.0.1:1", patience=0)


def test_cutting_reaches_every_worker() -> None:
    workers = Workers("a", "b")
    workers.team.cut()
    assert workers.told(CUT) == ["a", "b"]


def test_a_limited_worker_asks_and_is_granted_and_what_it_spent_is_counted() -> None:
    workers = Workers("a", "b")
    options = LoadOptions(drain_seconds=0.0, max_requests=16)
    workers.team.enlist(options, "http://127.0.0.1:1")
    assert workers.team.grants.total == Spent(2, 4, 60, 8)  # the first loops
    workers.team.begin(["a", "b"], PlannedTrial(0, 0, "gathered"), options, sources=1)
    assert [data["limited"] for kind, _, data in workers.sent if kind == BEGIN] == [True, True]
    pulse = {"turn": 1, "waiting": 0, "loops": 0, "failed": 0, "rate_limited": 0, "lag_ns": 0}
    asking = {**pulse, "asks": True, "spent": {}}
    workers.team.answered(PULSE, "a", {**asking, "begun": 0, "in_flight": 0})
    workers.team.answered(PULSE, "a", {**asking, "begun": 1, "in_flight": 1})
    workers.team.answered(PULSE, "b", {**pulse, "asks": False, "spent": {}, "begun": 0, "in_flight": 0})
    assert [data for kind, _, data in workers.sent if kind == GRANT] == [
        {"turn": 1, "loops": 1},
        {"turn": 1, "loops": 2},
    ]
    assert workers.team.grants.exhausted() is None
    workers.team.end(["a", "b"], 0.0)
    assert workers.team.grants.total == Spent(20, 58, 60, 8)
    assert workers.team.grants.exhausted() == "requests"


def test_a_limit_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(UsageError, match="--max-loops 1: the first loops of 2 workers alone need 2"):
        Workers("a", "b").team.enlist(LoadOptions(max_loops=1), "http://127.0.0.1:1")


def test_tokens_that_the_target_does_not_name_cannot_be_limited() -> None:
    workers = Workers("a")
    workers.nameless = True
    with pytest.raises(
        UsageError, match="--max-tokens: the target's reply to the first loop names no tokens, so"
    ):
        workers.team.enlist(LoadOptions(max_tokens=1000), "http://127.0.0.1:1")


def test_a_first_loop_that_failed_does_not_show_whether_the_target_names_tokens() -> None:
    workers = Workers("a")
    workers.nameless, workers.first_failure = True, "http_503"
    with pytest.raises(TargetError, match=r"--max-cost: the first loop failed \(http_503\), so whether"):
        workers.team.enlist(LoadOptions(max_cost=1.0, price="1/1"), "http://127.0.0.1:1")


def test_a_worker_that_has_left_does_not_keep_a_limit_from_ending_the_test() -> None:
    workers = Workers("a", "b")
    options = LoadOptions(drain_seconds=0.0, max_loops=4)
    workers.team.enlist(options, "http://127.0.0.1:1")
    workers.team.begin(["a", "b"], PlannedTrial(0, 0, "gathered"), options, sources=1)
    asking = {"turn": 1, "waiting": 0, "loops": 0, "failed": 0, "rate_limited": 0, "lag_ns": 0, "spent": {}}
    workers.team.answered(PULSE, "a", {**asking, "asks": True, "begun": 0, "in_flight": 0})
    workers.team.answered(PULSE, "b", {**asking, "asks": True, "begun": 0, "in_flight": 0})
    workers.team.answered(PULSE, "b", {**asking, "asks": True, "begun": 1, "in_flight": 0})
    assert workers.team.exhausted() is None  # a was granted a loop and may still begin it
    workers.names.remove("a")
    assert workers.team.exhausted() == "loops"
    assert workers.team.grants.total.loops == 4
