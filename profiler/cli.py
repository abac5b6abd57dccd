"""The `profiler` command. Heavy imports happen in the commands that need them.

Exit codes: 0 done; 1 the run finished but what was asked of it did not hold; 2 wrong usage or
input; 3 the target could not be reached or refused us; 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from profiler.errors import ProfilerError, ProviderError

if TYPE_CHECKING:
    from profiler.records import LoopRecord

T = TypeVar("T")

DEFAULT_STRATEGIES = ("sequential", "gathered", "semaphore:4")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.command(arguments)
        return code
    except ProfilerError as error:
        print(f"profiler: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): not our failure, and nothing more to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


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
    _add_run(commands)
    _add_compare(commands)
    _add_trace(commands)
    _add_emulate(commands)
    scenarios = commands.add_parser("scenarios", help="list the scenarios that ship")
    scenarios.set_defaults(command=_scenarios)
    return parser


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("toolcall-profiler")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0+unknown"


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--provider",
        default="openai",
        choices=("openai", "openai-responses", "anthropic"),
        help="whose SDK and wire format (default: openai)",
    )
    parser.add_argument(
        "--scenario", default="cities", metavar="NAME|FILE", help="what the work is (default: cities)"
    )
    parser.add_argument(
        "--base-url", metavar="URL", help="the model server, root or ending in /v1 (default: the emulator)"
    )
    parser.add_argument(
        "--tools-url", metavar="URL", help="root of the tools' server (default: the emulator)"
    )
    parser.add_argument("--model", metavar="M", help="model name (default: gpt-4o, claude-sonnet-4-5)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="seed of the emulated work")
    parser.add_argument(
        "--max-rounds", type=_positive, default=5, metavar="N", help="rounds with calls at most"
    )
    parser.add_argument(
        "--tool-choice", default="auto", metavar="C", help="auto, none, required, or a tool's name"
    )
    parser.add_argument(
        "--no-parallel-tool-calls",
        dest="parallel_tool_calls",
        action="store_false",
        help="ask for one call per response: a baseline",
    )
    parser.add_argument("--stream", action="store_true", help="ask for streamed responses")
    parser.add_argument(
        "--allow-remote", action="store_true", help="let a load test go beyond this machine: it costs money"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "run",
        help="run one loop and draw its timeline",
        epilog="example:  profiler run --provider anthropic --strategy semaphore:2",
    )
    _add_target(parser)
    parser.add_argument(
        "--strategy", default="gathered", metavar="S", help="sequential, gathered, semaphore:N"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="the user's message (default: the scenario's)")
    parser.add_argument(
        "--number", type=int, default=0, metavar="I", help="which entry of the tape to work on"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="also leave a run directory in DIR")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from profiler.emulator.process import start_emulator
    from profiler.loop import ToolLoop
    from profiler.providers import make_provider
    from profiler.report.terminal import use_color
    from profiler.report.timeline import render_timeline
    from profiler.scenario import load_scenario
    from profiler.scenario_tools import scenario_tools
    from profiler.strategies import parse_strategy
    from profiler.tool_http import close_tool_client, tool_client

    scenario = load_scenario(arguments.scenario)
    strategy = parse_strategy(arguments.strategy)
    records: list[LoopRecord] = []
    failure: ProviderError | None = None

    async def once() -> str:
        model = make_provider(arguments.provider, base_url=base_url, model=arguments.model)
        loop = ToolLoop(
            model,
            scenario_tools(scenario),
            strategy,
            max_rounds=arguments.max_rounds,
            tool_choice=arguments.tool_choice,
            parallel_tool_calls=arguments.parallel_tool_calls,
            stream=arguments.stream,
            sinks=[records.append],
        )
        tool_client()  # made now, so that the first tool call does not pay for it
        prompt = arguments.prompt or scenario.prompt.format(number=arguments.number)
        try:
            return (await loop.run(prompt, number=arguments.number)).text
        finally:
            await close_tool_client()
            await model.client.close()  # type: ignore[attr-defined]

    with ExitStack() as stack:
        base_url = arguments.base_url
        if base_url is None:
            base_url = stack.enter_context(start_emulator(arguments.scenario, seed=arguments.seed)).url
        os.environ["PROFILER_TOOLS_URL"] = arguments.tools_url or base_url.removesuffix("/v1")
        try:
            text = on_event_loop(once)
        except ProviderError as error:
            failure, text = error, ""
    width = min(shutil.get_terminal_size().columns, 120)
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    for record in records:
        print(render_timeline(record, width, use_color(sys.stdout, os.environ), unicode))
    if arguments.out is not None:
        print(f"run directory: {_save(arguments, records)}")
    if failure is not None:
        raise failure
    print(text)
    return 0


def on_event_loop(main: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine function on uvloop, or on asyncio's own loop where uvloop is missing."""
    new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        pass
    else:
        new_event_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_awaited(main))


async def _awaited(main: Callable[[], Awaitable[T]]) -> T:
    return await main()


def _save(arguments: argparse.Namespace, records: Sequence[LoopRecord]) -> Path:
    """Leave what `run` recorded as a run directory."""
    from dataclasses import replace

    from profiler.load.conditions import conditions
    from profiler.load.options import LoadOptions
    from profiler.records import encode
    from profiler.rundir import RunDirectory
    from profiler.statistics.summary import summarise

    options = LoadOptions(
        strategies=(arguments.strategy,),
        provider=arguments.provider,
        scenario=arguments.scenario,
        base_url=arguments.base_url,
        tools_url=arguments.tools_url,
        model=arguments.model,
        allow_remote=True,
        seed=arguments.seed,
    )
    run = replace(conditions(options, users=1), finished=True)
    directory = RunDirectory.create(arguments.out, run)
    with open(directory.records_path, "ab") as file:
        file.writelines(encode(record) + b"\n" for record in records)
    directory.save_summary(summarise(run, records))
    return directory.path


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "compare",
        help="compare strategies under load",
        epilog="examples:\n"
        "  profiler compare --users 40 --duration 30s\n"
        "  profiler compare --strategy gathered --strategy semaphore:8 --scenario fanout --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_target(parser)
    parser.add_argument(
        "--strategy",
        action="append",
        metavar="S",
        help="sequential, gathered, semaphore:N, semaphore:N@agent; may be repeated "
        f"(default: {', '.join(DEFAULT_STRATEGIES)})",
    )
    parser.add_argument("--users", type=_positive, default=20, metavar="N", help="agents (default: 20)")
    parser.add_argument(
        "--duration",
        type=_seconds,
        default=15.0,
        metavar="T",
        help="measuring time per strategy: 10s, 2m (default: 15s)",
    )
    parser.add_argument(
        "--blocks", type=_positive, metavar="N", help="turns that every strategy gets (default: by duration)"
    )
    parser.add_argument("--workers", type=_positive, default=1, metavar="N", help="processes that run agents")
    parser.add_argument(
        "--drain",
        type=_seconds,
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
    parser.set_defaults(command=_compare)


def _compare(arguments: argparse.Namespace) -> int:
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


def _seconds(text: str) -> float:
    """`10s`, `500ms`, `2m`, `1h`, or a plain number of seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time: expected 10s, 500ms, 2m or a number of seconds"
        )
    return float(match[1]) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[match[2] or "s"]


def _add_trace(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "trace",
        help="turn a run into a trace for ui.perfetto.dev",
        epilog="example:  profiler trace runs/20260101-120000 -o trace.json.gz --slowest 20",
    )
    parser.add_argument("run", metavar="RUN", help="a run directory, or a file of records")
    parser.add_argument("-o", "--output", type=Path, default=Path("trace.json.gz"), metavar="FILE")
    parser.add_argument("--loops", type=_positive, metavar="N", help="only the first N loops")
    parser.add_argument("--slowest", type=_positive, metavar="N", help="only the N slowest loops")
    parser.set_defaults(command=_trace)


def _trace(arguments: argparse.Namespace) -> int:
    from profiler.exporters.perfetto import write_trace

    trace = write_trace(arguments.run, arguments.output, arguments.loops, arguments.slowest)
    print(f"{arguments.output}: {trace.shown} of {trace.of} loops ({trace.selection})")
    print("open it at https://ui.perfetto.dev")
    return 0


def _add_emulate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "emulate",
        help="serve the emulated model and tool APIs",
        epilog="example:  profiler emulate --port 8100 --scenario fanout",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8100, help="port, 0 for a free one (default: 8100)")
    parser.add_argument("--scenario", default="cities", metavar="NAME|FILE", help="what the work is")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="seed of the emulated work")
    parser.set_defaults(command=_emulate)


def _emulate(arguments: argparse.Namespace) -> int:
    from profiler.emulator.server import main as serve

    return serve(
        [
            f"--host={arguments.host}",
            f"--port={arguments.port}",
            f"--scenario={arguments.scenario}",
            f"--seed={arguments.seed}",
        ]
    )


def _scenarios(arguments: argparse.Namespace) -> int:
    from profiler.scenario import shipped_scenarios

    shipped = shipped_scenarios()
    width = max(len(scenario.name) for scenario in shipped)
    for scenario in shipped:
        print(f"{scenario.name:{width}}  {scenario.description}")
    return 0
