"""Arguments drawn from a tool's own JSON Schema.

Pure. `compile_schema` checks a schema once and returns a generator of values that satisfy it;
`SchemaError` says what is wrong with it in JSON Schema's terms. Covered: type (also lists), enum,
const, properties, required, additionalProperties, items, prefixItems, the length and range
keywords, multipleOf, uniqueItems, format, patterns, allOf, anyOf, oneOf, $ref into the same
document, recursive ones included. Optional properties appear half of the time.

A schema comes from whoever asks, so compiling and drawing are bounded, in parts and in work; what asks for
more is `TooMuch`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson

from profiler.emulator.draws import Draws
from profiler.emulator.parts import (
    Array,
    Leaf,
    LongText,
    Maker,
    Matching,
    Object,
    Options,
    Part,
    Reference,
    Union,
    is_possible,
    settle,
)
from profiler.emulator.patterns import Pattern
from profiler.emulator.words import CITIES, FORMATS, WORDS, named_text
from profiler.emulator.work import MOST_DEEP, MOST_WORK, SchemaError, TooMuch, Work, shown

MOST_PARTS = 10_000
"""Parts of all schemas of one list of tools; compiling a thousand takes some milliseconds."""

_MOST_NAME = 64
"""Characters of a property's name that are looked at for what suits it."""

_TYPES = ("string", "integer", "number", "boolean", "object", "array", "null")
_LEAST_INTEGER, _MOST_INTEGER = -(1 << 63), (1 << 63) - 1
"""Beyond 64 bits JSON libraries, ours among them, do not write whole numbers."""


class Generator:
    """Stream, dealt number → value. What a value takes comes off `work`, which several values may share.

    The number differs between the calls of a loop, so that two calls of a round ask for two cities.
    """

    __slots__ = ("_part",)

    def __init__(self, part: Part) -> None:
        self._part = part

    def __call__(self, draws: Draws, n: int, work: Work | None = None) -> Any:
        return self._part.draw(draws, n, 0, work or Work())


class Allowance:
    """The parts that the schemas of one list of tools may still have."""

    __slots__ = ("left",)

    def __init__(self, parts: int = MOST_PARTS) -> None:
        self.left = parts

    def spend(self, parts: int) -> None:
        self.left -= parts
        if self.left < 0:
            raise TooMuch(f"the schemas of the tools have more than {MOST_PARTS:,} parts")


def compile_schema(schema: Mapping[str, Any], allowance: Allowance | None = None) -> Generator:
    """The generator of the argument object of a tool with this `parameters` schema. Raises `SchemaError`."""
    try:
        part = _Compiler(schema, allowance or Allowance()).compile()
        generate = Generator(part)
        orjson.dumps(generate(Draws(1), 0))  # a mistake deep inside shows now, not in a response
    except RecursionError:
        raise TooMuch(f"the schema is nested more than {MOST_DEEP} levels deep") from None
    except (TypeError, ArithmeticError) as error:
        raise SchemaError(str(error)) from error
    return generate


class _Compiler:
    """Compiles one schema. Each of its parts once under each name, however often it is referred to."""

    def __init__(self, root: Mapping[str, Any], allowance: Allowance) -> None:
        self._root = root
        self._spend = allowance.spend
        self._parts: list[Part] = []
        self._known: dict[
            tuple[int, str], Part
        ] = {}  # by the identity of a schema, and the name of its value
        self._made: list[Mapping[str, Any]] = []  # merged schemas: kept, or others would get their identity
        self._targets: dict[str, Any] = {}
        self._aimless: list[Reference] = []

    def compile(self) -> Part:
        root = self._part(self._root, "", 0)
        while self._aimless:
            reference = self._aimless.pop()
            reference.aim(self._part(self._resolve(reference.to), reference.label, 0))
        settle(self._parts)
        self._check(root)
        return root

    def _check(self, root: Part) -> None:
        """Refuse what can be drawn, but not within bounds: naming the smallest part of it."""
        seen, waiting, refused = {root}, [root], []
        while waiting:
            part = waiting.pop()
            if not is_possible(part):
                refused.append(part)
            for reached in part.reached():
                if reached not in seen:
                    seen.add(reached)
                    waiting.append(reached)
        if not refused:
            return
        worst = min(refused, key=lambda part: (part.least, part.height))
        name = f"'{worst.label}'" if worst.label else "the value"
        if worst.least == math.inf:
            references = [part for part in refused if isinstance(part, Reference)]
            raise TooMuch(f"{shown(references[0].to if references else name)} requires itself without end")
        if worst.least > MOST_WORK:
            raise TooMuch(
                f"{name} takes at least {int(worst.least):,} characters or steps; at most"
                f" {MOST_WORK:,} are made"
            )
        raise TooMuch(f"{name} is nested more than {MOST_DEEP} levels deep")

    # Each method takes a schema, the name of the value (empty where it has none), and how deep the schema is
    # nested in its document.

    def _part(self, schema: object, name: str, nested: int) -> Part:
        if isinstance(schema, Mapping):
            known = self._known.get((id(schema), name))
            if known is not None:
                return known
        self._spend(1)
        if nested > MOST_DEEP:
            raise TooMuch(f"the schema is nested more than {MOST_DEEP} levels deep")
        part = self._new(schema, name, nested)
        self._parts.append(part)
        if isinstance(schema, Mapping):
            self._known[id(schema), name] = part
        return part

    def _new(self, schema: object, name: str, nested: int) -> Part:
        if schema is True or schema == {}:
            return Leaf(name, lambda draws, n: draws.choice(WORDS))
        if not isinstance(schema, Mapping):
            raise SchemaError(f"{shown(schema)} is not of type 'object', 'boolean'")
        if "$ref" in schema:
            self._resolve(schema["$ref"])
            reference = Reference(name, schema["$ref"])
            self._aimless.append(reference)
            return reference
        if "const" in schema:
            return Options(name, [schema["const"]])
        if "enum" in schema:
            options = _non_empty(schema, "enum")
            self._spend(len(options) // 8)
            return Options(name, options)
        if "allOf" in schema:
            return self._alias(self._merge(schema, nested), name, nested)
        for union in ("anyOf", "oneOf"):
            if union in schema:
                return self._union(schema, union, name, nested)
        kind = _type_of(schema)
        if kind == "object":
            return self._object(schema, name, nested)
        if kind == "array":
            return self._array(schema, name, nested)
        if kind == "string":
            return self._string(schema, name)
        if kind == "integer":
            return Leaf(name, _integer(schema))
        if kind == "number":
            return Leaf(name, _number(schema))
        if kind == "boolean":
            return Leaf(name, lambda draws, n: draws.random() < 0.5)
        return Leaf(name, lambda draws, n: None)

    def _alias(self, merged: dict[str, Any], name: str, nested: int) -> Part:
        self._made.append(merged)
        return self._new(merged, name, nested + 1)

    def _resolve(self, reference: object) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise SchemaError(f"{shown(reference)} is not a reference into the same schema")
        if reference in self._targets:
            return self._targets[reference]
        target: Any = self._root
        for escaped in reference[1:].lstrip("/").split("/") if len(reference) > 1 else []:
            part = escaped.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or part not in target:
                raise SchemaError(f"{shown(reference)} does not resolve")
            target = target[part]
        self._targets[reference] = target
        return target

    def _merge(self, schema: Mapping[str, Any], nested: int) -> dict[str, Any]:
        """A schema with its `allOf` in it: one object's properties and required keys are those of all."""
        merged: dict[str, Any] = {}
        own = {key: value for key, value in schema.items() if key != "allOf"}
        for part in (own, *(self._flat(part, nested + 1) for part in _non_empty(schema, "allOf"))):
            self._spend(1 + len(part) // 8)
            for key, value in part.items():
                if key == "properties":
                    properties = _properties(part)
                    self._spend(len(properties) // 8)
                    merged.setdefault(key, {}).update(properties)
                elif key == "required":
                    required = _required(part)
                    self._spend(len(required) // 8)
                    merged.setdefault(key, []).extend(required)
                else:
                    merged.setdefault(key, value)
        return merged

    def _flat(self, part: object, nested: int) -> Mapping[str, Any]:
        """A part of an allOf with its own references and allOf resolved."""
        if nested > MOST_DEEP:
            raise TooMuch(f"the schema is nested more than {MOST_DEEP} levels deep, references followed")
        followed: set[str] = set()
        while isinstance(part, Mapping) and "$ref" in part:
            target = self._resolve(part["$ref"])
            if part["$ref"] in followed:
                raise TooMuch(f"{shown(part['$ref'])} requires itself without end")
            followed.add(part["$ref"])
            self._spend(1)
            part = target
        if not isinstance(part, Mapping):
            raise SchemaError(f"{shown(part)} is not of type 'object', 'boolean'")
        return self._merge(part, nested) if "allOf" in part else part

    def _union(self, schema: Mapping[str, Any], keyword: str, name: str, nested: int) -> Part:
        branches = _non_empty(schema, keyword)
        shared = {key: value for key, value in schema.items() if key in ("type", "properties", "required")}
        useful = [
            branch
            for branch in branches
            if not (isinstance(branch, Mapping) and branch.get("type") == "null")
        ]
        parts = []
        for branch in useful or branches:
            if not shared:
                parts.append(self._part(branch, name, nested + 1))
                continue
            merged = self._merge({"allOf": [shared, branch]}, nested)
            self._made.append(merged)
            parts.append(self._part(merged, name, nested + 1))
        return Union(name, parts)

    def _object(self, schema: Mapping[str, Any], name: str, nested: int) -> Part:
        properties, required = _properties(schema), _required(schema)
        self._spend((len(properties) + len(required)) // 8)
        needed = frozenset(required)
        fewest = _count(schema, "minProperties", 0)
        extra = schema.get("additionalProperties", True)
        # Of the optional ones so many as `minProperties` asks for are as good as required.
        promoted = fewest - len(needed)
        members = []
        for key, part in properties.items():
            always = key in needed or promoted > 0
            promoted -= key not in needed
            members.append((key, always, self._part(part, key[:_MOST_NAME], nested + 1)))
        wild = None
        if isinstance(extra, Mapping) and (fewest or not properties):
            wild = self._part(extra, "", nested + 1)
        unnamed = [key for key in dict.fromkeys(required) if key not in properties]
        if extra is False:
            unnamed, fewest = [], 0
        is_map = wild is not None and not properties
        return Object(name, members, unnamed, fewest, wild, is_map=is_map)

    def _array(self, schema: Mapping[str, Any], name: str, nested: int) -> Part:
        fewest = _count(schema, "minItems", 0)
        most = _count(schema, "maxItems", max(fewest, 3), most=1 << 62)
        given = schema.get("prefixItems", [])
        if not isinstance(given, list):
            raise SchemaError(f"{shown(given)} is not of type 'array'")
        fixed = [self._part(part, name, nested + 1) for part in given]
        items = schema.get("items", {} if not fixed else False)
        # The items of `cities` are named like `city`.
        single = name[:-3] + "y" if name.endswith("ies") else name.removesuffix("s")
        item = None if items is False else self._part(items, single, nested + 1)
        return Array(name, fixed, item, fewest, most, unique=bool(schema.get("uniqueItems")))

    def _string(self, schema: Mapping[str, Any], name: str) -> Part:
        if "pattern" in schema:
            pattern = Pattern(schema["pattern"])
            self._spend(len(schema["pattern"]) // 8)
            return Matching(name, pattern)
        formatted = FORMATS.get(str(schema.get("format")))
        if formatted is not None:
            return Leaf(name, lambda draws, n: formatted(draws))
        shortest = _count(schema, "minLength", 0)
        longest = _count(schema, "maxLength", 0, most=1 << 62) if "maxLength" in schema else None
        text = named_text(name)
        if text is None:
            offset = sum(map(ord, name))  # origin and destination of one call are two cities
            make: Maker = lambda draws, n: CITIES[(n + offset) % len(CITIES)]  # noqa: E731
        else:
            named = text
            make = lambda draws, n: named(draws)  # noqa: E731
        if shortest == 0 and longest is None:
            return Leaf(name, make)
        return LongText(name, _fitted(make, shortest, longest), 16 + shortest)


def _non_empty(schema: Mapping[str, Any], keyword: str) -> list[Any]:
    parts = schema[keyword]
    if not isinstance(parts, list) or not parts:
        raise SchemaError(f"{shown(parts)} is not a non-empty array")
    return parts


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = schema.get("properties", {})
    if not isinstance(properties, Mapping):
        raise SchemaError(f"{shown(properties)} is not of type 'object'")
    return properties


def _required(schema: Mapping[str, Any]) -> list[str]:
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
        raise SchemaError(f"{shown(required)} is not of type 'array'")
    return required


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
            raise SchemaError(f"{shown(option)} is not valid under any of the given schemas")
    return next((option for option in kinds if option != "null"), "null")


def _count(schema: Mapping[str, Any], keyword: str, default: int, most: int = 10_000) -> int:
    """The value of a counting keyword; `most` keeps a request from asking for a gigabyte."""
    value = schema.get(keyword, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise SchemaError(f"{keyword} {shown(value)} is not an integer from 0 to {most}")
    return int(value)


def _fitted(make: Maker, shortest: int, longest: int | None) -> Maker:
    def generate(draws: Draws, n: int) -> str:
        value: str = make(draws, n)
        words, size = [value] if value else [], len(value)
        while size < shortest:
            word = draws.choice(WORDS)
            size += len(word) + bool(words)
            words.append(word)
        return " ".join(words)[:longest]

    return generate


def _bounds(schema: Mapping[str, Any], span: float) -> tuple[float, float, bool, bool]:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    for bound in (low, high, above, below, schema.get("multipleOf")):
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int | float)):
            raise SchemaError(f"{shown(bound)} is not of type 'number'")
    open_low = above is not None and (low is None or above >= low)
    open_high = below is not None and (high is None or below <= high)
    start = above if open_low else low
    end = below if open_high else high
    if start is None:
        start = 0 if end is None or end > 0 else end - span
    if end is None:
        end = start + span
    return start, end, open_low, open_high


def _integer(schema: Mapping[str, Any]) -> Maker:
    start, end, open_low, open_high = _bounds(schema, 100)
    step = int(schema.get("multipleOf", 1)) or 1
    first = math.floor(start) + 1 if open_low else math.ceil(start)
    last = math.ceil(end) - 1 if open_high else math.floor(end)
    first, last = max(first, _LEAST_INTEGER), min(last, _MOST_INTEGER)
    first, last = -(-first // step), last // step
    if last < first:
        raise SchemaError(f"no integer lies between {start!r} and {end!r}")
    return lambda draws, n: (first + draws.below(last - first + 1)) * step


def _number(schema: Mapping[str, Any]) -> Maker:
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
        share = 0.001 + 0.998 * draws.random()
        value = start + share * (end - start)
        if not math.isfinite(value):  # the ends are further apart than a float can say
            value = start * (1 - share) + end * share
        short = round(value, 2)
        return short if start < short < end else value

    return generate
