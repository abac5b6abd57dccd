"""Load testing and latency profiling for agents that call tools in parallel.

    from profiler import ToolLoop, tool, Sequential, Gathered, SemaphoreLimited
    from profiler.providers import OpenAIChat, AnthropicMessages
    from profiler.examples import get_weather, get_population

Importing this package imports nothing heavy; names are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profiler.errors import ProfilerError, ProviderError, UsageError
    from profiler.instrument import Profiler, ProfilerMiddleware
    from profiler.limits.gate import Gate
    from profiler.loop.loop import LoopResult, ToolLoop
    from profiler.loop.tools import Tool, tool
    from profiler.records import LoopRecord, ModelCall, RoundRecord, ToolCall
    from profiler.strategies import Gathered, SemaphoreLimited, Sequential, Strategy

_MODULES = {
    "errors": ("ProfilerError", "ProviderError", "UsageError"),
    "instrument": ("Profiler", "ProfilerMiddleware"),
    "limits.gate": ("Gate",),
    "loop.loop": ("LoopResult", "ToolLoop"),
    "loop.tools": ("Tool", "tool"),
    "records": ("LoopRecord", "ModelCall", "RoundRecord", "ToolCall"),
    "strategies": ("Gathered", "SemaphoreLimited", "Sequential", "Strategy"),
}

__all__ = [
    "Gate",
    "Gathered",
    "LoopRecord",
    "LoopResult",
    "ModelCall",
    "Profiler",
    "ProfilerError",
    "ProfilerMiddleware",
    "ProviderError",
    "RoundRecord",
    "SemaphoreLimited",
    "Sequential",
    "Strategy",
    "Tool",
    "ToolCall",
    "ToolLoop",
    "UsageError",
    "tool",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
