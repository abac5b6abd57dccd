"""What servers last answered a tool, whatever the tool made of it.

Many tools turn a refusal into words of their own for the model ("the weather is not available just now"). The
call has failed all the same, and a search that took it for a success would find the setting that fails most.
So the clients that tools use are looked at while a load test runs: httpx, aiohttp, and `http.client`, on
which requests and urllib stand. Only refusals and timeouts count: other errors are a tool's own business.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import sys
import threading
from collections.abc import Callable
from typing import Any

from profiler.limits.refusals import returned_failure
from profiler.loop.tools import current_call

_CLIENTS = (
    ("httpx", "Client", "send"),
    ("httpx", "AsyncClient", "send"),
    ("aiohttp", "ClientSession", "_request"),
)
"""Module, class and method of what sends requests; those that are not imported have sent none."""

_lock = threading.Lock()
_users = 0
_undo: list[Callable[[], None]] = []


def look_at_answers() -> Callable[[], None]:
    """Look at answers from now on, until what this returns has been called."""
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            _exchange(http.client.HTTPConnection, "getresponse", _looking)
            for module, kind, method in _CLIENTS:
                client = getattr(sys.modules.get(module), kind, None)
                if client is not None:
                    _exchange(client, method, _looking if kind == "Client" else _looking_async)
    done = False

    def stop() -> None:
        global _users
        nonlocal done
        with _lock:
            if not done:
                done = True
                _users -= 1
                while not _users and _undo:
                    _undo.pop()()

    return stop


def _exchange(client: Any, method: str, looking: Callable[[Any], Any]) -> None:
    original = getattr(client, method)
    setattr(client, method, looking(original))
    _undo.append(functools.partial(setattr, client, method, original))


def _looking(send: Any) -> Any:
    @functools.wraps(send)
    def sent(*args: Any, **kwargs: Any) -> Any:
        try:
            response = send(*args, **kwargs)
        except Exception as error:
            _note(error)
            raise
        _note(response)
        return response

    return sent


def _looking_async(send: Any) -> Any:
    @functools.wraps(send)
    async def sent(*args: Any, **kwargs: Any) -> Any:
        try:
            response = await send(*args, **kwargs)
        except Exception as error:
            _note(error)
            raise
        _note(response)
        return response

    return sent


def _note(answer: object) -> None:
    """The last answer counts: of tries, the last one tells how they ended. Raises nothing."""
    call = current_call.get()
    if call is None or call.answer is None:
        return
    with contextlib.suppress(Exception):  # it looks into the application's objects
        found = returned_failure(answer)
        call.answer.failure = found if found is not None and found.signal in ("rejected", "timeout") else None
