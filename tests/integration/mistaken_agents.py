"""Small agents with one mistake each, which a load test tells their author of: what, and in which line.

`LINE: …` marks the line that is to be named.
"""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from openai import AsyncAzureOpenAI, AsyncOpenAI, OpenAI

from profiler import ToolLoop, tool
from profiler.instrument import Profiler
from profiler.load import AgentContext
from profiler.providers import OpenAIChat

SECONDS = 0.03
LOCK = threading.Lock()
SLOTS = asyncio.Semaphore(3)  # LINE: own_semaphore
REGISTRY: dict[str, Any] = {}


async def get_weather(city: str, units: str = "celsius") -> dict:  # LINE: not_wrapped
    await asyncio.sleep(SECONDS)
    return {"city": city, "units": units}


async def get_population(city: str) -> dict:
    await asyncio.sleep(SECONDS)
    return {"city": city}


async def weather_of_city(city: str, units: str = "celsius") -> dict:  # LINE: renamed_tool
    return await get_weather(city, units)


TOOLS = {"get_weather": get_weather, "get_population": get_population}
SCHEMAS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name} of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
    for name in TOOLS
]


def client_of(ctx: AgentContext, kind: Any = AsyncOpenAI) -> Any:
    client = kind(base_url=ctx.openai_url, api_key="x")
    if kind is AsyncOpenAI:
        ctx.on_close(client.close)
    return client


async def asked(client: Any, messages: list[Any]) -> Any:
    reply = await client.chat.completions.create(model="gpt-4o", messages=messages, tools=SCHEMAS)
    return reply.choices[0].message


def answer(messages: list[Any], message: Any, results: Any) -> None:
    messages.append(message.model_dump(exclude_none=True))
    for call, result in zip(message.tool_calls, results, strict=True):
        messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)})


def runs_of(message: Any, tools: dict[str, Any]) -> list[Any]:
    return [
        partial(tools[call.function.name], **json.loads(call.function.arguments))
        for call in message.tool_calls
    ]


def loop_of(ctx: AgentContext, client: Any, tools: dict[str, Any], other: Any = None) -> Any:
    """The loop that most of these have: right, but for what it is given."""

    async def one(prompt: str) -> None:
        messages: list[Any] = [{"role": "user", "content": prompt}]
        while (message := await asked(other or client, messages)).tool_calls:
            answer(messages, message, await ctx.execute(*runs_of(message, tools)))

    return one


def watched(ctx: AgentContext) -> dict[str, Any]:
    return {name: ctx.profiler.tool(function) for name, function in TOOLS.items()}


def make_right(ctx: AgentContext) -> Any:
    return loop_of(ctx, ctx.profiler.instrument(client_of(ctx)), watched(ctx))


def make_not_wrapped(ctx: AgentContext) -> Any:
    tools = {**watched(ctx), "get_weather": get_weather}
    return loop_of(ctx, ctx.profiler.instrument(client_of(ctx)), tools)


def make_strategy_ignored(ctx: AgentContext) -> Any:
    client, tools = ctx.profiler.instrument(client_of(ctx)), watched(ctx)

    async def one(prompt: str) -> None:
        messages: list[Any] = [{"role": "user", "content": prompt}]
        while (message := await asked(client, messages)).tool_calls:
            calls = [run() for run in runs_of(message, tools)]
            answer(messages, message, await asyncio.gather(*calls))  # LINE: strategy_ignored

    return one


def make_global_registry(ctx: AgentContext) -> Any:
    REGISTRY.update(watched(ctx))
    client = ctx.profiler.instrument(client_of(ctx))

    async def one(prompt: str) -> None:
        messages: list[Any] = [{"role": "user", "content": prompt}]
        while (message := await asked(client, messages)).tool_calls:
            calls = runs_of(message, REGISTRY)
            answer(messages, message, await ctx.execute(*(partial(run, call) for call in calls)))

    async def run(call: Any) -> Any:
        return await call()  # LINE: global_registry

    return one


def make_two_clients(ctx: AgentContext) -> Any:
    client = ctx.profiler.instrument(client_of(ctx))
    planner = AsyncOpenAI(base_url=ctx.openai_url, api_key="x")  # LINE: two_clients
    ctx.on_close(planner.close)
    return loop_of(ctx, client, watched(ctx), other=planner)


def make_sync_client(ctx: AgentContext) -> Any:
    client, tools = ctx.profiler.instrument(client_of(ctx, OpenAI)), watched(ctx)

    async def one(prompt: str) -> None:
        messages: list[Any] = [{"role": "user", "content": prompt}]
        for _ in range(5):
            reply = client.chat.completions.create(  # LINE: sync_client
                model="gpt-4o", messages=messages, tools=SCHEMAS
            )
            message = reply.choices[0].message
            if not message.tool_calls:
                return
            answer(messages, message, await ctx.execute(*runs_of(message, tools)))

    return one


def make_forgotten_loop(ctx: AgentContext) -> Any:
    own = Profiler([])  # in which no loop is ever opened
    client = own.instrument(client_of(ctx))
    tools = {name: own.tool(function) for name, function in TOOLS.items()}

    async def one(prompt: str) -> None:
        messages: list[Any] = [{"role": "user", "content": prompt}]
        for _ in range(5):
            reply = await client.chat.completions.create(  # LINE: forgotten_loop
                model="gpt-4o", messages=messages, tools=SCHEMAS
            )
            message = reply.choices[0].message
            if not message.tool_calls:
                return
            answer(messages, message, await ctx.execute(*runs_of(message, tools)))

    return one


def make_renamed_tool(ctx: AgentContext) -> Any:
    tools = {**watched(ctx), "get_weather": ctx.profiler.tool(weather_of_city)}
    return loop_of(ctx, ctx.profiler.instrument(client_of(ctx)), tools)


def make_errors_as_text(ctx: AgentContext) -> Any:
    async def get_weather(city: str, units: str = "celsius") -> str:
        try:
            await asyncio.sleep(SECONDS)
            raise RuntimeError("no such city")
        except RuntimeError as error:  # LINE: errors_as_text
            return f"Error: {error}"

    tools = {**watched(ctx), "get_weather": ctx.profiler.tool(get_weather)}
    return loop_of(ctx, ctx.profiler.instrument(client_of(ctx)), tools)


def make_nested_agent(ctx: AgentContext) -> Any:
    tools = watched(ctx)

    async def get_weather_by_agent(city: str, units: str = "celsius") -> Any:
        return await ctx.execute(partial(get_weather, city), partial(get_weather, city))  # LINE: nested_agent

    tools["get_weather"] = ctx.profiler.tool(get_weather_by_agent, name="get_weather")
    return loop_of(ctx, ctx.profiler.instrument(client_of(ctx)), tools)


def make_own_semaphore(ctx: AgentContext) -> Any:
    client, tools = ctx.profiler.instrument(client_of(ctx)), watched(ctx)

    async def limited(run: Any) -> Any:
        async with SLOTS:
            return await run()

    async def one(prompt: str) -> None:
        messages: list[Any] = [{"role": "user", "content": prompt}]
        while (message := await asked(client, messages)).tool_calls:
            runs = runs_of(message, tools)
            answer(messages, message, await ctx.execute(*(partial(limited, run) for run in runs)))

    return one


def make_own_tool_loop(ctx: AgentContext) -> Any:
    loop = ToolLoop(
        OpenAIChat(client_of(ctx), model="gpt-4o"), tools=[tool(get_weather), tool(get_population)]
    )

    async def one(prompt: str) -> None:
        await loop.run(prompt)  # LINE: own_tool_loop

    return one


# Plain agents, as they are in an application: nothing of the profiler's in them.

AZURE = "https://somebody.openai.azure.com"


async def on_azure(prompt: str) -> None:
    async with AsyncAzureOpenAI(azure_endpoint=AZURE, api_version="2024-10-21", api_key="k") as client:
        await asked(client, [{"role": "user", "content": prompt}])


async def raises(prompt: str) -> None:
    raise ValueError("no such luck")  # LINE: raises


def plain(prompt: str) -> None:
    """A sync agent with a pool of its own, and a client that would ask the provider."""
    with OpenAI(api_key="sk-mine", base_url="https://api.openai.com/v1") as client:  # LINE: plain
        messages: list[Any] = [{"role": "user", "content": prompt}]
        for _ in range(5):
            reply = client.chat.completions.create(model="gpt-4o", messages=messages, tools=SCHEMAS)
            message = reply.choices[0].message
            if not message.tool_calls:
                return
            with ThreadPoolExecutor(8) as pool:
                runs = runs_of(message, BLOCKING)
                answer(messages, message, list(pool.map(lambda run: run(), runs)))


async def makes_its_tools(prompt: str) -> None:
    async def get_weather(city: str, units: str = "celsius") -> dict:  # LINE: makes_its_tools
        await asyncio.sleep(SECONDS)
        return {"city": city, "units": units}

    tools = {**TOOLS, "get_weather": get_weather}
    async with AsyncOpenAI(api_key="x") as client:
        messages: list[Any] = [{"role": "user", "content": prompt}]
        while (message := await asked(client, messages)).tool_calls:
            answer(messages, message, await asyncio.gather(*(run() for run in runs_of(message, tools))))


def weather_in_a_thread(city: str, units: str = "celsius") -> dict:
    with LOCK:
        time.sleep(SECONDS / 10)
    time.sleep(SECONDS)
    return {"city": city, "units": units}


def population_in_a_thread(city: str) -> dict:
    time.sleep(SECONDS)
    return {"city": city}


BLOCKING = {"get_weather": weather_in_a_thread, "get_population": population_in_a_thread}
