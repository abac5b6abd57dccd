"""One loop drawn in the terminal: why it took so long, then a row per model request and tool call."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Literal, get_args

from rich.cells import cell_len, set_cell_size

from profiler.anatomy import loop_phases, model_queue_ns, phases, server_tool_runs, tool_phase
from profiler.records import LoopRecord, ModelCall, RoundRecord, Shortfall, ToolCall
from profiler.report import servers
from profiler.report.text import clean, counted, duration, number, percent
from profiler.report.unseen import Unseen
from profiler.shortfalls import EXPLAINED
from profiler.statistics.servers import ServerCalls
from profiler.strategies import StrategySpec

Kind = Literal["model", "server_tools", "backoff", "wait", "run", "bound", "open", "failed"]

_STYLES: dict[Kind, tuple[str, str, str]] = {
    "model": ("model", "▓", "36"),
    "server_tools": ("server tool", "▒", "34"),
    "backoff": ("backoff", "·", "33"),
    "wait": ("queued", "░", "2"),
    "run": ("running", "█", "32"),
    "bound": ("waiting or running", "▄", "32"),
    "open": ("no end seen", "╌", "2"),
    "failed": ("failed", "▚", "31"),
}
"""In the order of the legend: word, symbol, and the terminal's code for the colour."""

_NARROWEST_BAR = 10
"""Columns; where there is room for fewer, no bars are drawn."""
_HEADLINES = 3
MOST_ROWS = 200
"""Model requests and tool calls that are drawn of a loop: the first ones."""


@dataclass(frozen=True, slots=True)
class _Span:
    kind: Kind
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Row:
    label: str
    spans: tuple[_Span, ...]
    note: str


def render_timeline(record: LoopRecord, width: int = 80, color: bool = False, notes: bool = True) -> str:
    """The timeline of one loop, at most `width` columns wide.

    The first three lines say in words where the time went, the largest part first. Then follow a row
    per model request and tool call on one time axis, the phases, and with `notes` what was not seen.
    """
    width = max(width, 20)
    lines = [*_headlines(record, width), "", *_chart(record, width, color), ""]
    lines += _decomposition(record, width)
    if notes:
        for said in servers.lines(ServerCalls.of([record]).figures()):
            lines += wrapped(said, width)
        for sentence in Unseen.of([record]).sentences():
            lines += wrapped(f"note: {sentence}", width)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _headlines(record: LoopRecord, width: int) -> list[str]:
    wall = record.wall_ns
    head = f"{duration(wall / 1e9)}: "
    if record.status != "ok":
        head += f"{record.status} ({clean(record.error_type or 'unknown')}). "
    lines = []
    for place, cause in enumerate(causes(record)[:_HEADLINES]):
        share = cause.ns / wall if wall else 0.0
        if place and share < 0.01:
            break
        remedy = f"; {cause.remedy}" if cause.remedy and share >= 0.1 else ""
        line = f"{duration(cause.ns / 1e9)} ({percent(share)}) {cause.words}{remedy}"
        lines.append((head if place == 0 else " " * len(head)) + line)
    if not lines:
        return [head.rstrip(": ")]
    return [part for line in lines for part in wrapped(line, width)]


def wrapped(line: str, width: int) -> list[str]:
    """The lines of a text; those after the first are indented as that one is."""
    indent = " " * min(len(line) - len(line.lstrip()), width // 4)
    return textwrap.wrap(
        line.strip(), width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _chart(record: LoopRecord, width: int, color: bool) -> list[str]:
    rows = list(_rows(record))
    notes = max((len(row.note) for row in rows), default=0)
    labels = min(max((cell_len(row.label) for row in rows), default=0), max(8, width // 3))
    bar = width - labels - notes - 2
    if bar < _NARROWEST_BAR:
        return [
            f"{_fit(row.label, max(1, width - notes - 1))} {row.note:>{notes}}" for row in rows[:MOST_ROWS]
        ]
    lines = [f"{'':{labels}} {_axis(record.wall_ns / 1e9, bar)}"]
    for row in rows[:MOST_ROWS]:
        drawn = _draw(row.spans, record.started_ns, record.ended_ns, bar, color)
        lines.append(f"{_fit(row.label, labels)} {drawn} {row.note:>{notes}}")
    if len(rows) > MOST_ROWS:
        lines.append(f"{len(rows) - MOST_ROWS} more rows are not drawn")
    lines += ["", *wrapped(_legend(rows), width)]
    return lines


def _rows(record: LoopRecord) -> Iterator[_Row]:
    for round_ in record.rounds:
        model = round_.model
        label = f"model {round_.index + 1}"
        ended = model.status if model.status != "error" else clean(model.error_type or "error", 16)
        if model.asked:
            yield _Row(label, tuple(_model_spans(model)), _note(model.latency_ns, ended))
        for call in round_.tool_calls:
            yield _Row("  " + clean(call.name), tuple(_call_spans(call)), _call_note(call))


def _note(ns: int | None, status: str, most: str = "") -> str:
    took = "not recorded" if ns is None else f"{most}{duration(ns / 1e9)}"
    return took if status == "ok" else f"{status} {took}"


def _call_note(call: ToolCall) -> str:
    if call.untimed == "never_ended":
        return _STYLES["open"][0]
    if call.untimed == "never_started" and call.waited_ns is None:
        return f"{call.status}, never started"
    return _note(call.ended_ns - call.began_ns, call.status, "≤ " if call.upper_bound else "")


def _model_spans(model: ModelCall) -> Iterator[_Span]:
    yield _Span("model" if model.status == "ok" else "failed", model.started_ns, model.ended_ns)
    for start, end in server_tool_runs(model):
        yield _Span("server_tools", max(start, model.started_ns), min(end, model.ended_ns))
    yield _Span("wait", model.started_ns, model.started_ns + model_queue_ns(model))
    for before, after in pairwise(model.attempts):
        yield _Span("backoff", before.ended_ns, after.started_ns)


def _call_spans(call: ToolCall) -> Iterator[_Span]:
    if call.waited_ns is not None:
        yield _Span("wait", call.queued_ns, call.waited_until_ns)
    if call.started_ns is None:
        return
    kind: Kind = "run" if call.status == "ok" else "failed"
    if call.untimed is not None:
        kind = "open" if call.untimed == "never_ended" else "bound" if kind == "run" else kind
    yield _Span(kind, call.started_ns, call.ended_ns)


def _draw(spans: tuple[_Span, ...], start: int, end: int, width: int, color: bool) -> str:
    """The bar of one row; a later span covers an earlier one, and one that took any time gets a cell."""
    cells: list[Kind | None] = [None] * width
    scale = width / max(1, end - start)
    for span in spans:
        if span.end <= span.start:
            continue
        first = min(width - 1, max(0, round((span.start - start) * scale)))
        last = min(width, max(first + 1, round((span.end - start) * scale)))
        if span.kind == "wait" and (span.end - span.start) * scale < 0.5:
            continue  # in a whole cell so short a wait would look long
        for cell in range(first, last):
            cells[cell] = span.kind
    drawn = []
    for kind, group in groupby(cells):
        text = (_STYLES[kind][1] if kind else " ") * len(list(group))
        drawn.append(f"\x1b[{_STYLES[kind][2]}m{text}\x1b[0m" if color and kind else text)
    return "".join(drawn)


def _axis(seconds: float, width: int) -> str:
    """`0 s ... end`, with the middle named when there is room."""
    unit = "s" if seconds >= 0.9995 else "ms"
    left, right = f"0 {unit}", duration(seconds, unit)
    line = left + " " * max(1, width - len(left) - len(right)) + right
    middle = duration(seconds / 2, unit)
    at = width // 2 - len(middle) // 2
    if at > len(left) + 2 and at + len(middle) + 2 < width - len(right):
        line = line[:at] + middle + line[at + len(middle) :]
    return line


def _legend(rows: list[_Row]) -> str:
    shown = {span.kind for row in rows for span in row.spans if span.end > span.start}
    return "   ".join(f"{style[1]} {style[0]}" for kind, style in _STYLES.items() if kind in shown)


def _decomposition(record: LoopRecord, width: int) -> list[str]:
    wall = record.wall_ns
    names = {"unaccounted": NOT_EXPLAINED} if record.source else {}
    if any(call.untimed == "upper_bound" for call in record.tool_calls):
        names["tools"] = "tools, or waits before them"
    parts = [
        f"{names.get(name, name.replace('_', ' '))} {duration(ns / 1e9)} ({percent(ns / (wall or 1))})"
        for name, ns in loop_phases(record).items()
        if ns or name == "unaccounted"
    ]
    lines = wrapped(f"{duration(wall / 1e9)} = {' + '.join(parts)}", width)
    every = [tool_phase(round_) for round_ in record.rounds]
    phases = [phase for phase in every if phase is not None and not phase.upper_bound]
    bounded = [r for r, phase in zip(record.rounds, every, strict=True) if phase and phase.upper_bound]
    if phases:
        calls = sum(len(r.tool_calls) for r in record.rounds if r not in bounded)
        walls = sum(phase.wall_ns for phase in phases)
        work = sum(phase.work_ns for phase in phases)
        critical = sum(phase.critical_path_ns for phase in phases)
        lines += wrapped(
            f"{counted(calls, 'tool call')} "
            f"in {len(phases)} of {len(record.rounds)} rounds: "
            f"{duration(work / 1e9)} of work in {duration(walls / 1e9)} "
            f"(speed-up {number(work / walls if walls else None)}, "
            f"efficiency {percent(critical / walls if walls else None)}, "
            f"at most {max(phase.peak_concurrency for phase in phases)} at once)",
            width,
        )
    if bounded:
        lines += wrapped(
            f"{counted(len(bounded), 'round')} with calls of which only an upper bound is known (≤): how "
            "they overlapped is not known",
            width,
        )
    return lines


def _fit(text: str, width: int) -> str:
    """The text in exactly so many columns; a character may take two, as Chinese ones do."""
    return set_cell_size(text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…", width)


# Why a loop took as long as it did: its wall time split by cause, the largest first.
#
# The phases of `anatomy` say what was going on at each instant; a call that waits in a limiter while its
# siblings run is `tools` there. Causes answer another question: what would have to change. The time by
# which waiting calls prolonged a tool phase is
#
#     max(wait_i + d_i) - max(d_i)
#
# over the calls of a round, and belongs to the limiter, whichever call held it. The causes sum to the
# wall time.

NOT_EXPLAINED = "not explained by the recording"
"""The rest of a loop that a recording was turned into: launches, approvals, locks and waits are not in it."""

FELT_NS = 1_000_000
"""Shorter waits of model requests are not counted."""

CauseKind = Literal["model", "server_tools", "model_limiter", "backoff", "tools", "rest"] | Shortfall

_INSIDE: frozenset[CauseKind | None] = frozenset({"inside_tools", "mcp_session", "mcp_server"})
"""Shortfalls that are waits after the start of a call."""

_KINDS: tuple[CauseKind, ...] = (
    *("model", "server_tools", "model_limiter", "backoff"),
    *get_args(Shortfall),
    *("tools", "rest"),
)


@dataclass(frozen=True, slots=True)
class Cause:
    """A part of a loop's wall time: `words` name what took it, `remedy` what to do about it, if anything."""

    kind: CauseKind
    ns: int
    words: str
    remedy: str = ""


def causes(record: LoopRecord) -> list[Cause]:
    """The causes of a loop's wall time, the largest first; those that took none are left out."""
    totals: dict[CauseKind, int] = dict.fromkeys(_KINDS, 0)
    # Of the loop, not of its rounds: those may overlap.
    parts = loop_phases(record)
    totals["model"] = parts["model"]
    totals["server_tools"] = parts["server_tools"]
    totals["model_limiter"] = parts["model_queue"]
    totals["backoff"] = parts["backoff"]
    left = parts["tools"] + parts["queue"]
    for round_ in record.rounds:
        limiter, threads, inside = _prolonged(round_)
        # Calls may overlap the model: the part of a wait that the model covers is the model's.
        own = phases(round_)
        tool_wall = min(left, own["tools"] + own["queue"])
        limiter = min(limiter, tool_wall)
        threads = min(threads, tool_wall - limiter)
        inside = min(inside, tool_wall - limiter - threads)
        # A tool that holds the event loop keeps its siblings waiting, with or without a limiter.
        reason = round_.shortfall
        if reason in _INSIDE or (reason == "threads" and threads):
            reason = None  # which are waits after the start
        totals[reason or "limiter"] += limiter
        totals["threads"] += threads
        if inside and round_.shortfall is not None:
            totals[round_.shortfall] += inside
        left -= limiter + threads + inside
    totals["tools"] = left
    totals["rest"] = record.wall_ns - sum(totals.values())
    found = [Cause(kind, ns, *_words(kind, record)) for kind, ns in totals.items() if ns > 0]
    return sorted(found, key=lambda cause: -cause.ns)


_OF_SEVERAL: dict[CauseKind, str] = {
    "model": "the model",
    "server_tools": "the model's server ran tools of its own",
    "model_limiter": "model requests waited in the model's limiter",
    "backoff": "backoff before retries of model requests",
    "tools": "tools ran",
}


def of_several(kind: CauseKind, words: str) -> str:
    """What a cause is in several loops, of which `words` are those of one."""
    if kind in EXPLAINED and kind != "limiter":  # of which the strategy is a part
        return EXPLAINED[kind].words
    return _OF_SEVERAL.get(kind, words)


def _prolonged(round_: RoundRecord) -> tuple[int, int, int]:
    """Nanoseconds by which waits to start, waits for a thread and waits inside a tool prolonged the phase."""
    calls = [call for call in round_.tool_calls if not call.nested]
    if any(call.waited_ns is None for call in calls):
        return 0, 0, 0  # a recording's: why its calls started when they did is not in it
    ran = [(ns, call.thread_wait_ns) for call in calls if (ns := call.duration_ns) is not None]
    running = max((ns for ns, _ in ran), default=0)
    works = [ns - thread_wait for ns, thread_wait in ran]
    working = max(works, default=0)
    waited = max((call.ended_ns - call.queued_ns for call in calls), default=0) - running
    inside = working - min(works) if works and round_.shortfall in _INSIDE else 0
    return waited, running - working, inside


def _words(kind: CauseKind, record: LoopRecord) -> tuple[str, str]:
    """(what took the time, what to do about it, or "")."""
    if kind == "model":
        slowest = max((r.model.latency_ns or 0) - model_queue_ns(r.model) for r in record.rounds)
        count = sum(round_.model.asked for round_ in record.rounds)
        more = f", slowest {duration(slowest / 1e9)}" if count > 1 else ""
        return f"the model ({counted(count, 'request')}{more})", ""
    if kind == "server_tools":
        ran = [one for round_ in record.rounds for one in round_.model.server_tools if one.ended_ns]
        names = ", ".join(clean(name, 24) for name in dict.fromkeys(one.name for one in ran[:3]))
        return f"the model's server ran tools of its own ({names})", ""
    if kind == "model_limiter":
        count = sum(model_queue_ns(round_.model) > FELT_NS for round_ in record.rounds) or 1
        words = f"{counted(count, 'model request')} waited in the model's limiter"
        return words, "raise it, if the quota allows more"
    if kind == "backoff":
        retries = sum(max(0, len(round_.model.attempts) - 1) for round_ in record.rounds)
        words = f"backoff before {counted(retries, 'retry')} of model requests"
        return words, _before_backoff(record)
    if kind == "tools":
        longest = max(record.tool_calls, key=lambda call: call.duration_ns or -1, default=None)
        if longest is None or longest.duration_ns is None:
            return "tool calls", ""
        bounded = any(call.untimed == "upper_bound" for call in record.tool_calls)
        how = ", or waited to" if bounded else ""
        took = ("≤ " if longest.upper_bound else "") + duration(longest.duration_ns / 1e9)
        return f"tools ran{how} (longest: {clean(longest.name, 24)}, {took})", ""
    if kind == "rest":
        return NOT_EXPLAINED if record.source else "parsing, collecting and the rest", ""
    return _shortfall_words(kind, record)


def _before_backoff(record: LoopRecord) -> str:
    """What to do about what the retried tries ended with most often."""
    tries = [one for round_ in record.rounds for one in round_.model.attempts[:-1]]
    refused = sum(one.refused for one in tries)
    if refused * 2 >= len(tries) and record.source:
        return "keep to the model's rate limit"
    if refused * 2 >= len(tries):
        return "keep to the model's rate limit (--model-limit), or lower the load"
    reason, count = Counter(one.reason for one in tries).most_common(1)[0]
    what = f"{reason} {count} times" if count > 1 else reason
    return f"{what}: look at {'the server' if reason.isdigit() or reason == 'timeout' else 'the connection'}"


def _shortfall_words(kind: Shortfall, record: LoopRecord) -> tuple[str, str]:
    if kind == "limiter":
        return _limiter_words(record.strategy)
    words, remedy = EXPLAINED[kind]
    worst = max(record.tool_calls, key=lambda call: call.blocking_ns)
    if kind == "blocked_loop" and worst.blocking_ns:
        held = f"{clean(worst.name, 24)} held the event loop ({duration(worst.blocking_ns / 1e9)})"
        return f"calls waited while {held}", "make it await"
    rounds = [round_ for round_ in record.rounds if round_.shortfall == kind]
    if kind == "threads" and rounds and rounds[0].pool_threads is not None:
        words += f": a pool of {rounds[0].pool_threads} ran {counted(len(rounds[0].tool_calls), 'call')}"
    if kind in ("application_limit", "openai_runner"):
        at_once = max((phase.peak_concurrency for phase in map(tool_phase, rounds) if phase), default=1)
        words += f": at most {at_once} at once"
    return words, remedy


def _limiter_words(strategy: str) -> tuple[str, str]:
    spec = StrategySpec.recorded(strategy)
    if spec.kind == "sequential":
        return f"calls ran one after another ({clean(strategy)})", "try gathered"
    if spec.kind in ("gathered", "own") or strategy == "application":  # they have no limiter
        return "calls waited to be started", ""
    return f"calls waited in the limiter {clean(spec.base)}", "raise the limit"
