"""The servers that predictions are held against, and the cells that are predicted and run on each.

`emu-…` are the emulator with a scenario, `oth-…` `tests/capacity_server.py`, which shares no code with it.
Of each kind one tool refuses, queues or shares above its capacity, or the model has a quota; of `oth-model`
the model queues, and of `oth-mixed` each tool has a rule of its own, and their speed drifts.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

USERS = 30
"""The recorded load: factors of the cells multiply it."""
LEVELS = (4, 8, 15, 30, 60)
"""Of the ladder, as `compare --for-prediction` chooses them: past the capacity, up to twice the load."""
CAPACITY = 20
"""Of the tool that has one; some 20 of its calls are in flight when `USERS` agents gather theirs."""

TIMES = {"first": 0.25, "search": 0.4, "fetch": 0.2, "longest": 8.0, "longest_fetch": 4.0}
"""Seconds, at speed 1; loops then take some 4 s."""
RATES = {"slow": 120.0, "fast": 240.0}
"""Tokens a second, at speed 1."""
QUOTA_PER_MINUTE, QUOTA_BURST = 1200, 60
"""Requests, at speed 1; the burst is the same at any."""
SCENARIO = """description = "{said}"
prompt = "Question {{number}}: find it, read what was found, and put it together."

[model]
first_token = {{ kind = "lognormal", median = {first:g}, sigma = 0.45, max = {longest:g} }}
tokens_per_second = {{ kind = "uniform", low = {slow:g}, high = {fast:g} }}

[loop]
rounds = {{ kind = "empirical", values = [2, 2, 3] }}
fan_out = {{ kind = "empirical", values = [2, 3, 4, 5, 6] }}

[tools.search]
description = "Searches the archive."
duration = {{ kind = "lognormal", median = {search:g}, sigma = 0.8, max = {longest:g} }}
{capacity}

[tools.search.parameters]
type = "object"
required = ["query"]
properties.query = {{ type = "string", description = "What to look for." }}

[tools.fetch]
description = "Fetches a document."
duration = {{ kind = "lognormal", median = {fetch:g}, sigma = 1.0, max = {longest_fetch:g} }}

[tools.fetch.parameters]
type = "object"
required = ["document"]
properties.document = {{ type = "integer", minimum = 1, maximum = 9999, description = "Its number." }}
{quota}"""

CLIENT = """description = "tools of a server that is not the emulator; nothing here says how they are"
prompt = "Question {number}: find it, read what was found, and put it together."

[model]
first_token = 0.1
tokens_per_second = 100

[loop]
rounds = 1
fan_out = 1
"""

CLIENT_TOOL = """
[tools.{name}]
description = "One of the tools."
duration = 0.1

[tools.{name}.parameters]
type = "object"
properties.query = {{ type = "string", description = "What for." }}
"""


@dataclass(frozen=True)
class Cell:
    """A strategy under `factor` times the recorded load."""

    strategy: str
    factor: float

    @property
    def users(self) -> int:
        return round(self.factor * USERS)

    @property
    def name(self) -> str:
        return f"{self.strategy.replace('/', '-').replace(':', '-')}-{self.users}"


@dataclass(frozen=True)
class Kind:
    """A kind of server. `scenario`: the emulator's; `arguments`: of `tests.capacity_server`.

    No two kinds share a seed: what one ladder happens to hold spoils the predictions of its kind alone.
    """

    name: str
    cells: tuple[Cell, ...]
    scenario: str = ""
    arguments: tuple[str, ...] = ()

    @property
    def seed(self) -> int:
        """Of the ladder."""
        return zlib.crc32(self.name.encode()) % 10_000

    def cell_seed(self, cell: Cell) -> int:
        """Neither the ladder's nor another cell's: an unlucky draw spoils one cell alone."""
        return 10_000 + zlib.crc32(f"{self.name} {cell.name}".encode()) % 1_000_000

    def true(self) -> dict[str, object]:
        return asdict(self) | {"users": USERS, "levels": LEVELS, "capacity": CAPACITY}

    @contextlib.contextmanager
    def target(self, folder: Path, seed: int) -> Iterator[Sequence[str]]:
        """The arguments of a `profiler compare` on it. An independent server runs meanwhile."""
        path = folder / "scenario.toml"
        if self.scenario:
            path.write_text(self.scenario)
            yield ("--scenario", str(path), "--seed", str(seed))
            return
        names = ("search", "fetch", "store")
        path.write_text(CLIENT + "".join(CLIENT_TOOL.format(name=name) for name in names))
        command = [sys.executable, "-m", "tests.capacity_server", *self.arguments, "--seed", str(seed)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
            yield ("--scenario", str(path), "--seed", str(seed), "--base-url", url, "--tools-url", url)
        finally:
            server.kill()
            server.communicate()


def _emulated(speed: float, said: str, capacity: str = "", quota: str = "") -> str:
    times = {name: seconds / speed for name, seconds in TIMES.items()}
    rates = {name: rate * speed for name, rate in RATES.items()}
    capacity = f"capacity = {{ concurrent = {CAPACITY}, {capacity} }}" if capacity else ""
    return SCENARIO.format(said=said, capacity=capacity, quota=quota, **times, **rates)


def _other(speed: float, search: str = "", *more: str, fetch: str = "", store: str = "") -> tuple[str, ...]:
    """Arguments of `tests.capacity_server`: the rules of its tools (`search` has `CAPACITY`), and more."""
    return (
        *("--tool", f"search={0.4 / speed:g},weight=2{search and f',{search}={CAPACITY}'}"),
        *("--tool", f"fetch={0.25 / speed:g}{fetch}", "--tool", f"store={0.1 / speed:g}{store}"),
        *("--sigma", "0.8", "--loop-share", "0.2", "--round-share", "0.15"),
        *("--rounds", "2-3", "--fan-out", "2-6", "--first-token", f"{0.25 / speed:g}"),
        *("--tokens", "40", "--tokens-per-second", f"{160 * speed:g}"),
        *more,
    )


def _cells(*cells: tuple[str, float]) -> tuple[Cell, ...]:
    return tuple(Cell(strategy, factor) for strategy, factor in cells)


HALF, FULL, TWICE = (
    f"semaphore:search={CAPACITY // 2}",
    f"semaphore:search={CAPACITY}",
    f"semaphore:{2 * CAPACITY}",
)
"""Half of the capacity of `search`, all of it, and twice that for the calls of all tools."""
QUEUE = _cells(("gathered", 1.5), (FULL, 1.5), (HALF, 1), ("gathered", 1), ("sequential", 2))
MODEL = _cells(("gathered", 1), ("gathered", 1.5), ("sequential", 1), (FULL, 0.5), ("adaptive", 1.5))
MIXED = _cells(
    *(("gathered", 1), ("gathered", 1.5), (FULL, 1.5), (f"semaphore:search={CAPACITY},fetch=8", 1.5)),
    ("sequential", 2),
)
SHARE = _cells(("gathered", 1), (TWICE, 1), ("adaptive", 0.5), ("gathered", 2), (FULL, 2))


def kinds(speed: float = 1.0) -> dict[str, Kind]:
    """By name; times are those of `TIMES`, divided by `speed`."""
    refuse = _cells(
        *(("gathered", 1.5), (f"semaphore:{CAPACITY}", 1.5), ("adaptive", 1.5), (FULL, 1.5)),
        *((TWICE, 2), (HALF, 1), (f"rate:{50 * speed:g}/s", 1)),
    )
    rate = f"rate:{40 * speed:g}/s"
    quota = _cells(("gathered", 1), ("sequential", 1), (FULL, 0.5), (rate, 1.5), ("gathered", 1.5))
    per_minute = QUOTA_PER_MINUTE * speed
    of_model = f"\n[quota]\nrequests_per_minute = {per_minute:g}\nburst = {QUOTA_BURST / per_minute:g}\n"
    refuses, queues = 'mode = "reject"', 'mode = "queue", queue = 100000'
    store = f",rate={20 * speed:g}/20"
    drift = ("--drift", f"1.15:{5 / speed:g}")
    mixed = _other(speed, "refuse", *drift, fetch=",share=8", store=store)
    found = (
        Kind("emu-refuse", refuse, _emulated(speed, "search answers 429 above 20 at once", refuses)),
        Kind("emu-queue", QUEUE, _emulated(speed, "search serves 20 at once, in order of arrival", queues)),
        Kind("emu-share", SHARE, _emulated(speed, "search shares the capacity of 20", 'mode = "share"')),
        Kind("emu-quota", quota, _emulated(speed, "the model has a quota", quota=of_model)),
        Kind("oth-refuse", refuse, arguments=_other(speed, "refuse")),
        Kind("oth-queue", QUEUE, arguments=_other(speed, "queue")),
        Kind("oth-share", SHARE, arguments=_other(speed, "share")),
        Kind("oth-quota", quota, arguments=_other(speed, "", "--quota", f"{per_minute:g}/{QUOTA_BURST}")),
        Kind("oth-model", MODEL, arguments=_other(speed, "", "--model-capacity", "queue=14")),
        Kind("oth-mixed", MIXED, arguments=mixed),
    )
    return {kind.name: kind for kind in found}
