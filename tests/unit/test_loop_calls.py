"""Calls that are tried again, that must not overlap, that start before the reply is complete."""

from __future__ import annotations

import asyncio

import pytest

from profiler import ProviderError, ToolLoop, UsageError, tool
from profiler.anatomy import eagerness, phases
from profiler.exporters.prometheus import PrometheusSink
from profiler.metrics import BACKOFF, RATE_LIMITED, RETRIES, TOOL_CALLS_QUEUED
from profiler.records import decode, encode
from profiler.strategies import parse_strategy
from profiler.testing import ScriptedModel, call, provider_failure, run_virtual

MS = 1_000_000


class Refusal(Exception):
    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.response = type("Response", (), {"status_code": status, "headers": headers or {}})()


def run(tools, calls, strategy="gathered", **options):
    """The record of a loop of one round with these calls."""

    async def main(clock):
        model = ScriptedModel(
            [calls, "done"], seconds=options.pop("seconds", 0.0), cut=options.pop("cut", None)
        )
        made = parse_strategy(strategy).build(clock=clock)
        return (await ToolLoop(model, tools, made, clock=clock, **options).run("go")).record

    return run_virtual(main)


def test_tool_cannot_end_the_loop_by_what_it_raises():
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    @tool
    async def search() -> str:
        raise Unspeakable

    record = run([search], [call("search")], record_content=True)
    (done,) = record.tool_calls
    assert (done.status, done.error_type, done.result) == ("error", "Unspeakable", "Error: Unspeakable")
    assert record.status == "ok"


# ── retries ────────────────────────────────────────────────────────────────────────────────────


def failing(*errors: Exception | None, **options):
    """A tool that takes 100 ms and raises these in turn, None for success."""
    outcomes = list(errors)

    @tool(name="search", **options)
    async def search() -> str:
        await asyncio.sleep(0.1)
        error = outcomes.pop(0)
        if error is not None:
            raise error
        return "found"

    return search


def test_call_is_tried_again_and_every_attempt_is_recorded():
    sink = PrometheusSink()
    record = run(
        [failing(Refusal(429), Refusal(503), None, retries=2)],
        [call("search")],
        sinks=[sink],
        record_content=True,
    )
    (done,) = record.tool_calls
    assert (done.status, done.error_type, done.result) == ("ok", None, "found")
    assert [(a.status, a.error_type) for a in done.attempts] == [
        ("error", "http_429"),
        ("error", "http_503"),
        ("ok", None),
    ]
    first, second, third = done.attempts
    assert (done.started_ns, done.ended_ns) == (first.started_ns, third.ended_ns)
    gaps = second.started_ns - first.ended_ns, third.started_ns - second.ended_ns
    assert 0 <= gaps[0] <= 500 * MS
    assert 0 <= gaps[1] <= 1000 * MS
    assert all(a.ended_ns - a.started_ns == 100 * MS for a in done.attempts)
    assert decode(encode(record)) == record
    assert dict(sink.values(RETRIES)) == {
        ("gathered", "tool", "search", "429"): 1,
        ("gathered", "tool", "search", "503"): 1,
    }
    assert dict(sink.values(BACKOFF))["gathered", "tool", "search", "429"] == gaps[0] / 1e9
    assert dict(sink.values(RATE_LIMITED)) == {("gathered", "tool", "search", "429"): 1}


def test_call_that_no_retry_would_change_is_not_tried_again():
    (done,) = run([failing(Refusal(404), None, retries=2)], [call("search")]).tool_calls
    assert (done.error_type, len(done.attempts)) == ("http_404", 1)


def test_error_of_the_last_attempt_stands():
    (done,) = run([failing(*[Refusal(500)] * 3, retries=2)], [call("search")]).tool_calls
    assert (done.status, done.error_type, len(done.attempts)) == ("error", "http_500", 3)


def test_timeout_counts_for_each_attempt():
    @tool(timeout=0.2, retries=1)
    async def slow() -> str:
        await asyncio.sleep(1)
        return ""

    (done,) = run([slow], [call("slow")]).tool_calls
    assert [a.ended_ns - a.started_ns for a in done.attempts] == [200 * MS] * 2
    assert (done.status, done.error_type) == ("timeout", "timeout")


def test_retry_after_is_waited_for_with_jitter():
    waits = []
    for strategy in ("gathered", "semaphore:4"):  # with a gate it is the gate that holds back
        refusal = Refusal(429, {"retry-after": "2"})
        (done,) = run([failing(refusal, None, retries=1)], [call("search")], strategy).tool_calls
        assert done.attempts[0].retry_after_ns == 2000 * MS
        waits.append((done.attempts[1].started_ns - done.attempts[0].ended_ns) / 1e9)
    assert all(2.0 <= wait <= 3.0 for wait in waits)


def test_call_that_backs_off_holds_nobody_up():
    tools = [failing(Refusal(429, {"retry-after": "5"}), None, retries=1)]

    @tool
    async def other() -> str:
        await asyncio.sleep(0.1)
        return ""

    record = run([*tools, other], [call("search"), call("other")], "semaphore:1")
    assert record.rounds[0].tool_calls[1].started_ns == 100 * MS


def test_call_that_is_cancelled_between_two_attempts():
    async def main(clock):
        sink: list = []
        model = ScriptedModel([[call("search")], "done"])
        tools = [failing(Refusal(429, {"retry-after": "9"}), None, retries=1)]
        task = asyncio.create_task(ToolLoop(model, tools, sinks=[sink.append], clock=clock).run("go"))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return sink[0]

    (done,) = run_virtual(main).tool_calls
    assert (done.status, done.error_type, len(done.attempts)) == ("cancelled", "cancelled", 1)
    assert done.ended_ns == 1000 * MS


def test_retries_must_be_a_number_of_retries():
    with pytest.raises(UsageError, match="at least 0, not -1"):
        tool(retries=-1)


# ── exclusive ──────────────────────────────────────────────────────────────────────────────────


def test_exclusive_tools_never_overlap_whatever_the_strategy():
    @tool(exclusive="db")
    async def read() -> str:
        await asyncio.sleep(0.1)
        return ""

    @tool(exclusive="db")
    async def write() -> str:
        await asyncio.sleep(0.1)
        return ""

    @tool
    async def other() -> str:
        await asyncio.sleep(0.1)
        return ""

    for strategy in ("gathered", "semaphore:3"):
        record = run([read, write, other], [call(n) for n in ("read", "write", "other", "read")], strategy)
        starts = [c.started_ns // MS for c in record.tool_calls]
        assert starts == [0, 100, 0, 200]
        assert record.rounds[0].shortfall == "exclusive"


def test_exclusive_is_no_cause_where_its_calls_waited_for_less_than_another_took():
    @tool(exclusive="db")
    async def read() -> str:
        await asyncio.sleep(0.1)
        return ""

    @tool
    async def slow() -> str:
        await asyncio.sleep(0.3)
        return ""

    assert run([read, slow], [call("read"), call("read"), call("slow")]).rounds[0].shortfall is None
    sequential = run([read], [call("read"), call("read")], "sequential")
    assert sequential.rounds[0].shortfall is None  # it allows one at a time


# ── eager ──────────────────────────────────────────────────────────────────────────────────────


@tool(pure=True)
async def lookup(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "found"


@tool
async def write(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "written"


def test_eager_starts_pure_tools_as_soon_as_their_arguments_are_complete():
    calls = [call("lookup", seconds=2), call("write", seconds=1), call("lookup", seconds=0.5)]
    record = run([lookup, write], calls, "eager", stream=True, seconds=3)
    round_ = record.rounds[0]
    assert [c.ready_ns // MS for c in round_.tool_calls] == [1000, 2000, 3000]
    assert [c.started_ns // MS for c in round_.tool_calls] == [1000, 3000, 3000]
    assert [c.ended_ns // MS for c in round_.tool_calls] == [3000, 4000, 3500]
    assert [c.status for c in round_.tool_calls] == ["ok"] * 3
    found = eagerness(round_)
    assert [v // MS for v in (found.overlapped_ns, found.wall_ns, found.bound_ns, found.gathered_ns)] == [
        *(2000, 4000, 3500, 5000)  # the write could have ended at 3 s
    ]
    shares = phases(round_)
    assert (shares["model"] // MS, shares["tools"] // MS) == (3000, 1000)
    assert sum(shares.values()) == round_.ended_ns - round_.started_ns


def test_eager_all_starts_every_tool_early():
    record = run(
        [write],
        [call("write", seconds=1)] * 1 + [call("write", seconds=1)],
        "eager:all",
        stream=True,
        seconds=2,
    )
    assert [c.started_ns // MS for c in record.tool_calls] == [1000, 2000]


def test_eager_gains_nothing_when_the_longest_call_comes_last():
    calls = [call("lookup", seconds=s) for s in (0.5, 0.5, 2)]
    eager = run([lookup], calls, "eager", stream=True, seconds=3).rounds[0]
    plain = run([lookup], calls, "gathered", stream=True, seconds=3).rounds[0]
    assert eagerness(eager).wall_ns == eagerness(plain).wall_ns == 5000 * MS
    assert eagerness(plain).overlapped_ns == 0
    assert [c.ready_ns // MS for c in plain.tool_calls] == [
        1000,
        2000,
        3000,
    ]  # what could have been is recorded


def test_eager_calls_pass_the_limiter():
    calls = [call("lookup", seconds=2) for _ in range(3)]
    record = run([lookup], calls, "eager+semaphore:1", stream=True, seconds=3)
    assert [c.started_ns // MS for c in record.tool_calls] == [1000, 3000, 5000]


def test_cut_off_reply_does_not_run_its_unfinished_call():
    ran = []

    @tool(pure=True)
    async def noted(n: int) -> str:
        ran.append(n)
        return ""

    record = run([noted], [call("noted", n=1), call("noted", n=2)], "eager", stream=True, seconds=1, cut=0)
    assert ran == [1]
    assert [(c.status, c.error_type) for c in record.tool_calls] == [("ok", None), ("error", "truncated")]


def _broken(error: BaseException | None, cancel_at: float | None = None):
    """A streamed reply whose first call is complete and that then fails, or whose loop is cancelled."""

    class Breaking(ScriptedModel):
        async def request(self, messages, tools, options, probe):
            probe.call_complete(call("lookup", seconds=60))
            await asyncio.sleep(1)
            if error is not None:
                raise error
            await asyncio.sleep(100)

    async def main(clock):
        records: list = []
        sink = PrometheusSink()
        loop = ToolLoop(
            Breaking([]),
            [lookup],
            parse_strategy("eager").build(),
            stream=True,
            clock=clock,
            sinks=[sink, records.append],
        )
        task = asyncio.create_task(loop.run("go"))
        if cancel_at is not None:
            await asyncio.sleep(cancel_at)
            task.cancel()
        with pytest.raises((ProviderError, asyncio.CancelledError)):
            await task
        return records[0], sink

    return run_virtual(main)  # which fails when a task is left behind


@pytest.mark.parametrize(("error", "cancel_at"), [(provider_failure(), None), (None, 0.5)])
def test_eager_call_ends_with_a_reply_that_fails(error, cancel_at):
    record, sink = _broken(error, cancel_at)
    (done,) = record.tool_calls
    assert (done.status, done.started_ns) == ("cancelled", 0)
    assert done.ended_ns == record.ended_ns == (1000 if cancel_at is None else 500) * MS
    assert dict(sink.values(TOOL_CALLS_QUEUED)) == {("eager", "lookup"): 0}


def test_eager_needs_a_streamed_reply():
    with pytest.raises(UsageError, match="stream=True"):
        ToolLoop(ScriptedModel([]), [lookup], parse_strategy("eager").build())


def test_limit_in_force_is_recorded():
    calls = [call("lookup", seconds=1) for _ in range(4)]
    assert run([lookup], calls, "adaptive:2").rounds[0].limit == 2
    assert run([lookup], calls, "gathered").rounds[0].limit is None
