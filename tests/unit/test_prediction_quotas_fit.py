"""Quotas of a model's server, found in the requests of a recording; its true rule is written here again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from random import Random

import pytest

from profiler.limits.known import parse_quota
from profiler.prediction.quotas import fit as quotas
from profiler.prediction.quotas.fit import (
    Announced,
    QuotaFinding,
    fit_quotas,
    requests_of,
    simulated_refusals,
)
from profiler.records import Attempt, ModelCall

SECOND = 1_000_000_000
Headers = Callable[["Server", float], dict[str, str]]


@dataclass
class Server:
    """A server that keeps a token bucket of `unit`s, and a count of requests at once. In seconds."""

    rate: float = float("inf")
    size: float = float("inf")
    at_once: int = 10**9
    unit: str = "requests"
    window: float = 0.0  # a fixed window instead of a bucket
    seconds: float = 0.3
    left: float = field(init=False)
    at: float = 0.0
    ends: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.left = self.size

    def admits(self, at: float, tokens: int) -> bool:
        if self.window:
            if at // self.window > self.at // self.window:
                self.left = self.size
        elif self.rate < float("inf"):
            self.left = min(self.size, self.left + (at - self.at) * self.rate)
        self.at = at
        self.ends = [end for end in self.ends if end > at]
        cost = tokens if self.unit == "tokens" else 1
        if self.left < cost or len(self.ends) >= self.at_once:
            return False
        self.left -= cost
        self.ends.append(at + self.seconds)
        return True


def recorded(
    server: Server,
    *,
    per_second: float,
    seconds: float = 20.0,
    headers: Headers | None = None,
    retry_after: Callable[[float], int | None] = lambda wait: None,
    seed: int = 1,
    late: float = 0.002,
    tokens: tuple[int, int] = (300, 900),
) -> list[ModelCall]:
    """Calls of one attempt each, which come at random; some `late` seconds after they were sent."""
    random = Random(seed)
    calls, at = [], 0.0
    while (at := at + random.expovariate(per_second)) < seconds:
        size = random.randint(*tokens)
        output = size // 10 if tokens[0] == tokens[1] else random.randint(20, size // 2)
        came = at + random.random() * late
        passed = server.admits(came, size)
        wait = 0.0 if passed else (1 - server.left) / server.rate
        attempt = Attempt(
            started_ns=int(at * SECOND),
            ended_ns=int((came + (server.seconds if passed else 0.001)) * SECOND),
            status=200 if passed else 429,
            rate_limits=headers(server, came) if headers else None,
            retry_after_ns=None if passed else retry_after(wait),
        )
        calls.append(
            ModelCall(
                provider="openai",
                model="m",
                started_ns=attempt.started_ns,
                ended_ns=attempt.ended_ns,
                status="ok" if passed else "error",
                input_tokens=size - output,
                output_tokens=output,
                attempts=(attempt,),
            )
        )
    return calls


def openai(limit: float) -> Headers:
    def written(server: Server, at: float) -> dict[str, str]:
        reset = (server.size - server.left) / server.rate
        return {
            f"x-ratelimit-limit-{server.unit}": f"{limit:.0f}",
            f"x-ratelimit-remaining-{server.unit}": f"{int(server.left)}",
            f"x-ratelimit-reset-{server.unit}": f"{-(-reset * 1000 // 1):.0f}ms",
        }

    return written


def mistral(limit: float) -> Headers:
    def written(server: Server, at: float) -> dict[str, str]:
        return {
            "x-ratelimit-limit-req-minute": f"{limit:.0f}",
            "x-ratelimit-remaining-req-minute": f"{int(server.left)}",
        }

    return written


def azure(limit: float) -> Headers:
    def written(server: Server, at: float) -> dict[str, str]:
        return {
            "x-ratelimit-limit-requests": f"{limit:.0f}",
            "x-ratelimit-remaining-requests": f"{int(server.left)}",
        }

    return written


def shares(calls: list[ModelCall], finding: QuotaFinding) -> tuple[float, float]:
    """Of the same requests: refused in the recording, and by the fitted rule."""
    requests = requests_of(calls)
    simulated = simulated_refusals(finding, requests)
    n = len(requests)
    return sum(one.refused for one in requests) / n, sum(one is not None for one in simulated) / n


# Headers


def test_headers_state_the_limit_and_with_the_reset_how_much_a_bucket_holds() -> None:
    calls = recorded(Server(rate=10, size=25), per_second=4, headers=openai(600))
    found = fit_quotas(calls)
    (limit,) = found.limits
    assert (limit.resource, limit.amount, limit.burst) == ("requests", 600, 25)
    assert (limit.source, limit.burst_source, limit.identified, limit.met) == (
        "headers",
        "headers",
        True,
        False,
    )
    assert found.words == ("600 requests a minute, stated in headers: stated, never met",)


def test_limit_that_was_met_predicts_the_429s_of_twice_the_load() -> None:
    found = fit_quotas(recorded(Server(rate=10, size=25), per_second=14, headers=openai(600)))
    (limit,) = found.limits
    assert (limit.amount, limit.burst, limit.met, found.unexplained) == (600, 25, True, 0)
    true, simulated = shares(recorded(Server(rate=10, size=25), per_second=28, seed=9), found)
    assert true > 0.5
    assert simulated == pytest.approx(true, abs=0.01)


def test_headers_without_a_reset_tell_the_burst_where_the_bucket_was_full() -> None:
    found = fit_quotas(recorded(Server(rate=10, size=25), per_second=4, headers=mistral(600)))
    (limit,) = found.limits
    assert (limit.amount, limit.burst, limit.burst_source, limit.identified) == (600, 25, "headers", True)


def test_burst_is_not_known_where_the_bucket_was_never_full() -> None:
    server = Server(rate=10, size=1000)
    server.left = 500
    found = fit_quotas(recorded(server, per_second=20, headers=mistral(600)))
    (limit,) = found.limits
    assert (limit.amount, limit.burst, limit.identified) == (600, None, False)
    assert found.words == (
        "600 requests a minute, stated in headers: stated, never met; how much of it may be used at once is "
        "not known, 500 at least",
    )
    # A minute's worth, as providers document it.
    assert found.state(0).buckets[0].size == 600


def test_limit_that_nobody_meets_is_none() -> None:
    headers = {"x-ratelimit-limit-requests": "1000000", "x-ratelimit-remaining-requests": "999999"}
    found = fit_quotas(recorded(Server(), per_second=4, headers=lambda *_: headers))
    assert found.limits == ()
    assert (
        found.words[0] == "the headers state 1,000,000 requests, more than anybody meets: taken for no limit"
    )


def test_stated_limit_that_the_server_does_not_keep_to_is_left_out() -> None:
    headers = {"x-ratelimit-limit-req-minute": "60", "x-ratelimit-remaining-req-minute": "59"}
    found = fit_quotas(recorded(Server(), per_second=10, headers=lambda *_: headers))
    assert found.limits == ()
    assert "the server admitted far more than that, and it is left out" in found.words[0]


def test_limit_of_a_day_is_said_and_not_simulated() -> None:
    headers = {"x-ratelimit-limit-requests-day": "14400", "x-ratelimit-remaining-requests-day": "14000"}
    found = fit_quotas(recorded(Server(), per_second=4, headers=lambda *_: headers))
    assert found.limits == ()
    assert found.words[0] == "the headers state 14,400 requests a day: it is not simulated"


@pytest.mark.parametrize(("rate", "limit"), [(10, 600), (10, 10)])
def test_window_that_no_header_has_is_told_by_how_fast_what_is_left_grows(rate: float, limit: float) -> None:
    found = fit_quotas(recorded(Server(rate=rate, size=15), per_second=8, headers=azure(limit)))
    (one,) = found.limits
    assert (one.resource, one.amount, one.burst) == ("requests", 600, 15)


def test_window_cannot_be_told_where_next_to_nothing_was_taken() -> None:
    found = fit_quotas(recorded(Server(rate=10, size=25), per_second=1, headers=azure(600)))
    assert found.limits == ()
    assert found.words[0] == (
        "the headers state 600 requests in a window that cannot be told: it is not simulated"
    )


def test_given_quota_goes_before_headers() -> None:
    calls = recorded(Server(rate=10, size=25), per_second=4, headers=openai(600))
    found = fit_quotas(calls, parse_quota("openai:rpm=900"))
    assert [(one.amount, one.source) for one in found.limits] == [(900, "given")]


def test_given_quota_that_is_not_the_servers_is_seen_in_the_429s() -> None:
    calls = recorded(Server(rate=10, size=25), per_second=20)
    found = fit_quotas(calls, parse_quota("openai:rpm=900"))
    assert found.unexplained > 0
    assert (
        f"of the {found.requests} requests these limits refuse {found.simulated}, the server"
        in found.words[0]
    )


def test_429s_tell_the_burst_where_headers_have_no_reset() -> None:
    server = Server(rate=10, size=25)
    server.left = 10  # used by others before: no response says 25
    found = fit_quotas(recorded(server, per_second=20, headers=mistral(600)))
    (limit,) = found.limits
    assert (limit.amount, limit.source, limit.burst_source, limit.met) == (600, "headers", "429s", True)
    assert found.unexplained == 0


def test_input_and_output_of_anthropic_are_apart_and_their_sum_is_no_limit_of_its_own() -> None:
    headers = {"date": "Mon, 06 Oct 2025 10:00:00 GMT"}
    for resource, limit, left in (
        ("requests", 50, 49),
        ("input-tokens", 30_000, 29_500),
        ("output-tokens", 8_000, 7_900),
        ("tokens", 38_000, 37_400),
    ):
        headers[f"anthropic-ratelimit-{resource}-limit"] = str(limit)
        headers[f"anthropic-ratelimit-{resource}-remaining"] = str(left)
        headers[f"anthropic-ratelimit-{resource}-reset"] = "2025-10-06T10:00:01Z"
    calls = [
        ModelCall(
            "anthropic",
            "m",
            at,
            at + SECOND,
            input_tokens=900,
            cached_tokens=400,
            output_tokens=100,
            attempts=(Attempt(at, at + SECOND, 200, rate_limits=headers),),
        )
        for at in range(0, 400 * SECOND, 4 * SECOND)
    ]
    found = fit_quotas(calls)
    assert [(one.resource, one.amount, one.burst) for one in found.limits] == [
        ("requests", 50, 50),
        ("input-tokens", 30_000, 30_000),
        ("output-tokens", 8_000, 8_000),
    ]


def test_of_many_requests_those_with_the_most_refusals_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(Server(rate=10, size=25), per_second=20, seconds=40)
    monkeypatch.setattr(quotas, "MOST_FITTED", 400)
    found = fit_quotas(calls)
    assert found.requests == 400
    assert found.of("requests") is not None


# 429s without headers


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("load", [1.1, 1.5, 4.0])
def test_429s_tell_rate_and_burst_without_headers(load: float, seed: int) -> None:
    calls = recorded(Server(rate=10, size=25), per_second=10 * load, seconds=30, seed=seed)
    found = fit_quotas(calls)
    (limit,) = found.limits
    assert (limit.resource, limit.source, limit.identified) == ("requests", "429s", True)
    assert limit.amount == pytest.approx(600, rel=0.03)
    assert limit.burst == pytest.approx(25, abs=1.5)
    true, simulated = shares(recorded(Server(rate=10, size=25), per_second=20, seed=99), found)
    assert simulated == pytest.approx(true, abs=0.02)


def test_429s_tell_a_limit_of_tokens() -> None:
    server = Server(rate=4000, size=10_000, unit="tokens")
    found = fit_quotas(recorded(server, per_second=10, seconds=40, tokens=(100, 1500)))
    (limit,) = found.limits
    assert (limit.resource, limit.identified) == ("tokens", True)
    assert limit.amount == pytest.approx(240_000, rel=0.05)
    assert limit.burst == pytest.approx(10_000, rel=0.1)


def test_tokens_of_requests_that_are_all_alike_cannot_be_told_from_requests() -> None:
    found = fit_quotas(recorded(Server(rate=10, size=25), per_second=20, tokens=(400, 400)))
    (limit,) = found.limits
    assert not limit.identified
    assert "explains the 429s as well" in limit.why


def test_429s_tell_a_limit_of_requests_at_once() -> None:
    found = fit_quotas(recorded(Server(at_once=7), per_second=30))
    (limit,) = found.limits
    assert (limit.resource, limit.amount, limit.burst, limit.identified) == ("concurrent", 7, None, True)
    true, simulated = shares(recorded(Server(at_once=7), per_second=60, seed=5), found)
    assert true > 0.4
    assert simulated == pytest.approx(true, abs=0.02)


def test_limit_in_headers_and_one_of_requests_at_once_that_no_header_states() -> None:
    calls = recorded(Server(rate=20, size=60, at_once=8), per_second=40, seconds=40, headers=openai(1200))
    found = fit_quotas(calls)
    assert [(one.resource, one.amount, one.met) for one in found.limits] == [
        ("requests", 1200, True),
        ("concurrent", 8, True),
    ]
    assert found.unexplained <= 0.05 * found.refused


@pytest.mark.parametrize("seed", range(5))
def test_429s_at_random_are_explained_by_no_limit(seed: int) -> None:
    random = Random(seed)
    calls = recorded(Server(), per_second=20, seed=seed)
    for n, call in enumerate(calls):
        if random.random() < 0.1:
            (one,) = call.attempts
            calls[n] = ModelCall(
                "openai",
                "m",
                one.started_ns,
                one.ended_ns,
                attempts=(Attempt(one.started_ns, one.ended_ns, 429),),
            )
    found = fit_quotas(calls)
    assert found.limits == ()
    assert found.unexplained == found.refused > 10
    assert "429s are explained by no limit: none is simulated" in found.words[0]


@pytest.mark.parametrize("load", [1.2, 2.0])
def test_fixed_window_is_not_taken_for_a_bucket_whose_429s_would_be_others(load: float) -> None:
    """A minute's worth at its beginning and nothing until the next: no bucket does that."""
    server = Server(rate=10, size=50, window=5.0)
    calls = recorded(server, per_second=10 * load, seconds=40)
    found = fit_quotas(calls)
    true, simulated = shares(calls, found)
    assert not found.limits or abs(true - simulated) < 0.02


def test_429s_tell_a_limit_of_output_tokens() -> None:
    calls = [
        replace(call, provider="anthropic", input_tokens=50, output_tokens=(call.input_tokens or 0))
        for call in recorded(Server(rate=4000, size=10_000, unit="tokens"), per_second=12, tokens=(99, 1500))
    ]
    limit = fit_quotas(calls).of("output-tokens")
    assert limit is not None
    assert (limit.source, limit.met) == ("429s", True)


def test_few_refusals_tell_nothing() -> None:
    calls = recorded(Server(rate=10, size=25), per_second=20, seconds=3.0)
    few = [*[call for call in calls if call.status == "ok"], *[c for c in calls if c.status != "ok"][:3]]
    assert fit_quotas(few).limits == ()


def test_nothing_refused_and_no_header_tells_nothing() -> None:
    found = fit_quotas(recorded(Server(), per_second=4))
    assert found.limits == ()
    assert found.words == ("no header states a quota and nothing was refused: nothing is known of one",)
    assert fit_quotas([]) == QuotaFinding()


# Waits that are announced


@pytest.mark.parametrize(
    ("retry_after", "announced"),
    [
        (lambda wait: int(-(-wait * 1000 // 1) * 1_000_000), "exact"),
        (lambda wait: int(-(-wait // 1) * SECOND), "seconds"),
        (lambda wait: 7 * SECOND, "constant"),
        (lambda wait: None, "none"),
    ],
)
def test_announced_waits(retry_after: Callable[[float], int | None], announced: str) -> None:
    server = Server(rate=0.5, size=10)
    found = fit_quotas(
        recorded(server, per_second=2, seconds=100, headers=openai(30), retry_after=retry_after)
    )
    assert found.announced.kind == announced
    refusal = next(
        one for one in simulated_refusals(found, requests_of(_as_calls(server))) if one is not None
    )
    wait = found.announced.wait_ns(refusal)
    if announced == "constant":
        assert wait == 7 * SECOND
    elif announced == "none":
        assert wait is None
    else:
        unit = SECOND if announced == "seconds" else 1_000_000
        assert wait is not None
        assert wait % unit == 0
        assert 0 <= wait - refusal.retry_ns < unit


def _as_calls(server: Server) -> Iterable[ModelCall]:
    return recorded(Server(rate=server.rate, size=server.size), per_second=2, seconds=100, seed=3)


def test_wait_announced_for_requests_at_once_is_the_one_that_was_recorded() -> None:
    found = fit_quotas(recorded(Server(at_once=7), per_second=30, retry_after=lambda wait: SECOND))
    assert found.announced == Announced("constant", SECOND, SECOND)


# What counts as a request


def test_tries_without_a_response_and_overloads_are_no_refusals() -> None:
    attempts = (
        Attempt(1, 2, error_type="connection"),
        Attempt(3, 4, 529),
        Attempt(5, 6, 429, sent_ns=6),
        Attempt(7, 8, 200),
    )
    call = ModelCall(
        "anthropic", "m", 1, 8, input_tokens=100, cached_tokens=60, output_tokens=9, attempts=attempts
    )
    found = requests_of([call])
    assert [(one.at_ns, one.refused) for one in found] == [(3, False), (6, True), (7, False)]
    assert {(one.input_tokens, one.output_tokens) for one in found} == {(40, 9)}
