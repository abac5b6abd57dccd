"""Rules as promtool runs them: for every alert a case that fires and one that does not."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

import pytest
import yaml

from profiler import dashboards
from tests.integration.prometheus_process import needed
from tools.dashboards import rules

LOOP = "toolloop_loop_duration_seconds"
PHASE = "toolloop_round_phase_seconds_total"
WALL = "toolloop_tool_phase_wall_seconds_total"
LONGEST = "toolloop_tool_phase_critical_path_seconds_total"


@dataclass(frozen=True)
class Case:
    """Series (as promtool writes values, one every `interval`) and how many of the alert fire at `minute`."""

    alert: str
    fires: int
    minute: int
    series: dict[str, str]
    interval: str = "1m"


def loops(good: str, every: str, job: str = "api", testid: str = "") -> dict[str, str]:
    """Loops that ended well within the objective, and all of them, in promtool's notation."""
    labels = f'job="{job}",strategy="gathered",status="ok"' + (f',testid="{testid}"' if testid else "")
    return {f'{LOOP}_bucket{{{labels},le="25.6"}}': good, f"{LOOP}_count{{{labels}}}": every}


def share(name: str, of: str, part: str, whole: str, strategy: str = "gathered", job: str = "api") -> dict:
    labels = f'job="{job}",strategy="{strategy}"'
    return {f"{name}{{{labels}}}": part, f"{of}{{{labels}}}": whole}


def phases(queue: str, tools: str, strategy: str = "gathered") -> dict[str, str]:
    return {
        f'{PHASE}{{job="api",strategy="{strategy}",phase="queue"}}': queue,
        f'{PHASE}{{job="api",strategy="{strategy}",phase="tools"}}': tools,
    }


def parts(session: str, client: str, server: str) -> dict[str, str]:
    name = 'toolloop_mcp_call_part_seconds_sum{job="api",strategy="gathered",server="docs"'
    return {
        f'{name},part="session_wait"}}': session,
        f'{name},part="client_wait"}}': client,
        f'{name},part="server"}}': server,
    }


def lag(on_time: str, every: str) -> dict[str, str]:
    name = 'toolloop_event_loop_lag_seconds_bucket{job="api",instance="i"'
    return {f'{name},le="0.04"}}': on_time, f'{name},le="0.08"}}': every, f'{name},le="+Inf"}}': every}


REFUSED = (
    'toolloop_rate_limited_total{job="api",strategy="gathered",target="model",name="gpt-4o",reason="429"}'
)
OVERFLOW = 'toolloop_label_overflow_total{job="api",label="tool"}'
DROPPED = 'toolloop_records_dropped_total{job="api",instance="i",sink="jsonl"}'

CASES = [
    # 20 of 100 loops fail: 20 times the budget of 1 in 100. Or 8 of 100.
    Case("ToolloopSLOFastBurn", 1, 90, loops("0+80x120", "0+100x120")),
    Case("ToolloopSLOFastBurn", 0, 90, loops("0+92x120", "0+100x120")),
    # It was bad, and is over: the long window still says so, the short one does not.
    Case("ToolloopSLOFastBurn", 0, 75, loops("0+50x60 3100+100x60", "0+100x60 6100+100x60")),
    Case("ToolloopSLOFastBurn", 0, 90, loops("0+0x120", "0+0x120")),
    Case("ToolloopSLOSlowBurn", 1, 420, loops("0+92x450", "0+100x450")),
    Case("ToolloopSLOSlowBurn", 0, 420, loops("0+96x450", "0+100x450")),
    Case("ToolloopSLOTestBurn", 1, 9, loops("0+70x48", "0+100x48", testid="t1"), "15s"),
    Case("ToolloopSLOTestBurn", 0, 9, loops("0+95x48", "0+100x48", testid="t1"), "15s"),
    Case("ToolloopSLOTestBurn", 0, 9, loops("0+70x48", "0+100x48"), "15s"),  # production has its own
    Case("ToolloopRateLimited", 1, 15, {REFUSED: "0+30x20"}),
    Case("ToolloopRateLimited", 0, 15, {REFUSED: "0+3x20"}),
    Case("ToolloopRateLimited", 0, 15, {REFUSED: "0+0x10 60+0x10"}),  # one burst
    Case("ToolloopQueueDominates", 1, 15, phases("0+40x20", "0+20x20")),
    Case("ToolloopQueueDominates", 0, 15, phases("0+20x20", "0+40x20")),
    Case("ToolloopQueueDominates", 0, 15, phases("0+40x20", "0+20x20", strategy="sequential")),
    # Half of the waits are a lock of the session, half of them the client's connections.
    Case("ToolloopMCPClientWaits", 1, 15, parts("0+20x20", "0+20x20", "0+30x20")),
    Case("ToolloopMCPClientWaits", 0, 15, parts("0+10x20", "0+10x20", "0+30x20")),
    Case("ToolloopMCPClientWaits", 0, 15, parts("0+0x20", "0+0x20", "0+0x20")),  # no calls
    Case("ToolloopLowEfficiency", 1, 25, share(LONGEST, WALL, "0+20x30", "0+60x30")),
    Case("ToolloopLowEfficiency", 0, 25, share(LONGEST, WALL, "0+40x30", "0+60x30")),
    Case("ToolloopLowEfficiency", 0, 25, share(LONGEST, WALL, "0+20x30", "0+60x30", strategy="sequential")),
    Case("ToolloopLowEfficiency", 0, 25, share(LONGEST, WALL, "0+20x30", "0+60x30", strategy="recorded")),
    Case("ToolloopGeneratorSaturated", 1, 8, lag("0+80x40", "0+100x40"), "15s"),
    Case("ToolloopGeneratorSaturated", 0, 8, lag("0+100x40", "0+100x40"), "15s"),
    Case("ToolloopLabelOverflow", 1, 8, {OVERFLOW: "0 0 0 5+0x10"}),
    Case("ToolloopLabelOverflow", 0, 8, {OVERFLOW: "0+0x10"}),
    Case("ToolloopRecordsDropped", 1, 5, {DROPPED: "0 0 0 5+0x10"}),
    Case("ToolloopRecordsDropped", 0, 5, {DROPPED: "0+0x10"}),
    *(
        Case("ToolloopRecordingIncomplete", fires, 8, {series: values})
        for series in (
            'toolloop_collector_spans_dropped_total{job="c",instance="i",reason="late"}',
            'toolloop_collector_spans_dropped_total{job="c",instance="i",reason="unreadable"}',
            'toolloop_collector_loops_total{job="c",instance="i",end="bound"}',
            'toolloop_proxy_unobserved_total{job="c",instance="i"}',
            'toolloop_proxy_defects_total{job="c",instance="i"}',
        )
        for fires, values in ((1, "0 0 0 5+0x10"), (0, "0+0x10"))
    ),
    # Other spans than those of agents, and what a sender sent again, are as they should be.
    Case(
        "ToolloopRecordingIncomplete",
        0,
        8,
        {
            'toolloop_collector_spans_dropped_total{job="c",instance="i",reason="of no agent"}': "0+9x10",
            'toolloop_collector_spans_dropped_total{job="c",instance="i",reason="repeated"}': "0+9x10",
            'toolloop_collector_loops_total{job="c",instance="i",end="idle"}': "0+9x10",
        },
    ),
    Case("ToolloopMetricsVanished", 1, 40, loops("0+1x20", "0+1x20")),
    Case("ToolloopMetricsVanished", 0, 40, loops("0+1x60", "0+1x60")),
    Case("ToolloopMetricsVanished", 0, 40, loops("0+1x20", "0+1x20", testid="t1")),  # a test ends
]


def test_every_alert_fires_and_does_not():
    names = {alert.name for alert in rules.alerts()}
    assert {case.alert for case in CASES if case.fires} == names
    assert {case.alert for case in CASES if not case.fires} == names


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{c.alert}-{'fires' if c.fires else 'silent'}-{i}" for i, c in enumerate(CASES)]
)
def test_alert(case: Case, tmp_path):
    promtool = needed("promtool")
    dashboards.write(tmp_path)
    alert = next(a for a in rules.alerts() if a.name == case.alert)
    # Which labels and texts an alert has is read off the run: here it counts whether it fires.
    tests = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": case.interval,
                "input_series": [{"series": s, "values": v} for s, v in case.series.items()],
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}}) or vector(0)',
                        "eval_time": f"{case.minute}m",
                        "exp_samples": [{"labels": "{}", "value": case.fires}],
                    }
                ],
            }
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump(tests))
    run = subprocess.run([promtool, "test", "rules", path], capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, f"{alert.expr}\n{run.stdout}{run.stderr}"


def test_the_texts_of_an_alert_name_what_it_is_about(tmp_path):
    promtool = needed("promtool")
    dashboards.write(tmp_path)
    case = next(c for c in CASES if c.alert == "ToolloopRateLimited" and c.fires)
    tests = {
        "rule_files": ["rules.yml"],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": s, "values": v} for s, v in case.series.items()],
                "alert_rule_test": [
                    {
                        "alertname": case.alert,
                        "eval_time": "15m",
                        "exp_alerts": [
                            {
                                "exp_labels": {
                                    "severity": "ticket",
                                    "job": "api",
                                    "strategy": "gathered",
                                    "target": "model",
                                    "name": "gpt-4o",
                                },
                                "exp_annotations": {
                                    "summary": "gpt-4o refuses attempts of api",
                                    "description": "0.50 attempts a second are refused for a quota of model "
                                    "gpt-4o under gathered.",
                                    "runbook_url": "dashboards/README.md#toolloopratelimited",
                                },
                            }
                        ],
                    }
                ],
            }
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump(tests))
    run = subprocess.run([promtool, "test", "rules", path], capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stdout + run.stderr


def test_promtool_accepts_rules_and_configuration(tmp_path):
    promtool = needed("promtool")
    dashboards.write(tmp_path)
    for command in (["check", "rules", "rules.yml"], ["check", "config", "prometheus.yml"]):
        run = subprocess.run([promtool, *command], cwd=tmp_path, capture_output=True, text=True, timeout=250)
        assert run.returncode == 0, run.stderr
        assert "SUCCESS" in run.stdout
