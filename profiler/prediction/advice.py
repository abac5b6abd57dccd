"""What a recording lacks to be predicted from, and what to record to have it. Pure."""

from __future__ import annotations

from profiler.prediction.fitting import Fitted, ServerFit
from profiler.prediction.servers.identify import FEWEST_CALLS
from profiler.prediction.support import FEWEST_LOOPS
from profiler.rundir import Run

MORE = 2
"""How many times the highest load the next one should be."""


def advice(fitted: Fitted) -> list[str]:
    """Which servers the recording took past their capacity, and what to add where it did not.

    A sentence for each of the two, without a full stop.
    """
    servers = [*fitted.servers, *([fitted.model] if fitted.model.calls else [])]
    if not fitted.servers:
        return ["no tool was called: there is nothing of their servers to predict from"]
    lines = []
    few = [one for one in servers if one.calls < FEWEST_CALLS]
    enough = [one for one in servers if one.calls >= FEWEST_CALLS]
    past = [one for one in enough if one.finding.identified and one.finding.rule.kind != "none"]
    below = [one for one in enough if one.finding.identified and one.finding.rule.kind == "none"]
    unclear = [one for one in enough if not one.finding.identified]
    if len(fitted.loops) < FEWEST_LOOPS:
        lines.append(
            f"{len(fitted.loops)} whole loops are too few to predict from: {FEWEST_LOOPS} are needed, and "
            "1,000 make narrow bands; a longer --duration has them"
        )
    if past:
        lines.append("past its capacity: " + ", ".join(map(_told, past)))
    if below:
        named = ", ".join(f"{one.name} (up to {_known(one)} at once)" for one in below)
        lines.append(
            f"not taken past its capacity: {named}: {_more(fitted.run)} to know it, or leave it: nothing "
            "above that can be predicted"
        )
    if unclear:
        lines.append("not understood: " + ", ".join(map(_told, unclear)))
    if few:
        named = ", ".join(f"{one.name} ({one.calls})" for one in few)
        lines.append(
            f"too few calls to know anything of it: {named}: {FEWEST_CALLS} are needed; a longer --duration "
            "has them"
        )
    return lines


def _told(one: ServerFit) -> str:
    return f"{one.name} ({one.finding.sentence})"


def _known(one: ServerFit) -> int:
    return max(int(one.finding.seen[1]), one.busiest)


def _more(run: Run) -> str:
    """What to change so that more calls run at once."""
    if all(spec.limit is not None for spec in run.strategies):
        return "add --strategy gathered, which limits nothing,"
    if run.arguments.get("max_in_flight") is not None:
        return "raise --max-in-flight"
    levels = sorted({trial.users for trial in run.trials} or {run.load.users})
    return f"add a level: --levels {','.join(map(str, [*levels, MORE * levels[-1]]))}"
