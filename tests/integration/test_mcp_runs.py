"""`run` and `compare --mcp` on the official SDK's server, on one of the tests' own, and on the emulator."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from profiler.emulator.process import start_emulator
from profiler.process.ports import free_port
from profiler.records import LoopRecord, ToolCall
from profiler.rundir import RunDirectory
from tests.integration.locust_process import MARK, ROOT, marked, wait_until
from tests.mcp_server import Behaviour, McpServer

OWN = f"{shlex.quote(sys.executable)} -m tests.mcp_server --stdio"
"""A server of the tests' own, on standard streams."""

SDK = """
import sys
from mcp.server import MCPServer
from mcp.types import ToolAnnotations

server = MCPServer("shop")


@server.tool(annotations=ToolAnnotations(readOnlyHint=True))
async def find(query: str, limit: int = 3) -> str:
    return "found"


@server.tool()
async def buy(item: str) -> str:
    raise SystemExit("bought")


if sys.argv[1] == "stdio":
    server.run(transport="stdio")
else:
    server.run(transport="streamable-http", port=int(sys.argv[1]))
"""

CANARY = "CANARY"
KEYS = {
    "OPENAI_API_KEY": "sk-CANARY-model-key",
    "ANTHROPIC_API_KEY": "CANARY-other-key",
    "MY_DATABASE_PASSWORD": "CANARY-password",
}
QUICK = ("--blocks", "1", "--calibrate", "0", "--no-metrics")


def profiler(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "profiler", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def left_in(directory: Path) -> tuple[RunDirectory, list[LoopRecord]]:
    """The only run in a directory, and its records."""
    (path,) = directory.iterdir()
    found = RunDirectory.open(path)
    return found, list(found.records())


def calls_of(records: list[LoopRecord]) -> list[ToolCall]:
    return [call for record in records for call in record.tool_calls]


@contextlib.contextmanager
def served(*behaviours: Behaviour) -> Iterator[list[McpServer]]:
    """Servers of the tests' own over HTTP, on an event loop in a thread."""
    servers = [McpServer(behaviour) for behaviour in behaviours]
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def on_loop(work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result(60)

    try:
        for server in servers:
            on_loop(server.__aenter__())
        yield servers
        for server in servers:
            on_loop(server.__aexit__())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


@contextlib.contextmanager
def recorder(target: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server in front of another that notes the headers of every request: its URL, and they."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            seen.append({name.lower(): value for name, value in self.headers.items()})
            body = self.rfile.read(int(self.headers["content-length"]))
            told = {
                "content-type": "application/json",
                "authorization": self.headers.get("authorization", ""),
            }
            asked = urllib.request.Request(target + self.path, data=body, headers=told)
            with urllib.request.urlopen(asked, timeout=60) as answer:
                data = answer.read()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()


def with_mark(mark: str) -> list[int]:
    """Processes of servers, by the mark in their command line: they get no environment of ours."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"tests.mcp_server" in words and mark.encode() in words:
                    found.append(int(entry.name))
    return found


@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_run_calls_the_read_only_tools_of_the_sdks_own_server(tmp_path, transport):
    if not hasattr(pytest.importorskip("mcp.server"), "MCPServer"):
        pytest.skip("the server of these tests is written for mcp 2")
    (tmp_path / "shop.py").write_text(SDK)
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(tmp_path / 'shop.py'))}"
    port = free_port()
    where = f"{command} stdio" if transport == "stdio" else f"http://127.0.0.1:{port}/mcp"
    beside = None
    if transport == "http":
        beside = subprocess.Popen([*shlex.split(command), str(port)], stderr=subprocess.DEVNULL)
    try:
        assert beside is None or wait_until(lambda: _listens(port), 60)
        done = profiler("run", "--mcp", f"shop={where}", "--out", str(tmp_path / "runs"))
    finally:
        if beside is not None:
            beside.kill()
            beside.wait()
    assert done.returncode == 0, done.stderr
    assert f"MCP server shop ({transport}, shop" in done.stderr
    assert "  tools offered: find\n" in done.stderr
    assert "withheld, since they do not declare themselves read-only: buy (--allow-writes" in done.stderr
    run, records = left_in(tmp_path / "runs")
    (server,) = run.load().mcp_servers
    assert (server.name, server.transport, server.title) == ("shop", transport, "shop")
    assert (server.offered, server.withheld) == (("find",), ("buy",))
    calls = calls_of(records)
    assert len(calls) >= 2
    assert {(call.name, call.status, call.server) for call in calls} == {("find", "ok", "shop")}
    assert {call.remote.transport for call in calls if call.remote} == {transport}


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        import socket

        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


@pytest.mark.parametrize("provider", ["openai", "openai-responses", "anthropic"])
def test_emulated_model_asks_for_the_tools_of_servers_on_every_api(tmp_path, provider):
    with served(
        Behaviour(tools=("mirrored", "write"), name="one"), Behaviour(tools=("get.2", "mirrored"))
    ) as (
        one,
        two,
    ):
        done = profiler(
            *("run", "--provider", provider, "--mcp", f"one={one.url}", "--mcp", f"two={two.url}"),
            *("--allow-writes", "write", "--strategy", "semaphore:one/*=1", "--scenario", "fanout"),
            *("--out", str(tmp_path / "runs")),
        )
    assert done.returncode == 0, done.stderr
    records = left_in(tmp_path / "runs")[1]
    calls = calls_of(records)
    assert max(len(round_.tool_calls) for round_ in records[0].rounds) >= 4
    offered = {"one_mirrored": "one", "write": "one", "get_2": "two", "two_mirrored": "two"}
    asked = {call.name: call.server for call in calls}
    assert asked.items() <= offered.items()
    assert len(asked) >= 3  # of four, drawn
    assert {call.status for call in calls} == {"ok"}
    known = {call.id for call in calls}
    assert [c.meta["toolcall-profiler/call"] in known for c in (*one.calls, *two.calls)] == [True] * len(
        calls
    )
    assert {(c.tool, c.meta["toolcall-profiler/loop"]) for c in two.calls} == {("get.2", 0), ("mirrored", 0)}
    assert one.most_at_once == 1


def test_run_on_the_emulators_own_endpoint_knows_its_time(tmp_path):
    with start_emulator("cities") as emulator:
        done = profiler("run", "--mcp", f"cities={emulator.url}/mcp", "--out", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    calls = calls_of(left_in(tmp_path / "runs")[1])
    assert calls
    for call in calls:
        assert (call.status, call.server) == ("ok", "cities")
        assert call.remote is not None
        assert call.remote.server_ns is not None


def test_compare_in_two_processes_keeps_to_limits_of_servers_and_tells_no_secrets(tmp_path):
    mark = uuid.uuid4().hex
    lines: set[bytes] = set()
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.2):
            for pid in (*marked(mark), *with_mark(mark)):
                with contextlib.suppress(OSError):
                    lines.add((Path("/proc") / str(pid) / "cmdline").read_bytes())

    sampler = threading.Thread(target=sample)
    sampler.start()
    behaviours = Behaviour(seconds=0.2, tools=("search", "write")), Behaviour(seconds=0.2, tools=("look",))
    try:
        with (
            start_emulator("fanout") as emulator,
            recorder(emulator.url) as (model, asked),
            served(*behaviours) as (web, other),
        ):
            done = profiler(
                *("compare", "--base-url", model, "--header", "X-Model=CANARY-model"),
                *("--mcp", f"web={web.url}", "--mcp-header", "web:X-Web=CANARY-web"),
                *("--mcp", f"other={other.url}", "--mcp-header", "other:authorization=Bearer CANARY-other"),
                *("--mcp", f"files=env TOKEN=CANARY-files {OWN} --name {mark} --tools environment"),
                *("--strategy", "gathered", "--strategy", "semaphore:2@server", "--users", "8"),
                *("--workers", "2", "--duration", "1", "--out", str(tmp_path / "runs"), "--record-content"),
                *QUICK,
                **{**KEYS, MARK: mark},
            )
    finally:
        over.set()
        sampler.join(60)
    assert done.returncode in (0, 1), done.stderr  # on a busy machine figures may be invalid
    run, records = left_in(tmp_path / "runs")
    assert run.load().workers == 2
    assert "2 stdio processes: one per worker, shared by its 4 agents" in done.stderr
    assert "withheld, since they do not declare themselves read-only: write" in done.stderr
    assert wait_until(lambda: not with_mark(mark) and not marked(mark), 60)

    calls = calls_of(records)
    assert {(c.name, c.server) for c in calls} == {
        ("search", "web"),
        ("look", "other"),
        ("environment", "files"),
    }
    assert {c.tool for c in web.calls} == {"search"}
    in_trials = _most_at_once(web)
    assert in_trials[1] <= 4  # two in each of two processes
    assert in_trials[0] > 4

    # Nobody gets what is meant for another.
    told = [json.dumps(headers) for headers in asked]
    assert all("CANARY-model" in one for one in told)
    assert not any("CANARY-web" in one or "CANARY-other" in one or "CANARY-files" in one for one in told)
    for server, own in ((web, "CANARY-web"), (other, "CANARY-other")):
        for _, _, headers in server.requests:
            assert [value for value in headers.values() if CANARY in value] == [
                value for value in headers.values() if own in value
            ]
            assert any(own in value for value in headers.values())
    said = {call.result for call in calls if call.name == "environment"}
    assert said
    for environment in said:
        assert environment is not None
        assert "TOKEN" in environment
        assert not any(key in environment for key in ("model-key", "other-key", "CANARY-password"))
        assert not any(name in environment for name in (*KEYS, "PROFILER_"))

    # Nothing that is secret is kept, printed, or seen by other users of the machine.
    kept = {path.name: path.read_text() for path in run.path.iterdir() if path.name != "records.jsonl"}
    assert {name: text for name, text in kept.items() if CANARY in text} == {}
    assert CANARY not in done.stdout + done.stderr
    assert lines
    assert not [line for line in lines if CANARY.encode() in line and b"tests.mcp_server" not in line]
    assert not [line for line in lines if CANARY.encode() in line and b"--run-directory" in line]
    assert run.load().mcp_servers[2].address.startswith("env TOKEN=[redacted] ")


def _most_at_once(server: McpServer) -> dict[int, int]:
    """The most calls that were under way at once, by trial."""
    most: dict[int, int] = {}
    for trial in {c.meta.get("toolcall-profiler/trial") for c in server.calls} - {None}:
        spans = [c for c in server.calls if c.meta.get("toolcall-profiler/trial") == trial and c.ended_ns]
        steps = sorted(
            [(c.started_ns or 0, 1) for c in spans] + [(c.ended_ns or 0, -1) for c in spans],
        )
        running = most[trial] = 0
        for _, step in steps:
            running += step
            most[trial] = max(most[trial], running)
    return most


def test_agents_of_their_own_have_a_process_each(tmp_path):
    mark = uuid.uuid4().hex
    counted = set()

    def all_are_there() -> bool:
        counted.add(len(with_mark(mark)))
        return max(counted) >= 3 and _recorded(tmp_path)

    with subprocess.Popen(
        [
            *(sys.executable, "-m", "profiler", "compare", "--mcp", f"files={OWN} --name {mark}"),
            *("--mcp-per-agent", "--users", "3", "--duration", "60", "--strategy", "gathered"),
            *("--scenario", "instant", "--out", str(tmp_path), *QUICK),
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert wait_until(all_are_there, 60)
        finally:
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=60)[1]
    assert "3 stdio processes: one per agent" in said
    assert max(counted) == 3
    assert wait_until(lambda: not with_mark(mark), 60)
    assert {call.status for call in calls_of(left_in(tmp_path)[1])} == {"ok"}


def test_server_that_dies_in_the_middle_is_said_first(tmp_path):
    dies = ("--mcp", f"files={OWN} --fault exit", "--scenario", "instant")
    with ThreadPoolExecutor() as pool:
        one_loop = pool.submit(profiler, "run", *dies)
        load = ("--users", "2", "--duration", "1", "--strategy", "gathered", "--out", str(tmp_path), *QUICK)
        done = profiler("compare", *dies, *load)
    assert done.returncode == 1
    run, records = left_in(tmp_path)
    lost = [call for call in calls_of(records) if call.error_type == "session_lost"]
    assert lost
    (incident,) = (one for one in run.load().incidents if one.kind == "server_lost")
    assert "the session with files was lost" in incident.detail
    assert incident.count >= 1
    assert "an MCP server ended, or lost its session" in " ".join(done.stdout.split())
    assert one_loop.result().stdout.startswith("the session with files was lost, and ")


@pytest.mark.parametrize("command", [("run",), ("compare", *QUICK)])
@pytest.mark.parametrize(
    ("server", "said"),
    [
        ("files=no-such-program --x", "there is no program 'no-such-program'"),
        (f"files={OWN} --fault exits_at_discover --tools", "no tools are listed"),
        ("web=http://127.0.0.1:9/mcp", "MCP server web"),
    ],
)
def test_server_that_cannot_be_asked_is_one_line_before_any_load(tmp_path, command, server, said):
    done = profiler(*command, "--mcp", server, *(("--out", str(tmp_path / "runs")) if command[1:] else ()))
    assert done.returncode == (2 if "listed" in said else 3)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("profiler: ")]
    assert said in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_server_that_redirects_is_not_followed(tmp_path):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(307)
            self.send_header("location", other.url)
            self.send_header("content-length", "0")
            self.end_headers()

        do_DELETE = do_POST

        def log_message(self, *_: object) -> None:
            pass

    with served(Behaviour()) as (other,), ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/mcp"
        done = profiler("run", "--mcp", f"web={url}", "--mcp-header", "web:authorization=Bearer CANARY-web")
        server.shutdown()
    assert done.returncode == 3
    assert "redirects to" in done.stderr
    assert CANARY not in done.stderr
    assert other.requests == []


def test_load_on_the_sdks_sessions_ends_and_leaves_no_server(tmp_path):
    """Beside gevent, whose signal handler takes the notice of a child's end."""
    pytest.importorskip("mcp")
    mark = uuid.uuid4().hex
    done = profiler(
        *("mcp", "load", f"files={OWN} --seconds 0.05 --name {mark}", "--call", "search"),
        *("--mcp-client", "sdk", "--mcp-per-agent", "--users", "2", "--duration", "1"),
        *("--allow-saturated", "--out", str(tmp_path), *QUICK),
    )
    assert done.returncode == 0, done.stderr
    assert not with_mark(mark)
    calls = calls_of(left_in(tmp_path)[1])
    assert {(call.name, call.server, call.status) for call in calls} == {("search", "files", "ok")}
    assert {call.remote.transport for call in calls if call.remote} == {"stdio"}


STUBBORN = f"""
import runpy, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.path.insert(0, {str(ROOT)!r})
try:
    runpy.run_module("tests.mcp_server", run_name="__main__")
finally:
    time.sleep(600)
"""
"""It goes on after the end of its input and after SIGTERM."""

ENDS = ("interrupt", "kill the workers", "kill all")


def servers_left_after(end: str, path: Path) -> list[int]:
    """The stubborn servers, and processes of ours, that are there a minute after the end of a run."""
    mark = uuid.uuid4().hex
    script = path / "stubborn.py"
    script.write_text(STUBBORN)
    server = shlex.join([sys.executable, str(script), "--stdio", "--name", "tests.mcp_server", "--era", mark])
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "profiler", "compare", "--mcp", f"files={server}", "--users", "4"),
            *("--workers", "2", "--duration", "60", "--strategy", "gathered", "--scenario", "instant"),
            *("--out", str(path / "runs"), "--quiet", *QUICK),
        ],
        cwd=ROOT,
        env={**os.environ, MARK: mark},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        assert wait_until(lambda: len(with_mark(mark)) == 2 and _recorded(path / "runs"), 60)
        if end == "interrupt":
            process.send_signal(signal.SIGINT)
        elif end == "kill the workers":
            for pid in {_parent(one) for one in with_mark(mark)}:
                os.kill(pid, signal.SIGKILL)
        else:
            for pid in marked(mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.wait(60)
        wait_until(lambda: not with_mark(mark) and not marked(mark), 60)
        return [*with_mark(mark), *marked(mark)]
    finally:
        process.kill()
        process.wait()
        for pid in with_mark(mark):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def left_after(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[list[int]]]:
    """All at the same time: most of it is waiting."""
    with ThreadPoolExecutor() as pool:
        return {end: pool.submit(servers_left_after, end, tmp_path_factory.mktemp("end")) for end in ENDS}


@pytest.mark.parametrize("end", ENDS)
def test_server_does_not_outlive_the_run(end, left_after):
    assert left_after[end].result() == []


def _recorded(directory: Path) -> bool:
    return any(path.stat().st_size for path in directory.glob("*/records.jsonl"))


def _parent(pid: int) -> int:
    status = (Path("/proc") / str(pid) / "status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("PPid:")).split()[1])


AGENT = """
import asyncio, os
from functools import partial

import mcp
from openai import AsyncOpenAI

A, B = os.environ["SERVERS"].split()
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("search", "fetch")]


async def ask(client, model, prompt):
    message = {"role": "user", "content": prompt}
    await client.chat.completions.create(model=model, messages=[message], tools=TOOLS)


def handed_over(ctx):
    async def loop():
        async with AsyncOpenAI(**ctx.client_options()) as client, mcp.Client(A) as a, mcp.Client(B) as b:
            for one in (client, a, b):
                ctx.profiler.instrument(one)
            await ask(client, "gpt-4o", ctx.prompt)
            each = [partial(a.call_tool, "search", {}), partial(b.call_tool, "fetch", {})]
            await ctx.execute(*each * 4)

    return loop


async def plain(prompt):
    async with AsyncOpenAI() as client, mcp.Client(A) as a, mcp.Client(B) as b:
        await ask(client, "gpt-4o", prompt)
        each = [partial(a.call_tool, "search"), partial(b.call_tool, "fetch")]
        await asyncio.gather(*(call() for call in each * 4))
"""


@pytest.mark.parametrize("agent", ["handed_over", "plain"])
def test_limit_of_servers_holds_for_an_agent_on_the_sdks_clients(tmp_path, agent):
    if not hasattr(pytest.importorskip("mcp"), "Client"):
        pytest.skip("the agent of this test is written for mcp 2")
    (tmp_path / "two_servers.py").write_text(AGENT)
    behaviours = [
        Behaviour(seconds=0.05, name=name, tools=(tool,)) for name, tool in (("a", "search"), ("b", "fetch"))
    ]
    with served(*behaviours) as servers:
        done = profiler(
            *("compare", "--agent", f"two_servers:{agent}", "--strategy", "semaphore:2@server"),
            *(*QUICK, "--users", "2", "--duration", "1s", "--out", str(tmp_path / "runs")),
            SERVERS=" ".join(server.url for server in servers),
            PYTHONPATH=str(tmp_path),
        )
        assert done.returncode in (0, 1), done.stderr
        assert [server.most_at_once for server in servers] == [2, 2]
    assert "was not heeded" not in done.stdout
    _, records = left_in(tmp_path / "runs")
    assert {call.server for call in calls_of(records)} == {"a", "b"}
