"""Strategies: how the tool calls of one round are executed.

A strategy is handed the round's calls as coroutine functions that note their own times and
never raise (except for cancellation), in the order the model asked for them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Literal, Protocol
from weakref import WeakValueDictionary

from profiler.errors import UsageError
from profiler.gate import Gate
from profiler.limits import FixedLimit

Run = Callable[[], Coroutine[Any, Any, None]]
Scope = Literal["process", "agent"]


class Strategy(Protocol):
    """Executes the calls of a round; returns when every one has ended.

    `limit` is the number of calls it lets run at once within its `scope`, None if it sets none.
    """

    @property
    def spec(self) -> str:
        """Its name in records, metrics and on the command line."""

    @property
    def limit(self) -> int | None: ...

    @property
    def scope(self) -> Scope: ...

    async def execute(self, runs: Sequence[Run], agent: str) -> None: ...


class Sequential:
    """One call after another, in the order the model asked for them."""

    spec = "sequential"
    limit = 1
    scope: Scope = "agent"

    async def execute(self, runs: Sequence[Run], agent: str) -> None:
        for run in runs:
            await run()


class Gathered:
    """All calls of the round at once."""

    spec = "gathered"
    limit: int | None = None
    scope: Scope = "process"

    async def execute(self, runs: Sequence[Run], agent: str) -> None:
        await _all(run() for run in runs)


class SemaphoreLimited:
    """All calls of the round at once, at most `limit` of them running.

    With scope `process` (the module-level semaphore of the field's tutorials) the limit is one
    for all agents of this process; W processes allow limit x W in all. With scope `agent` each
    agent has its own. The limiter is ours; what the server allows is its quota.
    """

    def __init__(self, limit: int, *, scope: Scope = "process") -> None:
        if scope not in ("process", "agent"):
            raise UsageError(f"scope must be 'process' or 'agent', not {scope!r}")
        FixedLimit(limit)  # refuses a bad limit here, not at the first call
        self.limit = limit
        self.scope: Scope = scope
        self.spec = f"semaphore:{limit}" + ("@agent" if scope == "agent" else "")
        # A gate lives as long as someone is inside or waits; an idle one holds no state.
        # Futures belong to one event loop, so does a gate.
        self._gates: WeakValueDictionary[tuple[int, str], Gate] = WeakValueDictionary()

    async def execute(self, runs: Sequence[Run], agent: str) -> None:
        gate = self._gate(agent)
        await _all(_through(gate, run) for run in runs)

    def _gate(self, agent: str) -> Gate:
        key = (id(asyncio.get_running_loop()), agent if self.scope == "agent" else "")
        gate = self._gates.get(key)
        if gate is None:
            gate = self._gates[key] = Gate(FixedLimit(self.limit))
        return gate


def parse_strategy(spec: str) -> Strategy:
    """`sequential`, `gathered`, `semaphore:4` or `semaphore:4@agent`. Raises `UsageError`."""
    if spec == "sequential":
        return Sequential()
    if spec == "gathered":
        return Gathered()
    match = re.fullmatch(r"semaphore:(\d{1,9})(@agent)?", spec)
    if match and int(match[1]) > 0:
        return SemaphoreLimited(int(match[1]), scope="agent" if match[2] else "process")
    raise UsageError(
        f"unknown strategy {spec!r}: expected sequential, gathered, semaphore:N or semaphore:N@agent (N ≥ 1)"
    )


async def _through(gate: Gate, run: Run) -> None:
    async with gate:
        await run()


async def _all(runs: Iterable[Awaitable[None]]) -> None:
    """Run all at once; a cancellation reaches each and is waited for."""
    pending = list(runs)
    if len(pending) == 1:
        await pending[0]
        return
    async with asyncio.TaskGroup() as group:
        for run in pending:
            group.create_task(run)  # type: ignore[arg-type]
