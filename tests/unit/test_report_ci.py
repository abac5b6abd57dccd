"""What CI systems are given: JUnit, Markdown and annotations of the same outcomes, whatever names hold."""

from __future__ import annotations

import dataclasses
from xml.etree import ElementTree

import pytest

from profiler.report.ci import Findings, github, junit, junit_of_error, markdown, of_run
from profiler.rundir import ClientHealth
from profiler.statistics.caveats import Caveat
from profiler.statistics.gates import Outcome, judge
from profiler.statistics.objectives import parse_gates
from profiler.statistics.summary import summarise
from tests.unit.statistics_data import asked_by_nobody, made, run, served, trial, trials

NASTY = "a|b <x> & \"'`*_[c](d)%0A\r\n::error::\x1b[31m\x00\u202e"
"""A name that no format may let through as it is."""

FOUND = Findings(
    subject="profiler compare: cities",
    outcomes=(
        Outcome("valid", "", True, "the figures are valid.", kind="validity"),
        Outcome("loops", "", True, "90 loops were recorded, 0 of them failed.", kind="loops"),
        Outcome("end", "", False, "the run did not come to its end: it was aborted.", kind="end"),
        Outcome("p95<2s", "", True, "objective p95<2s passed: met by gathered.", kind="objective"),
        Outcome("p95 > 2s", "gathered", False, "gathered: p95 > 2s failed: p95 3 s [2.5, 3.5]."),
        Outcome("errors > 1%", "gathered", None, "gathered: errors > 1%: not decided: errors 1 % [0, 2]."),
        Outcome("goodput < 1/s", NASTY, True, f"{NASTY}: goodput < 1/s passed: goodput 2/s [1.5, 2.5]."),
    ),
    verdicts=("gathered is faster.", "the run did not come to its end: it was aborted."),
    warnings=(Caveat("two_runs", "100 % of it", "look"), Caveat("aborted", "bad", "stop", invalid=True)),
    figures=(("strategy", "p95"), ("gathered", "3 s"), (NASTY, "2 s")),
    seconds=12.3456,
    unix_ns=1_700_000_000_000_000_000,
)


def test_junit_has_a_case_for_each_outcome_and_counts_them() -> None:
    root = ElementTree.fromstring(junit(FOUND))
    (suite,) = root
    counts = {"tests": "7", "failures": "2", "errors": "0", "skipped": "1", "time": "12.346"}
    for element, name in ((root, "profiler"), (suite, "profiler compare: cities")):
        assert {**element.attrib, **counts, "name": name} == element.attrib
    assert suite.attrib["timestamp"] == "2023-11-14T22:13:20"
    cases = {case.attrib["name"]: [child.tag for child in case] for case in suite}
    assert list(cases.items())[:6] == [
        ("validity", ["system-out"]),
        ("loops measured", ["system-out"]),
        ("end of the run", ["failure"]),
        ("objective p95<2s", ["system-out"]),
        ("gathered: p95 > 2s", ["failure"]),
        ("gathered: errors > 1%", ["skipped"]),
    ]
    assert {case.attrib["classname"] for case in suite} == {
        f"profiler.{kind}" for kind in ("validity", "loops", "end", "objective", "gate")
    }
    assert all(float(case.attrib["time"]) == 0 for case in suite)
    failure = suite.find("testcase[@name='gathered: p95 > 2s']/failure")
    assert failure is not None
    assert failure.attrib["message"] == failure.text == "gathered: p95 > 2s failed: p95 3 s [2.5, 3.5]."
    nasty = list(cases)[-1]
    assert "<x> & \"'`" in nasty
    assert "\\x1b[31m\\x00\\u202e" in nasty


def test_junit_takes_what_is_not_decided_for_failed_where_that_is_asked() -> None:
    root = ElementTree.fromstring(junit(dataclasses.replace(FOUND, undecided_fails=True)))
    assert (root.attrib["failures"], root.attrib["skipped"]) == ("3", "0")
    (failure,) = root.iterfind(".//testcase[@name='gathered: errors > 1%']/failure")
    assert failure.attrib["type"] == "not decided"


def test_junit_of_a_run_that_came_to_no_figures_is_an_error() -> None:
    root = ElementTree.fromstring(junit_of_error("profiler compare: cities", "the target <x> refused\x00 us"))
    counts = [root.attrib[name] for name in ("tests", "failures", "errors", "skipped")]
    assert counts == ["1", "0", "1", "0"]
    (error,) = root.iterfind(".//error")
    assert error.attrib["message"] == "the target <x> refused\\x00 us"


def test_annotations_are_a_line_each_with_the_level_of_the_outcome() -> None:
    lines = github(FOUND).splitlines()
    assert lines[:6] == [
        "::notice title=profiler::note: 100 %25 of it; look",
        "::warning title=profiler::invalid: bad; stop",  # since validity holds, it is allowed
        "::error title=profiler::the run did not come to its end: it was aborted.",
        "::notice title=profiler::objective p95<2s passed: met by gathered.",
        "::error title=profiler::gathered: p95 > 2s failed: p95 3 s [2.5, 3.5].",
        "::warning title=profiler::gathered: errors > 1%25: not decided: errors 1 %25 [0, 2].",
    ]
    assert lines[6].startswith("::notice title=profiler::a|b <x> & ")
    assert "%250A%0D%0A::error::\\x1b[31m\\x00" in lines[6]
    assert lines[7:] == ["::notice title=profiler::gathered is faster."]
    strict = github(dataclasses.replace(FOUND, undecided_fails=True))
    assert "::error title=profiler::gathered: errors > 1%25" in strict


def test_markdown_has_the_verdict_first_then_what_was_asked_then_the_figures() -> None:
    text = markdown(FOUND)
    lines = text.splitlines()
    assert lines[0] == "### profiler compare: cities: failed"
    assert [line for line in lines if line.startswith("**")] == [
        "**the run did not come to its end: it was aborted.**",
        "**gathered: p95 > 2s failed: p95 3 s \\[2.5, 3.5\\].**",
    ]
    assert lines.index("gathered is faster.") < lines.index("| asked | result | why |")
    assert "| gathered: errors > 1% | not decided | errors 1 % \\[0, 2\\]. |" in text
    assert lines.index("| asked | result | why |") < lines.index("| strategy | p95 |")
    assert lines[lines.index("| strategy | p95 |") + 2] == "| gathered | 3 s |"
    nasty = next(line for line in lines if line.endswith("| 2 s |"))
    assert nasty.startswith("| a\\|b \\<x> & \"'\\`\\*_\\[c\\](d)%0A\\\\x0d\\\\x0a::error::\\\\x1b\\[31m")
    assert lines[-2:] == ["- note: 100 % of it; look", "- invalid: bad; stop"]
    passed = dataclasses.replace(FOUND, outcomes=FOUND.outcomes[5:6])
    assert markdown(passed).startswith("### profiler compare: cities: passed\n")
    assert markdown(dataclasses.replace(passed, undecided_fails=True)).startswith(
        "### profiler compare: cities: fail"
    )


@pytest.mark.parametrize("allowed", [False, True])
def test_findings_of_a_run_are_its_own_figures(allowed: bool) -> None:
    client = (ClientHealth("w0", cpu=0.99),)
    conditions = run(trials(), client=client)
    summary = summarise(conditions, made(calls=[(0, 10)]))
    outcomes = judge(summary, parse_gates("errors > 4%"), allow_saturated=allowed)
    found = of_run(conditions, dataclasses.replace(summary, outcomes=outcomes))
    assert found.failed is not allowed
    assert found.figures == (
        ("strategy", "loop p50", "p95", "p99", "good loops/s", "failed", "loops"),
        (
            "gathered",
            "210 ms [210 ms, 210 ms]",
            "210 ms",
            "210 ms",
            "4.83 [4.83, 4.83]",
            "0 % [0 %, 3.3 %]",
            "90",
        ),
    )
    assert found.seconds == 26.0
    assert [one.result for one in found.outcomes] == [
        "passed" if allowed else "failed", "passed", "passed", "passed" if allowed else "not decided",
    ]  # fmt: skip


def test_markdown_and_annotations_say_what_is_wrong_with_an_mcp_server() -> None:
    rounds = [
        [served(5_000 * number, remote=200 * (place + 1), server="do|cs") for place in range(4)]
        for number in range(3)
    ]
    conditions = run([trial(0, "gathered", 0, 60_000)])
    found = of_run(conditions, summarise(conditions, [asked_by_nobody(*rounds)]))
    lines = markdown(found).splitlines()
    table = lines.index(
        "| MCP server | calls | failed | call p95 | session wait p95 | client wait p95 | server + network "
        "p95 | parsing p95 | at once |"
    )
    assert lines[table + 2] == "| do\\|cs | 12 | 0 | 802 ms | 0.00 ms | 1.00 ms | 800 ms | 1.00 ms | 4 |"
    (note,) = [line for line in lines if line.startswith("- MCP server")]
    assert note.startswith("- MCP server do\\|cs runs parallel calls one at a time: 4 calls posted at once")
    assert "::notice title=profiler::MCP server do|cs runs parallel calls one at a time" in github(found)
