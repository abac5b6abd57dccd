"""Tools that start while the model streams: gain and bound, against what the emulator saw."""

from __future__ import annotations

import asyncio
import json
import statistics
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from profiler.anatomy import eagerness
from profiler.emulator.process import start_emulator
from profiler.loop import ToolLoop
from profiler.providers import make_provider
from profiler.records import LoopRecord, RoundRecord
from profiler.scenario import load_scenario
from profiler.scenario_tools import scenario_tools
from profiler.strategies import parse_strategy
from profiler.tool_http import close_tool_client

LOOPS = 24

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


def rounds(
    provider: str, path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> tuple[list[RoundRecord], list]:
    """The first round of every loop, and the journal."""
    with start_emulator(str(path), seed=3) as emulator:
        monkeypatch.setenv("PROFILER_TOOLS_URL", emulator.url)
        records: list[LoopRecord] = []

        async def main() -> None:
            model: Any = make_provider(provider, base_url=emulator.url, model=None)
            tools = scenario_tools(load_scenario(str(path)))
            loop = ToolLoop(model, tools, parse_strategy(strategy), stream=True, sinks=[records.append])
            await loop.run("Task 0", number=9999)  # the client's first use takes long
            records.clear()
            await asyncio.gather(*(loop.run(f"Task {n}", number=n) for n in range(LOOPS)))
            await model.client.close()
            await close_tool_client()

        asyncio.run(main())
        with urllib.request.urlopen(f"{emulator.url}/emulator/journal", timeout=10) as response:
            journal = json.load(response)["entries"]
    records.sort(key=lambda record: record.number or 0)
    return [record.rounds[0] for record in records], journal


def bounds(journal: list[Mapping[str, Any]]) -> dict[int, tuple[float, float]]:
    """Loop number → (bound of eager, of gathered) in seconds, by the emulator's own times.

    T = max(D, max(eᵢ + dᵢ)) and D + max dᵢ, where eᵢ is when the eager client's request was there.
    """
    found = {}
    for number in range(LOOPS):
        (model,) = [e for e in journal if e["kind"] == "model" and (e["loop"], e["round"]) == (number, 0)]
        calls = [e for e in journal if e["kind"] == "tool" and e["loop"] == number]
        assert len(calls) == 8
        end = model["finished_ns"]
        eager = max(end, *(c["received_ns"] + c["duration_ns"] for c in calls))
        gathered = end + max(c["duration_ns"] for c in calls)
        found[number] = ((eager - model["received_ns"]) / 1e9, (gathered - model["received_ns"]) / 1e9)
    return found


@pytest.mark.parametrize("provider", ["openai", "openai-responses", "anthropic"])
def test_the_gain_is_that_of_the_bound(provider, tmp_path, monkeypatch):
    path = tmp_path / "streamed.toml"
    path.write_text(SCENARIO)
    eager, journal = rounds(provider, path, monkeypatch, "eager")
    plain, _ = rounds(provider, path, monkeypatch, "gathered")
    bound = bounds(journal)

    def walls(found: list[RoundRecord]) -> list[float]:
        return [e.wall_ns / 1e9 for e in map(eagerness, found) if e is not None]

    gain = sum(walls(plain)) / sum(walls(eager))
    promised = sum(one for _, one in bound.values()) / sum(one for one, _ in bound.values())
    print(f"{provider}: gain {gain:.3f}, bound {promised:.3f}")  # noqa: T201
    assert promised > 1.15
    assert gain == pytest.approx(promised, rel=0.05)

    # The record knows the same: how much was overlapped, and what the gathered run could have had.
    for found, other in zip(map(eagerness, eager), map(eagerness, plain), strict=True):
        assert found is not None
        assert other is not None
        assert found.overlapped_ns > 0
        assert other.overlapped_ns == 0
        assert found.wall_ns == pytest.approx(found.bound_ns, rel=0.03, abs=20e6)
        assert other.bound_ns == pytest.approx(found.wall_ns, rel=0.08, abs=40e6)

    # Nothing is gained where the longest call is the last: T = D + max d on both sides.
    last = [
        (before.wall_ns, after.wall_ns)
        for before, after, round_ in zip(map(eagerness, plain), map(eagerness, eager), eager, strict=True)
        if before and after and _longest_ends_last(round_)
    ]
    assert last
    assert statistics.mean(a / b for a, b in last) == pytest.approx(1.0, abs=0.03)


def _longest_ends_last(round_: RoundRecord) -> bool:
    durations = [call.ended_ns - (call.started_ns or 0) for call in round_.tool_calls]
    return durations[-1] == max(durations)
