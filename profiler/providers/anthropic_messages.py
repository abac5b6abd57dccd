"""Anthropic Messages through `AsyncAnthropic`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

import anthropic
from anthropic import AsyncAnthropic, DefaultAioHttpClient

from profiler.loop.model import Message, Probe, Reply, RequestOptions, ToolResult, conversation
from profiler.loop.tools import Tool
from profiler.providers import refuse_httpx, refuse_invoke_model
from profiler.providers.attempts import observe_attempts
from profiler.providers.endpoint import Endpoint, client_options, sdk_options
from profiler.providers.exchange import as_sent, asking, finished, follow
from profiler.providers.formats import MessagesFormat, messages_fields
from profiler.providers.replies import reader_of

if TYPE_CHECKING:
    from anthropic import AsyncAnthropicBedrockMantle, AsyncAnthropicVertex

# Our own exporter makes spans from records, under the round that they belong to. Older SDKs make none
# and do not have the option.
_SPANLESS: dict[str, Any] = (
    {"open_telemetry": False} if "open_telemetry" in signature(AsyncAnthropic.__init__).parameters else {}
)


class AnthropicMessages:
    """A model behind Messages.

    A `client` of the user's, for another cloud too, is used as it is; without one, one is made on the SDK's
    aiohttp transport for `endpoint` (None: the SDK's default). A `system` message at the head of the prompt
    becomes the request's `system`. Fields of `body` are set in every request, those that are None are left
    out of it.
    """

    provider: Literal["anthropic"] = "anthropic"
    conversation = staticmethod(conversation)

    def __init__(
        self,
        client: AsyncAnthropic | AsyncAnthropicVertex | AsyncAnthropicBedrockMantle | None = None,
        model: str = "claude-sonnet-5-5",
        *,
        max_tokens: int = 4096,
        endpoint: Endpoint | None = None,
        api_key: str | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        self._fields = messages_fields(body or {})
        if client is None:
            client = AsyncAnthropic(
                **sdk_options(endpoint, "anthropic", api_key),
                http_client=DefaultAioHttpClient(**client_options(endpoint)),
                **_SPANLESS,
            )
        self.client = client
        refuse_httpx(client)
        refuse_invoke_model(client)
        observe_attempts(client._client)
        self.model = model
        self._format = MessagesFormat(max_tokens)

    def render_tools(self, tools: Sequence[Tool]) -> list[dict[str, Any]]:
        return self._format.render_tools(tools)

    async def request(
        self, messages: list[Message], tools: Any, options: RequestOptions, probe: Probe
    ) -> Reply:
        arguments = self._format.body(self.model, messages, tools, options)
        if options.headers is not None:
            arguments["extra_headers"] = options.headers
        if self._fields:
            arguments = {n: v for n, v in arguments.items() if self._fields.get(n, v) is not None}
            arguments["extra_body"] = {n: v for n, v in self._fields.items() if v is not None}
        reader = reader_of(self.provider, probe)
        with asking(self.provider, anthropic, probe) as asked:
            if options.stream:
                stream = await self.client.messages.create(**arguments)
                asked.request_id = stream.response.headers.get("request-id")
                await follow(stream.response, reader)
            else:
                message = await self.client.messages.create(**arguments)
                asked.request_id = getattr(message, "_request_id", None)
                reader.whole(as_sent(message))
        return finished(self.provider, reader, probe.url, asked.request_id)

    def results(self, results: Sequence[ToolResult]) -> list[Message]:
        return self._format.results(results)
