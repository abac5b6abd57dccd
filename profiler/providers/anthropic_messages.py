"""Anthropic Messages through `AsyncAnthropic`."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import anthropic
from anthropic import AsyncAnthropic, DefaultAioHttpClient

from profiler.loop.model import CallRequest, Message, Probe, Reply, RequestOptions, ToolResult, conversation
from profiler.loop.tools import Tool
from profiler.providers import refuse_httpx
from profiler.providers.attempts import observe_attempts
from profiler.providers.endpoint import Endpoint, client_options, emulator_key
from profiler.providers.failures import NO_JSON, caught, provider_error, reading, truncated

# Our own exporter makes spans from records, under the round that they belong to. Older SDKs make none
# and do not have the option.
_SPANLESS: dict[str, Any] = (
    {"open_telemetry": False} if "open_telemetry" in signature(AsyncAnthropic.__init__).parameters else {}
)


class AnthropicMessages:
    """A model behind Messages.

    A `client` of the user's is used as it is; without one, one is made on the SDK's aiohttp transport
    for `endpoint` (None: the SDK's default). A `system` message at the head of the prompt becomes the
    request's `system`.
    """

    provider = "anthropic"
    conversation = staticmethod(conversation)

    def __init__(
        self,
        client: AsyncAnthropic | None = None,
        model: str = "claude-sonnet-5-5",
        *,
        max_tokens: int = 4096,
        endpoint: Endpoint | None = None,
        api_key: str | None = None,
    ) -> None:
        if client is None:
            client = AsyncAnthropic(
                base_url=endpoint.root if endpoint is not None else None,
                api_key=api_key or emulator_key(endpoint, "ANTHROPIC_API_KEY"),
                http_client=DefaultAioHttpClient(**client_options(endpoint)),
                **_SPANLESS,
            )
        self.client = client
        refuse_httpx(client)
        observe_attempts(client._client)
        self.model = model
        self.max_tokens = max_tokens

    def render_tools(self, tools: Sequence[Tool]) -> list[dict[str, Any]]:
        return [{"name": t.name, "description": t.description, "input_schema": t.parameters} for t in tools]

    async def request(
        self, messages: list[Message], tools: Any, options: RequestOptions, probe: Probe
    ) -> Reply:
        arguments: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "messages": messages,
        }
        if messages and messages[0].get("role") == "system":
            arguments["system"] = messages[0]["content"]
            arguments["messages"] = messages[1:]
        if tools:
            # The API demands `tools` with a history of tool_use blocks, even for an answer alone.
            arguments["tools"] = tools
            choice = _tool_choice(options)
            if choice is not None:
                arguments["tool_choice"] = choice
        if options.headers is not None:
            arguments["extra_headers"] = options.headers
        request_id: str | None = None
        inputs: dict[int, str] = {}
        try:
            if not options.stream:
                with reading(self.provider, raised=NO_JSON):
                    message = await self.client.messages.create(**arguments)
                request_id = getattr(message, "_request_id", None)
            else:
                async with self.client.messages.stream(**arguments) as stream:
                    request_id = stream.request_id
                    with reading(self.provider, request_id, probe=probe):
                        message = await self._follow(stream, probe, inputs)
                    if message.stop_reason is None:
                        raise truncated(self.provider, request_id)
        except caught(anthropic) as error:
            raise provider_error(self.provider, anthropic, error, request_id) from error
        with reading(self.provider, request_id):
            return _reply(message, request_id, inputs)

    async def _follow(self, stream: Any, probe: Probe, inputs: dict[int, str]) -> Any:
        """Reads a stream to its end; returns the whole message.

        `inputs` gets the JSON text of each call, by the index of its block: the SDK's own parser
        completes broken JSON to what may have been meant, and a call must not run on a guess.
        """
        open_call: int | None = None  # the index of its block
        begun = False
        async for event in stream:
            begun = True
            kind = event.type
            if kind == "content_block_start":
                if open_call is not None:
                    _complete(stream, open_call, probe, inputs)
                open_call = event.index if event.content_block.type == "tool_use" else None
                if open_call is not None:
                    probe.token()
            elif kind == "content_block_delta":
                if event.delta.type == "text_delta":
                    probe.text(event.delta.text)
                else:
                    if event.delta.type == "input_json_delta":
                        inputs[event.index] = inputs.get(event.index, "") + event.delta.partial_json
                    probe.token()
            elif kind == "message_delta" and open_call is not None and event.delta.stop_reason == "tool_use":
                # A truncated reply closes its last block too: only now is that call complete.
                _complete(stream, open_call, probe, inputs)
                open_call = None
        if not begun:  # the SDK has no message then, and an assertion of its own would fail
            raise truncated(self.provider, stream.request_id)
        return stream.current_message_snapshot

    def results(self, results: Sequence[ToolResult]) -> list[Message]:
        blocks = [
            {"type": "tool_result", "tool_use_id": result.call_id, "content": result.content}
            | ({"is_error": True} if result.is_error else {})
            for result in results
        ]
        return [{"role": "user", "content": blocks}]


def _complete(stream: Any, index: int, probe: Probe, inputs: dict[int, str]) -> None:
    """The call in this block is complete."""
    block = stream.current_message_snapshot.content[index]
    probe.call_complete(CallRequest(block.id, block.name, inputs.get(index, block.input)))


def _reply(message: Any, request_id: str | None, inputs: dict[int, str]) -> Reply:
    texts: list[str] = []
    calls: list[CallRequest] = []
    content: list[dict[str, Any]] = []
    last = len(message.content) - 1
    for index, block in enumerate(message.content):
        if block.type == "text":
            if block.text:  # the API refuses an empty text block in the next request
                texts.append(block.text)
                content.append({"type": "text", "text": block.text})
        elif block.type == "tool_use":
            cut = message.stop_reason == "max_tokens" and index == last
            asked = inputs.get(index, block.input)
            calls.append(CallRequest(block.id, block.name, asked, truncated=cut))
            content.append({"type": "tool_use", "id": block.id, "name": block.name, "input": block.input})
        else:
            content.append(block.model_dump(exclude_none=True))
    return Reply(
        text="".join(texts),
        calls=tuple(calls),
        messages=[{"role": "assistant", "content": content}] if content else [],
        finish_reason=message.stop_reason,
        request_id=request_id,
        input_tokens=message.usage.input_tokens,
        output_tokens=message.usage.output_tokens,
    )


def _tool_choice(options: RequestOptions) -> dict[str, Any] | None:
    if options.answer_only or options.tool_choice == "none":
        return {"type": "none"}
    if options.tool_choice == "auto":
        choice: dict[str, Any] = {"type": "auto"}
    elif options.tool_choice == "required":
        choice = {"type": "any"}
    else:
        choice = {"type": "tool", "name": options.tool_choice}
    if not options.parallel_tool_calls:
        choice["disable_parallel_tool_use"] = True
    elif options.tool_choice == "auto":
        return None
    return choice
