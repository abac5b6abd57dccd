"""Sessions on the official SDK (`--mcp-client sdk`)."""

from __future__ import annotations

from profiler.errors import UsageError
from profiler.mcp.servers import ServerSpec
from profiler.mcp.session import Session
from profiler.records import Clock


async def connect_sdk(spec: ServerSpec, timeout: float, clock: Clock) -> Session:
    """Raises `ToolServerError`, and `UsageError` where the SDK is not installed."""
    raise UsageError("--mcp-client sdk needs the package mcp: pip install 'toolcall-profiler[mcp]'")
