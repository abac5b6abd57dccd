"""The emulator in a process of its own, for the command line, load tests and tests."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import ssl
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import IO

from profiler.errors import TargetError, UsageError
from profiler.process.streams import IN_CHILDREN

_START_SECONDS = 20.0
_STOP_SECONDS = 5.0


class EmulatorProcess:
    """An emulator that starts, or runs. It ends when stopped, at the end of a `with` block, or with this
    process. `seconds`: how long it may take to listen, from when its `url` is asked for.
    """

    def __init__(self, process: subprocess.Popen[str], seconds: float) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._seconds = seconds
        self._errors = _Errors(process.stderr)
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=_first_line, args=(process.stdout, self._lines), daemon=True).start()

    @functools.cached_property
    def url(self) -> str:
        """Its root URL; waits until it listens. Raises what `start_emulator` does."""
        try:
            line = self._lines.get(timeout=self._seconds)
        except queue.Empty:
            line = ""
        url = line.rpartition(" ")[2].strip()
        if url.startswith("http"):
            self._errors.listening = True
            return url
        code = self.stop()
        said = " ".join(text.strip() for text in self._errors.kept) or f"no word within {self._seconds:g} s"
        kind = UsageError if code == UsageError.exit_code else TargetError
        raise kind(f"the emulator did not start: {said.removeprefix('profiler emulate: ')}")

    @property
    def mcp_url(self) -> str:
        """Where its tools are served over MCP."""
        return f"{self.url}/mcp"

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit code (below 0: the signal that killed it), None while it runs."""
        return self._process.poll()

    def stop(self) -> int:
        """Ask it to end, kill it after five seconds; its exit code. May be called twice."""
        process = self._process
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        # The end of its standard input tells it to end. A signal as well could meet a process that has
        # taken its signal handlers down already.
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        return process.returncode

    def __enter__(self) -> EmulatorProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def is_emulator(root: str, context: ssl.SSLContext | None = None) -> bool:
    """Whether an emulator of ours answers at this root URL of this machine. No proxy is asked.

    `context`: how to connect over TLS; None as the environment says.
    """
    context = context or ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE"))
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(f"{root}/emulator/stats", timeout=2) as response:
            return "peak_in_flight" in json.load(response)
    except (OSError, ValueError):
        return False


def start_emulator(
    scenario: str,
    seed: int = 0,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    dialect: str | None = None,
    mcp_reply: str | None = None,
    mcp_page: int | None = None,
    tls_cert: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
    timeout: float = _START_SECONDS,
    waits: bool = True,
) -> EmulatorProcess:
    """Start `python -m profiler.emulator`; with `waits`, wait until it listens (else its `url` does).

    Raises `UsageError` when it refuses its arguments (scenario, port), `TargetError` when it dies
    otherwise or does not listen within `timeout` seconds.
    """
    command = [sys.executable, "-m", "profiler.emulator", "--host", host, "--port", str(port)]
    command += ["--scenario", scenario, "--seed", str(seed), "--exit-with-parent"]
    given = {
        "--dialect": dialect,
        "--mcp-reply": mcp_reply,
        "--mcp-page": mcp_page,
        "--tls-cert": tls_cert,
        "--tls-key": tls_key,
    }
    for option, value in given.items():
        if value is not None:
            command += [option, str(value)]
    # The package may have been imported from a source tree that is not on the child's path.
    root = str(Path(__file__).resolve().parents[2])
    python_path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **IN_CHILDREN, "PYTHONPATH": python_path},
        start_new_session=True,  # an interrupt at the terminal is ours to handle, and to pass on
    )
    started = EmulatorProcess(process, timeout)
    if waits:
        _ = started.url
    return started


def _first_line(stream: IO[str], lines: queue.SimpleQueue[str]) -> None:
    with contextlib.suppress(ValueError, OSError):
        lines.put(stream.readline())


class _Errors:
    """The child's standard error: kept until it listens (to explain why it did not), then passed on."""

    def __init__(self, stream: IO[str]) -> None:
        self.kept: list[str] = []
        self.listening = False
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        with contextlib.suppress(ValueError, OSError), stream:
            for line in stream:
                if self.listening:
                    sys.stderr.write(line)
                else:
                    self.kept.append(line)
