"""Recorded loops as work that can be run again: what each request took, without what it waited for. Pure."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from profiler.prediction.requests import Requests
from profiler.prediction.simulation.work import CallWork, RoundWork
from profiler.records import LoopRecord, ModelCall, RoundRecord, ToolCall
from profiler.statistics.table import Ints

NEAR = 40
"""Calls of loops about as slow, of which one stands for a call that was refused."""

BY_QUOTA = "ended by a refusal of the model's server"
"""Why a loop is lost that the model's server would not let go on."""


def released_ns(call: ToolCall, round_: RoundRecord) -> int:
    """The ns from the start of the tool phase until the call was handed to the strategy.

    At once where another program's recording does not tell when: by then the reply had asked for it.
    """
    if "queued_ns" in call.unknown or round_.tools_started_ns is None:
        return 0
    return max(0, call.queued_ns - round_.tools_started_ns)


class StandIns:
    """Services for calls that were refused: those of other calls of the server, of loops about as slow.

    So that what is common to the calls of a loop stays common to them. How slow a loop is, is the mean of the
    logarithms of its other services over the typical one of their server; the stand-in is one of `NEAR` whose
    loops are nearest in that.
    """

    def __init__(self, services: dict[str, Ints], rows: dict[str, Requests], draw: random.Random) -> None:
        self._draw = draw
        logs: dict[str, NDArray[np.float64]] = {}
        sums: dict[int, float] = defaultdict(float)
        counts: Counter[int] = Counter()
        for name, service in services.items():
            known = np.flatnonzero(service > 0)
            log = np.log(service[known] / max(1.0, float(np.median(service[known])))) if known.size else known
            logs[name] = log.astype(float)
            loops = np.array(rows[name].loop, np.int64)[known]
            for loop, value in zip(loops.tolist(), logs[name].tolist(), strict=True):
                sums[loop] += value
                counts[loop] += 1
        self._slow = {loop: total / counts[loop] for loop, total in sums.items()}
        self._pools: dict[str, tuple[NDArray[np.float64], Ints]] = {}
        for name, service in services.items():
            known = np.flatnonzero(service > 0)
            loops = np.array(rows[name].loop, np.int64)[known].tolist()
            # Of each the slowness of its loop without itself.
            rest = np.array(
                [
                    (sums[loop] - value) / (counts[loop] - 1) if counts[loop] > 1 else 0.0
                    for loop, value in zip(loops, logs[name].tolist(), strict=True)
                ]
            )
            order = np.argsort(rest, kind="stable")
            self._pools[name] = (rest[order], service[known][order])

    def service(self, server: str, loop: int) -> int:
        """The ns that stand for a refused call of this loop; 0 where no call of the server was taken."""
        rest, service = self._pools.get(server, (np.empty(0), np.empty(0, np.int64)))
        if not service.size:
            return 0
        slow = self._slow.get(loop)
        if slow is None:
            return int(service[self._draw.randrange(service.size)])
        place = int(np.searchsorted(rest, slow)) - NEAR // 2 + self._draw.randrange(NEAR)
        return int(service[min(max(place, 0), service.size - 1)])


class ModelServices:
    """The model's requests: what the server took for each, free of waiting."""

    def __init__(self, rows: Requests, service: Ints) -> None:
        self._rows = rows
        self._service = service

    def parts(self, model: ModelCall, row: int | None) -> tuple[int, int]:
        """The ns of the request that got the reply: at the server, and what the client adds to them."""
        rows = self._rows
        if row is None:
            took = max(0, model.duration_ns - model.limiter_wait_ns)
            client = min(took, model.sending_ns + model.late_ns // 2)
            return took - client, client
        took = rows.ended[row] - rows.started[row]
        client = rows.client_ns(row)
        served = int(self._service[row])
        before = rows.started[row] - model.started_ns if len(model.attempts) < 2 else 0
        beside = max(0, model.ended_ns - rows.ended[row]) + max(0, before - model.limiter_wait_ns)
        return took - client if served < 0 else served, client + beside


def round_work(
    round_: RoundRecord, calls: tuple[CallWork, ...], service_ns: int, client_ns: int, after_ns: int
) -> RoundWork:
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
        client_ns=client_ns,
    )


def unusable(record: LoopRecord) -> str | None:
    """Why a loop says nothing about the work, in words; empty for one that is part of another's."""
    if record.nested:
        return ""
    if not record.rounds or record.rounds_dropped:
        return "not recorded whole"
    if record.status == "cancelled" or record.error_type in ("loop_timeout", "cancelled"):
        return "cut off"
    if record.status != "ok" and any(refusal for refusal in record.rounds[-1].model.refusals):
        return BY_QUOTA
    return None


MOST_LOST = 0.5
"""The share of requests given up beyond which a loop that went on does not stand for more."""


def weights_of(records: Sequence[LoopRecord]) -> dict[int | None, list[float]]:
    """Of each trial, how many loops with one more model request stand for each: of one, of two, …

    Longer loops are lost more often: those of n requests are kept with the product of the shares of second to
    n-th requests that did not end their loop by a refusal (Kaplan and Meier, 1958). What is lost at the first
    is lost of all alike.
    """
    asked: dict[int | None, Counter[int]] = defaultdict(Counter)
    lost: dict[int | None, Counter[int]] = defaultdict(Counter)
    for record in records:
        asked[record.trial].update(range(len(record.rounds)))
        if record.status == "error" and record.rounds and record.rounds[-1].model.refusals:
            lost[record.trial][len(record.rounds) - 1] += record.rounds[-1].model.status == "error"
    found: dict[int | None, list[float]] = {}
    for trial, count in asked.items():
        weights = [1.0]
        for place in range(1, max(count, default=0) + 1):
            kept = 1.0 - lost[trial][place] / count[place]
            weights.append(weights[-1] / max(1.0 - MOST_LOST, kept))
        found[trial] = weights
    return found
