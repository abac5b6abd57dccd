"""Load tests through the SDKs and through the lean client: real Locust, the emulator, the same loops."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from profiler.providers import CLIENTS, PROVIDERS
from profiler.records import LoopRecord
from profiler.rundir import RunDirectory

PROFILER = (sys.executable, "-m", "profiler")
ROOT = Path(__file__).parents[2]

FACTORY = """
from profiler import ToolLoop, tool

@tool
async def get_weather(city: str, units: str = "celsius") -> str:
    return "18"

@tool
async def get_population(city: str) -> str:
    return "3"

def make_agent(ctx):
    loop = ToolLoop(ctx.make_model(), [get_weather, get_population], ctx.strategy, sinks=[ctx.sink])
    async def agent(prompt):
        await loop.run(prompt, number=ctx.number)
    return agent

async def alone(prompt): ...
"""


def compare(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One strategy for a second by two agents."""
    command = [*PROFILER, "compare", "--scenario", "instant", "--strategy", "gathered", "--users", "2"]
    command += ["--duration", "1s", "--blocks", "1", "--no-metrics", "--allow-saturated", "--out", "runs"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def recorded(directory: Path) -> RunDirectory:
    (found,) = (directory / "runs").iterdir()
    return RunDirectory.open(found)


def but_for_times(record: LoopRecord) -> Any:
    """What a record says, with whether there is a time in place of each time."""

    def plain(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: plain(part, key) for key, part in value.items() if key not in OF_THE_RUN}
        if isinstance(value, list | tuple):
            return [plain(part, name) for part in value]
        return value is not None if name.endswith("_ns") else value

    return plain(asdict(record))


OF_THE_RUN = {
    "id",
    "process",
    "agent",  # whoever was free took the next loop
    "blocked_ns",
    "shortfall",  # what kept calls from overlapping, as far as a moment's times tell
    "request_id",  # the emulator counts its requests
    "rate_limits",  # and what is left of its quotas
    "call_id",
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_records_of_both_clients_are_equal_but_for_times(provider: str, stream: bool, tmp_path: Path) -> None:
    found = {}
    for client in CLIENTS:
        place = tmp_path / client
        place.mkdir()
        ended = compare(place, "--provider", provider, "--client", client, *["--stream"] * stream)
        assert ended.returncode == 0, ended.stderr
        records = sorted(recorded(place).records(), key=lambda record: record.number)
        assert {record.status for record in records} == {"ok"}
        run = recorded(place).load()
        assert run.capacity is not None
        assert set(run.capacity.request_cpu) == set(CLIENTS)
        assert run.capacity.request_cpu["lean"] < run.capacity.request_cpu["sdk"]
        sdk = PROVIDERS[provider].sdk
        assert ("client: lean, " if client == "lean" else f"client: {sdk} SDK, ") in ended.stdout
        found[client] = {record.number: but_for_times(record) for record in records}
    both = found["sdk"].keys() & found["lean"].keys()
    assert len(both) > 5
    for number in both:
        assert found["lean"][number] == found["sdk"][number]


def test_factory_s_model_is_the_client_s_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(FACTORY)
    ended = compare(tmp_path, "--agent", "app:make_agent", "--client", "lean", "--calibrate", "0")
    assert ended.returncode == 0, ended.stderr
    records = list(recorded(tmp_path).records())
    assert len(records) > 5
    assert {record.status for record in records} == {"ok"}
    assert "client: " not in ended.stdout


def test_client_is_refused_where_the_agent_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(FACTORY)
    ended = compare(tmp_path, "--agent", "app:alone", "--client", "lean", "--calibrate", "0")
    assert ended.returncode == 2
    assert "--client lean: app:alone asks the model by clients of its own" in ended.stderr
    assert "Traceback" not in ended.stderr
