"""Which addresses are this machine's alone, and what is said of those that are not."""

from __future__ import annotations

import pytest

from profiler.exporters.prometheus import serve
from profiler.providers.endpoint import exposed, is_loopback, scrape_host


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

    monkeypatch.setattr("profiler.exporters.prometheus.make_server", lambda *_: Server())
    assert serve(lambda openmetrics: b"", 0, host) == 7
    said = [record.message for record in caplog.records]
    assert said == ["/metrics listens on 0.0.0.0:7: other machines can reach it, without a key"] * lines
