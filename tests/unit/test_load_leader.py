"""A load test from its ramp to its last trial, on a virtual clock: what is led, and what is said of it."""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from profiler.errors import TargetError
from profiler.load.leader import Leader, Ramp
from profiler.load.messages import Begin, End, Returned, TrialState
from profiler.load.options import LoadOptions, conditions
from profiler.load.output import RunOutput
from profiler.load.target import Target
from profiler.records import encode
from profiler.rundir import Incident, RunDirectory
from profiler.strategies import parse_strategies
from tests.unit.statistics_data import loop
from tests.unit.test_load_workers import ROOT, Connected

TOO_SHORT = "stopped before all users were there: nothing was measured; spawn them faster (-r)"


class Leaders:
    """Makes leaders whose workers answer at once, on virtual time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._made: list[Leader] = []

    def __call__(self, there: Connected, ramp: Ramp, *, gone: str | None = None, **asked: Any) -> Leader:
        options = LoadOptions(**{"drain_seconds": 0.0, "out": str(self._path), **asked})
        run = conditions(options, ramp.users)
        output = RunOutput(RunDirectory.create(options.out, run), run)
        target = Target(ROOT, gone=lambda: gone)
        made = Leader(options, ramp, there.workers_of_test, target, output, there.clock.event, there.clock)
        self._made.append(made)
        return made

    def close(self) -> None:
        for made in self._made:
            made.output.close()


@pytest.fixture
def leader(tmp_path: Path) -> Iterator[Leaders]:
    leaders = Leaders(tmp_path)
    yield leaders
    leaders.close()


def test_trials_take_turns_in_blocks_and_each_measures_its_window(leader: Leaders) -> None:
    there = Connected("a", "b")
    there.scale(8, 8.0)
    asked = {"strategies": parse_strategies("gathered,sequential"), "blocks": 2, "trial_seconds": 3.0}
    one = leader(there, Ramp(8, 8.0, None), **asked)
    one.spawned()
    one.run()
    run = one.output.run
    assert (run.finished, run.workers, run.model, run.incidents) == (True, 2, "m", ())
    assert [(trial.index, trial.block) for trial in run.trials] == [(0, 0), (1, 0), (2, 1), (3, 1)]
    for block in (run.trials[:2], run.trials[2:]):
        assert {trial.strategy for trial in block} == {"gathered", "sequential"}
    assert {trial.ended_ns - trial.started_ns for trial in run.trials} == {3_000_000_000}
    assert {(trial.users, trial.wanted, trial.interrupted) for trial in run.trials} == {(8, 8, 4)}
    assert [type(message) for _, message in there.sent[2:]] == [Begin, Begin, End, End] * 4
    assert RunDirectory.open(one.output.directory.path).load().trials == run.trials


def test_ladder_of_loads_has_its_users_before_a_trial_begins(leader: Leaders) -> None:
    there = Connected("a")
    one = leader(there, Ramp(4, 4.0, None), levels=(6, 2), blocks=1, trial_seconds=1.0)
    one.spawned()
    one.run()
    assert [(trial.users, trial.wanted) for trial in one.output.run.trials] == [(2, 2)] * 3 + [(6, 6)] * 3


def test_stopped_the_trial_under_way_is_the_last_and_the_run_not_finished(leader: Leaders) -> None:
    there = Connected("a")
    one = leader(there, Ramp(1, 1.0, None), trial_seconds=5.0)
    there.clock.timers[7.0] = one.stop
    there.scale(1, 1.0)
    one.spawned()
    one.run()
    run = one.output.run
    assert len(run.trials) == 2
    assert run.trials[-1].ended_ns == 7_000_000_000
    assert not run.finished


def test_target_that_goes_away_while_users_are_spawned_ends_the_run(
    leader: Leaders, caplog: pytest.LogCaptureFixture
) -> None:
    there = Connected("a")
    one = leader(there, Ramp(100, 1.0, 0.5), gone="the target went away")
    one.run()
    assert isinstance(one.error, TargetError)
    assert there.told(Begin) == there.told(End) == ["a"]
    run = one.output.run
    assert (run.finished, run.trials) == (False, ())
    assert run.incidents == (Incident("aborted", "the target went away"),)
    assert TOO_SHORT not in caplog.text


@pytest.mark.parametrize(
    ("seconds", "max_loops", "interrupted", "said"),
    [
        (0.5, None, False, True),  # over as soon as it begins
        (60.0, None, False, False),
        (None, None, False, False),
        (0.5, 1, False, False),  # spent by the first loop of the worker
        (0.5, None, True, False),
    ],
)
def test_run_time_is_blamed_for_users_that_did_not_come_only_if_it_was_too_short(
    leader: Leaders,
    caplog: pytest.LogCaptureFixture,
    seconds: float | None,
    max_loops: int | None,
    interrupted: bool,
    said: bool,
) -> None:
    one = leader(Connected("a"), Ramp(100, 1.0, seconds), max_loops=max_loops)
    if interrupted:
        one.output.note(Incident("interrupted", "stopped by the user"))
    if max_loops is None:
        one.stop()
    one.run()
    assert (TOO_SHORT in caplog.text) == said
    assert one.ended_early == (said or max_loops is not None)  # then the exit code is 1
    assert one.output.run.trials == ()


def timed(leader: Leaders, there: Connected, rate: float | None = None, **asked: Any) -> Leader:
    """A leader of two blocks of two strategies, with four agents that end `rate` loops a second."""
    asked = {
        "strategies": parse_strategies("gathered,sequential"),
        "blocks": 2,
        "trial_seconds": 3.0,
        **asked,
    }
    there.scale(4, 4.0)
    one = leader(there, Ramp(4, 4.0, None), **asked)
    if rate is not None:

        def state() -> TrialState:
            return TrialState(loops=int(rate * (there.clock() - one._begun_ns) / 1e9))

        there.workers_of_test.state = state  # type: ignore[method-assign]
    one.spawned()
    one.run()
    return one


def test_trial_that_would_not_have_drained_in_time_is_not_begun(leader: Leaders) -> None:
    there = Connected("a")
    one = timed(leader, there, until_seconds=8.0)
    run = one.output.run
    assert len(run.trials) == 2
    assert run.incidents == (Incident("out_of_time", "before trial 2"),)
    assert run.finished
    assert all(trial.drained_ns <= 8_000_000_000 for trial in run.trials)


def test_trial_of_a_search_is_shorter_rather_than_left_out(leader: Leaders) -> None:
    one = timed(leader, Connected("a"), rate=40.0, window_loops=1.0, until_seconds=9.5)
    windows = [(trial.ended_ns - trial.started_ns) / 1e9 for trial in one.output.run.trials]
    assert windows == [3.0, 3.0, pytest.approx(2.0, abs=0.1)]
    assert one.output.run.trials[-1].drained_ns <= 9_500_000_000


def test_test_whose_first_trial_does_not_fit_says_how_long_a_loop_takes(leader: Leaders) -> None:
    run = timed(leader, Connected("a"), until_seconds=2.0).output.run
    assert run.trials == ()
    assert run.loop_seconds == pytest.approx(0.1)


def test_window_goes_on_until_it_holds_the_loops_that_were_asked_for(leader: Leaders) -> None:
    one = timed(leader, Connected("a"), rate=2.0, window_loops=3.0, until_seconds=100.0)
    # By Little's law the loops of four agents that end two in a second take 2 s.
    first = one.output.run.trials[0]
    assert (first.ended_ns - first.started_ns) / 1e9 == pytest.approx(6.0, abs=1.0)


@pytest.mark.parametrize(
    "asked", [{"rate": 40.0, "window_loops": 3.0, "until_seconds": 100.0}, {"rate": 0.1}]
)
def test_window_that_holds_enough_is_not_prolonged(leader: Leaders, asked: dict[str, Any]) -> None:
    one = timed(leader, Connected("a"), **asked)
    assert {trial.ended_ns - trial.started_ns for trial in one.output.run.trials} == {3_000_000_000}


def test_window_is_prolonged_no_further_than_the_time_of_the_test(leader: Leaders) -> None:
    one = timed(leader, Connected("a"), rate=0.0, window_loops=3.0, until_seconds=10.0)
    (trial,) = one.output.run.trials
    assert 9.0 <= trial.ended_ns / 1e9 <= 10.0


def test_trial_has_the_agents_that_took_part_and_not_those_that_locust_counts(leader: Leaders) -> None:
    there = Connected("a", "b")
    there.scale(8, 8.0)
    there.drained = replace(there.drained, agents=3)
    one = leader(there, Ramp(8, 8.0, None), blocks=1, trial_seconds=1.0)
    one.spawned()
    one.run()
    assert {(trial.users, trial.wanted) for trial in one.output.run.trials} == {(6, 8)}


def test_worker_that_returns_is_an_incident_with_the_loops_it_had_in_flight(leader: Leaders) -> None:
    there = Connected("a", "b")
    there.scale(2, 2.0)
    one = leader(there, Ramp(2, 2.0, None), blocks=1, trial_seconds=1.0)
    one.spawned()
    one.run()
    one.returned("b", Returned(3, 20.0))
    (incident,) = one.output.run.incidents
    assert (incident.kind, incident.count) == ("worker_returned", 3)
    assert incident.detail.startswith("worker 1 stood still for 20 s and came back")


def test_target_that_stood_still_is_noted_with_when_and_how_long(leader: Leaders) -> None:
    """Loops of 0.2 s for 8 s, then one agent's loop of 20 s over the stop, then quick ones again."""
    there = Connected("a")
    there.scale(4, 4.0)
    one = leader(
        there, Ramp(4, 4.0, None), strategies=parse_strategies("gathered"), blocks=1, trial_seconds=40.0
    )
    starts = [100.0 * k for k in range(80)] + [28_100.0 + 100.0 * k for k in range(80)]
    records = [loop(start, model=200.0) for start in starts] + [loop(8050.0, model=20_000.0)]
    state = {"loops": 0}

    def comes() -> None:
        lines = b"".join(encode(record) + b"\n" for record in records)
        one.output.write(lines, len(records))

    def look(second: int) -> None:
        state["loops"] += 10 * (second < 8 or second > 28)
        one.report_progress()

    there.workers_of_test.state = lambda: TrialState(4, loops=state["loops"])  # type: ignore[method-assign]
    there.clock.timers[35.0] = comes
    for second in range(1, 35):
        there.clock.timers[second + 0.5] = partial(look, second)
    one.spawned()
    one.run()
    at = time.strftime("%H:%M:%S", time.gmtime(one.output.run.anchor.unix(8_100_000_000) / 1e9))
    (incident,) = one.output.run.incidents
    assert incident == Incident(
        "target_stood_still", f"for 20 s from {at} UTC, in trial 0 (gathered): 1 request was waiting"
    )


def test_records_that_could_not_be_handed_on_are_said_with_their_number(leader: Leaders) -> None:
    there = Connected("a", "b")
    there.drained = replace(there.drained, unwritten=3)
    there.scale(2, 2.0)
    one = leader(there, Ramp(2, 2.0, None), blocks=1, trial_seconds=1.0)
    one.spawned()
    one.run()
    dropped = [incident for incident in one.output.run.incidents if incident.kind == "records_dropped"]
    assert [(incident.detail, incident.count) for incident in dropped] == [
        (f"in trial {number} ({strategy})", 6)
        for number, strategy in enumerate(trial.strategy for trial in one.output.run.trials)
    ]
    assert len(dropped) == 3
    assert one.output.run.finished


def test_lost_sessions_with_a_server_are_an_incident_of_the_trial(leader: Leaders) -> None:
    there = Connected("a", "b")
    there.drained = replace(there.drained, lost_sessions=(("files", 2), ("web", 1)))
    there.scale(2, 2.0)
    one = leader(there, Ramp(2, 2.0, None), blocks=1, trial_seconds=1.0)
    one.spawned()
    one.run()
    lost = [incident for incident in one.output.run.incidents if incident.kind == "server_lost"]
    strategy = one.output.run.trials[0].strategy
    assert [(incident.detail, incident.count) for incident in lost[:2]] == [
        (f"in trial 0 ({strategy}): the session with files was lost, and 4 calls were with it", 4),
        (f"in trial 0 ({strategy}): the session with web was lost, and 2 calls were with it", 2),
    ]
    assert one.output.run.finished


def test_agent_that_holds_an_event_loop_ends_the_run_after_the_trial(leader: Leaders) -> None:
    there = Connected("a")
    there.drained = replace(there.drained, held="worker 0: agent.py:12 holds it")
    there.scale(2, 2.0)
    one = leader(there, Ramp(2, 2.0, None), blocks=3, trial_seconds=1.0)
    one.spawned()
    one.run()
    assert str(one.error) == "worker 0: agent.py:12 holds it"
    assert len(there.told(Begin)) == 1
    assert one.output.run.incidents == (Incident("aborted", "worker 0: agent.py:12 holds it"),)
    assert not one.output.run.finished


def test_test_whose_last_worker_is_gone_says_so(leader: Leaders) -> None:
    there = Connected("a")
    there.scale(1, 1.0)
    one = leader(there, Ramp(1, 1.0, None), trial_seconds=5.0)
    there.clock.timers[7.0] = lambda: (there.names.clear(), one.stop_without_workers())
    one.spawned()
    one.run()
    assert str(one.error) == "no worker is left to run loops; what was measured is kept"
    run = one.output.run
    assert (len(run.trials), run.finished) == (1, False)
    assert [incident.kind for incident in run.incidents] == ["aborted", "worker_lost"]
