"""Tools: plain functions, async or sync, that a model may call.

`@tool` turns a function into a `Tool`. Its JSON Schema comes from the type hints and from the parameters
that the docstring describes; arguments are validated against the hints before the call.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import copy
import inspect
import json
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from types import CoroutineType, GeneratorType
from typing import Annotated, Any, Generic, NamedTuple, ParamSpec, TypeVar, overload

import docstring_parser
import typing_extensions
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError, to_json

from profiler.errors import ToolDefinitionError, UsageError
from profiler.limits.refusals import ERROR_RESULT, Returned, status_of
from profiler.records import RemoteCall

Function = Callable[..., Any]

P = ParamSpec("P")
R = TypeVar("R")
_P = typing_extensions.ParamSpec("_P", default=...)
_R = typing_extensions.TypeVar("_R", default=Any)


class Answer:
    """What a server answered a tool: the failure in its last answer, and how a call of MCP's went.

    Both are None where nobody looks; `failure` is None, too, where the server served. `telling` gives what is
    known of the call by then: it may be cut off at any moment.
    """

    __slots__ = ("failure", "telling")

    def __init__(self) -> None:
        self.failure: Returned | None = None
        self.telling: Callable[[], RemoteCall | None] | None = None

    @property
    def remote(self) -> RemoteCall | None:
        return None if self.telling is None else self.telling()

    def or_of(self, returned: Returned | None) -> Returned | None:
        """The failure that a tool returned, or that it hides in what it returned."""
        if self.telling is not None and self.failure is not None:
            return self.failure  # its client knows; the text only quotes it
        known = returned is not None and returned.error_type is not None
        if self.failure is not None and returned is not None and returned.error_type == ERROR_RESULT:
            known = False  # what answered knows which kind of error
        return returned if known else self.failure or returned


class CallContext(NamedTuple):
    """The call that a tool's code is running for; `number` and `trial` are None outside a load test.

    `observed` is the call itself where it is only watched (`profiler.watch.rounds.ObservedCall`).
    """

    call_id: str
    tool: str
    number: int | None = None
    trial: int | None = None
    observed: object = None
    answer: Answer | None = None


current_call: ContextVar[CallContext | None] = ContextVar("toolloop_current_call", default=None)
"""Set while a tool runs, in its task or thread."""


class InvalidArguments(Exception):
    """The model's arguments cannot be used; `error_type` is `invalid_json` or `invalid_arguments`."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


class Tool(Generic[_P, _R]):
    """A function with a name, a description, a JSON Schema and an optional timeout in seconds.

    It can be called like the function and has its type; a bare `Tool` stands for any tool. `is_async`:
    calling it runs none of its code yet, but returns a coroutine or an async generator. For `retries`,
    `exclusive` and `pure` see `tool`. `server` is the name of the MCP server that runs it, if one does.
    """

    def __init__(
        self,
        function: Callable[_P, _R],
        *,
        name: str,
        description: str,
        arguments: type[BaseModel],
        timeout: float | None = None,
        retries: int = 0,
        exclusive: str | None = None,
        pure: bool = False,
        server: str = "",
    ) -> None:
        self.retries = retries
        self.exclusive = exclusive
        self.pure = pure
        self.server = server
        self.function = function
        self.name = name
        self.description = description
        self.timeout = timeout
        self.is_async = is_async(function) or inspect.isasyncgenfunction(function)
        self.parameters = _without_titles(arguments.model_json_schema())
        self._arguments = arguments
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Tool {self.name}>"

    def replaced(self, function: Callable[_P, _R]) -> Tool[_P, _R]:
        """This tool over another function of the same signature."""
        made = copy.copy(self)
        made.function = function
        made.__wrapped__ = function
        return made

    def parse(self, arguments: str | Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments for the function, from JSON text or an already parsed object.

        Raises `InvalidArguments`.
        """
        try:
            if isinstance(arguments, str):
                # Providers send nothing at all for a call without arguments.
                return self._arguments.model_validate_json(arguments or "{}").__dict__
            return self._arguments.model_validate(arguments).__dict__
        except ValidationError as error:
            details = error.errors(include_url=False, include_context=False, include_input=False)
            if details[0]["type"] == "json_invalid":
                raise InvalidArguments("invalid_json", details[0]["msg"]) from error
            text = "; ".join(
                f"{'.'.join(str(part) for part in detail['loc']) or 'arguments'}: {detail['msg']}"
                for detail in details
            )
            raise InvalidArguments("invalid_arguments", text) from error


class SchemaTool(Tool):
    """A tool whose JSON Schema is given; its function takes the arguments as keywords.

    `options` are those of `Tool`: `timeout`, `retries`, `exclusive`, `pure`, `server`.
    """

    def __init__(
        self,
        function: Function,
        *,
        name: str,
        description: str,
        parameters: Mapping[str, Any],
        **options: Any,
    ) -> None:
        super().__init__(function, name=name, description=description, arguments=_AnyArguments, **options)
        self.parameters = dict(parameters)
        required = parameters.get("required")
        self._required = tuple(required) if isinstance(required, list | tuple) else ()

    def parse(self, arguments: str | Mapping[str, Any]) -> dict[str, Any]:
        parsed = arguments
        if isinstance(parsed, str):
            try:
                parsed = json.loads(parsed or "{}")
            except ValueError as error:
                raise InvalidArguments("invalid_json", str(error)) from error
        if not isinstance(parsed, Mapping):
            raise InvalidArguments("invalid_arguments", "arguments must be an object")
        missing = [name for name in self._required if name not in parsed]
        if missing:
            raise InvalidArguments("invalid_arguments", f"missing: {', '.join(missing)}")
        return dict(parsed)


class _AnyArguments(BaseModel):
    model_config = ConfigDict(extra="allow")


@overload
def tool(function: Callable[P, R], /) -> Tool[P, R]: ...
@overload
def tool(
    *,
    timeout: float | None = None,
    name: str | None = None,
    description: str | None = None,
    retries: int = 0,
    exclusive: str | None = None,
    pure: bool = False,
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...


def tool(
    function: Function | None = None,
    /,
    *,
    timeout: float | None = None,
    name: str | None = None,
    description: str | None = None,
    retries: int = 0,
    exclusive: str | None = None,
    pure: bool = False,
) -> Tool | Callable[[Function], Tool]:
    """Make a function a tool: `@tool`, or `@tool(timeout=10.0)`.

    `timeout` is in seconds, from the start of execution (waiting in a limiter does not count).
    `name` and `description` replace the function's name and docstring. `retries`: how often a call is
    tried again after 429, 5xx or a timeout, with jitter. Tools with the same `exclusive` name never
    overlap in a process. `pure`: it has no side effects, so that it may run while the model still
    streams, even if the reply then fails (strategy `eager`).

    Raises `ToolDefinitionError` for a signature that has no JSON Schema form.
    """
    if timeout is not None and not timeout > 0:
        raise UsageError(f"a tool's timeout must be above 0 seconds, not {timeout!r}")
    if retries < 0:
        raise UsageError(f"a tool's retries must be at least 0, not {retries!r}")
    # Hints may name types that are local to the function which defines the tool.
    local_names = sys._getframe(1).f_locals

    def make(function: Function) -> Tool:
        if isinstance(function, Tool):
            raise ToolDefinitionError(f"{function.name} is a tool already")
        doc = docstring_parser.parse(inspect.getdoc(function) or "")
        text = "\n\n".join(part for part in (doc.short_description, doc.long_description) if part)
        tool_name = name or str(getattr(function, "__name__", type(function).__name__))
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", tool_name):
            raise ToolDefinitionError(
                f"tool name {tool_name!r}: providers take 1 to 64 of a-z, A-Z, 0-9, _ and -; pass name="
            )
        return Tool(
            function,
            name=tool_name,
            description=description if description is not None else text,
            arguments=_arguments_model(
                function, tool_name, {p.arg_name: p.description for p in doc.params}, local_names
            ),
            timeout=timeout,
            retries=retries,
            exclusive=exclusive,
            pure=pure,
        )

    return make if function is None else make(function)


def tools_by_name(tools: Iterable[Tool | Function]) -> dict[str, Tool]:
    """The tools of one loop; plain functions become tools. Raises `UsageError` on a duplicate name."""
    found: dict[str, Tool] = {}
    for item in tools:
        made = item if isinstance(item, Tool) else tool(item)
        if made.name in found:
            raise UsageError(f"two tools are named {made.name!r}: rename one with @tool(name=...)")
        found[made.name] = made
    return found


def failure_type(error: BaseException) -> str:
    """A bounded name for a tool's exception: `http_429` when it carries an HTTP status, else its class."""
    status = status_of(error)
    return type(error).__name__ if status is None else f"http_{status}"


def failure_text(error: BaseException) -> str:
    """The text of a tool's exception as the model sees it: class and message, or the class alone."""
    name = type(error).__name__
    try:
        return result_text(f"{name}: {error}")
    except Exception:  # the exception's own __str__ may fail as well
        return name


def result_text(value: Any) -> str:
    """A tool's result as the model sees it: a `str` as it is, anything else as JSON.

    Raises TypeError for what is still to be awaited or iterated, and is no result yet.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:  # a lone surrogate: no SDK could send the conversation any more
            return value.encode(errors="replace").decode()
        return value
    try:
        return to_json(value, fallback=_other_text).decode()
    except PydanticSerializationError as error:
        raise TypeError(str(error).rpartition("TypeError: ")[2]) from error


def _other_text(value: Any) -> str:
    if is_pending(value):
        raise TypeError(f"a {type(value).__name__} is no result: await it, or iterate over it, in the tool")
    if isinstance(value, contextlib._GeneratorContextManager | contextlib._AsyncGeneratorContextManager):
        raise TypeError(f"a {type(value).__name__} is no result: enter it in the tool")
    return str(value)


_VALUES = frozenset((str, bytes, int, float, bool, type(None), list, tuple, dict, set, frozenset))


def is_pending(value: Any) -> bool:
    """Whether a tool that returns `value` has more to do: it is to be awaited or iterated over.

    An iterator that is no generator is a value, such as an open file; so is a model, whatever else it can do.
    """
    kind = type(value)
    if kind in _VALUES:
        return False
    return (
        hasattr(kind, "__await__")
        or (hasattr(kind, "__aiter__") and not hasattr(kind, "__pydantic_serializer__"))
        or issubclass(kind, GeneratorType | concurrent.futures.Future)
    )


def drained(function: Callable[[], Any]) -> Any:
    """Call a sync tool, in its own thread, and return its result; for a generator, a list of its items."""
    value = function()
    if isinstance(value, GeneratorType) and not inspect.isawaitable(value):
        return list(value)
    return value


async def finished(value: Any) -> Any:
    """Await a tool's result until nothing is left to await; for a generator, return a list of its items."""
    if type(value) is CoroutineType:  # of nearly every tool
        value = await value
    while is_pending(value):
        if hasattr(type(value), "__aiter__") and not inspect.isawaitable(value):
            return [item async for item in value]
        if isinstance(value, concurrent.futures.Future):
            value = await asyncio.wrap_future(value)
        elif inspect.isawaitable(value):
            value = await value
        else:
            return list(value)
    return value


def is_async(function: Any) -> bool:
    """Whether calling it returns a coroutine: an async function, or an object whose `__call__` is one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 (asks for the method of a callable object)
    )


def _arguments_model(
    function: Function, name: str, descriptions: Mapping[str, str | None], local_names: Mapping[str, Any]
) -> type[BaseModel]:
    try:
        signature = inspect.signature(function)
        target = function if inspect.isroutine(function) else type(function).__call__
        hints = typing.get_type_hints(target, localns=dict(local_names), include_extras=True)
    except (NameError, TypeError, ValueError) as error:
        raise ToolDefinitionError(f"tool {name}: its type hints cannot be read: {error}") from error
    fields: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ToolDefinitionError(
                f"tool {name}: parameter {parameter.name!r} cannot be passed by name; "
                "a model passes every argument by name"
            )
        hint = hints.get(parameter.name, Any)
        if descriptions.get(parameter.name):
            hint = Annotated[hint, Field(description=descriptions[parameter.name])]
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hint, default)
    try:
        model: type[BaseModel] = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        model.model_json_schema()
    except (PydanticUserError, NameError, TypeError, ValueError) as error:
        raise ToolDefinitionError(f"tool {name}: no JSON Schema for its parameters: {error}") from error
    return model


def _without_titles(schema: Any, *, names: bool = False) -> Any:
    """The schema without the titles that pydantic generates. `names`: its keys are names of properties."""
    if isinstance(schema, dict):
        return {
            key: _without_titles(value, names=key in ("properties", "$defs"))
            for key, value in schema.items()
            if names or key != "title"
        }
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    return schema
