"""The tape: the same loop number is the same work, whoever asks, in whatever order."""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import replace
from statistics import correlation, fmean

import orjson
import pytest
from msgspec.structs import astuple

from profiler.emulator.conversation import AUTO, NO_TOOLS, Choice, Conversation, Offered, offer
from profiler.emulator.draws import Place
from profiler.emulator.tape import Pace, Tape
from profiler.scenarios import Fault, Scenario, TapePosition, load_scenario, parse_scenario, shipped_scenarios

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = offer(
    {"get_weather": WEATHER, "get_population": WEATHER, "other": {"type": "object", "properties": {}}}
)
CITIES = load_scenario("cities")


def talk(
    tools: Offered = TOOLS, choice: Choice = AUTO, parallel: bool = True, turns: int = 0, calls: int = 0
) -> Conversation:
    return Conversation("m", False, False, tools, choice, parallel, turns, calls, None, [], None)


def parallel_work(tape: Tape, loop: int) -> list[list[tuple[Place, str, str]]]:
    rounds = []
    calls = 0
    while places := tape.places(talk(turns=len(rounds), calls=calls), loop):
        rounds.append([astuple(call) for call in tape.calls(places, TOOLS, AUTO)])
        calls += len(places)
    return rounds


def one_by_one(tape: Tape, loop: int) -> list[tuple[Place, str, str]]:
    work: list[tuple[Place, str, str]] = []
    while places := tape.places(talk(parallel=False, turns=len(work), calls=len(work)), loop):
        assert len(places) == 1
        work += [astuple(call) for call in tape.calls(places, TOOLS, AUTO)]
    return work


def test_tape_of_the_same_seed_and_number_is_the_same_work() -> None:
    first = [parallel_work(Tape(CITIES, 7), loop) for loop in range(30)]
    second = [parallel_work(Tape(CITIES, 7), loop) for loop in reversed(range(30))]
    assert first == second[::-1]
    assert first != [parallel_work(Tape(CITIES, 8), loop) for loop in range(30)]
    assert len({str(work) for work in first}) == 30


def test_loops_that_are_asked_in_turn_are_those_that_are_asked_alone() -> None:
    tape = Tape(CITIES, 3)
    in_turn = [(tape.rounds(loop), tape.fan_out(loop, 0), tape.pace(loop, 0, 0)) for loop in (1, 2, 1, 2)]
    alone = [Tape(CITIES, 3) for _ in range(4)]
    assert in_turn == [
        (fresh.rounds(loop), fresh.fan_out(loop, 0), fresh.pace(loop, 0, 0))
        for fresh, loop in zip(alone, (1, 2, 1, 2), strict=True)
    ]
    assert in_turn[0] != in_turn[1]


def test_cities_is_what_it_says() -> None:
    tape = Tape(CITIES, 0)
    works = [parallel_work(tape, loop) for loop in range(200)]
    assert {len(work) for work in works} == {1, 2}
    assert {len(calls) for work in works for calls in work} == {2, 3, 4, 5, 6}
    durations = [tape.duration(place, name) for work in works for calls in work for place, name, _ in calls]
    assert 0.2 <= min(durations) < 0.21
    assert 0.49 < max(durations) <= 0.5
    for work in works:
        pairs = [(name, arguments) for calls in work for _, name, arguments in calls if name != "other"]
        assert len(set(pairs)) == len(pairs)


def test_tape_without_parallel_calls_has_the_same_calls_one_per_response_in_order() -> None:
    tape = Tape(CITIES, 3)
    for loop in range(40):
        assert one_by_one(tape, loop) == [call for calls in parallel_work(tape, loop) for call in calls]


def test_tape_does_not_depend_on_the_order_in_which_tools_are_offered() -> None:
    turned = offer(
        {"other": {"type": "object", "properties": {}}, "get_population": WEATHER, "get_weather": WEATHER}
    )
    places = [Place(5, 0, n) for n in range(4)]
    tape = Tape(CITIES, 0)
    assert tape.calls(places, turned, AUTO) == tape.calls(places, TOOLS, AUTO)


def test_tool_choice_is_honoured() -> None:
    tape = Tape(CITIES, 0)
    assert tape.places(talk(choice=Choice("none")), 0) == []
    assert tape.places(talk(tools=NO_TOOLS), 0) == []
    named = Choice("named", ("other",))
    places = tape.places(talk(choice=named), 0)
    assert places == [Place(0, 0, 0)]
    assert [call.name for call in tape.calls(places, TOOLS, named)] == ["other"]
    allowed = Choice("auto", ("get_population",))
    assert {call.name for call in tape.calls([Place(1, 0, n) for n in range(9)], TOOLS, allowed)} == {
        "get_population"
    }
    # Beyond the tape's end a client that insists gets one call a round, for ever.
    assert tape.places(talk(choice=Choice("required"), turns=50), 0) == [Place(0, 50, 0)]
    assert tape.places(talk(turns=50), 0) == []
    assert tape.places(talk(choice=Choice("required"), parallel=False, calls=500), 0)[0].call == 0


def test_tape_times_scale() -> None:
    slow, fast = Tape(CITIES, 1), Tape(replace(CITIES, time_scale=0.1), 1)
    place = Place(4, 1, 2)
    assert fast.duration(place, "get_weather") == pytest.approx(slow.duration(place, "get_weather") / 10)
    assert fast.pace(4, 1, 2).first_token == pytest.approx(slow.pace(4, 1, 2).first_token / 10)
    assert fast.pace(4, 1, 2).per_token == pytest.approx(slow.pace(4, 1, 2).per_token / 10)


def test_instant_takes_no_time_and_has_one_round_of_three() -> None:
    tape = Tape(load_scenario("instant"), 9)
    assert [len(calls) for calls in parallel_work(tape, 17)] == [3]
    assert tape.pace(17, 0, 0) == Pace(0.0, 0.0)
    assert tape.duration(Place(17, 0, 1), "get_weather") == 0.0


def test_unknown_tools_take_the_default_duration() -> None:
    tape = Tape(load_scenario("research"), 0)
    assert tape.duration(Place(1, 0, 0), "made_up") == tape.duration(Place(1, 0, 0), "another")
    assert tape.duration(Place(1, 0, 0), "made_up") != tape.duration(Place(1, 0, 0), "web_search")


def test_faults_by_position_hit_there_and_only_the_first_attempts() -> None:
    fault = Fault("http_500", at=(TapePosition(2, 1),), attempts=2)
    tape = Tape(replace(CITIES, faults=(fault,)), 0)
    assert [tape.model_fault(Place(2, 1, 0), attempt) for attempt in range(3)] == [fault, fault, None]
    assert tape.model_fault(Place(2, 0, 0), 0) is None


def test_faults_by_probability_come_at_their_rate_and_stay_where_they_are() -> None:
    faults = (Fault("reset", probability=0.1), Fault("wrong_type", probability=0.2))
    tape = Tape(replace(CITIES, faults=faults), 5)
    hit = [loop for loop in range(5000) if tape.model_fault(Place(loop, 0, 0), 0)]
    assert len(hit) == pytest.approx(500, rel=0.15)
    assert hit == [loop for loop in range(5000) if tape.model_fault(Place(loop, 0, 0), 0)]
    calls = [n for n in range(5000) if tape.call_fault(Place(n, 0, 0), "f", "wrong_type")]
    assert len(calls) == pytest.approx(1000, rel=0.15)
    assert all(tape.call_fault(Place(n, 0, 0), "unknown_tool") is None for n in range(200))


def test_arguments_are_json_of_the_schema() -> None:
    for call in Tape(CITIES, 0).calls(
        [Place(0, 0, n) for n in range(5)], TOOLS, Choice("auto", ("get_weather",))
    ):
        assert list(orjson.loads(call.arguments)) == ["city"]


# What other versions of this package made of the scenarios that are shipped: seeds are promises.


def fingerprint(scenario: Scenario) -> str:
    tape, digest = Tape(scenario, 5), hashlib.sha256()
    tools = offer({**{spec.name: dict(spec.parameters) for spec in scenario.tools}, "other": WEATHER})
    for loop in range(40):
        turns = calls = 0
        while True:
            places = tape.places(talk(tools, turns=turns, calls=calls), loop)
            place = places[0] if places else Place(loop, tape.rounds(loop), 0)
            fault = tape.model_fault(place, 0)
            kind = None if fault is None else fault.kind
            digest.update(repr((tape.pace(*place)[:2], tape.tokens(place, 0)[:4], kind)).encode())
            if not places:
                break
            for call in tape.calls(places, tools, AUTO):
                seconds = tape.duration(call.place, call.name)
                digest.update(repr((tuple(call.place), call.name, call.arguments, seconds)).encode())
            turns, calls = turns + 1, calls + len(places)
    return digest.hexdigest()[:16]


def test_shipped_scenarios_draw_what_they_always_drew() -> None:
    assert {one.name: fingerprint(one) for one in shipped_scenarios()} == {
        "cities": "6160d6d2589ad18c",
        "crowded": "252c29012f76f995",
        "fanout": "4755784e3213d90a",
        "flaky": "09f3aa69326cd3e4",
        "instant": "c80113eeddad46bb",
        "quota": "7c311296cf5e2994",
        "research": "bce267a1a96004a7",
    }


# What draws have in common

TOOL = """
[tools.look]
description = "Looks."
weight = 3
duration = { kind = "quantiles", p = [0, 0.5, 0.9, 1], values = [0.1, 0.2, 0.6, 2] }
[tools.find]
description = "Finds."
duration = { kind = "lognormal", median = 0.4, sigma = 0.8 }
"""


def tape_of(text: str, loop: str = "rounds = 3\nfan_out = 4", model: str = "", tools: str = TOOL) -> Tape:
    head = f"""
description = "d"
prompt = "p"
[model]
first_token = 0.1
tokens_per_second = 100
{model}
[loop]
{loop}
"""
    return Tape(parse_scenario(head + text + tools, name="n", source="n.toml"), 3)


def work_of(tape: Tape, loops: int) -> list[list[list[tuple[str, float]]]]:
    """By loop and round: the tools and seconds of the calls."""
    tools = offer({spec.name: dict(spec.parameters) for spec in tape.scenario.tools})
    work = []
    for loop in range(loops):
        rounds: list[list[tuple[str, float]]] = []
        calls = 0
        while places := tape.places(talk(tools, turns=len(rounds), calls=calls), loop):
            made = tape.calls(places, tools, AUTO)
            rounds.append([(call.name, tape.duration(call.place, call.name)) for call in made])
            calls += len(places)
        work.append(rounds)
    return work


def of_lognormal(seconds: float) -> float:
    return math.log(seconds / 0.4) / 0.8


def test_calls_of_a_loop_and_of_a_round_are_alike_as_stated_and_distributed_as_before() -> None:
    work = work_of(tape_of("[correlation]\nloop = 0.3\nround = 0.2\n"), 1200)
    look = sorted(s for loop in work for calls in loop for name, s in calls if name == "look")
    assert [look[int(p * len(look))] for p in (0.5, 0.9)] == pytest.approx([0.2, 0.6], rel=0.05)
    z = [[[of_lognormal(s) for name, s in calls if name == "find"] for calls in loop] for loop in work]
    same = [a * b for loop in z for calls in loop for a, b in itertools.combinations(calls, 2)]
    apart = [a * b for loop in z for x, y in itertools.combinations(loop, 2) for a in x for b in y]
    assert fmean(same) == pytest.approx(0.5, abs=0.08)
    assert fmean(apart) == pytest.approx(0.3, abs=0.08)
    alone = work_of(tape_of(""), 600)
    z = [[[of_lognormal(s) for name, s in calls if name == "find"] for calls in loop] for loop in alone]
    same = [a * b for loop in z for calls in loop for a, b in itertools.combinations(calls, 2)]
    assert fmean(same) == pytest.approx(0.0, abs=0.08)


def test_large_loops_are_the_slow_ones_where_size_goes_with_durations() -> None:
    shape = 'rounds = 1\nfan_out = { kind = "empirical", values = [1, 2, 3, 4, 5, 6, 7, 8, 9] }'
    for size, sign in ((0.5, 1), (-0.5, -1)):
        tape = tape_of(f"[correlation]\nloop = 0.5\nsize = {size}\n", shape)
        work = [loop[0] for loop in work_of(tape, 800)]
        large = [of_lognormal(s) for calls in work if len(calls) > 7 for name, s in calls if name == "find"]
        small = [of_lognormal(s) for calls in work if len(calls) < 3 for name, s in calls if name == "find"]
        assert sign * (fmean(large) - fmean(small)) > 0.5
        assert fmean(len(calls) for calls in work) == pytest.approx(5, abs=0.3)


def test_tools_are_asked_for_by_weight_in_each_round_and_in_runs() -> None:
    work = work_of(tape_of(""), 500)
    names = [name for loop in work for calls in loop for name, _ in calls]
    assert names.count("look") / len(names) == pytest.approx(0.75, abs=0.02)
    by_round = work_of(tape_of("", tools=TOOL.replace("weight = 3", "weight = [0, 3]")), 300)
    assert {name for loop in by_round for name, _ in loop[0]} == {"find"}
    later = [name for loop in by_round for calls in loop[1:] for name, _ in calls]
    assert later.count("look") / len(later) == pytest.approx(0.75, abs=0.03)
    runs = work_of(tape_of("", "rounds = 3\nfan_out = 4\nsame_tool = 0.6"), 500)
    pairs = [(a[0], b[0]) for loop in runs for calls in loop for a, b in itertools.pairwise(calls)]
    same = sum(a == b for a, b in pairs) / len(pairs)
    assert same == pytest.approx(0.6 + 0.4 * (0.75**2 + 0.25**2), abs=0.03)


def test_first_rounds_may_have_a_fan_out_of_their_own() -> None:
    shape = 'rounds = 3\nfan_out = 2\nfan_out_by_round = [5, { kind = "uniform", low = 3, high = 4 }]'
    sizes = [[len(calls) for calls in loop] for loop in work_of(tape_of("", shape), 50)]
    assert {one[0] for one in sizes} == {5}
    assert {one[1] for one in sizes} == {3, 4}
    assert {one[2] for one in sizes} == {2}


WHOLE = """
duration = { kind = "uniform", low = 1, high = 3 }
output_tokens = { kind = "uniform", low = 100, high = 300 }
input_tokens = 500
"""


def test_reply_takes_a_stated_time_and_its_tokens_go_with_it_as_stated() -> None:
    tape = tape_of("[correlation]\noutput_tokens = 0.9\n", model=WHOLE)
    pairs = [(tape.pace(n, 0, 0), tape.tokens(Place(n, 0, 0), 0)) for n in range(2000)]
    seconds = [pace.whole or 0 for pace, _ in pairs]
    tokens = [drawn.output or 0 for _, drawn in pairs]
    assert {drawn.input for _, drawn in pairs} == {500}
    assert {pace.first_token for pace, _ in pairs} == {0.1}
    for drawn, low, high in ((seconds, 1, 3), (tokens, 100, 300)):
        assert low <= min(drawn) < low + 0.02 * low
        assert fmean(drawn) == pytest.approx((low + high) / 2, rel=0.03)
    assert correlation(seconds, tokens) == pytest.approx(0.9, abs=0.03)


def test_faults_of_calls_may_hit_one_tool_only() -> None:
    fault = Fault("tool_http_500", probability=0.25, tools=("look",))
    tape = Tape(replace(tape_of("").scenario, faults=(fault,)), 0)
    hit = [tape.call_fault(Place(n, 0, 0), "look", "tool_http_500") is fault for n in range(2000)]
    assert sum(hit) / 2000 == pytest.approx(0.25, abs=0.03)
    assert not any(tape.call_fault(Place(n, 0, 0), "find", "tool_http_500") for n in range(2000))
