"""Limiters in front of a model: tokens reserved and settled, headers heeded, refusals spread."""

from __future__ import annotations

import asyncio

import pytest

from profiler import ProviderError, ToolLoop
from profiler.gate import Gate
from profiler.limited import LimitedModel
from profiler.model import Probe, Reply, RequestOptions
from profiler.records import Attempt
from profiler.testing import ScriptedModel, provider_failure, run_virtual

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


def test_a_refusal_with_retry_after_holds_everybody_and_nobody_meets_again():
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


def test_what_no_retry_would_change_is_raised_at_once():
    async def main(clock):
        server = Server(refusals=[(400, None)])
        _, probes, go = send(server, "semaphore:1", 1, clock)
        (error,) = await go()
        return error, len(probes[0].attempts)

    error, attempts = run_virtual(main)
    assert isinstance(error, ProviderError)
    assert attempts == 1


def test_a_loop_over_a_limited_model_records_the_wait():
    async def main(clock):
        model = LimitedModel(
            ScriptedModel(["yes", "yes"]), Gate("rate:1/s,burst=1", clock=clock), clock=clock
        )
        loop = ToolLoop(model, clock=clock)
        return [(await loop.run("go")).record.rounds[0].model.limiter_wait_ns for _ in range(2)]

    assert run_virtual(main) == [0, S]
