"""The part common to all model APIs: a checked conversation comes in, a reply goes out.

Pure. The wire modules (one for each API) parse a request into a `Conversation` and render a `Said`; between
them nothing knows which provider is being emulated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from profiler.emulator.arguments import Generator, compile_schema

Finish = Literal["stop", "tool_calls", "length"]
ChoiceKind = Literal["auto", "none", "required", "named"]
ArgumentsForm = Literal["text", "null", "missing", "empty", "object"]


@dataclass(eq=False)
class ApiError(Exception):
    """A request that the provider would refuse. Rendered by each API in its own envelope.

    `kind` is the error's `type`; `details` is merged into the error object where given; `retry_ns` is the
    wait that a refusal announces, `after_ns` how long it takes. `log`: what a log says of it, where the
    message repeats what was sent.
    """

    message: str
    _: KW_ONLY
    status: int = 400
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    details: Mapping[str, Any] | None = None
    retry_ns: int | None = None
    log: str | None = None
    after_ns: int = 0


class Offered(NamedTuple):
    """The tools a client offers, by name in sorted order: the order of offering changes nothing.

    `text`: the list as it was offered, as JSON.
    """

    names: tuple[str, ...]
    generators: tuple[Generator, ...]
    text: bytes = b"[]"


NO_TOOLS = Offered((), ())


class Choice(NamedTuple):
    """`tool_choice`; `names` is the named tool, or the tools allowed, or empty for all of them."""

    kind: ChoiceKind
    names: tuple[str, ...] = ()


AUTO = Choice("auto")


Progress = tuple[int, int, str | None, Sequence[Any]]
"""How far a loop has come: the turns, calls, call id and results of a `Conversation`."""


class Carried(NamedTuple):
    """The state of a stored conversation: the progress of its loop, with the ids of calls that have no output
    yet (`pending`), and the tokens so far."""

    turns: int
    calls: int
    call_id: str | None
    pending: tuple[str, ...]
    results: tuple[Any, ...]
    tokens: int


class Conversation(msgspec.Struct, frozen=True, gc=False):
    """A request that passed validation. Its loop began with the last user message.

    `turns`: assistant turns with tool calls since then; `calls`: tool calls in them; `call_id`: the
    first of their ids, which names the loop (where it has none, `unnamed` of the call). `results`: the
    contents of their results, in order. `resumed`: the last assistant message holds a server's tool and
    nothing to answer, so it may have been a paused turn, which goes on.
    Responses only: `echo`, what the response repeats of the request;
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
    results: Sequence[Any]
    max_tokens: int | None
    echo: Mapping[str, Any] = MappingProxyType({})
    carried: Carried | None = None
    earlier_tokens: int = 0
    resumed: bool = False


class MadeCall(msgspec.Struct, frozen=True, gc=False):
    """One tool call of a response; `arguments` is JSON text.

    `token` is what its ids are made of; `id` is the one that the client answers to, None where a fault
    leaves it out; `form` is how a fault has the arguments sent.
    """

    token: str
    name: str
    arguments: str
    id: str | None = ""
    form: ArgumentsForm = "text"

    @property
    def deltas(self) -> str:
        """The part of the arguments that is streamed after the call's opening."""
        return self.arguments if self.form == "text" else ""


class Said(msgspec.Struct, frozen=True, gc=False):
    """One response of the model, a text or calls.

    `input_tokens` are all of the request, `cached_tokens` and `cache_written_tokens` of them; `output_tokens`
    are all that was generated, the first `reasoning_tokens` of them before text and calls.
    """

    text: str | None
    calls: tuple[MadeCall, ...]
    finish: Finish
    input_tokens: int
    output_tokens: int
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    cache_written_tokens: int = 0
    cache_ttl: str = "5m"

    @property
    def uncached_tokens(self) -> int:
        """The input tokens that were neither read from the cache nor written to it."""
        return self.input_tokens - self.cached_tokens - self.cache_written_tokens


Event = tuple[int, dict[str, Any]]
"""An event of a stream, before it is JSON, and the number of output tokens that come before it."""


def tokens_of(text: str | bytes) -> int:
    """The tokens of a text or of a request's body: roughly four characters each, at least one."""
    return len(text) // 4 + 1


def call_tokens(call: MadeCall) -> int:
    """The tokens of one call: its arguments, and eight for its name and frame."""
    return len(call.arguments) // 4 + 9


def unnamed(name: object, arguments: object) -> str:
    """A stand-in for the id of a call that has none."""
    return f"{name} {arguments}"


def limited(said: Said, max_tokens: int | None) -> Said:
    """`said` within `max_tokens`: its text cut off, or whole calls and perhaps one with cut arguments."""
    if max_tokens is None or said.output_tokens <= max_tokens:
        return said
    said = replace(
        said,
        finish="length",
        output_tokens=max_tokens,
        reasoning_tokens=min(said.reasoning_tokens, max_tokens),
    )
    left, kept = max_tokens - said.reasoning_tokens, []
    if not said.calls:
        return replace(said, text=(said.text or "")[: left * 4])
    for call in said.calls:
        cost = call_tokens(call)
        if cost > left:
            if left > 8:
                # Eight tokens go to name and frame; one character less keeps the JSON from being whole.
                kept.append(replace(call, arguments=call.arguments[: (left - 8) * 4 - 1]))
            break
        kept.append(call)
        left -= cost
    return replace(said, calls=tuple(kept))


def pieces(text: str, tokens_per_event: int, start: int = 0) -> Iterable[tuple[int, str]]:
    """`text` in deltas of `tokens_per_event` tokens, each with the number of tokens up to its end.

    `start`: the tokens before the text.
    """
    size = tokens_per_event * 4
    for begin in range(0, len(text), size):
        end = min(begin + size, len(text))
        yield start + end // 4 + 1, text[begin:end]


_THOUGHT = "The question needs a few facts; each of them is one call, and none waits for what another finds. "


def reasoning(said: Said) -> str:
    """The text of the reasoning tokens; empty without any."""
    if not said.reasoning_tokens:
        return ""
    size = said.reasoning_tokens * 4 - 1
    return (_THOUGHT * (size // len(_THOUGHT) + 1))[:size]


MENTIONED = 3
"""The results that an answer shows something of."""

_WIDTH = 48


def answer(results: Sequence[Any]) -> str:
    """A short answer to a conversation whose tools returned `results` (texts or content blocks)."""
    if not results:
        return "There was nothing to look up, so this is the answer."
    mentioned = "; ".join(snippet(result) for result in results[:MENTIONED])
    more = f"; and {len(results) - MENTIONED} more" if len(results) > MENTIONED else ""
    return f"From {len(results)} results: {mentioned}{more}."


def snippet(result: Any) -> str:
    """The beginning of a result as an answer shows it; that of a snippet is itself."""
    if isinstance(result, list):
        texts = [block.get("text") for block in result if isinstance(block, dict)]
        result = next((text for text in texts if isinstance(text, str)), "")
    text = " ".join(str(result)[: _WIDTH * 4].split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."


def offer(tools: Mapping[str, Mapping[str, Any] | Generator]) -> Offered:
    """The tools of these names, each with its JSON Schema (it may raise `SchemaError`) or that compiled."""
    names = tuple(sorted(tools))
    made = (tools[name] for name in names)
    return Offered(names, tuple(one if isinstance(one, Generator) else compile_schema(one) for one in made))
