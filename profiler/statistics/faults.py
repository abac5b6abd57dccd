"""Whether a strategy's figures describe our client instead of the system, and whose fault that was.

The client itself may be saturated, the machine busy with other work, the container throttled; where
nothing counted it, it cannot be told. `lateness` says how much of a figure is the client's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from profiler.records import NO_MODEL
from profiler.rundir import ClientHealth, Run
from profiler.statistics.figures import StrategySummary
from profiler.statistics.lateness import CAUTION, LIMIT_SECONDS, LIMIT_SHARE, worst

Fault = Literal["client_saturated", "machine_busy", "container_throttled", "client_late"]

SCHEDULE_LAG_SHARE = 0.05
"""How late loops may start, as a share of the median loop."""
CPU_LIMIT = 0.90
"""Share of one core."""
CPU_WEIGHT = 0.1
"""Of time that a process ran or waited to run, how much counts as lag when it is asked whose fault that was.

Lag that was sampled counts whole. What made no timer late may still have made answers late.
"""
WORTH_SAYING = 0.02
"""A share of the time that is not worth a word is below this."""
THROTTLED_SHARE = 0.2
"""Of the time for which a client was ready and did not run, what its quota must have kept it for."""

OUR_OTHERS = ("the emulator", "the master")
"""Processes of ours that run no loops, by their names in `Run.client`."""


def fault(healths: Sequence[ClientHealth]) -> Fault:
    """Whose fault it was that clients were late, from what they and the kernel counted in some trials."""
    own = machine = delayed = throttled = 0.0
    for health in healths:
        if health.delayed_seconds is None or health.machine_seconds is None:
            continue
        own += (health.held_seconds or 0.0) + CPU_WEIGHT * (health.cpu_seconds or 0.0)
        machine += health.machine_seconds + CPU_WEIGHT * health.delayed_seconds
        delayed += health.delayed_seconds
        throttled += health.throttled_seconds or 0.0
    if not own and not machine:
        busy = any((health.cpu or 0.0) > CPU_LIMIT for health in healths)
        return "client_saturated" if busy else "client_late"
    if throttled and throttled > THROTTLED_SHARE * delayed and machine > own:
        return "container_throttled"
    return "machine_busy" if machine > own else "client_saturated"


def judge(strategy: StrategySummary, healths: Sequence[ClientHealth]) -> tuple[float, str, Fault]:
    """(how bad, what is wrong with a strategy's figures, whose fault); nothing said when nothing is."""
    ran = [health for health in healths if health.process not in OUR_OTHERS]
    broken: list[tuple[float, str, Fault]] = []
    part, medians = worst(strategy.client_parts), _medians(strategy)
    if part is not None:
        if part.excess > CAUTION:
            ours, whole = _ms(part.late_seconds), _ms(part.seconds)
            said = f"{ours} of the {whole} of {part.figure} went by in the client"
            broken.append((part.excess, said, fault(ran)))
    elif medians:
        # Nothing was observed of each call: then any of them may have been as late as the loop's timers.
        lag = max((health.loop_lag_p99 or 0.0 for health in ran), default=0.0)
        excess = min(lag / LIMIT_SECONDS, lag / (LIMIT_SHARE * min(medians)))
        if excess > 1:
            said = f"the event loop was late by {_ms(lag)} at p99, beside a median of {_ms(min(medians))}"
            broken.append((excess, said, fault(ran)))
    late = max((_schedule_lag(health) for health in ran), default=0.0)
    median = strategy.loop_seconds.p50.value
    if median and late > max(LIMIT_SECONDS, SCHEDULE_LAG_SHARE * median):
        said = f"loops started {_ms(late)} late, more than 5 % of the median {_ms(median)}"
        broken.append((late / (SCHEDULE_LAG_SHARE * median), said, fault(ran)))
    for who, share in _busiest(healths, "a client process").items():
        if share > CPU_LIMIT:
            said = f"{who} kept a core {min(share, 1.0) * 100:.0f} % busy (limit 90 %)"
            broken.append((share / CPU_LIMIT, said, "client_saturated"))
    if not broken:
        return 0.0, "", "client_late"
    severity, _, whose = max(broken, key=lambda one: one[0])
    return severity, ", and ".join(said for _, said, _ in broken), whose


def _medians(strategy: StrategySummary) -> list[float]:
    """The medians that lateness is added to."""
    found = [strategy.loop_seconds.p50.value, strategy.phases.get("model")]
    found += [figures.seconds.p50.value for figures in strategy.tools.values()]
    return [median for median in found if median]


def _schedule_lag(health: ClientHealth) -> float:
    """How late loops started at p95; runs of old know p99."""
    return (
        health.schedule_lag_p95 if health.schedule_lag_p95 is not None else health.schedule_lag_p99
    ) or 0.0


def said_of(whose: Fault, healths: Sequence[ClientHealth], run: Run) -> tuple[str, str]:
    """(whose fault it was in words, the remedy)."""
    more = f"more workers (now {run.workers})" if run.workers < run.machine.cores else "another machine"
    counted = [
        ("its event loop was ready and did not run for {} of the time", [h.delayed_share for h in healths]),
        ("something waited for a processor for {}", [h.waited for h in healths]),
        ("its host took {} of a core", [h.stolen for h in healths]),
    ]
    known = [(words, max((share or 0.0 for share in shares), default=0.0)) for words, shares in counted]
    said = [words.format(f"{min(share, 1.0) * 100:.0f} %") for words, share in known if share >= WORTH_SAYING]
    if whose == "machine_busy":
        counts = f" ({', '.join(said)})" if said else ""
        return f"this machine is busy{counts}", "stop the other work, or use another machine"
    if whose == "container_throttled":
        counts = f" ({said[0]})" if said else ""
        return f"this container is throttled{counts}", "raise its CPU quota, or use fewer agents"
    fewer = f"use fewer agents or {more}"
    built_in = run.arguments.get("agent") is None and run.provider != NO_MODEL
    if built_in and run.arguments.get("client") == "sdk":
        costs = run.capacity.request_cpu if run.capacity is not None else {}
        beside = ""
        if len(costs) > 1:
            beside = f" ({_ms(costs['lean'])} of CPU a request, the SDK {_ms(costs['sdk'])})"
        fewer = f"use --client lean{beside}, fewer agents or {more}"
    if whose == "client_saturated":
        return "this client is saturated", fewer
    return "this client was late, cannot tell whose fault", f"stop other work on this machine, or {fewer}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def busiest(run: Run, client: str) -> dict[str, float]:
    """The largest share of a core that each kind of process used; those that run loops are the `client`."""
    return _busiest(run.client, client)


def _busiest(healths: Sequence[ClientHealth], client: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for health in healths:
        if health.cpu is not None:
            name = health.process if health.process in OUR_OTHERS else client
            found[name] = max(health.cpu, found.get(name, 0.0))
    return found
