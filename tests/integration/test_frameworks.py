"""Independent clients, unmodified, finish a three-tool loop against the emulator.

Each tool asks the emulator over HTTP, without naming its call: the emulator matches it. How many were
in flight at once is the emulator's own count. Needs the optional dependencies `frameworks`; where they
are missing the tests are skipped, on CI (CI=true) they fail.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import pytest_asyncio

from profiler.emulator.process import EmulatorProcess, start_emulator

# What these packages warn of among themselves is theirs.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.asyncio(loop_scope="module")]

SCENARIO = """
description = "one round of three calls of 0.25 s"
prompt = "Question {number}"

[model]
first_token = 0.01
tokens_per_second = 5000

[loop]
rounds = 1
fan_out = 3

[tools.search]
description = "Search."
duration = 0.25
"""
MODEL = "claude-sonnet-4-6"
QUESTION = "Search three times, then tell me."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatorProcess]:
    path: Path = tmp_path_factory.mktemp("scenario") / "three.toml"
    path.write_text(SCENARIO)
    with start_emulator(str(path)) as running:
        yield running


@pytest.fixture
def emulator(server: EmulatorProcess) -> EmulatorProcess:
    httpx.delete(f"{server.url}/emulator/journal")
    return server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clients() -> AsyncIterator[list[Any]]:
    """Clients to close at the end: langchain shares and keeps its own."""
    kept: list[Any] = []
    yield kept
    for client in kept:
        await client.close()


def need(name: str) -> Any:
    """Import a module of the optional group; skip without it, but not on CI."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"{name} is not installed (optional dependencies `frameworks`)")


class Tools:
    """Three tools, each of which asks the emulator and waits for it."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def search(self, query: str) -> str:
        """Search the web.

        Args:
            query: What to search for.
        """
        return await self._ask("search", query=query)

    async def lookup(self, city: str, limit: int = 3) -> str:
        """Look a city up.

        Args:
            city: Name of the city.
            limit: How many results.
        """
        return await self._ask("lookup", city=city, limit=limit)

    async def weather_of(self, city: str) -> str:
        """Weather of a city.

        Args:
            city: Name of the city.
        """
        return await self._ask("weather_of", city=city)

    async def _ask(self, name: str, **arguments: Any) -> str:
        async with httpx.AsyncClient() as client:
            return (await client.post(f"{self._url}/tools/{name}", json=arguments)).text

    def all(self) -> list[Any]:
        return [self.search, self.lookup, self.weather_of]


def stats_of(emulator: EmulatorProcess) -> dict[str, Any]:
    stats: dict[str, Any] = httpx.get(f"{emulator.url}/emulator/stats").json()
    return stats


def check(emulator: EmulatorProcess, api: str, answer: str, at_once: int = 3) -> None:
    """Two model requests and three tool requests, all well, `at_once` of them in flight together."""
    stats = stats_of(emulator)
    assert stats["requests"] == {api: {"200": 2}, "tools": {"200": 3}}
    assert stats["peak_in_flight"]["tools"] == at_once
    assert answer.startswith("From 3 results: ")
    entries = httpx.get(f"{emulator.url}/emulator/journal").json()["entries"]
    assert [entry["round"] for entry in entries] == [0, 0, 0, 0, 1]
    # No client named its loop or its calls: the ids and the arguments did.
    assert len({entry["loop"] for entry in entries}) == 1
    assert sorted(entry["call"] for entry in entries if entry["kind"] == "tool") == [0, 1, 2]


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
@pytest.mark.parametrize("stream", [False, True])
async def test_pydantic_ai(emulator: EmulatorProcess, api: str, stream: bool) -> None:
    need("pydantic_ai")
    from pydantic_ai import Agent
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.anthropic import AnthropicProvider
    from pydantic_ai.providers.openai import OpenAIProvider

    async def listen(context: Any, events: Any) -> None:
        async for _ in events:
            pass

    async with (
        anthropic.AsyncAnthropic(base_url=emulator.url, api_key="x") as claude,
        openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key="x") as client,
    ):
        model: Any
        if api == "messages":
            model = AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=claude))
        else:
            kind = OpenAIChatModel if api == "chat" else OpenAIResponsesModel
            model = kind("gpt-4o", provider=OpenAIProvider(openai_client=client))
        agent = Agent(model, tools=Tools(emulator.url).all())
        run = await agent.run(QUESTION, event_stream_handler=listen if stream else None)
    check(emulator, api, run.output)


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("stream", [False, True])
async def test_openai_agents(emulator: EmulatorProcess, api: str, stream: bool) -> None:
    agents = need("agents")
    kind = agents.OpenAIChatCompletionsModel if api == "chat" else agents.OpenAIResponsesModel
    tools = [agents.function_tool(tool) for tool in Tools(emulator.url).all()]
    config = agents.RunConfig(tracing_disabled=True)
    async with openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key="x") as client:
        agent = agents.Agent(name="searcher", model=kind("gpt-4o", client), tools=tools)
        if stream:
            run = agents.Runner.run_streamed(agent, QUESTION, run_config=config)
            async for _ in run.stream_events():
                pass
        else:
            run = await agents.Runner.run(agent, QUESTION, run_config=config)
    check(emulator, api, run.final_output)


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
async def test_langgraph(emulator: EmulatorProcess, clients: list[Any], api: str) -> None:
    need("langgraph")
    from langchain_core.tools import tool
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition

    model: Any
    if api == "messages":
        model = need("langchain_anthropic").ChatAnthropic(model=MODEL, base_url=emulator.url, api_key="x")
    else:
        model = need("langchain_openai").ChatOpenAI(
            model="gpt-4o", base_url=f"{emulator.url}/v1", api_key="x", use_responses_api=api == "responses"
        )
    tools = [tool(function) for function in Tools(emulator.url).all()]
    bound = model.bind_tools(tools)

    async def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", tools_condition)
    graph.add_edge("tools", "think")
    clients.append(model._async_client if api == "messages" else model.root_async_client)
    state = await graph.compile().ainvoke({"messages": [("user", QUESTION)]})
    check(emulator, api, state["messages"][-1].text)


@pytest.mark.parametrize("eager", [False, True])
async def test_the_anthropic_sdks_own_runner(emulator: EmulatorProcess, eager: bool) -> None:
    tools: Any = [anthropic.beta_async_tool(tool) for tool in Tools(emulator.url).all()]
    async with anthropic.AsyncAnthropic(base_url=emulator.url, api_key="x") as client:
        more: Any = {"stream": True, "run_tools_eagerly": True} if eager else {}
        runner = client.beta.messages.tool_runner(
            model=MODEL,
            max_tokens=2000,
            messages=[{"role": "user", "content": QUESTION}],
            tools=tools,
            thread=False,
            **more,
        )
        message = await runner.until_done()
    # It runs the calls of a turn one at a time, eagerly too.
    check(emulator, "messages", message.content[-1].text, at_once=1)


async def test_the_anthropic_sdks_own_runner_falls_back_from_threads(emulator: EmulatorProcess) -> None:
    tools: Any = [anthropic.beta_async_tool(tool) for tool in Tools(emulator.url).all()]
    async with anthropic.AsyncAnthropic(base_url=emulator.url, api_key="x") as client:
        runner = client.beta.messages.tool_runner(
            model=MODEL, max_tokens=2000, messages=[{"role": "user", "content": QUESTION}], tools=tools
        )
        message = await runner.until_done()
    assert message.content[-1].text.startswith("From 3 results: ")  # type: ignore[union-attr]
    statuses = stats_of(emulator)["requests"]["messages"]
    assert statuses["200"] == 2
    assert statuses["400"] >= 1


@pytest.mark.parametrize(("independent", "at_once"), [(False, 1), (True, 3)])
async def test_the_openai_sdks_own_runner(emulator: EmulatorProcess, independent: bool, at_once: int) -> None:
    runner_module = importlib.import_module("openai.lib.responses_tool_runner")
    parameters = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}

    def registered(name: str) -> Any:
        tool = {
            "type": "function",
            "name": name,
            "parameters": {**parameters, "additionalProperties": False},
            "strict": True,
        }

        async def execute(arguments: dict[str, Any]) -> str:
            return await Tools(emulator.url).search(**arguments)

        return runner_module.AsyncRegisteredFunction(tool, execute, independent=independent)

    runner = runner_module.AsyncResponsesToolRunner(functions=[registered(name) for name in "abc"])
    async with openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key="x") as client:
        response = await runner.run(
            client,
            {"model": "gpt-4o", "input": [{"role": "user", "content": QUESTION}], "store": False},
            stream=True,
            eager=True,
            max_concurrent_calls=3,
        )
    # One at a time unless it is told that the calls do not depend on each other.
    stats = stats_of(emulator)
    assert stats["requests"] == {"responses": {"200": 2}, "tools": {"200": 3}}
    assert stats["peak_in_flight"]["tools"] == at_once
    assert response.output_text.startswith("From 3 results: ")
