"""Models behind the providers' own SDKs. Each SDK is imported by one module, when it is first used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

from profiler.errors import UsageError
from profiler.providers.endpoint import Endpoint

if TYPE_CHECKING:
    from profiler.loop.model import Model
    from profiler.providers.anthropic_messages import AnthropicMessages
    from profiler.providers.openai_chat import OpenAIChat
    from profiler.providers.openai_responses import OpenAIResponses
    from profiler.providers.replies import Api

__all__ = [
    "CLIENTS",
    "DIALECTS",
    "PROVIDERS",
    "AnthropicMessages",
    "ClientName",
    "DialectName",
    "OpenAIChat",
    "OpenAIResponses",
    "make_provider",
]

DialectName = Literal["openai", "gemini", "vllm", "sglang", "deepseek", "mistral", "azure"]
DIALECTS: tuple[DialectName, ...] = get_args(DialectName)
"""Ways to speak Chat Completions: OpenAI's, and those of servers that call themselves compatible."""


ClientName = Literal["sdk", "lean"]
CLIENTS: tuple[ClientName, ...] = get_args(ClientName)
"""What speaks to a model: the provider's SDK, or a client of ours that does without."""


class Provider(NamedTuple):
    """A model class, where it is, the package of its SDK, and the model asked for when none is named."""

    model_class: str
    module: str
    sdk: str
    default_model: str


PROVIDERS = {
    "openai": Provider("OpenAIChat", "openai_chat", "openai", "gpt-4o"),
    "openai-responses": Provider("OpenAIResponses", "openai_responses", "openai", "gpt-4o"),
    "anthropic": Provider("AnthropicMessages", "anthropic_messages", "anthropic", "claude-sonnet-5-5"),
}
"""By name, as `--provider` takes it."""


def __getattr__(name: str) -> Any:
    provider = next((one for one in PROVIDERS.values() if one.model_class == name), None)
    if provider is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{provider.module}"), name)
    except ImportError as error:
        raise _unsupported(provider.sdk, str(error)) from error
    globals()[name] = value
    return value


def make_provider(
    name: str,
    *,
    base_url: str | Endpoint | None = None,
    model: str | None = None,
    api_key: str | None = None,
    body: Mapping[str, Any] | None = None,
    rewrite: bool = True,
    client: ClientName = "sdk",
) -> Model:
    """The model named on the command line, with a client of ours: the SDK's on aiohttp, or the lean one.

    `base_url` may be the server's root, or have a path and a query of its own; None is the provider's own.
    An `Endpoint` has headers and certificates too. `model` None is the default of that provider. `api_key`
    None is the SDK's environment variable. `body` and `rewrite` are those of `OpenAIModel`; Anthropic's SDK
    rewrites nothing.
    """
    if name not in PROVIDERS:
        raise UsageError(f"unknown provider {name!r}: expected one of {', '.join(PROVIDERS)}")
    provider = PROVIDERS[name]
    endpoint = Endpoint.parse(base_url) if isinstance(base_url, str) else base_url
    model = model if model is not None else provider.default_model
    if client == "lean":
        from profiler.providers.lean import LeanModel

        return LeanModel(cast("Api", name), model, endpoint=endpoint, api_key=api_key, body=body)
    below = {"rewrite": False} if provider.sdk == "openai" and not rewrite else {}
    made: Model = __getattr__(provider.model_class)(
        endpoint=endpoint, api_key=api_key, model=model, body=body, **below
    )
    return made


def refuse_httpx(client: Any) -> None:
    """Raises `UsageError` for a client of an older SDK, which uses httpx: its requests cannot be observed."""
    kinds = type(getattr(client, "_client", None)).__mro__
    if any(kind.__module__.partition(".")[0] == "httpx" for kind in kinds):
        raise _unsupported(type(client).__module__.partition(".")[0], "its clients are httpx's, not httpx2's")


def refuse_invoke_model(client: Any) -> None:
    """Raises `UsageError` for a client of Bedrock's InvokeModel, which is none of the APIs that are read.

    Its streams are frames of AWS's own, around events of Messages.
    """
    kinds = type(client).__mro__
    name = next((kind.__name__ for kind in kinds if kind.__module__ == "anthropic.lib.bedrock._client"), None)
    if name is not None:
        raise UsageError(
            f"{name} cannot be profiled: Bedrock's InvokeModel API streams in frames of its own; "
            f"use {name}Mantle, Bedrock's Messages API"
        )


def _unsupported(package: str, why: str) -> UsageError:
    """Says which version of an SDK is installed, and which ones are needed."""
    from importlib import metadata  # slow, and needed for this message alone

    try:
        installed = metadata.version(package)
    except metadata.PackageNotFoundError:
        return UsageError(f"{package} is not installed: {why}; pip install '{needed(package)}'")
    return UsageError(
        f"{package} {installed} cannot be profiled: {why}; it takes pip install '{needed(package)}'"
    )


def needed(package: str) -> str:
    """The requirement as this distribution states it, or the bare name in a source tree."""
    from importlib import metadata

    try:
        stated = metadata.requires("toolcall-profiler") or []
    except metadata.PackageNotFoundError:
        stated = []
    for requirement in stated:
        match = re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*([^;]*)", requirement)
        if match and match[1] == package and "extra ==" not in requirement:
            return f"{package}{match[2].strip()}"
    return package
