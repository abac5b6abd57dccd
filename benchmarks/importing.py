"""What `profiler import` takes: rows, seconds, peak memory.

    python -m benchmarks.importing [ROWS] [--only tracelab|otel]

Rows in the shape of TraceLab's, and as many spans of OTLP JSON in batches of 512, as a Collector's file
exporter writes them. Each import is a process of its own; its peak is that of its resident memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import orjson

from benchmarks.tracelab_rows import rows

_BATCH = 512


def otlp(count: int) -> Iterator[bytes]:
    """`count` spans, a request of 512 a line; a trace is an agent, three model calls, five tool calls."""
    spans = _spans()
    while count > 0:
        batch = list(islice(spans, min(_BATCH, count)))
        count -= len(batch)
        scope = {"scope": {"name": "pydantic-ai"}, "spans": batch}
        resource = {"attributes": [_attribute("service.name", "agents")]}
        yield orjson.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}) + b"\n"


def _spans() -> Iterator[dict[str, object]]:
    number = 0
    while True:
        number += 1
        start = 1_757_840_400_000_000_000 + number * 150_000_000
        trace = f"{number:032x}"
        at, children = start + 1_000_000, 0
        made = []
        for round_ in range(3):
            made.append(_span(trace, children := children + 1, "chat gpt-4.1", at, at + 700_000_000, _MODEL))
            at += 701_000_000
            for call in range((3, 2, 0)[round_]):
                attributes = {
                    "gen_ai.operation.name": "execute_tool",
                    "gen_ai.tool.name": f"tool_{call}",
                    "gen_ai.tool.call.id": f"call_{number}_{round_}_{call}",
                }
                children += 1
                end = at + 100_000_000 * (call + 1)
                made.append(_span(trace, children, f"execute_tool tool_{call}", at, end, attributes))
            at += 310_000_000
        root = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "planner"}
        yield from made
        yield _span(trace, 0, "invoke_agent planner", start, at, root)


_MODEL: dict[str, object] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4.1",
    "gen_ai.response.model": "gpt-4.1-2025-04-14",
    "gen_ai.usage.input_tokens": 1180,
    "gen_ai.usage.output_tokens": 64,
    "gen_ai.usage.cache_read.input_tokens": 1024,
}


def _span(
    trace: str, id: int, name: str, start: int, end: int, attributes: dict[str, object]
) -> dict[str, object]:
    span: dict[str, object] = {
        "traceId": trace,
        "spanId": trace[-12:] + f"{id:04x}",
        "name": name,
        "kind": 1,
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(end),
        "attributes": [_attribute(key, value) for key, value in attributes.items()],
        "status": {},
    }
    if id:
        span["parentSpanId"] = trace[-12:] + "0000"
    return span


def _attribute(key: str, value: object) -> dict[str, object]:
    kind = {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}
    return {"key": key, "value": kind}


def _measured(name: str, file: Path, rows: int, folder: Path) -> None:
    began = time.monotonic()
    command = [sys.executable, "-m", "profiler", "import", str(file), "--out", str(folder / name)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    if status:
        sys.exit(f"the import failed: {status}")
    peak = usage.ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)
    print(printed)
    print(
        f"{name}: {rows:,} rows, {file.stat().st_size / 1e6:,.0f} MB: "
        f"{seconds:.1f} s (CPU {usage.ru_utime + usage.ru_stime:.1f} s), peak {peak:,.0f} MB resident\n",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("rows", type=int, nargs="?", default=350_000)
    parser.add_argument("--only", choices=("tracelab", "otel"))
    arguments = parser.parse_args()
    made = {"tracelab": lambda: rows(arguments.rows, 1), "otel": lambda: otlp(arguments.rows)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, lines in made.items():
            if arguments.only in (None, name):
                file = folder / f"{name}.jsonl"
                with open(file, "wb") as out:
                    out.writelines(lines())
                _measured(name, file, arguments.rows, folder)


if __name__ == "__main__":
    main()
