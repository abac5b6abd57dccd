"""Request events of finished loops in Locust's own statistics: in batches, they come to the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# In a process of its own, since Locust patches the one that imports it.
PROGRAM = """
import json
from locust import stats
from locust.env import Environment

from profiler.load.locust.request_events import RequestEvents
from profiler.load.output import Reported

FIGURES = ("num_requests", "num_failures", "min_response_time", "max_response_time", "avg_response_time",
           "total_response_time", "median_response_time", "response_times", "num_none_requests")
TIMES = [0.0, 3.25, 3.75, 147.0, 147.875, 3432.0, 58760.0, 99.625, 1000.0]  # whose sums are exact
EVENTS = [Reported(kind, name, time + place, None)
          for place, time in enumerate(TIMES) for kind, name in (("LOOP", "a"), ("TOOL", "a"), ("TOOL", "b"))]
EVENTS += [Reported("TOOL", "b", 12.0, "http_429"), Reported("LOOP", "c", 5.0, "http_429")]


def shown(environment):
    entries = [*environment.stats.entries.values(), environment.stats.total]
    rows = {f"{e.method} {e.name}": [getattr(e, figure) for figure in FIGURES] for e in entries}
    rows = {key: [sorted(map(list, v.items())) if isinstance(v, dict) else v for v in row]
            for key, row in rows.items()}
    rates = {f"{e.method} {e.name}": sum(e.num_reqs_per_sec.values()) for e in entries}
    errors = sorted((e.method, e.name, e.error, e.occurrences) for e in environment.stats.errors.values())
    return [rows, rates, errors]


def environment():
    made = Environment()
    made.create_local_runner()
    return made


def fired(made):
    for e in EVENTS:
        made.events.request.fire(request_type=e.request_type, name=e.name, response_time=e.response_time,
                                 response_length=0, exception=e.exception, context={})
    return shown(made)


def told(made, parts=1):
    events = RequestEvents(made)
    hook, count = made.events.request, [0]
    fire = hook.fire
    def counted(**kwargs):
        count[0] += 1
        fire(**kwargs)
    hook.fire = counted
    for part in range(parts):
        events(EVENTS[part::parts])
    return shown(made), count[0]


heard = []
listened = environment()
listened.events.request.add_listener(lambda **kwargs: heard.append(kwargs["name"]))
stats.bucket_response_time, usual = lambda time: 7, stats.bucket_response_time
own_buckets = told(environment())[0][0]["LOOP a"][7]
stats.bucket_response_time = usual
print(json.dumps({"fired": fired(environment()), "batch": told(environment()),
                  "parts": told(environment(), 3), "listened": told(listened), "heard": len(heard),
                  "events": len(EVENTS), "own_buckets": own_buckets}))
"""


def shown() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_batches_come_to_what_events_one_by_one_do() -> None:
    found = shown()
    fired, (batch, fires), (parts, _) = found["fired"], found["batch"], found["parts"]
    assert batch == parts == fired
    assert fires == 2  # the failures, which Locust counts by what they say
    assert fired[0]["LOOP a"][:4] == [9, 0, 0.0, 58766.0]
    assert fired[2] == [["LOOP", "c", "http_429", 1], ["TOOL", "b", "http_429", 1]]
    # Where somebody listens, each is fired.
    listened, fires = found["listened"]
    assert listened == fired
    assert fires == found["heard"] == found["events"] == 29
    assert found["own_buckets"] == [[7, 9]]
