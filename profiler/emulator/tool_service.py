"""Tool requests over plain HTTP, and what the tools answer."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple
from urllib.parse import unquote, unquote_plus

import orjson

from profiler.emulator.bodies import BodyError, can_be_written, read_json
from profiler.emulator.conversation import ApiError
from profiler.emulator.draws import Draws, key
from profiler.emulator.http1 import Exchange, HttpReply
from profiler.emulator.journal import Entry, Journal
from profiler.emulator.limits import Rejected
from profiler.emulator.model_service import JSON
from profiler.emulator.openai_requests import envelope
from profiler.emulator.tool_calls import Identity, ToolCalls
from profiler.emulator.words import WORDS
from profiler.loop.model import CALL_HEADER, TRIAL_HEADER
from profiler.scenarios import ToolSpec

_CALL_HEADER, _TRIAL_HEADER = CALL_HEADER.encode(), TRIAL_HEADER.encode()


class ToolService:
    """The endpoints under `/tools/`."""

    def __init__(self, calls: ToolCalls) -> None:
        self._calls = calls
        self._journal = calls.journal
        self._default_tool = calls.scenario.default_tool
        self._by_path = {spec.path: spec for spec in calls.scenario.tools}

    def __call__(self, exchange: Exchange) -> None:
        """Answer one request under `/tools/`."""
        path = exchange.path.decode("latin-1")
        segment, _, rest = path.removeprefix("/tools/").partition("/")
        spec = self._by_path.get("/tools/" + segment)
        arguments: dict[str, Any] = dict(query_arguments(exchange.query))
        if exchange.method == b"POST":
            try:
                body = read_json(exchange.body) if exchange.body else {}
            except BodyError as problem:
                error(self._journal, exchange, 400, str(problem))
                return
            except orjson.JSONDecodeError:
                body = None
            if not isinstance(body, dict):
                error(self._journal, exchange, 400, "the body is not a JSON object")
                return
            if not can_be_written(body):
                error(self._journal, exchange, 400, "the body is nested too deeply")
                return
            arguments |= body
        elif exchange.method not in (b"GET", b"HEAD"):
            error(self._journal, exchange, 405, "tools are asked with GET or POST")
            return
        if rest and segment == "weather":
            arguments["city"] = unquote(rest)  # wttr.in's own form: /weather/Paris?format=j1
        elif not segment or rest:
            error(self._journal, exchange, 404, f"unknown path {path}", log="unknown path")
            return
        name = spec.name if spec else unquote(segment)
        self._serve(exchange, spec or self._default_tool, name, arguments)

    def _serve(self, exchange: Exchange, spec: ToolSpec, name: str, arguments: dict[str, Any]) -> None:
        headers = exchange.headers
        call_id, trial = headers.get(_CALL_HEADER), headers.get(_TRIAL_HEADER)
        identity = Identity(
            None if call_id is None else call_id.decode("latin-1"),
            trial=None if trial is None else trial.decode("latin-1"),
        )
        entry = self._calls.arrive("tools", name, arguments, exchange.received_ns, identity)
        reply = self._reply(name, spec.path or exchange.path.decode("latin-1"), arguments, entry)
        if reply.status != 200:
            self._journal.refused(exchange.method, exchange.path, reply.status, f"fault {entry.fault}")
        leave = self._calls.serve(spec, name, _Request(exchange, reply, entry, self._journal))
        if leave is not None:
            exchange.on_gone = partial(_gone, leave, entry)

    def _reply(self, name: str, path: str, arguments: dict[str, Any], entry: Entry) -> HttpReply:
        if self._calls.fault(entry, "tool_http_500") is not None:
            entry.fault = "tool_http_500"
            entry.status = 500
            return HttpReply(
                500, JSON, b'{"error":{"message":"The tool failed.","type":"tool_error"}}', observer=entry
            )
        entry.status = 200
        return HttpReply(200, JSON, respond(name, path, arguments), observer=entry)


def _gone(leave: Callable[[], None], entry: Entry) -> None:
    leave()
    entry.finished(time.monotonic_ns(), "disconnected")


class _Request(NamedTuple):
    """A plain HTTP request at a tool, and the reply that it gets when the tool has served it."""

    exchange: Exchange
    reply: HttpReply
    entry: Entry
    journal: Journal

    def answer(self, due_ns: int) -> None:
        self.exchange.on_gone = None
        self.reply.due_ns = due_ns if self.entry.duration_ns else 0
        self.exchange.send(self.reply)

    def refuse(self, rejected: Rejected) -> None:
        exchange = self.exchange
        self.journal.refused(exchange.method, exchange.path, rejected.status, rejected.reason)
        exchange.send(refusal_reply(rejected, self.entry))


def refusal_reply(rejected: Rejected, entry: Entry) -> HttpReply:
    """The reply of a tool, or of a gateway before it, that takes no more calls."""
    headers = JSON
    if rejected.retry_ns is not None:
        headers += b"retry-after: %d\r\n" % -(-rejected.retry_ns // 1_000_000_000)
    body = orjson.dumps({"error": {"message": rejected.reason, "type": "rate_limited"}})
    due_ns = entry.due_ns if entry.due_ns > entry.received_ns else 0
    return HttpReply(rejected.status, headers, body, due_ns=due_ns, observer=entry)


def error(journal: Journal, exchange: Exchange, status: int, message: str, log: str | None = None) -> None:
    """A plain error of the emulator itself. `log`: as in `ApiError`."""
    journal.refused(exchange.method, exchange.path, status, log or message)
    exchange.send(HttpReply(status, JSON, envelope(ApiError(message))))


# The answers of the tools: small JSON, a pure function of tool and arguments.

_SKIES = (("Sunny", "113"), ("Partly cloudy", "116"), ("Cloudy", "119"), ("Overcast", "122"), ("Mist", "143"),
          ("Light rain", "296"), ("Moderate rain", "302"), ("Light snow", "326"))  # fmt: skip
_MOST_CITY = 100
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
    city = str(arguments.get("city", "Paris"))
    # What is remembered of a long one would be most of a body.
    if path == "/tools/weather":
        return weather(city) if len(city) <= _MOST_CITY else weather.__wrapped__(city)
    if path == "/tools/population":
        return population(city) if len(city) <= _MOST_CITY else population.__wrapped__(city)
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
