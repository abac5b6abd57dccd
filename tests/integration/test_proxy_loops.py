"""What the proxy records of agents that ask through it, against the servers' own logs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from profiler import ToolLoop
from profiler.emulator.process import start_emulator
from profiler.errors import ProviderError
from profiler.providers import AnthropicMessages, OpenAIChat, OpenAIResponses
from profiler.records import LoopRecord
from tests.dialects.script import TOOLS
from tests.dialects.server import APIS
from tests.integration.mcp_callers import CALLERS, Target, session_of
from tests.integration.proxied_agents import KEY, SECRET, TOOL, agent, client_of, proxied

MS = 1_000_000
MODELS = {"openai": OpenAIChat, "openai-responses": OpenAIResponses, "anthropic": AnthropicMessages}

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
            # When the emulator notes that it has written the last byte, that may have come long ago. But it
            # writes none before it is due, and streams 2000 tokens a second.
            assert max(attempt.first_byte_ns, entry["due_ns"]) <= model.ended_ns
            if stream:
                assert model.ended_ns - entry["due_ns"] >= entry["output_tokens"] * MS // 4
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


@contextmanager
def official() -> Iterator[str]:
    """The MCP SDK's own server, answering with streams of events; its URL."""
    pytest.importorskip("mcp.server.mcpserver")
    process = subprocess.Popen((sys.executable, "-c", OFFICIAL), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/mcp"
    finally:
        process.kill()
        process.wait(timeout=60)
        if process.stdout is not None:
            process.stdout.close()


OFFICIAL = """
import asyncio, socket, uvicorn
from mcp.server import MCPServer
m = MCPServer("official")
@m.tool()
async def get_weather(city: str) -> str:
    await asyncio.sleep(0.08)
    if city.startswith("nowhere"):
        raise ValueError("no such city")
    return "sun"
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
uvicorn.run(m.streamable_http_app(), fd=listening.fileno(), log_level="critical")
"""


def test_calls_of_mcp_are_exact_whoever_makes_them(tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(SCENARIO.replace("low = 1", "low = 2"))
    names = [name for name, caller in CALLERS.items() if not caller.skipped()]
    with start_emulator(str(scenario), seed=3) as emulator:
        options = ("--upstream", emulator.url, "--mcp-upstream", emulator.mcp_url)
        with proxied(tmp_path / "runs", *options) as proxy:

            async def main() -> None:
                for name in names:
                    async with client_of("openai", proxy.url) as client:
                        await CALLERS[name].run(Target(f"{proxy.url}/mcp"), client)

            asyncio.run(main())
            said = proxy.stop()
        tools = [entry for entry in journal(emulator.url) if entry["kind"] == "tool"]
    records = proxy.records()
    assert len(records) == len(names), said
    calls = [call for record in records for call in record.tool_calls]
    assert len(calls) == len(tools) >= 4 * len(names)
    for record, name in zip(records, names, strict=True):
        assert (record.status, record.ambiguous_calls, record.orphan_calls) == ("ok", 0, 0), name
    for call, entry in zip(
        sorted(calls, key=lambda one: one.started_ns or 0),
        sorted(tools, key=lambda one: one["received_ns"]),
        strict=True,
    ):
        assert call.started_ns is not None
        assert not call.upper_bound
        assert call.derived == ()
        assert call.unknown == ("queued_ns",)
        assert call.started_ns <= entry["received_ns"]
        assert call.ended_ns >= entry["sent_ns"]
        assert call.remote is not None
        assert call.remote.server == "toolcall-profiler-emulator"
        assert call.remote.server_ns is not None
        assert call.duration_ns is not None
        assert call.remote.server_ns <= call.duration_ns
    assert proxy.run()["recording"]["exact"] == len(calls)


def test_calls_of_the_sdks_own_server_are_exact(tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(SCENARIO)
    with start_emulator(str(scenario), seed=4) as emulator, official() as url:
        options = ("--upstream", emulator.url, "--mcp-upstream", url)
        with proxied(tmp_path / "runs", *options) as proxy:
            failed: list[str] = []

            async def loop(client: Any) -> list[str]:
                async with session_of(Target(f"{proxy.url}/mcp")) as session:

                    async def call(ident: str, name: str, arguments: str) -> str:
                        given = json.loads(arguments)
                        if "city" not in given:
                            failed.append(ident)
                        result = await session.call_tool(name, given)
                        return str(result.content)

                    return await agent("openai", client, [TOOL], SECRET, True, call)

            async def main() -> list[list[str]]:
                async with client_of("openai", proxy.url) as client:
                    return [await loop(client), *(await asyncio.gather(loop(client), loop(client)))]

            asked = asyncio.run(main())
            said = proxy.stop()
    records = proxy.records()
    assert len(records) == 3, said
    assert sorted(sorted(call.id for call in record.tool_calls) for record in records) == sorted(
        map(sorted, asked)
    )
    for call in (call for record in records for call in record.tool_calls):
        assert call.remote is not None
        assert (call.remote.server, call.remote.reply) == ("official", "sse")
        assert call.derived == ()
        if call.id in failed:
            assert (call.status, call.error_type) == ("error", "tool_error")
        else:
            assert call.status == "ok"
            assert call.latency_ns is not None
            assert call.latency_ns >= 80 * MS
    assert sum(record.orphan_calls for record in records) == 0
    for path in (tmp_path / "runs").rglob("*.json*"):
        assert SECRET.encode() not in path.read_bytes()


@contextmanager
def other_server() -> Iterator[str]:
    """A model server that shares no code with the emulator; its URL."""
    command = (sys.executable, "-m", "tests.other_server", "--seconds", "0.05", "--seed", "5")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait(timeout=60)
        if process.stdout is not None:
            process.stdout.close()


def test_fifty_agents_of_another_server_are_told_apart(tmp_path: Path) -> None:
    with other_server() as url, proxied(tmp_path / "runs", "--upstream", url) as proxy:

        async def main() -> list[list[str]]:
            async with client_of("openai", proxy.url) as client:
                loops = (agent("openai", client, [TOOL], SECRET, False, look) for _ in range(50))
                return await asyncio.gather(*loops)

        asked = asyncio.run(main())
        said = proxy.stop()
        with urllib.request.urlopen(f"{url}/log", timeout=60) as response:
            log = json.load(response)["entries"]
    records = proxy.records()
    assert len(records) == 50, said
    assert sorted(sorted(call.id for call in record.tool_calls) for record in records) == sorted(
        map(sorted, asked)
    )
    assert len(log) == sum(len(record.rounds) for record in records) == 100
    seen = sorted(round_.model.ended_ns for record in records for round_ in record.rounds)
    starts = sorted(round_.model.started_ns for record in records for round_ in record.rounds)
    assert all(
        ours <= theirs for ours, theirs in zip(starts, sorted(e["received_ns"] for e in log), strict=True)
    )
    # It answers after 50 ms; when it notes that it has, the answer may have come long ago.
    due = sorted(entry["received_ns"] + 45 * MS for entry in log)
    assert all(ours >= theirs for ours, theirs in zip(seen, due, strict=True))
    assert all(round_.model.input_tokens is None for record in records for round_ in record.rounds)


@contextmanager
def dialects() -> Iterator[str]:
    command = (sys.executable, "-m", "tests.dialects.server")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait(timeout=60)
        if process.stdout is not None:
            process.stdout.close()


def told(record: LoopRecord) -> list[Any]:
    """What a client and a proxy must both know of a loop."""
    return [
        (
            model.status,
            model.finish_reason,
            *(model.input_tokens, model.output_tokens, model.cached_tokens, model.reasoning_tokens),
            sorted(call.name for call in round_.tool_calls),
        )
        for round_ in record.rounds
        for model in [round_.model]
    ]


def test_every_dialect_makes_the_loop_that_its_client_had(tmp_path: Path) -> None:
    """Ids that are missing or used twice, replies that are odd: one loop each, with the rounds it had."""
    ours: list[LoopRecord] = []
    known = [(api, row) for api, rows_of_api in APIS.items() for row in rows_of_api]
    rows = [(api, row, number % 2 == 0) for number, (api, row) in enumerate(known)]
    with dialects() as url, proxied(tmp_path / "runs", "--upstream", url) as proxy:

        async def main() -> None:
            clients = {api: client_of(api, proxy.url, max_retries=0) for api in APIS}
            for api, row, streamed in rows:
                base = f"{proxy.url}/{api}/{row.slug}/{'s' if streamed else 'w'}"
                base += "" if api == "anthropic" else "/v1"
                model: Any = MODELS[api](clients[api].with_options(base_url=base), "m")
                loop = ToolLoop(model, [*TOOLS.values()], stream=streamed, sinks=[ours.append])
                with contextlib.suppress(ProviderError):
                    await loop.run([{"role": "user", "content": "What is the weather?"}])
            for client in clients.values():
                await client.close()

        asyncio.run(main())
        said = proxy.stop()
    seen = proxy.records()
    assert len(seen) == len(ours) == len(rows), said
    for (api, row, streamed), own, record in zip(rows, ours, seen, strict=True):
        assert told(record) == told(own), (api, row.name, streamed)


FAULTS = """
[[faults]]
kind = "http_503"
probability = 0.3

[[faults]]
kind = "reset"
probability = 0.15
"""


@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_retries_of_an_sdk_are_tries_of_one_request_with_their_backoff(api: str, tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(SCENARIO + FAULTS)
    with start_emulator(str(scenario), seed=9) as emulator:
        with proxied(tmp_path / "runs", "--upstream", emulator.url) as proxy:

            async def main() -> list[list[str]]:
                async with client_of(api, proxy.url, max_retries=8) as client:
                    loops = (agent(api, client, [TOOL], SECRET, False, look) for _ in range(12))
                    return await asyncio.gather(*loops)

            asked = asyncio.run(main())
            said = proxy.stop()
        entries = [entry for entry in journal(emulator.url) if entry["kind"] == "model"]
    records = proxy.records()
    assert len(records) == 12, said
    assert {record.status for record in records} == {"ok"}
    assert sorted(sorted(call.id for call in record.tool_calls) for record in records) == sorted(
        map(sorted, asked)
    )
    models = [round_.model for record in records for round_ in record.rounds]
    attempts = [attempt for model in models for attempt in model.attempts]
    assert len(attempts) == len(entries) > len(models)
    assert sum(attempt.status == 503 for attempt in attempts) == sum(
        entry["status"] == 503 for entry in entries
    )
    assert {attempt.error_type for attempt in attempts if attempt.status is None} <= {"connection"}
    assert sum(model.resends for model in models) == 0
    for model in models:
        # Both SDKs wait for half a second, less a quarter, and twice as long each time.
        for number, retry in enumerate(model.retries):
            assert retry.backoff_ns >= 0.3 * 10**9 * min(2**number, 8)
        assert [attempt.status for attempt in model.attempts][-1] == 200
