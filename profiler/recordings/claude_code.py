"""Sessions of Claude Code: `projects/<directory>/<session>.jsonl`, with a file of its own for each sub-agent.

`read` takes of every line what is known of it; `claude_lines` puts the lines in their order, and
`claude_loops` makes loops of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from profiler.recordings.claude_lines import (
    COMMAND,
    FAILED,
    GAVE_UP,
    NOTICE,
    PROMPT,
    REPLY,
    RESULTS,
    SHOWN,
    STOP,
    Line,
    in_order,
)
from profiler.recordings.claude_loops import loops_of
from profiler.recordings.drafts import LoopDraft
from profiler.recordings.fields import as_text, count, duration_ns, mapping, objects, text, time_ns
from profiler.recordings.formats import Item, Skipped, Source
from profiler.recordings.lines import rows

_MS = 1_000_000

NO_LINE = "lines that are no objects"
NO_MESSAGE = "lines without a message (settings, titles, snapshots and the like)"
PROGRESS = "lines of sub-agents' progress (their own files, agent-*.jsonl, tell it)"
NO_TIME = "lines without a time"
SYNTHETIC = "messages that no model wrote (<synthetic>)"
NO_CONTENT = "messages without content"

_NOTICES = (
    "<task-notification",
    "<bash-input",
    "<bash-stdout",
    "<bash-stderr",
    "<system-reminder",
    "<teammate-message",
    "Caveat: The messages below",
)
_INTERRUPTED = "[Request interrupted by user"
_REJECTED = ("User rejected tool use", "The user doesn't want to ")
_DENIED = (
    "Permission to use ",
    "Permission for this ",
    "Claude requested permissions to ",
    "This command requires approval",
    "This Bash command contains multiple operations",
    "PreToolUse:",  # a hook
    "No tools needed for suggestion",
)
_EXIT = re.compile(r"(?:Error: )?(?:Command failed with )?[Ee]xit code:? (\d{1,3})\b")


_KIND = re.compile(
    rb'"type"\s*:\s*"(?:user|assistant|system|progress|attachment|queue-operation|permission-mode|mode|ai-title|'
    rb'last-prompt|agent-name|custom-title)"'
)
_BARE = re.compile(rb'"type"\s*:\s*"(?:summary"[^\n]*"leafUuid"|file-history-snapshot")')
_API_ERROR = re.compile(r"API Error: (?:\w+ )?(\d{3})\b")


class ClaudeCode:
    """The format (`profiler.recordings.formats.Format`)."""

    name = "claude-code"
    resolution_ns = _MS

    def recognises(self, beginning: bytes, path: Path) -> bool:
        if b'"sessionId"' in beginning:
            return b'"parentUuid"' in beginning or _KIND.search(beginning) is not None
        return _BARE.search(beginning) is not None

    def read(self, source: Source, content: bool) -> Iterator[Item | Skipped]:
        path = source.path
        above = path.parts[:-1]
        below = above.index("subagents") if "subagents" in above[1:] else 0
        session = above[below - 1] if below else path.stem
        run = above[-1] if below and above[-2] == "workflows" else ""
        agent = path.name.partition(".")[0].removeprefix("agent-") if path.name.startswith("agent-") else ""
        for value in rows(source):
            if isinstance(value, Skipped):
                yield value
                continue
            item = _item(value.data, session, agent, run, value.line, content)
            yield item if isinstance(item, Item) else Skipped(item, where=f"{source.name}:{value.line}")

    def loops(self, items: Sequence[Item], content: bool) -> Iterator[LoopDraft | Skipped]:
        lines = in_order([Line(item.at_ns, *_data(item)) for item in items])
        return loops_of(lines, self.name, self.resolution_ns)


def _data(item: Item) -> list[Any]:
    return item.data if isinstance(item.data, list) else []


def _item(row: Any, file_session: str, file_agent: str, run: str, number: int, content: bool) -> Item | str:
    """What a line tells, as the fields of a `Line` after its time; or why it tells nothing."""
    if type(row) is not dict:
        return NO_LINE
    kind = row.get("type")
    if kind == "system" and row.get("subtype") == "api_error":
        what: str = FAILED
        body: list[Any] | str = _failure(row)
    elif type(row.get("message")) is not dict:
        of_agent = kind == "progress" and mapping(row.get("data")).get("type") == "agent_progress"
        return PROGRESS if of_agent else NO_MESSAGE
    elif kind == "assistant":
        what = REPLY
        body = _reply(row, content)
        if type(body) is not str and row["message"].get("model") == "<synthetic>":
            if row.get("isApiErrorMessage") is not True:
                return SYNTHETIC
            what, body = GAVE_UP, _gave_up(row)
    elif kind == "user":
        what, body = _user(row, content)
    else:
        return NO_MESSAGE
    if isinstance(body, str):
        return body
    at_ns = time_ns(row.get("timestamp"))
    if at_ns is None:
        return NO_TIME
    session = text(row.get("sessionId")) or file_session
    uuid = text(row.get("uuid"))
    data = [
        what,
        session,
        text(row.get("agentId")) or file_agent,
        row.get("isSidechain") is True or bool(file_agent),
        uuid,
        text(row.get("parentUuid")) or text(row.get("logicalParentUuid")),
        run,
        body,
    ]
    link: str | None = None
    if what == REPLY and body[0]:
        link = f"{body[0]}:{body[1]}"
    elif what == PROMPT and data[2]:
        link = f"agent:{run or data[2]}"
    elif what == RESULTS:
        link = next((f"agent:{result[5]}" for result in body[0] if result[5]), None)
    return Item(session, at_ns, data, f"{session}:{uuid}" if uuid else None, 0, link, number)


def _reply(row: dict[str, Any], content: bool) -> list[Any] | str:
    """[message, request, model, stop reason, usage, calls, tools of the server, text]; calls are [id, name,
    arguments, hash of the prompt, kind of agent]; the usage as `_usage` has it."""
    message = row["message"]
    blocks = message.get("content")
    if type(blocks) is str:
        blocks = [{"type": "text", "text": blocks}]
    if type(blocks) is not list:
        return NO_CONTENT
    calls: list[list[Any]] = []
    served: list[str] = []
    said: list[str] = []
    for block in objects(blocks):
        kind = block.get("type")
        if kind == "tool_use":
            asked = mapping(block.get("input"))
            prompt = asked.get("prompt")
            calls.append(
                [
                    text(block.get("id")),
                    text(block.get("name")),
                    as_text(block.get("input")) if content else None,
                    _hash(prompt) if type(prompt) is str else "",
                    text(asked.get("subagent_type")),
                ]
            )
        elif type(kind) is str and kind.endswith("_tool_use"):
            served.append(text(block.get("name")) or kind)
        elif kind == "text" and content and type(block.get("text")) is str:
            said.append(block["text"])
    request = text(row.get("requestId"))
    return [
        text(message.get("id")) or request,
        request,
        text(message.get("model")),
        text(message.get("stop_reason")),
        _usage(mapping(message.get("usage"))),
        calls,
        served,
        "".join(said) if content else None,
    ]


def _usage(usage: dict[str, Any]) -> list[int | None]:
    """[all input, cached, written to the cache, of that for an hour, output]"""
    fresh = count(usage.get("input_tokens"))
    cached = count(usage.get("cache_read_input_tokens"))
    written = count(usage.get("cache_creation_input_tokens"))
    hour = count(mapping(usage.get("cache_creation")).get("ephemeral_1h_input_tokens"))
    total = None if fresh is None else min(fresh + (cached or 0) + (written or 0), 2**62)
    return [total, cached, written, hour, count(usage.get("output_tokens"))]


def _user(row: dict[str, Any], content: bool) -> tuple[str, list[Any] | str]:
    blocks = row["message"].get("content")
    results: list[list[Any]] = []
    said: list[str] = []
    shown = False
    if type(blocks) is str:
        said.append(blocks)
    elif type(blocks) is list:
        found = [block for block in objects(blocks) if block.get("type") == "tool_result"]
        result = row.get("toolUseResult") if len(found) == 1 else None
        results = [_result(block, result, content) for block in found]
        said = [one["text"] for one in objects(blocks) if type(one.get("text")) is str]
        shown = any(one.get("type") in ("image", "document") for one in objects(blocks))
    else:
        return NOTICE, NO_CONTENT
    words = "\n".join(said).strip()
    stopped = words.startswith(_INTERRUPTED)
    if results:
        return RESULTS, [results, stopped]
    if stopped:
        return STOP, [words.startswith(_INTERRUPTED + " for tool use")]
    origin = text(mapping(row.get("origin")).get("kind"))
    if row.get("isMeta") is True or row.get("isCompactSummary") is True or origin not in ("", "human"):
        return NOTICE, []
    if words.startswith("<local-command"):
        return SHOWN, []
    if words.startswith("<command-"):
        return COMMAND, []
    if words.startswith(_NOTICES):
        return NOTICE, []
    if not words and not shown:
        return NOTICE, NO_CONTENT
    return PROMPT, [_hash(words), words if content else None]


def _result(block: dict[str, Any], result: Any, content: bool) -> list[Any]:
    """[call, status, error type, refused, own duration, agent or workflow, comes back at once, text]"""
    told = block.get("content")
    if type(told) is list:
        told = "\n".join(one["text"] for one in objects(told) if type(one.get("text")) is str)
    words = told if type(told) is str else ""
    said = result if type(result) is str else ""
    more = mapping(result)
    own_ns = duration_ns(more.get("durationMs"), _MS)
    if own_ns is None:
        own_ns = duration_ns(more.get("totalDurationMs"), _MS)
    if own_ns is None:
        own_ns = duration_ns(more.get("durationSeconds"), 1000 * _MS)
    failed = block.get("is_error") is True
    status, error, refused = "error" if failed else "ok", None, False
    begins = [one.removeprefix("<tool_use_error>").removeprefix("Error: ") for one in (words, said)]
    if _begin(begins, _REJECTED) and (failed or not words):
        status, refused = "cancelled", True
    elif _begin(begins, (_INTERRUPTED,)) or more.get("interrupted") is True:
        status = "cancelled"
    elif failed:
        if _begin(begins, _DENIED):
            error, refused = "denied", True
        elif _begin(begins, ("Cancelled: ", "Sibling tool call errored")):
            status = "cancelled"
        elif _begin(begins, ("No such tool available",)):
            error = "unknown_tool"
        elif _begin(begins, ("InputValidationError",)):
            error = "invalid_arguments"
        elif any("timed out after" in one[:400] for one in begins):
            status = "timeout"
        elif exit_ := next((found for one in begins if (found := _EXIT.match(one))), None):
            error = f"exit_{exit_[1]}"
    background = bool(
        more.get("isAsync") is True
        or more.get("status") == "async_launched"
        or text(more.get("backgroundTaskId"))
    )
    return [
        text(block.get("tool_use_id")),
        status,
        error,
        refused,
        own_ns,
        text(more.get("agentId")) or text(more.get("runId")),
        background,
        words if content else None,
    ]


def _begin(words: list[str], beginnings: tuple[str, ...]) -> bool:
    return any(one.startswith(beginnings) for one in words)


def _gave_up(row: dict[str, Any]) -> list[Any]:
    """[HTTP status, error, None] of the message that is shown in the place of a reply."""
    said = "".join(text(one.get("text")) for one in objects(row["message"].get("content")))
    found = _API_ERROR.match(said)
    status = None if found is None else _status(int(found[1]))
    error = text(row.get("error"))[:60]
    if said.startswith("Request timed out"):
        error = "timeout"
    return [status, None if status or error == "unknown" else error or None, None]


def _failure(row: dict[str, Any]) -> list[Any]:
    """[HTTP status, error, wait before the next try]"""
    error = mapping(row.get("error"))
    cause = mapping(row.get("cause")) or mapping(error.get("cause"))
    status = _status(error.get("status"))
    name = None
    if status is None:
        name = "timeout" if "TIMEDOUT" in text(cause.get("code")).upper() else "connection"
    return [status, name, duration_ns(row.get("retryInMs"), _MS)]


def _status(value: object) -> int | None:
    status = count(value)
    return status if status is not None and 100 <= status <= 599 else None


def _hash(words: str) -> str:
    """Names a text without keeping it: a sub-agent's first message is the prompt of the call it runs in."""
    return hashlib.blake2b(words.strip().encode("utf-8", "replace"), digest_size=8).hexdigest()
