"""Every dialect of the three APIs, in `ToolLoop` and under `Profiler`: all that the record says.

The server (tests/dialects) answers as each row says, and refuses a next request that lost or changed
something. The table is printed at the end of the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio

from profiler import ToolLoop
from profiler.errors import ProviderError
from profiler.providers import AnthropicMessages, OpenAIChat, OpenAIResponses
from profiler.providers.endpoint import Endpoint
from profiler.providers.lean import LeanModel
from profiler.records import LoopRecord, RoundRecord
from profiler.strategies import parse_strategy
from profiler.watch.profiler import Profiler
from tests.dialects.script import TOOLS, Call, Dialect, Tokens, Turn
from tests.dialects.server import APIS
from tests.dialects.table import COLUMNS, NOT_THERE, PROPERTY, RIGHT, WRONG

ROOT = Path(__file__).parents[2]
PROMPT = {"role": "user", "content": "What is the weather?"}
ROWS = [pytest.param(api, row, id=f"{api}: {row.name}") for api, rows in APIS.items() for row in rows]
MODELS = {"openai": OpenAIChat, "openai-responses": OpenAIResponses, "anthropic": AnthropicMessages}


@pytest.fixture(scope="module")
def url():
    command = [sys.executable, "-m", "tests.dialects.server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.terminate()


@dataclass
class Bench:
    """What the cells share: clients of ours and watched ones, and the records of the latter."""

    url: str
    clients: Mapping[str, Any]
    watched: Mapping[str, Any]
    watched_sync: Mapping[str, Any]
    profiler: Profiler
    records: list[LoopRecord]


def new_clients(*, on_aiohttp: bool) -> dict[str, Any]:
    """By API; `on_aiohttp`: on the transport of a load test's, else on the SDKs' own."""
    common: dict[str, Any] = {"api_key": "k", "base_url": "http://127.0.0.1", "max_retries": 0}
    transports = (
        (openai.DefaultAioHttpClient(), anthropic.DefaultAioHttpClient()) if on_aiohttp else (None,) * 2
    )
    of_openai = openai.AsyncOpenAI(**common, http_client=transports[0])
    of_anthropic = anthropic.AsyncAnthropic(**common, http_client=transports[1])
    return {"openai": of_openai, "openai-responses": of_openai, "anthropic": of_anthropic}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(url):
    records: list[LoopRecord] = []
    profiler = Profiler(sinks=[records.append], record_content=True)
    clients, watched = new_clients(on_aiohttp=True), new_clients(on_aiohttp=False)
    common = {"api_key": "k", "base_url": "http://127.0.0.1", "max_retries": 0}
    of_openai, of_anthropic = openai.OpenAI(**common), anthropic.Anthropic(**common)
    sync = {"openai": of_openai, "openai-responses": of_openai, "anthropic": of_anthropic}
    for client in (*watched.values(), *sync.values()):
        profiler.instrument(client)
    yield Bench(url, clients, watched, sync, profiler, records)
    of_openai.close()
    of_anthropic.close()
    for client in {id(one): one for one in (*clients.values(), *watched.values())}.values():
        await client.close()


@dataclass
class Cell:
    """One conversation. `ran` are the calls that ran, as (name, JSON of the arguments)."""

    api: str
    dialect: Dialect
    column: str
    url: str
    ran: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def streamed(self) -> bool:
        return "streamed" in self.column or "eager" in self.column

    @property
    def path(self) -> str:
        return f"{self.url}/{self.api}/{self.dialect.slug}/{self.column.replace(', ', '-')}"

    def client(self, clients: Mapping[str, Any]) -> Any:
        path = self.path if self.api == "anthropic" else f"{self.path}/v1"
        return clients[self.api].with_options(base_url=path)

    def expect(self, what: str, got: Any, meant: Any) -> None:
        if got != meant:
            self.wrong.append(f"{what}: {got!r}, expected {meant!r}")

    def functions(self) -> dict[str, Any]:
        async def get_weather(city: str) -> str:
            """The weather of a city."""
            return self._run("get_weather", city=city)

        async def get_population(city: str) -> str:
            """The population of a city."""
            return self._run("get_population", city=city)

        async def ping() -> str:
            """Nothing else."""
            return self._run("ping")

        return {f.__name__: f for f in (get_weather, get_population, ping)}

    def _run(self, name: str, **arguments: Any) -> str:
        self.ran.append((name, plain(arguments)))
        return TOOLS[name](**arguments)

    def check_server(self) -> None:
        with urllib.request.urlopen(self.path, timeout=60) as answer:
            known = json.load(answer)
        self.expect("refused by the server", known["refused"], [])
        self.expect("replies", known["replies"], len(self.dialect.turns))

    def check_ran(self) -> None:
        meant = [
            (call.name, plain(call.arguments))
            for turn in self.dialect.turns
            for call in turn.calls
            if call.error is None
        ]
        self.expect("ran", sorted(self.ran), sorted(meant))

    def check_round(self, number: int, round_: RoundRecord, turn: Turn) -> None:
        """What is the same in a loop of ours and in one that is watched."""
        model, where = round_.model, f"round {number + 1}"
        if turn.tokens is not None:
            got = Tokens(
                model.input_tokens,
                model.output_tokens,
                model.cached_tokens,
                model.cache_written_tokens,
                model.reasoning_tokens,
            )
            self.expect(f"{where}, tokens", got, turn.tokens)
        self.expect(f"{where}, status", model.status, "error" if turn.fails else "ok")
        self.expect(f"{where}, server tools", len(model.server_tools), turn.server_tools)
        self.expect(f"{where}, unreadable", model.unreadable > 0, turn.unreadable)
        came_streamed = self.streamed and turn.content_type != "application/json"
        if self.column.startswith("watched"):  # of a loop of ours it says what was asked for
            self.expect(f"{where}, streamed", model.streamed, came_streamed)
        if came_streamed and turn.calls and model.first_tool_call_ns is None:
            self.wrong.append(f"{where}: no call was seen to be complete")


def plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def model_of(cell: Cell, bench: Bench) -> Any:
    """As `ToolLoop` has it; eager as a load test has it: one step below the SDK's `create`."""
    if cell.column.startswith("lean"):
        endpoint = Endpoint.parse(cell.path if cell.api == "anthropic" else f"{cell.path}/v1")
        model = LeanModel(cell.api, "m", endpoint=endpoint)
        model.client.max_retries = 0
        return model
    below = {"rewrite": False} if cell.column == "eager" and cell.api != "anthropic" else {}
    return MODELS[cell.api](cell.client(bench.clients), "m", **below)


async def run_loop(cell: Cell, bench: Bench) -> None:
    """The dialect in a `ToolLoop`."""
    records: list[LoopRecord] = []
    model = model_of(cell, bench)
    loop = ToolLoop(
        model,
        list(cell.functions().values()),
        parse_strategy("eager:all" if "eager" in cell.column else "gathered"),
        stream=cell.streamed,
        sinks=[records.append],
        record_content=True,
    )
    last = cell.dialect.turns[-1]
    try:
        result = await loop.run([PROMPT])
        cell.expect("error", None, last.fails or None)
        cell.expect("answer", result.text, last.answer)
    except ProviderError as error:
        if not last.fails:
            cell.wrong.append(str(error))
        elif error.error_type not in last.fails:
            cell.wrong.append(f"error {error.error_type}, expected {' or '.join(last.fails)}")
        elif last.words not in str(error):
            cell.wrong.append(f"{error}, expected the server's words: {last.words}")
    finally:
        if isinstance(model, LeanModel):
            await model.client.close()
    (record,) = records
    cell.expect("status", record.status, "error" if last.fails else "ok")
    cell.expect("rounds", len(record.rounds), len(cell.dialect.turns))
    for number, (round_, turn) in enumerate(zip(record.rounds, cell.dialect.turns, strict=False)):
        cell.check_round(number, round_, turn)
        got = [described(one.name, one.arguments, one.error_type) for one in round_.tool_calls]
        meant = [described(call.name, plain(call.arguments), call.error) for call in turn.calls]
        cell.expect(f"round {number + 1}, calls", got, meant)
        ids = [one.id for one in round_.tool_calls]
        for id, call in zip(ids, turn.calls, strict=False):
            if call.id is not None:
                cell.expect(f"round {number + 1}, id", id, call.id)
            elif not id or ids.count(id) > 1:
                cell.wrong.append(f"round {number + 1}: ids {ids}, expected one of its own for each call")


def described(name: str, arguments: str | None, error: str | None) -> tuple[str, str, str | None]:
    """A call in a record; the arguments of one that must not run are whatever came."""
    with contextlib.suppress(ValueError):
        arguments = plain(json.loads(arguments or "{}") or {})
    return name, "" if error is not None else str(arguments), error


async def run_watched(cell: Cell, bench: Bench) -> None:
    """The dialect in a loop that knows it, under `Profiler`: it runs what the server means."""
    bench.records.clear()
    client = cell.client(bench.watched)
    tools = {name: bench.profiler.tool(function) for name, function in cell.functions().items()}
    messages: list[Any] = [PROMPT]
    with bench.profiler.loop("watched"):
        for number, turn in enumerate(cell.dialect.turns):
            with giving_up(turn):
                resource, asked = question(cell, client, messages)
                reply = await resource.create(**asked)
                if cell.streamed:
                    async for _ in reply:
                        pass
            last_first = [tools[c.name](**c.arguments) for c in reversed(turn.calls) if c.error is None]
            messages += next_messages(cell.api, number, turn, await asyncio.gather(*last_first))
    await check_watched(cell, bench)


async def run_watched_sync(cell: Cell, bench: Bench) -> None:
    """The same in a thread, with the SDK's sync client and sync tools."""
    bench.records.clear()
    await asyncio.to_thread(watched_in_thread, cell, bench)
    await check_watched(cell, bench)


def watched_in_thread(cell: Cell, bench: Bench) -> None:
    client = cell.client(bench.watched_sync)
    tools = {name: bench.profiler.tool(function) for name, function in TOOLS.items()}
    messages: list[Any] = [PROMPT]
    with bench.profiler.loop("watched"):
        for number, turn in enumerate(cell.dialect.turns):
            with giving_up(turn):
                resource, asked = question(cell, client, messages)
                reply = resource.create(**asked)
                if cell.streamed:
                    for _ in reply:
                        pass
            ended = []
            for call in reversed(turn.calls):
                if call.error is None:
                    ended.append(tools[call.name](**call.arguments))
                    cell.ran.append((call.name, plain(call.arguments)))
            messages += next_messages(cell.api, number, turn, ended)


def giving_up(turn: Turn) -> contextlib.AbstractContextManager[None]:
    """Around the reading of a reply: where it is none, the SDK may raise what it likes."""
    return contextlib.suppress(Exception) if turn.fails else contextlib.nullcontext()


async def check_watched(cell: Cell, bench: Bench) -> None:
    async with asyncio.timeout(60):
        while not bench.records:  # noqa: ASYNC110 (a sink may be called from another thread)
            await asyncio.sleep(0.001)
    (record,) = bench.records
    cell.expect("rounds", len(record.rounds), len(cell.dialect.turns))
    cell.expect("ambiguous calls", record.ambiguous_calls, 0)
    cell.expect("orphan calls", record.orphan_calls, 0)
    for number, (round_, turn) in enumerate(zip(record.rounds, cell.dialect.turns, strict=False)):
        cell.check_round(number, round_, turn)
        run = [call for call in turn.calls if call.error is None]
        got = Counter(described(one.name, one.arguments, one.error_type) for one in round_.tool_calls)
        meant = Counter(described(call.name, plain(call.arguments), None) for call in run)
        cell.expect(f"round {number + 1}, calls", got, meant)
        by_arguments = {described(one.name, one.arguments, None): one.id for one in round_.tool_calls}
        for call in run:
            id = by_arguments.get(described(call.name, plain(call.arguments), None))
            if call.id is not None:
                cell.expect(f"round {number + 1}, id of {call.name} {call.json}", id, call.id)
        # A call that must not run was asked for all the same, where it could be read.
        if not 0 <= round_.unobserved_calls <= len(turn.calls) - len(run):
            cell.wrong.append(f"round {number + 1}: {round_.unobserved_calls} unobserved calls")


def question(cell: Cell, client: Any, messages: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
    """The resource of the SDK, and the arguments of its `create`."""
    asked: dict[str, Any] = {"model": "m", "stream": cell.streamed}
    if cell.api == "openai-responses":
        return client.responses, {**asked, "input": messages}
    asked["messages"] = messages
    if cell.api == "openai":
        return client.chat.completions, asked
    return client.messages, {**asked, "max_tokens": 9}


def next_messages(api: str, number: int, turn: Turn, ended: Sequence[str]) -> list[Any]:
    """What follows a reply; `ended` are the results of the calls that ran, the last call's first."""
    left = list(ended)
    results = ["Error: not run" if call.error is not None else left.pop() for call in turn.calls]
    ids = [call.id or f"mine_{number}_{place}" for place, call in enumerate(turn.calls)]
    return [*sent_back(turn, ids), *results_of(api, turn.calls, ids, results)]


def sent_back(turn: Turn, ids: Sequence[str]) -> list[Any]:
    """The messages by which the reply comes back, with the application's ids where none came."""
    left = list(reversed(ids))

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            if value.get("type") in ("function", "function_call", "tool_use"):
                id = left.pop()
                key = "call_id" if value["type"] == "function_call" else "id"
                value = {**value, key: id}
            return {k: filled(v) for k, v in value.items()}
        if isinstance(value, list):
            return [filled(one) for one in value]
        return {"<any text>": "{}", "<any object>": {}}.get(value, value) if isinstance(value, str) else value

    return [filled(message) for message in turn.back]


def results_of(api: str, calls: Sequence[Call], ids: Sequence[str], results: Sequence[str]) -> list[Any]:
    pairs = list(zip(calls, ids, results, strict=True))
    if not pairs:
        return []
    if api == "openai":
        return [{"role": "tool", "tool_call_id": id, "content": result} for _, id, result in pairs]
    if api == "openai-responses":
        return [{"type": "function_call_output", "call_id": id, "output": result} for _, id, result in pairs]
    blocks = [
        {"type": "tool_result", "tool_use_id": id, "content": result, "is_error": call.error is not None}
        for call, id, result in pairs
    ]
    return [{"role": "user", "content": blocks}]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("api", "row"), ROWS)
async def test_dialect(api, row: Dialect, bench, record_property):
    marks = dict.fromkeys(COLUMNS, NOT_THERE)
    wrong = []
    for column in COLUMNS:
        cell = Cell(api, row, column, bench.url)
        if not (row.streamed if cell.streamed else row.whole):
            continue
        run = run_loop
        if column.startswith("watched"):
            run = run_watched_sync if "sync" in column else run_watched
        try:
            async with asyncio.timeout(60):
                await run(cell, bench)
        except Exception as error:
            cell.wrong.append(f"{type(error).__name__}: {error}")
        cell.check_ran()
        cell.check_server()
        marks[column] = WRONG if cell.wrong else RIGHT
        wrong += [f"{column}: {one}" for one in cell.wrong]
    record_property(PROPERTY, [api, row.name, marks])
    assert not wrong, f"{api}, {row.name}:\n" + "\n".join(wrong)
