"""Load tests: agents under Locust, and experiments that compare strategies.

    from profiler.load import AgentUser, AgentContext

Names are loaded when first used: Locust and gevent are imported with `AgentUser`, not before.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profiler.load.context import AgentContext
    from profiler.load.locust.users import AgentUser

__all__ = ["AgentContext", "AgentUser"]

_HOME = {"AgentContext": "context", "AgentUser": "locust.users"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
