"""The matrix as text: a row a dialect, a column a way to run its loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

PROPERTY = "dialect"
"""The name of a test's property: `[api, dialect, {column: mark}]`."""

COLUMNS = {
    "gathered": "ToolLoop, gathered",
    "gathered, streamed": "ToolLoop, gathered, streamed",
    "eager": "ToolLoop, eager (streamed)",
    "lean": "ToolLoop, gathered, without the SDK",
    "lean, streamed": "the same, streamed",
    "lean, eager": "the same, eager (streamed)",
    "watched": "a hand-written loop, watched by Profiler",
    "watched, streamed": "the same, streamed",
    "watched, sync": "the same, with sync clients and tools in a thread",
    "watched, sync, streamed": "the same, streamed",
}
RIGHT, WRONG, NOT_THERE = "✓", "✗", "·"


def lines(rows: Iterable[tuple[str, str, Mapping[str, str]]]) -> Iterator[str]:
    """Rows of (API, dialect, marks by column), in the order to print them in."""
    found = list(rows)
    if not found:
        return
    width = max(len(row) for _, row, _ in found) + 2
    api = ""
    for of, row, marks in found:
        if of != api:
            yield ""
            yield of.ljust(width) + "  ".join(COLUMNS)
            api = of
        yield row.ljust(width) + "  ".join(marks[name].center(len(name)) for name in COLUMNS).rstrip()
    every = [mark for _, _, marks in found for mark in marks.values()]
    yield ""
    yield (
        f"{len(found)} dialects: {every.count(RIGHT)} cells {RIGHT}, {every.count(WRONG)} {WRONG}; "
        f"{NOT_THERE}: it does not come so"
    )
