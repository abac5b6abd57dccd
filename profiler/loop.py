"""The loop that is profiled: model → tools → model, for several rounds.

`ToolLoop` runs it; every run yields one `LoopRecord`. What goes wrong with a tool call stays
inside the loop: the model sees an error result. What goes wrong with a model request ends it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from profiler import headers
from profiler.anatomy import shortfall
from profiler.errors import ProviderError, UsageError
from profiler.model import (
    CallRequest,
    Message,
    Model,
    Probe,
    Reply,
    RequestOptions,
    ToolResult,
    current_probe,
)
from profiler.recorder import Clock, LiveCalls, Recorder, Sink, fresh_id
from profiler.records import LoopRecord, ModelCall, RoundRecord, Status, ToolCall, ToolStatus
from profiler.steps import Steps
from profiler.strategies import Gathered, Strategy
from profiler.threads import NativeThreads
from profiler.tools import (
    CallContext,
    Function,
    InvalidArguments,
    Tool,
    Toolbox,
    current_call,
    failure_type,
    result_text,
)


@dataclass(frozen=True, slots=True)
class LoopResult:
    """What a loop came to: the final answer, the record, the whole conversation in the provider's form."""

    text: str
    record: LoopRecord
    messages: list[Message]


class ToolLoop:
    """The parallel tool-calling loop over one model, one set of tools and one strategy.

    May run many loops at once. `tool_choice` is `auto`, `none`, `required` or a tool's name,
    sent with every request. After `max_rounds` rounds with calls one last request that cannot
    call tools gets the answer. `stream` asks for streamed responses; `on_text` then gets each
    piece of text. With `record_content` the records hold prompts, arguments and results.
    """

    def __init__(
        self,
        model: Model,
        tools: Sequence[Tool | Function] = (),
        strategy: Strategy | None = None,
        *,
        max_rounds: int = 5,
        tool_choice: str = "auto",
        parallel_tool_calls: bool = True,
        stream: bool = False,
        on_text: Callable[[str], None] | None = None,
        sinks: Sequence[Sink] = (),
        name: str = "",
        record_content: bool = False,
        clock: Clock = time.monotonic_ns,
        threads: NativeThreads | None = None,
    ) -> None:
        self.model = model
        self.tools = Toolbox(tools)
        self.strategy = strategy if strategy is not None else Gathered()
        self.name = name
        self.stream = stream
        self.max_rounds = max_rounds
        self.recorder = Recorder(sinks, clock)
        self._threads = threads if threads is not None else NativeThreads()
        self._record_content = record_content
        self._on_text = on_text
        self._tool_choice = tool_choice
        self._parallel = parallel_tool_calls
        if max_rounds < 1:
            raise UsageError(f"max_rounds must be at least 1, not {max_rounds}")
        if tool_choice not in ("auto", "none", "required") and self.tools.get(tool_choice) is None:
            raise UsageError(
                f"tool_choice {tool_choice!r}: expected auto, none, required or one of: "
                + ", ".join(self.tools.names)
            )
        self._rendered = model.render_tools(tuple(self.tools))
        self._live: dict[str, LiveCalls] = {
            t.name: self.recorder.live_calls(self.strategy.spec, t.name) for t in self.tools
        }

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

        `number`, `trial` and `process` place it in a load test; a number is also sent to the
        server, in a reserved header. Raises `ProviderError` (its record has gone to the sinks).
        """
        return await _LoopRun(self, number, agent, trial, process, intended_ns).run(prompt)


class _Call:
    """One tool call while it happens."""

    __slots__ = (
        "arguments",
        "blocking_ns",
        "ended_ns",
        "error_type",
        "queued_ns",
        "ready_ns",
        "request",
        "result",
        "started_ns",
        "status",
        "thread_ns",
        "tool",
    )

    def __init__(self, request: CallRequest, ready_ns: int) -> None:
        self.request = request
        self.ready_ns = ready_ns
        self.queued_ns = ready_ns
        self.started_ns: int | None = None
        self.thread_ns: int | None = None
        self.blocking_ns = 0
        self.ended_ns: int | None = None
        self.status: ToolStatus = "ok"
        self.error_type: str | None = None
        self.result: str | None = None
        self.tool: Tool | None = None
        self.arguments: dict[str, Any] = {}

    def fail(self, status: ToolStatus, error_type: str, message: str) -> None:
        self.status = status
        self.error_type = error_type
        self.result = f"Error: {message}"


class _LoopRun:
    """One run of a `ToolLoop`: its state, and how it becomes a record."""

    def __init__(
        self,
        loop: ToolLoop,
        number: int | None,
        agent: str,
        trial: int | None,
        process: str,
        intended_ns: int | None,
    ) -> None:
        self.loop = loop
        self.number = number
        self.agent = agent
        self.trial = trial
        self.process = process
        self.intended_ns = intended_ns
        self.clock = loop.recorder.clock
        self.rounds: list[RoundRecord] = []
        self.headers = None
        if number is not None:
            self.headers = {headers.LOOP: str(number)}
            if trial is not None:
                self.headers[headers.TRIAL] = str(trial)

    async def run(self, prompt: str | Sequence[Message]) -> LoopResult:
        sampler = self.loop.recorder.enter()
        started_ns = self.clock()
        messages = self.loop.model.conversation(prompt)
        status: Status = "error"
        error_type: str | None = "internal"
        text: str | None = None
        failure: ProviderError | None = None
        try:
            text = await self._rounds(messages)
            status, error_type = "ok", None
        except ProviderError as error:
            error_type, failure = error.error_type, error
            raise
        except asyncio.CancelledError:
            status, error_type = "cancelled", "cancelled"
            raise
        finally:
            content = self.loop._record_content
            record = LoopRecord(
                id=fresh_id(),
                strategy=self.loop.strategy.spec,
                provider=self.loop.model.provider,
                model=self.loop.model.model,
                started_ns=started_ns,
                ended_ns=self.clock(),
                status=status,
                rounds=tuple(self.rounds),
                error_type=error_type,
                name=self.loop.name,
                agent=self.agent,
                number=self.number,
                trial=self.trial,
                process=self.process,
                intended_ns=self.intended_ns,
                lag_ns=sampler.leave(started_ns) if sampler is not None else 0,
                prompt=_prompt_text(prompt) if content else None,
                text=text if content else None,
            )
            if failure is not None:
                failure.record = record
            self.loop.recorder.emit(record)
        return LoopResult(text, record, messages)

    async def _rounds(self, messages: list[Message]) -> str:
        for _ in range(self.loop.max_rounds):
            answer = await self._round(messages, answer_only=False)
            if answer is not None:
                return answer
        answer = await self._round(messages, answer_only=True)
        return answer if answer is not None else ""

    async def _round(self, messages: list[Message], *, answer_only: bool) -> str | None:
        """One round. The answer if the model made no calls, None if it made some (or may not go on)."""
        clock, loop = self.clock, self.loop
        started_ns = clock()
        probe = Probe(clock, on_text=loop._on_text)
        options = RequestOptions(loop._tool_choice, loop._parallel, answer_only, loop.stream, self.headers)
        status: Status = "error"
        reply: Reply | None = None
        error_type: str | None = None
        request_id: str | None = None
        calls: list[_Call] = []
        model_ended_ns = tools_started_ns = tools_ended_ns = None
        try:
            token = current_probe.set(probe)
            try:
                reply = await loop.model.request(messages, loop._rendered, options, probe)
            except ProviderError as error:
                error_type, request_id = error.error_type, error.request_id
                raise
            except asyncio.CancelledError:
                error_type = "cancelled"
                raise
            finally:
                model_ended_ns = clock()
                current_probe.reset(token)
            messages.extend(reply.messages)
            if not reply.calls or answer_only:
                status = "ok"
                return reply.text
            calls = [_Call(request, model_ended_ns) for request in reply.calls]
            runnable = [call for call in calls if self._parse(call)]
            tools_started_ns = clock()
            for call in calls:
                call.queued_ns = tools_started_ns
            await self._execute(runnable)
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
            ended_ns = clock()
            recorded = tuple([self._record(call, ended_ns) for call in calls])
            if tools_started_ns is not None:
                # What comes after the last call is collecting, the wait for the event loop included.
                tools_ended_ns = max([tools_started_ns, *[call.ended_ns for call in recorded]])
            self.rounds.append(
                RoundRecord(
                    index=len(self.rounds),
                    started_ns=started_ns,
                    ended_ns=ended_ns,
                    model=ModelCall(
                        provider=loop.model.provider,
                        model=loop.model.model,
                        started_ns=started_ns,
                        ended_ns=model_ended_ns if model_ended_ns is not None else ended_ns,
                        status=(
                            "ok" if reply is not None else "cancelled" if status == "cancelled" else "error"
                        ),
                        error_type=error_type,
                        request_id=reply.request_id if reply is not None else request_id,
                        finish_reason=reply.finish_reason if reply is not None else None,
                        streamed=loop.stream,
                        first_token_ns=probe.first_token_ns,
                        first_tool_call_ns=probe.first_tool_call_ns,
                        input_tokens=reply.input_tokens if reply is not None else None,
                        output_tokens=reply.output_tokens if reply is not None else None,
                        attempts=tuple(probe.attempts),
                    ),
                    tools_started_ns=tools_started_ns,
                    tools_ended_ns=tools_ended_ns,
                    tool_calls=recorded,
                    status=status,
                    shortfall=(
                        shortfall(recorded, tools_ended_ns - tools_started_ns, loop.strategy.limit)
                        if tools_started_ns is not None and tools_ended_ns is not None
                        else None
                    ),
                )
            )

    def _parse(self, call: _Call) -> bool:
        """Validate a call's arguments; False if the model gets an error result instead of a run."""
        request = call.request
        tool = self.loop.tools.get(request.name)
        if tool is None:
            known = ", ".join(self.loop.tools.names)
            call.fail("error", "unknown_tool", f"there is no tool {request.name!r}; available: {known}")
        elif request.truncated:
            call.fail("error", "truncated", "the reply was cut off before this call was complete")
        else:
            try:
                call.arguments = tool.parse(request.arguments)
                call.tool = tool
                return True
            except InvalidArguments as error:
                call.fail("error", error.error_type, f"{error.error_type}: {error}")
        return False

    async def _execute(self, calls: list[_Call]) -> None:
        live = self.loop._live
        for call in calls:
            live[call.request.name].queued += 1
        try:
            await self.loop.strategy.execute([partial(self._run, call) for call in calls], self.agent)
        finally:
            for call in calls:
                if call.started_ns is None:
                    live[call.request.name].queued -= 1

    async def _run(self, call: _Call) -> None:
        """Run one call to its result or error; only a cancellation gets out."""
        clock, tool, request = self.clock, call.tool, call.request
        assert tool is not None
        live = self.loop._live[request.name]
        call.started_ns = clock()
        live.queued -= 1
        live.running += 1
        token = current_call.set(CallContext(request.id, request.name, self.number, self.trial))
        deadline = None if tool.timeout is None else asyncio.timeout(tool.timeout)
        try:
            if deadline is None:
                value = await self._invoke(call, tool)
            else:
                async with deadline:
                    value = await self._invoke(call, tool)
            call.result = result_text(value)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                call.fail("cancelled", "cancelled", "cancelled")
                raise
            # Not ours: something inside the tool was cancelled, which is the tool's failure.
            call.fail("error", "CancelledError", "the tool was cancelled from inside")
        except (Exception, SystemExit) as error:  # a tool that calls sys.exit() is one that failed
            if deadline is not None and deadline.expired():
                call.fail("timeout", "timeout", f"timed out after {tool.timeout:g} s")
            else:
                call.fail("error", failure_type(error), f"{type(error).__name__}: {error}")
        finally:
            current_call.reset(token)
            live.running -= 1
            call.ended_ns = clock()

    async def _invoke(self, call: _Call, tool: Tool) -> Any:
        if not tool.is_async:
            return await self.loop._threads.run(
                partial(tool.function, **call.arguments), partial(self._got_thread, call)
            )
        steps = Steps(tool.function(**call.arguments), self.clock)
        try:
            return await steps
        finally:
            call.blocking_ns = steps.blocking_ns

    def _got_thread(self, call: _Call) -> None:
        call.thread_ns = self.clock()

    def _record(self, call: _Call, now_ns: int) -> ToolCall:
        ended_ns = call.ended_ns
        if ended_ns is None:
            # Never ran: refused before the strategy saw it, or cancelled while it waited.
            if call.status == "ok":
                call.fail("cancelled", "cancelled", "cancelled")
                ended_ns = now_ns
            else:
                ended_ns = call.queued_ns
        content = self.loop._record_content
        return ToolCall(
            id=call.request.id,
            name=call.request.name,
            ready_ns=call.ready_ns,
            queued_ns=call.queued_ns,
            started_ns=call.started_ns,
            ended_ns=ended_ns,
            status=call.status,
            error_type=call.error_type,
            thread_wait_ns=(
                call.thread_ns - call.started_ns
                if call.thread_ns is not None and call.started_ns is not None
                else 0
            ),
            blocking_ns=call.blocking_ns,
            arguments=_arguments_text(call.request.arguments) if content else None,
            result=call.result if content else None,
        )


def _arguments_text(arguments: str | Mapping[str, Any]) -> str:
    return arguments if isinstance(arguments, str) else result_text(arguments)


def _prompt_text(prompt: str | Sequence[Message]) -> str:
    return result_text(prompt if isinstance(prompt, str) else list(prompt))
