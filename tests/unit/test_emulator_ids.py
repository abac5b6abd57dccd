"""Ids name a place, differ by nonce, and are told from foreign ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.emulator.draws import MAX_LOOP, Place, decode, encode

places = st.builds(Place, st.integers(0, MAX_LOOP), st.integers(0, 4095), st.integers(0, 4095))


@given(places, st.integers(0, 2**40 - 1), st.sampled_from(["", "call_", "fc_", "toolu_"]))
@settings(max_examples=200, deadline=None)
def test_round_trip_whatever_the_prefix(place: Place, nonce: int, prefix: str) -> None:
    text = encode(place, nonce)
    assert len(text) == 24
    assert text.isalnum()
    assert decode(prefix + text) == place


def test_the_same_place_gets_another_id_for_every_nonce() -> None:
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
