"""What scenario files are made of: tables, numbers and distributions, and the words of their mistakes.

How a mistake in a file becomes one line: validators raise what they have `expected`; `Table` turns pydantic's
own errors into the same form; `profiler.scenarios` reports the first of a file's problems.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import ArgsKwargs, ErrorDetails, InitErrorDetails, PydanticCustomError

DistributionKind = Literal[
    "constant", "uniform", "exponential", "lognormal", "gamma", "pareto", "empirical", "quantiles"
]

MOST = 1e9
"""The largest number in a scenario, whatever its unit."""


def expected(words: str, *place: str | int) -> ValidationError:
    """The error of a validator that expected `words` at `place`, a path from the value it checks."""
    problem = PydanticCustomError("expected", "{words}", {"words": words})
    return ValidationError.from_exception_data("", [{"type": problem, "loc": place, "input": None}])


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Table:
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


def number(least: float = 0.0, *, above: float | None = None, most: float = MOST) -> Any:
    words = f"a number of at least {least:g}" if above is None else f"a number above {above:g}"
    return Field(strict=True, ge=least, gt=above, le=most, description=words)


def numbers(words: str) -> Any:
    """The field of a list of numbers, at least one."""
    return Field(min_length=1, description=words)


def listed(value: Any) -> Any:
    """A number as the list of it; anything else as it is."""
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value


def whole(least: int) -> Any:
    return Field(strict=True, ge=least, lt=2**63, description=f"a whole number of at least {least}")


Number = Annotated[float, number()]
Positive = Annotated[float, number(above=0)]
Whole = Annotated[int, whole(0)]
Count = Annotated[int, whole(1)]
PositiveOrNone = Annotated[float | None, number(above=0)]
CountOrNone = Annotated[int | None, whole(1)]
NumberOrNone = Annotated[float | None, number()]
Share = Annotated[float, number(most=1)]
SignedShare = Annotated[float, number(-1, most=1)]
Text = Annotated[str, Field(min_length=1, description="a text")]
Texts = Annotated[tuple[Text, ...], Field(description="a list of texts")]
TABLES = Field(description="a list of tables")


@dataclasses.dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution of non-negative numbers; `parameters` in the order of the kind's TOML keys.

    constant: value; uniform: low, high; exponential: mean; lognormal: median, sigma; gamma: mean,
    shape; pareto: scale (the minimum), alpha; empirical: the values themselves, equally likely or as often
    as `weights` say; quantiles: `p`, the probabilities from 0 to 1, and then the `values` at them, between
    which the quantile function is linear. Draws are clamped to [`minimum`, `maximum`]. Two equal
    distributions with different `seed` draw different values.
    """

    kind: DistributionKind
    parameters: tuple[float, ...]
    minimum: float = 0.0
    maximum: float = float("inf")
    seed: int = 0
    weights: tuple[float, ...] = ()

    @property
    def stated(self) -> tuple[float, ...]:
        """The values that are stated, of kinds that state some."""
        if self.kind == "quantiles":
            return self.parameters[len(self.parameters) // 2 :]
        return self.parameters if self.kind in ("constant", "uniform", "empirical") else ()


Values = Annotated[tuple[Number, ...], Field(min_length=1, description="a list of numbers of at least 0")]
_PARAMETERS: dict[DistributionKind, dict[str, Any]] = {
    "constant": {"value": Number},
    "uniform": {"low": Number, "high": Number},
    "exponential": {"mean": Positive},
    # Beyond these bounds of sigma, shape and alpha a draw could overflow a float.
    "lognormal": {"median": Positive, "sigma": Annotated[float, number(above=0, most=10)]},
    "gamma": {"mean": Positive, "shape": Annotated[float, number(0.01)]},
    "pareto": {"scale": Positive, "alpha": Annotated[float, number(0.1)]},
    "empirical": {"values": Values},
    "quantiles": {"p": Values, "values": Values},
}
_WEIGHTS = Annotated[tuple[Number, ...], Field(description="a list of numbers of at least 0")]
_OPTIONAL: dict[DistributionKind, dict[str, Any]] = {"empirical": {"weights": _WEIGHTS}}


def _form(kind: DistributionKind) -> Any:
    """The table of a distribution of `kind`."""
    more = _OPTIONAL.get(kind, {})
    keys = {"kind": Literal[kind], **_PARAMETERS[kind], "min": Number, "max": Number, "seed": Whole, **more}
    defaults = {"min": 0.0, "max": float("inf"), "seed": 0, **dict.fromkeys(more, ())}
    return dataclass(frozen=True)(type(kind, (Table,), {"__annotations__": keys, **defaults}))


_ANY_FORM: Any = functools.reduce(operator.or_, map(_form, _PARAMETERS))
_FORMS = TypeAdapter[Any](Annotated[_ANY_FORM, Field(discriminator="kind")])


def _distribution(value: Any) -> Distribution:
    if isinstance(value, Distribution):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = {"kind": "constant", "value": value}
    form = _FORMS.validate_python(value)
    if form.kind == "uniform" and form.high < form.low:
        raise expected(f"a number of at least low ({form.low:g})", "high")
    if form.max < form.min:
        raise expected(f"a number of at least min ({form.min:g})", "max")
    parameters = tuple(getattr(form, name) for name in _PARAMETERS[form.kind])
    weights: tuple[float, ...] = ()
    if form.kind == "empirical":
        parameters, weights = form.values, form.weights
        if weights and (len(weights) != len(parameters) or not sum(weights)):
            raise expected("a weight for each of the values, not all of them 0", "weights")
    elif form.kind == "quantiles":
        _check_quantiles(form.p, form.values)
        parameters = (*form.p, *form.values)
    return Distribution(form.kind, parameters, form.min, form.max, form.seed, weights)


def _check_quantiles(p: tuple[float, ...], values: tuple[float, ...]) -> None:
    if len(p) < 2 or p[0] != 0 or p[-1] != 1 or any(b <= a for a, b in itertools.pairwise(p)):
        raise expected("rising probabilities, the first 0 and the last 1", "p")
    if len(values) != len(p) or any(b < a for a, b in itertools.pairwise(values)):
        raise expected("a value for each p, none below the one before", "values")


Drawn = Annotated[
    Distribution,
    BeforeValidator(_distribution),
    Field(description='a number, or a distribution such as { kind = "uniform", low = 0.1, high = 0.3 }'),
]


def bounded(most: int) -> AfterValidator:
    """Stated values above `most` are refused; drawn values are cut off there."""

    def within(found: Distribution) -> Distribution:
        if max((*found.stated, found.minimum)) > most:
            raise expected(f"at most {most}")
        return dataclasses.replace(found, maximum=min(found.maximum, most))

    return AfterValidator(within)


ZERO = Distribution("constant", (0.0,))
