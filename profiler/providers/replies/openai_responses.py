"""Reads replies of OpenAI Responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from profiler.loop.model import CallRequest
from profiler.providers.replies.reply import (
    ReplyReader,
    arguments_of,
    identity_of,
    list_of,
    made_up_id,
    object_of,
    text_of,
    text_of_arguments,
    without_nulls,
)
from profiler.records import ServerToolCall

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

_ENDS = {"response.completed": "completed", "response.incomplete": "incomplete", "response.failed": "failed"}
_RESPONSE_ONLY = frozenset(("parsed_arguments", "parsed"))


@dataclass(slots=True, eq=False)
class _Item:
    """An item of the output, as it was added or, once it is `done`, as it ended. `index` is the server's."""

    index: Any
    data: dict[str, Any]
    done: bool = False
    request: CallRequest | None = None
    began_ns: int | None = None
    ended_ns: int | None = None

    @property
    def kind(self) -> str:
        return text_of(self.data.get("type")) or _kind_by_content(self.data)

    def same(self, data: dict[str, Any]) -> bool:
        """Whether this is an item with one of the ids of that one."""
        return any(self.data.get(key) == data[key] for key in ("id", "call_id") if data.get(key))


class ResponsesReader(ReplyReader):
    """One reply of Responses. Items that were done count, whatever the last event says of them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._items: list[_Item] = []
        self._not_final: list[CallRequest] = []
        self._final: dict[str, Any] = {}

    def _whole(self, data: dict[str, Any]) -> None:
        output = data.get("output")
        if not isinstance(output, list) or not all(isinstance(item, dict) for item in output):
            self._is_broken("it has no output")
            return
        self._final = data
        self.complete = True
        self._end()

    def _event(self, data: Any) -> None:
        if not isinstance(data, dict):
            self._is_broken("an event that is no object")
            return
        kind = text_of(data.get("type"))
        if kind == "response.output_text.delta":
            self._settle()
            self._say(text_of(data.get("delta")))
        elif kind == "response.function_call_arguments.delta":
            self.probe.token()
        elif kind.startswith("response.reasoning"):
            if kind.endswith(".delta"):
                self.probe.reasoning()
        elif kind == "response.output_item.added":
            self._added(data)
        elif kind == "response.output_item.done":
            self._item_done(data)
        elif kind == "response.function_call_arguments.done":
            item = self._open_item(data.get("output_index"), {"id": data.get("item_id")})
            if item is not None and isinstance(data.get("arguments"), str):
                item.data["arguments"] = data["arguments"]
        elif kind in _ENDS:
            self._final = object_of(data.get("response"))
            self._final.setdefault("status", _ENDS[kind])
            self.complete = self.done = True
        elif kind == "error" or data.get("error"):
            self.error = data.get("error") or data

    def _added(self, data: dict[str, Any]) -> None:
        self._settle()
        item = _Item(data.get("output_index"), object_of(data.get("item")))
        self._items.append(item)
        if item.kind in _SERVER_TOOLS:
            item.began_ns = self.probe.clock()
        elif item.kind == "program_output":
            for program in self._items:
                if program.kind == "program" and program.same(item.data):
                    program.ended_ns = self.probe.clock()
        elif item.kind == "reasoning":
            self.probe.reasoning()
        elif item.kind == "function_call":
            self.probe.token()

    def _item_done(self, data: dict[str, Any]) -> None:
        self._settle()
        given, index = object_of(data.get("item")), data.get("output_index")
        item = self._open_item(index, given)
        if item is None:
            item = _Item(index, given)
            self._items.append(item)
        item.data, item.done = given, True
        if item.kind == "function_call":
            self.probe.token()
            if given.get("status") == "incomplete":
                return
            item.request = self._request(given)
            self.probe.arguments_complete(item.request)
            if given.get("status") == "completed":
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
        named = [item for item in open_items if item.same(given)]
        return next(iter(named or [item for item in open_items if item.index == index]), None)

    def _settle(self) -> None:
        """Something follows: the calls before it are not cut off."""
        while self._not_final:
            self.probe.call_complete(self._not_final.pop(0))

    def _request(self, item: dict[str, Any], truncated: bool = False) -> CallRequest:
        ident = identity_of(item.get("call_id")) or made_up_id()
        return CallRequest(ident, text_of(item.get("name")), arguments_of(item.get("arguments")), truncated)

    def _end(self) -> None:
        final = self._final
        status = text_of(final.get("status")) or None
        if status == "failed":
            self.error = final.get("error") or {"message": "no reason given"}
        self.finish_reason = status
        if status != "incomplete":
            self._settle()
        items = self._in_order()
        for item in items:
            self._take(item, status == "incomplete" and item is items[-1])
        self._count_tokens(final.get("usage"))

    def _in_order(self) -> list[_Item]:
        """The items of the finished reply, as they ended."""
        streamed = [item for item in self._items if item.done or _has_ended(item)]
        indexes = [item.index for item in streamed]
        if all(isinstance(index, int) for index in indexes) and len({*indexes}) == len(indexes):
            streamed.sort(key=lambda item: item.index)
        output = [one for one in list_of(self._final.get("output")) if isinstance(one, dict)]
        if len(output) < len(streamed):
            return streamed  # some gateways end with an output that is empty
        left, items = [*streamed], []
        for place, data in enumerate(output):
            item = next((one for one in left if one.same(data)), None)
            if item is None:
                item = next((one for one in left if one.kind == data.get("type")), None)
            if item is None:
                item = _Item(place, data)
            else:
                left.remove(item)
                item.data = data
            items.append(item)
        return items

    def _take(self, item: _Item, cut: bool) -> None:
        data, kind = item.data, item.kind
        if kind == "function_call":
            status = data.get("status")
            if status == "incomplete" or (cut and status != "completed"):
                item.request = self._request(data, truncated=True)
            elif item.request is None:
                item.request = self._request(data)
                self.probe.call_complete(item.request)
            self.calls.append(item.request)
        elif kind == "message" and self.keeps:
            parts = [object_of(part) for part in list_of(data.get("content"))]
            self.texts += [text_of(part.get("text")) for part in parts if part.get("type") == "output_text"]
        elif kind in _SERVER_TOOLS:
            times = (item.began_ns, item.ended_ns) if item.began_ns and item.ended_ns else (None, None)
            self.server_tools.append(ServerToolCall(_SERVER_TOOLS[kind], *times))
        if self.keeps:
            self.messages.append(_kept(item))

    def _say(self, text: str) -> None:
        self.probe.text(text)  # not kept: the items have the whole text in the end

    def _count_tokens(self, usage: Any) -> None:
        self._use(usage)
        usage, self._usage = self._usage, {}
        of_input = object_of(usage.get("input_tokens_details"))
        of_output = object_of(usage.get("output_tokens_details"))
        self.input_tokens = self._count(usage.get("input_tokens"))
        self.output_tokens = self._count(usage.get("output_tokens"))
        self.cached_tokens = self._count(of_input.get("cached_tokens"))
        self.cache_written_tokens = self._count(of_input.get("cache_write_tokens"))
        self.reasoning_tokens = self._count(of_output.get("reasoning_tokens"))


def _kind_by_content(item: dict[str, Any]) -> str:
    """The type of an item that does not say it."""
    if item.get("name") and "arguments" in item:
        return "function_call"
    return "message" if isinstance(item.get("content"), list) and item.get("role") else ""


def _has_ended(item: _Item) -> bool:
    """Whether an item that was never said to be done has all that it needs."""
    return item.kind == "function_call" and bool(item.data.get("arguments"))


def _kept(item: _Item) -> dict[str, Any]:
    """An item as it goes back."""
    kept = without_nulls({**item.data, "type": item.kind or None}, _RESPONSE_ONLY)
    if item.request is not None:
        kept["call_id"] = item.request.id
        kept["arguments"] = text_of_arguments(item.request.arguments)
    elif item.kind == "message":
        kept["content"] = [
            without_nulls(part, _RESPONSE_ONLY) if isinstance(part, dict) else part
            for part in list_of(item.data.get("content"))
        ]
    return kept
