"""What the records of other programs' loops are good for, and no more than they can bear. Pure, in one pass.

Concluded is from rounds of several calls (`statistics.rounds`): those that ran them one after another,
and those that overlapped. A duration that is an upper bound may hold an approval and a wait; durations below
`MOST_TICKS` ticks cannot be told from nothing; a call that never ended has none; one that only waited for
another is no work. Rounds with such calls are counted, and left out. Gaps between the calls of a round are
explained by nothing (launch, approval, a lock), so estimates leave them as they are. That tools may be slower
when more of them run at once is in no recording, nor why calls ran as they did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from profiler.anatomy import server_tool_runs
from profiler.limits.known import ANY, KnownQuota, StatedLimits
from profiler.limits.quotas import MINUTE_NS
from profiler.records import LoopRecord, ModelCall, RoundRecord, vendor
from profiler.rundir import Recording
from profiler.statistics.rounds import LIMITS, Adding, RoundTimes, Sums, by_limit, times_of
from profiler.statistics.samples import Percentiles, Samples
from profiler.statistics.tool_latency import MOST_TICKS, Tool, ToolLatency
from profiler.statistics.usage import QuotaShare, Usage

MOST_TOOLS = 1000
"""Tools that are told apart: a model may make up names."""
OTHERS = "(others)"
SPANS = frozenset(("otel", "langfuse"))
"""Sources in which a loop is what spans were joined to: where nothing joins them, each request is one."""
MOST_REASONS = 50
"""Reasons why loops failed that are told apart: another program names them."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Rounds of several calls of which nothing is concluded, by why: the first of these that is so of it."""

    upper_bound: int = 0
    never_ended: int = 0
    wait: int = 0
    unresolved: int = 0

    @property
    def rounds(self) -> int:
        return self.upper_bound + self.never_ended + self.wait + self.unresolved


@dataclass(frozen=True, slots=True)
class Proxied:
    """Rounds of several calls of which the proxy saw how long all calls took together, and none alone."""

    rounds: int
    wall_seconds: float
    wall: Percentiles


@dataclass(frozen=True, slots=True)
class Waits:
    """Tries after one that failed, and the time between, where tries were seen.

    `resends` are tries of which nothing but their number is known.
    """

    requests_with_attempts: int
    retries: int
    backoff_seconds: float
    refused: int
    resends: int


@dataclass(frozen=True, slots=True)
class RecordedFigures:
    """What one recording says. `sources` counts loops by what they were made from.

    `totals` are of all rounds that ran calls, those of loops inside tool calls too, `parallel_measured` of
    rounds of several calls with no upper bound among them. Conclusions rest on `in_turn` (their calls ran
    one after another) and `overlapped`; `parallel` rounds asked for several calls, of which `left_out` are in
    neither, among them the `bounded` ones with an upper bound. A loop inside a call of a round that is
    concluded from is not counted beside it: its time is part of it.

    `single` loops of spans are of one model request, and no call is known to have run in them.

    `saved_seconds` and `limit_saved_seconds` are what gathering, or a limit, would have taken off the
    `loop_seconds` of the loops that ran inside no other. Of `rounds` rounds `called` have a call. `requests`
    counts tries; `began_ns` and `ended_ns` bound the loops. `unobserved_calls`, `ambiguous_calls`,
    `orphan_calls` and `rounds_dropped` are as in `LoopRecord`, `unreadable` as in `ModelCall`. `headers`:
    some response stated limits, though perhaps such as limit nobody. `strange_quota`: the provider of a quota
    that was given, where no request went to it; `providers` are those that some did. `walls` and `slowest`
    are of the loops that ran inside no other. Of these `no_answer` counts by why those that failed before an
    answer, `failed_call` those that came to one although a call failed, by the first, `cancelled` those that
    were stopped, or of which no more was recorded, before they came to an end of their own, `unanswered`
    those without an answer, for either reason.
    """

    loops: int
    nested: int
    single: int
    rounds: int
    called: int
    sources: dict[str, int]
    resolution_ns: int
    began_ns: int | None
    ended_ns: int | None
    loop_seconds: float
    totals: Sums
    parallel_measured: Sums
    parallel: int
    in_turn: Sums
    overlapped: Sums
    bounded: Sums
    left_out: LeftOut
    saved_seconds: float
    limit_saved_seconds: dict[str, float]
    proxied: Proxied
    tools: tuple[ToolLatency, ...]
    waits: Waits
    first_token: Percentiles
    first_tokens_derived: int
    requests: int
    models: int
    quotas: tuple[QuotaShare, ...]
    quota_source: str
    untold: tuple[str, ...]
    strange_quota: str
    providers: tuple[str, ...]
    headers: bool
    unobserved_calls: int
    ambiguous_calls: int
    orphan_calls: int
    rounds_dropped: int
    unreadable: int
    untimed_server_tools: int
    walls: Percentiles
    slowest: float | None
    no_answer: dict[str, int]
    failed_call: dict[str, int]
    unanswered: int
    cancelled: int = 0


@dataclass(slots=True)
class _Concluded:
    """What the rounds of one loop, or of several, lead to."""

    in_turn: Adding = field(default_factory=Adding)
    overlapped: Adding = field(default_factory=Adding)
    saved: list[int] = field(default_factory=lambda: [0] * (1 + len(LIMITS)))

    def join(self, other: _Concluded, *, saved: bool) -> None:
        self.in_turn.join(other.in_turn)
        self.overlapped.join(other.overlapped)
        if saved:
            self.saved = [a + b for a, b in zip(self.saved, other.saved, strict=True)]


_Place = Literal["alone", "counted", "among"]
"""The call that a loop ran in: alone in its round, in one that is concluded from, in one that is not."""


class Recorded:
    """Adds up records; `result` may be asked for at any time.

    Beside sums it keeps 32 bytes a model request, and of loops inside tool calls, which are few, a
    kilobyte each.
    """

    def __init__(self) -> None:
        self._cancelled = self._unanswered = self._loops = self._nested = self._single = self._rounds = (
            self._called
        ) = self._parallel = 0
        self._sources: dict[str, int] = {}
        self._resolution_ns = 1
        self._began_ns: int | None = None
        self._ended_ns: int | None = None
        self._loop_ns = 0
        self._walls = Samples()
        self._no_answer: Counter[str] = Counter()
        self._failed_call: Counter[str] = Counter()
        self._totals, self._measured = Adding(), Adding()
        self._concluded = _Concluded()
        self._inside: dict[str, tuple[str, _Concluded]] = {}
        self._places: dict[str, _Place] = {}
        self._bounded = Adding()
        self._bound = self._open = self._waiting = self._unresolved = 0
        self._proxied_ns, self._proxied = 0, Samples()
        self._tools: dict[str, Tool] = {}
        self._usage: dict[tuple[str, str], Usage] = {}
        self._limits = StatedLimits()
        self._tried = self._retries = self._backoff_ns = self._refused = self._resends = 0
        self._first_token, self._tokens_derived = Samples(), 0
        self._unobserved = self._ambiguous = self._orphans = 0
        self._dropped = self._unreadable = self._untimed = 0

    def seen(self, records: Iterable[LoopRecord]) -> Iterator[LoopRecord]:
        """The same records, each added as it passes."""
        for record in records:
            self.add(record)
            yield record

    def add(self, record: LoopRecord) -> None:
        self._loops += 1
        self._sources[record.source] = self._sources.get(record.source, 0) + 1
        self._resolution_ns = max(self._resolution_ns, record.resolution_ns)
        if self._began_ns is None or record.started_ns < self._began_ns:
            self._began_ns = record.started_ns
        if self._ended_ns is None or record.ended_ns > self._ended_ns:
            self._ended_ns = record.ended_ns
        self._unobserved += record.unobserved_calls
        self._ambiguous += record.ambiguous_calls
        self._orphans += record.orphan_calls
        self._dropped += record.rounds_dropped
        concluded = self._concluded
        if record.parent is not None:
            self._nested += 1
            concluded = _Concluded()
            self._inside[record.id] = (record.parent, concluded)
        else:
            self._loop_ns += record.wall_ns
            self._end(record)
        for round_ in record.rounds:
            self._rounds += 1
            if round_.model.asked:
                self._model(round_.model)
            if round_.tool_calls:
                self._round(record, round_, concluded)

    def _end(self, record: LoopRecord) -> None:
        if record.source in SPANS and record.status != "error" and len(record.rounds) == 1:
            self._single += not record.rounds_dropped and not record.rounds[0].tool_calls
        self._walls.add(record.wall_ns)
        self._unanswered += not record.answered
        self._cancelled += record.status == "cancelled"
        if record.failed:
            why = _failure(record)
            reasons = self._failed_call if record.answered else self._no_answer
            known = why in reasons or len(reasons) < MOST_REASONS
            reasons[why if known else OTHERS] += 1

    @property
    def loops(self) -> int:
        """Records so far."""
        return self._loops

    def _round(self, record: LoopRecord, round_: RoundRecord, concluded: _Concluded) -> None:
        self._called += 1
        several = never_ended = 0
        upper_bound = waiting = False
        inside: tuple[str, ...] = ()
        spans = []
        for call in round_.tool_calls:
            took = None
            if call.started_ns is not None:
                ended = not call.unknown or "ended_ns" not in call.unknown
                if ended:
                    took = call.ended_ns - call.started_ns
                if not call.nested:
                    several += 1
                    never_ended += not ended
                    waiting = waiting or call.wait
                    if ended:
                        spans.append((call.started_ns, call.ended_ns))
                        upper_bound = upper_bound or call.upper_bound
            if call.loops:
                inside += call.loops
            tool = self._tools.get(call.name)
            if tool is None:
                name = call.name if len(self._tools) < MOST_TOOLS else OTHERS
                tool = self._tools.setdefault(name, Tool())
            tool.add(call, took, record.resolution_ns)
        times = times_of(spans, upper_bound)
        place: _Place = "alone" if several < 2 else "among"
        if times is not None:
            self._totals.add(times)
            if times.overlap == "measured":
                self._measured.add(times)
        if several > 1:
            self._parallel += 1
            if upper_bound:
                self._bound += 1
                if times is not None and times.overlap == "upper bound":
                    self._bounded.add(times)
                if not never_ended:
                    self._phase(record, round_)
            elif never_ended or times is None:
                self._open += 1
            elif waiting:
                self._waiting += 1
            elif times.second < MOST_TICKS * record.resolution_ns:
                self._unresolved += 1
            else:
                place = "counted"
                self._conclude(record, round_, times, concluded)
        for loop in inside:
            self._places[loop] = place

    def _conclude(
        self, record: LoopRecord, round_: RoundRecord, times: RoundTimes, concluded: _Concluded
    ) -> None:
        # Two ends that touch may seem to overlap by a tick.
        if times.work - times.busy > (times.calls - 1) * record.resolution_ns:
            concluded.overlapped.add(times)
            return
        concluded.in_turn.add(times)
        # What ran beside the model, or after the loop had ended, did not prolong it.
        begun = max(times.first, round_.model.ended_ns)
        prolonged = max(0, min(times.last, record.ended_ns) - begun)
        for index, busy in enumerate((times.gathered, *times.limits)):
            concluded.saved[index] += min(times.busy - busy, prolonged)

    def _phase(self, record: LoopRecord, round_: RoundRecord) -> None:
        if record.source != "proxy" or round_.tools_started_ns is None or round_.tools_ended_ns is None:
            return
        took = round_.tools_ended_ns - round_.tools_started_ns
        self._proxied.add(took)
        self._proxied_ns += took

    def _model(self, model: ModelCall) -> None:
        key = (vendor(model.provider), model.model)
        usage = self._usage.get(key)
        if usage is None:
            usage = self._usage.setdefault(key if len(self._usage) < MOST_TOOLS else ("", OTHERS), Usage())
        usage.add(model)
        if model.attempts:
            self._limits.add(model)
            self._tried += 1
            if len(model.attempts) > 1:
                self._retries += len(model.attempts) - 1
                self._backoff_ns += model.backoff_ns
        if model.attempts or model.error_type is not None:
            self._refused += len(model.refusals)
        self._resends += model.resends
        self._unreadable += model.unreadable
        if model.server_tools:
            self._untimed += len(model.server_tools) - len(server_tool_runs(model))
        if model.first_token_ns is not None and "started_ns" not in model.unknown:
            self._first_token.add(model.first_token_ns - model.started_ns)
            self._tokens_derived += "started_ns" in model.derived or "first_token_ns" in model.derived

    def result(self, recording: Recording | None = None, quota: KnownQuota | None = None) -> RecordedFigures:
        """The figures. `quota` is what was given; else what headers state for each model counts.

        One of a provider is held against the requests of its models, and against those of a provider that is
        not known where none is; one without a provider against each model's. The model that came nearest to
        it stands for it.

        Of a sample of all traces no quota is looked at.
        """
        concluded = _Concluded()
        concluded.join(self._concluded, saved=True)
        for name, (_, inside) in self._inside.items():
            counted, alone = self._standing(name)
            if counted:
                concluded.join(inside, saved=alone)
        known = (quota,) if quota else self._limits.quotas()
        sampled = recording is not None and recording.sampled is not None and recording.sampled < 1
        shares = () if sampled else self._shares(known)
        return RecordedFigures(
            loops=self._loops,
            nested=self._nested,
            single=self._single,
            rounds=self._rounds,
            called=self._called,
            sources=dict(self._sources),
            resolution_ns=self._resolution_ns,
            began_ns=self._began_ns,
            ended_ns=self._ended_ns,
            loop_seconds=self._loop_ns / 1e9,
            totals=self._totals.result(),
            parallel_measured=self._measured.result(),
            parallel=self._parallel,
            in_turn=concluded.in_turn.result(),
            overlapped=concluded.overlapped.result(),
            bounded=self._bounded.result(),
            left_out=LeftOut(self._bound, self._open, self._waiting, self._unresolved),
            saved_seconds=concluded.saved[0] / 1e9,
            limit_saved_seconds=by_limit(concluded.saved[1:]),
            proxied=Proxied(self._proxied.count, self._proxied_ns / 1e9, Percentiles.of(self._proxied)),
            tools=tuple(
                tool.result(name) for name, tool in sorted(self._tools.items(), key=lambda one: -one[1].calls)
            ),
            waits=Waits(self._tried, self._retries, self._backoff_ns / 1e9, self._refused, self._resends),
            first_token=Percentiles.of(self._first_token),
            first_tokens_derived=self._tokens_derived,
            requests=sum(len(one.at) for one in self._usage.values()),
            models=len(self._usage),
            quotas=shares,
            quota_source=known[0].source if known else "",
            untold=tuple(dict.fromkeys(one.words for of in known for one in of.untold)),
            strange_quota=quota.provider if quota and self._usage and not any(self._limited(quota)) else "",
            providers=tuple(sorted({provider for provider, _ in self._usage if provider})),
            headers=self._limits.any,
            unobserved_calls=self._unobserved,
            ambiguous_calls=self._ambiguous,
            orphan_calls=self._orphans,
            rounds_dropped=self._dropped,
            unreadable=self._unreadable,
            untimed_server_tools=self._untimed,
            walls=Percentiles.of(self._walls),
            slowest=self._walls.quantile(1.0),
            no_answer=dict(self._no_answer.most_common()),
            failed_call=dict(self._failed_call.most_common()),
            unanswered=self._unanswered,
            cancelled=self._cancelled,
        )

    def _standing(self, name: str) -> tuple[bool, bool]:
        """Of a loop inside a call: (whether it is counted on its own, whether it shortens the outermost)."""
        alone = True
        for _ in range(len(self._inside)):
            place = self._places.get(name)
            if place == "counted":
                return False, False
            alone = alone and place == "alone"
            if name not in self._inside:
                break
            name = self._inside[name][0]
            if name not in self._inside:
                break
        return True, alone

    def _limited(self, known: KnownQuota) -> Iterator[tuple[str, str]]:
        """The models whose requests a quota limits."""
        provider = vendor(known.provider)
        if known.provider == ANY:
            yield from self._usage
            return
        of_it = [one for one in self._usage if one[0] == provider]
        for one in of_it or [one for one in self._usage if not one[0]]:
            if not known.model or known.model == one[1]:
                yield one

    def _shares(self, quotas: Iterable[KnownQuota]) -> tuple[QuotaShare, ...]:
        """The highest of any model, for each limit of a quota, or of a provider's models."""
        highest: dict[tuple[str, str, int], QuotaShare] = {}
        models: Counter[tuple[str, str, int]] = Counter()
        for known in quotas:
            for limit in known.limits:
                if not limit.limit:
                    continue
                window_ns = limit.window_ns or MINUTE_NS
                of = (known.provider, limit.resource, window_ns)
                for provider, model in self._limited(known):
                    models[of] += 1
                    usage = self._usage[provider, model]
                    most, cached = usage.peak(limit.resource, window_ns)
                    unknown = 0 if limit.resource == "requests" else usage.unknown
                    one = QuotaShare(
                        provider,
                        model,
                        limit.resource,
                        limit.limit,
                        window_ns,
                        most,
                        cached,
                        known.source,
                        unknown,
                    )
                    if of not in highest or one.share > highest[of].share:
                        highest[of] = one
        return tuple(replace(one, models=models[of]) for of, one in highest.items())


def _failure(record: LoopRecord) -> str:
    """Why a loop failed, in a word: its own end, or its first call that failed."""
    if record.status != "ok":
        return record.error_type or record.status
    return next(
        (f"{call.failure} ({call.name})" for call in record.tool_calls if call.failure), "a call failed"
    )


def recorded_figures(
    records: Iterable[LoopRecord], recording: Recording | None = None, quota: KnownQuota | None = None
) -> RecordedFigures:
    """The figures of a stream of records."""
    found = Recorded()
    for record in records:
        found.add(record)
    return found.result(recording, quota)
