"""OpenAI Responses: stateless inputs and `previous_response_id`, checked and shaped as the provider does.

Pure, but for the store, which holds what a later request may refer to.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import orjson

from profiler.emulator.conversation import (
    ApiError,
    Carried,
    Conversation,
    Frame,
    Said,
    call_tokens,
    pieces,
)
from profiler.emulator.draws import decode
from profiler.emulator.openai_chat import (
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
_FRESH = Carried(0, 0, None, (), (), 0)


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


def parse(body: dict[str, Any], store: Store) -> Conversation:
    """Check a request body; raises `ApiError` with the provider's message, param and code."""
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
    state = _walk(given if isinstance(given, list) else [{"role": "user", "content": given or ""}], before)
    stream, parallel = bool(body.get("stream")), body.get("parallel_tool_calls") is not False
    return Conversation(
        *(model, stream, True, offered, chosen, parallel),
        *(state.turns, state.calls, state.call_id, state.results),
        limit,
        echo=_echo(body, limit, previous, parallel),
        carried=None if body.get("store") is False else state,
        earlier_tokens=state.tokens,
    )


def _walk(items: list[Any], before: Carried) -> Carried:
    """One pass over the input items, which continues where the previous response left off."""
    turns, calls, call_id, pending_ids, results, tokens = before
    pending = dict.fromkeys(pending_ids, False)  # call id → answered
    found = list(results)
    in_turn, last_round = False, None
    for n, item in enumerate(items):
        if not isinstance(item, dict):
            raise wrong_type(f"input[{n}]", "an object", item)
        kind = item.get("type", "message")
        if kind == "function_call_output":
            ident = item.get("call_id")
            if not isinstance(ident, str):
                raise missing(f"input[{n}].call_id")
            if ident not in pending:
                raise ApiError(
                    f"No tool call found for function call output with call_id {ident}.", param="input"
                )
            if item.get("output") is None:
                raise missing(f"input[{n}].output")
            pending[ident] = True
            found.append(item["output"])
            in_turn = False
        elif kind == "function_call":
            for key in ("call_id", "name", "arguments"):
                if not isinstance(item.get(key), str):
                    raise missing(f"input[{n}].{key}")
            ident = item["call_id"]
            pending[ident] = False
            if not in_turn:
                # Some clients put each output right after its call: our own ids tell the rounds apart.
                place = decode(ident)
                if place is None or place.round != last_round or turns == 0:
                    turns += 1
                last_round = place.round if place is not None else None
            in_turn = True
            calls += 1
            call_id = call_id or ident
        elif kind == "message":
            role = item.get("role")
            if role not in _ROLES:
                supported = "'assistant', 'system', 'developer', and 'user'"
                raise missing_or_unsupported(f"input[{n}].role", role, supported)
            if not isinstance(item.get("content"), str | list):
                raise missing(f"input[{n}].content")
            if role == "user":
                _all_answered(pending)
                turns, calls, call_id, found, last_round, pending = 0, 0, None, [], None, {}
        elif kind not in ("reasoning", "item_reference"):
            supported = (
                "'message', 'function_call', 'function_call_output', 'reasoning', and 'item_reference'"
            )
            raise unsupported(f"input[{n}].type", kind, supported)
    _all_answered(pending)
    return Carried(turns, calls, call_id, (), tuple(found), tokens)


def _all_answered(pending: dict[str, bool]) -> None:
    for ident, answered in pending.items():
        if not answered:
            raise ApiError(f"No tool output found for function call {ident}.", param="input")


def after(state: Carried, said: Said) -> Carried:
    """The state of a conversation once `said` is added to it."""
    ids = tuple("call_" + call.token for call in said.calls)
    return Carried(
        state.turns + bool(ids),
        state.calls + len(ids),
        state.call_id or (ids[0] if ids else None),
        ids,
        state.results,
        said.input_tokens + said.output_tokens,
    )


def _echo(body: dict[str, Any], limit: int | None, previous: str | None, parallel: bool) -> bytes:
    """The members of a response that repeat the request, as the inside of a JSON object."""
    choice = body.get("tool_choice")
    return _dumps(
        {
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
            "tools": body.get("tools") or [],
            "top_logprobs": 0,
            "top_p": body.get("top_p", 1.0),
            "truncation": "disabled",
            "user": None,
        }
    )[1:-1]


def _usage(said: Said) -> dict[str, Any]:
    return {
        "input_tokens": said.input_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": said.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": said.input_tokens + said.output_tokens,
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _status(said: Said) -> str:
    return "incomplete" if said.finish == "length" else "completed"


def _output(said: Said, token: str) -> list[dict[str, Any]]:
    """The items of a response: a message, or its calls, of which the last one may be cut."""
    if said.text is not None:
        message = {"id": "msg_" + token, "type": "message", "status": _status(said)}
        return [{**message, "content": [_part(said.text)], "role": "assistant"}]
    return [
        {
            "id": "fc_" + call.token,
            "type": "function_call",
            "status": "completed" if n < len(said.calls) else _status(said),
            "arguments": call.arguments,
            "call_id": "call_" + call.token,
            "name": call.name,
        }
        for n, call in enumerate(said.calls, start=1)
    ]


def render(said: Said | None, talk: Conversation, token: str, created: int) -> bytes:
    """A `response` body, without `said` of one that has just begun; `created` in seconds since the epoch."""
    start = {"id": "resp_" + token, "object": "response", "created_at": created, "model": talk.model}
    cut = said is not None and said.finish == "length"
    end = {
        "status": "in_progress" if said is None else _status(said),
        "completed_at": None if said is None or cut else created,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": [] if said is None else _output(said, token),
        "usage": None if said is None else _usage(said),
    }
    return b"%b,%b,%b" % (_dumps(start)[:-1], talk.echo, _dumps(end)[1:])


def frames(said: Said, talk: Conversation, token: str, created: int, tokens_per_event: int) -> list[Frame]:
    """The SSE frames of the same response, in the provider's order."""
    out: list[Frame] = []

    def add(tokens: int, kind: str, rest: bytes) -> None:
        name = b"response." + kind.encode()
        frame = b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b}\n\n' % (name, name, len(out), rest)
        out.append((tokens, frame))

    begun = b'"response":' + render(None, talk, token, created)
    add(0, "created", begun)
    add(0, "in_progress", begun)
    items = _output(said, token)
    if said.text is not None:
        _text_frames(add, said, items[0], tokens_per_event)
    tokens = 0
    for n, (call, item) in enumerate(zip(said.calls, items, strict=False)):  # an answer has an item, no call
        at = b'"output_index":%d,' % n
        where = b'"item_id":"fc_%b",' % call.token.encode() + at
        started = _dumps(item | {"status": "in_progress", "arguments": ""})
        add(tokens, "output_item.added", at + b'"item":' + started)
        for end, piece in pieces(call.arguments, tokens_per_event):
            add(tokens + 8 + end, "function_call_arguments.delta", where + b'"delta":' + _dumps(piece))
        tokens += call_tokens(call)
        if item["status"] == "completed":
            arguments = _dumps(call.arguments)
            add(tokens, "function_call_arguments.done", where + b'"arguments":' + arguments)
        add(tokens, "output_item.done", at + b'"item":' + _dumps(item))
    add(said.output_tokens, _status(said), b'"response":' + render(said, talk, token, created))
    return out


def _text_frames(
    add: Callable[[int, str, bytes], None], said: Said, item: dict[str, Any], tokens_per_event: int
) -> None:
    """The frames of the message `item`, which is all of the output."""
    text, last = said.text or "", said.output_tokens
    at = b'"output_index":0,'
    where = b'"item_id":%b,%b"content_index":0,' % (_dumps(item["id"]), at)
    started = _dumps(item | {"status": "in_progress", "content": []})
    add(0, "output_item.added", at + b'"item":' + started)
    add(0, "content_part.added", where + b'"part":' + _dumps(_part("")))
    for end, piece in pieces(text, tokens_per_event):
        add(end, "output_text.delta", where + b'"logprobs":[],"delta":' + _dumps(piece))
    add(last, "output_text.done", where + b'"logprobs":[],"text":' + _dumps(text))
    add(last, "content_part.done", where + b'"part":' + _dumps(_part(text)))
    add(last, "output_item.done", at + b'"item":' + _dumps(item))
