"""`profiler report`: the report page of a run."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from pathlib import Path

from profiler.commands.options import text


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "report",
        help="write the report page of a run",
        epilog="examples:\n"
        "  profiler report runs/20260101-120000 --open\n"
        "  profiler report runs/20260101-120000 -o page.html",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=text, metavar="RUN", help="a run directory")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: report.html in the run directory"
    )
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    parser.set_defaults(command=main)


def main(arguments: argparse.Namespace) -> int:
    from profiler.report.html import write_report
    from profiler.rundir import RunDirectory

    path = write_report(RunDirectory.open(arguments.run), arguments.output)
    print(path)
    if arguments.open and not webbrowser.open(path.resolve().as_uri()):
        print("no browser was found here: open that file in one", file=sys.stderr)
    return 0
