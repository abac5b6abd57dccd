"""Figures of a load without a model (`profiler mcp load`): each tool, under each load, from when it was due.

Every arrival of an open load counts, from the first to those that were still waiting when no more began:
nothing is left out as warm-up. What never ended has waited for at least as long as it was given; a quantile
that such calls may reach is a lower bound (`ToolLoad.at_least`). Calls that failed are counted, and are in no
latency: a refusal at once would look like a fast server.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from profiler.anatomy import peak
from profiler.records import BUSY, REFUSED, LoopRecord, ToolCall
from profiler.rundir import Run, Trial
from profiler.statistics.backlog import growing_backlog
from profiler.statistics.quantiles import LEVELS, Estimate, Quantiles, block_interval, quantiles
from profiler.statistics.table import Table
from profiler.statistics.windows import Measured, measure

_NS = 1e-9
_CUT = frozenset(("cancelled",))
REFUSALS = frozenset((BUSY, *(f"http_{status}" for status in (*REFUSED, 503))))
"""What a server says when it takes no more calls: by HTTP, or in an error."""

PARTS = ("to start", "client", "server", "network", "server + network", "parsing")


@dataclass(frozen=True, slots=True)
class ToolLoad:
    """One tool under one load. Seconds.

    `seconds` is from the intended start to the end, of calls that ended well; with `at_least` those that were
    cut off are in it too, with the time that they had. `failures` are counts by error type. `parts` are
    medians of what a call's time consists of: to its start, in the client, the server and the network (one
    figure where the server does not say its own time), and parsing.
    """

    tool: str
    calls: int
    ended: int
    failures: dict[str, int]
    cut: int
    seconds: Quantiles
    at_least: tuple[str, ...]
    parts: dict[str, float]

    @property
    def failed(self) -> int:
        return sum(self.failures.values())


@dataclass(frozen=True, slots=True)
class DirectLoad:
    """One load: `users` calls at once (closed), or `rate` calls a second (open; else None).

    `served` calls a second ended well while the load lasted. At the end of a block at most `waiting` calls
    had arrived and had not ended: the server needed `waiting_seconds` more for them. `unserved`: that backlog
    is shown to grow, so a longer test would leave a longer one. `unstarted` arrivals never began. `in_flight`
    is how many calls the server had at once at most, `accepted` those of them that ended well;
    `beside_failures` is how many of these there were when another call failed (the median; None without
    failures): what a server with a fixed limit takes. `mean` is the mean of what `seconds` are quantiles of,
    `service` that of the server's part: as it says, else from the request to the answer.
    """

    users: int
    rate: float | None
    served: Estimate
    calls: int
    failures: dict[str, int]
    cut: int
    unstarted: int
    waiting: int
    waiting_seconds: float
    unserved: bool
    in_flight: int
    accepted: int
    beside_failures: float | None
    mean: float | None
    service: float | None
    seconds: Quantiles
    at_least: tuple[str, ...]
    tools: tuple[ToolLoad, ...]

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    @property
    def failure_share(self) -> float:
        """Of all arrivals; those that never ended have failed."""
        every = self.calls + self.unstarted
        return (self.failed + self.cut + self.unstarted) / every if every else 0.0

    @property
    def refused(self) -> int:
        """Calls that the server did not take."""
        return sum(count for kind, count in self.failures.items() if kind in REFUSALS)


@dataclass(slots=True)
class _Calls:
    """Latencies of the blocks of one tool, and of what was cut off."""

    blocks: dict[int, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    cut: list[int] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    parts: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, block: int, record: LoopRecord, call: ToolCall) -> None:
        latency_ns = record.ended_ns - record.due_ns
        if record.status == "cancelled" or call.error_type in _CUT:
            self.cut.append(latency_ns)
        elif call.failure is not None:
            self.failures[call.failure] += 1
        else:
            self.blocks[block].append((record.due_ns, latency_ns))
            for name, value in parts_of(record, call):
                self.parts[name].append(value)

    @property
    def calls(self) -> int:
        return self.ended + len(self.cut) + self.failures.total()

    @property
    def ended(self) -> int:
        return sum(map(len, self.blocks.values()))

    @property
    def mean(self) -> float | None:
        """Seconds of the calls that ended well."""
        total = sum(latency for block in self.blocks.values() for _, latency in block)
        return total * _NS / self.ended if self.ended else None

    @property
    def service(self) -> float | None:
        """Seconds that the server had a call, on average."""
        told = self.parts.get("server") or self.parts.get("server + network")
        return float(np.mean(told)) * _NS if told else self.mean

    def quantiles(self) -> tuple[Quantiles, tuple[str, ...]]:
        groups = [
            np.array([latency for _, latency in sorted(self.blocks[block])], dtype=float)
            for block in sorted(self.blocks)
        ]
        if not self.cut:
            return quantiles(groups, _NS), ()
        found = quantiles([*groups, np.array(self.cut, dtype=float)], _NS)
        # Without intervals: what was cut off is no block.
        bare = Quantiles(*(Estimate(found[name].value) for name in LEVELS))
        shortest = min(self.cut) * _NS
        return bare, tuple(name for name in LEVELS if (bare[name].value or 0.0) >= shortest)


def parts_of(record: LoopRecord, call: ToolCall) -> Iterator[tuple[str, int]]:
    """What the time of a call consisted of, from when it was due, in nanoseconds."""
    if call.started_ns is None:
        return
    yield "to start", call.started_ns - record.due_ns
    if call.client_wait_ns is not None:
        yield "client", call.client_wait_ns + (0 if call.remote is None else call.remote.session_wait_ns)
    if call.remote is not None and call.remote.server_ns is not None and call.network_ns is not None:
        yield "server", call.remote.server_ns
        yield "network", call.network_ns
    elif call.remote_ns is not None:
        yield "server + network", call.remote_ns
    if call.parsing_ns is not None:
        yield "parsing", call.parsing_ns


def direct_loads(run: Run, records: Iterable[LoopRecord], table: Table) -> list[DirectLoad]:
    """The figures of each load of a run, the lowest first. `table` is that of the same records."""
    of_trial = {trial.index: trial for trial in run.trials}
    by_users: dict[int, list[tuple[Trial, LoopRecord]]] = defaultdict(list)
    answers: dict[int, list[int]] = defaultdict(list)
    cut: Counter[int] = Counter()  # records of calls that were cut off, in or before the window
    for record in records:
        trial = None if record.trial is None else of_trial.get(record.trial)
        if trial is None:
            continue
        if record.status == "ok" and trial.started_ns <= record.ended_ns < trial.ended_ns:
            answers[trial.index].append(record.ended_ns)  # also of calls that began before
        cut[trial.index] += record.status == "cancelled"
        # The agents of a closed load start one by one before its window; of an open one every arrival counts.
        if run.load.model == "open" or trial.started_ns <= record.due_ns < trial.ended_ns:
            by_users[trial.users].append((trial, record))
    groups = {group.users: group for group in measure(run, table)}
    users = sorted({trial.users for trial in run.trials})
    return [_load(run, groups[one], by_users[one], answers, cut, table) for one in users if one in groups]


def _load(
    run: Run,
    group: Measured,
    found: Sequence[tuple[Trial, LoopRecord]],
    answers: Mapping[int, Sequence[int]],
    cut: Mapping[int, int],
    table: Table,
) -> DirectLoad:
    trials = [trial for trial in run.trials if trial.users == group.users]
    every, tools = _Calls(), defaultdict[str, _Calls](_Calls)
    spans: list[tuple[int, int]] = []
    good: list[tuple[int, int]] = []
    failed: list[tuple[int, int]] = []
    waiting: Counter[int] = Counter()
    last: dict[int, int] = {}
    for trial, record in found:
        for call in record.tool_calls:
            every.add(trial.block, record, call)
            tools[call.name].add(trial.block, record, call)
            if call.started_ns is not None:
                posted_ns = None if call.remote is None else call.remote.posted_ns
                span = (call.started_ns if posted_ns is None else posted_ns, call.ended_ns)
                spans.append(span)
                if call.status == "ok":
                    good.append(span)
                elif call.status != "cancelled":
                    failed.append(span)
        if record.ended_ns >= trial.ended_ns:
            waiting[trial.index] += 1
            last[trial.index] = max(last.get(trial.index, 0), record.ended_ns)
    unstarted = sum(trial.dropped + max(0, trial.interrupted - cut[trial.index]) for trial in trials)
    longest = max(waiting, key=lambda index: waiting[index], default=None)
    ends = {trial.index: trial.ended_ns for trial in trials}
    backlog = growing_backlog(group, table)
    seconds, at_least = every.quantiles()
    return DirectLoad(
        users=group.users,
        rate=group.rate,
        served=_served(answers, trials, group.rate is None or backlog is not None),
        calls=every.calls,
        failures=dict(every.failures.most_common()),
        cut=len(every.cut),
        unstarted=unstarted,
        waiting=0 if longest is None else waiting[longest],
        waiting_seconds=0.0 if longest is None else (last[longest] - ends[longest]) * _NS,
        unserved=backlog is not None,
        in_flight=peak(spans),
        accepted=peak(good),
        beside_failures=_beside(failed, good),
        mean=every.mean,
        service=every.service,
        seconds=seconds,
        at_least=at_least,
        tools=tuple(_tool(name, tools[name]) for name in sorted(tools)),
    )


def _tool(name: str, calls: _Calls) -> ToolLoad:
    seconds, at_least = calls.quantiles()
    medians: Mapping[str, float] = {
        part: float(np.median(calls.parts[part])) * _NS for part in PARTS if calls.parts.get(part)
    }
    return ToolLoad(
        tool=name,
        calls=calls.calls,
        ended=calls.ended,
        failures=dict(calls.failures.most_common()),
        cut=len(calls.cut),
        seconds=seconds,
        at_least=at_least,
        parts=dict(medians),
    )


def _beside(failed: Sequence[tuple[int, int]], good: Sequence[tuple[int, int]]) -> float | None:
    """How many of the good calls were under way in the middle of each failed one: the median."""
    if not failed:
        return None
    middles = np.array([(start + end) // 2 for start, end in failed])
    starts, ends = (
        (np.sort(np.array(times, dtype=np.int64)) for times in zip(*good, strict=True))
        if good
        else (
            np.empty(0),
            np.empty(0),
        )
    )
    there = np.searchsorted(starts, middles, "right") - np.searchsorted(ends, middles, "right")
    return float(np.median(there))


def _served(answers: Mapping[int, Sequence[int]], trials: Sequence[Trial], busy: bool) -> Estimate:
    """Calls a second that ended well inside the windows; with an interval of the blocks.

    In a closed load, and in one that is not served, the server is `busy` from its first answer on: then it is
    the slope of the answers over time. A window that opens on an empty server, which answers nothing at
    first, or ends just before many calls do, would make another rate.
    """
    rates = []
    for trial in trials:
        ends = sorted(answers.get(trial.index, ()))
        window = (trial.ended_ns - trial.started_ns) * _NS
        if window <= 0:
            continue
        rate = len(ends) / window
        # A few ends close together are no rate.
        if busy and len(ends) > 3 and (ends[-1] - ends[0]) * _NS >= window / 2:
            at = (np.array(ends) - ends[0]) * _NS
            rate = float(np.polyfit(at, np.arange(at.size), 1)[0])
        rates.append(rate)
    if not rates:
        return Estimate(None)
    return block_interval(sum(rates) / len(rates), rates)
