"""Records without a load test: their page, and what is printed of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from profiler.cli import main
from profiler.errors import RecordError
from profiler.records import LoopRecord, encode, files_of
from profiler.report.html import write_any
from profiler.report.html.bare import gather_files, gather_records
from profiler.report.html.records import render_records
from profiler.report.look import MOST_DRAWN, MOST_LINES, in_a_line, lead, render_loops, several
from profiler.report.timeline import MOST_ROWS, render_timeline
from profiler.report.unseen import Unseen
from profiler.rundir import RunDirectory
from tests.unit.statistics_data import asked_by_nobody, loop, run, served


def made(count: int, **changes: object) -> list[LoopRecord]:
    """Loops of 100 ms of model, a call of 10, 20, 30 ... ms, and 100 ms of model; ids of their own."""
    records = [loop(1000 * k, 100, [(0, 10 * (k + 1))], "application", None) for k in range(count)]
    return [replace(record, id=f"loop {k}", **changes) for k, record in enumerate(records)]


def unseen(record: LoopRecord, *tools: str) -> LoopRecord:
    first, *rest = record.rounds
    return replace(
        record, rounds=(replace(first, unobserved_calls=len(tools), unobserved_tools=tools), *rest)
    )


def written(path: Path, records: Sequence[LoopRecord]) -> Path:
    path.write_bytes(b"".join(encode(record) + b"\n" for record in records))
    return path


def headings(page: str) -> list[str]:
    return re.findall(r"<h2 [^>]*>([^<]*)</h2>", page)


def test_page_of_one_loop_explains_it_first(tmp_path: Path) -> None:
    file = written(tmp_path / "records.jsonl", made(1))
    page = write_any(file).path.read_text("utf-8")
    assert (tmp_path / "records.html").is_file()
    assert headings(page)[:3] == ["In short", "Why it took so long", "Timeline"]
    assert "210 ms; most of it (95 %): the model (2 requests, slowest 100 ms)." in page
    assert "tools ran (longest: get_weather, 10.0 ms)" in page
    assert "Not everything was seen" not in page
    assert 'id="toggles"' not in page  # one kind of loops: nothing to switch off


def test_page_of_many_loops_has_quantiles_of_them_and_of_their_tools() -> None:
    records = made(40)
    bare = gather_records(records, "x")
    (one,) = bare.summaries
    walls = [record.wall_ns / 1e9 for record in records]
    assert one.loop_seconds.p50.value == pytest.approx(np.quantile(walls, 0.5))
    assert one.loop_seconds.p95.value == pytest.approx(np.quantile(walls, 0.95))
    assert one.loop_seconds.p50.low is None  # no blocks, no intervals
    assert one.tools["get_weather"].seconds.p50.value == pytest.approx(0.205)
    page = render_records(bare)
    assert "40 loops: half took at most 405 ms, 95 % at most 580 ms, the slowest 600 ms." in page
    assert list(bare.rows)[:8] == [39, 38, 37, 36, 35, 34, 33, 32]
    assert "loop 40 of 40, the slowest: 600 ms (began at 39.0 s)" in page
    assert "Drawn: " in page


def test_kinds_of_loops_are_told_apart_by_what_they_differ_in() -> None:
    records = [
        *made(3, name="support"),
        *made(2, name="support", model="other"),
        *made(1, name="support", parent="loop 0"),
    ]
    bare = gather_records(records, "x")
    assert [one.strategy for one in bare.summaries] == ["m", "other", "m (inside tool calls)"]
    assert [one.loops.due for one in bare.summaries] == [3, 2, 1]
    page = render_records(bare)
    assert "Kinds of loops" in headings(page)
    assert "<h1><bdi>support</bdi></h1>" in page
    assert "5 loops: half took" in page  # the one inside is part of another's call
    assert "1 more loop ran inside tool calls of these" in page


def test_what_was_not_seen_comes_first_in_words() -> None:
    seen, *others = made(3)
    records = [seen, unseen(others[0], "search", "search"), unseen(others[1], "search", "get_weather")]
    records[0] = replace(seen, orphan_calls=2, ambiguous_calls=1)
    sentences = Unseen.of(records).sentences()
    assert sentences[0].startswith("3 calls of search were asked for and none was seen: ")
    assert "prof.tool(function, name='search')" in sentences[0]
    assert sentences[1].startswith("4 calls of get_weather were asked for and 1 was not seen: ")
    assert sentences[2].startswith("2 calls of watched tools ran outside every loop; is prof.loop missing")
    assert sentences[3].startswith("1 call could not be told apart; ")
    bare = gather_records(records, "x")
    page = render_records(bare)
    assert page.index("none was seen") < page.index("verdict lead")


def test_calls_of_old_records_have_no_names() -> None:
    first, *rest = made(1)[0].rounds
    record = replace(made(1)[0], rounds=(replace(first, unobserved_calls=2), *rest))
    (said,) = Unseen.of([record]).sentences()
    assert said.startswith("2 calls that the model asked for were run by no watched tool; ")


def test_calls_of_a_last_reply_may_be_given_up_on_purpose() -> None:
    record = loop(0, 100, [], "application", None)  # one round without calls
    (said,) = Unseen.of([unseen(record, "search", "search")]).sentences()
    assert said.startswith("2 calls (search) were asked for by the last reply of a loop, and none was seen")


def test_failures_are_counted_and_drawn() -> None:
    records = made(60)
    records[7] = replace(records[7], status="error", error_type="http_429")
    bare = gather_records(records, "x")
    assert 7 in bare.rows
    page = render_records(bare)
    assert "1 failed (http_429 1)." in page
    assert "loop 8 of 60: 280 ms, failed (http_429 1) (began at 7.00 s)" in page
    assert "Failures" in headings(page)
    assert "Failures" not in headings(render_records(gather_records(made(3), "x")))


def test_directory_of_files_of_records_makes_one_page(tmp_path: Path) -> None:
    records = made(5)
    written(tmp_path / "a.jsonl", records[:2])
    written(tmp_path / "b.jsonl", records[2:])
    with open(tmp_path / "a.jsonl", "ab") as file:
        file.write(b'{"id": "cut off')  # its writer was killed
    assert [path.name for path in files_of(tmp_path)] == ["a.jsonl", "b.jsonl"]
    bare = gather_files(tmp_path)
    assert [record.id for _, record in bare.rows.values()] == [record.id for record in records]
    assert write_any(tmp_path).path == tmp_path / "report.html"


def test_run_of_one_loop_has_the_page_of_its_records(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, run([]))
    written(directory.records_path, made(1))
    page = write_any(directory.path).path
    assert page == directory.path / "report.html"
    assert "Timeline" in headings(page.read_text("utf-8"))


def test_page_is_as_private_as_its_records(tmp_path: Path) -> None:
    file = written(tmp_path / "records.jsonl", made(1))
    file.chmod(0o600)
    assert write_any(file).path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no loops: there are no records in it"),
        (b"{}\n", "x.jsonl:1: not a loop record"),
        (b"\xff\n", "x.jsonl:1: not a loop record"),
    ],
)
def test_what_is_no_record_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    assert main(["report", str(tmp_path / "x.jsonl")]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_empty_directory_has_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"neither run\.json nor records"):
        write_any(tmp_path)


def test_one_loop_is_printed_as_its_timeline() -> None:
    text = render_loops(made(1), 80)
    assert text.startswith("210 ms: 200 ms (95 %) the model")
    assert "loop 1" not in text


def test_of_several_loops_the_slowest_are_drawn_and_the_others_told_in_a_line() -> None:
    records = made(30)
    text = render_loops(list(reversed(records)), 200)
    assert text.startswith("30 loops: half took at most 355 ms, the slowest 500 ms\n")
    assert text.count("model 1") == MOST_DRAWN
    assert "\nloop 30, began at 29.0 s\n500 ms: " in text
    lines = re.findall(r"^loop (\d+): ", text, re.M)
    assert lines == [str(number) for number in range(1, MOST_LINES + 1)]  # in the order they began
    assert f"and {30 - MOST_DRAWN - MOST_LINES} more loops" in text
    assert "loop 2: 220 ms, began at 1.00 s, 2 requests, 1 call: 91 % the model" in text


def test_failed_loop_says_why_wherever_it_is_told() -> None:
    failed = replace(made(1)[0], status="error", error_type="http_500")
    assert lead(failed).startswith("210 ms, failed (http_500 1); most of it")
    assert in_a_line(failed, failed).startswith("210 ms, failed (http_500 1), began at 0.00 s, 2 requests")
    assert several([failed, *made(2)]).endswith("; 1 failed (http_500 1)")


def test_loops_that_were_not_kept_are_counted() -> None:
    assert "these are the newest, 3 older loops were not kept" in render_loops(made(2), 200, left_out=3)
    assert render_loops([], 80) == ""


def test_timeline_of_a_very_long_loop_is_cut() -> None:
    one = made(1)[0]
    record = replace(one, rounds=one.rounds * MOST_ROWS)
    text = render_timeline(record, 80)
    assert f"{2 * MOST_ROWS} more rows are not drawn" in text
    assert len(text.splitlines()) < MOST_ROWS + 20


def test_page_and_terminal_of_records_know_mcp_servers(tmp_path: Path) -> None:
    rounds = [[served(5_000 * number, remote=200 * (place + 1)) for place in range(4)] for number in range(3)]
    records = [replace(asked_by_nobody(*rounds), id=f"loop {n}", trial=None) for n in range(1)]
    page = render_records(gather_files(written(tmp_path / "r.jsonl", records)))
    assert "MCP servers" in headings(page)
    assert "MCP server docs runs parallel calls one at a time" in page
    assert "table-server-tools" in page
    text = render_loops([*records, *made(1)], width=500)
    assert "MCP server docs (http, 2025-11-25): 12 calls, at most 4 at once\n" in text
    assert "0 requests, 12 calls" in in_a_line(records[0], records[0])
    assert "MCP" not in render_loops(made(2))
    assert "MCP servers" not in headings(render_records(gather_records(made(2), "these")))


def test_loop_that_was_cancelled_has_not_failed() -> None:
    """As a script is that gets Ctrl-C: said apart, in the terminal and on the page."""
    records = made(5)
    records[3] = replace(records[3], status="cancelled")
    assert lead(records[3]).startswith("240 ms, cancelled; most of it")
    assert in_a_line(records[3], records[0]).startswith("240 ms, cancelled, began at 3.00 s")
    assert several(records) == ("5 loops: half took at most 230 ms, the slowest 250 ms; 1 was cancelled")
    page = render_records(gather_records(records, "x"))
    assert "the slowest 250 ms; 1 was cancelled." in page
    assert "loop 4 of 5: 240 ms, cancelled (began at 3.00 s)" in page
    assert "failed" not in headings(page)
    records[1] = replace(records[1], status="error", error_type="http_429")
    assert several(records).endswith("; 1 failed (http_429 1); 1 was cancelled")
    bare = gather_records([*records, replace(records[0], id="other", name="other")], "x")
    (several_kinds, _) = bare.summaries
    assert (several_kinds.failure_rate.value, several_kinds.loops.cancelled) == (1 / 4, 1)
    assert ">cancelled</" in render_records(bare)
