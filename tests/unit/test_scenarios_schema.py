"""Scenario files: what loads, and that every mistake names file, key and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiler.errors import ScenarioError
from profiler.scenarios import (
    Capacity,
    CapacityStep,
    Correlation,
    Fault,
    Quota,
    TapePosition,
    load_scenario,
    parse_scenario,
    shipped_scenarios,
)
from profiler.scenarios.forms import Distribution

MINIMAL = """
description = "one line"
prompt = "Question {number}"

[model]
first_token = 0.1
tokens_per_second = 100

[loop]
rounds = 1
fan_out = 3

[tools.look]
description = "Looks."
duration = 0.2
"""


def parse(extra: str = "", text: str = MINIMAL):
    return parse_scenario(text + extra, name="mine", source="mine.toml")


def test_minimal_file_has_documented_defaults() -> None:
    scenario = parse()
    assert (scenario.name, scenario.description, scenario.time_scale) == ("mine", "one line", 1.0)
    assert scenario.model.first_token == Distribution("constant", (0.1,))
    assert scenario.model.tokens_per_event == 8
    assert [(tool.name, tool.path, tool.capacity) for tool in scenario.tools] == [
        ("look", "/tools/look", None)
    ]
    assert scenario.tool("look").duration == Distribution("constant", (0.2,))
    assert scenario.tool("other").duration == Distribution("constant", (0.2,))
    assert scenario.quota is None
    assert scenario.faults == ()


def test_file_may_say_all_that_is_documented() -> None:
    steps = "[{ after = 1, fraction = 0.4 }, { after = 2, fraction = 1 }]"
    scenario = parse(
        """
[tools.look.capacity]
concurrent = 4
mode = "queue"
queue = 7
requests_per_second = 2.5
burst = 3
schedule = STEPS

[default_tool]
duration = { kind = "lognormal", median = 0.2, sigma = 1.5, min = 0.1, max = 9, seed = 5 }

[quota]
requests_per_minute = 60
input_tokens_per_minute = 1000
output_tokens_per_minute = 500
concurrent_requests = 2
burst = 0.5

[[faults]]
kind = "hang"
at = [{ loop = 3 }, { loop = 4, round = 1, call = 2 }]
seconds = 2
attempts = 3
""".replace("STEPS", steps)
    )
    assert scenario.tools[0].capacity == Capacity(
        concurrent=4,
        mode="queue",
        queue=7,
        requests_per_second=2.5,
        burst=3,
        schedule=(CapacityStep(1.0, 0.4), CapacityStep(2.0, 1.0)),
    )
    assert scenario.default_tool.duration == Distribution("lognormal", (0.2, 1.5), 0.1, 9.0, 5)
    assert scenario.quota == Quota(60.0, 1000.0, 500.0, 2, 0.5)
    positions = (TapePosition(3), TapePosition(4, 1, 2))
    assert scenario.faults == (Fault("hang", 0.0, positions, attempts=3, seconds=2.0),)


def test_file_may_say_how_a_recording_behaved() -> None:
    scenario = parse(
        """
weight = [2, 0.5]
server = "both"

[tools.find]
description = "Finds."
duration = { kind = "quantiles", p = [0, 0.5, 1], values = [0.1, 0.2, 3] }
weight = 3
server = "both"

[servers.both]
concurrent = 20
retry_after = 1.5
refusal_seconds = 0.02

[correlation]
loop = 0.2
round = 0.15
size = -0.1
model = 0.3
output_tokens = 0.9

[quota]
requests_per_minute = 60
retry_after = "none"
refusal_seconds = 0.1

[[faults]]
kind = "tool_http_500"
probability = 0.02
tools = ["find"]
""",
        MINIMAL.replace(
            "fan_out = 3",
            'fan_out = { kind = "empirical", values = [1, 2], weights = [3, 1] }\nfan_out_by_round = [5]\n'
            "same_tool = 0.4",
        ).replace(
            "tokens_per_second = 100",
            "tokens_per_second = 0\nduration = 2\ninput_tokens = 100\noutput_tokens = 30",
        ),
    )
    look, find = scenario.tools
    assert (look.weight, look.server, find.weight) == ((2.0, 0.5), "both", (3.0,))
    assert find.duration == Distribution("quantiles", (0.0, 0.5, 1.0, 0.1, 0.2, 3.0))
    assert scenario.servers == {"both": Capacity(concurrent=20, retry_after=1.5, refusal_seconds=0.02)}
    assert scenario.correlation == Correlation(loop=0.2, round=0.15, size=-0.1, model=0.3, output_tokens=0.9)
    assert scenario.quota == Quota(60.0, retry_after="none", refusal_seconds=0.1)
    assert scenario.faults == (Fault("tool_http_500", 0.02, tools=("find",)),)
    assert scenario.loop.fan_out.weights == (3.0, 1.0)
    assert scenario.loop.fan_out_by_round == (Distribution("constant", (5.0,), maximum=4096),)
    assert scenario.loop.same_tool == 0.4
    assert scenario.model.duration == Distribution("constant", (2.0,))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            'duration = { kind = "quantiles", p = [0, 1], values = [2, 1] }',
            "duration.values: expected a value for",
        ),
        (
            'duration = { kind = "quantiles", p = [0, 0.5], values = [1, 2] }',
            "duration.p: expected rising prob",
        ),
        (
            'duration = { kind = "empirical", values = [1, 2], weights = [1] }',
            "duration.weights: expected a weight",
        ),
        (
            'duration = 1\nweight = "often"',
            "tools.b.weight: expected a number of at least 0, or a list of those",
        ),
        (
            'duration = 1\nserver = "mine"',
            "tools.b.server: expected the name of one of [servers], found 'mine'",
        ),
        (
            "duration = 1\n[correlation]\nloop = 0.7\nround = 0.5",
            "correlation.round: expected a number of at most",
        ),
        ("duration = 1\n[correlation]\nsize = -2", "correlation.size: expected a number of at least -1"),
        (
            'duration = { kind = "gamma", mean = 1, shape = 2 }\n[correlation]\nloop = 0.2',
            "tools.b.duration: expected another kind than gamma",
        ),
        (
            'duration = 1\n[[faults]]\nkind = "http_500"\nprobability = 0.1\ntools = ["b"]',
            "faults[0].tools: expected no tools",
        ),
    ],
)
def test_mistakes_in_what_a_recording_showed(extra: str, message: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        parse(f'[tools.b]\ndescription = "B."\n{extra}\n')
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "fan_out",
            "fanout",
            (
                "mine.toml: unknown key 'loop.fanout' (did you mean 'fan_out'?); expected one of: rounds,"
                " fan_out"
            ),
        ),
        ("prompt =", "promt =", "mine.toml: unknown key 'promt' (did you mean 'prompt'?)"),
        (
            "rounds = 1",
            'rounds = "one"',
            "mine.toml: loop.rounds: expected a number, or a distribution such as",
        ),
        (
            "first_token = 0.1",
            "first_token = -1",
            "mine.toml: model.first_token: expected a number of at least 0, found -1",
        ),
        ("duration = 0.2", "", "mine.toml: tools.look.duration: expected a number, or a distribution"),
        (
            "duration = 0.2",
            'duration = { kind = "normal" }',
            "mine.toml: tools.look.duration.kind: expected one of constant, uniform,",
        ),
        (
            "duration = 0.2",
            'duration = { kind = "lognormal", median = 0, sigma = 1 }',
            "tools.look.duration.median: expected a number above 0, found 0",
        ),
        (
            "duration = 0.2",
            'duration = { kind = "uniform", low = 2, high = 1 }',
            "tools.look.duration.high: expected a number of at least low (2), found 1",
        ),
        (
            "duration = 0.2",
            'duration = { kind = "constant", value = 1, mean = 2 }',
            "unknown key 'tools.look.duration.mean'",
        ),
        (
            "duration = 0.2",
            'duration = { kind = "empirical", values = [] }',
            "tools.look.duration.values: expected a list of numbers",
        ),
        ("duration = 0.2", "duration = true", "tools.look.duration: expected a number, or a distribution"),
        (
            "duration = 0.2",
            "duration = 0.2\npath = '/look'",
            "tools.look.path: expected a path such as /tools/weather, found '/look'",
        ),
        (
            "duration = 0.2",
            "duration = 0.2\nparameters = { type = 'array' }",
            "tools.look.parameters: expected a JSON Schema with type",
        ),
        (
            "duration = 0.2",
            "duration = 0.2\ncapacity = { mode = 'reject' }",
            "tools.look.capacity.concurrent: expected concurrent or requests_per_second",
        ),
        (
            "duration = 0.2",
            "duration = 0.2\ncapacity = { concurrent = 1, mode = 'rejct' }",
            "mode: expected one of reject, queue, share (did you mean 'reject'?), found 'rejct'",
        ),
        (
            "duration = 0.2",
            "duration = 0.2\ncapacity = { concurrent = 0 }",
            "concurrent: expected a whole number of at least 1, found 0",
        ),
        (
            "duration = 0.2",
            "duration = 0.2\n[quota]\ninput_tokens_per_minute = 5",
            "quota.output_tokens_per_minute: expected a number, since the other token limit is set",
        ),
        (
            "duration = 0.2",
            "duration = 0.2\n[[faults]]\nkind = 'hang'",
            "faults[0].probability: expected either probability or at",
        ),
        (
            "duration = 0.2",
            "duration = 0.2\n[[faults]]\nkind = 'hang'\nprobability = 1.5",
            "faults[0].probability: expected a number from 0 to 1, found 1.5",
        ),
        (
            "duration = 0.2",
            "duration = 0.2\n[[faults]]\nkind = 'hung'\nprobability = 1",
            "faults[0].kind: expected one of http_429,",
        ),
        (
            'description = "one line"',
            'description = "two\\nlines"',
            "mine.toml: description: expected a single line",
        ),
        ("[tools.look]", "[tools]", "mine.toml: tools.description: expected a table"),
        ('description = "one line"', "description = 1", "mine.toml: description: expected a text, found 1"),
        ("fan_out = 3", "fan_out = 3\nfaults = 3", "unknown key 'loop.faults'"),
        (
            "first_token = 0.1",
            "first_token = 0.1\nmodels = ['a', 1]",
            "mine.toml: model.models: expected a list of texts, found ['a', 1]",
        ),
        (
            'prompt = "Question {number}"',
            'prompt = "Question {number}"\nfaults = 3',
            "mine.toml: faults: expected a list of tables, found 3",
        ),
        (
            "duration = 0.2",
            "duration = 0.2\n[tools.look.capacity]\nconcurrent = 1\n"
            "schedule = [{ after = 2, fraction = 1 }, { after = 2, fraction = 0.5 }]",
            "tools.look.capacity.schedule[1].after: expected a time later than the step before, found 2",
        ),
        (
            "first_token = 0.1",
            "first_token = { kind = 'uniform', low = 0, high = 1, min = 2, max = 1 }",
            "model.first_token.max: expected a number of at least min (2), found 1",
        ),
        (
            "duration = 0.2",
            "duration = 0.2\nname = 'look'",
            (
                "mine.toml: unknown key 'tools.look.name'; expected one of: path, description, parameters,"
                " duration, capacity"
            ),
        ),
        (
            "duration = 0.2",
            "duration = 0.2\n[default_tool]\npath = '/tools/other'",
            "mine.toml: unknown key 'default_tool.path'; expected one of: duration, capacity",
        ),
        (
            "rounds = 1",
            "rounds = { kind = 'uniform', low = 1 }",
            "mine.toml: loop.rounds.high: expected a number of at least 0, found nothing",
        ),
        (
            "rounds = 1",
            "rounds = { kind = 'pareto', scale = 1, alpha = 0.01 }",
            "mine.toml: loop.rounds.alpha: expected a number of at least 0.1, found 0.01",
        ),
        ("rounds = 1", "rounds = 1001", "mine.toml: loop.rounds: expected at most 1000, found 1001"),
        ("rounds = 1", "rounds = 1e10", "mine.toml: loop.rounds: expected a number of at most 1e+09, found"),
        ("rounds = 1", "rounds = nan", "mine.toml: loop.rounds: expected a number of at least 0, found nan"),
        ("rounds = 1", "rounds = 1 2", "mine.toml: not valid TOML"),
    ],
)
def test_mistakes_name_file_key_and_expectation(old: str, new: str, message: str) -> None:
    assert old in MINIMAL
    with pytest.raises(ScenarioError) as caught:
        parse(text=MINIMAL.replace(old, new))
    assert message in str(caught.value)


def test_scenario_without_tools_has_nothing_to_call() -> None:
    with pytest.raises(
        ScenarioError, match=r"mine\.toml: tools: expected at least one tool, as \[tools.NAME\]"
    ):
        parse(text=MINIMAL.partition("[tools.look]")[0] + "[tools]")


def test_tools_cannot_share_a_path() -> None:
    with pytest.raises(
        ScenarioError, match=r"tools\.\w+\.path: expected a path of its own, found '/tools/look'"
    ):
        parse("[tools.other]\ndescription = 'x'\nduration = 1\npath = '/tools/look'\n")


def test_shipped_scenarios_are_the_seven_and_say_what_they_are() -> None:
    shipped = {scenario.name: scenario for scenario in shipped_scenarios()}
    assert sorted(shipped) == ["cities", "crowded", "fanout", "flaky", "instant", "quota", "research"]
    assert all(len(scenario.description) <= 120 for scenario in shipped.values())
    assert [tool.path for tool in shipped["cities"].tools] == ["/tools/weather", "/tools/population"]
    assert shipped["instant"].time_scale == 0
    capacity = shipped["crowded"].tools[0].capacity
    assert capacity is not None
    assert (capacity.concurrent, capacity.mode) == (40, "reject")
    kinds = {fault.kind for fault in shipped["flaky"].faults}
    assert len(kinds) == 13
    assert max(fault.probability for fault in shipped["flaky"].faults) <= 0.05


def test_file_is_read_by_path_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.toml").write_text(MINIMAL)
    monkeypatch.chdir(tmp_path)
    assert load_scenario("own.toml").name == "own"
    assert load_scenario(str(tmp_path / "own.toml")).tools[0].name == "look"


def test_names_and_files_that_are_unknown_are_refused() -> None:
    with pytest.raises(
        ScenarioError, match=r"unknown scenario 'citys' \(did you mean 'cities'\?\); shipped: cities, "
    ):
        load_scenario("citys")
    with pytest.raises(ScenarioError, match=r"^missing/x\.toml: cannot read the scenario file"):
        load_scenario("missing/x.toml")
