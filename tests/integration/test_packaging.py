"""What is shipped: a wheel with all that it needs at run time, a source distribution with the tests too."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with both, the wheel made from the source distribution. Without an index."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_wheel_holds_everything_that_is_needed_at_run_time(built: Path) -> None:
    (path,) = built.glob("toolcall_profiler-*-py3-none-any.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (wheel.read(name).decode() for name in names if name.endswith("/METADATA"))
        (entry_points,) = (wheel.read(name).decode() for name in names if name.endswith("/entry_points.txt"))
    source = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "profiler").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == source
    assert {
        "profiler/py.typed",
        "profiler/scenarios/cities.toml",
        "profiler/templates/project/agents.py.txt",
        "profiler/report/html/assets/report.css",
        "profiler/report/html/assets/vendor/d3.min.js.LICENSE",
        "profiler/load/locustfile.py",
        "profiler/dashboards/files/toolloop.json",
        "profiler/dashboards/files/targets/.gitkeep",
    } <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert "profiler = profiler.cli:main" in entry_points
    extras = {line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Provides-Extra: ")}
    assert extras == {"otel", "mcp", "mcp1", "grafana", "frameworks", "dev"}


def test_the_source_distribution_holds_what_the_tests_need(built: Path) -> None:
    (path,) = built.glob("toolcall_profiler-*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "Makefile",
        "docs/compatibility.md",
        "locustfiles/compare.py",
        "dashboards/toolloop.json",
        "tools/dashboards/board.py",
        "tools/vendor.py",
        "tests/unit/test_loop_loop.py",
        "tests/integration/test_truth.py",
        "tests/typing/api.py",
        "benchmarks/load.py",
    } <= names
    assert not [name for name in names if name.startswith((".venv", "runs/", ".git/"))]
