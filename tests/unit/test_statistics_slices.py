"""Recorded runs in `compare`: slices of time for blocks, and gates that say why they are not decided."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from profiler.cli import main
from profiler.errors import UsageError
from profiler.rundir import RunDirectory
from profiler.statistics.caveats import caveats
from profiler.statistics.figures import figures
from profiler.statistics.gates import NO_RATE
from profiler.statistics.objectives import parse_gates
from profiler.statistics.table import tabulate
from profiler.statistics.verdicts import compare_directories
from profiler.statistics.windows import MOST_SLICES, measure
from tests.unit.recording_data import MS, bound, directory_of, exact, loop, records, run_of
from tests.unit.test_statistics_regression import recorded as load_test


def recorded(path: Path, factor: float, loops: int, seed: int, **recording: Any) -> RunDirectory:
    """Loops of about `factor` x 300 ms, one every two seconds."""
    rng = np.random.default_rng(seed)
    took = rng.lognormal(np.log(300 * factor), 0.2, loops)
    drafts = [loop([exact("search", 10, float(ms))], at=2000.0 * n, model=10) for n, ms in enumerate(took)]
    return directory_of(path, run_of(*drafts, **recording), records(*drafts))


def test_slices_are_stretches_of_time_with_as_many_loops_each(tmp_path: Path) -> None:
    directory = recorded(tmp_path, 1, 260, 1)
    table = tabulate(directory.records())
    (measured,) = measure(directory.load(), table)
    assert (measured.strategy, measured.users, len(measured.blocks)) == ("recorded", 0, MOST_SLICES)
    assert {block.due.size for block in measured.blocks} == {21, 22}
    edges = [block.windows[0] for block in measured.blocks]
    assert edges[0][0] == 0
    assert all(before[1] == after[0] for before, after in pairwise(edges))
    found = figures(measured, table)
    assert found.loop_seconds.p50.low is not None
    assert found.throughput.value is found.goodput.value is found.loops.per_second is None
    (caveat,) = caveats(directory.load(), [found])
    assert caveat.detail == (
        "recordings have no blocks: slices of time, 12 with about 21 loops each, serve as such"
    )


def test_too_few_loops_for_slices_have_no_interval_and_it_is_said(tmp_path: Path) -> None:
    directory = recorded(tmp_path, 1, 59, 1)
    table = tabulate(directory.records())
    (measured,) = measure(directory.load(), table)
    assert len(measured.blocks) == 1
    found = figures(measured, table)
    assert found.loop_seconds.p50.low is None
    (caveat,) = caveats(directory.load(), [found])
    said = "59 loops are too few for 3 slices of time with 20 each, so there are no intervals"
    assert said in caveat.sentence


def test_nested_loops_are_in_no_slice_and_no_loops_are_nothing_measured(tmp_path: Path) -> None:
    inner = loop([exact("a", 10, 20)], parent="loop-0")
    directory = directory_of(tmp_path, run_of(), records(loop([], at=0), inner))
    (measured,) = measure(directory.load(), tabulate(directory.records()))
    assert measured.due.size == 1
    assert measure(directory.load(), tabulate([])) == []


def test_slower_recording_fails_a_gate_of_latency_and_none_of_rates_is_decided(tmp_path: Path) -> None:
    gates = parse_gates("p95 > +5%, goodput < -5%, goodput < 1/s")
    found = compare_directories(recorded(tmp_path, 1, 400, 1), recorded(tmp_path, 1.5, 400, 2), gates)
    by_gate = {one.gate: one for one in found.outcomes}
    assert by_gate["p95 > +5%"].holds is False
    assert by_gate["p95 > +5%"].sentence.startswith("recorded in 20231114-221320-2 against recorded in ")
    for gate in ("goodput < -5%", "goodput < 1/s"):
        assert by_gate[gate].holds is None
        assert NO_RATE in by_gate[gate].sentence
    (comparison,) = found.comparisons
    assert comparison.paired is False  # however alike their titles are
    said = "slower than recorded in 20231114-221320 at p95, unless the system drifted"
    assert said in found.verdicts[0].sentence
    assert [one.kind for one in found.warnings] == ["slices", "slices", "two_runs"]
    assert found.warnings[0].detail.startswith("20231114-221320-2: recordings have no blocks")


def test_short_recordings_print_no_interval(tmp_path: Path) -> None:
    found = compare_directories(
        recorded(tmp_path, 1, 40, 1), recorded(tmp_path, 2, 40, 2), parse_gates("p50 > +5%")
    )
    assert found.outcomes[0].holds is None
    assert "not decided, too few loops" in found.outcomes[0].sentence
    assert "[" not in found.verdicts[0].sentence


def test_difference_within_a_tick_of_the_clock_is_none(tmp_path: Path) -> None:
    tick = 1000 * MS
    one, other = (recorded(tmp_path, factor, 400, 1, resolution_ns=tick) for factor in (1, 2))
    found = compare_directories(one, other, parse_gates("p95 > +5%, p95 > 0.2s"))
    assert [one.holds for one in found.outcomes] == [None, None]
    assert "the difference is within a tick of the recording's clock" in found.outcomes[0].sentence
    assert "is within a tick of the recording's clock (1 s) of the bound" in found.outcomes[1].sentence
    assert "no difference shown at p95: it is within a tick" in found.verdicts[0].sentence


def test_what_differs_between_recordings_is_said(tmp_path: Path) -> None:
    drafts = [loop([bound("a", 10, 20), exact("b", 10, 30)], at=100.0 * n) for n in range(3)]
    one = directory_of(tmp_path, run_of(*drafts, read={"otel": 9}, clocks=1), records(*drafts))
    run = run_of(*drafts, door="proxy", read={"proxy": 9}, clocks=3, sampled=0.25, resolution_ns=1000)
    other = directory_of(tmp_path, run, records(*drafts))
    found = compare_directories(one, other)
    conditions = next(one for one in found.warnings if one.kind == "different_conditions")
    for words in (
        "door (proxy against import)",
        "formats (requests against otel)",
        "ticks of the clock (1,000 ns against 1 ns)",
        "clocks (3 against 1)",
        "share of traces kept (25 % against not known)",
    ):
        assert words in conditions.detail
    assert {"sampled", "recorded_times"} <= {one.kind for one in found.warnings}
    assert "cores" not in conditions.detail


def test_recording_is_held_against_a_load_test_only_when_asked(tmp_path: Path) -> None:
    other, mine = load_test(tmp_path, 1, 1), recorded(tmp_path, 3, 400, 2)
    with pytest.raises(UsageError, match=r"differ in kind \(a recording against a load test\)"):
        compare_directories(other, mine)
    found = compare_directories(other, mine, parse_gates("p95 > +5%, goodput < -5%"), allow_different=True)
    assert [one.holds for one in found.outcomes] == [False, None]
    (said,) = found.verdicts
    assert said.sentence.startswith("between runs that differ in kind (a recording against a load test)")
    assert "recorded in 20231114-221320-2 is" in said.sentence
    assert "slower than gathered in 20231114-221320 at p95" in said.sentence


def test_one_recording_is_judged_and_its_verdict_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = recorded(tmp_path, 1, 400, 1)
    path = str(directory.path)
    assert main(["compare", path, "--fail-on", "p95 > 100ms, errors > 5%, throughput < 9/s"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "recorded: p95 > 100ms failed" in said
    assert "recorded: errors > 5% passed" in said
    assert "recorded: throughput < 9/s: not decided, how many loops a second came" in said
    assert "No round asked for several calls" in said
    assert "recorded; 400 loops counted in 12 slices of time" in said
    assert main(["compare", path, "--slo", "p95<2s", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["recorded"]["totals"]["rounds"] == 400
    assert summary["load"]["model"] == "recorded"
    assert main(["compare", path, "--slo", "p95<2s", "--format", "markdown"]) == 0
    assert "- No round asked for several calls" in capsys.readouterr().out


def test_cancelled_loops_of_a_recording_have_not_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def of(name: str, failed: int, cancelled: int, good: int) -> RunDirectory:
        ends = [{"status": "error", "error_type": "http_500"}] * failed
        ends += [{"status": "cancelled"}] * cancelled + [{}] * good
        drafts = [
            loop([exact("search", 10, 300)], at=2000.0 * n, model=10, **end) for n, end in enumerate(ends)
        ]
        return directory_of(tmp_path / name, run_of(*drafts), records(*drafts))

    then, now = of("then", 1, 2, 7), of("now", 1, 5, 4)
    table = tabulate(now.records())
    (measured,) = measure(now.load(), table)
    found = figures(measured, table)
    assert found.failure_rate.value == 1 / 5
    assert (found.loops.due, found.loops.failed, found.loops.cancelled) == (10, 1, 5)
    assert (found.totals.failed, found.totals.cancelled, found.totals.good) == (1, 5, 4)
    assert found.error_types == found.totals.causes == {"http_500": 1}
    assert main(["compare", str(then.path), str(now.path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "Cancelled, or cut off in the recording: 2 of 10 loops → 5 of 10 loops; these count neither" in said
    )
    assert main(["compare", str(now.path), "--fail-on", "errors > 50%"]) == 0
    assert "; 5 cancelled, neither failed nor good" in " ".join(capsys.readouterr().out.split())
    assert main(["compare", str(of("stopped", 0, 3, 0).path), "--fail-on", "errors > 50%"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "every loop failed or was cancelled (3 of recorded)" in said
