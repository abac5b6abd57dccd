"""Specs: the parts that processes share, and effective totals in words and in truth."""

from __future__ import annotations

import pytest

from profiler.limits.limiter import ONE, RateLimit
from profiler.limits.spec import LaneKey, lanes_of, parse_rules, totals


@pytest.mark.parametrize(
    ("spec", "whole", "of_four"),
    [
        ("semaphore:8", 8, 2),
        ("semaphore:3", 3, 1),
        ("semaphore:8@agent", 8, 8),
        ("semaphore:8@server", 8, 2),
        ("adaptive:40", 40, 10),
    ],
)
def test_limit_shared_by_processes_is_cut_into_parts(spec, whole, of_four):
    (rule,) = parse_rules(spec) or ()
    assert (rule.make(1).limit, rule.make(4).limit) == (whole, of_four)


def test_rate_shared_by_processes_is_cut_into_parts():
    (rule,) = parse_rules("rate:600/min,burst=20") or ()
    whole, part = rule.make(1), rule.make(4)
    assert isinstance(whole, RateLimit)
    assert isinstance(part, RateLimit)
    assert (whole.rate, whole.burst) == (10.0, 20.0)
    assert (part.rate, part.burst) == (2.5, 5.0)
    assert rule.make(40).burst == 1.0


def test_adaptive_limit_shared_by_more_processes_than_it_has_places_starts_at_one():
    (rule,) = parse_rules("adaptive:2") or ()
    assert rule.make(4).limit == 1


S = 1_000_000_000


@pytest.mark.parametrize(
    ("spec", "share", "processes", "said"),
    [
        ("semaphore:8", 1, 1, "up to 8 calls at once"),
        ("semaphore:8", 1, 2, "8 per process × 2 processes = up to 16 calls at once"),
        ("semaphore:9", 2, 2, "4 per process × 2 processes = up to 8 calls at once"),
        ("semaphore:8@tool", 2, 2, "4 per process × 2 processes = up to 8 calls of each tool at once"),
        ("semaphore:search=3", 1, 1, "up to 3 calls of search at once"),
        ("semaphore:8@server", 2, 2, "4 per process × 2 processes = up to 8 calls of each server at once"),
        ("semaphore:files/*=3", 1, 1, "up to 3 calls of server files at once"),
        ("semaphore:1@server", 1, 1, "up to 1 call of each server at once"),
        ("semaphore:1", 1, 2, "1 per process × 2 processes = up to 2 calls at once"),
        ("rate:50/s", 1, 1, "up to 50 calls/s"),
        ("rate:50/s,burst=5", 2, 2, "25 per process × 2 processes = up to 50 calls/s"),
        ("rate:50/min", 1, 3, "50 per process × 3 processes = up to 150 calls/min"),
        ("tokens:30000/min", 4, 4, "7500 per process × 4 processes = up to 30000 tokens/min"),
        ("adaptive", 1, 1, "adapts, from 8 calls at once"),
        ("adaptive", 2, 2, "adapts, from 4 calls at once in each of 2 processes"),
    ],
)
def test_totals_in_words(spec: str, share: int, processes: int, said: str) -> None:
    assert totals(parse_rules(spec), share=share, processes=processes) == [f"{spec}: {said}"]


def test_totals_are_of_one_process_with_all_of_a_limit_if_nothing_is_said() -> None:
    assert totals(parse_rules("semaphore:8")) == ["semaphore:8: up to 8 calls at once"]


def test_rate_that_is_shared_lets_no_more_through_than_the_whole() -> None:
    """Two processes ask as often as they can for ten seconds: r·t + b between them, and hardly less."""
    entered = 0
    for _ in range(2):
        (rule,) = parse_rules("rate:50/s,burst=10")
        limiter = rule.make(2)
        now_ns = 0
        while now_ns <= 10 * S:
            wait_ns = limiter.wait_ns(now_ns, ONE)
            if wait_ns == 0:
                limiter.leave(now_ns, limiter.enter(now_ns, ONE), "ok", None)
                entered += 1
            now_ns += wait_ns
    assert 0.99 * (50 * 10 + 10) <= entered <= 50 * 10 + 10


@pytest.mark.parametrize(
    ("spec", "call", "passed"),
    [
        ("semaphore:8", ("search",), [(("process", ""), ["semaphore:8"])]),
        ("semaphore:8@agent", ("search", "", "anna"), [(("agent", "anna"), ["semaphore:8@agent"])]),
        ("semaphore:8@tool", ("search",), [(("tool", "search"), ["semaphore:8@tool"])]),
        ("semaphore:lookup=2", ("search",), []),
        ("semaphore:8@server", ("search",), []),
        ("semaphore:8@server", ("search", "files"), [(("server", "files"), ["semaphore:8@server"])]),
        ("semaphore:web/*=8", ("search", "files"), []),
        (
            "rate:9/s+semaphore:files/*=4+adaptive+semaphore:6@tool+semaphore:search=3+semaphore:2@agent",
            ("search", "files", "anna"),
            [
                (("agent", "anna"), ["semaphore:2@agent"]),
                (("tool", "search"), ["semaphore:6@tool", "semaphore:search=3"]),
                (("server", "files"), ["semaphore:files/*=4"]),
                (("process", ""), ["rate:9/s", "adaptive"]),
            ],
        ),
    ],
)
def test_call_passes_the_queues_of_its_agent_its_tool_its_server_and_the_process(
    spec: str, call: tuple[str, ...], passed: list[tuple[LaneKey, list[str]]]
) -> None:
    found = lanes_of(parse_rules(spec), *call)
    assert [(key, [rule.text for rule in rules]) for key, rules in found] == passed
