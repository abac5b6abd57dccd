"""The JSON values of a file, however they are laid out, and what is none."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.recordings import reading
from profiler.recordings.formats import Skipped, Source
from profiler.recordings.reading import NOT_JSON, TOO_LONG, TORN, values

OBJECTS = [
    {"a": [1, {"b": "}]{["}], "c": 'x"\\', "d": "\\\\"},
    {"e": {"f": []}},
    {"g": "ü"},
]


def read(data: bytes, buffered: bool = True) -> list[object]:
    """[line, value] of each value, [line, reason] in a tuple of each that is none."""
    raw = io.BytesIO(data)
    stream = io.BufferedReader(raw, 16) if buffered else raw
    found: list[object] = []
    for one in values(Source(Path("f"), "f", stream)):
        if isinstance(one, Skipped):
            assert one.count == 1
            found.append((int(one.where.removeprefix("f:")), one.reason))
        else:
            found.append([one.line, one.data])
    return found


def lines(*objects: object, indent: int | None = None) -> bytes:
    return b"".join(json.dumps(one, indent=indent).encode() + b"\n" for one in objects)


@pytest.mark.parametrize(
    "data",
    [
        lines(*OBJECTS),
        lines(*OBJECTS).replace(b"\n", b"\r\n\r\n"),
        b"\xef\xbb\xbf" + lines(*OBJECTS).rstrip(),
        lines(*OBJECTS).replace(b"\n", b""),
        lines(*OBJECTS).replace(b"\n", b", "),
        lines(*OBJECTS, indent=2),
        lines(*OBJECTS, indent=0),
        lines(OBJECTS),
        lines(OBJECTS, indent=4),
        lines(OBJECTS[:1], OBJECTS[1:]),
        lines(OBJECTS[:1]).strip() + lines(*OBJECTS[1:]),
    ],
    ids=[
        "lines",
        "crlf",
        "bom",
        "joined",
        "commas",
        "pretty",
        "unindented",
        "array",
        "pretty array",
        "arrays",
        "array and lines",
    ],
)
@pytest.mark.parametrize("buffered", [True, False])
def test_values_are_found_in_every_layout(data, buffered):
    assert [one[1] for one in read(data, buffered)] == OBJECTS


def test_values_say_the_line_they_begin_on():
    assert read(lines({"a": 1}, {"b": 2}, indent=2)) == [[1, {"a": 1}], [4, {"b": 2}]]
    assert read(lines([{"a": 1}, {"b": 2}], indent=2)) == [[2, {"a": 1}], [5, {"b": 2}]]
    assert read(b"\n\n" + lines({"a": 1})) == [[3, {"a": 1}]]


def test_values_between_what_a_program_prints_are_found():
    printed = b"INFO ready\n" + lines({"a": 1}, indent=2) + b"WARNING 17\n" + lines({"b": 2})
    assert read(printed) == [(1, NOT_JSON), [2, {"a": 1}], (5, NOT_JSON), [6, {"b": 2}]]


def test_values_torn_by_a_kill_lose_only_themselves():
    assert read(b'{"a": 1}\n{"b": "x\n{"c": 3}\n{"d"') == [
        [1, {"a": 1}],
        (2, TORN),
        [3, {"c": 3}],
        (4, TORN),
    ]
    torn = lines({"a": {"b": 1}}, indent=2)[:15] + b"\n" + lines({"c": 3}, indent=2)
    assert read(torn) == [(1, TORN), [4, {"c": 3}]]
    assert read(b'[{"a": 1}, {"b"') == [[1, {"a": 1}], (1, TORN)]


def test_values_that_are_no_json_are_named_with_their_line():
    assert read(b'{"a": 1}\n{"b": nope}\n"text"\n17\n{"c": 3}\n') == [
        [1, {"a": 1}],
        (2, NOT_JSON),
        (3, NOT_JSON),
        (4, NOT_JSON),
        [5, {"c": 3}],
    ]
    assert read(b'[{"a": 1}, nope, {"c": 3}]') == [[1, {"a": 1}], (1, NOT_JSON), [1, {"c": 3}]]


def test_values_that_only_other_languages_write_are_mended():
    data = b'{"a": NaN, "b": [-Infinity, 1], "c": "\\ud83dx", "d": "\\ud83d\\ude00", "e": "\xff"}\n'
    assert read(data) == [[1, {"a": None, "b": [None, 1], "c": "\ufffdx", "d": "\U0001f600", "e": "\ufffd"}]]


@pytest.mark.parametrize("layout", ["line", "object", "array"])
def test_values_that_are_too_long_are_left_out(monkeypatch, layout):
    monkeypatch.setattr(reading, "MOST_BYTES", 1000)
    monkeypatch.setattr(reading, "_CHUNK", 100)
    long = json.dumps({"a": "x" * 5000}, indent=None if layout == "line" else 1).encode() + b"\n"
    if layout == "array":
        found = read(b'[{"b": 1},' + long + b"]\n" + lines({"c": 1}))
        assert found[:2] == [[1, {"b": 1}], (1, TOO_LONG)]
    else:
        found = read(long + lines({"c": 1}))
        assert found[0] == (1, TOO_LONG)
    assert found[-1][1] == {"c": 1}


@pytest.mark.parametrize("data", [b"[" * 5000, b'{"a":' * 5000, b'{\n "a": [\n' + b" {\n" * 5000])
def test_values_that_are_too_deep_are_no_json(data):
    found = read(data, buffered=False)
    assert found
    assert {one[1] for one in found} <= {NOT_JSON, TORN}
    assert len(found) <= 10


def test_values_of_a_long_array_on_one_line_come_one_by_one(monkeypatch):
    monkeypatch.setattr(reading, "_CHUNK", 64)
    objects = [{"n": n, "text": 'x\\"y,' * n} for n in range(60)]
    assert [one[1] for one in read(json.dumps(objects).encode())] == objects


def test_brackets_without_end_take_bounded_work(monkeypatch):
    monkeypatch.setattr(reading, "MOST_BYTES", 4096)
    found = read(b"{}[]" * 1000 + b"\n" + lines({"c": 1}), buffered=False)
    assert (1, NOT_JSON) in found
    assert found[-1] == [2, {"c": 1}]


@given(
    objects=st.lists(
        st.dictionaries(
            st.text(max_size=5),
            st.text('ab{}[]"\\\n,', max_size=8) | st.integers(-(2**53), 2**53),
            max_size=3,
        )
    ),
    indent=st.sampled_from([None, 0, 2]),
    shape=st.sampled_from(["lines", "array", "glued"]),
)
def test_values_are_cut_apart_however_they_are_written(objects, indent, shape):
    if shape == "array":
        text = json.dumps(objects, indent=indent)
    else:
        text = ("\n" if shape == "lines" else "").join(json.dumps(one, indent=indent) for one in objects)
    assert [one[1] for one in read(text.encode())] == objects
