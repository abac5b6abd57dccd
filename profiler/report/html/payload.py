"""What the page's scripts draw from: the summary's own figures and the series, as plain data.

Strategies and tools are lists, never keys, and every text from outside is cleaned and cut. The
summary's figures go in as they are in `summary.json`; nothing is computed from them in the page.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from profiler import palette
from profiler.report.html import curves
from profiler.report.html.material import Material
from profiler.report.html.waterfalls import waterfalls
from profiler.report.text import clean
from profiler.statistics.figures import StrategySummary

NAME = 40
"""Characters of a strategy's or tool's name in the page."""

MOST_STRATEGIES = 16
MOST_TOOL_ROWS = 120
"""Rows of the tools' table: the tools with the most calls. The page says how many more there are."""

DIGITS = 5


def payload(material: Material) -> dict[str, Any]:
    """All data of the page."""
    strategies = material.summary.strategies[:MOST_STRATEGIES]
    names = [one.strategy for one in strategies]
    place = {name: index for index, name in enumerate(names)}
    falls = waterfalls(material)
    for case in falls["cases"]:
        case["missing"] = [clean(name, NAME) for name in case["missing"]]
        case["strategy"] = place.get(case["strategy"], -1)
    for loop in falls["loops"].values():
        loop["strategy"] = place.get(loop["strategy"], -1)
    course = curves.course(material)
    for trial in course["trials"]:
        trial["strategy"] = place.get(trial["strategy"], -1)
    return {
        "strategies": [
            {
                "name": clean(one.strategy, NAME),
                "colour": palette.strategy_colour(one.strategy),
                "figures": figures(one),
            }
            for one in strategies
        ],
        "phases": palette.PHASES | {"arrival_wait": palette.STATUSES["cancelled"], "failed": "#CE0E0A"},
        "distributions": [
            {
                "name": clean(name, NAME),
                "curves": [
                    [_short(value) for value in found[strategy]] if strategy in found else None
                    for strategy in names
                ],
            }
            for name, found in curves.distributions(material, len(names)).items()
        ],
        "shares": list(curves.SHARES),
        "course": course,
        "ladder": [
            {**line, "strategy": place[line["strategy"]]}
            for line in curves.ladder(material.summary)
            if line["strategy"] in place
        ],
        "waterfalls": falls,
        "counterfactuals": [
            {
                "strategy": place[one.strategy],
                "change": clean(one.change.words, NAME + 30),
                "p50": asdict(one.p50),
                "p95": asdict(one.p95),
            }
            for one in material.counterfactuals
            if one.strategy in place and one.users == material.summary.strategies[0].users
        ],
    }


def figures(strategy: StrategySummary) -> dict[str, Any]:
    """The summary's figures of a strategy, without its tools, which have a table of their own."""
    return asdict(replace(strategy, tools={}, error_types={}))


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
