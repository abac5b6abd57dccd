"""Whether a long load test stays as it began: memory, descriptors, threads, and when loops start.

    python benchmarks/soak.py [--minutes 10] [--rate 100] [--workers 1] [--blocks 1] [--every 5]

Open load, constant arrivals, scenario `instant`, the command as it comes (`/metrics` served, records
written). Every few seconds /proc says what each process holds; afterwards the records say how late
loops started against when they were due, minute by minute. Held against: memory of the Locust
processes within 5 % of what it was after the first minute, files and threads no more than then,
connections no more than the requests that were ever under way at once (idle ones are kept), and
starts no later at the end than at the beginning. Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import orjson

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from profiler.rundir import Run, RunDirectory  # noqa: E402
from tests.integration.locust_process import MARK, marked  # noqa: E402

SETTLED_SECONDS = 60.0
"""Until then a process is still growing into its work."""

MEMORY = 0.05
LAG_RATIO, LAG_SLACK_MS = 1.5, 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What one process held, `seconds` after loops began. Memory in MB."""

    seconds: float
    memory: float
    files: int
    sockets: int
    threads: int


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=100.0, help="loops a second")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks")
    arguments = parser.parse_args()
    print(f"load average at the start: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        samples = run(arguments, Path(place))
        if not samples:
            return 1
        (path,) = Path(place, "runs").iterdir()
        directory = RunDirectory.open(path)
        lags = lag_by_minute(directory)
        trials = directory.load()
        busiest = most_at_once(directory)
    print(f"load average at the end: {os.getloadavg()[0]:.1f}\n")
    show(samples, lags)
    return conclude(samples, lags, trials, arguments.rate, busiest)


def run(arguments: argparse.Namespace, place: Path) -> dict[str, list[Sample]]:
    """Run the load test; samples by process, taken while loops arrived. Empty when it failed."""
    mark = uuid.uuid4().hex
    command = [sys.executable, "-P", "-m", "profiler", "compare", "--scenario", "instant"]
    command += ["--strategy", "gathered", "--arrivals", f"constant:{arguments.rate:g}/s", "--users", "10"]
    command += ["--duration", f"{arguments.minutes * 60:g}s", "--blocks", str(arguments.blocks)]
    command += ["--workers", str(arguments.workers), "--allow-saturated", "--quiet"]
    samples: dict[str, list[Sample]] = defaultdict(list)
    with open(place / "said.txt", "w+") as said:
        process = subprocess.Popen(
            command,
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(ROOT), MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
        began: float | None = None
        names: dict[int, str] = {}
        while process.poll() is None:
            time.sleep(arguments.every if began is not None else 0.2)
            if began is None:
                if any(file.stat().st_size for file in place.glob("runs/*/records.jsonl")):
                    began = time.monotonic()
                continue
            seconds = time.monotonic() - began
            if seconds > arguments.minutes * 60 - arguments.every:
                continue  # it ends: what it sums up then is not what it holds
            for pid in marked(mark):
                name = names.setdefault(pid, role(pid, process.pid, names))
                with contextlib.suppress(OSError, ValueError):
                    samples[name].append(look(pid, seconds))
        said.seek(0)
        words = said.read()
    print(words if process.returncode else "\n".join(words.splitlines()[-6:]))
    if process.returncode:
        print(f"the load test failed: exit code {process.returncode}")
        return {}
    return dict(samples)


def role(pid: int, parent: int, known: dict[int, str]) -> str:
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    if "-m profiler.emulator" in command:
        kind = "emulator"
    elif "/locust/start.py" in command:
        kind = "locust"
    else:
        kind = "command" if pid == parent else "other"
    number = sum(name.startswith(kind) for name in known.values())
    return kind if not number else f"{kind} {number + 1}"


def look(pid: int, seconds: float) -> Sample:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    opened = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            opened.append(os.readlink(entry.path))
    sockets = sum(target.startswith("socket:") for target in opened)
    return Sample(
        seconds,
        int(fields["VmRSS"].split()[0]) / 1024,
        len(opened) - sockets,
        sockets,
        int(fields["Threads"]),
    )


def lag_by_minute(directory: RunDirectory) -> list[tuple[int, float, float]]:
    """(loops, median, p99) of every full minute: milliseconds from when a loop was due to its start."""
    minutes: dict[int, list[float]] = defaultdict(list)
    first: int | None = None
    for record in starts(directory.records_path):
        due, started = record
        first = due if first is None else first
        minutes[(due - first) // 60_000_000_000].append((started - due) / 1e6)
    found = []
    for minute in sorted(minutes):
        own = sorted(minutes[minute])
        found.append((len(own), statistics.median(own), own[int(0.99 * (len(own) - 1))]))
    whole = max(count for count, _, _ in found) * 0.5
    return [one for one in found if one[0] > whole]


def most_at_once(directory: RunDirectory) -> int:
    """Requests that were under way at once at most: to the model, and to the tools (each has its pool)."""
    model: list[tuple[int, int]] = []
    tools: list[tuple[int, int]] = []
    for record in directory.records():
        for round_ in record.rounds:
            for attempt in round_.model.attempts:
                model += [(attempt.started_ns, 1), (attempt.ended_ns, -1)]
            for call in round_.tool_calls:
                if call.started_ns is not None:
                    tools += [(call.started_ns, 1), (call.ended_ns, -1)]
    return sum(max(accumulate(step for _, step in sorted(steps)), default=0) for steps in (model, tools))


def starts(path: Path) -> Iterator[tuple[int, int]]:
    with open(path, "rb") as file:
        for line in file:
            record = orjson.loads(line)
            if record["intended_ns"] is not None and record["trial"] is not None:
                yield record["intended_ns"], record["started_ns"]


def show(samples: dict[str, list[Sample]], lags: list[tuple[int, float, float]]) -> None:
    names = sorted(samples)
    print(
        f"{'minute':>6}"
        + "".join(f"{name + ' MB':>14}{'files':>6}{'sockets':>8}{'thr':>4}" for name in names),
        end="",
    )
    print(f"{'loops':>8}{'lag p50':>9}{'p99 ms':>8}")
    last = max(sample.seconds for own in samples.values() for sample in own)
    for minute in range(int(last // 60) + 1):
        row = f"{minute + 1:6}"
        for name in names:
            own = [s for s in samples[name] if minute * 60 <= s.seconds < minute * 60 + 60]
            if own:
                memory = statistics.median(sample.memory for sample in own)
                row += f"{memory:13.1f}{max(s.files for s in own):6}"
                row += f"{max(s.sockets for s in own):8}{max(s.threads for s in own):4}"
            else:
                row += " " * 31
        if minute < len(lags):
            count, middle, worst = lags[minute]
            row += f"{count:8}{middle:9.2f}{worst:8.2f}"
        print(row)


def conclude(
    samples: dict[str, list[Sample]],
    lags: list[tuple[int, float, float]],
    run: Run,
    rate: float,
    requests: int,
) -> int:
    """Print the verdicts. `requests`: how many were under way at once at most."""
    failed = False
    print()
    for name, own in sorted(samples.items()):
        if not name.startswith("locust"):
            continue
        settled = [sample for sample in own if sample.seconds >= SETTLED_SECONDS]
        if len(settled) < 4:
            print(f"{name}: too short a run to tell")
            return 1
        begin = statistics.median(sample.memory for sample in settled[:3])
        most = max(sample.memory for sample in settled)
        growth = most / begin - 1
        files = max(s.files for s in settled) - max(s.files for s in settled[:3])
        threads = max(s.threads for s in settled) - max(s.threads for s in settled[:3])
        sockets = max(s.sockets for s in settled)
        room = max(s.sockets for s in settled[:3]) + requests
        holds = growth <= MEMORY and files <= 0 and threads <= 0 and sockets <= room
        failed |= not holds
        print(
            f"{name}: {begin:.1f} MB after a minute, at most {most:.1f} MB later ({growth:+.1%}), "
            f"{files:+} files, {threads:+} threads, {sockets} sockets (up to {requests} requests at once): "
            f"{'flat' if holds else 'NOT FLAT'}"
        )
    third = max(1, len(lags) // 3)
    early = statistics.median(middle for _, middle, _ in lags[:third])
    late = statistics.median(middle for _, middle, _ in lags[-third:])
    holds = late <= early * LAG_RATIO + LAG_SLACK_MS
    failed |= not holds
    print(
        f"starts: median lag {early:.2f} ms in the first third, {late:.2f} ms in the last: "
        f"{'no drift' if holds else 'THEY DRIFT'}"
    )
    window = sum(trial.ended_ns - trial.started_ns for trial in run.trials) / 1e9
    arrived, dropped = sum(t.arrived or 0 for t in run.trials), sum(t.dropped for t in run.trials)
    holds = abs(arrived / (window * rate) - 1) < 0.01 and not dropped
    failed |= not holds
    print(
        f"arrivals: {arrived} in {window:.1f} s, {arrived / window:.2f}/s of {rate:g}/s, {dropped} dropped: "
        f"{'as asked' if holds else 'NOT AS ASKED'}"
    )
    print("does not hold" if failed else "holds")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
