"""Grafana panels and the queries in them, as plain data (dashboard schema 42).

A query is made from the metric table: it can only name a metric that exists, and labels that it has.
Ratios and quantiles of nothing are absent, not NaN: `a / (b > 0)` and `quantile >= 0` leave a gap in
the graph where there was no traffic. Every panel needs a title, a description and a unit, so these
are what the functions ask for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from profiler import palette
from profiler.metrics import Metric

Panel = dict[str, Any]
Target = dict[str, Any]

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24

_QUANTILE_LINES = {"p50": [2, 4], "p99": [10, 6]}

_STRATEGIES = [
    (f"(?:{'|'.join(pattern for pattern, c in palette.STRATEGIES if c == colour)})", colour)
    for colour in dict.fromkeys(c for _, c in palette.STRATEGIES)
]
"""One expression per colour."""

GREEN, AMBER, RED, NEUTRAL = "#1F735A", "#E67E00", "#CE0E0A", "text"

INTERVAL = "$__rate_interval"
RANGE = "$__range"

_VARIABLES = ("strategy", "tool")


@dataclass(frozen=True, slots=True)
class Scope:
    """Which series a query looks at, and over which window.

    On a dashboard the matchers are its variables; in a rule there are none.
    """

    variables: bool = True
    window: str = INTERVAL

    def over(self, window: str) -> Scope:
        return Scope(self.variables, window)

    def select(self, metric: Metric, suffix: str = "", **matchers: str) -> str:
        """A selector. A matcher's value is `=value`, `!=value`, `=~value` or `!~value`.

        Raises ValueError for a label that the metric does not have.
        """
        labels = {*metric.labels, *(["le"] if suffix == "_bucket" else [])}
        unknown = matchers.keys() - labels - {"testid", "job", "instance"}
        if unknown:
            raise ValueError(f"{metric.name} has no label {', '.join(sorted(unknown))}")
        parts = {}
        if self.variables:
            parts = {name: f"=~${name}" for name in ("job", "instance", "testid")}
            parts |= {name: f"=~${name}" for name in _VARIABLES if name in metric.labels}
        parts |= matchers
        inside = ",".join(f"{label}{_quoted(value)}" for label, value in parts.items())
        return f"{metric.name}{suffix}" + (f"{{{inside}}}" if inside else "")

    def rate(self, metric: Metric, suffix: str = "", *, by: str = "", **matchers: str) -> str:
        """Per second, summed by labels."""
        return summed(f"rate({self.select(metric, suffix, **matchers)}[{self.window}])", by)

    def increase(self, metric: Metric, suffix: str = "", *, by: str = "", **matchers: str) -> str:
        """How much it grew over the window, summed by labels."""
        return summed(f"increase({self.select(metric, suffix, **matchers)}[{self.window}])", by)

    def quantile(self, q: float, metric: Metric, *, by: str = "", **matchers: str) -> str:
        """Quantile of a histogram; absent where nothing was observed."""
        buckets = self.rate(metric, "_bucket", by=f"{by}, le" if by else "le", **matchers)
        return f"histogram_quantile({q:g}, {buckets}) >= 0"

    def mean(self, metric: Metric, *, by: str = "", **matchers: str) -> str:
        """Mean observation of a histogram."""
        return ratio(
            self.rate(metric, "_sum", by=by, **matchers), self.rate(metric, "_count", by=by, **matchers)
        )

    def gauge(self, metric: Metric, *, by: str = "", how: str = "sum", **matchers: str) -> str:
        return summed(self.select(metric, **matchers), by, how)


def ratio(a: str, b: str, join: str = "") -> str:
    """a / b, absent where b is zero. `join` is a vector-matching clause."""
    return f"{a} / {join + ' ' if join else ''}({b} > 0)"


def summed(expression: str, by: str = "", how: str = "sum") -> str:
    return f"{how} by ({by}) ({expression})" if by else f"{how}({expression})"


def _quoted(matcher: str) -> str:
    for operator in ("=~", "!~", "!=", "="):
        if matcher.startswith(operator):
            return f'{operator}"{matcher.removeprefix(operator)}"'
    raise ValueError(f"not a matcher: {matcher}")


def target(
    expr: str,
    legend: str = "__auto",
    *,
    instant: bool = False,
    format: Literal["time_series", "table", "heatmap"] = "time_series",
    exemplar: bool = False,
) -> Target:
    """One query. `instant`: the value at the end of the range, for queries over `$__range`."""
    return {
        "datasource": DATASOURCE,
        "editorMode": "code",
        "exemplar": exemplar,
        "expr": expr,
        "format": format,
        "instant": instant,
        "range": not instant,
        "legendFormat": legend,
    }


def row(title: str) -> Panel:
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": _size(WIDTH, 1)}


def timeseries(
    title: str,
    description: str,
    unit: str,
    targets: Sequence[Target],
    *,
    width: int = 8,
    height: int = 8,
    stack: bool = False,
    limit: float | None = None,
    lowest: float | None = 0,
    highest: float | None = None,
    colours: Mapping[str, str] | None = None,
) -> Panel:
    """Lines; stacked only what adds up. Above `limit` the background turns red."""
    defaults: dict[str, Any] = {
        "unit": unit,
        "color": {"mode": "palette-classic-by-name"},
        "custom": {
            "drawStyle": "line",
            "lineInterpolation": "linear",
            "lineWidth": 1,
            "fillOpacity": 60 if stack else 0,
            "showPoints": "auto",
            "pointSize": 4,
            "spanNulls": False,
            "stacking": {"mode": "normal" if stack else "none", "group": "A"},
            "thresholdsStyle": {"mode": "off" if limit is None else "line+area"},
        },
        "thresholds": _thresholds(limit),
    }
    _bounds(defaults, lowest, highest)
    return _panel("timeseries", title, description, targets, width, height) | {
        "fieldConfig": {"defaults": defaults, "overrides": _overrides(colours)},
        "options": {
            "legend": {
                "displayMode": "table",
                "placement": "bottom",
                "showLegend": True,
                "calcs": ["mean", "lastNotNull"],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def stat(
    title: str,
    description: str,
    unit: str,
    targets: Sequence[Target],
    *,
    width: int = 4,
    height: int = 5,
    steps: Sequence[tuple[float | None, str]] = ((None, NEUTRAL),),
    decimals: int | None = None,
    empty: str = "–",
) -> Panel:
    """One figure per series. `steps`: colour from each value upwards."""
    defaults: dict[str, Any] = {
        "unit": unit,
        "color": {"mode": "thresholds"},
        "noValue": empty,
        "thresholds": {"mode": "absolute", "steps": [{"value": v, "color": c} for v, c in steps]},
    }
    if decimals is not None:
        defaults["decimals"] = decimals
    return _panel("stat", title, description, targets, width, height) | {
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "colorMode": "value" if len(steps) > 1 else "none",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "horizontal",
            "textMode": "value_and_name",
            "wideLayout": True,
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        },
    }


def heatmap(
    title: str,
    description: str,
    unit: str,
    expr: str,
    *,
    exemplars: bool = True,
    width: int = 12,
    height: int = 9,
) -> Panel:
    """Buckets of a histogram over time, with exemplars where the histogram has them."""
    return _panel(
        "heatmap",
        title,
        description,
        [target(expr, "{{le}}", format="heatmap", exemplar=exemplars)],
        width,
        height,
    ) | {
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "options": {
            "calculate": False,
            "cellGap": 1,
            "color": {
                "mode": "scheme",
                "scheme": "Cividis",
                "steps": 64,
                "exponent": 0.5,
                "fill": "dark-orange",
            },
            "exemplars": {"color": palette.GATHERED},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": True},
            "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
        },
    }


def bars(
    title: str,
    description: str,
    unit: str,
    expr: str,
    *,
    across: str,
    within: str,
    colours: Mapping[str, str],
    width: int = 12,
    height: int = 9,
) -> Panel:
    """Stacked bars: one per value of the label `across`, cut by the label `within`."""
    return _panel(
        "barchart", title, description, [target(expr, instant=True, format="table")], width, height
    ) | {
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "min": 0,
                "color": {"mode": "palette-classic-by-name"},
                "custom": {"fillOpacity": 85, "lineWidth": 0},
            },
            "overrides": _overrides(colours),
        },
        "options": {
            "orientation": "horizontal",
            "stacking": "normal",
            "showValue": "never",
            "xField": f"{across}\\{within}",
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "none"},
        },
        "transformations": [
            {
                "id": "groupingToMatrix",
                "options": {
                    "columnField": within,
                    "rowField": across,
                    "valueField": "Value",
                    "emptyValue": "null",
                },
            }
        ],
    }


def table(
    title: str,
    description: str,
    unit: str,
    key: Sequence[str],
    columns: Mapping[str, tuple[str, str]],
    *,
    width: int = WIDTH,
    height: int = 8,
    links: Sequence[Mapping[str, Any]] = (),
) -> Panel:
    """One row per value of the labels `key`; `columns` maps a heading to its unit and query."""
    targets = [target(expr, instant=True, format="table") for _, expr in columns.values()]
    headings = {f"Value #{_ref(i)}": heading for i, heading in enumerate(columns)}
    if len(columns) == 1:
        headings["Value"] = next(iter(columns))
    overrides: list[dict[str, Any]] = [
        {"matcher": {"id": "byName", "options": heading}, "properties": [{"id": "unit", "value": unit_}]}
        for heading, (unit_, _) in columns.items()
        if unit_ != unit
    ]
    properties: list[dict[str, Any]]
    if links:
        properties = [{"id": "links", "value": [dict(link) for link in links]}]
        overrides.append({"matcher": {"id": "byName", "options": key[0]}, "properties": properties})
    if "strategy" in key:
        mappings = [
            {
                "type": "regex",
                "options": {"pattern": f"/^{pattern}$/", "result": {"color": colour, "index": 0}},
            }
            for pattern, colour in _STRATEGIES
        ]
        properties = [
            {"id": "mappings", "value": mappings},
            {"id": "custom.cellOptions", "value": {"type": "color-text"}},
        ]
        overrides.append({"matcher": {"id": "byName", "options": "strategy"}, "properties": properties})
    order = {name: i for i, name in enumerate([*key, *headings])}
    return _panel("table", title, description, targets, width, height) | {
        "fieldConfig": {
            "defaults": {"unit": unit, "noValue": "–", "custom": {"filterable": False, "align": "auto"}},
            "overrides": overrides,
        },
        "options": {"showHeader": True, "cellHeight": "sm"},
        "transformations": [
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": headings},
            },
        ],
    }


def timeline(
    title: str, description: str, expr: str, legend: str, *, width: int = 12, height: int = 6
) -> Panel:
    """Which series were 1, when."""
    mappings = [{"type": "value", "options": {"1": {"text": "on"}, "0": {"text": "off"}}}]
    return _panel("state-timeline", title, description, [target(expr, legend)], width, height) | {
        "fieldConfig": {
            "defaults": {
                "unit": "none",
                "color": {"mode": "palette-classic-by-name"},
                "custom": {"fillOpacity": 80, "lineWidth": 0, "spanNulls": False},
                "mappings": mappings,
            },
            "overrides": _overrides(None),
        },
        "options": {
            "mergeValues": True,
            "showValue": "never",
            "rowHeight": 0.8,
            "alignValue": "left",
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
            "tooltip": {"mode": "single", "sort": "none"},
        },
    }


def arrange(panels: Sequence[Panel]) -> list[Panel]:
    """Give the panels ids, places (left to right, a row's heading on a line of its own) and query names."""
    placed = []
    x = y = line = 0
    for number, panel in enumerate(panels, start=1):
        size = panel["gridPos"]
        if x + size["w"] > WIDTH:
            x, y, line = 0, y + line, 0
        placed.append(panel | {"id": number, "gridPos": size | {"x": x, "y": y}})
        x, line = x + size["w"], max(line, size["h"])
    return placed


def _panel(
    kind: str, title: str, description: str, targets: Sequence[Target], width: int, height: int
) -> Panel:
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": _size(width, height),
        "targets": [t | {"refId": _ref(i)} for i, t in enumerate(targets)],
    }


def _size(width: int, height: int) -> dict[str, int]:
    return {"w": width, "h": height, "x": 0, "y": 0}


def _ref(index: int) -> str:
    return chr(ord("A") + index)


def _bounds(defaults: dict[str, Any], lowest: float | None, highest: float | None) -> None:
    if lowest is not None:
        defaults["min"] = lowest
    if highest is not None:
        defaults["max"] = highest


def _thresholds(limit: float | None) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"value": None, "color": "transparent"}]
    if limit is not None:
        steps.append({"value": limit, "color": RED})
    return {"mode": "absolute", "steps": steps}


def _overrides(colours: Mapping[str, str] | None) -> list[dict[str, Any]]:
    """Fixed colours: of the values given, or else of the strategies; and a dash for each quantile."""
    patterns = _STRATEGIES if colours is None else list(colours.items())
    overrides = [
        {
            "matcher": {"id": "byRegexp", "options": f"/^{pattern}(?: |$)/"},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
        for pattern, colour in patterns
    ]
    overrides += [
        {
            "matcher": {"id": "byRegexp", "options": f"/ {quantile}$/"},
            "properties": [{"id": "custom.lineStyle", "value": {"fill": "dash", "dash": dash}}],
        }
        for quantile, dash in _QUANTILE_LINES.items()
    ]
    return overrides
