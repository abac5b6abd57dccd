"""Whether *valid* means valid: what load tests report, held against the log of a server that is not ours.

    python benchmarks/validity.py --conditions 40 --seed 1 --keep /tmp/validity
    python benchmarks/validity.py --from 8 --to 16 --seed 1 --keep /tmp/validity   a slice of them
    python benchmarks/validity.py --again --keep /tmp/validity                     judge what is kept again

Each condition is a short `profiler compare` of five strategies against `tests/other_server.py`. Under some of
them the client is disturbed: stopped (SIGSTOP) for some milliseconds some times a second, its core shared
with a burner, or its container throttled (a cgroup of its own; needs root). Some conditions have more agents
than the process can run, or an agent that computes. The figures of a strategy are *off* when p50 or p95 of
loop, tool or model are more than 5 % and more than 2 ms from the same loops in the server's log (a loop: from
its first request received to its last answer sent). None that is off may be called valid; of those that are
not off at most 5 % may be called invalid.

Results are appended to `results.jsonl` in the folder that is kept. The exit code is 0 where both are met.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

SHARE, SECONDS = 0.05, 0.002
FALSE_ALARMS = 0.05
HERE = Path(__file__).resolve().parent
SERVER = HERE.parent / "tests" / "other_server.py"
BEHAVIOURS = (
    "constant",
    "heavy_tailed",
    "bimodal",
    "drifting",
    "stalling",
    "refusing",
    "queueing",
    "sharing",
)
KINDS = ("none", "none", "none", "stops", "stops", "burner", "throttle")
CROWD = 16
STRATEGIES = ("gathered", "sequential", "semaphore:2", "semaphore:4", "semaphore:8")
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Disturbance:
    """What is done to the client in one trial.

    `amount` is the length of a stop in seconds, the share of a core that a quota leaves, or the number of
    burners on its core; stops come `per_second` times a second.
    """

    kind: str = "none"
    amount: float = 0.0
    per_second: float = 0.0

    @classmethod
    def draw(cls, source: random.Random, kinds: Sequence[str]) -> Disturbance:
        kind = source.choice(kinds)
        if kind == "stops":
            return cls(kind, round(0.004 * 50 ** source.random(), 4), round(source.uniform(0.5, 8.0), 2))
        if kind == "burner":
            return cls(kind, source.choice((1, 1, 2, 4)))
        if kind == "throttle":
            return cls(kind, source.choice((0.1, 0.2, 0.3, 0.5, 0.8)))
        return cls(kind)

    def __str__(self) -> str:
        times = f" {self.per_second:g}/s" if self.per_second else ""
        return self.kind + (f" {self.amount:g}" if self.amount else "") + times


@dataclass(frozen=True)
class Condition:
    """One run: a server, agents, and a disturbance for each strategy.

    `rate`: loops a second that arrive whatever became of those before them; 0 is a closed load.
    """

    number: int
    behaviour: str
    seconds: float
    model_seconds: float
    servers: int
    calls: int
    users: int
    computing_seconds: float
    disturbances: dict[str, Disturbance]
    window_seconds: int = 5
    rate: float = 0.0

    @classmethod
    def draw(cls, seed: int, number: int, kinds: Sequence[str]) -> Condition:
        source = random.Random(f"{seed}/{number}")
        # Every other one is fast: what is off beside 30 ms is not off beside 600. Of those every other one is
        # disturbed whatever the strategy, since few are off that are not.
        seconds = 0.02 * 8 ** source.random() if number % 2 else 0.2 * 4 ** source.random()
        if number % 4 == 3:
            kinds = [kind for kind in kinds if kind != "none"]
        users, computing = source.randint(2, 4) + round(12 * seconds), 0.0
        if number % 8 == 5:
            users = source.choice((16, 24, 32, 48, 64, 100))
        elif number % 8 == 3:
            computing = round(0.001 * 50 ** source.random(), 4)
        strategies = source.sample(STRATEGIES, len(STRATEGIES))
        behaviour = source.choice(BEHAVIOURS)
        model_seconds = round(seconds * source.choice((1.0, 2.0)), 4)
        servers, calls = source.choice((2, 4, 8)), source.choice((1, 2, 3, 5))
        rate = 0.0
        if number % 5 == 2:  # near what the agents, or the server, can do
            rate = 0.8 * users / (2 * model_seconds + calls * seconds)
            if behaviour in ("queueing", "sharing"):
                rate = min(rate, 0.8 * servers / max(2 * model_seconds, calls * seconds))
        return cls(
            number=number,
            behaviour=behaviour,
            seconds=round(seconds, 4),
            model_seconds=model_seconds,
            servers=servers,
            calls=calls,
            users=users,
            computing_seconds=computing,
            disturbances={strategy: Disturbance.draw(source, kinds) for strategy in strategies},
            rate=round(rate, 2),
        )

    def said_of(self, strategy: str) -> str:
        """What disturbs the client under a strategy, by one word."""
        own = self.disturbances[strategy].kind
        return (
            own
            if own != "none"
            else "computing"
            if self.computing_seconds
            else "crowd"
            if self.users > 8
            else own
        )


@dataclass
class Judged:
    """One strategy of one condition. `deviations` maps `tool p50` to (reported, true) in seconds."""

    number: int
    what: str
    disturbance: str
    strategy: str
    loops: int
    deviations: dict[str, tuple[float, float]]
    called: tuple[str, ...]
    server_late: float
    sentences: tuple[str, ...] = field(default=())

    @property
    def worst(self) -> float:
        """The largest deviation, as a multiple of what is off."""
        return max(
            (min(abs(a / b - 1) / SHARE, abs(a - b) / SECONDS) for a, b in self.deviations.values()),
            default=0.0,
        )

    @property
    def off(self) -> bool:
        return self.worst > 1

    def line(self) -> str:
        shown = "  ".join(
            f"{name} {1e3 * a:.1f}/{1e3 * b:.1f} ({a / b - 1:+.0%})"
            for name, (a, b) in self.deviations.items()
        )
        verdict = (
            ("off" if self.off else "not off" if self.deviations else "too few")
            + ", "
            + ("/".join(self.called) or "valid")
        )
        wrong = "  <-- WRONG" if self.deviations and self.off != bool(self.called) else ""
        return f"{self.number:4} {self.what:58} {self.loops:4} loops  {shown}  {verdict}{wrong}"


# A condition:


def measure(condition: Condition, kept: Path) -> list[Judged]:
    """Run it, keep its run directory and the server's log in `kept`, and judge it."""
    kept.mkdir(parents=True, exist_ok=True)
    (kept / "condition.json").write_text(json.dumps(asdict(condition)))
    arguments = ["--behaviour", condition.behaviour, "--seconds", str(condition.seconds)]
    arguments += ["--model-seconds", str(condition.model_seconds), "--servers", str(condition.servers)]
    arguments += ["--calls", str(condition.calls), "--seed", str(condition.number)]
    server = subprocess.Popen([sys.executable, str(SERVER), *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        _run(condition, url, kept)
        with urllib.request.urlopen(f"{url}/log", timeout=30) as response:
            (kept / "log.json").write_bytes(response.read())
    finally:
        server.kill()
        server.communicate()
    return judge(kept)


def _run(condition: Condition, url: str, kept: Path) -> None:
    command = [sys.executable, "-m", "profiler", "compare", "--base-url", url, "--tools-url", url]
    command += [
        "--users",
        str(condition.users),
        "--duration",
        f"{condition.window_seconds}s",
        "--blocks",
        "1",
    ]
    if condition.rate:
        command += ["--arrivals", f"{condition.rate:g}/s"]
    for strategy in condition.disturbances:
        command += ["--strategy", strategy]
    command += ["--calibrate", "0", "--no-metrics", "--quiet", "--json", "--out", str(kept / "runs")]
    command += ["--drain", "10s"]
    environment = dict(os.environ)
    if condition.computing_seconds:
        command += ["--agent", "validity:computing_agent"]
        path = os.pathsep.join([str(HERE), *filter(None, [environment.get("PYTHONPATH")])])
        environment |= {"PYTHONPATH": path, "COMPUTING_SECONDS": str(condition.computing_seconds)}
    with (kept / "stderr.txt").open("w") as errors:
        client = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        try:
            with _disturbed(condition, client, kept / "runs"):
                client.wait(120)
        finally:
            if client.poll() is None:
                for process in family(client.pid):
                    _signal(process, signal.SIGKILL)
                client.wait()


@contextlib.contextmanager
def _disturbed(condition: Condition, client: subprocess.Popen[bytes], runs: Path) -> Iterator[None]:
    """Disturb the client in each trial, from when it begins to measure."""
    ended = threading.Event()

    def over() -> bool:
        return ended.is_set() or client.poll() is not None

    def measured() -> str | None:
        """The strategy that is being measured, None while none is."""
        for path in runs.glob("*/progress.jsonl"):
            lines = path.read_bytes().splitlines()
            with contextlib.suppress(IndexError, ValueError):
                now = json.loads(lines[-1])
                return str(now["strategy"]) if now["state"] == "measuring" else None
        return None

    def disturb() -> None:
        done: set[str] = set()
        while not over():
            strategy = measured()
            if strategy is None or strategy in done:
                ended.wait(0.03)
                continue
            done.add(strategy)
            disturbance = condition.disturbances[strategy]
            source = random.Random(f"{condition.number}/{strategy}")
            with _steady(disturbance, client.pid):
                while not over() and measured() == strategy:
                    if disturbance.kind == "stops":
                        stop(family(client.pid), disturbance.amount)
                        ended.wait(source.expovariate(disturbance.per_second))
                    else:
                        ended.wait(0.05)

    thread = threading.Thread(target=disturb, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(10)


@contextlib.contextmanager
def _steady(disturbance: Disturbance, pid: int) -> Iterator[None]:
    """A disturbance that goes on all the time."""
    if disturbance.kind == "throttle":
        with throttled(disturbance.amount, pid):
            yield
    elif disturbance.kind == "burner":
        cores = os.sched_getaffinity(0)
        pin = f"import os\nos.sched_setaffinity(0, {{{min(cores)}}})\nwhile True: pass"
        _pin(pid, {min(cores)})
        burners = [subprocess.Popen([sys.executable, "-c", pin]) for _ in range(int(disturbance.amount))]
        try:
            yield
        finally:
            for burner in burners:
                burner.kill()
                burner.wait()
            _pin(pid, cores)
    else:
        yield


def _pin(pid: int, cores: set[int]) -> None:
    for process in family(pid):
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{process}/task"):
                os.sched_setaffinity(int(thread), cores)


def family(pid: int) -> list[int]:
    """A process and those that it started, directly or not."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{one}/task"):
                found += map(int, Path(f"/proc/{one}/task/{thread}/children").read_text().split())
    return found


def stop(processes: Sequence[int], seconds: float) -> None:
    """Have processes stand still."""
    for process in processes:
        _signal(process, signal.SIGSTOP)
    time.sleep(seconds)
    for process in processes:
        _signal(process, signal.SIGCONT)


def _signal(process: int, which: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        os.kill(process, which)


@contextlib.contextmanager
def throttled(share: float, pid: int) -> Iterator[None]:
    """Hold a process and its family to a share of one core, by a cgroup of either version."""
    first = CGROUPS / "cpu" / "cpu.cfs_quota_us"
    group = (CGROUPS / "cpu" if first.parent.is_dir() else CGROUPS) / f"validity-{os.getpid()}"
    group.mkdir()
    try:
        if first.parent.is_dir():
            (group / "cpu.cfs_quota_us").write_text(str(int(share * 100_000)))
        else:
            (group / "cpu.max").write_text(f"{int(share * 100_000)} 100000")
        for process in family(pid):
            with contextlib.suppress(OSError):
                (group / "cgroup.procs").write_text(str(process))
        yield
    finally:
        for _ in range(100):
            for process in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    (group.parent / "cgroup.procs").write_text(process)
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.05)


def can_throttle() -> bool:
    return os.access(CGROUPS / "cpu", os.W_OK) or os.access(CGROUPS / "cgroup.subtree_control", os.W_OK)


def computing_agent(context: Any) -> Any:
    """A hand-written agent that computes for a while in each loop, as one parses or embeds something."""
    import aiohttp
    from openai import AsyncOpenAI, DefaultAioHttpClient

    from profiler.scenarios.tools import get_population

    client = context.profiler.instrument(
        AsyncOpenAI(base_url=context.openai_url, api_key="none", http_client=DefaultAioHttpClient())
    )
    context.on_close(client.close)
    population = context.profiler.tool(get_population.function)
    seconds = float(os.environ["COMPUTING_SECONDS"])

    async def tool(**arguments: Any) -> Any:
        try:
            return await population(**arguments)
        except aiohttp.ClientResponseError as error:  # a server that refuses
            return {"error": str(error)}

    async def one_loop() -> None:
        messages: list[Any] = [{"role": "user", "content": context.prompt}]
        while True:
            reply = await client.chat.completions.create(model="m", messages=messages)
            message = reply.choices[0].message
            until = time.thread_time() + seconds
            while time.thread_time() < until:
                pass
            if not message.tool_calls:
                return
            messages.append(message.model_dump(exclude_none=True))
            called = [partial(tool, **json.loads(call.function.arguments)) for call in message.tool_calls]
            results = await context.execute(*called)
            messages += [
                {"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)}
                for call, result in zip(message.tool_calls, results, strict=True)
            ]

    return one_loop


# What came of it:


def judge(kept: Path) -> list[Judged]:
    """The strategies of a condition: what was reported, what was true, what was called invalid."""
    from profiler.rundir import RunDirectory
    from profiler.statistics.summary import summarise
    from profiler.statistics.table import tabulate
    from profiler.statistics.windows import completed, measure

    condition = _condition(json.loads((kept / "condition.json").read_text()))
    log = json.loads((kept / "log.json").read_bytes())
    entries: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for entry in log["entries"]:
        if entry["loop"] is not None and entry["trial"] is not None:
            entries[entry["trial"], entry["loop"]].append(entry)
    paths = sorted((kept / "runs").glob("*/run.json"))
    if not paths:
        return []
    directory = RunDirectory.open(paths[0].parent)
    run, records = directory.load(), list(directory.records())
    table, summary = tabulate(records), summarise(run, records)
    found = []
    for group in measure(run, table):
        series: dict[str, tuple[list[int], list[int]]] = {
            name: ([], []) for name in ("loop", "tool", "model")
        }
        due = [records[row] for row in group.due]
        answered = {id(records[row]) for row in completed(table, group.due)}
        for record in due:
            seen = entries.get((record.trial or 0, record.number or 0), [])
            if not seen:
                continue
            for kind in ("tool", "model"):
                series[kind][1].extend(e["sent_ns"] - e["received_ns"] for e in seen if e["kind"] == kind)
            for one in record.rounds:
                if one.model.status != "cancelled":  # the log has none that was given up
                    series["model"][0].append(one.model.duration_ns)
                series["tool"][0].extend(
                    c.duration_ns
                    for c in one.tool_calls
                    if c.duration_ns is not None and c.status != "cancelled"
                )
            if id(record) in answered:
                series["loop"][0].append(record.ended_ns - record.due_ns)
                last, first = max(e["sent_ns"] for e in seen), min(e["received_ns"] for e in seen)
                series["loop"][1].append(last - first)
        deviations = {}
        for name, (reported, true) in series.items():
            if reported and true:
                for level, share in (("p50", 0.5), ("p95", 0.95)):
                    deviations[f"{name} {level}"] = (
                        float(np.quantile(reported, share)) / 1e9,
                        float(np.quantile(true, share)) / 1e9,
                    )
        concern = [
            w
            for w in summary.warnings
            if w.invalid and (not getattr(w, "strategies", ()) or group.strategy in w.strategies)
        ]
        found.append(
            Judged(
                condition.number,
                f"{condition.disturbances[group.strategy]} | {condition.behaviour}, "
                + (f"{condition.rate:g}/s, " if condition.rate else f"{group.users} agents, ")
                + (f"computing {condition.computing_seconds:g}, " if condition.computing_seconds else "")
                + group.strategy,
                condition.said_of(group.strategy),
                group.strategy,
                len(due),
                deviations,
                tuple(w.kind for w in concern),
                log["late_ns"] / 1e9,
                tuple(w.sentence for w in concern),
            )
        )
    return found


def _condition(data: dict[str, Any]) -> Condition:
    disturbances = {name: Disturbance(**one) for name, one in data.pop("disturbances").items()}
    return Condition(**data, disturbances=disturbances)


def report(found: Sequence[Judged]) -> bool:
    """Print both kinds of error, by disturbance; whether the goals are met."""
    judged = [one for one in found if one.deviations]
    print(f"\n{'':12}{'off':>6}{'called valid':>14}{'not off':>10}{'called invalid':>16}   called")
    rows: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        rows[one.disturbance].append(one)
    for name, group in [*sorted(rows.items()), ("all", judged)]:
        off, fine = [o for o in group if o.off], [o for o in group if not o.off]
        missed, alarms = [o for o in off if not o.called], [o for o in fine if o.called]
        kinds = Counter(kind for one in group for kind in one.called)
        said = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        print(f"{name:12}{len(off):6}{len(missed):14}{len(fine):10}{len(alarms):16}   {said}")
    late = sorted(one.server_late for one in judged)
    if late:
        middle = 1e3 * late[len(late) // 2]
        print(f"the server's own timers were late by {middle:.1f} ms at p99 in the median run")
    return not missed and len(alarms) <= FALSE_ALARMS * max(1, len(fine))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--conditions", type=int, default=100)
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--to", dest="last", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for runs, logs and results.jsonl")
    parser.add_argument("--again", action="store_true", help="run nothing, judge what is kept")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no condition after so long")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        keep = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found: list[Judged] = []
        if arguments.again:
            for kept in sorted(path.parent for path in keep.glob("*/log.json")):
                for one in judge(kept):
                    print(one.line())
                    found.append(one)
            return 0 if report(found) else 1
        kinds = [kind for kind in KINDS if kind != "throttle" or can_throttle()]
        began = time.monotonic()
        for number in range(arguments.first, arguments.last or arguments.conditions):
            kept = keep / f"{arguments.seed}-{number:04}"
            if (kept / "log.json").exists():
                continue
            if time.monotonic() - began > arguments.seconds:
                break
            for one in measure(Condition.draw(arguments.seed, number, kinds), kept):
                print(one.line(), flush=True)
                found.append(one)
                with (keep / "results.jsonl").open("a") as results:
                    results.write(json.dumps(asdict(one)) + "\n")
        return 0 if report(found) else 1


if __name__ == "__main__":
    sys.exit(main())
