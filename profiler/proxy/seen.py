"""What the transport tells of each request that it forwards, and to whom: the seam of the proxy.

`Exchange` is one HTTP request and its response, filled in as bytes go by; `Observer` makes sense of it. The
transport hands bytes on first and observes afterwards: events wait in a bounded queue, and are told between
two turns of the event loop, in the order in which they happened. So an observer sees the end of a response
before the request that the client made of it. Whatever an observer raises is counted and said once, and
changes nothing that is forwarded; but what it takes, others wait for: a millisecond is much.

All times are monotonic ns. Bodies are as they went by: without the chunked framing, with their
Content-Encoding (`coding.decoder` undoes it). Credentials are not in what is told: headers that may hold
some are left out, and so is the query of the URL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

Kind = Literal["model", "mcp"]

Outcome = Literal["complete", "client gone", "upstream gone"]
"""How an exchange ended. What the proxy refuses or answers itself is no exchange, and not told.

`upstream gone`: it could not be reached, or broke off (before the response's head: the client was told 502;
`status` stays None). `client gone`: it left before the response was whole, and the rest was not fetched.
"""

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case and values, in the order they came, repeats included."""


class Piece(NamedTuple):
    """A piece of a body, and when it was read (it was handed on at once)."""

    at_ns: int
    data: bytes


@dataclass(slots=True)
class Body:
    """A body as far as it went by. An observer may clear `pieces` as it reads them: that makes room for more.

    `kept` is False where more of it was waiting to be read than may, or of all bodies together: `pieces` is
    then empty, and stays so. `size` counts the bytes all the same. `held` is the transport's own.
    """

    pieces: list[Piece] = field(default_factory=list)
    size: int = 0
    kept: bool = True
    held: int = 0

    def whole(self) -> bytes:
        """All of its pieces, joined."""
        pieces = self.pieces
        return pieces[0].data if len(pieces) == 1 else b"".join([piece.data for piece in pieces])


@dataclass(slots=True, eq=False)
class Exchange:
    """One request of a client and its response: one attempt, as the client's SDK sees it.

    `number` counts the exchanges, `connection` the client's connections; `upstream` is where it went, as in
    `https://api.openai.com` (without credentials), `path` what the client asked for (without the query).
    `request_ended_ns`: its last byte was read. `connected_ns`: it had a connection to the upstream, one from
    the pool where `reused`. `sent_ns`: its last byte was handed to that connection. `head_ns`: the response's
    head was read. `note` says in words why an exchange is not complete. `key` is the same for the same
    credentials, and tells nothing of them. `state` is the observer's own.
    """

    number: int
    connection: int
    kind: Kind
    upstream: str
    method: bytes
    path: bytes
    started_ns: int
    request_headers: Headers = ()
    request: Body = field(default_factory=Body)
    request_ended_ns: int | None = None
    connected_ns: int | None = None
    reused: bool = False
    sent_ns: int | None = None
    status: int | None = None
    response_headers: Headers = ()
    head_ns: int | None = None
    response: Body = field(default_factory=Body)
    ended_ns: int | None = None
    outcome: Outcome | None = None
    note: str = ""
    state: object = None
    key: bytes = b""
    secrets: tuple[bytes, ...] = ()  # the transport's own: credentials, until the response's head was told
    lost: bool = False  # the transport's own: an event of it was not told
    raw_request: Headers = ()  # the same: headers as they came, until the observer is told of them
    raw_response: Headers = ()

    def header(self, name: bytes) -> bytes | None:
        """The last header of the request with this name (in lower case)."""
        return _last(self.request_headers, name)

    def response_header(self, name: bytes) -> bytes | None:
        """The last header of the response with this name (in lower case)."""
        return _last(self.response_headers, name)


class Observer(Protocol):
    """Reads exchanges. Called on the event loop's thread, after bytes were handed on."""

    def requested(self, exchange: Exchange) -> None:
        """Its request was read whole, and handed on unless it has ended. Not called where that never was."""
        ...

    def responding(self, exchange: Exchange) -> None:
        """There is more of its response: the head, or pieces. Told about once a second."""
        ...

    def ended(self, exchange: Exchange) -> None:
        """Nothing will change any more; `outcome` and `ended_ns` are set. Called once for each, and last.
        (Where the queue is full the others are left out and counted, and bodies are not kept.)"""
        ...

    def tick(self, now_ns: int) -> None:
        """About once a second, whether there is traffic or not."""
        ...


def _last(headers: Headers, name: bytes) -> bytes | None:
    found = None
    for one, value in headers:
        if one == name:
            found = value
    return found
