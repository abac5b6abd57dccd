"""Whether a target that is not ours has gone away in the middle of a run. Pure.

Loops fail, none succeeds any more, and for a while nobody can connect: what comes after that measures
nothing. A target that answers with errors, or late, can be connected to, and is left to the loops.
"""

from __future__ import annotations

PATIENCE_SECONDS = 5.0
"""A server that is restarted is back within that."""


class Silence:
    """Told of the loops of the trial under way, and of attempts to connect."""

    def __init__(self) -> None:
        self._loops = 0
        self._failed = 0
        self._doubted = False
        self._since: float | None = None

    def doubts(self, loops: int, failed: int) -> bool:
        """Whether it is worth an attempt to connect: since the last look loops failed, and none succeeded."""
        if loops < self._loops:  # another trial has begun
            self._loops = self._failed = 0
        if loops - failed > self._loops - self._failed:
            self._doubted, self._since = False, None
        elif failed > self._failed:
            self._doubted = True
        self._loops, self._failed = loops, failed
        return self._doubted

    def tried(self, now: float, connected: bool) -> bool:
        """An attempt to connect has ended; whether the target is gone by now."""
        if connected:
            self._doubted, self._since = False, None
            return False
        self._since = now if self._since is None else self._since
        return now - self._since >= PATIENCE_SECONDS
