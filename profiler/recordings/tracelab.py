"""TraceLab's `round_trace.jsonl`: one row a round of Claude Code or Codex, its texts taken out.

Neither `round_id` nor `trace_key` nor (session, index) names a row: there are repeats of each that are other
rounds. What names one are its session, the ids of its calls and its times.

Read with its 350,000 rows in mind: a row is kept as one flat list, and nothing is made for an event.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from profiler.recordings.drafts import CallDraft, LoopDraft, ModelDraft, RoundDraft
from profiler.recordings.fields import count, duration_ns, objects, text, time_ns
from profiler.recordings.formats import Item, Skipped, Source
from profiler.recordings.lines import rows
from profiler.recordings.sessions import AGENT_TOOLS, NO_VERDICT, TOGETHER_NS, WAITS, mark_late

_MS = 1_000_000
_INPUTS = frozenset(("user_message", "tool_result"))
_OUTPUTS = frozenset(("reasoning", "text", "tool_call"))
_PROVIDERS = {"claude": "anthropic", "codex": "openai"}

NO_ROW = "lines that are no rows of TraceLab"
NO_SESSION = "rows without a session"
NO_TIME = "rows without a time"
UNLINKED = (
    "calls of sub-agents (Agent, Task): no row says which session is theirs, so that the loops of sub-agents "
    "stand beside those that asked for them"
)


class TraceLab:
    """The format (`profiler.recordings.formats.Format`)."""

    name = "tracelab"
    resolution_ns = _MS

    def recognises(self, beginning: bytes, path: Path) -> bool:
        return b'"timing_events"' in beginning and b'"session_id"' in beginning

    def read(self, source: Source, content: bool) -> Iterator[Item | Skipped]:
        for value in rows(source):
            if isinstance(value, Skipped):
                yield value
                continue
            item = _item(value.data)
            yield item if isinstance(item, Item) else Skipped(item, where=f"{source.name}:{value.line}")

    def loops(self, items: Sequence[Item], content: bool) -> Iterator[LoopDraft | Skipped]:
        ordered: list[Any] = [item.data for item in items]
        ordered.sort(key=lambda row: (row[0], row[1]))
        loop: LoopDraft | None = None
        turn, made, unknown, spawning, ended_ns = "", 0, 0, 0, 0
        for row in ordered:
            began_ns, _, session, _, turn_id, said_ns, *_ = row
            other_turn = bool(turn_id and turn and turn_id != turn)
            turn = turn_id or turn
            if loop is None or said_ns is not None or other_turn:
                if loop is not None:
                    yield _closed(loop)
                started_ns = None if said_ns is None else max(said_ns, min(ended_ns, began_ns))
                loop = LoopDraft(
                    f"{session}/{made}", self.name, started_ns=started_ns, resolution_ns=self.resolution_ns
                )
                made += 1
            round_, without = _round(row)
            ended_ns = max(ended_ns, round_.model.ended_ns or 0)
            unknown += without
            for call in round_.calls:
                spawning += call.name in AGENT_TOOLS
            loop.rounds.append(round_)
        if loop is not None:
            yield _closed(loop)
        if unknown:
            yield Skipped(NO_VERDICT, unknown, kept=True)
        if spawning:
            yield Skipped(UNLINKED, spawning, kept=True)


def _item(row: Any) -> Item | str:
    """A row as [submitted, index, session, provider, turn, user's message, model, model started, model ended,
    input, cached, written to the cache, output, reasoning, calls], all times in ns; or why it is none."""
    if type(row) is not dict or type(row.get("timing_events")) is not list:
        return NO_ROW
    session = text(row.get("session_id"))
    if not session:
        return NO_SESSION
    inputs: list[int] = []
    said: list[int] = []
    first_kind = row.get("first_input_event_type")
    outputs: list[int] = []
    for event in row["timing_events"]:
        if type(event) is not dict:
            continue
        kind = event.get("event_type")
        if type(kind) is not str:
            continue
        if kind in _INPUTS:
            at_ns = time_ns(event.get("timestamp"))
            if at_ns is not None:
                first_kind = first_kind or kind
                inputs.append(at_ns)
                if kind == "user_message":
                    said.append(at_ns)
        elif kind in _OUTPUTS:
            at_ns = time_ns(event.get("timestamp"))
            if at_ns is not None:
                outputs.append(at_ns)
    calls = [_call(tool) for tool in objects(row.get("tools"))]
    asked = [call[2] for call in calls if call[2] is not None]
    first_ns = min(outputs or asked, default=None)
    before = inputs if first_ns is None else [at_ns for at_ns in inputs if at_ns <= first_ns]
    started_ns = max(before, default=None)
    ended_ns = max(outputs or asked, default=None)
    times = [*inputs, *outputs, *asked, *(call[3] for call in calls if call[3] is not None)]
    if not times:
        return NO_TIME
    earliest_ns = min(times)
    began_ns = started_ns if started_ns is not None else first_ns if first_ns is not None else earliest_ns
    total, cached = count(row.get("input_tokens_total")), count(row.get("prefix_tokens"))
    fresh = count(row.get("newly_append_tokens"))
    if total is None and cached is not None and fresh is not None:
        total = cached + fresh
    names = ",".join(call[1] for call in calls)
    index = count(row.get("round_index"))
    data = [
        began_ns,
        0 if index is None else index,
        session,
        text(row.get("provider")),
        text(row.get("turn_id")),
        _said_ns(said, began_ns) if first_kind == "user_message" else None,
        text(row.get("model")),
        started_ns,
        ended_ns,
        total,
        cached,
        count(row.get("claude_cache_creation_input_tokens")),
        count(row.get("output_tokens")),
        count(row.get("reasoning_output_tokens")),
        calls,
    ]
    return Item(session, earliest_ns, data, f"{earliest_ns}:{max(times)}:{began_ns}:{names}")


def _said_ns(said: list[int], began_ns: int) -> int:
    """When what the reply is to was said. Commands that ask no model are messages here, too, and so is what
    was interrupted: a message long before the next one is not of this loop."""
    first_ns = began_ns
    for at_ns in sorted((one for one in said if one <= began_ns), reverse=True):
        if first_ns - at_ns > TOGETHER_NS:
            break
        first_ns = at_ns
    return first_ns


def _call(tool: dict[str, Any]) -> list[Any]:
    """[name, id, asked, ended, own duration, failed]"""
    failed = tool.get("is_error")
    return [
        text(tool.get("tool_name")),
        text(tool.get("tool_call_id")),
        time_ns(tool.get("emitted_at")),
        time_ns(tool.get("result_at")),
        duration_ns(tool.get("tool_internal_latency_ms"), _MS),
        failed if type(failed) is bool else None,
    ]


def _round(row: list[Any]) -> tuple[RoundDraft, int]:
    """The round, and how many of its calls nothing says of whether they failed."""
    (
        _,
        index,
        _,
        provider,
        _,
        _,
        model,
        started_ns,
        ended_ns,
        total,
        cached,
        written,
        output,
        reasoning,
        calls,
    ) = row
    without = 0
    drafts = []
    for place, (name, id_, asked_ns, result_ns, own_ns, failed) in enumerate(calls):
        call = CallDraft(name, id_ or f"{index}.{place}", asked_ns, None, result_ns, own_ns)
        if failed:
            call.status = "error"
        elif result_ns is None:
            call.status = "cancelled"
        elif failed is None:
            without += 1
        call.wait = name in WAITS
        drafts.append(call)
    if provider == "codex":
        mark_late(drafts)
    return (
        RoundDraft(
            ModelDraft(
                _PROVIDERS.get(provider, provider),
                model,
                started_ns,
                ended_ns,
                ("started_ns", "ended_ns"),
                input_tokens=total,
                output_tokens=output,
                cached_tokens=cached,
                cache_written_tokens=written,
                reasoning_tokens=reasoning,
            ),
            drafts,
        ),
        without,
    )


def _closed(loop: LoopDraft) -> LoopDraft:
    """The loop; one whose last round asked for calls was broken off: no answer came after them."""
    if loop.rounds[-1].calls:
        loop.status = "cancelled"
    return loop
