"""Open loads that are served, and that are not, from queues whose truth is known."""

from __future__ import annotations

import dataclasses
import heapq
import itertools

import numpy as np
import pytest

from profiler.records import LoopRecord, ServerToolCall, shifted
from profiler.report.advice import next_steps
from profiler.report.html.comparison import verdict
from profiler.report.terminal import SURVIVORS, render_comparison
from profiler.rundir import ClientHealth, Load
from profiler.statistics.backlog import growing_backlog
from profiler.statistics.summary import Summary, summarise
from profiler.statistics.table import tabulate
from profiler.statistics.windows import measure
from tests.unit.statistics_data import MS, loop, run, trial

RATE, DRAIN = 6.0, 30.0


def queue(due: np.ndarray, service: np.ndarray, servers: int) -> tuple[np.ndarray, np.ndarray]:
    """When each loop starts and ends, first come, first served."""
    free = [0.0] * servers
    starts, ends = np.empty(due.size), np.empty(due.size)
    for place, (at, takes) in enumerate(zip(due, service, strict=True)):
        starts[place] = max(at, heapq.heappop(free))
        ends[place] = starts[place] + takes
        heapq.heappush(free, ends[place])
    return starts, ends


def experiment(
    utilisation: float, seed: int, window: float = 10.0, blocks: int = 3, servers: int = 1, **load: object
) -> tuple[object, list[LoopRecord]]:
    """An open load of `RATE` for servers that are this busy; a loop has one round. 0: servers without end."""
    rng = np.random.default_rng(seed)
    trials, records = [], []
    for block in range(blocks):
        origin = block * 100_000.0
        due = np.sort(rng.uniform(0, window, rng.poisson(RATE * window)))
        if utilisation:
            service = rng.exponential(utilisation * servers / RATE, due.size)
            starts, ends = queue(due, service, servers)
        else:  # all start at once, and take most of the window
            starts, ends = due, due + 0.8 * window * rng.lognormal(0, 0.3, due.size)
        cut = ends > window + DRAIN
        started = starts < window + DRAIN
        made = zip(due, np.minimum(ends, window + DRAIN), cut, started, strict=True)
        for at, end, was_cut, ran in made:
            if not ran:
                continue
            one = loop(
                origin + at * 1e3,
                (end - at) * 1e3,
                trial=block,
                status="cancelled" if was_cut else "ok",
                intended=origin + at * 1e3,
            )
            if was_cut:
                one = dataclasses.replace(
                    one, rounds=(dataclasses.replace(one.rounds[0], status="cancelled"),)
                )
            records.append(one)
        last = trial(block, "gathered", origin, origin + window * 1e3, block=block)
        trials.append(
            dataclasses.replace(
                last,
                drained_ns=int((origin + (window + DRAIN) * 1e3) * MS),
                arrived=due.size,
                interrupted=int(np.count_nonzero(cut & started)),
                dropped=int(np.count_nonzero(~started)),
            )
        )
    asked = Load("open", trials[0].users, arrivals="6/s", rate=RATE)
    return dataclasses.replace(run(trials), load=asked, **load), records  # type: ignore[type-var]


def backlog(*arguments: float, **options: float):
    made, records = experiment(*arguments, **options)  # type: ignore[arg-type]
    table = tabulate(records)
    (group,) = measure(made, table)  # type: ignore[arg-type]
    return growing_backlog(group, table)


@pytest.mark.parametrize("servers", [1, 8])
def test_load_of_ten_times_the_capacity_is_not_served(servers: int) -> None:
    rates = []
    for seed in range(20):
        found = backlog(10.0, seed, servers=servers)
        assert found is not None
        assert found.rate == RATE
        assert found.arrived == pytest.approx(RATE, rel=0.3)
        assert found.growth == pytest.approx(54, rel=0.3)
        rates.append(found.served)
    assert np.median(rates) == pytest.approx(0.6, rel=0.25)


@pytest.mark.parametrize(("window", "blocks"), [(30.0, 1), (10.0, 3), (5.0, 10)])
def test_load_of_three_times_the_capacity_is_not_served(window: float, blocks: int) -> None:
    found = [backlog(3.0, seed, window=window, blocks=blocks) for seed in range(10)]
    assert sum(one is not None for one in found) >= 9
    rates = [one.served for one in found if one is not None]
    assert np.median(rates) == pytest.approx(2.0, rel=0.15)


@pytest.mark.parametrize("servers", [1, 8])
@pytest.mark.parametrize(("window", "blocks"), [(4.0, 3), (10.0, 3), (30.0, 1), (10.0, 10)])
def test_busy_server_that_keeps_up_is_no_alarm(servers: int, window: float, blocks: int) -> None:
    found = [backlog(0.8, seed, window=window, blocks=blocks, servers=servers) for seed in range(40)]
    assert sum(one is not None for one in found) == 0


def test_loops_that_are_only_longer_than_the_window_are_no_backlog_that_grows() -> None:
    assert [backlog(0.0, seed) for seed in range(40)] == [None] * 40


def test_closed_load_has_no_backlog() -> None:
    made, records = experiment(10.0, 1)
    closed = dataclasses.replace(made, load=Load("closed", 2))  # type: ignore[type-var]
    table = tabulate(records)
    (group,) = measure(closed, table)  # type: ignore[arg-type]
    assert growing_backlog(group, table) is None


def test_load_that_is_not_served_is_the_first_sentence() -> None:
    made, records = experiment(10.0, 3)
    records.append(loop(0, calls=[(0, 1)], trial=None))
    summary = summarise(made, records)  # type: ignore[arg-type]
    (said,) = summary.verdicts
    found = summary.strategies[0].backlog
    assert found is not None
    assert said.kind == "not_served"
    assert summary.strategies[0].loop_seconds.p50.value > 10  # which is as long as the windows, not the loops
    assert "short_window" not in {caveat.kind for caveat in summary.warnings}
    assert said.sentence == f"gathered cannot serve 6/s: at most {found.most:.2g}/s, the backlog grows."
    capped = dataclasses.replace(made, arguments={"max_in_flight": 5})  # type: ignore[type-var]
    assert (
        summarise(capped, records)
        .verdicts[0]
        .sentence.startswith(  # type: ignore[arg-type]
            "gathered cannot serve 6/s with --max-in-flight 5: at most "
        )
    )


def test_loops_that_are_begun_and_not_ended_count_by_their_rounds() -> None:
    """A model that serves 2 requests a second, first come, first served; loops of 4 requests, 6 a second.

    Everybody's first request is in front of everybody's second one, so that hardly a loop ends.
    """
    rng = np.random.default_rng(2)
    trials, records = [], []
    window, drain = 20.0, 30.0
    for block in range(3):
        origin = block * 100.0
        due = np.sort(rng.uniform(0, window, rng.poisson(RATE * window)))
        waiting = [(at, number, 0) for number, at in enumerate(due)]
        heapq.heapify(waiting)
        edges: list[list[float]] = [[at] for at in due]
        free = 0.0
        while waiting:
            at, number, done = heapq.heappop(waiting)
            free = max(free, at) + 0.5
            edges[number].append(free)
            if done < 3:
                heapq.heappush(waiting, (free, number, done + 1))
        for times in edges:
            parts, cut = [], times[-1] > window + drain
            for start, end in itertools.pairwise([at for at in times if at < window + drain]):
                parts.append(loop(1e3 * (origin + start), 1e3 * (end - start)).rounds[0])
            last = window + drain if cut else times[-1]
            whole = loop(1e3 * (origin + times[0]), 1e3 * (last - times[0]), trial=block)
            if cut:
                parts.append(dataclasses.replace(whole.rounds[0], status="cancelled"))
            status = "cancelled" if cut else "ok"
            due_ns = whole.started_ns
            records.append(
                dataclasses.replace(whole, rounds=tuple(parts), status=status, intended_ns=due_ns)  # type: ignore[arg-type]
            )
        trials.append(trial(block, "gathered", origin * 1e3, (origin + window) * 1e3, block=block))
    made = dataclasses.replace(run(trials), load=Load("open", 2, arrivals="6/s", rate=RATE))
    table = tabulate(records)
    (group,) = measure(made, table)
    found = growing_backlog(group, table)
    assert found is not None
    assert found.served < 0.1
    assert found.most == pytest.approx(0.5, rel=0.05)


def two_strategies() -> Summary:
    """gathered is asked for ten times what it serves, sequential for half of what it does."""
    trials, records = [], []
    for place, (strategy, busy) in enumerate((("gathered", 10.0), ("sequential", 0.5))):
        made, loops = experiment(busy, 3)
        for one in made.trials:
            number, later = 3 * place + one.index, place * 1_000 * 1_000_000_000
            moved = {name: getattr(one, name) + later for name in ("started_ns", "ended_ns", "drained_ns")}
            trials.append(dataclasses.replace(one, index=number, strategy=strategy, **moved))
        for loop_ in loops:
            moved_loop = shifted(loop_, place * 1_000 * 1_000_000_000)
            records.append(
                dataclasses.replace(moved_loop, strategy=strategy, trial=3 * place + (loop_.trial or 0))
            )
    records.append(loop(0, calls=[(0, 1)], trial=None))
    asked = Load("open", 2, arrivals="6/s", rate=RATE)
    return summarise(dataclasses.replace(run(trials), load=asked), records)


def test_latencies_are_not_compared_where_one_load_is_not_served() -> None:
    summary = two_strategies()
    assert [one.backlog is not None for one in summary.strategies] == [True, False]
    first, second = summary.verdicts
    assert first.sentence.startswith("gathered cannot serve 6/s: at most 0.")
    assert (second.kind, second.metric) == ("more_goodput", "goodput")
    assert second.sentence.startswith("sequential has ")
    assert second.sentence.endswith("; the backlog of gathered grows, so latencies are not compared.")


def test_terminal_and_page_lead_with_it_and_show_no_latency_of_it() -> None:
    summary = two_strategies()
    made = run([], load=summary.load)
    text = render_comparison(summary, made)
    assert text.startswith("gathered cannot serve 6/s: at most 0.")
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.startswith((" gath", " seq"))}
    assert rows["gathered"][2:4] == ["–", "–"]
    assert "–" not in rows["sequential"][2:4]
    assert " ".join(SURVIVORS.split()) in " ".join(text.split())
    page = verdict(summary, [])
    assert "cannot serve 6/s: at most 0." in page.split("</p>")[0]
    steps = [step.words for step in next_steps(summary, made)]
    assert steps[0].startswith("The load is not served: ask for less than 0.")
    assert not any("try a limit" in words or "Run longer" in words for words in steps)


def test_loops_without_any_tool_call_are_not_compared() -> None:
    trials, records = [], []
    for index, strategy in enumerate(("sequential", "gathered")):
        trials.append(trial(index, strategy, index * 60_000, index * 60_000 + 30_000))
        records += [loop(index * 60_000 + k * 100, strategy=strategy, trial=index) for k in range(100)]
    (said,) = summarise(run(trials), records).verdicts
    assert (said.kind, said.metric) == ("no_tool_calls", "tool_calls")
    assert said.sentence.startswith("200 loops, no tool call was asked for: ")
    assert said.sentence.endswith(
        "so strategies are not compared; likely causes: the model server does not parse tool calls (vLLM: "
        "--enable-auto-tool-choice and --tool-call-parser), a tool_choice of none, a model that knows no "
        "tools"
    )
    # It is so whoever was late, and nothing else is worth trying.
    late = summarise(run(trials, client=(ClientHealth("w", loop_lag_p99=0.9, cpu=0.99),)), records)
    assert late.verdicts == (said,)
    assert not late.valid
    words = said.sentence[:45]
    printed = " ".join(render_comparison(late, run(trials)).split())
    assert 0 == printed.index(words) < printed.index("invalid: ")
    page = verdict(late, [])
    assert -1 < page.index(words) < page.index("Invalid.")
    assert [step.words.split(":")[0] for step in next_steps(late, run(trials))] == [
        "Have the model ask for tools first"
    ]
    # One strategy, whose server runs tools itself, with replies that hold more than could be read.
    model = dataclasses.replace(
        records[0].rounds[0].model, server_tools=(ServerToolCall("web_search"),), unreadable=3
    )
    alone = dataclasses.replace(
        records[0], rounds=(dataclasses.replace(records[0].rounds[0], model=model),), trial=None
    )
    (said,) = summarise(run([], strategies=("sequential",)), [alone]).verdicts
    assert said.sentence.startswith(
        "1 loop, no tool call was asked for but 1 that the model's server ran itself: there was nothing to "
        "run in parallel; likely causes: calls among the 3 parts of replies that could not be understood, "
    )
    # Calls that no profiled tool ran are calls all the same.
    whole = records[0].rounds[0]
    unseen = dataclasses.replace(records[0], rounds=(dataclasses.replace(whole, unobserved_calls=1),))
    assert summarise(run(trials), [unseen, *records[1:]]).verdicts[0].kind != "no_tool_calls"
    # Loops that all failed before they could ask say nothing of the kind.
    failed = [dataclasses.replace(one, status="error") for one in records]
    assert [one.kind for one in summarise(run(trials), failed).verdicts] == ["every_loop_failed"]
