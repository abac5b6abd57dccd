"""Reads requests and responses from their bytes: for clients whose SDK calls are not ours.

Knows the JSON bodies and the server-sent events of the three APIs, as far as a record needs them: the
calls, the tokens, whether the reply was complete.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import orjson

from profiler.loop.model import CallRequest

Api = Literal["openai", "openai-responses", "anthropic"]

_PATHS: tuple[tuple[str, Api], ...] = (
    ("/chat/completions", "openai"),
    ("/responses", "openai-responses"),
    ("/messages", "anthropic"),
)


def api_of(path: str) -> Api | None:
    """The API that a POST to this path is a model request of, None when it is none."""
    return next((api for suffix, api in _PATHS if path.endswith(suffix)), None)


def requested_model(body: bytes) -> str:
    """The model that a request names; parsed, because arguments of calls may have a key `model` too."""
    try:
        model = orjson.loads(body)["model"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""
    return model if isinstance(model, str) else ""


def requested_prompt(body: bytes) -> str | None:
    """The last message of the user in a request of any of the APIs, None when there is none to be found."""
    try:
        data = orjson.loads(body)
        said = data["messages"] if "messages" in data else data["input"]
        if not isinstance(said, str):
            said = [message["content"] for message in said if message.get("role") == "user"][-1]
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError, AttributeError):
        return None
    return said if isinstance(said, str) else orjson.dumps(said).decode()


@dataclass(slots=True)
class ObservedReply:
    """A reply as far as it has been read. `complete` is False for a stream that was cut off."""

    calls: list[CallRequest] = field(default_factory=list)
    input_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    complete: bool = False


def read_json(api: Api, body: bytes) -> ObservedReply:
    """A response that came as one JSON object; anything unexpected in it is left out."""
    observed = ObservedReply()
    try:
        _read(api, orjson.loads(body), observed)
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError, AttributeError):
        return observed
    observed.complete = True
    return observed


def _read(api: Api, data: Any, observed: ObservedReply) -> None:
    usage = data.get("usage") or {}
    observed.input_tokens = usage.get("prompt_tokens" if api == "openai" else "input_tokens")
    observed.output_tokens = usage.get("completion_tokens" if api == "openai" else "output_tokens")
    if api == "openai":
        choice = data["choices"][0]
        observed.finish_reason = choice.get("finish_reason")
        for call in choice["message"].get("tool_calls") or ():
            if call.get("type", "function") == "function":
                function = call["function"]
                observed.calls.append(CallRequest(call["id"], function["name"], function["arguments"]))
    elif api == "openai-responses":
        observed.finish_reason = data.get("status")
        for item in data["output"]:
            if item["type"] == "function_call":
                observed.calls.append(CallRequest(item["call_id"], item["name"], item["arguments"]))
    else:
        observed.finish_reason = data.get("stop_reason")
        for block in data["content"]:
            if block["type"] == "tool_use":
                observed.calls.append(CallRequest(block["id"], block["name"], block["input"]))


class EventReader:
    """Reads a stream of server-sent events as its bytes arrive.

    `on_token` is called for each piece that the model generated, `on_call` for each call whose
    arguments are complete.
    """

    def __init__(
        self, api: Api, on_token: Callable[[], None], on_call: Callable[[CallRequest], None]
    ) -> None:
        self.observed = ObservedReply()
        self._on_token = on_token
        self._on_call = on_call
        self._rest = b""
        self._read = {
            "openai": self._chat,
            "openai-responses": self._response,
            "anthropic": self._message,
        }[api]
        self._open: list[str] | None = None  # id, name, arguments of the call that is being streamed
        self._calls: dict[Any, list[str]] = {}  # the same, by index, of all calls of a Chat reply
        self._complete: list[list[str]] = []  # those of them that are

    def feed(self, chunk: bytes) -> None:
        """Read the next bytes, which may end in the middle of an event."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            try:
                data = orjson.loads(line[5:])
            except orjson.JSONDecodeError:  # [DONE]
                continue
            try:
                self._read(data)
            except (KeyError, TypeError, IndexError, AttributeError):
                continue  # not an event of this API: the SDK will report that

    def _close(self) -> None:
        """The open call, if there is one, is complete."""
        if self._open is not None:
            call_id, name, arguments = self._open
            call = CallRequest(call_id, name, arguments)
            self._open = None
            self.observed.calls.append(call)
            self._on_call(call)

    def _chat(self, data: Any) -> None:
        usage = data.get("usage")
        if usage:
            self.observed.input_tokens = usage.get("prompt_tokens")
            self.observed.output_tokens = usage.get("completion_tokens")
        if not data.get("choices"):
            return
        choice = data["choices"][0]
        delta = choice.get("delta") or {}
        if delta.get("content"):
            self._on_token()
        for part in delta.get("tool_calls") or ():
            self._on_token()
            self._delta(part)
        if choice.get("finish_reason"):
            self.observed.finish_reason = choice["finish_reason"]
            self.observed.complete = True
            if choice["finish_reason"] != "length":
                for call in [*self._calls.values()]:
                    self._chat_call(call)

    def _delta(self, part: Any) -> None:
        """A piece of one call. Those of several calls may come interleaved, each with its index."""
        index, function = part.get("index"), part.get("function") or {}
        key = part.get("id") if index is None else index
        if key is None and self._calls:
            key = next(reversed(self._calls))
        call = self._calls.get(key)
        if call is None or (part.get("id") and call[0] not in ("", part["id"])):
            if not function.get("name"):
                return  # it belongs to no call
            if call is not None:
                self._chat_call(call)  # some servers give every call the same index
            call = self._calls[key] = ["", "", ""]
        elif any(one is call for one in self._complete):
            return
        call[0] = part.get("id") or call[0]
        call[1] = function.get("name") or call[1]
        call[2] += function.get("arguments") or ""
        if call[2].rstrip().endswith("}"):
            with contextlib.suppress(orjson.JSONDecodeError):
                orjson.loads(call[2])
                self._chat_call(call)  # nothing can follow; an application may run it at once

    def _chat_call(self, call: list[str]) -> None:
        """A call is complete; once."""
        if not any(one is call for one in self._complete):
            self._complete.append(call)
            self._open = call
            self._close()

    def _response(self, data: Any) -> None:
        kind = data["type"]
        if kind in ("response.output_text.delta", "response.function_call_arguments.delta"):
            self._on_token()
        elif kind == "response.output_item.done":
            item = data["item"]
            if item["type"] == "function_call" and item.get("status") == "completed":
                self._open = [item["call_id"], item["name"], item["arguments"]]
                self._on_token()
                self._close()
        elif kind in ("response.completed", "response.incomplete", "response.failed"):
            final = ObservedReply()
            _read("openai-responses", data["response"], final)
            self.observed = replace(final, calls=self.observed.calls, complete=True)

    def _message(self, data: Any) -> None:
        kind = data["type"]
        if kind == "message_start":
            self.observed.input_tokens = data["message"]["usage"].get("input_tokens")
        elif kind == "content_block_start":
            self._close()
            block = data["content_block"]
            if block["type"] == "tool_use":
                self._on_token()
                self._open = [block["id"], block["name"], ""]
        elif kind == "content_block_delta":
            self._on_token()
            if self._open is not None:
                self._open[2] += data["delta"].get("partial_json") or ""
        elif kind == "message_delta":
            self.observed.finish_reason = data["delta"].get("stop_reason")
            self.observed.output_tokens = data["usage"].get("output_tokens")
            # A reply that is cut off closes its last block too, but that call is not complete.
            if self.observed.finish_reason != "max_tokens":
                self._close()
        elif kind == "message_stop":
            self.observed.complete = True
