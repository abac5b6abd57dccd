"""Everything that can go wrong with a request or a tool, at once: records stay whole, nothing is left behind.

One emulator in a process of its own, over real sockets. The first test goes through every fault ×
provider × streaming × strategy, where it is known what has to come of each; the second is a random
walk over all of it at once, with tools that misbehave and loops that are cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import json
import os
import random
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop

from profiler import ToolLoop, cli, tool
from profiler.anatomy import loop_phases
from profiler.emulator.process import start_emulator
from profiler.errors import ProviderError
from profiler.load.options import LoadOptions, conditions
from profiler.loop.eventloop import NativeThreads
from profiler.providers import CLIENTS, PROVIDERS, ClientName, make_provider
from profiler.records import LoopRecord, decode, encode
from profiler.report.html import gather
from profiler.report.terminal import render_comparison
from profiler.rundir import RunDirectory, Trial
from profiler.scenarios import FAULT_KINDS, load_scenario
from profiler.scenarios.tools import close_tool_clients, scenario_tools
from profiler.strategies import parse_strategies, parse_strategy

T = TypeVar("T")

STRATEGIES = (
    "sequential",
    "gathered",
    "semaphore:2",
    "semaphore:1@tool",
    "semaphore:2@agent",
    "rate:300/s,burst=10",
    "adaptive",
    "semaphore:8+rate:300/s",
)
EAGER = ("eager", "eager:all+semaphore:2", "eager+adaptive")

WATCHDOG_SECONDS = 45.0
"""After this long something hangs. Longer than any of it takes on a busy machine."""

SCENARIO = """
description = "one round of three calls"
prompt = "Question {number}"
time_scale = 0.02

[model]
first_token = 0.5
tokens_per_second = 2000

[loop]
rounds = 1
fan_out = 3

[tools.get_weather]
path = "/tools/weather"
description = "Current weather of a city."
duration = 0.5

[tools.get_weather.parameters]
type = "object"
required = ["city"]
properties.city = { type = "string" }

[tools.get_population]
path = "/tools/population"
description = "Number of inhabitants of a city."
duration = 0.5

[tools.get_population.parameters]
type = "object"
required = ["city"]
properties.city = { type = "string" }
"""

ONCE, ALWAYS = 1, 99
"""How many attempts of a model request a fault hits."""

RETRIED = ("http_429", "http_500", "http_503", "http_529", "reset", "hang", "truncated_stream")
"""Faults for whose sake a request is tried again."""

CASES = [(kind, ONCE) for kind in FAULT_KINDS] + [(kind, ALWAYS) for kind in RETRIED]
"""(kind, attempts it hits), by tape entry."""


def fault(kind: str, rest: str) -> str:
    return f'\n[[faults]]\nkind = "{kind}"\nseconds = 5\n{rest}\n'


CERTAIN = SCENARIO + "".join(
    fault(kind, f"attempts = {hits}\nat = [{{ loop = {number} }}]")
    for number, (kind, hits) in enumerate(CASES)
)


@pytest.fixture(scope="module")
def certain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("scenario") / "certain.toml"
    path.write_text(CERTAIN)
    with start_emulator(str(path)) as emulator:
        yield emulator.url


# ── what is left ───────────────────────────────────────────────────────────────────────────────


def open_files() -> dict[str, int]:
    """What our descriptors refer to, and how many to each kind."""
    found: dict[str, int] = defaultdict(int)
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[os.readlink(f"/proc/self/fd/{descriptor}").partition(":")[0]] += 1
    return found


def threads() -> int:
    """Native ones too, of which `threading` knows nothing."""
    return len(os.listdir("/proc/self/task"))


def settles(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.05)
    return true()


async def _first_use() -> None:
    """The first uvloop of a process opens a pipe, its first lookup starts four threads; both stay."""
    await asyncio.get_running_loop().getaddrinfo("localhost", 80)


def run_leaving_nothing(main: Callable[[], Awaitable[T]]) -> T:
    """Run `main()` on a uvloop as a load test does; fails if it hangs or leaves anything behind."""

    async def guarded() -> T:
        async with asyncio.timeout(WATCHDOG_SECONDS):
            result = await main()
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left: {left}"
        return result

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_first_use())
    before, running, named = open_files(), threads(), threading.active_count()
    # What samples a thread's event loop stays until its next one is sampled; the first test has none yet.
    of_the_kernel = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/schedstat"
    before[of_the_kernel] = max(1, before[of_the_kernel])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(guarded())
    # What an earlier test left to the collector may go meanwhile: nothing may be there that was not.
    more = {}

    def no_more() -> bool:
        more.clear()
        more.update(Counter(open_files()) - Counter(before))
        return not more

    assert settles(no_more), f"descriptors: {before} before, these more after: {more}"
    assert settles(lambda: threads() <= running), f"threads: {running} before, {threads()} after"
    assert threading.active_count() == named
    return result


# ── what a record has to be ────────────────────────────────────────────────────────────────────


def check_whole(record: LoopRecord) -> None:
    """Everything ended, in order, and accounted for."""
    spent = loop_phases(record)
    assert sum(spent.values()) == record.ended_ns - record.started_ns
    assert min(spent.values()) >= 0, spent
    assert decode(encode(record)) == record
    assert record.status in ("ok", "error", "cancelled")
    assert (record.error_type is None) == (record.status == "ok")
    at = record.started_ns
    for index, round_ in enumerate(record.rounds):
        assert round_.index == index
        assert at <= round_.started_ns <= round_.ended_ns <= record.ended_ns
        at = round_.ended_ns
        model = round_.model
        assert round_.started_ns <= model.started_ns <= model.ended_ns <= round_.ended_ns
        assert (model.error_type is None) == (model.status == "ok")
        begun = model.started_ns
        for attempt in model.attempts:
            assert begun <= attempt.started_ns <= attempt.ended_ns <= model.ended_ns
            assert attempt.status is not None or attempt.error_type is not None
            begun = attempt.ended_ns
        if model.status == "ok":
            assert model.attempts[-1].status == 200
        assert (round_.tools_started_ns is None) == (round_.tools_ended_ns is None)
        for call in round_.tool_calls:
            assert call.ready_ns <= call.queued_ns <= call.ended_ns <= round_.ended_ns
            assert call.started_ns is None or call.queued_ns <= call.started_ns <= call.ended_ns
            assert call.status in ("ok", "error", "timeout", "cancelled")
            assert (call.error_type is None) == (call.status == "ok")
            assert call.status != "ok" or call.started_ns is not None
        if round_.status == "ok":
            assert model.status == "ok"
    last = record.rounds[-1].status if record.rounds else record.status
    assert last == record.status or record.status == "cancelled"


def asked(url: str) -> dict[tuple[int, int], list[int | None]]:
    """By trial and loop: with what the emulator says it answered, in order; None for no status."""
    with urllib.request.urlopen(f"{url}/emulator/journal?kind=model", timeout=60) as response:
        entries = json.load(response)["entries"]
    answered = defaultdict(list)
    for seen in sorted(entries, key=lambda seen: seen["received_ns"]):
        answered[int(seen["trial"]), seen["loop"]].append(seen["status"] or None)
    return answered


def attempts(record: LoopRecord) -> list[list[int | None]]:
    return [[attempt.status for attempt in round_.model.attempts] for round_ in record.rounds]


# ── every fault, where its outcome is known ────────────────────────────────────────────────────


@dataclass(frozen=True)
class Outcome:
    """What has to come of a fault: of the loop, of its first model request's attempts, of its first call."""

    error_type: str | None
    first: list[int | None]
    call: str | None = None


def outcome(kind: str, hits: int, provider: str, streamed: bool) -> Outcome:
    if kind.startswith("http_"):
        status = int(kind[5:])
        return Outcome(None, [status, 200]) if hits == ONCE else Outcome(kind, [status] * 3)
    if kind in ("reset", "hang"):
        return Outcome(None, [None, 200]) if hits == ONCE else Outcome("reset", [None] * 3)
    if kind == "truncated_stream":
        if not streamed:  # half a body is no answer: the SDKs try again
            return Outcome(None, [200, 200]) if hits == ONCE else Outcome("reset", [200] * 3)
        return Outcome("reset", [200])
    if kind == "stream_error" and streamed:
        return Outcome("overloaded_error" if provider == "anthropic" else "server_error", [200])
    if kind == "malformed_arguments" and (streamed or provider != "anthropic"):
        return Outcome(None, [200], "invalid_json")
    calls = {"unknown_tool": "unknown_tool", "wrong_type": "invalid_arguments", "tool_http_500": "http_500"}
    return Outcome(None, [200], calls.get(kind))


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("provider", list(PROVIDERS))
@pytest.mark.parametrize("client", CLIENTS)
def test_every_fault_under_every_strategy(
    client: ClientName, provider: str, streamed: bool, certain: str, tmp_path: Path
) -> None:
    strategies = (*STRATEGIES, *EAGER) if streamed else STRATEGIES
    urllib.request.urlopen(
        urllib.request.Request(f"{certain}/emulator/journal", method="DELETE"), timeout=60
    ).close()
    tools = scenario_tools(load_scenario("cities"), certain)

    async def all_of_them() -> list[LoopRecord]:
        model = make_provider(provider, base_url=certain, client=client)
        records: list[LoopRecord] = []
        pool = NativeThreads()
        runs = []
        for trial, spec in enumerate(strategies):
            loop = ToolLoop(
                model,
                tools,
                parse_strategy(spec).build(),
                stream=streamed,
                sinks=[records.append],
                threads=pool,
            )
            runs += [
                loop.run(f"Question {number}", number=number, trial=trial, agent=f"a{number}")
                for number in range(len(CASES))
            ]
        ended = await asyncio.gather(*runs, return_exceptions=True)
        assert {type(e) for e in ended if isinstance(e, BaseException)} <= {ProviderError}
        await model.client.close()  # type: ignore[attr-defined]
        await close_tool_clients()
        return records

    records = run_leaving_nothing(all_of_them)
    truth = asked(certain)
    assert len(records) == len(strategies) * len(CASES)
    wrong = []
    for record in records:
        check_whole(record)
        assert record.trial is not None
        assert record.number is not None
        assert list(chain(*attempts(record))) == truth[record.trial, record.number]
        kind, hits = CASES[record.number]
        calls = record.rounds[0].tool_calls
        first = calls[0].error_type if calls and record.status == "ok" else None
        got = Outcome(record.error_type, attempts(record)[0], first)
        if got != (expected := outcome(kind, hits, provider, streamed)):
            wrong.append(f"{kind} x{hits} under {record.strategy}: {got}, not {expected}")
        if record.status == "ok":
            assert [c.status for c in calls] == ["ok" if first is None else "error", "ok", "ok"]
    assert not wrong, "\n".join(wrong)


# ── servers that are none ──────────────────────────────────────────────────────────────────────

NOT_REPLIES = {
    "nothing": b"",
    "a page": b"<html>Bad gateway</html>",
    "half an object": b'{"id": "x", "choices": [{"mess',
    "an empty object": b"{}",
    "a list": b"[]",
    "nulls": b'{"choices": null, "output": null, "content": null, "usage": null}',
    "wrong types": b'{"choices": [{"message": 7}], "output": [3], "content": [5], "usage": 1}',
    "a failure": b'{"status": "failed", "error": {"code": "server_error", "message": "no"}, "output": []}',
    "events of nothing": b"event: x\ndata: {}\n\n" * 3,
    "events of garbage": b"data: nonsense\n\n",
    "events of wrong types": b'data: {"type": 5, "choices": [{"delta": 1, "index": "x"}], "usage": 3}\n\n',
}
"""Bodies that come with status 200."""


@pytest.mark.parametrize("client", CLIENTS)
def test_what_is_no_reply_fails_the_loop_in_words(client: ClientName) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
            kind = json.loads(body)["model"]
            if kind == "silence":
                await reader.read()
            reply = NOT_REPLIES.get(kind, b"")
            content = b"text/event-stream" if json.loads(body).get("stream") else b"application/json"
            content = b"text/html" if kind == "a page" else content
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nconnection: close\r\n\r\n%b" % (content, reply)
            )
        writer.close()

    async def ask(model: Any, kind: str, streamed: bool) -> LoopRecord:
        records: list[LoopRecord] = []
        model = copy.copy(model)
        model.model = kind
        model.client = model.client.with_options(timeout=0.5 if kind == "silence" else 60, max_retries=1)
        with pytest.raises(ProviderError) as failure:
            await ToolLoop(model, (), stream=streamed, sinks=[records.append]).run("Answer.")
        assert failure.value.record is records[0]
        return records[0]

    async def ask_all(url: str) -> list[tuple[str, bool, LoopRecord]]:
        kinds = [(kind, streamed) for kind in (*NOT_REPLIES, "silence") for streamed in (False, True)]
        found = []
        for provider in PROVIDERS:
            model: Any = make_provider(provider, base_url=url, client=client)
            try:
                records = await asyncio.gather(*(ask(model, *one) for one in kinds))
            finally:
                await model.client.close()
            found += [(*one, record) for one, record in zip(kinds, records, strict=True)]
        return found

    async def all_of_them() -> list[tuple[str, bool, LoopRecord]]:
        # uvloop hangs for ever when it is closed with a server on it.
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            return await ask_all(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")

    for kind, streamed, record in run_leaving_nothing(all_of_them):
        check_whole(record)
        if kind == "silence":
            assert record.error_type == "timeout"
            assert [attempt.error_type for attempt in record.rounds[0].model.attempts] == ["timeout"] * 2
        elif kind == "a failure" and not streamed:
            assert record.error_type == "server_error"
        else:
            assert record.error_type in ("unreadable", "truncated_stream")


@pytest.mark.parametrize("provider", list(PROVIDERS))
@pytest.mark.parametrize("client", CLIENTS)
async def test_what_the_caller_raises_on_a_piece_of_text_is_the_callers(
    client: ClientName, provider: str, certain: str
) -> None:
    def on_text(piece: str) -> None:
        raise ValueError("no room")

    model = make_provider(provider, base_url=certain, client=client)
    try:
        with pytest.raises(ValueError, match="no room"):
            await ToolLoop(model, (), stream=True, on_text=on_text).run("Answer.", number=len(CASES), trial=0)
    finally:
        await model.client.close()  # type: ignore[attr-defined]


# ── a random walk over all of it ───────────────────────────────────────────────────────────────

WALKS = 80


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Refused(Exception):
    """What an HTTP client raises, as far as anybody looks at it."""

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        super().__init__(f"status {status}")
        self.status_code = status
        self.headers = headers


def looped() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


GARBAGE = (None, b"\xff\x00", "\ud800", float("nan"), object(), {1: {2: ...}}, looped(), "x" * 100_000)
FAILURES: tuple[Callable[[], BaseException], ...] = (
    lambda: ValueError("no"),
    Unspeakable,
    lambda: SystemExit(3),
    StopAsyncIteration,
    StopIteration,
    TimeoutError,
    lambda: RuntimeError("\ud800"),
    lambda: Refused(429, {"retry-after": "0"}),
    lambda: Refused(503, {"retry-after": "soon"}),
    lambda: Refused(500, {}),
)
"""What makes whatever a tool may raise; each is an error result for the model, never the loop's end."""


def misbehaving_tools(draw: random.Random) -> list[Any]:
    @tool(pure=True)
    async def fine(subject: str) -> str:
        await asyncio.sleep(draw.random() * 0.02)
        return subject

    @tool(retries=2)
    async def fails(subject: str) -> str:
        await asyncio.sleep(0)
        raise draw.choice(FAILURES)()

    @tool(pure=True)
    def fails_in_a_thread(subject: str) -> str:
        raise draw.choice(FAILURES)()

    @tool(timeout=0.03, retries=1)
    async def hangs(subject: str) -> str:
        await asyncio.Event().wait()
        return subject

    @tool(timeout=0.02, pure=True)
    def hangs_in_a_thread(subject: str) -> str:
        time.sleep(0.05)
        return subject

    @tool
    async def blocks(subject: str) -> str:
        time.sleep(0.012)  # noqa: ASYNC251
        return subject

    @tool(pure=True)
    async def returns_garbage(subject: str) -> Any:
        return draw.choice(GARBAGE)

    @tool
    async def is_cancelled_inside(subject: str) -> str:
        raise asyncio.CancelledError

    @tool(exclusive="lane", timeout=5)
    async def waits_its_turn(subject: str) -> str:
        try:
            await asyncio.sleep(draw.random() * 0.01)
        finally:
            await asyncio.sleep(0)
        return subject

    return [
        fine, fails, fails_in_a_thread, hangs, hangs_in_a_thread, blocks, returns_garbage,
        is_cancelled_inside, waits_its_turn,
    ]  # fmt: skip


PROBABLE = SCENARIO.replace("rounds = 1", 'rounds = { kind = "empirical", values = [1, 2] }').replace(
    "fan_out = 3", 'fan_out = { kind = "empirical", values = [1, 2, 5] }'
) + "".join(
    fault(kind, f"probability = 0.05\nattempts = {1 + index % 2}") for index, kind in enumerate(FAULT_KINDS)
)


def test_a_random_walk_over_faults_tools_and_cancellation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("FAULTS_SEED") or random.SystemRandom().randrange(1_000_000))
    print(f"FAULTS_SEED={seed}")  # noqa: T201 (pytest shows it when the test fails)
    draw = random.Random(seed)
    (tmp_path / "probable.toml").write_text(PROBABLE)
    records: list[LoopRecord] = []

    async def one(loop: ToolLoop, number: int, after: float | None) -> str:
        task = asyncio.ensure_future(
            loop.run(f"Question {number}", number=number, trial=0, agent=f"a{number}")
        )
        if after is not None:
            await asyncio.wait([task], timeout=after)
            task.cancel()
        try:
            await task
        except ProviderError:
            return "error"
        except asyncio.CancelledError:
            return "cancelled"
        return "ok"

    async def walk(url: str) -> list[str]:
        models = {
            (name, client): make_provider(name, base_url=url, client=client)
            for name in PROVIDERS
            for client in CLIENTS
        }
        pool, tools = NativeThreads(limit=4), misbehaving_tools(draw)
        strategies = [parse_strategy(spec).build() for spec in (*STRATEGIES, *EAGER)]
        runs = []
        for number in range(WALKS):
            strategy = draw.choice(strategies)
            loop = ToolLoop(
                models[draw.choice(list(models))],
                tools,
                strategy,
                stream=strategy.eager != "no" or draw.random() < 0.5,
                parallel_tool_calls=draw.random() < 0.9,
                sinks=[records.append],
                record_content=draw.random() < 0.3,
                threads=pool,
            )
            runs.append(one(loop, number, draw.expovariate(2) if draw.random() < 0.3 else None))
        ends = await asyncio.gather(*runs)
        assert all(live.queued == live.running == 0 for live in loop._live.values())
        for model in models.values():
            await model.client.close()  # type: ignore[attr-defined]
        return ends

    with start_emulator(str(tmp_path / "probable.toml"), seed=seed) as emulator:
        started_ns = time.monotonic_ns()
        ends = run_leaving_nothing(lambda: walk(emulator.url))
        truth = asked(emulator.url)
    assert len(records) == WALKS
    by_number = {record.number: record for record in records}
    for number, end in enumerate(ends):
        record = by_number[number]
        check_whole(record)
        assert record.status == end
        seen = list(chain(*attempts(record)))
        sent = truth[0, number]
        # A request that was cancelled may have been answered, or never have come.
        assert seen == sent or (end == "cancelled" and abs(len(seen) - len(sent)) <= 1)
    assert {"ok", "error", "cancelled"} <= set(ends)
    check_reports(tmp_path, records, started_ns, capsys)


def check_reports(
    tmp_path: Path, records: list[LoopRecord], started_ns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything that reads a run directory copes with one of these records."""
    strategies = tuple(dict.fromkeys(record.strategy for record in records))
    ended_ns = max(record.ended_ns for record in records)
    run = conditions(LoadOptions(strategies=parse_strategies(strategies), stream=True), users=WALKS)
    trials = tuple(
        Trial(index, 0, spec, WALKS, started_ns, ended_ns, ended_ns) for index, spec in enumerate(strategies)
    )
    directory = RunDirectory.create(tmp_path / "runs", replace(run, trials=trials, finished=True))
    placed = [replace(record, trial=strategies.index(record.strategy)) for record in records]
    directory.records_path.write_bytes(b"".join(encode(record) + b"\n" for record in placed))
    assert list(directory.records()) == placed
    material = gather(directory)
    assert sum(one.totals.loops for one in material.summary.strategies) == len(records)
    text = render_comparison(material.summary, run, 100, path=str(directory.path))
    assert all(spec in text for spec in strategies)
    capsys.readouterr()
    assert cli.main(["report", str(directory.path)]) == 0
    assert cli.main(["trace", str(directory.path), "-o", str(tmp_path / "trace.json")]) == 0
    assert cli.main(["compare", str(directory.path), str(directory.path), "--allow-saturated"]) == 0
    assert "Traceback" not in capsys.readouterr().err
