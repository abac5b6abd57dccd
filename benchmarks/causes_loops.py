"""The loops of `benchmarks/causes.py`: four kinds, as many ways to run calls, a stall somewhere around them.

What each call really did is in `Stage.worked`, by the benchmark's own clock.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import anthropic
import openai
from openai.lib import responses_tool_runner as runners

from profiler import ToolLoop, tool
from profiler.loop.eventloop import NativeThreads
from profiler.providers import OpenAIChat
from profiler.records import LoopRecord
from profiler.strategies import parse_strategy
from profiler.watch.profiler import Profiler

CALLS = 4
PLACES = 2
"""Of semaphores, pools of threads, and OpenAI's runner."""

STALLS = ("none", "before", "between", "gap", "inside", "after", "stopped")
"""Before the request; between its reply and the first call; between two calls of the round; inside a call;
after the last request; a stop of the whole process while the first call runs."""

MODES = {
    "ours": (
        *("turn", "limited", "gathered", "eager"),
        *("threads", "exclusive", "lock inside", "slow server", "retries"),
    ),
    "hand": (
        *("turn", "limited", "gathered", "eager", "lock around", "pool"),
        *("lock inside", "slow server", "retries", "tools in tools"),
        *("sync turn", "sync gathered", "sync pool"),
    ),
    "openai": ("turn", "limited", "wide", "sync turn", "sync limited"),
    "anthropic": ("turn", "eager", "sync turn", "sync eager"),
}
"""OpenAI's runner is `limited` when it is eager with two places, `wide` when it is with one for each call."""

STOPPER = """
import os, signal, sys, time
pid, wait, length = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
time.sleep(wait); os.kill(pid, signal.SIGSTOP); time.sleep(length); os.kill(pid, signal.SIGCONT)
"""
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"x": {"type": "integer"}},
    "required": ["x"],
    "additionalProperties": False,
}
ASKED: list[Any] = [{"role": "user", "content": "go"}]


@dataclass(frozen=True)
class Case:
    """One loop. `seconds` each call takes, `stall_seconds` a stall."""

    loop: str
    mode: str
    stall: str
    seconds: float
    stall_seconds: float


def possible(loop: str, mode: str, stall: str) -> bool:
    """Whether there is code of the application to stall there, and a loop that it can stall."""
    if stall in ("between", "gap"):
        return loop != "ours"
    return True


class Worked(NamedTuple):
    """One try of a call, and how long it would have taken alone."""

    x: int
    began: float
    ended: float
    seconds: float


class Again(Exception):
    """The first try of a call that is to be tried again."""

    status_code = 503


class Stage:
    """Runs cases against one server."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.records: list[LoopRecord] = []
        self.worked: list[Worked] = []
        self.stopper: subprocess.Popen[bytes] | None = None

    async def run(self, case: Case) -> str | None:
        """What is said of the round with the calls."""
        self.worked, self.begun = [], 0
        kind = f"{case.loop}, sync" if case.mode.startswith("sync") else case.loop
        runs: dict[str, Any] = {
            "ours": self._ours,
            "hand": self._hand,
            "hand, sync": self._hand_sync,
            "openai": self._openai,
            "openai, sync": self._openai_sync,
            "anthropic": self._anthropic,
            "anthropic, sync": self._anthropic_sync,
        }
        prof = Profiler(sinks=[self.records.append])
        try:
            if kind.endswith("sync"):
                await asyncio.to_thread(runs[kind], case, prof)
            else:
                await runs[kind](case, prof)
        finally:
            if self.stopper is not None:
                self.stopper.wait(10)
                self.stopper = None
        record = self.records.pop()
        assert len(record.rounds) == 2, (case, record)
        made = [call for call in record.rounds[0].tool_calls if not call.nested]
        assert len(made) == CALLS, (case, record)
        return record.rounds[0].shortfall

    @contextmanager
    def _work(self, case: Case, x: int) -> Iterator[bool]:
        """One try of a call; whether it is to fail."""
        first = not any(one.x == x for one in self.worked)
        self.begun += 1
        if self.begun == 1 and case.stall == "stopped":
            # Not before the reply has been read.
            wait = 0.06 if case.mode in ("eager", "wide") else 0.02
            self.stopper = subprocess.Popen(
                [sys.executable, "-c", STOPPER, str(os.getpid()), str(wait), str(case.stall_seconds)]
            )
        fails = case.mode == "retries" and x == 0 and first
        began = time.monotonic()
        try:
            yield fails
        finally:
            alone = case.seconds / 2 if fails else case.seconds
            if case.mode.startswith("sync") and case.stall == "inside" and x == 1:
                alone += case.stall_seconds  # in a thread of its own it keeps nobody waiting
            self.worked.append(Worked(x, began, time.monotonic(), alone))

    def _tool(self, case: Case) -> Callable[[int], Awaitable[str]]:
        lock = asyncio.Lock()

        async def work(x: int) -> str:
            """Work."""
            with self._work(case, x) as fails:
                if case.mode == "lock inside":
                    async with lock:
                        await asyncio.sleep(case.seconds / 2)
                        self._stall_inside(case, x)
                        await asyncio.sleep(case.seconds / 2)
                    return "done"
                if case.mode == "slow server":
                    await self._ask(case.seconds)
                    self._stall_inside(case, x)
                    return "done"
                await asyncio.sleep(case.seconds / 2)
                if fails:
                    raise Again
                self._stall_inside(case, x)
                await asyncio.sleep(case.seconds / 2)
                return "done"

        return work

    def _sync_tool(self, case: Case) -> Callable[[int], str]:
        def work(x: int) -> str:
            """Work."""
            with self._work(case, x):
                time.sleep(case.seconds / 2)
                self._stall_inside(case, x)
                time.sleep(case.seconds / 2)
                return "done"

        return work

    async def _ask(self, seconds: float) -> None:
        """The benchmark's server, which does one such request at a time."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        body = json.dumps({"seconds": seconds}).encode()
        writer.write(b"POST /one-at-a-time HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    def _stall_inside(self, case: Case, x: int) -> None:
        if x == 1 and case.stall == "inside":
            time.sleep(case.stall_seconds)

    def _stall_between(self, case: Case, x: int) -> None:
        """In the application's code, just before it starts a call."""
        if (case.stall, x) in (("between", 0), ("gap", 2)):
            time.sleep(case.stall_seconds)

    @asynccontextmanager
    async def _around(self, case: Case) -> AsyncIterator[None]:
        await asyncio.sleep(0.02)
        with self._around_sync(case):
            yield
        await asyncio.sleep(0.02)

    @contextmanager
    def _around_sync(self, case: Case) -> Iterator[None]:
        if case.stall == "before":
            time.sleep(2 * case.stall_seconds)  # as imports do
        yield
        if case.stall == "after":
            time.sleep(2 * case.stall_seconds)

    async def _ours(self, case: Case, _: Profiler) -> None:
        specs = {"turn": "sequential", "limited": f"semaphore:{PLACES}", "eager": "eager"}
        options: dict[str, Any] = {"pure": True}
        if case.mode == "exclusive":
            options["exclusive"] = "work"
        if case.mode == "retries":
            options["retries"] = 1
        function = self._sync_tool(case) if case.mode == "threads" else self._tool(case)
        async with openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="k") as client:
            loop = ToolLoop(
                OpenAIChat(client, "m"),
                [tool(**options)(function)],
                parse_strategy(specs.get(case.mode, "gathered")),
                stream=case.mode == "eager",
                sinks=[self.records.append],
                threads=NativeThreads(PLACES),
            )
            async with self._around(case):
                await loop.run("go")

    async def _hand(self, case: Case, prof: Profiler) -> None:
        function: Any = self._sync_tool(case) if case.mode == "pool" else self._tool(case)
        if case.mode == "tools in tools":
            half = prof.tool(self._half)

            async def function(x: int) -> str:
                """Work."""
                with self._work(case, x):
                    await half(case.seconds / 2)
                    self._stall_inside(case, x)
                    return str(await half(case.seconds / 2))

        work = prof.tool(function, name="work")
        places = {"limited": asyncio.Semaphore(PLACES), "lock around": asyncio.Lock()}.get(case.mode)
        executor = ThreadPoolExecutor(PLACES)

        async def one(x: int) -> Any:
            if places is not None:
                async with places:
                    self._stall_between(case, x)
                    return await work(x)
            self._stall_between(case, x)
            if case.mode == "pool":
                return await asyncio.to_thread(work, x)
            try:
                return await work(x)
            except Again:
                await asyncio.sleep(0.05)
                return await work(x)

        asyncio.get_running_loop().set_default_executor(executor)
        async with openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="k") as client:
            create: Any = prof.instrument(client).chat.completions.create
            with prof.loop():
                async with self._around(case):
                    if case.mode == "eager":
                        tasks = []
                        async for chunk in await create(model="m", messages=ASKED, stream=True):
                            parts = chunk.choices[0].delta.tool_calls or ()
                            given = [json.loads(part.function.arguments) for part in parts]
                            tasks += [asyncio.create_task(one(**arguments)) for arguments in given]
                        await asyncio.gather(*tasks)
                    else:
                        xs = _asked_for(await create(model="m", messages=ASKED))
                        if case.mode == "turn":
                            for x in xs:
                                await one(x)
                        else:
                            await asyncio.gather(*map(one, xs))
                    await create(model="m", messages=[*ASKED, {"role": "assistant", "content": "so"}])

    async def _half(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    def _hand_sync(self, case: Case, prof: Profiler) -> None:
        work = prof.tool(self._sync_tool(case))

        def one(x: int) -> str:
            return str(work(x))

        with openai.OpenAI(base_url=f"{self.url}/v1", api_key="k") as client:
            create: Any = prof.instrument(client).chat.completions.create
            with prof.loop(), self._around_sync(case):
                xs = _asked_for(create(model="m", messages=ASKED))
                if case.mode == "sync turn":
                    for x in xs:
                        self._stall_between(case, x)
                        one(x)
                else:
                    with ThreadPoolExecutor(PLACES if case.mode == "sync pool" else CALLS) as executor:
                        futures = []
                        for x in xs:
                            self._stall_between(case, x)
                            futures.append(executor.submit(one, x))
                        for future in futures:
                            future.result()
                create(model="m", messages=[*ASKED, {"role": "assistant", "content": "so"}])

    async def _openai(self, case: Case, prof: Profiler) -> None:
        work = prof.tool(self._tool(case))

        async def execute(arguments: dict[str, object]) -> Any:
            x = int(str(arguments["x"]))
            self._stall_between(case, x)
            return await work(x)

        given: Any = {"type": "function", "name": "work", "parameters": SCHEMA, "strict": True}
        eager = case.mode != "turn"
        function = runners.AsyncRegisteredFunction(given, execute, independent=eager)
        runner = runners.AsyncResponsesToolRunner(functions=[function])
        async with openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="k") as client:
            params: Any = {"model": "m", "input": "go"}
            more: Any = {"stream": True, "eager": True} if eager else {}
            if case.mode == "wide":
                more["max_concurrent_calls"] = CALLS
            with prof.loop():
                async with self._around(case):
                    await runner.run(prof.instrument(client), params, max_steps=3, **more)

    def _openai_sync(self, case: Case, prof: Profiler) -> None:
        work = prof.tool(self._sync_tool(case))

        def execute(arguments: dict[str, object]) -> Any:
            x = int(str(arguments["x"]))
            self._stall_between(case, x)
            return work(x)

        given: Any = {"type": "function", "name": "work", "parameters": SCHEMA, "strict": True}
        eager = case.mode != "sync turn"
        function = runners.RegisteredFunction(given, execute, independent=eager)
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key="k") as client:
            params: Any = {"model": "m", "input": "go"}
            more: Any = {"stream": True, "eager": True} if eager else {}
            with prof.loop(), self._around_sync(case):
                runners.ResponsesToolRunner(functions=[function]).run(
                    prof.instrument(client), params, max_steps=3, **more
                )

    async def _anthropic(self, case: Case, prof: Profiler) -> None:
        watched = prof.tool(self._tool(case))

        @anthropic.beta_async_tool
        async def work(x: int) -> str:
            """Work."""
            self._stall_between(case, x)
            return await watched(x)

        async with anthropic.AsyncAnthropic(base_url=self.url, api_key="k") as client:
            runner_of: Any = prof.instrument(client).beta.messages.tool_runner
            eager = case.mode == "eager"
            more = {"stream": True, "run_tools_eagerly": True} if eager else {}
            with prof.loop():
                async with self._around(case):
                    async for reply in runner_of(
                        tools=[work], model="m", max_tokens=99, messages=ASKED, **more
                    ):
                        if eager:
                            async for _ in reply:
                                pass

    def _anthropic_sync(self, case: Case, prof: Profiler) -> None:
        watched = prof.tool(self._sync_tool(case))

        @anthropic.beta_tool
        def work(x: int) -> str:
            """Work."""
            self._stall_between(case, x)
            return watched(x)

        with anthropic.Anthropic(base_url=self.url, api_key="k") as client:
            runner_of: Any = prof.instrument(client).beta.messages.tool_runner
            eager = case.mode == "sync eager"
            more = {"stream": True, "run_tools_eagerly": True} if eager else {}
            with prof.loop(), self._around_sync(case):
                for reply in runner_of(tools=[work], model="m", max_tokens=99, messages=ASKED, **more):
                    if eager:
                        for _ in reply:
                            pass


def _asked_for(reply: Any) -> list[int]:
    calls = reply.choices[0].message.tool_calls
    return [json.loads(call.function.arguments)["x"] for call in calls]
