"""Two recorded runs: verdicts, gates, annotations, and the cases in which nothing is decided."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from profiler import records
from profiler import records as codec
from profiler.errors import UsageError
from profiler.report import ci
from profiler.report.terminal import render_regression
from profiler.rundir import ClientHealth, Load, RunDirectory
from profiler.statistics.objectives import parse_gates
from profiler.statistics.verdicts import compare_directories
from tests.unit.statistics_data import loop, made, run, trial, trials


def recorded(
    parent: Path, factor: float, seed: int, strategy: str = "gathered", loops: int = 130, **changes: object
) -> RunDirectory:
    """Four blocks of loops around `factor` x 100 ms."""
    rng = np.random.default_rng(seed)
    trials, lines = [], []
    for block in range(4):
        start = block * 60_000
        trials.append(trial(block, strategy, start, start + loops * 150, block=block))
        models = rng.lognormal(np.log(100 * factor), 0.2, loops)
        made = (loop(start + k * 150, float(m), strategy=strategy, trial=block) for k, m in enumerate(models))
        lines += [records.encode(one) + b"\n" for one in made]
    conditions = run(trials, seed=seed, **changes)  # type: ignore[arg-type]
    directory = RunDirectory.create(parent, conditions)
    directory.records_path.write_bytes(b"".join(lines))
    return directory


GATES = parse_gates("p95 > +5%, errors > +1%")


def test_run_that_is_slower_fails_the_gate_and_says_by_how_much(tmp_path: Path) -> None:
    found = compare_directories(recorded(tmp_path, 1.0, 1), recorded(tmp_path, 1.5, 2), GATES)
    assert found.holds is False
    assert [outcome.holds for outcome in found.outcomes] == [False, True]
    ratio = found.comparisons[0].p95
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low < 1.5 < ratio.high
    assert found.comparisons[0].paired is False
    assert [caveat.kind for caveat in found.warnings] == ["two_runs"]
    text = render_regression(found)
    assert text.startswith("gathered in 20231114-221320-2 against gathered in 20231114-221320: p95 > +5%")
    assert "is 1.5" in found.verdicts[0].sentence
    assert "slower than gathered in 20231114-221320 at p95" in found.verdicts[0].sentence


def test_run_that_is_equal_passes(tmp_path: Path) -> None:
    found = compare_directories(recorded(tmp_path, 1.0, 1), recorded(tmp_path, 1.0, 2), GATES)
    assert found.holds is None  # a p95 that is 5 % worse can neither be shown nor ruled out
    same_tape = compare_directories(recorded(tmp_path, 1.0, 1), recorded(tmp_path, 1.0, 1), GATES)
    assert same_tape.holds is True
    assert same_tape.comparisons[0].paired is True


def test_loops_that_are_too_few_decide_nothing(tmp_path: Path) -> None:
    sides = [recorded(tmp_path, factor, seed, loops=20) for factor, seed in ((1.0, 1), (1.5, 2))]
    found = compare_directories(sides[0], sides[1], parse_gates("p95 > +5%"))
    assert found.holds is None
    assert "not decided, too few loops: about 220 more of each needed" in found.outcomes[0].sentence


def test_invalid_run_decides_nothing_and_says_so_first(tmp_path: Path) -> None:
    health = ClientHealth(process="w0", cpu=0.99)
    found = compare_directories(
        recorded(tmp_path, 1.0, 1), recorded(tmp_path, 1.5, 2, client=(health,)), GATES
    )
    assert found.holds is None
    assert render_regression(found).startswith("invalid: this client is saturated")


def fixed(
    parent: Path,
    loops: int = 30,
    failing: int = 0,
    model: float = 100.0,
    calls: Sequence[tuple[float, float]] = (),
    **changes: object,
) -> RunDirectory:
    """Three blocks of 6 s with loops of one length."""
    trials = [trial(b, "gathered", b * 10_000, b * 10_000 + 6000, block=b) for b in range(3)]
    lines = [
        records.encode(
            loop(b * 10_000 + k * 200, model, calls, trial=b, status="error" if k < failing else "ok")
        )
        for b in range(3)
        for k in range(loops)
    ]
    directory = RunDirectory.create(parent, run(trials, **changes))  # type: ignore[arg-type]
    directory.records_path.write_bytes(b"\n".join([*lines, b""]))
    return directory


def test_gate_of_a_strategy_that_the_client_did_not_touch_is_decided(tmp_path: Path) -> None:
    def two(*client: ClientHealth) -> RunDirectory:
        names = ("gathered", "sequential")
        trials = [
            trial(2 * b + place, name, (2 * b + place) * 10_000, (2 * b + place) * 10_000 + 6000, block=b)
            for b in range(3)
            for place, name in enumerate(names)
        ]
        lines = [
            records.encode(
                loop(one.started_ns / 1e6 + k * 200, 100.0 + k % 5, strategy=one.strategy, trial=one.index)
            )
            for one in trials
            for k in range(30)
        ]
        directory = RunDirectory.create(tmp_path, run(trials, client=client))
        directory.records_path.write_bytes(b"\n".join([*lines, b""]))
        return directory

    busy = tuple(ClientHealth("w0", index, cpu=0.99) for index in (0, 2, 4))
    found = compare_directories(two(), two(*busy), parse_gates("p50 > +5%"))
    held = {outcome.strategy.split()[0]: outcome.holds for outcome in found.outcomes}
    assert held == {"gathered": None, "sequential": True}
    assert [one.sentence.startswith("invalid: ") for one in found.verdicts] == [True, False]
    assert found.outcomes[0].sentence.endswith("not decided, it is invalid.")
    assert found.holds is None


def test_caveats_of_either_run_are_said_and_invalid_ones_first(tmp_path: Path) -> None:
    full, thin = fixed(tmp_path), fixed(tmp_path, loops=4)
    for pair in ((full, thin), (thin, full)):
        found = compare_directories(*pair).warnings
        assert [caveat.kind for caveat in found] == ["thin_blocks", "two_runs"]
        assert "(gathered 12 in 3)" in found[0].detail
    busy = fixed(tmp_path, client=(ClientHealth(process="w0", cpu=0.99),))
    kinds = [caveat.kind for caveat in compare_directories(busy, thin).warnings]
    assert kinds == ["client_saturated", "thin_blocks", "two_runs"]


def test_good_loops_are_named_for_the_candidate_and_then_the_baseline(tmp_path: Path) -> None:
    found = compare_directories(fixed(tmp_path), fixed(tmp_path, failing=15))
    ours, theirs = (f"gathered in {name}" for name in ("20231114-221320-2", "20231114-221320"))
    said = found.verdicts[0].sentence
    assert said.startswith(f"50 % of the loops of {ours} fail, 0 % of those of {theirs} (+50.0 points [")
    assert said.endswith("(2.50 against 5.00 good loops/s), unless the system drifted between the two runs.")


def test_objective_of_the_candidate_says_what_is_good(tmp_path: Path) -> None:
    slow = fixed(tmp_path, model=140.0, slo="p95<120ms")
    (found,) = compare_directories(fixed(tmp_path), slow).comparisons
    assert found.goodput.value == pytest.approx(0.5 / 30.5)
    (found,) = compare_directories(slow, fixed(tmp_path)).comparisons
    assert found.goodput.value == pytest.approx(1.0)


def test_annotations_for_github(tmp_path: Path) -> None:
    after = recorded(tmp_path, 1.5, 2)
    found = compare_directories(recorded(tmp_path, 1.0, 1), after, GATES)
    lines = ci.github(ci.of_two_runs(after.load(), found, found.outcomes)).splitlines()
    assert lines[0].startswith("::notice title=profiler::note: the runs were made at two times")
    assert lines[1].startswith("::error title=profiler::gathered in ")
    assert "p95 > +5%25 failed: p95 +" in lines[1]
    assert lines[2].startswith("::notice title=profiler::")
    assert all(line.startswith("::") for line in lines)


def test_runs_with_nothing_in_common_are_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gathered with 2 and sequential with 2"):
        compare_directories(recorded(tmp_path, 1.0, 1), recorded(tmp_path, 1.0, 2, "sequential"))


def test_objective_can_be_given_to_runs_that_had_none(tmp_path: Path):
    def recorded(model: float) -> RunDirectory:
        directory = RunDirectory.create(tmp_path, run(trials()))
        lines = [codec.encode(one) + b"\n" for one in made(model=model)]
        directory.records_path.write_bytes(b"".join(lines))
        return directory

    before, after = recorded(100.0), recorded(140.0)
    (plain,) = compare_directories(before, after).comparisons
    (held,) = compare_directories(before, after, slo="p95<120ms").comparisons
    assert plain.goodput.value == pytest.approx(1.0)
    assert held.goodput.value < 0.05


def test_ladder_s_levels_are_named_by_their_agents(tmp_path: Path):
    def recorded(users: tuple[int, ...]) -> RunDirectory:
        steps = [
            trial(
                4 * level + b, "gathered", 20_000 * (4 * level + b), 20_000 * (4 * level + b) + 9000, b, count
            )
            for level, count in enumerate(users)
            for b in range(4)
        ]
        directory = RunDirectory.create(tmp_path, run(steps))
        loops = [loop(s.started_ns / 1e6 + 80 * k, trial=s.index) for s in steps for k in range(30)]
        directory.records_path.write_bytes(b"".join(codec.encode(one) + b"\n" for one in loops))
        return directory

    before, after = recorded((2, 4)), recorded((2, 4))
    names = [one.strategy for one in compare_directories(before, after).comparisons]
    assert names == [f"gathered ({users} agents) in {after.path.name}" for users in (2, 4)]
    alone = compare_directories(before, recorded((4,))).comparisons
    assert [one.strategy.partition(" in ")[0] for one in alone] == ["gathered"]


def test_runs_of_different_work_are_not_compared_unless_asked(tmp_path: Path) -> None:
    before, after = recorded(tmp_path, 1.0, 1), recorded(tmp_path, 1.5, 2, scenario="crowded")
    refused = (
        f"not compared: {after.path} and {before.path} differ in scenario (crowded against cities), so a "
        "difference says nothing about the system; make both alike, or pass --allow-different"
    )
    with pytest.raises(UsageError, match=re.escape(refused)):
        compare_directories(before, after, GATES)
    found = compare_directories(before, after, GATES, allow_different=True)
    lead = "between runs that differ in scenario (crowded against cities): gathered in "
    assert all(one.sentence.startswith(lead) for one in (*found.verdicts, *found.outcomes))


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (
            Load("open", 2, arrivals="5/s", rate=5.0),
            "load (open against closed), arrivals (5/s against none)",
        ),
        (Load("closed", 2, think_seconds=1.0), "differ in think time (1 s against 0 s)"),
    ],
)
def test_runs_under_other_kinds_of_load_are_not_compared(tmp_path: Path, load: Load, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        compare_directories(recorded(tmp_path, 1.0, 1), recorded(tmp_path, 1.0, 2, load=load))


def test_what_else_differs_between_two_runs_is_a_note(tmp_path: Path) -> None:
    before = recorded(tmp_path, 1.0, 1, arguments={"stream": False, "agent": None})
    after = recorded(tmp_path, 1.0, 2, model="other", arguments={"stream": True, "agent": None, "x": 1})
    found = compare_directories(before, after)
    assert [caveat.kind for caveat in found.warnings] == ["different_conditions", "two_runs"]
    assert found.warnings[0].detail == (
        "the runs differ in model (other against m), stream (True against none)"
    )


def test_loops_that_do_other_work_are_a_note(tmp_path: Path) -> None:
    found = compare_directories(fixed(tmp_path), fixed(tmp_path, calls=((0, 1), (0, 1))))
    (note, _) = found.warnings
    assert note.kind == "different_work"
    assert note.detail == (
        "the loops of the two runs did different work: tools that only one of them called (get_weather) "
        "and 2.00 calls a loop against 0.00"
    )


def test_drift_between_two_runs_is_in_the_sentence(tmp_path: Path) -> None:
    found = compare_directories(recorded(tmp_path, 1.0, 1), recorded(tmp_path, 1.5, 2), GATES)
    assert found.verdicts[0].kind == "slower"
    assert found.verdicts[0].sentence.endswith(" at p95, unless the system drifted between the two runs.")
    assert found.outcomes[0].sentence.endswith("], unless the system drifted between the two runs.")
    alike = compare_directories(recorded(tmp_path, 1.0, 1), recorded(tmp_path, 1.0, 2))
    assert alike.verdicts[0].kind == "no_difference"
    assert alike.verdicts[0].sentence.endswith("; a drift of the system between the two runs may hide one.")
