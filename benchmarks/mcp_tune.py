"""`profiler mcp tune` against servers whose limits are known: caps that refuse, a queue, and half a load.

    python -m benchmarks.mcp_tune [--only cap16,queue16] [--budget 90]

The servers are the emulator (durations drawn from a lognormal distribution, HTTP 429 above its capacity) and
one of the tests' own, which shares no code with it (100 ms a call; `isError`, or a JSON-RPC error, above it).
Expected: caps within max(1, 10 %); where a server queues that a limit gains nothing, with its capacity within
10 %; at half the load that no limit is needed; and all within the budget.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from profiler.emulator.process import start_emulator

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Case:
    """A server that works on `capacity` calls at once, and how it treats more (`refuse` None: they wait)."""

    capacity: int
    refuse: str | None = None
    emulated: bool = False
    users: int = 64
    kind: str = "refuses"


CASES = {
    "cap8": Case(8, "429", emulated=True),
    "cap16": Case(16, "error"),
    "cap40": Case(40, "rpc"),
    "cap40 (emulator)": Case(40, "429", emulated=True),
    "queue16": Case(16, None, kind="queues"),
    "queue16 (emulator)": Case(16, None, emulated=True, kind="queues"),
    "half": Case(16, None, users=8, kind="enough"),
    "half (refusing)": Case(16, "429", users=8, kind="enough"),
}

SCENARIO = """description = "one tool of a known capacity"
prompt = "Task {{number}}."
[model]
first_token = 0.05
tokens_per_second = 0
[loop]
rounds = 1
fan_out = 1
[tools.search]
description = "Search."
duration = {{ kind = "lognormal", median = 0.09, sigma = 0.5, max = 2 }}
capacity = {{ concurrent = {capacity}, mode = "{mode}"{queue} }}
[tools.search.parameters]
type = "object"
required = ["query"]
properties.query = {{ type = "string" }}
"""


@contextlib.contextmanager
def running(case: Case, folder: Path) -> Iterator[str]:
    """The URL of the server."""
    if case.emulated:
        path = folder / "server.toml"
        mode, queue = ("reject", "") if case.refuse else ("queue", ", queue = 10000")
        path.write_text(SCENARIO.format(capacity=case.capacity, mode=mode, queue=queue))
        with start_emulator(str(path)) as emulator:
            yield f"{emulator.url}/mcp"
        return
    command = [sys.executable, str(ROOT / "tests" / "queueing_mcp_server.py")]
    command += ["--capacity", str(case.capacity), "--seconds", str(SECONDS)]
    command += ["--refuse", case.refuse] if case.refuse else []
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


def tuned(case: Case, folder: Path, budget: float) -> tuple[dict, float]:
    """The answer, and how long it took."""
    with running(case, folder) as url:
        command = [sys.executable, "-m", "profiler", "mcp", "tune", url, "--call", "search", "--json"]
        command += ["--users", str(case.users), "--budget", f"{budget:g}s", "--out", str(folder / "runs")]
        command += ["--no-metrics", "--allow-saturated", "--quiet"]
        began = time.monotonic()
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=4 * budget, check=False, cwd=ROOT
        )
        took = time.monotonic() - began
    if not done.stdout:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout), took


def holds(case: Case, answer: dict) -> bool:
    """Whether it is the answer to be expected."""
    near = max(1.0, 0.1 * case.capacity)
    if answer["kind"] != case.kind:
        return False
    if case.kind == "refuses":
        return abs(answer["limit"] - case.capacity) <= near
    if case.kind == "queues":
        return answer["limit"] is None and abs(answer["parallel"] - case.capacity) <= near
    return answer["limit"] is None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--budget", type=float, default=90.0)
    asked = parser.parse_args()
    wrong = 0
    print("case                capacity  found                              calls/s  took  holds")
    for name in asked.only.split(","):
        case = CASES[name]
        with tempfile.TemporaryDirectory() as folder:
            answer, took = tuned(case, Path(folder), asked.budget)
        right = holds(case, answer) and took <= 1.1 * asked.budget + 5
        wrong += not right
        parallel = "" if answer["parallel"] is None else f", {answer['parallel']:.1f} in parallel"
        found = f"{answer['kind']}, limit {answer['limit']}{parallel}"
        rate = answer["rate"]["value"] or 0.0
        print(f"{name:18}  {case.capacity:8}  {found:33}  {rate:7.1f}  {took:3.0f} s  {right}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
