"""Open loads, load shapes, hopeless runs: what was asked for, what came, and what is said of it."""

from __future__ import annotations

import json
import statistics
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from profiler.emulator.process import start_emulator
from profiler.load.experiment import Experiment, run_experiment
from profiler.load.options import LoadOptions
from profiler.records import LoopRecord
from profiler.rundir import PROGRESS, Follower, Progress, RunDirectory
from profiler.statistics.summary import summarise_directory
from profiler.strategies import parse_strategies
from tests.integration.locust_process import ROOT, Locust, locust

SLOW = """
description = "one call of 140 ms after a model that takes 50"
prompt = "Task {number}."

[model]
first_token = 0.05
tokens_per_second = 0

[loop]
rounds = 1
fan_out = 1

[tools.lookup]
description = "Look something up."
duration = 0.09

[tools.lookup.parameters]
type = "object"
properties = {}
"""


EDITED = """
import gevent
from locust import events
from profiler.load.locust.session import Session
from profiler.load.users import Agent

__all__ = ["Agent"]


def edit(environment):
    worker = Session.of(environment).worker
    while worker.trial is None or worker.trial.in_flight < 6:
        gevent.sleep(0.02)
    for users in (3, 6):
        environment.runner.start(users, 6)
        environment.runner.spawning_greenlet.join()


events.test_start.add_listener(lambda environment, **_: gevent.spawn(edit, environment))
"""
"""Asks for 3 users and again for 6, as the web UI's edit does, while all 6 are in a loop."""


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Locust]:
    with locust(tmp_path) as running:
        yield running


def journal(url: str) -> list[dict]:
    with urllib.request.urlopen(f"{url}/emulator/journal", timeout=60) as response:
        entries: list[dict] = json.loads(response.read())["entries"]
        return entries


def p95_of_a_queue(records: list[LoopRecord], service: dict[int | None, int], until_ns: int) -> float:
    """Seconds from intended start to end, of those due before `until_ns`, first come, first served."""
    places, latencies = [0] * 8, []
    for record in sorted(records, key=lambda r: (r.intended_ns or 0, r.number or 0)):
        assert record.intended_ns is not None
        place = places.index(min(places))
        places[place] = max(places[place], record.intended_ns) + service[record.number]
        if record.intended_ns < until_ns:
            latencies.append(places[place] - record.intended_ns)
    return float(np.quantile(latencies, 0.95)) / 1e9


@pytest.mark.measures
def test_a_capped_open_load_shows_the_backlog(tmp_path: Path) -> None:
    """60/s offered, 8 in flight, 190 ms of service: 42/s are served, and the rest piles up."""
    scenario = tmp_path / "slow.toml"
    scenario.write_text(SLOW)
    seen: list[Progress] = []
    with start_emulator(str(scenario)) as emulator:
        options = LoadOptions(
            strategies=parse_strategies("gathered"),
            scenario=str(scenario),
            base_url=emulator.url,
            arrivals="constant:60/s",
            max_in_flight=8,
            blocks=1,
            out=str(tmp_path / "runs"),
            calibration_seconds=0.0,
        )
        path = run_experiment(Experiment(options, users=12, seconds=3.0), watch=seen.append)
        entries = journal(emulator.url)
    run, records = (directory := RunDirectory.open(path)).load(), list(directory.records())
    (trial,) = run.trials
    due = [r.intended_ns for r in records if r.intended_ns is not None and r.intended_ns < trial.ended_ns]
    assert trial.arrived == pytest.approx(180, abs=3)
    assert len(due) == pytest.approx(trial.arrived, abs=2)
    assert trial.late == pytest.approx(trial.arrived - 8, abs=4)
    assert trial.dropped == 0
    assert {record.status for record in records} == {"ok"}
    # A queue before 8 places, from the arrivals that there were: with how long the emulator says it was
    # busy with each loop, and with how long each loop took. Between the two is the client's own work.
    began, ended = {}, {}
    for entry in entries:
        if (number := entry["loop"]) is not None and entry["trial"] is not None:  # None: the warm-up's
            began[number] = min(entry["received_ns"], began.get(number, entry["received_ns"]))
            ended[number] = max(entry["sent_ns"], ended.get(number, 0))
    served = {number: ended[number] - began[number] for number in began}
    taken = {record.number: record.ended_ns - record.started_ns for record in records}
    assert min(taken[number] - served[number] for number in served) >= 0
    assert statistics.median(taken[number] / served[number] for number in served) < 1.1
    reported = summarise_directory(directory).strategies[0].loop_seconds.p95.value
    assert reported is not None
    assert reported >= p95_of_a_queue(records, served, trial.ended_ns)
    assert reported == pytest.approx(p95_of_a_queue(records, taken, trial.ended_ns), rel=0.05)
    assert reported > 1.0  # the service alone takes 0.19 s
    assert [c.kind for c in summarise_directory(directory).warnings if c.kind.startswith("arrivals")] == [
        "arrivals_late"
    ]
    assert max(progress.waiting for progress in seen) > 20
    assert {progress.state for progress in seen} >= {"measuring", "draining", "finished"}
    # The first says that Locust is started, before there is a file.
    assert list(Follower(path).new()) == seen[1:]
    assert (path / PROGRESS).is_file()


def test_a_hopeless_run_ends_early_and_says_so(tmp_path: Path) -> None:
    scenario = tmp_path / "failing.toml"
    capacity = 'capacity = { concurrent = 1, mode = "reject" }'
    scenario.write_text(SLOW.replace("duration = 0.09", f"duration = 0.09\n{capacity}"))
    options = LoadOptions(
        strategies=parse_strategies("gathered,sequential"),
        scenario=str(scenario),
        abort_on="errors>20%",
        out=str(tmp_path / "runs"),
        calibration_seconds=0.0,
        think_seconds=0.01,
    )
    path = run_experiment(Experiment(options, users=10, seconds=30.0))
    directory = RunDirectory.open(path)
    run = directory.load()
    (incident,) = run.incidents
    assert incident.kind == "aborted"
    assert "loops failed, more than 20 %" in incident.detail
    assert not run.finished
    assert len(run.trials) == 1
    assert run.trials[0].ended_ns - run.trials[0].started_ns < 15e9  # of the 30 s it was given
    summary = summarise_directory(directory)
    assert "aborted" in [c.kind for c in summary.warnings]


def test_a_ladder_of_loads(tmp_path: Path) -> None:
    options = LoadOptions(
        strategies=parse_strategies("gathered,sequential"),
        scenario="instant",
        levels=(6, 2),
        blocks=2,
        slo="p95<2s,errors<1%",
        out=str(tmp_path / "runs"),
        calibration_seconds=0.2,
    )
    path = run_experiment(Experiment(options, users=4, seconds=1.0))
    directory = RunDirectory.open(path)
    run, records = directory.load(), list(directory.records())
    assert [trial.users for trial in run.trials] == [2, 2, 6, 6] * 2
    assert [trial.wanted for trial in run.trials] == [2, 2, 6, 6] * 2
    for trial in run.trials:
        agents = {record.agent for record in records if record.trial == trial.index}
        assert len(agents) == trial.users
    assert run.capacity is not None
    assert run.capacity.loops_per_second > 1
    assert {health.process for health in run.client if "worker" not in health.process} == {"the emulator"}
    assert [h.trial for h in run.client if h.process.startswith("worker 0")] == list(range(8))
    assert all(h.loop_lag_p99 is not None for h in run.client if h.process.startswith("worker 0"))
    # Written after each block by the load test itself, the last time before anyone summed up here.
    summary = json.loads(directory.summary_path.read_bytes())
    assert [level["users"] for level in summary["levels"]] == [2, 6]
    assert all(one["blocks"] == 2 for level in summary["levels"] for one in level["strategies"])
    assert summary["objective"] == "p95<2s,errors<1%"


def test_stairs_of_an_open_load_under_locust(processes: Locust) -> None:
    processes.file = ROOT / "locustfiles" / "steps.py"
    code, output = processes.run(
        "--scenario", "instant", "-u", "8", "-r", "8", "-t", "12s", "--strategy", "gathered",
        "--arrivals", "constant:40/s", "--trial-seconds", "0.9",
    )  # fmt: skip
    assert code == 0, output
    directory = processes.directory()
    run, records = directory.load(), list(directory.records())
    assert run.load.model == "open"
    assert sorted({trial.users for trial in run.trials if trial.users == trial.wanted}) == [2, 4, 6, 8]
    assert all(record.intended_ns is not None for record in records)
    whole = [t for t in run.trials if t.ended_ns - t.started_ns > 0.8e9]
    assert {trial.users for trial in whole} >= {2, 4, 6}
    steady = [t for before, t in pairwise(run.trials) if t in whole and before.users == t.users == t.wanted]
    assert steady
    # Each user is a source of 5/s; a machine that stands still takes arrivals from one trial or another.
    of_planned = [t.arrived / (5 * t.users * (t.ended_ns - t.started_ns) / 1e9) for t in steady]
    assert statistics.median(of_planned) == pytest.approx(1, abs=0.25)
    assert "open load, constant:40/s" in output
    assert processes.all_left_within(15)


def test_a_load_that_shrinks_and_grows_again_within_a_loop_has_all_its_agents(processes: Locust) -> None:
    """Those that leave finish their loops, and count for Locust no more."""
    scenario, processes.file = processes.path / "slow.toml", processes.path / "edited.py"
    scenario.write_text(SLOW.replace("duration = 0.09", "duration = 1.0"))
    processes.file.write_text(EDITED)
    code, output = processes.run(
        "--scenario", str(scenario), "-u", "6", "-r", "6", "--strategy", "gathered",
        "--trial-seconds", "0.5", "--blocks", "2", "--no-metrics",
    )  # fmt: skip
    assert code == 0, output
    directory = processes.directory()
    run, records = directory.load(), list(directory.records())
    assert '{"Agent": 3} (3 total users)' in output
    assert [(trial.users, trial.wanted, trial.interrupted) for trial in run.trials] == [(6, 6, 0)] * 2
    assert len({record.agent for record in records if record.trial == 1}) == 6
    assert {record.status for record in records} == {"ok"}
    assert processes.all_left_within(15)
