"""The tape: the work of loop number i, a pure function of (scenario, seed, i).

Every quantity has a stream of its own, addressed by (seed, loop, round, call), so that the same i
is the same work under every strategy, on every provider, in whatever order requests arrive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import orjson

from profiler.emulator.conversation import ApiError, Choice, Conversation, Offered
from profiler.emulator.draws import Draws, Place, Sampler, key, sampler, whole
from profiler.emulator.work import MOST_WORK, Work
from profiler.scenarios import CALL_FAULTS, WIRE_FAULTS, Fault, FaultKind, Scenario

_ROUNDS, _FAN_OUT, _CALLS, _FIRST_TOKEN, _SPEED, _DURATION, _DEAL, _FAULTS = range(8)
"""The streams of a loop; fault number n has the stream `_FAULTS + n`. Within a stream a call's label is
`round << 12 | call`: 12 bits hold every call of a round (`MOST_FAN_OUT`)."""

_CONTEXT, _CACHED, _WRITTEN, _REASONING = range(1 << 20, (1 << 20) + 4)
"""More streams of a loop, beyond those of its faults."""


_WORK_OF_A_CALL = 1_000
"""The work that each further call of a reply may add to that of one, on average."""

_MOST_OVERDRAWN = 200_000
"""The work that is required beyond that, at most."""


class PlannedCall(NamedTuple):
    """A call of the tape: its place, tool and arguments (JSON text)."""

    place: Place
    name: str
    arguments: str


class Pace(NamedTuple):
    """The timing of one model response: seconds to the first token, seconds for each further token."""

    first_token: float
    per_token: float


class TokenDraw(NamedTuple):
    """The tokens drawn for one model request; the shares are as `ModelSpec` says."""

    context: int
    cached_share: float
    written_share: float
    reasoning: int


class Tape:
    """The work of a scenario under one seed. Holds compiled samplers, no state."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self._scale = scenario.time_scale
        self._root = key(0, seed & 0xFFFFFFFFFFFF)
        self._rounds = whole(scenario.loop.rounds, least=0)
        self._fan_out = whole(scenario.loop.fan_out, least=1)
        self._first_token = sampler(scenario.model.first_token)
        self._speed = sampler(scenario.model.tokens_per_second)
        self._durations: dict[str, Sampler] = {spec.name: sampler(spec.duration) for spec in scenario.tools}
        self._default_duration = sampler(scenario.default_tool.duration)
        model = scenario.model
        # Most scenarios draw none, and every draw costs.
        drawn = (model.context_tokens, model.cached_share, model.cache_written_share)
        self._draws_tokens = model.reasoning_tokens is not None or any(
            one.parameters != (0.0,) for one in drawn
        )
        self._context = whole(model.context_tokens, least=0)
        self._cached, self._written = sampler(model.cached_share), sampler(model.cache_written_share)
        self._reasoning = None if model.reasoning_tokens is None else whole(model.reasoning_tokens, least=0)
        self._wire_faults = [(n, f) for n, f in enumerate(scenario.faults) if f.kind in WIRE_FAULTS]
        self._model_faults = [
            (n, f)
            for n, f in enumerate(scenario.faults)
            if f.kind not in CALL_FAULTS and f.kind not in WIRE_FAULTS
        ]
        self._call_faults = [(n, f) for n, f in enumerate(scenario.faults) if f.kind in CALL_FAULTS]

    def _key(self, loop: int, stream: int) -> int:
        return key(key(self._root, loop), stream)

    def rounds(self, loop: int) -> int:
        """Rounds with calls; the answer comes after them."""
        return self._rounds(self._key(loop, _ROUNDS))

    def fan_out(self, loop: int, round_: int) -> int:
        """Calls of a round; 1 beyond the tape's end, for clients that insist on a call."""
        if round_ >= self.rounds(loop):
            return 1
        return self._fan_out(key(self._key(loop, _FAN_OUT), round_))

    def places(self, talk: Conversation, loop: int) -> list[Place]:
        """The calls that the next response makes; empty when it is the answer."""
        if not talk.tools.names or talk.choice.kind == "none":
            return []
        rounds = self.rounds(loop)
        insisted = talk.choice.kind in ("required", "named")
        if talk.parallel:
            round_, call = talk.turns, 0
        else:
            round_, call = 0, talk.calls
            while round_ < rounds and call >= (size := self.fan_out(loop, round_)):
                round_, call = round_ + 1, call - size
            if round_ >= rounds:
                round_ += call  # beyond the end every round has one call
                call = 0
        if round_ >= rounds and not insisted:
            return []
        if talk.choice.kind == "named" or not talk.parallel:
            return [Place(loop, round_, call)]
        return [Place(loop, round_, n) for n in range(self.fan_out(loop, round_))]

    def calls(self, places: list[Place], offered: Offered, choice: Choice) -> list[PlannedCall]:
        """Tools and arguments for `places`, drawn from what the client offers (and `choice` allows).

        Raises `ApiError` where the arguments of all of them together are too much work.
        """
        names, generators = offered
        indices: tuple[int, ...] = tuple(range(len(names)))
        if choice.names:
            allowed = frozenset(choice.names)
            indices = tuple(n for n in indices if names[n] in allowed)
        work = Work(MOST_WORK + _WORK_OF_A_CALL * len(places))
        loop = places[0].loop
        stream = self._key(loop, _CALLS)
        deal = self._key(loop, _DEAL)
        planned = []
        for place in places:
            draws = Draws(key(stream, place.round << 12 | place.call))
            index = indices[draws.below(len(indices))]
            # Dealt numbers differ within a loop of ordinary size, so no city is asked for twice.
            value = generators[index](draws, deal + (place.round * 16 + place.call) * 7, work)
            if work.left < -_MOST_OVERDRAWN:
                raise ApiError(
                    f"The schema of tool '{names[index]}' is too large for the {len(places)} calls of this"
                    f" reply: their arguments take more than {_MOST_OVERDRAWN:,} characters or steps.",
                    param="tools",
                )
            planned.append(PlannedCall(place, names[index], orjson.dumps(value).decode()))
        return planned

    def pace(self, loop: int, round_: int, call: int) -> Pace:
        """The timing of the response that starts with this call (or is the answer), time-scaled."""
        if self._scale == 0:
            return Pace(0.0, 0.0)
        at = round_ << 12 | call
        speed = self._speed(key(self._key(loop, _SPEED), at))
        first = self._first_token(key(self._key(loop, _FIRST_TOKEN), at))
        return Pace(first * self._scale, self._scale / speed if speed else 0.0)

    def tokens(self, place: Place, default_reasoning: int) -> TokenDraw:
        """The tokens of the request whose reply has this place."""
        if not self._draws_tokens:
            return TokenDraw(0, 0.0, 0.0, default_reasoning)
        at, loop = place.round << 12 | place.call, place.loop
        return TokenDraw(
            self._context(key(self._key(loop, _CONTEXT), at)),
            self._cached(key(self._key(loop, _CACHED), at)),
            self._written(key(self._key(loop, _WRITTEN), at)),
            default_reasoning
            if self._reasoning is None
            else self._reasoning(key(self._key(loop, _REASONING), at)),
        )

    def duration(self, place: Place, name: str) -> float:
        """Seconds that this call of tool `name` takes, time-scaled."""
        if self._scale == 0:
            return 0.0
        sample = self._durations.get(name, self._default_duration)
        stream = key(self._key(place.loop, _DURATION), place.round << 12 | place.call)
        return sample(stream) * self._scale

    def model_fault(self, place: Place, attempt: int) -> Fault | None:
        """The fault that this attempt of a model request meets, if any: the first that applies."""
        return self._fault(self._model_faults, place, lambda fault: attempt < fault.attempts)

    def call_fault(self, place: Place, *kinds: FaultKind) -> Fault | None:
        """The fault among `kinds` that this call meets, if any."""
        return self._fault(self._call_faults, place, lambda fault: fault.kind in kinds)

    def wire_faults(self, place: Place) -> list[Fault]:
        """The odd forms that the reply at this place takes: all that apply."""
        return [
            fault
            for number, fault in self._wire_faults
            if self._fault([(number, fault)], place, lambda fault: True)
        ]

    def _fault(
        self, faults: list[tuple[int, Fault]], place: Place, applies: Callable[[Fault], bool]
    ) -> Fault | None:
        for number, fault in faults:
            if not applies(fault):
                continue
            if fault.at:
                if any((at.loop, at.round, at.call) == place for at in fault.at):
                    return fault
            else:
                stream = key(self._key(place.loop, _FAULTS + number), place.round << 12 | place.call)
                if Draws(stream).random() < fault.probability:
                    return fault
        return None
