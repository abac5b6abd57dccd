"""The report's data: curves that pass through the summary's figures, the course of a run, escaping, sizes."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from profiler.cli import main
from profiler.records import Attempt, LoopRecord, ModelCall, RoundRecord, ServerToolCall, encode
from profiler.report.html import gather, render, write_report
from profiler.report.html.charts import (
    SHARES,
    course,
    critical_shares,
    curve,
    distributions,
    over_levels,
    payload,
)
from profiler.report.html.data import Material
from profiler.report.html.markup import embedded, text
from profiler.report.html.waterfalls import MOST_CASES, MOST_ROWS, waterfalls
from profiler.report.html.waterfalls import loop as drawn_loop
from profiler.report.text import duration
from profiler.rundir import McpServer, RunDirectory, Trial
from profiler.statistics.figures import MovingLimit
from profiler.statistics.summary import summarise_directory
from tests.unit.statistics_data import asked_by_nobody, call, loop, run, served, trial
from tools.vendor import LIBRARIES, VENDOR


def directory(
    tmp_path: Path, trials: list[Trial], records: list[LoopRecord], **changes: object
) -> RunDirectory:
    found = RunDirectory.create(tmp_path, run(trials, **changes))  # type: ignore[arg-type]
    found.records_path.write_bytes(b"".join(encode(record) + b"\n" for record in records))
    return found


def two_strategies(tmp_path: Path) -> RunDirectory:
    """Sequential and gathered, 40 loops each on the same tape; every tenth gathered one failed."""
    trials = [trial(0, "sequential", 0, 10_000), trial(1, "gathered", 10_000, 20_000)]
    records = [
        loop(200 * k, 50.0, [(0.0, 20.0 + k), (20.0 + k, 30.0)], "sequential", 0, number=k) for k in range(40)
    ]
    records += [
        loop(
            10_000 + 200 * k,
            50.0,
            [(0.0, 20.0 + k), (0.0, 30.0)],
            "gathered",
            1,
            status="error" if k % 10 == 9 else "ok",
            number=k,
        )
        for k in range(40)
    ]
    return directory(tmp_path, trials, [replace(record, agent="a0") for record in records])


@pytest.fixture
def material(tmp_path: Path) -> Material:
    return gather(two_strategies(tmp_path))


def test_summary_is_the_one_of_the_statistics(tmp_path: Path) -> None:
    found = two_strategies(tmp_path)
    assert gather(found).summary == summarise_directory(found)


def test_curves_pass_through_the_summary_s_quantiles(material: Material) -> None:
    curves = distributions(material)
    for strategy in material.summary.strategies:
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            value = strategy.loop_seconds[name].value
            assert curves["loops"][strategy.strategy][SHARES.index(share)] == pytest.approx(value)
            value = strategy.tools["get_weather"].seconds[name].value
            assert curves["tool get_weather"][strategy.strategy][SHARES.index(share)] == pytest.approx(value)


def test_curve_is_quantiles_in_seconds() -> None:
    import numpy as np

    values = curve(np.arange(101) * 1_000_000_000)
    assert values[0] == 0.0
    assert values[50] == pytest.approx(50.0)
    assert values[-1] == pytest.approx(100.0)


def test_course_counts_what_happened_in_each_bin(tmp_path: Path) -> None:
    # Two loops at once for the first half second, one call of each queued for 100 ms.
    records = [
        loop(0, 100.0, [(100.0, 200.0)], trial=0, number=0),
        loop(0, 100.0, [(100.0, 200.0)], trial=0, number=1),
        loop(600, 100.0, trial=0, status="error", number=2),
    ]
    found = course(gather(directory(tmp_path, [trial(0, "gathered", 0, 1000)], records)))
    assert found["width"] == 0.25
    (one,) = found["trials"]
    assert (one["start"], one["warm"], one["end"], one["drained"]) == (0.0, 0.0, 1.0, 1.0)
    assert one["good"] == [0.0, 0.0, 8.0, 0.0]  # both end at 500 ms, which opens the third bin
    assert one["failed"] == [0.0, 0.0, 4.0, 0.0]
    assert one["in_flight"] == [2.0, 2.0, 0.4, 0.0]
    assert one["queued"] == [0.8, 0.0, 0.0, 0.0]
    assert one["median"] == [None, None, 0.5, None]
    assert one["limited"] == [0.0, 0.0, 0.0, 0.0]
    assert one["running"] == [0.4, 1.2, 0.0, 0.0]
    assert one["limit"] == [None] * 4  # that of gathered does not move


def test_limit_that_moves_is_a_line_across_its_trials(tmp_path: Path) -> None:
    """Of two processes the limits add up; between rounds, and in the next block, the last one holds."""

    def with_limit(start: float, limit: int, process: str, number: int, trial: int) -> LoopRecord:
        record = loop(start, 100.0, [(0.0, 50.0)], "adaptive", trial, number=number)
        first, last = record.rounds
        return replace(record, process=process, rounds=(replace(first, limit=limit), last))

    trials = [
        trial(0, "adaptive", 0, 1000),
        trial(1, "gathered", 1000, 2000),
        trial(2, "adaptive", 2000, 2500, block=1),
    ]
    records = [
        with_limit(200, 8, "a", 0, 0),  # the phase begins 100 ms after the loop
        with_limit(300, 4, "b", 1, 0),
        with_limit(300, 10, "a", 2, 0),
        with_limit(650, 6, "b", 3, 0),
        loop(1000, 100.0, [(0.0, 50.0)], trial=1, number=0),
        with_limit(2250, 12, "a", 4, 2),
    ]
    found = gather(directory(tmp_path, trials, records))
    first, gathered, second = course(found)["trials"]
    assert first["limit"] == [None, 12.67, 14.0, 16.0]  # nothing | 12, 12, 14 | nothing | 16
    assert set(gathered["limit"]) == {None}
    assert second["limit"] == [16.0, 18.0]
    limits = {one.strategy: one.limit for one in found.summary.strategies}
    assert limits == {"adaptive": MovingLimit(12, 18, 18), "gathered": None}
    page = render(found)
    assert "16.0 to 18.0, last 18.0</td>" in page
    assert "tool calls running at once (bars) and the limit in force (line)" in page


def test_course_counts_what_a_quota_refused_of_model_and_tools(tmp_path: Path) -> None:
    record = loop(0, 100.0, [(0.0, 200.0), (0.0, 300.0)], trial=0, number=0)
    first, last = record.rounds
    calls = (replace(first.tool_calls[0], status="error", error_type="http_429"), first.tool_calls[1])
    attempts = tuple(
        Attempt(started_ns=at * 1_000_000, ended_ns=at * 1_000_000 + 1, status=status)
        for at, status in ((0, 429), (10, 529), (20, 200))
    )
    first = replace(first, tool_calls=calls, model=replace(first.model, attempts=attempts))
    records = [replace(record, rounds=(first, last))]
    found = course(gather(directory(tmp_path, [trial(0, "gathered", 0, 1000)], records)))
    assert found["trials"][0]["limited"] == [8.0, 4.0, 0.0, 0.0]


def test_critical_path_belongs_to_the_longest_call_of_each_round(tmp_path: Path) -> None:
    def with_calls(start: float, fast: float, slow: float, number: int) -> LoopRecord:
        record = loop(start, 10.0, [(0.0, fast), (0.0, slow)], trial=0, number=number)
        first, last = record.rounds
        calls = (call(start + 10, fast, name="fast"), call(start + 10, slow, name="slow"))
        return replace(record, rounds=(replace(first, tool_calls=calls), last))

    records = [with_calls(0, 10, 30, 0), with_calls(100, 10, 50, 1), with_calls(200, 20, 5, 2)]
    shares = critical_shares(gather(directory(tmp_path, [trial(0, "gathered", 0, 1000)], records)))
    assert shares["gathered"]["slow"] == pytest.approx(0.8)
    assert shares["gathered"]["fast"] == pytest.approx(0.2)


def test_ladder_has_every_load(tmp_path: Path) -> None:
    trials = [
        trial(k, "gathered", 1000 * k, 1000 * k + 1000, users=users) for k, users in enumerate((1, 2, 4))
    ]
    records = [
        loop(1000 * k + 100 * n, 20.0, trial=k, number=n) for k in range(3) for n in range(2 * (k + 1))
    ]
    (line,) = over_levels(gather(directory(tmp_path, trials, records)).summary)
    assert [point["users"] for point in line["points"]] == [1, 2, 4]
    assert [point["goodput"][0] for point in line["points"]] == [2.0, 4.0, 6.0]
    assert line["law"] == []  # four loads are the fewest for a fit


def test_cases_show_the_same_work_of_every_strategy(material: Material) -> None:
    found = waterfalls(material)
    kinds = [(case["strategy"], case["kind"]) for case in found["cases"]]
    assert kinds == [
        ("sequential", "slowest"),
        ("sequential", "median"),
        ("gathered", "slowest"),
        ("gathered", "median"),
        ("gathered", "failed"),
    ]
    slowest = found["cases"][0]
    assert slowest["number"] == 39
    sequential, gathered = (found["loops"][str(row)] for row in slowest["loops"])
    assert (sequential["strategy"], gathered["strategy"]) == ("sequential", "gathered")
    assert sequential["wall"] == pytest.approx(0.189)
    assert [row["label"] for row in sequential["rows"]] == [
        "model 1",
        "get_weather",
        "get_weather",
        "model 2",
    ]
    assert sequential["rows"][2]["spans"] == [
        {"kind": "queue", "from": 0.05, "to": 0.109},
        {"kind": "tools", "from": 0.109, "to": 0.139},
    ]
    assert found["cases"][-1]["number"] == 9
    assert found["loops"][str(found["cases"][-1]["loops"][1])]["error"] == "http_429"


def test_row_of_a_request_shows_what_is_known_of_its_tokens_and_server_tools() -> None:
    ms = 1_000_000
    model = ModelCall(
        *("anthropic", "m", 0, 900 * ms),
        streamed=True,
        first_token_ns=100 * ms,
        first_output_ns=600 * ms,
        input_tokens=50_012,
        cached_tokens=30_000,
        cache_written_tokens=20_000,
        output_tokens=9,
        reasoning_tokens=4,
        server_tools=(ServerToolCall("web_search", 200 * ms, 500 * ms), ServerToolCall("code_execution")),
        unreadable=2,
    )

    def row(model: ModelCall) -> dict:
        rounds = (RoundRecord(0, 0, 900 * ms, model),)
        drawn = drawn_loop(LoopRecord("x", "gathered", "anthropic", "m", 0, 900 * ms, "ok", rounds))
        return drawn["rows"][0]

    assert row(model)["spans"] == [
        {"kind": "model", "from": 0.0, "to": 0.9},
        {"kind": "server_tools", "from": 0.2, "to": 0.5},
    ]
    assert row(model)["detail"][5:] == [
        ("first token after", "100 ms"),
        ("first output after", "600 ms"),
        ("tokens", "50012 in (30000 from the cache, 20000 written to it), 9 out (4 of reasoning)"),
        ("tool of the server", "web_search, at 0.20 s, 300 ms"),
        ("tool of the server", "code_execution, when is not known"),
        ("not understood", "2 parts of the reply"),
    ]
    unknown = replace(model, input_tokens=None, output_tokens=None, server_tools=(), unreadable=0)
    assert ("tokens", "not known: the server did not say") in row(unknown)["detail"]
    assert ("tokens", "7 in, ? out") in row(ModelCall("openai", "m", 0, 9 * ms, input_tokens=7))["detail"]


def test_estimates_start_from_the_summary_s_quantiles(material: Material) -> None:
    figures = {strategy.strategy: strategy for strategy in material.summary.strategies}
    assert material.counterfactuals
    for one in material.counterfactuals:
        assert one.p50.measured == figures[one.strategy].loop_seconds.p50.value
        assert one.p95.measured == figures[one.strategy].loop_seconds.p95.value


def test_page_holds_the_figures_of_the_summary(material: Material) -> None:
    shown = payload(material)["strategies"]
    for one, strategy in zip(shown, material.summary.strategies, strict=True):
        assert one["name"] == strategy.strategy
        assert one["figures"]["loop_seconds"]["p95"]["value"] == strategy.loop_seconds.p95.value
        assert one["figures"]["failure_rate"]["value"] == strategy.failure_rate.value
        assert one["figures"]["phases"] == strategy.phases


def test_data_cannot_end_the_script() -> None:
    data = {"</script><script>": ["<!--", "&", "\u2028"]}
    found = embedded(data)
    assert not re.search("[<>&\u2028]", found)
    assert json.loads(found) == data


def test_texts_from_outside_are_escaped_and_shown_as_what_they_are() -> None:
    assert text('<img onerror="x">\'') == "&lt;img onerror=&quot;x&quot;&gt;&#x27;"
    assert text("\x1b[2J\u202e") == "\\x1b[2J\\u202e"
    assert len(text("n" * 10_000)) == 399


def test_run_without_any_loop_still_has_a_page(tmp_path: Path) -> None:
    path = write_report(directory(tmp_path, [], [], finished=False, strategies=("gathered",)))
    page = path.read_text("utf-8")
    assert "No loop was measured." in page
    assert "Cut short." in page


def test_page_says_invalid_before_the_verdict(tmp_path: Path) -> None:
    from profiler.rundir import ClientHealth

    found = two_strategies(tmp_path)
    found.save(replace(found.load(), client=(ClientHealth("worker 0", cpu=0.99),)))
    page = render(gather(found))
    assert page.index("<strong>Invalid.</strong>") < page.index('class="verdict lead"')


def test_page_goes_where_the_caller_says(tmp_path: Path) -> None:
    found = two_strategies(tmp_path)
    assert write_report(found) == found.path / "report.html"
    assert write_report(found, tmp_path / "elsewhere.html") == tmp_path / "elsewhere.html"
    assert (tmp_path / "elsewhere.html").read_text("utf-8") == (found.path / "report.html").read_text("utf-8")


@pytest.mark.parametrize("there", [True, False])
def test_browser_that_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], there: bool
) -> None:
    page = two_strategies(tmp_path).path / "report.html"
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or there)  # type: ignore[func-returns-value]
    assert main(["report", str(page.parent), "--open"]) == 0
    said = capsys.readouterr()
    assert (said.out, opened) == (f"{page}\n", [page.as_uri()])
    assert said.err == ("" if there else "no browser was found here: open that file in one\n")


@pytest.mark.slow
def test_page_of_many_strategies_tools_and_long_loops_stays_small(tmp_path: Path) -> None:
    trials = [trial(k, f"semaphore:{k + 1}", 1000 * k, 1000 * k + 1000) for k in range(20)]
    records = []
    for k in range(20):
        for n in range(2):
            record = loop(1000 * k + 100 * n, 5.0, [(1.0, 5.0)] * 100, f"semaphore:{k + 1}", k, number=n)
            first, last = record.rounds
            calls = tuple(
                replace(one, name=f"tool_{n}_{place}_" + "x" * 10_000, result="<r>" * 200)
                for place, one in enumerate(first.tool_calls)
            )
            records.append(replace(record, rounds=(replace(first, tool_calls=calls), last)))
    found = directory(tmp_path, trials, records)
    material = gather(found)
    drawn = waterfalls(material)
    assert len(drawn["cases"]) <= MOST_CASES
    assert all(len(one["rows"]) <= MOST_ROWS for one in drawn["loops"].values())
    assert write_report(found, material=material).stat().st_size < 2_000_000


def test_vendored_files_are_the_published_ones() -> None:
    listed = {entry["file"]: entry for entry in json.loads((VENDOR / "vendor.json").read_text("utf-8"))}
    assert list(listed) == [library.file for library in LIBRARIES]
    for library in LIBRARIES:
        entry = listed[library.file]
        assert (entry["package"], entry["version"]) == (library.package, library.version)
        assert hashlib.sha256((VENDOR / library.file).read_bytes()).hexdigest() == entry["sha256"]
        assert "Permission to use, copy, modify" in (VENDOR / f"{library.file}.LICENSE").read_text("utf-8")


def of_servers(tmp_path: Path, **changes: object) -> RunDirectory:
    """Two strategies on a server that runs one call at a time."""
    trials = [trial(0, "sequential", 0, 60_000), trial(1, "gathered", 60_000, 120_000)]
    records = []
    for place, strategy in enumerate(("sequential", "gathered")):
        for number in range(4):
            start = 60_000 * place + 10_000 * number
            wait = 205 if strategy == "sequential" else 0
            calls = [
                served(start + wait * n, client=1, remote=200 if wait else 200 * (n + 1), parsing=2)
                for n in range(4)
            ]
            made = asked_by_nobody(calls, strategy=strategy)
            records.append(replace(made, trial=place, number=number))
    return directory(tmp_path, trials, records, **changes)


def test_page_has_a_section_about_mcp_servers(tmp_path: Path) -> None:
    offered = McpServer(
        *("docs", "http", "http://127.0.0.1:9/mcp", "2025-11-25", "Docs <1>", "1.2"),
        offered=("search",),
        withheld=("write", "delete"),
    )
    material = gather(of_servers(tmp_path, mcp_servers=(offered,)))
    page = render(material)
    section = page[page.index('id="servers"') :]
    section = section[: section.index("</section>")]
    assert "MCP server docs runs parallel calls one at a time: 4 calls posted at once" in section
    assert "800 ms instead of 200 ms (so in 4 of 4 rounds" in section
    for figure in ("table-servers", "table-server-tools", "table-mcp-servers", "server + network"):
        assert figure in section
    # p50 of the whole, of a strategy on the way to the server.
    (server,) = material.summary.servers
    for calls in (server.calls, *server.strategies.values()):
        assert f">{duration(calls.seconds['duration'].p50.value)}<" in section
    assert "http://127.0.0.1:9/mcp" in section
    assert "write, delete" in section
    assert "Docs &lt;1&gt;" in section


def test_page_without_mcp_servers_says_nothing_of_them(material: Material) -> None:
    assert "MCP" not in re.sub(r"<script.*?</script>", "", render(material), flags=re.DOTALL)


def test_waterfall_of_a_call_of_an_mcp_server_shows_its_parts() -> None:
    made = asked_by_nobody([served(0, session=50, client=10, remote=100, parsing=5, told=80, reply="sse")])
    (row,) = drawn_loop(made)["rows"]  # no model was asked
    assert [(one["kind"], one["from"], one["to"]) for one in row["spans"]] == [
        ("tools", 0.0, 0.165),
        ("session_wait", 0.0, 0.05),
        ("client_wait", 0.05, 0.06),
        ("parsing", 0.16, 0.165),
    ]
    detail = dict(row["detail"])
    assert detail["MCP server"] == "docs (http, 2025-11-25, sse)"
    assert (detail["of it session wait"], detail["of it server"]) == ("50.0 ms", "80.0 ms")
    assert detail["of it network"] == "20.0 ms"
