"""The lines of Claude Code's sessions, in their order, by the session or the sub-agent that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

REPLY, RESULTS, STOP, FAILED, GAVE_UP = "reply", "results", "stop", "failed", "gave up"
NOTICE, SHOWN, COMMAND, PROMPT = "notice", "shown", "command", "prompt"

_ORDER = {
    kind: place
    for place, kind in enumerate((REPLY, RESULTS, FAILED, GAVE_UP, STOP, NOTICE, SHOWN, COMMAND, PROMPT))
}
"""Of lines of one time: what can only come after another."""


_AT_ONCE_NS = 2_000_000
_MESSAGES_AT_ONCE = 3


class Line(NamedTuple):
    """What a line of a session tells. `body` is of the kind (`claude_code`).

    `run` names the workflow that the sub-agent was one of.
    """

    at_ns: int
    kind: str
    session: str
    agent: str
    side: bool
    uuid: str
    parent: str
    run: str
    body: list[Any]


def in_order(lines: Sequence[Line]) -> list[Line]:
    """Lines in the order of their times, each of one time after the one that it names as its parent.

    So the order does not depend on that of the file. Lines without a parent of that time are in the order in
    which their kinds can follow each other, else in their places.
    """
    ordered: list[Line] = []
    for _, found in groupby(lines, attrgetter("at_ns")):
        together = list(found)
        if len(together) == 1:
            ordered += together
            continue
        parents = {line.uuid: line.parent for line in together if line.uuid}
        depths: dict[str, int] = {}
        for uuid in parents:
            chain: list[str] = []
            above = uuid
            while above in parents and above not in depths:
                depths[above] = 0  # until it is known: a chain may be a circle
                chain.append(above)
                above = parents[above]
            first = depths.get(above, -1) + 1
            depths.update((one, first + place) for place, one in enumerate(reversed(chain)))
        ordered += sorted(together, key=lambda line: (depths.get(line.uuid, 0), _ORDER.get(line.kind, 0)))
    return ordered


class Parts(NamedTuple):
    """The lines of each session, and of each sub-agent; who went on alone first comes first.

    `restored` is how many lines are left out (`_restored`).
    """

    parts: list[tuple[tuple[str, str], list[Line]]]
    restored: int


def parts_of(lines: Sequence[Line]) -> Parts:
    ordered = _with_names(lines)
    chains = _chains(ordered)
    parts: dict[tuple[str, str], list[Line]] = {}
    for line in ordered:
        agent = line.agent
        if line.side and not agent:
            agent = chains.get(line.uuid, "side")
        parts.setdefault((line.session, agent if line.side or agent else ""), []).append(line)
    left_out = {id_ for part in parts.values() for id_ in _restored(part)}
    if left_out:
        parts = {key: [line for line in part if id(line) not in left_out] for key, part in parts.items()}
    holders: dict[str, set[str]] = {}
    for line in (line for part in parts.values() for line in part if line.kind == REPLY):
        holders.setdefault(line.body[0], set()).add(line.session)

    def alone_ns(part: list[Line]) -> int:
        own = [one.at_ns for one in part if one.kind == REPLY and len(holders[one.body[0]]) == 1]
        return min(own, default=2**63)

    return Parts(
        sorted(
            ((key, part) for key, part in parts.items() if part),
            key=lambda part: (part[0][1] != "", alone_ns(part[1]), part[0]),
        ),
        len(left_out),
    )


def _restored(part: Sequence[Line]) -> set[int]:
    """Lines that tell no time, by their `id`: older versions wrote a session that was resumed down anew, with
    the time of that moment on its replies and results. Its prompts kept theirs.

    No model answers at once: several messages and the results between them, all within two milliseconds, were
    not made then. A prompt of that time right before them shows that the times of a recording are of no use
    altogether; then they stay.
    """
    found: set[int] = set()
    together: list[Line] = []
    prompt: Line | None = None

    def end() -> None:
        messages = {line.body[0] for line in together if line.kind == REPLY}
        if len(messages) < _MESSAGES_AT_ONCE or all(line.kind != RESULTS for line in together):
            return
        if prompt is None or not _at_once(prompt, together[0]):
            found.update(id(line) for line in together)

    for line in part:
        if line.kind == PROMPT or (together and not _at_once(together[-1], line)):
            end()
            together = []
        if line.kind == PROMPT:
            prompt = line
        else:
            together.append(line)
    end()
    if found:
        by_uuid = {line.uuid: line for line in part if line.uuid}
        for line in [one for one in part if id(one) in found]:
            above = by_uuid.get(line.parent)
            while above is not None and above.kind not in (REPLY, RESULTS) and id(above) not in found:
                found.add(id(above))
                above = by_uuid.get(above.parent)
    return found


def _at_once(one: Line, other: Line) -> bool:
    return abs(other.at_ns - one.at_ns) <= _AT_ONCE_NS


def _with_names(lines: Sequence[Line]) -> list[Line]:
    """The lines, each reply's named by its message, and by its request where several share one id."""
    requests: dict[str, set[str]] = {}
    for line in lines:
        if line.kind == REPLY:
            requests.setdefault(line.body[0], set()).add(line.body[1])
    several = {id_ for id_, found in requests.items() if len(found - {""}) > 1}

    def named(line: Line) -> Line:
        id_, request, *rest = line.body
        name = f"{id_}:{request}" if id_ in several else id_ or line.uuid
        return line._replace(body=[name, request, *rest])

    return [named(line) if line.kind == REPLY else line for line in lines]


def _chains(ordered: Sequence[Line]) -> dict[str, str]:
    """Older versions have sub-agents among the session's lines, without names: each is a chain of its own."""
    roots: dict[str, str] = {}
    latest = ""
    for line in ordered:
        if not line.side or line.agent:
            continue
        latest = roots.get(line.parent) or (latest if line.parent and latest else line.uuid or "side")
        roots[line.uuid] = latest
    return roots
