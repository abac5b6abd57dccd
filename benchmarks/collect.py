"""`profiler collect` under a steady stream of spans: is any lost, what does it cost, does its memory stay?

    python benchmarks/collect.py                        one minute
    python benchmarks/collect.py --minutes 10           the ten of the README
    python benchmarks/collect.py --rate 20000           more than it may be able to take

A process of its own sends `--rate` spans a second, 2 kB each, as OpenTelemetry's exporter does (protobuf,
gzip, batches of 512, children before their parents), of loops of ten spans, every hundredth without its root.
Both are pinned to a core each where there are two. Whatever is not answered 200 is sent again; in the end the
records are read, and their loops, requests and calls counted against what was sent.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from profiler.rundir import RunDirectory

BATCH = 512
ROUNDS, CALLS = 3, 3
SPANS = 1 + ROUNDS + (ROUNDS - 1) * CALLS
ROOTLESS = 100
"""Every so many-th loop has no root."""
TICK = os.sysconf("SC_CLK_TCK")
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
WORDS = ["weather", "in", "Paris", "mild", "and", "the", "tool", "said", "it", "will", "rain", "tomorrow"]

_ID = bytes(range(0xA0, 0xB0))
"""Stands for the trace's id in a template, and its first eight bytes, with a number, for a span's."""


def text(size: int, chance: random.Random) -> str:
    words = []
    while sum(map(len, words)) + len(words) < size:
        words.append(f"{chance.choice(WORDS)}{chance.randrange(100)}")
    return " ".join(words)[:size]


def template(chance: random.Random) -> ExportTraceServiceRequest:
    """The spans of one loop, root last; times are from 0."""
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    add(
        resource.resource, {"service.name": "bench", "host.name": "there", "telemetry.sdk.language": "python"}
    )
    scope = resource.scope_spans.add()
    scope.scope.name = "pydantic-ai"
    at = 0
    for round_ in range(ROUNDS):
        model = span(scope, "chat gpt-4o", at, at + 500, kind=3)
        add(
            model,
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "openai",
                "gen_ai.system": "openai",
                "gen_ai.request.model": "gpt-4o",
                "gen_ai.response.model": "gpt-4o-2024-11-20",
                "gen_ai.response.id": f"resp_{round_}",
                "gen_ai.usage.input_tokens": 500 + round_,
                "gen_ai.usage.output_tokens": 60,
                "gen_ai.agent.name": "bench",
                "server.address": "127.0.0.1",
                "server.port": 8100,
                "gen_ai.input.messages": text(1000, chance),
                "gen_ai.output.messages": text(460, chance),
            },
        )
        at += 500
        if round_ == ROUNDS - 1:
            break
        for call in range(CALLS):
            tool = span(scope, "execute_tool weather", at, at + 100 + 10 * call)
            add(
                tool,
                {
                    "gen_ai.operation.name": "execute_tool",
                    "gen_ai.tool.name": "weather",
                    "gen_ai.tool.call.id": f"call_{round_}_{call}",
                    "gen_ai.agent.name": "bench",
                    "gen_ai.tool.call.arguments": text(700, chance),
                    "gen_ai.tool.call.result": text(1030, chance),
                },
            )
        at += 100 + 10 * CALLS
    root = span(scope, "invoke_agent bench", 0, at)
    root.parent_span_id = b""
    add(
        root,
        {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": "bench",
            "final_result": text(900, chance),
            "all_messages": text(950, chance),
        },
    )
    return request


def span(scope, name, started_ms, ended_ms, kind=1):
    one = scope.spans.add(trace_id=_ID, name=name, kind=kind, parent_span_id=b"root....")
    one.start_time_unix_nano, one.end_time_unix_nano = started_ms * 10**6, ended_ms * 10**6
    return one


def add(holder, attributes) -> None:
    for key, value in attributes.items():
        said = holder.attributes.add(key=key).value
        if isinstance(value, int):
            said.int_value = value
        else:
            said.string_value = value


def batches(chance: random.Random):
    """Batches without end: (spans, loops with a root, loops without one, body)."""
    templates = [template(chance) for _ in range(20)]
    number = spans = 0
    request = ExportTraceServiceRequest()
    request.resource_spans.add().resource.CopyFrom(templates[0].resource_spans[0].resource)
    scope = request.resource_spans[0].scope_spans.add()
    scope.scope.name = "pydantic-ai"
    began = Counter()
    while True:
        number += 1
        of_loop = chance.choice(templates).resource_spans[0].scope_spans[0].spans
        now = time.time_ns() - 3 * 10**9
        trace, root = os.urandom(16), os.urandom(8)
        rooted = bool(number % ROOTLESS)
        began[rooted] += 1
        for one in of_loop if rooted else of_loop[:-1]:
            made = scope.spans.add()
            made.CopyFrom(one)
            made.trace_id = trace
            made.start_time_unix_nano += now
            made.end_time_unix_nano += now
            made.span_id, made.parent_span_id = (os.urandom(8), root) if one.parent_span_id else (root, b"")
            spans += 1
            if spans == BATCH:
                yield spans, began[True], began[False], request.SerializeToString()
                spans = 0
                began.clear()
                del scope.spans[:]


def send(host: str, port: int, rate: float, seconds: float) -> None:
    """The sender, in a process of its own; prints what it sent as JSON."""
    sent = Counter()
    connection = http.client.HTTPConnection(host, port, timeout=60)
    headers = {"content-type": "application/x-protobuf", "content-encoding": "gzip"}
    began = due = time.monotonic()
    latencies = []
    for spans, rooted, rootless, body in batches(random.Random(1)):
        sent["bytes"] += len(body)
        packed = gzip.compress(body, 1)
        time.sleep(max(0.0, due - time.monotonic()))
        # What a busy machine held up for longer is not made up for: the stream would not be steady.
        due = max(due, time.monotonic() - 1) + spans / rate
        while True:
            asked = time.monotonic()
            connection.request("POST", "/v1/traces", packed, headers)
            answer = connection.getresponse()
            answer.read()
            latencies.append(time.monotonic() - asked)
            if answer.status == 200:
                break
            sent[f"answered {answer.status}"] += 1
            time.sleep(0.5)
        sent["spans"] += spans
        sent["loops"] += rooted + rootless
        sent["rootless"] += rootless
        if time.monotonic() - began >= seconds:
            break
    latencies.sort()
    sent["late_ms"] = int(1000 * max(0.0, time.monotonic() - due))
    sent["p50_ms"], sent["p99_ms"] = (int(1000 * latencies[int(len(latencies) * p)]) for p in (0.5, 0.99))
    print(json.dumps({**sent, "seconds": time.monotonic() - began, "cpu": time.process_time()}))


def resident(pid: int) -> float:
    """MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1000
    return 0.0


def cpu_seconds(pid: int) -> float:
    parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(parts[11]) + int(parts[12])) / TICK


def watch(pid: int, ended: threading.Event, every: float) -> list[tuple[float, float, float]]:
    """(seconds, MB, share of a core) from time to time, printed as they come."""
    began = time.monotonic()
    seen: list[tuple[float, float, float]] = []
    at, used = began, cpu_seconds(pid)
    while not ended.wait(every):
        now, used_now = time.monotonic(), cpu_seconds(pid)
        seen.append((now - began, resident(pid), (used_now - used) / (now - at)))
        at, used = now, used_now
        print("  {:5.0f} s   {:6.1f} MB   {:4.0%} of a core".format(*seen[-1]), flush=True)
    return seen


def pin(core: int) -> None:
    """Keep this process to a core, where the system can."""
    if CORES:
        os.sched_setaffinity(0, {sorted(CORES)[core % len(CORES)]})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=5000.0, help="spans a second")
    parser.add_argument("--idle", help="as `profiler collect` has it (default: the one it has)")
    parser.add_argument("--send", nargs=2, metavar=("HOST", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send is not None:
        pin(1)
        send(options.send[0], int(options.send[1]), options.rate, 60 * options.minutes)
        return
    with tempfile.TemporaryDirectory() as directory:
        measure(Path(directory), options)


def measure(out: Path, options: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "profiler", "collect", "--port", "0", "--out", str(out)]
    if options.idle is not None:
        command += ["--idle", options.idle]
    pin(0)  # the collector inherits it
    collector = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    if CORES:
        os.sched_setaffinity(0, CORES)
    assert collector.stdout is not None
    host, port = collector.stdout.readline().split("//")[1].strip().split(":")
    ended = threading.Event()
    seen: list[tuple[float, float, float]] = []
    every = 60.0 if options.minutes >= 3 else 10.0
    watching = threading.Thread(target=lambda: seen.extend(watch(collector.pid, ended, every)))
    watching.start()
    sender = [sys.executable, __file__, "--send", host, port]
    sender += ["--rate", str(options.rate), "--minutes", str(options.minutes)]
    try:
        sent = json.loads(subprocess.run(sender, check=True, capture_output=True, text=True).stdout)
    finally:
        ended.set()
        watching.join()
        used, most = cpu_seconds(collector.pid), resident(collector.pid)
        collector.send_signal(signal.SIGTERM)
        began = time.monotonic()
        print(collector.stdout.read().rstrip())
        collector.wait()
    print(f"ended in {time.monotonic() - began:.1f} s with code {collector.returncode}")
    rate = sent["spans"] / sent["seconds"]
    print(
        f"sent:      {sent['spans']:,} spans of {sent['loops']:,} loops ({sent['rootless']:,} rootless), "
        f"{sent['bytes'] / sent['spans']:,.0f} bytes each, {rate:,.0f} spans/s in {sent['seconds']:.0f} s"
    )
    print(f"answers:   p50 {sent['p50_ms']} ms, p99 {sent['p99_ms']} ms, not 200: {refused(sent)}")
    found = recorded(out)
    print(
        f"recorded:  {found['spans']:,} spans of {found['loops']:,} loops ({found['cancelled']:,} cancelled)"
    )
    # The sender stops in the middle of a loop: the last one may lack its root and some more.
    print(f"lost:      {sent['spans'] - found['spans']:,} spans, {sent['loops'] - found['loops']:,} loops")
    print(f"cpu:       {used / sent['seconds']:.0%} of a core, {1e6 * used / sent['spans']:.0f} µs a span")
    settled = [one for one in seen if one[0] >= 120] or seen[-3:]
    if settled:
        memory = [one[1] for one in settled]
        middle = (min(memory) + max(memory)) / 2
        spread = f"{min(memory):.0f} to {max(memory):.0f} MB, ± {max(memory) / middle - 1:.1%}"
        print(f"memory:    {spread}; {most:.0f} MB last")


def refused(sent: dict[str, int]) -> str:
    found = {name: count for name, count in sent.items() if name.startswith("answered")}
    return ", ".join(f"{count} {name}" for name, count in found.items()) or "none"


def recorded(out: Path) -> Counter[str]:
    """What the records hold: a span for each loop that has a root, each request and each call."""
    found: Counter[str] = Counter()
    seen: set[str] = set()
    for path in sorted(out.iterdir()):
        if not RunDirectory.is_one(path):
            continue
        with open(path / "records.jsonl", "rb") as file:
            for line in file:
                record = json.loads(line)
                if record["id"] in seen:
                    found["twice"] += 1
                seen.add(record["id"])
                found["loops"] += 1
                found["cancelled"] += record["status"] == "cancelled"
                found["spans"] += int(not record["id"].endswith("-")) + len(record["rounds"])
                found["spans"] += sum(len(round_["tool_calls"]) for round_ in record["rounds"])
    return found


if __name__ == "__main__":
    main()
