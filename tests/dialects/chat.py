"""Chat Completions: its dialects."""

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
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
COUNTED = Tokens(11, 7)
ABSENT: Any = object()


def chunk(delta: Any, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [choice],
        **more,
    }


def counted(usage: Any = USAGE) -> dict[str, Any]:
    """The chunk with the usage."""
    return {**chunk({}), "choices": [], "usage": usage}


def piece(
    index: Any = ABSENT,
    id: Any = ABSENT,
    name: Any = ABSENT,
    arguments: Any = ABSENT,
    **more: Any,
) -> dict[str, Any]:
    """A delta with a piece of one call; it has only what was given."""
    function = {k: v for k, v in (("name", name), ("arguments", arguments)) if v is not ABSENT}
    call = {k: v for k, v in (("index", index), ("id", id), ("function", function)) if v not in (ABSENT, {})}
    if id is not ABSENT:
        call["type"] = "function"
    return {"tool_calls": [{**call, **more}]}


def in_pieces(calls: Sequence[Call]) -> list[Any]:
    """The calls as the API itself streams them."""
    found = []
    for index, call in enumerate(calls):
        found.append(chunk(piece(index, call.id, call.name, "")))
        found += [chunk(piece(index, arguments=part)) for part in halves(call.json)]
    return found


def halves(arguments: str) -> tuple[str, str]:
    return arguments[: len(arguments) // 2], arguments[len(arguments) // 2 :]


def asked(call: Call, **more: Any) -> dict[str, Any]:
    """A call in a whole message; `more` replaces or adds fields, ABSENT takes one away."""
    function = {"name": call.name, "arguments": more.pop("arguments", call.json)}
    whole = {"id": call.id, "type": "function", "function": function, **more}
    whole["function"] = {k: v for k, v in whole["function"].items() if v is not ABSENT}
    return {k: v for k, v in whole.items() if v is not ABSENT}


def completion(
    message: Mapping[str, Any], finish: Any = "tool_calls", usage: Any = USAGE, **more: Any
) -> dict[str, Any]:
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": None, **message},
    }
    whole = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
        **more,
    }
    return {k: v for k, v in whole.items() if v is not ABSENT}


def comes_back(call: Call, **more: Any) -> dict[str, Any]:
    arguments = ANY_TEXT if call.error is not None else call.json
    return {
        "id": call.id or MADE_UP,
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
        **more,
    }


def back(calls: Sequence[Call], content: Any = None, **more: Any) -> list[Any]:
    return [
        {
            "role": "assistant",
            "content": content,
            "tool_calls": [comes_back(call) for call in calls],
            **more,
        }
    ]


def stream(events: Sequence[Any], framing: Framing = PLAIN, *, done: bool = True) -> tuple[bytes, ...]:
    return framing.frame(events, done=done)


ANSWER = Turn(
    answer="Es ist schön. 東京",
    back=[{"role": "assistant", "content": "Es ist schön. 東京"}],
    whole=completion({"content": "Es ist schön. 東京"}, "stop"),
    stream=stream(
        [
            chunk({"role": "assistant", "content": ""}),
            chunk({"content": "Es ist "}),
            chunk({"content": "schön. 東京"}),
            chunk({}, "stop"),
            counted(),
        ]
    ),
    tokens=COUNTED,
)
ROLE = chunk({"role": "assistant", "content": None})
FINISH = chunk({}, "tool_calls")
END = [FINISH, counted()]


def streamed(name: str, calls: Sequence[Call], events: Sequence[Any], **more: Any) -> Dialect:
    """A dialect of streams: these events ask for these calls."""
    done = more.pop("done", True)
    turn = Turn(tuple(calls), back(calls), None, stream(events, done=done), COUNTED)
    return Dialect(name, (replace(turn, **more), replace(ANSWER, whole=None)))


def both(name: str, calls: Sequence[Call], message: Any, events: Sequence[Any], **more: Any) -> Dialect:
    """A dialect of whole replies (`message`, or a whole completion) and of streams."""
    whole = message if "choices" in message else completion(message)
    turn = Turn(tuple(calls), back(calls), whole, stream(events), COUNTED)
    return Dialect(name, (replace(turn, **more), ANSWER))


def used(name: str, usage: Any, tokens: Tokens, *, odd: bool = False) -> Dialect:
    """A dialect of usage; ABSENT: none comes. `odd`: it holds what is no count."""
    calls = (TOKYO, PARIS)
    events = [ROLE, *in_pieces(calls), FINISH] + ([] if usage is ABSENT else [counted(usage)])
    message = completion({"tool_calls": [asked(c) for c in calls]}, usage=usage)
    return both(name, calls, message, events, tokens=tokens, unreadable=odd)


def failing(name: str, fails: tuple[str, ...], words: str, whole: Any, events: Sequence[Any]) -> Dialect:
    turn = Turn(whole=whole, stream=stream(events, done=False), fails=fails, words=words)
    return Dialect(name, (turn,))


def nameless(call: Call) -> Call:
    return replace(call, id=None)


def with_id(call: Call, id: str) -> Call:
    return replace(call, id=id)


NO_IDS = (nameless(TOKYO), nameless(PARIS))
PAIR = (TOKYO, PARIS)
TRIO = (TOKYO, PARIS, ZURICH)
PING = Call("ping", {}, "call_p")
CUT = replace(PARIS, error="truncated")
BROKEN = Call("get_weather", {}, "call_x", error="invalid_json")
SIGNATURE = {"extra_content": {"google": {"thought_signature": "U0lH"}}}


def _index_and_id() -> list[Dialect]:
    """How pieces tell which call they belong to."""
    (t1, t2), (p1, p2), (z1, z2) = (halves(call.json) for call in TRIO)
    a, b = TOKYO.id, PARIS.id
    weather, population = "get_weather", "get_population"
    no_index = [chunk(piece(ABSENT, call.id, call.name, call.json)) for call in TRIO]
    return [
        streamed("no index, calls whole", TRIO, [ROLE, *no_index, *END]),
        streamed(
            "no index, calls in pieces",
            PAIR,
            [
                chunk(piece(ABSENT, a, weather, t1)),
                chunk(piece(arguments=t2)),
                chunk(piece(ABSENT, b, weather, p1)),
                chunk(piece(arguments=p2)),
                *END,
            ],
        ),
        streamed(
            "no index, the id in every piece",
            PAIR,
            [
                chunk(piece(ABSENT, a, weather, t1)),
                chunk(piece(ABSENT, b, weather, p1)),
                chunk(piece(ABSENT, a, arguments=t2)),
                chunk(piece(ABSENT, b, arguments=p2)),
                *END,
            ],
        ),
        streamed(
            "no index, no id",
            NO_IDS,
            [chunk(piece(name=weather, arguments=call.json)) for call in PAIR] + END,
        ),
        streamed(
            "two calls in one delta, no index",
            PAIR,
            [chunk({"tool_calls": [asked(call) for call in PAIR]}), *END],
        ),
        streamed(
            "the same index, new ids",
            PAIR,
            [
                chunk(piece(0, a, weather, t1)),
                chunk(piece(0, arguments=t2)),
                chunk(piece(0, b, weather, p1)),
                chunk(piece(0, arguments=p2)),
                *END,
            ],
        ),
        streamed(
            "the same index, no ids, a new name after complete arguments",
            (*NO_IDS, nameless(ZURICH)),
            [
                chunk(piece(0, name=weather, arguments=t1)),
                chunk(piece(0, arguments=t2)),
                chunk(piece(0, name=weather, arguments="")),
                chunk(piece(0, arguments=p1)),
                chunk(piece(0, arguments=p2)),
                chunk(piece(0, name=population, arguments=ZURICH.json)),
                *END,
            ],
        ),
        streamed(
            "indexes from 1",
            PAIR,
            [
                chunk(piece(1, a, weather, t1)),
                chunk(piece(1, arguments=t2)),
                chunk(piece(2, b, weather, p1)),
                chunk(piece(2, arguments=p2)),
                *END,
            ],
        ),
        streamed(
            "the first index -1",
            PAIR,
            [
                chunk(piece(-1, a, weather, "")),
                chunk(piece(-1, arguments=TOKYO.json)),
                chunk(piece(0, b, weather, "")),
                chunk(piece(0, arguments=PARIS.json)),
                *END,
            ],
        ),
        streamed(
            "interleaved",
            TRIO,
            [
                *(chunk(piece(i, call.id, call.name, "")) for i, call in enumerate(TRIO)),
                *(chunk(piece(i, arguments=half)) for i, half in enumerate((t1, p1, z1))),
                *(chunk(piece(i, arguments=half)) for i, half in enumerate((t2, p2, z2))),
                *END,
            ],
        ),
        streamed(
            "the id in every piece",
            PAIR,
            [
                chunk(piece(i, call.id, call.name if n == 0 else ABSENT, half))
                for i, call in enumerate(PAIR)
                for n, half in enumerate(halves(call.json))
            ]
            + END,
        ),
        streamed(
            "the name in every piece",
            PAIR,
            [
                chunk(piece(i, call.id if n == 0 else ABSENT, call.name, half))
                for i, call in enumerate(PAIR)
                for n, half in enumerate(halves(call.json))
            ]
            + END,
        ),
        streamed(
            "the name in the second piece only",
            PAIR,
            [
                chunk(piece(i, call.id) if part is None else piece(i, name=call.name, arguments=part))
                for i, call in enumerate(PAIR)
                for part in (None, call.json)
            ]
            + END,
        ),
        streamed(
            "names and ids null or empty after the first piece",
            PAIR,
            [
                chunk(piece(0, a, weather, t1)),
                chunk(piece(0, None, None, t2)),
                chunk(piece(1, b, weather, p1)),
                chunk(piece(1, "", "", p2)),
                *END,
            ],
        ),
        streamed(
            "an index as text",
            PAIR,
            [chunk(piece(str(i), call.id, call.name, call.json)) for i, call in enumerate(PAIR)] + END,
        ),
    ]


def _ids() -> list[Dialect]:
    def dialect(name: str, ids: Sequence[Any], meant: Sequence[str | None]) -> Dialect:
        calls = tuple(replace(call, id=id) for call, id in zip(PAIR, meant, strict=True))
        message = {"tool_calls": [asked(call, id=id) for call, id in zip(calls, ids, strict=True)]}
        events = [
            chunk(piece(i, id, call.name, call.json))
            for i, (call, id) in enumerate(zip(calls, ids, strict=True))
        ]
        one = both(name, calls, message, [ROLE, *events, *END])
        again = replace(one.turns[0])  # ids that are made up must be new ones in every round
        return replace(one, turns=(again, again, ANSWER))

    return [
        dialect("ids missing", (ABSENT, ABSENT), (None, None)),
        dialect("ids null", (None, None), (None, None)),
        dialect("ids empty", ("", ""), (None, None)),
        dialect("one id empty", ("call_a", ""), ("call_a", None)),
        dialect("the same id twice", ("x", "x"), ("x", "x")),
    ]


def _arguments() -> list[Dialect]:
    def dialect(name: str, came: Any, call: Call = PING, comes: Any = None) -> Dialect:
        calls = (call, TOKYO)
        message = {"tool_calls": [asked(call, arguments=came), asked(TOKYO)]}
        events = [
            chunk(piece(0, call.id, call.name, came)),
            chunk(piece(1, TOKYO.id, TOKYO.name, TOKYO.json)),
        ]
        one = both(name, calls, message, [ROLE, *events, *END])
        if comes is not None:
            one.turns[0].back[0]["tool_calls"][0]["function"]["arguments"] = comes
        return one

    broken = (BROKEN, PARIS)
    return [
        dialect("arguments null", None),
        dialect("arguments an empty text", ""),
        dialect("arguments missing", ABSENT),
        dialect("arguments an empty list", []),
        dialect("arguments an empty list as text", "[]", comes=ANY_TEXT),
        dialect("arguments null as text", "null", comes=ANY_TEXT),
        dialect("arguments an empty object", {}),
        dialect("arguments an object", dict(ZURICH.arguments), ZURICH),
        dialect("arguments among white space", f" \n{ZURICH.json}\n", ZURICH),
        both(
            "one call's arguments are no JSON",
            broken,
            {"tool_calls": [asked(BROKEN, arguments='{"city": Tokyo'), asked(PARIS)]},
            [
                chunk(piece(0, BROKEN.id, BROKEN.name, '{"city": ')),
                chunk(piece(0, arguments="Tokyo")),
                *(
                    chunk(piece(1, PARIS.id if n == 0 else ABSENT, PARIS.name if n == 0 else ABSENT, half))
                    for n, half in enumerate(halves(PARIS.json))
                ),
                *END,
            ],
        ),
    ]


def _ends() -> list[Dialect]:
    pair = in_pieces(PAIR)
    cut = (TOKYO, CUT)
    half = PARIS.json[:9]
    return [
        streamed(
            "a finish with every call",
            PAIR,
            [chunk(piece(0, call.id, call.name, call.json), "tool_calls") for call in PAIR] + [counted()],
        ),
        streamed("several finish chunks", PAIR, [ROLE, *pair, FINISH, FINISH, FINISH, counted()]),
        streamed(
            "an empty delta after the finish",
            PAIR,
            [*pair, FINISH, chunk(piece(1, arguments="")), chunk({"content": ""}), counted()],
        ),
        streamed("no finish but [DONE]", PAIR, [ROLE, *pair, counted()]),
        streamed("a finish, no [DONE]", PAIR, [ROLE, *pair, *END], done=False),
        streamed("finish null, then stop", PAIR, [ROLE, *pair, chunk({}, "stop"), counted()]),
        both(
            "finish stop with calls",
            PAIR,
            completion({"tool_calls": [asked(c) for c in PAIR]}, "stop"),
            [ROLE, *pair, chunk({}, "stop"), counted()],
        ),
        both(
            "finish an empty text",
            PAIR,
            completion({"tool_calls": [asked(c) for c in PAIR]}, ""),
            [ROLE, *pair, chunk({}, ""), counted()],
        ),
        both(
            "cut off in the last call",
            cut,
            completion({"tool_calls": [asked(TOKYO), asked(CUT, arguments=half)]}, "length"),
            [
                ROLE,
                *in_pieces([TOKYO]),
                chunk(piece(1, CUT.id, CUT.name, half)),
                chunk({}, "length"),
                counted(),
            ],
        ),
        both(
            "cut off, the last call's arguments whole by chance",
            cut,
            completion({"tool_calls": [asked(TOKYO), asked(CUT)]}, "length"),
            [ROLE, *in_pieces([TOKYO, CUT]), chunk({}, "length"), counted()],
        ),
        failing(
            "neither finish nor [DONE]",
            ("truncated_stream",),
            "",
            None,
            [ROLE, chunk(piece(0, "call_a", "get_weather", '{"city": '))],
        ),
        failing("an empty stream", ("truncated_stream", "unreadable"), "", None, []),
    ]


def _deltas() -> list[Dialect]:
    said = {"content": "I ask.", "tool_calls": [asked(c) for c in PAIR]}
    at_once = {"role": "assistant", **said}
    at_once["tool_calls"] = [asked(c, index=i) for i, c in enumerate(PAIR)]
    filtered = {"prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}]}
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm, hm"}]},
        {"type": "text", "text": "I ask."},
    ]
    return [
        both("as documented", TRIO, {"tool_calls": [asked(c) for c in TRIO]}, [ROLE, *in_pieces(TRIO), *END]),
        both(
            "text before the calls",
            PAIR,
            said,
            [ROLE, chunk({"content": "I "}), chunk({"content": "ask."}), *in_pieces(PAIR), *END],
            back=back(PAIR, "I ask."),
        ),
        streamed(
            "role, content, calls, finish and usage in one chunk",
            PAIR,
            [chunk(at_once, "tool_calls", usage=USAGE)],
            back=back(PAIR, "I ask."),
        ),
        streamed(
            "a first chunk without choices",
            PAIR,
            [{**chunk({}), "choices": [], **filtered}, ROLE, *in_pieces(PAIR), *END],
        ),
        streamed(
            "delta null, calls null or empty",
            PAIR,
            [
                chunk({"role": None, "content": None, "tool_calls": None}),
                chunk({"tool_calls": []}),
                *in_pieces(PAIR),
                chunk(None, "tool_calls"),
                counted(),
            ],
        ),
        both(
            "calls of type null",
            PAIR,
            {"tool_calls": [asked(c, type=None) for c in PAIR]},
            [chunk(piece(i, c.id, c.name, c.json, type=None)) for i, c in enumerate(PAIR)] + END,
        ),
        both(
            "calls without a type, with an index in the whole message",
            PAIR,
            {"tool_calls": [asked(c, type=ABSENT, index=i) for i, c in enumerate(PAIR)]},
            [chunk({"tool_calls": [asked(c, type=ABSENT, index=i)]}) for i, c in enumerate(PAIR)] + END,
        ),
        both(
            "content in parts, with thinking",
            PAIR,
            {"content": parts, "tool_calls": [asked(c) for c in PAIR]},
            [
                chunk({"role": "assistant", "content": ""}),
                chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm, "}]}]}),
                chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}),
                chunk({"content": [{"type": "text", "text": "I "}]}),
                chunk({"content": [{"type": "text", "text": "ask."}]}),
                *in_pieces(PAIR),
                *END,
            ],
            back=back(PAIR, parts),
        ),
        Dialect(
            "an answer in parts, with thinking",
            (
                Turn(
                    answer="I ask.",
                    whole=completion({"content": parts}, "stop"),
                    stream=stream(
                        [
                            chunk({"content": [parts[0]]}),
                            chunk({"content": "I "}),
                            chunk({"content": "ask."}),
                            chunk({}, "stop"),
                            counted(),
                        ]
                    ),
                    tokens=COUNTED,
                ),
            ),
        ),
    ]


def _goes_back() -> list[Dialect]:
    def twice(one: Dialect) -> Dialect:
        """Two rounds with calls: what came first must still be there in the third request."""
        return replace(one, turns=(one.turns[0], *one.turns))

    def field(name: str, whole: Mapping[str, Any], deltas: Sequence[Any]) -> Dialect:
        """A field of the message."""
        return twice(
            both(
                name,
                PAIR,
                {**whole, "tool_calls": [asked(c) for c in PAIR]},
                [ROLE, *(chunk(delta) for delta in deltas), *in_pieces(PAIR), *END],
                back=back(PAIR, **whole),
            )
        )

    def of_a_call(name: str, extra: Mapping[str, Any], pieces: Sequence[Any]) -> Dialect:
        """A field of the first call; `pieces`: what further deltas of that call have of it."""
        first, *rest = pieces
        events = [
            chunk(piece(0, TOKYO.id, TOKYO.name, "", **first)),
            chunk(piece(0, arguments=TOKYO.json)),
            *(chunk(piece(0, **one)) for one in rest),
            chunk(piece(1, PARIS.id, PARIS.name, PARIS.json)),
        ]
        message = {"tool_calls": [asked(TOKYO, **extra), asked(PARIS)]}
        comes = back(PAIR)
        comes[0]["tool_calls"][0].update(extra)
        return twice(both(name, PAIR, message, [ROLE, *events, *END], back=comes))

    inside = {"id": TOKYO.id, "type": "function"}
    foo = {"name": TOKYO.name, "arguments": TOKYO.json, "foo": "bar"}
    response_only = {"annotations": [{"type": "url_citation"}], "refusal": "no", "audio": {"id": "audio_1"}}
    details = {"type": "reasoning.text", "text": "hm, hm", "signature": "U0lH", "index": 0}
    return [
        of_a_call("thought_signature of a call", SIGNATURE, [SIGNATURE]),
        of_a_call("thought_signature in a later piece", SIGNATURE, [{}, SIGNATURE]),
        field("thought_signature of the message", SIGNATURE, [SIGNATURE]),
        field(
            "reasoning_content",
            {"reasoning_content": "hm, hm"},
            [{"reasoning_content": "hm"}, {"reasoning_content": ", "}, {"reasoning_content": "hm"}],
        ),
        field("reasoning", {"reasoning": "hm, hm"}, [{"reasoning": "hm, "}, {"reasoning": "hm"}]),
        field(
            "reasoning_details, by index",
            {"reasoning_details": [details]},
            [
                {"reasoning_details": [{"type": "reasoning.text", "text": "hm, ", "index": 0}]},
                {"reasoning_details": [{"type": "reasoning.text", "text": "hm", "index": 0}]},
                {"reasoning_details": [{"type": "reasoning.text", "signature": "U0lH", "index": 0}]},
            ],
        ),
        of_a_call("an unknown field of a call", {"foo_blob": {"a": 1}}, [{"foo_blob": {"a": 1}}]),
        of_a_call(
            "an unknown field of a call in pieces",
            {"foo_blob": {"a": 1, "b": {"c": "xy", "d": True}}},
            [{"foo_blob": {"a": 1, "b": {"c": "x"}}}, {"foo_blob": {"b": {"c": "y", "d": True}}}],
        ),
        field(
            "an unknown field of the message in pieces",
            {"foo_blob": {"a": 1, "b": "xy"}, "bar": 2},
            [{"foo_blob": {"a": 1, "b": "x"}, "bar": 1}, {"foo_blob": {"b": "y"}, "bar": 2, "baz": None}],
        ),
        twice(
            both(
                "an unknown field inside function",
                PAIR,
                {"tool_calls": [{**inside, "function": foo}, asked(PARIS)]},
                [
                    chunk({"tool_calls": [{**inside, "index": 0, "function": foo}]}),
                    chunk(piece(1, PARIS.id, PARIS.name, PARIS.json)),
                    *END,
                ],
                back=[
                    {
                        "role": "assistant",
                        "tool_calls": [{**inside, "function": foo}, comes_back(PARIS)],
                    }
                ],
            )
        ),
        twice(
            both(
                "what is only for the client does not go back",
                PAIR,
                {**response_only, "tool_calls": [asked(c) for c in PAIR]},
                [ROLE, chunk(response_only), *in_pieces(PAIR), *END],
            )
        ),
    ]


def _usage() -> list[Dialect]:
    calls = in_pieces(PAIR)
    sums = [{"prompt_tokens": 11, "completion_tokens": n, "total_tokens": 11 + n} for n in (1, 3, 7)]
    details = {
        "prompt_tokens": 1100,
        "completion_tokens": 70,
        "prompt_tokens_details": {"cached_tokens": 1024},
        "completion_tokens_details": {"reasoning_tokens": 64},
    }
    zero = {
        **USAGE,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    nothing = {"prompt_tokens_details": None, "completion_tokens_details": {"reasoning_tokens": None}}
    apart = {
        "prompt_tokens": 12,
        "completion_tokens": 7,
        "total_tokens": 19,
        "prompt_tokens_details": {"cached_tokens": 30_000, "cached_creation_tokens": 200},
    }
    hidden = {
        "prompt_tokens": 11,
        "completion_tokens": 7,
        "total_tokens": 78,
        "completion_tokens_details": {"reasoning_tokens": 60},
    }
    return [
        used("usage missing", ABSENT, Tokens()),
        used("usage null", None, Tokens()),
        used("usage in words", {"prompt_tokens": "many", "completion_tokens": "few"}, Tokens(), odd=True),
        used("usage a text", "many", Tokens(), odd=True),
        used("usage negative", {"prompt_tokens": -1, "completion_tokens": 7}, Tokens(None, 7), odd=True),
        used(
            "usage beyond 64 bits",
            {"prompt_tokens": 11, "completion_tokens": 2**70},
            Tokens(11, None),
            odd=True,
        ),
        used("cached and reasoning tokens", details, Tokens(1100, 70, 1024, None, 64)),
        used("cached and reasoning tokens 0", zero, Tokens(11, 7, 0, None, 0)),
        used("details of the usage null", {**USAGE, **nothing}, COUNTED),
        used("usage of zeros", {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, Tokens()),
        used("cached tokens beside the usage", {**USAGE, "cached_tokens": 5}, Tokens(11, 7, 5)),
        used("cached tokens left out of the input", apart, Tokens(30_212, 7, 30_000, 200)),
        used("reasoning left out of the output", hidden, Tokens(11, 67, None, None, 60)),
        used("reasoning in the total alone", {**USAGE, "total_tokens": 400}, Tokens(11, 389)),
        streamed(
            "usage in the choice",
            PAIR,
            [
                ROLE,
                *calls,
                {**chunk({}), "choices": [{**chunk({}, "tool_calls")["choices"][0], "usage": USAGE}]},
            ],
        ),
        streamed(
            "usage in a field of Groq's",
            PAIR,
            [ROLE, *calls, {**chunk({}, "tool_calls"), "x_groq": {"id": "req_1", "usage": USAGE}}],
        ),
        streamed(
            "usage, then zeros",
            PAIR,
            [
                ROLE,
                *calls,
                chunk({}, "tool_calls", usage=USAGE),
                counted({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}),
            ],
        ),
        streamed("usage in the finish chunk", PAIR, [ROLE, *calls, chunk({}, "tool_calls", usage=USAGE)]),
        streamed(
            "usage in every chunk, cumulative",
            PAIR,
            [
                chunk({}, usage=sums[0]),
                *calls,
                chunk({}, usage=sums[1]),
                chunk({}, "tool_calls", usage=sums[2]),
            ],
        ),
        streamed(
            "usage, then null",
            PAIR,
            [ROLE, *calls, chunk({}, "tool_calls", usage=USAGE), chunk({}, usage=None)],
        ),
    ]


def _framings() -> list[Dialect]:
    return [
        Dialect(
            name,
            (
                Turn(
                    TRIO,
                    back(TRIO),
                    None,
                    stream([ROLE, *in_pieces(TRIO), *END], framing),
                    COUNTED,
                ),
                replace(ANSWER, whole=None),
            ),
        )
        for name, framing in FRAMINGS.items()
    ]


def _errors() -> list[Dialect]:
    refused = {"error": {"message": "the cluster is on fire", "type": "server_error", "code": None}}
    return [
        failing(
            "an error in a 200",
            ("server_error", "stream_error"),
            "the cluster is on fire",
            refused,
            [ROLE, refused],
        ),
        failing(
            "an error event in a 200",
            ("server_error", "stream_error"),
            "the cluster is on fire",
            None,
            [ROLE, {"type": "error", **refused}],
        ),
    ]


def _gateways() -> list[Dialect]:
    """What gateways between the model and the client make of a reply."""
    (t1, t2), weather = halves(TOKYO.json), "get_weather"
    a, b = "call_a", "call_b"
    calls, pieces = [asked(call) for call in PAIR], in_pieces(PAIR)
    paris = chunk(piece(1, b, weather, PARIS.json))
    said = {"role": "assistant", "content": "I ask."}
    asks = {"role": "assistant", "tool_calls": calls}
    flat = [{"id": c.id, "type": "function", "name": c.name, "arguments": dict(c.arguments)} for c in PAIR]
    strange = [{"id": "x", "type": "function", "fn": {"n": weather}}]
    on_fire = {"code": 502, "message": "the cluster is on fire"}
    words = {"code": 1302, "msg": "the cluster is on fire", "success": False}
    thought = {"type": "thinking", "thinking": "hm, hm", "signature": "U0lH"}
    blocks = ({"thinking": "hm, ", "signature": ""}, {"thinking": "hm", "signature": ""})
    signed = ({**blocks[0]}, {**blocks[1]}, {"thinking": "", "signature": "U0lH"})
    again = ({**blocks[0]}, {**blocks[1]}, {"thinking": "hm, hm", "signature": "U0lH"})
    first_signed = back(PAIR)
    first_signed[0]["tool_calls"][0].update(SIGNATURE)

    def choices(*of: Mapping[str, Any]) -> dict[str, Any]:
        return {**chunk({}), "choices": list(of)}

    def failing_choice(delta: str) -> dict[str, Any]:
        return choices({"index": 0, delta: {"content": ""}, "finish_reason": "error", "error": on_fire})

    def thinking(name: str, parts: Sequence[Mapping[str, Any]]) -> Dialect:
        deltas = [chunk({"thinking_blocks": [{"type": "thinking", **part}]}) for part in parts]
        comes = back(PAIR, thinking_blocks=[thought])
        return streamed(name, PAIR, [ROLE, *deltas, *pieces, *END], back=comes)

    def cut_off(reason: str) -> Dialect:
        calls = (TOKYO, CUT)
        whole = completion({"tool_calls": [asked(call) for call in calls]}, reason)
        events = [ROLE, *in_pieces(calls), chunk({}, reason), counted()]
        return both(f"cut off for {reason}, the last call's arguments whole by chance", calls, whole, events)

    def no_call(name: str, message: Mapping[str, Any]) -> Dialect:
        answers = Turn(
            answer="",
            whole=completion(message),
            stream=stream([chunk(message), *END]),
            tokens=COUNTED,
            unreadable=True,
        )
        return Dialect(name, (answers,))

    return [
        *map(cut_off, ("max_tokens", "MAX_OUTPUT_TOKENS", "model_length", "content_filter: SAFETY")),
        streamed(
            "the name in pieces, the id in each",
            PAIR,
            [chunk(piece(0, a, part, "")) for part in ("get_", "weather")]
            + [chunk(piece(0, a, arguments=TOKYO.json)), paris, *END],
        ),
        streamed(
            "a new id in every piece",
            (with_id(TOKYO, "call_a2"), PARIS),
            [
                chunk(piece(0, "call_a0", weather, "")),
                chunk(piece(0, "call_a1", arguments=t1)),
                chunk(piece(0, "call_a2", arguments=t2)),
                paris,
                *END,
            ],
        ),
        streamed(
            "a new id and the name in every piece",
            (with_id(TOKYO, "call_a1"), PARIS),
            [chunk(piece(0, f"call_a{n}", weather, part)) for n, part in enumerate((t1, t2))] + [paris, *END],
        ),
        both(
            "calls that are not wrapped in function",
            PAIR,
            {"tool_calls": flat},
            [chunk({"tool_calls": [{**call, "index": i} for i, call in enumerate(flat)]}), *END],
        ),
        no_call("calls of which nothing is known", {"tool_calls": strange}),
        no_call("a call as it was before there were tools", {"function_call": {"name": weather}}),
        streamed(
            "text streamed, the calls in a message at the end",
            PAIR,
            [
                chunk({"role": "assistant", "content": "I "}),
                chunk({"content": "ask."}),
                choices({"index": 0, "message": {**said, **asks}, "finish_reason": "tool_calls"}),
                counted(),
            ],
            back=back(PAIR, "I ask."),
        ),
        streamed(
            "all streamed, and again in a message at the end",
            PAIR,
            [
                *pieces,
                choices({"index": 0, "delta": {}, "message": asks, "finish_reason": "stop"}),
                counted(),
            ],
        ),
        both(
            "text and calls as two choices",
            PAIR,
            {**completion({}), "choices": [{"message": said}, {"message": asks, "finish_reason": "stop"}]},
            [choices({"delta": said}, {"delta": asks, "finish_reason": "stop"}), counted()],
            back=back(PAIR, "I ask."),
        ),
        streamed(
            "a finish null as text until the last",
            PAIR,
            [choices({**one["choices"][0], "finish_reason": "null"}) for one in pieces] + END,
        ),
        failing(
            "a finish null as text, and no other",
            ("truncated_stream",),
            "",
            None,
            [choices({"index": 0, "delta": {"content": "I "}, "finish_reason": "null"})],
        ),
        failing(
            "an error in the choice",
            ("stream_error",),
            "the cluster is on fire",
            {**completion({}), **failing_choice("message")},
            [ROLE, failing_choice("delta")],
        ),
        Dialect(
            "words in place of a reply",
            (Turn(whole=words, fails=("stream_error",), words="the cluster is on fire"),),
        ),
        Dialect(
            "words in place of a stream",
            (
                Turn(
                    stream=stream([words]),
                    fails=("stream_error",),
                    words="the cluster is on fire",
                    unreadable=True,
                ),
            ),
        ),
        thinking("blocks of thinking in pieces", signed),
        thinking("blocks of thinking in pieces, then the whole", again),
        streamed(
            "the thought_signature in every piece of a call",
            PAIR,
            [
                chunk(piece(0, a, weather, "", **SIGNATURE)),
                chunk(piece(0, arguments=t1, **SIGNATURE)),
                chunk(piece(0, arguments=t2, **SIGNATURE)),
                paris,
                *END,
            ],
            back=first_signed,
        ),
    ]


DIALECTS = [
    *_deltas(),
    *_index_and_id(),
    *_ids(),
    *_arguments(),
    *_ends(),
    *_goes_back(),
    *_usage(),
    *_gateways(),
    *_framings(),
    *_errors(),
    *garbage(),
    *served_otherwise(_deltas()[0]),
]
