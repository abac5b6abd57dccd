"""One request through an SDK, and its reply from the response to a `Reply`.

The SDKs' own objects are not used to read it: they are built without validation from whatever came, and
their stream helpers guess at what is incomplete.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from profiler.loop.model import Probe, Reply
from profiler.providers.failures import caught, failed, provider_error, truncated, unreadable
from profiler.providers.replies import ReplyReader, begins_stream

_DRAIN_SECONDS = 0.1


@dataclass(slots=True)
class Asked:
    """A request under way; `request_id` is the server's, once its headers have come."""

    request_id: str | None = None


@contextmanager
def asking(provider: str, sdk: Any, probe: Probe) -> Iterator[Asked]:
    """Around a request through the SDK `openai` or `anthropic`: its failures become `ProviderError`."""
    asked = Asked()
    try:
        yield asked
    except Exception as error:
        if error is probe.on_text_error:
            raise
        if isinstance(error, caught(sdk)):
            raise provider_error(provider, sdk, error, asked.request_id) from error
        if _is_of_json(error):
            came = getattr(error, "doc", None)
            empty = isinstance(came, str) and not came.strip()
            why = "an empty body" if empty else f"not JSON: {error}"
            raise unreadable(provider, probe.url, asked.request_id, why, came) from error
        raise


def _is_of_json(error: Exception) -> bool:
    """Whether an error is of the SDK's reading a body, which is no JSON or more of it than Python takes."""
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
        return True
    return isinstance(error, ValueError) and "integer string conversion" in str(error)


async def follow(response: httpx2.Response, reader: ReplyReader) -> None:
    """Read a streamed reply to its end, and close the response. Some servers do not stream all the same."""
    chunks = response.aiter_bytes()
    streams: bool | None = None
    if response.headers.get("content-type", "").lower().startswith("text/event-stream"):
        streams = True
    whole: list[bytes] = []
    try:
        async for chunk in chunks:
            if streams is None and chunk.strip():
                streams = begins_stream(chunk)
            if streams is False:
                whole.append(chunk)
                continue
            reader.feed(chunk)
            if reader.done or reader.error is not None or reader.broken is not None:
                break
        if reader.done:
            # What follows the last event is read so that the connection can be used again; not for long.
            with contextlib.suppress(TimeoutError, httpx2.HTTPError, httpx2.StreamError):
                async with asyncio.timeout(_DRAIN_SECONDS):
                    async for _ in chunks:
                        pass
        if whole:
            probe = reader.probe
            reader.read(b"".join(whole))
            probe.hand_on("".join(reader.texts))
        else:
            reader.end()
    finally:
        await response.aclose()


def as_sent(message: Any) -> Any:
    """An SDK's object as the JSON that it was made from, fields that the SDK does not know included."""
    if isinstance(message, list):
        return [as_sent(one) for one in message]
    dump = getattr(message, "model_dump", None)
    return message if dump is None else dump(by_alias=True, exclude_unset=True, warnings=False)


def finished(provider: str, reader: ReplyReader, url: Any, request_id: str | None) -> Reply:
    """The reply that was read, from `url`. Raises `ProviderError` where there is none that can be used."""
    reply = reader.reply(request_id)
    if reader.error is not None:
        failure = failed(provider, url, request_id, reader.error)
    elif reader.broken is not None:
        failure = unreadable(provider, url, request_id, reader.broken, reader.came)
    elif not reader.complete:
        failure = truncated(provider, url, request_id)
    else:
        return reply
    failure.reply = reply
    raise failure
