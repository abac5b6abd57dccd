"""The `profiler` command. Heavy imports happen in the commands that need them.

Exit codes: 0 done; 1 the run finished but what was asked of it did not hold; 2 wrong usage or
input, or nowhere to write to; 3 the target could not be reached, refused us or went away; 130
interrupted.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from profiler.errors import ProfilerError, RecordError

COMMANDS = ("run", "compare", "tune", "init", "report", "trace", "emulate", "scenarios", "dashboards")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    try:
        arguments = _parser().parse_args(argv)
        code: int = arguments.command(arguments)
        sys.stdout.flush()  # at exit it would fail with a traceback
        return code
    except ProfilerError as error:
        print(f"profiler: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): not our failure, and nothing more to say.
        _drop_output()
        return 0
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        print(
            f"profiler: {error.filename or 'the output'}: cannot be written: {error.strerror}",
            file=sys.stderr,
        )
        _drop_output()
        return RecordError.exit_code


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _drop_output() -> None:
    """What standard output still holds cannot be written, and is not tried again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="profiler",
        description="Load testing and latency profiling for agents that call tools in parallel.",
        epilog="examples:\n"
        "  profiler compare                        the three strategies on the embedded emulator\n"
        "  profiler run --strategy sequential      one loop, its timeline drawn\n"
        "  profiler emulate --scenario fanout      the emulator alone",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        import_module(f"profiler.commands.{command}").add(commands)
    return parser


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("toolcall-profiler")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0+unknown"
