"""One colour per strategy, phase and outcome, shared by the dashboards and the report.

The strategy colours were searched for: under normal sight and the three kinds of colour
blindness any two differ by at least 0.09 in OKLab, and each stands out from white and from a
dark panel. Red is kept for what failed. Strategies are matched by their spec alone, so that one
keeps its colour whatever it is compared with.
"""

from __future__ import annotations

import re

SEQUENTIAL = "#8A8F98"
GATHERED = "#E67E00"
OTHER = "#934F00"
"""Any strategy that this module does not know."""

SEMAPHORE = ("#0CAAFE", "#8B52B0", "#1F735A", "#D9A17F", "#5560FE")
"""By the power of two below the limit, round and round; `@agent` is two further on."""

_LIMITS = (r"1", r"[23]", r"[4-7]", r"(?:[89]|1[0-5])", r"(?:1[6-9]|2\d|3[01])", r"(?:3[2-9]|[45]\d|6[0-3])")
_LARGER = r"(?:6[4-9]|[7-9]\d|\d{3,})"


def _semaphores() -> list[tuple[str, str]]:
    colours = []
    for index, limit in enumerate((*_LIMITS, _LARGER)):
        colours.append((f"semaphore:{limit}", SEMAPHORE[index % 5]))
        colours.append((f"semaphore:{limit}@agent", SEMAPHORE[(index + 2) % 5]))
    return colours


STRATEGIES: tuple[tuple[str, str], ...] = (
    ("sequential", SEQUENTIAL),
    ("gathered", GATHERED),
    *_semaphores(),
    (r"semaphore:(?:\d+@tool|[^ +]+=[^ +]+)", SEMAPHORE[3]),
    (r"rate:[^ +]+", SEMAPHORE[0]),
    (r"eager(?::all)?", SEMAPHORE[4]),
    (r"eager(?::all)?\+[^ ]+", SEMAPHORE[1]),
)
"""Regular expression for the whole spec, and its colour. The expressions mean the same in JavaScript."""

PHASES = {
    "model": "#5560FE",
    "model_queue": "#A56A12",
    "backoff": "#CE0E0A",
    "parse": "#D9A17F",
    "tools": "#1F735A",
    "queue": "#E67E00",
    "collect": "#8B52B0",
    "unaccounted": "#8A8F98",
}

STATUSES = {"ok": "#1F735A", "error": "#CE0E0A", "timeout": "#E67E00", "cancelled": "#8A8F98"}


def strategy_colour(spec: str) -> str:
    """The colour of a strategy, by its spec."""
    for pattern, colour in STRATEGIES:
        if re.fullmatch(pattern, spec):
            return colour
    return OTHER
