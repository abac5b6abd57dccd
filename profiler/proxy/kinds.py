"""What a request to a model's server is for, by its method and path: a few words, for counts. Pure."""

from __future__ import annotations

import functools
import re
from typing import Literal, get_args

from profiler.providers.replies import Api
from profiler.providers.wire import api_of

Kind = Literal[
    "model",
    "count_tokens",
    "embeddings",
    "models",
    "files",
    "batches",
    "images",
    "audio",
    "stored_responses",
    "assistants",
    "other_model_api",
    "other",
    "mcp",
]
KINDS: tuple[str, ...] = get_args(Kind)

_OF_PATHS: tuple[tuple[str, Kind], ...] = (
    (r"/(?:count_tokens|count-tokens[^/]*|input_tokens|tokenize)$|:countTokens$", "count_tokens"),
    (r"/embeddings$|:(?:batchE|e)mbedContents?$", "embeddings"),
    (r"/messages/batches(?:/|$)|/batches(?:/|$)", "batches"),
    (r"/(?:threads|assistants|vector_stores)(?:/|$)", "assistants"),
    (r"/(?:files|uploads|containers)(?:/|$)", "files"),
    (r"/images/", "images"),
    (r"/audio/", "audio"),
    (r"/(?:responses|conversations|chat/completions)(?:/[^/]+)*$", "stored_responses"),
    (r"/complet(?:ions|e)$|:(?:streamG|g)enerateContent$|/(?:converse|invoke)[^/]*$", "other_model_api"),
    (r"/models(?:/|$)|/api/(?:tags|show|version)$", "models"),
)
_KNOWN = tuple((re.compile(pattern), kind) for pattern, kind in _OF_PATHS)


@functools.lru_cache(maxsize=1000)
def kind_of(method: bytes, path: str) -> tuple[Kind, Api | None]:
    """What a request is for, and of a request to a model the API.

    `other_model_api`: a model is asked in a way that nothing here reads. Requests of every kind but `model`
    are forwarded, and are in no loop.
    """
    path = path.rstrip("/")
    if method == b"POST":
        api = api_of(path)
        if api is not None:
            return "model", api
    for pattern, kind in _KNOWN:
        if pattern.search(path):
            return kind, None
    return "other", None
