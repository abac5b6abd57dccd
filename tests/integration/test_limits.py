"""Limits in force: what the emulator sees of every kind, of two processes, of a model behind its quota."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from profiler.anatomy import peak, phases
from profiler.emulator.process import start_emulator
from profiler.limits.gate import Gate
from profiler.limits.known import seen_quota
from profiler.load.experiment import Experiment, run_experiment
from profiler.load.options import LoadOptions
from profiler.loop.loop import ToolLoop
from profiler.loop.model import LimitedModel, parse_model_limit
from profiler.providers import make_provider
from profiler.records import LoopRecord
from profiler.rundir import RunDirectory
from profiler.scenarios import load_scenario
from profiler.scenarios.tools import close_tool_clients, scenario_tools
from profiler.strategies import parse_strategies
from profiler.tune.quotas import advise, demand
from tests.integration.locust_process import ROOT

EVERY_KIND = (
    *("semaphore:2@agent", "semaphore:get_weather=1", "rate:50/s,burst=5", "adaptive"),
    *("eager", "eager+semaphore:4"),
)


def ask(url: str, what: str) -> Any:
    with urllib.request.urlopen(f"{url}/emulator/{what}", timeout=60) as response:
        return json.load(response)


def quick(tmp_path: Path, name: str, time_scale: float) -> str:
    """A shipped scenario at another time scale; what streams does so for long enough to be overtaken."""
    text = (ROOT / "profiler" / "scenarios" / f"{name}.toml").read_text()
    lines = [
        "tokens_per_second = 300" if line.startswith("tokens_per_second") else line
        for line in text.splitlines()
        if not line.startswith("time_scale")
    ]
    path = tmp_path / f"{name}-quick.toml"
    path.write_text(f"time_scale = {time_scale}\n" + "\n".join(lines))
    return str(path)


def most(entries: Iterable[dict[str, Any]]) -> int:
    """Requests under way at once."""
    return peak((entry["received_ns"], entry["finished_ns"]) for entry in entries)


def test_every_kind_of_strategy_is_what_the_server_sees(tmp_path: Path) -> None:
    """`profiler compare` of six strategies, behind a limit on the model."""
    with start_emulator(quick(tmp_path, "cities", 0.2), seed=1) as emulator:
        command = [sys.executable, "-m", "profiler", "compare", "--scenario", quick(tmp_path, "cities", 0.2)]
        command += ["--stream", "--users", "6", "--duration", "0.6s", "--blocks", "1", "--calibrate", "0"]
        command += ["--no-metrics", "--allow-saturated", "--model-limit", "semaphore:3", "--out", "runs"]
        command += [f"--base-url={emulator.url}", *(f"--strategy={spec}" for spec in EVERY_KIND)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        entries = ask(emulator.url, "journal")["entries"]
    said = " ".join(done.stdout.split())
    assert "semaphore:get_weather=1: up to 1 call of get_weather at once" in said
    assert "rate:50/s,burst=5: up to 50 calls/s" in said
    assert "the model, semaphore:3: up to 3 model requests at once" in said
    assert "adaptive: limit " in said
    assert "eager: tools ran " in said
    assert most(entry for entry in entries if entry["kind"] == "model") == 3

    (path,) = (tmp_path / "runs").iterdir()
    directory = RunDirectory.open(path)
    strategy_of = {trial.index: trial.strategy for trial in directory.load().trials}
    assert sorted(strategy_of.values()) == sorted(EVERY_KIND)
    records = list(directory.records())
    assert all(record.strategy == strategy_of[record.trial or 0] for record in records)
    ran = {spec: [record for record in records if record.strategy == spec] for spec in EVERY_KIND}
    tools = [entry for entry in entries if entry["kind"] == "tool" and entry["trial"] is not None]
    seen = {
        spec: [entry for entry in tools if strategy_of[int(entry["trial"])] == spec] for spec in EVERY_KIND
    }
    for spec in EVERY_KIND:
        assert len(seen[spec]) == sum(1 for record in ran[spec] for _ in record.tool_calls) > 30

    agents = {(record.strategy, record.number): record.agent for record in records}
    of_agent: dict[str, list[dict[str, Any]]] = {}
    for entry in seen["semaphore:2@agent"]:
        of_agent.setdefault(agents["semaphore:2@agent", entry["loop"]], []).append(entry)
    assert {most(own) for own in of_agent.values()} == {2}
    by_tool = {
        tool: most(entry for entry in seen["semaphore:get_weather=1"] if entry["tool"] == tool)
        for tool in ("get_weather", "get_population")
    }
    assert by_tool["get_weather"] == 1 < by_tool["get_population"]
    arrived = sorted(entry["received_ns"] for entry in seen["rate:50/s,burst=5"])
    jitter = 0.1  # seconds between our gate and the server's clock
    for first, start in enumerate(arrived):
        for last, end in enumerate(arrived[first:], 1):
            assert last <= 50 * ((end - start) / 1e9 + jitter) + 5
    limits = [round_.limit for record in ran["adaptive"] for round_ in record.rounds if round_.limit]
    assert min(limits) >= 8  # where it starts; nothing was refused
    assert most(seen["adaptive"]) <= max(limits) + 6  # it grows while the calls of a round wait
    assert most(seen["eager"]) > 4 == most(seen["eager+semaphore:4"])
    early = {
        spec: sum(
            call.started_ns is not None and call.started_ns < round_.model.ended_ns
            for record in ran[spec]
            for round_ in record.rounds
            for call in round_.tool_calls
        )
        for spec in EVERY_KIND
    }
    assert {spec for spec, count in early.items() if count} == {"eager", "eager+semaphore:4"}
    assert early["eager"] > 10


def test_what_two_processes_share_is_never_exceeded(tmp_path: Path) -> None:
    lines: list[str] = []
    scenario = quick(tmp_path, "crowded", 0.1)
    with start_emulator(scenario, seed=1) as emulator:
        options = LoadOptions(
            strategies=parse_strategies("semaphore:9"),
            scenario=scenario,
            base_url=emulator.url,
            blocks=1,
            out=str(tmp_path),
            calibration_seconds=0.0,
            metrics=False,
            share_limit=True,
        )
        path = run_experiment(Experiment(options, users=12, seconds=1.0, workers=2), lines.append)
        stats = ask(emulator.url, "stats")
    assert "semaphore:9: 4 per process × 2 processes = up to 8 calls at once" in lines
    processes = {record.process for record in RunDirectory.open(path).records()}
    assert len(processes) == 2
    assert stats["peak_in_flight"]["tools"] == 8


@pytest.mark.measures
def test_the_advised_limit_of_a_model_keeps_within_its_quota(tmp_path: Path) -> None:
    """What `profiler tune` advises from the headers, as `--model-limit` takes it, on the scenario `quota`."""
    scenario = load_scenario("quota")

    async def load(url: str, limits: str | None, agents: int, seconds: float) -> list[LoopRecord]:
        model: Any = make_provider("openai", base_url=url, model=None)
        client, records = model.client, []
        if limits is not None:
            model = LimitedModel(model, Gate(parse_model_limit(limits)))
        loop = ToolLoop(model, scenario_tools(scenario, url), sinks=[records.append])
        until = time.monotonic() + seconds

        async def agent(number: int) -> None:
            while time.monotonic() < until:
                try:
                    await loop.run("Compare.", number=number)
                except Exception:  # the SDK's retries ran out
                    await asyncio.sleep(0.05)
                number += agents

        await asyncio.gather(*(agent(number) for number in range(agents)))
        await client.close()
        await close_tool_clients()
        return records

    def run(limits: str | None) -> tuple[list[LoopRecord], dict[str, int]]:
        with start_emulator("quota", seed=1) as emulator:
            records = asyncio.run(load(emulator.url, limits, 60, 2.0))
            requests = ask(emulator.url, "stats")["requests"]
        (answers,) = [by_status for api, by_status in requests.items() if "chat" in api]
        return records, answers

    def span(records: list[LoopRecord]) -> float:
        return (max(r.ended_ns for r in records) - min(r.started_ns for r in records)) / 1e9

    records, unlimited = run(None)
    unlimited_rate = unlimited["200"] / span(records)
    assert unlimited["429"] > 20  # the first 60 requests meet a bucket of 36
    quota, taken = seen_quota(records), demand(records)
    assert quota is not None
    assert taken is not None
    advice = advise(quota, taken)
    assert advice is not None
    assert advice.limits == "rate:3600/min+tokens:3600000/min"

    records, answers = run(advice.limits)
    assert "429" not in answers
    done = [record for record in records if record.status == "ok"]
    assert len(done) == len(records)
    assert answers["200"] / span(records) > 0.6 * unlimited_rate  # it waits no more than it has to
    waited = sum(phases(round_)["model_queue"] for record in records for round_ in record.rounds)
    assert waited > 0.2 * sum(record.ended_ns - record.started_ns for record in records)
