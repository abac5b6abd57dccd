"""One reader for the replies of each API: calls by their place, what goes back, tokens, times. No sockets."""

from __future__ import annotations

import cProfile
import json
from itertools import count, pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.loop.model import CallRequest, Probe
from profiler.providers.replies import Api, ReplyReader, reader_of
from profiler.providers.replies.events import EventStream
from profiler.providers.replies.reply import is_cut_off, joined_arguments, made_up_id, merged, sendable
from profiler.records import ServerToolCall
from tests.hostile.good import answer_of
from tests.hostile.grammar import paths_of

APIS: tuple[Api, ...] = ("openai", "openai-responses", "anthropic")
TOKYO, PARIS = '{"city":"Tokyo"}', '{"city":"Paris"}'

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def streamed(api: Api, *events: Any, end: bool = True) -> ReplyReader:
    """A reader that has read these events, on a clock that advances by one with every look."""
    reader = reader_of(api, Probe(count(1).__next__))
    for event in events:
        reader.event(event)
    if end:
        reader.end()
    return reader


def whole(api: Api, body: Any) -> ReplyReader:
    reader = reader_of(api, Probe(count(1).__next__))
    reader.whole(body)
    return reader


def told(reader: ReplyReader) -> list[tuple[str, str, Any]]:
    return [(call.id, call.name, call.arguments) for call in reader.calls]


# ── server-sent events ─────────────────────────────────────────────────────────────────────────

EVENTS = (
    "\N{BYTE ORDER MARK}: a comment\n\ndata: one\n\nevent: error\ndata:two\n\n\n"
    'id: 7\ndata: a\ndata: b\nretry: 5\n\ndata\n\ndata: {"x": "Zürich 東京"}\n\ndata: open'
).encode()
READ = [
    ("", b"one"),
    ("error", b"two"),
    ("", b"a\nb"),
    ("", b""),
    ("", '{"x": "Zürich 東京"}'.encode()),
    ("", b"open"),
]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
@given(cuts=st.lists(st.integers(0, len(EVENTS) + 40), max_size=30))
def test_events_are_the_same_however_lines_end_and_bytes_are_cut(ending: bytes, cuts: list[int]):
    body = EVENTS.replace(b"\n", ending)
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    stream = EventStream()
    read = [event for begin, end in pairwise(places) for event in stream.feed(body[begin:end])]
    assert read + stream.end() == READ
    assert stream.end() == []


def test_events_that_come_byte_by_byte_are_read_too():
    stream = EventStream()
    body = EVENTS.replace(b"\n", b"\r\n")
    read = [event for byte in body for event in stream.feed(bytes([byte]))]
    assert read + stream.end() == READ


# ── Chat Completions ───────────────────────────────────────────────────────────────────────────


def chunk(delta: Any, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


def piece(arguments: Any = None, *, name: str = "look", **call: Any) -> dict[str, Any]:
    return chunk({"tool_calls": [{**call, "function": {"name": name, "arguments": arguments}}]})


def more(arguments: str, **call: Any) -> dict[str, Any]:
    return chunk({"tool_calls": [{**call, "function": {"arguments": arguments}}]})


FINISH = chunk({}, "tool_calls")
BOTH = [("a", "look", TOKYO), ("b", "look", PARIS)]


@pytest.mark.parametrize(
    "events",
    [
        [piece(TOKYO, index=0, id="a"), piece(PARIS, index=1, id="b")],
        [piece(TOKYO, id="a"), piece(PARIS, id="b")],
        [piece(TOKYO, index=0, id="a"), piece(PARIS, index=0, id="b")],
        [piece("", index=0, id="a"), piece("", index=0, id="b"), more(PARIS, id="b"), more(TOKYO, id="a")],
        [
            piece("", index=0, id="a"),
            piece("", index=0, id="b"),
            more(TOKYO, index=0, id="a"),
            more(PARIS, index=0, id="b"),
        ],
        [
            piece("", index=-1, id="a"),
            more(TOKYO, index=-1),
            piece("", index=4, id="b"),
            more(PARIS, index=4),
        ],
        [
            piece("", index=0, id="a"),
            piece("", index=1, id="b"),
            more(TOKYO[:5], index=0),
            more(PARIS[:5], index=1),
            more(TOKYO[5:], index=0),
            more(PARIS[5:], index=1),
        ],
        [piece(TOKYO, index=0, id="a"), FINISH, piece(PARIS, index=0, id="b"), FINISH, more("", index=0)],
        [piece(TOKYO, index=0, id="a"), piece("", index=0, id="a"), piece(PARIS, index=1, id="b")],
        [
            piece("{}", index=0, id="a"),
            piece({}, index=1, id="b"),
            more(TOKYO, index=0),
            more(PARIS, index=1),
        ],
        [
            piece("", index=0, id="a", name="lo"),
            piece(TOKYO, index=0, name="ok"),
            piece(PARIS, index=1, id="b"),
        ],
    ],
    ids=[
        "index",
        "id",
        "index 0",
        "interleaved by id",
        "interleaved by id at one index",
        "index -1",
        "interleaved",
        "finishes",
        "said again",
        "a placeholder first",
        "a name in two pieces",
    ],
)
def test_chat_tells_calls_apart(events: list[Any]):
    reader = streamed("openai", *events, FINISH)
    assert (told(reader), reader.unreadable, reader.complete) == (BOTH, 0, True)


def test_chat_calls_that_share_an_id_or_have_none_are_as_many_calls():
    shared = streamed("openai", piece(TOKYO, index=0, id="x"), piece(PARIS, index=1, id="x"), FINISH)
    assert told(shared) == [("x", "look", TOKYO), ("x", "look", PARIS)]
    reader = streamed("openai", piece(TOKYO), piece(PARIS), piece(PARIS, name="find"), FINISH)
    assert [(name, arguments) for _, name, arguments in told(reader)] == [
        ("look", TOKYO),
        ("look", PARIS),
        ("find", PARIS),
    ]
    ids = [ident for ident, *_ in told(reader)]
    assert len({*ids}) == 3
    assert all(len(ident) == 9 and ident.isalnum() for ident in ids)
    assert [one["id"] for one in reader.messages[0]["tool_calls"]] == ids


@pytest.mark.parametrize(
    ("given_", "read"),
    [
        (None, "{}"),
        ("", "{}"),
        (" ", "{}"),
        ([], "{}"),
        ("null", "{}"),
        ({"city": "Tokyo"}, {"city": "Tokyo"}),
        (7, "7"),
        ("nonsense", "nonsense"),
    ],
)
def test_chat_arguments_that_are_none_are_an_empty_object(given_: Any, read: Any):
    call = {"id": "a", "type": None, "function": {"name": "look", "arguments": given_}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    body = {"choices": [{"message": message, "finish_reason": "tool_calls"}]}
    for reader in (whole("openai", body), streamed("openai", chunk(message), FINISH)):
        assert told(reader) == [("a", "look", read)]
        text = read if isinstance(read, str) else json.dumps(read, separators=(",", ":"))
        assert reader.messages[0]["tool_calls"] == [
            {"id": "a", "type": "function", "function": {"name": "look", "arguments": text}}
        ]


def test_chat_gives_back_what_it_does_not_know_and_keeps_what_is_of_the_response():
    events = [
        chunk({"role": "assistant", "content": "", "reasoning_content": "so ", "refusal": None}),
        chunk({"reasoning_content": "then", "annotations": [{"url": "x"}], "audio": {"id": 1}, "n": None}),
        chunk({"reasoning_details": [{"type": "t", "index": 0, "text": "a"}], "blob": {"sum": 1, "s": "x"}}),
        chunk({"reasoning_details": [{"type": "t", "index": 0, "text": "b"}], "blob": {"sum": 2, "s": "y"}}),
        chunk({"tool_calls": [{"index": 0, "id": "a", "extra": {"sig": "S"}, "function": {"name": "look"}}]}),
        chunk({"tool_calls": [{"index": 0, "extra": {"sig": "T"}, "function": {"arguments": TOKYO}}]}),
        FINISH,
    ]
    assert streamed("openai", *events).messages == [
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "so then",
            "reasoning_details": [{"type": "t", "index": 0, "text": "ab"}],
            "blob": {"sum": 2, "s": "xy"},
            "tool_calls": [
                {
                    "id": "a",
                    "type": "function",
                    "extra": {"sig": "ST"},
                    "function": {"name": "look", "arguments": TOKYO},
                }
            ],
        }
    ]


def test_chat_content_of_parts_is_joined_by_their_type_as_if_it_came_whole():
    def thinking(text: str) -> dict[str, Any]:
        return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}

    pieces = [[thinking("Let")], [thinking(" me")], "The", [{"type": "text", "text": " answer"}], ""]
    reader = streamed("openai", *(chunk({"content": one}) for one in pieces), chunk({}, "stop"))
    whole_ = [thinking("Let me"), {"type": "text", "text": "The answer"}]
    assert reader.messages == [{"role": "assistant", "content": whole_}]
    assert "".join(reader.texts) == "The answer"
    unstreamed = whole("openai", {"choices": [{"message": {"content": whole_}}]})
    assert (unstreamed.messages, unstreamed.complete) == (reader.messages, True)


def test_chat_message_that_ends_a_stream_whole_is_not_said_twice():
    events = [chunk({"content": "Hel"}), chunk({"content": "lo"})]
    last = {"choices": [{"message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]}
    assert streamed("openai", *events, last).texts == ["Hel", "lo"]


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "broken", [b'data: {"error": {"message": "no"}}\n\n', b"data: nonsense\n\n", b'data: {"x']
)
def test_no_call_of_a_reply_that_failed_is_final(api: Api, broken: bytes):
    opening: dict[Api, Any] = {
        "openai": piece("", index=0, id="a"),
        "openai-responses": {"type": "response.output_item.added", "item": item("a", "")},
        "anthropic": block(0, "a")[0],
    }
    final: list[CallRequest] = []
    reader = reader_of(api, Probe(count().__next__, on_call=final.append))
    reader.event(opening[api])
    reader.feed(broken)
    reader.end()
    assert (final, reader.calls, reader.usable) == ([], [], False)


def test_long_replies_take_work_in_proportion():
    def events(pieces: int) -> list[Any]:
        arguments = [more('{"a":{}},', index=0) for _ in range(pieces)]
        return [
            *(chunk({"reasoning_content": "abcd"}) for _ in range(pieces)),
            piece("[", index=0),
            *arguments,
        ]

    # Work, not time: how many characters are parsed or copied shows in the calls of the functions.
    profiles = []
    for pieces in (500, 1000):
        profile = cProfile.Profile()
        profile.runcall(streamed, "openai", *events(pieces), FINISH)
        profiles.append(sum(entry.callcount for entry in profile.getstats()))
    assert profiles[1] < 2.1 * profiles[0]


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_chat_call_that_is_last_of_a_reply_cut_off_is_truncated(reason: str):
    events = [piece(TOKYO, index=0, id="a"), piece(PARIS, index=1, id="b"), chunk({}, reason)]
    final: list[CallRequest] = []
    reader = reader_of("openai", Probe(count().__next__, on_call=final.append))
    for event in events:
        reader.event(event)
    reader.end()
    assert [call.truncated for call in reader.calls] == [False, True]
    assert final == [reader.calls[0]]


def test_chat_reply_is_complete_with_a_finish_or_a_done_marker():
    texts = [chunk({"content": "yes"})]
    assert not streamed("openai", *texts).complete
    assert streamed("openai", *texts, chunk({}, "stop")).complete
    reader = streamed("openai", *texts, piece(TOKYO[:4], index=0, id="a"), end=False)
    reader.feed(b"data: [DONE]\n\n")
    reader.end()
    assert (reader.complete, reader.done, [call.truncated for call in reader.calls]) == (True, True, [True])


def test_chat_tokens_mean_the_same_whatever_the_fields():
    def tokens(**usage: Any) -> tuple[Any, ...]:
        reader = streamed("openai", chunk({"content": "x"}, "stop"), {"choices": [], "usage": usage})
        assert reader.broken is None
        return (
            reader.input_tokens,
            reader.cached_tokens,
            reader.cache_written_tokens,
            reader.output_tokens,
            reader.reasoning_tokens,
            reader.unreadable,
        )

    details = {
        "prompt_tokens_details": {"cached_tokens": 40},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    assert tokens(prompt_tokens=50, completion_tokens=9, **details) == (50, 40, None, 9, 5, 0)
    assert tokens(prompt_tokens=50, completion_tokens=9, total_tokens=64, **details) == (
        50,
        40,
        None,
        14,
        5,
        0,
    )
    assert tokens(prompt_tokens=50, prompt_cache_hit_tokens=30) == (50, 30, None, None, None, 0)
    assert tokens(prompt_tokens="many", completion_tokens=-1) == (None, None, None, None, None, 2)
    assert tokens(prompt_tokens=2**80, completion_tokens=True) == (None, None, None, None, None, 2)
    assert tokens(prompt_tokens=7.0, completion_tokens=None) == (7, None, None, None, None, 0)


def test_first_token_counts_reasoning_and_first_output_does_not():
    reader = streamed("openai", chunk({"reasoning": "hm"}), chunk({"content": "yes"}), chunk({}, "stop"))
    assert (reader.probe.first_token_ns, reader.probe.first_output_ns) == (1, 2)
    thinking = {"index": 0, "content_block": {"type": "thinking", "thinking": ""}}
    texts = {"index": 1, "content_block": {"type": "text", "text": ""}}
    reader = streamed(
        "anthropic",
        {"type": "content_block_start", **thinking},
        {"type": "content_block_start", **texts},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "yes"}},
        end=False,
    )
    assert (reader.probe.first_token_ns, reader.probe.first_output_ns) == (1, 2)
    reader = streamed(
        "openai-responses",
        {"type": "response.reasoning_summary_text.delta", "delta": "hm"},
        {"type": "response.output_text.delta", "delta": "yes"},
        end=False,
    )
    assert (reader.probe.first_token_ns, reader.probe.first_output_ns) == (1, 2)


GEMINI = {"content": "<thought>hm", "extra_content": {"google": {"thought": True}}}


@pytest.mark.parametrize(
    ("api", "events"),
    [
        ("openai", [chunk({"content": "", "role": "assistant"}), chunk({"reasoning_text": "hm"})]),
        ("openai", [chunk({"reasoning_content": ""}), chunk({"thinking_blocks": [{"thinking": "hm"}]})]),
        ("openai", [chunk({"content": None, "refusal": None, "tool_calls": []}), chunk(GEMINI)]),
        (
            "openai-responses",
            [
                {"type": "response.output_text.delta", "delta": ""},
                {"type": "response.reasoning_text.delta", "delta": "hm"},
            ],
        ),
        (
            "anthropic",
            [
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": ""}},
                {"type": "content_block_start", "index": 1, "content_block": {"type": "thinking"}},
            ],
        ),
    ],
)
def test_empty_pieces_are_no_tokens_and_reasoning_is_no_output(api: Api, events: list[Any]):
    reader = streamed(api, end=False)
    begin = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    if api == "anthropic":
        reader.event(begin)
    reader.event(events[0])
    assert (reader.probe.first_token_ns, reader.probe.first_output_ns) == (None, None)
    reader.event(events[1])
    assert (reader.probe.first_token_ns, reader.probe.first_output_ns) == (1, None)


@pytest.mark.parametrize(
    ("api", "event"),
    [
        ("openai", chunk({"refusal": "I"})),
        ("openai", chunk({"audio": {"transcript": "I"}})),
        ("openai-responses", {"type": "response.refusal.delta", "delta": "I"}),
        (
            "openai-responses",
            {"type": "response.output_item.done", "item": {"type": "message", "content": [{"text": "I"}]}},
        ),
    ],
)
def test_refusals_speech_and_text_without_deltas_are_output(api: Api, event: Any):
    reader = streamed(api, event, end=False)
    assert (reader.probe.first_token_ns, reader.probe.first_output_ns) == (1, 1)


# What servers say of tokens: (input, output, cached, written, written for an hour, reasoning), unreadable.
COUNTED = {"prompt_tokens": 100, "completion_tokens": 20}


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({**COUNTED, "total_tokens": 120}, (100, 20, None, None, None, None, 0)),
        ({**COUNTED, "total_tokens": 40}, (100, 20, None, None, None, None, 0)),  # less than its parts
        ({**COUNTED, "total_tokens": "many"}, (100, 20, None, None, None, None, 0)),
        # Left out of the counts: so says the total, ...
        ({**COUNTED, "total_tokens": 150, "cached_tokens": 30}, (130, 20, 30, None, None, None, 0)),
        ({**COUNTED, "total_tokens": 130, "reasoning_tokens": 10}, (100, 30, None, None, None, 10, 0)),
        (
            {**COUNTED, "total_tokens": 160, "reasoning_tokens": 10, "cached_tokens": 30},
            (130, 30, 30, None, None, 10, 0),
        ),
        # ... or a part that is larger than the whole.
        ({**COUNTED, "total_tokens": 120, "reasoning_tokens": 60}, (100, 80, None, None, None, 60, 0)),
        ({"prompt_tokens": 12, "cached_tokens": 3000}, (3012, None, 3000, None, None, None, 0)),
        # Read and written overlap in what some servers say: neither is larger than all.
        (
            {**COUNTED, "prompt_tokens_details": {"cached_tokens": 80, "cache_write_tokens": 90}},
            (100, 20, 80, 90, None, None, 0),
        ),
        (
            {
                **COUNTED,
                "prompt_tokens_details": {
                    "cache_creation_tokens": 50,
                    "cache_creation_token_details": {"ephemeral_1h_input_tokens": 20},
                },
            },
            (100, 20, None, 50, 20, None, 0),
        ),
        (
            {
                **COUNTED,
                "prompt_tokens_details": {
                    "cache_creation": {"ephemeral_5m_input_tokens": 7},
                    "cached_tokens": 0,
                },
            },
            (100, 20, 0, 7, None, None, 0),
        ),
        (
            {**COUNTED, "claude_cache_creation_1_h_tokens": 9, "claude_cache_creation_5_m_tokens": 1},
            (100, 20, None, 10, 9, None, 0),
        ),
        # Only the total has the reasoning, unless it is told.
        ({**COUNTED, "total_tokens": 700}, (100, 600, None, None, None, None, 0)),
        ({**COUNTED, "total_tokens": 700, "reasoning_tokens": 0}, (100, 20, None, None, None, 0, 0)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, (None,) * 6 + (0,)),
        ({"prompt_tokens": 0, "completion_tokens": 20}, (None, 20, None, None, None, None, 0)),
        ({**COUNTED, "prompt_tokens": 10**12, "cached_tokens": 1}, (10**12, 20, 1, None, None, None, 0)),
        ({**COUNTED, "prompt_tokens": 10**12 + 1}, (None, 20, None, None, None, None, 1)),
        (  # each is a count, their sum is none
            {**COUNTED, "prompt_tokens": 10**12, "cached_tokens": 10**12, "total_tokens": 2 * 10**12 + 20},
            (None, 20, 10**12, None, None, None, 1),
        ),
    ],
)
def test_chat_parts_and_totals_of_a_usage(usage: Any, tokens: tuple[Any, ...]):
    reader = streamed("openai", chunk({"content": "x"}, "stop"), {"choices": [], "usage": usage})
    assert (
        reader.input_tokens,
        reader.output_tokens,
        reader.cached_tokens,
        reader.cache_written_tokens,
        reader.cache_written_1h_tokens,
        reader.reasoning_tokens,
        reader.unreadable,
    ) == tokens


def test_chat_total_is_that_of_its_own_usage():
    events = [
        chunk({"content": "x"}, usage={"prompt_tokens": 90, "completion_tokens": 60, "total_tokens": 150}),
        chunk({}, "stop", usage={"prompt_tokens": 11, "completion_tokens": 7}),
    ]
    reader = streamed("openai", *events)
    assert (reader.input_tokens, reader.output_tokens) == (11, 7)


def test_chat_usage_beside_an_error_counts():
    failed = {
        "error": {"message": "gone"},
        "choices": [{"delta": {}, "finish_reason": "error"}],
        "usage": COUNTED,
    }
    reader = streamed("openai", chunk({"content": "x"}), failed)
    assert reader.error == {"message": "gone"}
    assert (reader.input_tokens, reader.output_tokens) == (100, 20)


def test_messages_of_what_was_written_no_more_is_for_an_hour_than_all():
    first = {
        "input_tokens": 15,
        "cache_creation_input_tokens": 100,
        "cache_creation": {"ephemeral_1h_input_tokens": 100},
    }
    reader = streamed(
        "anthropic",
        {"type": "message_start", "message": {"usage": first}},
        *stopped("end_turn", cache_creation_input_tokens=50, output_tokens=8),
    )
    written = reader.cache_written_tokens, reader.cache_written_1h_tokens
    assert (reader.input_tokens, *written) == (65, 50, 50)


# ── Responses ──────────────────────────────────────────────────────────────────────────────────


def item(ident: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": f"fc_{ident}",
        "call_id": ident,
        "name": "look",
        "arguments": arguments,
        **more,
    }


def done(index: int, output: dict[str, Any]) -> dict[str, Any]:
    return {"type": "response.output_item.done", "output_index": index, "item": output}


def ended(kind: str = "completed", output: Any = (), **more: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "response": {"status": kind, "output": [*output], **more}}


@pytest.mark.parametrize("output", [(), (item("a", TOKYO),), (item("a", TOKYO), item("b", PARIS))])
def test_responses_items_that_were_done_count_whatever_the_end_says(output: tuple[Any, ...]):
    a, b = item("a", TOKYO, status="completed"), item("b", PARIS)
    reader = streamed("openai-responses", done(1, b), done(0, a), ended(output=output))
    assert told(reader) == BOTH
    assert [one["call_id"] for one in reader.messages] == ["a", "b"]
    # The same objects that the probe was told of, so that a call that began early is found again.
    assert {id(call) for call in reader.calls} == {id(call) for call, _ in reader.probe.complete}


def test_responses_call_without_a_status_is_final_only_when_something_follows():
    final: list[CallRequest] = []
    reader = reader_of("openai-responses", Probe(count().__next__, on_call=final.append))
    reader.event(done(0, item("a", TOKYO)))
    assert final == []
    reader.event(done(1, item("b", PARIS)))
    assert [call.id for call in final] == ["a"]
    reader.event(ended("incomplete"))
    reader.end()
    assert [(call.id, call.truncated) for call in reader.calls] == [("a", False), ("b", True)]
    assert [call.id for call in final] == ["a"]


def test_responses_server_tools_have_the_times_that_the_stream_tells():
    search = {"type": "web_search_call", "id": "ws"}
    program, ran = {"type": "program", "call_id": "p"}, {"type": "program_output", "call_id": "p"}
    reader = streamed(
        "openai-responses",
        {"type": "response.output_item.added", "output_index": 0, "item": search},
        done(0, search),
        {"type": "response.output_item.added", "output_index": 1, "item": program},
        done(1, program),
        {"type": "response.output_item.added", "output_index": 2, "item": ran},
        done(2, ran),
        ended(),
    )
    assert reader.server_tools == [ServerToolCall("web_search", 1, 2), ServerToolCall("program", 4, 5)]
    unstreamed = whole("openai-responses", {"status": "completed", "output": [search, program, ran]})
    assert unstreamed.server_tools == [ServerToolCall("web_search"), ServerToolCall("program")]


# ── Messages ───────────────────────────────────────────────────────────────────────────────────


def block(
    index: int, ident: str, *texts: str, kind: str = "tool_use", name: str = "look"
) -> list[dict[str, Any]]:
    start = {"type": kind, "id": ident, "name": name, "input": {}}
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *(
            {
                "type": "content_block_delta",
                "index": index,
                "delta": {"type": "input_json_delta", "partial_json": text},
            }
            for text in texts
        ),
        {"type": "content_block_stop", "index": index},
    ]


def stopped(reason: str, **usage: Any) -> list[dict[str, Any]]:
    return [
        {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage},
        {"type": "message_stop"},
    ]


def test_messages_call_whose_json_is_broken_goes_back_empty_beside_its_sibling():
    reader = streamed(
        "anthropic", *block(0, "a", '{"city": Tokyo'), *block(1, "b", PARIS), *stopped("tool_use")
    )
    assert told(reader) == [("a", "look", '{"city": Tokyo'), ("b", "look", PARIS)]
    assert [one["input"] for one in reader.messages[0]["content"]] == [{}, {"city": "Paris"}]


@pytest.mark.parametrize("reason", ["max_tokens", "model_context_window_exceeded", "refusal"])
def test_messages_last_call_of_a_reply_cut_off_is_truncated(reason: str):
    final: list[CallRequest] = []
    reader = reader_of("anthropic", Probe(count().__next__, on_call=final.append))
    for event in (*block(0, "a", TOKYO), *block(1, "b", PARIS), *stopped(reason)):
        reader.event(event)
    reader.end()
    assert [(call.id, call.truncated) for call in reader.calls] == [("a", False), ("b", True)]
    assert [call.id for call in final] == ["a"]


def test_messages_tokens_add_up_and_the_last_word_counts():
    first = {"input_tokens": 0, "cache_read_input_tokens": 30_000, "output_tokens": 1}
    reader = streamed(
        "anthropic",
        {"type": "message_start", "message": {"usage": first}},
        *stopped(
            "end_turn",
            input_tokens=12,
            cache_creation_input_tokens=20_000,
            output_tokens=90,
            output_tokens_details={"thinking_tokens": 40},
        ),
    )
    assert (reader.input_tokens, reader.cached_tokens, reader.cache_written_tokens) == (
        50_012,
        30_000,
        20_000,
    )
    assert (reader.output_tokens, reader.reasoning_tokens) == (90, 40)


def test_messages_server_tools_run_from_their_input_to_their_result():
    result = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
    events = [
        *block(0, "s", '{"query":"x"}', kind="server_tool_use", name="web_search"),
        {"type": "content_block_start", "index": 1, "content_block": result},
        {"type": "content_block_stop", "index": 1},
        *stopped("pause_turn"),
    ]
    reader = streamed("anthropic", *events)
    began_ns, ended_ns = reader.server_tools[0].started_ns, reader.server_tools[0].ended_ns
    assert reader.server_tools[0].name == "web_search"
    assert began_ns is not None
    assert ended_ns == began_ns + 1
    assert (reader.paused, reader.calls) == (True, [])
    assert reader.messages[0]["content"] == [
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "x"}},
        result,
    ]


def test_messages_citations_go_back_once_each():
    deltas = [{"type": "citations_delta", "citation": {"n": number}} for number in range(5)]
    start = {"type": "text", "text": "", "citations": None}
    reader = streamed(
        "anthropic",
        {"type": "content_block_start", "index": 0, "content_block": start},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "so"}},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        *stopped("end_turn"),
    )
    assert reader.messages[0]["content"] == [
        {"type": "text", "text": "so", "citations": [{"n": number} for number in range(5)]}
    ]


def test_messages_thinking_goes_back_with_its_signature():
    start = {"type": "thinking", "thinking": "", "signature": ""}
    deltas = [
        {"type": "thinking_delta", "thinking": "so "},
        {"type": "thinking_delta", "thinking": "then"},
        {"type": "signature_delta", "signature": "SIG"},
    ]
    reader = streamed(
        "anthropic",
        {"type": "content_block_start", "index": 0, "content_block": start},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        *block(1, "a", TOKYO),
        *stopped("tool_use"),
    )
    assert reader.messages[0]["content"] == [
        {"type": "thinking", "thinking": "so then", "signature": "SIG"},
        {"type": "tool_use", "id": "a", "name": "look", "input": {"city": "Tokyo"}},
    ]


# ── all of them ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("api", APIS)
@given(values=st.lists(json_values, max_size=4))
def test_nothing_that_comes_raises(api: Api, values: list[Any]):
    reader = streamed(api, *values)
    assert reader.reply(None).calls == tuple(reader.calls)
    for value in values:
        whole(api, value).reply(None)


SHAPES = {
    "openai": lambda v: chunk({"content": v, "tool_calls": v, "x": v}, None, usage=v),
    "openai-responses": lambda v: done(0, {"type": "function_call", "call_id": v, "name": v, "arguments": v}),
    "anthropic": lambda v: {
        "type": "content_block_start",
        "index": v,
        "content_block": {"type": "tool_use", "id": v, "name": v, "input": v},
    },
}


@pytest.mark.parametrize("api", APIS)
@given(value=json_values)
def test_no_value_of_a_field_raises(api: Api, value: Any):
    reader = streamed(api, SHAPES[api](value), {"type": "message_stop"}, ended())
    assert all(isinstance(call.name, str) and isinstance(call.id, str) for call in reader.calls)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    ("body", "error", "broken"),
    [
        (b'{"error": {"message": "no"}}', {"message": "no"}, False),
        (b"<html>", None, True),
        (b"[]", None, True),
        (b"{}", None, True),
        (b'"\xff"', None, True),
        (b"[" * 5000, None, True),
    ],
)
def test_a_body_that_is_no_reply_is_said_to_be_none(api: Api, body: bytes, error: Any, broken: bool):
    reader = reader_of(api, Probe(count().__next__))
    reader.read(body)
    assert (reader.error, reader.broken is not None, reader.complete) == (error, broken, False)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b'data: {"error": {"message": "no"}}\n\n', {"message": "no"}),
        (b"event: error\ndata: overloaded\n\n", "overloaded"),
        (b'event: error\ndata: {"message": "no"}\n\n', {"message": "no"}),
    ],
)
def test_an_error_in_a_stream_is_the_servers(api: Api, stream: bytes, error: Any):
    reader = reader_of(api, Probe(count().__next__))
    reader.feed(stream)
    assert (reader.error, reader.broken) == (error, None)


def test_pieces_of_one_object_are_put_together():
    pieces = [
        {"text": "a", "id": "x", "n": 1, "deep": {"text": "b", "type": "t"}, "list": [1], "none": None},
        {"text": "c", "id": "x", "n": 2, "deep": {"text": "d", "type": "t"}, "list": [2], "none": None},
    ]
    assert merged(pieces) == {
        "text": "ac",
        "id": "x",
        "n": 2,
        "deep": {"text": "bd", "type": "t"},
        "list": [2],
    }


def test_ids_that_are_made_up_differ():
    ids = [made_up_id() for _ in range(1000)]
    assert len({*ids}) == 1000
    assert {len(ident) for ident in ids} == {9}


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (['{"city":', '"Tokyo"}'], TOKYO),
        (["{}", '{"city":', '"Tokyo"}'], TOKYO),
        (["", "{}", TOKYO], TOKYO),
        ([TOKYO, TOKYO, TOKYO], TOKYO),
        (['{"city":', '"Tokyo"}', TOKYO], TOKYO),
        (["{}"], "{}"),
        (["{}", " "], "{} "),
        (["{}", '{"city":'], '{}{"city":'),
        ([TOKYO, PARIS], TOKYO + PARIS),
        (['{"a":"x', "x", '"}'], '{"a":"xx"}'),
    ],
)
def test_arguments_in_pieces_are_joined_but_not_what_is_said_twice(pieces: list[str], text: str):
    assert joined_arguments(pieces) == text


@pytest.mark.parametrize(
    ("reason", "cut_off"),
    [
        ("length", True),
        ("MAX_TOKENS", True),
        ("FinishReason.MAX_TOKENS", True),
        ("content_filter: PROHIBITED_CONTENT", True),
        ("tool_calls", False),
        ("TOOL_CALLS", False),
        ("stop", False),
        ("", False),
        (None, False),
    ],
)
def test_a_reply_was_cut_off_for_these_reasons(reason: str | None, cut_off: bool):
    assert is_cut_off(reason) is cut_off


@pytest.mark.parametrize("reason", ["MAX_TOKENS", "content_filter", "network_error"])
def test_the_last_call_of_a_reply_cut_off_never_becomes_final(reason: str):
    """Whichever API: a gateway passes on the reason of the server behind it."""
    events: dict[Api, list[Any]] = {
        "openai": [piece(TOKYO, index=0, id="a"), piece(PARIS, index=1, id="b"), chunk({}, reason)],
        "anthropic": [*block(0, "a", TOKYO), *block(1, "b", PARIS), *stopped(reason)],
    }
    for api, sent in events.items():
        final: list[CallRequest] = []
        reader = reader_of(api, Probe(count().__next__, on_call=final.append))
        for event in sent:
            reader.event(event)
        reader.end()
        assert [call.truncated for call in reader.calls] == [False, True]
        assert [call.id for call in final] == ["a"]


def test_blocks_of_thinking_end_with_their_signature():
    def blocks(*parts: tuple[str, str]) -> list[dict[str, Any]]:
        return [{"type": "thinking", "thinking": text, "signature": signature} for text, signature in parts]

    hidden = {"type": "redacted_thinking", "data": "D"}
    pieces = [*blocks(("a", ""), ("b", ""), ("", "S"), ("c", ""), ("c", "T")), hidden, hidden]
    assert merged({"thinking_blocks": [one]} for one in pieces) == {
        "thinking_blocks": [*blocks(("ab", "S"), ("c", "T")), hidden, hidden]
    }


def test_messages_input_goes_to_no_block_but_its_own():
    stray = {"type": "input_json_delta", "partial_json": "{}"}
    begun, more, ended_ = block(0, "a", TOKYO)
    reader = streamed(
        "anthropic",
        begun,
        {"type": "content_block_delta", "index": 3, "delta": stray},
        more,
        ended_,
        *stopped("tool_use"),
    )
    assert (told(reader), reader.unreadable) == ([("a", "look", TOKYO)], 1)


def test_responses_custom_input_may_come_in_its_last_event_alone():
    begun = {"type": "custom_tool_call", "id": "ct_a", "call_id": "a", "name": "look", "input": ""}
    reader = streamed(
        "openai-responses",
        {"type": "response.output_item.added", "output_index": 0, "item": begun},
        {
            "type": "response.custom_tool_call_input.done",
            "item_id": "ct_a",
            "output_index": 0,
            "input": "print(1)",
        },
        ended(),
    )
    assert (told(reader), reader.unreadable) == ([("a", "look", "print(1)")], 0)


def test_an_event_without_a_type_is_what_its_name_says():
    reader = reader_of("anthropic", Probe(count().__next__))
    for event in (*block(0, "a", TOKYO), *stopped("tool_use", output_tokens=7)):
        kind = event.pop("type")
        reader.feed(f"event: {kind}\ndata: {json.dumps(event)}\n\n".encode())
    reader.end()
    assert (told(reader), reader.output_tokens, reader.unreadable) == ([("a", "look", TOKYO)], 7, 0)


def test_a_delta_without_a_type_is_what_it_holds():
    begun, _, ended_ = block(0, "a", TOKYO)
    untyped = {"type": "content_block_delta", "index": 0, "delta": {"partial_json": TOKYO}}
    assert told(streamed("anthropic", begun, untyped, ended_, *stopped("tool_use"))) == [("a", "look", TOKYO)]


@pytest.mark.parametrize("api", ["openai-responses", "anthropic"])
def test_a_stream_of_another_api_is_counted_as_unreadable(api: Api):
    reader = streamed(api, chunk({"content": "yes"}), chunk({}, "stop"))
    assert (reader.complete, reader.unreadable) == (False, 2)


@pytest.mark.parametrize("api", APIS)
def test_a_call_without_a_name_is_counted_and_neither_runs_nor_goes_back(api: Api):
    whole_: dict[Api, Any] = {
        "openai": {"choices": [{"message": {"tool_calls": [{"id": "a", "function": {"arguments": TOKYO}}]}}]},
        "openai-responses": {"status": "completed", "output": [{**item("a", TOKYO), "name": None}]},
        "anthropic": {"content": [{"type": "tool_use", "id": "a", "input": {}}], "stop_reason": "tool_use"},
    }
    reader = whole(api, whole_[api])
    assert (reader.calls, reader.unreadable) == ([], 1)
    assert "tool_use" not in str(reader.messages)
    assert "call" not in str(reader.messages)


def test_a_reply_that_was_cut_off_stays_so():
    events = [piece(TOKYO, index=0, id="a"), chunk({}, "length"), chunk({}, "tool_calls")]
    reader = streamed("openai", *events)
    assert ([call.truncated for call in reader.calls], reader.finish_reason) == ([True], "length")
    reader = streamed("anthropic", *block(0, "a", TOKYO), *stopped("max_tokens")[:1], *stopped("tool_use"))
    assert ([call.truncated for call in reader.calls], reader.finish_reason) == ([True], "max_tokens")


def test_responses_item_that_was_done_may_lack_what_its_other_events_say():
    added = {"type": "response.output_item.added", "output_index": 0, "item": item("a", "")}
    nameless = {"type": "function_call", "arguments": TOKYO, "status": "completed"}
    assert told(streamed("openai-responses", added, done(0, nameless), ended())) == [("a", "look", TOKYO)]
    empty = streamed("openai-responses", done(0, item("a", "")), ended(output=[item("a", TOKYO)]))
    assert told(empty) == [("a", "look", TOKYO)]
    none = streamed("openai-responses", done(0, item("a", "")), ended(output=[item("a", "")]))
    assert told(none) == [("a", "look", "{}")]


def test_chat_completion_of_the_old_kind_is_counted():
    old = {"choices": [{"index": 0, "text": "yes", "finish_reason": "stop"}]}
    assert streamed("openai", old).unreadable == 1


@pytest.mark.parametrize(
    ("came", "goes_on"),
    [
        ("plain", "plain"),
        ("\u00e9\U0001f600", "\u00e9\U0001f600"),
        ("\ud83d\ude00", "\U0001f600"),  # the two halves came in two pieces
        ("a\ud800b", "a\ufffdb"),
        ({"a": [float("nan"), float("inf"), 1.5]}, {"a": [None, None, 1.5]}),
        ({"\udc00": 10**30}, {"\ufffd": 10**30}),
    ],
)
def test_what_no_json_can_hold_does_not_go_on(came: Any, goes_on: Any) -> None:
    assert sendable(came) == goes_on


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("odd", [r'"\ud800"', "NaN", "1e400", "1" + "0" * 40])
def test_reply_with_odd_values_can_be_recorded_and_sent_again(api: Api, odd: str) -> None:
    """In the place of each of its values; what is not understood is no reply."""
    name = {"openai-responses": "responses", "anthropic": "messages"}.get(api, api)
    for calls in (0, 2):
        whole = json.dumps(answer_of(name, 1, calls))
        for path in paths_of(json.loads(whole))[1:]:
            data = place = json.loads(whole)
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = "ODD"
            reader = reader_of(api, Probe(lambda: 0))
            reader.read(json.dumps(data).replace('"ODD"', odd).encode())
            reply = reader.reply(None)
            kept = [*((one.id, one.name) for one in reply.calls), reply.finish_reason, reply.output_tokens]
            orjson.dumps([*kept, reply.text])
            json.dumps(reply.messages, ensure_ascii=False, allow_nan=False).encode()
