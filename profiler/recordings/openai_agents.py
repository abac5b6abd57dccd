"""What a tracing processor of the OpenAI Agents SDK exports: format `openai-agents`.

    {"object": "trace", "id", "workflow_name", "group_id", …}
    {"object": "trace.span", "id", "trace_id", "parent_id", "started_at", "ended_at", "span_data", "error"}

`generation` and `response` spans are model requests (a response names no model, and no reply), `function`
spans are calls (without ids); `task` and `agent` hold a loop, `turn` a round. Only the requests' usage
counts: turns and tasks repeat it. Before there were tasks a handoff ended one agent's span and began
another's beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from profiler.errors import RecordError
from profiler.recordings.drafts import LoopDraft
from profiler.recordings.formats import Item, Skipped, Source
from profiler.recordings.genai_replies import calls_of, counted, provider_of, text_of, unix_ns
from profiler.recordings.otlp import BEGINS, item_of
from profiler.recordings.reading import values
from profiler.recordings.span import Kind, Span, unpacked
from profiler.recordings.spans import loops_of

_HANDOFF = "handoff"
_KINDS: dict[str, Kind] = {
    "generation": "model",
    "response": "model",
    "function": "tool",
    "agent": "agent",
    "task": "agent",
    "guardrail": "apart",
}
_RECOGNISED = re.compile(rb'"object"\s*:\s*"trace(?:\.span)?"')
_TICK_NS = 1000


class OpenAIAgents:
    """Traces of the OpenAI Agents SDK, one object a line or in arrays, also as the batches that it sends."""

    name = "openai-agents"
    resolution_ns = _TICK_NS

    def recognises(self, beginning: bytes, path: Path) -> bool:
        del path
        return bool(BEGINS.search(beginning) and _RECOGNISED.search(beginning))

    def read(self, source: Source, content: bool) -> Iterator[Item | Skipped]:
        """The spans of a file. Raises `RecordError` where there is none in it."""
        read = 0
        for one in values(source):
            if isinstance(one, Skipped):
                yield one
                continue
            where = f"{source.name}:{one.line}"
            for row in _rows(one.data):
                kind = row.get("object") if isinstance(row, dict) else None
                if kind == "trace":
                    read += 1
                elif isinstance(row, dict) and kind == "trace.span":
                    read += 1
                    span = span_of(row, content)
                    yield (
                        item_of(span)
                        if span is not None
                        else Skipped("a span without ids or times", 1, where)
                    )
                else:
                    yield Skipped("neither a trace nor a span of one", 1, where)
        if not read:
            raise RecordError(f"{source.name}: no traces in it, as the OpenAI Agents SDK exports them")

    def loops(self, items: Sequence[Item], content: bool) -> Iterator[LoopDraft | Skipped]:
        spans = [unpacked(item.data) for item in items]  # type: ignore[arg-type]
        yield from loops_of(_handed_over(spans), self.name, content)


def _rows(value: object) -> list[object]:
    """The traces and spans in a value: itself, the batch that is sent, or a trace with its spans in it."""
    if not isinstance(value, dict):
        return [value]
    batch, spans = value.get("data"), value.get("spans")
    if "object" not in value and isinstance(batch, list):
        return batch
    if value.get("object") != "trace.span" and isinstance(spans, list):
        inner = value.get("trace", value)
        return [inner, *spans] if isinstance(inner, dict) and inner.get("object") == "trace" else spans
    return [value]


def span_of(row: Mapping[str, Any], content: bool = False) -> Span | None:
    """The span of a row; None where it cannot be one."""
    data = row.get("span_data")
    trace, id_, parent = row.get("trace_id"), row.get("id"), row.get("parent_id")
    started_ns = unix_ns(row.get("started_at"))
    if not (isinstance(data, dict) and isinstance(trace, str) and isinstance(id_, str)) or started_ns is None:
        return None
    details = data.get("data")
    details = details if isinstance(details, dict) else {}
    type_ = (
        details.get("sdk_span_type", data.get("type")) if data.get("type") == "custom" else data.get("type")
    )
    kind = _KINDS.get(type_, "other") if isinstance(type_, str) else "other"
    name = _text(data.get("name")) or _text(details.get("name")) or _text(type_)
    agent = name if type_ == "agent" else _text(details.get("agent_name"))
    if type_ == _HANDOFF:
        name, agent = _HANDOFF, _text(data.get("to_agent"))
    if kind == "agent" and type_ == "task":
        name = _text(details.get("name")) or name
    common: dict[str, Any] = {
        "trace": trace,
        "id": id_,
        "parent": parent if isinstance(parent, str) else "",
        "kind": kind,
        "name": name,
        "agent": agent,
        "started_ns": started_ns,
        "ended_ns": unix_ns(row.get("ended_at")),
        "status": "error" if row.get("error") else "ok",
        "resolution_ns": _TICK_NS,
    }
    if kind == "tool" and content:
        common |= {"arguments": text_of(data, ("input",)), "result": text_of(data, ("output",))}
    if kind != "model":
        return Span(**common)
    model = _text(data.get("model"))
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    read = _details(usage, "input_tokens_details", "prompt_tokens_details")
    written = _details(usage, "output_tokens_details", "completion_tokens_details")
    if content:
        common |= {"prompt": text_of(data, ("input",)), "text": text_of(data, ("output",))}
    return Span(
        **common,
        provider=provider_of(model) or "openai",
        model=model,
        request_id=_text(data.get("response_id")) or None,
        input_tokens=_count(usage, "input_tokens", "prompt_tokens"),
        output_tokens=_count(usage, "output_tokens", "completion_tokens"),
        cached_tokens=counted(read.get("cached_tokens")),
        cache_written_tokens=counted(read.get("cache_write_tokens")),
        reasoning_tokens=counted(written.get("reasoning_tokens")),
        calls=calls_of({"gen_ai.output.messages": data.get("output")}),
    )


def _handed_over(spans: list[Span]) -> list[Span]:
    """The spans, with an agent that was handed a conversation over below the one that did it."""
    by_id = {span.id: span for span in spans}
    handoffs = sorted(
        (one.started_ns, one.id) for one in spans if one.kind == "other" and one.name == _HANDOFF
    )
    result = {span.id: span for span in spans}
    for started_ns, id_ in handoffs:
        handoff = by_id[id_]
        taken = min(
            (
                one
                for one in result.values()
                if one.kind == "agent"
                and not one.parent
                and one.agent == handoff.agent
                and one.started_ns >= started_ns
            ),
            key=lambda one: (one.started_ns, one.id),
            default=None,
        )
        giver = by_id.get(handoff.parent)
        while giver is not None and giver.kind != "agent":
            giver = by_id.get(giver.parent)
        if taken is not None and giver is not None and giver.id != taken.id:
            result[taken.id] = replace(taken, parent=giver.id)
            _outlast(result, taken)
    return list(result.values())


def _outlast(spans: dict[str, Span], inner: Span) -> None:
    """The agents above one that was handed over to go on until that one ends: together they are a loop."""
    seen = {inner.id}
    above = spans.get(spans[inner.id].parent)
    while above is not None and above.id not in seen:
        seen.add(above.id)
        if above.kind == "agent" and above.ended_ns is not None:
            ended_ns = None if inner.ended_ns is None else max(above.ended_ns, inner.ended_ns)
            spans[above.id] = replace(above, ended_ns=ended_ns)
        above = spans.get(above.parent)


def _details(usage: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    return next((usage[key] for key in keys if isinstance(usage.get(key), dict)), {})


def _count(usage: Mapping[str, Any], *keys: str) -> int | None:
    return next((count for key in keys if (count := counted(usage.get(key))) is not None), None)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
