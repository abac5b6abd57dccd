"""What is sent to MCP servers, and what their answers mean."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.mcp import wire
from profiler.mcp.session import ListedTool, ServerInfo


def test_request_of_the_modern_era_carries_its_version() -> None:
    message = wire.request(7, "tools/call", {"name": "search", "arguments": {}}, wire.envelope(True))
    assert json.loads(wire.encoded(message)) == {
        "jsonrpc": "2.0",
        "id": 7,
        "method": "tools/call",
        "params": {
            "name": "search",
            "arguments": {},
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientInfo": wire.CLIENT,
                "io.modelcontextprotocol/clientCapabilities": {},
            },
        },
    }


def test_request_of_the_older_era_has_no_meta_of_its_own() -> None:
    assert "_meta" not in wire.request(1, "tools/list", {}, wire.envelope(False))["params"]


@pytest.mark.parametrize("value", [2**70, "\ud83d", {1: 2}])
def test_arguments_that_the_fast_encoder_refuses_are_sent_all_the_same(value: Any) -> None:
    assert json.loads(wire.encoded({"a": value})) == {"a": {"1": 2} if isinstance(value, dict) else value}


def test_arguments_that_json_cannot_hold_are_an_error() -> None:
    with pytest.raises(TypeError):
        wire.encoded({"a": {1, 2}})


def test_answer_that_is_nested_too_deeply_is_no_json() -> None:
    with pytest.raises(ValueError, match="recursion"):
        wire.decoded("[" * 100_000)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"id": 7, "result": {}}, True),
        ({"id": "7", "result": {}}, True),
        ({"id": 7, "error": {}}, True),
        ({"id": 8, "result": {}}, False),
        ({"id": None, "error": {}}, False),
        ({"id": True, "result": {}}, False),
        ({"id": 7}, False),
    ],
)
def test_answer_belongs_to_the_request_with_its_id(message: dict[str, Any], expected: bool) -> None:
    assert wire.answers(message, 7) is expected


def test_server_that_asks_gets_an_answer() -> None:
    assert wire.reply_to({"id": "s1", "method": "ping"}) == {"jsonrpc": "2.0", "id": "s1", "result": {}}
    refused = wire.reply_to({"id": 3, "method": "sampling/createMessage"})
    assert refused is not None
    assert (refused["id"], refused["error"]["code"]) == (3, -32601)
    assert wire.reply_to({"method": "notifications/message"}) is None


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (
            {
                "supportedVersions": ["2026-07-28"],
                "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "a", "version": "1"}},
            },
            ServerInfo("a", "1", "2026-07-28"),
        ),
        ({"supportedVersions": ["2026-07-28"]}, ServerInfo("", "", "2026-07-28")),
        ({"supportedVersions": ["2025-11-25"]}, None),
        ({}, None),
        ("yes", None),
    ],
)
def test_discovery(result: Any, expected: ServerInfo | None) -> None:
    assert wire.discovered(result) == expected


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (
            {"protocolVersion": "2024-11-05", "serverInfo": {"name": "old", "version": 2}},
            ServerInfo("old", "2", "2024-11-05"),
        ),
        ({"protocolVersion": "2025-06-18"}, ServerInfo("", "", "2025-06-18")),
        ({"serverInfo": {}}, None),
        (None, None),
    ],
)
def test_initialization(result: Any, expected: ServerInfo | None) -> None:
    assert wire.initialized(result) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("search", "search"),
        ("Århus", "=?base64?w4VyaHVz?="),
        (" a", "=?base64?IGE=?="),
        ("a\nb", "=?base64?YQpi?="),
        ("=?base64?YQ==?=", "=?base64?PT9iYXNlNjQ/WVE9PT89?="),
    ],
)
def test_header_holds_any_text(text: str, expected: str) -> None:
    assert wire.header_value(text) == expected


def test_arguments_that_the_schema_marks_are_mirrored() -> None:
    schema = {
        "properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "inner": {"properties": {"dry": {"type": "boolean", "x-mcp-header": "Dry"}}},
            "bad": {"x-mcp-header": "not a token"},
            "list": {"type": "array", "x-mcp-header": "List"},
        }
    }
    wanted = wire.mirrored(schema)
    assert wanted == {
        ("region",): "Mcp-Param-Region",
        ("inner", "dry"): "Mcp-Param-Dry",
        ("list",): "Mcp-Param-List",
    }
    given_arguments = {"region": "eu", "inner": {"dry": True}, "list": [1]}
    assert wire.argument_headers(wanted, given_arguments) == {
        "Mcp-Param-Region": "eu",
        "Mcp-Param-Dry": "true",
    }
    assert wire.argument_headers(wanted, {"inner": "none"}) == {}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("total;dur=123.4", 123_400_000),
        ('db;dur=53, app;dur="47.2"', 53_000_000),
        ('cache;desc="Cache Read";dur=23.2, total;dur=5', 5_000_000),
        ("miss", None),
        ("total;dur=fast", None),
        ("total;dur=-1", None),
        ("total;dur=nan", None),
        ("", None),
        (None, None),
    ],
)
def test_server_timing(header: str | None, expected: int | None) -> None:
    assert wire.server_timing_ns(header) == expected


STREAM = (
    b"\xef\xbb\xbf: a comment\n\n"
    b"id: 1\ndata:\n\n"
    b'event: message\r\ndata: {"a":\r\ndata: 1}\r\n\r\n'
    b"event: ping\ndata: nothing\n\n"
    b"retry: 10\rdata:two\r\r"
    b"data: cut off"
)


def test_events() -> None:
    reader = wire.EventReader()
    assert reader.feed(STREAM) == [b"", b'{"a":\n1}', b"two"]
    assert reader.last_id == b"1"


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_are_the_same_however_they_are_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    reader = wire.EventReader()
    found = [one for a, b in itertools.pairwise(edges) for one in reader.feed(STREAM[a:b])]
    assert found == [b"", b'{"a":\n1}', b"two"]


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"result": {"content": [text("a"), text("b")]}}, ("a\nb", None, None)),
        ({"result": {"content": [text("no")], "isError": True}}, ("no", "tool_error", None)),
        ({"result": {"content": [], "structuredContent": {"n": 1}}}, ('{"n":1}', None, None)),
        ({"result": {"content": [text("n is 1")], "structuredContent": {"n": 1}}}, ("n is 1", None, None)),
        ({"result": {"toolResult": {"n": 1}}}, ('{"n":1}', None, None)),
        ({"result": {}}, ("", None, None)),
        ({"result": {"content": [{"type": "resource", "resource": text("in it")}]}}, ("in it", None, None)),
        (
            {"result": {"content": [{"type": "audio", "mimeType": "audio/wav", "data": "AAAA"}]}},
            ('{"type":"audio","mimeType":"audio/wav","bytes":3}', None, None),
        ),
        (
            {"result": {"content": [{"type": "resource", "resource": {"uri": "a:b", "blob": "A" * 400}}]}},
            ('{"type":"resource","uri":"a:b","bytes":300}', None, None),
        ),
        (
            {"result": {"content": [text("a")], "_meta": {"toolcall-profiler/serverNs": 5}}},
            ("a", None, 5),
        ),
        (
            {"result": {"content": [text("a")], "_meta": {"toolcall-profiler/serverNs": "5"}}},
            ("a", None, None),
        ),
        ({"error": {"code": -32602, "message": "no city"}}, ("no city", "rpc_-32602", None)),
        ({"error": {"code": 17, "message": "m", "data": "why"}}, ("m: why", "rpc_error", None)),
        ({"error": {"code": 17}}, ("error 17", "rpc_error", None)),
        ({"error": "broken"}, ("broken", "rpc_error", None)),
        ({"result": [1]}, ("the server answered without a result", "invalid_reply", None)),
    ],
)
def test_meaning(message: dict[str, Any], expected: tuple[str, str | None, int | None]) -> None:
    meant = wire.meaning(message)
    assert (meant.text, meant.error_type, meant.server_ns) == expected


def test_server_that_asks_for_input_cannot_be_answered() -> None:
    meant = wire.meaning({"result": {"resultType": "input_required", "inputRequests": {}}})
    assert meant.error_type == "input_required"
    assert "which a load test cannot give" in meant.text


def test_value_that_is_too_deep_to_be_shown() -> None:
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    meant = wire.meaning({"result": {"structuredContent": {"a": value}}})
    assert (meant.text, meant.error_type) == ("a value that is nested too deeply to be shown", None)


def test_listing() -> None:
    page = {
        "tools": [
            {"name": "a", "description": "A.", "inputSchema": {"type": "object"}},
            {"name": "b", "annotations": {"readOnlyHint": True}},
            {"name": "c", "annotations": {"readOnlyHint": "yes"}, "inputSchema": None},
            {"title": "without a name"},
            "no tool",
        ],
        "nextCursor": "2",
    }
    assert wire.listed(page) == (
        [
            ListedTool("a", "A.", {"type": "object"}),
            ListedTool("b", "", {"type": "object"}, read_only=True),
            ListedTool("c", "", {"type": "object"}),
        ],
        "2",
    )
    assert wire.listed({"tools": []}) == ([], None)
    assert wire.listed({}) is None
