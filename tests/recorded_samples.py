"""A small recording in each format that can be imported, all of the same: two loops, of which the second is
the first one again ten minutes later. A model asks for two calls at once (0.2 s and 0.5 s), then answers.

`CANARY` is in all that is content: arguments, prompts, results, answers, paths, users.
"""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime

CANARY = "sEcReT-canary-4711"

_START = 1_790_000_000_000  # ms

CALLS = (("look", 210), ("weigh", 510))
"""The calls and the ms after the model's reply at which they end; they start after 10 ms."""


def iso(ms: float) -> str:
    return datetime.fromtimestamp((_START + ms) / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def lines(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def tracelab() -> list[dict]:
    rows = []
    for loop, at in enumerate((0, 600_000)):
        for index in (0, 1):
            begin, end = at + 2000 * index, at + 2000 * index + 1000
            calls = CALLS if index == 0 else ()
            events = [{"event_type": "tool_result" if index else "user_message", "timestamp": iso(begin)}]
            events.append({"event_type": "text", "timestamp": iso(end), "text": CANARY})
            rows.append(
                {
                    "provider": "claude",
                    "project": CANARY,
                    "session_id": "claude:s1",
                    "round_index": 2 * loop + index,
                    "round_id": f"m{loop}{index}",
                    "model": "claude-sonnet-4-5",
                    "input_tokens_total": 100,
                    "prefix_tokens": 80,
                    "newly_append_tokens": 20,
                    "output_tokens": 7,
                    "first_input_event_type": events[0]["event_type"],
                    "timing_events": events,
                    "tools": [
                        {
                            "tool_index": n,
                            "tool_name": name,
                            "tool_call_id": f"toolu_{loop}{n}",
                            "emitted_at": iso(end),
                            "result_at": iso(end + took),
                            "tool_internal_latency_ms": took - 10,
                            "tool_wall_latency_ms": took,
                            "is_error": False,
                            "arguments": CANARY,
                        }
                        for n, (name, took) in enumerate(calls)
                    ],
                }
            )
    return rows


def claude_code() -> list[dict]:
    rows: list[dict] = [{"type": "summary", "summary": CANARY, "leafUuid": "x"}]
    before = None

    def row(ms: float, kind: str, message: dict, **more: object) -> None:
        nonlocal before
        uuid = f"00000000-0000-4000-8000-{len(rows):012d}"
        about = {"cwd": f"/home/{CANARY}", "gitBranch": CANARY, "userType": "external", "version": "2.1.157"}
        rows.append(
            {"parentUuid": before, "isSidechain": False, **about, "sessionId": "s1", "type": kind}
            | {"message": message, "uuid": uuid, "timestamp": iso(ms), **more}
        )
        before = uuid

    def reply(ms: float, id: str, block: dict, stop: str) -> None:
        usage = {"input_tokens": 10, "cache_creation_input_tokens": 10, "cache_read_input_tokens": 80}
        message = {"model": "claude-sonnet-4-5", "id": id, "type": "message", "role": "assistant"}
        row(
            ms,
            "assistant",
            message | {"content": [block], "stop_reason": stop, "usage": usage | {"output_tokens": 7}},
            requestId=f"req_{id}",
        )

    for loop, at in enumerate((0, 600_000)):
        row(at, "user", {"role": "user", "content": f"Look {CANARY}"})
        for n, (name, _) in enumerate(CALLS):
            block = {"type": "tool_use", "id": f"toolu_{loop}{n}", "name": name, "input": {"path": CANARY}}
            reply(at + 1000, f"msg_{loop}a", block, "tool_use")
        for n, (_, took) in enumerate(CALLS):
            result = {"type": "tool_result", "tool_use_id": f"toolu_{loop}{n}", "content": CANARY}
            own = {"durationMs": took - 10, "filenames": [CANARY]}
            row(at + 1000 + took, "user", {"role": "user", "content": [result]}, toolUseResult=own)
        reply(at + 3000, f"msg_{loop}b", {"type": "text", "text": CANARY}, "end_turn")
    return rows


def codex() -> list[dict]:
    rows: list[dict] = []

    def row(ms: float, kind: str, **payload: object) -> None:
        rows.append({"timestamp": iso(ms), "type": kind, "payload": payload})

    row(0, "session_meta", id="t1", timestamp=iso(0), cwd=f"/home/{CANARY}", model_provider="openai")
    total = 0
    for loop, at in enumerate((0, 600_000)):
        row(at, "event_msg", type="task_started", turn_id=f"turn{loop}")
        row(at, "turn_context", turn_id=f"turn{loop}", cwd=f"/home/{CANARY}", model="gpt-5.4")
        row(at, "event_msg", type="user_message", message=CANARY)
        for n, (name, _) in enumerate(CALLS):
            arguments = json.dumps({"cmd": CANARY})
            row(
                at + 1000,
                "response_item",
                type="function_call",
                name=name,
                arguments=arguments,
                call_id=f"call_{loop}{n}",
            )
        for step in (0, 1):
            total += 107
            usage = {"input_tokens": 100, "cached_input_tokens": 80, "output_tokens": 7, "total_tokens": 107}
            info = {"last_token_usage": usage, "total_token_usage": usage | {"total_tokens": total}}
            row(at + 1000 + 2000 * step, "event_msg", type="token_count", info=info)
            if step:
                break
            for n, (_, took) in enumerate(CALLS):
                output = f"Wall time: {(took - 10) / 1000:.4f} seconds\nProcess exited with code 0\n{CANARY}"
                row(
                    at + 1000 + took,
                    "response_item",
                    type="function_call_output",
                    call_id=f"call_{loop}{n}",
                    output=output,
                )
            content = [{"type": "output_text", "text": CANARY}]
            row(at + 3000, "response_item", type="message", role="assistant", content=content)
        row(
            at + 3000,
            "event_msg",
            type="task_complete",
            turn_id=f"turn{loop}",
            last_agent_message=CANARY,
            duration_ms=3000,
        )
    return rows


def _spans(trace: str) -> list[tuple[str, str, str, float, float]]:
    """(id, kind, name, start, end) of one loop, children of the first."""
    calls = [(f"{trace}c{n}", "tool", name, 1010, 1000 + took) for n, (name, took) in enumerate(CALLS)]
    return [
        *calls,
        (f"{trace}a0", "model", "chat gpt-4.1", 0, 1000),
        (f"{trace}a1", "model", "chat gpt-4.1", 2000, 3000),
        (f"{trace}00", "agent", "planner", 0, 3000),
    ]


_TRACES = (("d1", 0), ("d2", 600_000))


def _attributes(kind: str, name: str, id: str) -> dict[str, object]:
    if kind == "model":
        return {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-4.1",
            "gen_ai.usage.input_tokens": 100,
            "gen_ai.usage.cache_read.input_tokens": 80,
            "gen_ai.usage.output_tokens": 7,
            "gen_ai.input.messages": CANARY,
            "gen_ai.output.messages": CANARY,
            "user.id": CANARY,
        }
    if kind == "tool":
        return {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.call.id": f"call_{id}",
            "gen_ai.tool.call.arguments": CANARY,
            "gen_ai.tool.call.result": CANARY,
        }
    return {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": name, "enduser.id": CANARY}


def otlp() -> list[dict]:
    requests = []
    for trace, at in _TRACES:
        spans = []
        for id, kind, name, start, end in _spans(trace):
            attributes = [
                {
                    "key": key,
                    "value": {"intValue": str(value)} if type(value) is int else {"stringValue": value},
                }
                for key, value in _attributes(kind, name, id).items()
            ]
            spans.append(
                {
                    "traceId": trace.rjust(32, "0"),
                    "spanId": id.rjust(16, "0"),
                    "parentSpanId": "" if kind == "agent" else f"{trace}00".rjust(16, "0"),
                    "name": name,
                    "kind": 1,
                    "startTimeUnixNano": str(int(_START + at + start) * 1_000_000),
                    "endTimeUnixNano": str(int(_START + at + end) * 1_000_000),
                    "attributes": attributes,
                    "status": {},
                }
            )
        resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "agents"}}]}
        scopes = [{"scope": {"name": "pydantic-ai"}, "spans": spans}]
        requests.append({"resourceSpans": [{"resource": resource, "scopeSpans": scopes}]})
    return requests


def sdk_dump() -> bytes:
    """Pretty objects one after another, as a console exporter prints them."""
    printed = []
    for trace, at in _TRACES:
        for id, kind, name, start, end in _spans(trace):
            span = {
                "name": name,
                "context": {"trace_id": f"0x{trace:0>32}", "span_id": f"0x{id:0>16}", "trace_state": "[]"},
                "kind": "SpanKind.INTERNAL",
                "parent_id": None if kind == "agent" else f"0x{trace + '00':0>16}",
                "start_time": iso(at + start)[:-1] + "000Z",
                "end_time": iso(at + end)[:-1] + "000Z",
                "status": {"status_code": "UNSET"},
                "attributes": _attributes(kind, name, id),
                "events": [],
                "links": [],
                "resource": {"attributes": {"service.name": "agents"}, "schema_url": ""},
            }
            printed.append(json.dumps(span, indent=4))
    return "\n".join(printed).encode() + b"\n"


def langfuse() -> list[dict]:
    rows = []
    for trace, at in _TRACES:
        for id, kind, name, start, end in _spans(trace):
            model = kind == "model"
            usage = {"input": 20, "input_cached_tokens": 80, "output": 7, "total": 107} if model else {}
            rows.append(
                {
                    "id": id,
                    "trace_id": trace,
                    "project_id": "p1",
                    "type": {"model": "GENERATION", "tool": "TOOL", "agent": "AGENT"}[kind],
                    "parent_observation_id": "" if kind == "agent" else f"{trace}00",
                    "start_time": iso(at + start)[:-1].replace("T", " ") + "000",
                    "end_time": iso(at + end)[:-1].replace("T", " ") + "000",
                    "name": name,
                    "level": "DEFAULT",
                    "status_message": "",
                    "provided_model_name": "gpt-4.1" if model else "",
                    "usage_details": usage,
                    "completion_start_time": None,
                    "input": CANARY,
                    "output": CANARY,
                    "metadata": {"path": CANARY},
                    "user_id": CANARY,
                }
            )
    return rows


def langfuse_csv() -> bytes:
    text = io.StringIO()
    rows = langfuse()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if isinstance(v, dict) else v for k, v in row.items()})
    return text.getvalue().encode()


def openai_agents() -> list[dict]:
    rows: list[dict] = []
    for trace, at in _TRACES:
        rows.append({"object": "trace", "id": f"trace_{trace}", "workflow_name": "planner", "group_id": None})
        for id, kind, name, start, end in _spans(trace):
            usage = {"input_tokens": 100, "output_tokens": 7, "input_tokens_details": {"cached_tokens": 80}}
            details: dict[str, object] = {
                "model": {"type": "generation", "model": "gpt-4.1", "usage": usage},
                "tool": {"type": "function", "name": name},
                "agent": {"type": "agent", "name": name, "tools": [], "handoffs": []},
            }[kind]
            if kind != "agent":
                details |= {"input": CANARY, "output": CANARY}
            rows.append(
                {
                    "object": "trace.span",
                    "id": f"span_{id}",
                    "trace_id": f"trace_{trace}",
                    "parent_id": None if kind == "agent" else f"span_{trace}00",
                    "started_at": iso(at + start)[:-1] + "000+00:00",
                    "ended_at": iso(at + end)[:-1] + "000+00:00",
                    "span_data": details,
                    "error": None,
                }
            )
    return rows


ROWS = {
    "tracelab": tracelab,
    "claude-code": claude_code,
    "codex": codex,
    "otel": otlp,
    "langfuse": langfuse,
    "openai-agents": openai_agents,
}
"""The formats whose recordings are lines, and their rows."""

SAMPLES: dict[str, tuple[str, bytes]] = {
    **{name: (name, lines(rows())) for name, rows in ROWS.items()},
    "otel, printed": ("otel", sdk_dump()),
    "langfuse, csv": ("langfuse", langfuse_csv()),
    "langfuse, array": ("langfuse", json.dumps(langfuse(), indent=1).encode()),
}
"""What each recording holds, and the name of its format."""
