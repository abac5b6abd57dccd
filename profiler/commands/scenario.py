"""`profiler scenario`: a scenario file for the tools of an agent of one's own, or from a recording."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.commands import add_command, show
from profiler.commands.run import on_event_loop
from profiler.errors import UsageError
from profiler.load.declared import TEXT
from profiler.load.options import LoadOptions
from profiler.strategies import parse_strategies

if TYPE_CHECKING:
    from profiler.commands import Commands


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "scenario",
        "write a scenario file for the tools of your agent, or one that behaves as a recording",
        main,
        "--from runs/20260101-120000 -o mine.toml",
        "--agent my_app:agent -o mine.toml",
        '--agent my_app:make_agent --provider anthropic --prompt "Compare the weather of Tokyo and Paris"',
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--from",
        dest="recording",
        type=Path,
        metavar="RUN",
        help="a run directory (measured, imported, collected, proxied): model and tools behave as in it",
    )
    source.add_argument(
        "--agent",
        type=TEXT.argument,
        metavar="MODULE:FUNCTION",
        help="your agent, which is run once on the emulator to see which tools it offers the model",
    )
    parser.add_argument("--factory", action="store_true", help="MODULE:FUNCTION makes agents, and is none")
    parser.add_argument(
        "--provider",
        choices=("openai", "openai-responses", "anthropic"),
        default="openai",
        help="whose SDK a factory is to use (default: openai)",
    )
    parser.add_argument("--prompt", type=TEXT.argument, metavar="TEXT", help="the user's message")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="where to write it (default: standard output)"
    )


def main(arguments: argparse.Namespace) -> int:
    output: Path | None = arguments.output
    if output is not None and output.exists():
        raise UsageError(f"--output {output} exists already: name another file")
    if arguments.recording is not None:
        text, said = _from_recording(arguments)
    else:
        text, said = _from_agent(arguments)
    if output is None:
        show(text)
        return 0
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--output {output}: cannot write: {error.strerror}") from error
    print(f"{output}: {said}", file=sys.stderr)
    return 0


def _from_recording(arguments: argparse.Namespace) -> tuple[str, str]:
    """The file's text, and what to tell of it."""
    from profiler.prediction.fitting import fit_run
    from profiler.prediction.scenario.file import not_known, too_small, written
    from profiler.prediction.scenario.parts import fit_of
    from profiler.rundir import RunDirectory
    from profiler.scenarios import parse_scenario

    for option in ("prompt", "factory"):
        if getattr(arguments, option):
            raise UsageError(f"--{option} is about an agent: with --from there is none")
    directory = RunDirectory.open(arguments.recording)
    run, records = directory.load(), list(directory.records())
    fit = fit_of(fit_run(run, records), records)
    problem = too_small(fit)
    if problem is not None:
        raise UsageError(f"--from {arguments.recording}: {problem}")
    text = written(fit)
    parse_scenario(text, name="written", source="the scenario")  # what is written can be read
    unknown = not_known(fit)
    said = [
        f"from {fit.source.loops:,} loops with {fit.source.calls:,} calls of {len(fit.tools)} tools",
        *(["not known:"] if unknown else []),
        *(f"  {one}" for one in unknown),
    ]
    users = f" --users {fit.source.levels[-1]}" if fit.source.levels else ""
    if arguments.output is not None:
        path = arguments.output if "/" in str(arguments.output) else f"./{arguments.output}"
        said.append(f"next: profiler compare --scenario {path} --strategy gathered{users}")
    else:
        print("\n".join(said), file=sys.stderr)
    return text, "\n".join(said)


def _from_agent(arguments: argparse.Namespace) -> tuple[str, str]:
    """The file's text, and what to tell of it."""
    from profiler.commands.own import OwnRun
    from profiler.scenarios import load_scenario, parse_scenario
    from profiler.scenarios.written import written

    options = LoadOptions(
        provider=arguments.provider,
        agent=arguments.agent,
        factory=arguments.factory,
        strategies=parse_strategies("gathered"),
    )
    # As `profiler run --emulate` has it.
    arguments.emulate, arguments.out, arguments.strategy, arguments.number = True, None, None, 0
    scenario = load_scenario(options.scenario)
    with OwnRun(arguments, options, scenario, None, None) as own:
        failure = own.agent(on_event_loop, arguments.prompt)
    tools = own.profiler.offered
    if not tools:
        failed = "" if failure is None else f" (it failed: {type(failure).__name__})"
        raise UsageError(f"--agent {arguments.agent} offered the model no tools{failed}: nothing to write")
    text = written(tools, arguments.prompt or scenario.prompt, arguments.agent)
    parse_scenario(text, name="written", source="the scenario")  # what is written can be read
    return text, f"{', '.join(tool.name for tool in tools)}; fill in rounds and fan_out"
