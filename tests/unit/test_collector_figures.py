"""The collector's own metrics, as an independent reader of Prometheus' text sees them."""

from __future__ import annotations

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from profiler import metrics
from profiler.collector.figures import Figures

GAUGES = {metric: 1.5 for metric in metrics.COLLECTOR_TABLE if metric.kind == "gauge"}


@pytest.mark.parametrize("openmetrics", [False, True])
def test_counts_and_gauges_are_rendered(openmetrics):
    figures = Figures()
    figures.count(metrics.COLLECTOR_SPANS, by=7)
    figures.count(metrics.COLLECTOR_REQUESTS, "traces", "200")
    text = figures.render(GAUGES, openmetrics).decode() + ("# EOF\n" if openmetrics else "")
    families = list((open_metrics if openmetrics else text_string_to_metric_families)(text))
    samples = {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}
    assert len(families) == len(metrics.COLLECTOR_TABLE)
    assert samples["toolloop_collector_spans_total",] == 7
    assert samples["toolloop_collector_requests_total", "traces", "200"] == 1
    assert samples["toolloop_collector_spans_dropped_total", "late"] == 0  # from zero on
    assert samples["toolloop_collector_open_traces",] == 1.5
    assert figures.total(metrics.COLLECTOR_SPANS) == 7


def test_the_collectors_metrics_are_none_of_every_process():
    assert not set(metrics.COLLECTOR_TABLE) & set(metrics.TABLE)
    assert {metric.kind for metric in metrics.COLLECTOR_TABLE} == {"counter", "gauge"}
