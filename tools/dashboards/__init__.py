"""Grafana dashboards, Prometheus rules and configuration, built from the metric table.

`python -m tools.dashboards` writes them into the package, from where `profiler dashboards` takes them,
and into the repository's `dashboards/`.
"""

from __future__ import annotations

import json

from tools.dashboards import board, rules, stack


def build(datasource: str | None = None) -> dict[str, str]:
    """Path below the directory → text, for the Grafana data source of this uid."""
    return {
        "toolloop.json": _json(board.toolloop(datasource)),
        "test-runs.json": _json(board.runs(datasource)),
        "rules.yml": rules.render(),
        "prometheus.yml": stack.prometheus(),
        "compose.yaml": stack.compose(),
        "provisioning/datasources/prometheus.yml": stack.datasources(datasource),
        "provisioning/dashboards/toolloop.yml": stack.providers(),
        "targets/.gitkeep": "",
        "README.md": stack.readme(rules.runbook()),
    }


def _json(dashboard: board.Dashboard) -> str:
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"
