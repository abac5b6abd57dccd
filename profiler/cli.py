"""The `profiler` command. Heavy imports happen in the commands that need them.

Exit codes: 0 done; 1 the run finished but what was asked of it did not hold; 2 wrong usage or
input, or nowhere to write to; 3 the target could not be reached, refused us or went away; 70 a
defect of the profiler's own; 130 interrupted. Whatever ends a command early is one line on standard error;
`--debug` adds the traceback.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from profiler.errors import ProfilerError, UsageError, did_you_mean
from profiler.report.text import one_line

MODULES = ("run", "compare", "tune", "others")
"""Modules of `profiler.commands`; each adds the command of its name, the last one all others."""

DEFECT = 70
"""Exit code: EX_SOFTWARE of sysexits.h."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. Wrong usage leaves by `SystemExit`, as argparse does."""
    debug = False
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        debug = arguments.debug
        code: int = arguments.command(arguments)
        sys.stdout.flush()  # at exit it would fail with a traceback
        return code
    except ProfilerError as error:
        return _failed(error, str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): not our failure, and nothing more to say.
        _drop_output()
        return 0
    except OSError as error:
        if error.errno in _DISK_FULL:
            where = "the output" if error.filename is None else os.fsdecode(error.filename)
            code = _failed(
                error, f"{where}: cannot be written: {error.strerror}", UsageError.exit_code, debug
            )
            _drop_output()
            return code
        if error.filename is not None:
            said = f"{os.fsdecode(error.filename)}: {error.strerror}"
            return _failed(error, said, UsageError.exit_code, debug)
        return _failed(error, _defect(error), DEFECT, debug)
    except Exception as error:
        return _failed(error, _defect(error), DEFECT, debug)


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _drop_output() -> None:
    """What standard output still holds cannot be written, and is not tried again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(error: Exception, said: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    print(f"profiler: {one_line(said)}", file=sys.stderr)
    return code


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line; its `command` runs it. `SystemExit` when it makes no sense."""
    parser = _parser()
    for argument in argv:
        if "\0" in argument or not _is_text(argument):
            parser.error(f"argument {argument!r}: not text in this system's encoding")
    arguments, extra = parser.parse_known_args(argv)
    if extra:
        used: Parser = arguments.parser
        known = [name for action in used._actions for name in action.option_strings]
        used.error(f"unknown argument {extra[0]!r}{did_you_mean(extra[0].partition('=')[0], known)}")
    return arguments


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and where to read more. Its commands' parsers are of its kind."""

    def error(self, message: str) -> NoReturn:
        self.exit(
            UsageError.exit_code, f"{self.prog}: error: {one_line(message)} (options: {self.prog} --help)\n"
        )

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            near = did_you_mean(str(value), known)
            raise argparse.ArgumentError(
                action, f"invalid choice: {value!r}{near}: expected one of {', '.join(known)}"
            )


def _parser() -> Parser:
    parser = Parser(
        prog="profiler",
        description="Load testing and latency profiling for agents that call tools in parallel.",
        epilog="examples:\n"
        "  profiler compare                        the three strategies on the embedded emulator\n"
        "  profiler run --strategy sequential      one loop, its timeline drawn\n"
        "  profiler emulate --scenario fanout      the emulator alone",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in MODULES:
        import_module(f"profiler.commands.{module}").add(commands)
    for command in commands.choices.values():
        command.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
        command.set_defaults(parser=command)
    return parser


def _is_text(argument: str) -> bool:
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def _defect(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(place.filename)}:{place.lineno}"
    return (
        f"a defect of the profiler: {type(error).__name__}: {error} ({where}); please report it with what "
        "--debug shows"
    )


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("toolcall-profiler")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0+unknown"
