"""Scenarios for the emulator's MCP servers: faults at loops of their own, tools of limited capacity."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from profiler.mcp.session import META
from profiler.scenarios import MCP_FAULTS

_HEAD = """
description = "tools over MCP"
prompt = "Question {number}"

[model]
first_token = 0
tokens_per_second = 0

[loop]
rounds = 1
fan_out = 1
"""

_TOOL = """
[tools.{name}]
description = "Looks."
duration = {duration}
{rest}
[tools.{name}.parameters]
type = "object"
required = ["subject"]
properties.subject = {{ type = "string" }}
"""

LOOPS = {kind: loop for loop, kind in enumerate(MCP_FAULTS, start=1)}
"""The loop in which each fault is met."""

_SECONDS = {"mcp_silence": 30, "mcp_slow_progress": 0.3, "mcp_http_429": 7}


def tool(name: str, duration: float, rest: str = "") -> str:
    return _TOOL.format(name=name, duration=duration, rest=rest)


def with_faults(*, structured: bool = False) -> str:
    """One tool, `look`. `structured`: with the one fault that has all results say themselves twice."""
    text = _HEAD + tool("look", 0.05)
    for kind, loop in LOOPS.items():
        if kind.startswith("mcp_refused") or (kind == "mcp_bad_structure") != structured:
            continue
        text += f'[[faults]]\nkind = "{kind}"\nat = [{{ loop = {loop} }}]\n'
        if kind in _SECONDS:
            text += f"seconds = {_SECONDS[kind]}\n"
    return text


def limited() -> str:
    """Tools of limited capacity.

    `full` serves one for a minute and refuses others, `held` holds one of them; `queued` serves two.
    """
    return (
        _HEAD
        + tool("full", 60, 'capacity = { concurrent = 1, mode = "reject" }')
        + tool("queued", 0.1, 'capacity = { concurrent = 2, mode = "queue", queue = 100 }')
        + tool("held", 60, 'capacity = { concurrent = 1, mode = "queue", queue = 1 }')
        + tool("rated", 0, "capacity = { requests_per_second = 0.1 }")
        + tool("quick", 0)
        + "".join(
            f'[[faults]]\nkind = "{kind}"\nat = [{{ loop = {LOOPS[kind]} }}]\n'  # type: ignore[index]
            for kind in ("mcp_refused_result", "mcp_refused_error")
        )
    )


def in_loop(kind: str) -> dict[str, Any]:
    """The `_meta` of a call that meets the fault `kind`."""
    return {META + "loop": LOOPS[kind]}  # type: ignore[index]


_serial = itertools.count(1)


def identified(**more: Any) -> dict[str, Any]:
    """The `_meta` of a call with an id of its own."""
    return {META + "call": f"of_a_test_{next(_serial)}", **more}


def entry_of(entries: list[dict[str, Any]], meta: Mapping[str, Any]) -> dict[str, Any]:
    """The journal's entry of the call that had this `_meta`."""
    (found,) = [entry for entry in entries if entry["call_id"] == meta[META + "call"]]
    return found
