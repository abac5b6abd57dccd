"""`profiler collect`: spans of agents in any language come in over OTLP/HTTP, and go out as records."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from profiler.commands import add_command
from profiler.errors import UsageError
from profiler.load.declared import PORT, SECONDS, TEXT

if TYPE_CHECKING:
    from profiler.commands import Commands


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "collect",
        "receive spans of agents (OTLP/HTTP) and record their loops",
        collect,
        "",
        "--keep 7d",
        "--port 4318 --keep 7d,2GB --out runs",
        "--host 0.0.0.0 --allow-host collector",
    )
    parser.add_argument(
        "--host", type=TEXT.argument, default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--port", type=PORT.argument, default=4318, help="port, 0 for a free one (default: 4318)"
    )
    parser.add_argument(
        "--out",
        type=TEXT.argument,
        default="runs",
        metavar="DIR",
        help="write run directories here (default: runs)",
    )
    parser.add_argument(
        "--keep",
        type=TEXT.argument,
        default="7d",
        metavar="LIMIT",
        help="remove its own oldest runs beyond an age, a size or both: 7d, 2GB or 7d,2GB (default: 7d)",
    )
    parser.add_argument(
        "--grace",
        type=SECONDS.argument,
        default=10.0,
        metavar="T",
        help="a loop ends when its root span has come, and then nothing more for this long (default: 10s)",
    )
    parser.add_argument(
        "--idle",
        type=SECONDS.argument,
        default=300.0,
        metavar="T",
        help="without a root span a loop ends, as cancelled, when nothing came for this long (default: 5m)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        type=TEXT.argument,
        default=[],
        metavar="NAME",
        help="answer /metrics under this host too, beside localhost; may be repeated",
    )


def collect(arguments: argparse.Namespace) -> NoReturn:
    from profiler.collector.server import Options, run
    from profiler.collector.traces import SETTLE_SECONDS, Patience
    from profiler.recordings.keeping import parse_keep

    if arguments.idle < arguments.grace:
        raise UsageError(
            f"--idle {arguments.idle:g} is shorter than --grace {arguments.grace:g}: a loop without a root is"
            " waited for longer, not shorter"
        )
    run(
        Options(
            arguments.host,
            arguments.port,
            Path(arguments.out),
            parse_keep(arguments.keep),
            Patience(arguments.grace, min(SETTLE_SECONDS, arguments.idle), arguments.idle),
            arguments.allow_host,
        ),
        show,
        complain,
    )


def show(line: str) -> None:
    """Print it at once: whoever started us waits for where we listen."""
    print(line, flush=True)


def complain(words: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # the terminal may have been closed
        print(f"profiler collect: {words}", file=sys.stderr, flush=True)
