"""Ports for servers that are told a port, since they cannot be handed a socket that listens."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

LOWEST, HIGHEST = 20_000, 32_000
"""Below those that the kernel gives to whoever asks for any: 32768 and more on Linux, 49152 on others.

Of those, another program may get ours before the server listens. Worse, a client that looks whether it
listens may itself be given that port, and is then connected with itself.
"""
TRIES = 100

_draw = random.SystemRandom()  # two processes with the same seed must not look for the same ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port(is_free: Callable[[int], bool] = _is_free) -> int:
    """A port that is free on loopback at this moment."""
    for _ in range(TRIES):
        port = _draw.randint(LOWEST, HIGHEST)
        if is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        any_port: int = probe.getsockname()[1]
        return any_port
