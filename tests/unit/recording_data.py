"""Recorded loops made by hand, for tests: times in milliseconds from the loop's start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from profiler.recordings.drafts import CallDraft, LoopDraft, ModelDraft, RoundDraft, Tally, record_of
from profiler.records import LoopRecord, encode
from profiler.rundir import Anchor, Recording, Run, RunDirectory, recorded_run

MS = 1_000_000
ORIGIN = 1_700_000_000_000_000_000


def exact(name: str, started: float, ended: float, **more: Any) -> CallDraft:
    """A call of which both times were seen."""
    return CallDraft(name, name, started_ns=_ns(started), ended_ns=_ns(ended), **more)


def bound(name: str, asked: float, ended: float, **more: Any) -> CallDraft:
    """A call of which only the end was seen: its duration is an upper bound."""
    return CallDraft(name, name, asked_ns=_ns(asked), ended_ns=_ns(ended), **more)


def loop(
    *rounds: Sequence[CallDraft],
    at: float = 0.0,
    source: str = "otel",
    model: float = 100.0,
    until: float | None = None,
    **more: Any,
) -> LoopDraft:
    """A loop whose model requests take `model` ms each; the calls of each round say when they ran."""
    made, begun = [], 0.0
    for calls in rounds:
        request = ModelDraft("openai", "gpt-5", _ns(at + begun), _ns(at + begun + model))
        ends = [(one.ended_ns - ORIGIN) / MS for one in calls if one.ended_ns is not None]
        made.append(RoundDraft(request, [_moved(one, at) for one in calls]))
        begun = max([begun + model, *ends])
    more = {"id": f"loop-{at:g}", "name": "planner", **more}
    ended = at + (begun if until is None else until)
    return LoopDraft(source=source, rounds=made, started_ns=_ns(at), ended_ns=_ns(ended), **more)


def records(*loops: LoopDraft, tally: Tally | None = None) -> list[LoopRecord]:
    return [record_of(one, tally or Tally(), ORIGIN) for one in loops]


def run_of(*loops: LoopDraft, title: str = "traces.jsonl", door: Any = "import", **more: Any) -> Run:
    """The run of these loops; `more` are fields of its `Recording`."""
    tally = Tally()
    records(*loops, tally=tally)
    counts = {name: getattr(tally, name) for name in Tally.__slots__}
    recording = Recording(door, **{**counts, **more})
    return recorded_run(recording, Anchor(ORIGIN, 0), title, finished=True)


def directory_of(path: Any, run: Run, loops: Sequence[LoopRecord]) -> RunDirectory:
    directory = RunDirectory.create(path, run)
    directory.records_path.write_bytes(b"".join(encode(one) + b"\n" for one in loops))
    return directory


def _ns(ms: float) -> int:
    return ORIGIN + round(ms * MS)


def _moved(call: CallDraft, by: float) -> CallDraft:
    seen = {name: getattr(call, name) for name in ("asked_ns", "started_ns", "ended_ns")}
    return replace(call, **{name: at + round(by * MS) for name, at in seen.items() if at is not None})
