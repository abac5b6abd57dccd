"""What was read, on disk, until all of it can be put in order.

Recordings come in any order, and one file tells of many loops at once. So what was read is sorted on disk:
by group, and in a group by time. The database has no name: no other process can open it, and it is gone when
this process ends, however it does. It lies where the system keeps temporary files (`TMPDIR`).
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

from profiler.errors import RecordError
from profiler.recordings.formats import Item

_BATCH = 512
_CACHE_MB = 16


class SpoolError(RecordError):
    """The disk is full, or otherwise of no use."""


class Placed(NamedTuple):
    """A record on its way, and where it came in: `number` counts from 1."""

    number: int
    id: str
    parent: str | None
    line: bytes


def _key(*parts: str) -> int:
    """A name as a number that no other name has (64 bits of a hash)."""
    digest = blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


class Spool:
    """Use as a context; afterwards nothing is left of it. Raises `SpoolError` where the disk is full."""

    def __init__(self) -> None:
        self._items: list[tuple[int, int, int, int, bytes]] = []
        self._links: list[tuple[int, int]] = []
        self._db = sqlite3.connect("", isolation_level=None)
        self._numbered = 0
        for statement in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            f"PRAGMA cache_size = -{_CACHE_MB * 1024}",
            "PRAGMA temp_store = FILE",
            "CREATE TABLE items (grp INTEGER, at INTEGER, place INTEGER, file INTEGER, data BLOB)",
            "CREATE TABLE links (link INTEGER, grp INTEGER, PRIMARY KEY (link, grp)) WITHOUT ROWID",
            "CREATE TABLE roots (grp INTEGER PRIMARY KEY, root INTEGER)",
            "CREATE TABLE records (number INTEGER PRIMARY KEY, started INTEGER, ended INTEGER, id TEXT,"
            " parent TEXT, line BLOB)",
            "CREATE TABLE keys (key INTEGER, number INTEGER, position INTEGER)",
            "CREATE TABLE spawned (key INTEGER, number INTEGER)",
            "CREATE TABLE inner_loops (outer_number INTEGER, position INTEGER, number INTEGER PRIMARY KEY)",
            "BEGIN",
        ):
            self._db.execute(statement)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    def add(self, format: int, file: int, item: Item) -> None:
        """Keep an item of the format of this number, from the file of this number.

        Raises `ValueError` where there is something in it that JSON cannot say.
        """
        try:
            data = orjson.dumps((item.id, item.version, item.data, item.group, item.link))
            group = _key(str(format), item.group)
        except (orjson.JSONEncodeError, AttributeError, TypeError) as error:
            raise ValueError(str(error)) from error
        if item.link is not None:
            self._links.append((_key(str(format), item.link), group))
        self._items.append((group, item.at_ns, item.place, file, bytes((format,)) + data))
        if len(self._items) >= _BATCH:
            self._flush()

    def groups(self) -> Iterator[tuple[int, list[tuple[int, Item]]]]:
        """(number of the format, its items with the files that they came from) of each group.

        Groups with a link in common are one. The items are in order of their times, those of one time of
        their places, those of one place of what is in them: not of the order in which they came.
        """
        self._flush()
        self._join_groups()
        rows = self._rows(
            "SELECT coalesce(root, items.grp) AS whole, at, place, file, data FROM items"
            " LEFT JOIN roots ON roots.grp = items.grp ORDER BY whole, at, place, data"
        )
        group, format = None, 0
        items: list[tuple[int, Item]] = []
        for whole, at, place, file, blob in rows:
            if whole != group:
                if items:
                    yield format, items
                group, format, items = whole, blob[0], []
            id, version, data, name, link = orjson.loads(memoryview(blob)[1:])
            items.append((file, Item(name, at, data, id, version, link, place)))
        if items:
            yield format, items
        with self._failing():
            self._db.execute("DROP TABLE items")

    def keep(self, line: bytes, id: str, started_ns: int, ended_ns: int, parent: str | None) -> int:
        """Keep a record; returns its number."""
        self._numbered += 1
        with self._failing():
            self._db.execute(
                "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)",
                (self._numbered, started_ns, ended_ns, id, parent, line),
            )
        return self._numbered

    def call(self, key: str, number: int, position: int) -> None:
        """The call of this key is that of this position in the record of this number."""
        with self._failing():
            self._db.execute("INSERT INTO keys VALUES (?, ?, ?)", (_key(key), number, position))

    def ran_inside(self, key: str, number: int) -> None:
        """The loop of this record ran inside the call of this key."""
        with self._failing():
            self._db.execute("INSERT INTO spawned VALUES (?, ?)", (_key(key), number))

    def join_loops(self) -> tuple[dict[int, int], int]:
        """(number of the record inside which it ran, by the number of the inner one; how many found none)."""
        for statement in (
            "CREATE INDEX by_key ON keys (key)",
            "CREATE INDEX by_id ON records (id)",
        ):
            self._execute(statement)
        outers: dict[int, int] = {}
        rows = list(
            self._rows(
                "SELECT spawned.number, keys.number, keys.position FROM spawned"
                " JOIN keys ON keys.key = spawned.key JOIN records ON records.number = keys.number"
                " WHERE keys.number != spawned.number"
                " ORDER BY spawned.number, records.started, records.ended, records.line, keys.position"
            )
        )
        for number, outer, position in rows:
            if number not in outers and not _inside(outer, number, outers):
                outers[number] = outer
                self._execute("INSERT INTO inner_loops VALUES (?, ?, ?)", (outer, position, number))
        by_id = self._rows(
            "SELECT inner_.number, min(outer_.number) FROM records AS inner_"
            " JOIN records AS outer_ ON outer_.id = inner_.parent"
            " WHERE inner_.parent IS NOT NULL GROUP BY inner_.number ORDER BY inner_.number"
        )
        for number, outer in list(by_id):
            if number not in outers and not _inside(outer, number, outers):
                outers[number] = outer
        (alone,) = next(
            self._rows(
                "SELECT count(*) FROM (SELECT number FROM spawned UNION"
                " SELECT number FROM records WHERE parent IS NOT NULL)"
            )
        )
        return outers, alone - len(outers)

    def repeated_ids(self) -> dict[int, str]:
        """A new id for each record whose id another one has that comes before it, by its number."""
        taken: dict[str, int] = {}
        renamed: dict[int, str] = {}
        rows = self._rows(
            "SELECT number, id FROM records WHERE id IN"
            " (SELECT id FROM records GROUP BY id HAVING count(*) > 1) ORDER BY started, ended, id, line"
        )
        for number, id in rows:
            taken[id] = taken.get(id, 0) + 1
            if taken[id] > 1:
                renamed[number] = f"{id}-{taken[id]}"
        return renamed

    def id_of(self, number: int) -> str:
        (id,) = next(self._rows("SELECT id FROM records WHERE number = ?", (number,)))
        return str(id)

    def inside(self, number: int) -> list[tuple[int, int]]:
        """(position of a call, number of a record that ran inside it) of the record of this number."""
        return list(
            self._rows(
                "SELECT position, records.number FROM inner_loops JOIN records USING (number)"
                " WHERE outer_number = ? ORDER BY position, started, ended, id, line",
                (number,),
            )
        )

    def records(self) -> Iterator[Placed]:
        """All records by their starts."""
        rows = self._rows("SELECT number, id, parent, line FROM records ORDER BY started, ended, id, line")
        return (Placed(*row) for row in rows)

    def _join_groups(self) -> None:
        shared = self._rows(
            "SELECT link, grp FROM links WHERE link IN"
            " (SELECT link FROM links GROUP BY link HAVING count(*) > 1) ORDER BY link, grp"
        )
        roots: dict[int, int] = {}
        link, first = None, 0
        for of_link, group in shared:
            if of_link != link:
                link, first = of_link, group
            one, other = _root(first, roots), _root(group, roots)
            if one != other:
                # The smaller one, so that the order in which they came is of no account.
                roots[max(one, other)] = min(one, other)
        for group in list(roots):
            self._execute("INSERT INTO roots VALUES (?, ?)", (group, _root(group, roots)))

    def _flush(self) -> None:
        with self._failing():
            self._db.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?)", self._items)
            self._db.executemany("INSERT OR IGNORE INTO links VALUES (?, ?)", self._links)
        self._items.clear()
        self._links.clear()

    def _execute(self, statement: str, values: tuple[object, ...] = ()) -> None:
        with self._failing():
            self._db.execute(statement, values)

    def _rows(self, query: str, values: tuple[object, ...] = ()) -> Iterator[tuple[Any, ...]]:
        with self._failing():
            yield from self._db.execute(query, values)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise SpoolError(
                f"the temporary file in which recordings are sorted: {error} (TMPDIR says where it is)"
            ) from error


def _root(group: int, roots: dict[int, int]) -> int:
    top = group
    while (above := roots.get(top)) is not None:
        top = above
    while group != top:  # the next one finds it at once
        roots[group], group = top, roots[group]
    return top


def _inside(number: int | None, other: int, outers: dict[int, int]) -> bool:
    """Whether the record of one number is the other, or ran inside it."""
    while number is not None:
        if number == other:
            return True
        number = outers.get(number)
    return False
