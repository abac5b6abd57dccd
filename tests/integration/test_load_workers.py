"""Several processes: one that dies, and where they serve their metrics."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request
from pathlib import Path

from profiler.load.experiment import Experiment, run_experiment
from profiler.load.options import LoadOptions
from profiler.load.output import SETTLED
from profiler.process.ports import free_port
from profiler.rundir import RunDirectory
from profiler.statistics.summary import summarise_directory
from profiler.strategies import parse_strategies
from tests.integration.locust_process import ROOT, check_trials, locust, wait_until


def pids(path: Path) -> set[int]:
    """Process ids of the workers, from the records that have come."""
    found = set()
    for line in path.read_text().splitlines()[:-1]:
        found.add(int(json.loads(line)["process"].partition("pid ")[2].rstrip(")")))
    return found


def quick_cities(path: Path, time_scale: float) -> str:
    cities = (ROOT / "profiler" / "scenarios" / "cities.toml").read_text()
    scenario = path / "quick.toml"
    scenario.write_text(f"time_scale = {time_scale}\n{cities}")
    return str(scenario)


def test_a_worker_that_joins_late_takes_its_share_and_no_loop_is_cut_off(tmp_path: Path) -> None:
    """Locust moves agents to it in the middle of a trial: they finish their loops first."""
    port, scenario = str(free_port()), quick_cities(tmp_path, 0.4)
    there = ("--master-host", "127.0.0.1", "--master-port", port)
    with locust(tmp_path) as processes:
        master = processes.start(
            *("--master", "--headless", "--expect-workers", "1", "-u", "6", "-r", "6", "--no-metrics"),
            *("--master-bind-host", "127.0.0.1", "--master-bind-port", port),
            *("--strategy", "gathered", "--trial-seconds", "3", "--blocks", "20", "--scenario", scenario),
        )
        processes.start("--worker", *there)
        runs = tmp_path / "runs"
        assert wait_until(lambda: any(f.stat().st_size > 0 for f in runs.glob("*/records.jsonl")), 60)
        processes.start("--worker", *there)
        directory = processes.directory()
        assert wait_until(lambda: len(pids(directory.records_path)) == 2, 60)
        (directory.path / SETTLED).touch()  # the trial under way is the last, however long it took to come
        for process in (master, *processes.started[1:]):
            code, output = processes.end(process)
            assert code == 0, output
        run, records = directory.load(), list(directory.records())
        check_trials(run, records, {"gathered"})
        assert (run.finished, run.workers) == (True, 2)
        assert [incident.kind for incident in run.incidents] == ["settled"]
        assert {record.status for record in records} == {"ok"}
        assert len(pids(directory.records_path)) == 2
        assert len({r.process for r in records if r.trial == 0}) == 1
        assert {trial.users for trial in run.trials[-1:]} == {6}
        assert processes.all_left_within(15)


def test_a_worker_that_is_killed_is_missed_and_what_it_had_sent_counts(tmp_path: Path) -> None:
    out, before, scraped = tmp_path / "runs", {}, []

    def kill_one() -> None:
        def both() -> bool:
            files = list(out.glob("*/records.jsonl"))
            return bool(files) and len(pids(files[0])) == 2

        assert wait_until(both, 60)
        (file,) = out.glob("*/records.jsonl")
        for target in json.loads((file.parent / "targets.json").read_text())[0]["targets"]:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=60) as response:
                scraped.append(f'testid="{file.parent.name}"' in response.read().decode())
        time.sleep(1.2)  # so that it has said what it has in flight
        pid = min(pids(file))
        before[pid] = sum(f"pid {pid})" in line for line in file.read_text().splitlines())
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    options = LoadOptions(
        strategies=parse_strategies("gathered,sequential"),
        scenario=quick_cities(tmp_path, 0.1),
        blocks=1,
        out=str(out),
        calibration_seconds=0.0,
    )
    path = run_experiment(Experiment(options, users=10, seconds=6.0, workers=2))
    killer.join()
    directory = RunDirectory.open(path)
    run, records = directory.load(), list(directory.records())
    assert scraped == [True, True]
    assert [incident.kind for incident in run.incidents] == ["worker_lost"]
    assert "loops it had in flight, and what it had not sent, are missing" in run.incidents[0].detail
    ((pid, count),) = before.items()
    kept = sum(f"pid {pid})" in record.process for record in records)
    assert kept >= count > 0
    assert len(run.trials) == 2  # it went on with the other one
    assert run.finished
    last = [record.process for record in records if record.trial == 1]
    assert last
    assert not any(f"pid {pid})" in process for process in last)
    assert run.workers == 1
    summary = summarise_directory(directory)
    assert "worker_lost" in [caveat.kind for caveat in summary.warnings]
