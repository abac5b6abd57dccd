"""Each HTTP request in which a model is asked is a loop; the application's requests are what they were."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from profiler import ProfilerMiddleware, UsageError
from profiler.watch.asgi import name_of, without_ids
from profiler.watch.profiler import Profiler


class Service:
    """An application behind the middleware, on a clock that counts."""

    def __init__(self, app: Any, **options: Any) -> None:
        self.records: list[Any] = []
        self.prof = Profiler([self.records.append], clock=itertools.count(1).__next__)
        self.app = ProfilerMiddleware(app, profiler=self.prof, **options)
        self.sent: list[Any] = []

    def asks(self) -> Any:
        """A model is asked, in the loop that is current here."""
        loop = self.prof._loop.get()
        assert loop is not None
        round_ = loop.begin_round("openai", "m")
        round_.ended_ns = self.prof.recorder.clock()
        return round_

    async def get(self, path: str = "/chat", **scope: Any) -> Any:
        async def send(message: Any) -> None:
            self.sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request"}

        whole = {"type": "http", "path": path, "root_path": "", **scope}
        await self.app(whole, receive, send)
        return whole

    def all(self) -> list[tuple[str, str, str | None, int]]:
        return [(one.name, one.status, one.error_type, len(one.rounds)) for one in self.records]


async def respond(send: Any, status: int = 200, chunks: int = 1, done: bool = True) -> None:
    await send({"type": "http.response.start", "status": status})
    for n in range(chunks):
        await send({"type": "http.response.body", "body": b"x", "more_body": n < chunks - 1 or not done})


def service(handle: Any, **options: Any) -> Service:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await handle(made, scope, send)

    made = Service(app, **options)
    return made


async def chat(self: Service, scope: Any, send: Any) -> None:
    self.asks()
    await respond(send)


def test_request_in_which_no_model_is_asked_leaves_no_record() -> None:
    async def handle(self: Service, scope: Any, send: Any) -> None:
        self.prof.tool(lambda: None, name="work")()
        await respond(send)

    made = service(handle)
    asyncio.run(made.get("/health"))
    assert made.records == []
    assert [one["type"] for one in made.sent] == ["http.response.start", "http.response.body"]
    assert made.prof._open == {}


def test_loop_is_named_after_its_route() -> None:
    async def handle(self: Service, scope: Any, send: Any) -> None:
        scope["route"] = SimpleNamespace(path="/users/{user}/chat")  # as routers do
        await chat(self, scope, send)

    made = service(handle)
    asyncio.run(made.get("/users/17/chat"))
    assert made.all() == [("/users/{user}/chat", "ok", None, 1)]


def test_name_of_a_request() -> None:
    route = SimpleNamespace(path="/chat/{id}")
    mounted = {"path": "/v1/9/chat/7", "root_path": "/proxy/v1/9", "route": route}
    assert name_of(mounted, "/proxy") == "/v1/{id}/chat/{id}"
    mounted |= {"path_params": {"tenant": "acme", "id": "7"}, "root_path": "/proxy/v1/acme"}
    assert name_of(mounted, "/proxy") == "/v1/{tenant}/chat/{id}"
    assert name_of({"path": "/a/7", "path_template": "/a/{b}"}) == "/a/{b}"
    assert name_of({"path": "/a/7"}) == "/a/{id}"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/", "/"),
        ("/chat", "/chat"),
        ("/v1/users/42/chat/", "/v1/users/{id}/chat/"),
        ("/runs/8c63a2f0-0000-4000-8000-123456789abc", "/runs/{id}"),
        ("/t/thread_abcDEF0123456789abcDEF/x", "/t/{id}/x"),
        ("/conversations-of-this-customer", "/conversations-of-this-customer"),
    ],
)
def test_ids_are_no_part_of_a_name(path: str, name: str) -> None:
    assert without_ids(path) == name


def test_loop_lasts_until_the_body_has_been_sent() -> None:
    times = {}

    async def handle(self: Service, scope: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        self.asks()
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        self.asks()  # while it streams
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        times["sent"] = self.prof.recorder.clock()
        for _ in range(100):  # in the background, nothing that is watched
            self.prof.recorder.clock()

    made = service(handle)
    asyncio.run(made.get())
    (record,) = made.records
    assert (len(record.rounds), record.status) == (2, "ok")
    assert record.ended_ns == times["sent"] - 1


def test_model_that_is_asked_in_the_background_is_part_of_the_loop() -> None:
    async def handle(self: Service, scope: Any, send: Any) -> None:
        await respond(send, 202)
        self.round = self.asks()

    made = service(handle)
    asyncio.run(made.get())
    (record,) = made.records
    assert [round_.model.status for round_ in record.rounds] == ["ok"]
    assert record.ended_ns == made.round.ended_ns  # type: ignore[attr-defined]


def test_exception_passes_through() -> None:
    error = ValueError("mine")

    async def handle(self: Service, scope: Any, send: Any) -> None:
        self.asks()
        raise error

    made = service(handle)
    with pytest.raises(ValueError, match="mine") as caught:
        asyncio.run(made.get())
    assert caught.value is error
    assert made.all() == [("/chat", "error", "ValueError", 1)]


@pytest.mark.parametrize(
    ("status", "done", "ending"),
    [
        (200, True, ("ok", None)),
        (404, True, ("ok", None)),
        (503, True, ("error", "http_503")),
        (200, False, ("cancelled", "disconnected")),
    ],
)
def test_response_decides_whether_a_loop_failed(status: int, done: bool, ending: Any) -> None:
    async def handle(self: Service, scope: Any, send: Any) -> None:
        self.asks()
        await respond(send, status, done=done)

    made = service(handle)
    asyncio.run(made.get())
    assert [(one.status, one.error_type) for one in made.records] == [ending]


def test_client_that_goes_away_has_cancelled_the_loop() -> None:
    """Also where a framework ends the body all the same. After the response everybody goes."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        made.asks()
        await send({"type": "http.response.start", "status": 200})
        if scope["path"] == "/before":
            assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        assert (await receive())["type"] == "http.disconnect"

    async def send(message: Any) -> None: ...

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    made = Service(app)
    for path in ("/before", "/after"):
        asyncio.run(made.app({"type": "http", "path": path}, receive, send))  # type: ignore[arg-type]
    assert made.all() == [("/before", "cancelled", "disconnected", 1), ("/after", "ok", None, 1)]


def test_cancelled_request_is_a_cancelled_loop() -> None:
    async def handle(self: Service, scope: Any, send: Any) -> None:
        self.asks()
        await asyncio.Event().wait()

    made = service(handle)

    async def main() -> None:
        task = asyncio.create_task(made.get())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert [one.status for one in made.records] == ["cancelled"]


def test_concurrent_requests_stay_apart() -> None:
    async def handle(self: Service, scope: Any, send: Any) -> None:
        for _ in range(int(scope["path"][-1])):
            await asyncio.sleep(0)
            self.asks()
        await respond(send)

    made = service(handle)

    async def main() -> None:
        await asyncio.gather(*(made.get(f"/times-{n}") for n in range(1, 6)))

    asyncio.run(main())
    assert sorted(made.all()) == [(f"/times-{n}", "ok", None, n) for n in range(1, 6)]
    assert len({one.id for one in made.records}) == 5
    assert {one.parent for one in made.records} == {None}


def test_loop_of_the_endpoint_is_its_own_unless_the_request_asks_itself() -> None:
    async def handle(self: Service, scope: Any, send: Any) -> None:
        if scope["path"] == "/both":
            self.asks()
        with self.prof.loop("agent"):
            self.asks()
        await respond(send)

    made = service(handle)
    asyncio.run(made.get("/inner"))
    assert [(one.name, one.parent) for one in made.records] == [("agent", None)]
    asyncio.run(made.get("/both"))
    inner, outer = made.records[1:]
    assert [(inner.name, inner.parent), (outer.name, outer.parent)] == [("agent", outer.id), ("/both", None)]


def test_only_chosen_paths_are_watched_and_only_http() -> None:
    seen = []

    async def handle(self: Service, scope: Any, send: Any) -> None:
        seen.append(self.prof._loop.get() is not None)

    made = service(handle, include=["/chat*", "/v1/*"], exclude=["/v1/health"])
    for path in ("/chat", "/v1/x", "/v1/health", "/other"):
        asyncio.run(made.get(path))
    for kind in ("websocket", "lifespan"):
        asyncio.run(made.get("/chat", type=kind))
    assert seen == [True, True, False, False, False, False]


def test_failure_of_the_middleware_is_not_the_applications(monkeypatch: pytest.MonkeyPatch) -> None:
    made = service(chat)
    monkeypatch.setattr("profiler.watch.asgi.name_of", lambda *_: 1 / 0)
    monkeypatch.setattr("profiler.watch.asgi._Response.sent", lambda *_: 1 / 0)
    asyncio.run(made.get())
    assert len(made.sent) == 2
    assert made.prof.failures["loop"] == 3
    assert len(made.records) == 1


def test_context_of_the_request_is_left() -> None:
    made = service(chat)
    context = contextvars.Context()

    async def main() -> None:
        await made.get()
        assert made.prof._loop.get() is None

    context.run(asyncio.run, main())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profiler": None}, "profiler is a Profiler, not a NoneType"),
        ({"include": "/chat"}, "include is a list of paths"),
        ({"exclude": ["chat"]}, "exclude is a list of paths"),
    ],
)
def test_bad_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ProfilerMiddleware(lambda *_: None, **{"profiler": Profiler([]), **options})  # type: ignore[arg-type]
