"""What the sessions of coding agents have in common: which tools wait, and which ends were written late."""

from __future__ import annotations

from collections.abc import Sequence

from profiler.recordings.drafts import CallDraft

AGENT_TOOLS = frozenset(("Agent", "Task", "spawn_agent"))
"""Tools that run a sub-agent."""

WAITS = frozenset(
    (
        "write_stdin",
        "wait_agent",
        "wait",
        "resume_agent",
        "BashOutput",
        "TaskOutput",
        "AgentOutputTool",
    )
)
"""Tools that only wait for what another call began (`ToolCall.wait`)."""

TOGETHER_NS = 10_000_000_000
"""Messages without a reply between them were said together if no more than this lies between."""

RESULT_ALONE = "results of calls that are not in the recording"
UNLINKED = "loops of sub-agents of which nothing says which call they ran in"
"""A note (`Skipped.kept`)."""
NO_VERDICT = "calls of which nothing says whether they failed: taken for good"
"""A note (`Skipped.kept`)."""

_TOGETHER_NS = 20_000_000
"""Results that were waiting for the one before them are written within this of it."""


def mark_late(calls: Sequence[CallDraft]) -> None:
    """Marks the calls of a round whose results may have been ready before they were written down.

    Codex writes the results in the order in which the calls were asked for, so that a quick one waits for a
    slow one before it. One that was written right after another may have: its place in time is a guess.
    """
    before_ns: int | None = None
    for call in calls:
        if call.ended_ns is None or call.started_ns is not None:
            continue
        if before_ns is not None and 0 <= call.ended_ns - before_ns <= _TOGETHER_NS:
            call.ended_late = True
        before_ns = call.ended_ns
