"""Who may ask the emulator's own endpoints: hosts, origins, and what browsers say of a request."""

from __future__ import annotations

import pytest

from profiler.emulator.access import allowed_host, refusal, split_target
from profiler.errors import UsageError

ALLOWED = ("loadtest", "10.0.0.5", "fd00::5")

LOOPBACK = [
    b"localhost",
    b"LOCALHOST:8100",
    b"localhost.",
    b"localhost.:8100",
    b"localhost:",
    b"app.localhost:1",
    b"127.0.0.1:8100",
    b"127.255.0.9",
    b"[::1]:8100",
    b"[0:0:0:0:0:0:0:1]",
    b"[::ffff:127.0.0.1]:8100",
    b"[::FFFF:7f00:1]",
]
GIVEN = [b"loadtest", b"LoadTest.:8100", b"10.0.0.5:80", b"[fd00:0::5]:80", b"[::ffff:10.0.0.5]"]
FOREIGN = [
    b"evil.example",
    b"evil.example:8100",
    b"localhost.evil.example",
    b"127.0.0.1.evil.example",
    b"127-0-0-1.evil.example",
    b"notlocalhost",
    b"xlocalhost:80",
    b"localhost-",
    b"evil.loadtest",
    b"loadtest.evil.example",
    b"0.0.0.0:8100",
    b"128.0.0.1",
    b"192.168.1.7:8100",
    b"169.254.169.254",
    b"2130706433",
    b"0x7f.0.0.1",
    b"127.1.evil",
    b"[::]",
    b"[::2]:8100",
    b"[::ffff:8.8.8.8]",
    b"[::ffff:0:127.0.0.1]",
]
NO_HOST = [
    b"",
    b".",
    b"localhost..",
    b".localhost",
    b"a..localhost",
    b"localhost@evil.example",
    b"evil.example@localhost",
    b"user:pw@127.0.0.1:8100",
    b"localhost:80:80",
    b"localhost:x",
    b"localhost:123456",
    b"localhost/",
    b"localhost#",
    b"localhost evil.example",
    b"localhost, evil.example",
    b"evil.example, localhost",
    b"http://localhost",
    b"[::1",
    b"::1",
    b"[::1]x",
    b"[::1%25lo]",
    b"[127.0.0.1]",
    b"loc\xe4lhost",
    b"localhost\x00",
]


@pytest.mark.parametrize("host", [*LOOPBACK, *GIVEN])
def test_hosts_of_this_machine_and_those_given_are_answered(host: bytes) -> None:
    assert refusal({b"host": host}, allowed=ALLOWED) is None
    assert refusal({b"host": b"localhost", b"origin": b"http://" + host}, allowed=ALLOWED) is None
    assert refusal({b"host": b"localhost", b"origin": b"HTTPS://" + host}, allowed=ALLOWED) is None
    assert refusal({b"host": b"localhost"}, host, ALLOWED) is None


@pytest.mark.parametrize("host", FOREIGN)
def test_other_hosts_are_refused_in_words(host: bytes) -> None:
    for headers, authority in (
        ({b"host": host}, None),
        ({b"host": b"localhost"}, host),  # in the target, whatever the header says
        ({b"host": host}, b"localhost"),
        ({b"host": b"localhost:8100", b"origin": b"http://" + host}, None),
    ):
        refused = refusal(headers, authority, ALLOWED)
        assert refused is not None
        assert refused.status == 403
        assert host.decode() in refused.words
        assert "--allow-host" in refused.words


@pytest.mark.parametrize("host", GIVEN)
def test_hosts_are_strangers_until_they_are_given(host: bytes) -> None:
    refused = refusal({b"host": host})
    assert refused is not None
    assert refused.status == 403


@pytest.mark.parametrize("host", NO_HOST)
def test_what_is_no_host_is_a_bad_request(host: bytes) -> None:
    refused = refusal({b"host": host}, allowed=ALLOWED)
    assert refused is not None
    assert refused.status == 400
    origin = refusal({b"host": b"localhost", b"origin": b"http://" + host}, allowed=ALLOWED)
    assert origin is not None
    assert origin.status == 403


@pytest.mark.parametrize(
    "origin",
    [
        b"null",
        b"",
        b"localhost",
        b"file://",
        b"chrome-extension://localhost",
        b"http://localhost http://evil.example",
        b"http://localhost, http://evil.example",
        b"http://localhost@evil.example",
        b"http://localhost/evil.example",
    ],
)
def test_origins_that_are_no_page_of_this_machine_are_refused(origin: bytes) -> None:
    refused = refusal({b"host": b"127.0.0.1:8100", b"origin": origin})
    assert refused is not None
    assert refused.status == 403


def test_what_a_page_of_another_site_embeds_is_refused() -> None:
    local = {b"host": b"127.0.0.1:8100"}
    refused = refusal({**local, b"sec-fetch-site": b"cross-site", b"sec-fetch-mode": b"no-cors"})
    assert refused is not None
    assert refused.status == 403
    for site in (b"none", b"same-origin", b"same-site"):
        assert refusal({**local, b"sec-fetch-site": site}) is None
    assert refusal({**local, b"sec-fetch-site": b"cross-site", b"sec-fetch-mode": b"navigate"}) is None
    page = {**local, b"origin": b"http://loadtest:3000", b"sec-fetch-site": b"cross-site"}
    assert refusal(page, allowed=ALLOWED) is None


def test_request_without_a_host_names_no_stranger() -> None:
    assert refusal({}) is None


def test_long_host_is_cut_in_the_words() -> None:
    for headers in ({b"host": b"e" * 5000}, {b"host": b"localhost", b"origin": b"http://" + b"e" * 5000}):
        refused = refusal(headers)
        assert refused is not None
        assert "e" * 50 in refused.words
        assert "e" * 100 not in refused.words


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("LoadTest", "loadtest"),
        ("load.test.", "load.test"),
        ("10.0.0.5", "10.0.0.5"),
        ("FD00::0005", "fd00::5"),
        ("[fd00::5]", "fd00::5"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("my_host", "my_host"),
    ],
)
def test_given_hosts_in_the_form_that_compares(given: str, host: str) -> None:
    assert allowed_host(given) == host


@pytest.mark.parametrize(
    "given",
    ["", " ", "*", "*.example.com", "http://loadtest", "loadtest:8100", "a b", "a,b", "a/b", "a..b", "[::1"],
)
def test_what_is_no_host_cannot_be_given(given: str) -> None:
    with pytest.raises(UsageError, match="give a name or an address alone"):
        allowed_host(given)


@pytest.mark.parametrize(
    ("target", "split"),
    [
        (b"/emulator/journal", (None, b"/emulator/journal")),
        (b"http://a:1/emulator/journal", (b"a:1", b"/emulator/journal")),
        (b"HTTPS://u@a", (b"u@a", b"/")),
        (b"http:///x", (b"", b"/x")),
        (b"*", (None, b"*")),
        (b"a:80", (None, b"a:80")),
    ],
)
def test_targets_in_absolute_form(target: bytes, split: tuple[bytes | None, bytes]) -> None:
    assert split_target(target) == split
