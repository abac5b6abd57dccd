"""Servers that call themselves compatible with Chat Completions: what each of them does otherwise. Pure.

A `Dialect` checks what OpenAI would not, has error bodies of its own, and reshapes a completion or its chunks
after `openai_chat` has made them. Where servers of one kind (or versions of one) differ, both forms come, by
the number of the loop.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import orjson

from profiler.emulator.bodies import can_be_written
from profiler.emulator.conversation import ApiError, Event
from profiler.emulator.openai_requests import envelope as openai_envelope
from profiler.emulator.work import shown

_SHORT = re.compile(r"[a-zA-Z0-9]{9}")
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_DEPLOYMENT = re.compile(rb"/openai/deployments/([^/]+)/")
_SKIPPED_SIGNATURES = ("skip_thought_signature_validator", "context_engineering_is_the_way_to_go")
"""Signatures that Google documents for the calls of another model, which have none."""

_SAFE = {"filtered": False, "severity": "safe"}
_FILTERED = dict.fromkeys(("hate", "self_harm", "sexual", "violence"), _SAFE)
_PROMPT_FILTERED = [{"prompt_index": 0, "content_filter_results": _FILTERED}]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One dialect. `reasoning_tokens`: those of a reply where the scenario says nothing of them.

    `call_prefix`: what its call ids begin with. `refuses`: the fields of a request that it does not know.
    `lenient`: see `openai_chat.parse`.
    """

    name: str = "openai"
    call_prefix: str = "call_"
    reasoning_tokens: int = 0
    refuses: tuple[str, ...] = ()
    lenient: bool = False

    # Requests

    def model_of(self, path: bytes) -> str | None:
        """The model that the path names: an Azure deployment."""
        found = _DEPLOYMENT.search(path) if b"/openai/" in path else None
        return None if found is None else found[1].decode("latin-1")

    def check_target(self, path: bytes, query: bytes | None) -> None:
        """Check the path and the query of a request."""
        if self.name == "azure" and b"/openai/deployments/" in path and b"api-version=" not in (query or b""):
            raise ApiError("Resource not found", status=404, code="404")

    def check_fields(self, body: dict[str, Any]) -> None:
        """Refuse fields that the server does not know, in its words."""
        for field in self.refuses:
            if body.get(field) is not None:
                raise self._unknown_field(field, body[field])

    def _unknown_field(self, field: str, value: object) -> ApiError:
        if self.name == "gemini":
            words = f'Invalid JSON payload received. Unknown name "{field}": Cannot find field.'
            violation = {"description": words}
            detail = {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]}
            return ApiError(words, details={"details": [detail]})
        if self.name == "mistral":
            problem: dict[str, Any] = {"type": "extra_forbidden", "loc": ["body", field]}
            problem |= {"msg": "Extra inputs are not permitted"}
            problem |= {"input": value if can_be_written(value) else shown(value)}
            # The body holds what was sent; the words do not, since they are what a log shows.
            words = f"{field}: Extra inputs are not permitted"
            return ApiError(words, status=422, details={"message": {"detail": [problem]}})
        if self.name == "vllm":
            problem = {"type": "extra_forbidden", "loc": ("body", field)}
            problem |= {"msg": "Extra inputs are not permitted", "input": value}
            words = f"{field}: Extra inputs are not permitted"
            return ApiError(words, kind="BadRequestError", details={"message": str([problem])})
        return ApiError(f"Unrecognized request argument supplied: {field}")

    def check_history(self, messages: list[dict[str, Any]]) -> None:
        """Refuse a history without what this server wants to have back; its shape has been checked."""
        if self.name not in ("gemini", "deepseek", "mistral"):
            return
        last_question = max((n for n, one in enumerate(messages) if one["role"] == "user"), default=0)
        for n, message in enumerate(messages):
            calls = message.get("tool_calls") or []
            if self.name == "mistral":
                idents = [call.get("id") for call in calls]
                idents += [message.get("tool_call_id")] if message["role"] == "tool" else []
                self._check_short(idents)
            elif n < last_question or not calls or message["role"] != "assistant":
                continue  # earlier turns are not looked at
            elif self.name == "gemini":
                self._check_signature(calls[0], n + 1)
            elif not isinstance(message.get("reasoning_content"), str):
                raise ApiError(
                    "The `reasoning_content` in the thinking mode must be passed back to the API.",
                    code="invalid_request_error",
                )

    def _check_short(self, idents: Iterable[object]) -> None:
        for ident in idents:
            if not (isinstance(ident, str) and _SHORT.fullmatch(ident)) and not (self.lenient and not ident):
                raise ApiError(
                    f"Tool call id was {ident} but must be a-z, A-Z, 0-9, with a length of 9.",
                    kind="invalid_function_call",
                    code="3280",
                )

    def _check_signature(self, call: dict[str, Any], position: int) -> None:
        """The first call of a reply must have the signature that it came with."""
        extra = call.get("extra_content")
        google = extra.get("google") if isinstance(extra, dict) else None
        given = google.get("thought_signature") if isinstance(google, dict) else None
        if not isinstance(given, str) or not given:
            raise ApiError(
                "Function call is missing a thought_signature in functionCall parts. This is required for"
                " tools to work correctly, and missing thought_signature may lead to degraded model"
                " performance."
                f" Additional data, function call `default_api:{call['function'].get('name')}` , position"
                f" {position}. Please refer to https://ai.google.dev/gemini-api/docs/thought-signatures for"
                " more details."
            )
        ident = call.get("id") or ""
        is_ours = ident.startswith(self.call_prefix) and given not in _SKIPPED_SIGNATURES
        if is_ours and given != _signature(ident) and not self.lenient:
            raise ApiError("Corrupted thought signature.")

    # Replies

    def reasoning_field(self, loop: int) -> str | None:
        """The member that shows reasoning; None where this server keeps it to itself."""
        if self.name in ("gemini", "mistral", "azure"):
            return None
        return "reasoning" if self.name == "vllm" and loop % 2 == 0 else "reasoning_content"

    @property
    def always_counts(self) -> bool:
        """Whether the usage is in every stream, asked for or not."""
        return self.name == "mistral"

    def id_prefix(self, model: str) -> str | None:
        """The beginning of the ids of this model's calls; None where they are `short_id`s."""
        if self.name == "mistral" or (self.name == "vllm" and "mistral" in model.lower()):
            return None
        return self.call_prefix

    def reshape(self, body: dict[str, Any]) -> None:
        """Make a whole completion this server's, in place."""
        [choice] = body["choices"]
        message, usage = choice["message"], body["usage"]
        calls = message.get("tool_calls", [])
        self._own_usage(usage)
        if self.name == "gemini":
            choice["finish_reason"] = "stop" if calls else choice["finish_reason"]
            _sign(calls)
        elif self.name == "mistral":
            message["content"] = message["content"] or ""
        elif self.name == "vllm":
            choice["stop_reason"] = None
        elif self.name == "azure":
            choice["content_filter_results"] = {} if calls else _FILTERED
            body["prompt_filter_results"] = _PROMPT_FILTERED
        if self.name not in ("openai", "azure"):
            for member in ("refusal", "annotations"):
                del message[member]

    def reshape_stream(self, events: list[Event], loop: int) -> list[Event]:
        """The chunks as this server sends them."""
        for _, event in events:
            if event.get("usage"):
                self._own_usage(event["usage"])
        if self.name in ("gemini", "mistral"):
            events = _whole_calls(events)
        if self.name == "gemini":
            self._own_gemini(events, loop)
        elif self.name == "mistral":
            events = usage_with_finish(events)
            for call in stream_calls(events):
                call.pop("type", None)
        elif self.name == "vllm":
            events = interleaved(events)
        elif self.name == "sglang":
            # One of its three habits: two finishes, a delta after the finish, no finish but [DONE].
            habit = (several_finishes, delta_after_finish, no_finish)[loop % 3]
            events = habit(events)
        elif self.name == "azure":
            for _, event in events:
                for choice in event["choices"]:
                    choice["content_filter_results"] = _FILTERED if choice["delta"].get("content") else {}
            first = {"id": "", "object": "", "created": 0, "model": "", "choices": []}
            events = [(0, {**first, "prompt_filter_results": _PROMPT_FILTERED}), *events]
        return events

    def _own_gemini(self, events: list[Event], loop: int) -> None:
        calls = stream_calls(events)
        for call in calls:
            call["index"] = 0
            if loop % 2 == 0:
                del call["index"]
        _sign(calls)
        for _, event in events:
            for choice in event["choices"]:
                if choice["finish_reason"] == "tool_calls":
                    choice["finish_reason"] = "stop"

    def _own_usage(self, usage: dict[str, Any]) -> None:
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        if self.name == "deepseek":
            usage["prompt_cache_hit_tokens"] = cached
            usage["prompt_cache_miss_tokens"] = usage["prompt_tokens"] - cached
        elif self.name == "sglang":
            usage["reasoning_tokens"] = usage["completion_tokens_details"]["reasoning_tokens"]

    def envelope(self, error: ApiError) -> bytes:
        """An error's body."""
        if error.status == 429:
            error = self._own_refusal(error)
        if self.name == "gemini":
            status = "RESOURCE_EXHAUSTED" if error.status == 429 else "INVALID_ARGUMENT"
            if error.status >= 500:
                status = "UNAVAILABLE" if error.status == 503 else "INTERNAL"
            inner = {"code": error.status, "message": error.message, "status": status}
            return orjson.dumps([{"error": {**inner, **(error.details or {})}}])
        if self.name == "mistral":
            body = {"object": "error", "message": error.message, "type": error.kind, "param": None}
            return orjson.dumps({**body, "code": error.code, **(error.details or {})})
        if self.name == "azure" and error.code is not None and error.code.isdigit():
            return orjson.dumps({"error": {"code": error.code, "message": error.message}})
        if self.name == "vllm":
            kind = "BadRequestError" if error.status == 400 else error.kind
            inner = {"message": error.message, "type": kind, "param": error.param, "code": error.status}
            return orjson.dumps({"error": {**inner, **(error.details or {})}})
        return openai_envelope(error)

    def _own_refusal(self, error: ApiError) -> ApiError:
        if self.name == "mistral":
            return ApiError("Rate limit exceeded", status=429, kind="rate_limited", code="1300")
        if self.name == "azure":
            seconds = -(-(error.retry_ns or 0) // 1_000_000_000)
            words = f"Requests have exceeded the rate limit. Please retry after {seconds} seconds."
            return ApiError(words, status=429, code="429")
        return error


_KNOWN = {
    "openai": Dialect(),
    "gemini": Dialect("gemini", "function-call-", refuses=("parallel_tool_calls",)),
    "vllm": Dialect("vllm", "chatcmpl-tool-", reasoning_tokens=32),
    "sglang": Dialect("sglang"),
    "deepseek": Dialect("deepseek", "call_00_", reasoning_tokens=32),
    "mistral": Dialect("mistral", "", refuses=("stream_options",)),
    "azure": Dialect("azure"),
}


def dialect(name: str, refuses: Collection[str] = (), *, lenient: bool = False) -> Dialect:
    """The dialect of this name, of a server that does not know the fields it `refuses` either."""
    known = _KNOWN[name]
    return Dialect(
        name, known.call_prefix, known.reasoning_tokens, (*known.refuses, *refuses), lenient=lenient
    )


def short_id(serial: int) -> str:
    """Nine letters and digits, different for each serial below 62^9."""
    number = serial * 0x1F3A5C7D9B2E5 % 62**9  # the factor is odd and no multiple of 31: it can be undone
    digits = []
    for _ in range(9):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(digits)


def _signature(ident: str) -> str:
    return base64.b64encode(b"\x12" + ident.encode()).decode()


def _sign(calls: list[dict[str, Any]]) -> None:
    """Gemini signs the first call of a reply."""
    if calls:
        signature = _signature(calls[0].get("id") or "")
        calls[0]["extra_content"] = {"google": {"thought_signature": signature}}


# The forms of a stream that dialects and faults share. Events may be changed in place.


def stream_calls(events: Iterable[Event]) -> list[dict[str, Any]]:
    """The deltas of calls in a stream of chunks, in order."""
    return [
        call
        for _, event in events
        for choice in event["choices"]
        for call in choice["delta"].get("tool_calls", ())
    ]


def _finish(event: dict[str, Any]) -> str | None:
    return next((choice["finish_reason"] for choice in event["choices"]), None)


def _whole_calls(events: list[Event]) -> list[Event]:
    """Each call in one delta, when its last piece is there."""
    out: list[Event] = []
    opened: dict[str, Any] = {}
    for tokens, event in events:
        deltas = stream_calls([(tokens, event)])
        if not deltas or "name" in deltas[0]["function"]:
            opened = deltas[0] if deltas else {}
            out.append((tokens, event))
        else:
            opened["function"]["arguments"] += deltas[0]["function"]["arguments"]
            out[-1] = (tokens, out[-1][1])
    return out


def interleaved(events: list[Event]) -> list[Event]:
    """The deltas of several calls in turn, at the times of the stream as it was."""
    by_index: dict[int, list[dict[str, Any]]] = {}
    places = []
    for n, timed in enumerate(events):
        for call in stream_calls([timed]):
            by_index.setdefault(call["index"], []).append(timed[1])
            places.append(n)
    rows = zip_longest(*by_index.values())
    turn = [event for row in rows for event in row if event is not None]
    out = list(events)
    for n, event in zip(places, turn, strict=True):
        out[n] = (events[n][0], event)
    return out


def several_finishes(events: list[Event]) -> list[Event]:
    """The finish also with the last delta before it, and wrong there."""
    n = next(n for n, (_, event) in enumerate(events) if _finish(event) is not None)
    before = events[n - 1][1]["choices"] if n else []
    for choice in before:
        choice["finish_reason"] = "stop"
    return events


def delta_after_finish(events: list[Event]) -> list[Event]:
    """The last delta after the finish."""
    n = next(n for n, (_, event) in enumerate(events) if _finish(event) is not None)
    if n == 0:
        return events
    last, finish = events[n - 1 : n + 1]
    return [*events[: n - 1], (last[0], finish[1]), (finish[0], last[1]), *events[n + 1 :]]


def no_finish(events: list[Event]) -> list[Event]:
    """No finish reason at all."""
    out = []
    for tokens, event in events:
        if _finish(event) is not None:
            for choice in event["choices"]:
                choice["finish_reason"] = None
            if not event["choices"][0]["delta"] and not event.get("usage"):
                continue
        out.append((tokens, event))
    return out


def usage_with_finish(events: list[Event]) -> list[Event]:
    """The usage in the chunk of the finish, and none of its own."""
    usage = next((event["usage"] for _, event in events if event.get("usage")), None)
    kept = [(tokens, event) for tokens, event in events if event["choices"]]
    for _, event in kept:
        event.pop("usage", None)
        if _finish(event) is not None:
            event["usage"] = usage
    return kept
