"""Which requests are rounds of one loop, told by ids and never by text. Pure; times are passed in.

A request that brings results goes on with the loop whose last reply asked for those calls. It is found by
their ids, by `previous_response_id`, or by the ids of tools of the server's that a paused turn ends with. The
same request after one that failed or was cut off is another try of it. Any other begins a loop, also where it
goes on with a conversation: a loop runs from the user's message to the answer.

Some servers use an id for several calls, or send none. Then more than one loop may be meant, which is counted
(`ambiguous_calls`). What else tells them apart decides: what the server remembers, which calls belong
together, how long the history is, what the client says in headers, and the connection, where loops that were
told apart by ids have been seen to stay on theirs: most clients share connections. Where all that leaves more
than one, the request begins a loop of its own.

A loop ends with an answer; else when nothing has come of it for some time.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from profiler.proxy.asked import Asked
from profiler.proxy.exchange import Told
from profiler.proxy.matching import Call, Matching
from profiler.proxy.turns import Loop, Round, Turn, draft_of, loop_draft
from profiler.recordings.drafts import LoopDraft

T = TypeVar("T")

IDLE_NS = 900 * 10**9
"""After so long without a request, a loop whose calls wait for results has ended: most likely cancelled."""

HOLD_NS = 60 * 10**9
"""How long a request that failed may be sent again, beyond the wait that its server asked for."""

CHANGED_NS = 10 * 10**9
"""How long a request that was refused as wrong may be sent again, with the same messages but otherwise not
the same: Anthropic's tool runner does so where a server does not know its message threads."""
_CHANGED = frozenset((400, 404, 413, 415, 422))
"""Statuses of such refusals."""

LONGEST_REPLY_NS = 3600 * 10**9

MOST_OPEN = 10_000
LEAST_STAYED = 3
"""How often loops must have stayed on their connections before one tells a loop."""
MOST_ROUNDS = 1_000
"""Of one loop; its first rounds are dropped when there are more."""
MOST_REMEMBERED = 20_000
"""Ids of calls, and connections, that are remembered after their loops have ended."""

Doubt = Callable[[str], None]
"""Is told of a request that may not be where it belongs, or of what was not seen of a loop: why, in words."""

NOT_READ = "requests that could not be read: each is a loop of its own"
UNRESOLVED = "requests whose results could be of several loops: each begins a loop of its own"
UNKNOWN = "requests with results of calls that no open loop had asked for: each begins a loop of its own"
BRANCHED = "requests that went on from a reply for the second time: each begins a loop of its own"
BY_CONNECTION = "requests that only their connection told the loop of"
LATE = "replies to requests whose loop had been taken to have ended"
TOO_MANY = "loops ended early, since too many were open at once"


class Conversations:
    """The loops that are under way. `ended` gets each when it is over.

    `name` begins the ids of loops. `calls`: where calls of tools are seen for themselves. A loop whose last
    request failed has ended `hold_ns` later, unless that is tried again; any other `idle_ns` after anything
    came of it.
    """

    def __init__(
        self,
        ended: Callable[[LoopDraft], None],
        doubt: Doubt,
        name: str = "proxy",
        calls: Matching | None = None,
        *,
        idle_ns: int = IDLE_NS,
        hold_ns: int = HOLD_NS,
        most_open: int = MOST_OPEN,
    ) -> None:
        self._ended = ended
        self._doubt = doubt
        self._name = name
        self._tools = calls
        self._idle_ns, self._hold_ns, self._most_open = idle_ns, hold_ns, most_open
        self._numbers = itertools.count(1)
        self._open: OrderedDict[str, Loop] = OrderedDict()  # the one that moved last at the end
        self._asked: dict[str, list[Round]] = {}  # id of a call → rounds that asked for it
        self._responses: dict[str, Round] = {}
        self._served: dict[str, Round] = {}
        self._nameless: dict[Round, None] = {}
        self._failed: dict[bytes, list[Round]] = {}  # by the digest of their request
        self._past: OrderedDict[str, None] = OrderedDict()  # ids of calls of loops that have ended
        self._repeated: OrderedDict[str, None] = OrderedDict()  # ids that were used more than once
        self._connections: OrderedDict[int, Loop] = OrderedDict()
        self._holds: list[tuple[int, str]] = []
        # Of clients with a key: how often a loop among others came again on its connection, or on another.
        self._stayed: Counter[bytes] = Counter()
        self._moved: Counter[bytes] = Counter()
        self._told_by_ids = False
        self.begun = 0

    def __len__(self) -> int:
        return len(self._open)

    def asked(self, asked: Asked, started_ns: int, connection: int) -> Turn:
        """A request was made, at this time."""
        self._told_by_ids = False
        round_ = self._place(asked, started_ns, connection)
        loop = round_.loop
        if self._told_by_ids and len(self._open) > 1:
            (self._stayed if loop.connection == connection else self._moved)[asked.key] += 1
            if len(self._stayed) + len(self._moved) > MOST_REMEMBERED:
                self._stayed.clear()
                self._moved.clear()
        turn = Turn(round_, asked, started_ns)
        round_.turns.append(turn)
        loop.connection = connection
        self._touch(loop, started_ns)
        before = self._connections.get(connection)
        if before is not None and before is not loop and before.open and before.connection == connection:
            self._moved[asked.key] += not before.last.failed
        self._connections[connection] = loop
        self._connections.move_to_end(connection)
        _bound(self._connections)
        return turn

    def is_awaited(self, asked: Asked) -> bool:
        """Whether what a request goes on from, if it goes on from anything, has been told."""
        if asked.previous is not None and asked.previous in self._responses:
            return True
        return not asked.results or any(one.id in self._asked for one in asked.results)

    def told(self, turn: Turn, told: Told) -> None:
        """Its response has ended."""
        turn.told = told
        round_ = turn.round
        loop = round_.loop
        if not loop.open:
            self._doubt(LATE)
            return
        if round_.waits or round_.after is not None:
            return  # a reply to another try of it came first
        round_.told = told
        self._touch(loop, told.ended_ns)
        if told.calls or told.paused:
            self._ask(round_, told)
        if told.status == "ok":
            if len(loop.rounds) > 1:
                self._forget(loop.rounds[-2])
            self._hold_no_more(loop)
            if not round_.waits:
                self._end(loop)
        elif not round_.failed:
            return  # another try is under way
        else:
            self._hold(turn, told)

    def _hold(self, turn: Turn, told: Told) -> None:
        """A request failed: wait for another try of it, unless nobody makes one."""
        loop, attempt = turn.round.loop, told.model.attempts[-1]
        digest, hold_ns = turn.asked.digest, self._hold_ns
        if not told.transient and len(loop.rounds) == 1:
            if attempt.status not in _CHANGED or not turn.asked.said:
                self._end(loop)
                return
            digest, hold_ns = turn.asked.said, min(CHANGED_NS, hold_ns)
        loop.until_ns = told.ended_ns + hold_ns + (attempt.retry_after_ns or 0)
        heapq.heappush(self._holds, (loop.until_ns, loop.id))
        if digest:
            self._hold_no_more(loop)
            loop.held = digest, turn.round
            self._failed.setdefault(digest, []).append(turn.round)

    def tick(self, now_ns: int) -> None:
        """Ends what nothing has come of for too long."""
        while self._holds and self._holds[0][0] <= now_ns:
            until_ns, ident = heapq.heappop(self._holds)
            held = self._open.get(ident)
            if held is not None and held.until_ns == until_ns:
                self._end(held)
        idle_since_ns = now_ns - self._idle_ns
        for loop in [*itertools.takewhile(lambda one: one.touched_ns <= idle_since_ns, self._open.values())]:
            turn = loop.last.turns[-1]
            if turn.told is None and now_ns - turn.started_ns < LONGEST_REPLY_NS:
                self._touch(loop, now_ns)  # its end is told in any case, unless that was lost
            else:
                self._end(loop)

    def close(self) -> None:
        """No more requests come: all loops have ended as they are."""
        while self._open:
            self._end(next(iter(self._open.values())))

    # Where a request belongs.

    def _place(self, asked: Asked, now_ns: int, connection: int) -> Round:
        if not asked.is_read:
            self._doubt(NOT_READ)
            return self._begin(now_ns)
        before = self._responses.get(asked.previous) if asked.previous is not None else None
        if before is None and asked.served:
            before = next((self._served[one] for one in asked.served if one in self._served), None)
        if before is not None and (asked.results or _is_paused(before)):
            return self._go_on(before, asked, now_ns)
        again = self._again(asked, connection)
        if again is not None:
            return again
        if not asked.results:
            return self._begin(now_ns)
        before, among = self._asking(asked, connection)
        ambiguous = len(asked.results) if among > 1 else 0
        round_ = self._begin(now_ns) if before is None else self._go_on(before, asked, now_ns)
        round_.loop.ambiguous += ambiguous
        return round_

    def _asking(self, asked: Asked, connection: int) -> tuple[Round | None, int]:
        """The round whose calls a request brings results of, and how many it could be by their ids alone."""
        ids = [one.id for one in asked.results if one.id]
        found: dict[Round, None] = {}
        for ident in ids:
            for round_ in self._asked.get(ident, ()):
                found[round_] = None
        waiting = [round_ for round_ in found if round_.waits]
        if not waiting and not found:
            count = len(asked.results)
            waiting = [
                round_
                for round_ in self._nameless
                if len(round_.calls) == count and _is_after(round_.loop.asked, asked)
            ]
            if not waiting:
                past = any(ident in self._past for ident in ids)
                self._doubt(BRANCHED if past and not self._are_repeated(ids) else UNKNOWN)
                return None, 0
        elif not waiting:
            waiting = [*found]
        if len(waiting) == 1 and not self._are_repeated(ids):
            self._told_by_ids = waiting[0].waits
            return waiting[0], 1
        return self._one_of(waiting, asked, connection)

    def _are_repeated(self, ids: Iterable[str]) -> bool:
        return all(ident in self._repeated for ident in ids)

    def _one_of(self, found: list[Round], asked: Asked, connection: int) -> tuple[Round | None, int]:
        """The one of several loops that ids fit, and how many they are; None where nothing tells."""
        if asked.conversation is not None:
            own = [one for one in found if one.loop.asked.conversation == asked.conversation]
            if len(own) == 1:
                return own[0], 1
        ids = sorted(one.id for one in asked.results)
        found = [
            one
            for one in found
            if (_is_after(one.loop.asked, asked) or not one.waits)
            and one.loop.asked.api == asked.api
            and one.loop.asked.key == asked.key
            and one.loop.asked.conversation == asked.conversation
        ]
        count = len(found)
        found = _narrowed(found, lambda one: sorted(_sent_ids(one)) == ids)
        found = _narrowed(found, lambda one: asked.model == one.loop.asked.model)
        if not asked.is_remembered:
            least = min((asked.items - one.loop.asked.items for one in found), default=0)
            found = _narrowed(found, lambda one: asked.items - one.loop.asked.items == least)
        for name, mark in asked.marks.items():
            if len(found) > 1:
                found = _narrowed(found, lambda one: one.loop.asked.marks.get(name) == mark)  # noqa: B023
        if len(found) > 1 and self._stayed[asked.key] >= LEAST_STAYED and not self._moved[asked.key]:
            found = _narrowed(found, lambda one: one.loop.connection == connection)
            if len(found) == 1:
                self._doubt(BY_CONNECTION)
        if len(found) == 1:
            self._told_by_ids = count == 1 and found[0].waits
            return found[0], count
        self._doubt(UNRESOLVED if found else UNKNOWN)
        return None, count

    def _go_on(self, before: Round, asked: Asked, now_ns: int) -> Round:
        """The round that a request with the results of another one is a try of."""
        loop, after = before.loop, before.after
        if before.waits:
            return self._answered(before, asked, now_ns)
        if after is not None and after is loop.last and loop.open:
            under_way = any(turn.told is None for turn in after.turns)
            same = any(turn.asked.digest == asked.digest for turn in after.turns)
            # An id that others have too does not make another request a try of this one.
            own = not self._are_repeated(one.id for one in asked.results)
            if (after.failed and own) or (under_way and same and asked.retry):
                return self._try_again(after)
        self._doubt(BRANCHED)
        return self._begin(now_ns)

    def _again(self, asked: Asked, connection: int) -> Round | None:
        """The round that a request is another try of.

        It is the same, to the byte, as one that failed; or has the messages of one that was refused as wrong.
        """
        held = [one for one in self._failed.get(asked.digest, ()) if one.loop.asked.key == asked.key]
        if asked.retry == 0 and not asked.results:
            held = []  # another agent's, as its SDK says
        if not held and asked.said:
            # Refused for a field that it is now sent without.
            refused = self._failed.get(asked.said, ())
            held = [one for one in refused if one.loop.asked.key == asked.key]
            held = [one for one in held if one.loop.asked.digest != asked.digest]
        if not held:
            return None
        found = _narrowed(held, lambda one: not asked.retry or len(one.turns) == asked.retry)
        for name, mark in asked.marks.items():
            found = _narrowed(found, lambda one: one.loop.asked.marks.get(name) == mark)  # noqa: B023
        found = _narrowed(found, lambda one: one.loop.connection == connection)
        return self._try_again(found[0])  # of several with one body, the one that failed first

    def _try_again(self, round_: Round) -> Round:
        """What had come of its reply before it was cut off is not gone on from."""
        self._hold_no_more(round_.loop)
        self._forget(round_)
        if self._tools is not None:
            self._tools.over(round_.calls, None)
        round_.calls, round_.waits, round_.told = [], False, None
        return round_

    def _begin(self, now_ns: int) -> Round:
        while len(self._open) >= self._most_open:
            self._doubt(TOO_MANY)
            self._end(next(iter(self._open.values())))
        self.begun += 1
        loop = Loop(f"{self._name}-{next(self._numbers)}")
        self._open[loop.id] = loop
        return self._next(loop)

    def _next(self, loop: Loop) -> Round:
        round_ = Round(loop)
        loop.rounds.append(round_)
        if len(loop.rounds) > MOST_ROUNDS:
            self._forget(loop.rounds.pop(0))
            loop.dropped += 1
        return round_

    # What a loop waits for.

    def _ask(self, round_: Round, told: Told) -> None:
        round_.waits = True
        if told.response_id is not None:
            self._responses[told.response_id] = round_
        for ident in told.server_ids:
            self._served[ident] = round_
        for one in told.calls:
            call = Call(draft_of(one), round_, one.made_up)
            round_.calls.append(call)
            if one.made_up:
                self._nameless[round_] = None
            elif one.id not in round_.indexed:
                rounds = self._asked.setdefault(one.id, [])
                if rounds or one.id in self._past:
                    self._repeated[one.id] = None
                    self._repeated.move_to_end(one.id)
                    _bound(self._repeated)
                rounds.append(round_)
                round_.indexed.append(one.id)
            if self._tools is not None:
                self._tools.asked(call, one.arguments)
        told.calls.clear()  # with the arguments

    def _answered(self, before: Round, asked: Asked, now_ns: int) -> Round:
        """A request has brought the results of a round; returns the next one."""
        self._hold_no_more(before.loop)
        before.waits, before.results_ns = False, now_ns
        self._nameless.pop(before, None)
        left: dict[str, list[Call]] = {}
        for call in before.calls:
            left.setdefault("" if call.made_up else call.draft.id, []).append(call)
        nameless = left.pop("", [])
        for result in reversed(asked.results):
            mine = left.get(result.id)
            if mine:
                self._returned(mine.pop(0), now_ns, result.is_error)
            elif nameless:
                self._returned(nameless.pop(0), now_ns, result.is_error)
        for ident in asked.earlier:
            if mine := left.get(ident):
                self._returned(mine.pop(0), now_ns, False)
        if self._tools is not None:
            self._tools.over(before.calls, now_ns)
        before.after = self._next(before.loop)
        return before.after

    def _returned(self, call: Call, now_ns: int, is_error: bool) -> None:
        draft = call.draft
        if draft.ended_ns is None:
            draft.ended_ns, draft.derived = now_ns, ("ended_ns",)
        if is_error and draft.status == "ok":
            draft.status, draft.error_type = "error", "tool_error"

    def _forget(self, round_: Round) -> None:
        """Nothing goes on from this round any more."""
        for ident in round_.indexed:
            rounds = self._asked.get(ident)
            if rounds is not None and round_ in rounds:
                rounds.remove(round_)
                if not rounds:
                    del self._asked[ident]
            self._past[ident] = None
            self._past.move_to_end(ident)
        _bound(self._past)
        round_.indexed.clear()
        self._nameless.pop(round_, None)
        told = round_.told
        if told is not None:
            if told.response_id is not None and self._responses.get(told.response_id) is round_:
                del self._responses[told.response_id]
            for ident in told.server_ids:
                if self._served.get(ident) is round_:
                    del self._served[ident]

    def _hold_no_more(self, loop: Loop) -> None:
        if loop.held is not None:
            digest, round_ = loop.held
            held = self._failed[digest]
            held.remove(round_)
            if not held:
                del self._failed[digest]
            loop.held = None

    def _touch(self, loop: Loop, now_ns: int) -> None:
        loop.touched_ns, loop.until_ns = now_ns, None
        self._open.move_to_end(loop.id)

    def _end(self, loop: Loop) -> None:
        loop.open = False
        del self._open[loop.id]
        self._hold_no_more(loop)
        for round_ in loop.rounds[-2:]:
            self._forget(round_)
        if self._tools is not None and loop.last.waits:
            self._tools.over(loop.last.calls, None)
        self._ended(loop_draft(loop))


def _sent_ids(round_: Round) -> list[str]:
    return ["" if call.made_up else call.draft.id for call in round_.calls]


def _is_paused(round_: Round) -> bool:
    return round_.told is not None and round_.told.paused


def _is_after(before: Asked, asked: Asked) -> bool:
    """Whether a request can go on from what was asked before: its history is longer, if it has one at all."""
    return asked.is_remembered or not asked.is_read or asked.items > before.items


def _narrowed(found: list[T], test: Callable[[T], bool]) -> list[T]:
    """Those that pass; all of them where none does."""
    return [one for one in found if test(one)] or found


def _bound(known: OrderedDict[Any, Any]) -> None:
    while len(known) > MOST_REMEMBERED:
        known.popitem(last=False)
