"""Grafana dashboards and Prometheus rules, built from the metric table.

`python -m tools.dashboards` writes them into `profiler/dashboards/files/`, beside the files that are edited
there by hand, and then all that `profiler dashboards` makes of these into the repository's `dashboards/`.
"""

from __future__ import annotations

import json

from profiler.dashboards import DIRECTORY
from tools.dashboards import board, rules

_RUNBOOK = "## Runbook\n\n"


def build() -> dict[str, str]:
    """Name in `profiler/dashboards/files/` → text; of the README, only the runbook is made here."""
    by_hand, _, _ = (DIRECTORY / "README.md").read_text(encoding="utf-8").partition(_RUNBOOK)
    return {
        "toolloop.json": _one_line(board.toolloop()),
        "test-runs.json": _one_line(board.runs()),
        "rules.yml": rules.render(),
        "README.md": by_hand + _RUNBOOK + rules.runbook(),
    }


def _one_line(dashboard: board.Dashboard) -> str:
    """Half the size of indented JSON, which `profiler dashboards` makes of it."""
    return json.dumps(dashboard, separators=(",", ":"), ensure_ascii=False) + "\n"
