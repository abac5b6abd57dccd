"""For tests: a virtual clock and a scripted model. Nothing here touches the network or sleeps.

async def main(clock):
    model = ScriptedModel([[call("search", query="a"), call("search", query="b")], "done"])
    return await ToolLoop(model, tools=[search], clock=clock).run("go")

result = run_virtual(main)
"""

from __future__ import annotations

import asyncio
import itertools
import json
import selectors
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from profiler.errors import ProviderError
from profiler.loop.model import CallRequest, Message, Probe, Reply, RequestOptions, ToolResult, conversation
from profiler.loop.tools import Tool

T = TypeVar("T")

REAL_WAIT_SECONDS = 5.0
"""How long a virtual loop that has nothing scheduled waits for an answer from a thread, in real time."""


class _JumpingSelector(selectors.DefaultSelector):
    """Waits by moving the virtual clock on, or in real time when only a thread can go on."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            events = super().select(REAL_WAIT_SECONDS)
            if not events:
                raise RuntimeError("deadlock: nothing is scheduled and no thread answers")
            return events
        events = super().select(0)
        if not events:
            self.now += timeout
        return events


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._jumping.now


def run_virtual(main: Callable[[Callable[[], int]], Awaitable[T]]) -> T:
    """Run `main(clock)` on an event loop whose time jumps to the next timer; clock is in nanoseconds.

    Fails if a task is left behind.
    """
    loop = _VirtualLoop()

    async def checked() -> T:
        result = await main(lambda: round(loop.time() * 1e9))
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:
            raise AssertionError(f"tasks left behind: {left}")
        return result

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(checked())


_call_ids = itertools.count(1)


def call(name: str, /, **arguments: Any) -> CallRequest:
    """A call with a fresh id."""
    return CallRequest(f"call_{next(_call_ids)}", name, json.dumps(arguments))


class ScriptedModel:
    """A model that follows a script: for each request a list of calls, an answer, or an exception.

    Each request takes `seconds`; in a streamed reply the calls become complete evenly over that time.
    `cut` is the index of a request whose reply breaks off before its last call is complete. `requests`
    holds the (messages, tools, options) of each request.
    """

    provider = "scripted"
    model = "script"
    conversation = staticmethod(conversation)

    def __init__(
        self,
        script: Sequence[Sequence[CallRequest] | str | Exception],
        *,
        seconds: float = 0.0,
        cut: int | None = None,
    ) -> None:
        self._script = list(script)
        self._seconds = seconds
        self._cut = cut
        self.requests: list[tuple[list[Message], Any, RequestOptions]] = []

    def render_tools(self, tools: Sequence[Tool]) -> list[str]:
        return [tool.name for tool in tools]

    async def request(
        self, messages: list[Message], tools: Any, options: RequestOptions, probe: Probe
    ) -> Reply:
        self.requests.append((list(messages), tools, options))
        step = self._script.pop(0)
        cut = len(self.requests) - 1 == self._cut
        if options.stream and not isinstance(step, str | Exception):
            for call in step:
                await asyncio.sleep(self._seconds / len(step))
                if not (cut and call is step[-1]):
                    probe.call_complete(call)
        else:
            await asyncio.sleep(self._seconds)
        if isinstance(step, Exception):
            raise step
        if isinstance(step, str):
            return Reply(step, (), [{"role": "assistant", "content": step}], "stop", "req_1", 10, 2)
        calls = tuple(replace(c, truncated=c.truncated or (cut and c is step[-1])) for c in step)
        message = {"role": "assistant", "calls": [c.id for c in calls]}
        return Reply("", calls, [message], "tool_calls", "req_1", 10, 5)

    def results(self, results: Sequence[ToolResult]) -> list[Message]:
        return [{"role": "tool", "id": r.call_id, "content": r.content, "error": r.is_error} for r in results]


def provider_failure(error_type: str = "http_500", status: int | None = 500) -> ProviderError:
    """A `ProviderError` for a script."""
    return ProviderError("scripted failure", provider="scripted", status=status, error_type=error_type)
