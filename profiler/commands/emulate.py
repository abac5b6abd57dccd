"""`profiler emulate`: the emulated model and tool APIs."""

from __future__ import annotations

import argparse

from profiler.commands.options import port, seed, text


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "emulate",
        help="serve the emulated model and tool APIs",
        epilog="examples:\n"
        "  profiler emulate --port 8100 --scenario fanout\n"
        "  profiler emulate --port 0 --scenario ./mine.toml --seed 7",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--host", type=text, default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    parser.add_argument("--port", type=port, default=8100, help="port, 0 for a free one (default: 8100)")
    parser.add_argument(
        "--scenario",
        type=text,
        default="cities",
        metavar="NAME|FILE",
        help="what the work is (default: cities)",
    )
    parser.add_argument("--seed", type=seed, default=1, metavar="N", help="seed of the emulated work")
    parser.set_defaults(command=main)


def main(arguments: argparse.Namespace) -> int:
    from profiler.emulator.server import parser, run

    return run(
        parser().parse_args(
            [
                f"--host={arguments.host}",
                f"--port={arguments.port}",
                f"--scenario={arguments.scenario}",
                f"--seed={arguments.seed}",
            ]
        )
    )
