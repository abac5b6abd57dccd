"""The verdict on a recording, in words: what its loops say, where they are from, and what they cannot say."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from profiler.limits.quotas import window_words
from profiler.report.text import clean, counted, duration, number, percent
from profiler.report.timeline import wrapped
from profiler.rundir import Anchor, Recording, Run
from profiler.statistics.recorded import RecordedFigures
from profiler.statistics.rounds import Sums
from profiler.statistics.samples import FEWEST_FOR_TAIL
from profiler.statistics.tool_latency import MOST_TICKS
from profiler.statistics.usage import QuotaShare

MOST_LINES = 25
"""Lines that `render_recorded` takes at most."""
MOST_REASONS = 6
UNFINISHED = "This recording goes on, or was cut short: what was read is counted up to a second or two ago"
MOST_TOOLS = 3
FEWEST_SINGLE, SINGLE_SHARE = 3, 1 / 3
"""So many loops of a single request, and such a share of all, are worth a word."""
WORTH_SAYING = 0.01
"""Gaps below this share of the time of a round's calls are not worth a word."""

STOPPED = "cancelled, or cut off in the recording"
"""What a loop was that is neither good nor failed: a person stopped it, or no more of it was recorded."""

DOORS = {"import": "imported", "collect": "collected", "proxy": "seen by the proxy"}


class Words(NamedTuple):
    """Sentences, each without its full stop: what was `found`, the first one the most important; what of it
    `cannot` be told, and why; where it is `from`."""

    found: list[str]
    cannot: list[str]
    of: list[str]


def render_recorded(
    title: str,
    figures: RecordedFigures,
    run: Run | None,
    width: int = 80,
    color: bool = False,
    tally: bool = True,
    own: int = 0,
) -> str:
    """The verdict on a recording and its tally, in at most `MOST_LINES` lines.

    `run` is None where there are records alone, without a run directory; `own` counts the loops among them
    that are no recording. Without `tally`, for a caller that has said where the records are from, it is the
    verdict alone.
    """
    said = words(figures, own=own) if run is None else words(figures, run.recording, run.anchor, own)
    mostly_failed = 2 * figures.unanswered >= figures.walls.count  # a call that failed is no news
    found = [*_loops(figures), *said.found] if mostly_failed else [*said.found, *_loops(figures)]
    lead, *others = [f"{clean(title)}, {said.of[0]}", *found] if tally else found
    bold, plain = ("\x1b[1m", "\x1b[0m") if color else ("", "")
    lines = [f"{bold}{line}{plain}" for line in wrapped(f"{lead}.", width)]
    lines += [line for one in others for line in wrapped(f"{one}.", width)]
    rest = [*(said.of[1:] if tally else ()), *(f"not told: {one}" for one in said.cannot)]
    if run is not None and not run.finished:
        rest.insert(0, UNFINISHED)
    for one in rest:
        block = wrapped(f"{one}.", width)
        if len(lines) + len(block) <= MOST_LINES:
            lines += block
    return "\n".join([*lines[:MOST_LINES], ""])


def words(
    figures: RecordedFigures,
    recording: Recording | None = None,
    anchor: Anchor | None = None,
    own: int = 0,
) -> Words:
    """The verdict. Without a `recording` nothing is known of what was read, without an `anchor` no date.

    `own` counts loops that lie beside those of the figures and are no recording.
    """
    return Words(
        [
            *_concurrency(figures),
            *_single(figures),
            *_tools(figures),
            *_waits(figures),
            *_first_token(figures),
            *_quotas(figures),
        ],
        list(_cannot(figures, recording)),
        list(_from(figures, recording, anchor, own)),
    )


def change_words(both: tuple[RecordedFigures, RecordedFigures] | None) -> list[str]:
    """What two recordings hold that no figure compares: loops that were stopped; walls of calls, exact though
    no call of theirs is."""
    return [] if both is None else [*_both_stopped(both), *_both_walls(both)]


def _both_stopped(both: tuple[RecordedFigures, RecordedFigures]) -> Iterator[str]:
    if any(one.cancelled for one in both):
        then, now = (f"{one.cancelled:,} of {counted(one.walls.count, 'loop')}" for one in both)
        yield f"{STOPPED.capitalize()}: {then} → {now}; these count neither as failed nor as good."


def _both_walls(both: tuple[RecordedFigures, RecordedFigures]) -> Iterator[str]:
    if not all(one.proxied.rounds for one in both):
        return
    (then, now), p50s = both, [duration(one.proxied.wall.p50) for one in both]
    shares = [one.proxied.wall_seconds / one.loop_seconds if one.loop_seconds else None for one in both]
    rounds = f"{then.proxied.rounds:,} and {counted(now.proxied.rounds, 'round')}"
    said = (
        f"Rounds of several calls took {p50s[0]} → {p50s[1]} (p50; {rounds}), from the model's answer to the "
        "next request (exact)"
    )
    if None not in shares:
        said += f"; of the loops' time that is {percent(shares[0])} → {percent(shares[1])}"
    yield f"{said}."


# What its rounds say.


def _concurrency(figures: RecordedFigures) -> Iterator[str]:
    if not figures.loops:
        yield "No loop was recorded: there is nothing to say"
        return
    if not figures.parallel:
        why = f"No round asked for several calls ({counted(figures.called, 'round')} had one call)"
        if not figures.called:
            why = "No round has a tool call in this recording"
        yield f"{why}, so nothing can be said about running calls at once"
        return
    told = 0
    if figures.proxied.rounds:
        yield from _proxied(figures)
        told = figures.proxied.rounds + figures.left_out.never_ended  # a client went away
    left_out = _left_out(figures)
    turn, overlapped = figures.in_turn, figures.overlapped
    if turn.rounds:
        yield from _one_after_another(figures, turn, left_out)
    if overlapped.rounds:
        yield from _at_once(overlapped, "" if turn.rounds else left_out)
        if not turn.rounds:
            known = "is known to have run" if left_out else "ran"
            yield f"No round of several calls {known} them one after another"
    elif not turn.rounds and told < figures.parallel:
        yield f"Nothing can be said about running calls at once: {left_out}"
    bounded = figures.bounded
    if bounded.rounds > figures.proxied.rounds:
        # The work less the time that any call ran: a call that started later overlaps less, never more.
        most = bounded.work_seconds - bounded.busy_seconds
        said = f"Calls of the {counted(bounded.rounds, 'round')} with upper bounds"
        if bounded.peak < 2:
            yield f"{said} did not overlap"
        else:
            yield f"{said} overlapped for at most {duration(most)} in all, at most {bounded.peak} at once"


def _proxied(figures: RecordedFigures) -> Iterator[str]:
    walls, in_all = figures.proxied.wall, figures.proxied.wall_seconds
    tail = "" if walls.p95 is None else f", 95 % of them at most {duration(walls.p95)}"
    share = f", {percent(in_all / figures.loop_seconds)} of the loops' time" if figures.loop_seconds else ""
    rounds = counted(figures.proxied.rounds, "round")
    yield (
        f"{rounds} of several calls took {duration(in_all)} in all{share}, from the model's answer to the "
        f"next request (exact): half of them at most {duration(walls.p50)}{tail}"
    )
    yield (
        "Whether their calls overlapped, and what gathering them would change, is not known "
        "(--mcp-upstream sees each call of an MCP server)"
    )


def _one_after_another(figures: RecordedFigures, turn: Sums, left_out: str) -> Iterator[str]:
    its, they = ("its", "it") if turn.rounds == 1 else ("their", "they")
    beside = f"; {left_out}" if left_out else ""
    yield (
        f"{counted(turn.rounds, 'round')} ran {its} calls one after another: gathered {they} would have "
        f"taken {percent(turn.less(turn.gathered_seconds))} less (estimate{beside})"
    )
    gathered = turn.gathered_seconds + turn.gap_seconds
    limited = [f"{limit} {percent(turn.less(taken))}" for limit, taken in turn.limit_seconds.items()]
    said = (
        f"That is {duration(gathered)} instead of {duration(turn.wall_seconds)}; a limit on calls at once "
        f"would have saved of it: {', '.join(limited)}"
    )
    if figures.loop_seconds:
        share = percent(figures.saved_seconds / figures.loop_seconds)
        said += f"; of the whole time of the loops ({duration(figures.loop_seconds)}) gathering saves {share}"
    yield said + " (estimates)"
    yield from _gaps(turn)


def _at_once(found: Sums, left_out: str) -> Iterator[str]:
    gathered = found.less(found.gathered_seconds)
    its, they = ("its", "it") if found.rounds == 1 else ("their", "they")
    beside = f"; {left_out}" if left_out else ""
    serial = found.work_seconds + found.gap_seconds
    said = (
        f"{counted(found.rounds, 'round')} overlapped {its} calls, up to {found.peak} at once: "
        f"{number(found.busy_speed_up)}× ({duration(found.work_seconds)} of calls in "
        f"{duration(found.busy_seconds)}); one after another {they} would have taken {duration(serial)} "
        f"instead of {duration(found.wall_seconds)} (estimate{beside})"
    )
    if gathered is not None and gathered >= WORTH_SAYING:
        said += f", all started at once {percent(gathered)} less"
    yield said
    yield from _gaps(found)


def _gaps(found: Sums) -> Iterator[str]:
    share = found.gap_seconds / found.wall_seconds if found.wall_seconds else 0.0
    if share >= WORTH_SAYING:
        yield (
            f"For {duration(found.gap_seconds)} of that time ({percent(share)}) none of these calls ran, "
            "which nothing explains (launch, approval, a lock): estimates leave it as it is"
        )


def _left_out(figures: RecordedFigures) -> str:
    """`20 % of the rounds of several calls have upper bounds and are left out`."""
    left = figures.left_out
    reasons = (
        (left.upper_bound, "have upper bounds"),
        (left.never_ended, "have a call that never ended"),
        (left.wait, "have a call that only waited for another"),
        (left.unresolved, f"are too short for the clock's ticks of {ticks(figures.resolution_ns)}"),
    )
    told = [(count, why) for count, why in reasons if count]
    if not told:
        return ""
    (first, why), *others = told
    share = "all" if first == figures.parallel else f"{percent(first / figures.parallel)} of the"
    found = [f"{share} rounds of several calls {why}"]
    found += [f"{percent(count / figures.parallel)} {why}" for count, why in others]
    return f"{', '.join(found)}{',' if others else ''} and are left out"


def _single(figures: RecordedFigures) -> Iterator[str]:
    """Requests that nothing joined are no agents, though each is a loop here."""
    outermost = figures.loops - figures.nested
    if figures.single < FEWEST_SINGLE or figures.single < SINGLE_SHARE * outermost:
        return
    of = "All" if figures.single == outermost else f"{figures.single:,} of"
    yield (
        f"{of} {counted(outermost, 'loop')} are single requests without a call: nothing in the spans joins "
        "them into loops"
    )


def _loops(figures: RecordedFigures) -> Iterator[str]:
    """How long loops took and how many failed; the page says so beside the verdict, from its own table."""
    walls = figures.walls
    if not walls.count or figures.slowest is None:
        return
    slowest = duration(figures.slowest)
    if walls.count == 1:
        ended = "".join(f" and failed ({clean(what, 60)})" for what in figures.no_answer)
        ended += "".join(f"; a call in it failed ({clean(what, 60)})" for what in figures.failed_call)
        ended += f" and was {STOPPED}" if figures.cancelled else ""
        yield f"The loop took {slowest}{ended}"
        return
    tail = "" if walls.p95 is None else f"95 % at most {duration(walls.p95)}, "
    said = f"Half of the loops took at most {duration(walls.p50)}, {tail}the slowest {slowest}"
    parts = [
        (figures.no_answer, "failed"),
        (figures.failed_call, "came to an answer although a call failed"),
        ({"": figures.cancelled}, f"{_were(figures.cancelled)} {STOPPED}"),
    ]
    of = f" of {counted(walls.count, 'loop')}"
    for reasons, what in parts:
        if count := sum(reasons.values()):
            said += f"; {count:,}{of} {what}{_most_common(reasons)}"
            of = ""
    yield said


def _most_common(reasons: Mapping[str, int]) -> str:
    named = [f"{clean(what, 60)} {count:,}" for what, count in list(reasons.items())[:3] if what]
    return f" ({', '.join(named)})" if named else ""


def _tools(figures: RecordedFigures) -> Iterator[str]:
    known = [one for one in figures.tools if one.latency.count]
    if known:
        shown = []
        for one in known[:MOST_TOOLS]:
            p95, p99 = one.latency.p95, one.latency.p99
            tail = "" if p95 is None else f", p95 {duration(p95)}, p99 {duration(p99)}"
            shown.append(
                f"{clean(one.name, 40)} p50 {duration(one.latency.p50)}{tail} "
                f"({counted(one.latency.count, 'call')})"
            )
        more = f", and {counted(len(known) - MOST_TOOLS, 'more tool')}" if len(known) > MOST_TOOLS else ""
        yield f"Tools: {'; '.join(shown)}{more}"


def _waits(figures: RecordedFigures) -> Iterator[str]:
    waits = figures.waits
    parts = []
    if waits.refused:
        parts.append(
            f"{counted(waits.refused, 'request')} {_were(waits.refused)} refused (429: over a quota, 529: "
            "overloaded)"
        )
    if waits.retries:
        parts.append(
            f"{counted(waits.retries, 'request')} {_were(waits.retries)} tried again, after "
            f"{duration(waits.backoff_seconds)} of waiting in all"
        )
    if waits.resends:
        parts.append(f"{waits.resends} tries are only counted: when they were is not recorded")
    if parts:
        yield f"Requests: {'; '.join(parts)}"


def _first_token(figures: RecordedFigures) -> Iterator[str]:
    seen = figures.first_token
    if seen.count:
        tail = "" if seen.p95 is None else f", p95 {duration(seen.p95)}, p99 {duration(seen.p99)}"
        derived = figures.first_tokens_derived
        beside = f", {derived} of them with a derived time" if derived else ""
        yield f"First token after {duration(seen.p50)} (p50{tail}; {counted(seen.count, 'request')}{beside})"


def _quotas(figures: RecordedFigures) -> Iterator[str]:
    for one in figures.quotas:
        yield quota_words(one)
    for limit in figures.untold:
        yield f"A quota of {limit} is stated, but its window cannot be told, so no share is"


def quota_words(one: QuotaShare) -> str:
    """The peak of one limit against it."""
    what, window = one.resource.replace("_", " "), window_words(one.window_ns)
    window = window.removeprefix("a ").removeprefix("an ") if window.startswith("a") else "stretch"
    said = (
        f"Quota ({one.source}): at most {one.peak:,} of {one.limit:,.12g} {what} in any {window} of this "
        f"recording alone, {percent(one.share)} of it{_whose(one)}"
    )
    if one.resource in ("input_tokens", "tokens") and one.cached:
        counts = "are not among them" if one.provider == "anthropic" else "are among them"
        said += f"; {one.cached:,} tokens read from the cache then {counts}"
    if one.unknown:
        said += f"; the tokens of {counted(one.unknown, 'request')} are not known"
    return said


def _whose(one: QuotaShare) -> str:
    among = f"the most used of {one.models} models" if one.models > 1 else ""
    named = ", ".join(part for part in (clean(one.model, 40), among) if part)
    return f" ({named})" if named else ""


# Where it is from.


def _from(
    figures: RecordedFigures, recording: Recording | None, anchor: Anchor | None, own: int
) -> Iterator[str]:
    sources = ", ".join(clean(one) for one in figures.sources if one) or "no format"
    inside = f", {figures.nested} of them inside tool calls" if figures.nested else ""
    door = DOORS[recording.door] if recording else "recorded"
    what = door if sources == "proxy" else f"{door} ({sources})"
    yield (
        f"{what}: {counted(figures.loops, 'loop')}{inside}, {counted(figures.rounds, 'round')}, "
        f"{counted(sum(one.calls for one in figures.tools), 'call')}"
    )
    if own:
        are, them = ("is", "it") if own == 1 else ("are", "them")
        yield f"{counted(own, 'more loop')} beside them {are} no recording: this verdict leaves {them} out"
    if anchor is not None and figures.began_ns is not None and figures.ended_ns is not None:
        yield f"Loops from {_date(anchor, figures.began_ns)} to {_date(anchor, figures.ended_ns)} UTC"
    yield _calls(figures, recording)
    if recording is None:
        return
    if recording.read:
        if recording.door == "proxy":  # what was read are requests, by what they were for
            kept = ", ".join(
                f"{counted(n, f'{clean(what, 80)} request')}" for what, n in recording.read.items()
            )
        else:
            kept = ", ".join(f"{n:,} ({clean(what, 80)})" for what, n in recording.read.items())
        yield f"Read: {kept}; {_skipped(recording)}"
    for one in recording.notes:
        note = clean(one, 300).rstrip(".")
        yield note[:1].upper() + note[1:]


def _date(anchor: Anchor, at_ns: int) -> str:
    seconds = anchor.unix(at_ns) // 10**9
    with contextlib.suppress(OverflowError, ValueError, OSError):  # a clock that was never set
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    return f"{seconds} s"


def _calls(figures: RecordedFigures, recording: Recording | None) -> str:
    tools = figures.tools
    derived = sum(one.derived for one in tools)
    bounds = sum(one.upper_bounds for one in tools)
    counts = {
        "exact": sum(one.latency.count for one in tools) - derived,
        "derived": derived,
        "upper bound" if bounds == 1 else "upper bounds": bounds,
        "never ended": sum(one.never_ended for one in tools),
        "never started": sum(one.never_started for one in tools),
        "only waits": sum(one.waits for one in tools),
    }
    shown = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "none"
    said = f"Durations of calls: {shown}; times in ticks of {ticks(figures.resolution_ns)}"
    if recording is not None and recording.clocks > 1:
        said += f", of {recording.clocks} clocks"
    if recording is not None and recording.clamped:
        said += f"; {recording.clamped} negative durations (a clock was set back) count as 0"
    return said


def _skipped(recording: Recording) -> str:
    total = sum(recording.skipped.values())
    if not total:
        return "nothing was skipped"
    ordered = sorted(recording.skipped.items(), key=lambda one: -one[1])
    why = ", ".join(f"{clean(reason, 80)} {count:,}" for reason, count in ordered[:MOST_REASONS])
    more = f", and {len(ordered) - MOST_REASONS} more reasons" if len(ordered) > MOST_REASONS else ""
    return f"skipped {total:,}: {why}{more}"


def ticks(nanoseconds: int) -> str:
    """`1 ns`, `1 µs`, `1 ms`, `1 s`."""
    for size, unit in ((10**9, "s"), (10**6, "ms"), (10**3, "µs")):
        if nanoseconds >= size:
            return f"{nanoseconds / size:g} {unit}"
    return f"{nanoseconds} ns"


# What it cannot say.


def _cannot(figures: RecordedFigures, recording: Recording | None) -> Iterator[str]:
    if not figures.loops:
        return
    if recording is None:
        yield (
            "when these loops ran, what was skipped, of how many clocks their times are, and whether they "
            "are a sample: the run.json of a run directory says so, and these are records alone"
        )
    if recording is not None and recording.clocks > 1:
        yield (
            f"how times of different machines lay to each other: they are of {recording.clocks} clocks, "
            "which may differ, and the overlap of calls on several of them is no more than a guess"
        )
    sampled = recording.sampled if recording else None
    if figures.in_turn.rounds or figures.overlapped.rounds:
        yield (
            "whether tools get slower when more of them run at once, and why calls ran as they did (a limit, "
            "a lock, an approval, on purpose): durations are of the overlap that there was"
        )
    bounds = sum(one.upper_bounds for one in figures.tools)
    if bounds:
        yield (
            f"how long {counted(bounds, 'call')} took: when {'it' if bounds == 1 else 'they'} started is not "
            "recorded, so the time since the model asked is an upper bound, with any approval and wait inside"
        )
    never = sum(one.never_ended for one in figures.tools)
    if never:
        yield f"how long {counted(never, 'call')} took of which no end was recorded"
    short = sum(one.unresolved for one in figures.tools)
    if short:
        yield f"differences between {counted(short, 'call')} of fewer than {MOST_TICKS} ticks of the clock"
    few = sum(0 < one.latency.count < FEWEST_FOR_TAIL for one in figures.tools)
    if few:
        yield f"the tail of {counted(few, 'tool')} with under {FEWEST_FOR_TAIL} calls of a known duration"
    if sampled is not None and sampled < 1:
        yield (
            f"rates and shares of a quota: only {percent(sampled)} of all traces were kept; if slow or "
            "failed ones were kept rather than others, latencies are not those of all either"
        )
    elif not figures.quotas:
        why = "no rate-limit headers are in the recording"
        if figures.headers:
            why = "rate-limit headers are in the recording, but no limit that can be read and reached"
        if figures.strange_quota:
            known = ", ".join(clean(one, 40) for one in figures.providers[:MOST_REASONS]) or "none is named"
            why = f"no request in the recording went to {clean(figures.strange_quota, 40)} (but to: {known})"
        how = "profiler report RUN --quota 500rpm,30000itpm holds it against one"
        yield f"how near a quota was: {why} ({how})"
    else:
        clocks = recording.clocks if recording else 1
        yield "what other clients of the same key used of the quota" + (
            f"; windows are of {clocks} clocks, which may differ" if clocks > 1 else ""
        )
    if not figures.waits.requests_with_attempts:
        yield "waits between tries of a request: no tries are in the recording, only requests"
    if not figures.first_token.count:
        yield "when the first token came: the recording does not say"
    if figures.unobserved_calls:
        asked = counted(figures.unobserved_calls, "call")
        yield f"anything of {asked} that the model asked for and nothing else tells of"
    if figures.ambiguous_calls or figures.orphan_calls:
        odd = figures.ambiguous_calls + figures.orphan_calls
        yield f"which round {counted(odd, 'call')} belonged to: what is recorded of them leaves it open"
    if figures.rounds_dropped:
        yield f"{counted(figures.rounds_dropped, 'round')} at the start of loops that were too long to keep"
    if figures.unreadable:
        yield f"{counted(figures.unreadable, 'part')} of replies that could not be understood"
    if figures.untimed_server_tools:
        yield (
            f"how long {counted(figures.untimed_server_tools, 'call')} took of tools that the model's server "
            "ran itself: that time is the model's here"
        )
    yield "what people and programs did between loops: that time is in none"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"
