"""Spans in, records out: what a trace becomes, what is said of the rest, and what is noted in the journal."""

from __future__ import annotations

import pytest

from profiler.collector.collector import Collector
from profiler.collector.journal import Journal
from profiler.collector.traces import Bounds, OpenTraces, Patience
from profiler.recordings import keeping
from profiler.recordings.keeping import Keep, KeptRuns, made_by
from profiler.recordings.span import Span
from profiler.rundir import Anchor

MS = 1_000_000
ORIGIN = 1_790_000_000 * 1000 * MS


class Collecting:
    """A collector at a time that the test chooses, and what it made of what came."""

    def __init__(self, path, **bounds):
        self.path, self.now = path, 0.0
        self.shown, self.said = [], []
        self.journal = Journal(path / "journal")
        self.runs = KeptRuns(
            path,
            "collect",
            Keep(),
            "t",
            Anchor(ORIGIN, 0),
            written=lambda tokens: self.journal.ended([trace for one in tokens if one for trace in one]),
        )
        traces = OpenTraces(Patience(10, 30, 300), Bounds(**bounds))
        self.collector = Collector(
            traces,
            self.journal,
            self.runs,
            self.shown.append,
            ORIGIN,
            say=self.said.append,
            clock=lambda: self.now,
        )

    def at(self, now):
        self.now = now
        while self.collector.end_due():
            pass
        self.runs.flush()
        return [one.id for one in self.shown]

    def records(self):
        return [record for run in made_by(self.path, "collect") for record in run.records()]

    def run(self):
        self.collector.close()
        return made_by(self.path, "collect")[0].load()


def span(trace, id_, parent, kind, started_ms, ended_ms, **more):
    return Span(
        trace,
        id_,
        parent,
        kind,
        more.pop("name", "n"),
        ORIGIN + started_ms * MS,
        ORIGIN + ended_ms * MS,
        **more,
    )


def loop(trace="t"):
    return [
        span(trace, "m1", "r", "model", 0, 100, provider="openai", model="m"),
        span(trace, "c1", "r", "tool", 110, 150, name="f", call_id="call"),
        span(trace, "m2", "r", "model", 160, 200, provider="openai", model="m"),
        span(trace, "r", "", "agent", 0, 200, agent="a"),
    ]


@pytest.fixture
def collecting(tmp_path):
    made = Collecting(tmp_path)
    yield made
    made.collector.close()


def test_a_trace_becomes_a_record_when_it_has_ended(collecting):
    collecting.collector.take(loop())
    assert collecting.at(9.9) == []
    (loop_id,) = collecting.at(10)
    (record,) = collecting.records()
    assert (record.id, record.status, record.name, record.source) == (loop_id, "ok", "a", "otel")
    assert (record.started_ns, record.ended_ns) == (0, 200 * MS)
    assert [call.latency_ns for call in record.tool_calls] == [40 * MS]
    run = collecting.run()
    assert (run.recording.read, run.recording.exact, run.provider, run.model) == (
        {"otel": 4},
        1,
        "openai",
        "m",
    )


def test_one_without_its_root_is_cancelled(collecting):
    collecting.collector.take(loop()[:-1])
    assert collecting.at(299) == []
    collecting.at(300)
    assert [one.status for one in collecting.records()] == ["cancelled"]
    assert collecting.collector.figures.total(metric("loops"), "idle") == 1


def metric(name):
    from profiler import metrics

    return getattr(metrics, f"COLLECTOR_{name.upper()}")


def test_what_is_in_no_record_is_counted_by_reason(collecting):
    collecting.collector.take([*loop(), loop()[0]], unreadable=2)
    collecting.collector.take([span("other", "s", "", "http", 0, 1)])
    collecting.at(10)
    collecting.collector.take([loop()[1], span("t", "late", "r", "tool", 0, 1)])
    dropped = dict(collecting.collector.figures.counts(metric("spans_dropped")))
    assert dropped == {("of no agent",): 1, ("repeated",): 2, ("late",): 1, ("unreadable",): 2}
    assert collecting.run().recording.skipped == {
        "spans that came before": 2,
        "spans without ids, or without a start": 2,
        "spans of traces without an agent, a model request or a tool": 1,
        "spans that came after their loop had been written": 1,
    }


def test_what_is_too_much_is_ended_at_once(tmp_path):
    collecting = Collecting(tmp_path, traces=1)
    collecting.collector.take([*loop("a")[:3], *loop("b")[:3]])
    assert [one.partition("-")[0] for one in collecting.at(0)] == ["a"]
    assert collecting.collector.figures.total(metric("loops"), "bound") == 1
    collecting.collector.close()


def test_a_loop_inside_a_call_is_named_by_the_call(collecting):
    outer = loop()
    inner = [
        span("t", "m3", "r2", "model", 112, 130, provider="openai", model="m"),
        span("t", "r2", "c1", "agent", 111, 140, agent="inner"),
    ]
    collecting.collector.take([*inner, *outer])
    collecting.at(10)
    by_name = {one.name: one for one in collecting.records()}
    assert by_name["inner"].parent == by_name["a"].id
    assert [call.loops for call in by_name["a"].tool_calls] == [(by_name["inner"].id,)]


def test_ended_traces_leave_the_journal_when_their_records_are_written(collecting):
    collecting.collector.take(loop())
    collecting.journal.flush()
    assert collecting.journal.size > 500
    collecting.at(10)
    collecting.journal.flush()
    assert not collecting.journal._segments[0].traces


def test_after_a_kill_the_next_one_goes_on_and_writes_nothing_twice(tmp_path):
    first = Collecting(tmp_path)
    first.collector.take([*loop("whole"), *loop("open")[:2]])
    first.journal.flush()
    with first.journal._writing:
        first.at(10)  # the record is written; that it is has not been noted yet
        first.journal._lock.close()
        second = Collecting(tmp_path)
        assert second.collector.replay(lambda: keeping.recent_ids(tmp_path, "collect")) == 6
    second.collector.take(loop("open")[1:])
    second.at(10)
    assert sorted(one.id.partition("-")[0] for one in second.records()) == ["open", "whole"]
    assert [len(one.rounds) for one in second.records()] == [2, 2]
    for one in (first, second):
        one.collector.close()


def test_a_defect_costs_its_trace_alone_and_is_said(collecting, monkeypatch, caplog):
    def loops_of(spans, source):
        if spans[0].trace == "bad":
            raise ZeroDivisionError
        return real(spans, source)

    from profiler.collector import collector

    real = collector.loops_of
    monkeypatch.setattr(collector, "loops_of", loops_of)
    collecting.collector.take([*loop("bad"), *loop("good")])
    assert [one.partition("-")[0] for one in collecting.at(10)] == ["good"]
    assert "the 4 spans of trace bad were not understood" in caplog.text
    assert collecting.run().recording.skipped == {"not understood": 4}


def test_a_time_that_cannot_be_costs_its_loop_alone(collecting):
    wild = [Span("wild", "r", "", "agent", "n", 2**63, 2**64 - 1, agent="a")]
    collecting.collector.take([*wild, *loop()])
    collecting.at(10)
    assert [one.id.partition("-")[0] for one in collecting.records()] == ["t"]
    assert collecting.runs.lost == 1


def test_a_thing_is_said_once(collecting):
    for _ in range(3):
        collecting.collector.say_once("this")
    assert collecting.said == ["this"]


def test_few_are_ended_at_once_so_that_what_comes_has_its_turn(collecting):
    collecting.collector.take([one for number in range(30) for one in loop(f"t{number}")])
    assert not collecting.collector.end_due(20)
    collecting.now = 10
    assert collecting.collector.end_due(20)
    assert len(collecting.shown) == 20
    assert not collecting.collector.end_due(20)
    assert len(collecting.shown) == 30


def test_where_more_comes_than_is_ended_at_once_what_is_open_does_not_grow(collecting):
    for now in range(40):
        collecting.now = now
        collecting.collector.take([one for number in range(30) for one in loop(f"t{now}.{number}")])
        collecting.collector.end_due(5)
    assert len(collecting.shown) == 30 * 30
    assert collecting.collector.gauges()[metric("open_traces")] == 10 * 30


def test_what_is_read_back_compressed_is_whole(collecting):
    spans = loop()
    collecting.collector.take(spans[:2])
    collecting.at(200)
    assert collecting.collector.gauges()[metric("open_spans")] == 2
    collecting.collector.take([spans[1], *spans[2:]])
    collecting.at(210)
    (record,) = collecting.records()
    assert (record.status, len(record.rounds), len(list(record.tool_calls))) == ("ok", 2, 1)
    assert collecting.run().recording.skipped == {"spans that came before": 1}


def test_an_open_trace_that_was_compressed_is_moved_out_of_a_segment_that_is_to_go(tmp_path):
    collecting = Collecting(tmp_path)
    collecting.journal._segment_bytes, collecting.journal._most = 1, 2
    collecting.collector.take(loop("long")[:2])
    collecting.journal.flush()
    collecting.at(20)
    for number in range(4):
        collecting.collector.take(loop(f"t{number}")[:1])
        collecting.journal.flush()
        collecting.at(21 + number)
    collecting.journal.flush()
    collecting.journal._lock.close()
    after = Collecting(tmp_path)
    assert after.collector.replay(frozenset) == 6
    for one in (collecting, after):
        one.collector.close()
