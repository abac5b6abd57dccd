"""Servers of known rules are simulated here, by events of their own, and must be told from their calls."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np
import pytest

from profiler.prediction.servers.calls import Calls, Rule, in_flight, service_times
from profiler.prediction.servers.centring import OwnCalls
from profiler.prediction.servers.identify import Finding, identify
from profiler.prediction.servers.likelihood import Evidence
from profiler.prediction.servers.queueing import _other_reason

NEVER = math.inf


@dataclass
class Server:
    """`arrive` returns None, or after how many seconds a refused call may try again."""

    kind: str
    capacity: int = 0
    queue: int | None = None
    rate: float = 0.0
    burst: float = 0.0
    slower: Callable[[int], float] = lambda running: 1.0
    standstills: tuple[tuple[float, float], ...] = ()
    running: list[tuple[float, int]] = field(default_factory=list)
    waiting: deque[tuple[int, float]] = field(default_factory=deque)
    done: float = 0.0  # of each call that shares, in seconds of a server
    now: float = 0.0
    tokens: float = 0.0

    def __post_init__(self) -> None:
        self.tokens = self.burst

    def speed(self) -> float:
        return min(1.0, self.capacity / max(1, len(self.running)))

    def move(self, now: float) -> None:
        self.done += (now - self.now) * self.speed() if self.kind == "share" else 0.0
        self.tokens = min(self.burst, self.tokens + (now - self.now) * self.rate)
        self.now = now

    def next(self) -> float:
        if not self.running:
            return NEVER
        first = self.running[0][0]
        return self.now + max(0.0, first - self.done) / self.speed() if self.kind == "share" else first

    def arrive(self, key: int, work: float) -> float | None:
        if self.rate and self.tokens < 1:
            return (1 - self.tokens) / self.rate
        if self.kind == "share":
            heapq.heappush(self.running, (self.done + work, key))
        elif self.kind in ("none", "rate") or len(self.running) < self.capacity:
            self.serve(key, work)
        elif self.kind == "refuse" or (self.queue is not None and len(self.waiting) >= self.queue):
            return 0.0
        else:
            self.waiting.append((key, work))
        self.tokens -= 1 if self.rate else 0
        return None

    def serve(self, key: int, work: float) -> None:
        end = self.now + work * self.slower(len(self.running) + 1)
        for since, until in self.standstills:
            end += until - max(since, self.now) if self.now < until and end > since else 0.0
        heapq.heappush(self.running, (end, key))

    def pop(self) -> int:
        _, key = heapq.heappop(self.running)
        if self.waiting:
            self.serve(*self.waiting.popleft())
        return key


@dataclass
class Loop:
    agent: int
    number: int
    rounds: int
    factor: float
    open: int = 0


@dataclass
class Call:
    loop: Loop
    work: float
    tries: int = 0
    started: float = 0.0


def service(chance: random.Random, distribution: str) -> float:
    """A draw with mean one."""
    if distribution == "constant":
        return 1.0
    if distribution == "exponential":
        return chance.expovariate(1.0)
    if distribution == "lognormal":
        return math.exp(chance.gauss(0.0, 1.0) - 0.5)
    if distribution == "bimodal":
        return (5.0 if chance.random() < 0.2 else 1.0) / 1.8
    return chance.uniform(0.5, 1.5)


def simulate(
    server: Server,
    *,
    seed: int = 1,
    distribution: str = "exponential",
    mean: float = 0.1,
    levels: tuple[int, ...] = (2, 6, 12, 20),
    seconds: float = 8.0,
    fan: int = 4,
    limit: int | None = None,
    correlated: float = 0.0,
    uneven: float = 0.0003,
    drift: Callable[[float], float] = lambda now: 1.0,
    block: int | None = None,
    wider: float = 0.0,
) -> tuple[Calls, np.ndarray]:
    """The calls of trials with each number of agents in turn, from empty until drained; and the true work.

    Loops of three rounds, each of 1 to 2 `fan` - 1 calls that start almost together, and a model that takes
    about as long as a call. `limit` calls at once leave the clients. Calls of a loop have a common factor
    (lognormal, sigma `correlated`); what a client sees is late by `uneven` seconds on average. Refused calls
    are tried again, three times. A `block` has so many trials, of the same levels as every other block. Calls
    of rounds with k calls take k ** `wider` times as long.
    """
    chance = random.Random(seed)
    numbers = count()
    rows: list[tuple[float, float, bool, int, int, float]] = []

    def run(trial: int, agents: int, begun: float) -> float:
        events: list[tuple[float, int, Callable[[float], None]]] = []
        under_way: dict[int, Call] = {}
        held: deque[Call] = deque()
        places = limit or 10**9
        until, latest = begun + seconds, begun

        def at(when: float, what: Callable[[float], None]) -> None:
            heapq.heappush(events, (when, next(numbers), what))

        def late() -> float:
            return chance.expovariate(1 / uneven) if uneven else 0.0

        def start(agent: int) -> Callable[[float], None]:
            def it(now: float) -> None:
                factor = math.exp(chance.gauss(0.0, correlated) - correlated**2 / 2)
                at(now + mean * chance.uniform(0.5, 1.5), round_(Loop(agent, next(numbers), 3, factor)))

            return it

        def round_(loop: Loop) -> Callable[[float], None]:
            def it(now: float) -> None:
                loop.open = chance.randint(1, 2 * fan - 1)
                for n in range(loop.open):
                    work = service(chance, distribution) * mean * loop.factor * drift(now)
                    work *= (loop.open / fan) ** wider
                    at(now + n * 2e-5, queued(Call(loop, work)))

            return it

        def queued(call: Call) -> Callable[[float], None]:
            def it(now: float) -> None:
                nonlocal places
                if places:
                    places -= 1
                    send(call, now)
                else:
                    held.append(call)

            return it

        def send(call: Call, now: float) -> None:
            call.started = now
            at(now + late() / 2, arrived(call))

        def arrived(call: Call) -> Callable[[float], None]:
            def it(now: float) -> None:
                server.move(now)
                key = next(numbers)
                retry = server.arrive(key, call.work)
                if retry is None:
                    under_way[key] = call
                else:
                    at(now + late() + 3e-4, refused(call, retry))

            return it

        def refused(call: Call, retry: float) -> Callable[[float], None]:
            def it(now: float) -> None:
                rows.append((call.started, now, True, trial, call.loop.number, -1.0))
                call.tries += 1
                if call.tries > 3:
                    over(call, now)
                else:
                    backoff = retry + mean / 2 * 2**call.tries * chance.uniform(0.5, 1.5)
                    at(now + backoff, lambda then: send(call, then))

            return it

        def ended(call: Call) -> Callable[[float], None]:
            def it(now: float) -> None:
                rows.append((call.started, now, False, trial, call.loop.number, call.work))
                over(call, now)

            return it

        def over(call: Call, now: float) -> None:
            nonlocal places
            if held:
                send(held.popleft(), now)
            else:
                places += 1
            loop = call.loop
            loop.open -= 1
            if loop.open:
                return
            loop.rounds -= 1
            if loop.rounds:
                at(now + mean * chance.uniform(0.5, 1.5), round_(loop))
            elif now < until:
                start(loop.agent)(now)

        for agent in range(agents):
            at(begun + chance.random() * mean, start(agent))
        while events or server.running:
            done = server.next()
            if not events or done <= events[0][0]:
                server.move(done)
                call = under_way.pop(server.pop())
                at(done + late(), ended(call))
            else:
                now, _, what = heapq.heappop(events)
                latest = max(latest, now)
                what(now)
        return latest + 1.0

    begun = 0.0
    for trial, agents in enumerate(levels):
        begun = run(trial, agents, begun)
    chance.shuffle(rows)
    started, ended_at, was_refused, group, loop, work = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    group = group.astype(np.int64)
    blocks = {} if block is None else {"block": group // block, "level": group % block}
    calls = Calls(ns(started), ns(ended_at), was_refused.astype(bool), group, loop=loop, **blocks)
    return calls, work[~calls.refused] * 1e9


def ns(seconds: np.ndarray) -> np.ndarray:
    return np.rint(seconds * 1e9).astype(np.int64)


def calls_of(*rows: tuple[int, int], refused: tuple[int, ...] = ()) -> Calls:
    """Calls from (started, ended) in ms."""
    times = np.array(rows, dtype=np.int64) * 1_000_000
    return Calls(
        times[:, 0],
        times[:, 1],
        np.array([n in refused for n in range(len(rows))]),
        np.zeros(len(rows), dtype=np.int64),
    )


def milliseconds(services: np.ndarray) -> list[int]:
    return [int(each) // 1_000_000 if each >= 0 else -1 for each in services]


# Services free of waiting.


def test_in_flight_counts_accepted_others_and_not_who_left_at_that_instant():
    calls = calls_of((0, 50), (10, 60), (20, 25), (50, 90), refused=(2,))
    assert in_flight(calls).tolist() == [0, 1, 2, 1]


def test_service_in_a_queue_begins_when_a_server_is_free():
    calls = calls_of((0, 50), (10, 80), (20, 140), (30, 31), refused=(3,))
    assert milliseconds(service_times(calls, Rule("queue", 1))) == [50, 30, 60, -1]
    assert milliseconds(service_times(calls, Rule("queue", 2))) == [50, 70, 90, -1]


def test_service_in_a_queue_is_in_the_order_in_which_calls_arrived():
    # The third arrives when two of two servers are taken; the first to be free is the second's.
    calls = calls_of((0, 100), (5, 40), (10, 70), (80, 90))
    assert milliseconds(service_times(calls, Rule("queue", 2))) == [100, 35, 30, 10]


def test_calls_that_started_together_are_served_in_an_order_that_can_have_been():
    calls = calls_of((0, 90), (0, 30), (1, 60))
    assert milliseconds(service_times(calls, Rule("queue", 1))) == [30, 30, 30]


def test_service_while_sharing_is_what_each_call_had_of_the_capacity():
    # 0 to 20: alone; 20 to 60: two at half the speed; 60 to 70: alone.
    calls = calls_of((0, 60), (20, 70))
    assert milliseconds(service_times(calls, Rule("share", 1))) == [40, 30]
    assert milliseconds(service_times(calls, Rule("share", 2))) == [60, 50]


@pytest.mark.parametrize("kind", ["none", "refuse", "rate"])
def test_service_without_waiting_is_the_whole_time(kind):
    calls = calls_of((0, 60), (20, 70))
    assert milliseconds(service_times(calls, Rule(kind, 1))) == [60, 50]


# One server of each kind.


@pytest.mark.parametrize("distribution", ["constant", "exponential", "lognormal", "bimodal", "uniform"])
@pytest.mark.parametrize("kind", ["queue", "share"])
def test_queue_and_share_are_told_apart_and_their_services_recovered(kind, distribution):
    levels, seconds = (4, 12, 20, 20, 12), 16.0
    calls, work = simulate(Server(kind, 8), distribution=distribution, levels=levels, seconds=seconds)
    finding = identify(calls)
    assert (finding.rule.kind, finding.identified) == (kind, True), finding
    # Of services that share and differ by much, some thousands do not tell 8 from 7 or 9.
    assert abs(finding.rule.capacity - 8) <= (kind == "share")
    services = service_times(calls, Rule(kind, 8))[~calls.refused]
    for share in (0.5, 0.95, 0.99):
        assert np.quantile(services, share) == pytest.approx(np.quantile(work, share), rel=0.02)


def test_refusals_above_a_number_in_flight_are_identified_with_uneven_networks():
    calls, _ = simulate(Server("refuse", 12), uneven=0.001)
    finding = identify(calls)
    assert (finding.rule, finding.identified) == (Rule("refuse", 12), True)
    assert finding.sentence.startswith("refuses above 12 at once (seen: ")


def test_queue_that_is_full_refuses_above_both():
    finding = identify(simulate(Server("queue", 8, queue=6), levels=(2, 6, 12, 20, 20, 20))[0])
    assert (finding.rule, finding.identified) == (Rule("queue", 8, queue=6), True)


def test_rate_is_identified_with_its_burst():
    finding = identify(simulate(Server("rate", rate=40.0, burst=10))[0])
    assert finding.identified
    assert finding.rule.kind == "rate"
    assert finding.rule.rate == pytest.approx(40.0, rel=0.01)
    assert finding.rule.burst == pytest.approx(10.0, abs=1.0)


def test_rate_and_capacity_hold_together():
    server = Server("refuse", 12, rate=40.0, burst=20)
    finding = identify(simulate(server, mean=0.2, seconds=16.0)[0])
    assert finding.identified
    assert (finding.rule.kind, finding.rule.capacity) == ("refuse", 12)
    assert finding.rule.rate == pytest.approx(40.0, rel=0.01)


# What a recording does not tell.


def test_limit_of_the_client_hides_the_capacity_and_nothing_is_known_above():
    finding = identify(simulate(Server("queue", 24), limit=12)[0])
    assert (finding.rule, finding.identified, finding.capacities) == (Rule("none"), True, None)
    assert 6 <= finding.seen[1] <= 12


def test_limit_of_the_client_at_the_capacity_does_not_identify_it():
    finding = identify(simulate(Server("queue", 12), limit=12)[0])
    assert finding.rule == Rule("none")
    assert finding.seen[1] <= 12


def test_one_call_at_a_time_tells_of_no_other():
    finding = identify(simulate(Server("queue", 4), limit=1)[0])
    assert finding.rule == Rule("none")
    assert finding.seen == (1.0, 1.0)


def test_server_that_never_slows_is_known_only_as_far_as_it_was_seen():
    finding = identify(simulate(Server("none"))[0])
    assert (finding.rule, finding.identified) == (Rule("none"), True)
    assert 20 < finding.seen[1] < 80
    assert finding.warnings == ()


def test_slower_with_load_in_no_known_way_is_said_and_not_named():
    server = Server("none", slower=lambda n: 1 + (n / 30) ** 2)
    finding = identify(simulate(server, distribution="uniform")[0])
    assert not finding.identified
    assert finding.sentence.startswith(("slower with load", "slower later or under more load"))


def test_a_few_percent_slower_under_load_is_no_queue():
    finding = identify(simulate(Server("none", slower=lambda n: 1 + 0.06 * min(1, n / 20)))[0])
    assert finding.rule == Rule("none")


def test_drift_is_no_capacity():
    calls, _ = simulate(Server("none"), drift=lambda now: 1 + min(1.0, now / 20))
    finding = identify(calls)
    assert finding.rule == Rule("none")
    assert any("drift" in each for each in finding.warnings)


@pytest.mark.parametrize("distribution", ["constant", "exponential", "bimodal"])
def test_standstills_are_no_capacity(distribution):
    still = tuple((2.5 * n + 1, 2.5 * n + 1.8) for n in range(40))
    finding = identify(simulate(Server("none", standstills=still), distribution=distribution)[0])
    assert finding.rule == Rule("none")


def test_refusals_at_random_are_no_capacity():
    calls, _ = simulate(Server("none"))
    refused = np.random.default_rng(3).random(calls.started.size) < 0.1
    ended = np.where(refused, calls.started + 1_000_000, calls.ended)
    finding = identify(Calls(calls.started, ended, refused, calls.group))
    assert (finding.rule, finding.identified) == (Rule("none"), False)
    why = "of the calls are refused, for neither their number in flight nor their rate; "
    assert why in finding.sentence


def test_few_calls_say_nothing():
    finding = identify(calls_of((0, 10), (5, 20)))
    assert (finding.rule, finding.identified) == (Rule("none"), False)
    assert finding.sentence.startswith("only 2 calls were accepted")


def test_the_order_of_rows_and_the_seed_change_nothing_that_matters():
    calls, _ = simulate(Server("queue", 8))
    mixed = np.random.default_rng(5).permutation(calls.started.size)
    other = Calls(calls.started[mixed], calls.ended[mixed], calls.refused[mixed], calls.group[mixed])
    assert identify(other, seed=9).rule == identify(calls).rule == Rule("queue", 8)


# Load is told from what else calls are slow for.


def repeated(server: Server, blocks: int, **options) -> Calls:
    """Levels that rise in each block, while the server gets slower all the time."""
    levels = (3, 8, 16, 30) * blocks
    drift = lambda now: 1 + now / 60  # noqa: E731
    return simulate(server, levels=levels, block=4, correlated=0.5, drift=drift, **options)[0]


def test_drift_is_told_from_load_where_levels_were_repeated():
    finding = identify(repeated(Server("queue", 12), 2, seconds=6.0))
    assert (finding.rule, finding.identified) == (Rule("queue", 12), True)
    assert any("drift" in each for each in finding.warnings)
    assert not identify(repeated(Server("queue", 12), 1, seconds=12.0)).identified


def test_drift_over_repeated_levels_is_no_capacity():
    finding = identify(repeated(Server("none"), 2, seconds=6.0))
    assert (finding.rule, finding.identified) == (Rule("none"), True)
    assert any("drift" in each for each in finding.warnings)


def test_one_level_a_time_says_to_record_each_twice():
    calls = simulate(Server("share", 8), distribution="bimodal", levels=(3, 8, 16, 30), seconds=4.0)[0]
    evidence = Evidence.of_calls(calls)
    best = evidence.of("none")
    assert "--blocks 2 or more" in _other_reason(evidence, best)


def test_wide_rounds_with_slow_calls_are_no_capacity_of_a_server_that_one_loop_calls():
    calls, _ = simulate(Server("none"), levels=(1,), seconds=100.0, wider=1.0, distribution="uniform")
    finding = identify(calls)
    assert not finding.identified
    assert "agents at once)" in finding.sentence


def test_calls_of_a_loop_that_are_alike_are_no_drift():
    # Loops differ by much, and each quarter of the time has few of them.
    warned = 0
    for seed in range(8):
        calls, _ = simulate(Server("none"), levels=(2, 4, 8), seconds=6.0, correlated=1.0, seed=seed)
        warned += any("drift" in each for each in identify(calls).warnings)
    assert warned <= 1


def test_gain_by_calls_that_a_rule_says_nothing_of_does_not_count():
    calls, _ = simulate(Server("none"), levels=(2, 6, 12), seconds=4.0)
    evidence = Evidence.of_calls(calls)
    none = evidence.of("none")
    lucky = replace(none, likelihood=none.likelihood + 0.1)
    assert evidence.gain(lucky, none)[0] > 50
    assert evidence.gain(lucky, none, touched=True) == (0.0, 0.0)


def test_of_many_calls_stretches_from_all_of_each_trial_are_looked_at():
    size = 60_000
    started = np.arange(size, dtype=np.int64) * 1_000_000
    ended = started + 50_000_000
    calls = Calls(started, ended, np.zeros(size, bool), np.repeat(np.arange(2), size // 2))
    evidence = Evidence.of_calls(calls)
    assert evidence.started.size < 22_000
    assert evidence.started.max() > 0.9 * started.max()
    # Those in flight beside a stretch are known; only where a trial begins there are fewer.
    assert evidence.others.max() == 49
    assert (evidence.others < 49).sum() == 2 * 49


def test_own_calls_are_those_of_the_same_loop_without_a_pause():
    times = np.array([(0, 50), (10, 60), (55, 70), (80, 90), (5, 95)], dtype=np.int64)
    own = OwnCalls.of(times[:, 0], times[:, 1], np.array([7, 7, 7, 7, 3]))
    assert own.together.tolist() == [3, 3, 3, 1, 1]
    assert own.in_flight.tolist() == [0, 1, 1, 0, 0]


# All of it: rules, capacities, services and loads at random.


def setting(number: int) -> tuple[str, int, Server, dict]:
    chance = random.Random(number)
    kinds = ("queue", "share", "refuse", "bounded", "rate", "none", "client", "drift", "still", "slight")
    kind = kinds[number % len(kinds)]
    capacity = chance.choice((1, 2, 4, 8, 20, 50))
    mean = chance.choice((0.02, 0.05, 0.2, 1.0, 5.0))
    fan = chance.choice((1, 2, 4))
    peak = chance.choice((2.0, 3.0)) * capacity
    levels = tuple(max(1, round(1.5 * peak / fan * part)) for part in (0.2, 0.5, 1.0, 0.5, 1.0))
    options = {
        "seed": number,
        "distribution": chance.choice(("constant", "exponential", "lognormal", "bimodal", "uniform")),
        "mean": mean,
        "fan": fan,
        "levels": levels,
        "seconds": mean * max(30, 800 / capacity),
        "correlated": chance.choice((0.0, 0.0, 0.5)),
    }
    server = {
        "queue": Server("queue", capacity),
        "share": Server("share", capacity),
        "refuse": Server("refuse", capacity),
        "bounded": Server("queue", capacity, queue=capacity),
        "rate": Server("rate", rate=0.5 * capacity / mean, burst=capacity + 1),
        "client": Server("queue", 2 * capacity),
        "still": Server(
            "none", standstills=tuple((25 * n * mean, (25 * n + 8) * mean) for n in range(1, 99))
        ),
        "slight": Server("none", slower=lambda n: 1 + 0.06 * min(1, n / capacity)),
    }.get(kind, Server("none"))
    if kind == "client":
        options["limit"] = capacity
    if kind == "drift":
        total = options["seconds"] * len(levels)
        options["drift"] = lambda now: 1 + min(1.0, now / total)
    return kind, capacity, server, options


def judged(kind: str, server: Server, finding: Finding) -> str:
    """Right, wrong or refused: what was not identified is never wrong."""
    rule = finding.rule
    if not finding.identified:
        return "refused"
    if rule.kind == "none":
        beyond = server.capacity and finding.seen[1] > 1.3 * server.capacity + 1
        if kind in ("queue", "share", "bounded", "client") and beyond:
            return "wrong"
        return "right" if kind in ("none", "client", "drift", "still", "slight") else "refused"
    if kind == "rate":
        near = rule.rate is not None and abs(rule.rate / server.rate - 1) < 0.03
        return "right" if rule.kind == "rate" and near else "wrong"
    near = rule.capacity is not None and abs(rule.capacity - server.capacity) <= max(
        1, 0.05 * server.capacity
    )
    return "right" if rule.kind == server.kind and near else "wrong"


@pytest.mark.slow
def test_of_random_servers_hardly_any_is_told_wrong():
    table: dict[str, Counter[str]] = {}
    for number in range(80):
        kind, _, server, options = setting(number)
        calls, _ = simulate(server, **options)
        verdict = judged(kind, server, identify(calls))
        table.setdefault(kind, Counter())[verdict] += 1
    total = sum(table.values(), Counter())
    assert total["wrong"] <= 1, table
    assert total["right"] >= 70, table
