"""The agents of `benchmarks/tune_agent.py`: hand-written loops of a chat model and one tool.

All of them turn what a tool raises into a text for the model, as most agents do.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import aiohttp
from openai import AsyncOpenAI

from profiler.load.agents import AgentContext

SCHEMA = [
    {
        "type": "function",
        "function": {
            "name": "lookup_part",
            "description": "Looks one part up.",
            "parameters": {
                "type": "object",
                "properties": {"number": {"type": "integer"}},
                "required": ["number"],
            },
        },
    }
]

Calls = list[Callable[[], Awaitable[str]]]


def make_swallowing(ctx: AgentContext) -> Callable[[], Awaitable[None]]:
    """What the tool raises is caught around it; the calls of a reply go through `ctx.execute`."""
    return _agent(ctx, ctx.execute)


def make_texts(ctx: AgentContext) -> Callable[[], Awaitable[None]]:
    """The tool catches what it raises by itself, and says so in words of its own."""
    return _agent(ctx, ctx.execute, inside=True)


def make_limited(ctx: AgentContext, max_concurrent_calls: int = 64) -> Callable[[], Awaitable[None]]:
    """A semaphore of the agent's own, which all its loops share."""
    places = asyncio.Semaphore(max_concurrent_calls)

    async def run(*calls: Callable[[], Awaitable[str]]) -> list[str]:
        async def one(call: Callable[[], Awaitable[str]]) -> str:
            async with places:
                return await call()

        return await asyncio.gather(*map(one, calls))

    return _agent(ctx, run)


async def plain(prompt: str) -> str:
    """An agent that nobody wrote for a load test."""
    messages: list[Any] = [{"role": "user", "content": prompt}]
    while True:
        reply = await _client().chat.completions.create(model="m", messages=messages, tools=SCHEMA)
        said = reply.choices[0].message
        if not said.tool_calls:
            return said.content or ""
        messages.append(said.model_dump(exclude_none=True))
        messages += await asyncio.gather(*(_told(one) for one in said.tool_calls))


@functools.cache
def _client() -> AsyncOpenAI:
    return AsyncOpenAI(max_retries=0)


async def _told(call: Any) -> dict[str, str]:
    try:
        result = await TOOLS[call.function.name](**json.loads(call.function.arguments))
    except Exception as error:
        result = str(error)
    return {"role": "tool", "tool_call_id": call.id, "content": result}


async def lookup_part(number: int) -> str:
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{os.environ['PARTS_URL']}/parts/{number}") as response,
    ):
        response.raise_for_status()
        return await response.text()


TOOLS = {"lookup_part": lookup_part}


def _agent(
    ctx: AgentContext, run: Callable[..., Awaitable[list[str]]], inside: bool = False
) -> Callable[[], Awaitable[None]]:
    client = ctx.profiler.instrument(AsyncOpenAI(**ctx.client_options()))
    http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    ctx.on_close(client.close)
    ctx.on_close(http.close)

    async def fetch(number: int) -> str:
        async with http.get(f"{ctx.tools_url}/parts/{number}") as response:
            response.raise_for_status()
            return await response.text()

    async def told(number: int) -> str:
        try:
            return await fetch(number)
        except Exception:
            return "That part cannot be looked up just now."

    look_up = ctx.profiler.tool(told if inside else fetch, name="lookup_part")

    async def call(arguments: str) -> str:
        try:
            return await look_up(**json.loads(arguments))
        except Exception as error:
            return f"The lookup failed: {error}"

    async def one_loop() -> None:
        messages: list[Any] = [{"role": "user", "content": ctx.prompt}]
        while True:
            reply = await client.chat.completions.create(model="m", messages=messages, tools=SCHEMA)
            said = reply.choices[0].message
            if not said.tool_calls:
                return
            messages.append(said.model_dump(exclude_none=True))
            results = await run(*(partial(call, one.function.arguments) for one in said.tool_calls))
            messages += [
                {"role": "tool", "tool_call_id": one.id, "content": result}
                for one, result in zip(said.tool_calls, results, strict=True)
            ]

    return one_loop
