"""`profiler tune` against an oracle that knows the capacity: `crowded` at half, once and twice the crossover.

    python -m benchmarks.tune [--loads 0.5,1,2] [--budget 300] [--seconds 24]

After each search the setting found and `semaphore:40` (the tool serves 40 calls at once) are measured
in the same paired blocks, on other work than the search saw. Expected: within 5 % of the oracle's
goodput. For where the crossover is see `benchmarks/crossover.py`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence

ORACLE = "semaphore:40"
CROSSOVER = 82


def measured(specs: Sequence[str], users: int, seconds: float, out: str) -> dict[str, float]:
    """Goodput of each, in loops a second."""
    from profiler.load.experiment import Experiment, run_experiment
    from profiler.load.options import LoadOptions
    from profiler.rundir import RunDirectory
    from profiler.tune.search import candidates

    options = LoadOptions(
        strategies=tuple(dict.fromkeys(specs)),
        scenario="crowded",
        blocks=6,
        metrics=False,
        calibration_seconds=0.0,
        out=out,
        seed=1000,
    )
    directory = RunDirectory.open(run_experiment(Experiment(options, users, seconds)))
    return {one.spec: one.goodput.value or 0.0 for one in candidates(directory, "goodput", None)}


def main() -> int:
    from profiler.load.options import LoadOptions
    from profiler.strategies import parse_strategies
    from profiler.tune.search import Search, tune

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loads", default="0.5,1,2")
    parser.add_argument("--budget", type=float, default=300.0)
    parser.add_argument("--seconds", type=float, default=24.0, help="of measuring each against the oracle")
    arguments = parser.parse_args()
    within = True
    with tempfile.TemporaryDirectory() as out:
        for share in map(float, arguments.loads.split(",")):
            users = max(1, round(share * CROSSOVER))
            load = LoadOptions(strategies=parse_strategies("gathered"), scenario="crowded", out=out)
            answer = tune(Search(load, users, budget=arguments.budget))
            found = measured((ORACLE, answer.setting.spec, "gathered"), users, arguments.seconds, out)
            ratio = found[answer.setting.spec] / found[ORACLE]
            within &= ratio >= 0.95
            print(f"\n{users} agents, {share:g} × the crossover, {answer.seconds:.0f} s of search")
            print(f"  {answer.sentence}")
            print(f"  against the oracle, on other work: {ratio:.3f}", found, flush=True)
    print("\nwithin 5 % of the oracle" if within else "\nNOT within 5 % of the oracle")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
