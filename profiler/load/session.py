"""What our Locust files register with Locust: options, and a `Session` in each process.

A session holds what its process needs for its part: on a worker a crew, on a master the
coordinator of the test under way, on a single process both.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any

import gevent
import gevent.os
from gevent import monkey

from profiler.errors import ProfilerError, TargetError, UsageError
from profiler.load import team as parts
from profiler.load.conditions import conditions
from profiler.load.coordinator import Coordinator, Ramp
from profiler.load.crew import Crew, Trial, process_name
from profiler.load.options import LoadOptions, add_options
from profiler.load.parent import (
    INTERRUPTED,
    ForkPipe,
    exit_at_the_latest,
    inherited_fd,
    when_closed,
    when_disconnected,
)
from profiler.load.reporter import Reporter
from profiler.load.team import Team
from profiler.rundir import Incident, Run, RunDirectory
from profiler.scenario import load_scenario

_log = logging.getLogger(__name__)


def install(events: Any) -> None:
    """Register everything with Locust's events; called once, at the import of a Locust file."""
    pipe = ForkPipe()
    events.init_command_line_parser.add_listener(add_options)

    def on_init(environment: Any, runner: Any, **_: Any) -> None:
        try:
            environment.toolcall_session = Session(environment, runner, pipe)
        except ProfilerError as error:
            _refuse(error)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)

    events.init.add_listener(on_init)


def _refuse(error: ProfilerError) -> None:
    print(f"locust: error: {error}", file=sys.stderr)  # noqa: T201 (what argparse would do)
    sys.exit(error.exit_code)


class Session:
    """One process's part in load tests, from Locust's start to its exit."""

    def __init__(self, environment: Any, runner: Any, pipe: ForkPipe) -> None:
        """Raises `ProfilerError` when a headless run was asked for what cannot be."""
        from locust.runners import LocalRunner, MasterRunner, WorkerRunner

        self.environment = environment
        self.runner = runner
        self.leads = not isinstance(runner, WorkerRunner)
        self.works = not isinstance(runner, MasterRunner)
        self.coordinator: Coordinator | None = None
        self._coordinating: Any = None
        self._concluding = False
        self._left = False
        self._preparing = False
        self._emulator: tuple[tuple[str, int], AbstractContextManager[Any], str] | None = None
        self._turn = 0
        self._drain_seconds = 0.0
        self._greeted: set[str] = set()
        local = isinstance(runner, LocalRunner)
        self._team = Team(LocalRoster(runner) if local else MasterRoster(runner, self._greeted))
        for name in ("httpx", "httpx2", "openai", "anthropic"):
            # At Locust's level INFO they would write a line for every request.
            logging.getLogger(name).setLevel(logging.WARNING)
        if self.leads:
            runner.register_message(parts.HELLO, self._on_hello)
            runner.register_message(parts.READY, self._on_answer(parts.READY))
            runner.register_message(parts.DRAINED, self._on_answer(parts.DRAINED))
            runner.register_message(parts.RECORDS, self._on_records)
        if self.works:
            self.reporter = Reporter(environment.events.request.fire, self._write)
            self._crew = Crew(self.reporter.sink)
            runner.register_message(parts.PREPARE, self._on_prepare, concurrent=True)
            runner.register_message(parts.BEGIN, self._on_begin)
            runner.register_message(parts.END, self._on_end, concurrent=True)
            runner.register_message(parts.CUT, self._on_cut)
            gevent.spawn(self.reporter.run)
        events = environment.events
        events.test_start.add_listener(self._on_test_start)
        events.spawning_complete.add_listener(self._on_spawning_complete)
        events.test_stopping.add_listener(self._on_test_stopping)
        events.test_stop.add_listener(self._on_test_stop)
        events.quitting.add_listener(self._on_quitting)
        events.quit.add_listener(self._on_quit)
        self._watch_parent(pipe)
        if self.leads and self._headless:
            self._prepare_ahead()
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
        try:
            options = self._asked()
            root = self._root(options)
            ramp = Ramp(int(parsed.num_users or 1), float(parsed.spawn_rate or 1), _seconds(parsed.run_time))
            directory, run = _run_directory(options, ramp.users)
            self.coordinator = Coordinator(options, root, ramp, self._team, directory, run)
        except ProfilerError as error:
            self._fail(error)
            gevent.spawn(self._stop_locust)
            return
        self._concluding = False
        self._coordinating = gevent.spawn(self._coordinate, self.coordinator)

    def _coordinate(self, coordinator: Coordinator) -> None:
        coordinator.run()
        if coordinator.error is not None:
            self._fail(coordinator.error)
        if not self._concluding:
            gevent.spawn(self._stop_locust)

    def _fail(self, error: ProfilerError) -> None:
        _log.error("%s", error)
        self.environment.process_exit_code = error.exit_code

    def _stop_locust(self) -> None:
        if self._headless:
            self.runner.quit()
        else:
            self.runner.stop()

    def _asked(self) -> LoadOptions:
        """What the command line or the web form asks for. Raises `UsageError` when it cannot be."""
        options = LoadOptions.from_namespace(self.environment.parsed_options)
        options.check_targets(os.environ)
        load_scenario(options.scenario)
        return options

    def _root(self, options: LoadOptions) -> str:
        """The target's root URL; starts the emulator when none is given and none of its kind runs."""
        if options.base_url is not None:
            return options.base_url
        wanted = (options.scenario, options.seed)
        if self._emulator is None or self._emulator[0] != wanted:
            from profiler.emulator.process import start_emulator

            self._stop_emulator()
            context = start_emulator(options.scenario, seed=options.seed)
            self._emulator = (wanted, context, context.__enter__().url)
        return self._emulator[2]

    def _stop_emulator(self) -> None:
        emulator, self._emulator = self._emulator, None
        if emulator is not None:
            emulator[1].__exit__(None, None, None)

    def _prepare_ahead(self) -> None:
        """Before Locust's run time starts to count: check, start the emulator, warm the clients.

        Waiting for the workers here also spares an unpatched master Locust's own wait, which
        is a `time.sleep` that makes it deaf to them.
        """
        options, parsed = self._asked(), self.environment.parsed_options
        root = self._root(options)
        if not self.works:
            with gevent.Timeout(parsed.expect_workers_max_wait or None, False):
                while len(self._greeted) < parsed.expect_workers and not self._left:
                    gevent.sleep(0.05)
            if self._left:
                sys.exit(1)
            if not self._greeted:
                return  # Locust will say so
        self._team.enlist(options, root)

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
            self.coordinator.write(msg.data["lines"], msg.data["count"])

    # Working: a worker, or the only process.

    def _on_prepare(self, environment: Any, msg: Any, **_: Any) -> None:
        answer: dict[str, Any] = {"error": None, "exit_code": 0, "loop_seconds": 0.0, "model": ""}
        try:
            options = LoadOptions.from_data(msg.data["options"])
            self._drain_seconds = options.drain_seconds
            number = msg.data["worker"]
            self._serve_metrics(options, number)
            self._crew.process = process_name(number)
            self._preparing = True
            answer["loop_seconds"] = self._crew.prepare(options, msg.data["root"])
            answer["model"] = self._crew.model
        except ProfilerError as error:
            answer.update(error=str(error), exit_code=error.exit_code)
        except gevent.Timeout:
            answer.update(error="the first loop took too long", exit_code=TargetError.exit_code)
        except asyncio.CancelledError:
            return  # this process is leaving
        except Exception as error:  # the master has to hear of it; here it would only be logged
            if self._left:
                return
            _log.exception("cannot prepare")
            answer.update(error=f"{type(error).__name__}: {error}", exit_code=1)
        finally:
            self._preparing = False
        self.runner.send_message(parts.READY, answer)

    def _serve_metrics(self, options: LoadOptions, number: int) -> None:
        if options.metrics_port is None or self._crew.metrics is not None:
            return
        from profiler.exporters.prometheus import PrometheusSink

        # The run's name; empty, like production's, where the process that leads makes the directory later.
        testid = Path(options.run_directory).name if options.run_directory else ""
        sink = PrometheusSink(labels={"testid": testid} if testid else {})
        port = options.metrics_port + number
        try:
            sink.serve(port)
        except OSError as error:
            raise UsageError(f"--metrics-port: cannot serve on port {port}: {error.strerror}") from error
        self._crew.metrics = sink

    def _on_begin(self, environment: Any, msg: Any, **_: Any) -> None:
        self._turn = msg.data["turn"]
        self._crew.begin(Trial.from_data(msg.data))

    def _on_end(self, environment: Any, msg: Any, **_: Any) -> None:
        turn = self._turn
        interrupted = self._crew.end(msg.data["drain_seconds"])
        self.reporter.flush()  # so that the records of a trial are there before its end is
        self.runner.send_message(parts.DRAINED, {"turn": turn, "interrupted": interrupted})

    def _on_cut(self, environment: Any, msg: Any, **_: Any) -> None:
        self._crew.cut()

    def _write(self, lines: bytes, count: int) -> None:
        if self.leads:
            if self.coordinator is not None:
                self.coordinator.write(lines, count)
        else:
            self.runner.send_message(parts.RECORDS, {"lines": lines, "count": count})

    # Both.

    def _on_test_stopping(self, **_: Any) -> None:
        self._conclude()

    def _on_test_stop(self, **_: Any) -> None:
        if self.works:
            self.reporter.flush()
        if self.coordinator is not None:
            self.coordinator.finish()
            self.coordinator = None
        if not self._headless:
            # The web form leaves an empty run time as it was; it would end the next test.
            self.environment.parsed_options.run_time = None

    def _on_quitting(self, **_: Any) -> None:
        if self.coordinator is not None and not self._concluding:
            self.coordinator.note(Incident("interrupted", "stopped by the user"))
        self._conclude()
        if self.works:
            self.reporter.flush()

    def _on_quit(self, **_: Any) -> None:
        if self.leads and self.environment.parsed_options.csv_prefix:
            from locust.stats import CSV_STATS_INTERVAL_SEC

            gevent.sleep(CSV_STATS_INTERVAL_SEC + 0.2)  # Locust writes its CSV so often, and not at the end
        if self.works:
            self._crew.close()
        self._stop_emulator()
        if not self.works and not monkey.is_module_patched("os"):
            # Locust now waits for the workers it forked through gevent, which has reaped them: only its
            # own waitpid knows. Not earlier: with it, an unpatched subprocess never starts.
            os.waitpid = gevent.os.waitpid

    def _watch_parent(self, pipe: ForkPipe) -> None:
        fd = pipe.child_end()
        if fd is None:
            fd = inherited_fd()
        else:
            signal.signal(signal.SIGINT, self._on_interrupt)
        if fd is not None:
            when_closed(fd, self._leave)
        if not self.leads:
            when_disconnected(self.runner, self._leave)

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        """In a forked worker: a terminal interrupts it too, but while it works its master decides."""
        if not self._crew.in_trial and not self._preparing:
            signal.default_int_handler(signum, frame)

    def _leave(self) -> None:
        """Whoever leads us is gone: stop at once."""
        _log.error("the process that led this one is gone: leaving")
        self._left = True
        exit_at_the_latest()
        if not self.leads:
            self.runner.client.socket.linger = 0  # nobody will ever take what is still to be sent
        if self.works:
            self._crew.cut()
        self.runner.quit()


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


def _seconds(run_time: Any) -> float | None:
    """Locust's run time: seconds, or None for none."""
    return float(run_time) if run_time else None


def _run_directory(options: LoadOptions, users: int) -> tuple[RunDirectory, Run]:
    """The directory to write to: the one that was made for this run, or a new one."""
    if options.run_directory is not None:
        directory = RunDirectory.open(options.run_directory)
        return directory, directory.load()
    run = conditions(options, users)
    return RunDirectory.create(options.out, run), run
