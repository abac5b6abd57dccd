"""Placeholder until the identification of servers is merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from profiler.statistics.table import Ints

Kind = Literal["none", "queue", "share", "refuse", "rate"]


@dataclass(frozen=True, slots=True)
class Calls:
    started: Ints
    ended: Ints
    refused: Any
    group: Ints
    loop: Ints
    retry_after: Ints


@dataclass(frozen=True, slots=True)
class Rule:
    kind: Kind
    capacity: int | None = None
    queue: int | None = None
    rate: float | None = None
    burst: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    rule: Rule
    identified: bool
    seen: tuple[float, float]
    capacities: tuple[int, int] | None
    sentence: str
    warnings: tuple[str, ...] = ()


def identify(calls: Calls, *, seed: int = 0) -> Finding:
    return Finding(Rule("none"), True, (0.0, 1e9), None, "a placeholder")


def service_times(calls: Calls, rule: Rule) -> Ints:
    return np.where(calls.refused, -1, calls.ended - calls.started)
