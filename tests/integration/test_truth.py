"""What a load test reports, held against what the emulator says happened, and against itself."""

from __future__ import annotations

import contextlib
import http.client
import json
import statistics
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from profiler.anatomy import PHASES, phases, tool_phase
from profiler.emulator.process import start_emulator
from profiler.load.experiment import Experiment, run_experiment
from profiler.load.options import LoadOptions
from profiler.process.ports import free_port
from profiler.records import LoopRecord
from profiler.rundir import RunDirectory
from profiler.strategies import parse_strategies
from tests.measuring import Measurement

pytestmark = pytest.mark.measures(tolerates=0.25)  # medians of ratios within one run


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as response:
        return response.read().decode()


@pytest.fixture(scope="module")
def cities(tmp_path_factory) -> Measurement[tuple[list[LoopRecord], dict[str, dict], dict[str, float]]]:
    """One run of `cities`, 20 agents: its records, the journal by call id, and the last scrape."""
    return Measurement(lambda: run(tmp_path_factory.mktemp("cities")))


def run(path: Path) -> tuple[list[LoopRecord], dict[str, dict], dict[str, float]]:
    port = free_port()
    scrapes: list[str] = []
    done = threading.Event()

    def scrape() -> None:
        while not done.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):  # not up yet, or gone
                scrapes.append(fetch(f"http://127.0.0.1:{port}/metrics"))
            time.sleep(0.2)

    with start_emulator("cities", seed=5) as emulator:
        scraper = threading.Thread(target=scrape)
        scraper.start()
        try:
            options = LoadOptions(
                strategies=parse_strategies("gathered,sequential,semaphore:8"),
                base_url=emulator.url,
                out=str(path),
                blocks=1,
                metrics_port=port,
                linger_seconds=1.0,
                calibration_seconds=0.0,
            )
            directory = RunDirectory.open(run_experiment(Experiment(options, users=20, seconds=3.0)))
        finally:
            done.set()
            scraper.join()
        entries = json.loads(fetch(f"{emulator.url}/emulator/journal"))["entries"]
    records = list(directory.records())
    slept = {e["call_id"]: e for e in entries if e["kind"] == "tool"}
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(scrapes[-1]):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()) if k != "testid")
            samples[f"{sample.name}{{{labels}}}"] = sample.value
    return records, slept, samples


@pytest.mark.parametrize(("strategy", "bound"), [("gathered", max), ("sequential", sum)])
def test_the_tool_phase_takes_what_the_strategy_allows(cities, strategy, bound):
    """Wall over the longest (gathered) or the sum (sequential) of what the emulator actually slept."""
    records, slept, _ = cities()
    ratios = []
    for record in records:
        if record.strategy == strategy and record.status == "ok" and record.trial is not None:
            for round_ in record.rounds:
                phase = tool_phase(round_)
                if phase is not None:
                    durations = [slept[call.id]["actual_ns"] for call in round_.tool_calls]
                    ratios.append(phase.wall_ns / bound(durations))
    assert len(ratios) > 20
    assert min(ratios) >= 1.0
    assert statistics.median(ratios) < 1.10


def test_every_call_is_in_the_journal_once(cities):
    records, slept, _ = cities()
    ids = [call.id for record in records for call in record.tool_calls]
    assert len(ids) == len(set(ids))
    assert set(ids) <= set(slept)
    assert len(set(slept) - set(ids)) <= 10  # the loop that warms the clients is not recorded


def test_the_semaphore_is_never_exceeded(cities):
    """By the server's own count of calls in flight."""
    records, slept, _ = cities()
    for strategy, most in (("semaphore:8", 8), ("sequential", 20)):
        ids = [c.id for r in records if r.strategy == strategy for c in r.tool_calls]
        edges = sorted(
            edge
            for call_id in ids
            for edge in ((slept[call_id]["received_ns"], 1), (slept[call_id]["sent_ns"], -1))
        )
        inside = highest = 0
        for _, step in edges:
            inside += step
            highest = max(highest, inside)
        assert 1 < highest <= most


def test_strategies_never_run_mixed(cities):
    records, _, _ = cities()
    spans: dict[str, tuple[int, int]] = {}
    for record in records:
        low, high = spans.get(record.strategy, (record.started_ns, record.ended_ns))
        spans[record.strategy] = (min(low, record.started_ns), max(high, record.ended_ns))
    ordered = sorted(spans.values())
    assert len(ordered) == 3
    assert all(before[1] < after[0] for before, after in pairwise(ordered))


def test_metrics_scraped_at_the_end_are_those_of_the_records(cities):
    records, _, samples = cities()
    loops = Counter(r.strategy for r in records)
    for strategy, count in loops.items():
        own = [r for r in records if r.strategy == strategy]
        rounds = [x for r in own for x in r.rounds]
        calls = [c for x in rounds for c in x.tool_calls]
        labels = f"strategy={strategy}"
        expected: dict[str, float] = {
            f"toolloop_loop_duration_seconds_count{{status=ok,{labels}}}": count,
            f"toolloop_loop_duration_seconds_sum{{status=ok,{labels}}}": sum(
                r.ended_ns - r.started_ns for r in own
            )
            / 1e9,
            f"toolloop_round_duration_seconds_count{{status=ok,{labels}}}": len(rounds),
            f"toolloop_round_fanout_sum{{{labels}}}": len(calls),
            f"toolloop_tool_phase_work_seconds_total{{{labels}}}": sum(
                c.ended_ns - c.started_ns for c in calls
            )
            / 1e9,
        }
        for tool in {c.name for c in calls}:
            ran = [c for c in calls if c.name == tool]
            key = f"status=ok,{labels},tool={tool}"
            expected[f"toolloop_tool_call_duration_seconds_count{{{key}}}"] = len(ran)
            expected[f"toolloop_tool_call_queue_seconds_sum{{{labels},tool={tool}}}"] = (
                sum(c.started_ns - c.queued_ns for c in ran) / 1e9
            )
        spent = [phases(x) for x in rounds]
        for phase in PHASES:
            key = f"toolloop_round_phase_seconds_total{{phase={phase},{labels}}}"
            expected[key] = sum(p[phase] for p in spent) / 1e9
        for direction in ("input", "output"):
            key = f"direction={direction},model=gpt-4o,provider=openai,{labels}"
            expected[f"toolloop_model_tokens_total{{{key}}}"] = sum(
                getattr(x.model, f"{direction}_tokens") for x in rounds
            )
        assert {key: samples.get(key) for key in expected} == pytest.approx(expected)
        assert samples[f"toolloop_tool_calls_in_flight{{{labels},tool=get_weather}}"] == 0
    assert samples["toolloop_concurrency_limit{strategy=semaphore:8}"] == 8
    assert samples["toolloop_event_loop_lag_seconds_count{}"] > 100
