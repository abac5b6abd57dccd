"""`profiler import` as a process: interrupted, short of disk, and reported on afterwards."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from benchmarks.tracelab_rows import rows
from profiler.rundir import RunDirectory
from tests.recorded_samples import SAMPLES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

PROFILER = [sys.executable, "-m", "profiler"]


def opened(process: subprocess.Popen[bytes]) -> list[str]:
    """What the process has open; empty where it has ended."""
    found = []
    try:
        for one in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                found.append(os.readlink(one))
            except OSError:
                continue
    except OSError:
        pass
    return found


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    return recording_of(6_000, tmp_path_factory.mktemp("short"))


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """One that takes a second or more to read, also on a quick machine."""
    return recording_of(15_000, tmp_path_factory.mktemp("long"))


def recording_of(count: int, folder: Path) -> Path:
    path = folder / "rows.jsonl"
    with path.open("wb") as file:
        file.writelines(rows(count, 1))
    return path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_import_that_is_ended_leaves_nothing(tmp_path, long, number):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [*PROFILER, "import", str(long), "--out", str(tmp_path / "runs")],
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary), "SQLITE_TMPDIR": str(temporary)},
    )
    deadline = time.monotonic() + 60
    while str(long) not in opened(process):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    code = process.wait(60)
    process.stderr.close()
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert (
        said
        == {
            signal.SIGINT: "profiler: interrupted\n",
            signal.SIGTERM: "profiler: told to end by SIGTERM\n",
            signal.SIGKILL: "",
        }[number]
    )
    assert not (tmp_path / "runs").exists()
    assert list(temporary.iterdir()) == []


def test_an_import_without_disk_left_is_one_line(tmp_path, short):
    def little() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    done = subprocess.run(
        [*PROFILER, "import", str(short), "--out", str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        preexec_fn=little,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("runs/*"))


def test_the_temporary_file_is_nobodys():
    """No name, so that nobody else can open it, and nothing is left of it."""
    code = (
        "import os, sys\n"
        "from profiler.recordings.formats import Item\n"
        "from profiler.recordings.spool import Spool\n"
        "with Spool() as spool:\n"
        "    for n in range(100_000):\n"
        "        spool.add(0, 0, Item(str(n), n + 1, 'x' * 1000))\n"
        "    print(*[os.readlink(f'/proc/self/fd/{one}') for one in os.listdir('/proc/self/fd')\n"
        "            if os.path.islink(f'/proc/self/fd/{one}')], sep='\\n')\n"
        "    print(sum(len(items) for _, items in spool.groups()))\n"
    )
    with tempfile.TemporaryDirectory() as temporary:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, "SQLITE_TMPDIR": temporary},
            timeout=60,
        )
        assert done.stderr == ""
        held = [line for line in done.stdout.splitlines() if line.startswith(temporary)]
        assert held
        assert all(line.endswith(" (deleted)") for line in held)
        assert done.stdout.splitlines()[-1] == "100000"
        assert os.listdir(temporary) == []


def test_memory_does_not_grow_with_what_is_read(tmp_path, short, long):
    """More than twice the rows, some kB more: what is held is one group, and what SQLite may hold."""
    # Its own peak. What a parent is told (ru_maxrss) counts what the child had of it before it began.
    code = "import re, sys; from profiler.cli import main; main(sys.argv[1:])\n"
    code += "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    peaks = []
    for recording in (short, long):
        command = [sys.executable, "-c", code, "import", str(recording), "--out", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        peaks.append(int(done.stdout.splitlines()[-1]))
    assert peaks[1] < 1.25 * peaks[0]
    assert peaks[1] < 250 * 1024


@pytest.mark.parametrize("sample", ["otel", "claude-code"])
def test_what_was_imported_is_reported_on(tmp_path, sample):
    (tmp_path / "recording").write_bytes(SAMPLES[sample][1])
    for command in (["import", "recording"], ["report", "RUN"]):
        run = [str(one) for one in tmp_path.glob("runs/*")] or [""]
        words = [word.replace("RUN", run[0]) for word in command]
        done = subprocess.run([*PROFILER, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), words
    (directory,) = (tmp_path / "runs").iterdir()
    assert (directory / "report.html").stat().st_size > 10_000
    assert RunDirectory.open(directory).load().finished
