"""The commands that run no load: `report`, `trace`, `init`, `emulate`, `scenarios`, `dashboards`."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.commands import add_command
from profiler.errors import UsageError
from profiler.load.declared import COUNT, PORT, SEED, TEXT
from profiler.providers import DIALECTS

if TYPE_CHECKING:
    from profiler.commands import Commands

TEMPLATE_SUFFIX = ".txt"
"""At the end of a template's name, so that nothing takes it for a module of the package."""


def add(commands: Commands) -> None:
    _add_report(commands)
    _add_trace(commands)
    _add_init(commands)
    _add_emulate(commands)
    add_command(commands, "scenarios", "list the scenarios that ship", scenarios, "")
    _add_dashboards(commands)


def _add_report(commands: Commands) -> None:
    parser = add_command(
        commands,
        "report",
        "write the report page of a run, or of records",
        report,
        "runs/20260101-120000 --open",
        "records.jsonl -o page.html",
    )
    parser.add_argument(
        "run",
        type=TEXT.argument,
        metavar="RUN",
        help="a run directory, a file of records, or a directory of such files (*.jsonl)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="default: report.html in the directory, or beside the file under its name",
    )
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    parser.add_argument(
        "--quota",
        type=TEXT.argument,
        metavar="LIMITS",
        help="of a recording: hold what it used against these limits, such as 500rpm,30000itpm or "
        "openai:rpm=500 (default: those that responses stated, model by model); without a provider, of the "
        "model that used most",
    )


def report(arguments: argparse.Namespace) -> int:
    from profiler.commands.importing import show_verdict
    from profiler.limits.known import parse_quota
    from profiler.report.html import write_any

    quota = None if arguments.quota is None else parse_quota(arguments.quota)
    written = write_any(Path(arguments.run), arguments.output, quota)
    if written.recorded is not None:
        show_verdict(written.title, written.recorded, written.run, own=written.own)
    print(written.path)
    if arguments.open:
        open_page(written.path)
    return 0


def open_page(path: Path) -> None:
    """Open a page in the browser; where there is none, say so."""
    if not webbrowser.open(path.resolve().as_uri()):
        print("no browser was found here: open that file in one", file=sys.stderr)


def _add_trace(commands: Commands) -> None:
    parser = add_command(
        commands,
        "trace",
        "turn a run into a trace for ui.perfetto.dev",
        trace,
        "runs/20260101-120000 -o trace.json.gz --slowest 20",
        "records.jsonl --loops 100",
    )
    parser.add_argument(
        "run", type=TEXT.argument, metavar="RUN", help="a run directory, or a file or folder of records"
    )
    output = Path("trace.json.gz")
    parser.add_argument(
        "-o", "--output", type=Path, default=output, metavar="FILE", help="default: trace.json.gz, here"
    )
    parser.add_argument("--loops", type=COUNT.argument, metavar="N", help="only the first N loops")
    parser.add_argument("--slowest", type=COUNT.argument, metavar="N", help="only the N slowest loops")


def trace(arguments: argparse.Namespace) -> int:
    from profiler.exporters.perfetto import write_trace

    trace = write_trace(arguments.run, arguments.output, arguments.loops, arguments.slowest)
    print(f"{arguments.output}: {trace.shown} of {trace.of} loops ({trace.selection})")
    for note in trace.notes:
        print(f"note: {note}")
    print("open it at https://ui.perfetto.dev")
    return 0


def _add_init(commands: Commands) -> None:
    parser = add_command(
        commands, "init", "write an agent, tools and a Locust file to start from", init, "", "load"
    )
    parser.add_argument(
        "directory", nargs="?", type=Path, default=Path(), metavar="DIR", help="where (default: here)"
    )


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


def _add_emulate(commands: Commands) -> None:
    parser = add_command(
        commands,
        "emulate",
        "serve the emulated model and tool APIs",
        emulate,
        "--port 8100 --scenario fanout",
        "--port 0 --scenario ./mine.toml --seed 7",
        "--dialect gemini --log",
        "--host 0.0.0.0 --allow-host loadtest",
        "--mcp-stdio --scenario crowded --journal calls.jsonl",
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
    parser.add_argument(
        "--dialect",
        choices=DIALECTS,
        help="speak Chat Completions as this server does (default: the scenario's, or openai)",
    )
    parser.add_argument(
        "--log",
        nargs="?",
        const="-",
        metavar="FILE",
        help="a line for each request that is refused: to stderr, or to FILE",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        type=TEXT.argument,
        default=[],
        metavar="NAME",
        help="answer /emulator/* and /metrics under this host too, beside localhost; may be repeated",
    )
    parser.add_argument(
        "--mcp-reply",
        choices=("json", "sse"),
        default="json",
        help="how calls over MCP (at /mcp) are answered that want no stream (default: json)",
    )
    parser.add_argument(
        "--mcp-page",
        type=COUNT.argument,
        default=100,
        metavar="N",
        help="how many tools a page of its list has (default: 100)",
    )
    parser.add_argument(
        "--mcp-stdio",
        action="store_true",
        help="serve the tools alone, over MCP on the standard streams, until standard input ends",
    )
    parser.add_argument(
        "--journal",
        type=TEXT.argument,
        metavar="FILE",
        help="append every request, once it has ended, to FILE as a line of JSON",
    )


def emulate(arguments: argparse.Namespace) -> int:
    from profiler.emulator.server import parser, run

    names = ("host", "port", "scenario", "seed", "dialect", "log", "mcp_reply", "mcp_page", "journal")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    several = [f"--allow-host={name}" for name in arguments.allow_host]
    several += ["--mcp-stdio"] if arguments.mcp_stdio else []
    return run(
        parser().parse_args(
            [*(f"--{name.replace('_', '-')}={value}" for name, value in given.items()), *several]
        )
    )


def scenarios(arguments: argparse.Namespace) -> int:
    from profiler.scenarios import shipped_scenarios

    shipped = shipped_scenarios()
    width = max(len(scenario.name) for scenario in shipped)
    for scenario in shipped:
        print(f"{scenario.name:{width}}  {scenario.description}")
    return 0


def _add_dashboards(commands: Commands) -> None:
    parser = add_command(
        commands,
        "dashboards",
        "write the Grafana dashboards and Prometheus rules",
        dashboards,
        "--out grafana --datasource my-prometheus",
        "--check grafana --datasource my-prometheus",
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


def dashboards(arguments: argparse.Namespace) -> int:
    from profiler.dashboards import check, write

    if arguments.check is not None:
        differences = check(arguments.check, arguments.datasource, arguments.prefix)
        for difference in differences:
            print(difference, file=sys.stderr)
        return 1 if differences else 0
    if arguments.out is None:
        raise UsageError("say where to write them (--out DIR), or --check")
    for path in write(arguments.out, arguments.datasource, arguments.prefix):
        print(path)
    return 0
