"""The lean client's connections over real sockets: kept ones, look-ups, proxies, event loops.

What it shares with the SDKs is tested for both, in `test_connections.py` and its neighbours.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from profiler.errors import ProviderError
from profiler.loop.model import Probe, Reply, RequestOptions
from profiler.providers import make_provider
from profiler.providers.endpoint import Endpoint, Tls
from profiler.providers.lean import LeanModel
from tests.integration.plain_server import Asked, response, serving

DONE = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Done."}, "finish_reason": "stop"}],
}
WHOLE = response(200, DONE).replace(b"connection: close\r\n", b"")


def model_at(url: str, **more: Any) -> LeanModel:
    made = make_provider("openai", base_url=url, model="m", api_key="sk-canary", client="lean", **more)
    assert isinstance(made, LeanModel)
    return made


async def ask(model: LeanModel, probe: Probe | None = None) -> Reply:
    probe = probe or Probe(time.monotonic_ns)
    return await model.request([{"role": "user", "content": "Hi."}], [], RequestOptions(), probe)


class Listening:
    """A server on a port of its own; at its end every connection is closed."""

    tls: ssl.SSLContext | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """The port."""
        serving: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            serving.add(task)
            try:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    await self.serve(reader, writer)
            finally:
                serving.discard(task)
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=self.tls)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)


class Server(Listening):
    """Answers `replies` of the requests of each connection, and ends it at the next one, unanswered."""

    def __init__(self, replies: int, tls: ssl.SSLContext | None = None) -> None:
        self.replies, self.tls = replies, tls
        self.connections = self.requests = 0
        self.open = 0
        self.asked = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            for _ in range(self.replies):
                await self._request(reader)
                writer.write(WHOLE)
            await self._request(reader)
        finally:
            self.open -= 1

    async def _request(self, reader: asyncio.StreamReader) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        self.requests += 1
        self.asked.set()


async def test_kept_connection_that_the_server_ends_is_a_failed_attempt_and_tried_again() -> None:
    server = Server(replies=1)
    async with server.listening() as port:
        model = model_at(f"http://127.0.0.1:{port}")
        await ask(model)
        probe = Probe(time.monotonic_ns)
        assert (await ask(model, probe)).text == "Done."
        assert [(one.status, one.error_type) for one in probe.attempts] == [(None, "reset"), (200, None)]
        assert (server.connections, server.requests) == (2, 3)
        model.client.max_retries = 0
        with pytest.raises(ProviderError, match="closed the connection before it had answered"):
            await ask(model)
        await model.client.close()


async def test_connections_are_kept_and_closed() -> None:
    server = Server(replies=1000)
    async with server.listening() as port:
        model = model_at(f"http://127.0.0.1:{port}")
        for _ in range(3):
            await asyncio.gather(*(ask(model) for _ in range(20)))
        assert (server.connections, server.open, server.requests) == (20, 20, 60)
        await model.client.close()
        for _ in range(200):
            if not server.open:
                break
            await asyncio.sleep(0.01)
        assert server.open == 0
        assert (await ask(model)).text == "Done."  # and it can be used again
        await model.client.close()


def look_ups(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int], seconds: float = 0) -> list[str]:
    """Have every name be that of these addresses; the names that were looked up."""
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        await asyncio.sleep(seconds)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return asked


async def test_name_is_looked_up_once_for_all_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(replies=1000)
    async with server.listening() as port:
        asked = look_ups(monkeypatch, ("127.0.0.1", port), seconds=0.05)
        model = model_at("http://model.test:1")
        first = asyncio.ensure_future(ask(model))
        others = [asyncio.ensure_future(ask(model)) for _ in range(50)]
        await asyncio.sleep(0.01)
        first.cancel()
        assert {reply.text for reply in await asyncio.gather(*others)} == {"Done."}
        assert asked == ["model.test"]
        await model.client.close()


async def test_address_that_does_not_answer_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(replies=1)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent, contextlib.ExitStack() as fill:
        address = silent.getsockname()
        for _ in range(2):  # its queue is full: it takes nobody, and refuses nobody
            waiting = fill.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        async with server.listening() as port:
            look_ups(monkeypatch, address, ("127.0.0.1", port))
            model = model_at("http://model.test:1")
            model.client = model.client.with_options(timeout=600)  # which it may not take
            probe = Probe(time.monotonic_ns)
            assert (await ask(model, probe)).text == "Done."
            assert len(probe.attempts) == 1
            await model.client.close()


async def test_redirect_to_another_port_takes_no_key_along() -> None:
    def elsewhere(asked: Asked) -> bytes:
        return response(307).replace(b"content-type", f"location: {other.url}/v1\r\ncontent-type".encode())

    with serving(lambda _: response(200, DONE)) as other, serving(elsewhere) as first:
        model = model_at(first.url)
        assert (await ask(model)).text == "Done."
        assert first.asked[0].headers["authorization"] == "Bearer sk-canary"
        assert "authorization" not in other.asked[0].headers
        assert other.asked[0].headers["host"] == other.host
        await model.client.close()


@pytest.mark.parametrize("location", ["http://[::1", "//host:99999/", f"http://{'a' * 64}.test/"])
async def test_redirect_to_what_is_no_url_is_the_server_s_fault(location: str) -> None:
    def moved(asked: Asked) -> bytes:
        return response(307).replace(b"content-type", f"location: {location}\r\ncontent-type".encode())

    with serving(moved) as server:
        model = model_at(server.url)
        model.client.max_retries = 0
        with pytest.raises(ProviderError, match="Invalid URL in location header"):
            await ask(model)


class HttpProxy(Listening):
    """Connects everybody with one server, and keeps what it was asked for."""

    def __init__(self, port: int, answer: bytes = b"HTTP/1.1 200 Connected\r\n\r\n") -> None:
        self.port, self.answer = port, answer
        self.heads: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head.decode())
        there, onwards = await asyncio.open_connection("127.0.0.1", self.port)
        if head.startswith(b"CONNECT"):
            writer.write(self.answer)
        else:
            onwards.write(head)
        try:
            await asyncio.gather(_pipe(reader, onwards), _pipe(there, writer))
        finally:
            onwards.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


async def test_server_behind_a_proxy_by_tls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("model.test").configure_cert(context)
    server = Server(replies=1000, tls=context)
    async with server.listening() as port:
        proxy = HttpProxy(port)
        async with proxy.listening() as proxied:
            monkeypatch.setenv("HTTPS_PROXY", f"http://me:p%40ss@127.0.0.1:{proxied}")
            endpoint = replace(Endpoint.parse("https://model.test"), tls=Tls(ca=str(tmp_path / "ca.pem")))
            model = model_at(endpoint)  # type: ignore[arg-type]
            for _ in range(2):
                assert (await ask(model)).text == "Done."
            await model.client.close()
            (head,) = proxy.heads
            assert head.startswith("CONNECT model.test:443 HTTP/1.1\r\nhost: model.test:443\r\n")
            assert "proxy-authorization: Basic bWU6cEBzcw==\r\n" in head
            assert "canary" not in head
            stranger = model_at("https://model.test")
            stranger.client.max_retries = 0
            with pytest.raises(ProviderError, match="certificate"):
                await ask(stranger)


async def test_proxy_that_refuses_with_the_password_has_it_not_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(replies=1)
    async with server.listening() as port:
        proxy = HttpProxy(port, b"HTTP/1.1 407 me:hunter22\r\n\r\n")
        async with proxy.listening() as proxied:
            monkeypatch.setenv("HTTPS_PROXY", f"http://me:hunter22@127.0.0.1:{proxied}")
            model = model_at("https://model.test")
            model.client.max_retries = 0
            with pytest.raises(ProviderError, match="the proxy refused: 407") as refused:
                await ask(model)
            assert "hunter22" not in str(refused.value)


async def test_server_behind_a_proxy_without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(replies=1000)
    async with server.listening() as port:
        proxy = HttpProxy(port)
        async with proxy.listening() as proxied:
            monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxied}")
            model = model_at("http://model.test:8000")
            for _ in range(2):
                assert (await ask(model)).text == "Done."
            await model.client.close()
            (head,) = proxy.heads
            first = "POST http://model.test:8000/v1/chat/completions HTTP/1.1\r\nhost: model.test:8000\r\n"
            assert head.startswith(first)
            assert "authorization: Bearer sk-canary\r\n" in head


def test_model_is_used_on_one_event_loop_after_another() -> None:
    with serving(lambda _: response(200, DONE)) as server:
        model = model_at(server.url)
        for _ in range(3):
            assert asyncio.run(ask(model)).text == "Done."
            assert len(model.client._pools) == 1

        async def last() -> None:
            await ask(model)
            await model.client.close()

        asyncio.run(last())
        assert model.client._pools == {}


async def test_client_that_is_closed_in_an_exchange_ends_it_and_keeps_no_connection() -> None:
    server = Server(replies=1000)
    async with server.listening() as port:
        model = model_at(f"http://127.0.0.1:{port}")
        asking = asyncio.ensure_future(ask(model))
        await server.asked.wait()
        await model.client.close()
        assert (await asking).text == "Done."
        for _ in range(200):
            if not server.open:
                break
            await asyncio.sleep(0.01)
        assert server.open == 0
