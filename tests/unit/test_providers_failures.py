"""What a server said is shown, whatever shape it came in."""

from __future__ import annotations

import json

import pytest

from profiler.providers.failures import MOST_WORDS, words_of

BODIES = {
    "OpenAI's": (
        {"error": {"message": "Bad key.", "type": "invalid_request_error", "code": "invalid_api_key"}},
        "Bad key. (invalid_api_key)",
    ),
    "as its SDK keeps it": ({"message": "No such model", "type": "x", "code": None}, "No such model"),
    "Anthropic's": (
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}, "request_id": "r"},
        "Overloaded",
    ),
    "Google's list": (
        [{"error": {"code": 400, "message": "signature is missing", "status": "INVALID_ARGUMENT"}}],
        "signature is missing (INVALID_ARGUMENT)",
    ),
    "text": ("  upstream connect error\n or disconnect ", "upstream connect error or disconnect"),
    "text that is JSON": ('[{"error": {"message": "no"}}]', "no"),
    "bytes": (b'{"message": "no route \xff"}', "no route \ufffd"),
    "broken JSON": ('{"error": ', '{"error":'),
    "FastAPI's": (
        {"detail": [{"loc": ["body", "model"], "msg": "Field required", "type": "missing"}]},
        "body.model: Field required",
    ),
    "FastAPI's text": ({"detail": "Not Found"}, "Not Found"),
    "Spring's": ({"timestamp": "x", "status": 404, "error": "Not Found", "path": "/v4/v1"}, "Not Found"),
    "a name with its words": (
        {"error": "invalid_grant", "error_description": "expired"},
        "invalid_grant: expired",
    ),
    "vLLM's": ({"object": "error", "message": "no parser", "code": 400}, "no parser"),
    "Azure's gateway": ({"statusCode": 401, "message": "Access denied"}, "Access denied"),
    "AWS's": ({"Message": "The security token is invalid"}, "The security token is invalid"),
    "Cloudflare's": (
        {"success": False, "errors": [{"code": 1, "message": "Auth"}, {"code": 2, "message": "Again"}]},
        "Auth; Again",
    ),
    "a problem document": ({"type": "about:blank", "title": "Gone", "status": 410}, "Gone"),
    "OpenRouter's": (
        {"error": {"message": "Provider returned error", "metadata": {"raw": '{"detail":"too long"}'}}},
        "Provider returned error: too long",
    ),
    "words within text within an object": ({"error": '{"error": {"message": "inner"}}'}, "inner"),
    "an object of no known shape": ({"oops": [1]}, '{"oops": [1]}'),
    "a page": (
        "<html><head><title>502 Bad Gateway</title><style>p{}</style></head>"
        "<body><!-- x --><h1>502 Bad&nbsp;Gateway</h1><script>f(1)</script><hr>nginx</body></html>",
        "502 Bad Gateway nginx",
    ),
    "a page with a title of its own": (
        "<!DOCTYPE html><title>Sign in</title><body>Who are you?",
        "Sign in Who are you?",
    ),
    "XML": ("<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "NoSuchKey"),
    "a text in JSON": ('"just words"', "just words"),
    "a byte-order mark": ('\ufeff{"message": "marked"}', "marked"),
    "what steers a terminal": ({"message": "a\x1b[31mb\x00\r\nc\u202ed"}, "a [31mb c d"),
    "less than": ("1 < 2", "1 < 2"),
    "nothing": (None, ""),
    "an empty text": ("", ""),
    "an empty object": ({}, ""),
    "an empty list": ([], ""),
    "null": ("null", "null"),
    "null words": ({"error": {"message": None, "code": None}}, '{"error": {"message": null, "code": null}}'),
    "a number": (7, "7"),
}


@pytest.mark.parametrize(("body", "words"), BODIES.values(), ids=BODIES)
def test_servers_own_words(body: object, words: str) -> None:
    assert words_of(body) == words


def test_long_words_are_cut_after_secrets_are_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_API_KEY", "very-secret-value")
    said = words_of({"error": {"message": "a" * (MOST_WORDS - 5) + "very-secret-value"}})
    assert said == "a" * (MOST_WORDS - 5) + "[reda…"
    assert words_of("x" * 3_000_000) == "x" * MOST_WORDS + "…"
    assert words_of("<script " * 1_000_000) != ""


def test_depth_is_no_trouble() -> None:
    deep: object = "end"
    for _ in range(5_000):
        deep = {"error": [deep]}
    assert words_of(deep) == ""
    assert words_of("[" * 2_000 + "]" * 2_000).startswith("[[[[")
    assert json.loads(words_of({"a": {"b": {"c": 1}}})) == {"a": {"b": {"c": 1}}}
