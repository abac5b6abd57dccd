"""The emulator as a server: its routes and own endpoints (health, journal, stats, metrics), and `main`.

A journal of 100,000 entries takes some tenths of a second to write out, in which nothing else is
answered: fetch it between trials, not during one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable, Collection, Coroutine
from dataclasses import replace
from functools import partial
from typing import IO, Any

import orjson

from profiler.emulator.access import allowed_host, refusal, split_target
from profiler.emulator.http1 import Exchange, HttpReply, Server
from profiler.emulator.journal import Entry, Journal, exposition
from profiler.emulator.mcp_service import McpService
from profiler.emulator.mcp_stdio import serve_stdio
from profiler.emulator.mcp_tools import DEFAULT_MCP, REPLY_FORMS, McpOptions, McpTools
from profiler.emulator.model_service import JSON, ModelService
from profiler.emulator.places import Outstanding, Places
from profiler.emulator.scheduler import Scheduler
from profiler.emulator.tape import Tape
from profiler.emulator.tool_calls import ToolCalls
from profiler.emulator.tool_service import ToolService, error, query_arguments
from profiler.errors import ProfilerError, UsageError
from profiler.process.streams import prepare_streams
from profiler.providers import DIALECTS
from profiler.providers.endpoint import exposed
from profiler.scenarios import Scenario, load_scenario

_TEXT = b"content-type: text/plain; charset=utf-8\r\n"
_METRICS = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"
_SWEEP_SECONDS = 15

STDERR = "-"
"""`--log` without a file."""


class Emulator:
    """One emulator; an application for `http1.Server`. `allowed`: results of `access.allowed_host`."""

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        scheduler: Scheduler,
        journal: Journal | None = None,
        *,
        allowed: Collection[str] = (),
        mcp: McpOptions = DEFAULT_MCP,
    ) -> None:
        self._allowed = frozenset(allowed)
        self._scenario = scenario
        self._seed = seed
        self._journal = journal or Journal()
        self._started_ns = time.monotonic_ns()
        outstanding, places = Outstanding(), Places()
        tape = Tape(scenario, seed)
        models = ModelService(tape, self._journal, outstanding, places)
        calls = ToolCalls(tape, self._journal, outstanding, places, scheduler)
        self._tools = ToolService(calls)
        self._mcp = McpService(calls, mcp)
        # The model APIs answer below any path: servers have them under /v1, /api/paas/v4, /v1beta/openai, ...
        self._apis: dict[tuple[bytes, bytes], Callable[[Exchange], None]] = {
            (b"POST", b"/chat/completions"): partial(models.complete, wire=models.chat),
            (b"POST", b"/responses"): partial(models.complete, wire=models.responses),
            (b"POST", b"/messages"): partial(models.complete, wire=models.messages),
            (b"POST", b"/messages/count_tokens"): models.count_tokens,
            (b"GET", b"/models"): models.list_models,
        }
        self._routes: dict[tuple[bytes, bytes], Callable[[Exchange], None]] = {
            **{(method, b"/v1" + path): answer for (method, path), answer in self._apis.items()},
            (b"GET", b"/healthz"): lambda exchange: exchange.send(HttpReply(200, _TEXT, b"ok\n")),
            (b"HEAD", b"/healthz"): lambda exchange: exchange.send(HttpReply(200, _TEXT, b"ok\n")),
        }
        self._own: dict[tuple[bytes, bytes], Callable[[Exchange], None]] = {
            (b"GET", b"/metrics"): self._metrics,
            (b"GET", b"/emulator/journal"): self._journal_get,
            (b"DELETE", b"/emulator/journal"): self._journal_clear,
            (b"GET", b"/emulator/stats"): self._stats,
        }
        self._paths = {path for _, path in (*self._routes, *self._own)}

    def __call__(self, exchange: Exchange) -> None:
        """Answer one request; `exchange.send` is called now, or later by a timer."""
        method, path = exchange.method, exchange.path
        route = self._routes.get((method, path))
        if route is not None:
            route(exchange)
        elif path.startswith(b"/tools/"):
            self._tools(exchange)
        elif path == b"/mcp":
            self._mcp(exchange)
        elif path.startswith(b"/emulator/") or path == b"/metrics":
            self._ask_own(exchange, None)
        elif not path.startswith(b"/") and (absolute := split_target(path))[0] is not None:
            authority, exchange.path = absolute
            if exchange.path.startswith(b"/emulator/") or exchange.path == b"/metrics":
                self._ask_own(exchange, authority)
            else:
                self(exchange)
        else:
            self._below(exchange, method, path)

    def _ask_own(self, exchange: Exchange, authority: bytes | None) -> None:
        """Answer a request to what shows or changes the emulator's state, unless a stranger asks."""
        refused = refusal(exchange.headers, authority, self._allowed)
        route = self._own.get((exchange.method, exchange.path))
        if refused is not None:
            error(self._journal, exchange, refused.status, refused.words)
        elif route is not None:
            route(exchange)
        else:
            self._below(exchange, exchange.method, exchange.path)

    def _below(self, exchange: Exchange, method: bytes, path: bytes) -> None:
        """Answer a request whose path is none of the usual ones, but may end as one of an API does."""
        known = path in self._paths
        if not path.startswith(b"/emulator/"):
            for (needed, end), answer in self._apis.items():
                if path.endswith(end):
                    known = True
                    if method == needed:
                        answer(exchange)
                        return
        shown = method.decode("latin-1")
        if known:
            error(self._journal, exchange, 405, f"{shown} is not allowed here")
        else:
            error(self._journal, exchange, 404, f"Invalid URL ({shown} {path.decode('latin-1')})")

    def _journal_get(self, exchange: Exchange) -> None:
        query = query_arguments(exchange.query)
        entries = self._journal.entries(trial=query.get("trial"), kind=query.get("kind"))
        body = {"clock": "monotonic_ns", "dropped": self._journal.dropped, "entries": entries}
        exchange.send(HttpReply(200, JSON, orjson.dumps(body)))

    def _journal_clear(self, exchange: Exchange) -> None:
        self._journal.clear()
        exchange.send(HttpReply(200, JSON, b'{"cleared":true}'))

    def _stats(self, exchange: Exchange) -> None:
        stats = {
            "scenario": self._scenario.name,
            "seed": self._seed,
            "uptime_seconds": (time.monotonic_ns() - self._started_ns) / 1e9,
            "cpu_seconds": time.process_time(),
            **self._journal.stats(),
        }
        exchange.send(HttpReply(200, JSON, orjson.dumps(stats)))

    def _metrics(self, exchange: Exchange) -> None:
        exchange.send(HttpReply(200, _METRICS, exposition(self._journal)))


def parser() -> argparse.ArgumentParser:
    """The options of `python -m profiler.emulator`, which `profiler emulate` shares."""
    options = argparse.ArgumentParser(
        prog="profiler emulate", description="Emulate model and tool APIs on one port."
    )
    options.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    options.add_argument(
        "--port", type=int, default=8100, help="port; 0 for a free one (default: %(default)s)"
    )
    options.add_argument("--scenario", default="cities", help="name of a shipped scenario, or a TOML file")
    options.add_argument("--seed", type=int, default=0, help="seed of the tape (default: %(default)s)")
    options.add_argument("--dialect", choices=DIALECTS, help="speak Chat Completions as this server does")
    options.add_argument(
        "--log", nargs="?", const=STDERR, metavar="FILE", help="log refused requests, by default to stderr"
    )
    options.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="answer /emulator/* and /metrics under this host too, beside localhost; may be repeated",
    )
    options.add_argument("--tls-cert", metavar="FILE", help="certificate chain (PEM): serve https")
    options.add_argument("--tls-key", metavar="FILE", help="its private key (PEM)")
    options.add_argument(
        "--mcp-reply",
        choices=REPLY_FORMS,
        default="json",
        help="how MCP calls are answered that want no stream",
    )
    options.add_argument("--mcp-page", type=int, default=100, metavar="N", help="tools that a page lists")
    options.add_argument(
        "--mcp-stdio", action="store_true", help="serve the tools alone, over MCP on standard streams"
    )
    options.add_argument("--journal", metavar="FILE", help="append every entry of the journal to this file")
    options.add_argument("--exit-with-parent", action="store_true", help="leave when standard input ends")
    return options


def main() -> int:
    """Run until SIGINT or SIGTERM; the exit code. Problems are one line on standard error."""
    prepare_streams()
    try:
        return run(parser().parse_args())
    except ProfilerError as error:
        print(f"profiler emulate: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code


def run(options: argparse.Namespace) -> int:
    """Run as the options of `parser` say; the exit code. Raises `UsageError`."""
    scenario = load_scenario(options.scenario)
    if options.dialect is not None:
        scenario = replace(scenario, model=replace(scenario.model, dialect=options.dialect))
    context = tls_context(options.tls_cert, options.tls_key)
    if options.mcp_page < 1:
        raise UsageError("--mcp-page: a page lists at least one tool")
    with contextlib.ExitStack() as files:
        log = None
        if options.log is not None:
            stream: IO[Any] = sys.stderr
            if options.log != STDERR:
                stream = files.enter_context(_opened("--log", options.log))
            log = _line_writer(stream)
        kept = None
        if options.journal is not None:
            kept = _entry_writer(files.enter_context(_opened("--journal", options.journal)))
        journal = Journal(log=log, kept=kept)
        if options.mcp_stdio:
            return _run(serve_stdio(partial(_mcp_tools, options, scenario, journal)))
        return _run(serve(options, scenario, context, journal))


def _opened(flag: str, path: str) -> IO[str]:
    try:
        return open(path, "a", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{flag} {path}: cannot write: {error.strerror}") from error


def _entry_writer(file: IO[str]) -> Callable[[Entry], None]:
    """Writes each entry as a line of JSON, whole, so that several processes may share the file."""
    descriptor, failed = file.fileno(), False

    def write(entry: Entry) -> None:
        nonlocal failed
        try:
            os.write(descriptor, orjson.dumps(entry.as_dict(), option=orjson.OPT_APPEND_NEWLINE))
        except OSError as error:
            if not failed:
                failed = True
                print(f"profiler emulate: --journal: cannot write: {error.strerror}", file=sys.stderr)  # noqa: T201

    return write


def _mcp_options(options: argparse.Namespace) -> McpOptions:
    return McpOptions(options.mcp_reply, options.mcp_page)


def _mcp_tools(
    options: argparse.Namespace, scenario: Scenario, journal: Journal, scheduler: Scheduler
) -> McpTools:
    """The tools where no model is served."""
    calls = ToolCalls(Tape(scenario, options.seed), journal, Outstanding(), Places(), scheduler)
    return McpTools(calls, _mcp_options(options))


def _line_writer(stream: IO[str]) -> Callable[[str], None]:
    """Writes lines with the time in front, each at once."""

    def write(line: str) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        # A full disk or a closed pipe is no reason to serve differently.
        with contextlib.suppress(OSError, ValueError):
            print(now, line, file=stream, flush=True)

    return write


def tls_context(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    """A server context from PEM files; None when neither is given."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UsageError("--tls-cert and --tls-key belong together: give both")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"cannot load the certificate {certificate} with key {key}: {error}") from error
    return context


async def serve(
    options: argparse.Namespace,
    scenario: Scenario,
    context: ssl.SSLContext | None,
    journal: Journal,
) -> int:
    """Listen, say so on standard output in one line, and serve until told to stop."""
    host, port = options.host, options.port
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    scheduler = Scheduler(loop)
    allowed = [allowed_host(name) for name in options.allow_host]
    emulator = Emulator(
        scenario, options.seed, scheduler, journal, allowed=allowed, mcp=_mcp_options(options)
    )
    server = Server(emulator, scheduler, journal.refused)
    try:
        listener = await loop.create_server(server.connection, host, port, ssl=context, backlog=4096)
    except OSError as error:
        # asyncio wraps the system's words in some of its own.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise UsageError(f"cannot listen on {host}:{port}: {reason}") from error
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if options.exit_with_parent:
        # A thread, since standard input may be a file or a terminal, which event loops cannot watch.
        threading.Thread(target=_watch_parent, args=(loop, stop), daemon=True).start()
    bound = listener.sockets[0].getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    print(f"emulator listening on {'https' if context else 'http'}://{shown}:{bound}", flush=True)  # noqa: T201
    warning = exposed("the emulator", host, bound)
    if warning is not None:
        print(warning, file=sys.stderr, flush=True)  # noqa: T201
    # The objects of now stay alive: full collections would only walk over them and hold responses up.
    gc.collect()
    gc.freeze()
    sweeper = asyncio.create_task(_sweep(server))
    await stop.wait()
    sweeper.cancel()
    listener.close()
    server.close()
    await asyncio.sleep(0)
    return 0


async def _sweep(server: Server) -> None:
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        server.sweep()


def _watch_parent(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    with contextlib.suppress(OSError, ValueError):
        while sys.stdin.buffer.read(4096):
            pass
    with contextlib.suppress(RuntimeError):  # the loop is closed already
        loop.call_soon_threadsafe(stop.set)


def _run(main: Coroutine[Any, Any, int]) -> int:
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        pass  # where uvloop does not exist, asyncio serves, slower
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)
