"""The agents of one process: their event loop, their clients, and the trial they take part in.

A Locust user is one agent. Its whole life in a trial is one coroutine on the loop's thread
(loops one after another), and its greenlet waits for that to end. Between trials agents are
parked.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event

from profiler.errors import ProviderError, TargetError
from profiler.load.bridge import Flight, LoopThread
from profiler.load.options import LoadOptions, set_tools_url
from profiler.load.plan import tape_numbers
from profiler.recorder import Sink
from profiler.scenario import Scenario, load_scenario

if TYPE_CHECKING:
    from profiler.exporters.prometheus import PrometheusSink
    from profiler.loop import ToolLoop
    from profiler.strategies import Strategy

CUT_SECONDS = 5.0
"""How long cancelled loops get to come to their end."""

PREPARE_SECONDS = 60.0

HOPELESS_STATUS = (400, 401, 403, 404)
"""Answers to the very first request that no later request would change."""


@dataclass(slots=True, eq=False)
class Trial:
    """A trial as one process runs it.

    `index` is None for what is not measured. `numbers` yields this process's tape entries.
    `open` says whether agents may start another loop; the loop's thread reads it, the hub's writes it.
    """

    index: int | None
    strategy: str
    numbers: Iterator[int]
    open: bool = True
    flights: set[Flight[int]] = field(default_factory=set)
    left: Event = field(default_factory=Event)

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Trial:
        """From the master's message."""
        return cls(
            data["index"], data["strategy"], tape_numbers(data["block"], data["worker"], data["workers"])
        )


class Crew:
    """All agents of this process. Its methods are called from greenlets."""

    def __init__(self, report: Sink) -> None:
        self.process = process_name(0)
        self.model = ""
        self.metrics: PrometheusSink | None = None
        self._report = report
        self._thread: LoopThread | None = None
        self._loops: dict[str, ToolLoop] = {}
        self._prompt = ""
        self._scenario = ""
        self._trial: Trial | None = None
        self._turn = Event()

    def prepare(self, options: LoadOptions, root: str) -> float:
        """Make clients and loops for a test against `root`; returns the seconds one loop took.

        Runs one loop that is recorded nowhere: the first use of a client costs 110 to 230 ms.
        Raises `ProfilerError` when the target refuses it, or cannot be reached.
        """
        if self._thread is None:
            self._thread = LoopThread()
            self._thread.start()
        set_tools_url(options, root)
        scenario = load_scenario(options.scenario)
        self._scenario = scenario.name
        self._prompt = scenario.prompt
        seconds = self._thread.run(lambda: self._make(options, root, scenario), PREPARE_SECONDS)
        # What is there now stays: later collections need not look at Locust, the SDKs and pydantic.
        gc.collect()
        gc.freeze()
        return seconds

    @property
    def in_trial(self) -> bool:
        """Whether a trial is under way, its draining included."""
        return self._trial is not None

    def begin(self, trial: Trial) -> None:
        """Open a trial; parked agents join it at once, later ones as they come."""
        self._trial = trial
        if self.metrics is not None:
            self.metrics.set_strategy(self._scenario, trial.strategy)
        turn, self._turn = self._turn, Event()
        turn.set()

    def end(self, drain_seconds: float) -> int:
        """Close the trial, wait for its loops, cut off what still runs then; returns how many that were."""
        trial = self._trial
        if trial is None:
            return 0
        trial.open = False
        self._wait_for_agents(trial, drain_seconds)
        interrupted = len(trial.flights)
        if interrupted:
            self.cut()
            self._wait_for_agents(trial, CUT_SECONDS)
        if self._trial is trial:
            self._trial = None
            if self.metrics is not None:
                self.metrics.set_strategy(self._scenario, None)
        return interrupted

    def cut(self) -> None:
        """Cancel the loops under way; their records say so."""
        if self._trial is not None:
            self._trial.open = False
            for flight in list(self._trial.flights):
                flight.cancel()

    def take_part(self, agent: str, before: Trial | None, leaving: Callable[[], bool]) -> Trial:
        """An agent's life in the next trial after `before`; blocks its greenlet until that is over.

        `leaving()` is asked before every loop, on the loop's thread: an agent that leaves
        finishes its loop. When the greenlet is killed the loop is cancelled and waited for.
        """
        while (trial := self._trial) is None or trial is before or not trial.open:
            self._turn.wait()
        assert self._thread is not None
        flight = self._thread.submit(lambda: self._live(trial, agent, leaving))
        trial.flights.add(flight)
        trial.left.clear()
        self._count_agents(trial)
        try:
            flight.wait()
        except asyncio.CancelledError:
            pass  # the trial was cut off
        except gevent.GreenletExit:
            flight.cancel()
            with contextlib.suppress(asyncio.CancelledError, gevent.Timeout):
                flight.wait(CUT_SECONDS)
            raise
        finally:
            trial.flights.discard(flight)
            self._count_agents(trial)
            if not trial.flights:
                trial.left.set()
        return trial

    def close(self) -> None:
        """Close clients, end the loop's thread. Before gevent's hub goes."""
        thread, self._thread = self._thread, None
        if thread is not None:
            with contextlib.suppress(Exception):
                thread.run(self._close_clients, CUT_SECONDS)
            thread.stop()

    def _count_agents(self, trial: Trial) -> None:
        if self.metrics is not None:
            self.metrics.set_agents("Agent", len(trial.flights))

    def _wait_for_agents(self, trial: Trial, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while trial.flights and (left := deadline - time.monotonic()) > 0:
            trial.left.wait(left)

    # On the loop's thread:

    async def _live(self, trial: Trial, agent: str, leaving: Callable[[], bool]) -> int:
        """Loops one after another until the trial is over; returns how many."""
        loop = self._loops[trial.strategy]
        loops = 0
        for number in trial.numbers:
            if not trial.open or leaving():
                break
            with contextlib.suppress(ProviderError):  # recorded; the next loop may do better
                await loop.run(
                    self._prompt.replace("{number}", str(number)),
                    number=number,
                    agent=agent,
                    trial=trial.index,
                    process=self.process,
                )
            loops += 1
        return loops

    async def _make(self, options: LoadOptions, root: str, scenario: Scenario) -> float:
        from profiler.loop import ToolLoop
        from profiler.providers import make_provider
        from profiler.scenario_tools import scenario_tools
        from profiler.strategies import Gathered, parse_strategy
        from profiler.threads import NativeThreads

        await self._close_clients()
        model = make_provider(options.provider, base_url=root, model=options.model)
        self.model = model.model
        tools, threads = scenario_tools(scenario), NativeThreads()

        def loop(strategy: Strategy, sinks: Sequence[Sink]) -> ToolLoop:
            return ToolLoop(
                model,
                tools,
                strategy,
                max_rounds=options.max_rounds,
                tool_choice=options.tool_choice,
                parallel_tool_calls=options.parallel_tool_calls,
                stream=options.stream,
                sinks=sinks,
                threads=threads,
            )

        strategies = {spec: parse_strategy(spec) for spec in options.strategies}
        sinks: list[Sink] = [self._report]
        if self.metrics is not None:
            sinks.append(self.metrics)
            for spec, strategy in strategies.items():
                self.metrics.set_limit(spec, strategy.limit)
        self._loops = {spec: loop(strategy, sinks) for spec, strategy in strategies.items()}
        started = time.monotonic()
        try:
            await loop(Gathered(), ()).run(self._prompt.replace("{number}", "0"))
        except ProviderError as error:
            if error.status is None or error.status in HOPELESS_STATUS:
                raise TargetError(str(error)) from error
        return time.monotonic() - started

    async def _close_clients(self) -> None:
        from profiler.tool_http import close_tool_client

        loops, self._loops = self._loops, {}
        for client in {getattr(loop.model, "client", None) for loop in loops.values()}:
            if client is not None:
                await client.close()
        await close_tool_client()


def process_name(worker: int) -> str:
    """What names this process in records: no host in it, since records are shared."""
    return f"worker {worker} (pid {os.getpid()})"
