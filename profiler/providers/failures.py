"""Turns the SDKs' exceptions, and replies that cannot be used, into `ProviderError`.

Both SDKs have exception trees of the same shape.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from profiler.errors import ProviderError
from profiler.loop.model import Probe
from profiler.providers.attempts import transport_error_type
from profiler.redaction import scrub_error

_STREAM_ERRORS = frozenset(
    {"overloaded_error", "rate_limit_error", "api_error", "server_error", "rate_limit_exceeded"}
)

NO_JSON: tuple[type[Exception], ...] = (json.JSONDecodeError,)
UNREADABLE: tuple[type[Exception], ...] = (
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors of reading the SDKs' objects, which are built without validation, even from an error page."""


def caught(sdk: Any) -> tuple[type[Exception], ...]:
    """The exceptions of a failed request through the SDK module `openai` or `anthropic`.

    These are its own errors and, from the middle of a stream, the transport's. A reply that cannot be
    read is the business of `reading`.
    """
    return (sdk.APIError, httpx2.HTTPError, httpx2.StreamError)


def provider_error(provider: str, sdk: Any, error: Exception, request_id: str | None = None) -> ProviderError:
    """The error to raise from `error`; `request_id` is the one known before the failure, if any."""
    status: int | None = None
    server = ""
    if isinstance(error, sdk.APIStatusError):
        # An error event in mid-stream comes as a status error that carries the stream's 200.
        status = code = int(error.status_code)
        request_id = getattr(error, "request_id", None) or request_id
        error_type = f"http_{code}" if code >= 400 else _stream_error_type(error)
    elif isinstance(error, sdk.APIConnectionError):
        error_type = transport_error_type(error.__cause__)
        server = f" from {error.request.url.scheme}://{error.request.url.netloc.decode()}"
    elif isinstance(error, httpx2.HTTPError | httpx2.StreamError):
        error_type = transport_error_type(error)
    else:
        error_type = _stream_error_type(error)
    where = f"status {status}" if status else f"no response{server}"
    if request_id:
        where += f", request {request_id}"
    text = scrub_error(error) or type(error).__name__
    return ProviderError(
        f"{provider}: {error_type} ({where}): {text}",
        provider=provider,
        status=status,
        request_id=request_id,
        error_type=error_type,
    )


def truncated(provider: str, request_id: str | None) -> ProviderError:
    """The stream ended before the response was complete."""
    return _unusable(provider, "truncated_stream", request_id, "the stream ended before the response did")


def failed(provider: str, code: str | None, message: str | None, request_id: str | None) -> ProviderError:
    """The server said, with status 200, that the response failed."""
    error_type = code if code in _STREAM_ERRORS else "stream_error"
    return _unusable(provider, error_type, request_id, message or "no reason given")


@contextmanager
def reading(
    provider: str,
    request_id: str | None = None,
    raised: tuple[type[Exception], ...] = UNREADABLE,
    probe: Probe | None = None,
) -> Iterator[None]:
    """Around code that reads a reply: a `ProviderError` when the reply is not what the API promises.

    Around the request itself pass `NO_JSON` as `raised`: other errors may be about what was to be sent.
    """
    try:
        yield
    except raised as error:
        if probe is not None and error is probe.on_text_error:
            raise
        why = f"the reply is not what this API answers with: {type(error).__name__}: {error}"
        raise _unusable(provider, "unreadable", request_id, why) from error


def _unusable(provider: str, error_type: str, request_id: str | None, why: str) -> ProviderError:
    return ProviderError(
        f"{provider}: {error_type} (status 200, request {request_id or 'unknown'}): {why}",
        provider=provider,
        status=200,
        request_id=request_id,
        error_type=error_type,
    )


def _stream_error_type(error: Exception) -> str:
    """The provider's own error type if it is one of a known few: a metric label must be bounded."""
    body = getattr(error, "body", None)
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict):
            for key in ("type", "code"):
                if inner.get(key) in _STREAM_ERRORS:
                    return str(inner[key])
    return "stream_error"
