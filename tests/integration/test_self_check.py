"""What the self-check before a load tells of agents with a mistake each, over real sockets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from profiler.anatomy import peak
from profiler.emulator.process import start_emulator
from profiler.errors import ProfilerError, TargetError, UsageError
from profiler.load.agents import load_agent
from profiler.load.experiment import Experiment, run_experiment
from profiler.load.options import LoadOptions
from profiler.load.preparation import LoopRunners
from profiler.records import LoopRecord
from profiler.rundir import Check, RunDirectory
from profiler.scenarios import load_scenario
from profiler.statistics.summary import summarise_directory
from profiler.strategies import parse_strategies
from tests.integration import mistaken_agents
from tests.integration.locust_process import ROOT

MODULE = "tests.integration.mistaken_agents"
SOURCE = Path(mistaken_agents.__file__)


def line_of(mark: str) -> str:
    """`mistaken_agents.py:12`: the line that is to be named."""
    for number, line in enumerate(SOURCE.read_text().splitlines(), 1):
        if line.endswith(f"# LINE: {mark}"):
            return f"{SOURCE.name}:{number}"
    raise AssertionError(mark)


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with start_emulator("fanout") as emulator:
        yield emulator.url


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def checked(target: str, function: str, strategies: str = "gathered,semaphore:2") -> tuple[Check, ...]:
    """What the first loops of an agent showed."""
    options = LoadOptions(
        strategies=parse_strategies(strategies), scenario="fanout", agent=f"{MODULE}:{function}"
    )

    async def main() -> tuple[Check, ...]:
        runners = LoopRunners(options, target, target, load_scenario("fanout"))
        try:
            await runners.make({"Agent": load_agent(f"{MODULE}:{function}")}, [])
            return (await runners.warm_up()).checks
        finally:
            await runners.close()

    return asyncio.run(main())


MISTAKES = {
    "not_wrapped": ("run by no watched tool: get_weather", "ctx.profiler.tool(get_weather)"),
    "strategy_ignored": ("8 at once where semaphore:2 allows 2", "await ctx.execute("),
    "global_registry": ("what the factory made for another strategy", "keep it inside the factory"),
    "two_clients": ("AsyncOpenAI", "is not watched", "ctx.profiler.instrument(client)"),
    "sync_client": ("a sync client on the event loop", "await the SDK's async client"),
    "forgotten_loop": ("none is of this loop", "watched by ctx.profiler"),
    "renamed_tool": ("and weather_of_city (", "not matched", 'tool(weather_of_city, name="get_weather")'),
    "errors_as_text": ("get_weather makes results of its exceptions", "let it raise"),
    "nested_agent": ("asks for its strategy inside a call", "a limit of its own"),
    "own_semaphore": ("SLOTS (", "lets 3 run at once: not heeded", "raise it"),
    "own_tool_loop": ("none is of this loop", "sinks=[ctx.sink]"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_told_with_its_line(target: str, mistake: str) -> None:
    found = [one for one in checked(target, f"make_{mistake}") if one.outcome in ("problem", "not_heeded")]
    said = "\n".join(map(str, found))
    assert len(found) == 1, said
    assert line_of(mistake) in said
    for words in MISTAKES[mistake]:
        assert words in said


def test_agent_without_a_mistake_heeds_its_strategies(target: str) -> None:
    found = checked(target, "make_right", "gathered,semaphore:2,sequential,semaphore:40,rate:500/s")
    assert [str(one) for one in found] == [
        "gathered: 8 calls asked for, 8 seen, 8 at once: heeded",
        "semaphore:2: 8 calls asked for, 8 seen, 2 at once as semaphore:2 allows: heeded",
        "sequential: 8 calls asked for, 8 seen, 1 at once as sequential allows: heeded",
        "semaphore:40: 8 calls asked for, 8 seen, 8 at once: could not be told, since no reply asked for "
        "more than 8 calls",
        "rate:500/s: 8 calls asked for, 8 seen, 8 at once: heeded",
    ]


def test_plain_agent_is_held_back_by_its_strategies(target: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "profiler.load"):
        found = checked(target, "plain", "semaphore:2,sequential")
    assert [(one.strategy, one.outcome) for one in found] == [
        ("semaphore:2", "heeded"),
        ("sequential", "heeded"),
    ]
    assert any(
        f"{line_of('plain')}) asks the target {target}/v1 instead of https://api.openai.com/v1" in said
        for said in caplog.messages
    )


def test_tool_that_each_call_makes_anew_is_told(target: str) -> None:
    (problem,) = [one for one in checked(target, "makes_its_tools") if one.outcome == "problem"]
    assert line_of("makes_its_tools") in problem.detail
    assert "is made anew by each call of the agent" in problem.detail


@pytest.mark.parametrize(
    ("function", "kind", "said"),
    [
        ("on_azure", UsageError, f"{mistaken_agents.AZURE} was refused before it was sent"),
        ("raises", TargetError, "the agent's first loop failed: ValueError: no such luck"),
    ],
)
def test_first_loop_that_fails_ends_the_test(
    target: str, function: str, kind: type[ProfilerError], said: str
) -> None:
    with pytest.raises(kind, match=said) as failed:
        checked(target, function)
    assert SOURCE.name in str(failed.value)
    if function == "raises":
        assert line_of("raises") in str(failed.value)


def test_sync_agent_whose_threads_wait_for_a_lock(tmp_path: Path) -> None:
    """In a process that gevent has patched they would stand still for ever."""
    options = LoadOptions(
        strategies=parse_strategies("gathered"),
        scenario="fanout",
        agent=f"{MODULE}:plain",
        out=str(tmp_path),
        blocks=1,
        calibration_seconds=0.0,
        metrics=False,
    )
    directory = RunDirectory.open(run_experiment(Experiment(options, users=4, seconds=1.5)))
    records = [one for one in directory.records() if one.status != "cancelled"]
    assert {(one.status, len(one.rounds[0].tool_calls)) for one in records} == {("ok", 8)}
    assert peak_of_loops(records) == 4  # all agents at once


def peak_of_loops(records: list[LoopRecord]) -> int:
    return peak((one.started_ns, one.ended_ns) for one in records)


def test_under_locust_it_is_said_before_any_figure_and_kept(tmp_path: Path) -> None:
    said: list[str] = []
    options = LoadOptions(
        strategies=parse_strategies("semaphore:2"),
        scenario="fanout",
        agent=f"{MODULE}:make_strategy_ignored",
        out=str(tmp_path),
        blocks=1,
        calibration_seconds=0.0,
        metrics=False,
    )
    directory = RunDirectory.open(run_experiment(Experiment(options, users=2, seconds=0.5), said.append))
    (check,) = directory.load().checks
    assert (check.strategy, check.outcome) == ("semaphore:2", "not_heeded")
    assert line_of("strategy_ignored") in check.remedy
    before = said[: next(n for n, line in enumerate(said) if line.startswith("trial 0"))]
    assert str(check) in before
    first = summarise_directory(directory).warnings[0]
    assert (first.kind, first.invalid) == ("strategy_ignored", True)
    assert first.remedy.startswith(check.remedy)
    assert os.environ.get("OPENAI_BASE_URL") is None or "127.0.0.1" not in os.environ["OPENAI_BASE_URL"]
