"""What was asked of a run and how it came out, for build machines: JUnit, Markdown, annotations of GitHub.

All three render the same `Findings`, whose outcomes are those that the terminal prints and the exit code
goes by. Texts from outside (names of strategies, of tools, errors) are escaped as each format asks for.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from profiler.report import servers
from profiler.report.recorded import change_words, words
from profiler.report.text import clean, duration, number, percent
from profiler.rundir import Run
from profiler.statistics.caveats import Caveat, labels
from profiler.statistics.figures import StrategySummary
from profiler.statistics.gates import Outcome, missed
from profiler.statistics.quantiles import Estimate
from profiler.statistics.servers import ServerFigures
from profiler.statistics.summary import Summary
from profiler.statistics.verdicts import Regression

LONGEST = 2000
"""Characters of a sentence that are shown."""

_RUN_WIDE = {
    "validity": "validity",
    "loops": "loops measured",
    "end": "end of the run",
}
"""What was asked of the run as a whole, by the kind of its outcome."""

_MARKDOWN = re.compile(r"([\\`*|<\[\]])")


@dataclass(frozen=True, slots=True)
class Findings:
    """What is rendered. `figures` is a table: the names of its columns, then its rows. So is `servers`, of
    MCP servers; `notes` are what was found of them, and of a recording.

    `seconds` is how long was measured, `unix_ns` when that began. `undecided_fails`: a gate that is not
    decided counts as failed (`--undecided fail`).
    """

    subject: str
    outcomes: tuple[Outcome, ...]
    verdicts: tuple[str, ...] = ()
    warnings: tuple[Caveat, ...] = ()
    figures: tuple[tuple[str, ...], ...] = ()
    servers: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    unix_ns: int | None = None
    undecided_fails: bool = False

    @property
    def failed(self) -> bool:
        return missed(self.outcomes, self.undecided_fails)


def of_run(run: Run, summary: Summary, undecided_fails: bool = False) -> Findings:
    """Those of one run, whose summary has the outcomes."""
    every = summary.every_strategy
    head = ("strategy", "loop p50", "p95", "p99", "good loops/s", "failed", "loops")
    rows = [
        (label, *_figures(one), str(one.loops.due))
        for one, label in zip(every, labels(every, every), strict=True)
    ]
    return Findings(
        subject=f"profiler compare: {summary.scenario}",
        outcomes=summary.outcomes,
        verdicts=tuple(one.sentence for one in summary.verdicts),
        warnings=summary.warnings,
        figures=(head, *rows),
        servers=_servers(summary.servers),
        notes=(*servers.findings(summary.servers), *_recorded(run, summary)),
        seconds=_measured(run),
        unix_ns=run.anchor.unix_ns,
        undecided_fails=undecided_fails,
    )


def _recorded(run: Run, summary: Summary) -> list[str]:
    """The verdict on a recording."""
    return [] if summary.recorded is None else words(summary.recorded, run.recording).found


def of_two_runs(
    run: Run, found: Regression, outcomes: Sequence[Outcome], undecided_fails: bool = False
) -> Findings:
    """Those of the second of two runs, `run`, against the first."""
    head = ("strategy", "run", "loop p50", "p95", "p99", "good loops/s", "failed", "loops")
    rows = [
        (label, name, *_figures(one), str(one.loops.due))
        for before, after, label in zip(
            found.before, found.after, labels(found.after, found.after), strict=True
        )
        for name, one in (("first", before), ("second", after))
    ]
    return Findings(
        subject=f"profiler compare of two runs: {run.scenario}",
        outcomes=tuple(outcomes),
        verdicts=tuple(one.sentence for one in found.verdicts),
        warnings=found.warnings,
        figures=(head, *rows),
        notes=tuple(change_words(found.recorded)),
        seconds=_measured(run),
        unix_ns=run.anchor.unix_ns,
        undecided_fails=undecided_fails,
    )


def name_of(outcome: Outcome) -> str:
    """What was asked, as a name: `semaphore:8: p95 > 2s`."""
    if outcome.kind == "objective":
        return f"objective {outcome.gate}"
    return _RUN_WIDE.get(outcome.kind) or f"{outcome.about or outcome.strategy}: {outcome.gate}"


# GitHub: workflow commands, which become annotations.


def github(found: Findings) -> str:
    """A line for each caveat, outcome and verdict."""
    allowed = any(one.kind == "validity" and one.holds for one in found.outcomes)
    invalid = "warning" if allowed else "error"
    lines = [_command(invalid if one.invalid else "notice", one.sentence) for one in found.warnings]
    undecided = "error" if found.undecided_fails else "warning"
    levels = {True: "notice", False: "error", None: undecided}
    # Validity is among the caveats; that nothing is wrong with a run is no news.
    lines += [
        _command(levels[one.holds], one.sentence)
        for one in found.outcomes
        if one.kind in ("gate", "objective") or (one.holds is False and one.kind != "validity")
    ]
    failures = {one.sentence for one in found.outcomes if one.holds is False}
    lines += [_command("notice", sentence) for sentence in found.verdicts if sentence not in failures]
    lines += [_command("notice", sentence) for sentence in found.notes]
    return "".join(f"{line}\n" for line in lines)


def _command(level: str, text: str) -> str:
    """`::error title=profiler::TEXT`. Neither a percent sign nor a line's end may stand in its text."""
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return f"::{level} title=profiler::{clean(text, LONGEST)}"


# Markdown: a comment on a pull request.


def markdown(found: Findings) -> str:
    """The verdict, what was asked, the figures, what has to be known of them."""
    lines = [f"### {_escaped(found.subject)}: {'failed' if found.failed else 'passed'}", ""]
    failed = [one.sentence for one in found.outcomes if one.holds is False]
    verdicts = [sentence for sentence in found.verdicts if sentence not in failed]
    lines += [f"**{_escaped(sentence)}**\n" for sentence in failed]
    lines += [f"{_escaped(sentence)}\n" for sentence in verdicts]
    lines += _table(
        ("asked", "result", "why"), [(name_of(one), one.result, _why(one)) for one in found.outcomes]
    )
    if len(found.figures) > 1:
        lines += ["", *_table(found.figures[0], found.figures[1:])]
    if found.servers:
        lines += ["", *_table(found.servers[0], found.servers[1:])]
    if found.notes:
        lines += ["", *(f"- {_escaped(one)}" for one in found.notes)]
    if found.warnings:
        lines += ["", *(f"- {_escaped(one.sentence)}" for one in found.warnings)]
    return "\n".join(lines) + "\n"


def _why(outcome: Outcome) -> str:
    """The sentence without what stands in the cells before it."""
    asked = re.escape(name_of(outcome))
    return re.sub(rf"^{asked}:? {outcome.result}[:,] ", "", outcome.sentence)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_row(head), "|" + "---|" * len(head), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", clean(text, LONGEST))


# JUnit: what CI systems count.


def junit(found: Findings) -> bytes:
    """A test case for each outcome; what is not decided is skipped, unless it fails."""
    cases: list[ElementTree.Element] = []
    for one in found.outcomes:
        case = ElementTree.Element("testcase", classname=f"profiler.{one.kind}", name=_plain(name_of(one)))
        if one.holds is False or (one.holds is None and found.undecided_fails):
            words = _plain(one.sentence)
            ElementTree.SubElement(case, "failure", message=words, type=one.result).text = words
        elif one.holds is None:
            ElementTree.SubElement(case, "skipped", message=_plain(one.sentence))
        else:
            ElementTree.SubElement(case, "system-out").text = _plain(one.sentence)
        cases.append(case)
    return _suite(found, cases)


def junit_of_error(subject: str, message: str) -> bytes:
    """The file of a run that came to no figures: one test case, which could not be run."""
    case = ElementTree.Element("testcase", classname="profiler.run", name="the load test ran")
    words = _plain(message)
    ElementTree.SubElement(case, "error", message=words, type="error").text = words
    return _suite(Findings(subject, ()), [case])


def _suite(found: Findings, cases: Sequence[ElementTree.Element]) -> bytes:
    counts = {"tests": len(cases)}
    for name, element in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        counts[name] = sum(case.find(element) is not None for case in cases)
    said = {name: str(count) for name, count in counts.items()} | {"time": f"{found.seconds:.3f}"}
    root = ElementTree.Element("testsuites", {"name": "profiler", **said})
    suite = ElementTree.SubElement(root, "testsuite", {"name": _plain(found.subject), **said})
    if found.unix_ns is not None:
        suite.set("timestamp", time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(found.unix_ns // 10**9)))
    for case in cases:
        case.set("time", "0.000")  # judging takes none; what was measured is the suite's
        suite.append(case)
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _plain(text: str) -> str:
    """Text that XML can hold: no control characters."""
    return clean(text, LONGEST)


# Figures.


def _figures(one: StrategySummary) -> tuple[str, ...]:
    """p50, p95, p99, goodput and failures, each with its interval."""
    # With a backlog that grows latencies say how long the windows were.
    latencies = [Estimate(None) if one.backlog else one.loop_seconds[name] for name in ("p50", "p95", "p99")]
    return (
        *(_with_interval(latency, duration) for latency in latencies),
        _with_interval(one.goodput, number),
        _with_interval(one.failure_rate, percent),
    )


def _servers(found: Sequence[ServerFigures]) -> tuple[tuple[str, ...], ...]:
    """A table of MCP servers: p95 of a call and of its parts."""
    if not found:
        return ()
    parts = ["duration", *servers.shown_parts(found)]
    names = ["call", *(servers.PART_NAMES[part] for part in parts[1:])]
    head = ("MCP server", "calls", "failed", *(f"{name} p95" for name in names), "at once")
    rows = (
        (
            one.name,
            str(one.calls.calls),
            str(one.calls.errors),
            *(duration(servers.cell(one.calls, part, "p95")) for part in parts),
            str(one.most_in_flight),
        )
        for one in found
    )
    return (head, *rows)


def _with_interval(found: Estimate, shown: Callable[[float | None], str]) -> str:
    text = shown(found.value)
    if found.value is None or found.low is None or found.high is None:
        return text
    return f"{text} [{shown(found.low)}, {shown(found.high)}]"


def _measured(run: Run) -> float:
    """Seconds from the first trial's start to the last one's end."""
    if not run.trials:
        return 0.0
    first = min(trial.started_ns for trial in run.trials)
    return max(0.0, (max(trial.drained_ns for trial in run.trials) - first) / 1e9)
