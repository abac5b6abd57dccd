"""Reads replies of OpenAI Chat Completions, and of the many servers that answer in its way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from profiler.loop.model import CallRequest
from profiler.providers.replies.reply import (
    ReplyReader,
    arguments_of,
    first_of,
    identity_of,
    is_object,
    list_of,
    made_up_id,
    merged,
    object_of,
    text_of,
    text_of_arguments,
    without_nulls,
)

CUT_OFF = frozenset(("length", "content_filter"))
"""Finish reasons of a reply that was cut off, perhaps inside its last call."""

_REASONING = ("reasoning_content", "reasoning", "reasoning_details", "thinking")
"""Fields of reasoning: DeepSeek's and vLLM's, OpenRouter's, others'."""

_OWN = frozenset(("role", "content", "tool_calls"))
_RESPONSE_ONLY = frozenset(("annotations", "refusal", "audio", "parsed"))
"""Fields of a message that servers send and do not take back."""

_OWN_OF_CALL = frozenset(("index", "id", "type", "function", "custom"))
_OWN_OF_FUNCTION = frozenset(("name", "arguments", "input", "parsed_arguments"))


@dataclass(slots=True, eq=False)
class _Call:
    """A call as far as its pieces have come. `key`: the index that the server gave it, None without one.

    `request`: as it was told to the probe, when its arguments were complete. `final`: and something followed.
    `doubtful`: it began with the name of the call before and nothing else, which some servers repeat.
    """

    key: Any
    id: str = ""
    kind: str = "function"
    name: str = ""
    text: str = ""
    value: Any = None  # arguments that are no text
    request: CallRequest | None = None
    final: bool = False
    doubtful: bool = False
    extras: list[Mapping[str, Any]] = field(default_factory=list)
    function_extras: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def arguments(self) -> str | Mapping[str, Any]:
        return arguments_of(self.text if self.value is None else self.value)

    def whole(self) -> bool:
        """Whether its arguments are complete: a whole object, to which nothing can be added."""
        return self.request is not None or isinstance(self.value, dict) or is_object(self.text)


class ChatReader(ReplyReader):
    """One reply of Chat Completions."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._open: list[_Call] = []
        self._extras: list[Mapping[str, Any]] = []
        self._content: Any = None  # as it came, where it was no text
        self._said_text = False
        self._choice: Any = None  # its index

    def _whole(self, data: dict[str, Any]) -> None:
        choice = self._choice_of(data.get("choices"))
        if choice is None or not isinstance(choice.get("message"), dict):
            self._use(data.get("usage"))
            self._count_tokens()
            self._is_broken("it has no message")
            return
        self._read_choice(choice, choice["message"])
        self._use(data.get("usage"))
        self._end()

    def _event(self, data: Any) -> None:
        if not isinstance(data, dict):
            self._is_broken("an event that is no object")
            return
        if data.get("error"):
            self.error = data["error"]
            return
        usage = data.get("usage")
        if usage is not None:
            self._use(usage)
        choice = self._choice_of(data.get("choices"))
        if choice is not None:
            self._read_choice(choice, choice.get("delta") or choice.get("message") or {})

    def _marked_done(self) -> None:
        if self.finish_reason is None:
            self.complete = True

    def _end(self) -> None:
        self._count_tokens()
        cut = self.finish_reason in CUT_OFF
        self.unreadable += sum(1 for call in self._open if not call.name and (call.text or call.value))
        named = [call for call in self._open if call.name and not (call.doubtful and not call.text)]
        self._open = named
        for call in named:
            last = call is named[-1]
            # Without a finish reason, a call that is no whole object is one that was cut off.
            if last and (cut or (self.finish_reason is None and not (call.whole() or not call.text))):
                self.calls.append(CallRequest(call.id or made_up_id(), call.name, call.arguments, True))
            else:
                self._finalise(call)
                assert call.request is not None
                self.calls.append(call.request)
        if self.keeps:
            self.messages = [self._message()]

    def _choice_of(self, choices: Any) -> dict[str, Any] | None:
        """The choice that is read: the first that came, whatever its index."""
        for choice in list_of(choices):
            if isinstance(choice, dict):
                index = choice.get("index") or 0
                if self._choice is None:
                    self._choice = index
                if index == self._choice:
                    return choice
        return None

    def _read_choice(self, choice: dict[str, Any], delta: Any) -> None:
        if not isinstance(delta, dict):
            self.unreadable += 1
            delta = {}
        for name in delta:
            if name not in _OWN:
                self._read_extras(delta)
                break
        content = delta.get("content")
        if content is not None:
            self._read_content(content)
        parts = delta.get("tool_calls")
        if parts:
            if isinstance(parts, dict):
                parts = [parts]
            touched: list[_Call] = []
            for part in list_of(parts):
                if isinstance(part, dict):
                    self.probe.token()
                    self._read_part(part, touched)
                else:
                    self.unreadable += 1
        reason = choice.get("finish_reason")
        if reason is not None:
            self.finish_reason = reason if isinstance(reason, str) else str(reason)
            self.complete = True
            if self.finish_reason not in CUT_OFF:
                for call in self._open:
                    # Some servers give a reason with every event: what is not whole may go on.
                    if call.name and call.whole():
                        self._finalise(call)

    def _read_extras(self, delta: dict[str, Any]) -> None:
        """The fields of a message that are not the API's own."""
        if any(delta.get(name) for name in _REASONING):
            self.probe.reasoning()
        if self.keeps:
            kept = without_nulls(delta, _OWN | _RESPONSE_ONLY)
            if kept:
                self._extras.append(kept)

    def _read_content(self, content: Any) -> None:
        if isinstance(content, str):
            self._said_text = True
            if content:
                self._say(content)
            return
        if not isinstance(content, list):
            self.unreadable += 1
            return
        for part in content:
            if isinstance(part, str):
                self._say(part)
            elif object_of(part).get("type") == "thinking":
                self.probe.reasoning()
            elif text_of(object_of(part).get("text")):
                self._say(part["text"])
        if self.keeps:
            self._content = [*list_of(self._content), *content]

    def _read_part(self, part: dict[str, Any], touched: list[_Call]) -> None:
        """A piece of one call. `touched`: the calls of which pieces came in the same event."""
        function = object_of(part.get("function") or part.get("custom"))
        name = text_of(function.get("name"))
        given = function.get("arguments", function.get("input"))
        ident = identity_of(part.get("id"))
        call = self._call_of(part.get("index"), ident, name, given, touched)
        if call is None:
            self.unreadable += bool(given)
            return
        touched.append(call)
        if part.get("custom"):
            call.kind = "custom"
        if call.final:
            return  # said again, or an empty piece after the end
        call.id = ident or call.id
        call.name = name or call.name
        if isinstance(given, str):
            call.text += given
        elif given is not None:
            call.value = given
        if self.keeps:
            _keep(call.extras, part, _OWN_OF_CALL)
            _keep(call.function_extras, function, _OWN_OF_FUNCTION)
        if call.name and call.request is None and call.whole():
            # Nothing can follow, so an application may run it at once.
            self._tell(call)

    def _call_of(self, index: Any, ident: str, name: str, given: Any, touched: list[_Call]) -> _Call | None:
        """The call that a piece belongs to, which the piece may begin; None where there is none."""
        last = self._open[-1] if self._open else None
        if index is not None:
            found = next((call for call in reversed(self._open) if call.key == index), None)
        elif ident:
            found = next((call for call in reversed(self._open) if call.id == ident), None)
        else:
            found = last
        if found is not None and not _begins_another(found, ident, name, given, touched):
            return found
        if not name and not ident:
            if given and last is not None and not last.whole():
                return last  # its index is not that of the opening piece
            if index is None:
                return None
        for call in self._open:
            # Pieces of several calls may come interleaved, so one that is not whole may go on.
            if call.whole() and call.name:
                self._finalise(call)
        repeats = found is not None and name == found.name and not ident and not given
        call = _Call(index, ident, doubtful=repeats and found not in touched)
        self._open.append(call)
        return call

    def _tell(self, call: _Call) -> None:
        call.request = CallRequest(call.id or made_up_id(), call.name, call.arguments)
        self.probe.arguments_complete(call.request)

    def _finalise(self, call: _Call) -> None:
        """A call will not change any more, however the reply goes on; once."""
        if not call.final:
            if call.request is None:
                self._tell(call)
            call.final = True
            assert call.request is not None
            self.probe.call_complete(call.request)

    def _message(self) -> dict[str, Any]:
        """The assistant message as it came, with its calls as the API wants them back."""
        text = "".join(self.texts)
        content = self._content if self._content is not None else text if self._said_text else None
        message: dict[str, Any] = {"role": "assistant", "content": content, **merged(self._extras)}
        if not self._open:
            message["content"] = text if content is None else content
            return message
        message["tool_calls"] = [
            _call_message(call, request) for call, request in zip(self._open, self.calls, strict=True)
        ]
        return message

    def _count_tokens(self) -> None:
        usage, self._usage = self._usage, {}
        given = self._count(usage.get("prompt_tokens"))
        taken = self._count(usage.get("completion_tokens"))
        total = usage.get("total_tokens")
        of_input = object_of(usage.get("prompt_tokens_details"))
        of_output = object_of(usage.get("completion_tokens_details"))
        self.cached_tokens = self._count(
            first_of(
                of_input.get("cached_tokens"),
                usage.get("prompt_cache_hit_tokens"),  # DeepSeek's
                usage.get("cache_read_input_tokens"),  # of gateways to Anthropic
            )
        )
        self.cache_written_tokens = self._count(
            first_of(
                of_input.get("cache_write_tokens"),
                of_input.get("cache_creation_tokens"),
                usage.get("cache_creation_input_tokens"),
            )
        )
        self.reasoning_tokens = self._count(
            first_of(of_output.get("reasoning_tokens"), usage.get("reasoning_tokens"))
        )
        # Some servers leave reasoning out of `completion_tokens`; their total tells.
        apart = self.reasoning_tokens or 0
        if given is not None and taken is not None and total == given + taken + apart:
            taken += apart
        self.input_tokens, self.output_tokens = given, taken


def _begins_another(call: _Call, ident: str, name: str, given: Any, touched: list[_Call]) -> bool:
    """Whether a piece with the index or the id of a call is the beginning of another one.

    So it is with a new id and a name; with arguments of its own when those of the call are complete; and
    where it stands beside a piece of the call, in the same event.
    """
    if not name or not call.name:
        return False
    if ident and call.id and ident != call.id:
        return True
    if any(one is call for one in touched):
        return True
    if not call.whole():
        return name != call.name and not ident
    return not (name == call.name and ident and (not given or arguments_of(given) == call.arguments))


def _keep(pieces: list[Mapping[str, Any]], part: dict[str, Any], own: frozenset[str]) -> None:
    for name in part:
        if name not in own:
            pieces.append(without_nulls(part, own))
            return


def _call_message(call: _Call, request: CallRequest) -> dict[str, Any]:
    arguments = text_of_arguments(request.arguments)
    said = {"name": call.name, "input" if call.kind == "custom" else "arguments": arguments}
    return {
        "id": request.id,
        "type": call.kind,
        **merged(call.extras),
        call.kind: {**said, **merged(call.function_extras)},
    }
