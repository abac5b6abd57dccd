"""A server on the SDK's own server, of either major: `search` takes a while, and each span is written down.

python mcp_span_server.py FILE SECONDS [PORT]      (without a port: on the standard streams)
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

try:
    from mcp.server import MCPServer as Server  # mcp 2
except ImportError:
    from mcp.server.fastmcp import FastMCP as Server  # type: ignore[no-redef, import-not-found]

SPANS, SECONDS = Path(sys.argv[1]), float(sys.argv[2])
PORT = int(sys.argv[3]) if len(sys.argv) > 3 else 0

server: Any = Server("span-server")


def note(*span: int) -> None:
    with SPANS.open("a") as file:
        file.write(json.dumps(span) + "\n")


@server.tool()
async def search(query: str = "") -> str:
    """Search."""
    began_ns = time.monotonic_ns()
    await asyncio.sleep(SECONDS)
    note(began_ns, time.monotonic_ns())
    return "found"


if not PORT:
    server.run(transport="stdio")
else:
    import uvicorn

    uvicorn.run(server.streamable_http_app(), host="127.0.0.1", port=PORT, log_level="error")
