"""Where the tools are: never at a model server, which has none."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson
import pytest

from profiler.cli import main
from profiler.emulator.process import is_emulator, start_emulator
from profiler.load.emulators import Emulators
from profiler.load.options import LoadOptions


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


def test_a_model_server_is_not_asked_for_tools(model_server, monkeypatch, capsys):
    monkeypatch.setenv("PROFILER_TOOLS_URL", "")
    assert main(["run", "--base-url", model_server, "--scenario", "instant"]) == 0
    said = capsys.readouterr().out
    assert "Sunny." in said
    assert "get_weather" in said
    assert "1 tool call" in said
    assert "failed" not in said
    assert ModelServer.other == ["/emulator/stats"]  # only whether it is an emulator
    assert os.environ["PROFILER_TOOLS_URL"] == ""


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


def test_the_environment_names_the_tools(monkeypatch):
    monkeypatch.setenv("PROFILER_TOOLS_URL", "http://127.0.0.1:7")
    emulators = Emulators()
    assert emulators.tools_root(LoadOptions()) == "http://127.0.0.1:7"
