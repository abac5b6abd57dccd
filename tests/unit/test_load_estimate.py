"""The plan of a load test: its estimate, and what is said of it."""

from __future__ import annotations

import pytest

from profiler.emulator.tape import Tape
from profiler.load.estimate import (
    SAMPLE,
    estimate_load,
    loop_seconds,
    loop_seconds_after,
    rounded,
    sample_spent,
)
from profiler.load.options import LoadOptions
from profiler.scenarios import load_scenario, parse_scenario
from profiler.strategies import parse_strategies

SCENARIO = """
description = "two rounds of four calls"
prompt = "p"

[model]
first_token = { kind = "constant", value = 0.2 }
tokens_per_second = { kind = "constant", value = 0 }

[loop]
rounds = { kind = "constant", value = 2 }
fan_out = { kind = "constant", value = 4 }

[tools.slow]
path = "/tools/slow"
description = "d"
duration = { kind = "constant", value = 0.5 }
parameters = { type = "object" }
"""
WORK = parse_scenario(SCENARIO, name="work", source="work.toml")
REMOTE = LoadOptions(
    strategies=parse_strategies("gathered"), base_url="https://api.example.com", allow_remote=True
)


def test_loop_takes_its_requests_and_its_longest_calls_or_all_of_them() -> None:
    tape = Tape(WORK, 1)
    assert loop_seconds(tape, at_once=True) == pytest.approx(3 * 0.2 + 2 * 0.5)
    assert loop_seconds(tape, at_once=False) == pytest.approx(3 * 0.2 + 8 * 0.5)
    # Of a server whose first answer took a second:
    assert loop_seconds_after(1.0, tape, at_once=True) == pytest.approx(3 * 1.0 + 2 * 0.5)
    assert loop_seconds_after(1.0, tape, at_once=False) == pytest.approx(3 * 1.0 + 8 * 0.5)


def test_estimate_counts_in_every_request_what_was_said_before() -> None:
    spent = sample_spent(Tape(WORK, 1), emulated=True)
    assert (spent.loops, spent.requests) == (SAMPLE, SAMPLE * 3)
    first = spent.input_tokens / SAMPLE / 3 - 4 * 60  # four calls more with each of three requests
    assert 5 < first < 30
    assert spent.output_tokens == SAMPLE * (8 * 20 + 60)


def test_estimate_has_the_scenarios_caches_and_reasoning_only_where_the_model_is_emulated() -> None:
    more = "context_tokens = 1000\ncached_share = 0.5\ncache_written_share = 0.25\nreasoning_tokens = 30\n"
    text = SCENARIO.replace("[model]\n", f'[model]\n{more}cache_ttl = "1h"\n')
    tape = Tape(parse_scenario(text, name="caches", source="caches.toml"), 1)
    plain, spent = sample_spent(tape, emulated=False), sample_spent(tape, emulated=True)
    assert plain == sample_spent(Tape(WORK, 1), emulated=True)
    assert spent.input_tokens == plain.input_tokens + 1000 * spent.requests
    assert spent.cached_tokens == pytest.approx(spent.input_tokens / 2, abs=1)
    assert spent.cache_written_tokens == pytest.approx(spent.input_tokens / 8, abs=1)
    assert spent.cache_written_1h_tokens == spent.cache_written_tokens
    assert spent.output_tokens - plain.output_tokens == spent.reasoning_tokens == 30 * spent.requests


def test_plan_on_this_machine_is_one_line_without_a_cost() -> None:
    options = LoadOptions(strategies=parse_strategies("gathered,sequential"))
    (line,) = estimate_load(options, 8, 16.0, 1, WORK, remote=False).lines()
    # 8 × 16 / 1.6 s, 8 × 16 / 4.6 s, and one for what warms up
    assert line == (
        "plan: 2 strategies, 32 s of measuring with 8 agents on the embedded emulator: "
        "about 110 loops, 330 requests"
    )


def test_estimate_for_a_target_that_takes_no_time_is_the_client_s_limit() -> None:
    planned = estimate_load(
        LoadOptions(strategies=parse_strategies("gathered")),
        20,
        3.0,
        2,
        load_scenario("instant"),
        remote=False,
    )
    assert planned.spent is not None
    assert planned.spent.loops == 3 * 2 * 200 + 2


def test_plan_elsewhere_says_what_it_may_cost_and_which_limit_ends_it() -> None:
    lines = estimate_load(REMOTE, 8, 16.0, 2, WORK, remote=True).lines()
    assert lines[0] == (
        "plan: 1 strategy, 16 s of measuring with 8 agents on https://api.example.com (gpt-4o)"
    )
    assert lines[1].startswith("  about 82 loops, 250 requests, ")
    assert "at $2.5/$10 per million tokens in/out" in lines[1]
    assert lines[2] == "  an estimate, as if loops were those of the scenario work"
    assert lines[3].startswith("  no limit on what is spent: --max-loops, ")
    limited = LoadOptions(
        strategies=parse_strategies("gathered"), base_url=REMOTE.base_url, max_requests=123, max_cost=9.0
    )
    assert estimate_load(limited, 8, 16.0, 2, WORK, remote=True).lines()[3] == (
        "  --max-requests 123 will end it after about 50% of that"
    )


def test_open_load_has_as_many_loops_as_arrive_and_an_agents_own_are_unknown() -> None:
    options = LoadOptions(
        strategies=parse_strategies("gathered"), arrivals="5/s", levels=(10, 20), base_url=REMOTE.base_url
    )
    planned = estimate_load(options, 10, 8.0, 1, WORK, remote=True)
    assert planned.spent is not None
    assert planned.spent.loops == 5 * 8 + 10 * 8 + 1  # the rate is that of 10 agents
    own = estimate_load(LoadOptions(agent="a:b", base_url=REMOTE.base_url), 8, 16.0, 1, WORK, remote=True)
    assert (own.spent, own.cost) == (None, None)
    assert own.lines()[1] == "  how much the agent asks for is not known"


def test_estimate_has_two_digits() -> None:
    assert [rounded(count) for count in (7, 99, 123, 1_234, 98_765)] == ["7", "99", "120", "1,200", "99,000"]
