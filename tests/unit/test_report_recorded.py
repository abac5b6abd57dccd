"""The verdict on a recording: in words, in the terminal, on the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from profiler.cli import main
from profiler.limits.known import parse_quota
from profiler.recordings.drafts import CallDraft, LoopDraft
from profiler.records import Attempt, LoopRecord, encode
from profiler.report.html import write_any
from profiler.report.recorded import MOST_LINES, UNFINISHED, render_recorded, ticks, words
from profiler.rundir import Recording, Run
from profiler.statistics.recorded import recorded_figures
from tests.unit.recording_data import MS, bound, directory_of, exact, loop, records, run_of


def turn(at: float) -> LoopDraft:
    """100 and 300 ms, one after the other: gathered 25 % less."""
    return loop([exact("search", 100, 200), exact("fetch", 200, 500)], at=at)


def overlapped(at: float) -> LoopDraft:
    return loop([exact("search", 100, 400), exact("fetch", 100, 300)], at=at)


def bounded(at: float) -> LoopDraft:
    return loop([bound("search", 100, 400), bound("fetch", 100, 300)], at=at)


def found(*loops: LoopDraft) -> list[str]:
    return words(recorded_figures(records(*loops))).found


def said_of(run: Run, of: Sequence[LoopRecord], width: int, tally: bool = True) -> str:
    """What the terminal says of a recorded run."""
    return render_recorded(run.scenario, recorded_figures(of, run.recording), run, width, tally=tally)


def cannot(*loops: LoopDraft, **more: object) -> str:
    recording = Recording("import", **more)  # type: ignore[arg-type]
    return "\n".join(words(recorded_figures(records(*loops), recording), recording).cannot)


def test_rounds_one_after_another_lead_with_what_gathering_saves() -> None:
    said = found(*(turn(1000.0 * n) for n in range(4)), bounded(9000))
    assert said[0] == (
        "4 rounds ran their calls one after another: gathered they would have taken 25 % less "
        "(estimate; 20 % of the rounds of several calls have upper bounds and are left out)"
    )
    assert said[1] == (
        "That is 1.20 s instead of 1.60 s; a limit on calls at once would have saved of it: "
        "semaphore:2 25 %, semaphore:4 25 %, semaphore:8 25 %; of the whole time of the loops (2.40 s) "
        "gathering saves 17 % (estimates)"
    )


def test_rounds_that_overlapped_say_what_one_after_another_would_have_taken() -> None:
    (said, none, *_) = found(overlapped(0))
    assert said == (
        "1 round overlapped its calls, up to 2 at once: 1.67× (500 ms of calls in 300 ms); one after another "
        "it would have taken 500 ms instead of 300 ms (estimate)"
    )
    assert none == "No round of several calls ran them one after another"
    assert "No round of several calls is known to have run them one after another" in found(
        overlapped(0), bounded(1000)
    )


def test_gaps_between_calls_are_said_to_be_unexplained() -> None:
    said = found(loop([exact("a", 100, 200), exact("b", 300, 400)]))
    assert "gathered it would have taken 33 % less" in said[0]
    assert said[2].startswith(
        "For 100 ms of that time (33 %) none of these calls ran, which nothing explains"
    )


def test_nothing_is_concluded_from_bounds_or_from_single_calls() -> None:
    said = found(bounded(0))
    assert said[0] == (
        "Nothing can be said about running calls at once: all rounds of several calls have upper bounds and "
        "are left out"
    )
    assert said[1].endswith("overlapped for at most 200 ms in all, at most 2 at once")
    assert not any("p50" in one for one in said)  # a bound is no latency
    (none, _) = found(loop([exact("a", 100, 200)]))
    assert none.startswith("No round asked for several calls")


def test_rounds_shorter_than_the_clock_tells_are_left_out() -> None:
    coarse = loop([exact("a", 0, 4000), exact("b", 4000, 8000)], resolution_ns=1000 * MS)
    assert "are too short for the clock's ticks of 1 s and are left out" in found(coarse)[0]
    assert "differences between 2 calls of fewer than 10 ticks" in cannot(coarse)


def test_what_cannot_be_told_says_why() -> None:
    said = cannot(turn(0), bounded(1000))
    assert "whether tools get slower when more of them run at once" in said
    assert "how long 2 calls took: when they started is not recorded" in said
    assert "no rate-limit headers are in the recording" in said
    assert "no tries are in the recording" in said
    assert "when the first token came" in said
    assert "between loops" in said
    assert "only 10 % of all traces were kept" in cannot(turn(0), sampled=0.1)
    assert "clocks" not in said
    assert "they are of 2 clocks, which may differ" in cannot(turn(0), clocks=2)


def test_quota_of_headers_is_of_this_recording_alone() -> None:
    (record,) = records(loop([]))
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
    }
    attempts = (Attempt(0, 9, 429), Attempt(2000 * MS, 2090 * MS, 200, rate_limits=headers))
    model = replace(record.rounds[0].model, attempts=attempts)
    figures = recorded_figures([replace(record, rounds=(replace(record.rounds[0], model=model),))])
    said = words(figures)
    assert (
        "Quota (from its headers): at most 2 of 60 requests in any minute of this recording alone, "
        "3.3 % of it (gpt-5)"
    ) in said.found
    assert (
        "Requests: 1 request was refused (429: over a quota, 529: overloaded); 1 request was tried again, "
        "after 2.00 s of " in ("\n".join(said.found))
    )
    assert "what other clients of the same key used of the quota" in said.cannot


def test_given_quota_says_whose_it_is() -> None:
    every = records(*(loop([], at=1000.0 * n) for n in range(3)))
    other = replace(every[2].rounds[0].model, model="o3")
    every[2] = replace(every[2], rounds=(replace(every[2].rounds[0], model=other),))
    said = words(recorded_figures(every, quota=parse_quota("10rpm"))).found
    assert (
        "Quota (as given): at most 2 of 10 requests in any minute of this recording alone, 20 % of it "
        "(gpt-5, the most used of 2 models)"
    ) in said
    of_another = "\n".join(words(recorded_figures(every, quota=parse_quota("groq:rpm=10"))).cannot)
    assert "how near a quota was: no request in the recording went to groq (but to: openai)" in of_another


def test_both_apis_of_one_provider_use_one_quota() -> None:
    chat, responses = records(loop([], at=0), loop([], at=1000))
    moved = replace(responses.rounds[0].model, provider="openai-responses")
    both = [chat, replace(responses, rounds=(replace(responses.rounds[0], model=moved),))]
    (share,) = recorded_figures(both, quota=parse_quota("openai:rpm=4")).quotas
    assert (share.peak, share.provider) == (2, "openai")


def test_calls_with_upper_bounds_that_cannot_have_overlapped_are_said_not_to() -> None:
    assert "Calls of the 1 round with upper bounds did not overlap" in found(
        loop([bound("a", 100, 200), exact("b", 300, 400)])
    )


def test_terminal_says_how_long_loops_took_and_how_many_failed() -> None:
    dead = replace(records(turn(0))[0], status="error", error_type="connection")
    text = " ".join(said_of(run_of(turn(0), turn(1000)), [dead, *records(turn(1000))], 110).split())
    assert "Half of the loops took at most" in text
    assert "1 of 2 loops failed (connection 1)." in text


def test_groups_that_came_through_the_proxy_come_first_with_their_exact_wall() -> None:
    draft = loop([bound("a", 100, 300), bound("b", 100, 300)], source="proxy")
    asked, ended = draft.rounds[0].calls[0].asked_ns, draft.rounds[0].calls[0].ended_ns
    draft.rounds[0].tools_started_ns, draft.rounds[0].tools_ended_ns = asked, ended
    first, second = found(draft)
    assert first == (
        "1 round of several calls took 200 ms in all, 67 % of the loops' time, from the model's answer to "
        "the next request (exact): half of them at most 200 ms"
    )
    assert second.startswith(
        "Whether their calls overlapped, and what gathering them would change, is not known"
    )
    # A client that went away before its calls ended is no reason to say so once more.
    left = loop([CallDraft(one, one, 100 * MS) for one in "ab"], at=1000, source="proxy", status="cancelled")
    assert not any("Nothing can be said" in one for one in found(draft, left))
    assert found(left) == [
        "Nothing can be said about running calls at once: all rounds of several calls have a call that never "
        "ended and are left out"
    ]


def test_two_proxied_runs_name_the_exact_time_of_rounds_of_several_calls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def through(ms: float, at: float, source: str = "proxy") -> LoopDraft:
        draft = loop([bound("a", 100, 100 + ms), bound("b", 100, 100 + ms)], at=at, source=source)
        asked, ended = draft.rounds[0].calls[0].asked_ns, draft.rounds[0].calls[0].ended_ns
        draft.rounds[0].tools_started_ns, draft.rounds[0].tools_ended_ns = asked, ended
        return draft

    def recorded(name: str, loops: list[LoopDraft]) -> str:
        return str(directory_of(tmp_path / name, run_of(*loops, door="proxy"), records(*loops)).path)

    then = recorded("then", [through(400, 1000.0 * n) for n in range(3)])
    now = recorded("now", [through(100, 1000.0 * n) for n in range(2)])
    other = recorded("other", [turn(0), turn(1000)])
    line = (
        "Rounds of several calls took 400 ms → 100 ms (p50; 3 and 2 rounds), from the model's answer to the "
        "next request (exact); of the loops' time that is 80 % → 50 %."
    )
    for output in ("text", "markdown", "github"):
        main(["compare", then, now, "--format", output])
        said = " ".join(capsys.readouterr().out.replace("%25", "%").split())
        assert said.count(line) == 1, output
    main(["compare", then, other])
    assert "Rounds of several calls took" not in capsys.readouterr().out


def test_loops_that_failed_come_first_where_they_are_half_of_all() -> None:
    """Loops with a failed call, and those cancelled, are told apart; one inside a call is no other."""
    down: Any = {"status": "error", "error_type": "connection"}
    dead = [loop([], at=1000.0 * n, until=70, **down) for n in range(2)]
    broken = loop([exact("search", 100, 400, status="error")], at=4000)
    stopped, inside = loop([], at=5000, status="cancelled"), loop([], at=100, parent="loop-4000", **down)

    def said(*loops: LoopDraft) -> list[str]:
        return said_of(run_of(*loops), records(*loops), 300, tally=False).splitlines()

    assert said(dead[0])[0] == "The loop took 70.0 ms and failed (connection)."
    assert said(*dead, broken, stopped, inside)[0] == (
        "Half of the loops took at most 85.0 ms, the slowest 400 ms; 2 of 4 loops failed (connection 2); "
        "1 came to an answer although a call failed (error (search) 1); 1 was cancelled, or cut off in the "
        "recording."
    )
    assert said(broken)[0].startswith("No round asked for several calls")  # it came to an answer
    assert "The loop took 400 ms; a call in it failed (error (search))." in said(broken)
    some = said(*(turn(1000.0 * n) for n in range(9)), stopped)
    assert some[0].startswith("9 rounds ran their calls one after another")
    assert any(one.endswith("1 of 10 loops was cancelled, or cut off in the recording.") for one in some)
    assert said(stopped)[0] == "The loop took 100 ms and was cancelled, or cut off in the recording."
    assert not any("failed" in one for one in said(turn(0)))


def test_requests_that_no_span_joins_are_no_loops() -> None:
    single = [loop([], at=1000.0 * n) for n in range(3)]
    line = "loops are single requests without a call: nothing in the spans joins them into loops"
    assert f"All 3 {line}" in found(*single)
    assert f"3 of 9 {line}" in found(*single, *(turn(10_000.0 * n) for n in range(1, 7)))
    few = found(*single, *(turn(10_000.0 * n) for n in range(1, 8)))
    of_log = found(*(loop([], at=1000.0 * n, source="claude-code") for n in range(3)))
    failed = found(*(loop([], at=1000.0 * n, status="error") for n in range(3)))
    assert not any("single requests" in one for one in [*few, *of_log, *failed])


@pytest.mark.parametrize("loops", [[], [turn(0)], [turn(1000.0 * n) for n in range(9)] + [bounded(20_000)]])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_terminal_has_no_more_than_so_many_lines(loops: Sequence[LoopDraft], width: int) -> None:
    skipped = {f"reason {n}": n for n in range(40)}
    run = run_of(*loops, read={"otel": 99}, skipped=skipped, notes=tuple(f"note {n}" * 20 for n in range(20)))
    text = said_of(run, records(*loops), width)
    lines = text.splitlines()
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("traces.jsonl, imported")


def test_terminal_tells_the_tally(tmp_path: Path) -> None:
    loops = [turn(0), bounded(1000)]
    run = run_of(*loops, read={"otel": 12}, skipped={"torn line": 1}, resolution_ns=1000, clocks=2, clamped=3)
    text = " ".join(said_of(run, records(*loops), 110).split())
    assert "traces.jsonl, imported (otel): 2 loops, 2 rounds, 4 calls." in text
    assert (
        "Durations of calls: 2 exact, 2 upper bounds; times in ticks of 1 ns, of 2 clocks; 3 negative" in text
    )
    assert "Read: 12 (otel); skipped 1: torn line 1." in text
    assert ticks(1_000_000) == "1 ms"


def headings(page: str) -> list[str]:
    return re.findall(r"<h2 [^>]*>([^<]*)</h2>", page)


def test_page_of_a_recorded_run_leads_with_the_verdict_and_names_what_is_not_there(tmp_path: Path) -> None:
    loops = [turn(0), overlapped(1000), bounded(2000)]
    directory = directory_of(tmp_path, run_of(*loops, title="traces of <today>"), records(*loops))
    page = write_any(directory.path).path.read_text("utf-8")
    assert headings(page)[:2] == ["In short", "Calls at once"]
    assert "What is not here, and why" in headings(page)
    assert "Strategies side by side" not in headings(page)
    assert "<h1><bdi>traces of &lt;today&gt;</bdi></h1>" in page
    assert "imported (otel)" in page
    assert "gathered it would have taken 25 % less" in page
    assert "33 % of the rounds of several calls have upper bounds" in page
    assert "Client health: the loops ran in another program" in page
    assert "those of 3 of 3 replies are not known" in page
    assert "Records hold no date" not in page
    table = re.findall(r'id="table-tools".*?</table>', page, re.DOTALL)[0]
    (row,) = re.findall(r"<bdi>fetch</bdi>.*?</tr>", table)
    cells = re.sub(r"<[^>]+>", " ", row).split()
    assert cells == [
        "fetch",
        "3",
        "2",
        "250",
        "ms",
        "–",
        "–",
        "–",
        "1",
        "–",
        "–",
        "–",
        "0",
        "%",
    ]  # one is a bound


def test_page_of_a_recorded_run_without_a_loop_says_so(tmp_path: Path) -> None:
    directory = directory_of(tmp_path, run_of(read={"otel": 5}, skipped={"no agent": 5}), [])
    page = write_any(directory.path).path.read_text("utf-8")
    assert headings(page) == ["What was recorded", "What is not here, and why"]
    assert "No loop was recorded" in page
    assert "no agent 5" in page


def test_records_without_their_run_directory_have_the_same_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loops = [turn(0), bounded(1000)]
    directory = directory_of(tmp_path, run_of(*loops), records(*loops))
    assert main(["report", str(directory.path)]) == 0
    of_run = " ".join(capsys.readouterr().out.split())
    bare = tmp_path / "bare.jsonl"
    bare.write_bytes(directory.records_path.read_bytes())
    assert main(["report", str(bare), "--quota", "2rpm"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    sentence = (
        "1 round ran its calls one after another: gathered it would have taken 25 % less (estimate; 50 %"
    )
    assert sentence in said
    assert sentence in of_run
    assert "bare.jsonl, recorded (otel): 2 loops, 2 rounds, 4 calls." in said
    assert "Durations of calls: 2 exact, 2 upper bounds; times in ticks of 1 ns." in said
    assert "at most 2 of 2 requests in any minute of this recording alone, 100 % of it" in said
    assert "not told: when these loops ran, what was skipped, of how many clocks" in said
    assert "these are records alone" not in of_run
    assert said.endswith(f"{tmp_path / 'bare.html'}")
    page = (tmp_path / "bare.html").read_text("utf-8")
    assert "When these loops ran, what was skipped, of how many clocks" in page


def test_loops_beside_recorded_ones_are_counted_and_not_concluded_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = replace(records(turn(5000))[0], source="", id="own")
    bare = tmp_path / "bare.jsonl"
    bare.write_bytes(b"".join(encode(one) + b"\n" for one in [*records(turn(0)), own]))
    assert main(["report", str(bare)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 more loop beside them is no recording: this verdict leaves it out." in said
    bare.write_bytes(encode(own) + b"\n")
    assert main(["report", str(bare)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'bare.html'}\n"
    assert main(["report", str(bare), "--quota", "2rpm"]) == 2
    assert f"--quota is for recorded loops: {bare} holds none" in capsys.readouterr().err


def test_quota_on_the_command_line_is_for_recorded_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = directory_of(tmp_path, run_of(turn(0)), records(turn(0)))
    assert main(["report", str(directory.path), "--quota", "2rpm"]) == 0
    assert "at most 1 of 2 requests in any minute" in (directory.path / "report.html").read_text("utf-8")
    assert main(["report", str(directory.path), "--quota", "2"]) == 2
    directory.save(replace(directory.load(), recording=None))
    assert main(["report", str(directory.path), "--quota", "2rpm"]) == 2
    assert "--quota is for recorded runs" in capsys.readouterr().err


def test_terminal_says_that_a_recording_goes_on() -> None:
    run = run_of(turn(0))
    assert UNFINISHED not in " ".join(said_of(run, records(turn(0)), 100).split())
    going_on = said_of(replace(run, finished=False), records(turn(0)), 100)
    assert UNFINISHED in " ".join(going_on.split())
