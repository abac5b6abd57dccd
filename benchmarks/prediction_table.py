"""Predicted figures beside those of the runs: the table, and how good predictions are, against the goals.

The error of a time or a rate is relative to the run's; that of a share is in points. A band holds where the
run's figure is within it. Two strategies under the same load of the same server are told apart by the runs
where the intervals of a figure do not overlap. Runs that a busy machine spoiled are shown, and not counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

Figure = tuple[float, float | None, float | None]
"""Value, low, high."""

GOALS = {
    "p50": 0.03,
    "p95": 0.05,
    "throughput": 0.02,
    "goodput": 0.02,
    "failure_rate": 0.02,
    "refused_share": 0.02,
}
SHARES = ("failure_rate", "refused_share")
"""Figures whose errors are in points."""
RANKED = {"p50": 1, "p95": 1, "throughput": -1, "goodput": -1}
"""1 where less is better."""
FEWEST_WITH_NUMBERS, BANDS_HOLD, RANKED_RIGHT, FAR = 10 / 12, 0.88, 0.95, 0.10


@dataclass(frozen=True)
class Pair:
    """A cell: what a run found, and what was predicted (`said`: why something was not)."""

    server: str
    strategy: str
    users: int
    truth: Mapping[str, Figure]
    predicted: Mapping[str, Figure]
    said: tuple[str, ...] = ()
    valid: bool = True

    @property
    def name(self) -> str:
        return f"{self.server} {self.strategy} {self.users}"


@dataclass(frozen=True)
class Compared:
    """One figure of a cell. `error` and `half_width` are shares, of the run's figure or of the whole."""

    cell: str
    name: str
    truth: float
    predicted: Figure
    error: float
    half_width: float | None
    inside: bool | None


def compared(pair: Pair) -> list[Compared]:
    """The figures of a cell that were both predicted and found."""
    found = []
    for name, (truth, *_) in pair.truth.items():
        if name not in pair.predicted:
            continue
        value, low, high = pair.predicted[name]
        whole = 1.0 if name in SHARES else truth
        if not whole:  # no rate to be relative to
            continue
        half_width = inside = None
        if low is not None and high is not None:
            half_width, inside = (high - low) / 2 / whole, low <= truth <= high
        error = (value - truth) / whole
        found.append(Compared(pair.name, name, truth, pair.predicted[name], error, half_width, inside))
    return found


def separated(pairs: Iterable[Pair]) -> list[tuple[str, bool]]:
    """What the runs tell apart (`server load figure: one before other`); whether the prediction agrees."""
    same: dict[tuple[str, int], list[Pair]] = defaultdict(list)
    for pair in pairs:
        same[pair.server, pair.users].append(pair)
    found = []
    for (server, users), cells in same.items():
        for one, other in combinations(cells, 2):
            for name, sign in RANKED.items():
                if any(name not in figures for c in (one, other) for figures in (c.truth, c.predicted)):
                    continue
                (mine, my_low, my_high), (its, its_low, its_high) = one.truth[name], other.truth[name]
                if my_low is None or my_high is None or its_low is None or its_high is None:
                    continue
                if my_low <= its_high and its_low <= my_high:
                    continue
                predicted = one.predicted[name][0] - other.predicted[name][0]
                better = one if sign * (mine - its) < 0 else other
                right = sign * (mine - its) * sign * predicted > 0
                worse = other if better is one else one
                said = f"{server} {users} {name}: {better.strategy} before {worse.strategy}"
                found.append((said, right))
    return found


def _percent(value: float | None, width: int = 0, *, signed: bool = False) -> str:
    shown = "–" if value is None else f"{100 * value:{'+' if signed else ''}.1f}"
    return shown.rjust(width)


def _each(pairs: Sequence[Pair]) -> Iterable[str]:
    yield f"{'cell':34} {'figure':14} {'run':>8} {'predicted':>9} {'band':>19} {'error':>7} {'half':>6}"
    for pair in pairs:
        rows = compared(pair)
        flag = "" if pair.valid else "  (the run is invalid)"
        if not rows:
            yield f"{pair.name:34} no figure: {' '.join(pair.said) or 'nothing said'}{flag}"
        for row in rows:
            value, low, high = row.predicted
            band = "–" if low is None or high is None else f"{low:.3g} to {high:.3g}"
            held = {True: "", False: "  OUTSIDE", None: "  no band"}[row.inside]
            yield (
                f"{pair.name:34} {row.name:14} {row.truth:8.3g} {value:9.3g} {band:>19} "
                f"{_percent(row.error, 7, signed=True)} {_percent(row.half_width, 6)}{held}{flag}"
            )
        if rows and pair.said:
            yield f"{pair.name:34} said: {' '.join(pair.said)}"


def report(pairs: Sequence[Pair], say: Callable[[str], None] = print) -> int:
    """Print the table and what it comes to; 0 where every goal is met."""
    for line in _each(pairs):
        say(line)
    met = []

    def judge(said: str, holds: bool | None) -> None:
        met.append(holds is not False)
        say(f"{said}{'' if holds is None else '  ok' if holds else '  MISSED'}")

    say("")
    pairs = [pair for pair in pairs if pair.valid]
    rows = [row for pair in pairs for row in compared(pair)]
    numbered = sum(bool(compared(pair)) for pair in pairs)
    enough = numbered >= FEWEST_WITH_NUMBERS * len(pairs)
    judge(f"cells with a number: {numbered} of {len(pairs)} (goal: 10 of 12)", enough and bool(pairs))
    say(f"figures: {len(rows)}")
    # That nothing fails where nothing could is no feat: such shares are not in what follows.
    rows = [row for row in rows if row.name not in SHARES or row.truth or row.predicted[0]]
    for name, goal in GOALS.items():
        mine = [row for row in rows if row.name == name]
        if not mine:
            continue
        unit = "points" if name in SHARES else "%"
        error = median(abs(row.error) for row in mine)
        widest = max(abs(row.error) for row in mine)
        said = f"{name}: median error {_percent(error)} {unit} (goal {_percent(goal)})"
        judge(f"{said}, largest {_percent(widest)}", error <= goal)
        widths = [row.half_width for row in mine if row.half_width is not None]
        if widths:
            half = median(widths)
            judge(
                f"{name}: median half-width {_percent(half)} {unit} (goal {_percent(2 * goal)})",
                half <= 2 * goal,
            )
    bands = [row for row in rows if row.inside is not None and row.name in GOALS]
    if bands:
        share = sum(bool(row.inside) for row in bands) / len(bands)
        judge(f"bands that hold: {_percent(share)} % of {len(bands)} (goal 88)", share >= BANDS_HOLD)
        for name in GOALS:
            mine = [row for row in bands if row.name == name]
            if mine:
                say(f"  {name}: {sum(bool(row.inside) for row in mine)} of {len(mine)}")
    ranked = separated(pairs)
    if ranked:
        right = sum(one for _, one in ranked) / len(ranked)
        judge(f"ranked right: {_percent(right)} % of {len(ranked)} (goal 95)", right >= RANKED_RIGHT)
        for said, one in ranked:
            if not one:
                say(f"  wrong: {said}")
    for row in rows:
        if row.name in RANKED and abs(row.error) > FAR:
            say(f"beyond 10 %: {row.cell} {row.name} {_percent(row.error, signed=True)} %")
    return 0 if all(met) else 1
