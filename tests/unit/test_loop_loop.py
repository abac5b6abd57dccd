"""The loop against a scripted model on a virtual clock: rounds, order, errors, times."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest

from profiler import Gathered, ProviderError, SemaphoreLimited, Sequential, ToolLoop, UsageError, tool
from profiler.anatomy import loop_phases, phases, tool_phase
from profiler.records import LoopRecord
from profiler.testing import ScriptedModel, call, provider_failure, run_virtual

MS = 1_000_000


@tool
async def wait(ms: int, label: str = "") -> str:
    await asyncio.sleep(ms / 1000)
    return f"{label}:{ms}"


def run(script, *, tools=(wait,), strategy=None, seconds=0.1, cancel_after=None, agents=1, **options):
    """(results or exceptions, records, model) of `agents` loops run at once."""
    records: list[LoopRecord] = []

    async def main(clock):
        models = [ScriptedModel(script, seconds=seconds) for _ in range(agents)]
        loops = [
            ToolLoop(m, tools=tools, strategy=strategy, clock=clock, sinks=[records.append], **options)
            for m in models
        ]
        tasks = [asyncio.create_task(loop.run("go", agent=f"a{i}")) for i, loop in enumerate(loops)]
        if cancel_after is not None:
            await asyncio.sleep(cancel_after)
            for task in tasks:
                task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True), models[0]

    results, model = run_virtual(main)
    return results, records, model


def three(*durations: int) -> list[Any]:
    return [[call("wait", ms=ms, label=str(i)) for i, ms in enumerate(durations)], "done"]


@pytest.mark.parametrize(
    ("strategy", "starts", "wall"),
    [
        (Sequential(), [0, 300, 400], 600),
        (Gathered(), [0, 0, 0], 300),
        (SemaphoreLimited(2), [0, 0, 100], 300),
        (SemaphoreLimited(1), [0, 300, 400], 600),
    ],
)
def test_strategy_decides_when_calls_start(strategy, starts, wall):
    (result,), _, _ = run(three(300, 100, 200), strategy=strategy)
    round_ = result.record.rounds[0]
    zero = round_.tools_started_ns
    assert [(c.started_ns - zero) // MS for c in round_.tool_calls] == starts
    assert [c.queued_ns - zero for c in round_.tool_calls] == [0, 0, 0]
    phase = tool_phase(round_)
    assert (phase.wall_ns // MS, phase.work_ns // MS, phase.critical_path_ns // MS) == (wall, 600, 300)
    assert phase.straggler_ratio == pytest.approx(1.5)


def test_semaphore_serves_all_agents_of_the_process():
    strategy = SemaphoreLimited(2)
    _, records, _ = run(three(100, 100), strategy=strategy, agents=2)
    ended = sorted(c.ended_ns // MS for r in records for c in r.tool_calls)
    assert ended == [200, 200, 300, 300]


def test_scope_agent_gives_each_agent_its_own():
    _, records, _ = run(three(100, 100), strategy=SemaphoreLimited(1, scope="agent"), agents=2)
    ended = sorted(c.ended_ns // MS for r in records for c in r.tool_calls)
    assert ended == [200, 200, 300, 300]


def test_results_follow_the_assistant_message_in_the_order_of_the_calls():
    script = three(300, 100)
    ids = [c.id for c in script[0]]
    (result,), _, model = run(script)
    assert result.text == "done"
    second = model.requests[1][0]
    assert second == [
        {"role": "user", "content": "go"},
        {"role": "assistant", "calls": ids},
        {"role": "tool", "id": ids[0], "content": "0:300", "error": False},
        {"role": "tool", "id": ids[1], "content": "1:100", "error": False},
    ]
    assert [r.index for r in result.record.rounds] == [0, 1]
    assert [c.id for c in result.record.rounds[0].tool_calls] == ids
    assert result.record.rounds[1].tool_calls == ()


def test_phases_partition_the_wall_time():
    (result,), _, _ = run(three(300, 100, 200), strategy=Sequential())
    record = result.record
    spent = {k: v / MS for k, v in phases(record.rounds[0]).items()}
    assert spent == {
        "model": 100,
        "server_tools": 0,
        "model_queue": 0,
        "backoff": 0,
        "parse": 0,
        "tools": 600,
        "queue": 0,
        "collect": 0,
        "unaccounted": 0,
    }
    assert sum(loop_phases(record).values()) == record.ended_ns - record.started_ns == 800 * MS


def test_queue_is_waiting_while_no_call_of_the_loop_runs():
    _, records, _ = run(three(100), strategy=SemaphoreLimited(1), agents=2)
    second = max(records, key=lambda r: r.ended_ns)
    spent = phases(second.rounds[0])
    assert (spent["queue"] // MS, spent["tools"] // MS) == (100, 100)


def test_max_rounds_are_followed_by_one_request_that_cannot_call_tools():
    script = [[call("wait", ms=1)], [call("wait", ms=1)], "out of rounds"]
    (result,), _, model = run(script, max_rounds=2)
    assert result.text == "out of rounds"
    assert [options.answer_only for _, _, options in model.requests] == [False, False, True]


def test_first_request_is_asked_as_by_a_loop_and_nothing_follows():
    records: list[LoopRecord] = []

    async def main(clock):
        model = ScriptedModel(three(300), seconds=0.1)
        loop = ToolLoop(
            model, [wait], clock=clock, sinks=[records.append], stream=True, tool_choice="required"
        )
        began = clock()
        reply = await loop.first_request("go")
        return reply, clock() - began, model

    reply, taken_ns, model = run_virtual(main)
    assert [one.name for one in reply.calls] == ["wait"]
    assert (taken_ns, records) == (100 * MS, [])
    ((messages, _, options),) = model.requests
    assert messages == [{"role": "user", "content": "go"}]
    assert (options.stream, options.tool_choice, options.answer_only) == (True, "required", False)


@tool
def broken() -> str:
    raise KeyError("no such key")


@tool
def leaves() -> str:
    raise SystemExit(3)


@tool
async def refused() -> str:
    request = httpx.Request("GET", "http://127.0.0.1/")
    raise httpx.HTTPStatusError("too many", request=request, response=httpx.Response(429))


@tool(timeout=0.05)
async def slow() -> str:
    await asyncio.sleep(10)
    return "never"


@tool
async def cancels_itself() -> str:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("bad", "status", "error_type"),
    [
        (call("broken"), "error", "KeyError"),
        (call("leaves"), "error", "SystemExit"),
        (call("refused"), "error", "http_429"),
        (call("slow"), "timeout", "timeout"),
        (call("cancels_itself"), "error", "CancelledError"),
        (call("nowhere"), "error", "unknown_tool"),
        (call("wait", ms="soon"), "error", "invalid_arguments"),
        (call("wait", ms=1, extra=2), "error", "invalid_arguments"),
        (call("wait").__class__("call_x", "wait", '{"ms": '), "error", "invalid_json"),
        (call("wait").__class__("call_x", "wait", '{"ms": 1}', truncated=True), "error", "truncated"),
    ],
)
@pytest.mark.parametrize("strategy", [Sequential(), Gathered(), SemaphoreLimited(1)])
def test_call_that_goes_wrong_stays_inside_the_loop(bad, status, error_type, strategy):
    script = [[bad, call("wait", ms=100)], "done"]
    tools = (wait, broken, leaves, refused, slow, cancels_itself)
    (result,), _, model = run(script, tools=tools, strategy=strategy)
    first, second = result.record.rounds[0].tool_calls
    assert (first.status, first.error_type) == (status, error_type)
    assert (second.status, second.ended_ns - second.started_ns) == ("ok", 100 * MS)
    sent = model.requests[1][0][2]
    assert sent["error"] is True
    assert sent["content"].startswith("Error: ")
    assert result.text == "done"


def test_timeout_counts_from_the_start_of_execution():
    script = [[call("wait", ms=200), call("slow")], "done"]
    (result,), _, _ = run(script, tools=(wait, slow), strategy=Sequential())
    timed_out = result.record.rounds[0].tool_calls[1]
    assert timed_out.started_ns - timed_out.queued_ns == 200 * MS
    assert timed_out.ended_ns - timed_out.started_ns == 50 * MS


@pytest.mark.parametrize("strategy", [Sequential(), Gathered(), SemaphoreLimited(1)])
def test_cancelled_loop_cancels_its_tools_and_leaves_a_record(strategy):
    (result,), (record,), _ = run(three(300, 300), strategy=strategy, cancel_after=0.25)
    assert isinstance(result, asyncio.CancelledError)
    assert (record.status, record.error_type) == ("cancelled", "cancelled")
    assert record.ended_ns == 250 * MS
    calls = record.rounds[0].tool_calls
    assert [c.status for c in calls] == ["cancelled", "cancelled"]
    assert [c.ended_ns for c in calls] == [250 * MS, 250 * MS]


def test_provider_error_ends_the_loop_with_a_complete_record():
    script = [[call("wait", ms=100)], provider_failure("http_429", 429)]
    (error,), (record,), _ = run(script)
    assert isinstance(error, ProviderError)
    assert (error.provider, error.status, error.record) == ("scripted", 429, record)
    assert (record.status, record.error_type, len(record.rounds)) == ("error", "http_429", 2)
    assert (record.rounds[1].model.status, record.rounds[1].model.error_type) == ("error", "http_429")
    assert record.rounds[0].tool_calls[0].status == "ok"


def test_content_is_recorded_only_when_asked_for():
    script = three(1)
    (result,), _, _ = run(script)
    recorded = result.record.rounds[0].tool_calls[0]
    assert (recorded.arguments, recorded.result, result.record.prompt, result.record.text) == (None,) * 4
    (result,), _, _ = run(three(1), record_content=True)
    recorded = result.record.rounds[0].tool_calls[0]
    assert (recorded.arguments, recorded.result) == ('{"ms": 1, "label": "0"}', "0:1")
    assert (result.record.prompt, result.record.text) == ("go", "done")


def test_sync_tools_run_in_threads_and_see_the_callers_context():
    main_thread = threading.get_ident()

    @tool
    def where() -> dict[str, Any]:
        from profiler.loop.tools import current_call

        return {"same": threading.get_ident() == main_thread, "call": current_call.get().call_id}

    wanted = call("where")
    (_,), _, model = run([[wanted], "done"], tools=(where,))
    assert model.requests[1][0][2]["content"] == f'{{"same":false,"call":"{wanted.id}"}}'


def test_sink_that_fails_never_reaches_the_loop(caplog):
    def bad_sink(record: LoopRecord) -> None:
        raise ValueError("no room")

    async def main(clock):
        loop = ToolLoop(ScriptedModel(["hi"]), clock=clock, sinks=[bad_sink])
        await loop.run("go")
        assert loop.recorder.flush(timeout=60)
        return loop.recorder.dropped

    assert run_virtual(main) == 1
    assert "a sink failed" in caplog.text


def test_sink_that_blocks_keeps_no_loop_waiting():
    let_go, got = threading.Event(), []

    def blocks(record: LoopRecord) -> None:
        assert let_go.wait(60)
        got.append(record.status)

    async def main(clock):
        loop = ToolLoop(ScriptedModel(["hi", "hi"]), clock=clock, sinks=[blocks])
        await asyncio.gather(loop.run("go"), loop.run("go"))
        assert got == []
        let_go.set()
        assert loop.recorder.flush(60)

    run_virtual(main)
    assert got == ["ok", "ok"]


def test_wrong_options_are_refused_at_once():
    with pytest.raises(UsageError, match="max_rounds must be at least 1, not 0"):
        ToolLoop(ScriptedModel([]), max_rounds=0)
    with pytest.raises(
        UsageError, match="tool_choice 'nowhere': expected auto, none, required or one of: wait"
    ):
        ToolLoop(ScriptedModel([]), tools=[wait], tool_choice="nowhere")
    with pytest.raises(UsageError, match="two tools are named 'wait'"):
        ToolLoop(ScriptedModel([]), tools=[wait, wait])
