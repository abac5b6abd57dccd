"""The queue between the forwarding of bytes and what makes sense of them (`seen.Observer`).

Events are told a little later, in turns of the event loop of their own, a quarter of a millisecond's worth at
a time with pauses between, so that what is being forwarded goes first. The queue and the bodies in it are
bounded: what does not fit is left out and counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Literal

from profiler.proxy.heads import parts_of, shown, tell_response
from profiler.proxy.seen import Body, Exchange, Observer, Outcome, Piece

MOST_BODY = 24 * 2**20
"""Bytes of one body that may wait for the observer."""

MOST_HELD = 192 * 2**20
"""Bytes of all of them."""

MOST_EVENTS = 20_000
DELAY_SECONDS = 0.1
"""How long events wait to be told, many together: to make sense of an exchange costs several times as much
where the forwarding of others comes before each (whose code and data push this code's out of the caches)."""

TURN_NS = 250_000
PAUSE_SECONDS = 0.002
"""Between two turns: clients and upstreams on this machine want its processors too, and a burst of turns
would keep one from them for milliseconds."""

MOST_AT_EASE = 1_000
"""Events that may wait; with more there are no pauses."""

_Event = Literal["requested", "responding", "ended"]


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)  # noqa: T201


class Watching:
    """What the transport calls as bytes go by. Nothing here raises or waits.

    `dropped` counts exchanges of which something was not told, `failures` what the observer raised.
    """

    def __init__(
        self,
        observer: Observer | None,
        loop: asyncio.AbstractEventLoop,
        say: Callable[[str], None] = _say,
        *,
        most_body: int = MOST_BODY,
        most_held: int = MOST_HELD,
        most_events: int = MOST_EVENTS,
    ) -> None:
        self._observer = observer
        self._loop = loop
        self._say = say
        self._most_body = most_body
        self._most_held = most_held
        self._most_events = most_events
        self._queue: deque[tuple[_Event, Exchange]] = deque()
        self._responding: dict[Exchange, None] = {}
        self._scheduled = False
        self._told = 0
        self._salt = secrets.token_bytes(16)
        self.held = 0
        self.dropped = 0
        self.failures = 0

    def keep(self, body: Body, at_ns: int, data: bytes) -> None:
        """A piece of a body went by."""
        size = len(data)
        body.size += size
        if not body.kept:
            return
        if body.held + size > self._most_body or self.held + size > self._most_held or self._observer is None:
            self._give_up(body)
            return
        body.held += size
        self.held += size
        body.pieces.append(Piece(at_ns, data))

    def requested(self, exchange: Exchange) -> None:
        # It may hold what an MCP server has answered on a stream that stays open after its answer.
        for answering in [one for one in self._responding if one.kind == "mcp"]:
            del self._responding[answering]
            self._add("responding", answering)
        self._add("requested", exchange)

    def responding(self, exchange: Exchange) -> None:
        # An event of its own for each piece would cost as much as to forward it.
        self._responding[exchange] = None

    def ended(self, exchange: Exchange, outcome: Outcome, at_ns: int, note: str = "") -> None:
        if exchange.outcome is None:
            exchange.outcome, exchange.ended_ns, exchange.note = outcome, at_ns, note
            self._responding.pop(exchange, None)
            self._add("ended", exchange)

    def tick(self, now_ns: int) -> None:
        """Once a second."""
        responding, self._responding = self._responding, {}
        for exchange in responding:
            self._add("responding", exchange)
        if self._observer is not None:
            try:
                self._observer.tick(now_ns)
            except Exception as error:
                self._failed(error)

    def flush(self) -> None:
        """Tell everything that waits, however long it takes: at the end."""
        while self._queue:
            self._tell()

    def _add(self, event: _Event, exchange: Exchange) -> None:
        if self._observer is None:
            return
        if len(self._queue) >= self._most_events:
            if not exchange.lost:
                exchange.lost = True
                self.dropped += 1
            self._give_up(exchange.request)
            self._give_up(exchange.response)
            if event != "ended" or len(self._queue) >= 2 * self._most_events:
                return
        self._queue.append((event, exchange))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_later(DELAY_SECONDS, self._turn)

    async def catch_up(self) -> None:
        """Tell everything that waits now, in turns."""
        last = self._told + len(self._queue)
        while self._told < last:
            self._some()
            await asyncio.sleep(0)

    def _turn(self) -> None:
        self._scheduled = False
        self._some()
        if self._queue and not self._scheduled:
            self._scheduled = True
            if len(self._queue) > MOST_AT_EASE:
                self._loop.call_soon(self._turn)
            else:
                self._loop.call_later(PAUSE_SECONDS, self._turn)

    def _some(self) -> None:
        """As much as one turn may take, and one event at least."""
        until = time.monotonic_ns() + TURN_NS
        while self._queue:
            self._tell()
            if time.monotonic_ns() >= until:
                break

    def _tell(self) -> None:
        event, exchange = self._queue.popleft()
        self._told += 1
        observer = self._observer
        assert observer is not None
        if exchange.raw_request:
            held: list[bytes] = []
            exchange.request_headers, exchange.raw_request = shown(exchange.raw_request, held=held), ()
            if held:
                exchange.secrets = parts_of(held)
                exchange.key = hashlib.blake2b(b"\0".join(held), digest_size=8, key=self._salt).digest()
        tell_response(exchange)
        try:
            if event == "responding":
                observer.responding(exchange)
            elif event == "requested":
                observer.requested(exchange)
            else:
                observer.ended(exchange)
        except Exception as error:
            self._failed(error)
        for body in (exchange.request, exchange.response):
            if body.held and (event == "ended" or not body.pieces):
                self.held -= body.held
                body.held = 0

    def _give_up(self, body: Body) -> None:
        body.kept = False
        body.pieces.clear()
        self.held -= body.held
        body.held = 0

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        if self.failures == 1:
            # Not its message, which may hold what was being read.
            place = traceback.extract_tb(error.__traceback__)[-1]
            self._say(
                f"profiler proxy: a defect of the profiler while it read what went by"
                f" ({type(error).__name__}, {place.filename.rpartition('/')[2]}:{place.lineno}): everything"
                " is forwarded all the same; such failures are counted, and not said again"
            )
