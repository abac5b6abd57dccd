"""The server of `benchmarks/causes.py`: scripted replies of three model APIs, streamed or not."""

from __future__ import annotations

import asyncio
import json
import sys

CALLS = int(sys.argv[1])
OK = b"HTTP/1.1 200 OK\r\ncontent-type: "
JSON = OK + b"application/json\r\ncontent-length: %d\r\n\r\n"
STREAM = OK + b"text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chat():
    for i in range(CALLS):
        yield {
            "choices": [
                {
                    "index": 0,
                    "delta": {
                        "tool_calls": [
                            {
                                "index": i,
                                "id": f"c{i}",
                                "type": "function",
                                "function": {"name": "work", "arguments": json.dumps({"x": i})},
                            }
                        ]
                    },
                    "finish_reason": None,
                }
            ]
        }
    yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}


def answer():
    yield {"choices": [{"index": 0, "delta": {"content": "done"}, "finish_reason": None}]}
    yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def output(done):
    if done:
        return [
            {
                "type": "message",
                "id": "m",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "done", "annotations": []}],
            }
        ]
    return [
        {
            "type": "function_call",
            "id": f"f{i}",
            "call_id": f"c{i}",
            "name": "work",
            "status": "completed",
            "arguments": json.dumps({"x": i}),
        }
        for i in range(CALLS)
    ]


def response(items, status="completed"):
    return {
        "id": "r",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "status": status,
        "output": items,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": None,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "temperature": 1,
        "top_p": 1,
    }


def responses(done):
    items = output(done)
    yield {"type": "response.created", "sequence_number": 0, "response": response([], "in_progress")}
    for i, item in enumerate(items):
        added = dict(item, status="in_progress")
        if item["type"] == "function_call":
            added["arguments"] = ""
        else:
            added["content"] = []
        for step, (kind, shown) in enumerate((("added", added), ("done", item)), start=1):
            yield {
                "type": f"response.output_item.{kind}",
                "sequence_number": 2 * i + step,
                "output_index": i,
                "item": shown,
            }
    yield {"type": "response.completed", "sequence_number": 99, "response": response(items)}


def content(done):
    if done:
        return [{"type": "text", "text": "done"}]
    return [{"type": "tool_use", "id": f"c{i}", "name": "work", "input": {"x": i}} for i in range(CALLS)]


def message(done, blocks):
    return {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": blocks,
        "stop_reason": "end_turn" if done else "tool_use",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }


def messages(done):
    yield {"type": "message_start", "message": dict(message(done, []), stop_reason=None)}
    for i, block in enumerate(content(done)):
        if done:
            begun, delta = dict(block, text=""), {"type": "text_delta", "text": block["text"]}
        else:
            begun = dict(block, input={})
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        yield {"type": "content_block_start", "index": i, "content_block": begun}
        yield {"type": "content_block_delta", "index": i, "delta": delta}
        yield {"type": "content_block_stop", "index": i}
    stop = {"stop_reason": "end_turn" if done else "tool_use"}
    yield {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 1}}
    yield {"type": "message_stop"}


def said_of(done, events):
    if done:
        return {"role": "assistant", "content": "done"}
    calls = [event["choices"][0]["delta"]["tool_calls"][0] for event in events[:-1]]
    return {"role": "assistant", "content": None, "tool_calls": calls}


one_at_a_time = asyncio.Lock()


async def serve(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            size = int(head.split("content-length:")[1].split("\r\n")[0])
            body = json.loads(sent := await reader.readexactly(size))
            path = head.split()[1]
            if path == "/one-at-a-time":
                async with one_at_a_time:
                    await asyncio.sleep(body["seconds"])
                writer.write(JSON % 0)
                await writer.drain()
                continue
            said = body.get("messages") or body.get("input")
            done = (not isinstance(said, str) and len(said) > 1) or b"tool_result" in sent
            if path.endswith("completions"):
                events = answer() if done else chat()
                head_of = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
                events = [{**head_of, **event} for event in events]
                whole = {
                    "id": "c",
                    "object": "chat.completion",
                    "created": 1,
                    "model": "m",
                    "choices": [
                        {
                            "index": 0,
                            "message": said_of(done, events),
                            "finish_reason": "stop" if done else "tool_calls",
                        }
                    ],
                }
            elif path.endswith("responses"):
                events, whole = list(responses(done)), response(output(done))
            else:
                events, whole = list(messages(done)), message(done, content(done))
            if not body.get("stream"):
                raw = json.dumps(whole).encode()
                writer.write(JSON % len(raw) + raw)
                await writer.drain()
                continue
            writer.write(STREAM)
            for event in [*events, None]:
                raw = (
                    b"data: [DONE]\n\n"
                    if event is None
                    else b"event: %s\ndata: %s\n\n"
                    % (event.get("type", "message").encode(), json.dumps(event).encode())
                )
                if event is None and not path.endswith("completions"):
                    continue
                writer.write(b"%x\r\n%s\r\n" % (len(raw), raw))
                await writer.drain()
                await asyncio.sleep(0.01)
            writer.write(b"0\r\n\r\n")
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
