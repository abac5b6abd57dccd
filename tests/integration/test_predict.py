"""`profiler predict` on what `profiler compare` recorded, both as processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCENARIO = """
about = "Rounds of two calls, of a few hundredths of a second each."
[loop]
rounds = {1 = 1}
fan_out = {2 = 1}
tools = {look = 1}
[tools.look]
description = "Look."
latency = {uniform = [0.02, 0.06]}
[model]
first_token = {uniform = [0.02, 0.04]}
"""


def profiler(*arguments: str, code: int = 0) -> str:
    """What the command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "profiler", *arguments], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a short ladder."""
    path = tmp_path_factory.mktemp("predict")
    scenario = path / "small.toml"
    scenario.write_text(SCENARIO)
    profiler(
        *("compare", "--scenario", str(scenario), "--levels", "2,4", "--strategy", "gathered,sequential"),
        *("--duration", "2", "--blocks", "1", "--calibrate", "0", "--no-metrics", "--quiet"),
        *("--allow-saturated", "--out", str(path / "runs")),
    )
    (made,) = (path / "runs").iterdir()
    return str(made)


def test_the_same_command_prints_the_same_bytes_from_any_number_of_processes(run: str) -> None:
    asked = ("predict", run, "--users", "3", "--replicates", "5", "--duration", "4", "--json", "--quiet")
    first = profiler(*asked)
    data = json.loads(first)
    assert data["predicted"] is True
    assert [one["strategy"] for one in data["strategies"]] == ["gathered", "sequential"]
    gathered, sequential = (one["loop_seconds"]["p50"]["value"] for one in data["strategies"])
    assert 0.1 < gathered < sequential  # two requests of 20 ms or more, and two calls at once or in turn
    alone = (
        "from profiler.prediction import processes\n"
        "processes.cores = lambda: 1\n"
        f"from profiler.cli import main\nraise SystemExit(main({list(asked)!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, first)


def test_check_and_report(run: str) -> None:
    said = profiler("predict", run, "--check", "--replicates", "5", "--quiet")
    assert "without sequential, predicted from the others:" in said
    kept = json.loads((Path(run) / "prediction.json").read_text())
    assert {cell["left_out"] for cell in kept["cells"]} == {"2 agents", "4 agents", "gathered", "sequential"}
    profiler("report", run)
    assert 'id="table-checked"' in (Path(run) / "report.html").read_text()
