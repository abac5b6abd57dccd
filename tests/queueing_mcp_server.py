"""An MCP server of the tests' own, which shares no code with the emulator and keeps the times of its calls.

It speaks the stateless protocol of 2026-07-28 over HTTP, in 100 lines of aiohttp. `search` takes `--seconds`,
for at most `--capacity` calls at once; what comes above that waits in turn, or is refused (`--refuse 429`,
`--refuse error`: `isError`, `--refuse rpc`: a JSON-RPC error). Every call that was served leaves a line in
`--log`: {"loop": its number, "began": …, "ended": …, "arguments": …}, in nanoseconds of the monotonic clock.

It prints its URL, and ends with its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time

from aiohttp import web

PROTOCOL = "2026-07-28"
TOOLS = [
    {
        "name": "search",
        "description": "Searches.",
        "inputSchema": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
        "annotations": {"readOnlyHint": True},
    },
    {"name": "delete", "description": "Deletes.", "inputSchema": {"type": "object"}},
]


class Server:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.asked = arguments
        self.running = 0
        self.places = asyncio.Semaphore(arguments.capacity)
        self.log = open(arguments.log, "a", buffering=1) if arguments.log else None  # noqa: SIM115

    async def post(self, request: web.Request) -> web.Response:
        message = await request.json()
        method, params = message["method"], message.get("params", {})
        if "id" not in message:
            return web.Response(status=202)
        if method == "server/discover":
            return self.result(message, {"supportedVersions": [PROTOCOL], "capabilities": {"tools": {}}})
        if method == "tools/list":
            return self.result(message, {"tools": TOOLS})
        if method != "tools/call":
            return self.error(message, -32601, f"unknown method {method}", 404)
        if self.asked.refuse and self.running >= self.asked.capacity:
            return self.refusal(message)
        self.running += 1
        try:
            async with self.places:
                began = time.monotonic_ns()
                await asyncio.sleep(self.asked.seconds)
                ended = time.monotonic_ns()
        finally:
            self.running -= 1
        if self.log is not None:
            number = next((v for k, v in params.get("_meta", {}).items() if k.endswith("/loop")), None)
            arguments = params.get("arguments", {})
            line = {"loop": number, "began": began, "ended": ended, "arguments": arguments}
            self.log.write(json.dumps(line) + "\n")
        return self.result(message, {"content": [{"type": "text", "text": "found"}]})

    def refusal(self, message: dict) -> web.Response:
        if self.asked.refuse == "429":
            return web.Response(status=429, text="too many", headers={"retry-after": "0"})
        if self.asked.refuse == "rpc":
            return self.error(message, -32000, "too many calls at once", 200)
        text = [{"type": "text", "text": "Error: too many calls at once"}]
        return self.result(message, {"content": text, "isError": True})

    def result(self, message: dict, result: dict) -> web.Response:
        about = {"io.modelcontextprotocol/serverInfo": {"name": "own", "version": "1"}}
        whole = {"resultType": "complete", "_meta": about, **result}
        return web.json_response({"jsonrpc": "2.0", "id": message["id"], "result": whole})

    def error(self, message: dict, code: int, text: str, status: int) -> web.Response:
        error = {"code": code, "message": text}
        return web.json_response({"jsonrpc": "2.0", "id": message["id"], "error": error}, status=status)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--capacity", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--refuse", choices=("429", "error", "rpc"))
    parser.add_argument("--log")
    parser.add_argument("--life", type=float, default=300.0)
    server = Server(parser.parse_args())
    app = web.Application()
    app.router.add_post("/mcp", server.post)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    sys.stdout.write(f"http://127.0.0.1:{port}/mcp\n")
    sys.stdout.flush()
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.wait([ended], timeout=server.asked.life)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
