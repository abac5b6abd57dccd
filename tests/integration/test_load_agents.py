"""Agents that the user wrote, under load: a framework's, a loop by hand, and what `profiler init` writes."""

from __future__ import annotations

import csv
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.tune_agent import CAPACITY, USERS, server
from profiler.anatomy import peak
from profiler.emulator.process import start_emulator
from profiler.load.experiment import Experiment, run_experiment
from profiler.load.options import LoadOptions
from profiler.records import LoopRecord
from profiler.report.html import gather, write_report
from profiler.rundir import RunDirectory
from profiler.strategies import parse_strategies
from tests.integration.framework_agents import need
from tests.integration.locust_process import ROOT, Locust, check_trials, locust

PYDANTIC_AI = '''
from openai import AsyncOpenAI, DefaultAioHttpClient
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from profiler.tool_http import tool_client


def make_agent(context):
    client = AsyncOpenAI(base_url=context.openai_url, api_key="x", http_client=DefaultAioHttpClient())
    context.on_close(client.close)
    context.profiler.instrument(client)

    @context.profiler.tool
    async def get_weather(city: str) -> str:
        """Weather of a city."""
        async with context.limiter:
            return (await tool_client().get(f"{context.tools_url}/tools/weather", params={"city": city})).text

    model = OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client))
    agent = Agent(model, tools=[get_weather])

    async def one_loop():
        await agent.run(context.prompt)

    return one_loop
'''

LIMITED = """
import asyncio
from openai import AsyncOpenAI
from profiler.tool_http import tool_client

TOOL = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


def make_agent(context, calls: int, answer: str = "none"):
    client = context.profiler.instrument(AsyncOpenAI(**context.client_options()))
    context.on_close(client.close)
    places = asyncio.Semaphore(calls)  # of all loops together

    @context.profiler.tool
    async def get_weather(city: str = "Rome") -> str:
        await asyncio.sleep(0.02)
        return answer

    async def one(call):
        async with places:
            return await get_weather()

    async def one_loop():
        messages = [{"role": "user", "content": context.prompt}]
        tools = [{"type": "function", "function": TOOL}]
        reply = await client.chat.completions.create(model="m", messages=messages, tools=tools)
        await asyncio.gather(*map(one, reply.choices[0].message.tool_calls))

    return one_loop
"""

BROKEN = """
def make_broken(context):
    async def one_loop():
        raise ValueError("no such luck")

    return one_loop
"""


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Locust]:
    with locust(tmp_path) as running:
        yield running


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_framework_agent.py").write_text(PYDANTIC_AI)
    monkeypatch.chdir(tmp_path)
    return "my_framework_agent"


def compare(out: Path, agent: str, *strategies: str, scenario: str = "instant", seconds: float = 1.0):
    options = LoadOptions(
        strategies=parse_strategies(strategies),
        scenario=scenario,
        agent=agent,
        out=str(out),
        blocks=1,
        calibration_seconds=0.0,
    )
    return RunDirectory.open(run_experiment(Experiment(options, users=4, seconds=seconds)))


def test_a_pydantic_ai_agent(tmp_path: Path, module: str) -> None:
    need("pydantic_ai")
    directory = compare(tmp_path / "runs", f"{module}:make_agent", "gathered", "sequential", "semaphore:2")
    run, records = directory.load(), list(directory.records())
    check_trials(run, records, {"gathered", "sequential", "semaphore:2"})
    assert {record.status for record in records} == {"ok"}
    assert {record.provider for record in records} == {"openai"}
    for record in records:
        assert [len(round_.tool_calls) for round_ in record.rounds] == [3, 0]
        assert all(call.status == "ok" for call in record.tool_calls)
        assert all(call.id.startswith("call_") for call in record.tool_calls)
    assert {record.agent for record in records} == {"a0", "a1", "a2", "a3"}


def most_at_once(records: list[LoopRecord]) -> int:
    return peak((call.started_ns or 0, call.ended_ns) for one in records for call in one.tool_calls)


def test_settings_of_an_agent_are_compared_as_strategies(processes: Locust) -> None:
    """With a Locust file, in two workers: each setting has an agent of its own in each of them."""
    (processes.path / "my_limited_agent.py").write_text(LIMITED)
    settings = ["--agent", "my_limited_agent:make_agent", "--variant", "calls=1,2", "--variant", "answer=sun"]
    code, said = processes.run(
        *("-u", "8", "-r", "8", "--blocks", "1", "--trial-seconds", "1", "--scenario", "instant"),
        *("--processes", "2", *settings),
    )
    assert code == 0, said
    directory = processes.directory()
    run, records = directory.load(), list(directory.records())
    check_trials(run, records, {"calls=1 answer=sun", "calls=2 answer=sun"})
    assert [spec.variant for spec in run.strategies] == [
        (("calls", 1), ("answer", "sun")),
        (("calls", 2), ("answer", "sun")),
    ]
    for calls in (1, 2):
        mine = [one for one in records if one.strategy == f"calls={calls} answer=sun"]
        assert {one.status for one in mine} == {"ok"}
        for process in {one.process for one in mine}:
            assert most_at_once([one for one in mine if one.process == process]) == calls
    material = gather(directory)
    assert not [one for one in material.summary.warnings if one.kind == "strategy_ignored"]
    assert material.counterfactuals == ()
    page = write_report(directory, material=material).read_text()
    assert "calls=2 answer=sun" in page


def test_refusals_that_a_tool_hides_in_words_of_its_own_are_failures(tmp_path: Path) -> None:
    """The server is the benchmark's own; the tool says "That part cannot be looked up just now."."""
    with server(1) as root:
        options = LoadOptions(
            strategies=parse_strategies("gathered"),
            agent="benchmarks.tune_agent_agents:make_texts",
            base_url=root,
            tools_url=root,
            out=str(tmp_path / "runs"),
            blocks=1,
            calibration_seconds=0.0,
            metrics=False,
        )
        directory = RunDirectory.open(run_experiment(Experiment(options, users=USERS, seconds=2.0)))
    records = list(directory.records())
    calls = [call for record in records for call in record.tool_calls]
    assert {call.error_type for call in calls if call.status != "cancelled"} == {None, "http_429"}
    assert {record.outcome for record in records} >= {"ok", "incomplete"}
    served = [call for call in calls if call.status == "ok"]
    assert peak((call.started_ns or 0, call.ended_ns) for call in served) >= CAPACITY


def test_an_agent_whose_first_loop_fails_is_no_load_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from profiler.errors import TargetError, UsageError

    module = "my_broken_agent"
    (tmp_path / f"{module}.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TargetError, match="the agent's first loop failed: ValueError: no such luck"):
        compare(tmp_path / "runs", f"{module}:make_broken", "gathered")
    with pytest.raises(UsageError, match=f"{module} has no function make_nothing"):
        compare(tmp_path / "runs", f"{module}:make_nothing", "gathered")
    assert list((tmp_path / "runs").iterdir()) == []


def test_what_init_writes_works(processes: Locust, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of its agents with `profiler compare`, then its Locust file; from another directory than ours."""
    command = [sys.executable, "-m", "profiler"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *arguments],
            cwd=processes.path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def end(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
        said, complained = process.communicate(timeout=60)
        assert process.returncode == code, complained
        return said, complained

    cities = (ROOT / "profiler" / "scenarios" / "cities.toml").read_text()
    (processes.path / "quick.toml").write_text(f"time_scale = 0.1\n{cities}")
    end(start("init", "."))
    again = start("init", ".")
    comparisons = {
        factory: start(
            "compare", "--agent", f"agents:{factory}", "--strategy", "gathered", "--strategy", "sequential",
            "--users", "2", "--duration", "1s", "--blocks", "1", "--calibrate", "0", "--out", factory,
            "--allow-saturated", "--json", "--scenario", "quick.toml",
        )
        for factory in ("make_agent", "make_handwritten_agent")
    }  # fmt: skip
    assert "exists already" in end(again, code=2)[1]
    for factory, comparison in comparisons.items():
        said, _ = end(comparison)
        (path,) = (processes.path / factory).iterdir()
        records = list(RunDirectory.open(path).records())
        assert {record.status for record in records} == {"ok"}
        assert {record.strategy for record in records} == {"gathered", "sequential"}
        assert {call.name for r in records for call in r.tool_calls} == {"get_weather", "get_population"}
        for strategy in json.loads(said)["strategies"]:
            assert strategy["totals"]["loops"] == sum(r.strategy == strategy["strategy"] for r in records)
        # The strategy was applied: calls of a round overlap under one, and never under the other.
        for record in records:
            for round_ in record.rounds:
                calls = sorted(round_.tool_calls, key=lambda call: call.started_ns or 0)
                for before, after in itertools.pairwise(calls):
                    assert after.started_ns is not None
                    overlap = after.started_ns < before.ended_ns
                    assert overlap == (record.strategy == "gathered")
    processes.file = processes.path / "locustfile.py"
    with start_emulator(str(processes.path / "quick.toml")) as emulator:
        code, output = processes.run(
            "-u", "3", "-r", "3", "--blocks", "1", "--trial-seconds", "1", "--strategy", "gathered",
            "--csv", "stats", "--base-url", emulator.url,
        )  # fmt: skip
    assert code == 0, output
    assert "closed load, 3 agents" in output  # the comparison, after Locust's own tables
    records = list(processes.directory().records())
    with open(processes.path / "stats_stats.csv", newline="") as file:
        rows = {row["Type"]: int(row["Request Count"]) for row in csv.DictReader(file)}
    assert rows["LOOP"] == len(records) > 0
