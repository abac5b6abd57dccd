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
    assert not list(tmp_path.glob("runs/*"))  # what was refused leaves no run directory


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    code, err = profiler(tmp_path, "--debug", "report", "none")
    assert code == 2
    assert err.startswith("Traceback (most recent call last):")
    assert err.splitlines()[-1] == "profiler: none: not a run directory, and no file of records"


def test_a_locust_file_says_it_in_one_line_before_it_logs_forks_or_serves(processes: Locust) -> None:
    tried = {
        r"--strategy: unknown strategy 'x\n\x1b[31m'": ["--strategy", "x\n\x1b[31m", "--headless"],
        "--blocks x: 'x' is not a whole number\n": ["--blocks", "x"],  # with its page
        "--arrivals x: expected a rate such as": ["--arrivals", "x", "--headless", "--processes", "2"],
        "--think is for a closed load": ["--think", "1", "--arrivals", "3/s"],
    }
    started = {said: processes.start(*arguments) for said, arguments in tried.items()}
    for said, process in started.items():
        code, output = processes.end(process)
        assert code == 2
        assert output.startswith(f"locust: error: {said}")
        assert len(output.splitlines()) == 1, output
    assert processes.left() == []
