"""Is the anatomy of every loop complete, and is it what the server saw?

Runs loops of a scenario against the emulator and holds each record against the emulator's journal:
the unaccounted share of wall time, the attempts with their statuses, the backoff between them.

    python benchmarks/anatomy.py [--loops 1000] [--agents 20]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import urllib.request
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import uvloop

from profiler import Gathered, ProviderError, ToolLoop
from profiler.anatomy import loop_phases
from profiler.emulator.process import start_emulator
from profiler.providers import make_provider
from profiler.records import LoopRecord
from profiler.scenarios import load_scenario
from profiler.scenarios.tools import close_tool_clients, scenario_tools, tool_session


@dataclass
class Findings:
    """What was found; every list of words is empty when all is well."""

    loops: int = 0
    failed: int = 0
    attempts: int = 0
    retries: int = 0
    worst_share: float = 0.0
    shares: list[float] = field(default_factory=list)
    """Of each loop without retries: its unaccounted share of wall time."""
    shares_of_retried: list[float] = field(default_factory=list)
    worst_per_round_ns: int = 0
    unaccounted: list[str] = field(default_factory=list)
    attempts_differ: list[str] = field(default_factory=list)
    backoff_differs: list[str] = field(default_factory=list)


async def run_loops(url: str, scenario_name: str, provider: str, stream: bool, loops: int, agents: int):
    """The records of loops 0 to `loops` - 1, failed ones included."""
    scenario = load_scenario(scenario_name)
    model = make_provider(provider, base_url=url)
    records: list[LoopRecord] = []
    loop = ToolLoop(model, scenario_tools(scenario, url), Gathered(), stream=stream, sinks=[records.append])
    numbers = iter(range(loops))
    tool_session()

    async def agent() -> None:
        for number in numbers:
            try:
                await loop.run(scenario.prompt.replace("{number}", str(number)), number=number)
            except ProviderError:
                continue  # its record is there

    await asyncio.gather(*(agent() for _ in range(agents)))
    await model.client.close()
    await close_tool_clients()
    return records


def examine(
    scenario: str, provider: str, stream: bool, loops: int, agents: int, tolerance_ns: int = 20_000_000
) -> Findings:
    """Run the loops on an emulator of their own and compare; backoff may differ by the tolerance."""
    with start_emulator(scenario, seed=11) as emulator:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            records = runner.run(run_loops(emulator.url, scenario, provider, stream, loops, agents))
        with urllib.request.urlopen(f"{emulator.url}/emulator/journal?kind=model", timeout=60) as response:
            entries = json.load(response)["entries"]
    seen: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        seen[entry["loop"]].append(entry)
    findings = Findings(loops=len(records))
    for record in records:
        compare(record, seen[record.number], findings, tolerance_ns)
    return findings


def compare(record: LoopRecord, entries: list[dict[str, Any]], findings: Findings, tolerance_ns: int) -> None:
    findings.failed += record.status != "ok"
    wall = record.ended_ns - record.started_ns
    unaccounted = loop_phases(record)["unaccounted"]
    per_round = unaccounted // len(record.rounds)
    retried = any(len(round_.model.attempts) > 1 for round_ in record.rounds)
    (findings.shares_of_retried if retried else findings.shares).append(unaccounted / wall)
    findings.worst_share = max(findings.worst_share, unaccounted / wall)
    findings.worst_per_round_ns = max(findings.worst_per_round_ns, per_round)
    if unaccounted > 0.01 * wall or per_round > 2_000_000:
        findings.unaccounted.append(f"loop {record.number}: {unaccounted / 1e6:.2f} of {wall / 1e6:.0f} ms")
    attempts = [attempt for round_ in record.rounds for attempt in round_.model.attempts]
    entries = sorted(entries, key=lambda entry: entry["received_ns"])
    findings.attempts += len(attempts)
    findings.retries += len(attempts) - len(record.rounds)
    ours = [attempt.status or 0 for attempt in attempts]
    theirs = [entry["status"] if entry["sent_ns"] else 0 for entry in entries]
    if ours != theirs:
        findings.attempts_differ.append(f"loop {record.number}: {ours} against {theirs}")
        return
    index = 0
    for round_ in record.rounds:
        count = len(round_.model.attempts)
        for (before, after), (left, came) in zip(
            pairwise(round_.model.attempts), pairwise(entries[index : index + count]), strict=True
        ):
            backoff = after.started_ns - before.ended_ns
            # Both clocks are this machine's monotonic one.
            there = came["received_ns"] - left["finished_ns"]
            if abs(backoff - there) > tolerance_ns:
                findings.backoff_differs.append(
                    f"loop {record.number}: {backoff / 1e6:.1f} against {there / 1e6:.1f} ms"
                )
        index += count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loops", type=int, default=1000)
    parser.add_argument("--agents", type=int, default=20)
    arguments = parser.parse_args()
    for scenario in ("research", "flaky"):
        for provider, stream in (("openai", False), ("anthropic", True)):
            started = time.monotonic()
            found = examine(scenario, provider, stream, arguments.loops, arguments.agents)
            print(
                f"{scenario}, {provider}{', streamed' if stream else ''}: {found.loops} loops "
                f"({found.failed} failed), {found.attempts} attempts, {found.retries} retries, "
                f"{time.monotonic() - started:.0f} s"
            )
            print(
                f"  unaccounted at most {found.worst_share:.2%} of wall and "
                f"{found.worst_per_round_ns / 1e6:.2f} ms a round; beyond 1 % or 2 ms: "
                f"{len(found.unaccounted)} {found.unaccounted[:3]}"
            )
            print(f"  attempts unlike the journal: {len(found.attempts_differ)} {found.attempts_differ[:3]}")
            print(f"  backoff unlike the journal: {len(found.backoff_differs)} {found.backoff_differs[:3]}")


if __name__ == "__main__":
    main()
