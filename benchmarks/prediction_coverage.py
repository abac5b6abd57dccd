"""Do the bands of predictions hold? In virtual time, against production on invented servers.

Every repetition records a ladder of its own, and really runs each cell with a seed of its own
(`tests/virtual_servers.py`). Of each figure are printed: the share of cells whose really-run figure lies
within the band, the median of the errors' sizes, their mean (with its standard error over the repetitions,
whose cells share a ladder) and the bands' median half width: % for times and rates, points for shares.

    python -m benchmarks.prediction_coverage [KIND ...] [--slow .3] [--cell 40] [--open 15] [--repetitions 20]
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from profiler.arrivals import Arrivals
from profiler.prediction.check import refused_shares
from profiler.prediction.fitting import fit_run
from profiler.prediction.predict import Question, predict
from profiler.prediction.simulation.load import SimulatedLoad, Trials
from profiler.records import LoopRecord
from profiler.rundir import Run
from profiler.statistics.summary import summarise
from profiler.strategies import parse_strategy
from tests.virtual_servers import Server, World, record

KINDS = ("none", "refuse", "queue", "share", "quota")
LEVELS = (4, 8, 15, 30, 45)
BLOCKS = 3
DRAIN_SECONDS = 1e4
"""As the virtual runs, which wait for every loop."""
RELATIVE = ("p50", "p95", "throughput", "goodput")
NAMES = (*RELATIVE, "failure_rate", "refused_share")
CELLS = (
    ("gathered", 30),
    ("semaphore:10", 30),
    ("sequential", 30),
    ("adaptive", 45),
    ("gathered", 45),
    ("gathered", 15),
    ("semaphore:20", 45),
    ("rate:40/s", 30),
)


@dataclass(frozen=True)
class Held:
    """One cell: of each figure its really-run value, and the prediction's (value, low, high)."""

    cell: str
    figures: dict[str, tuple[float, float, float, float]]


def world_of(kind: str, slow: float, tape: bool, loop_sd: float) -> World:
    """One tool with a capacity of 20 (or a quota of the model's that 30 agents use up), and one without."""
    of_tool = kind if kind != "quota" else "none"
    tools = {"search": Server(0.4, of_tool, 20, spread=0.8), "fetch": Server(0.25, spread=0.8)}
    quota = (1300.0, 60.0) if kind == "quota" else None
    return World(tools, alike=loop_sd, slow=slow, tape=tape, quota=quota, announced=True)


def really(run: Run, records: Sequence[LoopRecord]) -> dict[str, float]:
    """The figures of a run, by `compare`'s own rules."""
    one = summarise(run, records).strategies[0]
    found = {
        "p50": one.loop_seconds.p50,
        "p95": one.loop_seconds.p95,
        "throughput": one.throughput,
        "goodput": one.goodput,
        "failure_rate": one.failure_rate,
    }
    values = {name: float("nan") if got is None else got.value for name, got in found.items()}
    shares = refused_shares(run.trials, records)
    return values | {"refused_share": next(iter(shares.values()), float("nan"))}


def repetition(asked: tuple[argparse.Namespace, str, int]) -> tuple[list[Held], list[str]]:
    """The cells of one ladder, and what was refused."""
    options, kind, number = asked
    world = world_of(kind, options.slow, options.tape, options.loop_sd)
    seed = 7919 * (number + 1) + 100_000 * KINDS.index(kind) + 1_000_003 * options.seed
    rate = options.open or None
    ladder = record(
        world,
        "gathered,sequential",
        LEVELS,
        blocks=2,
        seconds=options.ladder / 2,
        seed=seed,
        arrivals=rate and f"{rate}/s",
        spread_seconds=None,
    )
    fitted = fit_run(ladder.run, ladder.records)
    cells: list[Held] = []
    refused: list[str] = []
    for place, (spec, users) in enumerate(CELLS[: options.cells]):
        of_cell = rate * users / max(LEVELS) if rate else None
        each = options.cell / BLOCKS
        load = SimulatedLoad(users, None if of_cell is None else Arrivals(of_cell, users))
        question = Question(parse_strategy(spec), load, Trials(each, BLOCKS, DRAIN_SECONDS))
        found = predict(fitted, question, replicates=options.replicates, seed=number)
        if not found.figures:
            refused.append(f"{spec} {users}: {'; '.join(found.refused)}")
            continue
        truth = record(
            world,
            spec,
            (users,),
            blocks=BLOCKS,
            seconds=each,
            seed=seed + 1 + place,
            arrivals=of_cell and f"{of_cell}/s",
            spread_seconds=None,
        )
        values = really(truth.run, truth.records)
        cells.append(
            Held(
                f"{spec} {users}",
                {
                    name: (values[name], one.value, one.low, one.high)
                    for name in NAMES
                    if (one := found.figures.get(name)) is not None and values[name] == values[name]
                },
            )
        )
    return cells, refused


def printed(title: str, repetitions: Sequence[Sequence[Held]]) -> None:
    print(title)
    for name in NAMES:
        errors, holds, widths, means, below = [], [], [], [], 0
        for cells in repetitions:
            own = []
            for one in cells:
                if name not in one.figures:
                    continue
                value, middle, low, high = one.figures[name]
                unit = 100 / value if name in RELATIVE and value else 100.0
                # Of logarithms, since a ratio to what varies is too large on average.
                of_log = name in RELATIVE and value > 0 and middle > 0
                own.append(100 * math.log(middle / value) if of_log else (middle - value) * unit)
                holds.append(low - 1e-12 <= value <= high + 1e-12)
                below += value < low - 1e-12
                widths.append((high - low) / 2 * unit)
            errors += own
            if own:
                means.append(np.mean(own))
        if not errors:
            continue
        error = np.std(means, ddof=1) / len(means) ** 0.5 if len(means) > 1 else float("nan")
        print(
            f"  {name:14} holds {np.mean(holds):6.1%} of {len(holds):4} ({below} below)   median |error| "
            f"{np.median(np.abs(errors)):5.2f}   mean {np.mean(errors):+6.2f} ± {error:.2f}   half width "
            f"{np.median(widths):5.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--ladder", type=float, default=60.0, help="seconds of each setting of the ladder")
    parser.add_argument("--cell", type=float, default=60.0, help="seconds of each cell")
    parser.add_argument("--slow", type=float, default=0.0, help="spread (log) of spells of 8 s")
    parser.add_argument("--loop-sd", type=float, default=0.3, help="spread (log) common to a loop's calls")
    parser.add_argument("--open", type=float, default=0.0, help="an open load: loops a second at 45 agents")
    parser.add_argument("--tape", action="store_true", help="the same loops in every trial of a block")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--replicates", type=int, default=40)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cells", type=int, default=len(CELLS), help="only so many of the cells")
    parser.add_argument("--by-cell", action="store_true", help="the figures of each cell too")
    options = parser.parse_args()
    for kind in options.kinds or KINDS:
        began = time.perf_counter()
        work = [(options, kind, number) for number in range(options.repetitions)]
        with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
            results = pool.map(repetition, work, chunksize=1)
        every = [cells for cells, _ in results]
        refused = [why for _, reasons in results for why in reasons]
        printed(f"{kind}: {len(every)} ladders, {time.perf_counter() - began:.0f} s", every)
        for spec, users in CELLS[: options.cells] if options.by_cell else ():
            name = f"{spec} {users}"
            printed(f" {name}", [[one for one in cells if one.cell == name] for cells in every])
        for why in sorted(set(refused)):
            print(f"  refused {refused.count(why)} times: {why}")


if __name__ == "__main__":
    main()
