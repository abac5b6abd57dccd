"""The collector's own counts, as text for `/metrics`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from profiler import metrics
from profiler.metrics import Metric

Labels = tuple[str, ...]


class Figures:
    """Counts by metric and labels. Written on one thread; rendering reads while that goes on."""

    def __init__(self) -> None:
        self._counts: dict[Metric, Counter[Labels]] = {
            metric: Counter() for metric in metrics.COLLECTOR_TABLE if metric.kind == "counter"
        }
        # From zero, since a rate never counts the value at which a counter first appears.
        self._counts[metrics.COLLECTOR_SPANS][()] = 0
        for reason in ("of no agent", "repeated", "late", "unreadable"):
            self._counts[metrics.COLLECTOR_SPANS_DROPPED][reason,] = 0
        for end in ("root", "remote", "idle", "bound", "stopped"):
            self._counts[metrics.COLLECTOR_LOOPS][end,] = 0

    def count(self, metric: Metric, *labels: str, by: int = 1) -> None:
        """So many more."""
        self._counts[metric][labels] += by

    def total(self, metric: Metric, *labels: str) -> int:
        """The count so far."""
        return self._counts[metric][labels]

    def counts(self, metric: Metric) -> list[tuple[Labels, int]]:
        """All of its counts, by their labels."""
        return list(self._counts[metric].items())

    def render(self, gauges: Mapping[Metric, float], openmetrics: bool = False) -> bytes:
        """All of them as text, with the gauges as they stand now."""
        lines: list[str] = []
        for metric in metrics.COLLECTOR_TABLE:
            family = metric.name
            if openmetrics and metric.kind == "counter":
                family = family.removesuffix("_total")
            lines.append(f"# HELP {family} {metric.help}\n# TYPE {family} {metric.kind}\n")
            if metric.kind == "gauge":
                lines.append(f"{metric.name} {gauges[metric]}\n")
                continue
            for labels, value in self.counts(metric):
                pairs = ",".join(f'{name}="{said}"' for name, said in zip(metric.labels, labels, strict=True))
                lines.append(f"{metric.name}{f'{{{pairs}}}' if pairs else ''} {value}\n")
        return "".join(lines).encode()
