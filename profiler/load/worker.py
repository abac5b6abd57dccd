"""The agents of one process: their event loop, their clients, and the trial they take part in.

A Locust user is one agent. Its whole life in a trial is one coroutine on the loop's thread
(loops one after another, or as they arrive), and its greenlet waits for that to end. Between
trials agents are parked.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event

from profiler.errors import ProviderError, TargetError
from profiler.load.agents import AgentContext, AgentFactory, BuiltIn, Own, Place, Runs, load_redact
from profiler.load.calibration import Calibration, calibrate
from profiler.load.locust.bridge import LoopThread
from profiler.load.options import LoadOptions, set_tools_url
from profiler.load.spending import spent_by
from profiler.load.trial import Agent, Trial
from profiler.loop.recorder import Sink
from profiler.records import LoopRecord, shifted
from profiler.redaction import guard_logs
from profiler.rundir import ClientHealth, Spent
from profiler.scenarios.schema import Scenario, load_scenario

if TYPE_CHECKING:
    from profiler.exporters.prometheus import PrometheusSink
    from profiler.limits.gate import Gate
    from profiler.loop.loop import ToolLoop
    from profiler.strategies import Strategy

CUT_SECONDS = 5.0
"""How long cancelled loops get to come to their end."""

PREPARE_SECONDS = 60.0
LATE_SECONDS = 0.5
"""An agent that comes this long after a trial began was spawned later."""

HOPELESS_STATUS = (400, 401, 403, 404)
"""Answers to the very first request that no later request would change."""


class Crew:
    """All agents of this process. Its methods are called from greenlets.

    `shift_ns` is what turns this machine's monotonic times into those of the one that leads.
    `warmed_up` is what the first loops of the last `prepare` spent, `first_failure` the error type of one
    that failed.
    """

    def __init__(self, report: Sink) -> None:
        self.process = process_name(0)
        self.model = ""
        self.shift_ns = 0
        self.metrics: PrometheusSink | None = None
        self.warmed_up = Spent()
        self.first_failure: str | None = None
        self._report = report
        self._thread: LoopThread | None = None
        self._runs: dict[tuple[str, str], Runs] = {}
        self._scenario = ""
        self._trial: Trial | None = None
        self._turn = Event()

    def prepare(
        self,
        options: LoadOptions,
        root: str,
        factories: Mapping[str, AgentFactory | None],
        share: int = 1,
    ) -> float:
        """Make clients and agents for a test against `root`; returns the seconds one loop took.

        `factories`: by Locust user class, None for the built-in loop. `share`: how many processes
        share the limits. Runs one loop of each that is
        recorded nowhere: the first use of a client costs 110 to 230 ms. Raises `ProfilerError` when
        the target refuses it, or cannot be reached.
        """
        thread = self._loop_thread()
        set_tools_url(options, root)
        scenario = load_scenario(options.scenario)
        self._scenario = scenario.name
        seconds = thread.run(lambda: self._make(options, root, scenario, factories, share), PREPARE_SECONDS)
        # What is there now stays: later collections need not look at Locust, the SDKs and pydantic.
        gc.collect()
        gc.freeze()
        return seconds

    def calibrate(self, options: LoadOptions, root: str, agents: int) -> Calibration:
        """Measure this process against a server without latency."""
        return self._loop_thread().run(
            lambda: calibrate(options, root, agents, options.calibration_seconds), PREPARE_SECONDS
        )

    @property
    def trial(self) -> Trial | None:
        """The trial under way, its draining included."""
        return self._trial

    def begin(self, trial: Trial, asks: Callable[[], Any]) -> None:
        """Open a trial; parked agents join it at once, later ones as they come.

        `asks()` is called, in the hub, when an agent waits for a grant.
        """
        thread = self._loop_thread()
        trial.ask = lambda: thread.hub.post(asks)
        self._trial = trial
        trial.meter.start()
        if self.metrics is not None:
            self.metrics.set_strategy(self._scenario, trial.strategy)
        turn, self._turn = self._turn, Event()
        turn.set()

    def grant(self, loops: int) -> None:
        """As many loops of the trial under way may begin in all."""
        trial, thread = self._trial, self._thread
        if trial is not None and thread is not None:
            thread.call(lambda: trial.grant(loops))

    def health(self) -> ClientHealth | None:
        """How this process fared in the trial up to now."""
        trial = self._trial
        return None if trial is None else trial.meter.read(self.process, trial.index)

    def end(self, drain_seconds: float) -> int:
        """Close the trial, wait for its loops, cut off what still runs then; returns how many that were."""
        trial = self._trial
        if trial is None:
            return 0
        self._close(trial)
        self._wait_for_agents(trial, drain_seconds)
        interrupted = trial.in_flight
        if trial.flights:
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
            self._close(self._trial)
            for flight in list(self._trial.flights):
                flight.cancel()

    def next_trial(self, before: Trial | None) -> Trial:
        """Parks an agent's greenlet until a trial after `before` is open."""
        while (trial := self._trial) is None or trial is before or not trial.open:
            self._turn.wait()
        return trial

    def take_part(
        self, user_class: str, name: str, ordinal: int, trial: Trial, leaving: Callable[[], bool]
    ) -> None:
        """An agent's life in a trial that `next_trial` returned; blocks its greenlet until that is over.

        `leaving()` is asked before every loop, on the loop's thread: an agent that leaves
        finishes its loop. When the greenlet is killed the loop is cancelled and waited for.
        """
        assert self._thread is not None
        runs = self._runs[user_class, trial.strategy]
        agent = Agent(
            name,
            ordinal,
            self.process,
            leaving,
            joins_late=time.monotonic_ns() - trial.started_ns > LATE_SECONDS * 1e9,
            observe_schedule_lag=None if self.metrics is None else self.metrics.observe_schedule_lag,
        )
        flight = self._thread.submit(lambda: trial.live(runs, agent))
        trial.flights.add(flight)
        trial.left.clear()
        self._count_agents(user_class, trial)
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
            self._count_agents(user_class, trial)
            if not trial.flights:
                trial.left.set()

    def close(self) -> None:
        """Close clients, end the loop's thread. Before gevent's hub goes."""
        thread, self._thread = self._thread, None
        if thread is not None:
            with contextlib.suppress(Exception, gevent.Timeout):  # which is no Exception
                thread.run(self._close_clients, CUT_SECONDS)
            thread.stop()

    def _loop_thread(self) -> LoopThread:
        if self._thread is None:
            self._thread = LoopThread()
            self._thread.start()
        return self._thread

    def _close(self, trial: Trial) -> None:
        trial.open = False
        if self._thread is not None:
            self._thread.call(trial.close)

    def _count_agents(self, user_class: str, trial: Trial) -> None:
        if self.metrics is not None:
            self.metrics.set_agents(user_class or "Agent", len(trial.flights))

    def _wait_for_agents(self, trial: Trial, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while trial.flights and (left := deadline - time.monotonic()) > 0:
            trial.left.wait(left)

    # On the loop's thread:

    async def _make(
        self,
        options: LoadOptions,
        root: str,
        scenario: Scenario,
        factories: Mapping[str, AgentFactory | None],
        share: int,
    ) -> float:
        from profiler.limits.gate import Gate
        from profiler.loop.limited_model import parse_model_limit

        await self._close_clients()
        self.warmed_up, self.first_failure = Spent(), None
        strategies = {spec.text: spec.build(share=share) for spec in options.strategies}
        sinks: list[Sink] = [_Reports(self)]
        if self.metrics is not None:
            sinks.append(self.metrics)
            for spec, strategy in strategies.items():
                self.metrics.watch_limit(spec, strategy)
        model_gate = None
        if options.model_limit is not None:
            model_gate = Gate(parse_model_limit(options.model_limit), share=share)
        slowest = 0.0
        guard_logs()  # an agent's module may have set up logging of its own
        for user_class, factory in factories.items():
            if factory is None:
                built_in = _Loops(options, root, scenario, model_gate)
                self.model = built_in.model.model
                for spec, strategy in strategies.items():
                    self._runs[user_class, spec] = BuiltIn(built_in.loop(strategy, sinks), scenario.prompt)
                first = built_in.loop(gentlest(list(strategies.values())), [self._warmed_up])
                self.warmed_up += Spent(1)
                slowest = max(slowest, await _timed(first, scenario.prompt.replace("{number}", "0")))
                continue
            self.model = options.model or ""
            made = []
            for spec, strategy in strategies.items():
                context = _context(options, root, scenario, strategy, model_gate, sinks)
                own = await Own.make(factory, context, sinks)
                self._runs[user_class, spec] = own
                made.append(own)
            began = time.monotonic()
            self.warmed_up += Spent(len(made))
            place = Place(0, "", None, self.process)
            await asyncio.gather(*(own.warm(place, [self._warmed_up]) for own in made))
            slowest = max(slowest, time.monotonic() - began)
        return slowest

    def _warmed_up(self, record: LoopRecord) -> None:
        self.warmed_up += spent_by(record)
        if record.status == "error":
            self.first_failure = record.error_type

    async def _close_clients(self) -> None:
        from profiler.scenarios.tools import close_tool_client

        runs, self._runs = self._runs, {}
        for one in runs.values():
            await one.close()
        await close_tool_client()


class _Reports:
    """The sink of every loop here: counts and meters of the trial, then the report."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew

    def __call__(self, record: LoopRecord) -> None:
        trial = self._crew.trial
        if trial is not None:
            trial.tally.count(record)
        shift_ns = self._crew.shift_ns
        self._crew._report(shifted(record, shift_ns) if shift_ns else record)

    def observe_lag(self, lag_ns: int) -> None:
        trial = self._crew.trial
        if trial is not None and trial.open:
            trial.meter.lag(lag_ns)


class _Loops:
    """Built-in loops that share one client, one set of tools and one pool of threads."""

    def __init__(self, options: LoadOptions, root: str, scenario: Scenario, model_gate: Gate | None) -> None:
        from profiler.loop.eventloop import NativeThreads
        from profiler.loop.limited_model import LimitedModel
        from profiler.providers import make_provider
        from profiler.scenarios.tools import scenario_tools

        self._options = options
        self.model = make_provider(options.provider, base_url=root, model=options.model)
        if model_gate is not None:
            self.model = LimitedModel(self.model, model_gate)
        self._tools = scenario_tools(scenario)
        self._threads = NativeThreads()
        self._redact = None if options.redact is None else load_redact(options.redact)

    def loop(self, strategy: Strategy, sinks: Sequence[Sink]) -> ToolLoop:
        from profiler.loop.loop import ToolLoop

        return ToolLoop(
            self.model,
            self._tools,
            strategy,
            max_rounds=self._options.max_rounds,
            tool_choice=self._options.tool_choice,
            parallel_tool_calls=self._options.parallel_tool_calls,
            stream=self._options.stream,
            sinks=sinks,
            record_content=self._options.record_content,
            redact=self._redact,
            threads=self._threads,
        )


def gentlest(strategies: Sequence[Strategy]) -> Strategy:
    """A strategy for the loop before the test that lets no more run at once than the test will."""
    from profiler.strategies import Gathered, Sequential

    if any(strategy.limit is None and strategy.gate is None for strategy in strategies):
        return Gathered()
    return next((strategy for strategy in strategies if strategy.gate is not None), Sequential())


async def _timed(loop: ToolLoop, prompt: str) -> float:
    """Seconds of a loop. Raises `TargetError` when it fails in a way that later ones would too."""
    began = time.monotonic()
    try:
        await loop.run(prompt)
    except ProviderError as error:
        if error.status is None or error.status in HOPELESS_STATUS:
            raise TargetError(str(error)) from error
    return time.monotonic() - began


def _context(
    options: LoadOptions,
    root: str,
    scenario: Scenario,
    strategy: Strategy,
    model_gate: Gate | None,
    sinks: Sequence[Sink],
) -> AgentContext:
    return AgentContext(
        provider=options.provider,
        base_url=root,
        tools_url=os.environ["PROFILER_TOOLS_URL"],
        model=options.model,
        strategy=strategy,
        prompt=scenario.prompt,
        sinks=sinks,
        record_content=options.record_content,
        redact=None if options.redact is None else load_redact(options.redact),
        model_gate=model_gate,
    )


def process_name(worker: int) -> str:
    """What names this process in records: no host in it, since records are shared."""
    return f"worker {worker} (pid {os.getpid()})"


def describe(trial: Trial) -> dict[str, Any]:
    """What the one that leads is told of a trial every second, and when an agent waits for a grant."""
    # In this order: a loop that ends in between is counted twice, as under way too, and not left out.
    begun, in_flight = trial.begun, trial.in_flight
    return {
        "asks": trial.asking,
        "begun": begun,
        "spent": asdict(trial.tally.spent),
        "in_flight": in_flight,
        "waiting": trial.waiting,
        "loops": trial.tally.loops,
        "failed": trial.tally.failed,
        "rate_limited": trial.tally.rate_limited,
        "lag_ns": trial.meter.take_worst_lag(trial.open and in_flight > 0),  # a closed one takes no samples
    }
