"""TCP connections to hosts with several addresses: the next is tried while the one before has not answered.

A network that drops one family of addresses without a word (IPv6, as a rule) would otherwise cost the clients
of the proxy what it does not cost them without it: their own libraries do the same (RFC 8305).
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Sequence
from typing import Any

AFTER_SECONDS = 0.25
"""How long an address may take before the next is tried beside it."""

Address = tuple[int, Any]
"""A family of addresses, and what a socket of it connects to."""


async def connected(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    """A socket that is connected to one of the addresses of a host. Raises `OSError`: the first failure."""
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return await first_of(loop, alternating([(info[0], info[4]) for info in found]))


def alternating(addresses: Sequence[Address]) -> list[Address]:
    """Addresses in turn of their families, the family of the first one first."""
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    turns = itertools.zip_longest(*families.values())
    return [address for turn in turns for address in turn if address is not None]


async def first_of(loop: asyncio.AbstractEventLoop, addresses: Sequence[Address]) -> socket.socket:
    """A socket that is connected to whichever of these answers first. Raises `OSError`."""
    waiting = [*addresses]
    trying: set[asyncio.Task[socket.socket]] = set()
    failed: list[OSError] = []
    try:
        while waiting or trying:
            if waiting:
                trying.add(loop.create_task(_tried(loop, waiting.pop(0))))
            done, trying = await asyncio.wait(
                trying, timeout=AFTER_SECONDS if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            good = [task for task in done if task.exception() is None]
            if good:
                trying.update(good[1:])
                return good[0].result()
            failed += [error for task in done if isinstance(error := task.exception(), OSError)]
    finally:
        for task in trying:
            task.add_done_callback(_dropped)
            task.cancel()
    raise failed[0] if failed else OSError("it has no address")


async def _tried(loop: asyncio.AbstractEventLoop, address: Address) -> socket.socket:
    one = socket.socket(address[0], socket.SOCK_STREAM)
    try:
        one.setblocking(False)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(one, address[1])
    except BaseException:
        one.close()
        raise
    return one


def _dropped(task: asyncio.Task[socket.socket]) -> None:
    """It came second."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
