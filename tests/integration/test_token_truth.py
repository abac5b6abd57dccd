"""Tokens and their cost in records against the emulator's journal, with prompt caches and reasoning."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from profiler.emulator.process import start_emulator
from profiler.emulator.tape import Tape
from profiler.load.estimate import SAMPLE, sample_spent
from profiler.load.spending import price_of, spent_by
from profiler.loop.loop import ToolLoop
from profiler.loop.model import Probe, RequestOptions
from profiler.providers import PROVIDERS, make_provider
from profiler.records import LoopRecord, ModelCall
from profiler.scenarios import load_scenario
from profiler.scenarios.tools import close_tool_clients, scenario_tools
from profiler.watch.profiler import Profiler

SCENARIO = """
description = "prompt caches and reasoning"
prompt = "Question {number}: compare a few cities."
time_scale = 0.01

[model]
first_token = 0.2
tokens_per_second = 0
context_tokens = { kind = "uniform", low = 500, high = 50000 }
cached_share = { kind = "uniform", low = 0.0, high = 0.9 }
cache_written_share = { kind = "uniform", low = 0.0, high = 1.0 }
cache_ttl = "LIFETIME"
reasoning_tokens = { kind = "uniform", low = 0, high = 400 }

[loop]
rounds = { kind = "empirical", values = [1, 2] }
fan_out = { kind = "empirical", values = [1, 2, 3] }

[tools.get_weather]
description = "Current weather of a city."
duration = 0.1

[tools.get_weather.parameters]
type = "object"
required = ["city"]
properties.city = { type = "string", description = "Name of the city." }
"""

LOOPS = 12
SEED = 3
MODELS = {"openai": "gpt-4o", "openai-responses": "gpt-5.5", "anthropic": "claude-opus-5"}
USD = {  # per million: plain input, cached, written, written for an hour, output
    "gpt-4o": (2.5, 1.25, 2.5, 2.5, 10.0),
    "gpt-5.5": (5.0, 0.5, 5.0, 5.0, 30.0),
    "claude-opus-5": (5.0, 0.5, 6.25, 10.0, 25.0),
}

Counts = tuple[int | None, ...]


def counts(model: ModelCall) -> Counts:
    return (
        model.input_tokens,
        model.cached_tokens,
        model.cache_written_tokens,
        model.output_tokens,
        model.reasoning_tokens,
    )


async def loops_of_ours(
    provider: str, url: str, stream: bool, path: str, loops: int = LOOPS
) -> list[LoopRecord]:
    records: list[LoopRecord] = []
    model: Any = make_provider(provider, base_url=url, model=MODELS[provider])
    tools = scenario_tools(load_scenario(path), url)
    loop = ToolLoop(model, tools, stream=stream, sinks=[records.append])
    await asyncio.gather(*(loop.run("Compare.", number=number) for number in range(loops)))
    await model.client.close()
    await close_tool_clients()
    return records


async def watched_requests(provider: str, url: str, stream: bool, path: str) -> list[LoopRecord]:
    """The first request of each loop, through a client that only `Profiler` watches."""
    records: list[LoopRecord] = []
    profiler = Profiler(sinks=[records.append])
    model: Any = make_provider(provider, base_url=url, model=MODELS[provider])
    profiler.instrument(model.client)
    tools = model.render_tools(scenario_tools(load_scenario(path), url))

    async def ask(number: int) -> None:
        with profiler.loop(number=number):
            await model.request(
                [{"role": "user", "content": "Compare."}],
                tools,
                RequestOptions(stream=stream),
                Probe(lambda: 0),
            )

    await asyncio.gather(*(ask(number) for number in range(LOOPS)))
    await model.client.close()
    return records


@pytest.mark.parametrize("lifetime", ["5m", "1h"])
@pytest.mark.parametrize("provider", list(PROVIDERS))
def test_recorded_tokens_and_their_cost_are_the_servers(provider: str, lifetime: str, tmp_path: Path) -> None:
    path = tmp_path / "caches.toml"
    path.write_text(SCENARIO.replace("LIFETIME", lifetime))
    plain, cached, written, hour, output = USD[MODELS[provider]]
    price = price_of(MODELS[provider])
    assert price is not None
    for run in (loops_of_ours, watched_requests):
        for stream in (False, True):
            with start_emulator(str(path), seed=SEED) as emulator:
                records = asyncio.run(run(provider, emulator.url, stream, str(path)))
                with urllib.request.urlopen(f"{emulator.url}/emulator/journal", timeout=60) as response:
                    entries = [one for one in json.load(response)["entries"] if one["kind"] == "model"]
            truth: dict[int, list[Counts]] = defaultdict(list)
            dollars = 0.0
            for one in sorted(entries, key=lambda one: one["received_ns"]):
                read, wrote = one["cached_tokens"], one["cache_written_tokens"]
                truth[one["loop"]].append(
                    (one["input_tokens"], read, wrote, one["output_tokens"], one["reasoning_tokens"])
                )
                dollars += (one["input_tokens"] - read - wrote) * plain + one["output_tokens"] * output
                dollars += read * cached + wrote * (hour if lifetime == "1h" else written)
            seen = {record.number: [counts(round_.model) for round_ in record.rounds] for record in records}
            assert len(seen) == LOOPS
            assert seen == truth, (run.__name__, stream)
            assert any(model.reasoning_tokens for r in records for model in [r.rounds[0].model])
            spent = sum((spent_by(record) for record in records[1:]), spent_by(records[0]))
            assert price.cost(spent) == pytest.approx(dollars / 1e6, rel=0.01)


@pytest.mark.parametrize("lifetime", ["5m", "1h"])
@pytest.mark.parametrize("provider", list(PROVIDERS))
def test_cost_that_is_estimated_before_a_run_is_what_it_costs(
    provider: str, lifetime: str, tmp_path: Path
) -> None:
    path = tmp_path / "caches.toml"
    path.write_text(SCENARIO.replace("LIFETIME", lifetime))
    price = price_of(MODELS[provider])
    assert price is not None
    estimated = price.cost(sample_spent(Tape(load_scenario(str(path)), SEED), emulated=True))
    with start_emulator(str(path), seed=SEED) as emulator:
        records = asyncio.run(loops_of_ours(provider, emulator.url, False, str(path), SAMPLE))
    spent = sum((spent_by(record) for record in records[1:]), spent_by(records[0]))
    assert estimated == pytest.approx(price.cost(spent), rel=0.01)
