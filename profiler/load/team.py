"""Who runs loops in a load test, and how the one that leads talks to them.

Messages to a worker: PREPARE, BEGIN, END, CUT; from it: HELLO, READY, RECORDS, DRAINED. On a
single process the same messages go to itself.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

from gevent.event import Event

from profiler.errors import ProfilerError, TargetError, UsageError
from profiler.load.options import LoadOptions

PREPARE, BEGIN, END, CUT = "toolcall_prepare", "toolcall_begin", "toolcall_end", "toolcall_cut"
HELLO, READY, RECORDS, DRAINED = "toolcall_hello", "toolcall_ready", "toolcall_records", "toolcall_drained"

PREPARE_SECONDS = 60.0
ANSWER_SECONDS = 15.0
"""How much longer than the drain itself a worker may take to say that it has drained."""


class Roster(Protocol):
    """Who is there, and how to reach them."""

    def workers(self) -> list[str]:
        """Ids of the workers that are alive, in an order that stays."""

    def users(self) -> int:
        """How many users there are now."""

    def send(self, kind: str, data: dict[str, Any], worker: str) -> None: ...


class Answers:
    """Waits until each of a set of workers has answered, or is gone."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._given: dict[str, dict[str, Any]] = {}
        self._came = Event()

    def give(self, worker: str, data: dict[str, Any]) -> None:
        self._given[worker] = data
        self._came.set()

    def wait(self, workers: list[str], seconds: float) -> dict[str, dict[str, Any]]:
        """The answers that came within `seconds`; a worker that vanished is not waited for."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            alive = self._roster.workers()
            if all(worker in self._given or worker not in alive for worker in workers):
                break
            self._came.wait(min(left, 0.2))
            self._came.clear()
        return {worker: self._given[worker] for worker in workers if worker in self._given}


class Team:
    """The workers of a load test: prepared for one set of options and one target, led through trials.

    Worker k of the W that `enlist` returned takes the tape entries i ≡ k (mod W). `loop_seconds`
    is the longest that a worker took for its first loop, `model` the name of the model they use.
    """

    def __init__(self, roster: Roster) -> None:
        self.loop_seconds = 0.0
        self.model = ""
        self._roster = roster
        self._wanted: tuple[LoadOptions, str] | None = None
        self._prepared: set[str] = set()
        self._ready = Answers(roster)
        self._drained = Answers(roster)
        self._turn = 0

    def users(self) -> int:
        """How many users there are now."""
        return self._roster.users()

    def enlist(self, options: LoadOptions, root: str, patience: float = PREPARE_SECONDS) -> list[str]:
        """The workers that are ready for the next trial; those that are new are prepared first.

        Waits up to `patience` seconds for the first worker. Raises `ProfilerError` when a worker
        cannot do what is asked, or none comes.
        """
        if self._wanted != (options, root):
            self._wanted = (options, root)
            self._prepared.clear()
            self._ready = Answers(self._roster)
        deadline = time.monotonic() + patience
        while not (workers := self._roster.workers()):
            if time.monotonic() > deadline:
                raise TargetError("no worker is left to run loops")
            Event().wait(0.1)
        new = [worker for worker in workers if worker not in self._prepared]
        for number, worker in enumerate(workers):
            if worker in new:
                data = {"options": options.as_data(), "root": root, "worker": number}
                self._roster.send(PREPARE, data, worker)
        for worker, answer in self._ready.wait(new, PREPARE_SECONDS).items():
            if answer["error"] is not None:
                kinds = {kind.exit_code: kind for kind in (ProfilerError, UsageError, TargetError)}
                raise kinds[answer["exit_code"]](answer["error"])
            self._prepared.add(worker)
            self.model = answer["model"]
            self.loop_seconds = max(self.loop_seconds, answer["loop_seconds"])
        return [worker for worker in workers if worker in self._prepared]

    def begin(self, workers: list[str], index: int | None, block: int, strategy: str) -> None:
        """Open a trial on each of them; `index` None: not measured."""
        self._turn += 1
        self._drained = Answers(self._roster)
        for number, worker in enumerate(workers):
            data = {"index": index, "block": block, "strategy": strategy, "turn": self._turn}
            self._roster.send(BEGIN, {**data, "worker": number, "workers": len(workers)}, worker)

    def end(self, workers: list[str], drain_seconds: float) -> tuple[int, int]:
        """Close the trial and wait until all have drained; returns (loops cut off, workers lost)."""
        for worker in workers:
            self._roster.send(END, {"drain_seconds": drain_seconds}, worker)
        answers = self._drained.wait(workers, drain_seconds + ANSWER_SECONDS)
        interrupted = sum(int(answer["interrupted"]) for answer in answers.values())
        return interrupted, len(workers) - len(answers)

    def cut(self) -> None:
        """Have all loops under way cancelled."""
        for worker in self._roster.workers():
            self._roster.send(CUT, {}, worker)

    def answered(self, kind: str, worker: str, data: dict[str, Any]) -> None:
        """A worker's READY or DRAINED has come."""
        if kind == READY:
            self._ready.give(worker, data)
        elif data["turn"] == self._turn:  # else it had been given up by then
            self._drained.give(worker, data)
