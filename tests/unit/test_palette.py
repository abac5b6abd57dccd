"""Colours: each strategy has one, and they can be told apart by everybody."""

from __future__ import annotations

import itertools
import re
from importlib import resources

import numpy as np
import pytest

from profiler import palette
from profiler.anatomy import PHASES

# Severe dichromacy as linear-RGB matrices (Machado, Oliveira, Fernandes 2009).
SIGHT = {
    "normal": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
}

ALL = (palette.SEQUENTIAL, palette.GATHERED, palette.OTHER, *palette.SEMAPHORE)


def linear(colour: str) -> np.ndarray:
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def oklab(rgb: np.ndarray) -> np.ndarray:
    cones = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.63]]) @ rgb
    opponents = np.array([[0.2105, 0.7936, -0.0041], [1.978, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])
    return opponents @ np.cbrt(np.clip(cones, 0, None))


def contrast(a: str, b: str) -> float:
    light, dark = sorted((float(linear(c) @ [0.2126, 0.7152, 0.0722]) + 0.05 for c in (a, b)), reverse=True)
    return light / dark


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_of_any_two_strategies_can_be_told_apart(sight: str) -> None:
    seen = {c: oklab(np.clip(np.asarray(SIGHT[sight]) @ linear(c), 0, 1)) for c in ALL}
    closest = min(np.linalg.norm(seen[a] - seen[b]) for a, b in itertools.combinations(ALL, 2))
    assert closest >= 0.09


@pytest.mark.parametrize("colour", ALL)
@pytest.mark.parametrize("background", ["#FFFFFF", "#181B1F"])
def test_colours_stand_out_from_the_background(colour: str, background: str) -> None:
    assert contrast(colour, background) >= 2.2


def test_strategy_has_one_colour_whatever_it_is_compared_with() -> None:
    assert palette.strategy_colour("sequential") == palette.SEQUENTIAL
    assert palette.strategy_colour("gathered") == palette.GATHERED
    assert palette.strategy_colour("adaptive") == palette.OTHER
    assert palette.strategy_colour("gathered-not") == palette.OTHER


def test_limits_that_are_usual_have_different_colours() -> None:
    limits = [palette.strategy_colour(f"semaphore:{n}") for n in (1, 2, 4, 8, 16)]
    assert len(set(limits)) == 5
    assert palette.strategy_colour("semaphore:4") != palette.strategy_colour("semaphore:4@agent")
    compared = ("gathered", "semaphore:8", "rate:50/s,burst=5", "adaptive", "eager", "eager+semaphore:4")
    assert len({palette.strategy_colour(spec) for spec in compared}) == len(compared)


def test_values_of_a_setting_have_different_colours_under_any_strategy() -> None:
    for base in ("", "gathered ", "semaphore:8 ", "fast=true "):
        values = [palette.strategy_colour(f"{base}max_concurrent_calls={n}") for n in (1, 2, 4, 8, 16)]
        assert len(set(values)) == 5
        words = [palette.strategy_colour(f"{base}mode={word}") for word in ("true", "false", "null")]
        assert len(set(words)) == 3
    assert palette.strategy_colour("mode=gpt-a") != palette.strategy_colour("mode=gpt-b")
    crossed = [f"{base} calls={n}" for base in ("gathered", "semaphore:8") for n in (2, 8)]
    assert len(set(map(palette.strategy_colour, crossed))) == 4


def test_value_of_a_setting_is_matched_once() -> None:
    for value in (
        *range(1, 130),
        "true",
        "false",
        "null",
        "x",
        "a1",
        "0.5",
        "1e3",
        "a=2",
        "-3",
        "fal",
        "trues",
    ):
        for spec in (f"calls={value}", f"semaphore:8 calls={value}", f"a=1 calls={value}"):
            assert sum(bool(re.fullmatch(p, spec)) for p, _ in palette.STRATEGIES) == 1, spec


def test_limit_is_matched_once() -> None:
    for limit in (*range(1, 130), 1000):
        for spec in (f"semaphore:{limit}", f"semaphore:{limit}@agent"):
            assert sum(bool(re.fullmatch(p, spec)) for p, _ in palette.STRATEGIES) == 1, spec


def test_phase_has_a_colour_of_its_own() -> None:
    assert tuple(palette.PHASES) == PHASES
    assert len(set(palette.PHASES.values())) == len(PHASES)


def test_live_page_has_the_same_colours() -> None:
    script = resources.files("profiler.report.html").joinpath("assets", "live.js").read_text("utf-8")
    (line,) = re.findall(r"const COLOURS = \{(.*)\};", script)
    assert dict(re.findall(r'(\w+): "(#\w+)"', line)) == palette.PHASES
