"""How many model requests one core makes: the SDK, the lean client, and what others would use, side by side.

    python benchmarks/clients.py [--seconds 3] [--repeats 5] [--in-flight 32] [--api A …] [--only CLIENT …]

The server is a few lines on asyncio and httptools with fixed replies, on a core of its own. A request of
1.1 kB with two tools is answered with three calls, whole or as 12 events in one write; what follows a
reply with an answer. Each client is a process of its own on the other core, and they take turns in changing
order; ratios are medians over the turns.

`aiohttp`: `post(json=)` and `json()`; streamed: the body line by line, `json.loads` of each; on uvloop. `SDK`
and `lean` are the models alone. `run SDK` and `run lean` are `profiler compare`, under Locust with
every record in JSONL and Prometheus, whose loops have tools of their own process; their requests are
those of the records, their CPU that of the process that runs the agents. `FastHttpUser` is Locust's own
client in a process of Locust's, `httpx` and `niquests` are the peers.

Nothing but the clients may run on the first core: whoever shares it takes from the one whose turn it is.
Needs two cores and Linux. It ends with what was to be reached, and whether it was.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib
import importlib.util
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profiler.load import AgentContext
    from profiler.loop.tools import Tool

ROOT = Path(__file__).resolve().parents[1]
PATHS = {"openai": "/v1/chat/completions", "openai-responses": "/v1/responses", "anthropic": "/v1/messages"}
MODELS = {"SDK": "sdk", "lean": "lean"}
RUNS = {"run SDK": "sdk", "run lean": "lean"}
PEERS = ("FastHttpUser", "httpx", "niquests")
CLIENTS = ("aiohttp", *MODELS, *RUNS, *PEERS)
LEAST = {False: 0.9, True: 1.2}
"""`run lean` over `aiohttp`, by whether replies are streamed."""
LEAST_OVER_SDK = 8.0
WARM_UP_SECONDS = 0.3
LIMIT_SECONDS = 60.0
"""What a turn may take beside its seconds, at the very most."""
AGENTS = {False: "benchmarks.clients:make_agent", True: "benchmarks.clients:make_streaming_agent"}

Json = dict[str, Any]
Ask = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Measured:
    """What a client did in its turn; `cpu` in seconds."""

    requests: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    @property
    def cpu_us(self) -> float:
        return self.cpu / self.requests * 1e6


# What is asked.

PROMPT = (
    "Compare Paris and Tokyo: how warm is it there now, in degrees Celsius, and how many people live in each "
    "of them? Ask for everything at once, in one round of calls, since nothing depends on what another call "
    "finds. Then answer in one line, the warmer city first, with figures alone and without where you have "
    "them from; where a city is not known say so, and leave it out."
)


def tools() -> list[Tool]:
    """Two tools that answer at once."""
    from profiler.scenarios.tools import get_population, get_weather

    async def answer(city: str, units: str = "") -> Json:
        return {"city": city, "found": 17, "units": units}

    return [one.replaced(answer) for one in (get_weather, get_population)]


def request_body(api: Any, stream: bool) -> Json:
    """The first request of a conversation, as the models send it."""
    from profiler.loop.model import RequestOptions, conversation
    from profiler.providers import PROVIDERS
    from profiler.providers.formats import FORMATS

    one, model = FORMATS[api], PROVIDERS[api].default_model
    return one.body(model, conversation(PROMPT), one.render_tools(tools()), RequestOptions(stream=stream))


# What is answered: three calls of the two tools, or a text; whole, and as its 12 events.

PARIS = '{"city":"Paris","units":"celsius"}'
CALLS = (("get_weather", PARIS), ("get_weather", '{"city":"Tokyo"}'), ("get_population", '{"city":"Paris"}'))
PIECES = ("17 °C ", "in Paris", " and in", " Tokyo; ", "2,103,000", " people ", "live in ", "Paris.")
TEXT = "".join(PIECES)


def chat(calls: bool) -> tuple[Json, list[Json]]:
    head: Json = {"id": "chatcmpl-9Xq3vB8xT", "created": 1764500000, "model": "gpt-4o"}
    usage: Json = {"prompt_tokens": 210, "completion_tokens": 60, "total_tokens": 270}
    message: Json = {"role": "assistant", "content": None if calls else TEXT, "refusal": None}
    deltas: list[Json] = [{**message, "content": message["content"] and ""}]
    if not calls:
        deltas += [{"content": piece} for piece in PIECES]
    else:
        made = [
            {"id": f"call_{n}Wq3vB8xT", "type": "function", "function": {"name": name, "arguments": text}}
            for n, (name, text) in enumerate(CALLS)
        ]
        message["tool_calls"] = made
        for n, (name, text) in enumerate(CALLS):
            opened: Json = {**made[n], "function": {"name": name, "arguments": ""}}
            deltas.append({"tool_calls": [{"index": n, **opened}]})
            for piece in (text[:9], text[9:]) if n < 2 else (text,):
                deltas.append({"tool_calls": [{"index": n, "function": {"arguments": piece}}]})
    finish = "tool_calls" if calls else "stop"
    choices: list[Json] = [
        {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas
    ]
    choices.append({"index": 0, "delta": {}, "logprobs": None, "finish_reason": finish})
    chunk = {**head, "object": "chat.completion.chunk"}
    events = [{**chunk, "choices": [choice], "usage": None} for choice in choices]
    events.append({**chunk, "choices": [], "usage": usage})  # and the mark of the end
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": usage}, events


def responses(calls: bool) -> tuple[Json, list[Json]]:
    part: Json = {"type": "output_text", "annotations": [], "logprobs": [], "text": TEXT}
    output: list[Json] = [{"id": "msg_9Xq3", "type": "message", "role": "assistant", "content": [part]}]
    if calls:
        output = [
            {"id": f"fc_{n}", "type": "function_call", "call_id": f"call_{n}Wq3", "name": a, "arguments": b}
            for n, (a, b) in enumerate(CALLS)
        ]
    asked = request_body("openai-responses", False)
    head: Json = {"id": "resp_9Xq3", "object": "response", "created_at": 1764500000, "model": asked["model"]}
    head |= {"tools": asked["tools"], "tool_choice": "auto", "parallel_tool_calls": True, "error": None}
    begun = {**head, "status": "in_progress", "output": [], "usage": None}
    whole = {**head, "status": "completed", "output": [{**item, "status": "completed"} for item in output]}
    whole["usage"] = {"input_tokens": 210, "output_tokens": 60, "total_tokens": 270}
    events: list[Json] = [
        {"type": f"response.{kind}", "response": begun} for kind in ("created", "in_progress")
    ]
    for n, item in enumerate(whole["output"]):
        at, where = {"output_index": n}, {"output_index": n, "item_id": item["id"]}
        opened: Json = {"arguments": ""} if calls else {"content": []}
        opened = {**item, "status": "in_progress", **opened}
        events.append({"type": "response.output_item.added", **at, "item": opened})
        if calls:  # with `.done`, which says what that of the item says too, there would be 15
            kind = "response.function_call_arguments.delta"
            events.append({"type": kind, **where, "delta": item["arguments"]})
        else:
            where["content_index"] = 0
            events.append({"type": "response.content_part.added", **where, "part": {**part, "text": ""}})
            pieces, delta = (
                map("".join, zip(PIECES[::2], PIECES[1::2], strict=True)),
                "response.output_text.delta",
            )
            events += [{"type": delta, **where, "delta": piece, "logprobs": []} for piece in pieces]
            events.append({"type": "response.output_text.done", **where, "text": TEXT, "logprobs": []})
            events.append({"type": "response.content_part.done", **where, "part": part})
        events.append({"type": "response.output_item.done", **at, "item": item})
    events.append({"type": "response.completed", "response": whole})
    return whole, [{**event, "sequence_number": n} for n, event in enumerate(events)]


def messages(calls: bool) -> tuple[Json, list[Json]]:
    blocks: list[Json] = [{"type": "text", "text": TEXT}]
    if calls:
        blocks = [
            {"type": "tool_use", "id": f"toolu_{n}Wq3vB8xT", "name": name, "input": json.loads(text)}
            for n, (name, text) in enumerate(CALLS)
        ]
    head: Json = {"id": "msg_9Xq3", "type": "message", "role": "assistant", "model": "claude-sonnet-5-5"}
    begun = {**head, "content": [], "stop_reason": None, "usage": {"input_tokens": 210, "output_tokens": 1}}
    events: list[Json] = [{"type": "message_start", "message": begun}]
    for n, block in enumerate(blocks):
        opened: Json = {**block, "input": {}} if calls else {**block, "text": ""}
        deltas: list[Json] = [{"type": "input_json_delta", "partial_json": CALLS[n][1]}]
        if not calls:
            deltas = [{"type": "text_delta", "text": piece} for piece in (*PIECES[:6], "".join(PIECES[6:]))]
        events.append({"type": "content_block_start", "index": n, "content_block": opened})
        events += [{"type": "content_block_delta", "index": n, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": n})
    stop = {"stop_reason": "tool_use" if calls else "end_turn", "stop_sequence": None}
    events.append({"type": "message_delta", "delta": stop, "usage": {"output_tokens": 60}})
    whole = {**head, "content": blocks, **stop, "usage": {"input_tokens": 210, "output_tokens": 60}}
    return whole, [*events, {"type": "message_stop"}]


def answers() -> dict[tuple[bytes, bool, bool], bytes]:
    """Responses as they are written, by the path asked, whether streamed, and whether results came."""
    found = {}
    head = b"HTTP/1.1 200 OK\r\ndate: Sun, 29 Nov 2026 11:29:24 GMT\r\nserver: benchmark\r\n"
    head += b"x-request-id: req_9Xq3vB8xT\r\nrequest-id: req_9Xq3vB8xT\r\n"
    for path, reply in zip(PATHS.values(), (chat, responses, messages), strict=True):
        for results in (False, True):
            whole, events = reply(not results)
            lines = [f"event: {one['type']}\n" if "type" in one else "" for one in events]
            frames = [f"{line}data: {compact(one)}\n\n" for line, one in zip(lines, events, strict=True)]
            frames += ["data: [DONE]\n\n"] if reply is chat else []
            assert len(frames) == 12
            chunks = "".join(f"{len(frame.encode()):x}\r\n{frame}\r\n" for frame in frames).encode()
            body = compact(whole).encode()
            found[path.encode(), False, results] = (
                head + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            )
            found[path.encode(), True, results] = (
                head
                + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n%b0\r\n\r\n" % chunks
            )
    return found


def compact(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
RESULTS = (b'"tool_call_id"', b'"function_call_output"', b'"tool_use_id"')
STREAM = (b'"stream":true', b'"stream": true')


def serve(core: int) -> None:
    """The server on one core, until its standard input ends. Prints its port."""
    import httptools
    import uvloop

    os.sched_setaffinity(0, {core})
    ready = answers()

    class Served(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport, self.url, self.body = transport, b"", b""
            self.parser = httptools.HttpRequestParser(self)

        def data_received(self, data: bytes) -> None:
            self.parser.feed_data(data)

        def on_url(self, url: bytes) -> None:
            self.url, self.body = url, b""

        def on_body(self, body: bytes) -> None:
            self.body += body

        def on_message_complete(self) -> None:
            stream = any(mark in self.body for mark in STREAM)
            results = any(mark in self.body for mark in RESULTS)
            self.transport.write(ready.get((self.url, stream, results), NOT_FOUND))

    async def listen() -> None:
        over, loop = asyncio.Event(), asyncio.get_running_loop()

        def until_closed() -> None:
            sys.stdin.read()
            loop.call_soon_threadsafe(over.set)

        threading.Thread(target=until_closed, daemon=True).start()
        server = await loop.create_server(Served, "127.0.0.1", 0, backlog=1024)
        print(server.sockets[0].getsockname()[1], flush=True)
        await over.wait()

    uvloop.run(listen())


# The clients, each in a process of its own.


@asynccontextmanager
async def asking(client: str, url: str, api: str, stream: bool, in_flight: int) -> AsyncIterator[Ask]:
    """A function that sends the request once, and reads its reply."""
    target, body = url + PATHS[api], request_body(api, stream)
    if client in MODELS:
        from profiler.loop.model import Probe, RequestOptions, conversation
        from profiler.providers import make_provider

        model: Any = make_provider(api, base_url=url, client=MODELS[client])  # type: ignore[arg-type]
        rendered, options = model.render_tools(tools()), RequestOptions(stream=stream)

        async def of_model() -> Any:
            return await model.request(conversation(PROMPT), rendered, options, Probe(time.monotonic_ns))

        assert len((await of_model()).calls) == len(CALLS)
        yield of_model
        await model.client.close()
    elif client == "aiohttp":
        import aiohttp

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def of_aiohttp() -> object:
                async with session.post(target, json=body, raise_for_status=True) as response:
                    if not stream:
                        return await response.json()
                    return [json.loads(line[6:]) async for line in response.content if line[:7] == b"data: {"]

            yield of_aiohttp
    elif client == "httpx":
        import httpx

        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=60) as http:

            async def of_httpx() -> object:
                if not stream:
                    return (await http.post(target, json=body)).raise_for_status().json()
                async with http.stream("POST", target, json=body) as response:
                    lines = response.raise_for_status().aiter_lines()
                    return [json.loads(line[6:]) async for line in lines if line[:7] == "data: {"]

            yield of_httpx
    else:
        niquests: Any = importlib.import_module("niquests")
        async with niquests.AsyncSession(pool_connections=1, pool_maxsize=in_flight) as session:

            async def of_niquests() -> object:
                response = (await session.post(target, json=body, stream=stream)).raise_for_status()
                if not stream:
                    return response.json()
                lines = response.iter_lines()
                return [json.loads(line[6:]) async for line in lines if line[:7] == b"data: {"]

            yield of_niquests


async def measure(client: str, url: str, api: str, stream: bool, in_flight: int, seconds: float) -> Measured:
    """So many tasks that ask again and again."""
    async with asking(client, url, api, stream, in_flight) as ask:

        async def until(end: float) -> int:
            done = 0
            while time.monotonic() < end:
                await ask()
                done += 1
            return done

        async def together(seconds: float) -> int:
            end = time.monotonic() + seconds
            return sum(await asyncio.gather(*(until(end) for _ in range(in_flight))))

        await together(WARM_UP_SECONDS)
        gc.collect()
        gc.freeze()  # as a load test does
        began, cpu = time.monotonic(), time.process_time()
        done = await together(seconds)
        return Measured(done, time.monotonic() - began, time.process_time() - cpu)


def measure_locust(url: str, api: str, stream: bool, in_flight: int, seconds: float) -> Measured:
    """So many users of Locust's own client, whose replies are parsed, or when streamed read whole."""
    import gevent
    from locust import FastHttpUser, task  # it patches, so before anything else
    from locust.env import Environment

    body = request_body(api, stream)

    class User(FastHttpUser):  # type: ignore[misc]
        host = url

        @task  # type: ignore[untyped-decorator]
        def ask(self) -> None:
            response = self.client.post(PATHS[api], json=body)
            assert response.text if stream else response.json()

    environment = Environment(user_classes=[User])
    runner = environment.create_local_runner()
    runner.start(in_flight, spawn_rate=in_flight)
    gevent.sleep(1 + WARM_UP_SECONDS)
    gc.collect()
    gc.freeze()
    total = environment.stats.total
    before, began, cpu = total.num_requests, time.monotonic(), time.process_time()
    gevent.sleep(seconds)
    found = Measured(total.num_requests - before, time.monotonic() - began, time.process_time() - cpu)
    assert not total.num_failures
    runner.quit()
    return found


def make_agent(ctx: AgentContext, stream: bool = False) -> Callable[[str], Awaitable[object]]:
    """The agent of `run SDK` and `run lean`: the profiler's own loop, with tools of this process."""
    from profiler import ToolLoop

    loop = ToolLoop(ctx.make_model(), tools(), ctx.strategy, stream=stream, sinks=[ctx.sink])

    async def agent(prompt: str) -> object:  # no lambda: what is no async function runs in a thread
        return await loop.run(PROMPT)

    return agent


def make_streaming_agent(ctx: AgentContext) -> Callable[[str], Awaitable[object]]:
    return make_agent(ctx, stream=True)


# The turns.


def turn(client: str, url: str, api: str, stream: bool, in_flight: int, seconds: float) -> Measured:
    """One client's turn. Raises `RuntimeError` where it failed, or did not end in time."""
    if client not in RUNS:
        command = [sys.executable, __file__, "--client", client, "--url", url, "--api", api]
        command += [
            "--in-flight",
            str(in_flight),
            "--seconds",
            str(seconds),
            *(["--stream"] if stream else []),
        ]
        return Measured(**json.loads(run(command, seconds).splitlines()[-1]))
    from profiler.rundir import RunDirectory

    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "profiler", "compare", "--agent", AGENTS[stream], "--base-url", url]
        command += ["--provider", api, "--client", RUNS[client], *(["--stream"] if stream else [])]
        command += ["--strategy", "gathered", "--users", str(in_flight), "--duration", f"{seconds:g}s"]
        command += ["--blocks", "1", "--calibrate", "0", "--drain", "5s", "--allow-saturated", "--quiet"]
        run([*command, "--out", out], seconds)
        directory = RunDirectory.open(next(Path(out).iterdir()))
        found = directory.load()
        trial, done = found.trials[0], 0
        (cpu,) = (one.cpu for one in found.client if one.trial == trial.index)
        with directory.records_path.open("rb") as lines:  # decoded as records they would take a while
            for model in (one["model"] for line in lines for one in json.loads(line)["rounds"]):
                if model["status"] != "ok":
                    raise RuntimeError(f"a request failed: {model['error_type']}")
                done += trial.started_ns <= model["ended_ns"] <= trial.ended_ns
    window = (trial.ended_ns - trial.started_ns) / 1e9
    return Measured(done, window, (cpu or 0.0) * window)


def run(command: list[str], seconds: float) -> str:
    """What a command printed. It ends, with all that it started, when it does not do so in time."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    )
    try:
        said, complaint = process.communicate(timeout=seconds + LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no end after {seconds + LIMIT_SECONDS:.0f} s") from None
    finally:
        if process.poll() is None:
            process.terminate()  # `profiler compare` ends Locust before it goes
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {(complaint or said).strip()[-600:]}")
    return said


@contextmanager
def server_process(core: int) -> Iterator[str]:
    """The URL of the server, which ends with this process."""
    command, pipe = [sys.executable, __file__, "--serve", str(core)], subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


Turns = list[dict[str, Measured]]
"""What each client did in each turn, without those that failed."""


def ratio(turns: Turns, ours: str, theirs: str) -> float | None:
    """The median over the turns of one client's requests/s over another's."""
    both = [one[ours].rate / one[theirs].rate for one in turns if ours in one and theirs in one]
    return statistics.median(both) if both else None


def print_table(case: str, turns: Turns, clients: list[str]) -> None:
    print(f"\n{case}\n{'':14} {'requests/s':>11} {'from':>8} {'to':>8} {'µs CPU each':>12} {'÷ aiohttp':>10}")
    for client in clients:
        rates = [one[client].rate for one in turns if client in one] or [float("nan")]
        cpu = statistics.median([one[client].cpu_us for one in turns if client in one] or [float("nan")])
        to_aiohttp = ratio(turns, client, "aiohttp")
        print(f"{client:14} {statistics.median(rates):11,.0f} {min(rates):8,.0f} {max(rates):8,.0f}", end=" ")
        print(f"{cpu:12,.0f} {'-' if to_aiohttp is None else f'{to_aiohttp:.2f}':>10}")


def print_goals(case: str, turns: Turns, stream: bool) -> None:
    """What was to be reached, and whether it was; of what was not measured nothing is said."""
    for theirs in ("aiohttp", "run SDK", *PEERS):
        found = ratio(turns, "run lean", theirs)
        if found is not None:
            least = {"aiohttp": LEAST[stream], "run SDK": LEAST_OVER_SDK}.get(theirs)
            met, goal = (found > 1, "ahead") if least is None else (found >= least, f"≥ {least:g}")
            print(f"{case}: run lean ÷ {theirs} {found:.2f}, goal {goal}: {'met' if met else 'missed'}")


def compare(arguments: argparse.Namespace) -> None:
    client_core, server_core, *_ = sorted(os.sched_getaffinity(0))
    clients = [one for one in CLIENTS if one in arguments.only]
    for package in ("httpx", "niquests"):
        if package in clients and importlib.util.find_spec(package) is None:
            clients.remove(package)
            print(f"{package} is left out: its package is not installed (pip install {package})")
    cases = {
        f"{api} {'streamed' if stream else 'unstreamed'}": (api, stream)
        for api in arguments.api
        for stream in (False, True)
    }
    found: dict[str, Turns] = {case: [] for case in cases}
    print(f"{arguments.in_flight} in flight; load average at the start: {os.getloadavg()[0]:.2f}", flush=True)
    with server_process(server_core) as url:
        os.sched_setaffinity(0, {client_core})  # what is started from here on inherits it
        for repeat in range(arguments.repeats):
            for case, (api, stream) in cases.items():
                here: dict[str, Measured] = {}
                found[case].append(here)
                for client in random.Random(f"{repeat} {case}").sample(clients, len(clients)):
                    try:
                        got = turn(client, url, api, stream, arguments.in_flight, arguments.seconds)
                        here[client] = got
                        said = f"{got.rate:,.0f} requests/s, {got.cpu_us:,.0f} µs CPU each"
                    except RuntimeError as error:
                        said = f"failed: {error}"
                    print(f"{repeat + 1}/{arguments.repeats} {case}: {client}: {said}", flush=True)
    print(f"load average at the end: {os.getloadavg()[0]:.2f}")
    for case, turns in found.items():
        print_table(case, turns, clients)
    print()
    for case, turns in found.items():
        print_goals(case, turns, cases[case][1])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--api", nargs="+", choices=PATHS, default=[*PATHS])
    parser.add_argument("--only", nargs="+", choices=CLIENTS, default=[*CLIENTS], metavar="CLIENT")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--stream", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve)
    elif given.client is not None:
        asked = given.url, given.api[0], given.stream, given.in_flight, given.seconds
        if given.client == "FastHttpUser":
            measured = measure_locust(*asked)
        else:
            import uvloop

            measured = uvloop.run(measure(given.client, *asked))
        print(json.dumps(asdict(measured)))
    elif len(os.sched_getaffinity(0)) < 2:
        print("needs two cores: one for the clients, one for the server", file=sys.stderr)
        return 2
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
        compare(given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
