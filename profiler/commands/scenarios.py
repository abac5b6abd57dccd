"""`profiler scenarios`: what ships, one line each."""

from __future__ import annotations

import argparse


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "scenarios",
        help="list the scenarios that ship",
        epilog="examples:\n  profiler scenarios",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=main)


def main(arguments: argparse.Namespace) -> int:
    from profiler.scenarios.schema import shipped_scenarios

    shipped = shipped_scenarios()
    width = max(len(scenario.name) for scenario in shipped)
    for scenario in shipped:
        print(f"{scenario.name:{width}}  {scenario.description}")
    return 0
