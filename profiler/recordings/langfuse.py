"""Observations as Langfuse exports them: blob files (JSON lines, arrays, CSV), its page and its API.

    snake_case, `2026-09-14 09:00:00.123456` in UTC without saying so   blob exports, CSV
    camelCase, ISO 8601                                                  the API: `{"data": […], "meta": …}`,
                                                                         a trace with its `observations`

An observation is a span; `profiler.recordings.spans` makes the loops. What only Langfuse knows is here:
what is skipped, and which spans that do not say so are calls of tools.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from profiler.recordings.drafts import LoopDraft
from profiler.recordings.fields import as_text, count, duration_ns, mapping, objects, text, time_ns
from profiler.recordings.formats import Item, Skipped, Source
from profiler.recordings.genai_replies import calls_of, langfuse_tokens, parsed, provider_of
from profiler.recordings.lines import again, rows
from profiler.recordings.reading import NOT_JSON
from profiler.recordings.span import Kind, Span, below, packed, unpacked
from profiler.recordings.spans import loops_of
from profiler.records import ToolStatus

_S = 1_000_000_000
_MS_NS, _US_NS = 1_000_000, 1_000

NO_OBSERVATION = "rows that are no observations (traces, scores, sessions)"
NO_ID = "observations without an id or a trace"
NO_TIME = "observations without a start"
APART = "observations of a kind that is no part of a loop (events, guardrails, evaluators, embeddings)"

_KINDS: dict[str, Kind] = {"GENERATION": "model", "TOOL": "tool", "AGENT": "agent"}
_MAYBE_TOOLS = frozenset(("SPAN", "CHAIN", "RETRIEVER"))
_APART = frozenset(("EVENT", "SCORE", "GUARDRAIL", "EVALUATOR", "EMBEDDING"))
_TYPES = "|".join((*_KINDS, *_MAYBE_TOOLS, *_APART))
_TYPED = re.compile(rb'"type"\s*:\s*"(?:' + _TYPES.encode() + rb')"')
_ERROR = re.compile(r"(?:[A-Za-z_]\w*\.)*([A-Za-z_]\w{0,60}(?:Error|Exception|Timeout|Exceeded|Cancelled))\b")
_SPAN_NAME = re.compile(r"^(?:execute_tool |running tool:? )")
_LARGEST_FIELD = 64 * 2**20


class Langfuse:
    """The format (`profiler.recordings.formats.Format`)."""

    name = "langfuse"
    resolution_ns = _US_NS

    def recognises(self, beginning: bytes, path: Path) -> bool:
        if not _is_json(beginning):
            columns = {
                one.strip().strip(b'"')
                for one in beginning.lstrip(b"\xef\xbb\xbf").partition(b"\n")[0].split(b",")
            }
            return bool(
                columns & {b"trace_id", b"traceId"}
                and columns & {b"start_time", b"startTime"}
                and b"type" in columns
            )
        if b'"observations"' in beginning and b'"latency"' in beginning and b'"projectId"' in beginning:
            return True
        return bool(
            _TYPED.search(beginning)
            and (b'"trace_id"' in beginning or b'"traceId"' in beginning)
            and (b'"start_time"' in beginning or b'"startTime"' in beginning)
        )

    def read(self, source: Source, content: bool) -> Iterator[Item | Skipped]:
        for row, where in _rows(source):
            if isinstance(row, Skipped):
                yield row
                continue
            item = _item(row, content)
            yield item if isinstance(item, Item) else Skipped(item, where=where)

    def loops(self, items: Sequence[Item], content: bool) -> Iterator[LoopDraft | Skipped]:
        kept = [item.data for item in items if isinstance(item.data, list)]
        asked = {name for _, names, offered, _ in kept for name in (*names, *offered)}
        spans = [unpacked(span) for _, _, _, span in kept]
        kinds = {span.id: kind for span, (kind, *_) in zip(spans, kept, strict=True)}
        asked |= {span.name for span in spans if span.kind == "tool"}
        apart = below({(span.trace, span.id) for span in spans if kinds[span.id] in _APART}, spans)
        named = {span.id: names for span, (_, names, *_) in zip(spans, kept, strict=True)}
        if apart:
            yield Skipped(APART, len(apart))
        spans = _with_roots([span for span in spans if (span.trace, span.id) not in apart])
        models = [(span, named[span.id]) for span in spans if span.kind == "model"]
        yield from loops_of(
            [
                replace(span, kind="tool")
                if kinds[span.id] in _MAYBE_TOOLS and _is_call(span, asked, models)
                else span
                for span in spans
            ],
            self.name,
            content,
        )


def _with_roots(spans: list[Span]) -> list[Span]:
    """The spans; one that all of its trace lie in is their root, though it names a parent that is not here:
    a program's that called the agent, and that does not send its spans to Langfuse."""
    by_trace: dict[str, list[Span]] = {}
    for span in spans:
        by_trace.setdefault(span.trace, []).append(span)
    roots: set[tuple[str, str]] = set()
    for trace, found in by_trace.items():
        ids = {one.id for one in found}
        tops = [one for one in found if one.parent not in ids]
        if len(tops) == 1 and tops[0].kind in ("agent", "other"):
            roots.add((trace, tops[0].id))
    return [replace(one, parent="") if (one.trace, one.id) in roots else one for one in spans]


def _is_json(beginning: bytes) -> bool:
    return beginning.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")


def _is_call(span: Span, asked: set[str], models: Sequence[tuple[Span, list[str]]]) -> bool:
    """A span that has a tool's name, between two requests; or after the last one, which asked for it."""
    if span.name not in asked:
        return False
    before = [one for one in models if one[0].ended_ns is not None and one[0].ended_ns <= span.started_ns]
    if not before:
        return False
    return (
        any(one.started_ns > span.started_ns for one, _ in models)
        or span.name in max(before, key=lambda one: one[0].started_ns)[1]
    )


def _rows(source: Source) -> Iterator[tuple[dict[str, Any] | Skipped, str]]:
    """Every row that may be an observation, and where it is."""
    beginning = source.stream.read(4096)
    stream = again(beginning, source.stream)
    if beginning.strip() and not _is_json(beginning):
        yield from _csv(stream, source.name)
        return
    for value in rows(source._replace(stream=stream)):
        if isinstance(value, Skipped):
            yield value, ""
            continue
        where = f"{source.name}:{value.line}"
        row = value.data
        if not isinstance(row, dict):
            yield Skipped(NO_OBSERVATION, where=where), where
            continue
        found = _inside(row)
        if found is None:
            yield row, where
            continue
        for one in found:
            yield one, where


def _inside(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The observations of an API's page, or of a trace; None: it is a row itself."""
    if type(row.get("observations")) is list:
        told = {"traceName": row.get("name"), "sessionId": row.get("sessionId"), "traceId": row.get("id")}
        return [{**told, **one} for one in objects(row["observations"])]
    if type(row.get("data")) is list and "type" not in row:
        result: list[dict[str, Any]] = []
        for one in objects(row["data"]):
            result += _inside(one) or [one]
        return result
    return None


def _csv(stream: BinaryIO, name: str) -> Iterator[tuple[dict[str, Any] | Skipped, str]]:
    lines = io.TextIOWrapper(stream, "utf-8-sig", "replace", newline="")
    csv.field_size_limit(_LARGEST_FIELD)
    table = csv.DictReader((line.replace("\0", "") for line in lines), strict=True)
    while True:
        where = f"{name}:{table.line_num + 1}"
        try:
            row = next(table, None)
        except csv.Error:
            yield Skipped(NOT_JSON, where=where), where
            continue
        if row is None:
            return
        yield {key: _cell(value) for key, value in row.items() if isinstance(key, str) and value}, where


def _cell(value: object) -> object:
    """A cell. Times may be JSON there: text within quotation marks of its own."""
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"':
        inner = parsed(value)
        return inner if isinstance(inner, str) else value
    return value


def _item(row: Mapping[str, Any], content: bool) -> Item | str:
    """An observation as [its type, names of tools that its reply asked for, of those that were offered, its
    span]; or why it is none."""
    kind = text(row.get("type")).upper()
    if kind not in _KINDS and kind not in _MAYBE_TOOLS and kind not in _APART:
        return NO_OBSERVATION
    id_ = text(_of(row, "id", "span_id", "spanId"))
    trace = text(_of(row, "trace_id", "traceId"))
    if not id_ or not trace:
        return NO_ID
    began = _of(row, "start_time", "startTime")
    started_ns = time_ns(began)
    if started_ns is None:
        return NO_TIME
    ended_ns = time_ns(_of(row, "end_time", "endTime"))
    if ended_ns is None and "end_time" not in row and "endTime" not in row:
        took_ns = duration_ns(_number(row.get("latency")), _S)  # a column that was left out
        ended_ns = None if took_ns is None else started_ns + took_ns
    parent = text(_of(row, "parent_observation_id", "parentObservationId", "parent_span_id", "parentSpanId"))
    status, error = _status(row)
    agent = text(row.get("agent_name"))
    name = text(row.get("name"))
    tool, call = _tool(row)
    if tool and call and kind in _MAYBE_TOOLS:
        kind = "TOOL"
    if kind == "TOOL":
        name = tool or _SPAN_NAME.sub("", name) or "tool"
    span_kind = _KINDS.get(kind, "other")
    if span_kind == "agent":
        agent = name
    elif not agent:
        agent = text(_of(row, "trace_name", "traceName"))
    common: dict[str, Any] = {
        "trace": trace,
        "id": id_,
        "parent": "" if parent in (trace, f"t-{trace}") else parent,
        "kind": span_kind,
        "name": name,
        "started_ns": started_ns,
        "ended_ns": ended_ns,
        "status": status,
        "error_type": error,
        "agent": agent,
        "call_id": call if kind == "TOOL" else "",
        "conversation": text(_of(row, "session_id", "sessionId")),
        "resolution_ns": _US_NS if _digits(began) > 3 else _MS_NS,
    }
    names: list[str] = []
    offered: list[str] = []
    if span_kind == "model":
        common |= _request(row, started_ns, ended_ns)
        names = _names(row) + [name for _, name in common["calls"]]
        offered = _offered(row)
    if content:
        told, said = as_text(_of(row, "input")), as_text(_of(row, "output"))
        common |= {"arguments": told, "result": said, "prompt": told, "text": said}
    version = time_ns(_of(row, "updated_at", "updatedAt")) or 0
    return Item(trace, started_ns, [kind, names, offered, packed(Span(**common))], id_, version)


def _tool(row: Mapping[str, Any]) -> tuple[str, str]:
    """The name of the tool and the id of the call, where the span that was sent said so."""
    metadata = row.get("metadata")
    if isinstance(metadata, str):
        metadata = parsed(metadata) if "gen_ai.tool.name" in metadata else None
    attributes = mapping(metadata).get("attributes")
    if isinstance(attributes, str):
        attributes = parsed(attributes) if "gen_ai.tool.name" in attributes else None
    told = mapping(attributes)
    return text(told.get("gen_ai.tool.name")), text(told.get("gen_ai.tool.call.id"))


def _request(row: Mapping[str, Any], started_ns: int, ended_ns: int | None) -> dict[str, Any]:
    model = text(
        _of(row, "provided_model_name", "providedModelName", "model", "internal_model", "internalModel")
    )
    first_ns = time_ns(_of(row, "completion_start_time", "completionStartTime"))
    if first_ns is None and "completion_start_time" not in row and "completionStartTime" not in row:
        after_ns = duration_ns(_number(_of(row, "time_to_first_token", "timeToFirstToken")), _S)
        first_ns = None if after_ns is None else started_ns + after_ns
    if first_ns in (started_ns, ended_ns):
        first_ns = None  # not streamed
    details = _of(row, "usage_details", "usageDetails")
    if isinstance(details, str):
        details = parsed(details) or parsed(details.replace("'", '"'))
    tokens = langfuse_tokens(details if isinstance(details, dict) and details else _old_usage(row))
    return {
        "provider": provider_of(model),
        "model": model,
        "streamed": first_ns is not None,
        "first_token_ns": first_ns,
        "input_tokens": tokens.input,
        "output_tokens": tokens.output,
        "cached_tokens": tokens.cached,
        "cache_written_tokens": tokens.written,
        "reasoning_tokens": tokens.reasoning,
        "calls": calls_of({"gen_ai.output.messages": _of(row, "output")}),
    }


def _old_usage(row: Mapping[str, Any]) -> dict[str, Any]:
    """`usage` as it was before there were details; other units (characters, pictures) are no tokens."""
    usage = row.get("usage")
    usage = mapping(parsed(usage) if isinstance(usage, str) else usage)
    if usage.get("unit") not in (None, "", "TOKENS"):
        return {}
    return {
        "input": _of(usage, "input", "promptTokens", "prompt_tokens")
        if usage
        else _of(row, "promptTokens", "prompt_tokens"),
        "output": _of(usage, "output", "completionTokens", "completion_tokens")
        if usage
        else _of(row, "completionTokens", "completion_tokens"),
    }


def _names(row: Mapping[str, Any]) -> list[str]:
    """The tools that a reply asked for, where a column says so."""
    names = _of(row, "tool_call_names", "toolCallNames")
    if isinstance(names, str):
        names = parsed(names) or parsed(names.replace("'", '"'))
    return [text(name) for name in names if text(name)] if isinstance(names, list) else []


def _offered(row: Mapping[str, Any]) -> list[str]:
    """The tools that a request offered, where its input or a column says so."""
    told = _of(row, "tool_definitions", "toolDefinitions")
    told = parsed(told) if isinstance(told, str) else told
    if isinstance(told, dict):
        return [name for name in told if isinstance(name, str)]
    asked = row.get("input")
    asked = mapping(parsed(asked) if isinstance(asked, str) and '"tools"' in asked else asked)
    tools = objects(told if isinstance(told, list) else asked.get("tools"))
    names = [text(one.get("name")) or text(mapping(one.get("function")).get("name")) for one in tools]
    return [name for name in names if name]


def _status(row: Mapping[str, Any]) -> tuple[ToolStatus, str | None]:
    if text(row.get("level")).upper() != "ERROR":
        return "ok", None
    said = _ERROR.match(text(_of(row, "status_message", "statusMessage")))
    error = None if said is None else said[1]
    return "error", error


def _of(row: Mapping[str, Any], *names: str) -> Any:
    """The first of some fields that holds anything."""
    for name in names:
        value = row.get(name)
        if value is not None and value != "":
            return value
    return None


def _number(value: object) -> object:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value if count(value) is not None or isinstance(value, float) else None


def _digits(time: object) -> int:
    """The digits of a time's fraction of a second."""
    found = re.search(r"\.(\d+)", time) if isinstance(time, str) else None
    return 0 if found is None else len(found[1])
