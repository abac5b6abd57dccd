"""SIGTERM and SIGHUP while a command runs; nothing is installed before, after, or in an application."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from profiler import cli
from profiler.errors import Interrupted, Terminated
from profiler.instrument import Profiler
from profiler.process.signals import ENDING, signals


def told(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a function as a command of this name; its exit code."""

    def run(function: Callable[[], int], name: str = "compare") -> int:
        arguments = argparse.Namespace(
            debug=False, parser=SimpleNamespace(prog=f"profiler {name}"), command=lambda _: function()
        )
        monkeypatch.setattr(cli, "parse", lambda _: arguments)
        return cli.main([])

    return run


@pytest.mark.parametrize(
    ("number", "name", "code", "said"),
    [
        (signal.SIGTERM, "compare", 143, "told to end by SIGTERM before anything was measured"),
        (signal.SIGHUP, "run", 143, "told to end by SIGHUP before anything was measured"),
        (signal.SIGTERM, "report", 143, "told to end by SIGTERM"),
        (signal.SIGINT, "tune", 130, "interrupted before anything was measured"),
        (signal.SIGINT, "report", 130, "interrupted"),
    ],
)
def test_a_command_that_is_ended_says_so_in_one_line(command, number, name, code, said, capsys):
    def works() -> int:
        told(number)
        raise AssertionError("it went on")

    assert command(works, name) == code
    assert capsys.readouterr().err == f"profiler: {said}\n"
    assert [signal.getsignal(one) for one in ENDING] == [signal.SIG_DFL] * len(ENDING)


def test_what_an_ended_command_says_of_itself_comes_first(command, capsys):
    def works() -> int:
        ended = Interrupted()
        ended.outcome = "before anything was measured; see runs/1"
        raise ended

    assert command(works) == 130
    assert capsys.readouterr().err == "profiler: interrupted before anything was measured; see runs/1\n"


@pytest.mark.parametrize(("code", "ends"), [(0, 143), (1, 143), (130, 143), (3, 143), (2, 2), (70, 70)])
def test_a_report_is_finished_first_and_the_exit_code_tells(command, code, ends, capsys):
    def works() -> int:
        signals.finish_first("runs/1")
        told(signal.SIGTERM)
        return code

    assert command(works) == ends
    assert capsys.readouterr().err == ""
    assert signals._timer is not None
    assert signals._timer.finished.is_set()  # it will not end whatever comes after the command


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_report_too(command, second, capsys):
    def works() -> int:
        signals.finish_first("runs/1")
        told(signal.SIGTERM)
        told(second)
        raise AssertionError("it went on")

    assert command(works) == 143
    cause = "interrupted" if second == signal.SIGINT else "told to end by SIGTERM"
    said = f"profiler: {cause} before its report was made: profiler report runs/1\n"
    assert capsys.readouterr().err == said


def test_a_signal_that_is_ignored_stays_so(command, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert command(lambda: told(signal.SIGHUP) or 0) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handled_inside_a_block_and_raised_after_it(command):
    heard: list[Terminated] = []

    def works() -> int:
        with signals.handled(heard.append):
            told(signal.SIGTERM)
        told(signal.SIGHUP)
        raise AssertionError("it went on")

    assert command(works) == 143
    assert [one.signal for one in heard] == [signal.SIGTERM]


def test_a_profiler_in_an_application_installs_no_handler():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with Profiler(sinks=[]).loop("application"):
        pass
    assert [signal.getsignal(number) for number in numbers] == before
