"""The public API as a type checker sees it: `make types` checks this file, nothing runs it.

An ignored error is one that has to be there: strict mypy complains when it is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

from anthropic import AsyncAnthropic
from openai import AsyncOpenAI, OpenAI

from profiler import (
    Gate,
    Gathered,
    LoopRecord,
    LoopResult,
    SemaphoreLimited,
    Sequential,
    Strategy,
    Tool,
    ToolLoop,
    tool,
)
from profiler.load import AgentContext, AgentUser
from profiler.providers import AnthropicMessages, OpenAIChat, OpenAIResponses
from profiler.rundir import Run, RunDirectory
from profiler.testing import ScriptedModel, call
from profiler.watch.asgi import App, ProfilerMiddleware
from profiler.watch.profiler import Profiler

# Tools keep the signatures of their functions.


@tool
async def get_weather(city: str, units: str = "celsius") -> str:
    return f"{city} {units}"


@tool(timeout=5.0, retries=2, pure=True)
def count_words(text: str) -> int:
    return len(text.split())


class Directory:
    def number_of(self, name: str) -> int:
        return len(name)

    async def search(self, query: str, *, most: int = 3) -> list[str]:
        return [query] * most


async def tools_are_called_like_their_functions() -> None:
    assert_type(count_words("a b"), int)
    assert_type(await get_weather("Paris", units="kelvin"), str)
    assert_type(tool(Directory().number_of)("Ann"), int)
    assert_type(await tool(Directory().search)("Ann", most=2), list[str])
    assert_type(count_words.name, str)
    counting: Tool[[str], int] = count_words
    counting(3)  # type: ignore[arg-type]
    await get_weather()  # type: ignore[call-arg]
    count_words(words="a")  # type: ignore[call-arg]
    tool(timeout="5")  # type: ignore[call-overload]


def any_tools(tools: list[Tool]) -> list[Tool]:
    return [*tools, get_weather, count_words]


# The loop, its models and strategies.


async def use_the_loop() -> None:
    for model in (OpenAIChat(), OpenAIResponses(), AnthropicMessages()):
        loop = ToolLoop(model, [get_weather, count_words], Gathered(), max_rounds=3)
        result = await loop.run("What is the weather in Paris?")
        assert_type(result, LoopResult)
        assert_type(result.text, str)
        assert_type(result.record, LoopRecord)
    ToolLoop(ScriptedModel([[call("count_words", text="a")], "done"]), [count_words])
    strategies: list[Strategy] = [Sequential(), Gathered(), SemaphoreLimited(4, scope="tool")]
    SemaphoreLimited(4, scope="planet")  # type: ignore[arg-type]
    ToolLoop(OpenAIChat(), [get_weather], strategies[0], max_rounds="3")  # type: ignore[arg-type]


# A loop that is there already: clients and functions come back as what they were.


async def use_the_profiler() -> None:
    prof = Profiler()
    Profiler(records="runs", prometheus=True, otel=True)
    Profiler([print], records=Path("loops.jsonl"), prometheus=False)
    Profiler(records=True)  # type: ignore[arg-type]
    assert_type(prof.instrument(AsyncOpenAI()), AsyncOpenAI)
    assert_type(prof.instrument(OpenAI()), OpenAI)
    assert_type(prof.uninstrument(AsyncAnthropic()), AsyncAnthropic)
    watched = prof.tool(Directory().search)
    assert_type(await watched("Ann", most=2), list[str])
    assert_type(prof.tool(count_words)("a b"), int)
    assert_type(await prof.tool(get_weather)("Paris"), str)
    await watched(7)  # type: ignore[arg-type]

    @prof.tool
    def decorated(x: float) -> bool:
        return x > 0

    assert_type(decorated(1.0), bool)

    @prof.tool(name="other")
    def renamed(x: float) -> bool:
        return x > 0

    assert_type(renamed(1.0), bool)
    assert_type(prof.tools({"count": decorated})["count"](1.0), bool)
    assert_type(prof.tools([count_words])[0]("a b"), int)

    @prof.dispatcher(name="name")
    async def call_tool(name: str, arguments: dict[str, Any]) -> str:
        return name

    assert_type(await call_tool("count", {}), str)
    assert_type(await prof.dispatcher(call_tool, name="name")("count", {}), str)
    prof.dispatcher(call_tool)  # type: ignore[call-overload]
    with prof.loop("support", number=1):
        pass
    async with prof.loop("support"):
        pass


def a_service(app: App, prof: Profiler) -> App:
    ProfilerMiddleware(app, profiler=7)  # type: ignore[arg-type]
    return ProfilerMiddleware(app, profiler=prof, include=["/chat/*"])


async def use_a_gate() -> None:
    gate = Gate("semaphore:8+rate:5/s")
    async with gate.slot("search", agent="a1"):
        pass
    async with gate.slot() as slot:
        slot.rejected("soon")  # type: ignore[arg-type]
    Gate(8)  # type: ignore[arg-type]


# Load.


async def make_agent(context: AgentContext) -> Any:
    async def once() -> str:
        results = await context.execute(lambda: Directory().search("a"), lambda: Directory().search("b"))
        assert_type(results, list[list[str]])
        assert_type(context.prompt, str)
        async with context.slot("search"):
            return results[0][0]

    return once


class Support(AgentUser):
    agent = make_agent


def read_a_run(path: str) -> list[float]:
    directory = RunDirectory.open(path)
    assert_type(directory.load(), Run)
    return [(record.ended_ns - record.started_ns) / 1e9 for record in directory.records()]
