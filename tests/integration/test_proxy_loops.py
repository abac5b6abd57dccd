"""What the proxy records of agents that ask through it, against the servers' own logs."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from profiler.emulator.process import start_emulator
from tests.integration.proxied import KEY, SECRET, TOOL, agent, client_of, proxied

MS = 1_000_000

SCENARIO = """
description = "two rounds of one to three calls; quick"
prompt = "Question {number}"

[model]
first_token = 0.02
tokens_per_second = 2000

[loop]
rounds = 2
fan_out = { kind = "uniform", low = 1, high = 3 }

[tools.get_weather]
description = "Weather."
duration = 0.05
"""


def journal(url: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{url}/emulator/journal", timeout=60) as response:
        found: Any = json.load(response)
    entries: list[dict[str, Any]] = found["entries"]
    return entries


async def look(ident: str, name: str, arguments: str) -> str:
    await asyncio.sleep(0.03)
    return SECRET


@pytest.mark.parametrize("api", ["openai", "openai-responses", "anthropic"])
@pytest.mark.parametrize("stream", [False, True])
def test_fifty_agents_with_one_prompt_are_told_apart(api: str, stream: bool, tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(SCENARIO)
    with start_emulator(str(scenario), seed=3) as emulator:
        with proxied(tmp_path / "runs", "--upstream", emulator.url) as proxy:

            async def main() -> list[list[str]]:
                async with client_of(api, proxy.url) as client:
                    loops = (agent(api, client, [TOOL], SECRET, stream, look) for _ in range(50))
                    return await asyncio.gather(*loops)

            asked = asyncio.run(main())
            said = proxy.stop()
        truth = {entry["request_id"]: entry for entry in journal(emulator.url) if entry["kind"] == "model"}
    records = proxy.records()
    assert len(records) == 50, said
    assert {record.status for record in records} == {"ok"}
    assert sorted(sorted(call.id for call in record.tool_calls) for record in records) == sorted(
        map(sorted, asked)
    )
    assert sum(record.ambiguous_calls for record in records) == 0
    for record in records:
        assert (record.source, record.provider, record.model) == ("proxy", api, "m")
        for round_ in record.rounds:
            model = round_.model
            [attempt] = model.attempts
            entry = truth.pop(attempt.request_id)
            assert model.streamed == stream
            assert (model.input_tokens, model.output_tokens) == (
                entry["input_tokens"],
                entry["output_tokens"],
            )
            assert attempt.started_ns <= entry["received_ns"] <= entry["sent_ns"]
            assert attempt.first_byte_ns is not None
            assert entry["sent_ns"] <= attempt.first_byte_ns
            assert entry["finished_ns"] <= model.ended_ns + 5 * MS
            if stream:
                assert model.first_token_ns is not None
                assert model.first_token_ns >= entry["sent_ns"]
                for call in round_.tool_calls:
                    assert model.first_token_ns <= call.ready_ns <= model.ended_ns
            if round_.tool_calls:
                assert round_.tools_started_ns is not None
                assert round_.tools_ended_ns is not None
                assert round_.tools_ended_ns - round_.tools_started_ns >= 30 * MS
                for call in round_.tool_calls:
                    assert call.upper_bound == (len(round_.tool_calls) > 1)
    assert not truth
    recording = proxy.run()["recording"]
    assert recording["door"] == "proxy"
    assert recording["read"] == {"model": sum(len(record.rounds) for record in records)}
    assert recording["skipped"] == {}
    for path in (tmp_path / "runs").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert KEY.encode() not in data
            assert SECRET.encode() not in data
    assert KEY not in said
    assert SECRET not in said
