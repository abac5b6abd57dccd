"""Caveats, which a reader must know before believing a run: a closed set, each with its remedy.

An `invalid` caveat means that the figures describe our client, not the system; every output puts it
first, with the strategies whose figures those are and with whose fault it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from profiler.limits.refusals import TRANSIENT_ERRORS
from profiler.rundir import ClientHealth, IncidentKind, Recording, Run
from profiler.statistics.faults import Fault, judge, said_of
from profiler.statistics.figures import StrategySummary
from profiler.statistics.heeding import counted, untold, went_around
from profiler.statistics.quantiles import FEWEST_BLOCKS, FEWEST_PER_BLOCK, MEMORIES

CaveatKind = Literal[
    "internal",
    "strategy_ignored",
    "self_check",
    "limiter_blind",
    "client_saturated",
    "machine_busy",
    "container_throttled",
    "client_late",
    "blocking_tool",
    "load_not_delivered",
    "arrivals_dropped",
    "arrivals_late",
    "worker_lost",
    "worker_returned",
    "target_stood_still",
    "server_lost",
    "invented_arguments",
    "records_dropped",
    "aborted",
    "interrupted",
    "terminated",
    "settled",
    "limited",
    "out_of_time",
    "unfinished",
    "loops_cut",
    "no_steady_state",
    "warm_up",
    "short_window",
    "thin_blocks",
    "slow_changes",
    "nothing_completed",
    "unobserved_calls",
    "orphan_calls",
    "ambiguous_calls",
    "unreadable",
    "unknown_tokens",
    "untimed_server_tools",
    "watch_failures",
    "two_runs",
    "different_conditions",
    "different_work",
    "recorded_times",
    "recorded_rates",
    "sampled",
    "slices",
]

DELIVERED_SHARE = 0.95
BLOCKING_LIMIT = 0.050
"""Seconds for which one call held the event loop."""
BLOCKING_SHARE = 0.05
"""The share of a tool's calls that must have held the event loop before the tool is blamed."""
CUT_SHARE = 0.01
LATE_SHARE = 0.01
LOOPS_PER_WINDOW = 2
TOKEN_LIMITS = ("max_tokens", "max_cost")
CHANCE = 3.0
"""Standard deviations by which random arrivals may fall short of the load that was asked for."""

_INCIDENTS: dict[IncidentKind, tuple[str, str]] = {
    "worker_lost": (
        "a worker was lost; what it had sent counts",
        "run again, or trust only what its absence cannot change",
    ),
    "worker_returned": (
        "a lost worker came back",
        "the others went on with the load that was asked for; start it again for the next run",
    ),
    "target_stood_still": (
        "the target stood still, and then went on",
        "find out what stopped it then; the figures of that trial are with it",
    ),
    "records_dropped": (
        "loops ended whose records could not be written, and are in no figure but the spending",
        "the log of the run says what was wrong with the first",
    ),
    "server_lost": (
        "an MCP server ended, or lost its session, and was asked anew; calls under way then failed",
        "its own log says why; the figures of that trial are with it",
    ),
    "aborted": ("the run was aborted", "lower the load, or raise the limit of --abort-on"),
    "interrupted": ("the run was interrupted", "run it to its end"),
    "terminated": ("the run was told to end (SIGTERM)", "run it to its end"),
    "settled": ("the run ended early, since it had shown enough", "run it alone for all blocks"),
    "out_of_time": ("the run ended early, since its time was over", "give it more time"),
    "limited": ("the run ended early", "what had begun was let finish; raise the limit for more"),
}

_WHATEVER_LOAD = frozenset(
    (*(f"http_{status}" for status in (400, 401, 403, 404, 405, 422)), "refused", "unresolved", "untrusted")
)
"""Errors of loops that a lower load would not change."""

_OF_MODEL = TRANSIENT_ERRORS | {
    *("untrusted", "unreadable", "undecodable", "too_large", "truncated_stream", "stream_error"),
    "server_error",
}
"""Errors of model requests, beside those with an HTTP status."""

_EARLY_ENDS: tuple[IncidentKind, ...] = ("aborted", "interrupted", "terminated", "limited")


@dataclass(frozen=True, slots=True)
class Caveat:
    """One thing to know: `detail` is what was found, `remedy` what to do about it.

    `strategies` are those that an invalid one is about.
    """

    kind: CaveatKind
    detail: str
    remedy: str
    invalid: bool = False
    strategies: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """`invalid: DETAIL; REMEDY` or `note: DETAIL; REMEDY`."""
        return f"{'invalid' if self.invalid else 'note'}: {self.detail}; {self.remedy}"

    @property
    def leads(self) -> bool:
        """Whether it is to be said before any figure."""
        return self.invalid or self.kind in ("self_check", "invented_arguments")


def caveats(
    run: Run, strategies: Sequence[StrategySummary], lower: Sequence[StrategySummary] = ()
) -> tuple[Caveat, ...]:
    """Every caveat of a run, the invalid ones first, and of those a strategy that was not applied.

    Of the strategies under `lower` loads only what the client made of them and what was left out is said. A
    recorded run has no client of ours, and no load.
    """
    if run.recording is not None:
        every = [one for one in _figures(strategies) if one.kind == "nothing_completed"]
        return (*every, *of_recording(run.recording, strategies))
    ignored = list(_strategies(run, strategies, [*lower, *strategies]))
    found = [
        *defects(sum({one.strategy: one.totals.internal for one in [*lower, *strategies]}.values())),
        *ignored,
        *_checks(run, {name for caveat in ignored for name in caveat.strategies}),
        *_client(run, [*lower, *strategies]),
        *_blocking(strategies),
        *_incidents(run, strategies),
        *_load(run),
        *_figures(strategies),
        *_warm_ups([*lower, *strategies]),
        *_watched(strategies),
        *_replies(run, strategies),
    ]
    return tuple(sorted(found, key=lambda caveat: not caveat.invalid))


def of_recording(recording: Recording, strategies: Sequence[StrategySummary]) -> Iterator[Caveat]:
    """What a reader of a recorded run's latencies must know."""
    for one in strategies:
        if one.blocks < FEWEST_BLOCKS:
            yield Caveat(
                "slices",
                f"{one.loops.due} loops are too few for {FEWEST_BLOCKS} slices of time with "
                f"{FEWEST_PER_BLOCK['p50']} each, so there are no intervals",
                "record for longer",
            )
        else:
            yield Caveat(
                "slices",
                f"recordings have no blocks: slices of time, {one.blocks} with about "
                f"{one.loops.due // one.blocks} loops each, serve as such",
                "read intervals as those of neighbouring stretches of one time, not of independent repeats",
            )
    if recording.upper_bounds:
        yield Caveat(
            "recorded_times",
            f"of {counted(recording.upper_bounds)} only upper bounds are known: approvals and waits may be "
            "inside, and so in the time of their loops",
            "a difference may be the human's",
        )
    if recording.sampled is not None and recording.sampled < 1:
        yield Caveat(
            "sampled",
            f"only {recording.sampled * 100:.3g} % of all traces were kept",
            "latencies are those of all only if traces were kept by chance, not for being slow or failed",
        )


def defects(loops: int) -> Iterator[Caveat]:
    """Loops that a defect of ours ended."""
    if loops:
        yield Caveat(
            "internal",
            f"{loops} loop{'' if loops == 1 else 's'} ended by a defect of the profiler (internal) and count "
            "as failed",
            "please report it with what --debug shows",
        )


def every_loop_failed(strategy: StrategySummary) -> bool:
    """Whether loops ran and not one was good."""
    return strategy.totals.loops > 0 and not strategy.totals.good


def error_causes(strategy: StrategySummary) -> str:
    """`invalid_json (get_weather) 40, http_429 3`: what failed most often, of tools and of loops."""
    of_tools = [
        (count, f"{kind} ({tool})")
        for tool, found in strategy.tools.items()
        for kind, count in found.error_types.items()
    ]
    of_loops = [(count, kind) for kind, count in strategy.error_types.items() if kind != "incomplete"]
    most = sorted((*of_tools, *of_loops), reverse=True)[:3]
    most = most or [(count, what) for what, count in strategy.totals.causes.items()][:3]
    return ", ".join(f"{what} {count}" for count, what in most)


def _watched(strategies: Sequence[StrategySummary]) -> Iterator[Caveat]:
    totals = [strategy.totals for strategy in strategies]
    yield from watching(
        sum(each.unobserved_calls for each in totals),
        sum(each.orphan_calls for each in totals),
        sum(each.ambiguous_calls for each in totals),
    )


def watching(unobserved: int, orphans: int, ambiguous: int, failures: int = 0) -> Iterator[Caveat]:
    """What the watching of loops that are not ours has missed, each with the likely reason."""
    if unobserved:
        yield Caveat(
            "unobserved_calls",
            f"{counted(unobserved)} that the model asked for {_were(unobserved)} run by no watched tool",
            "is each tool wrapped with prof.tool, under the name that the model knows?",
        )
    if orphans:
        yield Caveat(
            "orphan_calls",
            f"{counted(orphans)} of watched tools ran outside every loop",
            "is prof.loop missing, or does a thread lose its context?",
        )
    if ambiguous:
        yield Caveat(
            "ambiguous_calls",
            f"{counted(ambiguous)} could not be told apart",
            "were arguments equal in two loops at once, in threads without context, or changed on their way?",
        )
    if failures:
        yield Caveat(
            "watch_failures",
            f"watching failed {'once' if failures == 1 else f'{failures} times'}: something is missing here",
            "the first failure of each kind is in the log",
        )


def _replies(run: Run, strategies: Sequence[StrategySummary]) -> Iterator[Caveat]:
    totals = [strategy.totals for strategy in strategies]
    yield from replied(
        sum(each.unreadable for each in totals), sum(each.untimed_server_tool_calls for each in totals)
    )
    unknown = sum(each.tokens.unknown_replies for each in totals)
    if unknown:
        limits = [
            f"--{name.replace('_', '-')}" for name in TOKEN_LIMITS if run.arguments.get(name) is not None
        ]
        counted_as = f"{' and '.join(limits)} took them to be like the others" if limits else ""
        yield Caveat(
            "unknown_tokens",
            f"tokens of {unknown} of {sum(each.tokens.replies for each in totals)} replies are not known, so "
            "there were at least as many as are counted",
            counted_as or "does the server name its usage (in streams: stream_options with include_usage)?",
        )


def replied(unreadable: int, untimed_server_tools: int) -> Iterator[Caveat]:
    """What replies did not tell."""
    if unreadable:
        yield Caveat(
            "unreadable",
            f"{unreadable} part{'' if unreadable == 1 else 's'} of replies could not be understood",
            "calls or tokens in them are in no figure: does the server keep to the API it speaks?",
        )
    if untimed_server_tools:
        yield Caveat(
            "untimed_server_tools",
            f"no times are known of {counted(untimed_server_tools)} of tools that the model's server ran "
            "itself: they are part of model",
            "streamed replies tell them (--stream)",
        )


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _strategies(
    run: Run, strategies: Sequence[StrategySummary], every: Sequence[StrategySummary]
) -> Iterator[Caveat]:
    """Where a user's own agent went around its strategy, or a limiter could not learn how calls ended.

    `every`: under all loads, since the calls are those of the whole run.
    """
    share = run.workers if run.arguments.get("share_limit") else 1
    for strategy in strategies:
        name, calls = strategy.strategy, strategy.agent_calls
        spec = run.strategy(name)
        if calls is not None and (around := went_around(spec, calls, share)) is not None:
            told = next((one.remedy for one in run.checks if one.strategy == name and one.remedy), "")
            remedy = told or "hand the agent's calls to ctx.execute, ctx.slot or a ToolLoop with ctx.strategy"
            yield Caveat(
                "strategy_ignored",
                f"{name} was not heeded: {around}",
                f"{remedy}; until then its figures are those of the agent's own way",
                invalid=True,
                strategies=tuple(labels([one for one in every if one.strategy == name], every)),
            )
        elif spec.adapts and (reason := untold(strategy)) is not None:
            yield Caveat(
                "limiter_blind",
                f"{name}: {reason}",
                "watch the function that fails (ctx.profiler.tool), or call slot.rejected() where a server "
                "refuses",
            )


def _checks(run: Run, ignored: Collection[str]) -> Iterator[Caveat]:
    """What the agent's first loops showed to be wrong, before the load; `ignored` strategies are known."""
    for check in run.checks:
        about = f"{check.strategy}: " if check.strategy else ""
        if check.outcome == "problem" or (check.outcome == "not_heeded" and check.strategy not in ignored):
            yield Caveat("self_check", f"before the load: {about}{check.detail}", check.remedy)


def _client(run: Run, strategies: Sequence[StrategySummary]) -> Iterator[Caveat]:
    """Where the figures are the client's: a caveat for each whose fault it was, with the strategies."""
    found: dict[Fault, list[tuple[float, str, str, list[ClientHealth]]]] = {}
    for strategy, name in zip(strategies, labels(strategies, strategies), strict=True):
        trials = {
            trial.index
            for trial in run.trials
            if (trial.strategy, trial.users) == (strategy.strategy, strategy.users)
        }
        healths = [health for health in run.client if health.trial is None or health.trial in trials]
        severity, said, whose = judge(strategy, healths)
        if said:
            found.setdefault(whose, []).append((severity, name, said, healths))
    for whose, broken in found.items():
        _, _, said, healths = max(broken, key=lambda one: one[0])
        about, remedy = said_of(whose, healths, run)
        names = tuple(dict.fromkeys(name for _, name, _, _ in broken))
        everywhere = len(names) == len({(one.strategy, one.users) for one in strategies})
        of = "" if everywhere else f" under {', '.join(names)}"
        agent = ", the agent's CPU in it" if run.arguments.get("agent") is not None else ""
        yield Caveat(whose, f"{about}{of}: {said}{agent}", remedy, invalid=True, strategies=names)


def labels(strategies: Sequence[StrategySummary], every: Sequence[StrategySummary]) -> list[str]:
    """Their names, with the load where there are several among `every`."""
    several = len({one.users for one in every}) > 1
    return [f"{one.strategy} ({one.users} agents)" if several else one.strategy for one in strategies]


def _blocking(strategies: Sequence[StrategySummary]) -> Iterator[Caveat]:
    blocking: dict[str, float] = {}
    for strategy in strategies:
        for tool, figures in strategy.tools.items():
            # A tool that blocks does so again and again; a single stall is the machine's.
            if figures.blocking_calls >= max(1, BLOCKING_SHARE * figures.calls):
                blocking[tool] = max(figures.blocking_seconds, blocking.get(tool, 0.0))
    for tool, seconds in sorted(blocking.items(), key=lambda item: -item[1]):
        if seconds > BLOCKING_LIMIT:
            yield Caveat(
                "blocking_tool",
                f"{tool} held the event loop for up to {seconds * 1e3:.0f} ms, so nothing else ran",
                "make it await, or a plain function, which runs in a thread",
            )


def is_of_model(error_type: str) -> bool:
    """Whether a loop's error is that of a model request; a tool's own failure is `incomplete`."""
    return error_type.startswith("http_") or error_type in _OF_MODEL


def _incidents(run: Run, strategies: Sequence[StrategySummary]) -> Iterator[Caveat]:
    for incident in run.incidents:
        detail, remedy = _INCIDENTS[incident.kind]
        if incident.kind == "aborted":
            if "loops failed" not in incident.detail:  # the target, or the disk: not the rule of --abort-on
                remedy = "see to that, and run again"
            elif cause := _not_the_load(strategies):
                remedy = f"see to {cause} first: a lower load would fail too"
        count = f" ({incident.count})" if incident.count > 1 else ""
        said = f": {incident.detail}" if incident.detail else ""
        yield Caveat(incident.kind, f"{detail}{count}{said}", remedy)
    if not run.finished and not any(i.kind in _EARLY_ENDS for i in run.incidents):
        yield Caveat("unfinished", "the run was cut short; what had finished is here", "run it to its end")


def _not_the_load(strategies: Sequence[StrategySummary]) -> str | None:
    """What ended most of the loops that failed, where no lower load would have helped; else None."""
    counts: Counter[str] = Counter()
    for strategy in strategies:
        counts.update(strategy.error_types)
    if not counts:
        return None
    most, count = counts.most_common(1)[0]
    return most if most in _WHATEVER_LOAD and count * 2 > sum(counts.values()) else None


def _load(run: Run) -> Iterator[Caveat]:
    """Where the load that was delivered is not the one that was asked for."""
    for trial in run.trials:
        if trial.wanted is not None and trial.users < DELIVERED_SHARE * trial.wanted:
            yield Caveat(
                "load_not_delivered",
                f"{trial.users} of {trial.wanted} agents were there in trial {trial.index}",
                "use a higher spawn rate, or find out why agents did not start",
            )
            break
    if run.load.model != "open" or run.load.rate is None or not run.load.users:
        return
    trials = [trial for trial in run.trials if trial.arrived is not None]
    seconds = sum((trial.ended_ns - trial.started_ns) / 1e9 for trial in trials)
    each = run.load.rate / run.load.users
    expected = sum(each * trial.users * (trial.ended_ns - trial.started_ns) / 1e9 for trial in trials)
    arrived = sum(trial.arrived or 0 for trial in trials)
    # The strategies of a block see the same draws: chance does not average out over them.
    chance = CHANCE * (expected * max(1, len(run.strategies))) ** 0.5
    if arrived < min(DELIVERED_SHARE * expected, expected - chance):
        yield Caveat(
            "load_not_delivered",
            f"{arrived / seconds:.2f} loops/s arrived of {expected / seconds:.2f} asked for",
            "use more agents or more workers",
        )
    late, dropped = sum(trial.late for trial in trials), sum(trial.dropped for trial in trials)
    if late > LATE_SHARE * arrived:
        yield Caveat(
            "arrivals_late",
            f"{late} of {arrived} arrivals had to wait at --max-in-flight; "
            "latency counts from when they were due",
            "raise --max-in-flight, or read the figures as those of a capped load",
        )
    if dropped:
        yield Caveat(
            "arrivals_dropped",
            f"{dropped} of {arrived} arrivals were never started and count as failed; "
            "latency leaves them out",
            "raise --max-in-flight, drain longer (--drain), or lower the load",
        )


def _figures(strategies: Sequence[StrategySummary]) -> Iterator[Caveat]:
    for strategy in strategies:
        name, loops = strategy.strategy, strategy.loops
        if loops.due and loops.interrupted > CUT_SHARE * loops.due:
            yield Caveat(
                "loops_cut",
                f"{name}: {loops.interrupted} loops were cut off after the drain and count as failed",
                "drain longer (--drain)",
            )
        if strategy.blocks and every_loop_failed(strategy):
            totals, causes = strategy.totals, error_causes(strategy)
            what = (
                "no loop completed"
                if totals.incomplete < totals.loops
                else "no loop had all its calls answered"
            )
            yield Caveat(
                "nothing_completed",
                f"{name}: {what}{': ' if causes else ''}{causes}",
                "look at the error types",
            )
        median = strategy.loop_seconds.p50.value
        window = strategy.window_seconds / strategy.blocks if strategy.blocks else 0.0
        if median is not None and window < LOOPS_PER_WINDOW * median and strategy.backlog is None:
            yield Caveat(
                "short_window",
                f"{name}: a block of {window:.1f} s holds less than 2 loops of {median:.1f} s: "
                "these are the figures of a start",
                "run longer (--duration)",
            )
        if strategy.steady is False and strategy.backlog is None:
            yield Caveat(
                "no_steady_state",
                f"{name}: no steady state was reached, latency kept changing to the end",
                "run longer blocks, or lower the load",
            )
    without = [
        s for s in strategies if s.loop_seconds.p50.value is not None and s.loop_seconds.p50.low is None
    ]
    slow = [s for s in without if s.memory_seconds]
    if slow:
        each = ", ".join(f"{s.strategy} over about {s.memory_seconds:.1f} s" for s in slow)
        enough = FEWEST_BLOCKS * MEMORIES * max(s.memory_seconds for s in slow)
        yield Caveat(
            "slow_changes",
            f"latency changes slowly ({each}), so blocks as short as these are no independent measurements "
            "and there are no intervals",
            f"run at least {FEWEST_BLOCKS} blocks with {enough:.0f} s of each strategy in all (--duration)",
        )
    thin = [s for s in without if not s.memory_seconds]
    if thin:
        counts = ", ".join(f"{s.strategy} {s.loops.due} in {s.blocks}" for s in thin)
        yield Caveat(
            "thin_blocks",
            f"too few loops in too few blocks for intervals ({counts})",
            "run at least 3 blocks of 20 loops for p50, of 100 for p95 (--duration, --blocks)",
        )


def left_out(strategy: StrategySummary) -> str | None:
    """What was left out of a strategy's figures as warm-up and what it would change; None if nothing was."""
    left = strategy.left_out
    if left is None:
        return None
    would = [
        f"{name} would be {_seconds(with_it)} instead of {_seconds(value)}"
        for name, with_it in (("p95", left.p95), ("p99", left.p99))
        if with_it is not None and (value := strategy.loop_seconds[name].value) is not None
    ]
    changed = f"; with them {' and '.join(would)}" if would else ""
    where = "each block" if strategy.blocks > 1 else "the only block"
    return (
        f"{left.loops} of {left.due} loops left out as warm-up, the first {_seconds(left.seconds)} "
        f"of {where}{changed}"
    )


def _warm_ups(strategies: Sequence[StrategySummary]) -> Iterator[Caveat]:
    several = len({strategy.users for strategy in strategies}) > 1
    for strategy in strategies:
        said = left_out(strategy)
        load = f" at {strategy.users} agents" if several else ""
        if strategy.unclear_seconds:
            yield Caveat(
                "warm_up",
                f"{strategy.strategy}{load}: the first {_seconds(strategy.unclear_seconds)} of the only "
                "block differ from the rest, as a warm-up or a stall would: nothing was left out",
                "run at least 3 blocks (--blocks 3), which tell one from the other",
            )
        if said is None:
            continue
        remedy = "read the figures as those of a warm system"
        if strategy.blocks == 1:
            remedy = "run at least 3 blocks (--blocks 3): in one alone a stall at its start looks the same"
        yield Caveat("warm_up", f"{strategy.strategy}{load}: {said}", remedy)


def _seconds(value: float) -> str:
    return f"{value:.3g} s"
