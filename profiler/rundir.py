"""The run directory of an experiment, written so that a kill loses nothing.

    run.json        `Run`: the conditions, and every trial that ended; replaced whole after each trial
    records.jsonl   one `LoopRecord` a line, appended as loops finish
    progress.jsonl  one `Progress` a second, for live views; nothing in it is a result
    summary.json    written last; everything in it can be computed again from run.json and the records
    prediction.json how well the run predicts itself, where that was asked for

A run whose `finished` is false was cut short, but the trials named in `trials` are complete. Records of
a trial not named there belong to one that never ended.

Nothing here names the host, a path, an environment variable or a key.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.metadata
import itertools
import operator
import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import orjson

from profiler import records
from profiler.errors import RecordError
from profiler.process.modes import OWNERS_DIRECTORY, opener_like
from profiler.records import LoopRecord
from profiler.strategies import StrategySpec

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

SCHEMA = 1

RUN, RECORDS, PROGRESS, SUMMARY = "run.json", "records.jsonl", "progress.jsonl", "summary.json"
PREDICTION = "prediction.json"

PACKAGES = ("toolcall-profiler", "openai", "anthropic", "httpx", "aiohttp", "locust", "gevent", "uvloop")
"""Distributions whose versions may explain a difference between two runs."""

IncidentKind = Literal[
    "worker_lost",
    "worker_returned",
    "target_stood_still",
    "records_dropped",
    "server_lost",
    "aborted",
    "interrupted",
    "terminated",
    "settled",
    "limited",
    "out_of_time",
]

DRAWN_ARGUMENTS = "drawn_arguments"
"""In `Run.arguments` of a run without a model: whether those of its calls were drawn from the schemas."""


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
    """Facts about the machine that matter for the figures; `memory_bytes` is None when unknown."""

    cores: int
    cpu: str
    memory_bytes: int | None
    os: str
    python: str


@dataclass(frozen=True, slots=True)
class Load:
    """How loops are started.

    recorded: whatever another program did; `users` is 0.
    closed: `users` agents, each starts its next loop `think_seconds` after the last one ended.
    open: loops arrive whether or not earlier ones have ended; `arrivals` is the spec (`5/s`,
    `constant:5`), `rate` the loops per second.
    """

    model: Literal["closed", "open", "recorded"]
    users: int
    think_seconds: float = 0.0
    arrivals: str | None = None
    rate: float | None = None

    def rate_of(self, users: int) -> float | None:
        """Loops per second that `users` of its agents make together; None in a closed load."""
        if self.model != "open" or self.rate is None or not self.users:
            return None
        return self.rate / self.users * users


@dataclass(frozen=True, slots=True)
class Trial:
    """One strategy under one load for one block of time, after it has drained.

    `started_ns` and `ended_ns` bound the measured window. Loops that started in it were waited for
    until `drained_ns`, when those still running were cut off (`interrupted` counts them). All times
    are monotonic. `arrived`, `late` (had to wait for `--max-in-flight`) and `dropped` (never started)
    count the arrivals of an open load inside the window. `wanted` is the number of users asked for.
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
    """How busy one client process was during one trial, or during all of them (`trial` None).

    Lags are 99th and 95th percentiles in seconds, `seconds` is how long was measured, `cpu` the share of one
    core, above 1 with several threads. None: not known.

    Seconds of the trial, of a process that runs loops: for which the lag of its event loop was its own code's
    (`held_seconds`) or the machine's (`machine_seconds`), summed over samples; for which the event loop's
    thread was ready and did not run (`delayed_seconds`), and its container's quota kept its threads from
    running (`throttled_seconds`). Shares of the trial: in which something on the machine waited for a
    processor (`waited`), and of a processor's time that the host kept from the machine (`stolen`).
    """

    process: str
    trial: int | None = None
    loop_lag_p99: float | None = None
    schedule_lag_p99: float | None = None
    cpu: float | None = None
    held_seconds: float | None = None
    machine_seconds: float | None = None
    delayed_seconds: float | None = None
    throttled_seconds: float | None = None
    waited: float | None = None
    stolen: float | None = None
    schedule_lag_p95: float | None = None
    seconds: float | None = None

    @property
    def cpu_seconds(self) -> float | None:
        """CPU time in the trial."""
        return None if self.cpu is None or self.seconds is None else self.cpu * self.seconds

    @property
    def delayed_share(self) -> float | None:
        """The share of the trial for which the event loop's thread was ready and did not run."""
        return (
            None if self.delayed_seconds is None or not self.seconds else self.delayed_seconds / self.seconds
        )


@dataclass(frozen=True, slots=True)
class ClientCapacity:
    """The client's own speed, measured before the run with one-round loops on a server without latency.

    Rates are those of all processes together; `seconds` is the median duration of a loop that runs
    alone, which is the client's own part of every latency. `request_cpu`: by client (`sdk`, `lean`), the
    seconds of CPU that one request to a model takes through it; of those that were measured.
    """

    agents: int
    loops_per_second: float
    requests_per_second: float
    seconds: float
    request_cpu: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that happened to the run and is in no record. `detail` says it in words."""

    kind: IncidentKind
    detail: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True)
class Spent:
    """Requests to the model API and their tokens, including warm-ups, failed attempts and loops cut off.

    `requests` counts attempts; tokens are those that replies report, so failed attempts add none. What they
    mean is said at `records.ModelCall`: of the input, `cached_tokens` were read from the provider's cache
    and `cache_written_tokens` written to it (`cache_written_1h_tokens` for an hour); of the output,
    `reasoning_tokens` were reasoning. Of the model requests, `replies` came to a reply, and `unknown_replies`
    of those did not say all of their tokens.
    """

    loops: int = 0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_written_tokens: int = 0
    reasoning_tokens: int = 0
    replies: int = 0
    unknown_replies: int = 0
    cache_written_1h_tokens: int = 0

    @property
    def uncached_tokens(self) -> int:
        """The input tokens that were neither read from the cache nor written to it, so far as is known."""
        return max(0, self.input_tokens - self.cached_tokens - self.cache_written_tokens)

    @property
    def asked(self) -> str:
        """`503 requests, 400,000 tokens in (1,000 cached), 51,000 out`, and how many are not known."""
        parts = {"cached": self.cached_tokens, "written to the cache": self.cache_written_tokens}
        of_input = ", ".join(f"{count:,} {words}" for words, count in parts.items() if count)
        text = f"{self.requests:,} requests, {self.input_tokens:,} tokens in"
        text += f" ({of_input}), " if of_input else ", "
        text += f"{self.output_tokens:,} out"
        if self.reasoning_tokens:
            text += f" ({self.reasoning_tokens:,} of reasoning)"
        if self.unknown_replies:
            text += f"; tokens of {self.unknown_replies:,} of {self.replies:,} replies are not known"
        return text

    def __add__(self, other: Spent) -> Spent:
        return Spent(*map(operator.add, _counts_of(self), _counts_of(other)))


_counts_of = operator.attrgetter(*(one.name for one in fields(Spent)))


CheckOutcome = Literal["heeded", "not_heeded", "not_told", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """What the first loop of a user's agent showed before the load: under one strategy, or ("") under all.

    `detail` says it in words, with the place in the user's code; `remedy` what to do about it. A `problem` is
    about something else than whether the strategy was heeded.
    """

    strategy: str
    outcome: CheckOutcome
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        said = f"{self.strategy}: {self.detail}" if self.strategy else self.detail
        return f"{said}; {self.remedy}" if self.remedy else said


@dataclass(frozen=True, slots=True)
class McpServer:
    """An MCP server of `--mcp`, and its tools: those that the loop was `offered`, by the names that the model
    sees, and those `withheld`, since they do not declare themselves read-only.

    `address` is its URL or command without keys, `protocol` the version that both speak, `title` and
    `version` what it says of itself. `renamed`: of those offered, the name that the model sees → its own.
    """

    name: str
    transport: Literal["http", "stdio"]
    address: str
    protocol: str = ""
    title: str = ""
    version: str = ""
    offered: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def emulated(self) -> bool:
        """It is our emulator (`profiler.mcp.session.EMULATOR`)."""
        return self.title == "toolcall-profiler-emulator"


Door = Literal["import", "collect", "proxy"]
"""How what another program did came to be recorded: from its files, its spans, or its requests."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What a run's records were made from, where another program than this one made the calls.

    `read` counts what came, by the format it was in (spans, lines or requests); `skipped` counts what of it
    is in no record, by the reason in words. `exact`, `derived`, `upper_bounds`, `never_ended` and
    `never_started` count tool calls by what is known of their durations; together they are all calls.
    `clamped` durations were negative, by a clock that was set back, and are 0. `resolution_ns` is the
    coarsest tick of its times, `clocks` the number of machines or processes whose clocks they are of.
    `sampled` is the share of all traces that was kept, where that is known; None where nothing was said of
    it. `notes` are what else a reader has to know, in words.
    """

    door: Door
    read: dict[str, int] = field(default_factory=dict, hash=False)
    skipped: dict[str, int] = field(default_factory=dict, hash=False)
    exact: int = 0
    derived: int = 0
    upper_bounds: int = 0
    never_ended: int = 0
    never_started: int = 0
    clamped: int = 0
    resolution_ns: int = 1
    clocks: int = 1
    sampled: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """Everything about a run except its records.

    `arguments` are its options, secrets left out; `repeat` those that differ from the defaults, as
    words of a command line (without the number of agents, the duration and the strategies).
    `workers` is the number of processes that run loops: a process-wide limit of n allows n · workers
    in all. `spent` is up to the last trial that ended, `loop_seconds` what a loop was thought to take before
    the load, `checks` what the first loops of a user's agent showed then, `mcp_servers` whose tools the loops
    had. `recording` is there when the loops are those of another program: such a run has no strategies, no
    trials and no load of ours.
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
    capacity: ClientCapacity | None = None
    incidents: tuple[Incident, ...] = ()
    spent: Spent | None = None
    repeat: tuple[str, ...] = ()
    loop_seconds: float | None = None
    checks: tuple[Check, ...] = ()
    mcp_servers: tuple[McpServer, ...] = ()
    recording: Recording | None = None
    schema: int = SCHEMA

    def strategy(self, name: str) -> StrategySpec:
        """The strategy that records call `name`; of kind `unknown` when the run did not ask for it."""
        return next((spec for spec in self.strategies if spec.text == name), StrategySpec(name, "unknown"))


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """A directory that holds one run. One process writes `run.json`; `records.jsonl` is appended to."""

    path: Path

    @classmethod
    def create(cls, parent: Path | str, run: Run) -> Self:
        """A new directory in `parent`, named by the run's wall-clock start (UTC), with `run.json` in it.

        Runs that start within one second get `-2`, `-3`, ... Where content is recorded, the directory and
        all that is ever put into it are the owner's alone. Raises `RecordError` when it cannot be made.
        """
        mode = OWNERS_DIRECTORY if run.arguments.get("record_content") else 0o777
        stem = time.strftime("%Y%m%d-%H%M%S", time.gmtime(run.anchor.unix_ns / 1e9))
        for number in itertools.count(1):
            path = Path(parent) / (stem if number == 1 else f"{stem}-{number}")
            try:
                path.mkdir(mode, parents=True)  # those above it get the usual mode
                break
            except OSError as error:
                # The parent, or the name itself, may be a file; an existing directory is another run's.
                if not (isinstance(error, FileExistsError) and path.is_dir()):
                    raise RecordError(f"{path}: cannot make a run directory: {error.strerror}") from error
        directory = cls(path)
        try:
            # In this order: by `run.json` others know a run directory, and they read its records at once.
            with _failing(directory.records_path, "cannot be written"):
                open(directory.records_path, "ab", opener=opener_like(path)).close()
            directory.save(run)
        except BaseException:  # nobody else knows of it yet
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):  # for want of files to open, rmtree removes nothing
                path.rmdir()
            raise
        return directory

    @staticmethod
    def check_parent(parent: Path | str) -> None:
        """Raises `RecordError` when no run directory can be made in `parent`; asked before a run starts."""
        path = Path(parent)
        while not os.path.exists(path) and path != path.parent:
            path = path.parent
        wrong = None if path.is_dir() else errno.ENOTDIR
        as_effective_user = os.access in os.supports_effective_ids
        if wrong is None and not os.access(path, os.W_OK | os.X_OK, effective_ids=as_effective_user):
            wrong = errno.EACCES
        if wrong is not None:
            raise RecordError(f"{parent}: cannot make a run directory: {os.strerror(wrong)}")

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether it is a run directory, though perhaps a broken one: opening it then says so."""
        if not path.is_dir():
            return False
        try:
            return not {RUN, PROGRESS}.isdisjoint(os.listdir(path))
        except OSError:
            return True

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """An existing run directory. Raises `RecordError` when there is no `run.json` in it."""
        directory = cls(Path(path))
        if not (directory.path / RUN).is_file():
            raise RecordError(f"{path}: not a run directory: it has no {RUN}")
        return directory

    @property
    def records_path(self) -> Path:
        return self.path / RECORDS

    @property
    def summary_path(self) -> Path:
        return self.path / SUMMARY

    @property
    def prediction_path(self) -> Path:
        return self.path / PREDICTION

    def save(self, run: Run) -> None:
        """Replace `run.json` in one step: a reader, or a kill, sees the old one or the new one."""
        shown = {one.name: getattr(run, one.name) for one in fields(run)}
        shown["strategies"] = [spec.text for spec in run.strategies]
        _replace(self.path / RUN, shown)

    def save_summary(self, summary: object) -> None:
        """Replace `summary.json` in one step. `summary` is a dataclass or plain JSON data."""
        _replace(self.summary_path, summary)

    def save_prediction(self, checked: object) -> None:
        """Replace `prediction.json` in one step. `checked` is a dataclass or plain JSON data."""
        _replace(self.prediction_path, checked)

    def load(self) -> Run:
        """The run that `run.json` holds. Raises `RecordError` naming file and key."""
        path = self.path / RUN
        with _failing(path, "cannot be read"):
            data = path.read_bytes()
        return decode(Run, data, str(path), SCHEMA)

    def remove_if_unused(self) -> bool:
        """Remove the directory when it holds nothing but what was asked for; returns whether it did.

        A loop, a trial, an incident or anything spent is reason to keep it. Raises nothing: a
        directory that cannot be removed stays.
        """
        with contextlib.suppress(OSError, RecordError):
            run = self.load()
            used = run.trials or run.incidents or run.spent or run.client
            if not used and self.records_path.stat().st_size == 0:
                shutil.rmtree(self.path)
                return True
        return False

    def ended_by(self, error_type: str) -> int:
        """How many loops ended with this error type. Lines without the word are not looked at."""
        word = orjson.dumps(error_type)
        found = 0
        with contextlib.suppress(OSError), open(self.records_path, "rb") as file:
            for line in file:
                if word in line:
                    with contextlib.suppress(orjson.JSONDecodeError):  # the last one may be half written
                        record = orjson.loads(line)
                        found += isinstance(record, dict) and record.get("error_type") == error_type
        return found

    def records(self) -> Iterator[LoopRecord]:
        """The records, streamed (`profiler.records.read`). Raises `RecordError` with file and line."""
        return records.read(self.records_path)


def decode(kind: type[T], data: bytes, source: str, newest: int) -> T:
    """A `Run` or `Summary` from JSON of schema `newest` at most; unknown keys are ignored.

    Raises `RecordError` naming `source`, the line or the key, and what was expected.
    """
    try:
        parsed = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise RecordError(f"{source}:{error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(parsed, dict):
        raise RecordError(f"{source}: expected a JSON object, found {type(parsed).__name__}")
    schema = parsed.get("schema")
    if isinstance(schema, int) and schema > newest:
        raise records.later_schema(f"{source}: {kind.__name__.lower()}", schema, newest)
    from pydantic import ValidationError

    try:
        read: T = _reader(kind).validate_python(parsed)  # type: ignore[arg-type]  # classes are hashable
    except ValidationError as error:
        key, problem = _first_problem(error)
        raise RecordError(f"{source}: key {key}: {problem}") from error
    return read


@functools.cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def recorded_run(recording: Recording, anchor: Anchor, title: str, **more: Any) -> Run:
    """The run of a recording; `title` is shown where the scenario of a load test would be.

    `more` are other fields of `Run`: its `model` and `provider` where all loops have the same, `arguments`,
    `finished`.
    """
    filled = {"provider": "", "machine": machine(), "versions": versions(), "seed": 0, **more}
    load = Load("recorded", 0)
    return Run(scenario=title, strategies=(), load=load, anchor=anchor, recording=recording, **filled)


def machine() -> Machine:
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
    """Versions of those of `PACKAGES` that are installed."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _cpu_model() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "cpu model"):
                return value.strip()
    return platform.processor() or platform.machine()


def _first_problem(error: ValidationError) -> tuple[str, str]:
    """Where the first problem is (keys and indices joined by dots), and what it is."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return ".".join(str(part) for part in first["loc"]), first["msg"]


def _replace(path: Path, content: object) -> None:
    # No fsync: a kill cannot tear it, and the process that measures must not wait for a busy disk.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with _failing(path, "cannot be written"):
        try:
            with open(temporary, "wb", opener=opener_like(path.parent)) as file:
                file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


@contextlib.contextmanager
def _failing(path: Path, said: str) -> Iterator[None]:
    """Turns an `OSError` into a `RecordError` that says this of the path."""
    try:
        yield
    except OSError as error:
        raise RecordError(f"{path}: {said}: {error.strerror}") from error


State = Literal["preparing", "ramping", "measuring", "draining", "finished"]


@dataclass(frozen=True, slots=True)
class Progress:
    """One moment of a load test: a line of `progress.jsonl`. Counts are those of the current trial.

    `trial` counts from 1 to `trials` (None: until stopped); `block` and `blocks` likewise.
    `seconds_left` is an estimate for the whole run, None when it has no end. `failures` are loops
    that are not good, `rate_limited` attempts that a quota refused. `lag_seconds` is the worst
    event-loop lag of the last second. `step` says in words what is done before the first trial, since `unix`.
    `directory` is the run's; `Follower` fills it in, so that a view
    can look at the records too.
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
    step: str = ""


def encode_progress(progress: Progress) -> bytes:
    """One line, with its newline."""
    return orjson.dumps(progress, option=orjson.OPT_APPEND_NEWLINE)


def appended(path: Path, offset: int, most: int = -1) -> tuple[list[bytes], int]:
    """(the complete lines of a growing file from `offset` on, the offset after them).

    At most `most` bytes of them, but at least one line. A file that cannot be read has no lines; one that has
    become shorter is another one, and read from its beginning.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < offset:
                offset = 0
            file.seek(offset)
            data = file.read(most)
            if b"\n" not in data:
                data += file.readline()
    except FileNotFoundError:
        return [], 0
    except OSError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return whole.splitlines(), offset + len(whole)


class Follower:
    """Reads `progress.jsonl` as it grows."""

    def __init__(self, directory: Path | str) -> None:
        self._path = Path(directory) / PROGRESS
        self._offset = 0

    def new(self) -> Iterator[Progress]:
        """The complete lines since the last call; what is no progress is left out."""
        from pydantic import ValidationError

        lines, self._offset = appended(self._path, self._offset)
        for line in lines:
            with contextlib.suppress(ValidationError, orjson.JSONDecodeError):
                progress = _reader(Progress).validate_python(orjson.loads(line))
                yield replace(progress, directory=str(self._path.parent))


def append_lines(file: FileIO, lines: bytes) -> tuple[int, OSError] | None:
    """Append whole lines. None when all were written, else how many were, and why the rest were not.

    A line that was written in part is taken back: it would make what comes after it unreadable.
    """
    before, written = os.fstat(file.fileno()).st_size, 0
    try:
        while written < len(lines):
            written += file.write(lines[written:])
    except OSError as error:
        whole = lines.rfind(b"\n", 0, written) + 1
        with contextlib.suppress(OSError):
            if os.fstat(file.fileno()).st_size == before + written:  # else another process has appended since
                file.truncate(before + whole)
        return lines.count(b"\n", 0, whole), error
    return None
