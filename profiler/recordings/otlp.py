"""OTLP export requests, protobuf or JSON, and files of them; dumps of the SDKs: format `otel`."""

from __future__ import annotations

from typing import Any

from profiler.recordings.spans import Span


def spans_of_request(message: Any, content: bool = False) -> list[Span]:
    """The spans of an `ExportTraceServiceRequest`: a decoded protobuf message, or its JSON as `dict`.

    Spans without a use (no agent's, model's, tool's, HTTP client's) are there as well, of kind "other", since
    others may be below them. Raises `ValueError` for JSON that is no such request. A span that cannot be read
    (no ids, no start) is left out.
    """
    raise NotImplementedError
