"""Anthropic's Messages: its dialects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tests.dialects.script import (
    ANY_OBJECT,
    FRAMINGS,
    MADE_UP,
    PLAIN,
    Call,
    Dialect,
    Framing,
    Tokens,
    Turn,
    garbage,
    served_otherwise,
    text,
)

TOKYO = Call("get_weather", {"city": "Tokyo"}, "toolu_a")
PARIS = Call("get_weather", {"city": "Paris"}, "toolu_b")
ZURICH = Call("get_population", {"city": "Zürich 東京"}, "toolu_c")
PING = Call("ping", {}, "toolu_p")
PAIR = (TOKYO, PARIS)
TRIO = (TOKYO, PARIS, ZURICH)
USAGE = {"input_tokens": 11, "output_tokens": 7}
COUNTED = Tokens(11, 7)
ABSENT: Any = object()


def asked(call: Call, **more: Any) -> dict[str, Any]:
    """A call as a block; `more` replaces or adds fields, ABSENT takes one away."""
    whole = {"type": "tool_use", "id": call.id, "name": call.name, "input": dict(call.arguments), **more}
    return {k: v for k, v in whole.items() if v is not ABSENT}


def message(content: Any, stop: Any = "tool_use", usage: Any = USAGE) -> dict[str, Any]:
    whole = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": usage,
    }
    return {k: v for k, v in whole.items() if v is not ABSENT}


def start(usage: Any = None) -> dict[str, Any]:
    usage = {"input_tokens": 11, "output_tokens": 1} if usage is None else usage
    return {"type": "message_start", "message": message([], None, usage)}


def end(stop: Any = "tool_use", usage: Any = None) -> list[Any]:
    usage = {"output_tokens": 7} if usage is None else usage
    last = {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": usage}
    return [{k: v for k, v in last.items() if v is not ABSENT}, {"type": "message_stop"}]


def opened(index: Any, block: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": dict(block)}


def delta(index: Any, kind: str, **more: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **more}}


def closed(index: Any) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def halves(whole: str) -> tuple[str, str]:
    return whole[: len(whole) // 2], whole[len(whole) // 2 :]


def events_of(index: Any, block: Mapping[str, Any]) -> list[Any]:
    """A block as the API streams it."""
    kind, content = block.get("type"), dict(block)
    deltas: list[Any] = []
    if kind in ("tool_use", "server_tool_use"):
        pieces = ["", *halves(text(content.pop("input")))]
        content["input"] = {}
        deltas = [delta(index, "input_json_delta", partial_json=piece) for piece in pieces]
    elif kind == "text":
        deltas = [delta(index, "text_delta", text=piece) for piece in halves(content["text"])]
        deltas += [delta(index, "citations_delta", citation=one) for one in content.get("citations") or ()]
        content["text"] = ""
        if "citations" in content:
            content["citations"] = []
    elif kind == "thinking":
        deltas = [delta(index, "thinking_delta", thinking=piece) for piece in halves(content["thinking"])]
        deltas += [delta(index, "signature_delta", signature=content["signature"])]
        content.update(thinking="", signature="")
    return [opened(index, content), *deltas, closed(index)]


def as_streamed(blocks: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [event for index, block in enumerate(blocks) for event in events_of(index, block)]


def stream(middle: Sequence[Any], framing: Framing = PLAIN, **more: Any) -> tuple[bytes, ...]:
    """`start`: the usage of the first event; the rest is that of `end`."""
    first = start(more.pop("start", None))
    return framing.frame([first, {"type": "ping"}, *middle, *end(**more)])


def comes_back(call: Call, **more: Any) -> dict[str, Any]:
    unknown = ANY_OBJECT if call.error is not None else dict(call.arguments)
    return {"type": "tool_use", "id": call.id or MADE_UP, "name": call.name, "input": unknown, **more}


def back(*blocks: Any) -> list[Any]:
    return [{"role": "assistant", "content": list(blocks)}]


SAID = {"type": "text", "text": "Es ist schön. 東京"}
ANSWER = Turn(
    answer=SAID["text"],
    back=back(SAID),
    whole=message([SAID], "end_turn"),
    stream=stream(as_streamed([SAID]), stop="end_turn"),
    tokens=COUNTED,
)


def both(
    name: str,
    calls: Sequence[Call],
    blocks: Sequence[Any],
    *,
    whole: Any = None,
    sent: tuple[bytes, ...] | None = None,
    rounds: int = 1,
    **more: Any,
) -> Dialect:
    """A dialect of whole replies and of streams; `blocks` are what both hold unless more is said."""
    turn = Turn(
        tuple(calls),
        back(*map(comes_back, calls)),
        whole if whole is not None else message(blocks),
        sent if sent is not None else stream(as_streamed(blocks)),
        COUNTED,
    )
    return Dialect(name, (*[replace(turn, **more)] * rounds, ANSWER))


def streamed(name: str, calls: Sequence[Call], middle: Sequence[Any], **more: Any) -> Dialect:
    """A dialect of streams alone; `start`, `stop` and `usage` are those of `stream`."""
    framed = {key: more.pop(key) for key in ("start", "stop", "usage") if key in more}
    sent = more.pop("sent", None) or stream(middle, **framed)
    turn = Turn(tuple(calls), back(*map(comes_back, calls)), None, sent, COUNTED)
    return Dialect(name, (replace(turn, **more), replace(ANSWER, whole=None)))


def _blocks() -> list[Dialect]:
    blocks = [asked(call) for call in PAIR]
    said = {"type": "text", "text": "I ask."}
    each = [events_of(index, block) for index, block in enumerate(blocks)]
    typeless = [asked(call, type=None) for call in PAIR]

    def indexed(key: Any) -> list[Any]:
        found = []
        for index, block in enumerate(blocks):
            for event in events_of(index, block):
                found.append(dict(event, index=key(index)))
                if key(index) is ABSENT:
                    del found[-1]["index"]
        return found

    return [
        both("as documented", TRIO, [asked(call) for call in TRIO]),
        both("text before the calls", PAIR, [said, *blocks], back=back(said, *map(comes_back, PAIR))),
        both(
            "an empty text before the calls",
            PAIR,
            [{"type": "text", "text": ""}, *blocks],
            back=back(*map(comes_back, PAIR)),
        ),
        streamed("blocks without an index", PAIR, indexed(lambda _: ABSENT)),
        streamed("index 0 for every block", PAIR, indexed(lambda _: 0)),
        streamed("indexes from 1", PAIR, indexed(lambda index: index + 1)),
        streamed(
            "interleaved",
            PAIR,
            [event for pair in zip(*each, strict=True) for event in pair],
        ),
        streamed("blocks that are never closed", PAIR, [e for one in each for e in one[:-1]]),
        streamed(
            "calls whole in their first event",
            PAIR,
            [event for index, block in enumerate(blocks) for event in (opened(index, block), closed(index))],
        ),
        both(
            "calls of type null",
            PAIR,
            typeless,
            sent=stream(
                [
                    event
                    for index, block in enumerate(typeless)
                    for event in (
                        opened(index, {**block, "input": {}}),
                        delta(index, "input_json_delta", partial_json=text(block["input"])),
                        closed(index),
                    )
                ]
            ),
        ),
        both(
            "stop_reason end_turn with calls",
            PAIR,
            blocks,
            whole=message(blocks, "end_turn"),
            sent=stream(as_streamed(blocks), stop="end_turn"),
        ),
        streamed(
            "a stop_reason, no message_stop",
            PAIR,
            [],
            sent=PLAIN.frame([start(), *as_streamed(blocks), end()[0]]),
        ),
        Dialect(
            "an answer without any block",
            (
                Turn(
                    answer="",
                    whole=message([], "end_turn"),
                    stream=stream([], stop="end_turn"),
                    tokens=COUNTED,
                ),
            ),
        ),
    ]


def _ids_and_input() -> list[Dialect]:
    def ids(name: str, came: Sequence[Any], meant: Sequence[str | None]) -> Dialect:
        calls = [replace(call, id=id) for call, id in zip(PAIR, meant, strict=True)]
        return both(name, calls, [asked(c, id=id) for c, id in zip(calls, came, strict=True)], rounds=2)

    def given(name: str, came: Any, call: Call = PING) -> Dialect:
        blocks = [asked(call, input=came), asked(TOKYO)]
        sent = [opened(0, blocks[0]), closed(0), *events_of(1, blocks[1])]
        return both(name, (call, TOKYO), blocks, sent=stream(sent))

    broken = replace(TOKYO, error="invalid_json")
    return [
        ids("ids missing", (ABSENT, ABSENT), (None, None)),
        ids("ids null", (None, None), (None, None)),
        ids("ids empty", ("", ""), (None, None)),
        ids("the same id twice", ("x", "x"), ("x", "x")),
        given("input null", None),
        given("input an empty text", ""),
        given("input missing", ABSENT),
        given("input an empty list", []),
        given("input as JSON text", ZURICH.json, ZURICH),
        streamed(
            "input of empty pieces alone",
            (PING, TOKYO),
            [
                opened(0, asked(PING)),
                delta(0, "input_json_delta", partial_json=""),
                closed(0),
                *events_of(1, asked(TOKYO)),
            ],
        ),
        streamed(
            "one call's input is no JSON",
            (broken, PARIS),
            [
                opened(0, asked(broken, input={})),
                delta(0, "input_json_delta", partial_json='{"city": '),
                delta(0, "input_json_delta", partial_json="Tokyo"),
                closed(0),
                *events_of(1, asked(PARIS)),
            ],
        ),
    ]


def _goes_back() -> list[Dialect]:
    thought = {"type": "thinking", "thinking": "hm, hm", "signature": "EqQBCg=="}
    hidden = {"type": "redacted_thinking", "data": "EmwKAh=="}
    search = {
        "type": "server_tool_use",
        "id": "srvtoolu_1",
        "name": "web_search",
        "input": {"query": "Tokyo"},
    }
    found = {
        "type": "web_search_tool_result",
        "tool_use_id": "srvtoolu_1",
        "content": [
            {
                "type": "web_search_result",
                "url": "https://example.org",
                "title": "Tokyo",
                "encrypted_content": "EqgfCi",
                "page_age": None,
            }
        ],
    }
    cited = {
        "type": "text",
        "text": "It rains.",
        "citations": [
            {
                "type": "web_search_result_location",
                "cited_text": "rain",
                "url": "https://example.org",
                "title": "Tokyo",
                "encrypted_index": "Eo8BCi",
            }
        ],
    }
    foo = {"type": "foo_block", "blob": {"a": 1}}

    def kept(name: str, extra: Sequence[Any], *, server_tools: int = 0, **more: Any) -> Dialect:
        """Blocks before the calls, which come back as they came."""
        comes = back(*extra, *(comes_back(call, **more) for call in PAIR))
        blocks = [*extra, *(asked(call, **more) for call in PAIR)]
        return both(name, PAIR, blocks, rounds=2, back=comes, server_tools=server_tools)

    def paused(name: str, blocks: Sequence[Any]) -> Dialect:
        turn = Turn(
            back=back(*blocks),
            whole=message(blocks, "pause_turn"),
            stream=stream(as_streamed(blocks), stop="pause_turn"),
            tokens=COUNTED,
            paused=True,
            server_tools=1,
        )
        return Dialect(name, (turn, ANSWER))

    calls = both("", PAIR, [asked(call) for call in PAIR]).turns
    pause = paused("pause_turn", [search, found])
    return [
        kept("thinking with its signature", [thought]),
        kept("redacted thinking", [thought, hidden]),
        kept("a web search of the server's, with citations", [search, found, cited], server_tools=1),
        kept("a block of an unknown type", [foo]),
        kept("an unknown field of a call", [], foo_blob={"a": 1}),
        kept("a call of a program", [], caller={"type": "code_execution_20250825", "tool_id": "srvtoolu_1"}),
        pause,
        paused("pause_turn before the search has ended", [search]),
        replace(pause, name="pause_turn, then calls", turns=(pause.turns[0], *calls)),
        replace(pause, name="calls, then pause_turn", turns=(calls[0], *pause.turns)),
    ]


def _ends() -> list[Dialect]:
    cut = replace(PARIS, error="truncated")
    blocks = [asked(TOKYO), asked(cut, input={})]
    half = [
        *events_of(0, asked(TOKYO)),
        opened(1, asked(cut, input={})),
        delta(1, "input_json_delta", partial_json=cut.json[:9]),
        closed(1),
    ]
    chance = [asked(TOKYO), asked(cut)]
    wrong = {"type": "error", "error": {"type": "overloaded_error", "message": "the cluster is on fire"}}
    return [
        both(
            "cut off in the last call",
            (TOKYO, cut),
            [],
            whole=message(blocks, "max_tokens"),
            sent=stream(half, stop="max_tokens"),
        ),
        both(
            "cut off, the last call's input whole by chance",
            (TOKYO, cut),
            [],
            whole=message(chance, "max_tokens"),
            sent=stream(as_streamed(chance), stop="max_tokens"),
        ),
        Dialect(
            "neither stop_reason nor message_stop",
            (Turn(stream=PLAIN.frame([start(), *half[4:7]]), fails=("truncated_stream",)),),
        ),
        Dialect(
            "an error event in a 200",
            (
                Turn(
                    stream=PLAIN.frame([start(), *events_of(0, SAID), wrong]),
                    tokens=Tokens(11, None),
                    fails=("overloaded_error",),
                    words="the cluster is on fire",
                ),
            ),
        ),
        Dialect(
            "an error in a 200",
            (
                Turn(
                    whole=wrong,
                    stream=PLAIN.frame([wrong]),
                    fails=("overloaded_error",),
                    words="the cluster is on fire",
                ),
            ),
        ),
    ]


def _usage() -> list[Dialect]:
    blocks = [asked(call) for call in PAIR]
    cache = {
        "input_tokens": 12,
        "cache_creation_input_tokens": 20000,
        "cache_read_input_tokens": 30000,
        "cache_creation": {"ephemeral_5m_input_tokens": 15000, "ephemeral_1h_input_tokens": 5000},
    }
    zero = {"input_tokens": 11, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    null = {"input_tokens": 11, "cache_creation_input_tokens": None, "cache_read_input_tokens": None}

    def used(name: str, usage: Mapping[str, Any], tokens: Tokens, *, odd: bool = False) -> Dialect:
        """Input tokens come in the first event, output tokens in the last."""
        first = {k: v for k, v in usage.items() if k != "output_tokens"}
        last = {"output_tokens": usage["output_tokens"]}
        sent = stream(as_streamed(blocks), start={**first, "output_tokens": 1}, usage=last)
        return both(
            name, PAIR, blocks, whole=message(blocks, usage=usage), sent=sent, tokens=tokens, unreadable=odd
        )

    def streamed_usage(name: str, first: Any, last: Any, tokens: Tokens, *, odd: bool = False) -> Dialect:
        return streamed(
            name, PAIR, as_streamed(blocks), start=first, usage=last, tokens=tokens, unreadable=odd
        )

    return [
        used("cached tokens", {**cache, "output_tokens": 7}, Tokens(50012, 7, 30000, 20000)),
        used("cached tokens 0", {**zero, "output_tokens": 7}, Tokens(11, 7, 0, 0)),
        used("cached tokens null", {**null, "output_tokens": 7}, COUNTED),
        both(
            "usage missing",
            PAIR,
            blocks,
            whole=message(blocks, usage=ABSENT),
            sent=stream(as_streamed(blocks), start=ABSENT, usage=ABSENT),
            tokens=Tokens(),
        ),
        both(
            "usage in words",
            PAIR,
            blocks,
            whole=message(blocks, usage={"input_tokens": "many", "output_tokens": "few"}),
            sent=stream(as_streamed(blocks), start={"input_tokens": "many"}, usage={"output_tokens": "few"}),
            tokens=Tokens(),
            unreadable=True,
        ),
        used("usage negative", {"input_tokens": -1, "output_tokens": 7}, Tokens(None, 7), odd=True),
        streamed_usage(
            "usage beyond 64 bits",
            {"input_tokens": 11},
            {"output_tokens": 2**70},
            Tokens(11, None),
            odd=True,
        ),
        used(
            "lifetimes of what was written, without their sum",
            {
                "input_tokens": 11,
                "output_tokens": 7,
                "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 50},
            },
            Tokens(161, 7, None, 150),
        ),
        used(
            "cached tokens in words",
            {"input_tokens": 11, "output_tokens": 7, "cache_read_input_tokens": "many"},
            Tokens(None, 7),
            odd=True,
        ),
        streamed_usage("usage in message_delta only", ABSENT, USAGE, COUNTED),
        streamed_usage(
            "usage 0 in message_start, and nothing more of it",
            {"input_tokens": 0, "output_tokens": 0},
            {"output_tokens": 7},
            Tokens(None, 7),
        ),
        streamed_usage(
            "usage 0 in message_delta",
            {"input_tokens": 11, "cache_read_input_tokens": 1000, "output_tokens": 1},
            {
                "input_tokens": 0,
                "cache_read_input_tokens": 0,
                "cache_creation_input_tokens": 0,
                "output_tokens": 7,
            },
            Tokens(1011, 7, 1000),
        ),
        streamed_usage(
            "input tokens 0, then corrected", {"input_tokens": 0, "output_tokens": 0}, USAGE, COUNTED
        ),
        streamed_usage("input tokens corrected", {"input_tokens": 5, "output_tokens": 1}, USAGE, COUNTED),
        streamed_usage(
            "cached tokens in message_delta only",
            {"input_tokens": 0, "output_tokens": 0},
            {**cache, "output_tokens": 7},
            Tokens(50012, 7, 30000, 20000),
        ),
        streamed_usage(
            "cached tokens in message_start, all again in message_delta",
            {**cache, "output_tokens": 1},
            {**cache, "output_tokens": 7},
            Tokens(50012, 7, 30000, 20000),
        ),
        streamed_usage(
            "message_delta has usage null in part",
            {**cache, "output_tokens": 1},
            {"input_tokens": None, "cache_read_input_tokens": None, "output_tokens": 7},
            Tokens(50012, 7, 30000, 20000),
        ),
    ]


def _framings() -> list[Dialect]:
    blocks = [asked(call) for call in TRIO]
    framings = {**FRAMINGS, "no event: lines": Framing(named=False)}
    return [
        Dialect(
            name,
            (
                Turn(
                    TRIO,
                    back(*map(comes_back, TRIO)),
                    None,
                    stream(as_streamed(blocks), framing),
                    COUNTED,
                ),
                replace(ANSWER, whole=None),
            ),
        )
        for name, framing in framings.items()
    ]


def _gateways() -> list[Dialect]:
    """What gateways between the model and the client make of a reply."""
    blocks = [asked(call) for call in PAIR]
    each = [events_of(index, block) for index, block in enumerate(blocks)]
    events = [event for one in each for event in one]
    cut = replace(PARIS, error="truncated")
    chance = [asked(TOKYO), asked(cut)]
    thought = {"type": "thinking", "thinking": "hm, hm", "signature": "EqQBCg=="}
    calls = [comes_back(call) for call in PAIR]

    def cut_off(reason: str) -> Dialect:
        return both(
            f"cut off for {reason}, the last call's input whole by chance",
            (TOKYO, cut),
            [],
            whole=message(chance, reason),
            sent=stream(as_streamed(chance), stop=reason),
        )

    def input_of(name: str, pieces: Any) -> Dialect:
        """Streams of calls whose input comes in these pieces of its text."""
        sent: list[Any] = []
        for index, block in enumerate(blocks):
            texts = pieces(text(block["input"]))
            deltas = [delta(index, "input_json_delta", partial_json=piece) for piece in texts]
            sent += [opened(index, {**block, "input": {}}), *deltas, closed(index)]
        return streamed(name, PAIR, sent)

    def index_as_text(event: Mapping[str, Any]) -> dict[str, Any]:
        begins = event["type"] == "content_block_start"
        return {**event, "index": event["index"] if begins else str(event["index"])}

    after_thinking = [{**event, "index": event["index"] + 1} for event in events]
    return [
        *map(cut_off, ("length", "MAX_TOKENS", "content_filter")),
        input_of("an empty object before the input", lambda whole: ("{}", *halves(whole))),
        input_of("the input twice", lambda whole: (whole, whole)),
        input_of("the input in pieces, then the whole", lambda whole: (*halves(whole), whole)),
        streamed(
            "interleaved, some indexes as text",
            PAIR,
            [index_as_text(event) for pair in zip(*each, strict=True) for event in pair],
        ),
        streamed("every block begun twice", PAIR, [event for one in each for event in (one[0], *one)]),
        streamed(
            "[DONE], and no other end",
            PAIR,
            [],
            sent=PLAIN.frame([start(), *events], done=True),
            tokens=Tokens(11, None),
        ),
        streamed(
            "text of a block that never began",
            PAIR,
            [*each[0][:2], delta(9, "text_delta", text="hm"), *each[0][2:], *each[1]],
            unreadable=True,
        ),
        streamed(
            "input of a block that never began",
            PAIR,
            [*each[0][:2], delta(9, "input_json_delta", partial_json="{}"), *each[0][2:], *each[1]],
            unreadable=True,
        ),
        streamed(
            "the signature in the first event too",
            PAIR,
            [opened(0, {**thought, "thinking": ""}), *events_of(0, thought)[1:], *after_thinking],
            back=back(thought, *calls),
        ),
    ]


DIALECTS = [
    *_blocks(),
    *_ids_and_input(),
    *_goes_back(),
    *_ends(),
    *_usage(),
    *_gateways(),
    *_framings(),
    *garbage(),
    *served_otherwise(_blocks()[0]),
]
