"""Makes a `Fit` of a recording that was turned into work (`profiler.prediction.fitting`). Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from profiler.prediction.fitting import MODEL, Fitted, ServerFit
from profiler.prediction.quotas.finding import QuotaFinding
from profiler.prediction.quotas.fit import fit_quotas
from profiler.prediction.requests import LOAD_STATUSES, refused, server_of
from profiler.prediction.scenario.columns import ENOUGH, SHOWS, CallColumns, Floats, ReplyColumns, common_of
from profiler.prediction.scenario.fit import (
    GRIDS,
    Client,
    Counts,
    Fit,
    ModelFit,
    QuotaFit,
    ServerRule,
    Shape,
    Source,
    Table,
    ToolFit,
)
from profiler.prediction.simulation.work import LoopWork
from profiler.records import LoopRecord

MOST_TOOLS_FINE = 12
"""With more tools than these, those that are seldom called have coarser tables, so that a fit is a page."""
_FEW, _COARSE = 30, 200
"""Values up to which a table has few points, or coarse ones."""
_ROUNDS = 5
"""The rounds whose fan-out and tools may be told apart."""


def fit_of(fitted: Fitted, records: Iterable[LoopRecord] = ()) -> Fit:
    """The fit of a recording. Its `records` tell the kinds of failures, and the quotas."""
    records = list(records)
    finding = (
        fit_quotas([one.model for record in records for one in record.rounds if one.model.asked])
        if records
        else None
    )
    calls, replies = CallColumns.of(fitted), ReplyColumns.of(fitted)
    took = _refusals(records)
    tools = _tools(fitted, calls, records)
    model, tokens_known = _model(fitted, replies, took.get(MODEL))
    quotas = (
        ()
        if finding is None
        else tuple(
            QuotaFit(
                one.resource,
                _round(one.amount),
                one.source,
                None if one.burst is None else _round(one.burst),
                one.met,
                one.identified,
            )
            for one in finding.limits
        )
    )
    return Fit(
        source=_source(fitted),
        tools=tools,
        servers=tuple(_rule(place, one, took.get(one.name)) for place, one in enumerate(fitted.servers)),
        model=model,
        shape=_shape(fitted, calls, replies),
        client=_client(fitted),
        quotas=quotas,
        retry_after="none" if finding is None else finding.announced.kind,
        unknown=_unknown(fitted, tools, model, finding, tokens_known),
    )


def table(values: Floats, weights: Floats, *, most: str = "fine") -> Table:
    """The table of weighted values, with no more points than stand behind them."""
    names = list(GRIDS)
    grid = "few" if values.size < _FEW else "coarse" if values.size < _COARSE else "fine"
    grid = max(grid, most, key=names.index)
    if not values.size:
        return Table(grid, (0.0,) * len(GRIDS[grid]), 0, 0.0)
    order = np.argsort(values, kind="stable")
    ordered, heavy = values[order], weights[order]
    reached = (np.cumsum(heavy) - heavy / 2) / heavy.sum()
    found = np.interp(GRIDS[grid], reached, ordered)
    found[0], found[-1] = ordered[0], ordered[-1]
    mean = float(np.average(values, weights=weights))
    return Table(grid, tuple(_round(float(one)) for one in found), int(values.size), _round(mean))


def counts(values: Sequence[int], weights: Sequence[float], most: int = 40) -> Counts:
    """How often whole numbers came; of more than `most` different ones, neighbours are put together."""
    summed: dict[int, float] = defaultdict(float)
    for value, weight in zip(values, weights, strict=True):
        summed[value] += weight
    if not summed:
        return Counts((), ())
    pairs = sorted(summed.items())
    while len(pairs) > most:
        lightest = min(range(len(pairs) - 1), key=lambda n: pairs[n][1] + pairs[n + 1][1])
        (low, a), (high, b) = pairs[lightest : lightest + 2]
        pairs[lightest : lightest + 2] = [(round((low * a + high * b) / (a + b)), a + b)]
    total = sum(weight for _, weight in pairs)
    return Counts(tuple(value for value, _ in pairs), tuple(_round(weight / total) for _, weight in pairs))


def _source(fitted: Fitted) -> Source:
    run = fitted.run
    seconds = sum(one.ended_ns - one.started_ns for one in run.trials) / 1e9
    if not run.trials and fitted.loops:
        ends = [loop.at_ns + _length(loop) for loop in fitted.loops]
        seconds = (max(ends) - min(loop.at_ns for loop in fitted.loops)) / 1e9
    return Source(
        loops=len(fitted.loops),
        calls=fitted.calls,
        requests=fitted.model.calls,
        seconds=round(seconds, 1),
        strategies=tuple(spec.text for spec in run.strategies),
        levels=tuple(sorted({one.users for one in run.trials})),
        arrivals=run.load.arrivals,
        lost=tuple(sorted(fitted.lost.items())),
        door=None if run.recording is None else run.recording.door,
        provider=run.provider,
    )


def _length(loop: LoopWork) -> int:
    return sum(
        one.service_ns + max((call.service_ns for call in one.calls), default=0) for one in loop.rounds
    )


def _tools(fitted: Fitted, calls: CallColumns, records: Sequence[LoopRecord]) -> tuple[ToolFit, ...]:
    total = calls.weight.sum()
    failed = _failures(records)
    by_round = _mix_by_round(calls, len(fitted.system.tools))
    numbers = np.bincount(calls.tool, minlength=len(fitted.system.tools))
    usual = set(np.argsort(-numbers, kind="stable")[:MOST_TOOLS_FINE].tolist())
    found = []
    for place, name in enumerate(fitted.system.tools):
        mine = calls.tool == place
        known = mine & calls.known
        kinds, tried = failed.get(name, (Counter(), 0))
        if not records:
            shares = [
                call.failed
                for loop in fitted.loops
                for one in loop.rounds
                for call in one.calls
                if call.tool == place
            ]
            kinds, tried = Counter({"failed": sum(shares)} if any(shares) else {}), len(shares)
        found.append(
            ToolFit(
                name=name,
                server=fitted.system.server_of[place],
                calls=int(mine.sum()),
                share=_round(float(calls.weight[mine].sum() / total)) if total else 0.0,
                seconds=table(
                    calls.seconds[known], calls.weight[known], most="fine" if place in usual else "few"
                ),
                by_round=tuple(_round(float(one[place])) for one in by_round),
                failed=tuple((kind, _round(count / tried)) for kind, count in kinds.most_common(5)),
            )
        )
    return tuple(found)


def _failures(records: Sequence[LoopRecord]) -> dict[str, tuple[Counter[str], int]]:
    """By tool: failures of its own by kind, and the calls that were not refused."""
    found: dict[str, tuple[Counter[str], int]] = {}
    for record in records:
        for one in record.rounds:
            for call in one.tool_calls:
                if call.started_ns is None or call.status == "cancelled" or refused(call):
                    continue
                kinds, tried = found.get(call.name, (Counter(), 0))
                if call.failure is not None:
                    kinds[call.failure] += 1
                found[call.name] = (kinds, tried + 1)
    return found


def _turns(calls: CallColumns) -> int:
    """The number of first rounds that enough loops have, so that they can be told apart."""
    turns = 0
    while turns < _ROUNDS and (calls.first & (calls.turn == turns)).sum() >= ENOUGH:
        turns += 1
    return turns


def _mix_by_round(calls: CallColumns, tools: int) -> list[Floats]:
    """The shares of the tools in each of the first rounds, the last entry for all that follow; empty where
    the rounds are alike."""
    turns = _turns(calls)
    if turns < 2:
        return []
    long = np.isin(calls.loop, calls.loop[calls.turn >= turns - 1])  # as for the fan-out
    held, mixes = [], []
    for turn in range(turns):
        mine = calls.turn == turn if turn < turns - 1 else calls.turn >= turn
        mixes.append(_mix(calls, mine, tools))
        held.append(_mix(calls, mine & long, tools))
    overall = _mix(calls, long, tools)
    apart = max(float(np.abs(mix - overall).sum()) / 2 for mix in held)
    # What chance alone puts between the mix of so few calls and that of all.
    fewest = min(int((long & (calls.turn == turn)).sum()) for turn in range(turns))
    return mixes if apart > max(0.05, 1.5 * np.sqrt(tools / fewest)) else []


def _mix(calls: CallColumns, mine: NDArray[np.bool_], tools: int) -> Floats:
    mix: Floats = (
        np.bincount(calls.tool[mine], calls.weight[mine], minlength=tools) / calls.weight[mine].sum()
    )
    return mix


def _refusals(records: Sequence[LoopRecord]) -> dict[str, float]:
    """By server, seconds of a refusal. A busy client sees most of them late, so that the median would be its
    own time: what a tenth of them stay below is the server's."""
    took: dict[str, list[int]] = defaultdict(list)
    for record in records:
        for one in record.rounds:
            took[MODEL] += [
                tried.ended_ns - tried.started_ns
                for tried in one.model.attempts
                if tried.status in LOAD_STATUSES
            ]
            for call in one.tool_calls:
                if call.started_ns is not None and refused(call):
                    last = call.attempts[-1] if call.attempts else call
                    took[server_of(call)].append(last.ended_ns - (last.started_ns or 0))
    return {name: float(np.quantile(values, 0.1)) / 1e9 for name, values in took.items() if values}


def _rule(place: int, fit: ServerFit, refusal: float | None = None) -> ServerRule:
    name = fit.name
    if name.endswith("/*"):
        # What users call an MCP server may be a host.
        name = f"server {place + 1}"
    return _server_rule(fit, name, refusal)


def _server_rule(fit: ServerFit, name: str, refusal: float | None) -> ServerRule:
    rule, finding = fit.finding.rule, fit.finding
    return ServerRule(
        name=name,
        rule=rule.kind,
        identified=finding.identified,
        sentence=finding.sentence,
        calls=fit.calls,
        refused=fit.refused,
        seen=finding.seen,
        capacity=rule.capacity,
        capacities=finding.capacities,
        queue=rule.queue,
        rate=None if rule.rate is None else _round(rule.rate),
        burst=None if rule.burst is None else _round(rule.burst),
        refusal_seconds=None if refusal is None else _round(refusal),
        retry_after=None if fit.retry_after_ns is None else _round(fit.retry_after_ns / 1e9),
        warnings=finding.warnings,
    )


def _model(fitted: Fitted, replies: ReplyColumns, refusal: float | None) -> tuple[ModelFit, float]:
    """The model, and the share of replies that said how many tokens they had."""
    seconds, weight = replies.seconds, replies.weight
    streamed, counted, asked = replies.first > 0, replies.output > 0, replies.input > 0
    enough = max(20, seconds.size // 2)
    timed = streamed & (replies.output > 1)
    dependence = _dependence(replies)
    return ModelFit(
        server=_server_rule(fitted.model, "model", refusal),
        seconds=table(seconds, weight),
        first_token=table(replies.first[streamed], weight[streamed]) if streamed.sum() >= enough else None,
        per_token=table((seconds - replies.first)[timed] / (replies.output[timed] - 1), weight[timed])
        if timed.sum() >= enough
        else None,
        output_tokens=table(replies.output[counted], weight[counted], most="coarse")
        if counted.sum() >= enough
        else None,
        input_tokens=table(replies.input[asked], weight[asked], most="coarse")
        if asked.sum() >= enough
        else None,
        dependence=dependence,
    ), float(counted.sum() / counted.size) if counted.size else 0.0


def _dependence(replies: ReplyColumns) -> tuple[float, float, float, float] | None:
    """(seconds, for each output token, for each input token, the share that is explained); None where little
    is, or tokens are not known."""
    known = (replies.output > 0) & (replies.input > 0)
    if known.sum() < ENOUGH:
        return None
    seconds, tokens = replies.seconds[known], np.stack([replies.output[known], replies.input[known]], axis=1)
    middle, usual = tokens.mean(axis=0), float(seconds.mean())
    slopes, *_ = np.linalg.lstsq(tokens - middle, seconds - usual, rcond=None)
    spread = float(np.var(seconds))
    left = float(np.var(seconds - usual - (tokens - middle) @ slopes))
    explained = 1 - left / spread if spread else 0.0
    if explained < 0.1:
        return None
    alone = usual - float(middle @ slopes)
    return _round(alone), _round(float(slopes[0])), _round(float(slopes[1])), _round(explained)


def _shape(fitted: Fitted, calls: CallColumns, replies: ReplyColumns) -> Shape:
    weights = [loop.weight for loop in fitted.loops]
    rounds = counts([sum(1 for one in loop.rounds if one.calls) for loop in fitted.loops], weights)
    first = calls.first
    fan_out = counts(calls.fan_out[first].tolist(), calls.weight[first].tolist())
    by_round: list[Counts] = []
    turns = _turns(calls)
    if turns >= 2:
        # Of loops that have all of these rounds: the later rounds of others are those of large loops alone.
        long = first & np.isin(calls.loop, calls.loop[calls.turn >= turns - 1])
        sizes = [calls.fan_out[long & (calls.turn == turn)] for turn in range(turns)]
        usual = float(np.mean(np.concatenate(sizes)))
        error = float(np.std(np.concatenate(sizes))) / np.sqrt(min(one.size for one in sizes))
        if max(abs(one.mean() - usual) for one in sizes) > max(0.05 * usual, 3 * error):
            for turn in range(turns):
                mine = first & (calls.turn == turn)
                by_round.append(counts(calls.fan_out[mine].tolist(), calls.weight[mine].tolist()))
    rest = first & (calls.turn >= len(by_round))
    if by_round and rest.sum() >= ENOUGH:
        fan_out = counts(calls.fan_out[rest].tolist(), calls.weight[rest].tolist())
    failed = float(np.average([loop.failed for loop in fitted.loops], weights=weights)) if weights else 0.0
    return Shape(
        rounds=rounds,
        fan_out=fan_out,
        fan_out_by_round=tuple(by_round),
        same_tool=_same_tool(calls),
        common=common_of(calls, replies),
        failed=_round(failed),
    )


def _same_tool(calls: CallColumns) -> float:
    """p of: with p a call asks for the tool of the call before it, else for one by the shares."""
    after = ~calls.first[1:]
    if after.sum() < ENOUGH:
        return 0.0
    same = float((calls.tool[1:] == calls.tool[:-1])[after].mean())
    shares = np.bincount(calls.tool) / calls.tool.size
    chance = float((shares**2).sum())
    if chance >= 1:
        return 0.0
    found = (same - chance) / (1 - chance)
    error = 2 * np.sqrt(chance * (1 - chance) / after.sum()) / (1 - chance)
    return _round(found) if found > max(SHOWS, error) else 0.0


def _client(fitted: Fitted) -> Client:
    own = [
        loop.before_ns + loop.after_ns + sum(one.parse_ns + one.collect_ns for one in loop.rounds)
        for loop in fitted.loops
    ]
    cpu = None if fitted.cpu_ns is None else _round(fitted.cpu_ns / 1e9)
    return Client(cpu, _round(float(np.median(own)) / 1e9) if own else 0.0)


def _unknown(
    fitted: Fitted,
    tools: Sequence[ToolFit],
    model: ModelFit,
    finding: QuotaFinding | None,
    tokens_known: float,
) -> tuple[str, ...]:
    said = []
    places = sorted(range(len(fitted.servers)), key=lambda place: -fitted.servers[place].calls)
    for place in places:
        server, name = fitted.servers[place], _rule(place, fitted.servers[place]).name
        shown = place in places[:MOST_TOOLS_FINE]
        if shown and (not server.finding.identified or server.finding.rule.kind == "none"):
            said.append(f"{name}: {server.finding.sentence}")
        said += [f"{name}: {warning}" for warning in server.finding.warnings]
    if len(places) > MOST_TOOLS_FINE:
        said.append(f"what {len(places) - MOST_TOOLS_FINE} servers that were called less do under more load")
    if not fitted.model.finding.identified or fitted.model.finding.rule.kind == "none":
        said.append(f"the model: {fitted.model.finding.sentence}")
    # Quotas explain what the number of requests in flight and their rate do not.
    explained = finding is not None and any(one.met for one in finding.limits)
    said += [
        f"the model: {warning}"
        for warning in fitted.model.finding.warnings
        if not (explained and "refused" in warning)
    ]
    rare = [tool.name for tool in tools if tool.seconds.count < 1000]
    if rare:
        names = ", ".join(rare[:MOST_TOOLS_FINE]) + (" and others" if len(rare) > MOST_TOOLS_FINE else "")
        said.append(f"the slowest percent of the calls of {names}: there are fewer than 1,000 of each")
    if model.first_token is None:
        said.append("the model's time to the first token: replies were not streamed")
    if tokens_known < 0.5:
        said.append("the model's tokens: most replies do not say how many they had")
    if finding is not None:
        said += finding.words
    said += [
        f"{count:,} of {fitted.recorded:,} loops are not in it: {why}"
        for why, count in sorted(fitted.lost.items())
    ]
    if fitted.cpu_ns is None:
        said.append("the client's CPU time: the recording does not have it")
    return tuple(said)


def _round(value: float) -> float:
    """To four digits: more are noise, and make a page of two."""
    return float(f"{value:.4g}")
