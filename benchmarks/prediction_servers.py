"""The servers that predictions are held against, and the cells that are predicted and run on each.

`emu-…` are the emulator with a scenario; `oth-…` are `tests/capacity_server.py`, which shares no code with it.
Of each kind one tool refuses, queues or shares above its capacity, or the model has a quota.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

USERS = 30
"""The recorded load: factors of the cells multiply it."""
LEVELS = (4, 8, 15, 30, 45)
"""Of the ladder, which goes past the capacity."""
CAPACITY = 20
"""Of the tool that has one; some 20 of its calls are in flight when `USERS` agents gather theirs."""

SCENARIO = """description = "{said}"
prompt = "Question {{number}}: find it, read what was found, and put it together."

[model]
first_token = {{ kind = "lognormal", median = 0.25, sigma = 0.45, max = 6 }}
tokens_per_second = {{ kind = "uniform", low = 120, high = 240 }}

[loop]
rounds = {{ kind = "empirical", values = [2, 2, 3] }}
fan_out = {{ kind = "empirical", values = [2, 3, 4, 5, 6] }}

[tools.search]
description = "Searches the archive."
duration = {{ kind = "lognormal", median = 0.4, sigma = 0.8, max = 8 }}
{capacity}

[tools.search.parameters]
type = "object"
required = ["query"]
properties.query = {{ type = "string", description = "What to look for." }}

[tools.fetch]
description = "Fetches a document."
duration = {{ kind = "lognormal", median = 0.2, sigma = 1.0, max = 4 }}

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

TOOLS = ("--tool", "fetch=0.25", "--tool", "store=0.1")
SHAPE = (
    *("--sigma", "0.8", "--loop-share", "0.2", "--round-share", "0.15"),
    *("--rounds", "2-3", "--fan-out", "2-6"),
    *("--first-token", "0.25", "--tokens", "40", "--tokens-per-second", "160"),
)


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

    @property
    def seed(self) -> int:
        """Not the ladder's (1). Cells of one load share theirs, so that strategies do the same work."""
        return 100 + round(10 * self.factor)


@dataclass(frozen=True)
class Kind:
    """A kind of server. `scenario`: the emulator's; `arguments`: of `tests.capacity_server`."""

    name: str
    cells: tuple[Cell, ...]
    scenario: str = ""
    arguments: tuple[str, ...] = ()

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


def _emulated(said: str, capacity: str = "", quota: str = "") -> str:
    return SCENARIO.format(said=said, capacity=capacity and f"capacity = {capacity}", quota=quota)


def _cells(*cells: tuple[str, float]) -> tuple[Cell, ...]:
    return tuple(Cell(strategy, factor) for strategy, factor in cells)


HALF, FULL, TWICE = (f"semaphore:{round(share * CAPACITY)}" for share in (0.5, 1, 2))
REFUSE = _cells(("gathered", 1.5), (FULL, 1.5), ("adaptive", 1.5), (TWICE, 2), (HALF, 1), ("rate:50/s", 1))
QUEUE = _cells(("gathered", 1.5), (FULL, 1.5), (HALF, 1), ("gathered", 1), ("sequential", 2))
SHARE = _cells(("gathered", 1), (TWICE, 1), ("adaptive", 0.5), ("gathered", 2), (FULL, 2))
QUOTA = _cells(("gathered", 1), ("sequential", 1), (FULL, 0.5), ("rate:40/s", 1.5), ("gathered", 1.5))

KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "emu-refuse",
            REFUSE,
            _emulated(
                "search answers 429 above 20 at once",
                f'{{ concurrent = {CAPACITY}, mode = "reject" }}',
            ),
        ),
        Kind(
            "emu-queue",
            QUEUE,
            _emulated(
                "search serves 20 at once, in order of arrival",
                f'{{ concurrent = {CAPACITY}, mode = "queue", queue = 100000 }}',
            ),
        ),
        Kind(
            "emu-share",
            SHARE,
            _emulated(
                "search shares the capacity of 20 among all",
                f'{{ concurrent = {CAPACITY}, mode = "share" }}',
            ),
        ),
        Kind(
            "emu-quota",
            QUOTA,
            _emulated(
                "the model takes 1200 requests a minute",
                quota="\n[quota]\nrequests_per_minute = 1200\nburst = 0.05\n",
            ),
        ),
        Kind(
            "oth-refuse",
            REFUSE,
            arguments=("--tool", f"search=0.4,refuse={CAPACITY},weight=2", *TOOLS, *SHAPE),
        ),
        Kind(
            "oth-queue",
            QUEUE,
            arguments=("--tool", f"search=0.4,queue={CAPACITY},weight=2", *TOOLS, *SHAPE),
        ),
        Kind(
            "oth-share",
            SHARE,
            arguments=("--tool", f"search=0.4,share={CAPACITY},weight=2", *TOOLS, *SHAPE),
        ),
        Kind(
            "oth-quota",
            QUOTA,
            arguments=("--tool", "search=0.4,weight=2", *TOOLS, *SHAPE, "--quota", "1200/60"),
        ),
    )
}
