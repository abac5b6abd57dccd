"""An application that is used before it forks, in its children, and afterwards.

`forking.py HOW LOOPS CHILDREN`, in a directory of its own; `LOOPS` of each kind run in each process. Every
sink gets what its process ends:

    lines.jsonl    JsonlSink, called where a loop ends
    behind.jsonl   JsonlSink, called on the recorder's own thread
    spans.txt      OpenTelemetrySink: the number of each loop's span, with the process that exported it
    metrics.txt    PrometheusSink: process, loops counted

Loops are numbered 1000 * process + n; process 0 is the parent before the fork, 1 the parent after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from profiler import ToolLoop, tool
from profiler.exporters.jsonl import JsonlSink
from profiler.exporters.opentelemetry import OpenTelemetrySink
from profiler.exporters.prometheus import PrometheusSink
from profiler.instrument import Profiler
from profiler.loop.model import Reply
from profiler.metrics import LOOP_DURATION
from profiler.records import LoopRecord
from profiler.strategies import parse_strategy
from profiler.testing import ScriptedModel, call

HOW, LOOPS, CHILDREN = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


class Spans(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            number = (span.attributes or {}).get("toolloop.number")
            if number is not None:
                append("spans.txt", f"{number} {os.getpid()}")
        return SpanExportResult.SUCCESS


def append(name: str, line: str) -> None:
    with open(name, "ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(Spans()))
lines, behind_lines = JsonlSink("lines.jsonl"), JsonlSink("behind.jsonl")
metrics = PrometheusSink()
metrics.serve(0)


def behind(record: LoopRecord) -> None:
    behind_lines(record)


SINKS = [lines, metrics, OpenTelemetrySink(provider), behind]
profiler = Profiler(SINKS)


@tool
def look(place: str) -> str:
    """Look there, in a thread."""
    time.sleep(0.002)
    return f"{place} {threading.get_native_id()}"


@tool(exclusive="one at a time")
async def write(place: str) -> str:
    """Write there."""
    await asyncio.sleep(0)
    return place


class Endless(ScriptedModel):
    """Three sync calls and an async one in the first round of any loop, then the answer."""

    async def request(self, messages: Any, tools: Any, options: Any, probe: Any) -> Reply:
        calls = [*(call("look", place=str(n)) for n in range(3)), call("write", place="x")]
        one = ScriptedModel([calls if len(messages) == 1 else "done"])
        return await one.request(messages, tools, options, probe)


loop = ToolLoop(Endless([]), [look, write], parse_strategy("semaphore:2+rate:5000/s"), sinks=SINKS)


def use(process: int, loops: int = LOOPS) -> None:
    """Run loops of both kinds in this process."""

    async def all_of_them() -> None:
        for number in range(1000 * process, 1000 * process + loops):
            result = await asyncio.wait_for(loop.run("go", number=number), 50)
            assert [one.status for one in result.record.tool_calls] == ["ok"] * 4

    asyncio.run(all_of_them())
    watched = profiler.tool(lambda: None, name="watched")
    for number in range(1000 * process + loops, 1000 * process + 2 * loops):
        with profiler.loop("watched", number=number):
            watched()
    counted = sum(sum(child.counts) for _, child in metrics.children(LOOP_DURATION))
    append("metrics.txt", f"{process} {counted}")


def forked(process: int) -> int:
    """A child by os.fork that ends as programs do; its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        use(process)
        sys.exit(0)
    return pid


def by_fork() -> None:
    for pid in [forked(2 + n) for n in range(CHILDREN)]:
        assert os.waitpid(pid, 0)[1] == 0


def by_multiprocessing() -> None:
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=use, args=(2 + n,)) for n in range(CHILDREN)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0


def by_a_thread() -> None:
    """Fork in a thread while others are in the middle of everything."""
    busy = threading.Event()

    def keep_busy() -> None:
        while not busy.wait(0.0005):
            with profiler.loop("busy"):
                pass

    async def loops() -> None:
        while not busy.is_set():
            await loop.run("busy")

    others = [
        *(threading.Thread(target=keep_busy) for _ in range(2)),
        *(threading.Thread(target=asyncio.run, args=(loops(),)) for _ in range(2)),
    ]
    for one in others:
        one.start()
    ended: list[int] = []

    def fork() -> None:
        for n in range(CHILDREN):
            pid = os.fork()
            if pid == 0:
                with contextlib.suppress(BaseException):
                    use(2 + n)
                    time.sleep(1.0)  # what was recorded up to the last second is to be there
                    os._exit(0)
                os._exit(1)
            ended.append(os.waitpid(pid, 0)[1])

    forking = threading.Thread(target=fork)
    forking.start()
    forking.join(90)
    busy.set()
    for one in others:
        one.join(60)
    assert ended == [0] * CHILDREN


if __name__ == "__main__":
    use(0)
    {"fork": by_fork, "multiprocessing": by_multiprocessing, "thread": by_a_thread}[HOW]()
    use(1)
