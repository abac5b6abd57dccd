"""A worker of a load test: the agents of one process, as the leader's messages say.

A Locust user is one agent. Its whole part in a trial is one coroutine on the event loop's thread (loops one
after another, or as they arrive), and its greenlet waits for that to end. Between trials the greenlet waits
for the next trial.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import gc
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler.errors import ProfilerError, TargetError, UsageError
from profiler.load.agents import LoadedAgent, as_agent, load_agent
from profiler.load.clients import set_environment
from profiler.load.context import AgentFactory
from profiler.load.health import Kernel, Meter, machine_id, shift_ns
from profiler.load.identity import of_scenario
from profiler.load.lease import Lease
from profiler.load.messages import (
    Begin,
    ClientMeasured,
    Drained,
    Grant,
    MeasureClient,
    Prepare,
    Pulse,
    Ready,
    Returned,
)
from profiler.load.options import METRICS_PORT, LoadOptions
from profiler.load.preparation import LoopRunners, calibrate, request_cpu
from profiler.load.spending import LoopAccount
from profiler.load.trial import Event, LoopThread, RunningTrial, TrialAgent
from profiler.loop.eventloop import unpatched
from profiler.loop.lag import lag_sampler
from profiler.loop.ledger import current_ledger
from profiler.loop.recorder import Sink
from profiler.providers.endpoint import Endpoint, check_trusted, scrape_host, shown_url
from profiler.records import LoopRecord, shifted
from profiler.redaction import describe
from profiler.rundir import Anchor
from profiler.scenarios import load_scenario

if TYPE_CHECKING:
    from profiler.exporters.prometheus import PrometheusSink

CUT_SECONDS = 5.0
"""How long cancelled loops get to come to their end."""

TURN_SECONDS = 2.0
"""How long an event loop may take for one turn when all of its loops are cancelled."""

REFRESH_SECONDS = 2.0
"""How long MCP servers may take to list their tools anew; what they had stays."""

PREPARE_SECONDS = 60.0
LATE_SECONDS = 0.5
"""An agent that comes this long after a trial began was spawned later."""

PORTS_TRIED = 100

_log = logging.getLogger(__name__)


class Worker:
    """All agents of this process. Its methods are called from greenlets, which may wait.

    Finished loops go to `report`. `start_thread` and `new_event` are what it waits with. `factories` tells
    what makes the agents of each Locust user class, None for the built-in loop. `send_pulse` is called when
    an agent waits for a grant, and must not block. `leaving` is set when this process has lost its leader:
    then there is nobody to answer. Without a `lease` nobody else is given this process's agents.
    """

    def __init__(
        self,
        report: Sink,
        start_thread: Callable[[], LoopThread],
        new_event: Callable[[], Event],
        factories: Callable[[], Mapping[str, AgentFactory | None]],
        send_pulse: Callable[[], object],
        lease: Lease | None = None,
    ) -> None:
        self.leaving = False
        self.lease = lease
        self._report = report
        self._start_thread = start_thread
        self._new_event = new_event
        self._factories = factories
        self._send_pulse = send_pulse
        self._thread: LoopThread | None = None
        self._process = process_name(0)
        self._shift_ns = 0
        self._scenario = ""
        self._drain_seconds = 0.0
        self._metrics: PrometheusSink | None = None
        self._metrics_port = 0
        self._runners: LoopRunners | None = None
        self._prepared: tuple[object, Ready] | None = None
        self._options: LoadOptions | None = None
        self._has_built_in = False
        self._trial: RunningTrial | None = None
        self._sequence = 0
        # Loops that ended while the lease did not hold: of a worker that is dismissed they do not count.
        self._withheld: list[LoopRecord] = []
        self._thread_id = 0
        self._held: str | None = None
        self._opened, self._agents_left = new_event(), new_event()

    @property
    def trial(self) -> RunningTrial | None:
        """The trial under way, its draining included."""
        return self._trial

    # Messages of the leader:

    def prepare(self, message: Prepare) -> Ready | None:
        """Make clients and agents; the answer says why that cannot be. None when this process is leaving.

        One at a time: a leader that did not hear this worker for a while asks again. It gets the same answer.
        """
        asked = message.options, message.root, message.workers if message.options.share_limit else None
        if self._prepared is not None and self._prepared[0] == asked:
            return self._prepared[1]
        self._prepared = None
        try:
            ready = self._prepare(message)
            self._prepared = asked, ready
            return ready
        except ProfilerError as error:
            return Ready(str(error), error.exit_code)
        except TimeoutError:
            if message.options.direct:
                late = f"{message.root}: the first call did not end within {PREPARE_SECONDS:g} s"
                return Ready(late, TargetError.exit_code)
            first = "first request was not answered" if self._has_built_in else "first loop did not end"
            late = f"{shown_url(message.root)}: the {first} within {PREPARE_SECONDS:g} s"
            return Ready(f"{late}; try a single one: profiler run --base-url ...", TargetError.exit_code)
        except asyncio.CancelledError:
            return None
        except Exception as error:  # the leader has to hear of it; here it would only be logged
            if self.leaving:
                return None
            _log.exception("cannot prepare")
            return Ready(describe(error), 1)

    def begin(self, message: Begin) -> None:
        """Open a trial; agents that wait join it at once, later ones as they come."""
        thread = self._loop_thread()
        observers: dict[str, Any] = {}
        if (metrics := self._metrics) is not None:
            metrics.set_strategy(self._scenario, message.strategy)
            observers["on_dropped"] = lambda: metrics.count_dropped_arrival(message.strategy)
            observers["on_start"] = metrics.observe_schedule_lag
        self._trial = RunningTrial(
            message,
            lambda: thread.post(self._send_pulse),
            process=self._process,
            meter=Meter(kernel=Kernel()),
            holds=lambda: self.lease is None or self.lease.holds,
            **observers,
        )
        self._sequence = message.sequence
        opened, self._opened = self._opened, self._new_event()
        opened.set()

    def grant(self, message: Grant) -> None:
        """Let `message.loops` loops of the trial under way begin in all."""
        trial, thread = self._trial, self._thread
        if trial is not None and thread is not None and message.sequence == trial.plan.sequence:
            thread.call(lambda: trial.grant(message.loops))

    def heard(self, sent_ns: int) -> None:
        """The leader counts on this worker, as of a beat of that time: loops may begin."""
        if self.lease is None or not self.lease.renew(sent_ns):
            return
        trial, thread = self._trial, self._thread
        if trial is not None and thread is not None:
            thread.call(trial.go_on)
        while self._withheld:
            self._report(self._withheld.pop(0))

    def give_up(self) -> Returned:
        """Begin nothing any more and cut off what is in flight: others have this worker's agents."""
        assert self.lease is not None
        self.lease.revoke()
        self.leaving = True
        if (trial := self._trial) is not None:
            self.cut()
            self._wait_for_agents(trial, CUT_SECONDS)
        loops = sum(1 for record in self._withheld if not record.nested)
        return Returned(loops, self.lease.stood_still_seconds)

    def end(self, drain_seconds: float | None = None) -> Drained:
        """Close the trial, wait for its loops, and cut off those that still run after `drain_seconds`.

        None: as many as the options say.
        """
        trial = self._trial
        if trial is None:
            return Drained(self._sequence)
        # Of what was measured: before the trial drains.
        health, arrived = trial.meter.read(self._process, trial.plan.index), trial.arrived
        agents = trial.agents
        interrupted = self._drain(trial, self._drain_seconds if drain_seconds is None else drain_seconds)
        self._refresh()
        return Drained(
            trial.plan.sequence,
            interrupted,
            trial.tally.loops,
            arrived,
            trial.late,
            trial.dropped,
            trial.begun,
            trial.tally.spent,
            health,
            agents,
            trial.tally.unwritten,
            self._held,
            tuple(trial.tally.lost_sessions.items()),
        )

    def cut(self) -> None:
        """Cancel the loops under way; their records say so."""
        if self._trial is not None:
            self._close(self._trial)
            for task in list(self._trial.tasks):
                task.cancel()

    def measure_client(self, message: MeasureClient) -> ClientMeasured:
        """Measure what a request costs through these clients. Nothing may run meanwhile."""
        options = self._options
        assert options is not None
        found: dict[str, float] = {}
        for client in message.clients if self._has_built_in else ():
            measure = partial(request_cpu, options, message.server, client)
            try:
                found[client] = self._loop_thread().run(measure, PREPARE_SECONDS)
            except Exception as error:  # such as an SDK that is too old; the leader waits for an answer
                _log.info("the client %s cannot be measured: %s", client, describe(error))
        return ClientMeasured(tuple(found.items()))

    def pulse(self) -> Pulse | None:
        """How the trial under way stands; None when there is none, or this process is leaving."""
        return None if self._trial is None or self.leaving else self._trial.pulse()

    # Agents:

    def next_trial(self, before: RunningTrial | None) -> RunningTrial:
        """Wait until a trial after `before` is open."""
        while (trial := self._trial) is None or trial is before or not trial.open:
            self._opened.wait()
        return trial

    def take_part(
        self, user_class: str, name: str, ordinal: int, trial: RunningTrial, leaving: Callable[[], bool]
    ) -> None:
        """Play an agent's part in a trial that `next_trial` returned; waits until that is over.

        `leaving()` is asked before every loop, on the loop's thread: an agent that leaves finishes its loop.
        When the waiting is interrupted the loop is cancelled and waited for.
        """
        assert self._thread is not None
        assert self._runners is not None
        runner = self._runners[user_class, trial.plan.strategy]
        late = time.monotonic_ns() - trial.started_ns > LATE_SECONDS * 1e9
        agent = TrialAgent(name, ordinal, leaving, joins_late=late)
        task = self._thread.submit(lambda: trial.run_agent(runner, agent))
        trial.tasks[task] = agent
        self._show_agents(user_class, trial)
        try:
            task.wait()
        except asyncio.CancelledError:
            pass  # the trial was cut off
        except BaseException:  # the greenlet is killed
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, TimeoutError):
                task.wait(CUT_SECONDS)
            raise
        finally:
            trial.tasks.pop(task, None)
            self._show_agents(user_class, trial)
            if not trial.tasks:
                self._agents_left.set()

    def close(self) -> None:
        """Close clients, end the loop's thread. To be called before gevent's hub goes."""
        from profiler.scenarios.tools import use_tools_at

        use_tools_at(None)
        thread, self._thread = self._thread, None
        if thread is not None:
            with contextlib.suppress(Exception):
                thread.run(self._close_clients, CUT_SECONDS)
            thread.stop()

    def _prepare(self, message: Prepare) -> Ready:
        check_trusted(os.environ)  # this machine may be another one than the leader's
        options = message.options
        if options.expected_agents is not None:
            options = replace(options, expected_agents=math.ceil(options.expected_agents / message.workers))
        scenario = load_scenario(options.scenario)
        if message.scenario and of_scenario(scenario) != message.scenario:
            raise UsageError(
                f"worker {message.worker} ({socket.gethostname()}, pid {os.getpid()}) has another scenario "
                f"{options.scenario} than the master: give both the same file"
            )
        self._options = options
        thread = self._loop_thread()
        # On its thread, since it takes seconds where the machine is busy, and heartbeats have to go on here.
        thread.run(_import_tools, PREPARE_SECONDS)
        from profiler.scenarios.tools import use_tools_at

        self._drain_seconds = options.drain_seconds
        remote = message.machine != machine_id()
        metrics_port = None if remote else self._serve_metrics(options, message.worker)
        self._process = process_name(message.worker)
        self._shift_ns = shift_ns(Anchor.now(), message.anchor) if remote else 0
        self._scenario = scenario.name
        if options.agent is not None:
            set_environment(options.endpoint(message.root), os.environ)
        named = None if options.agent is None else load_agent(options.agent, factory=options.factory)
        agents = {
            user_class: named or (None if factory is None else as_agent(factory, user_class, factory=True))
            for user_class, factory in self._factories().items()
        }
        server = None if remote else message.calibration  # it listens on loopback alone
        if options.direct:  # no model's server, and no tools beside it
            tools_root = ""
        else:
            tools_root = options.tools_url or Endpoint.parse(message.root).root
            use_tools_at(tools_root)
        share = message.workers if options.share_limit else 1
        runners = LoopRunners(options, message.root, tools_root, scenario, share, says=message.worker == 0)
        self._has_built_in = not options.direct and None in agents.values()
        ready = thread.run(lambda: self._make(runners, agents, server), PREPARE_SECONDS)
        # Locust, the SDKs and pydantic stay: collections during the test need not look at them.
        gc.collect()
        gc.freeze()
        return replace(ready, metrics_port=metrics_port)

    def _serve_metrics(self, options: LoadOptions, number: int) -> int | None:
        """Serve this process's metrics; returns the port."""
        if not options.metrics:
            return None
        if self._metrics is not None:
            return self._metrics_port
        from profiler.exporters.prometheus import PrometheusSink

        # The run's name. Without a run directory yet (under `locust`), empty, as in production.
        testid = Path(options.run_directory).name if options.run_directory else ""
        sink = PrometheusSink(labels={"testid": testid} if testid else {})
        first, tried = METRICS_PORT, PORTS_TRIED
        if options.metrics_port is not None:
            first, tried = options.metrics_port + number, 1
        for port in range(first, first + tried):
            try:
                self._metrics_port = sink.serve(port, options.metrics_host)
                break
            except OSError as error:
                failure = error
        else:
            where = f"{options.metrics_host}:{port}"
            raise UsageError(f"--metrics-port: cannot serve on {where}: {failure.strerror}") from failure
        self._metrics = sink
        _log.info("metrics: http://%s:%d/metrics", scrape_host(options.metrics_host), self._metrics_port)
        return self._metrics_port

    def _loop_thread(self) -> LoopThread:
        if self._thread is None:
            self._thread = self._start_thread()
        return self._thread

    def _drain(self, trial: RunningTrial, seconds: float) -> int:
        """Wait for the loops of a trial, then cut off those that still run; returns how many that were."""
        self._close(trial)
        self._wait_for_agents(trial, seconds)
        interrupted = trial.in_flight
        if trial.tasks:
            self.cut()
            self._wait_for_agents(trial, CUT_SECONDS)
        if trial.tasks:
            self._find_what_holds()
        if self._trial is trial:
            self._trial = None
            if self._metrics is not None:
                self._metrics.set_strategy(self._scenario, None)
        return interrupted

    def _find_what_holds(self) -> None:
        """See whether the event loop still turns. Where it does not, no loop will run here any more."""
        thread, turned = self._thread, self._new_event()
        if thread is None or self._held is not None:
            return
        thread.call(lambda: thread.post(turned.set))
        if not turned.wait(TURN_SECONDS):
            self._held = (
                f"{self._process}: the event loop does not go on, since code of an agent holds it: "
                f"{_where(self._thread_id)}; it must not block: await it, or run it with asyncio.to_thread"
            )
            _log.error("%s", self._held)

    def _refresh(self) -> None:
        """Between two trials, when nothing is measured: what there is to be looked at anew."""
        thread, runners = self._thread, self._runners
        if thread is not None and runners is not None and self._held is None and not self.leaving:
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                thread.run(runners.refresh, REFRESH_SECONDS)

    def _close(self, trial: RunningTrial) -> None:
        trial.open = False  # here too, for agents that look for a trial before the loop's thread gets to it
        if self._thread is not None:
            self._thread.call(trial.close)

    def _wait_for_agents(self, trial: RunningTrial, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while trial.tasks and (left := deadline - time.monotonic()) > 0:
            self._agents_left.clear()
            self._agents_left.wait(left)

    def _show_agents(self, user_class: str, trial: RunningTrial) -> None:
        if self._metrics is not None:
            self._metrics.set_agents(user_class, len(trial.tasks))

    # On the loop's thread:

    def _take(self, record: LoopRecord) -> None:
        """A loop has ended."""
        if self.lease is None or self.lease.holds:
            self._report(record)
        else:
            self._withheld.append(record)

    async def _make(
        self, runners: LoopRunners, agents: Mapping[str, LoadedAgent | None], server: str | None
    ) -> Ready:
        """Make what runs loops, and warm it up; calibrate this client against `server`, if there is one."""
        options = self._options
        assert options is not None
        await self._close_clients()
        # An agent of the user's own may change what our client runs in; and that of a server, while it waits
        # for its first answer, which may take long, takes nothing from a calibration.
        apart = options.direct or any(agents.values())
        calibration = await calibrate(options, server) if server is not None and apart else None
        self._thread_id = unpatched(_thread, "get_ident")()
        self._runners = runners
        sinks: list[Sink] = [_TrialSink(self)]
        if self._metrics is not None:
            sinks.append(self._metrics)
            for spec, strategy in runners.strategies.items():
                self._metrics.watch_limit(spec, strategy)
        await runners.make(agents, sinks)
        if server is None or apart:
            return replace(await runners.warm_up(), calibration=calibration)
        calibrating = asyncio.create_task(calibrate(options, server))
        try:
            ready = await runners.warm_up()
            return replace(ready, calibration=await calibrating)
        finally:
            calibrating.cancel()

    async def _close_clients(self) -> None:
        from profiler.scenarios.tools import close_tool_clients

        runners, self._runners = self._runners, None
        if runners is not None:
            await runners.close()
        await close_tool_clients()


class _TrialSink:
    """The sink of every loop here: the counts and the meter of the trial, then the worker's report."""

    waited_for = True
    __name__ = "records"  # as metrics and the log name it

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def __call__(self, record: LoopRecord) -> None:
        trial = self._worker.trial
        try:
            account = current_ledger.get()
            if isinstance(account, LoopAccount):
                account.record(record)
            if trial is not None:
                trial.tally.count(record)
            shift_ns = self._worker._shift_ns
            self._worker._take(shifted(record, shift_ns) if shift_ns else record)
        except Exception:
            if trial is not None and not record.nested:
                trial.tally.unwritten += 1
            raise  # the recorder counts it in the metrics, and logs the first

    def observe_lag(self, lag_ns: int) -> None:
        trial = self._worker.trial
        if trial is not None and trial.open:
            trial.meter.lag(lag_ns, lag_sampler(time.monotonic_ns))


def _where(thread_id: int) -> str:
    """The place where a thread is now: file, line and function."""
    frame = sys._current_frames().get(thread_id)
    if frame is None:
        return "nobody knows where"
    # Of the `time.sleep` that gevent has patched a hub is seen, and what called it is behind that.
    behind = getattr(getattr(frame.f_locals.get("self"), "parent", None), "gr_frame", None)
    frame = behind or frame
    while frame.f_back is not None and f"{os.sep}gevent{os.sep}" in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"


async def _import_tools() -> None:
    import profiler.scenarios.tools  # noqa: F401


def process_name(worker: int) -> str:
    """This process's name in records: without its host, since records are shared."""
    return f"worker {worker} (pid {os.getpid()})"
