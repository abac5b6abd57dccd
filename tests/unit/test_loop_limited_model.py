"""Limiters in front of a model: tokens reserved and settled, headers heeded, refusals spread."""

from __future__ import annotations

import asyncio

import pytest

from profiler import ProviderError, ToolLoop, tool
from profiler.errors import UsageError
from profiler.limits.gate import Gate
from profiler.limits.known import parse_quota
from profiler.loop.model import LimitedModel, Probe, Reply, RequestOptions, parse_model_limit
from profiler.records import Attempt
from profiler.testing import ScriptedModel, call, provider_failure, run_virtual
from profiler.tune.quotas import Demand, advise

S = 1_000_000_000


class Server(ScriptedModel):
    """Answers each request with 100 tokens in and 50 out, after what `refusals` says."""

    def __init__(self, refusals=(), headers=None) -> None:
        super().__init__([])
        self.refusals = list(refusals)
        self.headers = headers
        self.times: list[float] = []

    async def request(self, messages, tools, options, probe):
        now = probe.clock()
        self.times.append(now / S)
        await asyncio.sleep(0.1)
        refusal = self.refusals.pop(0) if self.refusals else None
        status, wait = refusal or (200, None)
        probe.attempts.append(
            Attempt(now, probe.clock(), status, retry_after_ns=wait, rate_limits=self.headers)
        )
        if refusal:
            raise provider_failure(f"http_{status}", status)
        return Reply("yes", (), [], "stop", "r", 100, 50)


def send(server, limits, count, clock):
    """`count` requests at once; the probes."""
    model = LimitedModel(server, Gate(limits, clock=clock, seed=1), clock=clock)
    probes = [Probe(clock) for _ in range(count)]

    async def all_of_them():
        return await asyncio.gather(
            *(model.request([{"role": "user"}], None, RequestOptions(), probe) for probe in probes),
            return_exceptions=True,
        )

    return model, probes, all_of_them


def test_tokens_are_reserved_by_estimate_and_settled_by_usage():
    async def main(clock):
        server = Server()
        model, probes, go = send(server, "tokens:150/s,burst=400", 6, clock)
        await go()
        (limiter,) = model.gate.limiters(model.model)
        return server.times, limiter.level(clock()), clock(), [p.limiter_wait_ns for p in probes]

    times, level, now, waits = run_virtual(main)
    assert times[0] == 0
    assert times == sorted(times)
    # 6 · 150 tokens were used in truth; the estimates (some 300 each) are all given back but the overflow.
    assert level == pytest.approx(min(400, 400 - 900 + 150 * now / S), abs=1)
    assert waits[-1] == round(times[-1] * S)


def test_headers_lower_the_rate_and_never_raise_it():
    async def main(clock, headers):
        server = Server(headers=headers)
        _, _, go = send(server, "rate:10/s,burst=1", 5, clock)
        await go()
        return server.times

    lowered = run_virtual(lambda clock: main(clock, {"x-ratelimit-limit-requests": "120"}))
    assert lowered == pytest.approx([0, 0.1, 0.6, 1.1, 1.6])  # heeded from the first response on
    for nothing in ({"x-ratelimit-limit-requests": "999999", "x-ratelimit-remaining-requests": "-1"}, None):
        assert run_virtual(lambda clock, h=nothing: main(clock, h)) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_refusal_with_retry_after_holds_everybody_and_nobody_meets_again():
    async def main(clock):
        server = Server(refusals=[(429, 2 * S)] * 20)
        _, probes, go = send(server, "semaphore:100", 20, clock)
        replies = await go()
        return server.times, replies, [len(p.attempts) for p in probes]

    times, replies, attempts = run_virtual(main)
    assert all(isinstance(reply, Reply) for reply in replies)
    assert attempts == [2] * 20
    assert all(2.1 <= at <= 3.1 for at in times[20:])
    assert len(set(times[20:])) == 20


def test_error_that_no_retry_would_change_is_raised_at_once():
    async def main(clock):
        server = Server(refusals=[(400, None)])
        _, probes, go = send(server, "semaphore:1", 1, clock)
        (error,) = await go()
        return error, len(probes[0].attempts)

    error, attempts = run_virtual(main)
    assert isinstance(error, ProviderError)
    assert attempts == 1


def test_loop_over_a_limited_model_records_the_wait():
    async def main(clock):
        model = LimitedModel(
            ScriptedModel(["yes", "yes"]), Gate("rate:1/s,burst=1", clock=clock), clock=clock
        )
        loop = ToolLoop(model, clock=clock)
        return [(await loop.run("go")).record.rounds[0].model.limiter_wait_ns for _ in range(2)]

    assert run_virtual(main) == [0, S]


def test_loop_with_tools_goes_through_to_the_model_behind():
    @tool
    async def look() -> str:
        return "seen"

    async def main(clock):
        scripted = ScriptedModel([[call("look")], "done"])
        model = LimitedModel(scripted, "semaphore:1", clock=clock)
        return (await ToolLoop(model, [look], clock=clock).run("go")), scripted.requests

    result, requests = run_virtual(main)
    assert (result.text, result.record.provider, result.record.model) == ("done", "scripted", "script")
    assert requests[1][0][-1] == {
        "role": "tool",
        "id": requests[1][0][-1]["id"],
        "content": "seen",
        "error": False,
    }
    assert requests[0][1] == ["look"]


def test_sdks_own_retries_are_switched_off_and_the_users_model_is_left_alone():
    class Client:
        retries = 2

        def with_options(self, max_retries: int) -> Client:
            made = Client()
            made.retries = max_retries
            return made

    class Behind(Server):
        def __init__(self) -> None:
            super().__init__()
            self.client = Client()

        async def request(self, messages, tools, options, probe):
            return Reply(str(self.client.retries), (), [])

    async def main(clock):
        behind = Behind()
        model = LimitedModel(behind, "semaphore:1", clock=clock)
        return (
            (await ToolLoop(model, clock=clock).run("go")).text,
            behind.client.retries,
            model.client.retries,
        )

    assert run_virtual(main) == ("0", 2, 2)


def test_reply_that_had_begun_is_not_asked_for_again():
    class Breaks(Server):
        async def request(self, messages, tools, options, probe):
            self.times.append(probe.clock() / S)
            if self.begins:
                probe.text("Once upon")
            raise provider_failure("connection", None)

    async def main(clock, begins):
        server = Breaks()
        server.begins = begins
        _, _, go = send(server, "semaphore:1", 1, clock)
        (error,) = await go()
        return error.error_type, len(server.times)

    assert run_virtual(lambda clock: main(clock, True)) == ("connection", 1)
    assert run_virtual(lambda clock: main(clock, False)) == ("connection", 3)  # two retries, then given up


def test_timeout_is_told_from_other_failures():
    async def main(clock):
        server = Server()
        outcomes = []
        gate = Gate("semaphore:1", clock=clock)
        leave = gate.leave
        gate.leave = lambda slot: (outcomes.append(slot.signal), leave(slot))[1]
        model = LimitedModel(
            ScriptedModel([provider_failure("timeout", None), provider_failure("http_503", 503), "yes"]),
            gate,
            clock=clock,
        )
        await model.request([], None, RequestOptions(), Probe(clock))
        return outcomes, server.times

    assert run_virtual(main)[0] == ["timeout", "rejected", "ok"]


def test_pieces_of_text_are_handed_on_and_the_first_of_anything_is_noted():
    times = iter([10, 20, 30])
    seen: list[str] = []
    probe = Probe(lambda: next(times), on_text=seen.append)
    probe.text("a")
    probe.text("")
    probe.text("b")
    assert (seen, probe.first_token_ns) == (["a", "b"], 10)
    probe.call_complete(call("look"))
    assert probe.first_tool_call_ns == 20
    probe.call_complete(call("look"))
    assert (probe.first_tool_call_ns, [at for _, at in probe.complete]) == (20, [20, 30])


def test_model_limit_has_a_spec():
    rules = parse_model_limit("rate:500/min,burst=10+tokens:30000/min+semaphore:8+adaptive")
    assert [rule.text for rule in rules] == [
        "rate:500/min,burst=10",
        "tokens:30000/min",
        "semaphore:8",
        "adaptive",
    ]
    for wrong in ("", "rate:500", "semaphore:8@agent", "semaphore:search=2", "eager", "rate:5/s,tokens:5/s"):
        with pytest.raises(UsageError, match=r"--model-limit .*: expected rate:R/s"):
            parse_model_limit(wrong)
    with pytest.raises(UsageError, match=r"--model-limit rate:5/s,burst=0: a burst must be at least 1"):
        parse_model_limit("rate:5/s,burst=0")


@pytest.mark.parametrize(
    ("quota", "a_minute"),
    [
        ("openai:rpm=500,tpm=30000", {"requests": 500, "tokens": 30_000}),
        # A fifth of a loop's tokens is output: 8,000 of it a minute are 40,000 of both.
        ("anthropic:rpm=50,itpm=40000,otpm=8000", {"requests": 50, "tokens": 40_000}),
        ("rpm=0.5", {"requests": 0.5}),
        ("tpm=2000000", {"tokens": 2_000_000}),
    ],
)
def test_model_limit_takes_what_tune_advises(quota, a_minute):
    advice = advise(parse_quota(quota), Demand(2.0, 400.0, 100.0, {}, {}))
    assert advice is not None
    limiters = [rule.make(1) for rule in parse_model_limit(advice.limits)]
    assert {one.resource: one.rate * 60 for one in limiters} == pytest.approx(a_minute)


@pytest.mark.parametrize(("provider", "counted"), [("openai", 150), ("anthropic", 70)])
def test_tokens_are_settled_by_the_providers_rule(provider, counted):
    class Cached(Server):
        async def request(self, messages, tools, options, probe):
            return Reply("yes", (), [], "stop", "r", 100, 50, cached_tokens=80, cache_written_tokens=15)

    async def main(clock):
        server = Cached()
        server.provider = provider
        model, _, go = send(server, "tokens:1/s,burst=1000", 1, clock)
        await go()
        (limiter,) = model.gate.limiters(model.model)
        return limiter.level(clock())

    assert run_virtual(main) == pytest.approx(1000 - counted)


def test_tokens_that_the_server_does_not_say_stay_as_they_were_estimated():
    class Silent(Server):
        def __init__(self, *counted) -> None:
            super().__init__()
            self.counted = counted

        async def request(self, messages, tools, options, probe):
            return Reply("yes", (), [], "stop", "r", *self.counted)

    async def main(clock, *counted):
        model, _, go = send(Silent(*counted), "tokens:1/s,burst=1000", 1, clock)
        await go()
        (limiter,) = model.gate.limiters(model.model)
        return 1000 - limiter.level(clock())

    read = 19 / 4  # '[{"role":"user"}]' and 'null', at four bytes a token
    assert run_virtual(lambda clock: main(clock, None, None)) == pytest.approx(read + 300, abs=2)
    assert run_virtual(lambda clock: main(clock, None, 50)) == pytest.approx(read + 50, abs=2)
    assert run_virtual(lambda clock: main(clock, 100, None)) == pytest.approx(400)
