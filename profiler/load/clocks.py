"""One clock for all records of a run: that of the machine that leads.

Processes of one machine share its monotonic clock. Those of another are translated by anchors,
instants that both machines name on both of their clocks; that is as exact as their wall clocks agree.
"""

from __future__ import annotations

import socket
from pathlib import Path

from profiler.rundir import Anchor


def machine_id() -> str:
    """The same for processes that share a monotonic clock. Sent to workers, never written down."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def shift_ns(own: Anchor, theirs: Anchor) -> int:
    """What to add to our monotonic times to get theirs."""
    return (own.unix_ns - own.monotonic_ns) - (theirs.unix_ns - theirs.monotonic_ns)
