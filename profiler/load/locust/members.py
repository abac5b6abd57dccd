"""Who is a worker of a Locust master's test: those that run what it runs, until they are lost."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent

from profiler.load.identity import difference, own_hello
from profiler.load.locust.processes import receive, send
from profiler.load.locust.quirks import LostWorkers
from profiler.load.messages import Beat, Dismiss, Heard, Hello, Returned

LOOK_SECONDS = 0.25
"""Locust takes a worker for missing with one of its heartbeats, which come every second."""

SILENT_SECONDS = 6.0
"""A worker of ours says what it runs as soon as it is connected; after so long it is none of ours."""

_log = logging.getLogger(__name__)


class Members:
    """The workers that a master has, and what it tells them of that.

    `greeted` are those that run the same, by Locust's ids. `strict`: strangers end the test (`stranger`),
    else the test goes on without them. `on_returned` is called with a worker that was lost, and left.
    `has_agents` tells whether a worker's agents may run loops.
    """

    def __init__(
        self,
        environment: Any,
        runner: Any,
        on_returned: Callable[[str, Returned], None],
        has_agents: Callable[[str], bool],
    ) -> None:
        self.greeted: set[str] = set()
        self.strict = bool(environment.parsed_options.headless)
        self.stranger: str | None = None
        self._runner = runner
        self._lost = LostWorkers(runner, has_agents)
        self._own = own_hello(environment.parsed_locustfiles or ())
        self._hellos: dict[str, Hello] = {}
        self._connected: dict[str, float] = {}
        self._refused: set[str] = set()
        receive(runner, Hello, self._hello)
        receive(runner, Beat, self._beat)
        receive(runner, Returned, on_returned)
        gevent.spawn(self._watch)

    def end_stopped(self) -> None:
        """End the workers forked here that stand still: this process would wait for them for ever."""
        for worker, hello in self._hellos.items():
            forked = hello.parent == os.getpid() and hello.pid
            if forked and (worker in self._lost.ids or _is_stopped(hello.pid)):
                with contextlib.suppress(OSError):
                    os.kill(hello.pid, signal.SIGKILL)

    def dismiss_all(self) -> None:
        """Have all workers leave, before there was a test."""
        for client in self._runner.clients.all:
            self._quit(client.id)

    def _hello(self, worker: str, message: Hello) -> None:
        self._hellos[worker] = message
        wrong = difference(self._own, message)
        if wrong is None:
            self.greeted.add(worker)
        else:
            self._refuse(worker, f"{wrong}: start all of them with the same")

    def _beat(self, worker: str, message: Beat) -> None:
        lost = worker in self._lost.ids
        send(self._runner, Dismiss() if lost else Heard(message.sent_ns), worker)

    def _watch(self) -> None:
        while True:
            gevent.sleep(LOOK_SECONDS)
            self._lost.look()
            gevent.spawn(self._lost.hand_over)
            self._look_for_strangers()

    def _look_for_strangers(self) -> None:
        now = time.monotonic()
        there = {client.id for client in self._runner.clients.all}
        silent = there - self.greeted - self._refused
        self._connected = {worker: self._connected.get(worker, now) for worker in silent}
        for worker, since in self._connected.items():
            if now - since > SILENT_SECONDS:
                self._refuse(
                    worker,
                    f"it does not answer, so it runs another Locust file than {self._own.file} or another "
                    f"toolcall-profiler than {self._own.version}: start all of them with the same",
                )

    def _refuse(self, worker: str, wrong: str) -> None:
        self._refused.add(worker)
        said = f"worker {shown(worker)} cannot take part: {wrong}"
        if self.strict:
            self.stranger = said
            return
        _log.warning("%s; the test goes on without it", said)
        self._quit(worker)

    def _quit(self, worker: str) -> None:
        """Locust's own word, which every worker understands."""
        from locust.rpc import Message

        self._runner.server.send_to_client(Message("quit", None, worker))


def shown(worker: str) -> str:
    """Locust's id of a worker, its host and 32 digits, with as many of these as tell workers apart."""
    host, _, digits = worker.rpartition("_")
    return f"{host}_{digits[:8]}"


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False
