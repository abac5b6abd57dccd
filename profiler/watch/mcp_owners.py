"""What of an application has sessions of MCP, by whom they are watched, and what is known of them.

Everything is told by names: nothing of MCP's is imported here.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from profiler.loop.boundary import Boundary, Part
from profiler.watch.identity import ById
from profiler.watch.remote import SessionState, bounded_name

if TYPE_CHECKING:
    from profiler.watch.mcp import SessionWatch

EVERYTHING = "mcp"
"""Stands for all sessions of the process in `Profiler.instrument`."""


class Options(NamedTuple):
    """How a session is watched: the `name` that the user gave its server, whether keys go into `_meta`."""

    name: str = ""
    meta: bool = True


AS_IT_IS = Options()


_OWNERS = frozenset(
    (
        ("mcp", "ClientSession"),
        ("mcp", "Client"),
        ("mcp", "ClientSessionGroup"),
        ("fastmcp", "Client"),
        ("agents", "MCPServer"),
        ("pydantic_ai", "MCPToolset"),
        ("pydantic_ai", "MCPServer"),
        ("langchain_mcp_adapters", "MultiServerMCPClient"),
    )
)
"""By the package and the name of a class, which may be a base of the object's."""

_METHODS: Mapping[str, str] = {
    "call_tool": "name",
    "call_tool_mcp": "name",
    "direct_call_tool": "name",
}


def watchable(value: Any) -> Any:
    """What `SessionWatch` watches for this: an owner, or all there is. None: nothing to do with MCP."""
    if type(value) is str:
        return EVERYTHING if value == EVERYTHING else None
    return value if is_owner(value) else None


def is_owner(value: Any) -> bool:
    """Whether it is, has, or will have a session of MCP's SDK."""
    for kind in type(value).__mro__:
        module = kind.__module__
        if type(module) is str and (module.partition(".")[0], kind.__name__) in _OWNERS:
            return True
    return False


def tool_parameter(function: Any) -> str | None:
    """The parameter of a method of an owner's that says which tool it runs; None for any other function."""
    if type(function) is not types.MethodType or function.__name__ not in _METHODS:
        return None
    if not is_owner(function.__self__):
        return None
    parameters = inspect.signature(function).parameters
    return next((one for one in ("name", "tool_name") if one in parameters), None)


def sessions_of(owner: Any, depth: int = 4) -> list[Any]:
    """The sessions of an owner now; it may have none, and others later."""
    if _is_session(owner):
        return [owner]
    found: list[Any] = []
    if depth:
        for name in ("session", "_session", "client", "_client", "sessions"):
            try:
                inner = getattr(owner, name, None)
            except Exception:  # clients raise before they are entered
                continue
            if inner is None or callable(inner) or isinstance(inner, str):
                continue
            for one in inner if isinstance(inner, list) else [inner]:
                if is_owner(one):
                    found += sessions_of(one, depth - 1)
            if found:
                break
    return found


def _is_session(value: Any) -> bool:
    return any(
        kind.__name__ == "ClientSession" and kind.__module__.startswith("mcp.")
        for kind in type(value).__mro__
    )


def told_name(owner: Any) -> str:
    """The name that the user gave a server of openai-agents; other clients make one up."""
    if not any(kind.__module__.startswith("agents.") for kind in type(owner).__mro__):
        return ""
    try:
        name = getattr(owner, "name", None)
    except Exception:
        return ""
    if type(name) is not str or name.startswith(("stdio: ", "sse: ", "streamable_http: ")):
        return ""  # the framework made it, of a command or an address
    return bounded_name(name)


def opened(owner: Any) -> tuple[str, str | None]:
    """The name and the protocol in what a framework's client keeps of the opening."""
    for attribute in ("initialize_result", "server_initialize_result"):
        try:
            result = getattr(owner, attribute, None)
        except Exception:  # not entered
            continue
        if result is not None:
            return of_opening(result)
    return "", None


def of_opening(result: Any) -> tuple[str, str | None]:
    info = getattr(result, "server_info", None) or getattr(result, "serverInfo", None)
    protocol = getattr(result, "protocol_version", None) or getattr(result, "protocolVersion", None)
    return bounded_name(getattr(info, "name", "")), None if protocol is None else str(protocol)[:40]


def connects(client: Any, session: Any) -> bool:
    """Whether a LangChain client has the connection for which a session was made."""
    state = _states.get(session)
    made_for = None if state is None else state.made_for
    return made_for is not None and name_in(client, made_for) is not None


def name_in(client: Any, connection: Mapping[str, Any]) -> str | None:
    connections = getattr(client, "connections", None)
    if not isinstance(connections, Mapping):
        return None
    for name, one in connections.items():
        if one is connection:
            return str(name)
    for name, one in connections.items():
        if isinstance(one, Mapping) and all(one.get(key) == connection.get(key) for key in _ADDRESS):
            return str(name)
    return None


_ADDRESS = ("transport", "url", "command", "args")


def name_of_connection(connection: Mapping[str, Any]) -> str:
    """The name that a LangChain client has for the server of one of its connections."""
    for watch in watching:
        for owner in watch.owners:
            name = name_in(owner, connection)
            if name is not None:
                return bounded_name(name)
    return ""


_states: ById[SessionState] = ById()


def state_of(session: Any) -> SessionState:
    state = _states.get(session)
    if state is None:
        state = SessionState()
        _states.put(session, state)
    if not state.server:
        info = getattr(session, "server_info", None)
        state.server = bounded_name(getattr(info, "name", ""))
    if state.protocol is None:
        protocol = getattr(session, "protocol_version", None)
        state.protocol = None if protocol is None else str(protocol)[:40]
    return state


def first_state(owner: Any) -> SessionState:
    """What is known of the session of an owner, which may have none now."""
    sessions = sessions_of(owner)
    return state_of(sessions[0]) if sessions else SessionState()


watching: list[SessionWatch] = []
"""Those of all profilers that watch sessions."""


def _count_failure(part: Part) -> None:
    for watch in [*watching]:
        watch.profiler._boundary.failures[part] += 1
        watch.profiler._failed(part)


boundary = Boundary(_count_failure)
"""Around what the patches do besides what they are in place of."""
