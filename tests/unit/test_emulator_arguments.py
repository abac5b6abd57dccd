"""Arguments satisfy the schema they are drawn from."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.emulator.arguments import compile_schema
from profiler.emulator.draws import Draws, key
from profiler.emulator.words import CITIES
from profiler.emulator.work import SchemaError


def drawn(
    properties: dict[str, Any], required: list[str] | None = None, n: int = 40, **rest: Any
) -> list[dict[str, Any]]:
    schema = {"type": "object", "properties": properties, "required": required or list(properties), **rest}
    generate = compile_schema(schema)
    return [generate(Draws(key(1, i)), i) for i in range(n)]


def satisfies(value: Any, schema: dict[str, Any]) -> bool:
    """A judge of its own for the keywords that the strategy below uses."""
    if "enum" in schema:
        return value in schema["enum"]
    kind = schema["type"]
    if kind == "null":
        return value is None
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "string":
        return isinstance(value, str) and schema.get("minLength", 0) <= len(value) <= schema.get(
            "maxLength", 10**6
        )
    if kind in ("integer", "number"):
        right = isinstance(value, int) if kind == "integer" else isinstance(value, int | float)
        return right and not isinstance(value, bool) and schema["minimum"] <= value <= schema["maximum"]
    if kind == "array":
        return (
            isinstance(value, list)
            and schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**6)
            and all(satisfies(item, schema["items"]) for item in value)
        )
    properties = schema["properties"]
    return (
        isinstance(value, dict)
        and set(schema["required"]) <= set(value) <= set(properties)
        and all(satisfies(item, properties[name]) for name, item in value.items())
    )


def _numbers(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(st.integers(-1000, 1000), st.integers(0, 500)).map(
        lambda pair: {"type": kind, "minimum": pair[0], "maximum": pair[0] + pair[1]}
    )


leaves = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    _numbers("integer"),
    _numbers("number"),
    st.tuples(st.integers(0, 12), st.integers(0, 40)).map(
        lambda pair: {"type": "string", "minLength": pair[0], "maxLength": pair[0] + pair[1]}
    ),
    st.lists(st.text(max_size=5), min_size=1, max_size=4).map(lambda values: {"enum": values}),
)


def _object(parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), parts, max_size=4)
    return names.flatmap(
        lambda properties: (
            st.lists(st.sampled_from(sorted(properties)), unique=True).map(
                lambda required: {"type": "object", "properties": properties, "required": required}
            )
            if properties
            else st.just({"type": "object", "properties": {}, "required": []})
        )
    )


def _array(parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(parts, st.integers(0, 3), st.integers(0, 3)).map(
        lambda triple: {
            "type": "array",
            "items": triple[0],
            "minItems": triple[1],
            "maxItems": triple[1] + triple[2],
        }
    )


schemas = _object(st.recursive(leaves, lambda parts: st.one_of(_object(parts), _array(parts)), max_leaves=8))


@pytest.mark.slow
@given(schemas, st.integers(0, 2**63))
@settings(max_examples=150)
def test_drawn_value_satisfies_its_schema(schema: dict[str, Any], seed: int) -> None:
    assert satisfies(compile_schema(schema)(Draws(seed), seed % 100), schema)


def test_optional_properties_come_half_of_the_time() -> None:
    rows = drawn({"a": {"type": "integer"}, "b": {"type": "integer"}}, required=["a"], n=400)
    assert all("a" in row for row in rows)
    assert 150 < sum("b" in row for row in rows) < 250


def test_strings_suit_their_names_and_calls_ask_for_different_cities() -> None:
    rows = drawn({"city": {"type": "string"}, "origin": {"type": "string"}}, n=20)
    assert {row["city"] for row in rows} <= set(CITIES)
    assert len({row["city"] for row in rows}) == 20
    assert all(row["city"] != row["origin"] for row in rows)
    (row,) = drawn(
        {"cities": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2}}, n=1
    )
    assert set(row["cities"]) <= set(CITIES)


@pytest.mark.parametrize(
    ("schema", "right"),
    [
        ({"const": 7}, lambda v: v == 7),
        ({"type": ["null", "integer"]}, lambda v: isinstance(v, int)),
        ({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 6}, lambda v: v in (4, 5)),
        ({"type": "integer", "multipleOf": 5, "minimum": 1, "maximum": 11}, lambda v: v in (5, 10)),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.001}, lambda v: 0 < v <= 0.001),
        ({"type": "string", "format": "date"}, lambda v: re.fullmatch(r"20\d\d-\d\d-\d\d", v)),
        (
            {"type": "string", "format": "uuid"},
            lambda v: re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}", v),
        ),
        (
            {"type": "string", "pattern": r"^[A-Z]{2}-\d{3}(a|b)?$"},
            lambda v: re.search(r"^[A-Z]{2}-\d{3}(a|b)?$", v),
        ),
        (
            {
                "type": "array",
                "items": {"type": "integer", "minimum": 0, "maximum": 9},
                "uniqueItems": True,
                "minItems": 5,
                "maxItems": 5,
            },
            lambda v: len(set(v)) == 5,
        ),
        (
            {"type": "array", "prefixItems": [{"const": 1}, {"const": "x"}], "items": False},
            lambda v: v == [1, "x"],
        ),
        ({"anyOf": [{"type": "null"}, {"const": 4}]}, lambda v: v == 4),
        ({"oneOf": [{"const": 1}, {"const": 2}]}, lambda v: v in (1, 2)),
        (
            {
                "allOf": [
                    {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]},
                    {"properties": {"b": {"const": 2}}, "required": ["b"]},
                ]
            },
            lambda v: v == {"a": 1, "b": 2},
        ),
        (
            {"type": "object", "additionalProperties": {"type": "boolean"}},
            lambda v: len(v) == 1 and all(isinstance(x, bool) for x in v.values()),
        ),
    ],
)
def test_keywords(schema: dict[str, Any], right: Any) -> None:
    assert all(right(row["value"]) for row in drawn({"value": schema}))


def test_references_resolve_and_recursion_ends() -> None:
    node = {
        "type": "object",
        "required": ["label", "children"],
        "properties": {
            "label": {"enum": ["x"]},
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
        },
    }
    rows = drawn({"tree": {"$ref": "#/$defs/node"}}, **{"$defs": {"node": node}})
    assert all(row["tree"]["label"] == "x" for row in rows)
    assert all(child["label"] == "x" for row in rows for child in row["tree"]["children"])


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ({"type": "text"}, "'text' is not valid under any of the given schemas"),
        ({"type": "string", "minLength": 10**9}, "minLength 1000000000 is not an integer from 0 to 10000"),
        ({"type": "array", "items": {}, "minItems": "3"}, "minItems '3' is not an integer"),
        ({"enum": []}, r"\[\] is not a non-empty array"),
        ({"$ref": "#/$defs/none"}, "does not resolve"),
        ({"type": "string", "pattern": "("}, "is not a 'regex'"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "no integer lies between 5 and 4"),
        ({"type": "object", "properties": []}, "is not of type 'object'"),
        ("string", "'string' is not of type 'object', 'boolean'"),
        ({"$ref": "#"}, "requires itself without end"),
    ],
)
def test_bad_schemas_are_refused_when_compiled(part: Any, problem: str) -> None:
    with pytest.raises(SchemaError, match=problem):
        compile_schema({"type": "object", "properties": {"value": part}, "required": ["value"]})
