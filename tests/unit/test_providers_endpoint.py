"""Which addresses are this machine's alone, and what is said of those that are not."""

from __future__ import annotations

from pathlib import Path

import certifi
import httpx2
import pytest

from profiler.cli import main
from profiler.errors import UsageError
from profiler.exporters.prometheus import serve
from profiler.providers.endpoint import (
    Endpoint,
    check_trusted,
    client_options,
    exposed,
    is_loopback,
    scrape_host,
    shown_url,
)


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.0.0.7", False),
        ("example.com", False),
    ],
)
def test_loopback_addresses_alone_are_this_machines_alone(host: str, alone: bool) -> None:
    assert is_loopback(host) is alone
    assert (exposed("x", host, 1) is None) is alone


@pytest.mark.parametrize(
    ("url", "openai", "anthropic"),
    [
        ("http://h:1", "http://h:1/v1", "http://h:1"),
        ("http://h:1/", "http://h:1/v1", "http://h:1"),
        ("http://h:1/v1/", "http://h:1/v1", "http://h:1"),
        ("https://h/api/paas/v4", "https://h/api/paas/v4", "https://h/api/paas/v4"),
        ("https://h/v1beta/openai/", "https://h/v1beta/openai", "https://h/v1beta/openai"),
        ("https://h/proxy/v1", "https://h/proxy/v1", "https://h/proxy"),
        ("https://h/anthropic", "https://h/anthropic", "https://h/anthropic"),
        ("https://h/openai/deployments/d?api-version=1&x=", *["https://h/openai/deployments/d"] * 2),
        ("https://h/openai/deployments/d/chat/completions?a=1", *["https://h/openai/deployments/d"] * 2),
        ("https://h/anthropic/v1/messages", "https://h/anthropic/v1", "https://h/anthropic"),
    ],
)
def test_url_with_a_path_is_taken_as_it_is(url: str, openai: str, anthropic: str) -> None:
    endpoint = Endpoint.parse(url)
    assert (endpoint.openai_base, endpoint.root) == (openai, anthropic)


def test_query_of_a_url_goes_with_requests_and_is_shown_without_values() -> None:
    url = "https://h/deployments/d?api-version=2024-10-21&key=AIza&flag="
    assert Endpoint.parse(url).query == (("api-version", "2024-10-21"), ("key", "AIza"), ("flag", ""))
    assert shown_url(url) == ("https://h/deployments/d?api-version=[redacted]&key=[redacted]&flag=[redacted]")
    assert shown_url("https://user:pass@h:1/p#x") == "https://h:1/p"
    assert shown_url("http://[::1?key=s3cret") == "http://[::1"
    assert shown_url("http://h/p") == "http://h/p"


@pytest.mark.parametrize(
    "url",
    [
        *("http://u:p@h/", "http://h/#key", "ftp://h", "h", "http://h/ x?k=s3cret", "http://h/ ?k=a@s3cret"),
        *(
            "ftp://u:s3cret?s3cret@h",
            "h?k=a@s3cret",
            "http://a..b",
            "http://.h",
            f"http://{'a' * 64}.example",
        ),
        *(
            "http://h\x7f/",
            "http://h/\x7f",
            "http://h/\x00",
            "http://h\\v1",
            "http://h%00",
            "http://h/\ud800",
        ),
        *("http://{HOST}:80", "http://<name>.example", "http://ex\u2603ample", "http://\u200d.example"),
        f"http://h/{'a' * 70_000}",
    ],
)
def test_what_is_no_base_url_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        Endpoint.parse(url, "--base-url")
    assert str(refused.value).startswith("--base-url: ")
    assert "s3cret" not in str(refused.value)
    assert ":p@" not in str(refused.value)


def test_hosts_of_all_kinds_are_taken() -> None:
    hosts = ("münchen.example", "例え.example", "xn--mnchen-3ya.example", "h_x", "h.", "[::1]", "10.0.0.7")
    assert [Endpoint.parse(f"http://{host}:80/v1").url for host in hosts] == [
        f"http://{host}:80/v1" for host in hosts
    ]


@pytest.mark.parametrize("host", ["xn--mnchen-3ya.example", "MÜNCHEN.example", "[::1]", "H.example:8000"])
async def test_headers_are_for_the_host_of_the_endpoint_alone(host: str) -> None:
    endpoint = Endpoint(f"http://{host}/v1", headers=(("x-mine", "1"),))
    (hook,) = client_options(endpoint)["event_hooks"]["request"]
    other = "127.0.0.1" if host == "[::1]" else "other.example"
    sent = []
    for url in (f"http://{host}/v1/messages", f"http://{host}:81/", f"http://{other}/"):
        headers = {"x-mine": "1", "x-api-key": "s3cret", "accept": "*/*"}
        request = httpx2.Request("POST", url.replace(":8000:81", ":81"), headers=headers)
        await hook(request)
        sent.append(sorted(headers.keys() & request.headers.keys()))
    assert sent == [["accept", "x-api-key", "x-mine"]] * 2 + [["accept"]]


def test_address_that_others_can_reach_is_said() -> None:
    assert exposed("/metrics", "::", 9464) == (
        "/metrics listens on [::]:9464: other machines can reach it, without a key"
    )
    assert [scrape_host(host) for host in ("0.0.0.0", "10.0.0.7", "::1")] == [
        "127.0.0.1",
        "10.0.0.7",
        "[::1]",
    ]


@pytest.mark.parametrize(("host", "lines"), [("127.0.0.1", 0), ("0.0.0.0", 1)])
def test_metrics_that_others_can_reach_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, host: str, lines: int
) -> None:
    class Server:
        server_port = 7

        def serve_forever(self) -> None:
            pass

        def server_close(self) -> None:
            pass

    monkeypatch.setattr("profiler.exporters.prometheus.make_server", lambda *_: Server())
    assert serve(lambda openmetrics: b"", 0, host) == 7
    said = [record.message for record in caplog.records]
    assert said == ["/metrics listens on 0.0.0.0:7: other machines can reach it, without a key"] * lines


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "No such file or directory"),
        ("a directory", "Is a directory"),
        ("", "no PEM file"),
        ("words", "no PEM file"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no PEM file"),
    ],
)
@pytest.mark.parametrize("command", ["run", "compare", "tune"])
def test_certificates_of_the_environment_that_cannot_be_used_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    what: str,
    said: str,
) -> None:
    path = tmp_path / "roots.pem"
    if what == "a directory":
        path.mkdir()
    elif what != "missing":
        path.write_text(what)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    assert main([command, "--out", str(tmp_path / "runs")]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert f"SSL_CERT_FILE {path}: {said}" in shown


def test_directory_of_certificates_counts_where_no_file_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    for environment in ({}, {"SSL_CERT_FILE": ""}, {"SSL_CERT_DIR": f"{missing}:{tmp_path}"}):
        check_trusted(environment)
    with pytest.raises(UsageError, match=r"SSL_CERT_DIR .*missing: no such directory"):
        check_trusted({"SSL_CERT_DIR": missing})
    check_trusted({"SSL_CERT_FILE": certifi.where(), "SSL_CERT_DIR": missing})
