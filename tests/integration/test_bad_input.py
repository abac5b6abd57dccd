"""Bad input in real processes: as the shell and Locust hand over what the unit tests try."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.locust_process import Locust, locust


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Locust]:
    with locust(tmp_path) as made:
        yield made


def profiler(path: Path, *arguments: str | bytes) -> tuple[int, str]:
    """Exit code and standard error; nothing may come on standard output."""
    command = [sys.executable, "-m", "profiler", *arguments]
    done = subprocess.run(command, cwd=path, capture_output=True, timeout=60)
    assert done.stdout == b""
    return done.returncode, done.stderr.decode()


def test_a_command_says_one_line_and_leaves(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('description = "x"\nprompt = \n')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, said in (
            (
                ["emulate", "--scenario", "mine.toml"],
                "profiler: mine.toml: not valid TOML: Invalid value (at line 2",
            ),
            (
                ["emulate", "--port", str(port)],
                f"profiler: cannot listen on 127.0.0.1:{port}: Address already in use",
            ),
            (["report", b"\xff"], "profiler: error: argument '\\udcff': not text"),
            (
                ["compare", "--agent", "no_such:make", "--quiet", "--calibrate", "0"],
                "profiler: --agent no_such:make: cannot import no_such",
            ),
        ):
            code, err = profiler(tmp_path, *arguments)
            assert code == 2
            assert err.startswith(said)
            assert len(err.splitlines()) == 1


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    code, err = profiler(tmp_path, "--debug", "report", "none")
    assert code == 2
    assert err.startswith("Traceback (most recent call last):")
    assert err.splitlines()[-1] == "profiler: none: not a run directory: it has no run.json"


def test_a_locust_file_says_it_in_one_line_whatever_the_option_holds(processes: Locust) -> None:
    code, output = processes.run("-u", "1", "--strategy", "gathred\n\x1b[31m")
    assert code == 2
    (line,) = (line for line in output.splitlines() if "unknown strategy" in line)
    assert line.startswith(r"locust: error: --strategy: unknown strategy 'gathred\n\x1b[31m'")
    assert processes.left() == []
