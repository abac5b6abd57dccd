"""Why a loop took as long as it did: its wall time split by cause, the largest first.

The phases of `anatomy` say what was going on at each instant; a call that waits in a limiter
while its siblings run is `tools` there. Causes answer another question: what would have to change.
The time by which waiting calls prolonged a tool phase is

    max(wait_i + d_i) - max(d_i)

over the calls of a round, and belongs to the limiter, whoever held it. Causes sum to the wall time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from profiler.anatomy import model_queue_ns, phases
from profiler.records import LoopRecord, RoundRecord, Shortfall
from profiler.report.text import clean, duration

FELT_NS = 1_000_000
"""A wait shorter than this is none."""

CauseKind = Literal[
    "model", "model_limiter", "backoff", "limiter", "blocked", "application", "threads", "tools", "rest"
]

_WAITED: dict[Shortfall | None, CauseKind] = {"blocked_loop": "blocked", "application": "application"}
"""What calls waited for before they started, where it was no limiter."""


@dataclass(frozen=True, slots=True)
class Cause:
    """A part of a loop's wall time. `words` name what took it, `remedy` what to do about it, or ""."""

    kind: CauseKind
    ns: int
    words: str
    remedy: str = ""


def causes(record: LoopRecord) -> list[Cause]:
    """The causes of a loop's wall time, the largest first; those that took none are left out."""
    kinds: tuple[CauseKind, ...] = (
        *("model", "model_limiter", "backoff", "limiter", "blocked", "application", "threads", "tools"),
    )
    totals = dict.fromkeys(kinds, 0)
    for round_ in record.rounds:
        parts = phases(round_)
        totals["model"] += parts["model"]
        totals["model_limiter"] += parts["model_queue"]
        totals["backoff"] += parts["backoff"]
        limiter, threads = _prolonged(round_)
        # Eager calls overlap the model; what the model already covers is not theirs.
        tool_wall = parts["tools"] + parts["queue"]
        limiter = min(limiter, tool_wall)
        threads = min(threads, tool_wall - limiter)
        # A tool that holds the event loop keeps its siblings waiting, limiter or not.
        totals[_WAITED.get(round_.shortfall, "limiter")] += limiter
        totals["threads"] += threads
        totals["tools"] += tool_wall - limiter - threads
    totals["rest"] = record.ended_ns - record.started_ns - sum(totals.values())
    found = [_describe(kind, ns, record) for kind, ns in totals.items() if ns > 0]
    return sorted(found, key=lambda cause: -cause.ns)


def _prolonged(round_: RoundRecord) -> tuple[int, int]:
    """Nanoseconds by which (waits in the limiter, waits for a thread) prolonged the tool phase."""
    calls = [call for call in round_.tool_calls if call.started_ns is not None]
    never = [call.ended_ns - call.queued_ns for call in round_.tool_calls if call.started_ns is None]
    spans = [call.ended_ns - call.queued_ns for call in calls]
    runs = [call.ended_ns - (call.started_ns or 0) for call in calls]
    works = [run - call.thread_wait_ns for run, call in zip(runs, calls, strict=True)]
    longest = max([*spans, *never], default=0)
    running = max(runs, default=0)
    return longest - running, running - max(works, default=0)


def _describe(kind: CauseKind, ns: int, record: LoopRecord) -> Cause:
    strategy = clean(record.strategy)
    if kind == "model":
        count = len(record.rounds)
        slowest = max(
            model.ended_ns - model.started_ns - model_queue_ns(model)
            for model in (round_.model for round_ in record.rounds)
        )
        words = f"the model ({count} {_plural('request', count)}"
        return Cause(kind, ns, words + (f", slowest {duration(slowest / 1e9)})" if count > 1 else ")"))
    if kind == "model_limiter":
        count = sum(model_queue_ns(round_.model) > FELT_NS for round_ in record.rounds) or 1
        words = f"{count} model {_plural('request', count)} waited in the model's limiter"
        return Cause(kind, ns, words, "raise it, if the quota allows more")
    if kind == "backoff":
        retries = sum(max(0, len(round_.model.attempts) - 1) for round_ in record.rounds)
        words = f"backoff before {retries} {_plural('retry', retries)} of model requests"
        return Cause(kind, ns, words, "lower the load, or limit its rate")
    if kind == "limiter":
        if record.strategy == "sequential":
            return Cause(kind, ns, f"calls ran one after another ({strategy})", "try gathered")
        if record.strategy in ("gathered", "eager", "eager:all", "application"):  # no limiter
            return Cause(kind, ns, "calls waited to be started")
        return Cause(kind, ns, f"calls waited in the limiter {strategy}", "raise the limit")
    if kind == "blocked":
        worst = max(record.tool_calls, key=lambda call: call.blocking_ns, default=None)
        if worst is None or not worst.blocking_ns:
            return Cause(kind, ns, "calls waited while something held the event loop", "find what blocks it")
        held = f"{clean(worst.name, 24)} held the event loop ({duration(worst.blocking_ns / 1e9)})"
        return Cause(kind, ns, f"calls waited while {held}", "make it await")
    if kind == "application":
        return Cause(kind, ns, "calls waited until the loop's own code started them", "try asyncio.gather")
    if kind == "threads":
        return Cause(kind, ns, "calls of sync tools waited for a thread", "make them async")
    if kind == "tools":
        calls = [call for call in record.tool_calls if call.started_ns is not None]
        slowest_call = max(calls, key=lambda call: call.ended_ns - (call.started_ns or 0), default=None)
        if slowest_call is None:
            return Cause(kind, ns, "tool calls")
        took = duration((slowest_call.ended_ns - (slowest_call.started_ns or 0)) / 1e9)
        return Cause(kind, ns, f"tools ran (longest: {clean(slowest_call.name, 24)}, {took})")
    return Cause(kind, ns, "parsing, collecting and the rest")


def _plural(word: str, count: int) -> str:
    if count == 1:
        return word
    return word[:-1] + "ies" if word.endswith("y") else word + "s"
