"""The work of an agent's loops, free of what made it wait: what the engine runs again under other rules.

A recording is turned into it by `profiler.prediction.fitting`. Whole loops are kept, with their rounds in
order, so that rounds, calls, tokens and durations stay correlated as they were. All durations are
nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from profiler.prediction.servers.calls import Rule
from profiler.prediction.servers.pace import Pace


@dataclass(frozen=True, slots=True)
class CallWork:
    """One tool call. `tool` is its place in `System.tools`.

    `service_ns` is what the call takes at a server that lets it wait for nothing, with what the network adds;
    `client_ns` what the client adds: sending, and half of what a busy client may have noticed late. Meanwhile
    it has its place in the strategy's limits, and none at the server. `failed`: it fails after that time, for
    reasons of its own. `after_ns`: from the start of the tool phase until it was handed to the strategy.
    `filled`: its service is not known, since it was refused; that of another call stands for it.
    """

    tool: int
    service_ns: int
    failed: bool = False
    after_ns: int = 0
    filled: bool = False
    client_ns: int = 0


@dataclass(frozen=True, slots=True)
class RoundWork:
    """One model request and the calls of its reply.

    `service_ns` is the request's own time, without attempts that were refused and the waits between them, of
    which `first_token_ns` passed before the first token (0: not known), and `client_ns` what the client adds,
    as in `CallWork`. `parse_ns` lies between the reply and the handing over of its calls, `collect_ns`
    between the last call's end and the end of the round.
    """

    service_ns: int
    calls: tuple[CallWork, ...] = ()
    parse_ns: int = 0
    collect_ns: int = 0
    first_token_ns: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    client_ns: int = 0


@dataclass(frozen=True, slots=True)
class LoopWork:
    """One loop. `before_ns` passed before its first request, `after_ns` after its last round.

    `failed`: it ends without an answer after these rounds, for reasons of its own. `at_ns` is when it started
    in the recording. Loops of the same `cluster` are the same work, recorded several times (a tape's entry):
    they are resampled together. `weight` makes up for loops like it that the recording lost. `trial`: that of
    the recording in which it ran, -1 for none.
    """

    rounds: tuple[RoundWork, ...]
    before_ns: int = 0
    after_ns: int = 0
    failed: bool = False
    at_ns: int = 0
    cluster: int = 0
    weight: float = 1.0
    trial: int = -1


@dataclass(frozen=True, slots=True)
class Server:
    """A server of tools, or of the model, as it is simulated.

    A refusal takes `refusal_ns`; with `retry_after_ns` it asks for that wait (None: for none; of a rate: as
    long as its bucket needs).
    """

    name: str
    rule: Rule
    refusal_ns: int = 2_000_000
    retry_after_ns: int | None = None


@dataclass(frozen=True, slots=True)
class System:
    """What the agents call. `server_of` is the place in `servers` of each tool's server.

    `mcp` is the name of the MCP server of each tool (empty: of none), by which limits of scope `server` go.
    `pace` is that of all tools together, `model_pace` the model's; None: they are always as fast.
    """

    tools: tuple[str, ...]
    servers: tuple[Server, ...]
    server_of: tuple[int, ...]
    model: Server
    mcp: tuple[str, ...] = ()
    pace: Pace | None = None
    model_pace: Pace | None = None
