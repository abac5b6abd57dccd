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

from profiler.recordings.codex_loops import (
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
    loops_of,
)
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
_WALL = re.compile(r"^Wall time: (\d+(?:\.\d+)?) seconds?", re.MULTILINE)
_EXIT = re.compile(r"^(?:Process exited with code|Exit code:) (-?\d+)", re.MULTILINE)
_RUNNING = re.compile(r"^Process running with session ID", re.MULTILINE)
_HEADS = ("Chunk ID:", "Wall time:", "Exit code:", "Process ")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ns|µs|us|ms|s)?$")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NAMES = ("agent_path", "agent_nickname", "new_agent_nickname")
_UNITS = {"ns": 1, "µs": 1_000, "us": 1_000, "ms": _MS, "s": _S, None: _S}
_CONTEXT_TEXTS = ("<", "# AGENTS.md", "Approved command prefix")


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
        for value in chain((first,), found):
            if isinstance(value, Skipped):
                yield value
                continue
            item = _item(value.data, thread, value.line, content)
            if isinstance(item, str):
                yield Skipped(item, where=f"{source.name}:{value.line}")
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
    """[thread, provider, sub-agent, parent's thread, role, forked, names]; `_item` adds its time."""
    source = payload.get("source")
    inner = mapping(source).get("subagent", mapping(source).get("sub_agent"))
    spawn = mapping(mapping(inner).get("thread_spawn"))
    return [
        text(payload.get("id")),
        text(payload.get("model_provider")),
        inner is not None,
        text(spawn.get("parent_thread_id")),
        text(spawn.get("agent_role")) or text(inner),
        bool(text(payload.get("forked_from_id"))),
        _called(spawn),
    ]


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
    total = _usage(mapping(info.get("total_token_usage")))
    return TOKENS, [total, _usage(mapping(info.get("last_token_usage")))]


def _usage(usage: dict[str, Any]) -> list[int | None]:
    """[input, cached, output, reasoning, total]"""
    return [
        count(usage.get(name))
        for name in (
            "input_tokens",
            "cached_input_tokens",
            "output_tokens",
            "reasoning_output_tokens",
            "total_tokens",
        )
    ]


def _started(payload: dict[str, Any], content: bool) -> tuple[str, list[Any]]:
    return START, [text(payload.get("turn_id"))]


def _complete(payload: dict[str, Any], content: bool) -> tuple[str, list[Any]]:
    said = payload.get("last_agent_message")
    return DONE, [
        text(payload.get("turn_id")),
        duration_ns(payload.get("time_to_first_token_ms"), _MS),
        said if content and type(said) is str else None,
    ]


def _aborted(payload: dict[str, Any], content: bool) -> tuple[str, list[Any]]:
    return ABORT, [text(payload.get("turn_id"))]


def _tool_end(payload: dict[str, Any], content: bool) -> tuple[str, list[Any]]:
    """[call, duration, status, error]: the end of a call, written when it was there."""
    status, error = None, None
    code = payload.get("exit_code")
    result = mapping(payload.get("result"))
    if type(code) is int:
        status, error = _exit(code)
    elif type(payload.get("success")) is bool:
        status = "ok" if payload["success"] else "error"
    elif "Err" in result:
        status = "error"
    elif "Ok" in result:
        good = mapping(result["Ok"])
        failed = good.get("is_error", good.get("isError"))
        status, error = ("error", "tool_error") if failed is True else ("ok", None)
    if payload.get("status") == "declined":
        status = "cancelled"
    return END, [text(payload.get("call_id")), _duration(payload.get("duration")), status, error]


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
    info = payload.get("codex_error_info")
    name = info if type(info) is str else next(iter(mapping(info)), "")
    status = count(mapping(mapping(info).get(name)).get("http_status_code"))
    return ERROR, [f"http_{status}" if status is not None and status < 600 else text(name) or None]


def _retried(payload: dict[str, Any], content: bool) -> tuple[str, list[Any]]:
    return RETRY, []


_EVENTS: dict[str, Callable[[dict[str, Any], bool], tuple[str, list[Any]] | None]] = {
    "user_message": _user_message,
    "token_count": _tokens,
    "task_started": _started,
    "turn_started": _started,
    "task_complete": _complete,
    "turn_complete": _complete,
    "turn_aborted": _aborted,
    "exec_command_end": _tool_end,
    "mcp_tool_call_end": _tool_end,
    "patch_apply_end": _tool_end,
    "dynamic_tool_call_response": _tool_end,
    "sub_agent_activity": _spawned,
    "collab_agent_spawn_begin": _spawned,
    "collab_agent_spawn_end": _spawned,
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
        return RETURN, [call, *_outcome(payload, content)]
    if kind == "web_search_call" or (kind.endswith("_call") and not call and "id" not in payload):
        return OUTPUT, [kind.removesuffix("_call")]
    if kind.endswith("_call"):
        name = text(payload.get("name")) or kind.removesuffix("_call")
        space = text(payload.get("namespace"))
        if space.startswith("mcp__") and not name.startswith(space):
            name = f"{space.removesuffix('__')}__{name}"
        asked = payload.get("arguments", payload.get("input", payload.get("action")))
        return CALL, [call or text(payload.get("id")), name, as_text(asked) if content else None]
    return None


def _outcome(payload: dict[str, Any], content: bool) -> list[Any]:
    """[own duration, status, error type, refused, still running, sub-agent's thread, text]; status None: no
    word of it."""
    output = payload.get("output")
    success = None
    if type(output) is dict:
        success = output.get("success")
        output = output.get("content", output.get("output"))
    if type(output) is list:
        output = "\n".join(one["text"] for one in objects(output) if type(one.get("text")) is str)
    words = output if type(output) is str else ""
    own_ns: int | None = None
    status: str | None = None
    error: str | None = None
    running = refused = False
    agent = ""
    if words.startswith("{"):
        told = _object(words)
        more = mapping(told.get("metadata"))
        own_ns = duration_ns(more.get("duration_seconds"), _S)
        if type(more.get("exit_code")) is int:
            status, error = _exit(more["exit_code"])
        agent = text(told.get("agent_id"))
    elif words.startswith(_HEADS):
        head = words[:2000].partition("\nOutput:")[0]
        if wall := _WALL.search(head):
            own_ns = duration_ns(float(wall[1]), _S)
        if code := _EXIT.search(head):
            status, error = _exit(int(code[1][:9]))
        running = _RUNNING.search(head) is not None
    begins = words[:400]
    if status is None and "rejected by user" in begins:
        status, refused = "cancelled", True
    elif status is None and begins.startswith("aborted"):
        status = "cancelled"
    elif "command timed out after" in begins and status != "ok":
        status, error = "timeout", None
    if status is None and type(success if success is not None else payload.get("success")) is bool:
        status = "ok" if (success if success is not None else payload["success"]) else "error"
    return [own_ns, status, error, refused, running, agent, words if content else None]


def _object(words: str) -> dict[str, Any]:
    try:
        return mapping(orjson.loads(words))
    except orjson.JSONDecodeError:
        return {}


def _exit(code: int) -> tuple[str, str | None]:
    if code == 124:
        return "timeout", None
    return ("ok", None) if code == 0 else ("error", f"exit_{code}" if 0 < code < 256 else "exit")


def _duration(value: object) -> int | None:
    """Rust's `Duration` as it is, or as text (`1.5s`); or seconds."""
    if type(value) is dict:
        seconds, nanoseconds = duration_ns(value.get("secs"), _S), duration_ns(value.get("nanos"), 1)
        return None if seconds is None else seconds + (nanoseconds or 0)
    if type(value) is str:
        found = _DURATION.match(value.strip()[:32])
        return None if found is None else duration_ns(float(found[1]), _UNITS[found[2]])
    return duration_ns(value, _S)
