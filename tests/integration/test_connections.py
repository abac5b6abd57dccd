"""Requests that fail: each failure is called what it was, on every transport, with the URL that was asked."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import anthropic
import httpx2
import openai
import pytest
import trustme

from profiler import ToolLoop
from profiler.errors import ProviderError
from profiler.loop.model import Probe, current_probe
from profiler.providers import (
    CLIENTS,
    PROVIDERS,
    AnthropicMessages,
    ClientName,
    OpenAIChat,
    OpenAIResponses,
    make_provider,
)
from profiler.providers.attempts import observe_attempts
from profiler.providers.failures import provider_error
from tests.integration.plain_server import RESET, Asked, calls, events, response, serving

CA = trustme.CA()
PATHS = {
    "openai": "/v1/chat/completions",
    "openai-responses": "/v1/responses",
    "anthropic": "/v1/messages",
}


def tls(*names: str, client_certificate: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CA.issue_cert(*names).configure_cert(context)
    if client_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        CA.configure_trust(context)
    return context


@contextmanager
def closed_port(scheme: str) -> Iterator[str]:
    with socket.socket() as bound:  # not listening
        bound.bind(("127.0.0.1", 0))
        yield f"{scheme}://127.0.0.1:{bound.getsockname()[1]}"


@contextmanager
def failing(what: str) -> Iterator[str]:
    """The base URL of a server with which requests fail in this way."""
    if what in ("http", "https"):
        with closed_port(what) as url:
            yield url
    elif what == "unresolved":
        yield "http://nowhere.invalid"
    elif what == "hanging":
        ended = threading.Event()
        with serving(lambda _: str(ended.wait(60)).encode()) as server:
            yield server.url
            ended.set()
    else:
        answers = {
            "reset": RESET,
            "no answer": b"",
            "half an answer": response(200, b"{", length=100),
            "no HTTP": b"220 mail.example.com ESMTP\r\n\r\n",
        }
        contexts = {
            "untrusted": tls("127.0.0.1"),
            "of another host": tls("other.example"),
            "wants a certificate": tls("127.0.0.1", client_certificate=True),
            "reset over TLS": tls("127.0.0.1"),
        }
        with serving(lambda _: answers.get(what, RESET), contexts.get(what)) as server:
            yield server.url.replace("http:", "https:") if what == "no TLS" else server.url


FAILURES = [
    ("http", "refused", "HOST refused the connection: nothing listens at this address and port"),
    ("https", "refused", "HOST refused the connection: nothing listens at this address and port"),
    ("unresolved", "unresolved", "the name nowhere.invalid could not be resolved to an address ("),
    ("untrusted", "untrusted", "the certificate of HOST is not trusted: unable to get local issuer"),
    ("of another host", "untrusted", "the certificate of HOST is not trusted: IP address mismatch"),
    (
        "wants a certificate",
        "untrusted",
        "HOST did not accept this client's certificate, or wants one: --client-cert FILE (",
    ),
    ("reset", "reset", "HOST closed the connection before it had answered"),
    ("reset over TLS", "reset", "HOST closed the connection before it had answered"),
    ("no answer", "reset", "HOST closed the connection before it had answered"),
    ("half an answer", "reset", "HOST closed the connection "),
    ("hanging", "timeout", "nothing came from HOST within 0.3 s"),
    ("no TLS", "connection", "HOST does not speak TLS at this port (WRONG_VERSION_NUMBER): is it http://?"),
    ("no HTTP", None, ""),
]


def client_of(kind: str, url: str, verify: ssl.SSLContext | bool, timeout: float = 0.3):
    options = {"timeout": timeout, "trust_env": False, "verify": verify}
    sdk = {"base_url": f"{url}/v1", "api_key": "k", "max_retries": 0, "timeout": timeout}
    if kind == "sync":
        return openai.OpenAI(http_client=httpx2.Client(**options), **sdk)
    made = httpx2.AsyncClient(**options) if kind == "httpx2" else openai.DefaultAioHttpClient(**options)
    return openai.AsyncOpenAI(http_client=made, **sdk)


def trusting(what: str) -> ssl.SSLContext | bool:
    if what in ("untrusted", "no TLS"):
        return True
    context = ssl.create_default_context()
    CA.configure_trust(context)
    return context


def failure(kind: str, url: str, what: str) -> tuple[Exception, str | None]:
    """What the SDK raises, and the error of the attempt as it was recorded."""
    # On a busy machine a server may take longer than 0.3 s to close a connection.
    client = client_of(kind, url, trusting(what), 0.3 if what == "hanging" else 30.0)
    observe_attempts(client._client)
    probe = Probe(clock=lambda: 0)
    token = current_probe.set(probe)
    ask = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    try:
        if kind == "sync":
            client.chat.completions.create(**ask)
        else:

            async def once() -> None:
                async with client:
                    await client.chat.completions.create(**ask)

            asyncio.run(once())
    except Exception as error:
        return error, probe.attempts[-1].error_type
    finally:
        current_probe.reset(token)
    raise AssertionError("it did not fail")


@pytest.mark.parametrize("kind", ["aiohttp", "httpx2", "sync"])
@pytest.mark.parametrize(("what", "error_type", "words"), FAILURES, ids=[one[0] for one in FAILURES])
def test_failed_connection_is_called_what_it_was(
    kind: str, what: str, error_type: str | None, words: str
) -> None:
    with failing(what) as url:
        error, recorded = failure(kind, url, what)
        said = provider_error("openai", openai, error)
    host = url.partition("://")[2]
    if error_type is None:  # aiohttp has a class of its own for it
        assert (said.error_type, said.status) == ("not_http", None)
        assert recorded == "not_http"
        assert "220 mail.example.com" in str(said)
        return
    assert (said.error_type, said.status, recorded) == (error_type, None, error_type)
    asked = f"openai: {error_type} (no response from {url}/v1/chat/completions): "
    assert str(said).startswith(asked + words.replace("HOST", host))
    assert "timed out" not in str(said)


def test_hanging_stream_says_that_nothing_more_came() -> None:
    """The SDKs wrap nothing that happens once a stream has begun."""
    begun = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []}
    whole = events(begun)
    with serving(lambda _: whole.replace(b"content-length: ", b"content-length: 9")) as server:

        async def once() -> None:
            async with client_of("httpx2", server.url, True) as client:
                await ToolLoop(OpenAIChat(client, "m"), stream=True).run("hi")

        with pytest.raises(ProviderError) as caught:
            asyncio.run(once())
    assert caught.value.error_type in ("reset", "truncated_stream")


REFUSALS = {
    "OpenAI's": (400, {"error": {"message": "Bad thing.", "code": None}}, "Bad thing."),
    "Google's": (
        400,
        [{"error": {"message": "No way", "status": "INVALID_ARGUMENT"}}],
        "No way (INVALID_ARGUMENT)",
    ),
    "text": (400, b"upstream says no", "upstream says no"),
    "a page": (
        502,
        b"<html><head><title>Bad gateway</title></head><body><h1>Bad gateway</h1></body></html>",
        "Bad gateway",
    ),
    "nothing": (404, b"", "the server gave no reason"),
    "no such path": (404, {"detail": "Not Found"}, "Not Found"),
    "long": (400, b"x" * 100_000, "x" * 500 + "…"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(("status", "body", "words"), REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("client", CLIENTS)
async def test_refusal_is_in_the_servers_own_words(
    client: ClientName, provider: str, stream: bool, status: int, body: object, words: str
) -> None:
    with serving(lambda _: response(status, body)) as server:
        model = make_provider(provider, base_url=server.url, model="m", client=client)
        model.client.max_retries = 0
        with pytest.raises(ProviderError) as caught:
            await ToolLoop(model, stream=stream).run("hi")
        await model.client.close()
    expected = (
        f"{provider}: http_{status} (status {status} from {server.url}{PATHS[provider]}, request req_7): "
    )
    said = str(caught.value)
    if provider == "anthropic":  # its request ids come under another name
        said = said.replace(f"{PATHS[provider]}):", f"{PATHS[provider]}, request req_7):")
    assert said == expected + words


NONE = "the reply is not what this API answers with: "
CUT = f"{NONE}not JSON: Unterminated string starting at: line 1 column 9 (char 8)"
REPLIES = {
    "a page": (
        b"<html><head><title>Sign in</title></head></html>",
        f"{NONE}text where an object belongs; it says: Sign in",
        f"{NONE}not JSON: Expecting value: line 1 column 1 (char 0); it says: Sign in",
    ),
    "an error of no known shape": ({"detail": "Not authenticated"}, *["Not authenticated"] * 2),
    "an answer of another API": (
        {"model": "m", "response": "Paris is best."},
        *[f"{NONE}it has no WHAT; its fields are model, response"] * 2,
    ),
    "a list": ([{"msg": "busy"}], *[f"{NONE}an array where an object belongs; it says: busy"] * 2),
    "half an object": (b'{"msg": "cut', CUT, CUT),
    "nothing": (b" ", f"{NONE}an empty body", "the stream ended before the response did"),
}
"""Bodies that come with status 200: what is said of them whole, and where a stream was asked for."""


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(("body", "whole", "streamed"), REPLIES.values(), ids=REPLIES)
@pytest.mark.parametrize("client", CLIENTS)
async def test_what_is_no_reply_is_shown_with_the_url(
    client: ClientName, provider: str, stream: bool, body: object, whole: str, streamed: str
) -> None:
    kind = "text/html" if isinstance(body, bytes) and body.startswith(b"<") else "application/json"
    with serving(lambda _: response(200, body, kind)) as server:
        model = make_provider(provider, base_url=server.url, model="m", client=client)
        with pytest.raises(ProviderError) as caught:
            await ToolLoop(model, stream=stream).run("hi")
        await model.client.close()
    said = str(caught.value)
    # OpenAI's and Anthropic's SDKs take what is no JSON by its content-type for text.
    words = streamed if stream or (client == "lean" and kind == "text/html") else whole
    asked = f"(status 200 from {server.url}{PATHS[provider]}, request "
    assert asked in said
    what = {"openai": "message", "openai-responses": "output", "anthropic": "content"}[provider]
    assert said.endswith(f"): {words.replace('WHAT', what)}")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("client", CLIENTS)
async def test_redirect_is_said_with_both_urls(client: ClientName, provider: str, stream: bool) -> None:
    def moved(status: int, to: str) -> bytes:
        return response(status).replace(b"content-type", f"location: {to}\r\ncontent-type".encode())

    async def said(answer: object) -> str:
        with serving(answer) as server:  # type: ignore[arg-type]
            model = make_provider(provider, base_url=server.url, model="m", client=client)
            model.client.max_retries = 0
            with pytest.raises(ProviderError) as caught:
                await ToolLoop(model, stream=stream).run("hi")
            await model.client.close()
        return str(caught.value).partition("(")[2].replace(server.host, "HOST")

    asked = f"http://HOST{PATHS[provider]}"
    gone = await said(lambda _: moved(307, "http://127.0.0.2:9/login?key=s3cret"))
    assert gone == (
        f"no response from http://127.0.0.2:9/login?key=[redacted], to which {asked} redirects): "
        "127.0.0.2:9 refused the connection: nothing listens at this address and port"
    )
    away = await said(lambda _: moved(307, "http://elsewhere.invalid/login"))
    assert away == (
        f"no response from http://elsewhere.invalid/login, to which {asked} redirects): "
        "this is another machine: if it is meant, give it as --base-url"
    )

    def other(one: Asked) -> bytes:
        return response(405, {"detail": "Not so"}) if one.path == "/other" else moved(301, "/other")

    refused = (await said(other)).replace(", request req_7", "")
    assert refused == f"status 405 from http://HOST/other, to which {asked} redirects with GET): Not so"
    nowhere = (await said(lambda _: response(308))).replace(", request req_7", "")
    assert nowhere == f"status 308 from {asked}): the server gave no reason"


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("client", CLIENTS)
async def test_answer_that_is_no_http_or_not_encoded_as_it_says_is_called_that(
    client: ClientName, provider: str
) -> None:
    answers = {
        b"SSH-2.0-OpenSSH\r\n\r\n": "not_http: the answer of HOST cannot be read: "
        + ("Bad status line: " if client == "sdk" else "Expected HTTP/"),
        response(400, b"plain").replace(b"content-type", b"content-encoding: gzip\r\ncontent-type"): (
            "undecodable: the answer of HOST is not what its content-encoding says: "
        ),
    }
    for raw, words in answers.items():
        with serving(lambda _, raw=raw: raw) as server:  # type: ignore[misc]
            model = make_provider(provider, base_url=server.url, model="m", client=client)
            model.client.max_retries = 0
            with pytest.raises(ProviderError) as caught:
                await ToolLoop(model).run("hi")
            await model.client.close()
        asked = f" (no response from {server.url}{PATHS[provider]})"
        assert asked in str(caught.value)
        said = str(caught.value).replace(asked, "").replace(server.host, "HOST")
        assert said.startswith(f"{provider}: {words}")
        assert "400" not in said


@pytest.mark.parametrize("client", CLIENTS)
async def test_refused_key_is_said_to_be_that_of_its_variable(
    client: ClientName, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = {"error": {"message": "Incorrect API key"}}
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-mine-1234567")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(lambda _: response(401, refusal)) as server:
        said = {}
        for provider in PROVIDERS:
            model = make_provider(provider, base_url=server.url, model="m", client=client)
            with pytest.raises(ProviderError) as caught:
                await ToolLoop(model).run("hi")
            await model.client.close()
            said[provider] = str(caught.value).partition("): ")[2]
        own = openai.AsyncOpenAI(base_url=server.url, api_key="of-the-application")
        with pytest.raises(ProviderError) as caught:
            await ToolLoop(OpenAIResponses(own, "m")).run("hi")
        await own.close()
    assert said == {
        "openai": "Incorrect API key; no key was sent, since OPENAI_API_KEY is not set",
        "openai-responses": "Incorrect API key; no key was sent, since OPENAI_API_KEY is not set",
        "anthropic": "Incorrect API key; the key is that of ANTHROPIC_API_KEY",
    }
    assert str(caught.value).endswith("): Incorrect API key")


@pytest.mark.parametrize("client", CLIENTS)
async def test_field_that_a_server_does_not_know_can_be_left_out(client: ClientName) -> None:
    refusal = {"error": {"message": "Unrecognized request argument supplied: stream_options"}}
    with serving(lambda _: response(400, refusal)) as server:
        model = make_provider("openai", base_url=server.url, model="m", client=client)
        with pytest.raises(ProviderError) as caught:
            await ToolLoop(model, stream=True).run("hi")
        await model.client.close()
    assert str(caught.value).endswith(
        "): Unrecognized request argument supplied: stream_options; without this field: "
        "--body stream_options=null"
    )


async def test_other_provider_than_the_sdks_default_path() -> None:
    """Anthropic's own client, which an application made."""
    with serving(lambda _: response(200, calls())) as server:
        client = anthropic.AsyncAnthropic(base_url=server.url, api_key="k", max_retries=0)
        with pytest.raises(ProviderError) as caught:
            await ToolLoop(AnthropicMessages(client, "m")).run("hi")
        await client.close()
    assert caught.value.error_type == "unreadable"
