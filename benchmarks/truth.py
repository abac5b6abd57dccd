"""What a load test reports, held against the emulator's journal; and whether overload is called invalid.

    python benchmarks/truth.py [--users 20] [--seconds 15]

`cities`, gathered, at a load well below the client's capacity: p50, p95 and p99 of tool calls
(client's duration against received-to-sent at the server) and of loops (client's duration against
first request received to last response sent), where the difference is to stay within 1 % or 2 ms.
Then 256 agents on `instant`, far above it: the run has to be called invalid. A capped
open load against what its arrivals and the journal imply is a test
(`tests/integration/test_load_open.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np

SHARE, SECONDS = 0.01, 0.002


def main() -> int:
    from profiler.emulator.process import start_emulator
    from profiler.load.experiment import Experiment, run_experiment
    from profiler.load.options import LoadOptions
    from profiler.rundir import RunDirectory
    from profiler.statistics.summary import summarise_directory
    from profiler.strategies import parse_strategies

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=15.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as out:
        with start_emulator("cities", seed=5) as emulator:
            options = LoadOptions(
                strategies=parse_strategies("gathered"),
                base_url=emulator.url,
                out=out,
                blocks=1,
                metrics=False,
            )
            path = run_experiment(Experiment(options, arguments.users, arguments.seconds))
            with urllib.request.urlopen(f"{emulator.url}/emulator/journal", timeout=30) as response:
                entries = json.loads(response.read())["entries"]
        below = RunDirectory.open(path)
        options = LoadOptions(
            strategies=parse_strategies("gathered"), scenario="instant", out=out, blocks=1, metrics=False
        )
        above = RunDirectory.open(run_experiment(Experiment(options, 256, 4.0)))
        summary, overloaded = summarise_directory(below), summarise_directory(above)
        held = _held(below.path, entries)
    print(f"load average {os.getloadavg()[0]:.2f}; {summary.strategies[0].loops.due} loops measured")
    for caveat in summary.warnings:
        if caveat.invalid:
            print(caveat.sentence)
    print(f"\nabove capacity: {'valid' if overloaded.valid else 'invalid'}")
    print("\n".join(caveat.sentence for caveat in overloaded.warnings if caveat.invalid))
    return 0 if held and not overloaded.valid else 1


def _held(path: Path, entries: list[dict[str, object]]) -> bool:
    """Print reported against true quantiles; whether all are within the bounds."""
    from profiler.rundir import RunDirectory

    records = [r for r in RunDirectory.open(path).records() if r.status == "ok"]
    calls = {e["call_id"]: (e["received_ns"], e["sent_ns"]) for e in entries if e["kind"] == "tool"}
    spans: dict[object, list[int]] = {}
    for entry in entries:
        if (number := entry.get("loop")) is not None:
            spans.setdefault(number, []).extend((entry["received_ns"], entry["sent_ns"]))  # type: ignore[arg-type]
    pairs = {
        "tool calls": [
            (call.ended_ns - call.started_ns, calls[call.id][1] - calls[call.id][0])  # type: ignore[operator]
            for record in records
            for call in record.tool_calls
            if call.started_ns is not None
        ],
        "loops": [
            (record.ended_ns - record.started_ns, max(spans[record.number]) - min(spans[record.number]))
            for record in records
        ],
    }
    held = True
    print(f"{'':12} {'':4} {'reported':>10} {'true':>10} {'difference':>11}")
    for what, both in pairs.items():
        reported, true = (np.array(side, dtype=float) / 1e9 for side in zip(*both, strict=True))
        for name, p in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            ours, theirs = float(np.quantile(reported, p)), float(np.quantile(true, p))
            within = abs(ours - theirs) <= max(SHARE * theirs, SECONDS)
            held &= within
            apart = 1e3 * (ours - theirs)
            print(
                f"{what:12} {name:4} {1e3 * ours:8.1f} ms {1e3 * theirs:8.1f} ms {apart:8.2f} ms"
                f"  {'within' if within else 'OUTSIDE'}"
            )
    return held


if __name__ == "__main__":
    sys.exit(main())
