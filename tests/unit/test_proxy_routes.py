"""Which upstream a path finds, what it is asked for there, and which options are refused."""

from __future__ import annotations

import pytest

from profiler.errors import UsageError
from profiler.providers.endpoint import proxy_of
from profiler.proxy.routes import Upstream, routes
from profiler.proxy.through import behind_proxies

TWO = ("https://api.openai.com", "https://api.anthropic.com/")
NAMED = ("openai=https://gate.example/v1", "anthropic=https://gate.example/claude")
PATHS = (
    "/azure=https://x.azure.com/openai",
    "/azure/eu=https://eu.azure.com:8443",
    "https://api.openai.com/v1",
)


@pytest.mark.parametrize(
    ("specs", "target", "url"),
    [
        (("http://localhost:4000",), b"/anything?at=all", "http://localhost:4000/anything?at=all"),
        (("http://localhost:4000",), b"*", "http://localhost:4000/*"),
        (TWO, b"/v1/chat/completions", "https://api.openai.com/v1/chat/completions"),
        (TWO, b"/v1/responses/resp_1", "https://api.openai.com/v1/responses/resp_1"),
        (TWO, b"/v1/models", "https://api.openai.com/v1/models"),
        (TWO, b"/v1/messages?beta=true", "https://api.anthropic.com/v1/messages?beta=true"),
        (TWO, b"/v1/messages/count_tokens", "https://api.anthropic.com/v1/messages/count_tokens"),
        (TWO, b"/v1/messagesx?a=/messages", "https://api.openai.com/v1/messagesx?a=/messages"),
        (NAMED, b"/v1/messages", "https://gate.example/claude/v1/messages"),
        (NAMED, b"/v1/chat/completions", "https://gate.example/v1/chat/completions"),
        (NAMED, b"/chat/completions", "https://gate.example/v1/chat/completions"),
        (NAMED, b"/v1beta/x", "https://gate.example/v1/v1beta/x"),
        (
            PATHS,
            b"/azure/deployments/a?api-version=1",
            "https://x.azure.com/openai/deployments/a?api-version=1",
        ),
        (PATHS, b"/azure/eu/x", "https://eu.azure.com:8443/x"),
        (PATHS, b"/azure", "https://x.azure.com/openai"),
        (PATHS, b"/azure?x=1", "https://x.azure.com/openai?x=1"),
        (PATHS, b"/azurex/v1/messages", "https://api.openai.com/v1/azurex/v1/messages"),
        (("http://[::1]:80/v2",), b"/v2/x", "http://[::1]/v2/x"),
        (("http://bücher.example",), b"/x", "http://xn--bcher-kva.example/x"),
    ],
)
def test_route_of_a_path(specs: tuple[str, ...], target: bytes, url: str) -> None:
    found = routes(specs).find(target)
    assert found is not None
    assert found.origin + found.target(target).decode() == url


def test_route_goes_by_the_header_that_only_one_api_has() -> None:
    found = routes(TWO).find(b"/v1/models", anthropic=True)
    assert found is not None
    assert found.origin == "https://api.anthropic.com"


@pytest.mark.parametrize(
    ("mcp", "target", "url"),
    [
        ("https://tools.example/mcp", b"/mcp", "https://tools.example/mcp"),
        ("https://tools.example/a/mcp/", b"/mcp?x=1", "https://tools.example/a/mcp?x=1"),
        ("http://127.0.0.1:8000", b"/mcp", "http://127.0.0.1:8000/mcp"),
        ("/git=https://tools.example/v1", b"/git", "https://tools.example/v1"),
        ("/git=https://tools.example/v1", b"/git/sse", "https://tools.example/v1/sse"),
    ],
)
def test_route_to_an_mcp_server_is_its_url(mcp: str, target: bytes, url: str) -> None:
    found = routes(TWO, [mcp]).find(target)
    assert found is not None
    assert (found.kind, found.origin + found.target(target).decode()) == ("mcp", url)


def test_route_to_mcp_alone_leaves_other_paths_unanswered() -> None:
    assert routes((), ["https://tools.example/mcp"]).find(b"/v1/models") is None


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("https://api.openai.com", ["P/v1"]),
        ("https://api.anthropic.com", ["P"]),
        ("http://localhost:4000", ["P/v1", "P"]),
        ("http://localhost:4000/v1", ["P/v1", "P"]),
        ("/x=https://api.openai.com/v1", ["P/x/v1"]),
        ("/x=https://y.openai.azure.com/openai", ["P/x"]),
        ("anthropic=http://localhost:4000", ["P"]),
    ],
)
def test_base_urls_that_clients_are_told(spec: str, expected: list[str]) -> None:
    (upstream,) = routes([spec]).upstreams
    assert [upstream.base_url("P", api) for api in upstream.apis] == expected


def upstream(spec: str) -> Upstream:
    return routes([spec]).upstreams[0]


@pytest.mark.parametrize(
    ("spec", "location", "told"),
    [
        ("https://a.example", b"https://a.example/x?y=1", b"/x?y=1"),
        ("/p=https://a.example/v1", b"https://a.example/v1/x", b"/p/x"),
        ("/p=https://a.example/v1", b"https://a.example/other", b"https://a.example/other"),
        ("https://a.example", b"https://a.example.evil/x", b"https://a.example.evil/x"),
        ("https://a.example", b"https://a.example", b"/"),
        ("https://a.example", b"/x", b"/x"),
    ],
)
def test_location_of_the_upstream_itself_is_told_as_the_proxys(
    spec: str, location: bytes, told: bytes
) -> None:
    assert upstream(spec).location(location) == told


@pytest.mark.parametrize(
    ("specs", "mcp", "words"),
    [
        ((), (), "nothing to forward to"),
        (("http://a", "http://b"), (), "which requests go to http://a and which to http://b"),
        (("/x=http://a", "/x=http://b"), (), "would both be at /x"),
        (("/mcp=http://a",), ("http://b/mcp",), "would both be at /mcp"),
        ((), ("http://a/mcp", "http://b/mcp"), "would both be at /mcp"),
        (("/profiler/x=http://a",), (), "/profiler is the proxy's own"),
        (("gemini=http://a",), (), "expected a path such as /openai, or openai or anthropic,"),
        ((), ("openai=http://a",), "expected a path before the ="),
        (("/a b=http://a",), (), "expected a path such as /openai before the ="),
        (("api.openai.com",), (), "not a base URL"),
        (("ftp://a",), (), "not a base URL"),
        (("http://a?key=1",), (), "the URL of a has a query"),
        (("http://user:pw-1@a",), (), "holds credentials"),
    ],
)
def test_upstreams_that_cannot_be_told_apart_or_asked(
    specs: tuple[str, ...], mcp: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        routes(specs, mcp)
    assert words in str(caught.value)
    assert "pw-1" not in str(caught.value)


def test_upstreams_are_behind_the_proxies_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    urls = [
        "/a=https://api.example",
        "/b=http://10.0.0.8:8000/v1",
        "/c=https://own.example",
        "/d=http://localhost:1",
    ]

    def through() -> list[str]:
        found = behind_proxies(routes(urls), proxy_of)
        return ["" if one.through is None else str(one.through) for one in found.upstreams]

    assert through() == [""] * 4
    monkeypatch.setenv("HTTPS_PROXY", "http://user:canary@proxy.example:3128")
    monkeypatch.setenv("HTTP_PROXY", "plain.example")
    monkeypatch.setenv("NO_PROXY", "own.example")
    assert through() == ["proxy.example:3128", "plain.example:80", "", ""]  # none for this machine
    assert "canary" not in repr(behind_proxies(routes(urls), proxy_of).upstreams)
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy.example:1080")
    with pytest.raises(UsageError) as raised:
        through()
    assert str(raised.value) == (
        "HTTPS_PROXY: only a proxy that is asked by http can be used, as in http://proxy.example:3128; "
        "NO_PROXY=api.example has https://api.example asked directly"
    )
