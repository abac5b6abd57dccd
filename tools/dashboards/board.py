"""The two dashboards: `toolloop` shows loops, `test-runs` lists load tests and links into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from profiler import metrics
from profiler.metrics import ROUND_BUCKETS, Metric
from tools.dashboards import recorded_rows, service_rows, strategy_rows
from tools.dashboards.panels import DATASOURCE, RANGE, Panel, Scope, arrange, table, target, timeline
from tools.dashboards.strategy_rows import failed, per_wall_second

SLO_SECONDS = 25.6
"""The threshold to start with. It must be a bucket bound, else no bucket holds the share within it."""

Dashboard = dict[str, Any]

_DATASOURCE: dict[str, Any] = {
    "name": "datasource",
    "label": "Data source",
    "type": "datasource",
    "query": "prometheus",
    "regex": "",
    "refresh": 1,
    "hide": 0,
    "multi": False,
    "includeAll": False,
    "current": {},
}
"""The variable that every query's data source is; `profiler dashboards --datasource` sets `current`."""


def toolloop() -> Dashboard:
    """The dashboard with the ten rows."""
    panels = [
        *strategy_rows.verdict(),
        *strategy_rows.side_by_side(),
        *strategy_rows.fan_out(),
        *service_rows.tools(),
        *service_rows.servers(),
        *service_rows.model(),
        *service_rows.rate_limits(),
        *recorded_rows.recorded(),
        *service_rows.generator(),
        *service_rows.objective(),
    ]
    variables = [
        _labels("job", "Job", metrics.LOOP_DURATION),
        _labels("instance", "Instance", metrics.LOOP_DURATION, "job"),
        _labels("testid", "Test", metrics.LOOP_DURATION, "job", "instance"),
        _labels("strategy", "Strategy", metrics.LOOP_DURATION, "job", "instance", "testid"),
        _labels("tool", "Tool", metrics.TOOL_CALL_DURATION, "job", "instance", "testid"),
        _thresholds(),
    ]
    return _dashboard(
        "toolloop",
        "Tool-calling loops",
        "Where the time of agents that call tools in parallel goes: in a load test, strategy against "
        "strategy, and in production.",
        panels,
        span="now-30m",
        refresh="10s",
        variables=variables,
        annotations=[_strategy_changes()],
        links=[
            {
                "type": "link",
                "title": "Test runs",
                "url": "/d/test-runs",
                "icon": "dashboard",
                "keepTime": False,
                "includeVars": False,
                "targetBlank": False,
                "asDropdown": False,
                "tags": [],
                "tooltip": "",
            }
        ],
    )


def runs() -> Dashboard:
    """A table of load tests, each linked to `toolloop` with its `testid` and its time range."""
    scope = Scope(variables=False, window=RANGE)
    both = "testid, strategy"
    tests: dict[str, str] = {"testid": "!="}  # only loops of a load test have one
    started = scope.select(metrics.LOOP_DURATION, "_count", **tests)
    # Every 15 s: a test shorter than that cannot be seen in a table of days.
    seen = f"timestamp({started})[{RANGE}:15s]"
    ran = f"sum by (testid, strategy) (last_over_time({started}[{RANGE}]))"
    counted = scope.increase(metrics.LOOP_DURATION, "_count", by="testid", **tests)
    refused = scope.increase(metrics.RATE_LIMITED, by="testid", **tests)
    panels = [
        table(
            "Test runs",
            "Which load tests ran in this time range? Follow a test's id to its dashboard, limited to the "
            "test and to its time. The time range has to reach back to the test's start.",
            "short",
            ["testid"],
            {
                "started": ("dateTimeAsIso", f"1000 * min by (testid) (min_over_time({seen}))"),
                "ended": ("dateTimeAsIso", f"1000 * max by (testid) (max_over_time({seen}))"),
                "strategies": ("short", f"count by (testid) ({ran})"),
                "loops": ("short", counted),
                "failed": ("percentunit", failed(scope.increase, "testid", **tests)),
                "refused": ("short", f"{refused} or 0 * {counted}"),
                "loop p95": ("s", scope.quantile(0.95, metrics.LOOP_DURATION, by="testid", **tests)),
            },
            height=10,
            links=[
                {
                    "title": "Show this test",
                    "url": "/d/toolloop?var-testid=${__value.text}"
                    "&from=${__data.fields.started.numeric}&to=${__data.fields.ended.numeric}",
                    "targetBlank": False,
                }
            ],
        ),
        table(
            "Strategies of each test",
            "Which strategy won in which test? Where loops fail, fast is no win. To compare two tests, "
            "compare the same strategy: it is the control.",
            "s",
            ["testid", "strategy"],
            {
                "loops": ("short", scope.increase(metrics.LOOP_DURATION, "_count", by=both, **tests)),
                "failed": ("percentunit", failed(scope.increase, both, **tests)),
                "loop p50": ("s", scope.quantile(0.5, metrics.LOOP_DURATION, by=both, **tests)),
                "loop p95": ("s", scope.quantile(0.95, metrics.LOOP_DURATION, by=both, **tests)),
                "speed-up": ("none", per_wall_second(scope.increase, metrics.TOOL_PHASE_WORK, both, **tests)),
                "efficiency": (
                    "percentunit",
                    per_wall_second(scope.increase, metrics.TOOL_PHASE_CRITICAL_PATH, both, **tests),
                ),
            },
            height=10,
        ),
        timeline(
            "When they ran",
            "Did two tests overlap? Then they shared the machine, and neither figure is its own.",
            f"max by (testid, scenario, version) ({scope.select(metrics.RUN_INFO, **tests)})",
            "{{testid}}: {{scenario}}, version {{version}}",
        ),
    ]
    return _dashboard(
        "test-runs",
        "Test runs of tool-calling loops",
        "The load tests that Prometheus has seen, with links to each.",
        panels,
        span="now-7d",
        refresh="1m",
    )


def _dashboard(
    uid: str,
    title: str,
    description: str,
    panels: Sequence[Panel],
    *,
    span: str,
    refresh: str,
    variables: Sequence[dict[str, Any]] = (),
    annotations: Sequence[dict[str, Any]] = (),
    links: Sequence[dict[str, Any]] = (),
) -> Dashboard:
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["toolloop"],
        "schemaVersion": 42,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "time": {"from": span, "to": "now"},
        "timepicker": {"refresh_intervals": ["5s", "10s", "30s", "1m", "5m"]},
        "refresh": refresh,
        "templating": {"list": [_DATASOURCE, *variables]},
        "annotations": {"list": list(annotations)},
        "links": list(links),
        "panels": arrange(panels),
    }


def _labels(name: str, title: str, metric: Metric, *after: str) -> dict[str, Any]:
    """A variable with the values of a label, given the variables `after` which it comes.

    It is reloaded when the time range changes.
    """
    chosen = ",".join(f'{label}=~"${label}"' for label in after)
    query = f"label_values({metric.name}_count{{{chosen}}}, {name})"
    return {
        "name": name,
        "label": title,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "qryType": 1, "refId": f"variable-{name}"},
        "regex": "",
        "refresh": 2,
        "sort": 3,
        "hide": 0,
        "multi": True,
        "includeAll": True,
        "allValue": ".*" if name == "testid" else ".+",  # production has no testid
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _thresholds() -> dict[str, Any]:
    bounds = [f"{bound:.10g}" for bound in ROUND_BUCKETS]
    start = f"{SLO_SECONDS:.10g}"
    return {
        "name": "slo",
        "label": "SLO (seconds)",
        "type": "custom",
        "query": ",".join(bounds),
        "hide": 0,
        "multi": False,
        "includeAll": False,
        "current": {"selected": True, "text": start, "value": start},
        "options": [{"text": b, "value": b, "selected": b == start} for b in bounds],
    }


def _strategy_changes() -> dict[str, Any]:
    """A region for as long as a strategy had the system to itself."""
    query = f"{Scope().gauge(metrics.RUN_INFO, by='strategy', how='max')} == 1"
    return {
        "name": "Strategies",
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "#8A8F98",
        "expr": query,
        "target": target(query) | {"refId": "Anno"},
        "step": "5s",
        "titleFormat": "{{strategy}}",
        "useValueForTime": False,
    }
