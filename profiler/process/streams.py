"""Standard streams that take any text: for a character that their encoding lacks stands a plainer one.

`prepare_streams` is called once, where a process begins: by `profiler.cli.main`, by Locust files, by the
emulator. After that nothing that prints has to think of encodings, or of a stream that is closed.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import sys
import unicodedata
from typing import Any

ERRORS = "profiler.plainer"
"""Name of the error handler that encodes what an encoding lacks."""

_PAIRS = """
    …. ·- •* ×x ≤< ≥> ≡= ±~ ≈~ →> ←< ↑^ ↓v –- —- −- ‐- ‑- ‘' ’' “" ”" ∞8 √V ²2 ³3
    ▓= ▒+ ░. █# ▚x ━= ─- ✓+ ✔+ ✗x ✘x
    αa βb γg δd κk λl µu μu πp σs φp Σs Δd
"""
_PLAINER = {ord(pair[0]): pair[1] for pair in _PAIRS.split()}
"""What is printed of our own; each is one column wide before and after, so that tables stay tables."""

_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")


def plainer(character: str) -> str:
    """What stands for a character in an encoding that lacks it: as wide as that, and ASCII.

    A `?` for what comes from elsewhere: names, prompts, what servers said.
    """
    found = _PLAINER.get(ord(character))
    if found is not None:
        return found
    name = unicodedata.name(character, "")
    if name.startswith("BOX DRAWINGS"):
        across, down = ("HORIZONTAL" in name, "VERTICAL" in name)
        return "+" if across == down else "|" if down else "-"
    kind, wide = unicodedata.category(character), unicodedata.east_asian_width(character) in ("W", "F")
    if kind in ("Mn", "Me"):  # it is drawn upon the character before it
        return ""
    mark = " " if kind == "Zs" else "?"
    return mark * 2 if wide else mark


def _encode_plainer(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(plainer, error.object[error.start : error.end])), error.end


codecs.register_error(ERRORS, _encode_plainer)


class _Unfailing(io.FileIO):
    """What it cannot write is lost: the errors of standard error, of which nobody is left to be told."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


IN_CHILDREN = {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"}
"""Environment of processes of ours whose output we read: UTF-8, whatever this process's own encoding is.

Locust reads the `pyproject.toml` that it finds in the encoding of its locale, and fails where that is ASCII.
"""


def prepare_streams() -> None:
    """Make this process's standard streams take anything; called again, it does nothing more.

    Those that are closed lead nowhere from now on: else the next file to be opened would take their place,
    and get what is printed. An error on standard output still raises.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # `>&-`; the lowest free number is the one that `open` takes
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None or (sys.stderr is sys.__stderr__ and _is_descriptor(sys.stderr, 2)):
        encoding = "utf-8" if sys.stderr is None else sys.stderr.encoding
        unfailing = io.BufferedWriter(_Unfailing(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(unfailing, encoding=encoding, line_buffering=True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def _is_descriptor(stream: Any, descriptor: int) -> bool:
    try:
        return bool(stream.fileno() == descriptor)
    except (OSError, ValueError, AttributeError):
        return False


def fitting(text: str, stream: Any) -> str:
    """The text as a stream that nobody prepared can take it."""
    encoding = getattr(stream, "encoding", None)
    return text.encode(encoding, ERRORS).decode(encoding) if encoding else text


def json_text(data: bytes) -> str:
    """JSON as text for standard output: as it is, or with escapes where the encoding is not UTF-8."""
    text = data.decode("utf-8")
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if codecs.lookup(encoding).name != "utf-8":
        text = _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)
    return text
