"""The oldest versions that `pyproject.toml` admits, as pip's constraints: what `make test-oldest` installs.

python tests/oldest.py
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

LOWER_BOUND = re.compile(r"([A-Za-z0-9-]+)(?:\[[^]]*\])?>=([0-9.]+)")


def oldest(pyproject: str) -> list[str]:
    """`name==version` of each dependency of the package itself and of its extras `otel` and `mcp`."""
    project = tomllib.loads(pyproject)["project"]
    extras = project["optional-dependencies"]
    found = map(LOWER_BOUND.match, project["dependencies"] + extras["otel"] + extras["mcp"])
    return [f"{bound[1]}=={bound[2]}" for bound in found if bound is not None]


if __name__ == "__main__":
    text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    sys.stdout.write("\n".join(oldest(text)) + "\n")
