"""OpenAI Responses: stateless inputs and `previous_response_id`, checked and shaped as the provider does.

Pure, but for the store, which holds what a later request may refer to.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import orjson

from profiler.emulator.bodies import can_be_written
from profiler.emulator.conversation import (
    MENTIONED,
    ApiError,
    Carried,
    Conversation,
    Event,
    Offered,
    Said,
    call_tokens,
    pieces,
    reasoning,
    snippet,
    unnamed,
)
from profiler.emulator.draws import decode
from profiler.emulator.openai_chat import odd_arguments
from profiler.emulator.openai_requests import (
    check_content,
    flag,
    missing,
    missing_or_unsupported,
    missing_or_wrong,
    offered_tools,
    token_limit,
    tool_choice,
    unsupported,
    wrong_type,
)

_dumps = orjson.dumps
_ROLES = ("user", "assistant", "system", "developer")
_REPEATED = ("instructions", "metadata", "temperature", "tool_choice", "top_p")
"""The members of a request that its reply repeats as they came."""

_NESTS = (list, dict)
_FRESH = Carried(0, 0, None, (), (), 0)
_INPUT_PARTS = frozenset({"input_text", "input_image", "input_file"})
_OUTPUT_PARTS = frozenset({"output_text", "refusal"})
_OWN_ITEMS = frozenset(
    {
        "reasoning", "item_reference", "web_search_call", "file_search_call", "code_interpreter_call",
        "computer_call", "image_generation_call", "mcp_list_tools", "mcp_call", "mcp_approval_request",
        "mcp_approval_response", "compaction",
    }
)  # fmt: skip
"""Items of the server's own, which come back as they came."""


class Store:
    """The states of conversations by response id. The least recently used are forgotten beyond `size`."""

    def __init__(self, size: int = 20_000) -> None:
        self._size = size
        self._states: OrderedDict[str, Carried] = OrderedDict()

    def put(self, response_id: str, state: Carried) -> None:
        self._states[response_id] = state
        if len(self._states) > self._size:
            self._states.popitem(last=False)

    def get(self, response_id: str) -> Carried:
        """Raises the provider's error for ids that are not (or no longer) known."""
        state = self._states.get(response_id)
        if state is None:
            raise ApiError(
                f"Previous response with id '{response_id}' not found.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        self._states.move_to_end(response_id)
        return state


def parse(body: dict[str, Any], store: Store, *, lenient: bool = False) -> Conversation:
    """Check a request body; raises `ApiError` with the provider's message, param and code.

    `lenient`: as in `openai_chat.parse`.
    """
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise missing_or_wrong("model", "a string", model)
    given, previous = body.get("input"), body.get("previous_response_id")
    if given is None and previous is None:
        raise missing("input")
    if given is not None and not isinstance(given, str | list):
        raise wrong_type("input", "one of a string or array of input items", given)
    offered = offered_tools(body.get("tools"), nested=False)
    choice = body.get("tool_choice")
    # Unlike Chat, this API takes "none" and "auto" without tools.
    chosen = tool_choice(None if choice == "none" and not offered.names else choice, offered, choice)
    limit = token_limit("max_output_tokens", body.get("max_output_tokens"), 16)
    if previous is not None and not isinstance(previous, str):
        raise wrong_type("previous_response_id", "a string", previous)
    before = _FRESH if previous is None else store.get(previous)
    items = given if isinstance(given, list) else [{"role": "user", "content": given or ""}]
    state = _walk(items, before, lenient)
    for key in _REPEATED:
        if type(body.get(key)) in _NESTS and not can_be_written(body[key]):
            raise ApiError(f"Invalid '{key}': nested too deeply.", param=key, code="invalid_value")
    stream, parallel = bool(flag(body, "stream")), flag(body, "parallel_tool_calls") is not False
    return Conversation(
        *(model, stream, True, offered, chosen, parallel),
        *(state.turns, state.calls, state.call_id, state.results),
        limit,
        echo=_echo(body, offered, limit, previous, parallel),
        carried=None if body.get("store") is False else state,
        earlier_tokens=state.tokens,
    )


def _walk(items: list[Any], before: Carried, lenient: bool) -> Carried:
    """One pass over the input items, which continues where the previous response left off."""
    turns, calls, call_id, pending_ids, results, tokens = before
    pending: dict[str, int] = {}  # call id → calls of this id without an output
    for left in pending_ids:
        pending[left] = pending.get(left, 0) + 1
    found = list(results)
    in_turn, last_round = False, None
    for n, item in enumerate(items):
        if not isinstance(item, dict):
            raise wrong_type(f"input[{n}]", "an object", item)
        kind = item.get("type", "message")
        if kind == "function_call_output":
            ident = item.get("call_id")
            if lenient and "" in pending and (ident is None or ident not in pending):
                ident = ""
            if not isinstance(ident, str):
                raise missing(f"input[{n}].call_id")
            if ident not in pending:
                raise ApiError(
                    f"No tool call found for function call output with call_id {ident}.", param="input"
                )
            if item.get("output") is None:
                raise missing(f"input[{n}].output")
            if not isinstance(item["output"], str) and item["output"] != []:
                check_content(f"input[{n}].output", item["output"], _INPUT_PARTS)
            pending[ident] = max(0, pending[ident] - 1)
            found.append(item["output"])
            in_turn = False
        elif kind == "function_call":
            ident, arguments = item.get("call_id"), item.get("arguments")
            if lenient and ident is None:
                ident = ""
            if not isinstance(ident, str):
                raise missing(f"input[{n}].call_id")
            for key in ("name",) if lenient and not isinstance(arguments, str) else ("name", "arguments"):
                if not isinstance(item.get(key), str):
                    raise missing_or_wrong(f"input[{n}].{key}", "a string", item.get(key))
            pending[ident] = pending.get(ident, 0) + 1 if lenient else 1
            if not in_turn:
                # Some clients put each output right after its call: our own ids tell the rounds apart.
                place = decode(ident)
                if place is None or place.round != last_round or turns == 0:
                    turns += 1
                last_round = place.round if place is not None else None
            in_turn = True
            calls += 1
            call_id = call_id or ident or unnamed(item["name"], arguments)
        elif kind == "message":
            role, content = item.get("role"), item.get("content")
            if role not in _ROLES:
                supported = "'assistant', 'system', 'developer', and 'user'"
                raise missing_or_unsupported(f"input[{n}].role", role, supported)
            if content is None:
                raise missing(f"input[{n}].content")
            if not isinstance(content, str) and content != []:
                parts = _OUTPUT_PARTS if role == "assistant" else _INPUT_PARTS
                check_content(f"input[{n}].content", content, parts)
            if role == "user":
                _all_answered(pending)
                turns, calls, call_id, found, last_round, pending = 0, 0, None, [], None, {}
        elif not isinstance(kind, str) or kind not in _OWN_ITEMS:
            supported = (
                "'message', 'function_call', 'function_call_output', 'reasoning', and 'item_reference'"
            )
            raise unsupported(f"input[{n}].type", kind, supported)
    _all_answered(pending)
    return Carried(turns, calls, call_id, (), tuple(found), tokens)


def _all_answered(pending: dict[str, int]) -> None:
    for ident, unanswered in pending.items():
        if unanswered:
            raise ApiError(f"No tool output found for function call {ident}.", param="input")


def after(state: Carried, said: Said, tokens: int) -> Carried:
    """The state of a conversation once `said` is added to it; `tokens` are those of its request's own input.

    Reasoning is not part of what the model reads again. Of results only so much is kept as an answer shows: a
    state may stay for long after its client has gone.
    """
    results = state.results
    if results:
        results = (*map(snippet, results[:MENTIONED]), *("" for _ in results[MENTIONED:]))
    ids = tuple(call.id or "" for call in said.calls)
    return Carried(
        state.turns + bool(ids),
        state.calls + len(ids),
        state.call_id or (ids[0] or unnamed(said.calls[0].name, said.calls[0].arguments) if ids else None),
        ids,
        results,
        tokens + said.output_tokens - said.reasoning_tokens,
    )


def _echo(
    body: dict[str, Any], offered: Offered, limit: int | None, previous: str | None, parallel: bool
) -> dict[str, Any]:
    """The members of a response that repeat the request."""
    choice = body.get("tool_choice")
    return {
        "background": False,
        "error": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": limit,
        "max_tool_calls": None,
        "metadata": body.get("metadata") or {},
        "parallel_tool_calls": parallel,
        "previous_response_id": previous,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": body.get("store") is not False,
        "temperature": body.get("temperature", 1.0),
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto" if choice is None else choice,
        "tools": orjson.Fragment(offered.text),
        "top_logprobs": 0,
        "top_p": body.get("top_p", 1.0),
        "truncation": "disabled",
        "user": None,
    }


def _usage(said: Said) -> dict[str, Any]:
    return {
        "input_tokens": said.input_tokens,
        "input_tokens_details": {
            "cached_tokens": said.cached_tokens,
            "cache_write_tokens": said.cache_written_tokens,
        },
        "output_tokens": said.output_tokens,
        "output_tokens_details": {"reasoning_tokens": said.reasoning_tokens},
        "total_tokens": said.input_tokens + said.output_tokens,
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _status(said: Said) -> str:
    return "incomplete" if said.finish == "length" else "completed"


def _output(said: Said, token: str) -> list[dict[str, Any]]:
    """The items of a response: its reasoning; a message, or its calls, of which the last one may be cut."""
    items: list[dict[str, Any]] = []
    thought = reasoning(said)
    if thought:
        summary = [{"type": "summary_text", "text": thought}]
        items.append({"id": "rs_" + token, "type": "reasoning", "summary": summary})
    if said.text is not None:
        message = {"id": "msg_" + token, "type": "message", "status": _status(said)}
        items.append({**message, "content": [_part(said.text)], "role": "assistant"})
    for n, call in enumerate(said.calls, start=1):
        item = {
            "id": "fc_" + call.token,
            "type": "function_call",
            "status": "completed" if n < len(said.calls) else _status(said),
            "arguments": call.arguments if call.form == "text" else odd_arguments(call),
            "call_id": call.id,
            "name": call.name,
        }
        if call.form == "missing":
            del item["arguments"]
        if call.id is None:
            del item["call_id"]
        items.append(item)
    return items


def render(said: Said | None, talk: Conversation, token: str, created: int) -> dict[str, Any]:
    """A `response`, without `said` one that has just begun; `created` in seconds since the epoch."""
    cut = said is not None and said.finish == "length"
    return {
        "id": "resp_" + token,
        "object": "response",
        "created_at": created,
        "model": talk.model,
        **talk.echo,
        "status": "in_progress" if said is None else _status(said),
        "completed_at": None if said is None or cut else created,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": [] if said is None else _output(said, token),
        "usage": None if said is None else _usage(said),
    }


def events(said: Said, talk: Conversation, token: str, created: int, tokens_per_event: int) -> list[Event]:
    """The events of the same response, in the provider's order; `frame` numbers them."""
    begun = render(None, talk, token, created)
    out: list[Event] = [
        (0, {"type": "response.created", "response": begun}),
        (0, {"type": "response.in_progress", "response": begun}),
    ]
    items = iter(enumerate(_output(said, token)))
    tokens = said.reasoning_tokens
    if tokens:
        out += _reasoning_events(*next(items), tokens_per_event)
    if said.text is not None:
        out += _text_events(*next(items), said, tokens_per_event)
    for call, (index, item) in zip(said.calls, items, strict=False):  # an answer has an item, no call
        at = {"output_index": index}
        where = {"item_id": item["id"], **at}
        # As far as a stream opens: without its arguments, which follow, unless they are in another form.
        opened = {**item, "status": "in_progress"} | ({"arguments": ""} if call.form == "text" else {})
        out.append((tokens, {"type": "response.output_item.added", **at, "item": opened}))
        for end, piece in pieces(call.deltas, tokens_per_event, tokens + 8):
            out.append((end, {"type": "response.function_call_arguments.delta", **where, "delta": piece}))
        tokens += call_tokens(call)
        if item["status"] == "completed":
            said_so = {"arguments": item["arguments"]} if "arguments" in item else {}
            out.append((tokens, {"type": "response.function_call_arguments.done", **where, **said_so}))
        out.append((tokens, {"type": "response.output_item.done", **at, "item": item}))
    whole = {"type": f"response.{_status(said)}", "response": render(said, talk, token, created)}
    out.append((said.output_tokens, whole))
    return out


def _text_events(index: int, item: dict[str, Any], said: Said, tokens_per_event: int) -> list[Event]:
    """The events of a message."""
    text, begin, last = said.text or "", said.reasoning_tokens, said.output_tokens
    at = {"output_index": index}
    where = {"item_id": item["id"], **at, "content_index": 0}
    opened = {**item, "status": "in_progress", "content": []}
    out: list[Event] = [
        (begin, {"type": "response.output_item.added", **at, "item": opened}),
        (begin, {"type": "response.content_part.added", **where, "part": _part("")}),
    ]
    for end, piece in pieces(text, tokens_per_event, begin):
        out.append((end, {"type": "response.output_text.delta", **where, "logprobs": [], "delta": piece}))
    return [
        *out,
        (last, {"type": "response.output_text.done", **where, "logprobs": [], "text": text}),
        (last, {"type": "response.content_part.done", **where, "part": _part(text)}),
        (last, {"type": "response.output_item.done", **at, "item": item}),
    ]


def _reasoning_events(index: int, item: dict[str, Any], tokens_per_event: int) -> list[Event]:
    """The events of a reasoning item and its summary."""
    [part] = item["summary"]
    at = {"output_index": index}
    where = {"item_id": item["id"], **at, "summary_index": 0}
    added = "response.reasoning_summary_part.added"
    out: list[Event] = [
        (0, {"type": "response.output_item.added", **at, "item": {**item, "summary": []}}),
        (0, {"type": added, **where, "part": {**part, "text": ""}}),
    ]
    last = 0
    for last, piece in pieces(part["text"], tokens_per_event):
        out.append((last, {"type": "response.reasoning_summary_text.delta", **where, "delta": piece}))
    return [
        *out,
        (last, {"type": "response.reasoning_summary_text.done", **where, "text": part["text"]}),
        (last, {"type": "response.reasoning_summary_part.done", **where, "part": part}),
        (last, {"type": "response.output_item.done", **at, "item": item}),
    ]


def frame(event: dict[str, Any], number: int) -> bytes:
    """One event as it is sent, as the `number`th of its stream."""
    kind, body = event["type"].encode(), _dumps(event)  # of which the type is the first member
    rest = body[len(kind) + 10 :]
    return b'event: %b\ndata: {"type":"%b","sequence_number":%d%b\n\n' % (kind, kind, number, rest)


def plain_frames(
    said: Said, talk: Conversation, token: str, created: int, tokens_per_event: int
) -> list[tuple[int, bytes]]:
    """The frames of `events` for calls without reasoning or faults, as `openai_chat.plain_frames`."""
    begun = _dumps(render(None, talk, token, created))
    timed: list[tuple[int, bytes, bytes]] = [  # tokens, type, what follows the number
        (0, b"response.created", b'"response":' + begun),
        (0, b"response.in_progress", b'"response":' + begun),
    ]
    tokens, status = 0, _status(said)
    for n, call in enumerate(said.calls):
        cut = n == len(said.calls) - 1 and status != "completed"
        ident, arguments = b'"fc_%b"' % call.token.encode(), _dumps(call.arguments)
        where = b'"item_id":%b,"output_index":%d,' % (ident, n)
        opened = b'"output_index":%d,"item":{"id":%b,"type":"function_call","status":"' % (n, ident)
        named = b'"call_id":%b,"name":%b}' % (_dumps(call.id), _dumps(call.name))
        added = b'%bin_progress","arguments":"",%b' % (opened, named)
        timed.append((tokens, b"response.output_item.added", added))
        for end, piece in pieces(call.arguments, tokens_per_event, tokens + 8):
            delta = b'%b"delta":%b' % (where, _dumps(piece))
            timed.append((end, b"response.function_call_arguments.delta", delta))
        tokens += call_tokens(call)
        if not cut:
            done = b'%b"arguments":%b' % (where, arguments)
            timed.append((tokens, b"response.function_call_arguments.done", done))
        item = b'%b%b","arguments":%b,%b' % (opened, b"incomplete" if cut else b"completed", arguments, named)
        timed.append((tokens, b"response.output_item.done", item))
    whole = b'"response":' + _dumps(render(said, talk, token, created))
    timed.append((said.output_tokens, b"response." + status.encode(), whole))
    return [
        (
            tokens,
            b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b}\n\n' % (kind, kind, number, rest),
        )
        for number, (tokens, kind, rest) in enumerate(timed)
    ]
