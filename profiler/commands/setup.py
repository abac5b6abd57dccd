"""What surrounds load tests: a project to start from, the emulator alone, its scenarios, the dashboards."""

from __future__ import annotations

import argparse
import sys
from importlib.resources import files
from pathlib import Path

from profiler.errors import UsageError
from profiler.load.declared import PORT, SEED, TEXT

TEMPLATE_SUFFIX = ".txt"
"""Of templates, so that nothing takes them for modules of the package."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for add_one in (_add_init, _add_emulate, _add_scenarios, _add_dashboards):
        add_one(commands)


def _add_init(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "init",
        help="write an agent, tools and a Locust file to start from",
        epilog="examples:\n  profiler init\n  profiler init load",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "directory", nargs="?", type=Path, default=Path(), metavar="DIR", help="where (default: here)"
    )
    parser.set_defaults(command=init)


def init(arguments: argparse.Namespace) -> int:
    directory: Path = arguments.directory
    templates = sorted(files("profiler").joinpath("templates", "project").iterdir(), key=lambda t: t.name)
    written = {directory / template.name.removesuffix(TEMPLATE_SUFFIX): template for template in templates}
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


def _add_emulate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "emulate",
        help="serve the emulated model and tool APIs",
        epilog="examples:\n"
        "  profiler emulate --port 8100 --scenario fanout\n"
        "  profiler emulate --port 0 --scenario ./mine.toml --seed 7",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--host", type=TEXT.argument, default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--port", type=PORT.argument, default=8100, help="port, 0 for a free one (default: 8100)"
    )
    parser.add_argument(
        "--scenario",
        type=TEXT.argument,
        default="cities",
        metavar="NAME|FILE",
        help="what the work is (default: cities)",
    )
    parser.add_argument(
        "--seed", type=SEED.argument, default=1, metavar="N", help="seed of the emulated work"
    )
    parser.set_defaults(command=emulate)


def emulate(arguments: argparse.Namespace) -> int:
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


def _add_scenarios(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "scenarios",
        help="list the scenarios that ship",
        epilog="examples:\n  profiler scenarios",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=scenarios)


def scenarios(arguments: argparse.Namespace) -> int:
    from profiler.scenarios.schema import shipped_scenarios

    shipped = shipped_scenarios()
    width = max(len(scenario.name) for scenario in shipped)
    for scenario in shipped:
        print(f"{scenario.name:{width}}  {scenario.description}")
    return 0


def _add_dashboards(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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
    parser.set_defaults(command=dashboards)


def dashboards(arguments: argparse.Namespace) -> int:
    from profiler.dashboards import check, write

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
