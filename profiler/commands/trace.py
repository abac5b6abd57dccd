"""`profiler trace`: a run as a trace for ui.perfetto.dev."""

from __future__ import annotations

import argparse
from pathlib import Path

from profiler.commands.options import positive, text


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "trace",
        help="turn a run into a trace for ui.perfetto.dev",
        epilog="examples:\n"
        "  profiler trace runs/20260101-120000 -o trace.json.gz --slowest 20\n"
        "  profiler trace records.jsonl --loops 100",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=text, metavar="RUN", help="a run directory, or a file of records")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("trace.json.gz"),
        metavar="FILE",
        help="default: trace.json.gz, here",
    )
    parser.add_argument("--loops", type=positive, metavar="N", help="only the first N loops")
    parser.add_argument("--slowest", type=positive, metavar="N", help="only the N slowest loops")
    parser.set_defaults(command=main)


def main(arguments: argparse.Namespace) -> int:
    from profiler.exporters.perfetto import write_trace

    trace = write_trace(arguments.run, arguments.output, arguments.loops, arguments.slowest)
    print(f"{arguments.output}: {trace.shown} of {trace.of} loops ({trace.selection})")
    print("open it at https://ui.perfetto.dev")
    return 0
