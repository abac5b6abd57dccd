"""The tape: the work of loop number i, a pure function of (scenario, seed, i).

Every quantity has a stream of its own, addressed by (seed, loop, round, call), so that the same i
is the same work under every strategy, on every provider, in whatever order requests arrive.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import msgspec
import orjson

from profiler.emulator.conversation import ApiError, Choice, Conversation, Offered
from profiler.emulator.draws import (
    Draws,
    Place,
    Sampler,
    at_normal,
    key,
    normal,
    quantile_function,
    sampler,
    whole,
)
from profiler.emulator.work import MOST_WORK, Work
from profiler.scenarios import CALL_FAULTS, WIRE_FAULTS, Fault, FaultKind, Scenario
from profiler.scenarios.forms import Distribution

_ROUNDS, _FAN_OUT, _CALLS, _FIRST_TOKEN, _SPEED, _DURATION, _DEAL, _FAULTS = range(8)
"""The streams of a loop; fault number n has the stream `_FAULTS + n`. Within a stream a call's label is
`round << 12 | call`: 12 bits hold every call of a round (`MOST_FAN_OUT`)."""

_CONTEXT, _CACHED, _WRITTEN, _REASONING = range(1 << 20, (1 << 20) + 4)
"""More streams of a loop, beyond those of its faults."""

_OF_LOOP, _OF_ROUND, _REPLY, _INPUT, _OUTPUT, _SAME = range(1 << 21, (1 << 21) + 6)
"""Streams of what draws have in common, of replies, and of calls that ask for the tool of the one before."""


_WORK_OF_A_CALL = 1_000
"""The work that each further call of a reply may add to that of one, on average."""

_MOST_OVERDRAWN = 200_000
"""The work that is required beyond that, at most."""


class PlannedCall(msgspec.Struct, frozen=True, gc=False):
    """A call of the tape: its place, tool and arguments (JSON text)."""

    place: Place
    name: str
    arguments: str


class Pace(NamedTuple):
    """The timing of one model response: seconds to the first token, seconds for each further token.

    `whole`: seconds of all of it, whatever its tokens; then `per_token` means nothing.
    """

    first_token: float
    per_token: float
    whole: float | None = None


_AT_ONCE = Pace(0.0, 0.0)


class TokenDraw(NamedTuple):
    """The tokens drawn for one model request, as `ModelSpec` says; None: by the length of what is sent."""

    context: int
    cached_share: float
    written_share: float
    reasoning: int
    input: int | None = None
    output: int | None = None


_NO_DRAW = TokenDraw(0, 0.0, 0.0, 0)


class Tape:
    """The work of a scenario under one seed. Holds compiled samplers; its only state is a key."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self._scale = scenario.time_scale
        self._root = key(0, seed & 0xFFFFFFFFFFFF)
        self._last = (-1, 0)  # a loop and its key: in one, so that threads may share a tape
        self._rounds = whole(scenario.loop.rounds, least=0)
        self._fan_out = whole(scenario.loop.fan_out, least=1)
        self._first_token = sampler(scenario.model.first_token)
        self._speed = sampler(scenario.model.tokens_per_second)
        self._durations: dict[str, Sampler] = {spec.name: sampler(spec.duration) for spec in scenario.tools}
        self._default_duration = sampler(scenario.default_tool.duration)
        model = scenario.model
        # Most scenarios draw none, and every draw costs.
        drawn = (model.context_tokens, model.cached_share, model.cache_written_share)
        counted = (model.reasoning_tokens, model.input_tokens, model.output_tokens)
        self._draws_tokens = any(one is not None for one in counted) or any(
            one.parameters != (0.0,) for one in drawn
        )
        self._context = whole(model.context_tokens, least=0)
        self._cached, self._written = sampler(model.cached_share), sampler(model.cache_written_share)
        self._reasoning = None if model.reasoning_tokens is None else whole(model.reasoning_tokens, least=0)
        self._common = _Common(scenario)
        self._size = self._common.size
        # What is the same for all is not drawn.
        loop_spec = scenario.loop
        self._every_rounds = _fixed(loop_spec.rounds, self._rounds) if self._size is None else None
        self._every_fan_out = None
        if self._size is None and not loop_spec.fan_out_by_round:
            self._every_fan_out = _fixed(loop_spec.fan_out, self._fan_out)
        self._by_round = [whole(one, least=1) for one in scenario.loop.fan_out_by_round]
        self._reply = None if model.duration is None else sampler(model.duration)
        self._input = None if model.input_tokens is None else whole(model.input_tokens, least=0)
        self._output = None if model.output_tokens is None else whole(model.output_tokens, least=1)
        self._weighted = any(spec.weight != (1.0,) for spec in scenario.tools)
        self._same_tool = scenario.loop.same_tool
        self._wire_faults = [(n, f) for n, f in enumerate(scenario.faults) if f.kind in WIRE_FAULTS]
        self._model_faults = [
            (n, f)
            for n, f in enumerate(scenario.faults)
            if f.kind not in CALL_FAULTS and f.kind not in WIRE_FAULTS
        ]
        self._call_faults = [(n, f) for n, f in enumerate(scenario.faults) if f.kind in CALL_FAULTS]

    def _key(self, loop: int, stream: int) -> int:
        last = self._last
        if last[0] != loop:  # all streams of a reply are of one loop
            last = self._last = (loop, key(self._root, loop))
        return key(last[1], stream)

    def _factor(self, loop: int) -> float:
        """The normal number that draws of a loop have in common."""
        return normal(self._key(loop, _OF_LOOP))

    def rounds(self, loop: int) -> int:
        """Rounds with calls; the answer comes after them."""
        if self._every_rounds is not None:
            return self._every_rounds
        stream = self._key(loop, _ROUNDS)
        if self._size is None:
            return self._rounds(stream)
        return max(0, round(self._size(self._factor(loop), stream, None)))

    def fan_out(self, loop: int, round_: int) -> int:
        """Calls of a round; 1 beyond the tape's end, for clients that insist on a call."""
        return self._calls_of(loop, round_, self.rounds(loop))

    def _calls_of(self, loop: int, round_: int, rounds: int) -> int:
        """`fan_out` of a loop of so many rounds."""
        if round_ >= rounds:
            return 1
        if self._every_fan_out is not None:
            return self._every_fan_out
        stream = key(self._key(loop, _FAN_OUT), round_)
        if self._size is not None:
            return max(1, round(self._size(self._factor(loop), stream, round_)))
        if round_ < len(self._by_round):
            return self._by_round[round_](stream)
        return self._fan_out(stream)

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
            while round_ < rounds and call >= (size := self._calls_of(loop, round_, rounds)):
                round_, call = round_ + 1, call - size
            if round_ >= rounds:
                round_ += call  # beyond the end every round has one call
                call = 0
        if round_ >= rounds and not insisted:
            return []
        if talk.choice.kind == "named" or not talk.parallel:
            return [Place(loop, round_, call)]
        return [Place(loop, round_, n) for n in range(self._calls_of(loop, round_, rounds))]

    def calls(self, places: list[Place], offered: Offered, choice: Choice) -> list[PlannedCall]:
        """Tools and arguments for `places`, drawn from what the client offers (and `choice` allows).

        Raises `ApiError` where the arguments of all of them together are too much work.
        """
        names, generators = offered.names, offered.generators
        indices: Sequence[int] = range(len(names))
        if choice.names:
            allowed = frozenset(choice.names)
            indices = tuple(n for n in indices if names[n] in allowed)
        work = Work(MOST_WORK + _WORK_OF_A_CALL * len(places))
        loop = places[0].loop
        stream = self._key(loop, _CALLS)
        deal = self._key(loop, _DEAL)
        planned: list[PlannedCall] = []
        weights = self._weights([names[n] for n in indices], places[0].round) if self._weighted else None
        index, same = -1, self._same_tool
        for place in places:
            _, round_, call = place
            at = round_ << 12 | call
            draws = Draws(key(stream, at))
            drawn = indices[draws.below(len(indices)) if weights is None else _weighted(draws, weights)]
            if not same or index < 0 or Draws(key(self._key(loop, _SAME), at)).random() >= same:
                index = drawn
            # Dealt numbers differ within a loop of ordinary size, so no city is asked for twice.
            value = generators[index](draws, deal + (round_ * 16 + call) * 7, work)
            if work.left < -_MOST_OVERDRAWN:
                raise ApiError(
                    f"The schema of tool '{names[index]}' is too large for the {len(places)} calls of this"
                    f" reply: their arguments take more than {_MOST_OVERDRAWN:,} characters or steps.",
                    param="tools",
                )
            planned.append(PlannedCall(place, names[index], orjson.dumps(value).decode()))
        return planned

    def _weights(self, names: list[str], round_: int) -> list[float] | None:
        """The weights of these tools in a round, summed up one after another; None: all are alike."""
        weights = [self.scenario.tool(name).weight for name in names]
        summed = list(accumulate(one[min(round_, len(one) - 1)] for one in weights))
        return summed if summed[-1] > 0 else None

    def pace(self, loop: int, round_: int, call: int) -> Pace:
        """The timing of the response that starts with this call (or is the answer), time-scaled."""
        if self._scale == 0:
            return _AT_ONCE
        at = round_ << 12 | call
        if self._reply is not None:
            seconds, first = self._whole_reply(loop, at)
            return Pace(min(first, seconds) * self._scale, 0.0, seconds * self._scale)
        speed = self._speed(key(self._key(loop, _SPEED), at))
        first = self._first_token(key(self._key(loop, _FIRST_TOKEN), at))
        return Pace(first * self._scale, self._scale / speed if speed else 0.0)

    def _whole_reply(self, loop: int, at: int) -> tuple[float, float]:
        """Seconds of a reply, and to its first token."""
        stream, first = key(self._key(loop, _REPLY), at), key(self._key(loop, _FIRST_TOKEN), at)
        common = self._common
        assert self._reply is not None
        if common.reply is None:
            return self._reply(stream), self._first_token(first)
        z = self._reply_normal(loop, at)
        return at_normal(common.reply, z), common.of_reply["first_token"](z, first)

    def _reply_normal(self, loop: int, at: int) -> float:
        """The normal number of a reply's duration."""
        share, own = self._common.model_parts
        z = own * normal(key(self._key(loop, _REPLY), at))
        return z + share * self._factor(loop) if share else z

    def tokens(self, place: Place, default_reasoning: int) -> TokenDraw:
        """The tokens of the request whose reply has this place."""
        if not self._draws_tokens:
            return _NO_DRAW if not default_reasoning else TokenDraw(0, 0.0, 0.0, default_reasoning)
        at, loop = place.round << 12 | place.call, place.loop
        of_reply = self._common.of_reply
        counted: dict[str, int | None] = {}
        for name, sample, label in (("input", self._input, _INPUT), ("output", self._output, _OUTPUT)):
            stream = key(self._key(loop, label), at)
            linked = of_reply.get(f"{name}_tokens")
            if sample is None:
                counted[name] = None
            elif linked is None:
                counted[name] = sample(stream)
            else:
                least = 0 if name == "input" else 1
                counted[name] = max(least, round(linked(self._reply_normal(loop, at), stream)))
        return TokenDraw(
            self._context(key(self._key(loop, _CONTEXT), at)),
            self._cached(key(self._key(loop, _CACHED), at)),
            self._written(key(self._key(loop, _WRITTEN), at)),
            default_reasoning
            if self._reasoning is None
            else self._reasoning(key(self._key(loop, _REASONING), at)),
            counted["input"],
            counted["output"],
        )

    def duration(self, place: Place, name: str) -> float:
        """Seconds that this call of tool `name` takes, time-scaled."""
        if self._scale == 0:
            return 0.0
        stream = key(self._key(place.loop, _DURATION), place.round << 12 | place.call)
        common = self._common
        quantiles = common.tools.get(name)
        if quantiles is None:
            return self._durations.get(name, self._default_duration)(stream) * self._scale
        of_loop, of_round, own = common.parts
        z = own * normal(stream ^ common.seeds[name])
        if of_loop:
            z += of_loop * self._factor(place.loop)
        if of_round:
            z += of_round * normal(key(self._key(place.loop, _OF_ROUND), place.round))
        return at_normal(quantiles, z) * self._scale

    def model_fault(self, place: Place, attempt: int) -> Fault | None:
        """The fault that this attempt of a model request meets, if any: the first that applies."""
        return self._fault(self._model_faults, place, lambda fault: attempt < fault.attempts)

    def call_fault(self, place: Place, tool: str, *kinds: FaultKind) -> Fault | None:
        """The fault among `kinds` that this call of `tool` meets, if any."""
        return self._fault(
            self._call_faults,
            place,
            lambda fault: fault.kind in kinds and (not fault.tools or tool in fault.tools),
        )

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


def _fixed(distribution: Distribution, sample: Callable[[int], int]) -> int | None:
    """The only value of a distribution, None where it has several."""
    return sample(0) if distribution.kind == "constant" else None


def _weighted(draws: Draws, summed: list[float]) -> int:
    """A place in `summed`, the sums of weights, drawn by weight."""
    return min(bisect_right(summed, draws.random() * summed[-1]), len(summed) - 1)


Linked = Callable[[float, int], float]
"""(normal number that is given, stream of the part of one's own) → a draw that is correlated with it."""


def _linked(distribution: Distribution, correlation: float) -> Linked:
    quantiles, own = quantile_function(distribution), math.sqrt(1.0 - correlation * correlation)
    return lambda z, stream: at_normal(quantiles, correlation * z + own * normal(stream ^ distribution.seed))


class _Common:
    """The correlation of a scenario's draws (`Correlation`), compiled; empty where they have none.

    `parts` are the factors of a call's normal number: of its loop, its round, its own.
    """

    def __init__(self, scenario: Scenario) -> None:
        said, model, loop = scenario.correlation, scenario.model, scenario.loop
        self.parts = (
            math.sqrt(said.loop),
            math.sqrt(said.round),
            math.sqrt(max(0.0, 1.0 - said.loop - said.round)),
        )
        self.tools: dict[str, Callable[[float], float]] = {}
        self.seeds: dict[str, int] = {}
        if said.loop or said.round:
            self.tools = {spec.name: quantile_function(spec.duration) for spec in scenario.tools}
            self.seeds = {spec.name: spec.duration.seed for spec in scenario.tools}
        self.size: Callable[[float, int, int | None], float] | None = None
        if said.size:
            share = _signed_root(said.size)
            rounds, fan_out = _linked(loop.rounds, share), _linked(loop.fan_out, share)
            by_round = [_linked(one, share) for one in loop.fan_out_by_round]

            def size(z: float, stream: int, round_: int | None) -> float:
                if round_ is None:
                    return rounds(z, stream)
                return (by_round[round_] if round_ < len(by_round) else fan_out)(z, stream)

            self.size = size
        self.model_parts = (_signed_root(said.model), math.sqrt(1.0 - abs(said.model)))
        self.reply: Callable[[float], float] | None = None
        self.of_reply: dict[str, Linked] = {}
        linked = {
            "first_token": (model.first_token, said.first_token),
            "input_tokens": (model.input_tokens, said.input_tokens),
            "output_tokens": (model.output_tokens, said.output_tokens),
        }
        if model.duration is not None and (said.model or any(one for _, one in linked.values())):
            self.reply = quantile_function(model.duration)
            self.of_reply = {
                name: _linked(distribution, correlation)
                for name, (distribution, correlation) in linked.items()
                if distribution is not None
            }


def _signed_root(share: float) -> float:
    return math.copysign(math.sqrt(abs(share)), share)
