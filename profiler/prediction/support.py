"""What a recording cannot tell, in words: a prediction that it does not support is refused. Pure.

`of_recording` looks at the recording alone, `of_question` at what is asked of it, and `of_result` at where
the simulation of that went: with more calls in flight at a server than the recording knows of, or with a
client that has no CPU left, a figure would be a guess.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from profiler.limits.spec import Rule as LimitRule
from profiler.prediction.fitting import Fitted, ServerFit
from profiler.prediction.loops import BY_QUOTA
from profiler.prediction.servers.queueing import MARGIN
from profiler.prediction.simulation.load import SimulatedLoad
from profiler.prediction.simulation.servers import ServerUse
from profiler.records import NO_MODEL, LoopRecord
from profiler.rundir import Run
from profiler.statistics.summary import summarise_table
from profiler.statistics.table import tabulate
from profiler.strategies import StrategySpec

FEWEST_LOOPS = 150
"""Whole loops from which anything is predicted: of fewer, a few long ones decide every figure."""

UNKNOWN_TIMES = 0.02
"""The share of calls whose times may be unknown."""

LOST = 0.2
"""The share of loops that may be missing or cut short: the long ones are, more often than the others."""

HELD_UP = 0.05
"""The share of rounds whose calls something else than the strategy may have kept from overlapping."""

BEYOND = 0.05
"""The share of arrivals that may find more in flight at a server than the recording knows of: if it refused
them all, that share of refusals would be missing."""

NEARLY = 1.15
"""How many times as many calls as in the busiest trial a server is taken to treat like those, as long as so
many were seen."""

OFTENER = 0.01
"""A server of which it is open whether calls wait may refuse this much more often than `NEARLY` has it."""

SELDOM = 0.02
"""A tool with fewer of the calls than this share decides no figure, whatever is known of it."""

MENTIONED = 0.02
"""The same, from which it is said."""

IDLE = 0.5
"""A server is not known for this share of the fewest calls that were ever seen in flight."""

BUSY = 0.85
"""The share of a core above which a client's own work adds to every latency."""


def of_recording(fitted: Fitted) -> tuple[str, ...]:
    """Why nothing can be predicted from this recording; empty where something can."""
    run = fitted.run
    reasons = list(fitted.invalid)
    if run.provider == NO_MODEL:
        return ("the recording is of calls without a model: it has no loops",)
    if len(fitted.loops) < FEWEST_LOOPS:
        lost = sum(fitted.lost.values())
        missing = f" ({lost} more were cut short or lost)" if lost else ""
        reasons.append(
            f"{len(fitted.loops)} whole loops are too few{missing}: record {FEWEST_LOOPS} at least, "
            "better 1,000"
        )
    # Loops that a quota ended are made up for: those like them weigh more.
    lost_otherwise = fitted.lost - Counter({BY_QUOTA: fitted.lost[BY_QUOTA]})
    share_lost = sum(lost_otherwise.values()) / max(1, fitted.recorded)
    if share_lost > LOST:
        why, _ = lost_otherwise.most_common(1)[0]
        reasons.append(
            f"{100 * share_lost:.0f} % of the loops are not whole (most: {why}), the long ones more often "
            "than others"
        )
    found = run.recording
    if found is not None:
        if found.sampled is not None and found.sampled < 1:
            reasons.append(
                f"only {100 * found.sampled:.0f} % of the traces were kept: how many calls were in flight is "
                "not known; record all of them"
            )
        if found.clocks > 1:
            reasons.append(
                f"its times are of {found.clocks} clocks: how many calls were in flight at once is not known"
            )
    if fitted.untimed > UNKNOWN_TIMES * max(1, fitted.asked):
        reasons.append(
            f"of {fitted.untimed} of {fitted.asked} calls the times are not known, or only an upper bound"
        )
    if fitted.unobserved > UNKNOWN_TIMES * max(1, fitted.asked):
        reasons.append(
            f"{fitted.unobserved} of {fitted.asked} calls ran in tools that were not watched: watch those too"
        )
    if fitted.resolution_share > UNKNOWN_TIMES:
        reasons.append(
            f"the tick of its clock is {100 * fitted.resolution_share:.0f} % of a typical call, which is too "
            "coarse"
        )
    if fitted.nested > UNKNOWN_TIMES * max(1, fitted.recorded):
        reasons.append(
            f"{fitted.nested} of {fitted.recorded} loops ran inside calls of others: agents as tools are "
            "not predicted"
        )
    return tuple(reasons)


def invalid_of(run: Run, records: Iterable[LoopRecord]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(why nothing of the run is to be trusted, what of it is not): its figures may describe the client."""
    summary = summarise_table(run, tabulate(records))
    said = tuple(one.sentence for one in summary.warnings if one.invalid)
    valid = [one.valid for one in summary.every_strategy]
    return (said, ()) if said and not any(valid) else ((), said)


def of_question(fitted: Fitted, strategy: StrategySpec) -> tuple[str, ...]:
    """Why this strategy cannot be predicted from the recording."""
    reasons: list[str] = []
    if strategy.kind == "unknown":
        reasons.append(f"{strategy}: this version does not know that strategy")
    elif strategy.kind == "own" or strategy.variant:
        reasons.append(
            f"{strategy}: what a setting of the agent's own does is not known before it has run: compare it"
        )
    elif strategy.needs_stream:
        reasons.append(
            f"{strategy}: calls that start while replies stream are not predicted: compare it, with --stream"
        )
    reasons += [
        f"{rule.text}: the recording has no calls of {_named(rule)}"
        for rule in strategy.rules
        if (rule.tool is not None and rule.tool not in fitted.system.tools)
        or (rule.server is not None and rule.server not in fitted.system.mcp)
    ]
    if strategy.kind != "sequential":
        kept = sum(fitted.shortfalls.values())
        if kept > HELD_UP * max(1, fitted.phases):
            why, _ = fitted.shortfalls.most_common(1)[0]
            reasons.append(
                f"in {100 * kept / max(1, fitted.phases):.0f} % of the rounds calls did not overlap as the "
                f"strategy allowed ({why.replace('_', ' ')}): no strategy could change that"
            )
    return tuple(reasons)


def _named(rule: LimitRule) -> str:
    return f"a tool {rule.tool!r}" if rule.tool is not None else f"an MCP server {rule.server!r}"


def is_recorded(fitted: Fitted, strategy: StrategySpec, load: SimulatedLoad) -> bool:
    """Whether this is the one setting of the recording: then its loops tell of it, whatever the rules are."""
    run = fitted.run
    cells = {(one.strategy, one.users) for one in run.trials}
    rate = None if load.arrivals is None else load.arrivals.expected(load.users, 1.0)
    recorded = run.load.rate_of(load.users) if run.load.model == "open" else None
    return (
        cells == {(strategy.text, load.users)}
        and (rate is None) == (recorded is None)
        and math.isclose(rate or 0.0, recorded or 0.0, rel_tol=1e-6)
        and load.max_in_flight == run.arguments.get("max_in_flight")
        and load.think_seconds == run.load.think_seconds
        and load.workers == run.workers
        and load.share_limit == bool(run.arguments.get("share_limit"))
    )


def of_result(
    fitted: Fitted,
    uses: Sequence[ServerUse],
    loops_per_second: float,
    workers: int,
    *,
    recorded: bool = False,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(why there is no figure, what is to be said with it) where this simulation went.

    `recorded`: the question is the recording's one setting (`is_recorded`), where no rule has to be known.
    """
    refused: list[str] = []
    warnings: list[str] = []
    found = fitted.run.recording
    if found is not None and found.door == "collect" and found.sampled is None:
        warnings.append(
            "the recording does not say whether all traces were kept: if not, more calls were in flight than "
            "it shows"
        )
    for fit, use in zip((*fitted.servers, fitted.model), uses, strict=True):
        beyond, said = _of_server(fitted, fit, use)
        if recorded and not fit.finding.identified:
            beyond, said = [], [*said, *beyond]
        refused += beyond
        warnings += said
    if fitted.cpu_ns is not None:
        cpu = loops_per_second * fitted.cpu_ns / 1e9 / workers
        if cpu > 1:
            refused.append(
                f"the client would need {cpu:.1f} cores for each process: it would be the bottleneck "
                "(more --workers, on more cores)"
            )
        elif cpu > BUSY:
            warnings.append(f"the client itself would be busy: {100 * cpu:.0f} % of a core for each process")
    return tuple(refused), tuple(warnings)


def known_up_to(fit: ServerFit) -> int | None:
    """The number of calls in flight above which nothing is known of a server; None where a capacity is known.

    What a server does with a number in flight that was there all the time shows in the recording, whether or
    not the rule that would explain it can be told. Not one call more than was ever seen: a strategy's limit
    may have been just what the server can take.
    """
    finding = fit.finding
    if finding.identified and finding.rule.kind not in ("none", "rate"):
        return None
    return max(int(finding.seen[1]), min(int(NEARLY * fit.busiest + 1), fit.most))


def share_above(use: ServerUse, number: int) -> float:
    """The share of arrivals that found more than `number` in flight, themselves counted."""
    return sum(use.at_arrival[number:]) / max(1, sum(use.at_arrival))


def _of_server(fitted: Fitted, fit: ServerFit, use: ServerUse) -> tuple[list[str], list[str]]:
    finding = fit.finding
    if not sum(use.at_arrival):
        return [], []
    warned = [f"{fit.name}: {text}" for text in finding.warnings]
    known = known_up_to(fit)
    if known is None:
        # What is known of a server that was taken past its capacity holds for any number of calls.
        return [], warned
    if not finding.identified:
        text = f"{fit.name}: {finding.sentence}"
        seldom = fit.tools and fit.calls < SELDOM * fitted.calls
        return ([], [text]) if seldom or refuses_as_seen(fit, use) else ([text], [])
    above = share_above(use, known)
    most = _quantile(use.at_arrival, 0.95)
    if above > BEYOND:
        return [
            f"{fit.name}: up to {most} calls would be in flight, and nothing is known of it above {known}"
        ], []
    if above > MENTIONED:
        warned.append(
            f"{fit.name}: {100 * above:.0f} % of its calls would find more in flight than the {known} that "
            "it is known for"
        )
    low, middle = finding.seen[0], _quantile(use.at_arrival, 0.5)
    if low > 4 and middle < IDLE * low:
        return [
            f"{fit.name}: some {middle} calls would be in flight, and it was never seen with fewer than "
            f"{low:.0f}"
        ], []
    return [], warned


def refuses_as_seen(fit: ServerFit, use: ServerUse) -> bool:
    """Whether a server would refuse no more than it did when it was recorded, by a number that is known.

    Whether it also makes some calls wait just below that number may be open then: it has in the recording
    as much.
    """
    capacities = fit.finding.capacities
    if fit.finding.rule.kind != "refuse" or capacities is None or not use.arrived:
        return False
    if capacities[1] > MARGIN * capacities[0] + 1:
        return False
    return use.refused / use.arrived <= NEARLY * fit.refused / max(1, fit.calls) + OFTENER


def _quantile(counts: Sequence[int], p: float) -> int:
    """The number in flight, a call itself counted, that the share `p` of arrivals does not exceed."""
    wanted, seen = p * sum(counts), 0
    for inside, count in enumerate(counts):
        seen += count
        if seen >= wanted:
            return inside + 1
    return len(counts)
