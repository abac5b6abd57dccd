"""What the lean client sends, and what of a server's words it heeds; without sockets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx2
import pytest

from profiler.errors import UsageError
from profiler.providers import CLIENTS, ClientName, make_provider
from profiler.providers.endpoint import NO_KEY, Endpoint, proxy_of, sdk_options
from profiler.providers.lean import LeanClient, LeanModel

HOME = "http://model.example/v1"
VARIABLES = (
    *("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_BASE_URL", "OPENAI_CUSTOM_HEADERS"),
    *("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "ANTHROPIC_CUSTOM_HEADERS"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def sent(provider: str = "openai", url: str = HOME, **headers: str) -> dict[str, str]:
    """The headers of requests to an endpoint with these."""
    given = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    endpoint = replace(Endpoint.parse(url), headers=given)
    model = make_provider(provider, base_url=endpoint, client="lean")
    assert isinstance(model, LeanModel)
    return {name.decode(): value.decode() for name, value in model.client._headers}


@pytest.mark.parametrize(
    ("provider", "environment", "authorization"),
    [
        ("openai", {"OPENAI_API_KEY": "sk-1"}, "Bearer sk-1"),
        ("openai-responses", {"OPENAI_API_KEY": "sk-1"}, "Bearer sk-1"),
        ("anthropic", {"ANTHROPIC_API_KEY": "sk-2"}, "Bearer sk-2"),
        ("anthropic", {"ANTHROPIC_AUTH_TOKEN": "token"}, "Bearer token"),
        ("anthropic", {"ANTHROPIC_API_KEY": "sk-2", "ANTHROPIC_AUTH_TOKEN": "token"}, "Bearer sk-2"),
    ],
)
def test_key_is_the_environment_s_and_sent_as_the_sdks_send_it(
    provider: str, environment: dict[str, str], authorization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"no key: set (OPENAI|ANTHROPIC)_API_KEY"):
        sent(provider)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    headers = sent(provider)
    assert headers["authorization"] == authorization
    assert "x-api-key" not in headers
    assert ("anthropic-version" in headers) is (provider == "anthropic")


@pytest.mark.parametrize("client", CLIENTS)
def test_token_of_the_environment_goes_to_a_server_here_too(
    client: ClientName, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = "http://127.0.0.1:1"
    assert sdk_options(Endpoint.parse(local), "anthropic", None)["api_key"] == NO_KEY
    assert sent("anthropic", local)["authorization"] == f"Bearer {NO_KEY}"
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "token")
    made: Any = make_provider("anthropic", base_url=local, client=client)
    if client == "sdk":
        assert (made.client.api_key, made.client.auth_token) == (None, "token")
    else:
        assert sent("anthropic", local)["authorization"] == "Bearer token"


def test_headers_of_the_environment_and_of_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    monkeypatch.setenv("OPENAI_ORG_ID", "org")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Team: red\nX-Same: environment\nno header")
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "X-Other: blue")
    headers = sent(X_Same="option", Host="gateway.example")
    assert headers["openai-organization"] == "org"
    assert headers["openai-project"] == "project"
    assert (headers["x-team"], headers["x-same"], headers["host"]) == ("red", "option", "gateway.example")
    assert "x-other" not in headers
    keyed = sent(Authorization="Basic abc")
    assert keyed["authorization"] == "Basic abc"


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"x": "a\r\nb: c"}, "the value of the header 'x' has a line break in it"),
        ({"x\r\ny": "a"}, "no header that can be sent"),
        ({"x y": "a"}, "no header that can be sent: 'x y'"),
        ({"é": "a"}, "no header that can be sent"),
        ({"Transfer-Encoding": "chunked"}, "no header that can be sent: 'Transfer-Encoding'"),
        ({"Content-Length": "1"}, "no header that can be sent"),
    ],
)
def test_header_that_would_not_arrive_as_one_is_refused(headers: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        LeanClient(Endpoint.parse(HOME), headers, 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1}])
def test_field_that_is_no_json_is_refused(value: object) -> None:
    for provider in ("openai", "anthropic"):
        with pytest.raises(UsageError, match="the fields of the body cannot be sent"):
            make_provider(provider, base_url=HOME, api_key="k", body={"temperature": value}, client="lean")


@pytest.mark.parametrize(
    ("home", "there", "withheld"),
    [
        ("http://a.example", "http://a.example/other", set()),
        ("http://a.example", "https://a.example/", set()),  # the same server, by TLS
        ("https://a.example", "http://a.example/", {"authorization"}),
        ("http://a.example:8000", "https://a.example/", {"authorization"}),
        ("http://a.example:8000", "http://a.example:8001/", {"authorization"}),
        ("http://a.example", "http://b.example/", {"authorization", "x-mine"}),
    ],
)
def test_redirect_to_another_origin_gets_no_key_and_to_another_host_no_header_of_ours(
    home: str, there: str, withheld: set[str]
) -> None:
    endpoint = replace(Endpoint.parse(home), headers=(("X-Mine", "secret"),))
    client = LeanClient(endpoint, {"authorization": "Bearer k", "x-mine": "secret", "accept": "*/*"}, 2)
    url = httpx2.URL(there)
    names = [name for name, _ in client._headers]
    assert {name.decode() for name in names if client._is_withheld(name.decode(), name, url)} == withheld


PROXY = "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({"HTTP_PROXY": PROXY}, "http://model.example", PROXY),
        ({"HTTP_PROXY": PROXY}, "https://model.example", None),
        ({"ALL_PROXY": PROXY}, "https://model.example", PROXY),
        ({"ALL_PROXY": PROXY, "HTTPS_PROXY": "http://other:1"}, "https://model.example", "http://other:1"),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "model.example"}, "https://model.example", None),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "example"}, "https://model.example", None),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "192.0.2.7:8000"}, "http://192.0.2.7:8000", None),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "192.0.2.7:8000"}, "http://192.0.2.7:8001", PROXY),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "a.example, 192.0.2.0/24"}, "http://192.0.2.7:8000", None),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "192.0.2.0/24,x/y"}, "http://192.0.3.7:8000", PROXY),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "2001:db8::/32"}, "http://[2001:db8::1]:8000", None),
    ],
)
def test_proxy_is_the_environment_s(
    environment: dict[str, str], url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(url, is_loopback=False) == proxy
    assert proxy_of(url, is_loopback=True) is None


def test_proxy_that_cannot_be_used_is_refused_when_the_model_is_made(monkeypatch: Any) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@proxy.example:1080")
    with pytest.raises(UsageError, match="speaks to proxies by http:// alone") as refused:
        make_provider("openai", base_url=HOME, api_key="k", client="lean")
    assert "secret" not in str(refused.value)
    make_provider("openai", base_url="http://127.0.0.1:1", client="lean")  # by no proxy
