"""Sessions of Codex become loops: one test for each thing that is easily taken for another."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.recordings.codex import Codex
from profiler.recordings.codex_loops import END_ALONE, NO_ITEMS, NO_REPLY, REPLAYED, ROUNDED
from profiler.recordings.formats import Item, Source
from profiler.recordings.reading import TORN
from profiler.recordings.sessions import NO_VERDICT, UNLINKED
from tests.unit.recordings_data import jsonl, read, records

MS = 1_000_000
ZERO_NS = 1_767_225_600_000 * MS  # 2026-01-01T00:00:00Z
THREAD = "01b00000-0000-7000-8000-000000000001"
CHILD = "01b00000-0000-7000-8000-000000000002"


def at(ms):
    minutes, rest = divmod(ms, 60_000)
    return f"2026-01-01T00:{minutes:02}:{rest // 1000:02}.{rest % 1000:03}Z"


def made_at(ms):
    """A UUID of version 7 of that time."""
    digits = f"{ZERO_NS // MS + ms:012x}"
    return f"{digits[:8]}-{digits[8:]}-7000-8000-000000000001"


class Rollout:
    """Lines of a thread. Totals of tokens grow as they do there."""

    def __init__(self, thread=THREAD, **meta):
        self.rows = []
        self._total = 0
        meta = {"source": "cli"} | meta
        self.line(0, "session_meta", id=thread, timestamp=at(0), model_provider="openai", **meta)

    def line(self, ms, kind, /, **payload):
        self.rows.append({"timestamp": at(ms), "type": kind, "payload": payload})
        return self

    def event(self, ms, type_, /, **more):
        return self.line(ms, "event_msg", type=type_, **more)

    def item(self, ms, type_, **more):
        return self.line(ms, "response_item", type=type_, **more)

    def start(self, ms, turn="t1", words="go"):
        self.event(ms, "task_started", turn_id=turn)
        self.line(ms, "turn_context", turn_id=turn, model="gpt-test")
        return self.user(ms + 1, words)

    def user(self, ms, words="go"):
        self.item(ms, "message", role="user", content=[{"type": "input_text", "text": words}])
        return self.event(ms, "user_message", message=words)

    def say(self, ms, words="so"):
        return self.item(ms, "message", role="assistant", content=[{"type": "output_text", "text": words}])

    def call(self, ms, id_, name="exec_command", **more):
        return self.item(ms, "function_call", name=name, call_id=id_, arguments="{}", **more)

    def back(self, ms, id_, output):
        return self.item(ms, "function_call_output", call_id=id_, output=output)

    def tokens(self, ms, used=100, again=False):
        self._total += 0 if again else used
        usage = {
            "input_tokens": used,
            "cached_input_tokens": 60,
            "output_tokens": 7,
            "reasoning_output_tokens": 3,
        }
        info = {
            "total_token_usage": {"input_tokens": self._total, "total_tokens": self._total},
            "last_token_usage": usage,
        }
        return self.event(ms, "token_count", info=info, rate_limits=None)

    def record(self, ms, used=100, reply="resp_1"):
        """The tokens of one reply, as newer versions write them before they show the count."""
        usage = {"input_tokens": used, "cached_input_tokens": 60, "output_tokens": 7}
        usage |= {"cache_write_input_tokens": 20, "reasoning_output_tokens": 3}
        return self.line(ms, "token_usage_record", turn_id="t1", response_id=reply, usage=usage)

    def item_done(self, ms, kind, id_, began=None, ended=None, **more):
        times = {"started_at_ms": began, "completed_at_ms": ended}
        times = {name: ZERO_NS // MS + time for name, time in times.items() if time is not None}
        return self.event(ms, "item_completed", turn_id="t1", item={"type": kind, "id": id_, **more}, **times)

    def end(self, ms, turn="t1", **more):
        return self.event(ms, "task_complete", turn_id=turn, last_agent_message="so", **more)


def wall(seconds, code=0):
    return f"Chunk ID: 1\nWall time: {seconds:.4f} seconds\nProcess exited with code {code}\nOutput:\nx"


def of(*rollouts, content=False, names=()):
    found = read(Codex(), *(jsonl(one.rows) for one in rollouts), content=content, names=names)
    return found, records(found.drafts, ZERO_NS)


def ms(*times):
    return [None if time is None else time / MS for time in times]


def two_rounds():
    run = Rollout().start(100).item(2000, "reasoning", summary=[]).call(3000, "c1").tokens(3100)
    return run.back(4000, "c1", wall(0.9)).say(6000).tokens(6100, 150).end(6200, time_to_first_token_ms=1500)


def test_a_round_is_what_comes_up_to_a_changed_count():
    _, (loop,) = of(two_rounds())
    first, last = loop.rounds
    assert ms(loop.started_ns, loop.ended_ns) == [100, 6200]
    assert ms(first.model.started_ns, first.model.ended_ns, first.model.first_token_ns) == [101, 3100, 1600]
    assert ms(last.model.started_ns, last.model.ended_ns, last.model.first_token_ns) == [4000, 6100, None]
    assert (first.model.input_tokens, first.model.cached_tokens, first.model.output_tokens) == (100, 60, 7)
    assert (last.model.input_tokens, last.model.reasoning_tokens) == (150, 3)
    assert (loop.status, loop.provider, loop.model, loop.source) == ("ok", "openai", "gpt-test", "codex")
    assert "first_token_ns" in first.model.derived
    assert loop.id == f"{THREAD}/0"


def test_a_count_that_is_shown_again_is_no_round_and_adds_nothing():
    run = Rollout().start(0).call(1000, "c1").tokens(1100).tokens(1200, again=True)
    run.back(2000, "c1", wall(0.5)).tokens(2100, again=True)
    run.event(2150, "token_count", info=None, rate_limits={}).say(3000).tokens(3100).tokens(
        3200, again=True
    ).end(3300)
    _, (loop,) = of(run)
    assert [one.model.input_tokens for one in loop.rounds] == [100, 100]


def test_the_counts_of_a_summary_are_no_round():
    run = Rollout().start(0).call(1000, "c1").tokens(1100).back(2000, "c1", wall(0.5))
    run.line(2500, "compacted", message="").tokens(2600, 900).say(4000).tokens(4100).end(4200)
    found, (loop,) = of(run)
    assert [one.model.input_tokens for one in loop.rounds] == [100, 100]
    assert found.skipped[NO_ITEMS] == 1


def test_a_turn_that_was_cut_has_its_items_as_rounds():
    run = Rollout().start(0).call(1000, "c1").tokens(1100).back(2000, "c1", wall(0.5))
    run.call(3000, "c2").back(4000, "c2", wall(0.2)).call(5000, "c3")
    _, (loop,) = of(run)
    assert loop.status == "cancelled"
    assert [one.model.input_tokens for one in loop.rounds] == [100, None, None]
    assert [call.id for call in loop.tool_calls] == ["c1", "c2", "c3"]
    *_, last = loop.tool_calls
    assert (last.status, last.ended) == ("cancelled", False)


def test_older_sessions_without_counts_and_turns():
    run = Rollout().user(100).item(1000, "reasoning").call(1100, "c1", "shell").call(1200, "c2", "shell")
    run.back(2000, "c1", json.dumps({"output": "x", "metadata": {"exit_code": 0, "duration_seconds": 0.5}}))
    run.back(3000, "c2", json.dumps({"output": "x", "metadata": {"exit_code": 3, "duration_seconds": 1.7}}))
    run.say(5000).user(60_000).say(61_000)
    _, (loop, other) = of(run)
    assert ms(loop.started_ns, loop.ended_ns, other.started_ns) == [100, 5000, 60_000]
    assert (loop.status, len(loop.rounds), loop.rounds[0].model.input_tokens) == ("ok", 2, None)
    assert [(call.status, call.error_type, call.latency_ns / MS) for call in loop.tool_calls] == [
        ("ok", None, 500),
        ("error", "exit_3", 1700),
    ]


def test_messages_of_users_alone_begin_loops_but_not_what_tells_the_surroundings():
    run = Rollout()
    run.item(50, "message", role="user", content=[{"type": "input_text", "text": "<environment_context>x"}])
    run.item(100, "message", role="user", content=[{"type": "input_text", "text": "go"}]).say(1000)
    _, (loop,) = of(run)
    assert ms(loop.started_ns) == [100]


def test_a_result_that_waited_for_the_one_before_it_is_placed_late():
    run = Rollout().start(0).call(1000, "c1").call(1010, "c2").call(1020, "c3").tokens(1100)
    run.back(6000, "c1", wall(4.9)).back(6001, "c2", wall(2.0)).back(9000, "c3", wall(7.5))
    run.say(9500).tokens(9600).end(9700)
    _, (loop,) = of(run)
    calls = list(loop.tool_calls)
    assert ["ended_ns" in call.derived for call in calls] == [False, True, False]
    assert ms(*(call.latency_ns for call in calls)) == [4900, 2000, 7500]


def test_the_own_end_of_a_call_is_no_guess():
    run = Rollout().start(0).call(1000, "c1", "mcp__files__read").call(1010, "c2", "shell").tokens(1100)
    run.event(
        2000,
        "mcp_tool_call_end",
        call_id="c1",
        invocation={"server": "files", "tool": "read"},
        duration={"secs": 0, "nanos": 900_000_000},
        result={"Ok": {"content": [], "is_error": True}},
    )
    run.event(3000, "exec_command_end", call_id="c2", exit_code=0, duration="1.5s", stdout="")
    run.back(3500, "c1", "x").back(3501, "c2", wall(9.0)).say(4000).tokens(4100).end(4200)
    _, (loop,) = of(run)
    one, two = loop.tool_calls
    assert (one.name, one.status, one.error_type) == ("mcp__files__read", "error", "tool_error")
    assert ms(one.started_ns, one.ended_ns) == [1100, 2000]
    assert (two.status, *ms(two.started_ns, two.ended_ns)) == ("ok", 1500, 3000)
    assert [call.derived for call in (one, two)] == [("started_ns",), ("started_ns",)]


def test_the_end_of_what_was_left_running_is_not_the_end_of_the_call():
    run = Rollout().start(0).call(1000, "c1").tokens(1100)
    run.back(
        11_000, "c1", "Chunk ID: 1\nWall time: 10.0 seconds\nProcess running with session ID 7\nOutput:\n"
    )
    run.call(12_000, "c2", "write_stdin").tokens(12_100)
    run.event(20_000, "exec_command_end", call_id="c1", exit_code=1, duration={"secs": 19, "nanos": 0})
    run.back(20_100, "c2", wall(8.0)).say(21_000).tokens(21_100).end(21_200)
    found, (loop,) = of(run)
    one, two = loop.tool_calls
    assert ms(one.duration_ns, one.ended_ns, two.duration_ns) == [10_000, 11_000, 8000]
    assert [(call.wait, call.latency_ns, call.status) for call in (one, two)] == [(True, None, "ok")] * 2
    assert found.notes == {}


@pytest.mark.parametrize(
    ("output", "status", "error", "own_ms"),
    [
        (wall(0.5), "ok", None, 500),
        (wall(0.5, 2), "error", "exit_2", 500),
        (wall(0.5, -1), "error", "exit", 500),
        (wall(0.5, 124), "timeout", None, 500),
        ("Exit code: 0\nWall time: 1.2 seconds\nOutput:\nWall time: 99 seconds", "ok", None, 1200),
        ("the file says\nWall time: 99 seconds", "ok", None, None),
        ('{"output":"x","metadata":{"exit_code":1,"duration_seconds":0.1}}', "error", "exit_1", 100),
        ('{"output":"x","metadata":{"exit_code":0,"duration_seconds":0.0}}', "ok", None, None),
        ("Exit code: 0\nWall time: 0 seconds\nOutput:\nDone", "ok", None, None),
        ("Script completed\nWall time 2.5 seconds\nOutput:\n", "ok", None, 2500),
        (
            [{"type": "input_text", "text": "Script failed\nWall time 0.2 seconds\nOutput:\n"}],
            "error",
            None,
            200,
        ),
        ({"content": "no", "success": False}, "error", None, None),
        ({"content": "yes", "success": True}, "ok", None, None),
        ("aborted by user after 2.0s", "cancelled", None, None),
        ("command timed out after 1000 milliseconds", "timeout", None, None),
        ([{"type": "input_text", "text": wall(0.25)}], "ok", None, 250),
        (None, "ok", None, None),
    ],
)
def test_what_an_output_says(output, status, error, own_ms):
    run = (
        Rollout()
        .start(0)
        .call(1000, "c1")
        .tokens(1100)
        .back(5000, "c1", output)
        .say(6000)
        .tokens(6100)
        .end(6200)
    )
    _, (loop,) = of(run)
    (call,) = loop.tool_calls
    assert (call.status, call.error_type) == (status, error)
    assert ms(call.latency_ns) == [own_ms]


@pytest.mark.parametrize(
    ("output", "notes"),
    [
        ("Exit code: 0\nWall time: 0.2 seconds\nOutput:\n", {ROUNDED: 1}),
        ("Exit code: 0\nWall time: 1.2 seconds\nOutput:\n", {}),
        (wall(0.2), {}),
    ],
)
def test_durations_that_were_rounded_to_tenths_are_said(output, notes):
    run = Rollout().start(0).call(1000, "c1").tokens(1100).back(3000, "c1", output)
    found, _ = of(run.say(4000).tokens(4100).end(4200))
    assert found.notes == notes


def test_a_script_that_goes_on_is_a_wait():
    run = Rollout().start(0).item(1000, "custom_tool_call", name="exec", call_id="c1", input="x").tokens(1100)
    going = "Script running with cell ID 4\nWall time 10.0 seconds\nOutput:\n"
    run.item(11_100, "custom_tool_call_output", call_id="c1", output=going).call(12_000, "c2", "wait")
    run.tokens(12_100).back(14_000, "c2", "Script completed\nWall time 1.9 seconds\nOutput:\n")
    found, (loop,) = of(run.say(15_000).tokens(15_100).end(15_200))
    assert [(call.wait, call.status) for call in loop.tool_calls] == [(True, "ok"), (True, "ok")]
    assert found.notes == {}


def test_a_record_of_a_replys_tokens_and_the_count_after_it_are_one():
    run = Rollout().start(0).call(1000, "c1").record(1100, 100, "resp_a").tokens(1101, 100)
    run.tokens(1102, again=True).back(2000, "c1", wall(0.5)).say(3000).record(3100, 150, "resp_b")
    found, (loop,) = of(run.tokens(3101, 777).end(3200))
    assert [one.model.input_tokens for one in loop.rounds] == [100, 150]
    assert [one.model.request_id for one in loop.rounds] == ["resp_a", "resp_b"]
    assert [one.model.cache_written_tokens for one in loop.rounds] == [20, 20]
    assert found.skipped == {}


def test_turns_after_records_may_have_counts_alone():
    run = Rollout().start(0).say(1000).record(1100).tokens(1101).end(1200)
    run.start(5000, "t2").say(6000).tokens(6100, 150).end(6200, "t2")
    _, loops = of(run)
    assert [one.rounds[0].model.input_tokens for one in loops] == [100, 150]


def test_newer_versions_say_the_ends_of_calls_as_items():
    run = Rollout().start(0)
    for id_, name in (
        ("c1", "exec_command"),
        ("c2", "mcp__a__b"),
        ("c3", "apply_patch"),
        ("c4", "exec_command"),
    ):
        run.call(1000, id_, name)
    run.record(1100)
    run.item_done(2000, "CommandExecution", "c1", exit_code=3, duration={"secs": 0, "nanos": 500_000_000})
    run.item_done(2500, "McpToolCall", "c2", status="failed", error={"message": "no"}, duration="1s")
    run.item_done(2600, "FileChange", "c3", status="completed")
    run.item_done(2700, "CommandExecution", "c4", status="declined")
    run.item_done(2800, "CommandExecution", "typed", source="user_shell", exit_code=0)
    for id_ in ("c1", "c2", "c3", "c4"):
        run.back(3000, id_, "x")
    found, (loop,) = of(run.say(4000).record(4100).end(4200))
    assert [(call.status, *ms(call.ended_ns, call.latency_ns)) for call in loop.tool_calls] == [
        ("error", 2000, 500),
        ("error", 2500, 1000),
        ("ok", 2600, None),
        ("cancelled", 2700, None),
    ]
    assert found.skipped[END_ALONE] == 1


@pytest.mark.parametrize(
    ("began", "ended", "more", "times", "derived"),
    [
        (1500, 2990, {}, [1500, 2990, 1490], False),
        (1500, 2990, {"duration": {"secs": 1, "nanos": 0}}, [1990, 2990, 1000], True),
        (2990, 2990, {}, [1000, 2990, None], True),  # nobody saw it begin
        (None, None, {}, [1000, 3000, None], True),
    ],
)
def test_items_may_say_when_calls_began(began, ended, more, times, derived):
    run = Rollout().start(0).call(1000, "c1").record(1100)
    run.item_done(3000, "CommandExecution", "c1", began, ended, exit_code=0, **more).back(3001, "c1", "x")
    _, (loop,) = of(run.say(4000).record(4100).end(4200))
    (call,) = loop.tool_calls
    assert ms(call.started_ns, call.ended_ns, call.latency_ns) == times
    assert ("started_ns" in call.derived) == derived


def test_counts_without_sums_are_of_one_request_each():
    run = (
        Rollout().start(0).call(1000, "c1").tokens(1100).tokens(1200, again=True).back(2000, "c1", wall(0.5))
    )
    run.say(3000).tokens(3100, 150).end(3200)
    for row in run.rows:
        row["payload"].get("info", {}).pop("total_token_usage", None)
    found, (loop,) = of(run)
    assert [one.model.input_tokens for one in loop.rounds] == [100, 150]
    assert found.skipped == {}


def test_a_prompt_may_be_an_item():
    run = Rollout().event(0, "task_started", turn_id="t1")
    run.item_done(200, "UserMessage", "u1", content=[{"type": "text", "text": "go on"}])
    _, (loop,) = of(run.say(1000).record(1100).end(1200), content=True)
    assert (loop.prompt, *ms(loop.rounds[0].model.started_ns)) == ("go on", 200)


def test_a_turn_that_ended_with_an_error_failed():
    run = two_rounds().event(9000, "task_started", turn_id="t2").user(9001)
    error = {"message": "SECRET", "codex_error_info": "usage_limit_exceeded"}
    _, (_, loop) = of(run.end(9500, "t2", error=error))
    assert (loop.status, loop.error_type, len(loop.rounds)) == ("error", "usage_limit_exceeded", 1)
    assert "SECRET" not in repr(loop)


def test_calls_without_an_id_ran_on_the_models_server():
    run = Rollout().start(0).item(1000, "image_generation_call", id="ig_1", status="completed")
    run.item(1100, "tool_search_call", id="ts_1", execution="server").say(1200).tokens(1300).end(1400)
    _, (loop,) = of(run)
    assert list(loop.tool_calls) == []
    assert [one.name for one in loop.rounds[0].model.server_tools] == ["image_generation", "tool_search"]


@pytest.mark.parametrize(
    "told",
    [
        {
            "subagent_history_start_ordinal": 7,
            "source": {"subagent": {"thread_spawn": {"parent_thread_id": "p"}}},
        },
        {"history_base": {"thread_id": "p", "end_ordinal_exclusive": 7}, "forked_from_id": "p"},
    ],
)
def test_ordinals_tell_what_is_a_copy(told):
    run = Rollout(CHILD, **told)
    run.start(10, "old").say(20, "old").tokens(30).event(900_000, "task_started", turn_id="t1")
    run.say(901_000).tokens(901_100, 150).end(901_200)
    for ordinal, row in enumerate(run.rows):
        row["ordinal"] = ordinal
    found, (loop,) = of(run)
    assert ms(loop.started_ns, loop.ended_ns) == [900_000, 901_200]
    assert [one.model.input_tokens for one in loop.rounds] == [150]
    assert found.skipped[REPLAYED] == 6


def test_calls_that_say_nothing_of_how_they_went_are_counted():
    run = Rollout().start(0).call(1000, "c1", "update_plan").tokens(1100).back(1200, "c1", "Plan updated")
    found, (loop,) = of(run.say(2000).tokens(2100).end(2200))
    assert [call.status for call in loop.tool_calls] == ["ok"]
    assert found.notes == {NO_VERDICT: 1}


def test_a_rejected_call_never_started():
    run = Rollout().start(0).call(1000, "c1").tokens(1100)
    run.back(30_000, "c1", 'exec_command failed: Rejected("rejected by user")').say(31_000).tokens(
        31_100
    ).end(31_200)
    _, (loop,) = of(run)
    (call,) = loop.tool_calls
    assert (call.status, call.started_ns, call.duration_ns) == ("cancelled", None, None)


def test_a_turn_that_was_aborted_is_cancelled():
    run = (
        Rollout()
        .start(0)
        .call(1000, "c1")
        .tokens(1100)
        .event(3000, "turn_aborted", turn_id="t1", reason="interrupted")
    )
    run.start(60_000, "t2").say(61_000).tokens(61_100).end(61_200, "t2")
    _, (loop, other) = of(run)
    (call,) = loop.tool_calls
    assert (loop.status, call.status, *ms(loop.ended_ns)) == ("cancelled", "cancelled", 3000)
    assert other.status == "ok"


def test_a_turn_that_failed_says_why():
    run = Rollout().start(0).call(1000, "c1").tokens(1100).back(2000, "c1", wall(0.5))
    info = {"response_stream_disconnected": {"http_status_code": 503}}
    run.event(5000, "error", message="lost", codex_error_info=info).end(5001)
    _, (loop,) = of(run)
    assert (loop.status, loop.error_type, len(loop.rounds)) == ("error", "http_503", 2)
    failed = loop.rounds[1].model
    assert (failed.status, failed.error_type, *ms(failed.started_ns, failed.ended_ns)) == (
        "error",
        "http_503",
        2000,
        5000,
    )


def test_a_turn_that_went_on_after_an_error_was_tried_again():
    run = Rollout().start(0).event(1000, "error", message="lost").event(1500, "stream_error", message="again")
    _, (loop,) = of(run.say(3000).tokens(3100).end(3200))
    assert (loop.status, len(loop.rounds)) == ("ok", 1)
    assert loop.rounds[0].model.resends == 2


@pytest.mark.parametrize(("counted", "status"), [(True, "ok"), (False, "cancelled")])
def test_a_turn_without_an_end_was_cut_unless_its_reply_is_whole(counted, status):
    run = Rollout().start(0).say(3000)
    _, (loop,) = of(run.tokens(3100) if counted else run)
    assert loop.status == status


def test_a_turn_without_a_message_and_without_a_reply_is_no_loop():
    run = (
        two_rounds()
        .event(9000, "task_started", turn_id="t2")
        .line(9500, "compacted", message="")
        .end(9600, "t2")
    )
    found, loops = of(run)
    assert len(loops) == 1
    assert found.skipped[NO_REPLY] == 1


def test_other_kinds_of_calls():
    run = Rollout().start(0)
    run.item(1000, "custom_tool_call", name="apply_patch", call_id="c1", input="*** SECRET")
    run.item(1100, "local_shell_call", call_id="c2", action={"type": "exec"}, status="completed")
    run.item(1200, "web_search_call", action={"type": "search"}, status="completed")
    run.call(1300, "c3", "read", namespace="mcp__files__").tokens(1400)
    run.item(2000, "custom_tool_call_output", call_id="c1", output=wall(0.1))
    run.back(2500, "c2", wall(0.2)).back(2600, "c3", "x").say(3000).tokens(3100).end(3200)
    _, (loop,) = of(run)
    assert [call.name for call in loop.tool_calls] == ["apply_patch", "local_shell", "mcp__files__read"]
    assert [one.name for one in loop.rounds[0].model.server_tools] == ["web_search"]
    assert "SECRET" not in repr(loop)


def parent_and_child(name_turns=False):
    """A thread that runs another, whose file begins with a copy of the first one's lines."""
    turn, own = (made_at(100), made_at(1160)) if name_turns else ("t1", "t2")
    main = Rollout().start(100, turn, "split it").call(1000, "c1", "spawn_agent").tokens(1100)
    child_id = made_at(1150) if name_turns else CHILD
    source = {
        "subagent": {"thread_spawn": {"parent_thread_id": THREAD, "depth": 1, "agent_role": "explorer"}}
    }
    child = Rollout(child_id, forked_from_id=THREAD)
    child.rows[0] |= {"timestamp": at(1150)}
    child.rows[0]["payload"] |= {"source": source}
    child.rows += [row | {"timestamp": at(1150)} for row in main.rows]
    child._total = 100
    child.start(1160, own, "look").call(3000, "k1").tokens(3100).back(4000, "k1", wall(0.9))
    child.say(5000).tokens(5100).end(5200, own)
    main.event(1200, "sub_agent_activity", event_id="c1", agent_thread_id=child_id, kind="started")
    main.back(1210, "c1", json.dumps({"agent_id": child_id}))
    main.call(2000, "c2", "wait_agent").tokens(2100).back(5300, "c2", "{}").say(6000).tokens(6100).end(
        6200, turn
    )
    return main, child


@pytest.mark.parametrize("name_turns", [False, True])
def test_a_sub_agents_file_begins_with_what_is_not_its_own(name_turns):
    main, child = parent_and_child(name_turns)
    found, (loop, inner) = of(child, main)
    assert [call.id for call in loop.tool_calls] == ["c1", "c2"]
    assert [call.id for call in inner.tool_calls] == ["k1"]
    assert [one.model.input_tokens for one in inner.rounds] == [100, 100]
    assert (inner.agent, *ms(inner.started_ns, inner.ended_ns)) == ("explorer", 1160, 5200)
    outer, spawned = sorted(found.drafts, key=lambda draft: draft.started_ns)
    assert spawned.spawned_by == outer.rounds[0].calls[0].key
    assert outer.spawned_by is None
    assert [call.wait for call in loop.tool_calls] == [True, True]
    assert found.skipped[REPLAYED] == 5


def test_a_sub_agent_is_found_by_what_it_is_called():
    main, child = parent_and_child()
    spawn = child.rows[0]["payload"]["source"]["subagent"]["thread_spawn"]
    spawn["agent_path"] = "/root/look"
    activity, back = named(main, "sub_agent_activity", "c1")
    del activity["agent_thread_id"]
    activity["agent_path"] = "/root/look"
    back["output"] = "{}"
    found, _ = of(main, child)
    assert [(one.spawned_by, one.ambiguous_calls) for one in found.drafts if one.spawned_by] == [
        (f"codex:{CHILD}", 0)
    ]


def test_a_sub_agent_that_only_its_time_tells_of_is_a_guess():
    main, child = parent_and_child()
    activity, back = named(main, "sub_agent_activity", "c1")
    activity["type"], back["output"] = "other", "{}"
    found, _ = of(main, child)
    assert [(one.spawned_by, one.ambiguous_calls) for one in found.drafts if one.spawned_by] == [
        (f"codex:{CHILD}", 1)
    ]
    assert [draft.rounds[0].calls[0].key for draft in found.drafts if not draft.spawned_by] == [
        f"codex:{CHILD}"
    ]


def named(run, event, call):
    """The payloads of an event and of a call's result."""
    payloads = [row["payload"] for row in run.rows]
    return (
        next(one for one in payloads if one.get("type") == event),
        next(one for one in payloads if one.get("type") == "function_call_output" and one["call_id"] == call),
    )


@pytest.mark.parametrize("name_turns", [False, True])
def test_a_sub_agent_that_never_came_to_a_turn_has_no_loop(name_turns):
    _, child = parent_and_child(name_turns)
    child.rows = child.rows[: next(i for i, row in enumerate(child.rows) if row["timestamp"] == at(1160))]
    _, loops = of(child)
    assert len(loops) == (0 if name_turns else 1)  # ids alone tell the parent's turn from an own one


def test_a_sub_agent_without_a_history_is_all_its_own():
    run = two_rounds()
    run.rows[0]["payload"]["source"] = {"subagent": "review"}
    found, (loop,) = of(run)
    assert (loop.agent, len(loop.rounds)) == ("review", 2)
    assert found.notes == {UNLINKED: 1}


def test_a_fork_keeps_what_came_after_it():
    main = two_rounds()
    fork = Rollout(CHILD, forked_from_id=THREAD)
    fork.rows[0]["timestamp"] = at(50_000)
    fork.rows += [row | {"timestamp": at(50_000)} for row in main.rows]
    fork._total = 250
    fork.start(70_000, "t9").say(72_000).tokens(72_100).end(72_200, "t9")
    _, loops = of(main, fork)
    assert [ms(one.started_ns) for one in loops] == [[100], [70_000]]
    assert [draft.spawned_by for draft in of(fork)[0].drafts] == [None]


def test_a_file_is_named_by_its_name_or_by_its_first_line():
    name = f"rollout-2026-01-01T00-00-00-{THREAD}.jsonl"
    assert of(two_rounds(), two_rounds(), names=(name, "copy.jsonl"))[1] == of(two_rounds())[1]


def test_a_torn_last_line_is_skipped_and_said():
    found = read(Codex(), jsonl(two_rounds().rows) + b'{"timestamp":"2026-01-01T00:00:09Z","type":"resp')
    assert len(found.drafts) == 1
    assert found.skipped[TORN] == 1


def test_content_is_kept_when_it_is_wanted_and_nowhere_else():
    run = (
        Rollout()
        .start(0, words="SECRET go")
        .item(1000, "function_call", name="f", call_id="c1", arguments="SECRET a")
    )
    run.tokens(1100).back(2000, "c1", "SECRET r").say(3000, "SECRET s").tokens(3100).end(3200)
    run.rows[-1]["payload"]["last_agent_message"] = "SECRET s"
    assert "SECRET" not in repr(of(run)[1])
    _, (loop,) = of(run, content=True)
    (call,) = loop.tool_calls
    assert (loop.prompt, loop.text, call.arguments, call.result) == (
        "SECRET go",
        "SECRET s",
        "SECRET a",
        "SECRET r",
    )


def test_nothing_before_the_first_turn_is_the_zero_of_the_times():
    data = jsonl(two_rounds().rows)
    items = [
        one for one in Codex().read(Source(Path("x"), "x", BytesIO(data)), False) if isinstance(one, Item)
    ]
    assert min(item.at_ns for item in items) == ZERO_NS + 100 * MS


def test_a_session_is_known_by_its_lines():
    assert Codex().recognises(jsonl(two_rounds().rows), "x.jsonl")
    assert not Codex().recognises(b'{"type": "x", "payload": {}}', "x.jsonl")


@given(st.randoms(use_true_random=False))
def test_the_order_of_the_lines_after_the_first_is_of_no_account(draw):
    run = Rollout().start(0).call(1000, "c1").call(1010, "c2").tokens(1100)
    run.back(6000, "c1", wall(4.9)).back(6001, "c2", wall(2.0)).say(9500).tokens(9600).end(9700)
    run.rows = [row | {"timestamp": at(place * 500)} for place, row in enumerate(run.rows)]
    first, *rest = run.rows
    draw.shuffle(rest)
    found = read(Codex(), jsonl([first, *rest]))
    assert records(found.drafts, ZERO_NS) == of(run)[1]


def test_a_result_older_than_its_call_is_that_calls_all_the_same():
    run = Rollout().start(100).call(3000, "c1").tokens(3100).back(2900, "c1", wall(0.5))
    _, (loop,) = of(run.say(6000).tokens(6100, 150).end(6200))
    (call,) = loop.rounds[0].tool_calls
    assert ms(call.started_ns, call.ended_ns, call.duration_ns) == [3000, 3000, 0]
    assert (call.ended, call.status, len(loop.rounds)) == (True, "ok", 2)
