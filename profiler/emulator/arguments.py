"""Arguments drawn from a tool's own JSON Schema.

Pure. `compile_schema` checks a schema once and returns a generator of values that satisfy it;
`SchemaError` says what is wrong with it in JSON Schema's terms. Covered: type (also lists), enum,
const, properties, required, additionalProperties, items, prefixItems, the length and range
keywords, multipleOf, uniqueItems, format, simple patterns, allOf, anyOf, oneOf, $ref into the same
document, recursive ones included. Optional properties appear half of the time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

# Private, since the public `sre_parse` is deprecated. A parser of our own would accept less than `re.compile`
# does, which decides here whether a pattern is valid, or be as long as the rest of this module.
from re import _parser as sre_parse  # type: ignore[attr-defined]
from typing import Any

from profiler.emulator.draws import Draws

Generator = Callable[[Draws, int], Any]
"""Stream, dealt number → value. The number differs between the calls of a loop, so that two calls of a round
ask for two cities."""

_DEPTH = 5
"""Levels of a schema that may refer to itself. Below them only required properties are made, else a value
would not end."""

_TYPES = ("string", "integer", "number", "boolean", "object", "array", "null")


class SchemaError(ValueError):
    """The schema is not one that a provider accepts."""


def compile_schema(schema: Mapping[str, Any]) -> Generator:
    """The generator of the argument object of a tool with this `parameters` schema."""
    generate = _compile(schema, schema, "", 0)
    generate(Draws(1), 0)  # a mistake deep inside (a recursion without end) shows now, not in a response
    return generate


def _compile(schema: object, root: Mapping[str, Any], name: str, depth: int) -> Generator:
    if schema is True or schema == {}:
        return lambda draws, n: draws.choice(WORDS)
    if not isinstance(schema, Mapping):
        raise SchemaError(f"{schema!r} is not of type 'object', 'boolean'")
    if "$ref" in schema:
        return _reference(schema, root, name, depth)
    if "const" in schema:
        value = schema["const"]
        return lambda draws, n: value
    if "enum" in schema:
        options = _non_empty(schema, "enum")
        return lambda draws, n: draws.choice(options)
    if "allOf" in schema:
        return _compile(_merge(schema, root), root, name, depth)
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return _union(schema, union, root, name, depth)
    kind = _type_of(schema)
    if kind == "object":
        return _object(schema, root, depth)
    if kind == "array":
        return _array(schema, root, name, depth)
    if kind == "string":
        return _string(schema, name)
    if kind == "integer":
        return _integer(schema)
    if kind == "number":
        return _number(schema)
    if kind == "boolean":
        return lambda draws, n: draws.random() < 0.5
    return lambda draws, n: None


def _non_empty(schema: Mapping[str, Any], keyword: str) -> list[Any]:
    parts = schema[keyword]
    if not isinstance(parts, list) or not parts:
        raise SchemaError(f"{parts!r} is not a non-empty array")
    return parts


def _type_of(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    if kind is None:
        if "properties" in schema:
            return "object"
        if "items" in schema or "prefixItems" in schema:
            return "array"
        return "number" if "minimum" in schema or "maximum" in schema else "string"
    kinds = kind if isinstance(kind, list) else [kind]
    for option in kinds:
        if option not in _TYPES:
            raise SchemaError(f"{option!r} is not valid under any of the given schemas")
    return next((option for option in kinds if option != "null"), "null")


def _resolve(reference: object, root: Mapping[str, Any]) -> Any:
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise SchemaError(f"{reference!r} is not a reference into the same schema")
    target: Any = root
    for escaped in reference[1:].lstrip("/").split("/") if len(reference) > 1 else []:
        part = escaped.replace("~1", "/").replace("~0", "~")
        if not isinstance(target, Mapping) or part not in target:
            raise SchemaError(f"{reference!r} does not resolve")
        target = target[part]
    return target


def _reference(schema: Mapping[str, Any], root: Mapping[str, Any], name: str, depth: int) -> Generator:
    target = _resolve(schema["$ref"], root)
    if depth < _DEPTH:
        return _compile(target, root, name, depth + 1)

    # Deep inside a recursive schema: compiled when a value is drawn, and only where it is required.
    def late(draws: Draws, n: int) -> Any:
        return _compile(target, root, name, depth + 1)(draws, n)

    if depth > 40:
        raise SchemaError(f"{schema['$ref']!r} requires itself without end")
    return late


def _merge(schema: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
    for part in _non_empty(schema, "allOf"):
        for key, value in _flat(part, root).items():
            if key == "properties":
                merged["properties"] = {**merged.get("properties", {}), **value}
            elif key == "required":
                merged["required"] = [*merged.get("required", []), *value]
            else:
                merged.setdefault(key, value)
    return merged


def _flat(part: object, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part of an allOf with its own references and allOf resolved."""
    seen = 0
    while isinstance(part, Mapping) and "$ref" in part and seen < _DEPTH:
        part, seen = _resolve(part["$ref"], root), seen + 1
    if not isinstance(part, Mapping):
        raise SchemaError(f"{part!r} is not of type 'object', 'boolean'")
    return _merge(part, root) if "allOf" in part else part


def _union(
    schema: Mapping[str, Any], keyword: str, root: Mapping[str, Any], name: str, depth: int
) -> Generator:
    branches = _non_empty(schema, keyword)
    shared = {key: value for key, value in schema.items() if key in ("type", "properties", "required")}
    useful = [
        branch for branch in branches if not (isinstance(branch, Mapping) and branch.get("type") == "null")
    ]
    if depth >= _DEPTH:  # the way out of a recursion is the branch that does not recurse
        useful = [branch for branch in branches if "$ref" not in str(branch)] or useful
    generators = [
        _compile(_merge({"allOf": [shared, branch]}, root) if shared else branch, root, name, depth)
        for branch in useful or branches
    ]
    if len(generators) == 1:
        return generators[0]
    return lambda draws, n: draws.choice(generators)(draws, n)


def _object(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Generator:
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    if not isinstance(properties, Mapping):
        raise SchemaError(f"{properties!r} is not of type 'object'")
    if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
        raise SchemaError(f"{required!r} is not of type 'array'")
    needed = frozenset(required)
    # Optional properties stop at a depth, or a recursive schema would never end.
    members = [
        (key, key in needed, _compile(part, root, key, depth + 1))
        for key, part in properties.items()
        if key in needed or depth < _DEPTH
    ]
    extra = schema.get("additionalProperties", True)
    wild = None
    if isinstance(extra, Mapping) and not properties and depth < _DEPTH:
        wild = _compile(extra, root, "", depth + 1)
    unnamed = [key for key in required if key not in properties] if extra is not False else []
    fewest = max(1 if wild else 0, _count(schema, "minProperties", 0))

    def generate(draws: Draws, n: int) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for key, always, part in members:
            if always or draws.random() < 0.5:
                value[key] = part(draws, n)
        for key in unnamed:
            value[key] = draws.choice(WORDS)
        if len(value) < fewest:
            for key, _, part in members:
                if key not in value and len(value) < fewest:
                    value[key] = part(draws, n)
            start = draws.below(len(WORDS))
            for offset in range(fewest - len(value)):
                word = WORDS[(start + offset) % len(WORDS)]
                value[word] = wild(draws, n) if wild else draws.choice(WORDS)
        return value

    return generate


def _count(schema: Mapping[str, Any], keyword: str, default: int, most: int = 10_000) -> int:
    """The value of a counting keyword; `most` keeps a request from asking for a gigabyte."""
    value = schema.get(keyword, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise SchemaError(f"{keyword} {value!r} is not an integer from 0 to {most}")
    return int(value)


def _array(schema: Mapping[str, Any], root: Mapping[str, Any], name: str, depth: int) -> Generator:
    fewest = _count(schema, "minItems", 0)
    most = _count(schema, "maxItems", max(fewest, 3), most=1 << 62)
    fixed = [_compile(part, root, name, depth + 1) for part in schema.get("prefixItems", [])]
    items = schema.get("items", {} if not fixed else False)
    if depth >= _DEPTH and fewest == 0:
        return lambda draws, n: []
    # The items of `cities` are named like `city`.
    single = name[:-3] + "y" if name.endswith("ies") else name.removesuffix("s")
    item = None if items is False else _compile(items, root, single, depth + 1)
    unique = bool(schema.get("uniqueItems"))

    def generate(draws: Draws, n: int) -> list[Any]:
        value = [part(draws, n) for part in fixed]
        if item is None:
            return value
        low = max(fewest, min(1, most))
        length = low + draws.below(max(1, min(most, fewest + 3) - low + 1))
        for attempt in range(length * 20):
            if len(value) >= length:
                break
            candidate = item(draws, n + attempt)
            if not unique or candidate not in value:
                value.append(candidate)
        return value

    return generate


def _string(schema: Mapping[str, Any], name: str) -> Generator:
    if "pattern" in schema:
        try:
            made = compile_pattern(schema["pattern"])
        except (re.error, TypeError) as error:
            raise SchemaError(f"{schema['pattern']!r} is not a 'regex'") from error
        return lambda draws, n: made(draws)
    if schema.get("format") in FORMATS:
        formatted = FORMATS[schema["format"]]
        return lambda draws, n: formatted(draws)
    shortest = _count(schema, "minLength", 0)
    longest = schema.get("maxLength")
    text = named_text(name)
    if text is None:
        offset = sum(map(ord, name))  # origin and destination of one call are two cities
        return _fitted(lambda draws, n: CITIES[(n + offset) % len(CITIES)], shortest, longest)
    return _fitted(lambda draws, n: text(draws), shortest, longest)


def _fitted(make: Generator, shortest: int, longest: int | None) -> Generator:
    if shortest == 0 and longest is None:
        return make

    def generate(draws: Draws, n: int) -> str:
        value: str = make(draws, n)
        while len(value) < shortest:
            value = f"{value} {draws.choice(WORDS)}" if value else draws.choice(WORDS)
        return value if longest is None or len(value) <= longest else value[:longest]

    return generate


def _bounds(schema: Mapping[str, Any], span: float) -> tuple[float, float, bool, bool]:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    for bound in (low, high, above, below):
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int | float)):
            raise SchemaError(f"{bound!r} is not of type 'number'")
    open_low = above is not None and (low is None or above >= low)
    open_high = below is not None and (high is None or below <= high)
    start = above if open_low else low
    end = below if open_high else high
    if start is None:
        start = 0 if end is None or end > 0 else end - span
    if end is None:
        end = start + span
    return start, end, open_low, open_high


def _integer(schema: Mapping[str, Any]) -> Generator:
    start, end, open_low, open_high = _bounds(schema, 100)
    step = int(schema.get("multipleOf", 1)) or 1
    first = math.floor(start) + 1 if open_low else math.ceil(start)
    last = math.ceil(end) - 1 if open_high else math.floor(end)
    first, last = -(-first // step), last // step
    if last < first:
        raise SchemaError(f"no integer lies between {start!r} and {end!r}")
    return lambda draws, n: (first + draws.below(last - first + 1)) * step


def _number(schema: Mapping[str, Any]) -> Generator:
    start, end, open_low, open_high = _bounds(schema, 100.0)
    if end < start:
        raise SchemaError(f"no number lies between {start!r} and {end!r}")
    step = schema.get("multipleOf")
    if step:
        first = math.floor(start / step) + 1 if open_low else math.ceil(start / step)
        last = math.ceil(end / step) - 1 if open_high else math.floor(end / step)
        return lambda draws, n: (first + draws.below(max(1, last - first + 1))) * step

    def generate(draws: Draws, n: int) -> float:
        # Two decimals where the range allows, as a model would write it.
        value = start + (0.001 + 0.998 * draws.random()) * (end - start)
        short = round(value, 2)
        return short if start < short < end else value

    return generate


# Texts that match a regular expression, for JSON Schema's `pattern`.
#
# Walks the parse tree of Python's own parser. Anchors and look-around are ignored; where no text of twenty
# matches, the last one is taken.

_PRINTABLE = [chr(code) for code in range(32, 127)]
_WORD = [char for char in _PRINTABLE if char.isalnum() or char == "_"]
_CLASSES: dict[str, list[str]] = {
    "CATEGORY_DIGIT": list("0123456789"),
    "CATEGORY_WORD": _WORD,
    "CATEGORY_SPACE": [" "],
    "CATEGORY_NOT_DIGIT": [char for char in _PRINTABLE if not char.isdigit()],
    "CATEGORY_NOT_WORD": [char for char in _PRINTABLE if char not in _WORD],
    "CATEGORY_NOT_SPACE": _PRINTABLE[1:],
}


def compile_pattern(pattern: str) -> Callable[[Draws], str]:
    """A generator of texts that `re.search(pattern, text)` finds. Raises `re.error` for bad patterns."""
    compiled = re.compile(pattern)
    tree = sre_parse.parse(pattern)

    def generate(draws: Draws) -> str:
        text = ""
        for _ in range(20):
            text = _sequence(tree, draws, {})
            if compiled.search(text):
                break
        return text

    return generate


def _sequence(items: Any, draws: Draws, groups: dict[int, str]) -> str:
    return "".join(_item(str(kind), argument, draws, groups) for kind, argument in items)


def _item(kind: str, argument: Any, draws: Draws, groups: dict[int, str]) -> str:
    if kind == "LITERAL":
        return chr(argument)
    if kind == "NOT_LITERAL":
        return draws.choice([char for char in _WORD if char != chr(argument)])
    if kind == "ANY":
        return draws.choice(_WORD)
    if kind == "IN":
        return draws.choice(_members(argument))
    if kind == "BRANCH":
        return _sequence(draws.choice(argument[1]), draws, groups)
    if kind == "SUBPATTERN":
        number, text = argument[0], _sequence(argument[3], draws, groups)
        groups[number] = text
        return text
    if kind == "GROUPREF":
        return groups.get(argument, "")
    if kind == "ATOMIC_GROUP":
        return _sequence(argument, draws, groups)
    if kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        fewest, most, body = argument
        times = fewest + draws.below(min(int(most) - fewest, 6) + 1)
        return "".join(_sequence(body, draws, groups) for _ in range(times))
    return ""  # anchors and look-around are met, or not, by what surrounds them


def _members(argument: Any) -> list[str]:
    negated = bool(argument) and str(argument[0][0]) == "NEGATE"
    members: list[str] = []
    for kind, value in argument[1:] if negated else argument:
        name = str(kind)
        if name == "LITERAL":
            members.append(chr(value))
        elif name == "RANGE":
            members.extend(chr(code) for code in range(value[0], min(value[1], value[0] + 255) + 1))
        elif name == "CATEGORY":
            members.extend(_CLASSES.get(str(value), []))
    if negated:
        members = [char for char in _WORD if char not in set(members)] or _PRINTABLE
    return members or _PRINTABLE


# The words that drawn arguments are made of, and those that suit a property's name.

# 59 cities, a prime: any stride deals all of them before one repeats.
CITIES = (
    "Tokyo", "Paris", "Lagos", "Lima", "Oslo", "Cairo", "Mumbai", "Toronto", "Sydney", "Berlin", "Nairobi",
    "Seoul", "Madrid", "Jakarta", "Boston", "Vienna", "Bogota", "Accra", "Hanoi", "Rome", "Chicago",
    "Dublin", "Karachi", "Santiago", "Helsinki", "Manila", "Athens", "Denver", "Osaka", "Lisbon",
    "Casablanca", "Warsaw", "Bangkok", "Montreal", "Prague", "Dakar", "Quito", "Zurich", "Melbourne",
    "Istanbul", "Houston", "Kyiv", "Delhi", "Amsterdam", "Havana", "Singapore", "Stockholm", "Tunis",
    "Brussels", "Auckland", "Seattle", "Budapest", "Ankara", "Caracas", "Copenhagen", "Dubai", "Vancouver",
    "Edinburgh", "Porto",
)  # fmt: skip

WORDS = (
    "harbour", "solar", "quarterly", "archive", "orchard", "signal", "granite", "ferry", "copper", "meadow",
    "ledger", "canvas", "turbine", "glacier", "atlas", "lantern", "cobalt", "prairie", "beacon", "timber",
    "sonata", "quartz", "delta", "compass", "saffron", "monsoon", "orbit", "pewter", "willow", "summit",
    "tundra",
)  # fmt: skip

_PEOPLE = (
    "Ada Byron", "Grace Murray", "Alan Mathison", "Edsger Wybe", "Barbara Jane", "Niklaus Emil", "Radia Joy",
)  # fmt: skip
_COUNTRIES = (
    "Japan", "France", "Nigeria", "Peru", "Norway", "Egypt", "India", "Canada", "Australia", "Germany",
)  # fmt: skip
_LANGUAGES = ("en", "fr", "de", "ja", "es", "pt", "hi", "sw")
_CURRENCIES = ("EUR", "USD", "JPY", "GBP", "INR", "NGN")

Text = Callable[[Draws], str]


def _phrase(draws: Draws) -> str:
    return f"{draws.choice(WORDS)} {draws.choice(WORDS)}"


def _date(draws: Draws) -> str:
    return f"20{20 + draws.below(10)}-{1 + draws.below(12):02d}-{1 + draws.below(28):02d}"


def _time(draws: Draws) -> str:
    return f"{draws.below(24):02d}:{draws.below(60):02d}:00Z"


def _uuid(draws: Draws) -> str:
    number = f"{draws.below(1 << 62):016x}{draws.below(1 << 62):016x}"
    return f"{number[:8]}-{number[8:12]}-4{number[13:16]}-8{number[17:20]}-{number[20:]}"


FORMATS: dict[str, Text] = {
    "date": _date,
    "date-time": lambda draws: f"{_date(draws)}T{_time(draws)}",
    "time": _time,
    "duration": lambda draws: f"PT{1 + draws.below(59)}M",
    "email": lambda draws: f"{draws.choice(WORDS)}@example.com",
    "hostname": lambda draws: f"{draws.choice(WORDS)}.example.com",
    "ipv4": lambda draws: f"192.0.2.{1 + draws.below(254)}",
    "ipv6": lambda draws: f"2001:db8::{1 + draws.below(0xFFFE):x}",
    "uri": lambda draws: f"https://example.com/{draws.choice(WORDS)}",
    "uuid": _uuid,
}

_NAMED: dict[str, Text] = {
    "country": lambda draws: draws.choice(_COUNTRIES),
    "language": lambda draws: draws.choice(_LANGUAGES),
    "currency": lambda draws: draws.choice(_CURRENCIES),
    **dict.fromkeys(("name", "person", "author"), lambda draws: draws.choice(_PEOPLE)),
    "date": _date,
    "email": FORMATS["email"],
    "url": FORMATS["uri"],
    "id": lambda draws: f"{draws.choice(WORDS)}-{1000 + draws.below(9000)}",
}

_PLACES = frozenset({"city", "location", "place", "town", "destination", "origin"})


def named_text(name: str) -> Text | None:
    """The texts for a string property called `name`: None for cities, phrases where the name says nothing."""
    last = name.lower().replace("-", "_").rsplit("_", 1)[-1]
    if last in _PLACES or name.lower().startswith("city"):
        return None
    return _NAMED.get(last, _phrase)
