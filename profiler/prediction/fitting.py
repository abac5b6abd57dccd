"""From a recording to what can be run again: servers with their rules, and loops free of waiting. Pure.

Two passes. The first has all calls of each server, when they started and ended, and finds the server's rule
(`profiler.prediction.servers`). The second takes from every loop what its calls waited for under that rule,
and what the client waited between attempts: what is left is the loop's work.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from profiler.prediction.servers import Calls, Finding, identify, service_times
from profiler.prediction.work import CallWork, LoopWork, RoundWork, Server, System
from profiler.records import LoopRecord, ModelCall, RoundRecord, ToolCall
from profiler.rundir import Run
from profiler.statistics.table import Ints

MODEL = "the model"
"""The name of the model's server in sentences."""

LOAD_STATUSES = frozenset((429, 503, 529))
"""Statuses by which a server refuses a request for the load that it has."""

_LOAD_ERRORS = frozenset(f"http_{status}" for status in LOAD_STATUSES)


@dataclass(frozen=True, slots=True)
class ServerFit:
    """A server, and what the recording shows of it. `calls` reached it, `refused` of them were."""

    name: str
    tools: tuple[str, ...]
    finding: Finding
    calls: int
    refused: int
    refusal_ns: int
    retry_after_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Fitted:
    """A recording as what can be run again. `servers` are those of the tools, as in `System.servers`.

    `places`: of each of `loops`, the place of its record among those that were given. `lost` counts loops
    that are in no `LoopWork`, by the reason. `cpu_ns` is the CPU time of the client for each loop, None where
    it is not known.
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
    places: tuple[int, ...] = ()


class _Rows:
    """The requests to one server, as columns under way."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.ended: list[int] = []
        self.refused: list[bool] = []
        self.group: list[int] = []
        self.loop: list[int] = []
        self.retry_after: list[int] = []
        self.tools: dict[str, None] = {}

    def add(
        self, started: int, ended: int, refused: bool, group: int, loop: int, retry_after: int | None
    ) -> int:
        """The row's number."""
        self.started.append(started)
        self.ended.append(ended)
        self.refused.append(refused)
        self.group.append(group)
        self.loop.append(loop)
        self.retry_after.append(-1 if retry_after is None else retry_after)
        return len(self.started) - 1

    def calls(self) -> Calls:
        return Calls(
            started=np.array(self.started, np.int64),
            ended=np.array(self.ended, np.int64),
            refused=np.array(self.refused, bool),
            group=np.array(self.group, np.int64),
            retry_after=np.array(self.retry_after, np.int64),
        )


def server_of(call: ToolCall) -> str:
    """The name of the server of a call: its MCP server's, else the tool's own."""
    return f"{call.server}/*" if call.server else call.name


def refused(call: ToolCall) -> bool:
    """Whether the server refused it for its load."""
    return call.error_type in _LOAD_ERRORS or call.error_type == "busy"


def fit_run(run: Run, records: Iterable[LoopRecord], *, seed: int = 0) -> Fitted:
    """The recording as what can be run again."""
    given = [(place, record) for place, record in enumerate(records) if record.ended_ns >= record.started_ns]
    every = [record for _, record in given]
    tools: dict[str, _Rows] = {}
    model = _Rows()
    rows_of_calls: dict[tuple[int, int, int], int] = {}
    rows_of_rounds: dict[tuple[int, int], int] = {}
    for number, record in enumerate(every):
        group = -1 if record.trial is None else record.trial
        for place, round_ in enumerate(record.rounds):
            row = _add_request(model, round_.model, group, number)
            if row is not None:
                rows_of_rounds[number, place] = row
            for position, call in enumerate(round_.tool_calls):
                if call.started_ns is None or not call.ended or call.status == "cancelled":
                    continue
                rows = tools.setdefault(server_of(call), _Rows())
                rows.tools[call.name] = None
                rows_of_calls[number, place, position] = _add_call(rows, call, group, number)
    fits, services = [], {}
    for name, rows in sorted(tools.items()):
        fit, service = _fit_server(name, tuple(rows.tools), rows, seed)
        fits.append(fit)
        services[name] = service
    of_model, model_service = _fit_server(MODEL, (), model, seed)
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
    )
    draw = random.Random(f"{seed}/fill")
    pools = {name: service[service >= 0] for name, service in services.items()}
    loops: list[LoopWork] = []
    places: list[int] = []
    lost: Counter[str] = Counter()
    clusters: dict[object, int] = {}
    fitted_model = _Model(model, model_service)
    survival = _survival(every)
    for number, record in enumerate(every):
        why = _unusable(record)
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
                filled = took < 0
                if filled:  # it was refused, so what it would have taken is not known
                    pool = pools.get(server_of(call))
                    took = int(pool[draw.randrange(pool.size)]) if pool is not None and pool.size else 0
                released = max(0, call.queued_ns - (round_.tools_started_ns or call.queued_ns))
                failed = call.status != "ok" and not refused(call)
                client_ns = 0 if filled else min(took, _client_ns(call))
                calls.append(CallWork(place_of.get(call.name, 0), took, failed, released, filled, client_ns))
            row = rows_of_rounds.get((number, place))
            after = record.rounds[place + 1].started_ns if place + 1 < len(record.rounds) else round_.ended_ns
            rounds.append(_round(round_, tuple(calls), fitted_model.service(round_.model, row), after))
        key = (record.number, record.process if record.number is None else "")
        cluster = clusters.setdefault(key if record.number is not None else number, len(clusters))
        requests = len(record.rounds)
        places.append(given[number][0])
        loops.append(
            LoopWork(
                rounds=tuple(rounds),
                before_ns=max(0, record.rounds[0].started_ns - record.started_ns),
                after_ns=max(0, record.ended_ns - record.rounds[-1].ended_ns),
                failed=record.status != "ok",
                at_ns=record.started_ns,
                cluster=cluster,
                weight=1.0 / survival.get(record.trial, 1.0) ** requests,
            )
        )
    cpu = [one.cpu_seconds for one in run.client if one.trial is not None]
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
    )


def _add_request(rows: _Rows, model: ModelCall, group: int, loop: int) -> int | None:
    """The row of the attempt that got the reply; None where none did."""
    if not model.asked:
        return None
    last = None
    for attempt in model.attempts:
        turned_away = attempt.status in LOAD_STATUSES
        row = rows.add(attempt.started_ns, attempt.ended_ns, turned_away, group, loop, attempt.retry_after_ns)
        last = None if turned_away else row
    if not model.attempts and model.latency_ns is not None and model.status == "ok":
        last = rows.add(model.started_ns + model.limiter_wait_ns, model.ended_ns, False, group, loop, None)
    return last


def _add_call(rows: _Rows, call: ToolCall, group: int, loop: int) -> int:
    row = -1
    for attempt in call.attempts:
        turned_away = attempt.error_type in _LOAD_ERRORS
        row = rows.add(attempt.started_ns, attempt.ended_ns, turned_away, group, loop, attempt.retry_after_ns)
    if not call.attempts:
        assert call.started_ns is not None
        row = rows.add(call.started_ns, call.ended_ns, refused(call), group, loop, None)
    return row


def _fit_server(name: str, tools: tuple[str, ...], rows: _Rows, seed: int) -> tuple[ServerFit, Ints]:
    calls = rows.calls()
    finding = identify(calls, seed=seed)
    turned_away = calls.refused
    lasting = (calls.ended - calls.started)[turned_away]
    asked = np.array(rows.retry_after, np.int64)[turned_away]
    asked = asked[asked >= 0]
    fit = ServerFit(
        name,
        tools,
        finding,
        calls=int(calls.started.size),
        refused=int(np.count_nonzero(turned_away)),
        refusal_ns=int(np.median(lasting)) if lasting.size else 2_000_000,
        retry_after_ns=int(np.median(asked)) if asked.size * 2 > lasting.size else None,
    )
    return fit, service_times(calls, finding.rule)


def _server(fit: ServerFit) -> Server:
    return Server(fit.name, fit.finding.rule, fit.refusal_ns, fit.retry_after_ns)


class _Model:
    """The model's requests: what the server took for each, free of waiting."""

    def __init__(self, rows: _Rows, service: Ints) -> None:
        self._rows = rows
        self._service = service

    def service(self, model: ModelCall, row: int | None) -> int:
        """The time of the request that got the reply, with what the client did beside."""
        if row is None:
            return max(0, model.duration_ns - model.limiter_wait_ns)
        took = self._rows.ended[row] - self._rows.started[row]
        before = self._rows.started[row] - model.started_ns if len(model.attempts) < 2 else 0
        beside = max(0, model.ended_ns - self._rows.ended[row]) + max(0, before - model.limiter_wait_ns)
        service = int(self._service[row])
        return (took if service < 0 else service) + beside


def _round(round_: RoundRecord, calls: tuple[CallWork, ...], service_ns: int, after_ns: int) -> RoundWork:
    model = round_.model
    began = model.attempts[-1].started_ns if model.attempts else model.started_ns + model.limiter_wait_ns
    token = 0 if model.first_token_ns is None else max(0, min(service_ns, model.first_token_ns - began))
    handed = round_.tools_started_ns if calls else None
    last = max((call.ended_ns for call in round_.tool_calls), default=model.ended_ns)
    return RoundWork(
        service_ns=service_ns,
        calls=calls,
        parse_ns=0 if handed is None else max(0, handed - model.ended_ns),
        collect_ns=max(0, max(after_ns, round_.ended_ns) - (last if calls else model.ended_ns)),
        first_token_ns=token,
        input_tokens=model.limited_input_tokens or 0,
        output_tokens=model.output_tokens or 0,
        client_ns=min(service_ns, _client_ns(model)),
    )


def _client_ns(request: ModelCall | ToolCall) -> int:
    """The client's own part: an end comes at any time of a busy period, so that half of that is the mean."""
    return request.sending_ns + request.late_ns // 2


def _unusable(record: LoopRecord) -> str | None:
    """Why a loop says nothing about the work, in words; empty for one that is part of another's."""
    if record.nested:
        return ""
    if not record.rounds or record.rounds_dropped:
        return "not recorded whole"
    if record.status == "cancelled" or record.error_type in ("loop_timeout", "cancelled"):
        return "cut off"
    if record.status != "ok" and any(refusal for refusal in record.rounds[-1].model.refusals):
        return "ended by a refusal of the model's server"
    return None


def _survival(records: Sequence[LoopRecord]) -> dict[int | None, float]:
    """By trial, the share of model requests that did not end their loop by a refusal.

    Longer loops are lost more often: one of n requests is kept with this share to the power of n.
    """
    asked: dict[int | None, int] = defaultdict(int)
    lost: dict[int | None, int] = defaultdict(int)
    for record in records:
        asked[record.trial] += len(record.rounds)
        if record.status == "error" and record.rounds and record.rounds[-1].model.refusals:
            lost[record.trial] += record.rounds[-1].model.status == "error"
    return {trial: max(0.5, 1.0 - lost[trial] / count) for trial, count in asked.items() if count}
