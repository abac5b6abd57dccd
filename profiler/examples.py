"""Two worked tools. They ask the emulator, or whatever the environment names.

`PROFILER_TOOLS_URL` is the root under which `/tools/weather` and `/tools/population` are
found; `PROFILER_WEATHER_URL=https://wttr.in` points the weather at the real service.
"""

from __future__ import annotations

import os
from typing import Any, Literal
from urllib.parse import quote

from profiler.tool_http import tool_client
from profiler.tools import tool

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
