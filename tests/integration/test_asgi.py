"""A FastAPI service under uvicorn, over sockets; its model server shares no code with the emulator."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import openai
import pytest

from profiler import ProfilerMiddleware
from profiler.watch.profiler import Profiler

needed = importlib.import_module if os.environ.get("CI") == "true" else pytest.importorskip
fastapi: Any = needed("fastapi")
uvicorn: Any = needed("uvicorn")

pytestmark = pytest.mark.filterwarnings("default")  # what these packages warn of among themselves is theirs


class Model(BaseHTTPRequestHandler):
    """Asks for two calls in which the user's name is, then answers."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        user = body["messages"][0]["content"]
        message: dict[str, Any] = {"role": "assistant", "content": f"done for {user}"}
        if len(body["messages"]) == 1:
            message = {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": f"{user}-{place}",
                        "type": "function",
                        "function": {
                            "name": "weather",
                            "arguments": json.dumps({"user": user, "place": place}),
                        },
                    }
                    for place in ("Tokyo", "Paris")
                ],
            }
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        reply = json.dumps(
            {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def model_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join(60)


def make_service(prof: Profiler, model_url: str) -> Any:
    @contextlib.asynccontextmanager
    async def closing(app: Any) -> AsyncIterator[None]:
        async with client:
            yield
        sync_client.close()

    app = fastapi.FastAPI(lifespan=closing)
    app.add_middleware(ProfilerMiddleware, profiler=prof)

    @app.middleware("http")
    async def as_many_applications_have_one(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    client = prof.instrument(openai.AsyncOpenAI(base_url=model_url, api_key="k", max_retries=0))
    sync_client = prof.instrument(openai.OpenAI(base_url=model_url, api_key="k", max_retries=0))

    @prof.tool
    async def weather(user: str, place: str) -> str:
        await asyncio.sleep(0.01)
        return f"{user} {place}"

    sync_weather = prof.tool(lambda user, place: f"{user} {place}", name="weather")

    def answers(messages: list[Any], reply: Any, results: list[str]) -> None:
        calls = reply.choices[0].message.tool_calls
        messages.append(reply.choices[0].message)
        messages += [
            {"role": "tool", "tool_call_id": call.id, "content": result}
            for call, result in zip(calls, results, strict=True)
        ]

    async def agent(user: str) -> str:
        messages: list[Any] = [{"role": "user", "content": user}]
        reply = await client.chat.completions.create(model="m", messages=messages)
        asked = [json.loads(call.function.arguments) for call in reply.choices[0].message.tool_calls]
        answers(messages, reply, await asyncio.gather(*(weather(**one) for one in asked)))
        last = await client.chat.completions.create(model="m", messages=messages)
        return str(last.choices[0].message.content)

    @app.post("/users/{user}/chat")
    async def chat(user: str) -> Any:
        return {"text": await agent(user)}

    @app.post("/users/{user}/sync")
    def in_a_thread(user: str) -> Any:
        messages: list[Any] = [{"role": "user", "content": user}]
        reply = sync_client.chat.completions.create(model="m", messages=messages)
        asked = [json.loads(call.function.arguments) for call in reply.choices[0].message.tool_calls]
        answers(messages, reply, [sync_weather(**one) for one in asked])
        return sync_client.chat.completions.create(model="m", messages=messages).choices[0].message.content

    router = fastapi.APIRouter(prefix="/v1")

    @router.post("/{user}/streamed")
    async def streamed(user: str) -> Any:
        async def body() -> AsyncIterator[str]:
            yield "text: "
            yield await agent(user)

        return fastapi.responses.StreamingResponse(body())

    app.include_router(router)

    @app.post("/users/{user}/later", status_code=202)
    async def later(user: str, tasks: fastapi.BackgroundTasks) -> None:
        tasks.add_task(agent, user)

    @app.post("/users/{user}/fails")
    async def fails(user: str) -> None:
        await agent(user)
        raise RuntimeError("of the endpoint")

    @app.get("/health")
    async def health() -> str:
        return "well"

    return app


@pytest.fixture
def service(model_url: str) -> Iterator[tuple[str, list[Any], Profiler]]:
    records: list[Any] = []
    prof = Profiler([records.append], record_content=True)
    config = uvicorn.Config(make_service(prof, model_url), port=0, log_level="critical", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", records, prof
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


def until(holds: Any) -> None:
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("not within a minute")


WAYS = {
    "chat": "/users/{user}/chat",
    "sync": "/users/{user}/sync",
    "streamed": "/v1/{user}/streamed",
    "later": "/users/{user}/later",
    "fails": "/users/{user}/fails",
}


def test_concurrent_requests_of_a_service_are_a_loop_each(service: tuple[str, list[Any], Profiler]) -> None:
    url, records, prof = service
    asked = [(f"{way}-{n}", path) for n in range(4) for way, path in WAYS.items()]

    async def main() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as client:
            requests = [client.post(url + path.format(user=user)) for user, path in asked]
            others = [client.get(f"{url}/health"), client.post(f"{url}/nowhere/17")]
            return await asyncio.gather(*requests, *others)

    responses = asyncio.run(main())
    until(lambda: len(records) == len(asked))
    for (user, _), response in zip(asked, responses, strict=False):
        way = user.partition("-")[0]
        assert response.status_code == {"later": 202, "fails": 500}.get(way, 200)
        if way in ("chat", "sync", "streamed"):
            assert f"done for {user}" in response.text
    assert [response.status_code for response in responses[len(asked) :]] == [200, 404]

    by_user = {json.loads(next(record.tool_calls).arguments)["user"]: record for record in records}
    assert sorted(by_user) == sorted(user for user, _ in asked)
    for user, path in asked:
        record = by_user[user]
        assert record.name == path
        ending = ("error", "RuntimeError") if "fails" in user else ("ok", None)
        assert (record.status, record.error_type, record.parent) == (*ending, None)
        assert [len(round_.tool_calls) for round_ in record.rounds] == [2, 0]
        assert sorted(call.id for call in record.tool_calls) == [f"{user}-Paris", f"{user}-Tokyo"]
        assert (record.unobserved_calls, record.ambiguous_calls, record.orphan_calls) == (0, 0, 0)
        assert record.ended_ns >= record.rounds[-1].model.ended_ns
    assert prof.failures == {"loop": 0, "request": 0, "tool": 0}
