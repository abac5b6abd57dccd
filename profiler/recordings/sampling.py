"""The share of all traces that was kept, as OpenTelemetry's samplers write it into W3C's `tracestate`.

    ot=th:c                   a trace was kept if its random 56 bits were at least 0xc0000000000000: a quarter
    ot=th:0                   every trace was kept
    vendor=1,ot=rv:…;th:8     half; beside what others wrote

Without it nobody knows: older samplers write nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_BITS = 56
# Python's SDK prints the pairs in words of its own: {key=ot, value=th:c}.
_THRESHOLD = re.compile(r"(?:^|[\s,=])ot(?:=|, value=)(?:[^,;}]*;)*th:([0-9a-f]{1,14})(?![^;,}\s'])")


def share_of(tracestate: str) -> float | None:
    """The share that a `tracestate` tells; None where it tells none."""
    found = _THRESHOLD.search(tracestate) if "th:" in tracestate else None
    if found is None:
        return None
    # The digits that it leaves out are zeros at its end.
    return 1 - int(found[1].ljust(_BITS // 4, "0"), 16) / (1 << _BITS)


def agreed(shares: Iterable[float | None]) -> float | None:
    """The share that all tell alike; None where one tells another, or none."""
    different = set(shares)
    return different.pop() if len(different) == 1 else None
