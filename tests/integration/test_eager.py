"""Tools that start while the model streams: gain and bound, against what the emulator saw."""

from __future__ import annotations

import asyncio
import json
import statistics
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from profiler.anatomy import eagerness
from profiler.emulator.draws import Place
from profiler.emulator.process import start_emulator
from profiler.emulator.tape import Tape
from profiler.loop.loop import ToolLoop
from profiler.providers import make_provider
from profiler.records import LoopRecord, RoundRecord
from profiler.scenarios import load_scenario
from profiler.scenarios.tools import close_tool_clients, scenario_tools
from profiler.strategies import parse_strategy
from tests.measuring import Measurement

pytestmark = pytest.mark.measures

SEED = 3
PROVIDERS = ("openai", "openai-responses", "anthropic")
SPACING = 0.26

SCENARIO = """
description = "eight calls in a reply that streams for about a second"
prompt = "Task {number}"

[model]
first_token = 0.1
tokens_per_second = 120
tokens_per_event = 4

[loop]
rounds = 1
fan_out = 8

[tools.lookup_part]
description = "Look one part up in the catalogue."
duration = { kind = "lognormal", median = 0.4, sigma = 0.8, max = 3 }

[tools.lookup_part.parameters]
type = "object"
required = ["number"]
properties.number = { type = "integer", minimum = 1000, maximum = 9999, description = "Part number." }
"""


@dataclass(frozen=True)
class Seen:
    """The first round of each loop, by number, and what the emulator says of them."""

    rounds: Mapping[int, RoundRecord]
    journal: Sequence[Mapping[str, Any]]


def longest_last(path: Path) -> list[int]:
    """Loops whose last call takes longest."""
    tape = Tape(load_scenario(str(path)), SEED)
    found = []
    for number in range(1000, 1400):
        durations = [tape.duration(Place(number, 0, call), "lookup_part") for call in range(8)]
        if durations[-1] == max(durations):
            found.append(number)
    assert len(found) >= 10
    return found[:10]


def run(path: Path, strategy: str, numbers: Mapping[str, Sequence[int]]) -> Seen:
    """All these loops on one emulator, each provider's one after another began."""
    with start_emulator(str(path), seed=SEED) as emulator:
        records: list[LoopRecord] = []

        async def provide(provider: str, own: Sequence[int], offset: float) -> None:
            model: Any = make_provider(provider, base_url=emulator.url, model=None)
            tools = scenario_tools(load_scenario(str(path)), emulator.url)
            loop = ToolLoop(model, tools, parse_strategy(strategy), stream=True, sinks=[records.append])
            await loop.run("Task 0", number=9999)  # the client's first use takes long
            await asyncio.sleep(offset)
            loops = []
            for number in own:  # in step, their calls would wait for this machine's processor
                loops.append(asyncio.create_task(loop.run(f"Task {number}", number=number)))
                await asyncio.sleep(SPACING)
            await asyncio.gather(*loops)
            await model.client.close()

        async def main() -> None:
            spread = SPACING / len(numbers)
            await asyncio.gather(
                *(provide(one, own, k * spread) for k, (one, own) in enumerate(numbers.items()))
            )
            await close_tool_clients()

        asyncio.run(main())
        with urllib.request.urlopen(f"{emulator.url}/emulator/journal", timeout=60) as response:
            journal = json.load(response)["entries"]
    return Seen({record.number or 0: record.rounds[0] for record in records}, journal)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Measurement[tuple[dict[str, list[int]], Seen, Seen]]:
    """(the loops of each provider and of "longest last", what eager made of them, what gathered did)."""
    path = tmp_path_factory.mktemp("eager") / "streamed.toml"
    path.write_text(SCENARIO)
    last = longest_last(path)
    own = {provider: list(range(100 * k, 100 * k + 12)) for k, provider in enumerate(PROVIDERS, 1)}
    asked = {**own, "openai": [*own["openai"], *last]}
    return Measurement(
        lambda: ({**own, "longest last": last}, run(path, "eager", asked), run(path, "gathered", asked))
    )


def bounds(journal: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Loop number → (bound of eager, of gathered) in seconds, by the emulator's own times.

    T = max(D, max(eᵢ + dᵢ)) and D + max dᵢ, where eᵢ is when the eager client's request was there.
    """
    found = {}
    for number in numbers:
        (model,) = [e for e in journal if e["kind"] == "model" and (e["loop"], e["round"]) == (number, 0)]
        calls = [e for e in journal if e["kind"] == "tool" and e["loop"] == number]
        assert len(calls) == 8
        end = model["finished_ns"]
        eager = max(end, *(c["received_ns"] + c["duration_ns"] for c in calls))
        gathered = end + max(c["duration_ns"] for c in calls)
        found[number] = ((eager - model["received_ns"]) / 1e9, (gathered - model["received_ns"]) / 1e9)
    return found


def walls(found: Sequence[RoundRecord]) -> list[float]:
    """Seconds from the model request to the end of the last call."""
    return [e.wall_ns / 1e9 for e in map(eagerness, found) if e is not None]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_gain_is_that_of_the_bound(provider, seen):
    numbers, eagerly, gathering = seen()
    numbers = numbers[provider]
    eager = [eagerly.rounds[number] for number in numbers]
    plain = [gathering.rounds[number] for number in numbers]
    bound = bounds(eagerly.journal, numbers)
    gain = sum(walls(plain)) / sum(walls(eager))
    promised = sum(one for _, one in bound.values()) / sum(one for one, _ in bound.values())
    assert promised > 1.05
    assert gain == pytest.approx(promised, rel=0.05)

    # The record knows the same: how much was overlapped, and what the gathered run could have had.
    could, above = [], []
    for found, other in zip(map(eagerness, eager), map(eagerness, plain), strict=True):
        assert found is not None
        assert other is not None
        assert found.overlapped_ns > 0
        assert other.overlapped_ns == 0
        above.append(found.wall_ns / found.bound_ns)
        could.append(other.bound_ns / found.wall_ns)
    assert min(above) > 0.97  # nothing is faster than its bound; a stall may make one slower
    assert statistics.median(above) < 1.03
    assert statistics.median(could) == pytest.approx(1.0, abs=0.04)


def test_nothing_is_gained_where_the_longest_call_comes_last(seen):
    """T = max(D, max(eᵢ + dᵢ)) = D + max d, when the last to be complete is the longest."""
    numbers, eagerly, gathering = seen()
    eager = [eagerly.rounds[number] for number in numbers["longest last"]]
    plain = [gathering.rounds[number] for number in numbers["longest last"]]
    assert all(found is not None and found.overlapped_ns > 0 for found in map(eagerness, eager))
    assert sum(walls(plain)) / sum(walls(eager)) == pytest.approx(1.0, abs=0.03)
