"""The one data model: what a loop did, and when.

A `LoopRecord` is one pass of the tool-calling loop. It holds `RoundRecord`s; a round holds one
`ModelCall` (with its HTTP `Attempt`s) and the `ToolCall`s that the model asked for in it. Every
consumer (Prometheus, JSONL, statistics, traces, reports) reads these and nothing else.

What a record *means* is defined here too, as properties: when a loop was due, whether it was good,
what was refused, what was tried again. Readers use them, so that no two count differently.

All times are monotonic nanoseconds of the process that ran the loop; the run directory's `run.json`
holds the anchor that turns them into wall-clock time. None means: did not happen (a call that
never got through its limiter has no `started_ns`) or was not observed.

A record that another program's traces, logs or requests were turned into (`profiler.recordings`) says where
it is `source`d from, and of each model call and tool call which of its times are not exact. `derived` names
those that were worked out from other times, as the start of a call from its end and its duration; `unknown`
those that nothing was seen of, and that stand where they change least (nobody writes down when a call was
queued: when it started, then). All other times were seen.

Prompts, arguments and results are in the record only when the loop was told to record content.

As JSON a record is one object with exactly these field names, its `schema` number last.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import Field, fields, make_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import msgspec
import orjson
from msgspec.structs import replace

from profiler.errors import RecordError

SCHEMA = 2
"""Schema 1 knew no cached tokens: its `input_tokens` of Anthropic are the uncached ones alone."""

MOST = 2**62
"""The largest number that a record may hold, so that the difference of two fits 64 bits."""

Int = Annotated[int, msgspec.Meta(ge=-MOST, le=MOST)]

Clock = Callable[[], int]
"""Monotonic nanoseconds."""

Status = Literal["ok", "error", "cancelled"]
ToolStatus = Literal["ok", "error", "timeout", "cancelled"]
Shortfall = Literal[
    "limiter",
    "exclusive",
    "blocked_loop",
    "machine",
    "threads",
    "application",
    "application_limit",
    "openai_runner",
    "anthropic_runner",
    "inside_tools",
    "mcp_session",
    "mcp_server",
]
"""What kept calls from overlapping; each is explained, with its remedy, in `profiler.shortfalls`."""
Outcome = Literal["ok", "incomplete", "error", "cancelled"]
Untimed = Literal["never_started", "never_ended", "upper_bound", "wait"]
"""Why a call has no latency: it did not start, no end of it was seen, only an upper bound is known, or it
only waited for what another call began."""

BUSY = "busy"
"""The error type of a call without a model that was answered with an error (`isError`, or JSON-RPC's) which
says that the server takes no more."""

CLIENT_LIMIT = "client_limit"
"""That of a call for which this machine had no connection left: no fault of the server's."""

NO_MODEL = "none"
"""The `provider` of a `ModelCall` that never was: its round has calls that no model asked for (`profiler mcp
load`). It starts and ends when the round does."""

REFUSED = frozenset((429, 529))
"""HTTP statuses by which a server refuses a request for a quota: 429, and Anthropic's 529 (overloaded)."""

INTERNAL = "internal"
"""The `error_type` of a loop that a defect of ours ended: an exception that nobody expects."""

RECORDED = "recorded"
"""The `strategy` of a loop that a recording was turned into: how its calls were run is what it shows."""

LOOP_TIMEOUT = "loop_timeout"
"""The `error_type` of a loop that was still running after `--loop-timeout`."""

_REFUSED_ERRORS = frozenset(f"http_{status}" for status in REFUSED)


class Refusal(NamedTuple):
    """A request that a server refused for a quota. `reason` is the HTTP status as text."""

    reason: str
    at_ns: int


class Retry(NamedTuple):
    """A try after one that failed. `reason` is the HTTP status, or the error, of the failed one.

    `backoff_ns` is the time between the end of the failed try and the start of this one.
    """

    reason: str
    backoff_ns: int


class Record(msgspec.Struct, frozen=True, gc=False):
    """What all records have in common: `dataclasses.replace`, `asdict` and `fields` take them too.

    They are structs of msgspec's, since a load test makes a dozen of them a loop: those are made, copied
    (`msgspec.structs.replace`) and encoded in a fraction of a frozen dataclass' time, and the garbage
    collector leaves them alone, as there are no cycles of them.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


class Attempt(Record, frozen=True, gc=False):
    """One HTTP try of a model request; the SDKs retry inside one call.

    `connected_ns`: a connection was there (for one kept alive, only aiohttp's transport tells).
    `sent_ns`: the request was written. `first_byte_ns`: the response headers arrived. `ended_ns`:
    the body ended, or the try failed. `rate_limits` maps the provider's rate-limit headers to
    their values, with its `date` where one of them is a point in time.
    """

    started_ns: Int
    ended_ns: Int
    status: Int | None = None
    error_type: str | None = None
    request_id: str | None = None
    connected_ns: Int | None = None
    sent_ns: Int | None = None
    first_byte_ns: Int | None = None
    retry_after_ns: Int | None = None
    rate_limits: dict[str, str] | None = None

    @property
    def refused(self) -> bool:
        """The server refused it for a quota."""
        return self.status in REFUSED

    @property
    def reason(self) -> str:
        """Its end in one word: the HTTP status, or the error when no response came."""
        return str(self.status) if self.status is not None else self.error_type or "unknown"


class ToolAttempt(Record, frozen=True, gc=False):
    """One try of a call of a tool with retries; `retry_after_ns` is the wait a server asked for."""

    started_ns: Int
    ended_ns: Int
    status: ToolStatus = "ok"
    error_type: str | None = None
    retry_after_ns: Int | None = None

    @property
    def refused(self) -> bool:
        """The server refused it for a quota."""
        return self.error_type in _REFUSED_ERRORS

    @property
    def reason(self) -> str:
        """Its end in one word: the HTTP status if there was one, else the error."""
        return (self.error_type or self.status).removeprefix("http_")


class _Tried:
    """Common to model requests and tool calls: a status, and attempts if any were observed."""

    __slots__ = ()

    ended_ns: int
    status: Status | ToolStatus
    error_type: str | None
    attempts: tuple[Attempt, ...] | tuple[ToolAttempt, ...]

    @property
    def failure(self) -> str | None:
        """A bounded name for what went wrong; None when it ended well."""
        return None if self.status == "ok" else self.error_type or self.status

    @property
    def attempt_count(self) -> int:
        """The number of tries: at least one, also where none was observed."""
        return len(self.attempts) or 1

    @property
    def refusals(self) -> list[Refusal]:
        """The tries that a server refused for a quota; where no try was observed, the call itself."""
        if self.attempts:
            return [Refusal(one.reason, one.ended_ns) for one in self.attempts if one.refused]
        if self.error_type not in _REFUSED_ERRORS:
            return []
        return [Refusal(self.error_type.removeprefix("http_"), self.ended_ns)]

    @property
    def retries(self) -> list[Retry]:
        """Each try after the first."""
        tries: tuple[Attempt | ToolAttempt, ...] = self.attempts
        return [
            Retry(before.reason, max(0, after.started_ns - before.ended_ns))
            for before, after in pairwise(tries)
        ]


class ServerToolCall(Record, frozen=True, gc=False):
    """A tool that the model's server ran itself, inside its reply: web search, code execution, hosted MCP.

    From its complete arguments to the beginning of its result; both times are None where the reply was not
    streamed, or its stream did not tell them.
    """

    name: str
    started_ns: Int | None = None
    ended_ns: Int | None = None


def vendor(provider: str) -> str:
    """Whose models these are: a quota of OpenAI's holds whatever the API that they are asked by."""
    return provider.removesuffix("-responses")


def limited_input_tokens(provider: str, input_tokens: int | None, cached_tokens: int | None) -> int | None:
    """The input tokens of a request that count against the provider's tokens per minute.

    Anthropic leaves out those that were read from its cache (for most models); OpenAI counts all.
    """
    if input_tokens is None or provider != "anthropic":
        return input_tokens
    return max(0, input_tokens - (cached_tokens or 0))


class ModelCall(_Tried, Record, frozen=True, gc=False):
    """One model request as the caller sees it: all attempts and the backoff between them.

    `first_token_ns` (the first that was generated, reasoning or not), `first_output_ns` (the first of text or
    of a call: not of reasoning) and `first_tool_call_ns` (the first call whose arguments were complete) are
    observed on streamed requests only. `limiter_wait_ns` is the time that our own limiters held the
    request back (`profiler.loop.model`). `sending_ns` and `late_ns` are as in `ToolCall`.

    Tokens mean the same for every provider, whatever its own fields count: `input_tokens` are all of the
    request, of which `cached_tokens` were read from the provider's cache and `cache_written_tokens` written
    to it (of these `cache_written_1h_tokens` for an hour, which costs more than for five minutes);
    `output_tokens` are all that was generated, of which `reasoning_tokens` were reasoning. None: the
    server did not say, or said something that is no count.

    `unreadable` counts the parts of its reply that could not be understood. `resends` counts tries of which
    nothing but their number is known. `derived` and `unknown` name times of a recording's (see above).
    """

    provider: str
    model: str
    started_ns: Int
    ended_ns: Int
    status: Status = "ok"
    error_type: str | None = None
    request_id: str | None = None
    finish_reason: str | None = None
    streamed: bool = False
    first_token_ns: Int | None = None
    first_tool_call_ns: Int | None = None
    input_tokens: Int | None = None
    output_tokens: Int | None = None
    attempts: tuple[Attempt, ...] = ()
    limiter_wait_ns: Int = 0
    sending_ns: Int = 0
    late_ns: Int = 0
    first_output_ns: Int | None = None
    cached_tokens: Int | None = None
    cache_written_tokens: Int | None = None
    reasoning_tokens: Int | None = None
    server_tools: tuple[ServerToolCall, ...] = ()
    unreadable: Int = 0
    cache_written_1h_tokens: Int | None = None
    resends: Int = 0
    derived: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def asked(self) -> bool:
        """There was a model to ask (`NO_MODEL`)."""
        return self.provider != NO_MODEL

    @property
    def attempt_count(self) -> int:
        """The number of tries: at least one, also where none was observed; 0 where no model was asked."""
        return (len(self.attempts) or int(self.asked)) + self.resends

    @property
    def uncached_tokens(self) -> int | None:
        """The input tokens that were neither read from the cache nor written to it, so far as is known."""
        if self.input_tokens is None:
            return None
        return max(0, self.input_tokens - (self.cached_tokens or 0) - (self.cache_written_tokens or 0))

    @property
    def limited_input_tokens(self) -> int | None:
        """The input tokens that count against the provider's tokens per minute (`limited_input_tokens`)."""
        return limited_input_tokens(self.provider, self.input_tokens, self.cached_tokens)

    @property
    def total_tokens(self) -> int | None:
        """All tokens of the request and its reply; None where neither is known."""
        if self.input_tokens is None and self.output_tokens is None:
            return None
        return (self.input_tokens or 0) + (self.output_tokens or 0)

    @property
    def replied(self) -> bool:
        """A reply came, perhaps not to its end: the server may bill it."""
        return self.asked and (
            self.status == "ok" or any(one.status is not None and one.status < 300 for one in self.attempts)
        )

    @property
    def heard(self) -> bool | None:
        """Anything came back, if only a status. None where no try of it is known, nor how it ended."""
        if not self.asked:
            return None
        if self.status == "ok" or any(one.status is not None for one in self.attempts):
            return True
        return False if self.attempts else None

    @property
    def tokens_known(self) -> bool:
        """The server said how many tokens came in and went out."""
        return self.input_tokens is not None and self.output_tokens is not None

    @property
    def duration_ns(self) -> int:
        """All attempts and the backoff between them."""
        return self.ended_ns - self.started_ns

    @property
    def latency_ns(self) -> int | None:
        """`duration_ns` where it is known: None where nothing was seen of its start or its end."""
        if self.unknown and not {"started_ns", "ended_ns"}.isdisjoint(self.unknown):
            return None
        return self.ended_ns - self.started_ns

    @property
    def backoff_ns(self) -> int:
        """The time between its attempts, summed."""
        return sum(retry.backoff_ns for retry in self.retries) if len(self.attempts) > 1 else 0

    @property
    def first_token_after_ns(self) -> int | None:
        """Time from the start of the request to the first token; None unless one was streamed."""
        return None if self.first_token_ns is None else self.first_token_ns - self.started_ns

    @property
    def first_output_after_ns(self) -> int | None:
        """Time from the start of the request to the first token that was no reasoning."""
        return None if self.first_output_ns is None else self.first_output_ns - self.started_ns

    @property
    def first_tool_call_after_ns(self) -> int | None:
        """Time to the first call with complete arguments; None unless one was streamed."""
        return None if self.first_tool_call_ns is None else self.first_tool_call_ns - self.started_ns


class RemoteCall(Record, frozen=True, gc=False):
    """The part of a call that an MCP server did: where, and when, as far as its client could tell.

    `server` is the name that the user gave the server, else the one it gives itself; `transport` is `memory`
    for a server in the same process; `protocol` is the version that both speak, such as `2025-11-25`.

    Its times lie between the call's `started_ns` and its `ended_ns`. First the call may have waited for
    `session_wait_ns` until the session took it (a lock of the framework's). `posted_ns`: its request was
    handed to the connection (HTTP) or written (stdio); None: it was never sent. `answered_ns`: its answer
    began to arrive, which is the headers of a JSON reply, the event with the result of an SSE reply, the line
    on stdio. After it the answer is read and checked. `server_ns` is how long the server says that it took;
    few say so.

    `sends` counts requests for the one call (more where the server asked for input, or the client listed the
    tools anew), `progress` notifications of progress. `new_connection`: it had to be opened for this call.
    """

    server: str
    transport: Literal["http", "stdio", "memory"]
    protocol: str | None = None
    posted_ns: Int | None = None
    answered_ns: Int | None = None
    server_ns: Int | None = None
    session_wait_ns: Int = 0
    reply: Literal["json", "sse"] | None = None
    http_status: Int | None = None
    new_connection: bool | None = None
    sends: Int = 1
    progress: Int = 0


class ToolCall(_Tried, Record, frozen=True, gc=False):
    """One call the model asked for.

    Its times, in order: `ready_ns` (its arguments were complete), `queued_ns` (handed to the
    strategy), `started_ns` (through the limiter; a tool's timeout counts from here), `ended_ns`. In a
    streamed reply a call is ready before the reply is complete, and an eager one may start before too.

    `thread_wait_ns` is the part of the duration that a sync tool waited for a free thread,
    `blocking_ns` the part in which its code held the event loop in steps of over 10 ms, so that nothing
    else could run, without the time in which the machine did not run it. `sending_ns` is the part in which
    the client made and sent its first request, `late_ns` for how long at most a busy client did not notice
    its end (`profiler.loop.lag.BusyPeriod`); both are 0 where that was not observed.

    `error_type` is bounded: `invalid_json`, `invalid_arguments`, `truncated`, `unknown_tool`, `timeout`,
    `cancelled`, `http_429` and the like where a server refused the tool, or the class name of the exception
    it raised.

    `attempts` are there for tools with retries, and for calls that an application which is only watched
    tried again. The duration runs from the start of the first to the end of the last, including what lies
    between (backoff, waiting in the limiter again).

    `nested`: made by the code of another call of its round, as part of that one; no sibling of it.
    `loops` are the ids of the loops that began in it (an agent as a tool): children of the call's own loop
    (`LoopRecord.parent`), and of this call whatever its id is.

    `remote` is there for tools of MCP servers. The duration of such a call is the sum of `session_wait_ns`,
    `client_wait_ns`, `remote_ns` and `parsing_ns`. Errors of theirs: `tool_error` (the tool says that it
    failed), `rpc_-32602` and the like, `http_503` and the like, `timeout`, `connection`, `session_lost`
    (another call's failure ended the session).

    `derived` and `unknown` name times of a recording's (see above). `upper_bound`: when it started is not
    known, only when it could have, so its duration is the longest that it may have been, with any approval
    and any wait inside. It is no latency of the tool's. Of a call whose `ended_ns` is unknown no end was
    seen. `wait`: the call only waited for what another one began, or came back while what it began went on
    (a command in the background): however exact its duration, it is no latency of the tool's either.
    """

    id: str
    name: str
    ready_ns: Int
    queued_ns: Int
    started_ns: Int | None
    ended_ns: Int
    status: ToolStatus = "ok"
    error_type: str | None = None
    thread_wait_ns: Int = 0
    blocking_ns: Int = 0
    arguments: str | None = None
    result: str | None = None
    attempts: tuple[ToolAttempt, ...] = ()
    sending_ns: Int = 0
    late_ns: Int = 0
    nested: bool = False
    loops: tuple[str, ...] = ()
    remote: RemoteCall | None = None
    derived: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    upper_bound: bool = False
    wait: bool = False

    @property
    def server(self) -> str:
        """The name of the MCP server whose tool it is; empty for any other tool."""
        return "" if self.remote is None else self.remote.server

    @property
    def client_wait_ns(self) -> int | None:
        """Time in the client of the MCP server until the request was handed to the connection."""
        if self.remote is None or self.started_ns is None or not self.ended:
            return None
        until_ns = self.ended_ns if self.remote.posted_ns is None else self.remote.posted_ns
        return until_ns - self.started_ns - self.remote.session_wait_ns

    @property
    def remote_ns(self) -> int | None:
        """Network and server: from the request's being handed over until its answer began to arrive."""
        if self.remote is None or self.remote.posted_ns is None or not self.ended:
            return None
        answered_ns = self.remote.answered_ns
        return (self.ended_ns if answered_ns is None else answered_ns) - self.remote.posted_ns

    @property
    def network_ns(self) -> int | None:
        """`remote_ns` without the time that the server says it took; None where it does not say."""
        if self.remote is None or self.remote.server_ns is None or self.remote_ns is None:
            return None
        return self.remote_ns - self.remote.server_ns

    @property
    def parsing_ns(self) -> int | None:
        """Time in the client of the MCP server after the answer had begun to arrive."""
        if self.remote is None or self.remote.answered_ns is None or not self.ended:
            return None
        return self.ended_ns - self.remote.answered_ns

    @property
    def waited_until_ns(self) -> int:
        """The end of its wait in the strategy: its start, or its end if it never started."""
        return self.ended_ns if self.started_ns is None else self.started_ns

    @property
    def waited_ns(self) -> int | None:
        """Queue wait: from being handed to the strategy to `waited_until_ns`; None where nobody saw it."""
        if self.unknown and "queued_ns" in self.unknown:
            return None
        return self.waited_until_ns - self.queued_ns

    @property
    def began_ns(self) -> int:
        """The start to draw it from: its own, or that of its wait if it never started."""
        return self.queued_ns if self.started_ns is None else self.started_ns

    @property
    def ended(self) -> bool:
        """Its end was seen, or follows from what was."""
        return not self.unknown or "ended_ns" not in self.unknown

    @property
    def duration_ns(self) -> int | None:
        """Time from start to end, or an `upper_bound` of it; None for a call that never started or ended."""
        return None if self.started_ns is None or not self.ended else self.ended_ns - self.started_ns

    @property
    def latency_ns(self) -> int | None:
        """`duration_ns` where it says how long the tool took: None also for an upper bound or a wait."""
        # As `duration_ns`, in one step: it is asked of every call.
        if self.upper_bound or self.wait or self.started_ns is None or (self.unknown and not self.ended):
            return None
        return self.ended_ns - self.started_ns

    @property
    def untimed(self) -> Untimed | None:
        """Why it has no `latency_ns`; None where it has one."""
        if self.started_ns is None:
            return "never_started"
        if not self.ended:
            return "never_ended"
        if self.upper_bound:
            return "upper_bound"
        return "wait" if self.wait else None


class RoundRecord(Record, frozen=True, gc=False):
    """One model response and the execution of every tool call in it.

    The tool phase runs from `tools_started_ns` (all calls parsed, handed to the strategy) to
    `tools_ended_ns`; both are None in a round without calls. After it the results are
    collected into messages until `ended_ns`. `shortfall` names what kept the calls from
    overlapping as the strategy allows (`profiler.shortfalls`), None if nothing did. `pool_threads` is
    the size of the pool of threads that was full, where that was it.
    `unobserved_calls` counts calls that the model asked for and no profiled tool ran, `unobserved_tools` are
    the names in them, one for each call, where they are known. `limit` is how
    many calls the strategy let run at once when the phase began, None if it sets no limit.
    """

    index: Int
    started_ns: Int
    ended_ns: Int
    model: ModelCall
    tools_started_ns: Int | None = None
    tools_ended_ns: Int | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    status: Status = "ok"
    shortfall: Shortfall | None = None
    unobserved_calls: Int = 0
    limit: Int | None = None
    pool_threads: Int | None = None
    unobserved_tools: tuple[str, ...] = ()

    @property
    def duration_ns(self) -> int:
        return self.ended_ns - self.started_ns

    @property
    def failure(self) -> str | None:
        """A bounded name for what cut it short; None when it came to an answer or to its results."""
        return None if self.status == "ok" else self.model.error_type or self.status


class LoopRecord(Record, frozen=True, gc=False):
    """One pass of the loop, from the user's message to the final answer.

    `status` is `ok` when the model came to an answer, even if a tool call failed on the way; `good`
    asks for the calls as well.

    `name` is what the application calls this kind of loop, `agent` the simulated caller that ran it,
    `number` the tape entry it worked on, `trial` the index of its trial (both None outside a load
    test), `process` the process that ran it, `intended_ns` the start that an open load meant for it.
    `parent` is the id of the loop inside which this one began (an agent as a tool); which call of that one
    it was in, the call says (`ToolCall.loops`). `lag_ns` is the worst event-loop lag sampled while it ran.

    In a loop that was only observed, `ambiguous_calls` counts calls that could be any of several
    that the model had asked for, or only resembled the one they are taken for, and `rounds_dropped` the
    first rounds of a loop too long to keep whole. `orphan_calls` counts the calls of watched tools that ran
    outside every loop since the record before this one. `unlimited_calls` counts calls that went around the
    limit of the strategy; None where the loop is not that of a user's own agent under a strategy with a
    limit, and so cannot go around it. `watch_failures` counts what is missing since watching it failed.

    `source` is what a recording was turned into it (`otel`, `claude-code`, `proxy`, ...; empty: this package
    recorded it), `resolution_ns` the tick of that one's times, and `derived` as in `ToolCall`.
    """

    id: str
    strategy: str
    provider: str
    model: str
    started_ns: Int
    ended_ns: Int
    status: Status
    rounds: tuple[RoundRecord, ...]
    error_type: str | None = None
    name: str = ""
    agent: str = ""
    number: Int | None = None
    trial: Int | None = None
    process: str = ""
    intended_ns: Int | None = None
    parent: str | None = None
    lag_ns: Int = 0
    ambiguous_calls: Int = 0
    rounds_dropped: Int = 0
    unlimited_calls: Int | None = None
    orphan_calls: Int = 0
    watch_failures: Int = 0
    prompt: str | None = None
    text: str | None = None
    source: str = ""
    resolution_ns: Int = 1
    derived: tuple[str, ...] = ()
    schema: Int = SCHEMA

    @property
    def tool_calls(self) -> Iterator[ToolCall]:
        """Every tool call of every round, in order."""
        for round_ in self.rounds:
            yield from round_.tool_calls

    @property
    def unobserved_calls(self) -> int:
        """Calls that the model asked for and no watched tool ran."""
        return sum(round_.unobserved_calls for round_ in self.rounds)

    @property
    def due_ns(self) -> int:
        """The time it was meant to start: its arrival in an open load, else its start."""
        return self.started_ns if self.intended_ns is None else self.intended_ns

    @property
    def wall_ns(self) -> int:
        """Time from start to end; the phases partition it."""
        return self.ended_ns - self.started_ns

    @property
    def latency_ns(self) -> int:
        """Time from `due_ns` to its end, so that a backlog cannot hide; in a closed load the wall time."""
        return self.ended_ns - self.due_ns

    @property
    def nested(self) -> bool:
        """It ran inside another loop's tool call: part of that loop, and not counted beside it."""
        return self.parent is not None

    @property
    def answered(self) -> bool:
        """The model came to an answer."""
        return self.status == "ok"

    @property
    def good(self) -> bool:
        """It came to an answer and every tool call succeeded."""
        return self.status == "ok" and all(
            call.status == "ok" for round_ in self.rounds for call in round_.tool_calls
        )

    @property
    def failed(self) -> bool:
        """It is not good, and was not cancelled either: that is what somebody wanted.

        A load test counts the loops that it cut off itself among the failed ones: mostly the slowest.
        """
        return self.status != "cancelled" and not self.good

    @property
    def outcome(self) -> Outcome:
        """`status`, but `incomplete` for a loop that was answered although a call had failed."""
        return "incomplete" if self.status == "ok" and not self.good else self.status

    @property
    def failure(self) -> str | None:
        """A bounded name for why the loop is not good, `incomplete` when only a call is not; else None."""
        if self.status != "ok":
            return self.error_type or self.status
        return None if self.good else "incomplete"

    @property
    def refusals(self) -> Iterator[Refusal]:
        """Every request that a server of a model or a tool refused for a quota, round by round."""
        for round_ in self.rounds:
            yield from round_.model.refusals
            for call in round_.tool_calls:
                if call.error_type is not None or call.attempts:
                    yield from call.refusals


_DURATIONS = frozenset(
    {"lag_ns", "limiter_wait_ns", "thread_wait_ns", "blocking_ns", "retry_after_ns", "sending_ns", "late_ns"}
    | {"server_ns", "session_wait_ns", "resolution_ns"}
)
_KINDS: tuple[type[Record], ...] = (
    *(Attempt, ServerToolCall, ModelCall, ToolAttempt, RemoteCall, ToolCall, RoundRecord, LoopRecord),
)


def _dataclass_fields(kind: type[Record]) -> dict[str, Field[Any]]:
    named = [
        (one.name, one.type) if one.required else (one.name, one.type, one.default)
        for one in msgspec.structs.fields(kind)
    ]
    return make_dataclass(kind.__name__, named).__dataclass_fields__  # type: ignore[attr-defined, no-any-return]


for _kind in _KINDS:
    _kind.__dataclass_fields__ = _dataclass_fields(_kind)

_TIMES = {
    kind: tuple(f.name for f in fields(kind) if f.name.endswith("_ns") and f.name not in _DURATIONS)
    for kind in _KINDS
}


def shifted(record: LoopRecord, by_ns: int) -> LoopRecord:
    """The record with every point in time moved by `by_ns`, onto another machine's clock."""

    def moved(one: Any, **parts: Any) -> Any:
        times = ((name, getattr(one, name)) for name in _TIMES[type(one)])
        return replace(one, **{name: at + by_ns for name, at in times if at is not None}, **parts)

    rounds = tuple(
        moved(
            round_,
            model=moved(
                round_.model,
                attempts=tuple(moved(a) for a in round_.model.attempts),
                server_tools=tuple(moved(one) for one in round_.model.server_tools),
            ),
            tool_calls=tuple(
                moved(
                    call,
                    attempts=tuple(moved(a) for a in call.attempts),
                    remote=None if call.remote is None else moved(call.remote),
                )
                for call in round_.tool_calls
            ),
        )
        for round_ in record.rounds
    )
    result: LoopRecord = moved(record, rounds=rounds)
    return result


def encode(record: LoopRecord) -> bytes:
    """One line of `records.jsonl`, without the newline.

    Raises `RecordError` for what JSON cannot hold, such as half of a character.
    """
    try:
        return _encode(record)
    except (TypeError, ValueError, OverflowError) as error:  # its text may show what was said
        raise RecordError(f"a loop record that cannot be written: {type(error).__name__}") from error


def decode(line: bytes | str) -> LoopRecord:
    """Inverse of `encode`. Unknown keys (of a later minor version) are ignored.

    Raises `RecordError` when the line is not a record, or one of a later schema.
    """
    try:
        record = _decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        schema = _schema(line)  # a later schema may well look wrong to this one
        if schema > SCHEMA:
            raise later_schema("record", schema, SCHEMA) from error
        raise RecordError(f"not a loop record: {_problem(error)}") from error
    if record.schema > SCHEMA:
        raise later_schema("record", record.schema, SCHEMA)
    return record


def _problem(error: Exception) -> str:
    """What is wrong and where (keys and indices joined by dots), in one line."""
    if isinstance(error, UnicodeError):  # of msgspec before 0.21
        return "Invalid UTF-8"
    what, _, where = str(error).partition(" - at `$")
    path = re.sub(r"\[(\d+|\.\.\.)\]", r".\1", where.rstrip("`")).lstrip(".")
    return f"{path}: {what}" if path else what


def later_schema(what: str, schema: int, newest: int) -> RecordError:
    """The error for data written by a later version."""
    return RecordError(
        f"{what} of schema {schema}, but this version reads up to {newest}: upgrade toolcall-profiler"
    )


def _schema(line: bytes | str) -> int:
    """The schema number that a line claims although it is not a record; 0 without one."""
    try:
        return int(orjson.loads(line)["schema"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return 0


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(LoopRecord).decode


def files_of(path: Path) -> list[Path]:
    """The files of records that a path names: itself, or all `*.jsonl` in it. Raises `RecordError`."""
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.jsonl"))
    if not found:
        raise RecordError(f"{path}: not a run directory: neither run.json nor records (*.jsonl) are in it")
    return found


def read(path: Path | str, lines: array[int] | None = None) -> Iterator[LoopRecord]:
    """The records of a JSONL file, one by one; `lines` gets the byte at which the line of each begins.

    An incomplete last line (the writer was killed) is skipped silently; a bad line elsewhere raises
    `RecordError` with file and line number.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below; the try is for opening alone)
    except OSError as error:
        raise RecordError(f"{path}: cannot read records: {error.strerror}") from error
    with file:
        begins = 0
        for number, line in enumerate(file, start=1):
            try:
                record = decode(line)
            except RecordError as error:
                if not line.endswith(b"\n"):
                    return
                raise RecordError(f"{path}:{number}: {error}") from error
            if lines is not None:
                lines.append(begins)
                begins += len(line)
            yield record


def read_at(path: Path | str, lines: Iterable[int]) -> Iterator[LoopRecord]:
    """Some records of a JSONL file, by the byte at which the line of each begins. Raises `RecordError`."""
    try:
        with open(path, "rb") as file:
            for begins in lines:
                file.seek(begins)
                yield decode(file.readline())
    except OSError as error:
        raise RecordError(f"{path}: cannot read records: {error.strerror}") from error
