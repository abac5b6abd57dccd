"""What our Locust files register with Locust: options, and a `Session` in each process.

A session holds what its process needs for its part: on a worker a crew, on a master the
coordinator of the test under way, on a single process both.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import gevent
import gevent.os
import gevent.socket
from gevent import monkey
from locust.runners import WorkerNode, WorkerNodes

from profiler.errors import ProfilerError, TargetError, UsageError
from profiler.load import team as parts
from profiler.load.agents import AgentFactory, load_factory
from profiler.load.emulators import Emulators
from profiler.load.estimate import plan
from profiler.load.health import PATIENCE_SECONDS, Silence, machine_id, shift_ns
from profiler.load.leader import Coordinator, Ramp, Site
from profiler.load.locust.lifetime import (
    INTERRUPTED,
    ForkPipe,
    exit_at_the_latest,
    inherited_fd,
    when_closed,
    when_disconnected,
)
from profiler.load.locust.quirks import use_native_locks
from profiler.load.locust.reporter import Reporter
from profiler.load.options import METRICS_PORT, LoadOptions, asked, conditions
from profiler.load.output import Ledger
from profiler.load.spending import Budget, Grants
from profiler.load.team import Team
from profiler.load.trial import Trial
from profiler.load.worker import PREPARE_SECONDS, Crew, describe, process_name
from profiler.providers.endpoint import Endpoint, scrape_host
from profiler.redaction import describe as describe_error
from profiler.redaction import guard_logs
from profiler.report.text import one_line
from profiler.rundir import Anchor, Incident, RunDirectory, Spent
from profiler.scenarios.schema import load_scenario

PULSE_SECONDS = 1.0
CONNECT_SECONDS = 2.0
OURS = frozenset((errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM))
"""Why a connection may fail that says nothing of its target."""

CALIBRATION_AGENTS = 32
"""In each process: enough to keep it busy."""

PORTS_TRIED = 100

_log = logging.getLogger(__name__)

_installed: set[int] = set()


def install(events: Any) -> None:
    """Register everything with Locust's events, at the import of a Locust file. Again, it does nothing."""
    if id(events) in _installed:
        return
    _installed.add(id(events))
    use_native_locks()  # gevent's, of logging, may fail at exit too, when all ends early
    pipe = ForkPipe()
    read = False

    def on_parser(parser: Any, **_: Any) -> None:
        nonlocal read
        LoadOptions.add_to_locust(parser)
        if not read:  # later parsers are the web form's, for what was on the command line
            read = True
            _refuse_as_parsed(parser)

    events.init_command_line_parser.add_listener(on_parser)

    def on_init(environment: Any, runner: Any, **_: Any) -> None:
        try:
            environment.toolcall_session = Session(environment, runner, pipe)
        except ProfilerError as error:
            _refuse(error)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)

    events.init.add_listener(on_init)


def _refuse_as_parsed(parser: Any) -> None:
    """Have what cannot be asked refused as Locust refuses its own: before it logs, forks or serves."""
    parse_args = parser.parse_args

    def parse(*arguments: Any, **keywords: Any) -> Any:
        parsed = parse_args(*arguments, **keywords)
        if not parsed.worker:  # a worker's options come from its master
            try:
                asked(parsed, os.environ)
            except ProfilerError as error:
                _refuse(error)
        return parsed

    parser.parse_args = parse


def _refuse(error: ProfilerError) -> None:
    print(f"locust: error: {one_line(str(error))}", file=sys.stderr)  # noqa: T201 (what argparse would do)
    sys.exit(error.exit_code)


class Session:
    """One process's part in load tests, from Locust's start to its exit."""

    def __init__(self, environment: Any, runner: Any, pipe: ForkPipe) -> None:
        """Raises `ProfilerError` when a headless run was asked for what cannot be."""
        from locust.runners import LocalRunner, MasterRunner, WorkerRunner

        self.environment = environment
        self.runner = runner
        self._pipe = pipe
        pipe.all_forked()
        self.leads = not isinstance(runner, WorkerRunner)
        self.works = not isinstance(runner, MasterRunner)
        self.coordinator: Coordinator | None = None
        self._metrics_port = 0
        self._coordinating: Any = None
        self._concluding = False
        self._left = False
        self._target_gone: str | None = None
        self._emulators = Emulators()
        self._turn = 0
        self._drain_seconds = 0.0
        self._greeted: set[str] = set()
        self._last: Ledger | None = None
        if not self.works:
            let_workers_leave(runner)
        local = isinstance(runner, LocalRunner)
        roster = LocalRoster(runner) if local else MasterRoster(runner, self._greeted)
        self._team = Team(roster, self._emulators.for_calibration)
        for name in ("httpx", "httpx2", "openai", "anthropic"):
            # At Locust's level INFO they would write a line for every request.
            logging.getLogger(name).setLevel(logging.WARNING)
        guard_logs()
        if self.leads:
            runner.register_message(parts.HELLO, self._on_hello)
            runner.register_message(parts.READY, self._on_answer(parts.READY))
            runner.register_message(parts.DRAINED, self._on_answer(parts.DRAINED))
            runner.register_message(parts.PULSE, self._on_answer(parts.PULSE))
            runner.register_message(parts.RECORDS, self._on_records)
        if self.works:
            self.reporter = Reporter(environment.events.request.fire, self._write)
            self._crew = Crew(self.reporter.sink)
            runner.register_message(parts.PREPARE, self._on_prepare, concurrent=True)
            runner.register_message(parts.BEGIN, self._on_begin)
            runner.register_message(parts.END, self._on_end, concurrent=True)
            runner.register_message(parts.CUT, self._on_cut)
            runner.register_message(parts.GRANT, self._on_grant)
            gevent.spawn(self.reporter.run)
            gevent.spawn(self._beat)
        events = environment.events
        events.test_start.add_listener(self._on_test_start)
        events.spawning_complete.add_listener(self._on_spawning_complete)
        events.test_stopping.add_listener(self._on_test_stopping)
        events.test_stop.add_listener(self._on_test_stop)
        events.quitting.add_listener(self._on_quitting)
        events.quit.add_listener(self._on_quit)
        self._watch_parent(pipe)
        if self.leads and self._headless:
            try:
                self._prepare_ahead()
            except BaseException:
                self._emulators.stop()
                raise
        if not self.leads:
            runner.send_message(parts.HELLO, {})

    @classmethod
    def of(cls, environment: Any) -> Session:
        """The session of this process."""
        session: Session = environment.toolcall_session
        return session

    @property
    def crew(self) -> Crew:
        """The agents of this process; a master has none."""
        return self._crew

    @property
    def _headless(self) -> bool:
        return bool(self.environment.parsed_options.headless)

    # Leading: a master, or the only process.

    def _on_test_start(self, **_: Any) -> None:
        if not self.leads:
            return
        parsed = self.environment.parsed_options
        shaped = self.environment.shape_class is not None
        try:
            wanted = self._asked()
            root = self._emulators.root(wanted)
            options = replace(wanted, tools_url=self._emulators.tools_root(wanted))
            site = Site(
                root=root,
                scale=self._scale,
                wanted=lambda: int(self.runner.target_user_count),
                shaped=shaped,
                others=self._others,
                gone=lambda: self._emulators.ended() or self._target_gone,
            )
            ramp = Ramp(int(parsed.num_users or 1), float(parsed.spawn_rate or 1), _seconds(parsed.run_time))
            ledger = _ledger(wanted, ramp.users)
            if wanted.run_directory is None:
                self._say_plan(wanted, ramp)
            self.coordinator = Coordinator(options, ramp, self._team, site, ledger)
        except ProfilerError as error:
            self._fail(error)
            gevent.spawn(self._stop_locust)
            return
        self._last = ledger
        self._concluding = False
        self._target_gone = None
        self._coordinating = gevent.spawn(self._coordinate, self.coordinator)

    def _say_plan(self, options: LoadOptions, ramp: Ramp) -> None:
        """What is about to happen, where the time for it is known."""
        if ramp.seconds is None or self.environment.shape_class is not None:
            return
        each = ramp.seconds / (len(options.strategies) * max(1, len(options.levels)))
        remote = bool(options.remote_targets(os.environ))
        scenario = load_scenario(options.scenario)
        workers = max(1, len(self._greeted))
        for line in plan(options, ramp.users, each, workers, scenario, remote).lines():
            _log.info("%s", line)

    def _scale(self, users: int, rate: float) -> None:
        self.runner.start(users, rate)

    def _others(self) -> dict[str, int]:
        """Our processes that run no loops."""
        found = {} if self.works else {"the master": os.getpid()}
        if self._emulators.pid is not None:
            found["the emulator"] = self._emulators.pid
        return found

    def _coordinate(self, coordinator: Coordinator) -> None:
        theirs = coordinator.options.base_url
        watching = None if theirs is None else gevent.spawn(self._watch_target, Endpoint.parse(theirs))
        coordinator.run()
        if watching is not None:
            watching.kill()
        if coordinator.error is not None:
            self._fail(coordinator.error)
        elif coordinator.ended_early and coordinator.options.run_directory is None:
            self.environment.process_exit_code = 1
        if not self._concluding:
            gevent.spawn(self._stop_locust)

    def _watch_target(self, target: Endpoint) -> None:
        """See whether one that is not ours can be connected to, while loops fail."""
        if not target.is_loopback and getproxies():
            return  # requests may go where we cannot
        silence = Silence()
        while self._target_gone is None:
            gevent.sleep(PULSE_SECONDS)
            pulse = self._team.pulse()
            if not silence.doubts(pulse.loops, pulse.failed):
                continue
            refusal = None
            try:
                gevent.socket.create_connection(target.address, CONNECT_SECONDS).close()
            except OSError as error:
                if error.errno in OURS:
                    continue
                refusal = error.strerror or str(error)
            if silence.tried(time.monotonic(), refusal is None):
                self._target_gone = (
                    f"the target {target.root} went away in the middle of the run ({refusal}, for "
                    f"{PATIENCE_SECONDS:g} s); what was measured is kept"
                )

    def _fail(self, error: ProfilerError) -> None:
        _log.error("%s", one_line(str(error)))
        self.environment.process_exit_code = error.exit_code

    def _stop_locust(self) -> None:
        if self._headless:
            self.runner.quit()
        else:
            self.runner.stop()

    def _asked(self) -> LoadOptions:
        """What the command line or the web form asks for. Raises `UsageError` when it cannot be."""
        return asked(self.environment.parsed_options, os.environ)

    def _prepare_ahead(self) -> None:
        """Before Locust's run time starts to count: check, start the emulator, warm the clients.

        Waiting for the workers here also spares an unpatched master Locust's own wait, which
        is a `time.sleep` that makes it deaf to them.
        """
        options, parsed = self._asked(), self.environment.parsed_options
        root = self._emulators.root(options)
        options = replace(options, tools_url=self._emulators.tools_root(options))
        if not self.works:
            with gevent.Timeout(parsed.expect_workers_max_wait or None, False):
                while len(self._greeted) < parsed.expect_workers and not self._left:
                    self._miss_workers()
                    gevent.sleep(0.05)
            if self._left:
                sys.exit(1)
            if not self._greeted:
                return  # Locust will say so
        self._team.enlist(options, root)
        self._miss_workers()

    def _miss_workers(self) -> None:
        """Raise `ProfilerError` when one is gone already: Locust would wait a minute for it."""
        gone = self._pipe.children_gone()
        if gone:
            raise ProfilerError(f"{gone} of the worker processes ended before the test began")

    def _on_spawning_complete(self, **_: Any) -> None:
        if self.coordinator is not None:
            self.coordinator.spawned()

    def _conclude(self) -> None:
        """End the test under way: let the loops in flight drain. Interrupted while doing so, cut them off."""
        self._concluding = True
        for last in (False, True):
            try:
                if self.coordinator is not None and self._coordinating is not None:
                    self.coordinator.stop()
                    self._coordinating.join()
                elif self.works and not self.leads:
                    self._crew.end(self._drain_seconds)
                return
            except KeyboardInterrupt:
                if last:
                    return
                if self.coordinator is not None:
                    self.coordinator.cut()
                elif self.works:
                    self._crew.cut()

    def _on_hello(self, environment: Any, msg: Any, **_: Any) -> None:
        self._greeted.add(msg.node_id)

    def _on_answer(self, kind: str) -> Any:
        def listener(environment: Any, msg: Any, **_: Any) -> None:
            self._team.answered(kind, msg.node_id, msg.data)

        return listener

    def _on_records(self, environment: Any, msg: Any, **_: Any) -> None:
        if self.coordinator is not None:
            self.coordinator.ledger.write(msg.data["lines"], msg.data["count"])

    # Working: a worker, or the only process.

    def _on_prepare(self, environment: Any, msg: Any, **_: Any) -> None:
        answer: dict[str, Any] = {"error": None, "exit_code": 0, "loop_seconds": 0.0, "model": ""}
        try:
            options = LoadOptions.from_json(msg.data["options"])
            self._drain_seconds = options.drain_seconds
            number, remote = msg.data["worker"], msg.data["machine"] != machine_id()
            answer["metrics"] = None if remote else self._serve_metrics(options, number)
            self._crew.process = process_name(number)
            self._crew.shift_ns = shift_ns(Anchor.now(), Anchor(**msg.data["anchor"])) if remote else 0
            if msg.data["calibration"] is not None and not remote:
                share = self._crew.calibrate(options, msg.data["calibration"], CALIBRATION_AGENTS)
                answer["calibration"] = {**asdict(share), "agents": CALIBRATION_AGENTS}
            sharing = msg.data["workers"] if options.share_limit else 1
            answer["loop_seconds"] = self._crew.prepare(
                options, msg.data["root"], self._factories(options), sharing
            )
            answer["model"] = self._crew.model
            answer["spent"] = asdict(self._crew.warmed_up)
            answer["first_failure"] = self._crew.first_failure
        except ProfilerError as error:
            answer.update(error=str(error), exit_code=error.exit_code)
        except gevent.Timeout:
            answer.update(
                error=f"{msg.data['root']}: the first loop did not end within {PREPARE_SECONDS:g} s; "
                "try a single one: profiler run --base-url ...",
                exit_code=TargetError.exit_code,
            )
        except asyncio.CancelledError:
            return  # this process is leaving
        except Exception as error:  # the master has to hear of it; here it would only be logged
            if self._left:
                return
            _log.exception("cannot prepare")
            answer.update(error=describe_error(error), exit_code=1)
        self.runner.send_message(parts.READY, answer)

    def _factories(self, options: LoadOptions) -> dict[str, AgentFactory | None]:
        """What makes the agents of each Locust user class; None: the built-in loop."""
        named = None if options.agent is None else load_factory(options.agent)
        return {cls.__name__: named or cls.agent for cls in self.environment.user_classes}

    def _serve_metrics(self, options: LoadOptions, number: int) -> int | None:
        """Serve this process's metrics; returns the port."""
        if not options.metrics:
            return None
        if self._crew.metrics is not None:
            return self._metrics_port
        from profiler.exporters.prometheus import PrometheusSink

        # The run's name; empty, like production's, where the process that leads makes the directory later.
        testid = Path(options.run_directory).name if options.run_directory else ""
        sink = PrometheusSink(labels={"testid": testid} if testid else {})
        if options.metrics_port is None:
            ports = range(METRICS_PORT, METRICS_PORT + PORTS_TRIED)
        else:
            ports = range(options.metrics_port + number, options.metrics_port + number + 1)
        for port in ports:
            try:
                self._metrics_port = sink.serve(port, options.metrics_host)
            except OSError as error:
                if port == ports[-1]:
                    raise UsageError(
                        f"--metrics-port: cannot serve on {options.metrics_host}:{port}: {error.strerror}"
                    ) from error
            else:
                break
        self._crew.metrics = sink
        _log.info("metrics: http://%s:%d/metrics", scrape_host(options.metrics_host), self._metrics_port)
        return self._metrics_port

    def _beat(self) -> None:
        """Tell the one that leads how the trial stands."""
        while True:
            gevent.sleep(PULSE_SECONDS)
            self._pulse()

    def _pulse(self) -> None:
        trial = self._crew.trial
        if trial is not None and not self._left:
            self.runner.send_message(parts.PULSE, {"turn": self._turn, **describe(trial)})

    def _on_begin(self, environment: Any, msg: Any, **_: Any) -> None:
        self._turn = msg.data["turn"]
        self._crew.begin(Trial.from_data(msg.data), lambda: gevent.spawn(self._pulse))

    def _on_grant(self, environment: Any, msg: Any, **_: Any) -> None:
        if msg.data["turn"] == self._turn:
            self._crew.grant(msg.data["loops"])

    def _on_end(self, environment: Any, msg: Any, **_: Any) -> None:
        turn, trial, health = self._turn, self._crew.trial, self._crew.health()
        arrived = 0 if trial is None else trial.arrived
        interrupted = self._crew.end(msg.data["drain_seconds"])
        self.reporter.flush()  # so that the records of a trial are there before its end is
        if not self.leads:
            # Locust's own last report of a worker has half a second, and is lost where that is not enough.
            report: dict[str, Any] = {}
            self.environment.events.report_to_master.fire(client_id=self.runner.client_id, data=report)
            self.runner.send_message("stats", report)
        answer = {
            "turn": turn,
            "interrupted": interrupted,
            "loops": 0 if trial is None else trial.tally.loops,
            "arrived": arrived,
            "late": 0 if trial is None else trial.late,
            "dropped": 0 if trial is None else trial.dropped,
            "begun": 0 if trial is None else trial.begun,
            "spent": asdict(Spent() if trial is None else trial.tally.spent),
            "health": None if health is None else asdict(health),
        }
        self.runner.send_message(parts.DRAINED, answer)

    def _on_cut(self, environment: Any, msg: Any, **_: Any) -> None:
        self._crew.cut()

    def _write(self, lines: bytes, count: int) -> None:
        if self.leads:
            if self.coordinator is not None:
                self.coordinator.ledger.write(lines, count)
        else:
            self.runner.send_message(parts.RECORDS, {"lines": lines, "count": count})

    # Both.

    def _on_test_stopping(self, **_: Any) -> None:
        self._conclude()

    def _on_test_stop(self, **_: Any) -> None:
        if self.works:
            self.reporter.flush()
        if self.coordinator is not None:
            self.coordinator.ledger.close()
            if self.coordinator.options.run_directory is None and not self._headless:
                self.coordinator.ledger.summarise(at_the_end=True)
            self.coordinator = None
            self._team.grants = Grants(Budget())  # the web form's next test has a budget of its own
        if not self._headless:
            # The web form leaves an empty run time as it was; it would end the next test.
            self.environment.parsed_options.run_time = None

    def _on_quitting(self, **_: Any) -> None:
        if self.coordinator is not None and not self._concluding:
            self.coordinator.ledger.note(Incident("interrupted", "stopped by the user"))
        self._conclude()
        if self.works:
            self.reporter.flush()

    def _on_quit(self, **_: Any) -> None:
        if self.works:
            self._crew.close()
        self._emulators.stop()
        if self._last is not None and self._headless:
            self._print_comparison(self._last)
        if self.leads and self.environment.parsed_options.csv_prefix:
            from locust.stats import CSV_STATS_INTERVAL_SEC

            gevent.get_hub().loop.update_now()  # a sleep counts from when the hub last looked at its clock
            gevent.sleep(CSV_STATS_INTERVAL_SEC + 0.3)  # Locust writes its CSV so often, and not at the end
            _end_csv_writer()
        if not self.works and not monkey.is_module_patched("os"):
            # Locust now waits for the workers it forked through gevent, which has reaped them: only its
            # own waitpid knows. Not earlier: with it, an unpatched subprocess never starts.
            os.waitpid = gevent.os.waitpid

    def _print_comparison(self, ledger: Ledger) -> None:
        """The end of a run that nobody else prints: after Locust's own tables."""
        if self.environment.parsed_options.run_directory:
            return
        from profiler.report.terminal import render_comparison

        summary = ledger.summarise(at_the_end=True)
        if summary is not None:
            path = str(ledger.directory.path)
            print(render_comparison(summary, ledger.run, 100, path=path), flush=True)  # noqa: T201

    def _watch_parent(self, pipe: ForkPipe) -> None:
        fd = pipe.child_end()
        if fd is None:
            fd = inherited_fd()
        else:
            # A terminal interrupts a forked worker too, but its master decides; the pipe says when it goes.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if fd is not None:
            when_closed(fd, self._leave)
        if not self.leads:
            when_disconnected(self.runner, self._leave)

    def _leave(self) -> None:
        """Whoever leads us is gone: stop at once."""
        _log.warning("the process that led this one is gone: leaving")  # a consequence, never the cause
        self._left = True
        exit_at_the_latest()
        if not self.leads:
            self.runner.client.socket.linger = 0  # nobody will ever take what is still to be sent
        if self.works:
            self._crew.cut()
        self.runner.quit()


def _end_csv_writer() -> None:
    """Locust closes its CSV files, and its greenlet would write to them once more if leaving takes long."""
    gc.unfreeze()
    for one in gc.get_objects():
        if isinstance(one, gevent.Greenlet) and "stats_writer" in repr(getattr(one, "_run", None)):
            one.kill(block=False)


def _seconds(run_time: Any) -> float | None:
    """Locust's run time: seconds, or None for none."""
    return float(run_time) if run_time else None


def _ledger(options: LoadOptions, users: int) -> Ledger:
    """In the directory that was made for this run, or in a new one."""
    if options.run_directory is not None:
        directory = RunDirectory.open(options.run_directory)
        return Ledger(directory, directory.load())
    run = conditions(options, users)
    return Ledger(RunDirectory.create(options.out, run), run)


# Locust's runners as rosters: who works, and how to reach them.


class LocalRoster:
    """The only process, as its own single worker."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def workers(self) -> list[str]:
        return ["local"]

    def users(self) -> int:
        return int(self._runner.user_count)

    def send(self, kind: str, data: dict[str, Any], worker: str) -> None:
        self._runner.send_message(kind, data)


class MasterRoster:
    """The workers of a Locust master, as far as they have said that they listen to us."""

    def __init__(self, runner: Any, greeted: set[str]) -> None:
        self._runner = runner
        self._greeted = greeted

    def workers(self) -> list[str]:
        clients = self._runner.clients
        alive = [client.id for client in (*clients.ready, *clients.spawning, *clients.running)]
        return sorted((id for id in alive if id in self._greeted), key=self._runner.get_worker_index)

    def users(self) -> int:
        return int(self._runner.user_count)

    def send(self, kind: str, data: dict[str, Any], worker: str) -> None:
        self._runner.send_message(kind, data, worker)


class LeavableNodes(WorkerNodes):  # type: ignore[misc]
    """Locust's table of workers, which one may leave while it is gone through.

    Locust's (2.47) looks each worker up as it gets there. Its master spawns users anew in the middle of
    going through them, when one was lost: where another quits meanwhile, since the test is over, the
    master failed with a `KeyError` and exit code 2.
    """

    @property
    def all(self) -> list[WorkerNode]:
        return list(self.values())


def let_workers_leave(master: Any) -> None:
    """At any moment of a Locust master's; see `LeavableNodes`."""
    master.clients.__class__ = LeavableNodes
