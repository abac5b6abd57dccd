"""Agents that call the tools of an MCP server, as their users write them, on both majors of the SDK.

Each is a coroutine function of a server and an OpenAI client; it runs one loop to its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
from mcp.client.session import ClientSession
from mcp.client.stdio import StdioServerParameters, stdio_client

MAJOR = int(importlib.metadata.version("mcp").partition(".")[0])
QUESTION = "Search three times, then tell me."


@dataclass(frozen=True)
class Target:
    """A server: its `url`, or its `command`."""

    url: str = ""
    command: tuple[str, ...] = ()

    @property
    def parameters(self) -> StdioServerParameters:
        return StdioServerParameters(command=self.command[0], args=[*self.command[1:]])


Run = Callable[[str, dict[str, Any]], Awaitable[Any]]


async def drive(client: Any, tools: Sequence[Any], run: Run) -> str:
    """A loop as an application writes it: all calls of a reply at once."""
    offered = [
        {"type": "function", "function": {"name": tool.name, "parameters": schema_of(tool)}} for tool in tools
    ]
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    while True:
        reply = await client.chat.completions.create(model="m", messages=messages, tools=offered)
        message = reply.choices[0].message
        if not message.tool_calls:
            return str(message.content)
        messages.append(message.model_dump(exclude_none=True))
        calls = [(one.function.name, json.loads(one.function.arguments)) for one in message.tool_calls]
        await asyncio.gather(*[run(name, arguments) for name, arguments in calls])
        messages += [
            {"role": "tool", "tool_call_id": one.id, "content": "done"} for one in message.tool_calls
        ]


def schema_of(tool: Any) -> Any:
    schema = getattr(tool, "input_schema", None) or getattr(tool, "inputSchema", None)
    return schema or {"type": "object"}


@contextlib.asynccontextmanager
async def session_of(target: Target) -> AsyncIterator[ClientSession]:
    """The session that an application opens itself."""
    async with contextlib.AsyncExitStack() as stack:
        if target.command:
            streams = await stack.enter_async_context(stdio_client(target.parameters))
        else:
            http = importlib.import_module("mcp.client.streamable_http")
            streams = await stack.enter_async_context(http.streamable_http_client(target.url))
        session = await stack.enter_async_context(ClientSession(streams[0], streams[1]))
        await session.initialize()
        yield session


async def client_session(target: Target, client: Any) -> None:
    async with session_of(target) as session:
        tools = (await session.list_tools()).tools
        await drive(client, tools, session.call_tool)


async def mcp_client(target: Target, client: Any) -> None:
    from mcp import Client

    async with Client(target.parameters if target.command else target.url) as server:
        tools = (await server.list_tools()).tools
        await drive(client, tools, server.call_tool)


async def anthropic_async(target: Target, client: Any) -> None:
    from anthropic.lib.tools.mcp import async_mcp_tool

    async with session_of(target) as session:
        tools = (await session.list_tools()).tools
        made = {tool.name: async_mcp_tool(tool, session) for tool in tools}
        await drive(client, tools, lambda name, arguments: made[name].call(arguments))


async def anthropic_sync(target: Target, client: Any) -> None:
    """In threads, each of which asks the event loop for its call."""
    from anthropic.lib.tools.mcp import mcp_tool

    async with session_of(target) as session:
        tools = (await session.list_tools()).tools
        made = {tool.name: mcp_tool(tool, session) for tool in tools}
        await drive(
            client, tools, lambda name, arguments: anyio.to_thread.run_sync(made[name].call, arguments)
        )


async def openai_agents(target: Target, client: Any) -> None:
    from agents import Agent, OpenAIChatCompletionsModel, Runner, set_tracing_disabled
    from agents.mcp import MCPServerStdio, MCPServerStreamableHttp

    set_tracing_disabled(True)
    server: Any
    if target.command:
        command, *arguments = target.command
        server = MCPServerStdio(
            {"command": command, "args": arguments}, name="search-server", client_session_timeout_seconds=200
        )
    else:
        server = MCPServerStreamableHttp(
            {"url": target.url}, name="search-server", client_session_timeout_seconds=200
        )
    async with server:
        agent = Agent(
            name="agent",
            model=OpenAIChatCompletionsModel(model="m", openai_client=client),
            mcp_servers=[server],
        )
        await Runner.run(agent, QUESTION)


async def pydantic_ai(target: Target, client: Any) -> None:
    from fastmcp.client.transports import StdioTransport
    from pydantic_ai import Agent
    from pydantic_ai.mcp import MCPToolset
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    place: Any = StdioTransport(target.command[0], [*target.command[1:]]) if target.command else target.url
    model = OpenAIChatModel("m", provider=OpenAIProvider(openai_client=client))
    async with Agent(model, toolsets=[MCPToolset(place)]) as agent:
        await agent.run(QUESTION)


async def fastmcp_client(target: Target, client: Any) -> None:
    from fastmcp import Client
    from fastmcp.client.transports import StdioTransport

    place: Any = StdioTransport(target.command[0], [*target.command[1:]]) if target.command else target.url
    async with Client(place, init_timeout=200) as server:  # its own 5 s are few where four tests run at once
        await drive(client, await server.list_tools(), server.call_tool)


async def langchain(target: Target, client: Any) -> None:
    from langchain_mcp_adapters.client import MultiServerMCPClient

    connection: dict[str, Any] = {"transport": "streamable_http", "url": target.url}
    if target.command:
        command, *arguments = target.command
        connection = {"transport": "stdio", "command": command, "args": arguments}
    servers = MultiServerMCPClient({"search-server": connection})
    tools = {tool.name: tool for tool in await servers.get_tools()}
    listed = [Listed(name, tool.args_schema) for name, tool in tools.items()]
    await drive(client, listed, lambda name, arguments: tools[name].ainvoke(arguments))


@dataclass(frozen=True)
class Listed:
    name: str
    input_schema: Any


@dataclass(frozen=True)
class Caller:
    """`majors` of the SDK that it is there for, and the package that it needs beside it."""

    run: Callable[[Target, Any], Awaitable[None]]
    package: str
    majors: tuple[int, ...] = (1, 2)

    def skipped(self) -> str:
        """Why it cannot be tried here; empty where it can."""
        if MAJOR not in self.majors:
            return f"not with mcp {MAJOR}"
        try:
            importlib.import_module(self.package)
        except ImportError as error:
            return f"{error.name or self.package} is not installed"
        return ""


CALLERS: dict[str, Caller] = {
    "ClientSession": Caller(client_session, "mcp"),
    "mcp.Client": Caller(mcp_client, "mcp", (2,)),
    "anthropic async_mcp_tool": Caller(anthropic_async, "anthropic.lib.tools.mcp"),
    "anthropic mcp_tool": Caller(anthropic_sync, "anthropic.lib.tools.mcp"),
    "openai-agents MCPServer": Caller(openai_agents, "agents.mcp"),
    "pydantic-ai MCPToolset": Caller(pydantic_ai, "pydantic_ai.mcp"),
    "fastmcp Client": Caller(fastmcp_client, "fastmcp"),
    "langchain MultiServerMCPClient": Caller(langchain, "langchain_mcp_adapters.client", (1,)),
}
