"""Reads replies of OpenAI Responses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from profiler.loop.model import CallRequest
from profiler.providers.replies.reply import (
    ReplyReader,
    arguments_of,
    arguments_text,
    identity_of,
    is_cut_off,
    joined_arguments,
    list_of,
    object_of,
    place_of,
    request_of,
    sendable,
    text_of,
    without_nulls,
)
from profiler.records import ServerToolCall

_CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
"""Items that are calls, and the field of what they call the tool with."""

_SERVER_TOOLS = {
    "web_search_call": "web_search",
    "file_search_call": "file_search",
    "code_interpreter_call": "code_interpreter",
    "image_generation_call": "image_generation",
    "mcp_call": "mcp",
    "mcp_list_tools": "mcp_list_tools",
    "tool_search_call": "tool_search",
    "program": "program",
}
"""Items of tools that the server runs itself, and what records call them."""

_OF_CLIENT = frozenset(("local_shell_call", "shell_call", "computer_call", "apply_patch_call"))
"""Items of tools that the client runs, and that are none of its own."""

_ENDS = {
    "response.completed": "completed",
    "response.done": "completed",  # OpenRouter's
    "response.incomplete": "incomplete",
    "response.failed": "failed",
}
_BAD_ENDS = ("incomplete", "failed", "cancelled")
_RESPONSE_ONLY = frozenset(("parsed_arguments", "parsed"))


@dataclass(slots=True, eq=False)
class _Item:
    """An item of the output, as it was added or, once it is `done`, as it ended. `index` is the server's.

    `pieces` are those of the arguments of a call, `texts` those of the text of a message, as they came.
    """

    index: Any
    data: dict[str, Any]
    done: bool = False
    request: CallRequest | None = None
    began_ns: int | None = None
    ended_ns: int | None = None
    pieces: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return text_of(self.data.get("type")) or _kind_by_content(self.data)

    @property
    def status(self) -> Any:
        return self.data.get("status")

    @property
    def arguments(self) -> Any:
        given = self.data.get(_CALLS[self.kind])
        return given if given not in (None, "", "{}", {}) else joined_arguments(self.pieces) or given

    def has_id_of(self, data: dict[str, Any]) -> bool:
        """Whether this is an item with the id of that one, or with its call's where either has none."""
        key = "id" if self.data.get("id") and data.get("id") else "call_id"
        return bool(data.get(key)) and self.data.get(key) == data[key]

    def is_like(self, data: dict[str, Any]) -> bool:
        """Whether that is an item of this type, of a call with the same name and arguments."""
        other = _Item(None, data)
        if self.kind != other.kind or self.kind not in _CALLS:
            return self.kind == other.kind
        same_name = self.data.get("name") == data.get("name")
        return same_name and arguments_of(self.arguments) == arguments_of(other.arguments)


class ResponsesReader(ReplyReader):
    """One reply of Responses. Items that were done count, whatever the last event says of them."""

    _ANSWER = "output"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._items: list[_Item] = []
        self._not_final: list[CallRequest] = []
        self._final: dict[str, Any] = {}
        self._strays: list[_Item] = []  # of pieces of items that had not been added

    @property
    def other_calls(self) -> list[tuple[str, str]]:
        return [
            (ident, item.kind.removesuffix("_call"))
            for item in self._in_order()
            if item.kind in _OF_CLIENT and (ident := text_of(item.data.get("call_id")))
        ]

    def _whole(self, data: dict[str, Any]) -> None:
        output = data.get("output")
        if not isinstance(output, list) or not all(isinstance(item, dict) for item in output):
            self._is_broken("it has no output")
        self._final = data
        self.response_id = text_of(data.get("id")) or None
        self.complete = self.broken is None
        self._end()

    def _event(self, data: Any) -> None:
        if not isinstance(data, dict):
            self._is_broken("an event that is no object")
            return
        kind = text_of(data.get("type"))
        if kind == "response.output_text.delta":
            self._settle()
            if delta := text_of(data.get("delta")):
                self.probe.text(delta)
                if self.keeps:
                    self._message_of(data).texts.append(delta)
        elif kind == "response.output_text.done":
            if self.keeps and not (item := self._message_of(data)).texts:
                item.texts.append(text_of(data.get("text")))
        elif kind == "response.refusal.delta":
            if data.get("delta"):
                self.probe.token()
        elif kind in ("response.function_call_arguments.delta", "response.custom_tool_call_input.delta"):
            self.probe.token()
            call = self._call_of(data)
            if call is not None:
                call.pieces.append(text_of(data.get("delta")))
        elif kind in ("response.function_call_arguments.done", "response.custom_tool_call_input.done"):
            call = self._call_of(data)
            given = data.get("arguments", data.get("input"))
            if call is not None and isinstance(given, str):
                call.pieces = [given]
        elif kind.startswith("response.reasoning"):
            if kind.endswith(".delta"):
                self.probe.reasoning()
        elif kind == "response.output_item.added":
            self._added(data)
        elif kind == "response.output_item.done":
            self._item_done(data)
        elif kind in _ENDS:
            response = object_of(data.get("response"))
            status = _ENDS[kind]
            if status == "completed" and response.get("status") in _BAD_ENDS:
                status = response["status"]
            self._use(data.get("usage"))
            self._final = {**response, "status": status}
            self.response_id = text_of(response.get("id")) or None
            self.complete = self.done = True
        elif kind == "error" or data.get("error"):
            self.error = data.get("error") or data
        elif not kind:
            self._is_unknown(data)

    def _marked_done(self) -> None:
        # Not of this API, but of gateways to it.
        self.complete = self.complete or any(item.done for item in self._items)

    def _message_of(self, data: dict[str, Any]) -> _Item:
        """The message that a piece of text belongs to. Some gateways begin none, or end it too early."""
        ident = data.get("item_id")
        if (
            self._items
            and ident
            and (last := self._items[-1]).kind == "message"
            and last.data.get("id") == ident
        ):
            return last  # nearly always
        index = place_of(data.get("output_index"))
        messages = [item for item in reversed(self._items) if item.kind == "message"]
        named = (item for item in messages if ident and item.data.get("id") == ident)
        item = next(named, None) or next((item for item in messages if item.index == index), None)
        if item is None:
            told = {"id": ident} if isinstance(ident, str) else {}
            item = _Item(index, {**told, "type": "message", "role": "assistant", "content": []})
            self._items.append(item)
        return item

    def _call_of(self, data: dict[str, Any]) -> _Item | None:
        """The call that a piece of arguments belongs to."""
        index, named = place_of(data.get("output_index")), {"id": data.get("item_id")}
        item = self._open_item(index, named)
        if item is None:
            self._strays.append(_Item(index, named))
        return item

    def _added(self, data: dict[str, Any]) -> None:
        self._settle()
        item = _Item(place_of(data.get("output_index")), object_of(data.get("item")))
        if any(
            known.index == item.index and known.has_id_of(item.data) and not (known.done or known.pieces)
            for known in self._items[-1:]
        ):
            return  # said again
        self._items.append(item)
        if item.kind in _SERVER_TOOLS:
            item.began_ns = self.probe.clock()
        elif item.kind == "program_output":
            for program in self._items:
                if program.kind == "program" and program.data.get("call_id") == item.data.get("call_id"):
                    program.ended_ns = self.probe.clock()
        elif item.kind == "reasoning":
            self.probe.reasoning()
        elif item.kind in _CALLS:
            self.probe.token()

    def _item_done(self, data: dict[str, Any]) -> None:
        self._settle()
        given, index = object_of(data.get("item")), place_of(data.get("output_index"))
        item = self._open_item(index, given)
        if item is None:
            if any(known.done and known.has_id_of(given) and known.is_like(given) for known in self._items):
                return  # said again
            item = _Item(index, given)
            self._items.append(item)
        # Some gateways name the call in its first event alone.
        item.data, item.done = {**_named(item.data), **without_nulls(given)}, True
        if item.kind == "message" and item.data.get("content"):
            self.probe.token()  # some gateways send no deltas
        elif item.kind in _CALLS:
            self.probe.token()
            if item.status == "incomplete" or not item.arguments:
                return
            item.request = self._request(item)
            self.probe.arguments_complete(item.request)
            if item.status == "completed":
                self.probe.call_complete(item.request)
            else:  # it does not say, and a reply that is cut off may end here
                self._not_final.append(item.request)
        elif item.kind == "program":
            item.began_ns = self.probe.clock()  # its code is there; it runs until its output begins
        elif item.kind in _SERVER_TOOLS:
            item.ended_ns = self.probe.clock()

    def _open_item(self, index: Any, given: dict[str, Any]) -> _Item | None:
        """The item that is not done and has these ids, or else this index: some gateways repeat indexes."""
        open_items = [item for item in self._items if not item.done]
        named = [item for item in open_items if item.has_id_of(given)]
        return next(iter(named or [item for item in open_items if item.index == index]), None)

    def _settle(self) -> None:
        """Something follows: the calls before it are not cut off."""
        while self._not_final:
            self.probe.call_complete(self._not_final.pop(0))

    def _end(self) -> None:
        self._use(self._final.get("usage"))
        self._count_tokens()
        status = text_of(self._final.get("status")) or None
        if status == "failed":
            self.error = self._final.get("error") or {"message": "no reason given"}
        self.finish_reason = sendable(status)
        if not self.usable:
            return
        cut = is_cut_off(status)
        if not cut:
            self._settle()
        items = self._in_order()
        self.unreadable += sum(
            not any(item.index == stray.index or item.has_id_of(stray.data) for item in items)
            for stray in self._first_strays()
        )
        for item in items:
            self._take(item, cut and (item is items[-1] or not item.done))

    def _first_strays(self) -> list[_Item]:
        """One of the strays of each item that they are of."""
        found: dict[tuple[str, str], _Item] = {}
        for stray in self._strays:
            found.setdefault((str(stray.index), str(stray.data["id"])), stray)
        return [*found.values()]

    def _in_order(self) -> list[_Item]:
        """The items of the finished reply. Of those that were done, the last event only tells the order."""
        streamed = [item for item in self._items if item.done or item.texts or item.kind in _CALLS]
        indexes = [item.index for item in streamed]
        if all(isinstance(index, int) for index in indexes) and len({*indexes}) == len(indexes):
            streamed.sort(key=lambda item: item.index)
        left, items = [*streamed], []
        for place, data in enumerate(list_of(self._final.get("output"))):
            if not isinstance(data, dict):
                self.unreadable += 1
                continue
            item = next((one for one in left if one.has_id_of(data)), None)
            item = item or next((one for one in left if one.is_like(data)), None)
            if item is None:
                item = _Item(place, data, done=True)
            else:
                left.remove(item)
                if not item.done or (item.kind in _CALLS and not item.arguments):
                    item.data, item.done = {**_named(item.data), **without_nulls(data)}, True
            items.append(item)
        if not left:
            return items
        # Some gateways end with an output that lacks items, or has none.
        return streamed + [item for item in items if item not in streamed]

    def _take(self, item: _Item, cut: bool) -> None:
        kind = item.kind
        if kind in _CALLS and not text_of(item.data.get("name")):
            self.unreadable += 1
            return  # nobody can run it, and the API does not take it back
        if kind in _CALLS:
            if item.request is None:
                truncated = item.status == "incomplete" or (cut and item.status != "completed")
                item.request = self._request(item, truncated)
                if not truncated:
                    self.probe.call_complete(item.request)
            elif any(item.request is request for request in self._not_final):
                item.request = self._request(item, truncated=True)
            self.calls.append(item.request)
        elif kind == "message" and self.keeps:
            text, streamed = _text_of(item), "".join(item.texts)
            if len(streamed) > len(text) and streamed.startswith(text):
                # The last word of some gateways is shorter than what they had said.
                text = streamed
                part = {"type": "output_text", "text": text, "annotations": []}
                item.data = {**item.data, "content": [part]}
            self.texts.append(text)
        elif kind in _SERVER_TOOLS:
            told = item.began_ns is not None and item.ended_ns is not None
            times = (item.began_ns, item.ended_ns) if told else (None, None)
            self.server_tools.append(ServerToolCall(_SERVER_TOOLS[kind], *times))
        if self.keeps:
            self.messages.append(_back(item))

    def _request(self, item: _Item, truncated: bool = False) -> CallRequest:
        ident = identity_of(item.data.get("call_id")) or self._made_up_id()
        return request_of(ident, text_of(item.data.get("name")), arguments_of(item.arguments), truncated)

    def _count_tokens(self) -> None:
        usage = self._usage
        of_input = object_of(usage.get("input_tokens_details"))
        of_output = object_of(usage.get("output_tokens_details"))
        self.cached_tokens = self._count(of_input.get("cached_tokens"))
        self._set_cache_written(of_input, usage)
        self.reasoning_tokens = self._count(of_output.get("reasoning_tokens"))
        self._set_tokens(
            self._count(usage.get("input_tokens")),
            self._count(usage.get("output_tokens")),
            usage.get("total_tokens"),
        )


def _text_of(message: _Item) -> str:
    """The text of a message, which some servers send bare, or in parts that are called otherwise."""
    content = message.data.get("content")
    parts = [object_of(part) for part in list_of(content)]
    texts = [part.get("text") for part in parts if part.get("type") in ("output_text", "text", None)]
    return text_of(content) or "".join(map(text_of, texts))


def _kind_by_content(item: dict[str, Any]) -> str:
    """The type of an item that does not say it."""
    if item.get("name") and "arguments" in item:
        return "function_call"
    return "message" if isinstance(item.get("content"), list) and item.get("role") else ""


def _named(data: dict[str, Any]) -> dict[str, Any]:
    """What tells an item from others."""
    return {key: data[key] for key in ("type", "id", "call_id", "name") if data.get(key)}


def _back(item: _Item) -> dict[str, Any]:
    """An item as it goes back."""
    kept = without_nulls({**item.data, "type": item.kind or None}, _RESPONSE_ONLY)
    if item.request is not None:
        kept["call_id"] = item.request.id
        kept[_CALLS[item.kind]] = arguments_text(item.request.arguments)
    elif item.kind == "message" and not isinstance(item.data.get("content"), str):
        kept["content"] = [
            without_nulls(part, _RESPONSE_ONLY) if isinstance(part, dict) else part
            for part in list_of(item.data.get("content"))
        ]
    return kept
