"""Requests and responses as they pass a proxy, made without sockets. Times are in milliseconds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from profiler.proxy.loops import LoopObserver
from profiler.proxy.seen import Exchange, Kind, Outcome, Piece
from profiler.recordings.drafts import Tally
from profiler.records import LoopRecord

MS = 1_000_000
APIS = ("openai", "openai-responses", "anthropic")
PATHS = {"openai": "/v1/chat/completions", "openai-responses": "/v1/responses", "anthropic": "/v1/messages"}

Call = tuple[str, str] | tuple[str, str, dict[str, Any]]
"""The id of a call, the name of its tool, its arguments."""


class Traffic:
    """An observer, and what it made of what passed."""

    def __init__(self, mcp: bool = False) -> None:
        self.records: list[LoopRecord] = []
        self.left_out: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.tally = Tally()
        self.number = 0
        self.observer = LoopObserver(self._ended, mcp=mcp, skip=self._skip, note=self._note, salt=b"salt")

    @property
    def skipped(self) -> Counter[str]:
        """What is in no record, and what may not be where it belongs."""
        return self.left_out + self.observer.doubts

    def _skip(self, reason: str) -> None:
        self.left_out[reason] += 1

    def _note(self, words: str) -> None:
        self.notes[words] += 1

    def _ended(self, record: LoopRecord, tally: Tally) -> None:
        self.records.append(record)
        self.tally += tally

    def send(
        self,
        path: str,
        body: Any,
        at: float,
        connection: int = 1,
        headers: Sequence[tuple[str, str]] = (),
        kind: Kind = "model",
        method: str = "POST",
    ) -> Exchange:
        """A request that was made at this time, and has been read a tenth later."""
        self.number += 1
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        ns = int(at * MS)
        exchange = Exchange(
            self.number, connection, kind, "https://up.example", method.encode(), path.encode(), ns
        )
        exchange.request_headers = [(name.encode(), value.encode()) for name, value in headers]
        exchange.request.pieces.append(Piece(ns, data))
        exchange.request.size = len(data)
        exchange.request_ended_ns = exchange.connected_ns = exchange.sent_ns = ns + MS // 10
        self.observer.requested(exchange)
        return exchange

    def respond(
        self,
        exchange: Exchange,
        body: Any,
        at: float,
        status: int = 200,
        headers: Sequence[tuple[str, str]] = (),
        outcome: Outcome = "complete",
    ) -> None:
        """A whole response at this time; or, where `body` is a list of (time, bytes), a stream."""
        streamed = isinstance(body, list)
        kind = "text/event-stream" if streamed else "application/json"
        exchange.status = status
        exchange.response_headers = [
            (b"content-type", kind.encode()),
            *((name.encode(), value.encode()) for name, value in headers),
        ]
        pieces = body if streamed else [(at, body if isinstance(body, bytes) else json.dumps(body).encode())]
        exchange.head_ns = int((pieces[0][0] if pieces else at) * MS)
        for time, data in pieces:
            exchange.response.pieces.append(Piece(int(time * MS), data))
            exchange.response.size += len(data)
            self.observer.responding(exchange)
        self.end(exchange, at, outcome)

    def end(self, exchange: Exchange, at: float, outcome: Outcome = "complete") -> None:
        exchange.ended_ns, exchange.outcome = int(at * MS), outcome
        self.observer.ended(exchange)

    def close(self) -> list[LoopRecord]:
        """All records, in the order of their starts, once nothing more comes."""
        self.observer.close()
        return sorted(self.records, key=lambda record: record.started_ns)


@dataclass
class Agent:
    """The client's side of one conversation."""

    api: str
    history: list[Any] = field(default_factory=lambda: [{"role": "user", "content": "the same for all"}])
    stream: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return PATHS[self.api]

    @property
    def body(self) -> dict[str, Any]:
        name = "input" if self.api == "openai-responses" else "messages"
        return {"model": "m", name: [*self.history], "stream": self.stream, **self.more}

    def went_on(self, calls: Sequence[Call], failed: Sequence[str] = ()) -> None:
        """The model asked for these calls, and here are their results."""
        parts: list[Any]
        if self.api == "openai":
            self.history.append(
                {"role": "assistant", "content": None, "tool_calls": [_chat(c) for c in calls]}
            )
            self.history += [{"role": "tool", "tool_call_id": c[0], "content": "x"} for c in calls]
        elif self.api == "anthropic":
            self.history.append({"role": "assistant", "content": [_use(c) for c in calls]})
            parts = [{"type": "tool_result", "tool_use_id": c[0], "content": "x"} for c in calls]
            for part in parts:
                if part["tool_use_id"] in failed:
                    part["is_error"] = True
            self.history.append({"role": "user", "content": parts})
        else:
            self.history += [_item(c) for c in calls]
            self.history += [{"type": "function_call_output", "call_id": c[0], "output": "x"} for c in calls]

    def said(self, text: str, then: str) -> None:
        """The model answered, and its user said something more."""
        kind = {"role": "assistant", "content": text}
        if self.api == "openai-responses":
            kind = {"type": "message", **kind}
        self.history += [kind, {"role": "user", "content": then}]


def _arguments(call: Call) -> str:
    return json.dumps(call[2] if len(call) > 2 else {})


def _chat(call: Call) -> dict[str, Any]:
    return {"id": call[0], "type": "function", "function": {"name": call[1], "arguments": _arguments(call)}}


def _use(call: Call) -> dict[str, Any]:
    return {"type": "tool_use", "id": call[0], "name": call[1], "input": call[2] if len(call) > 2 else {}}


def _item(call: Call) -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": f"fc_{call[0]}",
        "call_id": call[0],
        "name": call[1],
        "arguments": _arguments(call),
        "status": "completed",
    }


def reply(api: str, calls: Sequence[Call] = (), text: str = "done", ident: str = "r1") -> dict[str, Any]:
    """A whole reply: calls, or without any an answer. 100 tokens in, 10 out."""
    if api == "openai":
        message = {"role": "assistant", "content": None if calls else text}
        if calls:
            message["tool_calls"] = [_chat(call) for call in calls]
        reason = "tool_calls" if calls else "stop"
        return {
            "id": ident,
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
    if api == "anthropic":
        return {
            "id": ident,
            "type": "message",
            "role": "assistant",
            "content": [_use(call) for call in calls] or [{"type": "text", "text": text}],
            "stop_reason": "tool_use" if calls else "end_turn",
            "usage": {"input_tokens": 60, "cache_read_input_tokens": 40, "output_tokens": 10},
        }
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}
    return {
        "id": ident,
        "object": "response",
        "status": "completed",
        "output": [_item(call) for call in calls] or [message],
        "usage": {"input_tokens": 100, "output_tokens": 10, "total_tokens": 110},
    }


def stream(
    api: str, at: float, calls: Sequence[Call] = (), text: str = "done", ident: str = "r1"
) -> list[Any]:
    """The same as events, the first at `at` and each next one 10 ms later: two for each call, and an end."""
    events: list[list[Any]] = []
    if api == "openai":
        for index, call in enumerate(calls):
            opener = {"index": index, "id": call[0], "type": "function"}
            name = {"name": call[1], "arguments": ""}
            events.append([_delta({"tool_calls": [{**opener, "function": name}]})])
            more = {"index": index, "function": {"arguments": _arguments(call)}}
            events.append([_delta({"tool_calls": [more]})])
        if not calls:
            events.append([_delta({"content": text})])
        last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls" if calls else "stop"}]}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        events.append([last, {"choices": [], "usage": usage}, "[DONE]"])
    elif api == "anthropic":
        usage = {"input_tokens": 60, "cache_read_input_tokens": 40, "output_tokens": 1}
        begin = {"type": "message_start", "message": {"id": ident, "content": [], "usage": usage}}
        for index, call in enumerate(calls):
            block = {"type": "tool_use", "id": call[0], "name": call[1], "input": {}}
            events.append([{"type": "content_block_start", "index": index, "content_block": block}])
            delta = {"type": "input_json_delta", "partial_json": _arguments(call)}
            events.append(
                [
                    {"type": "content_block_delta", "index": index, "delta": delta},
                    {"type": "content_block_stop", "index": index},
                ]
            )
        if not calls:
            block = {"type": "text", "text": ""}
            delta = {"type": "text_delta", "text": text}
            events.append(
                [
                    {"type": "content_block_start", "index": 0, "content_block": block},
                    {"type": "content_block_delta", "index": 0, "delta": delta},
                    {"type": "content_block_stop", "index": 0},
                ]
            )
        events[0].insert(0, begin)
        reason = {"stop_reason": "tool_use" if calls else "end_turn"}
        events.append(
            [
                {"type": "message_delta", "delta": reason, "usage": {"output_tokens": 10}},
                {"type": "message_stop"},
            ]
        )
    else:
        whole = reply(api, calls, text, ident)
        for index, item in enumerate(whole["output"]):
            added = {**item, "arguments": "", "status": "in_progress"}
            events.append([{"type": "response.output_item.added", "output_index": index, "item": added}])
            events.append([{"type": "response.output_item.done", "output_index": index, "item": item}])
        events.append([{"type": "response.completed", "response": whole}])
    return [(at + 10 * n, b"".join(map(_event, parts))) for n, parts in enumerate(events)]


def _delta(delta: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


def _event(data: Any) -> bytes:
    name = f"event: {data['type']}\n" if isinstance(data, dict) and "type" in data else ""
    text = data if isinstance(data, str) else json.dumps(data)
    return f"{name}data: {text}\n\n".encode()
