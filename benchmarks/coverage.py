"""Are the verdicts right as often as they claim? Simulated experiments with a known truth.

    python benchmarks/coverage.py [--experiments 1200] [--seed 1]

Counted are: how often the 95 % interval holds the true ratio wherever a verdict is given, how much wider
intervals are than where nothing is taken to be remembered, and how often thin blocks get "too few"
(`coverage_intervals.py`); how often a gate (`p95 > +5%`) fails although the truth is no worse; intervals on
servers that change slowly (`coverage_slow.py`); stalls and warm-ups that were left out
(`coverage_warm_up.py`). Exits 1 when a requirement is not met. The seed is fixed. It takes about ten
minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.coverage_intervals import (
    drift,
    false_alarms,
    jitter,
    lognormal,
    paired_coverage,
    queue,
    wander,
    widening,
)
from benchmarks.coverage_slow import print_slow
from benchmarks.coverage_warm_up import print_planted
from profiler.statistics.quantiles import LEVELS

COVERAGE = (0.92, 0.98)
FALSE_ALARMS = 0.06
WIDTHS = ("paired", "alone")
WIDEST = 1.5
"""How much wider than where nothing is remembered an interval may be of latencies that forget soon."""
REFUSED = 0.10
"""How often those may get none."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiments", type=int, default=1200)
    parser.add_argument("--slow", type=int, default=300, help="runs against a server that changes slowly")
    parser.add_argument("--planted", type=int, default=200, help="runs with a stall or a warm-up in them")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    started, kept = time.perf_counter(), True

    def check(value: float, low: float, high: float) -> str:
        nonlocal kept
        if np.isnan(value) or low <= value <= high:
            return ""
        kept = False
        return "  <- outside"

    print(f"{options.experiments} experiments a line; paired 95 % intervals, share that hold the truth")
    print(
        f"{'latencies':24} {'blocks':>11}  {'p50':>6} {'p95':>6} {'p99':>6} {'alone p95':>10} "
        " too few   alone   wider   alone"
    )
    for shape, sizes, required in CASES:
        for blocks, loops in sizes:
            found = paired_coverage(rng, shape, blocks, loops, options.experiments)
            shares = {name: found[name].share for name in found}
            judged = "".join(check(shares[name], *COVERAGE) for name in ("p50", "p95")) if required else ""
            cells = " ".join(f"{shares[name] * 100:6.1f}" for name in LEVELS).replace("nan", "  –")
            alone = f"{shares['alone p95'] * 100:10.1f}".replace("nan", "  –")
            wider = widening(rng, shape, blocks, loops, options.slow)
            line = f"{shape.name:24} {blocks:>4} × {loops:<4}  {cells} {alone}  "
            line += f"{shares['too few'] * 100:5.1f} % {shares['alone too few'] * 100:5.1f} %"
            line += "".join(f" {f'{wider[name]:.2f}×' if name in wider else '–':>7}" for name in WIDTHS)
            if required and wider:
                judged += "".join(check(value, 0.0, WIDEST) for value in wider.values())
                judged += check(shares["too few"], 0.0, REFUSED)
            print(line + (judged if required else "  (beyond what is promised)"), flush=True)
    print("\ngate 'p95 > +5%': share that fails")
    for name, moving in GATES:
        for correlation, blocks, loops in ((0.5, 10, 100), (0.8, 4, 200)):
            for change in (1.0, 1.05, 1.3):
                alarms = false_alarms(rng, correlation, blocks, loops, options.experiments, change, moving)
                judged = "  (beyond what is promised)"
                if moving is not wander:
                    judged = check(alarms.share, 0.0, FALSE_ALARMS) if change <= 1.05 else ""
                print(
                    f"{name:20} ar {correlation} {blocks:>3} × {loops:<4} truth {change - 1:+4.0%}: "
                    f"{alarms.share * 100:5.1f} %{judged}",
                    flush=True,
                )
    # Each part has a stream of its own, so that it prints the same whatever ran before it.
    print_slow(np.random.default_rng(options.seed), options.slow, check)
    print_planted(np.random.default_rng(options.seed), options.planted, check)
    print(f"\n{'as required' if kept else 'NOT as required'}; {time.perf_counter() - started:.0f} s")
    return 0 if kept else 1


GATES = (("paired", drift), ("two runs", jitter), ("two runs that drift", wander))

CASES = (
    (lognormal(0.5, (0.6, 0.6), -0.05), ((10, 25), (10, 40), (10, 100), (3, 100)), True),
    (lognormal(0.8, (0.4, 1.0), -0.05), ((10, 40), (10, 100), (10, 400), (5, 100), (3, 500)), True),
    (queue(0.7), ((10, 100), (5, 200)), True),
    (queue(0.7, empty=True), ((10, 200),), True),
    (lognormal(0.5, (0.6, 0.6), -0.05), ((10, 5), (2, 400)), True),
    (queue(0.8), ((10, 100), (10, 400)), False),
)

if __name__ == "__main__":
    sys.exit(main())
