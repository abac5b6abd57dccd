"""Scenarios: the description of the work, read from TOML and checked.

Layer 0: standard library only. A `Scenario` says what the emulated model and tools do (how long,
how often, within which quotas, with which faults); it holds no random draws. The tape
(`profiler.emulator.tape`) turns a scenario, a seed and a loop number into work.

All times are in seconds before `Scenario.time_scale` is applied. Every error is a `ScenarioError`
that names file, key and what was expected.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from profiler.errors import ScenarioError, did_you_mean

DistributionKind = Literal["constant", "uniform", "exponential", "lognormal", "gamma", "pareto", "empirical"]
CapacityMode = Literal["reject", "queue", "share"]
FaultKind = Literal[
    "http_429",
    "http_500",
    "http_503",
    "http_529",
    "reset",
    "hang",
    "slow_first_byte",
    "truncated_stream",
    "stream_error",
    "malformed_arguments",
    "unknown_tool",
    "wrong_type",
    "tool_http_500",
]

FAULT_KINDS: tuple[FaultKind, ...] = FaultKind.__args__  # type: ignore[attr-defined]
CALL_FAULTS: frozenset[str] = frozenset(
    {"malformed_arguments", "unknown_tool", "wrong_type", "tool_http_500"}
)

MOST = 1e9
"""The largest number there is in a scenario: of seconds, of tokens, of calls."""

MOST_ROUNDS, MOST_FAN_OUT = 1000, 4096

_LEAST = {"alpha": 0.1, "shape": 0.01}
_MOST = {"sigma": 10.0}
"""Beyond these a draw may be larger than any float."""

_PARAMETERS: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "uniform": ("low", "high"),
    "exponential": ("mean",),
    "lognormal": ("median", "sigma"),
    "gamma": ("mean", "shape"),
    "pareto": ("scale", "alpha"),
    "empirical": ("values",),
}


@dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution of non-negative numbers; `parameters` in the order of the kind's TOML keys.

    constant: value; uniform: low, high; exponential: mean; lognormal: median, sigma; gamma: mean,
    shape; pareto: scale (the minimum), alpha; empirical: the values themselves, equally likely.
    Draws are clamped to [`minimum`, `maximum`]. `seed` separates streams that would else be equal.
    """

    kind: DistributionKind
    parameters: tuple[float, ...]
    minimum: float = 0.0
    maximum: float = float("inf")
    seed: int = 0


def constant(value: float) -> Distribution:
    """The distribution that always yields `value`."""
    return Distribution("constant", (value,))


@dataclass(frozen=True, slots=True)
class CapacityStep:
    """From `after` seconds since the start on, the capacity is `fraction` of what is stated."""

    after: float
    fraction: float


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much one tool can serve. Concurrency and rate limits hold together when both are set.

    `concurrent`: calls served at once, None for no limit. Above it, `mode` decides: `reject`
    answers 429; `queue` holds up to `queue` more calls in order of arrival and answers 503 beyond;
    `share` serves all of them, each at the speed `concurrent / in_flight`.
    `requests_per_second` with a bucket of `burst` requests answers 429 with Retry-After.
    """

    concurrent: int | None = None
    mode: CapacityMode = "reject"
    queue: int = 0
    requests_per_second: float | None = None
    burst: int = 1
    schedule: tuple[CapacityStep, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """One tool of the emulator. `parameters` is its JSON Schema, `path` its HTTP path (`/tools/x`)."""

    name: str
    path: str
    description: str
    parameters: Mapping[str, Any]
    duration: Distribution
    capacity: Capacity | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The emulated model. `first_token` in seconds; `tokens_per_second` 0 means all at once.

    `models` are the accepted names (empty: any name), `api_keys` the accepted keys (empty: any or
    none). `tokens_per_event` is the size of a streamed delta.
    """

    first_token: Distribution
    tokens_per_second: Distribution
    tokens_per_event: int = 8
    models: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoopSpec:
    """The shape of a loop: `rounds` with calls (before the answer) and calls per round (`fan_out`)."""

    rounds: Distribution
    fan_out: Distribution


@dataclass(frozen=True, slots=True)
class Quota:
    """The server's limits per API key, None for none. `burst` is the buckets' size in minutes' worth.

    Our own gate is called a limiter; a quota is theirs. OpenAI's single token limit is the sum of
    the input and the output limit.
    """

    requests_per_minute: float | None = None
    input_tokens_per_minute: float | None = None
    output_tokens_per_minute: float | None = None
    concurrent_requests: int | None = None
    burst: float = 1.0


@dataclass(frozen=True, slots=True)
class TapePosition:
    """A place on the tape. `round` and `call` default to the first of the loop or round."""

    loop: int
    round: int = 0
    call: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong, with `probability` per model request (or per call), or `at` positions.

    It hits the first `attempts` attempts of a model request. `seconds` is how long a hang lasts
    before the connection is reset, or how much later a slow first byte comes.
    """

    kind: FaultKind
    probability: float = 0.0
    at: tuple[TapePosition, ...] = ()
    attempts: int = 1
    seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything the emulator needs to know; see the module's docstring."""

    name: str
    description: str
    prompt: str
    model: ModelSpec
    loop: LoopSpec
    tools: tuple[ToolSpec, ...]
    default_tool: ToolSpec
    quota: Quota | None = None
    faults: tuple[Fault, ...] = ()
    time_scale: float = 1.0
    _by_name: dict[str, ToolSpec] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {spec.name: spec for spec in self.tools})

    def tool(self, name: str) -> ToolSpec:
        """The spec of tool `name`, or the scenario's default for names it does not define."""
        return self._by_name.get(name, self.default_tool)


def load_scenario(name_or_path: str) -> Scenario:
    """Read a shipped scenario by name, or a TOML file by path (anything with a slash or `.toml`)."""
    if "/" in name_or_path or "\\" in name_or_path or name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ScenarioError(f"{path}: cannot read the scenario file: {error.strerror}") from error
        except ValueError as error:  # bytes that are no UTF-8
            raise ScenarioError(f"{path}: cannot read the scenario file: {error}") from error
        return parse_scenario(text, name=path.stem, source=str(path))
    if name_or_path not in _shipped_names():
        raise ScenarioError(
            f"unknown scenario {name_or_path!r}{did_you_mean(name_or_path, _shipped_names())}; "
            f"shipped: {', '.join(_shipped_names())}; a file is given by its path, such as ./mine.toml"
        )
    source = resources.files("profiler.scenarios") / f"{name_or_path}.toml"
    return parse_scenario(source.read_text(encoding="utf-8"), name=name_or_path, source=source.name)


def shipped_scenarios() -> list[Scenario]:
    """All scenarios of the package, by name."""
    return [load_scenario(name) for name in _shipped_names()]


def _shipped_names() -> list[str]:
    files = resources.files("profiler.scenarios").iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in files if entry.name.endswith(".toml"))


def parse_scenario(text: str, *, name: str, source: str) -> Scenario:
    """Parse TOML `text`; `source` is what error messages call the file."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers and nesting without end are not its own errors
        raise ScenarioError(f"{source}: not valid TOML: {error}") from error
    return _Table(data, source, "").scenario(name)


_T = TypeVar("_T")


class _Table:
    """One TOML table with its place in the file: typed access that fails with file, key, expectation."""

    def __init__(self, data: Mapping[str, Any], source: str, prefix: str) -> None:
        self._data = data
        self._source = source
        self._prefix = prefix

    def fail(self, key: str, expected: str) -> ScenarioError:
        where = f"{self._prefix}{key}" if key else self._prefix.rstrip(".")
        found = f", found {self._data[key]!r}" if key in self._data else ", found nothing"
        if key == "api_keys":
            found = ""  # keys are not repeated
        return ScenarioError(f"{self._source}: {where}: expected {expected}{found if key else ''}")

    def only(self, *known: str) -> None:
        for key in self._data:
            if key not in known:
                raise ScenarioError(
                    f"{self._source}: unknown key {self._prefix + key!r}{did_you_mean(key, list(known))}; "
                    f"expected one of: {', '.join(known)}"
                )

    def text(self, key: str, default: str | None = None) -> str:
        value = self._data.get(key, default)
        if not isinstance(value, str) or not value:
            raise self.fail(key, "a text")
        return value

    def number(
        self,
        key: str,
        default: float | None = None,
        *,
        least: float = 0.0,
        above: float | None = None,
        most: float = MOST,
    ) -> float:
        value = self._data.get(key, default)
        bound = f"a number above {above:g}" if above is not None else f"a number of at least {least:g}"
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:  # as NaN is
            raise self.fail(key, bound)
        if value > most:
            raise self.fail(key, f"a number of at most {most:g}")
        if above is not None and value <= above:
            raise self.fail(key, bound)
        return float(value)

    def integer(self, key: str, default: int | None = None, *, least: int = 0) -> int:
        value = self._data.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
            raise self.fail(key, f"a whole number of at least {least}")
        return value

    def choice(self, key: str, options: tuple[str, ...], default: str | None = None) -> str:
        value = self._data.get(key, default)
        if value not in options:
            hint = did_you_mean(str(value), list(options)) if value is not None else ""
            raise self.fail(key, f"one of {', '.join(options)}{hint}")
        return cast(str, value)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._data.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise self.fail(key, "a list of texts")
        return tuple(value)

    def optional(self, key: str, read: Callable[[str], _T]) -> _T | None:
        return read(key) if key in self._data else None

    def table(self, key: str, *, required: bool = True) -> _Table:
        value = self._data.get(key, None if required else {})
        if not isinstance(value, dict):
            raise self.fail(key, "a table")
        return _Table(value, self._source, f"{self._prefix}{key}.")

    def tables(self, key: str) -> list[_Table]:
        value = self._data.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.fail(key, "a list of tables")
        return [_Table(item, self._source, f"{self._prefix}{key}[{n}].") for n, item in enumerate(value)]

    # The parts of a scenario, top down.

    def scenario(self, name: str) -> Scenario:
        self.only(
            "description", "prompt", "time_scale", "model", "loop", "tools", "default_tool", "quota", "faults"
        )
        description = self.text("description")
        if "\n" in description:
            raise self.fail("description", "a single line")
        tools = [self.table("tools").tool(key) for key in self.table("tools")._data]
        if not tools:
            raise self.fail("tools", "at least one tool, as [tools.NAME]")
        paths = [spec.path for spec in tools]
        for spec in tools:
            if paths.count(spec.path) > 1:
                raise ScenarioError(
                    f"{self._source}: tools.{spec.name}.path: expected a path of its own, found {spec.path!r}"
                )
        return Scenario(
            name=name,
            description=description,
            prompt=self.text("prompt"),
            model=self.table("model").model(),
            loop=self.table("loop").loop(),
            tools=tuple(tools),
            default_tool=self.table("default_tool", required=False).default_tool(tools[0].duration),
            quota=self.table("quota").quota() if "quota" in self._data else None,
            faults=tuple(table.fault() for table in self.tables("faults")),
            time_scale=self.number("time_scale", 1.0),
        )

    def model(self) -> ModelSpec:
        self.only("first_token", "tokens_per_second", "tokens_per_event", "models", "api_keys")
        return ModelSpec(
            first_token=self.distribution("first_token"),
            tokens_per_second=self.distribution("tokens_per_second"),
            tokens_per_event=self.integer("tokens_per_event", 8, least=1),
            models=self.texts("models"),
            api_keys=self.texts("api_keys"),
        )

    def loop(self) -> LoopSpec:
        self.only("rounds", "fan_out")
        return LoopSpec(
            rounds=self.bounded("rounds", MOST_ROUNDS), fan_out=self.bounded("fan_out", MOST_FAN_OUT)
        )

    def bounded(self, key: str, most: int) -> Distribution:
        """A distribution whose stated values are at most `most`; what it draws beyond is cut off."""
        found = self.distribution(key)
        stated = found.parameters if found.kind in ("constant", "uniform", "empirical") else ()
        if max((*stated, found.minimum)) > most:
            raise self.fail(key, f"at most {most}")
        return replace(found, maximum=min(found.maximum, most))

    def tool(self, name: str) -> ToolSpec:
        table = self.table(name)
        table.only("path", "description", "parameters", "duration", "capacity")
        path = table.text("path", f"/tools/{name}")
        if not path.startswith("/tools/") or path.count("/") != 2 or path == "/tools/":
            raise table.fail("path", "a path such as /tools/weather")
        parameters = table._data.get("parameters", {"type": "object", "properties": {}})
        if not isinstance(parameters, dict) or parameters.get("type") != "object":
            raise table.fail("parameters", 'a JSON Schema with type = "object"')
        return ToolSpec(
            name=name,
            path=path,
            description=table.text("description"),
            parameters=parameters,
            duration=table.distribution("duration"),
            capacity=table.table("capacity").capacity() if "capacity" in table._data else None,
        )

    def default_tool(self, duration: Distribution) -> ToolSpec:
        self.only("duration", "capacity")
        return ToolSpec(
            name="",
            path="",
            description="any tool that the client offers and the scenario does not define",
            parameters={"type": "object", "properties": {}},
            duration=self.distribution("duration") if "duration" in self._data else duration,
            capacity=self.table("capacity").capacity() if "capacity" in self._data else None,
        )

    def capacity(self) -> Capacity:
        self.only("concurrent", "mode", "queue", "requests_per_second", "burst", "schedule")
        if "concurrent" not in self._data and "requests_per_second" not in self._data:
            raise self.fail("concurrent", "concurrent or requests_per_second")
        return Capacity(
            concurrent=self.optional("concurrent", lambda key: self.integer(key, least=1)),
            mode=cast(CapacityMode, self.choice("mode", ("reject", "queue", "share"), "reject")),
            queue=self.integer("queue", 0),
            requests_per_second=self.optional("requests_per_second", lambda key: self.number(key, above=0)),
            burst=self.integer("burst", 1, least=1),
            schedule=self._schedule(),
        )

    def _schedule(self) -> tuple[CapacityStep, ...]:
        steps = []
        for table in self.tables("schedule"):
            table.only("after", "fraction")
            steps.append(CapacityStep(table.number("after"), table.number("fraction")))
            if len(steps) > 1 and steps[-1].after <= steps[-2].after:
                raise table.fail("after", "a time later than the step before")
        return tuple(steps)

    def quota(self) -> Quota:
        limits = ("requests_per_minute", "input_tokens_per_minute", "output_tokens_per_minute")
        self.only(*limits, "concurrent_requests", "burst")
        requests, input_tokens, output_tokens = (
            self.optional(key, lambda key: self.number(key, above=0)) for key in limits
        )
        if (input_tokens is None) != (output_tokens is None):
            missing = limits[1] if input_tokens is None else limits[2]
            raise self.fail(missing, "a number, since the other token limit is set")
        return Quota(
            requests_per_minute=requests,
            input_tokens_per_minute=input_tokens,
            output_tokens_per_minute=output_tokens,
            concurrent_requests=self.optional("concurrent_requests", lambda key: self.integer(key, least=1)),
            burst=self.number("burst", 1.0, above=0),
        )

    def fault(self) -> Fault:
        self.only("kind", "probability", "at", "attempts", "seconds")
        kind = cast(FaultKind, self.choice("kind", FAULT_KINDS))
        if ("probability" in self._data) == ("at" in self._data):
            raise self.fail("probability", "either probability or at")
        probability = self.number("probability", 0.0)
        if probability > 1:
            raise self.fail("probability", "a number from 0 to 1")
        return Fault(
            kind=kind,
            probability=probability,
            at=tuple(table.position() for table in self.tables("at")),
            attempts=self.integer("attempts", 1, least=1),
            seconds=self.number("seconds", 30.0),
        )

    def position(self) -> TapePosition:
        self.only("loop", "round", "call")
        return TapePosition(self.integer("loop"), self.integer("round", 0), self.integer("call", 0))

    def distribution(self, key: str) -> Distribution:
        value = self._data.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return constant(self.number(key))
        if not isinstance(value, dict):
            raise self.fail(
                key, 'a number, or a distribution such as { kind = "uniform", low = 0.1, high = 0.3 }'
            )
        return self.table(key)._distribution()

    def _distribution(self) -> Distribution:
        kind = cast(DistributionKind, self.choice("kind", tuple(_PARAMETERS)))
        self.only("kind", *_PARAMETERS[kind], "min", "max", "seed")
        parameters: tuple[float, ...]
        if kind == "empirical":
            values = self._data.get("values")
            numbers = isinstance(values, list) and all(
                isinstance(item, int | float) and not isinstance(item, bool) and 0 <= item <= MOST
                for item in values
            )
            if not numbers or not values:
                raise self.fail("values", "a list of numbers of at least 0")
            parameters = tuple(float(item) for item in cast(list[float], values))
        elif kind in ("constant", "uniform"):
            parameters = tuple(self.number(name) for name in _PARAMETERS[kind])
        else:
            parameters = tuple(
                self.number(name, above=0, least=_LEAST.get(name, 0.0), most=_MOST.get(name, MOST))
                for name in _PARAMETERS[kind]
            )
        if kind == "uniform" and parameters[1] < parameters[0]:
            raise self.fail("high", f"a number of at least low ({parameters[0]:g})")
        minimum = self.number("min", 0.0)
        maximum = self.number("max") if "max" in self._data else float("inf")
        if maximum < minimum:
            raise self.fail("max", f"a number of at least min ({minimum:g})")
        return Distribution(kind, parameters, minimum, maximum, self.integer("seed", 0))
