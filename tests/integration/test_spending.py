"""Limits on what is spent, over real processes; the emulator counts what really came."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from profiler.cli import main
from profiler.emulator.process import EmulatorProcess, start_emulator
from profiler.rundir import Run, RunDirectory
from tests.integration.locust_process import locust

SCENARIO = """
description = "short loops of 2 or 3 requests, one attempt in ten fails"
prompt = "Trip {number}."
time_scale = 0.15

[model]
first_token = { kind = "uniform", low = 0.10, high = 0.20 }
tokens_per_second = { kind = "constant", value = 0 }

[loop]
rounds = { kind = "empirical", values = [1, 2] }
fan_out = { kind = "constant", value = 2 }

[tools.get_weather]
path = "/tools/weather"
description = "Weather."
duration = { kind = "uniform", low = 0.1, high = 0.2 }

[tools.get_weather.parameters]
type = "object"
required = ["city"]
properties.city = { type = "string" }

[[faults]]
kind = "http_500"
probability = 0.1
"""

USERS = 8
MOST_REQUESTS = 3
"""Of a loop on the tape; a faulty request has one more attempt."""


def requests(emulator: EmulatorProcess) -> int:
    """Model requests that came, by what the emulator says."""
    with urllib.request.urlopen(f"{emulator.url}/emulator/journal?kind=model", timeout=60) as response:
        return len(json.load(response)["entries"])


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "short.toml"
    path.write_text(SCENARIO)
    return path


def the_run(out: Path) -> tuple[Run, RunDirectory]:
    (path,) = out.iterdir()
    directory = RunDirectory.open(path)
    return directory.load(), directory


def test_locust_on_two_workers_stops_at_a_number_of_requests(tmp_path: Path, scenario: Path) -> None:
    """And what the run says it sent is what came, retries, both warm-ups and all."""
    limit = 90
    with start_emulator(str(scenario)) as emulator, locust(tmp_path) as processes:
        code, output = processes.run(
            *("--processes", "2", "-u", str(USERS), "-r", "100", "-t", "60s", "--no-metrics"),
            *("--scenario", str(scenario), "--base-url", emulator.url, "--strategy", "gathered"),
            *("--max-requests", str(limit), "--blocks", "1"),
        )
        sent = requests(emulator)
    run, directory = the_run(tmp_path / "runs")
    assert run.spent is not None
    assert run.spent.requests == sent
    assert limit - 2 * MOST_REQUESTS <= sent <= limit + USERS * 2 * MOST_REQUESTS
    assert code == 1
    assert not run.finished
    said = f"stopped at --max-requests {limit}: {sent} sent"
    assert [(incident.kind, incident.detail) for incident in run.incidents] == [("limited", said)]
    assert said in output
    assert "plan: 1 strategy, 60 s of measuring with 8 agents on http://127.0.0.1:" in output
    records = list(directory.records())
    assert len(records) == run.spent.loops - 2  # every loop but the workers' first, each to its end
    assert {record.status for record in records} == {"ok"}
    assert len({record.process for record in records}) == 2
    assert sum(len(r.model.attempts) for record in records for r in record.rounds) > sum(
        len(record.rounds) for record in records
    )


def test_compare_stops_at_a_cost_and_says_so(
    tmp_path: Path, scenario: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        [
            *("compare", "--scenario", str(scenario), "--users", str(USERS), "--duration", "60s"),
            *("--strategy", "gathered", "--max-cost", "0.03", "--price", "2.50/10", "--blocks", "1"),
            *("--provider", "anthropic", "--max-loops", "1000"),
            *("--calibrate", "0", "--no-metrics", "--out", str(tmp_path / "runs")),
        ]
    )
    run, directory = the_run(tmp_path / "runs")
    assert run.spent is not None
    cost = (2.5 * run.spent.input_tokens + 10 * run.spent.output_tokens) / 1e6
    assert 0.025 < cost < 0.037
    assert code == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert f"stopped at --max-cost 0.03: ${cost:.4g} spent" in printed
    report = (directory.path / "report.html").read_text()
    assert f"stopped at --max-cost 0.03: ${cost:.4g} spent" in report
    assert f"{run.spent.requests:,} requests, {run.spent.input_tokens:,} tokens in, " in report
    tokens = [(r.model.input_tokens or 0) for record in directory.records() for r in record.rounds]
    assert sum(tokens) <= run.spent.input_tokens < sum(tokens) + 2000  # and the warm-up loop


def test_a_search_stops_at_a_number_of_requests_over_its_experiments(
    tmp_path: Path, scenario: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with start_emulator(str(scenario)) as emulator:
        code = main(
            [
                *("tune", "--scenario", str(scenario), "--base-url", emulator.url, "--users", "2"),
                *("--think", "0.3", "--budget", "60s", "--max-requests", "90", "--calibrate", "0", "--json"),
                *("--out", str(tmp_path / "runs")),
            ]
        )
        sent = requests(emulator)
    answer = json.loads(capsys.readouterr().out)
    runs = [RunDirectory.open(path).load() for path in answer["runs"]]
    assert sum(run.spent.requests for run in runs if run.spent) == sent
    assert 90 - 2 * MOST_REQUESTS <= sent <= 90 + 2 * 2 * MOST_REQUESTS
    assert code == 1
    assert answer["stopped"] == f"stopped at --max-requests 90: {sent} sent"
    assert not answer["proven"]
    first, second = runs
    assert first.spent is not None
    assert second.arguments["max_requests"] == 90 - first.spent.requests
    assert [incident.kind for incident in first.incidents + second.incidents] == ["limited"]


def compare_at_a_terminal(answer: str, *arguments: str) -> tuple[int, str]:
    """`profiler compare` on a terminal that answers its question; exit code, and what it showed."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "profiler", "compare", *arguments]
    environment = {**os.environ, "OPENAI_API_KEY": "none"}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
                if shown.endswith(b"start? [y/N] "):
                    os.write(ours, answer.encode())
        except OSError:  # Linux: the other end is closed
            pass
        finally:
            os.close(ours)
        return process.wait(60), shown.decode()


def test_a_plan_that_leaves_this_machine_is_asked_about_on_a_terminal(tmp_path: Path, scenario: Path) -> None:
    """0.0.0.0 is no loopback address to us, and leads to this machine all the same."""
    out = tmp_path / "runs"
    with start_emulator(str(scenario)) as emulator:
        elsewhere = emulator.url.replace("127.0.0.1", "0.0.0.0")
        arguments = [
            *("--base-url", elsewhere, "--scenario", str(scenario), "--users", "2", "--duration", "1s"),
            *("--strategy", "gathered", "--calibrate", "0", "--no-metrics", "--out", str(out)),
        ]
        code, shown = compare_at_a_terminal("y\n", *arguments)
        assert (code, "needs --allow-remote" in shown, "start?" in shown) == (2, True, False)
        code, shown = compare_at_a_terminal("\n", *arguments, "--allow-remote")
        assert code == 1
        assert f"2 agents on {elsewhere} (gpt-4o)" in shown
        assert "tokens in, " in shown
        assert "some $" in shown
        assert shown.rstrip().endswith("nothing was started")
        assert not out.exists()
        assert requests(emulator) == 0
        code, shown = compare_at_a_terminal("y\n", *arguments, "--allow-remote", "--max-loops", "6")
        assert "stopped at --max-loops 6: 6 begun" in " ".join(shown.split())
        assert code == 1
        assert requests(emulator) > 0
