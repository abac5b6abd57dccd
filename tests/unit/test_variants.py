"""Settings of an agent: their values, as text and back, and all combinations of them."""

from __future__ import annotations

import pytest

from profiler import UsageError
from profiler.variants import (
    grid,
    is_setting,
    parse_grid,
    parse_value,
    parse_variant,
    value_text,
    variant_text,
)


@pytest.mark.parametrize(
    ("text", "value", "written"),
    [
        ("2", 2, "2"),
        ("-2", -2, "-2"),
        ("08", 8, "8"),
        ("0.5", 0.5, "0.5"),
        ("1e3", 1000.0, "1000.0"),
        ("true", True, "true"),
        ("false", False, "false"),
        ("null", None, "null"),
        ("True", "True", "True"),
        ("nan", "nan", "nan"),
        ("gpt-4o:mini", "gpt-4o:mini", "gpt-4o:mini"),
        ("a=b", "a=b", "a=b"),
        ("9" * 30, "9" * 30, "9" * 30),
        ("1e999", "1e999", "1e999"),
    ],
)
def test_value_is_a_number_a_word_or_text(text, value, written):
    found = parse_value(text)
    assert (found, type(found)) == (value, type(value))
    assert value_text(found) == written
    assert parse_value(written) == found


def test_setting_is_told_from_a_limit_of_a_tool():
    assert is_setting("max_concurrent_calls=2")
    assert is_setting("größe=x")
    assert not any(map(is_setting, ("semaphore:search=2", "gathered", "2=3", "=3", "a-b=1")))


def test_variant_from_words_and_back():
    variant = parse_variant(["a=1", "b=null", "c=x"])
    assert variant == (("a", 1), ("b", None), ("c", "x"))
    assert variant_text(variant) == "a=1 b=null c=x"


def test_grid_has_every_combination_in_the_order_given():
    settings = parse_grid("a=1,2,b=true,false,a=2,3")
    assert settings == ("a=1", "a=2", "b=true", "b=false", "a=3")
    assert grid(settings) == [(("a", a), ("b", b)) for a in (1, 2, 3) for b in (True, False)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8", "'8': expected NAME=VALUE"),
        ("a b=1", "'a b=1': expected NAME=VALUE"),
        ("a=,", "'a=' is no setting"),
        ("a=x y", "holds a space"),
        ("key=sk-proj-0123456789abcdefghijklmnopqrstuv", "looks like a key"),
    ],
)
def test_bad_settings_are_refused(text, said):
    with pytest.raises(UsageError, match=said):
        parse_grid(text)
