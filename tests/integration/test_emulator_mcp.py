"""The emulator's MCP server on the wire: both eras, wrong requests, faults, capacity, streams.

Asked by a plain HTTP client and by the official SDK's `ClientSession`, which both majors of it have;
`test_emulator_mcp_client.py` asks through the `Client` of the later one.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from mcp import ClientSession
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from profiler.emulator.process import EmulatorProcess, start_emulator
from profiler.mcp.session import META
from tests.integration.mcp_scenarios import entry_of, identified, in_loop, limited, with_faults

LATEST = "2026-07-28"
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": LATEST,
    "io.modelcontextprotocol/clientCapabilities": {},
}
BOTH = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
WITHIN = 60
"""Seconds that anything may take on a busy machine."""


def journal(emulator: EmulatorProcess) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{emulator.url}/emulator/journal", timeout=60).json()["entries"]
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds."""
    for _ in range(WITHIN * 100):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited in vain")


def known(emulator: EmulatorProcess, meta: dict[str, Any]) -> bool:
    """Whether the call has arrived."""
    return any(one["call_id"] == meta[META + "call"] for one in journal(emulator))


async def ended(emulator: EmulatorProcess, meta: dict[str, Any]) -> dict[str, Any]:
    """The entry of a call, once it has ended."""
    await until(lambda: bool(entry_of(journal(emulator), meta)["outcome"]))
    return entry_of(journal(emulator), meta)


async def last_ended(emulator: EmulatorProcess, before: int) -> dict[str, Any]:
    """The one entry after so many others, once it has ended."""
    await until(lambda: [bool(entry["outcome"]) for entry in journal(emulator)[before:]] == [True])
    return journal(emulator)[before]


def started(tmp_path_factory: pytest.TempPathFactory, text: str, **options: Any) -> EmulatorProcess:
    path: Path = tmp_path_factory.mktemp("scenario") / "mcp.toml"
    path.write_text(text)
    return start_emulator(str(path), **options)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatorProcess]:
    with started(tmp_path_factory, with_faults()) as running:
        yield running


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatorProcess]:
    with started(tmp_path_factory, limited(), mcp_page=3) as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=WITHIN)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        session._retry_connection = False  # every request once
        yield session


def modern(method: str, params: dict[str, Any] | None = None, meta: dict[str, Any] | None = None) -> Any:
    """Headers and body of a request of the stateless protocol."""
    params = {**(params or {}), "_meta": {**ENVELOPE, **(meta or {})}}
    headers = {**BOTH, "mcp-protocol-version": LATEST, "mcp-method": method}
    if "name" in params:
        headers["mcp-name"] = params["name"]
    return headers, {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


def legacy(method: str, params: dict[str, Any] | None = None, meta: dict[str, Any] | None = None) -> Any:
    """The same of the protocol before it."""
    params = {**(params or {}), **({"_meta": meta} if meta else {})}
    return dict(BOTH), {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


ERAS = {"2026": modern, "2025": legacy}


def a_call(name: str = "look") -> dict[str, Any]:
    return {"name": name, "arguments": {"subject": "cats"}}


class Answer:
    """What came back."""

    def __init__(self, response: aiohttp.ClientResponse, body: bytes) -> None:
        self.status = response.status
        self.headers = response.headers
        self.kind = response.content_type
        self.body = body

    def messages(self) -> list[dict[str, Any]]:
        """All messages of the reply, a stream's too."""
        if self.kind != "text/event-stream":
            return [json.loads(self.body)] if self.body else []
        lines = self.body.decode().splitlines()
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]

    def error(self) -> tuple[int, int]:
        return self.status, self.messages()[-1]["error"]["code"]


async def ask(http: aiohttp.ClientSession, url: str, request: Any, **headers: str) -> Answer:
    given, body = request
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with http.post(url, headers={**given, **headers}, data=data) as response:
        return Answer(response, await response.read())


# Wrong requests


def without(request: Any, header: str) -> Any:
    headers, body = request
    return {name: value for name, value in headers.items() if name != header}, body


def with_header(request: Any, header: str, value: str) -> Any:
    return {**request[0], header: value}, request[1]


def unknown_version() -> Any:
    headers, body = modern("tools/list")
    body["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] = "2031-01-01"
    return {**headers, "mcp-protocol-version": "2031-01-01"}, body


def without_meta() -> Any:
    headers, body = modern("tools/list")
    del body["params"]["_meta"]
    return headers, body


WRONG: dict[str, tuple[Any, int, int]] = {
    "the version disagrees": (
        with_header(modern("tools/list"), "mcp-protocol-version", "2025-11-25"), 400, -32020
    ),
    "no header of the method": (without(modern("tools/list"), "mcp-method"), 400, -32020),
    "no header of the name": (without(modern("tools/call", a_call()), "mcp-name"), 400, -32020),
    "another name": (with_header(modern("tools/call", a_call()), "mcp-name", "other"), 400, -32020),
    "no _meta": (without_meta(), 400, -32602),
    "a version of the future": (unknown_version(), 400, -32022),
    "a version of the future, old form": (
        with_header(legacy("tools/list"), "mcp-protocol-version", "2031-01-01"), 400, -32022
    ),
    "an unknown method": (modern("prompts/list"), 404, -32601),
    "an unknown method, before": (legacy("prompts/list"), 200, -32601),
    "initialize in the stateless protocol": (modern("initialize"), 404, -32601),
    "no JSON": ((BOTH, b"{"), 400, -32700),
    "a batch": ((BOTH, b"[]"), 400, -32600),
    "no JSON-RPC": ((BOTH, b'{"id": 1, "method": "ping"}'), 400, -32600),
    "an id that is none": ((BOTH, b'{"jsonrpc": "2.0", "id": null, "method": "ping"}'), 400, -32600),
    "params that are a list": (
        (BOTH, b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": []}'), 400, -32602
    ),
    "too deep": (
        (BOTH, b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":' + b"[" * 300 + b"]" * 300 + b"}}"),
        400, -32600,
    ),
    "deeper": ((BOTH, b"[" * 100_000), 400, -32700),
    "too many values": ((BOTH, b"[" + b"1," * 300_000 + b"1]"), 400, -32600),
    "a call without a name": (modern("tools/call", {"arguments": {}}), 400, -32602),
    "a foreign cursor": (modern("tools/list", {"cursor": "mine"}), 400, -32602),
    "an unknown session": (with_header(legacy("tools/list"), "mcp-session-id", "mine"), 404, -32600),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
async def test_wrong_request_is_refused_with_status_and_code(
    emulator: EmulatorProcess, http: aiohttp.ClientSession, what: str
) -> None:
    request, status, code = WRONG[what]
    answer = await ask(http, emulator.mcp_url, request)
    assert answer.error() == (status, code), answer.body
    if code == -32022:
        assert answer.messages()[0]["error"]["data"] == {"supported": [LATEST], "requested": "2031-01-01"}
    assert (await ask(http, emulator.mcp_url, modern("tools/list"))).status == 200


async def test_client_that_takes_no_streams_is_refused_without_words(
    emulator: EmulatorProcess, http: aiohttp.ClientSession
) -> None:
    answer = await ask(http, emulator.mcp_url, modern("tools/list"), accept="application/json")
    assert (answer.status, answer.body) == (406, b"")


async def test_session_is_opened_used_and_ended(
    emulator: EmulatorProcess, http: aiohttp.ClientSession
) -> None:
    url = emulator.mcp_url
    opened = await ask(http, url, legacy("initialize", {"protocolVersion": "2025-06-18"}))
    assert opened.messages()[0]["result"]["protocolVersion"] == "2025-06-18"
    session = {"mcp-session-id": opened.headers["mcp-session-id"]}
    told = await ask(http, url, (BOTH, {"jsonrpc": "2.0", "method": "notifications/initialized"}), **session)
    assert (told.status, told.body) == (202, b"")
    pinged = await ask(http, url, legacy("ping"), **session)
    assert pinged.messages() == [{"jsonrpc": "2.0", "id": 1, "result": {}}]
    async with http.get(url, headers={**BOTH, **session}) as response:
        assert response.status == 405
    for expected in (200, 404):
        async with http.delete(url, headers=session) as response:
            assert response.status == expected
    assert (await ask(http, url, legacy("ping"), **session)).error() == (404, -32600)


async def test_client_of_another_version_is_offered_ours(
    emulator: EmulatorProcess, http: aiohttp.ClientSession
) -> None:
    answer = await ask(http, emulator.mcp_url, legacy("initialize", {"protocolVersion": "1999-01-01"}))
    assert answer.messages()[0]["result"]["protocolVersion"] == "2025-11-25"


async def test_tools_are_listed_by_pages_and_as_read_only(
    crowded: EmulatorProcess, http: aiohttp.ClientSession
) -> None:
    found, sizes, cursor = [], [], None
    while True:
        params = {} if cursor is None else {"cursor": cursor}
        answer = await ask(http, crowded.mcp_url, modern("tools/list", params))
        page = answer.messages()[0]["result"]
        found += page["tools"]
        sizes.append(len(page["tools"]))
        cursor = page.get("nextCursor")
        if cursor is None:
            break
    assert sizes == [3, 2]
    assert [one["name"] for one in found] == ["full", "queued", "held", "rated", "quick"]
    assert {one["annotations"]["readOnlyHint"] for one in found} == {True}
    assert found[0]["inputSchema"]["required"] == ["subject"]


# What a call says of itself


@pytest.mark.parametrize("era", ERAS)
async def test_calls_tell_the_time_that_the_journal_has(
    emulator: EmulatorProcess, http: aiohttp.ClientSession, era: str
) -> None:
    metas = [identified(**{META + "trial": n}) for n in range(32)]
    answers = await asyncio.gather(
        *(ask(http, emulator.mcp_url, ERAS[era]("tools/call", a_call(), meta)) for meta in metas)
    )
    entries = journal(emulator)
    for n, (answer, meta) in enumerate(zip(answers, metas, strict=True)):
        (message,), entry = answer.messages(), entry_of(entries, meta)
        server_ns = message["result"]["_meta"][META + "serverNs"]
        assert server_ns == entry["actual_ns"] >= entry["duration_ns"] == 50_000_000
        assert answer.headers["server-timing"] == f"tool;dur={server_ns / 1e6:.6f}"
        assert (entry["api"], entry["kind"], entry["tool"], entry["trial"]) == ("mcp", "tool", "look", str(n))
        assert (message["id"], message["result"]["isError"]) == (1, False)
        assert json.loads(message["result"]["content"][0]["text"])["arguments"] == {"subject": "cats"}
    assert {entry["loop"] for entry in entries if entry["call_id"]}.isdisjoint(range(100))


async def test_calls_of_a_loop_have_their_place_on_the_tape_whatever_their_order(
    crowded: EmulatorProcess, http: aiohttp.ClientSession
) -> None:
    seen = []
    for order in ((1, 2, 3), (3, 1, 2)):
        places = {}
        for n in order:
            meta = {META + "call": f"direct_{n}", META + "loop": 40 + n}
            await ask(http, crowded.mcp_url, modern("tools/call", a_call("quick"), meta))
            entry = journal(crowded)[-1]
            places[n] = (entry["loop"], entry["round"], entry["call"])
        seen.append(places)
    assert seen[0] == seen[1]
    assert [seen[0][n][0] for n in (1, 2, 3)] == [41, 42, 43]


async def test_stream_has_the_head_first_then_progress_then_an_answer_with_the_time_of_the_journal(
    emulator: EmulatorProcess, http: aiohttp.ClientSession
) -> None:
    meta = identified(progressToken="p")
    answer = await ask(http, emulator.mcp_url, modern("tools/call", a_call(), meta))
    *progress, last = answer.messages()
    assert answer.kind == "text/event-stream"
    assert [one["params"] for one in progress] == [
        {"progressToken": "p", "progress": step, "total": 4} for step in (1, 2, 3)
    ]
    entry = entry_of(journal(emulator), meta)
    assert last["result"]["_meta"][META + "serverNs"] == entry["actual_ns"] >= 50_000_000
    assert entry["outcome"] == "complete"


async def test_server_that_streams_by_default_sends_the_head_before_the_work(
    tmp_path_factory: pytest.TempPathFactory, http: aiohttp.ClientSession
) -> None:
    with started(tmp_path_factory, limited(), mcp_reply="sse") as emulator:
        for request in ERAS.values():
            held = identified()
            headers, body = request("tools/call", a_call("held"), held)
            async with http.post(emulator.mcp_url, headers=headers, json=body) as response:
                assert response.content_type == "text/event-stream"
                entry = entry_of(journal(emulator), held)
                assert (entry["sent_ns"], entry["outcome"]) == (0, "")  # the work takes a minute
                response.close()
            assert (await ended(emulator, held))["outcome"] == "disconnected"
            meta = identified()
            answer = await ask(http, emulator.mcp_url, request("tools/call", a_call("queued"), meta))
            (message,) = answer.messages()
            entry = entry_of(journal(emulator), meta)
            assert message["result"]["_meta"][META + "serverNs"] == entry["actual_ns"] >= 100_000_000
        listed = await ask(http, emulator.mcp_url, legacy("tools/list"))
        assert listed.kind == "text/event-stream"
        assert len(listed.messages()[0]["result"]["tools"]) == 5


# Faults: (status, code of the error or what else is seen; status and outcome in the journal)

FAULTS: dict[str, tuple[int, object, int, str]] = {
    "mcp_error_result": (200, "is_error", 200, "complete"),
    "mcp_rpc_error": (200, -32603, 200, "complete"),
    "mcp_http_429": (429, "7", 429, "complete"),
    "mcp_reset": (0, "broken", 0, "reset"),
    "mcp_reset_in_reply": (0, "broken", 200, "reset"),
    "mcp_no_answer": (200, "no answer", 200, "complete"),
    "mcp_accepted": (202, "no answer", 202, "complete"),
    "mcp_slow_progress": (200, "slow", 200, "complete"),
    "mcp_wrong_id": (200, "1-of-another", 200, "complete"),
}


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("kind", FAULTS)
async def test_fault_is_met_once_and_is_in_the_journal(
    emulator: EmulatorProcess, http: aiohttp.ClientSession, kind: str, era: str
) -> None:
    status, expected, journal_status, outcome = FAULTS[kind]
    before = len(journal(emulator))
    request = ERAS[era]("tools/call", a_call(), in_loop(kind))
    if expected == "broken":
        with pytest.raises((aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)):
            await ask(http, emulator.mcp_url, request)
    else:
        answer = await ask(http, emulator.mcp_url, request)
        messages = answer.messages() if answer.status == 200 else []
        assert answer.status == status
        if isinstance(expected, int):
            assert messages[0]["error"]["code"] == expected
        elif expected == "is_error":
            assert messages[0]["result"]["isError"] is True
        elif expected == "no answer":
            assert messages == []
        elif status == 429:
            assert answer.headers["retry-after"] == expected
        elif expected != "slow":
            assert messages[0]["id"] == expected
    entry = await last_ended(emulator, before)
    assert (entry["fault"], entry["status"], entry["outcome"]) == (kind, journal_status, outcome)
    if kind == "mcp_slow_progress":
        assert entry["actual_ns"] >= 350_000_000  # 50 ms of the tool, and 300 of the fault


async def test_silence_lasts_until_the_client_goes(
    emulator: EmulatorProcess, http: aiohttp.ClientSession
) -> None:
    before = len(journal(emulator))
    request = modern("tools/call", a_call(), in_loop("mcp_silence"))
    asked = asyncio.create_task(ask(http, emulator.mcp_url, request))
    await until(lambda: len(journal(emulator)) > before)
    asked.cancel()
    entry = await last_ended(emulator, before)
    assert (entry["fault"], entry["outcome"], entry["sent_ns"]) == ("mcp_silence", "disconnected", 0)


async def test_lost_session_is_lost_for_all_that_comes_after(
    emulator: EmulatorProcess, http: aiohttp.ClientSession
) -> None:
    url = emulator.mcp_url
    opened = await ask(http, url, legacy("initialize"))
    session = {"mcp-session-id": opened.headers["mcp-session-id"]}
    lost = await ask(http, url, legacy("tools/call", a_call(), in_loop("mcp_session_lost")), **session)
    assert lost.error() == (404, -32600)
    assert (await ask(http, url, legacy("tools/list"), **session)).error() == (404, -32600)
    # Where there is no session none is lost.
    kept = await ask(http, url, modern("tools/call", a_call(), in_loop("mcp_session_lost")))
    assert kept.messages()[0]["result"]["isError"] is False


async def test_listing_goes_on_for_ever_by_a_fault(
    tmp_path_factory: pytest.TempPathFactory, http: aiohttp.ClientSession
) -> None:
    text = with_faults() + '[[faults]]\nkind = "mcp_endless_listing"\nprobability = 1\n'
    with started(tmp_path_factory, text) as emulator:
        cursors: list[str] = []
        for _ in range(5):
            params = {"cursor": cursors[-1]} if cursors else {}
            answer = await ask(http, emulator.mcp_url, modern("tools/list", params))
            cursors.append(answer.messages()[0]["result"]["nextCursor"])
        assert len(set(cursors)) == 5


async def test_structured_results_are_as_their_schema_says_except_by_a_fault(
    tmp_path_factory: pytest.TempPathFactory, http: aiohttp.ClientSession
) -> None:
    with started(tmp_path_factory, with_faults(structured=True)) as emulator:
        listed = await ask(http, emulator.mcp_url, modern("tools/list"))
        assert listed.messages()[0]["result"]["tools"][0]["outputSchema"]["required"] == ["answer"]
        right = await ask(http, emulator.mcp_url, modern("tools/call", a_call()))
        wrong = await ask(
            http, emulator.mcp_url, modern("tools/call", a_call(), in_loop("mcp_bad_structure"))
        )
        result = right.messages()[0]["result"]
        assert result["structuredContent"]["answer"] == json.loads(result["content"][0]["text"])
        assert wrong.messages()[0]["result"]["structuredContent"] == {"answer": "no object"}


# Capacity


async def test_tool_that_is_full_refuses_as_a_gateway_does(
    crowded: EmulatorProcess, http: aiohttp.ClientSession
) -> None:
    meta = identified()
    served = asyncio.create_task(ask(http, crowded.mcp_url, modern("tools/call", a_call("full"), meta)))
    await until(partial(known, crowded, meta))
    for request in ERAS.values():
        for more in ({}, {"progressToken": 1}):
            refused = await ask(http, crowded.mcp_url, request("tools/call", a_call("full"), more))
            assert refused.status == 429
            assert refused.messages()[0]["error"]["type"] == "rate_limited"
            assert journal(crowded)[-1]["status"] == 429
    served.cancel()
    await ended(crowded, meta)
    assert (await ask(http, crowded.mcp_url, modern("tools/list"))).status == 200


async def test_tool_with_a_rate_says_when_to_come_again(
    crowded: EmulatorProcess, http: aiohttp.ClientSession
) -> None:
    answers = [await ask(http, crowded.mcp_url, legacy("tools/call", a_call("rated"))) for _ in range(2)]
    assert answers[-1].status == 429
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 10


@pytest.mark.parametrize("kind", ["mcp_refused_result", "mcp_refused_error"])
async def test_refusal_is_told_as_an_answer_by_a_fault(
    crowded: EmulatorProcess, http: aiohttp.ClientSession, kind: str
) -> None:
    await ask(http, crowded.mcp_url, modern("tools/call", a_call("rated")))
    meta = {**in_loop(kind)}
    answer = await ask(http, crowded.mcp_url, modern("tools/call", a_call("rated"), meta))
    (message,) = answer.messages()
    if kind == "mcp_refused_result":
        assert message["result"]["isError"] is True
        assert message["result"]["content"][0]["text"].startswith("429 rate limited")
    else:
        assert message["error"]["code"] == -32000
    assert journal(crowded)[-1]["fault"] == kind


@pytest.mark.parametrize("wants_progress", [False, True])
async def test_place_in_the_queue_is_free_when_its_client_has_gone(
    crowded: EmulatorProcess, http: aiohttp.ClientSession, wants_progress: bool
) -> None:
    more = {"progressToken": 7} if wants_progress else {}
    metas = [identified(**more) for _ in range(3)]

    def begun(meta: dict[str, Any]) -> asyncio.Task[Answer]:
        return asyncio.create_task(ask(http, crowded.mcp_url, modern("tools/call", a_call("held"), meta)))

    tasks = []
    for meta in metas[:2]:  # one is served for a minute, one waits for it
        tasks.append(begun(meta))
        await until(partial(known, crowded, meta))
    assert (await begun(identified(**more))).status == 503
    tasks[1].cancel()
    assert (await ended(crowded, metas[1]))["outcome"] == "disconnected"
    tasks.append(begun(metas[2]))
    await until(partial(known, crowded, metas[2]))
    assert entry_of(journal(crowded), metas[2])["status"] == 200  # it waits in the place of the one that left
    for task, meta in zip(tasks[::2], metas[::2], strict=True):
        task.cancel()
        assert (await ended(crowded, meta))["outcome"] == "disconnected"
    async with http.get(f"{crowded.url}/emulator/stats") as response:
        assert (await response.json())["in_flight"] == {}


async def test_stream_of_a_call_that_waited_ends_with_the_time_of_the_journal(
    crowded: EmulatorProcess, http: aiohttp.ClientSession
) -> None:
    metas = [identified(progressToken=n) for n in range(4)]
    answers = await asyncio.gather(
        *(ask(http, crowded.mcp_url, modern("tools/call", a_call("queued"), meta)) for meta in metas)
    )
    entries = [entry_of(journal(crowded), meta) for meta in metas]
    for answer, entry, number in zip(answers, entries, range(4), strict=True):
        first, last = answer.messages()
        assert first["params"] == {"progressToken": number, "progress": 0, "total": 4}
        assert last["result"]["_meta"][META + "serverNs"] == entry["actual_ns"] >= 100_000_000
    assert max(one["sent_ns"] for one in entries) - min(one["received_ns"] for one in entries) >= 200_000_000


async def test_cancelled_call_of_a_session_is_told_so_and_is_in_the_journal(
    crowded: EmulatorProcess, http: aiohttp.ClientSession
) -> None:
    opened = await ask(http, crowded.mcp_url, legacy("initialize"))
    session = {"mcp-session-id": opened.headers["mcp-session-id"]}
    for more in ({}, {"progressToken": 1}):
        meta = identified(**more)
        task = asyncio.create_task(
            ask(http, crowded.mcp_url, legacy("tools/call", a_call("held"), meta), **session)
        )
        await until(partial(known, crowded, meta))
        cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
        assert (await ask(http, crowded.mcp_url, (BOTH, cancel), **session)).status == 202
        answer = await task
        assert answer.messages()[-1]["error"]["code"] == -32800
        assert entry_of(journal(crowded), meta)["outcome"] == "cancelled"


# The official SDK's session: both majors have it.


@asynccontextmanager
async def over_http(url: str) -> AsyncIterator[ClientSession]:
    async with streamable_http_client(url) as streams, ClientSession(streams[0], streams[1]) as session:
        await session.initialize()
        yield session


def stdio_command(scenario: Path, *more: str) -> list[str]:
    return ["-m", "profiler", "emulate", "--mcp-stdio", "--scenario", str(scenario), *more]


@asynccontextmanager
async def over_stdio(scenario: Path, *more: str) -> AsyncIterator[ClientSession]:
    server = StdioServerParameters(command=sys.executable, args=stdio_command(scenario, *more))
    async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        yield session


def plain(result: Any) -> dict[str, Any]:
    """A result as it was on the wire, whichever major read it."""
    found: dict[str, Any] = result.model_dump(by_alias=True, mode="json")
    return found


async def checked_calls(session: ClientSession, entries: Any) -> None:
    """List, call 32 at once, fail: and hold all of it against the journal."""
    listed = plain(await session.list_tools())["tools"]
    assert [one["name"] for one in listed] == ["look"]
    assert listed[0]["annotations"]["readOnlyHint"] is True
    metas = [identified() for _ in range(32)]
    results = await asyncio.gather(
        *(session.call_tool("look", {"subject": f"cat {n}"}, meta=meta) for n, meta in enumerate(metas))
    )
    found = entries()
    for n, (result, meta) in enumerate(zip(map(plain, results), metas, strict=True)):
        assert json.loads(result["content"][0]["text"])["arguments"] == {"subject": f"cat {n}"}
        assert result["_meta"][META + "serverNs"] == entry_of(found, meta)["actual_ns"] >= 50_000_000
    own = [entry_of(found, meta) for meta in metas]
    assert max(one["in_flight"] for one in own) > 1  # in parallel, as fast as the SDK's client asks
    failed = plain(await session.call_tool("look", {}, meta=in_loop("mcp_error_result")))
    unknown = plain(await session.call_tool("nobody", {}))
    assert (failed["isError"], unknown["isError"]) == (True, True)
    assert unknown["content"][0]["text"] == "Unknown tool: nobody"
    seen: list[float] = []

    async def progress(value: float, total: float | None, message: str | None) -> None:
        seen.append(value)

    await session.call_tool("look", {}, progress_callback=progress)
    assert seen == [1, 2, 3]


async def test_session_of_the_sdk_over_http(emulator: EmulatorProcess) -> None:
    async with asyncio.timeout(WITHIN), over_http(emulator.mcp_url) as session:
        await checked_calls(session, lambda: journal(emulator))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_session_of_the_sdk_over_stdio(tmp_path: Path) -> None:
    scenario, kept = tmp_path / "mcp.toml", tmp_path / "journal.jsonl"
    scenario.write_text(with_faults())
    async with asyncio.timeout(WITHIN), over_stdio(scenario, "--journal", str(kept)) as session:
        await checked_calls(session, lambda: lines(kept))
        noisy = plain(await session.call_tool("look", {}, meta=in_loop("mcp_noise")))
        assert noisy["isError"] is False
    assert [one["fault"] for one in lines(kept) if one["fault"]] == ["mcp_error_result", "mcp_noise"]
    assert {(one["api"], one["outcome"]) for one in lines(kept)} == {("mcp", "complete")}


# Standard streams


def request(ident: int, method: str, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": ident, "method": method, "params": params}).encode() + b"\n"


@pytest.fixture
def stdio(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    scenario = tmp_path / "mcp.toml"
    scenario.write_text(with_faults())
    command = [sys.executable, *stdio_command(scenario, "--journal", str(tmp_path / "journal.jsonl"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


async def test_stdio_survives_what_is_no_message_and_ends_with_its_input(
    stdio: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    large = "x" * 3_000_000
    asked = (
        b"no message\n[]\n\n" + b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\r\n'
        + request(1, "ping")
        + request(2, "tools/call", name="look", arguments={"subject": large})
        + request(3, "tools/call", name="look", arguments={"subject": "small"})
        + request(4, "tools/call", name="nobody")
        + b'{"jsonrpc": "2.0", "id": 5, "result": {}}\n'
    )  # fmt: skip
    assert stdio.stdin is not None
    assert stdio.stdout is not None
    stdout = stdio.stdout
    stdio.stdin.write(asked)
    stdio.stdin.flush()
    answers = [json.loads(await asyncio.to_thread(stdout.readline)) for _ in range(6)]
    assert [one["error"]["code"] for one in answers[:2]] == [-32700, -32600]
    by_id = {one["id"]: one["result"] for one in answers[2:]}
    assert sorted(by_id) == [1, 2, 3, 4]
    assert json.loads(by_id[2]["content"][0]["text"])["arguments"]["subject"] == large
    stdio.stdin.write(request(6, "ping").rstrip())  # a last line without its end
    stdio.stdin.close()
    last = await asyncio.to_thread(stdout.read)
    assert json.loads(last)["id"] == 6
    assert await asyncio.to_thread(stdio.wait, WITHIN) == 0
    assert len(lines(tmp_path / "journal.jsonl")) == 3


async def test_stdio_cancels_a_call_without_a_word_and_ends_at_sigterm(
    stdio: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    assert stdio.stdin is not None
    assert stdio.stdout is not None
    silent = {"name": "look", "arguments": {}, "_meta": in_loop("mcp_silence")}
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    stdio.stdin.write(request(1, "tools/call", **silent) + json.dumps(cancel).encode() + b"\n")
    stdio.stdin.write(request(2, "tools/call", **silent) + request(3, "ping"))
    stdio.stdin.flush()
    answer = json.loads(await asyncio.to_thread(stdio.stdout.readline))
    assert answer["id"] == 3
    stdio.terminate()
    assert await asyncio.to_thread(stdio.wait, WITHIN) == 0
    assert [one["outcome"] for one in lines(tmp_path / "journal.jsonl")] == ["cancelled", "disconnected"]


async def test_stdio_server_exits_by_a_fault(stdio: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert stdio.stdin is not None
    assert stdio.stdout is not None
    stdio.stdin.write(
        request(1, "tools/call", name="look", arguments={})
        + request(2, "tools/call", name="look", arguments={}, _meta=in_loop("mcp_exit"))
    )
    stdio.stdin.flush()
    assert json.loads(await asyncio.to_thread(stdio.stdout.readline))["id"] == 1
    assert await asyncio.to_thread(stdio.stdout.read) == b""
    assert await asyncio.to_thread(stdio.wait, WITHIN) == 1
    assert [one["outcome"] for one in lines(tmp_path / "journal.jsonl")] == ["complete", "reset"]
