"""Model requests: from a request to a reply with its due time, for all model APIs.

Everything about a request is decided when it arrives: validation, place on the tape, fault, quota,
content, timing. `http1` sends the reply when it is due.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from profiler.emulator import anthropic_messages, openai_chat, openai_responses
from profiler.emulator import limits as rate_headers
from profiler.emulator.conversation import (
    ApiError,
    Conversation,
    Frame,
    Handed,
    MadeCall,
    Outstanding,
    Said,
    answer,
    call_tokens,
    limited,
    tokens_of,
)
from profiler.emulator.draws import Place, decode, encode
from profiler.emulator.http1 import Ending, Exchange, Reply
from profiler.emulator.journal import Entry, Journal
from profiler.emulator.limits import KeyQuota
from profiler.emulator.tape import Tape
from profiler.loop.model import LOOP_HEADER, TRIAL_HEADER
from profiler.scenarios.schema import Fault, FaultKind

JSON = b"content-type: application/json\r\n"
SSE = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"

_LOOP_HEADER, _TRIAL_HEADER = LOOP_HEADER.encode(), TRIAL_HEADER.encode()

UNMATCHED = 1 << 62
"""Loop numbers from here on are for tool requests that belong to no call."""

_ANSWER_TOKENS = 32
_MAX_KEYS = 10_000
_FAULT_RETRY_NS = 1_000_000_000
_DEFAULT_MODELS = ("gpt-4o", "gpt-4o-mini", "gpt-4.1", "claude-sonnet-5-5", "claude-haiku-5-5")

Headers = dict[bytes, bytes]


class Wire(NamedTuple):
    """One model API. `name` is its label in journal and metrics."""

    name: str
    provider: str
    parse: Callable[[dict[str, Any], Headers], Conversation]
    render: Callable[[Said, Conversation, str, int], bytes]
    frames: Callable[[Said, Conversation, str, int, int], list[Frame]]


class ModelService:
    """Chat Completions, Responses and Messages on one tape."""

    def __init__(self, tape: Tape, journal: Journal, outstanding: Outstanding) -> None:
        self._tape = tape
        self._scenario = scenario = tape.scenario
        self._journal = journal
        self._outstanding = outstanding
        self._serial = 0
        self._free_loop = 0
        self._models = frozenset(scenario.model.models)
        self._keys = frozenset(scenario.model.api_keys)
        self._quotas: dict[tuple[str, bytes], KeyQuota] = {}
        self._seen: dict[tuple[str | None, Place], int] = {}
        self._store = store = openai_responses.Store()
        self.chat = Wire(
            "chat",
            "openai",
            lambda body, headers: openai_chat.parse(body),
            openai_chat.render,
            openai_chat.frames,
        )
        self.responses = Wire(
            "responses",
            "openai",
            lambda body, headers: openai_responses.parse(body, store),
            openai_responses.render,
            openai_responses.frames,
        )
        self.messages = Wire(
            "messages",
            "anthropic",
            lambda body, headers: anthropic_messages.parse(
                body, threads=b"message-threads" in headers.get(b"anthropic-beta", b"")
            ),
            anthropic_messages.render,
            anthropic_messages.frames,
        )

    def complete(self, exchange: Exchange, wire: Wire) -> None:
        """Answer a model request of API `wire`."""
        entry = self._journal.open("model", wire.name, exchange.received_ns)
        headers = exchange.headers
        trial = headers.get(_TRIAL_HEADER)
        if trial is not None:
            entry.trial = trial.decode("latin-1")
        entry.attempt = _number(headers.get(b"x-stainless-retry-count")) or 0
        self._serial = serial = self._serial + 1
        entry.request_id = _request_id(serial)
        try:
            key = self._authorize(headers, wire.provider)
        except ApiError as error:
            self._refuse(exchange, wire, error, entry, b"")
            return
        quota = self._quota(key, wire.provider, exchange.received_ns)
        try:
            talk = self._check(exchange, wire)
            self._say(exchange, wire, talk, entry, serial, quota)
        except ApiError as error:
            self._refuse(
                exchange, wire, error, entry, self._limits(wire.provider, quota, exchange.received_ns)
            )

    def count_tokens(self, exchange: Exchange) -> None:
        """Anthropic's `/v1/messages/count_tokens`."""
        body = b'{"input_tokens":%d}' % (len(exchange.body) // 4 + 1)
        exchange.send(Reply(200, JSON + self._identity("anthropic"), body))

    def list_models(self, exchange: Exchange) -> None:
        """`/v1/models`, in the shape of the provider whose SDK asks."""
        names = self._scenario.model.models or _DEFAULT_MODELS
        self._serial += 1
        if b"anthropic-version" in exchange.headers:
            rows = [
                {"type": "model", "id": name, "display_name": name, "created_at": "2025-01-01T00:00:00Z"}
                for name in names
            ]
            body = {"data": rows, "has_more": False, "first_id": names[0], "last_id": names[-1]}
            exchange.send(Reply(200, JSON + self._identity("anthropic"), orjson.dumps(body)))
            return
        data = [
            {"id": name, "object": "model", "created": 1735689600, "owned_by": "emulator"} for name in names
        ]
        exchange.send(
            Reply(200, JSON + self._identity("openai"), orjson.dumps({"object": "list", "data": data}))
        )

    # Before the tape

    def _authorize(self, headers: Headers, provider: str) -> bytes:
        """The API key of a request; raises 401 where the scenario knows its keys."""
        authorization = headers.get(b"authorization", b"")
        bearer = authorization[7:] if authorization[:7].lower() == b"bearer " else b""
        key = headers.get(b"x-api-key", bearer) if provider == "anthropic" else bearer
        if self._keys and key.decode("latin-1") not in self._keys:
            if provider == "anthropic":
                message = "invalid x-api-key" if key else "x-api-key header is required"
                raise ApiError(message, status=401, kind="authentication_error")
            if not key:
                raise ApiError(
                    "You didn't provide an API key. You need to provide your API key in an Authorization"
                    " header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
                    status=401,
                )
            shown = key[:3].decode("latin-1") + "***"
            raise ApiError(
                f"Incorrect API key provided: {shown}. You can find your API key at "
                "https://platform.openai.com/account/api-keys.",
                status=401,
                code="invalid_api_key",
            )
        return key

    def _quota(self, key: bytes, provider: str, now_ns: int) -> KeyQuota | None:
        spec, scale = self._scenario.quota, self._scenario.time_scale
        if spec is None or scale == 0:  # without time there is no rate
            return None
        quota = self._quotas.get((provider, key))
        if quota is None:
            if len(self._quotas) >= _MAX_KEYS:
                self._quotas.pop(next(iter(self._quotas)))
            quota = KeyQuota(
                spec, split_tokens=provider == "anthropic", minute_ns=60e9 * scale, now_ns=now_ns
            )
            self._quotas[provider, key] = quota
        return quota

    def _check(self, exchange: Exchange, wire: Wire) -> Conversation:
        try:
            body = orjson.loads(exchange.body)
        except orjson.JSONDecodeError as error:
            raise _malformed(wire.provider, str(error)) from None
        if not isinstance(body, dict):
            raise _malformed(wire.provider, "expected an object")
        talk = wire.parse(body, exchange.headers)
        if self._models and talk.model not in self._models:
            raise _unknown_model(wire.name, talk.model)
        return talk

    def _loop(self, header: bytes | None, talk: Conversation) -> int:
        """The loop's number: from the header, else from the ids in the history, else the next free one."""
        number = _number(header)
        if number is not None:
            if number >= self._free_loop:
                self._free_loop = number + 1
            return number
        if talk.call_id is not None:
            place = decode(talk.call_id)
            if place is not None:
                return place.loop
        return self._free_loop  # taken once the request is admitted: a refused one will be tried again

    # What is said, and when

    def _say(
        self,
        exchange: Exchange,
        wire: Wire,
        talk: Conversation,
        entry: Entry,
        serial: int,
        quota: KeyQuota | None,
    ) -> None:
        header = exchange.headers.get(_LOOP_HEADER)
        tape = self._tape
        loop = self._loop(header, talk)
        places = tape.places(talk, loop)
        place = places[0] if places else Place(loop, tape.rounds(loop), 0)
        entry.loop, entry.round, entry.call = place
        input_tokens = talk.earlier_tokens + len(exchange.body) // 4 + 1
        said, timed_tokens = self._content(wire, talk, places, serial, input_tokens, entry)
        if quota is not None:
            refusal = quota.admit(said.input_tokens, said.output_tokens, exchange.received_ns)
            if refusal is not None:
                # Nothing is announced for concurrency; a tenth of a second, scaled, is our own word.
                retry_ns = refusal.retry_ns or int(1e8 * self._scenario.time_scale)
                error = rate_headers.refusal_error(wire.provider, refusal, talk.model)
                limits = self._limits(wire.provider, quota, exchange.received_ns)
                limits += rate_headers.retry_headers(wire.provider, retry_ns)
                self._refuse(exchange, wire, error, entry, limits)
                return
            entry.on_finished = quota.release
        if loop == self._free_loop:
            self._free_loop += 1
        if header is None and said.calls:
            self._hand_out(wire, places, said.calls)
        fault = self._fault(exchange, place, entry) if self._scenario.faults else None
        if fault is not None:
            error_of = status_error(fault.kind, wire.provider)
            if error_of is not None:
                limits = self._limits(wire.provider, quota, exchange.received_ns)
                if error_of.status == 429:
                    retry_ns = int(_FAULT_RETRY_NS * self._scenario.time_scale)
                    limits += rate_headers.retry_headers(wire.provider, retry_ns)
                self._refuse(exchange, wire, error_of, entry, limits)
                return
        token = _token(serial)
        if talk.carried is not None and (fault is None or fault.kind == "slow_first_byte"):
            self._store.put("resp_" + token, openai_responses.after(talk.carried, said))
        self._send(exchange, wire, talk, said, timed_tokens, place, token, entry, fault, quota)

    def _content(
        self,
        wire: Wire,
        talk: Conversation,
        places: list[Place],
        serial: int,
        input_tokens: int,
        entry: Entry,
    ) -> tuple[Said, int]:
        """What the model says, and the tokens that its duration counts."""
        if places:
            calls = tuple(
                MadeCall(encode(call.place, serial << 8 | n), call.name, call.arguments)
                for n, call in enumerate(self._tape.calls(places, talk.tools, talk.choice))
            )
            if self._scenario.faults:
                calls = self._spoil(wire, talk, places, calls, entry)
            tokens = sum(map(call_tokens, calls))
            said = Said(None, calls, "tool_calls", input_tokens, tokens)
        else:
            text = answer(talk.results)
            # The answer's length depends on the results; its duration is the tape's alone.
            said, tokens = Said(text, (), "stop", input_tokens, tokens_of(text)), _ANSWER_TOKENS
        cut = limited(said, talk.max_tokens)
        return cut, tokens if cut is said else min(tokens, cut.output_tokens)

    def _spoil(
        self, wire: Wire, talk: Conversation, places: list[Place], calls: tuple[MadeCall, ...], entry: Entry
    ) -> tuple[MadeCall, ...]:
        spoilt = []
        for place, call in zip(places, calls, strict=True):
            fault = self._tape.call_fault(place, "malformed_arguments", "unknown_tool", "wrong_type")
            # A whole Anthropic body holds arguments as an object, which cannot be malformed.
            if fault is None or (
                fault.kind == "malformed_arguments" and wire.provider == "anthropic" and not talk.stream
            ):
                spoilt.append(call)
            else:
                entry.fault = fault.kind
                spoilt.append(spoiled(call, fault.kind))
        return tuple(spoilt)

    def _fault(self, exchange: Exchange, place: Place, entry: Entry) -> Fault | None:
        attempt = entry.attempt
        if b"x-stainless-retry-count" not in exchange.headers:
            # A client that does not number its attempts: the same place again is the next one.
            seen = self._seen
            attempt = seen.get((entry.trial, place), 0)
            seen[entry.trial, place] = attempt + 1
            if len(seen) > _MAX_KEYS:
                seen.pop(next(iter(seen)))
        fault = self._tape.model_fault(place, attempt)
        if fault is not None:
            entry.fault = fault.kind
        return fault

    def _send(
        self,
        exchange: Exchange,
        wire: Wire,
        talk: Conversation,
        said: Said,
        timed_tokens: int,
        place: Place,
        token: str,
        entry: Entry,
        fault: Fault | None,
        quota: KeyQuota | None,
    ) -> None:
        received_ns = exchange.received_ns
        pace = self._tape.pace(*place)
        first_ns = received_ns + int(pace.first_token * 1e9)
        ending: Ending = "complete"
        if fault is not None:
            wait_ns = int(fault.seconds * self._scenario.time_scale * 1e9)
            if fault.kind in ("reset", "hang"):
                due_ns = received_ns + wait_ns if fault.kind == "hang" else first_ns
                entry.due_ns = 0 if fault.kind == "hang" else due_ns
                exchange.send(Reply(0, b"", due_ns=due_ns, ending="reset", observer=entry))
                return
            if fault.kind == "slow_first_byte":
                first_ns += wait_ns
            elif fault.kind == "truncated_stream":
                ending = "cut"
        entry.status = 200
        created = int(time.time())
        identity = self._identity(wire.provider)
        limits = self._limits(wire.provider, quota, received_ns)
        if not talk.stream:
            due_ns = first_ns + int(pace.per_token * 1e9 * timed_tokens)
            entry.due_ns = due_ns
            body = wire.render(said, talk, token, created)
            headers = JSON + identity + limits
            if wire.provider == "openai":
                headers += b"openai-processing-ms: %d\r\n" % ((due_ns - received_ns) // 1_000_000)
            wait = due_ns if due_ns > received_ns else 0
            exchange.send(Reply(200, headers, body, due_ns=wait, ending=ending, observer=entry))
            return
        entry.due_ns = first_ns
        entry.streamed = True
        frames = wire.frames(said, talk, token, created, self._scenario.model.tokens_per_event)
        if fault is not None and fault.kind in ("truncated_stream", "stream_error"):
            half = len(frames) // 2
            frames = frames[:half]
            if fault.kind == "stream_error":
                frames.append((frames[-1][0], error_frame(wire.name, half)))
        # Scaled so that an answer takes the tape's time whatever its length.
        per_token_ns = pace.per_token * 1e9 * timed_tokens / max(1, said.output_tokens)
        timed = [(first_ns + int(tokens * per_token_ns), payload) for tokens, payload in frames]
        headers = SSE + identity + limits
        exchange.send(Reply(200, headers, due_ns=first_ns, frames=timed, ending=ending, observer=entry))

    def _hand_out(self, wire: Wire, places: list[Place], calls: tuple[MadeCall, ...]) -> None:
        prefix = "toolu_" if wire.provider == "anthropic" else "call_"
        for place, call in zip(places, calls, strict=False):  # max_tokens may have cut the last ones
            self._outstanding.add(call.name, call.arguments, Handed(place, prefix + call.token))

    # Headers and refusals

    def _identity(self, provider: str) -> bytes:
        ident = _request_id(self._serial).encode()
        if provider == "openai":
            return b"x-request-id: %b\r\nopenai-version: 2020-10-01\r\n" % ident
        return b"request-id: %b\r\nanthropic-organization-id: %b\r\n" % (
            ident,
            rate_headers.ORGANIZATION.encode(),
        )

    def _limits(self, provider: str, quota: KeyQuota | None, now_ns: int) -> bytes:
        if quota is None:
            return rate_headers.UNLIMITED[provider]
        return rate_headers.headers(provider, quota, now_ns, time.time())

    def _refuse(self, exchange: Exchange, wire: Wire, error: ApiError, entry: Entry, limits: bytes) -> None:
        entry.status = error.status
        if wire.provider == "openai":
            body = openai_chat.envelope(error)
        else:
            body = anthropic_messages.envelope(error, _request_id(self._serial))
        headers = JSON + self._identity(wire.provider) + limits
        exchange.send(Reply(error.status, headers, body, observer=entry))


def _number(header: bytes | None) -> int | None:
    """A header's whole number below `UNMATCHED`; None for what is none."""
    if header is None or len(header) > 18 or not header.isdigit():
        return None
    return int(header)


def _token(serial: int) -> str:
    """24 hexadecimal digits, different for every response of a process."""
    return "%024x" % ((serial * 0x9E3779B97F4A7C15F39CC061) & 0xFFFFFFFFFFFFFFFFFFFFFFFF)


def _request_id(serial: int) -> str:
    return "req_" + _token(serial)


def _malformed(provider: str, problem: str) -> ApiError:
    if provider == "anthropic":
        return ApiError(f"The request body is not valid JSON: {problem}")
    return ApiError(
        "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your"
        " HTTP library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid"
        " JSON. If you have trouble figuring out how to fix this, please contact us through our help center"
        " at help.openai.com.)"
    )


def _unknown_model(api: str, model: str) -> ApiError:
    if api == "messages":
        return ApiError(f"model: {model}", status=404, kind="not_found_error")
    if api == "responses":
        return ApiError(
            f"The requested model '{model}' does not exist.", param="model", code="model_not_found"
        )
    return ApiError(
        f"The model `{model}` does not exist or you do not have access to it.",
        status=404,
        code="model_not_found",
    )


# What each fault does to a response; which request meets which fault is the tape's.

UNKNOWN_TOOL = "nonexistent_tool"

_STATUS: dict[str, tuple[int, str, str, str]] = {
    # status, OpenAI type, Anthropic type, message
    "http_500": (500, "server_error", "api_error", "The server had an error while processing your request."),
    "http_503": (
        503,
        "server_error",
        "api_error",
        "The engine is currently overloaded, please try again later.",
    ),
    "http_529": (529, "server_error", "overloaded_error", "Overloaded"),
    "http_429": (429, "requests", "rate_limit_error", "Rate limit reached (an injected fault)."),
}


def status_error(kind: FaultKind, provider: str) -> ApiError | None:
    """The error that a fault of HTTP status answers with; None for the other kinds."""
    if kind not in _STATUS:
        return None
    status, openai, anthropic, message = _STATUS[kind]
    code = "rate_limit_exceeded" if status == 429 and provider == "openai" else None
    return ApiError(message, status=status, kind=openai if provider == "openai" else anthropic, code=code)


def error_frame(api: str, sequence: int) -> bytes:
    """An error in mid-stream, after HTTP 200."""
    if api == "messages":
        error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        return b"event: error\ndata: %b\n\n" % orjson.dumps(error)
    message = "The server had an error while processing your request."
    if api == "responses":
        event = {
            "type": "error",
            "code": "server_error",
            "message": message,
            "param": None,
            "sequence_number": sequence,
        }
        return b"event: error\ndata: %b\n\n" % orjson.dumps(event)
    return b"data: %b\n\n" % orjson.dumps(
        {"error": {"message": message, "type": "server_error", "param": None, "code": None}}
    )


def spoiled(call: MadeCall, kind: FaultKind) -> MadeCall:
    """A call with malformed arguments, an unknown tool name, or an argument of the wrong type."""
    if kind == "unknown_tool":
        return call._replace(name=UNKNOWN_TOOL)
    if kind == "malformed_arguments":
        return call._replace(arguments=call.arguments[:-1])
    arguments = orjson.loads(call.arguments)
    name = next(iter(arguments), "unexpected")
    # An array of an object is what no scalar, string, array of strings or object parameter takes.
    return call._replace(arguments=orjson.dumps({**arguments, name: [{"unexpected": None}]}).decode())
