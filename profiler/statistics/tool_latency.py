"""How long the calls of a tool took in a recording, and how many of them do not tell. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from profiler.records import ToolCall
from profiler.statistics.samples import Percentiles, Samples

MOST_TICKS = 10
"""Durations of fewer ticks of the clock are not resolved."""


@dataclass(frozen=True, slots=True)
class ToolLatency:
    """The calls of one tool. `latency` is of durations that are none of an upper bound, `derived` of these.

    `upper_bounds`, `never_ended`, `never_started` and `waits` (`ToolCall.wait`) have no latency; `unresolved`
    ones have, of fewer than `MOST_TICKS` ticks. `failed` are those that did not end well.
    """

    name: str
    calls: int
    latency: Percentiles
    derived: int
    unresolved: int
    upper_bounds: int
    never_ended: int
    never_started: int
    waits: int
    failed: int


class Tool:
    """The calls of one tool, as they are counted."""

    __slots__ = (
        "calls",
        "derived",
        "failed",
        "never_ended",
        "never_started",
        "samples",
        "short",
        "upper",
        "waits",
    )

    def __init__(self) -> None:
        self.samples = Samples()
        self.calls = self.derived = self.failed = self.short = 0
        self.never_ended = self.never_started = self.upper = self.waits = 0

    def add(self, call: ToolCall, took: int | None, resolution_ns: int) -> None:
        """A call that took so long, at most; None: it never started, or never ended."""
        self.calls += 1
        if call.status != "ok":
            self.failed += 1
        if took is None:
            if call.started_ns is None:
                self.never_started += 1
            else:
                self.never_ended += 1
        elif call.upper_bound:
            self.upper += 1
        elif call.wait:
            self.waits += 1
        else:
            self.samples.add(took)
            if took < MOST_TICKS * resolution_ns:
                self.short += 1
            if call.derived and ("started_ns" in call.derived or "ended_ns" in call.derived):
                self.derived += 1

    def result(self, name: str) -> ToolLatency:
        return ToolLatency(
            name,
            self.calls,
            Percentiles.of(self.samples),
            self.derived,
            self.short,
            self.upper,
            self.never_ended,
            self.never_started,
            self.waits,
            self.failed,
        )
