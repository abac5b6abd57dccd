"""`profiler compare`: strategies under load, and how they compare."""

from __future__ import annotations

import argparse
import os
import shutil
import sys

from profiler.commands.options import add_target, positive, seconds

DEFAULT_STRATEGIES = ("sequential", "gathered", "semaphore:4")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "compare",
        help="compare strategies under load",
        epilog="examples:\n"
        "  profiler compare --users 40 --duration 30s\n"
        "  profiler compare --strategy gathered --strategy semaphore:8 --scenario fanout --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_target(parser)
    parser.add_argument(
        "--strategy",
        action="append",
        metavar="S",
        help="sequential, gathered, semaphore:N, semaphore:N@agent; may be repeated "
        f"(default: {', '.join(DEFAULT_STRATEGIES)})",
    )
    parser.add_argument("--users", type=positive, default=20, metavar="N", help="agents (default: 20)")
    parser.add_argument(
        "--duration",
        type=seconds,
        default=15.0,
        metavar="T",
        help="measuring time per strategy: 10s, 2m (default: 15s)",
    )
    parser.add_argument(
        "--blocks", type=positive, metavar="N", help="turns that every strategy gets (default: by duration)"
    )
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="processes that run agents")
    parser.add_argument(
        "--drain",
        type=seconds,
        default=30.0,
        metavar="T",
        help="wait for loops in flight at most (default: 30s)",
    )
    parser.add_argument("--metrics-port", type=int, metavar="P", help="serve /metrics on this port")
    parser.add_argument(
        "--out", default="runs", metavar="DIR", help="where run directories go (default: runs)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print summary.json, and nothing else, on standard output"
    )
    parser.set_defaults(command=main)


def main(arguments: argparse.Namespace) -> int:
    from profiler.load.experiment import Experiment, run_experiment
    from profiler.load.options import LoadOptions
    from profiler.report.terminal import render_comparison, use_color
    from profiler.rundir import RunDirectory
    from profiler.statistics.summary import summarise_directory

    options = LoadOptions(
        strategies=tuple(arguments.strategy or DEFAULT_STRATEGIES),
        provider=arguments.provider,
        scenario=arguments.scenario,
        base_url=arguments.base_url,
        tools_url=arguments.tools_url,
        model=arguments.model,
        allow_remote=arguments.allow_remote,
        tool_choice=arguments.tool_choice,
        parallel_tool_calls=arguments.parallel_tool_calls,
        stream=arguments.stream,
        max_rounds=arguments.max_rounds,
        blocks=arguments.blocks,
        seed=arguments.seed,
        drain_seconds=arguments.drain,
        out=arguments.out,
        metrics_port=arguments.metrics_port,
    )
    path = run_experiment(
        Experiment(options, arguments.users, arguments.duration, arguments.workers),
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    directory = RunDirectory.open(path)
    run = directory.load()
    summary = summarise_directory(directory)
    directory.save_summary(summary)
    if arguments.json:
        sys.stdout.write(directory.summary_path.read_text())
    else:
        width = min(shutil.get_terminal_size().columns, 100)
        print(render_comparison(summary, run, width, use_color(sys.stdout, os.environ), path=str(path)))
    if any(incident.kind == "interrupted" for incident in run.incidents):
        return 130
    return 0 if summary.valid else 1
