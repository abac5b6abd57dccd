"""Loops as rows of bars on one time axis, and the details behind each row. Plain data, texts cleaned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from profiler.anatomy import model_queue_ns, remote_parts, server_tool_runs
from profiler.records import Attempt, LoopRecord, ModelCall, RoundRecord, ServerToolCall, ToolCall
from profiler.report.html.data import Case, Material
from profiler.report.html.markup import embedded
from profiler.report.servers import PART_NAMES
from profiler.report.text import clean, counted, duration, percent
from profiler.report.timeline import causes
from profiler.shortfalls import EXPLAINED

MOST_BYTES = 600_000
"""The most bytes of all loops in the page together. The first case of each strategy comes first, then the
second, and so on; a case that does not fit goes in without its recorded content, or is left out."""

MOST_CASES = 24
MOST_SIDE_BY_SIDE = 6
"""Loops that are drawn of a case."""
MOST_ROWS = 60
"""Rows that are drawn of a loop: the first ones. The page says how many more there were."""

LONGEST_TEXT = 300
"""Characters of each prompt, answer, argument or result that the page holds."""

UNTIMED = {"upper_bound": "at most so long", "never_ended": "no end seen", "wait": "waited for another call"}
"""Kinds of spans of a recording's calls, in the words of a legend. They are grey: not all is explained."""

NOT_RECORDED = "not recorded"

Detail = list[tuple[str, str]]


def waterfalls(material: Material) -> dict[str, Any]:
    """Cases and, once each, the loops that they show."""
    shown: dict[int, dict[str, Any]] = {}
    kept: list[Case] = []
    spent = 0
    for case in _spread(material.cases):
        rows = [row for row in _beside(case).values() if row not in shown]
        for content in (True, False):
            more = {row: loop(material.loops[row], content) for row in rows}
            size = sum(len(embedded(one)) for one in more.values())
            if spent + size <= MOST_BYTES:
                spent += size
                shown |= more
                kept.append(case)
                break
    compared = [strategy.strategy for strategy in material.summary.strategies][:MOST_SIDE_BY_SIDE]
    drawn = []
    for case in sorted(kept, key=material.cases.index):
        rows_of = _beside(case)
        drawn.append(
            {
                "kind": case.kind,
                "strategy": case.strategy,
                "number": case.number,
                "loops": list(rows_of.values()),
                "missing": [name for name in compared if name not in rows_of],
            }
        )
    return {
        "cases": drawn,
        "left": len(material.cases) - len(drawn),
        "loops": {str(row): data for row, data in shown.items()},
    }


def _spread(cases: tuple[Case, ...]) -> list[Case]:
    """The first of each strategy, then the second, and so on, until there are enough."""
    seen: Counter[str] = Counter()
    ranked = []
    for index, case in enumerate(cases):
        ranked.append((seen[case.strategy], index))
        seen[case.strategy] += 1
    return [cases[index] for _, index in sorted(ranked)[:MOST_CASES]]


def _beside(case: Case) -> dict[str, int]:
    """The rows shown of a case: that of its own strategy, and as many others as there is room for."""
    others = [strategy for strategy in case.rows if strategy != case.strategy][: MOST_SIDE_BY_SIDE - 1]
    return {name: row for name, row in case.rows.items() if name == case.strategy or name in others}


def loop(record: LoopRecord, content: bool = True) -> dict[str, Any]:
    """One loop, in seconds from its start, with a row per model request and tool call.

    `content`: with what was recorded of prompt, answer, arguments and results.
    """
    wall = record.wall_ns
    rows: list[dict[str, Any]] = []
    for round_ in record.rounds:
        if round_.model.asked:
            rows.append(_model_row(round_, record.started_ns))
        rows += [_call_row(call, round_, record.started_ns, content) for call in round_.tool_calls]
    requests = [row for row in rows if row["kind"] == "model"]
    if content and requests and record.prompt is not None:
        requests[0]["detail"].append(("prompt", clean(record.prompt, LONGEST_TEXT)))
    if content and requests and record.text is not None:
        requests[-1]["detail"].append(("answer", clean(record.text, LONGEST_TEXT)))
    why = [
        f"{duration(cause.ns / 1e9)} ({percent(cause.ns / wall)}) {cause.words}"
        for cause in causes(record)[:3]
        if wall and cause.ns / wall >= 0.01
    ]
    return {
        "strategy": record.strategy,
        "status": record.status,
        "error": clean(record.error_type) if record.error_type else None,
        "number": record.number,
        "wall": wall / 1e9,
        "why": why,
        "rows": rows[:MOST_ROWS],
        "more": max(0, len(rows) - MOST_ROWS),
    }


def _model_row(round_: RoundRecord, origin: int) -> dict[str, Any]:
    model = round_.model
    asked_ns = model.started_ns + model_queue_ns(model)
    spans = [("queue", model.started_ns, asked_ns)]
    if model.attempts:
        # What lies around the attempts is the SDK's own work, which counts as the model's.
        spans.append(("model", asked_ns, model.attempts[0].started_ns))
        for attempt in model.attempts:
            failed = attempt.error_type is not None or (attempt.status or 200) >= 400
            spans.append(("failed" if failed else "model", attempt.started_ns, attempt.ended_ns))
        for before, after in pairwise(model.attempts):
            spans.append(("backoff", before.ended_ns, after.started_ns))
        spans.append(("model", model.attempts[-1].ended_ns, model.ended_ns))
    else:
        spans.append(("model" if model.status == "ok" else "failed", asked_ns, model.ended_ns))
    spans += [("server_tools", max(start, asked_ns), end) for start, end in server_tool_runs(model)]
    return {
        "label": f"model {round_.index + 1}",
        "kind": "model",
        "status": model.status,
        "spans": _spans(spans, origin),
        "took": None if model.latency_ns is None else model.latency_ns / 1e9,
        "detail": _model_detail(model, origin),
    }


def _call_row(call: ToolCall, round_: RoundRecord, origin: int, content: bool) -> dict[str, Any]:
    untimed, label = call.untimed, clean(call.name)
    spans = [] if call.waited_ns is None else [("queue", call.queued_ns, call.waited_until_ns)]
    if call.started_ns is not None:
        kind = "tools" if call.status == "ok" else "failed"
        if untimed is not None and (untimed == "never_ended" or kind == "tools"):
            kind = untimed
        spans += [(kind, call.started_ns, call.ended_ns), *_around(call, call.started_ns)]
    if untimed == "upper_bound":
        label = f"≤ {label}"
    elif untimed == "never_ended":
        label += f" ({UNTIMED[untimed]})"
    return {
        "label": label,
        "kind": "call",
        **({"bound": "≤ "} if untimed == "upper_bound" else {}),
        "status": call.status,
        "spans": _spans(spans, origin),
        "took": _took(call),
        "detail": _call_detail(call, round_, origin, content),
    }


def _around(call: ToolCall, started_ns: int) -> list[tuple[str, int, int]]:
    """What the client of an MCP server did around the request of a call: drawn over the whole of it."""
    parts = remote_parts(call)
    waited_ns = started_ns + parts.get("session_wait", 0)
    sent_ns = waited_ns + parts.get("client_wait", 0)
    parsed_ns = call.ended_ns - parts.get("parsing", 0)
    return [
        ("session_wait", started_ns, waited_ns),
        ("client_wait", waited_ns, sent_ns),
        ("parsing", parsed_ns, call.ended_ns),
    ]


def _spans(spans: list[tuple[str, int, int]], origin: int) -> list[dict[str, Any]]:
    """(kind, start, end) in seconds from the origin; those shorter than a microsecond are left out."""
    rounded = [(kind, round((a - origin) / 1e9, 6), round((b - origin) / 1e9, 6)) for kind, a, b in spans]
    return [{"kind": kind, "from": start, "to": end} for kind, start, end in rounded if end > start]


def _model_detail(model: ModelCall, origin: int) -> Detail:
    detail: Detail = [
        ("what", "model request"),
        ("model", clean(model.model)),
        ("status", _status(model.status, model.error_type)),
        ("began", _at(model.started_ns, origin)),
        ("took", NOT_RECORDED if model.latency_ns is None else duration(model.latency_ns / 1e9)),
        *_doubts(model.derived, model.unknown),
    ]
    if model.first_token_after_ns is not None:
        detail.append(("first token after", duration(model.first_token_after_ns / 1e9)))
    if model.first_output_after_ns is not None:
        detail.append(("first output after", duration(model.first_output_after_ns / 1e9)))
    detail.append(("tokens", _tokens(model)))
    for one in model.server_tools[:8]:
        detail.append(("tool of the server", _server_tool(one, origin)))
    if model.unreadable:
        detail.append(("not understood", f"{counted(model.unreadable, 'part')} of the reply"))
    if model.finish_reason:
        detail.append(("finished with", clean(model.finish_reason)))
    for number, attempt in enumerate(model.attempts[:8], start=1):
        detail.append((f"attempt {number}", _attempt(attempt, origin)))
    if model.resends:
        detail.append(("sent again", f"{counted(model.resends, 'time')}, when is {NOT_RECORDED}"))
    return detail


def _doubts(derived: Sequence[str], unknown: Sequence[str]) -> Detail:
    """Which times of a recording were not seen."""
    said = {"worked out from other times": derived, NOT_RECORDED: unknown}
    return [
        (words, ", ".join(name.removesuffix("_ns").replace("_", " ") for name in names))
        for words, names in said.items()
        if names
    ]


def _tokens(model: ModelCall) -> str:
    """`512 in (400 from the cache, 12 written to it), 40 out (30 of reasoning)`, as far as is known."""

    def said(count: int | None, way: str, **parts: int | None) -> str:
        known = ", ".join(f"{part} {words.replace('_', ' ')}" for words, part in parts.items() if part)
        return f"{'?' if count is None else count} {way}" + (f" ({known})" if known else "")

    if model.total_tokens is None:
        return "not known: the server did not say"
    given = said(
        model.input_tokens, "in", from_the_cache=model.cached_tokens, written_to_it=model.cache_written_tokens
    )
    return f"{given}, {said(model.output_tokens, 'out', of_reasoning=model.reasoning_tokens)}"


def _server_tool(one: ServerToolCall, origin: int) -> str:
    if one.started_ns is None or one.ended_ns is None:
        return f"{clean(one.name)}, when is not known"
    return (
        f"{clean(one.name)}, {_at(one.started_ns, origin)}, {duration((one.ended_ns - one.started_ns) / 1e9)}"
    )


def _attempt(attempt: Attempt, origin: int) -> str:
    # A try without either is one of a recording that tells of tries, and not of their statuses.
    outcome = str(attempt.status) if attempt.status is not None else clean(attempt.error_type or "tried")
    took = duration((attempt.ended_ns - attempt.started_ns) / 1e9)
    text = f"{outcome}, from {_at(attempt.started_ns, origin)}, {took}"
    if attempt.retry_after_ns is not None:
        text += f", asked to wait {duration(attempt.retry_after_ns / 1e9)}"
    return text


def _call_detail(call: ToolCall, round_: RoundRecord, origin: int, content: bool) -> Detail:
    detail: Detail = [
        ("what", f"tool call in round {round_.index + 1}"),
        ("tool", clean(call.name)),
        ("id", clean(call.id)),
        ("status", _status(call.status, call.error_type)),
        ("arguments complete", _at(call.ready_ns, origin)),
        ("queued", NOT_RECORDED if call.waited_ns is None else _at(call.queued_ns, origin)),
        ("waited", NOT_RECORDED if call.waited_ns is None else duration(call.waited_ns / 1e9)),
        ("started", "never" if call.started_ns is None else _at(call.started_ns, origin)),
        ("ran", _ran(call)),
        *_doubts(call.derived, [name for name in call.unknown if name != "queued_ns"]),
    ]
    if call.thread_wait_ns:
        detail.append(("of it waiting for a thread", duration(call.thread_wait_ns / 1e9)))
    if call.blocking_ns:
        detail.append(("held the event loop", duration(call.blocking_ns / 1e9)))
    detail += _remote_detail(call)
    if round_.shortfall is not None:
        detail.append(("why its round took longer", "; ".join(EXPLAINED[round_.shortfall])))
    if content and call.arguments is not None:
        detail.append(("arguments", clean(call.arguments, LONGEST_TEXT)))
    if content and call.result is not None:
        detail.append(("result", clean(call.result, LONGEST_TEXT)))
    return detail


def _took(call: ToolCall) -> float | None:
    """Seconds with the wait before it; None where a recording does not tell."""
    if call.duration_ns is None and call.waited_ns is None:
        return None
    return (call.ended_ns - call.queued_ns) / 1e9


def _ran(call: ToolCall) -> str:
    if call.untimed == "never_ended":
        return UNTIMED["never_ended"]
    took = duration(None if call.duration_ns is None else call.duration_ns / 1e9)
    if call.untimed == "wait":
        return f"{took}, {UNTIMED['wait']}"
    return f"at most {took}, with any wait before it" if call.upper_bound else took


def _remote_detail(call: ToolCall) -> Detail:
    """Which MCP server it was, and the parts of its time."""
    remote = call.remote
    if remote is None:
        return []
    how = ", ".join(filter(None, (remote.transport, remote.protocol, remote.reply)))
    detail: Detail = [("MCP server", f"{clean(remote.server)} ({clean(how)})")]
    parts = remote_parts(call)
    detail += [(f"of it {PART_NAMES[part]}", duration(ns / 1e9)) for part, ns in parts.items() if ns]
    if remote.new_connection is not None:
        detail.append(("connection", "opened for this call" if remote.new_connection else "kept alive"))
    if remote.http_status is not None:
        detail.append(("HTTP status", str(remote.http_status)))
    if remote.sends != 1:
        detail.append(("requests sent", str(remote.sends)))
    if remote.progress:
        detail.append(("progress", counted(remote.progress, "notification")))
    return detail


def _status(status: str, error_type: str | None) -> str:
    return status if error_type is None else f"{status}: {clean(error_type)}"


def _at(instant: int, origin: int) -> str:
    return f"at {duration((instant - origin) / 1e9, 's')}"
