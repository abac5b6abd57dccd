"""The emulator as a process: arguments, listening, and leaving."""

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
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from profiler.emulator.app import Emulator
from profiler.emulator.http1 import Server
from profiler.emulator.scheduler import Scheduler
from profiler.errors import ProfilerError, UsageError
from profiler.providers.endpoint import exposed
from profiler.scenarios.schema import Scenario, load_scenario

_SWEEP_SECONDS = 15


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
    options.add_argument("--tls-cert", metavar="FILE", help="certificate chain (PEM): serve https")
    options.add_argument("--tls-key", metavar="FILE", help="its private key (PEM)")
    options.add_argument("--exit-with-parent", action="store_true", help="leave when standard input ends")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM; the exit code. Problems are one line on standard error."""
    try:
        return run(parser().parse_args(argv))
    except ProfilerError as error:
        print(f"profiler emulate: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code


def run(options: argparse.Namespace) -> int:
    """Run as the options of `parser` say; the exit code. Raises `UsageError`."""
    scenario = load_scenario(options.scenario)
    context = tls_context(options.tls_cert, options.tls_key)
    return _run(serve(scenario, options.seed, options.host, options.port, context, options.exit_with_parent))


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
    scenario: Scenario,
    seed: int,
    host: str,
    port: int,
    context: ssl.SSLContext | None,
    exit_with_parent: bool,
) -> int:
    """Listen, say so on standard output in one line, and serve until told to stop."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    scheduler = Scheduler(loop)
    server = Server(Emulator(scenario, seed, scheduler), scheduler)
    try:
        listener = await loop.create_server(server.connection, host, port, ssl=context, backlog=4096)
    except OSError as error:
        # asyncio wraps the system's own words in some of its own.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise UsageError(f"cannot listen on {host}:{port}: {reason}") from error
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if exit_with_parent:
        # A thread, since standard input may be a file or a terminal, which event loops cannot watch.
        threading.Thread(target=_watch_parent, args=(loop, stop), daemon=True).start()
    bound = listener.sockets[0].getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    print(f"emulator listening on {'https' if context else 'http'}://{shown}:{bound}", flush=True)  # noqa: T201
    warning = exposed("the emulator", host, bound)
    if warning is not None:
        print(warning, file=sys.stderr, flush=True)  # noqa: T201
    # What is alive now stays: full collections would only walk it and hold responses up.
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
