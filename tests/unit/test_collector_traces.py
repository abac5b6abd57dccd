"""When a trace has ended: by its root, by silence, by too much; what comes again, and what comes late."""

from __future__ import annotations

import pytest

from profiler.collector import traces
from profiler.collector.traces import Bounds, OpenTraces, Patience
from profiler.recordings.span import Span

PATIENCE = Patience(grace=10, settle=30, idle=300)


def span(trace="t", id_="s", parent="p", kind="model", ended_ns=2, conversation=""):
    return Span(trace, id_, parent, kind, "n", 1, ended_ns, conversation=conversation)


class Feed:
    """Open traces, and what ended, at times that the test chooses."""

    def __init__(self, **bounds):
        self.open = OpenTraces(PATIENCE, Bounds(**bounds))

    def add(self, now, *more, remote=False, **about):
        one = span(*more, **about)
        return self.open.add(one, b"x" * 10, now, remote)

    def ended(self, now):
        return [(sorted(one.traces), one.why) for one in self.open.due(now)]


def test_a_trace_ends_when_its_root_came_and_nothing_more():
    feed = Feed()
    feed.add(0, id_="a", parent="r")
    assert feed.add(1, id_="r", parent="") == "new"
    assert feed.ended(10.9) == []
    assert feed.add(10.9, id_="late child", parent="r") == "new"
    assert feed.ended(20.8) == []
    (ended,) = feed.open.due(20.9)
    assert (ended.why, list(ended.traces), list(ended.traces["t"])) == (
        "root",
        ["t"],
        ["a", "r", "late child"],
    )
    assert list(ended.spans) == [b"x" * 10] * 3
    assert (len(feed.open), feed.open.spans, feed.open.size) == (0, 0, 0)
    assert feed.ended(10_000) == []


def test_one_without_a_root_ends_when_nothing_came_for_long():
    feed = Feed()
    feed.add(0, id_="a")
    feed.add(200, id_="b")
    assert feed.ended(499) == []
    assert feed.ended(500) == [(["t"], "idle")]


def test_one_whose_root_is_elsewhere_ends_sooner():
    feed = Feed()
    feed.add(0, id_="a", parent="b")
    feed.add(1, id_="b", parent="far away", kind="agent", remote=True)
    feed.add(2, id_="c", parent="b")
    assert feed.ended(31) == []
    assert feed.ended(32) == [(["t"], "remote")]


def test_a_true_root_counts_more_than_one_whose_parent_is_elsewhere():
    feed = Feed()
    feed.add(0, id_="b", parent="far away", remote=True)
    feed.add(1, id_="r", parent="")
    assert feed.ended(11) == [(["t"], "root")]


def test_a_root_that_only_began_ends_nothing():
    feed = Feed()
    assert feed.add(0, id_="r", parent="", kind="agent", ended_ns=None) == "new"
    assert feed.add(0, id_="r", parent="", kind="agent", ended_ns=None) == "repeated"
    assert feed.ended(20) == []
    assert feed.add(20, id_="r", parent="", kind="agent") == "new"
    assert feed.add(20, id_="r", parent="", kind="agent") == "repeated"
    assert feed.add(20, id_="r", parent="", kind="agent", ended_ns=None) == "repeated"
    assert feed.open.spans == 1
    assert feed.ended(30) == [(["t"], "root")]


def test_what_comes_again_is_told_while_a_trace_is_open_and_after():
    feed = Feed()
    feed.add(0, id_="a")
    assert feed.add(0, id_="a") == "repeated"
    feed.add(0, id_="r", parent="")
    (ended,) = feed.open.due(10)
    feed.open.remember(ended.traces.items())
    assert feed.add(11, id_="a") == "repeated"
    assert feed.add(11, id_="other") == "late"
    assert len(feed.open) == 0


def test_a_trace_that_is_not_remembered_may_begin_again():
    feed = Feed()
    feed.add(0, id_="r", parent="", kind="other")
    assert len(feed.ended(10)) == 1
    assert feed.add(11, id_="a") == "new"


def test_spans_are_remembered_for_less_long_than_traces(monkeypatch):
    monkeypatch.setattr(traces, "MOST_RECENT", 2)
    monkeypatch.setattr(traces, "MOST_REMEMBERED", 2)
    feed = Feed()
    feed.open.remember((f"t{number}", ["a"]) for number in range(5))
    assert [feed.add(0, f"t{number}", "a") for number in range(5)] == [
        "new",
        "late",
        "late",
        "repeated",
        "repeated",
    ]


@pytest.mark.parametrize("bounds", [{"traces": 2}, {"spans": 4}, {"bytes": 40}])
def test_of_too_many_the_one_ends_that_nothing_came_of_for_longest(bounds):
    feed = Feed(**bounds)
    for number, trace in enumerate(("a", "b", "a", "b")):
        feed.add(number, trace, str(number))
    assert list(feed.open.excess()) == []
    feed.add(4, "a", "again")
    feed.add(5, "c", "first")
    assert [(list(one.traces), one.why) for one in feed.open.excess()] == [(["b"], "bound")]


def test_traces_of_a_conversation_without_an_agent_end_together():
    feed = Feed()
    feed.add(0, "one", "r", "", conversation="c")
    feed.add(100, "two", "r", "", conversation="c")
    feed.add(101, "other", "r", "", conversation="d")
    feed.add(101, "none", "r", "")
    assert feed.ended(111) == [(["none"], "root")]
    assert feed.add(112, "one", "child") == "new"
    assert len(feed.open) == 3
    assert feed.ended(410) == []
    assert feed.ended(411) == [(["other"], "idle")]
    assert feed.ended(412) == [(["one", "two"], "idle")]
    assert (len(feed.open), feed.open.spans, feed.open.size) == (0, 0, 0)


def test_a_conversation_with_an_agent_ends_by_its_root():
    feed = Feed()
    feed.add(0, "one", "m", "r", conversation="c")
    feed.add(0, "one", "r", "", "agent", conversation="c")
    assert feed.ended(10) == [(["one"], "root")]


def test_everything_ends_at_the_end():
    feed = Feed()
    feed.add(0, "rooted", "r", "")
    feed.add(0, "open", "a")
    feed.add(0, "remote", "a", remote=True)
    ended = {next(iter(one.traces)): one.why for one in feed.open.all()}
    assert ended == {"rooted": "root", "open": "stopped", "remote": "stopped"}


def test_the_texts_of_open_traces_can_be_had():
    feed = Feed()
    feed.add(0, "a", "1")
    feed.add(0, "a", "2")
    assert [(trace, list(texts)) for trace, texts in feed.open.texts(["a", "b"])] == [("a", [b"x" * 10] * 2)]


def test_what_is_quiet_takes_less_memory_and_is_whole_when_it_ends():
    open_ = OpenTraces(PATIENCE)
    texts = {f"{number}": b"the same words " * 20 + b"%d" % number for number in range(10)}
    for id_ in list(texts)[:6]:
        assert open_.add(span(id_=id_), texts[id_], 0) == "new"
    before = open_.size
    assert list(open_.due(14)) == []
    assert open_.size == before == sum(map(len, list(texts.values())[:6]))
    assert list(open_.due(15)) == []
    assert open_.size < before / 4
    assert open_.add(span(id_="0"), b"again", 100) == "repeated"
    for id_ in list(texts)[6:]:
        assert open_.add(span(id_=id_), texts[id_], 100) == "new"
    assert [(trace, list(found)) for trace, found in open_.texts(["t"])] == [("t", list(texts.values()))]
    assert list(open_.due(115)) == []
    assert open_.add(span(id_="9"), b"again", 120) == "repeated"
    assert open_.add(span(id_="r", parent=""), b"root", 120) == "new"
    (ended,) = open_.due(130)
    assert ended.traces == {"t": {**texts, "r": b"root"}}
    assert (len(open_), open_.spans, open_.size, len(open_._loose)) == (0, 0, 0, 0)


def test_a_span_that_ends_after_its_beginning_was_compressed_counts_once():
    open_ = OpenTraces(PATIENCE)
    open_.add(span(id_="r", parent="", ended_ns=None), b"began", 0)
    assert list(open_.due(20)) == []
    assert open_.add(span(id_="r", parent="", ended_ns=None), b"began", 21) == "repeated"
    assert open_.add(span(id_="r", parent=""), b"ended", 22) == "new"
    assert open_.add(span(id_="r", parent=""), b"ended", 22) == "repeated"
    assert open_.spans == 1
    (ended,) = open_.due(32)
    assert ended.traces == {"t": {"r": b"ended"}}
    assert (open_.spans, open_.size) == (0, 0)


def test_traces_of_a_conversation_are_joined_also_when_compressed():
    open_ = OpenTraces(PATIENCE)
    for at, trace in ((0, "one"), (100, "two")):
        open_.add(span(trace, "r", "", conversation="c"), trace.encode(), at)
        assert list(open_.due(at + 20)) == []
        assert open_.add(span(trace, "r", "", conversation="c"), b"", at + 20) == "repeated"
    (ended,) = open_.due(500)
    assert ended.traces == {"one": {"r": b"one"}, "two": {"r": b"two"}}
    assert (len(open_), open_.spans, open_.size, len(open_._loose)) == (0, 0, 0, 0)
