"""The search against an invented system, whose best setting is known, and what it may spend. Nothing runs."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from profiler import UsageError, records
from profiler.errors import Interrupted, ProfilerError, TargetError, Terminated
from profiler.load.experiment import Experiment
from profiler.load.options import LoadOptions, conditions
from profiler.load.plan import schedule
from profiler.load.spending import spent_by
from profiler.over import parse_over
from profiler.records import LoopRecord
from profiler.rundir import Incident, Run, RunDirectory, Spent, Trial
from profiler.strategies import parse_strategy
from profiler.tune import search as driver
from profiler.tune import stages
from profiler.tune.answer import Answer, render
from profiler.tune.asked import Search
from profiler.tune.budget import Spending
from profiler.tune.search import tune
from tests.unit.statistics_data import loop, run
from tests.unit.statistics_data import loop as made_loop


def test_search_that_cannot_be_is_refused():
    with pytest.raises(UsageError, match="--budget must be at least 60"):
        Search(LoadOptions(), 10, budget=10)
    with pytest.raises(UsageError, match="--over magic"):
        Search(LoadOptions(), 10, over=parse_over("magic"))
    with pytest.raises(UsageError, match="add --stream"):
        Search(LoadOptions(), 10, over=parse_over("eager"))


LIMITS = LoadOptions(max_loops=100, max_requests=250, max_tokens=9_000, max_cost=0.02, price="1/10")


def spent(loops: int, requests: int, given: int, taken: int, *incidents: Incident) -> Run:
    return run([], spent=Spent(loops, requests, given, taken), incidents=incidents)


def test_spending_leaves_the_next_experiment_what_is_left() -> None:
    spending = Spending(LIMITS)
    assert spending.left() == LIMITS
    spending.add(spent(10, 30, 2000, 100))
    spending.add(spent(5, 12, 1000, 50))
    left = spending.left()
    assert (left.max_loops, left.max_requests, left.max_tokens) == (85, 208, 5850)
    assert left.max_cost == pytest.approx(0.02 - 0.003 - 0.0015)
    assert spending.described == "15 loops, 42 requests, 3,000 tokens in, 150 out: $0.0045 at " + (
        "$1/$10 per million tokens in/out"
    )
    assert spending.stopped is None


def test_spending_allows_an_experiment_only_more_than_its_first_loops() -> None:
    spending = Spending(LIMITS)
    assert spending.allows(1000)  # what a loop spends is not known yet
    spending.add(spent(80, 160, 6000, 0))  # 20 loops are left, 45 of requests, 40 of tokens
    assert spending.allows(19)
    assert not spending.allows(20)
    assert (spending.limit, spending.stopped) == ("loops", "stopped at --max-loops 100: 80 begun")


def test_spending_that_ended_an_experiment_ends_the_search() -> None:
    spending = Spending(LIMITS)
    spending.add(spent(40, 252, 4000, 100, Incident("limited", "stopped at --max-requests 250: 252 sent")))
    assert spending.stopped == "stopped at --max-requests 250: 252 sent"
    assert not spending.allows(0)
    assert spending.left().max_requests == 1  # a limit all the same


def test_spending_without_limits_ends_nothing() -> None:
    spending = Spending(LoadOptions())
    spending.add(spent(10**6, 10**7, 10**9, 10**9))
    assert spending.allows(1000)
    assert spending.left() == LoadOptions()
    spending.add(run([]))  # of an older version
    assert spending.spent.loops == 10**6


CAPACITY = 20


def goodput(spec: str, users: int) -> tuple[float, float]:
    """(loops a second, share that fails): one for each place in use; above the capacity, refusals."""
    asked = parse_strategy(spec)
    limit = asked.variant[0][1] if asked.kind == "own" else asked.limit
    if spec == "adaptive":
        return min(CAPACITY, 2.0 * users) * 0.93, 0.02
    if spec == "sequential":
        return 0.25 * users, 0.0
    limit = limit * users if limit is not None and asked.scope == "agent" else limit
    places = min(8 * users, limit if limit is not None else 8 * users)
    return min(places, 2.0 * users), min(0.9, max(0.0, 3 * (places - CAPACITY) / CAPACITY))


@pytest.fixture
def invented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_repeats: None) -> list[Experiment]:
    """Replaces experiments by invented ones; the list gets what was asked for."""
    asked: list[Experiment] = []

    def run_experiment(experiment: Experiment, enough: Callable[[RunDirectory], bool] | None = None) -> Path:
        asked.append(experiment)
        options = experiment.options
        draw = random.Random(options.seed)
        run = conditions(replace(options, out=str(tmp_path)), experiment.users)
        directory = RunDirectory.create(tmp_path, run)
        made: list[LoopRecord] = []
        trials: list[Trial] = []
        now, window = 1.0, experiment.seconds / experiment.blocks
        budget, spent, stopped = options.budget(), Spent(1, 2, 100, 10), False  # the warm-up

        def save() -> None:
            directory.records_path.write_bytes(b"".join(records.encode(one) + b"\n" for one in made))
            incidents = (Incident("limited"),) if stopped else ()
            directory.save(
                replace(run, trials=tuple(trials), finished=True, spent=spent, incidents=incidents)
            )

        for planned in schedule(
            [spec.text for spec in options.strategies],
            options.seed,
            experiment.blocks,
            options.levels,
            climb=options.climb,
        ):
            if trials and planned.block > trials[-1].block and enough is not None:
                save()
                if enough(directory):
                    break
            users = planned.users or experiment.users
            rate, failing = goodput(planned.strategy, users)
            rate *= draw.uniform(0.99, 1.01)
            for number in range(int(rate * (window + 0.71))):
                start = round((now + number / rate - 0.71) * 1000)  # in full swing when it begins
                failed = draw.random() < failing
                one = loop(
                    start,
                    10.0,
                    [(0.0, 500.0)],
                    planned.strategy,
                    planned.index,
                    tool_status="error" if failed else "ok",
                )
                if budget.room(spent, 0)[0] == 0:
                    stopped = True
                    break
                made.append(_with_limit(one, failed))
                spent += replace(spent_by(one), loops=1)
            ends = now + window
            trials.append(
                Trial(
                    planned.index,
                    planned.block,
                    planned.strategy,
                    users,
                    int(now * 1e9),
                    int(ends * 1e9),
                    int((ends + 0.1) * 1e9),
                )
            )
            now = ends + 0.1
            if stopped:
                break
        save()
        return directory.path

    monkeypatch.setattr(driver, "predictor_of", lambda search: None)
    monkeypatch.setattr(driver, "run_experiment", run_experiment)
    # What the search plans depends on how long it took so far: here nothing takes any time.
    monkeypatch.setattr(driver, "time", SimpleNamespace(monotonic=lambda: 0.0))
    return asked


def _with_limit(record: LoopRecord, failed: bool) -> LoopRecord:
    if record.strategy != "adaptive":
        return record
    first, *rest = record.rounds
    calls = tuple(replace(c, error_type="http_429" if failed else None) for c in first.tool_calls)
    return replace(record, rounds=(replace(first, limit=CAPACITY, tool_calls=calls), *rest))


def search(users: int, **changes) -> Search:
    return Search(LoadOptions(scenario="crowded"), users, **{"budget": 120.0, **changes})


@pytest.mark.slow
def test_search_finds_the_capacity_and_the_cliff_beyond_it(invented):
    said: list[str] = []
    answer = tune(search(20), said.append)
    assert answer.setting.limit is not None
    assert 0.95 * CAPACITY <= answer.setting.limit <= CAPACITY
    assert answer.setting.goodput.value == pytest.approx(answer.setting.limit, rel=0.05)
    assert answer.shape is not None
    assert answer.shape.cliff is not None
    assert CAPACITY < answer.shape.cliff <= 1.5 * CAPACITY
    assert not answer.gathered_is_as_good
    assert answer.sentence.startswith(f"semaphore:{answer.setting.limit}, shared: goodput ")
    assert "for gathered" in answer.sentence
    assert "no difference shown)" not in answer.sentence
    assert [at.share for at in answer.loads] == [0.5, 0.75, 1.25, 1.5]
    assert answer.scalability is not None
    assert answer.effective == f"{answer.setting.spec}: up to {answer.setting.limit} calls at once"
    assert f'Gate("{answer.setting.spec}")' in answer.python
    assert said[-2].startswith("loads: ")
    assert said[-1].startswith(f"confirm: {answer.setting.spec}, 1 × ")  # last: nearest to what it promises
    # Every rung does work of its own, and the last one decides among few.
    assert len({one.options.seed for one in invented}) == len(invented) == 5
    assert len(invented[2].options.strategies) <= 5


def test_search_where_nothing_is_refused_finds_gathering_as_good(invented):
    answer = tune(search(2))
    assert answer.setting.spec == "gathered"
    assert answer.gathered_is_as_good
    assert answer.shape is not None
    assert answer.shape.cliff is None
    assert answer.sentence.startswith("gathered: at this load gathering is as good as any limit")


@pytest.mark.slow
@pytest.mark.parametrize(("values", "best"), [("1..32", range(19, 21)), ("2,4,16,24,64", range(16, 17))])
def test_search_of_a_setting_finds_the_value_and_how_to_set_it(invented, values, best):
    load = LoadOptions(scenario="crowded", agent="my_app:make_agent")
    answer = tune(Search(load, 20, over=parse_over(f"calls={values}"), budget=120.0))
    value, largest = answer.setting.limit, values.replace(".", ",").split(",")[-1]
    assert value in best
    assert f"calls={largest}" in map(str, invented[0].options.strategies)
    assert all(spec.kind == "own" for one in invented for spec in one.options.strategies)
    assert answer.setting.goodput.value == pytest.approx(value, rel=0.05)
    assert answer.sentence.startswith(f"calls={value}: goodput ")
    assert f" for calls={largest}" in answer.sentence
    assert answer.shape.cliff is not None
    assert (answer.baseline, answer.dial) == (f"calls={largest}", "calls")
    assert answer.python == f"from my_app import make_agent\n\nmake_agent(..., calls={value})\n"
    assert answer.toml == f"[agent]\ncalls = {value}\n"
    assert [at.gathered.spec for at in answer.loads] == [f"calls={largest}"] * 4


def test_search_of_a_setting_that_makes_no_difference_finds_its_smallest_value(invented):
    load = LoadOptions(scenario="crowded", agent="my_app:make_agent")
    answer = tune(Search(load, 2, over=parse_over("calls=4..16"), budget=120.0))  # four places are enough
    assert answer.setting.spec == "calls=4"
    assert "; between 4 and 16 no difference shown" in answer.sentence


@pytest.mark.slow
def test_search_with_several_processes_shares_what_was_found(invented):
    load = LoadOptions(scenario="crowded", share_limit=True)
    answer = tune(Search(load, 20, workers=2, budget=120.0))
    assert answer.setting.limit is not None
    each = answer.setting.limit // 2
    assert answer.effective == (
        f"{answer.setting.spec}: {each} per process × 2 processes = up to {2 * each} calls at once"
    )
    assert f'Gate("{answer.setting.spec}", share=2)' in answer.python
    assert all(one.workers == 2 for one in invented)


@pytest.mark.slow
def test_search_ends_its_last_rung_when_everything_in_it_is_told_apart(invented):
    answer = tune(search(20))
    last = RunDirectory.open(answer.runs[2]).load()
    assert invented[2].blocks > 4
    assert len({trial.block for trial in last.trials}) == 4


@pytest.mark.slow
def test_search_lets_arrivals_grow_with_the_load(invented):
    load = LoadOptions(scenario="crowded", arrivals="constant:10/s")
    tune(Search(load, 20, budget=120.0))
    *before, loads, confirm = invented
    assert {one.options.arrivals for one in before} == {"constant:10/s"}
    assert (loads.users, loads.options.arrivals) == (30, "constant:15.000000/s")
    assert (confirm.users, confirm.options.arrivals) == (20, "constant:10/s")


@pytest.mark.slow
def test_search_tries_rates_when_asked_for(invented):
    tune(search(20, over=parse_over("semaphore,rate"), budget=240.0))
    assert sum(spec.text.startswith("rate:") for spec in invented[2].options.strategies) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("over", "best"),
    [("semaphore=2..12,adaptive,sequential", 12), ("semaphore=4,9,16,40", 16), ("semaphore=22..40", 22)],
)
def test_search_tries_no_limit_but_those_that_are_named(invented, over, best):
    answer = tune(search(20, over=parse_over(over)))
    specs = {spec for one in invented for spec in one.options.strategies}
    values = parse_over(over)[0].values
    tried = {spec.limit for spec in specs if spec.kind == "limited"}
    assert len(tried) > 1
    assert {values.nearest(limit) for limit in tried} == tried
    kinds = {"gathered", *(["adaptive", "sequential"] if "sequential" in over else ["sequential"])}
    assert {*map(str, invented[0].options.strategies)} == kinds  # the first look
    assert answer.setting.spec == f"semaphore:{best}"
    assert (answer.edge is None) is (best == 16)
    assert (answer.edge or "") in render(answer)


@pytest.mark.slow
def test_search_over_the_limit_of_a_tool_or_an_agent_says_what_was_found_of_it(invented):
    answer = tune(search(20, over=parse_over("semaphore:get_weather=1..40")))
    assert answer.setting.spec == f"semaphore:get_weather={answer.setting.limit}"
    assert 0.95 * CAPACITY <= answer.setting.limit <= CAPACITY
    assert answer.sentence.startswith(f"semaphore:get_weather={answer.setting.limit}: goodput ")
    assert f'strategy = "semaphore:get_weather={answer.setting.limit}"' in answer.toml
    answer = tune(search(20, over=parse_over("semaphore@agent")))
    assert answer.setting.spec == "semaphore:1@agent"  # of 20 agents


def test_search_over_the_limit_of_a_tool_that_is_never_called_ends_with_its_first_look(invented):
    said = r"no call of get_wether was seen \(did you mean 'get_weather'\?\); known: get_weather"
    with pytest.raises(UsageError, match=said):
        tune(search(20, over=parse_over("semaphore:get_wether=1..4")))
    assert len(invented) == 1


def test_search_over_rates_alone_tries_those_that_are_named(invented):
    answer = tune(search(20, over=parse_over("rate=5..12")))
    final = {spec.text for spec in invented[1].options.strategies}
    assert final == {"gathered", "rate:12/s", "rate:5/s", "rate:7.746/s"}
    assert answer.curve == ()


def test_search_whose_experiment_measured_nothing_is_an_error(invented, monkeypatch):
    monkeypatch.setattr(stages, "candidates", lambda *arguments: [])
    with pytest.raises(TargetError, match="nothing was measured"):
        tune(search(20))


@pytest.mark.parametrize("kind", [Interrupted, Terminated])
def test_search_that_is_ended_answers_with_what_it_has(invented, monkeypatch, kind):
    """In its second experiment, which has measured what it could by then."""
    run = driver.run_experiment

    def ended(experiment: Experiment, **others) -> Path:
        path = run(experiment, **others)
        if len(invented) == 2:
            directory = RunDirectory.open(path)
            directory.save(replace(directory.load(), incidents=(Incident(kind.incident),)))
        return path

    monkeypatch.setattr(driver, "run_experiment", ended)
    answer = tune(search(20))
    assert len(invented) == len(answer.runs) == 2
    assert (answer.ended, answer.stopped) == (kind.incident, f"the search was {kind().cause}")
    assert (answer.proven, answer.failed, answer.loads) == (False, False, ())
    assert answer.setting.limit is not None
    assert answer.sentence.startswith(f"best so far {answer.setting.spec}: ")


def test_search_that_is_ended_before_anything_was_measured_says_so(invented, monkeypatch):
    def ended(*_, **others) -> Path:
        raise Terminated

    monkeypatch.setattr(driver, "run_experiment", ended)
    with pytest.raises(Terminated):
        tune(search(20))


def limited(**changes) -> Search:
    return Search(LoadOptions(scenario="crowded", **changes), 12, budget=240.0)


def loops_of(asked: list[Experiment], answer: Answer) -> list[int]:
    assert len(asked) == len(answer.runs)
    return [run.spent.loops for path in answer.runs if (run := RunDirectory.open(path).load()).spent]


@pytest.mark.slow
def test_search_gives_each_experiment_what_is_left_of_the_limits(invented):
    whole = tune(limited())
    assert whole.stopped is None
    needed = sum(loops_of(invented, whole))
    invented.clear()
    answer = tune(limited(max_loops=needed + 1, max_requests=10 * needed))
    loops = loops_of(invented, answer)
    assert (answer.stopped, answer.proven, sum(loops)) == (None, True, needed)
    left = [one.options.max_loops for one in invented]
    assert left == [needed + 1 - sum(loops[:k]) for k in range(5)]
    assert [one.options.max_requests for one in invented] == [
        10 * needed - 2 * sum(loops[:k]) for k in range(5)
    ]
    assert (answer.setting, answer.sentence) == (whole.setting, whole.sentence)
    assert answer.spent.startswith(f"{needed:,} loops, {2 * needed:,} requests, ")


@pytest.mark.slow
def test_search_ended_by_a_limit_has_the_best_so_far(invented):
    pilot, rungs, final, *_ = loops_of(invented, tune(limited()))
    invented.clear()
    # In the ladder, which has been round once: it tells something.
    most = pilot + round(0.7 * rungs)
    answer = tune(limited(max_loops=most))
    assert len(invented) == 2
    assert answer.stopped == f"stopped at --max-loops {most}: {most} begun"
    assert (answer.proven, answer.gathered_is_as_good, answer.loads) == (False, False, ())
    assert answer.setting.limit is not None
    assert {one.spec for one in answer.final} == set(map(str, invented[1].options.strategies))
    assert answer.sentence.startswith(f"best so far {answer.setting.spec}: goodput ")
    assert answer.sentence.endswith("/s; the search had not come to its end")
    lines = render(answer).splitlines()
    assert lines[:2] == [f"{answer.stopped}.", f"{answer.sentence}."]
    assert "knee" not in render(answer)

    # In the last rung, before all in it had their turn: the ladder's is still what is known.
    invented.clear()
    answer = tune(limited(max_loops=pilot + rungs + 10))
    assert len(invented) == 3
    assert {one.spec for one in answer.final} == set(map(str, invented[1].options.strategies))

    # After the last rung: nothing is missing but the other loads.
    invented.clear()
    answer = tune(limited(max_loops=pilot + rungs + final + 1))
    assert len(invented) == 3
    assert (answer.proven, answer.loads, answer.scalability) == (True, (), None)
    assert answer.stopped is not None
    assert answer.sentence.startswith(f"semaphore:{answer.setting.limit}, shared: goodput ")

    # First loops alone are no experiment: agents of one's own have one for each strategy.
    for agent, experiments in ((None, 2), ("my:agent", 1)):
        invented.clear()
        answer = tune(limited(agent=agent, max_loops=pilot + 5))
        assert len(invented) == experiments
        begun = sum(loops_of(invented, answer))
        assert answer.stopped == f"stopped at --max-loops {pilot + 5}: {begun} begun"
        assert {one.spec for one in answer.final} == {"gathered", "adaptive"}  # the pilot's


def test_search_with_a_limit_too_low_to_find_anything_says_so_in_one_line(invented):
    said = "^stopped at --max-loops 2: 2 begun: too little was measured, or met the objective; see /"
    with pytest.raises(ProfilerError, match=said) as raised:
        tune(limited(max_loops=2))
    assert raised.value.exit_code == 1
    assert len(invented) == 1


@pytest.mark.parametrize(
    ("gone_in", "proven", "known"),
    [(2, False, {"gathered", "adaptive"}), (3, False, None), (4, True, None)],
    ids=["ladder", "final", "other loads"],
)
def test_search_whose_target_goes_away_leaves_what_was_found(invented, monkeypatch, gone_in, proven, known):
    run_experiment = driver.run_experiment

    def goes_away(experiment: Experiment, **options: Any) -> Path:
        if len(invented) == gone_in - 1:
            raise TargetError("the target http://127.0.0.1:9 went away")
        return run_experiment(experiment, **options)

    monkeypatch.setattr(driver, "run_experiment", goes_away)
    answer = tune(search(20))
    assert (answer.failed, answer.proven, answer.loads) == (True, proven, ())
    assert answer.stopped == "the search ended early: the target http://127.0.0.1:9 went away"
    assert {one.spec for one in answer.final} == (known or set(map(str, invented[-1].options.strategies)))
    assert len(answer.runs) == gone_in - 1
    assert render(answer).splitlines()[0] == f"{answer.stopped}."


def test_search_counts_what_was_measured_before_the_target_went_away(invented, monkeypatch):
    run_experiment = driver.run_experiment

    def goes_away(experiment: Experiment, **options: Any) -> Path:
        path = run_experiment(experiment, **options)
        if len(invented) == 3:
            error = TargetError("the target went away")
            error.run_directory = str(path)
            raise error
        return path

    monkeypatch.setattr(driver, "run_experiment", goes_away)
    answer = tune(search(20))
    assert len(answer.runs) == 3
    assert answer.stopped == f"the search ended early: the target went away; see {answer.runs[-1]}"
    assert {one.spec for one in answer.final} == set(map(str, invented[-1].options.strategies))
    loops = [RunDirectory.open(path).load().spent.loops for path in answer.runs]
    assert answer.spent.startswith(f"{sum(loops):,} loops, ")


def test_search_of_a_target_that_was_never_there_is_an_error(monkeypatch):
    def nobody(experiment: Experiment, **options: Any) -> Path:
        raise TargetError("nobody listens")

    monkeypatch.setattr(driver, "run_experiment", nobody)
    with pytest.raises(TargetError, match="nobody listens"):
        tune(search(20))


def test_search_over_loops_without_tool_calls_has_nothing_to_tune(invented, monkeypatch):
    without = lambda *args, **_: made_loop(*args[:2], (), *args[3:])  # noqa: E731
    monkeypatch.setattr("tests.unit.test_tune_search.loop", without)
    with pytest.raises(
        UsageError, match=r"^nothing to tune: \d+ loops, no tool call was asked for: .*vLLM: --"
    ):
        tune(search(20))
    assert len(invented) == 1
