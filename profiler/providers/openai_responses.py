"""OpenAI Responses through `AsyncOpenAI`. The whole input list goes with every request (stateless)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from profiler.loop.model import Message, RequestOptions, ToolResult
from profiler.loop.tools import Tool
from profiler.providers.openai_chat import OpenAIModel


class OpenAIResponses(OpenAIModel):
    """A model behind Responses."""

    provider = "openai-responses"
    path = "/responses"

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

    def _conversation(self, messages: list[Message], options: RequestOptions) -> dict[str, Any]:
        return {"input": messages}

    def results(self, results: Sequence[ToolResult]) -> list[Message]:
        return [{"type": "function_call_output", "call_id": r.call_id, "output": r.content} for r in results]
