"""The live view: what it says, when it speaks at all, and what it never writes."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from profiler.records import encode as encode_record
from profiler.report.live import LiveView, Rolling, bar, figures_of, headline
from profiler.rundir import Follower, Progress, encode_progress
from tests.unit.statistics_data import loop

NOW = Progress(
    unix=1000.0,
    state="measuring",
    strategy="semaphore:4",
    users=20,
    trial=5,
    trials=9,
    block=2,
    blocks=3,
    elapsed_seconds=30.0,
    seconds_left=90.0,
    loops=40,
    failures=10,
    rate_limited=7,
    in_flight=20,
    lag_seconds=0.0012,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_live_view_in_words() -> None:
    assert headline(NOW) == "block 2 of 3 · semaphore:4 · measuring · 1:30 left"
    assert headline(replace(NOW, blocks=None, seconds_left=None)) == "block 2 · semaphore:4 · measuring"
    assert headline(Progress(1.0, "preparing")) == "preparing"
    assert figures_of(NOW, 12.5, 1.25) == [
        "12.5 loops/s",
        "p95 1.25 s",
        "25 % fail",
        "7 × 429",
        "20 in flight",
        "lag 1.20 ms",
    ]
    assert figures_of(Progress(1.0, "preparing"), None, None)[:3] == ["– loops/s", "p95 –", "– fail"]


def test_live_view_of_calls_without_a_model_speaks_of_no_strategy() -> None:
    assert headline(NOW, direct=True) == "block 2 of 3 · measuring · 1:30 left"
    assert headline(replace(NOW, block=1, blocks=1), direct=True) == "measuring · 1:30 left"
    assert figures_of(NOW, 12.5, 1.25, "calls")[0] == "12.5 calls/s"


def test_a_step_before_the_load_is_drawn_with_its_time_until_something_is_measured() -> None:
    now = [1000.0]
    terminal = Terminal()
    step = Progress(1000.0, "preparing", step="starting Locust")
    with LiveView(terminal, {"TERM": "xterm"}, width=80, now=lambda: now[0]) as view:
        view.watch(step)
        now[0] = 1001.23
        view.watch(replace(step, unix=1000.5, step="asking the model once"))
        now[0] = 1002.0
        view.watch(NOW)
        view.stop()
        view.say("start? [y/N]")
        drawn = terminal.getvalue()
        view.start()
        view.watch(step)
    said = drawn.split("starting Locust")[1]
    assert "preparing · starting Locust · 0.0 s" in drawn
    assert "preparing · asking the model once · 0.7 s" in said
    assert "block 2 of 3 · semaphore:4 · measuring · 1:30 left" in said
    assert drawn.endswith("start? [y/N]\n")  # nothing is drawn over a question
    assert "preparing · starting Locust · 2.0 s" in terminal.getvalue()[len(drawn) :]


def test_step_that_lasts_gets_a_line_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with LiveView(stream, {}) as view:
        for seconds, step in ((0.0, "starting Locust"), (1.5, "importing"), (2.5, "asking the model once")):
            view.watch(Progress(1000.0 + seconds, "preparing", step=step))
    assert stream.getvalue() == "preparing · asking the model once\n"


def test_bar_shows_the_share_of_time_that_is_over() -> None:
    assert bar(NOW) == "━" * 10 + "─" * 30
    assert bar(replace(NOW, seconds_left=None)) == ""


def test_rate_is_of_one_trial_and_of_the_last_seconds() -> None:
    rolling = Rolling()
    assert rolling.per_second(NOW) is None
    assert rolling.per_second(replace(NOW, unix=1004.0, loops=60)) == pytest.approx(5.0)
    assert rolling.per_second(replace(NOW, unix=1020.0, loops=60)) == pytest.approx(0.0)
    assert rolling.per_second(replace(NOW, unix=1021.0, trial=6, loops=3)) is None
    # the window opened, and counting began anew
    assert rolling.per_second(replace(NOW, unix=1022.0, trial=6, loops=1)) is None
    assert rolling.per_second(replace(NOW, unix=1023.0, trial=6, loops=8)) == pytest.approx(7.0)


def test_p95_is_of_the_trial_under_way_and_needs_enough_loops(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    mine = [loop(start=100.0 * k, model=float(k + 1), trial=4) for k in range(20)]
    path.write_bytes(b"".join(encode_record(record) + b"\n" for record in mine[:19]))
    rolling = Rolling()
    rolling.per_second(NOW)
    assert rolling.p95(tmp_path) is None
    other = loop(start=0.0, model=9000.0, trial=3)
    with open(path, "ab") as file:
        file.write(encode_record(mine[19]) + b"\n" + encode_record(other) + b"\n" + b'{"torn')
    assert rolling.p95(tmp_path) == pytest.approx(0.019)
    assert rolling.p95(None) is None
    assert rolling.p95(tmp_path / "nothing") == pytest.approx(0.019)


def test_live_view_without_a_terminal_is_a_plain_line_every_few_seconds() -> None:
    out = io.StringIO()
    with LiveView(out, {}) as view:
        view.say("semaphore:4: up to 4 calls at once")
        for second in range(12):
            view.watch(replace(NOW, unix=1000.0 + second, loops=40 + 10 * second))
    lines = out.getvalue().splitlines()
    assert lines[0] == "semaphore:4: up to 4 calls at once"
    assert len(lines) == 3  # after 2 s and after 7 s
    assert lines[1] == (
        "block 2 of 3 · semaphore:4 · measuring · 1:30 left: "
        "10.0 loops/s, p95 –, 17 % fail, 7 × 429, 20 in flight, lag 1.20 ms"
    )
    assert "\x1b" not in out.getvalue()


def test_quiet_writes_nothing() -> None:
    for out in (io.StringIO(), Terminal()):
        with LiveView(out, {}, quiet=True) as view:
            view.say("x")
            view.watch(NOW)
        assert out.getvalue() == ""


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
def test_terminal_is_redrawn_and_no_color_is_obeyed(environment: dict[str, str]) -> None:
    out = Terminal()
    with LiveView(out, environment, width=80) as view:
        view.watch(NOW)
        view.watch(replace(NOW, unix=1002.0, loops=60))
    shown = out.getvalue()
    assert "block 2 of 3 · semaphore:4 · measuring" in shown
    assert "10.0 loops/s" in shown
    assert "\x1b[2K" in shown  # lines are replaced
    assert ("\x1b[3" in shown) is False  # the view uses no colour of its own, only bold
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor comes back


def test_names_from_outside_do_not_reach_the_terminal_as_they_are() -> None:
    out = io.StringIO()
    with LiveView(out, {}) as view:
        for second in (0, 3):  # a phase gets its line when it has lasted a little
            view.watch(replace(NOW, unix=1000.0 + second, strategy="\x1b[2Jevil\u202e"))
        view.say("\x1b]0;title\x07")
    assert "\x1b" not in out.getvalue()
    assert "\u202e" not in out.getvalue()
    assert "\\x1b[2Jevil" in out.getvalue()


def test_follower_says_whose_progress_it_is(tmp_path: Path) -> None:
    (tmp_path / "progress.jsonl").write_bytes(encode_progress(NOW))
    assert list(Follower(tmp_path).new()) == [replace(NOW, directory=str(tmp_path))]


def test_live_line_says_that_no_tool_call_was_asked_for(tmp_path: Path) -> None:
    """Once enough loops have ended, and no longer than that is so."""
    (tmp_path / "records.jsonl").write_bytes(b"")
    now = replace(NOW, directory=str(tmp_path))
    out = io.StringIO()
    with LiveView(out, {}) as view:
        for second in range(18):
            with open(tmp_path / "records.jsonl", "ab") as file:
                for number in range(2):
                    calls = [(0.0, 10.0)] if second > 12 else []
                    record = loop(start=1000.0 * second + number, calls=calls, trial=4)
                    file.write(encode_record(record) + b"\n")
            view.watch(replace(now, unix=1000.0 + second, loops=40 + 10 * second))
    lines = out.getvalue().splitlines()  # after 2, 7, 12 and 17 s: 6, 16, 26 and 36 loops
    assert ["no tool call was asked for" in line for line in lines] == [False, False, True, False]


def test_live_line_stays_whatever_becomes_of_the_records(tmp_path: Path) -> None:
    """They grow by half lines, hold what is no record, become shorter, and vanish."""
    path = tmp_path / "records.jsonl"
    rolling = Rolling()
    rolling.per_second(replace(NOW, trial=1))
    lines = [encode_record(loop(100.0 * number, number=number)) + b"\n" for number in range(60)]

    def look(data: bytes, mode: str = "ab") -> float | None:
        with open(path, mode) as file:
            file.write(data)
        return rolling.p95(tmp_path)

    assert rolling.p95(tmp_path) is None
    for whole in lines[:30]:
        look(whole[:50])
        look(whole[50:])
    assert rolling.answered == 30
    assert look(b"\xff\xfe{]\n" + b"[" * 100_000 + b"\n\n{}\nnull\n") == pytest.approx(0.1)
    path.unlink()
    assert rolling.p95(tmp_path) == pytest.approx(0.1)
    look(lines[30], "wb")  # another file, and shorter
    assert rolling.answered == 31
    look(b"".join(lines[31:]))
    assert rolling.answered == 60
    (tmp_path / "records.jsonl").unlink()
    (tmp_path / "records.jsonl").mkdir()
    assert rolling.p95(tmp_path) == pytest.approx(0.1)


def test_records_that_come_faster_than_they_are_read_are_skipped_and_the_rest_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("profiler.report.live.MOST_BYTES", 3000)
    path = tmp_path / "records.jsonl"
    rolling = Rolling()
    rolling.per_second(replace(NOW, trial=1))
    lines = [encode_record(loop(100.0 * number, number=number)) + b"\n" for number in range(40)]
    for number, whole in enumerate(lines):
        with open(path, "ab") as file:  # never at the end of a line when it is looked at
            file.write(lines[number - 1][70:] * bool(number) + whole[:70])
        if number % 10 == 9:
            rolling.p95(tmp_path)
    assert 0 < rolling.answered < 40
