"""Demands on a run: objectives (`p95<2s,errors<1%`), gates (`p95 > 2s`, `p95 > +5%`) and when to abort it.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from profiler.errors import UsageError, did_you_mean

GateMetric = Literal["p50", "p95", "p99", "errors", "throughput", "goodput"]

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0}
_TERM = re.compile(
    r"(?P<metric>[a-z0-9]+)\s*(?P<relation><=?)\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-z]+|%)"
)
_GATE = re.compile(
    r"(?P<metric>[a-z0-9]+)\s*(?P<relation>[<>])\s*"
    r"(?P<sign>[+-]?)\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>/?[a-z]+|%)"
)
_OF_STRATEGY = re.compile(r"(?P<strategy>.*\S)\s*:\s*(?P<gate>[a-z0-9]+\s*[<>].*)", re.DOTALL)
"""`semaphore:8: p95 > 2s`. A strategy's name may hold colons: the last one before the gate ends it."""

_RATES = {"/s": 1.0, "/m": 1 / 60, "/min": 1 / 60}

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

    def missed(self, latencies: Mapping[str, float | None], failed: float) -> tuple[str, ...]:
        """`p95 2.31 s`, `errors 40 %`: what of it is missed, by the figures themselves, not their intervals.

        `latencies` are the quantiles in seconds, None where no loop came to an answer; `failed` is a share.
        """
        said = []
        for name, limit in self.latency.items():
            value = latencies[name]
            if value is None:
                said.append(f"no {name}, since no loop came to an answer")
            elif value >= limit:
                said.append(f"{name} {apart(value, limit)} s")
        if self.errors is not None and failed >= self.errors:
            said.append(f"errors {apart(failed * 100, self.errors * 100)} %")
        return tuple(said)


def apart(value: float, limit: float) -> str:
    """A figure in three digits, or in as many as it takes to tell it from the limit it is held against."""
    text = ""
    for digits in range(3, 17):
        text = f"{value:.{digits}g}"
        if value == limit or float(text) != limit:
            break
    return text if "e" not in text else f"{float(text):f}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class QualityGate:
    """What a run must not be shown to be, as `--fail-on` says it. `text` is what the user wrote.

    A `relative` one is of two runs: `threshold` is a share of the baseline (0.05: 5 % more; -0.05: 5 % less),
    or of `errors`, which are a share themselves, the difference. Any other is of one run: `threshold` is in
    seconds, in loops per second or, of `errors`, a share. `strategy` is the one that it is about, None: all.
    """

    metric: GateMetric
    threshold: float
    text: str
    strategy: str | None = None
    relative: bool = True

    @property
    def upward(self) -> bool:
        """More of it is worse."""
        return _WORSE[self.metric][1] == ">"

    @property
    def name(self) -> str:
        """`semaphore:8: p95 > 2s`, as a gate that names its strategy is written."""
        return self.text if self.strategy is None else f"{self.strategy}: {self.text}"


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


def parse_gates(*specs: str) -> tuple[QualityGate, ...]:
    """Gates as `--fail-on` has them, each spec a list: `p95 > 2s, errors > 1%`, `p95 > +5%, goodput < -5%`.

    A strategy before a gate (`semaphore:8: p95 > 2s, errors > 1%`) holds for it and for those after it in the
    same spec, until another is named. Raises `UsageError`.
    """
    gates = []
    for spec in specs:
        strategy: str | None = None
        for term in _terms(spec):
            named = _OF_STRATEGY.fullmatch(term)
            if named is not None:
                strategy = named["strategy"]
            gates.append(_gate(term if named is None else named["gate"], strategy))
    return tuple(gates)


def _terms(spec: str) -> Iterator[str]:
    """The gates of a list. Commas in the name of a strategy part nothing: a gate has a relation in it."""
    waiting: list[str] = []
    for part in spec.split(","):
        waiting.append(part)
        if "<" in part or ">" in part:
            yield ",".join(waiting).strip()
            waiting = []
    if waiting:
        yield ",".join(waiting).strip()


def _gate(term: str, strategy: str | None) -> QualityGate:
    def wrong(words: str) -> UsageError:
        return UsageError(f"--fail-on: gate {term!r}: {words}")

    match = _GATE.fullmatch(term)
    if match is None:
        raise wrong(
            "expected something like 'p95 > 2s', 'errors > 1%' or 'goodput < 5/s' of one run, "
            "'p95 > +5%' between two"
        )
    metric, number, unit = match["metric"], float(match["number"]), match["unit"]
    if metric not in _WORSE:
        raise wrong(f"unknown {metric!r}: expected p50, p95, p99, errors, throughput or goodput")
    word, relation, sign = _WORSE[metric]
    relative = bool(match["sign"])
    if match["relation"] != relation or (relative and match["sign"] != sign):
        bound = f"{match['number']}{unit}"
        raise wrong(
            f"a worse {metric} is {word}: expected '{metric} {relation} {sign if relative else ''}{bound}'"
        )
    if relative:
        if unit != "%":
            raise wrong(f"a change is a percentage, such as '{metric} {relation} {sign}5%'")
        if sign == "-" and number >= 100:
            raise wrong("nothing can fall by 100 % or more")
        change = number / 100 if sign == "+" else -number / 100
        return QualityGate(metric, change, term, strategy)  # type: ignore[arg-type]
    units, example = _UNITS, "2s"
    if metric == "errors":
        units, example = {"%": 0.01}, "1%"
    elif relation == "<":
        units, example = _RATES, "5/s"
    if unit not in units or (not number and metric != "errors") or (metric == "errors" and number >= 100):
        raise wrong(
            f"expected something like '{metric} {relation} {example}' of one run, "
            f"'{metric} {relation} {sign}5%' between two"
        )
    return QualityGate(metric, number * units[unit], term, strategy, relative=False)  # type: ignore[arg-type]


def check_gates(gates: Collection[QualityGate], strategies: Collection[str], runs: int = 1) -> None:
    """Raises `UsageError` for a gate of a strategy that is not there, or of two runs where there is one."""
    for gate in gates:
        if gate.strategy is not None and gate.strategy not in strategies:
            near = did_you_mean(gate.strategy, strategies)
            raise UsageError(
                f"--fail-on: gate {gate.name!r}: no strategy {gate.strategy!r} here{near}: "
                f"expected one of {', '.join(strategies)}"
            )
        if gate.relative and runs == 1:
            raise UsageError(
                f"--fail-on: gate {gate.name!r}: a change is between two recorded runs (profiler compare "
                "RUN_A RUN_B); of one run expected something like 'p95 > 2s' or 'errors > 1%'"
            )


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
