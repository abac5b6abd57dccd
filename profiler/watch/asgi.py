"""A web service: each HTTP request in which a model is asked is a loop.

app.add_middleware(ProfilerMiddleware, profiler=prof)     # FastAPI, Starlette
app = ProfilerMiddleware(app, profiler=prof)              # any ASGI application
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from profiler.errors import UsageError
from profiler.watch.context import LoopContext
from profiler.watch.frameworks import describe
from profiler.watch.loop import ObservedLoop
from profiler.watch.profiler import Profiler

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class ProfilerMiddleware:
    """Opens a loop of the profiler around every HTTP request.

    It ends when the body of the response has been sent, and later only where background tasks ask the model
    or run tools after that. Its name is the path of the route (`/users/{id}/chat`); where no router tells it,
    that of the request with `{id}` in place of numbers and ids. It has failed with a response of 500 or more
    and with an exception, which passes through unchanged; a client that goes away has cancelled it. A request
    in which no model is asked leaves no record; loops that the endpoint opens are its own.

    `include` and `exclude` choose by path, `*` standing for anything: `include=["/chat/*"]`. WebSockets pass
    through: a connection is no pass of a loop, so open one for each message there.
    """

    def __init__(
        self,
        app: App,
        *,
        profiler: Profiler,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        strategy: str = "application",
    ) -> None:
        if not isinstance(profiler, Profiler):
            raise UsageError(f"ProfilerMiddleware: profiler is a Profiler, not {describe(profiler)}")
        self.app = app
        self._profiler = profiler
        self._include = None if include is None else _patterns("include", include)
        self._exclude = _patterns("exclude", exclude)
        self._strategy = strategy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._chooses(scope.get("path", "")):
            await self.app(scope, receive, send)
            return
        boundary = self._profiler._boundary
        root = scope.get("root_path", "")
        with LoopContext(self._profiler, {"name": "", "strategy": self._strategy, "frame": True}) as loop:
            response = _Response(loop)

            async def received() -> Message:
                message = await receive()
                boundary.call("loop", response.received, message)
                return message

            async def sent(message: Message) -> None:
                await send(message)
                boundary.call("loop", response.sent, message)

            try:
                await self.app(scope, received, sent)
            finally:
                loop.name = boundary.call("loop", name_of, scope, root) or ""
                boundary.call("loop", response.over)

    def _chooses(self, path: str) -> bool:
        if any(pattern.match(path) for pattern in self._exclude):
            return False
        return self._include is None or any(pattern.match(path) for pattern in self._include)


class _Response:
    """What is seen of the response to one request."""

    def __init__(self, loop: ObservedLoop) -> None:
        self._loop = loop
        self._status: int | None = None
        self._gone = False

    def received(self, message: Message) -> None:
        if message["type"] == "http.disconnect" and self._loop.answered_ns is None:
            self._gone = True

    def sent(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            self._status = message["status"]
        elif (kind == "http.response.body" and not message.get("more_body", False)) or (
            kind == "http.response.pathsend"
        ):
            self._loop.answered_ns = self._loop.clock()

    def over(self) -> None:
        """The application has returned, or raised."""
        if self._status is not None and self._status >= 500:
            self._loop.ended_as = "error", f"http_{self._status}"
        elif self._gone or self._loop.answered_ns is None:
            self._loop.ended_as = "cancelled", "disconnected"


def name_of(scope: Scope, root: str = "") -> str:
    """The path of the route that a router has chosen for this request, else that of the request without ids.

    `root` is the `root_path` that the application was called with: what is mounted in it has added to that.
    """
    mounted = scope.get("root_path", "")
    prefix = mounted[len(root) :] if mounted.startswith(root) else ""
    named = {str(value): f"{{{key}}}" for key, value in (scope.get("path_params") or {}).items()}
    prefix = without_ids("/".join(named.get(part, part) for part in prefix.split("/")))
    for path in (getattr(scope.get("route"), "path", None), scope.get("path_template")):
        if isinstance(path, str):
            return prefix + path
    return without_ids(scope.get("path", ""))


_ID = re.compile(r"\d+|[0-9a-fA-F-]{16,}|(?=[^/]*\d)[\w.~:-]{24,}")


def without_ids(path: str) -> str:
    """The path with `{id}` in place of numbers, UUIDs and other long parts with digits."""
    return "/".join("{id}" if _ID.fullmatch(part) else part for part in path.split("/"))


def _patterns(name: str, given: Sequence[str]) -> list[re.Pattern[str]]:
    paths = [one for one in given if isinstance(one, str) and one.startswith(("/", "*"))]
    if isinstance(given, str) or len(paths) < len(given):
        raise UsageError(f"ProfilerMiddleware: {name} is a list of paths, such as ['/chat/*'], not {given!r}")
    return [re.compile(fnmatch.translate(one)) for one in paths]
