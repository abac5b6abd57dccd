"""Whether a scenario written from a recording behaves as what was recorded.

    python -m benchmarks.calibration draws [--loops 1500]
    python -m benchmarks.calibration loads [--loops 1500]
    python -m benchmarks.calibration runs --out DIRECTORY [--users 40] [--seconds 60] [--kind refuse]

`draws` has no servers and no clock: recordings are made up of the shape of `tests/capacity_server.py` (heavy
tails, calls of a loop and of a round correlated), a scenario is written from each, and what the emulator's
tape draws is held against what was recorded. So it shows what fit and file lose, apart from all that a
machine adds.

`loads` puts both under load in virtual time (`profiler.prediction.simulation.engine`), with 20 calls at once
of one tool refused, queued or shared beyond: as many agents as fill it, and twice as many.

`runs` records that server at a quarter of the users and at all of them, past its capacity; writes the
scenario; runs the same strategy on the emulator with as many users and with twice as many, and on the server
with twice as many; and prints p50, p95 and p99 of each tool and of the model, and the share of refusals, side
by side. The noise is that of both runs: half the width of the 95 % interval of the difference, by a bootstrap
of whole loops. What was recorded in the directory before is not recorded again. Each run takes its seconds
and some ten more. Server and emulator come before all other processes where the system lets them, so that a
busy machine does not slow one and not the other.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.prediction_servers import CLIENT, CLIENT_TOOL, ROOT
from profiler.emulator.tape import Tape
from profiler.prediction.fitting import fit_run
from profiler.prediction.scenario.file import written
from profiler.prediction.scenario.parts import fit_of
from profiler.prediction.servers.calls import Rule
from profiler.prediction.simulation.engine import simulate
from profiler.prediction.simulation.figures import Figures, figures_of
from profiler.prediction.simulation.load import SimulatedLoad, Trials
from profiler.prediction.simulation.work import LoopWork, Server, System
from profiler.rundir import RunDirectory
from profiler.scenarios import parse_scenario
from profiler.strategies import parse_strategy
from tests.capacity_server import Shape, Tool
from tests.shaped_records import TOOLS as SHAPED
from tests.shaped_records import drawn, drawn_work, made_up, run_of, true, true_work

LEVELS = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
GOALS = {"p50": 3.0, "p95": 3.0, "p99": 10.0, "refused": 2.0}
"""Per cent of the true value; of shares of refusals, points."""
KINDS = {
    "refuse": lambda most: ("--tool", f"search=0.4,refuse={most},weight=2"),
    "queue": lambda most: ("--tool", f"search=0.4,queue={most},weight=2"),
    "share": lambda most: ("--tool", f"search=0.4,share={most},weight=2"),
    "quota": lambda most: ("--tool", "search=0.4,weight=2", "--quota", f"{60 * most}/{3 * most}"),
}
SEED = 1
TOOLS = ("--tool", "fetch=0.25", "--tool", "store=0.1")
SHAPE = (
    *("--sigma", "0.8", "--loop-share", "0.2", "--round-share", "0.15"),
    *("--rounds", "2-3", "--fan-out", "2-6"),
    *("--first-token", "0.25", "--tokens", "40", "--tokens-per-second", "160"),
)
"""Heavy tails; calls of a loop and of a round have something in common."""


def shape_of(of_loop: float, of_round: float) -> Shape:
    """The work of `SHAPE`, with these shares of the variance of durations."""
    return Shape(
        seed=str(SEED),
        tools=[Tool.parse(text) for text in ("search=0.4,weight=2", "fetch=0.25", "store=0.1")],
        sigma=0.8,
        loop_share=of_loop,
        round_share=of_round,
        rounds=(2, 3),
        fan_out=(2, 6),
        first_token=0.25,
        tokens=40,
        tokens_per_second=160,
    )


# Draws


def draws(loops: int, held_out: int = 10_000) -> None:
    """Print the table; the first of a line are the shares of loop and round in the calls' durations."""
    print(f"{loops} loops recorded; {held_out:,} drawn. Error in % of what was recorded.")
    print(f"{'shares of loop, round':24}{'':8}" + "".join(f"{level:>8}" for level in LEVELS))
    for of_loop, of_round in ((0.0, 0.0), (0.2, 0.15), (0.5, 0.3)):
        shape = shape_of(of_loop, of_round)
        records = list(made_up(shape, loops))
        text = written(fit_of(fit_run(run_of(loops), records), records))
        recorded = true(shape, loops)
        emulated = drawn(parse_scenario(text, name="made", source="the scenario"), held_out)
        for name, seconds in recorded.seconds.items():
            of = [np.quantile(one, list(LEVELS.values())) for one in (seconds, emulated.seconds[name])]
            errors = "".join(f"{100 * (b / a - 1):8.1f}" for a, b in zip(*of, strict=True))
            print(f"{f'{of_loop:g}, {of_round:g}':24}{name:8}{errors}", flush=True)


# Loads


class _Drawing:
    """Any of the loops, whoever asks when."""

    def __init__(self, loops: Sequence[LoopWork], seed: str) -> None:
        self._loops, self._random = loops, random.Random(seed)

    def __call__(self, now_ns: int, agent: int) -> LoopWork:
        return self._random.choice(self._loops)


def loads(loops: int, seconds: float = 4000.0) -> None:
    """Print the table."""
    shape = shape_of(0.2, 0.15)
    records = list(made_up(shape, loops))
    text = written(fit_of(fit_run(run_of(loops), records), records))
    tape = Tape(parse_scenario(text, name="made", source="the scenario"), 0)
    recorded = [true_work(shape, loop) for loop in range(loops)]
    emulated = [drawn_work(tape, loop) for loop in range(4 * loops)]
    gathered = parse_strategy("gathered")
    print(f"{loops} loops recorded; {seconds:g} s of each load. Errors in %, of refusals in points.")
    print(f"{'search':10}{'agents':>7}" + "".join(f"{name:>14}" for name in Figures._fields))
    for kind in ("refuse", "queue", "share"):
        servers = (
            Server("fetch", Rule("none")),
            Server("search", Rule(kind, 20)),
            Server("store", Rule("none")),
        )
        system = System(SHAPED, servers, (0, 1, 2), Server("the model", Rule("none")))
        for users in (30, 60):
            load, trials = SimulatedLoad(users), Trials(seconds)
            found = []
            for work in (recorded, emulated):
                drawing = _Drawing(work, f"{kind}/{users}")
                run = simulate(system, gathered, load, drawing, trials)
                found.append(figures_of(run, gathered, users))
            cells = [
                100 * (b - a if name in ("failure_rate", "refused_share") else b / a - 1 if a else 0.0)
                for name, a, b in zip(Figures._fields, *found, strict=True)
            ]
            shown = "".join(f"{cell:14.1f}" for cell in cells)
            print(f"{kind:10}{users:7}{shown}   ({found[0].refused_share:.1%} refused)", flush=True)


# Runs


class Seen(NamedTuple):
    """What the loops of a run had, an array a loop: seconds by tool (or `model`), and refused tries."""

    seconds: dict[str, list[np.ndarray]]
    refused: dict[str, list[np.ndarray]]


def seen(path: Path, users: int) -> Seen:
    """Of the loops that started while `users` were measured."""
    directory = RunDirectory.open(path)
    trials = {one.index: one for one in directory.load().trials if one.users == users}
    loops = [
        record
        for record in directory.records()
        if (trial := trials.get(-1 if record.trial is None else record.trial)) is not None
        and trial.started_ns <= record.started_ns < trial.ended_ns
    ]
    names = sorted({call.name for record in loops for call in record.tool_calls})
    found = Seen({name: [] for name in (*names, "model")}, {name: [] for name in (*names, "model")})
    for record in loops:
        tries = [one for round_ in record.rounds for one in round_.model.attempts]
        took = [(one.ended_ns - one.started_ns) / 1e9 for one in tries if one.status == 200]
        found.seconds["model"].append(np.array(took))
        found.refused["model"].append(np.array([one.status == 429 for one in tries], dtype=float))
        for name in names:
            calls = [call for call in record.tool_calls if call.name == name and call.started_ns is not None]
            took = [(call.ended_ns - (call.started_ns or 0)) / 1e9 for call in calls if call.status == "ok"]
            found.seconds[name].append(np.array(took))
            refused = [call.error_type in ("http_429", "http_503") for call in calls]
            found.refused[name].append(np.array(refused, dtype=float))
    return found


def table(truth: Seen, emulated: Seen, factor: float) -> tuple[int, int]:
    """Print one; returns (figures, those within their goals)."""
    draw = np.random.default_rng(0)
    good = total = 0
    for name in truth.seconds:
        cells = []
        for level, p in LEVELS.items():
            a, b = (np.quantile(np.concatenate(one.seconds[name]), p) for one in (truth, emulated))
            resampled = [
                [np.quantile(_resampled(one.seconds[name], draw), p) for _ in range(200)]
                for one in (truth, emulated)
            ]
            ratios = np.log(resampled[1]) - np.log(resampled[0])
            noise = 100 * (np.quantile(ratios, 0.975) - np.quantile(ratios, 0.025)) / 2
            error = 100 * (b / a - 1)
            total, good = total + 1, good + (abs(error) <= GOALS[level])
            cells.append(f"{a:7.3f} {b:7.3f} {error:+6.1f} % ± {noise:4.1f}")
        a, b = (np.concatenate(one.refused[name]).mean() for one in (truth, emulated))
        points = 100 * (b - a)
        total, good = total + 1, good + (abs(points) <= GOALS["refused"])
        print(f"{factor:3g} x {name:8}" + " | ".join(cells) + f" | {a:5.1%} {b:5.1%} {points:+5.1f} points")
    return total, good


def _resampled(loops: Sequence[np.ndarray], draw: np.random.Generator) -> np.ndarray:
    return np.concatenate([loops[place] for place in draw.integers(0, len(loops), len(loops))])


def runs(arguments: argparse.Namespace) -> None:
    folder, users = arguments.out.resolve(), arguments.users
    folder.mkdir(parents=True, exist_ok=True)
    client = folder / "client.toml"
    names = ("search", "fetch", "store")
    client.write_text(CLIENT + "".join(CLIENT_TOOL.format(name=name) for name in names))
    server = (
        *("-m", "tests.capacity_server", "--seed", str(SEED)),
        *KINDS[arguments.kind](round(users * 2 / 3)),
        *(*TOOLS, *SHAPE),
    )
    truth = folder / "truth"
    if not truth.exists():
        with served(server) as url:
            levels = f"{users // 4},{users},{2 * users}"
            compare(truth, url, client, arguments.seconds, "--levels", levels)
    mine = folder / "mine.toml"
    mine.unlink(missing_ok=True)
    recording = folder / "recording"
    _without_level(_only(truth), recording, 2 * users)
    command = (sys.executable, "-m", "profiler", "scenario", "--from", str(recording), "-o", str(mine))
    subprocess.run(command, check=True, cwd=ROOT, timeout=300)
    print(f"{mine.name}: {mine.stat().st_size:,} bytes")
    emulated = folder / "emulated"
    emulator = ("-m", "profiler", "emulate", "--port", "0", "--scenario", str(mine), "--seed", "7")
    with served(emulator) as url:
        compare(emulated, url, mine, arguments.seconds, "--levels", f"{users},{2 * users}")
    report(folder, users)


def report(folder: Path, users: int) -> None:
    """The table of runs that were made."""
    heads = " | ".join(f"{level} true, emulated, error" for level in LEVELS)
    print(f"load  what    {heads} | refused")
    total = good = 0
    for factor in (1, 2):
        pair = [seen(_only(folder / name), factor * users) for name in ("truth", "emulated")]
        figures, within = table(pair[0], pair[1], factor)
        total, good = total + figures, good + within
    print(f"{good} of {total} figures within their goals (3 %, 3 %, 10 %, 2 points)")


def _without_level(path: Path, copy: Path, users: int) -> None:
    """The recording that the scenario is written from: what was run with more users is held out of it."""
    from dataclasses import replace

    from profiler import records

    shutil.rmtree(copy, ignore_errors=True)
    directory = RunDirectory.open(path)
    run = directory.load()
    kept = [one for one in run.trials if one.users != users]
    shutil.copytree(path, copy)
    target = RunDirectory.open(copy)
    target.save(replace(run, trials=tuple(kept)))
    numbers = {one.index for one in kept}
    lines = [records.encode(one) + b"\n" for one in directory.records() if one.trial in numbers]
    target.records_path.write_bytes(b"".join(lines))


def _only(folder: Path) -> Path:
    return max(path for path in folder.iterdir() if (path / "summary.json").exists())


def compare(out: Path, url: str, scenario: Path, seconds: float, *load: str) -> None:
    """Run `profiler compare` there, gathered."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "profiler", "compare", "--scenario", str(scenario), "--seed", str(SEED)]
    command += ["--base-url", f"{url}/v1", "--tools-url", url, "--strategy", "gathered", *load]
    command += ["--duration", f"{seconds:g}s", "--blocks", "1", "--calibrate", "0", "--no-metrics"]
    command += ["--allow-saturated", "--quiet", "--json", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=900)
    if not out.exists():
        raise SystemExit(done.stderr)


@contextlib.contextmanager
def served(arguments: Sequence[str]) -> Iterator[str]:
    """The URL of a server that runs meanwhile; it prints its port, or its URL."""
    command = [*_first(), sys.executable, *arguments]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert server.stdout is not None
        port = server.stdout.readline().strip().rpartition(":")[2]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.communicate()


def _first() -> list[str]:
    """What has a command come before other processes; nothing where that is not allowed."""
    prefix = ["chrt", "-f", "1"]
    with contextlib.suppress(OSError):
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
            return prefix
    return []


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("draws", "loads", "runs", "report"))
    parser.add_argument("--out", type=Path, default=Path("calibration"))
    parser.add_argument("--loops", type=int, default=1500)
    parser.add_argument("--users", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kind", choices=KINDS, default="refuse")
    arguments = parser.parse_args()
    if arguments.what == "draws":
        draws(arguments.loops)
    elif arguments.what == "loads":
        loads(arguments.loops)
    elif arguments.what == "runs":
        runs(arguments)
    else:
        report(arguments.out, arguments.users)
    return 0


if __name__ == "__main__":
    sys.exit(main())
