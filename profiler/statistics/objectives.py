"""Demands on a run: objectives (`p95<2s,errors<1%`), gates (`p95 > +5%`) and when to abort it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from profiler.errors import UsageError

GateMetric = Literal["p50", "p95", "p99", "errors", "throughput", "goodput"]

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0}
_TERM = re.compile(
    r"(?P<metric>[a-z0-9]+)\s*(?P<relation><=?)\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-z]+|%)"
)
_GATE = re.compile(
    r"(?P<metric>[a-z0-9]+)\s*(?P<relation>[<>])\s*(?P<sign>[+-])(?P<number>\d+(?:\.\d+)?)\s*%"
)

_WORSE = {
    **dict.fromkeys(("p50", "p95", "p99", "errors"), ("more", ">", "+")),
    **dict.fromkeys(("throughput", "goodput"), ("less", "<", "-")),
}
"""Metrics of gates, and how a gate says which direction is worse."""


@dataclass(frozen=True, slots=True)
class Objective:
    """Latency limits in seconds by quantile, and the largest share of loops that may fail.

    `text` is what the user wrote.
    """

    latency: dict[str, float]
    errors: float | None
    text: str

    @property
    def limit_seconds(self) -> float | None:
        """The longest that a good loop may take: the limit of the highest quantile named."""
        return self.latency[max(self.latency)] if self.latency else None


@dataclass(frozen=True, slots=True)
class RegressionGate:
    """A change of `metric` that makes a comparison fail when it is shown to be beyond `threshold`.

    `threshold` is a share of the baseline (0.05: 5 % more; -0.05: 5 % less); of `errors`, which are
    a share themselves, it is the difference.
    """

    metric: GateMetric
    threshold: float
    text: str


def parse_objective(spec: str, source: str = "") -> Objective:
    """`p95<2s,errors<1%`: any of p50, p95, p99 with ms, s or m, and errors with %.

    Raises `UsageError`, which names the `source` of the objective, such as `--slo`, if given.
    """

    def wrong(what: str, words: str) -> UsageError:
        return UsageError(f"{source + ': ' if source else ''}objective {what!r}: {words}")

    latency: dict[str, float] = {}
    errors: float | None = None
    for term in map(str.strip, spec.split(",")):
        match = _TERM.fullmatch(term)
        if match is None:
            raise wrong(term, "expected something like p95<2s or errors<1%")
        metric, unit, value = match["metric"], match["unit"], float(match["number"])
        if metric == "errors":
            if unit != "%" or value > 100:
                raise wrong(term, "errors are a percentage, such as errors<1%")
            if errors is not None:
                raise wrong(spec, "errors are limited twice")
            errors = value / 100
        elif metric in ("p50", "p95", "p99"):
            if unit not in _UNITS or value == 0:
                raise wrong(term, "expected a time such as 800ms, 2s or 1m")
            if metric in latency:
                raise wrong(spec, f"{metric} is limited twice")
            latency[metric] = value * _UNITS[unit]
        else:
            raise wrong(term, f"unknown {metric!r}: expected p50, p95, p99 or errors")
    return Objective(latency, errors, spec)


def parse_gates(spec: str) -> tuple[RegressionGate, ...]:
    """`p95 > +5%, errors > +1%, goodput < -5%`: what makes a comparison fail. Raises `UsageError`."""

    def wrong(term: str, words: str) -> UsageError:
        return UsageError(f"--fail-on: gate {term!r}: {words}")

    gates = []
    for term in map(str.strip, spec.split(",")):
        match = _GATE.fullmatch(term)
        if match is None:
            raise wrong(term, "expected something like 'p95 > +5%' or 'goodput < -5%'")
        metric, share = match["metric"], float(match["number"]) / 100
        if metric not in _WORSE:
            raise wrong(term, f"unknown {metric!r}: expected p50, p95, p99, errors, throughput or goodput")
        word, relation, sign = _WORSE[metric]
        if (match["relation"], match["sign"]) != (relation, sign):
            expected = f"'{metric} {relation} {sign}{match['number']}%'"
            raise wrong(term, f"a worse {metric} is {word}: expected {expected}")
        if sign == "-" and share >= 1:
            raise wrong(term, "nothing can fall by 100 % or more")
        gates.append(RegressionGate(metric, share if sign == "+" else -share, term))  # type: ignore[arg-type]
    return tuple(gates)


# `--abort-on "errors>20%"`: when a run is hopeless.

FEWEST_LOOPS = 20
"""Loops of a trial that must have ended before it can be called hopeless."""

_RULE = re.compile(r"errors\s*>\s*(\d+(?:\.\d+)?)\s*%")


@dataclass(frozen=True, slots=True)
class AbortRule:
    """A run ends when more than this share of a trial's loops failed."""

    errors: float

    @classmethod
    def parse(cls, spec: str) -> AbortRule:
        """`errors>20%`. Raises `UsageError`."""
        match = _RULE.fullmatch(spec.strip())
        if match is None or float(match[1]) >= 100:
            raise UsageError(f"--abort-on {spec!r}: expected something like errors>20%")
        return cls(float(match[1]) / 100)

    def broken(self, loops: int, failed: int) -> str | None:
        """Why a trial in which `failed` of `loops` loops have failed is hopeless; None if it is not."""
        if loops < FEWEST_LOOPS or failed <= self.errors * loops:
            return None
        return f"{failed} of {loops} loops failed, more than {self.errors * 100:g} %"
