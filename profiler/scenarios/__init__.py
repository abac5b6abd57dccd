"""Scenarios: the description of the work, read from TOML and checked.

A `Scenario` says what the emulated model and tools do (how long, how often, within which quotas,
with which faults); it holds no random draws. The tape (`profiler.emulator.tape`) turns a scenario,
a seed and a loop number into work.

All times are in seconds before `Scenario.time_scale` is applied. Every mistake in a file is a
`ScenarioError` that names file, key and what was expected, in the words of the key's description.
Scenarios built in code are checked too, and raise pydantic's `ValidationError`.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, ValidationInfo, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from profiler.errors import ScenarioError, did_you_mean
from profiler.providers import DialectName
from profiler.scenarios.forms import (
    TABLES,
    ZERO,
    Count,
    CountOrNone,
    Distribution,
    Drawn,
    Number,
    NumberOrNone,
    Positive,
    PositiveOrNone,
    Share,
    SignedShare,
    Table,
    Text,
    Texts,
    Whole,
    bounded,
    expected,
    listed,
    numbers,
)

CapacityMode = Literal["reject", "queue", "share"]
Failure = Literal[
    "http_429", "http_500", "http_503", "http_529", "reset", "hang", "slow_first_byte", "truncated_stream",
    "stream_error", "malformed_arguments", "unknown_tool", "wrong_type", "tool_http_500",
]  # fmt: skip
OddWire = Literal[
    "missing_index", "same_index", "index_from_one", "negative_index", "interleaved_calls", "duplicate_ids",
    "missing_ids", "empty_ids", "null_arguments", "missing_arguments", "empty_arguments", "object_arguments",
    "null_type", "missing_status", "empty_output", "no_finish_reason", "several_finishes",
    "delta_after_finish", "stop_finish", "usage_in_words", "negative_usage", "huge_usage", "missing_usage",
    "late_usage", "corrected_usage", "pause_turn", "server_tool",
]  # fmt: skip
McpFault = Literal[
    "mcp_error_result", "mcp_rpc_error", "mcp_http_429", "mcp_reset", "mcp_reset_in_reply", "mcp_no_answer",
    "mcp_accepted", "mcp_silence", "mcp_session_lost", "mcp_slow_progress", "mcp_wrong_id",
    "mcp_bad_structure", "mcp_endless_listing", "mcp_refused_result", "mcp_refused_error", "mcp_noise",
    "mcp_exit",
]  # fmt: skip
FaultKind = Literal[Failure, OddWire, McpFault]

FAULT_KINDS: tuple[Failure, ...] = get_args(Failure)
"""Faults that make a request or a call fail."""

WIRE_FAULTS: tuple[OddWire, ...] = get_args(OddWire)
"""Faults in the form of a reply, as gateways and small servers shape it; what it says is all there."""

MCP_FAULTS: tuple[McpFault, ...] = get_args(McpFault)
"""Faults of a tool's call over MCP; over plain HTTP nothing is changed."""

CALL_FAULTS: frozenset[str] = frozenset(
    {"malformed_arguments", "unknown_tool", "wrong_type", "tool_http_500", *MCP_FAULTS}
)

MOST_ROUNDS, MOST_FAN_OUT, MOST_TOKENS = 1000, 4096, 10_000_000


@dataclass(frozen=True)
class CapacityStep(Table):
    """From `after` seconds since the start on, the capacity is `fraction` of what is stated."""

    after: Number
    fraction: Number


@dataclass(frozen=True)
class Capacity(Table):
    """How much one tool can serve. Concurrency and rate limits hold together when both are set.

    `concurrent`: calls served at once, None for no limit. Above it, `mode` decides: `reject`
    answers 429; `queue` holds up to `queue` more calls in order of arrival and answers 503 beyond;
    `share` serves all of them, each at the speed `concurrent / in_flight`.
    `requests_per_second` with a bucket of `burst` requests answers 429 with Retry-After.

    `retry_after`: the seconds that every refusal announces, instead of what the rate needs or of nothing.
    `refusal_seconds`: how long a refusal takes.
    """

    concurrent: CountOrNone = None
    mode: CapacityMode = "reject"
    queue: Whole = 0
    requests_per_second: PositiveOrNone = None
    burst: Count = 1
    schedule: Annotated[tuple[CapacityStep, ...], TABLES] = ()
    retry_after: NumberOrNone = None
    refusal_seconds: Number = 0.0

    @model_validator(mode="after")
    def _is_limited(self) -> Capacity:
        if self.concurrent is None and self.requests_per_second is None:
            raise expected("concurrent or requests_per_second", "concurrent")
        for n, (step, later) in enumerate(itertools.pairwise(self.schedule), start=1):
            if later.after <= step.after:
                raise expected("a time later than the step before", "schedule", n, "after")
        return self


@dataclass(frozen=True)
class ToolSpec(Table):
    """One tool of the emulator. `parameters` is its JSON Schema, `path` its HTTP path (`/tools/x`).

    `weight`: how often the model asks for it, beside the others; a list has the weight in each round, its
    last in all later ones. `server` names the one of `[servers]` whose capacity it shares with other tools.
    """

    name: str
    path: Annotated[str, Field(description="a text")]
    description: Text
    parameters: Annotated[dict[str, Any], Field(description='a JSON Schema with type = "object"')]
    duration: Drawn
    capacity: Capacity | None = None
    weight: Annotated[
        tuple[Number, ...], BeforeValidator(listed), numbers("a number of at least 0, or a list of those")
    ] = (1.0,)
    server: Text | None = None

    @model_validator(mode="after")
    def _has_one_capacity(self) -> ToolSpec:
        if self.capacity is not None and self.server is not None:
            raise expected("no capacity of its own, since it has that of its server", "capacity")
        return self


@dataclass(frozen=True)
class ModelSpec(Table):
    """The emulated model. `first_token` in seconds; `tokens_per_second` 0 means all at once.

    `models` are the accepted names (empty: any name), `api_keys` the accepted keys (empty: any or
    none). `tokens_per_event` is the size of a streamed delta.

    `dialect` is how it speaks Chat Completions, `refuses` the fields of a request that it does not know.

    Input tokens of a request: those of its body, and `context_tokens`, which stand for a long prompt that
    nobody has to send. `cached_share` of them are read from the prompt cache, `cache_written_share` of the
    others are written to it for `cache_ttl`. `reasoning_tokens` come before a reply and take their time;
    where they are not given, some dialects have a few.

    `duration`: seconds of a whole reply, whatever its tokens; the first token comes within it.
    `input_tokens` and `output_tokens` are what a reply says that it had and what quotas count, whatever the
    length of its text.
    """

    first_token: Drawn
    tokens_per_second: Drawn
    tokens_per_event: Count = 8
    models: Texts = ()
    api_keys: Texts = ()
    dialect: DialectName = "openai"
    refuses: Texts = ()
    context_tokens: Annotated[Drawn, bounded(MOST_TOKENS)] = ZERO
    cached_share: Annotated[Drawn, bounded(1)] = ZERO
    cache_written_share: Annotated[Drawn, bounded(1)] = ZERO
    cache_ttl: Literal["5m", "1h"] = "5m"
    reasoning_tokens: Annotated[Drawn, bounded(MOST_TOKENS)] | None = None
    duration: Drawn | None = None
    input_tokens: Annotated[Drawn, bounded(MOST_TOKENS)] | None = None
    output_tokens: Annotated[Drawn, bounded(MOST_TOKENS)] | None = None


@dataclass(frozen=True)
class LoopSpec(Table):
    """The shape of a loop: how many `rounds` with calls come before the answer, and calls per round.

    `fan_out_by_round`: the calls of the first rounds, a number or a distribution for each, where they are
    unlike those of the others. `same_tool`: the share of calls that ask for the tool of the call before them
    in their round, whatever the tools' weights.
    """

    rounds: Annotated[Drawn, bounded(MOST_ROUNDS)]
    fan_out: Annotated[Drawn, bounded(MOST_FAN_OUT)]
    fan_out_by_round: Annotated[
        tuple[Annotated[Drawn, bounded(MOST_FAN_OUT)], ...],
        Field(description="a list of numbers or distributions"),
    ] = ()
    same_tool: Share = 0.0


@dataclass(frozen=True)
class Correlation(Table):
    """What draws have in common; each has the distribution that is stated for it, all the same.

    A Gaussian copula: a draw is the quantile of a normal number that is made up of parts. `loop`: the share
    of the variance of that number which all tool calls of a loop have in common; `round`: that which the
    calls of a round have in common beside. `size`: the share of that of rounds and fan-out which goes with
    what the loop's calls have in common (negative: the larger a loop, the faster its calls); `model`: the
    same for the durations of the model's replies.

    `first_token`, `input_tokens`, `output_tokens`: the correlation with the model's `duration`, from -1 to 1.
    """

    loop: Share = 0.0
    round: Share = 0.0
    size: SignedShare = 0.0
    model: SignedShare = 0.0
    first_token: SignedShare = 0.0
    input_tokens: SignedShare = 0.0
    output_tokens: SignedShare = 0.0

    @model_validator(mode="after")
    def _has_room(self) -> Correlation:
        if self.loop + self.round > 1:
            raise expected(f"a number of at most 1 - loop ({1 - self.loop:g})", "round")
        return self


@dataclass(frozen=True)
class Quota(Table):
    """The server's limits per API key, None for none. `burst`: how many minutes' worth a full bucket holds.

    OpenAI's single token limit is the sum of the input and the output limit.

    `retry_after`: the wait that a 429 announces: `exact` (to the millisecond, where the provider's headers
    can say it), in whole `seconds`, or `none`. `refusal_seconds`: how long a refusal takes.
    """

    requests_per_minute: PositiveOrNone = None
    input_tokens_per_minute: PositiveOrNone = None
    output_tokens_per_minute: PositiveOrNone = None
    concurrent_requests: CountOrNone = None
    burst: Positive = 1.0
    retry_after: Literal["exact", "seconds", "none"] = "exact"
    refusal_seconds: Number = 0.0

    @model_validator(mode="after")
    def _both_tokens_or_none(self) -> Quota:
        limits = ("input_tokens_per_minute", "output_tokens_per_minute")
        missing = [key for key in limits if getattr(self, key) is None]
        if len(missing) == 1:
            raise expected("a number, since the other token limit is set", *missing)
        return self


@dataclass(frozen=True)
class TapePosition(Table):
    """A place on the tape. `round` and `call` default to the first of the loop or round."""

    loop: Whole
    round: Whole = 0
    call: Whole = 0


_SECONDS = {"server_tool": 0.5, "pause_turn": 0.5, "mcp_http_429": 1.0, "mcp_slow_progress": 2.0}
"""Of faults where it is not as long as a hang, unless the file says so."""


@dataclass(frozen=True)
class Fault(Table):
    """A fault, with a `probability` per model request (or per call), or `at` positions.

    It hits the first `attempts` attempts of a model request; one of `WIRE_FAULTS` hits all, and several of
    those may shape one reply. `seconds` is how long a hang lasts before the connection is reset, how much
    later a slow first byte comes, or how long the server's own tool runs (there 0.5 unless given). Of those
    over MCP: how long a silence lasts, how much longer slow progress makes a call (2), and the wait that a
    429 announces (1). `tools`: a fault of calls hits those of these tools only.
    """

    kind: FaultKind
    probability: Number = 0.0
    at: Annotated[tuple[TapePosition, ...], TABLES] = ()
    attempts: Count = 1
    seconds: Number = 30.0
    tools: Texts = ()

    @model_validator(mode="wrap")
    @classmethod
    def _happens_somewhere(cls, table: Any, build: Any) -> Any:
        kind = table.get("kind") if isinstance(table, dict) else None
        if isinstance(kind, str) and kind in _SECONDS:
            table = {"seconds": _SECONDS[kind], **table}
        fault = build(table)
        if isinstance(table, dict) and ("probability" in table) == ("at" in table):
            raise expected("either probability or at", "probability")
        if fault.probability > 1:
            raise expected("a number from 0 to 1", "probability")
        if fault.tools and fault.kind not in CALL_FAULTS:
            raise expected("no tools, since this is no fault of a tool's calls", "tools")
        return fault


_TOOLS = TypeAdapter(dict[str, ToolSpec])
_ANY_OBJECT = {"type": "object", "properties": {}}


def _tool(name: str, table: Any) -> Any:
    defaults = {"path": f"/tools/{name}", "parameters": _ANY_OBJECT}
    return ArgsKwargs((name,), defaults | table) if isinstance(table, dict) else table


def _tools(tables: Any) -> tuple[ToolSpec, ...]:
    """The tools from their tables by name."""
    if isinstance(tables, tuple):
        return tables
    if isinstance(tables, dict):
        tables = {name: _tool(name, table) for name, table in tables.items()}
    specs = _TOOLS.validate_python(tables)
    if not specs:
        raise expected("at least one tool, as [tools.NAME]")
    paths = [spec.path for spec in specs.values()]
    for name, spec in specs.items():
        if not re.fullmatch("/tools/[^/]+", spec.path):
            raise expected("a path such as /tools/weather", name, "path")
        if paths.count(spec.path) > 1 and spec.path != f"/tools/{name}":
            raise expected("a path of its own", name, "path")
        if spec.parameters.get("type") != "object":
            raise expected('a JSON Schema with type = "object"', name, "parameters")
    return tuple(specs.values())


def _default_tool(table: Any, scenario: ValidationInfo) -> Any:
    """The tool that stands for all that are not defined; by default as slow as the first one."""
    if not isinstance(table, dict):
        return table
    given = ("", "", "any tool that the client offers and the scenario does not define", _ANY_OBJECT)
    duration = {"duration": tools[0].duration} if (tools := scenario.data.get("tools")) else {}
    return ArgsKwargs(given, duration | table)


@dataclass(frozen=True)
class Scenario(Table):
    """Everything the emulator needs to know; see the module's docstring."""

    name: str
    description: Text
    prompt: Text
    model: ModelSpec
    loop: LoopSpec
    tools: Annotated[tuple[ToolSpec, ...], BeforeValidator(_tools)]
    default_tool: Annotated[ToolSpec, BeforeValidator(_default_tool)]
    quota: Quota | None = None
    faults: Annotated[tuple[Fault, ...], TABLES] = ()
    time_scale: Number = 1.0
    servers: Annotated[dict[str, Capacity], Field(description="tables of capacities by name")] = field(
        default_factory=dict
    )
    correlation: Correlation = Correlation()

    @model_validator(mode="after")
    def _is_described_in_a_line(self) -> Scenario:
        if "\n" in self.description:
            raise expected("a single line", "description")
        return self

    @model_validator(mode="after")
    def _names_its_servers(self) -> Scenario:
        for spec in self.tools:
            if spec.server is not None and spec.server not in self.servers:
                raise expected("the name of one of [servers]", "tools", spec.name, "server")
        return self

    @model_validator(mode="after")
    def _can_be_correlated(self) -> Scenario:
        """A gamma distribution has no quantile function in closed form."""
        common, model = self.correlation, self.model
        drawn: list[tuple[Distribution | None, tuple[str, ...]]] = []
        if common.loop or common.round:
            drawn += [(spec.duration, ("tools", spec.name, "duration")) for spec in self.tools]
        if common.size:
            drawn += [(self.loop.rounds, ("loop", "rounds")), (self.loop.fan_out, ("loop", "fan_out"))]
            drawn += [(one, ("loop", "fan_out_by_round")) for one in self.loop.fan_out_by_round]
        if common.model or common.first_token or common.input_tokens or common.output_tokens:
            parts = ("duration", "first_token", "input_tokens", "output_tokens")
            drawn += [(getattr(model, part), ("model", part)) for part in parts]
        for distribution, place in drawn:
            if distribution is not None and distribution.kind == "gamma":
                raise expected("another kind than gamma, which cannot be correlated", *place)
        return self

    def tool(self, name: str) -> ToolSpec:
        """The spec of tool `name`, or the scenario's default for names it does not define."""
        return next((spec for spec in self.tools if spec.name == name), self.default_tool)


_SCENARIO = TypeAdapter(Scenario)
_SHIPPED = Path(__file__).parent


def load_scenario(name_or_path: str) -> Scenario:
    """Read a shipped scenario by name, or a TOML file by path (which has a slash or ends in `.toml`)."""
    path = Path(name_or_path)
    if not re.search(r"[/\\]|\.toml\Z", name_or_path):
        if name_or_path not in _shipped_names():
            raise ScenarioError(
                f"unknown scenario {name_or_path!r}{did_you_mean(name_or_path, _shipped_names())}; "
                f"shipped: {', '.join(_shipped_names())}; a file is given by its path, such as ./mine.toml"
            )
        path = _SHIPPED / f"{name_or_path}.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: the bytes are not UTF-8
        reason = getattr(error, "strerror", error)
        raise ScenarioError(f"{path}: cannot read the scenario file: {reason}") from error
    return parse_scenario(text, name=path.stem, source=str(path))


def shipped_scenarios() -> list[Scenario]:
    """All scenarios of the package, by name."""
    return [load_scenario(name) for name in _shipped_names()]


def _shipped_names() -> list[str]:
    return sorted(path.stem for path in _SHIPPED.glob("*.toml"))


def parse_scenario(text: str, *, name: str, source: str) -> Scenario:
    """Parse TOML `text`; `source` is what error messages call the file."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: endless numbers and nesting
        raise ScenarioError(f"{source}: not valid TOML: {error}") from error
    try:
        return _SCENARIO.validate_python(ArgsKwargs((name,), {"default_tool": {}, **data}))
    except ValidationError as error:
        message = _message(error, data)
    # Not within `except`: a traceback would show pydantic's error, and in it the file's API keys.
    raise ScenarioError(f"{source}: {message}")


def _message(error: ValidationError, data: dict[str, Any]) -> str:
    """One line on the first problem. Unknown keys come first: a misspelt key is also a missing one."""
    problem = min(error.errors(include_url=False), key=lambda one: one["type"] != "unknown")
    place, found = _find(problem["loc"], data)
    options = problem["ctx"].get("options", ())
    if problem["type"] == "unknown":
        hint = did_you_mean(str(problem["loc"][-1]), options)
        return f"unknown key {place!r}{hint}; expected one of: {', '.join(options)}"
    hint = did_you_mean(str(found[0]), options) if found else ""
    value = f", found {found[0]!r}" if found else ", found nothing"
    if place.endswith(".api_keys"):
        value = ""  # keys are not repeated
    return f"{place}: expected {problem['ctx']['words']}{hint}{value}"


def _find(loc: tuple[str | int, ...], data: dict[str, Any]) -> tuple[str, list[Any]]:
    """The place that pydantic calls `loc`, and what the file has there: nothing, or one value."""
    place, found = "", [data]
    for key in loc:
        inside = found[0] if found else None
        if isinstance(inside, list):
            place, found = f"{place}[{key}]", [inside[int(key)]]
        elif isinstance(inside, dict) and (key in inside or key == loc[-1]):
            place, found = f"{place}.{key}", [inside[key]] if key in inside else []
        # Otherwise it is the kind of a distribution, which pydantic puts into the path of its errors.
    return place.removeprefix("."), found
