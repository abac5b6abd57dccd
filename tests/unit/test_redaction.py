"""What is taken out of texts, errors and log lines."""

from __future__ import annotations

import logging
import sys
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

from profiler.errors import ScenarioError, UsageError
from profiler.providers.endpoint import Endpoint
from profiler.providers.wire import api_of, requested_model
from profiler.redaction import (
    LogGuard,
    describe,
    environment_secrets,
    guard_logs,
    header_secrets,
    scrub,
    scrub_error,
)
from profiler.scenarios import parse_scenario

SCENARIO = """
description = "d"
prompt = "p"
[model]
first_token = { kind = "constant", value = 0.1 }
tokens_per_second = { kind = "constant", value = 0 }
api_keys = "CANARY"
[loop]
rounds = { kind = "constant", value = 1 }
fan_out = { kind = "constant", value = 1 }
[tools.t]
path = "/tools/t"
description = "d"
duration = { kind = "constant", value = 0 }
parameters = { type = "object" }
"""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET http://user:hunter22@host/v1", "GET http://[redacted]@host/v1"),
        ("Authorization: Bearer abcdefgh", "Authorization: Bearer [redacted]"),
        ("Incorrect API key provided: sk-proj-12345678.", "Incorrect API key provided: [redacted]."),
        ("my-own-secret and more", "[redacted] and more"),
        ("task-sequential, risk-averse at 10:00@host", "task-sequential, risk-averse at 10:00@host"),
    ],
)
def test_secrets_that_are_known_or_look_like_one_go(text: str, shown: str) -> None:
    assert scrub(text, {"my-own-secret"}) == shown


def test_headers_that_authenticate_are_secret_whole_and_in_parts() -> None:
    headers = [
        ("Authorization", "Bearer abcdef"),
        ("Cookie", "id=1234567; theme=abc"),
        ("X-Api-Key", "ghijklm"),
        ("Accept", "application/json"),
        ("x-token", "abc"),  # too short to be one
    ]
    found = header_secrets(headers)
    assert found == {
        "Bearer abcdef",
        "abcdef",
        "id=1234567; theme=abc",
        "id=1234567",
        "1234567",
        "theme=abc",
    } | {"ghijklm"}


def test_variables_whose_names_say_so_are_secret() -> None:
    environment = {
        "OPENAI_API_KEY": "abcdefg",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer hijklmn",
        "HOME": "/home/somebody",
        "KEYBOARD": "qwerty-layout",
        "https_proxy": "http://me:p%40ssword@proxy.example:3128",
        "HTTP_PROXY": "http://proxy.example:3128",
        "ALL_PROXY": "me:short@proxy.example",
    }
    assert environment_secrets(environment) == {
        "abcdefg",
        "authorization=Bearer hijklmn",
        "authorization=Bearer",
        "hijklmn",
        "p%40ssword",
        "p@ssword",
    }


def test_error_in_which_a_proxy_repeats_its_password_is_rid_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hunter22@proxy.example:3128")
    assert describe(RuntimeError("407, message='no me:hunter22'")).endswith("'no me:[redacted]'")


def test_error_and_its_causes_are_rid_of_what_their_request_carried() -> None:
    request = httpx.Request("POST", "http://127.0.0.1/v1", headers={"x-api-key": "abcdefgh"})
    cause = httpx.ReadError("refused abcdefgh", request=request)
    error = RuntimeError("because of abcdefgh")
    error.__cause__ = cause
    assert describe(error) == "RuntimeError: because of [redacted]"
    assert scrub_error(error) == "because of [redacted]"
    assert (str(error), str(cause)) == ("because of [redacted]", "refused [redacted]")


@pytest.mark.parametrize("sdk", [openai, anthropic])
def test_sdk_error_keeps_neither_message_nor_body_with_the_key(sdk: Any) -> None:
    """As when a provider repeats a wrong key."""
    given = {"authorization": "Bearer abcdefgh", "x-api-key": "ijklmnop"}
    request = httpx2.Request("POST", "http://127.0.0.1/v1", headers=given)
    body = {"error": {"message": "wrong: abcdefgh", "seen": ["ijklmnop", 7], "code": None}}
    response = httpx2.Response(401, request=request, json=body)
    error = sdk.AuthenticationError("401: abcdefgh, ijklmnop", response=response, body=body)
    assert scrub_error(error) == "401: [redacted], [redacted]"
    assert error.message == "401: [redacted], [redacted]"
    assert error.body == {"error": {"message": "wrong: [redacted]", "seen": ["[redacted]", 7], "code": None}}


def test_error_without_a_request_is_looked_at_all_the_same() -> None:
    error = httpx.ReadError("http://user:abcdefgh@host is gone")  # its request raises RuntimeError
    assert describe(error) == "ReadError: http://[redacted]@host is gone"
    again = ValueError("sk-abcdefgh", 7)
    again.__context__ = error
    error.__context__ = again  # a circle, as re-raised errors may make
    scrub_error(again)
    assert again.args == ("[redacted]", 7)


def test_guarded_handler_drops_request_logs_and_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "abcdefgh")
    guard = LogGuard()

    def shown(name: str, level: int, text: str, *args: object, exc_info: object = None) -> str | None:
        record = logging.LogRecord(name, level, "", 0, text, args, exc_info)  # type: ignore[arg-type]
        return logging.Formatter("%(message)s").format(record) if guard.filter(record) else None

    assert shown("openai._base_client", logging.DEBUG, "Request options: %s", {"content": "hello"}) is None
    assert shown("openai._base_client", logging.WARNING, "bad %s", "abcdefgh") == "bad [redacted]"
    assert shown("mine", logging.INFO, "at %s", "http://a:b@host/") == "at http://[redacted]@host/"
    try:
        raise ValueError("abcdefgh")
    except ValueError:
        text = shown("mine", logging.ERROR, "failed", exc_info=sys.exc_info())
    assert text is not None
    assert text.endswith("ValueError: [redacted]")
    handler = logging.NullHandler()
    logging.getLogger("guarded").addHandler(handler)
    guard_logs()
    guard_logs()
    assert [type(one) for one in handler.filters] == [LogGuard]


@pytest.mark.parametrize(
    "url",
    [
        "http://user:CANARY@127.0.0.1:80",
        "http://CANARY@127.0.0.1",
        "http://:CANARY@127.0.0.1",
        "user:CANARY@127.0.0.1",
        "ftp://user:CANARY@127.0.0.1",
        "http://user:CANARY@127.0.0.1:port",
        "http://user:CANARY@[::1",
        "http://127.0.0.1/v1#CANARY",
        "127.0.0.1?key=CANARY",
    ],
)
def test_url_with_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Endpoint.parse(url)
    assert "CANARY" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_keys_of_a_scenario_are_not_repeated() -> None:
    with pytest.raises(ScenarioError, match=r"model\.api_keys: expected a list of texts$"):
        parse_scenario(SCENARIO, name="n", source="n.toml")


def test_model_of_a_request_is_its_own_and_no_argument_of_that_name() -> None:
    body = b'{"messages":[{"input":{"model":"CANARY"}}],"model":"gpt-4o"}'
    assert requested_model(body) == "gpt-4o"
    assert [requested_model(other) for other in (b"", b"[]", b'{"model": 1}', b"{")] == [""] * 4


VERTEX = "/v1/projects/p/locations/eu/publishers/anthropic/models"


@pytest.mark.parametrize(
    ("path", "api", "model"),
    [
        ("/v1/chat/completions", "openai", ""),
        ("/openai/deployments/d 1/chat/completions", "openai", "d 1"),
        ("/openai/responses", "openai-responses", ""),
        ("/anthropic/v1/messages", "anthropic", ""),
        (f"{VERTEX}/claude-x@20260101:rawPredict", "anthropic", "claude-x@20260101"),
        (f"{VERTEX}/claude-x:streamRawPredict", "anthropic", "claude-x"),
        (f"{VERTEX}/count-tokens:rawPredict", None, ""),
        ("/v1/publishers/mistralai/models/m:rawPredict", None, ""),
        ("/v1/messages/count_tokens", None, ""),
        ("/v1/threads/thread_1/messages", None, ""),
        ("/openai/deployments/d/embeddings", None, ""),
    ],
)
def test_api_and_model_of_a_path(path: str, api: str | None, model: str) -> None:
    assert (api_of(path), requested_model(b"{}", path)) == (api, model)
    assert requested_model(b'{"model": "said"}', path) == "said"


def test_group_of_one_error_is_described_as_that_one() -> None:
    inner = ExceptionGroup("unhandled errors in a TaskGroup", [ValueError("no model")])
    assert describe(ExceptionGroup("unhandled errors in a TaskGroup", [inner])) == "ValueError: no model"
    several = ExceptionGroup("two", [ValueError("a"), ValueError("b")])
    assert describe(several).startswith("ExceptionGroup: two")
