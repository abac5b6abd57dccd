"""The quotas that a server states in its rate-limit headers: of what, how much, in how long a window. Pure.

OpenAI, Groq        x-ratelimit-{limit,remaining,reset}-{requests,tokens}; reset 17ms, 2m59.56s: until full
Azure               the same names (also x-rate-limit-…); reset in seconds; -1 where it has no figure
Anthropic           anthropic-ratelimit-{requests,tokens,input-tokens,…}-{limit,…}; reset a time in RFC 3339
Mistral             x-ratelimit-limit-req-minute, -tokens-minute; x-ratelimitbysize-limit-month
Cerebras, others    x-ratelimit-limit-requests-day, -tokens-minute, -tokens-per-day; reset in seconds
OpenRouter, GitHub  x-ratelimit-{limit,remaining,reset}; reset a Unix time in seconds or milliseconds
IETF drafts         ratelimit-limit, -remaining, -reset, -policy: 100;w=60; ratelimit: "default";r=50;t=30

A window is the one that a header names. Where none does it is inferred, and only where the figures leave one:
a bucket that holds its whole limit is full again after (limit - remaining) · window / limit, and one that
holds less of it sooner, so that

    window ≥ limit · reset / (limit - remaining),

with equality for most. Groq's 14,400 requests, of which 30 are back in 179.56 s, are those of a day.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal, NamedTuple

SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS
HOUR_NS = 60 * MINUTE_NS
DAY_NS = 24 * HOUR_NS
MONTH_NS = 30 * DAY_NS

RESOURCES = frozenset(("requests", "tokens", "input_tokens", "output_tokens"))
"""The resources that quotas count. Others are not read: Anthropic's `priority-input-tokens` limit nothing,
since requests beyond that capacity are served like all others."""

WINDOWS = {"second": SECOND_NS, "minute": MINUTE_NS, "hour": HOUR_NS, "day": DAY_NS, "month": MONTH_NS}
"""The windows that servers have, by the word that a header has for them."""

TOLERANCE = 0.05
"""How far from one of `WINDOWS` an inferred one may be: figures are rounded, and buckets go on filling."""

LONGEST_NS = 2 * MONTH_NS
"""A reset further away than that is not believed."""

MOST_KEPT = 48
LONGEST_VALUE = 300
"""How many headers of a response are kept, and how long a value may be: no server needs more."""


@dataclass(frozen=True, slots=True)
class Quota:
    """One limit of a server: at most `limit` of a resource in a window, of which `remaining` are left.

    `resource` is one of `RESOURCES`. `reset_ns`: the time until all of it is there again. `per` is the
    window's word in the header's name, "" where it has none. `window_ns` is None where it cannot be told.
    Figures are finite and never negative; None: not stated, or not as one.
    """

    resource: str
    limit: float | None = None
    remaining: float | None = None
    reset_ns: int | None = None
    window_ns: int | None = None
    per: str = ""

    @property
    def name(self) -> str:
        """`requests`, `tokens`; with a window that its header names, other than a minute: `requests_day`."""
        return self.resource if self.per in ("", "minute") else f"{self.resource}_{self.per}"

    @property
    def per_second(self) -> float | None:
        """The rate that it allows without end; None where its limit or its window is not known."""
        if self.limit is None or self.window_ns is None:
            return None
        return self.limit / (self.window_ns / SECOND_NS)

    def lowers(self, rate: float) -> float | None:
        """The rate to which it lowers that of a client, `rate` a second; None where it does not.

        A limit of a minute is a rate. One of a longer window may be used up faster: it is one as soon as what
        is left would not last the client for a minute. Where the window cannot be told, it is a minute at
        least, so that the rate is no higher than that.
        """
        if self.limit is None:
            return None
        window_ns = self.window_ns or MINUTE_NS
        allowed = self.limit / (window_ns / SECOND_NS)
        if window_ns > MINUTE_NS and (self.remaining is None or self.remaining >= 60 * rate):
            return None
        return allowed if 0 < allowed < rate else None

    @property
    def words(self) -> str:
        """`14,400 requests a day`."""
        amount = f"{self.limit:,.12g} {self.resource.replace('_', ' ')}"
        return amount if self.window_ns is None else f"{amount} {window_words(self.window_ns)}"


def window_words(window_ns: int) -> str:
    """`a minute`, `an hour`, `a day`; `in 90 s` for a window that has no word."""
    word = next((word for word, ns in WINDOWS.items() if ns == window_ns), None)
    if word is None:
        return f"in {window_ns / SECOND_NS:g} s"
    return f"{'an' if word == 'hour' else 'a'} {word}"


# Which headers these are, and what their names say.

_PREFIX = re.compile(
    r"x-rate-?limit(?P<by_size>bysize)?-|ratelimit(?P<old_by_size>bysize)?-|x-(?P<tokens>token)limit-|"
    r"anthropic-ratelimit-|anthropic-(?=priority-|fast-)"
)
_LISTS = frozenset(("ratelimit", "ratelimit-policy"))

Word = Literal["limit", "remaining", "reset"]
_WORDS: tuple[Word, ...] = ("limit", "remaining", "reset")

_SYNONYMS = {
    **dict.fromkeys(("req", "request"), "requests"),
    "token": "tokens",
    **dict.fromkeys(("prompt",), "input"),
    **dict.fromkeys(("generated", "completion"), "output"),
}
_LEFT_OUT = frozenset(("per", "project"))
"""Words of a header's name that say nothing of what is counted."""


@functools.lru_cache(maxsize=512)  # the same few names with every response
def is_rate_limit(name: str) -> bool:
    """Whether a header, its name in lower case, is one of those that `stated` reads."""
    return name in _LISTS or _PREFIX.match(name) is not None


def kept(headers: Iterable[tuple[str, str]]) -> dict[str, str] | None:
    """The rate-limit headers among (name in lower case, value), for a record; None without any.

    With them goes `date` where one of them is a point in time: it is that of the server's own clock.
    """
    found: dict[str, str] = {}
    date = None
    for name, value in headers:
        if name == "date":
            date = value
        elif is_rate_limit(name) and len(value) <= LONGEST_VALUE and len(found) < MOST_KEPT:
            # A list may be sent in several lines.
            found[name] = f"{found[name]}, {value}" if name in _LISTS and name in found else value
    if date is not None and any("reset" in name and _MOMENT.match(value) for name, value in found.items()):
        found["date"] = date
    return found or None


class _Named(NamedTuple):
    word: Word
    dialect: str
    resource: str
    per: str


@functools.lru_cache(maxsize=256)  # a server's replies all have the same
def _named(header: str) -> _Named | None:
    """The meaning of a header's name; None for one that is no figure of a quota."""
    match = _PREFIX.match(header)
    if match is None:
        return None
    parts = [_SYNONYMS.get(part, part) for part in re.split(r"[-_]", header[match.end() :])]
    words = [word for word in _WORDS if word in parts]
    if len(words) != 1:
        return None
    rest = [part for part in parts if part and part != words[0] and part not in _LEFT_OUT]
    per = next((part for part in rest if part in WINDOWS), "")
    counted = [part for part in rest if part not in WINDOWS]
    return _Named(words[0], match[0], _resource(counted, bool(match["tokens"] or _by_size(match))), per)


def _by_size(match: re.Match[str]) -> bool:
    return bool(match["by_size"] or match["old_by_size"])


def _resource(parts: list[str], tokens: bool = False) -> str:
    """`input_tokens` of ("tokens", "prompt") and the like; without a word for it, requests or tokens."""
    if not parts:
        return "tokens" if tokens else "requests"
    if set(parts) in ({"input", "tokens"}, {"output", "tokens"}):
        return "input_tokens" if "input" in parts else "output_tokens"
    return "_".join(parts)


# Their values.

_NUMBER = re.compile(r"-?\d{1,18}(?:\.\d{1,30})?")  # Python's servers write 16 decimals and more
_DURATION = re.compile(r"(?:\d{1,9}(?:\.\d{1,30})?(?:d|h|ms|m|s|us|µs|μs|ns))+")
_DURATION_PART = re.compile(r"(\d+)(?:\.(\d+))?([a-zµμ]+)")
_UNITS_NS = {"d": DAY_NS, "h": HOUR_NS, "m": MINUTE_NS, "s": SECOND_NS, "ms": 10**6, "ns": 1}
_MOMENT = re.compile(r"\s*(?:\d{10,}|\d{4}-\d\d-\d\d[Tt ]|[A-Za-z]{3})")
"""The beginning of a point in time: a Unix time, RFC 3339 or an HTTP date."""


def number(text: str) -> float | None:
    """A count; None for what is none, and for the negative numbers of servers that have no figure."""
    text = text.strip()
    value = float(text) if _NUMBER.fullmatch(text) else -1.0
    return value if value >= 0 else None


class Reset(NamedTuple):
    """The time until a quota is whole again, ± `step_ns`. `to_full`: it is that of a bucket that fills."""

    ns: int
    step_ns: int
    to_full: bool


def duration_ns(text: str) -> tuple[int, int] | None:
    """(nanoseconds, what the last digit stands for) of `17ms`, `1m12s`, `2m59.56s`; None for another text."""
    text = text.strip()
    if not _DURATION.fullmatch(text):
        return None
    total, step = 0.0, 1.0
    for whole, decimals, unit in _DURATION_PART.findall(text):
        scale = _UNITS_NS.get(unit, 1000)  # µs, however it is written
        step = scale / 10 ** len(decimals)
        total += float(f"{whole}.{decimals or 0}") * scale
    return round(total), max(1, round(step))


def moment_s(text: str) -> float | None:
    """Unix time of an RFC 3339 time or an HTTP date, in UTC where it names no zone; None for another text."""
    text = text.strip()
    try:
        found = datetime.fromisoformat(text.upper()) if text[:4].isdigit() else parsedate_to_datetime(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _reset(text: str, now_s: float | None, *, to_full: bool) -> Reset | None:
    """The reset that a header states, at Unix time `now_s`; None if that is needed and not known."""
    text = text.strip()
    step_ns = SECOND_NS
    if (found := duration_ns(text)) is not None:
        ns, step_ns = found
        to_full = True
    elif _NUMBER.fullmatch(text) and not _MOMENT.match(text):
        seconds = float(text)
        if seconds < 0:
            return None
        ns = round(seconds * SECOND_NS)
        step_ns = max(1, SECOND_NS // 10 ** len(text.partition(".")[2]))
    else:
        at = float(text) if _NUMBER.fullmatch(text) else moment_s(text)
        if at is None or now_s is None:
            return None
        at = at / 1000 if at >= 1e11 else at  # in milliseconds, from the year 1973 on
        ns = max(0, round((at - now_s) * SECOND_NS))
        step_ns = 2 * SECOND_NS  # both are rounded, one up and one down
    return Reset(ns, step_ns, to_full) if ns <= LONGEST_NS else None


# Quotas.


@dataclass(slots=True)
class _Figures:
    """The figures in the headers of one quota."""

    limit: float | None = None
    remaining: float | None = None
    reset: Reset | None = None
    window_ns: int | None = None


@dataclass(slots=True)
class _Item:
    """A member of a structured list: `"default";q=100;w=60`, `100;w=60`, `limit=100`."""

    head: str
    parameters: dict[str, str] = field(default_factory=dict)


def stated(headers: Mapping[str, str], now_s: float | None = None) -> tuple[Quota, ...]:
    """The quotas that a response's headers state. What makes no sense is left out, never guessed.

    `now_s` is the Unix time of the response, for resets that are points in time; the `date` among the headers
    goes before it.
    """
    lines = {name.lower(): value for name, value in headers.items()}
    now_s = moment_s(lines.get("date", "")) or now_s
    found: dict[tuple[str, str, str], _Figures] = {}  # by dialect, resource and window's word
    policies: list[tuple[str, Quota]] = []
    for header, text in lines.items():
        named = _named(header) if header not in _LISTS else None
        if named is None or len(text) > LONGEST_VALUE:
            continue
        figures = found.setdefault(named[1:], _Figures())
        if named.word == "reset":
            figures.reset = _reset(text, now_s, to_full=named.dialect.startswith("anthropic"))
        elif named.word == "remaining":
            figures.remaining = number(text)
        else:  # "100", and also "100, 100;w=60, 1000;w=3600" in early drafts
            first, *others = _items(text) or [_Item("")]
            # "2,000,000" is no list.
            plain = any(not one.parameters and one.head != first.head for one in others)
            figures.limit = None if plain else number(first.head)
            policies += _policies([first] * bool(first.parameters) + others)
    policies += _policies(_items(lines.get("ratelimit-policy", "")))
    _add_current(found, _items(lines.get("ratelimit", "")), policies, now_s)
    left = [quota for _, quota in policies]
    quotas = [_quota(dialect, resource, per, one, left) for (dialect, resource, per), one in found.items()]
    told = [one for one in quotas if one.limit is not None or one.remaining is not None]
    return tuple(one for one in [*told, *dict.fromkeys(left)] if one.resource in RESOURCES)


def _items(text: str) -> list[_Item]:
    """The members of a list of structured fields (RFC 8941), as far as rate limits need them."""
    if len(text) > 4 * LONGEST_VALUE:
        return []
    items = []
    for member in re.findall(r'(?:"[^"]*"|[^",])+', text):
        head, *rest = (part.strip() for part in re.findall(r'(?:"[^"]*"|[^";])+', member))
        pairs = (part.partition("=") for part in rest)
        items.append(_Item(head, {name.strip(): value.strip().strip('"') for name, _, value in pairs}))
    return [item for item in items if item.head]


def _policies(items: Iterable[_Item]) -> Iterator[tuple[str, Quota]]:
    """(name, quota) of the members of a policy: `"default";q=100;w=60` or `100;w=60`."""
    for item in items:
        limit = number(item.parameters.get("q", item.head))
        seconds = number(item.parameters.get("w", item.parameters.get("window", "")))
        window_ns = round(seconds * SECOND_NS) if seconds else 0
        if limit is not None and 0 < window_ns <= 12 * MONTH_NS:
            unit = [
                _SYNONYMS.get(part, part) for part in re.split(r"[-_]", item.parameters.get("qu", "requests"))
            ]
            per = next((word for word, ns in WINDOWS.items() if ns == window_ns), "")
            yield item.head.strip('"'), Quota(_resource(unit), limit, window_ns=window_ns, per=per)


def _add_current(
    found: dict[tuple[str, str, str], _Figures],
    items: list[_Item],
    policies: list[tuple[str, Quota]],
    now_s: float | None,
) -> None:
    """`RateLimit`: `"default";r=50;t=30` of each policy, or `limit=100, remaining=50, reset=5`."""
    for item in items:
        word, equals, text = item.head.partition("=")
        if equals:
            figures = found.setdefault(("ratelimit", "requests", ""), _Figures())
            if word in ("limit", "remaining"):
                setattr(figures, word, number(text))
            elif word == "reset":
                figures.reset = _reset(text, now_s, to_full=False)
            continue
        name = item.head.strip('"')
        of = next((quota for policy, quota in policies if policy == name), Quota("requests"))
        figures = found.setdefault((f"ratelimit {name}", of.resource, ""), _Figures())
        figures.limit, figures.window_ns = of.limit, of.window_ns
        figures.remaining = number(item.parameters.get("r", ""))
        figures.reset = _reset(item.parameters.get("t", ""), now_s, to_full=False)


def _quota(dialect: str, resource: str, per: str, figures: _Figures, policies: list[Quota]) -> Quota:
    """The quota of these figures. A policy that it is under is taken from the others."""
    window_ns = WINDOWS.get(per, figures.window_ns)
    for policy in policies:
        if (policy.resource, policy.limit) == (resource, figures.limit) and (
            window_ns is None or window_ns == policy.window_ns
        ):
            policies.remove(policy)
            window_ns, per = policy.window_ns, policy.per
            break
    if window_ns is None:
        window_ns = _inferred(figures, resource, by_the_minute=dialect.startswith("anthropic"))
    reset_ns = None if figures.reset is None else figures.reset.ns
    return Quota(resource, figures.limit, figures.remaining, reset_ns, window_ns, per)


def _inferred(figures: _Figures, resource: str, *, by_the_minute: bool) -> int | None:
    """The window that the figures leave, None where they leave none or several.

    `by_the_minute`: the provider documents a minute, which figures may only contradict.
    """
    limit, remaining, reset = figures.limit, figures.remaining, figures.reset
    if limit is None or limit <= 0:
        return None
    if by_the_minute:
        # Anthropic rounds the tokens that are left to thousands.
        rounding = 1000 if resource.endswith("tokens") else 1
        used = 0 if remaining is None else max(0.0, limit - remaining)
        least_ns = 0.0 if reset is None else limit * (reset.ns - reset.step_ns) / (used + rounding)
        if least_ns * (1 - TOLERANCE) <= MINUTE_NS:
            return MINUTE_NS
    if remaining is None or reset is None:
        return None
    if not reset.to_full and reset.ns > HOUR_NS * (1 + TOLERANCE):
        # Until the window ends, or until it is whole again: it is no shorter in either case.
        return next((ns for ns in (DAY_NS, MONTH_NS) if reset.ns <= ns * (1 + TOLERANCE)), None)
    used = limit - remaining
    if used <= 0 or reset.ns <= 0:
        return None
    low = limit * max(0, reset.ns - reset.step_ns) / used * (1 - TOLERANCE)
    high = limit * (reset.ns + reset.step_ns) / used * (1 + TOLERANCE)
    fitting = [ns for ns in WINDOWS.values() if ns > SECOND_NS and low <= ns <= high]
    if not reset.to_full:
        # A fixed window may leave any time until its end: that it is just a minute's by chance is unlikely.
        return MINUTE_NS if fitting == [MINUTE_NS] else None
    if high < MINUTE_NS:
        # A bucket of a second's worth that is nearly full; or of less than a minute's, with the limit of one.
        return SECOND_NS if low <= SECOND_NS <= high and remaining >= limit / 2 else MINUTE_NS
    if len(fitting) != 1 or (fitting[0] != MINUTE_NS and _is_window(reset.ns)):
        return None
    return fitting[0]


def _is_window(ns: int) -> bool:
    """Whether a reset is just a window: the first request of a fixed one leaves that, whatever its limit."""
    return any(abs(ns - one) <= TOLERANCE * one for one in WINDOWS.values() if one > SECOND_NS)
