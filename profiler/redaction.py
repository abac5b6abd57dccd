"""What must not be shown to anybody: keys, tokens, cookies, credentials in URLs. Pure.

Providers repeat a wrong key in their error message, HTTP libraries log URLs, and SDKs log whole
requests when they are told to debug. Whatever this package prints, logs or raises goes through here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

REDACTED = "[redacted]"

SHORTEST = 6
"""Characters: a shorter value is no secret worth the name, and to replace it would spoil other words."""

_SENSITIVE_HEADER = re.compile(r"authorization|cookie|key|token|secret|password|credential", re.I)
_SENSITIVE_VARIABLE = re.compile(r"(_|^)(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS|AUTH|HEADERS)(_|$)", re.I)
_PATTERNS = (
    re.compile(r"(?<=://)[^/@\s]+(?=@)"),
    re.compile(r"(?i)(?<=bearer )[^\s\"',}]{6,}"),
    re.compile(r"\bsk-[A-Za-z0-9_*-]{6,}"),
)
_NAMED = re.compile(r"[\w.-]+=.")
_SCHEMES = ("bearer", "digest")
_QUIET = ("openai", "anthropic", "httpx", "httpx2", "httpcore", "httpcore2", "aiohttp")
"""Loggers whose lines below a warning hold requests, as headers and as content."""


def scrub(text: str, secrets: Collection[str] = ()) -> str:
    """The text without `secrets`, and without what looks like one wherever it comes from."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    for pattern in _PATTERNS:
        text = pattern.sub(REDACTED, text)
    return text


def header_secrets(headers: Iterable[tuple[str, str]]) -> set[str]:
    """The values of headers that authenticate, whole and in parts (`Bearer X`, `a=X; b=Y`)."""
    found: set[str] = set()
    for name, value in headers:
        if _SENSITIVE_HEADER.search(name):
            found |= _parts(value)
    return found


def environment_secrets(environment: Mapping[str, str] | None = None) -> set[str]:
    """The values of environment variables whose names say that they are keys."""
    found: set[str] = set()
    for name, value in (os.environ if environment is None else environment).items():
        if _SENSITIVE_VARIABLE.search(name):
            found |= _parts(value)
    return found


def error_secrets(error: BaseException) -> set[str]:
    """What an HTTP request that failed carried, and what the environment holds."""
    found = environment_secrets()
    for link in _chain(error):
        try:
            headers = link.request.headers  # type: ignore[attr-defined]
            found |= header_secrets(headers.items())
        except (AttributeError, RuntimeError):  # httpx raises that when there is no request
            continue
    return found


def describe(error: BaseException) -> str:
    """`Type: message`, with nothing in it that the failed request was authenticated with."""
    return f"{type(error).__name__}: {scrub(str(error), error_secrets(error))}"


def scrub_error(error: BaseException) -> str:
    """Rid an exception, and what it was raised from, of secrets, in place; returns its message.

    Tracebacks print the messages of a whole chain, and SDK errors keep the body they came with.
    """
    secrets = error_secrets(error)
    for link in _chain(error):
        args = tuple(scrub(part, secrets) if isinstance(part, str) else part for part in link.args)
        if args != link.args:
            link.args = args
        for name in ("message", "body"):
            value = getattr(link, name, None)
            if value is not None:
                cleaned = _scrubbed(value, secrets)
                if cleaned != value:
                    with contextlib.suppress(AttributeError):  # a property of some other library's error
                        setattr(link, name, cleaned)
    return scrub(str(error), secrets)


def _scrubbed(value: Any, secrets: Collection[str]) -> Any:
    if isinstance(value, str):
        return scrub(value, secrets)
    if isinstance(value, dict):
        return {key: _scrubbed(part, secrets) for key, part in value.items()}
    if isinstance(value, list):
        return [_scrubbed(part, secrets) for part in value]
    return value


def _chain(error: BaseException) -> Iterable[BaseException]:
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        link = link.__cause__ or link.__context__
    return seen


def _parts(value: str) -> set[str]:
    """A value, and what is secret in `Bearer X`, `a=X; b=Y` and `name=Bearer X,other=Y`."""
    parts = {value}
    for piece in re.split(r"[\s;,]+", value):
        parts |= {piece, piece.partition("=")[2]} if _NAMED.match(piece) else {piece}
    return {part for part in parts if len(part) >= SHORTEST and part.lower() not in _SCHEMES}


class LogGuard(logging.Filter):
    """On a handler: SDKs and HTTP libraries say nothing below a warning, and nobody says a secret."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING and record.name.partition(".")[0] in _QUIET:
            return False
        secrets = environment_secrets()
        message = record.getMessage()
        cleaned = scrub(message, secrets)
        if cleaned != message:
            record.msg, record.args = cleaned, None
        if record.exc_info and not record.exc_text:
            record.exc_text = scrub(logging.Formatter().formatException(record.exc_info), secrets)
        return True


def guard_logs() -> None:
    """Put a guard on every handler there is. Again, it does nothing; call it when there may be new ones."""
    loggers = [logging.getLogger(), *(one for one in logging.root.manager.loggerDict.values())]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            if not any(isinstance(guard, LogGuard) for guard in handler.filters):
                handler.addFilter(LogGuard())


# What was said, for records that are to hold it: redacted, and no longer than a bound. Pure.
#
# Recorded only when asked for (`record_content`). Keys that this process knows are taken out in any case.

MOST_CHARACTERS = 4096
"""Of a prompt, an answer, arguments or a result; what comes after is counted and dropped."""

Redact = Callable[[str], str]
"""Gets a whole text, returns what of it may be kept."""


class Content:
    """Makes texts fit to be recorded."""

    def __init__(self, redact: Redact | None = None) -> None:
        self._redact = redact
        self._secrets = environment_secrets()

    def keep(self, text: str) -> str:
        """What is recorded of a text. Where `redact` fails, nothing of it."""
        if self._redact is not None:
            try:
                text = self._redact(text)
            except Exception as error:
                return f"[redact failed: {type(error).__name__}]"
            if not isinstance(text, str):
                return f"[redact returned {type(text).__name__}, not str]"
        text = scrub(text, self._secrets)
        more = len(text) - MOST_CHARACTERS
        return text if more <= 0 else f"{text[:MOST_CHARACTERS]}… ({more} more characters)"
