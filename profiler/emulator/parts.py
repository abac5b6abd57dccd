"""The parts of a compiled schema: each draws a value that satisfies it, in bounded work. Pure.

Parts refer to each other, also in circles. `settle` finds for each the least work that a value of it takes;
what needs itself without end has none. Near the root, and while there is work left, drawing is free to make
more; deeper, and without, it makes the least.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson

from profiler.emulator.draws import Draws
from profiler.emulator.patterns import Pattern
from profiler.emulator.words import WORDS
from profiler.emulator.work import MOST_DEEP, MOST_WORK, TooMuch, Work

DEPTH = 5
"""Levels in which optional properties and items are made. Below them only what is required is, else a value
of a schema that refers to itself would not end."""

_SMALL = 16
"""The work of a short value or key, about its characters."""

Maker = Callable[[Draws, int], Any]


class Part:
    """Draws one value. `least` is the least work that takes, `height` the levels of that value.

    `needed`: the parts of which such a value is made, each with how many values of it; `own`: the work beside
    theirs. `label`: what a message calls it.
    """

    __slots__ = ("height", "label", "least", "needed", "own")

    def __init__(self, label: str, own: int = _SMALL, needed: Iterable[tuple[Part, int]] = ()) -> None:
        self.label = label
        self.own = own
        self.needed = tuple(needed)
        self.least = math.inf
        self.height = 0

    def draw(self, draws: Draws, n: int, depth: int, work: Work) -> Any:
        raise NotImplementedError

    def reached(self) -> Iterable[Part]:
        """The parts that drawing this one may draw."""
        return [part for part, _ in self.needed]


class Leaf(Part):
    """A short value that `make` makes."""

    __slots__ = ("_make",)

    def __init__(self, label: str, make: Maker, own: int = _SMALL) -> None:
        super().__init__(label, own)
        self._make = make

    def draw(self, draws: Draws, n: int, depth: int, work: Work) -> Any:
        return self._make(draws, n)


class LongText(Leaf):
    """A text with a `minLength`."""

    __slots__ = ()

    def draw(self, draws: Draws, n: int, depth: int, work: Work) -> Any:
        work.left -= self.own
        return self._make(draws, n)


class Matching(Part):
    """A text that matches a pattern."""

    __slots__ = ("_pattern",)

    def __init__(self, label: str, pattern: Pattern) -> None:
        super().__init__(label, pattern.least)
        self._pattern = pattern

    def draw(self, draws: Draws, n: int, depth: int, work: Work) -> Any:
        return self._pattern.text(draws, work)


class Options(Part):
    """One of the values of an `enum`, or the only one. Raises `TooMuch` where none is short enough."""

    __slots__ = ("_options", "_shortest", "_sizes")

    def __init__(self, label: str, options: Sequence[Any]) -> None:
        sizes = [len(orjson.dumps(option)) for option in options]
        shortest = min(sizes)
        if shortest > MOST_WORK:
            raise TooMuch(f"{label} is a value of {shortest:,} characters; at most {MOST_WORK:,} are made")
        kept = [n for n, size in enumerate(sizes) if size <= MOST_WORK]
        self._options = [options[n] for n in kept]
        self._shortest = options[sizes.index(shortest)]
        self._sizes = [sizes[n] for n in kept] if max(sizes) > _SMALL else None
        super().__init__(label, max(_SMALL, shortest))

    def draw(self, draws: Draws, n: int, depth: int, work: Work) -> Any:
        if len(self._options) == 1:
            work.left -= self.own
            return self._shortest
        if self._sizes is None:
            return draws.choice(self._options)
        if work.left <= 0:
            return self._shortest
        chosen = draws.below(len(self._options))
        work.left -= self._sizes[chosen]
        return self._options[chosen]


class Reference(Part):
    """A `$ref`; its target is compiled later, since it may be what refers to it."""

    __slots__ = ("target", "to")

    def __init__(self, label: str, to: str) -> None:
        super().__init__(label, 1)
        self.to = to
        self.target: Part = self

    def aim(self, target: Part) -> None:
        self.target = target
        self.needed = ((target, 1),)

    def draw(self, draws: Draws, n: int, depth: int, work: Work) -> Any:
        return self.target.draw(draws, n, depth + 1, work)


class Union(Part):
    """One of several branches: of those that are possible, once settled."""

    __slots__ = ("branches", "cheapest")

    def __init__(self, label: str, branches: Sequence[Part]) -> None:
        super().__init__(label, 1)
        self.branches = list(branches)
        self.cheapest = self.branches[0]

    def reached(self) -> Iterable[Part]:
        self.branches = [part for part in self.branches if is_possible(part)] or self.branches
        self.cheapest = min(self.branches, key=lambda part: part.least)
        return self.branches

    def draw(self, draws: Draws, n: int, depth: int, work: Work) -> Any:
        if depth >= DEPTH or work.left <= 0 or len(self.branches) == 1:
            return self.cheapest.draw(draws, n, depth, work)
        return draws.choice(self.branches).draw(draws, n, depth, work)


class Object(Part):
    """An object. `members`: key, whether it is required, part. `unnamed`: required keys without a schema.

    `fewest`: properties at least, of which keys of our own make up what is missing; `wild`: the part of their
    values, None for words. With `is_map` there is one of them in any case.
    """

    __slots__ = ("_fewest", "_is_map", "_members", "_unnamed", "_wild")

    def __init__(
        self,
        label: str,
        members: Sequence[tuple[str, bool, Part]],
        unnamed: Sequence[str],
        fewest: int,
        wild: Part | None,
        *,
        is_map: bool,
    ) -> None:
        self._members = [(key, always, part, len(key) + _SMALL) for key, always, part in members]
        self._unnamed = unnamed
        self._fewest = fewest
        self._wild = wild
        self._is_map = is_map
        needed = [(part, 1) for _, always, part, _ in self._members if always]
        missing = max(0, fewest - len(needed) - len(unnamed))
        own = sum(weight for _, always, _, weight in self._members if always)
        own += sum(len(key) + 2 * _SMALL for key in unnamed) + missing * 2 * _SMALL + 2
        if wild is not None and missing:
            needed.append((wild, missing))
        super().__init__(label, own, needed)

    def reached(self) -> Iterable[Part]:
        parts = [part for _, _, part, _ in self._members]
        return parts if self._wild is None else [*parts, self._wild]

    def draw(self, draws: Draws, n: int, depth: int, work: Work) -> dict[str, Any]:
        value: dict[str, Any] = {}
        below = depth + 1
        for key, always, part, weight in self._members:
            if always or (depth < DEPTH and work.left > 0 and draws.random() < 0.5):
                work.left -= weight
                value[key] = part.draw(draws, n, below, work)
        for key in self._unnamed:
            work.left -= len(key) + _SMALL
            value[key] = draws.choice(WORDS)
        fewest = self._fewest
        if self._is_map and depth < DEPTH and work.left > 0:
            fewest = max(1, fewest)
        if len(value) < fewest:
            self._fill(value, fewest, draws, n, depth, work)
        return value

    def _fill(self, value: dict[str, Any], fewest: int, draws: Draws, n: int, depth: int, work: Work) -> None:
        start = draws.below(len(WORDS))
        for offset in range(fewest - len(value)):
            turn, word = divmod(start + offset, len(WORDS))
            key = WORDS[word] if turn == 0 or offset < len(WORDS) else f"{WORDS[word]}-{turn}"
            work.left -= _SMALL
            wild = self._wild
            value[key] = draws.choice(WORDS) if wild is None else wild.draw(draws, n, depth + 1, work)


class Array(Part):
    """An array: one value of each of `fixed`, then of `item`, None for no more. At most `most` of them."""

    __slots__ = ("_fewest", "_fixed", "_item", "_most", "_unique")

    def __init__(
        self, label: str, fixed: Sequence[Part], item: Part | None, fewest: int, most: int, *, unique: bool
    ) -> None:
        self._fixed = fixed
        self._item = item
        self._fewest = fewest
        self._most = most
        self._unique = unique
        needed = [(part, 1) for part in fixed]
        more = max(0, fewest - len(fixed))
        if item is not None and more:
            needed.append((item, more))
        super().__init__(label, 2 + 2 * (len(fixed) + more), needed)

    def reached(self) -> Iterable[Part]:
        return self._fixed if self._item is None else [*self._fixed, self._item]

    def draw(self, draws: Draws, n: int, depth: int, work: Work) -> list[Any]:
        item, fewest = self._item, self._fewest
        if fewest == 0 and not self._fixed and (depth >= DEPTH or work.left <= 0):
            return []
        value = [part.draw(draws, n, depth + 1, work) for part in self._fixed]
        if item is None:
            return value
        low = max(fewest, min(1, self._most))
        length = low + draws.below(max(1, min(self._most, fewest + 3) - low + 1))
        seen = {_canonical(one) for one in value} if self._unique else None
        for attempt in range(length * 20):
            if work.left <= 0:
                length = min(length, max(fewest, len(value)))
                if attempt >= length:  # not as many different ones as were asked for
                    break
            if len(value) >= length:
                break
            work.left -= _SMALL
            candidate = item.draw(draws, n + attempt, depth + 1, work)
            if seen is not None:
                text = _canonical(candidate)
                if text in seen:
                    continue
                seen.add(text)
            value.append(candidate)
        return value


def _canonical(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def is_possible(part: Part) -> bool:
    """Whether a settled part can be drawn within bounds."""
    return part.least <= MOST_WORK and part.height <= MOST_DEEP


def settle(parts: Sequence[Part]) -> None:
    """Find `least` and `height` of all parts: the cheapest first, of which others are made (Knuth 1977)."""
    users: dict[Part, list[tuple[Part, int]]] = {}
    missing: dict[Part, int] = {}
    sums: dict[Part, int] = {}
    heights: dict[Part, int] = dict.fromkeys(parts, 0)
    heap: list[tuple[int, int, int, Part]] = []  # the count keeps parts of equal work in order
    for part in parts:
        if isinstance(part, Union):
            for branch in part.branches:
                users.setdefault(branch, []).append((part, 1))
            continue
        sums[part] = part.own
        missing[part] = len(part.needed)
        for need, times in part.needed:
            users.setdefault(need, []).append((part, times))
        if not part.needed:
            heap.append((part.own, len(heap), 1, part))
    heapq.heapify(heap)
    count = len(heap)
    while heap:
        least, _, height, part = heapq.heappop(heap)
        if part.least < math.inf:
            continue
        part.least, part.height = least, height
        for user, times in users.get(part, ()):
            if isinstance(user, Union):
                if user.least < math.inf:
                    continue
                heapq.heappush(heap, (least + user.own, count, height, user))
            else:
                sums[user] += least * times
                missing[user] -= 1
                heights[user] = max(heights[user], height)
                if missing[user]:
                    continue
                heapq.heappush(heap, (sums[user], count, heights[user] + 1, user))
            count += 1
