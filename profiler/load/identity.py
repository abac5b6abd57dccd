"""The identity of a load test: this package, the Locust file and the scenario, the same in all processes.

A worker says with its `Hello` what it runs, and its master compares. Digests are short: they tell files
apart, and guard against nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from profiler.load.messages import Hello
from profiler.rundir import versions
from profiler.scenarios import Scenario

_DIGITS = 8


def own_hello(files: Sequence[str]) -> Hello:
    """The identity of this process; `files` are its Locust files."""
    name = ", ".join(Path(file).name for file in files)
    return Hello(versions().get("toolcall-profiler", ""), name, of_files(files), os.getpid(), os.getppid())


def of_files(files: Sequence[str]) -> str:
    """A digest of what is in them; "" where one cannot be read, as a folder or an address."""
    try:
        contents = [Path(file).read_bytes() for file in files]
    except (OSError, ValueError):
        return ""
    # Line ends are not compared: a checkout may have changed them, and so does Locust when it sends a file.
    return _digest(b"\0".join(one.replace(b"\r\n", b"\n") for one in contents)) if contents else ""


def of_scenario(scenario: Scenario) -> str:
    """A digest of what a scenario says, however its file puts it."""
    return _digest(repr(scenario).encode())


def difference(master: Hello, worker: Hello) -> str | None:
    """In words, how a worker differs from its master; None where nothing is known to differ."""
    if worker.version != master.version:
        its = worker.version or "a version that does not say which"
        return f"it runs toolcall-profiler {its}, the master {master.version or 'none that is installed'}"
    if worker.digest and master.digest and worker.digest != master.digest:
        named = "" if worker.file == master.file else f", the master {master.file}"
        also = " with other contents than the master's" if not named else ""
        return f"it runs the Locust file {worker.file}{also}{named}"
    return None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]
