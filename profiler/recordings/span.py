"""A span of an agent, whatever wrote it; `profiler.recordings.spans` makes loops of them.

`Span` is what every tracing convention comes down to (`genai.span_of` for OpenTelemetry's attributes; a
format of its own makes them itself). Only these kinds matter:

    agent   an agent, a workflow, a runner: the loop, or a part of it
    model   one request to a model
    tool    one call that a model asked for
    run     inside a tool span: the tool itself ran; the rest of that span is something else
    wait    inside a tool span: somebody was asked whether it may run ("cancelled": it may not)
    http    an HTTP request of a client; below a model span, an attempt of it
    apart   a guardrail, an evaluator: it is no part of a loop, nor is anything below it
    other   anything else: it counts only as the parent of others (one that has no GenAI span below it may be
            left out)

To keep a span on disk: `packed(span)` is a list of JSON values, `unpacked` the inverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Literal

from profiler.records import ToolStatus

Kind = Literal["agent", "model", "tool", "run", "wait", "http", "apart", "other"]


@dataclass(frozen=True, slots=True)
class Span:
    """A span, normalised. Times are Unix nanoseconds; "" and None: not said.

    `trace` and `id` name it (any text; hexadecimal in lower case for OpenTelemetry's), `parent` is the id
    of its parent, "" for a root. `ended_ns` None: it was never seen to end. `clock` names the machine, or
    the process, whose clock its times are of; `scope` the instrumentation that made it. `agent` is the name
    of the agent that it belongs to; on an agent span, its own (`name` is only what the span is called). On
    a tool span `name` is the tool's. `sampled` is the share of all traces that its sampler kept.

    Of a model: `calls` are the (id, name) of the calls that its reply asked for, as far as they are told;
    tokens are as in `ModelCall`: input tokens with the cached ones. `resends`: further tries that it only
    counts.
    """

    trace: str
    id: str
    parent: str
    kind: Kind
    name: str
    started_ns: int
    ended_ns: int | None
    status: ToolStatus = "ok"
    error_type: str | None = None
    agent: str = ""
    conversation: str = ""
    clock: str = ""
    process: str = ""
    scope: str = ""
    resolution_ns: int = 1
    call_id: str = ""
    provider: str = ""
    model: str = ""
    request_id: str | None = None
    finish_reason: str | None = None
    streamed: bool = False
    first_token_ns: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cache_written_tokens: int | None = None
    cache_written_1h_tokens: int | None = None
    reasoning_tokens: int | None = None
    resends: int = 0
    http_status: int | None = None
    calls: tuple[tuple[str, str], ...] = ()
    arguments: str | None = None
    result: str | None = None
    prompt: str | None = None
    text: str | None = None
    sampled: float | None = None


_values = attrgetter(*(field.name for field in fields(Span)))
_CALLS = [field.name for field in fields(Span)].index("calls")


def packed(span: Span) -> list[Any]:
    """The values of a span, as JSON data."""
    return list(_values(span))


def unpacked(values: Sequence[Any]) -> Span:
    """Inverse of `packed`, also after JSON made lists of its tuples."""
    values = list(values)
    values[_CALLS] = tuple((id_, name) for id_, name in values[_CALLS])
    return Span(*values)


def below(roots: set[tuple[str, str]], spans: Sequence[Span]) -> set[tuple[str, str]]:
    """The (trace, id) of some spans, and of all below them."""
    if not roots:
        return set()
    children: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for span in spans:
        children.setdefault((span.trace, span.parent), []).append((span.trace, span.id))
    found, waiting = set(roots), list(roots)
    while waiting:
        more = [one for one in children.get(waiting.pop(), ()) if one not in found]
        found.update(more)
        waiting += more
    return found
