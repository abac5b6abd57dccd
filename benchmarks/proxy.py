"""What `profiler proxy` costs, and when bytes pass through it. Prints; asserts nothing.

    python -m benchmarks.proxy [--seconds 4] [--repeats 3] [--rate 200]

Every part is a process of its own: the emulator, the load (aiohttp), the proxy, and a bare pass-through on
aiohttp (a server whose handler asks with a client and writes on what comes), made as small as one can be. The
arms take turns in one run, and medians over the repeats are printed.

Cost: model requests at a constant rate, in loops of their own with growing conversations, to a server that
answers at once, whole and streamed (12 events in one write). Then streamed with the events 5 ms apart.
Times: one loop at a time on a scenario with real latencies; each response's first and last byte at the client
less those in the emulator's journal.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from urllib.request import urlopen

import uvloop

from profiler.emulator.process import start_emulator

BARE = """
import asyncio, sys
import aiohttp, uvloop
from aiohttp import web
upstream = sys.argv[1]
HOP = {"host", "content-length", "transfer-encoding", "connection", "keep-alive"}
async def forward(request):
    headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
    session = request.app["session"]
    data = await request.read()
    url = upstream + request.path_qs
    async with session.request(request.method, url, headers=headers, data=data) as answer:
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP}
        response = web.StreamResponse(status=answer.status, headers=kept)
        if answer.content_length is not None:
            response.content_length = answer.content_length
        await response.prepare(request)
        async for piece in answer.content.iter_any():
            await response.write(piece)
        await response.write_eof()
        return response
async def main():
    app = web.Application(client_max_size=2**30)
    connector = aiohttp.TCPConnector(limit=0)
    app["session"] = aiohttp.ClientSession(connector=connector, auto_decompress=False)
    app.router.add_route("*", "/{path:.*}", forward)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print("listening on http://127.0.0.1:%d" % site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()
uvloop.run(main())
"""

APART = """
import asyncio, sys, uvloop
EVENT = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,'
EVENT += b'"delta":{"content":"word"}}]}\\n\\n'
class Served(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.data = transport, b""
    def data_received(self, data):
        self.data += data
        head, mark, body = self.data.partition(b"\\r\\n\\r\\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\\r\\n")[0]) if mark else 0
        if mark and len(body) >= length:
            self.data = b""
            asyncio.ensure_future(self.answer())
    async def answer(self):
        write = self.transport.write
        write(b"HTTP/1.1 200 OK\\r\\ncontent-type: text/event-stream\\r\\n")
        write(b"transfer-encoding: chunked\\r\\n\\r\\n")
        for _ in range(12):
            write(b"%x\\r\\n%b\\r\\n" % (len(EVENT), EVENT))
            await asyncio.sleep(0.005)
        write(b"0\\r\\n\\r\\n")
async def main():
    server = await asyncio.get_running_loop().create_server(Served, "127.0.0.1", 0)
    print("listening on http://127.0.0.1:%d" % server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()
uvloop.run(main())
"""

LOAD = """
import asyncio, json, sys, time
import aiohttp, uvloop
url, rate, seconds, streamed = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "streamed"
HEADERS = {"authorization": "Bearer sk-none", "content-type": "application/json",
           "user-agent": "OpenAI/Python 3", "accept": "application/json",
           "x-stainless-lang": "python", "x-stainless-retry-count": "0"}
TOOLS = [{"type": "function", "function": {"name": name, "description": "d" * 80, "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}} for name in ("weather", "population")]
async def main():
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        took = []
        async def loop(number):
            said = [{"role": "system", "content": "s" * 400}, {"role": "user", "content": "the same for all"}]
            for _ in range(2):
                body = {"model": "gpt-4o", "messages": said, "tools": TOOLS, "stream": streamed}
                data = json.dumps(body).encode()
                begun = time.perf_counter()
                async with session.post(url + "/v1/chat/completions", data=data, headers=HEADERS) as answer:
                    assert answer.status == 200, await answer.text()
                    told = await answer.read()
                took.append(time.perf_counter() - begun)
                if streamed:
                    return
                message = json.loads(told)["choices"][0]["message"]
                if not message.get("tool_calls"):
                    return
                said.append(message)
                said += [{"role": "tool", "tool_call_id": call["id"], "content": "r" * 50}
                         for call in message["tool_calls"]]
        for number in range(20):
            await loop(number)
        took.clear()
        print("begin", flush=True)
        sys.stdin.readline()
        begun, tasks, number = time.perf_counter(), [], 0
        while (now := time.perf_counter()) < begun + seconds:
            tasks.append(asyncio.create_task(loop(number)))
            number += 1
            await asyncio.sleep(max(0, begun + number * (1 if streamed else 2) / rate - time.perf_counter()))
        await asyncio.gather(*tasks)
        print(json.dumps(took), flush=True)
uvloop.run(main())
"""


class Process:
    """A part that says where it listens."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        self.url = re.findall(r"http://\S+", self._process.stdout.readline())[0]

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(") ")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


def load(
    url: str, rate: float, seconds: float, form: str, watched: Process | None
) -> tuple[list[float], float]:
    """Latencies in ms, sorted, and the CPU of `watched` in µs a request."""
    child = subprocess.Popen(
        [sys.executable, "-c", LOAD, url, str(rate), str(seconds), form],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdout.readline()
    before = watched.cpu() if watched is not None else 0.0
    child.stdin.write("\n")
    child.stdin.flush()
    took = sorted(one * 1e3 for one in json.loads(child.stdout.readline()))
    used = (watched.cpu() - before) / len(took) * 1e6 if watched is not None else 0.0
    child.wait()
    return took, used


def cost(upstream: str, form: str, proxy: Process, bare: Process, given: argparse.Namespace) -> None:
    arms = {"direct": (upstream, None), "aiohttp": (bare.url, bare), "proxy": (proxy.url, proxy)}
    figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in arms}
    names = list(arms)
    for repeat in range(given.repeats):
        for name in names[repeat % 3 :] + names[: repeat % 3]:
            url, watched = arms[name]
            took, used = load(url, given.rate, given.seconds, form, watched)
            figures[name].append((took[len(took) // 2], took[len(took) * 99 // 100], used))
    middle = {
        name: tuple(median(column) for column in zip(*rows, strict=True)) for name, rows in figures.items()
    }
    for name, (p50, p99, used) in middle.items():
        said = f"  CPU {used:4.0f} µs a request" if used else ""
        print(f"    {name:8} p50 {p50:7.3f} ms  p99 {p99:7.3f} ms{said}")
    added = [ours[0] - direct[0] for ours, direct in zip(figures["proxy"], figures["direct"], strict=True)]
    p99 = [ours[1] / theirs[1] for ours, theirs in zip(figures["proxy"], figures["aiohttp"], strict=True)]
    print(
        f"    added p50 {median(added):.3f} ms (at most 0.5); p99 {median(p99):.2f} times that of aiohttp's"
        f" (at most 1.5); CPU at most {300 if form == 'whole' else 450}"
    )


async def passes(url: str, loops: int) -> list[tuple[float, float]]:
    """When a response's first and last byte came at the client, ns; streamed, one after another."""
    import aiohttp

    times = []
    async with aiohttp.ClientSession() as session:
        body = {"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        for _ in range(loops):
            async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                first = last = 0
                async for _ in answer.content.iter_any():
                    last = time.monotonic_ns()
                    first = first or last
                times.append((first, last))
    return times


def times(given: argparse.Namespace) -> None:
    print("Times: one loop at a time, streamed, client's bytes less the emulator's journal")
    with start_emulator("cities") as emulator, tempfile.TemporaryDirectory() as out:
        proxy = Process("-m", "profiler", "proxy", "--upstream", emulator.url, "--port", "0", "--out", out)
        for name, url in (("direct", emulator.url), ("proxy", proxy.url)):
            request = f"{emulator.url}/emulator/journal?kind=model"
            had = len(json.load(urlopen(request))["entries"])
            seen = uvloop.run(passes(url, given.loops))
            entries = json.load(urlopen(request))["entries"][had:]
            firsts = [(a - e["sent_ns"]) / 1e6 for (a, _), e in zip(seen, entries, strict=True)]
            lasts = [(b - e["finished_ns"]) / 1e6 for (_, b), e in zip(seen, entries, strict=True)]
            print(
                f"  {name:8} first byte: median {median(firsts):.3f} ms, most {max(firsts):.3f}"
                f"   last: median {median(lasts):.3f}, most {max(lasts):.3f}   (at most 2)"
            )
        proxy.stop()


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seconds", type=float, default=4.0, help="length of each arm")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--rate", type=float, default=200.0, help="requests a second")
    options.add_argument("--loops", type=int, default=12, help="of the times")
    given = options.parse_args()
    print(f"Load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores at the start")
    with start_emulator("instant") as emulator, tempfile.TemporaryDirectory() as out:
        apart = Process("-c", APART)
        for words, upstream, form in (
            ("whole", emulator.url, "whole"),
            ("streamed, the events in one write", emulator.url, "streamed"),
            ("streamed, 12 events 5 ms apart", apart.url, "streamed"),
        ):
            print(f"  {words}, {given.rate:g} requests/s")
            proxy = Process("-m", "profiler", "proxy", "--upstream", upstream, "--port", "0", "--out", out)
            bare = Process("-c", BARE, upstream)
            cost(upstream, form, proxy, bare, given)
            proxy.stop()
            bare.stop()
        apart.stop()
    times(given)


if __name__ == "__main__":
    main()
