"""Generated replies of model servers, right, odd and broken, and everything that a program sees of one.

A `Wire` is what a server sends to one request, cut into chunks anywhere. `Served` is a transport that answers
with it, without a socket. `seen` and `seen_async` are programs that use an SDK in one of its ways, and return
all that they were given: objects, events, headers, bytes, or the exception.
"""

from __future__ import annotations

import asyncio
import gzip
import inspect
import json
import random
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import anthropic
import httpx2
import openai

Api = Literal["openai", "openai-responses", "anthropic"]
APIS: tuple[Api, ...] = ("openai", "openai-responses", "anthropic")

ODD: tuple[Any, ...] = (
    *(None, "", [], {}, -1, 0, 2**70, 1.5, True, "many", ["x"], {"x": None}, "é\ud800", "\x00", "0" * 300),
)
"""Values that a gateway may put anywhere."""

ERRORS = (httpx2.ReadError, httpx2.RemoteProtocolError, httpx2.ReadTimeout, ConnectionResetError, ValueError)


@dataclass
class Wire:
    """`before` is raised in place of a response, `during` after the last chunk."""

    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    before: BaseException | None = None
    during: BaseException | None = None


class _Stream(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def __iter__(self) -> Iterator[bytes]:
        yield from self.wire.chunks
        if self.wire.during is not None:
            raise type(self.wire.during)(*self.wire.during.args)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.wire.chunks:
            await asyncio.sleep(0)
            yield chunk
        if self.wire.during is not None:
            raise type(self.wire.during)(*self.wire.during.args)


class Served(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """Answers each request with the next of `wires`, the last one again and again."""

    wires: list[Wire]

    def answer(self) -> httpx2.Response:
        wire = self.wires.pop(0) if len(self.wires) > 1 else self.wires[0]
        if wire.before is not None:
            raise type(wire.before)(*wire.before.args)
        return httpx2.Response(wire.status, headers=wire.headers, stream=_Stream(wire))

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        return self.answer()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        return self.answer()


def _calls(rng: random.Random) -> list[tuple[str, str, str]]:
    return [
        (rng.choice(["", "a", "b", f"call_{n}"]), rng.choice(["get_weather", "f"]), rng.choice(ARGUMENTS))
        for n in range(rng.choice([0, 0, 1, 2, 3]))
    ]


ARGUMENTS = (
    "{}",
    "",
    '{"city": "Tokyo"}',
    '{"city": "Tok',
    "null",
    "[]",
    '{"x": NaN}',
    '{"a": {"b": [1, 2.5]}}',
)


def _chat(rng: random.Random, streamed: bool) -> list[Any]:
    calls = _calls(rng)
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    head = {"id": "c", "created": 1, "model": "m"}
    finish = rng.choice(["stop", "tool_calls", "length", None, "odd"])
    if not streamed:
        tool_calls = [
            {"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in calls
        ]
        message = {"role": "assistant", "content": rng.choice(["hi", None, ""]), "reasoning_content": "hm"}
        if tool_calls:
            message["tool_calls"] = tool_calls
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return [{**head, "object": "chat.completion", "choices": [choice], "usage": usage}]
    deltas: list[Any] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word} for word in rng.choices(["hi", " ", "é"], k=rng.randint(0, 3))]
    indexing = rng.choice(["right", "right", "none", "same", "from -1"])
    pieces = []
    for number, (call_id, name, arguments) in enumerate(calls):
        index = {"right": number, "none": None, "same": 0, "from -1": number - 1}[indexing]
        where = {} if index is None else {"index": index}
        half = len(arguments) // 2
        pieces += [
            {
                **where,
                "id": call_id,
                "type": "function",
                "function": {"name": name, "arguments": arguments[:half]},
            },
            {**where, "function": {"arguments": arguments[half:]}},
        ]
    deltas += [{"tool_calls": [piece]} for piece in pieces]
    events: list[Any] = [
        {
            **head,
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": d, "finish_reason": None}],
        }
        for d in deltas
    ]
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        last = [{"index": 0, "delta": {}, "finish_reason": finish}]
        events.append({**head, "object": "chat.completion.chunk", "choices": last})
    if rng.random() < 0.5:
        events.append({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    return events


def _response(rng: random.Random, streamed: bool) -> list[Any]:
    output: list[Any] = [
        {
            "id": f"i{n}",
            "type": "function_call",
            "status": "completed",
            "call_id": i,
            "name": name,
            "arguments": a,
        }
        for n, (i, name, a) in enumerate(_calls(rng))
    ]
    if not output or rng.random() < 0.5:
        part = {"type": "output_text", "text": "hi", "annotations": []}
        output.append(
            {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        )
    usage = {
        "input_tokens": 5,
        "output_tokens": 7,
        "total_tokens": 12,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    whole = {
        "id": "r",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "status": "completed",
        "error": None,
        "output": output,
        "usage": usage,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }
    if not streamed:
        return [whole]
    started = {**whole, "output": [], "status": "in_progress", "usage": None}
    events: list[Any] = [{"type": "response.created", "response": started}]
    for index, item in enumerate(output):
        empty = {**item, "arguments": ""} if "arguments" in item else {**item, "content": []}
        events.append({"type": "response.output_item.added", "output_index": index, "item": empty})
        if "arguments" in item:
            where = {"item_id": item["id"], "output_index": index}
            kind = "response.function_call_arguments"
            events.append({"type": f"{kind}.delta", **where, "delta": item["arguments"]})
            events.append(
                {"type": f"{kind}.done", **where, "arguments": item["arguments"], "name": item["name"]}
            )
        else:
            where = {"item_id": "m", "output_index": index, "content_index": 0}
            part = {**item["content"][0], "text": ""}
            events.append({"type": "response.content_part.added", **where, "part": part})
            events.append({"type": "response.output_text.delta", **where, "delta": "hi", "logprobs": []})
        events.append({"type": "response.output_item.done", "output_index": index, "item": item})
    last = {**whole, "output": []} if rng.random() < 0.2 else whole
    events.append(
        {"type": f"response.{rng.choice(['completed'] * 4 + ['incomplete', 'failed'])}", "response": last}
    )
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def _message(rng: random.Random, streamed: bool) -> list[Any]:
    blocks: list[Any] = [{"type": "text", "text": "hi"}] if rng.random() < 0.6 else []
    if rng.random() < 0.3:
        blocks.insert(0, {"type": "thinking", "thinking": "hm", "signature": "s"})
    calls = _calls(rng)
    for call_id, name, arguments in calls:
        try:
            given = json.loads(arguments or "{}")
        except ValueError:
            given = {}
        blocks.append({"type": "tool_use", "id": call_id, "name": name, "input": given})
    usage = {"input_tokens": 5, "output_tokens": 7, "cache_read_input_tokens": 3}
    reason = rng.choice(["end_turn", "tool_use", "max_tokens", "pause_turn"])
    whole = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": blocks,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": usage,
    }
    if not streamed:
        return [whole]
    events: list[Any] = [{"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}}]
    left = iter(calls)
    for index, block in enumerate(blocks):
        if block["type"] == "text":
            start, deltas = {**block, "text": ""}, [{"type": "text_delta", "text": "hi"}]
        elif block["type"] == "thinking":
            start = {**block, "thinking": "", "signature": ""}
            deltas = [
                {"type": "thinking_delta", "thinking": "hm"},
                {"type": "signature_delta", "signature": "s"},
            ]
        else:
            text = next(left)[2]
            start = {**block, "input": {}}
            cuts = [text[: len(text) // 2], text[len(text) // 2 :]]
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in cuts]
        events.append({"type": "content_block_start", "index": index, "content_block": start})
        if rng.random() < 0.2:
            events.append({"type": "ping"})
        events += [{"type": "content_block_delta", "index": index, "delta": one} for one in deltas]
        events.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": reason, "stop_sequence": None}
    events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 7}})
    events.append({"type": "message_stop"})
    return events


_MAKERS = {"openai": _chat, "openai-responses": _response, "anthropic": _message}


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) inside a JSON value."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _made_odd(rng: random.Random, parts: list[Any]) -> list[Any]:
    """The parts with some of what they hold replaced, left out, said twice or in another order."""
    parts = json.loads(json.dumps(parts))
    for _ in range(rng.choice([1, 1, 2, 4])):
        places = list(_places(parts))
        if not places:
            return parts
        container, key = rng.choice(places)
        act = rng.choice(["replace", "replace", "remove", "repeat", "swap"])
        if act == "replace":
            container[key] = json.loads(json.dumps(rng.choice(ODD)))
        elif act == "remove":
            del container[key]
        elif act == "repeat" and isinstance(container, list):
            container.insert(key, json.loads(json.dumps(container[key])))
        elif isinstance(container, list):
            rng.shuffle(container)
    return parts


def _as_events(rng: random.Random, parts: list[Any], api: Api) -> bytes:
    end = rng.choice(["\n", "\n", "\r\n"])
    lines: list[str] = []
    for part in parts:
        if rng.random() < 0.05:
            lines += [": keep-alive", ""]
        if isinstance(part, dict) and isinstance(part.get("type"), str) and api != "openai":
            lines.append(f"event: {part['type']}")
        lines += [f"data:{rng.choice([' ', ' ', ''])}{json.dumps(part)}", ""]
    if api == "openai" and rng.random() < 0.9:
        lines += ["data: [DONE]", ""]
    return (end.join(lines) + end).encode(errors="surrogatepass")


def _cut(rng: random.Random, body: bytes) -> list[bytes]:
    """The body in chunks, cut anywhere, empty ones included."""
    most = rng.choice([0, 1, 3, 10, 40])
    cuts = sorted(rng.randint(0, len(body)) for _ in range(most))
    return [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


def _damaged(rng: random.Random, body: bytes) -> bytes:
    damaged = bytearray(body)
    for _ in range(rng.choice([1, 3, 20])):
        if damaged:
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    if rng.random() < 0.5:
        del damaged[rng.randint(0, len(damaged)) :]
    if rng.random() < 0.1:
        damaged += b"[" * 3000
    return bytes(damaged)


def generated(rng: random.Random, api: Api, streamed: bool) -> Wire:
    """A reply: more than a third as it should be, the others odd, refused or broken on their way."""
    parts = _MAKERS[api](rng, streamed)
    kinds = ["right"] * 8 + ["odd"] * 4 + ["damaged", "damaged", "refused", "cut off", "unsent"]
    kind = rng.choice(kinds)
    if kind == "odd":
        parts = _made_odd(rng, parts)
    if streamed:
        body = _as_events(rng, parts, api)
    else:
        body = json.dumps(parts[0] if parts else None).encode(errors="surrogatepass")
    if kind == "damaged":
        body = _damaged(rng, body)
    wire = Wire()
    error = rng.choice(ERRORS)(f"generated {rng.randrange(100)}")
    if kind == "refused":
        wire.status = rng.choice([400, 401, 404, 413, 429, 500, 503, 529])
        bodies = [
            b"",
            b"<html>no</html>",
            b'[{"error": {"message": "m"}}]',
            b'{"error": null}',
            b"\xff\xfe",
            body,
        ]
        body = rng.choice([*bodies, b'{"error": {"message": "no", "type": "t", "code": 7}}'])
    elif kind == "cut off":
        body, wire.during = body[: rng.randint(0, len(body))], error
    elif kind == "unsent":
        wire.before = error
    content_type = "text/event-stream" if streamed else "application/json"
    odd_types = [
        "text/event-stream",
        "application/json",
        "text/plain; charset=odd",
        "",
        "application/octet-stream",
    ]
    if rng.random() < 0.1:
        content_type = rng.choice(odd_types)
    wire.headers = [("content-type", content_type), ("retry-after-ms", "1")]
    wire.headers += rng.choices(_HEADERS, k=rng.choice([0, 0, 1, 3]))
    encoding = rng.choice([""] * 16 + ["gzip"] * 4 + ["claimed", "unknown"])
    if encoding == "gzip":
        body = gzip.compress(body, 1)
        if rng.random() < 0.1:
            body = body[: len(body) // 2]
    if encoding:
        wire.headers.append(("content-encoding", "x-unknown" if encoding == "unknown" else "gzip"))
    wire.chunks = _cut(rng, body)
    return wire


_HEADERS = [
    ("x-request-id", "req_1"),
    ("request-id", "é"),
    ("retry-after", "soon"),
    ("retry-after", "-1"),
    ("x-ratelimit-remaining-tokens", "many"),
    ("x-ratelimit-reset-requests", "6m0s"),
    ("anthropic-ratelimit-tokens-reset", "2026-01-01T00:00:00Z"),
    ("x-long", "x" * 9000),
    ("x-should-retry", "false"),
]

WAYS = ("plain", "raw", "streaming", "helper", "broken off")
"""Ways to use an SDK: its objects, its raw response, its streaming response, its stream helper, a stream that
the program has enough of."""

MESSAGES: Any = [{"role": "user", "content": "x"}]
TOOLS: dict[str, Any] = {
    "openai": [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "strict": True,
                "parameters": {
                    "type": "object",
                    "properties": {},
                    "required": [],
                    "additionalProperties": False,
                },
            },
        }
    ]
}


def clients(served: Served, *, asynchronous: bool, max_retries: int = 0) -> dict[Api, Any]:
    """A client of each API on this transport."""
    kind: Any = httpx2.AsyncClient if asynchronous else httpx2.Client
    options: dict[str, Any] = {"api_key": "k", "max_retries": max_retries, "base_url": "http://model/v1"}
    of_openai: Any = openai.AsyncOpenAI if asynchronous else openai.OpenAI
    of_anthropic: Any = anthropic.AsyncAnthropic if asynchronous else anthropic.Anthropic
    made = of_openai(http_client=kind(transport=served), **options)
    other = of_anthropic(http_client=kind(transport=served), **{**options, "base_url": "http://model"})
    return {"openai": made, "openai-responses": made, "anthropic": other}


def _asked(api: Api, client: Any) -> tuple[Any, dict[str, Any]]:
    """What has `create`, and its arguments."""
    if api == "openai":
        return client.chat.completions, {"model": "m", "messages": MESSAGES}
    if api == "openai-responses":
        return client.responses, {"model": "m", "input": "x"}
    return client.messages, {"model": "m", "max_tokens": 9, "messages": MESSAGES}


def shown(value: Any, depth: int = 0) -> Any:
    """A value as text, without what differs between two equal ones."""
    if isinstance(value, BaseException):
        inner = (value.__cause__, value.__context__) if depth < 5 else ()
        more = {
            name: shown(held, depth + 1)
            for name, held in vars(value).items()
            if not isinstance(held, httpx2.Request | httpx2.Response) and not name.startswith("_")
        }
        chain = [shown(one, depth + 1) for one in inner if one is not None]
        return type(value), [shown(one, depth + 1) for one in value.args], _text(str(value)), more, chain
    if hasattr(value, "model_dump"):
        return type(value).__name__, _text(repr(value.model_dump(warnings=False)))
    return type(value).__name__, _text(repr(value))


def _text(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+", "0x", text)


def seen(api: Api, client: Any, way: str, streamed: bool, enough: int) -> list[Any]:
    """Everything that a program is given by a sync client."""
    found: list[Any] = []
    resource, given = _asked(api, client)
    if streamed and way != "helper":
        given["stream"] = True
    try:
        if way == "raw":
            raw = resource.with_raw_response.create(**given)
            found += [raw.status_code, list(raw.headers.multi_items())]
            parsed = raw.parse()
            found += [shown(one) for one in parsed] if streamed else [shown(parsed), raw.content]
        elif way == "streaming":
            with resource.with_streaming_response.create(**given) as response:
                found += [response.status_code, list(response.headers.multi_items())]
                for chunk in response.iter_bytes():
                    found.append(chunk)
        elif way == "helper" and streamed:
            with resource.stream(**given) as stream:
                for event in stream:
                    found.append(shown(event))
                final = getattr(stream, "get_final_message", None) or getattr(
                    stream, "get_final_completion", None
                )
                found.append(shown(final() if final is not None else stream.get_final_response()))
        elif streamed:
            stream = resource.create(**given)
            for number, event in enumerate(stream):
                found.append(shown(event))
                if way == "broken off" and number >= enough:
                    stream.close()
                    break
        else:
            found.append(shown(resource.create(**given)))
    except (Exception, asyncio.CancelledError) as error:
        found.append(shown(error))
        raised = getattr(error, "response", None)
        if isinstance(raised, httpx2.Response):
            found.append((raised.status_code, list(raised.headers.multi_items()), _body(raised)))
    return found


async def seen_async(api: Api, client: Any, way: str, streamed: bool, enough: int) -> list[Any]:
    """Everything that a program is given by an async client."""
    found: list[Any] = []
    resource, given = _asked(api, client)
    if streamed and way != "helper":
        given["stream"] = True
    try:
        if way == "raw":
            raw = await resource.with_raw_response.create(**given)
            found += [raw.status_code, list(raw.headers.multi_items())]
            parsed = raw.parse()
            if inspect.isawaitable(parsed):  # in one of the two SDKs
                parsed = await parsed
            if streamed:
                async for event in parsed:
                    found.append(shown(event))
            else:
                found += [shown(parsed), raw.content]
        elif way == "streaming":
            async with resource.with_streaming_response.create(**given) as response:
                found += [response.status_code, list(response.headers.multi_items())]
                async for chunk in response.iter_bytes():
                    found.append(chunk)
        elif way == "helper" and streamed:
            async with resource.stream(**given) as stream:
                async for event in stream:
                    found.append(shown(event))
                final = getattr(stream, "get_final_message", None) or getattr(
                    stream, "get_final_completion", None
                )
                found.append(shown(await (final() if final is not None else stream.get_final_response())))
        elif streamed:
            stream = await resource.create(**given)
            number = 0
            async for event in stream:
                found.append(shown(event))
                if way == "broken off" and number >= enough:
                    await stream.close()
                    break
                number += 1
        else:
            found.append(shown(await resource.create(**given)))
    except (Exception, asyncio.CancelledError) as error:
        found.append(shown(error))
        raised = getattr(error, "response", None)
        if isinstance(raised, httpx2.Response):
            found.append((raised.status_code, list(raised.headers.multi_items()), _body(raised)))
    return found


def _body(response: httpx2.Response) -> Any:
    try:
        return response.content
    except Exception as error:
        return type(error)


def raised(found: list[Any]) -> bool:
    """Whether what was seen ended with an exception."""
    return any(
        isinstance(one, tuple) and isinstance(one[0], type) and issubclass(one[0], BaseException)
        for one in found
    )
