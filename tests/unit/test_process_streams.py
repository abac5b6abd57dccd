"""What is printed where an encoding lacks a character, and on streams that are closed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
from rich.cells import cell_len

from profiler.process.streams import ERRORS, json_text, plainer
from profiler.report.live import bar, headline
from profiler.report.terminal import render_comparison
from profiler.report.timeline import render_timeline
from profiler.rundir import Progress
from tests.unit.statistics_data import loop
from tests.unit.test_cli import COMMANDS
from tests.unit.test_report_terminal import experiment

IN_C_LOCALE = {
    "LANG": "C",
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
}

ENCODINGS = ("ascii", "latin-1", "cp1252", "cp437", "koi8-r", "shift_jis")


def printed(text: str, encoding: str) -> str:
    """What is read, in this encoding, of a text that was printed in it."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors=ERRORS)
    stream.write(text)
    stream.flush()
    return raw.getvalue().decode(encoding)


@pytest.fixture(scope="module")
def report() -> str:
    made, summary = experiment(slo="p95<10s,errors<1%", failing=0.6)
    record = loop(0, model=100, calls=[(200, 200), (0, 400)], strategy="semaphore:1")
    return render_comparison(summary, made) + render_timeline(record)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_tables_and_timelines_keep_the_width_of_every_line(report: str, encoding: str) -> None:
    text = report
    shown = printed(text, encoding)
    assert [len(line) for line in shown.splitlines()] == [len(line) for line in text.splitlines()]
    assert "sequential" in shown
    assert "?" not in shown


@pytest.mark.parametrize(
    ("text", "ascii"),
    [
        ("2.52× ± 1 ≤ 3 ≥ 4 – so … → ← σ µs", "2.52x ~ 1 < 3 > 4 - so . > < s us"),
        ("▓▓░░██▚▚▒ ━━── │┌┼╬═", "==..##xx+ ==-- |+++-"),
        ("1\u2009000\u202f000\xa0s", "1 000 000 s"),
        ("größe 天気 🎉 e\u0301 \udcff", "gr??e ???? ?? e ?"),
    ],
)
def test_each_character_gets_a_plainer_one_as_wide_as_it_is(text: str, ascii: str) -> None:
    assert printed(text, "ascii") == ascii
    assert all(len(plainer(one)) == cell_len(one) for one in text if not one.isascii() and one != "\udcff")


def test_what_an_encoding_has_stays_as_it_is() -> None:
    assert printed("größe – 2× … ▓█", "cp1252") == "größe – 2× … =#"
    assert printed("größe ▓░█─━", "cp437") == "größe ▓░█─="
    assert printed("größe ▓ \udcff", "utf-8") == "größe ▓ ?"


def test_live_lines_are_readable_in_ascii() -> None:
    progress = Progress(0.0, "measuring", "gathered", block=2, blocks=3, elapsed_seconds=1, seconds_left=3)
    assert printed(headline(progress), "ascii") == "block 2 of 3 - gathered - measuring - 0:03 left"
    assert printed(bar(progress), "ascii") == "=" * 10 + "-" * 30


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_is_the_same_in_any_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"sentence": "2.52× [1.74, 3.63] – 天気 🎉", "größe": 'a"b\\'}
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors=ERRORS)
    monkeypatch.setattr(sys, "stdout", stream)
    stream.write(json_text(json.dumps(data, ensure_ascii=False).encode()))
    stream.flush()
    assert json.loads(raw.getvalue().decode(encoding)) == data


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_streams_lead_nowhere(closed: str) -> None:
    """What is opened after them gets other numbers than theirs, and nothing that is printed."""
    code = (
        "import os, sys, tempfile; from profiler.process.streams import prepare_streams; prepare_streams(); "
        "file = tempfile.TemporaryFile(); print('out ×'); print('err ×', file=sys.stderr, flush=True); "
        "sys.stdout.flush(); sys.exit(41 if file.fileno() > 2 and file.read() == b'' else 1)"
    )
    done = subprocess.run(["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code], timeout=60)
    assert done.returncode == 41


@pytest.mark.slow
def test_help_of_every_command_is_printed_in_ascii() -> None:
    code = (
        "from profiler.cli import main\n"
        f"for command in {COMMANDS!r}:\n"
        "    try: main([command, '--help'])\n"
        "    except SystemExit as left: assert left.code == 0, command\n"
    )
    environment = {**os.environ, **IN_C_LOCALE, "COLUMNS": "20"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode("ascii")
    assert all(f"usage: profiler {command}" in shown for command in COMMANDS)
