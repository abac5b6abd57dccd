"""TraceLab's rows become loops: one test for each thing that is easily taken for another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.tracelab_rows import rows as generated
from profiler.recordings.sessions import NO_VERDICT
from profiler.recordings.tracelab import NO_ROW, NO_TIME, UNLINKED, TraceLab
from tests.unit.recordings_data import jsonl, read, records

MS = 1_000_000
ZERO_NS = 1_767_225_600_000 * MS  # 2026-01-01T00:00:00Z


def at(ms):
    minutes, rest = divmod(ms, 60_000)
    return f"2026-01-01T00:{minutes:02}:{rest // 1000:02}.{rest % 1000:03}Z"


def event(kind, ms):
    return {"event_type": kind, "timestamp": at(ms)}


def tool(id_, asked, result, own=None, name="Bash", error=False):
    return {
        "tool_name": name,
        "tool_call_id": id_,
        "emitted_at": at(asked),
        "result_at": None if result is None else at(result),
        "tool_internal_latency_ms": own,
        "is_error": error,
    }


def row(index, inputs, outputs, tools=(), *, session="s", provider="claude"):
    return {
        "provider": provider,
        "project": "p",
        "session_id": session,
        "round_index": index,
        "round_id": "same",
        "trace_key": "same",
        "model": "m",
        "input_tokens_total": 900,
        "prefix_tokens": 800,
        "newly_append_tokens": 100,
        "output_tokens": 50,
        "timing_events": [event(kind, ms) for kind, ms in inputs] + [event("text", ms) for ms in outputs],
        "tools": list(tools),
        "first_input_event_type": inputs[0][0],
    }


def of(rows):
    found = read(TraceLab(), jsonl(rows))
    return found, records(found.drafts, ZERO_NS)


def ms(*times):
    return [None if time is None else time / MS for time in times]


def simple():
    return [
        row(0, [("user_message", 0)], [1000], [tool("c1", 900, 2000, 800), tool("c2", 950, 1500)]),
        row(1, [("tool_result", 1500), ("tool_result", 2000)], [3000]),
        row(2, [("user_message", 60_000)], [61_000]),
    ]


def test_rows_become_rounds_and_users_messages_begin_loops():
    found, (loop, other) = of(simple())
    first, second = loop.rounds
    assert [ms(one.started_ns, one.ended_ns) for one in (loop, other)] == [[0, 3000], [60_000, 61_000]]
    assert ms(first.model.started_ns, first.model.ended_ns, second.model.started_ns) == [0, 1000, 2000]
    assert (first.model.input_tokens, first.model.cached_tokens, first.model.output_tokens) == (900, 800, 50)
    one, two = loop.tool_calls
    assert ms(one.ready_ns, one.started_ns, one.ended_ns, one.latency_ns) == [900, 1200, 2000, 800]
    assert (two.upper_bound, two.latency_ns, *ms(two.duration_ns)) == (True, None, 550)
    assert (loop.provider, loop.model, loop.source, loop.status) == ("anthropic", "m", "tracelab", "ok")
    assert not found.skipped
    assert not found.notes


def test_the_same_ids_of_other_rounds_are_no_repeats_and_true_repeats_are():
    rows = simple()
    rows[1]["round_index"] = 0
    _, loops = of([*rows, dict(rows[0]), dict(rows[2], round_id="other")])
    assert [len(loop.rounds) for loop in loops] == [2, 1]


def test_rounds_are_in_the_order_of_their_submission():
    rows = simple()
    rows[0]["round_index"], rows[1]["round_index"] = 7, 3
    _, loops = of(rows)
    assert [call.id for call in loops[0].rounds[0].tool_calls] == ["c1", "c2"]
    tie = [row(1, [("user_message", 0)], [500], [tool("b", 400, 450)]), row(0, [("user_message", 0)], [400])]
    _, loops = of(tie)
    assert [len(list(loop.tool_calls)) for loop in loops] == [0, 1]


def test_a_turn_of_codex_begins_a_loop():
    rows = simple()
    for one, turn in zip(rows, ("t1", "t2", "t2"), strict=True):
        one |= {"provider": "codex", "turn_id": turn, "first_input_event_type": "tool_result"}
    _, loops = of(rows)
    assert [len(loop.rounds) for loop in loops] == [1, 2]
    assert loops[0].provider == "openai"


def test_results_of_codex_that_were_written_together_are_placed_late():
    tools = [tool("c1", 900, 5000, 4000, "exec_command"), tool("c2", 950, 5002, 300, "exec_command")]
    rows = [
        row(0, [("user_message", 0)], [1000], tools, provider="codex"),
        row(1, [("tool_result", 5002)], [6000]),
    ]
    _, (loop,) = of(rows)
    assert ["ended_ns" in call.derived for call in loop.tool_calls] == [False, True]
    rows[0]["provider"] = "claude"
    _, (loop,) = of(rows)
    assert ["ended_ns" in call.derived for call in loop.tool_calls] == [False, False]


def test_a_call_that_never_returned_has_no_duration_and_breaks_the_loop_off():
    found, (loop,) = of([row(0, [("user_message", 0)], [1000], [tool("c1", 900, None, error=None)])])
    (call,) = loop.tool_calls
    assert (call.status, call.ended, call.duration_ns, loop.status) == ("cancelled", False, None, "cancelled")
    assert not found.notes


def test_calls_that_nothing_is_said_of_went_well_and_are_counted():
    rows = simple()
    rows[0]["tools"][0]["is_error"] = None
    rows[0]["tools"][1]["is_error"] = True
    found, (loop, _) = of(rows)
    assert [call.status for call in loop.tool_calls] == ["ok", "error"]
    assert found.notes == {NO_VERDICT: 1}


def test_waits_are_no_latencies():
    rows = simple()
    rows[0]["tools"][0]["tool_name"] = "write_stdin"
    rows[0]["tools"][1] |= {"tool_name": "wait_agent", "tool_internal_latency_ms": 500}
    _, (loop, _) = of(rows)
    assert [(call.wait, call.latency_ns) for call in loop.tool_calls] == [(True, None), (True, None)]
    assert ms(*(call.duration_ns for call in loop.tool_calls)) == [800, 500]


def test_sub_agents_stand_beside_and_it_is_said():
    rows = simple()
    rows[0]["tools"][0]["tool_name"] = "Agent"
    inner = row(0, [("user_message", 1250)], [1900], session="sub")
    found, loops = of([*rows, inner])
    assert [loop.parent for loop in loops] == [None] * 3
    assert found.notes == {UNLINKED: 1}


def test_a_message_typed_during_a_reply_is_no_input_of_it():
    rows = simple()
    rows[0]["timing_events"].append(event("user_message", 990))
    rows[0]["timing_events"].insert(1, event("reasoning", 500))
    _, (loop, _) = of(rows)
    assert ms(loop.rounds[0].model.started_ns) == [0]


def test_a_message_typed_before_the_last_answer_overlaps_no_loop():
    rows = simple()
    rows[2] = row(2, [("user_message", 2500), ("user_message", 9000)], [10_000])
    _, (loop, other) = of(rows)
    assert ms(loop.ended_ns, other.started_ns) == [3000, 3000]
    assert ms(other.rounds[0].model.started_ns) == [9000]


def test_a_message_long_before_the_one_that_was_answered_begins_no_loop():
    rows = simple()
    rows[2] = row(2, [("user_message", n) for n in (20_000, 590_000, 600_000)], [601_000])
    _, (_, other) = of(rows)
    assert ms(other.started_ns, other.rounds[0].model.started_ns) == [590_000, 600_000]


def test_a_session_that_begins_in_the_middle_is_a_loop():
    _, loops = of(simple()[1:])
    assert [ms(loop.started_ns) for loop in loops] == [[2000], [60_000]]
    assert loops[0].derived == ("started_ns", "ended_ns")


def test_rows_of_which_nothing_can_be_told_are_counted():
    empty = row(0, [("user_message", 0)], []) | {"timing_events": [], "tools": []}
    found, loops = of([{"a": 1}, empty, *simple()])
    assert found.skipped == {NO_ROW: 1, NO_TIME: 1}
    assert len(loops) == 2


def test_generated_rows_are_read_without_a_loss():
    data = list(generated(3000, seed=3))
    assert data == list(generated(3000, seed=3))
    found = read(TraceLab(), b"".join(data))
    assert not found.skipped
    assert sum(len(draft.rounds) for draft in found.drafts) == 3000
    assert TraceLab().recognises(data[0], "x")


@given(st.randoms(use_true_random=False))
def test_the_order_of_the_rows_is_of_no_account(draw):
    rows = [*simple(), *(row(n, [("user_message", n * 700)], [n * 700 + 300], session="t") for n in range(4))]
    shuffled = list(rows)
    draw.shuffle(shuffled)
    assert of(shuffled)[1] == of(rows)[1]
