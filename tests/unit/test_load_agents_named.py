"""What `--agent` names: which functions are agents and which make them, and how either is called."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import types
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from profiler.errors import UsageError
from profiler.load.agents import LoadedAgent, as_agent, load_agent
from profiler.load.calling import called
from profiler.load.context import AgentCall, AgentContext, agent_call
from tests.unit.test_load_agents import POSITION, context

PROMPT = "Task 7."


class Assistant:
    def __init__(self, name: str = "x") -> None:
        self.name = name

    def __call__(self, prompt: str) -> str:
        return prompt

    async def run(self, prompt: str) -> str:
        return prompt


def by_name(ctx: Any) -> None: ...
def by_long_name(*, context: Any) -> None: ...
def by_annotation(given: AgentContext) -> None: ...
def by_text(given: AgentContext | None = None) -> None: ...
def plain(prompt: str) -> None: ...
async def plain_async(question: str, history: Any = ()) -> None: ...
def contextual(prompt: str, contexts: Any = None) -> None: ...


@pytest.mark.parametrize(
    ("function", "name", "is_plain"),
    [
        (by_name, "build", False),
        (by_long_name, "build", False),
        (by_annotation, "build", False),
        (by_text, "build", False),
        (functools.partial(by_name), "build", False),
        (plain, "make_agent", False),
        (plain, "factory.make_one", False),
        (plain, "agent", True),
        (plain, "remake_all", True),
        (plain_async, "agent", True),
        (contextual, "agent", True),
        (functools.partial(plain_async, history=[]), "agent", True),
        (Assistant(), "assistant", True),
        (Assistant().run, "assistant.run", True),
        (Assistant, "Assistant", False),
        (print, "print", True),
    ],
)
def test_agent_or_factory_by_name_and_parameters(function: Any, name: str, is_plain: bool) -> None:
    assert as_agent(function, f"m:{name}").plain is is_plain
    assert as_agent(function, f"m:{name}", factory=True).plain is False


def run(loaded: LoadedAgent, variant: dict[str, Any] | None = None) -> Any:
    """What one loop of the agent comes to."""

    async def main() -> Any:
        one_loop = await loaded.make(context("gathered"), variant)
        token = agent_call.set(AgentCall(POSITION))
        try:
            return await one_loop()
        finally:
            agent_call.reset(token)

    return asyncio.run(main())


seen: ContextVar[str] = ContextVar("seen", default="nothing")


async def coroutine(prompt: str) -> str:
    await asyncio.sleep(0)
    return f"async {prompt}"


def thread(prompt: str) -> str:
    assert asyncio._get_running_loop() is None
    return f"{prompt} {seen.get()}"


def runs_a_loop(prompt: str) -> str:
    return asyncio.run(coroutine(prompt))


@functools.wraps(coroutine)
def wraps_a_loop(prompt: str) -> str:
    return runs_a_loop(prompt)


def hands_back(prompt: str) -> Any:
    return coroutine(prompt)


@pytest.mark.parametrize(
    ("function", "result"),
    [
        (coroutine, f"async {PROMPT}"),
        (thread, f"{PROMPT} here"),
        (runs_a_loop, f"async {PROMPT}"),
        (hands_back, f"async {PROMPT}"),
        (wraps_a_loop, f"async {PROMPT}"),
        (Assistant(), PROMPT),
        (Assistant().run, PROMPT),
        (functools.partial(coroutine), f"async {PROMPT}"),
        (lambda *, prompt: prompt, PROMPT),
        (lambda *parts: parts, (PROMPT,)),
    ],
)
def test_plain_agent_is_called_with_the_prompt(function: Any, result: Any) -> None:
    token = seen.set("here")
    try:
        assert run(as_agent(function, "m:agent")) == result
    finally:
        seen.reset(token)


def test_streams_are_read_to_their_end() -> None:
    read: list[str] = []

    def generator(prompt: str) -> Iterator[str]:
        for part in (prompt, "b"):
            yield part
            read.append(part)

    async def agenerator(prompt: str) -> AsyncIterator[str]:
        for part in (prompt, "d"):
            yield part
            read.append(part)

    async def stream(prompt: str) -> AsyncIterator[str]:
        return agenerator(prompt)

    for function in (generator, agenerator, stream, lambda prompt: iter(generator(prompt))):
        assert run(as_agent(function, "m:agent")) is None
    assert read == [PROMPT, "b", PROMPT, "d", PROMPT, "d", PROMPT, "b"]


def test_as_many_sync_agents_run_at_once_as_there_are() -> None:
    agents = 80  # more than asyncio's own pool has threads, or ours has for tools
    inside = asyncio.Event()
    waiting: list[Callable[[], None]] = []

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()

        def agent(number: int) -> int:
            future = asyncio.run_coroutine_threadsafe(meet(), loop)
            future.result(60)
            return number

        async def meet() -> None:
            waiting.append(inside.set)
            if len(waiting) == agents:
                inside.set()
            await inside.wait()

        return await asyncio.gather(*(called(agent, number) for number in range(agents)))

    assert asyncio.run(main()) == list(range(agents))


@pytest.mark.parametrize(
    ("function", "variant", "made"),
    [
        (lambda ctx: ctx.model, {}, None),
        (lambda *, context, n=1: (context.tools_url, n), {"n": 2}, ("http://127.0.0.1:1", 2)),
        (lambda: "without", {}, "without"),
        (lambda n=1: n, {"n": 3}, 3),
        (lambda n: n, {"n": 4}, 4),
        (lambda given, n: (given.provider, n), {"n": 5}, ("openai", 5)),
        (lambda n, ctx, **more: (n, ctx.provider, more), {"n": 6, "m": 7}, (6, "openai", {"m": 7})),
    ],
)
def test_factory_is_given_its_context_and_variant(function: Any, variant: dict[str, Any], made: Any) -> None:
    def make(*args: Any, **keywords: Any) -> Any:
        product = function(*args, **keywords)

        async def one_loop() -> Any:
            return product

        return one_loop

    make.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    assert run(as_agent(make, "m:make_agent"), variant) == made


@pytest.mark.parametrize("product", [coroutine, thread, lambda: "nothing given"])
def test_product_of_a_factory_takes_the_prompt_or_nothing(product: Any) -> None:
    async def make_agent(context: AgentContext) -> Any:
        return product

    assert run(as_agent(make_agent, "m:make_agent")) in (
        f"async {PROMPT}",
        f"{PROMPT} nothing",
        "nothing given",
    )


def test_variant_of_a_plain_agent_goes_with_every_call() -> None:
    def agent(prompt: str, limit: int = 1) -> tuple[str, int]:
        return prompt, limit

    assert run(as_agent(agent, "m:agent"), {"limit": 4}) == (PROMPT, 4)
    refused = r"m:agent has no parameter 'limits' \(did you mean 'limit'\?\): it has limit"
    with pytest.raises(UsageError, match=refused):
        run(as_agent(agent, "m:agent"), {"limits": 4})
    with pytest.raises(UsageError, match="no parameter 'prompt': it has none that could be varied"):
        run(as_agent(plain, "m:plain"), {"prompt": 4})


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    made = types.ModuleType("an_agents_module")
    monkeypatch.setitem(sys.modules, "an_agents_module", made)
    return made


def test_names_after_the_colon(module: Any) -> None:
    module.assistant = Assistant()
    module.nothing = lambda: None
    module.two = lambda prompt, user: None
    loaded = load_agent("an_agents_module:assistant.run")
    assert (loaded.plain, run(loaded)) == (True, PROMPT)
    for spec, said in {
        "an_agents_module:assistant.name": "assistant.name cannot be called$",
        "an_agents_module:assistants": r"has no function assistants \(did you mean 'assistant'\?\)",
        "an_agents_module:nothing": "takes no prompt: .* where it is a factory, say --factory",
    }.items():
        with pytest.raises(UsageError, match=said):
            load_agent(spec)
    assert load_agent("an_agents_module:nothing", factory=True).plain is False
    with pytest.raises(UsageError, match="two needs user too: an agent is given the prompt alone"):
        run(load_agent("an_agents_module:two"))


def test_object_that_cannot_be_called_is_told_its_method(module: Any) -> None:
    module.framework = types.SimpleNamespace(run=plain, other=1)
    with pytest.raises(UsageError, match=r"a function of it, such as an_agents_module:framework\.run"):
        load_agent("an_agents_module:framework")


def test_sync_agent_is_refused_where_threads_are_greenlets(monkeypatch: pytest.MonkeyPatch) -> None:
    # Threads that other tests left in this process ask the same module for what is not patched.
    patched = types.SimpleNamespace(
        is_module_patched=lambda name: name == "threading",
        get_original=lambda module, name: getattr(sys.modules[module], name),
    )
    monkeypatch.setitem(sys.modules, "gevent.monkey", patched)
    with pytest.raises(UsageError, match="start Locust with LOCUST_SKIP_MONKEY_PATCH=1"):
        run(as_agent(thread, "m:agent"))
