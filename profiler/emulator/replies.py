"""A reply as bytes: what is said, in the form of an API and its dialect, with a fault's odd forms. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import msgspec
import orjson
from msgspec.structs import replace

from profiler.emulator import anthropic_messages, openai_chat, openai_responses
from profiler.emulator.conversation import Conversation, Event, Said
from profiler.emulator.dialects import Dialect
from profiler.emulator.faults import ServerTool, spoil, spoil_stream

Frame = tuple[int, bytes]
"""An SSE frame and the number of output tokens that come before it."""


def in_order(frames: list[Frame], written: int) -> list[Frame]:
    """The frames of a reply with `written` tokens which says that it had another number: none comes before
    the ones before it, nor after all that was written."""
    latest, ordered = 0, []
    for tokens, payload in frames:
        latest = max(latest, min(tokens, written))
        ordered.append((latest, payload))
    return ordered


class Frames(NamedTuple):
    """The frames of a stream; those from number `held` on come after a tool of the server's own."""

    frames: list[Frame]
    held: int


class Reply(msgspec.Struct, frozen=True, gc=False):
    """A reply to be sent. `token` makes its ids; `created` is in Unix seconds.

    `odd`: kinds of fault that apply. `loop` decides between the habits of a dialect.
    """

    api: str
    said: Said
    talk: Conversation
    token: str
    created: int
    loop: int
    dialect: Dialect
    odd: Collection[str] = ()

    def body(self) -> bytes:
        """All of it at once."""
        said, talk, token = self.said, self.talk, self.token
        body: dict[str, Any]
        if self.api == "messages":
            body = anthropic_messages.render(said, talk, token)
        elif self.api == "responses":
            body = openai_responses.render(said, talk, token, self.created)
        else:
            field = self.dialect.reasoning_field(self.loop)
            body = openai_chat.start(talk, token, self.created, chunk=False)
            body |= openai_chat.render(said, talk, field)
            self.dialect.reshape(body)
        if self.odd:
            spoil(self.api, body, self.odd, ServerTool(token))
        return orjson.dumps(body)

    def frames(self, tokens_per_event: int) -> Frames:
        """As a stream, with about so many tokens in an event."""
        said, talk, token, created = self.said, self.talk, self.token, self.created
        if not self.odd and not said.reasoning_tokens:
            plain: list[Frame] | None = None
            if self.api == "messages":
                plain = anthropic_messages.plain_frames(said, talk, token, tokens_per_event)
            elif self.api == "responses":
                if said.calls:
                    plain = openai_responses.plain_frames(said, talk, token, created, tokens_per_event)
            elif self.dialect.name == "openai":
                plain = openai_chat.plain_frames(said, talk, token, created, tokens_per_event)
            if plain is not None:
                return Frames(plain, len(plain))
        encode: Callable[[int, dict[str, Any]], bytes]
        if self.api == "messages":
            events = anthropic_messages.events(said, talk, token, tokens_per_event)
            encode = _message_frame
        elif self.api == "responses":
            events = openai_responses.events(said, talk, token, created, tokens_per_event)
            encode = _response_frame
        else:
            events = self._chunks(tokens_per_event)
            begun = orjson.dumps(openai_chat.start(talk, token, created, chunk=True))

            def encode(_: int, event: dict[str, Any]) -> bytes:
                return openai_chat.frame(begun, event)

        held = len(events)
        if self.odd:
            events, held = spoil_stream(self.api, events, self.odd, ServerTool(token))
        frames = [(tokens, encode(n, event)) for n, (tokens, event) in enumerate(events)]
        if self.api == "chat":
            frames.append((said.output_tokens, openai_chat.DONE))
        return Frames(frames, held)

    def _chunks(self, tokens_per_event: int) -> list[Event]:
        dialect, talk = self.dialect, self.talk
        if dialect.always_counts or "late_usage" in self.odd:
            talk = replace(talk, include_usage=True)
        field = dialect.reasoning_field(self.loop)
        chunks = openai_chat.events(self.said, talk, tokens_per_event, field)
        return dialect.reshape_stream(chunks, self.loop)


def _message_frame(_: int, event: dict[str, Any]) -> bytes:
    return anthropic_messages.frame(event)


def _response_frame(number: int, event: dict[str, Any]) -> bytes:
    return openai_responses.frame(event, number)
