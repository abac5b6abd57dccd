"""What a recording of calls one after another says of them gathered, against a recording of just that.

The agent is a framework's, its spans are written by OpenTelemetry's own exporter, and the tools only sleep.
"""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest

from profiler.recordings.importing import import_files
from profiler.rundir import RunDirectory
from profiler.statistics.recorded import RecordedFigures, recorded_figures
from tests.integration.framework_agents import need

SECONDS = (0.1, 0.3, 0.2)
LOOPS = 2


def recorded(path: Path, *, in_turn: bool) -> RecordedFigures:
    """Import the spans of an agent whose model asks for three calls at once, `LOOPS` times."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
    from pydantic_ai import Agent, InstrumentationSettings, Tool
    from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
    from pydantic_ai.models.function import FunctionModel

    async def wait(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    def answer(messages: list[Any], _: Any) -> ModelResponse:
        if len(messages) > 1:
            return ModelResponse([TextPart("done")])
        return ModelResponse([ToolCallPart("wait", {"seconds": one}) for one in SECONDS])

    out = io.StringIO()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=out)))
    Agent.instrument_all(InstrumentationSettings(tracer_provider=tracing))
    try:
        agent: Any = Agent(FunctionModel(answer), tools=[Tool(wait, sequential=in_turn)])

        async def run() -> None:
            for _ in range(LOOPS):
                await agent.run("Wait three times.")

        asyncio.run(run())
    finally:
        Agent.instrument_all(False)
    tracing.shutdown()
    file = path / f"in turn {in_turn}.json"
    file.write_text(out.getvalue())
    directory = RunDirectory.open(import_files([file], path).directory)
    return recorded_figures(directory.records(), directory.load().recording)


@pytest.mark.measures
def test_the_estimate_of_gathering_is_what_gathering_takes(tmp_path: Path) -> None:
    need("pydantic_ai")
    before = recorded(tmp_path, in_turn=True)
    assert (before.loops, before.in_turn.rounds, before.overlapped.rounds) == (LOOPS, LOOPS, 0)
    after = recorded(tmp_path, in_turn=False)
    assert (after.loops, after.in_turn.rounds, after.overlapped.rounds) == (LOOPS, 0, LOOPS)
    assert after.overlapped.peak == len(SECONDS)
    estimate = before.in_turn.gathered_seconds + before.in_turn.gap_seconds
    assert 0.5 < estimate / after.overlapped.wall_seconds < 2
    one_after_another = after.overlapped.work_seconds + after.overlapped.gap_seconds
    assert 0.5 < one_after_another / before.in_turn.wall_seconds < 2
    assert 0.3 < (before.in_turn.less(before.in_turn.gathered_seconds) or 0) < 0.6  # 0.3 of 0.6 s
