"""`profiler proxy` while it runs: it listens, says where, and serves until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import ssl
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from profiler import metrics
from profiler.errors import UsageError
from profiler.metrics import Metric
from profiler.providers.endpoint import exposed, scrape_host
from profiler.proxy.forward import Answer
from profiler.proxy.observing import Watching
from profiler.proxy.routes import Routes, Upstream
from profiler.proxy.seen import Observer
from profiler.proxy.server import Own, ProxyServer
from profiler.proxy.upstream import Pool

DRAIN_SECONDS = 5.0
"""How long what is being forwarded may go on after the first signal; a second one cuts it."""

MOST_FILES = 65_536

_TICK_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What is served. `allowed`: results of `access.allowed_host`. `metrics` is called in a thread."""

    routes: Routes
    observer: Observer | None = None
    host: str = "127.0.0.1"
    port: int = 0
    allowed: Sequence[str] = ()
    tls: ssl.SSLContext | None = None
    metrics: Callable[[ProxyServer], bytes] | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """How it ended: the signal that ended it, and the server, for its counts."""

    signal: signal.Signals | None
    server: ProxyServer


async def serve(
    serving: Serving, announce: Callable[[str], None], stop: asyncio.Event | None = None
) -> Served:
    """Serve until a signal, or until `stop` is set; `announce` is told the URL. Raises `UsageError`."""
    loop = asyncio.get_running_loop()
    watching = Watching(serving.observer, loop)
    server = ProxyServer(
        serving.routes, watching, Pool(loop, serving.tls), _own(serving, lambda: server), serving.allowed
    )
    host, port = serving.host, serving.port
    try:
        listener = await loop.create_server(server.connection, host, port, backlog=4096)
    except OSError as error:
        # asyncio wraps the system's words in some of its own.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise UsageError(f"cannot listen on {host}:{port}: {reason}") from error
    told: list[signal.Signals] = []
    stopped = stop or asyncio.Event()
    cut = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        (cut if told else stopped).set()
        told.append(number)

    with _handled(loop, on_signal):
        bound = listener.sockets[0].getsockname()[1]
        announce(f"http://{scrape_host(host)}:{bound}")
        warning = exposed("the proxy", host, bound)
        if warning is not None:
            print(f"profiler proxy: {warning}", file=sys.stderr, flush=True)  # noqa: T201
        # The objects of now stay alive: full collections would only walk over them, and hold streams up.
        gc.collect()
        gc.freeze()
        ticking = loop.create_task(_tick(server))
        await stopped.wait()
        listener.close()
        server.stop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_either(server.drained, cut), DRAIN_SECONDS)
        server.cut()
        await asyncio.sleep(0)  # whose connections are lost in the next turn
        await asyncio.sleep(0)
        ticking.cancel()
        watching.flush()
    return Served(told[0] if told else None, server)


def _own(serving: Serving, server: Callable[[], ProxyServer]) -> dict[bytes, Own]:
    def health() -> Answer:
        return Answer(200, b"text/plain; charset=utf-8", b"ok\n")

    own: dict[bytes, Own] = {b"/healthz": health, b"/profiler/healthz": health}
    render = serving.metrics
    if render is not None:

        def shown() -> Answer:
            return Answer(200, b"text/plain; version=0.0.4; charset=utf-8", render(server()))

        own[b"/metrics"] = own[b"/profiler/metrics"] = shown
    return own


async def _either(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _tick(server: ProxyServer) -> None:
    while True:
        await asyncio.sleep(_TICK_SECONDS)
        now = time.monotonic_ns()
        server.sweep(now)
        server.watching.tick(now)


@contextlib.contextmanager
def _handled(loop: asyncio.AbstractEventLoop, handle: Callable[[signal.Signals], None]) -> Any:
    """Have the signals that end a command handled, and those that had handlers before handled so again."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {}
    for number in numbers:
        if signal.getsignal(number) is signal.SIG_IGN:
            continue  # as nohup wants it
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):  # not the main thread
            before[number] = signal.getsignal(number)
            loop.add_signal_handler(number, handle, number)
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
                loop.remove_signal_handler(number)
                signal.signal(number, handler)


def _allow_files() -> None:
    """Let this process have as many connections as the system admits: each agent takes two."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run(main: Coroutine[Any, Any, Served]) -> Served:
    """Run it on uvloop, where there is one."""
    _allow_files()
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        pass
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def how_to_ask(upstream: Upstream, root: str) -> list[tuple[str, str]]:
    """The variables to set so that clients ask the proxy at `root` instead of this upstream."""
    if upstream.kind == "mcp":
        return [("MCP", upstream.base_url(root))]
    names = {"openai": "OPENAI_BASE_URL", "anthropic": "ANTHROPIC_BASE_URL"}
    return [(names[api], upstream.base_url(root, api)) for api in upstream.apis]


def exposition(
    server: ProxyServer,
    requests: Mapping[tuple[str, str], int],
    open_loops: int,
    doubts: Mapping[str, int] = MappingProxyType({}),
) -> bytes:
    """The proxy's own metrics, text format 0.0.4. `requests`: exchanges that ended, by kind and status."""
    watching, pool = server.watching, server.pool
    outcomes = ("complete", "client gone", "upstream gone", "refused", "tunnelled", "not_http")
    samples: dict[Metric, dict[tuple[str, ...], int]] = {
        metrics.PROXY_REQUESTS: {key: requests[key] for key in sorted(requests)},
        metrics.PROXY_EXCHANGES: {(name,): server.counts[name] for name in outcomes},
        metrics.PROXY_IN_FLIGHT: {(): server.in_flight},
        metrics.PROXY_CLIENTS: {(): len(server.connections)},
        metrics.PROXY_UPSTREAM: {(): len(pool.connections)},
        metrics.PROXY_UPSTREAM_MADE: {(): pool.made},
        metrics.PROXY_OPEN_LOOPS: {(): open_loops},
        metrics.PROXY_DOUBTS: {(why.partition(":")[0],): doubts[why] for why in sorted(doubts)},
        metrics.PROXY_UNOBSERVED: {(): watching.dropped},
        metrics.PROXY_DEFECTS: {(): watching.failures},
    }
    lines = []
    for metric in metrics.PROXY_TABLE:
        lines.append(f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n")
        for values, value in samples[metric].items():
            pairs = ",".join(f'{name}="{text}"' for name, text in zip(metric.labels, values, strict=True))
            lines.append(f"{metric.name}{{{pairs}}} {value}\n" if pairs else f"{metric.name} {value}\n")
    return "".join(lines).encode()
