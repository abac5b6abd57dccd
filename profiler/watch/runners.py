"""The tools that the SDKs' own runners run, watched without the user's naming them.

OpenAI's `ResponsesToolRunner` and `AsyncResponsesToolRunner`, Anthropic's `tool_runner` with its tools and
toolsets. Where a runner calls a tool, its class is patched while anybody watches, once per process: the tool
that the user passed stays as it is, and what is called in its place is watched. Runners that were made before
count, too. Modules that are not imported are left alone: `install` may be called again to look for them.
"""

from __future__ import annotations

import copy
import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

from profiler.loop.boundary import Boundary
from profiler.process.lifetime import in_forked_child

Watch = Callable[[Any, str], Any]
"""Returns the function, watched as the tool of this name."""


class RunnerTools:
    """Watches the tools of all runners of the process, from `install` to `uninstall`.

    Where `watch` fails, the tool runs unwatched, and `boundary` knows.
    """

    def __init__(self, watch: Watch, boundary: Boundary) -> None:
        self._watch = watch
        self._boundary = boundary

    def install(self) -> None:
        """May be called again, and costs next to nothing then."""
        if self in _installed and not _unpatched():
            return
        with _lock:
            if self not in _installed:
                _installed.append(self)
            for module in _unpatched():
                _patched[module] = _patch_all(module, _PATCHES[module])
                if module == _MESSAGES and not _patched[module]:
                    _patched[module] = _patch_all(_FUNCTIONS, _OLDER)

    def uninstall(self) -> None:
        with _lock:
            if self in _installed:
                _installed.remove(self)
            if not _installed:
                while _patched:
                    for kind, method, original in _patched.popitem()[1]:
                        setattr(kind, method, original)

    def watched(self, function: Any, name: str) -> Any:
        """The function itself where it cannot be watched."""
        found = self._boundary.call("tool", self._watch, function, name)
        return function if found is None else found


_installed: list[RunnerTools] = []
_patched: dict[str, list[tuple[type, str, Any]]] = {}
_lock = threading.Lock()


def _renew() -> None:
    """In a forked child: another thread of its parent may have had the lock."""
    global _lock
    _lock = threading.Lock()


in_forked_child(_renew)


def _unpatched() -> list[str]:
    """The modules of runners that have been imported since."""
    return [module for module in _PATCHES if module in sys.modules and module not in _patched]


Patches = tuple[tuple[str, str, Callable[[Any], Any]], ...]
"""(class, method, what makes the one in its place) of a module."""


def _patch_all(module: str, patches: Patches) -> list[tuple[type, str, Any]]:
    """Those that the module has; another version may lack some."""
    done: list[tuple[type, str, Any]] = []
    for name, method, make in patches:
        kind = getattr(sys.modules.get(module), name, None)
        original = vars(kind).get(method) if isinstance(kind, type) else None
        if isinstance(kind, type) and original is not None:
            setattr(kind, method, functools.wraps(original)(make(original)))
            done.append((kind, method, original))
    return done


def _watched(function: Any, name: str) -> Any:
    for one in [*_installed]:
        function = one.watched(function, name)
    return function


def _guarded(make: Callable[..., Any], value: Any, *args: Any) -> Any:
    """What is made in place of the value; the value itself where that fails."""
    for one in [*_installed]:
        made = one._boundary.call("tool", make, value, *args)
        return value if made is None else made
    return value


class _Other:
    """An object, but for some attributes."""

    def __init__(self, value: Any, **attributes: Any) -> None:
        self.__dict__.update(attributes)
        self._value = value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._value, name)


def _openai(original: Any) -> Any:
    """`_execute_function(self, run, item)`, which calls `self._functions[item.name].execute`."""

    def execute_function(self: Any, run: Any, item: Any) -> Any:
        return original(_guarded(_with_function, self, item.name), run, item)

    return execute_function


def _with_function(runner: Any, name: str) -> Any:
    if name not in runner._functions:  # the runner says so itself
        return runner
    registered = copy.copy(runner._functions[name])
    object.__setattr__(registered, "execute", _watched(registered.execute, name))  # it is frozen
    return _Other(runner, _functions={**runner._functions, name: registered})


def _anthropic_tool(original: Any) -> Any:
    """`_run_tool(self, tool, tool_use)`, which calls `tool.call` with the input."""

    def run_tool(self: Any, tool: Any, tool_use: Any) -> Any:
        return original(self, _guarded(_with_call, tool, tool_use), tool_use)

    return run_tool


def _anthropic_function(original: Any) -> Any:
    """`call(self, input)` of a tool, where the runner of an older version has no method that runs one."""

    def call(self: Any, input: Any) -> Any:
        function = functools.partial(original, self)
        return _by_input(function, 0, self.name, getattr(self, "func", None))(input)

    return call


def _with_call(tool: Any, tool_use: Any) -> Any:
    return _Other(tool, call=_by_input(tool.call, 0, tool_use.name, getattr(tool, "func", None)))


def _anthropic_toolset(original: Any) -> Any:
    """`tool_result(self, tool_use)`, which calls `self.call` with a context, the name and the input."""

    def tool_result(self: Any, tool_use: Any) -> Any:
        return original(_guarded(_with_member, self, tool_use), tool_use)

    return tool_result


def _with_member(toolset: Any, tool_use: Any) -> Any:
    return _Other(toolset, call=_by_input(toolset.call, 2, tool_use.name, None))


def _by_input(call: Any, at: int, name: str, function: Any) -> Any:
    """In place of `call`, whose parameter `at` is the tool's input: the same, watched with that as arguments.

    `function` is what it runs in the end, if that is known.
    """

    def called(*args: Any) -> Any:
        def run(**_: Any) -> Any:
            return call(*args)

        if callable(function):
            run.__wrapped__ = function  # type: ignore[attr-defined]
        fields = args[at] if len(args) > at else None
        if isinstance(fields, dict) and all(type(key) is str for key in fields):
            return _watched(run, name)(**fields)
        return _watched(call, name)(*args)

    return called


_FUNCTIONS = "anthropic.lib.tools._beta_functions"

_RESPONSES = "openai.lib.responses_tool_runner"
_MESSAGES = "anthropic.lib.tools._beta_runner"
_TOOLSETS = "anthropic.lib.tools._toolsets._runnable"

_OLDER: Patches = (
    ("BetaFunctionTool", "call", _anthropic_function),
    ("BetaAsyncFunctionTool", "call", _anthropic_function),
)

_PATCHES: dict[str, Patches] = {
    _RESPONSES: (
        ("ResponsesToolRunner", "_execute_function", _openai),
        ("AsyncResponsesToolRunner", "_execute_function", _openai),
    ),
    _MESSAGES: (
        ("BaseSyncToolRunner", "_run_tool", _anthropic_tool),
        ("BaseAsyncToolRunner", "_run_tool", _anthropic_tool),
    ),
    _TOOLSETS: (
        ("BetaRunnableToolset", "tool_result", _anthropic_toolset),
        ("BetaAsyncRunnableToolset", "tool_result", _anthropic_toolset),
    ),
}
