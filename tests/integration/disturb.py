"""A Locust master and three workers, disturbed: what has to hold afterwards, by the emulator's journal.

Processes are killed or stopped for a while, connections between a worker and its master are cut or stand
still, the target stands still. The truth is the emulator's own: which loops began and ended, and when, from
a process that knows nothing of records, workers or leases.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import selectors
import signal
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from profiler import cli
from profiler.emulator.process import start_emulator
from profiler.load.plan import NUMBERS_PER_PART
from profiler.process.ports import free_port
from profiler.records import LoopRecord
from profiler.rundir import Run, RunDirectory
from tests.integration.kill import LEAVE_SECONDS, OWED_NS, SCENARIO, journal, judging
from tests.integration.locust_process import Locust, locust, wait_until

Kind = Literal["kill", "stop", "cut", "silence", "stop_master", "kill_master", "stop_target"]

KINDS: tuple[Kind, ...] = ("kill", "stop", "cut", "silence", "stop_master", "kill_master", "stop_target")

WORKERS, USERS = 3, 12
MOST_AGENTS = USERS // 2
"""Of one worker, when another one is gone."""

STRATEGIES = ("gathered", "semaphore:2", "sequential")
TRIAL_SECONDS = 5

LAPSE_NS = 4_000_000_000
"""After so long without its leader a worker has begun nothing more, wherever in a beat that began."""

LOST_SECONDS = 6.5
"""So long a worker is not heard when it is taken for lost: Locust needs 4 to 5 s."""

BOUND_SECONDS = 90.0
"""A round without disturbance takes 25 s; an answer to the end of a trial is waited for up to 15 s more."""


@dataclass(frozen=True, slots=True)
class Event:
    """`kind` happens `after` seconds from the first record, to `worker` if to one, and lasts `seconds`."""

    kind: Kind
    after: float
    worker: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        who = f" {self.worker}" if self.kind in ("kill", "stop", "cut", "silence") else ""
        return f"{self.after:.1f} {self.kind}{who}" + (f" {self.seconds:.1f} s" if self.seconds else "")


def schedule(draw: random.Random) -> tuple[Event, ...]:
    """One to three events. Of three workers at most two are disturbed, so that somebody is left."""
    workers = draw.sample(range(WORKERS), 2)
    events = []
    for number in range(draw.randint(1, 3)):
        kind = draw.choices(KINDS, (4, 6, 4, 3, 2, 1, 2))[0]
        seconds = 0.0
        if kind in ("stop", "silence"):
            seconds = draw.choice((1.0, 3.5, 7.0, 9.0))
        elif kind in ("stop_master", "stop_target"):
            seconds = draw.choice((1.0, 2.5, 6.0))
        events.append(Event(kind, draw.uniform(0.5, 9.0), workers[number % 2], seconds))
    return tuple(sorted(events, key=lambda event: event.after))


@dataclass(frozen=True, slots=True)
class Round:
    """What became of one round, in numbers of loops; `wrong` in words."""

    events: tuple[Event, ...]
    code: int | None
    begun: int
    recorded: int
    in_flight: int
    most: int
    incidents: tuple[str, ...]
    said: str
    wrong: tuple[str, ...]


class Proxy:
    """Passes a TCP connection on to `port`; may `cut` what goes through it, or hold it up."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._passes = threading.Event()
        self._passes.set()
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Close every connection; later ones are passed on again."""
        pairs, self._pairs = self._pairs, []
        for one in (one for pair in pairs for one in pair):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def hold(self, held: bool) -> None:
        """Pass nothing on from now on, or go on with what has come."""
        (self._passes.clear if held else self._passes.set)()

    def close(self) -> None:
        self._closed = True
        self._passes.set()
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                try:
                    there = socket.create_connection(("127.0.0.1", self._to), 10)
                except OSError:
                    here.close()
                    continue
                there.settimeout(None)
                self._pairs.append((here, there))
                threading.Thread(target=self._carry, args=(here, there), daemon=True).start()

    def _carry(self, here: socket.socket, there: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), selectors.DefaultSelector() as ready, here, there:
            other = {here: there, there: here}
            for one in other:
                ready.register(one, selectors.EVENT_READ)
            while not self._closed:
                for key, _ in ready.select(0.2):
                    self._passes.wait()
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    if not data:
                        return
                    other[key.fileobj].sendall(data)  # type: ignore[index]


@dataclass
class _Disturbed:
    """Who was disturbed, and when, in monotonic nanoseconds. Workers by their index in `pids`."""

    pids: list[int]
    lost: dict[int, int] = field(default_factory=dict)  # worker → since when it may have lost loops
    stood: list[tuple[int, int, int]] = field(default_factory=list)  # worker, from, to: not heard meanwhile
    master: int | None = None
    deaf: list[tuple[int, int]] = field(default_factory=list)  # the master was stopped
    running: set[int] = field(default_factory=set)  # workers that ran on when they were not heard


def disturb_one(path: Path, events: tuple[Event, ...]) -> Round:
    """Run a load test in `path`, disturbed so. Everything is gone when it returns."""
    path.mkdir(parents=True, exist_ok=True)
    scenario = path / "quick.toml"
    scenario.write_text(SCENARIO)
    wrong: list[str] = []
    with contextlib.ExitStack() as stack:
        processes = stack.enter_context(locust(path))
        emulator = stack.enter_context(start_emulator(str(scenario)))
        port = free_port()
        proxies = [Proxy(port) for _ in range(WORKERS)]
        for proxy in proxies:
            stack.callback(proxy.close)
        master = processes.start(
            *("--master", "--headless", "--expect-workers", str(WORKERS), "-u", str(USERS), "-r", str(USERS)),
            *("--master-bind-host", "127.0.0.1", "--master-bind-port", str(port), "--no-metrics"),
            *(f"--strategy={spec}" for spec in STRATEGIES),
            *("--trial-seconds", str(TRIAL_SECONDS), "--blocks", "1", "--base-url", emulator.url),
            *("--scenario", str(scenario)),
        )
        for proxy in proxies:
            processes.start("--worker", "--master-host", "127.0.0.1", "--master-port", str(proxy.port))
        said = _listen(processes)
        runs = path / "runs"
        if not wait_until(lambda: any(f.stat().st_size for f in runs.glob("*/records.jsonl")), 90):
            return Round(events, None, 0, 0, 0, 0, (), said(), ("it never began",))
        disturbed = _Disturbed([process.pid for process in processes.started[1:]])
        _play(events, processes, proxies, emulator.pid, disturbed)
        code = None
        if wait_until(lambda: master.poll() is not None, BOUND_SECONDS):
            code = master.returncode
        else:
            wrong.append(f"no end within {BOUND_SECONDS:g} s")
        if not wait_until(lambda: not processes.left(), LEAVE_SECONDS):
            wrong.append(f"{len(processes.left())} processes left behind")
        entries = journal(emulator.url)
        words = said()
    if "Traceback" in words:
        wrong.append("a traceback")
    with judging:
        return _judge(path, events, disturbed, code, entries, words, wrong)


def _play(
    events: tuple[Event, ...], processes: Locust, proxies: list[Proxy], target: int, disturbed: _Disturbed
) -> None:
    """Let the events happen, each in a thread of its own: some last."""
    master, *workers = (process.pid for process in processes.started)
    begun = time.monotonic()

    def happen(event: Event) -> None:
        time.sleep(max(0.0, begun + event.after - time.monotonic()))
        at, worker = time.monotonic_ns(), event.worker
        pid = {"stop_master": master, "kill_master": master, "stop_target": target}.get(
            event.kind, workers[worker]
        )
        if event.kind in ("kill", "kill_master"):
            _signal(pid, signal.SIGKILL)
        elif event.kind == "cut":
            proxies[worker].cut()
        elif event.kind == "silence":
            proxies[worker].hold(True)
            time.sleep(event.seconds)
            proxies[worker].hold(False)
        else:
            _signal(pid, signal.SIGSTOP)
            time.sleep(event.seconds)
            _signal(pid, signal.SIGCONT)
        if event.kind == "silence":
            disturbed.running.add(worker)
        if event.kind == "kill_master":
            disturbed.master = at
        if event.kind == "stop_master":
            disturbed.deaf.append((at, time.monotonic_ns()))
        if event.kind in ("kill", "cut") or (event.kind in ("stop", "silence") and event.seconds > 3.0):
            disturbed.lost[worker] = min(at, disturbed.lost.get(worker, at))
        if event.kind in ("stop", "silence"):
            disturbed.stood.append((worker, at, time.monotonic_ns()))

    threads = [threading.Thread(target=happen, args=(event,)) for event in events]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _listen(processes: Locust) -> Any:
    """Read what they say, so that none waits for a full pipe; a function that returns all of it."""
    said: list[list[str]] = [[] for _ in processes.started]

    def read(stream: Any, lines: list[str]) -> None:
        with contextlib.suppress(ValueError, OSError):
            lines.extend(stream)

    threads = []
    for process, lines in zip(processes.started, said, strict=True):
        threads.append(threading.Thread(target=read, args=(process.stdout, lines), daemon=True))
        threads[-1].start()

    def everything() -> str:
        for thread in threads:
            thread.join(5)
        return "".join(f"--- {'worker' if i else 'master'}\n" + "".join(one) for i, one in enumerate(said))

    return everything


@dataclass(slots=True)
class _Loop:
    """A loop as the emulator saw it: from its first request to the end of its last reply."""

    began_ns: int
    ended_ns: int = 0
    answered_ns: int | None = None


def _loops(entries: list[dict[str, Any]]) -> dict[tuple[int, int], _Loop]:
    """By (trial, number)."""
    found: dict[tuple[int, int], _Loop] = {}
    for entry in entries:
        if entry["trial"] is None or not entry["trial"].isdigit():
            continue
        key = (int(entry["trial"]), entry["loop"])
        loop = found.setdefault(key, _Loop(entry["received_ns"]))
        loop.began_ns = min(loop.began_ns, entry["received_ns"])
        loop.ended_ns = max(loop.ended_ns, entry["finished_ns"])
        if entry["round"] == 1 and entry["status"] == 200 and entry["outcome"] == "complete":
            loop.answered_ns = entry["finished_ns"]
    return found


def _judge(
    path: Path,
    events: tuple[Event, ...],
    disturbed: _Disturbed,
    code: int | None,
    entries: list[dict[str, Any]],
    said: str,
    wrong: list[str],
) -> Round:
    begun = _loops(entries)
    run, records = None, []
    try:
        (directory,) = (RunDirectory.open(one) for one in (path / "runs").iterdir())
        run, records = directory.load(), list(directory.records())
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
            if cli.main(["report", str(directory.path)]) != 0:
                wrong.append(f"report: {errors.getvalue().strip()}")
    except Exception as error:
        wrong.append(f"cannot be opened: {error}")
    kept = {(record.trial, record.number) for record in records if record.trial is not None}
    missing = {key: loop for key, loop in begun.items() if key not in kept}
    wrong += _unaccounted(kept, begun, missing, records, disturbed)
    most = _most(loop for key, loop in begun.items() if key in kept)
    if most > USERS:
        wrong.append(f"{most} loops in flight at once, not counting those of lost workers")
    incidents: tuple[str, ...] = ()
    if run is not None:
        incidents = tuple(incident.kind for incident in run.incidents)
        wrong += _told(run, events, disturbed, code)
    return Round(events, code, len(begun), len(kept), len(missing), most, incidents, said, tuple(wrong))


def _unaccounted(
    kept: set[tuple[int, int]],
    begun: dict[tuple[int, int], _Loop],
    missing: dict[tuple[int, int], _Loop],
    records: list[LoopRecord],
    disturbed: _Disturbed,
) -> Iterator[str]:
    """Every loop that began is recorded, but for those in flight on a worker that was lost, or just ended."""
    if len(kept) != len([record for record in records if record.trial is not None]):
        yield "loops that are recorded twice"
    if unknown := len(kept - begun.keys()):
        yield f"{unknown} loops recorded that never began"
    takers = _takers(records, disturbed.pids)
    excused: Counter[str] = Counter()
    for (trial, number), loop in missing.items():
        worker = takers(trial, number)
        # Not known: of one that recorded nothing in this trial.
        whose = disturbed.lost.values() if worker is None else [disturbed.lost.get(worker)]
        since = min((at for at in (*whose, disturbed.master) if at is not None), default=None)
        if since is not None:  # what a master that is stopped has not read goes with the connection
            since = min([since, *(start for start, end in disturbed.deaf if start < since < end)])
        if since is None:
            excused[f"of worker {worker}, which was not disturbed"] += 1
        elif loop.answered_ns is not None and loop.answered_ns < since - OWED_NS:
            excused[f"of worker {worker} that had ended a second before it was disturbed"] += 1
    for why, count in excused.items():
        yield f"{count} loops are missing {why}"
    late: Counter[int] = Counter()
    for (trial, number), loop in begun.items():
        for worker, since, until in disturbed.stood:
            heard_again = until + LAPSE_NS
            if (until - since) / 1e9 >= LOST_SECONDS and takers(trial, number) == worker:
                late[worker] += since + LAPSE_NS < loop.began_ns < heard_again
    for worker, count in late.items():
        # A process may be stopped between the beginning of a loop and its first request.
        if count > (0 if worker in disturbed.running else MOST_AGENTS):
            yield f"{count} loops begun by worker {worker}, whose place others had taken"


def _takers(records: list[LoopRecord], pids: list[int]) -> Any:
    """A function that tells which worker took an entry of a trial's tape, by `number`; None: not known.

    Of W workers that a trial begins with each takes the entries of one residue modulo W.
    """
    shares: dict[int, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        match = re.search(r"\(pid (\d+)\)", record.process or "")
        if record.trial is not None and match:
            worker = pids.index(int(match[1]))
            shares[record.trial][worker].add(record.number % NUMBERS_PER_PART)

    def taker(trial: int, number: int) -> int | None:
        for workers in range(WORKERS, 0, -1):
            residues = {
                worker: {one % workers for one in numbers} for worker, numbers in shares[trial].items()
            }
            if all(len(one) == 1 for one in residues.values()):
                same = [w for w, one in residues.items() if number % NUMBERS_PER_PART % workers in one]
                return same[0] if len(same) == 1 else None
        return None

    return taker


def _most(loops: Iterator[_Loop]) -> int:
    """The most of these that were in flight at one time."""
    changes = sorted(change for loop in loops for change in ((loop.began_ns, 1), (loop.ended_ns, -1)))
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def _told(run: Run, events: tuple[Event, ...], disturbed: _Disturbed, code: int | None) -> Iterator[str]:
    """What the run says of itself."""
    if too_many := [trial.users for trial in run.trials if trial.users > USERS]:
        yield f"trials of {too_many} agents"
    if disturbed.master is not None:
        if run.finished and code not in (0, None):
            yield "calls itself finished"
        return
    kinds = {incident.kind for incident in run.incidents}
    if code != 0:
        yield f"exit code {code}"
    if not run.finished or len(run.trials) != len(STRATEGIES):
        yield f"{len(run.trials)} trials, finished: {run.finished}"
    ends = max((trial.ended_ns for trial in run.trials), default=0)
    for worker, since in disturbed.lost.items():
        stays = [e.seconds for e in events if e.worker == worker and e.kind in ("stop", "silence")]
        surely = not stays or max(stays) >= LOST_SECONDS
        if surely and since + int(LOST_SECONDS * 1e9) < ends and "worker_lost" not in kinds:
            yield f"worker {worker} was lost, and that is not said"
