"""Whether a server runs parallel calls one at a time: simulated servers, whose truth is known.

A server runs `cap` calls at once (0: any number), first come first served; calls take times of a given kind.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.statistics.serial import Serialised, Served, serialised

SECOND = 1_000_000_000
MEAN = 0.1
ANSWERED_LATE = 0.001
"""Seconds, on average, until the client sees an answer."""

KINDS = ("fixed", "lognormal", "exponential")

Rng = np.random.Generator


def lengths(kind: str, rng: Rng, count: int) -> np.ndarray:
    """Seconds that calls take at the server, `MEAN` on average."""
    if kind == "fixed":
        return np.full(count, MEAN) * rng.normal(1, 0.02, count)
    if kind == "steady":
        return MEAN * rng.lognormal(-0.02, 0.2, count)
    if kind == "lognormal":
        return MEAN * rng.lognormal(-0.125, 0.5, count)
    if kind == "exponential":
        return rng.exponential(MEAN, count)
    assert kind == "uneven"  # of each round one call takes once, one twice, one three times as long
    return rng.permutation(np.arange(1, count + 1)) * MEAN


def answers(
    sent: Sequence[float], took: Sequence[float], cap: int, free: list[float] | None = None
) -> list[float]:
    """When a server answers calls that were sent in this order. `free`: when its places are, changed in
    place."""
    if not cap:
        return [at + lasted for at, lasted in zip(sent, took, strict=True)]
    places = [0.0] * cap if free is None else free
    found = []
    for at, lasted in zip(sent, took, strict=True):
        found.append(max(heapq.heappop(places), at) + lasted)
        heapq.heappush(places, found[-1])
    return found


def a_call(round_: int, started: float, sent: float, answered: float, told: float | None) -> Served:
    took = None if told is None else round(told * SECOND)
    times = (round(at * SECOND) for at in (started, sent, answered))
    return Served(round_, "search", *times, took)


def one_agent(
    rng: Rng, cap: int, kind: str, rounds: int, fan_out: int, alone: int = 0, told: bool = False
) -> list[list[Served]]:
    """One agent: rounds of calls sent within 3 ms, and others of one call, in a random order."""
    now, calls = 0.0, []
    for number, count in enumerate(rng.permutation([fan_out] * rounds + [1] * alone)):
        sent = np.sort(now + rng.uniform(0, 0.003, count))
        took = lengths(kind, rng, count)
        ends = answers(sent, took, cap)
        calls += [
            a_call(number, now, at, end + rng.exponential(ANSWERED_LATE), lasted if told else None)
            for at, end, lasted in zip(sent, ends, took, strict=True)
        ]
        now = max(ends) + 0.05 + rng.exponential(0.2)
    return [calls]


def many_agents(rng: Rng, cap: int, kind: str, agents: int, fan_out: int, total: int) -> list[list[Served]]:
    """Agents that each send a round, wait for all of it, think, and send the next."""
    due = [(float(rng.exponential(0.3)), agent) for agent in range(agents)]
    heapq.heapify(due)
    free, calls = [0.0] * cap, []
    while len(calls) < total:
        now, agent = heapq.heappop(due)
        sent = np.sort(now + rng.uniform(0, 0.002, fan_out))
        ends = answers(sent, lengths(kind, rng, fan_out), cap, free)
        round_ = len(calls)
        calls += [
            a_call(round_, now, at, end + rng.exponential(ANSWERED_LATE), None)
            for at, end in zip(sent, ends, strict=True)
        ]
        heapq.heappush(due, (max(ends) + rng.exponential(0.3), agent))
    return [calls]


def shown(found: Sequence[Serialised | None]) -> float:
    return sum(one is not None for one in found) / len(found)


@pytest.mark.parametrize("kind", ["fixed", "steady"])
@pytest.mark.parametrize(("rounds", "fan_out"), [(3, 3), (3, 8), (12, 4)])
def test_server_that_runs_one_at_a_time_is_found(rounds, fan_out, kind):
    found = [
        serialised(one_agent(np.random.default_rng(seed), 1, kind, rounds, fan_out)) for seed in range(60)
    ]
    assert shown(found) >= (1.0 if kind == "fixed" else 0.9)
    assert {one.by for one in found if one} == {"server"}


@pytest.mark.parametrize("kind", ["fixed", "steady", *KINDS[1:]])
def test_server_that_says_how_long_it_took_is_found_whatever_its_calls_take(kind):
    seeds = range(60)
    found = [serialised(one_agent(np.random.default_rng(seed), 1, kind, 6, 4, told=True)) for seed in seeds]
    assert shown(found) >= 0.95


def test_server_is_found_under_many_agents():
    found = [
        serialised(many_agents(np.random.default_rng(seed), 1, "fixed", 8, 3, 300)) for seed in range(20)
    ]
    assert shown(found) == 1.0
    assert {(one.by, one.evidence) for one in found if one} == {("server", "alone")}


def test_server_whose_calls_vary_is_found_by_what_one_takes_alone():
    found = [
        serialised(one_agent(np.random.default_rng(seed), 1, "lognormal", 30, 8, 30)) for seed in range(20)
    ]
    assert shown(found) >= 0.9


@pytest.mark.parametrize("kind", [*KINDS, "uneven"])
@pytest.mark.parametrize("cap", [2, 4, 0])
def test_server_that_runs_several_is_not_accused(cap, kind):
    accused = []
    for seed in range(30):
        for rounds, fan_out, alone in ((3, 3, 0), (6, 4, 6), (20, 8, 10)):
            if kind == "uneven" and rounds == 3:
                continue  # one, two and three seconds at once, three times in that order, look the same
            for told in (False, True):
                rng = np.random.default_rng([seed, cap, rounds, told])
                found = serialised(one_agent(rng, cap, kind, rounds, fan_out, alone, told))
                if found is not None:
                    accused.append((seed, rounds, told, found))
    assert accused == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cap", [2, 4])
def test_server_that_runs_several_is_not_accused_by_many_agents(cap, kind):
    found = [
        serialised(many_agents(np.random.default_rng([seed, cap]), cap, kind, agents, 3, 200))
        for seed in range(15)
        for agents in (2, 8)
    ]
    assert found == [None] * len(found)


@given(
    st.lists(st.lists(st.floats(0.01, 2.0), min_size=3, max_size=6), min_size=3, max_size=8),
)
def test_server_without_a_limit_is_not_accused_while_it_tells_its_times(rounds):
    """Whatever its calls take: they ran together, and its own times say so."""
    now, calls = 0.0, []
    for number, took in enumerate(rounds):
        sent = [now + 1e-4 * place for place in range(len(took))]
        calls += [a_call(number, now, at, at + lasted, lasted) for at, lasted in zip(sent, took, strict=True)]
        now += 10
    found = serialised([calls])
    assert found is None or found.evidence != "told"


def test_evidence_has_its_figures():
    """Eight calls within 3 ms, 200 ms each; three rounds of them."""
    calls = []
    for number in range(3):
        now = 10.0 * number
        sent = [now + 0.003 * place / 7 for place in range(8)]
        calls += [a_call(number, now, at, now + 0.2 * (place + 1), None) for place, at in enumerate(sent)]
    found = serialised([calls])
    assert found is not None
    assert (found.by, found.evidence, found.rounds, found.of_rounds, found.calls) == (
        "server",
        "even",
        3,
        3,
        8,
    )
    figures = (found.together_seconds, found.apart_seconds, found.wall_seconds, found.alone_seconds)
    assert figures == pytest.approx((0.003, 0.2, 1.6, 0.2))


def behind_a_lock(rounds: int, fan_out: int, places: int = 1, start: float = 0.0) -> list[Served]:
    """Rounds of calls that start together and pass a lock with `places`, 100 ms each."""
    calls = []
    for number in range(rounds):
        now = start + 10.0 * number
        for place in range(fan_out):
            sent = now + 0.1 * (place // places) + 0.0005 * place
            calls.append(a_call(number, now, sent, sent + 0.0995, None))
    return calls


def test_lock_of_the_client_is_told_from_the_server():
    found = serialised([behind_a_lock(3, 8)])
    assert found is not None
    assert (found.by, found.evidence, found.calls, found.rounds) == ("client", "sent", 8, 3)
    assert found.wall_seconds == pytest.approx(0.8, rel=0.01)
    assert found.alone_seconds == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize(("rounds", "fan_out", "places"), [(2, 4, 1), (9, 2, 1), (9, 8, 2)])
def test_few_rounds_few_calls_or_a_wider_lock_are_no_lock(rounds, fan_out, places):
    assert serialised([behind_a_lock(rounds, fan_out, places)]) is None


def test_sessions_of_several_agents_each_with_a_lock_are_found():
    """Two agents whose rounds overlap: across both, two calls are at the server at once."""
    first = behind_a_lock(4, 4)
    second = [call._replace(round_=call.round_ + 100) for call in behind_a_lock(4, 4, start=0.03)]
    found = serialised([[*first, *second]])
    assert found is not None
    assert found.by == "client"


def test_requests_may_overtake_each_other_on_the_way():
    """Those of a round were sent within 2 ms in another order than the server took them."""
    rng = np.random.default_rng(1)
    calls = []
    for number in range(4):
        for place, late in enumerate(rng.permutation(4)):
            sent = 10.0 * number + 0.0005 * late
            made = a_call(number, 10.0 * number, sent, 10.0 * number + 0.1 * (place + 1), None)
            calls.append(made._replace(place=len(calls)))
    found = serialised([calls])
    assert found is not None
    assert (found.by, found.evidence, found.rounds) == ("server", "even", 4)
    assert serialised([[call._replace(place=0) for call in calls]]) is None


def test_calls_that_were_started_one_by_one_say_nothing():
    """`sequential`: each starts when the one before has ended."""
    calls = [
        a_call(number // 8, number * 0.1, number * 0.1, number * 0.1 + 0.099, None) for number in range(40)
    ]
    assert serialised([calls]) is None


def test_calls_that_are_merely_slow_say_nothing():
    calls = [a_call(number // 4, number // 4, number // 4, number // 4 + 0.9, None) for number in range(40)]
    assert serialised([calls]) is None


def two_tools(kind: str, seed: int) -> list[Served]:
    """Rounds of three calls of each of two tools: one has a lock of its own, or the server two places for
    both."""
    rng = np.random.default_rng(seed)
    calls: list[Served] = []
    for number in range(8):
        now = 10.0 * number
        sent = np.sort(now + rng.uniform(0, 0.003, 6))
        tools = rng.permutation(["search", "fetch"] * 3)
        took = lengths("fixed", rng, 6)
        if kind == "lock":
            ends = sent + took
            mine = tools == "search"
            ends[mine] = answers(sent[mine], took[mine], 1)
        else:
            ends = np.array(answers(sent, took, 2))
        for at, end, tool in zip(sent, ends, tools, strict=True):
            made = a_call(number, now, at, end + rng.exponential(ANSWERED_LATE), None)
            calls.append(made._replace(tool=str(tool), place=len(calls)))
    return calls


def test_tool_with_a_lock_of_its_own_is_named():
    found = [serialised([two_tools("lock", seed)]) for seed in range(20)]
    assert [one and (one.by, one.tool) for one in found] == [("server", "search")] * 20


def test_tools_that_share_few_places_are_not_accused():
    assert [serialised([two_tools("places", seed)]) for seed in range(20)] == [None] * 20


def test_server_that_shares_its_time_is_not_accused():
    """As one that computes does: all calls run at once, each slower for it, and end together."""
    rng = np.random.default_rng(1)
    calls, now = [], 0.0
    for number, count in enumerate(rng.permutation([8] * 30 + [1] * 30)):
        ends = np.sort(now + count * lengths("fixed", rng, count))
        calls += [a_call(number, now, now + 1e-4 * place, end, None) for place, end in enumerate(ends)]
        now = float(ends.max()) + 0.5
    assert serialised([calls]) is None


def test_servers_of_several_processes_are_looked_at_one_by_one():
    """Each serial, at the same time: together they would look like a server that runs two."""
    groups = [one_agent(np.random.default_rng(seed), 1, "fixed", 3, 3)[0] for seed in range(2)]
    assert serialised(groups) is not None
    assert (
        serialised([[*groups[0], *(call._replace(round_=call.round_ + 100) for call in groups[1])]]) is None
    )


def test_no_calls_show_nothing():
    assert serialised([]) is None
    assert serialised([[]]) is None
