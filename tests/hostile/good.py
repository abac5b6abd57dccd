"""Good replies of the three APIs, whole and streamed, without any code of the profiler."""

from __future__ import annotations

import json
from typing import Any

Json = dict[str, Any]


def answer_of(api: str, number: int, calls: int) -> Json:
    """A whole reply: an answer, or so many calls of the tool `echo`."""
    if api == "openai":
        message: Json = {"role": "assistant", "content": None if calls else f"Answer {number}."}
        if calls:
            message["tool_calls"] = [
                {"id": f"call_{number}_{k}", "type": "function"}
                | {"function": {"name": "echo", "arguments": json.dumps({"text": f"t{k}"})}}
                for k in range(calls)
            ]
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
        usage = {"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 70}
        head = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m"}
        return {**head, "choices": [choice], "usage": usage}
    if api == "responses":
        output: list[Json] = [
            {"type": "function_call", "id": f"fc_{k}", "call_id": f"call_{number}_{k}", "name": "echo"}
            | {"arguments": json.dumps({"text": f"t{k}"}), "status": "completed"}
            for k in range(calls)
        ] or [
            {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
            | {"content": [{"type": "output_text", "text": f"Answer {number}.", "annotations": []}]}
        ]
        usage = {"input_tokens": 50, "output_tokens": 20, "total_tokens": 70}
        head = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": "completed"}
        return {**head, "output": output, "usage": usage}
    content: list[Json] = [
        {"type": "tool_use", "id": f"toolu_{number}_{k}", "name": "echo", "input": {"text": f"t{k}"}}
        for k in range(calls)
    ] or [{"type": "text", "text": f"Answer {number}."}]
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": content}
    reason = "tool_use" if calls else "end_turn"
    usage = {"input_tokens": 50, "output_tokens": 20}
    return {**head, "stop_reason": reason, "stop_sequence": None, "usage": usage}


def events_of(api: str, number: int, calls: int) -> list[tuple[str, Json | str]]:
    """The same reply as a stream: (name of the event, its data)."""
    whole = answer_of(api, number, calls)
    if api == "openai":
        message = whole["choices"][0]["message"]
        head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}

        def chunk(delta: Json, reason: str | None = None) -> tuple[str, Json]:
            return "", {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

        parts = [chunk({"role": "assistant", "content": ""})]
        for index, call in enumerate(message.get("tool_calls", ())):
            parts.append(chunk({"tool_calls": [{"index": index, **call}]}))
        if not calls:
            parts += [chunk({"content": "Answer "}), chunk({"content": f"{number}."})]
        parts += [chunk({}, whole["choices"][0]["finish_reason"])]
        return [*parts, ("", {**head, "choices": [], "usage": whole["usage"]}), ("", "[DONE]")]
    events: list[tuple[str, Json | str]] = []

    def say(kind: str, **fields: Any) -> None:
        events.append((kind, {"type": kind, **fields}))

    if api == "responses":
        say("response.created", response={**whole, "status": "in_progress", "output": [], "usage": None})
        for index, item in enumerate(whole["output"]):
            say("response.output_item.added", output_index=index, item={**item, "status": "in_progress"})
            if item["type"] == "message":
                text = item["content"][0]["text"]
                where = {"item_id": item["id"], "output_index": index, "content_index": 0}
                say("response.output_text.delta", **where, delta=text)
            else:
                where = {"item_id": item["id"], "output_index": index}
                say("response.function_call_arguments.delta", **where, delta=item["arguments"])
                say("response.function_call_arguments.done", **where, arguments=item["arguments"])
            say("response.output_item.done", output_index=index, item=item)
        say("response.completed", response=whole)
        return events
    say("message_start", message={**whole, "content": [], "stop_reason": None, "usage": {"input_tokens": 50}})
    for index, block in enumerate(whole["content"]):
        if block["type"] == "text":
            say("content_block_start", index=index, content_block={"type": "text", "text": ""})
            say("content_block_delta", index=index, delta={"type": "text_delta", "text": block["text"]})
        else:
            say("content_block_start", index=index, content_block={**block, "input": {}})
            given = json.dumps(block["input"])
            delta = {"type": "input_json_delta", "partial_json": given}
            say("content_block_delta", index=index, delta=delta)
        say("content_block_stop", index=index)
    say("message_delta", delta={"stop_reason": whole["stop_reason"]}, usage={"output_tokens": 20})
    say("message_stop")
    return events


def sse(name: str, data: str) -> bytes:
    said = f"event: {name}\n" if name else ""
    return f"{said}data: {data}\n\n".encode("utf-8", "surrogatepass")
