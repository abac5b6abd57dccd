"""What a request to a model tells of the conversation that it is part of: ids, counts, and no text. Pure.

A request says which calls' results it brings. In Chat Completions and Messages these are what follows the
last message of the model; in Responses they may also stand each behind its call. Everything else of its
history has been there before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from profiler.providers.replies import Api
from profiler.providers.wire import model_in

MOST_RESULTS = 512
"""Results of one request that are looked at."""

LONGEST_ID = 512

HASHED_WHOLE = 65_536
"""Bytes of a body that are hashed as a whole; of a longer one its length and this much of both ends."""

_RETRY = b"x-stainless-retry-count"

_MARKS = frozenset(
    (
        *(b"traceparent", b"session_id", b"session-id", b"conversation_id", b"conversation-id"),
        *(b"thread_id", b"x-session-id", b"x-conversation-id", b"x-thread-id", b"x-agent-id", b"x-run-id"),
        *(b"x-claude-code-session-id", b"helicone-session-id", b"x-langfuse-session-id"),
        b"x-toolloop-loop",
    )
)
"""Headers by which clients say what a request belongs to. None of them is needed, and each is only a hint."""

_OUTPUTS = frozenset(
    (
        *("function_call_output", "custom_tool_call_output", "local_shell_call_output"),
        *("shell_call_output", "computer_call_output", "apply_patch_call_output"),
    )
)
_OF_MODEL = ("_call", "reasoning", "item_reference", "compaction")
"""How the types of items end that the model made, other than messages."""


class Result(NamedTuple):
    """A result that a request brings; `id` is that of its call, empty where there is none."""

    id: str
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, without its content. `digest` is the same for the same body, and tells nothing of it.

    `results`: those that follow the model's last words, the last one first; empty where it begins with
    something new. `earlier`: ids of others, which may have been answered before. `served`: of tools of the
    server's, in words of the model that the request ends with. `previous` and `conversation` name what the
    server remembers. `items` counts the messages, or items, of its history. `retry`: how often its SDK has
    sent it before, None where it does not say. `marks`: what its client says it belongs to, hashed, by name.
    `key`: the same for the same credentials. `said`: the same
    for the same messages, of a request without results.
    `is_read` is False for a body that is no such request, or was not kept. `background`: the server answers
    at once, and works on; who asked fetches the reply later.
    """

    api: Api
    model: str = ""
    digest: bytes = b""
    results: tuple[Result, ...] = ()
    earlier: tuple[str, ...] = ()
    served: tuple[str, ...] = ()
    previous: str | None = None
    conversation: str | None = None
    items: int = 0
    retry: int | None = None
    marks: dict[str, bytes] = field(default_factory=dict)
    key: bytes = b""
    said: bytes = b""
    is_read: bool = True
    background: bool = False

    @property
    def is_remembered(self) -> bool:
        """The server knows its history: the request need not have it."""
        return self.previous is not None or self.conversation is not None


def asked_of(
    api: Api,
    path: str,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes | None,
    salt: bytes,
    key: bytes = b"",
) -> Asked:
    """Of a request to this API. `body` None: it was not kept. `salt` keys all hashes. Never raises."""
    retry, marks = _headers(headers, salt)
    if body is None:
        return Asked(api, model_in(path), retry=retry, marks=marks, key=key, is_read=False)
    digest = _digest(body, salt)
    try:
        data = orjson.loads(body)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        return Asked(api, model_in(path), digest, retry=retry, marks=marks, key=key, is_read=False)
    model = data.get("model")
    if not isinstance(model, str) or not model:
        model = model_in(path)
    results: Sequence[Result] = ()
    earlier: tuple[str, ...] = ()
    served: tuple[str, ...] = ()
    items = data.get("input") if api == "openai-responses" else data.get("messages")
    count = len(items) if isinstance(items, list) else 0
    if isinstance(items, list):
        if api == "openai":
            results = _of_chat(items)
        elif api == "anthropic":
            results, served = _of_messages(items)
        else:
            results, earlier = _of_items(items)
    for name in ("prompt_cache_key", "metadata"):
        if value := data.get(name):
            marks[name] = _hashed(repr(value)[:4096].encode("utf-8", "replace"), salt)
    return Asked(
        api,
        model[:200],
        digest,
        tuple(results),
        earlier,
        served,
        _name(data.get("previous_response_id")),
        _name(data.get("conversation")) or _name(data.get("thread")),
        count,
        retry,
        marks,
        key,
        b"" if results else _messages_digest(items, body, salt),
        background=data.get("background") is True and not data.get("stream"),
    )


def _headers(headers: Sequence[tuple[bytes, bytes]], salt: bytes) -> tuple[int | None, dict[str, bytes]]:
    retry, marks = None, {}
    for name, value in headers:
        if name in _MARKS:
            # Of a trace its id; what follows that is another one in each request.
            marks[name.decode()] = _hashed(value[3:35] if name == b"traceparent" else value, salt)
        elif name == _RETRY and value.isdigit() and len(value) < 5:
            retry = int(value)
    return retry, marks


def _digest(body: bytes, salt: bytes) -> bytes:
    if len(body) > 2 * HASHED_WHOLE:
        body = b"%d:%b%b" % (len(body), body[:HASHED_WHOLE], body[-HASHED_WHOLE:])
    return hashlib.blake2b(body, digest_size=16, key=salt).digest()


def _messages_digest(items: Any, body: bytes, salt: bytes) -> bytes:
    """Of the messages alone, for a request that begins something; a long one is not looked at again."""
    if len(body) > HASHED_WHOLE:
        return b""
    try:
        return _digest(orjson.dumps(items), salt)
    except (TypeError, ValueError):  # nested too deeply to be written
        return b""


def _hashed(value: bytes, salt: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=8, key=salt).digest()


def _name(value: Any) -> str | None:
    """An id, or that of an object which has one."""
    if isinstance(value, dict):
        value = value.get("id")
    return value if isinstance(value, str) and 0 < len(value) <= LONGEST_ID else None


def _ident(value: Any) -> str:
    """An id of a call as it can be compared; empty where there is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and len(value) <= LONGEST_ID else ""


def _of_chat(messages: list[Any]) -> list[Result]:
    found: list[Result] = []
    for place, message in enumerate(reversed(messages)):
        if not isinstance(message, dict):
            continue
        role = message.get("role")
        if role == "tool":
            found.append(Result(_ident(message.get("tool_call_id"))))
            if len(found) >= MOST_RESULTS:
                break
        elif role == "assistant" and (place or message.get("tool_calls")):
            break  # the last message may be the beginning of the answer, put into the model's mouth
    return found


def _of_messages(messages: list[Any]) -> tuple[list[Result], tuple[str, ...]]:
    found: list[Result] = []
    served: tuple[str, ...] = ()
    for place, message in enumerate(reversed(messages)):
        if not isinstance(message, dict):
            continue
        if message.get("role") == "assistant":
            parts = [*_parts(message)]
            if place or any(part.get("type") == "tool_use" for part in parts):
                break
            served = tuple(ident for part in parts if (ident := _ident(part.get("id"))))[:MOST_RESULTS]
            continue
        for part in _parts(message):
            if part.get("type") == "tool_result" and len(found) < MOST_RESULTS:
                found.append(Result(_ident(part.get("tool_use_id")), part.get("is_error") is True))
    return found, served


def _parts(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    content = message.get("content")
    if isinstance(content, list):
        for part in reversed(content):
            if isinstance(part, dict):
                yield part


def _of_items(items: list[Any]) -> tuple[list[Result], tuple[str, ...]]:
    found: list[Result] = []
    earlier: list[str] = []
    fresh = True
    for item in reversed(items):
        if not isinstance(item, dict):
            continue
        kind = item.get("type")
        kind = kind if isinstance(kind, str) else ""
        if kind in _OUTPUTS:
            ident = _ident(item.get("call_id"))
            if fresh:
                found.append(Result(ident))
            else:
                earlier.append(ident)
            if len(found) + len(earlier) >= MOST_RESULTS:
                break
        elif item.get("role") == "assistant" or kind.endswith(_OF_MODEL):
            if not found or item.get("role") == "assistant":
                break
            fresh = False
    return found, tuple(earlier)
