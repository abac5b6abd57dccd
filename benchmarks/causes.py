"""Whether the cause of a shortfall is right: loops of four kinds, many ways to run calls, stalls around them.

    python -m benchmarks.causes [--loops 240] [--seed 1] [--burner]

Each loop asks a small server of its own (a process, scripted replies of three APIs) for calls of a tool
and runs them: in turn, a few at once, gathered, as they stream in, in full pools of threads, one at a time
inside the tool, tried again, through tools in tools (`causes_loops.MODES`), while nothing, its own code, or
a stop of the whole process (SIGSTOP by a helper) stalls it somewhere (`STALLS`). Ours is a `ToolLoop`, the
others are watched: a loop by hand, and the runners of both SDKs, async and sync. `--burner` shares one core
with a process that computes.

The truth is how the loop was made; where only a stall can be the cause, how much later than without it the
benchmark's own clock saw the round end: clearly, and the stall must be named, or not, and nothing may be.
Right: what is said is the truth. Wrong: another cause is named. Silent: none is, though there is one. Exits
with 1 where one is wrong, or less than 95 % of the loops that have a cause are right.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.causes_loops import CALLS, MODES, PLACES, STALLS, Case, Stage, Worked, possible

LEAST_RIGHT = 0.95
CLEARLY = (0.2, 0.03)
"""A round that ended later than it could by more than this share of its wall, and these seconds: a cause."""
HARDLY = (0.03, 0.003)
"""And one by less than one of these has none."""

SERVER = Path(__file__).with_name("causes_server.py")

LASTING = {
    ("ours", "threads"): "threads",
    ("ours", "exclusive"): "exclusive",
    ("ours", "lock inside"): "inside_tools",
    ("ours", "slow server"): "inside_tools",
    ("hand", "turn"): "application",
    ("hand", "lock around"): "application",
    ("hand", "limited"): "application_limit",
    ("hand", "pool"): "threads",
    ("hand", "lock inside"): "inside_tools",
    ("hand", "slow server"): "inside_tools",
    ("hand", "sync turn"): "application",
    ("hand", "sync pool"): "threads",
    **{("openai", mode): "openai_runner" for mode in MODES["openai"] if mode != "wide"},
    **{("anthropic", mode): "anthropic_runner" for mode in MODES["anthropic"]},
}
"""The cause that a loop has in each round, whatever stalls it."""


def late_seconds(case: Case, worked: Sequence[Worked]) -> tuple[float, float]:
    """(how much later the round ended than it could have, its wall), for loops without a lasting cause."""
    began, ended = min(one.began for one in worked), max(one.ended for one in worked)
    calls = []
    for x in range(CALLS):
        tries = [one for one in worked if one.x == x]
        late = sum(one.ended - one.began - one.seconds for one in tries)
        calls.append((tries[0].began - began, tries[-1].ended - tries[0].began - late))
    alone = [seconds for _, seconds in calls]
    if case.mode == "turn":
        could = sum(alone)
    elif case.mode == "limited":
        could = max(sum(alone[i::PLACES]) for i in range(PLACES))
    elif case.mode in ("eager", "wide") and case.stall != "gap":
        could = max(start + seconds for start, seconds in calls)
    else:
        could = max(alone)
    return ended - began - could, ended - began


def truth(case: Case, worked: Sequence[Worked]) -> frozenset[str | None]:
    """What may be said."""
    lasting = LASTING.get((case.loop, case.mode))
    if case.stall == "gap" and case.mode == "sync gathered":
        return frozenset(("application",))  # its own code started two of them late
    if case.stall == "gap" and case.mode.endswith("pool") and case.stall_seconds > case.seconds - 0.02:
        # Threads were free by the time that the last two were handed over.
        return frozenset(("threads", "application" if case.mode == "sync pool" else "blocked_loop"))
    if lasting is not None:
        return frozenset((lasting,))
    late, wall = late_seconds(case, worked)
    held = case.stall in ("inside", "gap") and not case.mode.startswith("sync")  # else no loop is stalled
    stall = "blocked_loop" if held else "machine"
    alone = case.stall == "inside" and (
        # No call was there that could have waited for the one that held the loop.
        case.mode == "turn" or (case.mode == "limited" and case.stall_seconds < case.seconds / 2 + 0.01)
    )
    if late < max(HARDLY[1], HARDLY[0] * wall):
        return frozenset((None,))
    if alone:
        return frozenset((None, stall))
    if late > max(CLEARLY[1], CLEARLY[0] * wall) and (held or case.stall == "stopped"):
        return frozenset((stall,))
    return frozenset((None, stall))


def cases(count: int, seed: int) -> list[Case]:
    """So many loops, every combination about as often."""
    choose = random.Random(seed)
    combinations = [
        (loop, mode, stall)
        for loop in MODES
        for mode in MODES[loop]
        for stall in STALLS
        if possible(loop, mode, stall)
    ]
    choose.shuffle(combinations)
    return [
        Case(*one, choose.uniform(0.14, 0.2), choose.uniform(0.1, 0.25))
        for one in itertools.islice(itertools.cycle(combinations), count)
    ]


@dataclass
class Found:
    """Of one combination, or of all."""

    right: int = 0
    wrong: int = 0
    silent: int = 0
    with_cause: int = 0
    right_with_cause: int = 0
    missed: list[Case] = field(default_factory=list)

    def count(self, true: frozenset[str | None], said: str | None) -> None:
        right, has_cause = said in true, None not in true
        self.right += right
        self.silent += not right and said is None
        self.wrong += not right and said is not None
        self.with_cause += has_cause
        self.right_with_cause += has_cause and right


def examine(chosen: list[Case], tell: Callable[[str], object] = print) -> Found:
    """Run the cases; tells of each combination what was right, wrong and silent."""
    server = subprocess.Popen([sys.executable, str(SERVER), str(CALLS)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        stage = Stage(int(server.stdout.readline()))
        found: dict[tuple[str, str, str], Found] = {}
        total, mistakes = Found(), Counter[str]()
        for case in chosen:
            said = asyncio.run(stage.run(case))
            true = truth(case, stage.worked)
            found.setdefault((case.loop, case.mode, case.stall), Found()).count(true, said)
            total.count(true, said)
            if said not in true:
                total.missed.append(case)
                mistakes[
                    f"{case.loop} {case.mode}, {case.stall}: {said}, not {'/'.join(map(str, true))}"
                ] += 1
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()
    tell(f"{'loop':10} {'calls':15} {'stall':8} {'right':>5} {'wrong':>5} {'silent':>6} {'with cause':>10}")
    for (loop, mode, stall), one in sorted(found.items()):
        tell(f"{loop:10} {mode:15} {stall:8} {one.right:5} {one.wrong:5} {one.silent:6} {one.with_cause:10}")
    for mistake, times in mistakes.most_common():
        tell(f"{times} x {mistake}")
    share = total.right_with_cause / max(1, total.with_cause)
    tell(
        f"{len(chosen)} loops: {total.right} right, {total.wrong} wrong, {total.silent} silent; "
        f"{share:.1%} right of {total.with_cause} with a cause"
    )
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loops", type=int, default=240)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--burner", action="store_true")
    options = parser.parse_args()
    burner = None
    if options.burner:
        burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        core = min(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {core})
        os.sched_setaffinity(burner.pid, {core})
    try:
        found = examine(cases(options.loops, options.seed))
    finally:
        if burner is not None:
            burner.kill()
            burner.wait()
    missed = found.wrong > 0 or found.right_with_cause < LEAST_RIGHT * found.with_cause
    print("missed" if missed else "met")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
