"""A model and tool server that shares no code with the emulator, and keeps a log of its own: the truth.

    python tests/other_server.py --behaviour queueing --seconds 0.05 --seed 3

It prints its port. `POST …/chat/completions` asks for `--calls` tool calls, then answers; `GET /tools/…` is a
tool; `GET /log` returns what happened, an object a request: kind, trial, loop and call (from the client's
headers), status, and when it was received and sent, in nanoseconds of CLOCK_MONOTONIC, which all processes of
a machine share. Both are taken beside the socket, and where the system lets it the process comes before all
others, so that a crowded machine does not make the truth late. `late_ns` in the log is by how much its own
timers were late at p99 all the same.

Behaviours, of tools and model alike (but the model never refuses): `constant`; `heavy_tailed` (lognormal,
σ = 1); `bimodal` (one in five takes five times as long); `drifting` (twice as slow after ten seconds);
`stalling` (stands still for 8 × its time, every 25 × its time); `refusing` (one in ten gets 429 at once);
`queueing` (`--servers` at a time, first come, first served); `sharing` (the capacity of `--servers` is shared
by all).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import heapq
import json
import math
import os
import random
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

BEHAVIOURS = (
    "constant",
    "heavy_tailed",
    "bimodal",
    "drifting",
    "stalling",
    "refusing",
    "queueing",
    "sharing",
)


@dataclass
class Entry:
    kind: str
    trial: int | None
    loop: int | None
    call: str | None
    received_ns: int
    sent_ns: int = 0
    status: int = 200
    name: str = ""  # the tool's


@dataclass(frozen=True)
class Answer:
    """`headers` are whole lines, each with its end."""

    body: bytes
    headers: str = ""


class Work:
    """How long requests take: `await serve()` returns when one has been served, with its HTTP status."""

    def __init__(self, behaviour: str, seconds: float, servers: int, seed: str) -> None:
        self._behaviour = behaviour
        self._seconds = seconds
        self._servers = servers
        self._random = random.Random(seed)
        self._began = time.monotonic()
        self._room = asyncio.Semaphore(servers)
        self._sharing = Sharing(servers)

    async def serve(self) -> int:
        seconds, behaviour = self._seconds, self._behaviour
        if behaviour == "refusing" and self._random.random() < 0.1:
            return 429
        if behaviour == "queueing":
            async with self._room:
                await asyncio.sleep(seconds * self._random.uniform(0.5, 1.5))
        elif behaviour == "sharing":
            await self._sharing.serve(seconds * self._random.expovariate(1.0))
        else:
            await asyncio.sleep(self._alone(seconds))
        return 200

    def _alone(self, seconds: float) -> float:
        since = time.monotonic() - self._began
        if self._behaviour == "heavy_tailed":
            return seconds * min(20.0, math.exp(self._random.gauss(0.0, 1.0)))
        if self._behaviour == "bimodal":
            return seconds * (5.0 if self._random.random() < 0.2 else 1.0)
        if self._behaviour == "drifting":
            return seconds * (1.0 + min(1.0, since / 10.0))
        if self._behaviour == "stalling":
            # A request that would end within a standstill ends after it.
            every, still = 25 * seconds, 8 * seconds
            into = (since + seconds) % every
            return seconds + (still - into if into < still else 0.0)
        return seconds


class Sharing:
    """Jobs that share the capacity of `servers` equally; none gets more than one server."""

    def __init__(self, servers: int) -> None:
        self._servers = servers
        self._done = 0.0  # what each job has had by now, in seconds of a server
        self._at = 0.0
        self._jobs: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    async def serve(self, seconds: float) -> None:
        self._advance()
        self._count += 1
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._jobs, (self._done + seconds, self._count, ended))
        self._plan()
        await ended

    def _rate(self) -> float:
        return min(1.0, self._servers / max(1, len(self._jobs)))

    def _advance(self) -> None:
        now = asyncio.get_running_loop().time()
        self._done += (now - self._at) * self._rate()
        self._at = now

    def _plan(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._jobs:
            left = max(0.0, self._jobs[0][0] - self._done) / self._rate()
            self._timer = asyncio.get_running_loop().call_later(left, self._finish)

    def _finish(self) -> None:
        self._advance()
        while self._jobs and self._jobs[0][0] <= self._done + 1e-6:
            ended = heapq.heappop(self._jobs)[2]
            if not ended.done():
                ended.set_result(None)
        self._plan()


class Server:
    def __init__(self, tools: Work, model: Work, calls: int) -> None:
        self.log: list[Entry] = []
        self.late: list[int] = []
        self.tools, self.model, self.calls = tools, model, calls

    async def answer(self, entry: Entry, body: bytes) -> Answer:
        if entry.kind == "tool":
            entry.status = await self.tools.serve()
            return TOOL if entry.status == 200 else REFUSED
        asked = json.loads(body)["messages"]
        entry.status = await self.model.serve()
        if entry.status != 200:
            return REFUSED
        message: dict[str, Any] = {"role": "assistant", "content": "It is done."}
        if not any(one["role"] == "tool" for one in asked):
            message["tool_calls"] = [
                {
                    "id": f"call_{len(self.log)}_{number}",
                    "type": "function",
                    "function": {"name": "get_population", "arguments": json.dumps({"city": f"C{number}"})},
                }
                for number in range(self.calls)
            ]
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        completion = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        return Answer(json.dumps(completion).encode())

    async def watch(self) -> None:
        """How late this process's own timers are."""
        while True:
            due = time.monotonic_ns() + 10_000_000
            await asyncio.sleep(0.01)
            self.late.append(time.monotonic_ns() - due)

    def everything(self) -> bytes:
        late = sorted(self.late)
        p99 = late[int(0.99 * (len(late) - 1))] if late else 0
        return json.dumps({"late_ns": p99, "entries": [asdict(one) for one in self.log]}).encode()


TOOL = Answer(json.dumps({"city": "X", "population": 1, "year": 2026}).encode())
REFUSED = Answer(json.dumps({"error": {"message": "too many requests", "type": "rate_limit"}}).encode())
_REASONS = {200: "OK", 404: "Not Found", 429: "Too Many Requests"}


class Connection(asyncio.Protocol):
    def __init__(self, server: Server) -> None:
        self._server = server
        self._buffer = b""
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        for task in self._tasks:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        received_ns = time.monotonic_ns()
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            lines = self._buffer[:end].split(b"\r\n")
            headers = {
                name.strip().lower(): value.strip()
                for name, _, value in (line.decode("latin-1").partition(":") for line in lines[1:])
            }
            size = end + 4 + int(headers.get("content-length", "0"))
            if len(self._buffer) < size:
                return
            body, self._buffer = self._buffer[end + 4 : size], self._buffer[size:]
            self._request(lines[0].split()[1].decode(), headers, body, received_ns)

    def _request(self, path: str, headers: dict[str, str], body: bytes, received_ns: int) -> None:
        if path == "/log":
            self._send(200, Answer(self._server.everything()))
            return
        kind = "tool" if path.startswith("/tools/") else "model" if "chat/completions" in path else ""
        if not kind:
            self._send(404, Answer(b"{}"))
            return
        entry = Entry(
            kind,
            _number(headers.get("x-toolloop-trial")),
            _number(headers.get("x-toolloop-loop")),
            headers.get("x-toolloop-call"),
            received_ns,
            name=path.partition("?")[0].removeprefix("/tools/") if kind == "tool" else "",
        )
        task = asyncio.get_running_loop().create_task(self._serve(entry, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, entry: Entry, body: bytes) -> None:
        answer = await self._server.answer(entry, body)
        self._send(entry.status, answer)
        entry.sent_ns = time.monotonic_ns()
        self._server.log.append(entry)

    def _send(self, status: int, answer: Answer) -> None:
        head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\n{answer.headers}"
        assert isinstance(self._transport, asyncio.Transport)
        self._transport.write(f"{head}Content-Length: {len(answer.body)}\r\n\r\n".encode() + answer.body)


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


async def serve(server: Server, port: int) -> None:
    """Print the port, and serve until the process ends."""
    with contextlib.suppress(OSError, AttributeError):  # only a privileged process may
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    listening = await asyncio.get_running_loop().create_server(lambda: Connection(server), "127.0.0.1", port)
    sys.stdout.write(f"{listening.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    gc.disable()  # it lives for seconds, and a collection would be charged to the client
    await server.watch()


async def _main(arguments: argparse.Namespace) -> None:
    behaviour, servers, seed = arguments.behaviour, arguments.servers, arguments.seed
    tools = Work(behaviour, arguments.seconds, servers, f"{seed}/tools")
    # A refused model request is tried again by the SDK: two of the server's make one of the client's.
    of_model = "constant" if behaviour == "refusing" else behaviour
    model = Work(of_model, arguments.model_seconds or arguments.seconds, servers, f"{seed}/model")
    await serve(Server(tools, model, arguments.calls), arguments.port)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--behaviour", choices=BEHAVIOURS, default="constant")
    parser.add_argument("--seconds", type=float, default=0.05, help="a tool's typical time")
    parser.add_argument("--model-seconds", type=float, help="the model's, by default the same")
    parser.add_argument("--servers", type=int, default=4)
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    try:
        asyncio.run(_main(parser.parse_args()))
    except KeyboardInterrupt:
        sys.exit(0)
