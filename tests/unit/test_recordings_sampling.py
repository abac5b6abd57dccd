"""The share of all traces that a sampler kept, as spans tell it: by each way of writing, and for a run."""

from __future__ import annotations

import json

import pytest

from profiler.recordings.importing import import_files
from profiler.recordings.sampling import agreed, share_of
from profiler.recordings.span import packed, unpacked


@pytest.mark.parametrize(
    ("tracestate", "share"),
    [
        ("ot=th:c", 0.25),
        ("ot=th:0", 1.0),
        ("ot=th:8", 0.5),
        ("ot=th:fd70a3d70a3d71", 0.01),
        ("vendor=1,ot=rv:abcdef01234567;th:c", 0.25),
        ("ot=th:c;rv:abcdef01234567 , vendor=x", 0.25),
        ("['{key=ot, value=th:c}']", 0.25),
        ("", None),
        ("ot=rv:abcdef01234567", None),
        ("other=th:c", None),
        ("bot=th:c", None),
        ("ot=xth:c", None),
        ("vendor=1;th:c,ot=rv:1", None),
        ("ot=th:", None),
        ("ot=th:xyz", None),
        ("ot=th:c00000000000000", None),
    ],
)
def test_the_share_is_that_of_the_threshold(tracestate, share):
    found = share_of(tracestate)
    assert found == (None if share is None else pytest.approx(share, rel=1e-12))


def test_shares_that_differ_are_none():
    assert agreed([0.5, 0.5]) == 0.5
    assert agreed([0.5, 0.25]) is None
    assert agreed([0.5, None]) is None
    assert agreed([]) is None


def test_python_s_way_of_writing_it_is_read():
    trace = pytest.importorskip("opentelemetry.trace")
    state = trace.TraceState([("vendor", "1"), ("ot", "rv:abcdef01234567;th:c")])
    assert share_of(repr(state)) == 0.25
    assert share_of(state.to_header()) == 0.25


def spans(trace, *states):
    """A loop of a model request, as OTLP JSON spans; one state for each of its two spans."""
    chat = {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}}
    agent = {"key": "gen_ai.operation.name", "value": {"stringValue": "invoke_agent"}}
    start = 1_790_000_000_000_000_000
    common = {"traceId": trace * 32, "startTimeUnixNano": str(start), "endTimeUnixNano": str(start + 10**9)}
    return [
        {**common, "spanId": "1" * 16, "name": "r", "attributes": [agent], "traceState": states[0]},
        {**common, "spanId": "2" * 16, "parentSpanId": "1" * 16, "name": "m", "attributes": [chat]}
        | {"traceState": states[-1]},
    ]


@pytest.mark.parametrize(
    ("loops", "share"),
    [
        ([spans("a", "ot=th:c"), spans("b", "ot=th:c")], 0.25),
        ([spans("a", "ot=th:c"), spans("b", "ot=th:8")], None),
        ([spans("a", "ot=th:c"), spans("b", "")], None),
        ([spans("a", "ot=th:c", "ot=th:8")], None),
        ([spans("a", "")], None),
    ],
)
def test_an_import_tells_the_share_that_all_spans_tell(loops, share, tmp_path):
    file = tmp_path / "spans.json"
    held = [one for loop in loops for one in loop]
    file.write_text(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": held}]}]}))
    imported = import_files([file], tmp_path / "runs")
    assert imported.loops == len(loops)
    assert imported.recording.sampled == share


def test_a_collector_tells_it_too(tmp_path):
    trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    from google.protobuf.json_format import ParseDict

    from profiler.collector.collector import Collector
    from profiler.collector.journal import Journal
    from profiler.collector.traces import OpenTraces
    from profiler.recordings.keeping import Keep, KeptRuns, made_by
    from profiler.recordings.otlp import spans_of_request
    from profiler.rundir import Anchor

    held = spans("0", "ot=th:c")
    for one in held:  # protobuf's JSON has bytes in base64; these are any ids
        one.update(traceId="A" * 21 + "Q==", spanId=one["spanId"][:11] + "=")
        if "parentSpanId" in one:
            one["parentSpanId"] = held[0]["spanId"]
    message = ParseDict(
        {"resourceSpans": [{"scopeSpans": [{"spans": held}]}]}, trace_service.ExportTraceServiceRequest()
    )
    made = spans_of_request(message)
    assert [one.sampled for one in made] == [0.25, 0.25]
    assert [unpacked(packed(one)) for one in made] == made
    runs = KeptRuns(tmp_path, "collect", Keep(), "t", Anchor(0, 0))
    collector = Collector(OpenTraces(), Journal(tmp_path / "journal"), runs, lambda record: None, 0)
    collector.take(made)
    collector.close()
    (run,) = made_by(tmp_path, "collect")
    assert run.load().recording.sampled == 0.25
