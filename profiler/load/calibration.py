"""What the client alone can do: its loops against a server without latency, before the run.

The figure says how far a measured load is from the client's own limit, and how much of every
latency is the client itself. It says nothing about the target, which is not involved.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from profiler.load.options import LoadOptions
from profiler.records import encode
from profiler.rundir import ClientCapacity

AGENTS = 32
"""In each process: enough to keep it busy."""

LONE_LOOPS = 5
REQUESTS = 5
"""Requests of a loop of the scenario `instant`: two to the model, three to tools."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """One process's share: loops of `agents` agents in `seconds`, and the median of a lone loop."""

    agents: int
    loops: int
    seconds: float
    lone_seconds: float


async def calibrate(options: LoadOptions, root: str) -> Calibration:
    """Run the built-in loop for `calibration_seconds`; `root` serves the scenario `instant`."""
    from profiler.loop.loop import ToolLoop
    from profiler.providers import make_provider
    from profiler.scenarios.schema import load_scenario
    from profiler.scenarios.tools import scenario_tools
    from profiler.strategies import Gathered

    model = make_provider(options.provider, base_url=root, model=options.model)
    tools = scenario_tools(load_scenario("instant"), root, environment={})
    lines: list[bytes] = []  # recording is part of what the client does; nobody reads these
    loop = ToolLoop(
        model,
        tools,
        Gathered(),
        stream=options.stream,
        sinks=[lambda record: lines.append(encode(record))],
    )
    numbers = itertools.count()
    done = 0
    await loop.run("Warm up.", number=next(numbers))
    lone = []
    for _ in range(LONE_LOOPS):
        record = (await loop.run("Alone.", number=next(numbers))).record
        lone.append((record.ended_ns - record.started_ns) / 1e9)
    began = time.monotonic()

    async def agent() -> None:
        nonlocal done
        while time.monotonic() - began < options.calibration_seconds:
            await loop.run("Together.", number=next(numbers))
            done += 1

    await asyncio.gather(*(agent() for _ in range(AGENTS)))
    elapsed = time.monotonic() - began
    await model.client.close()  # type: ignore[attr-defined]
    return Calibration(AGENTS, done, elapsed, median(lone))


def capacity(shares: Sequence[Calibration]) -> ClientCapacity | None:
    """Of all processes together, from their answers."""
    if not shares:
        return None
    rate = sum(share.loops / share.seconds for share in shares)
    agents = sum(share.agents for share in shares)
    return ClientCapacity(agents, rate, rate * REQUESTS, max(share.lone_seconds for share in shares))
