"""Applies faults to replies. Which reply meets which fault is decided by the tape. Pure.

Three kinds: replies with an HTTP status or a broken stream, calls that are spoilt, and odd wires
(`profiler.scenarios.WIRE_FAULTS`): replies in the forms that gateways and small servers give them, in which
nothing is missing that a careful client would need.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import orjson
from msgspec.structs import replace

from profiler.emulator.conversation import ApiError, ArgumentsForm, Event, MadeCall
from profiler.emulator.dialects import (
    delta_after_finish,
    interleaved,
    no_finish,
    several_finishes,
    stream_calls,
    usage_with_finish,
)
from profiler.emulator.openai_requests import envelope
from profiler.scenarios import FaultKind

_SERVER_ERROR = "The server had an error while processing your request."
_OVERLOADED = "The engine is currently overloaded, please try again later."
STATUS: dict[FaultKind, tuple[int, str, str, str]] = {  # status, OpenAI type, Anthropic type, message
    "http_500": (500, "server_error", "api_error", _SERVER_ERROR),
    "http_503": (503, "server_error", "api_error", _OVERLOADED),
    "http_529": (529, "server_error", "overloaded_error", "Overloaded"),
    "http_429": (429, "requests", "rate_limit_error", "Rate limit reached (an injected fault)."),
}


def status_error(kind: FaultKind, provider: str, retry_ns: int) -> ApiError:
    """The error of a fault with an HTTP status; `retry_ns` is the wait that a 429 announces."""
    status, openai, anthropic, message = STATUS[kind]
    error = ApiError(
        message, status=status, kind=openai if provider == "openai" else anthropic, log=f"fault {kind}"
    )
    if status == 429:
        error.retry_ns = retry_ns
        error.code = "rate_limit_exceeded" if provider == "openai" else None
    return error


def error_frame(api: str, sequence: int) -> bytes:
    """An error in mid-stream, after HTTP 200."""
    event: dict[str, Any]
    if api == "chat":
        return b"data: %b\n\n" % envelope(ApiError(_SERVER_ERROR, kind="server_error"))
    if api == "messages":
        event = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    else:
        event = {"type": "error", "code": "server_error", "message": _SERVER_ERROR, "param": None}
        event["sequence_number"] = sequence
    return b"event: error\ndata: %b\n\n" % orjson.dumps(event)


def spoiled(call: MadeCall, kind: FaultKind) -> MadeCall:
    """A call with malformed arguments, an unknown tool name, or an argument of the wrong type."""
    if kind == "unknown_tool":
        return replace(call, name="nonexistent_tool")
    if kind == "malformed_arguments":
        return replace(call, arguments=call.arguments[:-1])
    arguments = orjson.loads(call.arguments)
    name = next(iter(arguments), "unexpected")
    # An array of an object is what no scalar, string, array of strings or object parameter takes.
    return replace(call, arguments=orjson.dumps({**arguments, name: [{"unexpected": None}]}).decode())


# Odd wires. Each is for the APIs, and for the replies, in which there is such a form.

_CHAT = frozenset({"chat"})
_CALLS = frozenset({"chat", "responses", "messages"})
_STREAMED: dict[str, frozenset[str]] = {
    "missing_index": _CHAT,
    "same_index": _CHAT,
    "index_from_one": _CHAT,
    "negative_index": _CHAT,
    "interleaved_calls": _CHAT,
    "empty_output": frozenset({"responses"}),
    "several_finishes": _CHAT,
    "delta_after_finish": _CHAT,
    "late_usage": frozenset({"chat", "messages"}),
    "corrected_usage": frozenset({"messages"}),
}
"""Kinds that only a stream has, with the APIs."""

_EITHER: dict[str, frozenset[str]] = {
    "missing_status": frozenset({"responses"}),
    "null_type": _CHAT,
    "no_finish_reason": frozenset({"chat", "messages"}),
    "stop_finish": _CHAT,
    "pause_turn": frozenset({"messages"}),
    "server_tool": frozenset({"messages", "responses"}),
    "usage_in_words": _CALLS,
    "negative_usage": _CALLS,
    "huge_usage": _CALLS,
    "missing_usage": _CALLS,
    **dict.fromkeys(("duplicate_ids", "missing_ids", "empty_ids"), _CALLS),
    **dict.fromkeys(("null_arguments", "missing_arguments", "empty_arguments", "object_arguments"), _CALLS),
}
_OF_CALLS = frozenset(
    {
        "missing_index", "same_index", "index_from_one", "negative_index", "interleaved_calls", "null_type",
        "stop_finish", "duplicate_ids", "missing_ids", "empty_ids", "null_arguments", "missing_arguments",
        "empty_arguments", "object_arguments",
    }
)  # fmt: skip
_FORMS: dict[str, ArgumentsForm] = {
    "null_arguments": "null",
    "missing_arguments": "missing",
    "empty_arguments": "empty",
    "object_arguments": "object",
}


def applies(kind: str, api: str, *, streamed: bool, calls: bool) -> bool:
    """Whether a reply of this API has such a form; `calls`: it asks for calls."""
    apis = _EITHER.get(kind) or (_STREAMED.get(kind) if streamed else None) or frozenset()
    return api in apis and (calls or kind not in _OF_CALLS)


def odd_calls(calls: Sequence[MadeCall], kinds: Collection[str]) -> tuple[MadeCall, ...]:
    """The calls with the ids and the arguments that `kinds` give them."""
    form: ArgumentsForm = next((_FORMS[kind] for kind in _FORMS if kind in kinds), "text")
    out = []
    for call in calls:
        ident = call.id
        if "duplicate_ids" in kinds:
            ident = calls[0].id
        elif "missing_ids" in kinds:
            ident = None
        elif "empty_ids" in kinds:
            ident = ""
        out.append(replace(call, id=ident, form=form))
    return tuple(out)


# Usage

_HUGE = orjson.Fragment(b"1180591620717411303424")  # 2^70


def _odd_usage(usage: dict[str, Any], odd: Callable[[int], Any]) -> None:
    for name, count in usage.items():
        if isinstance(count, dict):
            _odd_usage(count, odd)
        elif isinstance(count, int):
            usage[name] = odd(count)


_ODD_USAGE: dict[str, Callable[[int], Any]] = {
    "usage_in_words": lambda count: "many",
    "negative_usage": lambda count: -1 - count,
    "huge_usage": lambda count: _HUGE,
}


def _spoil_usage(owner: dict[str, Any], kinds: Collection[str]) -> None:
    """Change the `usage` of a body, a chunk, a message or a response."""
    usage = owner.get("usage")
    if not isinstance(usage, dict):
        return
    for kind, odd in _ODD_USAGE.items():
        if kind in kinds:
            _odd_usage(usage, odd)
    if "missing_usage" in kinds:
        del owner["usage"]


# Server tools

_QUERY = {"query": "opening hours of the museums"}
_FOUND = {"type": "web_search_result", "url": "https://example.org/museums", "title": "Museums"}


class ServerTool(NamedTuple):
    """A use of the server's own web search, as an Anthropic reply and as a Responses reply show it."""

    token: str

    @property
    def ident(self) -> str:
        """Its id in an Anthropic reply."""
        return "srvtoolu_" + self.token

    def blocks(self) -> list[dict[str, Any]]:
        ident = self.ident
        result = {**_FOUND, "encrypted_content": self.token, "page_age": None}
        return [
            {"type": "server_tool_use", "id": ident, "name": "web_search", "input": _QUERY},
            {"type": "web_search_tool_result", "tool_use_id": ident, "content": [result]},
        ]

    def item(self) -> dict[str, Any]:
        action = {"type": "search", **_QUERY}
        return {"id": "ws_" + self.token, "type": "web_search_call", "status": "completed", "action": action}


def _add_server_tool_to_body(api: str, body: dict[str, Any], tool: ServerTool) -> None:
    if api == "responses":
        body["output"].insert(0, tool.item())
        return
    # After the thinking, if there is any.
    at = next(n for n, block in enumerate(body["content"]) if block["type"] != "thinking")
    body["content"][at:at] = tool.blocks()
    body["usage"]["server_tool_use"] = {"web_search_requests": 1}


def _server_tool_events(api: str, index: int, tokens: int, tool: ServerTool) -> tuple[list[Event], int]:
    """The events of a server's tool, and how many of them come before it runs."""
    where: dict[str, Any]
    if api == "responses":
        item = tool.item()
        at = {"output_index": index}
        where = {**at, "item_id": item["id"]}
        started = {**item, "status": "in_progress"}
        events = [
            {"type": "response.output_item.added", **at, "item": started},
            {"type": "response.web_search_call.in_progress", **where},
            {"type": "response.web_search_call.searching", **where},
            {"type": "response.web_search_call.completed", **where},
            {"type": "response.output_item.done", **at, "item": item},
        ]
        return [(tokens, event) for event in events], 3
    use, result = tool.blocks()
    query = orjson.dumps(use["input"]).decode()
    where = {"index": index}
    after = {"index": index + 1}
    delta = {"type": "input_json_delta", "partial_json": query}
    events = [
        {"type": "content_block_start", **where, "content_block": {**use, "input": {}}},
        {"type": "content_block_delta", **where, "delta": delta},
        {"type": "content_block_stop", **where},
        {"type": "content_block_start", **after, "content_block": result},
        {"type": "content_block_stop", **after},
    ]
    return [(tokens, event) for event in events], 3


class Spoilt(NamedTuple):
    """Events, of which those from number `held` on come later, since a tool of the server's runs before."""

    events: list[Event]
    held: int


def _add_server_tool(api: str, events: list[Event], tool: ServerTool) -> Spoilt:
    name = "index" if api == "messages" else "output_index"
    start = "content_block_start" if api == "messages" else "response.output_item.added"
    # Before the first block or item that is no reasoning.
    inner = "content_block" if api == "messages" else "item"
    at, (tokens, first) = next(
        (n, timed)
        for n, timed in enumerate(events)
        if timed[1]["type"] == start and timed[1][inner]["type"] not in ("thinking", "reasoning")
    )
    index = first[name]
    added, before = _server_tool_events(api, index, tokens, tool)
    shift = 2 if api == "messages" else 1
    for _, event in events[at:]:
        if name in event:
            event[name] += shift
        if event["type"] in ("response.completed", "response.incomplete"):
            event["response"]["output"].insert(index, tool.item())
        if event["type"] == "message_delta":
            event["usage"]["server_tool_use"] = {"web_search_requests": 1}
    return Spoilt([*events[:at], *added, *events[at:]], at + before)


# Whole replies


def spoil(api: str, body: dict[str, Any], kinds: Collection[str], tool: ServerTool) -> None:
    """Give a whole reply the odd forms of `kinds`, in place."""
    if "server_tool" in kinds or "pause_turn" in kinds:
        _add_server_tool_to_body(api, body, tool)
    if "pause_turn" in kinds:
        body["stop_reason"] = "pause_turn"
    if api == "chat":
        [choice] = body["choices"]
        for call in choice["message"].get("tool_calls", ()):
            if "null_type" in kinds:
                call["type"] = None
        if "stop_finish" in kinds:
            choice["finish_reason"] = "stop"
        if "no_finish_reason" in kinds:
            choice["finish_reason"] = None
    elif api == "messages" and "no_finish_reason" in kinds:
        body["stop_reason"] = None
    if "missing_status" in kinds:
        for item in body["output"]:
            item.pop("status", None)
    _spoil_usage(body, kinds)


def spoil_stream(api: str, events: list[Event], kinds: Collection[str], tool: ServerTool) -> Spoilt:
    """The events of a stream in the odd forms of `kinds`; they may be changed in place."""
    spoilt = Spoilt(events, len(events))
    if "server_tool" in kinds or "pause_turn" in kinds:
        spoilt = _add_server_tool(api, events, tool)
    if api == "chat":
        return Spoilt(_odd_chunks(spoilt.events, kinds), spoilt.held)
    if api == "messages" and ("late_usage" in kinds or "corrected_usage" in kinds):
        _late_counts(spoilt.events, kinds)
    for _, event in spoilt.events:
        if api == "messages":
            _odd_message_event(event, kinds)
        else:
            _odd_response_event(event, kinds)
    return spoilt


def _odd_chunks(events: list[Event], kinds: Collection[str]) -> list[Event]:
    if "interleaved_calls" in kinds:
        events = interleaved(events)
    for call in stream_calls(events):
        if "missing_index" in kinds:
            call.pop("index", None)
        elif "same_index" in kinds:
            call["index"] = 0
        elif "index" in call:
            call["index"] += ("index_from_one" in kinds) - ("negative_index" in kinds)
        if "null_type" in kinds and "type" in call:
            call["type"] = None
    for _, event in events:
        for choice in event["choices"]:
            if "stop_finish" in kinds and choice["finish_reason"] is not None:
                choice["finish_reason"] = "stop"
    if "late_usage" in kinds:
        events = usage_with_finish(events)
    if "several_finishes" in kinds:
        events = several_finishes(events)
    if "delta_after_finish" in kinds:
        events = delta_after_finish(events)
    if "no_finish_reason" in kinds:
        events = no_finish(events)
    for _, event in events:
        _spoil_usage(event, kinds)
    return [timed for timed in events if timed[1]["choices"] or len(timed[1]) > 1]


def _late_counts(events: list[Event], kinds: Collection[str]) -> None:
    """A `message_start` with no counts, or with wrong ones, which the `message_delta` puts right."""
    usage = next(event["message"]["usage"] for _, event in events if event["type"] == "message_start")
    for _, event in events:
        if event["type"] == "message_delta":
            event["usage"] = {**usage, **event["usage"]}
    events[0][1]["message"]["usage"] = {
        name: count if not isinstance(count, int) else 0 if "late_usage" in kinds else count // 2 + 1
        for name, count in usage.items()
    }


def _odd_message_event(event: dict[str, Any], kinds: Collection[str]) -> None:
    if event["type"] == "message_start":
        _spoil_usage(event["message"], kinds)
    elif event["type"] == "message_delta":
        if "pause_turn" in kinds:
            event["delta"]["stop_reason"] = "pause_turn"
        if "no_finish_reason" in kinds:
            event["delta"]["stop_reason"] = None
        _spoil_usage(event, kinds)


def _odd_response_event(event: dict[str, Any], kinds: Collection[str]) -> None:
    response = event.get("response")
    items = [event["item"]] if "item" in event else response["output"] if response else []
    if "missing_status" in kinds:
        for item in items:
            item.pop("status", None)
    if response is not None and event["type"] in ("response.completed", "response.incomplete"):
        if "empty_output" in kinds:
            response["output"] = []
        _spoil_usage(response, kinds)
