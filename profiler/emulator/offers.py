"""The tools that clients offer, compiled once for each list of them. Pure state, and bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import orjson

from profiler.emulator.conversation import Offered
from profiler.emulator.work import TooMuch

MOST_BYTES = 1 << 20
"""The JSON of one list of tools at most: several times what any model reads."""

_MOST_KEPT = 8 << 20


class Offers:
    """Lists of tools by their JSON: clients repeat the same in every request.

    `compile_` checks one and compiles it. The least recently used are forgotten beyond `most` bytes of JSON.
    """

    def __init__(self, compile_: Callable[[list[Any]], Offered], most: int = _MOST_KEPT) -> None:
        self._compile = compile_
        self._most = most
        self._size = 0
        self._known: OrderedDict[bytes, Offered] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, tools: list[Any]) -> Offered:
        """Raises what `compile_` raises, and `TooMuch` for a list that is too long or nested too deeply."""
        try:
            text = orjson.dumps(tools)
        except TypeError:  # beyond the depth that can be written; it has been read, so all else can
            raise TooMuch("the tools are nested more than 250 levels deep") from None
        known = self._known.get(text)
        if known is not None:
            self._known.move_to_end(text)
            return known
        if len(text) > MOST_BYTES:
            raise TooMuch(f"the tools take {len(text):,} bytes of JSON; at most {MOST_BYTES:,} are read")
        offered = self._known[text] = self._compile(tools)._replace(text=text)
        self._size += len(text)
        while self._size > self._most:
            self._size -= len(self._known.popitem(last=False)[0])
        return offered
