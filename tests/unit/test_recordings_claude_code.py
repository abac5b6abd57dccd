"""Sessions of Claude Code become loops: one test for each thing that is easily taken for another."""

from __future__ import annotations

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from profiler.recordings.claude_code import NO_MESSAGE, PROGRESS, SYNTHETIC, ClaudeCode
from profiler.recordings.claude_loops import COPIED, NO_FILE, OWN, RESTORED
from profiler.recordings.reading import TORN
from profiler.recordings.sessions import RESULT_ALONE, UNLINKED
from tests.unit.recordings_data import jsonl, read, records

MS = 1_000_000
ZERO_NS = 1_767_225_600_000 * MS  # 2026-01-01T00:00:00Z


def at(ms):
    minutes, rest = divmod(ms, 60_000)
    return f"2026-01-01T{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}Z"


class Session:
    """Lines of a session, each named by its number."""

    def __init__(self, session="s1", agent=None, side=False):
        self.rows = []
        self._session, self._agent, self._side = session, agent, side
        self._numbers = count()

    def line(self, ms, kind, **more):
        uuid = f"{self._session}-{self._agent or ''}-{next(self._numbers)}"
        row = {
            "type": kind,
            "sessionId": self._session,
            "isSidechain": self._side,
            "uuid": uuid,
            "parentUuid": self.rows[-1]["uuid"] if self.rows else None,
            "timestamp": at(ms),
        }
        if self._agent:
            row["agentId"] = self._agent
        self.rows.append(row | more)
        return self

    def user(self, ms, content, **more):
        return self.line(ms, "user", message={"role": "user", "content": content}, **more)

    def reply(self, ms, message, *blocks, out=10, **more):
        usage = {
            "input_tokens": 3,
            "cache_creation_input_tokens": 20,
            "cache_read_input_tokens": 100,
            "output_tokens": out,
            "cache_creation": {"ephemeral_1h_input_tokens": 5},
        }
        body = {
            "id": message,
            "model": "claude-test",
            "role": "assistant",
            "content": list(blocks),
            "stop_reason": "tool_use" if any(one["type"] == "tool_use" for one in blocks) else "end_turn",
            "usage": usage,
        }
        return self.line(ms, "assistant", requestId=f"req-{message}", message=body | more)

    def result(self, ms, call, words="fine", result=None, **block):
        more = {} if result is None else {"toolUseResult": result}
        found = {"type": "tool_result", "tool_use_id": call, "content": words}
        return self.user(ms, [found | block], **more)


def use(id_, name="Bash", **input):
    return {"type": "tool_use", "id": id_, "name": name, "input": input}


def said(words="so"):
    return {"type": "text", "text": words}


def of(*sessions, content=False):
    found = read(ClaudeCode(), *(jsonl(one.rows) for one in sessions), content=content)
    return found, records(found.drafts, ZERO_NS)


def ms(*times):
    return [None if time is None else time / MS for time in times]


def test_one_message_over_several_lines_is_one_round_and_counts_its_tokens_once():
    session = Session().user(0, "go")
    session.reply(1000, "m1", said(), out=0).reply(1500, "m1", use("c1"), out=40).reply(
        1600, "m1", use("c2"), out=55
    )
    session.result(2000, "c1").result(2600, "c2").reply(4000, "m2", said())
    _, (loop,) = of(session)
    first, last = loop.rounds
    assert (first.model.input_tokens, first.model.cached_tokens, first.model.output_tokens) == (123, 100, 55)
    assert (first.model.cache_written_tokens, first.model.cache_written_1h_tokens) == (20, 5)
    assert ms(first.model.started_ns, first.model.ended_ns) == [0, 1600]
    assert ms(last.model.started_ns, last.model.ended_ns) == [2600, 4000]
    assert [call.id for call in first.tool_calls] == ["c1", "c2"]
    assert ms(loop.started_ns, loop.ended_ns) == [0, 4000]
    assert (loop.status, loop.source, loop.resolution_ns, loop.provider) == (
        "ok",
        "claude-code",
        MS,
        "anthropic",
    )
    assert first.model.request_id == "req-m1"
    assert (first.model.finish_reason, last.model.finish_reason) == ("tool_use", "end_turn")


def test_results_between_the_lines_of_a_message_belong_to_its_calls():
    session = Session().user(0, "go").reply(1000, "m1", use("c1"))
    session.result(1300, "c1").reply(1500, "m1", use("c2", "Read")).result(1900, "c2")
    session.reply(3000, "m2", said())
    _, (loop,) = of(session)
    assert len(loop.rounds) == 2
    one, two = loop.tool_calls
    assert ms(one.ready_ns, one.ended_ns, two.ready_ns, two.ended_ns) == [1000, 1300, 1500, 1900]
    assert one.upper_bound
    assert two.upper_bound


def test_durations_that_tools_say_tell_their_starts():
    session = Session().user(0, "go")
    session.reply(1000, "m1", use("c1", "Glob"), use("c2", "WebSearch"), use("c3", "Task"), use("c4"))
    session.result(1100, "c1", result={"durationMs": 60})
    session.result(3100, "c2", result={"durationSeconds": 1.5})
    session.result(9100, "c3", result={"totalDurationMs": 8000, "agentId": "a1"})
    session.result(9200, "c4", result={"stdout": "", "interrupted": False})
    session.reply(9900, "m2", said())
    _, (loop,) = of(session)
    calls = list(loop.tool_calls)
    assert ms(*(call.latency_ns for call in calls)) == [60, 1500, 8000, None]
    assert ms(*(call.started_ns for call in calls)) == [1040, 1600, 1100, 1000]


def test_what_is_no_prompt_starts_no_loop():
    session = Session().user(0, "go").reply(1000, "m1", use("c1")).result(2000, "c1")
    session.user(2100, "This session is being continued", isCompactSummary=True)
    session.line(2150, "system", subtype="compact_boundary", content="Conversation compacted")
    session.user(2200, [said("hook says")], isMeta=True)
    session.user(2300, "<task-notification>done</task-notification>")
    session.user(2350, "<local-command-stdout>ok</local-command-stdout>")
    session.reply(4000, "m2", said())
    found, (loop,) = of(session)
    assert len(loop.rounds) == 2
    assert ms(loop.rounds[1].model.started_ns) == [2300]
    assert found.skipped == {NO_MESSAGE: 1}


def test_the_time_between_prompts_is_in_no_loop():
    session = Session().user(0, "go").reply(1000, "m1", said())
    session.line(1010, "system", subtype="turn_duration", durationMs=1010)
    session.user(90_000, "more").reply(91_500, "m2", said())
    _, loops = of(session)
    assert [ms(one.started_ns, one.ended_ns) for one in loops] == [[0, 1000], [90_000, 91_500]]


def test_messages_without_a_reply_between_are_one_prompt_when_they_were_sent_together():
    session = Session().user(0, "go").user(10, "and this").reply(1000, "m1", said())
    _, (loop,) = of(session)
    assert ms(loop.started_ns, loop.rounds[0].model.started_ns) == [0, 10]
    session = Session().user(0, "go").user(50_000, "go!").reply(51_000, "m1", said())
    _, (unanswered, loop) = of(session)
    assert (unanswered.status, unanswered.rounds, *ms(unanswered.ended_ns)) == ("cancelled", (), 0)
    assert ms(loop.started_ns) == [50_000]


def test_a_slash_command_that_asks_the_model_starts_a_loop_and_one_that_does_not_starts_none():
    session = Session().user(0, "go").reply(1000, "m1", said())
    session.user(50_000, "<command-name>/model</command-name>")
    session.user(50_001, "<local-command-stdout>Set model</local-command-stdout>")
    session.user(60_000, "<command-message>review</command-message><command-name>/review</command-name>")
    session.user(60_001, [said("Review it")], isMeta=True)
    session.reply(62_000, "m2", said())
    _, loops = of(session)
    assert [ms(one.started_ns, one.ended_ns) for one in loops] == [[0, 1000], [60_000, 62_000]]
    assert ms(loops[1].rounds[0].model.started_ns) == [60_001]


def test_a_refused_call_never_started_and_the_wait_is_the_humans():
    session = Session().user(0, "go").reply(1000, "m1", use("c1"))
    words = "The user doesn't want to proceed with this tool use. The tool use was rejected"
    session.result(61_000, "c1", words, result="User rejected tool use", is_error=True)
    session.user(61_000, [said("[Request interrupted by user for tool use]")])
    session.user(80_000, "other").reply(81_000, "m2", said())
    _, (loop, other) = of(session)
    (call,) = loop.tool_calls
    assert (call.status, call.started_ns, call.duration_ns) == ("cancelled", None, None)
    assert (loop.status, *ms(loop.ended_ns)) == ("cancelled", 1000)
    assert other.status == "ok"


def test_a_refusal_with_other_instructions_goes_on():
    session = Session().user(0, "go").reply(1000, "m1", use("c1"))
    words = (
        "The user doesn't want to proceed with this tool use. To tell you how to proceed, the user said: no"
    )
    session.result(9000, "c1", words, is_error=True).reply(10_000, "m2", said())
    _, (loop,) = of(session)
    (call,) = loop.tool_calls
    assert (loop.status, call.status, call.started_ns) == ("ok", "cancelled", None)


def test_an_interrupted_loop_is_cancelled_and_its_open_calls_too():
    session = Session().user(0, "go").reply(1000, "m1", use("c1"), use("c2"))
    session.result(2000, "c1").user(5000, [said("[Request interrupted by user]")])
    session.user(9000, "again").reply(10_000, "m2", said())
    _, (loop, _) = of(session)
    done, open_ = loop.tool_calls
    assert (loop.status, *ms(loop.ended_ns)) == ("cancelled", 5000)
    assert (done.status, open_.status) == ("ok", "cancelled")
    assert not open_.ended
    assert open_.duration_ns is None


def test_a_tool_that_was_interrupted_ran_until_then():
    session = Session().user(0, "go").reply(1000, "m1", use("c1"))
    session.result(4000, "c1", "partly", result={"stdout": "", "interrupted": True})
    session.user(4000, [said("[Request interrupted by user for tool use]")])
    _, (loop,) = of(session)
    (call,) = loop.tool_calls
    assert (call.status, *ms(call.duration_ns, loop.ended_ns)) == ("cancelled", 3000, 4000)
    assert loop.status == "cancelled"


def test_a_session_that_stops_before_an_answer_is_cancelled():
    session = Session().user(0, "go").reply(1000, "m1", use("c1")).result(2000, "c1")
    _, (loop,) = of(session)
    assert (loop.status, *ms(loop.ended_ns)) == ("cancelled", 2000)


def test_a_reply_of_which_the_calls_are_lost_is_no_answer():
    session = Session().user(0, "go").reply(1000, "m1", said(), stop_reason="tool_use")
    _, (loop,) = of(session)
    assert loop.status == "cancelled"


def test_a_failed_call_says_how_it_failed():
    session = Session().user(0, "go").reply(1000, "m1", *(use(f"c{n}") for n in range(5)))
    session.result(1100, "c0", "boom", result="Error: Exit code 2\nboom", is_error=True)
    session.result(1200, "c1", "Command timed out after 2m 0.0s", is_error=True)
    session.result(
        1300, "c2", "<tool_use_error>InputValidationError: Bash failed</tool_use_error>", is_error=True
    )
    session.result(1400, "c3", "Permission to use Bash with command rm has been denied.", is_error=True)
    session.result(
        1500, "c4", "<tool_use_error>Cancelled: parallel tool call c0 errored</tool_use_error>", is_error=True
    )
    session.reply(2000, "m2", said())
    _, (loop,) = of(session)
    assert [(call.status, call.error_type) for call in loop.tool_calls] == [
        ("error", "exit_2"),
        ("timeout", None),
        ("error", "invalid_arguments"),
        ("error", "denied"),
        ("cancelled", None),
    ]
    assert [call.started_ns is None for call in loop.tool_calls] == [False, False, False, True, False]


def test_a_call_that_a_rule_a_hook_or_nobody_there_allowed_never_started():
    words = (
        "PreToolUse:Bash hook error: [check.sh]: not on Fridays",
        "Claude requested permissions to write to /tmp/x, but you haven't granted it yet.",
        "This command requires approval",
    )
    session = Session().user(0, "go").reply(1000, "m1", *(use(f"c{n}") for n in range(len(words))))
    for n, said_ in enumerate(words):
        session.result(1100, f"c{n}", said_, result=f"Error: {said_}", is_error=True)
    _, (loop,) = of(session.reply(2000, "m2", said()))
    assert {(call.error_type, call.started_ns) for call in loop.tool_calls} == {("denied", None)}


def retry(session, ms_, status=529, wait=500, **more):
    error = {"status": status} if status else {"cause": {"code": "ECONNRESET"}}
    return session.line(
        ms_, "system", subtype="api_error", error=error, retryAttempt=1, retryInMs=wait, maxRetries=10, **more
    )


def test_failed_tries_are_attempts_of_the_round_that_came_of_them():
    session = Session().user(0, "go")
    retry(session, 1000)
    retry(session, 2000, status=None, wait=700)
    session.reply(4000, "m1", said("a")).reply(4200, "m1", said("b"))
    _, (loop,) = of(session)
    (model,) = [one.model for one in loop.rounds]
    assert model.status == "ok"
    assert ms(model.started_ns, model.ended_ns) == [0, 4200]
    tries = [(*ms(one.started_ns, one.ended_ns), one.status, one.error_type) for one in model.attempts]
    assert tries == [(0, 1000, 529, None), (1500, 2000, None, "connection"), (2700, 4200, None, None)]
    assert "attempts" in model.derived


def test_giving_up_is_a_failed_round():
    session = Session().user(0, "go").reply(1000, "m1", use("c1")).result(2000, "c1")
    retry(session, 3000)
    session.reply(5000, "x", said("API Error: overloaded"), model="<synthetic>", id="x")
    session.rows[-1]["isApiErrorMessage"] = True
    session.user(60_000, "again").reply(61_000, "m3", said())
    _, (loop, other) = of(session)
    assert (loop.status, loop.error_type, len(loop.rounds)) == ("error", "http_529", 2)
    failed = loop.rounds[1].model
    assert (failed.status, failed.error_type, failed.input_tokens) == ("error", "http_529", None)
    assert ms(failed.started_ns, loop.ended_ns) == [2000, 5000]
    assert [(*ms(one.started_ns, one.ended_ns), one.status) for one in failed.attempts] == [
        (2000, 3000, 529),
        (3500, 5000, 529),
    ]
    assert other.status == "ok"
    assert other.rounds[0].model.attempts == ()


def test_a_synthetic_message_is_no_round():
    session = Session().user(0, "go").reply(1000, "m1", said())
    session.reply(1500, "x", said("No response requested."), model="<synthetic>")
    found, (loop,) = of(session)
    assert len(loop.rounds) == 1
    assert found.skipped == {SYNTHETIC: 1}


def test_giving_up_at_once_says_the_status_that_it_shows():
    session = Session().user(0, "go")
    session.reply(5000, "x", said('API Error: 400 {"type":"error"}'), model="<synthetic>")
    session.rows[-1]["isApiErrorMessage"] = True
    _, (loop,) = of(session)
    assert (loop.status, loop.error_type) == ("error", "http_400")


def test_a_request_that_timed_out_for_good_says_so():
    session = Session().user(0, "go")
    retry(session, 3000, status=None)
    session.reply(9000, "x", said("Request timed out"), model="<synthetic>")
    session.rows[-1] |= {"isApiErrorMessage": True, "error": "unknown"}
    _, (loop,) = of(session)
    assert (loop.status, loop.error_type) == ("error", "timeout")


def test_a_failure_that_the_message_calls_unknown_is_that_of_the_try_before():
    session = Session().user(0, "go")
    retry(session, 3000)
    session.reply(5000, "x", said("Something broke"), model="<synthetic>")
    session.rows[-1] |= {"isApiErrorMessage": True, "error": "unknown"}
    _, (loop,) = of(session)
    assert (loop.status, loop.error_type) == ("error", "http_529")


def test_lines_of_a_message_without_their_request_are_still_of_it():
    session = Session().user(0, "go").reply(1000, "m1", said()).reply(1500, "m1", use("c1"))
    del session.rows[1]["requestId"]
    session.result(2000, "c1").reply(3000, "m2", said())
    _, (loop,) = of(session)
    assert len(loop.rounds) == 2


def test_one_id_for_messages_of_several_requests_is_not_one_message():
    session = (
        Session().user(0, "go").reply(1000, "same", use("c1")).result(2000, "c1").reply(3000, "same", said())
    )
    session.rows[3]["requestId"] = "another"
    _, (loop,) = of(session)
    assert len(loop.rounds) == 2


def helped(agent="a1", start=1100, result=None):
    main = (
        Session().user(0, "go").reply(1000, "m1", use("c1", "Task", prompt="Look", subagent_type="Explore"))
    )
    told = {"totalDurationMs": 7000, "agentId": agent} if result is None else result
    main.result(8100, "c1", result=told).reply(9000, "m2", said())
    sub = Session(agent=agent, side=True).user(start, "Look")
    sub.reply(3000, "s1", use("c2", "Read")).result(3500, "c2").reply(8000, "s2", said())
    return main, sub


def test_a_sub_agent_is_a_loop_of_its_own_inside_the_call_that_ran_it():
    main, sub = helped()
    found, (loop, inner) = of(sub, main)
    assert [call.id for call in inner.tool_calls] == ["c2"]
    assert (inner.agent, *ms(inner.started_ns, inner.ended_ns)) == ("Explore", 1100, 8000)
    outer, spawned = sorted(found.drafts, key=lambda draft: draft.started_ns)
    assert spawned.spawned_by == outer.rounds[0].calls[0].key == "claude-code:c1"
    assert spawned.ambiguous_calls == 0
    assert sum(one.model.output_tokens for one in loop.rounds) == 20


def test_sub_agents_among_the_lines_of_the_session_are_found_by_their_prompts():
    main = Session().user(0, "go")
    main.reply(1000, "m1", use("c1", "Task", prompt="One"), use("c2", "Task", prompt="Two"))
    for row, side in ((Session("s1", side=True), "Two"), (Session("s1", side=True), "One")):
        row.user(1100 if side == "Two" else 1200, side).reply(2000, f"x{side}", said())
        for line in row.rows:
            line["uuid"] = f"{side}{line['uuid']}"
            line["parentUuid"] = line["parentUuid"] and f"{side}{line['parentUuid']}"
        main.rows += row.rows
    main.result(3000, "c1").result(3100, "c2").reply(4000, "m2", said())
    found, loops = of(main)
    assert len(loops) == 3
    assert [draft.spawned_by for draft in sorted(found.drafts, key=lambda one: one.started_ns)] == [
        None,
        "claude-code:c2",
        "claude-code:c1",
    ]


def test_a_sub_agent_that_only_its_time_tells_of_is_a_guess():
    main, sub = helped(result={"totalDurationMs": 7000})
    sub.rows[0]["message"]["content"] = "Something else"
    found, _ = of(main, sub)
    (inner,) = [draft for draft in found.drafts if draft.spawned_by]
    assert inner.ambiguous_calls == 1


def test_a_sub_agent_of_a_session_that_was_resumed_under_another_name_is_found():
    main, sub = helped()
    for row in sub.rows:
        row["sessionId"] = "s7"
    found, _ = of(main, sub)
    assert [draft.spawned_by for draft in found.drafts if draft.spawned_by] == ["claude-code:c1"]


def test_a_sub_agent_without_its_session_is_said_to_be_one():
    _, sub = helped()
    found, (loop,) = of(sub)
    assert loop.parent is None
    assert found.notes == {UNLINKED: 1}


def test_a_sub_agent_without_a_file_is_said_to_be_missing():
    main, sub = helped()
    found, _ = of(main)
    assert found.notes == {NO_FILE: 1}
    assert not of(main, sub)[0].notes
    main.line(8050, "progress", data={"type": "agent_progress", "agentId": "a1", "message": sub.rows[0]})
    found, _ = of(main)
    assert found.skipped == {PROGRESS: 1}


def test_an_agent_that_never_began_is_not_missing():
    main = Session().user(0, "go").reply(1000, "m1", use("c1", "Task", prompt="Look"))
    main.result(1100, "c1", "<tool_use_error>InputValidationError: no</tool_use_error>", is_error=True)
    found, _ = of(main.reply(2000, "m2", said()))
    assert not found.notes


def compacted():
    """A session that is summarised while a call's result is on its way: the fork has the result alone."""
    main = Session().user(0, "go").reply(1000, "m1", use("c1", "Read"))
    fork = Session(agent="acompact-12ab34", side=True).result(1500, "c1").user(1510, "Summarise all of this.")
    fork.reply(6000, "f1", said())
    fork.rows[0]["parentUuid"] = main.rows[-1]["uuid"]
    main.user(6100, "This session goes on.", isCompactSummary=True).reply(7000, "m2", said())
    return main, fork


def test_what_claude_code_asks_for_itself_is_inside_the_loop_that_it_went_on_from():
    main, fork = compacted()
    found, (loop, own) = of(main, fork)
    assert (loop.parent, own.parent, own.agent) == (None, loop.id, "compact")
    assert len(loop.rounds) == 2
    assert found.notes == {OWN: 1}
    assert of(fork)[0].notes == {OWN: 1}


def test_a_result_that_only_a_fork_has_ends_the_call():
    found, (loop, own) = of(*compacted())
    (call,) = loop.tool_calls
    assert (call.status, call.upper_bound, *ms(call.started_ns, call.ended_ns)) == ("ok", True, 1000, 1500)
    assert not own.rounds[0].tool_calls
    assert not found.skipped


def test_a_fork_is_in_no_call_of_an_agent_that_was_running_then():
    main, fork = compacted()
    main.rows[1]["message"]["content"].append(use("c2", "Task", prompt="Look"))
    found, _ = of(main, fork)
    assert not [draft for draft in found.drafts if draft.spawned_by]


def test_the_agents_of_a_workflow_ran_in_the_call_that_began_it():
    main = Session().user(0, "go").reply(1000, "m1", use("c1", "Workflow", script="sweep.js"))
    main.result(1100, "c1", result={"isAsync": True, "runId": "wf_1", "taskId": "t1"}).reply(
        2000, "m2", said()
    )
    agents = [Session(agent=name, side=True).user(1050, name).reply(9000, name, said()) for name in "ab"]
    found = read(
        ClaudeCode(),
        *(jsonl(one.rows) for one in (main, *agents)),
        names=("s1.jsonl", *(f"s1/subagents/workflows/wf_1/agent-{name}.jsonl" for name in "ab")),
    )
    assert [draft.spawned_by for draft in found.drafts] == [None, "claude-code:c1", "claude-code:c1"]
    assert not found.notes


def test_a_file_of_a_sub_agent_is_one_by_its_name_too():
    main, sub = helped()
    for one in sub.rows:
        del one["agentId"], one["isSidechain"]
    found = read(ClaudeCode(), jsonl(main.rows), jsonl(sub.rows), names=("s1.jsonl", "agent-a1.jsonl"))
    assert [draft.spawned_by for draft in found.drafts] == [None, "claude-code:c1"]


def test_an_agent_in_the_background_comes_back_at_once_and_is_no_latency():
    main = Session().user(0, "go").reply(1000, "m1", use("c1", "Agent", prompt="Look"))
    main.result(1010, "c1", result={"isAsync": True, "status": "async_launched", "agentId": "a1"})
    main.reply(2000, "m2", said())
    main.user(9000, "<task-notification><task-id>a1</task-id></task-notification>").reply(9900, "m3", said())
    sub = Session(agent="a1", side=True).user(1005, "Look").reply(8000, "s1", said())
    found, (loop, inner) = of(main, sub)
    (call,) = loop.tool_calls
    assert call.wait
    assert call.latency_ns is None
    assert len(loop.rounds) == 3
    assert [draft.spawned_by for draft in found.drafts if draft.spawned_by] == ["claude-code:c1"]
    assert ms(inner.ended_ns) == [8000]


def test_tools_that_wait_for_others_are_waits():
    session = Session().user(0, "go").reply(1000, "m1", use("c1"))
    session.result(1010, "c1", result={"backgroundTaskId": "b1"}).reply(2000, "m2", use("c2", "TaskOutput"))
    session.result(9000, "c2", result={"durationMs": 7000}).reply(9500, "m3", said())
    _, (loop,) = of(session)
    assert [call.wait for call in loop.tool_calls] == [True, True]
    assert [call.latency_ns for call in loop.tool_calls] == [None, None]


def forked():
    """A session, and one that was forked from it after its first loop: the copies have new ids."""
    first = (
        Session("s1").user(0, "go").reply(1000, "m1", use("c1")).result(2000, "c1").reply(3000, "m2", said())
    )
    other = Session("s2")
    for row in first.rows:
        other.rows.append(row | {"sessionId": "s2", "uuid": "copy-" + row["uuid"]})
    first.user(10_000, "on").reply(11_000, "m3", said())
    other.user(20_000, "else").reply(21_000, "m4", said())
    return first, other


def test_what_a_fork_copied_counts_once():
    found, loops = of(*forked())
    assert [ms(one.started_ns) for one in loops] == [[0], [10_000], [20_000]]
    assert [len(one.rounds) for one in loops] == [2, 1, 1]
    assert [one.id.partition("/")[0] for one in loops] == ["s1", "s1", "s2"]
    assert found.skipped == {COPIED: 2}


def test_the_order_of_the_files_of_forks_is_of_no_account():
    first, other = forked()
    assert of(first, other) == of(other, first)


def test_a_file_twice_is_that_file_once():
    first, _ = forked()
    again = Session("s1")
    again.rows = list(first.rows)
    assert of(first, again) == of(first)


def test_a_session_that_goes_on_elsewhere_in_the_middle_of_a_loop_keeps_what_is_its_own():
    first = Session("s1").user(0, "go").reply(1000, "m1", use("c1")).result(2000, "c1")
    other = Session("s2")
    other.rows = [row | {"sessionId": "s2", "uuid": "copy-" + row["uuid"]} for row in first.rows]
    other.reply(90_000, "m9", said())
    first.reply(3000, "m2", said())
    _, loops = of(first, other)
    assert [len(one.rounds) for one in loops] == [2, 1]
    assert loops[1].rounds[0].model.output_tokens == 10


def resumed(prompt=0):
    """Older versions wrote what a resumed session had done down once more, with the time of that moment."""
    session = Session("s2").user(prompt, "go")
    for n in range(3):
        session.reply(90_000, f"m{n}", use(f"c{n}")).result(90_000 + n // 2, f"c{n}")
    return session.reply(90_001, "m3", said()).user(95_000, "on").reply(97_000, "m4", said())


def test_times_that_were_written_over_when_a_session_was_resumed_are_taken_for_none():
    found, (loop,) = of(resumed())
    assert ms(loop.started_ns, loop.ended_ns) == [95_000, 97_000]
    assert len(loop.rounds) == 1
    assert found.skipped == {RESTORED: 8}  # with the prompt, of which nothing else is left


def test_what_was_resumed_counts_where_its_times_are():
    first = Session("s1").user(0, "go")
    for n in range(3):
        first.reply(1000 * n + 500, f"m{n}", use(f"c{n}")).result(1000 * n + 900, f"c{n}")
    first.reply(4000, "m3", said())
    found, (loop, on) = of(first, resumed())
    assert (len(loop.rounds), *ms(loop.started_ns, loop.ended_ns)) == (4, 0, 4000)
    assert ms(on.started_ns) == [95_000]
    assert found.skipped == {RESTORED: 8}


def test_a_recording_without_any_times_of_use_is_kept():
    found, loops = of(resumed(prompt=90_000))
    assert [len(loop.rounds) for loop in loops] == [4, 1]
    assert not found.skipped


def test_a_result_of_a_call_that_is_not_there_is_counted():
    session = Session().user(0, "go").reply(1000, "m1", said()).result(2000, "gone")
    found, (loop,) = of(session)
    assert len(list(loop.tool_calls)) == 0
    assert found.skipped == {RESULT_ALONE: 1}


def test_a_torn_last_line_is_skipped_and_said():
    session = Session().user(0, "go").reply(1000, "m1", said())
    found = read(ClaudeCode(), jsonl(session.rows) + b'{"type":"assistant","uuid":"x","mess')
    assert len(found.drafts) == 1
    assert found.skipped == {TORN: 1}


def test_half_a_character_costs_no_line():
    data = jsonl(Session().user(0, "go").reply(1000, "m1", said("so")).rows)
    found = read(ClaudeCode(), data.replace(b'"so"', b'"so \\ud83d"'), content=True)
    assert found.drafts[0].text == "so �"
    assert not found.skipped


def test_content_is_kept_when_it_is_wanted_and_nowhere_else():
    main, sub = helped()
    main.rows[0]["message"]["content"] = "SECRET prompt"
    main.rows[1]["message"]["content"][0]["input"]["prompt"] = "SECRET Look"
    main.rows[2]["message"]["content"][0]["content"] = "SECRET result"
    main.rows[3]["message"]["content"][0]["text"] = "SECRET answer"
    _, bare = of(main, sub)
    assert "SECRET" not in repr(bare)
    assert "SECRET" not in repr(read(ClaudeCode(), jsonl(main.rows)))
    _, (loop, *_) = of(main, sub, content=True)
    (call,) = loop.tool_calls
    assert (loop.prompt, loop.text) == ("SECRET prompt", "SECRET answer")
    assert "SECRET Look" in call.arguments
    assert call.result == "SECRET result"


def test_a_session_is_known_by_its_lines():
    main, _ = helped()
    assert ClaudeCode().recognises(jsonl(main.rows), "x.jsonl")
    assert ClaudeCode().recognises(b'{"type":"summary","summary":"x","leafUuid":"y"}', "x.jsonl")
    assert ClaudeCode().recognises(b'{"type":"queue-operation","sessionId":"y"}', "x.jsonl")
    assert not ClaudeCode().recognises(b'{"traceId": "1", "message": {}}', "x.jsonl")
    assert not ClaudeCode().recognises(b'{"traceId": "1", "sessionId": "2", "type": "SPAN"}', "x.jsonl")


@given(st.randoms(use_true_random=False))
def test_the_order_of_the_lines_is_of_no_account(draw):
    main, sub = helped()
    first, other = forked()
    rows = [*main.rows, *sub.rows]
    copies = [*first.rows, *other.rows]
    shuffled, shuffled_copies = list(rows), list(copies)
    draw.shuffle(shuffled)
    draw.shuffle(shuffled_copies)
    assert of_rows(shuffled) == of_rows(rows)
    assert of_rows(shuffled_copies) == of_rows(copies)


def of_rows(rows):
    found = read(ClaudeCode(), jsonl(rows))
    return records(found.drafts, ZERO_NS), found.skipped, found.notes


def test_a_result_older_than_its_call_is_that_calls_all_the_same():
    session = Session().user(0, "go").reply(1000, "m1", use("c1")).result(900, "c1").reply(2000, "m2", said())
    found, (loop,) = of(session)
    (call,) = loop.rounds[0].tool_calls
    assert ms(call.started_ns, call.ended_ns, call.duration_ns) == [1000, 1000, 0]
    assert call.ended
    assert loop.status == "ok"
    assert RESULT_ALONE not in found.skipped


def test_what_is_said_while_a_call_is_open_steers_its_loop():
    session = Session().user(0, "go").reply(1000, "m1", use("c1")).user(1500, "also this")
    session.result(2000, "c1").reply(3000, "m2", said()).user(9000, "another").reply(9500, "m3", said())
    _, (loop, after) = of(session)
    assert (loop.status, *ms(loop.started_ns, loop.ended_ns)) == ("ok", 0, 3000)
    assert ms(loop.rounds[1].model.started_ns) == [2000]
    assert ms(after.started_ns) == [9000]


def test_what_is_said_after_a_call_that_never_came_back_begins_a_loop():
    session = Session().user(0, "go").reply(1000, "m1", use("c1")).user(30_000, "still there?")
    session.reply(31_000, "m2", said())
    _, (broken, after) = of(session)
    assert (broken.status, *ms(broken.ended_ns)) == ("cancelled", 1000)
    assert (after.status, *ms(after.started_ns, after.ended_ns)) == ("ok", 30_000, 31_000)
