"""What keys look like, in texts of any kind: error messages, URLs, headers, JSON, log lines. Pure.

A secret is found by its name (`api_key=…`, `"x-api-key": "…"`, `Authorization: Basic …`), by its place (a
password in a URL), or by the beginning that its issuer gives it (`sk-…`, `AKIA…`, `ghp_…`). What only might
be one stays readable: single words, numbers of tokens, names of models, ids of requests.

Servers choose much of what is looked at, so the time must grow with the length of a text alone. A pattern is
tried only where a text has one of the words that it begins with, and none can fail after it has read far.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

REDACTED = "[redacted]"

SHORTEST_NAMED = 6
"""Characters of a value whose name says that it is a secret, outside URLs: shorter ones may be words."""

_JOINT = r"(?:[-_. ]|%(?:25)?(?:2D|5F|20))?"
"""Between the words of a name; in a URL it may be percent-encoded, and twice in a URL within one."""

_NAMES = rf"""(?:
    (?:api|app|access|account|secret|subscription|private|signing|master|admin|auth|service|functions?)
        {_JOINT} key (?:{_JOINT} id)?
    | (?:amz|goog) {_JOINT} (?:signature|credential)
    | token | secret | password | passwd | passphrase | pwd | credentials? | jwt | apikey
)"""
"""Ends of names, of parameters, headers, variables and members of JSON."""

_SHORT_NAMES = "key|sig|signature|sign|code|auth|pass|hmac|ticket|assertion|sid"
"""Whole names of parameters that mean a secret in a URL, and anything elsewhere."""

_START = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2})|(?<=\\u00[0-9a-f]{2}))"
"""Where a word begins: also after an escape whose last character is a letter."""

_VALUE = r"""(?:[bu]? \\? (?: "(?P<double>[^"\r\n]*) | '(?P<single>[^'\r\n]*) )
    | (?P<plain>(?!\[redacted)[^\s"'<>&\#]+))"""
_PLAIN_WORD = re.compile(r"[A-Za-z][a-z]{0,14}|[A-Z]{1,15}|[a-z]{1,15}(?:_[a-z]{1,15}){1,4}")
_IDENTIFIER = re.compile(r"[A-Za-z_][a-z_-]{0,60}")
_NUMBER = re.compile(r"[-+]?[\d.,:]{1,40}(?:%|m?s)?")
_MODEL_NAME = re.compile(
    r"(?!(?:ant|or|proj|svcacct|admin|lf|test|live)-)[a-z]{1,8}(?:-(?:[a-z]{1,8}|v?\d{1,2}[a-z]?)){1,3}"
)
_PUNCTUATION = ".,;:!?)]}\\"


_KEY_OF = re.compile(
    rf"(?:api|app|access|account|secret|subscription|private|signing|master|admin|auth|service|functions?){_JOINT}\Z",
    re.I,
)
_SIGNED_BY = re.compile(rf"(?:amz|goog){_JOINT}\Z", re.I)

_SHORT = 200
_LONG = 200
"""Characters: of a match that was none after all, so much may be looked at again."""

Shown = Callable[[re.Match[str]], str | None]


@dataclass(frozen=True, slots=True)
class _Shape:
    """A kind of secret. `pattern` is tried where the text has one of the words `begins`.

    These are in lower case unless `cased`. `shown` is what stands in the place of a match, None where that
    was no secret after all.
    """

    begins: tuple[str, ...]
    pattern: re.Pattern[str]
    shown: Shown
    cased: bool = False

    def hide(self, text: str, lowered: str, places: re.Pattern[str]) -> str:
        """`places` finds the beginnings. The text is the same object where nothing is hidden."""
        parts: list[str] = []
        done = tried = 0
        for place in places.finditer(text if self.cased else lowered):
            if place.start() < tried:
                continue
            found = self.pattern.match(text, place.start())
            if found is None:
                continue
            shown = self.shown(found)
            if shown is None:
                tried = found.end() if found.end() - found.start() > _LONG else place.end()
                continue
            parts += (text[done : found.start()], shown)
            done = tried = found.end()
        return "".join((*parts, text[done:])) if parts else text


def hide_keys(text: str) -> str:
    """The text with `[redacted]` for whatever in it looks like a key."""
    lowered = _lowered(text)
    if len(text) < _SHORT and not _ANYWHERE.search(lowered):  # ids of requests, names
        return text
    for shape, places in _SHAPES_AND_PLACES:
        looked_at = text if shape.cased else lowered
        if any(word in looked_at for word in shape.begins):
            hidden = shape.hide(text, lowered, places)
            if hidden is not text:
                text, lowered = hidden, _lowered(hidden)
    return text


def _lowered(text: str) -> str:
    """In lower case, each character in its place."""
    lowered = text.lower()
    if len(lowered) != len(text):  # some become two
        lowered = "".join(one.lower() if one.isascii() else one for one in text)
    return lowered


def _whole(_: re.Match[str]) -> str:
    return REDACTED


def _after_first_group(found: re.Match[str]) -> str:
    """The rest of the match is the secret."""
    return found[1] + REDACTED


def _parameter(found: re.Match[str]) -> str | None:
    """In a URL the value ends at the next parameter, which may be encoded as the whole URL is."""
    name, value = found["name"], found["value"]
    end = re.search(r"%(?:25)?(?:26|23)", value, re.I) if "%" in name[-5:] else None
    rest = "" if end is None else value[end.start() :]
    secret = value if end is None else value[: end.start()]
    kept = secret.rstrip(_PUNCTUATION)
    return name + (REDACTED if kept else "") + secret[len(kept) :] + rest


def _named(found: re.Match[str]) -> str | None:
    """Whether what follows a name is its value depends on what is between them."""
    before = _KEY_OF if found["name"][:3].lower() == "key" else _SIGNED_BY
    if before is _KEY_OF or found["name"].lower() == "signature":
        start = found.start()
        if not before.search(found.string, max(0, start - 20), start):
            return None
    plain, between = found["plain"], found["between"]
    value = plain if plain is not None else found["double"] or found["single"] or ""
    kept = value.rstrip(_PUNCTUATION)
    hidden = len(kept) >= SHORTEST_NAMED and not kept.startswith(REDACTED[:-1])
    if plain is not None and ":" in between:
        hidden = hidden and kept[0] not in "{[(" and not _PLAIN_WORD.fullmatch(kept)
    if plain is not None and found["name"][-5:].lower() == "token":
        hidden = hidden and not _NUMBER.fullmatch(kept)
    if "," in between:  # of a pair, as HTTP libraries write headers, or of a list of names
        hidden = hidden and plain is None and not _IDENTIFIER.fullmatch(kept)
    if not hidden:
        return None
    at = found[0].rindex(value) if value else len(found[0])
    return found[0][:at] + REDACTED + value[len(kept) :]


def _scheme(found: re.Match[str]) -> str | None:
    """`Bearer abc`; not `bearer token`, nor the `Bearer realm="…"` that asks for one."""
    value = found["value"]
    kept = value.rstrip(_PUNCTUATION)
    if len(kept) < SHORTEST_NAMED or _PLAIN_WORD.fullmatch(kept) or _ASKS.match(value):
        return None
    return found[0][: len(found[0]) - len(value)] + REDACTED + value[len(kept) :]


_SCHEMES = ("bearer", "basic", "token", "negotiate", "apikey", "bot")
_ASKS = re.compile(r"(?:realm|error|scope|charset|authorization_uri|resource_metadata)=", re.I)


def _authorization(found: re.Match[str]) -> str | None:
    """The header with a scheme of any kind or none; not words about it (`authorization: required`)."""
    scheme, value = found["scheme"] or "", found["value"]
    kept = value.rstrip(_PUNCTUATION)
    if scheme and not _PLAIN_WORD.fullmatch(scheme):  # a key without a scheme, and a word after it
        return f"{found['name']}{REDACTED} {value}"
    known = scheme.lower() in _SCHEMES
    if len(kept) < SHORTEST_NAMED or _ASKS.match(value) or (_PLAIN_WORD.fullmatch(kept) and not known):
        return None
    return found[0][: len(found[0]) - len(value)] + REDACTED + value[len(kept) :]


def _issued(found: re.Match[str]) -> str | None:
    """`sk-` begins the names of models too."""
    key = found[0]
    if key.startswith("sk-") and len(key) <= 15 and _MODEL_NAME.fullmatch(key[3:]):
        return None
    return REDACTED


_ISSUED = {
    "sk-": r"[A-Za-z0-9_*-]{6,}",  # OpenAI, Anthropic, OpenRouter, DeepSeek and many more
    "(?:sk|rk|pk)_(?:live|test)_": r"[A-Za-z0-9]{8,}",  # Stripe
    "whsec_": r"[A-Za-z0-9+/=]{12,}",
    "(?:AKIA|ASIA|AROA|AIDA)": r"[A-Z0-9]{12,}",  # AWS
    "AIza": r"[A-Za-z0-9_*-]{16,}",  # Google
    r"ya29\.": r"[A-Za-z0-9_.-]{12,}",
    "GOCSPX-": r"[A-Za-z0-9_-]{12,}",
    "gh[pousr]_": r"[A-Za-z0-9_]{12,}",  # GitHub
    "github_pat_": r"[A-Za-z0-9_]{12,}",
    "gl(?:pat|dt|rt|cbt|ptt|ft|soat|agent)-": r"[A-Za-z0-9_.-]{12,}",  # GitLab
    "hf_": r"[A-Za-z0-9]{16,}",  # Hugging Face
    "(?:gsk|r8|fw|npm|lsv2|dop_v1|figd|shpat|pcsk|lin_api)_": r"[A-Za-z0-9_-]{16,}",  # Groq, Replicate, ...
    "(?:xai|csk|nvapi|pplx|tvly)-": r"[A-Za-z0-9_-]{16,}",  # xAI, Cerebras, NVIDIA, ...
    "xox[abceoprs]-": r"[A-Za-z0-9-]{8,}",  # Slack
    "xapp-": r"[A-Za-z0-9-]{8,}",
    r"SG\.": r"[A-Za-z0-9_-]{12,}(?:\.[A-Za-z0-9_-]+)?",  # SendGrid
    r"(?<![\w-])eyJ": r"[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_-]+)*",  # JWT
}
"""How the keys of issuers begin, and what follows. Each character is read once: what follows a beginning ends
the match wherever it ends, except in JWTs, which begin where no other can have begun before."""

_SHAPES = (
    _Shape(
        ("-----BEGIN",),
        re.compile(
            r"-----BEGIN[ +%A-Z0-9]{0,40}PRIVATE(?:[ +]|%20)KEY[ +%A-Z0-9]{0,20}-----"
            r"(?:(?!-----END)[\s\S])*(?:-----END[ +%A-Z0-9]{0,60}(?:-----)?)?"
        ),
        _whole,
        cased=True,
    ),
    _Shape(("://",), re.compile(r"(://)[^/?#\s\"'<>]+(?=@)"), _after_first_group),
    _Shape(
        ("%3a%2f%2f",),
        re.compile(r"(%3A%2F%2F)(?:(?!%2F|%3F|%40)[^/?#&\s\"'<>])+(?=%40)", re.I),
        _after_first_group,
    ),
    _Shape(
        ("cookie",),
        re.compile(
            r"""(cookie2? \\?["']? \s{0,4} [:=,] \s{0,4} (?:b?\\?["'])?)
                [^\s=;,"']{1,128} = [^\r\n"']* (?:"[^\r\n"']{0,4096}"[^\r\n"']*)*""",
            re.I | re.X,
        ),
        _after_first_group,
    ),
    _Shape(
        ("aws4-", "digest", "oauth", "hmac-", "signature"),
        re.compile(
            r"((?<!\w)(?:AWS4-[A-Z0-9-]{1,40}|Digest|OAuth|HMAC-SHA\d{1,3}|Signature)\s{1,4})"
            r"(?=[A-Za-z_-]{1,40}=)[^\r\n']+",
            re.I,
        ),
        _after_first_group,
    ),
    _Shape(
        ("bearer", "basic", "negotiate", "apikey", "api-key"),
        re.compile(
            r"(?<!\w)(?:bearer|basic|negotiate|api-?key)(?:\s{1,4}|%20|\+)\\?[\"']?"
            r"(?P<value>(?!\[redacted)[^\s\"'<>,;&}\\]+)",
            re.I,
        ),
        _scheme,
    ),
    _Shape(
        ("authorization",),
        re.compile(
            r"""(?P<name>authorization (?:\\?["'])? \s{0,4} [:=,] \s{0,4} (?:b?\\?["'])?)
                (?:(?P<scheme>[A-Za-z][\w-]{0,30})[ ]{1,2})?
                (?P<value>(?!\[redacted|AWS4-|HMAC-)[^\s"',}\\]+)""",
            re.I | re.X,
        ),
        _authorization,
    ),
    _Shape(
        ("?", "&", ";", "#", "%3f", "%26", "%23", "%253f", "%2526", "%2523", "\\u0026"),
        re.compile(
            rf"""(?P<name>
                (?:[?&;\#] | %(?:25)?(?:3F|26|23) | \\u0026)
                (?:(?:[\w.-]|%(?:25)?(?:2D|5F|5B|5D)){{0,40}}? {_NAMES} | {_SHORT_NAMES})
                (?:= | %(?:25)?3D)
            ) (?!\[redacted) (?P<value>[^&\s"'<>\#]+)""",
            re.I | re.X,
        ),
        _parameter,
    ),
    _Shape(
        (
            *("key", "token", "secret", "password", "passwd", "passphrase", "pwd", "credential", "jwt"),
            "signature",
        ),
        re.compile(
            rf"""(?P<name>key(?:{_JOINT}id)?|token|secret|password|passwd|passphrase|pwd|credentials?|jwt|signature)
                (?P<between>(?:\\?["'])? \s{{0,4}} (?:=>|:=|=|:|,|%(?:25)?3[DA]) \s{{0,4}}) {_VALUE}""",
            re.I | re.X,
        ),
        _named,
    ),
    _Shape(
        (
            *(
                "sk-",
                "sk_",
                "rk_",
                "pk_",
                "whsec_",
                "AKIA",
                "ASIA",
                "AROA",
                "AIDA",
                "AIza",
                "ya29.",
                "GOCSPX-",
            ),
            *("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "gldt-", "glrt-", "glcbt-"),
            *(
                "glptt-",
                "glft-",
                "glsoat-",
                "glagent-",
                "hf_",
                "gsk_",
                "r8_",
                "fw_",
                "npm_",
                "lsv2_",
                "dop_v1_",
            ),
            *("figd_", "shpat_", "xai-", "csk-", "nvapi-", "pplx-", "tvly-", "pcsk_", "lin_api_"),
            *("xox", "xapp-", "SG.", "eyJ"),
        ),
        re.compile(f"{_START}(?:{'|'.join(begin + rest for begin, rest in _ISSUED.items())})"),
        _issued,
        cased=True,
    ),
)
"""In this order: what is found by name or place takes with it what has the beginning of a key."""

_SHAPES_AND_PLACES = tuple((shape, re.compile("|".join(map(re.escape, shape.begins)))) for shape in _SHAPES)
_ANYWHERE = re.compile(
    "|".join(sorted({re.escape(word.lower()) for shape in _SHAPES for word in shape.begins}))
)
