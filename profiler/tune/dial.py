"""What a search turns: the limit of a semaphore, or a setting of an agent's own (`--over a=1..32`).

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from profiler.errors import UsageError
from profiler.over import ANY_LIMIT, LARGEST, Over, Values
from profiler.records import ToolCall
from profiler.strategies import Knob


@dataclass(frozen=True, slots=True)
class Dial:
    """`values` are those that may be tried: whole numbers."""

    knob: Knob = field(default_factory=Knob)
    values: Values = ANY_LIMIT

    @property
    def setting(self) -> str | None:
        """The name of the agent's setting; None where it is the limit of a semaphore."""
        return self.knob.name

    @property
    def low(self) -> int:
        return int(self.values.low)

    @property
    def high(self) -> int:
        return int(self.values.high)

    @property
    def baseline(self) -> str:
        """The strategy that all others are held against: gathering, or a setting's largest value."""
        return "gathered" if self.setting is None else self.spec(self.high)

    @property
    def beside(self) -> str:
        """The strategy of a first look beside the baseline: it gets something done where that only fails."""
        if self.setting is None:
            return "sequential"
        middle = self.nearest((self.low * self.high) ** 0.5)
        return self.spec(middle if middle != self.high else self.low)

    def spec(self, value: int) -> str:
        """The strategy with this value."""
        return self.knob.spec(value)

    def value(self, spec: str) -> int | None:
        """The value that a strategy has; None for one of another kind."""
        return self.knob.value(spec)

    def nearest(self, value: float) -> int:
        """The value nearest to this one that may be tried."""
        return int(self.values.nearest(value))

    def below(self, value: int) -> int | None:
        """The next smaller value that may be tried."""
        smaller = [int(one) for one in self.values.listed if one < value]
        if self.values.listed:
            return max(smaller, default=None)
        return value - 1 if value > self.low else None

    def edge(self, value: int) -> str | None:
        """That a value is the first or last that was asked for, beyond which none was tried; else None."""
        if value == self.high < LARGEST:
            return f"{value} is the largest that --over names: a larger one may be better"
        if value == self.low > 1:
            return f"{value} is the smallest that --over names: a smaller one may be as good"
        return None

    def calls(self, calls: Iterable[ToolCall]) -> list[ToolCall]:
        """Those of these calls that the limit is about: all, or those of its tool or its MCP server."""
        tool, server = self.knob.tool, self.knob.server
        return [
            one
            for one in calls
            if tool in (None, one.name)
            and (server is None or (one.remote is not None and one.remote.server == server))
        ]

    def distinct(self, values: Iterable[float]) -> list[int]:
        """The values nearest to these, each once, in this order."""
        return [*dict.fromkeys(map(self.nearest, values))]


def dial_of(over: Sequence[Over]) -> Dial:
    """What is turned, given the parts of `--over`; of several limits the shared one, else the first.

    The others are searched only where they can be predicted. Raises `UsageError` for what cannot be searched
    at once.
    """
    turned = [part for part in over if part.knob is not None]
    settings = [part for part in turned if part.kind == "setting"]
    if settings and len(over) > 1:
        others = ", ".join(str(part) for part in over if part != settings[0])
        raise UsageError(
            f"--over {settings[0]}: a setting of the agent is searched alone, not with {others} at once"
        )
    if not turned:
        return Dial()
    shared = (part for part in turned if part.knob is not None and part.knob.shared)
    first = next(shared, turned[0])
    return Dial(first.knob or Knob(), first.values or ANY_LIMIT)
