"""The short paths of the readers, for regular replies, come to what the long way does. No sockets."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from profiler.loop.model import CallRequest, Probe
from profiler.providers.replies import Api, ReplyReader, reader_of
from profiler.providers.replies import reply as replies
from profiler.providers.replies.anthropic_messages import MessagesReader
from profiler.providers.replies.events import Event, EventStream
from profiler.providers.replies.openai_chat import ChatReader
from profiler.providers.replies.reply import MOST_TOKENS, sendable

APIS: tuple[Api, ...] = ("openai", "openai-responses", "anthropic")
HALF = "\ud83d"
"""Half of a character."""


class LongChat(ChatReader):
    """A reader that takes the long way with every reply and every event."""

    def _read_regular(self, data: dict[str, Any]) -> bool:
        return False

    def _read_delta(self, data: dict[str, Any]) -> bool:
        return False


class LongMessages(MessagesReader):
    """The same of Messages."""

    def _read_regular(self, data: dict[str, Any]) -> bool:
        return False


class LongEvents(EventStream):
    """A stream that never has a chunk of whole events."""

    @property
    def _is_between(self) -> bool:
        return False


class LongNumber(int):
    """The same number, with which the short paths of counts have nothing to do: another type, and false."""

    def __bool__(self) -> bool:
        return False


def long_number(value: Any) -> Any:
    return LongNumber(value) if type(value) is int else value


def with_long_counts(reader: ReplyReader) -> ReplyReader:
    """Another reader of the same kind, of which every count takes the long way."""

    class LongCounts(type(reader)):  # type: ignore[misc]
        def _count(self, *values: Any) -> int | None:
            return super()._count(*map(long_number, values))  # type: ignore[no-any-return]

        def _set_tokens(self, given: int | None, taken: int | None, total: Any = None) -> None:
            super()._set_tokens(long_number(given), taken, total)

    return LongCounts(reader.probe, reader.keeps)


def same_ids(value: Any) -> str:
    """A value as text, NaN and all, in which made-up ids are numbered in their order."""
    names: dict[str, str] = {}
    made_up = re.compile(r"\bc[0-9a-z]{8}\b")
    return made_up.sub(lambda ident: names.setdefault(ident[0], f"<{len(names)}>"), repr(value))


def words(text: str) -> list[str]:
    return text.split()


SEEN = words(
    "complete error broken came calls texts done usable unreadable finish_reason paused server_tools"
    " server_ids other_calls response_id"
)


def outcome(reader: ReplyReader) -> dict[str, str]:
    """All that a reader tells when it has read. Of its messages, what `reply` and so anyone else sees."""
    found = {"reply": reader.reply(None), **{name: getattr(reader, name) for name in SEEN}}
    found["messages"] = [] if reader.broken else sendable(reader.messages)
    found["made up"] = len(reader.made_up)
    return {name: same_ids(value) for name, value in found.items()}


def whole(reader: ReplyReader, body: Any) -> dict[str, str]:
    reader.read(body if isinstance(body, bytes) else json.dumps(body).encode())
    return outcome(reader)


def streamed(
    kind: Callable[[Probe, bool], ReplyReader], chunks: Sequence[bytes], keeps: bool, events: EventStream
) -> dict[str, str]:
    """What a reader told while and after it read a stream, `|` after each chunk in what its probe heard."""
    heard: list[Any] = []
    probe = Probe(
        lambda: 1,
        on_text=lambda text: heard.append(("text", text)),
        on_arguments=lambda call: heard.append(("arguments", call)),
        on_call=lambda call: heard.append(("call", call)),
    )
    reader = kind(probe, keeps)
    reader._events = events
    for chunk in chunks:
        reader.feed(chunk)
        heard.append(("|", reader.done, reader.complete, probe.first_token_ns, probe.first_output_ns))
    reader.end()
    times = (probe.first_token_ns, probe.first_output_ns, probe.first_tool_call_ns)
    return {
        **outcome(reader),
        "heard": same_ids(heard),
        "times": repr([at is not None for at in times]),
        "complete calls": same_ids(probe.complete),
    }


def short_and_long(chunks: Sequence[bytes], keeps: bool = True) -> tuple[dict[str, str], dict[str, str]]:
    """What both readers of Chat Completions tell of a stream."""
    return streamed(ChatReader, chunks, keeps, EventStream()), streamed(LongChat, chunks, keeps, LongEvents())


# ── regular replies, and what may be wrong with them ───────────────────────────────────────────

texts = st.sampled_from(["Hi", "", " ", "é東", HALF, "\ude00"])
names = st.sampled_from(["f", "g", "é", "f" + HALF])
idents = st.sampled_from(["a", "b", "d", "e" + HALF])
objects = words('{"a":1} {"b":"é\\"}{"} {} {"a":{"b":[2]}} {"a":NaN} {"a":"\ud83d"} [1]')
arguments = st.sampled_from([*objects, "{ }", ""])
numbers = json.loads('[null, 0, 1, 2, 3, 7, 9, 2.0, 2.5, true, "3", -1, 1e12]')
counts = st.sampled_from([*numbers, MOST_TOKENS + 1, 10**30])
JUNK = [
    *json.loads(r'[null, "", 0, 1, 2, -1, 0.0, 1.5, NaN, 1e40, true, false, [], {}, [1], {"a": 1}, [null]]'),
    *json.loads(
        r'[[{"type": "text", "text": "t"}], {"name": "f", "arguments": "{}"}, "\ud83d", " {\"a\":1} "]'
    ),
    *words("x null 1 [DONE] stop length tool_calls end_turn tool_use max_tokens pause_turn content_filter é"),
    *words('error function custom text assistant {} {"a":1}'),
]
EXTRA = words(
    "index id type name text error usage x_groq custom input extra object reasoning_content refusal audio"
    " parsed annotations function_call extra_content content tool_calls message delta citations signature"
    " stop_reason finish_reason arguments content_filter_results logprobs role cached_tokens cache_control é"
)


@st.composite
def chat_usages(draw: st.DrawFn) -> Any:
    counted, taken, more = draw(st.tuples(*[st.integers(0, 9)] * 3))
    total = counted + taken + draw(st.sampled_from([0, 0, more, 1]))
    usage = {"prompt_tokens": counted, "completion_tokens": taken, "total_tokens": total}
    reasoning, cached = {"reasoning_tokens": more}, {"cached_tokens": more}
    details = [{}, {"completion_tokens_details": reasoning}, {"prompt_tokens_details": cached}]
    return {**usage, **draw(st.sampled_from(details))}


def call_of(ident: str, name: str, text: str) -> dict[str, Any]:
    return {"id": ident, "type": "function", "function": {"name": name, "arguments": text}}


@st.composite
def chat_replies(draw: st.DrawFn) -> Any:
    calls = [call_of(ident, draw(names), draw(arguments)) for ident in draw(st.lists(idents, max_size=3))]
    content = draw(st.none() | texts)
    message: Any = {"role": "assistant", "content": content, "refusal": None, "annotations": []}
    message |= {"tool_calls": calls} if calls else draw(st.sampled_from([{}, {"tool_calls": []}]))
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
    return {"id": "x", "choices": [{**choice, "logprobs": None}], "usage": draw(st.none() | chat_usages())}


@st.composite
def messages_replies(draw: st.DrawFn) -> Any:
    text = st.fixed_dictionaries({"type": st.just("text"), "text": texts})
    inputs = st.sampled_from([{}, {"a": 1}, {"b": "é", "c": [1.5, None]}, {"d": HALF, HALF: {}}])
    kind = st.just("tool_use")
    call = st.fixed_dictionaries({"type": kind, "id": idents, "name": names, "input": inputs})
    usage = {"input_tokens": 3, "output_tokens": 4}
    cached = {**usage, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 1}
    body = {"type": "message", "content": draw(st.lists(text | call, max_size=4))}
    reason = draw(st.sampled_from(["tool_use", "end_turn"]))
    return {**body, "stop_reason": reason, "usage": draw(st.sampled_from([None, usage, cached]))}


def chunk_of(delta: Any, reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
    return {"object": "chat.completion.chunk", "choices": [choice], **more}


def piece_of(index: int, text: str, **more: Any) -> dict[str, Any]:
    return chunk_of({"tool_calls": [{"index": index, **more, "function": {"arguments": text}}]})


def opening_of(index: int, ident: str, name: str, text: str = "") -> dict[str, Any]:
    return chunk_of({"tool_calls": [{"index": index, **call_of(ident, name, text)}]})


@st.composite
def chat_streams(draw: st.DrawFn) -> Any:
    events = [chunk_of({"role": "assistant", "content": draw(st.sampled_from([None, ""]))})]
    events += [chunk_of({"content": text}) for text in draw(st.lists(texts, max_size=3))]
    calls = draw(st.integers(0, 3))
    for index in range(calls):
        events.append(opening_of(index, draw(idents), draw(names)))
        text = draw(arguments)
        while text:
            size = draw(st.integers(1, len(text)))
            events.append(piece_of(index, text[:size]))
            text = text[size:]
    events.append(chunk_of({}, "tool_calls" if calls else "stop"))
    return [*events, {"choices": [], "usage": draw(chat_usages())}]


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """Every object and array in a value, with each of its keys or indexes."""
    if not isinstance(value, dict | list):
        return []
    own = list(value) if isinstance(value, dict) else list(range(len(value)))
    return [(value, key) for key in own] + [place for key in own for place in places_in(value[key])]


def change(draw: st.DrawFn, value: Any) -> None:
    """Change one thing somewhere in a value."""
    places = places_in(value)
    if not places:
        return
    holder, key = draw(st.sampled_from(places))
    what = draw(st.sampled_from(["replace", "replace", "remove", "add", "double", "turn round"]))
    if what == "replace":
        holder[key] = copy.deepcopy(draw(st.sampled_from(JUNK)))
    elif what == "remove":
        del holder[key]
    elif isinstance(holder, dict):
        given_value = holder[key] if what == "double" else draw(st.sampled_from(JUNK))
        holder[draw(st.sampled_from(EXTRA))] = copy.deepcopy(given_value)
    elif what == "turn round":
        holder.reverse()
    else:
        holder.insert(draw(st.integers(0, len(holder))), copy.deepcopy(holder[key]))


@st.composite
def changed(draw: st.DrawFn, regular: st.SearchStrategy[Any]) -> Any:
    """A regular value in which up to three things are not as documented."""
    value = copy.deepcopy(draw(regular))
    for _ in range(draw(st.integers(0, 3))):
        change(draw, value)
    return value


def chunks_of(events: Any) -> list[bytes]:
    return [f"data: {json.dumps(event)}\n\n".encode() for event in events]


def cut(chunks: list[bytes], places: list[int]) -> list[bytes]:
    """The same bytes, cut at these places; as they are, where there are none."""
    body, ordered = b"".join(chunks), sorted(places)
    pairs = zip([0, *ordered], [*ordered, len(body)], strict=True)
    return [body[start:end] for start, end in pairs] if places else chunks


# ── both ways come to the same ─────────────────────────────────────────────────────────────────


@given(changed(chat_replies()), st.booleans())
@settings(max_examples=300)
def test_a_whole_reply_of_chat_completions_is_read_the_same_both_ways(body: Any, keeps: bool) -> None:
    """Regular or not, the reader tells what the reader without a short path tells."""
    assert whole(ChatReader(Probe(lambda: 1), keeps), body) == whole(LongChat(Probe(lambda: 1), keeps), body)


def test_a_choice_whose_index_is_no_number_is_read_the_same_both_ways() -> None:
    """NaN, which the SDKs' reader takes, is not equal to itself."""
    choice = {"index": float("nan"), "message": {"content": "Hi"}, "finish_reason": "stop"}
    body = {"choices": [choice]}
    assert whole(ChatReader(Probe(lambda: 1)), body) == whole(LongChat(Probe(lambda: 1)), body)


@given(changed(messages_replies()), st.booleans())
@settings(max_examples=300)
def test_a_whole_reply_of_messages_is_read_the_same_both_ways(body: Any, keeps: bool) -> None:
    """Regular or not, the reader tells what the reader without a short path tells."""
    short, long = MessagesReader(Probe(lambda: 1), keeps), LongMessages(Probe(lambda: 1), keeps)
    assert whole(short, body) == whole(long, body)


def test_a_call_of_messages_goes_back_with_its_fields_in_the_same_order_both_ways() -> None:
    """Some servers write a call's fields in an order of their own."""
    call = {"type": "tool_use", "input": {"a": 1}, "name": "f", "id": "a"}
    body = {"content": [call], "stop_reason": "tool_use"}
    assert whole(MessagesReader(Probe(lambda: 1)), body) == whole(LongMessages(Probe(lambda: 1)), body)


def test_an_input_too_deep_to_read_breaks_a_reply_of_messages_the_same_both_ways() -> None:
    """An input of a thousand objects in each other is no call, and the reply had finished all the same."""
    call = '{"type": "tool_use", "id": "a", "name": "f", "input": ' + '{"a":' * 1000 + "1" + "}" * 1000 + "}"
    body = f'{{"content": [{call}], "stop_reason": "tool_use"}}'.encode()
    found = []
    for reader in (MessagesReader(Probe(lambda: 1)), LongMessages(Probe(lambda: 1))):
        reader.read(body)
        found.append([reader.usable, reader.broken, reader.complete, reader.finish_reason, reader.unreadable])
    assert found[0] == found[1]


cuts: st.SearchStrategy[list[int]] = st.just([]) | st.lists(st.integers(0, 2500), max_size=4)


@given(changed(chat_streams()), st.booleans(), st.booleans(), cuts)
@settings(max_examples=300)
def test_a_stream_of_chat_completions_is_read_the_same_both_ways(
    events: Any, keeps: bool, marked: bool, places: list[int]
) -> None:
    """The probe hears the same at the same chunk, and the reply is the same, wherever the bytes are cut."""
    short, long = short_and_long(cut(chunks_of(events) + [b"data: [DONE]\n\n"] * marked, places), keeps)
    assert short == long


ODD = (
    *(chunk_of({"content": "x"}, object="error"), chunk_of({"content": "x"}, usage={"prompt_tokens": 1})),
    *(chunk_of({"content": "x"}, error={"message": "no"}), chunk_of({"content": "x", "reasoning": "y"})),
    *(piece_of(0, '"b":2}'), piece_of(0, ""), piece_of(1, '"b":2}'), piece_of(0, '"b":2}', type="custom")),
    *(piece_of(0, '"b":2}', id="a"), piece_of(0, '"b":2}', id="z"), opening_of(0, "z", "g", '{"a":1}')),
)


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("odd", ODD, ids=lambda odd: json.dumps(odd["choices"][0]["delta"]) + odd["object"])
def test_an_odd_event_amid_the_pieces_of_a_call_is_read_the_same_both_ways(odd: Any, keeps: bool) -> None:
    """Each kind of event that comes near to a regular one, between the pieces of a text and of a call."""
    first = [chunk_of({"role": "assistant", "content": ""}), chunk_of({"content": "Hi"})]
    events = [*first, opening_of(0, "a", "f"), piece_of(0, '{"a":1,'), odd, piece_of(0, '"c":3}')]
    short, long = short_and_long(chunks_of([*events, chunk_of({}, "tool_calls")]), keeps)
    assert short == long


BOM = b"\xef\xbb\xbf"
LINES = (
    b"data: x__|event: n_data: y__|event:  m _data:  y __|event: n_|event:n_|event: \xff_|event: _|event_"
    b"|data:z_|data: z_|data_|data:_|data: __|: comment_|: comment__|id: 7_|retry: 5_|_|__|data: open"
    b"|event: n_id: 7_data: y__|" + BOM + b"|" + BOM + b"data: x__"
)
parts_of_streams = st.lists(st.sampled_from(LINES.split(b"|")), min_size=1, max_size=3).map(b"".join)


@given(st.lists(parts_of_streams, max_size=6), st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"]), cuts)
@example([b"data: x__", BOM + b"data: x__"], b"\n", [])
@example([b"data: x_", b"\ndata: y__", b"data: z__"], b"\r", [])
@settings(max_examples=300)
def test_events_are_split_the_same_both_ways(parts: list[bytes], ending: bytes, places: list[int]) -> None:
    """Every chunk completes the same events, at any line ending, whole in a chunk or cut anywhere."""
    short, long = EventStream(), LongEvents()
    for chunk in cut([part.replace(b"_", ending) for part in parts], [place % 120 for place in places]):
        assert short.feed(chunk) == long.feed(chunk)
    assert short.end() == long.end()


COUNTED = words(
    "prompt_tokens completion_tokens input_tokens output_tokens total_tokens cached_tokens reasoning_tokens"
    " cache_read_input_tokens cache_creation_input_tokens prompt_cache_hit_tokens"
)
DETAILED = words(
    "prompt_tokens_details completion_tokens_details input_tokens_details "
    "output_tokens_details cache_creation"
)
NAMES = words("cached_tokens reasoning_tokens thinking_tokens cache_write_tokens ephemeral_1h_input_tokens")
details_of_usages = st.dictionaries(st.sampled_from(NAMES), counts) | counts


@given(
    st.sampled_from(APIS),
    st.dictionaries(st.sampled_from(COUNTED), counts),
    st.dictionaries(st.sampled_from(DETAILED), details_of_usages),
)
@settings(max_examples=300)
def test_tokens_of_a_usage_are_counted_the_same_both_ways(
    api: Api, counted: dict[str, Any], details: dict[str, Any]
) -> None:
    """Counts with details, zeros, floats, booleans, text, huge and negative numbers: what is made of them."""
    body = {"usage": {**counted, **details}, "choices": [], "content": [], "output": []}
    plain = reader_of(api, Probe(lambda: 1))
    long = with_long_counts(plain)
    assert whole(plain, body) == whole(long, body)


small = st.none() | st.integers(0, 5) | st.sampled_from([MOST_TOKENS - 1, MOST_TOKENS])
inputs = small | st.just(MOST_TOKENS + 1)  # the sum of several counts
kinds = st.sampled_from([None, int, float, str, bool])


@given(st.tuples(inputs, small), st.tuples(small, small, small), st.integers(-3, 3), kinds)
@example((1, 0), (None, None, None), 0, bool)
@example((MOST_TOKENS, MOST_TOKENS), (None, None, None), 0, int)
@example((3, 4), (2, 2, 4), 0, int)
@settings(max_examples=300)
def test_tokens_are_set_the_same_both_ways(
    pair: tuple[int | None, int | None],
    parts: tuple[int | None, ...],
    more: int,
    kind: Callable[[Any], Any] | None,
) -> None:
    """Parts larger than the whole, totals that say more or less, and the largest numbers."""
    found = []
    for reader in (plain := ChatReader(Probe(lambda: 1)), with_long_counts(plain)):
        reader.cached_tokens, reader.cache_written_tokens, reader.reasoning_tokens = parts
        total = sum(count or 0 for count in (*pair, parts[2] if more > 0 else more))
        reader._set_tokens(*pair, None if kind is None else kind(total))
        found.append([reader.input_tokens, reader.output_tokens, reader.unreadable])
    assert found[0] == found[1]
    assert all(type(count) in (int, type(None)) for count in found[0])


# ── and the short one is taken ─────────────────────────────────────────────────────────────────


def forbid(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Let the test fail where this is called (which is no `Exception` that a reader would catch)."""
    monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail(f"{name} was called"))


def test_a_documented_reply_of_chat_completions_takes_the_short_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text with two calls, and one without, come to where choices are read on the long way alone."""
    forbid(monkeypatch, ChatReader, "_read_choice")
    forbid(monkeypatch, ChatReader, "_end")
    usage: Any = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    usage |= {
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    for idents, reason in (("ab", "tool_calls"), ("", "stop")):
        calls = [call_of(ident, "f", '{"a":1}') for ident in idents]
        said = {"role": "assistant", "content": "Hi", **({"tool_calls": calls} if calls else {})}
        choice = {
            "index": 0,
            "message": {**said, "refusal": None, "annotations": []},
            "finish_reason": reason,
        }
        reader = ChatReader(Probe(lambda: 1))
        body = json.dumps({"choices": [{**choice, "logprobs": None}], "usage": usage}).encode()
        reader.read(body)
        with pytest.raises(pytest.fail.Exception):
            LongChat(Probe(lambda: 1)).read(body)
        reply = reader.reply(None)
        assert (reader.usable, reply.text, reply.finish_reason, reply.unreadable) == (True, "Hi", reason, 0)
        assert reply.calls == tuple(CallRequest(ident, "f", '{"a":1}') for ident in idents)
        assert reply.messages == [said]
        assert (reply.input_tokens, reply.output_tokens) == (9, 4)
        assert (reply.cached_tokens, reply.reasoning_tokens) == (2, 1)


def test_pieces_of_texts_and_calls_take_the_short_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a reply, or a call in it, has begun, no piece comes to where choices are read one by one."""
    heard: list[str] = []
    probe = Probe(lambda: 1, on_text=heard.append)
    reader = ChatReader(probe)
    reader.event(chunk_of({"role": "assistant", "content": ""}))
    with monkeypatch.context() as patched:
        forbid(patched, ChatReader, "_read_choice")
        reader.event(chunk_of({"content": "H"}))
        reader.event(chunk_of({"content": "i"}, usage=None, obfuscation="x", system_fingerprint="y"))
    reader.event(opening_of(0, "a", "f"))
    with monkeypatch.context() as patched:
        forbid(patched, ChatReader, "_read_choice")
        reader.event(piece_of(0, '{"a"'))
        assert probe.complete == []
        reader.event(piece_of(0, ":1}", type="function"))
        with pytest.raises(pytest.fail.Exception):
            LongChat(Probe(lambda: 1)).event(chunk_of({"content": "H"}))
    assert heard == ["H", "i"]
    assert probe.complete == [(CallRequest("a", "f", '{"a":1}'), 1)]


def test_a_documented_reply_of_messages_takes_the_short_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text and a call never come to where blocks are read one by one."""
    forbid(monkeypatch, MessagesReader, "_stop")
    forbid(monkeypatch, MessagesReader, "_end")
    call = {"type": "tool_use", "id": "a", "name": "f", "input": {"a": 1}}
    content = [{"type": "text", "text": "Hi"}, call]
    body: Any = {"type": "message", "role": "assistant", "content": content, "stop_reason": "tool_use"}
    reader = MessagesReader(Probe(lambda: 1))
    body["usage"] = {"input_tokens": 3, "output_tokens": 4}
    reader.read(json.dumps(body).encode())
    with pytest.raises(pytest.fail.Exception):
        LongMessages(Probe(lambda: 1)).read(json.dumps(body).encode())
    reply = reader.reply(None)
    assert (reader.usable, reply.text, reply.finish_reason) == (True, "Hi", "tool_use")
    assert (reply.input_tokens, reply.output_tokens) == (3, 4)
    assert reply.calls == (CallRequest("a", "f", {"a": 1}),)
    assert reply.messages == [{"role": "assistant", "content": content}]


def test_whole_events_take_the_short_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one or several whole events, with names or without, are not read line by line."""
    forbid(monkeypatch, EventStream, "_read")
    stream = EventStream()
    assert stream.feed(b"data: x\n\n") == [Event("", b"x")]
    assert stream.feed(b"event: n\ndata: y\n\ndata: z\n\n") == [Event("n", b"y"), Event("", b"z")]
    with pytest.raises(pytest.fail.Exception):
        LongEvents().feed(b"data: x\n\n")


def test_counts_take_the_short_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Usual counts are not looked at twice; and those of this module's long way are, of every kind."""
    plain = ChatReader(Probe(lambda: 1))
    long = with_long_counts(plain)
    with monkeypatch.context() as patched:
        forbid(patched, replies, "_is_count")
        assert (plain._count(None, 3), plain._count(0), plain._count(MOST_TOKENS)) == (3, 0, MOST_TOKENS)
        with pytest.raises(pytest.fail.Exception):
            long._count(3)
    forbid(monkeypatch, ChatReader, "_count")
    for total in (7, 7.0, None):
        plain._set_tokens(3, 4, total)
        assert (plain.input_tokens, plain.output_tokens) == (3, 4)
        with pytest.raises(pytest.fail.Exception):
            long._set_tokens(3, 4, total)
