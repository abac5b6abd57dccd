"""Prometheus and Grafana around the dashboards: configuration as text, pinned, on loopback alone."""

from __future__ import annotations

from profiler.dashboards import DATASOURCE_UID

PROMETHEUS_IMAGE = "prom/prometheus:v3.5.0"
GRAFANA_IMAGE = "grafana/grafana:12.1.0"
METRICS_PORT = 9464

_BUILT = "# Built by `profiler dashboards`: change the code, not this file.\n"


def prometheus() -> str:
    """`prometheus.yml`."""
    return (
        _BUILT
        + f"""\
global:
  scrape_interval: 5s # no shorter: a scrape costs the process that is measured
  evaluation_interval: 15s

rule_files:
  - rules.yml

scrape_configs:
  - job_name: toolloop
    static_configs:
      - targets: ["127.0.0.1:{METRICS_PORT}"]
    # More processes (the workers of a load test): files with [{{"targets": ["127.0.0.1:9465"]}}].
    file_sd_configs:
      - files: ["targets/*.json"]
        refresh_interval: 5s
"""
    )


def compose() -> str:
    """`compose.yaml`. Host networking, so that processes that listen on loopback can be scraped."""
    return (
        _BUILT
        + f"""\
name: toolloop

services:
  prometheus:
    image: {PROMETHEUS_IMAGE}
    network_mode: host # to reach /metrics on 127.0.0.1; both services listen there and nowhere else
    command:
      - --config.file=/etc/prometheus/prometheus.yml
      - --storage.tsdb.path=/prometheus
      - --storage.tsdb.retention.time=30d
      - --web.listen-address=127.0.0.1:9090
      - --enable-feature=exemplar-storage
    volumes:
      - ./prometheus.yml:/etc/prometheus/prometheus.yml:ro
      - ./rules.yml:/etc/prometheus/rules.yml:ro
      - ./targets:/etc/prometheus/targets:ro
      - prometheus:/prometheus

  grafana:
    image: {GRAFANA_IMAGE}
    network_mode: host
    environment:
      GF_SERVER_HTTP_ADDR: 127.0.0.1
      GF_SERVER_HTTP_PORT: "3000"
      GF_AUTH_ANONYMOUS_ENABLED: "true"
      GF_AUTH_ANONYMOUS_ORG_ROLE: Viewer
      GF_AUTH_DISABLE_LOGIN_FORM: "true"
      GF_ANALYTICS_REPORTING_ENABLED: "false"
      GF_ANALYTICS_CHECK_FOR_UPDATES: "false"
      GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH: /var/lib/grafana/dashboards/toolloop.json
    volumes:
      - ./provisioning:/etc/grafana/provisioning:ro
      - ./toolloop.json:/var/lib/grafana/dashboards/toolloop.json:ro
      - ./test-runs.json:/var/lib/grafana/dashboards/test-runs.json:ro

volumes:
  prometheus:
"""
    )


def datasources(uid: str | None) -> str:
    """Grafana's provisioned data source, with where an exemplar leads to."""
    return (
        _BUILT
        + f"""\
apiVersion: 1
datasources:
  - name: Prometheus
    uid: {uid or DATASOURCE_UID}
    type: prometheus
    access: proxy
    url: http://127.0.0.1:9090
    isDefault: true
    jsonData:
      timeInterval: 5s # the scrape interval; $__rate_interval is four of them
      exemplarTraceIdDestinations:
        # A trace viewer on this machine. For a trace store that is a data source of Grafana:
        # `datasourceUid: <its uid>` in place of `url`.
        - name: trace_id
          url: http://127.0.0.1:16686/trace/$${{__value.raw}}
          urlDisplayLabel: Trace
"""
    )


def providers() -> str:
    """Grafana's provisioned dashboards."""
    return (
        _BUILT
        + """\
apiVersion: 1
providers:
  - name: toolloop
    folder: Tool-calling agents
    type: file
    options:
      path: /var/lib/grafana/dashboards
"""
    )


def readme(runbook: str) -> str:
    """`README.md`: how to see one's own agent, what is proven, and what to do about an alert."""
    return f"""\
# Grafana for tool-calling loops

`toolloop.json` shows loops, in a load test and in production; `test-runs.json` lists load tests and links
into it. All files here are built by `profiler dashboards --out DIR [--datasource UID] [--prefix P]`.

1. Show the metrics: `profiler compare … --metrics-port {METRICS_PORT}`, or in a service
   `Profiler().serve_metrics({METRICS_PORT})`. With `ToolLoop`: `sink = PrometheusSink()` (of
   `profiler.exporters.prometheus`), `ToolLoop(…, sinks=[sink])`, and `sink.serve({METRICS_PORT})`, or
   `registry.register(sink)` with a registry that is served already.
2. **Nothing installed yet:** `docker compose up` in this directory, then <http://127.0.0.1:3000>: no
   login, read-only, this machine alone. Docker Desktop needs host networking switched on. More processes
   go into `targets/*.json`: a run directory's `targets.json` is such a file.
3. **Prometheus and Grafana exist:** scrape the port every 5 s or slower, load `rules.yml`, start
   Prometheus with `--enable-feature=exemplar-storage`, and import both JSON files; they ask for nothing
   but the data source (a variable).
4. **Kubernetes:** scrape the pods' port with a PodMonitor (or the `prometheus.io/` annotations), put
   `rules.yml`'s groups into a PrometheusRule, and each JSON file into a ConfigMap with the label that
   your Grafana's dashboard sidecar looks for.
5. A load test carries a `testid`, production none: choose it at the top to see one, or All to see both
   side by side.

## What is proven

Tests let a real Prometheus scrape a real run, then put every query of every panel, variable, annotation
and rule to it: each returns data, and the figures agree with the records of the run. promtool checks the
rules and lets every alert fire and not fire. The files pass through Grafana's own schema library
unchanged. Not proven: how it looks. No Grafana runs in the tests, so colours, transformations (tables,
bars) and links have been checked against the schema only; neither have the images been started.

## Choices

- The SLO of the alerts is 99 % of loops well within 25.6 s; the threshold of the *SLO* row can be chosen
  among the bucket bounds.
- Prometheus forgets nothing between two strategies that take turns: figures of *Verdict* and the
  comparison are over the whole time range, so all strategies of a test show, and graphs have gaps where a
  strategy did not run.
- Counters are extrapolated to the window's ends by `increase`: for counts to the last unit, and for
  confidence intervals, use the run directory and `profiler compare`.
- `runbook_url` in `rules.yml` is a path in this repository; put your own base in front when you copy the
  rules.

## Runbook

{runbook}"""
