"""The model APIs side by side: what the application needs to know of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from profiler.emulator import anthropic_messages, openai_chat
from profiler.emulator.conversation import ApiError, Conversation, Frame, Said, ToolSets
from profiler.emulator.openai_schema import envelope as openai_envelope


class Wire(NamedTuple):
    """One model API. `name` is its label in journal and metrics."""

    name: str
    provider: str
    parse: Callable[[dict[str, Any], ToolSets], Conversation]
    render: Callable[[Said, str, str, int], bytes]
    frames: Callable[[Said, Conversation, str, int, int], list[Frame]]


CHAT = Wire("chat", "openai", openai_chat.parse, openai_chat.render, openai_chat.frames)
MESSAGES = Wire(
    "messages", "anthropic", anthropic_messages.parse, anthropic_messages.render, anthropic_messages.frames
)


def envelope(provider: str, error: ApiError, request_id: str) -> bytes:
    """The provider's error body."""
    return openai_envelope(error) if provider == "openai" else anthropic_messages.envelope(error, request_id)
