"""Tool requests: their place on the tape, how long they take, and queues at tools of limited capacity."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any
from urllib.parse import unquote, unquote_plus

import orjson

from profiler.emulator.bodies import BodyError, can_be_written, read_json
from profiler.emulator.conversation import ApiError
from profiler.emulator.draws import Draws, Place, key
from profiler.emulator.http1 import Exchange, HttpReply
from profiler.emulator.journal import Entry, Journal
from profiler.emulator.limits import Rejected, ToolCapacity
from profiler.emulator.model_service import JSON, UNMATCHED
from profiler.emulator.openai_requests import envelope
from profiler.emulator.places import Outstanding, Places
from profiler.emulator.scheduler import Scheduler, Timer
from profiler.emulator.tape import Tape
from profiler.emulator.words import WORDS
from profiler.loop.model import CALL_HEADER, TRIAL_HEADER
from profiler.scenarios import Capacity, ToolSpec

_CALL_HEADER, _TRIAL_HEADER = CALL_HEADER.encode(), TRIAL_HEADER.encode()


class ToolService:
    """The endpoints under `/tools/`."""

    def __init__(
        self, tape: Tape, journal: Journal, outstanding: Outstanding, places: Places, scheduler: Scheduler
    ) -> None:
        self._tape = tape
        self._scenario = tape.scenario
        self._journal = journal
        self._outstanding = outstanding
        self._places = places
        self._shares_ids = any(fault.kind == "duplicate_ids" for fault in tape.scenario.faults)
        self._scheduler = scheduler
        self._by_path = {spec.path: spec for spec in tape.scenario.tools}
        self._in_flight: dict[str, int] = {}  # by name; only names with calls in flight, so it stays small
        self._queues: dict[str, ToolQueue] = {}
        self._unmatched = 0
        self._started_ns = time.monotonic_ns()

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
        self._serve(exchange, spec or self._scenario.default_tool, name, arguments)

    def _serve(self, exchange: Exchange, spec: ToolSpec, name: str, arguments: dict[str, Any]) -> None:
        entry = self._journal.open("tool", "tools", exchange.received_ns)
        entry.tool = name
        headers = exchange.headers
        trial = headers.get(_TRIAL_HEADER)
        if trial is not None:
            entry.trial = trial.decode("latin-1")
        place = self._place(headers.get(_CALL_HEADER), name, arguments, entry)
        entry.loop, entry.round, entry.call = place
        entry.duration_ns = duration_ns = int(self._tape.duration(place, name) * 1e9)
        entry.due_ns = exchange.received_ns + duration_ns
        entry.in_flight = in_flight = self._in_flight.get(name, 0)
        self._in_flight[name] = in_flight + 1
        entry.on_finished = partial(self._left, name)
        path = spec.path or exchange.path.decode("latin-1")
        reply = self._reply(place, name, path, arguments, entry)
        if reply.status != 200:
            self._journal.refused(exchange.method, exchange.path, reply.status, f"fault {entry.fault}")
        if spec.capacity is not None:
            self._queue(name, spec.capacity).arrive(exchange, reply, duration_ns, entry)
            return
        reply.due_ns = entry.due_ns if duration_ns else 0
        exchange.send(reply)

    def _left(self, name: str) -> None:
        self._in_flight[name] -= 1
        if not self._in_flight[name]:
            del self._in_flight[name]

    def _queue(self, name: str, capacity: Capacity) -> ToolQueue:
        queue = self._queues.get(name)
        if queue is None:
            if len(self._queues) > 1000:  # any name is a tool: a client could invent them without end
                raise RuntimeError("more than a thousand tools with a capacity")
            state = ToolCapacity(capacity, self._scenario.time_scale, self._started_ns)
            queue = self._queues[name] = ToolQueue(state, self._scheduler, self._journal)
        return queue

    def _reply(
        self, place: Place, name: str, path: str, arguments: dict[str, Any], entry: Entry
    ) -> HttpReply:
        if self._scenario.faults and self._tape.call_fault(place, "tool_http_500") is not None:
            entry.fault = "tool_http_500"
            entry.status = 500
            return HttpReply(
                500, JSON, b'{"error":{"message":"The tool failed.","type":"tool_error"}}', observer=entry
            )
        entry.status = 200
        return HttpReply(200, JSON, respond(name, path, arguments), observer=entry)

    def _place(self, header: bytes | None, name: str, arguments: dict[str, Any], entry: Entry) -> Place:
        """The call's place: from its id, or by matching; a request that belongs to no call gets its own."""
        if header is not None:
            entry.call_id = header.decode("latin-1")
            place = self._places.find(entry.call_id)
            if place is not None and not self._shares_ids:
                return place
            # An id that several calls have, or that the client made up since there was none.
            handed = self._outstanding.take(name, arguments, "" if place is None else entry.call_id)
            if handed is not None:
                return handed.place
            if place is not None:
                return place
        else:
            handed = self._outstanding.take(name, arguments)
            if handed is not None:
                entry.call_id = handed.call_id
                return handed.place
        self._unmatched += 1
        return Place(UNMATCHED + self._unmatched, 0, 0)


class ToolQueue:
    """The requests at a tool of limited capacity, waiting or served; one timer, for the next to end."""

    def __init__(self, state: ToolCapacity, scheduler: Scheduler, journal: Journal) -> None:
        self._state = state
        self._journal = journal
        self._scheduler = scheduler
        self._serial = 0
        self._waiting: dict[int, tuple[Exchange, HttpReply, Entry]] = {}
        self._timer: Timer | None = None

    def arrive(self, exchange: Exchange, reply: HttpReply, work_ns: int, entry: Entry) -> None:
        """Serve, queue or reject one request; its reply is sent when its work is done."""
        now_ns = exchange.received_ns
        self._end(self._state.advance(now_ns))
        self._serial = serial = self._serial + 1
        rejected = self._state.arrive(serial, work_ns, now_ns)
        if rejected is not None:
            self._journal.refused(exchange.method, exchange.path, rejected.status, rejected.reason)
            _reject(exchange, rejected, entry)
            return
        self._waiting[serial] = (exchange, reply, entry)
        exchange.on_gone = lambda: self._leave(serial)
        self._arm()

    def _leave(self, serial: int) -> None:
        waited = self._waiting.pop(serial, None)
        if waited is not None:
            self._end(self._state.advance(time.monotonic_ns()))
            self._state.leave(serial)
            waited[2].finished(time.monotonic_ns(), "disconnected")
            self._arm()

    def _tick(self) -> None:
        self._timer = None
        self._end(self._state.advance(time.monotonic_ns()))
        self._arm()

    def _end(self, ended: list[tuple[int, int]]) -> None:
        for serial, when_ns in ended:
            waited = self._waiting.pop(serial, None)
            if waited is not None:
                exchange, reply, entry = waited
                exchange.on_gone = None
                entry.due_ns = when_ns
                exchange.send(reply)

    def _arm(self) -> None:
        due_ns = self._state.next_ns()
        if self._timer is not None:
            if due_ns is not None and self._timer.due_ns <= due_ns:
                return  # fires early, looks again
            self._timer.cancel()
            self._timer = None
        if due_ns is not None:
            self._timer = self._scheduler.at(due_ns, self._tick)


def _reject(exchange: Exchange, rejected: Rejected, entry: Entry) -> None:
    entry.status = rejected.status
    entry.due_ns = exchange.received_ns
    entry.fault = None  # a call that was not served met none
    headers = JSON
    if rejected.retry_ns is not None:
        headers += b"retry-after: %d\r\n" % -(-rejected.retry_ns // 1_000_000_000)
    body = orjson.dumps({"error": {"message": rejected.reason, "type": "rate_limited"}})
    exchange.send(HttpReply(rejected.status, headers, body, observer=entry))


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
