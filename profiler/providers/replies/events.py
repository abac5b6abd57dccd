"""Server-sent events, decoded as their bytes arrive."""

from __future__ import annotations

from typing import NamedTuple

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def begins_stream(chunk: bytes) -> bool:
    """Whether a body that does not say so begins as a stream of events: by the first letter of a field."""
    return chunk.lstrip().removeprefix(_BYTE_ORDER_MARK).lstrip()[:1] in (b"d", b"e", b"i", b"r", b":")


class Event(NamedTuple):
    """One event: its name (empty without one) and its data, the lines of which are joined by newlines."""

    name: str
    data: bytes


def _plain(chunk: bytes) -> list[Event] | None:
    """The events of a chunk of whole ones with one line of data each, as most are; None of any other."""
    if chunk[-2:] != b"\n\n" or b"\r" in chunk:
        return None
    events: list[Event] = []
    for lines in chunk[:-2].split(b"\n\n"):
        name, data = "", lines
        if lines[:7] == b"event: ":
            first, _, data = lines.partition(b"\n")
            name = first[7:].strip().decode("utf-8", "replace")
        if data[:6] != b"data: " or b"\n" in data:
            return None
        events.append(Event(name, data[6:]))
    return events


class EventStream:
    """Splits bytes into events, as the HTML standard says: any line ending, comments, data of many lines.

    Bytes may be cut anywhere. An event that no blank line ends is given by `end`, which the standard would
    drop: some servers close their stream without one.
    """

    def __init__(self) -> None:
        self._line: list[bytes] = []  # pieces of a line that has not ended; joined once, not with each piece
        self._began = False
        self._after_return = False  # the last byte was a carriage return: a line feed next belongs to it
        self._name = ""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that these bytes complete."""
        if self._is_between and (plain := _plain(chunk)) is not None:
            self._began = True
            return plain
        if b"\r" in chunk or self._after_return:
            if self._after_return and chunk:
                chunk = chunk.removeprefix(b"\n")
                self._after_return = False
            self._after_return = self._after_return or chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in chunk:
            if chunk:
                self._line.append(chunk)
            return []
        first, *lines = chunk.split(b"\n")
        if self._line:
            first = b"".join((*self._line, first))
        rest = lines.pop() if lines else b""
        self._line = [rest] if rest else []
        events: list[Event] = []
        self._read(first, events)
        for line in lines:
            self._read(line, events)
        return events

    @property
    def _is_between(self) -> bool:
        """Whether nothing of the next event has come."""
        return not (self._line or self._data or self._name or self._after_return)

    def end(self) -> list[Event]:
        """The stream has ended: the event that was still open, if any."""
        events: list[Event] = []
        if self._line:
            line, self._line = b"".join(self._line), []
            self._read(line, events)
        self._read(b"", events)
        return events

    def _read(self, line: bytes, events: list[Event]) -> None:
        if not self._began:
            self._began = True
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if line.startswith(b"data:"):
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
        elif not line:
            if self._data:
                data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                events.append(Event(self._name, data))
                self._data = []
            self._name = ""
        elif line.startswith(b"event:"):
            self._name = line[6:].strip().decode("utf-8", "replace")
        elif line == b"data":
            self._data.append(b"")
