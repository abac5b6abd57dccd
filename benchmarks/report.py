"""What reading a large run costs (report, trace, comparison), how large the page is, how soon it is there.

    python benchmarks/report.py RUN [--loops 200000] [--against CHECKOUT] [--repeats 3]

Repeats the records of each trial of a real run, shifted in time, until there are as many loops as
asked for. Each command is a process of its own; in turns with those of another checkout, where one is named.
Cold: without what is kept beside the records; warm: with it, where the code keeps anything. Needs Chromium
and Playwright for the last figure, and says so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import orjson

from profiler.rundir import RunDirectory
from profiler.statistics.columns import COLUMNS

ROOT = Path(__file__).parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--loops", type=int, default=200_000)
    parser.add_argument("--against", type=Path, help="a checkout, whose code reads the same run")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    source = RunDirectory.open(arguments.run)
    with tempfile.TemporaryDirectory() as scratch:
        directory = enlarge(source, Path(scratch), arguments.loops)
        size = directory.records_path.stat().st_size
        print(f"{arguments.loops} loops, {size / 1e6:.0f} MB of records")
        checkouts = {"here": ROOT} | ({"against": arguments.against} if arguments.against else {})
        found: dict[tuple[str, str, str], list[Cost]] = defaultdict(list)
        columns, kept = directory.path / COLUMNS, 0
        for _ in range(arguments.repeats):
            for name, checkout in checkouts.items():
                for command, words in commands(directory.path, Path(scratch)).items():
                    for state in ("cold", "warm"):
                        if state == "cold":
                            columns.unlink(missing_ok=True)
                        found[command, state, name].append(cost(checkout, words))
                # Now, not at the end: another checkout may keep no columns, nor do we of a small run.
                if name == "here" and columns.exists():
                    kept = columns.stat().st_size
        for command in commands(directory.path, Path(scratch)):
            for state in ("cold", "warm"):
                costs = {name: middle(found[command, state, name]) for name in checkouts}
                said = [
                    f"{one.cpu:6.1f} s CPU, {one.wall:6.1f} s, {one.mib:4.0f} MiB" for one in costs.values()
                ]
                ratio = f"  ({costs['against'].cpu / costs['here'].cpu:.1f} times)" if len(costs) > 1 else ""
                print(f"{command:8} {state}: {' | '.join(said)}{ratio}", flush=True)
        page = directory.path / "report.html"
        print(f"kept: {kept / 1e6:.0f} MB; page: {page.stat().st_size / 1e6:.2f} MB; {in_browser(page)}")
    return 0


class Cost(NamedTuple):
    """What a command took: seconds of CPU and of time, and its resident set at its highest."""

    cpu: float
    wall: float
    mib: float

    def __str__(self) -> str:
        return f"{self.cpu:6.1f} s CPU, {self.wall:6.1f} s, {self.mib:4.0f} MiB"


def commands(run: Path, scratch: Path) -> dict[str, list[str]]:
    """The commands that read a run, by name."""
    return {
        "report": ["report", str(run)],
        "trace": ["trace", str(run), "--slowest", "20", "--out", str(scratch / "trace.json")],
        "compare": ["compare", str(run), str(run), "--allow-saturated"],
    }


def cost(checkout: Path, words: list[str]) -> Cost:
    """What a command of the code of a checkout takes."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "profiler", *words],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {process.returncode}")
    return Cost(used.ru_utime + used.ru_stime, time.perf_counter() - began, used.ru_maxrss / 1024)


def middle(costs: list[Cost]) -> Cost:
    """The median of each figure."""
    return Cost(*map(median, zip(*costs, strict=True)))


def enlarge(source: RunDirectory, parent: Path, loops: int) -> RunDirectory:
    """A run directory with the trials of `source`, each as many times as long, with as many more loops."""
    run = source.load()
    lines = [orjson.loads(line) for line in source.records_path.read_bytes().splitlines()]
    times = -(-loops // len(lines))
    trials, starts = [], {}
    now = min(trial.started_ns for trial in run.trials)
    for trial in run.trials:
        window, drain = trial.ended_ns - trial.started_ns, trial.drained_ns - trial.ended_ns
        starts[trial.index] = now - trial.started_ns
        end = now + times * window
        trials.append(replace(trial, started_ns=now, ended_ns=end, drained_ns=end + drain))
        now = end + drain
    directory = RunDirectory.create(parent, replace(run, trials=tuple(trials)))
    written = 0
    with open(directory.records_path, "wb") as file:
        for trial in run.trials:
            mine = [record for record in lines if record["trial"] == trial.index]
            for k in range(times):
                later = starts[trial.index] + k * (trial.ended_ns - trial.started_ns)
                for record in mine[: loops - written]:
                    file.write(orjson.dumps(moved(record, k, later)) + b"\n")
                    written += 1
    return directory


_SPANS = ("lag_ns", "thread_wait_ns", "blocking_ns", "retry_after_ns")


def moved(value: Any, k: int, later: int) -> Any:
    """The record with every instant later and a tape entry of its own; durations stay."""
    if isinstance(value, list):
        return [moved(one, k, later) for one in value]
    if not isinstance(value, dict):
        return value
    return {key: _moved(key, one, k, later) for key, one in value.items()}


def _moved(key: str, value: Any, k: int, later: int) -> Any:
    if key == "number" and value is not None:
        return value + k * 100_000_000
    if key.endswith("_ns") and key not in _SPANS and value is not None:
        return value + later
    return moved(value, k, later)


def in_browser(path: Path) -> str:
    executable = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        executable = None
    if executable is None:
        return "no browser here: interactive after an unknown time"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            return "; ".join(_open(browser, path) for _ in range(3))
        finally:
            browser.close()


def _open(browser: Any, path: Path) -> str:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    ready = page.evaluate("performance.getEntriesByType('navigation')[0].domInteractive")
    page.close()
    return f"interactive after {ready:.0f} ms"


if __name__ == "__main__":
    raise SystemExit(main())
