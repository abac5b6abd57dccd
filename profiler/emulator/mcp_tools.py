"""The scenario's tools over MCP, whatever the transport: what is listed, what a call gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import orjson

from profiler.emulator import mcp_wire as wire
from profiler.emulator.journal import Entry
from profiler.emulator.limits import Rejected
from profiler.emulator.mcp_wire import CallAnswer, Message, Refusal
from profiler.emulator.tool_calls import Identity, ToolCalls
from profiler.emulator.tool_service import respond
from profiler.mcp.session import META
from profiler.scenarios import Fault, FaultKind, ToolSpec

ReplyForm = Literal["json", "sse"]
REPLY_FORMS: tuple[ReplyForm, ...] = get_args(ReplyForm)

_ENDLESS = "endless-"
_MOST_NAME = 256

_ANY_TRANSPORT: tuple[FaultKind, ...] = (
    "tool_http_500", "mcp_error_result", "mcp_rpc_error", "mcp_wrong_id", "mcp_bad_structure",
    "mcp_silence", "mcp_slow_progress",
)  # fmt: skip
OVER_HTTP: tuple[FaultKind, ...] = (
    *_ANY_TRANSPORT,
    "mcp_http_429", "mcp_reset", "mcp_reset_in_reply", "mcp_no_answer", "mcp_accepted",
)  # fmt: skip
OVER_STDIO: tuple[FaultKind, ...] = (*_ANY_TRANSPORT, "mcp_noise", "mcp_exit")

STEPS = 4
"""The steps of progress that a call reports where that is asked for."""


@dataclass(frozen=True, slots=True)
class McpOptions:
    """How replies over HTTP are given where nothing asks for a stream, and how many tools a page lists."""

    reply: ReplyForm = "json"
    page: int = 100


DEFAULT_MCP = McpOptions()


@dataclass(slots=True, eq=False)
class McpCall:
    """A call of a tool, on its way. `spec` is None for a tool that the scenario does not have."""

    entry: Entry
    spec: ToolSpec | None
    answer: CallAnswer
    fault: Fault | None
    token: str | int | None

    def late_ns(self) -> int:
        """How much later than the tool's work ends the answer comes, by a fault."""
        if self.fault is None or self.fault.kind != "mcp_slow_progress":
            return 0
        return int(self.fault.seconds * 1e9)

    def progress(self) -> list[tuple[int, bytes]]:
        """Notifications of its progress, with the times when they are due (monotonic ns)."""
        if self.token is None or self.spec is None:
            return []
        entry = self.entry
        if self.spec.capacity is not None:  # when its work begins is not known
            return [(entry.received_ns, wire.progress_body(self.token, 0, STEPS))]
        whole = entry.duration_ns + self.late_ns()
        return [
            (entry.received_ns + whole * step // STEPS, wire.progress_body(self.token, step, STEPS))
            for step in range(1, STEPS)
        ]


class McpTools:
    """Answers the messages of both eras. `Refusal` is raised for what is not served."""

    def __init__(self, calls: ToolCalls, options: McpOptions) -> None:
        self.calls = calls
        self.options = options
        scenario = calls.scenario
        kinds = {fault.kind for fault in scenario.faults}
        self._structured = "mcp_bad_structure" in kinds
        self._specs = {spec.name: spec for spec in scenario.tools}
        self._listed = [wire.listed_tool(spec, structured=self._structured) for spec in scenario.tools]
        self._listings = 0
        mirrored = {spec.name: wire.mirrored(spec.parameters) for spec in scenario.tools}
        self._mirrored = {name: found for name, found in mirrored.items() if found}

    def check_headers(self, message: Message, headers: Mapping[bytes, bytes]) -> None:
        """Raise `Refusal` for a call whose headers say something else than its arguments."""
        if self._mirrored and message.method == "tools/call":
            wire.check_mirrored(message, self._mirrored.get(str(message.params.get("name")), []), headers)

    def result(self, message: Message, *, modern: bool) -> bytes:
        """The answer to a request other than `tools/call`."""
        method = message.method
        if method == "tools/list":
            return wire.result_body(message.ident, self._page(message, modern=modern), modern=modern)
        if modern and method == "server/discover":
            return wire.result_body(message.ident, wire.discovered(), modern=True)
        if not modern and method == "initialize":
            return wire.result_body(message.ident, wire.initialized(message.params), modern=False)
        if not modern and method == "ping":
            return wire.result_body(message.ident, {}, modern=False)
        raise wire.unknown_method(message)

    def _page(self, message: Message, *, modern: bool) -> dict[str, Any]:
        cursor = message.params.get("cursor")
        first, endless = 0, False
        if cursor is None:
            self._listings += 1
            faults = self.calls.scenario.faults
            endless = bool(faults) and self.calls.listing_fault(self._listings - 1) is not None
        else:
            text = cursor if isinstance(cursor, str) else ""
            endless = text.startswith(_ENDLESS)
            number = text.removeprefix(_ENDLESS)
            if not (number.isascii() and number.isdecimal() and len(number) < 16):
                raise Refusal(
                    400, wire.INVALID_PARAMS, "The cursor is not one of this server's", message.ident
                )
            first = int(number)
        following = first + self.options.page
        if endless:
            # The same page for ever, under a new cursor.
            return wire.listing(self._listed[: self.options.page], f"{_ENDLESS}{following}", modern=modern)
        more = str(following) if following < len(self._listed) else None
        return wire.listing(self._listed[first:following], more, modern=modern)

    def begin(
        self, message: Message, received_ns: int, kinds: tuple[FaultKind, ...], *, modern: bool
    ) -> McpCall:
        """A call that has arrived, with what it will be answered; `kinds` are faults of its transport."""
        params = message.params
        name, arguments = params.get("name"), params.get("arguments")
        if not isinstance(name, str):
            raise Refusal(400, wire.INVALID_PARAMS, "params.name is not a text", message.ident)
        if arguments is None:
            arguments = {}
        if not isinstance(arguments, dict):
            raise Refusal(400, wire.INVALID_PARAMS, "params.arguments is not an object", message.ident)
        meta = message.meta
        token = meta.get("progressToken")
        if isinstance(token, bool) or not isinstance(token, str | int):
            token = None
        spec = self._specs.get(name)
        if spec is None:
            entry = self.calls.journal.open("tool", "mcp", received_ns)
            entry.tool, entry.status = name[:_MOST_NAME], 200
            answer = CallAnswer(message.ident, modern, f"Unknown tool: {name[:_MOST_NAME]}", is_error=True)
            return McpCall(entry, None, answer, None, token)
        entry = self.calls.arrive("mcp", name, arguments, received_ns, _identity(meta))
        entry.status = 200
        text = respond(name, spec.path, arguments)
        answer = CallAnswer(message.ident, modern, text.decode())
        if self._structured:
            answer.structured = {"answer": orjson.loads(text)}
        fault = self.calls.fault(entry, *kinds)
        if fault is not None:
            entry.fault = fault.kind
            _spoil(answer, fault)
        return McpCall(entry, spec, answer, fault, token)

    def refused_form(self, call: McpCall, rejected: Rejected) -> bool:
        """Whether the scenario has this refusal told as an answer, which `call` then holds."""
        fault = self.calls.fault(call.entry, "mcp_refused_result", "mcp_refused_error")
        if fault is not None:
            call.entry.fault = fault.kind
            refuse(call, rejected, as_error=fault.kind == "mcp_refused_error")
        return fault is not None


def refuse(call: McpCall, rejected: Rejected, *, as_error: bool) -> None:
    """Make the answer of `call` that of a tool that takes no more calls."""
    wait = "" if rejected.retry_ns is None else f"; try again in {rejected.retry_ns / 1e9:g} s"
    text = f"{rejected.status} rate limited: {rejected.reason}{wait}"
    call.answer = CallAnswer(call.answer.ident, call.answer.modern, text, is_error=True)
    if as_error:
        call.answer.code = wire.SERVER_ERROR


def _spoil(answer: CallAnswer, fault: Fault) -> None:
    """Give the answer the form that the fault wants; faults of the transport change nothing here."""
    kind = fault.kind
    if kind in ("tool_http_500", "mcp_error_result"):
        answer.text, answer.is_error, answer.structured = "The tool failed.", True, None
    elif kind == "mcp_rpc_error":
        answer.text, answer.code = "Internal error (an injected fault)", -32603
    elif kind == "mcp_wrong_id":
        answer.ident = f"{answer.ident}-of-another"
    elif kind == "mcp_bad_structure":
        answer.structured = {"answer": "no object"}


def _identity(meta: Any) -> Identity:
    """Which call of the tape a request belongs to, where its `_meta` says so."""
    call_id, loop, trial = (meta.get(META + key) for key in ("call", "loop", "trial"))
    if isinstance(loop, str) and loop.isascii() and loop.isdecimal() and len(loop) < 19:
        loop = int(loop)
    return Identity(
        call_id[:_MOST_NAME] if isinstance(call_id, str) else None,
        loop if isinstance(loop, int) and not isinstance(loop, bool) and 0 <= loop < 1 << 62 else None,
        str(trial)[:_MOST_NAME] if isinstance(trial, str | int) else None,
    )
