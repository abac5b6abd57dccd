"""What a recording lacks to be predicted from: servers that it did not take past their capacity. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from profiler.limits.spec import ALL_TOOLS
from profiler.records import LoopRecord, ToolCall

if TYPE_CHECKING:
    from profiler.rundir import Run

REFUSALS = frozenset({"http_429", "http_503", "http_529"})
"""Errors by which a server refuses a call for the load that it has."""

FEWEST = 50
"""Calls of a server from which anything is said of it."""

FEWEST_REFUSED = 10
"""Refused calls from which a capacity can be known."""

SLOWER = 1.25
"""Calls beyond a capacity take so many times as long as those far below it, or more."""

SURELY = 4.0
"""Standard errors by which they have to: calls of a round are alike, so two would not be enough."""

MORE = 2
"""How many times the highest load the next one should be."""


@dataclass(slots=True)
class _Server:
    """Calls of one server: when they started and ended, their own part of that, in ns; whether refused."""

    started: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    took: list[int] = field(default_factory=list)
    refused: list[bool] = field(default_factory=list)

    def add(self, call: ToolCall) -> None:
        if call.started_ns is None or call.upper_bound or call.wait or call.nested:
            return
        # What this client did is no sign of the server's.
        ours = call.sending_ns + call.late_ns + call.thread_wait_ns
        tries = [(one.started_ns, one.ended_ns, one.error_type) for one in call.attempts]
        for started, ended, error in tries or [(call.started_ns, call.ended_ns, call.error_type)]:
            self.started.append(started)
            self.ended.append(ended)
            self.took.append(max(0, ended - started - ours))
            self.refused.append(error in REFUSALS)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a recording shows of one server: `calls` reached it, `most` at once.

    `past`: how it was taken past its capacity, in words; None where it was not, or hardly: `refused` calls.
    """

    name: str
    calls: int
    most: int
    past: str | None
    refused: int = 0


def advice(run: Run, records: Iterable[LoopRecord]) -> list[str]:
    """Which servers of tools were taken past their capacity; what to add where one was not.

    A sentence for each of the two, without a full stop.
    """
    servers = seen(records)
    past = [one for one in servers if one.past is not None]
    few = [one for one in servers if one.past is None and one.calls < FEWEST]
    below = [one for one in servers if one.past is None and one.calls >= FEWEST]
    lines = []
    if past:
        lines.append("past its capacity: " + ", ".join(f"{one.name} ({one.past})" for one in past))
    if below:
        named = [f"{one.name} (up to {one.most} at once, {one.refused or 'none'} refused)" for one in below]
        lines.append(
            f"not taken past its capacity: {', '.join(named)}: {_more(run)} to know it, or leave it: nothing "
            f"above {'that' if len(below) > 1 else f'{below[0].most} calls at once'} can be predicted"
        )
    if few:
        named = [f"{one.name} ({one.calls})" for one in few]
        lines.append(
            f"too few calls to know anything of it: {', '.join(named)}: {FEWEST} are needed; a longer "
            "--duration has them"
        )
    return lines or ["no tool was called: there is nothing of their servers to predict from"]


def seen(records: Iterable[LoopRecord]) -> list[Seen]:
    """What records show of each server, by name: of an MCP server, else of the tool itself."""
    servers: dict[str, _Server] = {}
    for record in records:
        for call in record.tool_calls:
            name = f"{call.server}{ALL_TOOLS}" if call.server else call.name
            servers.setdefault(name, _Server()).add(call)
    return [_seen(name, servers[name]) for name in sorted(servers) if servers[name].started]


def _seen(name: str, server: _Server) -> Seen:
    refused = np.array(server.refused, dtype=bool)
    started, ended = (np.array(one, dtype=np.int64) for one in (server.started, server.ended))
    # The call itself counts; refused ones are in nobody's way.
    before = np.searchsorted(np.sort(started[~refused]), started, "right")
    at_once = before - np.searchsorted(np.sort(ended[~refused]), started, "right") + refused
    most = int(at_once.max(initial=0))
    count = int(refused.sum())
    if count >= FEWEST_REFUSED:
        served = int(np.median(at_once[refused])) - 1  # beside the refused call itself
        words = f"refused {count} of {refused.size} calls, with {served} at once"
        return Seen(name, refused.size, most, words, count)
    took = np.array(server.took, dtype=np.float64)
    return Seen(name, refused.size, most, _slower(at_once[~refused], took[~refused]), count)


def _slower(at_once: np.ndarray, took: np.ndarray) -> str | None:
    """How much slower the tenth of the calls with the most others is than the quarter with the fewest."""
    if took.size < FEWEST:
        return None
    low, high = np.quantile(at_once, (0.25, 0.9))
    if high < 2 * low:
        return None  # all under nearly the same load: nothing tells
    alone, crowded = took[at_once <= low], took[at_once >= high]
    middle = float(np.median(alone))
    ratio = float(np.median(crowded)) / max(1.0, middle)
    above = float((crowded > middle).mean()) - 0.5
    if ratio < SLOWER or above < SURELY * 0.5 * (1 / crowded.size + 1 / alone.size) ** 0.5:
        return None
    return f"{ratio:.1f} times as slow with {high:.0f} calls at once as with {low:.0f}"


def _more(run: Run) -> str:
    """What to change so that more calls run at once."""
    if all(spec.limit is not None for spec in run.strategies):
        return "add --strategy gathered, which limits nothing,"
    if run.arguments.get("max_in_flight") is not None:
        return "raise --max-in-flight"
    levels = sorted({trial.users for trial in run.trials} or {run.load.users})
    return f"add a level: --levels {','.join(map(str, [*levels, MORE * levels[-1]]))}"
