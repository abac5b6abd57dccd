"""Random draws addressed by coordinates, and sampling of the scenario's distributions.

Pure. A stream is named by a path of integers (seed, loop, round, ...), never by the order in which
it is asked for: that is what makes loop i the same work whatever arrives first. Streams are seeded
with SplitMix64 (Steele, Lea, Flood 2014) and continue as a 128-bit multiplicative congruential
generator (multiplier from L'Ecuyer 1999), which costs one multiplication a draw; seeding a
`random.Random` would cost more than the rest of a model request.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from statistics import NormalDist
from typing import NamedTuple, TypeVar

from profiler.scenarios.forms import Distribution

_MASK64 = (1 << 64) - 1
_MASK128 = (1 << 128) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
_inverse_normal = NormalDist().inv_cdf

T = TypeVar("T")


def mix(value: int) -> int:
    """SplitMix64's finaliser: 64 well-mixed bits of `value`."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def key(parent: int, label: int) -> int:
    """The 64-bit key of the stream `label` below `parent`."""
    # `mix` written out: a request takes a dozen keys, and a call costs as much as the mixing.
    value = (parent + (label + 1) * _GOLDEN) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


class Draws:
    """The stream of one key."""

    __slots__ = ("_state",)

    def __init__(self, stream_key: int) -> None:
        self._state = (stream_key << 64) | mix(stream_key) | 1  # odd, which the generator's period needs

    def random(self) -> float:
        """A number in [0, 1)."""
        self._state = state = (self._state * _MULTIPLIER) & _MASK128
        return (state >> 75) * 1.1102230246251565e-16  # the upper 53 bits, times 2^-53

    def below(self, bound: int) -> int:
        """A whole number in [0, bound)."""
        self._state = state = (self._state * _MULTIPLIER) & _MASK128
        return ((state >> 64) * bound) >> 64

    def choice(self, options: Sequence[T]) -> T:
        """One of `options`, equally likely."""
        return options[self.below(len(options))]


Sampler = Callable[[int], float]
"""Stream key → the one value of the distribution there."""


def sampler(distribution: Distribution) -> Sampler:
    """Compile `distribution`. Kinds with a closed inverse take one draw; gamma takes several."""
    values, low, high = distribution.parameters, distribution.minimum, distribution.maximum
    own = distribution.seed
    if distribution.kind == "constant":
        fixed = min(max(values[0], low), high)
        return lambda _: fixed
    if distribution.kind == "quantiles" or distribution.weights:
        at = quantile_function(distribution)
        return lambda stream: at(Draws(stream ^ own).random())
    if distribution.kind == "empirical":
        clamped = tuple(min(max(value, low), high) for value in values)
        return lambda stream: Draws(stream ^ own).choice(clamped)
    draw = _DRAWING[distribution.kind](*values)
    return lambda stream: min(max(draw(Draws(stream ^ own)), low), high)


def whole(distribution: Distribution, *, least: int) -> Callable[[int], int]:
    """The distribution rounded to whole numbers of at least `least` (rounds, fan-out)."""
    sample = sampler(distribution)
    return lambda stream: max(least, round(sample(stream)))


# Draws that have something in common: a normal number made up of parts, then the quantile at its probability.

_LEAST, _MOST = 2.0**-53, 1.0 - 2.0**-53
"""Probabilities of which every distribution has a finite quantile."""
_ROOT_HALF = math.sqrt(0.5)


def normal(stream: int) -> float:
    """The one standard normal number of a stream."""
    return _inverse_normal(Draws(stream).random() or 0.5)


def quantile_function(distribution: Distribution) -> Callable[[float], float]:
    """Probability in [0, 1] → the quantile there. Raises `ValueError` for gamma, which has no closed form."""
    kind, values = distribution.kind, distribution.parameters
    low, high = distribution.minimum, distribution.maximum
    if kind == "gamma":
        raise ValueError("a gamma distribution has no quantile function in closed form")
    if kind == "constant":
        fixed = min(max(values[0], low), high)
        return lambda _: fixed
    if kind == "empirical":
        weights = distribution.weights or (1.0,) * len(values)
        pairs = sorted(zip(values, weights, strict=True))
        ends = list(accumulate(weight for _, weight in pairs))
        ordered = [min(max(value, low), high) for value, _ in pairs]
        total, last = ends[-1], len(ends) - 1
        return lambda p: ordered[min(bisect_right(ends, p * total), last)]
    if kind == "quantiles":
        half = len(values) // 2
        at, points = values[:half], values[half:]
        slopes = [(points[n + 1] - points[n]) / (at[n + 1] - at[n]) for n in range(half - 1)]

        def linear(p: float) -> float:
            n = min(bisect_right(at, p), half - 1) - 1
            return min(max(points[n] + (p - at[n]) * slopes[n], low), high)

        return linear
    draw = _DRAWING[kind](*values)
    return lambda p: min(max(draw(_Given(min(max(p, _LEAST), _MOST))), low), high)


def at_normal(quantiles: Callable[[float], float], z: float) -> float:
    """The quantile at the probability of a standard normal number."""
    return quantiles(0.5 * math.erfc(-z * _ROOT_HALF))


class _Given(Draws):
    """A stream of one number that is given."""

    __slots__ = ("_number",)

    def __init__(self, number: float) -> None:
        self._number = number

    def random(self) -> float:
        return self._number


Draw = Callable[[Draws], float]


def _uniform(low: float, high: float) -> Draw:
    return lambda draws: low + draws.random() * (high - low)


def _exponential(mean: float) -> Draw:
    return lambda draws: -mean * math.log1p(-draws.random())


def _lognormal(median: float, sigma: float) -> Draw:
    # inv_cdf refuses 0, which a draw is once in 2^53.
    return lambda draws: median * math.exp(sigma * _inverse_normal(draws.random() or 0.5))


def _pareto(scale: float, alpha: float) -> Draw:
    return lambda draws: scale * (1.0 - draws.random()) ** (-1.0 / alpha)


def _gamma(mean: float, shape: float) -> Draw:
    """Marsaglia and Tsang 2000; shapes below 1 by boosting."""
    boosted = shape if shape >= 1 else shape + 1
    d = boosted - 1 / 3
    c = 1 / math.sqrt(9 * d)
    scale = mean / shape

    def draw(draws: Draws) -> float:
        while True:
            normal = _inverse_normal(draws.random() or 0.5)
            volume = (1 + c * normal) ** 3
            if volume > 0 and math.log(
                1 - draws.random()
            ) < normal * normal / 2 + d - d * volume + d * math.log(volume):
                break
        value = d * volume
        if shape < 1:
            value *= (1 - draws.random()) ** (1 / shape)
        return value * scale

    return draw


_DRAWING: dict[str, Callable[..., Draw]] = {
    "uniform": _uniform,
    "exponential": _exponential,
    "lognormal": _lognormal,
    "pareto": _pareto,
    "gamma": _gamma,
}


# Ids that look like the providers' and name a place on the tape.
#
# An id carries (loop, round, call) and a nonce, so that a follow-up request or a tool request finds its
# place although the server remembers nothing, and the same place run twice (two strategies on one tape)
# still gets two ids. Multiplying by an odd constant modulo 2^138, which can be undone, spreads the nonce
# over all digits; a fixed field (the mark) tells our ids from foreign ones.

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_VALUES = {digit: value for value, digit in enumerate(_DIGITS)}
_PAIRS = [first + second for first in _DIGITS for second in _DIGITS]
_FOUR, _EIGHT = 62**4, 62**8
_LENGTH = 24  # base-62 digits; 62^24 > 2^138
_BITS = 138
_MASK = (1 << _BITS) - 1
_FACTOR = 0x2F0B4C4F17B3A64D2E1C3A9D5B7F4E6D1B5 | 1
_INVERSE = pow(_FACTOR, -1, 1 << _BITS)
_MARK = 0x2B5
# From the low end: nonce 40 bits, mark 10, call 12, round 12, loop 64.
_MARK_SHIFT, _CALL_SHIFT, _ROUND_SHIFT, _LOOP_SHIFT = 40, 50, 62, 74

MAX_LOOP = (1 << 64) - 1
"""The largest loop number an id can carry."""


class Place(NamedTuple):
    """A call's place on the tape."""

    loop: int
    round: int
    call: int


def encode(place: Place, nonce: int) -> str:
    """24 letters and digits; different for every nonce below 2^40."""
    loop, round_, call = place
    number = (
        (loop << _LOOP_SHIFT)
        | (round_ << _ROUND_SHIFT)
        | (call << _CALL_SHIFT)
        | (_MARK << _MARK_SHIFT)
        | (nonce & 0xFFFFFFFFFF)
    )
    number = (number * _FACTOR) & _MASK
    # Written out, in words of eight digits and then of four, since every call of a reply takes one: small
    # numbers, of which the digits come two at a time from a table.
    rest, a = divmod(number, _EIGHT)
    e, c = divmod(rest, _EIGHT)
    b, d, f = a // _FOUR, c // _FOUR, e // _FOUR
    a, c, e = a - b * _FOUR, c - d * _FOUR, e - f * _FOUR
    pairs = _PAIRS
    return (
        f"{pairs[a % 3844]}{pairs[a // 3844]}{pairs[b % 3844]}{pairs[b // 3844]}"
        f"{pairs[c % 3844]}{pairs[c // 3844]}{pairs[d % 3844]}{pairs[d // 3844]}"
        f"{pairs[e % 3844]}{pairs[e // 3844]}{pairs[f % 3844]}{pairs[f // 3844]}"
    )


def decode(identifier: str) -> Place | None:
    """The place that an id names, with any prefix (`call_`, `toolu_`, ...); None for foreign ids."""
    digits = identifier[-_LENGTH:]
    if len(digits) < _LENGTH:
        return None
    number = 0
    try:
        for position in range(_LENGTH - 2, -1, -2):
            number = number * 3844 + _VALUES[digits[position]] * 62 + _VALUES[digits[position + 1]]
    except KeyError:
        return None
    if number > _MASK:
        return None
    number = (number * _INVERSE) & _MASK
    if (number >> _MARK_SHIFT) & 0x3FF != _MARK:
        return None
    return Place(number >> _LOOP_SHIFT, (number >> _ROUND_SHIFT) & 0xFFF, (number >> _CALL_SHIFT) & 0xFFF)
