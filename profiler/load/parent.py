"""Leaving when whoever started or leads this process is gone, however it went.

Locust's workers notice a killed master after 60 s, and would go on loading the target until
then. A pipe whose other end the parent holds closes at once, and so does the connection to a
master on another machine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import gevent

from profiler.threads import start_native_thread

PARENT_FD = "PROFILER_PARENT_FD"
"""Environment variable: number of an inherited descriptor that reads end-of-file when the parent goes."""

RECONNECT_SECONDS = 5.0
"""How long a worker waits for a heartbeat after its connection to the master broke."""

EXIT_SECONDS = 10.0
"""How long an orderly exit may take before the process ends itself."""

_log = logging.getLogger(__name__)


class ForkPipe:
    """A pipe made before Locust forks its workers: each of them sees it close when the parent dies."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._read, self._write = os.pipe()

    def forked(self) -> bool:
        """Whether this process is a child of the one that made the pipe."""
        return os.getpid() != self._pid

    def child_end(self) -> int:
        """In a child: the descriptor to watch. Gives up the child's copy of the other end."""
        os.close(self._write)
        return self._read


def inherited_fd() -> int | None:
    """The descriptor that a parent of ours handed down, if any."""
    value = os.environ.get(PARENT_FD, "")
    return int(value) if value.isdigit() else None


def when_closed(fd: int, leave: Callable[[], None]) -> None:
    """Call `leave` in a greenlet once `fd` reads end-of-file."""

    def watch() -> None:
        from gevent.os import nb_read

        os.set_blocking(fd, False)
        with contextlib.suppress(OSError):
            while nb_read(fd, 64):
                pass
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
    native_sleep = time.sleep
    import sys

    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        native_sleep = monkey.get_original("time", "sleep")

    def end() -> None:
        native_sleep(seconds)
        os._exit(1)

    start_native_thread(end)
