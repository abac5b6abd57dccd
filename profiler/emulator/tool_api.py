"""What the tool endpoints answer: small JSON, a pure function of tool and arguments. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_plus

import orjson

from profiler.emulator.draws import Draws, key
from profiler.emulator.words import WORDS

_SKIES = (("Sunny", "113"), ("Partly cloudy", "116"), ("Cloudy", "119"), ("Overcast", "122"), ("Mist", "143"),
          ("Light rain", "296"), ("Moderate rain", "302"), ("Light snow", "326"))  # fmt: skip
_WINDS = ("N", "NNE", "NE", "E", "ESE", "SE", "S", "SSW", "SW", "W", "WNW", "NW")


def query_arguments(query: bytes | None) -> dict[str, str]:
    """The parameters of a query string; the last of a repeated name counts."""
    if not query:
        return {}
    arguments = {}
    for part in query.decode("latin-1").split("&"):
        name, _, value = part.partition("=")
        if "%" in part or "+" in part:
            name, value = unquote_plus(name), unquote_plus(value)
        if name:
            arguments[name] = value
    return arguments


def respond(name: str, path: str, arguments: Mapping[str, Any]) -> bytes:
    """The JSON body of tool `name` at `path` for `arguments`."""
    if path == "/tools/weather":
        return weather(str(arguments.get("city", "Paris")))
    if path == "/tools/population":
        return population(str(arguments.get("city", "Paris")))
    return generic(name, arguments)


def generic(name: str, arguments: Mapping[str, Any]) -> bytes:
    """The answer of a tool that has no data of its own: the same for the same arguments."""
    canonical = orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS)
    draws = Draws(key(zlib.crc32(name.encode()), zlib.crc32(canonical)))
    finding = f"{draws.choice(WORDS)} {draws.choice(WORDS)}"
    return b'{"tool":%b,"arguments":%b,"result":"%b","score":%d}' % (
        orjson.dumps(name), canonical, finding.encode(), draws.below(101))  # fmt: skip


@lru_cache(maxsize=4096)
def population(city: str) -> bytes:
    """`{"city", "population", "year"}`."""
    draws = Draws(key(2, zlib.crc32(city.encode())))
    return orjson.dumps({"city": city, "population": 100_000 + draws.below(12_000) * 1_000, "year": 2024})


@lru_cache(maxsize=4096)
def weather(city: str) -> bytes:
    """wttr.in's `format=j1` shape: every value a string, the current condition first."""
    draws = Draws(key(1, zlib.crc32(city.encode())))
    celsius = draws.below(38) - 5
    sky, code = draws.choice(_SKIES)
    days = []
    for day in range(3):
        low, high = celsius - 1 - draws.below(5), celsius + 1 + draws.below(5)
        hour = {"time": "1200", **_temperature("temp{}", high), "chanceofrain": str(draws.below(101))}
        days.append(
            {
                "date": f"2025-06-{11 + day}",
                **_temperature("mintemp{}", low),
                **_temperature("maxtemp{}", high),
                **_temperature("avgtemp{}", (low + high) // 2),
                "sunHour": f"{4 + draws.below(10)}.0",
                "uvIndex": str(draws.below(10)),
                "hourly": [{**hour, "weatherCode": code, "weatherDesc": [{"value": sky}]}],
            }
        )
    current = {
        **_temperature("temp_{}", celsius),
        **_temperature("FeelsLike{}", celsius - 1),
        "weatherCode": code,
        "weatherDesc": [{"value": sky}],
        "humidity": str(30 + draws.below(65)),
        "pressure": str(990 + draws.below(45)),
        "cloudcover": str(draws.below(101)),
        "precipMM": f"0.{draws.below(10)}",
        "uvIndex": str(draws.below(10)),
        "visibility": "10",
        "windspeedKmph": str(draws.below(45)),
        "windspeedMiles": str(draws.below(28)),
        "winddir16Point": draws.choice(_WINDS),
        "winddirDegree": str(draws.below(360)),
        "observation_time": "12:00 PM",
        "localObsDateTime": "2025-06-11 12:00 PM",
    }
    area = {
        "areaName": [{"value": city}],
        "country": [{"value": ""}],
        "region": [{"value": ""}],
        "latitude": f"{draws.below(120) - 50}.0",
        "longitude": f"{draws.below(340) - 170}.0",
        "population": "0",
        "weatherUrl": [{"value": ""}],
    }
    request = {"type": "City", "query": city}
    return orjson.dumps(
        {"current_condition": [current], "nearest_area": [area], "request": [request], "weather": days}
    )


def _temperature(name: str, celsius: int) -> dict[str, str]:
    """The same temperature under two keys, as wttr.in has it: `name` with C and with F."""
    return {name.format("C"): str(celsius), name.format("F"): str(round(celsius * 9 / 5 + 32))}
