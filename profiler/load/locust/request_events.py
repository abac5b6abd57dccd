"""Finished loops as Locust's request events: fired one by one, or put into its statistics in batches."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from locust import stats as locust_stats

from profiler.load.output import Reported

_LOCUSTS_OWN = "locust.runners"


class RequestEvents:
    """Takes the request events of finished loops, on a greenlet of Locust's.

    Where nobody listens but Locust's own runner, which only counts them, they are counted here in batches, in
    the way in which a master takes the statistics of its workers, at a small part of the cost: there are some
    eight of them a loop. Where a Locust file listens, each is fired.
    """

    def __init__(self, environment: Any) -> None:
        self._hook = environment.events.request
        self._stats = environment.stats

    def __call__(self, events: Sequence[Reported]) -> None:
        counted: dict[tuple[str, str], list[float]] = defaultdict(list)
        batches = self._is_only_counted()
        for event in events:
            if batches and event.exception is None:
                counted[event.name, event.request_type].append(event.response_time)
            else:
                self._fire(event)
        for (name, kind), times in counted.items():
            self._count(name, kind, times)

    def _is_only_counted(self) -> bool:
        # Its list of listeners has no public name; without it each event is fired.
        listeners: list[Any] = getattr(self._hook, "_handlers", [])
        return bool(listeners) and all(getattr(one, "__module__", "") == _LOCUSTS_OWN for one in listeners)

    def _fire(self, event: Reported) -> None:
        self._hook.fire(
            request_type=event.request_type,
            name=event.name,
            response_time=event.response_time,
            response_length=0,
            exception=event.exception,
            context={},
        )

    def _count(self, name: str, kind: str, times: Sequence[float]) -> None:
        now = time.time()
        batch = locust_stats.StatsEntry(self._stats, name, kind)
        batch.num_requests = len(times)
        batch.total_response_time = sum(times)
        batch.min_response_time, batch.max_response_time = min(times), max(times)
        # By the name in its module, which is where people put another one.
        batch.response_times = Counter(map(locust_stats.bucket_response_time, times))
        batch.num_reqs_per_sec = {int(now): len(times)}
        batch.last_request_timestamp = now
        self._stats.entries[name, kind].extend(batch)
        self._stats.total.extend(batch)
