"""Loops without a load test, in words: as `profiler run` and `with Profiler()` print them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from profiler.records import LoopRecord
from profiler.report import servers
from profiler.report.text import clean, counted, duration, percent
from profiler.report.timeline import causes, render_timeline, wrapped
from profiler.report.unseen import Unseen
from profiler.statistics.servers import ServerCalls

if TYPE_CHECKING:
    from profiler.watch.auto import Found

MOST_DRAWN = 3
"""Loops that are drawn in full: the slowest."""
MOST_LINES = 20
"""Loops that get a line each."""
MOST_NAMED = 20
"""Clients and tools that are named."""

ENOUGH_FOR_P95 = 20
"""With fewer loops the slowest one says more than an estimate of p95 would."""

NOTHING_RECORDED = (
    "no loop was recorded: no request of an OpenAI or Anthropic SDK client was seen. Look for an error "
    "before the first request; code that runs in another process needs `with Profiler():` there; what is "
    "asked with another library than the SDKs cannot be seen"
)


def render_loops(
    records: Sequence[LoopRecord], width: int = 80, color: bool = False, left_out: int = 0
) -> str:
    """The loops in the order in which they began: the slowest drawn in full, of the others a line each.

    What was not seen comes at the end. `left_out`: older loops that were not kept. Empty without loops.
    """
    ordered = sorted(records, key=lambda record: record.started_ns)
    top = [record for record in ordered if not record.nested] or ordered
    lines: list[str] = []
    if len(ordered) > 1 or left_out:
        lines += [*wrapped(several(ordered, left_out), width), ""]
    drawn = {record.id for record in sorted(top, key=lambda record: -record.wall_ns)[:MOST_DRAWN]}
    told = 0
    for number, record in enumerate(ordered, start=1):
        if record.id in drawn:
            if len(ordered) > 1:
                lines += [""] * bool(lines and lines[-1])
                lines.append(f"loop {number}{_titled(record)}, {_at(record, ordered[0])}")
            lines += [render_timeline(record, width, color, notes=False).rstrip("\n"), ""]
        elif told < MOST_LINES:
            told += 1
            lines += wrapped(f"loop {number}{_titled(record)}: {in_a_line(record, ordered[0])}", width)
    untold = len(ordered) - len(drawn) - told
    if untold > 0:
        lines.append(f"and {counted(untold, 'more loop')}")
    for said in servers.lines(ServerCalls.of(ordered).figures()):
        lines += [*([""] if lines and lines[-1] and said.startswith("MCP") else []), *wrapped(said, width)]
    unseen = Unseen.of(ordered).sentences()
    lines += [""] * bool(unseen and lines and lines[-1])
    for sentence in unseen:
        lines += wrapped(f"not seen: {sentence}", width)
    text = "\n".join(lines).strip("\n")
    return f"{text}\n" if text else ""


def look(
    records: Sequence[LoopRecord],
    found: Sequence[Found],
    width: int = 80,
    color: bool = False,
    left_out: int = 0,
) -> str:
    """The loops, what was not seen of them, and what was watched; where there are none, what to do."""
    text = render_loops(records, width, color, left_out)
    lines = [] if records else wrapped(NOTHING_RECORDED, width)
    for said in watched_words(found):
        lines += wrapped(said, width)
    return text + "\n".join([*lines, ""])


def watched_words(found: Sequence[Found]) -> list[str]:
    """`watched: AsyncOpenAI (agent.py:7), get_weather (agent.py:20)`, and a line for each that is not."""
    names = list(dict.fromkeys(clean(str(one)) for one in found if not one.problem))
    lines = []
    if names:
        more = f", and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        lines.append(f"watched: {', '.join(names[:MOST_NAMED])}{more}")
    return lines + list(dict.fromkeys(clean(str(one), 300) for one in found if one.problem))


def several(records: Sequence[LoopRecord], left_out: int = 0) -> str:
    """`12 loops: half took at most 1.20 s, the slowest 3.40 s; 2 failed (http_429 2)`."""
    top = [record for record in records if not record.nested] or list(records)
    walls = [record.wall_ns / 1e9 for record in top]
    stopped = sum(record.status == "cancelled" for record in top)
    said = said_of(walls, sum(record.failed for record in top), failures(top), stopped=stopped)
    inside = len(records) - len(top)
    if inside:
        said += f"; {counted(inside, 'more loop')} ran inside their tool calls"
    if left_out:
        said += f"; these are the newest, {counted(left_out, 'older loop')} {_were(left_out)} not kept"
    return said


def said_of(walls: Sequence[float], failed: int, why: str, p95: float | None = None, stopped: int = 0) -> str:
    """The sentence about several loops, of their wall times in seconds. `p95`, where there are enough.

    `stopped` ones were cancelled, and have not failed.
    """
    if len(walls) == 1:
        said = f"1 loop: {duration(walls[0])}"
    else:
        count = f"{len(walls):,}".replace(",", " ")
        said = f"{count} loops: half took at most {duration(median(walls))}, "
        if p95 is not None and len(walls) >= ENOUGH_FOR_P95:
            said += f"95 % at most {duration(p95)}, "
        said += f"the slowest {duration(max(walls))}"
    if failed:
        said += f"; {failed} failed ({why})" if why else f"; {failed} failed"
    if stopped:
        said += f"; {stopped} {_were(stopped)} cancelled"
    return said


def failures(records: Sequence[LoopRecord], most: int = 3) -> str:
    """`http_429 (get_weather) 2, refused 1`: what the failed loops failed of, the most frequent first."""
    found: Counter[str] = Counter()
    for record in records:
        if not record.failed:
            continue
        if record.status != "ok":
            found[record.error_type or record.status] += 1
        found.update(f"{call.failure} ({call.name})" for call in record.tool_calls if call.failure)
    return ", ".join(f"{clean(what)} {count}" for what, count in found.most_common(most))


def lead(record: LoopRecord) -> str:
    """`1.65 s; most of it (53 %): tools ran (longest: search, 443 ms)`: one loop in a sentence."""
    said = ", ".join(filter(None, (duration(record.wall_ns / 1e9), ended(record, 3))))
    found = causes(record)
    if found and record.wall_ns:
        share = found[0].ns / record.wall_ns
        part = "most of it" if share > 0.5 else "the largest part"
        said += f"; {part} ({percent(share)}): {found[0].words}"
    return said


def in_a_line(record: LoopRecord, first: LoopRecord) -> str:
    """`812 ms, at 1.20 s, 3 requests, 5 calls: 60 % the model (3 requests, slowest 310 ms)`."""
    calls = len(list(record.tool_calls)) + record.unobserved_calls
    parts = [
        duration(record.wall_ns / 1e9),
        ended(record),
        _at(record, first),
        counted(sum(round_.model.asked for round_ in record.rounds), "request"),
        counted(calls, "call"),
    ]
    said = ", ".join(filter(None, parts))
    for cause in causes(record)[:1]:
        share = cause.ns / record.wall_ns if record.wall_ns else 0.0
        said += f": {percent(share)} {cause.words}"
    return said


def ended(record: LoopRecord, most: int = 1) -> str:
    """`failed (http_429)` with at most so many reasons, or `cancelled`; empty for a good loop."""
    if record.failed:
        return f"failed ({failures([record], most)})"
    return "" if record.good else "cancelled"


def _titled(record: LoopRecord) -> str:
    """What tells it apart from its neighbours: its name, or that it is part of another."""
    name = f" {clean(record.name)}" if record.name else ""
    return f"{name} (inside a tool call)" if record.nested else name


def _at(record: LoopRecord, first: LoopRecord) -> str:
    return f"began at {duration((record.started_ns - first.started_ns) / 1e9, 's')}"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"
