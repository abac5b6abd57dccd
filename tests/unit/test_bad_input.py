"""Bad input of every kind: a line that names the place, a documented exit code, never a traceback.

The options come from the parsers themselves, so that a new one is tried without being listed here.
Whatever would start a server or a load is replaced by `Started`: the input was taken.
"""

from __future__ import annotations

import argparse
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profiler import cli
from profiler.cli import DEFECT

MANY = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)


class Started(BaseException):
    """What the command would have started now."""


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from profiler.dashboards import files
    from profiler.emulator import process, server
    from profiler.load import experiment

    def started(*_: Any, **__: Any) -> Any:
        raise Started

    monkeypatch.setattr(cli, "_parser", lambda: PARSER)  # to build it takes longer than all the rest
    monkeypatch.setattr(process, "start_emulator", started)
    monkeypatch.setattr(server, "_run", lambda coroutine: (coroutine.close(), started()))
    monkeypatch.setattr(experiment, "_locust", started)
    monkeypatch.setattr("webbrowser.open", lambda _: True)
    monkeypatch.setenv("PROFILER_TOOLS_URL", "")
    monkeypatch.chdir(tmp_path)
    assert files()  # built once, for the commands that write them


def run(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int | None, str, str]:
    """(exit code, standard output, standard error); no exit code when the input was taken."""
    capsys.readouterr()
    code: Any
    try:
        code = cli.main(argv)
    except Started:
        code = None
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr()
    return code, said.out, said.err


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command refuses `argv`."""
    code, out, err = run(argv, capsys)
    assert (code, out) == (2, ""), (argv, err)
    return one_line(err)


def one_line(err: str) -> str:
    assert err.endswith("\n"), err
    assert len(err.splitlines()) == 1, err
    assert err.startswith("profiler"), err
    assert all(c.isprintable() or unicodedata.category(c) == "Zs" for c in err[:-1]), err
    assert len(err) < 900
    return err


PARSER = cli._parser()
(_COMMANDS,) = (a for a in PARSER._actions if isinstance(a, argparse._SubParsersAction))
OPTIONS = {
    command: found
    for command, parser in _COMMANDS.choices.items()
    if (
        found := [a for a in parser._actions if not isinstance(a, argparse._HelpAction) and a.dest != "debug"]
    )
}
"""Every command that takes anything, and what it takes."""


ODD = [
    *("", " ", "0", "-1", "-0", "1e999", "inf", "-inf", "nan", "NaN", "1e3", "0x10", "1_000", "٣", "²", "½"),
    *("9" * 400, "9" * 5000, str(2**31), str(2**63), str(2**64), "0.00001s", "99999999h", "-5s", "5 s", "s"),
    *(
        "a\nb",
        "a\r\nb",
        "\x1b[31mred\x1b[0m",
        "\u202eevil",
        "\u2028",
        "x" * 5000,
        "💥",
        "%s",
        "{}",
        "{0}",
        "$HOME",
    ),
    *(
        "http://",
        "http://[",
        "http://[::1",
        "http://a:b",
        "http://a:99999",
        "https://u:p@h",
        "//x",
        "http://a b",
    ),
    *("sequental", "gathred", "semaphore", "semaphore:", "semaphore:0", "semaphore:-1", "semaphore:1e3"),
    *(
        "semaphore:x=1,x=2",
        "rate:0/s",
        "rate:1/s,burst=0",
        "rate:nan/s",
        "rate:1/fortnight",
        "eager",
        "eager+eager",
    ),
    *(
        "adaptive:0",
        "gathered+gathered",
        "gathered,gathered",
        "+",
        "++",
        ",",
        ",,",
        "1,2,x",
        "10,10",
        "0,1",
        "-1,1",
    ),
    *("p95", "p95<", "p95<2", "p95<2x", "p95<0s", "p95<2s,p95<3s", "errors<200%", "p95 > 5%", "p95 < +5%"),
    *("errors>20", "errors>100%", "errors>-1%", "0/s", "constant:0", "constant:", "5/h", "-5/s", "inf/s"),
    *(
        "openai:rpm=0",
        "rpm=",
        "openai:xpm=1",
        "module",
        "module:",
        ":factory",
        "no.such.module:f",
        "os:nothing",
    ),
    *("nowhere.toml", "./nowhere", "../nowhere", "nowhere/nowhere", "citis", "/dev/null/x", "."),
]
"""What people type by mistake, and what nobody types."""

words = (
    st.sampled_from(ODD)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
    | st.integers().map(str)
    | st.floats().map(str)
)


def unsafe(value: str) -> bool:
    """Whether a path would leave the test's directory, or a module be looked for that exists."""
    return value != "/dev/null/x" and (value.startswith(("/", "~")) or ".." in value)


@pytest.mark.parametrize("command", OPTIONS)
@MANY
@given(data=st.data())
def test_any_options_are_taken_or_refused_in_one_line(
    command: str, data: st.DataObject, nothing_starts: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to three options with whatever value; what must be there is."""
    argv = [command]
    for action in data.draw(st.lists(st.sampled_from(OPTIONS[command]), min_size=1, max_size=3, unique=True)):
        argv += written(action, data)
    code, _, err = run(argv, capsys)
    assert code in (None, 0, 1, 2, 3), (argv, err)
    if code == 2:
        one_line(err)


def written(action: argparse.Action, data: st.DataObject) -> list[str]:
    if action.nargs == 0:
        return [action.option_strings[-1]]
    value = data.draw(words)
    if action.type is Path or action.dest in ("out", "run", "runs", "directory", "check"):
        value = value if not unsafe(value) else "there"
    return [f"{action.option_strings[-1]}={value}"] if action.option_strings else [value]


@pytest.mark.parametrize("command", [c for c in OPTIONS if c != "init"])
@MANY
@given(data=st.data())
def test_the_line_names_the_option(
    command: str, data: st.DataObject, nothing_starts: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """One option with whatever value, beside what has to be there."""
    action = data.draw(st.sampled_from([action for action in OPTIONS[command] if action.option_strings]))
    there = {"report": ["nowhere"], "trace": ["nowhere"], "dashboards": ["--out=there"]}.get(command, [])
    argv = [command, *written(action, data), *(there if action.dest != "out" else [])]
    code, _, err = run(argv, capsys)
    if (
        code == 2 and "nowhere: not a run directory" not in err and action.dest != "out"
    ):  # a path: named itself
        assert any(name in err for name in (*action.option_strings, action.dest)), (argv, err)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["comapre"], "invalid choice: 'comapre' (did you mean 'compare'?)"),
        (["compare", "--usres", "3"], "unknown argument '--usres' (did you mean '--users'?)"),
        (
            ["run", "--provider", "antropic"],
            "--provider: invalid choice: 'antropic' (did you mean 'anthropic'?)",
        ),
        (["run", "--strategy", "sequental"], "unknown strategy 'sequental' (did you mean 'sequential'?)"),
        (["run", "--strategy", "eager+semafore:3"], "(did you mean 'semaphore'?)"),
        (["compare", "--scenario", "citis"], "unknown scenario 'citis' (did you mean 'cities'?)"),
        (
            ["compare", "--strategy", "gathered", "--strategy", "gathered"],
            "--strategy gathered: each strategy can",
        ),
        (["compare", "--users", "many"], "--users: 'many' is not a whole number"),
        (["compare", "--duration", "9" * 400], "--duration: must be at most a year"),
        (["compare", "--seed", str(2**63)], "--seed: must be at most 9223372036854775807"),
        (["compare", "--slo", "p95"], "--slo p95: objective 'p95': expected something like p95<2s"),
        (
            ["compare", "--tools-url", "http://[", "--base-url", "http://127.0.0.1"],
            "--tools-url: not a base URL",
        ),
        (["compare", "--base-url", "http://127.0.0.1:99999"], "--base-url: not a base URL"),
        (["emulate", "--port", "70000"], "--port: must be at most 65535, not 70000"),
        (["compare", "--out", ""], "--out: must not be empty"),
        (["compare", "--model", "\udcff"], "argument '\\udcff': not text"),
    ],
)
def test_mistakes_are_met_with_a_hint(
    argv: list[str], said: str, nothing_starts: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(argv, capsys)


@pytest.mark.parametrize("argv", [["--debug", "report", "nowhere"], ["report", "--debug", "nowhere"]])
def test_debug_shows_the_traceback_before_the_line(
    argv: list[str], nothing_starts: None, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(argv, capsys)
    assert (code, out) == (2, "")
    assert err.startswith("Traceback (most recent call last):\n")
    assert "RecordError" in err
    assert err.splitlines()[-1] == refused(["report", "nowhere"], capsys).rstrip()


def test_a_defect_is_one_line_too_with_a_code_of_its_own(
    nothing_starts: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("profiler.scenario.shipped_scenarios", lambda: 1 / 0)
    code, out, err = run(["scenarios"], capsys)
    assert (code, out) == (DEFECT, "")
    assert "a defect of the profiler: ZeroDivisionError" in one_line(err)
    assert "Traceback" in run(["--debug", "scenarios"], capsys)[2]
