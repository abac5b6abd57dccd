"""From an agent as it is to a picture, a comparison and a setting: commands and seconds for each.

    python -m benchmarks.own_agents [--only hand_written,service] [--budget 60] [--also FILE.py:FUNCTION]

The agents are those of docs/your-agent.md, as they stand there; no line of them is changed. (a) is `profiler
run`, (b) `profiler compare` of sequential, gathered and semaphore:8 with 20 users, (c) `profiler tune`. In a
row: seconds until each was there, calls seen of those asked for, and what (b) and (c) say.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from profiler.records import read

DOCUMENT = Path(__file__).parents[1] / "docs" / "your-agent.md"
PROMPT = "Compare the weather and population of Tokyo and Paris"
AGENTS = (
    "hand_written:agent",
    "openai_runner:agent",
    "anthropic_runner:agent",
    "pydantic_agent:agent",
    "openai_agent:agent",
    "langgraph_agent:agent",
    "service:answer",
)
OVER = {"openai_runner:agent": ("--over", "max_concurrent_calls=1..16")}
"""A runner that starts few calls at once heeds no limit of ours: its own is what there is to tune."""
USERS = 20


def profiler(here: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "ANTHROPIC_"))
    }
    began = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-m", "profiler", *arguments],
        cwd=here,
        env={**environment, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    return ran, time.monotonic() - began


def seen(here: Path) -> tuple[int, int]:
    """(calls seen, calls asked for) in all runs so far, which are then removed."""
    ran = asked = 0
    for path in (here / "runs").glob("*/records.jsonl"):
        for record in read(path):
            calls = sum(bool(call.id) for call in record.tool_calls)
            ran += calls
            asked += calls + record.unobserved_calls
    shutil.rmtree(here / "runs", ignore_errors=True)
    return ran, asked


def row(here: Path, agent: str, seconds: float, budget: float) -> bool:
    look, looked = profiler(here, "run", "--agent", agent, "--emulate", "--out", "runs", PROMPT)
    counted = seen(here)
    load, loaded = profiler(
        here,
        *("compare", "--agent", agent, "--users", str(USERS), "--duration", f"{seconds:g}s", "--json"),
        *("--strategy", "sequential,gathered,semaphore:8", "--no-metrics", "--quiet"),
    )
    under_load = seen(here)
    search, searched = profiler(
        here,
        *("tune", "--agent", agent, "--users", str(USERS), "--budget", f"{budget:g}s", "--json", "--quiet"),
        *OVER.get(agent, ()),
    )
    seen(here)
    codes = look.returncode, load.returncode, search.returncode
    print(
        f"{agent}: (a) {looked:.1f} s, {counted[0]} of {counted[1]} calls seen; (b) {loaded:.0f} s, "
        f"{under_load[0]} of {under_load[1]}; (c) {searched:.0f} s; exit codes {codes}",
        flush=True,
    )
    try:
        verdicts = [one["sentence"] for one in json.loads(load.stdout)["verdicts"]]
        setting = json.loads(search.stdout)["sentence"]
    except (ValueError, KeyError):
        print(load.stderr + search.stderr, flush=True)
        return False
    for sentence in (*verdicts[:2], setting):
        print(f"    {sentence}", flush=True)
    return counted[0] == counted[1] > 0 and under_load[0] == under_load[1] and look.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="some of these, by their modules")
    parser.add_argument(
        "--also", action="append", default=[], help="a file of your own, and a function in it"
    )
    parser.add_argument("--duration", type=float, default=15.0)
    parser.add_argument("--budget", type=float, default=60.0)
    arguments = parser.parse_args()
    agents = [a for a in AGENTS if arguments.only is None or a.split(":")[0] in arguments.only.split(",")]
    well = True
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for block in re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.M | re.S):
            name = re.match(r"# (\w+\.py)\n", block)
            if name:
                (here / name[1]).write_text(block, encoding="utf-8")
        for also in arguments.also:
            path, _, function = also.rpartition(":")
            shutil.copy(path, here)
            agents.append(f"{Path(path).stem}:{function}")
        for agent in agents:
            well = row(here, agent, arguments.duration, arguments.budget) and well
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
