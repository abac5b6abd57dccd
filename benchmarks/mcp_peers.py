"""An MCP server at twice what it can serve: what we say of it, and what other load testers say.

    python -m benchmarks.mcp_peers [--rate 80] [--seconds 10] \\
        [--inspector mcp-inspector] [--quality mcp-quality] [--safe mcpsafe]

The server is one of the official SDK, in a process of its own: 8 calls at a time, 200 ms each, so 40
calls/s. It writes down when each call came, started and ended. All run in one sitting on the same server,
in turn:

- `profiler mcp load --arrivals RATE/s`;
- the official inspector (`--cli … --load --load-rate RATE`), with the 10 calls in flight that it allows by
  default, and with 1000, which it does not reach here;
- `mcp-quality run … --performance` and `mcpsafe scan --modules load`, which take no rate: more and more
  calls at once, each in a session of its own whose opening counts, and batches of fixed size (mcpsafe runs
  its other checks too: two minutes).

`in truth` are p50 and p95 from when a call was due to when the server had done it, over every call that was
due. Ours were due when their records say that they were meant to start, those of the inspector evenly from
its first one on; one that it never sent has no end ("unsent"). Of those without a rate it is from received
to done. Of the others only those are run whose commands are given; nothing here needs them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.types import ToolAnnotations

from profiler.records import read

CAPACITY, SERVICE = 8, 0.2
TOOL = "work"


def serve(port: int, log: Path) -> None:
    """The server, until its standard input ends."""
    server = MCPServer("peers")
    places = asyncio.Semaphore(CAPACITY)
    lines = log.open("a", buffering=1)

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    async def work(ctx: Context, item: str = "a") -> str:
        """Take one of the places, and hold it for the time of service."""
        received, started = time.monotonic_ns(), None
        try:
            async with places:
                started = time.monotonic_ns()
                await asyncio.sleep(SERVICE)
            return f"{item} is done"
        finally:
            call = dict(ctx.request_context.meta or {}).get("toolcall-profiler/call")
            entry = {"call": call, "received": received, "started": started, "ended": time.monotonic_ns()}
            lines.write(json.dumps(entry) + "\n")

    assert work is not None
    config = uvicorn.Config(
        server.streamable_http_app(json_response=True),
        host="127.0.0.1",
        port=port,
        log_level="error",
        timeout_graceful_shutdown=1,
    )
    logging.disable(logging.WARNING)
    running = uvicorn.Server(config)

    def until_closed() -> None:
        sys.stdin.read()
        running.should_exit = True

    threading.Thread(target=until_closed, daemon=True).start()
    running.run()


@contextmanager
def server_process(log: Path) -> Iterator[str]:
    """The URL of a server, which listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.mcp_peers", "--serve", str(port), str(log)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=Path(__file__).parents[1])
    try:
        while not _listens(port):
            if process.poll() is not None:
                raise SystemExit("the server ended at once")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass(frozen=True)
class Entry:
    """A call in the server's log, in nanoseconds of the monotonic clock."""

    call: str | None
    received: int
    started: int | None
    ended: int


@dataclass(frozen=True)
class Row:
    """What a load tester said, in seconds; and the truth."""

    who: str
    asked: int | None  # calls that its rate and duration come to
    sent: int
    answered: int
    p50: float | None
    p95: float | None
    truth: tuple[float, float]  # p50 and p95
    backlog: str
    p95_is: str = ""  # what stands for a p95 that it does not say

    def __str__(self) -> str:
        asked = "-" if self.asked is None else self.asked
        p50 = "-" if self.p50 is None else f"{self.p50:.2f} s"
        p95 = "-" if self.p95 is None else f"{self.p95:.2f} s{self.p95_is}"
        truth = " ".join("unsent" if math.isinf(one) else f"{one:.2f} s" for one in self.truth)
        counts = f"{self.who:31} {asked:>5} {self.sent:>5} {self.answered:>8}"
        return f"{counts} {p50:>8} {p95:>10} {truth:>16}  {self.backlog}"


HEADER = (
    f"{'':31} {'asked':>5} {'sent':>5} {'answered':>8} {'p50':>8} {'p95':>10} {'in truth':>16}"
    "  of what piled up it says"
)


class Sitting:
    """One server, and what its log gained while something ran."""

    def __init__(self, url: str, log: Path, rate: float, seconds: float) -> None:
        self.url, self._log, self.rate, self.seconds = url, log, rate, seconds

    def entries(self) -> list[Entry]:
        if not self._log.exists():
            return []
        found = [Entry(**json.loads(line)) for line in self._log.read_text().splitlines()]
        return sorted(found, key=lambda entry: entry.received)

    def run(self, command: list[str], limit: float) -> tuple[subprocess.CompletedProcess[str], list[Entry]]:
        """Run a command, and wait until the server has done what it was asked."""
        before = len(self.entries())
        began = time.monotonic_ns()
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
        time.sleep(2 * SERVICE)
        new = [entry for entry in self.entries() if entry.received >= began]
        assert len(self.entries()) == before + len(new)
        return ran, new

    @property
    def asked(self) -> int:
        return round(self.rate * self.seconds)


def quantiles(seconds: list[float]) -> tuple[float, float]:
    """p50 and p95, also of calls that have no end (`inf`)."""
    ordered = sorted(seconds) or [math.nan]
    return ordered[math.ceil(0.5 * len(ordered)) - 1], ordered[math.ceil(0.95 * len(ordered)) - 1]


def evenly_due(entries: list[Entry], rate: float, asked: int) -> tuple[float, float]:
    """From due to done, the calls due evenly from the first one on, in the order in which they came."""
    first = entries[0].received
    done = [(entry.ended - first) / 1e9 - number / rate for number, entry in enumerate(entries[:asked])]
    return quantiles(done + [math.inf] * (asked - len(done)))


def ours(sitting: Sitting) -> Row:
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable,
            "-m",
            "profiler",
            "mcp",
            "load",
            sitting.url,
            "--call",
            TOOL,
            "--args",
            "{}",
        ]
        command += ["--arrivals", f"{sitting.rate:g}/s", "--duration", f"{sitting.seconds:g}s"]
        command += ["--blocks", "1", "--no-metrics", "--quiet", "--json", "--out", out]
        ran, entries = sitting.run(command, sitting.seconds * 8 + 120)
        if not ran.stdout:
            raise SystemExit(f"profiler mcp load: exit {ran.returncode}\n{ran.stderr}")
        said = json.loads(ran.stdout)
        records = [record for path in Path(out).glob("*/records.jsonl") for record in read(path)]
    due = {
        call.id: record.started_ns if record.intended_ns is None else record.intended_ns
        for record in records
        for call in record.tool_calls
    }
    done = {entry.call: entry.ended for entry in entries if entry.call in due}
    truth = quantiles([(done[call] - at) / 1e9 if call in done else math.inf for call, at in due.items()])
    (load,) = said["loads"]
    return Row(
        "profiler mcp load",
        len(due),
        len(done),
        load["calls"] - sum(load["failures"].values()) - load["cut"],
        load["seconds"]["p50"]["value"],
        load["seconds"]["p95"]["value"],
        truth,
        said["verdict"],
    )


_TELLS = re.compile(
    r"backlog|queue|dropped|missed|unsent|not sent|behind|schedul|late\b|saturat|overload", re.I
)


def tells(text: str) -> str:
    """The words of an output that are about work that piled up."""
    words = sorted({match.group().lower() for match in _TELLS.finditer(text)})
    return ", ".join(words) or "nothing"


def inspector(sitting: Sitting, command: str, in_flight: int | None) -> Row:
    words = [*shlex.split(command), "--cli", sitting.url, "--method", "tools/call", "--tool-name", TOOL]
    words += ["--tool-args-json", '{"item": "a"}', "--load", "--load-rate", f"{sitting.rate:g}"]
    words += ["--load-duration", f"{sitting.seconds:g}", "--format", "json"]
    words += [] if in_flight is None else ["--load-concurrency", str(in_flight)]
    ran, entries = sitting.run(words, sitting.seconds * 8 + 60)
    if not ran.stdout.strip():
        raise SystemExit(f"the inspector: exit {ran.returncode}\n{ran.stderr}")
    said = json.loads(ran.stdout)["result"]
    latency = said["latencyMs"]
    return Row(
        f"inspector --load, {in_flight or said['concurrency']} in flight",
        sitting.asked,
        len(entries),
        said["ok"],
        latency["p50"] / 1e3,
        latency.get("p95", latency["p90"]) / 1e3,
        evenly_due(entries, sitting.rate, sitting.asked),
        f"{tells(ran.stdout)}; {said['throughput']:g}/s",
        "" if "p95" in latency else " p90",
    )


def since_received(entries: list[Entry]) -> tuple[float, float]:
    return quantiles([(entry.ended - entry.received) / 1e9 for entry in entries])


def quality(sitting: Sitting, command: str) -> Row:
    words = [
        *shlex.split(command),
        "run",
        sitting.url,
        "--performance",
        "--concurrency",
        str(2 * CAPACITY),
        "--json",
    ]
    ran, entries = sitting.run(words, 180)
    said = json.loads(ran.stdout)["families"]["performance"]["metrics"]
    answered = round(said["calls"] * (1 - said["error_rate"]))
    backlog = f"{tells(json.dumps(said))}; {said['degradation']!r}"
    truth = since_received(entries)
    return Row(
        f"mcp-quality, up to {2 * CAPACITY} at once",
        None,
        len(entries),
        answered,
        said["p50_ms"] / 1e3,
        said["p95_ms"] / 1e3,
        truth,
        backlog,
    )


def safe(sitting: Sitting, command: str) -> Row:
    with tempfile.TemporaryDirectory() as out:
        words = [*shlex.split(command), "scan", sitting.url, "--transport", "http", "--modules", "load"]
        words += ["--output", "json", "--out-dir", out]
        _, entries = sitting.run(words, 400)
        (path,) = Path(out).glob("*.json")
        results = {one["test_name"]: one for one in json.loads(path.read_text())["results"]}
    sequential = json.loads(results["50 Sequential Rapid Calls"]["details"])
    stress = results["100 Concurrent Calls (Stress Test)"]["description"]
    return Row(
        "mcpsafe, batches of 20",
        None,
        len(entries),
        len(entries),
        sequential["p50_ms"] / 1e3,
        sequential["p95_ms"] / 1e3,
        since_received(entries),
        f"{tells(stress)}; {stress!r}",
    )


def _yes(holds: bool) -> str:
    return "yes" if holds else "NO"


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        serve(int(sys.argv[2]), Path(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=2 * CAPACITY / SERVICE)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--inspector", metavar="COMMAND")
    parser.add_argument("--quality", metavar="COMMAND")
    parser.add_argument("--safe", metavar="COMMAND")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log.jsonl"
        with server_process(log) as url:
            sitting = Sitting(url, log, arguments.rate, arguments.seconds)
            served = CAPACITY / SERVICE
            print(f"{CAPACITY} at a time, {SERVICE:g} s each: {served:g}/s; asked for {arguments.rate:g}/s")
            print(HEADER)
            print(own := ours(sitting), flush=True)
            if arguments.inspector:
                for in_flight in (None, 1000):
                    print(inspector(sitting, arguments.inspector, in_flight), flush=True)
            if arguments.quality:
                print(quality(sitting, arguments.quality), flush=True)
            if arguments.safe:
                print(safe(sitting, arguments.safe), flush=True)
    assert own.p95 is not None
    within = abs(own.p95 - own.truth[1]) <= 0.05 * own.truth[1]
    said = "cannot serve" in own.backlog or arguments.rate <= served
    print(f"ours: p95 within 5 % of the truth: {_yes(within)}; backlog said: {_yes(said)}")
    return 0 if within and said else 1


if __name__ == "__main__":
    sys.exit(main())
