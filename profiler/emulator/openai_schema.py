"""What both OpenAI APIs check alike: tools, `tool_choice`, and the error envelope. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from profiler.emulator.arguments import SchemaError, compile_schema
from profiler.emulator.conversation import AUTO, ApiError, Choice, Offered

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def envelope(error: ApiError) -> bytes:
    """OpenAI's error body."""
    inner = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return orjson.dumps({"error": inner})


def missing(key: str) -> ApiError:
    """The error for a required parameter that is not there."""
    return ApiError(f"Missing required parameter: '{key}'.", param=key, code="missing_required_parameter")


def wrong_type(key: str, expected: str, value: object) -> ApiError:
    """The error for a parameter of the wrong JSON type."""
    found = {
        bool: "a boolean",
        int: "an integer",
        float: "a decimal",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    got = found.get(type(value), "null")
    return ApiError(
        f"Invalid type for '{key}': expected {expected}, but got {got} instead.",
        param=key,
        code="invalid_type",
    )


def tool_schemas(functions: list[tuple[str, Any]], parameters_key: str) -> dict[str, Mapping[str, Any]]:
    """Check functions given as (their path in the request, object); name → parameters.

    `parameters_key` is what the error's param ends in after the path.
    """
    schemas: dict[str, Mapping[str, Any]] = {}
    for path, function in functions:
        if not isinstance(function, dict):
            raise missing(path) if function is None else wrong_type(path, "an object", function)
        name = function.get("name")
        if not isinstance(name, str):
            raise missing(f"{path}.name")
        if not _NAME.fullmatch(name):
            raise ApiError(
                f"Invalid '{path}.name': string does not match pattern. Expected a string that matches the "
                "pattern '^[a-zA-Z0-9_-]+$'.",
                param=f"{path}.name",
                code="invalid_value",
            )
        parameters = function.get("parameters")
        if parameters is None:
            parameters = {"type": "object", "properties": {}}
        problem = _schema_problem(parameters)
        if problem is not None:
            raise ApiError(
                f"Invalid schema for function '{name}': {problem}",
                param=f"{path}.{parameters_key}",
                code="invalid_function_parameters",
            )
        schemas[name] = parameters
    return schemas


def _schema_problem(schema: object) -> str | None:
    if not isinstance(schema, dict) or schema.get("type") != "object":
        kind = schema.get("type") if isinstance(schema, dict) else type(schema).__name__
        return f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{kind}\"'."
    if "properties" not in schema:
        return "In context=(), object schema missing properties."
    problem = _missing_items(schema, ())
    if problem is not None:
        return problem
    try:
        compile_schema(schema)
    except (SchemaError, TypeError, ValueError) as error:
        return f"{error}."
    return None


def _missing_items(schema: object, context: tuple[str, ...]) -> str | None:
    if not isinstance(schema, dict):
        return None
    if schema.get("type") == "array" and "items" not in schema and "prefixItems" not in schema:
        return f"In context={context}, array schema missing items."
    properties = schema.get("properties")
    if isinstance(properties, dict):
        for key, part in properties.items():
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
    if value == "none":
        return Choice("none")
    if value == "required":
        return Choice("required")
    if isinstance(value, dict):
        if value.get("type") == "allowed_tools":
            return _allowed(value, offered)
        name = function.get("name") if isinstance(function, dict) else None
        if value.get("type") == "function" and isinstance(name, str):
            _known(name, offered)
            return Choice("named", (name,))
        raise missing("tool_choice.function.name" if value.get("type") == "function" else "tool_choice.type")
    raise ApiError(
        f"Invalid value: '{value}'. Supported values are: 'none', 'auto', and 'required'.",
        param="tool_choice",
        code="invalid_value",
    )


def _allowed(value: dict[str, Any], offered: Offered) -> Choice:
    inner = value.get("allowed_tools", value)  # Chat nests it, Responses does not
    tools = inner.get("tools") if isinstance(inner, dict) else None
    if not isinstance(tools, list) or not tools:
        raise missing("tool_choice.allowed_tools.tools")
    names = []
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        name = function.get("name") if isinstance(function, dict) else None
        _known(name, offered)
        names.append(str(name))
    return Choice("required" if inner.get("mode") == "required" else "auto", tuple(names))


def _known(name: object, offered: Offered) -> None:
    if name not in offered.names:
        raise ApiError(f"Tool choice '{name}' not found in 'tools' parameter.", param="tool_choice")
