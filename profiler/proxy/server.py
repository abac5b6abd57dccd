"""What the proxy's connections share: the routes, the pool, what is refused, what is counted."""

from __future__ import annotations

import asyncio
import itertools
import ssl
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Collection

from profiler.emulator.access import refusal
from profiler.proxy.client import ClientConnection
from profiler.proxy.forward import Answer, Forward
from profiler.proxy.heads import RequestHead
from profiler.proxy.observing import Watching
from profiler.proxy.routes import Routes
from profiler.proxy.seen import Outcome
from profiler.proxy.upstream import Pool

IDLE_SECONDS = 600
"""How long a client's connection may be idle: longer than their pools keep one, so that they close first."""

ACCESS = ("the proxy answers localhost and addresses alone", "profiler proxy")

Own = Callable[[], Answer]
"""Answers a path of the proxy's own; called in a thread."""


class ProxyServer:
    """What the connections of the proxy share. `own`: paths that it answers itself, where no route has them.

    `allowed`: results of `access.allowed_host`. `counts`: exchanges by outcome, `tunnelled` connections,
    `not_http`: what could not be read as a request. `say` is told of what hinders, each thing once.
    """

    def __init__(
        self,
        routes: Routes,
        watching: Watching,
        pool: Pool,
        own: dict[bytes, Own] | None = None,
        allowed: Collection[str] = (),
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.routes = routes
        self.watching = watching
        self.pool = pool
        self.own = own or {}
        self.connections: set[ClientConnection] = set()
        self.numbers = itertools.count(1)
        self.counts: Counter[str] = Counter()
        self.in_flight = 0
        self.closing = False
        self.drained = asyncio.Event()
        """It takes no more requests, and none is being forwarded any more."""
        self._allowed = frozenset(allowed)
        self._known: set[bytes] = set()
        self._say = say or _say
        self._said: set[str] = set()
        self._next_connection = itertools.count(1)

    def connection(self) -> ClientConnection:
        """For `create_server`."""
        return ClientConnection(self, next(self._next_connection))

    def refused(self, head: RequestHead) -> str | None:
        """Why a request under this name is not answered."""
        if head.asks is None and (head.host is None or head.host in self._known):
            return None
        asks = dict(head.asks or {})
        if head.host is not None:
            asks[b"host"] = head.host
        if b"sec-fetch-site" in asks:
            asks[b"sec-fetch-mode"] = b""  # nobody follows a link to an API
        found = refusal(asks, None, self._allowed, ACCESS, addresses=True)
        if found is not None:
            return found.words
        if head.host is not None and len(self._known) < 64:
            self._known.add(head.host)
        return None

    def problem(self, words: str) -> None:
        """Say what hinders, once."""
        if words not in self._said and len(self._said) < 100:
            self._said.add(words)
            self._say(f"profiler proxy: {words}")

    def defect(self, error: BaseException) -> None:
        """Something of ours failed. Its message is not said: it may hold what was being read."""
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename.rpartition('/')[2]}:{place.lineno}"
        self.counts["defects"] += 1
        self.problem(f"a defect of the profiler: {type(error).__name__} ({where}); please report it")

    def ended(self, forward: Forward, outcome: Outcome) -> None:
        self.in_flight -= 1
        self.counts[outcome] += 1
        if self.closing and not self.in_flight:
            self.drained.set()

    def sweep(self, now_ns: int) -> None:
        """Once a second: close what is idle too long, notice who left while nothing is read of him."""
        self.pool.sweep()
        limit = now_ns - IDLE_SECONDS * 1_000_000_000
        for connection in list(self.connections):
            if connection.is_left():
                connection.abort()
            elif connection.idle_since(limit):
                connection.close()

    def stop(self) -> None:
        """Take no more requests; those that are being forwarded go on."""
        self.closing = True
        if not self.in_flight:
            self.drained.set()
        for connection in list(self.connections):
            connection.stop()

    def cut(self) -> None:
        """End everything."""
        for connection in list(self.connections):
            connection.break_off()
        self.pool.close()


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)  # noqa: T201


def tls_context(ca: str | None = None) -> ssl.SSLContext:
    """For connections to upstreams: certificates are checked against the system's, and `ca` (PEM) beside.

    Raises `UsageError` naming the file.
    """
    from profiler.errors import UsageError

    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except (OSError, ssl.SSLError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else "no PEM file"
            raise UsageError(f"--upstream-ca {ca}: {why}") from error
    return context
