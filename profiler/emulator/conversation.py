"""The part common to all model APIs: a checked conversation comes in, a reply goes out.

Pure. The wire modules (one for each API) parse a request into a `Conversation` and render a `Said`; between
them nothing knows which provider is being emulated.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import orjson

from profiler.emulator.arguments import Generator, compile_schema
from profiler.emulator.draws import Place

Finish = Literal["stop", "tool_calls", "length"]
ChoiceKind = Literal["auto", "none", "required", "named"]


@dataclass(eq=False)
class ApiError(Exception):
    """A request that the provider would refuse. Rendered by each API in its own envelope.

    `kind` is the error's `type`; `details` is merged into the error object where given; `retry_ns` is the
    wait that a refusal announces.
    """

    message: str
    _: KW_ONLY
    status: int = 400
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    details: Mapping[str, Any] | None = None
    retry_ns: int | None = None


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


class Conversation(NamedTuple):
    """A request that passed validation. Its loop began with the last user message.

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
    results: Sequence[Any]
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
    """One response of the model, a text or calls. `output_tokens` counts both."""

    text: str | None
    calls: tuple[MadeCall, ...]
    finish: Finish
    input_tokens: int
    output_tokens: int


Frame = tuple[int, bytes]
"""An SSE frame and the number of output tokens that come before it."""


def tokens_of(text: str | bytes) -> int:
    """The tokens of a text or of a request's body: roughly four characters each, at least one."""
    return len(text) // 4 + 1


def call_tokens(call: MadeCall) -> int:
    """The tokens of one call: its arguments, and eight for its name and frame."""
    return len(call.arguments) // 4 + 9


def limited(said: Said, max_tokens: int | None) -> Said:
    """`said` within `max_tokens`: its text cut off, or whole calls and perhaps one with cut arguments."""
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
                # Eight tokens go to name and frame; one character less keeps the JSON from being whole.
                kept.append(call._replace(arguments=call.arguments[: (left - 8) * 4 - 1]))
            break
        kept.append(call)
        left -= cost
    return said._replace(calls=tuple(kept), finish="length", output_tokens=max_tokens)


def pieces(text: str, tokens_per_event: int) -> Iterable[tuple[int, str]]:
    """`text` in deltas of `tokens_per_event` tokens, each with the number of tokens up to its end."""
    size = tokens_per_event * 4
    for start in range(0, len(text), size):
        end = min(start + size, len(text))
        yield end // 4 + 1, text[start:end]


_MENTIONED = 3
_WIDTH = 48


def answer(results: Sequence[Any]) -> str:
    """A short answer to a conversation whose tools returned `results` (texts or content blocks)."""
    if not results:
        return "There was nothing to look up, so this is the answer."
    mentioned = "; ".join(_snippet(result) for result in results[:_MENTIONED])
    more = f"; and {len(results) - _MENTIONED} more" if len(results) > _MENTIONED else ""
    return f"From {len(results)} results: {mentioned}{more}."


def _snippet(result: Any) -> str:
    if isinstance(result, list):
        texts = [block.get("text") for block in result if isinstance(block, dict)]
        result = next((text for text in texts if isinstance(text, str)), "")
    text = " ".join(str(result)[: _WIDTH * 4].split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."


def offer(schemas: Mapping[str, Mapping[str, Any]]) -> Offered:
    """Compile name → JSON Schema. Raises `SchemaError`; the wire modules check before."""
    names = tuple(sorted(schemas))
    return Offered(names, tuple(compile_schema(schemas[name]) for name in names))


# The call that a tool request belongs to, when the request does not say.
#
# Pure state. Foreign clients send no call id to the tool; their request is matched to a call that was
# handed out and not taken yet, by tool name and arguments. Exact matches first, then a call whose
# arguments are all in the request (tools fill in defaults). Bounded: the oldest calls are forgotten.


class Handed(NamedTuple):
    """A call that was handed out: its place and its full id."""

    place: Place
    call_id: str


def canonical(arguments: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """Arguments in a form that compares: a query string has only texts, so all values become texts."""
    return frozenset((name, _text(value)) for name, value in arguments.items())


def _text(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


@dataclass(eq=False)
class _Call:
    text: str
    handed: Handed

    @cached_property
    def asked(self) -> frozenset[tuple[str, str]]:
        """The arguments, read only when a tool request comes: for most clients, never."""
        try:
            return canonical(orjson.loads(self.text))
        except (orjson.JSONDecodeError, AttributeError):  # spoilt by a fault: no request matches
            return frozenset({("", self.text)})


class Outstanding:
    """Calls handed out to clients that do not name them, oldest first."""

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._serial = 0
        self._tools: dict[str, OrderedDict[int, _Call]] = {}
        self._order: OrderedDict[int, str] = OrderedDict()

    def add(self, name: str, arguments: str, handed: Handed) -> None:
        """Remember a call that was handed out; `arguments` is its JSON text."""
        self._serial += 1
        self._tools.setdefault(name, OrderedDict())[self._serial] = _Call(arguments, handed)
        self._order[self._serial] = name
        if len(self._order) > self._size:
            serial, oldest = self._order.popitem(last=False)
            self._drop(oldest, serial)

    def take(self, name: str, arguments: Mapping[str, Any]) -> Handed | None:
        """The oldest call that this request may be, which is then taken."""
        calls = self._tools.get(name)
        if not calls:
            return None
        wanted = canonical(arguments)
        found = None
        for serial, call in calls.items():
            if call.asked == wanted:
                found = serial
                break
            if found is None and call.asked <= wanted:
                found = serial
        if found is None:
            return None
        handed = calls[found].handed
        del self._order[found]
        self._drop(name, found)
        return handed

    def _drop(self, name: str, serial: int) -> None:
        calls = self._tools[name]
        del calls[serial]
        if not calls:
            del self._tools[name]
