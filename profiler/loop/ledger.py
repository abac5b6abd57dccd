"""Tokens and attempts of a loop's model requests, counted before anything that can fail.

A record is made at the end of a loop, and may be lost on its way: a sink fails, a loop does not end. What
was sent and what came back is counted here, in plain whole numbers, as it happens.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol


class Tokens(Protocol):
    """What a ledger reads of a reply: counts, None where the server did not say."""

    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    cache_written_tokens: int | None
    cache_written_1h_tokens: int | None
    reasoning_tokens: int | None


@dataclass(slots=True, eq=False)
class Ledger:
    """Counts of requests (every attempt), of replies that came, and of tokens, as in `ModelCall`.

    `known_replies` are those that said how many tokens came in and went out.
    """

    requests: int = 0
    replies: int = 0
    known_replies: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_written_tokens: int = 0
    cache_written_1h_tokens: int = 0
    reasoning_tokens: int = 0

    def sent(self) -> None:
        """A request begins."""
        self.requests += 1

    def responded(self, status: int) -> None:
        """The headers of a response have come. Any but a refusal or a redirect may be billed."""
        self.replies += status < 300

    def read(self, reply: Tokens) -> None:
        """A reply was read, to its end or not."""
        self.known_replies += reply.input_tokens is not None and reply.output_tokens is not None
        self.input_tokens += reply.input_tokens or 0
        self.output_tokens += reply.output_tokens or 0
        self.cached_tokens += reply.cached_tokens or 0
        self.cache_written_tokens += reply.cache_written_tokens or 0
        self.cache_written_1h_tokens += reply.cache_written_1h_tokens or 0
        self.reasoning_tokens += reply.reasoning_tokens or 0


current_ledger: ContextVar[Ledger | None] = ContextVar("toolloop_ledger", default=None)
"""Where the requests of this context are counted; None where nobody asks."""
