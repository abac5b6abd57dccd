"""5,000 loops of all APIs against a server that sends anything: what became of them, by kind of reply.

python benchmarks/hostile.py [SEED]. Exit code 1 when a loop left no record or a second one, when an agent was
lost, or when a loop was ended by a defect of ours.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from profiler.commands.run import on_event_loop
from profiler.records import INTERNAL
from tests.hostile.loops import hostile_server, journal_of, lines, run_loops, table

LOOPS = 5_000
AGENTS = 40
APIS = 6
"""Three, each whole and streamed."""


def main(seed: int) -> int:
    each = -(-LOOPS // APIS)
    with hostile_server(seed) as url:
        began = time.monotonic()
        fates = on_event_loop(lambda: run_loops(url, each, AGENTS, timeout=2.0))
        seconds = time.monotonic() - began
        found = table(journal_of(url), fates)
    print("\n".join(lines(found)))
    lost = sum(each - len(fate.records) + fate.repeated + fate.dropped for fate in fates)
    agents = sum(AGENTS - fate.agents for fate in fates)
    defects = sum(ends[INTERNAL] for ends in found.values())
    said = f"seed {seed}: {APIS * each} loops in {seconds:.0f} s, {len(found)} kinds of replies"
    print(f"{said}: {lost} not recorded once, {agents} agents lost, {defects} called a defect")
    return int(bool(lost or agents or defects))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
