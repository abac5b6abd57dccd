"""`--abort-on "errors>20%"`: when a run is hopeless. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from profiler.errors import UsageError

FEWEST_LOOPS = 20
"""Finished loops of a trial before it can be called hopeless."""

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
        """What is wrong with a trial of which `loops` loops have ended, in words; None if nothing is."""
        if loops < FEWEST_LOOPS or failed <= self.errors * loops:
            return None
        return f"{failed} of {loops} loops failed, more than {self.errors * 100:g} %"
