"""What a sink of an application adds to the end of a loop, on an idle machine and a busy one.

none     no sink at all
append   `records.append`, called where the loop ends
quick    a function that appends; called on the recorder's thread, and waited for
raises   one that raises
blocks   one that blocks for 5 seconds

`late` counts the records that a program would not have found right after its loop. `busy` is beside twice as
many processes that compute as there are cores.

    python benchmarks/sinks.py [--loops 2000]
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import time
from collections.abc import Callable

from profiler.records import LoopRecord
from profiler.watch.profiler import Profiler


def raises(record: LoopRecord) -> None:
    raise ValueError


def blocks(record: LoopRecord) -> None:
    time.sleep(5)


def compute() -> None:
    while True:
        pass


def measure(kind: str, loops: int) -> tuple[list[float], int]:
    """Milliseconds of the end of each loop, and how many records were late. A new sink every 100 loops."""
    took, late = [], 0
    for _ in range(loops // 100):
        records: list[LoopRecord] = []
        sinks: dict[str, list[Callable[[LoopRecord], None]]] = {
            "none": [],
            "append": [records.append],
            "quick": [lambda record, records=records: records.append(record)],  # type: ignore[misc]
            "raises": [raises],
            "blocks": [blocks],
        }
        prof = Profiler(sinks=sinks[kind])
        for number in range(100):
            loop = prof.loop()
            loop.__enter__()
            began = time.perf_counter_ns()
            loop.__exit__(None, None, None)
            took.append((time.perf_counter_ns() - began) / 1e6)
            late += kind in ("append", "quick") and len(records) != number + 1
            time.sleep(0.0005)
    return sorted(took), late


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loops", type=int, default=2000)
    loops = parser.parse_args().loops
    logging.disable(logging.CRITICAL)
    print(f"{'ms at the end of a loop':24} {'median':>8} {'p99':>8} {'largest':>8} {'late':>6}")
    for busy in (0, 2 * len(os.sched_getaffinity(0))):
        others = [multiprocessing.Process(target=compute, daemon=True) for _ in range(busy)]
        for other in others:
            other.start()
        time.sleep(0.5)
        for kind in ("none", "append", "quick", "raises", "blocks"):
            took, late = measure(kind, loops)
            name = f"{kind}{', busy' if busy else ''}"
            largest = took[-1]
            median, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
            print(f"{name:24} {median:8.3f} {p99:8.3f} {largest:8.3f} {late:6}", flush=True)
        for other in others:
            other.kill()
            other.join()


if __name__ == "__main__":
    main()
