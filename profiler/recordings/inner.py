"""Which loops ran inside which calls: `LoopDraft.spawned_by` becomes `ToolCall.loops`. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from profiler.recordings.drafts import CallDraft, LoopDraft, rounds_in_order
from profiler.records import LoopRecord


def calls_in_order(draft: LoopDraft) -> Iterator[CallDraft]:
    """The calls of a loop as its record has them: the place of each is its position here."""
    for round_ in rounds_in_order(draft):
        yield from round_.calls


def inner_of(drafts: Sequence[LoopDraft]) -> dict[str, list[tuple[int, str]]]:
    """By the id of an outer loop: (the position of its call, the id of a loop that ran inside it)."""
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    if any(one.spawned_by is not None for one in drafts):
        places = {
            call.key: (draft.id, position)
            for draft in drafts
            for position, call in enumerate(calls_in_order(draft))
            if call.key is not None
        }
        for one in drafts:
            if one.spawned_by in places:
                outer, position = places[one.spawned_by]
                found[outer].append((position, one.id))
    return found


def with_inner(record: LoopRecord, inner: Iterable[tuple[int, str]]) -> LoopRecord:
    """The record, its calls saying which loops ran inside them: (position of the call, id of the loop)."""
    ids: dict[int, list[str]] = defaultdict(list)
    for place, id in inner:
        ids[place].append(id)
    if not ids:
        return record
    rounds = []
    position = 0
    for round_ in record.rounds:
        calls = []
        for call in round_.tool_calls:
            calls.append(replace(call, loops=(*call.loops, *ids[position])) if position in ids else call)
            position += 1
        rounds.append(replace(round_, tool_calls=tuple(calls)))
    return replace(record, rounds=tuple(rounds))
