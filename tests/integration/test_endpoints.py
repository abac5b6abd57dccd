"""Servers that are asked in ways of their own: a path, a query, headers, certificates, fields of the body."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import anthropic
import openai
import pytest
import trustme

from profiler import ToolLoop, tool
from profiler.errors import ProviderError, UsageError
from profiler.load.context import AgentContext
from profiler.load.options import LoadOptions
from profiler.load.preparation import built_in_loops
from profiler.providers import (
    CLIENTS,
    PROVIDERS,
    AnthropicMessages,
    ClientName,
    OpenAIChat,
    OpenAIResponses,
    make_provider,
)
from profiler.providers.endpoint import Endpoint, Tls
from profiler.scenarios import load_scenario
from profiler.strategies import Gathered
from tests.integration.plain_server import (
    Asked,
    answer,
    calls,
    events,
    message,
    responded,
    response,
    serving,
)

PATHS = {"openai": "/chat/completions", "openai-responses": "/responses", "anthropic": "/v1/messages"}
FIELDS = ("stream_options=null", 'reasoning_effort="low"', "parallel_tool_calls=true")


@tool(name="get_weather")
async def weather(city: str) -> str:
    """The weather."""
    return f"{city}: sunny"


def replies(asked: Asked) -> bytes:
    """Of each API, whole or streamed: an answer without calls."""
    path = asked.path.partition("?")[0]
    streamed = asked.body.get("stream", False)
    if path.endswith("/messages"):
        block = {"type": "text", "text": "Done."}
        if not streamed:
            return response(200, message(block))
        begun = message(reason="") | {"stop_reason": None}
        return events(
            {"type": "message_start", "message": begun},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Done."}},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 20}},
            {"type": "message_stop"},
            names=True,
        )
    if path.endswith("/responses"):
        if not streamed:
            return response(200, responded())
        done = {"type": "response.completed", "sequence_number": 0, "response": responded()}
        return events(done, names=True)
    if not streamed:
        return response(200, answer())
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choice = {"index": 0, "delta": {"role": "assistant", "content": "Done."}, "finish_reason": None}
    end = {"index": 0, "delta": {}, "finish_reason": "stop"}
    return events({**chunk, "choices": [choice]}, {**chunk, "choices": [end]}, "[DONE]")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("client", CLIENTS)
async def test_request_is_made_as_the_options_say(client: ClientName, provider: str, stream: bool) -> None:
    with serving(replies) as server:
        options = LoadOptions(
            provider=provider,
            client=client,
            model="m",
            base_url=f"{server.url}/api/paas/v4?api-version=2024-10-21",
            header=("api-key=s3cret-of-mine", "X-Team=a=b, c"),
            query=("flag=on off", "flag="),
            body=(*FIELDS, "max_tokens=77") if provider == "anthropic" else FIELDS,
            stream=stream,
        )
        make = built_in_loops(
            options, options.endpoint(options.base_url or ""), "http://h", load_scenario("cities"), None, None
        )
        loop = make(strategy=Gathered(), sinks=[])
        assert (await loop.run("hi")).text == "Done."
        await loop.model.client.close()
    (asked,) = server.asked
    parts = urlsplit(asked.path)
    assert parts.path == f"/api/paas/v4{PATHS[provider]}"
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    assert pairs == [("api-version", "2024-10-21"), ("flag", "on off"), ("flag", "")]
    assert asked.headers["api-key"] == "s3cret-of-mine"
    assert asked.headers["x-team"] == "a=b, c"
    assert "authorization" not in asked.headers  # the key that is given takes the place of the SDK's
    assert "x-api-key" not in asked.headers
    assert asked.body["reasoning_effort"] == "low"
    assert asked.body["parallel_tool_calls"] is True
    assert "stream_options" not in asked.body
    assert asked.body.get("max_tokens") == (77 if provider == "anthropic" else None)
    assert asked.body.get("stream", False) is stream


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("client", CLIENTS)
async def test_headers_do_not_follow_a_redirect_to_another_host(client: ClientName, provider: str) -> None:
    def moved(asked: Asked) -> bytes:
        if "/here" in asked.path:
            return replies(asked)
        to = f"{asked.headers['host']}/here/messages" if "/same" in asked.path else elsewhere
        return response(307).replace(b"content-type", f"location: http://{to}\r\ncontent-type".encode())

    with serving(moved) as server:
        elsewhere = f"{server.host.replace('127.0.0.1', 'localhost')}/here/messages"
        for path in ("same", "other"):
            options = LoadOptions(provider=provider, model="m", header=("x-team-token=s3cret-of-mine",))
            endpoint = options.endpoint(f"{server.url}/{path}")
            model = make_provider(provider, base_url=endpoint, model="m", api_key="k", client=client)
            with contextlib.suppress(ProviderError):  # a reply of Messages, to whoever asks
                await ToolLoop(model).run("hi")
            await model.client.close()
    sent = [(asked.path.split("/")[1], "x-team-token" in asked.headers) for asked in server.asked]
    assert list(dict.fromkeys(sent)) == [("same", True), ("here", True), ("other", True), ("here", False)]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_fields_of_a_users_own_client_are_sent_through_create(stream: bool) -> None:
    """And only what a request needs is sent without them: `parallel_tool_calls` never."""
    bodies = {}
    for fields in ({}, {"seed": 7, "stream_options": None, "temperature": 0}):
        with serving(replies) as server:
            chat = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k")
            claude = anthropic.AsyncAnthropic(base_url=server.url, api_key="k")
            for model in (
                OpenAIChat(chat, "m", body=fields),
                OpenAIResponses(chat, "m", body=fields),
                AnthropicMessages(claude, "m", body=fields),
            ):
                assert (await ToolLoop(model, [weather], stream=stream).run("hi")).text == "Done."
            await chat.close()
            await claude.close()
            bodies[len(fields)] = [asked.body for asked in server.asked]
    usage = {"include_usage": True} if stream else None
    assert [body.get("stream_options") for body in bodies[0]] == [usage, None, None]
    assert [body.get("stream_options") for body in bodies[3]] == [None] * 3
    assert [(body["seed"], body["temperature"]) for body in bodies[3]] == [(7, 0)] * 3
    assert not any("parallel_tool_calls" in body for body in (*bodies[0], *bodies[3]))


CA = trustme.CA()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths: the CA, a client's certificate with its key, the two apart, and one of somebody else's."""
    folder = tmp_path_factory.mktemp("certificates")
    mine, other = CA.issue_cert("client.example"), trustme.CA().issue_cert("client.example")
    paths = {name: str(folder / f"{name}.pem") for name in ("ca", "both", "certificate", "key", "other")}
    CA.cert_pem.write_to_path(paths["ca"])
    mine.private_key_and_cert_chain_pem.write_to_path(paths["both"])
    mine.cert_chain_pems[0].write_to_path(paths["certificate"])
    mine.private_key_pem.write_to_path(paths["key"])
    other.private_key_and_cert_chain_pem.write_to_path(paths["other"])
    return paths


def server_tls(host: str = "127.0.0.1", wants_a_certificate: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CA.issue_cert(host).configure_cert(context)
    if wants_a_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        CA.configure_trust(context)
    return context


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("client", CLIENTS)
async def test_certificates_of_both_sides(client: ClientName, files: dict[str, str], provider: str) -> None:
    async def said(url: str, **tls: object) -> str:
        model = make_provider(
            provider, base_url=Endpoint(url, tls=Tls(**tls)), model="m", api_key="k", client=client
        )  # type: ignore[arg-type]
        model.client.max_retries = 0
        try:
            return (await ToolLoop(model).run("hi")).text
        except Exception as error:
            return error.error_type
        finally:
            await model.client.close()

    ca = files["ca"]
    with serving(replies, server_tls(wants_a_certificate=True)) as strict:
        assert await said(strict.url, ca=ca, certificate=files["both"]) == "Done."
        assert await said(strict.url, ca=ca, certificate=files["certificate"], key=files["key"]) == "Done."
        assert await said(strict.url, insecure=True, certificate=files["both"]) == "Done."
        assert await said(strict.url, ca=ca) == "untrusted"
        assert await said(strict.url, ca=ca, certificate=files["other"]) == "untrusted"
    with serving(replies, server_tls("other.example")) as other:
        assert await said(other.url, insecure=True) == "Done."
        assert await said(other.url, ca=ca) == "untrusted"
        assert await said(other.url) == "untrusted"


def test_key_of_another_certificate_is_called_that(files: dict[str, str]) -> None:
    with pytest.raises(UsageError) as refused:
        Tls(certificate=files["certificate"], key=files["other"]).context()
    assert str(refused.value) == (
        f"--client-cert {files['certificate']} with --client-key {files['other']}: "
        "the key is that of another certificate"
    )


@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
async def test_client_of_an_agent_of_ones_own_is_made_as_the_options_say(
    files: dict[str, str], sdk: str
) -> None:
    options = LoadOptions(
        header=("api-key=s3cret-of-mine",),
        query=("flag=on",),
        body=("seed=7",),
        ca=files["ca"],
        client_cert=files["both"],
    )
    with serving(replies, server_tls(wants_a_certificate=True)) as server:
        context = AgentContext(
            provider=sdk,
            endpoint=options.endpoint(f"{server.url}/api/v4?version=1"),
            body=options.fields,
            tools_url="http://127.0.0.1:1",
            model="m",
            strategy=Gathered(),
            prompt="hi",
            sinks=(),
        )
        if sdk == "openai":
            client = openai.AsyncOpenAI(**context.client_options())
            model = OpenAIChat(client, "m", body=context.body)
        else:
            client = anthropic.AsyncAnthropic(**context.client_options("anthropic"))
            model = AnthropicMessages(client, "m", body=context.body)
        assert (await ToolLoop(model).run("hi")).text == "Done."
        await client.close()
    (asked,) = server.asked
    assert asked.path == f"/api/v4{PATHS[sdk]}?version=1&flag=on"
    assert (asked.headers["api-key"], asked.body["seed"]) == ("s3cret-of-mine", 7)
    assert not {"authorization", "x-api-key"}.intersection(asked.headers)


def profiler(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("OPENAI_API_KEY", "SSL_CERT_FILE")}
    return subprocess.run(
        [sys.executable, "-m", "profiler", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def two_rounds(asked: Asked) -> bytes:
    if "refuse" in asked.path:
        return response(401, {"error": {"message": f"bad key {asked.headers['api-key']}"}})
    if any(one["role"] == "tool" for one in asked.body["messages"]):
        return response(200, answer())
    return response(200, calls(("get_weather", {"city": "Paris"})))


def everything(folder: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def test_load_over_several_processes_sends_its_secrets_and_stores_none(
    files: dict[str, str], tmp_path: Path
) -> None:
    with serving(two_rounds, server_tls(wants_a_certificate=True)) as server:
        done = profiler(
            *("compare", "--base-url", f"{server.url}/v4?key=canary-in-the-url", "--model", "m"),
            *("--header", "api-key=canary-header", "--query", "token=canary-query", "--ca", files["ca"]),
            *("--client-cert", files["certificate"], "--client-key", files["key"]),
            *("--users", "2", "--workers", "2", "--duration", "1s", "--blocks", "1", "--calibrate", "0"),
            *("--strategy", "gathered", "--no-metrics", "--allow-saturated"),
            folder=tmp_path,
        )
    assert done.returncode == 0, done.stderr
    assert len(server.asked) > 4
    assert {asked.path for asked in server.asked} == {
        "/v4/chat/completions?key=canary-in-the-url&token=canary-query"
    }
    assert {asked.headers["api-key"] for asked in server.asked} == {"canary-header"}
    assert "canary" not in done.stdout + done.stderr + everything(tmp_path)
    (run,) = (tmp_path / "runs").glob("*/run.json")
    arguments = json.loads(run.read_text())["arguments"]
    assert arguments["base_url"] == f"{server.url}/v4?key=[redacted]"
    assert (arguments["header"], arguments["query"]) == (["api-key=[redacted]"], ["token=[redacted]"])


def test_refusal_repeats_no_secret(files: dict[str, str], tmp_path: Path) -> None:
    with serving(two_rounds, server_tls()) as server:
        done = profiler(
            *(
                "run",
                "--base-url",
                f"{server.url}/refuse?key=canary-in-the-url",
                "--insecure",
                "--out",
                "kept",
            ),
            *("--header", "api-key=canary-header"),
            folder=tmp_path,
        )
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == (
        f"profiler: openai: http_401 (status 401 from {server.url}/refuse/chat/completions?key=[redacted], "
        "request req_7): bad key [redacted]"
    )
    assert "canary" not in done.stdout + done.stderr + everything(tmp_path)
