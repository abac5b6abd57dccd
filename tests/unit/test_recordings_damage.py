"""Whatever a line of a recording holds, it is skipped and counted, or understood: nothing raises, and what it
told is a record that can be written and read again."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.recordings.claude_code import ClaudeCode
from profiler.recordings.codex import Codex
from profiler.recordings.drafts import Tally, record_of
from profiler.recordings.langfuse import Langfuse
from profiler.recordings.tracelab import TraceLab
from profiler.records import decode, encode
from tests.unit import (
    test_recordings_claude_code,
    test_recordings_codex,
    test_recordings_langfuse,
    test_recordings_tracelab,
)
from tests.unit.recordings_data import read


def claude_code():
    main, sub = test_recordings_claude_code.helped()
    test_recordings_claude_code.retry(main, 10_000)
    main.user(11_000, [test_recordings_claude_code.said("[Request interrupted by user]")])
    return [*main.rows, *sub.rows, *test_recordings_claude_code.forked()[1].rows]


def codex():
    main, child = test_recordings_codex.parent_and_child()
    ended = {"call_id": "k1", "duration": {"secs": 0, "nanos": 5}, "result": {"Ok": {"is_error": False}}}
    child.event(4500, "mcp_tool_call_end", **ended)
    child.event(5300, "error", codex_error_info={"x": {"http_status_code": 503}})
    return [*child.rows, *main.rows]


def tracelab():
    return test_recordings_tracelab.simple()


def langfuse():
    return test_recordings_langfuse.trace()


KINDS = {"claude-code": (ClaudeCode(), claude_code), "codex": (Codex(), codex)}
KINDS |= {"tracelab": (TraceLab(), tracelab), "langfuse": (Langfuse(), langfuse)}

ODD = st.sampled_from(
    [
        *(
            None,
            True,
            False,
            0,
            -1,
            -0.5,
            1e308,
            2**53 + 1,
            2**63,
            2**64 - 1,
            10**40,
            float("nan"),
            float("inf"),
        ),
        *(
            "",
            "x" * 5000,
            "\ud83d",
            "\0",
            "-1",
            "1e9",
            "NaN",
            [],
            {},
            [[]],
            {"": None},
            [None, 1, "a", {}, []],
        ),
        *("0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "2262-04-11T23:47:17Z", "9999-12-31T23:59:59Z"),
        *("2026-01-01T00:00:01+14:00", "2026-01-01", "user", "assistant", "tool_result", "<synthetic>"),
        *([{"type": "tool_use"}], [{"type": "tool_result", "tool_use_id": []}], {"content": {"content": {}}}),
        json.loads("[" * 300 + "]" * 300),
    ]
)


def places(value, path=()):
    yield path
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        yield from places(child, (*path, key))


@st.composite
def damaged(draw, make):
    rows = json.loads(json.dumps(make()))
    for _ in range(draw(st.integers(1, 4))):
        number = draw(st.integers(0, len(rows) - 1))
        path = draw(st.sampled_from(list(places(rows[number]))))
        odd = copy.deepcopy(draw(ODD))
        if not path:
            rows[number] = odd
            continue
        holder = rows[number]
        for key in path[:-1]:
            holder = holder[key]
        if draw(st.booleans()):
            holder[path[-1]] = odd
        else:
            del holder[path[-1]]
    lines = [json.dumps(row).encode() for row in rows]
    number = draw(st.integers(0, len(lines) - 1))
    match draw(st.sampled_from(["as it is", "bytes", "cut", "utf-16", "latin-1", "together"])):
        case "bytes":
            line = bytearray(lines[number])
            line[draw(st.integers(0, len(line) - 1))] = draw(st.integers(0, 255))
            lines[number] = bytes(line)
        case "cut":
            lines[number] = lines[number][: draw(st.integers(0, len(lines[number])))]
        case "utf-16":
            lines[number] = lines[number].decode().encode("utf-16")
        case "latin-1":
            lines[number] = lines[number].replace(b'"type"', b'"\xe9\xff": 1, "type"')
        case "together":
            lines[number] += lines[draw(st.integers(0, len(lines) - 1))]
    return b"\n".join(lines)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_damage_never_raises(kind, data):
    format, make = KINDS[kind]
    text = data.draw(damaged(make))
    assert format.recognises(text[:4096], Path("x")) in (True, False)
    found = read(format, text, content=data.draw(st.booleans()))
    for draft in found.drafts:
        record = record_of(draft, Tally(), 0)
        assert decode(encode(record)) == record


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_line_costs_no_other(kind):
    format, make = KINDS[kind]
    lines = [json.dumps(row).encode() for row in make()]
    whole = read(format, b"\n".join(lines))
    for bad in (b"not JSON", b"[1, 2", b'{"half": ', b"\xff\xfe\x00", b"12", b'{"a": NaN}', b"[" * 3000):
        found = read(format, b"\n".join([*lines[:2], bad, *lines[2:]]))
        records = [record_of(draft, Tally(), 0) for draft in found.drafts]
        assert records == [record_of(draft, Tally(), 0) for draft in whole.drafts], bad
        assert found.skipped.total() > whole.skipped.total(), bad


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_type_anywhere_is_survived(kind):
    """Every field, one after another, as a number, a text and nothing."""
    format, make = KINDS[kind]
    rows = make()
    for number, row in enumerate(rows):
        for path in places(row):
            for odd in (7, "odd", None):
                changed = json.loads(json.dumps(row))
                if not path:
                    changed = odd
                else:
                    holder = changed
                    for key in path[:-1]:
                        holder = holder[key]
                    holder[path[-1]] = odd
                lines = [json.dumps(one) for one in (*rows[:number], changed, *rows[number + 1 :])]
                for draft in read(format, "\n".join(lines).encode()).drafts:
                    record_of(draft, Tally(), 0)
