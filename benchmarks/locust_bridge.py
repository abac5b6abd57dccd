"""What Locust costs: loops a second of our agents under Locust ÷ of a plain uvloop script.

    python benchmarks/locust_bridge.py [--agents 256] [--seconds 5] [--repeats 5]

Both sides run the same `ToolLoop`, tools and client on the `instant` scenario, one process on
one core, the emulator on another. Plain, patched (Locust as it comes) and unpatched
(LOCUST_SKIP_MONKEY_PATCH=1) runs are interleaved in changing order; the figures are medians over
the repeats, the ratio that of paired repeats. Agents that start together stay in step, so loops in
flight at the end are waited for and counted, with their time. Needs two cores and Linux.
"""

from __future__ import annotations

import argparse
import asyncio
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


def compare(arguments: argparse.Namespace, client_core: int, emulator_core: int) -> int:
    from profiler.emulator.process import start_emulator

    rates: dict[tuple[str, str], list[float]] = {(p, m): [] for p in PROVIDERS for m in MODES}
    with start_emulator("instant") as emulator:
        os.sched_setaffinity(emulator.pid, {emulator_core})
        os.sched_setaffinity(0, {client_core})  # what is started from here on inherits it
        for repeat, provider in itertools.product(range(arguments.repeats), PROVIDERS):
            shift = repeat % len(MODES)
            for mode in (*MODES[shift:], *MODES[:shift]):
                run = run_plain if mode == "plain" else run_locust
                rate = run(mode, provider, emulator.url, arguments.agents, arguments.seconds)
                rates[provider, mode].append(rate)
                print(f"{repeat + 1}/{arguments.repeats} {provider:10} {mode:10} {rate:7.1f} loops/s")
    print(f"\n{arguments.agents} agents, instant, one core; medians of {arguments.repeats} repeats")
    print(f"{'provider':10}  {'mode':10} {'loops/s':>8} {'ratio':>6}  (lowest, highest)")
    failed = False
    for (provider, mode), values in rates.items():
        ratios = [value / base for value, base in zip(values, rates[provider, "plain"], strict=True)]
        ratio = statistics.median(ratios)
        failed |= ratio < TARGET
        spread = "" if mode == "plain" else f"  ({min(ratios):.3f}, {max(ratios):.3f})"
        print(f"{provider:10}  {mode:10} {statistics.median(values):8.1f} {ratio:6.3f}{spread}")
    print(f"target: at least {TARGET}: {'not reached' if failed else 'reached'}")
    return 1 if failed else 0


def run_plain(mode: str, provider: str, url: str, agents: int, seconds: float) -> float:
    command = [sys.executable, __file__, "--plain", provider, "--base-url", url]
    command += ["--agents", str(agents), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60)
    return float(done.stdout)


def run_locust(mode: str, provider: str, url: str, agents: int, seconds: float) -> float:
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
        subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=seconds + 60
        )
        directory = RunDirectory.open(next(Path(out).iterdir()))
        trial = directory.load().trials[0]
        done = sum(record.trial == 0 and record.status == "ok" for record in directory.records())
        return done / ((trial.drained_ns - trial.started_ns) / 1e9)


def plain(provider: str, url: str, agents: int, seconds: float) -> int:
    """The yardstick: the same agents as tasks of a script, nothing recorded. Prints loops a second."""
    import uvloop

    os.environ["PROFILER_TOOLS_URL"] = url

    async def run() -> float:
        from profiler.loop import ToolLoop
        from profiler.providers import make_provider
        from profiler.scenario import load_scenario
        from profiler.scenario_tools import scenario_tools
        from profiler.strategies import Gathered
        from profiler.tool_http import close_tool_client

        model = make_provider(provider, base_url=url)
        loop = ToolLoop(model, scenario_tools(load_scenario("instant")), Gathered())
        await loop.run("Warm up.")
        gc.collect()
        gc.freeze()  # as the load test does: else the yardstick would pay for collections that ours is spared
        numbers, done = itertools.count(), 0
        start = time.monotonic()

        async def agent(name: str) -> None:
            nonlocal done
            while time.monotonic() - start < seconds:
                number = next(numbers)
                await loop.run(f"Question {number}: call the tools.", number=number, agent=name)
                done += 1

        await asyncio.gather(*(agent(f"a{n}") for n in range(agents)))
        rate = done / (time.monotonic() - start)
        await model.client.close()
        await close_tool_client()
        return rate

    print(uvloop.run(run()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
