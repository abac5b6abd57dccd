"""`profiler predict` against what then happens: ladders are recorded, cells predicted, run, and compared.

    python -m benchmarks.prediction record  --out /tmp/truth [--only emu-refuse,oth-queue]
    python -m benchmarks.prediction run     --out /tmp/truth [--seconds 40] [--blocks 3]
    python -m benchmarks.prediction predict --out /tmp/truth
    python -m benchmarks.prediction table   --out /tmp/truth      of what has been predicted, again

`record` runs a ladder of loads past the capacity on each kind of server (`prediction_servers.py`); `run` one
strategy under one load, some 20 times for each four kinds, on the same servers with other seeds; `predict`
predicts these cells from the ladders, and prints the table (`prediction_table.py`). Each phase keeps what it
finds in `--out`; `record` and `run` leave out what is there already, so phases may run at different times, or
again after they were stopped. A ladder of 2 × 10 s takes some 5 minutes, a cell of 40 s one.

The bands of a prediction cannot be narrower than what a cell's own noise leaves: some 1,000 loops in each
(`--seconds 100 --speed 2.5`) come near the goals for rates, on a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.prediction_noise import RELATIVE, chains_of, intervals
from benchmarks.prediction_servers import LEVELS, ROOT, Cell, Kind, kinds
from benchmarks.prediction_table import Pair, report

LATE = 0.02
"""The share of a figure in `STEPS` that may be the busy machine's."""
STEPS = ("loop p50", "loop p95", "model p50")
"""Model requests too: a loop is many steps, each as late as they are."""
LADDER_STRATEGIES = ("gathered", "sequential")


def record(kind: Kind, folder: Path, arguments: argparse.Namespace) -> None:
    """The ladder of a kind, as a run directory in `ladder`."""
    ladder = folder / "ladder"
    if ladder.exists():
        return
    strategies = [word for strategy in LADDER_STRATEGIES for word in ("--strategy", strategy)]
    levels = ("--levels", ",".join(map(str, LEVELS)))
    turns = len(LADDER_STRATEGIES) * len(LEVELS)
    with kind.target(folder, kind.seed) as target:
        given = (*target, "--for-prediction", *strategies, *levels)
        kept = _compare(folder, ladder, given, arguments, turns)
    summary = json.loads((kept / "summary.json").read_text())
    for warning in summary["warnings"]:
        print(f"  {kind.name}: {warning['detail']}", flush=True)


def run(kind: Kind, folder: Path, arguments: argparse.Namespace) -> None:
    """The cells of a kind: their run directories in `cells`, their figures in cells.json.

    Those that a busy machine spoiled are run again. Without that file, the figures of all runs that are kept
    are computed again.
    """
    path = folder / "cells.json"
    cells: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for cell in kind.cells:
        if cell.name in cells and cells[cell.name]["valid"]:
            continue
        kept = folder / "cells" / cell.name
        if cell.name in cells:
            shutil.rmtree(kept)
        if not kept.exists():
            with kind.target(folder, kind.cell_seed(cell)) as target:
                given = (*target, "--strategy", cell.strategy, "--users", str(cell.users))
                _compare(folder, kept, given, arguments, 1)
        run_directory = next(kept.iterdir())
        cells[cell.name] = asdict(cell) | {"users": cell.users} | figures_of_run(run_directory)
        path.write_text(json.dumps(cells, indent=1))
        print(f"  {kind.name} {cell.name}: {_shown(cells[cell.name])}", flush=True)


def predict(kind: Kind, folder: Path, arguments: argparse.Namespace) -> None:
    """What `profiler predict` says of each cell that was run, in predictions.json."""
    kept = (arguments.predictions or arguments.out) / kind.name
    kept.mkdir(parents=True, exist_ok=True)
    ladder = next((folder / "ladder").iterdir())
    cells = json.loads((folder / "cells.json").read_text())
    predictions: dict[str, Any] = {}
    for cell in kind.cells:
        if cell.name not in cells:
            continue
        predictions[cell.name] = _predicted(ladder, cell, cells[cell.name], arguments.python)
        (kept / "predictions.json").write_text(json.dumps(predictions, indent=1))
        print(f"  {kind.name} {cell.name}: {predictions[cell.name]['seconds']:.1f} s", flush=True)


def _predicted(ladder: Path, cell: Cell, truth: Mapping[str, Any], python: str) -> dict[str, Any]:
    command = [python, "-m", "profiler", "predict", str(ladder.resolve()), "--json"]
    command += ["--strategy", cell.strategy, "--users", str(cell.users)]
    # The noise of a run of this length belongs into the bands.
    command += ["--duration", f"{truth['measured_seconds']:g}s", "--blocks", str(truth["blocks"])]
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False, cwd=ladder.parent
        )
        output, errors = done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        output, errors = "", "no answer within 300 s"
    found: dict[str, Any] = {"seconds": time.monotonic() - began, "figures": {}, "said": []}
    try:
        answer = json.loads(output)
    except ValueError:
        return found | {"said": [errors.strip().splitlines()[-1] if errors.strip() else "no JSON"]}
    strategies = answer.get("strategies") or [{}]
    said = [*(answer.get("refused") or ()), *(strategies[0].get("refused") or ())]
    return found | {
        "figures": figures(strategies[0]),
        "said": list(dict.fromkeys(_sentence(one) for one in said)),
    }


def _sentence(refused: Any) -> str:
    return str(refused["sentence"]) if isinstance(refused, dict) else str(refused)


def table(chosen: Sequence[Kind], out: Path, predicted: Path) -> list[Pair]:
    """Every cell that was run and predicted; the predictions are in `predicted`."""
    pairs = []
    for kind in chosen:
        path = predicted / kind.name / "predictions.json"
        if not path.exists():
            continue
        cells = json.loads((out / kind.name / "cells.json").read_text())
        predictions = json.loads(path.read_text())
        for name, found in predictions.items():
            truth = cells[name]
            pairs.append(
                Pair(
                    server=kind.name,
                    strategy=truth["strategy"],
                    users=truth["users"],
                    truth=truth["figures"],
                    predicted=found["figures"],
                    said=tuple(found["said"]),
                    valid=truth["valid"],
                )
            )
    return pairs


# Figures: (value, low, high) by name; low and high are None where there is no interval.

Figures = dict[str, tuple[float, float | None, float | None]]
_PLAIN = ("throughput", "goodput", "failure_rate", "refused_share")


def figures(strategy: Mapping[str, Any]) -> Figures:
    """Those of a strategy of a summary, of a run or a prediction."""
    found = {"p50": (strategy.get("loop_seconds") or {}).get("p50")}
    found["p95"] = (strategy.get("loop_seconds") or {}).get("p95")
    found |= {name: strategy.get(name) for name in _PLAIN}
    for tool, of_tool in (strategy.get("tools") or {}).items():
        found |= {f"{tool} {level}": of_tool["seconds"].get(level) for level in ("p50", "p95")}
    return {
        name: (one, None, None) if isinstance(one, int | float) else (one["value"], one["low"], one["high"])
        for name, one in found.items()
        if one is not None and (isinstance(one, int | float) or one["value"] is not None)
    }


def figures_of_run(path: Path) -> dict[str, Any]:
    """Those of a run of one strategy, and what it says of itself."""
    from profiler.rundir import RunDirectory

    summary = json.loads((path / "summary.json").read_text())
    strategy = summary["strategies"][0]
    directory = RunDirectory.open(path)
    trials = directory.load().trials
    chains = chains_of(directory)
    attempts, refused = sum(one.attempts for one in chains), sum(one.refused for one in chains)
    strategy["refused_share"] = refused / attempts if attempts else 0.0
    found = figures(strategy)
    for name, (low, high) in intervals(chains).items():
        if name in found:
            value = found[name][0]
            bounds = (value * low, value * high) if name in RELATIVE else (value + low, value + high)
            found[name] = (value, *bounds)
    # Not the tools: one that refuses in 2 ms is timed badly on a busy machine, and loops of seconds are not.
    parts = [one for one in strategy["client_parts"] if one["figure"] in STEPS]
    late = max(one["late_seconds"] / one["seconds"] for one in parts)
    if not summary["valid"]:
        found = {name: figure for name, figure in found.items() if " " not in name}
    return {
        "figures": found,
        "valid": late <= LATE,
        "late": late,
        "warnings": [one["kind"] for one in summary["warnings"]],
        "loops": strategy["loops"]["due"],
        "blocks": len(trials),
        "measured_seconds": round(sum(one.ended_ns - one.started_ns for one in trials) / 1e9, 1),
        "attempts": attempts,
        "refused": refused,
    }


def _shown(cell: Mapping[str, Any]) -> str:
    values = {name: one[0] for name, one in cell["figures"].items() if " " not in name}
    shown = "  ".join(f"{name} {value:.3g}" for name, value in values.items())
    return f"{shown}  ({cell['loops']} loops{'' if cell['valid'] else ', INVALID'})"


def _compare(
    folder: Path, out: Path, given: Sequence[str], arguments: argparse.Namespace, turns: int
) -> Path:
    """Run it; its run directory, which is moved into `out` when it is complete."""
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "profiler",
        "compare",
        *given,
        "--out",
        str(partial),
        "--quiet",
        "--json",
    ]
    command += ["--duration", f"{arguments.seconds:g}s", "--blocks", str(arguments.blocks)]
    command += ["--calibrate", "0", "--no-metrics", "--allow-saturated"]
    longest = turns * (arguments.seconds + 45 * arguments.blocks) + 60
    done = subprocess.run(command, capture_output=True, text=True, timeout=longest, check=False, cwd=ROOT)
    found = [path for path in partial.glob("*") if (path / "summary.json").exists()]
    if not found:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    out.mkdir(parents=True, exist_ok=True)
    kept = out / found[0].name
    found[0].rename(kept)
    shutil.rmtree(partial)
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("phase", choices=("record", "run", "predict", "table"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(kinds()), help="kinds of server")
    parser.add_argument("--speed", type=float, default=1.0, help="of all servers: the same in every phase")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="measured of each strategy under each load"
    )
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="interpreter whose profiler predicts: that of another checkout",
    )
    parser.add_argument("--predictions", type=Path, help="where predictions are kept (default: in --out)")
    arguments = parser.parse_args()
    every = kinds(arguments.speed)
    chosen = [every[name] for name in arguments.only.split(",")]
    phases: dict[str, Callable[[Kind, Path, argparse.Namespace], None]] = {
        "record": record,
        "run": run,
        "predict": predict,
    }
    for kind in chosen if arguments.phase in phases else ():
        folder = arguments.out / kind.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "true.json").write_text(json.dumps(kind.true(), indent=1))
        print(f"{arguments.phase} {kind.name}", flush=True)
        phases[arguments.phase](kind, folder, arguments)
    if arguments.phase in ("predict", "table"):
        return report(table(chosen, arguments.out, arguments.predictions or arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
