"""What providers say of their quotas: `x-ratelimit-*` and `anthropic-ratelimit-*` headers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

RESOURCES = ("requests", "tokens", "input-tokens", "output-tokens")

Word = Literal["limit", "remaining"]


class Stated(NamedTuple):
    """One figure of a response's headers; `resource` with underscores, `limit` is per minute."""

    word: Word
    resource: str
    value: float


@functools.lru_cache(maxsize=256)  # header names come from outside
def _meaning(header: str) -> tuple[Word, str] | None:
    """OpenAI's is remaining-tokens, Anthropic's tokens-remaining."""
    name = header.removeprefix("x-ratelimit-").removeprefix("anthropic-ratelimit-")
    words: tuple[Word, ...] = ("limit", "remaining")
    for word in words:
        for resource in RESOURCES:
            if name in (f"{word}-{resource}", f"{resource}-{word}"):
                return word, resource.replace("-", "_")
    return None


def stated(headers: Mapping[str, str]) -> Iterator[Stated]:
    """What a response's rate-limit headers say; what is no number is left out."""
    for header, text in headers.items():
        found = _meaning(header)
        if found is not None:
            with contextlib.suppress(ValueError):
                yield Stated(*found, float(text))
