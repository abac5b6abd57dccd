"""The answer of `profiler predict` as data and as text."""

from __future__ import annotations

import orjson

from profiler.arrivals import Arrivals
from profiler.prediction.answer import Answer
from profiler.prediction.answering import (
    IDLE,
    answer_of,
    band_words,
    curve_words,
    levels_of,
    limit_words,
    record_words,
    refusals,
    warnings,
)
from profiler.prediction.asking import Asked
from profiler.prediction.predict import Predicted
from profiler.prediction.servers.calls import Rule
from profiler.prediction.simulation.load import Trials
from profiler.prediction.support import of_question, of_recording
from profiler.report.prediction import bars, between, render_prediction
from profiler.report.text import duration, percent
from profiler.rundir import Load, Recording
from profiler.statistics.objectives import parse_objective
from profiler.strategies import parse_strategies
from tests.unit.prediction_data import fitted, predicted
from tests.unit.statistics_data import run, trial

BOTH = parse_strategies("gathered,semaphore:8")


def asked(*levels: int, **changes: object) -> Asked:
    return Asked(BOTH, levels, Trials(5.0, 2), **changes)  # type: ignore[arg-type]


def answered(cells: list[Predicted], *levels: int, slo: str | None = None) -> Answer:
    of = run([trial(0, "gathered", 0, 1000, users=20)], repeat=("--scenario", "crowded", "--levels", "5,10"))
    return answer_of(
        of,
        "runs/x",
        fitted(of, [("search", Rule("queue", 20), True), ("fetch", Rule("none"), False)]),
        asked(*levels),
        cells,
        load=Load("closed", max(levels)),
        replicates=40,
        seed=1,
        objective=None if slo is None else parse_objective(slo),
    )


CELLS = [
    predicted("gathered", 20, goodput=5.0, every=[{"goodput": 5.0}] * 10),
    predicted("semaphore:8", 20, goodput=4.0, every=[{"goodput": 4.0}] * 10),
]


def test_the_shape_is_that_of_a_summary_and_every_strategy_is_marked_as_predicted() -> None:
    data = orjson.loads(orjson.dumps(answered(CELLS, 20)))
    one = data["strategies"][0]
    assert (one["strategy"], one["users"], one["predicted"]) == ("gathered", 20, True)
    assert one["loop_seconds"]["p50"] == {"value": 1.0, "low": 0.9, "high": 1.1}
    assert one["goodput"] == {"value": 5.0, "low": 4.5, "high": 5.5}
    assert one["refused_share"]["value"] == 0.0
    assert (data["predicted"], data["band"], data["levels"], data["refused"]) == (True, 0.9, [], [])
    assert data["recorded"]["levels"] == [20]
    assert data["verdicts"][0]["certainty"] == 1.0


def test_a_better_strategy_of_which_more_fails_is_said_to_be_so() -> None:
    failing = predicted("gathered", 20, goodput=5.0, failure_rate=0.33, every=[{"goodput": 5.0}] * 10)
    (verdict,) = answered([failing, CELLS[1]], 20).verdicts
    assert verdict.sentence.endswith("good loops/s), but 33 % of its loops fail, against 0 %")
    assert all("fail" not in one.sentence for one in answered(CELLS, 20).verdicts)


def test_several_loads_are_levels_and_the_highest_is_what_strategies_are() -> None:
    cells = [predicted(spec.text, users) for users in (10, 20) for spec in BOTH]
    found = answered(cells, 10, 20)
    assert [level.users for level in found.levels] == [10, 20]
    assert [one.users for one in found.strategies] == [20, 20]
    assert found.verdicts[0].sentence.startswith("at 10 agents: ")


def test_an_objective_is_met_by_figures_and_undecided_where_one_is_not_predicted() -> None:
    (level,) = levels_of(asked(20), CELLS, parse_objective("p95<1.5s"))
    assert [(one.objective_met, one.objective_missed) for one in level.strategies] == [
        (False, ("p95 2 s",)),
        (False, ("p95 2 s",)),
    ]
    without = predicted("gathered", 20)
    del without.figures["p99"]
    (level,) = levels_of(asked(20), [without], parse_objective("p99<5s"))
    assert level.strategies[0].objective_met is None


def test_each_reason_is_said_once_with_the_cells_that_it_is_about() -> None:
    cells = [
        predicted("gathered", 40, refused=("never above 30",)),
        predicted("semaphore:8", 40, warnings=("drifts",)),
        predicted("gathered", 80, refused=("never above 30",)),
        predicted("semaphore:8", 80, warnings=("drifts",)),
    ]
    (refused,) = refusals(cells)
    assert (refused.sentence, refused.strategies, refused.users) == (
        "never above 30",
        ("gathered",),
        (40, 80),
    )
    (warned,) = warnings(cells)
    assert (warned.sentence, warned.strategies) == ("drifts", ())


def curve(*rates: float) -> list[str]:
    loads = tuple(range(10, 10 + 10 * len(rates), 10))
    cells = [predicted("gathered", users, goodput=rate) for users, rate in zip(loads, rates, strict=True)]
    return curve_words(levels_of(Asked(BOTH[:1], loads, Trials(5.0)), cells), ["gathered"])


def test_the_knee_of_a_ladder() -> None:
    assert curve(1, 2, 3, 4) == ["gathered: goodput grows up to 40 agents, the highest load predicted"]
    assert curve(1, 2, 2.9, 3) == ["gathered: the knee is at 30 agents: more bring little (3/s at most)"]
    assert curve(1, 3, 2, 1) == [
        "gathered: goodput is highest at about 20 agents (3/s), and falls to 1/s at 40 agents"
    ]
    assert curve(1, 3) == []


def test_the_knee_of_a_limit() -> None:
    specs = [(float(k), f"semaphore:{k}") for k in (2, 4, 8, 16)]
    cells = [
        predicted(spec, 20, goodput=rate) for (_, spec), rate in zip(specs, (1.0, 2.9, 3.0, 2.0), strict=True)
    ]
    (level,) = levels_of(Asked(BOTH, (20,), Trials(5.0)), cells)
    assert limit_words(level, "semaphore", specs) == (
        "semaphore: the knee is at 4 (95 % of the best goodput, 3/s at 8); from 16 on goodput falls"
    )


def test_what_to_record_is_a_ladder_past_what_was_asked() -> None:
    cells = [predicted("gathered", 40, refused=("never so many",))]
    of = fitted(run([], repeat=("--scenario", "crowded", "--levels", "5,10", "--stream")))
    command = "profiler compare --for-prediction --levels 10,20,40,80 --scenario crowded --stream"
    assert record_words(of, asked(40), cells) == (command,)
    assert record_words(of, asked(40), cells, invalid=True) == (IDLE, command)
    assert record_words(of, asked(40), CELLS) == ()
    elsewhere = fitted(run([], recording=Recording("import"), load=Load("open", 0)))
    assert record_words(elsewhere, asked(40), cells) == (
        "the same agent, in the same way, with 10,20,40,80 loops under way at once",
    )
    of_elsewhere = [predicted("gathered", 40, refused=of_recording(elsewhere))]
    assert record_words(elsewhere, asked(40), of_elsewhere) == ()
    (eager,) = parse_strategies("eager")
    no_ladder_tells_more = [predicted("eager", 40, refused=of_question(of, eager))]
    assert record_words(of, asked(40), no_ladder_tells_more) == ()


def test_a_block_shorter_than_two_loops_is_a_start() -> None:
    short = predicted("gathered", 20, p50=2.6, trials=Trials(5.0, 2))
    (said,) = warnings([short])
    assert said.sentence.startswith("a block of 5 s holds less than two loops")
    assert warnings([predicted("gathered", 20, p50=2.4, trials=Trials(5.0, 2))]) == ()


def test_bands_are_wide_for_a_short_run_or_for_a_short_recording() -> None:
    assert "mostly the noise of a run" in (band_words(fitted(loops=1000), CELLS) or "")
    assert "mostly what the recording leaves open" in (band_words(fitted(loops=20), CELLS) or "")
    assert band_words(fitted(), [predicted(refused=("no",))]) is None


def test_text_says_warnings_first_and_that_nothing_was_run() -> None:
    cells = [
        predicted("gathered", 20, warnings=("the times drift",), every=[{}] * 10),
        predicted("semaphore:8", 20, refused=("never above 30 in flight",)),
    ]
    lines = render_prediction(answered(cells, 20), 100).splitlines()
    assert lines[0] == "warning: the times drift"
    assert lines[1].startswith("predicted, not run; 90 % bands, of 40 simulated runs of 10.0 s in 2 blocks")
    row = next(line.split() for line in lines if line.startswith(" gathered"))
    assert row == ["gathered", "5.00", "1.00", "s", "2.00", "s", "3.00", "s", "0", "%"]
    assert next(line.split() for line in lines if line.startswith(" semaphore:8"))[1:] == ["–"] * 5
    text = "\n".join(lines)
    assert "outside the recording: semaphore:8 (20 agents): never above 30 in flight" in text
    assert "fetch (1,000 calls, 50 in flight at the busiest): NOT KNOWN: none it is" in text
    assert lines[-1] == "  profiler compare --for-prediction --levels 5,10,20,40 --scenario crowded"


def test_text_where_nothing_is_predicted() -> None:
    found = answered([predicted("gathered", 20, refused=("never loaded",))], 20, slo="p95<1s")
    assert not found.told
    lines = render_prediction(found, 100).splitlines()
    assert lines[:2] == [
        "nothing is predicted",
        "outside the recording: never loaded",
    ]


def test_an_open_load_is_named_by_its_rate() -> None:
    cells = [predicted("gathered", users) for users in (10, 20)]
    levels = levels_of(asked(10, 20, arrivals=Arrivals(5.0, 10)), cells)
    assert [level.rate for level in levels] == [5.0, 10.0]


def test_bands_say_their_unit_once_and_bars_end_in_eighths() -> None:
    assert between(2.2, 2.4, duration) == "2.20–2.40 s"
    assert between(0.9, 2.4, duration) == "900 ms–2.40 s"
    assert between(0.02, 0.4, percent) == "2.0–40 %"
    assert bars([1.0, 0.5, 1 / 128, 0.0]) == ["█" * 16, "█" * 8, "▏", ""]
