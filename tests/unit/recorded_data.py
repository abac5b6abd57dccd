"""A loop of a recording with every kind of call that there can be. Times are in milliseconds."""

from __future__ import annotations

from typing import Any

from profiler.recordings.drafts import CallDraft, LoopDraft, ModelDraft, RoundDraft, Tally, record_of
from profiler.records import LoopRecord

MS = 1_000_000


def drafted(name: str, asked: float | None = None, **times: Any) -> CallDraft:
    """A call; of `times` those that end in `_ns` are milliseconds."""
    scaled = {
        key: int(one * MS) if key.endswith("_ns") and one is not None else one for key, one in times.items()
    }
    asked_ns = None if asked is None else int(asked * MS)
    return CallDraft(name, f"call-{name}", asked_ns, **scaled)


def recorded_loop(**changes: Any) -> LoopRecord:
    """Rounds of a loop that took 1,000 ms.

    0 to 400: the model until 100; `exact` 120 to 320 and `derived` (its own duration: 50) that ended at 300.
    400 to 700: the model until 500, sent twice more; `bound`, which was back at 700, and `exact` 510 to 550.
    700 to 1000: the model until 800; `open` never ended, `refused` was at 850, `exact` ran 810 to 820, and
    `waited` 820 to 830 for what another call had begun.
    """
    fields: dict[str, Any] = {
        "id": "loop-1",
        "source": "otel",
        "started_ns": 0,
        "ended_ns": 1000 * MS,
        "resolution_ns": MS,
        "orphan_calls": 2,
    }
    rounds = [
        RoundDraft(
            ModelDraft("openai", "m", 0, 100 * MS, input_tokens=10, output_tokens=5),
            [
                drafted("exact", started_ns=120, ended_ns=320),
                drafted("derived", 100, ended_ns=300, own_ns=50),
            ],
        ),
        RoundDraft(
            ModelDraft("", "", 400 * MS, 500 * MS, resends=2),
            [drafted("bound", 500, ended_ns=700), drafted("exact", started_ns=510, ended_ns=550)],
        ),
        RoundDraft(
            ModelDraft("", "", 700 * MS, 800 * MS),
            [
                drafted("open", 800, status="cancelled"),
                drafted("refused", 800, ended_ns=850, refused=True, status="cancelled"),
                drafted("exact", started_ns=810, ended_ns=820),
                drafted("waited", started_ns=820, ended_ns=830, wait=True),
            ],
            unobserved=("lost",),
        ),
    ]
    return record_of(LoopDraft(rounds=rounds, **(fields | changes)), Tally())
