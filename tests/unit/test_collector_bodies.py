"""From the bytes of an OTLP request to its message, within bounds; the answers, as others read them."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest
import zstandard

from profiler.collector import bodies
from profiler.collector.bodies import Counted, Refused, accepted, counted, encoding_of, parsed, unpacked_body

trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
from google.rpc.status_pb2 import Status  # noqa: E402  (comes with it)

BODY = b"what was sent " * 1000


def raw_deflate(data):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PACKED = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": gzip.compress,
    "deflate": zlib.compress,
    "identity": bytes,
    "": bytes,
    "zstd": zstandard.compress,
}


def unpacked(coding, data, most=10**6):
    return unpacked_body({b"content-encoding": coding.encode()} if coding else {}, data, most)


@pytest.mark.parametrize("coding", PACKED)
def test_a_body_is_unpacked(coding):
    assert unpacked(coding, PACKED[coding](BODY)) == BODY


def test_a_deflate_without_zlibs_frame_and_gzip_in_members_are_read_too():
    assert unpacked("deflate", raw_deflate(BODY)) == BODY
    assert unpacked("gzip", gzip.compress(b"one ") + gzip.compress(b"two") + b"\0\0") == b"one two"
    assert unpacked("zstd", zstandard.compress(b"one ") + zstandard.compress(b"two")) == b"one two"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_what_says_that_it_is_huge_is_refused_before_it_is(coding):
    packed = PACKED[coding](bytes(50_000_000))
    assert len(packed) < 60_000
    with pytest.raises(Refused, match="more than 1,000,000 bytes once unpacked") as refused:
        unpacked(coding, packed)
    assert refused.value.status == 413
    assert len(unpacked(coding, PACKED[coding](bytes(1_000_000)))) == 1_000_000


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
@pytest.mark.parametrize("spoil", [lambda data: data[:-9], lambda data: b"not packed", lambda data: b""])
def test_what_is_cut_short_or_not_packed_is_refused(coding, spoil):
    with pytest.raises(Refused, match=f"the body is not {coding}: ") as refused:
        unpacked(coding, spoil(PACKED[coding](BODY)))
    assert refused.value.status == 400


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "x" * 5000])
def test_other_codings_are_refused_in_words(coding):
    with pytest.raises(Refused, match="send gzip, deflate, zstd or none") as refused:
        unpacked(coding, BODY)
    assert refused.value.status == 415
    assert len(refused.value.words) < 150


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b"application/x-protobuf", "protobuf"),
        (b"application/json; charset=utf-8", "json"),
        (b"Application/JSON", "json"),
        (b"text/plain", None),
        (b"application/grpc", None),
        (b"", None),
    ],
)
def test_the_content_type_says_the_encoding(given, expected):
    assert encoding_of({b"content-type": given}) == expected


@pytest.mark.parametrize(
    ("encoding", "body"),
    [("protobuf", b"\xff\xff nonsense"), ("json", b"{"), ("json", b"[]"), ("json", b'"a"')],
)
def test_what_does_not_parse_is_refused(encoding, body):
    with pytest.raises(Refused) as refused:
        parsed(encoding, body)
    assert refused.value.status == 400


def test_an_empty_protobuf_body_is_a_request_without_spans():
    assert counted(parsed("protobuf", b"")) == Counted(0, frozenset())


def test_protobuf_without_its_package_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr(bodies, "protobuf_reader", lambda: None)
    with pytest.raises(
        Refused, match=r"pip install 'toolcall-profiler\[otel\]'.*send application/json"
    ) as refused:
        parsed("protobuf", b"")
    assert refused.value.status == 415
    assert parsed("json", b"{}") == {}


def test_spans_are_counted_and_those_with_a_parent_elsewhere_named():
    spans = [{"traceId": "A1", "spanId": "B1", "flags": 0x301}, {"flags": 0x101}, {}]
    message = {
        "resourceSpans": [{"scopeSpans": [{"spans": spans}, {}]}, {"scopeSpans": [{"spans": spans[1:]}]}]
    }
    assert counted(message) == Counted(5, frozenset({("a1", "b1")}))
    request = trace_service.ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    scope.spans.add(trace_id=b"\xa1", span_id=b"\xb1", flags=0x300)
    scope.spans.add(trace_id=b"\xa1", span_id=b"\xb2", flags=0x100)
    assert counted(request) == Counted(2, frozenset({("a1", "b1")}))


@pytest.mark.parametrize(
    "message", [{"resourceSpans": 5}, {"resourceSpans": ["a"]}, {"resourceSpans": [{"scopeSpans": 1}]}]
)
def test_json_of_another_shape_is_no_request(message):
    with pytest.raises(ValueError):  # noqa: PT011 (in words of whatever it is)
        counted(message)


@pytest.mark.parametrize(("rejected", "words"), [(0, ""), (3, "no ids"), (200, "é" * 100), (0, "a warning")])
def test_the_answer_is_what_its_readers_expect(rejected, words):
    answer = trace_service.ExportTraceServiceResponse.FromString(accepted("protobuf", rejected, words))
    assert (answer.partial_success.rejected_spans, answer.partial_success.error_message) == (rejected, words)
    said = json.loads(accepted("json", rejected, words))
    expected = {"partialSuccess": {"rejectedSpans": str(rejected), "errorMessage": words}} if words else {}
    assert said == expected


def test_a_refusal_is_a_status_in_the_senders_encoding():
    status = Status.FromString(bodies.refusal_body("protobuf", 400, "because " * 50))
    assert (status.code, status.message) == (3, "because " * 50)
    assert json.loads(bodies.refusal_body("json", 503, "later")) == {"code": 14, "message": "later"}
