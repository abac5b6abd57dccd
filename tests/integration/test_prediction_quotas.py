"""Quotas and retry rules found in recordings of the real SDKs, over sockets."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from profiler.emulator.process import start_emulator
from profiler.errors import ProviderError
from profiler.limits.retries import RULES
from profiler.loop.loop import ToolLoop
from profiler.prediction.quotas.fit import fit_quotas, requests_of, simulated_refusals
from profiler.prediction.quotas.retries import observed_retries
from profiler.providers import make_provider
from profiler.records import LoopRecord, ModelCall
from tests.integration.plain_server import Asked, response, serving

SCENARIO = """
description = "a quota that binds, at a twentieth of the time"
prompt = "Question {number}."
time_scale = 0.05

[model]
first_token = { kind = "uniform", low = 0.5, high = 1.0 }
tokens_per_second = 0

[loop]
rounds = 1
fan_out = 1

[quota]
requests_per_minute = 120
burst = 0.1

[tools.search]
description = "Search."
duration = 0.1
"""
"""2,400 requests in a minute of the client's, 12 of them at once."""


async def ask(url: str, provider: str, *, agents: int, loops: int, stream: bool = False) -> list[ModelCall]:
    """The model calls of agents that run one loop after another, whether it fails or not."""
    records: list[LoopRecord] = []
    model = make_provider(provider, base_url=url)

    async def agent() -> None:
        for _ in range(loops):
            with contextlib.suppress(ProviderError):
                await ToolLoop(model, sinks=[records.append], stream=stream).run("hi")

    await asyncio.gather(*(agent() for _ in range(agents)))
    await model.client.close()
    return [round_.model for record in records for round_ in record.rounds]


@pytest.mark.measures  # a client that is late sees requests in another order than the server
@pytest.mark.parametrize(("provider", "stream"), [("openai", True), ("anthropic", False)])
async def test_quota_of_a_recording_refuses_as_many_of_its_requests(
    provider: str, stream: bool, tmp_path: Path
) -> None:
    path = tmp_path / "quota.toml"
    path.write_text(SCENARIO)
    with start_emulator(str(path), seed=3) as emulator:
        calls = await ask(emulator.url, provider, agents=30, loops=2, stream=stream)
    found, requests = fit_quotas(calls), requests_of(calls)
    limit = found.of("requests")
    assert limit is not None
    assert (limit.amount, limit.source, limit.met, limit.identified) == (2400, "headers", True, True)
    assert limit.burst == pytest.approx(12, rel=0.1)
    share = sum(one.refused for one in requests) / len(requests)
    assert share > 0.1
    simulated = sum(one is not None for one in simulated_refusals(found, requests)) / len(requests)
    assert simulated == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("provider", RULES)
async def test_sdk_tries_again_as_its_rule_says(provider: str) -> None:
    """The shortest wait of several, since a busy machine only ever adds to one."""

    def refuse(asked: Asked, header: str) -> bytes:
        head, _, body = response(429, {"error": {"message": "no", "type": "rate_limit"}}).partition(
            b"\r\n\r\n"
        )
        return b"\r\n".join([head, header.encode(), b"", body])

    rule = RULES[provider]
    waits: dict[str, list[int]] = {}
    for header in ("retry-after-ms: 30", "x-nothing: 1"):
        with serving(lambda asked, header=header: refuse(asked, header)) as server:
            calls = await ask(server.url, provider, agents=5, loops=1)
        assert {len(call.attempts) for call in calls} == {rule.retries + 1}
        found = observed_retries(calls)
        assert (found.seen, found.exhausted) == (rule.retries, True)
        for n in range(rule.retries):
            pairs = [(call.attempts[n], call.attempts[n + 1]) for call in calls]
            waits.setdefault(header, []).append(min(b.started_ns - a.ended_ns for a, b in pairs))
    first, second = rule.backoff_ns(1), rule.backoff_ns(2)
    assert all(28_000_000 <= wait < first[0] for wait in waits["retry-after-ms: 30"])
    assert waits["x-nothing: 1"][0] >= first[0] - 2_000_000
    assert waits["x-nothing: 1"][1] >= second[0] - 2_000_000
