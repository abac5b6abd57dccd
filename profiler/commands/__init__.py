"""The commands of `profiler`. `add` of each module adds its commands: their options and what runs them."""

from __future__ import annotations

import argparse
import os
import sys
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
    lines = [EXIT_CODES, ""] if name in ("run", "compare", "tune", "predict") else []
    lines += ["examples:", *(f"  profiler {name} {example}".rstrip() for example in examples)]
    parser = commands.add_parser(
        name,
        help=help,
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run)
    return parser


def show(text: str) -> None:
    """Print on standard output. A reader that has gone (`| head`) changes nothing about the exit code."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()


def drop_output() -> None:
    """Discard what standard output still buffers; at exit Python would try to write it once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
