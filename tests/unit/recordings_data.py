"""What a format makes of lines, without a spool: the loops of each group, and what was skipped."""

from __future__ import annotations

import copy
import io
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from profiler.recordings.drafts import LoopDraft, Tally, record_of
from profiler.recordings.formats import Format, Item, Skipped, Source
from profiler.records import LoopRecord


class Read(NamedTuple):
    drafts: list[LoopDraft]
    skipped: Counter[str]
    notes: Counter[str]


def jsonl(rows: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def read(format: Format, *files: bytes, names: tuple[str, ...] = (), content: bool = False) -> Read:
    """The drafts of some files, in the order of their groups and starts."""
    groups: dict[str, dict[object, Item]] = {}
    link_of: dict[str, str] = {}
    result = Read([], Counter(), Counter())

    def skip(one: Skipped) -> None:
        (result.notes if one.kept else result.skipped)[one.reason] += one.count

    for number, data in enumerate(files):
        name = names[number] if number < len(names) else f"file{number}.jsonl"
        for one in format.read(Source(Path(name), name, io.BytesIO(data)), content):
            if isinstance(one, Skipped):
                skip(one)
                continue
            item = one._replace(data=orjson.loads(orjson.dumps(one.data)))  # kept on disk meanwhile
            group = groups.setdefault(one.group, {})
            if one.link is not None:
                first = link_of.setdefault(one.link, one.group)
                if first != one.group:  # joined: the other group's items move over
                    groups[first].update(group)
                    groups[one.group] = groups[first]
                    group = groups[first]
                    link_of = {link: first if at == one.group else at for link, at in link_of.items()}
            key = (one.group, one.id) if one.id is not None else object()
            before = group.get(key)
            if before is None or before.version < one.version:
                group[key] = item
    seen: list[int] = []
    for group in groups.values():
        if id(group) in seen:
            continue
        seen.append(id(group))
        items = sorted(group.values(), key=lambda item: (item.at_ns, item.place, json.dumps(item.data)))
        for loop in format.loops(items, content):
            if isinstance(loop, Skipped):
                skip(loop)
            else:
                result.drafts.append(copy.deepcopy(loop))  # as it is when it is handed over
    return result


def records(drafts: Iterable[LoopDraft], origin_ns: int) -> list[LoopRecord]:
    """The records, by their starts."""
    made = [record_of(draft, Tally(), origin_ns) for draft in drafts]
    return sorted(made, key=lambda record: (record.started_ns, record.id))
