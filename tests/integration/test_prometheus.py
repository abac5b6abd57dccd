"""A real Prometheus scrapes a real comparison: every query of the dashboards is put to it.

Two workers, three strategies in turns, tools of an MCP server, faults on. Then what PromQL says is held
against the records.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from profiler import dashboards
from profiler.anatomy import phases, tool_phase
from profiler.emulator.process import start_emulator
from profiler.load.experiment import Experiment, run_experiment
from profiler.load.options import LoadOptions
from profiler.process.ports import free_port
from profiler.records import LoopRecord, read
from profiler.strategies import parse_strategies
from tests.integration.prometheus_process import Prometheus, prometheus, wait_until
from tools.dashboards.board import SLO_SECONDS

SCRAPE_SECONDS = 1
STRATEGIES = ("sequential", "gathered", "semaphore:4")

BOARDS = {name: json.loads(text) for name, text in dashboards.files().items() if name.endswith(".json")}
RULES = [r for g in yaml.safe_load(dashboards.files()["rules.yml"])["groups"] for r in g["rules"]]

CLOSED_LOAD = "an open load alone has a schedule to be late against"

NOTHING_TO_SHOW = {
    "Schedule lag p99": CLOSED_LOAD,
    "Recorded loops per second": "no other program's loops are recorded here: test_prometheus_recorded.py",
}
"""Panels without data in this run, each with the reason."""

pytestmark = pytest.mark.timeout(240)


@dataclass(frozen=True)
class Scraped:
    server: Prometheus
    records: list[LoopRecord]
    testid: str
    start: float
    end: float

    def substituted(self, query: str) -> str:
        """As Grafana would send it, all variables at their defaults."""
        values = {
            "__rate_interval": f"{4 * SCRAPE_SECONDS}s",
            "__range": f"{math.ceil(self.end - self.start)}s",
            "slo": f"{SLO_SECONDS:.10g}",
            "testid": ".*",
        } | dict.fromkeys(("job", "instance", "strategy", "tool"), ".+")
        query = re.sub(r"\$(\w+)", lambda match: values[match[1]], query)
        # A test is over in seconds; the table of days looks every 15.
        return query.replace(":15s]", f":{SCRAPE_SECONDS}s]")

    def last(self, metric: str, by: str) -> dict[tuple[str, ...], float]:
        """The last scraped value of each counter, summed by labels over the processes."""
        window = f"{math.ceil(self.end - self.start)}s"
        query = f"sum by ({by}) (last_over_time({metric}[{window}]))"
        labels = [label.strip() for label in by.split(",")]
        found = self.server.instant(query, self.end)
        return {tuple(m[label] for label in labels): value for m, value in found if value}


@pytest.fixture(scope="module")
def scraped(tmp_path_factory) -> Iterator[Scraped]:
    directory: Path = tmp_path_factory.mktemp("prometheus")
    port = two_free_ports()
    (directory / "rules.yml").write_text(dashboards.files()["rules.yml"])
    config = {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": "2s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [
            {
                "job_name": "toolloop",
                "static_configs": [{"targets": [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"]}],
            }
        ],
    }
    path = str(scenario(directory))
    with prometheus(directory, yaml.safe_dump(config)) as server, start_emulator(path) as tools:
        start = time.time()
        options = LoadOptions(
            strategies=parse_strategies(STRATEGIES),
            scenario=path,
            mcp=(f"forecasts={tools.url}/mcp",),
            stream=True,
            seed=7,
            blocks=2,
            metrics_port=port,
            linger_seconds=3.0 * SCRAPE_SECONDS,
            out=str(directory / "runs"),
        )
        run = run_experiment(Experiment(options, users=8, seconds=8.0, workers=2))
        end = time.time()
        records = list(read(run / "records.jsonl"))
        wait_until(lambda: server.instant("up == 0", time.time()) != [], "a scrape after the end")
        yield Scraped(server, records, run.name, start, end)


def scenario(directory: Path) -> Path:
    """Faults of every kind that the dashboards show, often enough for a short run."""
    path = directory / "faults.toml"
    path.write_text(SCENARIO)
    return path


SCENARIO = """
description = "short loops with faults"
prompt = "Question {number}"
[model]
first_token = { kind = "uniform", low = 0.02, high = 0.05 }
tokens_per_second = 4000
context_tokens = 2000
cached_share = 0.5
cache_written_share = 0.5
reasoning_tokens = 20
[loop]
rounds = { kind = "empirical", values = [1, 2] }
fan_out = { kind = "empirical", values = [2, 3, 4, 6] }
[tools.get_weather]
path = "/tools/weather"
description = "Current weather of a city."
duration = { kind = "lognormal", median = 0.05, sigma = 0.5, max = 0.5 }
[tools.get_weather.parameters]
type = "object"
required = ["city"]
properties.city = { type = "string", description = "Name of the city, such as Paris." }
[[faults]]
kind = "http_429"
probability = 0.05
[[faults]]
kind = "http_503"
probability = 0.02
[[faults]]
kind = "mcp_error_result"
probability = 0.04
"""


def two_free_ports() -> int:
    """The first of two neighbouring ports that nobody listens on."""
    import socket

    for _ in range(50):
        port = free_port()
        with contextlib.suppress(OSError), socket.socket() as second:
            second.bind(("127.0.0.1", port + 1))
            return port
    raise AssertionError("no two neighbouring ports are free")


# Every query answers


TARGETS = [
    pytest.param(panel, target, id=f"{board['uid']}-{panel['title']}-{target['refId']}")
    for board in BOARDS.values()
    for panel in board["panels"]
    for target in panel.get("targets", [])
]


def of_a_door(panel) -> bool:
    return panel["title"].startswith(("Collector: ", "Proxy: "))


@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_every_target_of_every_panel_has_data(scraped, panel, target):
    query = scraped.substituted(target["expr"])
    if target["instant"]:
        values = [value for _, value in scraped.server.instant(query, scraped.end)]
    else:
        graph = scraped.server.graph(query, scraped.start, scraped.end, SCRAPE_SECONDS)
        values = [value for series in graph for value in series]
    if panel["title"] in NOTHING_TO_SHOW or of_a_door(panel):  # neither runs here
        assert values == []
        return
    assert values, query
    assert not any(math.isnan(value) for value in values), query


@pytest.mark.parametrize("name", ["job", "instance", "testid", "strategy", "tool"])
def test_variables_resolve(scraped, name):
    variable = next(v for v in BOARDS["toolloop.json"]["templating"]["list"] if v["name"] == name)
    match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
    assert match is not None
    values = scraped.server.get(
        f"label/{match[2]}/values",
        **{"match[]": scraped.substituted(match[1]), "start": scraped.start, "end": scraped.end},
    )
    expected = {
        "job": {"toolloop"},
        "testid": {scraped.testid},
        "strategy": set(STRATEGIES),
        "tool": {"get_weather"},
    }
    if name in expected:
        assert set(values) == expected[name]
    else:
        assert len(values) == 2


def test_annotations_mark_each_strategy(scraped):
    annotation = BOARDS["toolloop.json"]["annotations"]["list"][0]
    query = scraped.substituted(annotation["expr"])
    found = scraped.server.get(
        "query_range", query=query, start=scraped.start, end=scraped.end, step=SCRAPE_SECONDS
    )["result"]
    assert {series["metric"]["strategy"] for series in found} == set(STRATEGIES)


@pytest.mark.parametrize("rule", [r for r in RULES if "record" in r], ids=lambda r: r["record"])
def test_recording_rules_have_values(scraped, rule):
    graph = scraped.server.graph(rule["record"], scraped.start, scraped.end, SCRAPE_SECONDS)
    values = [value for series in graph for value in series]
    assert values
    assert not any(math.isnan(value) for value in values)


@pytest.mark.parametrize("rule", [r for r in RULES if "alert" in r], ids=lambda r: r["alert"])
def test_alert_rules_are_healthy(scraped, rule):
    groups = scraped.server.get("rules", type="alert")["groups"]
    loaded = next(r for g in groups for r in g["rules"] if r["name"] == rule["alert"])
    assert loaded["health"] == "ok"


@pytest.mark.parametrize("title", ["Round duration, every round", "Call duration, every call"])
def test_exemplars_lead_to_records(scraped, title):
    panel = next(p for p in BOARDS["toolloop.json"]["panels"] if p["title"] == title)
    query = scraped.substituted(panel["targets"][0]["expr"])
    found = scraped.server.get("query_exemplars", query=query, start=scraped.start, end=scraped.end)
    ids = {exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]}
    assert ids
    assert ids <= {record.id for record in scraped.records}


# What it says agrees with the records


def test_counters_are_what_the_records_add_up_to(scraped):
    loops = Counter((r.strategy, r.outcome) for r in scraped.records)
    found = scraped.last("toolloop_loop_duration_seconds_count", "strategy, status")
    assert {key: count for key, count in found.items() if count} == loops
    assert {status for _, status in loops} == {"ok", "incomplete"}
    calls = Counter(
        (r.strategy, c.name, c.status)
        for r in scraped.records
        for c in r.tool_calls
        if c.started_ns is not None
    )
    assert scraped.last("toolloop_tool_call_duration_seconds_count", "strategy, tool, status") == calls


def test_refused_attempts_are_those_in_the_records(scraped):
    refused = Counter((r.strategy, refusal.reason) for r in scraped.records for refusal in r.refusals)
    assert sum(refused.values()) > 0
    assert scraped.last("toolloop_rate_limited_total", "strategy, reason") == refused


def test_phases_are_those_of_the_records(scraped):
    spent: Counter[tuple[str, str]] = Counter()
    for record in scraped.records:
        for round_ in record.rounds:
            for phase, nanoseconds in phases(round_).items():
                spent[record.strategy, phase] += nanoseconds
    found = scraped.last("toolloop_round_phase_seconds_total", "strategy, phase")
    assert found == {key: pytest.approx(ns / 1e9, rel=1e-9) for key, ns in spent.items() if ns}


def test_causes_are_those_of_the_records(scraped):
    causes = Counter(
        (r.strategy, one.shortfall) for r in scraped.records for one in r.rounds if one.shortfall
    )
    assert scraped.last("toolloop_round_shortfalls_total", "strategy, cause") == causes
    assert causes  # the limit of four is shared by more agents


def test_speed_up_and_efficiency_are_those_of_the_records(scraped):
    wall, work, longest = Counter(), Counter(), Counter()
    for record in scraped.records:
        for round_ in record.rounds:
            phase = tool_phase(round_)
            if phase is not None:
                wall[(record.strategy,)] += phase.wall_ns
                work[(record.strategy,)] += phase.work_ns
                longest[(record.strategy,)] += phase.critical_path_ns
    scraped_wall = scraped.last("toolloop_tool_phase_wall_seconds_total", "strategy")
    for name, mine in (("work", work), ("critical_path", longest)):
        theirs = scraped.last(f"toolloop_tool_phase_{name}_seconds_total", "strategy")
        assert set(theirs) == {(s,) for s in STRATEGIES}
        for key, seconds in theirs.items():
            assert seconds / scraped_wall[key] == pytest.approx(mine[key] / wall[key], rel=1e-9)


def test_quantiles_agree_within_a_bucket(scraped):
    window = f"{math.ceil(scraped.end - scraped.start)}s"
    query = (
        "histogram_quantile(0.95, sum by (strategy, le) "
        f"(last_over_time(toolloop_loop_duration_seconds_bucket[{window}])))"
    )
    found = {m["strategy"]: value for m, value in scraped.server.instant(query, scraped.end)}
    assert set(found) == set(STRATEGIES)
    for strategy, value in found.items():
        durations = sorted(
            (r.ended_ns - r.started_ns) / 1e9 for r in scraped.records if r.strategy == strategy
        )
        exact = durations[math.ceil(0.95 * len(durations)) - 1]
        above = next(0.1 * 2**i for i in range(20) if 0.1 * 2**i >= exact)
        assert (above / 2 if above > 0.1 else 0) <= value <= above


def test_the_panels_ratio_is_near_the_exact_one(scraped):
    """`increase` extrapolates to the window's ends: the panel need not be exact, but has to be near."""
    panel = next(p for p in BOARDS["toolloop.json"]["panels"] if p["title"] == "Speed-up")
    query = scraped.substituted(panel["targets"][0]["expr"])
    found = {m["strategy"]: value for m, value in scraped.server.instant(query, scraped.end)}
    wall = scraped.last("toolloop_tool_phase_wall_seconds_total", "strategy")
    work = scraped.last("toolloop_tool_phase_work_seconds_total", "strategy")
    for strategy in STRATEGIES:
        assert found[strategy] == pytest.approx(work[(strategy,)] / wall[(strategy,)], rel=0.1)
    assert found["sequential"] < 1.05 < found["gathered"]
