"""The commands of `profiler`. `add` of each module adds its commands: their options and what runs them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from profiler.commands.exits import EXIT_CODES

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
    """The object that argparse adds the parsers of commands to."""


def add_command(
    commands: Commands, name: str, help: str, run: Callable[[argparse.Namespace], int], *examples: str
) -> argparse.ArgumentParser:
    """Add `profiler NAME`; `run` gets its arguments and returns the exit code. `examples`: of arguments."""
    lines = [EXIT_CODES, ""] if name in ("run", "compare", "tune") else []
    lines += ["examples:", *(f"  profiler {name} {example}".rstrip() for example in examples)]
    parser = commands.add_parser(
        name,
        help=help,
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run)
    return parser
