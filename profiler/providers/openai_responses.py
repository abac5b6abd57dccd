"""OpenAI Responses through `AsyncOpenAI`. The whole input list goes with every request (stateless)."""

from __future__ import annotations

from typing import Any

from profiler.providers.formats import ResponsesFormat
from profiler.providers.openai_chat import OpenAIModel


class OpenAIResponses(OpenAIModel):
    """A model behind Responses."""

    provider = "openai-responses"
    _format = ResponsesFormat()

    @property
    def _create(self) -> Any:
        return self.client.responses.create
