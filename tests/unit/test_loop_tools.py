"""Tools: schema from hints and docstring, validation, both kinds of function, what is refused."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from profiler import Tool, UsageError, tool
from profiler.errors import ToolDefinitionError
from profiler.loop.eventloop import NativeThreads
from profiler.loop.tools import InvalidArguments, SchemaTool, result_text, tools_by_name


@tool
async def search(query: str, depth: Literal["quick", "full"] = "quick", limit: int = 10) -> dict[str, str]:
    """Search the archive.

    Looks in titles first.

    Args:
        query: What to look for.
        depth: How hard to look.
    """
    return {"query": query, "depth": depth, "limit": str(limit)}


def test_schema_comes_from_hints_and_docstring():
    assert search.name == "search"
    assert search.description == "Search the archive.\n\nLooks in titles first."
    assert search.parameters == {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "What to look for."},
            "depth": {
                "type": "string",
                "enum": ["quick", "full"],
                "default": "quick",
                "description": "How hard to look.",
            },
            "limit": {"type": "integer", "default": 10},
        },
        "required": ["query"],
        "additionalProperties": False,
    }


def test_options_replace_what_the_function_says():
    made = tool(name="other", description="Else.", timeout=2.5)(search.function)
    assert (made.name, made.description, made.timeout, search.timeout) == ("other", "Else.", 2.5, None)


def test_property_named_title_survives():
    @tool
    def book(title: str) -> str:
        return title

    assert book.parameters["properties"] == {"title": {"type": "string"}}


def test_hints_may_name_local_types_and_nested_models():
    class Place(BaseModel):
        city: str
        zip_code: Annotated[str, Field(description="Postal code.")] = ""

    @tool
    def visit(places: list[Place]) -> int:
        return len(places)

    assert visit.parameters["$defs"]["Place"]["required"] == ["city"]
    parsed = visit.parse('{"places": [{"city": "Rome"}, {"city": "Oslo", "zip_code": "0150"}]}')
    assert [place.zip_code for place in parsed["places"]] == ["", "0150"]


def test_tool_is_still_the_function():
    assert asyncio.run(search("x")) == {"query": "x", "depth": "quick", "limit": "10"}


def test_method_and_a_callable_object_can_be_tools():
    class Archive:
        def lookup(self, key: str) -> str:
            return f"<{key}>"

        def __call__(self, key: str) -> str:
            return key

    assert tool(Archive().lookup).parameters["required"] == ["key"]
    assert tool(name="archive")(Archive()).parse('{"key": "a"}') == {"key": "a"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"query": "a"}', {"query": "a", "depth": "quick", "limit": 10}),
        ({"query": "a", "depth": "full"}, {"query": "a", "depth": "full", "limit": 10}),
        ('{"query": "a", "limit": "7"}', {"query": "a", "depth": "quick", "limit": 7}),
    ],
)
def test_arguments_become_keywords(arguments, expected):
    assert search.parse(arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "error_type", "text"),
    [
        ('{"query": "a"', "invalid_json", "EOF"),
        ("", "invalid_arguments", "query: Field required"),
        ('{"query": "a", "depth": "deep"}', "invalid_arguments", "depth: Input should be 'quick' or 'full'"),
        ('{"query": "a", "page": 2}', "invalid_arguments", "page: Extra inputs are not permitted"),
        ('["a"]', "invalid_arguments", "arguments: "),
        ({"query": 3}, "invalid_arguments", "query: Input should be a valid string"),
    ],
)
def test_arguments_that_do_not_fit(arguments, error_type, text):
    with pytest.raises(InvalidArguments) as caught:
        search.parse(arguments)
    assert caught.value.error_type == error_type
    assert text in str(caught.value)


def test_schema_tool_takes_its_schema_as_it_is():
    async def ask(**arguments):
        return arguments

    schema = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
    made = SchemaTool(ask, name="ask", description="Ask.", parameters=schema)
    assert made.parameters == schema
    assert made.parse('{"q": "x", "more": 1}') == {"q": "x", "more": 1}
    for bad, error_type in (("{", "invalid_json"), ("[]", "invalid_arguments"), ("{}", "invalid_arguments")):
        with pytest.raises(InvalidArguments) as caught:
            made.parse(bad)
        assert caught.value.error_type == error_type


def test_tool_that_cannot_be_one_is_refused_when_it_is_defined():
    with pytest.raises(ToolDefinitionError, match="parameter 'rest' cannot be passed by name"):

        @tool
        def variadic(*rest: str) -> None: ...

    with pytest.raises(ToolDefinitionError, match="its type hints cannot be read: name 'Missing'"):

        @tool
        def unknown(x: Missing) -> None: ...  # noqa: F821

    with pytest.raises(ToolDefinitionError, match="tool name '<lambda>'"):
        tool(lambda: 1)
    with pytest.raises(ToolDefinitionError, match="no JSON Schema"):

        @tool
        def opaque(x: threading.Thread) -> None: ...

    with pytest.raises(ToolDefinitionError, match="search is a tool already"):
        tool(search)
    with pytest.raises(UsageError, match="above 0 seconds, not -1"):
        tool(timeout=-1)


def test_toolbox_makes_tools_of_functions():
    def plain(x: int) -> int:
        return x

    box = tools_by_name([plain, search])
    assert list(box) == ["plain", "search"]
    assert isinstance(box["plain"], Tool)


def test_str_result_goes_as_it_is_anything_else_as_json():
    @dataclass
    class Point:
        x: int

    assert result_text('say "hi"') == 'say "hi"'
    assert result_text({"a": [1, None]}) == '{"a":[1,null]}'
    assert result_text(Point(3)) == '{"x":3}'
    assert result_text(None) == "null"
    assert result_text("half \ud83d a pair") == "half ? a pair"  # no SDK could send it
    assert result_text({1, 2}) in ("[1,2]", "[2,1]")


def test_threads_are_reused_and_bounded():
    async def main():
        threads = NativeThreads(limit=2)
        started = threading.Barrier(2, timeout=60)
        seen = await asyncio.gather(
            *(threads.run(lambda: (started.wait(), threading.get_ident())) for _ in range(2))
        )
        later = [await threads.run(threading.get_ident) for _ in range(3)]
        return threads.threads, {ident for _, ident in seen} >= set(later)

    assert asyncio.run(main()) == (2, True)


def test_exception_of_a_function_in_a_thread_arrives():
    def fails() -> None:
        raise LookupError("gone")

    def stops() -> None:
        raise StopIteration

    async def main():
        threads = NativeThreads()
        with pytest.raises(LookupError, match="gone"):
            await threads.run(fails)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await threads.run(stops)

    asyncio.run(main())
