"""Checks that both OpenAI APIs share: tools, `tool_choice`, limits, content; and their errors. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import orjson

from profiler.emulator.arguments import Allowance, Generator, compile_schema
from profiler.emulator.conversation import AUTO, NO_TOOLS, ApiError, Choice, Offered, offer
from profiler.emulator.offers import Offers
from profiler.emulator.work import MOST_DEEP, SchemaError, TooMuch, shown

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_TYPES = {
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    str: "a string",
    list: "an array",
    dict: "an object",
}
_dumps = orjson.dumps


def envelope(error: ApiError) -> bytes:
    """OpenAI's error body."""
    inner = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return _dumps({"error": inner})


def missing(key: str) -> ApiError:
    """The error for a required parameter that is not there."""
    return ApiError(f"Missing required parameter: '{key}'.", param=key, code="missing_required_parameter")


def wrong_type(key: str, expected: str, value: object) -> ApiError:
    """The error for a parameter of the wrong JSON type."""
    return ApiError(
        f"Invalid type for '{key}': expected {expected}, but got {_TYPES.get(type(value), 'null')} instead.",
        param=key,
        code="invalid_type",
    )


def missing_or_wrong(key: str, expected: str, value: object) -> ApiError:
    """The error for a required parameter that is not there or has the wrong JSON type."""
    return missing(key) if value is None else wrong_type(key, expected, value)


def unsupported(key: str, value: object, supported: str) -> ApiError:
    """The error for a parameter with a value that is not one of those `supported`."""
    return ApiError(
        f"Invalid value: '{value if isinstance(value, str) else shown(value)}'. Supported values are:"
        f" {supported}.",
        param=key,
        code="invalid_value",
        log=f"Invalid value for '{key}'. Supported values are: {supported}.",
    )


def missing_or_unsupported(key: str, value: object, supported: str) -> ApiError:
    """The error for a required parameter that is not there or has none of the `supported` values."""
    return missing(key) if value is None else unsupported(key, value, supported)


def empty_array(key: str) -> ApiError:
    """The error for an array that needs an element."""
    return ApiError(
        f"Invalid '{key}': empty array. Expected an array with minimum length 1, but got an empty array"
        " instead.",
        param=key,
        code="empty_array",
    )


def check_content(key: str, content: object, kinds: Collection[str]) -> None:
    """Check what a message or an output says: a string, or an array of parts of these `kinds`."""
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise wrong_type(key, "one of a string or array of objects", content)
    if not content:
        raise empty_array(key)
    for n, part in enumerate(content):
        if not isinstance(part, dict):
            raise wrong_type(f"{key}[{n}]", "an object", part)
        kind = part.get("type")
        if not isinstance(kind, str) or kind not in kinds:
            supported = " and ".join(f"'{one}'" for one in sorted(kinds))
            raise missing_or_unsupported(f"{key}[{n}].type", kind, supported)
        member = "refusal" if kind == "refusal" else "text" if "text" in kind else None
        if member is not None and not isinstance(part.get(member), str):
            raise missing_or_wrong(f"{key}[{n}].{member}", "a string", part.get(member))


def flag(body: Mapping[str, Any], key: str) -> bool | None:
    """Check an optional parameter that is true or false."""
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise wrong_type(key, "a boolean", value)
    return value


def token_limit(key: str, value: Any, least: int) -> int | None:
    """Check an optional limit of output tokens."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(key, "an integer", value)
    if value < least:
        raise ApiError(
            f"Invalid '{key}': integer below minimum value. Expected a value >= {least}, but got {value}"
            " instead.",
            param=key,
            code="integer_below_min_value",
        )
    return value


def offered_tools(tools: Any, *, nested: bool) -> Offered:
    """Check `tools`. `nested`: a tool keeps its function in a member of its own, as Chat has it."""
    if tools is None:
        return NO_TOOLS
    if not isinstance(tools, list):
        raise wrong_type("tools", "an array of objects", tools)
    try:
        return _OFFERS[nested](tools)
    except TooMuch as error:
        raise ApiError(f"Invalid 'tools': {error}.", param="tools", code="invalid_value") from error


def _compiled(tools: list[Any], *, nested: bool) -> Offered:
    generators: dict[str, Generator] = {}
    allowance = Allowance()
    for n, tool in enumerate(tools):
        path, function = f"tools[{n}]", tool
        if not isinstance(tool, dict):
            raise wrong_type(path, "an object", tool)
        if tool.get("type") != "function":
            refused = missing_or_unsupported if nested else unsupported
            raise refused(f"{path}.type", tool.get("type"), "'function'")
        if nested:
            path, function = f"{path}.function", tool.get("function")
        if not isinstance(function, dict):
            raise missing_or_wrong(path, "an object", function)
        name, parameters = function.get("name"), function.get("parameters")
        if not isinstance(name, str):
            raise missing(f"{path}.name")
        if not _NAME.fullmatch(name):
            raise ApiError(
                f"Invalid '{path}.name': string does not match pattern. Expected a string that matches the "
                "pattern '^[a-zA-Z0-9_-]+$'.",
                param=f"{path}.name",
                code="invalid_value",
            )
        try:
            schema = {"type": "object", "properties": {}} if parameters is None else parameters
            generators[name] = _checked(schema, allowance)
        except SchemaError as error:
            raise ApiError(
                f"Invalid schema for function '{name}': {error}.",
                param=f"{path}.parameters",
                code="invalid_function_parameters",
            ) from error
    return offer(generators)


_OFFERS = {nested: Offers(partial(_compiled, nested=nested)) for nested in (True, False)}


def _checked(schema: object, allowance: Allowance) -> Generator:
    if not isinstance(schema, dict) or schema.get("type") != "object":
        kind = str(schema.get("type")) if isinstance(schema, dict) else type(schema).__name__
        raise SchemaError(f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{kind[:80]}\"'")
    if "properties" not in schema:
        raise SchemaError("In context=(), object schema missing properties")
    problem = _missing_items(schema, ())
    if problem is not None:
        raise SchemaError(problem)
    return compile_schema(schema, allowance)


def _missing_items(schema: object, context: tuple[str, ...]) -> str | None:
    """OpenAI alone insists that an array says what its items are."""
    if not isinstance(schema, dict) or len(context) > 2 * MOST_DEEP:  # too deep, as compiling it will say
        return None
    if schema.get("type") == "array" and "items" not in schema and "prefixItems" not in schema:
        return f"In context={context}, array schema missing items"
    properties = schema.get("properties")
    for key, part in properties.items() if isinstance(properties, dict) else ():
        problem = _missing_items(part, (*context, "properties", key))
        if problem is not None:
            return problem
    return _missing_items(schema.get("items"), (*context, "items"))


def tool_choice(value: object, offered: Offered, function: object) -> Choice:
    """Check `tool_choice`; `function` is where the API keeps the named tool (None when it is no object)."""
    if value is None or value == "auto":
        return AUTO
    if not offered.names:
        raise ApiError(
            "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
            param="tool_choice",
        )
    if value == "none" or value == "required":
        return Choice(value)
    if not isinstance(value, dict):
        raise unsupported("tool_choice", value, "'none', 'auto', and 'required'")
    kind = value.get("type")
    if kind == "allowed_tools":
        return _allowed(value, offered)
    name = function.get("name") if isinstance(function, dict) else None
    if kind != "function" or not isinstance(name, str):
        raise missing("tool_choice.function.name" if kind == "function" else "tool_choice.type")
    return Choice("named", (_known(name, offered.names),))


def _allowed(value: dict[str, Any], offered: Offered) -> Choice:
    inner = value.get("allowed_tools", value)  # Chat nests it, Responses does not
    tools = inner.get("tools") if isinstance(inner, dict) else None
    if not isinstance(tools, list) or not tools:
        raise missing("tool_choice.allowed_tools.tools")
    offered_names = frozenset(offered.names)
    names = {}
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or name not in names:
            names[_known(name, offered_names)] = True
    return Choice("required" if inner.get("mode") == "required" else "auto", tuple(names))


def _known(name: Any, offered: Collection[str]) -> str:
    if not isinstance(name, str) or name not in offered:
        raise ApiError(f"Tool choice '{name}' not found in 'tools' parameter.", param="tool_choice")
    return str(name)
