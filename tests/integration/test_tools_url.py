"""Where the tools are: never at a model server, which has none."""

from __future__ import annotations

import asyncio
import os
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson
import pytest

from profiler.cli import main
from profiler.emulator.process import EmulatorProcess, is_emulator, start_emulator
from profiler.examples import get_weather
from profiler.limits.refusals import retry_after_ns, signal_of, status_of
from profiler.load.options import LoadOptions
from profiler.load.preparation import calibrate
from profiler.load.target import Emulators
from profiler.scenarios import load_scenario
from profiler.scenarios.tools import close_tool_clients, scenario_tools, use_tools_at
from profiler.tool_http import tools_url


class ModelServer(BaseHTTPRequestHandler):
    """One call of get_weather, then an answer; anything but model requests is noted and refused."""

    protocol_version = "HTTP/1.1"
    other: list[str] = []  # noqa: RUF012 (one server, one test)

    def do_POST(self) -> None:
        body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
        message: dict[str, object] = {"role": "assistant", "content": "Sunny."}
        if len(body["messages"]) == 1:
            function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
            message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._answer(
            200, {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        )

    def do_GET(self) -> None:
        self.other.append(self.path)
        self._answer(404, {})

    def _answer(self, status: int, data: object) -> None:
        body = orjson.dumps(data)
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def model_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("PROFILER_TOOLS_URL", raising=False)
    ModelServer.other.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), ModelServer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_model_server_is_not_asked_for_tools(model_server, capsys):
    assert main(["run", "--base-url", model_server, "--scenario", "instant"]) == 0
    said = capsys.readouterr().out
    assert "Sunny." in said
    assert "get_weather" in said
    assert "1 tool call" in said
    assert "failed" not in said
    assert ModelServer.other == ["/emulator/stats"]  # only whether it is an emulator
    assert "PROFILER_TOOLS_URL" not in os.environ


def test_where_the_tools_of_a_load_test_are(model_server):
    emulators = Emulators()
    try:
        named = LoadOptions(base_url=model_server, tools_url="http://127.0.0.1:9")
        assert emulators.tools_root(named) == "http://127.0.0.1:9"
        beside = emulators.tools_root(LoadOptions(base_url=f"{model_server}/v1", scenario="instant"))
        assert beside != model_server
        assert is_emulator(beside)
        with start_emulator("instant") as other:
            assert emulators.tools_root(LoadOptions(base_url=f"{other.url}/v1")) == other.url
        ours = LoadOptions(scenario="instant")
        assert emulators.tools_root(ours) == emulators.root(ours)
    finally:
        emulators.stop()
    assert not is_emulator(beside)


def ended(process: EmulatorProcess) -> bool:
    return process.poll() is not None


def test_emulators_of_a_test_start_together_and_are_waited_for_where_they_are_asked(model_server):
    emulators = Emulators()
    try:
        emulators.begin(LoadOptions(scenario="cities"))
        target, calibrating = emulators._target, emulators._calibrating
        assert {"url"}.isdisjoint((*vars(target), *vars(calibrating)))  # nobody has waited yet
        assert emulators.root(LoadOptions(scenario="cities")) == target.url
        assert emulators.pid == target.pid != calibrating.pid
        with emulators.for_calibration() as url:
            assert url == calibrating.url != target.url
            assert is_emulator(url)
        with emulators.for_calibration() as again:  # after the last trial: it has waited for that
            assert again == url
        calibrating.stop()
        with emulators.for_calibration() as again:  # one that was killed meanwhile is replaced
            assert is_emulator(again)
            assert emulators._calibrating is not calibrating
        assert not ended(target)
        emulators.begin(LoadOptions(scenario="instant"))
        assert ended(target)
        assert emulators._calibrating is None  # its own target will do
        emulators.begin(LoadOptions(base_url=model_server, scenario="cities", calibration_seconds=0.0))
        assert emulators._calibrating is None
    finally:
        emulators.stop()


def test_emulators_that_nobody_waited_for_end_with_the_rest():
    emulators = Emulators()
    emulators.begin(LoadOptions(scenario="cities"))
    started = emulators._target, emulators._calibrating
    emulators.stop()
    assert all(map(ended, started))


def test_the_environment_names_the_tools(monkeypatch):
    monkeypatch.setenv("PROFILER_TOOLS_URL", "http://127.0.0.1:7")
    emulators = Emulators()
    assert emulators.tools_root(LoadOptions()) == "http://127.0.0.1:7"


@pytest.fixture
def load_test() -> Iterator[str]:
    """This process runs a load test whose tools are elsewhere."""
    use_tools_at("http://127.0.0.1:9/")
    yield "http://127.0.0.1:9"
    use_tools_at(None)


def test_the_tools_of_a_load_test_come_before_the_environments(load_test, monkeypatch):
    monkeypatch.setenv("PROFILER_TOOLS_URL", "http://127.0.0.1:7/")
    assert tools_url() == load_test
    use_tools_at(None)
    assert tools_url() == "http://127.0.0.1:7"
    monkeypatch.setenv("PROFILER_TOOLS_URL", "")
    assert tools_url() == "http://127.0.0.1:8100"


def test_calibration_asks_its_own_server_and_no_weather_service(load_test, monkeypatch):
    monkeypatch.setenv("PROFILER_WEATHER_URL", "http://127.0.0.1:9")
    with start_emulator("instant") as emulator:

        async def calibrated():
            try:
                return await calibrate(LoadOptions(calibration_seconds=0.05), emulator.url)
            finally:
                await close_tool_clients()

        share = asyncio.run(calibrated())
        with urllib.request.urlopen(f"{emulator.url}/emulator/journal", timeout=60) as response:
            asked = Counter(entry["kind"] for entry in orjson.loads(response.read())["entries"])
    assert share.loops > 0
    assert asked["tool"] >= 3 * share.loops
    assert tools_url() == load_test


def test_the_tools_of_a_scenario_stay_with_the_server_they_were_made_for(load_test, monkeypatch):
    monkeypatch.setenv("PROFILER_WEATHER_URL", "http://127.0.0.1:9")
    with start_emulator("instant") as emulator:
        weather, population = scenario_tools(load_scenario("instant"), emulator.url, environment={})

        async def ask():
            found = await weather.function(city="Paris"), await population.function(city="Paris")
            await close_tool_clients()
            return found

        found = asyncio.run(ask())
    assert [answer["city"] for answer in found] == ["Paris", "Paris"]
    assert weather.parameters == get_weather.parameters


def test_tool_that_is_refused_keeps_its_connection_and_one_that_is_hung_up_on_is_asked_once():
    """A server of this test's own, whose refusals have a body that comes after their head."""
    connections, requests = 0, 0

    async def serve(reader, writer):
        nonlocal connections, requests
        connections += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                requests += 1
                if requests == 3:
                    break
                writer.write(b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 2\r\ncontent-length: 4\r\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.05)
                writer.write(b"busy")
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    async def ask():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        _, population = scenario_tools(load_scenario("instant"), f"http://127.0.0.1:{port}", environment={})
        failures = []
        for _ in range(3):
            try:
                await population.function(city="Paris")
            except Exception as error:
                failures.append(error)
        await close_tool_clients()
        server.close()
        return failures

    *refused, hung_up = asyncio.run(ask())
    assert [(status_of(one), signal_of(one), retry_after_ns(one)) for one in refused] == [
        (429, "rejected", 2_000_000_000)
    ] * 2
    assert (type(hung_up).__name__, signal_of(hung_up)) == ("ServerDisconnectedError", "unknown")
    assert (connections, requests) == (1, 3)
