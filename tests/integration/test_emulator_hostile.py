"""Hostile requests over real sockets: the emulator answers others meanwhile, and lets go of who went away."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from profiler.emulator.process import EmulatorProcess, start_emulator

USER = {"role": "user", "content": "x"}


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatorProcess]:
    """One whose tool takes a minute, so that replies can be waited for."""
    path: Path = tmp_path_factory.mktemp("scenario") / "slow.toml"
    path.write_text(
        'description = "x"\nprompt = "x"\n'
        "[model]\nfirst_token = 0.001\ntokens_per_second = 1000\n[loop]\nrounds = 1\nfan_out = 3\n"
        '[tools.slow]\ndescription = "x"\nduration = 60\n'
        '[tools.slow.parameters]\ntype = "object"\nproperties = {}\n'
    )
    with start_emulator(str(path), timeout=60) as running:
        yield running


def address(emulator: EmulatorProcess) -> tuple[str, int]:
    host, port = emulator.url.removeprefix("http://").split(":")
    return host, int(port)


def wide() -> dict[str, Any]:
    levels: dict[str, Any] = {"l8": {"type": "string"}}
    for n in range(8):
        properties = {name: {"$ref": f"#/$defs/l{n + 1}"} for name in "abcdefgh"}
        levels[f"l{n}"] = {"type": "object", "properties": properties, "required": list(properties)}
    return {"$ref": "#/$defs/l0", "$defs": levels}


def text(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


MANY = {"type": "array", "minItems": 10_000, "items": {"type": "array", "minItems": 10_000, "items": {}}}
HOSTILE = {
    "backtracking": (text(r"^(\w*\w*\w*\w*\w*\w*)+(?=!)$"), 200),
    "repeats": (text("^((a{1000}){1000}){100}$"), 400),
    "items": (MANY, 400),
    "references": (wide(), 400),
}


@pytest.mark.parametrize("api", ["chat/completions", "responses", "messages"])
def test_others_are_answered_while_a_schema_is_looked_at(emulator: EmulatorProcess, api: str) -> None:
    """Hostile requests and a plain one are sent together; had one of them no bound, none would end."""
    statuses: dict[str, int] = {}

    def ask(name: str, part: dict[str, Any]) -> None:
        definitions = part.pop("$defs", {})
        schema = {"type": "object", "properties": {"a": part}, "required": ["a"], "$defs": definitions}
        body: dict[str, Any] = {"model": "m"}
        if api == "messages":
            body |= {"messages": [USER], "max_tokens": 9, "tools": [{"name": "f", "input_schema": schema}]}
        elif api == "responses":
            body |= {"input": "x", "tools": [{"type": "function", "name": "f", "parameters": schema}]}
        else:
            function = {"name": "f", "parameters": schema}
            body |= {"messages": [USER], "tools": [{"type": "function", "function": function}]}
        statuses[name] = httpx.post(f"{emulator.url}/v1/{api}", json=body, timeout=60).status_code

    hostile = json.loads(json.dumps(HOSTILE))
    threads = [threading.Thread(target=ask, args=(name, part)) for name, (part, _) in hostile.items()]
    for thread in threads:
        thread.start()
    assert httpx.get(f"{emulator.url}/healthz", timeout=60).text == "ok\n"
    for thread in threads:
        thread.join(60)
    assert statuses == {name: status for name, (_, status) in HOSTILE.items()}


def test_clients_that_go_away_are_let_go(emulator: EmulatorProcess) -> None:
    """In the middle of a body, and while a reply that takes a minute is waited for."""
    large = b"x" * 4_000_000
    for sent in (large[: len(large) // 2], b'{"a":"' + large[8:] + b'"}'):
        with socket.create_connection(address(emulator), timeout=60) as client:
            head = b"POST /tools/slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(large)
            client.sendall(head + sent)
            if len(sent) == len(large):
                wait_until(lambda: in_flight(emulator) == {"tools": 1})
    wait_until(lambda: in_flight(emulator) == {})
    (entry,) = httpx.get(f"{emulator.url}/emulator/journal?kind=tool", timeout=60).json()["entries"]
    assert (entry["outcome"], entry["sent_ns"]) == ("disconnected", 0)


def in_flight(emulator: EmulatorProcess) -> dict[str, int]:
    stats: dict[str, Any] = httpx.get(f"{emulator.url}/emulator/stats", timeout=60).json()
    found: dict[str, int] = stats["in_flight"]
    return found


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_raw_requests_of_strangers_are_refused(emulator: EmulatorProcess) -> None:
    requests = {
        b"GET /emulator/stats HTTP/1.1\r\nHost: localhost": 200,
        b"GET /emulator/stats HTTP/1.0": 200,
        b"GET /emulator/stats HTTP/1.1": 400,
        b"GET /emulator/stats HTTP/1.1\r\nHost: evil.example\r\nHost: localhost": 400,
        b"GET /emulator/stats HTTP/1.1\r\nHost: localhost@evil.example": 400,
        b"GET /emulator/stats HTTP/1.1\r\nHost: EVIL.example.": 403,
        b"GET http://evil.example/emulator/stats HTTP/1.1\r\nHost: localhost": 403,
        b"GET http://localhost/emulator/stats HTTP/1.1\r\nHost: localhost": 200,
        b"GET /emulator/stats HTTP/1.1\r\nHost: localhost\r\nOrigin: null": 403,
        b"GET /emulator/stats HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost:3000": 200,
        b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nOrigin: null": 200,
    }
    statuses = {}
    for request in requests:
        with socket.create_connection(address(emulator), timeout=60) as client:
            client.sendall(request + b"\r\nConnection: close\r\n\r\n")
            answer = b""
            with contextlib.suppress(ConnectionError):
                while more := client.recv(65_536):
                    answer += more
        statuses[request] = int(answer.split()[1])
    assert statuses == requests
