"""The ids, times and attributes of spans, in every encoding that exporters and trace stores have.

Each function takes whatever a file holds and raises `ValueError`, `TypeError`, `KeyError` or `AttributeError`
where it is no such value.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from profiler.recordings.genai import Event
from profiler.recordings.genai_replies import parsed, unix_ns

KINDS = {"UNSPECIFIED": 0, "INTERNAL": 1, "SERVER": 2, "CLIENT": 3, "PRODUCER": 4, "CONSUMER": 5}
STATUS = {"UNSET": 0, "OK": 1, "ERROR": 2}
LATEST_NS = 2**62
"""Times from here on are none: a record could not hold them."""


def identity(value: Any, size: int) -> str:
    """An id of so many bytes as hexadecimal, from that, 0x…, base64 or a number; "" for none or zero."""
    if isinstance(value, int) and not isinstance(value, bool):
        text = format(value, "x")
    elif isinstance(value, str):
        text = value.removeprefix("0x").removeprefix("0X")
        if len(text) != 2 * size and text.endswith("=") and len(text) == (24 if size == 16 else 12):
            try:
                text = base64.b64decode(text, validate=True).hex()
            except (binascii.Error, ValueError):
                return text
        else:
            text = text.lower()
    else:
        return ""
    if not text.strip("0"):
        return ""
    return text.rjust(2 * size, "0")


def enum(value: Any, names: Mapping[str, int]) -> int:
    """A number, its text, or a name: `SPAN_KIND_CLIENT`, `SpanKind.CLIENT`, `Client`."""
    if isinstance(value, int):
        return int(value)
    if not isinstance(value, str):
        return 0
    if value.isdigit():
        return int(value)
    word = value.upper().rpartition(".")[2]
    return names.get(word.removeprefix("SPAN_KIND_").removeprefix("STATUS_CODE_"), 0)


def time_ns(value: Any) -> int:
    """Unix ns from a number of ns, its text, or an ISO time. Raises ValueError."""
    if isinstance(value, str) and not value.isdigit():
        at_ns = unix_ns(value)
        if at_ns is None:
            raise ValueError(f"not a time: {value[:40]!r}")
        return at_ns
    return int(value)


def end_ns(value: Any) -> int | None:
    """None for a span that has not ended: without an end, or with the zero of its type."""
    if value is None or value == "":
        return None
    try:
        at_ns = time_ns(value)
    except (TypeError, ValueError):
        return None
    return at_ns if 0 < at_ns < LATEST_NS else None


_MS, _US = 1_000_000, 1000
_MILLISECONDS = re.compile(r"[.,]\d{3}(?!\d)")


def stored_time(value: Any) -> tuple[int, int]:
    """Unix ns, and the tick in ns, of a time in whatever unit a store or a data frame has it.

    An ISO time; JavaScript's `[seconds, nanoseconds]`, also as an object; a number of seconds (with a
    fraction), or of ms, µs or ns: of this century they are told apart by their size.
    """
    if isinstance(value, dict):
        value = [value["0"], value["1"]]
    if isinstance(value, list):
        seconds, rest = value
        return int(seconds) * 10**9 + int(rest), 1
    if isinstance(value, str) and not value.isdigit():
        return time_ns(value), _MS if _MILLISECONDS.search(value) else _US
    if isinstance(value, float) and value < 1e11:
        return round(value * _MS) * _US, _US
    number = int(value)
    for unit in (_MS, _US):
        if 10**18 // 2 <= number * unit < 10**19 // 2:
            return number * unit, unit
    return number, 1


def _stored_ns(value: Any) -> int:
    return stored_time(value)[0]


def stored_end(value: Any) -> int | None:
    """As `end_ns`, of times as in `stored_time`."""
    if value is None or value == "":
        return None
    try:
        at_ns = _stored_ns(value)
    except (TypeError, ValueError, KeyError, OverflowError):
        return None
    return at_ns if 0 < at_ns < LATEST_NS else None


def events_of(events: Any) -> list[Event]:
    """Events of a span that can be read."""
    result: list[Event] = []
    for one in events if isinstance(events, list) else ():
        if not isinstance(one, dict):
            continue
        key = next((key for key in _EVENT_TIMES if key in one), "time")
        read = time_ns if key in _EVENT_TIMES[:2] else _stored_ns
        try:
            result.append((text(one.get("name")), read(one.get(key)), attributes_of(one.get("attributes"))))
        except (TypeError, ValueError, KeyError, OverflowError):
            continue
    return result


_EVENT_TIMES = ("timeUnixNano", "time_unix_nano", "timestamp", "time")


def attributes_of(attributes: Any) -> dict[str, Any]:
    """Attributes by their names: from OTLP's list, from a plain map, or from either as JSON text. Maps in
    maps, as stores keep them (`{"llm": {"model_name": …}}`), are made flat."""
    if isinstance(attributes, str):
        attributes = parsed(attributes)
    if isinstance(attributes, dict):
        return (
            _flat(attributes) if any(isinstance(attributes.get(one), dict) for one in _NESTED) else attributes
        )
    result: dict[str, Any] = {}
    for one in attributes if isinstance(attributes, list) else ():
        if isinstance(one, dict):
            key, value = one.get("key", one.get("Key")), one.get("value", one.get("Value"))
            if isinstance(key, str):
                result[key] = _value(value)
    return result


_NESTED = ("gen_ai", "llm", "openinference", "traceloop", "ai")
_DEPTH = 12


def _flat(nested: Mapping[str, Any], before: str = "", depth: int = 0) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, given in nested.items():
        value = given
        if isinstance(given, list) and given and all(isinstance(one, dict) for one in given):
            value = {str(place): one for place, one in enumerate(given)}
        if isinstance(value, dict) and depth < _DEPTH:
            result |= _flat(value, f"{before}{key}.", depth + 1)
        else:
            result[before + key] = value
    return result


def _value(value: Any) -> Any:
    """What an `AnyValue` holds. Integers may be text; NaN and the infinities are."""
    if not isinstance(value, dict):
        return value
    if "Type" in value:
        return value.get("Value")
    for key, one in value.items():
        kind = _VALUES.get(key)
        if kind == "int":
            return int(one) if isinstance(one, str) else one
        if kind == "double":
            return float(one) if isinstance(one, str) else one
        if kind == "plain":
            return one
        if kind == "array":
            inner = one.get("values") if isinstance(one, dict) else one
            return [_value(part) for part in inner or ()]
        if kind == "map":
            return attributes_of(one.get("values") if isinstance(one, dict) else one)
    return None


_VALUES = {
    "stringValue": "plain",
    "string_value": "plain",
    "boolValue": "plain",
    "bool_value": "plain",
    "bytesValue": "plain",
    "bytes_value": "plain",
    "intValue": "int",
    "int_value": "int",
    "doubleValue": "double",
    "double_value": "double",
    "arrayValue": "array",
    "array_value": "array",
    "kvlistValue": "map",
    "kvlist_value": "map",
}


def text(value: Any) -> str:
    return value if isinstance(value, str) else ""
