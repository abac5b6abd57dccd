"""Independent clients, unmodified, finish a three-tool loop against the emulator.

Each tool asks the emulator over HTTP, without naming its call: the emulator matches it. How many were
in flight at once is the emulator's own count. Needs the optional dependencies `frameworks`; where they
are missing the tests are skipped, on CI (CI=true) they fail.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import pytest_asyncio

from profiler.emulator.process import EmulatorProcess, start_emulator
from profiler.records import LoopRecord
from profiler.watch.profiler import Profiler
from tests.integration.framework_agents import (
    MODEL,
    QUESTION,
    Tools,
    langgraph,
    need,
    openai_agents,
    pydantic_ai,
)

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


def stats_of(emulator: EmulatorProcess) -> dict[str, Any]:
    stats: dict[str, Any] = httpx.get(f"{emulator.url}/emulator/stats", timeout=60).json()
    return stats


def check_answer(answer: str) -> None:
    assert answer.startswith("From 3 results: ")


def check(emulator: EmulatorProcess, api: str, answer: str, at_once: int = 3) -> None:
    """Two model requests and three tool requests, all well, `at_once` of them in flight together."""
    stats = stats_of(emulator)
    assert stats["requests"] == {api: {"200": 2}, "tools": {"200": 3}}
    assert stats["peak_in_flight"]["tools"] == at_once
    check_answer(answer)
    entries = httpx.get(f"{emulator.url}/emulator/journal", timeout=60).json()["entries"]
    assert [entry["round"] for entry in entries] == [0, 0, 0, 0, 1]
    # No client named its loop or its calls: the ids and the arguments did.
    assert len({entry["loop"] for entry in entries}) == 1
    assert sorted(entry["call"] for entry in entries if entry["kind"] == "tool") == [0, 1, 2]


def client_of(api: str, url: str) -> Any:
    if api == "messages":
        return anthropic.AsyncAnthropic(base_url=url, api_key="x")
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x")


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
@pytest.mark.parametrize("stream", [False, True])
async def test_pydantic_ai(emulator: EmulatorProcess, api: str, stream: bool) -> None:
    async with client_of(api, emulator.url) as client:
        answer = await pydantic_ai(client, api, Tools(emulator.url).all(), stream=stream)
    check(emulator, api, answer)


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("stream", [False, True])
async def test_openai_agents(emulator: EmulatorProcess, api: str, stream: bool) -> None:
    async with client_of(api, emulator.url) as client:
        answer = await openai_agents(client, api, Tools(emulator.url).all(), stream=stream)
    check(emulator, api, answer)


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
async def test_langgraph(emulator: EmulatorProcess, clients: list[Any], api: str) -> None:
    answer = await langgraph(emulator.url, api, Tools(emulator.url).all(), clients.append)
    check(emulator, api, answer)


def check_profile(emulator: EmulatorProcess, records: list[LoopRecord], answer: str) -> None:
    """One loop of two rounds; three calls that overlapped, with the ids that the emulator handed out."""
    check_answer(answer)
    (record,) = records
    entries = httpx.get(f"{emulator.url}/emulator/journal", timeout=60).json()["entries"]
    assert (record.status, record.ambiguous_calls) == ("ok", 0)
    assert [len(r.tool_calls) for r in record.rounds] == [3, 0]
    calls = record.rounds[0].tool_calls
    assert {c.id for c in calls} == {e["call_id"] for e in entries if e["kind"] == "tool"}
    assert [r.model.request_id for r in record.rounds] == [
        e["request_id"] for e in entries if e["kind"] == "model"
    ]
    assert max(c.started_ns for c in calls) < min(c.ended_ns for c in calls)


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
async def test_pydantic_ai_profiled(emulator: EmulatorProcess, api: str) -> None:
    records: list[LoopRecord] = []
    prof = Profiler(sinks=[records.append])
    async with client_of(api, emulator.url) as client, prof.loop("pydantic-ai"):
        tools = [prof.tool(tool) for tool in Tools(emulator.url).all()]
        answer = await pydantic_ai(prof.instrument(client), api, tools)
    check_profile(emulator, records, answer)


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_openai_agents_profiled(emulator: EmulatorProcess, api: str) -> None:
    records: list[LoopRecord] = []
    prof = Profiler(sinks=[records.append])
    async with client_of(api, emulator.url) as client, prof.loop("openai-agents"):
        tools = [prof.tool(tool) for tool in Tools(emulator.url).all()]
        answer = await openai_agents(prof.instrument(client), api, tools, stream=True)
    check_profile(emulator, records, answer)


async def registered_pydantic_ai(prof: Profiler, client: Any, url: str) -> str:
    """Tools of an agent, and of a toolset whose tools have other names for the model."""
    need("pydantic_ai")
    from pydantic_ai import Agent, FunctionToolset
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    tools = Tools(url)
    agent = Agent(
        OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client)),
        tools=[tools.search],
        toolsets=[FunctionToolset([tools.lookup, tools.weather_of]).prefixed("city")],
    )
    assert prof.tools(agent) is agent
    return (await agent.run(QUESTION)).output


async def registered_openai_agents(prof: Profiler, client: Any, url: str) -> str:
    agents = need("agents")
    tools = Tools(url)

    async def invoke(context: Any, arguments: str) -> str:
        return await tools.weather_of(**json.loads(arguments))

    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    agent = agents.Agent(
        name="searcher",
        model=agents.OpenAIChatCompletionsModel("gpt-4o", client),
        tools=[
            agents.function_tool(tools.search),
            agents.function_tool(tools.lookup),
            agents.FunctionTool("weather_of", "Weather.", schema, invoke, strict_json_schema=False),
        ],
    )
    assert prof.tools(agent) is agent
    config = agents.RunConfig(tracing_disabled=True)
    return (await agents.Runner.run(agent, QUESTION, run_config=config)).final_output


async def registered_langgraph(prof: Profiler, client: Any, url: str, whole: bool = False) -> str:
    """LangChain's tools, decorated and of a class of their own, in a graph that was made before."""
    need("langgraph")
    from langchain_core.tools import BaseTool, tool
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition

    plain = Tools(url)

    class WeatherOf(BaseTool):
        name: str = "weather_of"
        description: str = "Weather of a city."

        def _run(self, city: str) -> str:
            raise NotImplementedError

        async def _arun(self, city: str) -> str:
            return await plain.weather_of(city)

    model = need("langchain_openai").ChatOpenAI(
        model="gpt-4o", async_client=client.chat.completions, api_key="x"
    )
    tools = [tool(plain.search), tool(plain.lookup), WeatherOf()]
    bound = model.bind_tools(tools)

    async def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", tools_condition)
    graph.add_edge("tools", "think")
    compiled = graph.compile()
    if whole:
        assert prof.tools(compiled) is compiled
    else:
        assert prof.tools(tools) == tools
    state = await compiled.ainvoke({"messages": [("user", QUESTION)]})
    return str(state["messages"][-1].text)


async def registered_graph(prof: Profiler, client: Any, url: str) -> str:
    return await registered_langgraph(prof, client, url, whole=True)


@pytest.mark.parametrize(
    "agent", [registered_pydantic_ai, registered_openai_agents, registered_langgraph, registered_graph]
)
async def test_tools_of_a_framework_are_watched_by_one_call(emulator: EmulatorProcess, agent: Any) -> None:
    records: list[LoopRecord] = []
    prof = Profiler(sinks=[records.append])
    async with client_of("chat", emulator.url) as client, prof.loop("registered"):
        answer = await agent(prof, prof.instrument(client), emulator.url)
    check_answer(answer)
    (record,) = records
    assert (record.status, record.ambiguous_calls, record.orphan_calls) == ("ok", 0, 0)
    assert [len(r.tool_calls) for r in record.rounds] == [3, 0]
    assert record.unobserved_calls == 0
    calls = record.rounds[0].tool_calls
    assert len({c.id for c in calls} - {""}) == 3  # each is one that the model asked for
    assert max(c.started_ns for c in calls) < min(c.ended_ns for c in calls)
    assert prof.failures == {"loop": 0, "request": 0, "tool": 0}


async def test_failure_of_an_openai_agents_tool_is_seen_though_its_framework_answers_it() -> None:
    agents = need("agents")

    def failing(query: str) -> str:
        raise ConnectionError("gone")

    records: list[LoopRecord] = []
    prof = Profiler(sinks=[records.append])
    search = prof.tools(agents.function_tool(failing, name_override="search"))
    with prof.loop("x") as loop:
        loop.begin_round("openai", "gpt-4o")
        text = await agents_call(search, '{"query": "q"}')
    assert "An error occurred" in text
    (call,) = records[0].tool_calls
    assert (call.name, call.status, call.error_type) == ("search", "error", "ConnectionError")


class Search:
    """Searches."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, query: str, limit: int = 3) -> str:
        """Search for it."""
        self.asked.append(query)
        return f"{query}, {limit}"


async def test_a_callable_object_is_a_tool_of_openai_agents_watched_or_not() -> None:
    agents = need("agents")
    search = Search()
    watched = Profiler(sinks=[]).tool(search)
    tools = [agents.function_tool(one, name_override="search") for one in (search, watched)]
    bare, mine = ((tool.description, tool.params_json_schema) for tool in tools)
    assert mine == bare
    assert list(mine[1]["properties"]) == ["query", "limit"]
    results = [await agents_call(tool, '{"query": "q", "limit": 2}') for tool in tools]
    assert results == ["q, 2", "q, 2"]
    assert search.asked == watched.asked == ["q", "q"]


async def agents_call(tool: Any, arguments: str) -> Any:
    from agents.tool_context import ToolContext

    context = ToolContext(context=None, tool_name=tool.name, tool_call_id="c", tool_arguments=arguments)
    return await tool.on_invoke_tool(context, arguments)


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
async def test_langgraph_profiled(emulator: EmulatorProcess, clients: list[Any], api: str) -> None:
    records: list[LoopRecord] = []
    prof = Profiler(sinks=[records.append])
    with prof.loop("langgraph"):
        tools = [prof.tool(tool) for tool in Tools(emulator.url).all()]
        answer = await langgraph(
            emulator.url, api, tools, lambda client: clients.append(prof.instrument(client))
        )
    # langchain shares one HTTP client among all its models: leave it as it was found.
    prof.uninstrument(clients[-1])
    check_profile(emulator, records, answer)


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
