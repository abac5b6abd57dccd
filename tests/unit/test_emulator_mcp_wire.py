"""MCP as a server reads and writes it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.emulator.mcp_wire import (
    CallAnswer,
    Message,
    Refusal,
    check_mirrored,
    check_modern,
    is_modern,
    mirrored,
    read_message,
    server_timing,
)

LATEST = "2026-07-28"
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": LATEST,
    "io.modelcontextprotocol/clientCapabilities": {},
}


def call(name: str = "look", meta: Any = None, **arguments: Any) -> Message:
    params = {"name": name, "arguments": arguments, "_meta": ENVELOPE if meta is None else meta}
    return Message("tools/call", params, 1, True)


def headers(name: str = "look", **more: bytes) -> dict[bytes, bytes]:
    given = {"mcp-protocol-version": LATEST.encode(), "mcp-method": b"tools/call", "mcp-name": name.encode()}
    return {key.encode(): value for key, value in (given | more).items()}


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["jsonrpc", "id", "method", "params", "result", "_meta"]), inner),
    max_leaves=12,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_line_is_a_message_or_is_refused_in_words(line: bytes) -> None:
    refused: Refusal | None = None
    try:
        message = read_message(line)
    except Refusal as refusal:
        refused, message = refusal, None
    if refused is not None:
        error = json.loads(refused.body())["error"]
        assert refused.status == 400
        assert error["code"] in (-32700, -32600, -32602)
        assert error["message"]
    assert message is None or (message.method is not None and message.cancels is None)


def test_message_that_cancels_names_a_request_that_can_be_looked_up() -> None:
    for ident, expected in ((7, 7), ("7", "7"), ([7], None), (True, None), (None, None)):
        params = {"requestId": ident}
        assert Message("notifications/cancelled", params, None, False).cancels == expected
    assert Message("notifications/cancelled", {"requestId": 7}, 1, True).cancels is None


def test_era_is_told_by_the_envelope_or_the_header() -> None:
    bare = Message("tools/list", {}, 1, True)
    assert is_modern(call(), {}) is True
    assert is_modern(bare, {b"mcp-protocol-version": LATEST.encode()}) is True
    assert is_modern(bare, {b"mcp-protocol-version": b"2025-06-18"}) is False
    assert is_modern(bare, {}) is False
    # An SDK may put the envelope on the handshake of the older protocol too.
    assert is_modern(Message("initialize", {"_meta": ENVELOPE}, 1, True), {}) is False
    with pytest.raises(Refusal) as refused:
        is_modern(bare, {b"mcp-protocol-version": b"1.0"})
    assert (refused.value.code, refused.value.data["supported"]) == (-32022, [LATEST])


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("look", b"look"),
        ("schön", b"=?base64?c2Now7Zu?="),
        ("=?base64?bG9vaw==?=", b"=?base64?PT9iYXNlNjQ/Ykc5dmF3PT0/PQ==?="),
    ],
)
def test_name_in_the_header_may_be_encoded(name: str, header: bytes) -> None:
    check_modern(call(name), headers(**{"mcp-name": header}))


@pytest.mark.parametrize(
    "header", [b"other", b"=?base64?bG9va?=", b"=?base64?bG9v!w==?=", b"=?base64?/w==?="]
)
def test_name_in_the_header_that_is_another_or_broken_is_refused(header: bytes) -> None:
    with pytest.raises(Refusal, match="mcp-name") as refused:
        check_modern(call(), headers(**{"mcp-name": header}))
    assert refused.value.code == -32020


@pytest.mark.parametrize(
    ("meta", "code"),
    [
        ([], -32602),
        ({}, -32602),
        ({**ENVELOPE, "io.modelcontextprotocol/protocolVersion": 2026}, -32602),
        ({**ENVELOPE, "io.modelcontextprotocol/protocolVersion": "2031-01-01"}, -32022),
    ],
)
def test_envelope_is_checked_without_headers_too(meta: Any, code: int) -> None:
    with pytest.raises(Refusal) as refused:
        check_modern(call(meta=meta), None)
    assert refused.value.code == code


def test_arguments_that_the_schema_puts_into_headers_have_to_be_there() -> None:
    schema = {
        "properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "other": {"type": "string"},
            "deep": {"type": "object", "properties": {"dry": {"type": "boolean", "x-mcp-header": "Dry"}}},
        }
    }
    repeated = mirrored(schema)
    assert sorted(repeated) == [(("deep", "dry"), b"mcp-param-dry"), (("region",), b"mcp-param-region")]
    message = call(region="eu", deep={"dry": True})
    right = {b"mcp-param-region": b"eu", b"mcp-param-dry": b"true"}
    check_mirrored(message, repeated, right)
    check_mirrored(call(other="x"), repeated, {})
    for wrong in ({**right, b"mcp-param-dry": b"True"}, {b"mcp-param-region": b"eu"}):
        with pytest.raises(Refusal, match=r"deep\.dry"):
            check_mirrored(message, repeated, wrong)
    with pytest.raises(Refusal, match="region"):
        check_mirrored(call(), repeated, {b"mcp-param-region": b"eu"})


def test_answer_tells_the_time_in_every_form() -> None:
    for modern in (False, True):
        message = json.loads(CallAnswer("a", modern, 'say "x"', structured={"answer": {}}).body(1234))
        result = message["result"]
        assert (message["id"], result["content"]) == ("a", [{"type": "text", "text": 'say "x"'}])
        assert result["_meta"]["toolcall-profiler/serverNs"] == 1234
        assert (result.get("resultType"), result["isError"]) == ("complete" if modern else None, False)
        assert ("io.modelcontextprotocol/serverInfo" in result["_meta"]) is modern
    assert json.loads(CallAnswer(1, True, "no", code=-32000).body(5))["error"] == {
        "code": -32000,
        "message": "no",
        "data": {"toolcall-profiler/serverNs": 5},
    }
    assert server_timing(12_000_345) == b"server-timing: tool;dur=12.000345\r\n"
