"""Messages between the leader and the workers of a load test; each is one frozen record.

    leader → worker    Prepare  Begin  Grant  End  Cut  Heard  Dismiss  MeasureClient
    worker → leader    Hello  Ready  Pulse  Records  Drained  Beat  Returned  ClientMeasured

To another process a message travels on Locust's own connection, as its wire name and a plain dict (`pack`,
`unpack`); in a single process it is passed on as it is. Times named `…_seconds` are in seconds, `…_ns` in
nanoseconds.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from profiler.arrivals import Arrivals
from profiler.load.options import LoadOptions
from profiler.providers import ClientName
from profiler.rundir import Anchor, Check, ClientHealth, McpServer, Spent

if TYPE_CHECKING:
    from pydantic import TypeAdapter

M = TypeVar("M", bound="ToWorker | ToLeader")


@dataclass(frozen=True, slots=True)
class Prepare:
    """Make clients and agents for a test of `root`; the worker answers with `Ready`.

    `worker` is its number among all that ever connected, `workers` how many there are now. `machine` and
    `anchor` are the leader's (`health.machine_id`): a worker on another machine translates its clock.
    `calibration` is the URL of a server without latency, None for a worker that has been calibrated.
    `scenario` tells the leader's scenario from others (`identity.of_scenario`).
    """

    options: LoadOptions
    root: str
    worker: int
    workers: int
    machine: str
    anchor: Anchor
    calibration: str | None = None
    scenario: str = ""


@dataclass(frozen=True, slots=True)
class Begin:
    """Open a trial for this worker's agents.

    `sequence` counts the trials begun, those that are not measured (`index` None) too; messages about an
    earlier one are dropped. `part` of the tape is what it works on, and `worker` of `workers` says which of
    its entries are this worker's. `limited`: no loop begins before a `Grant`. Of an open load (`arrivals`) at
    most `max_in_flight` loops run at once; the agents of a closed one start within `spread_seconds`.
    """

    sequence: int
    index: int | None
    part: int
    strategy: str
    worker: int
    workers: int
    seed: int
    limited: bool = False
    arrivals: Arrivals | None = None
    think_seconds: float = 0.0
    spread_seconds: float = 0.0
    max_in_flight: int | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """Let `loops` loops of the trial begin in all."""

    sequence: int
    loops: int


@dataclass(frozen=True, slots=True)
class End:
    """Close the trial: wait up to `drain_seconds` for its loops, cut off the rest, answer with `Drained`."""

    drain_seconds: float


@dataclass(frozen=True, slots=True)
class Cut:
    """Cancel the loops under way."""


@dataclass(frozen=True, slots=True)
class Heard:
    """The leader heard the worker's `Beat` of `sent_ns`, and counts on it."""

    sent_ns: int


@dataclass(frozen=True, slots=True)
class Dismiss:
    """The worker was taken for lost, and others have its agents: it is to leave, and to begin nothing."""


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker process is there and listens.

    What it runs: the `version` of this package, its Locust `file` and that file's `digest`; "" where it is
    not known, as of a version that does not say so. `pid` and `parent` are its process and that one's parent.
    """

    version: str = ""
    file: str = ""
    digest: str = ""
    pid: int = 0
    parent: int = 0


@dataclass(frozen=True, slots=True)
class Beat:
    """The worker was there at `sent_ns` of its own clock (`lease.running_ns`); sent every half a second."""

    sent_ns: int


@dataclass(frozen=True, slots=True)
class Returned:
    """A worker that was taken for lost, or lost its connection, is leaving.

    `loops` were in flight when it found out, and are in no record. It had stood still for `seconds`; 0 where
    it had not.
    """

    loops: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """A worker's work against a server without latency: `loops` of `agents` agents in `seconds`.

    `lone_seconds` is the median of loops that ran alone.
    """

    agents: int
    loops: int
    seconds: float
    lone_seconds: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The answer to `Prepare`. `error`: why the worker cannot, with the `exit_code` of its kind.

    `loop_seconds` is what a loop is thought to take, `spent` what was spent to warm up, `first_failure` the
    error type of what failed then, `checks` what the first loops of a user's agent showed, `mcp_servers`
    which tools the loops have of MCP servers. `metrics_port` is where it serves /metrics, None where it does
    not.
    """

    error: str | None = None
    exit_code: int = 0
    loop_seconds: float = 0.0
    model: str = ""
    metrics_port: int | None = None
    calibration: Calibration | None = None
    spent: Spent = field(default_factory=Spent)
    first_failure: str | None = None
    checks: tuple[Check, ...] = ()
    mcp_servers: tuple[McpServer, ...] = ()


@dataclass(frozen=True, slots=True)
class TrialState:
    """How a trial stands, on one worker or on all together: numbers of loops, and the worst recent lag.

    `agents` take part in it.
    """

    in_flight: int = 0
    waiting: int = 0
    loops: int = 0
    failed: int = 0
    rate_limited: int = 0
    lag_ns: int = 0
    agents: int = 0


@dataclass(frozen=True, slots=True)
class Pulse:
    """How the trial stands, every second and when an agent waits for a grant (`asks`).

    `begun` loops have begun in it; `spent` is what those that ended spent.
    """

    sequence: int
    state: TrialState
    begun: int = 0
    asks: bool = False
    spent: Spent = field(default_factory=Spent)


@dataclass(frozen=True, slots=True)
class Records:
    """Finished loops: `count` whole lines of `records.jsonl`, each with its newline."""

    lines: bytes
    count: int


@dataclass(frozen=True, slots=True)
class Drained:
    """The answer to `End`. `interrupted` loops were cut off; `begun` is final; `unwritten` loops have ended
    whose records could not be handed on. `held`: why this process can run no loop any more.

    `agents` took part in the trial when it closed. `lost_sessions`: calls that failed since their session
    with an MCP server was lost, by the server's name.
    `arrived`, `late` and `dropped` count the arrivals of an open load, as in `rundir.Trial`.
    """

    sequence: int
    interrupted: int = 0
    loops: int = 0
    arrived: int = 0
    late: int = 0
    dropped: int = 0
    begun: int = 0
    spent: Spent = field(default_factory=Spent)
    health: ClientHealth | None = None
    agents: int = 0
    unwritten: int = 0
    held: str | None = None
    lost_sessions: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class MeasureClient:
    """After the last trial: how much CPU a request to a model takes through each of these clients.

    `server` is the URL of one without latency. The worker answers with `ClientMeasured`.
    """

    server: str
    clients: tuple[ClientName, ...]


@dataclass(frozen=True, slots=True)
class ClientMeasured:
    """The answer to `MeasureClient`: seconds by client, without one that cannot be used here."""

    request_cpu: tuple[tuple[str, float], ...]


ToWorker = Prepare | Begin | Grant | End | Cut | Heard | Dismiss | MeasureClient
ToLeader = Hello | Ready | Pulse | Records | Drained | Beat | Returned | ClientMeasured


def wire_name(kind: type[M]) -> str:
    """Locust's name for messages of this kind."""
    return f"toolcall_{kind.__name__.lower()}"


def pack(message: ToWorker | ToLeader) -> dict[str, Any]:
    """Plain data: dicts, lists, text, numbers, bytes. `unpack` is the inverse."""
    data = asdict(message)
    if isinstance(message, Prepare):  # strategies as text, not as dicts of their fields; secrets too
        data["options"] = message.options.as_json() | message.options.secrets()
    return data


def unpack(kind: type[M], data: dict[str, Any]) -> M:
    """The message of that kind, from what came over the wire."""
    message: M = _adapter(kind).validate_python(data)  # type: ignore[arg-type]  # classes can be hashed
    return message


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
