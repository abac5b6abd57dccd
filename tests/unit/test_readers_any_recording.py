"""Recordings with any times missing, in any order and of several clocks: no reader fails, and sums hold."""

from __future__ import annotations

import json
import random

import pytest

from profiler import metrics
from profiler.anatomy import loop_phases, phases, tool_phase
from profiler.exporters.perfetto import write_trace
from profiler.exporters.prometheus import Exposition, PrometheusSink
from profiler.recordings.drafts import CallDraft, LoopDraft, ModelDraft, RoundDraft, Tally, record_of
from profiler.records import Attempt, LoopRecord, decode, encode
from profiler.report.html.still import still
from profiler.report.html.waterfalls import loop as waterfall
from profiler.report.look import render_loops
from profiler.report.timeline import causes
from profiler.statistics.table import tabulate
from tests.unit.test_exporters_perfetto import read

MS = 1_000_000


class Maker:
    """Drafts of which a third of all times is missing, and the others have nothing to do with each other."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def some(self, share: float) -> bool:
        return self.random.random() < share

    def time(self, most_ms: int = 1000) -> int | None:
        return None if self.some(0.3) else self.random.randrange(most_ms) * MS

    def attempt(self) -> Attempt:
        began = self.random.randrange(900) * MS
        ended = began + self.random.randrange(50) * MS
        return Attempt(began, ended, self.random.choice((None, 200, 429)))

    def model(self) -> ModelDraft:
        return ModelDraft(
            self.random.choice(("openai", "")),
            self.random.choice(("m", "")),
            self.time(),
            self.time(),
            status=self.random.choice(("ok", "error", "cancelled")),
            streamed=self.some(0.5),
            first_token_ns=self.time(),
            first_output_ns=self.time(),
            first_tool_call_ns=self.time(),
            attempts=tuple(self.attempt() for _ in range(self.random.randrange(3))),
            resends=self.random.randrange(2),
        )

    def call(self, number: int) -> CallDraft:
        return CallDraft(
            self.random.choice("ab"),
            f"c{number}",
            self.time(),
            self.time(),
            self.time(),
            self.time(300),
            status=self.random.choice(("ok", "error", "timeout", "cancelled")),
            refused=self.some(0.2),
            ended_late=self.some(0.2),
            wait=self.some(0.1),
        )

    def round(self) -> RoundDraft:
        calls = [self.call(number) for number in range(self.random.randrange(4))]
        phase = (self.time(), self.time()) if self.some(0.2) else (None, None)
        return RoundDraft(self.model(), calls, *phase, ("lost",) if self.some(0.2) else ())

    def loop(self, number: int) -> LoopRecord:
        draft = LoopDraft(
            f"l{number}",
            self.random.choice(("otel", "proxy")),
            [self.round() for _ in range(self.random.randrange(4))],
            started_ns=self.time(),
            ended_ns=self.time(),
            status=self.random.choice(("ok", "error", "cancelled")),
            resolution_ns=self.random.choice((1, MS, 1000 * MS)),
        )
        return record_of(draft, Tally())


def loops(seed: int) -> list[LoopRecord]:
    made = Maker(seed)
    return [made.loop(number) for number in range(60)]


@pytest.mark.parametrize("seed", range(3))
def test_phases_partition_whatever_was_recorded(seed):
    for record in loops(seed):
        assert decode(encode(record)) == record
        whole = loop_phases(record)
        assert sum(whole.values()) == record.wall_ns
        assert min(whole.values()) >= 0
        assert sum(cause.ns for cause in causes(record)) == record.wall_ns
        for round_ in record.rounds:
            spent = phases(round_)
            assert sum(spent.values()) == round_.duration_ns
            assert min(spent.values()) >= 0
            phase = tool_phase(round_)
            if phase is not None:
                assert phase.wall_ns >= phase.critical_path_ns
                assert phase.work_ns >= phase.critical_path_ns
                assert phase.peak_concurrency >= 1


@pytest.mark.parametrize("seed", range(3))
def test_slices_nest_and_arrows_lead_forward_whatever_was_recorded(seed, tmp_path):
    path = tmp_path / "trace.json"
    for record in loops(seed):
        write_trace([record], path)
        assert len([one for one in read(path).slices if one.name.startswith("round ")]) == len(record.rounds)


@pytest.mark.parametrize("seed", range(3))
def test_counters_only_rise_whatever_was_recorded(seed):
    sink = PrometheusSink()
    for record in loops(seed):
        sink(record)
    counters = [metric for metric in metrics.TABLE if metric.kind == "counter"]
    assert all(value >= 0 for metric in counters for _, value in sink.values(metric))
    firsts = (metrics.MODEL_FIRST_TOKEN, metrics.MODEL_FIRST_OUTPUT, metrics.MODEL_FIRST_TOOL_CALL)
    for record in loops(seed):
        for model in (round_.model for round_ in record.rounds):
            after = (model.first_token_after_ns, model.first_output_after_ns, model.first_tool_call_after_ns)
            assert all(0 <= one <= model.duration_ns for one in after if one is not None)
    assert all(child.sum for metric in firsts for _, child in sink.children(metric))
    times = [metric for metric in metrics.TABLE if metric.kind == "histogram"]
    assert all(child.sum >= 0 for metric in times for _, child in sink.children(metric))
    assert Exposition(sink).render()
    assert tabulate(loops(seed)).duration.min() >= -1


@pytest.mark.parametrize("seed", range(3))
def test_everything_can_be_told_whatever_was_recorded(seed):
    for record in loops(seed):
        assert render_loops([record])
        assert still([record])
        assert json.dumps(waterfall(record))
