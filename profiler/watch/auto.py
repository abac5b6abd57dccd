"""Watches what an application uses without being told of each: SDK clients, and the functions of tools.

The base class of the SDKs' clients is patched while any profiler does this, once per process, so clients that
were made before are found at their next request, too. An SDK that is not imported yet is patched when it is.
"""

from __future__ import annotations

import inspect
import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from profiler.errors import UsageError
from profiler.watch.discovery import Choose, Runs, exchange, functions_near, functions_of, place_of
from profiler.watch.identity import ById
from profiler.watch.imports import AfterImport
from profiler.watch.places import place_of_caller
from profiler.watch.runners import RunnerTools

if TYPE_CHECKING:
    from profiler.watch.profiler import Profiler

_log = logging.getLogger(__name__)

_MODULES = ("openai._base_client", "anthropic._base_client")
_CLIENTS = ("SyncAPIClient", "AsyncAPIClient")

MOST_IN_VAIN = 3
"""Looks for tools in a row that find nothing new: then a new client is no reason for another one."""

OnClient = Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class Found:
    """Something of the application that is watched without its having said so, or that cannot be.

    `place` is `file:line`: where a client was made (or first used, if it was made before), where a function
    begins; empty for sessions of MCP. `problem` says why it is not watched.
    """

    kind: Literal["client", "tool", "session"]
    name: str
    place: str = ""
    problem: str = ""

    def __str__(self) -> str:
        where = f" ({self.place})" if self.place else ""
        return f"{self.name}{where}" + (f": not watched: {self.problem}" if self.problem else "")


class Automatic:
    """What one profiler watches of itself, from `start` to `stop`.

    `on_client` is called with each client before its first request is sent; what it raises reaches the
    application. With `find_tools` functions are looked for at the first request that offers their tools.
    """

    def __init__(self, profiler: Profiler, find_tools: bool, on_client: OnClient | None) -> None:
        self.found: list[Found] = []
        self.offered: dict[str, OfferedTool] = {}
        self._profiler = profiler
        self._runners = RunnerTools(self._tool_of_runner, profiler._boundary)
        self._find_tools = find_tools
        self._on_client = on_client
        self._taking = threading.RLock()
        self._clients: ById[bool] = ById()  # True once all has been done with it
        self._http_clients: ById[bool] = ById()  # several clients may use one
        self._new_clients = 0
        self._looked_for: set[str] = set()
        self._exchanged: ById[dict[str, Callable[[], object]]] = ById()  # by name, what undoes it
        self._looked_at = (0, 0, 0)
        self._missing, self._may_be_more, self._in_vain = True, True, 0
        self._made_anew: set[str] = set()  # names of tools that a function makes each time that it runs
        self._lock = threading.RLock()

    def start(self) -> None:
        self._runners.install()
        _watch(self)

    def stop(self) -> None:
        """Leave the clients and functions as they were."""
        _unwatch(self)
        self._runners.uninstall()
        for http_client in self._http_clients:
            self._profiler._restore(http_client)
        for function in self._exchanged:
            for undo in (self._exchanged.get(function) or {}).values():
                undo()

    def forked(self) -> None:
        """In a child, where no other thread is left to give back what it held."""
        self._taking, self._lock = threading.RLock(), threading.RLock()

    def made(self, client: Any) -> None:
        """A client has been made, here. Raises nothing."""
        self._profiler._boundary.call("request", lambda: _made_at.put(client, place_of_caller()))

    def sees(self, client: Any, options: Any) -> None:
        """A client is about to send a request. Raises nothing but what `on_client` does."""
        boundary = self._profiler._boundary
        boundary.call("request", self._runners.install)  # their modules may have been imported only now
        if not self._clients.get(client):
            self._first_request(client)
        else:
            boundary.call("request", self._take_anew, client)
        if self._find_tools:
            boundary.call("request", self._look_for, options)

    def _first_request(self, client: Any) -> None:
        """Other threads wait: their requests are not to leave before the client was pointed elsewhere."""
        with self._taking:
            if self._clients.get(client) is not None:  # done meanwhile; or `on_client` sends a request itself
                return
            self._clients.put(client, False)
            self._profiler._boundary.call("request", self._take, client)
            if self._on_client is not None:
                try:
                    self._on_client(client)
                except BaseException:
                    self._clients.drop(client)  # its next request is refused, too
                    raise
            self._clients.put(client, True)

    def _take_anew(self, client: Any) -> None:
        """Watch the HTTP client that a known client was given since: frameworks close and replace theirs."""
        http_client = getattr(client, "_client", None)
        if http_client is None or self._http_clients.get(http_client) is not None:
            return
        with self._taking:
            self._take(client)

    def _note(self, found: Found) -> None:
        """Say it once: an application may make a client for each of its requests."""
        if found not in self.found:
            self.found.append(found)
            _log.info("%s %s", "watched:" if not found.problem else "client", found)

    def _take(self, client: Any) -> None:
        http_client = getattr(client, "_client", None)
        if http_client is not None and self._http_clients.get(http_client) is not None:
            return  # a copy, such as `client.with_options(timeout=5)`
        self._new_clients += 1
        name = type(client).__name__
        place = made_at(client) or place_of_caller() or ""
        try:
            self._profiler.instrument(client)
        except UsageError as error:
            if http_client is not None:
                self._http_clients.put(http_client, False)
            self._note(Found("client", name, place, str(error)))
            return
        self._http_clients.put(http_client, True)
        self._note(Found("client", name, place))

    def _tool_of_runner(self, function: Any, name: str) -> Any:
        runs = inspect.unwrap(function)
        self._note(Found("tool", name, place_of(runs) if isinstance(runs, FunctionType) else ""))
        return self._profiler.tool(function, name=name)

    def _look_for(self, options: Any) -> None:
        """Find what these tools run; once more when there may be other functions since.

        So it is when modules were imported; and with a new client, where tools are made anew by the function
        that makes it, or none was found for some name.
        """
        self.offered.update((tool.name, tool) for tool in _offered(options))
        names = self.offered.keys()
        # Not all names: at the level of a script's module each statement may add one, and looking takes long.
        functions = sum(map(callable, [*vars(sys.modules["__main__"]).values()]))
        # Modules count while a tool was not found: SDKs import parts of their own with each first reply.
        may_come = self._missing and self._in_vain < MOST_IN_VAIN
        modules = len(sys.modules) if may_come else self._looked_at[1]
        size = (functions, modules, self._new_clients if self._may_be_more else self._looked_at[2])
        if self._looked_for.issuperset(names) and size == self._looked_at:
            if self._made_anew:
                self._exchange(functions_near(self._made_anew))
            return
        began_ns = self._profiler.recorder.clock()
        with self._lock:  # other threads wait until what their tools run is watched, too
            wanted = self._looked_for | names
            if wanted == self._looked_for and size == self._looked_at:
                return
            known: dict[str, list[FunctionType]] = {}
            if self._made_anew and (wanted, *size[:2]) == (self._looked_for, *self._looked_at[:2]):
                known = functions_near(wanted)
            if not known.keys() >= self._made_anew or not known:
                known = functions_of(wanted)
            before = len(self._looked_for), len([*self._exchanged])
            self._exchange(known)
            self._made_anew |= {
                name
                for name, several in known.items()
                if any("<locals>" in one.__qualname__ for one in several)
            }
            nothing_new = before == (len(wanted), len([*self._exchanged]))
            self._in_vain = self._in_vain + 1 if nothing_new else 0
            # Many agents that begin at once are found by the first look of them all.
            enough = MOST_IN_VAIN * (100 if self._made_anew else 1)
            self._missing = bool(wanted - known.keys())
            self._may_be_more = self._in_vain < enough and (bool(self._made_anew) or self._missing)
            self._looked_for, self._looked_at = wanted, size  # not before: others would not wait
        self._profiler._took(self._profiler.recorder.clock() - began_ns)

    def _exchange(self, found: Mapping[str, Sequence[FunctionType]]) -> None:
        with self._lock:
            by_function: dict[int, tuple[FunctionType, list[str]]] = {}
            for name, candidates in found.items():
                for function in candidates:
                    if name not in (self._exchanged.get(function) or ()):
                        by_function.setdefault(id(function), (function, []))[1].append(name)
            for function, its_names in by_function.values():
                undo = exchange(function, self._chooser(its_names))
                undone_by = (self._exchanged.get(function) or {}) | dict.fromkeys(its_names, undo)
                self._exchanged.put(function, undone_by)
                for name in its_names:
                    self._note(Found("tool", name, place_of(function)))

    def _chooser(self, names: Sequence[str]) -> Callable[[FunctionType], Choose]:
        """What decides which calls of a function are runs of the tools of these names.

        Only those that the model has asked for: the application may call its functions for itself, too.
        """
        profiler = self._profiler

        def made(function: FunctionType) -> Choose:
            watched = {name: profiler.tool(function, name=name) for name in names}

            def choose(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Runs | None:
                name = profiler._boundary.call("tool", profiler._expected, names)
                return None if name is None else watched[name]

            return choose

        return made


class OfferedTool(NamedTuple):
    """A tool as a request offers it to the model: `parameters` is a JSON Schema."""

    name: str
    description: str
    parameters: dict[str, Any]


def _offered(options: Any) -> list[OfferedTool]:
    """The tools that a request of an SDK offers the model, those left out that its server runs itself."""
    data = getattr(options, "json_data", None)
    tools = data.get("tools") if isinstance(data, dict) else None
    found = []
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, dict):
            function = tool.get("function")
            given = function if isinstance(function, dict) else tool
            name, said = given.get("name"), given.get("description")
            schema = given.get("parameters", given.get("input_schema"))
            if isinstance(name, str):
                found.append(
                    OfferedTool(
                        name,
                        said if isinstance(said, str) else "",
                        schema if isinstance(schema, dict) else {},
                    )
                )
    return found


# The patch of the SDKs' base clients, shared by all profilers of the process.

_watching: list[Automatic] = []
_patched: list[tuple[type, str, Any]] = []
_patch_lock = threading.RLock()
_made_at: ById[str | None] = ById()


def finder() -> Profiler | None:
    """The profiler that looks for tools, the last one if there are several."""
    return next((one._profiler for one in reversed(_watching) if one._find_tools), None)


def _watch(automatic: Automatic) -> None:
    with _patch_lock:
        if not _watching:
            for name in _MODULES:
                module = sys.modules.get(name)
                if module is not None:
                    _patch(module)
            _finder.install()
        if automatic not in _watching:
            _watching.append(automatic)


def _unwatch(automatic: Automatic) -> None:
    with _patch_lock:
        if automatic in _watching:
            _watching.remove(automatic)
        if not _watching:
            _finder.uninstall()
            while _patched:
                owner, name, original = _patched.pop()
                setattr(owner, name, original)


def _patch(module: ModuleType) -> None:
    for name in _CLIENTS:
        client = getattr(module, name, None)
        if isinstance(client, type):
            _replace(client, "request", _seen_request)
            _replace(client, "__init__", _seen_init)


def _replace(owner: type, name: str, make: Callable[[Any], Any]) -> None:
    original = vars(owner).get(name)
    if original is not None and not any(one[:2] == (owner, name) for one in _patched):
        _patched.append((owner, name, original))
        setattr(owner, name, make(original))


def _seen_request(original: Any) -> Any:
    @wraps(original)
    def request(self: Any, *args: Any, **kwargs: Any) -> Any:
        options = kwargs.get("options", args[1] if len(args) > 1 else None)
        for automatic in [*_watching]:
            automatic.sees(self, options)
        return original(self, *args, **kwargs)

    return request


def made_at(client: Any) -> str | None:
    """`file:line` where a client was made while some profiler watched, None where that is not known."""
    return _made_at.get(client)


def _seen_init(original: Any) -> Any:
    @wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        for automatic in _watching[:1]:
            automatic.made(self)

    return init


def _imported(module: ModuleType) -> None:
    with _patch_lock:
        if _watching:
            _patch(module)


_finder = AfterImport(_MODULES, _imported)
"""Patches an SDK's base clients when their module has been imported."""
