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
Override = dict[str, Any]

Queries = Mapping[str, str]
"""Legend → PromQL."""

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
"""The width of the page, in units of Grafana's grid."""

_QUANTILE_DASHES = {"p50": [2, 4], "p99": [10, 6]}
"""Lengths of line and gap in pixels; p95 is a full line."""

_STRATEGIES = {
    f"(?:{'|'.join(pattern for pattern, c in palette.STRATEGIES if c == colour)})": colour
    for colour in dict.fromkeys(c for _, c in palette.STRATEGIES)
}
"""Regular expression → colour; one expression per colour."""

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
    queries: Queries,
    *,
    width: int = 8,
    height: int = 8,
    stack: bool = False,
    limit: float | None = None,
    lowest: float = 0,
    highest: float | None = None,
    colours: Mapping[str, str] | None = None,
) -> Panel:
    """Lines; stack only what adds up. Above `limit` the background turns red.

    `colours`: of the values in the legend; strategies in the legend have their own.
    """
    if colours is None:
        colours = _STRATEGIES if any("{{strategy}}" in legend for legend in queries) else {}
    defaults = {
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
        "thresholds": _thresholds((None, "transparent"), *([] if limit is None else [(limit, RED)])),
        "min": lowest,
        **({} if highest is None else {"max": highest}),
    }
    options = {
        "legend": {
            "displayMode": "table",
            "placement": "bottom",
            "showLegend": True,
            "calcs": ["mean", "lastNotNull"],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    targets = [target(expr, legend) for legend, expr in queries.items()]
    return _panel(
        "timeseries", title, description, targets, (width, height), defaults, _overrides(colours), options
    )


def stat(
    title: str,
    description: str,
    unit: str,
    expr: str,
    *,
    legend: str = "{{strategy}}",
    width: int = 4,
    height: int = 5,
    steps: Sequence[tuple[float | None, str]] = ((None, NEUTRAL),),
    decimals: int | None = None,
    empty: str = "–",
) -> Panel:
    """One figure per series. `steps`: colour from each value upwards."""
    defaults = {
        "unit": unit,
        "color": {"mode": "thresholds"},
        "noValue": empty,
        "thresholds": _thresholds(*steps),
        **({} if decimals is None else {"decimals": decimals}),
    }
    options = {
        "colorMode": "value" if len(steps) > 1 else "none",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "horizontal",
        "textMode": "value_and_name",
        "wideLayout": True,
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    targets = [target(expr, legend, instant=True)]
    return _panel("stat", title, description, targets, (width, height), defaults, [], options)


def heatmap(title: str, description: str, unit: str, expr: str, *, exemplars: bool = True) -> Panel:
    """Buckets of a histogram over time, with exemplars where the histogram has them."""
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Cividis", "steps": 64, "exponent": 0.5, "fill": "dark-orange"},
        "exemplars": {"color": palette.GATHERED},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": True},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
    }
    targets = [target(expr, "{{le}}", format="heatmap", exemplar=exemplars)]
    return _panel("heatmap", title, description, targets, (12, 9), {"unit": unit}, [], options)


def bars(
    title: str,
    description: str,
    unit: str,
    expr: str,
    *,
    across: str,
    within: str,
    colours: Mapping[str, str],
) -> Panel:
    """Stacked bars: one per value of the label `across`, cut by the label `within`."""
    defaults = {
        "unit": unit,
        "min": 0,
        "color": {"mode": "palette-classic-by-name"},
        "custom": {"fillOpacity": 85, "lineWidth": 0},
    }
    options = {
        "orientation": "horizontal",
        "stacking": "normal",
        "showValue": "never",
        "xField": f"{across}\\{within}",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "none"},
    }
    matrix = {"columnField": within, "rowField": across, "valueField": "Value", "emptyValue": "null"}
    targets = [target(expr, instant=True, format="table")]
    return _panel(
        "barchart", title, description, targets, (12, 9), defaults, _overrides(colours), options
    ) | {"transformations": [{"id": "groupingToMatrix", "options": matrix}]}


def table(
    title: str,
    description: str,
    unit: str,
    key: Sequence[str],
    columns: Mapping[str, tuple[str, str]],
    *,
    height: int = 8,
    links: Sequence[Mapping[str, Any]] = (),
) -> Panel:
    """One row per value of the labels `key`; `columns` maps a heading to its unit and query.

    `links`: from the values of the first label. A figure whose unit is not `unit` overrides it.
    """
    targets = [target(expr, instant=True, format="table") for _, expr in columns.values()]
    overrides = [
        _override("byName", heading, unit=unit_) for heading, (unit_, _) in columns.items() if unit_ != unit
    ]
    if links:
        overrides.append(_override("byName", key[0], links=links))
    if "strategy" in key:
        mappings = [
            {
                "type": "regex",
                "options": {"pattern": f"/^{pattern}$/", "result": {"color": colour, "index": 0}},
            }
            for pattern, colour in _STRATEGIES.items()
        ]
        text = {"custom.cellOptions": {"type": "color-text"}}
        overrides.append(_override("byName", "strategy", mappings=mappings, **text))
    headings = {f"Value #{_ref(i)}": heading for i, heading in enumerate(columns)}
    order = {name: i for i, name in enumerate([*key, *headings])}
    organize = {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": headings}
    defaults = {"unit": unit, "noValue": "–", "custom": {"filterable": False, "align": "auto"}}
    options = {"showHeader": True, "cellHeight": "sm"}
    return _panel("table", title, description, targets, (WIDTH, height), defaults, overrides, options) | {
        "transformations": [{"id": "merge", "options": {}}, {"id": "organize", "options": organize}]
    }


def timeline(title: str, description: str, expr: str, legend: str) -> Panel:
    """When each series was 1, as a band across the page."""
    defaults = {
        "unit": "none",
        "color": {"mode": "palette-classic-by-name"},
        "custom": {"fillOpacity": 80, "lineWidth": 0, "spanNulls": False},
        "mappings": [{"type": "value", "options": {"1": {"text": "on"}, "0": {"text": "off"}}}],
    }
    options = {
        "mergeValues": True,
        "showValue": "never",
        "rowHeight": 0.8,
        "alignValue": "left",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    targets = [target(expr, legend)]
    overrides = _overrides(_STRATEGIES)
    return _panel("state-timeline", title, description, targets, (WIDTH, 6), defaults, overrides, options)


def arrange(panels: Sequence[Panel]) -> list[Panel]:
    """Number the panels and place them, left to right; a row's heading is as wide as the page."""
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
    kind: str,
    title: str,
    description: str,
    targets: Sequence[Target],
    size: tuple[int, int],
    defaults: Mapping[str, Any],
    overrides: Sequence[Override],
    options: Mapping[str, Any],
) -> Panel:
    """The parts that panels of every kind have. `size`: width and height in units of Grafana's grid."""
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": _size(*size),
        "targets": [t | {"refId": _ref(i)} for i, t in enumerate(targets)],
        "fieldConfig": {"defaults": defaults, "overrides": overrides},
        "options": options,
    }


def _size(width: int, height: int) -> dict[str, int]:
    return {"w": width, "h": height, "x": 0, "y": 0}


def _ref(index: int) -> str:
    return chr(ord("A") + index)


def _thresholds(*steps: tuple[float | None, str]) -> dict[str, Any]:
    return {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in steps]}


def _override(matcher: str, options: str, **properties: Any) -> Override:
    found = [{"id": name, "value": value} for name, value in properties.items()]
    return {"matcher": {"id": matcher, "options": options}, "properties": found}


def _overrides(colours: Mapping[str, str]) -> list[Override]:
    """A fixed colour for what begins with each pattern, and a dash for each quantile."""
    fixed = [
        _override("byRegexp", f"/^{pattern}(?: |$)/", color={"mode": "fixed", "fixedColor": colour})
        for pattern, colour in colours.items()
    ]
    dashes = [
        _override("byRegexp", f"/ {quantile}$/", **{"custom.lineStyle": {"fill": "dash", "dash": dash}})
        for quantile, dash in _QUANTILE_DASHES.items()
    ]
    return fixed + dashes
