"""What Locust costs: loops a second of our agents under Locust ÷ of a plain uvloop script.

    python benchmarks/locust_bridge.py [--agents 256] [--seconds 5] [--repeats 5]

Both sides run the same `ToolLoop`, tools and client on the `instant` scenario, one process on
one core, the emulator on another. Plain, patched (Locust as it comes) and unpatched
(LOCUST_SKIP_MONKEY_PATCH=1) runs are interleaved in changing order; the figures are medians over
the repeats, the ratio that of paired repeats. Agents that start together stay in step, so loops in
flight at the end are waited for and counted, with their time. On a machine that is busy with
other things the rate says little; CPU per loop, sampled from /proc, still does. Needs two cores
and Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MODES = ("plain", "patched", "unpatched")
PROVIDERS = ("openai", "anthropic")
TARGET = 0.9


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plain", metavar="PROVIDER", help=argparse.SUPPRESS)
    parser.add_argument("--base-url", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        return plain(arguments.plain, arguments.base_url, arguments.agents, arguments.seconds)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("needs two cores: one for the client, one for the emulator", file=sys.stderr)
        return 2
    return compare(arguments, client_core=cores[0], emulator_core=cores[1])


@dataclasses.dataclass(frozen=True)
class Measured:
    """Loops a second, and loops per second of client CPU."""

    rate: float
    per_cpu_second: float


def compare(arguments: argparse.Namespace, client_core: int, emulator_core: int) -> int:
    from profiler.emulator.process import start_emulator

    measured: dict[tuple[str, str], list[Measured]] = {(p, m): [] for p in PROVIDERS for m in MODES}
    with start_emulator("instant") as emulator:
        os.sched_setaffinity(emulator.pid, {emulator_core})
        os.sched_setaffinity(0, {client_core})  # what is started from here on inherits it
        for repeat, provider in itertools.product(range(arguments.repeats), PROVIDERS):
            shift = repeat % len(MODES)
            for mode in (*MODES[shift:], *MODES[:shift]):
                run = run_plain if mode == "plain" else run_locust
                got = run(mode, provider, emulator.url, arguments.agents, arguments.seconds)
                measured[provider, mode].append(got)
                print(
                    f"{repeat + 1}/{arguments.repeats} {provider:10} {mode:10} {got.rate:7.1f} loops/s"
                    f" {1e3 / got.per_cpu_second:6.2f} ms CPU a loop",
                    flush=True,
                )
    print(f"\n{arguments.agents} agents, instant, one core; medians of {arguments.repeats} repeats")
    print(
        f"{'provider':10} {'mode':10} {'loops/s':>8} {'ratio':>6} {'lowest':>7} {'highest':>8} {'by CPU':>7}"
    )
    failed = False
    for (provider, mode), values in measured.items():
        pairs = list(zip(values, measured[provider, "plain"], strict=True))
        ratios = [value.rate / base.rate for value, base in pairs]
        by_cpu = statistics.median(value.per_cpu_second / base.per_cpu_second for value, base in pairs)
        ratio = statistics.median(ratios)
        failed |= ratio < TARGET
        rate = statistics.median(value.rate for value in values)
        spread = f"{min(ratios):7.3f} {max(ratios):8.3f}"
        print(f"{provider:10} {mode:10} {rate:8.1f} {ratio:6.3f} {spread} {by_cpu:7.3f}")
    print(f"target: a ratio of at least {TARGET}: {'not reached' if failed else 'reached'}")
    return 1 if failed else 0


def run_plain(mode: str, provider: str, url: str, agents: int, seconds: float) -> Measured:
    command = [sys.executable, __file__, "--plain", provider, "--base-url", url]
    command += ["--agents", str(agents), "--seconds", str(seconds)]
    output, cpu = watch(command, dict(os.environ), seconds + 60)
    start_ns, end_ns, done = map(int, output.split())
    return Measured(done / ((end_ns - start_ns) / 1e9), done / cpu_between(cpu, start_ns, end_ns))


def run_locust(mode: str, provider: str, url: str, agents: int, seconds: float) -> Measured:
    from profiler.rundir import RunDirectory

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if mode == "unpatched":
        environment["LOCUST_SKIP_MONKEY_PATCH"] = "1"
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable,
            "-m",
            "locust",
            "-f",
            str(ROOT / "locustfiles" / "compare.py"),
            "--headless",
        ]
        command += ["--only-summary", "-u", str(agents), "-r", str(agents), "--strategy", "gathered"]
        command += ["--provider", provider, "--base-url", url, "--scenario", "instant", "--out", out]
        command += ["--trial-seconds", str(seconds), "--blocks", "1", "--exit-code-on-error", "0"]
        command += ["--loglevel", "ERROR", "--calibrate", "0"]
        _, cpu = watch(command, environment, seconds + 60)
        directory = RunDirectory.open(next(Path(out).iterdir()))
        trial = directory.load().trials[0]
        done = sum(record.trial == 0 and record.status == "ok" for record in directory.records())
        seconds = (trial.drained_ns - trial.started_ns) / 1e9
        return Measured(done / seconds, done / cpu_between(cpu, trial.started_ns, trial.drained_ns))


def watch(
    command: list[str], environment: dict[str, str], seconds: float
) -> tuple[str, list[tuple[int, float]]]:
    """Run to the end; its standard output, and its CPU seconds so far at many monotonic times."""
    samples: list[tuple[int, float]] = []
    tick = os.sysconf("SC_CLK_TCK")
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=errors)
        deadline = time.monotonic() + seconds
        while process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
                raise TimeoutError(f"no end after {seconds:.0f} s: {' '.join(command)}")
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
                samples.append((time.monotonic_ns(), (int(fields[11]) + int(fields[12])) / tick))
            time.sleep(0.05)
        if process.returncode != 0:
            errors.seek(0)
            raise RuntimeError(f"exit code {process.returncode}: {' '.join(command)}\n{errors.read()}")
        output.seek(0)
        return output.read(), samples


def cpu_between(samples: list[tuple[int, float]], start_ns: int, end_ns: int) -> float:
    """CPU seconds used between two times, to a sample's resolution."""
    inside = [cpu for at_ns, cpu in samples if start_ns <= at_ns <= end_ns]
    return inside[-1] - inside[0]


def plain(provider: str, url: str, agents: int, seconds: float) -> int:
    """The yardstick: the same agents as tasks of a script, nothing recorded. Prints start, end and loops."""
    import uvloop

    async def run() -> str:
        from profiler.loop.loop import ToolLoop
        from profiler.providers import make_provider
        from profiler.scenarios import load_scenario
        from profiler.scenarios.tools import close_tool_clients, scenario_tools
        from profiler.strategies import Gathered

        model = make_provider(provider, base_url=url)
        loop = ToolLoop(model, scenario_tools(load_scenario("instant"), url), Gathered())
        await loop.run("Warm up.")
        gc.collect()
        gc.freeze()  # as the load test does: else the yardstick would pay for collections that ours is spared
        numbers, done = itertools.count(), 0
        start_ns = time.monotonic_ns()

        async def agent(name: str) -> None:
            nonlocal done
            while time.monotonic_ns() - start_ns < seconds * 1e9:
                number = next(numbers)
                await loop.run(f"Question {number}: call the tools.", number=number, agent=name)
                done += 1

        await asyncio.gather(*(agent(f"a{n}") for n in range(agents)))
        end_ns = time.monotonic_ns()
        await model.client.close()
        await close_tool_clients()
        return f"{start_ns} {end_ns} {done}"

    print(uvloop.run(run()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
