"""The independent server over a socket: a loop by hand; what it says when its quota or a tool is used up."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ("--tool", "search=0.001,rate=0.1/4", "--rounds", "1", "--fan-out", "4", "--first-token", "0.001")


@pytest.fixture
def url() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.capacity_server", *OPTIONS, "--quota", "6/2"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
    finally:
        server.kill()
        server.communicate()


def post(url: str, body: Any, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str], Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.headers, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.load(error)


def test_a_loop_and_what_is_refused(url: str) -> None:
    model, loop = f"{url}/v1/chat/completions", {"x-toolloop-loop": "7", "x-toolloop-trial": "2"}
    messages: list[Any] = [{"role": "user", "content": "Go."}]
    status, headers, answer = post(model, {"messages": messages}, loop)
    assert (status, headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == (
        200,
        "6",
        "1",
    )
    said = answer["choices"][0]["message"]
    assert [call["function"]["name"] for call in said["tool_calls"]] == ["search"] * 4
    assert answer["usage"]["completion_tokens"] >= 1
    for call in said["tool_calls"]:
        status, _, _ = post(f"{url}/tools/search", {}, loop | {"x-toolloop-call": call["id"]})
        assert status == 200
    again = loop | {"x-toolloop-call": said["tool_calls"][0]["id"]}
    status, headers, _ = post(f"{url}/tools/search", {}, again)
    assert status == 429
    assert 1 <= int(headers["retry-after"]) <= 10

    messages += [said, *({"role": "tool", "content": "it"} for _ in range(4))]
    status, _, answer = post(model, {"messages": messages}, loop)
    assert (status, answer["choices"][0]["finish_reason"]) == (200, "stop")
    status, headers, _ = post(model, {"messages": messages}, loop)
    assert (status, headers["x-ratelimit-remaining-requests"]) == (429, "0")
    assert 0 < int(headers["retry-after-ms"]) <= 10_000

    with urllib.request.urlopen(f"{url}/log", timeout=60) as response:
        entries = json.load(response)["entries"]
    assert [(one["kind"], one["name"], one["status"]) for one in entries] == [
        ("model", "", 200),
        *[("tool", "search", 200)] * 4,
        ("tool", "search", 429),
        ("model", "", 200),
        ("model", "", 429),
    ]
