"""Fields of any type, and lines of any kind, as the formats of sessions take them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from profiler.recordings import lines
from profiler.recordings.fields import as_text, count, duration_ns, time_ns
from profiler.recordings.formats import Skipped, Source
from profiler.recordings.reading import NOT_JSON, TOO_LONG, TORN

ZERO_NS = 1_767_225_600_000_000_000  # 2026-01-01T00:00:00Z


@pytest.mark.parametrize(
    ("said", "after_ns"),
    [
        ("2026-01-01T00:00:00Z", 0),
        ("2026-01-01T00:00:00.001Z", 1_000_000),
        ("2026-01-01 00:00:00.123456", 123_456_000),
        ("2026-01-01T01:00:00+01:00", 0),
        (1_767_225_600, 0),
        (1_767_225_600.5, 500_000_000),
        (1_767_225_600_001, 1_000_000),
        (1_767_225_600_000_001, 1_000),
        (1_767_225_600_000_000_256, 256),
    ],
)
def test_times(said, after_ns):
    assert time_ns(said) == ZERO_NS + after_ns


@pytest.mark.parametrize(
    "said", ["", "soon", "1960-01-01T00:00:00Z", "9999-12-31T23:59:59Z", 0, 7, True, None, [], 1e30]
)
def test_what_is_no_time(said):
    assert time_ns(said) is None


def test_counts_and_durations():
    assert [count(one) for one in (0, 7, 7.0, -1, 7.5, True, "7", 2**63, None)] == [0, 7, 7, *[None] * 6]
    assert [duration_ns(one, 1_000_000) for one in (0, 1.5, -1, 1e30, True, "1", None)] == [
        0,
        1_500_000,
        *[None] * 5,
    ]
    assert [as_text(one) for one in (None, "a", {"b": 1}, 2)] == [None, "a", '{"b":1}', "2"]


def rows(data):
    found = lines.rows(Source(Path("f"), "f", io.BytesIO(data)))
    return [(one.reason, one.where) if isinstance(one, Skipped) else tuple(one) for one in found]


def test_a_damaged_line_costs_itself_alone():
    data = b'\xef\xbb\xbf{"a": 1}\r\n\n[1, 2\n{"b": \n{"c": 3}\n{"d": 4}'
    assert rows(data) == [(1, {"a": 1}), (NOT_JSON, "f:3"), (NOT_JSON, "f:4"), (5, {"c": 3}), (6, {"d": 4})]


def test_the_last_line_may_be_torn():
    assert rows(b'{"a": 1}\n{"b') == [(1, {"a": 1}), (TORN, "f:2")]
    assert rows(b'{"a": 1}\n{"b\n') == [(1, {"a": 1}), (NOT_JSON, "f:2")]


def test_other_layouts_are_read_as_they_are():
    assert rows(b'[{"a": 1},\n {"b": 2}]\n') == [(1, {"a": 1}), (2, {"b": 2})]
    assert [one[1] for one in rows(b'{\n "a": 1\n}\n{\n "b": 2\n}\n')] == [{"a": 1}, {"b": 2}]
    assert rows(b"") == []


def test_a_line_without_an_end_is_not_held(monkeypatch):
    monkeypatch.setattr(lines, "MOST_BYTES", 100)
    data = b'{"a": 1}\n{"b": "' + b"x" * 450 + b'"}\n{"c": 3}\n'
    assert rows(data) == [(1, {"a": 1}), (TOO_LONG, "f:2"), (3, {"c": 3})]


def test_a_stream_can_be_read_from_its_beginning_again():
    stream = io.BytesIO(b"abcdef" * 10)
    beginning = stream.read(7)
    assert lines.again(beginning, stream).read() == b"abcdef" * 10
