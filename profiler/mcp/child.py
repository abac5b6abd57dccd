"""A child process that speaks on its standard streams, and ends with this one.

Without `subprocess` and asyncio's processes: where gevent has patched this process, the former is gevent's,
which waits for a hub, and the latter need a child watcher, which a thread beside gevent has none of.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from profiler.loop.eventloop import unpatched
from profiler.mcp.guard import close, guard
from profiler.process.lifetime import at_exit, in_forked_child
from profiler.providers.connections import plain_words

_OUR_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ", "SIGINT") if hasattr(signal, name)
)
"""Which Python, or a shell that started it in the background, has this process ignore."""


PASSED_ON = ("HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER")
"""Variables that a server gets, beside `LC_…`: about those that the official SDK passes on."""


def child_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a server gets of this process's environment, which may hold keys of models, and of other servers.

    A user who means it to have more says so: `env NAME=VALUE command`.
    """
    return {
        name: value
        for name, value in environment.items()
        if (name in PASSED_ON or name.startswith("LC_")) and not value.startswith("()")
    }


SHOWN_LINES = 3
SHOWN_CHARACTERS = 400


def last_lines(said: str) -> str:
    """The end of what a process wrote to its standard error, in one line."""
    lines = [plain_words(one) for one in said[-4096:].splitlines()]
    return " | ".join([one for one in lines if one][-SHOWN_LINES:])[-SHOWN_CHARACTERS:]


class Child:
    """A process in a group of its own, with pipes to it that do not block.

    `stdin`, `stdout` and `stderr` are descriptors, None once closed. Raises `OSError`, or `ValueError` for a
    command that cannot be one.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        path = shutil.which(command[0], path=environment.get("PATH"))
        if path is None:
            raise FileNotFoundError(f"there is no program {command[0]!r}: is it installed, and in PATH?")
        self.exit_code: int | None = None  # negative: a signal ended it
        self._is_gone = False
        pipes = [os.pipe() for _ in range(3)]
        theirs = (pipes[0][0], pipes[1][1], pipes[2][1])
        ours = (pipes[0][1], pipes[1][0], pipes[2][0])
        try:
            actions: list[Any] = [(os.POSIX_SPAWN_DUP2, theirs[number], number) for number in range(3)]
            self.pid: int = unpatched(os, "posix_spawn")(
                path,
                list(command),
                dict(environment),
                file_actions=actions,
                setpgroup=0,
                setsigmask=[],
                setsigdef=_OUR_SIGNALS,
            )
        except BaseException:
            for descriptor in ours:
                close(descriptor)
            raise
        finally:
            for descriptor in theirs:
                close(descriptor)
        self.stdin: int | None = ours[0]
        self.stdout: int | None = ours[1]
        self.stderr: int | None = ours[2]
        for descriptor in ours:
            os.set_blocking(descriptor, False)
        _running.add(self)
        guard.watch(self.pid)

    def is_gone(self) -> bool:
        """Whether it has ended. What it had started, and left behind, is ended then."""
        if not self._is_gone:
            try:
                pid, status = unpatched(os, "waitpid")(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has waited for it
                pid, status = self.pid, None
            if pid:
                self._is_gone = True
                self.exit_code = None if status is None else os.waitstatus_to_exitcode(status)
                self._to_group(signal.SIGKILL)
                _running.discard(self)
                guard.forget(self.pid)
        return self._is_gone

    def send_signal(self, number: int) -> None:
        """To its whole group: `npx` and its kind leave the server itself to a child."""
        if not self.is_gone():
            self._to_group(number)

    def _to_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def close_stdin(self) -> None:
        if self.stdin is not None:
            close(self.stdin)
            self.stdin = None

    def close_stdout(self) -> None:
        if self.stdout is not None:
            close(self.stdout)
            self.stdout = None

    def close_stderr(self) -> None:
        if self.stderr is not None:
            close(self.stderr)
            self.stderr = None


_running: set[Child] = set()


def _end_all() -> None:
    for child in list(_running):
        child.send_signal(signal.SIGKILL)


def _forget_all() -> None:
    """In a forked child: they are the parent's, whose end they only notice if nobody else has their pipes."""
    for child in _running:
        child.close_stdin()
        child.close_stdout()
        child.close_stderr()
    _running.clear()


at_exit(_end_all)
in_forked_child(_forget_all)
