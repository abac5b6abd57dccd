"""What to try next: commands that repeat the run, and the limits worth trying."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from profiler.cli import parse
from profiler.commands.compare import asked_load
from profiler.load.options import LoadOptions, conditions
from profiler.records import LoopRecord
from profiler.report.advice import command, next_steps
from profiler.rundir import Run
from profiler.statistics.figures import Overlap
from profiler.statistics.summary import Summary, summarise
from profiler.strategies import parse_strategies
from tests.unit.statistics_data import loop, run, trial

ARGUMENTS = {"trial_seconds": 10.0, "blocks": 3, "model": None, "max_rounds": 5, "tool_choice": "auto"}


def found(shape: dict[str, tuple[float, bool]]) -> tuple[Summary, Run]:
    """Strategy → (how long its second call waits, whether its calls fail); 3 blocks of 30 loops each."""
    trials, records = [], list[LoopRecord]()
    for block in range(3):
        for strategy, (wait, fails) in shape.items():
            index = len(trials)
            begin = index * 10_000
            trials.append(trial(index, strategy, begin, begin + 10_000, block=block))
            records += [
                loop(
                    begin + 300 * n,
                    20.0,
                    [(0.0, 40.0), (wait, 40.0)],
                    strategy,
                    index,
                    tool_status="error" if fails and n % 2 else "ok",
                    number=n,
                )
                for n in range(30)
            ]
    made = run(trials, scenario="crowded", arguments=ARGUMENTS)
    return summarise(made, records), made


def test_run_is_repeated_with_its_own_options() -> None:
    asked = LoadOptions(
        scenario="my file.toml",
        base_url="http://127.0.0.1:9",
        seed=3,
        stream=True,
        parallel_tool_calls=False,
        max_requests=500,
        model_limit="rate:5/s",
        share_limit=True,
        trial_seconds=10.0,
        blocks=3,
        strategies=parse_strategies("semaphore:2@agent"),
    )
    made = replace(conditions(asked, users=7), workers=2)
    assert command(made) == (
        "profiler compare --scenario 'my file.toml' --base-url http://127.0.0.1:9 --seed 3 "
        "--no-parallel-tool-calls --model-limit rate:5/s --stream --share-limit --max-requests 500 "
        "--strategy semaphore:2@agent --users 7 --duration 30s --blocks 3 --workers 2"
    )


def test_load_without_a_model_is_repeated_by_the_command_that_made_it() -> None:
    asked = LoadOptions(
        direct=True,
        mcp=("docs=http://127.0.0.1:9/mcp",),
        mcp_headers=("docs:X-Key=secret",),
        call=("search",),
        arrivals="40/s",
        trial_seconds=10.0,
        blocks=1,
    )
    assert command(conditions(asked, users=20)) == (
        "profiler mcp load docs=http://127.0.0.1:9/mcp --call search --arrivals 40/s "
        "--header 'X-Key=[redacted]' --users 20 --duration 10s --blocks 1"
    )


def test_run_of_before_is_repeated_with_its_scenario() -> None:
    made = run([trial(0, "gathered", 0, 10)], users=7, scenario="crowded", arguments=ARGUMENTS)
    assert command(made) == (
        "profiler compare --scenario crowded --strategy gathered --users 7 --duration 30s --blocks 3"
    )


@pytest.mark.parametrize(
    "asked",
    [
        LoadOptions(),
        LoadOptions(agent="agents:make_agent", think_seconds=0.5, levels=(10, 20), drain_seconds=5.0),
        LoadOptions(
            agent="agents:make", variants=("calls=2", "calls=8"), strategies=parse_strategies("gathered")
        ),
        LoadOptions(arrivals="constant:5/s", max_in_flight=50, slo="p95<2s,errors<1%", abort_on="errors>20%"),
        LoadOptions(record_content=True, redact="mine:redact", max_cost=2.5, price="1/2", model="m"),
    ],
)
def test_repeated_run_asks_for_the_same(asked: LoadOptions) -> None:
    made = conditions(replace(asked, trial_seconds=10.0, blocks=3), users=20)
    parsed = parse(shlex.split(command(made))[1:])
    assert (parsed.users, parsed.duration) == (20, 30.0)
    assert asked_load(parsed) == replace(asked, blocks=3)


def test_eager_is_named_where_it_would_save_something_and_nobody_tried_it() -> None:
    summary, made = found({"gathered": (0.0, False)})
    gathered = summary.strategies[0]
    assert gathered.mean_loop_seconds == pytest.approx(0.08)

    def steps(savable: float, strategy: str = "gathered") -> list[str]:
        one = replace(gathered, strategy=strategy, overlap=Overlap(0.0, 0.0, savable))
        said = next_steps(replace(summary, strategies=(one,)), made)
        return [step.words for step in said if "eager" in step.words]

    assert steps(0.02) == [
        "Calls are complete while the model still streams: eager would save at most 20.0 ms of 80.0 ms a "
        "loop under gathered."
    ]
    assert steps(0.002) == steps(0.02, "eager") == []


def test_advice_between_a_limit_that_waits_and_one_that_fails() -> None:
    steps = next_steps(
        *found({"sequential": (40.0, False), "semaphore:8": (200.0, False), "semaphore:32": (0.0, True)})
    )
    (between,) = [step for step in steps if "between" in step.words]
    assert between.command is not None
    assert "--strategy sequential --strategy semaphore:16 " in between.command


def test_advice_to_an_agent_whose_setting_is_compared_is_another_value_of_it() -> None:
    def step(shape: dict[str, tuple[float, bool]]) -> tuple[str, str]:
        (one,) = [step for step in next_steps(*found(shape)) if "value" in step.words]
        assert one.command is not None
        return one.words, " ".join(part for part in shlex.split(one.command) if "calls=" in part)

    assert step({"calls=8": (200.0, False), "calls=32": (0.0, True)}) == (
        "calls=8 fails nowhere but waits, calls=32 fails: try a value between them.",
        "calls=8 calls=16",
    )
    assert step({"calls=4": (0.0, False), "calls=8": (200.0, False)}) == (
        "Calls wait in calls=8 and none fails: try twice the value.",
        "calls=4 calls=16",
    )
    assert step({"calls=8": (0.0, True)}) == (
        "Calls fail under calls=8 too: try half the value.",
        "calls=4",
    )
    several = next_steps(*found({"calls=8 fast=true": (0.0, True), "calls=9 fast=true": (0.0, True)}))
    assert all("semaphore" not in (step.command or "") for step in several)


def test_advice_is_a_limit_where_everything_at_once_fails() -> None:
    steps = next_steps(*found({"sequential": (40.0, False), "gathered": (0.0, True)}))
    assert any("try a limit" in step.words for step in steps)


def refused_by_the_model(
    *specs: str, error: str = "http_429", repeat: tuple[str, ...] = ()
) -> tuple[Summary, Run]:
    """A third of each strategy's loops end because the model's server refuses a request."""
    trials, records = [], list[LoopRecord]()
    for block in range(3):
        for spec in specs:
            index = len(trials)
            begin = index * 10_000
            trials.append(trial(index, spec, begin, begin + 10_000, block=block))
            calls = [(0.0, 40.0), (200.0, 40.0)]
            for n in range(30):
                ended = "error" if n % 3 == 0 else "ok"
                one = loop(begin + 300 * n, 20.0, calls, spec, index, number=n, status=ended)
                records.append(replace(one, error_type=error) if ended == "error" else one)
    made = run(trials, scenario="crowded", arguments=ARGUMENTS, repeat=repeat)
    return summarise(made, records), made


@pytest.mark.parametrize("error", ["http_429", "http_529", "overloaded_error", "RateLimitError"])
def test_advice_is_a_limit_on_the_model_where_its_server_refuses(error: str) -> None:
    endpoint = ("--scenario", "crowded", "--base-url", "https://models.example/v1", "--model", "m")
    for specs in (("gathered",), ("gathered", "semaphore:8"), ("semaphore:8", "semaphore:32")):
        steps = next_steps(*refused_by_the_model(*specs, error=error, repeat=endpoint))
        (step,) = [step for step in steps if "--model-limit" in step.words]
        assert step.words == (
            f"Under {specs[0]} the model's rate limit ended 30 of 90 loops: keep to it with --model-limit, "
            "or use fewer agents."
        )
        assert step.command is not None
        # 60 of 90 loops were answered in 30 s, with two requests each.
        assert step.command.startswith(
            "profiler compare --scenario crowded --base-url https://models.example/v1 --model m "
            f"--model-limit rate:4/s --strategy {specs[0]} "
        )
        assert not any("try a limit" in one.words or "the limit" in one.words for one in steps)


def test_advice_is_a_lower_limit_on_the_model_where_there_was_one() -> None:
    held = ("--scenario", "crowded", "--model-limit", "rate:500/min", "--seed", "3")
    summary, made = refused_by_the_model("gathered", repeat=held)
    steps = next_steps(summary, replace(made, arguments={**ARGUMENTS, "model_limit": "rate:500/min"}))
    (step,) = [step for step in steps if "--model-limit" in step.words]
    assert step.words.endswith("keep to it with a lower --model-limit, or use fewer agents.")
    assert step.command is not None
    assert step.command.count("--model-limit") == 1
    assert "--seed 3 --model-limit rate:4/s --strategy gathered" in step.command


def test_tools_that_fail_are_no_reason_for_a_limit_on_the_model() -> None:
    steps = next_steps(*found({"sequential": (40.0, False), "gathered": (0.0, True)}))
    assert not any("--model-limit" in step.words for step in steps)


def test_advice_is_twice_the_limit_where_calls_only_wait() -> None:
    steps = next_steps(*found({"gathered": (0.0, False), "semaphore:4": (200.0, False)}))
    assert any(step.command and "semaphore:8" in step.command for step in steps)


def test_advice_is_more_loops_where_there_were_too_few() -> None:
    summary, made = found({"sequential": (40.0, False), "gathered": (0.0, False)})
    needed = summary.comparisons[0].p95.needed
    assert needed
    first = next_steps(summary, made)[0]
    assert first.words.startswith("Run longer, so that p95 is decided too")
    assert first.command is not None
    seconds = int(first.command.split("--duration ")[1].split("s")[0])
    assert seconds >= 30 * (90 + needed) / 90
