"""Opens sessions with MCP servers."""

from __future__ import annotations

import time
from typing import Literal

from profiler.mcp.lean import LeanSession
from profiler.mcp.servers import ServerSpec
from profiler.mcp.session import Session
from profiler.records import Clock

TIMEOUT_SECONDS = 30.0


async def connect(
    spec: ServerSpec,
    *,
    client: Literal["lean", "sdk"] = "lean",
    timeout: float = TIMEOUT_SECONDS,
    clock: Clock = time.monotonic_ns,
) -> Session:
    """A session that is open; a command is started. `timeout` in seconds, for each step of the opening.

    `sdk`: on the official SDK. Raises `ToolServerError`, and `UsageError` where that is not installed.
    """
    if client == "sdk":
        from profiler.mcp.sdk import connect_sdk

        return await connect_sdk(spec, timeout, clock)
    if spec.url is not None:
        from profiler.mcp.http import HttpSession

        return await _opened(HttpSession(spec, timeout, clock))
    from profiler.mcp.stdio import StdioSession

    return await _opened(StdioSession(spec, timeout, clock))


async def _opened(session: LeanSession) -> Session:
    try:
        await session.open()
    except BaseException:
        await session.close()
        raise
    return session
