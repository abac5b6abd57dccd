"""The rate that `tune` advises against the largest that the server lets through, with prompt caches."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from profiler.emulator.limits import key_quota
from profiler.emulator.process import start_emulator
from profiler.limits.known import seen_quota
from profiler.loop.loop import ToolLoop
from profiler.providers import make_provider
from profiler.records import LoopRecord
from profiler.scenarios import Scenario, load_scenario
from profiler.scenarios.tools import close_tool_clients, scenario_tools
from profiler.tune.quotas import advise, demand

SCENARIO = """
description = "prompt caches, and quotas that bind"
prompt = "Question {number}: compare a few cities."
time_scale = 0.02  # a minute is 1.2 s

[model]
first_token = { kind = "uniform", low = 0.5, high = 1.0 }
tokens_per_second = 0
context_tokens = { kind = "uniform", low = 500, high = 3500 }
cached_share = { kind = "uniform", low = 0.4, high = 0.9 }
cache_written_share = 0.5
reasoning_tokens = { kind = "uniform", low = 0, high = 60 }

[loop]
rounds = { kind = "empirical", values = [1, 2] }
fan_out = { kind = "empirical", values = [2, 3, 4] }

[quota]
burst = 0.2
requests_per_minute = %d
input_tokens_per_minute = %d
output_tokens_per_minute = %d

[tools.get_weather]
description = "Current weather of a city."
duration = { kind = "uniform", low = 0.5, high = 1.0 }

[tools.get_weather.parameters]
type = "object"
required = ["city"]
properties.city = { type = "string", description = "Name of the city." }
"""

QUOTAS = {
    "tokens": (3000, 900_000, 90_000),
    "output": (3000, 9_000_000, 30_000),
    "requests": (900, 90_000_000, 90_000_000),
}
"""Requests, input and output tokens a minute, by what binds on Anthropic's rule."""

LOOPS = 80
Ask = tuple[int, int, int]
"""(ns since its loop began, input tokens that count, output tokens) of one model request."""


def measured(scenario: Scenario, path: str, provider: str) -> tuple[list[LoopRecord], list[list[Ask]]]:
    """The records of loops within the quota, and what the server says that they took."""
    records: list[LoopRecord] = []

    async def run(url: str) -> None:
        model: Any = make_provider(provider, base_url=url)
        loop = ToolLoop(model, scenario_tools(scenario, url), sinks=[records.append])

        async def agent(number: int) -> None:
            while number < LOOPS:
                await loop.run("Compare.", number=number)
                number += 4

        await asyncio.gather(*(agent(number) for number in range(4)))
        await model.client.close()
        await close_tool_clients()

    with start_emulator(path, seed=3) as emulator:
        asyncio.run(run(emulator.url))
        with urllib.request.urlopen(f"{emulator.url}/emulator/journal", timeout=60) as response:
            entries = [one for one in json.load(response)["entries"] if one["kind"] == "model"]
    assert {entry["status"] for entry in entries} == {200}
    loops = []
    entries.sort(key=lambda one: (one["loop"], one["received_ns"]))
    for _, of_loop in groupby(entries, key=lambda one: one["loop"]):
        asks = list(of_loop)
        began = asks[0]["received_ns"]
        # The rule of each provider, in the server's own figures.
        read = [one["cached_tokens"] if provider == "anthropic" else 0 for one in asks]
        loops.append(
            [
                (one["received_ns"] - began, one["input_tokens"] - cached, one["output_tokens"])
                for one, cached in zip(asks, read, strict=True)
            ]
        )
    assert len(loops) == len(records) == LOOPS
    return records, loops


def lets_through(scenario: Scenario, provider: str, loops: list[list[Ask]], rate: float) -> bool:
    """Whether the server's own buckets refuse nothing while loops arrive at `rate` a second, for long."""
    assert scenario.quota is not None
    minute_ns = 60e9 * scenario.time_scale
    quota = key_quota(scenario.quota, split_tokens=provider == "anthropic", minute_ns=minute_ns, now_ns=0)
    # Over twenty minutes and more: by then a rate one in a hundred too high has emptied a bucket of 0.2.
    arriving = max(100 * LOOPS, int(rate * 20 * minute_ns / 1e9))
    asks = sorted(
        (int(number / rate * 1e9) + at, read, written)
        for number in range(arriving)
        for at, read, written in loops[number % LOOPS]
    )
    for at, read, written in asks:
        if quota.admit(read, written, at) is not None:
            return False
        quota.release()
    return True


@pytest.mark.parametrize("bound", QUOTAS)
@pytest.mark.parametrize("provider", ["openai", "openai-responses", "anthropic"])
def test_advised_rate_is_the_largest_that_meets_no_429(provider: str, bound: str, tmp_path: Path) -> None:
    path = tmp_path / "caches.toml"
    path.write_text(SCENARIO % QUOTAS[bound])
    scenario = load_scenario(str(path))
    records, loops = measured(scenario, str(path), provider)
    quota, taken = seen_quota(records), demand(records)
    assert quota is not None
    assert taken is not None
    assert quota.untold == ()
    advice = advise(quota, taken)
    assert advice is not None
    low, high = 0.5 * advice.loops_per_second, 2 * advice.loops_per_second
    assert lets_through(scenario, provider, loops, low)
    assert not lets_through(scenario, provider, loops, high)
    while high / low > 1.002:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if lets_through(scenario, provider, loops, middle) else (low, middle)
    assert advice.loops_per_second == pytest.approx(low, rel=0.03)
