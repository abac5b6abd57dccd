"""Records: the JSON codec and its file, and the anatomy computed from them."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.anatomy import loop_phases, overlap, peak, phases, tool_phase, union
from profiler.errors import RecordError
from profiler.records import (
    Attempt,
    LoopRecord,
    ModelCall,
    RemoteCall,
    RoundRecord,
    ToolCall,
    decode,
    encode,
    read,
    shifted,
)

times = st.integers(0, 10**15)
texts = st.text(max_size=20)


def optional(strategy):
    return st.none() | strategy


attempts = st.builds(
    Attempt,
    started_ns=times,
    ended_ns=times,
    status=optional(st.integers(100, 599)),
    error_type=optional(texts),
    request_id=optional(texts),
    connected_ns=optional(times),
    sent_ns=optional(times),
    first_byte_ns=optional(times),
    retry_after_ns=optional(times),
    rate_limits=optional(st.dictionaries(texts, texts, max_size=3)),
)
model_calls = st.builds(
    ModelCall,
    provider=texts,
    model=texts,
    started_ns=times,
    ended_ns=times,
    status=st.sampled_from(["ok", "error", "cancelled"]),
    input_tokens=optional(st.integers(0, 10**6)),
    attempts=st.lists(attempts, max_size=3).map(tuple),
)
remote_calls = st.builds(
    RemoteCall,
    server=texts,
    transport=st.sampled_from(["http", "stdio", "memory"]),
    protocol=optional(texts),
    posted_ns=optional(times),
    answered_ns=optional(times),
    server_ns=optional(times),
    session_wait_ns=times,
    reply=st.sampled_from([None, "json", "sse"]),
    http_status=optional(st.integers(100, 599)),
    new_connection=optional(st.booleans()),
)
tool_calls = st.builds(
    ToolCall,
    id=texts,
    name=texts,
    ready_ns=times,
    queued_ns=times,
    started_ns=optional(times),
    ended_ns=times,
    status=st.sampled_from(["ok", "error", "timeout", "cancelled"]),
    error_type=optional(texts),
    thread_wait_ns=times,
    arguments=optional(texts),
    result=optional(texts),
    remote=optional(remote_calls),
)
rounds = st.builds(
    RoundRecord,
    index=st.integers(0, 9),
    started_ns=times,
    ended_ns=times,
    model=model_calls,
    tool_calls=st.lists(tool_calls, max_size=4).map(tuple),
)
loops = st.builds(
    LoopRecord,
    id=texts,
    strategy=texts,
    provider=texts,
    model=texts,
    started_ns=times,
    ended_ns=times,
    status=st.sampled_from(["ok", "error", "cancelled"]),
    rounds=st.lists(rounds, max_size=3).map(tuple),
    number=optional(st.integers(0, 10**9)),
    trial=optional(st.integers(0, 99)),
)


@given(loops)
def test_record_survives_its_codec(record):
    assert decode(encode(record)) == record


def sample(**changes) -> LoopRecord:
    model = ModelCall("openai", "gpt-4o", 0, 100)
    calls = (ToolCall("c1", "a", 100, 110, 110, 300), ToolCall("c2", "b", 100, 110, 150, 250))
    first = RoundRecord(0, 0, 310, model, 110, 300, calls)
    last = RoundRecord(1, 320, 400, replace(model, started_ns=320, ended_ns=395))
    record = LoopRecord("x", "gathered", "openai", "gpt-4o", 0, 400, "ok", (first, last))
    return replace(record, **changes)


def test_json_form_is_the_documented_one():
    data = json.loads(encode(sample(number=7, trial=2)))
    assert (data["schema"], data["number"], data["trial"], data["status"]) == (2, 7, 2, "ok")
    assert data["rounds"][0]["tool_calls"][1] == {
        "id": "c2",
        "name": "b",
        "ready_ns": 100,
        "queued_ns": 110,
        "started_ns": 150,
        "ended_ns": 250,
        "status": "ok",
        "error_type": None,
        "thread_wait_ns": 0,
        "blocking_ns": 0,
        "arguments": None,
        "result": None,
        "attempts": [],
        "sending_ns": 0,
        "late_ns": 0,
        "nested": False,
        "loops": [],
        "remote": None,
        "derived": [],
        "unknown": [],
        "upper_bound": False,
        "wait": False,
    }


def test_records_are_taken_where_dataclasses_are():
    """By sinks and notebooks that were written when they were some."""
    record = sample(number=7)
    assert dataclasses.is_dataclass(record)
    assert [one.name for one in dataclasses.fields(LoopRecord)] == [*json.loads(encode(record))]
    as_dict = dataclasses.asdict(record)
    assert (as_dict["number"], as_dict["rounds"][0]["tool_calls"][1]["name"]) == (7, "b")
    changed = dataclasses.replace(record, number=8)
    assert (changed.number, record.number, changed.rounds is record.rounds) == (8, 7, True)
    assert orjson.dumps(record) == encode(record)
    assert pickle.loads(pickle.dumps(record)) == copy.deepcopy(record) == record


def test_records_do_not_change():
    with pytest.raises(AttributeError):
        sample().number = 8
    assert hash(sample()) == hash(sample())
    assert repr(Attempt(1, 2)).startswith("Attempt(started_ns=1, ended_ns=2, status=None, ")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (b"", "Input data was truncated"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"id":"x"}', "Object missing required field `strategy`"),
        ((b'"started_ns":320', b'"started_ns":"320"'), "rounds.1.started_ns: Expected `int`, got `str`"),
        ((b'"started_ns":320', b'"started_ns":320.0'), "rounds.1.started_ns: Expected `int`, got `float`"),
        ((b'"started_ns":320', b'"started_ns":%d' % (2**62 + 1)), "rounds.1.started_ns: Expected `int` <= "),
        ((b'"started_ns":320', b'"started_ns":%d' % 10**30), "rounds.1.started_ns: "),
        ((b'"started_ns":320', b'"started_ns":true'), "rounds.1.started_ns: Expected `int`, got `bool`"),
        ((b'"status":"ok"', b'"status":"fine"'), "status: Invalid enum value 'fine'"),
        ((b'"gpt-4o"', b'"\xff"'), "Invalid UTF-8"),
        (b"[" * 100_000, "Expected `object`, got `array`"),
        (b'{"id":' * 100_000, ""),
    ],
)
def test_what_is_no_record_is_refused_with_its_place(change, problem):
    line = change if isinstance(change, bytes) else encode(sample()).replace(*change)
    with pytest.raises(RecordError) as raised:
        decode(line)
    said = str(raised.value)
    assert said.startswith(f"not a loop record: {problem}")
    assert "\n" not in said


@pytest.mark.parametrize("change", [{"id": "half \ud83d"}, {"name": object()}, {"text": "\udc00"}])
def test_what_json_cannot_hold_is_no_record_to_write(change):
    with pytest.raises(RecordError) as raised:
        encode(sample(**change))
    assert str(raised.value).startswith("a loop record that cannot be written: ")
    assert "half" not in str(raised.value)


def test_largest_numbers_are_read():
    line = encode(sample()).replace(b'"started_ns":320', b'"started_ns":%d' % 2**62)
    assert decode(line).rounds[1].started_ns == 2**62


def test_keys_of_a_later_minor_version_are_ignored_a_later_schema_is_not():
    data = json.loads(encode(sample()))
    data["novel"] = 1
    data["rounds"][0]["novel"] = 1
    assert decode(json.dumps(data)) == sample()
    data["schema"] = 3
    with pytest.raises(RecordError, match="schema 3, but this version reads up to 2"):
        decode(json.dumps(data))


def test_a_record_of_the_first_schema_opens_with_its_new_fields_unknown():
    data = json.loads(encode(sample()))
    data["schema"] = 1
    for round_ in data["rounds"]:
        for name in ("first_output_ns", "cached_tokens", "cache_written_tokens", "reasoning_tokens"):
            del round_["model"][name]
        del round_["model"]["server_tools"], round_["model"]["unreadable"]
        round_["model"]["input_tokens"] = 900
    opened = decode(json.dumps(data))
    model = opened.rounds[0].model
    assert (opened.schema, model.input_tokens, model.cached_tokens) == (1, 900, None)
    assert (model.uncached_tokens, model.server_tools, model.unreadable) == (900, (), 0)


@pytest.mark.parametrize(
    ("provider", "uncached", "limited"), [("anthropic", 12, 20_012), ("openai", 12, 50_012)]
)
def test_cached_tokens_are_part_of_the_input(provider: str, uncached: int, limited: int):
    model = ModelCall(
        provider,
        "m",
        0,
        1,
        input_tokens=50_012,
        cached_tokens=30_000,
        cache_written_tokens=20_000,
        output_tokens=9,
    )
    assert (model.uncached_tokens, model.limited_input_tokens, model.total_tokens) == (
        uncached,
        limited,
        50_021,
    )
    unknown = ModelCall(provider, "m", 0, 1)
    assert (unknown.uncached_tokens, unknown.limited_input_tokens, unknown.total_tokens) == (None, None, None)


def test_read_leaves_out_a_torn_last_line(tmp_path):
    path = tmp_path / "records.jsonl"
    whole = encode(sample())
    path.write_bytes(whole + b"\n" + whole + b"\n" + whole[:50])
    assert list(read(path)) == [sample(), sample()]


def test_read_names_the_line_that_is_broken(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(encode(sample()) + b"\n{}\n" + encode(sample()) + b"\n")
    with pytest.raises(RecordError, match=r"records.jsonl:2: not a loop record"):
        list(read(path))
    with pytest.raises(RecordError, match="cannot read records: No such file"):
        list(read(tmp_path / "none.jsonl"))


def test_phases_of_a_round():
    first, last = sample().rounds
    assert phases(first) == {
        "model": 100,
        "server_tools": 0,
        "model_queue": 0,
        "backoff": 0,
        "parse": 10,
        "tools": 190,
        "queue": 0,
        "collect": 10,
        "unaccounted": 0,
    }
    assert phases(last)["unaccounted"] == 5
    assert loop_phases(sample())["unaccounted"] == 15
    assert sum(loop_phases(sample()).values()) == 400


def test_backoff_lies_between_attempts_inside_the_model_request():
    attempts_ = (Attempt(320, 330, 429), Attempt(350, 355, 503), Attempt(370, 395, 200))
    round_ = replace(sample().rounds[1], model=ModelCall("p", "m", 320, 395, attempts=attempts_))
    spent = phases(round_)
    assert (spent["backoff"], spent["model"]) == (35, 40)


def test_limiter_wait_of_a_model_request_is_not_the_model_s():
    """40 before the first attempt; what it waited between attempts is backoff."""
    attempts_ = (Attempt(365, 370, 429), Attempt(380, 395, 200))
    model = ModelCall("p", "m", 320, 395, attempts=attempts_, limiter_wait_ns=40)
    round_ = replace(sample().rounds[1], model=model)
    spent = phases(round_)
    assert (spent["model_queue"], spent["backoff"], spent["model"]) == (40, 10, 25)
    refused = replace(round_, model=replace(model, attempts=(), limiter_wait_ns=90))
    assert (phases(refused)["model_queue"], phases(refused)["model"]) == (75, 0)
    overlapping = replace(sample(), rounds=(round_, replace(round_, index=1)), started_ns=320, ended_ns=400)
    assert loop_phases(overlapping) == loop_phases(replace(overlapping, rounds=(round_,)))


def test_eager_call_gives_way_to_the_model():
    calls = (ToolCall("c1", "a", 50, 50, 50, 180),)
    round_ = RoundRecord(0, 0, 200, ModelCall("p", "m", 0, 100), 100, 180, calls)
    assert phases(round_) == {
        "model": 100,
        "server_tools": 0,
        "model_queue": 0,
        "backoff": 0,
        "parse": 0,
        "tools": 80,
        "queue": 0,
        "collect": 20,
        "unaccounted": 0,
    }
    assert tool_phase(round_).wall_ns == 130


def test_calls_that_never_started_count_as_queued():
    calls = (
        ToolCall("c1", "a", 100, 110, 110, 200, "cancelled", "cancelled"),
        ToolCall("c2", "a", 100, 110, None, 250, "cancelled", "cancelled"),
    )
    round_ = RoundRecord(0, 0, 250, ModelCall("p", "m", 0, 100), 110, 250, calls)
    spent = phases(round_)
    assert (spent["tools"], spent["queue"]) == (90, 50)
    assert tool_phase(round_).work_ns == 90


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=6),
)
def test_phases_partition_any_round(raw):
    model_end = 50
    calls = tuple(
        ToolCall(str(i), "t", model_end, 60 + q, 60 + q + w, 60 + q + w + d)
        for i, (q, w, d) in enumerate(raw)
    )
    tools_end = max(c.ended_ns for c in calls)
    round_ = RoundRecord(0, 0, tools_end + 7, ModelCall("p", "m", 2, model_end), 60, tools_end, calls)
    spent = phases(round_)
    assert sum(spent.values()) == tools_end + 7
    assert all(value >= 0 for value in spent.values())
    instants = range(60, tools_end)
    running = [t for t in instants if any(c.started_ns <= t < c.ended_ns for c in calls)]
    queued = [t for t in instants if any(c.queued_ns <= t < c.started_ns for c in calls)]
    assert spent["tools"] == len(running)
    assert spent["queue"] == len(set(queued) - set(running))
    most = max(sum(c.started_ns <= t < c.ended_ns for c in calls) for t in (*instants, 0))
    assert peak((c.started_ns, c.ended_ns) for c in calls if c.ended_ns > c.started_ns) == most


def test_interval_arithmetic():
    merged = union([(5, 9), (0, 3), (3, 4), (8, 12), (20, 20)])
    assert merged == [(0, 4), (5, 12)]
    assert overlap(merged, (2, 6)) == 3
    assert peak([(0, 5), (5, 9), (2, 6)]) == 2


@pytest.mark.parametrize(
    ("status", "tries", "heard"),
    [
        ("ok", (), True),
        ("error", (None, 500), True),
        ("error", (None, None), False),
        ("cancelled", (None,), False),
        ("error", (), None),  # nobody saw what came
    ],
)
def test_request_was_heard_if_anything_came_back(status, tries, heard):
    attempts = tuple(Attempt(0, 1, status=code) for code in tries)
    call = ModelCall("openai", "m", 0, 1, status=status, error_type="timeout", attempts=attempts)
    assert call.heard is heard


REMOTE = RemoteCall(
    "search", "http", posted_ns=130, answered_ns=190, server_ns=40, session_wait_ns=20, reply="json"
)


def of_server(remote: RemoteCall, started_ns: int | None = 100, ended_ns: int = 200) -> ToolCall:
    return ToolCall("c", "find", 90, 95, started_ns, ended_ns, remote=remote)


def test_the_parts_of_a_call_of_an_mcp_server_sum_to_its_duration() -> None:
    call = of_server(REMOTE)
    assert call.server == "search"
    assert (call.client_wait_ns, call.remote_ns, call.network_ns, call.parsing_ns) == (10, 60, 20, 10)
    assert call.duration_ns == 20 + 10 + 60 + 10


def test_a_call_that_was_never_sent_waited_in_the_client_until_its_end() -> None:
    call = of_server(replace(REMOTE, posted_ns=None, answered_ns=None, server_ns=None))
    assert (call.client_wait_ns, call.remote_ns, call.network_ns, call.parsing_ns) == (80, None, None, None)


def test_a_call_without_an_answer_was_at_the_server_until_its_end() -> None:
    call = of_server(replace(REMOTE, answered_ns=None, server_ns=None))
    assert (call.client_wait_ns, call.remote_ns, call.network_ns, call.parsing_ns) == (10, 70, None, None)


def test_a_record_moves_to_another_clock_with_its_calls_of_mcp_servers() -> None:
    record = sample()
    first = record.rounds[0]
    moved = shifted(replace(record, rounds=(replace(first, tool_calls=(of_server(REMOTE),)),)), 1000)
    assert moved.rounds[0].tool_calls[0] == replace(
        of_server(replace(REMOTE, posted_ns=1130, answered_ns=1190), 1100, 1200),
        ready_ns=1090,
        queued_ns=1095,
    )
