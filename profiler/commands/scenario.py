"""`profiler scenario`: a scenario file for the tools of an agent of one's own."""

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
        "write a scenario file for the tools of your agent",
        main,
        "--agent my_app:agent -o mine.toml",
        '--agent my_app:make_agent --provider anthropic --prompt "Compare the weather of Tokyo and Paris"',
    )
    parser.add_argument(
        "--agent",
        type=TEXT.argument,
        required=True,
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
    from profiler.commands.own import OwnRun
    from profiler.scenarios import load_scenario, parse_scenario
    from profiler.scenarios.written import written

    output: Path | None = arguments.output
    if output is not None and output.exists():
        raise UsageError(f"--output {output} exists already: name another file")
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
    if output is None:
        show(text)
        return 0
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--output {output}: cannot write: {error.strerror}") from error
    names = ", ".join(tool.name for tool in tools)
    print(f"{output}: {names}; fill in rounds and fan_out", file=sys.stderr)
    return 0
