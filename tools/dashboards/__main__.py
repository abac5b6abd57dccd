"""`python -m tools.dashboards`: builds the files of `profiler/dashboards/files/` and of `dashboards/`."""

from __future__ import annotations

from pathlib import Path

from profiler.dashboards import DIRECTORY, write
from tools.dashboards import build

ROOT = Path(__file__).parents[2]

if __name__ == "__main__":
    for name, text in build().items():
        (DIRECTORY / name).write_text(text, encoding="utf-8")
    for path in write(ROOT / "dashboards"):
        print(path.relative_to(ROOT))
