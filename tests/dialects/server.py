"""A model server that answers as the rows of the matrix say, and refuses a next request that is not right.

    python -m tests.dialects.server

It prints its port. A client's base URL is `/API/DIALECT/CELL/v1` (for Anthropic's SDK without the `/v1`): the
name of the API's rows, the row, and any name for the conversation. `GET /API/DIALECT/CELL` tells what the
server knows of that conversation: how many replies it has given, and what it refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import sys
import zlib
from collections.abc import Sequence
from typing import Any

from tests.dialects import chat, messages, responses
from tests.dialects.script import ANY_OBJECT, ANY_TEXT, MADE_UP, Call, Conversation, Turn

APIS = {"openai": chat.DIALECTS, "openai-responses": responses.DIALECTS, "anthropic": messages.DIALECTS}
_ROWS = {(api, dialect.slug): dialect for api, rows in APIS.items() for dialect in rows}


class Wrong(Exception):
    """What the server does not accept, in words."""


class History:
    """The part of a request that repeats the conversation, read from its beginning."""

    def __init__(self, entries: Sequence[Any]) -> None:
        self._entries = list(entries)
        self._at = 0
        self.made_up: set[str] = set()

    def next(self, what: str) -> dict[str, Any]:
        if self._at == len(self._entries):
            raise Wrong(f"{what} is missing at {self._at}")
        self._at += 1
        entry = self._entries[self._at - 1]
        if not isinstance(entry, dict):
            raise Wrong(f"{what} at {self._at - 1} is no object: {entry!r}")
        return entry

    def end(self) -> None:
        if self._at != len(self._entries):
            raise Wrong(f"nobody asked for {self._entries[self._at :]}")


def refusal(api: str, body: Any, turns: Sequence[Turn]) -> str | None:
    """Why a request that follows these replies is not right; None where it is."""
    if "parallel_tool_calls" in body:  # several servers know no such field
        return "parallel_tool_calls was sent, and nobody asked for it"
    try:
        history = History(body["input" if api == "openai-responses" else "messages"])
        if history.next("the user's message").get("role") != "user":
            raise Wrong("the first message is not the user's")
        for turn in turns:
            ids = _came_back(history, turn)
            if turn.calls:
                _results(api, history, turn.calls, ids)
        history.end()
    except Wrong as wrong:
        return str(wrong)
    return None


def _came_back(history: History, turn: Turn) -> list[str]:
    """Checks the messages of a reply; the ids of its calls, in their order."""
    ids: list[str] = []
    for meant in turn.back:
        _compare(meant, history.next("the reply"), "", history, ids)
    return ids


def _compare(meant: Any, got: Any, where: str, history: History, ids: list[str]) -> None:
    """Raises `Wrong` unless this is what was meant. Fields that are null are as good as missing."""
    if isinstance(meant, str) and meant == MADE_UP:
        if not isinstance(got, str) or not got or got in history.made_up:
            raise Wrong(f"{where} is {got!r}, expected an id that is new")
        history.made_up.add(got)
    elif isinstance(meant, str) and meant == ANY_TEXT:
        if not isinstance(got, str):
            raise Wrong(f"{where} is {got!r}, expected a text")
    elif isinstance(meant, str) and meant == ANY_OBJECT:
        if not isinstance(got, dict):
            raise Wrong(f"{where} is {got!r}, expected an object")
    elif where.endswith(".arguments"):
        with contextlib.suppress(TypeError, ValueError):
            if json.loads(got) == json.loads(meant):
                return
        raise Wrong(f"{where} is {got!r}, expected {meant!r}")
    elif isinstance(meant, list) and _is_mistral(meant):
        if _thought_and_said(got) != _thought_and_said(meant):
            raise Wrong(f"{where} is {got!r}, expected {meant!r}")
    elif isinstance(meant, dict):
        if not isinstance(got, dict):
            raise Wrong(f"{where} is {got!r}, expected {meant!r}")
        for key in sorted({*meant, *got}):
            if key in _EITHER_WAY and key not in meant:
                continue
            ours, theirs = meant.get(key), got.get(key)
            if key == "content":
                ours, theirs = ours or None, theirs or None
            if theirs is None and ours is not None:
                raise Wrong(f"{where}.{key} did not come back")
            if ours is None and theirs is not None:
                raise Wrong(f"{where}.{key} came back, and never was: {theirs!r}")
            if ours is not None:
                _compare(ours, theirs, f"{where}.{key}", history, ids)
        if meant.get("type") in ("function", "function_call", "tool_use"):
            ids.append(got.get("call_id") or got.get("id") or "")
    elif isinstance(meant, list):
        if not isinstance(got, list) or len(got) != len(meant):
            raise Wrong(f"{where} is {got!r}, expected {meant!r}")
        for at, (ours, theirs) in enumerate(zip(meant, got, strict=True)):
            _compare(ours, theirs, f"{where}[{at}]", history, ids)
    elif meant != got or type(meant) is not type(got):
        raise Wrong(f"{where} is {got!r}, expected {meant!r}")


_EITHER_WAY = frozenset({"index", "status"})
"""Keys of the wire that may come back, or not."""


def _is_mistral(content: list[Any]) -> bool:
    """Whether it is content in parts, one of them thinking that is in parts itself."""
    return any(isinstance(part, dict) and isinstance(part.get("thinking"), list) for part in content)


def _thought_and_said(content: Any) -> tuple[str, str]:
    """The thinking and the text of content in parts, each joined."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    thought = [
        inner["text"] for part in parts if part.get("type") == "thinking" for inner in part["thinking"]
    ]
    said = [part["text"] for part in parts if part.get("type") == "text"]
    return "".join(thought), "".join(said)


def _results(api: str, history: History, calls: Sequence[Call], ids: Sequence[str]) -> None:
    if api == "anthropic":
        entry = history.next("the results")
        results = entry.get("content")
        if entry.get("role") != "user" or not isinstance(results, list) or len(results) != len(calls):
            raise Wrong(f"expected {len(calls)} results, not {entry}")
        shape = ("type", "tool_result", "tool_use_id", "content")
    elif api == "openai":
        results = [history.next(f"the result of {call.name}") for call in calls]
        shape = ("role", "tool", "tool_call_id", "content")
    else:
        results = [history.next(f"the result of {call.name}") for call in calls]
        shape = ("type", "function_call_output", "call_id", "output")
    kind, value, of, content = shape
    for call, id, result in zip(calls, ids, results, strict=True):
        if result.get(kind) != value:
            raise Wrong(f"expected the result of {id}, not {result}")
        if result.get(of) != id:
            raise Wrong(f"the result of {id!r} was sent for {result.get(of)!r}")
        said = result.get(content)
        if not isinstance(said, str) or not said:
            raise Wrong(f"the result of {id} is no text: {said!r}")
        if call.error is None and said != call.result:
            raise Wrong(f"the result of {id} is {said!r}, expected {call.result!r}")
        if api == "anthropic" and bool(result.get("is_error")) != (call.error is not None):
            raise Wrong(f"the result of {id} has is_error {result.get('is_error')!r}")


class Server:
    def __init__(self) -> None:
        self._conversations: dict[str, Conversation] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
                method, path = head[0].split()[:2]
                sizes = [line.partition(":")[2] for line in head[1:] if line.startswith("content-length:")]
                body = await reader.readexactly(int(sizes[0]) if sizes else 0)
                await self._answer(writer, method, path, body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, method: str, path: str, body: bytes) -> None:
        _, api, slug, cell, *_ = path.split("/")
        dialect = next(row for (of, name), row in _ROWS.items() if of == api and name.lower() == slug)
        conversation = self._conversations.setdefault(f"{api}/{slug}/{cell}", Conversation())
        if method == "get":
            await _send(writer, 200, vars(conversation))
            return
        asked = json.loads(body)
        number = conversation.replies
        if number == len(dialect.turns):
            why: str | None = "the conversation had ended"
        else:
            why = refusal(api, asked, dialect.turns[:number])
        if why is not None:
            conversation.refused.append(why)
            error = {"message": why, "type": "invalid_request_error"}
            await _send(
                writer, 400, {"type": "error", "error": error} if api == "anthropic" else {"error": error}
            )
            return
        conversation.replies += 1
        turn = dialect.turns[number]
        if not asked.get("stream"):
            await _send(writer, 200, turn.whole, compressed=turn.gzip)
        else:
            await _stream(writer, turn)


async def _send(writer: asyncio.StreamWriter, status: int, value: Any, *, compressed: bool = False) -> None:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    head = f"HTTP/1.1 {status} {'OK' if status == 200 else 'Bad Request'}\r\nX-Request-Id: req_1\r\n"
    head += "Content-Type: application/json\r\n"
    if compressed:
        body = gzip.compress(body)
        head += "Content-Encoding: gzip\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()


async def _stream(writer: asyncio.StreamWriter, turn: Turn) -> None:
    """Each piece is a chunk of its own, as far as the machine lets it be."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {turn.content_type}\r\nTransfer-Encoding: chunked\r\n"
    pieces = turn.stream or ()
    if turn.gzip:
        head += "Content-Encoding: gzip\r\n"
        deflate = zlib.compressobj(wbits=31)
        flushed = [deflate.compress(piece) + deflate.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]
        pieces = (*flushed, deflate.flush())
    writer.write(f"{head}\r\n".encode())
    for piece in pieces:
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await asyncio.sleep(0)
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _main() -> None:
    listening = await asyncio.start_server(Server().serve, "127.0.0.1", 0)
    sys.stdout.write(f"{listening.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await listening.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main())
