"""Rows in the shape of TraceLab's `round_trace.jsonl`, as many as are asked for: what an import has to bear.

    python -m benchmarks.tracelab_rows 350000 > /tmp/round_trace.jsonl

Sessions of some dozens of rounds, some of them at the same time, each round with 0 to 5 calls; a row takes
1 to 4 kB. Nothing in it is of anybody's: names and times are drawn.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import orjson

_START_MS = 1_757_840_400_000
_TOOLS = (
    ("claude", ("Bash", "Read", "Grep", "Edit", "WebFetch", "Agent")),
    ("codex", ("exec_command", "apply_patch", "write_stdin", "update_plan")),
)
_OPEN_SESSIONS = 8


def rows(count: int, seed: int) -> Iterator[bytes]:
    """`count` lines, the newline at their end included; the same for the same seed."""
    draw = random.Random(seed)
    made = 0
    sessions: list[Iterator[bytes]] = []
    number = 0
    while made < count:
        while len(sessions) < _OPEN_SESSIONS:
            sessions.append(_session(number, draw))
            number += 1
        which = draw.randrange(len(sessions))
        row = next(sessions[which], None)
        if row is None:
            del sessions[which]
            continue
        yield row
        made += 1


def _session(number: int, draw: random.Random) -> Iterator[bytes]:
    provider, names = _TOOLS[number % 2]
    session = f"{provider}:{draw.getrandbits(64):016x}"
    now_ms = _START_MS + number * 37_000
    inputs = [("user_message", now_ms)]
    total, turn = 9_000, 0
    for index in range(draw.randint(8, 90)):
        turn += inputs[0][0] == "user_message"
        fresh = draw.randint(200, 3_000)
        now_ms = max(at for _, at in inputs)
        events: list[dict[str, object]] = [
            {"event_type": kind, "timestamp": _at(at), "source": "x", "content_chars": 120}
            for kind, at in inputs
        ]
        now_ms += draw.randint(900, 6_000)
        events.append(
            {"event_type": "reasoning", "timestamp": _at(now_ms), "source": "x", "content_chars": 900}
        )
        tools: list[dict[str, object]] = []
        results: list[tuple[str, int]] = []
        for place in range(draw.choice((0, 1, 1, 1, 2, 3, 5))):
            name = draw.choice(names)
            call = f"call_{draw.getrandbits(80):020x}"
            now_ms += draw.randint(20, 400)
            wall_ms = draw.randint(15, 20_000)
            own_ms = wall_ms - draw.randint(0, 10) if draw.random() < 0.5 else None
            returned = draw.random() < 0.995
            events.append(
                {
                    "event_type": "tool_call",
                    "timestamp": _at(now_ms),
                    "source": "assistant.content.tool_use",
                    "tool_call_id": call,
                    "tool_name": name,
                    "tool_index": place,
                }
            )
            tools.append(
                {
                    "tool_index": place,
                    "tool_name": name,
                    "tool_call_id": call,
                    "emitted_at": _at(now_ms),
                    "input_chars": draw.randint(20, 4_000),
                    "result_chars": draw.randint(0, 30_000) if returned else None,
                    "tool_wall_latency_ms": wall_ms if returned else None,
                    "tool_internal_latency_ms": own_ms if returned else None,
                    "is_error": draw.choice((False, False, False, True, None)) if returned else None,
                    "result_at": _at(now_ms + wall_ms) if returned else None,
                }
            )
            if returned:
                results.append(("tool_result", now_ms + wall_ms))
        if not tools:
            now_ms += draw.randint(200, 2_000)
            events.append(
                {"event_type": "text", "timestamp": _at(now_ms), "source": "x", "content_chars": 700}
            )
        row: dict[str, object] = {
            "provider": provider,
            "project": f"project_{number % 50}",
            "session_id": session,
            "round_index": index,
            "round_id": f"msg_{number}_{index}",
            "model": "claude-sonnet-4-5" if provider == "claude" else "gpt-5.4",
            "input_tokens_total": total + fresh,
            "prefix_tokens": total,
            "newly_append_tokens": fresh,
            "output_tokens": draw.randint(20, 900),
            "reasoning_output_tokens": None if provider == "claude" else draw.randint(0, 200),
            "timing_events": events,
            "tools": tools,
            "first_input_event_type": inputs[0][0],
            "store": f".{provider}",
            "trace_key": f"{provider}:{session}:{index}",
        }
        if provider == "codex":
            row["turn_id"] = f"turn-{number}-{turn}"
        total += fresh
        yield orjson.dumps(row) + b"\n"
        inputs = sorted(results, key=lambda one: one[1]) or [
            ("user_message", now_ms + draw.randint(2_000, 90_000))
        ]


def _at(time_ms: int) -> str:
    return (
        datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def main() -> None:
    """Writes rows to standard output: as many as the first argument says."""
    for row in rows(int(sys.argv[1]) if len(sys.argv) > 1 else 350_000, seed=7):
        sys.stdout.buffer.write(row)


if __name__ == "__main__":
    main()
