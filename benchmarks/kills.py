"""What a SIGKILL leaves: `profiler compare`, one of its processes killed at a random moment, many times.

    python benchmarks/kills.py [--kills 50] [--seed 1] [--only worker]
    python benchmarks/kills.py --rounds 50 [--seed 1] [--beside 2]

Victims take turns: the command itself, its Locust process, one of two workers, the emulator. The
moment is drawn from the whole life of a run, every second time (`+`) from when its loops run on.
After each the run directory has to open and to hold every loop that the emulator's journal called
finished a second before the kill, `profiler report` has to work, the exit code to be the documented
one, and nothing of ours to run any more. Linux.

With `--rounds`: a Locust master, three workers and the emulator in processes of their own, disturbed up to
three times each, `--beside` of them at a time: workers killed, stopped for a while, cut off or not heard for
a while, the master stopped or killed, the target stopped. By the emulator's journal every loop that began is
recorded, but for those in flight on a worker that was lost; what is recorded was never more at a time than
was asked for; no worker that was lost begins anything; the test ends, and leaves no process.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.integration.disturb import USERS, Round, disturb_one, schedule
from tests.integration.kill import VICTIMS, Killed, kill_one

LATEST_SECONDS = 12.0
"""A run is over by then, unless the machine is busy."""

LOOPING_SECONDS = 5.0
"""For so long it runs loops: two strategies, and a drain."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", choices=(*VICTIMS, "interrupt"), help="interrupt: what Ctrl-C sends")
    parser.add_argument("--rounds", type=int, help="disturb a master and three workers so often")
    parser.add_argument("--beside", type=int, default=1, help="rounds that run at the same time")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1_000_000)
    draw = random.Random(seed)
    print(f"seed {seed}, load average {os.getloadavg()[0]:.1f}")
    if arguments.rounds is not None:
        return rounds(arguments.rounds, draw, arguments.beside)
    print(f"{'':>3} {'victim':9} {'after':>6} {'code':>4} {'loops':>6} {'owed':>6} {'kept':>6} {'took':>6}")
    done: list[Killed] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        for number in range(arguments.kills):
            victim = arguments.only or VICTIMS[number % len(VICTIMS)]
            began = time.monotonic()
            looping = number // len(VICTIMS) % 2 == 1
            after = draw.uniform(0.0, LOOPING_SECONDS if looping else LATEST_SECONDS)
            one = kill_one(Path(place, str(number)), victim, after, once_loops_run=looping)
            took = time.monotonic() - began
            done.append(one)
            at = "over" if one.after < 0 else f"{'+' if looping else ''}{one.after:.2f}"
            print(
                f"{number + 1:3} {victim:9} {at:>6} {one.code!s:>4} {one.loops:6} {one.owed:6} {one.kept:6} "
                f"{took:5.1f}s {'; '.join(one.wrong) or 'held'}",
                flush=True,
            )
            if one.wrong:
                print("    " + "\n    ".join(one.said.splitlines()[-12:]), flush=True)
    return conclude(done)


def rounds(count: int, draw: random.Random, beside: int) -> int:
    """Run so many rounds; their table."""
    print(
        f"{'':>3} {'code':>4} {'begun':>6} {'kept':>6} {'apart':>5} {'most':>4} of {USERS}, and what was done"
    )
    done: list[Round] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place, ThreadPoolExecutor(beside) as pool:
        plans = [schedule(draw) for _ in range(count)]
        for one in pool.map(disturb_one, [Path(place, str(number)) for number in range(count)], plans):
            done.append(one)
            told = ", ".join(f"{kind} {n}" for kind, n in Counter(one.incidents).items()) or "nothing"
            print(
                f"{len(done):3} {one.code!s:>4} {one.begun:6} {one.recorded:6} {one.in_flight:5} "
                f"{one.most:4} {'; '.join(map(str, one.events))}: told {told}: "
                f"{'; '.join(one.wrong) or 'held'}",
                flush=True,
            )
            if one.wrong:
                with tempfile.NamedTemporaryFile("w", prefix="round-", suffix=".txt", delete=False) as kept:
                    kept.write(one.said)
                print(f"    what they said: {kept.name}", flush=True)
    failed = sum(bool(one.wrong) for one in done)
    begun, kept = sum(one.begun for one in done), sum(one.recorded for one in done)
    print(
        f"\n{count} rounds, {sum(len(one.events) for one in done)} disturbances: {begun} loops began, {kept} "
    )
    print(f"are recorded, {begun - kept} were in flight on a worker that was lost; most at a time ", end="")
    print(f"{max((one.most for one in done), default=0)} of {USERS}: ", end="")
    print("everything held" if not failed else f"{failed} rounds did not hold")
    return 1 if failed else 0


def conclude(done: list[Killed]) -> int:
    print(f"\n{'victim':9} {'kills':>5} {'while loops ran':>15} {'owed':>7} {'kept':>7} {'failed':>6}")
    for victim in dict.fromkeys(one.victim for one in done):
        own = [one for one in done if one.victim == victim and one.after >= 0]
        if own:
            print(
                f"{victim:9} {len(own):5} {sum(one.owed > 0 for one in own):15} {sum(o.owed for o in own):7} "
                f"{sum(o.kept for o in own):7} {sum(bool(o.wrong) for o in own):6}"
            )
    failed = sum(bool(one.wrong) for one in done)
    killed = [one for one in done if one.after >= 0]
    print(f"{len(killed)} kills, {len(done) - len(killed)} runs were over before: ", end="")
    print("everything held" if not failed else f"{failed} did not hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
