"""Candidates, answers and loops of a search, with known figures. Nothing runs."""

from __future__ import annotations

from profiler.records import LoopRecord, ModelCall, RoundRecord, ToolCall
from profiler.statistics.comparison import Ratio
from profiler.statistics.quantiles import Estimate
from profiler.tune.answer import Answer, choose
from profiler.tune.candidates import Candidate, shape
from profiler.tune.dial import Dial

S = 1_000_000_000


def scored(
    spec: str, score: float | None, ratio: float | None = None, shown: bool = False, width: float = 0.05
) -> Candidate:
    """A candidate whose intervals are ± `width` of its score."""
    estimate = Estimate(None) if score is None else Estimate(score, score * (1 - width), score * (1 + width))
    limit = Dial().value(spec)
    against = (
        None if ratio is None else Ratio(ratio, ratio * (1 - width), ratio * (1 + width), 0.01, shown=shown)
    )
    return Candidate(spec, limit, estimate, estimate, estimate, Estimate(1.0), Estimate(0.0), 10.0, against)


def answer(final: list[Candidate], curve: list[Candidate], **changes) -> Answer:
    setting, as_good = choose(final)
    values = {
        "setting": setting,
        "objective": "goodput",
        "final": tuple(final),
        "curve": tuple(curve),
        "shape": shape(curve, setting.limit) if setting.limit else None,
        "gathered_is_as_good": as_good,
        "loads": (),
        "scalability": None,
        "rates": (),
        "python": "",
        "toml": "",
        "effective": "",
        "runs": ("runs/1",),
        "seconds": 290.0,
    }
    return Answer(**{**values, **changes})


def loop(
    start: int, limit: int | None, *, strategy: str = "adaptive", error: str | None = None, **model
) -> LoopRecord:
    call = ToolCall("c", "look", start, start, start, start + S, "error" if error else "ok", error)
    asked = ModelCall("openai", "gpt-4o", start, start, input_tokens=200, output_tokens=50, **model)
    round_ = RoundRecord(0, start, start + S, asked, start, start + S, (call, call), limit=limit)
    return LoopRecord(f"l{start}", strategy, "openai", "gpt-4o", start, start + S, "ok", (round_,), trial=0)
