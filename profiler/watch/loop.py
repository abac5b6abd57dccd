"""Infers a loop that is not ours from its model requests and tool calls.

Every model request begins a round. A tool call joins the round that asked for it: the newest one with
an unclaimed call of that name and those arguments. What cannot be told apart is counted as ambiguous.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from profiler.limits.gate import current_slot
from profiler.loop.lag import Stall
from profiler.loop.model import CallRequest, Probe
from profiler.loop.nesting import Running
from profiler.loop.recorder import fresh_id
from profiler.loop.tools import CallContext, current_call
from profiler.records import Clock, LoopRecord, Status
from profiler.watch.arguments import EQUAL, FITTING, POSSIBLE, Fit, fit_of, same_request
from profiler.watch.circumstances import circumstances, runner
from profiler.watch.rounds import ObservedCall, ObservedRound, handed_over, round_record

MAX_ROUNDS = 10_000
"""Rounds kept of one loop, so that one that never ends does not grow for ever."""


LOOKED_BACK = 8
"""The newest rounds of a loop, in which a starting tool looks for its request."""


class Match(NamedTuple):
    """A requested call that a starting tool may be running.

    `holder`: a call that has claimed the request although its own arguments do not fit. `certain`: it can
    be no other call of this loop.
    """

    round: ObservedRound
    request: CallRequest
    ready_ns: int
    holder: ObservedCall | None
    fit: Fit
    certain: bool = True


@dataclass(slots=True, eq=False, weakref_slot=True)
class ObservedLoop:
    """A loop under way, as far as it has been observed; `record` makes it a `LoopRecord`.

    `frame`: it is one only if a model is asked in it. `answered_ns`: its answer was given then, so it ends
    there, or with the last thing that is known of it. `ended_as`: its ending where nothing was raised.
    """

    clock: Clock
    name: str
    strategy: str
    parent: str | None = None
    agent: str = ""
    number: int | None = None
    trial: int | None = None
    id: str = field(default_factory=fresh_id)
    started_ns: int = field(init=False)
    rounds: list[ObservedRound] = field(default_factory=list)
    rounds_dropped: int = 0
    ambiguous_calls: int = 0
    unlimited_calls: int = 0
    watch_failures: int = 0
    prompt: str | None = None
    sinks: Sequence[Any] = ()
    frame: bool = False
    answered_ns: int | None = None
    ended_as: tuple[Status, str | None] = ("ok", None)
    running: Running = field(init=False)

    def __post_init__(self) -> None:
        self.started_ns = self.clock()
        self.running = Running(self.id, self.sinks)
        self.running.counts = not self.frame

    @property
    def open(self) -> bool:
        return self.running.open

    @open.setter
    def open(self, value: bool) -> None:
        self.running.open = value

    def begin_round(self, provider: str, model: str) -> ObservedRound:
        """A model request starts."""
        now, handed = self.clock(), handed_over.get()
        if handed is not None:
            handed.begun = True
        if len(self.rounds) >= MAX_ROUNDS:
            del self.rounds[0]
            self.rounds_dropped += 1
        round_ = ObservedRound(provider, model, Probe(self.clock, began_ns=now), now)
        round_.requested_by = runner()
        self.rounds.append(round_)
        self.running.counts = True
        return round_

    def match(self, name: str, arguments: Mapping[str, Any] | None) -> Match | None:
        """The requested call that a starting tool runs, None if there is none of its name.

        Arguments decide (None: they are not known). Those that the model left out (defaults) and those
        that a framework added do not count against a call. Equal calls of a round are interchangeable. Of
        those that differ only in what a framework may have changed, the equal one is meant.
        Where no call fits, one that does not may still be meant, since frameworks change arguments; it
        loses its request again to a call that fits.
        """
        found: list[Match] = []
        for round_ in self.rounds[: -LOOKED_BACK - 1 : -1]:
            if round_.unclaimed:
                for request, ready_ns in [*round_.unclaimed]:  # other threads claim, too
                    if request.name == name:
                        fit = fit_of(request.arguments, arguments)
                        found.append(Match(round_, request, ready_ns, None, fit))
                        if fit[0] == EQUAL:
                            break  # no other of this round fits better; one that fits as well asks the same
            if round_.misfits:
                for call in [*round_.misfits]:
                    if call.request.name == name:
                        fit = fit_of(call.request.arguments, arguments)
                        if fit[0] >= FITTING:
                            found.append(Match(round_, call.request, call.ready_ns, call, fit))
        if not found:
            return None
        first = found[0] if len(found) == 1 else max(found, key=lambda match: match.fit)
        level = first.fit[0]
        if level < FITTING:
            certain = level == POSSIBLE and len(found) == 1
        else:
            certain = len(found) == 1 or not any(_rivals(first, other) for other in found)
        if certain and level < EQUAL and arguments is not None:
            certain = not _may_be_swapped(first, arguments)
        return first if certain else first._replace(certain=False)

    def runs(self, call: CallContext | None) -> bool:
        """Whether a call, such as the one that the caller is part of, is one of this loop."""
        if call is None:
            return False
        return any(call.observed in round_.began for round_ in self.rounds[: -LOOKED_BACK - 1 : -1])

    def known_as(self, name: str, arguments: Mapping[str, Any] | None) -> str | None:
        """The name under which the model asked for a server's tool that starts now, None if for none.

        Frameworks put the name of the server in front where tools of several could have the same one.
        """
        if self.expects(name):
            return name
        for round_ in self.rounds[: -LOOKED_BACK - 1 : -1]:
            for request, _ in [*round_.unclaimed]:
                fits = same_tool(request.name, name) and fit_of(request.arguments, arguments)[0] >= FITTING
                if fits:
                    return request.name
        return None

    def expects(self, name: str) -> bool:
        """Whether a call of this tool was asked for that has not run yet, or failed and may be retried."""
        for round_ in self.rounds[: -LOOKED_BACK - 1 : -1]:
            if any(request.name == name for request, _ in [*round_.unclaimed]):
                return True
        for round_ in self.rounds[:-4:-1]:
            for call in [*round_.asked]:
                last = call.tries[-1] if call.tries else call
                if call.request.name == name and last.ended_ns is not None and last.status != "ok":
                    return True
        return False

    def is_running(self, name: str, given: Sequence[Mapping[str, Any] | None]) -> bool:
        """Whether a starting tool is a part of the call that runs here: the same tool, seen once more.

        So it is where a dispatcher and the function that it runs are both watched, or a framework's tool and
        the function inside it.
        """
        outer = current_call.get()
        call = outer.observed if outer is not None else None
        if not isinstance(call, ObservedCall) or call.request.name != name or call.ended_ns is not None:
            return False
        if call.request.arguments == "":  # nothing asked for it
            return False
        if not any(call in round_.began for round_ in self.rounds[: -LOOKED_BACK - 1 : -1]):
            return False
        return any(fit_of(call.request.arguments, arguments)[0] >= FITTING for arguments in given)

    def claim(self, found: Match) -> bool:
        """Take the request of a match; False when another thread has taken it since."""
        try:
            if found.holder is None:
                found.round.unclaimed.remove((found.request, found.ready_ns))
                return True
            found.round.misfits.remove(found.holder)
        except ValueError:
            return False
        # A call that fits is here, so the holder, which does not, was not the one that was asked for.
        self.ambiguous_calls -= found.holder.ambiguous
        found.holder.request = CallRequest("", found.request.name, "")
        found.holder.arguments, found.holder.ambiguous = None, False
        return True

    def adopt(self, call: ObservedCall, found: Match) -> bool:
        """Give the request of a match to a call under way that nothing asked for; False when it was taken."""
        if not self.claim(found):
            return False
        call.request, call.ready_ns, call.ambiguous = found.request, found.ready_ns, not found.certain
        self.ambiguous_calls += call.ambiguous
        for round_ in self.rounds[: -LOOKED_BACK - 1 : -1]:
            if call in round_.began and round_ is not found.round:
                round_.calls.remove(call)
                round_.began.discard(call)
        if call in found.round.began:
            found.round.asked.append(call)
        else:
            found.round.add(call, asked=True)
        return True

    def begin_call(self, name: str, found: Match | None) -> ObservedCall:
        """A tool starts, whose request was claimed.

        Without a match its call joins the newest round, with no id and no arguments.
        """
        now = self.clock()
        if found is None:
            round_ = self.rounds[-1] if self.rounds else None
            call = ObservedCall(CallRequest("", name, ""), now, now)
        else:
            round_ = found.round
            call = ObservedCall(found.request, found.ready_ns, now, ambiguous=not found.certain)
            self.ambiguous_calls += call.ambiguous
            if found.fit[0] < FITTING:
                round_.misfits.append(call)
        call.where = circumstances()
        outer = current_call.get()
        if outer is not None and round_ is not None:
            observed = outer.observed
            call.nested = (
                isinstance(observed, ObservedCall) and observed in round_.began and observed.ended_ns is None
            )
        handed = handed_over.get()
        self.unlimited_calls += handed is None and current_slot.get() is None
        if handed is not None:
            waited_ns = 0 if handed.begun else handed.released_ns - handed.at_ns
            handed.begun = True
            # When the round began later, a whole agent was handed over, not this call.
            if round_ is not None and round_.started_ns <= handed.at_ns:
                call.handed_over = handed
                # Not from at_ns on: the callable's own work before its first call is no waiting.
                if found is None:
                    call.ready_ns = now - waited_ns
                call.queued_ns = max(call.ready_ns, now - waited_ns)
        if round_ is not None:
            if not round_.calls:
                round_.called_by = runner()
            round_.calls.append(call)
            round_.began.add(call)
            if found is not None:
                round_.asked.append(call)
        return call

    def try_again(self, name: str, arguments: Mapping[str, Any] | None) -> ObservedCall | None:
        """A tool starts that nothing asked for, with the arguments of a call that has failed: its next try.

        None where there is no such call in the newest rounds.
        """
        for round_ in self.rounds[:-4:-1]:
            failed: list[tuple[Fit, ObservedCall]] = []
            for call in reversed(round_.asked):
                last = call.tries[-1] if call.tries else call
                if call.request.name != name or not call.request.id or last.ended_ns is None:
                    continue
                if last.status != "ok":
                    fit = fit_of(call.request.arguments, arguments)
                    if fit[0] >= FITTING:
                        failed.append((fit, call))
            if failed:
                fit, call = max(failed, key=lambda one: one[0])
                asked = call.request.arguments
                self.ambiguous_calls += any(
                    other[1] == fit[1] and not same_request(asked, one.request.arguments)
                    for other, one in failed
                )
                tried = ObservedCall(call.request, call.ready_ns, self.clock(), where=circumstances())
                call.tries = [*call.tries, tried]
                round_.began.add(tried)
                return tried
        return None

    def record(
        self, status: Status, error_type: str | None, lag_ns: int, stalls: Sequence[Stall] | None = None
    ) -> LoopRecord:
        """The record of the loop; calls and requests that still run end now.

        `stalls` are those of its event loop, in sync code of the process, None where neither was watched.
        """
        ended_ns = self._ended_ns()
        if status == "ok":
            status, error_type = self.ended_as
        ends = [*(round_.started_ns for round_ in self.rounds[1:]), ended_ns][: len(self.rounds)]
        rounds = tuple(
            round_record(index, round_, end, stalls)
            for index, (round_, end) in enumerate(zip(self.rounds, ends, strict=True))
        )
        first = self.rounds[0] if self.rounds else None
        return LoopRecord(
            id=self.id,
            strategy=self.strategy,
            provider=first.provider if first else "",
            model=first.model if first else "",
            started_ns=self.started_ns,
            ended_ns=ended_ns,
            status=status,
            rounds=rounds,
            error_type=error_type,
            name=self.name,
            agent=self.agent,
            number=self.number,
            trial=self.trial,
            parent=self.parent,
            lag_ns=lag_ns,
            ambiguous_calls=self.ambiguous_calls,
            rounds_dropped=self.rounds_dropped,
            unlimited_calls=self.unlimited_calls,
            watch_failures=self.watch_failures,
            prompt=self.prompt,
        )

    def leaves_record(self) -> bool:
        return not self.frame or bool(self.rounds or self.watch_failures)

    def _ended_ns(self) -> int:
        if self.answered_ns is None:
            return self.clock()
        ends = [call.ended_ns for round_ in self.rounds for call in round_.calls]
        ends += [round_.ended_ns for round_ in self.rounds]
        known = [end for end in ends if end is not None]
        return self.clock() if len(known) < len(ends) else max(self.answered_ns, *known, 0)

    def bare_record(self, status: Status, error_type: str | None) -> LoopRecord:
        """What is known of a loop whose record could not be made: that it ran, from when to when."""
        return LoopRecord(
            self.id,
            self.strategy,
            provider="",
            model="",
            started_ns=self.started_ns,
            ended_ns=self.clock(),
            status=status,
            rounds=(),
            error_type=error_type,
            name=self.name,
            agent=self.agent,
            number=self.number,
            trial=self.trial,
            parent=self.parent,
            watch_failures=self.watch_failures,
        )


def same_tool(asked: str, name: str) -> bool:
    """Whether the model may know a server's tool under the name `asked`, perhaps with a prefix."""
    return asked == name or (
        len(asked) > len(name) > 0 and asked.endswith(name) and not asked[-len(name) - 1].isalnum()
    )


def _rivals(first: Match, other: Match) -> bool:
    """Whether another request than the first may be meant as well, and asks for something else."""
    if other.fit[0] < FITTING or other.fit[1] < first.fit[1]:
        return False
    if other.round is not first.round:
        return True
    return other.fit == first.fit and not same_request(first.request.arguments, other.request.arguments)


def _may_be_swapped(found: Match, arguments: Mapping[str, Any]) -> bool:
    """Whether a call that has claimed its request may be the one of `found`, and this one that one's.

    So it is where these arguments fit that request better than they fit the one that is left.
    """
    for call in [*found.round.asked]:
        if call.request.name == found.request.name:
            fit = fit_of(call.request.arguments, arguments)
            if fit[1] and fit > found.fit:
                return True
    return False
