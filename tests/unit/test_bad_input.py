"""Bad input of every kind: a line that names the place, a documented exit code, never a traceback.

The options come from the parsers themselves, so that a new one is tried without being listed here.
Whatever would start a server or a load is replaced by `Started`: the input was taken.
FUZZ_EXAMPLES says how many of each are tried; the search is without end.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import math
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from profiler import cli, dashboards, scenarios
from profiler.cli import DEFECT, Parser
from profiler.emulator.draws import Place
from profiler.emulator.tape import Tape
from profiler.errors import ScenarioError, UsageError
from profiler.load.messages import Prepare, pack, unpack
from profiler.load.options import LoadOptions
from profiler.records import encode
from profiler.rundir import Anchor, Progress, RunDirectory, encode_progress
from profiler.scenarios import load_scenario
from profiler.statistics.summary import summarise_directory
from tests.unit.statistics_data import MS, loop, trial
from tests.unit.statistics_data import run as make_run

MANY = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)


FILES_BUILT = functools.cache(dashboards.files)


class Started(BaseException):
    """What the command would have started now."""


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from profiler.collector import server as collector
    from profiler.emulator import process, server
    from profiler.load import direct, experiment, locust_process
    from profiler.proxy import service

    def started(*_: Any, **__: Any) -> Any:
        raise Started

    gc.collect()  # what another test left open complains now, not into the one line
    monkeypatch.setattr(cli, "_parser", lambda: PARSER)  # to build it takes longer than all the rest
    monkeypatch.setattr(process, "start_emulator", started)
    monkeypatch.setattr(server, "_run", lambda coroutine: (coroutine.close(), started()))
    monkeypatch.setattr(collector, "run", started)
    monkeypatch.setattr(service, "run", lambda coroutine: (coroutine.close(), started()))
    waiting = SimpleNamespace(begin=started, started=0.0)  # a Locust process that is told nothing
    for module in (locust_process, experiment):
        monkeypatch.setattr(module, "started_locust", lambda *_, **__: contextlib.nullcontext(waiting))
    monkeypatch.setattr(direct, "connector", started)
    monkeypatch.setattr("webbrowser.open", lambda _: True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dashboards, "files", FILES_BUILT)


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
    """The error, after what `compare` announced by then."""
    if err.startswith("plan: "):
        err = err.partition("\n")[2]
    assert err.endswith("\n"), err
    assert len(err.splitlines()) == 1, err
    assert err.startswith("profiler"), err
    assert all(c.isprintable() or unicodedata.category(c) == "Zs" for c in err[:-1]), err
    assert len(err) < 900
    return err


PARSER = cli._parser()
(_COMMANDS,) = (a for a in PARSER._actions if isinstance(a, argparse._SubParsersAction))
(_MCP,) = (a for a in _COMMANDS.choices["mcp"]._actions if isinstance(a, argparse._SubParsersAction))
OPTIONS = {
    command: found
    for command, parser in {
        **{name: parser for name, parser in _COMMANDS.choices.items() if name != "mcp"},
        **{f"mcp {name}": parser for name, parser in _MCP.choices.items()},
    }.items()
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
def test_options_of_any_kind_are_taken_or_refused_in_one_line(
    command: str, data: st.DataObject, nothing_starts: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to three options with whatever value; what must be there is."""
    argv = command.split()
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
    if action.type is Path or action.dest in ("out", "run", "runs", "directory", "check", "log", "journal"):
        value = value if not unsafe(value) else "there"
    return [f"{action.option_strings[-1]}={value}"] if action.option_strings else [value]


@pytest.mark.parametrize("command", [c for c in OPTIONS if c != "init"])
@MANY
@given(data=st.data())
def test_error_line_names_the_option(
    command: str, data: st.DataObject, nothing_starts: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """One option with whatever value, beside what has to be there."""
    action = data.draw(st.sampled_from([action for action in OPTIONS[command] if action.option_strings]))
    there = {
        "report": ["nowhere"],
        "trace": ["nowhere"],
        "dashboards": ["--out=there"],
        "scenario": ["--agent=nowhere:agent"],
        "import": ["nowhere"],
        "predict": ["nowhere"],
        "proxy": ["--upstream=http://127.0.0.1:1"],
        "mcp load": ["http://127.0.0.1:1/mcp"],
        "mcp tune": ["http://127.0.0.1:1/mcp"],
    }.get(command, [])
    argv = [*command.split(), *written(action, data), *(there if action.dest not in ("out", "agent") else [])]
    code, _, err = run(argv, capsys)
    if code == 2 and "nowhere" not in err and action.dest not in ("out", "output"):  # paths: named themselves
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
        (["tune", "--blocks", "3"], "unknown argument '--blocks'"),  # the search decides these by itself
        (["tune", "--duration", "30s"], "unknown argument '--duration'"),
        (["compare", "--users", "many"], "--users: 'many' is not a whole number"),
        (["compare", "--duration", "9" * 400], "--duration: must be at most a year"),
        (["compare", "--seed", str(2**63)], "--seed: must be at most 9223372036854775807"),
        (["compare", "--slo", "p95"], "--slo: objective 'p95': expected something like p95<2s"),
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


def test_defect_is_one_line_too_with_a_code_of_its_own(
    nothing_starts: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("profiler.scenarios.shipped_scenarios", lambda: 1 / 0)
    code, out, err = run(["scenarios"], capsys)
    assert (code, out) == (DEFECT, "")
    assert "a defect of the profiler: ZeroDivisionError" in one_line(err)
    assert "Traceback" in run(["--debug", "scenarios"], capsys)[2]


# What is on disk.

FILES = ("run.json", "records.jsonl", "summary.json", "progress.jsonl")
COMMANDS = (["report", "A"], ["trace", "A"], ["compare", "A", "B"], ["compare", "B", "A"])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small run: two strategies with tool calls, three blocks."""
    trials = [
        trial(2 * block + k, strategy, block * 2000 + k * 1000, block * 2000 + k * 1000 + 900, block=block)
        for block in range(3)
        for k, strategy in enumerate(("sequential", "gathered"))
    ]
    loops = [
        loop(
            one.started_ns / MS + 10 + 60 * k, 10 + k, [(0, 5 + k), (3, 9)], one.strategy, one.index, number=k
        )
        for one in trials
        for k in range(4)
    ]
    directory = RunDirectory.create(tmp_path_factory.mktemp("runs"), make_run(trials, slo="p95<2s"))
    directory.records_path.write_bytes(b"".join(encode(one) + b"\n" for one in loops))
    progress = Progress(1.0, "measuring", "gathered", 2, 1, 6, 1, 3)
    (directory.path / "progress.jsonl").write_bytes(encode_progress(progress) * 3)
    assert cli.main(["report", str(directory.path)]) == 0
    directory.save_summary(summarise_directory(directory))
    return {name: (directory.path / name).read_bytes() for name in FILES}


NUMBERS = [-1, 0, 1, 7, 2**31, 2**62, -(2**62), 2**62 + 1, 2**63, 2**64, 10**30, 0.5, -0.5, 1e-300, 1e308]
JSON = st.recursive(
    st.sampled_from([None, True, False, "", "x", *NUMBERS])
    | st.text(max_size=5)
    | st.sampled_from([{}, [], [[]], {"x": {}}, "\x1b[31m", "a\nb", "x" * 3000, "ok", "error", "gathered"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a JSON value a part can be replaced or taken out."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [place for key, part in inner for place in places(part, (*at, key))]


def respelt(data: st.DataObject, value: Any) -> bytes:
    """JSON with a part replaced, doubled or left out."""
    place = data.draw(st.sampled_from(places(value)))
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    old = holder[place[-1]]
    match data.draw(st.sampled_from(["alike", "alike", "alike", "other", "out", "twice"])):
        case "alike" if isinstance(old, int | float) or old is None:
            holder[place[-1]] = data.draw(st.sampled_from(NUMBERS))
        case "alike" if isinstance(old, str):
            holder[place[-1]] = data.draw(st.sampled_from(ODD))
        case "other" | "alike":
            holder[place[-1]] = data.draw(JSON)
        case "out":
            del holder[place[-1]]
        case "twice" if isinstance(holder, list):
            holder.insert(place[-1], holder[place[-1]])
    text = json.dumps(value)
    if data.draw(st.integers(0, 9)) == 0:
        text = re.sub(
            r"\d+",
            lambda m: data.draw(st.sampled_from(["NaN", "Infinity", "1e999", m[0] + "e5"])),
            text,
            count=1,
        )
    return text.encode()


def spoilt(data: st.DataObject, whole: bytes) -> bytes:
    """A file's bytes, with something wrong with them."""
    at = data.draw(st.integers(0, len(whole)))
    match data.draw(st.sampled_from(["cut", "flip", "insert", "twice", "empty", "deep", "line"])):
        case "cut":
            return whole[:at]
        case "flip":
            return whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :]
        case "insert":
            return whole[:at] + data.draw(st.binary(max_size=9)) + whole[at:]
        case "twice":
            return whole + whole
        case "empty":
            return data.draw(
                st.sampled_from([b"", b"\n", b"\0" * 100, b"{}", b"[]", b"null\n", b"\xff\xfe\n"])
            )
        case "deep":
            return whole + b"[" * 100_000 + b"\n"
        case _:
            lines = whole.splitlines(keepends=True)
            return b"".join(data.draw(st.permutations(lines[:3]))) + b"".join(lines[3:])


@pytest.mark.slow
@MANY
@given(data=st.data())
def test_run_directory_with_any_fault_is_read_or_refused_in_one_line(
    data: st.DataObject, recorded: dict[str, bytes], tmp_path: Path, nothing_starts: None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """One file of one run is spoilt."""
    lay(recorded)
    file = data.draw(st.sampled_from([*FILES, *FILES[:2] * 2]))
    whole = recorded[file]
    if data.draw(st.booleans()):
        whole = spoilt(data, whole)
    elif file.endswith("jsonl"):
        lines = whole.splitlines()
        number = data.draw(st.integers(0, len(lines) - 1))
        lines[number] = respelt(data, json.loads(lines[number]))
        whole = b"\n".join(lines) + b"\n"
    else:
        whole = respelt(data, json.loads(whole))
    Path("A", file).write_bytes(whole)
    argv = data.draw(st.sampled_from(COMMANDS))
    code, _, err = run(argv, capsys)
    event(f"{argv[0]} {file}: {code}")
    event(f"{file} {err.partition(file)[2][:60]!r}")
    assert code in (0, 1, 2), (argv, err)
    if code == 2:
        assert (
            f"A/{file}" in one_line(err)
            or "run.json: key slo" in err
            or "nothing to compare" in err
            or "no loops to trace" in err
        )


@pytest.mark.parametrize("argv", COMMANDS)
@pytest.mark.parametrize("file", ["run.json", "records.jsonl"])
@pytest.mark.parametrize("instead", ["nothing", "a directory", "a link to itself"])
def test_run_directory_whose_file_is_none_is_named(
    file: str, instead: str, argv: list[str], recorded: dict[str, bytes], nothing_starts: None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    lay(recorded)
    path = Path("A", file)
    path.unlink()
    if instead == "a directory":
        path.mkdir()
    elif instead == "a link to itself":
        path.symlink_to(file)
    code, _, err = run(argv, capsys)
    assert code == 2, err
    assert "A" in one_line(err)
    assert file in err


def lay(recorded: dict[str, bytes]) -> None:
    """The run, twice: A and B."""
    for name in "AB":
        Path(name).mkdir(exist_ok=True)
        for file, content in recorded.items():
            Path(name, file).write_bytes(content)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["report", "A", "-o", "A"], "A: cannot be written: Is a directory"),
        (["report", "A", "-o", "none/report.html"], "none/report.html: cannot be written: No such file"),
        (["report", "A/run.json"], "A/run.json:1: not a loop record"),
        (["trace", "A/run.json"], "A/run.json:1: not a loop record"),
        (["trace", "A", "-o", "none/t.json"], "none/t.json: cannot be written: No such file"),
        (["trace", "A", "--loops", "0"], "--loops: must be at least 1, not 0"),
        (["compare", "A", "B", "--fail-on", "p95"], "--fail-on: gate 'p95': expected"),
        (["compare", "A", "B", "--slo", "p95"], "--slo: objective 'p95': expected"),
        (["compare", "A", "B", "A"], "compare takes two run directories, or none: 3 given"),
        (["run", "--out", "A/run.json", "--number", "-1"], "--number: must be at least 0, not -1"),
        (["init", "A/run.json"], "A/run.json: cannot write: File exists"),
        (["dashboards", "--out", "A/run.json"], "A/run.json/toolloop.json: cannot write: File exists"),
        (["compare", "--out", "A/run.json"], "cannot make a run directory: Not a directory"),
    ],
)
def test_paths_that_cannot_be_are_named(
    argv: list[str], said: str, recorded: dict[str, bytes], nothing_starts: None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    lay(recorded)
    assert said in refused(argv, capsys)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """As a user who may not do everything, where the tests run as one who may."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["compare", "--out", "locked"], "locked/"),
        (["compare"], "runs/"),
        (["tune", "--quiet", "--out", "locked/deep"], "locked/deep/"),
        (["compare", "--scenario", "unreadable.toml"], "unreadable.toml: cannot read the scenario file"),
        (["emulate", "--scenario", "unreadable.toml"], "unreadable.toml: cannot read the scenario file"),
        (["run", "--out", "locked/deep"], "locked/deep: cannot make a run directory"),
        (["report", "A"], "A/run.json"),
        (["report", "B"], "B/records.jsonl: cannot read records"),
        (["trace", "A", "-o", "trace.json"], "A/run.json"),
        (["compare", "C", "A"], "A/run.json"),
        (["report", "C"], "C/report.html: cannot be written"),
        (["report", "C", "-o", "locked/report.html"], "locked/report.html: cannot be written"),
        (["trace", "C", "-o", "locked/trace.json"], "locked/trace.json: cannot be written"),
        (["init"], ".: cannot write"),
        (["init", "locked"], "locked: cannot write"),
        (["dashboards", "--out", "locked"], "locked/toolloop.json: cannot write"),
    ],
)
def test_paths_that_the_user_may_not_read_or_write_are_named(
    argv: list[str], said: str, recorded: dict[str, bytes], nothing_starts: None, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A cannot be entered, of B not everything read, nothing written to C and to the directory here."""
    lay(recorded)
    run(argv, capsys)  # what it imports may be where only root can read
    for made in tmp_path.iterdir():
        if made.name not in ("A", "B"):
            shutil.rmtree(made) if made.is_dir() else made.unlink()
    lay(recorded)
    shutil.copytree("A", "C")
    Path("C", "report.html").unlink(missing_ok=True)
    Path("locked").mkdir()
    Path("unreadable.toml").write_text(SHIPPED["instant.toml"])
    Path("unreadable.toml").chmod(0)
    Path("B", "records.jsonl").chmod(0)
    Path("A").chmod(0)
    for closed in (Path("C"), Path("locked"), tmp_path):
        closed.chmod(0o555)
    try:
        with unprivileged():
            refusal = refused(argv, capsys)
    finally:
        for closed in (tmp_path, Path("A"), Path("C"), Path("locked")):
            closed.chmod(0o755)
    assert refusal.startswith(f"profiler: {said}")
    assert refusal.endswith(": Permission denied\n")


# Scenarios.

SHIPPED = {path.name: path.read_text("utf-8") for path in Path(scenarios.__path__[0]).glob("*.toml")}
TOML = (
    *(
        "-1",
        "0",
        "1",
        "3",
        "0.5",
        "-0.5",
        "1e308",
        "1e-308",
        "inf",
        "-inf",
        "nan",
        "9" * 30,
        "9" * 5000,
        "true",
    ),
    *('""', '"x"', '"a\\nb"', '"\\u001b[31m"', '"""a\nb"""', "[]", "[1, -1]", "[nan]", '["x"]', "[[]]", "{}"),
    *("{ kind = 'uniform', low = 2, high = 1 }", "{ kind = 'uniform', low = 0, high = 1e308 }", "2020-01-01"),
    *("{ kind = 'lognormal', median = 1, sigma = 1e9 }", "{ kind = 'pareto', scale = 1, alpha = 1e-9 }"),
    *(
        "{ kind = 'gamma', mean = 1, shape = 1e-300 }",
        "{ kind = 'empirical', values = [] }",
        "{ kind = 'x' }",
    ),
    *("{ kind = 'exponential', mean = 1e9, min = 5 }", "{ kind = 'constant', value = 1, max = nan }"),
    *("[" * 2000, "{ kind = 'constant' }", "{ kind = 'gamma', mean = 1e9, shape = 0.01 }"),
)
"""Values for any key."""


@settings(MANY, max_examples=3 * MANY.max_examples)
@given(data=st.data())
def test_scenario_file_with_any_fault_is_taken_or_refused_by_its_key(
    data: st.DataObject, tmp_path: Path
) -> None:
    """What is taken can be worked on: the tape draws from it."""
    whole = SHIPPED[data.draw(st.sampled_from(sorted(SHIPPED)))]
    lines = whole.splitlines()
    number = data.draw(st.sampled_from([n for n, line in enumerate(lines) if line and line[0] != "#"]))
    key, equals, _ = lines[number].partition(" = ")
    match data.draw(st.sampled_from(["value", "value", "value", "inner", "out", "twice", "key", "bytes"])):
        case "value" if equals:
            lines[number] = f"{key} = {data.draw(st.sampled_from(TOML))}"
        case "inner":
            odd = data.draw(st.sampled_from(TOML))
            lines[number] = re.sub(r"= [-\w.]+ ?([,}])", lambda m: f"= {odd} {m[1]}", lines[number], count=1)
        case "out":
            del lines[number]
        case "twice":
            lines.insert(number, lines[number])
        case "key":
            lines[number] = lines[number].replace("a", "e", 1)
    content = "\n".join(lines).encode()
    if content == whole.encode():
        content = spoilt(data, content)
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    try:
        tape = Tape(load_scenario(str(path)), 1)
    except ScenarioError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert refusal.startswith(f"{path}: ")
        return
    for n in range(3):
        durations = [tape.duration(Place(n, r, 0), "get_weather") for r in range(min(3, tape.rounds(n)))]
        paces = [part for r in range(2) for part in tape.pace(n, r, 0) if part is not None]
        assert tape.fan_out(n, 0) <= 4096
        assert all(math.isfinite(seconds) and seconds >= 0 for seconds in (*durations, *paces))


def test_scenario_that_is_no_text_is_named(nothing_starts: None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("dir.toml").mkdir()
    Path("latin.toml").write_bytes(b'description = "\xe9"')
    for file, said in (("dir.toml", "Is a directory"), ("latin.toml", "'utf-8' codec")):
        assert f"{file}: cannot read the scenario file: {said}" in refused(
            ["run", "--scenario", file], capsys
        )


# The options of the Locust files.


class LocustParser(Parser):
    """Takes the keywords that Locust's parser adds."""

    def add_argument(  # type: ignore[override]
        self, *args: Any, include_in_web_ui: bool = True, is_secret: bool = False, **kwargs: Any
    ) -> Any:
        return super().add_argument(*args, **kwargs)


LOCUST = LocustParser(prog="locust")
LOCUST.add_argument("--host")
LoadOptions.add_to_locust(LOCUST)
LOCUST_OPTIONS = [action for action in LOCUST._actions if not isinstance(action, argparse._HelpAction)]


@settings(MANY, max_examples=3 * MANY.max_examples)
@given(data=st.data())
def test_locust_file_takes_any_options_or_refuses_them_by_name(
    data: st.DataObject, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a Locust file checks them before it starts anything. What is taken, the workers take too."""
    action = data.draw(st.sampled_from(LOCUST_OPTIONS))
    argv = written(action, data)
    try:
        options = LoadOptions.from_namespace(LOCUST.parse_args(argv))
        options.check_targets({})
        load_scenario(options.scenario)
    except (UsageError, SystemExit) as error:
        refusal = str(error) if isinstance(error, UsageError) else capsys.readouterr().err
    else:
        refusal = ""
        again = LoadOptions.from_namespace(LOCUST.parse_args(options.arguments()))
        # What one of our own processes asks of another is in no line that repeats a run.
        hidden = {name: one.default for name, one in LoadOptions.declared() if one.hidden}
        assert again.as_json() == replace(options, **hidden).as_json()  # but for the secrets
        assert unpack(Prepare, pack(Prepare(options, "", 0, 1, "", Anchor(0, 0)))).options == options
    if refusal:
        names = ("--base-url", *action.option_strings) if action.dest == "host" else action.option_strings
        assert any(name in refusal for name in (*names, action.dest)), (argv, refusal)
