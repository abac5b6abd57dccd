"""Every example of docs/your-agent.md, run as it stands there: one look, and a comparison under load."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from profiler.records import read
from tests.integration.framework_agents import need

DOCUMENT = Path(__file__).parents[2] / "docs" / "your-agent.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.M | re.S)
FILES = {match[1]: block for block in BLOCKS if (match := re.match(r"# (\w+\.py)\n", block))}
PROMPT = "Compare the weather and population of Tokyo and Paris"

AGENTS = {
    "hand_written:agent": "openai",
    "made_agent:make_agent": "openai",
    "openai_runner:agent": "openai",
    "anthropic_runner:agent": "anthropic",
    "pydantic_agent:agent": "pydantic_ai",
    "openai_agent:agent": "agents",
    "langgraph_agent:agent": "langgraph",
    "service:answer": "fastapi",
}
"""Every agent of the page, and the package without which it cannot be tried."""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for name, block in FILES.items():
        (tmp_path / name).write_text(block, encoding="utf-8")
    return tmp_path


def profiler(here: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command, without a key and without a server of anybody's."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OPENAI_", "ANTHROPIC_", "PROFILER_"))
    }
    return subprocess.run(
        [sys.executable, "-m", "profiler", *arguments],
        cwd=here,
        env={**environment, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_every_file_of_the_page_is_run():
    modules = {agent.partition(":")[0] for agent in AGENTS}
    assert modules | {"tools"} == {name.removesuffix(".py") for name in FILES}


@pytest.mark.parametrize("agent", AGENTS)
def test_one_look_at_it_needs_no_change(here: Path, agent: str):
    need(AGENTS[agent])
    ran = profiler(here, "run", "--agent", agent, "--emulate", "--out", "runs", PROMPT)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (folder,) = (here / "runs").iterdir()
    calls = [call for record in read(folder / "records.jsonl") for call in record.tool_calls]
    assert {call.name for call in calls} <= {"get_weather", "get_population"}
    assert calls
    assert all(call.id for call in calls), "each is matched to the call that the model asked for"
    least = {"get_weather": 0.2, "get_population": 0.3}
    assert all((call.duration_ns or 0) / 1e9 >= least[call.name] * 0.98 for call in calls)
    assert "not seen" not in ran.stdout
    assert (folder / "report.html").exists()
    assert re.search(r"^model 1 ", ran.stdout, re.M)
    assert "From " in ran.stdout, "the agent's answer"


@pytest.mark.parametrize("agent", AGENTS)
def test_under_load_its_calls_heed_the_strategy(here: Path, agent: str):
    need(AGENTS[agent])
    ran = profiler(
        here,
        *("compare", "--agent", agent, "--users", "3", "--duration", "2s", "--blocks", "1"),
        *("--strategy", "gathered", "--strategy", "semaphore:1", "--calibrate", "0", "--no-metrics"),
        *("--json", "--allow-saturated", "--quiet"),
    )
    summary = json.loads(ran.stdout)
    assert "strategy_ignored" not in {warning["kind"] for warning in summary["warnings"]}, ran.stderr
    (folder,) = (here / "runs").iterdir()
    records = list(read(folder / "records.jsonl"))
    assert {record.strategy for record in records} == {"gathered", "semaphore:1"}
    assert all(record.unobserved_calls == 0 for record in records)
    ran_alone = [
        edge
        for record in records
        if record.strategy == "semaphore:1"
        for call in record.tool_calls
        if call.started_ns is not None
        for edge in ((call.started_ns, 1), (call.ended_ns, -1))
    ]
    inside = most = 0
    for _, step in sorted(ran_alone):
        inside += step
        most = max(most, inside)
    assert most == 1


def test_the_blocks_that_are_no_files_run(here: Path):
    for block in BLOCKS:
        if not re.match(r"# \w+\.py\n", block):
            ran = subprocess.run(
                [sys.executable, "-c", block],
                cwd=here,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert ran.returncode == 0, block + ran.stderr
