"""Predictions with known figures, and recordings to predict from, made without running anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from profiler.prediction.fitting import Fitted, ServerFit
from profiler.prediction.predict import Predicted, Question
from profiler.prediction.servers.calls import Rule
from profiler.prediction.servers.identify import Finding
from profiler.prediction.simulation.figures import Figures
from profiler.prediction.simulation.load import SimulatedLoad, Trials
from profiler.prediction.simulation.servers import ServerUse
from profiler.prediction.simulation.work import LoopWork, RoundWork, Server, System
from profiler.records import LoopRecord, ModelCall, RoundRecord, encode
from profiler.rundir import Run, RunDirectory
from profiler.statistics.quantiles import Estimate
from profiler.strategies import parse_strategy
from tests.unit.statistics_data import MS, call, run, trial

TEN_SECONDS = Trials(10.0)

LIKE: dict[str, float] = {
    "p50": 1.0,
    "p95": 2.0,
    "p99": 3.0,
    "throughput": 5.0,
    "goodput": 5.0,
    "failure_rate": 0.0,
    "refused_share": 0.0,
}


def predicted(
    strategy: str = "gathered",
    users: int = 40,
    *,
    every: Sequence[dict[str, float]] = ({},),
    refused: tuple[str, ...] = (),
    warnings: tuple[str, ...] = (),
    uses: tuple[ServerUse, ...] = (),
    trials: Trials = TEN_SECONDS,
    **figures: float,
) -> Predicted:
    """A prediction: `figures`, and those of each replicate, are as in `LIKE` where nothing is said."""
    question = Question(parse_strategy(strategy), SimulatedLoad(users), trials)
    if refused:
        return Predicted(question, {}, refused, warnings)
    values = LIKE | figures
    bands = {name: Estimate(value, 0.9 * value, 1.1 * value) for name, value in values.items()}
    replicates = tuple(Figures(**{**values, **one}) for one in every)
    return Predicted(question, bands, (), warnings, uses, replicates)


def fitted(
    of: Run | None = None,
    servers: Sequence[tuple[str, Rule, bool]] = (),
    *,
    loops: int = 100,
    cpu_ns: float | None = None,
) -> Fitted:
    """A fit: `servers` are name, rule, and whether the recording identifies it; each has one tool."""
    fits = tuple(
        ServerFit(
            name, (name,), Finding(rule, known, (1.0, 50.0), None, f"{rule.kind} it is", ()), 1000, 0, 1
        )
        for name, rule, known in servers
    )
    none = Finding(Rule("none"), True, (1.0, 20.0), None, "no slower up to there", ())
    model = ServerFit("the model", (), none, 2000, 0, 1)
    system = System(
        tuple(one.name for one in fits),
        tuple(Server(one.name, one.finding.rule) for one in fits),
        tuple(range(len(fits))),
        Server("the model", Rule("none")),
    )
    works = tuple(LoopWork((RoundWork(1),), cluster=number) for number in range(loops))
    return Fitted(
        of or run([trial(0, "gathered", 0, 1000)]),
        system,
        works,
        fits,
        model,
        recorded=loops,
        calls=1000 * len(fits),
        lost=Counter(),
        cpu_ns=cpu_ns,
    )


def record(number: int, strategy: str, begin: float, index: int, *, model: float, tool: float) -> LoopRecord:
    """A loop of agent `number`: a request of `model` ms, two calls of `tool` ms at once, a last request."""
    calls = (call(begin + model, tool, name="search"), call(begin + model, tool, name="search"))
    after = begin + model + tool
    rounds = []
    for place, (start, asked, made) in enumerate(((begin, model, calls), (after, model, ()))):
        end = start + asked + (tool if made else 0)
        rounds.append(
            RoundRecord(
                place,
                int(start * MS),
                int(end * MS),
                ModelCall("openai", "m", int(start * MS), int((start + asked) * MS)),
                int((start + asked) * MS) if made else None,
                int(end * MS) if made else None,
                made,
            )
        )
    return LoopRecord(
        f"loop-{index}-{number}-{begin:g}",
        strategy,
        "openai",
        "m",
        int(begin * MS),
        int((after + model) * MS),
        "ok",
        tuple(rounds),
        agent=f"a{number}",
        trial=index,
    )


def recorded(
    levels: Sequence[int] = (1, 2), strategies: Sequence[str] = ("gathered",), blocks: int = 1, **changes: Any
) -> tuple[Run, list[LoopRecord]]:
    """A run of closed loads, each of whose loops takes 100 to 109 ms; its trials are 2 s long."""
    trials, records = [], []
    for block in range(blocks):
        for users in levels:
            for strategy in strategies:
                index = len(trials)
                begin = 3000.0 * index
                trials.append(trial(index, strategy, begin, begin + 2000, block, users))
                for agent in range(users):
                    at, turn = begin, agent
                    while at < begin + 2000:
                        took = 20.0 + turn % 10
                        records.append(record(agent, strategy, at, index, model=40.0, tool=took))
                        at += 80.0 + took
                        turn += 1
    return run(trials, users=max(levels), **changes), records


def directory(path: Path, of: Run, records: Sequence[LoopRecord]) -> RunDirectory:
    """A run directory of it."""
    made = RunDirectory.create(path, of)
    made.records_path.write_bytes(b"".join(encode(one) + b"\n" for one in records))
    return made
