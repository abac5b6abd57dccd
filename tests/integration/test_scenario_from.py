"""A scenario written from a recording is one that `compare` runs, and has nothing of its content."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from profiler.rundir import RunDirectory
from tests.unit.test_prediction_scenario_file import recorded


def profiler(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "profiler", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_compare_runs_what_was_written_from_an_imported_recording(tmp_path: Path) -> None:
    source = recorded(tmp_path / "imported", canary="CANARY")
    made = profiler("scenario", "--from", str(source.path), "-o", "mine.toml", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    done = profiler(
        *("compare", "--scenario", "./mine.toml", "--strategy", "gathered", "--users", "3"),
        *("--duration", "2s", "--blocks", "1", "--calibrate", "0"),
        *("--no-metrics", "--quiet", "--allow-saturated", "--json", "--out", "runs"),
        folder=tmp_path,
    )
    assert done.returncode in (0, 1), done.stderr  # 1: so short a run shows no difference
    [run] = (tmp_path / "runs").iterdir()
    records = list(RunDirectory.open(run).records())
    assert len(records) > 3
    assert {record.status for record in records} <= {"ok", "cancelled"}
    calls = [call for record in records for call in record.tool_calls if call.status == "ok"]
    assert {call.name for call in calls} == {"find", "read"}
    # Nothing takes less than the fastest of its kind; a busy machine may make it take longer.
    least = {"find": 0.0993, "read": 0.0993}
    for call in calls:
        assert (call.ended_ns - (call.started_ns or 0)) / 1e9 >= least[call.name]
    everything = json.dumps(json.loads((run / "run.json").read_text())) + (run / "records.jsonl").read_text()
    assert "CANARY" not in everything
