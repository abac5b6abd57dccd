"""A model whose requests pass our own limiters before they meet the server's quotas."""

from __future__ import annotations

import asyncio
import copy
import random
import time
from typing import Any

import orjson

from profiler.errors import ProviderError, UsageError
from profiler.limits.gate import Gate, Slot
from profiler.limits.refusals import TRANSIENT, delay_ns, signal_of
from profiler.limits.spec import Rule, UnknownLimiter, parse_rules
from profiler.loop.model import Message, Model, Probe, Reply, RequestOptions
from profiler.records import Clock

BYTES_PER_TOKEN = 4.0
"""A first guess for English and JSON, corrected by the provider's own counts."""

FIRST_OUTPUT = 300.0
LEARNING = 0.1
"""The weight of each request in the exponential moving averages."""


class TokenEstimate:
    """How many tokens a request will take, learned from earlier requests of the same model."""

    def __init__(self) -> None:
        self._per_byte = 1 / BYTES_PER_TOKEN
        self._output = FIRST_OUTPUT

    def of(self, size: int) -> float:
        """Tokens of a request of `size` bytes and of its reply."""
        return size * self._per_byte + self._output

    def learn(self, size: int, input_tokens: int, output_tokens: int) -> None:
        """The provider counted these tokens for a request of `size` bytes."""
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

    A request reserves one request and an estimate of its tokens, both or neither, and is charged the
    tokens that the provider counted once the reply is there. Rate-limit headers lower the limits.

    The SDK's own retries are switched off, because all of its requests come back at the same moment
    after a Retry-After. Instead a request that failed is tried again up to `retries` times; all requests
    of the model wait as long as a server asked and a random while more. A request whose reply has
    begun to arrive is not tried again.
    """

    def __init__(
        self, model: Model, limits: str | Gate, *, retries: int = 2, clock: Clock = time.monotonic_ns
    ) -> None:
        self.gate = limits if isinstance(limits, Gate) else Gate(limits, clock=clock)
        self.retries = retries
        self.client: Any = getattr(model, "client", None)
        self.provider, self.model = model.provider, model.model
        self.conversation, self.render_tools, self.results = (
            model.conversation,
            model.render_tools,
            model.results,
        )
        self._clock = clock
        self._inner = model
        if self.client is not None and hasattr(self.client, "with_options"):
            inner: Any = copy.copy(model)
            inner.client = self.client.with_options(max_retries=0)
            self._inner = inner
        self._estimate = TokenEstimate()
        self._random = random.Random()

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
            slot.signal = "unknown"
            try:
                reply = await self._inner.request(messages, tools, options, probe)
                slot.signal = "ok"
                self._settle(slot, size, reply)
                return reply
            except ProviderError as error:
                slot.signal = "timeout" if error.error_type == "timeout" else signal_of(error)
                if len(probe.attempts) > seen:
                    slot.retry_after_ns = probe.attempts[-1].retry_after_ns
                if attempt > self.retries or not _again(error, probe):
                    raise
            finally:
                if len(probe.attempts) > seen:
                    self.gate.heed(self.model, probe.attempts[-1].rate_limits or {})
                self.gate.leave(slot)
            if slot.retry_after_ns is None:  # else the gate holds all requests of the model
                await asyncio.sleep(delay_ns(attempt, slot.signal, None, self._random) / 1e9)

    def _settle(self, slot: Slot, size: int, reply: Reply) -> None:
        if reply.input_tokens is not None and reply.output_tokens is not None:
            slot.used = {"requests": 1.0, "tokens": float(reply.input_tokens + reply.output_tokens)}
            self._estimate.learn(size, reply.input_tokens, reply.output_tokens)


def _again(error: ProviderError, probe: Probe) -> bool:
    """Whether to try a failed request again."""
    if probe.first_token_ns is not None:
        return False
    return error.status in TRANSIENT or error.error_type in ("timeout", "connection")
