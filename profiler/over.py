"""What is searched or predicted over: the parts of `--over`, `KIND|VARIANT[=LO..HI],…`, in every command.

    semaphore=2..64                   limits of a semaphore that all agents of a process share
    semaphore@agent, @tool, @server   of one for each agent, tool, MCP server
    semaphore:search=1..16            of the semaphore of this tool (semaphore:files/*: of this MCP server)
    rate=5..50                        calls a second
    adaptive  eager  sequential  gathered
    max_concurrent_calls=1..32        values of a setting of the user's own agent

A list of values takes the place of a range: `semaphore=1,2,4,8`. A name that is a kind's is the kind, never a
setting. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, get_args

from profiler.errors import UsageError, did_you_mean
from profiler.limits.spec import ALL_TOOLS, Scope
from profiler.redaction.keys import hide_keys
from profiler.strategies import Knob
from profiler.variants import is_setting

Kind = Literal["semaphore", "rate", "adaptive", "eager", "sequential", "gathered", "setting"]

LARGEST = 1_000_000
"""The largest value of a range."""

SMALLEST_RATE = 0.001
"""Calls a second."""

_SCOPED = ("semaphore@agent", "semaphore@tool", "semaphore@server")
_WITHOUT_NUMBER = ("adaptive", "eager", "sequential", "gathered")
KINDS = ("semaphore", *_SCOPED, "semaphore:TOOL", "rate", *_WITHOUT_NUMBER)
"""The kinds as they are written; `TOOL` stands for a tool's name, or for `SERVER/*`."""

_NAMED = re.compile(r"semaphore:([\w-]+|[\w.-]+/\*)")
_NUMBER = re.compile(r"\d{1,9}(?:\.\d+)?")
_BETWEEN = re.compile(rf"({_NUMBER.pattern})\.\.({_NUMBER.pattern})")


@dataclass(frozen=True, slots=True)
class Values:
    """Numbers that may be tried: those of `listed`, in ascending order, else all from `low` to `high`."""

    low: float
    high: float
    listed: tuple[float, ...] = ()
    whole: bool = True

    def nearest(self, value: float) -> float:
        """The value nearest to this one that may be tried."""
        if self.listed:
            return min(self.listed, key=lambda one: abs(one - value))
        # Four digits of a rate are enough, unless they are an end of the range.
        return min(self.high, max(self.low, round(value) if self.whole else float(f"{value:.4g}")))

    def distinct(self, values: Iterable[float]) -> list[float]:
        """The values nearest to these, each once, in this order."""
        return [*dict.fromkeys(map(self.nearest, values))]

    def spaced(self, most: int) -> list[float]:
        """Up to `most` (2 or more) values evenly spaced by ratio, in ascending order; of a list, all."""
        if self.listed:
            return [*self.listed]
        ratio = self.high / self.low
        return self.distinct(self.low * ratio ** (k / (most - 1)) for k in range(most))


ANY_LIMIT = Values(1, LARGEST)
ANY_RATE = Values(SMALLEST_RATE, LARGEST, whole=False)


@dataclass(frozen=True, slots=True)
class Over:
    """One part of `--over`. `knob` is what has a whole number, `given` the values that were asked for.

    A kind that has a number may come without values: then any may be tried that make sense.
    """

    kind: Kind
    knob: Knob | None = None
    given: Values | None = None

    @property
    def name(self) -> str:
        """The part without its values, such as `semaphore@tool`."""
        return self.kind if self.knob is None else self.knob.written

    def __str__(self) -> str:
        if self.given is None:
            return self.name
        one = self.given
        ends = f"{_figure(one.low)}..{_figure(one.high)}"
        return f"{self.name}={','.join(map(_figure, one.listed)) or ends}"

    @property
    def values(self) -> Values | None:
        """The values that may be tried; None for a kind that has no number."""
        if self.given is None and self.kind not in _WITHOUT_NUMBER:
            return ANY_RATE if self.kind == "rate" else ANY_LIMIT
        return self.given

    @property
    def near(self) -> str:
        """The kind that a setting's name may have been meant for, in words to put after it; else empty."""
        return did_you_mean(self.name, KINDS) if self.kind == "setting" else ""

    def spec(self, value: float | None = None) -> str:
        """The strategy with this value, such as `semaphore:4@tool`; a kind without a number takes none."""
        if self.knob is not None:
            return self.knob.spec(int(value or 0))
        return self.kind if value is None else f"rate:{_figure(value)}/s"

    def specs(self, values: Iterable[float] = ()) -> list[str]:
        """The strategies with these values, each once; the one strategy of a kind without a number."""
        if self.values is None:
            return [self.spec()]
        return [*dict.fromkeys(map(self.spec, values))]


def parse_over(text: str) -> tuple[Over, ...]:
    """The parts of `--over`; numbers after `NAME=1` belong to it. Raises `UsageError`."""
    parts: list[str] = []
    for part in filter(None, map(str.strip, text.split(","))):
        if parts and "=" in parts[-1] and _NUMBER.fullmatch(part):
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    found = [_part(part) for part in parts]
    if not found:
        raise UsageError(f"--over: {_expected()}")
    for one in found:
        if sum(one.name == other.name for other in found) > 1:
            raise UsageError(f"--over {hide_keys(text)}: {one.name} is named twice")
    return tuple(found)


def _part(text: str) -> Over:
    name, equals, said = text.partition("=")
    if name in _WITHOUT_NUMBER:
        if equals:
            raise UsageError(f"--over {hide_keys(text)}: {name} has no values to choose from: leave them out")
        return Over(name)  # type: ignore[arg-type]
    if name == "rate":
        return Over("rate", None, _values(text, name, said) if equals else None)
    number = name.removeprefix("semaphore:")
    if number.isdecimal() and number != name and not equals:
        raise UsageError(
            f"--over {name} is one strategy; to search over its limit: semaphore=1..{max(2, 2 * int(number))}"
        )
    knob = _knob(name)
    if knob is not None:
        return Over("semaphore", knob, _values(text, name, said) if equals else None)
    if not is_setting(text):
        raise UsageError(f"--over {hide_keys(text)}{did_you_mean(name, KINDS)}: {_expected()}")
    return Over("setting", Knob(name), _values(text, name, said))


def _knob(name: str) -> Knob | None:
    """The semaphore of this name; None where it is the name of none."""
    head, _, of = name.partition("@")
    if head == "semaphore" and of in ("", *get_args(Scope)) and of != "process" and not name.endswith("@"):
        return Knob(scope=of or "process")  # type: ignore[arg-type]
    match = _NAMED.fullmatch(name)
    if match is None:
        return None
    if match[1].endswith(ALL_TOOLS):
        return Knob(scope="server", server=match[1].removesuffix(ALL_TOOLS))
    return Knob(scope="tool", tool=match[1])


def _values(text: str, name: str, said: str) -> Values:
    whole = name != "rate"
    least = 1 if whole else SMALLEST_RATE
    found: tuple[float, ...] = ()
    between = _BETWEEN.fullmatch(said)
    if between is not None:
        found = (float(between[1]), float(between[2]))
    elif all(map(_NUMBER.fullmatch, said.split(","))):
        found = tuple(sorted({float(part) for part in said.split(",")}))
    fits = all(least <= one <= LARGEST and (not whole or one.is_integer()) for one in found)
    if whole:
        found = tuple(map(int, found))
    if len(found) < 2 or found[0] >= found[-1] or not fits:
        what = f"whole numbers up to {LARGEST}" if whole else f"calls a second up to {LARGEST}"
        such = f"{name}=1..32 or {name}=1,2,4,8" if whole else "rate=5..50 or rate=5,10,20"
        near = did_you_mean(name, KINDS) if _knob(name) is None and whole else ""
        raise UsageError(
            f"--over {hide_keys(text)}{near}: expected {what}, two or more of them, such as {such}"
        )
    return Values(found[0], found[-1], () if between is not None else found, whole)


def _expected() -> str:
    return (
        f"expected some of {', '.join(KINDS)}, or a setting of the agent, such as max_concurrent_calls=1..32"
    )


def _figure(value: float) -> str:
    """A number as specs can hold it: without an exponent."""
    return format(Decimal(f"{value:.9g}"), "f")
