"""Tool requests without a call id find the call they belong to."""

from __future__ import annotations

from profiler.emulator.draws import Place
from profiler.emulator.places import Handed, Outstanding


def handed(n: int) -> Handed:
    return Handed(Place(n, 0, 0), f"call_{n}")


def test_exact_arguments_win_over_arguments_with_defaults_filled_in() -> None:
    calls = Outstanding()
    calls.add("f", '{"city":"Paris"}', handed(1))
    calls.add("f", '{"city":"Paris","units":"c"}', handed(2))
    assert calls.take("f", {"units": "c", "city": "Paris"}) == handed(2)
    assert calls.take("f", {"city": "Paris", "units": "c"}) == handed(1)
    assert calls.take("f", {"city": "Paris"}) is None


def test_calls_that_are_equal_are_taken_in_order_and_once() -> None:
    calls = Outstanding()
    calls.add("f", '{"n":1}', handed(1))
    calls.add("f", '{"n":1}', handed(2))
    assert [calls.take("f", {"n": "1"}), calls.take("f", {"n": 1}), calls.take("f", {"n": 1})] == [
        handed(1),
        handed(2),
        None,
    ]


def test_match_needs_the_same_tool_and_arguments() -> None:
    calls = Outstanding()
    calls.add("f", '{"n":1}', handed(1))
    calls.add("f", "{broken", handed(2))
    assert calls.take("g", {"n": 1}) is None
    assert calls.take("f", {"n": 2}) is None


def test_calls_are_forgotten_oldest_first() -> None:
    calls = Outstanding(size=2)
    for n in range(4):
        calls.add("f", f'{{"n":{n}}}', handed(n))
    assert [calls.take("f", {"n": n}) for n in range(4)] == [None, None, handed(2), handed(3)]
