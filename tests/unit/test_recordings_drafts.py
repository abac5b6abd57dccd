"""From what a recording tells to a record: one rule for each time that may be missing."""

from __future__ import annotations

from profiler.recordings.drafts import CallDraft, LoopDraft, ModelDraft, RoundDraft, Tally, record_of

MS = 1_000_000


def loop_of(*calls, **loop):
    model = ModelDraft("openai", "m", started_ns=1000 * MS, ended_ns=1500 * MS, input_tokens=7)
    return LoopDraft("l1", "test", [RoundDraft(model, list(calls))], **loop)


def only_call(draft, **loop):
    tally = Tally()
    record = record_of(loop_of(draft, **loop), tally, origin_ns=1000 * MS)
    (call,) = record.tool_calls
    return call, tally


def test_a_span_is_exact():
    call, tally = only_call(CallDraft("f", "c", started_ns=1510 * MS, ended_ns=1600 * MS))
    assert (call.ready_ns, call.queued_ns, call.started_ns, call.ended_ns) == (
        500 * MS,
        510 * MS,
        510 * MS,
        600 * MS,
    )
    assert call.derived == ("ready_ns",)
    assert call.unknown == ("queued_ns",)
    assert call.latency_ns == call.duration_ns == 90 * MS
    assert tally == Tally(exact=1)


def test_an_own_duration_tells_the_start():
    call, tally = only_call(CallDraft("f", "c", asked_ns=1400 * MS, ended_ns=1600 * MS, own_ns=50 * MS))
    assert (call.ready_ns, call.started_ns) == (400 * MS, 550 * MS)
    assert call.derived == ("started_ns",)
    assert call.latency_ns == 50 * MS
    assert tally == Tally(derived=1)


def test_an_own_duration_that_began_before_it_was_asked_for_is_cut():
    call, _ = only_call(CallDraft("f", "c", asked_ns=1500 * MS, ended_ns=1600 * MS, own_ns=300 * MS))
    assert call.started_ns == 500 * MS


def test_an_end_alone_bounds_the_duration():
    call, tally = only_call(CallDraft("f", "c", asked_ns=1400 * MS, ended_ns=1600 * MS))
    assert call.upper_bound
    assert call.duration_ns == 200 * MS
    assert call.latency_ns is None
    assert tally == Tally(upper_bounds=1)


def test_a_call_that_never_ended_has_no_duration():
    call, tally = only_call(CallDraft("f", "c", asked_ns=1400 * MS, status="cancelled"), ended_ns=1900 * MS)
    assert not call.ended
    assert call.duration_ns is None
    assert call.latency_ns is None
    assert call.unknown == ("queued_ns", "ended_ns")
    assert tally == Tally(never_ended=1)


def test_a_refused_call_never_started():
    draft = CallDraft("f", "c", asked_ns=1400 * MS, ended_ns=1600 * MS, refused=True, status="cancelled")
    call, tally = only_call(draft)
    assert call.started_ns is None
    assert call.duration_ns is None
    assert tally == Tally(never_started=1)


def test_a_clock_that_was_set_back_makes_no_negative_duration():
    call, tally = only_call(CallDraft("f", "c", started_ns=1600 * MS, ended_ns=1550 * MS))
    assert call.duration_ns == 0
    assert tally == Tally(exact=1, clamped=1)


def test_times_of_the_loop_are_those_of_its_parts_where_nothing_says_more():
    record = record_of(loop_of(CallDraft("f", "c", started_ns=1510 * MS, ended_ns=1600 * MS)), Tally())
    assert (record.started_ns, record.ended_ns) == (1000 * MS, 1600 * MS)
    assert record.derived == ("started_ns", "ended_ns")
    assert (record.source, record.strategy, record.provider) == ("test", "recorded", "openai")


def test_a_loop_of_which_its_start_is_all_that_is_known_ends_then_and_no_clock_was_set_back():
    tally = Tally()
    record = record_of(LoopDraft("l", "test", started_ns=1000 * MS), tally)
    assert (record.started_ns, record.ended_ns, tally) == (1000 * MS, 1000 * MS, Tally())


def test_an_own_duration_that_ended_before_it_was_asked_for_is_counted():
    call, tally = only_call(CallDraft("f", "c", asked_ns=1600 * MS, ended_ns=1550 * MS, own_ns=20 * MS))
    assert (call.started_ns, call.duration_ns) == (600 * MS, 0)
    assert tally == Tally(derived=1, clamped=1)


def test_an_own_duration_may_end_before_a_reply_of_which_nobody_says_when_it_asked():
    call, tally = only_call(CallDraft("f", "c", ended_ns=1400 * MS, own_ns=50 * MS))
    assert (call.started_ns, call.duration_ns) == (400 * MS, 0)
    assert tally == Tally(derived=1)


def test_a_place_that_is_a_guess_counts_as_derived():
    call, tally = only_call(CallDraft("f", "c", started_ns=1510 * MS, ended_ns=1600 * MS, ended_late=True))
    assert call.derived == ("ready_ns", "ended_ns")
    assert tally == Tally(derived=1)


def test_no_request_took_no_tokens():
    def tokens(**told):
        model = ModelDraft("openai", "m", 0, 1, **told)
        made = record_of(LoopDraft("l", "test", [RoundDraft(model)]), Tally()).rounds[0].model
        return made.input_tokens, made.cached_tokens, made.output_tokens

    assert tokens(input_tokens=0, cached_tokens=0, output_tokens=0) == (None, None, None)
    assert tokens(input_tokens=0, output_tokens=5) == (None, None, 5)
    assert tokens(input_tokens=9, cached_tokens=0, output_tokens=0) == (9, 0, 0)
