"""Reads requests from their bytes, for clients whose SDK calls are not ours."""

from __future__ import annotations

import re

import orjson

from profiler.providers.replies import Api

_PATHS: tuple[tuple[str, Api], ...] = (
    ("/chat/completions", "openai"),
    ("/responses", "openai-responses"),
    ("/messages", "anthropic"),
)
_THREAD = re.compile(r"/threads/[^/]+/messages$")
"""A message is added to a thread of OpenAI's Assistants: no model is asked."""
_VERTEX = re.compile(
    r"/publishers/anthropic/models/(?!count-tokens:)([^/]+):(?:rawPredict|streamRawPredict)$"
)
"""Google's path to Messages. The model is in it and not in the body; tokens are counted at one like it."""
_AZURE = re.compile(r"/deployments/([^/]+)/chat/completions$")
"""Azure's, with the name of a deployment, which requests may leave out of the body."""


def api_of(path: str) -> Api | None:
    """The API that a POST to this path is a model request of, None when it is none."""
    found = next((api for suffix, api in _PATHS if path.endswith(suffix)), None)
    if found is None:
        return "anthropic" if _VERTEX.search(path) else None
    return None if _THREAD.search(path) else found


def requested_model(body: bytes, path: str = "") -> str:
    """The model that a request names; where its body names none, the one that its decoded path does.

    The body is parsed, because arguments of calls may have a key `model` too.
    """
    try:
        model = orjson.loads(body)["model"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        model = None
    return model if isinstance(model, str) and model else model_in(path)


def model_in(path: str) -> str:
    """The model, or the deployment, that a decoded path names; empty where it names none."""
    named = _VERTEX.search(path) or _AZURE.search(path)
    return named[1] if named else ""


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
