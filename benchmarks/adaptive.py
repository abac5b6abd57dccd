"""What adapts, against an emulator whose capacity falls to 40 % and comes back; and a herd of 429s there.

    python -m benchmarks.adaptive [--repeats 2] [--retries 0] [--herd]

Goodput (loops a second with every call answered) from 40 mean tool durations after each change on,
next to that of an oracle: a semaphore that is told the capacity at every moment. `aimd` is plain
AIMD, which cuts at every rejection.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.limiters import AIMD, Foreign
from profiler.emulator.process import start_emulator
from profiler.limits.limiter import FixedLimit
from profiler.loop.loop import ToolLoop
from profiler.providers import make_provider
from profiler.records import LoopRecord
from profiler.scenarios import load_scenario
from profiler.scenarios.tools import close_tool_clients, scenario_tools
from profiler.strategies import Gathered, Limited, Strategy

CAPACITY = 20
AGENTS = 24


@dataclass(frozen=True)
class Step:
    """Mean tool durations after each change: not looked at, and looked at. `scale`: seconds of one."""

    settle: int = 40
    measure: int = 80
    scale: float = 0.1

    @property
    def seconds(self) -> float:
        """Of each phase."""
        return (self.settle + self.measure) * self.scale

    def capacity_at(self, seconds: float) -> int:
        """What the tool serves at once, so long after the emulator's start."""
        return round(0.4 * CAPACITY) if int(seconds // self.seconds) == 1 else CAPACITY


SCENARIO = """
description = "a capacity that falls to two fifths and comes back"
prompt = "Task {number}"
time_scale = %g

[model]
first_token = { kind = "lognormal", median = 1.5, sigma = 0.5, max = 8 }
tokens_per_second = 50

[loop]
rounds = 1
fan_out = 8

[tools.lookup_part]
description = "Look one part up in the catalogue."
duration = { kind = "lognormal", median = 0.6065, sigma = 1.0, max = 20 }

[tools.lookup_part.capacity]
concurrent = %d
mode = "reject"
schedule = [ { after = %g, fraction = 0.4 }, { after = %g, fraction = 1.0 } ]

[tools.lookup_part.parameters]
type = "object"
required = ["number"]
properties.number = { type = "integer", minimum = 1000, maximum = 9999, description = "Part number." }
"""


def make(name: str, oracle: FixedLimit) -> Strategy:
    """A strategy by name; `oracle` is kept at the capacity by whoever runs it."""
    if name == "oracle":
        return Limited([Foreign("oracle", "adaptive", limiter=lambda: oracle)])
    if name == "aimd":
        return Limited(AIMD)
    return Gathered() if name == "gathered" else Limited(name)


def run(
    name: str, retries: int, seed: int, step: Step = Step()
) -> tuple[list[float], list[tuple[float, int]], int]:
    """(goodput in each of the three phases, the limit over time, calls refused)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.toml"
        phase = step.settle + step.measure
        path.write_text(SCENARIO % (step.scale, CAPACITY, phase, 2 * phase))
        with start_emulator(str(path), seed=seed) as emulator:
            return asyncio.run(_drive(name, retries, str(path), emulator.url, step))


async def _drive(
    name: str, retries: int, scenario: str, url: str, step: Step
) -> tuple[list[float], list[tuple[float, int]], int]:
    began = time.monotonic()
    ends = 3 * step.seconds
    oracle = FixedLimit(CAPACITY)
    strategy = make(name, oracle)
    tools = scenario_tools(load_scenario(scenario), url)
    for tool in tools:
        tool.retries = retries
    records: list[LoopRecord] = []
    limits: list[tuple[float, int]] = []
    model = make_provider("openai", base_url=url, model=None)
    loop = ToolLoop(model, tools, strategy, sinks=[records.append])

    async def agent(number: int) -> None:
        while time.monotonic() - began < ends:
            await loop.run(f"Task {number}", number=number, agent=str(number % AGENTS))
            number += AGENTS

    async def watch() -> None:
        while (now := time.monotonic() - began) < ends:
            oracle.limit = step.capacity_at(now)
            limits.append((now / step.scale, strategy.limit or 0))
            await asyncio.sleep(0.02)

    await asyncio.gather(watch(), *(agent(number) for number in range(AGENTS)))
    await model.client.close()
    await close_tool_clients()
    return _goodputs(records, int(began * 1e9), step), limits, _refused(records)


def _goodputs(records: Sequence[LoopRecord], began_ns: int, step: Step) -> list[float]:
    found = []
    for phase in range(3):
        start = phase * step.seconds + step.settle * step.scale
        end = (phase + 1) * step.seconds
        low, high = (began_ns + int(at * 1e9) for at in (start, end))
        good = [
            r
            for r in records
            if low <= r.ended_ns < high and r.status == "ok" and all(c.status == "ok" for c in r.tool_calls)
        ]
        found.append(len(good) / (step.measure * step.scale))
    return found


def _refused(records: Sequence[LoopRecord]) -> int:
    calls = [call for record in records for call in record.tool_calls]
    tries = [a.error_type for call in calls for a in call.attempts or (call,)]
    return sum(error == "http_429" for error in tries)


def herd(jitter: bool, agents: int = 100) -> tuple[float, float]:
    """(attempts an operation, seconds until all were served): 100 agents on a tool of 40 requests/s.

    Its bucket holds ten, so that ninety of the agents' first calls are refused at once, and told to
    come back in a second.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "herd.toml"
        path.write_text(
            'description = "a herd"\nprompt = "Task {number}"\n'
            "[model]\nfirst_token = 0\ntokens_per_second = 0\n"
            "[loop]\nrounds = 1\nfan_out = 1\n[tools.look]\ndescription = 'Looks.'\nduration = 0.01\n"
            "capacity = { requests_per_second = 40, burst = 10 }\n"
        )
        with start_emulator(str(path)) as emulator:
            return asyncio.run(_stampede(emulator.url, jitter, agents))


async def _stampede(url: str, jitter: bool, agents: int) -> tuple[float, float]:
    import random

    import httpx

    from profiler.limits.refusals import delay_ns, retry_after_ns
    from profiler.scenarios.tools import tool_client

    attempts, draw, began = 0, random.Random(1), time.monotonic()

    async def agent() -> None:
        nonlocal attempts
        attempt = 0
        while True:
            attempt += 1
            attempts += 1
            response = await tool_client().get(f"{url}/tools/look")
            if response.status_code == 200:
                return
            error = httpx.HTTPStatusError("", request=response.request, response=response)
            asked = max(1_000_000_000, retry_after_ns(error) or 0)
            await asyncio.sleep((delay_ns(attempt, "rejected", asked, draw) if jitter else asked) / 1e9)

    await asyncio.gather(*(agent() for _ in range(agents)))
    await close_tool_clients()
    return attempts / agents, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--retries", type=int, default=0)
    parser.add_argument("--herd", action="store_true", help="only the herd")
    arguments = parser.parse_args()
    for name, jitter in (("exact wait, as the SDKs do", False), ("with our jitter", True)):
        attempts, took = herd(jitter)
        print(
            f"herd of 100 on the emulator, {name}: {attempts:.2f} attempts an operation, {took:.1f} s",
            flush=True,
        )
    if arguments.herd:
        return
    best: list[float] = []
    for name in ("oracle", "adaptive", "aimd", "gathered"):
        runs = [run(name, arguments.retries, seed) for seed in range(arguments.repeats)]
        goods = [statistics.mean(values) for values in zip(*(found for found, _, _ in runs), strict=True)]
        best = best or goods
        text = "  ".join(f"{good:5.2f}/s ({good / top:4.0%})" for good, top in zip(goods, best, strict=True))
        print(
            f"{name:10s} {text}  refused {statistics.mean(refused for *_, refused in runs):.0f}", flush=True
        )


if __name__ == "__main__":
    main()
