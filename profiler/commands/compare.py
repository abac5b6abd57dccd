"""`profiler compare`: strategies under load, and how they compare; or two runs that were recorded."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

from profiler.commands import add_command
from profiler.errors import UsageError
from profiler.load.declared import TEXT, add_options
from profiler.load.options import GROUPS, LINGER_SECONDS, LoadOptions, Size
from profiler.signals import signals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from profiler.commands import Commands
    from profiler.rundir import Run
    from profiler.statistics.caveats import Caveat


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "compare",
        "compare strategies under load, or two recorded runs",
        main,
        "--users 40 --duration 1m",
        "--strategy gathered --strategy semaphore:8 --json | jq .verdicts",
        "--arrivals 10/s --slo 'p95<2s,errors<1%'",
        "--agent my_app.agents:make_agent --base-url http://127.0.0.1:8100",
        "runs/main runs/branch --fail-on 'p95 > +5%' --format github",
    )
    parser.add_argument(
        "runs",
        type=TEXT.argument,
        nargs="*",
        metavar="RUN",
        help="two run directories: compare the second with the first",
    )
    add_options(parser, "compare", (Size, LoadOptions), GROUPS)
    output = add_output(
        parser, json="print summary.json, and nothing else, on standard output", running="the test runs"
    )
    output.add_argument(
        "--fail-on",
        type=TEXT.argument,
        metavar="GATE",
        help="of two runs: exit 1 when this is shown: 'p95 > +5%%, errors > +1%%'",
    )
    output.add_argument(
        "--format", choices=("text", "github"), default="text", help="of two runs: github for annotations"
    )
    output.add_argument(
        "--allow-different",
        action="store_true",
        help="of two runs: compare them although their scenario or kind of load differs",
    )


def main(arguments: argparse.Namespace) -> int:
    if arguments.runs:
        return _recorded(arguments)
    if arguments.fail_on is not None or arguments.format != "text" or arguments.allow_different:
        raise UsageError(
            "--fail-on, --format and --allow-different are for two recorded runs: "
            "profiler compare RUN_A RUN_B"
        )
    from profiler.load.experiment import Experiment, run_experiment
    from profiler.report.advice import next_steps
    from profiler.report.html import gather, write_report
    from profiler.report.live import LiveView
    from profiler.report.terminal import render_comparison, use_color
    from profiler.rundir import RunDirectory
    from profiler.statistics.caveats import every_loop_failed

    options, size = asked_load(arguments), Size.from_namespace(arguments)
    if not agreed(arguments, options, size, size.seconds):
        return 1
    experiment = Experiment(options, size.users, size.seconds, size.workers)
    with LiveView(sys.stderr, os.environ, arguments.quiet) as view:
        path = run_experiment(experiment, view.say, view.watch)
    signals.finish_first(str(path))
    directory = RunDirectory.open(path)
    material = gather(directory)
    run, summary = material.run, material.summary
    directory.save_summary(summary)
    report = write_report(directory, material=material)
    if arguments.json:
        for caveat in summary.warnings:
            if caveat.invalid:
                print(caveat.sentence, file=sys.stderr, flush=True)
        sys.stdout.write(directory.summary_path.read_text())
    else:
        width = min(shutil.get_terminal_size().columns, 100)
        print(render_comparison(summary, run, width, use_color(sys.stdout, os.environ), path=str(path)))
        print(f"report: {report}")
        if run.spent is not None and options.remote_targets(os.environ):
            print(f"spent: {options.budget(run.model).describe(run.spent)}")
        for step in next_steps(summary, run, material.counterfactuals)[:1]:
            print(f"next: {step.words}" + (f"\n  {step.command}" if step.command else ""))
    nothing = all(every_loop_failed(strategy) for strategy in summary.strategies)
    return _exit_code(run, summary.warnings, arguments.allow_saturated, nothing)


def _exit_code(run: Run, warnings: Sequence[Caveat], allow_saturated: bool, nothing: bool) -> int:
    """`nothing`: not one loop of any strategy was good."""
    kinds = {incident.kind for incident in run.incidents}
    if "interrupted" in kinds:
        return 130
    if nothing or kinds & {"aborted", "limited"}:
        return 1
    return 1 if any(caveat.invalid for caveat in warnings) and not allow_saturated else 0


def _recorded(arguments: argparse.Namespace) -> int:
    """Compare the second of two recorded runs with the first."""
    import orjson

    from profiler.report.terminal import render_regression, use_color
    from profiler.rundir import RunDirectory
    from profiler.statistics.objectives import parse_gates
    from profiler.statistics.verdicts import compare_directories

    if len(arguments.runs) != 2:
        raise UsageError(f"compare takes two run directories, or none: {len(arguments.runs)} given")
    gates = () if arguments.fail_on is None else parse_gates(arguments.fail_on)
    before, after = (RunDirectory.open(path) for path in arguments.runs)
    found = compare_directories(before, after, gates, arguments.slo, arguments.allow_different)
    if arguments.json:
        sys.stdout.write(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode())
    else:
        width = min(shutil.get_terminal_size().columns, 100)
        color = use_color(sys.stdout, os.environ)
        print(render_regression(found, width, color, github=arguments.format == "github"), end="")
    if found.holds is False:
        return 1
    invalid = any(caveat.invalid for caveat in found.warnings)
    return 1 if invalid and not arguments.allow_saturated else 0


# Shared with `profiler tune`, which runs load tests too.


def add_output(parser: argparse.ArgumentParser, json: str, running: str) -> argparse._ArgumentGroup:
    """Add `--yes`, and what is said while the load runs and at its end; returns the group of the latter."""
    parser.add_argument(
        "--yes", action="store_true", help="do not ask before a load test that leaves this machine"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help=json)
    output.add_argument("--quiet", action="store_true", help=f"say nothing while {running}")
    output.add_argument(
        "--allow-saturated",
        action="store_true",
        help="exit 0 even when figures are invalid: this client saturated, its machine busy, its "
        "container throttled",
    )
    return output


def asked_load(arguments: argparse.Namespace, **others: Any) -> LoadOptions:
    """The options of a load test on this command line; `others` are not on it. Raises `UsageError`."""
    # A port that was asked for is one that Prometheus scrapes: the last block must not be lost.
    linger = 0.0 if arguments.metrics_port is None else LINGER_SECONDS
    return LoadOptions.from_namespace(arguments, linger_seconds=linger, **others)


def agreed(
    arguments: argparse.Namespace, options: LoadOptions, size: Size, seconds: float, search: bool = False
) -> bool:
    """Show what is about to happen (`estimate_load`); ask before it leaves this machine, on a terminal.

    False, and said so, when the answer is no. Raises `UsageError` for a target that is not to be loaded.
    """
    from profiler.load.estimate import estimate_load
    from profiler.scenarios import load_scenario

    options.check_targets(os.environ)
    scenario = load_scenario(options.scenario)
    remote = bool(options.remote_targets(os.environ))
    asks = remote and not arguments.yes and sys.stdin.isatty() and sys.stdout.isatty()
    if asks or not arguments.quiet:
        planned = estimate_load(options, size.users, seconds, size.workers, scenario, remote, search)
        print("\n".join(planned.lines()), file=sys.stderr, flush=True)
    if not asks:
        return True
    print("start? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("nothing was started", file=sys.stderr)
    return False
