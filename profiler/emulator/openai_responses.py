"""OpenAI Responses: stateless inputs and `previous_response_id`, checked and shaped as the provider does.

Pure, but for the store, which holds what a later request may refer to.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import orjson

from profiler.emulator.conversation import (
    NO_TOOLS,
    ApiError,
    Carried,
    Conversation,
    Frame,
    MadeCall,
    Said,
    ToolSets,
    call_tokens,
    pieces,
)
from profiler.emulator.draws import decode
from profiler.emulator.openai_chat import missing, tool_choice, tool_schemas, wrong_type

_dumps = orjson.dumps
_ROLES = ("user", "assistant", "system", "developer")
_FRESH = Carried(0, 0, None, (), (), 0)


class Store:
    """Where conversations stand, by response id. The least recently used are forgotten beyond `size`."""

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


def parse(body: dict[str, Any], toolsets: ToolSets, store: Store) -> Conversation:
    """Check a request body; raises `ApiError` with the provider's message, param and code."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise missing("model") if model is None else wrong_type("model", "a string", model)
    previous = body.get("previous_response_id")
    given = body.get("input")
    if given is None and previous is None:
        raise missing("input")
    if given is not None and not isinstance(given, str | list):
        raise wrong_type("input", "one of a string or array of input items", given)
    tools = body.get("tools")
    offered = NO_TOOLS
    if tools is not None:
        if not isinstance(tools, list):
            raise wrong_type("tools", "an array of objects", tools)
        offered = toolsets.get(b"r" + _dumps(tools), lambda: tool_schemas(_functions(tools), "parameters"))
    choice = body.get("tool_choice")
    # Unlike Chat, this API takes "none" and "auto" without tools.
    chosen = tool_choice(None if choice == "none" and not offered.names else choice, offered, choice)
    limit = body.get("max_output_tokens")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
        raise wrong_type("max_output_tokens", "an integer", limit)
    if limit is not None and limit < 16:
        raise ApiError(
            "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got"
            f" {limit} instead.",
            param="max_output_tokens",
            code="integer_below_min_value",
        )
    before = _FRESH
    if previous is not None:
        if not isinstance(previous, str):
            raise wrong_type("previous_response_id", "a string", previous)
        before = store.get(previous)
    state = _walk(given if isinstance(given, list) else [{"role": "user", "content": given or ""}], before)
    parallel = body.get("parallel_tool_calls")
    return Conversation(
        model=model,
        stream=bool(body.get("stream")),
        include_usage=True,
        tools=offered,
        choice=chosen,
        parallel=parallel is not False,
        turns=state.turns,
        calls=state.calls,
        call_id=state.call_id,
        results=list(state.results),
        max_tokens=limit,
        echo=_echo(body, limit, previous, parallel is not False),
        carried=None if body.get("store") is False else state,
        earlier_tokens=state.tokens,
    )


def _functions(tools: list[Any]) -> list[tuple[str, Any]]:
    functions = []
    for n, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise wrong_type(f"tools[{n}]", "an object", tool)
        if tool.get("type") != "function":
            raise ApiError(
                f"Invalid value: '{tool.get('type')}'. Supported values are: 'function'.",
                param=f"tools[{n}].type",
                code="invalid_value",
            )
        functions.append((f"tools[{n}]", tool))
    return functions


def _walk(items: list[Any], before: Carried) -> Carried:
    """One pass over the input items, from where the previous response left off."""
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
                if role is None:
                    raise missing(f"input[{n}].role")
                raise ApiError(
                    f"Invalid value: '{role}'. Supported values are: 'assistant', 'system', 'developer', and"
                    " 'user'.",
                    param=f"input[{n}].role",
                    code="invalid_value",
                )
            if not isinstance(item.get("content"), str | list):
                raise missing(f"input[{n}].content")
            if role == "user":
                _all_answered(pending)
                turns, calls, call_id, found, last_round = 0, 0, None, [], None
                pending = {}
        elif kind not in ("reasoning", "item_reference"):
            raise ApiError(
                f"Invalid value: '{kind}'. Supported values are: 'message', 'function_call', "
                "'function_call_output', 'reasoning', and 'item_reference'.",
                param=f"input[{n}].type",
                code="invalid_value",
            )
    _all_answered(pending)
    return Carried(turns, calls, call_id, (), tuple(found), tokens)


def _all_answered(pending: dict[str, bool]) -> None:
    for ident, answered in pending.items():
        if not answered:
            raise ApiError(f"No tool output found for function call {ident}.", param="input")


def after(state: Carried, said: Said) -> Carried:
    """Where a conversation stands once `said` is added to it."""
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
    """What the response repeats of the request, as the inside of a JSON object."""
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


def _call_item(call: MadeCall, status: str, arguments: str) -> dict[str, Any]:
    return {
        "id": "fc_" + call.token,
        "type": "function_call",
        "status": status,
        "arguments": arguments,
        "call_id": "call_" + call.token,
        "name": call.name,
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _message_item(token: str, status: str, text: str | None) -> dict[str, Any]:
    content = [] if text is None else [_part(text)]
    return {
        "id": "msg_" + token,
        "type": "message",
        "status": status,
        "content": content,
        "role": "assistant",
    }


def _output(said: Said, token: str) -> list[dict[str, Any]]:
    status = "incomplete" if said.finish == "length" else "completed"
    if said.text is not None:
        return [_message_item(token, status, said.text)]
    last = len(said.calls) - 1
    return [
        _call_item(call, status if n == last else "completed", call.arguments)
        for n, call in enumerate(said.calls)
    ]


def _response(said: Said | None, talk: Conversation, token: str, created: int) -> bytes:
    """A `response` object; without `said`, one that has just begun."""
    start = {"id": "resp_" + token, "object": "response", "created_at": created, "model": talk.model}
    if said is None:
        end: dict[str, Any] = {
            "status": "in_progress",
            "completed_at": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
        }
    else:
        cut = said.finish == "length"
        end = {
            "status": "incomplete" if cut else "completed",
            "completed_at": None if cut else created,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": _output(said, token),
            "usage": _usage(said),
        }
    return b"%b,%b,%b" % (_dumps(start)[:-1], talk.echo, _dumps(end)[1:])


def render(said: Said, talk: Conversation, token: str, created: int) -> bytes:
    """A `response` body; `created` in seconds since the epoch."""
    return _response(said, talk, token, created)


def frames(said: Said, talk: Conversation, token: str, created: int, tokens_per_event: int) -> list[Frame]:
    """The SSE frames of the same response, in the provider's order."""
    out: list[Frame] = []

    def add(tokens: int, kind: str, rest: bytes) -> None:
        name = kind.encode()
        frame = b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b}\n\n' % (name, name, len(out), rest)
        out.append((tokens, frame))

    begun = b'"response":' + _response(None, talk, token, created)
    add(0, "response.created", begun)
    add(0, "response.in_progress", begun)
    cut = said.finish == "length"
    if said.text is not None:
        _text_frames(add, said, token, tokens_per_event, cut)
    tokens = 0
    for n, call in enumerate(said.calls):
        at = b'"output_index":%d' % n
        ident = b'"item_id":"fc_%b",' % call.token.encode()
        add(
            tokens,
            "response.output_item.added",
            at + b',"item":' + _dumps(_call_item(call, "in_progress", "")),
        )
        for end, piece in pieces(call.arguments, tokens_per_event):
            add(
                tokens + 8 + end,
                "response.function_call_arguments.delta",
                ident + at + b',"delta":' + _dumps(piece),
            )
        tokens += call_tokens(call)
        status = "incomplete" if cut and n == len(said.calls) - 1 else "completed"
        if status == "completed":
            arguments = b',"arguments":' + _dumps(call.arguments)
            add(tokens, "response.function_call_arguments.done", ident + at + arguments)
        item = _dumps(_call_item(call, status, call.arguments))
        add(tokens, "response.output_item.done", at + b',"item":' + item)
    last = "response.incomplete" if cut else "response.completed"
    add(said.output_tokens, last, b'"response":' + _response(said, talk, token, created))
    return out


def _text_frames(add: Any, said: Said, token: str, tokens_per_event: int, cut: bool) -> None:
    text = said.text or ""
    status = "incomplete" if cut else "completed"
    where = b'"item_id":"msg_%b","output_index":0,"content_index":0,' % token.encode()
    item = _dumps(_message_item(token, "in_progress", None))
    add(0, "response.output_item.added", b'"output_index":0,"item":' + item)
    add(0, "response.content_part.added", where + b'"part":' + _dumps(_part("")))
    for end, piece in pieces(text, tokens_per_event):
        add(end, "response.output_text.delta", where + b'"logprobs":[],"delta":' + _dumps(piece))
    last = said.output_tokens
    add(last, "response.output_text.done", where + b'"logprobs":[],"text":' + _dumps(text))
    add(last, "response.content_part.done", where + b'"part":' + _dumps(_part(text)))
    item = _dumps(_message_item(token, status, text))
    add(last, "response.output_item.done", b'"output_index":0,"item":' + item)
