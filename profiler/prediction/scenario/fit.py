"""What a recording says of model, tools and loops, on a page: `Fit`, one frozen schema without content.

It holds names of tools and figures; no prompts, arguments, results, keys, paths or hosts. As JSON it is one
object with exactly these field names, its `schema` number last. Reading refuses a later schema in words, and
passes over keys that it does not know. Durations are seconds.

The emulator's scenario is written from it (`profiler.prediction.scenario.file`); how it is made from a
recording is in `profiler.prediction.scenario.parts`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from profiler.errors import RecordError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA = 1

GRIDS: dict[str, tuple[float, ...]] = {
    "fine": (
        *(0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65),
        *(0.7, 0.75, 0.8, 0.85, 0.875, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.9925, 0.995),
        *(0.9975, 0.999, 1.0),
    ),
    "coarse": (0.0, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 1.0),
    "few": (0.0, 0.1, 0.5, 0.9, 1.0),
}
"""The probabilities of tables of quantiles: few points where few values stand behind them."""


@dataclass(frozen=True, slots=True)
class Table:
    """The quantiles of `count` values at the probabilities of `grid`, and their mean."""

    grid: str
    values: tuple[float, ...]
    count: int
    mean: float

    @property
    def p(self) -> tuple[float, ...]:
        """The probabilities."""
        return GRIDS[self.grid]


@dataclass(frozen=True, slots=True)
class Counts:
    """How often whole numbers came, as shares that add up to 1."""

    values: tuple[int, ...]
    shares: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean of the numbers."""
        return sum(value * share for value, share in zip(self.values, self.shares, strict=True))


@dataclass(frozen=True, slots=True)
class Source:
    """Where a fit comes from. `loops` are in it, `lost` were recorded and are not, by the reason in words.

    `calls` and `requests` reached tools and model. `levels` are the numbers of agents, `seconds` is how long
    was measured. `door`: how what another program did came to be recorded; None: a load test of ours.
    """

    loops: int
    calls: int
    requests: int
    seconds: float
    strategies: tuple[str, ...] = ()
    levels: tuple[int, ...] = ()
    arrivals: str | None = None
    lost: tuple[tuple[str, int], ...] = ()
    door: str | None = None
    provider: str = ""


@dataclass(frozen=True, slots=True)
class ToolFit:
    """A tool. `seconds` are free of waiting, and of the client's own time where that is known.

    `share` of all calls asked for it, `by_round` in each of the first rounds where that differs. `failed` is
    the share that failed for reasons of its own, by kind. `server` is the place of its server in `servers`.
    """

    name: str
    server: int
    calls: int
    share: float
    seconds: Table
    by_round: tuple[float, ...] = ()
    failed: tuple[tuple[str, float], ...] = ()

    @property
    def failed_share(self) -> float:
        """The share of calls that failed, of all kinds."""
        return sum(share for _, share in self.failed)


@dataclass(frozen=True, slots=True)
class ServerRule:
    """What a server does with much at once, as in `profiler.prediction.servers.identify`.

    `identified`: the recording went past it. `seen` is the range of calls in flight that was seen;
    `capacities` are those that explain it as well as `capacity` does. A refusal takes `refusal_seconds` and
    asks for a wait of `retry_after` (None: of nothing). `sentence` says all of it in words.
    """

    name: str
    rule: str
    identified: bool
    sentence: str
    calls: int
    refused: int
    seen: tuple[float, float]
    capacity: int | None = None
    capacities: tuple[int, int] | None = None
    queue: int | None = None
    rate: float | None = None
    burst: float | None = None
    refusal_seconds: float | None = None
    retry_after: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelFit:
    """The model's replies, free of waiting and of attempts that were refused.

    `first_token` and `per_token` are there where replies were streamed. `dependence`: (seconds, seconds for
    each output token, for each input token, the share of the variance that this explains), by least squares,
    where it shows.
    """

    server: ServerRule
    seconds: Table
    first_token: Table | None = None
    per_token: Table | None = None
    output_tokens: Table | None = None
    input_tokens: Table | None = None
    dependence: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class QuotaFit:
    """A limit of the model's server: `amount` a minute, or at once for `concurrent`; see `quotas.Limit`."""

    resource: str
    amount: float
    source: str
    burst: float | None
    met: bool
    identified: bool


@dataclass(frozen=True, slots=True)
class Common:
    """What durations and sizes have in common, as correlations of normal scores (ranks as normal numbers).

    `round`: of two calls of a round; `loop`: of two calls of different rounds of a loop; `size`: of fan-out
    and the calls' durations; `model_loop`: of two replies of a loop; `model_calls`: of a loop's replies and
    its calls. The last three: of a reply's duration with its first token and its tokens.
    """

    round: float = 0.0
    loop: float = 0.0
    size: float = 0.0
    model_loop: float = 0.0
    model_calls: float = 0.0
    first_token: float = 0.0
    output_tokens: float = 0.0
    input_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of loops. `rounds` are those with calls.

    `fan_out_by_round` is there for the first rounds where they differ. `same_tool`: how much more often than
    by their shares alone a call asks for the tool of the call before it. `failed`: the share of loops that
    came to no answer for reasons of their own.
    """

    rounds: Counts
    fan_out: Counts
    fan_out_by_round: tuple[Counts, ...] = ()
    same_tool: float = 0.0
    common: Common = Common()
    failed: float = 0.0


@dataclass(frozen=True, slots=True)
class Client:
    """What the client itself took: CPU seconds of each loop (None: not known), and its own time in each."""

    cpu_seconds: float | None
    own_seconds: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A recording as figures. `unknown` are sentences on what could not be identified."""

    source: Source
    tools: tuple[ToolFit, ...]
    servers: tuple[ServerRule, ...]
    model: ModelFit
    shape: Shape
    client: Client
    quotas: tuple[QuotaFit, ...] = ()
    retry_after: str = "none"
    unknown: tuple[str, ...] = ()
    schema: int = SCHEMA


def encode(fit: Fit) -> bytes:
    """The JSON of a fit, and a newline."""
    return orjson.dumps(fit, option=orjson.OPT_APPEND_NEWLINE)


def decode(text: bytes | str, source: str = "the fit") -> Fit:
    """The inverse of `encode`; keys that are not known are passed over. `source` is what errors call it.

    Raises `RecordError` for what is none, and for one of a later schema.
    """
    from pydantic import ValidationError

    try:
        raw = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RecordError(f"{source}: not valid JSON: {error}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("schema"), int):
        raise RecordError(f"{source}: not a fit of a recording: it has no schema number")
    if raw["schema"] > SCHEMA:
        raise RecordError(
            f"{source}: written by a newer version (schema {raw['schema']}, this one reads {SCHEMA}): update"
            " this tool"
        )
    try:
        found: Fit = _reader().validate_python(raw)
        for table in _tables(found):
            if len(table.values) != len(GRIDS.get(table.grid, ())):
                raise RecordError(
                    f"{source}: not a fit of a recording: a table does not have the values of its grid"
                )
        return found
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise RecordError(f"{source}: not a fit of a recording: {place}: {problem['msg']}") from None


def _tables(fit: Fit) -> list[Table]:
    of_model = (fit.model.first_token, fit.model.per_token, fit.model.output_tokens, fit.model.input_tokens)
    return [
        fit.model.seconds,
        *(tool.seconds for tool in fit.tools),
        *(one for one in of_model if one is not None),
    ]


@functools.cache
def _reader() -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(Fit)
