"""The tools that agents of a load test call over HTTP, on one aiohttp session for each event loop.

A tool call through httpx takes five times the CPU of one through aiohttp, on any transport: with it, the
client is the first thing that a load test finds. httpx's own transport also scans its whole connection pool
on every request, and under Locust its liveness check stands still in gevent's patched `select`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal
from urllib.parse import quote
from weakref import WeakKeyDictionary

import aiohttp
import httpx
import httpx_aiohttp
import orjson

from profiler.loop.model import CALL_HEADER, LOOP_HEADER, TRIAL_HEADER
from profiler.loop.tools import SchemaTool, Tool, current_call, tool
from profiler.scenarios import Scenario, ToolSpec

TIMEOUT_SECONDS = 30.0
"""To connect, and between two pieces of an answer."""

_sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = WeakKeyDictionary()
_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()


def tool_session() -> aiohttp.ClientSession:
    """The session of the running event loop; made at the first call, closed by `close_tool_clients`.

    No limit on connections, so a tool never waits for one; a timeout of 30 s.
    """
    loop = asyncio.get_running_loop()
    session = _sessions.get(loop)
    if session is None:
        session = _sessions[loop] = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=_ssl_context()),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=TIMEOUT_SECONDS, sock_read=TIMEOUT_SECONDS
            ),
        )
        # aiohttp silently sends a GET again when a kept-alive connection turns out dead: the server
        # would see two requests where the tool made one. There is no public switch.
        session._retry_connection = False
    return session


def tool_client() -> httpx.AsyncClient:
    """An httpx client on the session of the running event loop, for tools that are written with httpx.

    Inside a load test its requests carry the loop's number and the call's id to the emulator.
    """
    loop = asyncio.get_running_loop()
    client = _clients.get(loop)
    if client is None:
        client = _clients[loop] = httpx.AsyncClient(
            transport=httpx_aiohttp.AiohttpTransport(verify=_ssl_context(), client=tool_session),
            timeout=TIMEOUT_SECONDS,
            event_hooks={"request": [_identify]},
        )
    return client


async def close_tool_clients() -> None:
    """Close the running event loop's session and client, if there are any."""
    loop = asyncio.get_running_loop()
    client, session = _clients.pop(loop, None), _sessions.pop(loop, None)
    if client is not None:
        await client.aclose()
    if session is not None:
        await session.close()


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    """Made once: loading the certificates takes some 20 ms, in which nothing else runs."""
    return ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE"))


def _identity() -> dict[str, str]:
    """The headers that tell the emulator which loop and call a request belongs to."""
    call = current_call.get()
    if call is None or call.number is None:
        return {}
    headers = {LOOP_HEADER: str(call.number), CALL_HEADER: call.call_id}
    if call.trial is not None:
        headers[TRIAL_HEADER] = str(call.trial)
    return headers


async def _identify(request: httpx.Request) -> None:
    request.headers.update(_identity())


async def _ask(method: str, url: str, **options: Any) -> bytes:
    """Ask the server of a tool; returns the body of its answer. Raises aiohttp's `ClientError`, also for a
    status from 400 on, or `TimeoutError`.
    """
    async with tool_session().request(method, url, headers=_identity(), **options) as response:
        answer = await response.read()  # of a refusal too: else its connection could not be used again
        response.raise_for_status()
        return answer


# Where the tools are: `/tools/weather`, `/tools/population` and those of a scenario, under one root URL.

DEFAULT_TOOLS_URL = "http://127.0.0.1:8100"
"""Where `profiler emulate` listens unless told otherwise."""

_load_test_root: str | None = None


def use_tools_at(root: str | None) -> None:
    """Have `tools_url` name the tools of the load test that runs in this process; None: there is none."""
    global _load_test_root
    _load_test_root = root


def tools_url() -> str:
    """The root URL of the tools, without a trailing slash.

    That of the load test under way, else the environment's `PROFILER_TOOLS_URL`, else where `profiler
    emulate` listens by default.
    """
    return (_load_test_root or os.environ.get("PROFILER_TOOLS_URL") or DEFAULT_TOOLS_URL).rstrip("/")


# Two worked tools. `PROFILER_WEATHER_URL=https://wttr.in` points the weather at the real service.


@tool(pure=True)
async def get_weather(city: str, units: Literal["celsius", "fahrenheit"] = "celsius") -> dict[str, Any]:
    """The current weather in a city.

    Args:
        city: Name of the city, such as "Paris".
        units: Unit of the temperature.
    """
    return await _weather(tools_url(), os.environ.get("PROFILER_WEATHER_URL"), city, units)


async def _weather(root: str, service: str | None, city: str, units: str = "celsius") -> dict[str, Any]:
    if service:
        url, query = f"{service.rstrip('/')}/{quote(city)}", {"format": "j1"}
    else:
        url, query = f"{root}/tools/weather", {"city": city, "units": units, "format": "j1"}
    now = orjson.loads(await _ask("GET", url, params=query))["current_condition"][0]
    return {
        "city": city,
        "temperature": float(now["temp_C"] if units == "celsius" else now["temp_F"]),
        "units": units,
        "conditions": now["weatherDesc"][0]["value"],
        "humidity": int(now["humidity"]),
    }


@tool(pure=True)
async def get_population(city: str) -> dict[str, Any]:
    """How many people live in a city.

    Args:
        city: Name of the city, such as "Paris".
    """
    return await _population(tools_url(), city)


async def _population(root: str, city: str) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(await _ask("GET", f"{root}/tools/population", params={"city": city}))
    return found


# The client's side of a scenario's tools: what the agents of a load test can call.


def scenario_tools(
    scenario: Scenario, root: str | None = None, environment: Mapping[str, str] = os.environ
) -> Sequence[Tool]:
    """A tool for each that the scenario names; the worked examples where it names them.

    They ask the server at `root` (None: `tools_url`), now and ever; the weather a service that
    `environment` names.
    """
    root = tools_url() if root is None else root.rstrip("/")
    weather = partial(_weather, root, environment.get("PROFILER_WEATHER_URL"))
    worked: dict[str, Tool] = {
        "get_weather": get_weather.replaced(weather),
        "get_population": get_population.replaced(partial(_population, root)),
    }
    return tuple(worked.get(spec.name) or _http_tool(spec, root) for spec in scenario.tools)


def _http_tool(spec: ToolSpec, root: str) -> Tool:
    return SchemaTool(
        partial(_post, f"{root}{spec.path}"),
        name=spec.name,
        description=spec.description,
        parameters=spec.parameters,
        pure=True,  # the emulator's tools change nothing
    )


async def _post(url: str, /, **arguments: Any) -> str:
    return (await _ask("POST", url, json=arguments)).decode()
