"""The official SDK's messages over the standard streams of a process that we have started.

In place of the SDK's own `stdio_client`: that one waits until asyncio has noticed the end of its process,
which it does not beside gevent once that has started a process too. Every session took ten seconds to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any

from profiler.mcp.child import Child, child_environment

READ_BYTES = 262_144
ERROR_BYTES = 4096
END_SECONDS = 2.0
"""How long a server may take to end once its standard input is closed, and then after SIGTERM."""

_POLL_SECONDS = 0.01


class Pipes:
    """A server's process as the SDK's two streams, `read` and `write`; `said` is the end of its errors."""

    def __init__(self, command: Sequence[str]) -> None:
        anyio: Any = importlib.import_module("anyio")
        self._loop = asyncio.get_running_loop()
        self._types: Any = importlib.import_module("mcp.types")
        self._message: Any = importlib.import_module("mcp.shared.message").SessionMessage
        self._closed_errors = (anyio.ClosedResourceError, anyio.BrokenResourceError)
        self._child = Child(command, child_environment())
        # Without a bound: what reads the pipe cannot wait, and a session takes its messages at once.
        self._heard, self.read = anyio.create_memory_object_stream(float("inf"))
        self.write, self._to_send = anyio.create_memory_object_stream(0)
        self._parts: deque[bytes] = deque()
        self.said = b""
        assert self._child.stdout is not None
        assert self._child.stderr is not None
        self._loop.add_reader(self._child.stdout, self._readable)
        self._loop.add_reader(self._child.stderr, self._complains)
        self._writer = asyncio.ensure_future(self._write())

    def _readable(self) -> None:
        assert self._child.stdout is not None
        try:
            data = os.read(self._child.stdout, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._over()
            return
        *whole, rest = data.split(b"\n")
        for line in whole:
            self._parts.append(line)
            self._hear(b"".join(self._parts))
            self._parts.clear()
        if rest:
            self._parts.append(rest)

    def _hear(self, line: bytes) -> None:
        adapter = getattr(self._types, "jsonrpc_message_adapter", None)  # since 2.0
        try:
            if adapter is None:
                message = self._types.JSONRPCMessage.model_validate_json(line)
            else:
                message = adapter.validate_json(line, by_name=False)
        except ValueError as error:
            heard: Any = error
        else:
            heard = self._message(message)
        with contextlib.suppress(*self._closed_errors):
            self._heard.send_nowait(heard)

    def _complains(self) -> None:
        assert self._child.stderr is not None
        try:
            data = os.read(self._child.stderr, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.said = (self.said + data)[-ERROR_BYTES:]
        if not data:
            self._loop.remove_reader(self._child.stderr)
            self._child.close_stderr()

    def _over(self) -> None:
        """It says no more: the session is over."""
        if self._child.stdout is not None:
            self._loop.remove_reader(self._child.stdout)
            self._child.close_stdout()
        if self._child.stderr is not None:
            self._complains()  # what it said at its end, before anybody asks
        self._heard.close()

    async def _write(self) -> None:
        left = {"exclude_unset" if hasattr(self._types, "jsonrpc_message_adapter") else "exclude_none": True}
        try:
            async with self._to_send:
                async for one in self._to_send:
                    await self._put(one.message.model_dump_json(by_alias=True, **left).encode() + b"\n")
        except OSError:  # it reads no more
            self._over()

    async def _put(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            descriptor = self._child.stdin
            if descriptor is None:
                raise BrokenPipeError
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:
                free = asyncio.Event()
                self._loop.add_writer(descriptor, free.set)
                try:
                    await free.wait()
                finally:
                    self._loop.remove_writer(descriptor)

    async def _exited(self) -> bool:
        until = self._loop.time() + END_SECONDS
        while not (gone := self._child.is_gone()) and self._loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        return gone

    async def end(self) -> None:
        """Close its standard input, then be less and less polite. Whatever it has started ends with it."""
        self._writer.cancel()
        await asyncio.wait((self._writer,))
        try:
            self._child.close_stdin()
            if not await self._exited():
                self._child.send_signal(signal.SIGTERM)
                await self._exited()
        finally:
            self._child.send_signal(signal.SIGKILL)
            self._over()
            if self._child.stderr is not None:
                self._loop.remove_reader(self._child.stderr)
                self._child.close_stderr()
        await self._exited()


@contextlib.asynccontextmanager
async def pipes(command: Sequence[str]) -> AsyncIterator[Pipes]:
    """A server's process, which ends with it. Raises `OSError`, `ValueError` where it cannot be started."""
    opened = Pipes(command)
    try:
        yield opened
    finally:
        await opened.end()
