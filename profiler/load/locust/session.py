"""Registers our Locust files with Locust: their options, and a `Session` in each process."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from gevent.lock import Semaphore

from profiler.errors import Interrupted, ProfilerError, Terminated
from profiler.load.identity import own_hello
from profiler.load.lease import BEAT_SECONDS, Lease
from profiler.load.locust.bridge import Bridge
from profiler.load.locust.leader_session import LeaderSession
from profiler.load.locust.processes import (
    ForkPipe,
    exit_at_the_latest,
    inherited_fd,
    receive,
    send,
    when_closed,
    when_disconnected,
)
from profiler.load.locust.quirks import (
    check_as_parsed,
    interrupt_the_main_greenlet,
    leave_signals_to_the_master,
    send_statistics,
    use_native_locks,
)
from profiler.load.locust.request_events import RequestEvents
from profiler.load.messages import (
    Beat,
    Begin,
    Cut,
    Dismiss,
    End,
    Grant,
    Heard,
    MeasureClient,
    Prepare,
    Records,
)
from profiler.load.options import Asked, LoadOptions, asked
from profiler.load.output import Reporter
from profiler.load.worker import Worker
from profiler.process.signals import DRAIN_SECONDS
from profiler.process.streams import prepare_streams
from profiler.redaction import guard_logs
from profiler.redaction.keys import hide_keys
from profiler.report.text import one_line

PULSE_SECONDS = 1.0

REPORT_SECONDS = 0.2
"""How long a finished loop waits at most until Locust's statistics show it."""

REPORTS_PER_MESSAGE = 2
"""Lines go to the leader with every second report: fewer, larger messages."""


class WorkerSession:
    """In a Locust worker, or in the only process (`alone`)."""

    def __init__(self, environment: Any, runner: Any, alone: bool) -> None:
        self._environment = environment
        self._runner = runner
        self._alone = alone
        self._over = False
        self._preparing = Semaphore()
        self._reporter = Reporter(
            RequestEvents(environment), lambda lines, count: send(runner, Records(lines, count))
        )
        self.worker = Worker(
            self._reporter.sink,
            start_thread=_started_bridge,
            new_event=Event,
            factories=lambda: {cls.__name__: cls.agent for cls in environment.user_classes},
            send_pulse=lambda: gevent.spawn(self._pulse),
            lease=None if alone else Lease(),
        )
        receive(runner, Prepare, self._prepare, concurrent=True)
        receive(runner, Begin, self._begin)
        receive(runner, Grant, lambda _, message: self.worker.grant(message))
        receive(runner, End, self._end, concurrent=True)
        receive(runner, Cut, lambda _, message: self.worker.cut())
        receive(runner, MeasureClient, self._measure_client, concurrent=True)
        receive(runner, Heard, lambda _, message: self.worker.heard(message.sent_ns))
        receive(runner, Dismiss, lambda *_: self.give_up("its master took it for lost"), concurrent=True)
        environment.events.test_stop.add_listener(self.flush)
        environment.events.quit.add_listener(lambda **_: self.worker.close())
        gevent.spawn(self._report)
        gevent.spawn(self._pulses)

    def greet(self) -> None:
        """Tell the leader that this process listens, and go on telling it that it is there."""
        send(self._runner, own_hello(self._environment.parsed_locustfiles or ()))
        gevent.spawn(self._beats)

    def give_up(self, why: str, cut_off: bool = False) -> None:
        """Leave for good: others have this worker's agents, or are about to be given them.

        `cut_off`: it could say nothing, which looks as if it had stood still.
        """
        if self.worker.leaving or self._over:
            return
        left = self.worker.give_up()
        if cut_off:
            left = replace(left, seconds=0.0)
        stood = f"this worker stood still for {left.seconds:.0f} s, and " if left.seconds else "this worker: "
        # A consequence of something that the leader reports: never the cause.
        _log.warning("%s%s: leaving; %d loops in flight were cut off", stood, why, left.loops)
        self.flush()
        send(self._runner, left)
        self._environment.process_exit_code = 1
        exit_at_the_latest()
        self._runner.quit()

    def conclude(self) -> None:
        """End the trial under way: let its loops drain."""
        self._over = True
        self.worker.end()

    def cut(self) -> None:
        self.worker.cut()

    def flush(self, **_: Any) -> None:
        """Report and send what has come so far."""
        self._reporter.flush()

    def _prepare(self, _: str, message: Prepare) -> None:
        with self._preparing:
            answer = self.worker.prepare(message)
        if answer is not None:
            send(self._runner, answer)

    def _begin(self, _: str, message: Begin) -> None:
        self._over = False
        self.worker.begin(message)

    def _end(self, _: str, message: End) -> None:
        drained = self.worker.end(message.drain_seconds)
        self.flush()  # so that the leader has the records of a trial before it hears of its end
        if not self._alone:
            send_statistics(self._environment, self._runner)
        send(self._runner, drained)

    def _measure_client(self, _: str, message: MeasureClient) -> None:
        send(self._runner, self.worker.measure_client(message))

    def _report(self) -> None:
        for reports in itertools.count(1):
            gevent.sleep(REPORT_SECONDS)
            self._reporter.report()
            if reports % REPORTS_PER_MESSAGE == 0:
                self._reporter.flush()

    def _pulses(self) -> None:
        while True:
            gevent.sleep(PULSE_SECONDS)
            self._pulse()

    def _beats(self) -> None:
        lease = self.worker.lease
        while lease is not None and not self.worker.leaving:
            send(self._runner, Beat(lease.beat()))
            gevent.sleep(BEAT_SECONDS)

    def _pulse(self) -> None:
        pulse = self.worker.pulse()
        if pulse is not None:
            send(self._runner, pulse)


def _started_bridge() -> Bridge:
    bridge = Bridge()
    bridge.start()
    return bridge


_log = logging.getLogger(__name__)

_installed: set[int] = set()
_defaults: dict[str, Any] = {}
_secrets: dict[str, str] = {}


def give_secrets(secrets: Mapping[str, str]) -> None:
    """Those among the options, as `asked` finds them in an environment: they are in no process's own."""
    _secrets.update(secrets)


def install(events: Any, defaults: Mapping[str, Any] | None = None) -> None:
    """Register everything with Locust's events at the import of a Locust file; again, it does nothing more.

    `defaults` are values of our options that the Locust file names, as Locust's parser has them.
    """
    _defaults.update(defaults or {})
    if id(events) in _installed:
        return
    _installed.add(id(events))
    prepare_streams()
    use_native_locks()  # here and not with the bridge: gevent's locks of logging fail at an early exit too
    pipe = ForkPipe()
    read = False
    on_command_line: Asked | None = None

    def on_parser(parser: Any, **_: Any) -> None:
        nonlocal read
        LoadOptions.add_to_locust(parser)
        parser.set_defaults(**_defaults)
        if not read:  # later parsers are the web form's, for what was on the command line
            read = True
            check_as_parsed(parser, on_parsed)
        else:
            LoadOptions.hide_in_form(parser)

    def on_parsed(parsed: Any) -> None:
        """Refuse bad options as Locust refuses its own."""
        nonlocal on_command_line
        if not parsed.worker:  # a worker's options come from its master
            try:
                on_command_line = asked(parsed, {**os.environ, **_secrets})
            except ProfilerError as error:
                _refuse(error)

    def on_init(environment: Any, runner: Any, **_: Any) -> None:
        try:
            environment.toolcall_session = Session(environment, runner, pipe, on_command_line)
        except ProfilerError as error:
            _refuse(error)
        except KeyboardInterrupt as error:
            sys.exit((error if isinstance(error, Interrupted) else Interrupted()).exit_code)

    events.init_command_line_parser.add_listener(on_parser)
    events.init.add_listener(on_init)


def _refuse(error: ProfilerError) -> None:
    print(f"locust: error: {one_line(hide_keys(str(error)))}", file=sys.stderr)  # noqa: T201 (what argparse would do)
    sys.exit(error.exit_code)


class Session:
    """One process's part in load tests: a leader (Locust's master), a worker, or both when it is alone."""

    def __init__(self, environment: Any, runner: Any, pipe: ForkPipe, on_command_line: Asked | None) -> None:
        """Raises `ProfilerError` when a headless run cannot do what its command line asks for."""
        from locust.runners import LocalRunner, MasterRunner, WorkerRunner

        pipe.all_forked()
        for name in ("httpx", "httpx2", "openai", "anthropic"):
            # At Locust's level INFO they would write a line for every request.
            logging.getLogger(name).setLevel(logging.WARNING)
        guard_logs()
        self._runner = runner
        self._told: KeyboardInterrupt | None = None  # the last interrupt or signal
        alone = isinstance(runner, LocalRunner)
        self._worker: WorkerSession | None = None
        self._leader: LeaderSession | None = None
        # Locust calls listeners in the order they were added: a worker writes its last records before the
        # leader closes their file.
        if not isinstance(runner, MasterRunner):
            self._worker = WorkerSession(environment, runner, alone)
        if not isinstance(runner, WorkerRunner):
            self._leader = LeaderSession(environment, runner, pipe, alone, on_command_line)
        environment.events.test_stopping.add_listener(lambda **_: self._conclude())
        environment.events.quitting.add_listener(self._on_quitting)
        self._watch_parent(pipe)
        if self._leader is not None and environment.parsed_options.headless:
            self._leader.prepare()
        if self._worker is not None and not alone:
            self._worker.greet()

    @classmethod
    def of(cls, environment: Any) -> Session:
        """The session of this process."""
        session: Session = environment.toolcall_session
        return session

    @property
    def worker(self) -> Worker:
        """The agents of this process; a master has none."""
        assert self._worker is not None
        return self._worker.worker

    @property
    def run_directory(self) -> Path | None:
        """Where the records of the test under way go, if this process leads it."""
        return None if self._leader is None else self._leader.run_directory

    def _on_quitting(self, **_: Any) -> None:
        if self._leader is not None:
            self._leader.note_interruption(self._told)
        self._conclude()
        if self._worker is not None:
            self._worker.flush()

    def _conclude(self) -> None:
        """Let the loops in flight drain. Cut them off on an interrupt meanwhile, or when told by SIGTERM."""
        part = self._leader or self._worker
        assert part is not None
        cut = gevent.spawn_later(DRAIN_SECONDS, part.cut) if isinstance(self._told, Terminated) else None
        try:
            part.conclude()
        except KeyboardInterrupt as error:
            part.cut()
            if self._leader is not None and isinstance(error, Terminated):
                self._leader.note_interruption(error)
            with contextlib.suppress(KeyboardInterrupt):
                part.conclude()
        finally:
            if cut is not None:
                cut.kill()

    def _watch_parent(self, pipe: ForkPipe) -> None:
        fd = pipe.child_end()
        if fd is None:
            interrupt_the_main_greenlet(self._hear)
            fd = inherited_fd()
        else:
            leave_signals_to_the_master()
        if fd is not None:
            when_closed(fd, self._leave)
        if self._worker is not None and self._leader is None:
            when_disconnected(self._runner, self._disconnected)

    def _disconnected(self) -> None:
        """The connection to the master broke: what was under way on it is lost, the end of a trial too."""
        assert self._worker is not None
        self._worker.give_up("its connection to the master broke", cut_off=True)

    def _hear(self, told: KeyboardInterrupt) -> None:
        self._told = told

    def _leave(self) -> None:
        """Stop at once: the process that leads this one is gone."""
        if self._worker is not None and self._worker.worker.leaving:
            return
        _log.warning("the process that led this one is gone: leaving")  # a consequence, never the cause
        exit_at_the_latest()
        if self._leader is not None:
            self._leader.leave()
        if self._worker is not None:
            self._worker.worker.leaving = True
            self._worker.cut()
        self._runner.quit()
