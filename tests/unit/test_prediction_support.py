"""Recordings that cannot tell what is asked, each beside one that can: the one is refused in words, the other
predicted, and right: held against the same cell that really ran, in virtual time, on servers that share
nothing with what predicts."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from profiler.arrivals import Arrivals
from profiler.commands.predict import check_tools
from profiler.errors import UsageError
from profiler.prediction.answering import limits_of, record_words
from profiler.prediction.asking import Asked
from profiler.prediction.check import measured_figures
from profiler.prediction.fitting import Fitted, fit_run
from profiler.prediction.predict import FEWEST_FOR_P99, Predicted, Question, predict
from profiler.prediction.simulation.load import SimulatedLoad, Trials
from profiler.prediction.support import FEWEST_LOOPS, known_up_to
from profiler.records import LoopRecord, ToolCall
from profiler.rundir import Recording
from profiler.strategies import StrategySpec, parse_strategy
from tests.virtual_servers import Recorded, Server, ServerKind, World, record

pytestmark = pytest.mark.slow

CAPACITY = 12
WORLDS = {
    kind: World({"search": Server(0.4, kind, CAPACITY), "fetch": Server(0.2)})
    for kind in ("none", "refuse", "queue", "share")
}
LADDER = (3, 6, 12, 24)
WITHIN = 0.10
POINTS = 0.02


@functools.cache
def ladder(kind: ServerKind) -> Recorded:
    """Past the capacity."""
    return record(WORLDS[kind], "gathered,sequential", LADDER, seconds=35, seed=6)


@functools.cache
def low(kind: ServerKind) -> Recorded:
    """Never near it."""
    return record(WORLDS[kind], "gathered,sequential", (1, 2), seconds=150, seed=6)


@functools.cache
def fitted_ladder(kind: ServerKind) -> Fitted:
    return fit(ladder(kind))


def fit(recorded: Recorded, **changes: Any) -> Fitted:
    return replace(fit_run(recorded.run, recorded.records), **changes)


def ask(fitted: Fitted, strategy: str, users: int, **load: Any) -> Predicted:
    question = Question(parse_strategy(strategy), SimulatedLoad(users, **load), Trials(150.0))
    return predict(fitted, question, replicates=10, seed=1)


def refused(predicted: Predicted, *sentences: str) -> None:
    """No figure, and these words in what is said instead."""
    assert not predicted.figures
    said = " | ".join(predicted.refused)
    for sentence in sentences:
        assert sentence in said


REALLY: dict[str, dict[str, float | None]] = {}


def really(
    world: World, strategy: str, users: int, loop_seconds: float = 3.0, **load: Any
) -> dict[str, float | None]:
    """The figures of that cell where it ran: once, for all tests."""
    key = repr((world, strategy, users, load))
    if key not in REALLY:
        seconds = max(100.0, 3000 / users)
        truth = record(world, strategy, [users], seconds=seconds, seed=7, spread_seconds=loop_seconds, **load)
        REALLY[key], loops = measured_figures(truth.run, truth.records)[strategy, users]
        assert loops > 200
    return REALLY[key]


def right(predicted: Predicted, world: World, **load: Any) -> None:
    """Of the cell that really ran, every figure is in the band, or as near as a run of that length tells."""
    assert predicted.refused == ()
    spec, users = predicted.question.strategy.text, predicted.question.load.users
    measured = really(world, spec, users, predicted.figures["p50"].value or 3.0, **load)
    for name in ("p50", "p95", "throughput"):
        one, real = predicted.figures[name], measured[name]
        assert one.value is not None
        assert one.low is not None
        assert one.high is not None
        assert real is not None
        assert one.low <= real <= one.high or abs(one.value / real - 1) < WITHIN, (name, one, real)
    share, real = predicted.figures["refused_share"], measured["refused_share"]
    assert share.value is not None
    assert share.low is not None
    assert share.high is not None
    assert real is not None
    assert share.low <= real <= share.high or abs(share.value - real) < POINTS, (share, real)


@pytest.mark.parametrize("kind", ["refuse", "queue", "share"])
def test_a_capacity_that_was_never_reached(kind: ServerKind) -> None:
    refused(ask(fit(low(kind)), "gathered", 16), "search: up to ", "nothing is known of it above ")
    right(ask(fitted_ladder(kind), "gathered", 16), WORLDS[kind])


def test_calls_one_after_the_other_do_not_tell_of_calls_at_once() -> None:
    alone = fit(record(WORLDS["queue"], "sequential", (3, 6), seconds=300, seed=6))
    refused(ask(alone, "gathered", 12), "search: up to ", "nothing is known of it above ")
    right(ask(alone, "sequential", 6), WORLDS["queue"])
    right(ask(fitted_ladder("queue"), "gathered", 12), WORLDS["queue"])


@pytest.mark.parametrize(
    ("kind", "limit", "asked"),
    [("refuse", CAPACITY, CAPACITY + 2), ("queue", 8, 16), ("share", CAPACITY, 14)],
)
def test_a_limit_hides_the_capacity(kind: ServerKind, limit: int, asked: int) -> None:
    """Also one that is just what the server can take: one call more may be one too many."""
    world = World({"search": Server(0.4, kind, CAPACITY)})
    hidden = fit(record(world, f"semaphore:{limit}", (4, 8, 16), seconds=40, seed=6))
    assert known_up_to(hidden.servers[0]) == limit
    found = ask(hidden, f"semaphore:{asked}", 16)
    refused(found, f"search: up to {asked} calls would be in flight", f"nothing is known of it above {limit}")
    shown = fit(record(world, f"semaphore:{limit},gathered", (4, 8, 16), seconds=40, seed=6))
    right(ask(shown, f"semaphore:{asked}", 16), world)


def test_a_limit_that_hides_the_capacity_is_not_part_of_what_is_to_be_recorded() -> None:
    hidden = fit(record(WORLDS["queue"], "semaphore:8", (4, 12), seconds=40, seed=6))
    found = ask(hidden, "gathered", 16)
    asked = Asked((parse_strategy("gathered"),), (16,), Trials(60.0))
    run = replace(hidden.run, repeat=("cities", "--strategy", "semaphore:8", "--levels", "4,12"))
    assert record_words(replace(hidden, run=run), asked, [found]) == (
        "profiler compare --for-prediction --levels 4,8,16,32 cities",
    )


Change = Callable[[Recorded], Fitted]


def recording(**changes: Any) -> Change:
    return lambda one: fit(replace(one, run=replace(one.run, recording=Recording("import", **changes))))


def each_call(change: Callable[[int, ToolCall], ToolCall]) -> Change:
    def changed(one: Recorded) -> Fitted:
        number = iter(range(10**9))
        records = [
            replace(
                loop,
                rounds=tuple(
                    replace(each, tool_calls=tuple(change(next(number), call) for call in each.tool_calls))
                    for each in loop.rounds
                ),
            )
            for loop in one.records
        ]
        return fit(replace(one, records=records))

    return changed


def each_loop(change: Callable[[int, LoopRecord], LoopRecord]) -> Change:
    return lambda one: fit(
        replace(one, records=[change(number, loop) for number, loop in enumerate(one.records)])
    )


def fitted_with(**changes: Any) -> Change:
    return lambda one: fit(one, **changes)


def some(part: int, of: int, change: Callable[[Any], Any]) -> Callable[[int, Any], Any]:
    """A change of `part` in `of` only."""
    return lambda number, one: change(one) if number % of < part else one


def upper_bound(call: ToolCall) -> ToolCall:
    return replace(call, upper_bound=True)


def cut_off(loop: LoopRecord) -> LoopRecord:
    return replace(loop, status="cancelled")


def unwatched(loop: LoopRecord) -> LoopRecord:
    return replace(loop, rounds=(replace(loop.rounds[0], unobserved_calls=1), *loop.rounds[1:]))


def nested(loop: LoopRecord) -> LoopRecord:
    return replace(loop, parent="loop-1")


PAIRS: dict[str, tuple[Change, str, Change]] = {
    "50 loops": (
        lambda one: fit(replace(one, records=one.records[:50])),
        f"50 whole loops are too few: record {FEWEST_LOOPS} at least",
        fit,
    ),
    "sampled traces": (
        recording(sampled=0.1),
        "only 10 % of the traces were kept: how many calls were in flight is not known; record all of them",
        recording(sampled=1.0),
    ),
    "several clocks": (
        recording(clocks=3),
        "its times are of 3 clocks: how many calls were in flight at once is not known",
        recording(),
    ),
    "a coarse clock": (
        recording(resolution_ns=100_000_000),
        "of a typical call, which is too coarse",
        recording(resolution_ns=1_000_000),
    ),
    "longest possible durations": (
        each_call(some(1, 10, upper_bound)),
        "calls the times are not known, or only an upper bound",
        each_call(some(1, 100, upper_bound)),
    ),
    "calls that were not watched": (
        each_loop(some(1, 2, unwatched)),
        "calls ran in tools that were not watched: watch those too",
        each_loop(some(1, 50, unwatched)),
    ),
    "agents as tools": (
        each_loop(some(1, 10, nested)),
        "loops ran inside calls of others: agents as tools are not predicted",
        each_loop(some(1, 100, nested)),
    ),
    "a run cut short": (
        each_loop(some(3, 10, cut_off)),
        "30 % of the loops are not whole (most: cut off), the long ones more often than others",
        each_loop(some(1, 50, cut_off)),
    ),
    "the client had no CPU left": (
        fitted_with(invalid=("a core was 97 % busy in trial 3",)),
        "a core was 97 % busy in trial 3",
        fitted_with(invalid=()),
    ),
    "the client would have no CPU left": (
        fitted_with(cpu_ns=0.5e9),
        "it would be the bottleneck (more --workers, on more cores)",
        fitted_with(cpu_ns=0.01e9),
    ),
    "tools that hold the event loop": (
        fitted_with(shortfalls=Counter(blocking_tool=300)),
        "of the rounds calls did not overlap as the strategy allowed (blocking tool)",
        fitted_with(shortfalls=Counter(blocking_tool=3)),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_recording_that_is_no_ground_for_any_prediction(name: str) -> None:
    spoiled, sentence, sound = PAIRS[name]
    refused(ask(spoiled(ladder("queue")), "gathered", 8), sentence)
    found = ask(sound(ladder("queue")), "gathered", 8)
    right(found, WORLDS["queue"])


@functools.cache
def _of_gathered_8() -> Predicted:
    return ask(fitted_ladder("queue"), "gathered", 8)


def test_whether_all_traces_were_kept_is_said_where_it_is_not_known() -> None:
    one = ladder("queue")
    collected = fit(replace(one, run=replace(one.run, recording=Recording("collect"))))
    found = ask(collected, "gathered", 8)
    assert found.figures == _of_gathered_8().figures
    assert "does not say whether all traces were kept" in found.warnings[0]


@pytest.mark.parametrize(
    ("strategy", "sentence"),
    [
        ("unknown-kind", "this version does not know that strategy"),
        ("careful=1", "what a setting of the agent's own does is not known before it has run: compare it"),
        (
            "gathered careful=1",
            "what a setting of the agent's own does is not known before it has run: compare it",
        ),
        ("eager", "calls that start while replies stream are not predicted: compare it, with --stream"),
    ],
)
def test_a_strategy_that_no_recording_tells_of(strategy: str, sentence: str) -> None:
    question = Question(StrategySpec.recorded(strategy), SimulatedLoad(8), Trials(150.0))
    refused(predict(fitted_ladder("queue"), question, replicates=2), sentence)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"strategies": "semaphore:serch=3"},
            "--strategy semaphore:serch=3: the recording has no tool 'serch' (did you mean 'search'?); it "
            "has fetch, search",
        ),
        (
            {"strategies": "semaphore:files/*=3"},
            "--strategy semaphore:files/*=3: the recording has no MCP server 'files'; it has none",
        ),
        (
            {"tool_time": (("serch", 2.0),)},
            "--tool-time serch: the recording has no such tool (did you mean 'search'?); it has fetch, "
            "search",
        ),
    ],
)
def test_a_tool_that_no_recorded_loop_called(asked: dict[str, Any], message: str) -> None:
    def question(strategies: str = "gathered", tool_time: Sequence[tuple[str, float]] = ()) -> Asked:
        return Asked((parse_strategy(strategies),), (8,), Trials(60.0), tool_time=tuple(tool_time))

    with pytest.raises(UsageError) as raised:
        check_tools(question(**asked), fitted_ladder("queue"))
    assert str(raised.value) == message
    check_tools(question("semaphore:search=3", (("fetch", 2.0),)), fitted_ladder("queue"))


def test_a_server_that_got_slower_while_the_load_grew() -> None:
    """In one block nobody can tell the two apart; in several the server is said to have changed."""
    world = World({"search": Server(0.4), "fetch": Server(0.2)}, slower=(120.0, 1.6))
    refused(
        ask(fit(record(world, "gathered", (4, 8), seconds=115, seed=6)), "gathered", 6),
        "slower later or under more load, which are not told apart (record every level twice: ",
    )
    several = ask(fit(record(world, "gathered", (4, 8), seconds=40, blocks=3, seed=6)), "gathered", 6)
    assert several.figures
    assert any("its times change over the recording (drift)" in text for text in several.warnings)


def test_a_server_that_stands_still_at_times() -> None:
    world = World(WORLDS["none"].tools, stands_still=(10.0, 2.0))
    recorded = fit(record(world, "gathered", (4, 8), seconds=60, seed=1))
    refused(ask(recorded, "gathered", 16), "search: up to ", "nothing is known of it above ")
    right(ask(recorded, "gathered", 6), world)


def test_p99_of_few_calls() -> None:
    fitted = fitted_ladder("queue")
    few = replace(fitted, calls=FEWEST_FOR_P99 - 1)
    without = ask(few, "gathered", 8)
    assert set(_of_gathered_8().figures) - set(without.figures) == {"p99"}
    assert "no p99: 4,999 tool calls are too few for it" in limits_of(few, [without])
    enough = ask(replace(fitted, calls=FEWEST_FOR_P99), "gathered", 8)
    assert "p99" in enough.figures


def test_a_quota_that_was_never_met() -> None:
    world = World(WORLDS["none"].tools, quota=(400.0, 10.0))
    never = fit(record(world, "gathered", (2, 4), seconds=100, seed=6))
    refused(ask(never, "gathered", 8), "the model: up to ", "nothing is known of it above ")
    right(ask(never, "gathered", 3), world)
    right(ask(fit(record(world, "gathered", (3, 6, 12), seconds=100, seed=6)), "gathered", 8), world)


def test_a_model_with_a_capacity() -> None:
    world = World(WORLDS["none"].tools, model=Server(0.3, "queue", 3, 0.4))
    below = fit(record(world, "gathered", (1, 2), seconds=200, seed=6))
    refused(ask(below, "gathered", 12), "the model: up to ", "nothing is known of it above ")
    right(ask(fit(record(world, "gathered", (4, 8, 16), seconds=60, seed=6)), "gathered", 12), world)


def test_a_load_other_than_the_recorded_one() -> None:
    """An open load from a closed one, agents that think, more workers: none is outside of the recording."""
    fitted, world = fitted_ladder("queue"), WORLDS["queue"]
    right(ask(fitted, "gathered", 6, arrivals=Arrivals(2.5, 6)), world, arrivals="2.5/s")
    right(ask(fitted, "gathered", 12, think_seconds=2.0), world, think_seconds=2.0)
    right(ask(fitted, "semaphore:6", 12, workers=2), world, workers=2)
    right(ask(fitted, "semaphore:6", 12, workers=2, share_limit=True), world, workers=2, share_limit=True)


def test_a_closed_load_from_an_open_one() -> None:
    recorded = fit(record(WORLDS["queue"], "gathered", (3, 6), seconds=120, seed=6, arrivals="4/s"))
    right(ask(recorded, "gathered", 6), WORLDS["queue"])


@pytest.mark.parametrize(("kind", "users"), [("queue", 6), ("share", 20), ("refuse", 20)])
def test_one_cell_alone(kind: ServerKind, users: int) -> None:
    """What is around it is refused, or right; it tells of itself."""
    world = WORLDS[kind]
    alone = fit(record(world, "gathered", [users], seconds=1800 / users, seed=6))
    for strategy in ("gathered", "semaphore:12", "sequential"):
        for factor in (0.5, 2.0):
            found = ask(alone, strategy, round(users * factor))
            if not found.refused:
                right(found, world)
    right(ask(alone, "gathered", users), world)
    if kind == "queue":  # 6 agents did not reach its capacity, 20 went past that of the others
        refused(ask(alone, "gathered", 3 * users), "search: up to ", "nothing is known of it above ")


def test_the_one_setting_of_a_recording_needs_no_rule() -> None:
    """Its loops tell of it; but of nothing else where the rule of a server cannot be told."""
    world = WORLDS["share"]
    alone = fit(record(world, "gathered", [16], seconds=100, seed=6))
    servers = tuple(replace(one, finding=replace(one.finding, identified=False)) for one in alone.servers)
    unknown = replace(alone, servers=servers)
    found = ask(unknown, "gathered", 16)
    right(found, world)
    assert any(text.startswith("search: ") for text in found.warnings)
    refused(ask(unknown, "gathered", 12), "search: ")
    refused(ask(unknown, "semaphore:12", 16), "search: ")
    refused(ask(unknown, "gathered", 16, think_seconds=1.0), "search: ")
