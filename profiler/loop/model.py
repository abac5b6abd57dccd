"""The interface between the loop and a model: a Protocol, the data that crosses it, and `LimitedModel`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from profiler.records import Attempt, ServerToolCall

if TYPE_CHECKING:
    from profiler.loop.tools import Tool  # slow to import, and the emulator needs this module's headers
import asyncio
import copy
import random
import time

import orjson

from profiler.errors import ProviderError, UsageError
from profiler.limits.gate import Gate, Slot
from profiler.limits.refusals import TRANSIENT, TRANSIENT_ERRORS, delay_ns, signal_of
from profiler.limits.spec import Rule, UnknownLimiter, parse_rules
from profiler.records import Clock, limited_input_tokens

Message = Any
"""A message (or input item) in the provider's own form."""


@dataclass(frozen=True, slots=True)
class CallRequest:
    """A tool call as the model asked for it. `arguments`: JSON text, or an object if the SDK parsed it.

    `truncated`: the reply was cut off inside this call, so its arguments cannot be trusted.
    """

    id: str
    name: str
    arguments: str | Mapping[str, Any]
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's response. `messages` is the part of it that goes back into the conversation.

    Tokens, `server_tools` and `unreadable` are as in `ModelCall`. `paused`: the server interrupted its own
    turn, and goes on when it gets its reply back.
    """

    text: str
    calls: tuple[CallRequest, ...]
    messages: list[Message]
    finish_reason: str | None = None
    request_id: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cache_written_tokens: int | None = None
    cache_written_1h_tokens: int | None = None
    reasoning_tokens: int | None = None
    server_tools: tuple[ServerToolCall, ...] = ()
    unreadable: int = 0
    paused: bool = False


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The result of one call, as text for the model."""

    call_id: str
    content: str
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """The options of one request.

    `tool_choice`: `auto`, `none`, `required`, or the name of a tool. `answer_only`: the last request of
    a loop that has used up its rounds, which cannot call tools. `headers` are sent with it.
    """

    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    answer_only: bool = False
    stream: bool = False
    headers: Mapping[str, str] | None = None


@dataclass(slots=True)
class Probe:
    """Observations of one model request. Providers call its methods as parts of the reply arrive.

    `complete` has the calls whose arguments are complete, and since when (streamed replies only).
    `on_arguments` hears of each of them, `on_call` of those that are final.
    `limiter_wait_ns`: how long our own limiters held the request back. `on_text_error`: the exception of
    the caller's `on_text`, which must not be taken for an unreadable reply. `sending_ns`: how much of the
    time from `began_ns` until the first attempt was sent went by in this process, and not in waiting for a
    connection. `url`: the one that was asked last, `sent_headers`: those it was asked with, as raw pairs.
    `broken_off`: what had come of a streamed reply whose
    connection broke, or whose request was cancelled.
    """

    clock: Callable[[], int]
    on_text: Callable[[str], None] | None = None
    on_arguments: Callable[[CallRequest], None] | None = None
    on_call: Callable[[CallRequest], None] | None = None
    first_token_ns: int | None = None
    first_output_ns: int | None = None
    first_tool_call_ns: int | None = None
    attempts: list[Attempt] = field(default_factory=list)
    complete: list[tuple[CallRequest, int]] = field(default_factory=list)
    limiter_wait_ns: int = 0
    began_ns: int = 0
    sending_ns: int = 0
    on_text_error: Exception | None = None
    url: Any = None
    sent_headers: Sequence[tuple[bytes, bytes]] = ()
    broken_off: Reply | None = None
    _told: set[int] = field(default_factory=set)  # of the objects in `complete`

    def reasoning(self) -> None:
        """A part of the model's reasoning has arrived."""
        if self.first_token_ns is None:
            self.first_token_ns = self.clock()

    def token(self) -> None:
        """A part of the model's output has arrived: text, or a piece of a call."""
        if self.first_output_ns is None:
            self.first_output_ns = self.clock()
            if self.first_token_ns is None:
                self.first_token_ns = self.first_output_ns

    def text(self, delta: str) -> None:
        """A piece of the answer's text has arrived."""
        self.token()
        self.hand_on(delta)

    def hand_on(self, delta: str) -> None:
        """Give the caller a piece of the answer's text."""
        if self.on_text is not None and delta:
            try:
                self.on_text(delta)
            except Exception as error:
                self.on_text_error = error
                raise

    def arguments_complete(self, request: CallRequest) -> None:
        """The arguments of a call are complete. Should the reply be cut off next, they cannot be trusted."""
        now_ns = self.clock()
        if self.first_tool_call_ns is None:
            self.first_tool_call_ns = now_ns
        self.complete.append((request, now_ns))
        self._told.add(id(request))
        if self.on_arguments is not None:
            self.on_arguments(request)

    def call_complete(self, request: CallRequest) -> None:
        """A call is final: it will not change any more, however the reply goes on."""
        if id(request) not in self._told:
            self.arguments_complete(request)
        if self.on_call is not None:
            self.on_call(request)


current_probe: ContextVar[Probe | None] = ContextVar("toolloop_current_probe", default=None)
"""The probe of the model request under way in this context; the HTTP client's hooks find it here."""


def conversation(prompt: str | Sequence[Message]) -> list[Message]:
    """A new list of messages: one of the user for a text, else those of the prompt."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


class Model(Protocol):
    """A model behind a provider's SDK. `request` raises `ProviderError` when it fails for good."""

    @property
    def provider(self) -> str:
        """`openai`, `anthropic` and so on: a metric label."""

    @property
    def model(self) -> str: ...

    def conversation(self, prompt: str | Sequence[Message]) -> list[Message]:
        """A new list of messages that begins with the prompt."""

    def render_tools(self, tools: Sequence[Tool]) -> Any:
        """The tools in the provider's form; rendered once per loop object."""

    async def request(
        self, messages: list[Message], tools: Any, options: RequestOptions, probe: Probe
    ) -> Reply: ...

    def results(self, results: Sequence[ToolResult]) -> list[Message]:
        """The messages that carry the results of a round, in the order of its calls."""


# Reserved headers by which a load test tells the emulator which work a request belongs to. They are sent
# only when a loop runs with a tape number, never on ordinary requests.

LOOP_HEADER = "x-toolloop-loop"
"""The loop's number: the index of its tape entry."""

TRIAL_HEADER = "x-toolloop-trial"
"""An opaque token of the trial; the emulator copies it into its journal."""

CALL_HEADER = "x-toolloop-call"
"""On the request of a tool: the provider-given id of the tool call."""


# A model whose requests pass our own limiters before they meet the server's quotas.


BYTES_PER_TOKEN = 4.0
"""A first guess for English and JSON, corrected by the provider's own counts."""

FIRST_OUTPUT = 300.0
LEARNING = 0.1
"""The weight of each request in the exponential moving averages."""


class TokenEstimate:
    """How many tokens of the quota a request will take, learned from earlier requests of the same model."""

    def __init__(self) -> None:
        self._per_byte = 1 / BYTES_PER_TOKEN
        self._output = FIRST_OUTPUT

    def of(self, size: int, input_tokens: int | None = None, output_tokens: int | None = None) -> float:
        """Tokens of a request of `size` bytes and of its reply, where the provider has not counted them."""
        read = size * self._per_byte if input_tokens is None else input_tokens
        return read + (self._output if output_tokens is None else output_tokens)

    def learn(self, size: int, input_tokens: int | None, output_tokens: int | None) -> None:
        """The provider counted these tokens for a request of `size` bytes; None teaches nothing."""
        if size and input_tokens is not None:
            self._per_byte += LEARNING * (input_tokens / size - self._per_byte)
        if output_tokens is not None:
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
    tokens that the provider counted once the reply is there: those that count against its limit
    (`limited_input_tokens`); what it did not say stays estimated. Rate-limit headers lower the limits.

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
        self._random = random.SystemRandom()  # in the children of a fork others than in the parent

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
        read = limited_input_tokens(self.provider, reply.input_tokens, reply.cached_tokens)
        if read is None and reply.output_tokens is None:
            return
        slot.used = {"requests": 1.0, "tokens": self._estimate.of(size, read, reply.output_tokens)}
        self._estimate.learn(size, read, reply.output_tokens)


def _again(error: ProviderError, probe: Probe) -> bool:
    """Whether to try a failed request again."""
    if probe.first_token_ns is not None:
        return False
    return error.status in TRANSIENT or error.error_type in TRANSIENT_ERRORS
