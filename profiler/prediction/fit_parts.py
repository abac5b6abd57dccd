"""Makes a `Fit` of a recording that was turned into work (`profiler.prediction.fitting`). Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

from profiler.prediction.fit import (
    GRIDS,
    Client,
    Common,
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
from profiler.prediction.fitting import Fitted, ServerFit, refused
from profiler.prediction.quota import QuotaFinding
from profiler.prediction.quotas import fit_quotas
from profiler.prediction.work import LoopWork
from profiler.records import LoopRecord

Floats = NDArray[np.float64]

MOST_TOOLS_FINE = 12
"""With more tools than these, those that are seldom called have coarser tables, so that a fit is a page."""
_FEW, _COARSE = 30, 200
"""Values up to which a table has few points, or coarse ones."""
_ROUNDS = 5
"""The rounds whose fan-out and tools may be told apart."""
_ENOUGH = 100
"""Rounds or calls from which a difference between rounds is looked for."""
_SHOWS = 0.02
"""A correlation below this is taken for none."""


def fit_of(fitted: Fitted, records: Iterable[LoopRecord] = ()) -> Fit:
    """The fit of a recording. Its `records` tell the kinds of failures, and the quotas."""
    records = list(records)
    finding = (
        fit_quotas([one.model for record in records for one in record.rounds if one.model.asked])
        if records
        else None
    )
    calls, replies = _Calls.of(fitted), _Replies.of(fitted)
    tools = _tools(fitted, calls, records)
    model, tokens_known = _model(fitted, replies)
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
        servers=tuple(_rule(fitted, place, one) for place, one in enumerate(fitted.servers)),
        model=model,
        shape=_shape(fitted, calls, replies),
        client=_client(fitted),
        quotas=quotas,
        retry_after="none" if finding is None else finding.announced.kind,
        unknown=_unknown(fitted, tools, model, finding, tokens_known),
    )


class _Calls(NamedTuple):
    """The calls of all loops as columns; `round` numbers the rounds of all loops, `turn` those of a loop.

    `first`: it is the first of its round. Service of calls that were refused is not known: `known` is False.
    """

    tool: NDArray[np.int64]
    seconds: Floats
    known: NDArray[np.bool_]
    loop: NDArray[np.int64]
    round: NDArray[np.int64]
    turn: NDArray[np.int64]
    fan_out: NDArray[np.int64]
    first: NDArray[np.bool_]
    weight: Floats

    @classmethod
    def of(cls, fitted: Fitted) -> _Calls:
        rows: list[tuple[float, ...]] = []
        number = 0
        for place, loop in enumerate(fitted.loops):
            turn = 0
            for one in loop.rounds:
                if not one.calls:
                    continue
                count = len(one.calls)
                rows += [
                    (
                        call.tool,
                        call.service_ns - call.client_ns,
                        not call.filled,
                        place,
                        number,
                        turn,
                        count,
                        n == 0,
                        loop.weight,
                    )
                    for n, call in enumerate(one.calls)
                ]
                number, turn = number + 1, turn + 1
        columns = np.array(rows, dtype=np.float64).reshape(len(rows), 9).T
        whole = columns[[0, 3, 4, 5, 6]].astype(np.int64)
        return cls(
            whole[0],
            columns[1] / 1e9,
            columns[2] > 0,
            whole[1],
            whole[2],
            whole[3],
            whole[4],
            columns[7] > 0,
            columns[8],
        )


class _Replies(NamedTuple):
    """The model's replies of all loops as columns; 0: not known."""

    seconds: Floats
    first: Floats
    output: Floats
    input: Floats
    loop: NDArray[np.int64]
    weight: Floats

    @classmethod
    def of(cls, fitted: Fitted) -> _Replies:
        rows = [
            (
                one.service_ns - one.client_ns,
                one.first_token_ns,
                one.output_tokens,
                one.input_tokens,
                place,
                loop.weight,
            )
            for place, loop in enumerate(fitted.loops)
            for one in loop.rounds
        ]
        columns = np.array(rows, dtype=np.float64).reshape(len(rows), 6).T
        return cls(
            columns[0] / 1e9,
            columns[1] / 1e9,
            columns[2],
            columns[3],
            columns[4].astype(np.int64),
            columns[5],
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


def _tools(fitted: Fitted, calls: _Calls, records: Sequence[LoopRecord]) -> tuple[ToolFit, ...]:
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


def _mix_by_round(calls: _Calls, tools: int) -> list[Floats]:
    """The shares of the tools in each of the first rounds, the last entry for all that follow; empty where
    the rounds are alike."""
    last = 0
    while last < _ROUNDS and (calls.turn == last).sum() >= _ENOUGH:
        last += 1
    if last < 2:
        return []
    mixes = []
    for turn in range(last):
        mine = calls.turn == turn if turn < last - 1 else calls.turn >= turn
        mixes.append(
            np.bincount(calls.tool[mine], calls.weight[mine], minlength=tools) / calls.weight[mine].sum()
        )
    overall = np.bincount(calls.tool, calls.weight, minlength=tools) / calls.weight.sum()
    apart = max(float(np.abs(mix - overall).sum()) / 2 for mix in mixes)
    # What chance alone puts between the mix of so few calls and that of all.
    fewest = min(int((calls.turn == turn).sum()) for turn in range(last))
    return mixes if apart > max(0.05, 1.5 * np.sqrt(tools / fewest)) else []


def _rule(fitted: Fitted, place: int, fit: ServerFit) -> ServerRule:
    name = fit.name
    if name.endswith("/*"):
        # What users call an MCP server may be a host.
        name = f"server {place + 1}"
    return _server_rule(fit, name)


def _server_rule(fit: ServerFit, name: str) -> ServerRule:
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
        refusal_seconds=_round(fit.refusal_ns / 1e9) if fit.refused else None,
        retry_after=None if fit.retry_after_ns is None else _round(fit.retry_after_ns / 1e9),
        warnings=finding.warnings,
    )


def _model(fitted: Fitted, replies: _Replies) -> tuple[ModelFit, float]:
    """The model, and the share of replies that said how many tokens they had."""
    seconds, weight = replies.seconds, replies.weight
    streamed, counted, asked = replies.first > 0, replies.output > 0, replies.input > 0
    enough = max(20, seconds.size // 2)
    timed = streamed & (replies.output > 1)
    dependence = None
    if (counted & asked).sum() >= _ENOUGH:
        known = counted & asked
        design = np.stack([np.ones(known.sum()), replies.output[known], replies.input[known]], axis=1)
        values, *_ = np.linalg.lstsq(design, seconds[known], rcond=None)
        spread = float(np.var(seconds[known]))
        explained = 1 - float(np.var(seconds[known] - design @ values)) / spread if spread else 0.0
        if explained > 0.1:
            constant, each_out, each_in = (_round(float(one)) for one in values)
            dependence = (constant, each_out, each_in, _round(explained))
    return ModelFit(
        server=_server_rule(fitted.model, "model"),
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


def _shape(fitted: Fitted, calls: _Calls, replies: _Replies) -> Shape:
    weights = [loop.weight for loop in fitted.loops]
    rounds = counts([sum(1 for one in loop.rounds if one.calls) for loop in fitted.loops], weights)
    first = calls.first
    fan_out = counts(calls.fan_out[first].tolist(), calls.weight[first].tolist())
    by_round: list[Counts] = []
    for turn in range(_ROUNDS):
        mine = first & (calls.turn == turn)
        if mine.sum() < _ENOUGH:
            break
        by_round.append(counts(calls.fan_out[mine].tolist(), calls.weight[mine].tolist()))
    sizes = calls.fan_out[first]
    error = (
        float(np.std(sizes))
        / np.sqrt(max(1, min((first & (calls.turn == n)).sum() for n in range(len(by_round)))))
        if by_round
        else 0.0
    )
    if len(by_round) < 2 or max(abs(one.mean - fan_out.mean) for one in by_round) < max(
        0.05 * fan_out.mean, 3 * error
    ):
        by_round = []
    rest = first & (calls.turn >= len(by_round))
    if by_round and rest.sum() >= _ENOUGH:
        fan_out = counts(calls.fan_out[rest].tolist(), calls.weight[rest].tolist())
    failed = float(np.average([loop.failed for loop in fitted.loops], weights=weights)) if weights else 0.0
    return Shape(
        rounds=rounds,
        fan_out=fan_out,
        fan_out_by_round=tuple(by_round),
        same_tool=_same_tool(calls),
        common=_common(calls, replies),
        failed=_round(failed),
    )


def _same_tool(calls: _Calls) -> float:
    """p of: with p a call asks for the tool of the call before it, else for one by the shares."""
    after = ~calls.first[1:]
    if after.sum() < _ENOUGH:
        return 0.0
    same = float((calls.tool[1:] == calls.tool[:-1])[after].mean())
    shares = np.bincount(calls.tool) / calls.tool.size
    chance = float((shares**2).sum())
    if chance >= 1:
        return 0.0
    found = (same - chance) / (1 - chance)
    error = 2 * np.sqrt(chance * (1 - chance) / after.sum()) / (1 - chance)
    return _round(found) if found > max(_SHOWS, error) else 0.0


def scores(values: Floats) -> Floats:
    """The values' ranks as standard normal numbers; equal values have equal ones."""
    if values.size < 2:
        return np.zeros(values.size)
    found = ndtri((rankdata(values) - 0.5) / values.size)
    spread = float(np.std(found))
    scaled: Floats = found / spread if spread > 0 else found
    return scaled


def _common(calls: _Calls, replies: _Replies) -> Common:
    z = np.zeros(calls.tool.size)
    for tool in np.unique(calls.tool):
        mine = calls.known & (calls.tool == tool)
        z[mine] = scores(calls.seconds[mine])
    known = calls.known
    loops = int(max(calls.loop.max(initial=-1), replies.loop.max(initial=-1))) + 1
    within, across = _pairs(z[known], calls.loop[known], calls.round[known])
    of_reply = scores(replies.seconds)
    model_loop, _ = _pairs(of_reply, replies.loop, replies.loop)
    size = 0.0
    first = np.flatnonzero(calls.first)
    if first.size >= _ENOUGH:
        sums = np.bincount(calls.round[known], z[known], minlength=first.size)
        number = np.bincount(calls.round[known], minlength=first.size)
        some = number > 0
        size = _shown(
            float(np.mean((sums / np.maximum(1, number) * scores(calls.fan_out[first].astype(float)))[some]))
        )
    model_calls = 0.0
    if loops >= 50:
        number = np.bincount(calls.loop[known], minlength=loops)
        asked = np.bincount(replies.loop, minlength=loops)
        both = (number > 0) & (asked > 0)
        of_calls = np.bincount(calls.loop[known], z[known], minlength=loops)[both] / number[both]
        of_model = np.bincount(replies.loop, of_reply, minlength=loops)[both] / asked[both]
        model_calls = _shown(float(np.mean(of_calls * of_model)))
    return Common(
        round=_shown(within),
        loop=_shown(across),
        size=size,
        model_loop=_shown(model_loop),
        model_calls=model_calls,
        first_token=_linked(replies.seconds, replies.first),
        output_tokens=_linked(replies.seconds, replies.output),
        input_tokens=_linked(replies.seconds, replies.input),
    )


def _pairs(z: Floats, loop: NDArray[np.int64], round_: NDArray[np.int64]) -> tuple[float, float]:
    """The mean product of two scores of a round, and of two of different rounds of a loop."""
    if not z.size:
        return 0.0, 0.0
    by_round, by_loop = np.bincount(round_, z), np.bincount(loop, z)
    in_round, in_loop = np.bincount(round_).astype(float), np.bincount(loop).astype(float)
    squares = float((z**2).sum())
    pairs = float((in_round * (in_round - 1)).sum())
    others = float((in_loop**2).sum() - (in_round**2).sum())
    same = float((by_round**2).sum()) - squares
    apart = float((by_loop**2).sum() - (by_round**2).sum())
    return (same / pairs if pairs >= _ENOUGH else 0.0), (apart / others if others >= _ENOUGH else 0.0)


def _linked(seconds: Floats, other: Floats) -> float:
    known = other > 0
    if known.sum() < _ENOUGH or np.ptp(other[known]) == 0:
        return 0.0
    return _shown(float(np.mean(scores(seconds[known]) * scores(other[known]))))


def _shown(correlation: float) -> float:
    return 0.0 if abs(correlation) < _SHOWS else round(max(-1.0, min(1.0, correlation)), 3)


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
    for place, server in enumerate(fitted.servers):
        name = _rule(fitted, place, server).name
        if not server.finding.identified or server.finding.rule.kind == "none":
            said.append(f"{name}: {server.finding.sentence}")
        said += [f"{name}: {warning}" for warning in server.finding.warnings]
    if not fitted.model.finding.identified or fitted.model.finding.rule.kind == "none":
        said.append(f"the model: {fitted.model.finding.sentence}")
    said += [f"the model: {warning}" for warning in fitted.model.finding.warnings]
    for tool in tools:
        if tool.seconds.count < 1000:
            said.append(f"{tool.name}: its slowest percent is that of {tool.seconds.count:,} calls only")
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
