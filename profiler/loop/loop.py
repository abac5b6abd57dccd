"""The loop that is profiled: model → tools → model, for several rounds.

`ToolLoop` runs it; every run yields one `LoopRecord`. A tool call that fails stays inside the loop: the
model sees an error result. A model request that fails ends the loop.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace

from profiler.errors import ProviderError, UsageError
from profiler.loop.calls import CallOwner, Executor, OpenCall
from profiler.loop.eventloop import NativeThreads
from profiler.loop.lag import LagSampler, late_ns
from profiler.loop.model import (
    LOOP_HEADER,
    TRIAL_HEADER,
    Message,
    Model,
    Probe,
    Reply,
    RequestOptions,
    ToolResult,
    current_probe,
)
from profiler.loop.nesting import Running, begun_in_call
from profiler.loop.recorder import LiveCalls, Recorder, Sink, fresh_id
from profiler.loop.supervision import can_tell, cancelled_as
from profiler.loop.tools import Function, Tool, result_text, tools_by_name
from profiler.records import INTERNAL, Clock, LoopRecord, ModelCall, RoundRecord, Status, ToolCall
from profiler.redaction import Content, Redact
from profiler.shortfalls import Ran, can_fall_short, shortfall
from profiler.strategies import Gathered, Strategy, StrategySpec


@dataclass(frozen=True, slots=True)
class LoopResult:
    """The final answer, the record, and the whole conversation in the provider's form."""

    text: str
    record: LoopRecord
    messages: list[Message]


class ToolLoop:
    """The parallel tool-calling loop over one model, one set of tools and one strategy.

    One object may run many loops at once. `tool_choice` is `auto`, `none`, `required` or a tool's
    name, sent with every request. After `max_rounds` rounds with calls, a last request without tools
    gets the answer. `stream` asks for streamed responses; `on_text` then gets each piece of text. With
    `record_content` the records hold prompts, arguments and results, each passed through `redact` and
    cut at `profiler.redaction.MOST_CHARACTERS`.
    """

    def __init__(
        self,
        model: Model,
        tools: Sequence[Tool | Function] = (),
        strategy: Strategy | StrategySpec | None = None,
        *,
        max_rounds: int = 5,
        tool_choice: str = "auto",
        parallel_tool_calls: bool = True,
        stream: bool = False,
        on_text: Callable[[str], None] | None = None,
        sinks: Sequence[Sink] = (),
        name: str = "",
        record_content: bool = False,
        redact: Redact | None = None,
        clock: Clock = time.monotonic_ns,
        threads: NativeThreads | None = None,
    ) -> None:
        self.model = model
        if isinstance(strategy, StrategySpec):
            strategy = strategy.build(clock=clock)
        self.strategy = strategy if strategy is not None else Gathered()
        self.name = name
        self.stream = stream
        self.max_rounds = max_rounds
        self.recorder = Recorder(sinks, clock, overheard=True)
        self._threads = threads if threads is not None else NativeThreads()
        self._content = Content(redact) if record_content else None
        self._on_text = on_text
        self._tool_choice = tool_choice
        self._parallel = parallel_tool_calls
        if max_rounds < 1:
            raise UsageError(f"max_rounds must be at least 1, not {max_rounds}")
        if self.strategy.eager != "no" and not stream:
            raise UsageError(
                f"{self.strategy.spec}: tools can start early only while a reply streams; pass stream=True"
            )
        self._take(tools)

    def _take(self, tools: Sequence[Tool | Function]) -> None:
        self.tools = tools_by_name(tools)
        choice = self._tool_choice
        if choice not in ("auto", "none", "required") and choice not in self.tools:
            raise UsageError(
                f"tool_choice {choice!r}: expected auto, none, required or one of: {', '.join(self.tools)}"
            )
        self._rendered = self.model.render_tools(tuple(self.tools.values()))
        self._live: dict[str, LiveCalls] = {
            name: self.recorder.live_calls(self.strategy.spec, name) for name in self.tools
        }
        self._calls = Executor(
            tools=self.tools,
            strategy=self.strategy,
            threads=self._threads,
            live=self._live,
            clock=self.recorder.clock,
        )

    def with_tools(self, tools: Sequence[Tool | Function]) -> ToolLoop:
        """This loop with other tools: the same model, strategy and sinks."""
        made = copy.copy(self)
        made._take(tools)
        return made

    async def run(
        self,
        prompt: str | Sequence[Message],
        *,
        number: int | None = None,
        agent: str = "",
        trial: int | None = None,
        process: str = "",
        intended_ns: int | None = None,
    ) -> LoopResult:
        """Run the loop once, from a user message or a list of messages in the provider's form.

        `number`, `trial`, `process` and `intended_ns` say which work of a load test this is
        (`LoopRecord`); the first two are also sent to the server, in reserved headers. Raises
        `ProviderError` (its record has gone to the sinks).
        """
        running = Running(fresh_id(), self.recorder.sinks)
        run = _LoopRun(self, CallOwner(agent, number, trial, running), process, intended_ns)
        try:
            return await run.run(prompt)
        finally:
            running.open = False

    async def first_request(self, prompt: str | Sequence[Message]) -> Reply:
        """Only what a loop first asks the model, as before a load: nothing is run, and nothing recorded.

        Raises `ProviderError`.
        """
        probe = Probe(self.recorder.clock, began_ns=self.recorder.clock())
        options = RequestOptions(self._tool_choice, self._parallel, stream=self.stream)
        token = current_probe.set(probe)
        try:
            return await self.model.request(self.model.conversation(prompt), self._rendered, options, probe)
        finally:
            current_probe.reset(token)


MAX_PAUSES = 10
"""Interruptions of one turn (Anthropic's `pause_turn`) after which the loop goes on."""


class _LoopRun:
    """One run of a `ToolLoop`: its state, and how it becomes a record."""

    def __init__(self, loop: ToolLoop, owner: CallOwner, process: str, intended_ns: int | None) -> None:
        self.loop = loop
        self.owner = owner
        self.process = process
        self.intended_ns = intended_ns
        self.parent = begun_in_call(owner.loop)
        self.clock = loop.recorder.clock
        self.rounds: list[RoundRecord] = []
        self.sampler: LagSampler | None = None
        self.paused = False
        self.caller_error: Exception | None = None  # what the caller's `on_text` raised
        self.headers = None
        if owner.number is not None:
            self.headers = {LOOP_HEADER: str(owner.number)}
            if owner.trial is not None:
                self.headers[TRIAL_HEADER] = str(owner.trial)

    async def run(self, prompt: str | Sequence[Message]) -> LoopResult:
        self.sampler = sampler = self.loop.recorder.enter()
        started_ns = self.clock()
        can_tell(
            lambda status, error_type: replace(
                self.bare_record(started_ns, status, error_type), rounds=tuple(self.rounds)
            )
        )
        messages = self.loop.model.conversation(prompt)
        status: Status = "error"
        error_type: str | None = INTERNAL
        text: str | None = None
        failure: ProviderError | None = None
        try:
            text = await self._rounds(messages)
            status, error_type = "ok", None
        except ProviderError as error:
            error_type, failure = error.error_type, error
            raise
        except asyncio.CancelledError:
            status, error_type = cancelled_as()
            raise
        except BaseException as error:
            if error is self.caller_error or not isinstance(error, Exception):
                error_type = type(error).__name__  # not a defect of ours
            raise
        finally:
            record = self.bare_record(started_ns, status, error_type)
            content = self.loop._content
            try:
                record = replace(
                    record,
                    rounds=tuple(self.rounds),
                    lag_ns=sampler.leave(started_ns) if sampler is not None else 0,
                    prompt=None if content is None else content.keep(_prompt_text(prompt)),
                    text=None if content is None or text is None else content.keep(text),
                )
            except Exception:
                record = replace(record, status="error", error_type=INTERNAL)
                raise
            finally:  # whatever is wrong with what it is to hold, the loop leaves a record
                if failure is not None:
                    failure.record = record
                self.loop.recorder.emit(record)
        return LoopResult(text, record, messages)

    def bare_record(self, started_ns: int, status: Status, error_type: str | None) -> LoopRecord:
        """The record of this loop, without what happened in it."""
        return LoopRecord(
            id=self.owner.loop.id,
            strategy=self.loop.strategy.spec,
            provider=self.loop.model.provider,
            model=self.loop.model.model,
            started_ns=started_ns,
            ended_ns=self.clock(),
            status=status,
            rounds=(),
            error_type=error_type,
            name=self.loop.name,
            agent=self.owner.agent,
            number=self.owner.number,
            trial=self.owner.trial,
            process=self.process,
            intended_ns=self.intended_ns,
            parent=self.parent,
        )

    async def _rounds(self, messages: list[Message]) -> str:
        for _ in range(self.loop.max_rounds):
            answer = await self._turn(messages, answer_only=False)
            if answer is not None:
                return answer
        return await self._turn(messages, answer_only=True) or ""

    async def _turn(self, messages: list[Message], *, answer_only: bool) -> str | None:
        """The model's turn: one round, and one more each time that the server interrupts it."""
        texts: list[str] = []
        for _ in range(MAX_PAUSES + 1):
            text = await self._round(messages, answer_only=answer_only)
            if not self.paused or text is None:
                return None if text is None else "".join((*texts, text))
            texts.append(text)
        raise ProviderError(
            f"{self.loop.model.provider}: paused (status 200): the server interrupted its turn "
            f"{MAX_PAUSES + 1} times without an answer or a call",
            provider=self.loop.model.provider,
            status=200,
            error_type="paused",
        )

    async def _round(self, messages: list[Message], *, answer_only: bool) -> str | None:
        """One round; always leaves a record. The answer, None if the model called tools instead."""
        clock, loop = self.clock, self.loop
        started_ns = clock()
        probe = Probe(clock, on_text=loop._on_text, began_ns=started_ns)
        options = RequestOptions(loop._tool_choice, loop._parallel, answer_only, loop.stream, self.headers)
        status: Status = "error"
        reply: Reply | None = None
        failure: ProviderError | None = None
        calls: list[OpenCall] = []
        early: list[OpenCall] = []
        if loop.stream and loop.strategy.eager != "no" and not answer_only:
            probe.on_call = partial(loop._calls.start_early, early, self.owner)
        model_ended_ns, model_late_ns = started_ns, 0
        tools_started_ns = tools_ended_ns = limit = None
        try:
            token = current_probe.set(probe)
            try:
                reply = await loop.model.request(messages, loop._rendered, options, probe)
            except ProviderError as error:
                failure = error
                raise
            finally:
                model_ended_ns = clock()
                model_late_ns = late_ns()
                current_probe.reset(token)
                self.caller_error = probe.on_text_error
            messages.extend(reply.messages)
            self.paused = reply.paused and not reply.calls
            if not reply.calls or answer_only:
                status = "ok"
                return reply.text
            calls, runnable = self._asked(reply, early, probe, model_ended_ns)
            limit = loop.strategy.limit
            tools_started_ns = clock()
            for call in calls:
                if call.task is None:
                    call.queued_ns = tools_started_ns
            await loop._calls.execute(runnable)
            if early:
                await loop._calls.wait(early)
            messages.extend(
                loop.model.results(
                    [ToolResult(call.request.id, call.result or "", call.status != "ok") for call in calls]
                )
            )
            status = "ok"
            return None
        except asyncio.CancelledError:
            status = "cancelled"
            raise
        finally:
            if early and status != "ok":
                # The reply failed, or this loop is cancelled: no early call may outlive the round.
                await loop._calls.cancel(early)
                calls = calls or early
            ended_ns = clock()
            stalls = None
            if tools_started_ns is not None and self.sampler is not None:
                stalls = self.sampler.stalls(tools_started_ns)
            recorded = tuple([call.record(ended_ns, loop._content, stalls or ()) for call in calls])
            reason = None
            if tools_started_ns is not None:
                # Whatever follows the last call is collecting, including a wait for the event loop.
                tools_ended_ns = max([tools_started_ns, *[call.ended_ns for call in recorded]])
                wall_ns = tools_ended_ns - tools_started_ns
                if can_fall_short(recorded, wall_ns):
                    reason = shortfall(_ran(calls, recorded), wall_ns, limit, stalls)
            self.rounds.append(
                RoundRecord(
                    index=len(self.rounds),
                    started_ns=started_ns,
                    ended_ns=ended_ns,
                    model=self._model_call(
                        probe, started_ns, model_ended_ns, model_late_ns, reply, failure, status
                    ),
                    tools_started_ns=tools_started_ns,
                    tools_ended_ns=tools_ended_ns,
                    tool_calls=recorded,
                    status=status,
                    shortfall=reason,
                    limit=limit,
                    pool_threads=loop._threads.limit if reason == "threads" else None,
                )
            )

    def _model_call(
        self,
        probe: Probe,
        started_ns: int,
        ended_ns: int,
        late: int,
        reply: Reply | None,
        failure: ProviderError | None,
        round_status: Status,
    ) -> ModelCall:
        """The record of the round's model request, which got a reply, failed or was cancelled."""
        cancelled = reply is None and round_status == "cancelled"
        got: Reply = reply or (None if failure is None else failure.reply) or probe.broken_off or _NO_REPLY
        nothing_read = int(failure is not None and failure.error_type == "unreadable")
        return ModelCall(
            provider=self.loop.model.provider,
            model=self.loop.model.model,
            started_ns=started_ns,
            ended_ns=ended_ns,
            status="ok" if reply is not None else "cancelled" if cancelled else "error",
            error_type="cancelled" if cancelled else None if failure is None else failure.error_type,
            request_id=got.request_id if failure is None else failure.request_id,
            finish_reason=got.finish_reason,
            streamed=self.loop.stream,
            first_token_ns=probe.first_token_ns,
            first_output_ns=probe.first_output_ns,
            first_tool_call_ns=probe.first_tool_call_ns,
            input_tokens=got.input_tokens,
            output_tokens=got.output_tokens,
            cached_tokens=got.cached_tokens,
            cache_written_tokens=got.cache_written_tokens,
            cache_written_1h_tokens=got.cache_written_1h_tokens,
            reasoning_tokens=got.reasoning_tokens,
            server_tools=got.server_tools,
            unreadable=max(got.unreadable, nothing_read),
            attempts=tuple(probe.attempts),
            limiter_wait_ns=probe.limiter_wait_ns,
            sending_ns=probe.sending_ns,
            late_ns=late,
        )

    def _asked(
        self, reply: Reply, early: Sequence[OpenCall], probe: Probe, model_ended_ns: int
    ) -> tuple[list[OpenCall], list[OpenCall]]:
        """The calls of a reply, and those of them that can be run and do not run already.

        Ids do not tell calls apart, since some servers repeat them. Of equal calls it does not matter which
        of them is taken for which.
        """
        calls: list[OpenCall] = []
        begun, complete = [*early], [*probe.complete]
        for request in reply.calls:
            call = next((one for one in begun if one.request == request), None) if begun else None
            if call is None:
                known = next((one for one in complete if one[0] == request), None) if complete else None
                if known is not None:
                    complete.remove(known)
                ready_ns = model_ended_ns if known is None else known[1]
                call = OpenCall(request, ready_ns, ready_ns, self.owner)
            else:
                begun.remove(call)
            calls.append(call)
        parse = self.loop._calls.parse
        return calls, [call for call in calls if call.task is None and parse(call)]


def _ran(calls: Sequence[OpenCall], recorded: Sequence[ToolCall]) -> list[Ran]:
    """The calls that started."""
    return [
        Ran(
            call.name,
            call.ready_ns,
            call.started_ns,
            call.ended_ns,
            call.thread_wait_ns,
            one.exclusive_wait_ns,
            one.steps,
            resumed=one.resumed,
            remote=call.remote,
        )
        for one, call in zip(calls, recorded, strict=True)
        if call.started_ns is not None
    ]


_NO_REPLY = Reply("", (), [])


def _prompt_text(prompt: str | Sequence[Message]) -> str:
    return result_text(prompt if isinstance(prompt, str) else list(prompt))
