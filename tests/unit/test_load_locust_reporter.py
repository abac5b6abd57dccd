"""What Locust is told of a record, and the way of records out of the loop's thread."""

from typing import Any

from profiler.load.output import Reported, Reporter, reported
from profiler.records import NO_MODEL, LoopRecord, ModelCall, RoundRecord, ToolCall, decode

MS = 1_000_000


def record(**changes: Any) -> LoopRecord:
    calls = (
        ToolCall("c1", "get_weather", 10 * MS, 11 * MS, 12 * MS, 42 * MS),
        ToolCall(
            "c2", "get_weather", 10 * MS, 11 * MS, 13 * MS, 20 * MS, status="error", error_type="ValueError"
        ),
        ToolCall(
            "c3", "x" * 500, 10 * MS, 11 * MS, None, 31 * MS, status="cancelled", error_type="cancelled"
        ),
        ToolCall("c4", "made up", 10 * MS, 11 * MS, None, 11 * MS, status="error", error_type="unknown_tool"),
    )
    fields: dict[str, Any] = {
        "id": "1",
        "strategy": "gathered",
        "provider": "openai",
        "model": "gpt-4o",
        "started_ns": 0,
        "ended_ns": 60 * MS,
        "status": "ok",
        "rounds": (
            RoundRecord(0, 0, 45 * MS, ModelCall("openai", "gpt-4o", 0, 10 * MS), 11 * MS, 42 * MS, calls),
            RoundRecord(1, 45 * MS, 60 * MS, ModelCall("openai", "gpt-4o", 45 * MS, 60 * MS)),
        ),
    }
    return LoopRecord(**{**fields, **changes})


def test_loop_becomes_a_row_of_each_kind_with_the_strategy_in_its_name() -> None:
    assert list(reported(record())) == [
        Reported("LOOP", "gathered", 60.0, "incomplete"),
        Reported("ROUND", "gathered · round 1", 45.0, None),
        Reported("MODEL", "gathered · gpt-4o", 10.0, None),
        Reported("TOOL", "gathered · get_weather", 30.0, None),
        Reported("TOOL", "gathered · get_weather", 7.0, "ValueError"),
        Reported("TOOL", "gathered · " + "x" * 60, 20.0, "cancelled"),
        Reported("TOOL", "gathered · unknown tool", 0.0, "unknown_tool"),
        Reported("ROUND", "gathered · round 2", 15.0, None),
        Reported("MODEL", "gathered · gpt-4o", 15.0, None),
    ]


def test_failures_are_reported_by_their_bounded_name() -> None:
    model = ModelCall("openai", "gpt-4o", 0, 5 * MS, status="error", error_type="http_429")
    failed = record(
        status="error", error_type="http_429", rounds=(RoundRecord(0, 0, 6 * MS, model, status="error"),)
    )
    assert [row.exception for row in reported(failed)] == ["http_429"] * 3
    cut = record(status="cancelled", error_type=None, rounds=())
    assert [row.exception for row in reported(cut)] == ["cancelled"]


def test_flushing_reports_every_record_once_and_hands_over_whole_lines() -> None:
    told: list[Reported] = []
    written: list[tuple[bytes, int]] = []
    reporter = Reporter(told.extend, lambda lines, count: written.append((lines, count)))
    records = [record(id=str(n)) for n in range(3)]
    for one in records:
        reporter.sink(one)
    assert told == []  # nothing happens on the loop's thread
    reporter.flush()
    reporter.flush()
    assert [row.request_type for row in told].count("LOOP") == 3
    assert [row.name for row in told if row.request_type == "TOOL"].count("gathered · get_weather") == 6
    assert len(written) == 1
    lines, count = written[0]
    assert count == 3
    assert lines.endswith(b"\n")
    assert [decode(line) for line in lines.splitlines()] == records


def test_call_without_a_model_is_one_event_from_when_it_was_due() -> None:
    call = ToolCall("c1", "search", 140 * MS, 140 * MS, 140 * MS, 180 * MS)
    model = ModelCall(NO_MODEL, "", 140 * MS, 140 * MS)
    made = record(
        provider=NO_MODEL,
        model="",
        started_ns=140 * MS,
        ended_ns=180 * MS,
        intended_ns=100 * MS,
        rounds=(RoundRecord(0, 140 * MS, 180 * MS, model, 140 * MS, 180 * MS, (call,)),),
    )
    assert list(reported(made)) == [Reported("CALL", "search", 80.0, made.failure)]
