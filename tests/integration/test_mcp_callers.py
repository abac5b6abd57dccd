"""Whoever calls the tools of an MCP server, and whichever way: each call is named, matched and timed.

The same on both majors of the SDK, which exclude each other: the environment decides (`make test-oldest` has
the older one). Truth is the emulator's journal; and a server on the SDK's own, which writes its spans down.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from profiler.emulator.process import EmulatorProcess, start_emulator
from profiler.process.ports import free_port
from profiler.records import LoopRecord, ToolCall
from profiler.watch.profiler import Profiler

pytest.importorskip("mcp")

from tests.integration.mcp_callers import CALLERS, MAJOR, Target, drive, session_of

# What these packages warn of among themselves is theirs.
pytestmark = pytest.mark.filterwarnings("default")

SECONDS = 0.15
CALLS = 3
SCENARIO = f"""
description = "one round of three calls"
prompt = "Question {{number}}"

[model]
first_token = 0.01
tokens_per_second = 5000

[loop]
rounds = 1
fan_out = {CALLS}

[tools.search]
description = "Search."
duration = {SECONDS}
"""


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenario") / "three.toml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture(scope="module")
def emulator(scenario: Path) -> Iterator[EmulatorProcess]:
    with start_emulator(str(scenario)) as running:
        yield running


@dataclass
class Truth:
    """A server, and what it knows of the calls: their spans, by the model's call id where it is told that."""

    target: Target
    file: Path | None = None
    url: str = ""

    def spans(self) -> list[tuple[str, int, int]]:
        if self.url:
            entries = httpx.get(f"{self.url}/emulator/journal", timeout=60).json()["entries"]
        else:
            assert self.file is not None
            entries = [json.loads(line) for line in self.file.read_text().splitlines()]
        if entries and isinstance(entries[0], list):
            return [("", *one) for one in entries]
        return [
            (one["call_id"], one["received_ns"], one["sent_ns"]) for one in entries if one["kind"] == "tool"
        ]

    def clear(self) -> None:
        if self.url:
            httpx.delete(f"{self.url}/emulator/journal")
        elif self.file is not None:
            self.file.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def span_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Truth]:
    """The SDK's own server over HTTP."""
    file = tmp_path_factory.mktemp("spans") / "spans.jsonl"
    port = free_port()
    script = str(Path(__file__).with_name("mcp_span_server.py"))
    command = [sys.executable, script, str(file), str(SECONDS), str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < deadline
            assert server.poll() is None
            time.sleep(0.05)
        yield Truth(Target(url=f"http://127.0.0.1:{port}/mcp"), file=file)
    finally:
        server.terminate()
        server.wait(60)


async def watched(
    emulator: EmulatorProcess, caller: str, target: Target, prepare: Any = None
) -> tuple[LoopRecord, Profiler]:
    """One loop of a caller, seen by a profiler that was told nothing of it."""
    records: list[LoopRecord] = []
    profiler = Profiler(sinks=[records.append])
    profiler.auto()
    try:
        async with openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key="x") as client:
            with profiler.loop(caller):
                async with asyncio.timeout(200):
                    await CALLERS[caller].run(target, client)
    finally:
        profiler.stop()
    (record,) = records
    return record, profiler


def check_named(record: LoopRecord, profiler: Profiler) -> list[ToolCall]:
    """Each call is there once, under its tool's name, with the id that the model gave it."""
    calls = list(record.tool_calls)
    assert [call.name for call in calls] == ["search"] * CALLS
    assert len({call.id for call in calls}) == CALLS
    assert all(call.id.startswith("call_") for call in calls)
    assert [(call.status, call.error_type) for call in calls] == [("ok", None)] * CALLS
    assert sum(one.unobserved_calls for one in record.rounds) == 0
    assert (record.ambiguous_calls, record.orphan_calls, record.watch_failures) == (0, 0, 0)
    assert not any(profiler.failures.values())
    return calls


def check_phases(call: ToolCall, transport: str) -> None:
    """The parts of a call are all of it, and none is negative."""
    remote = call.remote
    assert remote is not None
    assert (remote.transport, remote.sends) == (transport, 1)
    parts = [remote.session_wait_ns, call.client_wait_ns, call.remote_ns, call.parsing_ns]
    known = [part for part in parts if part is not None and part >= 0]
    assert len(known) == 4
    assert sum(known) == call.duration_ns


def row(caller: str, where: str, calls: Sequence[ToolCall], off_ns: int | None) -> str:
    def most(values: Sequence[int | None]) -> str:
        known = [one for one in values if one is not None]
        return f"{max(known) / 1e6:8.1f}" if known else "       -"

    remotes = [call.remote for call in calls if call.remote is not None]
    columns = (
        [one.session_wait_ns for one in remotes],
        [one.client_wait_ns for one in calls],
        [one.network_ns if one.network_ns is not None else one.remote_ns for one in calls],
        [one.server_ns for one in remotes],
        [one.parsing_ns for one in calls],
        [one.duration_ns for one in calls],
    )
    figures = "".join(most(column) for column in columns)
    off = "       -" if off_ns is None else f"{off_ns / 1e6:8.3f}"
    return f"{caller:31}{where:14}{remotes[0].server[:26]:28}{figures}{off}"


HEAD = (
    f"\nmcp {MAJOR}; ms, the largest of {CALLS} calls\n{'caller':31}{'through':14}{'server':28}"
    " session  client network  server parsing   total     off"
)


@pytest.mark.parametrize("transport", ["http", "stdio"])
async def test_every_caller_beside_the_emulators_journal(
    emulator: EmulatorProcess, scenario: Path, tmp_path: Path, transport: str
) -> None:
    rows = []
    for caller, how in CALLERS.items():
        if why := how.skipped():
            rows.append(f"{caller:31}{why}")
            continue
        journal = tmp_path / "journal.jsonl"
        truth = Truth(Target(url=f"{emulator.url}/mcp"), url=emulator.url)
        if transport == "stdio":
            stdio = ("--mcp-stdio", "--scenario", str(scenario), "--journal", str(journal))
            truth = Truth(Target(command=(sys.executable, "-m", "profiler", "emulate", *stdio)), file=journal)
        truth.clear()
        record, profiler = await watched(emulator, caller, truth.target)
        calls = check_named(record, profiler)
        spans = {name: (received_ns, sent_ns) for name, received_ns, sent_ns in truth.spans()}
        assert spans.keys() == {call.id for call in calls}, caller
        off = []
        for call in calls:
            check_phases(call, transport)
            received_ns, sent_ns = spans[call.id]
            remote = call.remote
            assert remote is not None
            assert remote.posted_ns is not None
            assert remote.posted_ns <= received_ns < sent_ns <= call.ended_ns
            assert remote.server_ns is not None
            off.append(abs(remote.server_ns - (sent_ns - received_ns)))
            assert off[-1] <= max(1_000_000, (sent_ns - received_ns) / 100), caller
        rows.append(row(caller, transport, calls, max(off)))
    sys.stdout.write("\n".join([HEAD, *rows, ""]))


async def test_every_caller_beside_the_spans_of_the_sdks_own_server(
    emulator: EmulatorProcess, span_server: Truth
) -> None:
    rows = []
    for caller, how in CALLERS.items():
        if how.skipped():
            continue
        span_server.clear()
        record, profiler = await watched(emulator, caller, span_server.target)
        calls = check_named(record, profiler)
        spans = sorted(one[1:] for one in span_server.spans())
        by_start = sorted(calls, key=lambda call: call.remote.posted_ns if call.remote else 0)
        for call, (began_ns, ended_ns) in zip(by_start, spans, strict=True):
            check_phases(call, "http")
            assert call.remote is not None
            assert call.remote.server_ns is None  # it does not say
            assert call.remote.posted_ns is not None
            assert call.remote.answered_ns is not None
            assert call.remote.posted_ns <= began_ns
            assert min(one[1] for one in spans) <= call.remote.answered_ns
            assert ended_ns <= max(one.ended_ns for one in calls)
        rows.append(row(caller, "http (SDK)", calls, None))
    sys.stdout.write("\n".join([HEAD, *rows, ""]))


async def test_a_lock_around_a_session_is_named(emulator: EmulatorProcess) -> None:
    """openai-agents lets one call at a time through each session over HTTP."""
    if why := CALLERS["openai-agents MCPServer"].skipped():
        pytest.skip(why)
    target = Target(url=f"{emulator.url}/mcp")
    record, _ = await watched(emulator, "openai-agents MCPServer", target)
    assert record.rounds[0].shortfall == "mcp_session"
    waits = sorted(call.remote.session_wait_ns for call in record.tool_calls if call.remote is not None)
    assert waits[-1] > SECONDS * 1e9 > waits[0]
    assert {call.remote.server for call in record.tool_calls if call.remote} == {"search-server"}


async def one_loop(emulator: EmulatorProcess, profiler: Seen, tools: Sequence[Any], run: Any) -> LoopRecord:
    async with openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key="x") as client:
        profiler.instrument(client)
        with profiler.loop():
            await drive(client, tools, run)
    return profiler.records[-1]


class Seen(Profiler):
    """A profiler that keeps its records."""

    def __init__(self) -> None:
        self.records: list[LoopRecord] = []
        super().__init__(sinks=[self.records.append])


async def wrapped_by_hand(profiler: Profiler, session: Any) -> Any:
    return profiler.tool(session.call_tool)


async def a_function_around_it(profiler: Profiler, session: Any) -> Any:
    async def call_tool(name: str, arguments: dict[str, Any]) -> Any:
        return await session.call_tool(name, arguments)

    return profiler.tool(call_tool)


async def a_dispatcher_around_it(profiler: Profiler, session: Any) -> Any:
    @profiler.dispatcher(name="which")
    async def run_tool(which: str, arguments: dict[str, Any]) -> Any:
        return await session.call_tool(which, arguments)

    return run_tool


async def a_function_of_the_tools_name(profiler: Profiler, session: Any) -> Any:
    async def search(**arguments: Any) -> Any:
        return await session.call_tool("search", arguments)

    known = profiler.tools({"search": search})
    return lambda name, arguments: known[name](**arguments)


@pytest.mark.parametrize(
    "wrap", [wrapped_by_hand, a_function_around_it, a_dispatcher_around_it, a_function_of_the_tools_name]
)
async def test_a_watched_function_around_the_call_is_no_second_call(
    emulator: EmulatorProcess, wrap: Any
) -> None:
    async with session_of(Target(url=f"{emulator.url}/mcp")) as session:
        profiler = Seen()
        profiler.instrument(session, name="mine")
        run = await wrap(profiler, session)
        record = await one_loop(emulator, profiler, (await session.list_tools()).tools, run)
        profiler.uninstrument(session)
        for call in check_named(record, profiler):
            check_phases(call, "http")
            assert call.server == "mine"


async def test_a_prefix_of_the_frameworks_is_seen_through(emulator: EmulatorProcess) -> None:
    """The model knows the tool under another name than its server does."""
    async with session_of(Target(url=f"{emulator.url}/mcp")) as session:
        profiler = Seen()
        profiler.instrument(session)

        @dataclass
        class Prefixed:
            name: str
            input_schema: Any

        tools = [Prefixed("web_search", {"type": "object", "properties": {"query": {"type": "string"}}})]

        async def run(name: str, arguments: dict[str, Any]) -> Any:
            return await session.call_tool(name.removeprefix("web_"), arguments)

        record = await one_loop(emulator, profiler, tools, run)
        profiler.uninstrument(session)
        calls = [*record.tool_calls]
        assert {call.name for call in calls} == {"web_search"}
        assert all(call.id for call in calls)
        assert sum(one.unobserved_calls for one in record.rounds) == 0


async def test_other_sessions_are_left_alone(emulator: EmulatorProcess) -> None:
    async with session_of(Target(url=f"{emulator.url}/mcp")) as session:
        profiler = Seen()
        async with session_of(Target(url=f"{emulator.url}/mcp")) as other:
            profiler.instrument(other)
            record = await one_loop(emulator, profiler, (await session.list_tools()).tools, session.call_tool)
            profiler.uninstrument(other)
        assert not [*record.tool_calls]
        assert record.rounds[0].unobserved_calls == CALLS


async def test_without_meta_only_the_servers_knowledge_is_less(emulator: EmulatorProcess) -> None:
    async with session_of(Target(url=f"{emulator.url}/mcp")) as session:
        profiler = Seen()
        profiler.instrument(session, meta=False)
        truth = Truth(Target(), url=emulator.url)
        truth.clear()
        record = await one_loop(emulator, profiler, (await session.list_tools()).tools, session.call_tool)
        profiler.uninstrument(session)
        for call in check_named(record, profiler):
            check_phases(call, "http")
            assert call.remote is not None
            assert call.remote.server_ns


async def test_a_server_that_ends_loses_all_calls(tmp_path: Path) -> None:
    """None of the calls in flight is taken for one that the user cancelled."""
    script = tmp_path / "server.py"
    script.write_text(
        "import json, os, sys\n"
        "for line in sys.stdin:\n"
        "    asked = json.loads(line)\n"
        "    if asked['method'] == 'initialize':\n"
        "        result = {'protocolVersion': '2025-11-25', 'capabilities': {},\n"
        "                  'serverInfo': {'name': 'brief', 'version': '1'}}\n"
        "        print(json.dumps({'jsonrpc': '2.0', 'id': asked['id'], 'result': result}), flush=True)\n"
        "    elif asked['method'] == 'tools/call' and asked['params']['name'] == 'die':\n"
        "        os._exit(1)\n"
    )
    records: list[LoopRecord] = []
    profiler = Profiler(sinks=[records.append])
    with contextlib.suppress(BaseExceptionGroup):
        async with session_of(Target(command=(sys.executable, str(script)))) as session:
            profiler.instrument(session)
            with profiler.loop() as loop:
                loop.begin_round("chat", "m")
                names = ["wait", "wait", "die"]
                ends = await asyncio.gather(
                    *(session.call_tool(name, {}) for name in names), return_exceptions=True
                )
                later = (await asyncio.gather(session.call_tool("late", {}), return_exceptions=True))[0]
    profiler.uninstrument(session)
    assert all(isinstance(end, Exception) for end in [*ends, later])
    calls = sorted(records[0].tool_calls, key=lambda call: call.started_ns or 0)
    assert [(call.name, call.status, call.error_type) for call in calls] == [
        ("wait", "error", "connection"),
        ("wait", "error", "connection"),
        ("die", "error", "connection"),
        ("late", "error", "session_lost"),
    ]


def test_nothing_of_mcp_is_imported_before_an_application_does() -> None:
    script = (
        "import sys, profiler\n"
        "from profiler.instrument import Profiler\n"
        "from profiler.watch.profiler import Profiler\n"
        "prof = Profiler(sinks=[]).auto()\n"
        "assert not [name for name in sys.modules if name == 'mcp' or name.startswith('mcp.')]\n"
        "from mcp.client.session import ClientSession\n"
        "assert hasattr(ClientSession.call_tool, '__wrapped__')\n"
        "prof.stop()\n"
        "assert not hasattr(ClientSession.call_tool, '__wrapped__')\n"
        "print('done')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env={**os.environ}
    )
    assert ended.stdout == "done\n", ended.stderr
