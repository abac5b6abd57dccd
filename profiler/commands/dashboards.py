"""`profiler dashboards`: the Grafana dashboards, rules and the stack around them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "dashboards",
        help="write the Grafana dashboards and Prometheus rules",
        epilog="examples:\n"
        "  profiler dashboards --out grafana --datasource my-prometheus\n"
        "  profiler dashboards --check grafana --datasource my-prometheus",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write them here")
    parser.add_argument(
        "--datasource", metavar="UID", help="of Grafana's Prometheus data source (default: a variable)"
    )
    parser.add_argument(
        "--prefix",
        default="toolloop_",
        metavar="P",
        help="of the metric names as your Prometheus stores them (default: toolloop_)",
    )
    parser.add_argument(
        "--check",
        nargs="?",
        const="dashboards",
        metavar="DIR",
        help="exit 1 if DIR (default: dashboards) is not what this version writes",
    )
    parser.set_defaults(command=main)


def main(arguments: argparse.Namespace) -> int:
    from profiler.dashboards import check, write
    from profiler.errors import UsageError

    if arguments.check is None and arguments.out is None:
        raise UsageError("say where to write them (--out DIR), or --check")
    if arguments.check is not None:
        differences = check(arguments.check, arguments.datasource, arguments.prefix)
        for difference in differences:
            print(difference, file=sys.stderr)
        return 1 if differences else 0
    for path in write(arguments.out, arguments.datasource, arguments.prefix):
        print(path)
    return 0
