"""The calls of a load test without a model: which tool each loop calls, with which arguments. Pure.

A loop's number decides its call, as a tape entry decides what an emulated model asks for: so loads, blocks
and runs of one seed make the same calls.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from profiler.emulator.arguments import Generator, compile_schema
from profiler.emulator.draws import Draws, key
from profiler.emulator.work import SchemaError
from profiler.errors import UsageError, did_you_mean
from profiler.mcp.servers import may_be_called
from profiler.mcp.session import ListedTool

SHOWN_TOOLS = 8
"""Names of tools that a message lists."""

_CYCLES_KEPT = 4


class PlannedCall(NamedTuple):
    """One call of a tool."""

    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CallPlan:
    """The calls of a test: `call(number)` is that of a loop. `withheld` are tools that may not be called."""

    tools: tuple[ListedTool, ...]
    call: Callable[[int], PlannedCall]
    withheld: tuple[str, ...] = ()
    drawn: bool = False

    @property
    def said(self) -> str:
        """The planned calls, in words."""
        how = ", arguments drawn from the schema" if self.drawn else ""
        words = f"calls {_names([one.name for one in self.tools])}{how}"
        if self.withheld:
            words += (
                f"; not called, since they do not say that they are read-only: {_names(self.withheld)} "
                "(--allow-writes TOOL,…)"
            )
        return words


def read_calls(path: str | Path) -> tuple[PlannedCall, ...]:
    """The calls of a JSONL file. Raises `UsageError` with file and line."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"--args-from {path}: cannot be read: {error.strerror}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"--args-from {path}:{number}"
        try:
            one = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise UsageError(f"{where}: no JSON: {error}") from None
        if not isinstance(one, dict) or not isinstance(one.get("tool"), str):
            raise UsageError(f'{where}: expected {{"tool": "NAME", "arguments": {{…}}}}')
        arguments = one.get("arguments", {})
        if not isinstance(arguments, dict):
            raise UsageError(f"{where}: arguments must be an object")
        found.append(PlannedCall(one["tool"], arguments))
    if not found:
        raise UsageError(f"--args-from {path}: no calls in it")
    return tuple(found)


def plan_calls(
    listed: Sequence[ListedTool],
    *,
    server: str,
    emulated: bool,
    seed: int,
    allowed: Collection[str] = (),
    named: Sequence[str] = (),
    arguments: Mapping[str, Any] | None = None,
    calls: Sequence[PlannedCall] = (),
) -> CallPlan:
    """Calls of a server's tools: the `calls` of a file, the `named` tools, or all that may be called.

    Raises `UsageError` for a tool that the server does not have, that may write, or for which no arguments
    can be drawn; and where no tool is left.
    """
    tools = {one.name: one for one in listed}
    may = [one.name for one in listed if may_be_called(one, emulated=emulated, allowed=allowed)]
    unknown = next((name for name in allowed if name not in tools), None)
    if unknown is not None:
        raise UsageError(f"--allow-writes {unknown}: {server} has no such tool{_hint(unknown, tools)}")
    wanted = list(dict.fromkeys(call.tool for call in calls)) if calls else list(dict.fromkeys(named))
    flag = "--args-from" if calls else "--call"
    for name in wanted:
        if name not in tools:
            raise UsageError(f"{flag} {name}: {server} has no such tool{_hint(name, tools)}")
        if name not in may:
            raise UsageError(
                f"{flag} {name}: it does not say that it is read-only, so a load of it may change something: "
                f"allow it with --allow-writes {name}"
            )
    withheld = () if wanted else tuple(name for name in tools if name not in may)
    used = wanted or may
    if not used:
        what = (
            "it lists no tools" if not tools else f"none of its {len(tools)} tools says that it is read-only"
        )
        named_all = f": name those to call with --allow-writes {_names(withheld)}" if withheld else ""
        raise UsageError(f"{server}: nothing to call, since {what}{named_all}")
    of = tuple(tools[name] for name in used)
    if calls:
        return CallPlan(of, _cycled(calls, seed))
    if arguments is not None:
        only = PlannedCall(used[0], arguments)
        return CallPlan(of, lambda number: only)
    return CallPlan(of, _drawn(of, seed, server), withheld, drawn=True)


def _cycled(calls: Sequence[PlannedCall], seed: int) -> Callable[[int], PlannedCall]:
    """All of them once, in a random order, then again in another one."""

    @lru_cache(maxsize=_CYCLES_KEPT)
    def order(cycle: int) -> list[int]:
        places = list(range(len(calls)))
        random.Random(f"{seed}/{cycle}").shuffle(places)
        return places

    def call(number: int) -> PlannedCall:
        cycle, place = divmod(number, len(calls))
        return calls[order(cycle)[place]]

    return call


def _drawn(tools: Sequence[ListedTool], seed: int, server: str) -> Callable[[int], PlannedCall]:
    """The tools in turn, each with arguments that its schema allows."""
    generators: list[Generator] = []
    for one in tools:
        try:
            generators.append(compile_schema(one.parameters))
        except SchemaError as error:
            raise UsageError(
                f"{server}: no arguments can be drawn for {one.name}, whose schema cannot be used: {error}; "
                "say them with --call and --args, or --args-from"
            ) from error

    def call(number: int) -> PlannedCall:
        place = number % len(tools)
        return PlannedCall(tools[place].name, generators[place](Draws(key(seed, number)), number))

    return call


def _names(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_TOOLS
    return ", ".join(names[:SHOWN_TOOLS]) + (f" and {more} more" if more > 0 else "")


def _hint(name: str, known: Mapping[str, object]) -> str:
    return did_you_mean(name, list(known)) or f" (it has: {_names(list(known)) or 'none'})"
