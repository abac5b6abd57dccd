"""The requests of a recording by server: when each began and ended, and whether it was refused. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiler.prediction.servers.calls import Calls
from profiler.records import ModelCall, ToolCall
from profiler.rundir import Run

LOAD_STATUSES = frozenset((429, 503, 529))
"""Statuses by which a server refuses a request for the load that it has."""

LOAD_ERRORS = frozenset(f"http_{status}" for status in LOAD_STATUSES)


@dataclass(frozen=True, slots=True)
class TrialPlaces:
    """Block and level of each trial. Trials of one level ran the same strategy under the same load."""

    block: dict[int, int]
    level: dict[int, int]

    @classmethod
    def of(cls, run: Run) -> TrialPlaces:
        levels: dict[tuple[str, int], int] = {}
        return cls(
            {trial.index: trial.block for trial in run.trials},
            {one.index: levels.setdefault((one.strategy, one.users), len(levels)) for one in run.trials},
        )


class Requests:
    """The requests to one server, as columns under way."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.ended: list[int] = []
        self.refused: list[bool] = []
        self.group: list[int] = []
        self.loop: list[int] = []
        self.retry_after: list[int] = []
        self.sending: list[int] = []
        self.late: list[int] = []
        self.tools: dict[str, None] = {}
        self.counted: NDArray[np.bool_] | None = None

    def add(
        self,
        started: int,
        ended: int,
        refused: bool,
        group: int,
        loop: int,
        retry_after: int | None,
        request: ModelCall | ToolCall,
        sending: int | None = None,
    ) -> int:
        """The row's number; it is an attempt of `request`, or all of it.

        `sending` is the time in it before it was sent, None where only that of all of `request` is known.
        """
        self.started.append(started)
        self.ended.append(ended)
        self.refused.append(refused)
        self.group.append(group)
        self.loop.append(loop)
        self.retry_after.append(-1 if retry_after is None else retry_after)
        self.sending.append(request.sending_ns if sending is None else sending)
        self.late.append(request.late_ns)
        return len(self.started) - 1

    def client_ns(self, row: int) -> int:
        """What the client added to it, as `Calls.at_server` has it."""
        lasted = self.ended[row] - self.started[row]
        sending = min(lasted, self.sending[row])
        return sending + min(lasted - sending, self.late[row] // 2)

    def without_refusals(self) -> None:
        """Treat what was refused as if it had never come."""
        self.counted = ~np.array(self.refused, bool)

    def calls(self, trials: TrialPlaces) -> Calls:
        kept = slice(None) if self.counted is None else self.counted
        return Calls(
            started=np.array(self.started, np.int64)[kept],
            ended=np.array(self.ended, np.int64)[kept],
            refused=np.array(self.refused, bool)[kept],
            group=np.array(self.group, np.int64)[kept],
            retry_after=np.array(self.retry_after, np.int64)[kept],
            block=np.array([trials.block.get(trial, -1) for trial in self.group], np.int64)[kept],
            level=np.array([trials.level.get(trial, -1) for trial in self.group], np.int64)[kept],
            loop=np.array(self.loop, np.int64)[kept],
            sending=np.array(self.sending, np.int64)[kept],
            late=np.array(self.late, np.int64)[kept],
        )


def server_of(call: ToolCall) -> str:
    """The name of the server of a call: its MCP server's, else the tool's own."""
    return f"{call.server}/*" if call.server else call.name


def refused(call: ToolCall) -> bool:
    """Whether the server refused it for its load."""
    return call.error_type in LOAD_ERRORS or call.error_type == "busy"


def add_request(rows: Requests, model: ModelCall, group: int, loop: int) -> int | None:
    """The row of the attempt that got the reply; None where none did."""
    if not model.asked:
        return None
    last = None
    for attempt in model.attempts:
        turned_away = attempt.status in LOAD_STATUSES
        row = rows.add(
            attempt.started_ns,
            attempt.ended_ns,
            turned_away,
            group,
            loop,
            attempt.retry_after_ns,
            model,
            None if attempt.sent_ns is None else attempt.sent_ns - attempt.started_ns,
        )
        last = None if turned_away else row
    if not model.attempts and model.latency_ns is not None and model.status == "ok":
        last = rows.add(
            model.started_ns + model.limiter_wait_ns, model.ended_ns, False, group, loop, None, model
        )
    return last


def add_call(rows: Requests, call: ToolCall, group: int, loop: int) -> int:
    row = -1
    for attempt in call.attempts:
        turned_away = attempt.error_type in LOAD_ERRORS
        row = rows.add(
            attempt.started_ns, attempt.ended_ns, turned_away, group, loop, attempt.retry_after_ns, call
        )
    if not call.attempts:
        assert call.started_ns is not None
        row = rows.add(call.started_ns, call.ended_ns, refused(call), group, loop, None, call)
    return row
