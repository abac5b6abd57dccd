"""The function that `--agent module:function` names: an agent, or a factory that makes agents.

A plain agent takes a prompt; what it returns does not matter. A factory is called once per process and
strategy, in the running event loop, and returns an agent, which takes the prompt or nothing. Which of the two
a function is, its name and its parameters say; it is never called to find out.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from types import ModuleType
from typing import Any

from profiler.errors import UsageError, did_you_mean
from profiler.load.calling import called, greenlets_for_threads, is_async, underlying
from profiler.load.context import AgentContext, OneLoop
from profiler.redaction import Redact, describe

FACTORY_NAME = "make_"
"""The beginning of a factory's name, where none of its parameters says that it is one."""

CONTEXT_NAMES = ("ctx", "context")

METHODS = ("run", "arun", "run_sync", "ainvoke", "invoke", "acall", "call", "chat", "kickoff", "query")
"""Names under which objects that cannot be called are run; an error suggests those that one has."""

_CONTEXT = re.compile(r"\bAgentContext\b")


@dataclass(frozen=True, slots=True, eq=False)
class LoadedAgent:
    """A function that a user named (`spec`): an agent (`plain`), or a factory of agents."""

    spec: str
    function: Any
    plain: bool

    @property
    def module(self) -> ModuleType | None:
        """The user's module that it was found in."""
        name = self.spec.partition(":")[0]
        return sys.modules.get(name) or sys.modules.get(getattr(underlying(self.function), "__module__", ""))

    async def make(self, context: AgentContext, variant: Mapping[str, Any] | None = None) -> OneLoop:
        """The agent for one strategy; one call of it is one loop.

        `variant` are keyword arguments: of the factory, or of every call of the plain function. Raises
        `UsageError` where these, or the prompt, do not fit its parameters, and for what a factory raises.
        """
        keywords = dict(variant or {})
        self._check(keywords)
        if self.plain:
            context.check_client(self.spec)
            return _one_loop(self.spec, self.function, context, keywords)
        try:
            made = await self._made(context, keywords)
        except (UsageError, asyncio.CancelledError):
            raise
        except BaseException as error:  # `sys.exit` too, which would end the whole event loop
            raise UsageError(f"the agent's factory failed: {describe(error)}") from error
        if not callable(made):
            raise UsageError(
                f"the agent's factory returned {made!r}: expected a function that takes the prompt, or "
                f"nothing{_hint(self.spec, made)}"
            )
        context.check_client(self.spec)
        return _one_loop(f"what {self.spec} returned", made, context, {})

    async def _made(self, context: AgentContext, keywords: dict[str, Any]) -> Any:
        taken = _taken(self.function)
        by = None if taken is None else _context_parameter(taken, keywords)
        if taken is not None and by is None:
            made = self.function(**keywords)
        elif by is None or by.kind in (Parameter.POSITIONAL_ONLY, Parameter.VAR_POSITIONAL):
            made = self.function(context, **keywords)
        else:
            made = self.function(**{by.name: context}, **keywords)
        return await made if inspect.isawaitable(made) else made

    def _check(self, keywords: Mapping[str, Any]) -> None:
        """Raises `UsageError` for keyword arguments that the function does not take."""
        taken = _taken(self.function)
        if taken is None or any(one.kind is Parameter.VAR_KEYWORD for one in taken):
            return
        ours = _prompt_parameter(taken) if self.plain else _context_parameter(taken, keywords)
        names = [
            one.name
            for one in taken
            if one is not ours and one.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        ]
        for name in keywords:
            if name not in names:
                has = f"it has {', '.join(names)}" if names else "it has none that could be varied"
                raise UsageError(f"{self.spec} has no parameter {name!r}{did_you_mean(name, names)}: {has}")


def load_agent(spec: str, *, factory: bool = False) -> LoadedAgent:
    """Import `my_app.agents:agent`, from the working directory too; `factory` says that it is one.

    After the colon may be several names, as in `my_app:assistant.run`. Raises `UsageError`.
    """
    from profiler.watch.profiler import Profiler

    noting = Profiler([]).auto()  # where each client is made
    try:
        found = _named("--agent", spec, "MODULE:FUNCTION, such as my_app.agents:agent")
    finally:
        noting.stop()
    loaded = as_agent(found, spec, factory=factory)
    if loaded.plain:
        _check_prompt(spec, found)
    return loaded


def as_agent(function: Any, spec: str, *, factory: bool = False) -> LoadedAgent:
    """A function as it is named by `spec`."""
    return LoadedAgent(spec, function, plain=not (factory or _is_factory(function, spec)))


def load_redact(spec: str) -> Redact:
    """Import `my_app.privacy:redact`, found as an agent is. Raises `UsageError`."""
    redact: Redact = _named("--redact", spec, "MODULE:FUNCTION, such as my_app.privacy:redact")
    return redact


def _is_factory(function: Any, spec: str) -> bool:
    if spec.rpartition(":")[2].rpartition(".")[2].startswith(FACTORY_NAME):
        return True
    if isinstance(function, type) and callable(inspect.getattr_static(function, "__call__", None)):
        return True  # its objects are the agents
    return any(_is_context(parameter) for parameter in _taken(function) or ())


def _is_context(parameter: Parameter) -> bool:
    note = parameter.annotation
    if note is not Parameter.empty and (
        note is AgentContext or _CONTEXT.search(note if isinstance(note, str) else repr(note))
    ):
        return True
    return parameter.name in CONTEXT_NAMES


def _taken(function: Any) -> tuple[Parameter, ...] | None:
    """Its parameters, None where it does not tell them, as functions of C may not."""
    try:
        return tuple(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.VAR_POSITIONAL)


def _context_parameter(taken: Sequence[Parameter], given: Collection[str]) -> Parameter | None:
    """The parameter of a factory that gets the context: by its annotation or name, else the first that has to
    be given, and is not."""
    named = [one for one in taken if _is_context(one)]
    needed = [one for one in taken if one.kind in _POSITIONAL and one.default is Parameter.empty]
    return next(iter([*named, *(one for one in needed if one.name not in given)]), None)


def _prompt_parameter(taken: Sequence[Parameter]) -> Parameter | None:
    """The parameter that is given the prompt: the first positional one, else one named so."""
    by_name = [one for one in taken if one.name == "prompt"]
    return next((one for one in taken if one.kind in _POSITIONAL), next(iter(by_name), None))


def _check_prompt(spec: str, function: Any) -> None:
    taken = _taken(function)
    if taken is not None and _prompt_parameter(taken) is None:
        raise UsageError(
            f"--agent {spec} takes no prompt: an agent takes the user's message; where it is a factory, say "
            "--factory"
        )


def _one_loop(spec: str, function: Any, context: AgentContext, keywords: Mapping[str, Any]) -> OneLoop:
    """The function as an agent. Raises `UsageError` where it needs more than the prompt."""
    if greenlets_for_threads() and not is_async(function):
        raise UsageError(
            f"{spec} is no async function, so it runs in threads, where locks and subprocesses stand still "
            "under Locust's monkey patching: start Locust with LOCUST_SKIP_MONKEY_PATCH=1 in its environment"
        )
    taken = _taken(function)
    ours = Parameter("prompt", Parameter.POSITIONAL_ONLY) if taken is None else _prompt_parameter(taken)
    missing = [
        one.name
        for one in taken or ()
        if one is not ours
        and one.default is Parameter.empty
        and one.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        and one.name not in keywords
    ]
    if missing:
        raise UsageError(
            f"{spec} needs {', '.join(missing)} too: an agent is given the prompt alone; let them have "
            "defaults, or name a function that calls it"
        )
    if ours is None:
        return lambda: called(function, **keywords)
    if ours.kind is Parameter.KEYWORD_ONLY:
        return lambda: called(function, **{ours.name: context.prompt}, **keywords)
    return lambda: called(function, context.prompt, **keywords)


def _named(option: str, spec: str, expected: str) -> Any:
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise UsageError(f"{option} {spec}: expected {expected}")
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")
    try:
        found = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(f"{option} {spec}: cannot import {module_name}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        raise UsageError(f"{option} {spec}: {module_name} fails at import: {describe(error)}") from error
    where = module_name
    for part in name.split("."):
        if not hasattr(found, part):
            near = did_you_mean(part, dir(found))
            raise UsageError(f"{option} {spec}: {where} has no function {part}{near}")
        found, where = getattr(found, part), f"{where}.{part}"
    if not callable(found):
        raise UsageError(f"{option} {spec}: {name} cannot be called{_hint(spec, found)}")
    return found


def _hint(spec: str, found: Any) -> str:
    has = [name for name in METHODS if callable(getattr(found, name, None))]
    return f"; name a function of it, such as {spec}.{has[0]}" if has else ""
