"""Runs and records with known figures, made without running anything. Times are in milliseconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from profiler.records import (
    NO_MODEL,
    LoopRecord,
    ModelCall,
    RemoteCall,
    RoundRecord,
    Status,
    ToolCall,
    ToolStatus,
)
from profiler.rundir import Anchor, Load, Machine, Run, Trial
from profiler.statistics.comparison import Comparison, Side, compare, holm
from profiler.strategies import StrategySpec

MS = 1_000_000


def run(trials: Sequence[Trial], users: int = 2, finished: bool = True, **changes: object) -> Run:
    """A finished closed-load run over these trials."""
    fields: dict[str, object] = {
        "scenario": "cities",
        "provider": "openai",
        "strategies": tuple(dict.fromkeys(t.strategy for t in trials)),
        "load": Load(model="closed", users=users),
        "seed": 1,
        "anchor": Anchor(unix_ns=1_700_000_000_000_000_000, monotonic_ns=0),
        "machine": Machine(cores=2, cpu="x", memory_bytes=None, os="Linux", python="CPython 3.11"),
        "versions": {},
        "model": "m",
        "trials": tuple(trials),
        "finished": finished,
    }
    fields |= changes
    fields["strategies"] = tuple(map(StrategySpec.recorded, fields["strategies"]))  # type: ignore[arg-type]
    return Run(**fields)  # type: ignore[arg-type]


def trial(
    index: int, strategy: str, start: float, end: float, block: int = 0, users: int = 2, interrupted: int = 0
) -> Trial:
    return Trial(
        index=index,
        block=block,
        strategy=strategy,
        users=users,
        started_ns=int(start * MS),
        ended_ns=int(end * MS),
        drained_ns=int(end * MS),
        interrupted=interrupted,
    )


def call(
    start: float, duration: float, queue: float = 0.0, name: str = "get_weather", status: ToolStatus = "ok"
) -> ToolCall:
    """A tool call that was queued at `start` and ran for `duration` after `queue`."""
    queued, started = int(start * MS), int((start + queue) * MS)
    return ToolCall(
        id=f"call_{queued}_{started}",
        name=name,
        ready_ns=queued,
        queued_ns=queued,
        started_ns=started,
        ended_ns=started + int(duration * MS),
        status=status,
        error_type=None if status == "ok" else "TimeoutError",
    )


def served(
    start: float,
    session: float = 0.0,
    client: float = 1.0,
    remote: float = 100.0,
    parsing: float = 1.0,
    told: float | None = None,
    name: str = "search",
    server: str = "docs",
    status: ToolStatus = "ok",
    error_type: str | None = None,
    transport: Literal["http", "stdio", "memory"] = "http",
    **more: Any,
) -> ToolCall:
    """A call of an MCP server's tool that started at `start`, by the parts of its time."""
    started, posted = int(start * MS), int((start + session + client) * MS)
    answered = posted + int(remote * MS)
    return ToolCall(
        id=f"call_{started}_{answered}",
        name=name,
        ready_ns=started,
        queued_ns=started,
        started_ns=started,
        ended_ns=answered + int(parsing * MS),
        status=status,
        error_type=error_type,
        remote=RemoteCall(
            server,
            transport,
            "2025-11-25",
            posted,
            answered,
            None if told is None else int(told * MS),
            int(session * MS),
            **more,
        ),
    )


def asked_by_nobody(*rounds: Sequence[ToolCall], strategy: str = "gathered", process: str = "") -> LoopRecord:
    """A loop of rounds of calls that no model asked for, as `profiler mcp load` makes them."""
    made = []
    for index, calls in enumerate(rounds):
        start, end = min(call.queued_ns for call in calls), max(call.ended_ns for call in calls)
        nobody = ModelCall(NO_MODEL, "", start, start)
        made.append(RoundRecord(index, start, end, nobody, start, end, tuple(calls)))
    start, end = made[0].started_ns, made[-1].ended_ns
    return LoopRecord(
        f"loop-{process}{start}",
        strategy,
        NO_MODEL,
        "",
        start,
        end,
        "ok",
        tuple(made),
        trial=0,
        process=process,
    )


def loop(
    start: float,
    model: float = 100.0,
    calls: Sequence[tuple[float, float]] = (),
    strategy: str = "gathered",
    trial: int | None = 0,
    status: Status = "ok",
    tool_status: ToolStatus = "ok",
    number: int | None = None,
    intended: float | None = None,
) -> LoopRecord:
    """Model request, tool phase with `calls` (queue, duration), model request.

    Without calls there is one round and one model request.
    """
    rounds: list[RoundRecord] = []
    now = start
    if calls:
        begun = now + model
        made = tuple(call(begun, duration, queue, status=tool_status) for queue, duration in calls)
        done = max(c.ended_ns for c in made)
        rounds.append(
            RoundRecord(
                index=0,
                started_ns=int(now * MS),
                ended_ns=done,
                model=_model(now, model),
                tools_started_ns=int(begun * MS),
                tools_ended_ns=done,
                tool_calls=made,
            )
        )
        now = done / MS
    rounds.append(
        RoundRecord(
            index=len(rounds),
            started_ns=int(now * MS),
            ended_ns=int((now + model) * MS),
            model=_model(now, model),
        )
    )
    return LoopRecord(
        id=f"loop-{start}",
        strategy=strategy,
        provider="openai",
        model="m",
        started_ns=int(start * MS),
        ended_ns=int((now + model) * MS),
        status=status,
        error_type=None if status == "ok" else "http_429",
        rounds=tuple(rounds),
        number=number,
        trial=trial,
        intended_ns=None if intended is None else int(intended * MS),
    )


def _model(start: float, duration: float) -> ModelCall:
    return ModelCall(
        provider="openai",
        model="m",
        started_ns=int(start * MS),
        ended_ns=int((start + duration) * MS),
        input_tokens=10,
        output_tokens=2,
    )


BLOCKS = 3


def made(count: int = 30, each: float = 200.0, **changes: object) -> list[LoopRecord]:
    """`count` loops in each of three blocks, one every `each` ms."""
    return [
        loop(block * 10_000 + k * each, trial=block, **changes)  # type: ignore[arg-type]
        for block in range(BLOCKS)
        for k in range(count)
    ]


def trials(window: float = 6000.0, **changes: object):
    """The blocks of `made`, of `window` ms each."""
    return [
        dataclasses.replace(trial(b, "gathered", b * 10_000, b * 10_000 + window, block=b), **changes)
        for b in range(BLOCKS)
    ]


def side(
    name: str, scale: float, blocks: int = 8, loops: int = 150, failing: Sequence[int] = (), seed: int = 1
) -> Side:
    """Lognormal latencies around `scale` with a drift that all sides share."""
    rng = np.random.default_rng(seed)
    drift = np.exp(0.3 * np.sin(np.arange(blocks)))
    failed = failing or [0] * blocks
    return Side(
        name=name,
        latencies=tuple(scale * drift[b] * rng.lognormal(0, 0.3, loops) for b in range(blocks)),
        seconds=tuple([10.0] * blocks),
        done=tuple([loops] * blocks),
        good=tuple(loops - f for f in failed),
        failures=tuple((f, loops) for f in failed),
    )


def against(candidate: Side, baseline: Side, paired: bool = True) -> Comparison:
    return holm([compare(candidate, baseline, paired)])[0]
