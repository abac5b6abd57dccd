"""What the client alone can do: its loops against a server without latency, before the run.

The figure says how far a measured load is from the client's own limit, and how much of every
latency is the client itself. It says nothing about the target, which is not involved.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from profiler.load.options import LoadOptions
from profiler.rundir import Capacity

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

LONE_LOOPS = 5
REQUESTS = 5
"""Requests of a loop of the scenario `instant`: two to the model, three to tools."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """One process's share: loops in `seconds`, and the median of a lone loop."""

    loops: int
    seconds: float
    lone_seconds: float


async def calibrate(options: LoadOptions, root: str, agents: int, seconds: float) -> Calibration:
    """Run the built-in loop with `agents` agents for that long; `root` serves the scenario `instant`."""
    from profiler.load.locust.reporter import Reporter
    from profiler.loop.loop import ToolLoop
    from profiler.providers import make_provider
    from profiler.scenarios.schema import load_scenario
    from profiler.scenarios.tools import scenario_tools
    from profiler.strategies import Gathered

    scenario = load_scenario("instant")
    model = make_provider(options.provider, base_url=root, model=options.model)
    # Recording is part of what the client does; nobody reads these.
    reporter = Reporter(lambda **_: None, lambda lines, count: None)
    loop = ToolLoop(model, scenario_tools(scenario), Gathered(), stream=options.stream, sinks=[reporter.sink])
    numbers = itertools.count()
    done = 0
    with _tools_at(root):
        await loop.run("Warm up.", number=next(numbers))
        lone = []
        for _ in range(LONE_LOOPS):
            record = (await loop.run("Alone.", number=next(numbers))).record
            lone.append((record.ended_ns - record.started_ns) / 1e9)
        began = time.monotonic()

        async def agent() -> None:
            nonlocal done
            while time.monotonic() - began < seconds:
                await loop.run("Together.", number=next(numbers))
                done += 1

        await asyncio.gather(*(agent() for _ in range(agents)))
        elapsed = time.monotonic() - began
    await model.client.close()  # type: ignore[attr-defined]
    return Calibration(done, elapsed, median(lone))


def capacity(agents: int, shares: Sequence[Mapping[str, float]]) -> Capacity | None:
    """Of all processes together, from their answers."""
    if not shares:
        return None
    rate = sum(share["loops"] / share["seconds"] for share in shares)
    return Capacity(agents, rate, rate * REQUESTS, max(share["lone_seconds"] for share in shares))


@contextmanager
def _tools_at(root: str) -> Iterator[None]:
    before = os.environ.get("PROFILER_TOOLS_URL")
    weather = os.environ.pop("PROFILER_WEATHER_URL", None)
    os.environ["PROFILER_TOOLS_URL"] = root
    try:
        yield
    finally:
        if weather is not None:
            os.environ["PROFILER_WEATHER_URL"] = weather
        if before is None:
            del os.environ["PROFILER_TOOLS_URL"]
        else:
            os.environ["PROFILER_TOOLS_URL"] = before
