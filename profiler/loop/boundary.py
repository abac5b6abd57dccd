"""The boundary between what watches and what is watched: no failure of the first reaches the second.

Whatever an application calls, or has called, in order to be watched runs inside it: a failure there is
caught, counted and said once, and the application goes on as if nobody watched. Only exceptions that are an
`Exception` are failures: a cancellation, Ctrl-C and `SystemExit` are the application's own, and pass through.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

Part = Literal["loop", "request", "tool"]
"""The part that was watched: a loop's begin or end, a model request with its reply, a call of a tool."""

P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger(__name__)


class Boundary:
    """Counts failures by what was being watched (`failures`), and logs the first of each.

    The log names the place in the code, not the exception's text: that may hold what nobody asked to record.
    `on_failure` is told of each failure, in the context in which it happened.
    """

    def __init__(self, on_failure: Callable[[Part], None] | None = None) -> None:
        self.failures: dict[Part, int] = {"loop": 0, "request": 0, "tool": 0}
        self._on_failure = on_failure

    def failed(self, part: Part, error: Exception) -> None:
        """Watching failed with this exception. Does not raise."""
        try:
            self.failures[part] += 1
            if self.failures[part] == 1:
                _log.error(
                    "watching a %s failed, which the application does not notice: %s at %s. "
                    "Later failures of this kind are only counted",
                    part,
                    type(error).__name__,
                    place_of(error),
                )
        except Exception:  # such as a filter of the application's own log, or no stack left
            pass
        if self._on_failure is not None:
            with contextlib.suppress(Exception):  # what is told of failures may fail itself
                self._on_failure(part)

    def call(self, part: Part, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """Call the function; returns its result, or None when it fails."""
        try:
            return function(*args, **kwargs)
        except Exception as error:
            self.failed(part, error)
            return None


class Bounded(Protocol):
    """An object whose methods are `within` a boundary."""

    @property
    def boundary(self) -> Boundary: ...


B = TypeVar("B", bound=Bounded)


def within(
    part: Part,
) -> Callable[[Callable[Concatenate[B, P], Any]], Callable[Concatenate[B, P], None]]:
    """A method that runs inside its object's boundary: it does not raise, and returns nothing."""

    def decorated(method: Callable[Concatenate[B, P], Any]) -> Callable[Concatenate[B, P], None]:
        def bounded(self: B, /, *args: P.args, **kwargs: P.kwargs) -> None:
            try:
                method(self, *args, **kwargs)
            except Exception as error:
                self.boundary.failed(part, error)

        functools.update_wrapper(bounded, method)
        return bounded

    return decorated


def place_of(error: BaseException) -> str:
    """File and line where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "an unknown place" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
