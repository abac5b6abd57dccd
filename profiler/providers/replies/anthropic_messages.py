"""Reads replies of Anthropic Messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from profiler.loop.model import CallRequest
from profiler.providers.replies.reply import (
    ReplyReader,
    arguments_of,
    identity_of,
    is_cut_off,
    is_object,
    joined_arguments,
    list_of,
    merged,
    object_of,
    place_of,
    request_of,
    sendable,
    text_of,
)
from profiler.records import ServerToolCall

_SERVER_TOOLS = ("server_tool_use", "mcp_tool_use")

_DELTAS_OF = {
    "input_json_delta": ("tool_use", *_SERVER_TOOLS),
    "text_delta": ("text",),
    "citations_delta": ("text",),
    "thinking_delta": ("thinking",),
    "signature_delta": ("thinking",),
}
"""What kinds of blocks a kind of delta belongs to."""
_DELTA_WITH = {
    "partial_json": "input_json_delta",
    "text": "text_delta",
    "thinking": "thinking_delta",
    "signature": "signature_delta",
}
"""What kind of delta has a field."""
_KNOWN = frozenset(kind for kinds in _DELTAS_OF.values() for kind in kinds)


_REGULAR_REASONS = frozenset(("end_turn", "tool_use"))
_REGULAR_TEXT = frozenset(("type", "text"))
_REGULAR_CALL = frozenset(("type", "id", "name", "input"))


@dataclass(slots=True, eq=False)
class _Block:
    """A block of the reply. `pieces` are what its deltas added, `input` the pieces of a call's JSON text.

    `value`: an input that came as an object in place of text. `signature`: the last that came.
    """

    index: Any
    start: dict[str, Any]
    pieces: list[Mapping[str, Any]] = field(default_factory=list)
    input: list[str] = field(default_factory=list)
    value: dict[str, Any] | None = None
    signature: Any = None
    citations: list[Any] = field(default_factory=list)
    request: CallRequest | None = None
    final: bool = False
    ended_ns: int | None = None

    @property
    def kind(self) -> str:
        kind = text_of(self.start.get("type"))
        if kind:
            return kind
        # Some gateways do not say.
        return "tool_use" if self.start.get("name") else "text" if "text" in self.start else ""

    @property
    def is_untouched(self) -> bool:
        """Whether nothing of it has come but its beginning."""
        return self.ended_ns is None and not (self.pieces or self.input or self.value or self.signature)

    @property
    def arguments(self) -> str | Mapping[str, Any]:
        """The text that was streamed; where none was, some gateways have all of it in the block's start."""
        return arguments_of(joined_arguments(self.input) or self.value or self.start.get("input"))


class MessagesReader(ReplyReader):
    """One reply of Messages."""

    COUNTS = (
        (("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"), ("cache_creation",)),
        (("output_tokens",), ("output_tokens_details",)),
    )
    _ANSWER = "content"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._blocks: list[_Block] = []
        self._open: list[_Block] = []  # calls that are not final

    @property
    def server_ids(self) -> list[str]:
        return [
            ident
            for block in self._blocks
            if block.kind in _SERVER_TOOLS and (ident := text_of(block.start.get("id")))
        ]

    def _whole(self, data: dict[str, Any]) -> None:
        if self._read_regular(data):
            return
        content = data.get("content")
        if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
            self._is_broken("it has no content")
        else:
            self._blocks = [_Block(place, part) for place, part in enumerate(content)]
            self._open = [block for block in self._blocks if block.kind == "tool_use"]
            self._stop(data.get("stop_reason"))
            self.complete = True
        self._use(data.get("usage"))
        self._end()

    def _read_regular(self, data: dict[str, Any]) -> bool:
        """Read a whole reply in which nothing is unusual, as nearly all are: at a third of the cost.

        False, and nothing read, for any other. What it comes to is what the blocks one by one would.
        """
        content, reason = data.get("content"), data.get("stop_reason")
        if not isinstance(content, list) or not isinstance(reason, str) or reason not in _REGULAR_REASONS:
            return False
        back: list[dict[str, Any]] = []
        texts: list[str] = []
        calls: list[CallRequest] = []
        for block in content:
            if not isinstance(block, dict):
                return False
            kind = block.get("type")
            if kind == "text" and block.keys() <= _REGULAR_TEXT and isinstance(block.get("text"), str):
                text = block["text"]
                texts.append(text)
                if text.strip():
                    back.append({"type": "text", **{k: v for k, v in block.items() if v is not None}})
            elif kind == "tool_use" and block.keys() == _REGULAR_CALL:
                ident, name, given = block["id"], block["name"], block["input"]
                if not (isinstance(ident, str) and ident and isinstance(name, str) and name):
                    return False
                if not isinstance(given, dict):
                    return False
                try:
                    call = request_of(ident, name, given)
                except RecursionError:  # an input too deep to read, of a reply that is complete all the same
                    return False
                calls.append(call)
                back.append({"type": "tool_use", **block, "id": call.id})
            else:
                return False
        self._finishes(reason)
        self._use(data.get("usage"))
        self._count_tokens()
        self.calls = calls
        if self.keeps:
            self.texts += texts
            self.messages = [{"role": "assistant", "content": back}] if back else []
        return True

    def _event(self, data: Any) -> None:
        if not isinstance(data, dict):
            self._is_broken("an event that is no object")
            return
        kind = data.get("type")
        if kind == "content_block_delta":
            self._delta(place_of(data.get("index")), object_of(data.get("delta")))
        elif kind == "content_block_start":
            self._start(place_of(data.get("index")), object_of(data.get("content_block")))
        elif kind == "content_block_stop":
            block = self._block(place_of(data.get("index")))
            if block is not None:
                self._block_ended(block)
        elif kind == "message_start":
            message = object_of(data.get("message"))
            usage = message.get("usage")
            # Its output tokens are those of a reply that has just begun.
            self._use({**usage, "output_tokens": None} if isinstance(usage, dict) else usage)
            for part in list_of(message.get("content")):
                self._start(len(self._blocks), object_of(part))
        elif kind == "message_delta":
            self._use(data.get("usage"))
            self._stop(object_of(data.get("delta")).get("stop_reason"))
        elif kind == "message_stop":
            self.complete = self.done = True
        elif kind == "error" or data.get("error"):
            self.error = data.get("error") or data
        elif not kind:
            self._is_unknown(data)

    def _marked_done(self) -> None:
        # Not of this API, but of gateways to it.
        self.complete = self.complete or bool(self._blocks)

    def _start(self, index: Any, start: dict[str, Any]) -> None:
        for block in self._blocks[-1:]:
            if block.is_untouched and start.get("id") and (block.index, block.start) == (index, start):
                return  # said again
        for block in [block for block in self._open if block.ended_ns is not None]:
            self._finalise(block)  # something follows, so it was not cut off
        block = _Block(index, start)
        self._blocks.append(block)
        kind = block.kind
        if kind in ("tool_use", *_SERVER_TOOLS):
            self.probe.token()
            if kind == "tool_use":
                self._open.append(block)
        elif kind in ("thinking", "redacted_thinking"):
            self.probe.reasoning()
        elif kind == "text":
            if text_of(start.get("text")):
                self.probe.text(start["text"])
        elif start.get("tool_use_id"):
            for call in self._blocks:
                served = call.kind in _SERVER_TOOLS and call.ended_ns is not None
                if served and call.start.get("id") == start["tool_use_id"]:
                    self._served(call, self.probe.clock())

    def _delta(self, index: Any, delta: dict[str, Any]) -> None:
        # Some gateways do not say what it is.
        kind = text_of(delta.get("type")) or next(
            (_DELTA_WITH[key] for key in delta if key in _DELTA_WITH), ""
        )
        block = self._block(index, kind)
        if block is None:
            self.unreadable += 1
            return
        if kind == "input_json_delta":
            self.probe.token()
            piece = delta.get("partial_json")
            if isinstance(piece, str):
                block.input.append(piece)
            elif isinstance(piece, dict):
                block.value = piece
            else:
                self.unreadable += piece is not None
            return
        if kind == "text_delta":
            # Not kept as text: the blocks have the whole of it in the end.
            if text_of(delta.get("text")):
                self.probe.text(delta["text"])
        elif kind in ("thinking_delta", "signature_delta"):
            self.probe.reasoning()
        if not self.keeps:
            return
        if kind == "signature_delta":
            block.signature = delta.get("signature")
        elif kind == "citations_delta":
            block.citations.append(delta.get("citation"))
        else:
            block.pieces.append({key: value for key, value in delta.items() if key != "type"})

    def _block(self, index: Any, delta: str = "") -> _Block | None:
        """The newest block with this index, or else, where there are none, the newest that has not ended.

        It is one that a `delta` of this type belongs to.
        """
        kinds = _DELTAS_OF.get(delta, ())
        found = None
        for block in reversed(self._blocks):
            if not kinds or block.kind in kinds or block.kind not in _KNOWN:
                if block.index == index:
                    return block
                if found is None and block.ended_ns is None and (index is None or block.index is None):
                    found = block
        return found

    def _block_ended(self, block: _Block) -> None:
        block.ended_ns = self.probe.clock()
        if block.kind == "tool_use" and block.request is None and _is_whole(block.arguments):
            self._tell(block)

    def _tell(self, block: _Block) -> None:
        ident = identity_of(block.start.get("id")) or self._made_up_id()
        block.request = request_of(ident, text_of(block.start.get("name")), block.arguments)
        self.probe.arguments_complete(block.request)

    def _finalise(self, block: _Block) -> None:
        """A call will not change any more, however the reply goes on; once."""
        if block.kind == "tool_use" and not block.final:
            if block.request is None:
                self._tell(block)
            block.final = True
            self._open.remove(block)
            assert block.request is not None
            self.probe.call_complete(block.request)

    def _served(self, block: _Block, now_ns: int | None) -> None:
        """A tool of the server's own has its result."""
        times = (None, None) if now_ns is None else (block.ended_ns, now_ns)
        name = sendable(text_of(block.start.get("name"))) or block.kind
        self.server_tools.append(ServerToolCall(name, *times))
        block.ended_ns, block.final = None, True

    def _stop(self, reason: Any) -> None:
        if not reason:
            return
        self._finishes(reason)
        self.paused = self.finish_reason == "pause_turn"
        if not is_cut_off(self.finish_reason):
            for block in [*self._open]:
                self._finalise(block)

    def _end(self) -> None:
        self._count_tokens()
        if not self.usable:
            return
        cut = is_cut_off(self.finish_reason)
        for block in self._blocks:
            if block.kind == "tool_use" and not block.start.get("name"):
                self.unreadable += 1
            elif block.kind == "tool_use":
                if cut:
                    cut_off = block is self._blocks[-1]
                else:
                    # Without a stop reason, a call that is no whole object is one that was cut off.
                    cut_off = self.finish_reason is None and not _is_whole(block.arguments)
                if cut_off and not block.final:
                    ident = identity_of(block.start.get("id")) or self._made_up_id()
                    name = text_of(block.start.get("name"))
                    block.request = request_of(ident, name, block.arguments, truncated=True)
                else:
                    self._finalise(block)
                assert block.request is not None
                self.calls.append(block.request)
            elif block.kind in _SERVER_TOOLS and not block.final:
                self._served(block, None)
        if self.keeps:
            content = [kept for block in self._blocks if (kept := self._back(block)) is not None]
            self.messages = [{"role": "assistant", "content": content}] if content else []

    def _back(self, block: _Block) -> dict[str, Any] | None:
        """A block as it goes back. None for what the API refuses: a text of nothing, a call of no name."""
        if block.kind == "tool_use" and not block.start.get("name"):
            return None
        back = merged(({"type": block.kind or None}, block.start, *block.pieces))
        if block.signature is not None:
            back["signature"] = block.signature
        if block.citations:
            back["citations"] = [*list_of(back.get("citations")), *block.citations]
        if block.kind == "text":
            self.texts.append(text_of(back.get("text")))
            return back if self.texts[-1].strip() else None
        if block.request is not None:
            back["id"] = block.request.id
        if block.request is not None or block.kind in _SERVER_TOOLS:
            back["input"] = _input(block.arguments)
        return back

    def _count_tokens(self) -> None:
        usage = self._usage
        uncached = self._count(usage.get("input_tokens"))
        self.cached_tokens = self._count(usage.get("cache_read_input_tokens"))
        self._set_cache_written(usage)
        details = object_of(usage.get("output_tokens_details"))
        self.reasoning_tokens = self._count(details.get("thinking_tokens"))
        given = None
        if uncached is not None:
            # What is not there is 0: not every server has a cache. What is there and no count is not known.
            parts = {
                "cache_read_input_tokens": self.cached_tokens,
                "cache_creation_input_tokens": self.cache_written_tokens,
            }
            if all(count is not None or usage.get(name) is None for name, count in parts.items()):
                given = uncached + sum(count or 0 for count in parts.values())
        self._set_tokens(given, self._count(usage.get("output_tokens")))


def _is_whole(arguments: str | Mapping[str, Any]) -> bool:
    return not isinstance(arguments, str) or is_object(arguments)


def _input(arguments: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """A call's input as it goes back: an object, empty where the model's text was none."""
    if not isinstance(arguments, str):
        return arguments
    try:
        value = sendable(json.loads(arguments))  # not orjson, which makes decimals of large integers
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
