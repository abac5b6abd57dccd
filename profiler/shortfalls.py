"""Why the calls of a round overlapped less than they could have: a pure function of what was observed.

The times alone do not tell a loop that awaits its calls in turn from a full pool of threads, or from an event
loop that was held. So each call comes with where it ran (`Ran`), and the round with the stalls of its event
loop (`profiler.loop.lag`) and with who ran the calls (`Application`). Only what happened in the tool phase
counts: a stall before or after it explains nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapreplace
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Literal, NamedTuple

from profiler.anatomy import Interval, overlap, peak, union
from profiler.records import RemoteCall, Shortfall

if TYPE_CHECKING:
    from profiler.loop.lag import Stall

TOLERANCE_NS = 5_000_000
"""Timers and thread switches alone cost this much."""
SLACK_NS = 15_000_000
"""What follows an event within this time may have been caused by it."""
SAME_TURN_NS = 2_000_000
"""What goes on in the turn of the event loop in which a stall ends may do so before that is sampled."""
HANDED_ON_NS = 3_000_000
"""The place of a call that ended is taken within this time and that of stalls; later it may be by chance."""
NOTABLE = 0.2
"""A stall of at least this share of a tool phase may be why the phase ended when it did."""
MOST_UNEVEN = 0.25
"""Calls served one at a time take about the same time each: this share of their median more or less."""
LEAST_SERVED = 3
"""So many of them must be even."""


class Explanation(NamedTuple):
    """What a shortfall means, for people: what happened, and what to do about it."""

    words: str
    remedy: str


EXPLAINED: dict[Shortfall, Explanation] = {
    "limiter": Explanation("calls waited in the limiter", "raise the limit"),
    "exclusive": Explanation(
        "calls of tools with the same exclusive name waited for each other",
        "leave exclusive out where they may overlap",
    ),
    "blocked_loop": Explanation(
        "calls waited while something held the event loop", "find what blocks it, and await it"
    ),
    "machine": Explanation(
        "calls waited while the machine did not run this process",
        "give it a core to itself, or a larger quota",
    ),
    "threads": Explanation(
        "calls of sync tools waited for a thread", "make them async, or the pool of threads larger"
    ),
    "application": Explanation(
        "calls waited until the loop's own code started them",
        "try asyncio.gather (in sync code, threads), with no lock of one place around them",
    ),
    "application_limit": Explanation(
        "the loop's own code ran few calls at once", "raise its semaphore, or the size of its batches"
    ),
    "openai_runner": Explanation(
        "OpenAI's tool runner started calls late",
        "register the tools with independent=True, and run it with stream=True, eager=True and a higher "
        "max_concurrent_calls (2 unless given)",
    ),
    "anthropic_runner": Explanation(
        "Anthropic's tool runner ran calls one after another",
        "run_tools_eagerly only lets each start while the reply streams; to overlap them, run the calls of a "
        "reply with asyncio.gather instead",
    ),
    "inside_tools": Explanation(
        "calls ran one at a time inside a tool", "look at its server, or for a lock of its own"
    ),
    "mcp_session": Explanation(
        "calls waited until the client's session with their MCP server was free",
        "give it several sessions, or a client that does not lock its session",
    ),
    "mcp_server": Explanation(
        "calls were at their MCP server together, and it ran them one at a time",
        "make its tools async, or run several of it",
    ),
}
"""Every shortfall there is."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The pool whose thread ran a call: its size, and whether other work waited for a thread as it ended."""

    threads: int
    full: bool


class Ran(NamedTuple):
    """One call as it was run, in nanoseconds.

    `ready_ns`: its arguments were complete. `thread_wait_ns` and `exclusive_wait_ns` are known of calls that
    a `ToolLoop` ran: waiting for a thread (part of its duration), and for its `exclusive` name (before it).
    `steps` are those in which it held the event loop for long, `resumed` are the times at which it went on
    after a wait (`profiler.loop.eventloop`). `reads`: it kept the reply that asked for it from being read on,
    since it ran in the task or thread that reads. `remote` is there for tools of MCP servers.
    """

    name: str
    ready_ns: int
    started_ns: int
    ended_ns: int
    thread_wait_ns: int = 0
    exclusive_wait_ns: int = 0
    steps: Sequence[Interval] = ()
    pool: Pool | None = None
    reads: bool = False
    resumed: Sequence[int] = ()
    remote: RemoteCall | None = None

    @property
    def span(self) -> Interval:
        return self.started_ns, self.ended_ns

    @property
    def lasted_ns(self) -> int:
        return self.ended_ns - self.started_ns


Runner = Literal["openai", "anthropic"]
"""A tool runner of an SDK."""


@dataclass(frozen=True, slots=True)
class Application:
    """Calls were started by code that is not ours: a `runner` of an SDK, or the loop's own.

    `reply_ended_ns`: the reply that asked for them was complete. `in_threads`: they ran in several threads,
    which a crowded machine starts late, and nobody samples by how much.
    """

    reply_ended_ns: int
    runner: Runner | None = None
    in_threads: bool = False


def can_fall_short(calls: Sequence[object], wall_ns: int) -> bool:
    """Whether there may be a `shortfall`: there is none of one call, nor where hardly any time went by."""
    return len(calls) > 1 and wall_ns > TOLERANCE_NS


def shortfall(
    calls: Sequence[Ran],
    wall_ns: int,
    limit: int | None,
    stalls: Sequence[Stall] | None = None,
    application: Application | None = None,
) -> Shortfall | None:
    """The main reason why the calls of a round overlapped less than they could have, None without one.

    They could have taken the wall time of a first-come schedule of their durations on `limit` places (Graham
    1969); calls that were started by an `application`, as long as if each had started when it could. When
    `wall_ns`, up to the end of the last call, exceeds that by more than 5 % and `TOLERANCE_NS` (`SLACK_NS`
    where an application ran them in threads), the excess is divided: with the time taken out in which the
    machine did not run this process, and then that in which its code held the event loop, how much is left?
    What is left has a lasting reason, which is named if it is at least half as large as the larger of those
    two. `stalls` None: the event loop was not watched.
    """
    if not can_fall_short(calls, wall_ns):
        return None
    durations = [call.lasted_ns for call in calls]
    timers_ns = SLACK_NS if application is not None and application.in_threads else TOLERANCE_NS
    longest, tolerance = max(durations), max(timers_ns, wall_ns // 20)
    if _sessions_held_up(calls) > tolerance:
        return "mcp_session"
    at_server = _at_the_last_ones_server(calls)
    if _served_in_turn(at_server):
        return "mcp_server"
    alike = wall_ns - longest <= tolerance and longest < 2 * max(TOLERANCE_NS, min(durations))
    if alike and not stalls and not any(call.thread_wait_ns for call in calls):
        return None  # nearly every round: all ran at once, and took about as long
    calls = sorted(calls, key=lambda call: call.started_ns)
    began_ns = max(call.ended_ns for call in calls) - wall_ns
    known = [stall for stall in stalls or () if stall.ended_ns > began_ns]
    releases = None if application is None else _releases(calls, application)
    phase = _Phase(calls, wall_ns, limit, releases, known)
    excess = phase.excess(lambda _: 0.0, held_steps=False)
    if at_server and _one_at_a_time_at(at_server, known):
        return "mcp_server"
    if _one_at_a_time_inside(calls, known):
        return "inside_tools"
    if excess <= tolerance:
        return None
    without_machine = phase.excess(lambda stall: stall.machine_ns / stall.lag_ns, held_steps=False)
    rest = phase.excess(lambda _: 1.0, held_steps=True)
    machine, held = excess - without_machine, without_machine - rest
    if rest > TOLERANCE_NS and rest >= max(machine, held) / 2:
        lasting = _lasting(calls, rest, limit, application, known)
        if lasting is not None:
            return lasting
    return "machine" if machine > held else "blocked_loop"


def _lasting(
    calls: Sequence[Ran],
    rest: int,
    limit: int | None,
    application: Application | None,
    stalls: Sequence[Stall],
) -> Shortfall | None:
    """The reason for the excess that no stall explains; None where only an event loop can be late."""
    threads = max(call.thread_wait_ns for call in calls)
    exclusive = max(call.exclusive_wait_ns for call in calls)
    if max(threads, exclusive) >= rest / 2:
        return "threads" if threads >= exclusive else "exclusive"
    if limit is not None:
        return "limiter"
    if application is None:
        return None
    if application.runner is not None:
        return "openai_runner" if application.runner == "openai" else "anthropic_runner"
    if any(call.pool is not None and call.pool.full for call in calls):
        return "threads"
    at_once = peak(call.span for call in calls)
    ends = sorted(call.ended_ns for call in calls)
    held = union((stall.earliest_ns, stall.ended_ns) for stall in stalls)
    # Of the calls that had ended when one started, the last one is the one that may have made room for it.
    handed_on = any(
        place
        and call.started_ns - ends[place - 1] - overlap(held, (ends[place - 1], call.started_ns))
        <= HANDED_ON_NS
        for call in calls
        for place in [bisect_right(ends, call.started_ns)]
    )
    return "application_limit" if at_once > 1 and handed_on else "application"


class _Phase:
    """A tool phase, and how much longer it took than it could have, with the time of stalls taken out."""

    def __init__(
        self,
        calls: Sequence[Ran],
        wall_ns: int,
        limit: int | None,
        releases: Sequence[int] | None,
        stalls: Sequence[Stall],
    ) -> None:
        self._calls, self._limit, self._releases, self._stalls = calls, limit, releases, stalls
        self._ended_ns = max(call.ended_ns for call in calls)
        self._began_ns = self._ended_ns - wall_ns
        spans = [(stall.started_ns, stall.ended_ns) for stall in stalls]
        # Long steps make stalls; of shorter ones, and without stalls to know of, the steps are there.
        self._steps = _outside(union(step for call in calls for step in call.steps), spans)
        self._full = union(call.span for call in calls if call.pool is not None and call.pool.full)
        self._avoidable: list[list[Stall]] = [[] for _ in calls]
        self._notable = [stall for stall in stalls if stall.lag_ns >= NOTABLE * wall_ns]
        for stall in self._notable:
            self._find_waits(stall)

    def _find_waits(self, stall: Stall) -> None:
        """Note the stall with the calls that waited for it to end, and with those that made others wait."""
        threads_go_on = 2 * stall.held_ns > stall.lag_ns
        made = [
            2 * min(overlap(union(call.steps), (stall.started_ns, stall.ended_ns)), stall.held_ns)
            >= stall.lag_ns
            for call in self._calls
        ]
        waited = [
            not own and not (threads_go_on and call.pool is not None) and self._waited(call, stall)
            for own, call in zip(made, self._calls, strict=True)
        ]
        if any(waited):
            for own, late, stalls in zip(made, waited, self._avoidable, strict=True):
                if own or late:
                    stalls.append(stall)

    def _waited(self, call: Ran, stall: Stall) -> bool:
        """Whether the end of a stall let a call go on, or end, or begin for no other reason."""
        if call.started_ns < stall.ended_ns:
            return any(
                -SAME_TURN_NS <= at - stall.ended_ns <= SLACK_NS for at in (*call.resumed, call.ended_ns)
            )
        if call.started_ns - stall.ended_ns > SLACK_NS or self._limit is not None:
            return False
        return not any(0 <= call.started_ns - one.ended_ns <= SLACK_NS for one in self._calls)

    def _read_late(self, release_ns: int, share: Callable[[Stall], float]) -> float:
        """How much sooner, at most, a call could have been read from its reply without the rest of stalls."""
        return sum(
            overlap([(stall.started_ns, stall.ended_ns)], (self._began_ns, release_ns)) * (1 - share(stall))
            for stall in self._notable
            if 0 <= release_ns - stall.ended_ns <= SLACK_NS
        )

    def excess(self, share: Callable[[Stall], float], *, held_steps: bool) -> int:
        """With this share of each stall taken out, and with the steps in which calls held the event loop.

        A call that went on only when a stall was over had waited for that: the stall is no part of its work.
        Nor is it of the call that made it: it could have let the others go on. And while threads of a full
        pool ran, code that held the loop kept nobody waiting: only a machine that ran none of them did.
        """
        weights = []
        for stall in self._stalls:
            span, part = (stall.started_ns, stall.ended_ns), share(stall)
            if not self._full:
                weights.append((*span, part))
                continue
            outside = _outside([span], self._full)
            weights += [(*piece, part) for piece in outside]
            part = min(part, stall.machine_ns / stall.lag_ns)
            weights += [(*piece, part) for piece in _outside([span], outside)]
        weights = [one for one in weights if one[2]]
        if held_steps:
            weights += [(start, end, 1.0) for start, end in self._steps]

        def lasted(start_ns: int, end_ns: int) -> float:
            if not weights:
                return end_ns - start_ns
            inside = [max(0, min(b, end_ns) - max(a, start_ns)) * weight for a, b, weight in weights]
            return end_ns - start_ns - sum(inside)

        durations = []
        for call, stalls in zip(self._calls, self._avoidable, strict=True):
            waited = sum(
                overlap([(stall.started_ns, stall.ended_ns)], call.span) * (1 - share(stall))
                for stall in stalls
            )
            durations.append(round(lasted(*call.span) - call.thread_wait_ns - waited))
        wall = lasted(self._began_ns, self._ended_ns)
        if self._releases is None:
            return round(wall - schedule_wall(durations, self._limit))
        released = [
            lasted(self._began_ns, release) - self._read_late(release, share) for release in self._releases
        ]
        return round(wall - max(at + took for at, took in zip(released, durations, strict=True)))


def _outside(intervals: Iterable[Interval], others: Sequence[Interval]) -> list[Interval]:
    """The parts of disjoint intervals that lie outside of others, which are sorted and disjoint."""
    parts = []
    for start, end in intervals:
        at = start
        for low, high in others:
            if low < end and high > at:
                if low > at:
                    parts.append((at, low))
                at = max(at, high)
        if at < end:
            parts.append((at, end))
    return parts


def _releases(calls: Sequence[Ran], application: Application) -> list[int]:
    """When each call, in the order of their starts, could have been started by its application.

    After the reply: with the first of them. While it streams: when it was complete, or when the stream went
    on (a call is often taken to be complete when the next one begins). A call that kept the reply from being
    read on hid that others were complete already, where they came the moment it had ended.
    """
    first_ns = calls[0].started_ns
    if first_ns >= application.reply_ended_ns:
        return [first_ns] * len(calls)
    events = [*(call.ready_ns for call in calls), application.reply_ended_ns]
    # A runner is known not to read on; what it does between two calls may take its time.
    held_back = 0.0 if application.runner is None else 0.25
    releases: list[int] = []
    for place, call in enumerate(calls):
        hidden = [
            release
            for release, other in zip(releases, calls[:place], strict=True)
            if (other.reads or application.runner is not None)
            and other.started_ns < application.reply_ended_ns
            and 0 <= call.ready_ns - other.ended_ns <= max(SLACK_NS, held_back * other.lasted_ns)
        ]
        followed = any(call.ready_ns <= event <= call.started_ns <= event + SLACK_NS for event in events)
        if hidden:
            releases.append(min(hidden))
        elif followed:
            releases.append(call.started_ns)
        else:
            releases.append(min(call.started_ns, max(call.ready_ns, first_ns)))
    return releases


def _as_long_alone(calls: Sequence[Ran], held: Sequence[Interval]) -> bool:
    """Whether each call may have taken the same time whatever the others did.

    A time in which the loop was `held` may be part of a call that held it, or that went on, or ended, at its
    end, and is none of what a call took that waited elsewhere meanwhile.
    """
    ends = [end for _, end in held]
    least, most = [], []
    for call in calls:
        lasted = call.lasted_ns - call.thread_wait_ns
        disturbed = any(overlap(held, step) for step in call.steps) or any(
            -SAME_TURN_NS <= at - end <= SLACK_NS for at in (*call.resumed, call.ended_ns) for end in ends
        )
        most.append(lasted)
        least.append(lasted - overlap(held, call.span) if disturbed else lasted)
    return max(least) <= (1 + MOST_UNEVEN) * min(most)


def _sessions_held_up(calls: Sequence[Ran]) -> int:
    """How much sooner the last call would have ended, had none waited for its session with an MCP server."""
    if not any(call.remote is not None and call.remote.session_wait_ns for call in calls):
        return 0
    waits = [0 if call.remote is None else call.remote.session_wait_ns for call in calls]
    ended_ns = max(call.ended_ns for call in calls)
    return ended_ns - max(call.ended_ns - wait for call, wait in zip(calls, waits, strict=True))


def _at_the_last_ones_server(calls: Sequence[Ran]) -> list[Ran]:
    """The calls of the MCP server that answered last, if they were there together; in the order of sending.

    Their spans are those at the server and on the way: from being sent until the answer came.
    """
    last = max(calls, key=lambda call: call.ended_ns).remote
    if last is None:
        return []
    there = [
        call._replace(started_ns=call.remote.posted_ns, ended_ns=call.remote.answered_ns)
        for call in calls
        if call.remote is not None
        and call.remote.server == last.server
        and call.remote.posted_ns is not None
        and call.remote.answered_ns is not None
    ]
    there.sort(key=lambda call: call.started_ns)
    if len(there) < 2 or there[-1].started_ns >= min(call.ended_ns for call in there):
        return []
    return there


def _served_in_turn(there: Sequence[Ran]) -> bool:
    """Whether calls that were at a server together were served one at a time by what it says they took."""
    served = [
        (call.ended_ns - call.remote.server_ns, call.ended_ns)
        for call in there
        if call.remote is not None and call.remote.server_ns is not None
    ]
    if not served or len(served) < len(there):
        return False
    shortest = min(end - start for start, end in served)
    waited_ns = sum(call.lasted_ns for call in there) - sum(end - start for start, end in served)
    if shortest <= 2 * TOLERANCE_NS or waited_ns < shortest:
        return False
    return peak((start, end - TOLERANCE_NS) for start, end in served) < 2


def _one_at_a_time_at(there: Sequence[Ran], stalls: Sequence[Stall]) -> bool:
    """The same by the times of the answers alone: all tools of the server together, or the last one's own."""
    last = max(there, key=lambda call: call.ended_ns)
    together = [call._replace(name="") for call in there]
    own = [call for call in there if call.name == last.name]
    return _one_at_a_time_inside(together, stalls) or _one_at_a_time_inside(own, stalls)


def _one_at_a_time_inside(calls: Sequence[Ran], stalls: Sequence[Stall]) -> bool:
    """Whether calls that ran at once ended as if something inside them served one at a time.

    In the order of their starts each ended one service time after it had started and the one before had
    ended, all of these times alike: three even ones, of which two waited, are hardly by chance. Two calls
    alone are not enough: one that takes twice as long as another is nothing special. When a call ended that
    ended with a stall is not known, and a service in which the loop was held may have been drawn out. Calls
    that a stall set off one after another, each as long as the others, end evenly too, and wait for nothing.
    """
    ended_ns = max(call.ended_ns for call in calls)
    steps = [step for call in calls for step in call.steps]
    spans = [(stall.started_ns, stall.ended_ns) for stall in stalls if stall.lag_ns > SLACK_NS]
    held = union(spans + steps)
    ends = [end for _, end in held]
    for name in {call.name for call in calls}:
        own = [call for call in calls if call.name == name]
        if len(own) < LEAST_SERVED or own[-1].ended_ns != ended_ns or _as_long_alone(own, held):
            continue
        # What went on as a stall ended may have ended then, or in the midst of it.
        if _even(own, held, ()) or _even(own, held, ends):
            return True
    return False


def _even(calls: Sequence[Ran], held: Sequence[Interval], hidden: Sequence[int]) -> bool:
    """See `_one_at_a_time_inside`; `held` are the stalls, and the steps in which calls held the loop.

    When a call ended that ended at a `hidden` time is not known.
    """
    before_ns = calls[0].started_ns
    served: list[tuple[int, float, int]] = []  # how many calls, for how long, and the stalls in that
    first = 0
    for place, call in enumerate(calls):
        unknown = any(-SAME_TURN_NS <= call.ended_ns - end <= SLACK_NS for end in hidden)
        if unknown and call is not calls[-1]:
            continue
        start_ns = max(before_ns, calls[first].started_ns + calls[first].thread_wait_ns)
        stalled_ns = overlap(held, (start_ns, call.ended_ns))
        served.append((place + 1 - first, call.ended_ns - start_ns, stalled_ns))
        before_ns, first = call.ended_ns, place + 1
    usual = median([lasted / count for count, lasted, stalled in served if not stalled] or [0.0])
    if usual <= TOLERANCE_NS:
        return False
    even = 0
    for count, lasted, stalled in served:
        if abs(lasted - count * usual) <= MOST_UNEVEN * usual:
            even += count
        elif not -MOST_UNEVEN * usual <= lasted - count * usual <= MOST_UNEVEN * usual + stalled:
            return False
    waited = sum(2 * (before.ended_ns - call.started_ns) > usual for before, call in pairwise(calls))
    return even >= LEAST_SERVED and waited >= LEAST_SERVED - 1


def schedule_wall(durations: Sequence[int], limit: int | None) -> int:
    """Wall time of these durations started in order, at most `limit` at once."""
    if limit is None or len(durations) <= limit:
        return max(durations)
    ends = [0] * limit
    for duration in durations:
        heapreplace(ends, ends[0] + duration)
    return max(ends)
