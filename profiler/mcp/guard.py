"""Ends the children of this process when it is gone, however it went: after SIGKILL it cannot do so itself.

A shell beside this process reads from a pipe which children there are. When the pipe ends, so do they.
"""

from __future__ import annotations

import contextlib
import os

from profiler.loop.eventloop import unpatched
from profiler.process.lifetime import in_forked_child

SHELL = "/bin/sh"

_SCRIPT = """
trap '' INT TERM HUP QUIT
groups=
while read -r what group; do
  case $what in
    +) groups="$groups $group" ;;
    -) left=
       for one in $groups; do [ "$one" = "$group" ] || left="$left $one"; done
       groups=$left ;;
  esac
done
for one in $groups; do kill -9 "-$one" 2>/dev/null; done
"""


def close(descriptor: int) -> None:
    """Close it now: gevent's `os.close` does so once its hub turns, which a native thread has none of."""
    unpatched(os, "close")(descriptor)


class Guard:
    """The shell, while there is a group of processes to be ended. Without a shell nothing is guarded."""

    def __init__(self) -> None:
        self._pipe: int | None = None
        self._pids: set[int] = set()  # of it, and of those before it that nobody has waited for yet
        self._groups: set[int] = set()

    def watch(self, group: int) -> None:
        """This group of processes is to end with us."""
        if self._pipe is None:
            self._start()
        self._groups.add(group)
        self._say("+", group)

    def forget(self, group: int) -> None:
        """It has ended."""
        if group not in self._groups:
            return
        self._groups.discard(group)
        self._say("-", group)
        if not self._groups:
            self._close()
            self._reap()

    def leave(self) -> None:
        """In a forked child: they are the parent's, and so is the pipe, whose end nobody is to hold open."""
        self._groups.clear()
        self._pids.clear()
        self._close()

    def _start(self) -> None:
        self._reap()
        theirs, ours = os.pipe()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            pid = unpatched(os, "posix_spawn")(
                SHELL,
                [SHELL, "-c", _SCRIPT],
                {"PATH": os.defpath},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, theirs, 0),
                    (os.POSIX_SPAWN_DUP2, nowhere, 1),
                    (os.POSIX_SPAWN_DUP2, nowhere, 2),
                ],
                setpgroup=0,
            )
            self._pids.add(pid)
            self._pipe = ours
        except OSError:
            close(ours)
        finally:
            close(theirs)
            close(nowhere)

    def _say(self, what: str, group: int) -> None:
        if self._pipe is not None:
            with contextlib.suppress(OSError):  # somebody ended the shell
                os.write(self._pipe, f"{what} {group}\n".encode())

    def _close(self) -> None:
        if self._pipe is not None:
            close(self._pipe)
            self._pipe = None

    def _reap(self) -> None:
        for pid in list(self._pids):
            with contextlib.suppress(ChildProcessError):
                if not unpatched(os, "waitpid")(pid, os.WNOHANG)[0]:
                    continue
            self._pids.discard(pid)


guard = Guard()
in_forked_child(guard.leave)
