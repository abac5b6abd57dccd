"""Next steps that a run suggests: a sentence each, with the command where there is one.

Rules of thumb, the most urgent first; none of them states a figure that the summary does not have.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from profiler.prediction.what_if import Counterfactual
from profiler.records import NO_MODEL, REFUSED
from profiler.report.text import clean, duration, percent
from profiler.rundir import Run
from profiler.shortfalls import EXPLAINED
from profiler.statistics.caveats import is_of_model
from profiler.statistics.figures import StrategySummary
from profiler.statistics.invented import REMEDY
from profiler.statistics.summary import Summary
from profiler.strategies import knob_of

MOST_STEPS = 4
FAILING = 0.01
"""A strategy fails when at least this share of its loops does."""
CROWDED_EFFICIENCY = 0.5
"""Calls wait in a limiter when the efficiency of the tool phases is below this."""
MODEL_SHARE = 0.6
"""The model is the bottleneck when it takes at least this share of a loop."""
WORTH_EAGER = 0.05
"""Eager execution is worth a sentence when it could save at least this share of a loop."""
WORTH_A_SHORTFALL = 0.2
"""What keeps calls from overlapping is worth a sentence in at least so many rounds per loop."""
WORTH_A_TOOL = 0.9
"""An estimate of p50 below this share of the measured one makes a tool worth its own sentence."""


_REFUSALS = (
    *(f"http_{status}" for status in sorted(REFUSED)),
    *("rate_limit_error", "rate_limit_exceeded", "overloaded_error"),  # in a stream that had begun
    "RateLimitError",  # as it leaves an agent that is only watched
)
"""Errors by which loops end when the model's server refuses a request for a quota."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to try; `command` is a line to paste, if there is one."""

    words: str
    command: str | None = None


def next_steps(summary: Summary, run: Run, estimates: tuple[Counterfactual, ...] = ()) -> list[Step]:
    """At most `MOST_STEPS` things to try, without repeats."""
    if summary.idle:
        return [Step("Have the model ask for tools first: until then no strategy has anything to do.")]
    made_up = any(one.kind == "invented_arguments" for one in summary.warnings)
    if made_up and summary.void:  # no load, and no limit, makes those arguments real
        return [Step(f"{REMEDY[0].upper()}{REMEDY[1:]}.")]
    steps = [
        *_validity(summary),
        *_less_load(summary, run),
        *_more_loops(summary, run),
        *_model_limit(summary, run),
        *_other_limits(summary, run),
        *_eager(summary, run),
        *_shortfalls(summary),
        *_bottleneck(summary, estimates),
    ]
    return list(dict.fromkeys(steps))[:MOST_STEPS]


def command(
    run: Run,
    *,
    strategies: Sequence[str] | None = None,
    duration: float | None = None,
    blocks: int | None = None,
    model_limit: str | None = None,
) -> str:
    """The line that repeats a run, with the given options changed; `duration` in seconds per strategy."""
    window, asked = run.arguments.get("trial_seconds"), run.arguments.get("blocks")
    if duration is None and window is not None and asked:
        duration = float(window) * int(asked)
    blocks = asked if blocks is None else blocks
    direct = run.provider == NO_MODEL
    parts = ["profiler", *(("mcp", "load") if direct else ("compare",))]
    parts += run.repeat or ((run.scenario,) if direct else ("--scenario", run.scenario))
    if model_limit is not None:
        if "--model-limit" in parts:
            del parts[(at := parts.index("--model-limit")) : at + 2]
        parts += ["--model-limit", model_limit]
    for strategy in () if direct else strategies or map(str, run.strategies):
        parts += ["--strategy", strategy]
    parts += ["--users", str(run.load.users)]
    if duration is not None:
        parts += ["--duration", f"{math.ceil(duration)}s"]
    if blocks is not None:
        parts += ["--blocks", str(blocks)]
    if run.workers > 1:
        parts += ["--workers", str(run.workers)]
    return clean(shlex.join(parts), 2000)


def _validity(summary: Summary) -> Iterator[Step]:
    for warning in summary.warnings:
        if warning.invalid:
            yield Step(f"Before believing any figure here: {warning.remedy}.")


def _less_load(summary: Summary, run: Run) -> Iterator[Step]:
    """A load that is served, where this one was not."""
    unserved = [one for one in summary.strategies if one.backlog is not None]
    served = max((one.backlog.most for one in unserved if one.backlog is not None), default=0.0)
    if not unserved:
        return
    most = f"ask for less than {served:.2g}/s (--arrivals)" if served else "ask for less (--arrivals)"
    if run.arguments.get("max_in_flight"):
        most += ", or raise --max-in-flight"
    yield Step(f"The load is not served: {most}.")


def _more_loops(summary: Summary, run: Run) -> Iterator[Step]:
    """A longer run, where it would decide what this one could not."""
    factors = []
    counts = {strategy.strategy: strategy.loops.due for strategy in summary.strategies}
    for comparison in summary.comparisons:
        have = min(counts.get(comparison.strategy, 0), counts.get(comparison.baseline, 0))
        unserved = any(one.backlog for one in summary.strategies)
        if comparison.p95.needed is not None and have and not comparison.failures.shown and not unserved:
            factors.append((have + comparison.p95.needed) / have)
    window, blocks = run.arguments.get("trial_seconds"), run.arguments.get("blocks")
    if not factors or window is None or not blocks:
        return
    seconds = float(window) * int(blocks) * max(factors) * 1.1  # a little more: rates vary from run to run
    yield Step(
        "Run longer, so that p95 is decided too: "
        f"about {duration(math.ceil(seconds))} of measuring per strategy.",
        command(run, duration=seconds, blocks=max(3, int(blocks))),
    )


def _model_limit(summary: Summary, run: Run) -> Iterator[Step]:
    """A limit on model requests, where it is them that the server refuses: no limit on tools helps."""
    for strategy in summary.strategies:
        lost = _lost_to_the_model(strategy)
        if strategy.loops.due and lost >= FAILING * strategy.loops.due:
            limit = "a lower --model-limit" if run.arguments.get("model_limit") else "--model-limit"
            # As many requests as the loops that were answered took: what the server was seen to serve.
            each = strategy.totals.model_requests / max(1, strategy.totals.loops)
            rate = (strategy.throughput.value or 0.0) * each
            spec = f"rate:{rate:{'.0f' if rate >= 100 else '.3g'}}/s" if rate >= 0.01 else "adaptive"
            yield Step(
                f"Under {clean(strategy.strategy, 40)} the model's rate limit ended {lost} of "
                f"{strategy.loops.due} loops: keep to it with {limit}, or use fewer agents.",
                command(run, model_limit=spec),
            )
            return


def _other_limits(summary: Summary, run: Run) -> Iterator[Step]:
    """Other values of the limit that was compared: lower where calls fail, higher where they only wait."""
    limits = {}
    if any(strategy.backlog or _model_refuses(strategy) for strategy in summary.strategies):
        return  # loops that found no place, or no answer, have failed, whatever the limit of their calls
    knob = knob_of(run.strategies)
    for strategy in summary.strategies:
        value = knob.value(strategy.strategy)
        if value:
            limits[value] = strategy
    waiting = max((n for n, one in limits.items() if _fails(one) is False and _waits(one)), default=None)
    failing = min((n for n, one in limits.items() if _calls_fail(one)), default=None)
    gathered = next((one for one in summary.strategies if one.strategy == "gathered"), None)
    gathered_fails = gathered is not None and _calls_fail(gathered)
    words, tried = "", []
    if waiting is not None and failing is not None and waiting < failing:
        between = round(math.sqrt(waiting * failing))
        if waiting < between < failing:
            words = f"{knob.spec(waiting)} fails nowhere but waits, {knob.spec(failing)} fails: "
            words += f"try a {knob.noun} between them."
            tried = [between]
    elif waiting is not None and not gathered_fails:
        words = f"Calls wait in {knob.spec(waiting)} and none fails: try twice the {knob.noun}."
        tried = [waiting * 2]
    elif waiting is not None:
        words = f"gathered fails and {knob.spec(waiting)} waits: try {knob.noun}s between them."
        tried = [waiting * 2, waiting * 4]
    elif failing is not None and failing > 1:
        words = f"Calls fail under {knob.spec(failing)} too: try half the {knob.noun}."
        tried = [failing // 2]
    elif gathered_fails and not limits:
        words, tried = "Calls that all start at once fail: try a limit.", [8, 16]
    if tried:
        baseline = [summary.comparisons[0].baseline] if summary.comparisons else []
        specs = [*baseline, *map(knob.spec, tried)]
        yield Step(words, command(run, strategies=list(dict.fromkeys(specs))))


def _eager(summary: Summary, run: Run) -> Iterator[Step]:
    """Starting tools while the model streams, where replies are streamed and it was not tried."""
    if any(strategy.strategy.startswith("eager") for strategy in summary.strategies):
        return
    for strategy in summary.strategies:
        found, mean = strategy.overlap, strategy.mean_loop_seconds
        if strategy.strategy == "gathered" and found and mean and found.savable_seconds >= WORTH_EAGER * mean:
            yield Step(
                "Calls are complete while the model still streams: eager would save at most "
                f"{duration(found.savable_seconds)} of {duration(mean)} a loop under gathered.",
                command(run, strategies=["gathered", "eager"]),
            )


def _shortfalls(summary: Summary) -> Iterator[Step]:
    """What kept calls from overlapping, where it was not a limiter (others cover that)."""
    for strategy in summary.strategies:
        causes = {cause: rounds for cause, rounds in strategy.shortfalls.items() if cause in EXPLAINED}
        causes.pop("limiter", None)
        if causes and strategy.loops.due:
            cause = max(causes, key=lambda one: causes[one])
            words, remedy = EXPLAINED[cause]
            if causes[cause] >= WORTH_A_SHORTFALL * strategy.loops.due:
                yield Step(f"Under {clean(strategy.strategy, 40)} {words}: {remedy}.")
                return


def _bottleneck(summary: Summary, estimates: tuple[Counterfactual, ...]) -> Iterator[Step]:
    """The model, or a tool, where either takes most of the time."""
    for strategy in summary.strategies:
        mean, model = strategy.mean_loop_seconds, strategy.phases.get("model", 0.0)
        if mean and model / mean >= MODEL_SHARE and not _fails(strategy):
            yield Step(
                f"Under {clean(strategy.strategy, 40)} the model takes {percent(model / mean)} of a loop: "
                "how tools are run can win no more than the rest."
            )
            break
    best = min(
        (one for one in estimates if one.change.kind == "tool" and one.p50.measured),
        key=lambda one: one.p50.estimated / one.p50.measured,
        default=None,
    )
    if best is not None and best.p50.estimated < WORTH_A_TOOL * best.p50.measured:
        yield Step(
            f"Look at {clean(best.change.tool or '', 40)}: twice as fast, it would take "
            f"{clean(best.strategy, 40)} from {duration(best.p50.measured)} "
            f"to about {duration(best.p50.estimated)} at p50 "
            f"(estimate: {duration(best.p50.low)} to {duration(best.p50.high)})."
        )


def _lost_to_the_model(strategy: StrategySummary) -> int:
    """Loops that ended because the model's server refused a request; tools fail calls, not loops."""
    return sum(strategy.error_types.get(name, 0) for name in _REFUSALS)


def _model_refuses(strategy: StrategySummary) -> bool:
    """Whether loops fail, and half of them or more because the model's server refuses requests."""
    failed = sum(strategy.error_types.values())
    return bool(_fails(strategy)) and 2 * _lost_to_the_model(strategy) >= failed > 0


def _fails(strategy: StrategySummary) -> bool | None:
    rate = strategy.failure_rate.value
    return None if rate is None else rate >= FAILING


def _calls_fail(strategy: StrategySummary) -> bool:
    """Whether a strategy fails, and not mostly since requests of the model did."""
    of_model = sum(count for kind, count in strategy.error_types.items() if is_of_model(kind))
    return bool(_fails(strategy)) and of_model * 2 <= sum(strategy.error_types.values())


def _waits(strategy: StrategySummary) -> bool:
    efficiency = strategy.efficiency.value
    return efficiency is not None and efficiency < CROWDED_EFFICIENCY
