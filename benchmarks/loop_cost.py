"""What the loop and its records cost by themselves: CPU a loop, with a model and tools that do nothing.

A loop of two requests and three calls in one process, sinks Prometheus and JSONL. `ToolLoop` is ours over
a model that has its replies; `Profiler` is a loop that is written out, its tools wrapped, over an
instrumented transport that has its responses (what the SDK and its HTTP client do around that is left out).
What the calls, or the same loop unwatched, cost alone is subtracted.

With `--against CHECKOUT` another checkout of this package is measured beside this one: each in a process of
its own, in turns of a fraction of a second. The ratios are medians over the repeats. It ends with what was to
be reached against the commit before records were structs, and whether it was.

    python benchmarks/loop_cost.py [--repeats 30] [--loops 400] [--agents 16] [--against CHECKOUT]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MOST = {"ToolLoop": 0.65, "Profiler": 0.75}
"""Of what the other checkout takes."""
MOST_US = {"Prometheus": 5.0, "JSONL": 2.0}
"""A tool-call record."""

Loop = Callable[[], Awaitable[Any]]

CALLS = [("call_a", "get_weather", '{"city":"Paris"}'), ("call_b", "get_weather", '{"city":"Oslo"}')]
CALLS.append(("call_c", "get_population", '{"city":"Paris"}'))
TOOL_CALLS = [
    {"id": id, "type": "function", "function": {"name": name, "arguments": text}} for id, name, text in CALLS
]
USAGE = {"prompt_tokens": 210, "completion_tokens": 60, "total_tokens": 270}
PROMPT = "How warm is it in Paris and in Oslo, and how many people live in Paris?"
ANSWER = "17 °C in both; 2,103,000."


def body(message: dict[str, Any], finish: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o"}
    return json.dumps({**head, "choices": [choice], "usage": USAGE}).encode()


ASKS = body({"content": None, "tool_calls": TOOL_CALLS}, "tool_calls")
ANSWERS = body({"content": ANSWER}, "stop")


async def get_weather(city: str) -> dict[str, Any]:
    """The weather of a city."""
    return {"city": city, "celsius": 17}


async def get_population(city: str) -> dict[str, Any]:
    """How many people live in a city."""
    return {"city": city, "people": 2_103_000}


FUNCTIONS = {"get_weather": get_weather, "get_population": get_population}


class ReadyModel:
    """A model that has its replies."""

    provider, model = "openai", "gpt-4o"

    def __init__(self) -> None:
        from profiler.loop.model import CallRequest, Reply

        calls = tuple(CallRequest(*call) for call in CALLS)
        asks = {"role": "assistant", "content": None, "tool_calls": TOOL_CALLS}
        self.asks = Reply("", calls, [asks], finish_reason="tool_calls", input_tokens=210, output_tokens=60)
        said = {"role": "assistant", "content": ANSWER}
        self.answers = Reply(ANSWER, (), [said], finish_reason="stop", input_tokens=300, output_tokens=20)

    def conversation(self, prompt: Any) -> list[Any]:
        return [{"role": "user", "content": prompt}]

    def render_tools(self, tools: Any) -> Any:
        return tuple(tools)

    def results(self, results: Any) -> list[Any]:
        return [{"role": "tool", "tool_call_id": one.call_id, "content": one.content} for one in results]

    async def request(self, messages: list[Any], tools: Any, options: Any, probe: Any) -> Any:
        return self.asks if len(messages) == 1 else self.answers


def written_out(transport: Callable[[], Any], functions: dict[str, Any]) -> Loop:
    """The loop of an application, from the requests of its SDK's transport on."""
    import httpx2

    async def ask(asked: int) -> dict[str, Any]:
        request = httpx2.Request("POST", "http://127.0.0.1/v1/chat/completions", content=b'{"n":%d}' % asked)
        response = await transport().handle_async_request(request)
        message: dict[str, Any] = json.loads(await response.aread())["choices"][0]["message"]
        await response.aclose()
        return message

    async def loop() -> str:
        calls = (await ask(1))["tool_calls"]
        await asyncio.gather(
            *(
                functions[call["function"]["name"]](**json.loads(call["function"]["arguments"]))
                for call in calls
            )
        )
        text: str = (await ask(4))["content"]
        return text

    return loop


async def bare_calls() -> None:
    """What `ReadyModel` and the tools cost alone."""
    await asyncio.gather(*(FUNCTIONS[name](**json.loads(text)) for _, name, text in CALLS))


def variants(directory: Path) -> dict[str, Loop]:
    import httpx2

    from profiler import Gathered, ToolLoop
    from profiler.exporters.jsonl import JsonlSink
    from profiler.exporters.prometheus import PrometheusSink
    from profiler.providers import make_provider
    from profiler.watch.profiler import Profiler

    class Body(httpx2.AsyncByteStream):
        def __init__(self, data: bytes) -> None:
            self.data = data

        async def __aiter__(self) -> Any:
            yield self.data

    class Ready(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            data = ASKS if request.content == b'{"n":1}' else ANSWERS
            head = [(b"content-type", b"application/json"), (b"x-request-id", b"req_1")]
            return httpx2.Response(200, headers=head, stream=Body(data))

    sinks = [PrometheusSink(), JsonlSink(directory / "records.jsonl")]
    prof = Profiler(sinks=sinks)
    client: Any = make_provider("openai", base_url="http://127.0.0.1:9").client  # type: ignore[attr-defined]
    plain = client._client._transport = Ready()
    prof.instrument(client)
    watched = {name: prof.tool(function) for name, function in FUNCTIONS.items()}
    in_watched = written_out(lambda: client._client._transport, watched)
    ours = ToolLoop(ReadyModel(), [get_weather, get_population], Gathered(), sinks=sinks)

    async def profiled() -> None:
        async with prof.loop("bench"):
            await in_watched()

    return {
        "bare calls": bare_calls,
        "bare loop": written_out(lambda: plain, FUNCTIONS),
        "ToolLoop": lambda: ours.run(PROMPT),
        "Profiler": profiled,
    }


BARE = {"ToolLoop": "bare calls", "Profiler": "bare loop"}


async def work(loops: int, agents: int, directory: Path) -> None:
    """Answers each name that it reads with µs of CPU a loop of that variant, the bare one subtracted."""
    found = variants(directory)

    async def cost(loop: Loop) -> float:
        async def agent() -> None:
            for _ in range(loops // agents):
                await loop()

        started = time.process_time_ns()
        await asyncio.gather(*(agent() for _ in range(agents)))
        return (time.process_time_ns() - started) / 1000 / (loops // agents * agents)

    for loop in found.values():
        await cost(loop)
    records = list((directory / "records.jsonl").read_bytes().splitlines())
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        name = line.strip()
        if name in BARE:
            print(await cost(found[name]) - await cost(found[BARE[name]]), flush=True)
        else:
            print(sink_cost(name, records[0]), flush=True)


def sink_cost(name: str, line: bytes) -> float:
    """µs a tool-call record."""
    from profiler.exporters.prometheus import PrometheusSink
    from profiler.records import decode, encode

    record = decode(line)
    act: Callable[[Any], object] = PrometheusSink() if name == "Prometheus" else encode
    started = time.process_time_ns()
    for _ in range(500):
        act(record)
    return (time.process_time_ns() - started) / 500 / 1000 / len(list(record.tool_calls))


@contextmanager
def worker(checkout: Path, loops: int, agents: int) -> Iterator[Callable[[str], float]]:
    command = [sys.executable, str(Path(__file__).resolve()), "--work", "--loops", str(loops)]
    with subprocess.Popen(
        [*command, "--agents", str(agents)],
        env={**os.environ, "PYTHONPATH": str(checkout)},
        cwd=checkout,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout
        assert stdout.readline() == "ready\n"

        def ask(name: str) -> float:
            stdin.write(f"{name}\n")
            stdin.flush()
            return float(stdout.readline())

        yield ask
        stdin.close()


def compare(arguments: argparse.Namespace) -> None:
    names = [*MOST, *MOST_US]
    with worker(ROOT, arguments.loops, arguments.agents) as here:
        if arguments.against is None:
            found = {name: [here(name) for _ in range(arguments.repeats)] for name in names}
            for name, values in found.items():
                print(f"{name}: {statistics.median(values):.1f} µs {unit(name)}")
            return
        with worker(arguments.against.resolve(), arguments.loops, arguments.agents) as there:
            pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
            for repeat in range(arguments.repeats):
                for name in names:
                    if repeat % 2:
                        pairs[name].append((here(name), there(name)))
                    else:
                        before = there(name)
                        pairs[name].append((here(name), before))
    print(f"{'':12} {'here':>8} {'there':>8} {'ratio':>7}")
    for name, values in pairs.items():
        ours, theirs = (statistics.median(side) for side in zip(*values, strict=True))
        ratio = statistics.median(one / other for one, other in values)
        least, most = MOST.get(name), MOST_US.get(name)
        met = ratio <= least if least is not None else most is not None and ours <= most
        goal = f"≤ {least} of it" if least is not None else f"≤ {most} µs"
        print(f"{name:12} {ours:8.1f} {theirs:8.1f} {ratio:7.2f}  µs {unit(name)}; goal {goal}", end=": ")
        print("met" if met else "missed")


def unit(name: str) -> str:
    return "a loop" if name in MOST else "a tool-call record"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--loops", type=int, default=400)
    parser.add_argument("--agents", type=int, default=16)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        import uvloop

        with tempfile.TemporaryDirectory() as directory:
            uvloop.run(work(arguments.loops, arguments.agents, Path(directory)))
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
