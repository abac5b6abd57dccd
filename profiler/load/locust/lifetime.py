"""Leaving when whoever started or leads this process is gone, however it went.

Locust's workers notice a killed master after 60 s, and would go on loading the target until
then. A pipe whose other end the parent holds closes at once, and so does the connection to a
master on another machine.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.socket import wait_read

from profiler.load.experiment import PARENT_FD
from profiler.load.locust.quirks import native_sleep
from profiler.loop.eventloop import start_native_thread

RECONNECT_SECONDS = 3.0
"""How long a worker waits for a heartbeat after its connection to the master broke."""

EXIT_SECONDS = 10.0
"""How long an orderly exit may take before the process ends itself."""


class ForkPipe:
    """A pipe made before Locust forks its workers: each of them sees it close when the parent dies.

    Locust's worker looks for its master for minutes before it calls any of our code, so the
    child watches from its first moment on, in a native thread, and `leave` is only the orderly way.
    The other way round each child holds the end of a pipe of its own, since a master that waits for
    workers is told of none that never came.
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
        """What is forked from here on (by a `subprocess` of gevent's) is no worker."""
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
            os.close(self._next[0])  # the other end closes with this process
            self._next = None
        self._forking = False
        if self._write >= 0:
            os.close(self._write)
            self._write = -1
            start_native_thread(self._watch)

    def _watch(self) -> None:
        with contextlib.suppress(OSError):
            os.read(self._read, 1)
        native_sleep(EXIT_SECONDS)
        os._exit(1)


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
    """Call `leave` in a greenlet once the worker's connection to its master broke for good."""
    import zmq
    from zmq.utils.monitor import parse_monitor_message

    heard = time.monotonic()

    def on_heartbeat(**_: Any) -> None:
        nonlocal heard
        heard = time.monotonic()

    def watch() -> None:
        monitor = runner.client.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        while True:
            try:
                parse_monitor_message(monitor.recv_multipart())
            except zmq.ZMQError:
                return  # the socket was closed
            broke = time.monotonic()
            gevent.sleep(RECONNECT_SECONDS)
            if heard < broke:
                leave()
                return

    runner.environment.events.heartbeat_received.add_listener(on_heartbeat)
    gevent.spawn(watch)


def exit_at_the_latest(seconds: float = EXIT_SECONDS) -> None:
    """End this process after `seconds`, whatever it hangs in by then."""

    def end() -> None:
        native_sleep(seconds)
        os._exit(1)

    start_native_thread(end)
