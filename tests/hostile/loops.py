"""Runs loops of all APIs against the hostile server, and says what became of each."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from profiler.load.messages import Begin
from profiler.load.runners import BuiltInAgent
from profiler.load.trial import RunningTrial, TrialAgent
from profiler.loop.loop import ToolLoop
from profiler.loop.recorder import waited_for
from profiler.loop.tools import tool
from profiler.providers import make_provider
from profiler.providers.endpoint import Endpoint
from profiler.records import LoopRecord, encode
from profiler.rundir import Spent
from profiler.strategies import parse_strategy

APIS = {"openai": "openai", "openai-responses": "responses", "anthropic": "messages"}
"""Provider → what the server's journal calls its API."""


@contextmanager
def hostile_server(seed: int, share: float = 0.6) -> Iterator[str]:
    """The server in a process of its own; its URL."""
    command = [sys.executable, "-m", "tests.hostile.server", str(seed), str(share)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()
            process.wait(60)


@tool(pure=True)
async def echo(text: str) -> str:
    """Say it again."""
    return text


@dataclass(slots=True)
class Fate:
    """What became of the loops of one API: `records` by number, and how many agents came to the end."""

    name: str
    records: dict[int, LoopRecord] = field(default_factory=dict)
    repeated: int = 0
    agents: int = 0
    begun: int = 0
    dropped: int = 0
    requests: int = 0
    spent: Spent = field(default_factory=Spent)


async def run_loops(url: str, loops: int, agents: int, timeout: float) -> list[Fate]:
    """Run `loops` loops of each API, whole and streamed, by so many agents."""
    return [
        await _of_api(url, provider, streamed, loops, agents, timeout)
        for provider in APIS
        for streamed in (False, True)
    ]


async def _of_api(url: str, provider: str, streamed: bool, loops: int, agents: int, timeout: float) -> Fate:
    fate = Fate(f"{APIS[provider]} {'streamed' if streamed else 'whole'}")
    model = make_provider(provider, base_url=Endpoint.parse(url), model="m", rewrite=False)
    model.client = model.client.with_options(max_retries=0)  # type: ignore[attr-defined]

    @waited_for
    def keep(record: LoopRecord) -> None:
        assert record.number is not None
        encode(record)  # what cannot be written is no record
        fate.repeated += record.number in fate.records
        fate.records[record.number] = record
        fate.requests += sum(one.model.attempt_count for one in record.rounds)

    strategy = parse_strategy("eager" if streamed else "gathered")
    loop = ToolLoop(model, [echo], strategy.build(), stream=streamed, max_rounds=3, sinks=[keep])
    runner = BuiltInAgent(loop, "Question {number}.", timeout)
    over = asyncio.Event()
    plan = Begin(1, 0, 0, strategy.text, worker=0, workers=1, seed=1, limited=True)
    trial = RunningTrial(plan, over.set)  # it asks for more when all that was granted has begun
    trial.grant(loops)
    still = [
        asyncio.ensure_future(trial.run_agent(runner, TrialAgent(f"a{k}", k, lambda: False)))
        for k in range(agents)
    ]
    waiting = asyncio.ensure_future(over.wait())
    await asyncio.wait((waiting, *still), return_when=asyncio.FIRST_COMPLETED)
    while trial.in_flight:  # noqa: ASYNC110 (nothing tells when the last loop ends but this count)
        await asyncio.sleep(0.01)
    fate.agents = sum(not one.done() for one in still)
    trial.close()
    await asyncio.gather(*still)
    await runner.close()
    fate.begun, fate.dropped, fate.spent = trial.begun, loop.recorder.dropped, trial.tally.spent
    return fate


def journal_of(url: str) -> dict[str, list[str]]:
    """API, way and number of a loop → the kinds of replies that its requests got."""
    with urllib.request.urlopen(f"{url}/journal", timeout=60) as answer:
        journal: dict[str, list[str]] = json.load(answer)
    return journal


def table(journal: dict[str, list[str]], fates: list[Fate]) -> dict[str, Counter[str]]:
    """Kind of reply → how many loops that met it last ended how. `good`: a loop that met no other."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for fate in fates:
        for number, record in fate.records.items():
            kinds = journal.get(f"{fate.name} {number}", [])
            kind = next((kind for kind in reversed(kinds) if kind != "good"), "good")
            found[kind][record.error_type or "ok"] += 1
    return dict(sorted(found.items()))


def lines(found: dict[str, Counter[str]]) -> list[str]:
    """The table as text."""
    return [
        f"{kind:22} {ends.total():5}  " + ", ".join(f"{end} {count}" for end, count in ends.most_common())
        for kind, ends in found.items()
    ]
