"""What a client's session with one MCP server can do, whichever client it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from profiler.records import RemoteCall

EMULATOR = "toolcall-profiler-emulator"
"""The name that our emulator gives itself (`serverInfo.name`)."""

META = "toolcall-profiler/"
"""Prefix of our keys in `_meta`: of a request `call` (the model's call id), `loop` and `trial` (their
numbers, in a load test); of an answer `serverNs`, how long the server took, which the emulator says."""

NAMED_CODES = frozenset(
    (-32700, -32600, -32601, -32602, -32603, -32000, -32001, -32002, -32020, -32021, -32022, -32042, -32800)
)
"""JSON-RPC codes that an `error_type` names; a server may invent any."""


def code_error(code: object) -> str:
    """The `error_type` of a JSON-RPC error: `rpc_-32602`, or `rpc_error` for a code that nobody knows."""
    return f"rpc_{code}" if code in NAMED_CODES else "rpc_error"


@dataclass(frozen=True, slots=True)
class ListedTool:
    """A tool as its server lists it. `parameters` is its JSON Schema; `read_only` only where it says so."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says of itself, and the version of the protocol that was agreed on."""

    name: str
    version: str
    protocol: str

    @property
    def emulated(self) -> bool:
        """It is our emulator."""
        return self.name == EMULATOR


@dataclass(frozen=True, slots=True)
class CallResult:
    """How a call went. `text` is what a model is to see of it, also of a failure.

    `error_type` as in `ToolCall`, None for a call that ended well. `retry_after_ns` is the wait that a server
    asked for.
    """

    text: str
    remote: RemoteCall
    error_type: str | None = None
    retry_after_ns: int | None = None


Tell = Callable[[Callable[[], RemoteCall]], object]


class Session(Protocol):
    """A client's session with one server; used on the event loop that it was made on."""

    @property
    def server(self) -> str:
        """The server's name in this run (`ServerSpec.name`)."""

    @property
    def info(self) -> ServerInfo: ...

    async def list_tools(self) -> tuple[ListedTool, ...]:
        """All pages of the listing. Raises `ToolServerError`."""

    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        *,
        meta: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        tell: Tell | None = None,
    ) -> CallResult:
        """Call a tool. Raises nothing but cancellation: what goes wrong is in the result.

        `meta` are keys for `_meta`; `timeout` in seconds, None for no bound. `tell` is called as the call
        goes on, with what gives its record by then: of one that is cancelled there is no result. A session
        that was lost is opened anew at the next call.
        """

    async def close(self) -> None: ...
