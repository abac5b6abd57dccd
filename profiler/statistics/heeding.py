"""Whether an agent of the user's own heeds its strategy, and whether an adaptive limit can learn from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from profiler.strategies import StrategySpec

if TYPE_CHECKING:  # a load test's processes ask before they need any statistics
    from profiler.statistics.figures import AgentCalls, StrategySummary

AROUND_SHARE = 0.05
"""The share of the calls that may go around a limiter of something else than calls at once."""
UNTOLD_SHARE = 0.05
"""The share of the calls whose failure may teach a limit that adapts nothing."""
TOLD = frozenset(("http_429", "http_503", "http_529", "cancelled"))
"""Failures of calls that a limiter learns from, and those that are no failures of the tool."""


def counted(calls: int) -> str:
    """`1 call`, `2 calls`."""
    return f"{calls} call{'s' if calls != 1 else ''}"


def went_around(spec: StrategySpec, calls: AgentCalls, share: int) -> str | None:
    """How calls went around a strategy, in words; None where they did not."""
    if spec.kind not in ("sequential", "limited"):
        return None
    exceeded = ""
    for rule, most in zip(spec.rules or (None,), calls.most, strict=False):
        allowed = 1 if rule is None else rule.make(share).limit if rule.fixed_limit is not None else None
        # Without a call that went around it, more than the limit are tools that call tools; but what runs
        # through `execute` is of no tool, and of no server, by name.
        named = rule is not None and (rule.tool is not None or rule.scope == "server")
        if allowed is None or most <= allowed or not (calls.unlimited or named):
            continue
        name = None if rule is None else rule.tool or rule.server
        of = f" of {name}" if name else " of a server" if named else ""
        exceeded = f"it allows {counted(allowed)}{of} at once, and {most} ran at once"
        break
    if calls.calls and calls.unlimited >= calls.calls:
        said = f"none of {calls.calls} calls went through it"
        return f"{said}; {exceeded}" if exceeded else said
    around = f"{calls.unlimited} of {calls.calls} calls went around it"
    if exceeded:
        return f"{exceeded}; {around}"
    fixed = spec.kind == "sequential" or any(rule.fixed_limit is not None for rule in spec.rules)
    # Of calls that nobody saw it is not known how many ran at once.
    seen = fixed and calls.unobserved <= AROUND_SHARE * calls.calls
    return around if not seen and calls.unlimited > AROUND_SHARE * calls.calls else None


def untold(strategy: StrategySummary) -> str | None:
    """Failures that taught a limit which adapts nothing, in words; None where there are few."""
    calls = strategy.agent_calls
    if calls is not None and calls.unobserved > UNTOLD_SHARE * calls.calls:
        return (
            f"{calls.unobserved} of {calls.calls} calls ran in functions that are not watched: "
            "where the agent turns a failure into a result, it did not reach the limiter"
        )
    ran = sum(tool.calls for tool in strategy.tools.values())
    failed = sum(
        count
        for tool in strategy.tools.values()
        for reason, count in tool.error_types.items()
        if not (reason in TOLD or "timeout" in reason.lower())
    )
    if failed > UNTOLD_SHARE * ran:
        return (
            f"{failed} of {ran} calls failed in ways that do not reach the limiter, which heeds 429, 503, "
            "529 and timeouts"
        )
    return None
