"""Where gathering everything begins to lose: `crowded` at a light load, at the crossover and at twice that.

    python benchmarks/crossover.py [--seconds 15] [--provider openai]

A tool serves C calls at once and answers 429 above. With think time Z (here the model's) and n
calls a round of mean d the crossover is near U* = C (Z + E[max d]) / (n d): for this scenario
40 x (6 + 2.21) / 4 = 82 agents. That is where the *mean* demand reaches the capacity. Expected: at half
of it no difference shown, gathered with clearly more failures than one semaphore of C at once and
twice the crossover, and verdicts that say so first.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile

CAPACITY = 40
CROSSOVER = 82


def main() -> int:
    from profiler.load.experiment import Experiment, run_experiment
    from profiler.load.options import LoadOptions
    from profiler.rundir import RunDirectory
    from profiler.statistics.summary import summarise_directory
    from profiler.strategies import parse_strategies

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--provider", default="openai")
    arguments = parser.parse_args()
    as_expected = True
    with tempfile.TemporaryDirectory() as out:
        for share in (0.5, 1.0, 2.0):
            users = round(share * CROSSOVER)
            options = LoadOptions(
                strategies=parse_strategies((f"semaphore:{CAPACITY}", "gathered")),
                scenario="crowded",
                provider=arguments.provider,
                slo="p95<4s",
                out=out,
                blocks=5,
                metrics=False,
            )
            directory = RunDirectory.open(run_experiment(Experiment(options, users, arguments.seconds)))
            summary = summarise_directory(directory)
            (verdict,) = summary.verdicts
            wanted = ("no_difference",) if share < 1 else ("more_failures",)
            as_expected &= verdict.kind in wanted
            print(f"\n{users} agents, {share:g} × the crossover; load average {os.getloadavg()[0]:.2f}")
            for caveat in summary.warnings:
                if caveat.invalid:
                    print(caveat.sentence)
            for strategy in summary.strategies:
                quantiles = strategy.loop_seconds
                p50, p95 = quantiles.p50.value or 0.0, quantiles.p95.value or 0.0
                print(
                    f"  {strategy.strategy:13} {strategy.goodput.value or 0:6.2f} good loops/s"
                    f"  p50 {1e3 * p50:5.0f} ms  p95 {1e3 * p95:5.0f} ms"
                    f"  failed {100 * (strategy.failure_rate.value or 0):5.1f} %"
                )
            print(f"  {verdict.sentence}", flush=True)
    print(f"\n{'as expected' if as_expected else 'NOT as expected'}")
    return 0 if as_expected else 1


if __name__ == "__main__":
    sys.exit(main())
