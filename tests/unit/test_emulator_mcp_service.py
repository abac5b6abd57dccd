"""MCP over HTTP without sockets: whatever is sent is answered, and the journal counts it once."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.emulator.http1 import Exchange, HttpReply
from profiler.emulator.journal import Journal
from profiler.emulator.server import Emulator
from profiler.mcp.session import META
from profiler.scenarios import load_scenario

BOTH = {"accept": "application/json, text/event-stream"}
LATEST = "2026-07-28"


class Line:
    """A connection that keeps what it is given."""

    def pump(self) -> None:
        pass


def emulator(journal: Journal | None = None) -> Emulator:
    return Emulator(load_scenario("instant"), 0, None, journal)  # type: ignore[arg-type]


def ask(server: Emulator, method: str, path: str, body: bytes = b"", **headers: str) -> HttpReply:
    fields = {name.replace("_", "-").encode(): value.encode() for name, value in (BOTH | headers).items()}
    exchange = Exchange(Line(), method.encode(), path.encode(), b"", fields, body, True, True)  # type: ignore[arg-type]
    server(exchange)
    assert exchange.reply is not None
    return exchange.reply


_VALUES = (
    st.none() | st.booleans() | st.integers(-3, 10**18) | st.text(max_size=6) | st.floats(allow_nan=False)
)
_ANY = st.recursive(
    _VALUES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
_META = st.fixed_dictionaries(
    {},
    optional={
        "io.modelcontextprotocol/protocolVersion": st.just(LATEST) | _ANY,
        "io.modelcontextprotocol/clientCapabilities": st.just({}),
        "progressToken": _ANY,
        META + "call": _ANY,
        META + "loop": _ANY,
        META + "trial": _ANY,
    },
)
_PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["get_weather", "nobody"]) | _ANY,
        "arguments": st.just({"city": "Oslo"}) | _ANY,
        "cursor": st.sampled_from(["1", "-1", "endless-5", "9" * 30]) | _ANY,
        "requestId": _ANY,
        "protocolVersion": _ANY,
        "_meta": _META | _ANY,
    },
)
_METHODS = (
    "tools/call", "tools/list", "initialize", "ping", "server/discover", "notifications/cancelled", "x",
)  # fmt: skip
_MESSAGES = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0"), "method": st.sampled_from(_METHODS)},
    optional={"id": st.integers(0, 5) | _ANY, "params": _PARAMS | _ANY},
)


@settings(max_examples=50)
@given(
    messages=st.lists(_MESSAGES | _ANY, max_size=4),
    version=st.sampled_from(["", LATEST, "2025-06-18", "x"]),
    named=st.booleans(),
)
def test_any_message_is_answered_and_nothing_stays_behind(
    messages: list[Any], version: str, named: bool
) -> None:
    journal = Journal()
    server = emulator(journal)
    headers = {"mcp_protocol_version": version} if version else {}
    for message in messages:
        if named and isinstance(message, dict):
            headers |= {"mcp_method": str(message.get("method")).encode("ascii", "replace").decode()}
        reply = ask(server, "POST", "/mcp", json.dumps(message).encode(), **headers)
        assert reply.status in (200, 202, 400, 404)
        observer = reply.observer
        if observer is not None:
            if reply.at_sending is not None:
                reply.at_sending(reply, 1 << 62)
            observer.finished(1 << 62, "complete")
        if reply.status == 200 and reply.frames is None:
            assert json.loads(reply.body)["jsonrpc"] == "2.0"
    assert journal.stats()["in_flight"] == {}
    assert sum(journal.stats()["requests"].get("mcp", {}).values()) == len(journal.entries())


def test_calls_are_counted_as_those_of_mcp() -> None:
    server = emulator()
    params = {"name": "get_weather", "arguments": {"city": "Oslo"}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
    reply = ask(server, "POST", "/mcp", body)
    assert reply.observer is not None
    reply.observer.finished(1, "complete")
    assert b'emulator_requests_total{api="mcp",status="200"} 1' in ask(server, "GET", "/metrics").body
    stats = json.loads(ask(server, "GET", "/emulator/stats").body)
    assert stats["requests"] == {"mcp": {"200": 1}}


def test_call_ids_are_not_kept_whole_however_long_they_are() -> None:
    journal = Journal()
    server = emulator(journal)
    meta = {META + "call": "c" * 100_000, META + "trial": "t" * 100_000}
    for name in ("get_weather", "n" * 100_000):
        params = {"name": name, "_meta": meta}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        ask(server, "POST", "/mcp", json.dumps(message).encode())
    assert max(len(str(value)) for entry in journal.entries() for value in entry.values()) == 256
