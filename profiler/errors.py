"""One tree of exceptions: everything that this package raises on purpose is a `ProfilerError`.

But for `Interrupted`, which is what the user wanted, and `RequestRefused`, which nobody is to try again.

A tool that fails raises nothing: its failure becomes an error result that the model sees, and a
record with an `error_type`. Cancellation is never caught.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable
from typing import Any, Literal


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'gathered'?)`, to put after an unknown word; empty when none is similar."""
    # A long word is not a typing error, and comparing it takes long.
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6) if len(word) <= 64 else []
    return f" (did you mean {close[0]!r}?)" if close else ""


def unwrapped(error: BaseException) -> BaseException:
    """The one exception inside a group; any other as it is.

    A task group, such as one of an MCP client's, raises every failure inside it as a group, whose name and
    words tell nothing.
    """
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


class ProfilerError(Exception):
    """Base of every exception of this package. The message says what, where, and what to do.

    `run_directory` holds what a load test had measured when it failed; None when that is nothing, or
    when the message names the directory already.
    """

    exit_code = 1
    run_directory: str | None = None

    def __str__(self) -> str:
        said = super().__str__()
        return said if self.run_directory is None else f"{said}; see {self.run_directory}"


class UsageError(ProfilerError):
    """Something the user wrote (option, file, function signature) cannot be used. Exit code 2."""

    exit_code = 2


class ToolDefinitionError(UsageError):
    """A function cannot be made a tool: its signature has no JSON Schema form."""


class ScenarioError(UsageError):
    """A scenario file is wrong; the message names file, key and what was expected."""


class RecordError(UsageError):
    """A records file or run directory cannot be read or written; the message names file and line."""


class TargetError(ProfilerError):
    """The target could not be reached, refused us, or went away. Exit code 3."""

    exit_code = 3


class ProviderError(TargetError):
    """A model request failed for good, after the SDK's own retries.

    Chained (`__cause__`) to the SDK's exception. `status` is the HTTP status, None when no response
    came; `request_id` the provider's id of the request; `error_type` a bounded name, fit for a
    metric label, such as `http_429`, `connection`, `timeout`. `record` is the `LoopRecord` of the
    loop that it ended, None outside a loop. `reply` is what had come of a `Reply` that ended in the failure:
    its tokens are billed.
    """

    record: Any = None
    reply: Any = None

    def __init__(
        self,
        message: str,
        *,
        provider: str,
        status: int | None = None,
        request_id: str | None = None,
        error_type: str = "provider",
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.status = status
        self.request_id = request_id
        self.error_type = error_type


class ToolServerError(TargetError):
    """An MCP server could not be reached or started, or does not speak the protocol.

    `server` is its name, `error_type` as in `ToolCall`.
    """

    def __init__(self, message: str, *, server: str = "", error_type: str = "connection") -> None:
        super().__init__(message)
        self.server = server
        self.error_type = error_type


class RequestRefused(BaseException):
    """A model request was not sent, since it would have left the target of a load test. Ends its loop.

    No `Exception`, since the SDKs, and applications, try again what raises one. `error` says what, where, and
    what to do; a test that meets it before its load ends with that.
    """

    def __init__(self, error: UsageError) -> None:
        super().__init__(str(error))
        self.error = error


class Interrupted(KeyboardInterrupt):
    """A command was ended before it was done: by Ctrl-C, or as `Terminated` says. Exit code 130.

    No `ProfilerError`, since nothing failed, and no `Exception`, since nobody is to go on after it. `outcome`
    says in words what had been measured by then, and where it is; empty where that is not known.
    """

    exit_code = 130
    incident: Literal["interrupted", "terminated"] = "interrupted"
    outcome = ""

    @property
    def cause(self) -> str:
        """In words, what ended it."""
        return "interrupted"

    def __str__(self) -> str:
        return f"{self.cause}{self.outcome and ' '}{self.outcome}"


class Terminated(Interrupted):
    """SIGTERM or SIGHUP ended it, or is about to. Exit code 143, whichever it was."""

    exit_code = 143
    incident = "terminated"

    def __init__(self, number: signal.Signals = signal.SIGTERM) -> None:
        super().__init__(number)
        self.signal = number

    @property
    def cause(self) -> str:
        return f"told to end by {self.signal.name}"
