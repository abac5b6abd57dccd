"""`profiler compare --for-prediction`: a ladder past the capacity, and what is said of it at the end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from profiler import cli
from profiler.rundir import RunDirectory

SCENARIO = """
description = "a tool that serves two calls at once, and one that serves any number"
prompt = "Look up {number}"
[model]
first_token = 0.02
tokens_per_second = 5000
[loop]
rounds = 1
fan_out = 6
[tools.narrow]
description = "Serves two."
parameters = { type = "object", properties = { n = { type = "integer" } } }
duration = 0.1
capacity = { concurrent = 2, mode = "reject" }
[tools.wide]
description = "Serves all."
parameters = { type = "object", properties = { n = { type = "integer" } } }
duration = 0.05
"""


def test_ladder_past_the_capacity_says_which_servers_it_took_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    scenario = tmp_path / "narrow.toml"
    scenario.write_text(SCENARIO, encoding="utf-8")
    runs = tmp_path / "runs"
    small = ["--users", "4", "--strategy", "gathered", "--duration", "2", "--blocks", "1", "--calibrate", "0"]
    quiet = ["--quiet", "--allow-saturated", "--out", str(runs)]
    code = cli.main(["compare", "--for-prediction", "--scenario", str(scenario), *small, *quiet])
    said = capsys.readouterr()
    assert code == 0, said.err
    (path,) = runs.iterdir()
    run = RunDirectory.open(path).load()
    assert [(trial.users, trial.strategy) for trial in run.trials] == [
        (users, "gathered") for users in (1, 2, 4, 8)
    ]
    lines = [line for line in said.out.splitlines() if line.startswith("for prediction: ")]
    # How clear it is depends on how busy this machine is: a client that is late sees refusals late.
    known = r"past its capacity: narrow \(refuses above [123] at once|not understood: .*narrow \("
    assert any(re.search(known, line) for line in lines), lines
    assert any(re.search(r"(not taken past its capacity|not understood): .*wide \(", line) for line in lines)
