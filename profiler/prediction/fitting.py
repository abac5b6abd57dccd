"""From a recording to what can be run again: servers with their rules, and loops free of waiting. Pure.

Two passes. The first has all calls of each server, when they started and ended, and finds the server's rule
(`profiler.prediction.servers`). The second takes from every loop what its calls waited for under that rule,
and what the client waited between attempts: what is left is the loop's work.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from profiler.limits.retries import RULES, RetryRule
from profiler.prediction.client import CALM, ClientTimes, rates_of, waited_of
from profiler.prediction.loops import (
    ModelServices,
    StandIns,
    released_ns,
    round_work,
    unusable,
    weights_of,
)
from profiler.prediction.quotas.finding import QuotaFinding
from profiler.prediction.quotas.fit import fit_quotas
from profiler.prediction.quotas.retries import observed_retries, observed_times
from profiler.prediction.requests import Requests, TrialPlaces, add_call, add_request, refused, server_of
from profiler.prediction.servers.calls import Calls, Rule, in_flight, service_times
from profiler.prediction.servers.identify import Finding, identify
from profiler.prediction.servers.pace import Pace, Services, joined, pace_of, without
from profiler.prediction.simulation.work import CallWork, LoopWork, Server, System
from profiler.records import LoopRecord, ModelCall, vendor
from profiler.rundir import Run
from profiler.statistics.table import Ints

MODEL = "the model"
"""The name of the model's server in sentences."""

UNEXPLAINED = 0.1
"""The share of refusals of the model's server that its quotas may leave unexplained."""

_NO_SHORTFALL = ("limiter", "machine")
"""What a round may have without its calls being kept apart by the agent or its tools."""

FEWEST_IN_TRIAL = 50
"""Calls of a trial from which it counts as one that shows what a server does."""

FEWEST_AT_ONCE = 5
"""So many calls were in flight at once: at least this many calls found as many."""


@dataclass(frozen=True, slots=True)
class ServerFit:
    """A server, and what the recording shows of it. `calls` reached it, `refused` of them were.

    `busiest`: in the busiest trial 5 % of the calls found so many in flight, or more; themselves counted.
    `most`: the most that were in flight at once, as at least `FEWEST_AT_ONCE` calls found.
    """

    name: str
    tools: tuple[str, ...]
    finding: Finding
    calls: int
    refused: int
    refusal_ns: int
    retry_after_ns: int | None = None
    busiest: int = 0
    most: int = 0


@dataclass(frozen=True, slots=True)
class Fitted:
    """A recording as what can be run again. `servers` are those of the tools, as in `System.servers`.

    `places`: of each of `loops`, the place of its record among those that were given. `lost` counts loops
    that are in no `LoopWork`, by the reason. `cpu_ns` is the CPU time of the client for each loop, None where
    it is not known, and `client` what the client adds to loops when it is busy. `quota` is that of the
    model's server, `retries` how its client tries again. `invalid` says why the recording's own figures are
    not to be trusted.

    Of `asked` calls the times of `untimed` ones are not known, and `unobserved` ones were not seen at all;
    `nested` loops ran in the calls of others. Of `phases` rounds with several calls, `shortfalls` counts
    those whose calls something kept from overlapping, by what it was. `resolution_share`: the clock's tick as
    a share of a typical call.
    """

    run: Run
    system: System
    loops: tuple[LoopWork, ...]
    servers: tuple[ServerFit, ...]
    model: ServerFit
    recorded: int
    calls: int
    lost: Counter[str] = field(default_factory=Counter)
    cpu_ns: float | None = None
    client: ClientTimes = field(default_factory=ClientTimes)
    places: tuple[int, ...] = ()
    quota: QuotaFinding = field(default_factory=QuotaFinding)
    retries: RetryRule | None = None
    invalid: tuple[str, ...] = ()
    asked: int = 0
    untimed: int = 0
    unobserved: int = 0
    nested: int = 0
    phases: int = 0
    shortfalls: Counter[str] = field(default_factory=Counter)
    resolution_share: float = 0.0


def fit_run(
    run: Run,
    records: Iterable[LoopRecord],
    *,
    seed: int = 0,
    invalid: Sequence[str] = (),
    recorded_order: bool = False,
) -> Fitted:
    """The recording as what can be run again; `invalid`: why its own figures are not to be trusted.

    In `recorded_order` loops keep the pace that the servers had when they ran; else it is taken out of them,
    and drawn anew.
    """
    given = [(place, record) for place, record in enumerate(records) if record.ended_ns >= record.started_ns]
    every = [record for _, record in given]
    tools: dict[str, Requests] = {}
    model = Requests()
    rows_of_calls: dict[tuple[int, int, int], int] = {}
    rows_of_rounds: dict[tuple[int, int], int] = {}
    for number, record in enumerate(every):
        group = -1 if record.trial is None else record.trial
        for place, round_ in enumerate(record.rounds):
            row = add_request(model, round_.model, group, number)
            if row is not None:
                rows_of_rounds[number, place] = row
            for position, call in enumerate(round_.tool_calls):
                if call.started_ns is None or not call.ended or call.status == "cancelled":
                    continue
                rows = tools.setdefault(server_of(call), Requests())
                rows.tools[call.name] = None
                rows_of_calls[number, place, position] = add_call(rows, call, group, number)
    fits, services = [], {}
    trials = TrialPlaces.of(run)
    for name, rows in sorted(tools.items()):
        fit, service = _fit_server(name, tuple(rows.tools), rows, trials, seed)
        fits.append(fit)
        services[name] = service
    reached = {tool for fit in fits for tool in fit.tools}
    asked_for = {call.name for record in every for call in record.tool_calls}
    fits += [_unreached(name) for name in sorted(asked_for - reached)]
    requests = [round_.model for record in every for round_ in record.rounds if round_.model.asked]
    quota = fit_quotas(requests)
    if quota.limits and quota.unexplained <= UNEXPLAINED * max(1, quota.refused):
        model.without_refusals()  # the quota's: they say nothing about the load that the server can take
    of_model, model_service = _fit_server(MODEL, (), model, trials, seed)
    pace, model_pace = None, None
    if not recorded_order:
        pace = _take_out_pace([(rows, services[name]) for name, rows in sorted(tools.items())])
        model_pace = _take_out_pace([(model, model_service)])
    names = sorted({tool for fit in fits for tool in fit.tools})
    place_of = {name: place for place, name in enumerate(names)}
    server_place = {tool: place for place, fit in enumerate(fits) for tool in fit.tools}
    system = System(
        tools=tuple(names),
        servers=tuple(_server(fit) for fit in fits),
        server_of=tuple(server_place[name] for name in names),
        model=_server(of_model),
        mcp=tuple(
            fit.name.removesuffix("/*") if fit.name.endswith("/*") else ""
            for fit in (fits[server_place[name]] for name in names)
        ),
        pace=pace,
        model_pace=model_pace,
    )
    stand_ins = StandIns(services, tools, random.Random(f"{seed}/fill"))
    loops: list[LoopWork] = []
    places: list[int] = []
    lost: Counter[str] = Counter()
    clusters: dict[object, int] = {}
    fitted_model = ModelServices(model, model_service)
    weights = weights_of(every)
    for number, record in enumerate(every):
        why = unusable(record)
        if why is not None:
            if why:
                lost[why] += 1
            continue
        rounds = []
        for place, round_ in enumerate(record.rounds):
            calls = []
            for position, call in enumerate(round_.tool_calls):
                row = rows_of_calls.get((number, place, position))
                took = -1 if row is None else int(services[server_of(call)][row])
                filled = took < 0 and call.untimed != "never_started"
                took = max(0, took)  # one that never began, since nobody could read it, failed at once
                if filled:  # it was refused, so what it would have taken is not known
                    took = stand_ins.service(server_of(call), number)
                failed = call.status != "ok" and not refused(call)
                client_ns = 0 if row is None else tools[server_of(call)].client_ns(row)
                calls.append(
                    CallWork(place_of[call.name], took, failed, released_ns(call, round_), filled, client_ns)
                )
            row = rows_of_rounds.get((number, place))
            after = record.rounds[place + 1].started_ns if place + 1 < len(record.rounds) else round_.ended_ns
            rounds.append(round_work(round_, tuple(calls), *fitted_model.parts(round_.model, row), after))
        key = (record.number, record.process if record.number is None else "")
        cluster = clusters.setdefault(key if record.number is not None else number, len(clusters))
        places.append(given[number][0])
        loops.append(
            LoopWork(
                rounds=tuple(rounds),
                before_ns=max(0, record.rounds[0].started_ns - record.started_ns),
                after_ns=max(0, record.ended_ns - record.rounds[-1].ended_ns),
                failed=record.status != "ok",
                at_ns=record.started_ns,
                cluster=cluster,
                weight=weights[record.trial][len(record.rounds) - 1],
                trial=-1 if record.trial is None else record.trial,
            )
        )
    processes = {record.process for record in every}
    cpu = [one.cpu_seconds for one in run.client if one.trial is not None and one.process in processes]
    calls_of = [call for record in every for call in record.tool_calls]
    timed = [call.latency_ns for call in calls_of if call.latency_ns]
    typical = np.median(timed) if timed else 0.0
    several = [round_ for record in every for round_ in record.rounds if len(round_.tool_calls) > 1]
    known = [seconds for seconds in cpu if seconds is not None]
    return Fitted(
        run,
        system,
        tuple(loops),
        tuple(fits),
        of_model,
        recorded=len(every),
        calls=sum(fit.calls for fit in fits),
        lost=lost,
        cpu_ns=sum(known) * 1e9 / max(1, len(every)) if known else None,
        places=tuple(places),
        client=ClientTimes.of(run, loops, rates_of(run, every)),
        quota=quota,
        retries=_retries(run, every, requests),
        invalid=tuple(invalid),
        asked=len(calls_of) + sum(record.unobserved_calls for record in every),
        untimed=sum(call.untimed not in (None, "never_started") for call in calls_of),
        unobserved=sum(record.unobserved_calls for record in every),
        nested=sum(record.nested for record in every),
        phases=len(several),
        shortfalls=Counter(why for one in several if (why := one.shortfall) and why not in _NO_SHORTFALL),
        resolution_share=0.0
        if run.recording is None or not timed
        else run.recording.resolution_ns / max(1.0, float(typical)),
    )


def _retries(run: Run, records: Sequence[LoopRecord], requests: Sequence[ModelCall]) -> RetryRule | None:
    """The client's rule, or that of its SDK where the recording does not tell."""
    rule = observed_retries(requests).rule or RULES.get(vendor(run.provider))
    if rule is None:
        return None
    processes: dict[tuple[int | None, str], list[ModelCall]] = {}
    for record in records:
        of_process = processes.setdefault((record.trial, record.process), [])
        of_process += [round_.model for round_ in record.rounds if round_.model.asked]
    waited = waited_of(run)
    calm = [
        calls
        for (trial, _), calls in processes.items()
        if waited.get(-1 if trial is None else trial, 0.0) <= CALM
    ]
    return replace(rule, times=observed_times(calm) or observed_times(processes.values()))


def _fit_server(
    name: str, tools: tuple[str, ...], rows: Requests, trials: TrialPlaces, seed: int
) -> tuple[ServerFit, Ints]:
    calls = rows.calls(trials)
    served = calls.at_server()
    finding = identify(calls, seed=seed)
    turned_away = calls.refused
    refused_rows = np.array(rows.refused, bool)
    lasting = (np.array(rows.ended, np.int64) - np.array(rows.started, np.int64))[refused_rows]
    asked = np.array(rows.retry_after, np.int64)[refused_rows]
    asked = asked[asked >= 0]
    fit = ServerFit(
        name,
        tools,
        finding,
        calls=int(calls.started.size),
        refused=int(np.count_nonzero(turned_away)),
        refusal_ns=int(np.median(lasting)) if lasting.size else 2_000_000,
        retry_after_ns=int(np.median(asked)) if asked.size * 2 > lasting.size else None,
        busiest=_busiest(served),
        most=_most(served),
    )
    kept = slice(None) if rows.counted is None else rows.counted
    services = np.full(len(rows.started), -1, np.int64)
    services[kept] = service_times(served, finding.rule)
    return fit, services


def _unreached(tool: str) -> ServerFit:
    """A tool of which no call ever began: the agent has none such, or could not read the arguments."""
    finding = Finding(
        Rule("none"), False, (0.0, 0.0), None, "none of its calls began: each is taken to fail at once", ()
    )
    return ServerFit(tool, (tool,), finding, calls=0, refused=0, refusal_ns=2_000_000)


def _take_out_pace(servers: Sequence[tuple[Requests, Ints]]) -> Pace | None:
    """The pace of these servers together, which is taken out of their services in place."""
    parts, known = [], []
    for rows, service in servers:
        places = np.flatnonzero(service > 0)
        typical = float(np.median(service[places])) if places.size else 1.0
        started, group, loop = (
            np.array(column, np.int64)[places] for column in (rows.started, rows.group, rows.loop)
        )
        parts.append(Services(started, group, loop, np.log(service[places] / max(1.0, typical))))
        known.append(places)
    if not sum(part.started.size for part in parts):
        return None
    together = joined(parts)
    pace = pace_of(together)
    if pace is None:
        return None
    logs, pace = without(together, pace)
    begun = 0
    for (_, service), places in zip(servers, known, strict=True):
        service[places] = np.maximum(1, service[places] / np.exp(logs[begun : begun + places.size]))
        begun += places.size
    return pace


def _busiest(calls: Calls) -> int:
    others = in_flight(calls)
    found = [others[calls.group == group] for group in np.unique(calls.group)]
    enough = [own for own in found if own.size >= FEWEST_IN_TRIAL] or [others]
    return max((1 + int(np.quantile(own, 0.95)) for own in enough if own.size), default=0)


def _most(calls: Calls) -> int:
    others = np.sort(in_flight(calls)[~calls.refused])
    return int(others[-FEWEST_AT_ONCE]) + 1 if others.size >= FEWEST_AT_ONCE else 0


def _server(fit: ServerFit) -> Server:
    return Server(fit.name, fit.finding.rule, fit.refusal_ns, fit.retry_after_ns)
