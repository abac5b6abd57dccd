"""`profiler mcp load` and `MCPUser` against servers that keep the times of their calls, each in its way."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from profiler.arrivals import Arrivals
from profiler.cli import main
from profiler.emulator.process import start_emulator
from profiler.records import NO_MODEL, LoopRecord
from profiler.report.text import duration
from profiler.rundir import RunDirectory
from profiler.statistics.direct import direct_loads
from profiler.statistics.summary import summarise_directory
from profiler.statistics.table import tabulate
from tests.integration.locust_process import Locust, locust

ROOT = Path(__file__).resolve().parents[2]
SERVER = ROOT / "tests" / "queueing_mcp_server.py"

QUEUE = """
description = "one tool for 8 calls at once, which take 100 ms each; more wait"
prompt = "Task {number}."

[model]
first_token = 0.05
tokens_per_second = 0

[loop]
rounds = 1
fan_out = 1

[tools.search]
description = "Search."
duration = 0.1
capacity = { concurrent = 8, mode = "queue", queue = 10000 }

[tools.search.parameters]
type = "object"
required = ["query"]
properties.query = { type = "string" }
"""


@contextlib.contextmanager
def server(log: Path | None = None, **options: Any) -> Iterator[str]:
    """The URL of a server of the tests' own."""
    command = [sys.executable, str(SERVER), *chain(*((f"--{k}", str(v)) for k, v in options.items()))]
    if log is not None:
        command += ["--log", str(log)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def load(path: Path, url: str, *options: str) -> tuple[int, RunDirectory]:
    """The exit code and the run directory of a load of `search`."""
    given = ["mcp", "load", url, "--call", "search", "--calibrate", "0", "--no-metrics", "--allow-saturated"]
    code = main([*given, "--out", str(path), *options])
    (made,) = path.glob("2*")
    return code, RunDirectory.open(made)


def measured(directory: RunDirectory) -> list[LoopRecord]:
    return [record for record in directory.records() if record.trial is not None]


def p95(seconds: list[float]) -> float:
    return float(np.quantile(seconds, 0.95))


OVERLOAD = ("--arrivals", "160/s", "--duration", "3s", "--users", "10")
"""Twice what 8 places of 100 ms serve."""


def due_times(count: int) -> list[float]:
    """The seeded arrivals of `OVERLOAD`, in seconds from the first."""
    arrivals = Arrivals.parse("160/s", 10)
    each = [takewhile(lambda at: at < 30, arrivals.of_source(one, "1/0/0")) for one in range(10)]
    times = sorted(chain(*each))[:count]
    return [at - times[0] for at in times]


def check_overload(directory: RunDirectory, ends: dict[int, int], said: str) -> None:
    """Every arrival is there, was due when the seed says, and is timed to the server's own end of it."""
    run, records = directory.load(), measured(directory)
    (trial,) = run.trials
    assert len(records) == trial.arrived > 300
    assert (trial.interrupted, trial.dropped) == (0, 0)
    assert all(record.status == "ok" for record in records)
    due = sorted(record.due_ns for record in records)
    assert [(at - due[0]) / 1e9 for at in due] == pytest.approx(due_times(len(due)), abs=1e-3)
    truth = p95([(ends[record.number or 0] - record.due_ns) / 1e9 for record in records])
    (found,) = direct_loads(run, directory.records(), tabulate(directory.records()))
    assert found.seconds.p95.value == pytest.approx(truth, rel=0.05)
    assert found.calls == trial.arrived
    assert found.unserved
    assert found.waiting > 50
    verdict = re.search(r"cannot serve: \S+ cannot serve 160/s: it answered .*/s, the backlog grew to", said)
    assert verdict is not None
    assert said.index(verdict[0]) < said.index("tool ")
    # Nothing is left out anywhere, and nothing is said of a loop of a strategy.
    shown = duration(found.seconds.p95.value)
    summary = json.loads((directory.path / "summary.json").read_bytes())
    assert summary["strategies"][0]["loop_seconds"]["p95"]["value"] == found.seconds.p95.value
    assert summary["loads"][0]["seconds"]["p95"]["value"] == found.seconds.p95.value
    assert f"  {shown}  " in said
    assert f">{shown}<" in (directory.path / "report.html").read_text()
    assert not re.search(r"gathered|loops", said)


def test_overload_of_the_emulator_is_timed_to_its_journal_and_said_first(tmp_path, capsys):
    scenario = tmp_path / "queue.toml"
    scenario.write_text(QUEUE)
    with start_emulator(str(scenario)) as emulator:
        code, directory = load(tmp_path / "runs", f"{emulator.url}/mcp", *OVERLOAD)
        with urllib.request.urlopen(f"{emulator.url}/emulator/journal", timeout=60) as response:
            entries = json.loads(response.read())["entries"]
    ends = {one["loop"]: one["finished_ns"] for one in entries if one["trial"] is not None}
    said = capsys.readouterr()
    check_overload(directory, ends, said.out)
    assert not re.search(r"gathered|loops", said.err)
    assert code == 1


def test_overload_of_another_server_is_timed_to_its_own_log(tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    with server(log, capacity=8, seconds=0.1) as url:
        code, directory = load(tmp_path / "runs", url, *OVERLOAD)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    said = capsys.readouterr()
    check_overload(directory, {one["loop"]: one["ended"] for one in entries}, said.out)
    assert not re.search(r"gathered|loops", said.err)
    assert code == 1


def test_ladder_of_a_server_that_refuses_counts_refusals_and_no_model_requests(tmp_path, capsys):
    with server(capacity=4, seconds=0.05, refuse="429") as url:
        code, directory = load(tmp_path / "runs", url, "--levels", "2,8", "--duration", "1s", "--blocks", "1")
    low, high = direct_loads(directory.load(), directory.records(), tabulate(directory.records()))
    assert (low.users, low.failures) == (2, {})
    assert set(high.failures) == {"http_429"}
    assert high.beside_failures == pytest.approx(4, abs=1)
    (summary,) = summarise_directory(directory).strategies
    assert summary.totals.model_requests == 0
    assert {round_.model.provider for record in measured(directory) for round_ in record.rounds} == {NO_MODEL}
    assert "does not take 8 calls at once" in capsys.readouterr().out
    assert code == 0


@pytest.mark.parametrize("refuse", ["error", "rpc"])
def test_refusals_are_counted_as_such_however_they_are_said(tmp_path, capsys, refuse):
    with server(capacity=2, seconds=0.05, refuse=refuse) as url:
        _, directory = load(tmp_path / "runs", url, "--users", "6", "--duration", "0.8s", "--blocks", "1")
    (found,) = direct_loads(directory.load(), directory.records(), tabulate(directory.records()))
    assert found.refused == found.failed > 0
    assert "does not take 6 calls at once" in capsys.readouterr().out


def test_search_finds_the_cap_of_a_server_that_refuses(tmp_path, capsys):
    with server(capacity=4, seconds=0.05, refuse="429") as url:
        given = ["mcp", "tune", url, "--call", "search", "--users", "16", "--budget", "20s", "--json"]
        quick = ["--calibrate", "0", "--no-metrics", "--allow-saturated", "--out", str(tmp_path)]
        assert main([*given, *quick]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["kind"] == "refuses"
    assert answer["limit"] == pytest.approx(4, abs=1)
    assert f"semaphore:{answer['limit']}@server" in answer["sentence"]


def test_tool_that_may_write_is_refused_and_allowed_by_name(tmp_path, capsys):
    with server(seconds=0.01) as url:
        given = ["mcp", "load", url, "--call", "delete", "--out", str(tmp_path)]
        assert main(given) == 2
        assert "--allow-writes delete" in capsys.readouterr().err
        quick = ["--duration", "0.5s", "--blocks", "1", "--users", "2", "--calibrate", "0", "--no-metrics"]
        assert main([*given, *quick, "--allow-writes", "delete", "--allow-saturated"]) == 0
    assert re.search(r"^delete +\d+ +0 ", capsys.readouterr().out, re.MULTILINE)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Locust]:
    with locust(tmp_path) as running:
        yield running


def test_locust_file_of_ones_own_calls_what_its_user_names(tmp_path, processes):
    log = tmp_path / "log.jsonl"
    with server(log, capacity=8, seconds=0.02) as url:
        file = tmp_path / "locustfile.py"
        file.write_text(
            "from profiler.load.users import MCPUser\n\n\n"
            "class Search(MCPUser):\n"
            f"    server = {url!r}\n"
            "    call = 'search'\n"
            "    arguments = {'query': 'rain'}\n"
        )
        processes.file = file
        code, said = processes.run("-u", "4", "-r", "4", "-t", "4s", "--no-metrics")
    assert code == 0, said
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert {json.dumps(one["arguments"]) for one in entries} == {'{"query": "rain"}'}
    assert re.search(r"answers .*/s with 4 calls at once: p95", said)


def test_gate_of_an_open_load_gets_the_blocks_that_its_intervals_need(tmp_path, capsys):
    with server(seconds=0.01) as url:
        given = ("--arrivals", "constant:100/s", "--duration", "3s", "--users", "4")
        code, directory = load(tmp_path / "runs", url, *given, "--fail-on", "p50 > 30s")
    said = capsys.readouterr()
    assert code == 0
    assert len(directory.load().trials) == 3
    assert "in 3 blocks for the intervals that --fail-on needs" in said.err
    assert "not decided" not in said.out
