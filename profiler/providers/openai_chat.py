"""OpenAI Chat Completions through `AsyncOpenAI`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import openai
from openai import AsyncOpenAI, AsyncStream, DefaultAioHttpClient
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from profiler.loop.model import CallRequest, Message, Probe, Reply, RequestOptions, ToolResult, conversation
from profiler.loop.tools import Tool
from profiler.providers import refuse_httpx
from profiler.providers.attempts import observe_attempts
from profiler.providers.endpoint import Endpoint, client_options, emulator_key
from profiler.providers.failures import NO_JSON, caught, provider_error, reading, truncated


class OpenAIModel:
    """A model behind an `AsyncOpenAI` client: the base of both of OpenAI's APIs.

    A `client` of the user's is used as it is; without one, one is made on the SDK's aiohttp transport
    for `endpoint` (None: the SDK's default).

    `rewrite` False goes one step below the SDK's `create`, to its `post`. `create` compares each message with
    every type that it might have, to rename what has its name on the wire already. In a load test that costs
    as much as all else that the client does, and makes what it measures late. Whoever wraps `create` does not
    see such requests; what is sent is the same.
    """

    conversation = staticmethod(conversation)
    path: str
    reply_type: Any
    stream_type: Any

    def __init__(
        self,
        client: AsyncOpenAI | None = None,
        model: str = "gpt-4o",
        *,
        endpoint: Endpoint | None = None,
        api_key: str | None = None,
        rewrite: bool = True,
    ) -> None:
        if client is None:
            client = AsyncOpenAI(
                base_url=endpoint.openai_base if endpoint is not None else None,
                api_key=api_key or emulator_key(endpoint, "OPENAI_API_KEY"),
                http_client=DefaultAioHttpClient(**client_options(endpoint)),
            )
        self.client = client
        self.model = model
        self._rewrite = rewrite
        refuse_httpx(client)
        observe_attempts(client._client)

    def _arguments(self, tools: Any, options: RequestOptions, **conversation: Any) -> dict[str, Any]:
        """The keyword arguments of a request; `conversation` is `messages=…` or `input=…`."""
        arguments: dict[str, Any] = {"model": self.model, **conversation}
        if tools and not options.answer_only:
            arguments["tools"] = tools
            if options.tool_choice in ("none", "required"):
                arguments["tool_choice"] = options.tool_choice
            elif options.tool_choice != "auto":
                arguments["tool_choice"] = self._named_tool(options.tool_choice)
            if not options.parallel_tool_calls:
                arguments["parallel_tool_calls"] = False
        if options.headers is not None:
            arguments["extra_headers"] = options.headers
        return arguments

    def _named_tool(self, name: str) -> dict[str, Any]:
        """The `tool_choice` that asks for one tool."""
        raise NotImplementedError

    @property
    def _create(self) -> Any:
        """The SDK's `create` of this API."""
        raise NotImplementedError

    async def _ask(self, arguments: dict[str, Any], **more: Any) -> Any:
        """What `create` returns."""
        body = {**arguments, **more}
        if self._rewrite:
            return await self._create(**body)
        headers = body.pop("extra_headers", None)
        security = {"security": {"bearer_auth": True}}  # as `create` has it: no administrator's key
        return await self.client.post(
            self.path,
            body=body,
            cast_to=self.reply_type,
            options=cast(Any, security if headers is None else {**security, "headers": headers}),
            stream=body.get("stream", False),
            stream_cls=self.stream_type,
        )


class OpenAIChat(OpenAIModel):
    """A model behind Chat Completions."""

    provider = "openai"
    path, reply_type = "/chat/completions", ChatCompletion
    stream_type = AsyncStream[ChatCompletionChunk]

    @property
    def _create(self) -> Any:
        return self.client.chat.completions.create

    def render_tools(self, tools: Sequence[Tool]) -> list[dict[str, Any]]:
        return [
            {
                "type": "function",
                "function": {"name": t.name, "description": t.description, "parameters": t.parameters},
            }
            for t in tools
        ]

    def _named_tool(self, name: str) -> dict[str, Any]:
        return {"type": "function", "function": {"name": name}}

    async def request(
        self, messages: list[Message], tools: Any, options: RequestOptions, probe: Probe
    ) -> Reply:
        arguments = self._arguments(tools, options, messages=messages)
        try:
            if options.stream:
                return await self._streamed(arguments, probe)
            with reading(self.provider, raised=NO_JSON):
                completion = await self._ask(arguments)
        except caught(openai) as error:
            raise provider_error(self.provider, openai, error) from error
        with reading(self.provider):
            choice = completion.choices[0]
            calls = tuple(
                CallRequest(call.id, call.function.name, call.function.arguments)
                if call.type == "function"
                else CallRequest(call.id, call.custom.name, call.custom.input)
                for call in choice.message.tool_calls or ()
            )
            text = choice.message.content or ""
            return _reply(text, calls, choice.finish_reason, completion._request_id, completion.usage)

    async def _streamed(self, arguments: dict[str, Any], probe: Probe) -> Reply:
        stream = await self._ask(arguments, stream=True, stream_options={"include_usage": True})
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
            CallRequest(call_id, name, text, truncated=index == cut)
            for index, (call_id, name, text) in enumerate(calls)
        )
        return _reply("".join(texts), requests, finish_reason, request_id, usage)

    def results(self, results: Sequence[ToolResult]) -> list[Message]:
        return [{"role": "tool", "tool_call_id": r.call_id, "content": r.content} for r in results]


def _reply(
    text: str, calls: tuple[CallRequest, ...], finish_reason: str, request_id: str | None, usage: Any
) -> Reply:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["content"] = text or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return Reply(
        text=text,
        calls=calls,
        messages=[message],
        finish_reason=finish_reason,
        request_id=request_id,
        input_tokens=usage.prompt_tokens if usage is not None else None,
        output_tokens=usage.completion_tokens if usage is not None else None,
    )
