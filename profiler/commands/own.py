"""`profiler run` of what the user wrote, an agent (`--agent`) or a script, and what was seen of it."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler.commands.exits import NOT_HELD, Ending, complain
from profiler.commands.script import ScriptEnd, run_script, show_error
from profiler.commands.without_load import open_page
from profiler.errors import Interrupted, ProfilerError, TargetError, UsageError
from profiler.load.clients import Pointing, set_environment
from profiler.load.context import AgentContext, LoopPosition
from profiler.load.holding import hold
from profiler.load.target import Emulators
from profiler.loop.recorder import listeners, waited_for
from profiler.providers import PROVIDERS
from profiler.records import INTERNAL, LoopRecord
from profiler.report.html.bare import gather_records
from profiler.report.html.page import write_page
from profiler.report.html.records import render_records
from profiler.watch.profiler import Profiler

if TYPE_CHECKING:
    from profiler.limits.gate import Gate
    from profiler.load.options import LoadOptions
    from profiler.providers.endpoint import Endpoint
    from profiler.redaction import Redact
    from profiler.scenarios import Scenario

MOST_KEPT = 1_000
"""Loops of a script that are kept to be shown, where no run directory is to hold all of them."""

Save = Callable[[Path, "LoadOptions", Sequence[LoopRecord], Interrupted | None], Path]
"""Leaves a run directory; returns where it is."""

HOSTS = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}
"""Where the SDKs' clients ask, unless the environment or their arguments say otherwise."""

WITHOUT_KEY = "--emulate runs it against the built-in emulator, without a key"


class OwnRun:
    """One run of the user's own code: its server, if we name one, what it left, and what is said of it."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        options: LoadOptions,
        scenario: Scenario,
        redact: Redact | None,
        gate: Gate | None,
    ) -> None:
        self.arguments = arguments
        self.options = options
        self.said: list[str] = []  # of clients that are pointed at the server
        self.count = 0
        self.records: deque[LoopRecord] = deque(maxlen=None if arguments.out is not None else MOST_KEPT)
        self.answer: Any = None
        self._overheard: list[LoopRecord] = []
        self._scenario = scenario
        self._redact = redact
        self._gate = gate
        self._process = os.getpid()
        self._emulators = Emulators()
        self.profiler = Profiler([], record_content=options.record_content, redact=redact)
        self._endpoint: Endpoint | None = None
        self._pointing: Pointing | None = None

    @waited_for
    def keep(self, record: LoopRecord) -> None:
        self.count += 1
        self.records.append(record)

    def __enter__(self) -> OwnRun:
        """Name the server to the clients that will be made: the emulator, or `--base-url`."""
        options = self.options
        if self.arguments.emulate or options.base_url is not None:
            self._endpoint = endpoint = options.endpoint(self._emulators.root(options))
            self._pointing = Pointing(endpoint, self.said.append)
            set_environment(endpoint, os.environ, with_tools=self.arguments.emulate)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process == os.getpid():
            self._emulators.stop()

    def _watch(self) -> None:
        """Watch whatever clients and tools the code uses; clients ask the server that is named, if one is."""
        point = None
        if self._pointing is not None:
            self.profiler.guard, point = self._pointing.for_plain, self._pointing.point
        self.profiler.auto(find_tools=True, conversations=True, on_client=point)

    def lacks_key(self, error: BaseException) -> bool:
        """Whether its code has no key of a server of its own: then there is a way to run it without."""
        said = f"{type(error).__name__} {error}"
        missing = any(word in said for word in ("api_key", "_API_KEY", "AuthenticationError"))
        return missing and self._endpoint is None

    def script(self) -> ScriptEnd:
        """Run the script."""
        self._watch()
        listeners.append(self.keep)
        try:
            ended = run_script(self.arguments.what, self.arguments.script_arguments)
        finally:
            self.profiler.stop()
            listeners.remove(self.keep)
        if self._process != os.getpid():  # a child that the script forked, and let come to its end
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended.code)
        return ended

    def agent(self, run: Callable[[Callable[[], Any]], Any], prompt: str | None) -> BaseException | None:
        """Run the agent once, by `run`, which runs an async function on an event loop.

        Returns what it raised, None where it came to its end.
        """
        from profiler.load.agents import load_agent
        from profiler.load.runners import CustomAgent
        from profiler.redaction import guard_logs

        options, profiler, number = self.options, self.profiler, self.arguments.number
        self._watch()  # before the agent's module is imported, which may make clients
        try:
            loaded = load_agent(options.agent or "", factory=options.factory)
            guard_logs()
            context = self._context(prompt, beside=not loaded.plain)
            profiler.recorder.add(context.sink)
            listeners.append(self._overheard.append)
            if loaded.plain:
                profiler.hold = hold  # the strategy holds back the calls of its tools

            async def once() -> BaseException | None:
                made = await loaded.make(context, dict(options.strategies[0].variant))

                async def kept() -> None:
                    self.answer = await made()

                runner = CustomAgent(kept, context, [self.keep], options.loop_timeout)
                # A failure is shown with its traceback; where there is one already, it is not logged too.
                runner.failure = before = Exception()
                try:
                    ended = await runner.run(LoopPosition(number, "", None, ""))
                finally:
                    await runner.close()
                return None if ended or runner.failure is before else runner.failure

            failure: BaseException | None = run(once)
        finally:
            profiler.stop()
            listeners[:] = [one for one in listeners if one != self._overheard.append]
            self._tidy()
        return failure

    def _tidy(self) -> None:
        """Add what was recorded outside the agent's call: by a `ToolLoop` without our sink, by threads
        without its context. Leave out its own loop where that is empty, as all requests were made elsewhere.
        Its strategy is its own where none was asked for.
        """
        known = {record.id for record in self.records}
        records = [*self.records, *(one for one in self._overheard if one.id not in known)]
        records = [record for record in records if record.rounds] or records
        if self.arguments.strategy is None:
            records = [
                replace(record, strategy="application") if record.strategy == "gathered" else record
                for record in records
            ]
        self.count += len(records) - len(self.records)
        self.records.clear()
        self.records.extend(records)

    def _context(self, prompt: str | None, beside: bool) -> AgentContext:
        """The context of a factory. `beside`: start an emulator for the worked tools, if none is named."""
        options = self.options
        tools = options.tools_url or os.environ.get("PROFILER_TOOLS_URL")
        if tools is None and (beside or self._endpoint is not None):
            tools = self._emulators.tools_root(options)
        (strategy,) = options.strategies
        return AgentContext(
            provider=options.provider,
            endpoint=self._endpoint or _their_own(options),
            body=options.fields,
            tools_url=tools or "http://127.0.0.1:9",
            model=options.model,
            strategy=strategy.build(),
            prompt=prompt or self._scenario.prompt,
            sinks=[self.keep],
            record_content=options.record_content,
            redact=self._redact,
            model_gate=self._gate,
            profiler=self.profiler,
            guard=None if self._pointing is None else self._pointing.for_plain,
            client=options.client,
        )


def _their_own(options: LoadOptions) -> Endpoint:
    """The provider's own server, or the one that the environment names."""
    sdk = PROVIDERS[options.provider].sdk
    url = os.environ.get(f"{sdk.upper()}_BASE_URL") or HOSTS[sdk]
    return options.endpoint(url)


def main(
    arguments: argparse.Namespace,
    options: LoadOptions,
    prompt: str | None,
    run: Callable[[Callable[[], Any]], Any],
    save: Save,
) -> int:
    """Run the agent or the script, show what was seen, and return the exit code.

    `run` runs an async function on an event loop, `save` leaves a run directory.
    """
    from profiler.limits.gate import Gate
    from profiler.load.agents import load_redact
    from profiler.loop.model import parse_model_limit
    from profiler.scenarios import load_scenario

    redact = None if options.redact is None else load_redact(options.redact)
    gate = None if options.model_limit is None else Gate(parse_model_limit(options.model_limit))
    own = OwnRun(arguments, options, load_scenario(options.scenario), redact, gate)
    failure: BaseException | None = None
    code = 0
    with own:
        if options.agent is None:
            ended = own.script()
            failure, code = ended.error, ended.code
        else:
            try:
                failure = own.agent(run, prompt)
            except KeyboardInterrupt as error:
                failure = error
            except UsageError as error:
                if own.lacks_key(error):
                    raise UsageError(f"{error}; {WITHOUT_KEY}") from error
                raise
    if isinstance(failure, KeyboardInterrupt):
        failure = failure if isinstance(failure, Interrupted) else Interrupted()
        failure.outcome = "in the middle of it" if own.records else "before anything was measured"
    elif failure is not None and options.agent is not None and not isinstance(failure, _OF_OURS):
        show_error(failure)  # of a script, that is done
        code = NOT_HELD
    if failure is not None and own.lacks_key(failure):
        print(f"profiler: {WITHOUT_KEY}", file=sys.stderr, flush=True)
    print()
    _show(own)
    if own.records:
        title = arguments.what if options.agent is None else options.agent
        interrupt = failure if isinstance(failure, Interrupted) else None
        records = list(own.records)
        leave(arguments, options, records, interrupt, title, save, own.count - len(records))
    if isinstance(own.answer, str):
        print(own.answer)
    if options.agent is not None and isinstance(failure, TimeoutError):
        raise TargetError(str(failure))
    if isinstance(failure, Interrupted) or (options.agent is not None and isinstance(failure, ProfilerError)):
        raise failure
    return code or complain(_ending(own.records), None if arguments.out is None else str(arguments.out))


_OF_OURS = (ProfilerError, TimeoutError)
"""Exceptions that end the run of an agent and are no fault of its code: a line says it."""


def _ending(records: Sequence[LoopRecord] | deque[LoopRecord]) -> Ending:
    """Nothing was asked of the loops but that there is one, and that not all of them fail."""
    heard = [round_.model.heard for record in records for round_ in record.rounds]
    return Ending(
        internal=sum(record.error_type == INTERNAL for record in records),
        unanswered=False in heard and True not in heard,
        # A tool that raised is the agent's own business where it went on to its end.
        missed=not any(record.status == "ok" for record in records if not record.nested),
    )


def _show(own: OwnRun) -> None:
    """The loops in the terminal, what was watched, and what was not seen."""
    from profiler.report.look import look
    from profiler.report.text import clean, counted, use_color
    from profiler.report.timeline import wrapped

    width = min(shutil.get_terminal_size().columns, 120)
    color = use_color(sys.stdout, os.environ)
    left_out = own.count - len(own.records)
    print(look(list(own.records), own.profiler.found, width, color, left_out), end="")
    around = sum(record.unlimited_calls or 0 for record in own.records)
    if around and own.options.agent is not None and own.arguments.strategy is not None:
        own.said.append(
            f"{clean(own.arguments.strategy)} was not heeded: {counted(around, 'call')} went around its "
            "limit; hand the agent's calls to ctx.execute, ctx.slot or a ToolLoop with ctx.strategy"
        )
    for line in own.said:
        print("\n".join(wrapped(line, width)))


def leave(
    arguments: argparse.Namespace,
    options: LoadOptions,
    records: Sequence[LoopRecord],
    ended: Interrupted | None,
    title: str,
    save: Save,
    left_out: int = 0,
) -> None:
    """Leave a run directory and the page, where they are asked for, and open that; says where they are."""
    if arguments.out is not None:
        folder = save(arguments.out, options, records, ended)
        print(f"run directory: {folder}")
    elif arguments.open:
        folder = Path(tempfile.mkdtemp(prefix="profiler-"))
    else:
        return
    page = folder / "report.html"
    write_page(page, render_records(gather_records(records, title, left_out)), folder)
    print(f"page: {page}")
    if arguments.open:
        open_page(page)
