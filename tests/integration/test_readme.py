"""The README is run: its Python, its commands, the outputs it shows (figures and bars aside)."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import CodeType

import pytest

from profiler.cli import _parser
from profiler.emulator.process import start_emulator
from profiler.scenarios.tools import close_tool_clients

README = Path(__file__).parents[2] / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.M | re.S)
COMMANDS = sorted(
    {
        line.split("#")[0].strip()
        for language, block in BLOCKS
        if not language
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith(("profiler ", "locust "))
    }
)
OUTPUTS = dict(re.findall(r"<!-- output: (.*?) -->\n```\n(.*?)```", TEXT, re.S))


@pytest.fixture(scope="module")
def emulator():
    with start_emulator("instant", seed=1) as running:
        yield running


def shape(text: str) -> list[str]:
    """The words of each line that is not empty; figures, units and bars do not count."""
    lines = [re.findall(r"[A-Za-z:_]{3,}[\d]*", line) for line in text.splitlines()]
    return [" ".join(words) for words in lines if words]


async def test_the_python_in_it_runs(emulator, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("OPENAI_BASE_URL", f"{emulator.url}/v1")
    monkeypatch.setenv("PROFILER_TOOLS_URL", emulator.url)
    names: dict[str, object] = {}
    sources = [block for language, block in BLOCKS if language == "python"]
    assert len(sources) == 4
    for source in sources:
        free = source.replace("serve_metrics(9464)", "serve_metrics(0)")
        code = compile(free, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        assert isinstance(code, CodeType)
        running = eval(code, names)
        if inspect.iscoroutine(running):
            await running
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] in ("get_weather", "search", "lookup")
    await names["client"].close()
    await names["loop"].model.client.close()
    await close_tool_clients()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("profiler ")])
def test_the_commands_in_it_are_understood(command):
    parsed = _parser().parse_args(shlex.split(command)[1:])
    assert callable(parsed.command)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("locust ")])
def test_the_locust_commands_in_it_are_understood(command):
    """By Locust's parser with our options in it; its --help is printed before it reads a locustfile."""
    code = "import sys, locust.argument_parser as locust, locustfiles.compare; "
    code += "locust.get_parser().parse_args(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *shlex.split(command)[1:]],
        cwd=README.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.measures
def test_the_timeline_it_shows_is_what_one_sees(tmp_path):
    (command,) = [name for name in OUTPUTS if name.startswith("profiler run")]
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(README.parent), "PYTHONUTF8": "1", "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    # The order of the first three lines and the answer's figures depend on the machine.
    assert sorted(shape(done.stdout))[:12] == sorted(shape(OUTPUTS[command]))[:12]


def test_the_comparison_it_shows_is_what_one_sees(tmp_path):
    (command,) = [name for name in OUTPUTS if name.startswith("profiler compare")]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            *shlex.split(command),
            "--duration",
            "3s",
            "--blocks",
            "1",
            "--allow-saturated",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(README.parent), "PYTHONUTF8": "1", "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr

    def table(text: str) -> list[str]:
        lines = text.splitlines()
        start = next(i for i, line in enumerate(lines) if line.strip().startswith("strategy "))
        return [lines[start].split()[0], *(line.split()[0] for line in lines[start + 2 : start + 5])]

    assert table(done.stdout) == table(OUTPUTS[command])
    report = re.search(r"report: (\S+)", done.stdout)
    assert report is not None
    assert (tmp_path / report[1]).stat().st_size > 10_000


def test_the_gates_it_shows_are_what_one_sees(tmp_path):
    """On a few loops, of which a gate may not be decided."""
    ((command, shown),) = re.findall(r"<!-- gates: (.*?) -->\n```\n(.*?)```", TEXT, re.S)
    assert command in COMMANDS
    short = ("--duration", "1.5s", "--blocks", "3", "--calibrate", "0", "--no-metrics", "--quiet")
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command), *short],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(README.parent), "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "junit.xml").read_text().count("<testcase ") == 6

    def first_cells(text: str) -> list[str]:
        return [line.split(" | ")[0] for line in text.splitlines() if line.startswith(("#", "| "))]

    assert first_cells(done.stdout) == first_cells(shown)
