"""What lines of Codex's sessions say of how a call ended: how long it took, and whether it failed.

Two kinds of lines do: events that are written when a call is over, and the outputs that the model was given.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from profiler.recordings.fields import duration_ns, mapping, objects, text

_MS = 1_000_000
_S = 1_000_000_000

_WALL = re.compile(r"^Wall time:? (\d+)(\.\d+)? seconds?", re.MULTILINE)
_EXIT = re.compile(r"^(?:Process exited with code|Exit code:) (-?\d+)", re.MULTILINE)
_RUNNING = re.compile(r"^(?:Process running with session ID|Script running with cell ID)", re.MULTILINE)
_SCRIPT = re.compile(r"Script (completed|failed|terminated)\b")
_HEADS = ("Chunk ID:", "Wall time:", "Exit code:", "Process ", "Script ")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ns|µs|us|ms|s)?$")
_UNITS = {"ns": 1, "µs": 1_000, "us": 1_000, "ms": _MS, "s": _S, None: _S}


def event(payload: dict[str, Any]) -> list[Any]:
    """[call, duration, status, error] of an event that a call is over."""
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
        status, error = _answered(mapping(result["Ok"]))
    elif payload.get("error"):
        status = "error"
    elif result:
        status, error = _answered(result)
    elif payload.get("status") in ("completed", "failed"):
        status = "ok" if payload["status"] == "completed" else "error"
    if payload.get("status") == "declined":
        status, error = "cancelled", None
    return [text(payload.get("call_id")), _duration(payload.get("duration")), status, error]


def _answered(result: dict[str, Any]) -> tuple[str, str | None]:
    failed = result.get("is_error", result.get("isError"))
    return ("error", "tool_error") if failed is True else ("ok", None)


def output(payload: dict[str, Any], content: bool) -> list[Any]:
    """[own duration, whether it is rounded, status, error type, refused, still running, sub-agent's thread,
    text] of an output; status None: no word of it.

    Shells and patches say their durations in tenths of a second: below one second that is rough, and a
    duration of 0 is none.
    """
    told = payload.get("output")
    success = None
    if type(told) is dict:
        success = told.get("success")
        told = told.get("content", told.get("output"))
    if type(told) is list:
        told = "\n".join(one["text"] for one in objects(told) if type(one.get("text")) is str)
    words = told if type(told) is str else ""
    own_ns: int | None = None
    status: str | None = None
    error: str | None = None
    running = refused = tenths = False
    agent = ""
    if words.startswith("{"):
        values = _object(words)
        more = mapping(values.get("metadata"))
        own_ns, tenths = duration_ns(more.get("duration_seconds"), _S), True
        if type(more.get("exit_code")) is int:
            status, error = _exit(more["exit_code"])
        agent = text(values.get("agent_id"))
    elif words.startswith(_HEADS):
        head = words[:2000].partition("\nOutput:")[0]
        if wall := _WALL.search(head):
            own_ns = duration_ns(float(wall[1] + (wall[2] or "")), _S)
            tenths = len(wall[2] or "") <= 2
        if code := _EXIT.search(head):
            status, error = _exit(int(code[1][:9]))
        elif script := _SCRIPT.match(head):
            status = {"completed": "ok", "failed": "error"}.get(script[1], "cancelled")
        running = _RUNNING.search(head) is not None
    begins = words[:400]
    if status is None and "rejected by user" in begins:
        status, refused = "cancelled", True
    elif status is None and begins.startswith("aborted"):
        status = "cancelled"
    elif "command timed out after" in begins and status != "ok":
        status, error = "timeout", None
    success = payload.get("success") if success is None else success
    if status is None and type(success) is bool:
        status = "ok" if success else "error"
    if tenths and own_ns == 0:
        own_ns = None
    rounded = tenths and own_ns is not None and own_ns < _S
    return [own_ns, rounded, status, error, refused, running, agent, words if content else None]


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
