"""A server of a few lines: whatever bytes a test wants, over plain sockets or TLS, and what it was asked."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

TLS_HANDSHAKE = 0x16

RESET = b"reset"
"""Instead of an answer: the connection is reset."""


@dataclass(frozen=True)
class Asked:
    """A request as it came; names of headers in lower case."""

    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


def _end_after_alert(connection: ssl.SSLSocket) -> None:
    """Close so that the client gets the alert: with what it sent unread, the connection would be reset."""
    with socket.socket(fileno=connection.detach()) as plain:
        plain.shutdown(socket.SHUT_WR)
        plain.settimeout(5)
        while plain.recv(65536):
            pass


Answer = Callable[[Asked], bytes]


def response(
    status: int, body: Any = b"", kind: str = "application/json", length: int | None = None
) -> bytes:
    """A whole response. `length` other than that of the body: one that is cut off."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} Said\r\ncontent-type: {kind}\r\nx-request-id: req_7\r\nconnection: close\r\n"
    return f"{head}content-length: {len(raw) if length is None else length}\r\n\r\n".encode() + raw


def events(*data: Any, names: bool = False) -> bytes:
    """A whole streamed response; with `names` each event is introduced by its `type`, as Anthropic does."""
    lines = [
        (f"event: {one['type']}\n" if names else "")
        + f"data: {one if isinstance(one, str) else json.dumps(one)}\n\n"
        for one in data
    ]
    return response(200, "".join(lines).encode(), "text/event-stream")


class PlainServer:
    """Answers each request as `answer` says; `asked` are the requests so far."""

    def __init__(self, answer: Answer, context: ssl.SSLContext | None = None) -> None:
        self.asked: list[Asked] = []
        self._answer, self._context = answer, context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.url = f"{'http' if context is None else 'https'}://{self.host}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # ends `accept`, which closing alone does not on Linux
        self._listening.close()
        self._thread.join(60)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            if self._context is not None:
                connection = self._context.wrap_socket(
                    connection, server_side=True, do_handshake_on_connect=False
                )
                try:
                    connection.do_handshake()
                except ssl.SSLError:
                    _end_after_alert(connection)
                    return
            with connection:
                self._exchange(connection)

    def _exchange(self, connection: socket.socket) -> None:
        read = b""
        while b"\r\n\r\n" not in read:
            if not (more := connection.recv(65536)):
                return
            read += more
            if read[0] == TLS_HANDSHAKE:
                connection.sendall(response(400, b"this is plain HTTP"))
                return
        head, _, raw = read.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)
        }
        while len(raw) < int(headers.get("content-length", "0")):
            raw += connection.recv(65536)
        asked = Asked(first.split()[1], headers, raw)
        self.asked.append(asked)
        answer = self._answer(asked)
        if answer is RESET:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            connection.sendall(answer)


@contextlib.contextmanager
def serving(answer: Answer, context: ssl.SSLContext | None = None) -> Iterator[PlainServer]:
    server = PlainServer(answer, context)
    try:
        yield server
    finally:
        server.close()


def calls(*called: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """A Chat completion that asks for these calls: name, arguments."""
    asked = [
        {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
        for n, (name, given) in enumerate(called)
    ]
    message = {"role": "assistant", "content": None, "tool_calls": asked}
    return _completion(message, "tool_calls")


def answer(text: str = "Done.") -> dict[str, Any]:
    """A Chat completion that answers."""
    return _completion({"role": "assistant", "content": text}, "stop")


def _completion(message: dict[str, Any], finish_reason: str) -> dict[str, Any]:
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 70},
    }


def message(*blocks: dict[str, Any], reason: str = "end_turn") -> dict[str, Any]:
    """A message of Anthropic's API."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": list(blocks),
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 50, "output_tokens": 20},
    }


def responded(text: str = "Done.") -> dict[str, Any]:
    """A response of OpenAI's Responses API that answers."""
    content = [{"type": "output_text", "text": text, "annotations": []}]
    item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "status": "completed",
        "output": [item],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 50,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 20,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 70,
        },
    }
