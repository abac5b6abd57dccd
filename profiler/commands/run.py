"""`profiler run`: one loop, its timeline drawn in the terminal."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from profiler.commands import add_command
from profiler.commands.exits import Ending, complain
from profiler.errors import Interrupted, ProfilerError, TargetError, Terminated, UsageError
from profiler.load.declared import COUNT_FROM_0, TEXT, add_options
from profiler.load.options import GROUPS, STRATEGY_FORMS, LoadOptions
from profiler.process.signals import DRAIN_SECONDS, signals

if TYPE_CHECKING:
    from profiler.commands import Commands
    from profiler.commands.own import Save
    from profiler.records import LoopRecord
    from profiler.rundir import Incident, McpServer

T = TypeVar("T")

SUFFIX = ".py"
"""The end of a positional argument that is a script."""


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "run",
        "run one loop and draw its timeline",
        main,
        "--provider anthropic --strategy semaphore:2",
        "--base-url http://127.0.0.1:8000 --model my-model --out runs",
        "script.py an argument              # a script of yours, as `python script.py an argument`",
        '--agent my_app:agent "Compare the weather of Tokyo and Paris" --open',
        "--agent my_app:agent --emulate      # the emulator as its model: no key, no cost",
    )
    parser.add_argument(
        "what",
        nargs="?",
        type=TEXT.argument,
        metavar="SCRIPT|PROMPT",
        help="what ends in .py is a script of yours, all that follows it the script's own arguments, and its "
        "exit code is kept; anything else is the user's message",
    )
    add_options(parser, "run", (LoadOptions,), GROUPS)
    loop = parser.add_argument_group("loop")
    loop.add_argument(
        "--strategy",
        type=TEXT.argument,
        metavar="S",
        help=f"{STRATEGY_FORMS} (default: gathered; of --agent, its own way)",
    )
    loop.add_argument(
        "--prompt",
        type=TEXT.argument,
        metavar="TEXT",
        help="the user's message, as without --prompt (default: the scenario's)",
    )
    loop.add_argument(
        "--emulate",
        action="store_true",
        help="have the script or --agent ask the emulator, whatever server its clients name (without "
        "--agent and script: the default)",
    )
    loop.add_argument(
        "--number",
        type=COUNT_FROM_0.argument,
        default=0,
        metavar="I",
        help="which entry of the tape to work on",
    )
    loop.add_argument(
        "--out", type=Path, metavar="DIR", help="also leave a run directory in DIR, with the report page"
    )
    loop.add_argument("--open", action="store_true", help="write the report page, and open it in the browser")
    parser.set_defaults(script_arguments=[])


def cut(arguments: Sequence[str], parser: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
    """The arguments of `run` without those behind a script, which are the script's own; and those."""
    known = parser._option_string_actions
    place = 0
    while place < len(arguments):
        name, equals, _ = arguments[place].partition("=")
        if not name.startswith("-") or name == "-":
            break
        place += 1
        if name == "--":
            break
        named = {id(one): one for option, one in known.items() if option.startswith(name)}
        action = known.get(name) or (next(iter(named.values())) if len(named) == 1 else None)
        if action is not None and action.nargs is None and not equals:
            place += 1
    if place < len(arguments) and arguments[place].endswith(SUFFIX):
        return list(arguments[: place + 1]), list(arguments[place + 1 :])
    return list(arguments), []


def main(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from profiler.limits.gate import Gate
    from profiler.load.agents import load_redact
    from profiler.load.health import lost_sessions
    from profiler.load.preparation import built_in_loops
    from profiler.load.target import Emulators
    from profiler.load.tool_servers import ToolServers, lost_said, said
    from profiler.loop.model import parse_model_limit
    from profiler.loop.supervision import Supervision, supervised
    from profiler.records import INTERNAL
    from profiler.redaction import guard_logs
    from profiler.report.text import use_color
    from profiler.report.timeline import render_timeline
    from profiler.rundir import Incident, RunDirectory
    from profiler.scenarios import load_scenario
    from profiler.scenarios.tools import close_tool_clients, tool_session
    from profiler.statistics.invented import REMEDY, refused_calls
    from profiler.statistics.verdicts import no_tool_calls
    from profiler.strategies import parse_strategy

    strategy_named = parse_strategy(arguments.strategy or "gathered")
    options = LoadOptions.from_namespace(arguments, strategies=(strategy_named,), out="runs")
    prompt_given = _prompt(arguments, options)
    options.check_servers()
    options = replace(options, allow_remote=True)  # one loop is no load
    options.check_variants()
    options.check_targets(os.environ)
    if arguments.out is not None:
        RunDirectory.check_parent(arguments.out)
    if options.agent is not None or _is_script(arguments):
        from profiler.commands import own

        script = arguments.what if options.agent is None else None
        return own.main(arguments, options, prompt_given, on_event_loop, partial(_save, script=script))
    scenario = load_scenario(options.scenario)
    (strategy,) = options.strategies
    redact = None if options.redact is None else load_redact(options.redact)
    gate = None if options.model_limit is None else Gate(parse_model_limit(options.model_limit))
    servers = ToolServers(options)
    records: list[LoopRecord] = []
    text = ""
    failure: BaseException | None = None

    async def once() -> BaseException | None:
        tools = None
        if servers.specs:
            try:
                tools = (await servers.open()).tools
            except BaseException:
                await servers.close()
                raise
            for line in said(servers.described, agents=1):
                print(line, file=sys.stderr, flush=True)
        make = built_in_loops(options, options.endpoint(base_url), tools_url, scenario, redact, gate, tools)
        guard_logs()  # the SDK, imported just now, may have set up logging
        loop = make(strategy=strategy, sinks=[records.append])
        if tools is None:
            tool_session()  # made now, so that the first tool call does not pay for it
        prompt = prompt_given or scenario.prompt.replace("{number}", str(arguments.number))

        async def loop_once() -> None:
            nonlocal text
            text = (await loop.run(prompt, number=arguments.number)).text

        try:
            return await supervised(loop_once, options.loop_timeout, Supervision())
        finally:
            await servers.close()
            await close_tool_clients()
            await loop.model.client.close()  # type: ignore[attr-defined]

    emulators = Emulators()
    try:
        base_url = emulators.root(options)
        tools_url = emulators.tools_root(options)
        failure = on_event_loop(once)
    except KeyboardInterrupt as error:
        failure = ended = error if isinstance(error, Interrupted) else Interrupted()
        ended.outcome = "in the middle of the loop" if records else "before anything was measured"
    finally:
        emulators.stop()
    width = min(shutil.get_terminal_size().columns, 120)
    lost = Counter(server for record in records for server in lost_sessions(record))
    for server, calls in lost.items():
        print(lost_said(server, calls))
    if options.base_url is None:
        made = [call for record in records for call in record.tool_calls]
        for line in refused_calls(servers.described, made):
            print(f"{line}; {REMEDY}")
    for record in records:
        if record.answered and not record.good:
            print(f"the loop failed: {_why(record)}")
        if record.answered and not any(True for _ in record.tool_calls):
            models = [round_.model for round_ in record.rounds]
            server_tools = sum(len(model.server_tools) for model in models)
            unreadable = sum(model.unreadable for model in models)
            print(no_tool_calls(1, server_tools, unreadable, "the model answered at once"))
        print(render_timeline(record, width, use_color(sys.stdout, os.environ)))
    if records:
        interruption = failure if isinstance(failure, Interrupted) else None
        incidents = [
            Incident("server_lost", lost_said(server, calls), calls) for server, calls in lost.items()
        ]
        save = partial(_save, mcp_servers=servers.described, lost=incidents)
        _leave(arguments, options, records, interruption, save)
    internal = sum(record.error_type == INTERNAL for record in records)
    if isinstance(failure, TimeoutError):
        raise TargetError(str(failure))
    if failure is not None and not (internal and isinstance(failure, ProfilerError)):
        raise failure
    if failure is None:
        print(text)
    missed = any(not record.good for record in records if not record.nested)
    where = None if arguments.out is None else str(arguments.out)
    return complain(Ending(error=failure, internal=internal, missed=missed), where)


def _is_script(arguments: argparse.Namespace) -> bool:
    return bool(arguments.what and arguments.what.endswith(SUFFIX))


def _prompt(arguments: argparse.Namespace, options: LoadOptions) -> str | None:
    """The user's message, None where none was given. Raises `UsageError` for arguments that contradict."""
    given: str | None = arguments.prompt
    if arguments.emulate and options.base_url is not None:
        raise UsageError("--emulate and --base-url name two servers: give one of them")
    if _is_script(arguments):
        for option, value in (("--agent", options.agent), ("--prompt", given), ("--mcp", options.mcp)):
            if value or value == "":
                raise UsageError(
                    f"{option} is not for a script: {arguments.what} runs as it is, with what stands "
                    "behind it"
                )
        if options.client != "sdk":
            raise UsageError(
                f"--client is not for a script: {arguments.what} runs as it is, with clients of its own"
            )
        if arguments.strategy is not None:
            raise UsageError(
                f"--strategy is not for a script: {arguments.what} runs its calls in its own way; --agent "
                "takes it"
            )
        return None
    if arguments.what is not None and given is not None:
        raise UsageError("the prompt is given twice: once with --prompt, once without")
    return given if given is not None else arguments.what


def _leave(
    arguments: argparse.Namespace,
    options: LoadOptions,
    records: Sequence[LoopRecord],
    ended: Interrupted | None,
    save: Save,
) -> None:
    """Leave a run directory and the page, where they are asked for; says where."""
    from profiler.commands.own import leave

    leave(arguments, options, records, ended, options.scenario, save)


def _why(record: LoopRecord) -> str:
    """`timeout (get_weather) 2`: the calls that failed in a loop that came to an answer."""
    failed = Counter(f"{call.failure} ({call.name})" for call in record.tool_calls if call.failure)
    return ", ".join(f"{what} {count}" for what, count in failed.most_common())


def on_event_loop(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function on uvloop, or on asyncio's own loop where uvloop is missing.

    After SIGTERM it is cancelled unless it ends within `DRAIN_SECONDS`; after an interrupt, or a second
    SIGTERM, at once. Raises `KeyboardInterrupt` or `Terminated` where it was.
    """
    try:
        from uvloop import new_event_loop
    except ImportError:
        new_event_loop = asyncio.new_event_loop  # type: ignore[assignment]
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        ending = _Ending(runner.get_loop())
        with signals.handled(ending.hear):
            try:
                return runner.run(ending.watched(main))
            except asyncio.CancelledError:
                if ending.told is None:
                    raise
                raise ending.told from None


class _Ending:
    """Cancels what runs on an event loop some time after it was told to end."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.told: Terminated | None = None
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None

    async def watched(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        self._task = asyncio.current_task()
        return await main()

    def hear(self, told: Terminated) -> None:
        """In the main thread, in the midst of whatever it does."""
        if self._task is None:
            raise told
        loop, cancel, seconds = self._loop, self._task.cancel, DRAIN_SECONDS if self.told is None else 0.0
        self.told = told
        loop.call_soon_threadsafe(lambda: loop.call_later(seconds, cancel))


def _save(
    parent: Path,
    options: LoadOptions,
    records: Sequence[LoopRecord],
    ended: Interrupted | None,
    script: str | None = None,
    mcp_servers: tuple[McpServer, ...] = (),
    lost: Sequence[Incident] = (),
) -> Path:
    """Leave what `run` recorded as a run directory."""
    from dataclasses import replace

    from profiler.load.options import conditions
    from profiler.records import encode
    from profiler.report.html import SCRIPT
    from profiler.rundir import Incident, RunDirectory
    from profiler.statistics.summary import summarise

    incidents = (*lost, *(() if ended is None else (Incident(ended.incident, ended.cause),)))
    asked = conditions(options, users=1)
    named = {} if script is None else {SCRIPT: script}
    run = replace(
        asked,
        finished=ended is None,
        incidents=incidents,
        arguments={**asked.arguments, **named},
        mcp_servers=mcp_servers,
    )
    directory = RunDirectory.create(parent, run)
    with open(directory.records_path, "ab") as file:
        file.writelines(encode(record) + b"\n" for record in records)
    directory.save_summary(summarise(run, records))
    return directory.path
