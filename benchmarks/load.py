"""How much load one core makes: requests a second, ours under Locust against plain scripts.

    python benchmarks/load.py [--agents 64 256] [--seconds 5] [--repeats 3]

Scenario `instant`, OpenAI Chat: a loop is two model requests and three tool requests. `ours` is
`locust -f locustfiles/compare.py` as it comes (recording, metrics, statistics of Locust);
`default` a plain asyncio script with a loop by hand on the SDK's default transport and httpx's;
`aiohttp` the same script with the SDK's aiohttp client and aiohttp, on uvloop. One core for
the client, another for the emulator; runs are interleaved in changing order, ratios are those of
paired repeats. On a machine that is busy with other things the rate says little: the last columns
count requests per second of client CPU. Needs two cores and Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import statistics
import sys
import time

from locust_bridge import Measured, cpu_between, run_locust, watch

SIDES = ("ours", "default", "aiohttp")
REQUESTS = 5
LEAST = {"default": 3.0, "aiohttp": 0.9}
"""Ours over theirs, at the most agents."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain", choices=SIDES[1:], help=argparse.SUPPRESS)
    parser.add_argument("--base-url", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        return plain(arguments.plain, arguments.base_url, arguments.agents[0], arguments.seconds)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("needs two cores: one for the client, one for the emulator", file=sys.stderr)
        return 2
    return compare(arguments, client_core=cores[0], emulator_core=cores[1])


def compare(arguments: argparse.Namespace, client_core: int, emulator_core: int) -> int:
    from profiler.emulator.process import start_emulator

    found: dict[tuple[int, str], list[Measured]] = {(n, s): [] for n in arguments.agents for s in SIDES}
    print(f"load average at the start: {os.getloadavg()[0]:.2f}")
    with start_emulator("instant") as emulator:
        os.sched_setaffinity(emulator.pid, {emulator_core})
        os.sched_setaffinity(0, {client_core})  # what is started from here on inherits it
        for repeat, agents in itertools.product(range(arguments.repeats), arguments.agents):
            shift = repeat % len(SIDES)
            for side in (*SIDES[shift:], *SIDES[:shift]):
                if side == "ours":
                    got = run_locust("patched", "openai", emulator.url, agents, arguments.seconds)
                else:
                    got = run_plain(side, emulator.url, agents, arguments.seconds)
                found[agents, side].append(got)
                print(
                    f"{repeat + 1}/{arguments.repeats} {agents:4} agents {side:8}{figures(got)}", flush=True
                )
    print(f"load average at the end: {os.getloadavg()[0]:.2f}\n")
    print(f"{'agents':>6} {'side':8} {'requests/s':>11} {'per CPU s':>10} {'ours ÷ it':>10} {'by CPU':>7}")
    failed = False
    for (agents, side), values in found.items():
        pairs = list(zip(found[agents, "ours"], values, strict=True))
        ratio = statistics.median(ours.rate / theirs.rate for ours, theirs in pairs)
        by_cpu = statistics.median(ours.per_cpu_second / theirs.per_cpu_second for ours, theirs in pairs)
        rate = REQUESTS * statistics.median(value.rate for value in values)
        per_cpu = REQUESTS * statistics.median(value.per_cpu_second for value in values)
        print(f"{agents:6} {side:8} {rate:11.0f} {per_cpu:10.0f} {ratio:10.2f} {by_cpu:7.2f}")
        if agents == max(arguments.agents) and side in LEAST:
            failed |= max(ratio, by_cpu) < LEAST[side]
    wanted = ", ".join(f"{least} of {side}" for side, least in LEAST.items())
    print(f"target at {max(arguments.agents)} agents, by rate or by CPU: {wanted}: ", end="")
    print("not reached" if failed else "reached")
    return 1 if failed else 0


def figures(got: Measured) -> str:
    return f" {REQUESTS * got.rate:7.0f} requests/s {REQUESTS * got.per_cpu_second:7.0f} per CPU second"


def run_plain(side: str, url: str, agents: int, seconds: float) -> Measured:
    command = [sys.executable, __file__, "--plain", side, "--base-url", url]
    command += ["--agents", str(agents), "--seconds", str(seconds)]
    output, cpu = watch(command, dict(os.environ), seconds + 120)
    start_ns, end_ns, done = map(int, output.split())
    return Measured(done / ((end_ns - start_ns) / 1e9), done / cpu_between(cpu, start_ns, end_ns))


def plain(side: str, url: str, agents: int, seconds: float) -> int:
    """The loop as people write it by hand, nothing recorded. Prints start, end and loops."""
    import httpx
    from openai import AsyncOpenAI, DefaultAioHttpClient

    from profiler.loop.model import LOOP_HEADER
    from profiler.scenarios.tools import get_population, get_weather

    schemas = [
        {
            "type": "function",
            "function": {"name": t.name, "description": t.description, "parameters": t.parameters},
        }
        for t in (get_weather, get_population)
    ]

    async def run() -> str:
        if side == "aiohttp":
            import aiohttp

            session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
            client = AsyncOpenAI(base_url=f"{url}/v1", api_key="x", http_client=DefaultAioHttpClient())

            async def get(url: str, query: dict[str, str]) -> str:
                async with session.get(url, params=query, raise_for_status=True) as response:
                    return await response.text()

            close = session.close
        else:
            tools = httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=60)
            client = AsyncOpenAI(base_url=f"{url}/v1", api_key="x")

            async def get(url: str, query: dict[str, str]) -> str:
                response = await tools.get(url, params=query)
                response.raise_for_status()
                return response.text

            close = tools.aclose

        async def call(name: str, arguments: str) -> str:
            query = {**json.loads(arguments), "format": "j1"}
            return await get(f"{url}/tools/{name.removeprefix('get_')}", query)

        async def loop(number: int) -> None:
            messages = [{"role": "user", "content": f"Question {number}: call the tools."}]
            headers = {LOOP_HEADER: str(number)}
            while True:
                response = await client.chat.completions.create(
                    model="gpt-4o", messages=messages, tools=schemas, extra_headers=headers
                )
                message = response.choices[0].message
                if not message.tool_calls:
                    return
                messages.append(message.model_dump(exclude_none=True))
                results = await asyncio.gather(
                    *(call(c.function.name, c.function.arguments) for c in message.tool_calls)
                )
                messages += [
                    {"role": "tool", "tool_call_id": c.id, "content": result}
                    for c, result in zip(message.tool_calls, results, strict=True)
                ]

        numbers, done = itertools.count(), 0
        await loop(next(numbers))
        gc.collect()
        gc.freeze()
        start_ns = time.monotonic_ns()

        async def agent() -> None:
            nonlocal done
            while time.monotonic_ns() - start_ns < seconds * 1e9:
                await loop(next(numbers))
                done += 1

        await asyncio.gather(*(agent() for _ in range(agents)))
        end_ns = time.monotonic_ns()
        await client.close()
        await close()
        return f"{start_ns} {end_ns} {done}"

    if side == "aiohttp":
        import uvloop

        print(uvloop.run(run()))
    else:
        print(asyncio.run(run()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
