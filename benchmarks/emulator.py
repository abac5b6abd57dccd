"""What the emulator costs and how true it is.

    python benchmarks/emulator.py [--seconds 4] [--full-minute]
    python benchmarks/emulator.py --against CHECKOUT [--repeats 9]

The emulator runs in a process of its own with everything on: validation, tape, journal. The load
comes from another process, over kept-alive loopback connections. Server CPU is user and system time
of the emulator's process, read from /proc (utime + stime), per request it finished. Beside it, in
the same run, what `AsyncOpenAI` on aiohttp spends per request in a client process of its own.

With `--against CHECKOUT` another checkout of this package is measured beside this one, and nothing else: a
server process of each, in turns of a second and a half under the same client, for all three model APIs.
The ratios are medians over the repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

import uvloop

from profiler.emulator.process import EmulatorProcess, start_emulator
from profiler.loop.model import CALL_HEADER, LOOP_HEADER

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Name of the city, such as Paris."},
        "units": {
            "type": "string",
            "enum": ["celsius", "fahrenheit"],
            "description": "Unit of the temperature.",
        },
    },
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name} of a city, as JSON with units.",
            "parameters": CITY,
        },
    }
    for name in ("get_weather", "get_population")
]
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "You are a helpful assistant that answers questions about cities. " * 6},
    {"role": "user", "content": "Compare the weather and the population of Tokyo and Paris, please."},
]
CONNECTIONS = 32
CHAT, RESPONSES, ANTHROPIC = "/v1/chat/completions", "/v1/responses", "/v1/messages"
ROOT = Path(__file__).resolve().parents[1]
MOST = {False: 0.86, True: 0.91}
"""Of what another checkout takes for a whole reply, and for a streamed one: 110 of 128, and 160 of 176."""
TURN_SECONDS = 1.5


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has spent."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> float:
    """Resident set of a process, at its highest."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc/PID/status")


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """The bytes of a request as the SDKs send it."""
    lines = {
        "Host": "127.0.0.1",
        "Accept": "application/json",
        "Content-Type": "application/json",
        "User-Agent": "AsyncOpenAI/Python",
        "X-Stainless-Lang": "python",
        "X-Stainless-Async": "async:asyncio",
        "X-Stainless-Retry-Count": "0",
        "Authorization": "Bearer sk-none",
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Client(asyncio.Protocol):
    """Sends the next request when the last one's response has ended; keeps its first response."""

    def __init__(self, make: Callable[[int], bytes], count: list[int], stop_at: float) -> None:
        self._make = make
        self._count = count
        self._stop_at = stop_at
        self._buffer = b""
        self.first = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._buffer = b""
        self._count[0] += 1
        self._transport.write(self._make(self._count[0]))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._complete():
            return
        self.first = self.first or self._buffer
        if time.perf_counter() < self._stop_at:
            self._send()
        elif not self.done.done():
            self.done.set_result(None)
            self._transport.close()

    def _complete(self) -> bool:
        head, mark, body = self._buffer.partition(b"\r\n\r\n")
        if not mark:
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(self._buffer.decode())
        if b"transfer-encoding" in head:
            return body.endswith(b"0\r\n\r\n")
        return len(body) == int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])


async def drive(url: str, make: Callable[[int], bytes], seconds: float) -> tuple[int, bytes]:
    """Keep 32 connections busy; how many requests were answered, and one response."""
    host, port = url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    count, stop_at = [0], time.perf_counter() + seconds
    clients = []
    for _ in range(CONNECTIONS):
        _, client = await loop.create_connection(lambda: Client(make, count, stop_at), host, int(port))
        clients.append(client)
    await asyncio.gather(*(client.done for client in clients))
    return count[0], clients[0].first


def cost(emulator: EmulatorProcess, make: Callable[[int], bytes], seconds: float) -> tuple[float, bytes]:
    """Server CPU in µs per request: the median of three runs, after a warm-up."""
    uvloop.run(drive(emulator.url, make, 0.5))
    figures, sample = [], b""
    for _ in range(3):
        before = cpu_seconds(emulator.pid)
        served, sample = uvloop.run(drive(emulator.url, make, seconds))
        figures.append((cpu_seconds(emulator.pid) - before) / served * 1e6)
    return median(figures), sample


SDK = """
import asyncio, json, os, resource, sys, time
import openai, uvloop
url, seconds = sys.argv[1], float(sys.argv[2])
body = json.load(sys.stdin)
async def main():
    transport = openai.DefaultAioHttpClient()
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="sk-none", http_client=transport) as client:
        async def loop(stop_at):
            done = 0
            while time.perf_counter() < stop_at:
                await client.chat.completions.create(**body)
                done += 1
            return done
        await asyncio.gather(*(loop(time.perf_counter() + 0.5) for _ in range(32)))
        before = time.process_time()
        done = sum(await asyncio.gather(*(loop(time.perf_counter() + seconds) for _ in range(32))))
        print((time.process_time() - before) / done * 1e6)
uvloop.run(main())
"""


def sdk_cost(emulator: EmulatorProcess, seconds: float) -> float:
    """Client CPU in µs that AsyncOpenAI on aiohttp spends per non-streamed request, 32 at a time."""
    body = json.dumps({"model": "gpt-4o", "messages": MESSAGES, "tools": TOOLS})
    command = [sys.executable, "-c", SDK, emulator.url, str(seconds)]
    return float(subprocess.run(command, input=body, capture_output=True, text=True, check=True).stdout)


def chat_body(*, stream: bool) -> bytes:
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(
        {"model": "gpt-4o", "messages": MESSAGES, "tools": TOOLS, **(streamed if stream else {})}
    ).encode()


def bodies(*, stream: bool) -> dict[str, bytes]:
    """The same request to each API, by path."""
    functions = [tool["function"] for tool in TOOLS]
    system, *messages = MESSAGES
    own: list[dict[str, Any]] = [
        {"model": "gpt-4o", "input": MESSAGES, "tools": [{"type": "function", **one} for one in functions]},
        {
            "model": "claude-sonnet-5-5",
            "max_tokens": 1024,
            "system": system["content"],
            "messages": messages,
            "tools": [
                {"name": one["name"], "description": one["description"], "input_schema": one["parameters"]}
                for one in functions
            ],
        },
    ]
    given = {"stream": True} if stream else {}
    responses, anthropic = (json.dumps({**one, **given}).encode() for one in own)
    return {CHAT: chat_body(stream=stream), RESPONSES: responses, ANTHROPIC: anthropic}


def of_twelve_events(url: str) -> int:
    """The loop whose first reply has twelve events, as a stream of Chat Completions."""
    body = chat_body(stream=True)

    async def events_of(loop: int) -> int:
        _, sample = await drive(url, lambda n: request("POST", CHAT, body, **{LOOP_HEADER: str(loop)}), 0.0)
        return sample.count(b"data: ")

    return next(loop for loop in range(100) if uvloop.run(events_of(loop)) == 12)


@contextmanager
def emulator_of(checkout: Path) -> Iterator[tuple[str, int]]:
    """URL and process id of an emulator that is run from a checkout."""
    command = [sys.executable, "-m", "profiler.emulator", "--scenario", "instant", "--port", "0"]
    with subprocess.Popen(
        [*command, "--exit-with-parent"],
        env={**os.environ, "PYTHONPATH": str(checkout)},
        cwd=checkout,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1], process.pid
        process.stdin.close()


def against(checkout: Path, repeats: int) -> None:
    print(f"Server CPU in µs per request, scenario instant, 32 connections, median of {repeats} turns")
    with ExitStack() as servers:
        here, there = (servers.enter_context(emulator_of(one)) for one in (ROOT, checkout.resolve()))
        twelve = of_twelve_events(here[0])

        def turn(server: tuple[str, int], path: str, body: bytes, loop: int | None) -> float:
            """`loop`: the number that each request has, None to count them."""
            url, pid = server
            before = cpu_seconds(pid)
            served, _ = uvloop.run(
                drive(
                    url,
                    lambda n: request("POST", path, body, **{LOOP_HEADER: str(n if loop is None else loop)}),
                    TURN_SECONDS,
                )
            )
            return (cpu_seconds(pid) - before) / served * 1e6

        shapes = [
            (path, stream, body) for stream in (False, True) for path, body in bodies(stream=stream).items()
        ]
        pairs: dict[tuple[str, bool], list[tuple[float, float]]] = {
            (path, stream): [] for path, stream, _ in shapes
        }
        for repeat in range(repeats):
            for path, stream, body in shapes:
                loop = twelve if stream else None
                if repeat % 2:
                    pair = turn(here, path, body, loop), turn(there, path, body, loop)
                else:
                    before = turn(there, path, body, loop)
                    pair = turn(here, path, body, loop), before
                pairs[path, stream].append(pair)
    print(f"  {'':30} {'here':>8} {'there':>8} {'ratio':>7}")
    for (path, stream), values in pairs.items():
        ours, theirs = (median(side) for side in zip(*values, strict=True))
        ratio = median(one / other for one, other in values)
        met = "met" if ratio <= MOST[stream] else "missed"
        name = f"{path}, {'streamed' if stream else 'whole'}"
        print(f"  {name:30} {ours:8.0f} {theirs:8.0f} {ratio:7.2f}  goal ≤ {MOST[stream]} of it: {met}")


def speed(seconds: float) -> None:
    print("Speed: server CPU in µs per request, scenario instant, 32 connections, median of 3")
    with start_emulator("instant") as emulator:
        body, streamed = chat_body(stream=False), chat_body(stream=True)

        def model(data: bytes, loop: int) -> bytes:
            return request("POST", CHAT, data, **{LOOP_HEADER: str(loop)})

        twelve = of_twelve_events(emulator.url)
        _, sample = cost(emulator, lambda n: request("POST", CHAT, body), 0.3)
        calls = json.loads(sample.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["tool_calls"]
        tool = {LOOP_HEADER: "0", CALL_HEADER: calls[0]["id"]}
        plain, _ = cost(emulator, lambda n: model(body, n), seconds)
        stream, sample = cost(emulator, lambda n: model(streamed, twelve), seconds)
        fetch, _ = cost(
            emulator, lambda n: request("GET", "/tools/weather?city=Paris&units=celsius", **tool), seconds
        )
        client = sdk_cost(emulator, seconds)
        events = sample.count(b"data: ")
        print(
            f"  model request, not streamed ({len(body):,} bytes)  {plain:6.0f}   (below 140: the fastest"
            " peer)"
        )
        print(
            f"  model request, {events} events                  {stream:6.0f}   (below 194: the fastest peer)"
        )
        print(f"  tool request                              {fetch:6.0f}   (at most 60)")
        print(
            f"  AsyncOpenAI on aiohttp, client side       {client:6.0f}   = {client / plain:.1f} model"
            " requests"
        )


async def paced_tools(url: str, rate: int, seconds: float) -> None:
    """Send tool requests at a constant rate, each on a connection of its own that is then kept."""
    host, port = url.removeprefix("http://").split(":")
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def one(n: int) -> None:
        reader, writer = free.pop() if free else await asyncio.open_connection(host, int(port))
        writer.write(request("GET", f"/tools/lookup?subject={n}"))
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        free.append((reader, writer))

    begun = time.perf_counter()
    tasks = []
    for n in range(int(rate * seconds)):
        delay = begun + n / rate - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        tasks.append(asyncio.create_task(one(n)))
    await asyncio.gather(*tasks)
    for _, writer in free:
        writer.close()


def truth(seconds: float, rate: int = 200) -> None:
    print(f"Truth: scenario fanout, {rate} tool requests/s for {seconds:g} s, first byte sent minus due")
    with start_emulator("fanout") as emulator:
        uvloop.run(paced_tools(emulator.url, rate, seconds))
        entries = json.load(urlopen(f"{emulator.url}/emulator/journal?kind=tool"))["entries"]
        late = sorted((entry["sent_ns"] - entry["due_ns"]) / 1e6 for entry in entries)
        n = len(late)
        print(
            f"  n={n}  earliest {late[0]:.3f} ms  p50 {late[n // 2]:.3f}  p99 {late[n * 99 // 100]:.3f}  max"
            f" {late[-1]:.3f}   (p99 below 2)"
        )


SLOW = """
description = "streams that stay open"
prompt = "Question {number}"
[model]
first_token = 0.5
tokens_per_second = 2
tokens_per_event = 1
[loop]
rounds = 1
fan_out = 3
[tools.look]
description = "Looks."
duration = 0
"""


async def open_streams(url: str, count: int, seconds: float) -> int:
    """Open `count` streams and hold them; how many had sent their first byte when all were open."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"model": "gpt-4o", "messages": MESSAGES, "tools": TOOLS, "stream": True}).encode()
    streams = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request("POST", "/v1/chat/completions", body))
        streams.append((reader, writer))
    started = await asyncio.gather(*(reader.readuntil(b"\r\n\r\n") for reader, _ in streams))
    await asyncio.sleep(seconds)
    open_now = sum(not reader.at_eof() for reader, _ in streams)
    for _, writer in streams:
        writer.transport.abort()
    return open_now if len(started) == count else 0


def streams(count: int = 2000) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 200
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slow.toml"
        path.write_text(SLOW)
        with start_emulator(str(path)) as emulator:
            empty = memory_mib(emulator.pid)
            still = uvloop.run(open_streams(emulator.url, count, 3.0))
            print(f"Streams: {still} of {count} open at once")
            print(
                f"  memory {memory_mib(emulator.pid):.0f} MiB at the highest, {empty:.0f} before   (below"
                " 250)"
            )


QUOTA = """
description = "a quota"
prompt = "Question {number}"
time_scale = %s
[model]
first_token = 0
tokens_per_second = 0
[loop]
rounds = 1
fan_out = 1
[tools.look]
description = "Looks."
duration = 0
[quota]
requests_per_minute = 6000
burst = 0.05
"""


async def overload(url: str, rate: float, seconds: float) -> None:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode()
    data = request("POST", "/v1/chat/completions", body)
    drain = asyncio.create_task(reader.read(-1))
    begun = time.perf_counter()
    for n in range(int(rate * seconds)):
        delay = begun + n / rate - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        writer.write(data)
    await asyncio.sleep(0.2)
    writer.close()
    await drain


def quota(full: bool) -> None:
    seconds = 63.0 if full else 9.0
    scale = 1.0 if full else 0.1
    per_second = 100 / scale
    print(f"Quota: {per_second:g} requests/s, offered twice that for {seconds - 3:g} s after the burst")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quota.toml"
        path.write_text(QUOTA % scale)
        with start_emulator(str(path)) as emulator:
            uvloop.run(overload(emulator.url, 2 * per_second, seconds))
            entries = json.load(urlopen(f"{emulator.url}/emulator/journal?kind=model"))["entries"]
    first = entries[0]["received_ns"]
    drained = [
        ((e["received_ns"] - first) / 1e9, e["status"]) for e in entries if e["received_ns"] - first >= 4e9
    ]
    accepted = sum(status == 200 for _, status in drained)
    rate = accepted / (drained[-1][0] - drained[0][0])
    print(f"  accepted {rate:.1f}/s = {rate / per_second * 100 - 100:+.2f} % of the quota   (within 3 %)")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seconds", type=float, default=4.0, help="length of each measurement")
    options.add_argument("--full-minute", action="store_true", help="drive the quota for a whole minute")
    options.add_argument("--against", type=Path, metavar="CHECKOUT", help="measure beside another checkout")
    options.add_argument("--repeats", type=int, default=9, help="turns of each, beside another checkout")
    given = options.parse_args()
    others = os.getloadavg()[0]
    print(f"Load average {others:.1f} on {os.cpu_count()} cores at the start", end="")
    print(": not idle, lateness will show it" if others > 0.5 else "")
    if given.against is not None:
        against(given.against, given.repeats)
        return
    speed(given.seconds)
    truth(max(given.seconds, 5.0))
    streams()
    quota(given.full_minute)


if __name__ == "__main__":
    main()
