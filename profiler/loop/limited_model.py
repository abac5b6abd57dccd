"""A model whose requests pass limiters of ours before they meet the quotas of theirs."""

from __future__ import annotations

import asyncio
import copy
import random
import time
from collections.abc import Sequence
from typing import Any

import orjson

from profiler.errors import ProviderError, UsageError
from profiler.limits.gate import Clock, Gate, Slot
from profiler.limits.limiter import Outcome
from profiler.limits.refusals import REJECTING, TRANSIENT, delay_ns
from profiler.limits.spec import Rule, UnknownLimiter, parse_rules
from profiler.loop.model import Message, Model, Probe, Reply, RequestOptions
from profiler.loop.tools import Tool

BYTES_PER_TOKEN = 4.0
"""Of English and JSON; corrected by what the provider counts."""

FIRST_OUTPUT = 300.0
LEARNING = 0.1


class TokenEstimate:
    """How many tokens a request will take, learned from what earlier ones took."""

    def __init__(self) -> None:
        self._per_byte = 1 / BYTES_PER_TOKEN
        self._output = FIRST_OUTPUT

    def of(self, size: int) -> float:
        """For a request of so many bytes."""
        return size * self._per_byte + self._output

    def learn(self, size: int, input_tokens: int, output_tokens: int) -> None:
        if size:
            self._per_byte += LEARNING * (input_tokens / size - self._per_byte)
        self._output += LEARNING * (output_tokens - self._output)


def parse_model_limit(text: str) -> tuple[Rule, ...]:
    """The rules of `--model-limit`, such as `rate:500/min,burst=10+tokens:30000/min`. Raises `UsageError`."""
    expected = UsageError(
        f"--model-limit {text}: expected rate:R/s or R/min[,burst=B], tokens:R/s or R/min[,burst=B], "
        "semaphore:N, adaptive, or several joined by +"
    )
    try:
        rules = parse_rules(text)
    except UnknownLimiter:
        raise expected from None
    except UsageError as error:
        raise UsageError(f"--model-limit {text}: {error}") from None
    if any(rule.scope != "process" for rule in rules):
        raise expected
    return rules


class LimitedModel:
    """Another model behind a gate: `LimitedModel(model, "rate:500/min+tokens:30000/min")`.

    A request reserves one request and an estimate of its tokens, all or none, and settles for what
    the provider counted when the reply is there. Rate-limit headers lower what is allowed. The SDK's
    own retries are switched off: they obey Retry-After all at the same moment. Instead, up to
    `retries` times, a refused request waits what was asked and a random while more, with everybody
    else who uses the model. A reply that had begun to arrive is not asked for again.
    """

    def __init__(
        self, model: Model, limits: str | Gate, *, retries: int = 2, clock: Clock = time.monotonic_ns
    ) -> None:
        self.gate = limits if isinstance(limits, Gate) else Gate(limits, clock=clock)
        self.retries = retries
        self.client: Any = getattr(model, "client", None)
        self._clock = clock
        self._inner = model
        if self.client is not None and hasattr(self.client, "with_options"):
            inner: Any = copy.copy(model)
            inner.client = self.client.with_options(max_retries=0)
            self._inner = inner
        self._estimate = TokenEstimate()
        self._random = random.Random()

    @property
    def provider(self) -> str:
        return self._inner.provider

    @property
    def model(self) -> str:
        return self._inner.model

    def conversation(self, prompt: str | Sequence[Message]) -> list[Message]:
        return self._inner.conversation(prompt)

    def render_tools(self, tools: Sequence[Tool]) -> Any:
        return self._inner.render_tools(tools)

    def results(self, results: Sequence[Any]) -> list[Message]:
        return self._inner.results(results)

    async def request(
        self, messages: list[Message], tools: Any, options: RequestOptions, probe: Probe
    ) -> Reply:
        size = len(orjson.dumps(messages, default=str)) + len(orjson.dumps(tools, default=str))
        attempt = 0
        while True:
            attempt += 1
            began_ns = self._clock()
            cost = {"requests": 1.0, "tokens": self._estimate.of(size)}
            slot = await self.gate.enter(self.gate.slot(self.model, cost=cost))
            probe.limiter_wait_ns += self._clock() - began_ns
            seen = len(probe.attempts)
            slot.outcome = "unknown"
            try:
                reply = await self._inner.request(messages, tools, options, probe)
                slot.outcome = "ok"
                self._settle(slot, size, reply)
                return reply
            except ProviderError as error:
                slot.outcome = _outcome(error)
                if len(probe.attempts) > seen:
                    slot.retry_after_ns = probe.attempts[-1].retry_after_ns
                if attempt > self.retries or not _again(error, probe):
                    raise
            finally:
                if len(probe.attempts) > seen:
                    self.gate.heed(self.model, probe.attempts[-1].rate_limits or {})
                self.gate.leave(slot)
            if slot.retry_after_ns is None:  # else the gate holds everybody back
                await asyncio.sleep(delay_ns(attempt, slot.outcome, None, self._random) / 1e9)

    def _settle(self, slot: Slot, size: int, reply: Reply) -> None:
        if reply.input_tokens is not None and reply.output_tokens is not None:
            slot.used = {"requests": 1.0, "tokens": float(reply.input_tokens + reply.output_tokens)}
            self._estimate.learn(size, reply.input_tokens, reply.output_tokens)


def _outcome(error: ProviderError) -> Outcome:
    if error.status in REJECTING:
        return "rejected"
    return "timeout" if error.error_type == "timeout" else "unknown"


def _again(error: ProviderError, probe: Probe) -> bool:
    if probe.first_token_ns is not None:
        return False
    return error.status in TRANSIENT or error.error_type in ("timeout", "connection")
