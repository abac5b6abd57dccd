"""`profiler report` and `profiler trace`: what was recorded, as a page and as a trace."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from pathlib import Path

from profiler.load.declared import COUNT, TEXT


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _add_report(commands)
    _add_trace(commands)


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "report",
        help="write the report page of a run",
        epilog="examples:\n"
        "  profiler report runs/20260101-120000 --open\n"
        "  profiler report runs/20260101-120000 -o page.html",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=TEXT.argument, metavar="RUN", help="a run directory")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: report.html in the run directory"
    )
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    parser.set_defaults(command=report)


def report(arguments: argparse.Namespace) -> int:
    from profiler.report.html import write_report
    from profiler.rundir import RunDirectory

    path = write_report(RunDirectory.open(arguments.run), arguments.output)
    print(path)
    if arguments.open and not webbrowser.open(path.resolve().as_uri()):
        print("no browser was found here: open that file in one", file=sys.stderr)
    return 0


def _add_trace(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "trace",
        help="turn a run into a trace for ui.perfetto.dev",
        epilog="examples:\n"
        "  profiler trace runs/20260101-120000 -o trace.json.gz --slowest 20\n"
        "  profiler trace records.jsonl --loops 100",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", type=TEXT.argument, metavar="RUN", help="a run directory, or a file of records"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("trace.json.gz"),
        metavar="FILE",
        help="default: trace.json.gz, here",
    )
    parser.add_argument("--loops", type=COUNT.argument, metavar="N", help="only the first N loops")
    parser.add_argument("--slowest", type=COUNT.argument, metavar="N", help="only the N slowest loops")
    parser.set_defaults(command=trace)


def trace(arguments: argparse.Namespace) -> int:
    from profiler.exporters.perfetto import write_trace

    trace = write_trace(arguments.run, arguments.output, arguments.loops, arguments.slowest)
    print(f"{arguments.output}: {trace.shown} of {trace.of} loops ({trace.selection})")
    print("open it at https://ui.perfetto.dev")
    return 0
