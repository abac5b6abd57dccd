"""What a search turns: the limit of a shared semaphore, or a setting of an agent's own (`--over a=1..32`).

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from profiler.errors import UsageError
from profiler.strategies import Knob
from profiler.variants import is_setting

LARGEST = 1_000_000
"""The largest value of a range."""

_RANGE = re.compile(r"([1-9]\d{0,8})\.\.([1-9]\d{0,8})")
_LIST = re.compile(r"[1-9]\d{0,8}(?:,[1-9]\d{0,8})*")


@dataclass(frozen=True, slots=True)
class Dial:
    """`values` are those that may be tried, in ascending order."""

    knob: Knob = field(default_factory=Knob)
    values: range | tuple[int, ...] = range(1, LARGEST + 1)

    @property
    def setting(self) -> str | None:
        """The name of the agent's setting; None where it is the limit of a semaphore."""
        return self.knob.name

    @property
    def baseline(self) -> str:
        """The strategy that all others are held against: gathering, or a setting's largest value."""
        return "gathered" if self.setting is None else self.spec(self.values[-1])

    @property
    def beside(self) -> str:
        """The strategy of a first look beside the baseline: it gets something done where that only fails."""
        if self.setting is None:
            return "sequential"
        low, high = self.values[0], self.values[-1]
        middle = self.nearest((low * high) ** 0.5)
        return self.spec(middle if middle != high else low)

    def spec(self, value: int) -> str:
        """The strategy with this value."""
        return self.knob.spec(value)

    def value(self, spec: str) -> int | None:
        """The value that a strategy has; None for one of another kind."""
        return self.knob.value(spec)

    def nearest(self, value: float) -> int:
        """The value nearest to this one that may be tried."""
        if isinstance(self.values, range):
            return min(self.values[-1], max(self.values[0], round(value)))
        return min(self.values, key=lambda one: abs(one - value))

    def below(self, value: int) -> int | None:
        """The next smaller value that may be tried."""
        place = self.values.index(value)
        return self.values[place - 1] if place else None

    def distinct(self, values: Iterable[float]) -> list[int]:
        """The values nearest to these, each once, in this order."""
        return [*dict.fromkeys(map(self.nearest, values))]


def split_over(text: str) -> tuple[str, ...]:
    """The parts of `--over`: `semaphore,adaptive`; numbers after `name=1` belong to it."""
    found: list[str] = []
    for part in filter(None, map(str.strip, text.split(","))):
        if found and part.isdecimal() and is_setting(found[-1]):
            found[-1] += f",{part}"
        else:
            found.append(part)
    return tuple(found)


def dial_of(over: Sequence[str]) -> Dial:
    """What is turned, given the parts of `--over`.

    Raises `UsageError` for a setting that cannot be searched.
    """
    settings = [part for part in over if is_setting(part)]
    if not settings:
        return Dial()
    if len(over) > 1:
        others = ", ".join(part for part in over if part != settings[0])
        raise UsageError(
            f"--over {settings[0]}: a setting of the agent is searched alone, not with {others} at once"
        )
    name, _, said = settings[0].partition("=")
    values: range | tuple[int, ...] = ()
    if match := _RANGE.fullmatch(said):
        values = range(int(match[1]), int(match[2]) + 1)
    elif _LIST.fullmatch(said):
        values = tuple(sorted({int(value) for value in said.split(",")}))
    if len(values) < 2 or values[-1] > LARGEST:
        raise UsageError(
            f"--over {settings[0]}: expected whole numbers up to {LARGEST}, two or more of them, such as "
            f"{name}=1..32 or {name}=1,2,4,8"
        )
    return Dial(Knob(name), values)
