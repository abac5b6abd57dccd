"""Sessions of Codex: `sessions/Y/M/D/rollout-<time>-<thread>.jsonl`.

`read` takes of every line what is known of it; `profiler.recordings.codex_loops` makes loops of the lines.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from profiler.recordings import codex_ends
from profiler.recordings.codex_lines import (
    ABORT,
    CALL,
    CONTEXT,
    DONE,
    END,
    ERROR,
    META,
    OUTPUT,
    RETRY,
    RETURN,
    SPAWN,
    START,
    TOKENS,
    USER,
    Line,
)
from profiler.recordings.codex_loops import REPLAYED, loops_of
from profiler.recordings.drafts import LoopDraft
from profiler.recordings.fields import as_text, count, duration_ns, mapping, objects, text, time_ns
from profiler.recordings.formats import Item, Skipped, Source
from profiler.recordings.lines import rows

_MS = 1_000_000
_S = 1_000_000_000

NO_LINE = "lines that are no objects"
NO_TIME = "lines without a time"
OTHER = "lines of which nothing is taken (texts shown, settings, snapshots and the like)"

_FILE = re.compile(r"rollout-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d-([^.]+)")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NAMES = ("agent_path", "agent_nickname", "new_agent_nickname")
_CONTEXT_TEXTS = ("<", "# AGENTS.md", "Approved command prefix")
_SERVED = ("web_search_call", "image_generation_call")
_OURS = ("function_call", "custom_tool_call", "local_shell_call")


class Codex:
    """The format (`profiler.recordings.formats.Format`)."""

    name = "codex"
    resolution_ns = _MS

    def recognises(self, beginning: bytes, path: Path) -> bool:
        return (
            b'"session_meta"' in beginning or (b'"response_item"' in beginning or b'"event_msg"' in beginning)
        ) and b'"payload"' in beginning

    def read(self, source: Source, content: bool) -> Iterator[Item | Skipped]:
        found = rows(source)
        first = next(found, None)
        if first is None:
            return
        thread = _thread(source.path, None if isinstance(first, Skipped) else first.data)
        metas: list[Item] = []
        own_from: int | None = None
        for value in chain((first,), found):
            if isinstance(value, Skipped):
                yield value
                continue
            item = _item(value.data, thread, value.line, content)
            if isinstance(item, str):
                yield Skipped(item, where=f"{source.name}:{value.line}")
                continue
            ordinal = value.data.get("ordinal")
            if _is_meta(item):
                own_from = own_from if own_from is not None else _own_from(mapping(value.data.get("payload")))
            elif own_from is not None and type(ordinal) is int and ordinal < own_from:
                yield Skipped(REPLAYED, where=f"{source.name}:{value.line}")
                continue
            if _is_meta(item) and len(metas) < 16:
                metas.append(item)
                continue
            # A file begins when it is opened. Nothing of a loop happened then, and no time counts from it.
            yield from (meta._replace(at_ns=max(meta.at_ns, item.at_ns)) for meta in metas)
            metas.clear()
            yield item
        yield from metas

    def loops(self, items: Sequence[Item], content: bool) -> Iterator[LoopDraft | Skipped]:
        threads: dict[str, list[Line]] = {}
        for item in items:
            if isinstance(item.data, list):
                threads.setdefault(item.group, []).append(Line(item.at_ns, *item.data))
        return loops_of(threads, self.name, self.resolution_ns)


def _thread(path: Path, first: object) -> str:
    """The thread that a file is of: its name says it, else its first line."""
    named = _FILE.match(path.name)
    if named is not None:
        return named[1]
    row = mapping(first)
    meta = mapping(row.get("payload")) if row.get("type") == "session_meta" else {}
    return text(meta.get("id")) or path.stem


def _item(row: Any, thread: str, number: int, content: bool) -> Item | str:
    """What a line tells, as the fields of a `Line` after its time; or why it tells nothing."""
    if type(row) is not dict:
        return NO_LINE
    kind = row.get("type")
    payload = row.get("payload")
    if type(payload) is not dict:
        payload = row  # as the first versions wrote them
    found: tuple[str, list[Any]] | None = None
    if kind == "event_msg":
        found = _event(payload, content)
    elif kind == "session_meta":
        found = META, _meta(payload)
    elif kind == "token_usage_record":
        found = TOKENS, [_usage(mapping(payload.get(name))) for name in ("thread_token_usage", "usage")]
        found[1].append(text(payload.get("response_id")) or text(payload.get("turn_id")) or str(number))
    elif kind == "turn_context":
        found = CONTEXT, [text(payload.get("model"))]
    elif kind == "response_item" or payload is row:
        found = _response(payload, content)
    if found is None:
        return OTHER
    at_ns = time_ns(row.get("timestamp"))
    if at_ns is None:
        return NO_TIME
    what, body = found
    try:
        digest = hashlib.blake2b(orjson.dumps(row), digest_size=12).hexdigest()
    except TypeError:  # nested deeper than anything that is written
        digest = None
    link = f"thread:{thread}" if what == START else None
    if what == META:
        link = f"thread:{body[3]}" if body[3] else None
        body.append(at_ns)
    return Item(thread, at_ns, [number, what, body], digest, link=link, place=number)


def _is_meta(item: Item) -> bool:
    return isinstance(item.data, list) and item.data[1] == META


def _meta(payload: dict[str, Any]) -> list[Any]:
    """[thread, provider, sub-agent, parent's thread, role, history, names]; `_item` adds its time.

    `history`: whether that of another thread may be at the file's beginning. None: `read` left it out.
    """
    source = payload.get("source")
    inner = mapping(source).get("subagent", mapping(source).get("sub_agent"))
    told = mapping(inner).get("thread_spawn")
    spawn = mapping(told)
    parent = text(spawn.get("parent_thread_id"))
    if type(told) is dict:
        parent = parent or text(payload.get("parent_thread_id"))
    return [
        text(payload.get("id")),
        text(payload.get("model_provider")),
        inner is not None,
        parent,
        text(spawn.get("agent_role")) or text(inner) or text(mapping(inner).get("other")),
        None
        if _own_from(payload) is not None
        else inner is not None or bool(text(payload.get("forked_from_id"))),
        _called(payload) + _called(spawn),
    ]


def _own_from(payload: dict[str, Any]) -> int | None:
    """The ordinal of a thread's own first line, where its first line tells; those before it are copies."""
    told = (
        count(payload.get("subagent_history_start_ordinal")),
        count(mapping(payload.get("history_base")).get("end_ordinal_exclusive")),
    )
    return max((one for one in told if one is not None), default=None)


def _called(payload: dict[str, Any]) -> list[str]:
    return [text(payload[name]) for name in _NAMES if text(payload.get(name))]


def _event(payload: dict[str, Any], content: bool) -> tuple[str, list[Any]] | None:
    read = _EVENTS.get(text(payload.get("type")))
    return None if read is None else read(payload, content)


def _user_message(payload: dict[str, Any], content: bool) -> tuple[str, list[Any]]:
    return USER, [True, text(payload.get("message")) if content else None]


def _tokens(payload: dict[str, Any], content: bool) -> tuple[str, list[Any]] | None:
    info = payload.get("info")
    if type(info) is not dict:
        return None
    total, last = (_usage(mapping(info.get(f"{of}_token_usage"))) for of in ("total", "last"))
    if all(number is None for number in total):
        total = last  # without sums, a request is known by its own numbers
    return TOKENS, [total, last, ""]


def _usage(usage: dict[str, Any]) -> list[int | None]:
    """[input, cached, output, reasoning, written to the cache, total]"""
    return [
        count(usage.get(name))
        for name in (
            "input_tokens",
            "cached_input_tokens",
            "output_tokens",
            "reasoning_output_tokens",
            "cache_write_input_tokens",
            "total_tokens",
        )
    ]


def _started(payload: dict[str, Any], content: bool) -> tuple[str, list[Any]]:
    return START, [text(payload.get("turn_id"))]


def _complete(payload: dict[str, Any], content: bool) -> tuple[str, list[Any]]:
    said = payload.get("last_agent_message")
    failed = payload.get("error")
    return DONE, [
        text(payload.get("turn_id")),
        duration_ns(payload.get("time_to_first_token_ms"), _MS),
        said if content and type(said) is str else None,
        None if not failed else _reason(mapping(failed)) or "error",
    ]


def _aborted(payload: dict[str, Any], content: bool) -> tuple[str, list[Any]]:
    return ABORT, [text(payload.get("turn_id"))]


def _spawned(payload: dict[str, Any], content: bool) -> tuple[str, list[Any]] | None:
    """[call, threads, names]: which call runs which sub-agents."""
    call = text(payload.get("event_id")) or text(payload.get("call_id"))
    threads: list[str] = []
    for name, value in payload.items():
        if name.startswith(("sender", "parent", "turn", "event", "call")):
            continue
        found = [text(one) for one in (value if type(value) is list else [value])]
        threads += [one for one in found if one and ("thread" in name or _UUID.fullmatch(one))]
    names = _called(payload)
    return (SPAWN, [call, threads, names]) if call and (threads or names) else None


def _error(payload: dict[str, Any], content: bool) -> tuple[str, list[Any]]:
    return ERROR, [_reason(payload)]


def _reason(payload: dict[str, Any]) -> str | None:
    info = payload.get("codex_error_info")
    name = info if type(info) is str else next(iter(mapping(info)), "")
    status = count(mapping(mapping(info).get(name)).get("http_status_code"))
    return f"http_{status}" if status is not None and status < 600 else text(name) or None


def _retried(payload: dict[str, Any], content: bool) -> tuple[str, list[Any]]:
    return RETRY, []


def _call_ended(payload: dict[str, Any], content: bool) -> tuple[str, list[Any]]:
    return END, [*codex_ends.event(payload), None, None]


def _item_completed(payload: dict[str, Any], content: bool) -> tuple[str, list[Any]] | None:
    """What newer versions write in the place of an event for each kind of thing."""
    item = mapping(payload.get("item"))
    kind = text(item.get("type"))
    if kind == "UserMessage":
        said = "\n".join(text(one.get("text")) for one in objects(item.get("content")))
        return USER, [True, said if content else None]
    named = item | {"call_id": text(item.get("call_id")) or text(item.get("id"))}
    if kind in ("CommandExecution", "McpToolCall", "FileChange", "DynamicToolCall"):
        times = [time_ns(payload.get(name)) for name in ("started_at_ms", "completed_at_ms")]
        return END, [*codex_ends.event(named), *times]
    spawns = text(item.get("tool")).lower().startswith("spawn")
    if kind == "SubAgentActivity" or (kind == "CollabAgentToolCall" and spawns):
        return _spawned(named, content)
    return None


_EVENTS: dict[str, Callable[[dict[str, Any], bool], tuple[str, list[Any]] | None]] = {
    "user_message": _user_message,
    "token_count": _tokens,
    "task_started": _started,
    "turn_started": _started,
    "task_complete": _complete,
    "turn_complete": _complete,
    "turn_aborted": _aborted,
    "exec_command_end": _call_ended,
    "mcp_tool_call_end": _call_ended,
    "patch_apply_end": _call_ended,
    "dynamic_tool_call_response": _call_ended,
    "sub_agent_activity": _spawned,
    "collab_agent_spawn_begin": _spawned,
    "collab_agent_spawn_end": _spawned,
    "item_completed": _item_completed,
    "error": _error,
    "stream_error": _retried,
}


def _response(payload: dict[str, Any], content: bool) -> tuple[str, list[Any]] | None:
    kind = text(payload.get("type"))
    if kind == "message":
        role = payload.get("role")
        if role == "assistant":
            return OUTPUT, [None]
        if role != "user":
            return None
        said = "\n".join(text(one.get("text")) for one in objects(payload.get("content")))
        if said.lstrip().startswith(_CONTEXT_TEXTS):
            return None
        return USER, [False, said if content else None]
    if kind == "reasoning":
        return OUTPUT, [None]
    call = text(payload.get("call_id"))
    if kind.endswith("_output"):
        return RETURN, [call, *codex_ends.output(payload, content)]
    made = kind in _OURS and "id" in payload
    if kind in _SERVED or (kind.endswith("_call") and not call and not made):
        return OUTPUT, [kind.removesuffix("_call")]
    if kind.endswith("_call"):
        name = text(payload.get("name")) or kind.removesuffix("_call")
        space = text(payload.get("namespace"))
        if space.startswith("mcp__") and not name.startswith(space):
            name = f"{space.removesuffix('__')}__{name}"
        asked = payload.get("arguments", payload.get("input", payload.get("action")))
        return CALL, [call or text(payload.get("id")), name, as_text(asked) if content else None]
    return None
