"""The emulator's MCP servers through `mcp.Client` of the official SDK, which its second major has.

In both eras over HTTP, and over standard streams; what the SDK makes of each fault stands beside the journal.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import mcp
import pytest
from mcp import MCPError, StdioServerParameters

from profiler.emulator.process import EmulatorProcess
from profiler.mcp.session import EMULATOR, META
from tests.integration.mcp_scenarios import entry_of, identified, in_loop, limited, with_faults
from tests.integration.test_emulator_mcp import (
    WITHIN,
    ended,
    journal,
    known,
    lines,
    started,
    stdio_command,
    until,
)

LATEST = "2026-07-28"
MODES = ("auto", "legacy", LATEST)
VERSIONS = {"auto": "2026-07-28", "legacy": "2025-11-25", "2026-07-28": "2026-07-28"}


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatorProcess]:
    with started(tmp_path_factory, with_faults()) as running:
        yield running


@asynccontextmanager
async def client(server: Any, mode: str) -> AsyncIterator[mcp.Client]:
    async with asyncio.timeout(WITHIN), mcp.Client(server, mode=mode) as opened:
        yield opened


async def call(client: mcp.Client, meta: dict[str, Any], **more: Any) -> mcp.types.CallToolResult:
    return await client.call_tool("look", {"subject": "cats"}, meta=meta, **more)


@pytest.mark.parametrize("mode", MODES)
async def test_client_of_any_mode_lists_and_calls_and_is_told_the_time_of_the_journal(
    emulator: EmulatorProcess, mode: str
) -> None:
    async with client(emulator.mcp_url, mode) as opened:
        assert opened.protocol_version == VERSIONS[mode]
        if mode != LATEST:  # with a version given, the SDK asks nothing
            assert opened.server_info is not None
            assert opened.server_info.name == EMULATOR
        (tool,) = (await opened.list_tools()).tools
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint is True
        metas = [identified() for _ in range(32)]
        results = await asyncio.gather(*(call(opened, meta) for meta in metas))
        entries = journal(emulator)
        for result, meta in zip(results, metas, strict=True):
            assert result.meta is not None
            assert result.meta[META + "serverNs"] == entry_of(entries, meta)["actual_ns"] >= 50_000_000
        seen: list[tuple[float, float | None]] = []

        async def progress(value: float, total: float | None, message: str | None) -> None:
            seen.append((value, total))

        meta = identified()
        result = await call(opened, meta, progress_callback=progress)
        assert seen == [(1, 4), (2, 4), (3, 4)]
        assert result.meta is not None
        assert result.meta[META + "serverNs"] == entry_of(journal(emulator), meta)["actual_ns"]


@pytest.mark.parametrize(("mode", "outcome"), [("legacy", "cancelled"), ("2026-07-28", "disconnected")])
async def test_cancelled_call_ends_in_the_journal_as_its_era_says(
    tmp_path_factory: pytest.TempPathFactory, mode: str, outcome: str
) -> None:
    with started(tmp_path_factory, limited()) as crowded:
        async with client(crowded.mcp_url, mode) as opened:
            metas = [identified() for _ in range(3)]
            for meta in metas:  # each is served for a minute, or waits for another
                one = asyncio.create_task(opened.call_tool("held", {"subject": "cats"}, meta=meta))
                await until(partial(known, crowded, meta))
                assert entry_of(journal(crowded), meta)["outcome"] == ""
                one.cancel()
                assert (await ended(crowded, meta))["outcome"] == outcome
                # The SDK cannot take the answer to a cancelled call while it closes: by now that has come.
                await opened.list_tools(cache_mode="bypass")
            assert {one["status"] for one in journal(crowded)} == {200}  # nobody was refused


# The code of the error that the SDK raises.
CODES = {
    "mcp_rpc_error": -32603,
    "mcp_http_429": -32603,
    "mcp_no_answer": -32000,
    "mcp_accepted": -32600,
}


@pytest.mark.parametrize("mode", MODES[1:])
async def test_faults_reach_the_caller_as_the_sdk_has_them(emulator: EmulatorProcess, mode: str) -> None:
    async with client(emulator.mcp_url, mode) as opened:
        for kind, code in CODES.items():
            before = len(journal(emulator))
            with pytest.raises(MCPError) as caught:
                await call(opened, in_loop(kind))
            assert (kind, caught.value.code) == (kind, code)
            assert [one["fault"] for one in journal(emulator)[before:]] == [kind]
        result = await call(opened, in_loop("mcp_error_result"))
        assert result.is_error is True
        assert result.meta is not None
        assert result.meta[META + "serverNs"] == journal(emulator)[-1]["actual_ns"]
        for kind in ("mcp_wrong_id", "mcp_silence"):  # there is no answer to it
            with pytest.raises(MCPError) as caught:
                await call(opened, in_loop(kind), read_timeout_seconds=0.3)
            assert caught.value.code == -32001
        seen: list[float] = []

        async def progress(value: float, total: float | None, message: str | None) -> None:
            seen.append(value)

        await call(opened, in_loop("mcp_slow_progress"), progress_callback=progress)
        assert seen == [1, 2, 3]
        assert journal(emulator)[-1]["actual_ns"] >= 350_000_000


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("kind", ["mcp_reset", "mcp_reset_in_reply"])
async def test_reset_ends_the_session_of_the_sdk(emulator: EmulatorProcess, mode: str, kind: str) -> None:
    before = len(journal(emulator))
    with pytest.raises(BaseExceptionGroup):
        async with client(emulator.mcp_url, mode) as opened:
            await call(opened, in_loop(kind))
    assert [(one["fault"], one["outcome"]) for one in journal(emulator)[before:]] == [(kind, "reset")]


async def test_lost_session_is_an_error_of_the_call(emulator: EmulatorProcess) -> None:
    async with client(emulator.mcp_url, "legacy") as opened:
        with pytest.raises(MCPError, match="Session not found"):
            await call(opened, in_loop("mcp_session_lost"))


async def test_structured_result_against_its_schema_is_refused_by_the_sdk(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with started(tmp_path_factory, with_faults(structured=True)) as emulator:
        async with client(emulator.mcp_url, "auto") as opened:
            right = await call(opened, {})
            assert set(right.structured_content) == {"answer"}
            with pytest.raises(RuntimeError, match="Invalid structured content"):
                await call(opened, in_loop("mcp_bad_structure"))


@pytest.mark.parametrize("mode", MODES)
async def test_client_over_stdio_sees_what_the_file_of_the_journal_has(mode: str, tmp_path: Path) -> None:
    scenario, kept = tmp_path / "mcp.toml", tmp_path / "journal.jsonl"
    scenario.write_text(limited())
    server = StdioServerParameters(
        command=sys.executable, args=stdio_command(scenario, "--journal", str(kept))
    )
    async with client(server, mode) as opened:
        assert opened.protocol_version == VERSIONS[mode]
        metas = [identified() for _ in range(6)]
        results = await asyncio.gather(
            *(opened.call_tool("queued", {"subject": "cats"}, meta=meta) for meta in metas)
        )
        entries = lines(kept)
        for result, meta in zip(results, metas, strict=True):
            assert result.meta is not None
            assert result.meta[META + "serverNs"] == entry_of(entries, meta)["actual_ns"] >= 100_000_000
        # Two at a time: three waves of 100 ms.
        first = min(one["received_ns"] for one in entries)
        assert max(one["sent_ns"] for one in entries) - first >= 300_000_000
        both = [
            asyncio.create_task(opened.call_tool("full", {"subject": "cats"}, meta=identified()))
            for _ in range(2)
        ]
        (refused,), (served,) = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        assert refused.result().is_error is True
        served.cancel()
        await until(lambda: len(lines(kept)) == len(metas) + 2)
        assert [(one["status"], one["outcome"]) for one in lines(kept)[len(metas) :]] == [
            (429, "complete"),
            (200, "cancelled"),
        ]
