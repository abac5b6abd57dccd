"""Turns the SDKs' exceptions, refusals, and replies that cannot be used into `ProviderError`.

Both SDKs have exception trees of the same shape.
"""

from __future__ import annotations

import html
import json
import os
import re
import ssl
import sys
from collections.abc import Collection, Mapping
from typing import Any

import httpx2

from profiler.errors import ProviderError
from profiler.providers.connections import plain_words, transport_error_type, transport_words
from profiler.providers.endpoint import KEY_HEADERS, KEY_VARIABLES, LOOPS_OWN, NO_KEY, shown_url
from profiler.redaction import environment_secrets, error_secrets, scrub, scrub_error

_STREAM_ERRORS = frozenset(
    {"overloaded_error", "rate_limit_error", "api_error", "server_error", "rate_limit_exceeded"}
)

MOST_WORDS = 500
"""Characters that are shown of what a server said."""

_LONGEST_BODY = 100_000
_LONGEST_PAGE = 16_384
"""Characters that are looked at; a page's fewer, since to find its tags may take their square."""

_DEEPEST = 8
"""Levels of a body in which words are looked for."""

_SAID_IN = ("error", "errors", "message", "msg", "detail", "details", "error_description", "title", "reason")
"""Keys under which servers put their words, the likelier first, in any case of letters."""

_UNSEEN = re.compile(r"<!--.*?-->|<(script|style|head)\b.*?</\1\s*>", re.S | re.I)
_PAGE_TITLE = re.compile(r"<title\b[^>]*>(.*?)</title\s*>", re.S | re.I)
_TAG = re.compile(r"</?[a-zA-Z!?][^<>]*>")


def words_of(body: Any, secrets: Collection[str] = ()) -> str:
    """What a server said, in its own words: one line of at most `MOST_WORDS` characters, without secrets.

    Which are those of the environment and `secrets`.
    `body` is that of an error, or an error event of a stream, decoded or not: an object of any shape, a list
    (as Google sends it), text, a page of HTML (its text), bytes. Empty when it says nothing.
    """
    text = plain_words(scrub(_words(body, 0), environment_secrets().union(secrets)))
    return text if len(text) <= MOST_WORDS else f"{text[:MOST_WORDS]}…"


def _words(body: Any, depth: int) -> str:
    if isinstance(body, bytes | bytearray | memoryview):
        body = bytes(body[:_LONGEST_BODY]).decode("utf-8", "replace")
    if isinstance(body, str):
        return _words_of_text(body.lstrip("\ufeff").strip()[:_LONGEST_BODY], depth)
    found = _found(body, depth)
    if found or depth or not body:
        return found
    try:  # an object of a shape that we do not know is shown as it is
        return json.dumps(body, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError):
        return ""


def _words_of_text(text: str, depth: int) -> str:
    if text[:1] in ("{", "[", '"') and depth < _DEEPEST:
        try:
            decoded = json.loads(text)
        except (ValueError, RecursionError):
            return text
        return _words(decoded, depth) or text
    if text[:1] == "<":
        text = text[:_LONGEST_PAGE]
        title = _PAGE_TITLE.search(text)
        seen = " ".join(html.unescape(_TAG.sub(" ", _UNSEEN.sub(" ", text))).split())
        heading = " ".join(html.unescape(title[1]).split()) if title else ""
        if heading and not seen.startswith(heading):
            seen = f"{heading}: {seen}" if seen else heading
        return seen or text
    return text


def _found(body: Any, depth: int) -> str:
    """The words within an object or a list, empty when there are none where servers put them."""
    if depth >= _DEEPEST:
        return ""
    if isinstance(body, list | tuple):
        parts = (_words(one, depth + 1) for one in body[:3])
        return "; ".join(part for part in dict.fromkeys(parts) if part)
    if not isinstance(body, Mapping):
        return ""
    by_name = {name.lower(): value for name, value in body.items() if isinstance(name, str)}
    for key in _SAID_IN:
        words = _words(by_name.get(key), depth + 1)
        if words:
            break
    else:
        return ""
    if key == "error" and isinstance(by_name[key], str):  # often a mere name, with more to read beside it
        more = next((found for one in _SAID_IN[2:] if (found := _words(by_name.get(one), depth + 1))), "")
        words = f"{words}: {more}" if more and more != words else words
    field = by_name.get("loc")
    if isinstance(field, list) and field:  # FastAPI's: which part of the request it is about
        words = f"{'.'.join(map(str, field))}: {words}"
    raw = by_name.get("metadata")
    if isinstance(raw, Mapping):  # OpenRouter's: what the provider behind it said
        behind = _words(raw.get("raw"), depth + 1)
        words = f"{words}: {behind}" if behind and behind != words else words
    code = by_name.get("code")
    if not isinstance(code, str):
        code = by_name.get("status")  # Google's: INVALID_ARGUMENT
    if isinstance(code, str) and code and code.lower() not in words.lower():
        words = f"{words} ({code})"
    return words


def caught(sdk: Any) -> tuple[type[Exception], ...]:
    """The exceptions of a failed request through the SDK module `openai` or `anthropic`.

    These are its own errors and, from the middle of a stream, the transport's; where a server does not speak
    HTTP, aiohttp's own pass through the SDK.
    """
    # Not imported: without it, or while another thread imports it, nothing can have raised its error.
    aiohttp_error = getattr(sys.modules.get("aiohttp"), "ClientError", None)
    more = () if aiohttp_error is None else (aiohttp_error,)
    return (sdk.APIError, httpx2.HTTPError, httpx2.StreamError, ssl.SSLError, *more)


def provider_error(provider: str, sdk: Any, error: Exception, request_id: str | None = None) -> ProviderError:
    """The error to raise from an SDK's `error`; `request_id` is the one known before the failure, if any.

    It says what failed, the URL that was asked, the server's own words or else what became of the
    connection, and what to do where that follows.
    """
    said = scrub_error(error)
    requests = _requests_of(error)
    where = _asked(error, requests)
    secrets = error_secrets(error)
    if isinstance(error, sdk.APIStatusError):
        # An error event in mid-stream comes as a status error that carries the stream's 200.
        code = int(error.status_code)
        request_id = getattr(error, "request_id", None) or request_id
        answered = 200 <= code < 300
        error_type = error_type_of(getattr(error, "body", None)) if answered else f"http_{code}"
        # The SDKs keep a part of the body alone.
        words = "" if answered else _words_of_response(error)
        words = words or words_of(error.body) or _words_of_response(error)
        return _refused(provider, code, error_type, words, requests, where, request_id, secrets)
    if isinstance(error, sdk.APIError) and not isinstance(error, sdk.APIConnectionError):
        error_type = error_type_of(getattr(error, "body", None))
        words = words_of(error.body) or said
        return _failure(provider, None, error_type, words, where, request_id, secrets)
    cause = error.__cause__ if isinstance(error, sdk.APIConnectionError) else error
    timeouts = requests[-1].extensions.get("timeout") if requests else None
    words = transport_words(cause, _host(error, requests), timeouts if isinstance(timeouts, dict) else None)
    words = words or said or type(error).__name__
    return _failure(provider, None, transport_error_type(cause), words, where, request_id, secrets)


def refused(
    provider: str,
    status: int,
    body: bytes,
    requests: list[Any],
    request_id: str | None,
    secrets: Collection[str],
) -> ProviderError:
    """The server answered with a status that is no success, and this decoded body, to the last of `requests`.

    `requests` are httpx2's: the first, and those that redirects led to. `secrets`: those that they carried.
    """
    words, where = words_of(body, secrets), _asked(None, requests)
    return _refused(provider, status, f"http_{status}", words, requests, where, request_id, secrets)


def unanswered(
    provider: str,
    error: Exception,
    requests: list[Any],
    timeouts: Mapping[str, float | None],
    request_id: str | None,
    secrets: Collection[str],
) -> ProviderError:
    """No whole answer came to the last of `requests`; `error` is the transport's. Else as `refused`."""
    scrub_error(error)
    words = transport_words(error, _host(error, requests), timeouts)
    where = _asked(error, requests)
    return _failure(provider, None, transport_error_type(error), words, where, request_id, secrets)


def _refused(
    provider: str,
    status: int,
    error_type: str,
    words: str,
    requests: list[Any],
    where: str,
    request_id: str | None,
    secrets: Collection[str],
) -> ProviderError:
    words = (words or "the server gave no reason") + _remedy(
        status, words, requests[-1] if requests else None
    )
    return _failure(provider, status, error_type, words, where, request_id, secrets)


def _failure(
    provider: str,
    status: int | None,
    error_type: str,
    words: str,
    where: str,
    request_id: str | None,
    secrets: Collection[str],
) -> ProviderError:
    where = (f"status {status}" if status else "no response") + where
    if request_id:
        request_id = scrub(str(request_id), secrets)
        where += f", request {request_id}"
    return ProviderError(
        plain_words(scrub(f"{provider}: {error_type} ({where}): {words}", secrets)),
        provider=provider,
        status=status,
        request_id=request_id,
        error_type=error_type,
    )


def _asked(error: BaseException | None, requests: list[Any]) -> str:
    """` from URL`, and where a redirect led there, from which URL; empty where it is not known."""
    if not requests:
        url = _url_of_aiohttp(error)
        return "" if url is None else f" from {shown_url(str(url))}"
    first, last = requests[0], requests[-1]
    if first.url == last.url:
        return f" from {shown_url(str(last.url))}"
    how = "" if first.method == last.method else f" with {last.method}"
    return f" from {shown_url(str(last.url))}, to which {shown_url(str(first.url))} redirects{how}"


def _host(error: BaseException, requests: list[Any]) -> str:
    if requests:
        return str(requests[-1].url.netloc.decode("ascii", "replace"))
    url = _url_of_aiohttp(error)
    return "the server" if url is None else str(url.authority)


def _url_of_aiohttp(error: BaseException | None) -> Any:
    """The URL in an error of aiohttp's own, which OpenAI's SDK lets pass as it is."""
    return getattr(getattr(error, "request_info", None), "real_url", None)


def _requests_of(error: BaseException) -> list[Any]:
    """The request that the SDK made, and the one that failed in the end, which a redirect may have led to.

    Empty where the error, and those that it was raised from, have none.
    """
    found = []
    link: BaseException | None = error
    for _ in range(4):
        if link is None:
            break
        response = getattr(link, "response", None)
        found += [one.request for one in getattr(response, "history", ())]
        try:
            request = link.request  # type: ignore[attr-defined]
            if isinstance(request, httpx2.Request):
                found.append(request)
        except (AttributeError, RuntimeError):  # httpx2 raises RuntimeError when there is no request
            pass
        link = link.__cause__ or link.__context__
    return found


def _words_of_response(error: Any) -> str:
    """The words in the body of the response, where the SDK did not keep them."""
    try:
        return words_of(error.response.text, error_secrets(error))
    except (AttributeError, httpx2.StreamError):  # it was not read
        return ""


def _remedy(status: int, words: str, request: Any) -> str:
    """What to do about a refusal, where that follows from it; else nothing."""
    if request is None:
        return ""
    if status == 401:
        return _about_key(request)
    if status in (400, 422):
        named = next((field for field in _droppable(request) if re.search(rf"\b{field}\b", words)), None)
        return "" if named is None else f"; without this field: --body {named}=null"
    return ""


def _about_key(request: Any) -> str:
    """Which environment variable the refused key is from, as far as that can be seen."""
    sent = " ".join(value for name, value in request.headers.items() if name in KEY_HEADERS)
    for variable in KEY_VARIABLES:
        if (key := os.environ.get(variable)) and key in sent:
            return f"; the key is that of {variable}"
    if NO_KEY in sent:
        variable = "ANTHROPIC_API_KEY" if "anthropic-version" in request.headers else "OPENAI_API_KEY"
        return f"; no key was sent, since {variable} is not set"
    return ""


def _droppable(request: Any) -> list[str]:
    """The fields of a request that it could do without."""
    try:
        body = json.loads(request.content)
    except (ValueError, RecursionError, httpx2.RequestNotRead):
        return []
    if not isinstance(body, dict):
        return []
    return [name for name in body if name not in LOOPS_OWN and name != "max_tokens"]


def truncated(provider: str, url: Any, request_id: str | None) -> ProviderError:
    """The stream ended before the response was complete."""
    return _unusable(
        provider, "truncated_stream", url, request_id, "the stream ended before the response did"
    )


def failed(
    provider: str, url: Any, request_id: str | None, body: Any, secrets: Collection[str] = ()
) -> ProviderError:
    """The server said, with status 200, that the request failed: `body` is its error, of any shape.

    `secrets`: those that the request carried.
    """
    words = words_of(body, secrets) or "no reason given"
    return _unusable(provider, error_type_of(body), url, request_id, words)


def unreadable(
    provider: str,
    url: Any,
    request_id: str | None,
    why: str,
    came: Any = None,
    secrets: Collection[str] = (),
) -> ProviderError:
    """What came with status 200 is no reply of this API. `came`: what it was; `secrets`: as in `failed`."""
    seen = scrub(f"{why}{_seen_of(came, secrets)}", secrets)
    words = f"the reply is not what this API answers with: {seen}"
    return _unusable(provider, "unreadable", url, request_id, words)


def _seen_of(came: Any, secrets: Collection[str]) -> str:
    """What may be shown of what is no reply. It may hold an answer all the same, which is not shown."""
    if isinstance(came, bytes):
        came = came[:_LONGEST_BODY].decode("utf-8", "replace")
    if isinstance(came, str):
        said = "" if came.lstrip("\ufeff \t\r\n")[:1] in ("{", "[", '"') else words_of(came, secrets)
    else:
        said = words_of(found, secrets) if (found := _found(came, 0)) else ""
    if said:
        return f"; it says: {said}"
    if isinstance(came, Mapping) and came:
        return f"; its fields are {plain_words(', '.join(name[:40] for name in [*map(str, came)][:8]))}"
    return ""


def _unusable(provider: str, error_type: str, url: Any, request_id: str | None, why: str) -> ProviderError:
    asked = "" if url is None else f" from {shown_url(str(url))}"
    return ProviderError(
        plain_words(
            f"{provider}: {error_type} (status 200{asked}, request {request_id or 'unknown'}): {why}"
        ),
        provider=provider,
        status=200,
        request_id=request_id,
        error_type=error_type,
    )


def error_type_of(body: Any) -> str:
    """The provider's own error type if it is one of a known few: a metric label must be bounded."""
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict):
            for key in ("type", "code"):
                if inner.get(key) in _STREAM_ERRORS:
                    return str(inner[key])
    return "stream_error"
