"""One `httpx.AsyncClient` for all tools of a process, on an aiohttp transport.

httpx's own transport scans its whole connection pool on every request, and under Locust its
liveness check stands still in gevent's patched `select`. aiohttp's does neither.
"""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal
from urllib.parse import quote
from weakref import WeakKeyDictionary

import aiohttp
import httpx
import httpx_aiohttp

from profiler.loop.model import CALL_HEADER, LOOP_HEADER, TRIAL_HEADER
from profiler.loop.tools import SchemaTool, Tool, current_call, tool
from profiler.scenarios.schema import Scenario, ToolSpec

_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()


def tool_client() -> httpx.AsyncClient:
    """The client of the running event loop; made at the first call, closed by `close_tool_client`.

    No limit on connections, so a tool never waits for one; a 30 s timeout. Inside a load test
    its requests carry the loop's number and the call's id to the emulator.
    """
    loop = asyncio.get_running_loop()
    client = _clients.get(loop)
    if client is None:
        client = _clients[loop] = httpx.AsyncClient(
            transport=httpx_aiohttp.AiohttpTransport(verify=_ssl_context(), client=_session),
            timeout=30.0,
            event_hooks={"request": [_identify]},
        )
    return client


async def close_tool_client() -> None:
    """Close the running event loop's client, if there is one."""
    client = _clients.pop(asyncio.get_running_loop(), None)
    if client is not None:
        await client.aclose()


def _session() -> aiohttp.ClientSession:
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=_ssl_context()), cookie_jar=aiohttp.DummyCookieJar()
    )
    # aiohttp silently sends a GET again when a kept-alive connection turns out dead: the server
    # would see two requests where the tool made one. There is no public switch.
    session._retry_connection = False
    return session


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    """Made once: loading the certificates takes some 20 ms, in which nothing else runs."""
    return ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE"))


async def _identify(request: httpx.Request) -> None:
    call = current_call.get()
    if call is not None and call.number is not None:
        request.headers[LOOP_HEADER] = str(call.number)
        request.headers[CALL_HEADER] = call.call_id
        if call.trial is not None:
            request.headers[TRIAL_HEADER] = str(call.trial)


# Two worked tools. They ask the emulator, or whatever the environment names.
#
# `PROFILER_TOOLS_URL` is the root under which `/tools/weather` and `/tools/population` are
# found; `PROFILER_WEATHER_URL=https://wttr.in` points the weather at the real service.

DEFAULT_TOOLS_URL = "http://127.0.0.1:8100"
"""Where `profiler emulate` listens unless told otherwise."""


def tools_url() -> str:
    """The root URL of the tools, without a trailing slash."""
    return os.environ.get("PROFILER_TOOLS_URL", DEFAULT_TOOLS_URL).rstrip("/")


@tool(pure=True)
async def get_weather(city: str, units: Literal["celsius", "fahrenheit"] = "celsius") -> dict[str, Any]:
    """The current weather in a city.

    Args:
        city: Name of the city, such as "Paris".
        units: Unit of the temperature.
    """
    service = os.environ.get("PROFILER_WEATHER_URL")
    if service:
        url, query = f"{service.rstrip('/')}/{quote(city)}", {"format": "j1"}
    else:
        url, query = f"{tools_url()}/tools/weather", {"city": city, "units": units, "format": "j1"}
    response = await tool_client().get(url, params=query)
    response.raise_for_status()
    now = response.json()["current_condition"][0]
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
    response = await tool_client().get(f"{tools_url()}/tools/population", params={"city": city})
    response.raise_for_status()
    found: dict[str, Any] = response.json()
    return found


# The client's side of a scenario's tools: what the agents of a load test can call.


def scenario_tools(scenario: Scenario) -> Sequence[Tool]:
    """A tool for each that the scenario names; the worked examples where it names them."""
    worked = {t.name: t for t in (get_weather, get_population)}
    return tuple(worked.get(spec.name) or _http_tool(spec) for spec in scenario.tools)


def _http_tool(spec: ToolSpec) -> Tool:
    return SchemaTool(
        partial(_ask, spec.path),
        name=spec.name,
        description=spec.description,
        parameters=spec.parameters,
        pure=True,  # the emulator's tools change nothing
    )


async def _ask(path: str, /, **arguments: Any) -> str:
    response = await tool_client().post(f"{tools_url()}{path}", json=arguments)
    response.raise_for_status()
    return response.text
