"""A real Prometheus scrapes a process that records other programs' loops: what the dashboard shows then."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from profiler import dashboards, metrics
from profiler.collector.figures import Figures
from profiler.exporters.prometheus import PrometheusSink, serve
from profiler.records import RECORDED
from tests.integration.prometheus_process import Prometheus, prometheus, wait_until
from tests.unit.recorded_data import recorded_loop
from tools.dashboards.board import SLO_SECONDS

SCRAPE_SECONDS = 1
FED_SECONDS = 5.0
SHARES = {
    "upper_bound": 1 / 8,
    "never_ended": 1 / 8,
    "never_started": 1 / 8,
    "wait": 1 / 8,
}
"""Of the eight calls of a loop, those without a duration."""

BOARD = json.loads(dashboards.files()["toolloop.json"])
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]

EMPTY_OF_OTHERS_TOO = {
    *("Calls per second by server", "Calls at each server, mean", "Server errors per second"),
    *("New connections per call", "Call p95 by part"),
    *("Refused per second", "Attempts refused", "Quota left", "Backoff"),
}
"""Panels that show nothing of any loop without an MCP server, or without a quota."""

pytestmark = pytest.mark.timeout(240)


@dataclass(frozen=True)
class Scraped:
    server: Prometheus
    start: float
    end: float

    def values(self, target) -> dict[tuple[tuple[str, str], ...], list[float]]:
        """Labels → values of a panel's target, its variables at their defaults but for the strategy."""
        values = {
            "__rate_interval": f"{4 * SCRAPE_SECONDS}s",
            "__range": f"{math.ceil(self.end - self.start)}s",
            "slo": f"{SLO_SECONDS:.10g}",
            "testid": ".*",
            "strategy": RECORDED,
        } | dict.fromkeys(("job", "instance", "tool"), ".+")
        query = re.sub(r"\$(\w+)", lambda match: values[match[1]], target["expr"])
        if target["instant"]:
            return {tuple(m.items()): [value] for m, value in self.server.instant(query, self.end)}
        found = self.server.get(
            "query_range", query=query, start=self.start, end=self.end, step=SCRAPE_SECONDS
        )["result"]
        return {tuple(s["metric"].items()): [float(v) for _, v in s["values"]] for s in found}

    def panel(self, title: str, number: int = 0) -> dict[tuple[tuple[str, str], ...], list[float]]:
        (panel,) = [one for one in PANELS if one["title"] == title]
        return self.values(panel["targets"][number])


@pytest.fixture(scope="module")
def scraped(tmp_path_factory) -> Iterator[Scraped]:
    directory: Path = tmp_path_factory.mktemp("prometheus")
    sink = PrometheusSink()
    ports = (sink.serve(0), serve(collector(), 0, "127.0.0.1"))
    (directory / "rules.yml").write_text(dashboards.files()["rules.yml"])
    targets = [f"127.0.0.1:{port}" for port in ports]
    target = {"job_name": "collect", "static_configs": [{"targets": targets}]}
    config = {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": "2s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [target],
    }
    with prometheus(directory, yaml.safe_dump(config)) as server:
        sink(recorded_loop())
        wait_until(lambda: len(server.instant("up == 1", time.time())) == len(ports), "the first scrapes")
        start = time.time()
        while time.time() < start + FED_SECONDS:
            sink(recorded_loop())
            time.sleep(0.05)
        ((_, fed),) = sink.values(metrics.RECORDED_LOOPS)
        wait_until(
            lambda: server.instant(f"toolloop_recorded_loops_total >= {fed}", time.time()) != [],
            "the last scrape",
        )
        yield Scraped(server, start, time.time())


def collector() -> Callable[[bool], bytes]:
    """What a collector shows of itself, at every scrape a little more."""
    figures = Figures()

    def render(openmetrics: bool) -> bytes:
        figures.count(metrics.COLLECTOR_SPANS, by=9)
        figures.count(metrics.COLLECTOR_SPANS_DROPPED, "late", by=3)
        figures.count(metrics.COLLECTOR_LOOPS, "root")
        figures.count(metrics.COLLECTOR_REQUESTS, "traces", "200")
        gauges = [one for one in metrics.COLLECTOR_TABLE if one.kind == "gauge"]
        text = figures.render(dict.fromkeys(gauges, 7.0), openmetrics)
        return text + (b"# EOF\n" if openmetrics else b"")

    return render


def test_panels_of_the_collector_show_what_it_counts(scraped):
    spans = {
        tuple(dict(labels).values()): values[-1]
        for labels, values in scraped.panel("Collector: spans per second", 1).items()
    }
    (received,) = scraped.panel("Collector: spans per second").values()
    assert spans["late",] == pytest.approx(received[-1] / 3, rel=0.05)
    assert spans["repeated",] == 0
    for panel in PANELS:
        if panel["title"].startswith("Collector: "):
            assert all(scraped.values(target) for target in panel["targets"]), panel["title"]
    (kept,) = scraped.panel("Collector: open traces").values()
    assert kept[-1] == 7


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panel_shows_recorded_loops_or_says_that_it_is_empty_for_them(scraped, panel):
    found = [
        value for target in panel["targets"] for values in scraped.values(target).values() for value in values
    ]
    assert not any(math.isnan(value) for value in found)
    if not found:
        said = panel["description"]
        excused = (
            panel["title"] in EMPTY_OF_OTHERS_TOO
            or "Empty without profiler" in said
            or "Streamed requests only" in said
        )
        assert excused or "recorded loops" in said, (
            f"{panel['title']} is empty for recorded loops, without a word"
        )


def test_the_speed_up_is_that_of_rounds_without_upper_bounds(scraped):
    (values,) = scraped.panel("Speed-up").values()
    assert values == [pytest.approx(270 / 220, rel=0.02)]


def test_percentiles_of_tools_have_no_upper_bounds(scraped):
    tools = {
        dict(labels)["tool"]
        for labels, values in scraped.panel("Call duration p95 by tool").items()
        if values
    }
    assert tools == {"exact", "derived"}


def test_calls_without_a_duration_are_shown_by_reason(scraped):
    found = {
        dict(labels)["reason"]: values[-1]
        for labels, values in scraped.panel("Calls without a duration").items()
    }
    assert found == pytest.approx(SHARES, rel=0.05)
    (left_out,) = scraped.panel("Rounds whose overlap is not known").values()
    assert left_out[-1] == pytest.approx(1 / 3, rel=0.05)
