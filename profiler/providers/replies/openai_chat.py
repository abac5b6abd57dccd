"""Reads replies of OpenAI Chat Completions, and of the many servers that answer in its way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from profiler.loop.model import CallRequest
from profiler.providers.replies.reply import (
    ReplyReader,
    arguments_of,
    arguments_text,
    identity_of,
    is_cut_off,
    is_object,
    list_of,
    merged,
    object_of,
    place_of,
    request_of,
    text_of,
    without_nulls,
)

_REASONING = ("reasoning", "thinking")
"""What the fields of reasoning begin with: `reasoning_content` of DeepSeek and vLLM, `reasoning_details` of
OpenRouter, `thinking_blocks` of LiteLLM, and so on."""

_OWN = frozenset(("role", "content", "tool_calls"))
_RESPONSE_ONLY = frozenset(("annotations", "refusal", "audio", "parsed"))
"""Fields of a message that servers send and do not take back."""

_OWN_OF_CALL = frozenset(("index", "id", "type", "function", "custom"))
_OWN_OF_FUNCTION = frozenset(("name", "arguments", "input", "parsed_arguments"))

_REGULAR_CHOICE = frozenset(("index", "message", "finish_reason", "logprobs", "content_filter_results"))
_REGULAR_EVENT = frozenset(
    (
        "id",
        "object",
        "created",
        "model",
        "choices",
        "usage",
        "system_fingerprint",
        "service_tier",
        "obfuscation",
    )
)
_REGULAR_DELTA = frozenset(("index", "delta", "finish_reason", "logprobs"))
_REGULAR_PIECE = frozenset(("index", "function", "type"))
_REGULAR_REASONS = frozenset(("stop", "tool_calls"))

_STRUCTURE = re.compile(r'\\.?|["{}]', re.DOTALL)
"""What tells where a JSON object ends: braces, quotes, and what a backslash escapes."""


@dataclass(slots=True, eq=False)
class _Call:
    """A call as far as its pieces have come. `key`: the index that the server gave it, None without one.

    `value`: arguments that are no text. `request`: as it was told to the probe, once its arguments were
    whole. `final`: and something followed. `doubtful`: it began with the name of the call before and nothing
    else, which some servers repeat.
    """

    key: Any
    id: str = ""
    kind: str = "function"
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    value: Any = None
    request: CallRequest | None = None
    final: bool = False
    doubtful: bool = False
    extras: list[Mapping[str, Any]] = field(default_factory=list)
    function_extras: list[Mapping[str, Any]] = field(default_factory=list)
    # How far the object is read: how deep, inside text or not, after a backslash or not.
    depth: int = 0
    in_text: bool = False
    escaped: bool = False
    whole: bool = False

    @property
    def arguments(self) -> str | Mapping[str, Any]:
        return arguments_of("".join(self.pieces) if self.value is None else self.value)

    @property
    def has_arguments(self) -> bool:
        return bool(self.pieces) or self.value is not None

    @property
    def is_placeholder(self) -> bool:
        """Whether its arguments are an empty object, in the place of which some servers send others next."""
        return self.value == {} or (self.whole and self.arguments == "{}")

    @property
    def is_open(self) -> bool:
        """Whether a part of its arguments has come, and not the whole."""
        return bool(self.pieces) and not self.whole

    @property
    def is_settled(self) -> bool:
        """Whether its arguments are whole, and no placeholder: nothing can follow."""
        return self.whole and not self.is_placeholder

    def add(self, given: Any) -> bool:
        """More of its arguments; False where they had been whole before."""
        if self.whole and given not in (None, ""):
            blank = isinstance(given, str) and not given.strip()
            if not self.is_placeholder or blank:
                return blank
            self.pieces, self.value, self.whole, self.depth = [], None, False, 0
        if isinstance(given, str):
            if given:
                self.pieces.append(given)
                if len(self.pieces) == 1 and given[0] == "{" and is_object(given):
                    self.whole = True  # all of it at once
                else:
                    self._read(given)
        elif given is not None:
            self.value = given
            self.whole = isinstance(given, dict)
        return True

    def _read(self, piece: str) -> None:
        """Look for the end of the object. Only there is it parsed: it may come in thousands of pieces."""
        skipped = int(self.escaped)
        self.escaped = False
        for match in _STRUCTURE.finditer(piece, skipped):
            mark = match[0]
            if mark[0] == "\\":
                self.escaped = self.in_text and len(mark) == 1
            elif mark == '"':
                self.in_text = not self.in_text
            elif not self.in_text:
                self.depth += 1 if mark == "{" else -1
        if self.depth == 0 and not self.in_text and "}" in piece:
            self.whole = is_object("".join(self.pieces))


class ChatReader(ReplyReader):
    """One reply of Chat Completions."""

    COUNTS = (
        (("prompt_tokens",), ("prompt_tokens_details", "total_tokens")),
        (("completion_tokens",), ("completion_tokens_details", "total_tokens")),
    )
    _ANSWER = "choices"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._calls: list[_Call] = []
        self._open: list[_Call] = []  # those of them that are not final
        self._extras: list[Mapping[str, Any]] = []
        self._content: list[Any] = []  # texts and parts, as they came
        self._choice: Any = None  # the index of the choice that is read

    def _whole(self, data: dict[str, Any]) -> None:
        if self._read_regular(data):
            return
        choices = self._choices_of(data.get("choices"))
        self._use(_usage_of(data, choices))
        for choice in choices:
            if isinstance(choice.get("message"), dict):
                self.complete = True
                self._read_choice(choice, choice["message"])
            elif choice.get("error"):
                self.error = choice["error"]
        if not self.complete and self.error is None:
            self._is_broken("it has no message")
        self._end()

    def _read_regular(self, data: dict[str, Any]) -> bool:
        """Read a whole reply in which nothing is unusual, as nearly all are: at a third of the cost.

        False, and nothing read, for any other. What it comes to is what `_read_choice` would.
        """
        choices = data.get("choices")
        if not isinstance(choices, list) or len(choices) != 1:
            return False
        choice = choices[0]
        if not isinstance(choice, dict) or not choice.keys() <= _REGULAR_CHOICE:
            return False
        if type(choice.get("index") or 0) is not int:
            return False
        message, reason = choice.get("message"), choice.get("finish_reason")
        if not isinstance(message, dict) or not isinstance(reason, str) or reason not in _REGULAR_REASONS:
            return False
        content, parts = message.get("content"), message.get("tool_calls") or []
        if not (content is None or isinstance(content, str)) or not isinstance(parts, list):
            return False
        for name, value in message.items():
            if name not in _OWN and value is not None and (value or name not in _RESPONSE_ONLY):
                return False
        calls: dict[str, CallRequest] = {}
        for part in parts:
            call = _regular_call(part)
            if call is None or call.id in calls:
                return False
            calls[call.id] = call
        self._choice = choice.get("index") or 0
        self._use(_usage_of(data, choices))
        self._finishes(reason)
        self._count_tokens()
        self.calls = [*calls.values()]
        if self.keeps:
            self.texts += [content] if content else []
            said: dict[str, Any] = {"role": "assistant", "content": content}
            if content is None and not calls:
                said["content"] = ""
            if calls:
                said["tool_calls"] = [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {"name": call.name, "arguments": call.arguments},
                    }
                    for call in self.calls
                ]
            self.messages = [said]
        return True

    def _event(self, data: Any) -> None:
        if not isinstance(data, dict):
            self._is_broken("an event that is no object")
            return
        if self._read_delta(data):
            return
        choices = self._choices_of(data.get("choices"))
        usage = _usage_of(data, choices)
        if usage is not None:
            self._use(usage)
        if data.get("error") or data.get("object") == "error":
            self.error = data.get("error") or data
            return
        if usage is None and "choices" not in data:
            self._is_unknown(data)
        for choice in choices:
            self._read_choice(choice, choice.get("delta") or self._not_said(choice.get("message")) or {})

    def _read_delta(self, data: dict[str, Any]) -> bool:
        """Read the next piece of a text, or of the call that came last, as most events are: at once.

        False, and nothing read, for any other event. What it comes to is what `_read_choice` would.
        """
        choices = data.get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or data.get("usage") is not None:
            return False
        choice = choices[0]
        if not isinstance(choice, dict) or not choice.keys() <= _REGULAR_DELTA:
            return False
        if not data.keys() <= _REGULAR_EVENT or data.get("object") == "error":
            return False
        delta = choice.get("delta")
        if choice.get("finish_reason") is not None or not isinstance(delta, dict) or len(delta) != 1:
            return False
        if self._choice is None or (choice.get("index") or 0) != self._choice:
            return False
        content = delta.get("content")
        if isinstance(content, str):
            self._content.append(content)
            if content:
                if self.keeps:
                    self.texts.append(content)
                self.probe.text(content)
            return True
        parts = delta.get("tool_calls")
        if not isinstance(parts, list) or len(parts) != 1 or not self._calls:
            return False
        part, call = parts[0], self._calls[-1]
        if not isinstance(part, dict) or not part.keys() <= _REGULAR_PIECE or call.whole or call.final:
            return False
        function, index = part.get("function"), part.get("index")
        if (
            not isinstance(function, dict)
            or len(function) != 1
            or type(index) is not int
            or call.key != index
        ):
            return False
        given = function.get("arguments")
        if not isinstance(given, str) or not given or part.get("type", "function") != "function":
            return False
        self.probe.token()
        call.add(given)
        if call.name and call.request is None and call.is_settled:
            self._tell(call)  # an application may run it at once
        return True

    def _marked_done(self) -> None:
        if self._choice is not None:
            self.complete = True

    def _end(self) -> None:
        self._count_tokens()
        if not self.usable:
            return
        self.unreadable += sum(not call.name for call in self._calls)
        self._calls = [
            call for call in self._calls if call.name and (call.has_arguments or not call.doubtful)
        ]
        cut = is_cut_off(self.finish_reason)
        for call in self._calls:
            last = call is self._calls[-1]
            if call.final:
                cut_off = False
            elif cut:
                cut_off = last or not call.is_settled
            else:
                # Without a finish reason, a call that is no whole object is one that was cut off.
                cut_off = self.finish_reason is None and not call.whole and call.arguments != "{}"
            if cut_off:
                call.request = request_of(
                    call.id or self._made_up_id(), call.name, call.arguments, truncated=True
                )
            else:
                self._finalise(call)
            assert call.request is not None
            self.calls.append(call.request)
        if self.keeps:
            self.messages = [self._message()]

    def _choices_of(self, choices: Any) -> list[dict[str, Any]]:
        """The parts of the choice that is read: the first that came, whatever its index.

        Some servers put its text and its calls side by side, as two choices with the same index or none.
        """
        found = []
        for choice in list_of(choices):
            if isinstance(choice, dict):
                index = choice.get("index") or 0
                if self._choice is None:
                    self._choice = index
                if index == self._choice:
                    found.append(choice)
        return found

    def _not_said(self, message: Any) -> Any:
        """What a whole message in a stream adds to it: some end with all of it again, some with more."""
        if not isinstance(message, dict):
            return message
        said = {name for extras in self._extras for name in extras}
        if any(self._content):
            said.add("content")
        if self._calls:
            said.add("tool_calls")
        return {name: value for name, value in message.items() if name not in said}

    def _read_choice(self, choice: dict[str, Any], delta: Any) -> None:
        if choice.get("error"):
            self.error = choice["error"]
            return
        if not isinstance(delta, dict):
            self.unreadable += 1
            delta = {}
        self.unreadable += bool(choice.get("text"))  # how texts were completed before there were chats
        for name in delta:
            if name not in _OWN:
                self._read_extras(delta)
                break
        content = delta.get("content")
        if content is not None:
            self._read_content(content, _is_thought(delta))
        parts = delta.get("tool_calls")
        if parts:
            beside: list[_Call] = []
            for part in [parts] if isinstance(parts, dict) else list_of(parts):
                if isinstance(part, dict):
                    self.probe.token()
                    self._read_part(part, beside)
                else:
                    self.unreadable += 1
        reason = choice.get("finish_reason")
        if reason and reason != "null":
            self._finishes(reason)
            if not is_cut_off(self.finish_reason):
                self._finalise_settled()

    def _read_extras(self, delta: dict[str, Any]) -> None:
        """The fields of a message that are not the API's own."""
        if any(value and name.startswith(_REASONING) for name, value in delta.items()):
            self.probe.reasoning()
        if delta.get("refusal") or delta.get("audio"):
            self.probe.token()  # output, though no text of an answer
        self.unreadable += bool(delta.get("function_call"))  # how calls were made before there were tools
        if self.keeps:
            others = without_nulls(delta, _OWN | _RESPONSE_ONLY)
            if others:
                self._extras.append(others)

    def _read_content(self, content: Any, thought: bool) -> None:
        if isinstance(content, str):
            self._content.append(content)
            if content:
                self._say(content, thought)
            return
        if not isinstance(content, list):
            self.unreadable += 1
            return
        self._content += content
        for part in content:
            if isinstance(part, str):
                self._say(part)
            elif object_of(part).get("type") == "thinking":
                self.probe.reasoning()
            elif text_of(object_of(part).get("text")):
                self._say(part["text"])

    def _say(self, text: str, thought: bool = False) -> None:
        if self.keeps:
            self.texts.append(text)
        if thought:
            self.probe.reasoning()
            self.probe.hand_on(text)
        else:
            self.probe.text(text)

    def _read_part(self, part: dict[str, Any], beside: list[_Call]) -> None:
        """A piece of one call. `beside`: the calls of which pieces came before it in the same event."""
        function, own = object_of(part.get("function") or part.get("custom")), _OWN_OF_CALL
        if not function and ("name" in part or "arguments" in part):
            function, own = part, _OWN_OF_CALL | _OWN_OF_FUNCTION  # some servers do not wrap it
        name = text_of(function.get("name"))
        given = function.get("arguments", function.get("input"))
        ident = identity_of(part.get("id"))
        call = self._call_of(place_of(part.get("index")), ident, name, given, beside)
        if call is None:
            self.unreadable += bool(given) or any(part[key] for key in part if key not in own)
            return
        beside.append(call)
        said_again = call.whole and given not in (None, "") and arguments_of(given) == call.arguments
        if not said_again and not call.add(given):
            self.unreadable += 1
        if self.keeps:
            _collect(call.extras, part, own)
            if function is not part:
                _collect(call.function_extras, function, _OWN_OF_FUNCTION)
        if call.final:
            return
        if part.get("custom"):
            call.kind = "custom"
        call.id = ident or call.id
        if name != call.name:
            call.name += name
        if call.name and call.request is None and call.is_settled:
            self._tell(call)  # an application may run it at once

    def _call_of(self, index: Any, ident: str, name: str, given: Any, beside: list[_Call]) -> _Call | None:
        """The call that a piece belongs to, which the piece may begin; None where there is none."""
        last = self._calls[-1] if self._calls else None
        with_id = (call for call in reversed(self._calls) if ident and call.id == ident)
        if index is not None:
            there = (call for call in reversed(self._calls) if call.key == index)
            found = next((call for call in with_id if call.key == index), None) or next(there, None)
        elif ident:
            found = next(with_id, None)
        else:
            found = last
        if found is not None and not _begins_another(found, ident, name, given, beside):
            return found
        if not name and not ident:
            if given and last is not None and not last.whole:
                return last  # its index is not that of the opening piece
            if index is None:
                return None
        # Pieces of several calls may come interleaved: those that are not whole may go on.
        self._finalise_settled()
        repeats = found is not None and found not in beside and name == found.name and given in (None, "")
        call = _Call(index, ident, doubtful=repeats and ident in ("", found.id if found else ""))
        self._calls.append(call)
        self._open.append(call)
        return call

    def _finalise_settled(self) -> None:
        for call in [call for call in self._open if call.name and call.is_settled]:
            self._finalise(call)

    def _tell(self, call: _Call) -> None:
        call.request = request_of(call.id or self._made_up_id(), call.name, call.arguments)
        self.probe.arguments_complete(call.request)

    def _finalise(self, call: _Call) -> None:
        """A call will not change any more, however the reply goes on; once."""
        if not call.final:
            if call.request is None:
                self._tell(call)
            call.final = True
            self._open.remove(call)
            assert call.request is not None
            self.probe.call_complete(call.request)

    def _message(self) -> dict[str, Any]:
        """The assistant message as it came, with its calls as the API wants them back."""
        content: Any = "".join(self.texts)
        if any(not isinstance(part, str) for part in self._content):
            content = _joined_parts(self._content)
        elif not self._content and self._calls:
            content = None
        message: dict[str, Any] = {"role": "assistant", "content": content, **merged(self._extras)}
        if self._calls:
            message["tool_calls"] = [_back(call) for call in self._calls]
        return message

    def _count_tokens(self) -> None:
        usage = self._usage
        of_input = object_of(usage.get("prompt_tokens_details"))
        of_output = object_of(usage.get("completion_tokens_details"))
        self.cached_tokens = self._count(
            of_input.get("cached_tokens"),
            usage.get("cached_tokens"),  # Moonshot's
            usage.get("prompt_cache_hit_tokens"),  # DeepSeek's
            usage.get("cache_read_input_tokens"),  # of gateways to Anthropic
        )
        self._set_cache_written(of_input, usage)
        self.reasoning_tokens = self._count(of_output.get("reasoning_tokens"), usage.get("reasoning_tokens"))
        self._set_tokens(
            self._count(usage.get("prompt_tokens")),
            self._count(usage.get("completion_tokens")),
            usage.get("total_tokens"),
        )


def _is_thought(delta: dict[str, Any]) -> bool:
    """Whether its content is reasoning, as Gemini marks it."""
    return object_of(object_of(delta.get("extra_content")).get("google")).get("thought") is True


def _usage_of(data: dict[str, Any], choices: list[dict[str, Any]]) -> Any:
    """The usage in an event; Moonshot streams it in the choice, Groq in a field of its own."""
    usage = data.get("usage")
    for choice in choices if usage is None else ():
        usage = choice.get("usage") if usage is None else usage
    return object_of(data["x_groq"]).get("usage") if usage is None and "x_groq" in data else usage


def _begins_another(call: _Call, ident: str, name: str, given: Any, beside: list[_Call]) -> bool:
    """Whether a piece with the index or the id of a call is the beginning of another one.

    So it is with a new id and a name, with another name (unless it is the rest of the name of a call that has
    an id), with a name once the arguments of the call are whole (unless all of the call is repeated), and
    where it stands beside a piece of the call in one event. But not with arguments that can only go on.
    """
    if not name or not call.name:
        return False
    if name == call.name and call.is_open and isinstance(given, str) and given.strip()[:1] not in ("", "{"):
        return False
    if ident and ident == call.id and not call.has_arguments and name != call.name:
        return False
    if ident and call.id and ident != call.id:
        return True
    if name != call.name and (ident or not call.id):
        return True
    if any(one is call for one in beside):
        return True
    return call.whole and not (ident and given and arguments_of(given) == call.arguments)


def _regular_call(part: Any) -> CallRequest | None:
    """A call of a whole reply in the form that the API documents, else None."""
    if not isinstance(part, dict) or len(part) != 3 or part.get("type") != "function":
        return None
    ident, function = part.get("id"), part.get("function")
    if not isinstance(ident, str) or not ident or not isinstance(function, dict) or len(function) != 2:
        return None
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name or not isinstance(arguments, str):
        return None
    # An empty object may be in the place of others that come next.
    if arguments[:1] != "{" or arguments == "{}" or not is_object(arguments):
        return None
    return request_of(ident, name, arguments)


def _collect(pieces: list[Mapping[str, Any]], part: dict[str, Any], own: frozenset[str]) -> None:
    """Keep the fields that are not known. Some servers repeat them in every piece of a call."""
    for name in part:
        if name not in own:
            others = without_nulls(part, own)
            if not pieces or pieces[-1] != others:
                pieces.append(others)
            return


def _joined_parts(content: list[Any]) -> list[Any]:
    """Parts of a content that were streamed, neighbours of one type (`text`, `thinking`) joined."""
    parts: list[Any] = []
    for piece in content:
        part = {"type": "text", "text": piece} if isinstance(piece, str) else piece
        before = parts[-1] if parts else None
        if isinstance(part, dict) and isinstance(before, dict) and part.get("type") == before.get("type"):
            if part.get("type") == "text":
                parts[-1] = {
                    **before,
                    **part,
                    "text": text_of(before.get("text")) + text_of(part.get("text")),
                }
                continue
            if isinstance(part.get("thinking"), list) and isinstance(before.get("thinking"), list):
                thinking = _joined_parts([*before["thinking"], *part["thinking"]])
                parts[-1] = {**before, **part, "thinking": thinking}
                continue
        if part != {"type": "text", "text": ""}:
            parts.append(part)
    return parts


def _back(call: _Call) -> dict[str, Any]:
    """A call as it goes back."""
    assert call.request is not None
    arguments = arguments_text(call.request.arguments)
    said = {"name": call.name, "input" if call.kind == "custom" else "arguments": arguments}
    return {
        "id": call.request.id,
        "type": call.kind,
        **merged(call.extras),
        call.kind: {**said, **merged(call.function_extras)},
    }
