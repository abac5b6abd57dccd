"""`profiler predict` on what `profiler compare` recorded, both as processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCENARIO = """
description = "a round of two calls, each of 50 ms"
prompt = "Question {number}: look twice."

[model]
first_token = 0.05
tokens_per_second = 0

[loop]
rounds = 1
fan_out = 2

[tools.look]
path = "/tools/look"
description = "Look."
duration = 0.05

[tools.look.parameters]
type = "object"
properties.at = { type = "integer", minimum = 1, maximum = 9, description = "What to look at." }
"""


def profiler(*arguments: str, codes: tuple[int, ...] = (0,)) -> str:
    """What the command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "profiler", *arguments], capture_output=True, text=True, timeout=100
    )
    assert done.returncode in codes, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a short ladder, without what says that the machine was busy."""
    path = tmp_path_factory.mktemp("predict")
    scenario = path / "small.toml"
    scenario.write_text(SCENARIO)
    profiler(
        *("compare", "--scenario", str(scenario), "--levels", "8,12", "--strategy", "gathered"),
        *("--duration", "3", "--blocks", "1", "--calibrate", "0", "--no-metrics", "--quiet"),
        *("--allow-saturated", "--out", str(path / "runs")),
    )
    (made,) = (path / "runs").iterdir()
    told = json.loads((made / "run.json").read_text())
    (made / "run.json").write_text(json.dumps({**told, "client": []}))
    return str(made)


def test_the_same_command_prints_the_same_bytes_from_any_number_of_processes(run: str) -> None:
    asked = ("predict", run, "--users", "10", "--strategy", "gathered,sequential")
    asked = (*asked, "--replicates", "4", "--duration", "3", "--json", "--quiet")
    first = profiler(*asked)
    data = json.loads(first)
    assert data["predicted"] is True
    assert [one["strategy"] for one in data["strategies"]] == ["gathered", "sequential"]
    gathered, sequential = (one["loop_seconds"]["p50"]["value"] for one in data["strategies"])
    assert 0.15 < gathered < sequential  # two requests of 50 ms, and two calls of 50 at once or in turn
    alone = (
        "from profiler.prediction import processes\n"
        "processes.cores = lambda: 1\n"
        f"from profiler.cli import main\nraise SystemExit(main({list(asked)!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, first)


def test_check_and_report(run: str) -> None:
    # What is left without a level may be too little on a slow machine: then it is refused, and said so.
    profiler("predict", run, "--check", "--replicates", "4", "--quiet", codes=(0, 1))
    kept = json.loads((Path(run) / "prediction.json").read_text())
    assert [cell["left_out"] for cell in kept["cells"]] == ["8 agents", "12 agents"]
    assert all(cell["figures"] or cell["refused"] for cell in kept["cells"])
    profiler("report", run)
    assert "Prediction, checked" in (Path(run) / "report.html").read_text()
