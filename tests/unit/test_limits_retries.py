"""The retry rules of the SDKs are those of their own code, and so is how they read what a server asks for."""

from __future__ import annotations

import time
from random import Random
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from profiler.limits.retries import LONGEST_ASKED_S, RULES, asked_ns

SECOND = 1_000_000_000
CLIENTS = {"openai": openai.OpenAI, "anthropic": anthropic.Anthropic}
ASKED = (0, 1, 250_000_000, SECOND, 59 * SECOND, 60 * SECOND, 61 * SECOND, 120 * SECOND, 121 * SECOND)


class Drawn(Random):
    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value = value

    def random(self) -> float:
        return self.value


def sdk(name: str, monkeypatch: pytest.MonkeyPatch, drawn: float = 0.0) -> Any:
    """The SDK's client, whose random numbers are all `drawn`."""
    package = openai if name == "openai" else anthropic
    monkeypatch.setattr(package._base_client, "random", lambda: drawn)
    return CLIENTS[name](api_key="k", base_url="http://127.0.0.1:1")


def options(name: str) -> Any:
    package = openai if name == "openai" else anthropic
    return package._models.FinalRequestOptions.construct(method="post", url="/")


@pytest.mark.parametrize("name", RULES)
def test_number_of_retries_and_backoff_are_the_sdks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = RULES[name]
    assert rule.retries == (openai if name == "openai" else anthropic).DEFAULT_MAX_RETRIES
    for drawn in (0.0, 0.5, 0.999):
        client = sdk(name, monkeypatch, drawn)
        client.max_retries = 10
        for attempt in range(1, 10):
            waited = client._calculate_retry_timeout(11 - attempt, options(name), None)
            assert rule.delay_ns(attempt, None, Drawn(drawn)) == pytest.approx(waited * SECOND, abs=1)


# Above a minute older SDKs of Anthropic's go by their own backoff; newer ones wait, and so does the rule.
SAME_IN_ALL = {"openai": ASKED, "anthropic": [ns for ns in ASKED if ns <= 60 * SECOND]}


@pytest.mark.parametrize(("name", "asked_ns"), [(name, ns) for name in RULES for ns in SAME_IN_ALL[name]])
def test_wait_that_a_server_asks_for_is_taken_as_the_sdk_takes_it(
    name: str, asked_ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, rule = sdk(name, monkeypatch), RULES[name]
    response = httpx2.Response(429, headers={"retry-after-ms": str(asked_ns / 1e6)})
    assert rule.again(1, 429, asked_ns) == client._should_retry(response)
    if rule.again(1, 429, asked_ns):
        waited = client._calculate_retry_timeout(2, options(name), response.headers)
        assert rule.delay_ns(1, asked_ns, Drawn(0.0)) == pytest.approx(waited * SECOND, abs=1)


@pytest.mark.parametrize("name", RULES)
def test_statuses_that_are_tried_again_are_the_sdks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client, rule = sdk(name, monkeypatch), RULES[name]
    statuses = [*range(400, 432), *range(500, 530)]
    assert [one for one in statuses if rule.again(1, one)] == [
        one for one in statuses if client._should_retry(httpx2.Response(one))
    ]
    assert rule.again(2, None)
    assert not rule.again(3, 429)


@pytest.mark.parametrize(
    ("milliseconds", "seconds", "wait"),
    [
        (None, None, None),
        (None, "2", 2 * SECOND),
        ("10", "2", SECOND // 100),
        ("soon", "2", 2 * SECOND),
        (None, "+1", SECOND),
        (None, "1e-2", SECOND // 100),
        (None, "5s", None),
        (None, "1, 2", None),  # sent twice
        (None, "0", None),
        (None, "-3", None),
        (None, "nan", None),
        ("1e400", None, LONGEST_ASKED_S * SECOND),
        (None, "99999999999999999999", LONGEST_ASKED_S * SECOND),
        (None, "Thu, 01 Jan 1970 00:01:40 GMT", 40 * SECOND),
        (None, "Thu, 01 Jan 1970 00:00:40 GMT", None),
        (None, "Thu, 99 Foo 1970 00:00:40 GMT", None),
    ],
)
def test_wait_that_a_response_asks_for(
    milliseconds: str | None, seconds: str | None, wait: int | None
) -> None:
    assert asked_ns(milliseconds, seconds, lambda: 60.0) == wait


def test_wait_until_a_date_is_by_this_machine_s_clock() -> None:
    ahead = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 1000))
    wait = asked_ns(None, ahead)
    assert wait is not None
    assert 900 * SECOND < wait <= 1000 * SECOND


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("header", ["retry-after", "retry-after-ms"])
@pytest.mark.parametrize(
    "value", ["2", "0.5", "1e-1", "+1", "1_0", " 3 ", "5s", "soon", "", "1, 2", "0", "-3", "nan"]
)
def test_wait_is_read_as_the_sdk_reads_it(
    name: str, header: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = sdk(name, monkeypatch)
    read = client._parse_retry_after_header(httpx2.Headers({header: value}))
    wait = asked_ns(**{"milliseconds": None, "seconds": None, NAMES[header]: value})
    heeded = read is not None and read > 0
    assert wait == (pytest.approx(read * SECOND, abs=1) if heeded else None)


NAMES = {"retry-after": "seconds", "retry-after-ms": "milliseconds"}
