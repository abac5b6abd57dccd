"""Whether the cause of a shortfall is right: loops of four kinds, four ways to run calls, stalls around them.

    python -m benchmarks.causes [--loops 200] [--seed 1]

Each loop asks a small server of its own (a process, scripted replies of three APIs) for calls of a tool
and runs them in turn, at most two at once, gathered, or as they stream in, while nothing, its own code,
or a stop of the whole process (SIGSTOP by a helper) stalls it before, inside or after the tool phase.
Ours is a `ToolLoop`, the others are watched: a loop by hand, and the runners of both SDKs, which run
calls in turn whatever is asked of them. The truth is how the loop was made. Right: that cause is named.
Wrong: another is. Silent: none is, though there is one. Exits with 1 where one is wrong, or less than 95
% of the loops that have a cause are right.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import openai
from openai.lib.responses_tool_runner import AsyncRegisteredFunction, AsyncResponsesToolRunner

from profiler import ToolLoop, tool
from profiler.providers import OpenAIChat
from profiler.records import LoopRecord
from profiler.strategies import parse_strategy
from profiler.watch.profiler import Profiler

CALLS = 4
STALLS = ("none", "before", "inside", "after", "stopped")
LEAST_RIGHT = 0.95

SERVER = Path(__file__).with_name("causes_server.py")

STOPPER = """
import os, signal, sys, time
pid, wait, length = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
time.sleep(wait); os.kill(pid, signal.SIGSTOP); time.sleep(length); os.kill(pid, signal.SIGCONT)
"""


@dataclass(frozen=True)
class Case:
    """One loop. `seconds` each call takes, `stall_seconds` a stall."""

    loop: str
    mode: str
    stall: str
    seconds: float
    stall_seconds: float

    @property
    def truth(self) -> frozenset[str | None]:
        """What may be said: a loop with a lasting cause, that one; else none, or the stall that was there."""
        in_turn = {"openai": "openai_runner", "anthropic": "anthropic_runner", "hand": "application"}
        if self.loop in ("openai", "anthropic"):
            return frozenset((in_turn[self.loop],))
        if self.loop == "hand" and self.mode in ("turn", "limited"):
            return frozenset(("application" if self.mode == "turn" else "application_limit",))
        stall = {"inside": "blocked_loop", "stopped": "machine"}.get(self.stall)
        return frozenset((None, stall))

    @property
    def has_cause(self) -> bool:
        return None not in self.truth


def cases(count: int, seed: int) -> list[Case]:
    """So many loops, every combination about as often."""
    choose = random.Random(seed)
    modes = {
        "ours": ("turn", "limited", "gathered", "eager"),
        "hand": ("turn", "limited", "gathered", "eager"),
        "openai": ("turn", "limited"),  # as given, and eager with two places
        "anthropic": ("turn", "eager"),
    }
    combinations = [(loop, mode, stall) for loop in modes for mode in modes[loop] for stall in STALLS]
    choose.shuffle(combinations)
    return [
        Case(*one, choose.uniform(0.15, 0.25), choose.uniform(0.1, 0.3))
        for one in itertools.islice(itertools.cycle(combinations), count)
    ]


class Stage:
    """Runs cases against one server."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.records: list[LoopRecord] = []
        self.stopper: subprocess.Popen[bytes] | None = None
        self.ran = 0

    async def run(self, case: Case) -> str | None:
        """What is said of the round with the calls."""
        self.ran = 0
        runs = {"ours": self._ours, "hand": self._hand, "openai": self._openai, "anthropic": self._anthropic}
        prof = Profiler(sinks=[self.records.append])
        try:
            await runs[case.loop](case, prof)
        finally:
            if self.stopper is not None:
                self.stopper.wait(10)
                self.stopper = None
        record = self.records.pop()
        assert len(record.rounds) == 2, (case, record)
        assert len(record.rounds[0].tool_calls) == CALLS, (case, record)
        return record.rounds[0].shortfall

    def _work(self, case: Case) -> Callable[[int], Awaitable[str]]:
        async def work(x: int) -> str:
            """Work."""
            self.ran += 1
            if self.ran == 1 and case.stall == "stopped":
                self.stopper = subprocess.Popen(  # noqa: ASYNC220 (before any stall, and short)
                    [sys.executable, "-c", STOPPER, str(os.getpid()), "0.02", str(case.stall_seconds)]
                )
            await asyncio.sleep(case.seconds / 2)
            if x == 1 and case.stall == "inside":
                time.sleep(case.stall_seconds)  # noqa: ASYNC251 (a tool that blocks)
            await asyncio.sleep(case.seconds / 2)
            return "done"

        return work

    @asynccontextmanager
    async def _around(self, case: Case) -> AsyncIterator[None]:
        await asyncio.sleep(0.02)
        if case.stall == "before":
            time.sleep(2 * case.stall_seconds)  # noqa: ASYNC251 (as imports do)
        yield
        if case.stall == "after":
            time.sleep(2 * case.stall_seconds)  # noqa: ASYNC251
        await asyncio.sleep(0.02)

    async def _ours(self, case: Case, _: Profiler) -> None:
        specs = {"turn": "sequential", "limited": "semaphore:2", "gathered": "gathered", "eager": "eager"}
        async with openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="k") as client:
            loop = ToolLoop(
                OpenAIChat(client, "m"),
                [tool(pure=True)(self._work(case))],
                parse_strategy(specs[case.mode]),
                stream=case.mode == "eager",
                sinks=[self.records.append],
            )
            async with self._around(case):
                await loop.run("go")

    async def _hand(self, case: Case, prof: Profiler) -> None:
        work = prof.tool(self._work(case))
        places = asyncio.Semaphore(2)

        async def limited(x: int) -> str:
            async with places:
                return await work(x)

        async with openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="k") as client:
            create: Any = prof.instrument(client).chat.completions.create
            asked: list[Any] = [{"role": "user", "content": "go"}]
            with prof.loop():
                async with self._around(case):
                    if case.mode == "eager":
                        tasks = []
                        async for chunk in await create(model="m", messages=asked, stream=True):
                            parts = chunk.choices[0].delta.tool_calls or ()
                            given = [json.loads(part.function.arguments) for part in parts]
                            tasks += [asyncio.create_task(work(**arguments)) for arguments in given]
                        await asyncio.gather(*tasks)
                    else:
                        reply = (await create(model="m", messages=asked)).choices[0].message
                        xs = [json.loads(call.function.arguments)["x"] for call in reply.tool_calls]
                        if case.mode == "turn":
                            for x in xs:
                                await work(x)
                        else:
                            await asyncio.gather(*map(limited if case.mode == "limited" else work, xs))
                    await create(model="m", messages=[*asked, {"role": "assistant", "content": "so"}])

    async def _openai(self, case: Case, prof: Profiler) -> None:
        work = prof.tool(self._work(case))

        async def execute(arguments: dict[str, object]) -> Any:
            return await work(int(str(arguments["x"])))

        schema = {
            "type": "object",
            "properties": {"x": {"type": "integer"}},
            "required": ["x"],
            "additionalProperties": False,
        }
        given: Any = {"type": "function", "name": "work", "parameters": schema, "strict": True}
        early = case.mode == "limited"
        runner = AsyncResponsesToolRunner(
            functions=[AsyncRegisteredFunction(given, execute, independent=early)]
        )
        async with openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="k") as client:
            params: Any = {"model": "m", "input": "go"}
            with prof.loop():
                async with self._around(case):
                    await runner.run(prof.instrument(client), params, max_steps=3, stream=early, eager=early)

    async def _anthropic(self, case: Case, prof: Profiler) -> None:
        watched = prof.tool(self._work(case))

        @anthropic.beta_async_tool
        async def work(x: int) -> str:
            """Work."""
            return await watched(x)

        async with anthropic.AsyncAnthropic(base_url=self.url, api_key="k") as client:
            runner_of: Any = prof.instrument(client).beta.messages.tool_runner
            asked = {"model": "m", "max_tokens": 99, "messages": [{"role": "user", "content": "go"}]}
            eager = case.mode == "eager"
            more = {"stream": True, "run_tools_eagerly": True} if eager else {}
            with prof.loop():
                async with self._around(case):
                    async for reply in runner_of(tools=[work], **asked, **more):
                        if eager:
                            async for _ in reply:
                                pass


@dataclass
class Found:
    """Of one combination, or of all."""

    right: int = 0
    wrong: int = 0
    silent: int = 0
    with_cause: int = 0
    right_with_cause: int = 0

    def count(self, case: Case, said: str | None) -> None:
        right = said in case.truth
        self.right += right
        self.silent += not right and said is None
        self.wrong += not right and said is not None
        self.with_cause += case.has_cause
        self.right_with_cause += case.has_cause and right


def examine(chosen: list[Case], tell: Callable[[str], object] = print) -> Found:
    """Run the cases; tells of each combination what was right, wrong and silent."""
    server = subprocess.Popen([sys.executable, str(SERVER), str(CALLS)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        stage = Stage(int(server.stdout.readline()))
        found: dict[tuple[str, str, str], Found] = {}
        total, mistakes = Found(), Counter[str]()
        for case in chosen:
            said = asyncio.run(stage.run(case))
            found.setdefault((case.loop, case.mode, case.stall), Found()).count(case, said)
            total.count(case, said)
            if said not in case.truth:
                mistakes[f"{case.loop} {case.mode} {case.stall}: {said}"] += 1
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()
    tell(f"{'loop':10} {'calls':9} {'stall':8} {'right':>5} {'wrong':>5} {'silent':>6}")
    for (loop, mode, stall), one in sorted(found.items()):
        tell(f"{loop:10} {mode:9} {stall:8} {one.right:5} {one.wrong:5} {one.silent:6}")
    for mistake, times in mistakes.most_common():
        tell(f"{times} x {mistake}")
    share = total.right_with_cause / max(1, total.with_cause)
    tell(
        f"{len(chosen)} loops: {total.right} right, {total.wrong} wrong, {total.silent} silent; "
        f"{share:.1%} right of {total.with_cause} with a lasting cause"
    )
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loops", type=int, default=240)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    found = examine(cases(options.loops, options.seed))
    missed = found.wrong > 0 or found.right_with_cause < LEAST_RIGHT * found.with_cause
    print("missed" if missed else "met")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
