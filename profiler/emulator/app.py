"""The application: from a request to a reply with its due time. No sockets, no sleeping.

Everything about a request is decided when it arrives; `http1` sends the reply when it is due.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import orjson

from profiler.emulator import tool_api
from profiler.emulator.answers import answer
from profiler.emulator.conversation import (
    ApiError,
    Conversation,
    MadeCall,
    Said,
    ToolSets,
    call_tokens,
    limited,
    tokens_of,
)
from profiler.emulator.http1 import Exchange, Reply
from profiler.emulator.ids import MAX_LOOP, Place, decode, encode
from profiler.emulator.journal import Entry, Journal
from profiler.emulator.matching import Handed, Outstanding
from profiler.emulator.scheduler import Scheduler
from profiler.emulator.tape import Tape
from profiler.emulator.wires import CHAT, MESSAGES, Wire, envelope
from profiler.scenario import Scenario, ToolSpec

_JSON = b"content-type: application/json\r\n"
_SSE = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
_ANSWER_TOKENS = 32
_UNMATCHED = 1 << 62
"""Loop numbers from here on are for tool requests that belong to no call."""


class Emulator:
    """State of one emulator: tape, journal, and what clients without headers make necessary."""

    def __init__(
        self, scenario: Scenario, seed: int, scheduler: Scheduler, journal: Journal | None = None
    ) -> None:
        self.scenario = scenario
        self.tape = Tape(scenario, seed)
        self.journal = journal if journal is not None else Journal()
        self._scheduler = scheduler
        self._toolsets = ToolSets()
        self._outstanding = Outstanding()
        self._serial = 0
        self._free_loop = 0
        self._unmatched = 0
        self._started_ns = time.monotonic_ns()
        self._tools_by_path = {spec.path: spec for spec in scenario.tools}
        self._models = frozenset(scenario.model.models)
        self._keys = frozenset(scenario.model.api_keys)
        self._tools_in_flight: dict[str, int] = {}
        self._routes: dict[tuple[bytes, bytes], Callable[[Exchange], None]] = {
            (b"POST", b"/v1/chat/completions"): lambda exchange: self._model(exchange, CHAT),
            (b"POST", b"/v1/messages"): lambda exchange: self._model(exchange, MESSAGES),
            (b"GET", b"/healthz"): lambda exchange: _plain(exchange, b"ok\n"),
            (b"GET", b"/emulator/journal"): self._journal_get,
            (b"DELETE", b"/emulator/journal"): self._journal_clear,
            (b"GET", b"/emulator/stats"): self._stats,
        }
        self._paths = {path for _, path in self._routes}

    def __call__(self, exchange: Exchange) -> None:
        """Answer one request; `exchange.send` is called now, or later by a timer."""
        route = self._routes.get((exchange.method, exchange.path))
        if route is not None:
            route(exchange)
        elif exchange.path.startswith(b"/tools/"):
            self._tool(exchange)
        elif exchange.path in self._paths:
            _error(exchange, 405, f"{exchange.method.decode()} is not allowed here")
        else:
            _error(exchange, 404, f"unknown path {exchange.path.decode('latin-1')}")

    # Model requests

    def _model(self, exchange: Exchange, wire: Wire) -> None:
        headers = exchange.headers
        entry = self.journal.open("model", wire.name, exchange.received_ns)
        trial = headers.get(b"x-toolloop-trial")
        if trial is not None:
            entry.trial = trial.decode("latin-1")
        self._serial += 1
        serial = self._serial
        try:
            talk = self._check(exchange, wire)
            self._say(exchange, wire, talk, entry, serial)
        except ApiError as error:
            self._refuse(exchange, wire, error, entry, serial)

    def _check(self, exchange: Exchange, wire: Wire) -> Conversation:
        try:
            body = orjson.loads(exchange.body)
        except orjson.JSONDecodeError as error:
            raise malformed(wire.provider, str(error)) from None
        if not isinstance(body, dict):
            raise malformed(wire.provider, "expected an object")
        talk = wire.parse(body, self._toolsets)
        return talk

    def _say(self, exchange: Exchange, wire: Wire, talk: Conversation, entry: Entry, serial: int) -> None:
        header = exchange.headers.get(b"x-toolloop-loop")
        loop = self._loop(header, talk)
        tape = self.tape
        places = tape.places(talk, loop)
        input_tokens = len(exchange.body) // 4 + 1
        if places:
            place = places[0]
            calls = tuple(
                MadeCall(encode(call.place, serial << 8 | n), call.name, call.arguments)
                for n, call in enumerate(tape.calls(places, talk.tools, talk.choice))
            )
            timed_tokens = output_tokens = sum(map(call_tokens, calls))
            said = Said(None, calls, "tool_calls", input_tokens, output_tokens)
            if header is None:
                self._hand_out(wire, calls)
        else:
            place = Place(loop, tape.rounds(loop), 0)
            text = answer(talk.results)
            output_tokens = tokens_of(text)
            # The answer's length depends on results; its duration is the tape's.
            timed_tokens = _ANSWER_TOKENS
            said = Said(text, (), "stop", input_tokens, output_tokens)
        entry.loop, entry.round, entry.call = place
        said = limited(said, talk.max_tokens)
        pace = tape.pace(*place)
        token = encode(place, serial)
        first_ns = exchange.received_ns + int(pace.first_token * 1e9)
        created = int(time.time())
        entry.status = 200
        identity = request_headers(wire.provider, serial)
        if talk.stream:
            per_token_ns = pace.per_token * 1e9 * timed_tokens / max(1, output_tokens)
            frames = [
                (first_ns + int(tokens * per_token_ns), payload)
                for tokens, payload in wire.frames(
                    said, talk, token, created, self.scenario.model.tokens_per_event
                )
            ]
            entry.due_ns = first_ns
            entry.streamed = True
            exchange.send(Reply(200, _SSE + identity, due_ns=first_ns, frames=frames, observer=entry))
            return
        entry.due_ns = due_ns = first_ns + int(pace.per_token * 1e9 * timed_tokens)
        body = wire.render(said, talk.model, token, created)
        exchange.send(Reply(200, _JSON + identity, body, due_ns=due_ns, observer=entry))

    def _hand_out(self, wire: Wire, calls: tuple[MadeCall, ...]) -> None:
        prefix = "toolu_" if wire.provider == "anthropic" else "call_"
        for call in calls:
            place = decode(call.token)
            if place is not None:
                self._outstanding.add(
                    call.name, orjson.loads(call.arguments), Handed(place, prefix + call.token)
                )

    def _loop(self, header: bytes | None, talk: Conversation) -> int:
        """The loop's number: from the header, else from the ids in the history, else the next free one."""
        if header is not None and header.isdigit() and (number := int(header)) <= MAX_LOOP:
            if number >= self._free_loop and number < _UNMATCHED:
                self._free_loop = number + 1
            return number
        if talk.call_id is not None:
            place = decode(talk.call_id)
            if place is not None:
                return place.loop
        number = self._free_loop
        self._free_loop += 1
        return number

    def _refuse(self, exchange: Exchange, wire: Wire, error: ApiError, entry: Entry, serial: int) -> None:
        entry.status = error.status
        body = envelope(wire.provider, error, request_id(serial))
        exchange.send(
            Reply(error.status, _JSON + request_headers(wire.provider, serial), body, observer=entry)
        )

    # Tool requests

    def _tool(self, exchange: Exchange) -> None:
        path = exchange.path.decode("latin-1")
        segment, _, rest = path[7:].partition("/")
        spec = self._tools_by_path.get("/tools/" + segment)
        arguments: dict[str, Any] = dict(tool_api.query_arguments(exchange.query))
        if exchange.method == b"POST":
            try:
                body = orjson.loads(exchange.body) if exchange.body else {}
            except orjson.JSONDecodeError:
                body = None
            if not isinstance(body, dict):
                _error(exchange, 400, "the body is not a JSON object")
                return
            arguments |= body
        elif exchange.method not in (b"GET", b"HEAD"):
            _error(exchange, 405, "tools are asked with GET or POST")
            return
        if rest and spec is not None and segment in ("weather", "population"):
            arguments["city"] = unquote(rest)
        elif not segment or rest:
            _error(exchange, 404, f"unknown path {path}")
            return
        self._serve_tool(
            exchange, spec or self.scenario.default_tool, spec.name if spec else segment, arguments
        )

    def _serve_tool(self, exchange: Exchange, spec: ToolSpec, name: str, arguments: dict[str, Any]) -> None:
        headers = exchange.headers
        entry = self.journal.open("tool", "tools", exchange.received_ns)
        entry.tool = name
        trial = headers.get(b"x-toolloop-trial")
        if trial is not None:
            entry.trial = trial.decode("latin-1")
        place = self._place(headers.get(b"x-toolloop-call"), name, arguments, entry)
        entry.loop, entry.round, entry.call = place
        entry.duration_ns = duration_ns = int(self.tape.duration(place, name) * 1e9)
        entry.due_ns = exchange.received_ns + duration_ns
        entry.status = 200
        body = tool_api.respond(name, spec.path, arguments)
        exchange.send(Reply(200, _JSON, body, due_ns=entry.due_ns if duration_ns else 0, observer=entry))

    def _place(self, header: bytes | None, name: str, arguments: dict[str, Any], entry: Entry) -> Place:
        if header is not None:
            entry.call_id = header.decode("latin-1")
            place = decode(entry.call_id)
            if place is not None:
                return place
        else:
            handed = self._outstanding.take(name, arguments)
            if handed is not None:
                entry.call_id = handed.call_id
                return handed.place
        self._unmatched += 1
        return Place(_UNMATCHED + self._unmatched, 0, 0)

    # The emulator's own endpoints

    def _journal_get(self, exchange: Exchange) -> None:
        query = tool_api.query_arguments(exchange.query)
        entries = self.journal.entries(trial=query.get("trial"), kind=query.get("kind"))
        body = {"clock": "monotonic_ns", "dropped": self.journal.dropped, "entries": entries}
        exchange.send(Reply(200, _JSON, orjson.dumps(body)))

    def _journal_clear(self, exchange: Exchange) -> None:
        self.journal.clear()
        exchange.send(Reply(200, _JSON, b'{"cleared":true}'))

    def _stats(self, exchange: Exchange) -> None:
        stats = {
            "scenario": self.scenario.name,
            "uptime_seconds": (time.monotonic_ns() - self._started_ns) / 1e9,
            "cpu_seconds": time.process_time(),
            **self.journal.stats(),
        }
        exchange.send(Reply(200, _JSON, orjson.dumps(stats)))


def request_id(serial: int) -> str:
    """The id of the response with this serial number."""
    return "req_%024x" % ((serial * 0x9E3779B97F4A7C15F39CC060) & 0xFFFFFFFFFFFFFFFFFFFFFFFF)


def request_headers(provider: str, serial: int) -> bytes:
    """The header lines that identify a response."""
    name = b"x-request-id" if provider == "openai" else b"request-id"
    return b"%b: %b\r\n" % (name, request_id(serial).encode())


def malformed(provider: str, problem: str) -> ApiError:
    """The error for a body that is not a JSON object."""
    if provider == "anthropic":
        return ApiError(f"The request body is not valid JSON: {problem}")
    return ApiError(
        "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
        "library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON. If you "
        "have trouble figuring out how to fix this, please contact us through our help center at help.openai.com.)"
    )


def _plain(exchange: Exchange, text: bytes) -> None:
    exchange.send(Reply(200, b"content-type: text/plain; charset=utf-8\r\n", text))


def _error(exchange: Exchange, status: int, message: str) -> None:
    exchange.send(
        Reply(status, _JSON, orjson.dumps({"error": {"message": message, "type": "invalid_request_error"}}))
    )
