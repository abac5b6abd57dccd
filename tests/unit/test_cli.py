"""The command line: what it imports, how it says no."""

from __future__ import annotations

import resource
import shlex
import subprocess
import sys
from importlib.metadata import version
from statistics import median

import pytest

from profiler.cli import main, parse

HEAVY = (
    "openai",
    "anthropic",
    "locust",
    "gevent",
    "scipy",
    "numpy",
    "aiohttp",
    "httpx",
    "httpx2",
    "pydantic",
)


COMMANDS = ("run", "compare", "tune", "report", "trace", "init", "emulate", "scenarios", "dashboards")


def modules_after(code: str) -> set[str]:
    code += "; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_package_imports_nothing_heavy():
    assert not modules_after("import profiler") & set(HEAVY)


def test_loop_and_its_tools_import_no_sdk_and_no_locust():
    loaded = modules_after("from profiler import ToolLoop, tool, Gathered")
    assert not loaded & {"openai", "anthropic", "locust", "gevent", "scipy", "aiohttp", "httpx2"}


def cpu_seconds(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_help_names_every_command_and_costs_a_few_imports_of_the_standard_library():
    code = "from profiler.cli import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in COMMANDS:
        assert command in done.stdout
    assert not modules_after("from profiler.cli import _parser; _parser()") & set(HEAVY)
    # Seconds would be the machine's: in turns with an import that help needs too. It is 3 of them; an SDK
    # would be 11 more, numpy 3.
    turns = [(cpu_seconds("import asyncio"), cpu_seconds(code)) for _ in range(5)]
    assert median(took for _, took in turns) < 5 * median(least for least, _ in turns)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_examples_that_parse(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--help"])
    assert caught.value.code == 0
    usage, _, examples = capsys.readouterr().out.partition("\nexamples:\n")
    assert f"usage: profiler {command}" in usage
    lines = [line.partition("  " * 3)[0].strip() for line in examples.splitlines()]
    assert lines
    for line in lines:
        words = shlex.split(line.partition("|")[0])
        assert words[0] == "profiler"
        assert parse(words[1:]).parser.prog == f"profiler {command or words[1]}"


def test_version_is_the_distribution_s(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"profiler {version('toolcall-profiler')}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required"),
        (["fly"], "invalid choice: 'fly'"),
        (["run", "--scenario", "nowhere"], "nowhere"),
        (["run", "--strategy", "semaphore:0"], "unknown strategy 'semaphore:0'"),
        (
            ["run", "--strategy", "eager"],
            "--strategy eager: starts tools while a reply streams: add --stream",
        ),
        (["run", "--base-url", "ftp://x"], "not a base URL: 'ftp://x'"),
        (["compare", "--users", "0"], "must be at least 1, not 0"),
        (["compare", "--duration", "soon"], "'soon' is not a time"),
        (["compare", "--strategy", "many"], "unknown strategy 'many'"),
        (["compare", "--base-url", "https://api.openai.com"], "--allow-remote"),
        (["trace", "nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["dashboards"], "say where to write them"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as left:
        code = left.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith("profiler")
    assert said in last


def test_scenarios_are_listed(capsys):
    assert main(["scenarios"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "cities",
        "crowded",
        "fanout",
        "flaky",
        "instant",
        "quota",
        "research",
    ]
