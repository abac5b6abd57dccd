"""Locust's process of a load test: started before it is known what to run, told then, waited for.

To import what it needs takes it a second or more. So it is started first, and the command reads its options,
its scenario and its directory meanwhile.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from profiler.errors import Interrupted, ProfilerError, TargetError, Terminated, UsageError
from profiler.process.signals import DRAIN_SECONDS, ENDING
from profiler.process.streams import IN_CHILDREN

PARENT_FD = "PROFILER_PARENT_FD"
"""Environment variable with the number of an inherited descriptor; it reads end-of-file when we are gone."""

_ENDED = {
    **dict.fromkeys((Interrupted.exit_code, -signal.SIGINT), Interrupted),
    **dict.fromkeys((Terminated.exit_code, *(-number for number in ENDING)), Terminated),
}
"""Locust's exit codes when it was ended before anything had begun; by the signal while it still imported."""

START = Path(__file__).parent / "locust" / "start.py"

STARTING = "starting Locust"
"""The first step of the process, in words; it names the later ones itself."""

KILL_SECONDS = 10.0
"""How long Locust may take to leave by itself before it is killed."""

KEPT_LINES = 500
"""Last lines of Locust's output that are kept: its tables at the end come after its complaints."""

_SAID = re.compile(r"(?:locust: error: |/(?:ERROR|WARNING|INFO)/profiler\.(?:load|exporters)\.[\w.]+: )(.*)")
_REFUSAL = re.compile(r"(?:locust: error: |/ERROR/profiler\.[\w.]+: )(.*)")
_FAILURE = re.compile(r"(?:locust: error: |/(?:ERROR|CRITICAL)/[\w.]+: )(.*)")
_RAISED = re.compile(r"[A-Za-z_][\w.]*(?:: .*)?")
"""The last line of a traceback."""


class LeaderKilledError(ProfilerError):
    """Locust's process, which leads a load test, was killed by a signal."""


class LocustProcess:
    """A process that has imported Locust, or does, and waits for its command line.

    `started` in Unix seconds.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.started = time.time()
        self._process = process
        self._said: deque[str] = deque(maxlen=KEPT_LINES)
        self._reader: threading.Thread | None = None

    @property
    def begun(self) -> bool:
        """Whether it was told what to run."""
        return self._reader is not None

    def begin(
        self,
        arguments: Sequence[str],
        secrets: Mapping[str, str],
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Run Locust with these arguments. `secrets` are in no list of processes, and in no environment.

        `progress` gets each line that people should see, in a thread of its own.
        """
        stdin, stderr = self._process.stdin, self._process.stderr
        assert stdin is not None
        assert stderr is not None
        self._reader = threading.Thread(target=_listen, args=(stderr, self._said, progress), daemon=True)
        self._reader.start()
        with contextlib.suppress(BrokenPipeError), stdin:  # it has ended: `wait` says why
            json.dump({"arguments": [*arguments], "secrets": {**secrets}}, stdin)

    def wait(self, seconds: float) -> None:
        """Wait for its end. Raises the error that it ended with, and `TargetError` when it takes too long.

        The first two interrupts are passed on; the third one ends the waiting.
        """
        assert self._reader is not None
        code, told = _wait(self._process, seconds)
        self._reader.join(KILL_SECONDS)
        _explain(code, self._said, told)


@contextlib.contextmanager
def started_locust(own_agent: bool) -> Iterator[LocustProcess]:
    """Locust's process, in a session of its own, so that we pass on an interrupt at the terminal.

    It leaves by itself when this process is gone, and does not outlive the `with` block. `own_agent`: it will
    run an agent of the user's own.
    """
    inherited, kept = os.pipe()
    root = str(START.parents[3])
    environment = {  # without settings of Locust's, which are meant for other tests
        name: value
        for name, value in os.environ.items()
        if not name.startswith("LOCUST_") or name == "LOCUST_SKIP_MONKEY_PATCH"
    }
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    if own_agent:
        # It may run in threads, and call what it likes: `load/locust/quirks.py`, about native threads.
        environment["LOCUST_SKIP_MONKEY_PATCH"] = "1"
    environment[PARENT_FD] = str(inherited)
    environment |= IN_CHILDREN
    process = subprocess.Popen(
        [sys.executable, "-P", str(START)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=environment,
        pass_fds=(inherited,),
        start_new_session=True,
    )
    os.close(inherited)
    locust = LocustProcess(process)
    try:
        yield locust
    except KeyboardInterrupt:  # nobody waits for it, and while it imports it does not see that we go
        process.terminate()
        raise
    finally:
        os.close(kept)
        if not locust.begun:
            process.kill()  # there is nothing in it yet that could be lost
        if process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(KILL_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # whoever is left of its session; usually nobody
        process.wait()
        for stream in (process.stdin, process.stderr):
            if stream is not None:
                stream.close()


def _wait(process: subprocess.Popen[str], seconds: float) -> tuple[int, KeyboardInterrupt | None]:
    """Wait for its exit code; returns it with the last of what interrupted the waiting.

    The first two interrupts are passed on; the third one ends the waiting, and so does the end of the time.
    """
    interrupts = 0
    told: KeyboardInterrupt | None = None
    until = time.monotonic() + seconds
    while True:
        try:
            return process.wait(max(0.0, until - time.monotonic())), told
        except KeyboardInterrupt as error:
            interrupts += 1
            told = error
            if interrupts > 2:
                raise
            if isinstance(error, Terminated):
                process.send_signal(error.signal)
                until = min(until, time.monotonic() + DRAIN_SECONDS + KILL_SECONDS)
            else:
                process.send_signal(signal.SIGINT)
        except subprocess.TimeoutExpired:
            if isinstance(told, Terminated):
                raise told from None
            raise TargetError(f"the load test hung: no end after {seconds:.0f} s") from None


def _listen(stream: IO[str], said: deque[str], progress: Callable[[str], None] | None) -> None:
    with contextlib.suppress(ValueError, OSError):
        for line in stream:
            said.append(line.rstrip())
            match = _SAID.search(line)
            if match and progress is not None:
                with contextlib.suppress(Exception):  # nobody would read on, and Locust would wait for that
                    progress(match[1])


def _explain(code: int, said: deque[str], told: KeyboardInterrupt | None = None) -> None:
    """Raise the error that the exit code stands for; `told` is what we were told, and have passed on."""
    if code == 0:
        return
    if code in _ENDED:
        raise told or _ENDED[code]()
    if code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            hint = ": by hand, or by a system out of memory" if code == -signal.SIGKILL else ""
            raise LeaderKilledError(f"the load test's leader was killed by signal {-code} ({name}{hint})")
    refusals = [match[1] for line in said if (match := _REFUSAL.search(line))]
    for kind in (UsageError, TargetError):
        if refusals and code == kind.exit_code:
            raise kind(refusals[-1])
    raise ProfilerError(f"the load test failed (exit code {code}): {_failure(list(said))}")


def _failure(said: list[str]) -> str:
    """Locust's last complaint, with the exception if it shows one, in one line."""
    for number in reversed(range(len(said))):
        if match := _FAILURE.search(said[number]):
            text = match[1].strip().rstrip(":")
            traceback = itertools.dropwhile(
                lambda line: not line.startswith("Traceback "), said[number + 1 :]
            )
            raised = next(filter(_RAISED.fullmatch, traceback), None)
            return text if raised is None else f"{text}: {raised}"
    return said[-1] if said else "it said nothing"
