"""`profiler proxy`: forwards what agents ask models and tools for, and records their loops."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from profiler.commands import add_command
from profiler.load.declared import PORT, TEXT

if TYPE_CHECKING:
    from profiler.commands import Commands
    from profiler.proxy.service import Served

_HOW = """\
where the agent runs, in any language (what to set is printed at the start, too):
  OPENAI_BASE_URL=http://127.0.0.1:8300/v1     ANTHROPIC_BASE_URL=http://127.0.0.1:8300
  HTTPS_PROXY, HTTP_PROXY and NO_PROXY here say by which proxy upstreams are asked, where they are behind one.

where a request goes:
  --upstream URL            everything, where it is the only one; else what is its API's: …/messages and
                            requests with the header anthropic-version are Anthropic's, the rest OpenAI's
                            (which API a URL has is told by its host, or said: --upstream anthropic=URL)
  --upstream /PATH=URL      what is below that path of the proxy, which is taken off
  --mcp-upstream URL        /mcp, and what is below it; --mcp-upstream /PATH=URL the same elsewhere
  The path of a URL stays in front of what is asked for; a version at its end (/v1) is not said twice.
  /metrics and /healthz are the proxy's own (also as /profiler/metrics and /profiler/healthz)."""


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "proxy",
        "forward an agent's requests to models and MCP servers, and record its loops",
        proxy,
        "--upstream https://api.openai.com",
        "--upstream http://127.0.0.1:8100   # without a key: `profiler emulate` listens there",
        "--upstream https://api.openai.com --upstream https://api.anthropic.com --port 8300",
        "--upstream /azure=https://NAME.openai.azure.com/openai --mcp-upstream https://tools.example/mcp",
    )
    parser.epilog = f"{_HOW}\n\n{parser.epilog}"
    parser.add_argument(
        "--upstream",
        type=TEXT.argument,
        action="append",
        default=[],
        metavar="URL",
        help="a model server, as in https://api.openai.com; may be repeated",
    )
    parser.add_argument(
        "--mcp-upstream",
        type=TEXT.argument,
        action="append",
        default=[],
        metavar="URL",
        help="an MCP server (streamable HTTP), whose calls are then exact; may be repeated",
    )
    parser.add_argument(
        "--host", type=TEXT.argument, default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--port", type=PORT.argument, default=8300, help="port, 0 for a free one (default: 8300)"
    )
    parser.add_argument(
        "--allow-host",
        type=TEXT.argument,
        action="append",
        default=[],
        metavar="NAME",
        help="answer under this host name too, beside localhost and addresses; may be repeated",
    )
    parser.add_argument(
        "--upstream-ca",
        type=TEXT.argument,
        metavar="FILE",
        help="certificates (PEM) to trust beside the system's",
    )
    parser.add_argument(
        "--keep",
        type=TEXT.argument,
        default="7d",
        metavar="LIMIT",
        help="remove its own oldest runs beyond an age, a size or both: 7d, 2GB or 7d,2GB (default: 7d)",
    )
    parser.add_argument(
        "--out",
        type=TEXT.argument,
        default="runs",
        metavar="DIR",
        help="the folder of the run directories (default: runs)",
    )


def proxy(arguments: argparse.Namespace) -> int:
    from profiler.emulator.access import allowed_host
    from profiler.exporters.prometheus import Exposition, PrometheusSink
    from profiler.providers.endpoint import proxy_of
    from profiler.proxy import service
    from profiler.proxy.loops import LoopObserver
    from profiler.proxy.routes import routes
    from profiler.proxy.server import ProxyServer, tls_context
    from profiler.proxy.through import behind_proxies
    from profiler.recordings.drafts import Tally
    from profiler.recordings.keeping import KeptRuns, check_numbers, parse_keep
    from profiler.records import LoopRecord
    from profiler.rundir import Anchor

    found = behind_proxies(routes(arguments.upstream, arguments.mcp_upstream), proxy_of)
    secure = any(one.scheme == "https" for one in found.upstreams)
    tls = tls_context(arguments.upstream_ca) if secure or arguments.upstream_ca else None
    keep = parse_keep(arguments.keep)
    runs = KeptRuns(arguments.out, "proxy", keep, "requests of agents", Anchor.now(), check=check_numbers)
    shown = PrometheusSink()
    exposition = Exposition(shown)

    def sink(record: LoopRecord, tally: Tally) -> None:
        runs(record, tally)
        shown(record)

    observer = LoopObserver(
        sink,
        mcp=bool(arguments.mcp_upstream),
        read=runs.count_read,
        skip=runs.count_skipped,
        note=runs.note,
    )

    def metrics(server: ProxyServer) -> bytes:
        own = service.exposition(server, observer.requests, observer.open_loops, observer.doubts)
        return exposition.render() + own

    def announce(root: str) -> None:
        print(f"proxy listening on {root}")
        for upstream in found.upstreams:
            for name, url in service.how_to_ask(upstream, root):
                print(f"  {name}={url}" if name != "MCP" else f"  MCP: {url}", f" to {upstream.url}")
        for upstream in found.upstreams:
            if upstream.through is not None:
                variable = f"{upstream.scheme.upper()}_PROXY"
                print(f"  {upstream.shown}, as {variable} says; NO_PROXY leaves hosts out")
        print(f"  {root}/metrics; records in {arguments.out}, {keep} kept; Ctrl-C ends it", flush=True)

    serving = service.Serving(
        routes=found,
        observer=observer,
        host=arguments.host,
        port=arguments.port,
        allowed=[allowed_host(name) for name in arguments.allow_host],
        tls=tls,
        metrics=metrics,
    )
    try:
        served = service.run(service.serve(serving, announce))
        observer.close()
    finally:
        runs.close()
    print(_summary(served, observer.loops, str(runs.path) if runs.path is not None else None))
    return _exit_code(served)


def _summary(served: Served, loops: int, path: str | None) -> str:
    counts, watching = served.server.counts, served.server.watching
    forwarded = sum(counts[name] for name in ("complete", "client gone", "upstream gone"))
    text = f"{_several(forwarded, 'request')} forwarded"
    broken = [
        f"{counts[name]} {words}"
        for name, words in (
            ("client gone", "left by the client"),
            ("upstream gone", "broken off by the upstream"),
            ("refused", "more refused"),
            ("tunnelled", "WebSockets, not looked at"),
        )
        if counts[name]
    ]
    text += f" ({', '.join(broken)})" if broken else ""
    text += f", {_several(loops, 'loop')} recorded"
    if watching.dropped:
        text += f"; {_several(watching.dropped, 'request')} went by unread, under load"
    return text if path is None else f"{text}: profiler report {path}"


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _exit_code(served: Served) -> int:
    import signal

    from profiler.commands.exits import DONE, INTERRUPTED, TERMINATED

    if served.signal is None:
        return DONE
    if served.signal == signal.SIGINT:
        print("profiler: interrupted", file=sys.stderr)
        return INTERRUPTED
    return TERMINATED
