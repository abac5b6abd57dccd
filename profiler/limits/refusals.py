"""Reads exceptions, results and response headers: refusals, Retry-After, transient errors.

Exceptions and results are recognised by their shape, whatever library they come from.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from types import MemberDescriptorType
from typing import Any, cast

import orjson

from profiler.limits.limiter import Signal
from profiler.limits.quotas import duration_ns, moment_s, number

REJECTING = frozenset((429, 503, 529))
"""HTTP statuses by which a server says that its load is too high at the moment."""

TRANSIENT = frozenset((408, 429, 500, 502, 503, 504, 529))
"""HTTP statuses after which another try may succeed."""

TRANSIENT_ERRORS = frozenset(("timeout", "connection", "refused", "unresolved", "reset", "not_http"))
"""Failures of a connection, as `profiler.providers.connections` names them, after which another try may
succeed: a certificate that is not trusted will not be at the next one."""


_TIMEOUTS = frozenset(("TimeoutError", "TimeoutException", "APITimeoutError", "Timeout"))
"""Names of exceptions, or of their bases, that mean a timeout."""

MOST_ERRORS = 16
"""Exceptions that are looked at behind one that was raised."""


def status_of(error: BaseException) -> int | None:
    """The HTTP status in an exception of httpx, aiohttp, requests, openai or anthropic.

    Else that of an exception behind it: applications wrap what a client raised in errors of their own.
    """
    return next((status for one in _behind(error) if (status := _status(one)) is not None), None)


def _status(value: object) -> int | None:
    """The HTTP status in an exception or a response."""
    for holder in (getattr(value, "response", None), value):
        for name in ("status_code", "status"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return status
    return None


def _behind(error: BaseException, *, implied: bool = False) -> Iterator[BaseException]:
    """The exception, those it groups, and those it was raised from, each once.

    `implied`: those too that were being handled when it was raised, without a `from`.
    """
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting and len(seen) < MOST_ERRORS:
        one = waiting.pop(0)
        if one is None or any(one is other for other in seen):
            continue
        seen.append(one)
        yield one
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        waiting.append(one.__cause__)
        if implied and not one.__suppress_context__:
            waiting.append(one.__context__)


def signal_of(error: BaseException) -> Signal:
    """The signal of a call that raised this exception."""
    found = list(_behind(error, implied=True))
    if any(_status(one) in REJECTING for one in found):
        return "rejected"
    if any(kind.__name__ in _TIMEOUTS for one in found for kind in type(one).__mro__):
        return "timeout"
    return "unknown"


def retry_after_ns(failed: object, wall_clock: Callable[[], float] = time.time) -> int | None:
    """The wait that the server of a failed call asked for in the exception or the response; None for none."""
    found = _behind(failed, implied=True) if isinstance(failed, BaseException) else (failed,)
    for one in found:
        holder: Any = getattr(one, "response", None)
        headers = getattr(one if holder is None else holder, "headers", None)
        if headers is not None and hasattr(headers, "get"):
            milliseconds, seconds = headers.get("retry-after-ms"), headers.get("retry-after")
            return asked_wait_ns(milliseconds, seconds, headers.get("date"), wall_clock)
    return None


# Failures that are returned instead of raised, as a model is to read them.

_NOUNS = "api|call|connection|execution|fetch|function|http|lookup|operation|query|request|tool"
_FAILED = (
    rf"(?:(?:the )?(?:\w+ )?(?:{_NOUNS})s? |\w+_\w+(?:\(\))? )?"
    r"(?:failed|failure)\b\W{0,3}(?:with|due|after|because|http|status|error|\d|[:(])"
)
_VERBS = (
    "accessing|calling|connecting|contacting|executing|fetching|getting|invoking|loading|performing|"
    "processing|querying|reading|requesting|running|searching"
)
_ERROR_TEXT = re.compile(
    r'\s*(?:\{\s*"error"\s*:\s*(?!null|false|""|\{\}|\[\])|traceback \(most recent call last\))|'
    r"[\W_]{0,8}(?:"  # a mark such as "**", "[" or a cross
    r"an error occurred|"
    rf"(?:an )?error (?:{_VERBS}|occurred|while|during)\b|"
    rf"(?:(?:{_NOUNS}|client|server|internal|network|unexpected) )?"
    r"\w*(?:error|exception)(?:\s*[:(]|\W{0,3}[\]>:]|\s+\d{3}\b)|"
    rf"{_FAILED}|"
    r"(?:failed to|unable to|could not|couldn't|cannot) \w+\b[^.?\n]{0,80}[:(]|"
    r"(?:the )?(?:\w+ ){0,2}timed out(?:\W*\Z|\s*[:.(]|\s+(?:after|while|waiting)\b)|"
    r"\w*timeout(?:error\W*\Z| after\b)|\w+timeout[:(]|"
    r"(?:api )?rate.?limit (?:exceeded|reached|hit)\b|"
    # A status line, and nothing more.
    r"(?:http\W{0,3}(?:status\W{0,3})?(?:429|503|529)\W*\Z|"
    r"(?:(?:http\W{0,3})?(?:429|503|529)\W{1,3})?"
    r"(?:too many requests|service (?:temporarily )?unavailable|(?:site |server )?(?:is )?overloaded)\W*\Z))",
    re.IGNORECASE,
)
"""The beginning of a text that reports an error."""


_BUSY = "(?:429|503|529)"

_RAISED_TEXT = re.compile(
    r"(?:[^\n:]{0,60}[:(]\W{0,3}|error\W{1,3})?"  # what the application puts in front
    rf"(?:(?:client|server) error '{_BUSY} |{_BUSY} (?:client|server) error: [^\n]* for url|"
    rf"{_BUSY}, message='|error code: {_BUSY} - |http error {_BUSY}: )",
    re.IGNORECASE,
)
"""The message of an exception of httpx, requests, aiohttp, the SDKs or urllib, for a status that refuses."""

_PAGE = re.compile(rf"\s*<(?:!doctype )?html\b.{{0,200}}?<title>\s*{_BUSY}\b", re.IGNORECASE | re.DOTALL)
"""The page that a server in front of a service sends in its place."""

_BODY = re.compile(r'\s*\{\s*"(?:detail|message|msg)"\s*:')
"""A JSON body that may be that of a refusal: `{"detail": "Too Many Requests"}`."""

SHORT = 600
"""Characters of a text that may be the message of an exception, or the body of a refusal."""


def _numbered(status: int) -> str:
    """A pattern for a status by its number: alone, or beside a word that says what it is."""
    return (
        rf"(?:status|code|http(?:/[\d.]+)?|error|exception|returned|failed|got)\W{{0,3}}{status}\b|"
        rf"\A\W*{status}\b(?=\W*\Z|:)|: {status}\W*\Z"
    )


_REASONS = (
    ("http_429", re.compile(rf"{_numbered(429)}|too many requests|rate.?limit", re.IGNORECASE)),
    ("http_529", re.compile(rf"{_numbered(529)}|overloaded", re.IGNORECASE)),
    (
        "http_503",
        re.compile(rf"{_numbered(503)}|\b503 service|service (?:temporarily )?unavailable", re.IGNORECASE),
    ),
    ("timeout", re.compile(r"\btime(?:d )?.?out|\w+timeout\b|deadline.?exceeded", re.IGNORECASE)),
)
"""Reasons for which a server that is too busy fails a call, by the name that a record has for them."""

_BUSY_TEXT = re.compile(
    r"\btoo many (?:\w+ ){0,3}(?:calls|connections|jobs|requests|tasks)\b|\b(?:server|tool|is|too) busy\b|"
    r"\bat (?:full |max(?:imum)? )?capacity\b|\bcapacity (?:exceeded|reached)\b|"
    r"\b(?:concurrency|quota|queue)(?: limit)? (?:is )?(?:exceeded|full|reached)\b|\btry again later\b",
    re.IGNORECASE,
)
"""Words in the error of a server that takes no more. An ordinary text may say so of something else."""

LOOKED_AT = 500
"""Characters of a returned error in which its reason is looked for."""

MOST_PARSED = 4000
"""Characters of a returned text up to which it is read as JSON, where it looks like a report of an error."""

_ERROR_JSON = re.compile(
    r'\s*\{.{0,400}?"(?:is_?error|errors?|ok|success|status|(?:status|error|http)?_?(?:code|status))"\s*:',
    re.IGNORECASE | re.DOTALL,
)

ERROR_RESULT = "error_result"
"""A failure that was returned and does not say why, as `ToolCall.error_type`."""

_STATUS_NAMES = (
    *("status_code", "status", "statusCode", "http_status", "httpStatus", "http_code"),
    *("error_code", "errorCode"),
)
_SAYING = (
    *("error", "errors", "message", "msg", "content", "detail", "details", "reason", "description"),
    *("status", "code", "text", "error_type"),
)
"""Entries of a report of an error in which its reason is looked for."""

_ASKED = (*_SAYING, *_STATUS_NAMES, "is_error", "isError", "ok", "success", "timed_out")

_FAILED_STATUS = frozenset(("error", "failed", "failure", "timeout", "timed_out"))

_OF_ERRORS = frozenset(
    (
        "code",
        "details",
        "detail",
        "error",
        "errors",
        "message",
        "msg",
        "param",
        "request_id",
        "status",
        "type",
    )
)
"""Entries of a report of an error whose `code` is taken for a status: other objects have other codes."""

_PLAIN = (str, int, float, bool, list, tuple, dict, BaseException)
"""Types of entries that are looked at: what others do when they are asked, only their authors know."""

FEW = 8
"""Parts of a list or object in a report of an error that are read."""


@dataclass(frozen=True, slots=True)
class Returned:
    """A failure that a tool returned. `error_type` is that of the record; None where the record has none.

    An error that is the tool's own business ("no such city") is no failure of the call. But it is no
    success either that would show a limiter that the server takes more: its signal is `unknown`.
    """

    error_type: str | None
    signal: Signal
    retry_after_ns: int | None = None


def returned_failure(value: object) -> Returned | None:
    """The failure that a tool's result stands for; None for an ordinary result.

    A response (of httpx, aiohttp, requests) with a status in `REJECTING`; a result marked as an error
    (`is_error` of Anthropic, `isError` of MCP); an exception that was returned; and an object, text or JSON
    that reports an error, of which only refusals and timeouts are failures. None of the code of an object's
    own class is run, not even for its `__class__`: a lazy one would be evaluated.
    """
    if issubclass(type(value), BaseException):
        return _returned_exception(cast(BaseException, value))
    try:
        text = _text(value)
        if text is not None:
            return _told(text)
        held = _held(value)
        return _held_failure(value, held) if held else None
    except Exception:  # an array among the values has no truth, a mapping may be somebody's own
        return None


def _text(value: object) -> str | None:
    """The text of a result that is text: as it is, as the first of content blocks, or with an artifact."""
    if issubclass(type(value), str):
        return str.__str__(cast(str, value))
    if (
        type(value) is tuple
        and len(value) == 2
        and isinstance(value[0], str)
        and not isinstance(value[1], str)
    ):
        return value[0]
    if type(value) is list and value and (type(value[0]) is dict or hasattr(value[0], "__dict__")):
        block = value[0] if type(value[0]) is dict else value[0].__dict__
        text = block.get("text")
        return text if isinstance(text, str) and block.get("type") == "text" else None
    return None


def _told(text: str) -> Returned | None:
    if len(text) <= MOST_PARSED and _ERROR_JSON.match(text):
        with contextlib.suppress(orjson.JSONDecodeError):
            parsed = orjson.loads(text)
            return _held_failure(parsed, parsed) if isinstance(parsed, dict) else None
    beginning = text[:LOOKED_AT]
    if _ERROR_TEXT.match(beginning) or _PAGE.match(beginning):
        return _reported(text)
    if len(text) <= SHORT:
        if _RAISED_TEXT.match(text):
            return _reported(text)
        if _BODY.match(text):
            return _refusing_body(text)
    return None


def _refusing_body(text: str) -> Returned | None:
    """The failure of a JSON object that holds nothing but a refusal in words."""
    with contextlib.suppress(orjson.JSONDecodeError):
        parsed = orjson.loads(text)
        if isinstance(parsed, dict) and set(parsed) <= _OF_ERRORS:
            said = next(iter(parsed.values()))
            if isinstance(said, str) and _ERROR_TEXT.match(said):
                found = _reported(said)
                return found if found.signal == "rejected" else None
    return None


def _returned_exception(error: BaseException) -> Returned:
    status, signal = status_of(error), signal_of(error)
    name = "timeout" if signal == "timeout" else type(error).__name__ if status is None else f"http_{status}"
    if signal == "unknown" and status is None:
        reported = _reported(f"{name}: {error}", marked=True)
        return reported if reported.signal != "unknown" else Returned(name, signal)
    return Returned(name, signal, retry_after_ns(error) if signal == "rejected" else None)


_HOLD_NOTHING = frozenset((int, float, bool, bytes, list, set, frozenset, type(None)))


def _held(value: object) -> Mapping[Any, Any] | None:
    """An object's own attributes, as they are: a property of somebody's class may do anything."""
    kind = type(value)
    if kind in _HOLD_NOTHING:
        return None
    if issubclass(kind, dict):
        given = cast(dict[Any, Any], value)
        return given if kind is dict else dict(dict.items(given))
    if issubclass(kind, tuple):
        names = getattr(kind, "_fields", ())
        return dict(zip(names, tuple.__iter__(cast(tuple[Any, ...], value)), strict=True)) if names else None
    with contextlib.suppress(AttributeError):  # it has slots instead
        return cast(dict[str, Any], object.__getattribute__(value, "__dict__"))
    held = {}
    for name, slot in vars(kind).items():
        if type(slot) is MemberDescriptorType:
            with contextlib.suppress(AttributeError):  # nothing in it
                held[name] = slot.__get__(value)
    return held


def _held_failure(value: object, held: Mapping[Any, Any]) -> Returned | None:
    if not any(map(held.__contains__, _ASKED)):  # nearly every result
        return None
    entries = {name: held[name] for name in _ASKED if name in held and issubclass(type(held[name]), _PLAIN)}
    content, said = entries.get("content"), entries.get("status")
    marked = (
        entries.get("is_error") is True
        or entries.get("isError") is True
        or (said == "error" and content is not None)
    )
    statuses = [_number(entries.get(name)) for name in _STATUS_NAMES]
    for status in statuses:
        if status in REJECTING:
            return Returned(f"http_{status}", "rejected", retry_after_ns(value))
    if not marked and any(status is not None and 200 <= status < 300 for status in statuses):
        return None
    error = entries.get("error") or entries.get("errors")
    if isinstance(error, int | float) and error is not True and entries.get("error") not in REJECTING:
        error = None  # a count, or a deviation
    if not isinstance(value, Mapping) and not isinstance(error, str | BaseException | Mapping):
        error = None  # an attribute of somebody's class
    if isinstance(error, BaseException):
        return _returned_exception(error)
    status = _number(entries.get("code"))
    if status in REJECTING and len(held) > 1 and set(held) <= _OF_ERRORS:
        return Returned(f"http_{status}", "rejected", retry_after_ns(value))
    failed = (
        marked
        or error
        or any(entries.get(name) is False for name in ("ok", "success"))
        or (isinstance(said, str) and said.lower() in _FAILED_STATUS)
        or entries.get("timed_out") is True
    )
    if not failed:
        # A message to the model, whose text may be that of a failure.
        text = _text(content) if "tool_call_id" in held or "tool_use_id" in held else None
        return None if text is None else _told(text)
    if entries.get("timed_out") is True:
        return Returned("timeout", "timeout")
    parts = (entries.get(name) for name in _SAYING)
    return _reported("\n".join(_cut(part) for part in parts if part and part is not True), marked)


def _cut(part: Any) -> str:
    """An entry as text, as much of it as is looked at."""
    if isinstance(part, str):
        return part[:LOOKED_AT]
    if isinstance(part, list | tuple):
        part = part[:FEW]
    elif isinstance(part, dict):
        part = dict(itertools.islice(part.items(), FEW))
    return str(part)[:LOOKED_AT]


def _number(value: object) -> int | None:
    """A status, as a number or as text."""
    if isinstance(value, str) and len(value) == 3 and value.isdecimal():
        return int(value)
    return value if isinstance(value, int) else None


def _reported(text: str, marked: bool = False) -> Returned:
    """The failure in a report of an error. `marked`: it says of itself that the call failed."""
    for error_type, reason in _REASONS:
        if reason.search(text[:LOOKED_AT]):
            return Returned(error_type, "timeout" if error_type == "timeout" else "rejected")
    return Returned(ERROR_RESULT if marked else None, "unknown")


def is_refusal(text: str) -> bool:
    """Whether the text of an error says that the server takes no more calls at the moment."""
    beginning = text[:LOOKED_AT]
    return _reported(beginning, marked=True).signal == "rejected" or bool(_BUSY_TEXT.search(beginning))


LONGEST_WAIT_S = 1e6
"""A wait that a server asks for is not believed from so many seconds on."""


def parse_retry_after(
    milliseconds: str | None, seconds: str | None, wall_clock: Callable[[], float] = time.time
) -> int | None:
    """Nanoseconds to wait, from `retry-after-ms` (which goes first) and `retry-after`.

    The latter has seconds, with decimals or without, a duration (`1m12s`) or an HTTP date; one that is past
    asks for no wait. None when neither can be used. `wall_clock`: Unix time, to turn a date into a wait.
    """
    for text, unit in ((milliseconds, 1e6), (seconds, 1e9)):
        value = None if text is None else number(text)
        if value is not None and value < LONGEST_WAIT_S:
            return int(value * unit)
    if seconds is None:
        return None
    if (duration := duration_ns(seconds)) is not None:
        return duration[0] if duration[0] < LONGEST_WAIT_S * 1e9 else None
    at = moment_s(seconds)
    wait = None if at is None else max(0.0, at - wall_clock())
    return None if wait is None or wait >= LONGEST_WAIT_S else int(wait * 1e9)


def asked_wait_ns(
    milliseconds: str | None,
    seconds: str | None,
    date: str | None,
    wall_clock: Callable[[], float] = time.time,
) -> int | None:
    """`parse_retry_after` of a response; a point in time is on the server's clock, as `date` tells it."""
    now_s = moment_s(date) if isinstance(date, str) else None
    return parse_retry_after(milliseconds, seconds, wall_clock if now_s is None else lambda: now_s)


LEAST_SPREAD_NS = 1_000_000_000
SPREAD_SHARE = 0.2


def spread_ns(retry_after_ns: int) -> int:
    """The time over which callers come back after a wait, at random: max(1 s, 0.2·Retry-After).

    Callers that wait exactly as long as told, as those of the SDKs do, all come back at once.
    """
    return max(LEAST_SPREAD_NS, int(SPREAD_SHARE * retry_after_ns))


class Holdback:
    """The wait that a server asked for on one key (a tool, a model), shared by all callers of the key.

    `wait_ns` draws one caller's wait: until the end of the wait that was asked for, and a uniform share
    of what is left of the spread. Ask again after it: another caller may have been refused meanwhile.
    """

    __slots__ = ("_closed_until_ns", "_random", "_spread_until_ns")

    def __init__(self, random: Random) -> None:
        self._random = random
        self._closed_until_ns = 0
        self._spread_until_ns = 0

    def refused(self, now_ns: int, retry_after_ns: int) -> None:
        """The server asked for a wait. An earlier one that lasts longer stays in force."""
        until = now_ns + retry_after_ns
        self._closed_until_ns = max(self._closed_until_ns, until)
        self._spread_until_ns = max(self._spread_until_ns, until + spread_ns(retry_after_ns))

    def is_closed(self, now_ns: int) -> bool:
        """Whether the wait that was asked for is still on; the spread after it does not count."""
        return now_ns < self._closed_until_ns

    def wait_ns(self, now_ns: int) -> int:
        if now_ns >= self._spread_until_ns:
            return 0
        opens = max(now_ns, self._closed_until_ns)
        return opens - now_ns + int(self._random.random() * (self._spread_until_ns - opens))


BASE_NS = 500_000_000
CAP_NS = 8_000_000_000


def is_transient(error: BaseException) -> bool:
    """Whether another try may succeed: after a `TRANSIENT` status or a timeout."""
    return status_of(error) in TRANSIENT or signal_of(error) == "timeout"


def delay_ns(attempt: int, signal: Signal, asked_ns: int | None, random: Random) -> int:
    """Nanoseconds between attempt number `attempt` (from 1) and the next.

    After a rejection with Retry-After (`asked_ns`), that and U(0, max(1 s, 0.2·that)) more; else "full
    jitter" (Brooker 2015), U(0, min(8 s, 0.5·2ⁿ⁻¹ s)).
    """
    if asked_ns is not None and signal == "rejected":
        return asked_ns + int(random.random() * spread_ns(asked_ns))
    return int(random.random() * min(CAP_NS, BASE_NS << (attempt - 1)))
