"""The oldest versions are said once, in `pyproject.toml`; CI installs those, and the page names them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from tests.oldest import oldest

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def test_everything_has_an_oldest_version() -> None:
    project = tomllib.loads(PYPROJECT)["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["otel"] + extras["mcp"]
    names = [re.split(r"[\[<>=;]", each)[0] for each in wanted]
    assert [line.split("==")[0] for line in oldest(PYPROJECT)] == names
    assert "openai==3.0" in oldest(PYPROJECT)


def test_page_names_the_same() -> None:
    bounds = dict(line.split("==") for line in oldest(PYPROJECT))
    page = (ROOT / "docs" / "compatibility.md").read_text()
    rows = dict(re.findall(r"^\| ([a-z-]+) \| ([\d.]+) \| [\d.]+ \|", page, re.MULTILINE))
    assert rows.keys() == bounds.keys() & rows.keys() >= {"openai", "anthropic", "locust", "uvloop"}
    for name, version in rows.items():
        padded = [*map(int, version.split(".")), 0, 0][:3]
        assert padded == [*map(int, bounds[name].split(".")), 0, 0][:3], name
