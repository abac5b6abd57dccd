"""What a file is that no format recognises: what it looks like, and what to do instead, in words."""

from __future__ import annotations

import re

import orjson

_BEGINNINGS = (
    (b"PAR1", "a Parquet file: export JSON lines (or CSV, from Langfuse) instead"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"BZh", "packed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "packed with xz: unpack it first"),
    (b"\x1f\x8b", "packed twice: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "packed twice: unpack it first"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\xff\xfe", "text in UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16: save it as UTF-8"),
    (b"ARROW1", "an Arrow file: export JSON lines instead"),
    (b"%PDF", "a PDF"),
    (b"<", "HTML or XML"),
)

_KEYS = re.compile(rb'"((?:[^"\\]|\\.){1,40})"\s*:')
_EXEC = re.compile(
    rb'\{"type":\s*"thread\.started"|"msg":\s*\{"type":\s*"(?:task_started|agent_|exec_command_)'
)
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,30}")

# Which keys in the beginning tell what it is, the most particular first.
_BY_KEYS: tuple[tuple[frozenset[str], str], ...] = (
    (
        frozenset({"strategy", "rounds", "started_ns"}),
        "records of this package: `profiler report` reads them as they are",
    ),
    (
        frozenset({"scenario", "strategies", "anchor"}),
        "the run.json of a run directory of this package: `profiler report` reads the directory",
    ),
    (frozenset({"figures", "schema"}), "a summary of this package: `profiler report` reads its directory"),
    (
        frozenset({"body", "timestamp", "traceId"}),
        "what is sent to Langfuse: import what it exports instead (observations, as JSON lines)",
    ),
    (
        frozenset({"id", "timestamp", "instructions"}),
        "a session of Codex from before October 2025: its lines have no times, so no durations follow",
    ),
    (frozenset({"traceEvents"}), "a Chrome or Perfetto trace, which does not say what a model or a tool is"),
    (
        frozenset({"requests", "in", "out"}),
        "a Weka trace: it holds model calls and no tool calls, so nothing here can be said of it",
    ),
    (
        frozenset({"turns", "session_id"}),
        "an AIPerf conversation: it holds model calls and no tool calls, so nothing here can be said of it",
    ),
    (
        frozenset({"forks"}),
        "an AIPerf conversation: it holds model calls and no tool calls, so nothing here can be said of it",
    ),
    (
        frozenset({"spawns"}),
        "an AIPerf conversation: it holds model calls and no tool calls, so nothing here can be said of it",
    ),
    (
        frozenset({"load_summary", "successes"}),
        "a report of inference-perf: sums of model requests, of which no loop can be made",
    ),
    (
        frozenset({"start_time", "end_time", "request", "response", "info"}),
        "requests of inference-perf: model calls without tool calls or conversations",
    ),
    (frozenset({"resourceMetrics"}), "OTLP metrics: only its traces tell of loops"),
    (frozenset({"resourceLogs"}), "OTLP logs: only its traces tell of loops"),
)


def is_no_text(beginning: bytes) -> bool:
    """Whether it is something that cannot be JSON or CSV, whatever anybody says."""
    return b"\0" in beginning or any(beginning.startswith(start) for start, _ in _BEGINNINGS)


def what_it_is(beginning: bytes) -> str:
    """What a file that begins so looks like. Nothing of its values is repeated."""
    text = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        return "an empty file"
    for start, said in _BEGINNINGS:
        if text.startswith(start) or beginning.startswith(start):
            return said
    if beginning[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if b"\0" in beginning:
        return "a binary file"
    if text[:1] in b"{[":
        return _json(text)
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.end < len(text) - 3:
            return "neither text in UTF-8 nor packed"
    return "text that is neither JSON nor a CSV file of Langfuse's observations"


def _json(text: bytes) -> str:
    if _EXEC.search(text):
        return (
            "what `codex exec --json` prints, which has no times: import the session's file instead "
            "(rollout-*.jsonl below ~/.codex/sessions)"
        )
    found = dict.fromkeys(key.decode("utf-8", "replace") for key in _KEYS.findall(text))
    for keys, said in _BY_KEYS:
        if keys <= found.keys():
            return said
    line = text.split(b"\n", 1)[0]
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        value = None
    if isinstance(value, list):
        value = value[0] if value else None
    keys_seen = list(value) if isinstance(value, dict) else list(found)
    named = [key for key in keys_seen if _PLAIN.fullmatch(key)][:6]
    return (
        f"JSON of no known recording, with the keys {', '.join(named)}" if named else "JSON of no recording"
    )
