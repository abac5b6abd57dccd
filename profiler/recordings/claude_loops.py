"""The loops of Claude Code's sessions, and in which calls those of their sub-agents ran.

A session that another was resumed or forked from is in the file of both: each reply counts once, in the
session that went on first without the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from profiler.recordings.claude_lines import Line, parts_of
from profiler.recordings.claude_thread import Asked, Loop, Thread
from profiler.recordings.drafts import LoopDraft
from profiler.recordings.formats import Skipped
from profiler.recordings.sessions import AGENT_TOOLS, RESULT_ALONE, UNLINKED

COPIED = "replies that are copies of another session's (resumed or forked)"
RESTORED = "lines whose times were written over when their session was resumed"
OWN = "loops that Claude Code ran for itself (to summarise, to suggest), inside no call"
"""A note (`Skipped.kept`)."""
NO_FILE = (
    "calls of sub-agents (Agent, Task) whose own files are not in what was imported: what they called, and "
    "their tokens, are missing"
)
"""A note (`Skipped.kept`)."""

_OWN = re.compile(r"a([a-z]+(?:_[a-z]+)*)-[0-9a-f]{4,}")
"""The names that Claude Code gives its own requests beside a conversation: `acompact-53a066`."""


def loops_of(lines: Sequence[Line], source: str, resolution_ns: int) -> Iterator[LoopDraft | Skipped]:
    """The loops of all lines of the sessions that have replies in common."""
    parts, restored = parts_of(lines)
    seen: set[str] = set()
    copies = alone = unlinked = own = 0
    asked: list[Asked] = []
    threads = []
    forked = {part[0].parent for (_, agent), part in parts if agent} - {""}
    places: dict[str, Loop] = {}
    for (session, agent), part in parts:
        thread = Thread(session, agent, source, resolution_ns, seen)
        thread.follow(part, forked, places)
        seen |= thread.replies
        copies += thread.copies
        alone += thread.alone
        asked += thread.asked
        threads.append(thread)
    calls = {id_: thread for thread in threads for id_ in thread.open}
    for thread in threads:
        for id_, (at_ns, result) in thread.early.items():
            # What Claude Code forks off to summarise may have the only copy of the result before it.
            other = calls.pop(id_, None)
            if other is None:
                alone += 1
            else:
                other.came_back(at_ns, result)
    for thread in threads:
        for loop in thread.loops if thread.agent else ():
            itself = _OWN.fullmatch(thread.agent)
            own += itself is not None
            outer = places.get(thread.after)
            if not _link(loop, thread, asked, guess=itself is None) and not _fork(loop, outer):
                unlinked += itself is None
            if itself is not None:
                loop.draft.agent = itself[1]
    for thread in threads:
        yield from (loop.draft for loop in thread.loops)
    ran = [
        one for one in asked if one.call.name in AGENT_TOOLS and (one.agent or one.call.own_ns is not None)
    ]
    for reason, number, kept in (
        (COPIED, copies, False),
        (RESTORED, restored, False),
        (RESULT_ALONE, alone, False),
        (UNLINKED, unlinked, True),
        (OWN, own, True),
        (NO_FILE, sum(one.call.key is None for one in ran), True),
    ):
        if number:
            yield Skipped(reason, number, kept=kept)


def _fork(loop: Loop, outer: Loop | None) -> bool:
    """Put a loop that went on from a line of another one inside that one."""
    if outer is None or outer is loop or outer.copied:
        return False
    loop.draft.parent = outer.draft.id
    return True


def _link(loop: Loop, thread: Thread, asked: list[Asked], *, guess: bool) -> bool:
    """Find the call that a sub-agent's loop ran in: by the id of the agent or of its workflow; else by the
    prompt that they share; else, with `guess`, the only call of an agent that was running then
    (`LoopDraft.ambiguous_calls`)."""
    began_ns = loop.draft.started_ns or 0
    running = [one for one in asked if one.asked_ns <= began_ns]
    found = [one for one in running if one.agent and one.agent in (thread.agent, thread.run)]
    guessed = False
    if not found:
        found = [one for one in running if not one.agent and not one.taken and one.prompt_hash]
        found = [one for one in found if one.prompt_hash == loop.prompt_hash]
        guessed = len(found) > 1
        found = found[:1] if guessed else found
    if not found:
        found = [
            one
            for one in running
            if not one.agent
            and not one.taken
            and one.call.name in AGENT_TOOLS
            and (one.call.ended_ns is None or one.call.ended_ns >= began_ns)
        ]
        if len(found) != 1 or not guess:
            return False
        guessed = True
    one = found[-1]
    one.taken = True
    one.call.key = loop.draft.spawned_by = f"{loop.draft.source}:{one.call.id}"
    loop.draft.agent = one.kind
    loop.draft.ambiguous_calls += guessed
    return True
