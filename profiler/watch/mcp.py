"""Watches the calls of the official SDK's MCP sessions, and of what is built on them.

Every client ends in `ClientSession.call_tool`, which is patched at its class while anybody watches: the
objects that frameworks make and replace as they go need not be known. Around it clients of a higher level
are patched, which may send one call several times, or let it wait for others; below it what tells when the
request left and its answer came. Modules that are not imported are left alone, and patched when they are.
"""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from profiler.errors import UsageError
from profiler.process.lifetime import in_forked_child
from profiler.watch import mcp_transports as transports
from profiler.watch.auto import Found
from profiler.watch.identity import ById
from profiler.watch.imports import AfterImport
from profiler.watch.mcp_calls import watched_call
from profiler.watch.mcp_owners import (
    AS_IT_IS,
    EVERYTHING,
    Options,
    connects,
    sessions_of,
    watching,
)
from profiler.watch.remote import bounded_name
from profiler.watch.remote_runs import RemoteRun

if TYPE_CHECKING:
    from profiler.watch.profiler import Profiler


class SessionWatch:
    """The sessions that one profiler watches: all of them (`everything`), or those of some owners.

    An owner is a session, or a client, a server, a toolset of a framework that has one, perhaps not yet.
    """

    def __init__(self, profiler: Profiler) -> None:
        self.profiler = profiler
        self.everything: Options | None = None
        self.automatic = False
        self.found: list[Found] = []
        self._servers: set[str] = set()
        self.owners: ById[Options] = ById()
        self._resolved: ById[Options] = ById()

    def watch(self, owner: Any, name: str, meta: bool) -> None:
        options = Options(bounded_name(name), meta)
        if owner is EVERYTHING:
            self.everything = options
        else:
            self.owners.put(owner, options)
        _install(self)

    def forget(self, owner: Any) -> None:
        if owner is EVERYTHING:
            self.everything = None
        else:
            self.owners.drop(owner)
            self._resolved = ById()
        self._perhaps_uninstall()

    def start(self) -> None:
        """Watch all sessions, as a part of `auto`."""
        self.automatic = True
        _install(self)

    def stop(self) -> None:
        self.automatic = False
        self._perhaps_uninstall()

    def _perhaps_uninstall(self) -> None:
        if not self.automatic and self.everything is None and not [*self.owners]:
            _uninstall(self)

    def saw(self, server: str) -> None:
        """A session with this server has made a call, as part of `auto`."""
        if server not in self._servers:
            self._servers.add(server)
            self.found.append(Found("session", f"MCP session with {server or 'a server without a name'}"))

    def options_of(self, owner: Any, around: RemoteRun | None) -> Options | None:
        """How calls of this owner are watched, None if they are not."""
        found = self.owners.get(owner) or self._resolved.get(owner)
        if found is None and around is not None:
            found = self.owners.get(around.owner)
        if found is None and self.owners:
            found = self._of_others(owner)
            if found is not None:
                self._resolved.put(owner, found)
        if found is None and (self.automatic or self.everything is not None):
            found = self.everything or AS_IT_IS
        return found

    def _of_others(self, owner: Any) -> Options | None:
        """Those of an owner that has the same session."""
        mine = sessions_of(owner) or [owner]
        for other in self.owners:
            theirs = sessions_of(other)
            if any(one is session for one in theirs for session in mine) or connects(other, owner):
                return self.owners.get(other)
        return None


# Putting patches in place, and taking them away.

Make = Callable[[Any], Any]

_PATCHES: Mapping[str, tuple[tuple[str, str, Make], ...]] = {
    "mcp.client.session": (
        ("ClientSession", "call_tool", lambda original: watched_call(original, True)),
        ("ClientSession", "initialize", transports.session_initialize),
    ),
    "mcp.client.client": (("Client", "call_tool", lambda original: watched_call(original, False)),),
    "mcp.client.session_group": (
        ("ClientSessionGroup", "call_tool", lambda original: watched_call(original, False)),
    ),
    "mcp.shared.jsonrpc_dispatcher": (
        ("JSONRPCDispatcher", "_write", transports.dispatcher_write),
        ("JSONRPCDispatcher", "_resolve_pending", transports.dispatcher_resolve),
    ),
    "mcp.shared.direct_dispatcher": (("DirectDispatcher", "send_raw_request", transports.direct_request),),
    "mcp.shared.session": (("BaseSession", "_handle_response", transports.session_response),),
    "mcp.client.streamable_http": (
        ("StreamableHTTPTransport", "_handle_post_request", transports.transport_post),
        ("StreamableHTTPTransport", "_handle_sse_event", transports.transport_event),
    ),
    "fastmcp.client.client": (("Client", "call_tool", lambda original: watched_call(original, False)),),
    "fastmcp.client.mixins.tools": (
        ("ClientToolsMixin", "call_tool", lambda original: watched_call(original, False)),
    ),
    "agents.mcp.server": (
        ("_MCPServerWithClientSession", "call_tool", lambda original: watched_call(original, False, True)),
        ("MCPServerStreamableHttp", "call_tool", lambda original: watched_call(original, False, True)),
    ),
    "langchain_mcp_adapters.tools": (("", "create_session", transports.create_session),),
    "langchain_mcp_adapters.client": (("", "create_session", transports.create_session),),
}
"""By module: the class (none: the module itself), the function, and what makes the one in its place."""

_patched: dict[str, list[tuple[Any, str, Any]]] = {}
_lock = threading.RLock()


def _renew() -> None:
    """In a forked child: another thread of its parent may have had the lock."""
    global _lock
    _lock = threading.RLock()


in_forked_child(_renew)


def _install(watch: SessionWatch) -> None:
    with _lock:
        if watch not in watching:
            watching.append(watch)
        for name in _PATCHES:
            module = sys.modules.get(name)
            if module is not None and name not in _patched:
                _patch(name, module)
        _finder.install()


def _uninstall(watch: SessionWatch) -> None:
    with _lock:
        if watch in watching:
            watching.remove(watch)
        if watching:
            return
        _finder.uninstall()
        while _patched:
            for owner, name, original in _patched.popitem()[1]:
                setattr(owner, name, original)
        transports.unpatch()


def _patch(name: str, module: ModuleType) -> None:
    """Another version may lack some of it."""
    done = _patched.setdefault(name, [])
    for kind, method, make in _PATCHES[name]:
        owner = getattr(module, kind, None) if kind else module
        original = None if owner is None else vars(owner).get(method)
        if isinstance(original, types.FunctionType):
            setattr(owner, method, make(original))
            done.append((owner, method, original))


def _imported(module: ModuleType) -> None:
    with _lock:
        if watching and module.__name__ not in _patched:
            _patch(module.__name__, module)


_finder = AfterImport(_PATCHES, _imported)


def refuse(name: str, meta: bool) -> None:
    """Raise `UsageError` for options of sessions that were given with something else."""
    if name or not meta:
        raise UsageError("name= and meta= of instrument() are for sessions of MCP")
