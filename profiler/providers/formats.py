"""The requests of the three APIs: a conversation, tools and options as a body; results as messages. Pure.

The models on the SDKs and the lean one send the same bodies. `profiler.providers.replies` reads what comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from profiler.errors import UsageError
from profiler.loop.model import Message, RequestOptions, ToolResult
from profiler.loop.tools import Tool
from profiler.providers.replies import Api


class Format(Protocol):
    """How one API is asked. `path` goes behind the base URL, as its SDK takes that one; `request_id` is the
    header in which the server names a request."""

    @property
    def api(self) -> Api: ...

    @property
    def path(self) -> str: ...

    @property
    def request_id(self) -> str: ...

    def render_tools(self, tools: Sequence[Tool]) -> list[dict[str, Any]]:
        """The tools in the form of the API."""

    def body(
        self, model: str, messages: list[Message], tools: Any, options: RequestOptions
    ) -> dict[str, Any]:
        """The body of a request, decoded. `tools` are rendered."""

    def results(self, results: Sequence[ToolResult]) -> list[Message]:
        """The messages that carry the results of a round, in the order of its calls."""


def with_fields(body: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The body with these fields set; those that are None are left out of it."""
    if not fields:
        return body
    return {name: value for name, value in {**body, **fields}.items() if fields.get(name, value) is not None}


@dataclass(frozen=True, slots=True)
class _OpenAI:
    """What both of OpenAI's APIs share."""

    request_id: ClassVar[str] = "x-request-id"

    def body(
        self, model: str, messages: list[Message], tools: Any, options: RequestOptions
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"model": model, **self._conversation(messages, options)}
        if tools and not options.answer_only:
            body["tools"] = tools
            if options.tool_choice in ("none", "required"):
                body["tool_choice"] = options.tool_choice
            elif options.tool_choice != "auto":
                body["tool_choice"] = self._named_tool(options.tool_choice)
            if not options.parallel_tool_calls:
                body["parallel_tool_calls"] = False
        if options.stream:
            body["stream"] = True
        return body

    def _conversation(self, messages: list[Message], options: RequestOptions) -> dict[str, Any]:
        raise NotImplementedError

    def _named_tool(self, name: str) -> dict[str, Any]:
        """The `tool_choice` that asks for one tool."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class ChatFormat(_OpenAI):
    """OpenAI Chat Completions, and what calls itself compatible."""

    api: ClassVar[Api] = "openai"
    path: ClassVar[str] = "/chat/completions"

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

    def _conversation(self, messages: list[Message], options: RequestOptions) -> dict[str, Any]:
        # Else a stream does not say how many tokens it took.
        usage = {"stream_options": {"include_usage": True}} if options.stream else {}
        return {"messages": messages, **usage}

    def results(self, results: Sequence[ToolResult]) -> list[Message]:
        return [{"role": "tool", "tool_call_id": r.call_id, "content": r.content} for r in results]


@dataclass(frozen=True, slots=True)
class ResponsesFormat(_OpenAI):
    """OpenAI Responses. The whole input list goes with every request (stateless)."""

    api: ClassVar[Api] = "openai-responses"
    path: ClassVar[str] = "/responses"

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


@dataclass(frozen=True, slots=True)
class MessagesFormat:
    """Anthropic Messages. A `system` message at the head of the prompt becomes the request's `system`."""

    api: ClassVar[Api] = "anthropic"
    path: ClassVar[str] = "/v1/messages"
    request_id: ClassVar[str] = "request-id"

    max_tokens: int = 4096

    def render_tools(self, tools: Sequence[Tool]) -> list[dict[str, Any]]:
        return [{"name": t.name, "description": t.description, "input_schema": t.parameters} for t in tools]

    def body(
        self, model: str, messages: list[Message], tools: Any, options: RequestOptions
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"model": model, "max_tokens": self.max_tokens, "messages": messages}
        if messages and messages[0].get("role") == "system":
            body["system"] = messages[0]["content"]
            body["messages"] = messages[1:]
        if tools:
            # The API demands `tools` with a history of tool_use blocks, even for an answer alone.
            body["tools"] = tools
            choice = _tool_choice(options)
            if choice is not None:
                body["tool_choice"] = choice
        if options.stream:
            body["stream"] = True
        return body

    def results(self, results: Sequence[ToolResult]) -> list[Message]:
        blocks = [
            {"type": "tool_result", "tool_use_id": result.call_id, "content": result.content}
            | ({"is_error": True} if result.is_error else {})
            for result in results
        ]
        return [{"role": "user", "content": blocks}]


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


def messages_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `--body` for Messages. Raises `UsageError` where the API would refuse every request."""
    if fields.get("max_tokens", 0) is None:
        raise UsageError("max_tokens cannot be left out of a request of this API: give it a number")
    return dict(fields)


FORMATS: dict[Api, Format] = {
    "openai": ChatFormat(),
    "openai-responses": ResponsesFormat(),
    "anthropic": MessagesFormat(),
}
