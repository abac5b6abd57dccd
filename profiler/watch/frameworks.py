"""The tools that a registry or an agent of a framework holds, watched.

Frameworks are told by the names of their classes and modules, and never imported. Their objects are changed
in place: an agent or a graph that was made of them has them already.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Mapping, MutableMapping
from collections.abc import Set as AbstractSet
from typing import Any

from profiler.errors import UsageError
from profiler.loop.tools import Tool

Watch = Callable[[Any, str | None], Any]
"""Returns the function watched as the tool of this name, or of its own name."""

_NOT_CALLED = (type, str, bytes)


class _Nothing(Exception):
    """There is no function in it that could be watched."""


def watched_tools(registry: Any, watch: Watch) -> Any:
    """The registry with its tools watched; see `Profiler.tools`. Raises `UsageError`."""
    try:
        return _watched(registry, None, watch)
    except _Nothing:
        raise UsageError(
            f"no tool in {describe(registry)}: expected a dict of names and functions, a list of functions "
            "or Tools, or an agent, toolset, tool or graph of pydantic-ai, openai-agents or LangChain"
        ) from None


def holds_tools(value: Any) -> bool:
    """Whether it is a tool, or holds tools, of a framework that is known here."""
    return _kind_of(value) is not None


def describe(value: Any) -> str:
    """What it is, for a message: never what it holds."""
    if isinstance(value, type | types.FunctionType):
        return value.__name__
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _watched(value: Any, name: str | None, watch: Watch) -> Any:
    """A registry or a tool of one, watched; under this name, if any. Raises `_Nothing`, `UsageError`."""
    if isinstance(value, Tool):
        return watch(value, name)
    kind = _kind_of(value)
    if kind is not None:
        try:
            found = kind(value, watch)
        except (AttributeError, TypeError, ValueError) as error:  # a version of it that looks otherwise
            raise UsageError(
                f"{describe(value)} of {_package_of(type(value))} cannot be watched ({describe(error)}): "
                "watch its functions with Profiler.tool before they are given to it"
            ) from error
        if not found:
            raise _Nothing
        return value
    if isinstance(value, Mapping):
        return _mapping(value, watch) if name is None else _entry(value, name, watch)
    if isinstance(value, list | tuple | AbstractSet):
        return _collection(value, name, watch)
    if isinstance(value, classmethod | staticmethod) or (callable(value) and not isinstance(value, type)):
        return watch(value, name)
    if isinstance(value, type) and name is not None:  # {"Search": Search}: called, it makes the result
        return watch(value, name)
    raise _Nothing


def _entry(value: Mapping[Any, Any], name: str | None, watch: Watch) -> Any:
    """What a registry holds of one tool: its function, beside its schema and the like."""
    key, function = _only_function(value.items())
    if name is None and isinstance(value.get("name"), str):
        name = value["name"]
    return _with_items(value, {key: watch(function, name)})


def _mapping(value: Mapping[Any, Any], watch: Watch) -> Any:
    for key in value:
        if not isinstance(key, str):
            raise UsageError(f"the keys of a registry are the tools' names, not {describe(key)}")
    return _with_items(value, {key: _named(key, one, watch) for key, one in value.items()})


def _named(name: str, value: Any, watch: Watch) -> Any:
    try:
        return _watched(value, str.__str__(name), watch)
    except _Nothing:
        raise UsageError(f"the tool {name!r} of the registry is {describe(value)}, not a function") from None


def _with_items(value: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    if type(value) is dict or not isinstance(value, MutableMapping):
        return {**value, **items}
    made = copy.copy(value)
    for key, one in items.items():
        made[key] = one
    return made


def _collection(value: Any, name: str | None, watch: Watch) -> Any:
    if name is not None:  # of one tool, as above
        index, function = _only_function(enumerate(value))
        made = [watch(function, name) if at == index else one for at, one in enumerate(value)]
        return _like(value, made)
    made, found = [], False
    for one in value:
        try:
            entry = _entry if isinstance(one, Mapping) else _watched
            made.append(entry(one, None, watch))
            found = True
        except _Nothing:
            # Tools of the model's server, and schemas, are passed beside functions.
            if not isinstance(one, Mapping) and _package_of(type(one)) != "agents":
                raise UsageError(f"a tool of the {type(value).__name__} is {describe(one)}") from None
            made.append(one)
    if not found:
        raise _Nothing
    return _like(value, made)


def _like(value: Any, items: list[Any]) -> Any:
    kind = type(value)
    if hasattr(kind, "_make"):  # a named tuple
        return kind._make(items)
    try:
        return kind(items)
    except TypeError:  # a class with a signature of its own
        return items


def _only_function(items: Any) -> tuple[Any, Any]:
    found = [
        (key, one)
        for key, one in items
        if isinstance(one, Tool) or (callable(one) and not isinstance(one, _NOT_CALLED))
    ]
    if len(found) != 1:
        raise _Nothing
    return found[0]


# What frameworks have. Each function watches an object in place, and tells whether it found anything.


def _pydantic_agent(agent: Any, watch: Watch) -> bool:
    return sum(_pydantic_toolset(one, watch) for one in agent.toolsets) > 0


def _pydantic_toolset(toolset: Any, watch: Watch, names: Callable[[str], str] = str) -> bool:
    """`names`: the name under which the model knows a tool of the toolset."""
    found = False
    tools = getattr(toolset, "tools", None)
    if isinstance(tools, dict):
        for name, one in tools.items():
            found |= _pydantic_tool(one, watch, names(name))
    for inner in getattr(toolset, "toolsets", None) or ():
        found |= _pydantic_toolset(inner, watch, names)
    wrapped = getattr(toolset, "wrapped", None)
    if wrapped is not None:
        found |= _pydantic_toolset(wrapped, watch, functools.partial(_renamed, toolset, names))
    return found


def _renamed(toolset: Any, names: Callable[[str], str], name: str) -> str:
    prefix, new_names = getattr(toolset, "prefix", None), getattr(toolset, "name_map", None)
    if isinstance(prefix, str):
        return names(f"{prefix}_{name}")
    if isinstance(new_names, dict):
        name = next((new for new, old in new_names.items() if old == name), name)
    return names(name)


def _pydantic_tool(one: Any, watch: Watch, name: str | None = None) -> bool:
    schema: Any = getattr(one, "function_schema", None)
    function = getattr(schema, "function", None)
    if not callable(function):
        return False
    made = watch(function, name or one.name)
    schema.function = made  # which it calls
    one.function = made
    return True


def _openai_agent(agent: Any, watch: Watch, seen: tuple[Any, ...] = ()) -> bool:
    found = False
    for one in getattr(agent, "tools", None) or ():
        if (kind := _kind_of(one)) is not None:
            found |= kind(one, watch)
    for other in getattr(agent, "handoffs", None) or ():
        if _kind_of(other) is _openai_agent and not any(other is one for one in (agent, *seen)):
            found |= _openai_agent(other, watch, (*seen, agent))
    return found


def _openai_function_tool(one: Any, watch: Watch) -> bool:
    """The function itself, as `function_tool` keeps it; else what runs it.

    There its failures are still exceptions, and a sync one runs in its thread.
    """
    invoker = one.on_invoke_tool
    implementation = getattr(invoker, "_invoke_tool_impl", None)
    names = getattr(getattr(implementation, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(implementation, "__closure__", None) or (), strict=False):
        if name == "the_func" and callable(cell.cell_contents):
            cell.cell_contents = watch(cell.cell_contents, one.name)
            return True
    if callable(implementation):
        invoker._invoke_tool_impl = watch(implementation, one.name)
    elif callable(invoker):
        one.on_invoke_tool = watch(invoker, one.name)
    else:
        return False
    return True


def _langchain_tool(one: Any, watch: Watch) -> bool:
    found = False
    for name in ("func", "coroutine"):
        function = getattr(one, name, None)
        if callable(function):
            setattr(one, name, watch(function, one.name))
            found = True
    if not found:  # a class of its own
        for name in ("_run", "_arun"):
            own = getattr(getattr(type(one), name, None), "__module__", "")
            if not own.startswith("langchain_core."):
                # Not `setattr`: what is no field of the model it refuses.
                object.__setattr__(one, name, watch(getattr(one, name), one.name))
                found = True
    return found


def _langgraph_node(node: Any, watch: Watch) -> bool:
    return sum(_langchain_tool(one, watch) for one in node.tools_by_name.values()) > 0


def _langgraph_graph(graph: Any, watch: Watch) -> bool:
    """A compiled graph: the tools of its nodes, and of the graphs that are nodes of it."""
    found = False
    for node in graph.nodes.values():
        if (kind := _kind_of(getattr(node, "bound", None))) is not None:
            found |= kind(node.bound, watch)
    return found


def _anthropic_tool(one: Any, watch: Watch) -> bool:
    one.call = watch(one.call, one.name)
    return True


def _openai_registered(one: Any, watch: Watch) -> bool:
    object.__setattr__(one, "execute", watch(one.execute, one.tool["name"]))  # it is frozen
    return True


_KINDS: Mapping[tuple[str, str], Callable[[Any, Watch], bool]] = {
    ("pydantic_ai", "AbstractAgent"): _pydantic_agent,
    ("pydantic_ai", "AbstractToolset"): _pydantic_toolset,
    ("pydantic_ai", "Tool"): _pydantic_tool,
    ("agents", "AgentBase"): _openai_agent,
    ("agents", "FunctionTool"): _openai_function_tool,
    ("langchain_core", "BaseTool"): _langchain_tool,
    ("langgraph", "ToolNode"): _langgraph_node,
    ("langgraph", "Pregel"): _langgraph_graph,
    ("anthropic", "BaseFunctionTool"): _anthropic_tool,
    ("anthropic", "BetaBuiltinFunctionTool"): _anthropic_tool,
    ("anthropic", "BetaAsyncBuiltinFunctionTool"): _anthropic_tool,
    ("openai", "RegisteredFunction"): _openai_registered,
    ("openai", "AsyncRegisteredFunction"): _openai_registered,
}
"""By the package and the name of a class, which may be a base of the object's."""


def _kind_of(value: Any) -> Callable[[Any, Watch], bool] | None:
    for kind in type(value).__mro__:
        found = _KINDS.get((_package_of(kind), kind.__name__))
        if found is not None:
            return found
    return None


def _package_of(kind: type) -> str:
    """The package in one of whose modules a class is; not that of a module `agents` of the application."""
    module = kind.__module__
    package, dot, _ = module.partition(".") if isinstance(module, str) else ("", "", "")
    return package if dot else ""
