"""Files that their owner alone may read, since they hold what was said. On Windows modes mean nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

Opener = Callable[[str, int], int]
"""For `open(..., opener=...)`: takes the path and the flags, returns a descriptor."""

OWNERS_DIRECTORY = 0o700
_OWNERS_FILE = 0o600


def new_for_owner(path: str, flags: int) -> int:
    """A new file is its owner's alone from the start; one that exists keeps the mode it was given."""
    return os.open(path, flags, _OWNERS_FILE)


def for_owner(path: str, flags: int) -> int:
    """The file is its owner's alone before anything is written, also where it existed."""
    descriptor = os.open(path, flags, _OWNERS_FILE)
    if hasattr(os, "fchmod") and stat.S_ISREG(os.fstat(descriptor).st_mode):  # not /dev/stdout
        os.fchmod(descriptor, _OWNERS_FILE)
    return descriptor


def opener_like(source: Path) -> Opener | None:
    """For a file that is made of `source`, or in it: its owner's alone where that is."""
    try:
        mode = source.stat().st_mode
    except OSError:
        return None
    return None if mode & 0o077 else for_owner
