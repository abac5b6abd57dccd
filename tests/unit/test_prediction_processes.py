"""Predictions depend on recording, question and seed alone, not on the number of processes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler.prediction.fitting import fit_run
from profiler.prediction.predict import Question
from profiler.prediction.processes import Predictor, Settings, check_run
from profiler.prediction.simulation.load import SimulatedLoad, Trials
from profiler.strategies import parse_strategy
from tests.virtual_servers import Server, World, record

SETTINGS = Settings(replicates=3, seed=5)


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_bytes() -> None:
    world = World({"search": Server(0.4, "queue", 4), "fetch": Server(0.2)})
    made = record(world, "gathered,sequential", (2, 6, 10), blocks=2, seconds=20.0, seed=3)
    recorded = (made.run, made.records)
    questions = [
        Question(parse_strategy(spec), SimulatedLoad(6), Trials(10.0, 2))
        for spec in ("gathered", "semaphore:3", "adaptive")
    ]
    found = []
    for number in (1, 2, 3):
        with Predictor(fit_run(*recorded, seed=SETTINGS.seed), SETTINGS, number) as predict:
            found.append((repr(predict(questions)), repr(check_run(*recorded, SETTINGS, number))))
    assert "Estimate(" in found[0][0]
    assert "'p50': " in found[0][1]
    assert found[0] == found[1] == found[2]
    other = replace(SETTINGS, seed=6)
    with Predictor(fit_run(*recorded, seed=SETTINGS.seed), other) as predict:
        assert repr(predict(questions)) != found[0][0]
