"""Objectives and gates as users write them."""

from __future__ import annotations

import pytest

from profiler.errors import UsageError
from profiler.statistics.objectives import check_gates, parse_gates, parse_objective


def test_objective_is_limits_by_name() -> None:
    found = parse_objective("p95<2s, errors<1%")
    assert found.latency == {"p95": 2.0}
    assert found.errors == pytest.approx(0.01)
    assert found.limit_seconds == 2.0


def test_units_and_the_highest_quantile() -> None:
    found = parse_objective("p50<800ms,p99<=1.5m")
    assert found.latency == {"p50": 0.8, "p99": 90.0}
    assert found.limit_seconds == 90.0
    assert parse_objective("p50<2min").latency == {"p50": 120.0}
    assert parse_objective("errors<0.5%").limit_seconds is None
    assert parse_objective("errors<100%").errors == 1.0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "objective '': expected something like"),
        ("p95>2s", "expected something like p95<2s"),
        ("p95<2", "expected something like"),
        ("p95<2%", "expected a time"),
        ("p95<0s", "expected a time"),
        ("p42<2s", "unknown 'p42': expected p50, p95, p99 or errors"),
        ("errors<1s", "errors are a percentage"),
        ("errors<101%", "errors are a percentage"),
        ("p95<2s,p95<3s", "p95 is limited twice"),
        ("errors<2%,errors<3%", "errors are limited twice"),
        ("p95<2s,", "objective ''"),
    ],
)
def test_wrong_objective_is_explained(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        parse_objective(spec)


def test_gates_have_a_direction() -> None:
    found = parse_gates("p95 > +5%, goodput < -10%,errors>+1%")
    assert [(gate.metric, gate.threshold) for gate in found] == [
        ("p95", 0.05),
        ("goodput", -0.1),
        ("errors", 0.01),
    ]
    assert found[0].text == "p95 > +5%"
    assert parse_gates("goodput < -99%, throughput < -5%")[0].threshold == -0.99
    assert parse_gates("p95 > +100%")[0].threshold == 1.0


def test_gates_on_one_run_have_units() -> None:
    found = parse_gates("p50 > 800ms, p95>2s,p99 > 1.5 m, errors > 0%", "throughput < 300/m, goodput < 5/s")
    assert [(gate.metric, pytest.approx(gate.threshold)) for gate in found] == [
        ("p50", 0.8),
        ("p95", 2.0),
        ("p99", 90.0),
        ("errors", 0.0),
        ("throughput", 5.0),
        ("goodput", 5.0),
    ]
    assert not any(gate.relative for gate in found)
    assert [gate.upward for gate in found] == [True] * 4 + [False] * 2


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("semaphore:8: p95 > 2s, errors > 1%", ["semaphore:8", "semaphore:8"]),
        ("p95 > 2s, semaphore:8: p99 > 3s, gathered: p50 > 1s", [None, "semaphore:8", "gathered"]),
        ("semaphore:search=2,get_weather=4: p95 > 2s", ["semaphore:search=2,get_weather=4"]),
        ("rate:500/min,burst=10+semaphore:8@agent:p95>2s", ["rate:500/min,burst=10+semaphore:8@agent"]),
        ("eager:all: p95 > +5%, errors > +1%", ["eager:all", "eager:all"]),
        ("my own, v2: p95 > 2s", ["my own, v2"]),
    ],
)
def test_strategy_before_a_gate_holds_for_those_after_it(spec: str, names: list[str | None]) -> None:
    found = parse_gates(spec)
    assert [gate.strategy for gate in found] == names
    assert all(not gate.text.startswith(str(gate.strategy)) for gate in found)
    # Another --fail-on begins anew.
    assert parse_gates(spec, "p95 > 9s")[-1].strategy is None


def test_gate_is_refused_where_it_cannot_be_judged() -> None:
    known = ["gathered", "semaphore:8"]
    check_gates(parse_gates("semaphore:8: p95 > 2s, errors > 1%"), known)
    check_gates(parse_gates("gathered: p95 > +5%, p95 > 2s"), known, runs=2)
    with pytest.raises(UsageError, match=r"'semaphore:9' here \(did you mean 'semaphore:8'\?\)"):
        check_gates(parse_gates("semaphore:9: p95 > 2s"), known)
    with pytest.raises(UsageError, match="a change is between two recorded runs"):
        check_gates(parse_gates("p95 > +5%"), known)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("p95 > 5%", "expected something like 'p95 > 2s' of one run, 'p95 > "),
        ("", "gate '': expected something like"),
        ("p95 > 2s,", "gate '': expected something like"),
        ("p95 > 2", "expected something like 'p95 > 2s'"),
        ("p95 > 0s", "expected something like 'p95 > 2s'"),
        ("p95 < 2s", "a worse p95 is more: expected 'p95 > 2s'"),
        ("goodput > 5/s", "a worse goodput is less: expected 'goodput < 5/s'"),
        ("goodput < 5s", "expected something like 'goodput < 5/s'"),
        ("errors > 1s", "expected something like 'errors > 1%'"),
        ("errors > 100%", "expected something like 'errors > 1%'"),
        ("p95 > +5s", "a change is a percentage, such as 'p95 > "),
        ("semaphore:8 p95 > 2s", "expected something like"),
        (": p95 > 2s", "expected something like"),
        ("p95 < +5%", r"a worse p95 is more: expected 'p95 > \+5%'"),
        ("goodput > +5%", "a worse goodput is less: expected 'goodput < -5%'"),
        ("speed > +5%", "unknown 'speed'"),
        ("goodput < -100%", "nothing can fall by 100 %"),
    ],
)
def test_wrong_gate_is_explained(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_gates(spec)


def test_wrong_objective_names_its_source_when_known() -> None:
    with pytest.raises(UsageError, match=r"^--slo: objective 'p95': "):
        parse_objective("p95", "--slo")
    with pytest.raises(UsageError, match=r"^objective 'p95': "):
        parse_objective("p95")
