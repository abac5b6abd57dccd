"""A worker in a Locust process: its greenlets, and its messages on Locust's connection."""

from __future__ import annotations

import itertools
from typing import Any

import gevent
from gevent.event import Event

from profiler.load.locust.bridge import Bridge
from profiler.load.locust.processes import receive, send
from profiler.load.locust.quirks import send_statistics
from profiler.load.messages import Begin, Cut, End, Grant, Hello, Prepare, Records
from profiler.load.output import Reporter
from profiler.load.worker import Worker

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
        self._reporter = Reporter(
            environment.events.request.fire, lambda lines, count: send(runner, Records(lines, count))
        )
        self.worker = Worker(
            self._reporter.sink,
            start_thread=_started_bridge,
            new_event=Event,
            factories=lambda: {cls.__name__: cls.agent for cls in environment.user_classes},
            send_pulse=lambda: gevent.spawn(self._pulse),
        )
        receive(runner, Prepare, self._prepare, concurrent=True)
        receive(runner, Begin, lambda _, message: self.worker.begin(message))
        receive(runner, Grant, lambda _, message: self.worker.grant(message))
        receive(runner, End, self._end, concurrent=True)
        receive(runner, Cut, lambda _, message: self.worker.cut())
        environment.events.test_stop.add_listener(self.flush)
        environment.events.quit.add_listener(lambda **_: self.worker.close())
        gevent.spawn(self._report)
        gevent.spawn(self._beat)

    def greet(self) -> None:
        """Tell the leader that this process listens."""
        send(self._runner, Hello())

    def conclude(self) -> None:
        """End the trial under way: let its loops drain."""
        self.worker.end()

    def cut(self) -> None:
        self.worker.cut()

    def flush(self, **_: Any) -> None:
        """Report and send what has come so far."""
        self._reporter.flush()

    def _prepare(self, _: str, message: Prepare) -> None:
        answer = self.worker.prepare(message)
        if answer is not None:
            send(self._runner, answer)

    def _end(self, _: str, message: End) -> None:
        drained = self.worker.end(message.drain_seconds)
        self.flush()  # so that the leader has the records of a trial before it hears of its end
        if not self._alone:
            send_statistics(self._environment, self._runner)
        send(self._runner, drained)

    def _report(self) -> None:
        for reports in itertools.count(1):
            gevent.sleep(REPORT_SECONDS)
            self._reporter.report()
            if reports % REPORTS_PER_MESSAGE == 0:
                self._reporter.flush()

    def _beat(self) -> None:
        while True:
            gevent.sleep(PULSE_SECONDS)
            self._pulse()

    def _pulse(self) -> None:
        pulse = self.worker.pulse()
        if pulse is not None:
            send(self._runner, pulse)


def _started_bridge() -> Bridge:
    bridge = Bridge()
    bridge.start()
    return bridge
