"""Nothing that is secret, and nothing of what was said, gets out: canaries are planted and looked for."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import re
import subprocess
import sys
import threading
import traceback
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import anthropic
import openai
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from profiler import ToolLoop, tool
from profiler.cli import main
from profiler.emulator.process import start_emulator
from profiler.errors import ProviderError
from profiler.exporters.opentelemetry import OpenTelemetrySink
from profiler.exporters.prometheus import Exposition, PrometheusSink
from profiler.process.ports import free_port
from profiler.providers import AnthropicMessages, OpenAIChat, OpenAIResponses
from profiler.records import encode
from profiler.watch.profiler import Profiler
from tests.integration.locust_process import locust

CANARY = "CANARY"
"""All of them have it in their name: one search finds any."""

ENVIRONMENT = {
    "OPENAI_API_KEY": "sk-CANARY-openai-key",
    "ANTHROPIC_API_KEY": "CANARY-anthropic-key",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer CANARY-otel-key",
}
HEADERS = {"X-Team-Token": "CANARY-team-token", "Cookie": "session=CANARY-session; other=CANARY-other"}

SCENARIO = """
description = "the argument, the result and the prompt are canaries"
prompt = "CANARY-prompt {number}"

[model]
first_token = { kind = "constant", value = 0.02 }
tokens_per_second = { kind = "constant", value = 0 }
api_keys = ["sk-CANARY-openai-key", "CANARY-anthropic-key"]

[loop]
rounds = { kind = "constant", value = 1 }
fan_out = { kind = "constant", value = 2 }

[tools.look_up]
path = "/tools/look_up"
description = "Looks up."
duration = { kind = "constant", value = 0.01 }

[tools.look_up.parameters]
type = "object"
required = ["model"]
properties.model = { type = "string", enum = ["CANARY-argument"] }
"""

AGENT = """
import logging
from typing import Literal
import anthropic, openai
from profiler import ToolLoop, tool
from profiler.providers import AnthropicMessages, OpenAIChat, OpenAIResponses

HEADERS = {headers!r}
def make_agent(context):
    client = openai.AsyncOpenAI(base_url=context.openai_url, default_headers=HEADERS,
                                http_client=openai.DefaultAioHttpClient())
    claude = anthropic.AsyncAnthropic(base_url=context.base_url, default_headers=HEADERS,
                                      http_client=anthropic.DefaultAioHttpClient())
    watched = context.profiler.instrument(openai.AsyncOpenAI(
        base_url=context.openai_url, default_headers=HEADERS, http_client=openai.DefaultAioHttpClient()))

    for one in (client, claude, watched):
        context.on_close(one.close)

    @tool
    async def look_up(model: Literal["CANARY-argument"]) -> str:
        if context.number % 2:
            raise ValueError("CANARY-tool-error " + model)
        return "CANARY-result " + model

    models = [OpenAIChat(client), OpenAIResponses(client), AnthropicMessages(claude)]
    loops = [ToolLoop(m, [look_up], context.strategy, sinks=[context.sink]) for m in models]

    async def once():
        for loop in loops:
            await loop.run(context.prompt)
        await watched.chat.completions.create(model="gpt-4o", messages=[
            {{"role": "user", "content": context.prompt}}])
        if context.number % 3 == 2:
            logging.getLogger("mine").warning("calling with %s", client.api_key)
            raise RuntimeError("no luck with " + client.api_key)
    return once
"""


class Echo(BaseHTTPRequestHandler):
    """Refuses as the providers do, and repeats what it was given, as they do and worse."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        given = {name: value for name, value in self.headers.items() if CANARY in value}
        message = f"Incorrect API key provided: {given}."
        error = {
            "message": message,
            "type": "authentication_error",
            "code": "invalid_api_key",
            "given": given,
        }
        body = json.dumps({"type": "error", "error": error}).encode()
        self.send_response(401)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def look(*texts: str | bytes) -> list[str]:
    """Where a canary is, with some of what is around it."""
    whole = "\n".join(t if isinstance(t, str) else t.decode("utf-8", "replace") for t in texts)
    return [whole[max(0, m.start() - 60) : m.end() + 40] for m in re.finditer(CANARY, whole)]


def look_in(directory: Path) -> list[str]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert files
    return [f"{path.name}: {found}" for path in files for found in look(path.read_bytes())]


def models(url: str) -> list[Any]:
    """The three APIs, over clients with canaries in keys, headers and cookies."""
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", default_headers=HEADERS, max_retries=0)
    claude = anthropic.AsyncAnthropic(base_url=url, default_headers=HEADERS, max_retries=0)
    return [OpenAIChat(client), OpenAIResponses(client), AnthropicMessages(claude)]


def test_a_load_test_with_everything_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An agent of three APIs under Locust: its run directory, outputs, metrics, report and trace."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "scenario.toml").write_text(SCENARIO)
    (work / "agent.py").write_text(AGENT.format(headers=HEADERS))
    port, scraped, over = free_port(), [], threading.Event()

    def scrape() -> None:
        while not over.wait(0.2) and not any(b"look_up" in text for text in scraped):
            with (
                contextlib.suppress(OSError, http.client.HTTPException),  # not up yet, or gone
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response,
            ):
                scraped.append(response.read())

    scraper = threading.Thread(target=scrape)
    scraper.start()
    debug = {**ENVIRONMENT, "OPENAI_LOG": "debug", "ANTHROPIC_LOG": "debug"}
    try:
        with locust(work) as processes:
            code, output = processes.run(
                *("-L", "DEBUG", "-u", "3", "-r", "9", "--trial-seconds", "1", "--blocks", "1"),
                *("--strategy", "gathered"),
                *("--scenario", "scenario.toml", "--agent", "agent:make_agent", "--metrics-port", str(port)),
                *("--csv", str(work / "runs" / "stats"), "--html", str(work / "runs" / "locust.html")),
                **debug,
            )
    finally:
        over.set()
        scraper.join()
    (directory,) = [path for path in (work / "runs").iterdir() if path.is_dir()]
    assert code == 1, output  # some loops fail
    assert main(["report", str(directory)]) == 0
    assert main(["trace", str(directory), "-o", str(work / "runs" / "trace.json")]) == 0
    said = capfd.readouterr()
    lines = (directory / "records.jsonl").read_text().splitlines()
    assert {json.loads(line)["provider"] for line in lines} == {"openai", "openai-responses", "anthropic"}
    assert "the agent raised RuntimeError: no luck with [redacted]" in output
    assert "calling with [redacted]" in output
    assert look(output, said.out, said.err, *scraped) == []
    assert look_in(work / "runs") == []
    assert any(b"look_up" in text for text in scraped)


@pytest.mark.parametrize(
    ("command", "provider"), [("run", "openai"), ("run", "openai-responses"), ("compare", "anthropic")]
)
def test_a_refusal_that_repeats_the_key(tmp_path: Path, echo: str, command: str, provider: str) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "profiler", command, "--provider", provider, "--base-url", echo),
            *("--out", str(tmp_path / "runs"), "--scenario", "instant"),
            *(("--duration", "1s", "--calibrate", "0") if command == "compare" else ()),
        ],
        env={**os.environ, "OPENAI_LOG": "debug", "ANTHROPIC_LOG": "debug"},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 3
    assert b"http_401" in done.stderr
    assert b"[redacted]" in done.stderr
    assert look(done.stdout, done.stderr) == []
    if command == "run":
        assert look_in(tmp_path / "runs") == []
    else:  # refused before anything was recorded
        assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("index", range(3))
async def test_an_exception_and_all_it_was_raised_from(echo: str, index: int) -> None:
    model, prompt = models(echo)[index], "CANARY-prompt"
    with pytest.raises(ProviderError) as caught:
        await ToolLoop(model).run(prompt)
    await model.client.close()
    error = caught.value
    shown = "".join(traceback.format_exception(error))
    assert "Incorrect API key provided" in shown
    cause: Any = error.__cause__
    assert look(shown, repr(error), repr(cause), str(cause.body), str(cause.message)) == []
    assert error.record is not None
    assert look(encode(error.record)) == []


async def ask(index: int, model: Any, prompt: str, tools: Any) -> None:
    """One request of one of the three APIs, without anything of ours."""
    said = [{"role": "user", "content": prompt}]
    if index == 0:
        await model.client.chat.completions.create(model="gpt-4o", messages=said, tools=tools)
    elif index == 1:
        await model.client.responses.create(model="gpt-4o", input=said, tools=tools)
    else:
        create = model.client.messages.create
        await create(model="claude-sonnet-5-5", max_tokens=500, messages=said, tools=tools)


CONTENT = ("CANARY-prompt", "CANARY-argument", "CANARY-result")


@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("index", range(3))
async def test_records_metrics_and_spans_of_a_loop(
    tmp_path: Path, index: int, content: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Ours and one that is only watched. Where content is asked for, records have it, and keys still not."""

    @tool
    async def look_up(model: Literal["CANARY-argument"]) -> str:
        return f"CANARY-result {model} {ENVIRONMENT['OPENAI_API_KEY']}"

    scenario = tmp_path / "scenario.toml"
    scenario.write_text(SCENARIO)
    spans, metrics = InMemorySpanExporter(), PrometheusSink()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    lines: list[bytes] = []
    sinks = [lambda record: lines.append(encode(record)), metrics, OpenTelemetrySink(provider)]
    caplog.set_level(logging.INFO)
    with start_emulator(str(scenario)) as emulator:
        model = models(emulator.url)[index]
        await ToolLoop(model, [look_up], sinks=sinks, record_content=content).run("CANARY-prompt")
        profiler = Profiler(sinks, record_content=content)
        profiler.instrument(model.client)
        with profiler.loop("watched"):
            await ask(index, model, "CANARY-prompt", model.render_tools((look_up,)))
            await profiler.tool(look_up)(model="CANARY-argument")
        await model.client.close()
    assert len(lines) == 2
    assert all(b'"look_up"' in line for line in lines)
    shown = [span.to_json() for span in spans.get_finished_spans()]
    assert any("look_up" in text for text in shown)
    text = Exposition(metrics).render()
    assert b"look_up" in text
    assert look(text, caplog.text) == []
    if content:
        for line in lines:
            assert all(one in line.decode() for one in CONTENT)
        planted = re.compile("|".join(CONTENT))
        lines = [planted.sub("", line.decode()).encode() for line in lines]
        shown = [planted.sub("", span) for span in shown]
    assert look(*lines, *shown) == []


@pytest.mark.parametrize("command", ["run", "compare", "tune"])
@pytest.mark.parametrize(
    "option", ["--base-url", "--tools-url", "PROFILER_TOOLS_URL", "PROFILER_WEATHER_URL"]
)
def test_a_url_with_credentials_is_refused(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    option: str,
) -> None:
    url = "http://user:CANARY@127.0.0.1:9"
    arguments = [command, "--out", str(tmp_path / "runs")]
    if option.startswith("--"):
        arguments += [option, url]
    else:
        monkeypatch.setenv(option, url)
    assert main(arguments) == 2
    said = capfd.readouterr()
    assert "holds credentials: pass the key by environment" in said.err
    assert look(said.out, said.err) == []
    assert not (tmp_path / "runs").exists()


def test_content_on_the_command_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "privacy.py").write_text("def redact(text):\n    return text.replace('prompt', 'p*****')\n")
    (tmp_path / "scenario.toml").write_text(SCENARIO)
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "--scenario", "scenario.toml", "--out", "runs"]
    assert main([*arguments, "--redact", "privacy:redact"]) == 2
    assert "add --record-content" in capfd.readouterr().err
    assert main([*arguments, "--record-content", "--redact", "privacy:nothing"]) == 2
    assert "privacy has no function nothing" in capfd.readouterr().err
    assert main([*arguments, "--record-content", "--redact", "privacy:redact"]) == 0
    (records,) = (tmp_path / "runs").glob("*/records.jsonl")
    text = records.read_text()
    assert "CANARY-p***** 0" in text
    assert "CANARY-prompt" not in text
    assert text.count("CANARY-argument") >= 2
    assert "CANARY-openai-key" not in text


class HostileEcho(Echo):
    """Says what it was given wherever a server can say something, with the status that the path names."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        given = " ".join(value for value in self.headers.values() if CANARY in value)
        body = json.dumps(
            {"error": {"message": f"Incorrect key: {given}", "type": given, "code": given}}
        ).encode()
        self.send_response(int(self.path.split("/")[1]))
        for name in (
            "x-request-id",
            "request-id",
            "x-ratelimit-limit-requests",
            "x-ratelimit-reset-requests",
        ):
            self.send_header(name, given)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.mark.parametrize("status", [200, 401])
@pytest.mark.parametrize("index", range(3))
async def test_a_server_that_sends_the_key_back_in_ids_and_headers(index: int, status: int) -> None:
    """Keys of no known shape, which no environment holds: they are those that the request was sent with."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), HostileEcho)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, key = f"http://127.0.0.1:{server.server_port}/{status}", "CANARY given to the client alone"
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key.replace(" ", "-"), max_retries=0)
    claude = anthropic.AsyncAnthropic(base_url=url, api_key=key.replace(" ", "-"), max_retries=0)
    model = [OpenAIChat(client), OpenAIResponses(client), AnthropicMessages(claude)][index]
    records: list[Any] = []
    try:
        with pytest.raises(ProviderError) as caught:
            await ToolLoop(model, sinks=[records.append]).run("hello")
        watched = Profiler([records.append])
        watched.instrument(model.client)
        with watched.loop("watched"), contextlib.suppress(openai.APIError, anthropic.APIError):
            await ask(index, model, "hello", [])
    finally:
        await model.client.close()
        await client.close()
        await claude.close()
        server.shutdown()
        server.server_close()
    error = caught.value
    assert "Incorrect key: " in str(error)
    assert "[redacted]" in str(error.request_id)
    assert look("".join(traceback.format_exception(error)), str(error.request_id)) == []
    assert len(records) == 2
    assert b"[redacted]" in encode(records[0])
    assert look(*map(encode, records)) == []


def test_keys_on_the_command_line_are_in_no_other_process_and_in_no_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """They are handed to Locust's process by its environment, which is its owner's alone."""
    seen: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with start_emulator("instant") as emulator:
            code = main(
                [
                    *("compare", "--scenario", "instant", "--strategy", "gathered", "--users", "1"),
                    *("--duration", "1s", "--calibrate", "0", "--allow-saturated", "--out", str(tmp_path)),
                    *("--base-url", f"{emulator.url}/v1?api-key=CANARY-1", "--query", "code=CANARY-2"),
                    *("--header", "x-team=CANARY-3", "--tools-url", f"{emulator.url}?token=CANARY-4"),
                    *("--body", 'metadata={"api_key": "CANARY-5"}'),
                ]
            )
    finally:
        over.set()
        watcher.join()
    said = capfd.readouterr()
    assert code in (0, 1), said.err
    assert any("/locust/start.py" in one for one in seen)
    assert look(*(one for one in seen if "/locust/start.py" in one or "profiler.emulator" in one)) == []
    assert look(said.out, said.err) == []
    assert look_in(tmp_path) == []
    (run,) = tmp_path.glob("*/run.json")
    arguments = json.loads(run.read_text())["arguments"]
    assert arguments["body"] == ['metadata={"api_key": "[redacted]"}']


def test_a_traceback_of_debug_shows_no_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no luck with xai-CANARYabcdefghijklmnop and CANARY-anthropic-key")

    monkeypatch.setattr("profiler.scenarios.shipped_scenarios", fail)
    assert main(["scenarios", "--debug"]) == 70
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "RuntimeError: no luck with [redacted] and [redacted]" in said
    assert look(said) == []
