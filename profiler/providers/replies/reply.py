"""What all readers of replies share: the calls, the tokens, and what of a reply goes back."""

from __future__ import annotations

import itertools
import json
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import orjson

from profiler.loop.ledger import current_ledger
from profiler.loop.model import CallRequest, Message, Probe, Reply
from profiler.providers.replies.events import Event, EventStream
from profiler.records import ServerToolCall

V = TypeVar("V")

_IDENTIFIERS = frozenset(("type", "id", "index", "role", "name", "format", "object"))
"""Fields whose text is whole in each piece, and repeated by some servers: never joined."""

MOST_TOKENS = 10**12
"""No reply has more: beyond, it is no count. The sum of millions of such replies still fits 64 bits."""

_WRITTEN = (
    "cache_write_tokens",
    "cache_creation_tokens",
    "cached_creation_tokens",
    "cache_creation_input_tokens",
)
"""Names for what was written to the cache: OpenAI's, of gateways to Anthropic, Anthropic's own."""

_LIFETIMES = ("cache_creation", "cache_creation_token_details")
_HOUR = ("ephemeral_1h_input_tokens", "claude_cache_creation_1_h_tokens")
_MINUTES = ("ephemeral_5m_input_tokens", "claude_cache_creation_5_m_tokens")

_OF_CACHE = frozenset((*_WRITTEN, *_LIFETIMES, *_HOUR, *_MINUTES))

CUT_OFF = frozenset(
    (
        *("length", "model_length", "max_length", "max_tokens", "max_output_tokens", "incomplete"),
        *("model_context_window_exceeded", "context_length_exceeded"),
        *("content_filter", "function_call_filter", "safety", "sensitive", "recitation", "blocklist"),
        *("prohibited_content", "refusal", "guardrail_intervened", "malformed_function_call"),
        *("error", "error_limit", "error_toxic", "network_error", "insufficient_system_resource"),
        *("abort", "aborted", "cancelled", "timeout"),
    )
)
"""Reasons to finish, of all APIs and servers, of a reply that was cut off, perhaps inside its last call."""

_SAID_IN = ("message", "msg", "detail")
"""Where servers put their words in an object that is an error and does not say so."""

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_numbers = itertools.count(secrets.randbelow(36**7))


class ReplyReader:
    """Reads one reply of a model, whole or event by event, from its decoded JSON. Needs no SDK.

    A call is identified by its place in the reply. Indexes, ids and finish reasons are what servers
    disagree in, so they are hints. Nothing here raises: what cannot be understood is left out and counted
    (`unreadable`), and never guessed.

    `probe` hears of tokens and calls as they arrive. `keeps` False: what goes back is not built, as nobody
    sends it. `error`: the error object that the server sent in place of its reply, or in the middle of it.
    `broken`: why this is no reply of the API at all, and `came` what came instead. `complete`: it came to its
    end. `done`: nothing more will come, though the connection may stay open. `response_id`: by which the
    server remembers it (Responses). `made_up` are ids of calls that came without one.
    """

    COUNTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()
    """The fields of a usage that together are all input, and those that are all output; with each, those that
    tell more of it."""
    _ANSWER: str
    """The field of a whole reply without which it is none."""

    def __init__(self, probe: Probe, keeps: bool = True) -> None:
        self.probe = probe
        self.keeps = keeps
        self.texts: list[str] = []
        self.calls: list[CallRequest] = []
        self.messages: list[Message] = []
        self.finish_reason: str | None = None
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.cache_written_tokens: int | None = None
        self.cache_written_1h_tokens: int | None = None
        self.reasoning_tokens: int | None = None
        self.server_tools: list[ServerToolCall] = []
        self.unreadable = 0
        self.error: Any = None
        self.broken: str | None = None
        self.came: Any = None
        self.complete = False
        self.done = False
        self.paused = False
        self.response_id: str | None = None
        self.made_up: set[str] = set()
        self._events = EventStream()
        self._words: Any = None  # what was said in place of an event: why there is no reply, if none comes
        self._usage: dict[str, Any] = {}
        self._billed = False
        self._is_plain = True  # all of it is JSON by the standard, and so can be sent again as it is

    @property
    def usable(self) -> bool:
        """Whether it is a reply that came to its end: of any other, no further call may run."""
        return self.complete and self.error is None and self.broken is None

    @property
    def server_ids(self) -> list[str]:
        """Ids of calls of tools that the server runs itself, where a paused turn may end with one."""
        return []

    @property
    def other_calls(self) -> list[tuple[str, str]]:
        """The ids and names of calls of its client's that have no arguments in the usual form."""
        return []

    def feed(self, chunk: bytes) -> None:
        """The next bytes of a stream of server-sent events."""
        for event in self._events.feed(chunk):
            self._decode(event)

    def event(self, data: Any) -> None:
        """The next event of a stream, decoded."""
        self._guard(self._event, data)

    def end(self) -> None:
        """The stream is over: nothing more of it will come. Once."""
        for event in self._events.end():
            self._decode(event, cut_off=True)
        if not self.complete and self.error is None:
            self.error = self._words
        self._guard(self._end)

    def read(self, body: bytes) -> None:
        """A reply that came as one JSON object."""
        try:
            data = self._loads(body)
        except (ValueError, RecursionError) as error:
            self._is_broken(f"not JSON: {error}" if body.strip() else "an empty body", body)
            return
        self._use_whole(data)

    def whole(self, data: Any) -> None:
        """The same, decoded."""
        self._is_plain = False
        self._use_whole(data)

    def _use_whole(self, data: Any) -> None:
        # When its parts were generated, such a reply does not tell.
        self.probe = Probe(self.probe.clock, sent_headers=self.probe.sent_headers)
        if not isinstance(data, dict):
            self._is_broken(f"{_kind(data)} where an object belongs", data)
        elif data.get("error") or (self._ANSWER not in data and has_words(data)):
            self.error = data.get("error") or data
            self._use(data.get("usage"))
            self._guard(self._end)
        else:
            self._guard(self._whole, data)
            if self.broken is not None:
                self.came = data

    def so_far(self) -> Reply:
        """What is known of a reply that broke off, and will not be ended: its tokens, if they had come."""
        self._guard(self._count_tokens)
        return self.reply(None)

    def reply(self, request_id: str | None) -> Reply:
        """The reply as it goes on into the loop."""
        if not self._billed and (ledger := current_ledger.get()) is not None:
            self._billed = True
            ledger.read(self)
        messages: list[Message] = []
        try:
            messages = self.messages if self._is_plain else sendable(self.messages)
        except RecursionError as error:
            self._is_broken(str(error))
        return Reply(
            text=sendable("".join(self.texts)),
            calls=tuple(self.calls),
            messages=messages,
            finish_reason=self.finish_reason,
            request_id=request_id,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cached_tokens=self.cached_tokens,
            cache_written_tokens=self.cache_written_tokens,
            cache_written_1h_tokens=self.cache_written_1h_tokens,
            reasoning_tokens=self.reasoning_tokens,
            server_tools=tuple(self.server_tools),
            unreadable=self.unreadable,
            paused=self.paused,
        )

    def _decode(self, event: Event, cut_off: bool = False) -> None:
        if event.data[:1] != b"{" and event.data.lstrip().startswith(b"[DONE]"):
            self.done = True
            self._guard(self._marked_done)
            return
        try:
            data = self._loads(event.data)
        except (ValueError, RecursionError) as error:
            text = event.data.strip()
            if cut_off or not text:
                return  # the reply has not come to its end, and will be said not to have
            if event.name == "error":
                self.error = text.decode("utf-8", "replace")
            else:
                self._is_broken(f"an event that is not JSON: {error}", text)
            return
        if event.name == "error" and not (isinstance(data, dict) and data.get("error")):
            self.error = data
            return
        if event.name and isinstance(data, dict) and not data.get("type"):
            data = {**data, "type": event.name}
        self.event(data)

    def _loads(self, text: bytes) -> Any:
        """JSON, with what the SDKs' reader takes beyond the standard: NaN, and characters in two halves."""
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            self._is_plain = False
            return json.loads(text)

    def _guard(self, step: Any, *arguments: Any) -> None:
        """One step of reading. An exception of the caller's own `on_text` is the caller's."""
        try:
            step(*arguments)
        except Exception as error:
            if error is self.probe.on_text_error:
                raise
            self._is_broken(f"{type(error).__name__}: {error}")

    def _made_up_id(self) -> str:
        ident = made_up_id()
        self.made_up.add(ident)
        return ident

    def _is_unknown(self, data: dict[str, Any]) -> None:
        """An event that is none of the API's."""
        self.unreadable += 1
        if has_words(data):
            self._words = data

    def _finishes(self, reason: Any) -> None:
        """The reply finished for this reason. One that was cut off stays so, whatever is said next."""
        if not is_cut_off(self.finish_reason):
            self.finish_reason = sendable(reason) if isinstance(reason, str) else str(reason)
        self.complete = True

    def _is_broken(self, why: str, came: Any = None) -> None:
        self.unreadable += 1
        if self.broken is None:
            self.broken, self.came = why, came

    def _event(self, data: Any) -> None:
        raise NotImplementedError

    def _whole(self, data: dict[str, Any]) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        """The reply is over, usable or not."""
        raise NotImplementedError

    def _count_tokens(self) -> None:
        """Set the tokens from the usage that has come."""
        raise NotImplementedError

    def _marked_done(self) -> None:
        """`[DONE]` has come."""

    def _use(self, usage: Any) -> None:
        """Another `usage` of the reply: what it leaves out is as the one before said.

        Counts only grow, so that a 0 after more is that of a server which does not say it here. A total is
        that of its own usage.
        """
        if isinstance(usage, dict):
            said = {key: value for key, value in usage.items() if value is not None}
            for counts, details in self.COUNTS:
                if not any(map(said.get, counts)) and any(map(self._usage.get, counts)):
                    said = {key: said[key] for key in said if key not in counts and key not in details}
            if not self._usage.keys().isdisjoint(said):
                self._usage.pop("total_tokens", None)
            self._usage.update(said)
        elif usage is not None:
            self.unreadable += 1

    def _set_cache_written(self, *places: Mapping[str, Any]) -> None:
        """Set what was written to the cache, and of that what for an hour, from where servers put it."""
        for place in places:
            if not _OF_CACHE.isdisjoint(place):
                break
        else:
            return  # as of most servers
        nested = [object_of(place[name]) for place in places for name in _LIFETIMES if name in place]
        lifetimes = (*nested, *places)
        hour = self._count(_first_of(lifetimes, _HOUR))
        minutes = self._count(_first_of(lifetimes, _MINUTES))
        written = self._count(_first_of(places, _WRITTEN))
        if written is None and (hour, minutes) != (None, None):
            written = (hour or 0) + (minutes or 0)
        if hour is not None and written is not None:
            hour = min(hour, written)
        self.cache_written_tokens, self.cache_written_1h_tokens = written, hour

    def _set_tokens(self, given: int | None, taken: int | None, total: Any = None) -> None:
        """Set `input_tokens` and `output_tokens` from what the server calls so; what was cached and what was
        reasoning are set before.

        Some servers leave those parts out: so says a total that is all of it together, or a part that is
        larger than the whole. Some have reasoning in the total alone. No request is without input: 0 is
        that of a server which does not count.
        """
        cached, written = self.cached_tokens or 0, self.cache_written_tokens or 0
        reasoning = self.reasoning_tokens or 0
        if (
            given
            and taken is not None
            and max(cached, written) <= given <= MOST_TOKENS
            and reasoning <= taken
            and (total is None or total == given + taken)
        ):
            self.input_tokens, self.output_tokens = given, taken  # of nearly every server
            return
        left_out = (0, 0)
        if given is not None and taken is not None:
            pairs = ((0, 0), (0, reasoning), (cached + written, 0), (cached + written, reasoning))
            left_out = next((pair for pair in pairs if given + taken + sum(pair) == total), (0, 0))
        if given is not None:
            given += cached + written if max(cached, written) > given else left_out[0]
        if taken is not None:
            taken += reasoning if reasoning > taken else left_out[1]
        if given is not None and taken is not None and self.reasoning_tokens is None and _is_count(total):
            taken = max(taken, int(total) - given)
        if given == 0:
            given, taken = None, taken or None
        self.input_tokens, self.output_tokens = self._count(given), self._count(taken)

    def _count(self, *values: Any) -> int | None:
        """A count of tokens, the first that is not None.

        None where the server did not say, or said something that is no count.
        """
        for value in values:
            if value is not None:
                if type(value) is int and 0 <= value <= MOST_TOKENS:
                    return value
                if _is_count(value):
                    return int(value)
                self.unreadable += 1
                return None
        return None


def _is_count(value: Any) -> bool:
    if isinstance(value, float):
        return value.is_integer() and 0 <= value <= MOST_TOKENS
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS


def _first_of(places: Iterable[Mapping[str, Any]], names: Iterable[str]) -> Any:
    """The first that is not None, or None."""
    for place in places:
        for name in names:
            if (value := place.get(name)) is not None:
                return value
    return None


def object_of(value: Any) -> dict[str, Any]:
    """The value where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def list_of(value: Any) -> list[Any]:
    """The value where it is an array, else an empty one."""
    return value if isinstance(value, list) else []


def text_of(value: Any) -> str:
    """The value where it is text, else an empty one."""
    return value if isinstance(value, str) else ""


def identity_of(value: Any) -> str:
    """The id of a call as text, empty where there is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_of(value)


def place_of(index: Any) -> Any:
    """An index as it can be compared: some servers send text here and a number there."""
    if isinstance(index, str) and index.isdecimal():
        return int(index)
    return index


def is_cut_off(reason: str | None) -> bool:
    """Whether a reply that finished for this reason was cut off. Some servers add words, or a type's name."""
    if reason is None:
        return False
    return reason.partition(":")[0].rpartition(".")[2].strip().lower() in CUT_OFF


def has_words(data: Mapping[str, Any]) -> bool:
    """Whether an object in the place of a reply, or of a part of it, says something: an error does."""
    return any(isinstance(data.get(name), str) and data[name] for name in _SAID_IN)


def made_up_id() -> str:
    """An id for a call that came without one: nine letters and digits, which every API accepts."""
    number, digits = next(_numbers) % 36**8, ""
    for _ in range(8):
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return "c" + digits


def arguments_of(value: Any) -> str | Mapping[str, Any]:
    """The arguments of a call: text, or an object where one came; none at all are an empty object."""
    if isinstance(value, str):
        return "{}" if value.strip() in ("", "null", "[]") else value
    if isinstance(value, dict):
        return value
    if value is None or value == []:
        return "{}"
    return json_text(value)


def joined_arguments(pieces: Sequence[str]) -> str:
    """The text of arguments that came in pieces.

    Some servers send an empty object in their place first, or the whole of them once more.
    """
    text = "".join(pieces)
    told = [piece for piece in pieces if piece.strip()]
    if len(told) < 2:
        return text
    if told[0].strip() == "{}" and is_object(rest := "".join(told[1:])):
        return rest
    last = told[-1]
    repeated = last == told[0] or len(last) == len(text) - len(last)
    if repeated and text == last * (len(text) // len(last)) and is_object(last):
        return last
    return text


def json_text(value: Any) -> str:
    """A value as JSON text, numbers of any size and halves of characters included."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return json.dumps(value, separators=(",", ":"))


def arguments_text(arguments: str | Mapping[str, Any]) -> str:
    """Arguments as they go back: as text."""
    return arguments if isinstance(arguments, str) else json_text(arguments)


def request_of(
    ident: str, name: str, arguments: str | Mapping[str, Any], truncated: bool = False
) -> CallRequest:
    """A call as it can be recorded, and sent again."""
    return CallRequest(sendable(ident), sendable(name), sendable(arguments), truncated)


def sendable(value: V) -> V:
    """A value from JSON of any kind as JSON by the standard, which can be sent and written.

    Halves of characters are joined where they belong together, and else replaced; what is no number is null.
    """
    made: Any = value
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                made = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    elif isinstance(value, float):
        made = value if math.isfinite(value) else None
    elif isinstance(value, dict):
        made = {sendable(key): sendable(inner) for key, inner in value.items()}
    elif isinstance(value, list):
        made = [sendable(inner) for inner in value]
    return cast(V, made)


def is_object(text: str) -> bool:
    """Whether the text is one whole JSON object."""
    if not text.rstrip().endswith("}"):
        return False
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        pass
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def merged(pieces: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What streamed pieces of one object are together.

    Text is joined, objects are merged, arrays of objects with an `index` by that and their type, blocks of
    thinking as they follow each other; of anything else, and of what names something, the last counts. Fields
    that are null are left out.
    """
    found: dict[str, list[Any]] = {}
    for piece in pieces:
        for key, value in piece.items():
            if value is not None:
                found.setdefault(key, []).append(value)
    return {key: values[0] if len(values) == 1 else _joined(key, values) for key, values in found.items()}


def _joined(key: str, values: list[Any]) -> Any:
    if key not in _IDENTIFIERS and all(isinstance(value, str) for value in values):
        return "".join(values)
    if all(isinstance(value, dict) for value in values):
        return merged(values)
    if all(isinstance(value, list) and value and all(map(_has_index, value)) for value in values):
        parts: dict[tuple[str, str], list[Any]] = {}
        for part in itertools.chain.from_iterable(values):
            parts.setdefault((str(part["index"]), str(part.get("type"))), []).append(part)
        return [merged(pieces) for pieces in parts.values()]
    if all(isinstance(value, list) and all(map(_is_thinking, value)) for value in values):
        return _joined_thinking(itertools.chain.from_iterable(values))
    return values[-1]


def _is_thinking(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") in ("thinking", "redacted_thinking")


def _joined_thinking(pieces: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Blocks of thinking in pieces. The one with the signature ends a block; some repeat its text in it."""
    blocks: list[dict[str, Any]] = []
    for piece in pieces:
        before = blocks[-1] if blocks else {}
        if piece["type"] == before.get("type") == "thinking" and not before.get("signature"):
            said, more = text_of(before.get("thinking")), text_of(piece.get("thinking"))
            text = said if piece.get("signature") and more == said else said + more
            blocks[-1] = {**before, **without_nulls(piece), "thinking": text}
        else:
            blocks.append(piece)
    return blocks


def _has_index(value: Any) -> bool:
    return isinstance(value, dict) and "index" in value


def without_nulls(item: Mapping[str, Any], left_out: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The fields of an item that are not null, except some."""
    return {key: value for key, value in item.items() if value is not None and key not in left_out}


def _kind(data: Any) -> str:
    return {list: "an array", str: "text", bool: "a boolean", type(None): "null"}.get(type(data), "a number")
