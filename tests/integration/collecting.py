"""`profiler collect` as a process, and spans to send to it, written down as their conventions say."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from profiler.recordings.keeping import made_by
from profiler.records import LoopRecord

SECONDS = 120
"""For how long anything is waited for."""
MS = 10**6


class Collecting:
    """A running collector that writes to `out`."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str], out: Path) -> None:
        self.process, self.out, self._errors = process, out, errors
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "listening" in line, f"it did not start: {self.output()}"
        self.url = line.split()[-1]

    def post(
        self, body: bytes, kind: str = "application/x-protobuf", path: str = "/v1/traces", **headers: str
    ) -> httpx.Response:
        given = {"content-type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return httpx.post(self.url + path, content=body, headers=given, timeout=SECONDS)

    def send(self, *spans: dict[str, Any]) -> None:
        assert self.post(as_protobuf(spans)).status_code == 200

    def figures(self) -> dict[str, float]:
        """`/metrics` by name and labels."""
        lines = httpx.get(f"{self.url}/metrics", timeout=SECONDS).text.splitlines()
        split = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in split}

    def give_way(self) -> None:
        """From now on any other process has its turn before this one."""
        pid = self.process.pid
        tasks = Path(f"/proc/{pid}/task")  # on Linux each thread has a priority of its own
        for thread in [int(one.name) for one in tasks.iterdir()] if tasks.exists() else [pid]:
            with contextlib.suppress(ProcessLookupError):  # a thread that has just ended
                os.setpriority(os.PRIO_PROCESS, thread, 19)

    def ended(self, number: int) -> tuple[int, str, str]:
        """(exit code, output, errors) after a signal."""
        self.process.send_signal(number)
        return self.output()

    def output(self) -> tuple[int, str, str]:
        # Not `communicate`: it leaves out what was read with the first line.
        assert self.process.stdout is not None
        out = self.process.stdout.read()
        self.process.wait(SECONDS)
        self._errors.seek(0)
        return self.process.returncode, out, self._errors.read()

    def records(self) -> list[LoopRecord]:
        return records_in(self.out)

    def recorded(self, count: int) -> list[LoopRecord]:
        """The records, once there are so many."""
        wait_until(
            lambda: len(self.records()) >= count,
            lambda: f"{len(self.records())} of {count} records, {self.figures()}",
        )
        return self.records()


def records_in(out: Path) -> list[LoopRecord]:
    """All that the collectors of a folder wrote, in order."""
    return [record for directory in made_by(out, "collect") for record in directory.records()]


@contextlib.contextmanager
def collecting(out: Path, *options: str) -> Iterator[Collecting]:
    command = [sys.executable, "-m", "profiler", "collect", "--port", "0", "--out", str(out), *options]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            yield Collecting(process, errors, out)
        finally:
            process.kill()
            process.wait()


def wait_until(
    holds: Callable[[], Any], otherwise: Callable[[], Any] = lambda: "it did not come to hold"
) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, otherwise()
        time.sleep(0.02)


def span(
    trace: str, name: str, start_ms: int, end_ms: int, parent: str = "", **attributes: Any
) -> dict[str, Any]:
    """A span as OTLP's JSON has it; `attributes` with `__` for a dot."""
    now = 1_790_000_000_000 * MS
    return {
        "traceId": trace,
        "spanId": secrets.token_hex(8),
        "parentSpanId": parent,
        "name": name,
        "kind": 1,
        "startTimeUnixNano": str(now + start_ms * MS),
        "endTimeUnixNano": str(now + end_ms * MS),
        "attributes": [
            {
                "key": key.replace("__", "."),
                "value": {"intValue" if isinstance(value, int) else "stringValue": value},
            }
            for key, value in attributes.items()
        ],
    }


def loop(trace: str | None = None) -> list[dict[str, Any]]:
    """A loop of two requests with two calls between, its root last."""
    trace = trace or secrets.token_hex(16)
    root = span(
        trace, "invoke_agent a", 0, 1000, gen_ai__operation__name="invoke_agent", gen_ai__agent__name="a"
    )
    parent = root["spanId"]

    def model(start_ms: int, end_ms: int) -> dict[str, Any]:
        return span(
            trace,
            "chat m",
            start_ms,
            end_ms,
            parent,
            gen_ai__operation__name="chat",
            gen_ai__provider__name="openai",
            gen_ai__request__model="m",
            gen_ai__usage__input_tokens=7,
            gen_ai__usage__output_tokens=3,
        )

    def call(id_: str, start_ms: int, end_ms: int) -> dict[str, Any]:
        about = {"gen_ai__tool__name": "f", "gen_ai__tool__call__id": id_}
        return span(
            trace, "execute_tool f", start_ms, end_ms, parent, gen_ai__operation__name="execute_tool", **about
        )

    return [model(0, 300), call("c1", 310, 410), call("c2", 320, 520), model(600, 1000), root]


def request(spans: Any) -> dict[str, Any]:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "tests"}}]}
    return {
        "resourceSpans": [
            {"resource": resource, "scopeSpans": [{"scope": {"name": "t"}, "spans": list(spans)}]}
        ]
    }


def as_json(spans: Any) -> bytes:
    return json.dumps(request(spans)).encode()


def as_protobuf(spans: Any) -> bytes:
    message = ExportTraceServiceRequest()
    resource = message.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "tests"
    scope = resource.scope_spans.add()
    scope.scope.name = "t"
    for one in spans:
        made = scope.spans.add(
            trace_id=bytes.fromhex(one["traceId"]),
            span_id=bytes.fromhex(one["spanId"]),
            parent_span_id=bytes.fromhex(one["parentSpanId"]),
            name=one["name"],
            kind=one["kind"],
            start_time_unix_nano=int(one["startTimeUnixNano"]),
            end_time_unix_nano=int(one["endTimeUnixNano"]),
        )
        for attribute in one["attributes"]:
            value = made.attributes.add(key=attribute["key"]).value
            for field, given in attribute["value"].items():
                setattr(value, {"intValue": "int_value", "stringValue": "string_value"}[field], given)
    return message.SerializeToString()


def shape(record: LoopRecord) -> tuple[Any, ...]:
    """What a loop of `loop` must look like: durations in ms."""
    return (
        record.status,
        record.name,
        [
            (
                one.model.duration_ns // MS,
                one.model.input_tokens,
                [(c.id, c.latency_ns // MS) for c in one.tool_calls],
            )
            for one in record.rounds
        ],
    )


WHOLE = ("ok", "a", [(300, 7, [("c1", 100), ("c2", 200)]), (400, 7, [])])


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, **more}
