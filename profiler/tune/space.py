"""What is predicted before anything long is measured. Pure.

Limits far apart first, then closer and closer around the best (by halving the ratio to its neighbours);
limits for each tool by going up and down with one at a time. All on the same replicates, so that two settings
are compared under the same work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from profiler.over import LARGEST, Over
from profiler.strategies import Knob, StrategySpec
from profiler.tune.dial import Dial
from profiler.tune.scores import Ask, Scored

COARSE = 7
"""Values of a limit that are predicted first."""

MOST_STEPS = 8
"""Times that the search comes closer."""

CLOSE = 1.04
"""Two limits within this ratio are not told apart by any measurement: nothing lies between them."""

MOVES = (0.8, 1.25)
"""Of the limit of one tool, while those of the others stay."""


@dataclass(frozen=True, slots=True)
class Space:
    """All that may be tried. `kinds` have no number; `rates` are calls a second.

    `dials` are limits of which one is set at a time, each with its lowest and highest sensible value, and
    `named` those of tools and MCP servers that are set together, with what each is known to serve at once (0:
    not known). `free`: a tool may also have no limit. `likely` are shared limits that were seen to matter.
    """

    kinds: tuple[str, ...]
    dials: tuple[tuple[Dial, int, int], ...]
    named: tuple[tuple[Dial, int], ...] = ()
    free: bool = False
    likely: tuple[int, ...] = ()
    rates: tuple[str, ...] = field(default=())

    def first(self) -> list[str]:
        """What to predict first."""
        specs = [*self.kinds, *self.rates]
        if any(capacity for _, capacity in self.named):
            specs += self._beginnings({})
        for dial, low, high in self.dials:
            ratio = max(high, low) / low
            spaced = [low * ratio ** (k / (COARSE - 1)) for k in range(COARSE)]
            likely = self.likely if dial.knob.shared else ()
            values = dial.distinct([*likely, *spaced])
            specs += map(dial.spec, values)
        return [*dict.fromkeys(specs)]

    def nearer(self, found: Mapping[str, Scored]) -> list[str]:
        """What to predict next, given what was so far; empty when there is nothing left between."""
        specs: list[str] = []
        for dial, _, _ in self.dials:
            specs += map(dial.spec, _between(dial, found))
        return [spec for spec in (*specs, *self._by_name(found)) if spec not in found]

    def _by_name(self, found: Mapping[str, Scored]) -> list[str]:
        """Limits of several tools at once, one step from the best of them."""
        if not self.named:
            return []
        limits = [one for one in found.values() if one.scores and self._limits(one.spec) is not None]
        if not limits:
            return self._beginnings(found)
        best = max(limits, key=lambda one: (one.value, -len(one.spec)))
        now = self._limits(best.spec) or {}
        specs = []
        for dial, _ in self.named:
            name = dial.knob.written
            for move in MOVES if name in now else ():
                value = dial.nearest(now[name] * move)
                if value == now[name]:
                    value = dial.nearest(value + (1 if move > 1 else -1))
                specs.append(named_spec({**now, name: value}))
            if self.free and name in now and len(now) > 1:
                specs.append(named_spec({key: value for key, value in now.items() if key != name}))
        return specs

    def _beginnings(self, found: Mapping[str, Scored]) -> list[str]:
        """Each tool's limit at what its server is known to serve, else at the best shared limit so far."""
        shared = [dial for dial, _, _ in self.dials if dial.knob.shared]
        best = 0
        for dial in shared:
            tried = _values(dial, found)
            best = max(tried, key=lambda value: tried[value]) if tried else 0
        every, known = {}, {}
        for dial, capacity in self.named:
            value = capacity or best or dial.high if capacity or best or dial.high < LARGEST else 0
            if value:
                every[dial.knob.written] = dial.nearest(value)
            if capacity:
                known[dial.knob.written] = dial.nearest(capacity)
        sets = [every, known] if self.free else [every]
        return [*dict.fromkeys(named_spec(one) for one in sets if one)]

    def _limits(self, spec: str) -> dict[str, int] | None:
        """The limits of a spec that are all those of named tools or servers; None for another one."""
        names = {dial.knob.written for dial, _ in self.named}
        limits = {}
        for rule in StrategySpec.recorded(spec).rules:
            name = Knob(tool=rule.tool, server=rule.server).written
            if rule.fixed_limit is None or name not in names or (rule.tool or rule.server) is None:
                return None
            limits[name] = rule.fixed_limit
        return limits or None


def named_spec(limits: Mapping[str, int]) -> str:
    """`semaphore:a=8,b=4`, of limits by the names of their knobs (`semaphore:a`)."""
    return "semaphore:" + ",".join(f"{name.partition(':')[2]}={value}" for name, value in limits.items())


def _values(dial: Dial, found: Mapping[str, Scored]) -> dict[int, float]:
    values = {dial.value(spec): one for spec, one in found.items()}
    return {value: one.value for value, one in values.items() if value is not None and one.scores}


def _between(dial: Dial, found: Mapping[str, Scored]) -> list[int]:
    """Values halfway, by ratio, from the best to its neighbours of those that were predicted."""
    scores = _values(dial, found)
    if not scores:
        return []
    tried = sorted(value for spec in found if (value := dial.value(spec)) is not None)
    best = max(scores, key=lambda value: scores[value])
    place = tried.index(best)
    neighbours = (tried[max(0, place - 1)], tried[min(len(tried) - 1, place + 1)])
    halfway = [
        dial.nearest(round(math.sqrt(best * one)))
        for one in neighbours
        if one != best and max(one / best, best / one) > CLOSE
    ]
    return [value for value in dict.fromkeys(halfway) if value not in tried]


def explore(space: Space, ask: Ask, replicates: int, in_time: Callable[[], bool]) -> dict[str, Scored]:
    """Predictions of the space, closer and closer around the best."""
    found: dict[str, Scored] = {}
    asked = space.first()
    for _ in range(MOST_STEPS):
        found |= {one.spec: one for one in ask(asked, replicates)}
        asked = space.nearer(found)
        if not asked or not in_time():
            break
    return found


def space_of(
    over: Sequence[Over],
    dial: Dial,
    *,
    servers: Sequence[tuple[str, int]],
    peak: int,
    widest: int,
    sharing: int = 1,
    rates: Sequence[str] = (),
) -> Space:
    """The space that `--over` names. `servers`: each one's name as a limit has it, and how many calls it is
    known to serve at once (0: not known).

    `peak`: calls of all agents that gathering ran at once, `widest` those of one agent. Each of `sharing`
    processes has a limit of its own. A `semaphore` without values stands for its other forms as well.
    """
    kinds = [dial.baseline, *(part.kind for part in over if part.kind in ("adaptive", "sequential"))]
    dials, named = [], []
    free = False
    capacity = dict(servers)
    known = [served for _, served in servers if served]
    for part in over:
        knob = part.knob
        if part.kind != "semaphore" or knob is None:
            continue
        of = Dial(knob, part.values or dial.values)
        if knob.tool or knob.server:
            named.append((of, capacity.get(knob.written.partition(":")[2], 0)))
            continue
        dials.append(_ranged(of, peak, widest, sharing))
        if knob.shared and part.given is None:
            free = True
            if widest > 1:
                dials.append(_ranged(Dial(Knob(scope="agent")), peak, widest, sharing))
            if len(servers) > 1:
                named += [(Dial(_knob(name)), math.ceil(served / sharing)) for name, served in servers]
    asked = {one.knob.written for one, _ in named}
    alone = len(asked) == 1
    if alone:  # one limit of a tool: its values as those of any other
        dials += [_ranged(one, peak, widest, sharing) for one, _ in named]
        named = []
    sums = [sum(known), *known, *(0.97 * one for one in known)] if known else []
    likely = [one for one in (math.floor(total / sharing) for total in sums) if one >= 1]
    return Space(
        tuple(dict.fromkeys(kinds)),
        tuple(dials),
        tuple(named),
        free,
        tuple(dict.fromkeys(likely)),
        tuple(rates),
    )


def _knob(name: str) -> Knob:
    if name.endswith("/*"):
        return Knob(scope="server", server=name.removesuffix("/*"))
    return Knob(scope="tool", tool=name)


def _ranged(dial: Dial, peak: int, widest: int, sharing: int) -> tuple[Dial, int, int]:
    """A limit with the values between which it can make a difference."""
    most = widest if dial.knob.scope == "agent" else math.ceil(peak / sharing)
    low = dial.low if dial.knob.scope == "agent" else max(1, most // 32)
    return dial, dial.nearest(low), dial.nearest(max(most, 1))
