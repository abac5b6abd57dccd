"""`python -m tools.dashboards`: builds the files of `profiler/dashboards/files/` and of `dashboards/`."""

from __future__ import annotations

import json
from pathlib import Path

from profiler.dashboards import DIRECTORY, write
from tools.dashboards import build

ROOT = Path(__file__).parents[2]


def main() -> None:
    for name, text in build().items():
        path = DIRECTORY / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_one_line(text) if name.endswith(".json") else text, encoding="utf-8")
    for path in write(ROOT / "dashboards"):
        print(path.relative_to(ROOT))


def _one_line(text: str) -> str:
    """The same JSON in half the size."""
    return json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
