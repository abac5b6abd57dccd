"""`with Profiler()`: what it keeps of the loops inside, and where it shows them."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from profiler import ToolLoop, instrument
from profiler.errors import RecordError, UsageError
from profiler.instrument import Profiler
from profiler.loop.recorder import listeners
from profiler.report.html.still import still
from profiler.testing import ScriptedModel, run_virtual
from tests.unit.test_report_records import made, unseen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def ran(prof: Profiler, count: int = 1) -> None:
    for record in made(count):
        prof.recorder.emit(record)


def test_nothing_is_printed_into_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with Profiler([]) as prof:
        ran(prof)
    assert capsys.readouterr() == ("", "")
    prof.print()
    assert capsys.readouterr().out.startswith("210 ms: 200 ms (95 %) the model (2 requests")


@pytest.mark.parametrize("where", ["stdout", "stderr"])
def test_terminal_is_shown_the_loops_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, where, terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    with Profiler([]) as prof:
        ran(prof, 2)
        assert terminal.getvalue() == ""
    assert terminal.getvalue().startswith("2 loops: half took at most 215 ms, the slowest 220 ms\n")
    assert capsys.readouterr().out == ""


def test_exception_passes_and_what_was_recorded_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    prof = Profiler([])

    def fails() -> None:
        with prof:
            ran(prof)
            raise KeyError("x")

    with pytest.raises(KeyError):
        fails()
    assert "210 ms: " in terminal.getvalue()
    assert prof._automatic is None


def test_failure_to_show_is_logged_and_reaches_nobody(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Closed(Terminal):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    with Profiler([]) as prof:
        ran(prof)
    assert caplog.messages == ["the loops could not be shown"]


def test_block_without_loops_says_what_to_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with Profiler([]) as prof:
        pass
    prof.print()
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("no loop was recorded: no request of an OpenAI or Anthropic SDK client was seen")
    with pytest.raises(RecordError, match="no loop was recorded"):
        prof.report(tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
    assert set(prof._repr_mimebundle_() or {}) == {"text/plain"}


def test_without_with_nothing_is_kept() -> None:
    prof = Profiler([])
    ran(prof)
    with pytest.raises(UsageError, match=r"with Profiler\(\) as prof:"):
        prof.print()
    assert prof._repr_mimebundle_() is None  # a notebook shows its repr


def test_newest_loops_are_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(instrument, "MOST_KEPT", 3)
    with Profiler([]) as prof:
        ran(prof, 5)
    assert prof._kept is not None
    assert [record.id for record in prof._kept.records] == ["loop 2", "loop 3", "loop 4"]
    prof.print()
    assert "these are the newest, 2 older loops were not kept" in " ".join(capsys.readouterr().out.split())


def test_each_block_shows_its_own_loops_and_sinks_get_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    records: list[Any] = []
    prof = Profiler([records.append])
    for _ in range(2):
        with prof, prof:  # the inner one is part of the outer
            ran(prof)
    assert prof._kept is not None
    assert (len(prof._kept.records), len(records)) == (1, 2)


def test_default_profiler_is_made_again_without_harm(capsys: pytest.CaptureFixture[str]) -> None:
    with Profiler() as first:
        ran(first)
    with Profiler() as second:
        ran(second)
    assert first.metrics is second.metrics


def test_async_block_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> Profiler:
        async with Profiler([]) as prof:
            ran(prof)
        return prof

    prof = asyncio.run(main())
    prof.print()
    assert "210 ms: " in capsys.readouterr().out


def test_page_is_written_during_and_after_the_block(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with Profiler([]) as prof:
        ran(prof)
        assert "1 loop" in prof.report(tmp_path / "during.html").read_text("utf-8")
    assert prof.report(str(tmp_path / "after.html")) == tmp_path / "after.html"
    with Profiler([], record_content=True) as private:
        ran(private)
    assert private.report(tmp_path / "private.html").stat().st_mode & 0o777 == 0o600


def test_stream_without_the_characters_gets_plainer_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with Profiler([]) as prof:
        ran(prof)
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii")
    prof.print(stream)
    assert b"= model" in raw.getvalue()
    assert "▓" not in raw.getvalue().decode("ascii")


def test_notebook_displays_html_and_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    shell = SimpleNamespace(kernel=object())
    ipython = SimpleNamespace(get_ipython=lambda: shell, display=SimpleNamespace(display=shown.append))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    with Profiler([]) as prof:
        ran(prof)
    assert shown == [prof]
    bundle = prof._repr_mimebundle_() or {}
    assert bundle["text/plain"].startswith("210 ms: ")
    assert "<script" not in bundle["text/html"]
    assert "most of it (95 %): the model" in bundle["text/html"]
    monkeypatch.setattr(shell, "kernel", None)  # IPython in a terminal
    assert not instrument.in_notebook()


def test_loops_of_our_own_are_overheard(capsys: pytest.CaptureFixture[str]) -> None:
    async def main(clock: Any) -> None:
        await ToolLoop(ScriptedModel(["done"]), [], clock=clock).run("hello")

    with Profiler([]) as prof:
        run_virtual(main)
    run_virtual(main)
    assert prof._kept is not None
    assert [record.model for record in prof._kept.records] == ["script"]
    assert not listeners


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_child_that_leaves_the_block_shows_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    prof = Profiler([])
    with prof:
        ran(prof)
        monkeypatch.setattr(prof, "_process", os.getpid() + 1)
    assert terminal.getvalue() == ""


def test_still_holds_no_text_that_is_markup_and_stays_small() -> None:
    records = made(1_000)
    records[3] = unseen(records[3], "<script>alert(1)</script>")
    page = still(records, ["<b>x</b>"], left_out=7)
    assert "<script>" not in page
    assert "<b>x" not in page
    assert "&lt;script&gt;" in page
    assert len(page) < 100_000
    assert "and 947 more loops" in page
    assert "7 older loops were not kept" in page
