"""A server that sends anything: every loop leaves its record, no agent is lost, no defect is seen."""

from __future__ import annotations

import gc
import logging
from pathlib import Path

import pytest

from profiler.cli import main
from profiler.commands.run import on_event_loop
from profiler.records import INTERNAL, LOOP_TIMEOUT
from profiler.rundir import RunDirectory
from tests.hostile.grammar import ENDLESS, KINDS
from tests.hostile.loops import APIS, hostile_server, journal_of, lines, run_loops, table

LOOPS = 200
"""Of each API, whole and streamed; benchmarks/hostile.py runs 5,000 in all."""

AGENTS = 40

ERRORS = frozenset(
    (
        *("unreadable", "truncated_stream", "stream_error", "not_http", "undecodable", "too_large"),
        *("reset", "connection", "timeout", LOOP_TIMEOUT),
    )
)
"""What a loop may fail with here, beside refusals (`http_503`)."""


def test_server_that_sends_anything_costs_one_loop_each_time(caplog: pytest.LogCaptureFixture) -> None:
    gc.collect()  # what another test left open complains before
    caplog.clear()
    with caplog.at_level(logging.WARNING), hostile_server(seed=7) as url:
        fates = on_event_loop(lambda: run_loops(url, LOOPS, AGENTS, timeout=2.0))
        journal = journal_of(url)
    found = table(journal, fates)
    assert len(fates) == 2 * len(APIS)
    for fate in fates:
        assert sorted(fate.records) == list(range(LOOPS)), fate.name
        assert (fate.begun, fate.agents, fate.repeated, fate.dropped) == (LOOPS, AGENTS, 0, 0), fate.name
        # What was sent counts, also where a loop's end came in between, and its record has no more of it.
        assert fate.spent.requests >= fate.requests >= LOOPS
        assert fate.spent.input_tokens > 0
        assert fate.spent.replies >= fate.spent.unknown_replies > 0
    # Of all together, since some redirects lead from one API to another.
    assert sum(fate.spent.requests for fate in fates) >= sum(map(len, journal.values()))
    ended = {end for ends in found.values() for end in ends}
    assert {end for end in ended if not end.startswith("http_")} <= ERRORS | {"ok"}, lines(found)
    assert set(found) == {*KINDS, "good"}
    for kind in ENDLESS:
        assert found[kind][LOOP_TIMEOUT] > 0, kind
    assert found["bomb"]["too_large"] > 0
    assert found["good"]["ok"] > 0
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


@pytest.mark.parametrize("stream", [False, True])
def test_run_against_such_a_server_exits_as_documented(
    stream: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = set()
    with hostile_server(seed=3, share=0.8) as url:
        for number in range(12):
            codes.add(
                main(
                    [
                        *(
                            "run",
                            "--base-url",
                            url,
                            "--tools-url",
                            url,
                            "--model",
                            "m",
                            "--out",
                            str(tmp_path),
                        ),
                        *("--number", str(number), "--loop-timeout", "1s"),
                        *(("--stream",) if stream else ()),
                    ]
                )
            )
    assert codes == {1, 3}  # 1: it was answered, and its calls failed, since this server has no tools
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    runs = [RunDirectory.open(path) for path in tmp_path.iterdir()]
    records = [record for run in runs for record in run.records()]
    assert len(records) == 12
    assert INTERNAL not in {record.error_type for record in records}
