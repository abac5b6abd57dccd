"""The closed set of caveats: each is raised by what it names, and by nothing else."""

from __future__ import annotations

import dataclasses

import pytest

from profiler.records import NO_MODEL, LoopRecord, RemoteCall, ServerToolCall
from profiler.rundir import ClientCapacity, ClientHealth, Incident, Load, Run
from profiler.statistics.caveats import Caveat
from profiler.statistics.summary import Summary, summarise
from tests.unit.statistics_data import loop, made, run, trial, trials


def good_run(**changes: object) -> tuple[Run, list[LoopRecord]]:
    """Three blocks of 30 loops of exactly 100 ms each: nothing to complain about."""
    trials = [
        trial(block, "gathered", block * 10_000, block * 10_000 + 6000, block=block) for block in range(3)
    ]
    records = [loop(block * 10_000 + k * 200, trial=block) for block in range(3) for k in range(30)]
    return run(trials, **changes), records  # type: ignore[arg-type]


def found(**changes: object) -> dict[str, Caveat]:
    made, records = good_run(**changes)
    return {caveat.kind: caveat for caveat in summarise(made, records).warnings}


def test_caveats_of_a_good_run_are_none() -> None:
    assert found(client=(ClientHealth("w0", 0, loop_lag_p99=0.0049, schedule_lag_p99=0.004, cpu=0.89),)) == {}


@pytest.mark.parametrize(
    ("health", "words"),
    [
        (
            ClientHealth("w0", loop_lag_p99=0.0051),
            "the event loop was late by 5.1 ms at p99, beside a median",
        ),
        (ClientHealth("w0", schedule_lag_p99=0.006), "loops started 6 ms late, more than 5 % of the median"),
        (ClientHealth("w0", schedule_lag_p99=1, schedule_lag_p95=0.007), "loops started 7 ms late"),
    ],
)
def test_late_client_is_invalid_and_says_how_late(health: ClientHealth, words: str) -> None:
    """Of a run of old: nothing was counted that says whose fault it was."""
    caveat = found(client=(health,))["client_late"]
    assert caveat.invalid
    assert "cannot tell whose fault" in caveat.detail
    assert words in caveat.detail
    assert caveat.sentence.startswith("invalid: ")
    assert caveat.strategies == ("gathered",)


def test_saturated_client_is_invalid_and_says_which_limit() -> None:
    caveat = found(client=(ClientHealth("w0", cpu=0.95),))["client_saturated"]
    assert "this client is saturated: a client process kept a core 95 % busy (limit 90 %)" in caveat.detail
    assert caveat.remedy == "use fewer agents or more workers (now 1)"


@pytest.mark.parametrize(
    ("arguments", "costs", "remedy"),
    [
        ({"client": "sdk"}, {}, "use --client lean, fewer agents or more workers (now 1)"),
        (
            {"client": "sdk"},
            {"sdk": 0.00184, "lean": 0.00012},
            "use --client lean (0.12 ms of CPU a request, the SDK 1.84 ms), fewer agents or more workers "
            "(now 1)",
        ),
        ({"client": "lean"}, {"sdk": 0.002, "lean": 0.0001}, "use fewer agents or more workers (now 1)"),
        ({"client": "sdk", "agent": "app:agent"}, {}, "use fewer agents or more workers (now 1)"),
        ({"client": "sdk", "direct": True}, {}, "use fewer agents or more workers (now 1)"),
    ],
)
def test_client_that_is_too_slow_is_told_of_the_faster_one(
    arguments: dict[str, object], costs: dict[str, float], remedy: str
) -> None:
    provider = NO_MODEL if "direct" in arguments else "openai"
    capacity = ClientCapacity(32, 100.0, 500.0, 0.005, costs)
    given = found(
        client=(ClientHealth("w0", cpu=0.95),), provider=provider, arguments=arguments, capacity=capacity
    )
    assert given["client_saturated"].remedy == remedy
    late = found(
        client=(ClientHealth("w0", loop_lag_p99=0.2),),
        provider=provider,
        arguments=arguments,
        capacity=capacity,
    )
    assert late["client_late"].remedy == f"stop other work on this machine, or {remedy}"


def test_lateness_of_a_few_milliseconds_is_nothing_beside_a_long_median() -> None:
    """Idle agents on a busy machine: 40 ms now and then, and what takes a second is as good as it was."""
    records = [loop(k * 200, model=1000.0, trial=0) for k in range(30)]
    late = run([trial(0, "gathered", 0, 6000)], client=(ClientHealth("w0", 0, loop_lag_p99=0.040),))
    assert "client_late" not in kinds(summarise(late, records))


def test_worst_process_is_named_and_the_remedy_knows_the_workers() -> None:
    healths = tuple(
        ClientHealth(f"w{k}", cpu=0.91, loop_lag_p99=lag) for k, lag in enumerate((0.2, 0.7, 0.3))
    )
    caveat = found(client=healths, workers=2)["client_saturated"]
    assert "late by 700 ms" in caveat.detail
    assert caveat.remedy == "use fewer agents or another machine"


def test_incidents_are_passed_on() -> None:
    caveats = found(
        incidents=(Incident("worker_lost", "worker 1", count=2), Incident("aborted", "errors>20%"))
    )
    assert caveats.keys() == {"worker_lost", "aborted"}
    assert caveats["worker_lost"].detail.endswith("(2): worker 1")


def test_run_cut_short_says_so_once() -> None:
    assert found(finished=False).keys() == {"unfinished"}
    assert found(finished=False, incidents=(Incident("interrupted"),)).keys() == {"interrupted"}


def test_load_that_was_not_delivered() -> None:
    made, records = good_run(load=Load("open", users=2, rate=10.0))
    trials = tuple(dataclasses.replace(t, arrived=30) for t in made.trials)  # 5/s
    caveats = summarise(dataclasses.replace(made, trials=trials), records).warnings
    assert [c.kind for c in caveats] == ["load_not_delivered"]
    assert caveats[0].detail == "5.00 loops/s arrived of 10.00 asked for"


def test_random_arrivals_may_fall_short_by_chance() -> None:
    made, records = good_run(load=Load("open", users=2, rate=10.0))
    seconds = sum((t.ended_ns - t.started_ns) / 1e9 for t in made.trials)
    each = round(0.94 * 10 * seconds / len(made.trials))
    trials = tuple(dataclasses.replace(t, arrived=each) for t in made.trials)
    assert summarise(dataclasses.replace(made, trials=trials), records).warnings == ()


def test_arrivals_that_waited_and_that_never_started() -> None:
    made, records = good_run(load=Load("open", users=2, rate=10.0))
    trials = tuple(dataclasses.replace(t, arrived=60, late=20, dropped=6) for t in made.trials)
    found = summarise(dataclasses.replace(made, trials=trials), records)
    late, dropped = (c for c in found.warnings if c.kind in ("arrivals_late", "arrivals_dropped"))
    count = len(trials)
    assert late.detail.startswith(f"{20 * count} of {60 * count} arrivals had to wait at --max-in-flight")
    assert dropped.detail.startswith(f"{6 * count} of {60 * count} arrivals were never started")
    for strategy in found.strategies:  # leaving them out would flatter
        own = 6 * sum(t.strategy == strategy.strategy for t in trials)
        assert strategy.failure_rate.value == pytest.approx(own / (strategy.loops.due + own))


def test_agents_that_never_came() -> None:
    made, records = good_run()
    trials = (dataclasses.replace(made.trials[0], users=2, wanted=4), *made.trials[1:])
    caveats = summarise(dataclasses.replace(made, trials=trials), records).warnings
    assert "2 of 4 agents were there in trial 0" in [c.detail for c in caveats]


def test_busy_emulator_is_named() -> None:
    made, records = good_run()
    client = (ClientHealth("the emulator", 0, cpu=0.97),)
    caveat = summarise(dataclasses.replace(made, client=client), records).warnings[0]
    assert caveat.invalid
    assert "the emulator kept a core 97 % busy (limit 90 %)" in caveat.detail


def test_loops_cut_after_the_drain() -> None:
    made, records = good_run()
    trials = (dataclasses.replace(made.trials[0], interrupted=5), *made.trials[1:])
    (caveat,) = summarise(dataclasses.replace(made, trials=trials), records).warnings
    assert (caveat.kind, caveat.detail.split(" loops")[0]) == ("loops_cut", "gathered: 5")


def test_window_shorter_than_two_loops() -> None:
    trials = [
        trial(block, "gathered", block * 10_000, block * 10_000 + 3000, block=block) for block in range(3)
    ]
    records = [loop(block * 10_000 + k, model=1600, trial=block) for block in range(3) for k in range(30)]
    (caveat,) = summarise(run(trials), records).warnings
    assert caveat.kind == "short_window"
    assert caveat.detail.startswith("gathered: a block of 3.0 s holds less than 2 loops of 1.6 s")


def test_run_without_a_steady_state_is_said() -> None:
    trials = [trial(0, "gathered", 0, 60_000)]
    records = [loop(k * 200, model=100 + k) for k in range(200)]
    kinds = [c.kind for c in summarise(run(trials), records).warnings]
    assert kinds == ["no_steady_state", "thin_blocks"]


@pytest.mark.parametrize("blocks", [1, 3])
def test_what_was_left_out_as_warm_up_is_said_in_number_and_effect(blocks: int) -> None:
    trials, records = [], []
    for block in range(blocks):
        trials.append(trial(block, "gathered", block * 100_000, block * 100_000 + 40_000, block=block))
        records += [
            loop(block * 100_000 + k * 200, model=400 if k < 20 else 100 + k % 2, trial=block)
            for k in range(200)
        ]
    caveat = next(c for c in summarise(run(trials), records).warnings if c.kind == "warm_up")
    where = "each block" if blocks == 3 else "the only block"
    assert caveat.sentence.startswith(
        f"note: gathered: {20 * blocks} of {200 * blocks} loops left out as warm-up, "
        f"the first 4 s of {where}; with them p95 would be 0.4 s instead of 0.101 s "
        "and p99 would be 0.4 s instead of 0.101 s; "
    )
    assert ("a stall at its start looks the same" in caveat.remedy) == (blocks == 1)


def test_latency_that_changes_slowly_is_said_with_the_duration_it_takes() -> None:
    trials, records = [], []
    for block in range(4):
        trials.append(trial(block, "gathered", block * 30_000, block * 30_000 + 20_000, block=block))
        for k in range(200):
            slow = (block * 200 + k + 60) // 290 % 2
            records.append(
                loop(block * 30_000 + k * 100, model=(100 + k * 37 % 23) * (1 + slow), trial=block)
            )
    strategy = summarise(run(trials), records).strategies[0]
    assert 5 < strategy.memory_seconds < 60  # the states last 29 s
    assert (strategy.loop_seconds.p50.low, strategy.throughput.low) == (None, None)
    (caveat,) = (c for c in summarise(run(trials), records).warnings if c.kind != "warm_up")
    assert caveat.kind == "slow_changes"
    assert f"(gathered over about {strategy.memory_seconds:.1f} s)" in caveat.detail
    assert f"at least 3 blocks with {12 * strategy.memory_seconds:.0f} s of each strategy" in caveat.remedy


def test_start_of_an_only_block_that_may_be_a_stall_is_kept_and_said() -> None:
    records = [loop(k * 200, model=100 + k % 2 if k == 3 or k >= 20 else 400) for k in range(200)]
    found = summarise(run([trial(0, "gathered", 0, 40_000)]), records)
    (caveat,) = (c for c in found.warnings if c.kind == "warm_up")
    assert caveat.detail == (
        "gathered: the first 4 s of the only block differ from the rest, as a warm-up or a stall would: "
        "nothing was left out"
    )
    assert caveat.remedy == "run at least 3 blocks (--blocks 3), which tell one from the other"
    assert found.strategies[0].left_out is None
    assert found.strategies[0].loops.due == 200


def test_what_was_left_out_under_a_lower_load_is_said_too() -> None:
    trials, records = [], []
    for index, users in enumerate((1, 5)):
        trials.append(trial(index, "gathered", index * 100_000, index * 100_000 + 40_000, users=users))
        for k in range(200):
            slow = users == 1 and k < 20
            records.append(loop(index * 100_000 + k * 200, model=400 if slow else 100 + k % 2, trial=index))
    said = [c.detail for c in summarise(run(trials), records).warnings if c.kind == "warm_up"]
    assert len(said) == 1
    assert said[0].startswith("gathered at 1 agents: 20 of 200 loops left out as warm-up")


def test_blocks_that_are_thin_and_nothing_completed_are_said() -> None:
    trials = [trial(0, "gathered", 0, 6000), trial(1, "sequential", 6000, 12_000)]
    records = [loop(0), loop(6000, strategy="sequential", trial=1, status="error")]
    caveats = {c.kind: c for c in summarise(run(trials), records).warnings}
    assert caveats.keys() == {"nothing_completed", "thin_blocks"}
    assert "(gathered 1 in 1)" in caveats["thin_blocks"].detail
    assert caveats["nothing_completed"].detail == "sequential: no loop completed: http_429 1"


def test_incident_that_happened_once_has_no_count_and_none_to_tell_no_colon() -> None:
    caveats = found(incidents=(Incident("aborted", "errors>20%", count=1), Incident("interrupted")))
    assert caveats["aborted"].detail == "the run was aborted: errors>20%"
    assert caveats["interrupted"].detail == "the run was interrupted"


BY_RULE = "gathered, trial 0: 20 of 30 loops failed, more than 20 %"
GONE = "the target http://h went away in the middle of the run (refused)"


@pytest.mark.parametrize(
    ("detail", "error_type", "remedy"),
    [
        (BY_RULE, "http_429", "lower the load, or raise the limit of --abort-on"),
        (BY_RULE, "refused", "see to refused first: a lower load would fail too"),
        (BY_RULE, "http_401", "see to http_401 first: a lower load would fail too"),
        (GONE, "refused", "see to that, and run again"),
    ],
)
def test_remedy_of_an_aborted_run_fits_what_failed(detail: str, error_type: str, remedy: str) -> None:
    made, records = good_run(incidents=(Incident("aborted", detail),))
    failed = [dataclasses.replace(record, status="error", error_type=error_type) for record in records]
    (caveat,) = [one for one in summarise(made, failed).warnings if one.kind == "aborted"]
    assert caveat.remedy == remedy


def test_loops_that_were_cancelled_did_not_complete() -> None:
    records = [loop(k * 10, status="cancelled") for k in range(5)]
    kinds = [caveat.kind for caveat in summarise(run([trial(0, "gathered", 0, 6000)]), records).warnings]
    assert "nothing_completed" in kinds


def test_loops_are_late_by_the_fastest_strategy() -> None:
    trials = [trial(k, name, k * 9000, k * 9000 + 8000) for k, name in enumerate(("gathered", "sequential"))]
    records = [
        loop(t.started_ns / 1e6 + k * 200, model=1000 if t.index else 100, strategy=t.strategy, trial=t.index)
        for t in trials
        for k in range(30)
    ]
    client = (ClientHealth("w0", schedule_lag_p99=0.006),)
    caveat = summarise(run(trials, client=client), records).warnings[0]
    assert "under gathered: loops started 6 ms late, more than 5 % of the median 100 ms" in caveat.detail


def test_tool_that_held_the_loop_longest_is_named_first() -> None:
    made, records = good_run()
    for place, (name, held) in enumerate((("brief", 60), ("long", 90))):
        one = loop(place * 200 + 20, calls=[(0.0, 100.0)])
        first, last = one.rounds
        call = dataclasses.replace(first.tool_calls[0], name=name, blocking_ns=held * 1_000_000)
        records.append(
            dataclasses.replace(one, rounds=(dataclasses.replace(first, tool_calls=(call,)), last))
        )
    details = [c.detail for c in summarise(made, records).warnings if c.kind == "blocking_tool"]
    assert [detail.split()[0] for detail in details] == ["long", "brief"]


def kinds(summary: Summary) -> list[str]:
    return [caveat.kind for caveat in summary.warnings]


@pytest.mark.parametrize(("cut", "said"), [(1, []), (2, ["loops_cut"])])
def test_loops_may_be_cut_off_one_in_a_hundred(cut, said):
    """120 loops were due."""
    all_trials = trials(window=9000.0)
    all_trials[0] = dataclasses.replace(all_trials[0], interrupted=cut)
    assert kinds(summarise(run(all_trials), made(40))) == said


@pytest.mark.parametrize(("users", "said"), [(19, []), (18, ["load_not_delivered"])])
def test_agents_may_be_missing_one_in_twenty(users, said):
    assert kinds(summarise(run(trials(users=users, wanted=20)), made())) == said


@pytest.mark.parametrize(("late", "said"), [(1, []), (2, ["arrivals_late"])])
def test_arrivals_may_wait_one_in_a_hundred(late, said):
    """180 arrived, 60 in each trial."""
    all_trials = trials(arrived=60)
    all_trials[0] = dataclasses.replace(all_trials[0], late=late)
    conditions = run(all_trials, load=Load("open", users=2, rate=10.0))
    assert kinds(summarise(conditions, made())) == said


@pytest.mark.parametrize(("arrived", "said"), [(48, []), (42, ["load_not_delivered"])])
def test_arrivals_may_fall_short_by_three_standard_deviations(arrived, said):
    """60 are expected of each of three trials: 180 ± 13.4; 144 are within three of them, 126 are not."""
    conditions = run(trials(arrived=arrived), load=Load("open", users=2, rate=10.0))
    assert kinds(summarise(conditions, made())) == said


@pytest.mark.parametrize(("window", "said"), [(6000.0, []), (5900.0, ["short_window"])])
def test_block_holds_two_loops_at_least(window, said):
    conditions = run(trials(window=window))
    assert kinds(summarise(conditions, made(each=10, model=3000.0))) == said


@pytest.mark.parametrize(
    ("blocking", "held", "said"),
    [(4, 60, []), (5, 60, ["blocking_tool"]), (5, 50, []), (90, 51, ["blocking_tool"])],
)
def test_tool_is_blamed_for_one_call_in_twenty_that_held_the_loop_for_long(blocking, held, said):
    """90 calls of one tool, of which some held the event loop, that many milliseconds each."""
    loops = made(model=20.0, calls=[(0.0, 100.0)])
    for place in range(blocking):
        first, last = loops[place].rounds
        call = dataclasses.replace(first.tool_calls[0], blocking_ns=held * 1_000_000)
        loops[place] = dataclasses.replace(
            loops[place], rounds=(dataclasses.replace(first, tool_calls=(call,)), last)
        )
    assert kinds(summarise(run(trials()), loops)) == said


def test_saturated_by_several_at_once_names_each():
    client = (
        ClientHealth("w0", loop_lag_p99=0.06, cpu=0.95),
        ClientHealth("w1", loop_lag_p99=0.055, schedule_lag_p99=0.02),
        ClientHealth("the master", cpu=1.4),
    )
    (caveat,) = summarise(run(trials(), client=client), made()).warnings
    assert caveat.detail == (
        "this client is saturated: the event loop was late by 60 ms at p99, beside a median of 100 ms, "
        "and loops started 20 ms late, more than 5 % of the median 100 ms, "
        "and a client process kept a core 95 % busy (limit 90 %), "
        "and the master kept a core 100 % busy (limit 90 %)"
    )


def test_caveat_that_is_invalid_makes_a_run_invalid_and_is_first():
    found = summarise(run(trials(), client=(ClientHealth("w0", cpu=0.95),), finished=False), made())
    assert kinds(found) == ["client_saturated", "unfinished"]
    assert found.valid is False
    assert summarise(run(trials(), finished=False), made()).valid is True


def of_an_agent(
    spec: str,
    calls: int,
    unlimited: int,
    unobserved: int = 0,
    reason: str | None = None,
    server: str | None = None,
    **changes: object,
) -> list[Caveat]:
    """The caveats of a user's own agent that makes so many calls at once in each loop, of this MCP server."""
    remote = None if server is None else RemoteCall(server, "http")
    records = []
    for one in made(calls=[(0.0, 50.0)] * calls, each=300.0, strategy=spec):
        asked, answered = one.rounds
        failed = [dataclasses.replace(c, status="error", error_type=reason) for c in asked.tool_calls]
        kept = [dataclasses.replace(c, remote=remote) for c in (failed if reason else asked.tool_calls)]
        asked = dataclasses.replace(asked, tool_calls=tuple(kept), unobserved_calls=unobserved)
        rounds = (asked, answered)
        records.append(dataclasses.replace(one, rounds=rounds, unlimited_calls=unlimited, **changes))
    named = [dataclasses.replace(one, strategy=spec) for one in trials(window=9000.0)]
    return list(summarise(run(named), records).warnings)


@pytest.mark.parametrize(
    ("spec", "calls", "unlimited", "detail"),
    [
        (
            "semaphore:2",
            *(5, 5),
            "none of 450 calls went through it; it allows 2 calls at once, and 5 ran at once",
        ),
        (
            "semaphore:2",
            5,
            3,
            "it allows 2 calls at once, and 5 ran at once; 270 of 450 calls went around it",
        ),
        (
            "semaphore:5@agent",
            *(6, 1),
            "it allows 5 calls at once, and 6 ran at once; 90 of 540 calls went around",
        ),
        (
            "semaphore:2@tool",
            3,
            1,
            "it allows 2 calls at once, and 3 ran at once; 90 of 270 calls went around it",
        ),
        (
            "semaphore:get_weather=1",
            *(3, 0),  # what `execute` is handed has no tool's name
            "it allows 1 call of get_weather at once, and 3 ran at once; 0 of 270 calls went around it",
        ),
        (
            "sequential",
            2,
            2,
            "none of 180 calls went through it; it allows 1 call at once, and 2 ran at once",
        ),
        ("semaphore:9", 2, 2, "none of 180 calls went through it"),
        ("adaptive", 4, 4, "none of 360 calls went through it"),
        ("rate:50/s", 4, 1, "90 of 360 calls went around it"),
    ],
)
def test_strategy_that_an_agent_does_not_heed_is_said_first(
    spec: str, calls: int, unlimited: int, detail: str
) -> None:
    first = of_an_agent(spec, calls, unlimited)[0]
    assert (first.kind, first.invalid) == ("strategy_ignored", True)
    assert first.detail.startswith(f"{spec} was not heeded: {detail}")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("semaphore:2@server", "it allows 2 calls of a server at once, and 3 ran at once"),
        ("semaphore:files/*=1", "it allows 1 call of files at once, and 3 ran at once"),
        ("semaphore:3@server", None),
        ("semaphore:other/*=1", None),
    ],
)
def test_limits_of_servers_are_held_against_the_calls_of_each(spec: str, said: str | None) -> None:
    found = [c for c in of_an_agent(spec, 3, 0, server="files") if c.kind == "strategy_ignored"]
    assert [said in one.detail for one in found if said] == ([True] if said else [])
    assert bool(found) is (said is not None)


@pytest.mark.parametrize(
    ("spec", "calls", "unlimited"),
    [
        *(("semaphore:2", 2, 1), ("semaphore:2", 3, 0), ("gathered", 9, 9), ("rate:50/s", 4, 0)),
        ("semaphore:other=1", 3, 0),
    ],
)
def test_strategy_that_held_is_not_complained_of(spec: str, calls: int, unlimited: int) -> None:
    """Also where more calls ran than may, none of which went around it: tools that call tools."""
    assert "strategy_ignored" not in {caveat.kind for caveat in of_an_agent(spec, calls, unlimited)}


@pytest.mark.parametrize(
    ("calls", "unobserved", "reason", "detail"),
    [
        (1, 3, None, "adaptive: 270 of 360 calls ran in functions that are not watched"),
        (2, 0, "ConnectionError", "adaptive: 180 of 180 calls failed in ways that do not reach the limiter"),
    ],
)
def test_limiter_that_cannot_learn_is_noted(
    calls: int, unobserved: int, reason: str | None, detail: str
) -> None:
    (caveat,) = [
        c for c in of_an_agent("adaptive", calls, 0, unobserved, reason) if c.kind == "limiter_blind"
    ]
    assert caveat.detail.startswith(detail)
    assert not caveat.invalid


@pytest.mark.parametrize("reason", [None, "http_429", "timeout", "ReadTimeout", "http_529"])
def test_limiter_that_learns_is_not_complained_of(reason: str | None) -> None:
    assert "limiter_blind" not in {caveat.kind for caveat in of_an_agent("adaptive", 2, 0, 0, reason)}


# ── what replies did not tell ──────────────────────────────────────────────────────────────────


def with_models(**changes: object) -> dict[str, Caveat]:
    """The caveats of a good run of 90 loops, where the replies of its first 40 are changed."""
    run_, records = good_run()
    for place in range(40):
        (only,) = records[place].rounds
        model = dataclasses.replace(only.model, **changes)  # type: ignore[arg-type]
        records[place] = dataclasses.replace(records[place], rounds=(dataclasses.replace(only, model=model),))
    return {caveat.kind: caveat for caveat in summarise(run_, records).warnings}


def test_tokens_that_replies_did_not_name_are_said_to_be_unknown() -> None:
    caveat = with_models(output_tokens=None)["unknown_tokens"]
    assert caveat.detail == (
        "tokens of 40 of 90 replies are not known, so there were at least as many as are counted"
    )
    assert caveat.remedy.startswith("does the server name its usage (in streams: ")
    assert "unknown_tokens" not in with_models(input_tokens=0)
    assert "unknown_tokens" not in with_models(status="error", error_type="http_500", output_tokens=None)


def test_limits_on_tokens_that_are_not_known_are_named() -> None:
    run_, records = good_run(arguments={"max_tokens": 900, "max_cost": None})
    (only,) = records[0].rounds
    model = dataclasses.replace(only.model, input_tokens=None)
    records[0] = dataclasses.replace(records[0], rounds=(dataclasses.replace(only, model=model),))
    (caveat,) = [one for one in summarise(run_, records).warnings if one.kind == "unknown_tokens"]
    assert caveat.detail.startswith("tokens of 1 of 90 replies are not known")
    assert caveat.remedy == "--max-tokens took them to be like the others"


def test_what_could_not_be_understood_is_counted_and_said() -> None:
    caveat = with_models(unreadable=2)["unreadable"]
    assert caveat.detail == "80 parts of replies could not be understood"
    assert not caveat.invalid


def test_server_tools_without_times_are_said_to_be_part_of_the_model() -> None:
    timed, untimed = ServerToolCall("web_search", 0, 1), ServerToolCall("web_search")
    caveat = with_models(server_tools=(timed, untimed))["untimed_server_tools"]
    assert caveat.sentence == (
        "note: no times are known of 40 calls of tools that the model's server ran itself: they are part of "
        "model; streamed replies tell them (--stream)"
    )
    assert "untimed_server_tools" not in with_models(server_tools=(timed,))
