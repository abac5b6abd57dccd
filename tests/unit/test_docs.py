"""The documents name what there is: files, commands, and the numbers that the code decides by."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from profiler import anatomy, arrivals, shortfalls
from profiler.cli import _parser
from profiler.limits import limiter, refusals
from profiler.load.options import LoadOptions
from profiler.loop import eventloop, lag
from profiler.prediction import support, what_if
from profiler.report.html.data import CALLS_READ
from profiler.statistics import comparison, faults, lateness, quantiles, summary, windows
from tools import options

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md")]
FOLDERS = "profiler|tools|tests|benchmarks|locustfiles|dashboards|docs"
MEASURING = " ".join((ROOT / "docs" / "measuring.md").read_text("utf-8").split())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(document):
    text = document.read_text("utf-8")
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose):
        assert (document.parent / target).exists(), target
    for path in re.findall(rf"`((?:{FOLDERS})/[\w/.]*)`", text):
        assert "NAME" in path or (ROOT / path).exists(), path


@pytest.mark.parametrize("document", sorted(ROOT.glob("docs/*.md")), ids=lambda path: path.name)
def test_commands_in_blocks_are_understood(document):
    for block in re.findall(r"^```\w*\n(.*?)^```", document.read_text("utf-8"), re.M | re.S):
        for line in block.splitlines():
            if line.startswith("profiler "):
                assert callable(_parser().parse_args(shlex.split(line.split("#")[0])[1:]).command)


@pytest.mark.parametrize(
    "said",
    [
        f"more than 5 % and {shortfalls.TOLERANCE_NS / 1e6:g} ms longer",
        f"steps of over {eventloop.BLOCKING_NS / 1e6:g} ms between two awaits",
        f"pauses, {arrivals.FIRST_PAUSE:g} s at first, doubling up to {arrivals.LONGEST_PAUSE:g} s",
        f"for up to {LoadOptions().drain_seconds:g} s (`--drain`)",
        f"Fewer than {windows.FEWEST_BATCHES} batches: nothing is left out",
        "A block needs {p50} loops for p50, {p95} for p95 and {p99} for p99".format(
            **quantiles.FEWEST_PER_BLOCK
        ),
        f"where fewer than {quantiles.FEWEST_BLOCKS} are left there is no interval",
        f"An interval is {quantiles.CONFIDENCE:.0%}".replace("%", " %"),
        f"is tested at {comparison.SIGNIFICANCE:.2g} / (m − k + 1)",
        f"at least {comparison.RELEVANT_FAILURES * 100:g} point apart",
        f"(one of {lag.INTERVAL_SECONDS * 1e3:g} ms runs all the time)",
        "{p50:.0%} of it at p50 and {p95:.0%} at p95".format(**lateness.SHARES).replace("%", " %"),
        f"more than {lateness.LIMIT_SHARE * 100:g} % of the rest and",
        f"and more than {lateness.LIMIT_SECONDS * 1e3:g} ms (from {lateness.CAUTION:g} of both on",
        f"by more than {faults.SCHEDULE_LAG_SHARE * 100:g} % of their median",
        f"a core was more than {faults.CPU_LIMIT * 100:g} % busy",
        f"more than {what_if.REPLAY_TOLERANCE * 100:g} %, nothing is estimated",
        f"more than {support.BEYOND * 100:g} % of a server's calls would find more in flight",
        "under {} or {:g} times the load".format(*what_if.LOAD_FACTORS),
        f"{CALLS_READ:,} tool calls in all at most".replace(",", " "),
        f"With at least {summary.FEWEST_LOADS} loads",
        f"comes from {summary.REPEATS} bootstrap draws",
        f"from {limiter.START} on, then +1/L, and only while at least {limiter.SATURATED:g}·L are inside",
        f"to {limiter.CUT:g}·L at most ({limiter.CUT_IN_SLOW_START:g}·L in slow start)",
        f"never below L/{1 / limiter.DEEPEST_CUT:g}",
        f"more than {limiter.TIMEOUT_SHARE * 100:g} % of the epoch's calls",
        f"stays for {2 * limiter.FIRST_PATIENCE} epochs, after a vain try for {limiter.LAST_PATIENCE}",
        f"A refusal ({', '.join(map(str, sorted(refusals.REJECTING)))})",
        f"max({refusals.LEAST_SPREAD_NS / 1e9:g} s, {refusals.SPREAD_SHARE:g} × that)",
        f"min({refusals.CAP_NS / 1e9:g} s, {refusals.BASE_NS / 1e9:g}·2ⁿ⁻¹ s)",
    ],
)
def test_numbers_on_the_page_are_the_code_s(said):
    assert said in MEASURING


def test_phases_on_the_page_are_in_the_order_in_which_they_own_an_instant():
    found = re.findall(r"\d\. (?:the rest: )?`(\w+)`", MEASURING)
    assert found == ["model_queue", "backoff", "server_tools", "model", "tools", "queue", "parse"]
    assert set(anatomy.PHASES) - set(found) == {"collect", "unaccounted"}


def test_table_of_options_is_that_of_their_declarations():
    text = options.README.read_text("utf-8")
    assert options.written(text) == text, "python -m tools.options"
    for _, declared in LoadOptions.declared():
        assert (f"| `{declared.flag}" in text) is not declared.hidden
