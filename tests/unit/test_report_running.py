"""The run so far: followed as its files grow, the same figures as the records'."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from profiler.load.locust.page import live_page, row
from profiler.records import ServerToolCall, encode
from profiler.report.running import RunningTotals
from profiler.rundir import Progress, encode_progress
from tests.unit.statistics_data import loop


def followed(so_far: RunningTotals) -> int:
    return sum(1 for _ in so_far.catch_up())


def test_figures_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    so_far = RunningTotals(tmp_path)
    assert followed(so_far) == 0
    assert so_far.data() == {"progress": [], "now": None, "strategies": [], "tools": []}
    first = encode(loop(0, 100.0, [(50.0, 300.0), (0.0, 100.0)], "gathered"))
    path.write_bytes(first + b"\n" + first[:50])
    assert followed(so_far) == 1
    (one,) = so_far.data()["strategies"]
    assert (one["name"], one["loops"], one["failed"], one["incomplete"]) == ("gathered", 1, 0, 0)
    assert one["p50"] == one["p95"] == pytest.approx(0.55)
    assert one["phases"]["model"] == pytest.approx(0.2)
    assert sum(one["phases"].values()) == pytest.approx(0.55)
    with open(path, "ab") as file:
        file.write(first[50:] + b"\n")
        file.write(encode(loop(0, 100.0, [(0.0, 10.0)], "gathered", tool_status="error")) + b"\n")
        file.write(encode(loop(0, 100.0, strategy="sequential", status="error")) + b"\n")
    assert followed(so_far) == 1
    gathered, sequential = so_far.data()["strategies"]
    assert (gathered["loops"], gathered["failed"], gathered["incomplete"]) == (3, 1, 1)
    assert (sequential["loops"], sequential["failed"], sequential["p50"]) == (1, 1, None)
    (tool,) = so_far.data()["tools"]
    assert (tool["calls"], tool["errors"]) == (5, 1)
    assert tool["p50"] == pytest.approx(0.1)
    assert tool["queue_p95"] == pytest.approx(0.05)


def test_running_summary_has_the_latest_progress(tmp_path: Path) -> None:
    lines = [Progress(k, "measuring", "gathered", waiting=k, lag_seconds=0.001) for k in range(3)]
    (tmp_path / "progress.jsonl").write_bytes(b"".join(map(encode_progress, lines)))
    so_far = RunningTotals(tmp_path)
    followed(so_far)
    data = so_far.data()
    assert [point["waiting"] for point in data["progress"]] == [0, 1, 2]
    assert data["now"]["waiting"] == 2
    assert data["now"]["strategy"] == "gathered"


def test_row_of_locust_s_table(tmp_path: Path) -> None:
    so_far = RunningTotals(tmp_path)
    so_far.add(loop(0, 100.0, [(0.0, 300.0)], "gathered"))
    assert row(so_far.data()["strategies"][0]) == {
        "strategy": "gathered",
        "loops": 1,
        "failed": 0,
        "incomplete": 0,
        "p50": "500 ms",
        "p95": "500 ms",
        "model": "40 %",
        "tools": "60 %",
        "queue": "0 %",
    }


def test_live_page_is_whole() -> None:
    page = live_page()
    assert page.count("<script>") == 2
    assert "/* live */" not in page
    assert "http" not in page


def test_notes_come_before_the_figures(tmp_path: Path) -> None:
    so_far = RunningTotals(tmp_path)
    for number in range(19):
        so_far.add(loop(100.0 * number))
    assert list(so_far.notes()) == []  # too few to tell
    record = loop(2000.0)
    (only,) = record.rounds
    model = replace(only.model, unreadable=2, server_tools=(ServerToolCall("web_search"),))
    so_far.add(replace(record, rounds=(replace(only, model=model),)))
    idle, unreadable, untimed = so_far.notes()
    assert idle.startswith(
        "20 loops, no tool call was asked for but 1 that the model's server ran itself: there is nothing to"
    )
    assert unreadable.startswith("note: 2 parts of replies could not be understood; ")
    assert untimed.startswith("note: no times are known of 1 call of tools that the model's server ran ")
    so_far.add(loop(3000.0, calls=[(0.0, 10.0)]))
    assert list(so_far.notes()) == [unreadable, untimed]
