"""The table of a run, kept beside its records, so that it is made from them once.

`columns.bin` holds what `table.Table` holds, and where in the file the line of each loop begins: numbers and
names that the records hold too. It is a cache. It may be deleted at any time, and whatever is wrong with it
costs the time of reading the records again: it is of other records or of other code, it is torn, it cannot be
written. It is told from that of other records by their size, the time of their last change, and their ends:
whoever edits the middle of a file in place, and then puts its time back, deletes the cache too.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import zlib
from array import array
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from profiler import records
from profiler.process.modes import opener_like
from profiler.rundir import RunDirectory
from profiler.statistics.servers import ServerCalls
from profiler.statistics.table import Ints, Table, tabulate

COLUMNS = "columns.bin"

LEAST_BYTES = 4_000_000
"""Records of fewer bytes are read in a tenth of a second, and nothing is kept."""

CODE = (
    *("anatomy", "errors", "records", "statistics", "statistics.quantiles", "statistics.serial"),
    *("statistics.servers", "statistics.table"),
)
"""The modules that say what a column holds: a cache of other code is none."""

_TEXTS = ("strategies", "tools", "server_names", "errors", "shortfalls")
_ARRAYS = tuple(one.name for one in fields(Table) if one.name not in (*_TEXTS, "servers"))
_END_BYTES = 4096
_MAGIC = b"toolcall"


@dataclass(frozen=True, slots=True)
class KeptTable:
    """The table of a file of records, and the byte at which the line of each loop begins."""

    table: Table
    lines: Ints


def table_of(directory: RunDirectory) -> Table:
    """The table of a run directory. Raises `RecordError` with file and line."""
    return kept_table(directory.records_path).table


def kept_table(path: Path) -> KeptTable:
    """The table of a file of records, from `COLUMNS` beside it where that is its own.

    Else from the records, and then kept there, unless they are few or have grown meanwhile. Raises
    `RecordError` with file and line.
    """
    key = _key(path)
    if key is not None and (kept := _read(path.with_name(COLUMNS), key)) is not None:
        return kept
    lines = array("q")
    table = tabulate(records.read(path, lines))
    made = KeptTable(table, np.frombuffer(lines, np.int64) if lines else np.empty(0, np.int64))
    if key is not None and key["size"] >= LEAST_BYTES and _key(path) == key:
        _write(path.with_name(COLUMNS), key, made)
    return made


def _key(path: Path) -> dict[str, Any] | None:
    """What tells the records, and the code that reads them, from others; None where that is not known."""
    code = _code()
    if code is None:
        return None
    try:
        with open(path, "rb") as file:
            state = os.fstat(file.fileno())
            ends = hashlib.blake2b(file.read(_END_BYTES), digest_size=16)
            file.seek(max(0, state.st_size - _END_BYTES))
            ends.update(file.read(_END_BYTES))
    except OSError:
        return None
    return {"code": code, "size": state.st_size, "mtime_ns": state.st_mtime_ns, "ends": ends.hexdigest()}


@functools.cache
def _code() -> str | None:
    found = hashlib.blake2b(f"{sys.byteorder} {sys.version_info[:2]}".encode(), digest_size=16)
    root = Path(__file__).parents[1]
    try:
        for module in (*CODE, "statistics.columns"):
            path = root.joinpath(*module.split("."))
            found.update((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_bytes())
    except OSError:  # without its sources
        return None
    return found.hexdigest()


# The file: 8 bytes, the length and the checksum of the head (8 bytes each), the head as JSON, and the arrays,
# each at a multiple of 8 bytes from their beginning. The head has the length and the checksum of all arrays:
# a machine that was switched off may have left a file of the right length without its content.


def _write(path: Path, key: Mapping[str, Any], kept: KeptTable) -> None:
    """Keep a table, in one step; a directory that cannot be written has none."""
    servers, columns = kept.table.servers.kept()
    arrays = {
        **{name: getattr(kept.table, name) for name in _ARRAYS},
        **{f"servers.{name}": np.frombuffer(column, np.int64) for name, column in columns.items()},
        "lines": kept.lines,
    }
    places, offset, checksum = [], 0, 0
    for name, values in arrays.items():
        places.append((name, values.dtype.str, values.shape, offset))
        for part in _parts(values):
            checksum = zlib.crc32(part, checksum)
            offset += len(part)
    head = orjson.dumps(
        {
            "key": key,
            "bytes": offset,
            "crc32": checksum,
            "texts": {name: getattr(kept.table, name) for name in _TEXTS},
            "servers": servers,
            "arrays": places,
        }
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb", opener=opener_like(path.parent)) as file:
            file.write(_MAGIC + b"".join(n.to_bytes(8, "little") for n in (len(head), zlib.crc32(head))))
            file.write(head)
            for values in arrays.values():
                for part in _parts(values):
                    file.write(part)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()


def _parts(values: Ints) -> tuple[memoryview, bytes]:
    """The bytes of an array, and those that fill it up to a multiple of 8."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data, bytes(-values.nbytes % 8)


def _read(path: Path, key: Mapping[str, Any]) -> KeptTable | None:
    """The table of a file, None where it is not whole, or not of these records."""
    try:
        with open(path, "rb") as file:
            head = _head(file)
            if head is None or head["key"] != key:
                return None
            content = np.fromfile(file, np.uint8)  # `read` would need twice the memory for a moment
        if content.size != head["bytes"] or zlib.crc32(content.data) != head["crc32"]:
            return None
        content.flags.writeable = False
        found: dict[str, Any] = {
            name: np.frombuffer(content, dtype, int(np.prod(shape)), offset).reshape(shape)
            for name, dtype, shape, offset in head["arrays"]
        }
        servers = {name[8:]: found.pop(name) for name in [*found] if name.startswith("servers.")}
        lines = found.pop("lines")
        table = Table(**head["texts"], **found, servers=ServerCalls.again(head["servers"], servers))
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
    ):  # what it holds was not written by this code
        return None
    return KeptTable(table, lines)


def _head(file: BinaryIO) -> dict[str, Any] | None:
    if file.read(8) != _MAGIC:
        return None
    length, checksum = (int.from_bytes(file.read(8), "little") for _ in range(2))
    if length > os.fstat(file.fileno()).st_size:
        return None
    head = file.read(length)
    found: dict[str, Any] | None = orjson.loads(head) if zlib.crc32(head) == checksum else None
    return found
