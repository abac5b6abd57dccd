"""How long the report of a large run takes, how large it is, and how soon a browser is done with it.

    python benchmarks/report.py RUN [--loops 200000]

Repeats the records of each trial of a real run, shifted in time, until there are as many loops as
asked for. Needs Chromium and Playwright for the last figure, and says so.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from profiler.report.html import gather, write_report
from profiler.rundir import RunDirectory


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--loops", type=int, default=200_000)
    arguments = parser.parse_args()
    source = RunDirectory.open(arguments.run)
    with tempfile.TemporaryDirectory() as scratch:
        directory = enlarge(source, Path(scratch), arguments.loops)
        size = directory.records_path.stat().st_size
        print(f"{arguments.loops} loops, {size / 1e6:.0f} MB of records")
        began = time.perf_counter()
        material = gather(directory)
        gathered = time.perf_counter()
        path = write_report(directory, material=material)
        done = time.perf_counter()
        print(f"made in {done - began:.1f} s, {gathered - began:.1f} s of it to read and sum up")
        print(f"size {path.stat().st_size / 1e6:.2f} MB")
        print(in_browser(path))
    return 0


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
