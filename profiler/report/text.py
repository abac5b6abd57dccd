"""Figures, and texts from outside, as they are printed."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import IO

_LONGEST = 60
_LONGEST_MESSAGE = 600


def use_color(stream: IO[str], environment: Mapping[str, str]) -> bool:
    """Whether to write colours: on a terminal, unless `NO_COLOR` is set to anything (no-color.org)."""
    return stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def clean(text: str, longest: int = _LONGEST) -> str:
    """A name from outside on one line, with nothing that moves a terminal's cursor or reorders its text.

    Control characters, escapes, line separators and direction overrides become `\\x1b`-style codes;
    a name longer than `longest` loses its middle.
    """
    if len(text) > longest:  # cut before the characters are looked at: a name may have megabytes
        half = (longest - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    return text if text.isprintable() else "".join(_visible(character) for character in text)


def one_line(text: str) -> str:
    """An error message as one line that is safe on a terminal, whatever names from outside it holds."""
    return clean(" ".join(text.splitlines()), _LONGEST_MESSAGE)


def duration(seconds: float | None, unit: str | None = None) -> str:
    """`2.31 s`, `231 ms`, `0.42 ms`; a dash for None. `unit` (`s` or `ms`) forces one."""
    if seconds is None:
        return "–"
    if unit is None:
        unit = "s" if abs(seconds) >= 0.9995 else "ms"
    value = seconds if unit == "s" else seconds * 1000
    return f"{number(value)} {unit}"


def number(value: float | None) -> str:
    """Three significant digits without an exponent; a dash for None."""
    if value is None:
        return "–"
    size = abs(value)
    if size >= 99.95:
        return f"{value:.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}"


def percent(share: float | None) -> str:
    """`53 %`; below ten percent with one decimal, and never 0 % for a share above 0; a dash for None."""
    if share is None:
        return "–"
    value = share * 100
    if 0 < value < 0.1:
        return "<0.1 %"
    return f"{value:.1f} %" if 0 < value < 9.95 else f"{value:.0f} %"


def counted(count: int, word: str) -> str:
    """`1 agent`, `2 agents`, `3 retries`."""
    plural = word[:-1] + "ies" if word.endswith("y") else word + "s"
    return f"{count} {word if count == 1 else plural}"


def _visible(character: str) -> str:
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        code = ord(character)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return character
