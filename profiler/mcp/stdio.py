"""Lean sessions with MCP servers that are processes of ours, on their standard streams.

Descriptors are read and written here as the event loop says that they are ready: a transport of asyncio's
does not tell when something has been written.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import deque
from collections.abc import Mapping

from profiler.errors import ToolServerError
from profiler.mcp import wire
from profiler.mcp.child import Child, child_environment, last_lines
from profiler.mcp.lean import Exchange, LeanSession
from profiler.mcp.servers import ServerSpec
from profiler.providers.connections import MOST_BYTES
from profiler.records import Clock

READ_BYTES = 262_144
STDERR_BYTES = 4096
"""Bytes of the end of its standard error that are kept."""

END_SECONDS = 2.0
"""How long a server may take to end once its standard input is closed, and then after SIGTERM."""

WRITE_SECONDS = 30.0
"""How long a call that has a time limit waits at most until the server has taken its request."""

MOST_WAITING = 1000
"""Messages that wait to be written; answers to what a server asks are left out from then on."""

_POLL_SECONDS = 0.01
_ID = re.compile(rb'"id"\s*:\s*"?(\d+)')


class _Call:
    """A request in the table of those that wait; the future is done when `exchange` says how it ended."""

    __slots__ = ("body", "exchange", "future", "seconds", "timer")

    def __init__(self, exchange: Exchange, body: bytes, seconds: float | None) -> None:
        self.exchange = exchange
        self.body = body
        self.seconds = seconds
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.timer: asyncio.TimerHandle | None = None

    def done(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if not self.future.done():
            self.future.set_result(None)


class _Process:
    """The running server: its pipes, what waits to be written, and what waits to be answered."""

    def __init__(self, spec: ServerSpec, clock: Clock) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self.child = _started(spec)
        self.calls: dict[int, _Call] = {}
        self.noise = 0
        self.is_over = False
        self._tokens: dict[object, Exchange] = {}
        self._waiting: deque[tuple[bytes, _Call | None]] = deque()
        self._written = 0
        self._line: list[bytes] = []
        self._line_bytes = 0
        self._said = b""
        assert self.child.stdout is not None
        assert self.child.stderr is not None
        assert self.child.stdin is not None
        self._loop.add_reader(self.child.stdin, self._reads_no_more)  # it is ready once nobody can read
        self._loop.add_reader(self.child.stdout, self._readable)
        self._loop.add_reader(self.child.stderr, self._complains)

    # Writing.

    def send(self, call: _Call) -> None:
        exchange = call.exchange
        self.calls[exchange.number] = call
        if isinstance(exchange.token, str | int):
            self._tokens[exchange.token] = exchange
        self._write(call.body, call)
        if call.seconds is not None and exchange.posted_ns is None and not call.future.done():
            # A call's own time counts from its being written, which must come some time, too.
            call.timer = self._loop.call_later(max(WRITE_SECONDS, call.seconds), self._not_taken, call)

    def say(self, message: wire.Message) -> None:
        """A message that no answer is expected to."""
        self._write(wire.encoded(message), None)

    def _write(self, body: bytes, call: _Call | None) -> None:
        if self.child.stdin is None or (call is None and len(self._waiting) >= MOST_WAITING):
            return
        self._waiting.append((body + b"\n", call))
        if len(self._waiting) == 1:
            self._flush()

    def _flush(self) -> None:
        waiting = self._waiting
        while waiting:
            body, call = waiting[0]
            assert self.child.stdin is not None
            now_ns = self._clock()  # before it: the server may read, and answer, before we run again
            try:
                count = os.write(self.child.stdin, memoryview(body)[self._written :])
            except BlockingIOError:
                count = 0
            except OSError:
                self._reads_no_more()
                return
            self._written += count
            if self._written < len(body):
                self._loop.add_writer(self.child.stdin, self._flush)
                return
            self._written = 0
            waiting.popleft()
            if call is not None:
                self._posted(call, now_ns)
        assert self.child.stdin is not None
        self._loop.remove_writer(self.child.stdin)

    def _reads_no_more(self) -> None:
        """What it was not sent yet is lost; what it has read it may still answer, for a moment."""
        lost = [call for _, call in self._waiting if call is not None]
        self._close_stdin()
        words = "it closed its standard input"
        for call in lost:
            call.exchange.fail("session_lost", self.ending(words))
            call.done()
        self._loop.call_later(END_SECONDS, self._over, words)

    def _posted(self, call: _Call, now_ns: int) -> None:
        call.exchange.posted_ns = now_ns
        if call.seconds is not None and not call.future.done():
            if call.timer is not None:
                call.timer.cancel()
            call.timer = self._loop.call_later(call.seconds, self._timed_out, call)

    def _not_taken(self, call: _Call) -> None:
        call.exchange.fail("timeout", f"it did not read its standard input for {WRITE_SECONDS:g} s")
        call.done()

    def _timed_out(self, call: _Call) -> None:
        noise = f" ({self.noise} lines on its standard output were no messages)" if self.noise else ""
        call.exchange.fail("timeout", f"no answer within {call.seconds:g} s{noise}")
        call.done()

    def forget(self, call: _Call) -> bool:
        """Nobody waits for its answer any more. Whether the server has its request, or will have."""
        self.calls.pop(call.exchange.number, None)
        if isinstance(call.exchange.token, str | int):
            self._tokens.pop(call.exchange.token, None)
        if call.timer is not None:
            call.timer.cancel()
        for index, (_, other) in enumerate(self._waiting):
            if other is call:
                begun = index == 0 and self._written > 0
                if not begun:
                    del self._waiting[index]
                return begun
        return call.exchange.posted_ns is not None

    # Reading.

    def _readable(self) -> None:
        assert self.child.stdout is not None
        try:
            data = os.read(self.child.stdout, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._over("it closed its standard output")
            return
        now_ns = self._clock()
        lines = data.split(b"\n")
        if len(lines) == 1:
            self._line.append(data)
            self._line_bytes += len(data)
            if self._line_bytes > MOST_BYTES:
                self._too_long()
            return
        if self._line:
            lines[0] = b"".join((*self._line, lines[0]))
        self._line = [lines.pop()]
        self._line_bytes = len(self._line[0])
        for line in lines:
            if line and not line.isspace():
                self._take(line, now_ns)

    def _take(self, line: bytes, now_ns: int) -> None:
        try:
            value = wire.decoded(line)
        except ValueError:
            self.noise += 1
            return
        found = wire.messages(value)
        if not found:
            self.noise += 1
        for message in found:
            if wire.is_asking(message):
                self._asked(message)
                continue
            number = message.get("id")
            if isinstance(number, str) and number.isdecimal() and len(number) < 19:
                number = int(number)
            call = self.calls.get(number) if type(number) is int else None
            if call is not None and wire.answers(message, call.exchange.number) and not call.future.done():
                call.exchange.message = message
                call.exchange.answered_ns = now_ns
                call.done()
            elif wire.answers_nobody(message) and len(self.calls) == 1:
                (call,) = self.calls.values()
                if not call.future.done():
                    call.exchange.message, call.exchange.answered_ns = message, now_ns
                    call.done()
            elif "jsonrpc" not in message or wire.answers_nobody(message):
                self.noise += 1

    def _asked(self, message: wire.Message) -> None:
        if message["method"] == wire.PROGRESS:
            params = message.get("params")
            token = params.get("progressToken") if isinstance(params, dict) else None
            if isinstance(token, str | int):
                exchange = self._tokens.get(token)
                if exchange is not None:
                    exchange.progress += 1
        reply = wire.reply_to(message)
        if reply is not None:
            self.say(reply)

    def _too_long(self) -> None:
        """A line that does not end: what follows in the pipe cannot be told from it, so the process ends."""
        whole = b"".join(self._line)
        found = _ID.search(whole[:300]) or _ID.search(whole[-300:])
        culprit = self.calls.get(int(found[1])) if found is not None else None
        if culprit is None and len(self.calls) == 1:
            (culprit,) = self.calls.values()
        words = f"its answer is longer than {MOST_BYTES // 2**20} MiB, and was not read on"
        if culprit is not None:
            culprit.exchange.fail(wire.TOO_LARGE, words)
            culprit.done()
        self._line, self._line_bytes = [], 0
        self._over("a message of it was too long")

    def _complains(self) -> None:
        assert self.child.stderr is not None
        try:
            data = os.read(self.child.stderr, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._said = (self._said + data)[-STDERR_BYTES:]
            return
        self._close_stderr()

    # The end.

    def last_words(self) -> str:
        """The last lines of its standard error."""
        return last_lines(self._said.decode("utf-8", "replace"))

    def ending(self, how: str) -> str:
        """In words, how it ended."""
        code = self.child.exit_code if self.child.is_gone() else None
        if code is None:
            ended = how
        elif code < 0:
            ended = f"its process was ended by {_signal_name(-code)}"
        else:
            ended = f"its process ended with exit code {code}"
        said = self.last_words()
        return f"{ended}{said and ': '}{said}"

    def _over(self, how: str) -> None:
        """Nothing comes any more: what is in flight is lost."""
        if self.is_over:
            return
        self.is_over = True
        if self.child.stderr is not None:
            self._complains()
        words = self.ending(how)
        for call in list(self.calls.values()):
            if call.exchange.error_type is None and call.exchange.message is None:
                call.exchange.fail("session_lost", words)
            call.done()
        self._close_stdin()
        self._close_stdout()

    def _close_stdin(self) -> None:
        self._waiting.clear()
        if self.child.stdin is not None:
            self._loop.remove_writer(self.child.stdin)
            self._loop.remove_reader(self.child.stdin)
            self.child.close_stdin()

    def _close_stdout(self) -> None:
        if self.child.stdout is not None:
            self._loop.remove_reader(self.child.stdout)
            self.child.close_stdout()

    def _close_stderr(self) -> None:
        if self.child.stderr is not None:
            self._loop.remove_reader(self.child.stderr)
            self.child.close_stderr()

    async def exited(self, seconds: float) -> bool:
        """Wait for its end; whether it came."""
        until = self._loop.time() + seconds
        while not self.child.is_gone():
            if self._loop.time() >= until:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    async def end(self) -> None:
        """Close its standard input, then be less and less polite. Whatever it has started ends with it."""
        try:
            self._close_stdin()
            if not await self.exited(END_SECONDS):
                self.child.send_signal(signal.SIGTERM)
                await self.exited(END_SECONDS)
        finally:
            self.child.send_signal(signal.SIGKILL)
            self._over("it was ended")
            self._close_stderr()
        await self.exited(END_SECONDS)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _started(spec: ServerSpec) -> Child:
    """Raises `ToolServerError`."""
    try:
        return Child(spec.command, child_environment())
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or error
        raise ToolServerError(
            f"MCP server {spec.name} ({spec.shown}): it could not be started: {words}", server=spec.name
        ) from error


class StdioSession(LeanSession):
    """A session with a process, which ends with it, and is started anew where it has ended by itself."""

    transport = "stdio"

    def __init__(self, spec: ServerSpec, timeout: float, clock: Clock) -> None:
        super().__init__(spec, timeout, clock)
        self._process: _Process | None = None

    @property
    def noise(self) -> int:
        """Lines on its standard output that were no messages."""
        return 0 if self._process is None else self._process.noise

    async def _start(self) -> None:
        await self._end()
        self._process = _Process(self.spec, self.clock)

    def _is_there(self) -> bool:
        process = self._process
        return process is not None and not process.is_over and process.child.stdin is not None

    async def _revived(self) -> None:
        """Some end when the first message is not `initialize`."""
        if not self._is_there():
            await self._start()

    async def _give_up(self) -> None:
        await self._end()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await process.end()

    async def _exchange(
        self,
        exchange: Exchange,
        body: bytes,
        method: str,
        timeout: float | None,
        tool: str | None = None,
        more_headers: Mapping[str, str] | None = None,
    ) -> None:
        process = self._process
        if process is None or not self._is_there():
            how = "it has ended"
            exchange.fail("session_lost", how if process is None else process.ending(how))
            return
        call = _Call(exchange, body, timeout)
        process.send(call)
        cancelled = None
        try:
            await call.future
            cancelled = "timeout" if exchange.error_type == "timeout" else None
        except asyncio.CancelledError:
            cancelled = "cancelled"
            raise
        finally:
            is_there = process.forget(call)
            if cancelled is not None and is_there and method == "tools/call":
                params = {"requestId": exchange.number, "reason": cancelled}
                process.say(wire.notification(wire.CANCELLED, params))
        if exchange.error_type == "session_lost" and method != "tools/call":
            await process.exited(1.0)  # its exit code says more
            exchange.words = process.ending("it closed its standard output")

    async def _notify(self, message: wire.Message) -> None:
        if self._process is not None:
            self._process.say(message)
