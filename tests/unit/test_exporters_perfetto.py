"""Traces, read back the way Perfetto's importer of the Chrome format reads them.

Its trace processor is a binary that is downloaded, so it does not take part here. `read` applies
its rules and is stricter: where the importer would drop or re-nest a slice, `read` fails.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.anatomy import loop_phases, phases
from profiler.errors import RecordError, UsageError
from profiler.exporters import perfetto
from profiler.exporters.perfetto import write_trace
from profiler.records import (
    Attempt,
    LoopRecord,
    ModelCall,
    RemoteCall,
    RoundRecord,
    ServerToolCall,
    ToolCall,
    encode,
)
from tests.unit.statistics_data import asked_by_nobody, served

MS = 1_000_000


@dataclass
class Slice:
    name: str
    track: str
    group: str
    ts: int
    dur: int
    args: dict
    parent: Slice | None
    children: list[Slice] = field(default_factory=list)

    @property
    def path(self):
        return ([] if self.parent is None else self.parent.path) + [self.name]

    @property
    def end(self):
        return self.ts + self.dur


@dataclass
class Read:
    slices: list[Slice]
    flows: list[tuple[Slice, Slice]]
    counters: dict[str, list[tuple[int, int]]]
    instants: list[tuple[str, int, Slice]]
    other: dict

    def named(self, name):
        return [s for s in self.slices if s.name == name]

    def one(self, name):
        (found,) = self.named(name)
        return found


def read(path):
    content = path.read_bytes()
    data = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    groups, tracks = {}, {}
    for event in data["traceEvents"]:
        assert event["ph"] in {"X", "C", "M", "i"}
        assert all(isinstance(value, str | int | float) for value in event.get("args", {}).values())
        if event["ph"] != "M":
            assert type(event["ts"]) is int
            assert event["ts"] >= 0
        elif event["name"] == "process_name":
            assert event["pid"] not in groups
            groups[event["pid"]] = event["args"]["name"]
        elif event["name"] == "thread_name":
            assert event["tid"] not in tracks  # ids of threads are unique in the whole trace
            tracks[event["tid"]] = (event["pid"], event["args"]["name"])
    result = Read([], [], {}, [], data["otherData"])
    stacks: dict[int, list[Slice]] = {}
    sources: dict[int, Slice] = {}
    timed = [e for e in data["traceEvents"] if e["ph"] != "M"]
    for event in sorted(timed, key=lambda e: e["ts"]):  # stable: equal times stay as written
        if event["ph"] == "C":
            for key, value in event["args"].items():
                result.counters.setdefault(f"{event['name']} {key}", []).append((event["ts"], value))
            continue
        pid, track = tracks[event["tid"]]
        assert pid == event["pid"]
        stack = stacks.setdefault(event["tid"], [])
        while stack and stack[-1].end <= event["ts"]:
            stack.pop()
        top = stack[-1] if stack else None
        if event["ph"] == "i":
            result.instants.append((event["name"], event["ts"], top))
            continue
        assert type(event["dur"]) is int
        assert event["dur"] >= 0
        new = Slice(event["name"], track, groups[pid], event["ts"], event["dur"], event.get("args", {}), top)
        if top is not None:
            assert new.end <= top.end, f"{new.path} ends after its parent"
            top.children.append(new)
        stack.append(new)
        result.slices.append(new)
        if event.get("flow_out"):
            assert int(event["bind_id"], 16) not in sources
            sources[int(event["bind_id"], 16)] = new
        if event.get("flow_in"):
            result.flows.append((sources[int(event["bind_id"], 16)], new))
    return result


def tool_call(name, queued, started, ended, **other):
    """Times in milliseconds."""
    return ToolCall(
        id=f"id_{name}_{queued}",
        name=name,
        ready_ns=queued * MS,
        queued_ns=queued * MS,
        started_ns=None if started is None else started * MS,
        ended_ns=ended * MS,
        **other,
    )


def the_loop():
    """500 to 1500 ms: a round that is retried once and makes three calls, two at a time; an answer."""
    first = ModelCall(
        provider="openai",
        model="gpt-4o",
        started_ns=500 * MS,
        ended_ns=800 * MS,
        streamed=True,
        first_token_ns=740 * MS,
        first_tool_call_ns=790 * MS,
        finish_reason="tool_calls",
        input_tokens=10,
        output_tokens=20,
        attempts=(
            Attempt(510 * MS, 550 * MS, status=429, retry_after_ns=100 * MS),
            Attempt(650 * MS, 800 * MS, 200, connected_ns=660 * MS, sent_ns=661 * MS, first_byte_ns=730 * MS),
        ),
    )
    calls = (
        tool_call("search", 801, 801, 901),
        tool_call("fetch", 801, 801, 1001),
        tool_call("search", 801, 901, 1101, status="timeout", error_type="timeout"),
    )
    rounds = (
        RoundRecord(0, 500 * MS, 1102 * MS, first, 801 * MS, 1101 * MS, calls, shortfall="limiter"),
        RoundRecord(
            1,
            1102 * MS,
            1500 * MS,
            ModelCall(
                "openai", "gpt-4o", 1102 * MS, 1500 * MS, attempts=(Attempt(1102 * MS, 1500 * MS, 200),)
            ),
        ),
    )
    return LoopRecord(
        id="a-1",
        strategy="semaphore:2",
        provider="openai",
        model="gpt-4o",
        started_ns=500 * MS,
        ended_ns=1500 * MS,
        status="ok",
        rounds=rounds,
        agent="7",
        number=42,
    )


def shifted(loop, ms, **changes):
    """The loop, later."""

    def move(value):
        if isinstance(value, tuple):
            return tuple(move(v) for v in value)
        if not hasattr(value, "__dataclass_fields__"):
            return value
        return replace(
            value,
            **{
                name: (
                    getattr(value, name) + ms * MS
                    if name.endswith("_ns") and getattr(value, name) is not None and name != "retry_after_ns"
                    else move(getattr(value, name))
                )
                for name in value.__dataclass_fields__
            },
        )

    return replace(move(loop), **changes)


def test_loop_becomes_slices(tmp_path):
    trace = write_trace([the_loop()], tmp_path / "t.json.gz")
    got = read(tmp_path / "t.json.gz")
    assert [(s.path, s.ts, s.dur) for s in got.slices if s.track == "loops"] == [
        (["loop 42"], 0, 1_000_000),
        (["loop 42", "round 0"], 0, 602_000),
        (["loop 42", "round 0", "chat gpt-4o"], 0, 300_000),
        (["loop 42", "round 0", "chat gpt-4o", "attempt 1"], 10_000, 40_000),
        (["loop 42", "round 0", "chat gpt-4o", "backoff"], 50_000, 100_000),
        (["loop 42", "round 0", "chat gpt-4o", "attempt 2"], 150_000, 150_000),
        (["loop 42", "round 0", "chat gpt-4o", "attempt 2", "connect"], 150_000, 10_000),
        (["loop 42", "round 0", "chat gpt-4o", "attempt 2", "send"], 160_000, 1_000),
        (["loop 42", "round 0", "chat gpt-4o", "attempt 2", "wait"], 161_000, 69_000),
        (["loop 42", "round 0", "chat gpt-4o", "attempt 2", "receive"], 230_000, 70_000),
        (["loop 42", "round 0", "parse"], 300_000, 1_000),
        (["loop 42", "round 0", "tool phase"], 301_000, 300_000),
        (["loop 42", "round 0", "tool phase", "tools"], 301_000, 300_000),
        (["loop 42", "round 0", "collect"], 601_000, 1_000),
        (["loop 42", "round 1"], 602_000, 398_000),
        (["loop 42", "round 1", "chat gpt-4o"], 602_000, 398_000),
        (["loop 42", "round 1", "chat gpt-4o", "attempt 1"], 602_000, 398_000),
    ]
    assert {s.group for s in got.slices} == {"agent 7"}
    assert [(name, ts, at.name) for name, ts, at in got.instants] == [
        ("first token", 240_000, "receive"),
        ("first tool call", 290_000, "receive"),
    ]
    loop = got.one("loop 42").args
    assert loop["strategy"] == "semaphore:2"
    assert (loop["model_ms"], loop["backoff_ms"], loop["tools_ms"]) == (598.0, 100.0, 300.0)
    assert got.one("round 0").args == {"status": "ok", "shortfall": "limiter"}
    assert got.one("backoff").args == {"after": 429}
    assert got.one("tool phase").args == {
        "calls": 3,
        "work_ms": 500.0,
        "critical_path_ms": 200.0,
        "peak_concurrency": 2,
    }
    assert (trace.shown, trace.of) == (1, 1)


def test_calls_lie_on_lanes_and_arrows_lead_to_them(tmp_path):
    write_trace([the_loop()], tmp_path / "t.json")
    got = read(tmp_path / "t.json")
    assert [(s.track, s.path, s.ts, s.dur) for s in got.slices if s.track != "loops"] == [
        ("calls", ["search"], 301_000, 100_000),
        ("calls", ["search", "running"], 301_000, 100_000),
        ("calls 2", ["fetch"], 301_000, 200_000),
        ("calls 2", ["fetch", "running"], 301_000, 200_000),
        ("calls 3", ["search"], 301_000, 300_000),
        ("calls 3", ["search", "queued"], 301_000, 100_000),
        ("calls 3", ["search", "running"], 401_000, 200_000),
    ]
    assert [(a.name, b.name, b.track) for a, b in got.flows] == [
        ("round 0", "search", "calls"),
        ("round 0", "fetch", "calls 2"),
        ("round 0", "search", "calls 3"),
    ]
    late = got.flows[2][1].args
    assert late == {"id": "id_search_801", "status": "timeout", "error_type": "timeout"}


def test_lane_is_used_again_once_it_is_free(tmp_path):
    """Sequential calls need one lane per call that waits, the next loop needs no new ones."""
    write_trace([the_loop(), shifted(the_loop(), 1000, id="a-2", number=43)], tmp_path / "t.json")
    got = read(tmp_path / "t.json")
    assert {s.track for s in got.slices} == {"loops", "calls", "calls 2", "calls 3"}
    assert len(got.flows) == 6
    assert {id(a) for a, _ in got.flows} == {id(s) for s in got.named("round 0")}


def test_counters(tmp_path):
    write_trace([the_loop()], tmp_path / "t.json")
    assert read(tmp_path / "t.json").counters == {
        "loops in flight": [(0, 1), (1_000_000, 0)],
        "calls in flight": [(0, 0), (301_000, 2), (501_000, 1), (601_000, 0)],
        "calls queued": [(0, 0), (301_000, 1), (401_000, 0)],
    }


def test_queue_is_the_time_between_calls(tmp_path):
    """Two calls in a row with a gap, in which the second waits: tools, queue, tools."""
    round_ = the_loop().rounds[0]
    calls = (tool_call("a", 801, 811, 900), tool_call("b", 801, 950, 1101))
    round_ = replace(round_, tool_calls=calls)
    loop = replace(the_loop(), rounds=(round_,), ended_ns=round_.ended_ns)
    write_trace([loop], tmp_path / "t.json")
    got = read(tmp_path / "t.json")
    assert [(s.name, s.ts, s.dur) for s in got.one("tool phase").children] == [
        ("queue", 301_000, 10_000),
        ("tools", 311_000, 89_000),
        ("queue", 400_000, 50_000),
        ("tools", 450_000, 151_000),
    ]
    spent = phases(round_)
    assert spent["queue"] == 60 * MS
    assert spent["tools"] == 240 * MS


def test_slice_that_outlasts_its_parent_is_cut(tmp_path):
    """A body that is closed after the request returned; attempts that a hedging client overlaps."""
    attempts = (Attempt(510 * MS, 700 * MS, 200), Attempt(600 * MS, 900 * MS, 200, first_byte_ns=850 * MS))
    round_ = the_loop().rounds[0]
    round_ = replace(round_, model=replace(round_.model, attempts=attempts))
    write_trace([replace(the_loop(), rounds=(round_,))], tmp_path / "t.json")
    got = read(tmp_path / "t.json")
    assert [(s.name, s.ts, s.dur) for s in got.one("chat gpt-4o").children] == [
        ("attempt 1", 10_000, 190_000),
        ("attempt 2", 200_000, 100_000),
    ]
    assert [(s.name, s.ts, s.dur) for s in got.one("attempt 2").children] == [("wait", 200_000, 100_000)]


def test_call_that_never_ran_only_waits(tmp_path):
    calls = (tool_call("a", 801, None, 1101, status="cancelled", error_type="cancelled"),)
    round_ = replace(the_loop().rounds[0], tool_calls=calls, status="cancelled")
    write_trace([replace(the_loop(), rounds=(round_,), status="cancelled")], tmp_path / "t.json")
    got = read(tmp_path / "t.json")
    assert [s.name for s in got.one("a").children] == ["queued"]
    assert got.counters["calls in flight"] == [(0, 0)]
    assert got.counters["calls queued"] == [(0, 0), (301_000, 1), (601_000, 0)]


def test_recorded_content_is_shown_cut_short(tmp_path):
    call = replace(the_loop().rounds[0].tool_calls[0], arguments='{"q": "x"}', result="y" * 600)
    round_ = replace(the_loop().rounds[0], tool_calls=(call,))
    write_trace([replace(the_loop(), rounds=(round_,), prompt="Größe?\n")], tmp_path / "t.json")
    got = read(tmp_path / "t.json")
    assert got.one("search").args["arguments"] == '{"q": "x"}'
    assert got.one("search").args["result"] == "y" * 500 + "…"
    assert got.one("loop 42").args["prompt"] == "Größe?\n"


def test_agents_have_groups_and_overlapping_loops_have_tracks(tmp_path):
    loop = the_loop()
    loops = [
        loop,
        shifted(loop, 100, id="b", agent="8", process="worker 2"),
        shifted(loop, 200, id="c", agent="8", process="worker 2", parent="b"),
    ]
    write_trace(loops, tmp_path / "t.json")
    got = read(tmp_path / "t.json")
    assert [(s.group, s.track, s.ts) for s in got.named("loop 42")] == [
        ("agent 7", "loops", 0),
        ("agent 8 of worker 2", "loops", 100_000),
        ("agent 8 of worker 2", "loops 2", 200_000),
    ]


def test_loop_in_a_call_has_an_arrow_from_it(tmp_path):
    """Of two calls with one name and one id, each has its own."""
    calls = [
        tool_call("research", 801, 801, 1101, loops=("short", "not shown")),
        tool_call("research", 801, 801, 1400, loops=("long", "again")),
    ]
    outer = replace(the_loop(), rounds=(replace(the_loop().rounds[0], tool_calls=tuple(calls)),))
    own = {"rounds": (), "parent": outer.id, "number": None}
    inner = [
        replace(outer, id=name, name=name, started_ns=start * MS, ended_ns=end * MS, **own)
        for name, start, end in (("short", 900, 1000), ("long", 900, 1100), ("again", 1200, 1300))
    ]
    write_trace([outer, *inner], tmp_path / "t.json")
    got = read(tmp_path / "t.json")
    into = {target.name: source for source, target in got.flows if target.name in ("short", "long", "again")}
    assert {name: (source.name, source.end) for name, source in into.items()} == {
        "short": ("running", 601_000),
        "long": ("running", 900_000),
        "again": ("running", 900_000),
    }


def crowd(count):
    """Loops as they end: every third is slow; half of them overlap the one before."""
    loops = []
    for i in range(count):
        loop = shifted(the_loop(), 600 * i, id=f"l-{i}", number=i)
        slower = 5000 * MS + i if i % 3 == 0 else 0
        loops.append(replace(loop, ended_ns=loop.ended_ns + slower))
    return sorted(loops, key=lambda record: record.ended_ns)


def numbers(got):
    return sorted(int(s.name.split()[1]) for s in got.slices if s.name.startswith("loop "))


def test_trace_shows_the_first_loops_and_the_slowest(tmp_path):
    path = tmp_path / "t.json.gz"
    trace = write_trace(crowd(30), path, loops=4)
    assert numbers(read(path)) == [0, 1, 2, 3]
    assert (trace.shown, trace.of, trace.selection) == (4, 30, "the first to start")

    trace = write_trace(crowd(30), path, slowest=2)
    assert numbers(read(path)) == [24, 27]
    assert trace.selection == "the slowest"

    trace = write_trace(crowd(30), path, loops=2, slowest=2)
    assert numbers(read(path)) == [0, 1, 24, 27]
    assert trace.selection == "the first 2 to start and the slowest 2"
    assert read(path).other["shown"] == 4

    write_trace(crowd(6), path, loops=4, slowest=2)  # those that are both are there once
    assert numbers(read(path)) == [0, 1, 2, 3]


def value_at(points, ts):
    return [value for at, value in points if at <= ts][-1]


@pytest.mark.parametrize(
    ("choice", "shown"),
    [({"slowest": 1}, [57]), ({"loops": 1}, [0]), ({"loops": 2, "slowest": 3}, [0, 1, 51, 54, 57])],
)
def test_counters_are_those_of_the_whole_run_wherever_a_loop_is_shown(tmp_path, choice, shown):
    write_trace(crowd(60), tmp_path / "all.json")
    write_trace(crowd(60), tmp_path / "some.json", **choice)
    everything, some = read(tmp_path / "all.json"), read(tmp_path / "some.json")
    assert numbers(some) == shown
    offset = everything.one(f"loop {shown[0]}").ts
    assert some.one(f"loop {shown[0]}").ts == 0
    loops = [f"loop {number}" for number in shown]
    for loop in map(some.one, loops):
        for name, points in some.counters.items():
            for ts in range(loop.ts, loop.end + 1, 50_000):
                assert value_at(points, ts) == value_at(everything.counters[name], ts + offset)
            # Nothing is kept of the time between the loops shown, however long that is.
            assert all(any(x.ts <= ts <= x.end for x in map(some.one, loops)) for ts, _ in points)
    if shown == [57]:  # at its start: 48, 51, 54 (slow), 56 and itself
        assert some.counters["loops in flight"][0] == (0, 5)


def test_trace_without_numbers_is_bounded_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(perfetto, "MAX_EVENTS", 200)
    trace = write_trace(iter(crowd(30)), tmp_path / "t.json")
    got = read(tmp_path / "t.json")
    assert 0 < trace.shown < 10
    assert numbers(got) == list(range(trace.shown))
    assert len(got.slices) <= 200
    data = json.loads((tmp_path / "t.json").read_bytes())
    assert data["traceEvents"][0]["args"]["name"] == (
        f"run ({trace.shown} of 30 loops shown, counters of all)"
    )
    assert len(data["traceEvents"]) == trace.events


def test_counters_are_merged_beyond_so_many_points(tmp_path, monkeypatch):
    monkeypatch.setattr(perfetto, "MAX_COUNTER_POINTS", 20)
    trace = write_trace(crowd(30), tmp_path / "t.json")
    got = read(tmp_path / "t.json")
    assert trace.counter_step_us > 1
    for points in got.counters.values():
        assert len(points) <= 21
        assert points[-1][1] == 0
        assert all(value >= 0 for _, value in points)


def test_trace_reads_a_records_file(tmp_path):
    (tmp_path / "records.jsonl").write_bytes(encode(the_loop()) + b"\n" + encode(the_loop())[:50])
    assert write_trace(tmp_path / "records.jsonl", tmp_path / "t.json").of == 1


def test_trace_reads_a_run_directory(tmp_path):
    (tmp_path / "run.json").write_bytes(b"{}")
    (tmp_path / "records.jsonl").write_bytes(encode(the_loop()) + b"\n")
    trace = write_trace(str(tmp_path), tmp_path / "t.json")
    assert (trace.of, trace.selection) == (1, "all")
    assert numbers(read(tmp_path / "t.json")) == [42]


def test_trace_of_the_same_run_is_the_same_file(tmp_path):
    write_trace(crowd(5), tmp_path / "a.json.gz")
    write_trace(crowd(5), tmp_path / "b.json.gz")
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


def test_trace_refuses_bad_numbers_and_paths_and_empty_runs(tmp_path):
    with pytest.raises(UsageError, match="slowest must be at least 1, not 0"):
        write_trace([the_loop()], tmp_path / "t.json", slowest=0)
    with pytest.raises(RecordError, match="no loops to trace"):
        write_trace([], tmp_path / "t.json")
    with pytest.raises(RecordError, match=r"not a run directory"):
        write_trace(tmp_path, tmp_path / "t.json")
    with pytest.raises(RecordError, match="cannot be written"):
        write_trace([the_loop()], tmp_path / "nowhere" / "t.json")


PARSING_NS = 3_000


@st.composite
def loops_of_an_agent(draw):
    """A loop of a few rounds with calls that overlap as they like, also with the model (eager)."""
    at = draw(st.integers(0, 5_000_000))
    started, rounds = at, []
    for index in range(draw(st.integers(1, 3))):
        begun = at
        attempts = []
        for _ in range(draw(st.integers(0, 2))):
            at += draw(st.integers(0, 999_999))
            ended = at + draw(st.integers(0, 999_999))
            byte = draw(st.none() | st.integers(at, ended))
            attempts.append(Attempt(at, ended, 200, first_byte_ns=byte, sent_ns=at if byte else None))
            at = ended
        at += draw(st.integers(0, 5_000))
        model = ModelCall("openai", "m", begun, at, attempts=tuple(attempts))
        calls = []
        tools_started = tools_ended = at + draw(st.integers(0, PARSING_NS))
        for number in range(draw(st.integers(0, 5))):
            queued = draw(st.integers(begun, tools_started))
            ran = draw(st.none() | st.integers(queued, queued + 2_000_000))
            ended = (queued if ran is None else ran) + draw(st.integers(0, 2_000_000))
            remote = None
            if ran is not None and draw(st.booleans()):
                posted = draw(st.none() | st.integers(ran, ended))
                answered = None if posted is None else draw(st.none() | st.integers(posted, ended))
                told = draw(st.none() | st.integers(0, 2_000_000))
                remote = RemoteCall("docs", "http", None, posted, answered, told, draw(st.integers(0, 9_000)))
            calls.append(ToolCall(f"c{number}", "t", queued, queued, ran, ended, remote=remote))
            tools_ended = max(tools_ended, ended)
        at = tools_ended + draw(st.integers(0, 3_000)) if calls else at
        rounds.append(
            RoundRecord(
                index,
                begun,
                at,
                model,
                tools_started if calls else None,
                tools_ended if calls else None,
                tuple(calls),
            )
        )
    return LoopRecord("id", "s", "openai", "m", started, at, "ok", tuple(rounds))


@pytest.mark.slow
@given(st.lists(loops_of_an_agent(), min_size=1, max_size=5))
def test_slices_always_nest_and_add_up(tmp_path_factory, loops):
    path = tmp_path_factory.mktemp("trace") / "t.json"
    write_trace(loops, path)
    got = read(path)
    origin = min(loop.started_ns for loop in loops)
    assert sorted((s.ts, s.dur) for s in got.named("loop")) == sorted(
        ((x.started_ns - origin) // 1000, (x.ended_ns - origin) // 1000 - (x.started_ns - origin) // 1000)
        for x in loops
    )
    calls = [call for loop in loops for call in loop.tool_calls]
    sent = [call for call in calls if call.remote is not None and call.remote.posted_ns is not None]
    assert len(got.flows) == len(calls) == len(got.named("t")) - len(sent)
    assert len(got.named("running")) == sum(call.started_ns is not None for call in calls)
    # Rounding down costs a microsecond at most at each edge of a slice; and what eager calls overlap of
    # parsing is theirs by the record, but drawn as parsing.
    parsing = sum(len(loop.rounds) for loop in loops) * PARSING_NS / 1000
    for name in ("tools", "queue"):
        drawn = got.named(name)
        expected = sum(loop_phases(loop)[name] for loop in loops) / 1000
        assert abs(sum(s.dur for s in drawn) - expected) <= len(drawn) + len(calls) + 1 + parsing
    assert all(points[-1][1] == 0 for points in got.counters.values())


def test_server_tools_have_tracks_of_their_own(tmp_path):
    """Two that overlap, one whose times nobody knows, one that sticks out of its request."""
    loop = the_loop()
    searches = (
        ServerToolCall("web_search", 660 * MS, 720 * MS),
        ServerToolCall("code_execution", 700 * MS, 900 * MS),
        ServerToolCall("web_search"),
    )
    first = replace(loop.rounds[0], model=replace(loop.rounds[0].model, server_tools=searches))
    write_trace([replace(loop, rounds=(first, loop.rounds[1]))], tmp_path / "t.json")
    got = read(tmp_path / "t.json")
    assert [(s.name, s.track, s.ts, s.dur) for s in got.slices if s.track.startswith("server tools")] == [
        ("web_search", "server tools", 160_000, 60_000),
        ("code_execution", "server tools 2", 200_000, 100_000),
    ]
    assert got.one("loop 42").args["server_tools_ms"] == 140.0


def test_mcp_servers_have_groups_with_their_requests(tmp_path):
    """Two at once at one server, one at another, one that was never sent."""
    calls = [
        served(0, session=10, client=5, remote=100, parsing=3, told=80),
        served(0, client=5, remote=50),
        served(0, client=2, remote=20, server="wiki", status="error", error_type="tool_error"),
    ]
    unsent = replace(served(0), remote=RemoteCall("wiki", "http"))
    write_trace([asked_by_nobody([*calls, unsent])], tmp_path / "t.json")
    got = read(tmp_path / "t.json")
    requests = [
        (s.group, s.track, s.name, s.ts, s.dur) for s in got.slices if s.group.startswith("MCP server")
    ]
    assert sorted(requests) == [
        ("MCP server docs", "requests", "search", 5_000, 50_000),
        ("MCP server docs", "requests 2", "search", 15_000, 100_000),
        ("MCP server docs", "requests 2", "server", 35_000, 80_000),
        ("MCP server wiki", "requests", "search", 2_000, 20_000),
    ]
    first = next(s for s in got.named("running") if len(s.children) == 4)
    assert [(s.name, s.ts, s.dur) for s in first.children] == [
        ("session wait", 0, 10_000),
        ("client wait", 10_000, 5_000),
        ("server and network", 15_000, 100_000),
        ("parsing", 115_000, 3_000),
    ]
    (failed,) = [s for s in got.slices if s.group == "MCP server wiki"]
    assert failed.args["error_type"] == "tool_error"
    assert got.counters["requests at docs in flight"] == [
        (0, 0), (5_000, 1), (15_000, 2), (55_000, 1), (115_000, 0)
    ]  # fmt: skip


def test_round_that_no_model_was_asked_for_has_no_request(tmp_path):
    write_trace([asked_by_nobody([served(0)])], tmp_path / "t.json")
    got = read(tmp_path / "t.json")
    assert not [s for s in got.slices if s.name.startswith("chat")]
    assert "model" not in got.one("loop").args
