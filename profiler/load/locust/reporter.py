"""Finished loops on their way out of the loop's thread: to Locust's statistics and to `records.jsonl`.

The loop's thread only encodes a record and appends it to a deque. A greenlet empties that in
batches: one event for every loop, round, model request and tool call, and the lines to a
`write` function (a file, or a message to the master).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gevent

from profiler.records import LoopRecord, encode

FLUSH_SECONDS = 0.2
"""How long a finished loop waits at most until Locust's statistics show it."""

WRITE_SECONDS = 0.5
"""How long its line waits at most until it is written or sent."""

NAME_LIMIT = 60
"""Characters of a tool's name in a reported name: it may be whatever a model made up."""


class Reported(NamedTuple):
    """One row's worth of a request event. `exception` is a bounded name, None for a success."""

    request_type: str
    name: str
    response_time: float
    exception: str | None


def reported(record: LoopRecord) -> Iterator[Reported]:
    """What Locust is told of a record: types LOOP, ROUND, MODEL and TOOL; times in milliseconds.

    The strategy is part of every name, since Locust knows no other dimension. A call that never
    got through its limiter is reported with the time it waited, a loop inside another's call as its
    rounds, requests and calls alone.
    """
    strategy = record.strategy
    if not record.nested:
        yield Reported("LOOP", strategy, record.latency_ns / 1e6, record.failure)
    for round_ in record.rounds:
        yield Reported(
            "ROUND",
            f"{strategy} · round {round_.index + 1}",
            round_.duration_ns / 1e6,
            round_.failure,
        )
        model = round_.model
        yield Reported(
            "MODEL",
            f"{strategy} · {model.model}",
            model.duration_ns / 1e6,
            model.failure,
        )
        for call in round_.tool_calls:
            name = "unknown tool" if call.error_type == "unknown_tool" else call.name[:NAME_LIMIT]
            yield Reported(
                "TOOL",
                f"{strategy} · {name}",
                (call.ended_ns - call.began_ns) / 1e6,
                call.failure,
            )


class Reporter:
    """Takes records on the loop's thread, hands them on from the hub's."""

    def __init__(self, fire: Callable[..., Any], write: Callable[[bytes, int], None]) -> None:
        """`fire`: Locust's request event; `write(lines, count)` gets whole lines with their newlines."""
        self._fire = fire
        self._write = write
        self._waiting: deque[tuple[LoopRecord, bytes]] = deque()  # appends and pops are atomic
        self._lines: list[bytes] = []
        self._ticks = 0

    def sink(self, record: LoopRecord) -> None:
        """On the loop's thread."""
        self._waiting.append((record, encode(record)))

    def run(self) -> None:
        """A greenlet's life: report what has come, for ever."""
        ticks_per_write = round(WRITE_SECONDS / FLUSH_SECONDS)
        while True:
            gevent.sleep(FLUSH_SECONDS)
            self._report()
            self._ticks += 1
            if self._ticks % ticks_per_write == 0:
                self._hand_over()

    def flush(self) -> None:
        """Report and hand over everything that has come so far."""
        self._report()
        self._hand_over()

    def _report(self) -> None:
        for _ in range(len(self._waiting)):
            record, line = self._waiting.popleft()
            self._lines.append(line)
            for row in reported(record):
                self._fire(
                    request_type=row.request_type,
                    name=row.name,
                    response_time=row.response_time,
                    response_length=0,
                    exception=row.exception,
                    context={},
                )

    def _hand_over(self) -> None:
        if self._lines:
            lines, self._lines = self._lines, []
            self._write(b"\n".join(lines) + b"\n", len(lines))
