"""One colour per strategy, phase and outcome, shared by the dashboards and the report.

The strategy colours come from a search: under normal sight and the three kinds of colour
blindness any two differ by at least 0.09 in OKLab, and each stands out from white and from a
dark panel. Red is kept for failures. A strategy's colour depends on its spec alone, so that it
stays the same whatever the strategy is compared with.
"""

from __future__ import annotations

import re

SEQUENTIAL = "#8A8F98"
GATHERED = "#E67E00"
OTHER = "#934F00"
"""For every strategy that this module does not know."""

SEMAPHORE = ("#0CAAFE", "#8B52B0", "#1F735A", "#D9A17F", "#5560FE")
"""By the largest power of two within the limit, cyclically; with `@agent` two places further on."""

# 1, 2 to 3, 4 to 7 and so on up to 63, then everything larger.
_LIMITS = (
    *(r"1", r"[23]", r"[4-7]", r"(?:[89]|1[0-5])", r"(?:1[6-9]|2\d|3[01])"),
    *(r"(?:3[2-9]|[45]\d|6[0-3])", r"(?:6[4-9]|[7-9]\d|\d{3,})"),
)

_WORDS = ("true", "false", "null")
_NO_WHOLE_NUMBER = rf"(?!(?:\d+|{'|'.join(_WORDS)})$)"
_ENDS = [
    "".join(one for one in "0123456789abcdefghijklmnopqrstuvwxyz" if ord(one) % 5 == place)
    for place in range(5)
]


def _setting(place: int) -> str:
    """Settings of an agent of the user's own, for one of five colours.

    The last one counts, whole numbers by their size as limits of semaphores do, other values by their last
    character; and so does the last character of what is in front of it, a strategy or another setting.
    """
    ways = []
    for moved in range(5):
        before = rf"(?:.*[{_ENDS[moved]}] )" + ("" if moved else "?")
        value = (place - moved) % 5
        values = [limit for index, limit in enumerate(_LIMITS) if index % 5 == value]
        values += [*_WORDS[value : value + 1], rf"{_NO_WHOLE_NUMBER}[^ ]*[{_ENDS[value]}]"]
        ways.append(rf"{before}\w+=(?:{'|'.join(values)})")
    return "|".join(ways)


STRATEGIES: tuple[tuple[str, str], ...] = (
    ("sequential", SEQUENTIAL),
    ("gathered", GATHERED),
    *(
        (f"semaphore:{limit}{scope}", SEMAPHORE[(index + further) % 5])
        for index, limit in enumerate(_LIMITS)
        for scope, further in (("", 0), ("@agent", 2))
    ),
    (r"semaphore:(?:\d+@tool|[^ +]+=[^ +]+)", SEMAPHORE[3]),
    (r"rate:[^ +]+", SEMAPHORE[0]),
    (r"eager(?::all)?", SEMAPHORE[4]),
    (r"eager(?::all)?\+[^ ]+", SEMAPHORE[1]),
    *((_setting(place), colour) for place, colour in enumerate(SEMAPHORE)),
)
"""Regular expression for the whole spec, and its colour. The dashboards use them in JavaScript too."""

PHASES = {
    "model": "#5560FE",
    "server_tools": "#0CAAFE",
    "model_queue": "#A56A12",
    "backoff": "#CE0E0A",
    "parse": "#D9A17F",
    "tools": "#1F735A",
    "queue": "#E67E00",
    "collect": "#8B52B0",
    "unaccounted": "#8A8F98",
}

PARTS = {"session_wait": "#D58A00", "client_wait": "#A56A12", "parsing": "#8B52B0"}
"""Parts of a call of an MCP server's tool; what lies between them is `tools` among the phases."""

STATUSES = {"ok": "#1F735A", "error": "#CE0E0A", "timeout": "#E67E00", "cancelled": "#8A8F98"}


def strategy_colour(spec: str) -> str:
    """The colour of a strategy, by its spec."""
    for pattern, colour in STRATEGIES:
        if re.fullmatch(pattern, spec):
            return colour
    return OTHER
