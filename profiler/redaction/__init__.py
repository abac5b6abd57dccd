"""Keeps out of logs, messages and records whatever must not be shown: keys, tokens, cookies, passwords.

Providers repeat a wrong key in their error message, HTTP libraries log URLs, and SDKs log whole
requests when they are told to debug. Everything that this package prints, logs or raises goes
through here, and so does the content that records hold when that was asked for (`Content`). Pure.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote

from profiler.errors import unwrapped
from profiler.redaction.keys import REDACTED, hide_keys

SHORTEST = 6
"""Characters of a secret: replacing shorter values would damage ordinary words."""

MOST_CHARACTERS = 4096
"""Kept of a prompt, an answer, arguments or a result; the rest is counted and dropped."""

LOOKED_AT = 16_384
"""Characters of a text that are looked at to find those: a tool's result may be of any length."""

_kept: set[str] = set()

Redact = Callable[[str], str]
"""Gets a whole text, returns the version of it that may be kept."""

_SENSITIVE_HEADER = re.compile(r"authorization|cookie|key|token|secret|password|credential|signature", re.I)
_SENSITIVE_VARIABLE = re.compile(
    r"(_|^)((API)?KEYS?|TOKENS?|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS|AUTH|COOKIES?|HEADERS)(_|$)",
    re.I,
)
_FIGURE = re.compile(r"[0-9.:\-+]{1,30}(?:ms|[hmsTZ][0-9.:\-+hmsTZ]{0,20})?")
"""A number, a duration or a point in time, as rate-limit headers have them."""
_NAMED = re.compile(r"[\w.-]+=.")
_SCHEMES = ("bearer", "basic", "digest")
_QUIET = ("openai", "anthropic", "httpx", "httpx2", "httpcore", "httpcore2", "aiohttp")
"""Loggers whose lines below a warning hold headers and content of requests."""


def scrub(text: str, secrets: Collection[str] = ()) -> str:
    """The text without `secrets`, and without what looks like one (`profiler.redaction.keys`)."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
        if "%" in text:
            text = text.replace(quote(secret, safe=""), REDACTED)
    return hide_keys(text)


def header_secrets(headers: Iterable[tuple[str, str]]) -> set[str]:
    """The values of headers that authenticate, whole and in parts (`Bearer X`, `a=X; b=Y`)."""
    return _secrets(_SENSITIVE_HEADER, headers)


def environment_secrets(environment: Mapping[str, str] = os.environ) -> set[str]:
    """The values of environment variables whose names say that they are keys, the passwords of proxies, and
    what `keep_secret` was given."""
    return _secrets(_SENSITIVE_VARIABLE, environment.items()) | _proxy_passwords(environment) | _kept


def _proxy_passwords(environment: Mapping[str, str]) -> set[str]:
    """Those in the URLs of `HTTPS_PROXY` and its like, as they stand there and decoded."""
    found = set()
    for name, value in environment.items():
        if "@" in value and name.lower().endswith("_proxy"):
            password = value.rpartition("@")[0].rpartition("/")[2].partition(":")[2]
            found |= {password, unquote(password)}
    return {one for one in found if len(one) >= SHORTEST}


def keep_secret(values: Iterable[str]) -> None:
    """Let this process print and log none of these values any more: they were given as options."""
    _kept.update(*(_parts(value) for value in values))
    _carried.cache_clear()


def carried_secrets(raw_headers: Iterable[tuple[bytes, bytes]]) -> frozenset[str]:
    """The secrets in the headers that a request was sent with, and in the environment at its first request.

    Quick, since nearly all requests carry the same: it is asked for every attempt.
    """
    return _carried(tuple(value for name, value in raw_headers if _authenticates(name)))


@functools.lru_cache(maxsize=256)
def _authenticates(name: bytes) -> bool:
    return bool(_SENSITIVE_HEADER.search(name.decode("latin-1")))


@functools.lru_cache(maxsize=64)
def _carried(values: tuple[bytes, ...]) -> frozenset[str]:
    parts = set().union(*(_parts(value.decode("latin-1")) for value in values))
    return frozenset(parts | environment_secrets())


def scrub_echo(text: str, secrets: Collection[str]) -> str:
    """`scrub` for what a server says with every reply: ids of requests, values of headers."""
    if len(text) < SHORTEST or text.isdigit() or (_FIGURE.fullmatch(text) and text not in secrets):
        return text
    return _echo_without(frozenset(secrets), text)


@functools.lru_cache(maxsize=1024)  # each is asked for twice, with many replies under way
def _echo_without(secrets: frozenset[str], text: str) -> str:
    return scrub(text, [secret for secret in secrets if secret in text])


def _secrets(sensitive: re.Pattern[str], named: Iterable[tuple[str, str]]) -> set[str]:
    return set().union(*(_parts(value) for name, value in named if sensitive.search(name)))


def error_secrets(error: BaseException) -> set[str]:
    """The secrets in the headers of a failed HTTP request, and in the environment."""
    found = environment_secrets()
    for link in _chain(error):
        try:
            headers = link.request.headers  # type: ignore[attr-defined]
            found |= header_secrets(headers.items())
        except (AttributeError, RuntimeError):  # httpx raises RuntimeError when there is no request
            continue
    return found


def describe(error: BaseException) -> str:
    """`Type: message`, without what the failed request was authenticated with; of a group of one, of that."""
    error = unwrapped(error)
    try:
        said = str(error)
    except Exception:  # an exception's own code may fail as well
        return type(error).__name__
    return f"{type(error).__name__}: {scrub(said, error_secrets(error))}"


def scrub_error(error: BaseException) -> str:
    """Remove secrets from an exception and from those it was raised from, in place; returns its message.

    Tracebacks print the messages of the whole chain, and SDK errors keep the response's body.
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
                    with contextlib.suppress(AttributeError):  # in other libraries it may be a property
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


def _chain(error: BaseException) -> list[BaseException]:
    """The exception and those it was raised from or while handling, each once."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        link = link.__cause__ or link.__context__
    return seen


def _parts(value: str) -> set[str]:
    """A value, and the secrets within one like `Bearer X`, `a=X; b=Y` or `name=Bearer X,other=Y`."""
    parts = {value}
    for piece in re.split(r"[\s;,]+", value):
        parts |= {piece, piece.partition("=")[2]} if _NAMED.match(piece) else {piece}
    return {part for part in parts if len(part) >= SHORTEST and part.lower() not in _SCHEMES}


class LogGuard(logging.Filter):
    """On a handler: drops what SDKs and HTTP libraries log below a warning, and scrubs everything else."""

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
    """Put a guard on every handler that has none yet. Call it again when there may be new handlers."""
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):
            if not any(isinstance(guard, LogGuard) for guard in handler.filters):
                handler.addFilter(LogGuard())


class Content:
    """Makes texts fit to be recorded: redacted, cut, and in any case without the keys of this process."""

    def __init__(self, redact: Redact | None = None) -> None:
        self._redact = redact
        self._secrets = environment_secrets()

    @property
    def looks_at(self) -> int | None:
        """Characters of a text that are looked at; None when all are, since `redact` gets whole texts."""
        return LOOKED_AT if self._redact is None else None

    def keep(self, text: str, cut: bool = False) -> str:
        """The part of a text to record; nothing of it when `redact` fails. `cut`: it is not all of it."""
        if self._redact is not None:
            try:
                text = self._redact(text)
            except Exception as error:
                return f"[redact failed: {type(error).__name__}]"
            if not isinstance(text, str):
                return f"[redact returned {type(text).__name__}, not str]"
        text = str.__str__(text)  # one of an application's own class may say anything of itself
        beginning = self._beginning(text)
        left_out = len(text) - len(beginning)
        text = scrub(beginning, self._secrets)
        more = left_out + max(0, len(text) - MOST_CHARACTERS)
        if not more:
            return text
        return f"{text[:MOST_CHARACTERS]}… ({'at least ' if cut else ''}{more} more characters)"

    def _beginning(self, text: str) -> str:
        """What is looked at of a text: it does not end in the middle of a secret."""
        if len(text) <= LOOKED_AT:
            return text
        end, before = LOOKED_AT, 0
        while end != before:
            before = end
            for secret in self._secrets:
                at = text.find(secret, max(0, end - len(secret) + 1), end + len(secret) - 1)
                end = at if at >= 0 else end
        return text[:end]
