"""Scenarios: the description of the work, read from TOML and checked.

A `Scenario` says what the emulated model and tools do (how long, how often, within which quotas,
with which faults); it holds no random draws. The tape (`profiler.emulator.tape`) turns a scenario,
a seed and a loop number into work.

All times are in seconds before `Scenario.time_scale` is applied. Every mistake in a file is a
`ScenarioError` that names file, key and what was expected, in the words of the key's description.
Scenarios built in code are checked too, and raise pydantic's `ValidationError`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import ArgsKwargs, ErrorDetails, InitErrorDetails, PydanticCustomError

from profiler.errors import ScenarioError, did_you_mean
from profiler.providers import DialectName

# Scenarios: the description of the work, read from TOML and checked.


DistributionKind = Literal["constant", "uniform", "exponential", "lognormal", "gamma", "pareto", "empirical"]
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

MOST = 1e9
"""The largest number in a scenario, whatever its unit."""

MOST_ROUNDS, MOST_FAN_OUT, MOST_TOKENS = 1000, 4096, 10_000_000


# How a mistake in a file becomes one line: validators raise what they `_expected`; `_Table` turns pydantic's
# own errors into the same form; `_message` reports the first of a file's problems.


def _expected(words: str, *place: str | int) -> ValidationError:
    """The error of a validator that expected `words` at `place`, a path from the value it checks."""
    problem = PydanticCustomError("expected", "{words}", {"words": words})
    return ValidationError.from_exception_data("", [{"type": problem, "loc": place, "input": None}])


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class _Table:
    """A table of the file. Pydantic's errors about it are put into the words of its fields."""

    @model_validator(mode="wrap")
    @classmethod
    def _check(cls, table: Any, build: Any) -> Any:
        try:
            return build(table)
        except ValidationError as error:
            problems = error.errors(include_url=False)
        fields: dict[str, FieldInfo] = cls.__pydantic_fields__  # type: ignore[attr-defined]
        # Fields given by position, such as the name of a tool, are no keys of the file.
        known = list(fields)[len(table.args) if isinstance(table, ArgsKwargs) else 0 :]
        raise ValidationError.from_exception_data("", [_in_words(one, fields, known) for one in problems])


def _in_words(problem: ErrorDetails, fields: dict[str, FieldInfo], known: list[str]) -> InitErrorDetails:
    """A table's `problem` as one of two types: an `unknown` key, or a value that is not as `expected`."""
    kind, place, context = problem["type"], problem["loc"], problem.get("ctx", {})
    if kind in ("unexpected_keyword_argument", "multiple_argument_values"):
        kind, context = "unknown", {"options": known}
    elif kind not in ("unknown", "expected"):  # those have been put into words by an inner table
        field = fields.get(str(place[0])) if place else None
        options = get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()
        words = (field and field.description) or "a table"
        place = place[:1]  # lists of numbers and of texts are shown whole
        if kind.startswith("union_tag"):
            place, options = (*place, "kind"), get_args(DistributionKind)
        elif kind == "less_than_equal" and problem["input"] > context["le"]:  # which NaN is not
            words = f"a number of at most {context['le']:g}"
        words = f"one of {', '.join(options)}" if options else words
        kind, context = "expected", {"words": words, "options": options}
    return {"type": PydanticCustomError(kind, "{words}", context), "loc": place, "input": None}


def _number(least: float = 0.0, *, above: float | None = None, most: float = MOST) -> Any:
    words = f"a number of at least {least:g}" if above is None else f"a number above {above:g}"
    return Field(strict=True, ge=least, gt=above, le=most, description=words)


def _whole(least: int) -> Any:
    return Field(strict=True, ge=least, lt=2**63, description=f"a whole number of at least {least}")


_Number = Annotated[float, _number()]
_Positive = Annotated[float, _number(above=0)]
_Whole = Annotated[int, _whole(0)]
_Count = Annotated[int, _whole(1)]
_PositiveOrNone = Annotated[float | None, _number(above=0)]
_CountOrNone = Annotated[int | None, _whole(1)]
_Text = Annotated[str, Field(min_length=1, description="a text")]
_Texts = Annotated[tuple[_Text, ...], Field(description="a list of texts")]
_TABLES = Field(description="a list of tables")


@dataclasses.dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution of non-negative numbers; `parameters` in the order of the kind's TOML keys.

    constant: value; uniform: low, high; exponential: mean; lognormal: median, sigma; gamma: mean,
    shape; pareto: scale (the minimum), alpha; empirical: the values themselves, equally likely.
    Draws are clamped to [`minimum`, `maximum`]. Two equal distributions with different `seed` draw
    different values.
    """

    kind: DistributionKind
    parameters: tuple[float, ...]
    minimum: float = 0.0
    maximum: float = float("inf")
    seed: int = 0


_Values = Annotated[tuple[_Number, ...], Field(min_length=1, description="a list of numbers of at least 0")]
_PARAMETERS: dict[DistributionKind, dict[str, Any]] = {
    "constant": {"value": _Number},
    "uniform": {"low": _Number, "high": _Number},
    "exponential": {"mean": _Positive},
    # Beyond these bounds of sigma, shape and alpha a draw could overflow a float.
    "lognormal": {"median": _Positive, "sigma": Annotated[float, _number(above=0, most=10)]},
    "gamma": {"mean": _Positive, "shape": Annotated[float, _number(0.01)]},
    "pareto": {"scale": _Positive, "alpha": Annotated[float, _number(0.1)]},
    "empirical": {"values": _Values},
}


def _form(kind: DistributionKind) -> Any:
    """The table of a distribution of `kind`."""
    keys = {"kind": Literal[kind], **_PARAMETERS[kind], "min": _Number, "max": _Number, "seed": _Whole}
    defaults = {"min": 0.0, "max": float("inf"), "seed": 0}
    return dataclass(frozen=True)(type(kind, (_Table,), {"__annotations__": keys, **defaults}))


_ANY_FORM: Any = functools.reduce(operator.or_, map(_form, _PARAMETERS))
_FORMS = TypeAdapter[Any](Annotated[_ANY_FORM, Field(discriminator="kind")])


def _distribution(value: Any) -> Distribution:
    if isinstance(value, Distribution):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = {"kind": "constant", "value": value}
    form = _FORMS.validate_python(value)
    if form.kind == "uniform" and form.high < form.low:
        raise _expected(f"a number of at least low ({form.low:g})", "high")
    if form.max < form.min:
        raise _expected(f"a number of at least min ({form.min:g})", "max")
    parameters = tuple(getattr(form, name) for name in _PARAMETERS[form.kind])
    values = form.values if form.kind == "empirical" else parameters
    return Distribution(form.kind, values, form.min, form.max, form.seed)


_Distribution = Annotated[
    Distribution,
    BeforeValidator(_distribution),
    Field(description='a number, or a distribution such as { kind = "uniform", low = 0.1, high = 0.3 }'),
]


def _bounded(most: int) -> AfterValidator:
    """Stated values above `most` are refused; drawn values are cut off there."""

    def bounded(found: Distribution) -> Distribution:
        stated = found.parameters if found.kind in ("constant", "uniform", "empirical") else ()
        if max((*stated, found.minimum)) > most:
            raise _expected(f"at most {most}")
        return dataclasses.replace(found, maximum=min(found.maximum, most))

    return AfterValidator(bounded)


_ZERO = Distribution("constant", (0.0,))


@dataclass(frozen=True)
class CapacityStep(_Table):
    """From `after` seconds since the start on, the capacity is `fraction` of what is stated."""

    after: _Number
    fraction: _Number


@dataclass(frozen=True)
class Capacity(_Table):
    """How much one tool can serve. Concurrency and rate limits hold together when both are set.

    `concurrent`: calls served at once, None for no limit. Above it, `mode` decides: `reject`
    answers 429; `queue` holds up to `queue` more calls in order of arrival and answers 503 beyond;
    `share` serves all of them, each at the speed `concurrent / in_flight`.
    `requests_per_second` with a bucket of `burst` requests answers 429 with Retry-After.
    """

    concurrent: _CountOrNone = None
    mode: CapacityMode = "reject"
    queue: _Whole = 0
    requests_per_second: _PositiveOrNone = None
    burst: _Count = 1
    schedule: Annotated[tuple[CapacityStep, ...], _TABLES] = ()

    @model_validator(mode="after")
    def _is_limited(self) -> Capacity:
        if self.concurrent is None and self.requests_per_second is None:
            raise _expected("concurrent or requests_per_second", "concurrent")
        for n, (step, later) in enumerate(itertools.pairwise(self.schedule), start=1):
            if later.after <= step.after:
                raise _expected("a time later than the step before", "schedule", n, "after")
        return self


@dataclass(frozen=True)
class ToolSpec(_Table):
    """One tool of the emulator. `parameters` is its JSON Schema, `path` its HTTP path (`/tools/x`)."""

    name: str
    path: Annotated[str, Field(description="a text")]
    description: _Text
    parameters: Annotated[dict[str, Any], Field(description='a JSON Schema with type = "object"')]
    duration: _Distribution
    capacity: Capacity | None = None


@dataclass(frozen=True)
class ModelSpec(_Table):
    """The emulated model. `first_token` in seconds; `tokens_per_second` 0 means all at once.

    `models` are the accepted names (empty: any name), `api_keys` the accepted keys (empty: any or
    none). `tokens_per_event` is the size of a streamed delta.

    `dialect` is how it speaks Chat Completions, `refuses` the fields of a request that it does not know.

    Input tokens of a request: those of its body, and `context_tokens`, which stand for a long prompt that
    nobody has to send. `cached_share` of them are read from the prompt cache, `cache_written_share` of the
    others are written to it for `cache_ttl`. `reasoning_tokens` come before a reply and take their time;
    where they are not given, some dialects have a few.
    """

    first_token: _Distribution
    tokens_per_second: _Distribution
    tokens_per_event: _Count = 8
    models: _Texts = ()
    api_keys: _Texts = ()
    dialect: DialectName = "openai"
    refuses: _Texts = ()
    context_tokens: Annotated[_Distribution, _bounded(MOST_TOKENS)] = _ZERO
    cached_share: Annotated[_Distribution, _bounded(1)] = _ZERO
    cache_written_share: Annotated[_Distribution, _bounded(1)] = _ZERO
    cache_ttl: Literal["5m", "1h"] = "5m"
    reasoning_tokens: Annotated[_Distribution, _bounded(MOST_TOKENS)] | None = None


@dataclass(frozen=True)
class LoopSpec(_Table):
    """The shape of a loop: how many `rounds` with calls come before the answer, and calls per round."""

    rounds: Annotated[_Distribution, _bounded(MOST_ROUNDS)]
    fan_out: Annotated[_Distribution, _bounded(MOST_FAN_OUT)]


@dataclass(frozen=True)
class Quota(_Table):
    """The server's limits per API key, None for none. `burst`: how many minutes' worth a full bucket holds.

    OpenAI's single token limit is the sum of the input and the output limit.
    """

    requests_per_minute: _PositiveOrNone = None
    input_tokens_per_minute: _PositiveOrNone = None
    output_tokens_per_minute: _PositiveOrNone = None
    concurrent_requests: _CountOrNone = None
    burst: _Positive = 1.0

    @model_validator(mode="after")
    def _both_tokens_or_none(self) -> Quota:
        limits = ("input_tokens_per_minute", "output_tokens_per_minute")
        missing = [key for key in limits if getattr(self, key) is None]
        if len(missing) == 1:
            raise _expected("a number, since the other token limit is set", *missing)
        return self


@dataclass(frozen=True)
class TapePosition(_Table):
    """A place on the tape. `round` and `call` default to the first of the loop or round."""

    loop: _Whole
    round: _Whole = 0
    call: _Whole = 0


_SECONDS = {"server_tool": 0.5, "pause_turn": 0.5, "mcp_http_429": 1.0, "mcp_slow_progress": 2.0}
"""Of faults where it is not as long as a hang, unless the file says so."""


@dataclass(frozen=True)
class Fault(_Table):
    """A fault, with a `probability` per model request (or per call), or `at` positions.

    It hits the first `attempts` attempts of a model request; one of `WIRE_FAULTS` hits all, and several of
    those may shape one reply. `seconds` is how long a hang lasts before the connection is reset, how much
    later a slow first byte comes, or how long the server's own tool runs (there 0.5 unless given). Of those
    over MCP: how long a silence lasts, how much longer slow progress makes a call (2), and the wait that a
    429 announces (1).
    """

    kind: FaultKind
    probability: _Number = 0.0
    at: Annotated[tuple[TapePosition, ...], _TABLES] = ()
    attempts: _Count = 1
    seconds: _Number = 30.0

    @model_validator(mode="wrap")
    @classmethod
    def _happens_somewhere(cls, table: Any, build: Any) -> Any:
        kind = table.get("kind") if isinstance(table, dict) else None
        if isinstance(kind, str) and kind in _SECONDS:
            table = {"seconds": _SECONDS[kind], **table}
        fault = build(table)
        if isinstance(table, dict) and ("probability" in table) == ("at" in table):
            raise _expected("either probability or at", "probability")
        if fault.probability > 1:
            raise _expected("a number from 0 to 1", "probability")
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
        raise _expected("at least one tool, as [tools.NAME]")
    paths = [spec.path for spec in specs.values()]
    for name, spec in specs.items():
        if not re.fullmatch("/tools/[^/]+", spec.path):
            raise _expected("a path such as /tools/weather", name, "path")
        if paths.count(spec.path) > 1 and spec.path != f"/tools/{name}":
            raise _expected("a path of its own", name, "path")
        if spec.parameters.get("type") != "object":
            raise _expected('a JSON Schema with type = "object"', name, "parameters")
    return tuple(specs.values())


def _default_tool(table: Any, scenario: ValidationInfo) -> Any:
    """The tool that stands for all that are not defined; by default as slow as the first one."""
    if not isinstance(table, dict):
        return table
    given = ("", "", "any tool that the client offers and the scenario does not define", _ANY_OBJECT)
    duration = {"duration": tools[0].duration} if (tools := scenario.data.get("tools")) else {}
    return ArgsKwargs(given, duration | table)


@dataclass(frozen=True)
class Scenario(_Table):
    """Everything the emulator needs to know; see the module's docstring."""

    name: str
    description: _Text
    prompt: _Text
    model: ModelSpec
    loop: LoopSpec
    tools: Annotated[tuple[ToolSpec, ...], BeforeValidator(_tools)]
    default_tool: Annotated[ToolSpec, BeforeValidator(_default_tool)]
    quota: Quota | None = None
    faults: Annotated[tuple[Fault, ...], _TABLES] = ()
    time_scale: _Number = 1.0

    @model_validator(mode="after")
    def _is_described_in_a_line(self) -> Scenario:
        if "\n" in self.description:
            raise _expected("a single line", "description")
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
