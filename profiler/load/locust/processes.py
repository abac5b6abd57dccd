"""The processes of a load test under Locust: their messages, and leaving when another one is gone.

Locust's workers notice only after 60 s that their master was killed, and would load the target until then.
A pipe whose other end the parent holds closes at once, however the parent ended, and so does the connection
to a master on another machine.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

import gevent
from gevent.socket import wait_read
from locust.runners import LocalRunner

from profiler.load.locust_process import PARENT_FD
from profiler.load.messages import ToLeader, ToWorker, pack, unpack, wire_name
from profiler.loop.eventloop import native_sleep, start_native_thread

M = TypeVar("M", bound=ToWorker | ToLeader)

QUIT_SECONDS = 1.0
"""How long a worker whose connection broke waits for the master's word that the test is over."""

EXIT_SECONDS = 10.0
"""How long an orderly exit may take before the process ends itself."""


def send(runner: Any, message: ToWorker | ToLeader, worker: str | None = None) -> None:
    """Send a message to a worker, or from one to its leader."""
    # In a single process the message itself is passed on: nothing is packed, or read again.
    data = message if isinstance(runner, LocalRunner) else pack(message)
    runner.send_message(wire_name(type(message)), data, worker)


def receive(
    runner: Any, kind: type[M], handle: Callable[[str, M], object], *, concurrent: bool = False
) -> None:
    """Have `handle(node, message)` called for every message of that kind; if `concurrent`, it may block."""

    def listen(environment: Any, msg: Any, **_: Any) -> None:
        handle(msg.node_id, msg.data if isinstance(msg.data, kind) else unpack(kind, msg.data))

    runner.register_message(wire_name(kind), listen, concurrent=concurrent)


class LocalTransport:
    """The only process, as its own single worker. A `workers.Transport`."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def workers(self) -> list[str]:
        return ["local"]

    def users(self) -> int:
        return int(self._runner.user_count)

    def wanted_users(self) -> int:
        return int(self._runner.target_user_count)

    def scale(self, users: int, rate: float) -> None:
        self._runner.start(users, rate)

    def send(self, message: ToWorker, worker: str) -> None:
        send(self._runner, message, worker)


class MasterTransport(LocalTransport):
    """The workers of a Locust master that have said (`Hello`) that they listen to our messages."""

    def __init__(self, runner: Any, greeted: set[str]) -> None:
        super().__init__(runner)
        self._greeted = greeted

    def workers(self) -> list[str]:
        clients = self._runner.clients
        alive = [client.id for client in (*clients.ready, *clients.spawning, *clients.running)]
        return sorted((id for id in alive if id in self._greeted), key=self._runner.get_worker_index)


class ForkPipe:
    """Pipes between a process and the workers that Locust forks from it: each side sees the other one end.

    Made before Locust forks. A Locust worker may look for its master for minutes before it calls any of our
    code, so a child watches the parent from its first moment on, in a native thread; `Session` is the orderly
    way. The other way round, each child holds the write end of a pipe of its own, because a master that waits
    for workers is not told of one that ended before it connected.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._read, self._write = os.pipe()
        self._children: list[int] = []
        self._next: tuple[int, int] | None = None
        self._forking = True
        os.register_at_fork(
            before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child
        )

    def child_end(self) -> int | None:
        """In a child of the process that made the pipe: the descriptor to watch."""
        return self._read if os.getpid() != self._pid else None

    def all_forked(self) -> None:
        """Count nothing that is forked from here on: it is a `subprocess` of gevent's, and no worker."""
        self._forking = False

    def children_gone(self) -> int:
        """How many of the workers forked here have ended."""
        gone = 0
        for fd in self._children:
            try:
                gone += os.read(fd, 1) == b""
            except BlockingIOError:
                continue
        return gone

    def _before(self) -> None:
        if self._forking:
            self._next = os.pipe()

    def _in_parent(self) -> None:
        if self._next is not None:
            (fd, its_end), self._next = self._next, None
            os.close(its_end)
            os.set_blocking(fd, False)
            self._children.append(fd)

    def _in_child(self) -> None:
        for fd in self._children:
            os.close(fd)
        self._children.clear()
        if self._next is not None:
            os.close(self._next[0])  # the other end stays open, and closes with this process
            self._next = None
        self._forking = False
        if self._write >= 0:
            os.close(self._write)
            self._write = -1
            start_native_thread(self._watch_parent)

    def _watch_parent(self) -> None:
        with contextlib.suppress(OSError):
            os.read(self._read, 1)
        _end_process()


def inherited_fd() -> int | None:
    """The descriptor that a parent of ours handed down, if any."""
    value = os.environ.get(PARENT_FD, "")
    return int(value) if value.isdigit() else None


def when_closed(fd: int, leave: Callable[[], None]) -> None:
    """Call `leave` in a greenlet once `fd`, to which nothing is ever written, reads end-of-file."""

    def watch() -> None:
        wait_read(fd)
        leave()

    gevent.spawn(watch)


def when_disconnected(runner: Any, leave: Callable[[], None]) -> None:
    """Call `leave` in a greenlet once the worker's connection to its master broke.

    ZeroMQ connects again by itself, but what was on the way is lost, in both directions and in silence: loops
    that had ended, or the word that a trial is over.
    """
    import zmq
    from zmq.utils.monitor import parse_monitor_message

    def watch() -> None:
        monitor = runner.client.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            parse_monitor_message(monitor.recv_multipart())
        except zmq.ZMQError:
            return  # the socket was closed
        gevent.sleep(QUIT_SECONDS)  # a master that is done says so, and closes
        leave()

    gevent.spawn(watch)


def exit_at_the_latest() -> None:
    """End this process after `EXIT_SECONDS`, whatever it hangs in by then."""
    start_native_thread(_end_process)


def _end_process() -> None:
    native_sleep(EXIT_SECONDS)
    os._exit(1)
