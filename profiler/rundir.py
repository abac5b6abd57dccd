"""The run directory: what an experiment leaves on disk, written so that a kill loses nothing.

    run.json       `Run`: the conditions, and every trial that ended; replaced whole after each trial
    records.jsonl  one `LoopRecord` a line, appended as loops finish
    summary.json   written last; everything in it can be computed again from the other two

A run whose `finished` is false was cut short; what its `trials` name is complete all the same.
Records of a trial that `trials` does not name belong to a trial that never ended.

Nothing here names the host, a path, an environment variable or a key.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import orjson

from profiler import records
from profiler.errors import RecordError
from profiler.records import LoopRecord
from profiler.strategies import StrategySpec

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA = 1

RUN, RECORDS, SUMMARY = "run.json", "records.jsonl", "summary.json"

PACKAGES = ("toolcall-profiler", "openai", "anthropic", "httpx", "aiohttp", "locust", "gevent", "uvloop")
"""Distributions whose versions explain a difference between two runs."""

IncidentKind = Literal["worker_lost", "records_dropped", "aborted", "interrupted", "settled", "limited"]


@dataclass(frozen=True, slots=True)
class Anchor:
    """One instant on both clocks: `unix_ns - monotonic_ns` turns a record's time into wall-clock time."""

    unix_ns: int
    monotonic_ns: int

    @classmethod
    def now(cls) -> Self:
        """Both clocks, read together."""
        return cls(unix_ns=time.time_ns(), monotonic_ns=time.monotonic_ns())

    def unix(self, monotonic_ns: int) -> int:
        """Wall-clock nanoseconds of a monotonic time of this machine."""
        return monotonic_ns - self.monotonic_ns + self.unix_ns


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts about the machine that bear on the figures; `memory_bytes` is None where it cannot be read."""

    cores: int
    cpu: str
    memory_bytes: int | None
    os: str
    python: str


@dataclass(frozen=True, slots=True)
class Load:
    """How loops were asked for.

    closed: `users` agents, each starts its next loop `think_seconds` after the last one ended.
    open: arrivals do not wait; `arrivals` is the spec (`5/s`, `constant:5`), `rate` loops per second.
    """

    model: Literal["closed", "open"]
    users: int
    think_seconds: float = 0.0
    arrivals: str | None = None
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """One strategy under one load for one block of time, after it has drained.

    `started_ns` and `ended_ns` bound the window that is measured; loops that started in it were
    waited for until `drained_ns`, when the `interrupted` ones were cut off. All monotonic.
    `arrived`, `late` (had to wait for `--max-in-flight`) and `dropped` (never started) count the
    arrivals of an open load inside the window. `wanted` is how many users were asked for.
    """

    index: int
    block: int
    strategy: str
    users: int
    started_ns: int
    ended_ns: int
    drained_ns: int
    interrupted: int = 0
    arrived: int | None = None
    late: int = 0
    dropped: int = 0
    wanted: int | None = None


@dataclass(frozen=True, slots=True)
class ClientHealth:
    """How one client process fared during one trial (all of them when `trial` is None).

    Lags are 99th percentiles in seconds; `cpu` is the share of one core, 0 to 1 and above for
    threads.
    """

    process: str
    trial: int | None = None
    loop_lag_p99: float | None = None
    schedule_lag_p99: float | None = None
    cpu: float | None = None


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the client alone can do: loops of one round against a server without latency, before the run.

    Rates are of all processes that run loops together; `seconds` is the median of a lone loop, the
    client's own share of every latency.
    """

    agents: int
    loops_per_second: float
    requests_per_second: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that happened to the run and that no record shows. `detail` says it in words."""

    kind: IncidentKind
    detail: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True)
class Spent:
    """What was asked of the model API: warm-ups, attempts that failed and loops cut off included.

    `requests` are attempts; tokens are those that replies name, so attempts that failed add none.
    """

    loops: int = 0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.loops + other.loops,
            self.requests + other.requests,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
        )


@dataclass(frozen=True, slots=True)
class Run:
    """Everything about a run except its records.

    `arguments` are the options it was asked with, secrets left out; `repeat` those of them that are not
    the defaults, as words of a command line (not how many agents, how long and which strategies).
    `workers` is the number of processes that run loops: a process-wide limit of n allows n · workers in
    all. `spent` is up to the last trial that ended.
    """

    scenario: str
    provider: str
    strategies: tuple[StrategySpec, ...]
    load: Load
    seed: int
    anchor: Anchor
    machine: Machine
    versions: dict[str, str]
    arguments: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    workers: int = 1
    trials: tuple[Trial, ...] = ()
    finished: bool = False
    slo: str | None = None
    client: tuple[ClientHealth, ...] = ()
    capacity: Capacity | None = None
    incidents: tuple[Incident, ...] = ()
    spent: Spent | None = None
    repeat: tuple[str, ...] = ()
    schema: int = SCHEMA

    def strategy(self, name: str) -> StrategySpec:
        """The value of a strategy that its records name; unknown for one that was not asked of the run."""
        return next((spec for spec in self.strategies if spec.text == name), StrategySpec(name, "unknown"))


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """A directory that holds one run. One process writes `run.json`; `records.jsonl` is appended to."""

    path: Path

    @classmethod
    def create(cls, parent: Path | str, run: Run) -> Self:
        """A new directory in `parent`, named by the run's wall-clock start (UTC), with `run.json` in it.

        Runs that start within one second get `-2`, `-3`, ... Raises `RecordError` when the
        directory cannot be made.
        """
        stem = time.strftime("%Y%m%d-%H%M%S", time.gmtime(run.anchor.unix_ns / 1e9))
        number = 1
        while True:
            path = Path(parent) / (stem if number == 1 else f"{stem}-{number}")
            try:
                path.mkdir(parents=True)
            except FileExistsError as error:
                if not path.is_dir():  # the parent, or the name itself, is a file
                    raise RecordError(f"{path}: cannot make a run directory: {error.strerror}") from error
                number += 1
            except OSError as error:
                raise RecordError(f"{path}: cannot make a run directory: {error.strerror}") from error
            else:
                break
        directory = cls(path)
        directory.save(run)
        try:
            directory.records_path.touch()
        except OSError as error:
            raise RecordError(f"{directory.records_path}: cannot be written: {error.strerror}") from error
        return directory

    @staticmethod
    def check_parent(parent: Path | str) -> None:
        """Before a run that needs it: raises `RecordError` when no directory can be made in `parent`."""
        path = Path(parent)
        while not os.path.exists(path) and path != path.parent:
            path = path.parent
        wrong = None if path.is_dir() else errno.ENOTDIR
        as_effective_user = os.access in os.supports_effective_ids
        if wrong is None and not os.access(path, os.W_OK | os.X_OK, effective_ids=as_effective_user):
            wrong = errno.EACCES
        if wrong is not None:
            raise RecordError(f"{parent}: cannot make a run directory: {os.strerror(wrong)}")

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """An existing run directory. Raises `RecordError` when there is no `run.json` in it."""
        directory = cls(Path(path))
        if not (directory.path / RUN).is_file():
            raise RecordError(f"{path}: not a run directory: it has no {RUN}")
        return directory

    @property
    def records_path(self) -> Path:
        """Where loop records are appended, one a line."""
        return self.path / RECORDS

    @property
    def summary_path(self) -> Path:
        """Where the summary is, once there is one."""
        return self.path / SUMMARY

    def save(self, run: Run) -> None:
        """Replace `run.json` in one step: a reader, or a kill, sees the old one or the new one."""
        _replace(self.path / RUN, encode_run(run))

    def save_summary(self, summary: object) -> None:
        """Replace `summary.json` in one step. `summary` is a dataclass or plain JSON data."""
        _replace(self.summary_path, orjson.dumps(summary, option=orjson.OPT_INDENT_2))

    def load(self) -> Run:
        """What `run.json` holds. Raises `RecordError` naming file and key."""
        return decode(_read(self.path / RUN), str(self.path / RUN))

    def remove_if_unused(self) -> bool:
        """Remove the directory, if all it says is what was asked for; whether it did.

        Loops, trials, incidents and what a run spent are what it keeps; first loops alone are none.
        Raises nothing: what cannot be removed stays.
        """
        with contextlib.suppress(OSError, RecordError):
            run = self.load()
            said = run.trials or run.incidents or run.spent or run.client
            if not said and self.records_path.stat().st_size == 0:
                shutil.rmtree(self.path)
                return True
        return False

    def records(self) -> Iterator[LoopRecord]:
        """The records, streamed; a torn last line is left out. Raises `RecordError` with file and line."""
        return records.read(self.records_path)


def encode_run(run: Run) -> bytes:
    """`run.json`: the fields of a `Run`, strategies as text."""
    shown = {one.name: getattr(run, one.name) for one in fields(run)}
    shown["strategies"] = [spec.text for spec in run.strategies]
    return orjson.dumps(shown, option=orjson.OPT_INDENT_2)


def decode(data: bytes, source: str = RUN) -> Run:
    """`Run` from JSON; keys of a later version are ignored.

    Raises `RecordError` naming `source`, the line or the key, and what was expected.
    """
    parsed = parse(data, source)
    schema = parsed.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise RecordError(
            f"{source}: run of schema {schema}, but this version reads up to {SCHEMA}: "
            "upgrade toolcall-profiler"
        )
    from pydantic import ValidationError

    try:
        run: Run = _adapter().validate_python(parsed)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{source}: key {key}: {first['msg']}") from error
    return run


def parse(data: bytes, source: str) -> dict[str, Any]:
    """A JSON object. Raises `RecordError` naming `source` and the line."""
    try:
        parsed = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise RecordError(f"{source}:{error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(parsed, dict):
        raise RecordError(f"{source}: expected a JSON object, found {type(parsed).__name__}")
    return parsed


def machine() -> Machine:
    """Facts about this machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        memory = None
    return Machine(
        cores=cores,
        cpu=_cpu_model(),
        memory_bytes=memory,
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
    )


def versions() -> dict[str, str]:
    """Installed versions of `PACKAGES`; what is not installed is left out."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() in ("model name", "Model", "cpu model"):
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error


def _replace(path: Path, data: bytes) -> None:
    # No fsync: a kill cannot tear it, and the process that measures must not wait for a busy disk.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data + b"\n")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RecordError(f"{path}: cannot be written: {error.strerror}") from error


@functools.cache
def _adapter() -> TypeAdapter[Run]:
    from pydantic import TypeAdapter

    return TypeAdapter(Run)


# How far a load test is: one line a second in `progress.jsonl` of its run directory.
#
# For live views, which read the file as it grows. Nothing here is a result: those come from the records.

PROGRESS = "progress.jsonl"

State = Literal["preparing", "ramping", "measuring", "draining", "finished"]


@dataclass(frozen=True, slots=True)
class Progress:
    """One moment of a run. Counts are of the trial under way, over all workers.

    `trial` counts from 1, of `trials` (None: until stopped); `block` of `blocks` likewise.
    `seconds_left` is an estimate for the whole run, None when there is no end. `failures` are loops
    that did not finish with every call answered, `rate_limited` attempts that a quota refused.
    `lag_seconds` is the worst event-loop lag of the last second. `directory` is the run's, filled
    in by `Follower`, which knows it: a view may want to look at the records too.
    """

    unix: float
    state: State
    strategy: str = ""
    users: int = 0
    trial: int = 0
    trials: int | None = None
    block: int = 0
    blocks: int | None = None
    elapsed_seconds: float = 0.0
    seconds_left: float | None = None
    loops: int = 0
    failures: int = 0
    rate_limited: int = 0
    in_flight: int = 0
    waiting: int = 0
    lag_seconds: float = 0.0
    directory: str | None = None


def encode(progress: Progress) -> bytes:
    """One line, with its newline."""
    return orjson.dumps(progress, option=orjson.OPT_APPEND_NEWLINE)


def appended(path: Path, offset: int, most: int = -1) -> tuple[list[bytes], int]:
    """(the complete lines of a growing file from `offset` on, the offset after them).

    At most `most` bytes of them, but at least one line. A file that cannot be read has no lines.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(most)
            if b"\n" not in data:
                data += file.readline()
    except OSError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return whole.splitlines(), offset + len(whole)


class Follower:
    """Reads the progress of a run as it is written."""

    def __init__(self, directory: Path | str) -> None:
        self._path = Path(directory) / PROGRESS
        self._offset = 0

    def new(self) -> Iterator[Progress]:
        """The lines that are complete and were not seen yet."""
        lines, self._offset = appended(self._path, self._offset)
        for line in lines:
            yield Progress(**{**orjson.loads(line), "directory": str(self._path.parent)})
