"""Reads the replies of models, streamed or not, from their decoded JSON: one reader for each API.

`ToolLoop`, `Profiler` and whatever else reads a reply read it here.
"""

from __future__ import annotations

from typing import Literal

from profiler.loop.model import Probe
from profiler.providers.replies.anthropic_messages import MessagesReader
from profiler.providers.replies.events import begins_stream
from profiler.providers.replies.openai_chat import ChatReader
from profiler.providers.replies.openai_responses import ResponsesReader
from profiler.providers.replies.reply import ReplyReader

__all__ = ["Api", "ReplyReader", "begins_stream", "reader_of"]

Api = Literal["openai", "openai-responses", "anthropic"]

_READERS: dict[Api, type[ReplyReader]] = {
    "openai": ChatReader,
    "openai-responses": ResponsesReader,
    "anthropic": MessagesReader,
}


def reader_of(api: Api, probe: Probe, keeps: bool = True) -> ReplyReader:
    """A reader for one reply of this API (`ReplyReader`)."""
    return _READERS[api](probe, keeps)
