"""`profiler mcp load` and `profiler mcp tune`: an MCP server under load, without a model."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from profiler.commands import add_command, show
from profiler.commands.compare import add_output, check_output, import_report, show_as_asked, write_junit
from profiler.commands.exits import EXIT_CODES, Ending, complain
from profiler.errors import ProfilerError
from profiler.load.declared import SECONDS, TEXT, add_options
from profiler.load.endpoints import HEADER
from profiler.load.options import GROUPS, LINGER_SECONDS, LoadOptions, Size
from profiler.process.signals import signals
from profiler.process.streams import json_text

if TYPE_CHECKING:
    from profiler.commands import Commands
    from profiler.load.calls import CallPlan
    from profiler.load.locust_process import LocustProcess

MOST_AT_ONCE = 64
"""Calls at once up to which `tune` looks for a limit, unless `--users` says how many are ever wanted."""

LOOKS = 3
"""Lone calls by which `tune` sees how long one takes; the first also warms up."""
LOOK_SECONDS = 30.0
SLOW_START = 1.5
"""Seconds from which on it is said what opening a session took: the load opens its own."""

TARGET_HELP = 'the MCP server: [NAME=]https://host/mcp, or [NAME=]"command that starts it" (stdio)'


def add(commands: Commands) -> None:
    group = commands.add_parser(
        "mcp",
        help="load an MCP server directly, without a model, or find what it can serve",
        description="An MCP server under load, without a model.",
    )
    own = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    load = _add(
        own,
        "load",
        "load a server with calls of its tools, and say whether it can serve them",
        _load,
        'http://127.0.0.1:8000/mcp --call search --args \'{"query": "rain"}\' --users 16',
        "http://127.0.0.1:8000/mcp --args-from calls.jsonl --arrivals 40/s --duration 1m",
        "'npx -y @modelcontextprotocol/server-everything' --call echo --levels 1,4,16",
        "http://127.0.0.1:8000/mcp --arrivals 40/s --slo 'p95<500ms,errors<1%'",
    )
    output = add_output(
        load, json="print the figures as JSON, and nothing else, on standard output", running="the load runs"
    )
    output.add_argument(
        "--fail-on",
        type=TEXT.argument,
        action="append",
        default=[],
        metavar="GATE",
        help="exit 1 when this is shown: 'p95 > 2s, errors > 1%%'; may be repeated",
    )
    tune = _add(
        own,
        "tune",
        "find the largest concurrency and rate that a server can serve",
        _tune,
        "http://127.0.0.1:8000/mcp --call search --users 64",
        "http://127.0.0.1:8000/mcp --slo 'p95<500ms,errors<1%' --budget 2m",
    )
    tune.set_defaults(users=MOST_AT_ONCE)
    tune.add_argument(
        "--budget",
        type=SECONDS.argument,
        default=120.0,
        metavar="T",
        help="time for everything (default: 2m)",
    )
    add_output(tune, json="print the answer as JSON, and nothing else", running="the search runs")


def _add(commands: Commands, name: str, help: str, run: Any, *examples: str) -> argparse.ArgumentParser:
    parser = add_command(commands, name, help, run)
    lines = [EXIT_CODES, "", "examples:", *(f"  profiler mcp {name} {one}" for one in examples)]
    parser.epilog = "\n".join(lines)
    parser.add_argument("target", type=TEXT.argument, metavar="URL|COMMAND", help=TARGET_HELP)
    add_options(parser, f"mcp {name}", (Size, LoadOptions), GROUPS)
    parser.add_argument(
        "--header",
        dest="server_header",
        type=TEXT.argument,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="sent with every request to the server; may be repeated",
    )
    parser.set_defaults(parser=parser)
    return parser


def asked_direct(arguments: argparse.Namespace, **others: Any) -> LoadOptions:
    """The options of a load without a model on this command line. Raises `UsageError`."""
    from profiler.mcp.servers import ServerSpec

    name = ServerSpec.parse(arguments.target, "mcp").name
    headers = tuple(f"{name}:{HEADER.read(one)[0]}" for one in _headers(arguments.server_header))
    linger = 0.0 if arguments.metrics_port is None else LINGER_SECONDS
    return LoadOptions.from_namespace(
        arguments,
        linger_seconds=linger,
        direct=True,
        mcp=(arguments.target,),
        mcp_headers=headers,
        **others,
    )


def _headers(given: list[str]) -> list[str]:
    from profiler.errors import UsageError

    for one in given:
        try:
            HEADER.read(one)
        except ValueError as error:
            raise UsageError(f"--header: {error}") from None
    return given


class Look(NamedTuple):
    """The first look at a server: the calls that are planned, from its list of tools.

    Seconds: `opening` a session, a `lone` call, and the whole look.
    """

    plan: CallPlan
    opening: float
    lone: float
    seconds: float


def first_look(options: LoadOptions, calls: bool = False) -> Look:
    """Ask the server for its tools; with `calls`, see how long one takes.

    Raises `UsageError` for what it cannot be asked, `ToolServerError` where it cannot be reached.
    """
    import asyncio

    from profiler.load.direct import connector, opened_plan

    async def look() -> Look:
        began = time.monotonic()
        session = await connector(options)()
        opening = time.monotonic() - began
        try:
            plan = await opened_plan(options, session)
            took = []
            for number in range(LOOKS if calls else 0):
                began = time.monotonic()
                call = plan.call(number)
                await session.call(call.tool, call.arguments, timeout=LOOK_SECONDS)
                took.append(time.monotonic() - began)
            lone = sum(took[1:]) / max(1, len(took) - 1)
            return Look(plan, opening, lone, time.monotonic() - began)
        finally:
            await session.close()

    return asyncio.run(look())


def agreed(
    arguments: argparse.Namespace, options: LoadOptions, head: str, sessions: str, calls: bool = False
) -> Look | None:
    """Show what is about to happen; ask before it leaves this machine, on a terminal.

    None, and said so, when the answer is no; else what was seen, with a lone call where `calls` may be made
    to find out how long one takes. Raises `ProfilerError` where it cannot be done.
    """
    options.check_targets(os.environ)
    seen = first_look(options, calls)
    if seen.opening > SLOW_START:
        what = "opening a session" if options.server.url is not None else "starting the server"
        sessions += f"; {what} took {seen.opening:.1f} s, and is done once more for the load"
    remote = bool(options.remote_targets(os.environ))
    asks = remote and not arguments.yes and sys.stdin.isatty() and sys.stdout.isatty()
    if asks or not arguments.quiet:
        print(f"{head}: {seen.plan.said}{sessions}", file=sys.stderr, flush=True)
    if not asks:
        return seen
    print("start? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return seen
    print("nothing was started", file=sys.stderr)
    return None


def sessions_said(options: LoadOptions, size: Size) -> str:
    """`; 1 session, shared by 20 agents`, and for a command how many processes are started."""
    what = "session" if options.server.url is not None else "server process"
    if options.mcp_per_agent:
        return f"; a {what} for each agent"
    each = f"a {what} for each of {size.workers} workers" if size.workers > 1 else f"1 {what}"
    return f"; {each}, shared by its agents"


def _load(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    import orjson

    from profiler.load.locust_process import started_locust
    from profiler.statistics.objectives import check_gates, parse_gates

    gates = parse_gates(*arguments.fail_on)
    check_output(arguments)
    options, size = asked_direct(arguments), Size.from_namespace(arguments)
    check_gates(gates, [spec.text for spec in options.strategies])
    with started_locust(own_agent=False) as locust:  # before what takes a while to import here
        ran = _run_load(arguments, options, size, bool(gates), locust)
    if ran is None:
        return 1
    path, failure = ran
    signals.finish_first(str(path))
    from profiler.report import ci
    from profiler.report.direct import headline, in_calls, ours, render_direct, what_to_do
    from profiler.report.html import gather, write_report
    from profiler.rundir import RunDirectory
    from profiler.statistics.gates import judge, latencies_of, missed

    directory = RunDirectory.open(path)
    material = gather(directory)
    run = material.run
    latencies = latencies_of(material.measured, material.table)
    outcomes = judge(material.summary, gates, latencies, run.incidents, arguments.allow_saturated)
    summary = replace(material.summary, outcomes=outcomes)
    directory.save_summary(summary)
    report = write_report(directory, material=material)
    loads = summary.loads
    server = options.server.name
    findings = ci.of_run(run, summary)
    findings = replace(
        findings,
        subject=f"profiler mcp load: {options.server.shown}",
        verdicts=(*headline(loads, server), *what_to_do(loads, run)),
        figures=tuple(tuple(map(in_calls, row)) for row in findings.figures),
    )
    write_junit(arguments, ci.junit(findings))
    if arguments.json:
        data = {
            "server": server,
            "verdict": headline(loads, server)[0],
            "loads": loads,
            "outcomes": outcomes,
            "warnings": summary.warnings,
            "run": str(path),
        }
        show(json_text(orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)))
    elif not show_as_asked(arguments, findings, f"report: {report}"):
        show(render_direct(loads, summary, run, server, str(path)) + f"report: {report}\n")
    if failure is not None:
        print(f"profiler: {failure}", file=sys.stderr, flush=True)
    ending = Ending(
        error=failure,
        internal=summary.internal,
        incidents={incident.kind for incident in run.incidents},
        missed=missed(outcomes)
        or any(load.unserved or not load.served.value for load in loads)
        or bool(ours(loads) and not arguments.allow_saturated),
    )
    return complain(ending, str(path))


def _run_load(
    arguments: argparse.Namespace, options: LoadOptions, size: Size, gated: bool, locust: LocustProcess
) -> tuple[Path, ProfilerError | None] | None:
    """Run the load; returns where its run is, and a defect of ours. None when it was declined."""
    from dataclasses import replace

    from profiler.arrivals import Arrivals
    from profiler.load.experiment import Experiment, run_experiment
    from profiler.load.plan import blocks_for
    from profiler.records import INTERNAL
    from profiler.report.live import LiveView
    from profiler.report.text import counted
    from profiler.rundir import RunDirectory

    if options.arrivals is not None:
        Arrivals.parse(options.arrivals)
        how = f"arriving at {options.arrivals}"
        if gated and options.blocks is None:
            # Without intervals no gate is decided.
            options = replace(options, blocks=blocks_for(size.seconds))
            how += f", in {counted(options.blocks or 1, 'block')} for the intervals that --fail-on needs"
        elif options.blocks is None:
            how += ", without a pause (--blocks 5: five times, for intervals)"
    else:
        how = f"{', '.join(map(str, options.levels)) or size.users} at once"
    head = f"plan: {options.server.shown}, {size.seconds:g} s of measuring, {how}"
    if agreed(arguments, options, head, sessions_said(options, size)) is None:
        return None
    experiment = Experiment(options, size.users, size.seconds, size.workers)
    try:
        with LiveView(sys.stderr, os.environ, arguments.quiet, direct=True) as view:
            path = run_experiment(experiment, view.say, view.watch, meanwhile=import_report, locust=locust)
    except ProfilerError as error:
        from profiler.report import ci

        failed = RunDirectory(Path(error.run_directory or ""))
        if error.run_directory is None or not failed.ended_by(INTERNAL):
            write_junit(
                arguments, ci.junit_of_error(f"profiler mcp load: {options.server.shown}", str(error))
            )
            raise
        return failed.path, error
    return path, None


def _tune(arguments: argparse.Namespace) -> int:
    import orjson

    from profiler.report import ci
    from profiler.statistics.gates import Outcome, missed
    from profiler.tune.capacity import rate_sentence
    from profiler.tune.direct import DirectSearch, DirectTuner, render_capacity

    check_output(arguments)
    options, size = asked_direct(arguments), Size.from_namespace(arguments)
    head = f"plan: a search of up to {arguments.budget:.0f} s with up to {size.users} calls at once"
    seen = agreed(arguments, options, f"{head} on {options.server.shown}", sessions_said(options, size), True)
    if seen is None:
        return 1
    search = DirectSearch(options, size.users, seen.lone, size.workers, arguments.budget, seen.seconds)

    def say(text: str) -> None:
        if not arguments.quiet:
            print(text, file=sys.stderr, flush=True)

    try:
        answer = DirectTuner(search, say).run()
    except ProfilerError as error:
        write_junit(arguments, ci.junit_of_error(f"profiler mcp tune: {options.server.shown}", str(error)))
        raise
    valid = not answer.invalid or arguments.allow_saturated
    rates = answer.rates
    outcomes = [
        Outcome("valid", "", valid, "; ".join(answer.invalid) or "the figures are valid.", kind="validity")
    ]
    if rates is not None:
        said = rate_sentence(answer.server, rates)
        outcomes.append(Outcome(rates.objective, "", rates.met is not None, f"{said}.", kind="objective"))
    answered = answer.kind != "fails"
    outcomes.append(Outcome("loops", "", answered, f"{answer.sentence}.", kind="loops"))
    title = f"profiler mcp tune: {options.server.shown}"
    found = ci.Findings(title, tuple(outcomes), (answer.sentence,), seconds=answer.seconds)
    write_junit(arguments, ci.junit(found))
    if arguments.json:
        data = orjson.dumps(answer, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        show(json_text(data))
    elif not show_as_asked(arguments, found):
        show(render_capacity(answer))
    return complain(Ending(missed=missed(outcomes)), ", ".join(answer.runs))
