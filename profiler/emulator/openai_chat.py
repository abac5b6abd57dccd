"""OpenAI Chat Completions: requests checked and responses shaped as the provider does it. Pure."""

from __future__ import annotations

from typing import Any

import orjson

from profiler.emulator.conversation import (
    ApiError,
    Conversation,
    Event,
    MadeCall,
    Progress,
    Said,
    call_tokens,
    pieces,
    reasoning,
    unnamed,
)
from profiler.emulator.openai_requests import (
    check_content,
    empty_array,
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

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_PARTS = {
    "user": frozenset({"text", "image_url", "input_audio", "file"}),
    "assistant": frozenset({"text", "refusal"}),
}
_TEXT_PARTS = frozenset({"text"})
_dumps = orjson.dumps


def parse(body: dict[str, Any], *, lenient: bool = False) -> Conversation:
    """Check a request body; raises `ApiError` with the provider's message, param and code.

    `lenient`: calls may come back as odd as this server's own faults make them: without an id, with one that
    is another's too, without arguments.
    """
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise wrong_type("model", "a string", model)
    if not model:
        raise ApiError("you must provide a model parameter")
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise missing_or_wrong("messages", "an array of objects", messages)
    if not messages:
        raise empty_array("messages")
    n = body.get("n")
    if n is not None and n != 1:
        raise ApiError(f"Invalid value for 'n': {n}. Only 1 is supported.", param="n", code="invalid_value")
    tools = body.get("tools")
    if tools == []:
        raise empty_array("tools")
    offered = offered_tools(tools, nested=True)
    choice, parallel = body.get("tool_choice"), flag(body, "parallel_tool_calls")
    if parallel is not None and not offered.names:
        raise ApiError(
            "Invalid value for 'parallel_tool_calls': 'parallel_tool_calls' is only allowed when 'tools' are"
            " specified.",
            param="parallel_tool_calls",
        )
    stream, options = bool(flag(body, "stream")), body.get("stream_options")
    if options is not None and not stream:
        raise ApiError(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )
    if options is not None and not isinstance(options, dict):
        raise wrong_type("stream_options", "an object", options)
    include_usage = bool(options and options.get("include_usage"))
    progress = _walk(messages, lenient)
    chosen = tool_choice(choice, offered, choice.get("function") if isinstance(choice, dict) else None)
    limit = _limit(body)
    return Conversation(
        model, stream, include_usage, offered, chosen, parallel is not False, *progress, limit
    )


def _limit(body: dict[str, Any]) -> int | None:
    limit, old = body.get("max_completion_tokens"), body.get("max_tokens")
    if limit is None:
        return token_limit("max_tokens", old, 1)
    if old is not None:
        raise ApiError(
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            param="max_tokens",
        )
    return token_limit("max_completion_tokens", limit, 1)


def _walk(messages: list[Any], lenient: bool) -> Progress:
    """One pass over the history that checks every rule about calls and their results."""
    turns = calls = 0
    call_id: str | None = None
    results: list[Any] = []
    pending: dict[str, tuple[int, int]] = {}  # ids of the last message's calls → results left, the last one
    unanswered = 0
    for n, message in enumerate(messages):
        if not isinstance(message, dict):
            raise wrong_type(f"messages[{n}]", "an object", message)
        role, content = message.get("role"), message.get("content")
        if role == "tool":
            if not pending:
                raise ApiError(
                    "Invalid parameter: messages with role 'tool' must be a response to a preceeding message"
                    " with 'tool_calls'.",
                    param=f"messages.[{n}].role",
                )
            ident = message.get("tool_call_id")
            if lenient and "" in pending and (ident is None or ident not in pending):
                ident = ""
            if not isinstance(ident, str):
                raise missing(f"messages.[{n}].tool_call_id")
            left, last = pending.get(ident, (0, -1))
            if not left:
                raise ApiError(
                    f"Invalid parameter: 'tool_call_id' of '{ident}' not found in 'tool_calls' of previous"
                    " message."
                    if last < 0
                    else f"Invalid parameter: Duplicate value for 'tool_call_id' of '{ident}', in"
                    f" messages[{last}] and messages[{n}].",
                    param=f"messages.[{n}].tool_call_id",
                )
            pending[ident] = (left - 1, n)
            unanswered -= 1
            if content is None:
                raise missing(f"messages.[{n}].content")
            if not isinstance(content, str):
                check_content(f"messages[{n}].content", content, _TEXT_PARTS)
            results.append(content)
            continue
        if unanswered:
            raise _unanswered(pending, n)
        pending = {}
        made = message.get("tool_calls")
        if role == "assistant":
            if made is not None:
                pending, first = _made(made, n, lenient)
                unanswered = sum(left for left, _ in pending.values())
                turns += 1
                calls += unanswered
                call_id = call_id or first
            elif content is None and message.get("refusal") is None and message.get("function_call") is None:
                raise ApiError(
                    f"Invalid value for 'content': expected a string, got null. (messages[{n}])",
                    param=f"messages.[{n}].content",
                )
            if content is not None and not isinstance(content, str) and content != []:
                check_content(f"messages[{n}].content", content, _PARTS["assistant"])
        elif role not in _ROLES:
            supported = "'system', 'assistant', 'user', 'function', 'tool', and 'developer'"
            raise missing_or_unsupported(f"messages[{n}].role", role, supported)
        elif content is None:
            raise missing(f"messages[{n}].content")
        else:
            if not isinstance(content, str):
                check_content(f"messages[{n}].content", content, _PARTS.get(role, _TEXT_PARTS))
            if role == "user":
                turns, calls, call_id, results = 0, 0, None, []
    if unanswered:
        raise _unanswered(pending, len(messages))
    return turns, calls, call_id, results


def _made(made: Any, n: int, lenient: bool) -> tuple[dict[str, tuple[int, int]], str]:
    """The ids of the calls of assistant message `n`, without results; and what names the first call.

    With each id come its calls that have no result yet, and the message of the last result, -1 for none.
    """
    if made == []:
        raise empty_array(f"messages[{n}].tool_calls")
    if not isinstance(made, list):
        raise wrong_type(f"messages[{n}].tool_calls", "an array of objects", made)
    pending: dict[str, tuple[int, int]] = {}
    first = None
    for k, call in enumerate(made):
        if not isinstance(call, dict):
            raise wrong_type(f"messages[{n}].tool_calls[{k}]", "an object", call)
        ident, function = call.get("id"), call.get("function")
        if lenient and ident is None:
            ident = ""
        if not isinstance(ident, str):
            raise missing(f"messages[{n}].tool_calls[{k}].id")
        if call.get("type") not in ("function", None):  # some of the servers stream calls without it
            raise unsupported(f"messages[{n}].tool_calls[{k}].type", call["type"], "'function'")
        if not isinstance(function, dict):
            raise missing(f"messages[{n}].tool_calls[{k}].function")
        arguments = function.get("arguments")
        for key in ("name",) if lenient and not isinstance(arguments, str) else ("name", "arguments"):
            if not isinstance(function.get(key), str):
                raise missing_or_wrong(
                    f"messages[{n}].tool_calls[{k}].function.{key}", "a string", function.get(key)
                )
        before = pending[ident][0] if lenient and ident in pending else 0
        pending[ident] = (before + 1, -1)
        first = first or ident or unnamed(function["name"], arguments)
    return pending, first or ""


def _unanswered(pending: dict[str, tuple[int, int]], n: int) -> ApiError:
    ids = ", ".join(ident for ident, (left, _) in pending.items() if left)
    return ApiError(
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
        f"'tool_call_id'. The following tool_call_ids did not have response messages: {ids}",
        param=f"messages.[{n}].role",
    )


def _usage(said: Said) -> dict[str, Any]:
    return {
        "prompt_tokens": said.input_tokens,
        "completion_tokens": said.output_tokens,
        "total_tokens": said.input_tokens + said.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": said.cached_tokens,
            "cache_write_tokens": said.cache_written_tokens,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": said.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _call(call: MadeCall, arguments: str | None = None) -> dict[str, Any]:
    """A call; with the `arguments` that open it in a stream, or with all of them."""
    function: dict[str, Any] = {"name": call.name}
    if call.form == "text":
        function["arguments"] = call.arguments if arguments is None else arguments
    elif call.form != "missing":
        function["arguments"] = odd_arguments(call)
    made: dict[str, Any] = {} if call.id is None else {"id": call.id}
    return {**made, "type": "function", "function": function}


def odd_arguments(call: MadeCall) -> Any:
    """The value of arguments that a fault has sent in another form than JSON text."""
    return orjson.loads(call.arguments) if call.form == "object" else "" if call.form == "empty" else None


def render(said: Said, talk: Conversation, reasoning_field: str | None) -> dict[str, Any]:
    """A `chat.completion` without what `start` has; reasoning is in `reasoning_field`, or not shown."""
    message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None, "annotations": []}
    thought = reasoning(said)
    if thought and reasoning_field is not None:
        message[reasoning_field] = thought
    if said.calls:
        message["tool_calls"] = [_call(call) for call in said.calls]
    return {
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": said.finish}],
        "usage": _usage(said),
    }


def start(talk: Conversation, token: str, created: int, *, chunk: bool) -> dict[str, Any]:
    """The members that a completion, or each chunk of one, begins with; `created` in Unix seconds."""
    return {
        "id": "chatcmpl-" + token,
        "object": "chat.completion.chunk" if chunk else "chat.completion",
        "created": created,
        "model": talk.model,
        "service_tier": "default",
        "system_fingerprint": "fp_emulator",
    }


def events(said: Said, talk: Conversation, tokens_per_event: int, reasoning_field: str | None) -> list[Event]:
    """The chunks of the same response, in the provider's order, without what `start` has."""
    out: list[Event] = []

    def add(tokens: int, delta: dict[str, Any], finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        out.append((tokens, {"choices": [choice], "usage": None} if asked else {"choices": [choice]}))

    asked = talk.include_usage
    tokens = said.reasoning_tokens
    thought = reasoning(said) if reasoning_field is not None else ""
    if not said.calls:
        add(0, {"role": "assistant", "content": "", "refusal": None})
    # The role comes in a chunk of its own, or with the first call where that is the only one.
    elif thought or len(said.calls) > 1:
        add(0, {"role": "assistant", "content": None})
    for end, piece in pieces(thought, tokens_per_event):
        add(end, {reasoning_field or "": piece})
    if not said.calls:
        for end, piece in pieces(said.text or "", tokens_per_event, tokens):
            add(end, {"content": piece})
    for n, call in enumerate(said.calls):
        role = {} if thought or len(said.calls) > 1 else {"role": "assistant", "content": None}
        add(tokens, {**role, "tool_calls": [{"index": n, **_call(call, "")}]})
        for end, piece in pieces(call.deltas, tokens_per_event, tokens + 8):
            add(end, {"tool_calls": [{"index": n, "function": {"arguments": piece}}]})
        tokens += call_tokens(call)
    add(said.output_tokens, {}, said.finish)
    if asked:
        out.append((said.output_tokens, {"choices": [], "usage": _usage(said)}))
    return out


DONE = b"data: [DONE]\n\n"


def frame(begun: bytes, event: dict[str, Any]) -> bytes:
    """One chunk as it is sent; what `begun` (`start` as JSON) says is added unless the chunk says it."""
    body = _dumps(event)
    return b"data: %b\n\n" % body if "id" in event else b"data: %b,%b\n\n" % (begun[:-1], body[1:])


def plain_frames(
    said: Said, talk: Conversation, token: str, created: int, tokens_per_event: int
) -> list[tuple[int, bytes]]:
    """The frames of `events`, with their tokens, where there is no reasoning and nothing reshapes them.

    The same bytes, for less than it takes to make each event and then its JSON: most replies are such.
    """
    begun = _dumps(start(talk, token, created, chunk=True))[:-1]
    usage = b',"usage":null}\n\n' if talk.include_usage else b"}\n\n"
    opening = b'data: %b,"choices":[{"index":0,"delta":{' % begun
    ending = b'},"logprobs":null,"finish_reason":null}]%b' % usage
    role = b'"role":"assistant","content":null'
    out: list[tuple[int, bytes]] = []
    tokens = 0
    if not said.calls:
        out.append((0, b'%b"role":"assistant","content":"","refusal":null%b' % (opening, ending)))
        for end, piece in pieces(said.text or "", tokens_per_event):
            out.append((end, b'%b"content":%b%b' % (opening, _dumps(piece), ending)))
    several = len(said.calls) > 1
    if several:
        out.append((0, opening + role + ending))
    for n, call in enumerate(said.calls):
        named = _dumps(_call(call, ""))[1:]
        calls = b'%b"tool_calls":[{"index":%d,' % (opening if several else opening + role + b",", n)
        out.append((tokens, b"%b%b]%b" % (calls, named, ending)))
        calls = b'%b"tool_calls":[{"index":%d,"function":{"arguments":' % (opening, n)
        for end, piece in pieces(call.arguments, tokens_per_event, tokens + 8):
            out.append((end, b"%b%b}}]%b" % (calls, _dumps(piece), ending)))
        tokens += call_tokens(call)
    finish = b'%b},"logprobs":null,"finish_reason":"%b"}]%b' % (opening, said.finish.encode(), usage)
    out.append((said.output_tokens, finish))
    if talk.include_usage:
        counted = b'data: %b,"choices":[],"usage":%b}\n\n' % (begun, _dumps(_usage(said)))
        out.append((said.output_tokens, counted))
    out.append((said.output_tokens, DONE))
    return out
