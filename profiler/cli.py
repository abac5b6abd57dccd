"""The `profiler` command. Heavy imports happen in the commands that need them.

Exit codes are those of `profiler.commands.exits`. A command that ends early prints one line on standard
error; `--debug` adds the traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from profiler.commands import drop_output
from profiler.commands.exits import DEFECT, EXIT_CODES
from profiler.errors import Interrupted, ProfilerError, UsageError, did_you_mean
from profiler.process.signals import signals
from profiler.process.streams import prepare_streams
from profiler.redaction import error_secrets, scrub
from profiler.redaction.keys import hide_keys
from profiler.report.text import one_line

MODULES = (
    *("run", "compare", "tune", "predict", "mcp", "importing", "collect", "proxy", "scenario"),
    "without_load",
)
"""Modules of `profiler.commands`; each adds the command of its name, the last one all others."""

MEASURING = ("run", "compare", "tune", "load")
"""Commands that run loops."""

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. Wrong usage leaves by `SystemExit`, as argparse does."""
    prepare_streams()
    with signals.raised():
        return signals.exit_code(_main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    debug = False
    try:
        arguments = parse(argv)
        debug = arguments.debug
        if arguments.parser.prog.split()[-1] in MEASURING:
            signals.outcome = "before anything was measured"
        code: int = arguments.command(arguments)
        sys.stdout.flush()  # at exit it would fail with a traceback
        return code
    except KeyboardInterrupt as error:
        ended = error if isinstance(error, Interrupted) else Interrupted()
        ended.outcome = ended.outcome or signals.outcome
        with contextlib.suppress(OSError):  # the terminal may have been closed
            print(f"profiler: {one_line(str(ended))}", file=sys.stderr, flush=True)
        return ended.exit_code
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): not a failure, and nobody left to tell.
        drop_output()
        return 0
    except Exception as error:
        secrets = error_secrets(error)
        if debug:
            sys.stderr.write(scrub("".join(traceback.format_exception(error)), secrets))
        message, code = _explained(error)
        print(f"profiler: {one_line(scrub(message, secrets))}", file=sys.stderr)
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            drop_output()
        return code


def _explained(error: Exception) -> tuple[str, int]:
    """The text that tells the user of an error, and the exit code."""
    if isinstance(error, ProfilerError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        where = "the output" if error.filename is None else os.fsdecode(error.filename)
        return f"{where}: cannot be written: {error.strerror}", UsageError.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}", UsageError.exit_code
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(place.filename)}:{place.lineno}"
    return (
        f"a defect of the profiler: {type(error).__name__}: {error} ({where}); please report it with what "
        "--debug shows",
        DEFECT,
    )


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line; its `command` runs it. `SystemExit` on wrong usage."""
    parser = _parser()
    for argument in argv:
        # An undecodable argument arrives with surrogates in it, which nothing can print or send.
        if "\0" in argument or any("\ud800" <= character <= "\udfff" for character in argument):
            parser.error(f"argument {argument!r}: not text in this system's encoding")
    argv, of_script = _cut(parser, argv)
    arguments, extra = parser.parse_known_args(argv)
    if of_script:
        arguments.script_arguments = of_script
    # To argparse an unknown option with a space in it is a positional argument.
    extra += [one for one in [getattr(arguments, "what", None)] if one is not None and one.startswith("-")]
    if extra:
        used: Parser = arguments.parser
        known = [name for action in used._actions for name in action.option_strings]
        name = extra[0].partition("=")[0]
        others = _commands_with(parser, name)
        hint = f" (an option of {', '.join(others)})" if others else did_you_mean(name, known)
        used.error(f"unknown argument {extra[0]!r}{hint}")
    return arguments


def _cut(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without those that a script of `run` gets, and those."""
    place = next((place for place, argument in enumerate(argv) if not argument.startswith("-")), len(argv))
    if argv[place : place + 1] != ["run"]:
        return list(argv), []
    from profiler.commands.run import cut

    (run,) = (
        action.choices["run"] for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    own, of_script = cut(argv[place + 1 :], run)
    return [*argv[: place + 1], *own], of_script


def _commands_with(parser: argparse.ArgumentParser, option: str) -> list[str]:
    """The commands that have an option."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    commands = {name: command for group in groups for name, command in group.choices.items()}
    return [name for name, command in commands.items() if option in command._option_string_actions]


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line that also says where to read more. Subcommands use it too."""

    def error(self, message: str) -> NoReturn:
        self.exit(
            UsageError.exit_code,
            f"{self.prog}: error: {one_line(hide_keys(message))} (options: {self.prog} --help)\n",
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
        epilog=f"{EXIT_CODES}\n\nexamples:\n"
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


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("toolcall-profiler")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0+unknown"
