"""Grafana dashboards, Prometheus rules and configuration, built from the metric table.

`files` builds them, `write` puts them into a directory, `check` says where a directory differs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from profiler.dashboards import board, rules, stack
from profiler.errors import UsageError

PREFIX = "toolloop_"
"""What the names of all metrics begin with."""


def files(datasource: str | None = None, prefix: str = PREFIX) -> dict[str, str]:
    """Path below the directory → text.

    `datasource`: the uid of the Grafana data source to start with (a viewer can choose another).
    `prefix`: what metric names begin with in the Prometheus that is asked, when something on the
    way there renames them. Raises `UsageError` when a metric could not be called that.
    """
    if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", prefix):
        raise UsageError(f"--prefix {prefix}: a metric's name has letters, digits and _, and no digit first")
    if datasource is not None and not re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", datasource):
        raise UsageError(f"--datasource {datasource}: a uid has up to 40 letters, digits, - and _")
    built = {
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
    # Only names of metrics begin so.
    return {path: text.replace(PREFIX, prefix) for path, text in built.items()}


def write(out: Path | str, datasource: str | None = None, prefix: str = PREFIX) -> list[Path]:
    """Write all files below `out`, over what is there; returns their paths. Raises `UsageError`."""
    paths = []
    for name, text in files(datasource, prefix).items():
        path = Path(out) / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{path}: cannot write: {error.strerror}") from error
        paths.append(path)
    return paths


def check(
    directory: Path | str = "dashboards", datasource: str | None = None, prefix: str = PREFIX
) -> list[str]:
    """One line per file of the directory that differs from what the code builds; empty when none does."""
    differences = []
    for name, text in files(datasource, prefix).items():
        path = Path(directory) / name
        try:
            found = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            differences.append(f"{path}: cannot be read: {error}")
            continue
        if found != text:
            lines = zip([*found.splitlines(), ""], [*text.splitlines(), ""], strict=False)
            number = next((i for i, (a, b) in enumerate(lines, start=1) if a != b), 1)
            differences.append(f"{path}:{number}: differs from what `profiler dashboards` builds")
    return differences


def _json(dashboard: board.Dashboard) -> str:
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"
