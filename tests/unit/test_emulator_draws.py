"""Draws by address, the moments of every distribution, and ids that name a place."""

from __future__ import annotations

import math
from statistics import fmean, median
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.emulator.draws import (
    MAX_LOOP,
    Draws,
    Place,
    decode,
    encode,
    key,
    quantile_function,
    sampler,
    whole,
)
from profiler.scenarios.forms import Distribution


def values(distribution: Distribution, n: int = 20_000) -> list[float]:
    sample = sampler(distribution)
    return [sample(key(1, i)) for i in range(n)]


@pytest.mark.parametrize(
    ("distribution", "mean", "middle"),
    [
        (Distribution("constant", (2.0,)), 2.0, 2.0),
        (Distribution("uniform", (1.0, 3.0)), 2.0, 2.0),
        (Distribution("exponential", (2.0,)), 2.0, 2 * math.log(2)),
        (Distribution("lognormal", (1.0, 0.5)), math.exp(0.125), 1.0),
        (Distribution("gamma", (2.0, 3.0)), 2.0, 1.783),
        (Distribution("gamma", (2.0, 0.5)), 2.0, 0.910),
        (Distribution("pareto", (1.0, 3.0)), 1.5, 2 ** (1 / 3)),
        (Distribution("empirical", (1.0, 1.0, 4.0)), 2.0, 1.0),
    ],
)
def test_moments(distribution: Distribution, mean: float, middle: float) -> None:
    drawn = values(distribution)
    assert fmean(drawn) == pytest.approx(mean, rel=0.03)
    assert median(drawn) == pytest.approx(middle, rel=0.03)


def test_clamped_to_minimum_and_maximum() -> None:
    drawn = values(Distribution("lognormal", (1.0, 2.0), minimum=0.5, maximum=2.0))
    assert min(drawn) == 0.5
    assert max(drawn) == 2.0
    assert values(Distribution("constant", (9.0,), maximum=2.0), 1) == [2.0]
    assert max(values(Distribution("empirical", (1.0, 9.0), maximum=3.0))) == 3.0


def test_address_alone_decides() -> None:
    sample = sampler(Distribution("uniform", (0.0, 1.0)))
    forwards = [sample(key(7, i)) for i in range(50)]
    backwards = [sample(key(7, i)) for i in reversed(range(50))]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) == 50
    assert sample(key(7, 0)) != sample(key(8, 0))


def test_seed_of_its_own_separates_equal_distributions() -> None:
    first = sampler(Distribution("uniform", (0.0, 1.0)))
    second = sampler(Distribution("uniform", (0.0, 1.0), seed=1))
    assert first(key(1, 1)) != second(key(1, 1))


def test_pinned_values_keep_tapes_reproducible_across_versions() -> None:
    draws = Draws(key(0, 42))
    assert [round(draws.random(), 12) for _ in range(3)] == [0.753214374959, 0.233679043932, 0.631274727492]
    assert [Draws(key(0, i)).below(6) for i in range(8)] == [5, 0, 4, 2, 0, 0, 2, 1]


def test_whole_numbers_have_a_least() -> None:
    count = whole(Distribution("uniform", (0.0, 3.0)), least=1)
    drawn = {count(key(3, i)) for i in range(500)}
    assert drawn == {1, 2, 3}


def test_draws_are_uniform_enough_to_choose_fairly() -> None:
    counts = [0] * 5
    for i in range(10_000):
        counts[Draws(key(9, i)).below(5)] += 1
    assert min(counts) > 1850
    assert max(counts) < 2150


places = st.builds(Place, st.integers(0, MAX_LOOP), st.integers(0, 4095), st.integers(0, 4095))


@given(places, st.integers(0, 2**40 - 1), st.sampled_from(["", "call_", "fc_", "toolu_"]))
@settings(max_examples=200)
def test_round_trip_whatever_the_prefix(place: Place, nonce: int, prefix: str) -> None:
    text = encode(place, nonce)
    assert len(text) == 24
    assert text.isalnum()
    assert decode(prefix + text) == place


@pytest.mark.parametrize(
    ("place", "nonce", "text"),
    [
        (Place(0, 0, 0), 0, "XU1FgNdOddspwpm1VLZ1Y60Y"),
        (Place(5, 1, 2), 7, "X5IGEC73nuZxXfuBXaIL9y0Q"),
        (Place(MAX_LOOP, 4095, 4095), 2**40 - 1, "Wdo1mxlxW6TM11LN8lQgoN1x"),
    ],
)
def test_ids_are_the_same_in_every_version(place: Place, nonce: int, text: str) -> None:
    assert encode(place, nonce) == text


def test_same_place_gets_another_id_for_every_nonce() -> None:
    ids = {encode(Place(5, 1, 2), nonce) for nonce in range(5000)}
    assert len(ids) == 5000
    assert len({text[:4] for text in ids}) > 1000  # they look random from the first digits on


@pytest.mark.parametrize(
    "foreign",
    [
        "",
        "call_short",
        "call_abcdefghijklmnopqrstuvwx",
        "toolu_01A09q90qw90lq917835lq9",
        "call_zz-zzzzzzzzzzzzzzzzzzzzz",
    ],
)
def test_foreign_ids_name_no_place(foreign: str) -> None:
    assert decode(foreign) is None


# Quantile functions

QUANTILES = Distribution("quantiles", (0.0, 0.5, 0.9, 1.0, 1.0, 2.0, 4.0, 14.0))


def test_quantiles_are_met_and_joined_by_lines() -> None:
    at = quantile_function(QUANTILES)
    assert [at(p) for p in (0.0, 0.25, 0.5, 0.7, 0.9, 1.0)] == pytest.approx([1.0, 1.5, 2.0, 3.0, 4.0, 14.0])
    drawn = sorted(values(QUANTILES, 20_000))
    assert drawn[10_000] == pytest.approx(2.0, rel=0.02)
    assert drawn[18_000] == pytest.approx(4.0, rel=0.03)
    assert fmean(drawn) == pytest.approx(0.5 * 1.5 + 0.4 * 3 + 0.1 * 9, rel=0.03)


def test_empirical_values_come_as_often_as_their_weights_say() -> None:
    drawn = values(Distribution("empirical", (7.0, 1.0, 3.0), weights=(1.0, 2.0, 5.0)), 20_000)
    assert [drawn.count(one) / 20_000 for one in (1.0, 3.0, 7.0)] == pytest.approx(
        [0.25, 0.625, 0.125], abs=0.01
    )


@pytest.mark.parametrize(
    ("distribution", "p", "value"),
    [
        (Distribution("constant", (3.0,)), 0.2, 3.0),
        (Distribution("uniform", (1.0, 3.0)), 0.25, 1.5),
        (Distribution("exponential", (2.0,)), 0.5, 2 * math.log(2)),
        (Distribution("lognormal", (0.4, 0.8)), 0.5, 0.4),
        (Distribution("pareto", (1.0, 2.0)), 0.75, 2.0),
        (Distribution("empirical", (5.0, 1.0, 3.0)), 0.5, 3.0),
        (Distribution("lognormal", (1.0, 2.0), maximum=4.0), 0.999, 4.0),
    ],
)
def test_quantile_at_a_probability(distribution: Distribution, p: float, value: float) -> None:
    assert quantile_function(distribution)(p) == pytest.approx(value)


@pytest.mark.parametrize("kind", ["exponential", "lognormal", "pareto"])
def test_no_probability_has_an_infinite_quantile(kind: Any) -> None:
    at = quantile_function(Distribution(kind, (1.0, 1.0) if kind != "exponential" else (1.0,)))
    assert 0 <= at(0.0) < 1.01
    assert at(1.0) < math.inf


def test_gamma_has_no_quantile_function() -> None:
    with pytest.raises(ValueError, match="closed form"):
        quantile_function(Distribution("gamma", (1.0, 2.0)))
