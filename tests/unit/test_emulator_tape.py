"""The tape: the same loop number is the same work, whoever asks, in whatever order."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from profiler.emulator.conversation import AUTO, NO_TOOLS, Choice, Conversation, Offered, offer
from profiler.emulator.draws import Place
from profiler.emulator.tape import Pace, Tape
from profiler.scenarios import Fault, TapePosition, load_scenario

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
        rounds.append([tuple(call) for call in tape.calls(places, TOOLS, AUTO)])
        calls += len(places)
    return rounds


def one_by_one(tape: Tape, loop: int) -> list[tuple[Place, str, str]]:
    work: list[tuple[Place, str, str]] = []
    while places := tape.places(talk(parallel=False, turns=len(work), calls=len(work)), loop):
        assert len(places) == 1
        work += [tuple(call) for call in tape.calls(places, TOOLS, AUTO)]
    return work


def test_tape_of_the_same_seed_and_number_is_the_same_work() -> None:
    first = [parallel_work(Tape(CITIES, 7), loop) for loop in range(30)]
    second = [parallel_work(Tape(CITIES, 7), loop) for loop in reversed(range(30))]
    assert first == second[::-1]
    assert first != [parallel_work(Tape(CITIES, 8), loop) for loop in range(30)]
    assert len({str(work) for work in first}) == 30


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
    calls = [n for n in range(5000) if tape.call_fault(Place(n, 0, 0), "wrong_type")]
    assert len(calls) == pytest.approx(1000, rel=0.15)
    assert all(tape.call_fault(Place(n, 0, 0), "unknown_tool") is None for n in range(200))


def test_arguments_are_json_of_the_schema() -> None:
    for call in Tape(CITIES, 0).calls(
        [Place(0, 0, n) for n in range(5)], TOOLS, Choice("auto", ("get_weather",))
    ):
        assert list(orjson.loads(call.arguments)) == ["city"]
