"""MCP servers that were not written here: their calls watched in an agent's loop, then the servers load-tested.

    python -m benchmarks.mcp_public NAME="command with its arguments" NAME=http://127.0.0.1:8000/mcp … \\
        [--seconds 10] [--allow-writes TOOL,…] [--call SERVER/TOOL='{"argument": 1}']

Watched: a small agent, hand-written on the official SDKs of the model and of MCP, with the emulator as its
model. It offers the tools that say they are read-only (and those of `--allow-writes`, `--call`), and runs all calls of a reply
at once. In its row: calls that the model asked for, and of those the ones that were seen, under their tool's
name and the server's, with the id that the model gave them.

Load-tested: `profiler mcp load`, one tool with fixed arguments (`--call`, else arguments that the emulator
invents), ten seconds of one after another from each of 8 agents. Calls/s, p95, failures, and how many processes
of a server that is a command are left when it has ended.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from profiler import Profiler
from profiler.emulator.process import start_emulator
from profiler.mcp.servers import ServerSpec
from profiler.records import LoopRecord, read

AGENTS = 8


@dataclass
class Watched:
    """What a watched agent asked for, and what was seen of it."""

    asked: dict[str, str] = field(default_factory=dict)  # call id -> tool, as the model said
    offered: int = 0
    records: list[LoopRecord] = field(default_factory=list)

    def row(self, server: str) -> str:
        calls = {call.id: call for record in self.records for call in record.tool_calls if call.id in self.asked}
        named = sum(call.name == self.asked[call.id] for call in calls.values())
        of_server = sum(call.remote is not None and bool(call.server) for call in calls.values())
        unseen = sum(record.unobserved_calls for record in self.records)
        failed: dict[str, int] = {}
        for call in calls.values():
            if call.status != "ok":
                kind = call.error_type or call.status
                failed[kind] = failed.get(kind, 0) + 1
        parts = [c for c in calls.values() if c.started_ns is not None and c.remote is not None]
        sums = [
            abs((c.remote.session_wait_ns if c.remote else 0) + c.client_wait_ns + c.remote_ns + c.parsing_ns - (c.ended_ns - (c.started_ns or 0)))
            for c in parts
        ]
        return (
            f"{server:16} {len(self.records):5} {self.offered:8} {len(self.asked):6} {len(calls):6} {named:6}"
            f" {of_server:10} {unseen:9} {max(sums, default=0) / 1e3:9.1f} us  {_said(failed)}"
        )


def _said(failed: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(failed.items())) or "-"


def sdk_client(spec: ServerSpec) -> Any:
    """A client of the official SDK, to be entered."""
    from mcp import Client, StdioServerParameters

    if spec.url is not None:
        return Client(spec.url)
    return Client(StdioServerParameters(command=spec.command[0], args=list(spec.command[1:])))


async def watch(spec: ServerSpec, base_url: str, seconds: float, allowed: set[str]) -> Watched:
    """Loops of an agent on one server for `seconds`."""
    from openai import AsyncOpenAI

    watched = Watched()
    prof = Profiler(sinks=[watched.records.append])
    model = prof.instrument(AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none"))
    async with sdk_client(spec) as client:
        session = prof.instrument(client.session)
        listed = (await client.list_tools()).tools
        tools = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description or "",
                    "parameters": tool.input_schema,
                },
            }
            for tool in listed
            if tool.name in allowed or (tool.annotations and tool.annotations.read_only_hint)
        ]
        watched.offered = len(tools)

        async def call(asked: Any) -> dict[str, str]:
            watched.asked[asked.id] = asked.function.name
            try:
                result = await session.call_tool(asked.function.name, json.loads(asked.function.arguments))
                text = " ".join(getattr(part, "text", "") for part in result.content)
            except Exception as error:  # an agent tells the model
                text = f"failed: {error}"
            return {"role": "tool", "tool_call_id": asked.id, "content": text[:2000]}

        until = time.monotonic() + seconds
        while time.monotonic() < until:
            messages: list[Any] = [{"role": "user", "content": "Look at what there is."}]
            async with prof.loop("public"):
                while True:
                    reply = await model.chat.completions.create(model="gpt-4o", messages=messages, tools=tools)
                    message = reply.choices[0].message
                    if not message.tool_calls:
                        break
                    messages.append(message)
                    messages += await asyncio.gather(*map(call, message.tool_calls))
    await model.close()
    prof.close()
    return watched


def processes_of(spec: ServerSpec) -> set[int]:
    """Ids of the processes whose command line has all words of a server's command."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if spec.command and {os.fsencode(word) for word in spec.command[1:] or spec.command} <= set(words):
            found.add(int(path.parent.name))
    return found - {os.getpid(), os.getppid()}


def load(spec: ServerSpec, where: str, out: Path, seconds: float, calls: dict[str, str], allowed: set[str]) -> bool:
    """Print what `profiler mcp load` says of a server; whether it could do its calls."""
    before = processes_of(spec)
    options = ["--users", str(AGENTS), "--duration", f"{seconds:g}s", "--no-metrics", "--quiet", "--out", str(out)]
    for tool, arguments in calls.items():
        options += ["--call", tool, "--args", arguments]
    if allowed | set(calls):
        options += ["--allow-writes", ",".join(sorted(allowed | set(calls)))]
    began = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-m", "profiler", "mcp", "load", where, *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 120,
    )
    took = time.monotonic() - began
    left = processes_of(spec) - before
    records = [record for path in out.glob("*/records.jsonl") for record in read(path)]
    done = sorted(c.ended_ns - (c.started_ns or c.queued_ns) for r in records for c in r.tool_calls)
    failed: dict[str, int] = {}
    for record in records:
        for one in record.tool_calls:
            if one.status != "ok":
                kind = one.error_type or one.status
                failed[kind] = failed.get(kind, 0) + 1
    span = (max(r.ended_ns for r in records) - min(r.started_ns for r in records)) / 1e9 if records else 0.0
    p95 = done[int(0.95 * (len(done) - 1))] / 1e6 if done else float("nan")
    print(
        f"{spec.name:16} {ran.returncode:4} {took:6.1f} {len(done):7} {len(done) / span if span else 0:8.1f}/s"
        f" {p95:8.2f} ms {sum(failed.values()):8} {len(left):6} left  {_said(failed)}"
    )
    if ran.returncode not in (0, 1) or not done:
        print(*(ran.stdout + ran.stderr).splitlines()[-6:], sep="\n")
    return bool(done) and not left


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
                also = allowed | set(fixed.get(spec.name, ()))
                watched = asyncio.run(watch(spec, emulator.url, arguments.seconds, also))
                print(watched.row(spec.name), flush=True)
                seen = {call.id for record in watched.records for call in record.tool_calls}
                held &= bool(watched.asked) and set(watched.asked) <= seen
    if arguments.only != "watch":
        print(f"\nload-tested: `profiler mcp load`, {AGENTS} agents, {arguments.seconds:g} s")
        print(f"{'server':16} {'exit':>4} {'s':>6} {'calls':>7} {'rate':>10} {'p95':>11} {'failed':>8} {'processes':>11}")
        for where, spec in specs.items():
            with tempfile.TemporaryDirectory() as out:
                held &= load(spec, where, Path(out), arguments.seconds, fixed.get(spec.name, {}), allowed)
            sys.stdout.flush()
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
