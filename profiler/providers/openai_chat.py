"""OpenAI Chat Completions through `AsyncOpenAI`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import openai
from openai import AsyncOpenAI, DefaultAioHttpClient

from profiler.loop.model import CallRequest, Message, Probe, Reply, RequestOptions, ToolResult
from profiler.loop.tools import Tool
from profiler.providers.attempts import observe_attempts
from profiler.providers.endpoint import Endpoint, client_options, emulator_key
from profiler.providers.failures import NO_JSON, caught, provider_error, reading, truncated
from profiler.providers.supported import refuse_httpx


def make_client(endpoint: Endpoint | None, api_key: str | None) -> AsyncOpenAI:
    """A client on the SDK's aiohttp transport, without a limit on connections."""
    return AsyncOpenAI(
        base_url=endpoint.openai_base if endpoint is not None else None,
        api_key=api_key or emulator_key(endpoint, "OPENAI_API_KEY"),
        http_client=DefaultAioHttpClient(**client_options(endpoint)),
    )


class OpenAIModel:
    """What both of OpenAI's APIs share: a model behind an `AsyncOpenAI` client.

    With a `client` of the user's, that one is used as it is; without, one is made on the SDK's
    aiohttp transport for `endpoint` (None: the SDK's default).
    """

    def __init__(
        self,
        client: AsyncOpenAI | None = None,
        model: str = "gpt-4o",
        *,
        endpoint: Endpoint | None = None,
        api_key: str | None = None,
    ) -> None:
        self.client = client if client is not None else make_client(endpoint, api_key)
        self.model = model
        refuse_httpx(self.client)
        observe_attempts(self.client._client)

    def conversation(self, prompt: str | Sequence[Message]) -> list[Message]:
        if isinstance(prompt, str):
            return [{"role": "user", "content": prompt}]
        return list(prompt)


class OpenAIChat(OpenAIModel):
    """A model behind Chat Completions."""

    provider = "openai"

    def render_tools(self, tools: Sequence[Tool]) -> list[dict[str, Any]]:
        return [
            {
                "type": "function",
                "function": {"name": t.name, "description": t.description, "parameters": t.parameters},
            }
            for t in tools
        ]

    async def request(
        self, messages: list[Message], tools: Any, options: RequestOptions, probe: Probe
    ) -> Reply:
        arguments: dict[str, Any] = {"model": self.model, "messages": messages}
        if tools and not options.answer_only:
            arguments["tools"] = tools
            if options.tool_choice != "auto":
                arguments["tool_choice"] = _tool_choice(options.tool_choice)
            if not options.parallel_tool_calls:
                arguments["parallel_tool_calls"] = False
        if options.headers is not None:
            arguments["extra_headers"] = options.headers
        try:
            if options.stream:
                return await self._streamed(arguments, probe)
            with reading(self.provider, raised=NO_JSON):
                completion = await self.client.chat.completions.create(**arguments)
        except caught(openai) as error:
            raise provider_error(self.provider, openai, error) from error
        with reading(self.provider):
            return _reply(completion)

    async def _streamed(self, options: dict[str, Any], probe: Probe) -> Reply:
        stream = await self.client.chat.completions.create(
            **options, stream=True, stream_options={"include_usage": True}
        )
        request_id = stream.response.headers.get("x-request-id")
        texts: list[str] = []
        calls: list[list[str]] = []  # id, name, arguments; by index

        def complete() -> None:
            call_id, name, text = calls[-1]
            probe.call_complete(CallRequest(call_id, name, text))

        finish_reason: str | None = None
        usage = None
        try:
            with reading(self.provider, request_id, probe=probe):
                async with stream:
                    async for chunk in stream:
                        if chunk.usage is not None:
                            usage = chunk.usage
                        if not chunk.choices:
                            continue
                        choice = chunk.choices[0]
                        delta = choice.delta
                        if delta.content:
                            texts.append(delta.content)
                            probe.text(delta.content)
                        for part in delta.tool_calls or ():
                            probe.token()
                            function = part.function
                            while len(calls) <= part.index:
                                if calls:
                                    complete()  # the next index begins: the one before is complete
                                calls.append(["", "", ""])
                            call = calls[part.index]
                            call[0] = part.id or call[0]
                            if function is not None:
                                call[1] = function.name or call[1]
                                call[2] += function.arguments or ""
                        if choice.finish_reason is not None:
                            finish_reason = choice.finish_reason
                            if calls and finish_reason != "length":
                                complete()
        except caught(openai) as error:
            raise provider_error(self.provider, openai, error, request_id) from error
        if finish_reason is None:
            raise truncated(self.provider, request_id)
        cut = len(calls) - 1 if finish_reason == "length" else None
        requests = tuple(
            CallRequest(call_id, name, arguments, truncated=index == cut)
            for index, (call_id, name, arguments) in enumerate(calls)
        )
        text = "".join(texts)
        return Reply(
            text=text,
            calls=requests,
            messages=[_assistant(text, requests)],
            finish_reason=finish_reason,
            request_id=request_id,
            input_tokens=usage.prompt_tokens if usage is not None else None,
            output_tokens=usage.completion_tokens if usage is not None else None,
        )

    def results(self, results: Sequence[ToolResult]) -> list[Message]:
        return [{"role": "tool", "tool_call_id": r.call_id, "content": r.content} for r in results]


def _reply(completion: Any) -> Reply:
    choice = completion.choices[0]
    calls = tuple(
        CallRequest(call.id, call.function.name, call.function.arguments)
        if call.type == "function"
        else CallRequest(call.id, call.custom.name, call.custom.input)
        for call in choice.message.tool_calls or ()
    )
    usage = completion.usage
    text = choice.message.content or ""
    return Reply(
        text=text,
        calls=calls,
        messages=[_assistant(text, calls)],
        finish_reason=choice.finish_reason,
        request_id=completion._request_id,
        input_tokens=usage.prompt_tokens if usage is not None else None,
        output_tokens=usage.completion_tokens if usage is not None else None,
    )


def _assistant(text: str, calls: Sequence[CallRequest]) -> Message:
    message: dict[str, Any] = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    else:
        message["content"] = text
    return message


def _tool_choice(choice: str) -> Any:
    if choice in ("none", "required"):
        return choice
    return {"type": "function", "function": {"name": choice}}
