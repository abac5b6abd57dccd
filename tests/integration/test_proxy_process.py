"""`profiler proxy` as it is run: SDKs and curl through it, unmodified, its files, its metrics, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anthropic
import openai
import orjson
import pytest

from tests.integration.prometheus_process import needed
from tests.integration.proxied import WAIT, Wire

CANARY = "sk-canary-9f2b7c41d0"

CALLS = [
    {"id": f"call_{n}", "type": "function", "function": {"name": "look", "arguments": f'{{"n": {n}}}'}}
    for n in range(2)
]
USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}


def chat(asked: dict, number: int) -> list[bytes]:  # type: ignore[type-arg]
    """The events of a reply, or the one body of it."""
    again = any(one["role"] == "tool" for one in asked["messages"])
    message = (
        {"role": "assistant", "content": "done"} if again else {"role": "assistant", "tool_calls": CALLS}
    )
    reason = "stop" if again else "tool_calls"
    base = {"id": f"chatcmpl-{number}", "created": 1, "model": asked["model"]}
    if not asked.get("stream"):
        choice = {"index": 0, "message": {"content": None, **message}, "finish_reason": reason}
        return [orjson.dumps({**base, "object": "chat.completion", "choices": [choice], "usage": USAGE})]
    deltas = [message] if again else [{"role": "assistant"}]
    deltas += [] if again else [{"tool_calls": [{"index": n, **call}]} for n, call in enumerate(CALLS)]
    chunks = [
        {**base, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}
        for delta in deltas
    ]
    chunks.append(
        {
            **base,
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": {}, "finish_reason": reason}],
            "usage": USAGE,
        }
    )
    return [b"data: %b\n\n" % orjson.dumps(one) for one in chunks] + [b"data: [DONE]\n\n"]


def messages(asked: dict, number: int) -> list[bytes]:  # type: ignore[type-arg]
    again = any(isinstance(one["content"], list) for one in asked["messages"])
    uses = [{"type": "tool_use", "id": f"toolu_{n}", "name": "look", "input": {"n": n}} for n in range(2)]
    body = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": asked["model"],
        "content": [{"type": "text", "text": "done"}] if again else uses,
        "stop_reason": "end_turn" if again else "tool_use",
        "stop_sequence": None,
        "usage": {"input_tokens": 11, "output_tokens": 5},
    }
    return [orjson.dumps(body)]


@dataclass
class Upstream:
    """A server of both APIs. `asked` counts its requests; a `hold` keeps replies back."""

    port: int = 0
    asked: int = 0
    keys: tuple[str, ...] = ()
    hold: asyncio.Event | None = None

    async def serve(self, wire: Wire) -> None:
        while True:
            head, body = await wire.message()
            self.asked += 1
            self.keys = (
                *self.keys,
                *re.findall(r"(?im)^(?:authorization: Bearer|x-api-key:) (\S+)", head.decode()),
            )
            if self.hold is not None:
                await self.hold.wait()
            if b"/files " in head:
                await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                continue
            asked = orjson.loads(body)
            made = messages if b"/messages " in head else chat
            parts = made(asked, self.asked)
            if len(parts) == 1:
                kind = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                await wire.send(b"HTTP/1.1 200 OK\r\n" + kind % (len(parts[0]), parts[0]))
                continue
            await wire.send(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            for part in parts:
                await wire.send(b"%x\r\n%b\r\n" % (len(part), part))
                await asyncio.sleep(0.005)
            await wire.send(b"0\r\n\r\n")


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    made = Upstream()
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            await made.serve(Wire(reader, writer))
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=WAIT)
    await asyncio.sleep(0.01)  # what was closed is told so in turns of the event loop


@dataclass
class Running:
    """A proxy in a process of its own. `printed` is filled when it has ended."""

    process: asyncio.subprocess.Process
    url: str
    began: str
    out: Path
    printed: str = ""

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        output, errors = await asyncio.wait_for(self.process.communicate(), WAIT)
        self.printed = self.began + output.decode() + errors.decode()
        assert self.process.returncode is not None
        return self.process.returncode

    def loops(self) -> list[dict]:  # type: ignore[type-arg]
        lines = [line for path in self.out.glob("*/records.jsonl") for line in path.read_bytes().splitlines()]
        return [orjson.loads(line) for line in lines]

    def memory(self) -> int:
        """The most bytes that it ever had."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0]) * 1024

    async def get(self, path: str) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(self.url.rpartition(":")[2]))
        wire = Wire(reader, writer)
        await wire.send(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
        _, body = await wire.message()
        wire.close()
        return body.decode()


@contextlib.asynccontextmanager
async def running(out: Path, *arguments: str) -> AsyncIterator[Running]:
    command = [sys.executable, "-m", "profiler", "proxy", "--port", "0", "--out", str(out), *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        began = ""
        while "Ctrl-C" not in began:
            line = await asyncio.wait_for(process.stdout.readline(), WAIT)
            assert line, began
            began += line.decode()
        yield Running(process, began.split()[3], began, out)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def upstreams(port: int) -> tuple[str, ...]:
    url = f"http://127.0.0.1:{port}"
    return "--upstream", f"openai={url}", "--upstream", f"anthropic={url}"


async def chat_loop(url: str, streamed: bool) -> None:
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key=CANARY, max_retries=0) as client:
        said: list = [{"role": "user", "content": "the same for all"}]  # type: ignore[type-arg]
        if streamed:
            async with client.chat.completions.stream(model="m", messages=said) as stream:
                message = (await stream.get_final_completion()).choices[0].message
        else:
            message = (await client.chat.completions.create(model="m", messages=said)).choices[0].message
        assert [call.function.name for call in message.tool_calls or ()] == ["look", "look"]
        said.append(message.model_dump(exclude_none=True, include={"role", "tool_calls"}))
        said += [
            {"role": "tool", "tool_call_id": call.id, "content": "x"} for call in message.tool_calls or ()
        ]
        last = await client.chat.completions.create(model="m", messages=said)
        assert last.choices[0].message.content == "done"


async def messages_loop(url: str) -> None:
    async with anthropic.AsyncAnthropic(base_url=url, api_key=CANARY, max_retries=0) as client:
        said: list = [{"role": "user", "content": "the same for all"}]  # type: ignore[type-arg]
        reply = await client.messages.create(model="m", max_tokens=9, messages=said)
        said.append({"role": "assistant", "content": [block.model_dump() for block in reply.content]})
        results = [{"type": "tool_result", "tool_use_id": f"toolu_{n}", "content": "x"} for n in range(2)]
        said.append({"role": "user", "content": results})
        last = await client.messages.create(model="m", max_tokens=9, messages=said)
        assert last.content[0].type == "text"


async def asked(upstream: Upstream, count: int) -> None:
    """Returns when so many requests have arrived there."""
    async with asyncio.timeout(WAIT):
        while upstream.asked < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def texts(folder: Path) -> list[str]:
    return [path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()]


async def test_sdks_go_through_it_and_keys_are_nowhere(upstream: Upstream, tmp_path: Path) -> None:
    async with running(tmp_path / "out", "--debug", *upstreams(upstream.port)) as proxy:
        assert f"OPENAI_BASE_URL={proxy.url}/v1 " in proxy.began
        assert f"ANTHROPIC_BASE_URL={proxy.url} " in proxy.began
        await chat_loop(proxy.url, streamed=False)
        await chat_loop(proxy.url, streamed=True)
        await messages_loop(proxy.url)
        assert set(upstream.keys) == {CANARY}
        assert len(upstream.keys) == 6
        metrics = await proxy.get("/metrics")
        assert 'toolloop_proxy_requests_total{kind="model",status="2xx"} 6\n' in metrics
        assert await proxy.get("/healthz") == "ok\n"
        upstream.hold = asyncio.Event()  # never: an upstream that is cut, and what is said of it
        leaving = asyncio.create_task(chat_loop(proxy.url, streamed=False))
        await asked(upstream, 7)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert await proxy.end() == 143
        loops = [one for one in proxy.loops() if one["status"] == "ok"]
        assert [len(one["rounds"]) for one in loops] == [2, 2, 2]
        assert {call["name"] for one in loops for call in one["rounds"][0]["tool_calls"]} == {"look"}
        assert "7 requests forwarded (1 left by the client)" in proxy.printed
        told = [proxy.printed, metrics, *texts(tmp_path)]
        assert not [text for text in told if CANARY in text or "the same for all" in text]


@pytest.mark.parametrize("options", [(), ("--http2",), ("--http1.0",), ("-H", "Expect: 100-continue")])
async def test_curl_goes_through_it(upstream: Upstream, tmp_path: Path, options: tuple[str, ...]) -> None:
    body = orjson.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "x" * 4000}]})
    async with running(tmp_path / "out", "--upstream", f"http://127.0.0.1:{upstream.port}") as proxy:
        file = tmp_path / "body.json"
        file.write_bytes(body)
        curl = await asyncio.create_subprocess_exec(
            *(needed("curl", "curl"), "-sN", "-w", "%{http_code}", *options, "--data-binary", f"@{file}"),
            f"{proxy.url}/v1/chat/completions",
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await asyncio.wait_for(curl.communicate(), WAIT)
        assert output == b"".join(chat(orjson.loads(body), 1)) + b"200"


async def test_fifty_megabytes_are_not_held(upstream: Upstream, tmp_path: Path) -> None:
    data = os.urandom(50_000_000)
    async with running(tmp_path / "out", "--upstream", f"http://127.0.0.1:{upstream.port}") as proxy:
        before = proxy.memory()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.url.rpartition(":")[2]))
        wire = Wire(reader, writer)
        await wire.send(b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50000000\r\n\r\n")
        sending = asyncio.create_task(wire.send(data))
        _, body = await wire.message()
        await sending
        assert body == data
        assert proxy.memory() - before < 40_000_000
        wire.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_what_is_in_flight_when_it_is_told_to_end_is_finished(
    upstream: Upstream, tmp_path: Path, number: signal.Signals
) -> None:
    upstream.hold = asyncio.Event()
    async with (
        running(tmp_path / "out", "--upstream", f"http://127.0.0.1:{upstream.port}") as proxy,
        openai.AsyncOpenAI(base_url=proxy.url + "/v1", api_key="x", max_retries=0) as client,
    ):
        said: list = [{"role": "user", "content": "x"}]  # type: ignore[type-arg]
        reply = asyncio.create_task(client.chat.completions.create(model="m", messages=said))
        await asked(upstream, 1)
        ended = asyncio.create_task(proxy.end(number))
        await asyncio.sleep(0.1)
        assert not ended.done()
        upstream.hold.set()
        assert (await reply).choices[0].finish_reason == "tool_calls"
        assert await ended == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    (loop,) = proxy.loops()
    assert [call["name"] for call in loop["rounds"][0]["tool_calls"]] == ["look", "look"]
    assert re.search(r"1 request forwarded, 1 loop recorded: profiler report \S+", proxy.printed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "nothing to forward to: give --upstream URL"),
        (("--upstream", "api.openai.com"), "--upstream: not a base URL"),
        (("--upstream", "http://a", "--upstream", "http://b"), "--upstream: which requests go to http://a"),
        (("--upstream", "http://a", "--keep", "7"), "--keep '7'"),
        (("--upstream", "http://a", "--allow-host", "*"), "--allow-host '*'"),
        (("--upstream", "https://a", "--upstream-ca", "/nowhere.pem"), "--upstream-ca /nowhere.pem"),
        (("--upstream", "http://a", "--host", "203.0.113.9"), "cannot listen on 203.0.113.9:0"),
        (("--upstream", "http://user:secret-1@a"), "holds credentials"),
    ],
)
async def test_wrong_options_are_one_line(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "profiler", "proxy", "--port", "0", "--out", str(tmp_path), *arguments),
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(process.communicate(), WAIT)
    assert process.returncode == 2
    assert words in errors.decode()
    assert errors.count(b"\n") == 1
    assert b"secret-1" not in errors
