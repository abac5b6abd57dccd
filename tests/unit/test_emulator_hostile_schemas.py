"""Schemas that ask for more than can be made: refused in words, or drawn within their budget, never for long.

Time is not measured here; what is asserted is the work: parts compiled, characters drawn. A schema that is
not bounded would not end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from profiler.emulator import anthropic_messages, openai_chat, openai_responses
from profiler.emulator.arguments import MOST_PARTS, Allowance, compile_schema
from profiler.emulator.conversation import ApiError, Offered
from profiler.emulator.draws import Draws, Place, key
from profiler.emulator.offers import MOST_BYTES, Offers
from profiler.emulator.patterns import Pattern
from profiler.emulator.tape import Tape
from profiler.emulator.work import MOST_WORK, SchemaError, TooMuch, Work
from profiler.scenarios import load_scenario

STRING = {"type": "string"}
USER = {"role": "user", "content": "x"}


def of(part: Any, **rest: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": part}, "required": ["a"], **rest}


def like(pattern: str) -> dict[str, Any]:
    return of({"type": "string", "pattern": pattern})


def nested(times: int, around: Callable[[Any], Any], inner: Any = STRING) -> Any:
    for _ in range(times):
        inner = around(inner)
    return inner


def defined(start: str, **definitions: Any) -> dict[str, Any]:
    return of({"$ref": f"#/$defs/{start}"}, **{"$defs": definitions})


def wide(*, required: bool) -> dict[str, Any]:
    """Eight references to the next level, eight levels deep."""
    levels: dict[str, Any] = {"l8": STRING}
    for n in range(8):
        properties = {name: {"$ref": f"#/$defs/l{n + 1}"} for name in "abcdefgh"}
        level = {"type": "object", "properties": properties, "required": list(properties) if required else []}
        levels[f"l{n}"] = level
    return defined("l0", **levels)


def chain(length: int) -> dict[str, Any]:
    links: dict[str, Any] = {f"c{n}": {"$ref": f"#/$defs/c{n + 1}"} for n in range(length)}
    return defined("c0", **links, **{f"c{length}": STRING})


DOUBLING = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "repeats": (like("^((a{1000}){1000}){100}$"), "takes at least 100,000,000 characters"),
    "repeats of nothing": (like("^((){1000}){1000}$"), "takes at least 1,000,000 characters or steps"),
    "references that double": (
        like("(aaaa)" + "".join(rf"(\{n}\{n})" for n in range(1, 30))),
        "characters or steps",
    ),
    "long pattern": (like("a" * 100_000), "a pattern has 100,000 characters; at most 2,000 are read"),
    "deep pattern": (like("(" * 900 + ")" * 900), "is nested too deeply"),
    "repeats without end": (like("a{99999999999999999999}"), "is not a 'regex'"),
    "items of items": (
        of(nested(2, lambda part: {"type": "array", "minItems": 10_000, "items": part})),
        "'a' takes at least 180,002 characters",
    ),
    "items six deep": (
        of(nested(6, lambda part: {"type": "array", "minItems": 7, "items": part})),
        "characters or steps",
    ),
    "items though optional": (
        {"type": "object", "properties": {"a": nested(8, lambda part: {"minItems": 7, "items": part})}},
        "characters or steps",
    ),
    "long texts": (
        {
            "type": "object",
            "properties": {f"p{n}": {"type": "string", "minLength": 10_000} for n in range(300)},
            "required": [f"p{n}" for n in range(300)],
        },
        "the value takes at least 3,0",
    ),
    "properties of properties": (
        of(nested(5, lambda part: {"type": "object", "minProperties": 10_000, "additionalProperties": part})),
        "characters or steps",
    ),
    "many properties": (
        {"type": "object", "properties": {f"p{n}": STRING for n in range(20_000)}},
        "more than 10,000 parts",
    ),
    "many required": (
        {"type": "object", "properties": {}, "required": [f"p{n}" for n in range(100_000)]},
        "more than 10,000 parts",
    ),
    "references eight wide, eight deep": (wide(required=True), "characters or steps"),
    "chain of references": (chain(5_000), "nested more than 100 levels deep"),
    "circle of references": (
        defined("a", a={"$ref": "#/$defs/b"}, b={"$ref": "#/$defs/a"}),
        "requires itself without end",
    ),
    "tree that has no leaves": (
        defined("e", e={"type": "array", "minItems": 2, "items": {"$ref": "#/$defs/e"}}),
        "requires itself without end",
    ),
    "remote reference": (of({"$ref": "http://127.0.0.1:1/x"}), "is not a reference into the same schema"),
    "long reference": (of({"$ref": "#/" + "a/" * 400_000}), "does not resolve"),
    "allOf that doubles": (defined("a0", **DOUBLING, a40=STRING), "more than 10,000 parts"),
    "allOf of itself": (defined("a", a={"allOf": [{"$ref": "#/$defs/a"}]}), "levels deep"),
    "allOf of a circle": (
        of({"allOf": [{"$ref": "#/$defs/a"}]}, **{"$defs": {"a": {"$ref": "#/$defs/a"}}}),
        "requires itself without end",
    ),
    "allOf nested": (of(nested(80, lambda part: {"allOf": [part, part]})), "more than 10,000 parts"),
    "allOf of many": (
        of({"allOf": [{"required": [f"r{n}"] * 50} for n in range(3_000)]}),
        "more than 10,000 parts",
    ),
    "oneOf nested": (of(nested(300, lambda part: {"oneOf": [part]})), "nested more than 100 levels deep"),
    "oneOf wide": (of({"oneOf": [{"const": n} for n in range(100_000)]}), "more than 10,000 parts"),
    "anyOf in full": (
        of(json.loads(json.dumps(nested(5, lambda part: {"anyOf": [part] * 8})))),
        "more than 10,000 parts",
    ),
    "oneOf with shared properties": (
        {
            "type": "object",
            "properties": {f"p{n}": STRING for n in range(2_000)},
            "oneOf": [{"required": [f"p{n}"]} for n in range(2_000)],
        },
        "more than 10,000 parts",
    ),
    "objects nested": (
        of(nested(120, lambda part: {"type": "object", "properties": {"a": part}, "required": ["a"]})),
        "nested more than 100 levels deep",
    ),
    "arrays nested beyond Python's own limit": (
        of(nested(2_000, lambda part: {"type": "array", "items": part})),
        "nested more than 100 levels deep",
    ),
    "long constant": (of({"const": "x" * 900_000}), "900,002 characters; at most 20,000 are made"),
    "many values": (of({"enum": list(range(100_000))}), "more than 10,000 parts"),
    "long name": (
        {"type": "object", "properties": {"n" * 500_000: STRING}, "required": ["n" * 500_000]},
        "500,0",
    ),
    "integer beyond 64 bits": (of({"type": "integer", "minimum": 1e300}), "no integer lies between"),
    "step of nothing": (of({"type": "number", "multipleOf": 1e-308, "minimum": 1e10}), "cannot convert"),
    "step in words": (of({"type": "integer", "multipleOf": "3"}), "'3' is not of type 'number'"),
    "length in words": (of({"type": "string", "maxLength": "x"}), "maxLength 'x' is not an integer"),
}

HARD = {"type": "string", "pattern": r"^(?=.*[A-Z])(?=.*\d)[a-z]{8,}$"}
DRAWN: dict[str, dict[str, Any]] = {
    "pattern that backtracks": like(r"^(\w*\w*\w*\w*\w*\w*)+(?=!)$"),
    "(a+)+ before what never comes": like("^(a+)+(?=b)$"),
    "alternatives of one": like("^(?!b)(a|a|aa)+(?<!a)$"),
    "(.*)* before what never comes": like("(?=(.*)*y)x{20}"),
    "optional repeats six deep": like("^((((((a{0,9}){0,9}){0,9}){0,9}){0,9}){0,9}){0,9}$"),
    "classes without case": like("(?i)" + "[\\u0001-\\U0010ffff]" * 80),
    "hundreds of patterns": {
        "type": "object",
        "properties": {f"p{n}": HARD for n in range(200)},
        "required": [f"p{n}" for n in range(200)],
    },
    "different ones of two": of(
        {"type": "array", "minItems": 900, "uniqueItems": True, "items": {"type": "boolean"}}
    ),
    "references eight wide, none required": wide(required=False),
    "arrays of arrays of any length": of(
        nested(20, lambda part: {"type": "array", "maxItems": 1e9, "items": part})
    ),
    "anyOf of the same eight": of(nested(12, lambda part: {"anyOf": [part] * 8})),
    "one short value beside a long one": of({"enum": ["x" * 900_000, "y"]}),
    "branch that nobody can fill": of({"anyOf": [REFUSED["items of items"][0], {"type": "null"}, STRING]}),
    "integers of any size": of({"type": "integer", "minimum": -1e308, "maximum": 1e308}),
    "numbers of any size": of({"type": "number", "minimum": -1e308, "maximum": 1e308}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_schema_that_asks_for_too_much_is_refused_in_words(name: str) -> None:
    schema, words = REFUSED[name]
    with pytest.raises(SchemaError) as caught:
        compile_schema(schema)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", DRAWN)
def test_schema_that_may_grow_is_drawn_within_its_work(name: str) -> None:
    generate = compile_schema(DRAWN[name])
    for n in range(5):
        work = Work()
        value = generate(Draws(key(1, n)), n, work)
        assert len(orjson.dumps(value)) < 2 * MOST_WORK
        assert work.left > -2 * MOST_WORK


def test_without_work_left_only_the_least_is_drawn() -> None:
    schema = of(
        {"type": "array", "minItems": 2, "items": {"anyOf": [{"const": "x" * 500}, {"const": "y"}]}},
        additionalProperties={"type": "string"},
    )
    schema["properties"]["optional"] = STRING
    generate = compile_schema(schema)
    assert generate(Draws(1), 0, Work(0)) == {"a": ["y", "y"]}
    assert compile_schema(like("^a{2,9}(bbb|c)d*$"))(Draws(1), 0, Work(0)) == {"a": "aac"}


def test_recursion_takes_the_branch_that_ends() -> None:
    """All branches refer to something; a choice at random would go on for ever, now and then."""
    number = {"type": "object", "properties": {"n": {"const": 1}}, "required": ["n"]}
    both = {"type": "object", "required": ["l", "r"], "properties": {k: {"$ref": "#/$defs/e"} for k in "lr"}}
    expression = {"anyOf": [{"$ref": "#/$defs/both"}, {"$ref": "#/$defs/number"}]}
    generate = compile_schema(defined("e", e=expression, both=both, number=number))

    def depth(value: Any) -> int:
        return 1 + max(depth(value["l"]), depth(value["r"])) if "l" in value else 1

    depths = [depth(generate(Draws(key(2, n)), n)["a"]) for n in range(200)]
    assert min(depths) == 1
    assert 1 < max(depths) < 6


@pytest.mark.parametrize(
    "pattern",
    [
        r"^(?=.*[A-Z])(?=.*\d)[A-Za-z\d]{8,12}$",
        r"^(?!foo)\w{3}$",
        r"(ab|c)-\1",
        r"\bcat\b",
        r"^(?:a|b)+?c*+d$",
        r"x(?<=x)y",
        r"^[^\W\d_]+$",
        r"a$|^b",
    ],
)
def test_texts_match_their_pattern_as_python_reads_it(pattern: str) -> None:
    made = Pattern(pattern)
    texts = [made.text(Draws(key(3, n)), Work()) for n in range(50)]
    matching = [text for text in texts if re.search(pattern, text)]
    assert len(matching) >= 45  # of those with a condition one in twenty tries may be the last


def test_parts_are_those_of_all_tools_of_a_list() -> None:
    allowance = Allowance(10)
    for _ in range(5):  # an object and a string each
        compile_schema(of(STRING), allowance)
    with pytest.raises(TooMuch, match=f"more than {MOST_PARTS:,} parts"):
        compile_schema(of(STRING), allowance)


CHAT = {"model": "m", "messages": [USER]}


def chat_tool(schema: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "look_up", "parameters": schema}}


def test_each_api_names_the_tool_and_what_is_too_much() -> None:
    schema, words = REFUSED["repeats"]
    for parse, body in (
        (openai_chat.parse, {**CHAT, "tools": [chat_tool(schema)]}),
        (
            lambda body: openai_responses.parse(body, openai_responses.Store()),
            {
                "model": "m",
                "input": "x",
                "tools": [{"type": "function", "name": "look_up", "parameters": schema}],
            },
        ),
        (
            anthropic_messages.parse,
            {**CHAT, "max_tokens": 9, "tools": [{"name": "look_up", "input_schema": schema}]},
        ),
    ):
        with pytest.raises(ApiError) as caught:
            parse(body)
        assert caught.value.status == 400
        assert "look_up" in caught.value.message
        assert words in caught.value.message


def test_lists_of_tools_are_bounded_as_a_whole() -> None:
    long = {"type": "object", "properties": {}, "description": "d" * MOST_BYTES}
    deep = nested(400, lambda part: [part], "x")
    for tools, words in (
        ([chat_tool(long)], r"take 1,048,\d+ bytes of JSON; at most 1,048,576 are read"),
        ([chat_tool({"type": "object", "properties": {}, "x": deep})], "nested more than 250 levels deep"),
    ):
        with pytest.raises(ApiError, match=words) as caught:
            openai_chat.parse({**CHAT, "tools": tools})
        assert (caught.value.status, caught.value.param) == (400, "tools")


def test_arguments_of_a_whole_reply_are_bounded() -> None:
    schema = of({"type": "array", "minItems": 900, "items": STRING})
    offered = openai_chat.parse({**CHAT, "tools": [chat_tool(schema)]}).tools
    talk = openai_chat.parse({**CHAT, "tools": [chat_tool(schema)]})
    tape = Tape(load_scenario("instant"), 0)
    few, many = ([Place(0, 0, n) for n in range(calls)] for calls in (4, 40))
    assert len(tape.calls(few, offered, talk.choice)) == 4
    with pytest.raises(ApiError, match="'look_up' is too large for the 40 calls of this reply"):
        tape.calls(many, offered, talk.choice)


def test_lists_of_tools_are_compiled_once_and_forgotten_by_their_size() -> None:
    compiled = []

    def compile_(tools: list[Any]) -> Offered:
        compiled.append(tools)
        return Offered((f"tool{len(compiled)}",), ())

    offers = Offers(compile_, most=100)
    first, second = ["a" * 40], ["b" * 40]
    assert offers(first) is offers(list(first))
    assert offers(first) == Offered(("tool1",), (), b'["%b"]' % (b"a" * 40))
    offers(second)
    offers(first)  # used last
    offers(["c" * 40])  # for which the second goes
    assert len(offers) == 2
    offers(first)
    assert len(compiled) == 3
    offers(second)
    assert len(compiled) == 4
