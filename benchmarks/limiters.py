"""What our limiters do and cost: waits, rates, herds, and what adapts after the capacity has changed.

    python benchmarks/limiters.py             all on the virtual clock, and the short real ones
    python benchmarks/limiters.py --minute    the rate over a real minute too

`simulate` runs agents against a server that refuses what exceeds its capacity, with the very gate and
limiters of production, on an event loop whose clock jumps. The emulator's turn is in
`benchmarks/adaptive.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from profiler.limits.gate import Gate, Lane
from profiler.limits.limiter import UNTIL_RELEASE, Cost, FixedLimit, Limiter, RateLimit, Signal, Ticket
from profiler.limits.refusals import delay_ns, spread_ns
from profiler.limits.spec import Rule
from profiler.testing import run_virtual

SECOND = 1_000_000_000


class PlainAimd:
    """AIMD as in Netflix' concurrency-limits: ×0.9 at every rejection, +1 for every success at half load."""

    def __init__(self, start: int = 20, most: int = 1000) -> None:
        self.exact = float(start)
        self.inside = 0
        self._most = most

    @property
    def limit(self) -> int:
        return int(self.exact)

    def wait_ns(self, now_ns: int, cost: Cost) -> int:
        return 0 if self.inside < int(self.exact) else UNTIL_RELEASE

    def enter(self, now_ns: int, cost: Cost) -> Ticket:
        self.inside += 1

    def leave(self, now_ns: int, ticket: Ticket, signal: Signal, used: Cost | None) -> None:
        busy = self.inside * 2 >= self.exact
        self.inside -= 1
        if signal in ("rejected", "timeout"):
            self.exact = max(1.0, self.exact * 0.9)
        elif signal == "ok" and busy:
            self.exact = min(self._most, self.exact + 1)


@dataclass(frozen=True)
class Foreign(Rule):
    """The rule of a limiter that is none of the package's."""

    limiter: Callable[[], Limiter] = PlainAimd

    def make(self, share: int = 1) -> Limiter:
        return self.limiter()


AIMD = (Foreign("aimd", "adaptive"),)


class Refused(Exception):
    """A 429."""

    def __init__(self) -> None:
        super().__init__(429)
        self.response = type("Response", (), {"status_code": 429, "headers": {}})()


@dataclass
class Server:
    """Serves `capacity(t)` calls at once, refuses the rest at once."""

    capacity: Callable[[float], int]
    running: int = 0
    refused: int = 0
    served: int = 0

    async def serve(self, at: float, seconds: float) -> None:
        if self.running >= self.capacity(at):
            self.refused += 1
            await asyncio.sleep(0.002)
            raise Refused
        self.running += 1
        try:
            await asyncio.sleep(seconds)
            self.served += 1
        finally:
            self.running -= 1


@dataclass
class Simulated:
    """Rounds of a simulation: (started, ended, every call answered), and the limit over time."""

    rounds: list[tuple[float, float, bool]] = field(default_factory=list)
    limits: list[tuple[float, int | None]] = field(default_factory=list)
    refused: int = 0

    def goodput(self, slo: float, start: float, end: float) -> float:
        """Rounds a second that ended in the span, every call answered, within `slo` seconds."""
        good = [r for r in self.rounds if start <= r[1] < end and r[2] and r[1] - r[0] <= slo]
        return len(good) / (end - start)

    def row(self, slo: float, start: float, end: float) -> str:
        walls = sorted(r[1] - r[0] for r in self.rounds if start <= r[0] < end and r[2])
        tried = [r for r in self.rounds if start <= r[0] < end]
        failed = sum(not r[2] for r in tried) / max(1, len(tried))
        quantiles = statistics.quantiles(walls, n=20) if len(walls) > 20 else [math.nan] * 19
        return (
            f"{quantiles[9]:4.1f}/{quantiles[18]:4.1f} · {failed:4.0%} · {self.goodput(slo, start, end):5.2f}"
        )


def simulate(
    strategy: str,
    *,
    agents: int,
    capacity: Callable[[float], int],
    seconds: float,
    think: float = 6.0,
    calls: int = 8,
    sigma: float = 1.0,
    retries: int = 2,
    seed: int = 1,
) -> Simulated:
    """Agents that think, then make a round of calls, over and over; durations are lognormal with mean 1 s.

    `strategy`: `sequential`, `gathered`, `aimd`, `oracle` (a semaphore that knows the capacity, and its
    changes), or the limiters of a `Gate`.
    """
    outcome = Simulated()
    server = Server(capacity)
    oracle = FixedLimit(capacity(0))

    async def main(clock: Callable[[], int]) -> None:
        gate: Gate | None = None
        if strategy == "oracle":
            gate = Gate([Foreign("oracle", "adaptive", limiter=lambda: oracle)], clock=clock)
        elif strategy not in ("sequential", "gathered"):
            gate = Gate(AIMD if strategy == "aimd" else strategy, clock=clock)

        async def one(draw: random.Random, number: int) -> bool:
            duration = draw.lognormvariate(-sigma * sigma / 2, sigma)
            for attempt in range(1, retries + 2):
                try:
                    if gate is None:
                        await server.serve(clock() / 1e9, duration)
                    else:
                        async with gate.slot(agent=str(number)):
                            await server.serve(clock() / 1e9, duration)
                except Refused:
                    if attempt <= retries:
                        await asyncio.sleep(delay_ns(attempt, "rejected", None, draw) / 1e9)
                else:
                    return True
            return False

        async def agent(number: int) -> None:
            draw = random.Random(f"{seed}/{number}")
            await asyncio.sleep(draw.random() * think)
            while clock() < seconds * 1e9:
                await asyncio.sleep(draw.expovariate(1 / think))
                began = clock() / 1e9
                if strategy == "sequential":
                    answered = [await one(draw, number) for _ in range(calls)]
                else:
                    answered = await asyncio.gather(*(one(draw, number) for _ in range(calls)))
                outcome.rounds.append((began, clock() / 1e9, all(answered)))

        async def watch() -> None:
            while clock() < seconds * 1e9:
                now = clock() / 1e9
                oracle.limit = capacity(now)
                outcome.limits.append((now, gate.limit if gate is not None else None))
                await asyncio.sleep(0.25)

        await asyncio.gather(watch(), *(agent(number) for number in range(agents)))

    run_virtual(main)
    outcome.refused = server.refused
    return outcome


def crowded() -> None:
    print("simulated: p50/p95 s of rounds without failure · failed rounds · goodput (SLO 10 s), C = capacity")
    loads = ((20, 50), (20, 20), (40, 50), (60, 50))
    print(f"{'':22s}" + "".join(f"{f'{agents} agents, C={c}':>26s}" for agents, c in loads))
    for strategy in ("sequential", "gathered", "semaphore:4@agent", "oracle", "adaptive", "aimd"):
        cells = [
            simulate(strategy, agents=agents, capacity=lambda at, c=c: c, seconds=220).row(10, 20, 220)
            for agents, c in loads
        ]
        print(f"{strategy:22s}" + "".join(f"{cell:>26s}" for cell in cells))


STEP = 80.0
"""Seconds at each capacity, in mean durations of a call: twice what it may take to adapt."""


def steps(capacity: int = 50, agents: int = 60, repeats: int = 3, retries: int = 2) -> None:
    """The capacity falls to 40 % and comes back; goodput from 40 mean durations after each change on."""
    spans = [("100 %", 40, STEP), ("40 %", STEP + 40, 2 * STEP), ("100 % again", 2 * STEP + 40, 3 * STEP)]

    def available(at: float) -> int:
        return round(capacity * (0.4 if STEP <= at < 2 * STEP else 1.0))

    print(
        f"simulated step of the capacity {capacity} → {available(STEP)} → {capacity}, {agents} agents, "
        f"{retries} retries:"
    )
    oracle: list[float] = []
    for strategy in ("oracle", "adaptive", "aimd", "gathered"):
        runs = [
            simulate(
                strategy, agents=agents, capacity=available, seconds=3 * STEP, seed=seed, retries=retries
            )
            for seed in range(repeats)
        ]
        found = [statistics.mean(run.goodput(20, start, end) for run in runs) for _, start, end in spans]
        oracle = oracle or found
        shares = "  ".join(
            f"{name} {good:5.2f} ({good / best:4.0%})"
            for (name, _, _), good, best in zip(spans, found, oracle, strict=True)
        )
        print(f"  {strategy:10s} {shares}   refused {statistics.mean(r.refused for r in runs):6.0f}")


def waiting(count: int = 10_000) -> float:
    """µs that one gate costs each of `count` calls that wait for it at the same time."""

    async def run(gated: bool) -> float:
        gate = Gate("semaphore:1")

        async def call() -> None:
            if gated:
                async with gate.slot("get_weather"):
                    await asyncio.sleep(0)
            else:
                await asyncio.sleep(0)

        began = time.process_time()
        tasks = [asyncio.create_task(call()) for _ in range(count)]
        await asyncio.gather(*tasks)
        return (time.process_time() - began) / count * 1e6

    free = min(asyncio.run(run(False)) for _ in range(3))
    return min(asyncio.run(run(True)) for _ in range(3)) - free


def rate_kept(rate: float, seconds: float, *, virtual: bool) -> tuple[float, bool, bool]:
    """(accepted / limit at 2× overload, in order of arrival, the large call in its turn)."""

    async def main(clock: Callable[[], int]) -> tuple[float, bool, bool]:
        lane = Lane(RateLimit(rate), clock)
        arrived: list[int] = []
        entered: list[int] = []
        large = int(rate * seconds / 2)
        start = clock()

        async def call(number: int) -> None:
            arrived.append(number)
            ticket = await lane.enter({"requests": 20.0 if number == large else 1.0})
            if clock() - start < seconds * 1e9:
                entered.append(number)
            lane.leave(ticket)

        waits = []
        for number in range(int(2 * rate * seconds)):
            due = number / (2 * rate)
            if (ahead := due - (clock() - start) / 1e9) > 0:
                await asyncio.sleep(ahead)
            waits.append(asyncio.create_task(call(number)))
        await asyncio.sleep(0)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        in_order = entered == [number for number in arrived if number in set(entered)]
        cost = len(entered) + (19 if large in entered else 0)
        return cost / (rate * seconds), in_order, large in entered

    if virtual:
        return run_virtual(main)
    return asyncio.run(main(time.monotonic_ns))


def herd(agents: int = 100, capacity: int = 20, seconds: float = 0.05) -> None:
    """All agents are refused at once and told to come back in 1 s."""

    def run(exact: bool) -> tuple[float, float]:
        async def main(clock: Callable[[], int]) -> tuple[float, float]:
            running, attempts, draw = 0, 0, random.Random(1)

            async def agent() -> None:
                nonlocal running, attempts
                first = True
                while True:
                    attempts += 1
                    if not first and running < capacity:
                        running += 1
                        await asyncio.sleep(seconds)
                        running -= 1
                        return
                    first = False
                    jitter = 0 if exact else int(draw.random() * spread_ns(SECOND))
                    await asyncio.sleep((SECOND + jitter) / 1e9)

            await asyncio.gather(*(agent() for _ in range(agents)))
            return attempts / agents, clock() / 1e9

        return run_virtual(main)

    print(
        f"{agents} agents refused at once, Retry-After 1 s, then {capacity} served at once for {seconds:g} s:"
    )
    for name, exact in (("exact wait, as the SDKs do", True), ("with our jitter", False)):
        attempts, took = run(exact)
        print(f"  {name:28s} {attempts:5.2f} attempts an operation, all served after {took:5.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minute", action="store_true", help="the rate over a real minute too")
    arguments = parser.parse_args()
    print(f"10,000 calls that wait on one gate: {waiting():.1f} µs a call")
    for rate, seconds, virtual in ((10, 60, True), (200, 60, True), (1000, 60, True), (100, 5, False)):
        share, ordered, large = rate_kept(rate, seconds, virtual=virtual)
        print(
            f"rate:{rate}/s at twice that for {seconds} {'virtual' if virtual else 'real'} s: "
            f"{share:.4f} of the limit, in order: {ordered}, large call in its turn: {large}"
        )
    if arguments.minute:
        print("a real minute:", rate_kept(100, 60, virtual=False))
    herd()
    crowded()
    for capacity, agents in ((50, 60), (20, 24)):
        for retries in (2, 0):
            steps(capacity, agents, retries=retries)


if __name__ == "__main__":
    main()
