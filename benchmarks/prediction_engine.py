"""Events a second of the predictions' engine, with the real limiters, beside a raw heap in the same process.

The raw heap pops an event and calls its function, which pushes the next: as many events under way as the
engine has. Repeats take turns; printed are medians, the engine's events as a share of the heap's, and the
seconds of CPU time of a minute of 100 agents. Then the same of 10,000.

    python -m benchmarks.prediction_engine [--repeats 5] [--seconds 60] [--agents 10000]
"""

from __future__ import annotations

import argparse
import math
import random
import time
from heapq import heappop, heappush
from statistics import median
from typing import Any

from profiler.prediction.servers.calls import Rule
from profiler.prediction.simulation.engine import Simulated, simulate
from profiler.prediction.simulation.load import SimulatedLoad, Trials
from profiler.prediction.simulation.work import CallWork, LoopWork, RoundWork, Server, System
from profiler.strategies import parse_strategy

USERS = 100
UNDER_WAY = 300
TOOLS = ("search", "fetch")
CASES = (
    *(("gathered", kind) for kind in ("none", "refuse", "queue", "share")),
    *((spec, "none") for spec in ("sequential", "semaphore:100", "semaphore:3@agent", "semaphore:60@tool")),
    *((spec, kind) for spec in ("rate:120/s", "adaptive") for kind in ("none", "refuse", "queue")),
    ("semaphore:3@agent+semaphore:100+rate:120/s", "refuse"),
    ("semaphore:100", "share"),
)


def tape(loops: int = 2000, seed: int = 1) -> list[LoopWork]:
    """Loops of one to three rounds of two to six calls."""
    draw = random.Random(seed)

    def ns(middle: float, sigma: float) -> int:
        return int(middle * math.exp(draw.gauss(0, sigma)) * 1e9)

    def calls() -> tuple[CallWork, ...]:
        return tuple(CallWork(draw.randrange(2), ns(0.4, 0.8)) for _ in range(draw.randint(2, 6)))

    return [
        LoopWork(
            (*(RoundWork(ns(0.3, 0.4), calls()) for _ in range(draw.randint(1, 3))), RoundWork(ns(0.3, 0.4)))
        )
        for _ in range(loops)
    ]


def run(spec: str, kind: Any, users: int, seconds: float, work: list[LoopWork]) -> Simulated:
    """One trial; half of the calls go to a server with a capacity of some 0.7 of what gathered calls need."""
    rule = Rule("none") if kind == "none" else Rule(kind, int(0.7 * users))
    servers = (Server("search", rule), Server("fetch", Rule("none")))
    system = System(TOOLS, servers, (0, 1), Server("the model", Rule("none")))
    draw = random.Random(5)
    return simulate(
        system,
        parse_strategy(spec),
        SimulatedLoad(users, spread_seconds=3.0),
        lambda now_ns, source: work[draw.randrange(len(work))],
        Trials(seconds),
    )


def raw_heap(events: int) -> float:
    """Seconds that `events` take on a heap."""
    draw = random.Random(3)
    gaps = [draw.randrange(10**9) for _ in range(4096)]
    heap: list[tuple[int, int, Any, Any]] = []
    made = 0

    def again(argument: tuple[int, int]) -> None:
        nonlocal made
        now, place = argument
        made += 1
        place = (place + 1) & 4095
        due = now + gaps[place]
        heappush(heap, (due, made, again, (due, place)))

    for place in range(UNDER_WAY):
        again((0, place * 13 & 4095))
    began = time.process_time()
    for _ in range(events):
        _, _, function, argument = heappop(heap)
        function(argument)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each trial, in virtual time")
    parser.add_argument("--agents", type=int, default=10_000, help="of the large trials; 0: none")
    options = parser.parse_args()
    work = tape()
    print(
        f"{'strategy':44} {'server':7} {'events':>8} {'a second':>9} {'raw heap':>9} {'of it':>6} "
        f"{'CPU time':>11}"
    )
    for spec, kind in CASES:
        rates, heaps, took, count = [], [], [], 0
        for _ in range(options.repeats):
            heaps.append(200_000 / raw_heap(200_000))
            began = time.process_time()
            count = run(spec, kind, USERS, options.seconds, work).events
            took.append(time.process_time() - began)
            rates.append(count / took[-1])
        share = median(a / b for a, b in zip(rates, heaps, strict=True))
        print(
            f"{spec:44} {kind:7} {count:8,} {median(rates):9,.0f} {median(heaps):9,.0f} {share:6.2f} "
            f"{median(took):9.2f} s",
            flush=True,
        )
    for spec, kind in (
        ("gathered", "none"),
        ("semaphore:7000", "queue"),
        ("adaptive", "refuse"),
        ("gathered", "share"),
    ):
        if not options.agents:
            break
        began = time.process_time()
        found = run(spec, kind, options.agents, options.seconds, work)
        seconds = time.process_time() - began
        print(
            f"{options.agents:,} agents, {spec}, {kind}: {found.events:,} events in {seconds:.1f} s, "
            f"{found.events / seconds:,.0f} a second; {len(found.trials[0].due):,} loops",
            flush=True,
        )


if __name__ == "__main__":
    main()
