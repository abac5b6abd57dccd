"""Agents written with independent frameworks, as their users write them. Each returns its answer."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest

MODEL = "claude-sonnet-4-6"
QUESTION = "Search three times, then tell me."


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
        async with httpx.AsyncClient(timeout=60) as client:
            return (await client.post(f"{self._url}/tools/{name}", json=arguments)).text

    def all(self) -> list[Any]:
        return [self.search, self.lookup, self.weather_of]


async def pydantic_ai(client: Any, api: str, tools: Sequence[Any], *, stream: bool = False) -> str:
    need("pydantic_ai")
    from pydantic_ai import Agent
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.anthropic import AnthropicProvider
    from pydantic_ai.providers.openai import OpenAIProvider

    async def listen(context: Any, events: Any) -> None:
        async for _ in events:
            pass

    model: Any
    if api == "messages":
        model = AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=client))
    else:
        kind = OpenAIChatModel if api == "chat" else OpenAIResponsesModel
        model = kind("gpt-4o", provider=OpenAIProvider(openai_client=client))
    run = await Agent(model, tools=tools).run(QUESTION, event_stream_handler=listen if stream else None)
    return run.output


async def openai_agents(client: Any, api: str, tools: Sequence[Any], *, stream: bool = False) -> str:
    agents = need("agents")
    kind = agents.OpenAIChatCompletionsModel if api == "chat" else agents.OpenAIResponsesModel
    config = agents.RunConfig(tracing_disabled=True)
    agent = agents.Agent(
        name="searcher", model=kind("gpt-4o", client), tools=[agents.function_tool(tool) for tool in tools]
    )
    if not stream:
        return (await agents.Runner.run(agent, QUESTION, run_config=config)).final_output
    run = agents.Runner.run_streamed(agent, QUESTION, run_config=config)
    async for _ in run.stream_events():
        pass
    return run.final_output


async def langgraph(
    url: str, api: str, functions: Sequence[Any], with_client: Callable[[Any], Any] = lambda client: client
) -> str:
    """`with_client` is given the SDK client that langchain made."""
    need("langgraph")
    from langchain_core.tools import tool
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition

    model: Any
    if api == "messages":
        model = need("langchain_anthropic").ChatAnthropic(model=MODEL, base_url=url, api_key="x")
        with_client(model._async_client)
    else:
        model = need("langchain_openai").ChatOpenAI(
            model="gpt-4o", base_url=f"{url}/v1", api_key="x", use_responses_api=api == "responses"
        )
        with_client(model.root_async_client)
    tools = [tool(function) for function in functions]
    bound = model.bind_tools(tools)

    async def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", tools_condition)
    graph.add_edge("tools", "think")
    state = await graph.compile().ainvoke({"messages": [("user", QUESTION)]})
    return state["messages"][-1].text
