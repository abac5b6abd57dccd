"""Grafana dashboards, Prometheus rules and configuration: what `profiler dashboards` writes.

They are kept in `files/`: `python -m tools.dashboards` builds both dashboards (each on one line), the rules
and the README's runbook from the metric table; the rest is edited there by hand. `files` reads them and
puts in a prefix and a data source, `write` writes them into a directory, `check` says where a directory
differs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from profiler.errors import UsageError

PREFIX = "toolloop_"
"""The beginning of every metric's name."""

DATASOURCE_UID = "toolloop-prometheus"
"""The uid of the data source that Grafana is provisioned with, unless another is asked for."""

DIRECTORY = Path(__file__).with_name("files")
NAMES = (
    "toolloop.json",
    "test-runs.json",
    "rules.yml",
    "prometheus.yml",
    "compose.yaml",
    "provisioning/datasources/prometheus.yml",
    "provisioning/dashboards/toolloop.yml",
    "targets/.gitkeep",
    "README.md",
)


def files(datasource: str | None = None, prefix: str = PREFIX) -> dict[str, str]:
    """The text of each file, by its path below the directory.

    `datasource`: the uid of the Grafana data source to start with (a viewer can choose another).
    `prefix`: the beginning of metric names in the queried Prometheus, if something on the way there
    renames them. Raises `UsageError` when one of the two is not well formed.
    """
    if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", prefix):
        raise UsageError(f"--prefix {prefix}: a metric's name has letters, digits and _, and no digit first")
    if datasource is not None and not re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", datasource):
        raise UsageError(f"--datasource {datasource}: a uid has up to 40 letters, digits, - and _")
    # Nothing but names of metrics contains the prefix.
    return {name: _text(name, datasource).replace(PREFIX, prefix) for name in NAMES}


def write(out: Path | str, datasource: str | None = None, prefix: str = PREFIX) -> list[Path]:
    """Write all files below `out`, replacing existing ones; returns their paths. Raises `UsageError`."""
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
    """A line for each file of the directory that differs from what `write` writes."""
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


def _text(name: str, datasource: str | None) -> str:
    text = (DIRECTORY / name).read_text(encoding="utf-8")
    if name.endswith(".json"):
        dashboard = json.loads(text)
        if datasource is not None:
            chosen = {"selected": True, "text": datasource, "value": datasource}
            dashboard["templating"]["list"][0]["current"] = chosen  # the first variable is the data source
        return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"
    return text.replace(DATASOURCE_UID, datasource or DATASOURCE_UID)
