"""The interface between the loop and a model: one small Protocol, and the data that crosses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from profiler.records import Attempt

if TYPE_CHECKING:
    from profiler.loop.tools import Tool  # slow to import, and the emulator needs this module's headers

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
    """A model's response. `messages` is the part of it that goes back into the conversation."""

    text: str
    calls: tuple[CallRequest, ...]
    messages: list[Message]
    finish_reason: str | None = None
    request_id: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


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

    `complete_ns` maps the ids of calls to when their arguments were complete (streamed replies only).
    `limiter_wait_ns`: how long our own limiters held the request back. `on_text_error`: the exception of
    the caller's `on_text`, which must not be taken for an unreadable reply.
    """

    clock: Callable[[], int]
    on_text: Callable[[str], None] | None = None
    on_call: Callable[[CallRequest], None] | None = None
    first_token_ns: int | None = None
    first_tool_call_ns: int | None = None
    attempts: list[Attempt] = field(default_factory=list)
    complete_ns: dict[str, int] = field(default_factory=dict)
    limiter_wait_ns: int = 0
    on_text_error: Exception | None = None

    def token(self) -> None:
        """A part of what the model generated has arrived: text, or a piece of a call."""
        if self.first_token_ns is None:
            self.first_token_ns = self.clock()

    def text(self, delta: str) -> None:
        """A piece of the answer's text has arrived."""
        self.token()
        if self.on_text is not None and delta:
            try:
                self.on_text(delta)
            except Exception as error:
                self.on_text_error = error
                raise

    def call_complete(self, request: CallRequest) -> None:
        """The arguments of a call are complete: it will not change any more, however the reply goes on."""
        now_ns = self.clock()
        if self.first_tool_call_ns is None:
            self.first_tool_call_ns = now_ns
        self.complete_ns[request.id] = now_ns
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
