"""A real Prometheus for tests: on loopback, in a directory of the test's, gone with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from profiler.process.ports import free_port

SECONDS = 120
"""For how long anything is waited for."""


def needed(binary: str, package: str = "prometheus") -> str:
    """Where a program is. Missing, it fails a test in CI; elsewhere the test is skipped, and says so."""
    found = shutil.which(binary)
    if found is None:
        what = f"{binary} is not installed (Debian's package `{package}` has it)"
        if os.environ.get("CI") == "true":
            pytest.fail(what)
        pytest.skip(what)
    return found


class Prometheus:
    """The HTTP API of one that runs."""

    def __init__(self, port: int) -> None:
        self._root = f"http://127.0.0.1:{port}/api/v1/"

    def get(self, path: str, **parameters: Any) -> Any:
        """`data` of an answer; an error's text is raised as AssertionError."""
        url = self._root + path + "?" + urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urllib.request.urlopen(url, timeout=SECONDS) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None

    def instant(self, query: str, at: float) -> list[tuple[dict[str, str], float]]:
        found = self.get("query", query=query, time=at)["result"]
        return [(series["metric"], float(series["value"][1])) for series in found]

    def graph(self, query: str, start: float, end: float, step: float) -> list[list[float]]:
        found = self.get("query_range", query=query, start=start, end=end, step=step)["result"]
        return [[float(value) for _, value in series["values"]] for series in found]


@contextmanager
def prometheus(directory: Path, config: str) -> Iterator[Prometheus]:
    """Start one on this configuration; it keeps exemplars."""
    binary = needed("prometheus")
    port = free_port()
    path = directory / "prometheus.yml"
    path.write_text(config)
    command = [
        binary,
        f"--config.file={path}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
        "--log.level=warn",
    ]
    with open(directory / "prometheus.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        server = Prometheus(port)
        wait_until(lambda: _answers(server, process), "Prometheus to answer")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, f"waited {SECONDS} s for {what}"
        time.sleep(0.1)


def _answers(server: Prometheus, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "Prometheus ended"
    try:
        server.get("status/buildinfo")
    except (OSError, AssertionError):  # not listening yet, or listening and not yet ready (503)
        return False
    return True
