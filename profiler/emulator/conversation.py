"""What every model API boils down to: a checked conversation in, something said out.

Pure. The wire modules parse a request into a `Conversation` and render a `Said`; between them
nothing knows which provider is being emulated.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from profiler.emulator.arguments import Generator, compile_schema

Finish = Literal["stop", "tool_calls", "length"]
ChoiceKind = Literal["auto", "none", "required", "named"]


class ApiError(Exception):
    """A request that the provider would refuse. Rendered by each API in its own envelope.

    `kind` is the error's `type`; `details` is merged into the error object where given.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.details = details


class Offered(NamedTuple):
    """The tools a client offers, by name in sorted order: the order of offering changes nothing."""

    names: tuple[str, ...]
    generators: tuple[Generator, ...]


NO_TOOLS = Offered((), ())


class Choice(NamedTuple):
    """`tool_choice`; `names` is the named tool, or the tools allowed, or empty for all of them."""

    kind: ChoiceKind
    names: tuple[str, ...] = ()


AUTO = Choice("auto")


class Carried(NamedTuple):
    """Where a stored conversation stands: what `Conversation` counts, the calls that still want an output,
    and the tokens so far."""

    turns: int
    calls: int
    call_id: str | None
    pending: tuple[str, ...]
    results: tuple[Any, ...]
    tokens: int


class Conversation(NamedTuple):
    """A request that passed validation, seen from after its last user message.

    `turns`: assistant turns with tool calls since then; `calls`: tool calls in them; `call_id`: the
    first of their ids, which names the loop. `results`: the contents of their results, in order.
    Responses only: `echo`, what the response repeats of the request (the inside of a JSON object);
    `carried`, the state to store, None to store nothing; `earlier_tokens`, those of stored history.
    """

    model: str
    stream: bool
    include_usage: bool
    tools: Offered
    choice: Choice
    parallel: bool
    turns: int
    calls: int
    call_id: str | None
    results: list[Any]
    max_tokens: int | None
    echo: bytes = b""
    carried: Carried | None = None
    earlier_tokens: int = 0


class MadeCall(NamedTuple):
    """One tool call of a response. `token` is the id without its prefix; `arguments` is JSON text."""

    token: str
    name: str
    arguments: str


class Said(NamedTuple):
    """What the model says in one response. `output_tokens` counts text and calls."""

    text: str | None
    calls: tuple[MadeCall, ...]
    finish: Finish
    input_tokens: int
    output_tokens: int


Frame = tuple[int, bytes]
"""An SSE frame and the number of output tokens that come before it."""


def tokens_of(text: str) -> int:
    """Roughly four characters a token, at least one."""
    return len(text) // 4 + 1


def call_tokens(call: MadeCall) -> int:
    """The tokens of one call: its arguments, and eight for its name and frame."""
    return len(call.arguments) // 4 + 9


def limited(said: Said, max_tokens: int | None) -> Said:
    """What is left of `said` within `max_tokens`: cut text, or whole calls and one cut in its arguments."""
    if max_tokens is None or said.output_tokens <= max_tokens:
        return said
    if not said.calls:
        text = (said.text or "")[: max_tokens * 4]
        return said._replace(text=text, finish="length", output_tokens=max_tokens)
    left, kept = max_tokens, []
    for call in said.calls:
        cost = call_tokens(call)
        if cost > left:
            if left > 8:
                kept.append(call._replace(arguments=call.arguments[: (left - 8) * 4 - 1]))
            break
        kept.append(call)
        left -= cost
    return said._replace(calls=tuple(kept), finish="length", output_tokens=max_tokens)


def pieces(text: str, tokens_per_event: int) -> Iterable[tuple[int, str]]:
    """`text` in deltas of `tokens_per_event` tokens, each with the tokens that end with it."""
    size = tokens_per_event * 4
    for start in range(0, len(text), size):
        end = min(start + size, len(text))
        yield end // 4 + 1, text[start:end]


class ToolSets:
    """Tools already seen, by their JSON: clients repeat the same list in every request.

    Least recently used are dropped beyond `size`.
    """

    def __init__(self, size: int = 512) -> None:
        self._size = size
        self._known: OrderedDict[bytes, Offered] = OrderedDict()

    def get(self, key: bytes, build: Callable[[], dict[str, Mapping[str, Any]]]) -> Offered:
        """The compiled tools of `key`; `build` validates them and returns name → parameters."""
        offered = self._known.get(key)
        if offered is None:
            offered = offer(build())
            self._known[key] = offered
            if len(self._known) > self._size:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        return offered


def offer(schemas: Mapping[str, Mapping[str, Any]]) -> Offered:
    """Compile name → JSON Schema. Raises `SchemaError`; the wire modules check before."""
    names = tuple(sorted(schemas))
    return Offered(names, tuple(compile_schema(schemas[name]) for name in names))
