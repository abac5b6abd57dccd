"""What one dialect is: the replies as they come over the wire, and what they mean."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

MADE_UP = "<an id that the client makes up>"
ANY_TEXT = "<any text>"
ANY_OBJECT = "<any object>"
EVENTS = "text/event-stream"


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"weather of {city}"


def get_population(city: str) -> str:
    """The population of a city."""
    return f"population of {city}"


def ping() -> str:
    """Nothing else."""
    return "pong"


TOOLS = {function.__name__: function for function in (get_weather, get_population, ping)}


@dataclass(frozen=True)
class Call:
    """A call as the server means it. `id` None: none came. `error`: why it must not run."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None
    error: str | None = None

    @property
    def result(self) -> str | None:
        return None if self.error is not None else TOOLS[self.name](**self.arguments)

    @property
    def json(self) -> str:
        return text(self.arguments)


@dataclass(frozen=True)
class Tokens:
    """What the record must say, with the meaning of `profiler.records.ModelCall`."""

    input: int | None = None
    output: int | None = None
    cached: int | None = None
    written: int | None = None
    reasoning: int | None = None


@dataclass(frozen=True)
class Turn:
    """One reply. `whole` is its JSON body, `stream` the pieces of its bytes; None: it does not come so.

    `back` are the messages (items) by which it must come back, `MADE_UP` and the like in place of what is not
    fixed; `answer`: the text of a reply without calls. `paused`: the client sends it back as it is, and the
    server goes on. `fails`: the error types one of which the loop must end with. `words`: what the error must
    quote. `unreadable`: the record must count something that could not be understood; else nothing.
    `content_type`: what the server calls its stream. `gzip`: it compresses.
    """

    calls: tuple[Call, ...] = ()
    back: Sequence[Any] = ()
    whole: Any = None
    stream: tuple[bytes, ...] | None = None
    tokens: Tokens | None = None
    answer: str | None = None
    paused: bool = False
    fails: tuple[str, ...] = ()
    words: str = ""
    server_tools: int = 0
    unreadable: bool = False
    content_type: str = EVENTS
    gzip: bool = False


@dataclass(frozen=True)
class Dialect:
    """A row of the matrix: the replies of one conversation, the last of them the answer (or a failure)."""

    name: str
    turns: tuple[Turn, ...]

    @property
    def slug(self) -> str:
        """Its name in a URL."""
        return "".join(c if c.isalnum() else "-" for c in self.name.lower())

    @property
    def whole(self) -> bool:
        return all(turn.whole is not None for turn in self.turns)

    @property
    def streamed(self) -> bool:
        return all(turn.stream is not None for turn in self.turns)


def served_otherwise(plain: Dialect) -> list[Dialect]:
    """A dialect as other servers send it: the same bytes, but not the same headers."""

    def served(name: str, **changes: Any) -> Dialect:
        return replace(plain, name=name, turns=tuple(replace(turn, **changes) for turn in plain.turns))

    whole = tuple(
        replace(turn, whole=None, stream=(text(turn.whole).encode(),), content_type="application/json")
        for turn in plain.turns
    )
    return [
        served("gzip", gzip=True),
        served("a stream of another content type", whole=None, content_type="text/plain; charset=utf-8"),
        Dialect("JSON where a stream was asked for", whole),
    ]


def text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Framing:
    """How events become bytes. `named`: with an `event:` line where they have a type."""

    newline: str = "\n"
    space: str = " "
    before_each: str = ""
    named: bool = True
    lines: bool = False
    bom: bool = False
    cut: int | None = None

    def frame(self, events: Iterable[Any], *, done: bool = False) -> tuple[bytes, ...]:
        """Pieces of bytes, each written by itself. An event that is a string is its data as it stands."""
        pieces = [self._event(event) for event in events]
        if done:
            pieces.append(self._event("[DONE]"))
        if self.bom:
            pieces[0] = "\ufeff" + pieces[0]
        if self.cut is None:
            return tuple(piece.encode() for piece in pieces)
        whole = "".join(pieces).encode()
        return tuple(whole[at : at + self.cut] for at in range(0, len(whole), self.cut))

    def _event(self, event: Any) -> str:
        kind = event.get("type") if isinstance(event, dict) else None
        lines = [f"event:{self.space}{kind}"] if self.named and isinstance(kind, str) else []
        data = event if isinstance(event, str) else text(event)
        if self.lines and data.startswith("{"):
            data = json.dumps(event, ensure_ascii=False, indent=1)
        lines += [f"data:{self.space}{line}" for line in data.split("\n")]
        return self.before_each + self.newline.join([*lines, "", ""])


FRAMINGS = {
    "SSE comments before every event": Framing(before_each=": keep-alive\n\n:\n"),
    "keep-alive blank lines": Framing(before_each="\n\n\n"),
    "CRLF": Framing(newline="\r\n"),
    "no space after data:": Framing(space=""),
    "data in several lines": Framing(lines=True),
    "a byte order mark first": Framing(bom=True),
    "bytes cut everywhere": Framing(cut=1),
    "cut after every 7 bytes, CRLF": Framing(cut=7, newline="\r\n"),
}

PLAIN = Framing()

GARBAGE = {
    "no JSON": b'{"object": "oops',
    "no JSON but a page": b"<html><body>502 Bad Gateway</body></html>",
    "JSON 2,000 deep": b'{"choices": ' + b"[" * 2000 + b"]" * 2000 + b"}",
    "bytes that are no UTF-8": b'{"choices": "\xff\xfe"}',
}
"""What comes in a 200 in place of a reply."""


def garbage() -> list[Dialect]:
    """Replies and events that are nothing of the API's."""
    return [
        Dialect(
            name,
            (
                Turn(
                    whole=came,
                    stream=(b"data: " + came + b"\n\n", b"data: [DONE]\n\n"),
                    fails=("unreadable",),
                    unreadable=True,
                ),
            ),
        )
        for name, came in GARBAGE.items()
    ]


@dataclass
class Conversation:
    """What the server knows of one cell: how many replies it has given, and why it refused."""

    replies: int = 0
    refused: list[str] = field(default_factory=list)
