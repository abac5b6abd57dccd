"""The one data model: what a loop did, and when.

A `LoopRecord` is one pass of the tool-calling loop. It holds `RoundRecord`s; a round holds
one `ModelCall` (with its HTTP `Attempt`s) and the `ToolCall`s that the model asked for in it.
Every consumer (Prometheus, JSONL, statistics, traces, reports) reads these and nothing else.

All times are monotonic nanoseconds of the process that ran the loop; the run directory's
`run.json` holds the anchor that turns them into wall-clock time. `None` means: did not happen
(a call that never got through its limiter has no `started_ns`) or was not observed.

Prompts, arguments and results are in the record only when the loop was told to record content.

As JSON a record is one object with exactly these field names, its `schema` number last.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson

from profiler.errors import RecordError

if TYPE_CHECKING:
    from pydantic_core import SchemaValidator

SCHEMA = 1

MOST = 2**62
"""Of any number in a record, so that the difference of two fits 64 bits."""

Status = Literal["ok", "error", "cancelled"]
ToolStatus = Literal["ok", "error", "timeout", "cancelled"]
Shortfall = Literal["limiter", "blocked_loop", "threads", "application"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One HTTP try of a model request; the SDKs retry inside one call.

    `connected_ns`: a connection was there (of one kept alive only aiohttp's transport tells).
    `sent_ns`: the request was written.
    `first_byte_ns` is the arrival of the response headers, `ended_ns` the end of the body or
    the failure. `rate_limits` maps the provider's rate-limit headers to their values.
    """

    started_ns: int
    ended_ns: int
    status: int | None = None
    error_type: str | None = None
    request_id: str | None = None
    connected_ns: int | None = None
    sent_ns: int | None = None
    first_byte_ns: int | None = None
    retry_after_ns: int | None = None
    rate_limits: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One model request as the caller sees it: all attempts and the backoff between them.

    `first_token_ns` and `first_tool_call_ns` (the first call whose arguments were complete)
    are observed on streamed requests only. `limiter_wait_ns` is the part of it in which limiters of
    ours held it back (`profiler.loop.limited_model`).
    """

    provider: str
    model: str
    started_ns: int
    ended_ns: int
    status: Status = "ok"
    error_type: str | None = None
    request_id: str | None = None
    finish_reason: str | None = None
    streamed: bool = False
    first_token_ns: int | None = None
    first_tool_call_ns: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    attempts: tuple[Attempt, ...] = ()
    limiter_wait_ns: int = 0


@dataclass(frozen=True, slots=True)
class ToolAttempt:
    """One try of a tool call that may be tried again; `retry_after_ns` is the wait a server asked for."""

    started_ns: int
    ended_ns: int
    status: ToolStatus = "ok"
    error_type: str | None = None
    retry_after_ns: int | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call the model asked for.

    ready: its arguments were complete. queued: handed to the strategy. started: through the
    limiter. ended. Queue wait is started - queued, duration is ended - started; a `timeout`
    counts from started. `thread_wait_ns` is the part of the duration that a sync tool waited
    for a free thread, `blocking_ns` the part in which an async tool held the event loop in steps
    of over 10 ms, so that nothing else could run. `error_type` is bounded: `invalid_json`,
    `invalid_arguments`, `truncated`, `unknown_tool`, `timeout`, `cancelled`, `http_429` and the
    like where a server refused the tool, or the class name of what it raised.

    ready is before the model's reply was complete where that was streamed; eager calls may start
    before it too. `attempts` are those of a tool with retries: its duration runs from the first one's
    start to the last one's end, what lies between (backoff, the limiter again) included.
    """

    id: str
    name: str
    ready_ns: int
    queued_ns: int
    started_ns: int | None
    ended_ns: int
    status: ToolStatus = "ok"
    error_type: str | None = None
    thread_wait_ns: int = 0
    blocking_ns: int = 0
    arguments: str | None = None
    result: str | None = None
    attempts: tuple[ToolAttempt, ...] = ()


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One model response and the execution of every tool call in it.

    The tool phase runs from `tools_started_ns` (all calls parsed, handed to the strategy) to
    `tools_ended_ns`; both are None in a round without calls. After it the results are
    collected into messages until `ended_ns`. `shortfall` names what kept the calls from
    overlapping as the strategy allows (`profiler.anatomy.shortfall`), None if nothing did.
    `unobserved_calls` were asked for, but no tool that is profiled ran them. `limit` is how many calls
    the strategy let run at once when the phase began, None if it sets no such limit.
    """

    index: int
    started_ns: int
    ended_ns: int
    model: ModelCall
    tools_started_ns: int | None = None
    tools_ended_ns: int | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    status: Status = "ok"
    shortfall: Shortfall | None = None
    unobserved_calls: int = 0
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class LoopRecord:
    """One pass of the loop, from the user's message to the final answer.

    `status` is `ok` when the model came to an answer, also where a tool call failed on the way.
    `name` is what the application calls this kind of loop, `agent` which simulated caller ran it.
    `number` is the tape entry the loop worked on, `trial` the index of the trial it ran in
    (None outside a load test), `process` names the process that ran it, `intended_ns` is when
    an open load meant it to start. `parent` is the id of the loop in whose tool call this one
    ran (an agent as a tool). `lag_ns` is the worst event-loop lag sampled while it ran.

    Of a loop that was only observed: `ambiguous_calls` were matched to one of several that the
    model had asked for without anything to tell them apart, `rounds_dropped` were the first ones
    of a loop so long that not all could be kept.
    """

    id: str
    strategy: str
    provider: str
    model: str
    started_ns: int
    ended_ns: int
    status: Status
    rounds: tuple[RoundRecord, ...]
    error_type: str | None = None
    name: str = ""
    agent: str = ""
    number: int | None = None
    trial: int | None = None
    process: str = ""
    intended_ns: int | None = None
    parent: str | None = None
    lag_ns: int = 0
    ambiguous_calls: int = 0
    rounds_dropped: int = 0
    prompt: str | None = None
    text: str | None = None
    schema: int = SCHEMA

    @property
    def tool_calls(self) -> Iterator[ToolCall]:
        """Every tool call of every round, in order."""
        for round_ in self.rounds:
            yield from round_.tool_calls


_DURATIONS = frozenset({"lag_ns", "limiter_wait_ns", "thread_wait_ns", "blocking_ns", "retry_after_ns"})
_TIMES = {
    cls: tuple(f.name for f in fields(cls) if f.name.endswith("_ns") and f.name not in _DURATIONS)
    for cls in (Attempt, ModelCall, ToolAttempt, ToolCall, RoundRecord, LoopRecord)
}


def shifted(record: LoopRecord, by_ns: int) -> LoopRecord:
    """The record with every time moved by `by_ns`: onto another machine's clock. Durations stay."""

    def moved(one: Any, **parts: Any) -> Any:
        times = ((name, getattr(one, name)) for name in _TIMES[type(one)])
        return replace(one, **{name: at + by_ns for name, at in times if at is not None}, **parts)

    rounds = tuple(
        moved(
            round_,
            model=moved(round_.model, attempts=tuple(moved(a) for a in round_.model.attempts)),
            tool_calls=tuple(
                moved(call, attempts=tuple(moved(a) for a in call.attempts)) for call in round_.tool_calls
            ),
        )
        for round_ in record.rounds
    )
    result: LoopRecord = moved(record, rounds=rounds)
    return result


def encode(record: LoopRecord) -> bytes:
    """One line of `records.jsonl`, without the newline."""
    return orjson.dumps(record)


def decode(line: bytes | str) -> LoopRecord:
    """Inverse of `encode`. Unknown keys (of a later minor version) are ignored.

    Raises `RecordError` for what is not a record, or is of a later schema.
    """
    from pydantic_core import ValidationError

    try:
        record: LoopRecord = _reader().validate_json(line, strict=True)
    except ValidationError as error:
        schema = _schema(line)
        if schema > SCHEMA:
            raise _later(schema) from error
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"not a loop record: {where}{': ' if where else ''}{first['msg']}") from error
    if record.schema > SCHEMA:
        raise _later(record.schema)
    return record


def _later(schema: int) -> RecordError:
    return RecordError(
        f"record of schema {schema}, but this version reads up to {SCHEMA}: upgrade toolcall-profiler"
    )


def _schema(line: bytes | str) -> int:
    """The schema number of a line that is no record; 0 for none."""
    try:
        return int(orjson.loads(line)["schema"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return 0


@functools.cache
def _reader() -> SchemaValidator:
    """Checks and builds at once, in compiled code. Whole numbers have to fit 64 bits, as tables hold them."""
    from pydantic import TypeAdapter
    from pydantic_core import SchemaValidator

    schema = TypeAdapter(LoopRecord).core_schema
    _bound(schema)
    return SchemaValidator(schema)


def _bound(schema: Any) -> None:
    if isinstance(schema, dict):
        if schema.get("type") == "int":
            schema.update(ge=-MOST, le=MOST)
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            _bound(part)


def read(path: Path | str) -> Iterator[LoopRecord]:
    """The records of a JSONL file, one by one.

    A torn last line (the writer was killed) is left out silently; a bad line elsewhere raises
    `RecordError` with file and line number.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below; the try is for opening alone)
    except OSError as error:
        raise RecordError(f"{path}: cannot read records: {error.strerror}") from error
    with file:
        for number, line in enumerate(file, start=1):
            try:
                yield decode(line)
            except RecordError as error:
                if not line.endswith(b"\n"):
                    return
                raise RecordError(f"{path}:{number}: {error}") from error
