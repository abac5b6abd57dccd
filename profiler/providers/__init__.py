"""Models behind the providers' own SDKs. Each SDK is imported by one module, when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from profiler.errors import UsageError
from profiler.providers.endpoint import Endpoint

if TYPE_CHECKING:
    from profiler.loop.model import Model
    from profiler.providers.anthropic_messages import AnthropicMessages
    from profiler.providers.openai_chat import OpenAIChat
    from profiler.providers.openai_responses import OpenAIResponses

__all__ = [
    "DEFAULT_MODELS",
    "PROVIDERS",
    "AnthropicMessages",
    "OpenAIChat",
    "OpenAIResponses",
    "make_provider",
]

_HOME = {
    "OpenAIChat": "openai_chat",
    "OpenAIResponses": "openai_responses",
    "AnthropicMessages": "anthropic_messages",
}

PROVIDERS = {"openai": "OpenAIChat", "openai-responses": "OpenAIResponses", "anthropic": "AnthropicMessages"}
"""What `--provider` takes, and the class behind it."""

DEFAULT_MODELS = {"openai": "gpt-4o", "openai-responses": "gpt-4o", "anthropic": "claude-sonnet-5-5"}
"""The model that is asked for when none is named."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ImportError as error:
        from profiler.providers.supported import unsupported

        raise unsupported(_HOME[name].partition("_")[0], str(error)) from error
    globals()[name] = value
    return value


def make_provider(
    name: str, *, base_url: str | None = None, model: str | None = None, api_key: str | None = None
) -> Model:
    """The model named on the command line, with a client of ours on aiohttp.

    `base_url` may be the server's root or end in `/v1`; None is the provider's own. `model`
    None is the default of that provider. `api_key` None is the SDK's environment variable.
    """
    if name not in PROVIDERS:
        raise UsageError(f"unknown provider {name!r}: expected one of {', '.join(PROVIDERS)}")
    endpoint = Endpoint.parse(base_url) if base_url is not None else None
    model = model if model is not None else DEFAULT_MODELS[name]
    made: Model = __getattr__(PROVIDERS[name])(endpoint=endpoint, api_key=api_key, model=model)
    return made
