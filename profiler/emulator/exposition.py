"""The journal's counters as Prometheus text. Pure.

Written by hand: the server must not carry a metrics library's locks and registry on its hot path,
and its few metrics are not those of the profiler.
"""

from __future__ import annotations

from profiler.emulator.journal import Journal


def exposition(journal: Journal) -> bytes:
    """Text format 0.0.4."""
    lines = [
        (
            "# HELP emulator_requests_total Finished requests by API (chat, responses, messages, tools) and"
            " HTTP status."
        ),
        "# TYPE emulator_requests_total counter",
    ]
    for (api, status), count in sorted(journal.requests.items()):
        lines.append(f'emulator_requests_total{{api="{api}",status="{status}"}} {count}')
    lines += [
        "# HELP emulator_requests_in_flight Requests received and not finished.",
        "# TYPE emulator_requests_in_flight gauge",
    ]
    lines += [
        f'emulator_requests_in_flight{{api="{api}"}} {count}'
        for api, count in sorted(journal.in_flight.items())
    ]
    lines += [
        "# HELP emulator_faults_total Faults injected, by kind.",
        "# TYPE emulator_faults_total counter",
    ]
    lines += [
        f'emulator_faults_total{{kind="{kind}"}} {count}' for kind, count in sorted(journal.faults.items())
    ]
    rows = journal.lateness()
    lines += [
        "# HELP emulator_lateness_seconds First byte sent minus first byte due.",
        "# TYPE emulator_lateness_seconds histogram",
    ]
    for bound, count in rows:
        label = "+Inf" if bound == float("inf") else f"{bound:g}"
        lines.append(f'emulator_lateness_seconds_bucket{{le="{label}"}} {count}')
    lines += [
        f"emulator_lateness_seconds_sum {journal.lateness_sum}",
        f"emulator_lateness_seconds_count {rows[-1][1]}",
        "# HELP emulator_journal_dropped_total Journal entries that fell out of the ring.",
        "# TYPE emulator_journal_dropped_total counter",
        f"emulator_journal_dropped_total {journal.dropped}",
    ]
    return ("\n".join(lines) + "\n").encode()
