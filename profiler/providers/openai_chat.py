"""OpenAI Chat Completions through `AsyncOpenAI`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import httpx2
import openai
from openai import AsyncOpenAI, DefaultAioHttpClient

from profiler.loop.model import Message, Probe, Reply, RequestOptions, ToolResult, conversation
from profiler.loop.tools import Tool
from profiler.providers import refuse_httpx
from profiler.providers.attempts import observe_attempts
from profiler.providers.endpoint import Endpoint, client_options, sdk_options
from profiler.providers.exchange import as_sent, asking, finished, follow
from profiler.providers.formats import ChatFormat, Format, with_fields
from profiler.providers.replies import reader_of


class OpenAIModel:
    """A model behind an `AsyncOpenAI` client: the base of both of OpenAI's APIs.

    A `client` of the user's is used as it is; without one, one is made on the SDK's aiohttp transport
    for `endpoint` (None: the SDK's default). Fields of `body` are set in every request, those that are None
    are left out of it: `{"reasoning_effort": "low", "stream_options": None}`.

    `rewrite` False goes one step below the SDK's `create`, to its `post`. `create` compares each message with
    every type that it might have, to rename what has its name on the wire already. In a load test that costs
    as much as all else that the client does, and makes what it measures late. Whoever wraps `create` does not
    see such requests; what is sent is the same.
    """

    conversation = staticmethod(conversation)
    provider: Literal["openai", "openai-responses"]
    _format: Format

    def __init__(
        self,
        client: AsyncOpenAI | None = None,
        model: str = "gpt-4o",
        *,
        endpoint: Endpoint | None = None,
        api_key: str | None = None,
        body: Mapping[str, Any] | None = None,
        rewrite: bool = True,
    ) -> None:
        if client is None:
            client = AsyncOpenAI(
                **sdk_options(endpoint, "openai", api_key),
                http_client=DefaultAioHttpClient(**client_options(endpoint)),
            )
        self.client = client
        self.model = model
        self._fields = dict(body or {})
        self._rewrite = rewrite
        refuse_httpx(client)
        observe_attempts(client._client)

    @property
    def _create(self) -> Any:
        """The SDK's `create` of this API."""
        raise NotImplementedError

    def render_tools(self, tools: Sequence[Tool]) -> list[dict[str, Any]]:
        return self._format.render_tools(tools)

    def results(self, results: Sequence[ToolResult]) -> list[Message]:
        return self._format.results(results)

    async def request(
        self, messages: list[Message], tools: Any, options: RequestOptions, probe: Probe
    ) -> Reply:
        body = self._format.body(self.model, messages, tools, options)
        reader = reader_of(self.provider, probe)
        with asking(self.provider, openai, probe) as asked:
            reply = await self._ask(body, options.headers)
            if options.stream:
                response = reply if isinstance(reply, httpx2.Response) else reply.response
                asked.request_id = response.headers.get("x-request-id")
                await follow(response, reader)
            elif isinstance(reply, httpx2.Response):
                asked.request_id = reply.headers.get("x-request-id")
                reader.read(reply.content)
            else:
                asked.request_id = getattr(reply, "_request_id", None)
                reader.whole(as_sent(reply))
        return finished(self.provider, reader, probe.url, asked.request_id)

    async def _ask(self, body: dict[str, Any], headers: Mapping[str, str] | None) -> Any:
        """What `create` returns, or the response itself, unread."""
        if self._rewrite:
            body = {name: value for name, value in body.items() if self._fields.get(name, value) is not None}
            fields = {name: value for name, value in self._fields.items() if value is not None}
            extra: dict[str, Any] = {"extra_body": fields} if fields else {}
            if headers is not None:
                extra["extra_headers"] = headers
            return await self._create(**body, **extra)
        body = with_fields(body, self._fields)
        security = {"security": {"bearer_auth": True}}  # as `create` has it: no administrator's key
        return await self.client.post(
            self._format.path,
            body=body,
            cast_to=httpx2.Response,
            options=cast(Any, security if headers is None else {**security, "headers": headers}),
            stream=body.get("stream", False),
        )


class OpenAIChat(OpenAIModel):
    """A model behind Chat Completions."""

    provider = "openai"
    _format = ChatFormat()

    @property
    def _create(self) -> Any:
        return self.client.chat.completions.create
