"""Responses: its dialects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tests.dialects.script import (
    ANY_TEXT,
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
)

TOKYO = Call("get_weather", {"city": "Tokyo"}, "call_a")
PARIS = Call("get_weather", {"city": "Paris"}, "call_b")
ZURICH = Call("get_population", {"city": "Zürich 東京"}, "call_c")
PING = Call("ping", {}, "call_p")
PAIR = (TOKYO, PARIS)
TRIO = (TOKYO, PARIS, ZURICH)
USAGE = {
    "input_tokens": 11,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 3},
    "total_tokens": 18,
}
COUNTED = Tokens(11, 7, 4, 2, 3)
ABSENT: Any = object()


def item(call: Call, **more: Any) -> dict[str, Any]:
    """A call as an output item; `more` replaces or adds fields, ABSENT takes one away."""
    whole = {
        "type": "function_call",
        "id": f"fc_{call.id}",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.json,
        "status": "completed",
        **more,
    }
    return {k: v for k, v in whole.items() if v is not ABSENT}


def said(text: str, **more: Any) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": [part],
        **more,
    }


def response(output: Any, status: str = "completed", usage: Any = USAGE, **more: Any) -> dict[str, Any]:
    whole = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "status": status,
        "output": output,
        "error": None,
        "incomplete_details": None,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": usage,
        **more,
    }
    return {k: v for k, v in whole.items() if v is not ABSENT}


def numbered(events: Sequence[Any]) -> list[Any]:
    return [{**event, "sequence_number": n} for n, event in enumerate(events)]


def begun(index: int, whole: Mapping[str, Any]) -> dict[str, Any]:
    """The event that opens an item."""
    opened = dict(whole)
    if "status" in opened:
        opened["status"] = "in_progress"
    if whole.get("type") == "function_call":
        opened["arguments"] = ""
    if whole.get("type") == "message":
        opened["content"] = []
    return {"type": "response.output_item.added", "output_index": index, "item": opened}


def done(index: int, whole: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "response.output_item.done", "output_index": index, "item": whole}


def filled(index: int, whole: Mapping[str, Any]) -> list[Any]:
    """The deltas of an item as the API streams them."""
    common = {"item_id": whole.get("id"), "output_index": index}
    if whole.get("type") == "function_call" and isinstance(whole.get("arguments"), str):
        arguments = whole["arguments"]
        half = len(arguments) // 2
        kind = "response.function_call_arguments"
        return [
            {"type": f"{kind}.delta", **common, "delta": arguments[:half]},
            {"type": f"{kind}.delta", **common, "delta": arguments[half:]},
            {"type": f"{kind}.done", **common, "arguments": arguments},
        ]
    if whole.get("type") == "message":
        common["content_index"] = 0
        part = whole["content"][0]
        empty = {**part, "text": ""}
        return [
            {"type": "response.content_part.added", **common, "part": empty},
            {"type": "response.output_text.delta", **common, "delta": part["text"][:3], "logprobs": []},
            {"type": "response.output_text.delta", **common, "delta": part["text"][3:], "logprobs": []},
            {"type": "response.output_text.done", **common, "text": part["text"], "logprobs": []},
            {"type": "response.content_part.done", **common, "part": part},
        ]
    return []


def as_streamed(items: Sequence[Any]) -> list[Any]:
    events = []
    for index, one in enumerate(items):
        events += [begun(index, one), *filled(index, one), done(index, one)]
    return events


def stream(middle: Sequence[Any], final: Any, framing: Framing = PLAIN) -> tuple[bytes, ...]:
    """`final` is the whole response at the end, None for a stream that has no end."""
    created = response([], "in_progress", None)
    events = [{"type": "response.created", "response": created}, *middle]
    if final is not None:
        events.append({"type": f"response.{final['status']}", "response": final})
    return framing.frame(numbered(events))


def comes_back(call: Call, **more: Any) -> dict[str, Any]:
    arguments = ANY_TEXT if call.error is not None else call.json
    return item(call, call_id=call.id or MADE_UP, arguments=arguments, status=ABSENT, **more)


ANSWER_ITEM = said("Es ist schön. 東京")
ANSWER = Turn(
    answer="Es ist schön. 東京",
    back=[{"type": "message", "id": "msg_1", "role": "assistant", "content": [ANSWER_ITEM["content"][0]]}],
    whole=response([ANSWER_ITEM]),
    stream=stream(as_streamed([ANSWER_ITEM]), response([ANSWER_ITEM])),
    tokens=COUNTED,
)


def both(
    name: str,
    calls: Sequence[Call],
    items: Sequence[Any],
    *,
    whole: Any = None,
    events: Sequence[Any] | None = None,
    final: Any = None,
    rounds: int = 1,
    **more: Any,
) -> Dialect:
    """A dialect of whole replies and of streams; `items` are what both hold unless more is said."""
    whole = whole if whole is not None else response(items)
    sent = stream(as_streamed(items) if events is None else events, final if final is not None else whole)
    turn = Turn(tuple(calls), [comes_back(call) for call in calls], whole, sent, COUNTED)
    return Dialect(name, (*[replace(turn, **more)] * rounds, ANSWER))


def streamed(name: str, calls: Sequence[Call], events: Sequence[Any], final: Any, **more: Any) -> Dialect:
    turn = Turn(tuple(calls), [comes_back(call) for call in calls], None, stream(events, final), COUNTED)
    return Dialect(name, (replace(turn, **more), replace(ANSWER, whole=None)))


def _items() -> list[Dialect]:
    items = [item(call) for call in PAIR]
    nothing = response([])

    def without(key: str) -> list[Any]:
        return [{k: v for k, v in event.items() if k != key} for event in as_streamed(items)]

    typeless = [item(call, type=None) for call in PAIR]
    mixed = [said("I ask."), *items]
    asks_aloud = [{k: v for k, v in mixed[0].items() if k != "status"}, *map(comes_back, PAIR)]
    kinds = [
        begun(0, items[0]),
        begun(1, items[1]),
        *(event for pair in zip(filled(0, items[0]), filled(1, items[1]), strict=True) for event in pair),
        done(1, items[1]),
        done(0, items[0]),
    ]
    return [
        both("as documented", TRIO, [item(call) for call in TRIO]),
        both("text before the calls", PAIR, mixed, back=asks_aloud),
        streamed("output [] at the end", PAIR, as_streamed(items), nothing),
        streamed("output missing at the end", PAIR, as_streamed(items), response(ABSENT)),
        streamed("output null at the end", PAIR, as_streamed(items), response(None)),
        streamed("items in the end only", PAIR, [], response(items)),
        streamed("items done, never begun", PAIR, [done(i, one) for i, one in enumerate(items)], nothing),
        streamed("interleaved, done the other way round", PAIR, kinds, response(items)),
        streamed("no output_index", PAIR, without("output_index"), nothing),
        streamed(
            "output_index 0 for every item",
            PAIR,
            [{**event, "output_index": 0} for event in as_streamed(items)],
            nothing,
        ),
        both("items without status", PAIR, [item(call, status=ABSENT) for call in PAIR]),
        both("items with status null", PAIR, [item(call, status=None) for call in PAIR]),
        both("items still in progress", PAIR, [item(call, status="in_progress") for call in PAIR]),
        both("items of type null", PAIR, typeless, events=[done(i, one) for i, one in enumerate(typeless)]),
        both(
            "items without an id",
            PAIR,
            [item(call, id=ABSENT) for call in PAIR],
            back=[{k: v for k, v in comes_back(call).items() if k != "id"} for call in PAIR],
        ),
    ]


def _ids_and_arguments() -> list[Dialect]:
    def ids(name: str, came: Sequence[Any], meant: Sequence[str | None]) -> Dialect:
        calls = [replace(call, id=id) for call, id in zip(PAIR, meant, strict=True)]
        items = [item(c, id=f"fc_{n}", call_id=id) for n, (c, id) in enumerate(zip(calls, came, strict=True))]
        comes = [comes_back(c, id=f"fc_{n}") for n, c in enumerate(calls)]
        return both(name, calls, items, back=comes, rounds=2)

    def arguments(name: str, came: Any, call: Call = PING, comes: Any = None) -> Dialect:
        items = [item(call, arguments=came), item(TOKYO)]
        first = comes_back(call) | ({} if comes is None else {"arguments": comes})
        return both(name, (call, TOKYO), items, back=[first, comes_back(TOKYO)])

    broken = replace(PARIS, error="invalid_json")
    return [
        ids("call_id missing", (ABSENT, ABSENT), (None, None)),
        ids("call_id null", (None, None), (None, None)),
        ids("call_id empty", ("", ""), (None, None)),
        ids("the same call_id twice", ("x", "x"), ("x", "x")),
        arguments("arguments null", None),
        arguments("arguments an empty text", ""),
        arguments("arguments missing", ABSENT),
        arguments("arguments an empty list", []),
        arguments("arguments null as text", "null", comes=ANY_TEXT),
        arguments("arguments an object", dict(ZURICH.arguments), ZURICH),
        both(
            "one call's arguments are no JSON",
            (broken, TOKYO),
            [item(broken, arguments='{"city": Paris'), item(TOKYO)],
        ),
    ]


def _goes_back() -> list[Dialect]:
    def kept(name: str, extra: Sequence[Any], *, server_tools: int = 0, **more: Any) -> Dialect:
        """Items beside the calls, which come back as they came."""
        items = [*extra, *(item(call, **more) for call in PAIR)]
        comes = [
            *({k: v for k, v in one.items() if k != "status" and v is not None} for one in extra),
            *(comes_back(call, **more) for call in PAIR),
        ]
        return both(name, PAIR, items, back=comes, rounds=2, server_tools=server_tools)

    thought = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "hm"}],
        "encrypted_content": "gAAAAB",
        "status": None,
    }
    search = {
        "type": "web_search_call",
        "id": "ws_1",
        "status": "completed",
        "action": {"type": "search", "query": "Tokyo"},
    }
    code = {
        "type": "code_interpreter_call",
        "id": "ci_1",
        "code": "1",
        "container_id": "cntr_1",
        "outputs": [{"type": "logs", "logs": "1"}],
        "status": "completed",
    }
    hosted = {
        "type": "mcp_call",
        "id": "mcp_1",
        "name": "roll",
        "server_label": "dice",
        "arguments": "{}",
        "output": "4",
    }
    return [
        kept("reasoning with encrypted_content", [thought]),
        kept("a web search of the server's", [search], server_tools=1),
        kept("code and a hosted MCP call of the server's", [code, hosted], server_tools=2),
        kept("an item of an unknown type", [{"type": "foo_item", "id": "foo_1", "blob": {"a": 1}}]),
        kept("an unknown field of a call", [], foo_blob={"a": 1}),
        kept("a call of a program", [], caller={"type": "program", "id": "prg_1"}),
    ]


def _ends() -> list[Dialect]:
    cut = replace(PARIS, error="truncated")
    why = {"reason": "max_output_tokens"}
    half = item(cut, arguments=cut.json[:9], status="incomplete")
    items = [item(TOKYO), half]
    unsaid = [item(TOKYO, status=ABSENT), item(cut, status=ABSENT)]
    failed = {"code": "server_error", "message": "the cluster is on fire"}
    wrong = {"error": {"message": "the cluster is on fire", "type": "server_error", "code": None}}

    broken = response([], "failed", None, error=failed)

    def incomplete(output: Any) -> dict[str, Any]:
        return response(output, "incomplete", incomplete_details=why)

    def failing(name: str, whole: Any, middle: Sequence[Any], final: Any) -> Dialect:
        turn = Turn(
            whole=whole,
            stream=stream(middle, final),
            fails=("server_error", "stream_error"),
            words="the cluster is on fire",
        )
        return Dialect(name, (turn,))

    return [
        both("cut off in the last call", (TOKYO, cut), items, whole=incomplete(items)),
        both(
            "cut off, and no item says so",
            (TOKYO, cut),
            unsaid,
            whole=incomplete(unsaid),
            back=[comes_back(TOKYO), comes_back(cut)],
        ),
        streamed("cut off, output [] at the end", (TOKYO, cut), as_streamed(items), incomplete([])),
        Dialect(
            "no end",
            (Turn(stream=stream(as_streamed([half])[:2], None), fails=("truncated_stream",)),),
        ),
        failing("the response failed", broken, [], broken),
        failing("an error event in a 200", None, [{"type": "error", **failed, "param": None}], None),
        failing("an error in a 200", wrong, [wrong], None),
    ]


def _usage() -> list[Dialect]:
    items = [item(call) for call in PAIR]

    def used(name: str, usage: Any, tokens: Tokens, *, odd: bool = False) -> Dialect:
        return both(name, PAIR, items, whole=response(items, usage=usage), tokens=tokens, unreadable=odd)

    bare = {"input_tokens": 11, "output_tokens": 7}
    zero = {"cached_tokens": 0}
    return [
        used("usage missing", ABSENT, Tokens()),
        used("usage null", None, Tokens()),
        used("usage in words", {"input_tokens": "many", "output_tokens": "few"}, Tokens(), odd=True),
        used("usage negative", {"input_tokens": -1, "output_tokens": 7}, Tokens(None, 7), odd=True),
        used(
            "usage beyond 64 bits", {"input_tokens": 11, "output_tokens": 2**70}, Tokens(11, None), odd=True
        ),
        used("usage without details", bare, Tokens(11, 7)),
        used("usage of zeros", {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}, Tokens()),
        used(
            "reasoning left out of the output",
            {
                "input_tokens": 11,
                "output_tokens": 7,
                "total_tokens": 78,
                "output_tokens_details": {"reasoning_tokens": 60},
            },
            Tokens(11, 67, None, None, 60),
        ),
        used(
            "cached tokens left out of the input",
            {
                "input_tokens": 11,
                "output_tokens": 7,
                "input_tokens_details": {"cached_tokens": 1000, "cache_creation_tokens": 3},
            },
            Tokens(1014, 7, 1000, 3),
        ),
        used(
            "details of the usage null",
            {**bare, "input_tokens_details": None, "output_tokens_details": {"reasoning_tokens": None}},
            Tokens(11, 7),
        ),
        used("cached tokens 0", {**bare, "input_tokens_details": zero}, Tokens(11, 7, 0)),
    ]


def _framings() -> list[Dialect]:
    items = [item(call) for call in TRIO]
    back = [comes_back(call) for call in TRIO]
    framings = {**FRAMINGS, "no event: lines": Framing(named=False)}
    return [
        Dialect(
            name,
            (
                Turn(TRIO, back, None, stream(as_streamed(items), response(items), framing), COUNTED),
                replace(ANSWER, whole=None),
            ),
        )
        for name, framing in framings.items()
    ]


def _gateways() -> list[Dialect]:
    """What gateways between the model and the client make of a reply."""
    items = [item(call) for call in PAIR]
    events, nothing = as_streamed(items), response([])
    said_whole = ANSWER.answer or ""
    message = said(said_whole)
    texts = [one for one in filled(0, message) if one["type"] == "response.output_text.delta"]
    cut = replace(PARIS, error="truncated")
    unsaid = [item(TOKYO, status=ABSENT), item(cut, status=ABSENT)]
    created = {"type": "response.created", "response": response([], "in_progress", None)}
    failed = {"code": "server_error", "message": "the cluster is on fire"}

    def ended(name: str, kind: str, final: Any, calls: Sequence[Call] = PAIR, sent: Any = None) -> Dialect:
        """Streams whose last event is this one."""
        last = {"type": kind, "response": final}
        framed = PLAIN.frame(numbered([created, *(events if sent is None else sent), last]))
        return Dialect(
            name,
            (
                Turn(calls, [comes_back(call) for call in calls], None, framed, COUNTED),
                replace(ANSWER, whole=None),
            ),
        )

    def answered(name: str, middle: Sequence[Any], final: Any = nothing, whole: Any = None) -> Dialect:
        """Replies whose text is that of `ANSWER`."""
        return Dialect(
            name, (Turn(answer=said_whole, whole=whole, stream=stream(middle, final), tokens=COUNTED),)
        )

    def in_other_form(name: str, content: Any) -> Dialect:
        whole = response([{**message, "content": content}])
        return answered(name, [done(0, whole["output"][0])], nothing, whole)

    pieces = [
        [begun(i, one), {**filled(i, one)[0], "delta": "{}"}, *filled(i, one)[:2]]
        for i, one in enumerate(items)
    ]
    return [
        ended("the end is called response.done", "response.done", response(items)),
        ended("response.done alone", "response.done", response(items), sent=[]),
        ended("completed, said to be in progress", "response.completed", response(items, "in_progress")),
        ended(
            "incomplete, said to be in progress",
            "response.incomplete",
            response(unsaid, "in_progress"),
            (TOKYO, cut),
            as_streamed(unsaid),
        ),
        Dialect(
            "failed, said to be in progress",
            (
                Turn(
                    stream=PLAIN.frame(
                        numbered(
                            [
                                created,
                                {
                                    "type": "response.failed",
                                    "response": response([], "in_progress", None, error=failed),
                                },
                            ]
                        )
                    ),
                    fails=("server_error",),
                    words="the cluster is on fire",
                ),
            ),
        ),
        both(
            "cancelled",
            (TOKYO, cut),
            unsaid,
            whole=response(unsaid, "cancelled"),
            events=as_streamed(unsaid),
            final=response(unsaid, "incomplete"),
        ),
        streamed(
            "arguments in .done alone, items never done",
            PAIR,
            [event for i, one in enumerate(items) for event in (begun(i, one), filled(i, one)[2])],
            nothing,
        ),
        streamed(
            "an empty object before the arguments, items never done",
            PAIR,
            [event for one in pieces for event in one],
            nothing,
        ),
        streamed(
            "every item begun twice",
            PAIR,
            [one for event in events for one in [event] * (1 + event["type"].endswith(".added"))],
            nothing,
        ),
        Dialect(
            "arguments of items that never began",
            (
                Turn(
                    answer="",
                    stream=stream([one for i, of in enumerate(items) for one in filled(i, of)], nothing),
                    tokens=COUNTED,
                    unreadable=True,
                ),
            ),
        ),
        answered("text in deltas alone", texts),
        answered("text in output_text.done alone", [one for one in filled(0, message) if "text" in one]),
        answered("text in deltas, its item done without content", [*texts, done(0, said("", content=[]))]),
        answered(
            "an item done before all of its text has come",
            [begun(0, message), texts[0], done(0, said(texts[0]["delta"])), *texts[1:]],
        ),
        answered("text in deltas, its item in the end alone", texts, response([message])),
        in_other_form("content a text", said_whole),
        in_other_form("a part of another type", [{"type": "text", "text": said_whole}]),
    ]


DIALECTS = [
    *_items(),
    *_ids_and_arguments(),
    *_goes_back(),
    *_ends(),
    *_usage(),
    *_gateways(),
    *_framings(),
    *garbage(),
    *served_otherwise(_items()[0]),
]
