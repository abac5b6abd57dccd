"""How an SDK's exception becomes ours. Both SDKs share one shape of exception tree."""

from __future__ import annotations

from typing import Any

import httpx2

from profiler.errors import ProviderError
from profiler.providers.attempts import transport_error_type
from profiler.redaction import scrub_error


def caught(sdk: Any) -> tuple[type[Exception], ...]:
    """What a request through the SDK module `openai` or `anthropic` may raise.

    Its own errors and, from the middle of a stream, the transport's.
    """
    return (sdk.APIError, httpx2.HTTPError, httpx2.StreamError)


def provider_error(provider: str, sdk: Any, error: Exception, request_id: str | None = None) -> ProviderError:
    """Ours, to be raised from `error`; `request_id` is the one known before the failure, if any."""
    status: int | None = None
    if isinstance(error, sdk.APIStatusError):
        # An error event in mid-stream comes as a status error that carries the stream's 200.
        code = int(error.status_code)
        status = code
        request_id = getattr(error, "request_id", None) or request_id
        error_type = f"http_{code}" if code >= 400 else _stream_error_type(error)
    elif isinstance(error, sdk.APIConnectionError):
        error_type = transport_error_type(error.__cause__)
    elif isinstance(error, httpx2.HTTPError | httpx2.StreamError):
        error_type = transport_error_type(error)
    else:
        error_type = _stream_error_type(error)
    parts = [f"status {status}" if status else "no response"]
    if request_id:
        parts.append(f"request {request_id}")
    text = scrub_error(error) or type(error).__name__
    return ProviderError(
        f"{provider}: {error_type} ({', '.join(parts)}): {text}",
        provider=provider,
        status=status,
        request_id=request_id,
        error_type=error_type,
    )


def truncated(provider: str, request_id: str | None) -> ProviderError:
    """The stream ended before the response was complete."""
    return ProviderError(
        f"{provider}: truncated_stream (request {request_id or 'unknown'}): "
        "the stream ended before the response did",
        provider=provider,
        status=200,
        request_id=request_id,
        error_type="truncated_stream",
    )


_STREAM_ERRORS = frozenset(
    {"overloaded_error", "rate_limit_error", "api_error", "server_error", "rate_limit_exceeded"}
)


def _stream_error_type(error: Exception) -> str:
    """The provider's own error type where it is one of a known few: a metric label must be bounded."""
    body = getattr(error, "body", None)
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict):
            for key in ("type", "code"):
                if inner.get(key) in _STREAM_ERRORS:
                    return str(inner[key])
    return "stream_error"
