"""What each fault does to a response. Pure; which request meets which fault is the tape's."""

from __future__ import annotations

from typing import Any

import orjson

from profiler.emulator.conversation import ApiError, MadeCall
from profiler.scenarios.schema import FaultKind

UNKNOWN_TOOL = "nonexistent_tool"

_STATUS: dict[str, tuple[int, str, str, str]] = {
    # status, OpenAI type, Anthropic type, message
    "http_500": (500, "server_error", "api_error", "The server had an error while processing your request."),
    "http_503": (
        503,
        "server_error",
        "api_error",
        "The engine is currently overloaded, please try again later.",
    ),
    "http_529": (529, "server_error", "overloaded_error", "Overloaded"),
    "http_429": (429, "requests", "rate_limit_error", "Rate limit reached (an injected fault)."),
}


def status_error(kind: FaultKind, provider: str) -> ApiError | None:
    """The error that a fault of HTTP status answers with; None for the other kinds."""
    if kind not in _STATUS:
        return None
    status, openai, anthropic, message = _STATUS[kind]
    code = "rate_limit_exceeded" if status == 429 and provider == "openai" else None
    return ApiError(message, status=status, kind=openai if provider == "openai" else anthropic, code=code)


def error_frame(api: str, sequence: int) -> bytes:
    """An error in mid-stream, after HTTP 200."""
    if api == "messages":
        error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        return b"event: error\ndata: %b\n\n" % orjson.dumps(error)
    message = "The server had an error while processing your request."
    if api == "responses":
        event = {
            "type": "error",
            "code": "server_error",
            "message": message,
            "param": None,
            "sequence_number": sequence,
        }
        return b"event: error\ndata: %b\n\n" % orjson.dumps(event)
    return b"data: %b\n\n" % orjson.dumps(
        {"error": {"message": message, "type": "server_error", "param": None, "code": None}}
    )


def spoiled(call: MadeCall, kind: FaultKind) -> MadeCall:
    """A call with malformed arguments, an unknown tool name, or an argument of the wrong type."""
    if kind == "unknown_tool":
        return call._replace(name=UNKNOWN_TOOL)
    if kind == "malformed_arguments":
        return call._replace(arguments=call.arguments[:-1])
    arguments = orjson.loads(call.arguments)
    name = next(iter(arguments), "unexpected")
    # An array of an object is what no scalar, string, array of strings or object parameter takes.
    return call._replace(arguments=orjson.dumps({**arguments, name: [{"unexpected": None}]}).decode())


# The final answer: a few words that mention what the tools returned. Pure.

_MENTIONED = 3
_WIDTH = 48


def answer(results: list[Any]) -> str:
    """A short answer to a conversation whose tools returned `results` (texts or content blocks)."""
    if not results:
        return "There was nothing to look up, so this is the answer."
    mentioned = "; ".join(_snippet(result) for result in results[:_MENTIONED])
    more = f"; and {len(results) - _MENTIONED} more" if len(results) > _MENTIONED else ""
    return f"From {len(results)} results: {mentioned}{more}."


def _snippet(result: Any) -> str:
    if isinstance(result, list):
        texts = [block.get("text") for block in result if isinstance(block, dict)]
        result = next((text for text in texts if isinstance(text, str)), "")
    text = " ".join(str(result)[: _WIDTH * 4].split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."
