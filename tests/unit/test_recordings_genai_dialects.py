"""Programs that name their spans' attributes in their own way."""

from __future__ import annotations

from typing import Any

from profiler.recordings.drafts import CallDraft, LoopDraft, Tally, record_of
from profiler.recordings.genai import Raw, span_of
from profiler.recordings.span import Span
from profiler.recordings.spans import loops_of

MS = 1_000_000
AT = 1_800_000_000 * 10**9


def span(id_: str, name: str, start: int, end: int, parent: str = "a", **attributes: Any) -> Span:
    named = {key.replace("__", "."): value for key, value in attributes.items()}
    return span_of(Raw("t", id_, parent, name, 1, AT + start * MS, AT + end * MS, named))


def only(*spans: Span) -> LoopDraft:
    (loop,) = [one for one in loops_of(spans, "otel") if isinstance(one, LoopDraft)]
    return loop


ROOT = span("a", "claude_code.interaction", 0, 1000, "", span__type="interaction", session__id="s")
REQUEST = span(
    "m",
    "claude_code.llm_request",
    10,
    200,
    span__type="llm_request",
    model="claude-sonnet-4-5",
    input_tokens=2,
    cache_read_tokens=700,
    cache_creation_tokens=40,
    output_tokens=30,
    ttft_ms=50,
    attempt=2,
    success=True,
    stop_reason="tool_use",
)


def claude_tool(id_: str, start: int, end: int, call: str) -> Span:
    return span(id_, "claude_code.tool", start, end, tool_name="Bash", tool_use_id=call)


def asked(loop: LoopDraft) -> list[CallDraft]:
    return loop.rounds[0].calls


def test_claude_code_counts_cached_tokens_apart_and_its_tries():
    (round_,) = only(ROOT, REQUEST).rounds
    model = round_.model
    assert (model.provider, model.model, model.finish_reason) == (
        "anthropic",
        "claude-sonnet-4-5",
        "tool_use",
    )
    assert (model.input_tokens, model.cached_tokens, model.cache_written_tokens) == (742, 700, 40)
    assert (model.output_tokens, model.first_token_ns, model.resends) == (30, AT + 60 * MS, 1)


def test_claude_code_tool_ran_without_the_wait_for_its_approval():
    loop = only(
        ROOT,
        REQUEST,
        claude_tool("t", 210, 900, "c1"),
        span("w", "claude_code.tool.blocked_on_user", 211, 800, "t", decision="accept"),
        span("x", "claude_code.tool.execution", 805, 895, "t", success=False),
    )
    (call,) = asked(loop)
    assert (call.id, call.name, call.status) == ("c1", "Bash", "error")
    assert (call.asked_ns, call.started_ns, call.ended_ns) == (AT + 210 * MS, AT + 805 * MS, AT + 895 * MS)


def test_claude_code_tool_that_was_refused_never_started():
    loop = only(
        ROOT,
        REQUEST,
        claude_tool("t", 210, 900, "c1"),
        span("w", "claude_code.tool.blocked_on_user", 211, 899, "t", decision="reject"),
    )
    (call,) = asked(loop)
    assert (call.status, call.refused) == ("cancelled", True)


def test_claude_code_tool_whose_execution_is_lost_is_an_upper_bound():
    loop = only(
        ROOT,
        REQUEST,
        claude_tool("t", 210, 900, "c1"),
        span("w", "claude_code.tool.blocked_on_user", 211, 300, "t", decision="accept"),
    )
    tally = Tally()
    (call,) = record_of(loop, tally, AT).tool_calls
    assert (call.upper_bound, call.duration_ns) == (True, 690 * MS)


def test_claude_code_subagent_is_a_loop_inside_the_call():
    loops = loops_of(
        [
            ROOT,
            REQUEST,
            claude_tool("t", 210, 900, "c1"),
            span("x", "claude_code.tool.execution", 220, 895, "t"),
            span("m2", "claude_code.llm_request", 230, 500, "x", model="claude-haiku-4-5"),
        ],
        "otel",
    )
    outer, inner = [one for one in loops if isinstance(one, LoopDraft)]
    assert (inner.spawned_by, inner.parent, len(inner.rounds)) == ("t/t", outer.id, 1)


def test_mlflow_values_are_json_text():
    reply = '{"model": "gpt-4o", "choices": [{"finish_reason": "tool_calls", "message": {"tool_calls": '
    reply += '[{"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}]}}]}'
    model = span("m", "Completions", 0, 9, mlflow__spanType='"CHAT_MODEL"', mlflow__spanOutputs=reply)
    assert (model.kind, model.model, model.calls, model.finish_reason) == (
        "model",
        "gpt-4o",
        (("c1", "find"),),
        "tool_calls",
    )
    assert span("t", "find", 0, 9, mlflow__spanType='"TOOL"').name == "find"
    assert span("r", "search docs", 0, 9, mlflow__spanType='"RETRIEVER"').kind == "other"


def test_spring_ai_says_what_a_span_is_in_a_word_of_its_own():
    framework = {"gen_ai__operation__name": "framework", "gen_ai__system": "spring_ai"}
    assert (
        span("a", "spring_ai chat_client", 0, 9, spring__ai__kind="chat_client", **framework).kind == "agent"
    )
    assert span("b", "advise", 0, 9, spring__ai__kind="advisor", **framework).kind == "other"
    tool = span(
        "t",
        "tool_call f",
        0,
        9,
        spring__ai__kind="tool_call",
        spring__ai__tool__definition__name="f",
        **framework,
    )
    assert (tool.kind, tool.name) == ("tool", "f")


def test_a_framework_is_no_provider():
    said = span("m", "chat", 0, 9, gen_ai__operation__name="chat", gen_ai__system="strands-agents")
    assert said.provider == ""
    named = {
        "gen_ai__operation__name": "chat",
        "gen_ai__system": "spring_ai",
        "gen_ai__request__model": "gpt-4o",
    }
    assert span("m", "chat", 0, 9, **named).provider == "openai"


def lent(id_: str, parent: str, start: int, end: int, tokens: int) -> Span:
    usage = str({"completion_tokens": 4, "prompt_tokens": tokens, "total_tokens": 9})
    named = {"llm__openai__model": "gpt-4o", "llm__openai__usage": usage}
    return span(id_, "raw_gen_ai_request", start, end, parent, **named)


OWN = {
    "gen_ai__operation__name": "acompletion",
    "gen_ai__request__model": "gpt-4o",
    "gen_ai__system": "openai",
    "gen_ai__usage__input_tokens": 30,
    "llm__is_streaming": "True",
}


def test_litellm_writes_on_the_span_of_an_application_which_is_no_request():
    loop = only(
        span("a", "my agent", 0, 900, "", **OWN),
        lent("r1", "a", 10, 100, 20),
        lent("r2", "a", 500, 700, 30),
    )
    assert (loop.name, loop.started_ns, loop.ended_ns) == ("my agent", AT, AT + 900 * MS)
    assert [one.model.input_tokens for one in loop.rounds] == [20, 30]
    assert loop.rounds[0].model.ended_ns == AT + 100 * MS


def test_litellm_span_and_the_request_as_sent_are_one():
    loop = only(span("a", "litellm_request", 0, 100, "", **OWN), lent("r1", "a", 0, 100, 30))
    assert [(one.model.input_tokens, one.model.streamed) for one in loop.rounds] == [(30, True)]


def test_a_loop_without_a_root_asks_whichever_span_of_its_last_request_says_so():
    inner = lent("0", "a", 0, 100, 30)
    loop = only(
        span("a", "litellm_request", 0, 100, "", **OWN, gen_ai__completion__0__function_call__name="f"), inner
    )
    assert (loop.status, loop.rounds[0].unobserved) == ("cancelled", ("f",))


def test_a_span_around_several_answered_requests_is_an_agent():
    loop = only(
        span("a", "ask", 0, 900, "", **OWN),
        span("m1", "chat", 10, 100, **OWN),
        span("m2", "chat", 200, 300, **OWN),
    )
    assert [one.model.started_ns for one in loop.rounds] == [AT + 10 * MS, AT + 200 * MS]


def test_what_gets_a_request_ready_is_none():
    named = {"openinference__span__kind": "LLM", "llm__model_name": "m"}
    assert span("m", "OpenAI._prepare_chat_with_tools", 0, 9, **named).kind == "other"
    assert span("m", "OpenAI.achat", 0, 9, **named).kind == "model"


def test_names_of_operations_of_other_programs():
    kinds = {
        "chat.completions": "model",
        "chat.streaming_completions": "model",
        "llm_call": "model",
        "tool_call": "tool",
        "agent_call": "agent",
        "schedule_tool_calls": "other",
    }
    assert {one: span("x", one, 0, 9, gen_ai__operation__name=one).kind for one in kinds} == kinds


def test_langsmith_kind_counts_where_no_operation_is_said():
    assert span("t", "f", 0, 9, langsmith__span__kind="tool").kind == "tool"
    assert span("c", "f", 0, 9, langsmith__span__kind="chain").kind == "other"
