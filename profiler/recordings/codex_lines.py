"""What the lines of Codex's sessions are, and which of a file's lines are a thread's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

META, CONTEXT, START, DONE, ABORT = "meta", "context", "start", "done", "abort"
USER, OUTPUT, CALL, RETURN, END = "user", "output", "call", "return", "end"
TOKENS, SPAWN, ERROR, RETRY = "tokens", "spawn", "error", "retry"

_S = 1_000_000_000
_BURST_NS = _S
"""A history is written into a new file within this of its beginning."""


class Line(NamedTuple):
    """What a line tells. `number` is its place in its file; `body` is of the kind (`codex`)."""

    at_ns: int
    number: int
    kind: str
    body: list[Any]


def own_beginning(lines: Sequence[Line], meta: Line) -> Line | None:
    """The line with which a thread's own first turn begins; None: it never came to one.

    It is the last turn that began before anything took time. Where ids are UUIDs of version 7, which say when
    they were made, it is no older than the thread: a thread that was cut off has turns of its parent's alone.
    """
    ordered = sorted(lines, key=lambda line: line.number)
    began_ns = meta.body[-1]
    starts = [line for line in ordered if line.kind == START]
    found: Line | None = None
    for line in ordered:
        if line.kind == START or (not starts and line.kind == USER):
            found = line
        if line.at_ns > began_ns + _BURST_NS:
            found = found or line
            break
    made_ns = _made_ns(meta.body[0])
    if found is None or made_ns is None or abs(made_ns - began_ns) > _BURST_NS:
        return found
    turn_ns = _made_ns(found.body[0]) if found.kind == START else None
    if turn_ns is None or turn_ns >= made_ns:
        return found
    return next((line for line in starts if (_made_ns(line.body[0]) or 0) >= made_ns), None)


def _made_ns(id_: str) -> int | None:
    digits = id_.replace("-", "")
    if len(digits) != 32 or digits[12] != "7":
        return None
    try:
        return int(digits[:12], 16) * 1_000_000
    except ValueError:
        return None
