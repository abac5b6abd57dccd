"""What is searched, as it was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from profiler.errors import UsageError
from profiler.limits.known import KnownQuota
from profiler.load.options import LoadOptions
from profiler.over import ANY_RATE, Over, parse_over
from profiler.strategies import parse_strategies
from profiler.tune.candidates import ObjectiveName
from profiler.tune.dial import Dial, dial_of

RATES = 3
"""Rates that are tried."""

SMALLEST_BUDGET = 60.0
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Search:
    """The search: `load` says under which work (its strategies are ignored), `over` which kinds to try.

    `budget` (seconds) is for the whole search, as are the limits of `load` on what may be spent. `dial` is
    what is turned, as `over` says.
    """

    load: LoadOptions
    users: int
    workers: int = 1
    objective: ObjectiveName = "goodput"
    over: tuple[Over, ...] = parse_over("semaphore,adaptive")
    budget: float = 150.0
    quotas: tuple[KnownQuota, ...] = ()
    dial: Dial = field(init=False, default=Dial())

    def __post_init__(self) -> None:
        if self.budget < SMALLEST_BUDGET:
            raise UsageError(f"--budget must be at least {SMALLEST_BUDGET:g} seconds, not {self.budget:g}")
        object.__setattr__(self, "dial", dial_of(self.over))
        if self.dial.setting is not None and self.load.agent is None:
            raise UsageError(
                f"--over {self.over[0]}{self.over[0].near}: settings are those of an agent of your own: name "
                "the function that takes them with --agent MODULE:FUNCTION"
            )
        if self.part("eager") is not None and not self.load.stream:
            raise UsageError("--over eager: tools start early only while a reply streams; add --stream")
        limited = self.part("semaphore")
        if limited is not None:
            spec = self.dial.spec(self.dial.low)
            try:
                replace(self.load, strategies=parse_strategies(spec))
            except UsageError as error:  # such as that there are no MCP servers
                raise UsageError(str(error).replace(f"--strategy {spec}", f"--over {limited}")) from None

    def part(self, kind: str) -> Over | None:
        """The part of `over` of this kind; None without one."""
        return next((part for part in self.over if part.kind == kind), None)


def rates_to_try(rate: Over, seen: float) -> list[float]:
    """Rates around one that was `seen`, in calls a second; where those that may be tried do not allow for
    `RATES` there, or nothing was seen, they are spread over what was asked for."""
    around = (rate.values or ANY_RATE).distinct(seen * share for share in (0.8, 1.0, 1.2)) if seen else []
    if rate.given is None or (len(around) == RATES and not rate.given.listed):
        return around
    return rate.given.spaced(RATES)
