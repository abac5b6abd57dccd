"""Reads requests from their bytes, for clients whose SDK calls are not ours."""

from __future__ import annotations

import orjson

from profiler.providers.replies import Api

_PATHS: tuple[tuple[str, Api], ...] = (
    ("/chat/completions", "openai"),
    ("/responses", "openai-responses"),
    ("/messages", "anthropic"),
)


def api_of(path: str) -> Api | None:
    """The API that a POST to this path is a model request of, None when it is none."""
    return next((api for suffix, api in _PATHS if path.endswith(suffix)), None)


def requested_model(body: bytes) -> str:
    """The model that a request names; parsed, because arguments of calls may have a key `model` too."""
    try:
        model = orjson.loads(body)["model"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""
    return model if isinstance(model, str) else ""


def requested_prompt(body: bytes) -> str | None:
    """The last message of the user in a request of any of the APIs, None when there is none to be found."""
    try:
        data = orjson.loads(body)
        said = data["messages"] if "messages" in data else data["input"]
        if not isinstance(said, str):
            said = [message["content"] for message in said if message.get("role") == "user"][-1]
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError, AttributeError):
        return None
    return said if isinstance(said, str) else orjson.dumps(said).decode()
