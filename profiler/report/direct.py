"""The end of `profiler mcp load`: the verdict in words, then a table of the tools under each load."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from profiler.records import CLIENT_LIMIT
from profiler.report.servers import findings
from profiler.report.text import clean, counted, duration, number, percent
from profiler.rundir import DRAWN_ARGUMENTS, Run, RunDirectory
from profiler.statistics.caveats import Caveat
from profiler.statistics.direct import DirectLoad, ToolLoad
from profiler.statistics.faults import busiest
from profiler.statistics.gates import Outcome
from profiler.statistics.quantiles import LEVELS, Estimate
from profiler.statistics.summary import Summary

REFUSING_SHARE = 0.01
"""The share of calls from which on a server is said to refuse a load, and not just a call of it."""

WRONG_ARGUMENTS = ("tool_error", "rpc_-32602")
REFUSED_ARGUMENTS = 0.5
"""The share of calls answered with an error from which on their arguments are suspected."""

NAME_WIDTH = 28

_OWN_WORDS = frozenset(
    (
        "warm_up",
        "no_steady_state",
        "nothing_completed",
        "loops_cut",
        "arrivals_dropped",
        "short_window",
        "thin_blocks",
        "slow_changes",
    )
)
"""Caveats about figures that are not shown here, or that these say in their own words."""


NAME = "calls"
"""What the only strategy of such a load is called."""

_WORDS = (
    (re.compile(r"\bgood loops/s"), "calls/s"),
    (re.compile(r"\b(?<![Ee]vent[ -])\bloop lag\b"), "event-loop lag"),
    (re.compile(r"(?<![Ee]vent[ -])\b([Ll])oop(s?)\b"), lambda m: f"{'C' if m[1] == 'L' else 'c'}all{m[2]}"),
    (re.compile(r"\bgathered \((\d+) agents\)"), r"a load of \1"),
    (re.compile(r"\bgathered\b"), NAME),
)


def in_calls(words: str) -> str:
    """Words about loops of a strategy as words about calls: a loop is one call here.

    >>> in_calls("gathered: 12 loops started late, the event loop was busy")
    'calls: 12 calls started late, the event loop was busy'
    """
    for pattern, instead in _WORDS:
        words = pattern.sub(instead, words)
    return words


def verdict(load: DirectLoad, server: str) -> str:
    """What one load showed, in a sentence.

    >>> # cannot serve: search cannot serve 80/s: it answered 40/s, the backlog grew to 412 calls / 10.3 s
    """
    if not load.calls + load.unstarted:
        return "nothing was measured: no call began and ended in the time that it was given"
    rate = f"{number(load.served.value)}/s"
    failures = _failures(load.failures)
    if not load.served.value and load.failed + load.cut + load.unstarted:
        asked = (
            f"{number(load.rate)}/s" if load.rate is not None else counted(load.users, "call") + " at once"
        )
        why = failures or f"{counted(load.cut + load.unstarted, 'call')} never ended"
        return f"cannot serve: of {asked} {server} served none: {why}"
    if load.unserved:
        grew = f"the backlog grew to {counted(load.waiting, 'call')} / {number(load.waiting_seconds)} s"
        words = f"cannot serve: {server} cannot serve {number(load.rate)}/s: it answered {rate}, {grew}"
        if load.cut or load.unstarted:
            words += f", {load.cut + load.unstarted} of which never ended"
        return words + (f"; of the others failed: {failures}" if failures else "")
    what = f"{number(load.rate)}/s" if load.rate is not None else f"{counted(load.users, 'call')} at once"
    if load.refused > REFUSING_SHARE * max(1, load.calls):
        share = percent(load.refused / max(1, load.calls))
        head = "cannot serve: " if load.rate is not None else ""
        cannot = "cannot serve" if load.rate is not None else "does not take"
        took = f", {load.accepted} at once at most"
        return f"{head}{server} {cannot} {what}: it answered {rate}{took}, and refused {share} ({failures})"
    p95 = _interval(load.seconds.p95, "p95" in load.at_least)
    if load.rate is not None:
        words = f"{server} serves {what}: p95 {p95} from when calls were due"
    else:
        words = f"{server} answers {rate} with {what}: p95 {p95}"
    if load.cut or load.unstarted:
        words += f"; {counted(load.cut + load.unstarted, 'call')} never ended"
    return words + (f"; {percent(load.failure_share)} failed: {failures}" if failures else "; none failed")


def headline(loads: Sequence[DirectLoad], server: str) -> list[str]:
    """The verdicts of all loads, that of the highest first; then which was the highest that was served."""
    if not loads:
        return ["nothing was measured"]
    lines = [verdict(loads[-1], server)]
    lines += [verdict(one, server) for one in reversed(loads[:-1])]
    return lines


def ours(loads: Sequence[DirectLoad]) -> list[str]:
    """What of the failures is this machine's fault, before anything else."""
    lost = sum(load.failures.get(CLIENT_LIMIT, 0) for load in loads)
    if not lost:
        return []
    return [
        f"INVALID: for {counted(lost, 'call')} this machine had no connection left (open files, or ports), "
        "which is no fault of the server's; allow more (ulimit -n), or load it less"
    ]


def what_to_do(loads: Sequence[DirectLoad], run: Run) -> list[str]:
    """About failures: what to change where arguments are at fault, and what a closed load made of them."""
    lines = []
    calls = sum(load.calls for load in loads)
    wrong = sum(load.failures.get(kind, 0) for load in loads for kind in WRONG_ARGUMENTS)
    if wrong > REFUSED_ARGUMENTS * calls and run.arguments.get(DRAWN_ARGUMENTS):
        lines.append(
            f"{wrong} of {counted(calls, 'call')} were answered with an error; their arguments were drawn "
            "from the schemas, which many servers refuse: give real ones with --call TOOL --args '{…}', or "
            "with --args-from FILE"
        )
    unanswered = sum(
        count
        for load in loads
        if load.rate is None
        for kind, count in load.failures.items()
        if not (kind == "tool_error" or kind.startswith("rpc_"))
    )
    if unanswered:
        lines.append(
            f"after a call that was refused or not answered ({unanswered} were) its caller paused for 0.1 s, "
            "longer where it happened again: with --arrivals nobody waits"
        )
    return lines


def render_direct(
    loads: Sequence[DirectLoad], summary: Summary, run: Run, server: str, path: str | None = None
) -> str:
    """The end of a load as text: what makes it invalid, the verdicts, each tool's figures, the notes."""
    lines = [in_calls(one.sentence) for one in summary.warnings if one.leads]
    lines += ours(loads)
    lines += headline(loads, server)
    lines += what_to_do(loads, run)
    lines += findings(summary.servers)
    lines += _asked(summary.outcomes)
    for load in loads:
        lines.append("")
        if len(loads) > 1:
            lines.append(load_said(load))
        lines += table(load)
        lines += [line for tool in load.tools if (line := parts(tool))]
    lines.append("")
    if any(load.at_least for load in loads):
        lines.append("≥: calls that never ended are in it with the time that they had")
    if any(load.failed for load in loads):
        lines.append("times are of calls that ended well: failed ones are only counted")
    lines += _notes(summary.warnings)
    lines.append(_what(loads, run, summary))
    lines += _client(run)
    text = "\n".join(clean(line, 400) for line in lines) + "\n"
    return text if path is None else f"{text}{clean(path, 4096)}\n"


def render_directory(directory: RunDirectory, summary: Summary) -> str:
    """The end of a recorded load as text."""
    run = directory.load()
    return render_direct(summary.loads, summary, run, server_of(run), str(directory.path))


def server_of(run: Run) -> str:
    """The name of the server that was loaded."""
    return next((one.name for one in run.mcp_servers), run.scenario)


COLUMNS = ("tool", "calls", "failed", *LEVELS)


def rows(load: DirectLoad) -> list[tuple[str, ...]]:
    """The cells of `COLUMNS` for each tool: quantiles are from the intended start, with their intervals."""
    return [
        (
            clean(one.tool, NAME_WIDTH),
            str(one.calls),
            str(one.failed + one.cut),
            *(_interval(one.seconds[name], name in one.at_least) for name in LEVELS),
        )
        for one in load.tools
    ]


def table(load: DirectLoad) -> list[str]:
    """The same as lines of text, and how calls failed."""
    return [*_aligned([COLUMNS, *rows(load)]), *failed(load.tools)]


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def failed(tools: Sequence[ToolLoad]) -> list[str]:
    """`search failed: tool_error 3` for each tool of which calls failed."""
    lines = []
    for one in tools:
        said = _failures({**one.failures, **({"never ended": one.cut} if one.cut else {})})
        if said:
            lines.append(f"{clean(one.tool, NAME_WIDTH)} failed: {said}")
    return lines


def parts(tool: ToolLoad) -> str | None:
    """`search, p50 of its parts: to start 0.10 ms, client 0.21 ms, server 200 ms, …`; None without any."""
    if not tool.parts:
        return None
    each = ", ".join(f"{name} {duration(value)}" for name, value in tool.parts.items())
    return f"{clean(tool.tool, NAME_WIDTH)}, medians of its parts: {each}"


def _interval(found: Estimate, at_least: bool = False) -> str:
    if found.value is None:
        return "–"
    value = duration(found.value)
    if at_least:
        return f"≥ {value}"
    if found.low is None or found.high is None:
        return value
    unit = value.rpartition(" ")[2]
    low, high = (duration(one, unit).rpartition(" ")[0] for one in (found.low, found.high))
    return f"{value} [{low}, {high}]"


def _failures(counts: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in counts.items())


def load_said(load: DirectLoad) -> str:
    """`40/s`, `16 calls at once`."""
    return f"{number(load.rate)}/s" if load.rate is not None else counted(load.users, "call") + " at once"


def _asked(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """What was asked of the load, and whether it holds."""
    for one in outcomes:
        if one.kind in ("gate", "objective"):
            yield in_calls(one.sentence)


def _notes(caveats: Sequence[Caveat]) -> Iterator[str]:
    for caveat in caveats:
        if not caveat.leads and caveat.kind not in _OWN_WORDS:
            yield in_calls(caveat.sentence)


def _what(loads: Sequence[DirectLoad], run: Run, summary: Summary) -> str:
    calls = sum(load.calls for load in loads)
    blocks = len({trial.block for trial in run.trials})
    how = f"open load, {clean(run.load.arrivals)}" if run.load.arrivals else "closed load"
    text = f"{how}; {counted(calls, 'call')} in {counted(blocks, 'block')}"
    if run.load.arrivals and blocks == 1:
        text += ", without a pause, and so without intervals (--blocks 5 for those, each from an empty queue)"
    return text if summary.finished else f"{text}; the run was cut short"


def _client(run: Run) -> list[str]:
    """How the client fared at its worst, and what it can do alone."""
    lags = [health.loop_lag_p99 for health in run.client if health.loop_lag_p99 is not None]
    late = [health.schedule_lag_p99 for health in run.client if health.schedule_lag_p99 is not None]
    said = [f"event-loop lag p99 {duration(max(lags))}"] if lags else []
    said += [f"schedule lag p99 {duration(max(late))}"] if late else []
    said += [f"{name} CPU {percent(share)}" for name, share in busiest(run, "client").items()]
    lines = [f"this client, at worst: {', '.join(said)}"] if said else []
    if run.capacity is not None:
        lines.append(
            f"this client alone, on a server without latency: {number(run.capacity.requests_per_second)} "
            f"calls/s with {run.capacity.agents} at once, {duration(run.capacity.seconds)} for a lone call"
        )
    return lines
