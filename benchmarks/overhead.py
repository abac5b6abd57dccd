"""What profiling costs: CPU per loop, bare against profiled, side by side in one run.

bare       the loop every tutorial shows: json.loads, asyncio.gather, json.dumps
ToolLoop   ours, with the Prometheus and JSONL sinks
Profiler   the bare loop, its client instrumented and its tools wrapped, same sinks

Same client class, tools and emulator (scenario `instant`, in a process and on a core of its own).
The variants take turns in short blocks; the figures are medians over the repeats, the ratio is the
median of the ratios within a repeat.

    python benchmarks/overhead.py [--repeats 15] [--loops 150] [--agents 16] [--provider openai]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from profiler import Gathered, ToolLoop
from profiler.emulator.process import start_emulator
from profiler.exporters.jsonl import JsonlSink
from profiler.exporters.prometheus import PrometheusSink
from profiler.providers import make_provider
from profiler.records import LoopRecord
from profiler.scenarios.tools import (
    close_tool_clients,
    get_population,
    get_weather,
    tool_session,
    use_tools_at,
)
from profiler.watch.profiler import Profiler

PROMPT = "Compare the weather of a few cities."
Loop = Callable[[], Awaitable[Any]]


def bare_openai(provider: Any, functions: dict[str, Any]) -> Loop:
    client, tools = provider.client, provider.render_tools([get_weather, get_population])

    async def loop() -> str:
        messages: list[Any] = [{"role": "user", "content": PROMPT}]
        while True:
            response = await client.chat.completions.create(model="gpt-4o", messages=messages, tools=tools)
            message = response.choices[0].message
            if not message.tool_calls:
                return message.content
            messages.append(
                {
                    "role": "assistant",
                    "content": message.content,
                    "tool_calls": [
                        {
                            "id": c.id,
                            "type": "function",
                            "function": {"name": c.function.name, "arguments": c.function.arguments},
                        }
                        for c in message.tool_calls
                    ],
                }
            )
            results = await asyncio.gather(
                *(functions[c.function.name](**json.loads(c.function.arguments)) for c in message.tool_calls)
            )
            for c, result in zip(message.tool_calls, results, strict=True):
                messages.append({"role": "tool", "tool_call_id": c.id, "content": json.dumps(result)})

    return loop


def bare_anthropic(provider: Any, functions: dict[str, Any]) -> Loop:
    client, tools = provider.client, provider.render_tools([get_weather, get_population])

    async def loop() -> str:
        messages: list[Any] = [{"role": "user", "content": PROMPT}]
        while True:
            message = await client.messages.create(
                model="claude-sonnet-5-5", max_tokens=4096, messages=messages, tools=tools
            )
            calls = [block for block in message.content if block.type == "tool_use"]
            if not calls:
                return message.content[0].text
            messages.append(
                {
                    "role": "assistant",
                    "content": [
                        {"type": "tool_use", "id": c.id, "name": c.name, "input": c.input} for c in calls
                    ],
                }
            )
            results = await asyncio.gather(*(functions[c.name](**c.input) for c in calls))
            messages.append(
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": c.id, "content": json.dumps(result)}
                        for c, result in zip(calls, results, strict=True)
                    ],
                }
            )

    return loop


async def cpu_per_loop(loop: Loop, loops: int, agents: int) -> float:
    """Microseconds of this process's CPU per loop, all threads."""

    async def agent() -> None:
        for _ in range(loops // agents):
            await loop()

    gc.collect()
    started = time.process_time_ns()
    await asyncio.gather(*(agent() for _ in range(agents)))
    return (time.process_time_ns() - started) / 1000 / (loops // agents * agents)


async def measure(arguments: argparse.Namespace, url: str, directory: Path) -> None:
    bare = bare_anthropic if arguments.provider == "anthropic" else bare_openai
    sink, lines = PrometheusSink(), JsonlSink(directory / "records.jsonl")
    prof = Profiler(sinks=[sink, lines])
    functions = {t.name: t.function for t in (get_weather, get_population)}
    watched = {name: prof.tool(function) for name, function in functions.items()}
    plain, ours, instrumented = (make_provider(arguments.provider, base_url=url) for _ in range(3))
    # make_provider watches attempts; the bare loop must not pay for that.
    from profiler.watch.profiler import transports

    for put, transport in transports(plain.client._client):
        put(transport.inner)
    prof.instrument(instrumented.client)
    tool_loop = ToolLoop(ours, [get_weather, get_population], Gathered(), sinks=[sink, lines])
    bare_loop, watched_loop = bare(plain, functions), bare(instrumented, watched)

    async def profiled() -> None:
        with prof.loop("bench"):
            await watched_loop()

    variants: dict[str, Loop] = {
        "bare": bare_loop,
        "bare again": bare_loop,
        "ToolLoop": lambda: tool_loop.run(PROMPT),
        "Profiler": profiled,
    }
    tool_session()
    for loop in variants.values():
        await cpu_per_loop(loop, arguments.loops, arguments.agents)  # warm-up
    figures: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(arguments.repeats):
        names = list(variants)
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            figures[name].append(await cpu_per_loop(variants[name], arguments.loops, arguments.agents))
    for provider in (plain, ours, instrumented):
        await provider.client.close()
    await close_tool_clients()
    lines.close()

    print(f"{arguments.provider}, {arguments.agents} agents", end=", ")
    print(f"{arguments.repeats} repeats of {arguments.loops} loops")
    print(f"{'':12} {'µs CPU a loop':>14} {'ratio to bare':>14}")
    for name, values in figures.items():
        ratios = [value / base for value, base in zip(values, figures["bare"], strict=True)]
        print(f"{name:12} {statistics.median(values):14.0f} {statistics.median(ratios):14.3f}")
    print_sink_cost(sink, directory)


def print_sink_cost(sink: PrometheusSink, directory: Path) -> None:
    """What recording alone costs: both sinks on a recorded loop, per tool call."""
    from profiler.records import encode, read

    record: LoopRecord = next(iter(read(directory / "records.jsonl")))
    calls = sum(1 for _ in record.tool_calls)
    for name, act in (("Prometheus", sink), ("JSONL", encode)):
        costs = []
        for _ in range(7):
            started = time.process_time_ns()
            for _ in range(2000):
                act(record)
            costs.append((time.process_time_ns() - started) / 2000 / 1000)
        cost = statistics.median(costs)
        print(f"{name}: {cost:.1f} µs a loop of {calls} calls, {cost / calls:.1f} µs a tool-call record")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--loops", type=int, default=160)
    parser.add_argument("--agents", type=int, default=16)
    parser.add_argument("--provider", default="openai", choices=("openai", "anthropic"))
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with start_emulator("instant", seed=1) as emulator, tempfile.TemporaryDirectory() as directory:
        os.sched_setaffinity(emulator.pid, {cores[-1]})
        os.sched_setaffinity(0, {cores[0]})
        use_tools_at(emulator.url)
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(measure(arguments, emulator.url, Path(directory)))


if __name__ == "__main__":
    main()
