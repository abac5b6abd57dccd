"""`profiler collect` over real sockets: both encodings, bad input, kills, its end; a real exporter around an
agent against the emulator, whose journal is the truth."""

from __future__ import annotations

import contextlib
import gzip
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from profiler.emulator.process import start_emulator
from profiler.recordings.keeping import made_by
from profiler.rundir import Anchor, RunDirectory
from tests.integration.collecting import (
    MS,
    SECONDS,
    WHOLE,
    as_json,
    as_protobuf,
    collecting,
    loop,
    records_in,
    shape,
    wait_until,
)
from tests.integration.framework_agents import QUESTION, need

QUICK = ("--grace", "200ms")


def test_both_encodings_plain_and_packed_and_what_comes_again(tmp_path: Path) -> None:
    with collecting(tmp_path, *QUICK) as collector:
        protobuf, packed = as_protobuf(loop()), gzip.compress(as_protobuf(loop()))
        answer = collector.post(protobuf)
        assert (answer.status_code, answer.headers["content-type"], answer.content) == (
            200,
            "application/x-protobuf",
            b"",
        )
        collector.post(packed, content_encoding="gzip")
        answer = collector.post(as_json(loop()), "application/json")
        assert (answer.headers["content-type"], answer.content) == ("application/json", b"{}")
        collector.post(gzip.compress(as_json(loop())), "application/json", content_encoding="gzip")
        collector.post(protobuf)
        records = collector.recorded(4)
        assert [shape(one) for one in records] == [WHOLE] * 4
        assert {one.source for one in records} == {"otel"}
        collector.post(protobuf)  # also when the loop has been written
        late = loop()[1]
        late["traceId"] = records[0].id.partition("-")[0]
        collector.send(late)
        figures = collector.figures()
        assert figures["toolloop_collector_spans_total"] == 31
        assert figures['toolloop_collector_spans_dropped_total{reason="repeated"}'] == 10
        assert figures['toolloop_collector_spans_dropped_total{reason="late"}'] == 1
        assert figures['toolloop_collector_loops_total{end="root"}'] == 4
        assert figures['toolloop_loop_duration_seconds_count{strategy="recorded",status="ok"}'] == 4
        assert figures["toolloop_collector_open_traces"] == 0
        code, out, errors = collector.ended(signal.SIGTERM)
    assert code == 143
    assert "4 loops of 31 spans" in out
    assert "10 repeated" in out
    assert errors == "profiler: told to end by SIGTERM after 4 loops\n"
    (directory,) = (path for path in tmp_path.iterdir() if RunDirectory.is_one(path))
    run = RunDirectory.open(directory).load()
    assert run.finished
    assert run.recording is not None
    assert (run.recording.read, run.recording.exact) == ({"otel": 31}, 8)
    assert run.recording.skipped == {
        "spans that came before": 10,
        "spans that came after their loop had been written": 1,
    }
    assert not (tmp_path / ".collect").exists()


def test_what_cannot_be_taken_is_refused_in_words_and_the_collector_goes_on(tmp_path: Path) -> None:
    with collecting(tmp_path, *QUICK) as collector:
        good = as_protobuf(loop())
        for expected, words, answer in (
            (400, b"in protobuf", collector.post(b"nonsense")),
            (400, b"not JSON", collector.post(b"nonsense", "application/json")),
            (400, b"resourceSpans", collector.post(b'{"spans": []}', "application/json")),
            (400, b"not gzip", collector.post(good, content_encoding="gzip")),
            (415, b"Content-Encoding 'br'", collector.post(good, content_encoding="br")),
            (415, b"Content-Type 'text/plain'", collector.post(good, "text/plain")),
            (
                413,
                b"once unpacked",
                collector.post(gzip.compress(bytes(130_000_000)), content_encoding="gzip"),
            ),
            (413, b"Too Large", collector.post(bytes(33 * 2**20))),
            (403, b"evil.example", collector.post(good, origin="http://evil.example")),
            (200, b"metrics are dropped here", collector.post(b"", path="/v1/metrics")),
            (404, b"spans go to /v1/traces", collector.post(good, path="/v2/spans")),
            (405, b"POST", httpx.get(f"{collector.url}/v1/traces", timeout=SECONDS)),
            (
                403,
                b"--allow-host evil.example",
                httpx.get(f"{collector.url}/metrics", headers={"host": "evil.example"}, timeout=SECONDS),
            ),
        ):
            assert (answer.status_code, words in answer.content) == (expected, True), answer.content
        unreadable = [{**loop()[0], "spanId": ""}, *loop()]
        answer = collector.post(as_json(unreadable), "application/json")
        assert answer.json()["partialSuccess"]["rejectedSpans"] == "1"
        host, port = collector.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
            assert client.recv(100).startswith(b"HTTP/1.1 400 ")
        assert httpx.get(f"{collector.url}/healthz", timeout=SECONDS).text == "ok\n"
        assert [shape(one) for one in collector.recorded(1)] == [WHOLE]
        _, _, errors = collector.ended(signal.SIGTERM)
    assert "profiler collect: metrics come in too, and are dropped" in errors
    assert errors.count("OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf") == 1


def test_after_a_kill_everything_acknowledged_is_recorded_once(tmp_path: Path) -> None:
    """Loops that are whole, that are open, and that go on in the next collector, while more keep coming."""
    acknowledged: dict[str, float] = {}
    with collecting(tmp_path, *QUICK) as collector:
        half = loop()
        collector.send(*half[:3])
        stop = threading.Event()

        def send() -> None:
            while not stop.is_set():
                one = loop()
                whole = secrets.randbelow(2)
                with contextlib.suppress(httpx.HTTPError):
                    collector.send(*(one if whole else one[:-1]))
                    acknowledged[one[0]["traceId"]] = time.monotonic()

        sender = threading.Thread(target=send)
        sender.start()
        wait_until(lambda: len(acknowledged) > 20 and collector.records())
        time.sleep(1.5)
        killed = time.monotonic()
        collector.process.kill()
        collector.process.wait()
        stop.set()
        sender.join()
    before = len(records_in(tmp_path))
    assert before
    with collecting(tmp_path, *QUICK) as collector:
        collector.send(*half[3:])
        wait_until(lambda: half[0]["traceId"] in {one.id.partition("-")[0] for one in collector.records()})
        code, out, _ = collector.ended(signal.SIGINT)
    assert code == 130
    assert "going on:" in out
    records = records_in(tmp_path)
    traces = [one.id.partition("-")[0] for one in records]
    assert len(traces) == len(set(traces))
    safe = {trace for trace, at in acknowledged.items() if at < killed - 1}
    assert len(safe) > 10
    assert safe <= set(traces)
    assert shape(records[traces.index(half[0]["traceId"])]) == WHOLE
    rounds = {trace: len(one.rounds) for trace, one in zip(traces, records, strict=True)}
    assert {rounds[trace] for trace in safe} == {2}


def test_the_first_signal_writes_what_is_open_and_the_second_leaves_it_for_the_next(tmp_path: Path) -> None:
    with collecting(tmp_path / "one") as collector:
        collector.send(*loop()[:-1])
        code, out, _ = collector.ended(signal.SIGINT)
        assert (code, "1 loop of 4 spans" in out) == (130, True)
        (record,) = collector.records()
        assert (record.status, len(record.rounds)) == ("cancelled", 2)
    with collecting(tmp_path / "two", "--grace", "250s") as collector:
        for _ in range(20):
            collector.send(*(one for _ in range(200) for one in loop()))
        collector.give_way()  # on a busy machine it would have written all before this test has its turn
        collector.process.send_signal(signal.SIGTERM)
        assert collector.process.stdout is not None
        while "4,000 open traces to write" not in (line := collector.process.stdout.readline()):
            assert line, "it ended"
        code, *_ = collector.ended(signal.SIGTERM)
        assert code == 143
        written = len(collector.records())
        assert written < 4000
    with collecting(tmp_path / "two", *QUICK) as collector:
        assert len(collector.recorded(4000)) == 4000


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    def refused(*options: str) -> str:
        command = [sys.executable, "-m", "profiler", "collect", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        return done.stderr

    with collecting(tmp_path / "runs") as collector:
        port = collector.url.rpartition(":")[2]
        assert "another `profiler collect` keeps its journal there" in refused(
            "--port", "0", "--out", str(tmp_path / "runs")
        )
        taken = refused("--port", port, "--out", str(tmp_path / "other"))
        assert taken == f"profiler: cannot listen on 127.0.0.1:{port}: Address already in use\n"
        assert not (tmp_path / "other" / ".collect").exists()
    assert "expected an age" in refused("--keep", "7x", "--out", str(tmp_path))
    assert "not a host" in refused("--allow-host", "http://x", "--out", str(tmp_path))
    assert "shorter than --grace" in refused("--idle", "1s", "--out", str(tmp_path))


SCENARIO = """
description = "two rounds of three calls"
prompt = "Question {number}"

[model]
first_token = 0.05
tokens_per_second = 5000

[loop]
rounds = 2
fan_out = 3

[tools.search]
description = "Search."
duration = 0.2
"""


@pytest.mark.filterwarnings("default")  # what these packages warn of among themselves is theirs
@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip, Compression.Deflate])
async def test_pydantic_ais_spans_by_opentelemetrys_exporter(
    tmp_path: Path, compression: Compression
) -> None:
    pydantic_ai = need("pydantic_ai")
    from pydantic_ai.capabilities.instrumentation import Instrumentation
    from pydantic_ai.models.instrumented import InstrumentationSettings
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    scenario = tmp_path / "scenario.toml"
    scenario.write_text(SCENARIO)
    with start_emulator(str(scenario)) as emulator, collecting(tmp_path / "runs", *QUICK) as collector:
        provider = TracerProvider()
        exporter = OTLPSpanExporter(f"{collector.url}/v1/traces", compression=compression)
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=100))
        async with openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key="x") as client:

            async def search(query: str) -> str:
                """Search the web."""
                async with httpx.AsyncClient(timeout=SECONDS) as asker:
                    return (await asker.post(f"{emulator.url}/tools/search", json={"query": query})).text

            model = OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client))
            settings = InstrumentationSettings(tracer_provider=provider)
            agent = pydantic_ai.Agent(
                model, tools=[search], name="searcher", capabilities=[Instrumentation(settings)]
            )
            await agent.run(QUESTION)
        provider.shutdown()
        (record,) = collector.recorded(1)
        async with httpx.AsyncClient(timeout=SECONDS) as asker:
            entries = (await asker.get(f"{emulator.url}/emulator/journal")).json()["entries"]
        now = Anchor.now()
    anchor = made_by(tmp_path / "runs", "collect")[0].load().anchor
    assert (record.status, record.name, record.model) == ("ok", "searcher", "gpt-4o")
    models = [entry for entry in entries if entry["kind"] == "model"]
    calls = {entry["call_id"]: entry for entry in entries if entry["kind"] == "tool"}
    assert [len(one.tool_calls) for one in record.rounds] == [3, 3, 0]
    assert {call.id for call in record.tool_calls} == set(calls)

    def is_around(started_ns: int, ended_ns: int, entry: dict[str, Any]) -> bool:
        """Whether a span begins before the emulator received the same, and ends after its answer was due."""
        # When it notes that it has answered, the answer may have come long ago.
        began, ended = now.unix(entry["received_ns"]), now.unix(entry["due_ns"])
        return anchor.unix(started_ns) <= began + MS and ended - MS <= anchor.unix(ended_ns)

    for round_, entry in zip(record.rounds, models, strict=True):
        model = round_.model
        assert (model.input_tokens, model.output_tokens) == (entry["input_tokens"], entry["output_tokens"])
        assert is_around(model.started_ns, model.ended_ns, entry)
    for call in record.tool_calls:
        assert is_around(call.started_ns, call.ended_ns, calls[call.id])
        assert call.derived == ("ready_ns",)
