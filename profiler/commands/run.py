"""`profiler run`: one loop, its timeline drawn in the terminal."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from profiler.commands import add_command
from profiler.commands.exits import Ending, complain
from profiler.errors import Interrupted, ProfilerError, TargetError, Terminated
from profiler.load.declared import COUNT_FROM_0, TEXT, add_options
from profiler.load.options import GROUPS, STRATEGY_FORMS, LoadOptions
from profiler.process.signals import DRAIN_SECONDS, signals

if TYPE_CHECKING:
    from profiler.commands import Commands
    from profiler.records import LoopRecord

T = TypeVar("T")


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "run",
        "run one loop and draw its timeline",
        main,
        "--provider anthropic --strategy semaphore:2",
        "--scenario fanout --stream --strategy eager",
        "--base-url http://127.0.0.1:8000 --model my-model --out runs",
    )
    add_options(parser, "run", (LoadOptions,), GROUPS)
    loop = parser.add_argument_group("loop")
    loop.add_argument(
        "--strategy",
        type=TEXT.argument,
        default="gathered",
        metavar="S",
        help=f"{STRATEGY_FORMS} (default: gathered)",
    )
    loop.add_argument(
        "--prompt", type=TEXT.argument, metavar="TEXT", help="the user's message (default: the scenario's)"
    )
    loop.add_argument(
        "--number",
        type=COUNT_FROM_0.argument,
        default=0,
        metavar="I",
        help="which entry of the tape to work on",
    )
    loop.add_argument("--out", type=Path, metavar="DIR", help="also leave a run directory in DIR")


def main(arguments: argparse.Namespace) -> int:
    from profiler.limits.gate import Gate
    from profiler.load.agents import load_redact
    from profiler.load.preparation import built_in_loops
    from profiler.load.target import Emulators
    from profiler.loop.model import parse_model_limit
    from profiler.loop.supervision import Supervision, supervised
    from profiler.records import INTERNAL
    from profiler.redaction import guard_logs
    from profiler.report.terminal import use_color
    from profiler.report.timeline import render_timeline
    from profiler.rundir import RunDirectory
    from profiler.scenarios import load_scenario
    from profiler.scenarios.tools import close_tool_clients, tool_session
    from profiler.statistics.verdicts import no_tool_calls
    from profiler.strategies import parse_strategy

    options = LoadOptions.from_namespace(
        arguments, strategies=(parse_strategy(arguments.strategy),), out="runs", allow_remote=True
    )
    options.check_variants()
    options.check_targets(os.environ)
    if arguments.out is not None:
        RunDirectory.check_parent(arguments.out)
    scenario = load_scenario(options.scenario)
    (strategy,) = options.strategies
    redact = None if options.redact is None else load_redact(options.redact)
    gate = None if options.model_limit is None else Gate(parse_model_limit(options.model_limit))
    records: list[LoopRecord] = []
    text = ""
    failure: BaseException | None = None

    async def once() -> BaseException | None:
        make = built_in_loops(options, options.endpoint(base_url), tools_url, scenario, redact, gate)
        guard_logs()  # the SDK, imported just now, may have set up logging
        loop = make(strategy=strategy, sinks=[records.append])
        tool_session()  # made now, so that the first tool call does not pay for it
        prompt = arguments.prompt or scenario.prompt.replace("{number}", str(arguments.number))

        async def loop_once() -> None:
            nonlocal text
            text = (await loop.run(prompt, number=arguments.number)).text

        try:
            return await supervised(loop_once, options.loop_timeout, Supervision())
        finally:
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
    for record in records:
        if record.answered and not record.good:
            print(f"the loop failed: {_why(record)}")
        if record.answered and not any(True for _ in record.tool_calls):
            models = [round_.model for round_ in record.rounds]
            server_tools = sum(len(model.server_tools) for model in models)
            unreadable = sum(model.unreadable for model in models)
            print(no_tool_calls(1, server_tools, unreadable, "the model answered at once"))
        print(render_timeline(record, width, use_color(sys.stdout, os.environ)))
    if arguments.out is not None and records:
        interruption = failure if isinstance(failure, Interrupted) else None
        print(f"run directory: {_save(arguments.out, options, records, interruption)}")
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
    parent: Path, options: LoadOptions, records: Sequence[LoopRecord], ended: Interrupted | None
) -> Path:
    """Leave what `run` recorded as a run directory."""
    from dataclasses import replace

    from profiler.load.options import conditions
    from profiler.records import encode
    from profiler.rundir import Incident, RunDirectory
    from profiler.statistics.summary import summarise

    incidents = () if ended is None else (Incident(ended.incident, ended.cause),)
    run = replace(conditions(options, users=1), finished=ended is None, incidents=incidents)
    directory = RunDirectory.create(parent, run)
    with open(directory.records_path, "ab") as file:
        file.writelines(encode(record) + b"\n" for record in records)
    directory.save_summary(summarise(run, records))
    return directory.path
