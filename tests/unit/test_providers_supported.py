"""Versions of the SDKs that cannot be watched are named, with what it takes instead."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any

import httpx
import pytest

from profiler import providers
from profiler.errors import UsageError
from profiler.providers import needed
from profiler.providers.anthropic_messages import AnthropicMessages
from profiler.providers.openai_chat import OpenAIChat
from profiler.watch.profiler import Profiler


def old_client(sdk: str) -> Any:
    """A client as the SDK made them before it went over to httpx2."""
    kind = type("AsyncClient", (), {"__module__": f"{sdk}._client", "_client": httpx.AsyncClient()})
    return kind()


@pytest.mark.parametrize(
    ("sdk", "use"),
    [
        ("openai", OpenAIChat),
        ("anthropic", AnthropicMessages),
        ("openai", Profiler([]).instrument),
        ("anthropic", Profiler([]).instrument),
    ],
)
def test_client_that_speaks_httpx_is_refused_with_what_it_takes(sdk: str, use: Any) -> None:
    with pytest.raises(UsageError) as caught:
        use(old_client(sdk))
    assert str(caught.value) == (
        f"{sdk} {version(sdk)} cannot be profiled: its clients are httpx's, not httpx2's; "
        f"it takes pip install '{needed(sdk)}'"
    )
    assert needed(sdk).startswith(f"{sdk}<") or needed(sdk).startswith(f"{sdk}>")


@pytest.mark.parametrize(("provider", "sdk"), [("openai", "openai"), ("anthropic", "anthropic")])
def test_sdk_that_cannot_be_imported_is_named(
    provider: str, sdk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = {"openai": "openai_chat", "anthropic": "anthropic_messages"}[provider]
    monkeypatch.delitem(sys.modules, f"profiler.providers.{home}")
    monkeypatch.setitem(sys.modules, sdk, None)
    with pytest.raises(UsageError, match=f"^{sdk} .* cannot be profiled: .*import.*pip install '{sdk}"):
        providers.make_provider(provider, base_url="http://127.0.0.1:1")
