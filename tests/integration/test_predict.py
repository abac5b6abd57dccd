"""`profiler predict` on what `profiler compare` recorded, both as processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.prediction_data import directory, recorded

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


def test_the_same_command_prints_the_same_bytes_from_any_number_of_processes(tmp_path: Path) -> None:
    path = str(directory(tmp_path, *recorded((10, 12))).path)
    asked = ["predict", path, "--users", "11", "--strategy", "gathered,sequential"]
    asked += ["--replicates", "4", "--duration", "3", "--json", "--quiet"]
    first = profiler(*asked)
    data = json.loads(first)
    gathered, sequential = (one["loop_seconds"]["p50"]["value"] for one in data["strategies"])
    assert gathered == pytest.approx(0.1045, rel=0.02)
    assert sequential == pytest.approx(0.129, rel=0.02)  # its calls of 25 ms in turn
    alone = (
        "from profiler.prediction import processes\n"
        "processes.cores = lambda: 1\n"
        f"from profiler.cli import main\nraise SystemExit(main({asked!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, first)


def test_what_compare_recorded_is_predicted(tmp_path: Path) -> None:
    scenario = tmp_path / "small.toml"
    scenario.write_text(SCENARIO)
    profiler(
        *("compare", "--scenario", str(scenario), "--levels", "8,12", "--strategy", "gathered"),
        *("--duration", "3", "--blocks", "1", "--calibrate", "0", "--no-metrics", "--quiet"),
        *("--allow-saturated", "--out", str(tmp_path / "runs")),
    )
    (run,) = (tmp_path / "runs").iterdir()
    asked = ("predict", str(run), "--users", "10", "--replicates", "4", "--duration", "3", "--json")
    # What a busy machine recorded is refused, and said to be.
    data = json.loads(profiler(*asked, codes=(0, 1)))
    (gathered,) = data["strategies"]
    assert (gathered["strategy"], gathered["predicted"], gathered["users"]) == ("gathered", True, 10)
    p50 = gathered["loop_seconds"]["p50"]["value"]
    assert gathered["refused"] if p50 is None else p50 > 0.15  # two requests and two calls of 50 ms


def test_how_well_a_recording_predicts_itself_is_kept_for_the_report(tmp_path: Path) -> None:
    run = directory(tmp_path, *recorded((8, 10, 12))).path
    said = profiler("predict", str(run), "--check", "--replicates", "4", "--quiet")
    assert "10 agents" in said
    kept = json.loads((run / "prediction.json").read_text())
    assert [cell["left_out"] for cell in kept["cells"]] == ["8 agents", "10 agents", "12 agents"]
    (inside,) = [cell for cell in kept["cells"] if cell["left_out"] == "10 agents"]
    assert inside["figures"]["p50"]["measured"] == pytest.approx(
        inside["figures"]["p50"]["predicted"], rel=0.05
    )
    profiler("report", str(run))
    assert "Prediction, checked" in (run / "report.html").read_text()
