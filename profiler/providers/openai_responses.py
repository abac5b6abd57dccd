"""OpenAI Responses through `AsyncOpenAI`. The whole input list goes with every request (stateless)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import openai
from openai import AsyncStream
from openai.types.responses import Response, ResponseStreamEvent

from profiler.loop.model import CallRequest, Message, Probe, Reply, RequestOptions, ToolResult
from profiler.loop.tools import Tool
from profiler.providers.failures import NO_JSON, caught, failed, provider_error, reading, truncated
from profiler.providers.openai_chat import OpenAIModel


class OpenAIResponses(OpenAIModel):
    """A model behind Responses."""

    provider = "openai-responses"
    path, reply_type = "/responses", Response
    stream_type = AsyncStream[ResponseStreamEvent]

    @property
    def _create(self) -> Any:
        return self.client.responses.create

    def render_tools(self, tools: Sequence[Tool]) -> list[dict[str, Any]]:
        return [
            {
                "type": "function",
                "name": t.name,
                "description": t.description,
                "parameters": t.parameters,
                "strict": False,
            }
            for t in tools
        ]

    def _named_tool(self, name: str) -> dict[str, Any]:
        return {"type": "function", "name": name}

    async def request(
        self, messages: list[Message], tools: Any, options: RequestOptions, probe: Probe
    ) -> Reply:
        arguments = self._arguments(tools, options, input=messages)
        request_id: str | None = None
        try:
            if not options.stream:
                with reading(self.provider, raised=NO_JSON):
                    response = await self._ask(arguments)
                request_id = getattr(response, "_request_id", None)
            else:
                stream = await self._ask(arguments, stream=True)
                request_id = stream.response.headers.get("x-request-id")
                with reading(self.provider, request_id, probe=probe):
                    response = await self._follow(stream, probe, request_id)
        except caught(openai) as error:
            raise provider_error(self.provider, openai, error, request_id) from error
        with reading(self.provider, request_id):
            if response.status == "failed":
                why = response.error
                raise failed(self.provider, why and why.code, why and why.message, request_id)
            return _reply(response, request_id)

    async def _follow(self, stream: Any, probe: Probe, request_id: str | None) -> Any:
        """Reads a stream to its end; returns the whole response."""
        async with stream:
            async for event in stream:
                kind = event.type
                if kind == "response.output_text.delta":
                    probe.text(event.delta)
                elif kind == "response.function_call_arguments.delta":
                    probe.token()
                elif kind == "response.output_item.done":
                    if event.item.type == "function_call" and event.item.status == "completed":
                        probe.token()
                        item = event.item
                        probe.call_complete(CallRequest(item.call_id, item.name, item.arguments))
                elif kind in ("response.completed", "response.incomplete", "response.failed"):
                    return event.response
                elif kind == "error":
                    raise failed(self.provider, event.code, event.message, request_id)
        raise truncated(self.provider, request_id)

    def results(self, results: Sequence[ToolResult]) -> list[Message]:
        return [{"type": "function_call_output", "call_id": r.call_id, "output": r.content} for r in results]


def _reply(response: Any, request_id: str | None) -> Reply:
    calls: list[CallRequest] = []
    items: list[Message] = []
    for item in response.output:
        if item.type == "function_call":
            calls.append(
                CallRequest(item.call_id, item.name, item.arguments, truncated=item.status == "incomplete")
            )
        items.append(item.model_dump(exclude_none=True, exclude={"parsed_arguments"}))
    usage = response.usage
    return Reply(
        text=response.output_text,
        calls=tuple(calls),
        messages=items,
        finish_reason=response.status,
        request_id=request_id,
        input_tokens=usage.input_tokens if usage is not None else None,
        output_tokens=usage.output_tokens if usage is not None else None,
    )
