"""The end of `profiler compare`'s output: verdicts, a table of at most 80 columns, and notes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from profiler.limits.spec import totals
from profiler.loop.model import parse_model_limit
from profiler.providers import PROVIDERS
from profiler.report import servers
from profiler.report.recorded import change_words, words
from profiler.report.text import clean, counted, duration, number, percent
from profiler.rundir import Run
from profiler.statistics.caveats import Caveat
from profiler.statistics.faults import busiest
from profiler.statistics.figures import StrategySummary
from profiler.statistics.gates import Outcome
from profiler.statistics.summary import Summary
from profiler.statistics.verdicts import Regression
from profiler.variants import is_setting

_NAME_WIDTH = 18
_LONGEST_NAME = 40
"""Of a setting of an agent's own, where there is room."""
SURVIVORS = (
    "times, speed-up and efficiency are of the loops that came to an answer: where loops fail, the strategy "
    "that fails most may look fastest; good/s tells"
)
"""Beside figures that leave out loops that failed, or count calls that failed at once as fast ones."""
_NAMED_SHARE = 0.01
"""Phases with a smaller share of a loop are not named."""


def render_comparison(
    summary: Summary, run: Run, width: int = 80, color: bool = False, path: str | None = None
) -> str:
    """The end of a comparison as text: what makes it invalid, the verdicts, the figures, the notes.

    That the model asked for no tool at all, or every loop failed, comes first: no remedy of what is invalid
    would help. Then comes what was asked of the run (`Summary.outcomes`).
    `path` is the run directory as the user would type it; it stands on the last line, which is not wrapped.
    """
    text = rendered(_comparison(summary, run), width, color)
    return text if path is None else f"{text}{clean(path, 4096)}\n"


def _comparison(summary: Summary, run: Run) -> Iterator[RenderableType]:
    # Of several loads, the verdicts are about the highest.
    where = f"at {counted(summary.levels[-1].users, 'agent')}: " if summary.levels else ""
    found = [Text(where + clean(verdict.sentence, 400), style="bold") for verdict in summary.verdicts]
    if summary.void:
        yield from found
    yield from _caveats(summary.warnings, leads=True)
    in_words = {verdict.sentence for verdict in summary.verdicts}
    yield from _outcomes(one for one in summary.outcomes if one.sentence not in in_words)
    if not summary.void:
        yield from found
    if not summary.levels:
        yield _table(summary.strategies)
    for level in summary.levels:
        yield Text(counted(level.users, "agent"))
        yield _table(level.strategies)
    if summary.recorded is not None:
        for sentence in words(summary.recorded, run.recording).found:
            yield Text(f"{sentence}.")
    elif any(one.failure_rate.value for one in summary.strategies):
        yield Text(SURVIVORS)
    for strategy in summary.strategies:
        said = (_where(strategy) if strategy.phases else None, moving_limit(strategy), overlap(strategy))
        for line in filter(None, said):
            yield Text(f"{clean(strategy.strategy)}: {line}")
    for line in limits(run):
        yield Text(line)
    for line in servers.lines(summary.servers):
        yield Text(line)
    if summary.objective is not None:
        outcome = objective_outcome(summary, lambda name: clean(name, _LONGEST_NAME))
        yield Text(f"objective {summary.objective}: {outcome}")
    for name, law in summary.scalability.items():
        yield Text(f"{clean(name)}: {law.sentence}")
    yield from _caveats(summary.warnings, leads=False)
    yield Text(_load(summary))
    for line in _client(run):
        yield Text(line)


def render_regression(
    found: Regression, outcomes: Sequence[Outcome] = (), width: int = 80, color: bool = False
) -> str:
    """One run against another as text: what makes it invalid, the outcomes, the verdicts, the notes.

    `outcomes`: of everything that was asked, by default of the gates.
    """
    return rendered(_regression(found, outcomes or found.outcomes), width, color)


def _regression(found: Regression, outcomes: Sequence[Outcome]) -> Iterator[Text]:
    yield from _caveats(found.warnings, leads=True)
    yield from _outcomes(outcomes)
    for verdict in found.verdicts:
        yield Text(clean(verdict.sentence, 400), style="bold")
    yield from map(Text, change_words(found.recorded))
    yield from _caveats(found.warnings, leads=False)


def _outcomes(outcomes: Iterable[Outcome]) -> Iterator[Text]:
    """What was asked and decided. Whether figures are valid, and how the run ended, is among the caveats."""
    for one in outcomes:
        if one.kind == "gate" or (one.holds is False and one.kind in ("objective", "loops")):
            style = {True: "green", False: "bold red", None: "yellow"}[one.holds]
            yield Text(clean(one.sentence, 400), style=style)


def _caveats(caveats: Iterable[Caveat], leads: bool) -> Iterator[Text]:
    for caveat in caveats:
        if caveat.leads is leads:
            yield Text(clean(caveat.sentence, 400), style="bold red" if caveat.invalid else "yellow")


def limits(run: Run) -> list[str]:
    """`semaphore:4: limit 4 × 2 workers = 8 calls at once`, for each limiter of the run, the model's too."""
    lines = []
    share = run.workers if run.arguments.get("share_limit") else 1
    for spec in run.strategies:
        if any(rule.fixed_limit is None or rule.scope in ("tool", "server") for rule in spec.rules):
            found = totals(spec.rules, share=share, processes=run.workers)
            lines += [line for line in found if line not in lines]  # several settings of an agent share them
            continue
        limit = spec.share_of_limit(share)
        if limit is None:
            continue
        agents = max([run.load.users, *(trial.users for trial in run.trials)])
        count, what = (agents, "agent") if spec.scope == "agent" else (run.workers, "worker")
        lines.append(f"{spec}: limit {limit} × {counted(count, what)} = {limit * count} calls at once")
    if model_limit := run.arguments.get("model_limit"):
        rules = parse_model_limit(str(model_limit))
        of_model = totals(rules, share=share, processes=run.workers, what="model requests")
        lines += [f"the model, {line}" for line in of_model]
    return lines


def moving_limit(strategy: StrategySummary) -> str | None:
    """`limit 9 to 48, last 40` of a strategy whose limit adapts."""
    limit = strategy.limit
    return None if limit is None else f"limit {limit.low} to {limit.high}, last {limit.last}"


def overlap(strategy: StrategySummary) -> str | None:
    """How much an eager strategy ran beside the model, what that saved, and what could have been."""
    if strategy.overlap is None or not strategy.strategy.startswith("eager"):
        return None
    found = strategy.overlap
    said = f"tools ran {duration(found.seconds)} a loop beside the model; "
    possible = duration(found.savable_seconds)
    if found.saved_seconds < 0:
        return f"{said}waits cost {duration(-found.saved_seconds)} more than it saved, {possible} at most"
    return f"{said}saved {duration(found.saved_seconds)} of at most {possible}"


def objective_outcome(summary: Summary, shown: Callable[[str], str]) -> str:
    """`met by gathered; missed by sequential`; `shown` is how a name is written."""
    parts = []
    for answer, word in ((True, "met by"), (False, "missed by")):
        names = [shown(one.strategy) for one in summary.strategies if one.objective_met is answer]
        if names:
            parts.append(f"{word} {', '.join(names)}")
    return "; ".join(parts) or "no loop was measured"


def rendered(parts: Iterable[RenderableType], width: int, color: bool) -> str:
    """Rich's parts as text of this width, without spaces at the ends of lines."""
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        color_system="standard" if color else None,
        force_terminal=color,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _table(strategies: Sequence[StrategySummary]) -> Table:
    goodput = any(strategy.failure_rate.value for strategy in strategies)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    # The one column that may wrap, so that figures are whole where room is short.
    words = [len(word) for strategy in strategies for word in strategy.strategy.split() if is_setting(word)]
    table.add_column("strategy", max_width=min(_LONGEST_NAME, max(_NAME_WIDTH, *words, 0)), overflow="fold")
    rate_name = "good/s" if goodput else "loops/s"
    for name in (rate_name, "loop p50", "p95", "tools p50", "speed-up", "effic.", "failed"):
        table.add_column(name, justify="right", no_wrap=True)
    for strategy in strategies:
        rate = strategy.goodput.value if goodput else strategy.loops.per_second
        failed = strategy.failure_rate.value
        table.add_row(
            Text(clean(strategy.strategy, 4 * _LONGEST_NAME)),
            number(rate),
            *(
                # With a backlog that grows these say how long the window was.
                duration(None if strategy.backlog else strategy.loop_seconds[quantile].value)
                for quantile in ("p50", "p95")
            ),
            duration(strategy.tool_phase_seconds.p50.value),
            "–" if strategy.speed_up.value is None else f"{number(strategy.speed_up.value)}×",
            percent(strategy.efficiency.value),
            Text(percent(failed), style="red" if failed else ""),
        )
    return table


def _where(strategy: StrategySummary) -> str:
    """`2.31 s a loop: tools 1.88 s (81 %), model 0.41 s (18 %)`."""
    mean = strategy.mean_loop_seconds or 0.0
    parts = sorted(strategy.phases.items(), key=lambda part: -part[1])
    shown = [
        f"{name.replace('_', ' ')} {duration(value)} ({percent(value / mean)})"
        for name, value in parts
        if mean and value / mean >= _NAMED_SHARE
    ]
    return f"{duration(mean)} a loop: {', '.join(shown)}"


def _client(run: Run) -> list[str]:
    """How the client fared at its worst, and what it can do alone."""
    lags = [health.loop_lag_p99 for health in run.client if health.loop_lag_p99 is not None]
    late = [health.schedule_lag_p99 for health in run.client if health.schedule_lag_p99 is not None]
    parts = []
    if lags:
        parts.append(f"event-loop lag p99 {duration(max(lags))}")
    if late:
        parts.append(f"schedule lag p99 {duration(max(late))}")
    parts += [f"{name} CPU {percent(share)}" for name, share in busiest(run, "client").items()]
    lines = [f"at worst: {', '.join(parts)}"] if parts else []
    if run.capacity is not None:
        if run.capacity.request_cpu:
            lines.append(_clients(run, run.capacity.request_cpu))
        lines.append(
            f"client alone: {number(run.capacity.requests_per_second)} requests/s with "
            f"{run.capacity.agents} agents; {duration(run.capacity.seconds)} for a lone loop of 5 requests"
        )
    return lines


def _clients(run: Run, costs: Mapping[str, float]) -> str:
    """`client: openai SDK, 1.8 ms CPU a request; lean 0.1`: the one that was used first."""
    used = run.arguments.get("client", "sdk")
    sdk = PROVIDERS[run.provider].sdk if run.provider in PROVIDERS else "provider's"
    names = {"sdk": f"{sdk} SDK", "lean": "lean"}
    (first, cost), *others = sorted(costs.items(), key=lambda one: one[0] != used)
    said = "".join(f"; {names.get(name, name)} {other * 1e3:.2g}" for name, other in others)
    return f"client: {names.get(first, first)}, {cost * 1e3:.2g} ms CPU a request{said}"


def _load(summary: Summary) -> str:
    load = summary.load
    loops = sum(strategy.loops.due for strategy in summary.strategies)
    blocks = max((strategy.blocks for strategy in summary.strategies), default=0)
    if load.model == "recorded":
        stopped = sum(strategy.loops.cancelled for strategy in summary.strategies)
        beside = f"; {stopped} cancelled, neither failed nor good" if stopped else ""
        return f"recorded; {loops} loops counted in {counted(blocks, 'slice')} of time{beside}"
    if load.model == "open":
        what = f"open load, {clean(load.arrivals or f'{number(load.rate)}/s')}"
    else:
        agents = summary.strategies[0].users if summary.strategies else load.users
        what = f"closed load, {counted(agents, 'agent')}"
    text = f"{what}; {loops} loops counted in {counted(blocks, 'block')}"
    interrupted = sum(strategy.loops.interrupted for strategy in summary.strategies)
    if load.think_seconds:
        text += f"; {duration(load.think_seconds)} of thinking between loops"
    if interrupted:
        text += f"; {interrupted} interrupted after the drain, counted as failed"
    if not summary.finished:
        text += "; the run was cut short"
    return text
