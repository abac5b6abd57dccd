"""Agents that real instrumentations record, two of each at once: run by test_recorded_spans.py.

    python -m tests.integration.span_agents URL FOLDER

Writes for each KIND: `KIND.jsonl` (OTLP JSON as protobuf prints it, a batch a line), `KIND.console` (what the
SDK's console exporter prints) and `KIND.journal` (the emulator's, and how far its clock is from ours).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
from google.protobuf.json_format import MessageToJson
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)

from tests.integration.framework_agents import MODEL, QUESTION, Tools

Ask = Callable[[], Awaitable[Any]]


class ToFile(SpanExporter):
    def __init__(self, path: Path) -> None:
        self._file = path.open("w")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._file.write(MessageToJson(encode_spans(spans), indent=None) + "\n")
        self._file.flush()
        return SpanExportResult.SUCCESS


def provider(folder: Path, kind: str) -> TracerProvider:
    result = TracerProvider()
    result.add_span_processor(BatchSpanProcessor(ToFile(folder / f"{kind}.jsonl")))
    console = (folder / f"{kind}.console").open("w")
    result.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=console)))
    return result


def by_pydantic_ai(url: str, to: TracerProvider) -> Ask:
    from pydantic_ai import Agent
    from pydantic_ai.capabilities import Instrumentation
    from pydantic_ai.models.instrumented import InstrumentationSettings
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x")
    settings = InstrumentationSettings(tracer_provider=to)
    agent = Agent(
        OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client)),
        tools=Tools(url).all(),
        name="searcher",
        capabilities=[Instrumentation(settings=settings)],
    )

    async def listen(_: Any, events: Any) -> None:
        async for _ in events:
            pass

    return lambda: agent.run(QUESTION, event_stream_handler=listen)


def by_openinference(url: str, to: TracerProvider) -> Ask:
    import agents
    from openinference.instrumentation.openai_agents import OpenAIAgentsInstrumentor

    OpenAIAgentsInstrumentor().instrument(tracer_provider=to)
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x")
    agent = agents.Agent(
        name="searcher",
        model=agents.OpenAIResponsesModel("gpt-4o", client),
        tools=[agents.function_tool(tool) for tool in Tools(url).all()],
    )
    return lambda: agents.Runner.run(agent, QUESTION)


def by_openllmetry(url: str, to: TracerProvider) -> Ask:
    from opentelemetry.instrumentation.openai import OpenAIInstrumentor

    OpenAIInstrumentor().instrument(tracer_provider=to)
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x")
    tracer = to.get_tracer("app")
    tools = {tool.__name__: tool for tool in Tools(url).all()}
    schema = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
    offers: list[Any] = [{"type": "function", "function": {"name": "search", "parameters": schema}}]

    async def run(call: Any) -> Any:
        kind = {"traceloop.span.kind": "tool", "traceloop.entity.name": call.function.name}
        with tracer.start_as_current_span(f"{call.function.name}.tool", attributes=kind):
            result = await tools[call.function.name](**json.loads(call.function.arguments))
        return {"role": "tool", "tool_call_id": call.id, "content": result}

    async def loop() -> None:
        messages: list[Any] = [{"role": "user", "content": QUESTION}]
        kind = {"traceloop.span.kind": "agent", "traceloop.entity.name": "searcher"}
        with tracer.start_as_current_span("searcher.agent", attributes=kind):
            while True:
                reply = await client.chat.completions.create(model="gpt-4o", messages=messages, tools=offers)
                message = reply.choices[0].message
                if not message.tool_calls:
                    return
                messages.append(message.model_dump(exclude_none=True))
                messages += await asyncio.gather(*map(run, message.tool_calls))

    return loop


def by_anthropic(url: str, to: TracerProvider) -> Ask:
    trace.set_tracer_provider(to)  # the SDK takes it up by itself
    client = anthropic.AsyncAnthropic(base_url=url, api_key="x")
    tools = [anthropic.beta_async_tool(tool) for tool in Tools(url).all()]

    async def loop() -> None:
        await client.beta.messages.tool_runner(
            model=MODEL, max_tokens=500, messages=[{"role": "user", "content": QUESTION}], tools=tools
        ).until_done()

    return loop


KINDS = {
    "pydantic-ai": by_pydantic_ai,
    "openinference": by_openinference,
    "openllmetry": by_openllmetry,
    "anthropic": by_anthropic,
}


async def main(url: str, folder: Path) -> None:
    for kind, make in KINDS.items():
        to = provider(folder, kind)
        ask = make(url, to)
        async with httpx.AsyncClient(base_url=url, timeout=60) as emulator:
            await emulator.delete("/emulator/journal")
            await asyncio.gather(ask(), ask())
            journal = (await emulator.get("/emulator/journal")).json()
        journal["offset_ns"] = time.time_ns() - time.monotonic_ns()
        (folder / f"{kind}.journal").write_text(json.dumps(journal))
        to.shutdown()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
