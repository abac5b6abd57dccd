"""What a scrape costs at its worst: series, time, size, and how long it holds an event loop.

    python benchmarks/scrape.py [--tools 50] [--strategies 6] [--repeats 20]

Fills a sink with every tool under every strategy, in two outcomes each, serves it from a thread of this
process, and has another process scrape it while an event loop here measures how late its timers fire.
Exits with 1 when a scrape held the loop for more than 20 ms longer than it is late without one.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, generate_latest

from profiler.exporters.prometheus import Exposition, PrometheusSink
from profiler.records import Attempt, LoopRecord, ModelCall, RoundRecord, ToolCall

MOST_HELD_SECONDS = 0.02

_MS = 1_000_000

_SCRAPER = """
import sys, time, urllib.request
url, repeats = sys.argv[1], int(sys.argv[2])
accept = {"Accept": "application/openmetrics-text;version=1.0.0", "Accept-Encoding": "gzip"}
for _ in range(repeats):
    began = time.perf_counter()
    size = len(urllib.request.urlopen(urllib.request.Request(url, headers=accept)).read())
    print(time.perf_counter() - began, size)
    time.sleep(0.2)
"""


def filled(tools: int, strategies: int) -> PrometheusSink:
    sink = PrometheusSink(labels={"testid": "benchmark"})
    for strategy in (f"semaphore:{n + 1}" for n in range(strategies)):
        for tool in range(tools):
            for status, error in (("ok", None), ("timeout", "timeout")):
                sink(_loop(strategy, f"tool_{tool}", status, error))
            sink.live_calls(strategy, f"tool_{tool}")
    return sink


def _loop(strategy: str, tool: str, status: str, error: str | None) -> LoopRecord:
    attempts = (Attempt(0, _MS, 429), Attempt(2 * _MS, 300 * _MS, 200))
    model = ModelCall(
        "openai",
        "gpt-4o",
        0,
        300 * _MS,
        first_token_ns=_MS,
        first_output_ns=2 * _MS,
        first_tool_call_ns=3 * _MS,
        input_tokens=9,
        cached_tokens=3,
        cache_written_tokens=3,
        output_tokens=9,
        reasoning_tokens=3,
        attempts=attempts,
    )
    call = ToolCall("c", tool, 300 * _MS, 300 * _MS, 310 * _MS, 700 * _MS, status, error)  # type: ignore[arg-type]
    round_ = RoundRecord(0, 0, 700 * _MS, model, 300 * _MS, 700 * _MS, (call,))
    return LoopRecord(f"{strategy}-{tool}", strategy, "openai", "gpt-4o", 0, 700 * _MS, "ok", (round_,))


async def lateness(scraper: list[str] | None, seconds: float) -> tuple[list[float], list[tuple[float, int]]]:
    """How late timers of 1 ms fire, in seconds, and what the scraper says, while it runs."""
    process = None
    if scraper is not None:
        process = await asyncio.create_subprocess_exec(*scraper, stdout=subprocess.PIPE)
    late: list[float] = []
    end = time.perf_counter() + seconds
    output = asyncio.ensure_future(process.communicate()) if process is not None else None
    while time.perf_counter() < end if output is None else not output.done():
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        late.append(time.perf_counter() - began - 0.001)
    if output is None:
        return late, []
    lines = (await output)[0].decode().splitlines()
    return late, [(float(t), int(s)) for t, s in (line.split() for line in lines)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", type=int, default=50)
    parser.add_argument("--strategies", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()

    sink = filled(arguments.tools, arguments.strategies)
    exposition = Exposition(sink)
    text = exposition.render(openmetrics=True)
    series = sum(not line.startswith(b"#") for line in text.splitlines())
    print(
        f"{arguments.tools} tools x {arguments.strategies} strategies: "
        f"{series} series, {len(text) / 1e6:.2f} MB"
    )
    print(f"render          {_median(lambda: exposition.render(openmetrics=True)):7.1f} ms")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(sink)
    print(f"in a registry   {_median(lambda: generate_latest(registry), 3):7.1f} ms, by prometheus-client")

    port = sink.serve(0)
    scraper = [sys.executable, "-c", _SCRAPER, f"http://127.0.0.1:{port}/metrics", str(arguments.repeats)]
    quiet, _ = asyncio.run(lateness(None, 3.0))
    busy, scrapes = asyncio.run(lateness(scraper, 0.0))
    took = statistics.median(t for t, _ in scrapes)
    print(f"scrape          {took * 1000:7.1f} ms, {scrapes[0][1] / 1e3:.0f} kB compressed")
    held = max(busy) - max(quiet)
    print(f"event loop late {max(busy) * 1000:7.1f} ms at most, {max(quiet) * 1000:.1f} ms without scrapes")
    if held > MOST_HELD_SECONDS:
        print(f"a scrape held the event loop for {held * 1000:.0f} ms; 20 ms is the most it may")
        return 1
    return 0


def _median(call: Callable[[], object], repeats: int = 10) -> float:
    """Milliseconds."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


if __name__ == "__main__":
    sys.exit(main())
