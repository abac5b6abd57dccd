"""`profiler compare`: strategies under load, and how they compare; or runs that were recorded."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler.commands import add_command, show
from profiler.commands.exits import Ending, complain
from profiler.errors import ProfilerError, UsageError
from profiler.load.declared import TEXT, add_options
from profiler.load.options import GROUPS, LINGER_SECONDS, LoadOptions, Size
from profiler.process.signals import signals
from profiler.process.streams import json_text
from profiler.statistics.objectives import check_gates, parse_gates

if TYPE_CHECKING:
    from profiler.commands import Commands
    from profiler.load.locust_process import LocustProcess
    from profiler.report.ci import Findings
    from profiler.report.live import LiveView
    from profiler.statistics.objectives import QualityGate


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "compare",
        "compare strategies under load, or two recorded runs; or judge one",
        main,
        "--users 40 --duration 1m",
        "--strategy gathered --strategy semaphore:8 --json | jq .verdicts",
        "--arrivals 10/s --slo 'p95<2s,errors<1%'",
        "--for-prediction --users 40",
        "--agent my_app:make_agent --variant max_concurrent_calls=2,8",
        "--fail-on 'p95 > 2s, errors > 1%' --fail-on 'semaphore:8: goodput < 5/s' --junit junit.xml",
        "--agent my_app.agents:make_agent --base-url http://127.0.0.1:8100",
        "runs/main runs/branch --fail-on 'p95 > +5%' --format github",
        "runs/main --fail-on 'p95 > 2s' --format markdown",
    )
    parser.add_argument(
        "runs",
        type=TEXT.argument,
        nargs="*",
        metavar="RUN",
        help="two run directories: compare the second with the first; one, with --fail-on or --slo: judge it",
    )
    add_options(parser, "compare", (Size, LoadOptions), GROUPS)
    output = add_output(
        parser, json="print summary.json, and nothing else, on standard output", running="the test runs"
    )
    output.add_argument(
        "--fail-on",
        type=TEXT.argument,
        action="append",
        default=[],
        metavar="GATE",
        help="exit 1 when this is shown, of any strategy ('p95 > 2s, errors > 1%%, goodput < 5/s') or of one "
        "('semaphore:8: p95 > 2s'), under each load; between two runs: 'p95 > +5%%'; may be repeated",
    )
    output.add_argument(
        "--undecided",
        choices=("pass", "fail"),
        help="what a gate counts as that is neither shown to hold nor to be missed (default: pass)",
    )
    output.add_argument(
        "--allow-different",
        action="store_true",
        help="of two runs: compare them although their scenario or kind of load differs",
    )


def main(arguments: argparse.Namespace) -> int:
    gates = parse_gates(*arguments.fail_on)
    if arguments.undecided is not None and not gates:
        raise UsageError("--undecided is about gates: say with --fail-on which")
    check_output(arguments)
    if arguments.runs and arguments.for_prediction:
        raise UsageError("--for-prediction records a run of its own: leave out RUN")
    if len(arguments.runs) == 2:
        return _two_recorded(arguments, gates)
    if arguments.allow_different:
        raise UsageError("--allow-different is for two recorded runs: profiler compare RUN_A RUN_B")
    if len(arguments.runs) > 2:
        raise UsageError(f"compare takes two run directories, or none: {len(arguments.runs)} given")
    if arguments.runs:
        return _one_recorded(arguments, gates)
    return _load_test(arguments, gates)


def _load_test(arguments: argparse.Namespace, gates: tuple[QualityGate, ...]) -> int:
    from dataclasses import replace

    from profiler.load.locust_process import STARTING, started_locust

    options, size = asked_load(arguments), Size.from_namespace(arguments)
    with started_locust(options.agent is not None) as locust:  # before what takes a while to import here
        from profiler.report.live import LiveView
        from profiler.rundir import Progress

        with LiveView(sys.stderr, os.environ, arguments.quiet) as view:
            view.watch(Progress(locust.started, "preparing", step=STARTING))
            ran = _run_load(arguments, gates, options, size, locust, view)
    if ran is None:
        return 1
    options, path, failure = ran
    signals.finish_first(str(path))
    from profiler.prediction.advice import advice
    from profiler.prediction.fitting import fit_run
    from profiler.report import ci
    from profiler.report.advice import next_steps
    from profiler.report.html import gather, write_report
    from profiler.report.terminal import render_comparison
    from profiler.report.text import use_color
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
    undecided_fails = arguments.undecided == "fail"
    ending = Ending(
        error=failure,
        internal=summary.internal,
        incidents={incident.kind for incident in run.incidents},
        unanswered=summary.unanswered,
        missed=missed(outcomes, undecided_fails),
    )
    findings = ci.of_run(run, summary, undecided_fails)
    write_junit(arguments, ci.junit(findings))
    predictable = advice(fit_run(run, directory.records())) if size.for_prediction else []
    if arguments.json or arguments.format != "text":
        for sentence in predictable:
            print(f"for prediction: {sentence}", file=sys.stderr, flush=True)
    if arguments.json:
        for caveat in summary.warnings:
            if caveat.invalid:
                print(caveat.sentence, file=sys.stderr, flush=True)
        show(json_text(directory.summary_path.read_bytes()))
    elif not show_as_asked(arguments, findings, f"report: {report}"):
        width = min(shutil.get_terminal_size().columns, 100)
        text = render_comparison(summary, run, width, use_color(sys.stdout, os.environ), path=str(path))
        lines = [*(f"for prediction: {sentence}" for sentence in predictable), f"report: {report}"]
        if run.spent is not None and options.remote_targets(os.environ):
            lines.append(f"spent: {options.budget(run.model).describe(run.spent)}")
        lines += [
            f"next: {step.words}" + (f"\n  {step.command}" if step.command else "")
            for step in next_steps(summary, run, material.counterfactuals)[:1]
        ]
        show(text + "\n".join(lines) + "\n")
    if failure is not None:
        print(f"profiler: {failure}", file=sys.stderr, flush=True)
    return complain(ending, str(path))


def _run_load(
    arguments: argparse.Namespace,
    gates: tuple[QualityGate, ...],
    options: LoadOptions,
    size: Size,
    locust: LocustProcess,
    view: LiveView,
) -> tuple[LoadOptions, Path, ProfilerError | None] | None:
    """Run the load test; returns its options, its run, and a defect of ours. None when it was declined."""
    from profiler.load.experiment import Experiment, run_experiment
    from profiler.records import INTERNAL
    from profiler.rundir import RunDirectory

    if size.for_prediction:
        from profiler.load.ladder import for_prediction

        paid = bool(options.remote_targets(os.environ)) or options.agent is not None
        options = for_prediction(options, size.users, paid=paid)
    options.check_variants()
    check_gates(gates, [spec.text for spec in options.strategies])
    if not agreed(arguments, options, size, size.seconds, view=view):
        return None
    experiment = Experiment(options, size.users, size.seconds, size.workers)
    try:
        path = run_experiment(experiment, view.say, view.watch, meanwhile=import_report, locust=locust)
    except ProfilerError as error:
        from profiler.report import ci

        failed = RunDirectory(Path(error.run_directory or ""))
        if error.run_directory is None or not failed.ended_by(INTERNAL):
            write_junit(arguments, ci.junit_of_error(f"profiler compare: {options.scenario}", str(error)))
            raise
        return options, failed.path, error  # a defect of ours is said beside a report, whatever came after
    return options, path, None


def import_report() -> None:
    """Before the load begins, and beside what Locust imports: it would delay the load, or the report."""
    with contextlib.suppress(Exception):  # it is said where it is needed
        import profiler.prediction.fitting
        import profiler.report.html  # noqa: F401


def _one_recorded(arguments: argparse.Namespace, gates: tuple[QualityGate, ...]) -> int:
    """Judge one recorded run."""
    from dataclasses import replace

    import orjson

    from profiler.report import ci
    from profiler.report.terminal import render_comparison
    from profiler.report.text import use_color
    from profiler.rundir import RunDirectory
    from profiler.statistics.columns import table_of
    from profiler.statistics.gates import judge, latencies_of, missed
    from profiler.statistics.objectives import parse_objective
    from profiler.statistics.recorded import Recorded
    from profiler.statistics.summary import summarise_table
    from profiler.statistics.table import tabulate
    from profiler.statistics.two_runs import tick_of
    from profiler.statistics.windows import measure

    if not gates and arguments.slo is None:
        raise UsageError(
            "compare takes two run directories, or none: 1 given; to judge it say what to hold it against: "
            "--fail-on 'p95 > 2s' or --slo 'p95<2s'"
        )
    directory = RunDirectory.open(arguments.runs[0])
    run = directory.load()
    if arguments.slo is not None:
        parse_objective(arguments.slo, "--slo")
        run = replace(run, slo=arguments.slo)
    recorded = Recorded()
    table = table_of(directory) if run.recording is None else tabulate(recorded.seen(directory.records()))
    summary = summarise_table(run, table)
    if run.recording is not None:
        summary = replace(summary, recorded=recorded.result(run.recording))
    check_gates(gates, list(dict.fromkeys(one.strategy for one in summary.every_strategy)))
    # How the run ended, and what it was asked then, was the matter of the command that made it.
    left_out = {"end"} if arguments.slo is not None else {"end", "objective"}
    latencies = latencies_of(measure(run, table), table)
    outcomes = judge(summary, gates, latencies, allow_saturated=arguments.allow_saturated, tick=tick_of(run))
    outcomes = tuple(one for one in outcomes if one.kind not in left_out)
    summary = replace(summary, outcomes=outcomes)
    undecided_fails = arguments.undecided == "fail"
    findings = ci.of_run(run, summary, undecided_fails)
    write_junit(arguments, ci.junit(findings))
    if arguments.json:
        show(json_text(orjson.dumps(summary, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)))
    elif not show_as_asked(arguments, findings):
        width = min(shutil.get_terminal_size().columns, 100)
        show(
            render_comparison(summary, run, width, use_color(sys.stdout, os.environ), path=arguments.runs[0])
        )
    ending = Ending(
        internal=summary.internal,
        unanswered=summary.unanswered,
        missed=missed(outcomes, undecided_fails),
    )
    return complain(ending, arguments.runs[0])


def _two_recorded(arguments: argparse.Namespace, gates: tuple[QualityGate, ...]) -> int:
    """Compare the second of two recorded runs with the first."""
    import orjson

    from profiler.report import ci
    from profiler.report.terminal import render_regression
    from profiler.report.text import use_color
    from profiler.rundir import RunDirectory
    from profiler.statistics.gates import judge_loops, judge_objective, judge_validity, missed
    from profiler.statistics.verdicts import compare_directories

    before, after = (RunDirectory.open(path) for path in arguments.runs)
    found = compare_directories(
        before, after, gates, arguments.slo, arguments.allow_different, arguments.allow_saturated
    )
    both = [judge_loops(found.before), judge_loops(found.after)]
    outcomes = [judge_validity(found.warnings, arguments.allow_saturated)]
    outcomes.append(next((one for one in both if one.holds is False), both[1]))
    if arguments.slo is not None:
        outcomes.append(judge_objective(arguments.slo, found.after))
    outcomes += found.outcomes
    undecided_fails = arguments.undecided == "fail"
    findings = ci.of_two_runs(after.load(), found, outcomes, undecided_fails)
    write_junit(arguments, ci.junit(findings))
    if arguments.json:
        show(json_text(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)))
    elif not show_as_asked(arguments, findings):
        width = min(shutil.get_terminal_size().columns, 100)
        show(render_regression(found, outcomes, width, use_color(sys.stdout, os.environ)))
    sides = [{one.strategy: one.totals.internal for one in side} for side in (found.before, found.after)]
    internal = sum(sum(side.values()) for side in sides)  # totals are of all loads
    return complain(Ending(internal=internal, missed=missed(outcomes, undecided_fails)))


# Shared with `profiler tune`, which runs load tests too.


def add_output(parser: argparse.ArgumentParser, json: str, running: str) -> argparse._ArgumentGroup:
    """Add `--yes`, and what is said while the load runs and at its end; returns the group of the latter."""
    parser.add_argument(
        "--yes", action="store_true", help="do not ask before a load test that leaves this machine"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help=json)
    output.add_argument(
        "--format",
        choices=("text", "markdown", "github"),
        default="text",
        help="markdown for a comment on a pull request, github for annotations (default: text)",
    )
    output.add_argument(
        "--junit",
        type=Path,
        metavar="FILE",
        help="also write what was asked, and whether it holds, as JUnit XML",
    )
    output.add_argument("--quiet", action="store_true", help=f"say nothing while {running}")
    output.add_argument(
        "--allow-saturated",
        action="store_true",
        help="exit 0 even when figures are invalid: this client saturated, its machine busy, its "
        "container throttled",
    )
    return output


def check_output(arguments: argparse.Namespace) -> None:
    """Raises `UsageError` for output that could not be written, before anything runs."""
    if arguments.json and arguments.format != "text":
        raise UsageError(f"--json and --format {arguments.format}: standard output can hold one of them")
    path: Path | None = arguments.junit
    if path is None:
        return
    existed = os.path.lexists(path)
    if existed and not (path.is_file() or path.is_dir()):
        return  # a pipe or a device: to open it, and close it, would end what it leads to
    try:
        with open(path, "ab"):
            pass
    except OSError as error:
        raise UsageError(f"--junit {path}: cannot be written: {error.strerror}") from error
    if not existed:
        path.unlink()


def write_junit(arguments: argparse.Namespace, content: bytes) -> None:
    """Write the file of `--junit`, where one was asked for."""
    if arguments.junit is not None:
        try:
            arguments.junit.write_bytes(content)
        except OSError as error:
            raise UsageError(f"--junit {arguments.junit}: cannot be written: {error.strerror}") from error


def show_as_asked(arguments: argparse.Namespace, findings: Findings, besides: str | None = None) -> bool:
    """Print findings in the format that was asked for; False where that is plain text.

    `besides` is said on standard error then.
    """
    from profiler.report import ci

    if arguments.format == "text":
        return False
    show(ci.github(findings) if arguments.format == "github" else ci.markdown(findings))
    if besides is not None and not arguments.quiet:
        print(besides, file=sys.stderr, flush=True)
    return True


def asked_load(arguments: argparse.Namespace, **others: Any) -> LoadOptions:
    """The options of a load test on this command line; `others` are not on it. Raises `UsageError`."""
    # A port that was asked for is one that Prometheus scrapes: the last block must not be lost.
    linger = 0.0 if arguments.metrics_port is None else LINGER_SECONDS
    return LoadOptions.from_namespace(arguments, linger_seconds=linger, **others)


def agreed(
    arguments: argparse.Namespace,
    options: LoadOptions,
    size: Size,
    seconds: float,
    search: bool = False,
    view: LiveView | None = None,
) -> bool:
    """Show what is about to happen (`estimate_load`); ask before it leaves this machine, on a terminal.

    Where a `view` is drawn, it waits for the answer. False, and said so, when the answer is no. Raises
    `UsageError` for a target that is not to be loaded.
    """
    from profiler.commands.run import on_event_loop
    from profiler.load.estimate import estimate_load
    from profiler.load.tool_servers import look, said
    from profiler.scenarios import load_scenario

    options.check_targets(os.environ)
    scenario = load_scenario(options.scenario)
    targets = options.remote_targets(os.environ)
    asks = bool(targets) and not arguments.yes and sys.stdin.isatty() and sys.stdout.isatty()
    if asks and view is not None:
        view.stop()
    if asks or not arguments.quiet:
        servers = on_event_loop(partial(look, options)) if options.mcp else ()  # before anything else begins
        remote = len(targets) > len(options.remote_servers)  # to call tools costs no tokens
        planned = estimate_load(options, size.users, seconds, size.workers, scenario, remote, search)
        agents = max(options.levels, default=size.users)
        lines = said(servers, agents=agents, workers=size.workers, per_agent=options.mcp_per_agent)
        for line in [*planned.lines(), *lines]:
            if view is not None and not asks:
                view.say(line)
            else:
                print(line, file=sys.stderr, flush=True)
    if not asks:
        return True
    print("start? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        if view is not None:
            view.start()
        return True
    print("nothing was started", file=sys.stderr)
    return False
