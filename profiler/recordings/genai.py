"""OpenTelemetry's spans of agents, in any convention or dialect, as `Span`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from profiler.recordings.spans import Span


class Raw(NamedTuple):
    """A span as OpenTelemetry has it: ids in hexadecimal, times in Unix ns, `attributes` as plain values (lists
    and mappings where they are), `kind` and `status` as their numbers (SpanKind 3: client; status 2: error),
    `events` as (name, time, attributes)."""

    trace: str
    id: str
    parent: str
    name: str
    kind: int
    started_ns: int
    ended_ns: int | None
    attributes: Mapping[str, Any]
    events: Iterable[tuple[str, int, Mapping[str, Any]]] = ()
    status: int = 0
    scope: str = ""
    resource: Mapping[str, Any] = {}
    resolution_ns: int = 1


def wanted(key: str, content: bool = False) -> bool:
    """Whether `span_of` would look at that attribute: a reader need not decode the others."""
    raise NotImplementedError


def span_of(raw: Raw, content: bool = False) -> Span:
    """The span; of kind "other" where it is neither an agent's, a model's, a tool's nor an HTTP client's."""
    raise NotImplementedError
