"""The leader in a Locust process: one load test, or one after another in the web UI."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import gevent
import gevent.socket
from gevent.event import Event

from profiler.errors import ProfilerError, Terminated, UsageError
from profiler.load.estimate import estimate_load
from profiler.load.leader import Leader, Ramp
from profiler.load.locust.members import Members, shown
from profiler.load.locust.processes import ForkPipe, LocalTransport, MasterTransport, receive
from profiler.load.locust.quirks import (
    finish_csv,
    forget_run_time,
    let_workers_leave,
    wait_for_forked_workers,
)
from profiler.load.messages import ClientMeasured, Drained, Pulse, Ready, Records, Returned
from profiler.load.options import Asked, LoadOptions, asked, conditions
from profiler.load.output import RunOutput, show_step
from profiler.load.preparation import preload
from profiler.load.spending import Budget, Grants
from profiler.load.target import PATIENCE_SECONDS, ConnectionWatch, Emulators, Target
from profiler.load.workers import Workers
from profiler.providers.endpoint import Endpoint
from profiler.report.text import one_line
from profiler.rundir import Incident, Run, RunDirectory
from profiler.scenarios import load_scenario

PROGRESS_SECONDS = 1.0
LOOK_SECONDS = 1.0
CONNECT_SECONDS = 2.0
QUIT_SECONDS = 3.0
"""How long after a headless test its process leaves by itself, where nothing else made it leave."""

OUR_ERRORS = frozenset((errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM))
"""Errors of a connection that are this machine's, and say nothing about the target."""

_log = logging.getLogger(__name__)


class LeaderSession:
    """In a Locust master, or in the only process (`alone`)."""

    def __init__(
        self, environment: Any, runner: Any, pipe: ForkPipe, alone: bool, on_command_line: Asked | None
    ) -> None:
        self._on_command_line = on_command_line
        self._environment = environment
        self._runner = runner
        self._pipe = pipe
        self._alone = alone
        self._leader: Leader | None = None
        self._leading: Any = None
        self._concluding = False
        self._interrupted = False
        self._leaving = False
        self._target_gone: str | None = None
        self._emulators = Emulators()
        self._members: Members | None = None
        self._last: RunOutput | None = None
        transport = LocalTransport(runner)
        if not alone:
            let_workers_leave(runner)
            self._members = Members(environment, runner, self._returned, self._has_agents)
            transport = MasterTransport(runner, self._members.greeted)
        self._workers = Workers(transport, Event, self._emulators.for_calibration)
        receive(runner, Ready, self._workers.ready)
        receive(runner, Pulse, self._workers.pulse)
        receive(runner, Drained, self._workers.drained)
        receive(runner, ClientMeasured, self._workers.client_measured)
        receive(runner, Records, self._write)
        events = environment.events
        events.test_start.add_listener(self._on_test_start)
        events.spawning_complete.add_listener(self._on_spawning_complete)
        events.test_stop.add_listener(self._on_test_stop)
        events.quit.add_listener(self._on_quit)

    @property
    def run_directory(self) -> Path | None:
        """That of the test under way."""
        return None if self._leader is None else self._leader.output.directory.path

    def prepare(self) -> None:
        """Start the emulator and prepare the workers, before a headless test's run time starts to count.

        The workers are waited for here, because Locust's own wait is a `time.sleep`: in an unpatched master
        that stops it from hearing them. Raises `ProfilerError` when the test cannot be run.
        """
        try:
            options = self._asked().options
            self._emulators.begin(options)
            if self._alone:
                show_step(options, "importing what sends the requests")
                preload(options)  # while they start; workers do so when they are prepared
            if options.base_url is None and not options.direct:
                show_step(options, "waiting for the emulator")
            options, root = self._with_tools(options)
            if self._members is not None:
                show_step(options, "waiting for the workers")
                self._wait_for_workers(self._members)
                if self._leaving:
                    sys.exit(1)
                if not self._members.greeted:
                    return  # Locust will say so
            show_step(options, _first_use(options))
            self._workers.prepare(options, root)
            self._check_workers()
        except BaseException:
            self._emulators.stop()
            raise

    def _on_test_start(self, **_: Any) -> None:
        parsed = self._environment.parsed_options
        shaped = self._environment.shape_class is not None
        seconds = float(parsed.run_time) if parsed.run_time else None
        ramp = Ramp(int(parsed.num_users or 1), float(parsed.spawn_rate or 1), seconds, shaped)
        try:
            asked_for, run = self._asked()
            options, root = self._with_tools(asked_for)
            target = Target(root, lambda: self._emulators.ended() or self._target_gone, self._other_processes)
            output = _output(asked_for, ramp.users, run)
            if options.run_directory is None:
                self._log_plan(asked_for, ramp)
            self._leader = Leader(options, ramp, self._workers, target, output, Event)
        except ProfilerError as error:
            self._fail(error)
            gevent.spawn(self._stop_locust)
            return
        self._last = output
        self._concluding = self._interrupted = False
        self._target_gone = None
        self._leading = gevent.spawn(self._lead, self._leader)

    def _on_spawning_complete(self, **_: Any) -> None:
        if self._leader is not None:
            self._leader.spawned()

    def note_interruption(self, told: KeyboardInterrupt | None) -> None:
        """Locust is quitting, or told to hurry by SIGTERM: unless the test was over, that ended it."""
        if self._leader is None:
            return
        if isinstance(told, Terminated):
            if not self._concluding or self._interrupted:
                self._leader.output.note(Incident(told.incident, told.cause))
        elif not self._concluding:
            self._interrupted = True
            self._leader.output.note(Incident("interrupted", "stopped by the user"))

    def conclude(self) -> None:
        """End the test under way: let the loops in flight drain."""
        self._concluding = True
        if self._leader is not None:
            gone = not self._workers.transport.workers()
            (self._leader.stop_without_workers if gone else self._leader.stop)()
            self._leading.join()

    def cut(self) -> None:
        if self._leader is not None:
            self._leader.cut()

    def _on_test_stop(self, **_: Any) -> None:
        if self._headless:
            # Locust stops a test whose last worker went missing, and then goes on without one for ever.
            gevent.spawn_later(QUIT_SECONDS, self._runner.quit)
        if self._leader is not None:
            output, self._leader = self._leader.output, None
            output.close()
            if not self._headless and not self._environment.parsed_options.run_directory:
                output.summarise(at_the_end=True)
            self._workers.grants = Grants(Budget())  # the web form's next test has a budget of its own
        if not self._headless:
            forget_run_time(self._environment.parsed_options)

    def leave(self) -> None:
        """The process that started this one is gone."""
        self._leaving = True

    def _on_quit(self, **_: Any) -> None:
        self._emulators.stop()
        if self._last is not None and self._headless:
            self._print_comparison(self._last)
        if self._environment.parsed_options.csv_prefix:
            finish_csv()
        if self._members is not None:
            self._members.end_stopped()
            wait_for_forked_workers()

    @property
    def _headless(self) -> bool:
        return bool(self._environment.parsed_options.headless)

    def _asked(self) -> Asked:
        """The load test asked for on the command line or in the web form. Raises `ProfilerError`."""
        if self._headless and self._on_command_line is not None:
            return self._on_command_line
        known = None if self._on_command_line is None else self._on_command_line.options
        return asked(self._environment.parsed_options, os.environ, known)

    def _with_tools(self, options: LoadOptions) -> tuple[LoadOptions, str]:
        """The options with the root of the tools, and the root of the target; starts what is missing."""
        root = self._emulators.root(options)
        if options.direct and options.mcp_per_agent:
            users = int(self._environment.parsed_options.num_users or 1)
            options = replace(options, expected_agents=max((users, *options.levels)))
        return replace(options, tools_url=self._emulators.tools_root(options)), root

    def _wait_for_workers(self, members: Members) -> None:
        """Raises `UsageError` when one that came cannot take part: then those that are expected never do."""
        parsed = self._environment.parsed_options
        with gevent.Timeout(parsed.expect_workers_max_wait or None, False):
            while len(members.greeted) < parsed.expect_workers and not self._leaving:
                self._check_workers()
                if members.stranger is not None:
                    members.dismiss_all()
                    raise UsageError(members.stranger)
                gevent.sleep(0.05)
        members.strict = False

    def _check_workers(self) -> None:
        """Raise `ProfilerError` when one is gone already: Locust would wait a minute for it."""
        if gone := self._pipe.children_gone():
            raise ProfilerError(f"{gone} of the worker processes ended before the test began")

    def _log_plan(self, options: LoadOptions, ramp: Ramp) -> None:
        """Log what is about to happen, where its run time is known."""
        if ramp.seconds is None or ramp.shaped or options.direct:
            return
        each = ramp.seconds / (len(options.strategies) * max(1, len(options.levels)))
        remote = len(options.remote_targets(os.environ)) > len(options.remote_servers)
        scenario = load_scenario(options.scenario)
        workers = 1 if self._members is None else max(1, len(self._members.greeted))
        for line in estimate_load(options, ramp.users, each, workers, scenario, remote).lines():
            _log.info("%s", line)

    def _other_processes(self) -> dict[str, int]:
        """Our processes that run no loops: name → pid."""
        found = {} if self._alone else {"the master": os.getpid()}
        if self._emulators.pid is not None:
            found["the emulator"] = self._emulators.pid
        return found

    def _lead(self, leader: Leader) -> None:
        beside = [gevent.spawn(self._report_progress, leader)]
        if (watched := leader.options.watched_url) is not None:
            beside.append(gevent.spawn(self._watch_target, Endpoint.parse(watched)))
        leader.run()
        gevent.killall(beside)
        if leader.error is not None:
            self._fail(leader.error)
        elif leader.ended_early and leader.options.run_directory is None:
            self._environment.process_exit_code = 1
        if not self._concluding:
            gevent.spawn(self._stop_locust)

    def _report_progress(self, leader: Leader) -> None:
        while True:
            gevent.sleep(PROGRESS_SECONDS)
            leader.report_progress()

    def _watch_target(self, target: Endpoint) -> None:
        """While loops fail, see whether a target that is not ours can be connected to."""
        if not target.is_loopback and getproxies():
            return  # the proxy may reach what we cannot
        watch = ConnectionWatch()
        while self._target_gone is None:
            gevent.sleep(LOOK_SECONDS)
            state = self._workers.state()
            if not watch.is_due(state.loops, state.failed):
                continue
            refusal = None
            try:
                gevent.socket.create_connection(target.address, CONNECT_SECONDS).close()
            except OSError as error:
                if error.errno in OUR_ERRORS:
                    continue
                refusal = error.strerror or str(error)
            if watch.is_gone(time.monotonic(), connected=refusal is None):
                self._target_gone = (
                    f"the target {target.root} went away in the middle of the run ({refusal}, for "
                    f"{PATIENCE_SECONDS:g} s); what was measured is kept"
                )

    def _fail(self, error: ProfilerError) -> None:
        _log.error("%s", one_line(str(error)))
        self._environment.process_exit_code = error.exit_code

    def _stop_locust(self) -> None:
        if self._headless:
            self._runner.quit()
        else:
            self._runner.stop()

    def _has_agents(self, worker: str) -> bool:
        return self._workers.has_agents(worker)

    def _returned(self, worker: str, message: Returned) -> None:
        if self._leader is not None:
            self._leader.returned(worker, message)
        else:
            _log.warning("worker %s left after the test", shown(worker))

    def _write(self, _: str, message: Records) -> None:
        if self._leader is not None:
            self._leader.output.write(message.lines, message.count)

    def _print_comparison(self, output: RunOutput) -> None:
        """Print the end of a run, unless `run_experiment` started it, whose caller does."""
        if self._environment.parsed_options.run_directory:
            return
        from profiler.records import NO_MODEL
        from profiler.report.direct import render_directory
        from profiler.report.terminal import render_comparison

        summary = output.summarise(at_the_end=True)
        if summary is not None:
            path = str(output.directory.path)
            if output.run.provider == NO_MODEL:
                print(render_directory(output.directory, summary), flush=True)  # noqa: T201
                return
            print(render_comparison(summary, output.run, 100, path=path), flush=True)  # noqa: T201


def _first_use(options: LoadOptions) -> str:
    """The preparation of the workers, in words."""
    first = "asking the model once" if options.agent is None else "running the agent once with each strategy"
    said = ["calling a tool once" if options.direct else first]
    if options.calibration_seconds > 0:
        said.append("measuring this client alone")
    return ", ".join(said)


def _output(options: LoadOptions, users: int, run: Run | None) -> RunOutput:
    """The directory that was made for this run, or a new one."""
    if options.run_directory is not None and run is not None:
        return RunOutput(RunDirectory.open(options.run_directory), run)
    run = conditions(options, users)
    return RunOutput(RunDirectory.create(options.out, run), run)
