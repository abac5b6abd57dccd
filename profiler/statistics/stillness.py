"""When a target stood still: nothing it was asked was answered for a while, then answers came again.

Told from replies alone, so a server that is slow in general must not look like one that stopped: the silence
has to be several times as long as its replies usually take, and not the client's own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from profiler.records import LoopRecord

LEAST_SECONDS = 5.0
FACTOR = 3.0
"""A silence is so many times as long as 95 % of the replies of its kind took at other times."""

FEWEST = 5
"""With fewer replies at other times it is not known how long they take."""


@dataclass(frozen=True, slots=True)
class Stillness:
    """No reply came from `started_ns` to `ended_ns` (monotonic) while `waiting` requests were under way."""

    started_ns: int
    ended_ns: int
    waiting: int

    @property
    def seconds(self) -> float:
        return (self.ended_ns - self.started_ns) / 1e9


class _Request(NamedTuple):
    """`kind`: the model, or a tool's name. `signs`: when something came from the server."""

    kind: str
    started_ns: int
    ended_ns: int
    signs: tuple[int, ...]
    lag_ns: int  # the worst of the client's event loop in this loop


def stood_still(records: Iterable[LoopRecord], with_tools: bool) -> list[Stillness]:
    """All such times, in order. `with_tools`: the target serves the tools too."""
    requests = [request for record in records for request in _requests(record, with_tools)]
    signs = sorted(sign for request in requests for sign in request.signs)
    if not signs:
        return []
    first = min(request.started_ns for request in requests)
    found = (
        _between(requests, before, after)
        for before, after in pairwise([first, *signs])
        if after - before >= LEAST_SECONDS * 1e9
    )
    return [one for one in found if one is not None]


def _between(requests: list[_Request], before: int, after: int) -> Stillness | None:
    """The silence between two signs of life, if the target is to blame for it."""
    waiting = [one for one in requests if one.started_ns < after <= one.ended_ns]
    if not waiting:
        return None
    since = max(before, min(one.started_ns for one in waiting))
    silence = after - since
    usual = defaultdict(list)
    for one in requests:
        if one.signs and (one.ended_ns <= since or one.started_ns >= after):
            usual[one.kind].append(one.ended_ns - one.started_ns)
    known = [_p95(usual[kind]) for kind in {one.kind for one in waiting} if len(usual[kind]) >= FEWEST]
    if not known or silence < max(LEAST_SECONDS * 1e9, FACTOR * max(known)):
        return None
    if any(2 * one.lag_ns >= silence for one in waiting):
        return None  # it was this client that did not run
    return Stillness(since, after, len(waiting))


def _requests(record: LoopRecord, with_tools: bool) -> Iterator[_Request]:
    for round_ in record.rounds:
        model = round_.model
        answered = model.status == "ok" or any(one.status is not None for one in model.attempts)
        heard = {one.ended_ns for one in model.attempts if one.status is not None}
        heard |= {one.first_byte_ns for one in model.attempts if one.first_byte_ns is not None}
        heard |= {at for at in (model.first_token_ns, model.ended_ns if answered else None) if at is not None}
        if model.asked:
            yield _Request("", model.started_ns, model.ended_ns, tuple(heard), record.lag_ns)
        for call in round_.tool_calls if with_tools else ():
            if call.started_ns is None:
                continue
            came = call.status == "ok" or (call.error_type or "").startswith("http_")
            signs = (call.ended_ns,) if came else ()
            yield _Request(call.name, call.started_ns, call.ended_ns, signs, record.lag_ns)


def _p95(durations: list[int]) -> int:
    return sorted(durations)[math.ceil(0.95 * len(durations)) - 1]
