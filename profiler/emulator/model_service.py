"""Model requests: from a request to a reply with its due time, for all model APIs.

Everything about a request is decided when it arrives: validation, place on the tape, fault, quota,
content, timing. `http1` sends the reply when it is due.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import orjson
from msgspec.structs import replace

from profiler.emulator import anthropic_messages, limits, openai_chat, openai_responses
from profiler.emulator.bodies import BodyError, read_json
from profiler.emulator.conversation import (
    ApiError,
    Conversation,
    Finish,
    MadeCall,
    Said,
    answer,
    call_tokens,
    limited,
    tokens_of,
    unnamed,
)
from profiler.emulator.dialects import dialect, short_id
from profiler.emulator.draws import Place, encode
from profiler.emulator.faults import (
    STATUS,
    ServerTool,
    applies,
    error_frame,
    odd_calls,
    spoiled,
    status_error,
)
from profiler.emulator.http1 import Ending, Exchange, HttpReply, Payload
from profiler.emulator.journal import Entry, Journal
from profiler.emulator.openai_requests import envelope
from profiler.emulator.places import Handed, Outstanding, Places
from profiler.emulator.replies import Reply, in_order
from profiler.emulator.tape import Tape
from profiler.limits.token_bucket import QuotaState
from profiler.loop.model import LOOP_HEADER, TRIAL_HEADER
from profiler.scenarios import WIRE_FAULTS, Fault

JSON = b"content-type: application/json\r\n"
SSE = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"

_LOOP_HEADER, _TRIAL_HEADER = LOOP_HEADER.encode(), TRIAL_HEADER.encode()
_ATTEMPT_HEADER = b"x-stainless-retry-count"  # of the SDKs of both providers

UNMATCHED = 1 << 62
"""Loop numbers from here on are for tool requests that belong to no call."""

_ANSWER_TOKENS = 32
"""An answer takes as long as so many tokens, whatever its length."""

_MOST_MODEL = 256
"""Characters of a model's name, which each piece of a streamed reply repeats."""

_MAX_KEYS = 10_000
"""The most entries that clients can add to a dictionary: quotas by API key, attempts by place."""

_DEFAULT_MODELS = ("gpt-4o", "gpt-4o-mini", "gpt-4.1", "claude-sonnet-5-5", "claude-haiku-5-5")

Headers = dict[bytes, bytes]


class Wire(NamedTuple):
    """One model API. `name` is its label in journal and metrics.

    `style`: the provider or the dialect whose headers tell of limits. `reasoning_tokens`: those of a reply
    where the scenario says nothing of them.
    """

    name: str
    provider: str
    style: str
    reasoning_tokens: int
    parse: Callable[[dict[str, Any], Exchange], Conversation]


class _Request(msgspec.Struct, eq=False):
    """A model request on its way. `quota`: that of its key, once the key is known; None without one.

    `token`: what its ids are made of. `odd`: the wire faults of its reply, by kind.
    """

    exchange: Exchange
    wire: Wire
    entry: Entry
    serial: int
    token: str
    quota: QuotaState | None = None
    odd: dict[str, Fault] = msgspec.field(default_factory=dict)


class ModelService:
    """Chat Completions, Responses and Messages on one tape."""

    def __init__(self, tape: Tape, journal: Journal, outstanding: Outstanding, places: Places) -> None:
        self._tape = tape
        self._scenario = scenario = tape.scenario
        self._journal = journal
        self._outstanding = outstanding
        self._places = places
        self._serial = 0
        self._free_loop = 0
        self._models = frozenset(scenario.model.models)
        self._keys = frozenset(scenario.model.api_keys)
        self._tells_clients_apart = bool(self._keys) or scenario.quota is not None
        self._quotas: dict[tuple[str, bytes], QuotaState] = {}
        self._attempts: dict[tuple[str | None, Place], int] = {}
        self._store = store = openai_responses.Store()
        self._faulty = bool(scenario.faults)
        # What this server sends in an odd form has to be accepted in it.
        self._lenient = lenient = any(fault.kind in WIRE_FAULTS for fault in scenario.faults)
        self._dialect = dialect(scenario.model.dialect, scenario.model.refuses, lenient=lenient)
        spoken, plain = self._dialect, dialect("openai").reasoning_tokens
        self.chat = Wire("chat", "openai", spoken.name, spoken.reasoning_tokens, self._parse_chat)
        self.responses = Wire(
            *("responses", "openai", "openai", plain),
            lambda body, _: openai_responses.parse(body, store, lenient=lenient),
        )
        self.messages = Wire(
            *("messages", "anthropic", "anthropic", plain),
            lambda body, exchange: anthropic_messages.parse(
                body,
                threads=b"message-threads" in exchange.headers.get(b"anthropic-beta", b""),
                lenient=lenient,
            ),
        )

    def _parse_chat(self, body: dict[str, Any], exchange: Exchange) -> Conversation:
        spoken = self._dialect
        spoken.check_target(exchange.path, exchange.query)
        deployment = spoken.model_of(exchange.path)
        if deployment is not None:
            body["model"] = deployment
        spoken.check_fields(body)
        talk = openai_chat.parse(body, lenient=self._lenient)
        spoken.check_history(body["messages"])
        return talk

    def complete(self, exchange: Exchange, wire: Wire) -> None:
        """Answer a model request of API `wire`."""
        entry = self._journal.open("model", wire.name, exchange.received_ns)
        headers = exchange.headers
        trial = headers.get(_TRIAL_HEADER)
        if trial is not None:
            entry.trial = trial.decode("latin-1")
        entry.attempt = _number(headers.get(_ATTEMPT_HEADER)) or 0
        self._serial = serial = self._serial + 1
        token = _token(serial)
        entry.request_id = "req_" + token
        request = _Request(exchange, wire, entry, serial, token)
        try:
            if self._tells_clients_apart:
                key = self._authorize(headers, wire.provider)
                request.quota = self._quota(key, wire.provider, exchange.received_ns)
            self._say(request, self._check(exchange, wire))
        except ApiError as error:
            self._refuse(request, error)
        except RecursionError:  # a value of hundreds of levels, where a message would repeat it
            self._refuse(request, ApiError("The request is nested too deeply."))

    def count_tokens(self, exchange: Exchange) -> None:
        """Anthropic's `/v1/messages/count_tokens`."""
        body = b'{"input_tokens":%d}' % tokens_of(exchange.body)
        exchange.send(HttpReply(200, JSON + _identity("anthropic", "req_" + _token(self._serial)), body))

    def list_models(self, exchange: Exchange) -> None:
        """`/v1/models`, in the shape of the provider whose SDK asks."""
        names = self._scenario.model.models or _DEFAULT_MODELS
        self._serial += 1
        body: dict[str, Any]
        if b"anthropic-version" in exchange.headers:
            provider = "anthropic"
            rows = [
                {"type": "model", "id": name, "display_name": name, "created_at": "2025-01-01T00:00:00Z"}
                for name in names
            ]
            body = {"data": rows, "has_more": False, "first_id": names[0], "last_id": names[-1]}
        else:
            provider = "openai"
            created = 1735689600  # the same day
            data = [
                {"id": name, "object": "model", "created": created, "owned_by": "emulator"} for name in names
            ]
            body = {"object": "list", "data": data}
        identity = _identity(provider, "req_" + _token(self._serial))
        exchange.send(HttpReply(200, JSON + identity, orjson.dumps(body)))

    # Before the tape

    def _authorize(self, headers: Headers, provider: str) -> bytes:
        """The API key of a request; raises 401 where the scenario knows its keys."""
        authorization = headers.get(b"authorization", b"")
        bearer = authorization[7:] if authorization[:7].lower() == b"bearer " else b""
        # Azure has a header of its own, and takes a bearer's token too.
        key = headers.get(b"x-api-key" if provider == "anthropic" else b"api-key", bearer)
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
                log="Incorrect API key provided.",
            )
        return key

    def _quota(self, key: bytes, provider: str, now_ns: int) -> QuotaState | None:
        spec, scale = self._scenario.quota, self._scenario.time_scale
        if spec is None or scale == 0:  # without time there is no rate
            return None
        quota = self._quotas.get((provider, key))
        if quota is None:
            if len(self._quotas) >= _MAX_KEYS:
                self._quotas.pop(next(iter(self._quotas)))
            split = provider == "anthropic"
            quota = limits.key_quota(spec, split_tokens=split, minute_ns=60e9 * scale, now_ns=now_ns)
            self._quotas[provider, key] = quota
        return quota

    def _check(self, exchange: Exchange, wire: Wire) -> Conversation:
        try:
            body = read_json(exchange.body)
        except BodyError as error:
            raise ApiError(f"The request is too large: {error}.") from error
        except orjson.JSONDecodeError as error:
            raise _malformed(wire.provider, str(error)) from None
        if not isinstance(body, dict):
            raise _malformed(wire.provider, "expected an object")
        talk = wire.parse(body, exchange)
        if len(talk.model) > _MOST_MODEL:
            raise _long_model(wire.provider, len(talk.model))
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
            place = self._places.find(talk.call_id)
            if place is not None:
                return place.loop
        return self._free_loop  # taken once the request is admitted: a refused one will be tried again

    # What is said, and when

    def _say(self, request: _Request, talk: Conversation) -> None:
        exchange, wire, entry, quota = request.exchange, request.wire, request.entry, request.quota
        header = exchange.headers.get(_LOOP_HEADER)
        tape = self._tape
        loop = self._loop(header, talk)
        places = tape.places(talk, loop)
        place = places[0] if places else Place(loop, tape.rounds(loop), 0)
        entry.loop, entry.round, entry.call = place
        if self._lenient:
            request.odd = {
                fault.kind: fault
                for fault in tape.wire_faults(place)
                if applies(fault.kind, wire.name, streamed=talk.stream, calls=bool(places))
                and not (fault.kind == "pause_turn" and talk.resumed)  # it paused before
            }
        said, written, timed_tokens = self._content(request, talk, place, places)
        if quota is not None:
            # Anthropic does not count what is read from the cache; OpenAI counts all.
            counted = said.input_tokens - (said.cached_tokens if wire.provider == "anthropic" else 0)
            refusal = quota.admit(counted, self._output_tokens(wire, said), exchange.received_ns)
            if refusal is not None:
                error = limits.refusal_error(wire.provider, refusal, talk.model)
                error.retry_ns, error.after_ns = self._announced(refusal.retry_ns)
                raise error
            entry.on_finished = quota.release
        if loop == self._free_loop:
            self._free_loop += 1
        if said.calls:
            self._remember(wire, places, said.calls, handed_out=header is None or bool(request.odd))
        fault = self._fault(exchange, place, entry) if self._faulty else None
        if fault is not None and fault.kind in STATUS:
            raise status_error(fault.kind, wire.provider, int(1e9 * self._scenario.time_scale))
        self._send(request, talk, said, written, timed_tokens, place, fault)

    def _content(
        self, request: _Request, talk: Conversation, place: Place, places: list[Place]
    ) -> tuple[Said, int, int]:
        """The content of the reply, its tokens (it may say that it had more, or fewer), and the number of
        those that its duration is made of."""
        wire = request.wire
        drawn = self._tape.tokens(place, wire.reasoning_tokens)
        own_tokens = talk.earlier_tokens + tokens_of(request.exchange.body)
        text: str | None = None
        calls: tuple[MadeCall, ...] = ()
        finish: Finish = "stop"
        if "pause_turn" in request.odd:
            text = anthropic_messages.PREFACE
            output = tokens = tokens_of(text)
        elif places:
            calls, finish = self._calls(request, talk, places), "tool_calls"
            output = tokens = sum(map(call_tokens, calls))
        else:
            text = answer(talk.results)
            # The answer's length depends on the results; its duration is the tape's alone.
            output, tokens = tokens_of(text), _ANSWER_TOKENS
        asked = own_tokens + drawn.context if drawn.input is None else drawn.input
        cached = int(asked * drawn.cached_share)
        said = Said(
            *(text, calls, finish, asked, output + drawn.reasoning),
            reasoning_tokens=drawn.reasoning,
            cached_tokens=cached,
            cache_written_tokens=int((asked - cached) * drawn.written_share),
            cache_ttl=self._scenario.model.cache_ttl,
        )
        cut = limited(said, talk.max_tokens)
        written = cut.output_tokens
        if drawn.output is not None and cut is said:
            beside = self._output_tokens(wire, cut) - written  # of Anthropic's preface to calls
            counted = max(drawn.output - beside, drawn.reasoning, 1)
            if talk.max_tokens is not None:
                counted = min(counted, max(1, talk.max_tokens - beside))
            cut = replace(cut, output_tokens=counted)
        return (
            cut,
            written,
            tokens if written == said.output_tokens else min(tokens, written - cut.reasoning_tokens),
        )

    def _calls(self, request: _Request, talk: Conversation, places: list[Place]) -> tuple[MadeCall, ...]:
        """The calls of the reply, in the odd forms of faults."""
        wire, nonce = request.wire, request.serial << 8
        if wire.name == "chat":
            prefix = self._dialect.id_prefix(talk.model)
        else:
            prefix = "toolu_" if wire.provider == "anthropic" else "call_"
        made = []
        for n, call in enumerate(self._tape.calls(places, talk.tools, talk.choice)):
            token = encode(call.place, nonce | n)
            ident = short_id(request.serial << 12 | n) if prefix is None else prefix + token
            made.append(MadeCall(token, call.name, call.arguments, ident))
        calls = tuple(made)
        return odd_calls(self._spoil(request, talk, places, calls), request.odd) if self._faulty else calls

    def _output_tokens(self, wire: Wire, said: Said) -> int:
        """As the API counts them."""
        return anthropic_messages.output_tokens(said) if wire.provider == "anthropic" else said.output_tokens

    def _spoil(
        self, request: _Request, talk: Conversation, places: list[Place], calls: tuple[MadeCall, ...]
    ) -> tuple[MadeCall, ...]:
        whole_object = request.wire.provider == "anthropic" and not talk.stream
        spoilt = []
        for place, call in zip(places, calls, strict=True):
            fault = self._tape.call_fault(
                place, call.name, "malformed_arguments", "unknown_tool", "wrong_type"
            )
            # A whole Anthropic body holds arguments as an object, which cannot be malformed.
            if fault is None or (whole_object and fault.kind == "malformed_arguments"):
                spoilt.append(call)
            else:
                request.entry.fault = fault.kind
                spoilt.append(spoiled(call, fault.kind))
        return tuple(spoilt)

    def _fault(self, exchange: Exchange, place: Place, entry: Entry) -> Fault | None:
        attempt = entry.attempt
        if _ATTEMPT_HEADER not in exchange.headers:
            # A client that does not number its attempts: the same place again is the next one.
            seen = self._attempts
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
        request: _Request,
        talk: Conversation,
        said: Said,
        written: int,
        timed_tokens: int,
        place: Place,
        fault: Fault | None,
    ) -> None:
        exchange, wire, entry = request.exchange, request.wire, request.entry
        received_ns = exchange.received_ns
        pace = self._tape.pace(*place)
        first_ns = received_ns + int(pace.first_token * 1e9)
        kind = None
        if fault is not None:
            kind, wait_ns = fault.kind, int(fault.seconds * self._scenario.time_scale * 1e9)
            if kind == "hang":
                first_ns = received_ns + wait_ns
            elif kind == "slow_first_byte":
                first_ns += wait_ns
        entry.due_ns = first_ns
        if kind == "hang" or kind == "reset":
            if kind == "hang":
                entry.due_ns = 0
            exchange.send(HttpReply(0, b"", due_ns=first_ns, ending="reset", observer=entry))
            return
        token = request.token
        if talk.carried is not None and kind in (None, "slow_first_byte"):
            own_tokens = talk.earlier_tokens + tokens_of(exchange.body)
            self._store.put("resp_" + token, openai_responses.after(talk.carried, said, own_tokens))
        entry.status = 200
        entry.input_tokens, entry.cached_tokens = said.input_tokens, said.cached_tokens
        entry.cache_written_tokens, entry.reasoning_tokens = said.cache_written_tokens, said.reasoning_tokens
        entry.output_tokens = self._output_tokens(wire, said)
        odd, held_ns = request.odd, 0
        if odd:
            if "pause_turn" in odd:
                self._places.remember(ServerTool(token).ident, place)  # all that a paused turn is known by
            entry.fault = "+".join([*([entry.fault] if entry.fault else []), *odd])
            # A tool of the server's own holds back what comes after it.
            held = [odd[name].seconds for name in ("server_tool", "pause_turn") if name in odd]
            held_ns = int(max(held, default=0.0) * self._scenario.time_scale * 1e9)
        ending: Ending = "cut" if kind == "truncated_stream" else "complete"
        reply = Reply(wire.name, said, talk, token, int(time.time()), place.loop, self._dialect, odd)
        headers = _identity(wire.provider, entry.request_id) + self._limits(request)
        per_token_ns = pace.per_token * 1e9
        if pace.whole is not None:
            per_token_ns = (
                (pace.whole - pace.first_token) * 1e9 / max(1, timed_tokens + said.reasoning_tokens)
            )
        if not talk.stream:
            spent_ns = int(per_token_ns * (timed_tokens + said.reasoning_tokens)) + held_ns
            entry.due_ns = due_ns = first_ns + spent_ns
            if wire.provider == "openai":
                headers += b"openai-processing-ms: %d\r\n" % ((due_ns - received_ns) // 1_000_000)
            wait = due_ns if due_ns > received_ns else 0
            exchange.send(
                HttpReply(200, JSON + headers, reply.body(), due_ns=wait, ending=ending, observer=entry)
            )
            return
        entry.streamed = True
        frames, after = reply.frames(self._scenario.model.tokens_per_event)
        if kind == "truncated_stream" or kind == "stream_error":
            half = len(frames) // 2
            frames = frames[:half]
            if kind == "stream_error":
                frames.append((frames[-1][0], error_frame(wire.name, half)))
        if pace.whole is not None or written != said.output_tokens:
            frames = in_order(frames, written)
        # Scaled so that an answer takes the tape's time whatever its length; reasoning is as long as it is.
        thought = said.reasoning_tokens
        scale = timed_tokens / max(1, written - thought)
        timed: list[tuple[int, Payload]] = [
            (
                first_ns
                + int(per_token_ns * (thought + (tokens - thought) * scale if tokens > thought else tokens)),
                payload,
            )
            for tokens, payload in frames
        ]
        if held_ns:
            timed[after:] = [(due_ns + held_ns, payload) for due_ns, payload in timed[after:]]
        exchange.send(
            HttpReply(200, SSE + headers, due_ns=first_ns, frames=timed, ending=ending, observer=entry)
        )

    def _remember(
        self, wire: Wire, places: list[Place], calls: tuple[MadeCall, ...], *, handed_out: bool
    ) -> None:
        """Know the calls again: by ids that do not say their place, and when a tool is asked without one."""
        for place, call in zip(places, calls, strict=False):  # max_tokens may have cut the last ones
            if handed_out:
                self._outstanding.add(call.name, call.arguments, Handed(place, call.id or ""))
            if not call.id:
                given = call.arguments if wire.provider == "anthropic" or call.form == "text" else None
                self._places.remember(unnamed(call.name, given), place)
            elif not call.id.endswith(call.token):
                self._places.remember(call.id, place)

    # Headers and refusals

    def _announced(self, retry_ns: int) -> tuple[int | None, int]:
        """The wait that a refusal for a quota announces (None: none), and how long the refusal takes."""
        spec, scale = self._scenario.quota, self._scenario.time_scale
        assert spec is not None
        # Providers announce no wait for concurrency; a tenth of a second, scaled, is made up.
        wait_ns: int | None = retry_ns or int(1e8 * scale)
        if spec.retry_after == "none":
            wait_ns = None
        elif spec.retry_after == "seconds":
            wait_ns = -(-(wait_ns or 0) // 1_000_000_000) * 1_000_000_000
        return wait_ns, int(spec.refusal_seconds * scale * 1e9)

    def _limits(self, request: _Request) -> bytes:
        """The headers that tell of the key's quota."""
        style, quota = request.wire.style, request.quota
        if quota is None:
            return limits.UNLIMITED.get(style, b"")
        return limits.headers(style, quota, request.exchange.received_ns, time.time())

    def _refuse(self, request: _Request, error: ApiError) -> None:
        wire, entry, exchange = request.wire, request.entry, request.exchange
        entry.status = error.status
        if wire.name == "chat":
            body = self._dialect.envelope(error)
        elif wire.provider == "openai":
            body = envelope(error)
        else:
            body = anthropic_messages.envelope(error, entry.request_id)
        headers = JSON + _identity(wire.provider, entry.request_id)
        if error.status != 401:  # a key that is not known has no quota
            headers += self._limits(request)
        if error.retry_ns is not None:
            headers += limits.retry_headers(wire.style, error.retry_ns)
        self._journal.refused(exchange.method, exchange.path, error.status, error.log or error.message)
        due_ns = exchange.received_ns + error.after_ns if error.after_ns else 0
        exchange.send(HttpReply(error.status, headers, body, due_ns=due_ns, observer=entry))


def _identity(provider: str, request_id: str) -> bytes:
    """The headers that say who answers, and to which request."""
    ident = request_id.encode()
    if provider == "openai":
        return b"x-request-id: %b\r\nopenai-version: 2020-10-01\r\n" % ident
    return b"request-id: %b\r\nanthropic-organization-id: %b\r\n" % (ident, limits.ORGANIZATION.encode())


def _number(header: bytes | None) -> int | None:
    """The whole number in a header, below `UNMATCHED`; None when there is none."""
    if header is None or len(header) > 18 or not header.isdigit():
        return None
    return int(header)


def _token(serial: int) -> str:
    """24 hexadecimal digits, different for every response of a process."""
    return "%024x" % ((serial * 0x9E3779B97F4A7C15F39CC061) & 0xFFFFFFFFFFFFFFFFFFFFFFFF)


def _malformed(provider: str, problem: str) -> ApiError:
    if provider == "anthropic":
        return ApiError(f"The request body is not valid JSON: {problem}")
    return ApiError(
        "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your"
        " HTTP library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid"
        " JSON. If you have trouble figuring out how to fix this, please contact us through our help center"
        " at help.openai.com.)"
    )


def _long_model(provider: str, length: int) -> ApiError:
    if provider == "anthropic":
        return ApiError(f"model: String should have at most {_MOST_MODEL} characters")
    return ApiError(
        f"Invalid 'model': string too long. Expected a string with maximum length {_MOST_MODEL}, but got a"
        f" string with length {length} instead.",
        param="model",
        code="string_above_max_length",
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
