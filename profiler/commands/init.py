"""`profiler init`: a working agent, its tools and a Locust file, to start from."""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

from profiler.errors import UsageError

SUFFIX = ".txt"
"""Of the templates, so that nothing takes them for modules of the package."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "init",
        help="write an agent, tools and a Locust file to start from",
        epilog="examples:\n  profiler init\n  profiler init load",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "directory", nargs="?", type=Path, default=Path(), metavar="DIR", help="where (default: here)"
    )
    parser.set_defaults(command=main)


def main(arguments: argparse.Namespace) -> int:
    directory: Path = arguments.directory
    templates = sorted(files("profiler").joinpath("templates", "project").iterdir(), key=lambda t: t.name)
    written = {directory / template.name.removesuffix(SUFFIX): template for template in templates}
    for path in written:
        if path.exists():
            raise UsageError(f"{path} exists already: name another directory")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, template in written.items():
            path.write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
            print(path)
    except OSError as error:
        raise UsageError(f"{directory}: cannot write: {error.strerror}") from error
    into = "" if directory == Path() else f"cd {directory}; "
    print(f"now:  {into}profiler compare --agent agents:make_agent")
    return 0
