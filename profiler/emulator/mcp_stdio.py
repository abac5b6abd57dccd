"""MCP over standard streams: one message a line, calls in parallel; the journal as a file.

Nothing else may write to standard output: the stream is taken away, and what is printed goes to standard
error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from profiler.emulator import mcp_wire as wire
from profiler.emulator.http1 import MAX_BODY
from profiler.emulator.journal import Entry
from profiler.emulator.limits import Rejected
from profiler.emulator.mcp_tools import OVER_STDIO, McpCall, McpTools, refuse
from profiler.emulator.mcp_wire import Ident, Refusal
from profiler.emulator.scheduler import Scheduler, Timer

_FLUSH_SECONDS, _FLUSH_STEP = 1.0, 0.005
_PIECE = 1 << 16


class StdioService:
    """Answers lines. `write` takes whole lines; `leave` is told to end the process, by a fault."""

    def __init__(
        self,
        tools: McpTools,
        write: Callable[[bytes], None],
        leave: Callable[[], None],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.tools = tools
        self.write = write
        self.leave = leave
        self.clock = clock
        self.running: dict[Ident, _Call] = {}
        self._rest = bytearray()
        self._skips = False  # the rest of a line that is too long

    def feed(self, data: bytes) -> None:
        """Answer the lines that end in `data`; what is left waits for the next piece."""
        *ends, rest = data.split(b"\n")
        for end in ends:
            line = bytes(self._rest) + end if self._rest else end
            self._rest.clear()
            if self._skips:
                self._skips = False
            elif line.strip():
                self.line(line)
        if not self._skips:
            self._rest += rest
        if len(self._rest) > MAX_BODY:
            self._rest.clear()
            self._skips = True
            self._refused(Refusal(413, wire.INVALID_REQUEST, f"A line of more than {MAX_BODY:,} bytes"))

    def line(self, line: bytes) -> None:
        """Answer one message."""
        received_ns = self.clock()
        try:
            message = wire.read_message(line)
            if message is None:
                return
            modern = message.enveloped and message.method != "initialize"
            if not message.is_request:
                cancelled = self.running.get(message.cancels)
                if cancelled is not None:
                    cancelled.end("cancelled")
                return
            if modern:
                wire.check_modern(message, None)
            if message.method != "tools/call":
                self._say(self.tools.result(message, modern=modern))
                return
            call = _Call(self, self.tools.begin(message, received_ns, OVER_STDIO, modern=modern))
            self.running[message.ident] = call
            call.start(message.ident)
        except Refusal as refusal:
            self._refused(refusal)

    def _say(self, body: bytes) -> None:
        self.write(body + b"\n")

    def _refused(self, refusal: Refusal) -> None:
        self.tools.calls.journal.refused(b"stdin", b"-", refusal.status, str(refusal))
        self._say(refusal.body())

    def close(self) -> None:
        """The client has gone: its calls end."""
        for call in list(self.running.values()):
            call.end("disconnected")


class _Call:
    """A call under way."""

    def __init__(self, service: StdioService, call: McpCall) -> None:
        self._service = service
        self._call = call
        self._scheduler: Scheduler = service.tools.calls.scheduler
        self._timers: list[Timer] = []
        self._leave: Callable[[], None] | None = None

    @property
    def entry(self) -> Entry:
        return self._call.entry

    def start(self, ident: Ident) -> None:
        call, entry = self._call, self.entry
        left, running = entry.on_finished, self._service.running

        def ended() -> None:
            if running.get(ident) is self:
                del running[ident]
            if left is not None:
                left()

        entry.on_finished = ended
        if entry.fault is not None:
            self._service.tools.calls.journal.refused(b"stdin", b"-", entry.status, f"fault {entry.fault}")
        if call.fault is not None and call.fault.kind == "mcp_silence":
            entry.due_ns = entry.status = 0
            self._at(entry.received_ns + int(call.fault.seconds * 1e9), partial(self.end, "unanswered"))
            return
        if call.spec is None:
            self.answer(entry.due_ns)
            return
        if call.spec.capacity is None:
            self._progress()
        self._leave = self._service.tools.calls.serve(call.spec, call.spec.name, self)
        if self._leave is not None:  # a call that is refused makes none
            self._progress()

    def _progress(self) -> None:
        for due_ns, body in self._call.progress():
            self._at(due_ns, partial(self._service.write, body + b"\n"))

    def _at(self, due_ns: int, then: Callable[[], None]) -> None:
        if due_ns <= self._service.clock():
            then()
        else:
            self._timers.append(self._scheduler.at(due_ns, then))

    def answer(self, due_ns: int) -> None:
        self._leave = None
        self.entry.due_ns = due_ns = due_ns + self._call.late_ns()
        self._at(due_ns, self._send)

    def _send(self) -> None:
        entry, service, fault = self.entry, self._service, self._call.fault
        kind = None if fault is None else fault.kind
        if kind == "mcp_exit":
            entry.status = 0
            self.end("reset")
            service.leave()
            return
        if kind == "mcp_noise":
            service.write(b"DEBUG an injected fault: this line is no message\n")
        now = service.clock()
        entry.first_byte(now)
        self.end("complete")  # before: whoever has the answer finds the call in the journal's file
        service.write(self._call.answer.body(now - entry.received_ns) + b"\n")

    def refuse(self, rejected: Rejected) -> None:
        self._service.tools.calls.journal.refused(b"stdin", b"-", rejected.status, rejected.reason)
        self._call.fault = None
        if not self._service.tools.refused_form(self._call, rejected):
            refuse(self._call, rejected, as_error=False)
        self.answer(self.entry.due_ns)

    def end(self, outcome: str) -> None:
        """Nothing more comes of it."""
        if self._leave is not None:
            self._leave()
        for timer in self._timers:
            timer.cancel()
        self.entry.finished(self._service.clock(), outcome)


class _Output(asyncio.Protocol):
    """Standard output as a pipe: written without waiting; a client that does not read is not read from."""

    def __init__(self, paused: Callable[[bool], None], lost: Callable[[], None]) -> None:
        self._paused = paused
        self._lost = lost

    def pause_writing(self) -> None:
        self._paused(True)

    def resume_writing(self) -> None:
        self._paused(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()


class _Input(asyncio.Protocol):
    """Standard input as a pipe."""

    def __init__(self, feed: Callable[[bytes], None], ended: Callable[[], None]) -> None:
        self._feed = feed
        self._ended = ended

    def data_received(self, data: bytes) -> None:
        self._feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended()


async def serve_stdio(make: Callable[[Scheduler], McpTools]) -> int:
    """Serve until standard input ends, SIGINT or SIGTERM.

    The exit code is 1 where a fault wanted the end, or where standard output cannot be written.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    code = 0

    def leave() -> None:
        nonlocal code
        code = 1
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    given, taken = _take_streams()
    reading: asyncio.ReadTransport | None = None

    def paused(yes: bool) -> None:
        if reading is not None:
            with contextlib.suppress(RuntimeError):  # it is being closed
                (reading.pause_reading if yes else reading.resume_reading)()

    output = _Output(paused, stop.set)
    writer: asyncio.WriteTransport | None = None
    if _is_pipe(taken):
        writer, _ = await loop.connect_write_pipe(lambda: output, os.fdopen(taken, "wb", 0))
        writer.set_write_buffer_limits(high=MAX_BODY)

    def write(data: bytes) -> None:
        if writer is None:
            try:
                _write_all(taken, data)
            except OSError as error:
                if not stop.is_set():
                    print(f"profiler emulate: standard output: {error.strerror}", file=sys.stderr)  # noqa: T201
                leave()
        elif not writer.is_closing():  # else its reader has gone
            writer.write(data)

    service = StdioService(make(Scheduler(loop)), write, leave)

    def ended() -> None:
        if not stop.is_set():
            service.feed(b"\n")  # the last line may lack its end
        stop.set()

    if _is_pipe(given):
        opened = os.fdopen(given, "rb", 0)
        reading, _ = await loop.connect_read_pipe(lambda: _Input(service.feed, ended), opened)
    else:
        threading.Thread(target=_read_file, args=(given, loop, service.feed, ended), daemon=True).start()
    await stop.wait()
    if reading is not None:
        reading.close()
    service.close()
    if writer is not None:
        await _flush(writer)
        writer.abort()
    await asyncio.sleep(0)
    return code


async def _flush(writer: asyncio.WriteTransport) -> None:
    """Have the client read what is written, if it does so soon."""
    for _ in range(round(_FLUSH_SECONDS / _FLUSH_STEP)):
        if writer.is_closing() or not writer.get_write_buffer_size():
            break
        await asyncio.sleep(_FLUSH_STEP)


def _is_pipe(descriptor: int) -> bool:
    """Whether an event loop can wait for it: files and devices are read in a thread, and written at once."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _take_streams() -> tuple[int, int]:
    """Descriptors of standard input and output, which from now on nobody else has."""
    sys.stdout.flush()
    given, taken = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return given, taken


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _read_file(
    descriptor: int, loop: asyncio.AbstractEventLoop, feed: Callable[[bytes], None], ended: Callable[[], None]
) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed already
        while data := os.read(descriptor, _PIECE):
            loop.call_soon_threadsafe(feed, data)
        loop.call_soon_threadsafe(ended)
