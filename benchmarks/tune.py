"""`profiler tune` against brute force: its answer, its promise and its time, over seeds.

    python -m benchmarks.tune [--only crowded,cap7,queue23,two] [--seeds 1,2] [--budget 60] [--seconds 20]

After each search the setting found and limits around the capacity are measured in the same paired blocks,
on other work than the search saw. To hold a version against an earlier one at half the budget, run it in
checkouts of both with the same seeds. Expected: at least 95 % of the goodput of the best of them in nine of
ten seeds; a promise within 5 % of a measurement of `--seconds` (median); and at most 1.1 times the budget.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

SHARES = (0.5, 0.75, 0.9, 1.0, 1.15, 1.5)
"""Of the capacity: the limits that brute force tries."""


@dataclass(frozen=True, slots=True)
class System:
    """A tool of some capacity, and the agents that use it; with `other` a second one, of that capacity."""

    capacity: int
    users: int
    scenario: str | None = None
    mode: str = "reject"
    other: int = 0

    @property
    def tried(self) -> list[str]:
        """What brute force tries."""
        limits = {max(1, round(self.capacity * share)) for share in SHARES}
        if not self.other:
            return [f"semaphore:{limit}" for limit in sorted(limits)]
        shared = {self.capacity + round(self.other * share) for share in (0.0, 0.25, 0.5)}
        each = [f"semaphore:alpha={self.capacity},beta={self.other}", f"semaphore:alpha={self.capacity}"]
        return [*each, *(f"semaphore:{limit}" for limit in sorted(limits | shared))]


SYSTEMS = {
    "crowded": System(40, 120, "crowded"),
    "cap7": System(7, 12),
    "cap23": System(23, 40),
    "cap90": System(90, 120),
    "queue23": System(23, 40, mode="queue"),
    "two": System(12, 60, other=45),
}

SCENARIO = """description = "tools of some capacity"
prompt = "Task {{number}}: go."
[model]
first_token = {{ kind = "lognormal", median = 0.2, sigma = 0.4 }}
tokens_per_second = 0
[loop]
rounds = 1
fan_out = 4
"""

TOOL = """[tools.{name}]
description = "{name}"
duration = {{ kind = "lognormal", median = 0.2, sigma = 0.8, max = 20 }}
capacity = {{ concurrent = {capacity}, mode = "{mode}" }}
[tools.{name}.parameters]
type = "object"
required = ["number"]
properties.number = {{ type = "integer", minimum = 1, maximum = 9999, description = "n" }}
"""


def scenario_of(system: System, folder: str) -> str:
    if system.scenario is not None:
        return system.scenario
    path = Path(folder, f"{system.mode}{system.capacity}_{system.other}.toml")
    tools = [TOOL.format(name="alpha", capacity=system.capacity, mode=system.mode)]
    if system.other:
        tools.append(TOOL.format(name="beta", capacity=system.other, mode=system.mode))
    path.write_text(SCENARIO.format() + "".join(tools))
    return str(path)


def measured(
    options: object, specs: Sequence[str], users: int, seconds: float, blocks: int
) -> dict[str, float]:
    """Goodput of each, in loops a second, `seconds` of measuring each."""
    from profiler.load.experiment import Experiment, run_experiment
    from profiler.load.options import LoadOptions
    from profiler.rundir import RunDirectory
    from profiler.strategies import parse_strategies
    from profiler.tune.stages import candidates

    assert isinstance(options, LoadOptions)
    options = replace(
        options,
        strategies=parse_strategies(list(dict.fromkeys(specs))),
        blocks=blocks,
        seed=options.seed + 1000,
    )
    directory = RunDirectory.open(run_experiment(Experiment(options, users, seconds)))
    return {one.spec: one.goodput.value or 0.0 for one in candidates(directory, "goodput", None)}


def main() -> int:
    from profiler.load.options import LoadOptions
    from profiler.tune.asked import Search
    from profiler.tune.search import tune

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(SYSTEMS))
    parser.add_argument("--seeds", default="1,2,3,4,5,6,7,8,9,10")
    parser.add_argument("--budget", type=float, default=120.0)
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring each after the search")
    parser.add_argument("--promise-only", action="store_true", help="measure the setting alone, not others")
    arguments = parser.parse_args()
    missed = []
    with tempfile.TemporaryDirectory() as out:
        for name in arguments.only.split(","):
            system, errors, held, good = SYSTEMS[name], [], 0, 0
            seeds = [int(seed) for seed in arguments.seeds.split(",")]
            for seed in seeds:
                load = LoadOptions(
                    scenario=scenario_of(system, out),
                    out=out,
                    seed=seed,
                    metrics=False,
                    calibration_seconds=0.0,
                )
                began = time.monotonic()
                answer = tune(Search(load, system.users, budget=arguments.budget))
                took = time.monotonic() - began
                others = [] if arguments.promise_only else system.tried
                spec, said = answer.setting.spec, answer.setting.goodput
                found = measured(
                    load, [spec, *others], system.users, arguments.seconds, 1 if not others else 2
                )
                share = found[spec] / max(found.values())
                errors.append((said.value or 0.0) / found[spec] - 1 if found[spec] else 1.0)
                inside = (
                    said.low is not None and said.high is not None and said.low <= found[spec] <= said.high
                )
                held, good = held + inside, good + (share >= 0.95)
                print(
                    f"{name}, seed {seed}: {spec}, {share:.3f} of the best; promised {said.value:.2f} "
                    f"[{said.low}, {said.high}], measured {found[spec]:.2f} ({errors[-1]:+.1%}); "
                    f"{took:.0f} s of {arguments.budget:g}",
                    flush=True,
                )
                # Versions before predictions have no such field.
                print(f"  {getattr(answer, 'surprise', None) or getattr(answer, 'prediction', None)}")
                if took > 1.1 * arguments.budget:
                    missed.append(f"{name}, seed {seed}: {took:.0f} s")
            middle = statistics.median(map(abs, errors))
            print(f"{name}: {good} of {len(seeds)} within 5 % of the best; median error of the promise ")
            print(f"  {middle:.1%}; its interval held {held} of {len(seeds)}", flush=True)
            if good < 0.9 * len(seeds) or (middle > 0.05 and held < 0.9 * len(seeds)):
                missed.append(name)
    print("missed: " + ", ".join(missed) if missed else "all within what is expected")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
