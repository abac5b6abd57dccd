"""Random draws addressed by coordinates, and sampling of the scenario's distributions.

Pure. A stream is named by a path of integers (seed, loop, round, ...), never by the order in which
it is asked for: that is what makes loop i the same work whatever arrives first. Streams are seeded
with SplitMix64 (Steele, Lea, Flood 2014) and continue as a 128-bit multiplicative congruential
generator (multiplier from L'Ecuyer 1999), which costs one multiplication a draw; seeding a
`random.Random` would cost more than the rest of a model request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TypeVar

from profiler.scenario import Distribution

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
    return mix((parent + (label + 1) * _GOLDEN) & _MASK64)


class Draws:
    """The stream of one key."""

    __slots__ = ("_state",)

    def __init__(self, stream_key: int) -> None:
        self._state = (stream_key << 64) | mix(stream_key) | 1

    def random(self) -> float:
        """A number in [0, 1)."""
        self._state = state = (self._state * _MULTIPLIER) & _MASK128
        return (state >> 75) * 1.1102230246251565e-16

    def below(self, bound: int) -> int:
        """A whole number in [0, bound)."""
        self._state = state = (self._state * _MULTIPLIER) & _MASK128
        return ((state >> 64) * bound) >> 64

    def choice(self, options: Sequence[T]) -> T:
        """One of `options`, equally likely."""
        return options[self.below(len(options))]


Sampler = Callable[[int], float]
"""From a stream key to the one value that this distribution has there."""


def sampler(distribution: Distribution) -> Sampler:
    """Compile `distribution`. Kinds with a closed inverse take one draw; gamma takes several."""
    draw = _DRAWING[distribution.kind](*distribution.parameters) if distribution.kind != "empirical" else None
    values = distribution.parameters
    low, high, own = distribution.minimum, distribution.maximum, distribution.seed
    if distribution.kind == "constant":
        fixed = min(max(values[0], low), high)
        return lambda _: fixed
    if draw is None:
        clamped = tuple(min(max(value, low), high) for value in values)
        return lambda stream: Draws(stream ^ own).choice(clamped)
    return lambda stream: min(max(draw(Draws(stream ^ own)), low), high)


def whole(distribution: Distribution, *, least: int) -> Callable[[int], int]:
    """The distribution rounded to whole numbers of at least `least` (rounds, fan-out)."""
    sample = sampler(distribution)
    return lambda stream: max(least, round(sample(stream)))


Draw = Callable[[Draws], float]


def _constant(value: float) -> Draw:
    return lambda _: value


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
    "constant": _constant,
    "uniform": _uniform,
    "exponential": _exponential,
    "lognormal": _lognormal,
    "pareto": _pareto,
    "gamma": _gamma,
}
