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


def attributes(**of: str) -> list[dict[str, object]]:
    return [{"key": f"gen_ai.{key}", "value": {"stringValue": value}} for key, value in of.items()]


def traced(agents: int, loops: int) -> str:
    """Traces of agents that run the two calls of a reply one after the other: 40 + 25 + 25 + 40 ms a loop."""
    spans = []
    for agent in range(agents):
        for number in range(loops):
            loop = agent * loops + number
            began = 1_796_000_000_000 + 131 * number + 13 * agent  # ms
            steps = [
                ("invoke_agent", began, 130, attributes(**{"operation.name": "invoke_agent"})),
                ("chat", began, 40, attributes(**{"operation.name": "chat", "request.model": "m"})),
                (
                    "look",
                    began + 40,
                    25,
                    attributes(**{"operation.name": "execute_tool", "tool.name": "look"}),
                ),
                (
                    "look",
                    began + 65,
                    25,
                    attributes(**{"operation.name": "execute_tool", "tool.name": "look"}),
                ),
                ("chat", began + 90, 40, attributes(**{"operation.name": "chat", "request.model": "m"})),
            ]
            for place, (name, start, lasts, about) in enumerate(steps):
                parent = {"parentSpanId": f"{loop * 8 + 1:016x}"} if place else {}
                spans.append(
                    {
                        "traceId": f"{loop + 1:032x}",
                        "spanId": f"{loop * 8 + place + 1:016x}",
                        "name": name,
                        "kind": 1,
                        "startTimeUnixNano": str(start * 10**6),
                        "endTimeUnixNano": str((start + lasts) * 10**6),
                        "attributes": about,
                        **parent,
                    }
                )
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]})


def test_agents_of_another_program_are_predicted_with_their_calls_let_go_at_once(tmp_path: Path) -> None:
    (tmp_path / "traces.json").write_text(traced(10, 40))
    profiler("import", str(tmp_path / "traces.json"), "--out", str(tmp_path / "runs"))
    (run,) = (tmp_path / "runs").iterdir()
    asked = ("--users", "4", "--replicates", "4", "--duration", "3", "--json", "--quiet")
    data = json.loads(profiler("predict", str(run), *asked))
    seconds = {one["strategy"]: one["loop_seconds"]["p50"]["value"] for one in data["strategies"]}
    assert seconds["sequential"] == pytest.approx(0.130, abs=0.002)
    assert seconds["gathered"] == pytest.approx(0.105, abs=0.002)


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
