"""Leading workers by messages: who is prepared, who takes which entries, who is waited for."""

from typing import Any

import pytest

from profiler.errors import ProfilerError, TargetError, UsageError
from profiler.load.options import LoadOptions
from profiler.load.team import BEGIN, CUT, DRAINED, END, PREPARE, READY, Team

OPTIONS = LoadOptions(drain_seconds=0.0)


class Workers:
    """A roster whose workers answer at once; `mute` ones leave when they are told something."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.sent: list[tuple[str, str, dict[str, Any]]] = []
        self.refusal: dict[str, Any] = {"error": None, "exit_code": 0}
        self.mute: set[str] = set()
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
            self.team.answered(READY, worker, answer)
        elif kind == BEGIN:
            self.turns[worker] = data["turn"]
        elif kind == END:
            self.team.answered(DRAINED, worker, {"turn": self.turns[worker], "interrupted": 2})

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
    workers.team.begin(["a", "b"], index=4, block=1, strategy="gathered")
    assert workers.sent == [
        (BEGIN, "a", {"index": 4, "block": 1, "strategy": "gathered", "turn": 1, "worker": 0, "workers": 2}),
        (BEGIN, "b", {"index": 4, "block": 1, "strategy": "gathered", "turn": 1, "worker": 1, "workers": 2}),
    ]
    assert workers.team.end(["a", "b"], 3.0) == (4, 0)
    assert workers.sent[2:] == [(END, "a", {"drain_seconds": 3.0}), (END, "b", {"drain_seconds": 3.0})]


def test_a_worker_that_leaves_is_counted_and_not_waited_for() -> None:
    workers = Workers("a", "b")
    workers.team.begin(["a", "b"], 0, 0, "gathered")
    workers.mute = {"b"}
    assert workers.team.end(["a", "b"], 60.0) == (2, 1)


def test_an_answer_to_an_earlier_trial_does_not_end_this_one() -> None:
    workers = Workers("a")
    workers.team.begin(["a"], 0, 0, "gathered")
    workers.team.begin(["a"], 1, 0, "sequential")
    workers.turns["a"] = 1  # it answers for the first
    workers.mute = {"a"}
    workers.team.answered(DRAINED, "a", {"turn": 1, "interrupted": 9})
    assert workers.team.end(["a"], 0.0) == (0, 1)


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
