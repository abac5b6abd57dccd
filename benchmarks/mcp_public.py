"""MCP servers that were not written here: calls watched in an agent's loop, and the servers load-tested.

    python -m benchmarks.mcp_public NAME="command with its arguments" NAME=http://127.0.0.1:8000/mcp … \\
        [--seconds 10] [--allow-writes TOOL,…] [--call SERVER/TOOL='{"argument": 1}']

Watched: a small agent, hand-written on the official SDKs of the model and of MCP, with the emulator as its
model. It offers the tools that say they are read-only (and those of `--allow-writes` and `--call`), and
runs all calls of a reply at once. In its row: calls that the model asked for; of those the ones that were
seen, that have their tool's name, that have the server's; calls asked for and not seen; by how much the
parts of a call miss its duration, at worst.

Load-tested: `profiler mcp load` with the calls of `--call`, else with every tool that is read-only and
arguments drawn from its schema, from 8 agents. In its row: exit code and seconds of the command, calls,
calls/s and p95 of those that ended well, failures, and how many processes of a server that is a command are
left afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import psutil  # type: ignore[import-untyped]  # Locust brings it
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from openai import AsyncOpenAI

from profiler import Profiler
from profiler.emulator.process import start_emulator
from profiler.mcp.servers import ServerSpec
from profiler.records import LoopRecord, ToolCall

AGENTS = 8


@dataclass
class Watched:
    """What a watched agent asked for, and what was seen of it."""

    asked: dict[str, str] = field(default_factory=dict)  # call id -> tool, as the model said
    offered: int = 0
    records: list[LoopRecord] = field(default_factory=list)

    def row(self, server: str) -> str:
        calls = [call for record in self.records for call in record.tool_calls if call.id in self.asked]
        named = sum(call.name == self.asked[call.id] for call in calls)
        of_server = sum(call.remote is not None and bool(call.server) for call in calls)
        unseen = sum(record.unobserved_calls for record in self.records)
        missed = max((abs(parts_ns(call) - duration_ns(call)) for call in calls), default=0)
        return (
            f"{server:16} {len(self.records):5} {self.offered:8} {len(self.asked):6} {len(calls):6} {named:6}"
            f" {of_server:10} {unseen:9} {missed:9} ns  {said(failures(calls))}"
        )


def duration_ns(call: ToolCall) -> int:
    return call.ended_ns - (call.queued_ns if call.started_ns is None else call.started_ns)


def parts_ns(call: ToolCall) -> int:
    """Its session's wait, client's wait, server (and network) and parsing, added up."""
    waited = 0 if call.remote is None else call.remote.session_wait_ns
    return waited + (call.client_wait_ns or 0) + (call.remote_ns or 0) + (call.parsing_ns or 0)


def failures(calls: Iterable[ToolCall]) -> Counter[str]:
    return Counter(call.error_type or call.status for call in calls if call.status != "ok")


def said(failed: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(failed.items())) or "-"


@asynccontextmanager
async def open_client(spec: ServerSpec, errors: TextIO) -> AsyncIterator[Client]:
    """A client of the official SDK; `errors` takes what a command says on its standard error."""
    if spec.url is not None:
        async with Client(spec.url) as client:
            yield client
        return
    command = StdioServerParameters(command=spec.command[0], args=list(spec.command[1:]))
    async with Client(stdio_client(command, errlog=errors)) as client:
        yield client


def read_only(tool: Any) -> bool:
    return bool(tool.annotations and tool.annotations.read_only_hint)


async def watch(
    spec: ServerSpec, base_url: str, seconds: float, fixed: dict[str, str], allowed: set[str], errors: TextIO
) -> Watched:
    """Loops of an agent on one server for `seconds`; `fixed` are the only tools, with arguments, if any."""
    watched = Watched()
    prof = Profiler(sinks=[watched.records.append])
    model = prof.instrument(AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none"))
    async with open_client(spec, errors) as client:
        session = prof.instrument(client.session)
        listed = (await client.list_tools()).tools
        tools: list[Any] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description or "",
                    "parameters": tool.input_schema,
                },
            }
            for tool in listed
            if (tool.name in fixed if fixed else tool.name in allowed or read_only(tool))
        ]
        watched.offered = len(tools)

        async def call(asked: Any) -> dict[str, str]:
            watched.asked[asked.id] = asked.function.name
            try:
                arguments = fixed.get(asked.function.name, asked.function.arguments)
                result = await session.call_tool(asked.function.name, json.loads(arguments))
                text = " ".join(getattr(part, "text", "") for part in result.content)
            except Exception as error:  # an agent tells the model
                text = f"failed: {error}"
            return {"role": "tool", "tool_call_id": asked.id, "content": text[:2000]}

        until = time.monotonic() + seconds
        while time.monotonic() < until:
            messages: list[Any] = [{"role": "user", "content": "Look at what there is."}]
            async with prof.loop("public"):
                while True:
                    reply = await model.chat.completions.create(
                        model="gpt-4o", messages=messages, tools=tools
                    )
                    message = reply.choices[0].message
                    if not message.tool_calls:
                        break
                    messages.append(message)
                    messages += await asyncio.gather(*map(call, message.tool_calls))
    await model.close()
    return watched


def run(command: list[str], limit: float) -> tuple[int, str, str, list[psutil.Process]]:
    """Run a command: its exit code, output and errors, and which processes below it there are afterwards."""
    below: set[psutil.Process] = set()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = psutil.Popen(command, stdout=out, stderr=errors)
        until = time.monotonic() + limit
        while process.poll() is None:
            below.update(process.children(recursive=True))
            if time.monotonic() > until:
                process.kill()
            time.sleep(0.1)
        _, left = psutil.wait_procs(list(below), timeout=5)
        for file in (out, errors):
            file.seek(0)
        return process.returncode, out.read(), errors.read(), left


def load(where: str, name: str, seconds: float, fixed: dict[str, str], allowed: set[str]) -> bool:
    """Print what `profiler mcp load` says of a server; whether calls ended well and no process is left."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "profiler", "mcp", "load", where, "--users", str(AGENTS)]
        command += ["--duration", f"{seconds:g}s", "--no-metrics", "--quiet", "--json", "--out", out]
        if fixed:
            calls = Path(out, "calls.jsonl")
            calls.write_text(
                "".join(f'{{"tool": "{tool}", "arguments": {value}}}\n' for tool, value in fixed.items())
            )
            command += ["--args-from", str(calls)]
        if may := allowed | set(fixed):
            command += ["--allow-writes", ",".join(sorted(may))]
        began = time.monotonic()
        code, text, errors, left = run(command, seconds + 120)
        took = time.monotonic() - began
    if not text:
        print(f"{name:16} {code:4} {took:6.1f}  {errors.strip()}")
        return False
    (found,) = json.loads(text)["loads"]
    failed, p95 = Counter(found["failures"]), found["seconds"]["p95"]
    print(
        f"{name:16} {code:4} {took:6.1f} {found['calls']:7} {found['served']['value']:8.1f}/s"
        f" {'-' if p95 is None else format(1e3 * p95['value'], '.2f'):>9} ms {sum(failed.values()):8}"
        f" {len(left):10}  {said(failed)}"
    )
    return sum(failed.values()) < found["calls"] and not left


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("servers", nargs="+", metavar="NAME=WHERE")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--allow-writes", default="", metavar="TOOL,…")
    parser.add_argument("--call", action="append", default=[], metavar="SERVER/TOOL=ARGUMENTS")
    parser.add_argument("--only", choices=("watch", "load"), help="one half of it")
    arguments = parser.parse_args()
    allowed = {name for name in arguments.allow_writes.split(",") if name}
    fixed: dict[str, dict[str, str]] = {}
    for one in arguments.call:
        tool, _, value = one.partition("=")
        server, _, name = tool.partition("/")
        fixed.setdefault(server, {})[name] = value or "{}"
    specs = {where: ServerSpec.parse(where, "servers") for where in arguments.servers}
    held = True
    if arguments.only != "load":
        print("watched: an agent of the official SDKs, with the emulator as its model")
        print(
            f"{'server':16} {'loops':>5} {'offered':>8} {'asked':>6} {'seen':>6} {'named':>6}"
            f" {'of server':>10} {'not seen':>9} {'sum off':>12}  failed"
        )
        with start_emulator("instant", seed=7) as emulator:
            for spec in specs.values():
                calls = fixed.get(spec.name, {})
                with Path(os.devnull).open("w") as errors:
                    watched = asyncio.run(
                        watch(spec, emulator.url, arguments.seconds, calls, allowed, errors)
                    )
                print(watched.row(spec.name), flush=True)
                seen = {call.id for record in watched.records for call in record.tool_calls}
                held &= bool(watched.asked) and set(watched.asked) <= seen
    if arguments.only != "watch":
        print(f"\nload-tested: `profiler mcp load`, {AGENTS} agents, {arguments.seconds:g} s")
        print(
            f"{'server':16} {'exit':>4} {'s':>6} {'calls':>7} {'rate':>10} {'p95':>12}"
            f" {'failed':>8} {'left after':>10}"
        )
        for where, spec in specs.items():
            held &= load(where, spec.name, arguments.seconds, fixed.get(spec.name, {}), allowed)
            sys.stdout.flush()
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
